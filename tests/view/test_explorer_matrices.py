"""Edges as matrices: every entry is drawn and listed by its own value, and one prompt's are taken from another's."""

import base64
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib.core.edges import Edges
from attrib.core.types import InputError
from attrib.view.explorer.matrix_payload import fitted, packed_edges
from tests.support.builders import sae, tiny
from tests.support.pages import Opened
from tests.support.typed import Command
from tests.view.test_explorer_payload import unpacked

PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([3, 1, 9, 2])]


@pytest.fixture(scope="module")
def edges() -> list[Edges]:
    """Latents to latents and tokens to latents, of two prompts."""
    model = tiny("llama")
    first, second = (sae("standard", site=f"blocks.{layer}.hook_resid_pre") for layer in (1, 2))
    of_latents = attrib.latent_to_latent(model, first, second, PROMPTS)
    of_tokens = attrib.token_to_latent(model, second, PROMPTS)
    taken = [(of_latents, 0), (of_latents, 1), (of_tokens, 0)]
    return [
        replace(each.prompt(at), prompts=replace(each.prompts.take(slice(at, at + 1)), number=torch.tensor([at]))) for each, at in taken
    ]


@pytest.fixture
def opened(chromium: Any, tmp_path: Path, edges: list[Edges]) -> Iterator[Opened]:
    made = Opened(chromium, tmp_path, packed_edges(edges))
    yield made
    made.close()


def dense(edges: Edges, value: str = "attribution") -> torch.Tensor:
    found = torch.zeros(edges.shape)
    found[edges.row, edges.indices] = getattr(edges, value).float()
    return found


def table(opened: Opened) -> tuple[list[int], list[int], dict[tuple[int, int], float]]:
    rows, columns, entries = opened.ask(
        "() => { const t = explorer.table; return [t.rows, t.columns, Array.from(t.value, (v, at) => [t.row[at], t.column[at], v])]; }"
    )
    return rows, columns, {(row, column): value for row, column, value in entries}


def test_every_entry_is_in_the_page(edges: list[Edges]) -> None:
    header, columns = unpacked(packed_edges(edges))
    for number, each in enumerate(edges):
        assert columns[f"{number} indptr"].tolist() == each.indptr.tolist()
        assert columns[f"{number} indices"].tolist() == each.indices.tolist()
        assert columns[f"{number} attribution"].tolist() == each.attribution.float().tolist()
        assert columns[f"{number} gradient"].tolist() == each.gradient.float().tolist()
        assert columns[f"{number} target_latent"].tolist() == each.targets.latent.tolist()
    assert [each["name"] for each in header["matrices"]][:2] == [
        f"prompt {number}: blocks.1.hook_resid_pre → blocks.2.hook_resid_pre" for number in (0, 1)
    ]


def test_of_many_edges_the_largest_stay_and_the_page_says_so(edges: list[Edges]) -> None:
    header, columns = unpacked(packed_edges(edges[:1], max_edges=7))
    assert len(columns["0 attribution"]) == 7
    assert header["matrices"][0]["left_out"].startswith(f"This page holds 7 of the matrix's {len(edges[0]):,} edges")
    wanted = edges[0].attribution.abs().sort(descending=True).values[:7]
    assert sorted(abs(columns["0 attribution"]).tolist(), reverse=True) == wanted.float().tolist()
    small, whole = dense(fitted(edges[0], 7)), dense(edges[0])
    assert torch.equal(small[small != 0], whole[small != 0])
    for wrong, said in (((edges[:0],), "none"), ((edges, -1), "max_edges: -1")):
        with pytest.raises(InputError, match=said):
            packed_edges(*wrong)


def test_values_orders_and_lists(opened: Opened, edges: list[Edges]) -> None:
    whole = dense(edges[0])
    rows, columns, entries = table(opened)
    assert rows == (whole != 0).any(1).nonzero()[:, 0].tolist()
    assert columns == (whole != 0).any(0).nonzero()[:, 0].tolist()
    opened.page.check("#empty")
    rows, columns, entries = table(opened)
    assert rows == list(range(whole.shape[0]))
    assert columns == list(range(whole.shape[1]))
    assert all(whole[at] == value for at, value in entries.items())
    assert len(entries) == len(edges[0])
    opened.page.select_option("#order", "strength")
    opened.page.select_option("#value", "gradient")
    rows, columns, entries = table(opened)
    gradients = dense(edges[0], "gradient")
    assert all(gradients[at] == value for at, value in entries.items())
    sums = gradients.double().abs().sum(1)
    assert (sums[rows].diff() <= 1e-9).all()
    opened.page.select_option("#matrix-of", "2")
    opened.page.select_option("#value", "attribution")
    opened.page.select_option("#order", "position")
    assert table(opened)[2] == {
        (row, column): value
        for row, column, value in zip(edges[2].row.tolist(), edges[2].indices.tolist(), edges[2].attribution.float().tolist(), strict=True)
    }
    listed = opened.page.locator("#strongest .weight").first.text_content()
    largest = edges[2].attribution[edges[2].attribution.abs().argmax()]
    assert float(listed.replace("−", "-").split("%")[0][: len(f"{float(largest):+.4g}")]) == pytest.approx(float(largest), rel=1e-3)


