"""The explorer in a browser: every control does what it says, numbers are attrib's own, and nothing in a string runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attrib.graph import Key, influence, key_of, prune, read_supernodes
from attrib.latents.labels import Label, Labels
from attrib.view.explorer.fitting import Most, fitted
from attrib.view.explorer.graph_payload import packed
from tests.support.graphs import random_graph
from tests.support.pages import Opened, axe_finds, large_graph
from tests.view.test_explorer_payload import hostile

GRAPH = random_graph(positions=5, latents=9)
LABELS = Labels((Label("transcoder 1", int(GRAPH.nodes.latent[GRAPH.nodes.rows(7)][0]), "capital cities", "me"),))
LINKS = {"transcoder 1": "https://www.neuronpedia.org/model/id/"}


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Opened]:
    made = Opened(chromium, tmp_path, packed(GRAPH, Most(), LABELS, LINKS))
    yield made
    made.close()


def test_influence_and_pruning_are_those_of_the_package(opened: Opened) -> None:
    found = opened.ask("() => Array.from(explorer.scene.influence)")
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), influence(fitted(GRAPH, Most()).graph), rtol=1e-6, atol=1e-9)
    single = random_graph(positions=5, latents=9)
    for nodes, edges in ((0.8, 0.98), (0.5, 0.9), (1.0, 1.0), (0.0, 0.5), (0.95, 0.3)):
        theirs = opened.ask(
            """([nodes, edges, pinned]) => {
                const {graph, scene, influence} = explorer;
                const {nodes: n, edges: e} = influence.prune(graph, scene.influence, nodes, edges, new Set(pinned));
                const list = (mask) => Array.from(mask).flatMap((kept, at) => (kept ? [at] : []));
                return [list(n), list(e).map((edge) => [graph.source[edge], graph.target[edge]])];
            }""",
            [nodes, edges, [11]],
        )
        ours = prune(single, nodes, edges, [11])
        assert theirs[0] == ours.nodes.tolist()
        ends = torch.stack([ours.nodes[ours.graph.indices], ours.nodes[ours.graph.target]], 1)
        assert theirs[1] == ends.tolist()


def test_sliders_prune_and_the_counts_follow(opened: Opened) -> None:
    for slider, nodes, edges in (("#nodes", 0.4, 0.98), ("#edges", 0.4, 0.5)):
        opened.page.fill(slider, str(nodes if slider == "#nodes" else edges))
        ours = prune(GRAPH, nodes, edges)
        assert opened.counts() == (len(ours.nodes), len(ours.graph))
    before = opened.counts()
    opened.page.fill("#least", "0.8")
    largest = GRAPH.weight.abs().max()
    assert opened.counts() == (before[0], int((ours.graph.weight.abs() >= largest * 0.8**3).sum()))
    opened.page.fill("#drawn", "2")
    assert opened.state("drawn") == 2


def test_kinds_layers_and_positions_hide(opened: Opened) -> None:
    opened.page.fill("#nodes", "1")
    opened.page.fill("#edges", "1")
    whole = prune(GRAPH, 1.0, 1.0).graph
    kinds = [whole.nodes.kind(node) for node in range(len(whole.nodes))]
    assert opened.counts() == (len(whole.nodes), len(whole))
    opened.page.get_by_label("error").uncheck()
    opened.page.get_by_label("bias").uncheck()
    seen = [kind not in ("error", "bias") for kind in kinds]
    assert opened.counts()[0] == sum(seen)
    opened.page.select_option("#first-level", "1")
    opened.page.select_option("#last-level", "2")
    level = [
        0 if each.kind in ("token", "position") else 9 if each.kind in ("logit", "target") else int(each.site.split(".")[1]) + 1
        for each in whole.nodes.sets
    ]
    seen = [one and level[int(whole.nodes.set_of[node])] in (1, 2) for node, one in enumerate(seen)]
    assert opened.counts()[0] == sum(seen)
    opened.page.click(".strip .token >> nth=4")
    seen = [one and int(whole.nodes.position[node]) == 4 for node, one in enumerate(seen)]
    assert opened.counts()[0] == sum(seen) > 0
    opened.page.click("text=All positions")
    assert opened.state("positions") == []


def test_a_node_is_chosen_pinned_and_told_about(opened: Opened) -> None:
    opened.page.fill("#nodes", "1")
    opened.page.fill("#edges", "1")
    node = int(GRAPH.targets[len(GRAPH.targets) // 2])
    opened.page.mouse.move(*opened.place_of(node))
    assert GRAPH.nodes.short(node) in opened.page.text_content(".hint")
    opened.page.mouse.click(*opened.place_of(node))
    assert opened.state("selected") == node
    row = int(GRAPH.row_of[node])
    told = opened.page.text_content("#node")
    assert GRAPH.nodes.short(node) in told
    sums = [float(cell.replace("−", "-").replace("+", "")) for cell in opened.page.locator("#accounting td").all_text_contents()]
    kept = float(GRAPH.total[row] - GRAPH.dropped[row])
    for got, wanted in zip(sums, [GRAPH.own[row], kept, GRAPH.dropped[row], GRAPH.remainder[row], GRAPH.value[row]], strict=True):
        assert got == pytest.approx(float(wanted), rel=1e-3, abs=2e-6)
    listed = opened.page.locator("ol[aria-label='Into it'] .end").all_text_contents()
    edges = range(int(GRAPH.indptr[row]), int(GRAPH.indptr[row + 1]))
    order = sorted(edges, key=lambda edge: -abs(float(GRAPH.weight[edge])))
    assert [each.split("capital cities")[0] for each in listed] == [GRAPH.nodes.short(int(GRAPH.indices[edge])) for edge in order][:40]
    opened.page.click("#node >> button:text-is('Pin')")
    assert opened.state("pinned") == [node]
    opened.page.click("ol[aria-label='Into it'] .weight >> nth=0")
    assert opened.state("edge") == order[0]
    assert GRAPH.nodes.short(int(GRAPH.indices[order[0]])) in opened.page.text_content("#edge")
    opened.page.click("#edge >> text=Close")
    opened.page.check("#only")
    assert opened.counts() == (1, 0)
    opened.page.keyboard.press("Control+z")
    assert opened.state("only") is False
    assert opened.state("pinned") == [node]
    opened.page.click("text=Undo")
    opened.page.click("text=Redo")
    opened.page.click("text=Reset")
    assert opened.state("pinned") == []
    assert opened.state("nodes") == 0.8


def test_an_edge_is_chosen_where_it_is_drawn(opened: Opened) -> None:
    """A point of the strongest edge's curve is clicked, far from every node and every other line."""
    edge, x, y = opened.ask(
        """() => {
            const {scene, state} = explorer, shown = scene.shown(state.value), canvas = document.getElementById("graph");
            const t = canvas.__zoom, box = canvas.getBoundingClientRect();
            const point = (line, at) => {
                const s = 3 * at * at - 2 * at ** 3;
                return [line.from.x + (line.to.x - line.from.x) * s, line.from.y + (line.to.y - line.from.y) * at];
            };
            const far = (line, [x, y]) =>
                shown.items.every((item) => Math.hypot(item.x - x, item.y - y) > 12) &&
                [...shown.lines].every((other) => other.edge === line.edge || [...Array(101).keys()].every((step) => {
                    const [u, v] = point(other, step / 100);
                    return Math.hypot(u - x, v - y) > 4;
                }));
            for (const line of shown.lines) {
                for (let at = 0.05; at < 1; at += 0.01) {
                    const where = point(line, at);
                    if (far(line, where)) return [line.edge, box.left + t.applyX(where[0]), box.top + t.applyY(where[1])];
                }
            }
        }"""
    )
    opened.page.mouse.click(x, y)
    assert opened.state("edge") == edge
    assert opened.page.locator("#edge").count() == 1
    opened.page.mouse.click(*opened.place_of(int(GRAPH.nodes.of_kind("logit")[0])))
    assert opened.state("edge") is None
    assert opened.state("selected") is not None


