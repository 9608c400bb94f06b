"""The names of tokens and layers beside the explorer's graph: they can be read at every scale, lie where they belong, and none covers
another."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from attrib.graph.graph import Graph
from attrib.view.explorer.fitting import Most
from attrib.view.explorer.graph_payload import packed
from tests.support.graphs import random_graph
from tests.support.pages import Opened, large_graph

POSITIONS, LAYERS = 200, 26
LEVELS = ["embed", *(f"layer {layer}" for layer in range(LAYERS)), "logits"]
RECORD = """() => {
    const drawn = CanvasRenderingContext2D.prototype, {fillText, fillRect} = drawn;
    drawn.fillRect = function (...box) {
        if (this.canvas.id === "graph") window.texts = []; // each picture begins with its ground
        fillRect.apply(this, box);
    };
    drawn.fillText = function (text, x, y) {
        const {a, d, e, f} = this.getTransform(), size = parseFloat(this.font) * d, width = this.measureText(text).width * a;
        const left = a * x + e - {left: 0, start: 0, center: width / 2, end: width}[this.textAlign], base = d * y + f;
        if (this.canvas.id === "graph") window.texts.push([text, size, left, base - 0.75 * size, width, size]);
        fillText.call(this, text, x, y);
    };
}"""
"""All text that is drawn on the graph's canvas from now on: its size and box in pixels of the screen."""
CANVAS = """() => {
    const {clientWidth, clientHeight, __zoom: {k, x, y}} = document.getElementById("graph");
    return [clientWidth, clientHeight, k, x, y];
}"""
COLUMNS = "() => explorer.scene.shown(explorer.state.value).columns.map(({x, width}) => [x, x + width])"
ROWS = "() => explorer.scene.shown(explorer.state.value).rows.map(({level, y, height}) => [level, y, y + height])"

MARKS = """() => {
    const {graph} = explorer.scene;
    return explorer.scene.shown(explorer.state.value).items.map(({x, y, nodes: [node]}) =>
        ({x, y, kind: graph.kind(node), name: graph.beside(node)}));
}"""
"""Where each node lies on the picture, and what it is called beside its mark."""


class Text(NamedTuple):
    text: str
    size: float
    left: float
    top: float
    width: float
    height: float

    @property
    def middle(self) -> tuple[float, float]:
        return self.left + self.width / 2, self.top + self.height / 2


@pytest.fixture(scope="module")
def graph() -> Graph:
    return large_graph(2_000, 8_000, positions=POSITIONS, layers=LAYERS)


@pytest.fixture
def opened(chromium: Any, tmp_path: Path, graph: Graph) -> Iterator[Opened]:
    made = Opened(chromium, tmp_path, packed(graph, Most()))
    made.ask(RECORD)
    made.page.focus("#graph")
    yield made
    made.close()


def scaled(opened: Opened, keys: str) -> list[Text]:
    """The text on the canvas after all is shown and then scaled by some keys."""
    for key in f"0{keys}":
        opened.page.keyboard.press(key)
    return texts(opened)


def texts(opened: Opened) -> list[Text]:
    """The text on the canvas, of which no two overlap and all can be read."""
    found = [Text(*each) for each in opened.ask("async () => { await new Promise(requestAnimationFrame); return window.texts; }")]
    assert len(found) > 4
    assert all(each.size >= 9 for each in found)
    width, height, *_ = opened.ask(CANVAS)
    for each in found:
        assert min(each.left, each.top, width - each.left - each.width, height - each.top - each.height) >= -0.5, each
    for one, other in combinations(found, 2):
        across = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
        down = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
        assert across <= 0 or down <= 0, (one, other)
    return found


def split(found: list[Text]) -> tuple[list[Text], list[Text], list[Text]]:
    """Layers, positions, and the token above each position, without the names within the picture."""
    found = [each for each in found if each.size != 10.5]
    layers = [each for each in found if each.text in LEVELS]
    positions = [each for each in found if each.text.isdigit()]
    tokens = [each for each in found if each not in layers and each not in positions]
    return layers, positions, sorted(tokens, key=lambda each: each.left)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("keys", ["----------", "---", "", "+++", "++++++++", "++++++++++++++++++"])
