"""What the explorer draws and what it does not: the strongest edges first, and of a node that is not drawn, why not and what shows it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attrib.view.explorer.fitting import Most
from attrib.view.explorer.graph_payload import packed
from tests.support.graphs import random_graph
from tests.support.pages import Opened, large_graph

GRAPH = random_graph(positions=5, latents=9)
ALL = {"nodes": 1, "edges": 1}
STATES: list[dict[str, Any]] = [
    {},
    {"nodes": 0.3, "edges": 0.5},
    {"only": True, "pinned": [int(GRAPH.targets[3])]},
    {"only": True, "groups": [{"name": "both", "nodes": [int(GRAPH.targets[3]), int(GRAPH.targets[4])]}], **ALL},
    {"hidden": ["latent"], **ALL},
    {"levels": [1, 1], **ALL},
    {"positions": [2], **ALL},
    {"positions": [2], "levels": [0, 1], "hidden": ["error"], "nodes": 0.3},
]
LINES = "[...explorer.scene.shown(explorer.state.value).lines]"
USUAL = {"nodes": 0.8, "edges": 0.98, "least": 0, "only": False, "pinned": [], "groups": [], "hidden": [], "levels": None, "positions": []}


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Opened]:
    made = Opened(chromium, tmp_path, packed(GRAPH, Most()))
    yield made
    made.close()


def test_lines_are_the_strongest_first_and_of_equal_ones_the_first(chromium: Any, tmp_path: Path) -> None:
    weight = (4 * GRAPH.weight).round() / 4  # many are equal, of either sign, and some are nothing
    weight[::7] = 1e-42  # less than any normal number
    opened = Opened(chromium, tmp_path, packed(replace(GRAPH, weight=weight, l1=4 * GRAPH.l1 + 10), Most()))
    drawn = opened.ask(
        "() => { explorer.change({nodes: 1, edges: 1}); return [...explorer.scene.shown(explorer.state.value).lines].map((l) => l.edge); }"
    )
    assert len(drawn) > 100
    assert drawn == [edge for edge in weight.abs().sort(descending=True, stable=True).indices.tolist() if edge in set(drawn)]
    least = float(weight.abs().max()) / 2
    strong = opened.ask(f"() => {{ explorer.change({{least: 0.5}}); return {LINES}.map((l) => l.edge); }}")
    assert strong == [edge for edge in drawn if abs(weight[edge]) >= least]
    assert 0 < len(strong) < len(drawn)
    opened.close()


def test_groups_lie_among_the_lines_by_their_sums(opened: Opened) -> None:
    nodes = GRAPH.targets[2:6].tolist()
    given = USUAL | ALL | {"groups": [{"name": "some", "nodes": nodes}]}
    lines = opened.ask(
        "given => { explorer.change(given); return [...explorer.scene.shown(explorer.state.value).lines].map((l) =>"
        " [l.edge, l.from.id, l.to.id, l.weight]); }",
        given,
    )
    sizes = torch.tensor([abs(weight) for *_, weight in lines])
    assert (sizes.diff() <= 0).all()
    assert any(edge == -1 for edge, *_ in lines)
    inside = torch.isin(GRAPH.indices, torch.tensor(nodes))
    for edge, _, target, weight in lines:
        if edge == -1 and target < len(GRAPH.nodes):
            assert weight == pytest.approx(float(GRAPH.weight[inside & (GRAPH.target == target)].sum()), abs=1e-6)


def test_every_node_that_is_not_drawn_has_a_reason_and_no_other(opened: Opened) -> None:
    for state in STATES:
        drawn, reasons = opened.ask(
            """given => {
                explorer.change(given);
                const state = explorer.state.value, {byNode} = explorer.scene.shown(state);
                const nodes = Array.from({length: explorer.graph.size}, (_, node) => node);
                return [nodes.map((node) => byNode.has(node)), nodes.map((node) => explorer.scene.whyNot(state, node))];
            }""",
            USUAL | state,
        )
        assert drawn == [not told for told in reasons], state
        assert False in drawn


def test_every_edge_that_is_not_drawn_has_a_reason_and_no_other(opened: Opened) -> None:
    for state in [*STATES, {"least": 0.4, **ALL}, {"groups": STATES[3]["groups"], **ALL}]:
        drawn, reasons = opened.ask(
            """given => {
                explorer.change(given);
                const {scene, graph} = explorer, state = explorer.state.value, {lines} = scene.shown(state);
                const edges = Array.from({length: graph.edges}, (_, edge) => edge);
                return [edges.map((edge) => lines.of(edge) !== undefined), edges.map((edge) => scene.whyNotEdge(state, edge))];
            }""",
            USUAL | state,
        )
        assert drawn == [not told for told in reasons], state
        assert False in drawn
    edge = drawn.index(False)
    opened.ask("edge => explorer.change({edge})", edge)
    opened.until("why => document.querySelector('#edge .absent')?.textContent === `It is not drawn: ${why}.`", "; and ".join(reasons[edge]))


def test_the_panel_says_why_and_what_it_says_shows_the_node(opened: Opened) -> None:
    opened.ask("given => explorer.change(given)", USUAL | {"nodes": 0.3, "edges": 0.5})
    node = opened.ask(
        "() => Array.from(explorer.graph.targets).find((n) => explorer.graph.kind(n) === 'latent'"
        " && !explorer.scene.pruned(explorer.state.value).nodes[n])"
    )
    opened.ask("node => explorer.change({selected: node, hidden: ['latent']})", node)
    opened.page.wait_for_selector("#node .absent")
    told = opened.page.text_content("#node .absent")
    assert told == (
        "It is not drawn: its kind is hidden; tick it under “Kinds”; and too little of the outputs is reached through it; pin it, or raise "
        "“Nodes kept” and “Edges kept”."
    )
    opened.page.click("label.kind:has-text('latent')")
    opened.until("() => !document.querySelector('#node .absent').textContent.includes('Kinds')")
    opened.page.click("#node button:has-text('Pin')")
    opened.until("() => !document.querySelector('#node .absent')")
    assert opened.ask("node => explorer.scene.shown(explorer.state.value).byNode.has(node)", node)


FOUND = """([reach, ...colours]) => {
    const canvas = document.getElementById("graph"), {k, x, y} = canvas.__zoom, {scene, state} = explorer;
    const copy = Object.assign(document.createElement("canvas"), {width: canvas.width, height: canvas.height});
    const context = copy.getContext("2d", {willReadFrequently: true});
    context.drawImage(canvas, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    const isThere = (across, down) => {
        for (let row = down - reach; row <= down + reach; row++) {
            for (let column = across - reach; column <= across + reach; column++) {
                const [red, green, blue] = pixels.data.subarray(4 * (row * canvas.width + column));
                if (colours.includes((red << 16) + (green << 8) + blue)) return true;
            }
        }
        return false;
    };
    const {items} = scene.shown(state.value);
    return items.map((item) => isThere(Math.floor(x + k * item.x), Math.floor(y + k * item.y)));
}"""
"""Of each node that is shown, whether a pixel within reach of its place has one of some colours."""


def test_marks_are_seen_where_they_would_be_smaller_than_a_pixel(chromium: Any, tmp_path: Path) -> None:
    """At least one whole pixel of each has its colour, and of what is pinned that of its edge."""
    opened = Opened(chromium, tmp_path, packed(large_graph(1_000, 4_000, positions=200, layers=12), Most()), hash="#n=1&e=1")
    assert 4.5 * opened.ask("() => document.getElementById('graph').__zoom.k") < 0.5
    latent, token, logit, text = 0x5B6B7B, 0x1B7837, 0x252525, 0x1A1A1A
    found = opened.ask(FOUND, [1, latent, token, logit])
    assert len(found) > 700
    assert all(found)
    opened.ask("() => explorer.change({pinned: [0, 300], only: true})")
    opened.until("() => explorer.scene.shown(explorer.state.value).items.length === 2")
    opened.ask("() => new Promise(requestAnimationFrame)")
    assert opened.ask(FOUND, [4, text]) == [True, True]
    opened.close()
