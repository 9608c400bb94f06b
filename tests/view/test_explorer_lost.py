"""Why an intervention gave no number: where its pass leaves what the dtype holds, and how the page says so."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attrib
from attrib.causal.lost import why_lost
from attrib.core.types import AttribWarning
from attrib.graph.graph import Graph
from attrib.passes.capture import capture
from attrib.view.explorer.details import Details
from attrib.view.explorer.fitting import Most
from attrib.view.explorer.graph_payload import packed
from tests.support.builders import D_MODEL, attrib_model, prompt
from tests.support.pages import Opened
from tests.view.test_explorer_payload import unpacked

TOKENS = prompt(3)
FAR = 1e75
MLP = "blocks.1.hook_mlp_out"
"""Where the first token's position alone, which its embedding does not make up for, is squared beyond float64."""
WORDS = "what layer 1's MLP writes grew beyond what float64 holds. Norms stay as they were in the prompt"


@pytest.fixture(scope="module")
def made() -> tuple[Graph, attrib.causal.Agreement]:
    """Edges of a token and its position, which stand against each other: with one of the two left out the other grows without bounds,
    since the norms are held that belong to their sum."""
    model = attrib_model("llama", torch.float64, n_layers=2)
    far = FAR * torch.linspace(-1, 1, D_MODEL, dtype=torch.float64)
    W_E, W_pos = model.params.W_E.clone(), torch.zeros(model.config.n_ctx, D_MODEL, dtype=torch.float64)
    W_E[TOKENS[0]], W_pos[0] = far, -far
    learned = replace(model, config=replace(model.config, positions="learned"), params=model.params._replace(W_E=W_E, W_pos=W_pos))
    (graph,) = attrib.graph.build(learned, attrib.graph.Neurons(1, 1), TOKENS, keep=attrib.Dense(), targets=attrib.TokenLogits([3, 5]))
    graph = graph.only(torch.isin(graph.indices, graph.nodes.of_kind("token", "position")))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", AttribWarning)
        found = attrib.causal.verify(graph, learned, n=10**6, steps=(1e-10, 1.0))
    assert [each for each in said if f"at {MLP}." in str(each.message)]
    return graph, found


def test_where_a_pass_is_lost_is_in_the_table(made: tuple[Graph, attrib.causal.Agreement]) -> None:
    table = made[1].table
    assert set(table.lost[table.measured.isna()]) == {MLP}
    assert set(table.lost[table.measured.notna()]) == {""}
    assert table.measured.isna().any()


def test_the_place_is_the_first_that_a_plain_pass_has_no_number_at() -> None:
    """Of edges of one kind, whose norms are held, against what hooks see of a model whose weights do the same."""
    from attrib.causal.nudged import Nudged
    from attrib.core.types import LINEAR, Site

    model = attrib_model("gpt2", torch.float64, n_layers=2)
    start = Site(0, "resid_pre")
    passes = Nudged(model, TOKENS, start, None, (), "direct", LINEAR)
    change = torch.zeros(3, len(TOKENS), D_MODEL, dtype=torch.float64)
    change[1, 0], change[2, 0] = 1e308, float("inf")
    found = passes.lost({start: change}, None, 3)
    assert found[0] == ""
    assert found[2] == str(start)
    sites = [Site(layer, kind) for layer in (0, 1) for kind in ("attn_out", "resid_mid", "mlp_out", "resid_post")]  # type: ignore[arg-type]
    stands = passes.values({start: change[1:2]}, sites)
    first = next((site for site in sites if not bool(stands[site].isfinite().all())), None)
    assert first is not None
    assert Site.parse(found[1]).depth <= first.depth
    assert bool(capture(model, TOKENS, [first])[first].isfinite().all())


@pytest.mark.parametrize(
    ("at", "held", "said"),
    [
        ("blocks.7.hook_mlp_out", True, "what layer 7's MLP writes grew beyond what float32 holds"),
        ("blocks.7.mlp.hook_in", True, "what layer 7's MLP reads grew"),
        ("blocks.7.hook_resid_mid", True, "the stream at blocks.7.hook_resid_mid grew"),
        ("", True, "what the target reads grew"),
        ("", False, "what the target reads is no number any more: it is too large for float32, or nothing is left that a norm"),
    ],
)
def test_the_words(at: str, held: bool, said: str) -> None:
    assert why_lost(at, "float32", norms_are_held=held).startswith(said)


def in_reach(made: tuple[Graph, attrib.causal.Agreement], by: float = 1e-81) -> tuple[Graph, attrib.causal.Agreement]:
    """The same in another unit, in which a page's float32 holds the weights."""
    graph, verified = made
    scaled = {name: getattr(graph, name) * by for name in ("weight", "value", "own", "total", "l1")}
    table = verified.table.assign(predicted=verified.table.predicted * by, measured=verified.table.measured * by)
    return replace(graph, **scaled), replace(verified, table=table)


def test_each_reason_is_in_the_page_once(made: tuple[Graph, attrib.causal.Agreement]) -> None:
    graph, verified = in_reach(made)
    measured = verified.table.measured.to_numpy(float)
    header, columns = unpacked(packed(graph, Most(), details=Details(verified=verified)))
    assert len(header["reasons"]) == 2
    [lost] = [number for number, why in enumerate(header["reasons"]) if why.startswith(WORDS)]
    [beyond] = [number for number, why in enumerate(header["reasons"]) if why.startswith("the target moved by more than 3e38")]
    wanted = np.where(np.isnan(measured), lost, np.where(np.abs(measured) > np.finfo(np.float32).max, beyond, -1))
    assert columns["verified why"].tolist() == wanted.tolist()
    assert {*wanted.tolist()} == {-1, lost, beyond}
    assert columns["verified measured"][wanted < 0] == pytest.approx(measured[wanted < 0], rel=1e-6)
    assert not columns["verified measured"][wanted >= 0].any()


def test_the_panels_say_what_happened(made: tuple[Graph, attrib.causal.Agreement], chromium: Any, tmp_path: Path) -> None:
    graph, verified = in_reach(made)
    opened = Opened(chromium, tmp_path, packed(graph, Most(), details=Details(verified=verified)), hash="#n=1&e=1")
    table = verified.table
    edge = int(table.edge[table.measured.isna()].iloc[0])
    node = int(graph.indices[edge])
    opened.ask("edge => explorer.change({edge, selected: null})", edge)
    cells = [row.locator("td").all_text_contents()[1] for row in opened.page.locator("#verified tbody tr").all()]
    assert cells[1] == "no number"
    said = opened.page.locator("#edge .lost").all_text_contents()
    assert any(each.startswith(f"No number with all of it left out: {WORDS}") for each in said)
    opened.ask("node => explorer.change({selected: node, edge: null})", node)
    of_node = table[(table.source == graph.nodes.label(node)) & (table.step == 1)]
    wanted = f"Interventions on it: with all of it left out, {of_node.measured.isna().sum()} of {len(of_node)} edges that were verified "
    said = [" ".join(each.split()) for each in opened.page.locator("#node .lost").all_text_contents()]
    assert any(each.startswith(f"{wanted}have no number: {WORDS}") for each in said)
    other = int(graph.nodes.of_kind("token")[1])
    edge = int(table.edge[table.source == graph.nodes.label(other)].iloc[0])
    opened.ask("chosen => explorer.change(chosen)", {"edge": edge, "selected": other})
    assert opened.page.locator("#verified tbody tr").count() == 2
    assert opened.page.locator(".lost").count() == 0
    opened.close()