def test_one_prompt_less_another(opened: Opened, edges: list[Edges]) -> None:
    opened.page.select_option("#less", "1")
    _, _, entries = table(opened)
    sums: dict[tuple[str, str], float] = {}
    for which, sign in ((0, 1.0), (1, -1.0)):
        one = edges[which]
        for row, column, value in zip(one.row.tolist(), one.indices.tolist(), one.attribution.float().tolist(), strict=True):
            key = tuple(f"{int(nodes.position[at])} {int(nodes.latent[at])}" for nodes, at in ((one.targets, row), (one.sources, column)))
            sums[key] = sums.get(key, 0.0) + sign * value
    keys = opened.ask(
        "() => ['targets', 'sources'].map((name) => [...Array(explorer.table[name].size).keys()].map((at) => explorer.table[name].key(at)))"
    )
    found = {(keys[0][row].strip(), keys[1][column].strip()): value for (row, column), value in entries.items()}
    assert found == pytest.approx(sums, rel=1e-5, abs=1e-7)


def test_a_cell_is_pointed_at_and_chosen(opened: Opened, edges: list[Edges]) -> None:
    place = int(edges[0].attribution.abs().argmax())
    row, column = int(edges[0].row[place]), int(edges[0].indices[place])
    at = opened.ask(
        """([row, column]) => {
            const canvas = document.getElementById("matrix"), box = canvas.getBoundingClientRect(), t = canvas.__zoom;
            return [box.left + t.applyX(explorer.table.columnPlace[column] + 0.5), box.top + t.applyY(explorer.table.rowPlace[row] + 0.5)];
        }""",
        [row, column],
    )
    opened.page.mouse.move(*at)
    value = float(edges[0].attribution[place])
    assert float(opened.page.text_content(".hint strong").replace("−", "-")) == pytest.approx(value, rel=1e-3)
    opened.page.mouse.click(*at)
    assert opened.page.locator("#into li").count() == int((edges[0].row == row).sum().clamp(max=40))
    assert opened.page.locator("#out-of li").count() == int((edges[0].indices == column).sum().clamp(max=40))
    opened.page.focus("#matrix")
    opened.page.keyboard.press("ArrowRight")
    opened.until("end => location.hash.endsWith(end)", f"at={row}.{min(column + 1, edges[0].shape[1] - 1)}")
    opened.page.keyboard.press("Escape")
    assert opened.page.locator("#strongest").count() == 1
    csv = opened.downloaded(lambda: opened.page.click("text=CSV")).splitlines()
    assert len(csv) == 1 + len(edges[0])
    assert float(csv[1].rsplit(",", 1)[1]) == pytest.approx(value, rel=1e-6)


def test_the_address_holds_what_is_chosen_in_a_difference(opened: Opened, chromium: Any, tmp_path: Path, edges: list[Edges]) -> None:
    """And an address that is typed into a page that is open is read."""
    opened.page.select_option("#less", "1")
    opened.page.select_option("#order", "strength")
    opened.page.focus("#matrix")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        opened.page.keyboard.press(key)
    hash = opened.ask("() => location.hash")
    titles = opened.page.locator(".panel h2").all_text_contents()
    assert len(titles) == 2
    again = Opened(chromium, tmp_path, packed_edges(edges), hash=hash)
    assert again.ask("() => location.hash") == hash
    assert again.page.locator(".panel h2").all_text_contents() == titles
    again.ask("() => { location.hash = '#m=2&at=0.0'; }")
    again.until("() => document.getElementById('matrix-of').value === '2'")
    assert again.page.locator("#into").count() == 1
    again.ask("() => { location.hash = '#m=0&less=1&at=99999.0'; }")
    again.until("() => document.querySelector('#strongest') !== null")
    again.close()


def test_the_cell_that_keys_come_to_is_seen(opened: Opened) -> None:
    opened.page.focus("#matrix")
    for key in (*(["+"] * 8), "ArrowDown", *(["ArrowRight"] * 9), *(["ArrowDown"] * 9), "+", "+"):
        opened.page.keyboard.press(key)
        at = opened.ask("() => new URLSearchParams(location.hash).get('at')")
        if at is None:
            continue
        x, y, width, height = opened.ask(
            """([row, column]) => {
                const canvas = document.getElementById("matrix"), t = canvas.__zoom, {rowPlace, columnPlace} = explorer.table;
                const middle = [t.applyX(columnPlace[column] + 0.5), t.applyY(rowPlace[row] + 0.5)];
                return [...middle, canvas.clientWidth, canvas.clientHeight];
            }""",
            [int(each) for each in at.split(".")],
        )
        assert 150 <= x <= width
        assert 110 <= y <= height