def test_search_finds_by_label_number_and_string(opened: Opened) -> None:
    latent = LABELS.rows[0].latent
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("CAPITAL")
    hits = [
        node for node in range(len(GRAPH.nodes))
        if GRAPH.nodes.sets[int(GRAPH.nodes.set_of[node])].name == "transcoder 1" and int(GRAPH.nodes.latent[node]) == latent
    ]  # fmt: skip
    assert f"{len(hits)} found" in opened.page.text_content("#found")
    opened.page.click("#found button >> nth=0")
    assert opened.state("selected") in hits
    assert opened.page.get_attribute("#node a", "href") == f"{LINKS['transcoder 1']}{latent}"
    assert "capital cities (me)" in opened.page.text_content("#node .told")
    opened.page.fill("#search", "w0")
    assert "1 found" in opened.page.text_content("#found")


def test_groups_are_drawn_as_one_saved_and_loaded(opened: Opened, tmp_path: Path) -> None:
    opened.page.fill("#nodes", "1")
    opened.page.fill("#edges", "1")
    members = GRAPH.nodes.of_kind("latent")[:3].tolist()
    opened.ask("nodes => explorer.change({pinned: nodes})", members)
    opened.page.fill("#group-name", "my group")
    opened.page.click("text=Group pinned")
    assert opened.state("groups") == [{"name": "my group", "nodes": members}]
    assert opened.state("pinned") == []
    lines = opened.ask(
        """() => [...explorer.scene.shown(explorer.state.value).lines]
            .filter((line) => line.from.group !== null).map((line) => [line.to.nodes[0], line.weight])"""
    )
    pruned = prune(GRAPH, 1.0, 1.0, members)
    source, target = pruned.nodes[pruned.graph.indices], pruned.nodes[pruned.graph.target]
    sums: dict[int, float] = {}
    for edge in (torch.isin(source, torch.tensor(members)) & ~torch.isin(target, torch.tensor(members))).nonzero()[:, 0].tolist():
        sums[int(target[edge])] = sums.get(int(target[edge]), 0.0) + float(pruned.graph.weight[edge])
    assert dict(map(tuple, lines)) == pytest.approx(sums, rel=1e-5)
    saved = opened.downloaded(lambda: opened.page.click("text=Save groups"))
    (tmp_path / "groups.json").write_text(saved)
    keys = read_supernodes(tmp_path / "groups.json")
    assert keys == {"my group": tuple(key_of(GRAPH.nodes, node) for node in members)}
    opened.page.click("button[aria-label='Dissolve my group']")
    assert opened.state("groups") == []
    opened.page.set_input_files("#load-groups", tmp_path / "groups.json")
    opened.until("() => explorer.state.value.groups.length === 1")
    assert opened.state("groups") == [{"name": "my group", "nodes": members}]
    for wrong, said in (
        ("{", "was not loaded"),
        (saved.replace('"version": 1', '"version": 2'), "version 2"),
        (saved.replace('"site"', '"cite"'), "cite"),
    ):
        (tmp_path / "wrong.json").write_text(wrong)
        opened.page.set_input_files("#load-groups", tmp_path / "wrong.json")
        opened.until("said => document.getElementById('said').textContent.includes(said)", said)
    assert len(opened.state("groups")) == 1
    elsewhere = json.dumps(
        {
            "format": "attrib supernodes",
            "version": 1,
            "supernodes": {"far": [Key("latent", "blocks.77.mlp.hook_in", 3)._asdict() | {"position": 0}]},
        }
    )
    (tmp_path / "far.json").write_text(elsewhere.replace('"name": ""', '"name": "x"'))
    opened.page.set_input_files("#load-groups", tmp_path / "far.json")
    opened.until("() => document.getElementById('said').textContent.includes('not in this graph')")


