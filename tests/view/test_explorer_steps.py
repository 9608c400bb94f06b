"""What a reader does on the explorer's page: each choice is one step back, keys and clicks do what they say, and what is said gives way."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attrib.graph import prune
from attrib.view.explorer.fitting import Most
from attrib.view.explorer.graph_payload import packed
from tests.support.graphs import random_graph
from tests.support.pages import Opened, axe_finds

GRAPH = random_graph(positions=5, latents=9)
CLEAR = """() => {
    const {scene, state} = explorer, shown = scene.shown(state.value), canvas = document.getElementById("graph");
    const t = canvas.__zoom, box = canvas.getBoundingClientRect(), found = [];
    const point = (line, at) => {
        const s = 3 * at * at - 2 * at ** 3;
        return [line.from.x + (line.to.x - line.from.x) * s, line.from.y + (line.to.y - line.from.y) * at];
    };
    const lines = [...shown.lines], trails = lines.map((line) => Array.from({length: 401}, (_, at) => point(line, at / 400)));
    lines.forEach((line, number) => {
        for (let at = 0.5 / 24; at < 1; at += 1 / 24) {
            const [x, y] = point(line, at);
            const isFar = shown.items.every((item) => Math.hypot(item.x - x, item.y - y) * t.k > 20) && trails.every((trail, other) =>
                other === number || trail.every(([u, v]) => Math.hypot(u - x, v - y) * t.k > 12));
            if (isFar) found.push([line.edge, box.left + t.applyX(x), box.top + t.applyY(y)]);
        }
    });
    return found;
}"""
"""Points of edges, of each 24, that are clear of nodes and of all other edges."""


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Opened]:
    made = Opened(chromium, tmp_path, packed(GRAPH, Most()))
    yield made
    made.close()


def test_an_edge_is_chosen_wherever_along_it_one_clicks(opened: Opened) -> None:
    opened.ask("() => explorer.change({nodes: 0.5, edges: 0.5})")
    opened.page.click("text=Show all")
    clear = opened.ask(CLEAR)
    assert len(clear) > 20
    for edge, x, y in clear:
        opened.ask("() => explorer.change({selected: null, edge: null})")
        opened.page.mouse.click(x, y)
        assert opened.state("edge") == edge


def test_to_move_a_slider_again_is_another_step(opened: Opened) -> None:
    box = opened.page.locator("#nodes").bounding_box()
    left, middle = box["x"], box["y"] + box["height"] / 2
    values = [opened.state("nodes")]
    for begin, end in ((0.8, 0.6), (0.6, 0.4), (0.4, 0.2)):
        opened.page.mouse.move(left + begin * box["width"], middle)
        opened.page.mouse.down()
        opened.page.mouse.move(left + end * box["width"], middle, steps=5)
        opened.page.mouse.up()
        values.append(opened.state("nodes"))
    assert len(set(values)) == 4
    for value in values[-2::-1]:
        opened.page.click("text=Undo")
        assert opened.state("nodes") == value
    assert opened.page.is_disabled("text=Undo")


def test_what_changes_nothing_is_no_step(opened: Opened) -> None:
    opened.page.focus("#graph")
    opened.page.keyboard.press("ArrowDown")
    chosen = opened.state("selected")
    for _ in range(3):
        opened.page.keyboard.press("Escape")
    opened.page.keyboard.press("Control+z")
    assert opened.state("selected") == chosen is not None
    opened.page.keyboard.press("Control+z")
    assert opened.state("selected") is None
    assert opened.page.is_disabled("text=Undo")


def test_what_was_said_gives_way_to_what_is_chosen(opened: Opened) -> None:
    opened.page.click("text=Group pinned")
    assert opened.page.text_content("#said") == "Give the group a name."
    opened.page.focus("#graph")
    opened.page.keyboard.press("ArrowDown")
    opened.until("name => document.getElementById('said').textContent.startsWith(name)", GRAPH.nodes.short(opened.state("selected")))


def test_keys_of_the_browser_are_left_to_it(opened: Opened) -> None:
    opened.page.focus("#graph")
    opened.page.keyboard.press("ArrowDown")
    prevented = opened.ask(
        """() => [["p", "ctrlKey"], ["0", "ctrlKey"], ["+", "metaKey"], ["ArrowLeft", "altKey"], ["p", ""]].map(([key, held]) => {
            const pressed = new KeyboardEvent("keydown", {key, [held]: true, bubbles: true, cancelable: true});
            return !document.getElementById("graph").dispatchEvent(pressed);
        })"""
    )
    assert prevented == [False, False, False, False, True]
    assert opened.state("pinned") == [opened.state("selected")]


def test_what_one_walks_to_by_keys_is_seen(opened: Opened) -> None:
    """And the picture is scaled about it."""
    opened.page.focus("#graph")
    opened.page.keyboard.press("ArrowDown")
    for key in (*(["+"] * 9), *(["ArrowDown"] * 4), *(["ArrowLeft"] * 3), *(["ArrowUp"] * 3)):
        opened.page.keyboard.press(key)
        x, y = opened.place_of(opened.state("selected"))
        box = opened.page.locator("#graph").bounding_box()
        assert box["x"] <= x <= box["x"] + box["width"]
        assert box["y"] <= y <= box["y"] + box["height"]
    assert opened.ask("() => document.getElementById('graph').__zoom.k") > 10


def test_a_hint_is_wholly_seen(opened: Opened) -> None:
    opened.page.set_viewport_size({"width": 1400, "height": 420})
    opened.ask("() => explorer.change({nodes: 1, edges: 1})")
    opened.page.click("text=Show all")
    box = opened.page.locator("#graph").bounding_box()
    for node in GRAPH.nodes.of_kind("token", "logit", "target").tolist():
        opened.page.mouse.move(*opened.place_of(node))
        opened.until("name => document.querySelector('.hint strong')?.textContent === name", GRAPH.nodes.short(node))
        hint = opened.page.locator(".hint").bounding_box()
        assert hint["x"] >= box["x"]
        assert hint["y"] >= box["y"]
        assert hint["x"] + hint["width"] <= box["x"] + box["width"]
        assert hint["y"] + hint["height"] <= box["y"] + box["height"]


def test_in_a_narrow_window_what_is_told_stands_below_the_picture(opened: Opened) -> None:
    """Beside the controls where there is room, and below them where there is none."""
    opened.ask("node => explorer.change({selected: node})", int(GRAPH.targets[3]))
    for width, is_beside in ((800, True), (500, False)):
        opened.page.set_viewport_size({"width": width, "height": 600})
        graph, controls, panel = (opened.page.locator(each).bounding_box() for each in ("main > .graph-view", ".controls", ".panel"))
        assert graph["width"] == pytest.approx(width, abs=16)
        assert controls["y"] >= graph["y"] + graph["height"]
        assert (panel["y"] == controls["y"] and panel["x"] >= controls["width"]) == is_beside
        assert opened.ask("() => document.documentElement.scrollWidth <= innerWidth")


def test_an_empty_picture_says_why_it_is_empty(opened: Opened) -> None:
    assert opened.page.locator(".empty").count() == 0
    opened.page.check("#only")
    assert opened.page.text_content(".empty") == "No node is shown: only what is pinned is, and nothing is pinned."
    opened.ask("() => explorer.change({pinned: [0], levels: [2, 2]})")
    opened.until("() => document.querySelector('.empty').textContent === 'No node is shown: none passes what is chosen.'")
    opened.ask("() => explorer.change({levels: null})")
    opened.until("() => document.querySelector('.empty') === null")


def test_a_picture_has_what_was_found_as_the_window_has(opened: Opened) -> None:
    def marked() -> int:
        kept = ElementTree.fromstring(opened.downloaded(lambda: opened.page.click("button:text-is('SVG')")))
        return sum(each.get("stroke") == "#0072b2" for each in kept.iter() if each.tag.endswith(("circle", "polygon")))

    assert marked() == 0
    opened.page.fill("#search", "token")
    assert marked() == len(GRAPH.nodes.of_kind("token"))


def test_a_group_of_the_address_is_there_once(chromium: Any, tmp_path: Path) -> None:
    opened = Opened(chromium, tmp_path, packed(GRAPH, Most()), hash='#g=[["x",[3,3,4]],["x",[5]],["y",[4]],["z",[6]]]')
    assert opened.state("groups") == [{"name": "x", "nodes": [3, 4]}, {"name": "z", "nodes": [6]}]
    opened.close()


def test_a_group_is_told_of_and_so_are_its_edges(opened: Opened) -> None:
    """Its panel has its nodes and what its lines add up to; a click on such a line chooses it, and Shift and a click pin no node of it."""
    members = GRAPH.nodes.of_kind("latent")[:3].tolist()
    opened.ask("nodes => explorer.change({nodes: 0.5, edges: 0.5, groups: [{name: 'some', nodes}]})", members)
    opened.page.click("text=Show all")
    opened.page.keyboard.down("Shift")
    opened.page.mouse.click(*opened.place_of(members[1]))
    opened.page.keyboard.up("Shift")
    assert opened.state("pinned") == []
    assert opened.state("selected") == members[0]
    assert opened.page.text_content("#group h2") == "some"
    assert opened.page.locator("#group .members button").all_text_contents() == [GRAPH.nodes.short(node) for node in members]
    pruned = prune(GRAPH, 0.5, 0.5, members)
    source, target = pruned.nodes[pruned.graph.indices], pruned.nodes[pruned.graph.target]
    of_group = torch.tensor(members)
    for title, near, far in (("Into it", target, source), ("Out of it", source, target)):
        sums: dict[str, float] = {}
        for edge in (torch.isin(near, of_group) & ~torch.isin(far, of_group)).nonzero()[:, 0].tolist():
            name = GRAPH.nodes.short(int(far[edge]))
            sums[name] = sums.get(name, 0.0) + float(pruned.graph.weight[edge])
        listed = opened.page.locator(f"ol[aria-label='{title}, of the group'] li")
        names = listed.locator(".end").all_text_contents()
        weights = [float(each.replace("−", "-")) for each in listed.locator(".weight").all_text_contents()]
        assert dict(zip(names, weights, strict=True)) == pytest.approx(sums, rel=1e-3)
        assert [abs(each) for each in weights] == sorted((abs(each) for each in weights), reverse=True)
        assert weights
    assert axe_finds(opened) == []
    opened.ask("() => explorer.change({selected: null})")
    opened.page.mouse.move(5, 5)
    sums_drawn = [at for edge, *at in opened.ask(CLEAR) if edge == -1]
    opened.page.mouse.click(*sums_drawn[0])
    assert opened.state("selected") == members[0]
    assert opened.state("edge") is None
