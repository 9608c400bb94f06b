"""Figures and pages for notebooks: what is drawn is what a result says, under names that tell things apart, and no string is markup."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import attrib
from attrib.core.edges import Edges
from attrib.core.types import InputError
from attrib.view import figures
from attrib.view.columns import column
from tests.support.builders import sae, tiny
from tests.support.graphs import random_graph
from tests.view.test_explorer_payload import HOSTILE

pytest.importorskip("plotly")


@pytest.fixture(scope="module")
def edges() -> Edges:
    second = sae("standard", site="blocks.2.hook_resid_pre")
    return attrib.latent_to_logit(tiny("llama"), second, [torch.tensor([3, 1, 4, 1]), torch.tensor([5, 9])], logits=attrib.TopLogits(3))


def test_a_heat_map_has_every_edge_by_name(edges: Edges) -> None:
    one = edges.prompt(0)
    figure = attrib.view.heatmap(edges)
    dense = torch.zeros(one.shape, dtype=torch.float64)
    dense[one.row, one.indices] = one.attribution.double()
    filled = (dense != 0).any(0)
    np.testing.assert_array_equal(figure.data[0].z, dense[:, filled].numpy())
    sources = np.array(attrib.view.labels_of(edges, "sources"))[filled.numpy()]
    assert list(figure.layout.xaxis.ticktext) == sources.tolist()
    first = int(filled.nonzero()[0])
    assert sources[0] == f"{int(one.sources.latent[first])} {one.prompts.strings[0]!r}@{int(one.sources.position[first])}"
    assert list(figure.layout.yaxis.ticktext) == [f"{label!r} @3" for label in one.targets.labels]
    assert figure.data[0].customdata[1][2] == f"{sources[2]} → {figure.layout.yaxis.ticktext[1]}"


def test_a_heat_map_of_the_strongest_in_the_order_of_a_target(edges: Edges) -> None:
    one = edges.prompt(0)
    dense = torch.zeros(one.shape, dtype=torch.float64)
    dense[one.row, one.indices] = one.gradient.double()
    figure = attrib.view.heatmap(edges, value="gradient", top=7, sort_by=1)
    shown = torch.tensor(figure.data[0].z)
    assert shown.shape == (3, 7)
    assert (shown[1].diff() <= 0).all()
    assert sorted(shown.abs().sum(0).tolist(), reverse=True) == dense.abs().sum(0).sort(descending=True).values[:7].tolist()


def test_what_cannot_be_drawn_is_refused(edges: Edges) -> None:
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: attrib.view.heatmap(edges, prompt=2), "prompt: 2"),
        (lambda: attrib.view.heatmap(edges, sort_by=3), "sort_by: 3"),
        (lambda: attrib.view.bars([1.0], ["a", "b"]), "labels: 2 of them for 1"),
        (lambda: attrib.view.scatter([1.0], [1.0, 2.0]), "y: 2 numbers"),
        (lambda: attrib.view.curves({"loss": ([1.0], [1.0, 2.0])}), "'loss' has 1 places"),
        (lambda: attrib.view.histogram(([0.0, 1.0], [1.0, 2.0])), "2 edges for 2 counts"),
        (lambda: attrib.view.bars(torch.zeros(2, 2), ["a", "b"]), "values: 2 dimensions"),
        (lambda: attrib.view.highlighted(["a"], [float("nan")]), "nan of token 0"),
        (lambda: attrib.view.highlighted(["a"], [1.0], marked=1), "marked: 1"),
        (lambda: attrib.view.highlighted(["a"], [1.0, 2.0]), "values: 2 of them"),
        (lambda: attrib.view.matrix([]), "edges: none"),
        (lambda: attrib.view.heatmap(edges, top=-1), "top: -1; expected a whole number of sources, at least 1"),
        (lambda: attrib.view.heatmap(edges, top=0), "top: 0"),
        (lambda: attrib.view.bars([1.0, float("inf")], ["a", "b"]), "values: inf at place 1"),
        (lambda: attrib.view.scatter([1.0], [1.0], ["a", "b"]), "labels: 2 of them for 1 points"),
        (lambda: attrib.view.histogram([1.0], bins=0), "bins: 0"),
        (lambda: attrib.view.histogram(([1.0, 2.0], [1.0]), log=True), "log: True of counts"),
        (lambda: attrib.view.histogram(([2.0, 1.0], [1.0])), "do not ascend"),
        (lambda: attrib.view.bars(torch.tensor([1j]), ["a"]), "values: complex numbers"),
        (lambda: attrib.view.bars(torch.zeros(1, device="meta"), ["a"]), "values: a Tensor that is no list of numbers"),
        (lambda: attrib.view.highlighted(["a"], [1.0], largest=0.0), "largest: 0.0"),
    ]
    for call, said in wrong:
        with pytest.raises(InputError, match=re.escape(said)):
            call()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_edges_that_are_no_numbers_are_refused_and_not_left_out(edges: Edges, wrong: float) -> None:
    attribution = edges.attribution.clone()
    attribution[0] = wrong
    broken = replace(edges, attribution=attribution)
    with pytest.raises(InputError, match="edges: prompt 0 has 1 attributions that are not finite"):
        attrib.view.heatmap(broken)
    with pytest.raises(InputError, match=r"edges: prompt 0: blocks\.2\.hook_resid_pre → logits: attributions that float32"):
        attrib.view.matrix(broken)
    attrib.view.heatmap(broken, value="gradient")


@pytest.mark.parametrize(("limit", "most"), [("MOST", 9), ("CELLS", 29)])
def test_a_heat_map_that_no_notebook_holds_is_refused(edges: Edges, limit: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.shape(attrib.view.heatmap(edges, top=10).data[0].z) == (3, 10)
    monkeypatch.setattr(figures, limit, most)
    with pytest.raises(InputError, match=r"edges: 3 x 10; expected at most .* Give `top`, or use attrib\.view\.matrix"):
        attrib.view.heatmap(edges, top=10)
    monkeypatch.setattr(figures, limit, most + 1)
    attrib.view.heatmap(edges, top=10)


def test_what_is_something_else_is_refused_by_name(edges: Edges) -> None:
    view, graph, other = attrib.view, random_graph(), cast("Any", "file.h5")
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: view.heatmap(other), "edges: got a str; expected edges, as `attrib.latent_to_latent`"),
        (lambda: view.labels_of(other, "sources"), "edges: got a str"),
        (lambda: view.matrix(other), "edges: got a str"),
        (lambda: view.matrix(cast("Any", [edges, None])), "edges[1]: got None"),
        (lambda: view.matrix(edges, max_edges=cast("Any", 1.5)), "max_edges: 1.5; expected a whole number"),
        (lambda: view.graph(other), "graph: got a str; expected a graph, as `attrib.graph.build`"),
        (lambda: view.graph(graph, survey=other), "survey: got a str"),
        (lambda: view.graph(graph, labels=cast("Any", {})), "labels: got a dict"),
        (lambda: view.graph(graph, links=other), "links: got a str"),
        (lambda: view.graph(graph, heads=other), "heads: got a str"),
        (lambda: view.beside(graph, other), "second: got a str"),
        (lambda: view.beside(graph, graph, names=cast("Any", ("a", "b", "c"))), "names: ('a', 'b', 'c'); expected two"),
        (lambda: view.dashboard(sae("standard"), [0], labels=other), "labels: got a str"),
        (lambda: view.dashboard(sae("standard"), [0], tables=other), "tables: got a str"),
        (lambda: view.task_dashboard(other), "results: got a str"),
        (lambda: view.graph(graph, links={"mistyped": "https://"}), "links: 'mistyped' is no dictionary of the page; expected one of "),
        (lambda: view.beside(graph, graph, links={"mistyped": "https://"}), "links: 'mistyped'"),
        (lambda: view.dashboard(sae("standard"), [0], links={"mistyped": "https://"}), "links: 'mistyped'"),
        (lambda: view.dashboard(sae("standard"), [0], tables={("mistyped", 0): []}), "tables: ('mistyped', 0) is no latent of the page"),
        (lambda: view.dashboard(sae("standard"), [0], survey="none.h5"), "survey: none.h5 does not exist"),
        (lambda: view.highlighted(cast("Any", torch.tensor([3])), [1.0]), "strings: number 0 is a Tensor; expected tokens as text"),
    ]
    for call, said in wrong:
        with pytest.raises(InputError, match=re.escape(said)):
            call()


@pytest.mark.parametrize("values", [None, "ab", {1: 2}, [[1], [2, 3]], ["x"], [10**400], object()])
def test_what_is_no_list_of_numbers_is_refused(values: object) -> None:
    with pytest.raises(InputError, match=r"^values: "):
        column("values", values)


def test_numbers_of_any_kind_are_a_column() -> None:
    tensor = torch.tensor([0.0, 2.0])
    for same in (tensor.bfloat16(), tensor.to_sparse(), tensor.requires_grad_(), tensor.int(), tensor.detach().numpy(), range(0, 3, 2)):
        assert column("values", same).tolist() == [0.0, 2.0]


def test_labels_are_numbers_too_and_no_text_of_plotly() -> None:
    figure = attrib.view.bars([1.0, 2.0], [7, 355])
    assert list(figure.layout.xaxis.ticktext) == ["7", "355"]
    assert list(attrib.view.bars([1.0], torch.tensor([7])).layout.xaxis.ticktext) == ["7"]
    shown = attrib.view.bars([1.0, 2.0, 3.0], ["$x$", "a\n\x1b\u202e", "<br>%{y}"], title="$$")
    assert list(shown.layout.xaxis.ticktext) == ["&#36;x&#36;", "a\\n\\x1b\\u202e", "&lt;br&gt;%{y}"]
    assert shown.layout.title.text == "&#36;&#36;"
    with pytest.raises(InputError, match="labels: a str; expected a list"):
        attrib.view.bars([1.0, 2.0], "ab")


def test_the_line_on_which_both_are_one_is_drawn_beside_what_is_no_number() -> None:
    figure = attrib.view.scatter([float("nan"), 1.0, 4.0, 9.0], [0.0, 2.0, 3.0, float("inf")], diagonal=True)
    assert list(figure.data[1].x) == list(figure.data[1].y) == [1.0, 4.0]
    assert figure.layout.title.text == "(2 left out)"
    assert len(attrib.view.scatter([float("nan")], [1.0], diagonal=True).data) == 1


def test_bins_without_an_end_and_of_what_hardly_differs_are_drawn() -> None:
    inf = float("inf")
    figure = attrib.view.histogram((np.array([-inf, 1.0, 3.0, 7.0, inf]), np.array([1, 2, 3, 4])))
    assert list(figure.data[0].x) == [0.0, 2.0, 5.0, 9.0]
    assert list(figure.data[0].width) == [2.0, 2.0, 4.0, 4.0]
    assert list(figure.data[0].y) == [1, 2, 3, 4]
    alone = attrib.view.histogram((np.array([4.0, inf]), np.array([5])))
    assert list(alone.data[0].x) == [6.0]
    near = attrib.view.histogram(np.array([1.0, np.nextafter(1.0, 2.0)]))
    assert sum(near.data[0].y) == 2
    every = attrib.view.histogram((1.0, 2.0, 3.0), bins=3)
    assert list(every.data[0].y) == [1, 1, 1]


def test_two_bars_of_one_name_stay_two() -> None:
    figure = attrib.view.bars(torch.tensor([1.0, -2.0, 3.0]), [" the", " cat", " the"], title="<b>x</b>")
    assert list(figure.data[0].y) == [1.0, -2.0, 3.0]
    assert list(figure.layout.xaxis.tickvals) == [0, 1, 2]
    assert list(figure.layout.xaxis.ticktext) == [" the", " cat", " the"]
    assert len(set(figure.data[0].marker.color)) == 2
    assert "<b>" not in figure.to_json()


def test_points_lines_and_counts() -> None:
    figure = attrib.view.scatter([1.0, 4.0], [2.0, 3.0], ["a", "<i>b"], diagonal=True)
    assert list(figure.data[0].x) == [1.0, 4.0]
    assert list(figure.data[0].text) == ["a", "&lt;i&gt;b"]
    assert list(figure.data[1].x) == list(figure.data[1].y) == [1.0, 4.0]
    values = torch.tensor([0.0, 0.1, 1.0, 1.0, 10.0, float("nan")])
    counted = attrib.view.histogram(values, bins=3, log=True, unit="density")
    assert list(counted.data[0].y) == [1, 2, 1]
    assert "(2 left out)" in counted.layout.title.text
    binned = attrib.view.histogram((np.array([0.0, 1.0, 3.0]), np.array([5, 7])))
    assert list(binned.data[0].x) == [0.5, 2.0]
    assert list(binned.data[0].width) == [1.0, 2.0]
    lines = attrib.view.curves({"loss": ([0.0, 1.0], [3.0, 2.0]), "L0": (np.arange(3), torch.ones(3))}, log=True)
    assert [line.name for line in lines.data] == ["loss", "L0"]
    assert lines.layout.xaxis.type == "log"
    assert lines.layout.title.text == "(2 left out)", "a place of 0 has no logarithm"


def test_a_text_is_coloured_by_its_numbers() -> None:
    page = attrib.view.highlighted(["a", " b", HOSTILE], [2.0, -1.0, 0.0], marked=1)
    spans = re.findall(r'<span(?: class="(\w+)")? title="([^"]*)">(<u>)?([^<]*)', page.html)
    assert [(level, title) for level, title, _, _ in spans] == [("p20", "2"), ("n10", "-1"), ("", "0")]
    assert [bool(line) for _, _, line, _ in spans] == [False, True, False]
    depths = {name: float(depth) for name, depth in re.findall(r"\.([pn]\d+)\{background:rgba\([\d,]+,([\d.]+)\)", page.html)}
    assert (depths["p20"], depths["n10"]) == (0.75, 0.375)
    assert "unsafe" not in page.html
    assert "<script" not in page.html
    assert "<img" not in page.html


def test_pages_stand_in_notebooks_and_are_saved(tmp_path: Path, edges: Edges) -> None:
    graph = random_graph()
    page = attrib.view.graph(replace(graph, strings=(HOSTILE, *graph.strings[1:])))
    shown = page._repr_html_()
    assert shown.startswith("<iframe sandbox=")
    assert shown.count("<script") == 0
    saved = page.save(tmp_path / "g.html")
    assert saved.read_text(encoding="utf-8") == page.html
    with pytest.raises(InputError, match="exists already"):
        page.save(tmp_path / "g.html")
    both = attrib.view.matrix(edges)
    assert both.html != attrib.view.matrix(edges.prompt(0)).html
    assert "MB" in repr(both)
