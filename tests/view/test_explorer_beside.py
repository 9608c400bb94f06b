"""Two graphs beside each other: what differs is what `attrib.graph.compare` says, and what is the same is linked in both."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib.core.types import InputError
from attrib.graph import Graph, compare, influence, prune
from attrib.view.explorer.beside_payload import packed_beside
from attrib.view.explorer.fitting import Most
from tests.support.graphs import random_graph
from tests.support.pages import Opened, axe_finds
from tests.support.typed import Command
from tests.view.test_explorer_payload import HOSTILE, hostile, unpacked

FIRST = random_graph(positions=5, latents=9)
SECOND = replace(random_graph(1, positions=5, latents=9), tokens=FIRST.tokens)
NAMES = ("before", "after")


def shorter(graph: Graph, *, at: int) -> Graph:
    """A graph of a prompt that lacks the token at a position, with the nodes that stand elsewhere."""
    left = graph.take((graph.nodes.position != at).nonzero()[:, 0])
    nodes = replace(left.nodes, position=left.nodes.position - (left.nodes.position > at).long())
    kept = torch.arange(len(graph.tokens)) != at
    strings = tuple(string for position, string in enumerate(graph.strings) if position != at)
    return replace(left, nodes=nodes, tokens=graph.tokens[kept], strings=strings)


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Opened]:
    found = Opened(chromium, tmp_path, packed_beside((FIRST, SECOND), NAMES, Most()), hash="#n=1&e=1")
    yield found
    found.close()


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("+", ""))


def listed(opened: Opened) -> list[tuple[str, float | None, float | None, float]]:
    rows = [row.locator("th, td").all_text_contents() for row in opened.page.locator("#differences tbody tr").all()]
    return [(edge, *(None if cell == "none" else number(cell) for cell in cells), number(change)) for edge, *cells, change in rows]


def test_what_differs_is_what_compare_says(opened: Opened) -> None:
    """Each list in order, with both weights and their change; and the counts of all."""
    found = compare(FIRST, SECOND)
    assert found.both.sum() > 5
    assert found.only_second.sum() > 40
    order = found.change.abs().argsort(descending=True, stable=True)
    for which, mask in (("all", found.both | True), ("both", found.both), ("first", found.only_first), ("second", found.only_second)):
        opened.page.select_option("#which", which)
        wanted = [edge for edge in order.tolist() if mask[edge]]
        assert f"{len(wanted)} edges" in opened.page.text_content("#differences .note")
        shown = listed(opened)
        assert len(shown) == min(40, len(wanted))
        for (_, first, second, change), edge in zip(shown, wanted, strict=False):
            is_in, weight = found.is_in[edge].tolist(), found.weight[edge].tolist()
            assert [first is not None, second is not None] == is_in
            assert [first or 0.0, second or 0.0] == pytest.approx(weight, rel=1e-3, abs=1e-6)
            assert change == pytest.approx(float(found.change[edge]), rel=1e-3)
    counts = opened.page.locator("#differences dd").all_text_contents()
    alone = [int((~torch.isin(mine, theirs)).sum()) for mine, theirs in both_ways(keys(FIRST), keys(SECOND))]
    assert counts == [
        str(int(found.both.sum())), f"{int(found.only_first.sum())} edges, {alone[0]} nodes",
        f"{int(found.only_second.sum())} edges, {alone[1]} nodes",
    ]  # fmt: skip
    csv = opened.downloaded(lambda: opened.page.click("text=CSV")).splitlines()
    assert csv[0] == "source,target,before,after,change"
    assert len(csv) == 1 + len(found)


def keys(graph: Graph) -> torch.Tensor:
    """What a node is, as a number, by its key's words."""
    return torch.tensor([hash(attrib.graph.key_of(graph.nodes, node)) for node in range(len(graph.nodes))])


