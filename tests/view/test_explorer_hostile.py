"""Strings that would act on a page or on the text around them, wherever a name can stand: they are shown as text, and are never run."""

import csv
import io
import unicodedata
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

from attrib.graph.graph import Graph
from attrib.latents.labels import Label, Labels
from attrib.view.explorer.beside_payload import packed_beside
from attrib.view.explorer.fitting import Most
from attrib.view.explorer.graph_payload import packed
from tests.support.graphs import random_graph
from tests.support.pages import Opened

MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"
STRINGS = (
    MARKUP, "\u202eright to left\u2066", "\0\a\x1b[31m\x9f\u2028", "long" * 2500, "\U000e0041unseen\U000e007f\u3164\u2800\u200d",
    "x" * 39 + "\U0001f600" * 9,
)  # fmt: skip
READ = """() => {
    const walk = document.createTreeWalker(document.getElementById("page"), NodeFilter.SHOW_ALL), found = [];
    for (let each = walk.currentNode; each; each = walk.nextNode()) {
        if (each.nodeType === Node.TEXT_NODE) found.push(each.data);
        else for (const {value} of each.attributes ?? []) found.push(value);
    }
    return found;
}"""
"""All text of the page, and of all attributes."""


def hostile() -> Graph:
    """Every name of tokens, logits, a direction and dictionaries is one of the strings."""
    graph = random_graph(positions=6, latents=9, logits=6)
    sets = tuple(each._replace(name=each.name and f"{number}{STRINGS[number % 6]}") for number, each in enumerate(graph.nodes.sets))
    nodes = replace(graph.nodes, labels=(*STRINGS, *STRINGS, MARKUP), sets=sets)
    return replace(graph, nodes=nodes, strings=STRINGS, call={"model": {"name": MARKUP}, "policy": {"\u202e": "\0"}, "keep": MARKUP})


GRAPH = hostile()
LATENTS = GRAPH.nodes.of_kind("latent").tolist()
LABELS = Labels(
    tuple(
        Label(GRAPH.nodes.sets[int(GRAPH.nodes.set_of[node])].name, int(GRAPH.nodes.latent[node]), string, string)
        for node, string in dict(zip(LATENTS[:6], STRINGS, strict=True)).items()
    )
)


def unseen(text: str) -> list[str]:
    return [each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp") or each in "\u3164\u2800\ufffd"]


def check(opened: Opened) -> None:
    """Nothing of a string was made an element, acts on what stands around it, or takes the whole page."""
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 2
    for text in opened.ask(READ):
        assert not unseen(text), text
        assert len(text) < 1000
    assert opened.ask("() => document.documentElement.scrollWidth <= innerWidth")


def test_names_of_nodes_are_text_wherever_they_stand(chromium: Any, tmp_path: Path) -> None:
    opened = Opened(chromium, tmp_path, packed(GRAPH, Most(), LABELS), MARKUP, "#n=1&e=1")
    opened.page.on("dialog", lambda _: opened.complaints.append("a dialog"))
    named = [*GRAPH.nodes.of_kind("token", "logit", "target").tolist(), *LATENTS[:6]]
    opened.ask("nodes => explorer.change({pinned: nodes})", named)
    for node in named:
        opened.ask("node => explorer.change({selected: node})", node)
        opened.page.mouse.move(*opened.place_of(node))
        opened.until(
            "name => document.querySelector('.hint strong')?.textContent === name", opened.ask("node => explorer.graph.short(node)", node)
        )
        check(opened)
    opened.page.click("ol[aria-label='Into it'] .weight >> nth=0")
    opened.page.fill("#search", "script")
    check(opened)
    assert "</script><script>alert(1)" in opened.page.text_content("#found")
    for string in STRINGS:
        opened.page.fill("#group-name", string.replace("\n", " "))
        opened.ask("node => explorer.change({pinned: [node]})", named[STRINGS.index(string)])
        opened.page.click("text=Group pinned")
        check(opened)
    opened.ask("node => explorer.change({selected: node})", named[0])
    opened.page.mouse.move(*opened.place_of(named[0]))
    opened.page.wait_for_selector(".hint")
    check(opened)
    opened.close()


def test_pictures_and_tables_of_hostile_names_are_whole(chromium: Any, tmp_path: Path) -> None:
    opened = Opened(chromium, tmp_path, packed(GRAPH, Most(), LABELS), MARKUP, "#n=1&e=1")
    kept = ElementTree.fromstring(opened.downloaded(lambda: opened.page.click("button:text-is('SVG')")))
    texts = [each.text or "" for each in kept.iter() if each.tag.endswith(("text", "title"))]
    assert any("</script>" in text for text in texts)
    assert not [text for text in texts if unseen(text)]
    assert {each.tag.partition("}")[2] for each in kept.iter()} <= {
        "svg", "title", "rect", "g", "clipPath", "path", "line", "circle", "polygon", "text"
    }  # fmt: skip
    opened.ask("nodes => explorer.change({groups: [{name: '=HYPERLINK(1)\\n,\"', nodes}]})", LATENTS[:2])
    text = opened.downloaded(lambda: opened.page.click("text=CSV"))
    rows = list(csv.reader(io.StringIO(text)))
    assert {len(row) for row in rows} == {5}
    assert len(rows) == 1 + opened.ask("() => [...explorer.scene.shown(explorer.state.value).lines].length")
    cells = {cell for row in rows for cell in row[::2][:2]}
    assert any(cell.startswith("'=HYPERLINK(1)\n") for cell in cells)
    assert not [cell for cell in cells if cell.startswith("=") or (unseen(cell) and "HYPERLINK" not in cell)]
    opened.close()


def test_names_of_graphs_beside_each_other_are_text(chromium: Any, tmp_path: Path) -> None:
    opened = Opened(chromium, tmp_path, packed_beside((GRAPH, GRAPH), (MARKUP, STRINGS[1]), Most(), LABELS), MARKUP, "#n=1&e=1")
    opened.page.on("dialog", lambda _: opened.complaints.append("a dialog"))
    check(opened)
    logit = int(GRAPH.nodes.of_kind("logit")[1])
    opened.ask("node => explorer.change({selected: explorer.sides[0].keys[node]})", logit)
    check(opened)
    kept = ElementTree.fromstring(opened.downloaded(lambda: opened.page.click("button:text-is('SVG')")))
    assert not unseen(kept[0].text or "")
    opened.close()


def test_a_cut_leaves_no_half_of_a_character(chromium: Any, tmp_path: Path) -> None:
    opened = Opened(chromium, tmp_path, packed(GRAPH, Most()))
    face = "\U0001f600"
    assert [opened.ask("([text, most]) => explorer.visible(text, most)", [f"ab{face}cd", most]) for most in (2, 3, 4, 9)] == [
        "ab…", "ab…", f"ab{face}…", f"ab{face}cd"
    ]  # fmt: skip
    assert (
        opened.ask("() => explorer.visible('a\\ud800\\u2764\\ufe0f\\u3164\\udb40\\udc41')") == "a\\u{d800}\u2764\ufe0f\\u{3164}\\u{e0041}"
    )
    opened.close()