def test_pictures_and_edges_are_taken_away(opened: Opened) -> None:
    csv = opened.downloaded(lambda: opened.page.click("text=CSV")).splitlines()
    ours = prune(GRAPH).graph
    assert csv[0] == "source,source_node,target,target_node,attribution"
    assert len(csv) == 1 + len(ours)
    weights = [abs(float(line.rsplit(",", 1)[1])) for line in csv[1:]]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == pytest.approx(float(ours.weight.abs().max()), rel=1e-6)
    svg = opened.downloaded(lambda: opened.page.click("button:text-is('SVG')"))
    assert svg.count("<path") == len(ours)
    assert "<script" not in svg
    with opened.page.expect_download() as waiting:
        opened.page.click("button:text-is('PNG')")
    assert Path(waiting.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_address_holds_the_state(opened: Opened, chromium: Any, tmp_path: Path) -> None:
    node = int(GRAPH.targets[3])
    opened.ask(
        "node => explorer.change({selected: node, pinned: [node, 1], nodes: 0.6, hidden: ['bias'], levels: [1, 3], search: 'a b',"
        " groups: [{name: 'x & y', nodes: [2, 3]}], positions: [0, 4]})",
        node,
    )
    opened.until("() => location.hash.includes('n=0.6')")
    again = Opened(chromium, tmp_path, packed(GRAPH, Most()), hash=opened.ask("() => location.hash"))
    assert again.ask("() => explorer.state.value") == opened.ask("() => explorer.state.value")
    again.close()
    wrong = Opened(
        chromium, tmp_path, packed(GRAPH, Most()), hash="#n=7&s=100000&p=1.2.x&hide=nothing.error&g=%5B%5B1&l=9.3&t=77&w=&unknown=1"
    )
    assert wrong.state("nodes") == 0.8
    assert wrong.state("selected") is None
    assert wrong.state("pinned") == [1, 2]
    assert wrong.state("hidden") == ["error"]
    assert wrong.state("groups") == []
    assert wrong.state("positions") == []
    wrong.close()


def test_the_keyboard_alone_goes_everywhere(opened: Opened) -> None:
    opened.page.focus("#graph")
    opened.page.keyboard.press("ArrowDown")
    first = opened.state("selected")
    assert first is not None
    assert GRAPH.nodes.short(first) in opened.page.text_content("#said")
    opened.page.keyboard.press("ArrowDown")
    assert opened.state("selected") != first
    opened.page.keyboard.press("Enter")
    assert opened.state("pinned") == [opened.state("selected")]
    scale = opened.ask("() => document.getElementById('graph').__zoom.k")
    opened.page.keyboard.press("+")
    assert opened.ask("() => document.getElementById('graph').__zoom.k") > scale
    opened.page.keyboard.press("Escape")
    assert opened.state("selected") is None


def test_hostile_strings_are_shown_and_never_run(chromium: Any, tmp_path: Path) -> None:
    graph = hostile()
    opened = Opened(chromium, tmp_path, packed(graph, Most()), "".join(graph.strings), "#s=0&n=1&e=1")
    opened.page.on("dialog", lambda _: opened.complaints.append("a dialog"))
    assert "</script><script>alert(1)" in opened.page.text_content(".strip")
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 2
    shown = opened.page.text_content("#page")
    assert "\u202e" not in shown
    assert "\\u{202e}" in shown
    assert "\x1b" not in shown
    assert "long" * 100 not in shown
    assert opened.page.locator(".strip").bounding_box()["height"] < 200
    opened.close()


def test_nobody_is_left_out(opened: Opened) -> None:
    """axe finds no fault, on light and on dark, with a node chosen and a group made."""
    opened.ask(
        "node => explorer.change({selected: node, pinned: [node], search: 'layer', groups: [{name: 'x', nodes: [1, 2]}]})",
        int(GRAPH.targets[3]),
    )
    for _ in range(2):
        assert axe_finds(opened) == []
        opened.page.click("button:text-matches('^(Dark|Light)$')")


def test_a_large_graph_opens_and_answers(chromium: Any, tmp_path: Path) -> None:
    """5,000 nodes and 100,000 edges; how fast is measured in bench/, not here."""
    graph = large_graph(5_000, 100_000)
    opened = Opened(chromium, tmp_path, packed(graph, Most()), hash="#n=1&e=1")
    assert opened.bytes < 10e6
    small = fitted(graph, Most()).graph
    assert opened.ask("() => [explorer.graph.size, explorer.graph.edges]") == [len(small.nodes), len(small)]
    assert opened.counts()[0] > 4_000
    opened.close()
