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
from tests.support.pages import CANNOT, Opened, browser

pytestmark = pytest.mark.skipif(bool(CANNOT), reason=CANNOT)
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
USUAL = {"nodes": 0.8, "edges": 0.98, "only": False, "pinned": [], "groups": [], "hidden": [], "levels": None, "positions": []}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    yield from browser()


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