def both_ways(first: torch.Tensor, second: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    return (first, second), (second, first)


def test_what_is_the_same_has_one_key_and_one_place(opened: Opened) -> None:
    found = opened.ask(
        """() => explorer.shownOf().map((shown, at) => shown.items.map((item) => {
            const side = explorer.sides[at], node = item.nodes[0];
            return [side.keys[node], node, item.x, item.y];
        }))"""
    )
    places = [{key: (node, x, y) for key, node, x, y in side} for side in found]
    same = places[0].keys() & places[1].keys()
    assert len(same) > 20
    for key in same:
        (mine, *place), (theirs, *other) = places[0][key], places[1][key]
        assert attrib.graph.key_of(FIRST.nodes, mine) == attrib.graph.key_of(SECOND.nodes, theirs)
        assert place == other
    taken = [place[1:] for place in [*places[0].values(), *(place for key, place in places[1].items() if key not in same)]]
    assert len(set(taken)) == len(taken)
    told = opened.ask("() => explorer.sides.map((side) => [Array.from(side.keys), Array.from(side.alone)])")
    for (of_page, alone), (mine, theirs) in zip(told, both_ways(keys(FIRST), keys(SECOND)), strict=True):
        assert len(set(of_page)) == len(of_page)
        assert alone == (~torch.isin(mine, theirs)).long().tolist()
    names = [dict(zip(mine.tolist(), of_page, strict=True)) for (of_page, _), mine in zip(told, (keys(FIRST), keys(SECOND)), strict=True)]
    assert {key for key, number in names[0].items() if number in names[1].values()} == names[0].keys() & names[1].keys()


def test_both_are_moved_chosen_pinned_and_pruned_together(opened: Opened) -> None:
    zooms = "() => [0, 1].map((at) => { const t = document.getElementById(`graph-${at}`).__zoom; return [t.k, t.x, t.y]; })"
    opened.until(f"() => {{ const [a, b] = ({zooms})(); return String(a) === String(b); }}")
    before = opened.ask(zooms)
    box = opened.page.locator("#graph-1").bounding_box()
    opened.page.mouse.move(box["x"] + 100, box["y"] + 100)
    opened.page.mouse.wheel(0, -300)
    opened.until(f"before => {{ const [a, b] = ({zooms})(); return String(a) === String(b) && a[0] > before; }}", before[0][0])
    opened.page.focus("#graph-0")
    opened.page.keyboard.press("0")
    opened.until(f"before => {{ const [a, b] = ({zooms})(); return String(a) === String(b) && a[0] === before; }}", before[0][0])
    key, nodes = opened.ask(
        """() => {
            const [a, b] = explorer.sides;
            const key = Array.from(a.keys).find((key) => b.node(key) !== null && a.graph.kind(a.node(key)) === "latent");
            return [key, [a.node(key), b.node(key)]];
        }"""
    )
    opened.page.mouse.click(*place_of(opened, 1, nodes[1]))
    assert opened.state("selected") == key
    assert opened.page.text_content("#node-0 h2") == FIRST.nodes.short(nodes[0])
    assert opened.page.text_content("#node-1 h2") == SECOND.nodes.short(nodes[1])
    shown = listed(opened)
    assert shown
    assert all(FIRST.nodes.short(nodes[0]) in row[0] for row in shown)
    opened.page.click("#node-1 >> button:text-is('Pin')")
    assert opened.state("pinned") == [key]
    opened.page.fill("#nodes", "0.5")
    for graph, node, said in zip((FIRST, SECOND), nodes, opened.page.locator("#counts p").all_text_contents(), strict=True):
        ours = prune(graph, 0.5, 1.0, [node])
        words = said.partition(": ")[2].split()
        assert (int(words[0]), int(words[4])) == (len(ours.nodes), len(ours.graph))
    opened.page.keyboard.press("Control+z")
    opened.page.click("text=Undo")
    assert opened.state("pinned") == []


def place_of(opened: Opened, side: int, node: int) -> tuple[float, float]:
    found = opened.ask(
        """([side, node]) => {
            const canvas = document.getElementById(`graph-${side}`), box = canvas.getBoundingClientRect();
            const item = explorer.shownOf()[side].byNode.get(node), t = canvas.__zoom;
            return [box.left + t.applyX(item.x), box.top + t.applyY(item.y)];
        }""",
        [side, node],
    )
    return found[0], found[1]


def test_an_edge_is_told_of_in_both_or_said_to_be_lacking(opened: Opened) -> None:
    found = compare(FIRST, SECOND)
    for which, mask in (("both", found.both), ("first", found.only_first)):
        opened.page.select_option("#which", which)
        opened.page.click("#differences tbody button >> nth=0")
        order = found.change.abs().masked_fill(~mask, -1).argsort(descending=True, stable=True)
        weights = found.weight[order[0]].tolist()
        shown = [opened.page.locator(f"#edge-{at} dd >> nth=0") for at in range(2)]
        assert number(shown[0].text_content()) == pytest.approx(weights[0], rel=1e-3)
        assert shown[1].count() == (1 if which == "both" else 0)
        if which == "both":
            assert number(shown[1].text_content()) == pytest.approx(weights[1], rel=1e-3)
        opened.page.click("text=Close the edge")
    assert opened.state("edge") is None
    alone = opened.page.locator("#alone-1 .end").all_text_contents()
    score, theirs = influence(SECOND), keys(FIRST)
    wanted = [node for node, key in enumerate(keys(SECOND)) if not torch.isin(key, theirs)]
    wanted.sort(key=lambda node: -float(score[node]))
    assert alone == [SECOND.nodes.short(node) for node in wanted[:12]]
    opened.page.click("#alone-1 .end >> nth=0")
    assert "On this page it has no such node" in opened.page.text_content(".panel")


def test_prompts_of_other_lengths_are_matched_by_their_tokens(chromium: Any, tmp_path: Path) -> None:
    """A prompt without its third token: nodes behind it stand one position earlier, and are the same nodes."""
    second = shorter(FIRST, at=2)
    straight, along = (
        unpacked(packed_beside((FIRST, second), NAMES, Most(), aligned=aligned)) for aligned in (False, True)
    )  # fmt: skip
    assert along[0]["graphs"][1]["columns"] == [0, 1, 3, 4]
    assert along[0]["graphs"][0]["columns"] == [0, 1, 2, 3, 4]
    is_there = FIRST.nodes.position != 2
    is_there[FIRST.nodes.of_kind("position")] = FIRST.nodes.position[FIRST.nodes.of_kind("position")] < 2
    edges = int((is_there[FIRST.indices] & is_there[FIRST.target]).sum())
    assert along[0]["edges"]["both"] >= edges > straight[0]["edges"]["both"]
    changed = along[1]["differences first"] - along[1]["differences second"]
    assert (changed[along[1]["differences in"] == 3] == 0).all()
    opened = Opened(chromium, tmp_path, packed_beside((FIRST, second), NAMES, Most(), aligned=True), hash="#n=1&e=1")
    opened.page.click("section.side >> nth=1 >> .strip .token >> nth=2")
    assert opened.state("positions") == [3]
    assert opened.page.locator("section.side >> nth=0 >> .strip .token[aria-pressed=true] small").text_content() == "3"
    opened.close()


def test_the_address_groups_and_pictures(opened: Opened, chromium: Any, tmp_path: Path) -> None:
    keys_of = opened.ask("() => explorer.sides.map((side) => side.keys[side.graph.header.sets[0].size * 2 + 6])")
    opened.ask("keys => explorer.change({pinned: keys, edge: explorer.sides[0].code(3)})", sorted(set(keys_of)))
    opened.until("() => location.hash.includes('i=')")
    again = Opened(chromium, tmp_path, packed_beside((FIRST, SECOND), NAMES, Most()), hash=opened.ask("() => location.hash"))
    assert again.ask("() => explorer.state.value") == opened.ask("() => explorer.state.value")
    again.close()
    opened.page.fill("#group-name", "mine")
    opened.page.click("text=Group pinned")
    groups = opened.state("groups")
    saved = opened.downloaded(lambda: opened.page.click("text=Save groups"))
    (tmp_path / "groups.json").write_text(saved)
    assert len(attrib.graph.read_supernodes(tmp_path / "groups.json")["mine"]) == len(set(keys_of))
    opened.page.click("button[aria-label='Dissolve mine']")
    opened.page.set_input_files("#load-groups", tmp_path / "groups.json")
    opened.until("() => explorer.state.value.groups.length === 1")
    assert opened.state("groups") == groups
    svg = opened.downloaded(lambda: opened.page.click("button:text-is('SVG')"))
    assert svg.count("<path") == sum(opened.ask("() => explorer.shownOf().map((shown) => shown.lines.length)")) + 1  # and the chosen edge


def test_nobody_is_left_out_and_strings_are_text(chromium: Any, tmp_path: Path) -> None:
    graph = hostile()
    opened = Opened(chromium, tmp_path, packed_beside((graph, FIRST), (HOSTILE, "\u202eplain"), Most()), HOSTILE)
    opened.page.on("dialog", lambda _: opened.complaints.append("a dialog"))
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 2
    shown = opened.page.text_content("#page")
    assert "</script><script>alert(1)" in shown
    assert "\u202e" not in shown
    for chosen in ({"selected": None}, {"selected": opened.ask("() => explorer.sides[0].keys[12]")}):
        opened.ask("chosen => explorer.change(chosen)", chosen)
        for _ in range(2):
            assert axe_finds(opened) == []
            opened.page.click("button:text-matches('^(Dark|Light)$')")
    opened.close()


def test_the_command_puts_two_graphs_beside_each_other(tmp_path: Path, command: Command) -> None:
    attrib.save(tmp_path / "a.h5", [FIRST, SECOND])
    attrib.save(tmp_path / "b.h5", [SECOND])
    out = tmp_path / "page.html"
    wanted = packed_beside((FIRST, SECOND), NAMES, Most())
    for given, names in (
        ((tmp_path / "a.h5", "--beside-prompt", 1), ["prompt 0", "prompt 1"]),
        ((tmp_path / "a.h5", "--beside", tmp_path / "b.h5"), ["a.h5, prompt 0", "b.h5, prompt 0"]),
        ((tmp_path / "a.h5", "--prompt", 0, "--beside", tmp_path / "b.h5", "--beside-prompt", 0, "--align"), None),
    ):
        ran = command("view", *given, "--html", out, "--overwrite")
        assert ran.status == 0, ran.err
        header, columns = unpacked_page(out)
        assert names is None or header["names"] == names
        assert columns["differences second"].tolist() == unpacked(wanted)[1]["differences second"].tolist()
    for given, said in (
        (("--align",), "--align: it has no effect on one graph"),
        (("--prompt", 0, "--prompt", 1), "--prompt: 2 of them; expected one, and another as --beside-prompt"),
        (("--beside", tmp_path / "none.h5"), "none.h5"),
        (("--beside-prompt", 7), "prompt: 7 is not among the 2 prompts"),
        (("--heads", 3), "--heads: it has no effect without --model"),
        (("--verify", 3), "--verify: it has no effect without --model"),
        (("--model", "x", "--qk", 3), "--qk: it has no effect without --heads"),
        (("--survey", tmp_path / "a.h5"), "a.h5"),
    ):
        before = out.read_bytes()
        ran = command("view", tmp_path / "a.h5", "--html", out, "--overwrite", *given)
        assert ran.status
        assert said in ran.err
        assert "Traceback" not in ran.err
        assert out.read_bytes() == before


def unpacked_page(path: Path) -> Any:
    import base64
    import re

    [data] = re.findall(r'id="data">([^<]*)<', path.read_text())
    return unpacked(base64.b64decode(data))


def test_in_python_and_what_cannot_be_compared() -> None:
    assert attrib.view.beside(FIRST, SECOND, names=NAMES).html == attrib.view.beside(FIRST, SECOND, names=NAMES).html
    wrong = replace(FIRST, weight=FIRST.weight.clone().index_fill_(0, torch.tensor([4]), float("nan")))
    with pytest.raises(InputError, match=r"NaN|nan"):
        attrib.view.beside(wrong, SECOND)
    with pytest.raises(InputError, match="max_nodes: 3"):
        attrib.view.beside(FIRST, SECOND, max_nodes=3)