def test_a_picture_of_a_matrix_has_what_is_seen(opened: Opened, edges: list[Edges]) -> None:
    """A pixel for each cell, in the colour of its sign and deeper for larger ones, and a name for each row and column that has room."""
    opened.page.check("#empty")
    opened.page.focus("#matrix")
    for _ in range(12):
        opened.page.keyboard.press("+")
    kept = ElementTree.fromstring(opened.downloaded(lambda: opened.page.click("button:text-is('SVG')")))
    [image] = [each for each in kept.iter() if each.tag.endswith("image")]
    pixels = opened.ask(
        """async (packed) => {
            const bytes = Uint8Array.from(atob(packed), (each) => each.charCodeAt(0)), image = await createImageBitmap(new Blob([bytes]));
            const context = Object.assign(document.createElement("canvas"), {width: image.width, height: image.height}).getContext("2d");
            context.drawImage(image, 0, 0);
            return [image.height, image.width, Array.from(context.getImageData(0, 0, image.width, image.height).data)];
        }""",
        image.attrib["href"].partition(",")[2],
    )
    whole = dense(edges[0])
    assert tuple(pixels[:2]) == tuple(whole.shape)
    red, _, blue, alpha = torch.tensor(pixels[2]).reshape(*whole.shape, 4).unbind(-1)
    assert torch.equal((alpha > 0) & (blue > red), whole > 0)
    assert torch.equal((alpha > 0) & (blue < red), whole < 0)
    deep = (255 * (whole.abs() / whole.abs().max()).sqrt()).clamp(12)
    torch.testing.assert_close(alpha.float(), deep.where(whole != 0, torch.tensor(0.0)), atol=1, rtol=0)
    names = [each.text for each in kept.iter() if each.tag.endswith("text")]
    first = opened.ask("() => [explorer.table.targets.label(0), explorer.table.sources.label(0)]")
    assert set(first) <= set(names)
    assert float(image.attrib["width"]) / whole.shape[1] == pytest.approx(float(image.attrib["height"]) / whole.shape[0], rel=1e-3)
    with opened.page.expect_download() as waiting:
        opened.page.click("button:text-is('PNG')")
    assert Path(waiting.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_all_of_a_matrix_is_shown_unless_it_is_a_line(opened: Opened, edges: list[Edges]) -> None:
    lines = []
    for matrix in ("0", "2"):
        opened.page.select_option("#matrix-of", matrix)
        opened.page.check("#empty")
        opened.page.set_viewport_size({"width": 900, "height": 500})
        opened.page.click("text=Show all")
        k, width, height = opened.ask(
            "() => { const c = document.getElementById('matrix'); return [c.__zoom.k, c.clientWidth - 150, c.clientHeight - 110]; }"
        )
        rows, columns = edges[int(matrix)].shape
        lines.append(min(width / columns, height / rows) * min(rows, columns) < 120)
        assert (k * columns > width + 1e-6 or k * rows > height + 1e-6) == lines[-1]
    assert lines == [False, True]


def test_the_command_takes_edges_of_several_prompts(tmp_path: Path, command: Command, edges: list[Edges]) -> None:
    model = tiny("llama")
    first = sae("standard", site="blocks.1.hook_resid_pre")
    made = attrib.latent_to_logit(model, first, PROMPTS, logits=attrib.TopLogits(3))
    attrib.save(tmp_path / "e.h5", made)
    out = tmp_path / "e.html"
    ran = command("view", tmp_path / "e.h5", "--html", out, "--prompt", 1, "--prompt", 0)
    assert ran.status == 0, ran.err
    header, columns = unpacked(base64.b64decode(re.findall(r'id="data">([^<]*)<', out.read_text())[0]))
    assert [each["name"].partition(":")[0] for each in header["matrices"]] == ["prompt 1", "prompt 0"]
    assert columns["1 attribution"].tolist() == made.prompt(0).attribution.float().tolist()
    assert header["matrices"][0]["targets"]["labels"] == list(made.prompt(1).targets.labels)
    ran = command("view", tmp_path / "e.h5", "--html", out, "--overwrite", "--max-nodes", 3)
    assert ran.status
    assert "--max-nodes: it has no effect on edges" in ran.err
    ran = command("view", tmp_path / "e.h5", "--html", out, "--overwrite", "--prompt", 9)
    assert ran.status
    assert "9" in ran.err