def test_names_are_read_at_every_scale_and_lie_where_they_belong(opened: Opened, keys: str, theme: str) -> None:
    if theme == "dark":
        opened.page.click("button:text-matches('^(Dark|Light)$')")
        opened.page.focus("#graph")
    layers, positions, tokens = split(scaled(opened, keys))
    *_, k, x, y = opened.ask(CANVAS)
    columns, rows = opened.ask(COLUMNS), {LEVELS[level]: place for level, *place in opened.ask(ROWS)}
    numbers = [int(each.text) for each in positions]
    assert len(positions) == len(tokens) >= 2
    assert numbers == sorted(numbers)
    for each, token in zip(positions, tokens, strict=True):
        begin, end = (x + k * place for place in columns[int(each.text)])
        at = each.middle[0]
        assert token.middle[0] == pytest.approx(at, abs=0.5)
        assert f"word{each.text}".startswith(token.text.removesuffix("…"))
        assert begin <= at <= end or (each.text in ("0", str(POSITIONS - 1)) and min(abs(begin - at), abs(end - at)) < 20)
    for each in layers:
        begin, end = (y + k * place for place in rows[each.text])
        at = each.middle[1]
        assert begin <= at <= end or (each.text in ("embed", "logits") and min(abs(begin - at), abs(end - at)) < 10)
    assert layers


def test_every_second_fifth_or_tenth_has_its_name(opened: Opened) -> None:
    """The ends have theirs at every scale at which they are seen."""
    seen = set()
    for keys in ("-----------", "--------", "----", "--", "", "++", "++++", "++++++", "+++++++", "++++++++", "+++++++++"):
        layers, positions, _ = split(scaled(opened, keys))
        for numbers in ([int(each.text) for each in positions], [LEVELS.index(each.text) - 1 for each in layers][::-1]):
            inside = sorted(set(numbers) - {0, POSITIONS - 1, -1, LAYERS})
            steps = {after - before for before, after in pairwise(inside)}
            assert len(steps) <= 1
            seen |= steps
            assert all(number % step == 0 for number in inside for step in steps)
        if "+" not in keys:
            assert {"0", str(POSITIONS - 1)} <= {each.text for each in positions}
            assert {"embed", "logits"} <= {each.text for each in layers}
    assert {1, 2, 5, 10, 20} <= seen


def test_names_stay_at_the_edges_while_the_picture_is_moved(opened: Opened) -> None:
    before = scaled(opened, "++++++++++")
    box = opened.page.locator("#graph").bounding_box()
    opened.page.mouse.move(box["x"] + 500, box["y"] + 300)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 300, box["y"] + 600, steps=4)
    opened.page.mouse.up()
    opened.page.mouse.move(5, 5)
    after = texts(opened)
    for mine, theirs in zip(split(before), split(after), strict=True):
        assert [each.text for each in mine] != [each.text for each in theirs]
    for mine, theirs in zip(split(before)[1:], split(after)[1:], strict=True):
        assert {round(each.top) for each in mine} == {round(each.top) for each in theirs}
    ends = [{round(each.left + each.width) for each in split(found)[0]} for found in (before, after)]
    assert ends[0] == ends[1]
    assert len(ends[0]) == 1


def test_what_is_chosen_has_its_token_and_layer_named(opened: Opened, graph: Graph) -> None:
    token, layer = 137, 7
    first = graph.nodes.first[layer + 1]
    among = graph.nodes.position[int(first) : int(first) + 40]
    node = int(first) + int((among % 10 != 0).nonzero()[0])
    token = int(graph.nodes.position[node])
    scaled(opened, "---")
    opened.ask("node => explorer.change({selected: node, pinned: [node], nodes: 1})", node)
    opened.until("() => window.texts.some(([text]) => text.startsWith('mlp'))")
    found = texts(opened)
    assert f"word{token}" in {each.text for each in found}
    assert str(token) in {each.text for each in found}
    assert f"layer {layer}" in {each.text for each in found}


