"""What a notebook shows of objects: the numbers that they hold, in a small table, and no string of them as markup."""

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import attrib
from attrib import latents
from attrib.causal.parity import compare
from attrib.causal.tasks.results import TaskResults
from attrib.core.shown import harmless, in_html
from attrib.stats.build import of
from tests.latents.test_survey import CORPUS, model, of_kind
from tests.stats.test_stats import random_edges
from tests.support.builders import D_MODEL
from tests.support.graphs import random_graph

HOSTILE = "<img src=x onerror=alert(1)>\u202e\x1b[2J"


def rows(shown: str) -> list[list[str]]:
    """The cells of the table that a notebook shows, its head first."""
    found = re.findall(r"<tr>(.*?)</tr>", shown)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in found]


def test_text_of_any_origin_is_shown_and_never_read() -> None:
    shown = in_html(f"a\n{HOSTILE}", ["<b>"], [[HOSTILE, 1.23456]])
    assert shown.startswith("<div><p>a<br>&lt;img")
    assert "<img" not in shown
    assert "\u202e" not in shown
    assert rows(shown) == [["<b>"], [harmless(HOSTILE), "1.235"]]
    named = in_html("x", [], [("size", 3)])
    assert '<th scope="row">size</th><td>3</td>' in named
    assert in_html("x", ["a"], []) == "<div><p>x</p></div>"


def test_what_a_notebook_keeps_in_its_file_is_small() -> None:
    edges = random_edges(1)
    long = replace(edges, prompts=replace(edges.prompts, strings=tuple("<b>" * 5_000 for _ in edges.prompts.strings)))
    shown = long._repr_html_()
    assert len(shown) < 40_000
    assert "<b>" not in shown
    assert max(len(cell) for row in rows(shown) for cell in row) == 200
    assert rows(shown)[1][2].endswith("…")
    assert len(in_html("x" * 5_000, [], [])) < 1_100


def test_a_graph_says_what_comes_from_which_kind() -> None:
    graph = random_graph()
    shown = replace(graph, strings=(HOSTILE, *graph.strings[1:]))._repr_html_()
    assert "<img" not in shown
    found = pd.DataFrame(rows(shown)[1:], columns=rows(shown)[0]).set_index("kind")
    for kind in ("token", "latent", "error"):
        nodes = graph.nodes.of_kind(kind)
        from_it = torch.isin(graph.indices, nodes)
        assert found.loc[kind].tolist() == [
            f"{len(nodes):,}",
            f"{int(from_it.sum()):,}",
            f"{float(graph.weight[from_it].double().abs().sum()):.4g}",
        ]


def test_a_survey_says_what_it_saw() -> None:
    survey = latents.survey(model(), of_kind("standard"), CORPUS)
    shown = rows(survey._repr_html_())
    assert [row[0] for row in shown[1:]] == [part.asked.dictionary for part in survey]
    for part, row in zip(survey, shown[1:], strict=True):
        assert row[2:4] == [f"{len(part.latents)} of {part.asked.d_sae}", f"{(part.active == 0).sum()}"]
        assert row[4:] == [f"{np.median(part.density):.3%}", f"{len(CORPUS)}", f"{sum(map(len, CORPUS))}"]
        assert rows(part._repr_html_())[1] == row


def test_weights_and_parity_show_their_strongest() -> None:
    weights = attrib.graph.virtual_weights(model(), torch.randn(30, D_MODEL).double(), torch.randn(4, D_MODEL).double())
    best = weights.top(8)
    assert [row[:2] for row in rows(weights._repr_html_())[1:]] == best[["source_latent", "target_latent"]].astype(str).to_numpy().tolist()
    parity = compare({"a": [1.0, 2.0, 3.0], "<b>": [1.0, 2.0, 4.0]})
    assert rows(parity._repr_html_())[1][:2] == ["a", "<b>"]
    assert "<b>" not in parity._repr_html_()


def test_statistics_have_a_row_for_each_block() -> None:
    edges = random_edges(1)
    [(block, held, pairs, found_from)] = rows(of(edges)._repr_html_())[1:]
    assert block == str(of(edges).blocks[0])
    assert (held, int(pairs), found_from) == ("table", of(edges).parts[0].pairs, "0")


def test_files_say_which_blocks_they_have_and_are_not_read_as_markup(tmp_path: Path) -> None:
    made = random_edges(1)
    attrib.save(tmp_path / "<b>.h5", made)
    (tmp_path / "shards").mkdir()
    for number, first in enumerate((0, len(made.prompts))):
        numbered = replace(made.prompts, number=torch.arange(first, first + len(made.prompts)))
        attrib.save(tmp_path / "shards" / f"{number}.h5", replace(made, prompts=numbered))
    with attrib.open(tmp_path / "<b>.h5") as one, attrib.open(tmp_path / "shards") as several:
        for result in (one, several):
            shown = result._repr_html_()
            assert rows(shown) == [["kind", "source", "target"], [*result.blocks[0]]]
            assert "<b>" not in shown
        assert f"{2 * len(made.prompts)} prompts in 2 shards" in several._repr_html_()


def test_results_of_a_task_say_what_was_asked() -> None:
    names = [{"name": HOSTILE}, {"name": "other"}]
    record = {"task": HOSTILE, "model": {"name": "m"}, "dictionaries": names, "operations": ["ablation", "direct"]}
    shown = TaskResults(record, held={})._repr_html_()
    assert "<img" not in shown
    assert dict(rows(shown)) == {
        "model": "m", "dictionaries": f"{harmless(HOSTILE)}, other", "operations": "ablation, direct", "files": "0", "done": "yes",
    }  # fmt: skip
