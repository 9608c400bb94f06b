"""Sums over a corpus against a plain loop over graphs, row by row."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.types import BudgetError, Dense, InputError, Site
from attrib.graph.building import build as build_graphs
from attrib.graph.means import MeanAttributions, Sources, mean_attributions
from attrib.graph.outputs import Custom
from attrib.models.transformer import Model
from tests.support.brought import dictionaries
from tests.support.builders import Family, build
from tests.support.covering import each_pair
from tests.support.cut_cases import TOKENS
from tests.support.tolerances import ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CORPUS = [TOKENS[:5], TOKENS[2:6], TOKENS[4:5]]
LATENTS = [2, 3, 11, 19, 30]


def plain(
    model: Model, cuts: list[attrib.Dictionary], latents: list[int], meant: Any = None
) -> tuple[dict[Any, list[float]], Counter[int]]:
    """Sum and count by (latent, kind, site, name, number), at places where a latent is active; and how many places there are."""
    found: dict[Any, list[float]] = {}
    places: Counter[int] = Counter()
    for number, ids in enumerate(CORPUS):
        (graph,) = build_graphs(model, cuts, ids, keep=Dense(), targets=Custom("none", torch.zeros(model.config.d_model).double()))
        nodes = graph.nodes
        for target in graph.targets.tolist():
            of, position, latent = nodes.sets[int(nodes.set_of[target])], int(nodes.position[target]), int(nodes.latent[target])
            if (of.kind, of.site, of.name) != ("latent", str(cuts[-1].site), cuts[-1].name) or latent not in latents:
                continue
            if meant is not None and not meant(number, ids, position):
                continue
            places[latent] += 1
            row = int(graph.row_of[target])
            for edge in range(int(graph.indptr[row]), int(graph.indptr[row + 1])):
                source = int(graph.indices[edge])
                each = nodes.sets[int(nodes.set_of[source])]
                told = int(nodes.latent[source]) if each.kind in ("latent", "token") else 0
                entry = found.setdefault((latent, each.kind, each.site, each.name, told), [0.0, 0])
                entry[0] += float(graph.weight[edge])
                entry[1] += bool(graph.weight[edge])
    return found, places


def as_dict(result: MeanAttributions) -> dict[Any, list[float]]:
    found = {}
    for each in result.sources:
        for row, number in each.count.nonzero().tolist():
            key = int(result.latent[row]), each.kind, each.site, each.name, number
            assert key not in found
            found[key] = [float(each.sum[row, number]), int(each.count[row, number])]
    return found


def assert_same(result: MeanAttributions, want: dict[Any, list[float]], places: Counter[int]) -> None:
    got = as_dict(result)
    want = {key: entry for key, entry in want.items() if entry[1]}
    assert got.keys() == want.keys()
    assert [entry[1] for entry in got.values()] == [want[key][1] for key in got]
    sums = ([entries[key][0] for key in got] for entries in (got, want))
    assert_close(*(torch.tensor(each, dtype=torch.float64) for each in sums), 1e-10)
    assert dict(zip(result.latent.tolist(), result.places.tolist(), strict=True)) == {latent: places[latent] for latent in LATENTS}
    assert result.remainder.abs().max() < 1e-10 * result.value.abs().max()


@pytest.mark.few
@each_pair(family=["gpt2", "qwen3", "gemma2", "gpt_neox"], which=["transcoders", "residual", "attn_out", "cross"])
def test_sums_are_those_of_a_loop_over_graphs(family: Family, which: str):
    model = build(family, torch.float64)
    cuts = dictionaries(model, which)
    result = mean_attributions(model, cuts, cuts[-1], LATENTS, CORPUS)
    want, places = plain(model, cuts, LATENTS)
    assert sum(places.values()) > 5
    assert_same(result, want, places)
    assert result.prompts == 3


def test_places_are_chosen_by_position_by_token_and_one_by_one():
    model = build("gpt2", torch.float64)
    cuts = dictionaries(model, "transcoders")
    tokens = [int(TOKENS[2]), int(TOKENS[4])]
    chosen = {0: [1, 3], 1: [], 2: [0]}
    asked: list[tuple[dict[str, Any], Any]] = [
        ({"of_tokens": tokens}, lambda n, ids, at: int(ids[at]) in tokens),
        ({"of_tokens": tokens[0]}, lambda n, ids, at: int(ids[at]) == tokens[0]),
    ]
    for options, meant in asked:
        assert_same(mean_attributions(model, cuts, cuts[-1], LATENTS, CORPUS, **options), *plain(model, cuts, LATENTS, meant))
    everywhere = mean_attributions(model, cuts, cuts[-1], LATENTS, CORPUS, at="all")
    assert everywhere.places.tolist() == [10] * 5
    one_by_one = mean_attributions(model, cuts, cuts[-1], LATENTS, CORPUS, at=lambda number, ids: chosen[number])
    assert one_by_one.places.tolist() == [3] * 5
    as_masks = mean_attributions(
        model, cuts, cuts[-1], LATENTS, CORPUS, at=lambda number, ids: torch.isin(torch.arange(len(ids)), torch.tensor(chosen[number]))
    )
    assert as_dict(as_masks) == as_dict(one_by_one)
    parts = [mean_attributions(model, cuts, cuts[-1], LATENTS, CORPUS[:2], at=at) for at in (0, 1, 2, 3)]
    parts += [
        mean_attributions(model, cuts, cuts[-1], LATENTS, CORPUS[:1], at="last"),
        mean_attributions(model, cuts, cuts[-1], LATENTS, CORPUS[2:], at=[-1]),
    ]
    assert_close(sum(part.value for part in parts), everywhere.value, ROUNDING)
    assert_close(sum(part.own for part in parts), everywhere.own, ROUNDING)


def test_where_a_latent_is_not_active_what_its_encoder_reads_counts():
    model = build("llama", torch.float64)
    cuts = dictionaries(model, "transcoders")
    d = cuts[-1]
    result = mean_attributions(model, cuts, d, LATENTS, CORPUS, at="all")
    seen = [attrib.capture(model, ids, [d.site])[d.site] for ids in CORPUS]
    assert_close(result.value, sum((x @ d.params.W_enc + d.params.b_enc)[:, LATENTS].sum(0) for x in seen), 1e-10)
    assert any((x @ d.params.W_enc + d.params.b_enc)[:, LATENTS].lt(0).any() for x in seen)
    directions = [Custom(str(latent), d.params.W_enc[:, latent], site=d.site) for latent in LATENTS]
    total = torch.zeros(len(LATENTS), d.d_sae).double()
    for ids in CORPUS:
        (graph,) = build_graphs(model, cuts, ids, keep=Dense(), targets=directions, positions="all")
        nodes = graph.nodes
        below = [n for n, each in enumerate(nodes.sets) if each.kind == "latent" and each.site == str(cuts[0].site)]
        for target in nodes.of_kind("target").tolist():
            name, edges = nodes.label(target).split("'")[1], graph.row == graph.row_of[target]
            edges &= nodes.set_of[graph.indices] == below[0]
            total[LATENTS.index(int(name))].index_add_(0, nodes.latent[graph.indices[edges]], graph.weight[edges])
    (source,) = [each for each in result.sources if each.kind == "latent"]
    assert_close(source.sum[:, : cuts[0].d_sae], total[:, : source.sum.shape[1]], 1e-10)
    assert total.abs().max() > 1


def test_means_are_ranked_over_all_kinds():
    model = build("gpt2", torch.float64)
    cuts = dictionaries(model, "transcoders")
    result = mean_attributions(model, cuts, cuts[-1], LATENTS, CORPUS, at="all")
    latent, row = LATENTS[1], 1
    table = result.top(latent, 10)
    every = sorted((abs(entry[0]) / 10 for key, entry in as_dict(result).items() if key[0] == latent), reverse=True)
    assert table["mean"].abs().tolist() == pytest.approx(every[:10])
    assert len(set(table["kind"])) > 1
    for line in table.to_dict("records"):
        means = (
            function(line["kind"], line["site"], line["name"])[row, line["number"]] for function in (result.mean, result.mean_where_present)
        )
        assert (line["mean"], line["mean_where_present"]) == pytest.approx(tuple(map(float, means)))
        assert line["sum"] == pytest.approx(line["mean"] * 10) == pytest.approx(line["mean_where_present"] * line["count"])
    assert result.top(latent, 1, by="count")["count"][0] == max(each.count[row].max() for each in result.sources)
    assert "5 latents" in repr(result)
    tokens = result.mean("token")
    assert tokens.shape == (5, model.config.d_vocab)
    there = torch.zeros(model.config.d_vocab, dtype=torch.bool).index_fill(0, torch.cat(CORPUS).unique(), True)
    assert not tokens[:, ~there].any()
    assert tokens[:, there].any()


def test_a_notebook_shows_what_the_first_latent_is_made_of() -> None:
    rows = torch.tensor([[3.0, -5.0, 0.0]])
    sums = Sources("latent", "blocks.0.mlp.hook_in", "<b>", rows, (rows != 0).long())
    found = MeanAttributions("d", torch.tensor([7]), 2, torch.tensor([4]), rows.sum(1), torch.zeros(1), (sums,))
    shown = found._repr_html_()
    assert "the strongest of latent 7:" in shown
    assert "<b>" not in shown
    assert [each[3:6] for each in re.findall(r"<td>(.*?)</td>" * 8, shown)] == [("1", "-5", "1"), ("0", "3", "1")]


def test_prompts_may_come_one_by_one_and_a_target_be_none_of_the_sources():
    model = build("gpt2", torch.float64)
    lower, target = dictionaries(model, "transcoders")
    whole = mean_attributions(model, [lower, target], target, LATENTS, CORPUS)
    taken = []

    def coming() -> Iterator[Tensor]:
        for number, ids in enumerate(CORPUS):
            taken.append(number)
            yield ids

    one_by_one = mean_attributions(model, lower, target, LATENTS, coming())
    assert taken == [0, 1, 2]
    assert as_dict(one_by_one) == as_dict(whole)
    assert as_dict(mean_attributions(model, [], target, LATENTS, CORPUS)).keys() != as_dict(whole).keys()
    nothing = mean_attributions(model, [lower, target], target, LATENTS, CORPUS, of_tokens=0)
    assert nothing.places.tolist() == [0] * 5
    assert nothing.sources == ()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"at": [7]}, r"positions: \[7\] for prompt 0, which has 5 tokens"),
        ({"at": [4]}, r"positions: \[4\] for prompt 1, which has 4 tokens"),
        ({"at": "somewhere"}, "positions"),
        ({"of_tokens": -1}, "of_tokens: token id -1"),
        ({"latents": [100_000]}, "latents: 100000 is no latent"),
        ({"tokens": []}, "tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], match: str):
    model = build("gpt2", torch.float64)
    cuts = dictionaries(model, "transcoders")
    given = {"latents": LATENTS, "tokens": CORPUS} | options
    with pytest.raises(InputError, match=match):
        mean_attributions(model, cuts, cuts[-1], **given)


def test_what_was_not_asked_about_is_refused():
    model = build("gpt2", torch.float64)
    cuts = dictionaries(model, "transcoders")
    result = mean_attributions(model, cuts, cuts[-1], LATENTS, CORPUS)
    with pytest.raises(InputError, match="latent: 0; expected one that was asked about: 2, 3, 11"):
        result.top(0)
    with pytest.raises(InputError, match="k: 0"):
        result.top(2, 0)
    with pytest.raises(InputError, match="by: 'size'"):
        result.top(2, by="size")
    with pytest.raises(InputError, match=r"kind: 'bias' at None of None, which .* are; expected one of these: "):
        result.mean("bias")
    with pytest.raises(InputError, match=r"which 0 are"):
        result.mean("latent", Site(7, "mlp_in"))
    with pytest.raises(BudgetError):
        mean_attributions(model, cuts, cuts[-1], LATENTS, CORPUS, budget=1000)