def test_a_picture_that_is_kept_has_the_names_that_are_seen(opened: Opened) -> None:
    for keys in ("", "++++++"):
        seen = scaled(opened, keys)
        kept = ElementTree.fromstring(opened.downloaded(lambda: opened.page.click("button:text-is('SVG')")))
        opened.page.focus("#graph")
        width, height, *_ = opened.ask(CANVAS)
        assert [float(kept.attrib[name]) for name in ("width", "height")] == [width, height]
        found = kept.findall(".//{http://www.w3.org/2000/svg}text")
        assert [each.text for each in found] == [each.text for each in seen]
        for one, other in zip(found, seen, strict=True):
            shift = {"start": 0, "middle": other.width / 2, "end": other.width}[one.attrib["text-anchor"]]
            assert float(one.attrib["x"]) == pytest.approx(other.left + shift, abs=0.01)
            assert float(one.attrib["font-size"]) == other.size


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("keys", ["", "+++", "++++++", "++++++++"])
def test_outputs_have_their_tokens_beside_them_and_few_latents_their_numbers(opened: Opened, keys: str, theme: str) -> None:
    if theme == "dark":
        opened.page.click("button:text-matches('^(Dark|Light)$')")
        opened.page.focus("#graph")
    scaled(opened, keys)
    *_, k, x, y = opened.ask(CANVAS)
    output = next(each for each in opened.ask(MARKS) if each["kind"] == "logit")
    box = opened.page.locator("#graph").bounding_box()
    opened.page.mouse.move(box["x"] + 300, box["y"] + 300)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 600 - k * output["x"] - x, box["y"] + 400 - k * output["y"] - y)
    opened.page.mouse.up()
    opened.page.mouse.move(5, 5)
    beside = [each for each in texts(opened) if each.size == 10.5]
    marks = opened.ask(MARKS)
    *_, k, x, y = opened.ask(CANVAS)
    outputs = [each for each in marks if each["kind"] == "logit"]
    named = 0
    for each in beside:
        near = [one for one in marks if abs(k * one["y"] + y - each.middle[1]) < 2 and 0 < each.left - k * one["x"] - x < 9 * k + 6]
        assert near, each
        assert any(one["name"].strip().startswith(each.text.removesuffix("…")) for one in near), (each, near)
        named += any(one["kind"] == "logit" for one in near)
    assert named == len(outputs) == 5 or (len(keys) > 3 and named >= 1)


def test_names_beside_marks_say_what_the_axes_do_not(chromium: Any, tmp_path: Path) -> None:
    """Outputs and latents have theirs, tokens are named below alone, and of other kinds one says what all their marks are."""
    graph = random_graph(positions=5, latents=5, layers=2, logits=12)
    opened = Opened(chromium, tmp_path, packed(graph, Most()), hash="#n=1&e=1")
    opened.ask(RECORD)
    opened.page.click("text=Show all")
    opened.page.mouse.move(5, 5)
    beside = [each.text for each in texts(opened) if each.size == 10.5]
    words = [*(f"w{number}" for number in range(12)), "direction", "position", "error", "bias"]
    assert sorted(each for each in beside if not each.isdigit()) == sorted(words)
    latents = {str(int(graph.nodes.latent[node])) for node in graph.nodes.of_kind("latent")}
    assert {each for each in beside if each.isdigit()} <= latents
    opened.close()


def test_strings_of_spaces_alone_have_a_name(chromium: Any, tmp_path: Path) -> None:
    graph = random_graph(positions=2, logits=3)
    labels = (" ", "  ", " ", "\u00a0\u3000", "\n ", "direction")
    opened = Opened(chromium, tmp_path, packed(replace(graph, nodes=replace(graph.nodes, labels=labels), strings=labels[:2]), Most()))
    opened.ask(RECORD)
    opened.page.click("text=Show all")
    opened.page.mouse.move(5, 5)
    found = [each.text for each in texts(opened)]
    assert {"␣", "␣␣", "⏎␣"} <= set(found)
    assert (found.count("␣"), found.count("␣␣")) == (2, 2)
    opened.close()


def test_outputs_stand_apart_from_each_other_and_from_the_edges_to_others(chromium: Any, tmp_path: Path) -> None:
    """Each is below those before it and to their right, within its column; more than can be so stand in lines."""
    for logits in (7, 40):
        opened = Opened(chromium, tmp_path, packed(random_graph(logits=logits), Most()), hash="#n=1&e=1")
        places = [(each["x"], each["y"]) for each in opened.ask(MARKS) if each["kind"] in ("logit", "target")]
        column = opened.ask(COLUMNS)[-1]
        row = opened.ask(ROWS)[0]
        assert len(set(places)) == len(places) == logits + 1
        assert all(column[0] < x < column[1] and row[1] < y < row[2] for x, y in places)
        steps = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(places)]
        assert all(across > 1 and down >= 13.99 for across, down in steps) == (logits == 7)
        opened.close()
