"""The four attributions against the dense recipe: every value, every table, every option."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import attrib
from attrib.core.keep import RULES
from attrib.core.types import (
    BudgetError,
    Dense,
    Difference,
    Direction,
    InputError,
    Keep,
    Mass,
    Policy,
    Site,
    Threshold,
    TokenLogits,
    TopK,
    TopLogits,
)
from tests.reference import dense
from tests.support import builders
from tests.support.attribution_cases import (
    EARLY,
    LATE,
    LENGTHS,
    MIDDLE,
    Lens,
    all_four,
    assert_all,
    assert_edges,
    assert_same,
    assert_sums,
    brute_force,
    characters,
    lenses,
    metric,
    prompts,
    reference_model,
    wanted,
    without_shape_checks,
)
from tests.support.builders import DTYPES, FAMILIES, KINDS, N_LAYERS, Family, Kind, build
from tests.support.covering import each_pair
from tests.support.tolerances import ROUNDING, assert_close

families = pytest.mark.parametrize("family", FAMILIES)
kinds = pytest.mark.parametrize("kind", KINDS)
METHODS = ("adjoint", "torch.func")
methods = pytest.mark.parametrize("method", METHODS)
every_kind = each_pair(family=FAMILIES, kind=KINDS, dtype=DTYPES, method=METHODS)
NAMES = ("token_to_latent", "latent_to_latent", "latent_to_logit", "latent_to_metric")


# ------------------------------------------------------------------------------- the recipe itself


@families
def test_the_recipe_computes_what_transformers_computes(family: Family):
    model, (ids,) = builders.tiny(family, torch.float32), prompts(9)
    logits, seen = builders.transformers_values(model, ids)
    recipe = reference_model(family, torch.float32)
    assert_same(dense.true_value(recipe, ids, None), logits, "logits")
    for site, value in seen.items():
        assert_same(dense.true_value(recipe, ids, site), value, str(site))
        assert_same(dense.run(recipe, site, value, None, seen[Site(site.layer, "resid_pre")]), logits, f"logits from {site}")


# --------------------------------------------------------------- equality with the dense recipe


@pytest.mark.few
@every_kind
def test_token_to_latent(family: Family, kind: Kind, dtype: torch.dtype, method: Any):
    target = Lens(kind, LATE, seed=7)
    edges = attrib.token_to_latent(build(family, dtype), target.dictionary(family, dtype), prompts(*LENGTHS), method=method)
    assert edges.gradient.dtype == edges.total.dtype == edges.sources.activation.dtype == dtype
    assert_all(edges, wanted("token_to_latent", family, target))


@pytest.mark.few
@every_kind
def test_latent_to_latent(family: Family, kind: Kind, dtype: torch.dtype, method: Any):
    source, target = lenses(kind)
    edges = attrib.latent_to_latent(
        build(family, dtype), source.dictionary(family, dtype), target.dictionary(family, dtype), prompts(*LENGTHS), method=method
    )
    assert edges.gradient.dtype == edges.total.dtype == edges.sources.activation.dtype == dtype
    assert_all(edges, wanted("latent_to_latent", family, source, target))


@pytest.mark.few
@every_kind
def test_latent_to_logit(family: Family, kind: Kind, dtype: torch.dtype, method: Any):
    source, ids = Lens(kind), (7, 0, 59, 7)  # in the order asked for, also where it repeats
    edges = attrib.latent_to_logit(
        build(family, dtype), source.dictionary(family, dtype), prompts(*LENGTHS), logits=TokenLogits(ids), method=method
    )
    assert edges.prompt(1).targets.latent.tolist() == list(ids)
    assert edges.prompt(1).targets.position.tolist() == [LENGTHS[1] - 1] * len(ids)
    assert_all(edges, wanted("latent_to_logit", family, source, ids))


@pytest.mark.few
@every_kind
def test_latent_to_metric(family: Family, kind: Kind, dtype: torch.dtype, method: Any):
    source = Lens(kind)
    edges = attrib.latent_to_metric(build(family, dtype), source.dictionary(family, dtype), prompts(*LENGTHS), metric, method=method)
    assert edges.targets.latent.tolist() == [-1] * len(LENGTHS)
    assert edges.targets.labels == ("metric",) * len(LENGTHS)
    assert_all(edges, wanted("latent_to_metric", family, source, metric))


@families
def test_computing_in_another_dtype_than_the_model(family: Family):
    source, target = lenses("standard")
    narrow = attrib.latent_to_latent(build(family), source.dictionary(family), target.dictionary(family), prompts(9), dtype="float32")
    wide = attrib.latent_to_latent(
        build(family, torch.float32),
        source.dictionary(family, torch.float32),
        target.dictionary(family, torch.float32),
        prompts(9),
        dtype=torch.float64,
    )
    assert (narrow.gradient.dtype, wide.gradient.dtype) == (torch.float32, torch.float64)
    found = wanted("latent_to_latent", family, source, target, lengths=(9,))
    assert_all(narrow, found)
    assert_all(wide, found)


# ------------------------------------------------------------------------------ without the error


@pytest.mark.few
@families
@kinds
def test_latent_to_latent_along_the_reconstruction_alone(family: Family, kind: Kind):
    source, target = lenses(kind)
    edges = attrib.latent_to_latent(
        build(family, torch.float64), source.dictionary(family), target.dictionary(family), prompts(*LENGTHS), error=False
    )
    found = wanted("latent_to_latent", family, source, target, error=False)
    assert_all(edges, found)
    # the targets are those active on the true activations, and some are not reached by the reconstruction
    gone = torch.cat([want.values == 0 for want in found])
    assert gone.any()
    assert not gone.all()
    lost = torch.cat([edges.dense(number).abs().sum(-1) for number in range(len(LENGTHS))])[gone]
    assert not lost.any()


@pytest.mark.few
@families
@kinds
def test_logits_and_metrics_along_the_reconstruction_alone(family: Family, kind: Kind):
    source, model = Lens(kind), build(family, torch.float64)
    edges = attrib.latent_to_logit(model, source.dictionary(family), prompts(*LENGTHS), logits=TokenLogits((7, 0)), error=False)
    assert_all(edges, wanted("latent_to_logit", family, source, (7, 0), error=False))
    edges = attrib.latent_to_metric(model, source.dictionary(family), prompts(*LENGTHS), metric, error=False)
    assert_all(edges, wanted("latent_to_metric", family, source, metric, error=False))


# ------------------------------------------------------------------------ dictionaries and sites


@pytest.mark.few
@each_pair(
    family=FAMILIES,
    kind=KINDS,
    apply_b_dec_to_input=[True, False],
    normalise=["none", "layer_norm", "constant_norm_rescale"],
    error=[True, False],
)
def test_input_of_dictionaries(family: Family, kind: Kind, apply_b_dec_to_input: bool, normalise: str, error: bool):
    # a source's scale is a constant; a target's is a function of the stream
    source, target = (replace(lens, apply_b_dec_to_input=apply_b_dec_to_input, normalise=normalise) for lens in lenses(kind))
    edges = attrib.latent_to_latent(
        build(family, torch.float64), source.dictionary(family), target.dictionary(family), prompts(5), error=error
    )
    assert_all(edges, wanted("latent_to_latent", family, source, target, lengths=(5,), error=error))


@families
def test_topk_that_ranks_by_decoder_norm(family: Family):
    source, target = Lens("topk", MIDDLE, 3, rescale_by_decoder_norm=True), Lens("topk", LATE, 7, rescale_by_decoder_norm=True)
    edges = attrib.latent_to_latent(build(family, torch.float64), source.dictionary(family), target.dictionary(family), prompts(*LENGTHS))
    assert_all(edges, wanted("latent_to_latent", family, source, target))
    plain = wanted("latent_to_latent", family, replace(source, rescale_by_decoder_norm=False), target)
    assert plain[1].sources.latent.tolist() != edges.prompt(1).sources.latent.tolist()


SEGMENTS = [
    ("blocks.1.hook_attn_out", LATE),
    ("blocks.1.attn.hook_z", LATE),
    ("blocks.1.hook_resid_mid", LATE),
    ("blocks.1.ln2.hook_normalized", LATE),
    ("blocks.1.hook_mlp_out", LATE),
    ("blocks.1.hook_resid_post", LATE),
    (EARLY, "blocks.2.hook_attn_out"),
    (EARLY, "blocks.2.attn.hook_z"),
    (EARLY, "blocks.2.hook_resid_mid"),
    (EARLY, "blocks.2.ln2.hook_normalized"),
    (EARLY, "blocks.2.hook_mlp_out"),
    (EARLY, "blocks.3.hook_resid_post"),
    (EARLY, "blocks.1.hook_resid_pre"),  # one block
    ("blocks.0.hook_resid_post", "blocks.2.hook_mlp_out"),
    ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"),  # parts of one block
    ("blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"),
    ("blocks.1.hook_attn_out", "blocks.1.hook_resid_mid"),
    ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"),
    ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"),
    ("blocks.3.hook_mlp_out", "blocks.3.hook_resid_post"),
]


@pytest.mark.few
@each_pair(family=FAMILIES, ends=SEGMENTS, method=METHODS)
def test_sites(family: Family, ends: tuple[str, str], method: Any):
    start, stop = ends
    source, target = Lens("standard", start, 3), Lens("jumprelu", stop, 7)
    model = build(family, torch.float64)
    edges = attrib.latent_to_latent(model, source.dictionary(family), target.dictionary(family), prompts(6, 2), method=method)
    assert (edges.sources.site, edges.targets.site) == (str(Site.parse(start)), str(Site.parse(stop)))
    assert_all(edges, wanted("latent_to_latent", family, source, target, lengths=(6, 2)))


@pytest.mark.few
@families
@pytest.mark.parametrize("stop", sorted({stop for _, stop in SEGMENTS}))
def test_tokens_to_every_site(family: Family, stop: str):
    target = Lens("standard", stop, 7)
    edges = attrib.token_to_latent(build(family, torch.float64), target.dictionary(family), prompts(6))
    assert_all(edges, wanted("token_to_latent", family, target, lengths=(6,)))


@pytest.mark.few
@families
@pytest.mark.parametrize("start", sorted({start for start, _ in SEGMENTS} | {"blocks.3.hook_resid_post"}))
def test_logits_and_metrics_from_every_site(family: Family, start: str):
    source, model = Lens("standard", start), build(family, torch.float64)
    edges = attrib.latent_to_logit(model, source.dictionary(family), prompts(6), logits=TokenLogits((5, 50)))
    assert_all(edges, wanted("latent_to_logit", family, source, (5, 50), lengths=(6,)))
    edges = attrib.latent_to_metric(model, source.dictionary(family), prompts(6), metric)
    assert_all(edges, wanted("latent_to_metric", family, source, metric, lengths=(6,)))


# ----------------------------------------------------------------------------------- policies


@pytest.mark.few
@each_pair(family=FAMILIES, error=[True, False], method=METHODS)
def test_linear_holds_patterns_and_denominators(family: Family, error: bool, method: Any):
    (source, target), model = lenses("standard"), build(family, torch.float64)
    options = {"policy": attrib.LINEAR, "error": error, "method": method}
    edges = attrib.latent_to_latent(model, source.dictionary(family), target.dictionary(family), prompts(*LENGTHS), **options)
    assert_all(edges, wanted("latent_to_latent", family, source, target, linear=True, error=error))
    edges = attrib.latent_to_logit(model, source.dictionary(family), prompts(*LENGTHS), logits=TokenLogits((7, 0)), **options)
    assert_all(edges, wanted("latent_to_logit", family, source, (7, 0), linear=True, error=error))
    edges = attrib.latent_to_metric(model, source.dictionary(family), prompts(*LENGTHS), metric, **options)
    assert_all(edges, wanted("latent_to_metric", family, source, metric, linear=True, error=error))


@families
@methods
def test_linear_from_tokens(family: Family, method: Any):
    target, options = Lens("standard", LATE, 7), {"policy": attrib.LINEAR, "method": method}
    edges = attrib.token_to_latent(build(family, torch.float64), target.dictionary(family), prompts(*LENGTHS), **options)
    assert_all(edges, wanted("token_to_latent", family, target, linear=True))


# -------------------------------------------------------------------------------- positions


@pytest.mark.few
@families
@pytest.mark.parametrize("positions", [0, -1, [2], [3, 0, -1], [-1, 8, 4], range(9)], ids=str)
def test_targets_at_chosen_positions(family: Family, positions: Any):
    (source, target), model = lenses("standard"), build(family, torch.float64)
    chosen = sorted({p % 9 for p in ([positions] if isinstance(positions, int) else positions)})
    for edges, (want,) in (
        (
            attrib.latent_to_latent(model, source.dictionary(family), target.dictionary(family), prompts(9), positions=positions),
            wanted("latent_to_latent", family, source, target, lengths=(9,)),
        ),
        (
            attrib.token_to_latent(model, target.dictionary(family), prompts(9), positions=positions),
            wanted("token_to_latent", family, target, lengths=(9,)),
        ),
    ):
        rows = torch.isin(want.targets.position, torch.tensor(chosen))
        assert sorted(set(edges.targets.position.tolist())) == chosen
        part = dense.Nodes(*(column[rows] for column in want.targets))
        assert_edges(edges, 0, want._replace(gradient=want.gradient[rows], values=want.values[rows], targets=part))


@families
def test_logits_at_chosen_positions(family: Family):
    source, model = Lens(), build(family, torch.float64)
    edges = attrib.latent_to_logit(model, source.dictionary(family), prompts(9), logits=TokenLogits((4, 1)), positions=[-1, 2])
    both = [wanted("latent_to_logit", family, source, (4, 1), lengths=(9,), position=at)[0] for at in (2, 8)]
    assert edges.targets.position.tolist() == [2, 2, 8, 8]
    assert edges.targets.latent.tolist() == [4, 1, 4, 1]
    joined = both[0]._replace(gradient=torch.cat([want.gradient for want in both]), values=torch.cat([want.values for want in both]))
    assert_edges(edges, 0, joined)


def test_negative_positions_count_from_the_end_of_each_prompt():
    (source, target), model = lenses("standard"), build("gpt2", torch.float64)
    edges = attrib.latent_to_latent(model, source.dictionary("gpt2"), target.dictionary("gpt2"), prompts(3, 6), positions=-2)
    assert [set(edges.prompt(number).targets.position.tolist()) for number in range(2)] == [{1}, {4}]


# --------------------------------------------------------------------------------------- keep


KEEPS = [Dense(), TopK(1), TopK(7), TopK(10_000), Threshold(0.0), Threshold(0.02), Threshold(1e6), Mass(0.5), Mass(0.99), Mass(1e-9)]


def test_every_keep_rule_is_among_them():
    assert {type(keep) for keep in KEEPS} == set(RULES.values())


@lru_cache
def smallest_budget_of(family: Family, method: Any) -> int:
    """Of the call below, whatever it keeps."""
    return smallest_budget(partial(all_four(family)["latent_to_latent"], method=method))


@pytest.mark.few
@each_pair(family=FAMILIES, keep=KEEPS, many=[False, True], method=METHODS)
def test_keep_against_a_selection_from_the_dense_matrix(family: Family, keep: Keep, many: bool, method: Any):
    (source, target), model = lenses("standard"), build(family, torch.float64)
    call = partial(attrib.latent_to_latent, model, source.dictionary(family), target.dictionary(family), prompts(*LENGTHS))
    call = partial(call, keep=keep, method=method)
    edges = call(budget=smallest_budget_of(family, method) * 5 // 4) if many else call()
    for number, want in enumerate(wanted("latent_to_latent", family, source, target)):
        part, chosen = edges.prompt(number), brute_force(keep, want.attribution)
        rows = [set(part.indices[begin:end].tolist()) for begin, end in zip(part.indptr.tolist(), part.indptr.tolist()[1:], strict=False)]
        assert rows == chosen
        mask = part.dense(0) != 0
        assert_same(part.dense(0), want.gradient * mask, "gradient of what was kept")
        assert_same(part.dense(0, "attribution"), want.attribution * mask, "attribution of what was kept")
        assert_sums(part, want)  # totals are over all sources, whatever is kept


@pytest.mark.few
@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_keep_of_the_other_attributions(keep: Keep):
    source, target, model = Lens(), Lens("standard", LATE, 7), build("gpt2", torch.float64)
    for edges, (want,) in (
        (
            attrib.token_to_latent(model, target.dictionary("gpt2"), prompts(9), keep=keep),
            wanted("token_to_latent", "gpt2", target, lengths=(9,)),
        ),
        (
            attrib.latent_to_logit(model, source.dictionary("gpt2"), prompts(9), logits=TokenLogits((1, 2)), keep=keep),
            wanted("latent_to_logit", "gpt2", source, (1, 2), lengths=(9,)),
        ),
        (
            attrib.latent_to_metric(model, source.dictionary("gpt2"), prompts(9), metric, keep=keep),
            wanted("latent_to_metric", "gpt2", source, metric, lengths=(9,)),
        ),
    ):
        mask = torch.zeros(want.gradient.shape)
        for row, columns in enumerate(brute_force(keep, want.attribution)):
            mask[row, list(columns)] = 1
        assert torch.equal(edges.dense() != 0, mask != 0)
        assert_same(edges.dense(), want.gradient * mask, "gradient of what was kept")
        assert_sums(edges, want)


def test_mass_of_everything_leaves_nothing():
    (source, target), model = lenses("standard"), build("gpt2", torch.float64)
    edges = attrib.latent_to_latent(model, source.dictionary("gpt2"), target.dictionary("gpt2"), prompts(9), keep=Mass(1.0))
    assert edges.remainder.abs().max() <= 1e-12 * edges.l1.max()


# ------------------------------------------------------------------------------------- budget


def smallest_budget(call: Any) -> int:
    """What the error of a call says is enough, from one byte on until it is.

    For the adjoint the first error knows of the encoding alone: what a sweep needs is known once latents are.
    """
    budget, error = 1, refusal(call, 1)
    assert error
    while error:
        found = re.match(rf"budget: {budget:,} bytes are too few for prompt \d, which needs at least ([\d,]+)\.", error)
        assert found, error
        named = int(found[1].replace(",", ""))
        assert named > budget
        budget, error = named, refusal(call, named)
    return budget


def refusal(call: Any, budget: int) -> str | None:
    """What the error of a call says about its budget, if it is refused."""
    try:
        call(budget=budget)
    except BudgetError as error:
        return str(error)
    return None


@pytest.mark.few
@each_pair(family=FAMILIES, name=NAMES, lengths=[(5,), (1, 5, 3)], method=METHODS)
def test_the_smallest_budget_is_enough_and_gives_the_same(family: Family, name: str, lengths: tuple[int, ...], method: Any):
    call = partial(all_four(family, torch.float64, *lengths)[name], method=method)
    smallest = smallest_budget(call)
    with pytest.raises(BudgetError, match=f"budget: {smallest - 1:,} bytes .* at least {smallest:,}"):
        call(budget=smallest - 1)
    tight, middling, ample = (call(budget=budget) for budget in (smallest, smallest * 3 // 2, 1 << 34))
    for edges in (tight, middling):
        for number in range(len(lengths)):
            assert_same(edges.dense(number), ample.dense(number), "gradient")
        assert_same(edges.total, ample.total, "total")
        assert torch.equal(edges.indptr, ample.indptr)
        assert torch.equal(edges.indices, ample.indices)


def test_the_logits_of_a_metric_are_in_the_budget():
    model, ids = builders.attrib_model("gpt2", torch.float64, vocab_size=20_000), prompts(9)
    source = Lens().dictionary("gpt2")
    assert smallest_budget(partial(attrib.latent_to_metric, model, source, ids, metric)) >= 2 * 9 * 20_000 * 8  # logits and their gradient
    assert smallest_budget(partial(attrib.latent_to_logit, model, source, ids)) < 9 * 20_000 * 8


# ------------------------------------------------------------------------------ choices of logits


@pytest.mark.few
@families
@pytest.mark.parametrize("k", [1, 5, 60, 1000])
def test_the_largest_logits(family: Family, k: int):
    source, model, (ids,) = Lens(), build(family, torch.float64), prompts(9)
    edges = attrib.latent_to_logit(model, source.dictionary(family), ids, logits=TopLogits(k))
    logits = dense.true_value(reference_model(family), ids, None)[-1]
    order = logits.argsort(descending=True)[:k]
    assert edges.targets.latent.tolist() == order.tolist()
    assert edges.targets.labels == tuple(map(str, order.tolist()))
    assert_same(edges.targets.probability, logits.softmax(-1)[order], "probability")
    assert_edges(edges, 0, dense.latent_to_logit(reference_model(family), source.sae(family), ids, order))


@pytest.mark.few
@families
@pytest.mark.parametrize(("k", "mass"), [(60, 0.5), (60, 0.95), (3, 0.95), (60, 1e-6)])
def test_the_fewest_logits_that_reach_a_mass(family: Family, k: int, mass: float):
    source, model, ids = Lens(), build(family, torch.float64), prompts(4, 9)
    edges = attrib.latent_to_logit(model, source.dictionary(family), ids, logits=TopLogits(k, mass))
    for number in range(2):
        probability = dense.true_value(reference_model(family), ids[number], None)[-1].softmax(-1).sort(descending=True)
        fewest = next((n for n in range(1, 61) if probability.values[:n].sum() >= mass), 60)
        assert edges.prompt(number).targets.latent.tolist() == probability.indices[: min(k, fewest)].tolist()


def test_logits_at_several_positions_are_each_positions_own():
    source, model, (ids,) = Lens(), build("gpt2", torch.float64), prompts(9)
    edges = attrib.latent_to_logit(model, source.dictionary("gpt2"), ids, logits=TopLogits(3), positions=[1, 6])
    order = dense.true_value(reference_model("gpt2"), ids, None).argsort(-1, descending=True)[[1, 6], :3]
    assert edges.targets.latent.tolist() == order.flatten().tolist()
    assert edges.targets.position.tolist() == [1, 1, 1, 6, 6, 6]


@families
def test_tokens_as_strings(family: Family):
    source, model = Lens(), characters(build(family, torch.float64))
    edges = attrib.latent_to_logit(model, source.dictionary(family), prompts(9), logits=TokenLogits(["H", 0, "C"]))
    assert edges.targets.labels == ("H", "A", "C")
    assert_all(edges, wanted("latent_to_logit", family, source, (7, 0, 2), lengths=(9,)))


DIFFERENCES = {
    "D - B": (Difference(3, "B"), (3,), (1,)),
    "A - C": (Difference("A", 2), (0,), (2,)),
    "D + E - A + B + C": (Difference([3, "E"], ["A", 1, 2]), (3, 4), (0, 1, 2)),
    "D - E": (Difference(3, [4]), (3,), (4,)),
    "D + D - E": (Difference([3, 3], 4), (3, 3), (4,)),
}
"""By the label that each is to have, and the tokens whose logits are to be added and taken away."""


@pytest.mark.few
@each_pair(family=FAMILIES, label=tuple(DIFFERENCES), policy=(attrib.EXACT, attrib.LINEAR))
def test_a_difference_of_means(family: Family, label: str, policy: Policy):
    what, plus, minus = DIFFERENCES[label]
    source, model, ids = Lens(), characters(build(family, torch.float64)), prompts(9)
    edges = attrib.latent_to_logit(model, source.dictionary(family), ids, logits=what, policy=policy)
    assert (edges.targets.labels, edges.targets.latent.tolist()) == ((label,), [-1])
    assert edges.targets.probability.isnan().all()

    def read(logits: Tensor) -> Tensor:
        return logits[-1, list(plus)].mean()[None] - logits[-1, list(minus)].mean()

    want = dense.from_latents(reference_model(family), source.sae(family), ids[0], None, read, linear=policy == attrib.LINEAR)
    assert_edges(edges, 0, want)


@pytest.mark.few
@each_pair(
    family=FAMILIES,
    site=[None, "blocks.2.hook_resid_mid", "blocks.2.hook_mlp_out", "blocks.3.attn.hook_z"],
    positions=[None, (0, -2)],
)
def test_a_direction_of_the_stream(family: Family, site: str | None, positions: tuple[int, ...] | None):
    source, model, ids = Lens(), build(family, torch.float64), prompts(9)
    is_wider = family == "llama" and site == "blocks.3.attn.hook_z"
    vector = builders.normal(40 if is_wider else 32, dtype=torch.float64)
    edges = attrib.latent_to_logit(
        model, source.dictionary(family), ids, logits=Direction(vector, None if site is None else Site.parse(site)), positions=positions
    )
    at, stop = Site.parse(site or f"blocks.{N_LAYERS - 1}.hook_resid_post"), [8] if positions is None else [0, 7]
    assert (edges.targets.site, edges.targets.position.tolist()) == (str(at), stop)
    assert_edges(edges, 0, dense.from_latents(reference_model(family), source.sae(family), ids[0], at, lambda x: x[stop] @ vector))


# ------------------------------------------------------------------ prompts: alone, in a batch, as text


@pytest.mark.few
@each_pair(family=FAMILIES, dtype=DTYPES, name=NAMES, method=METHODS)
def test_a_prompt_gives_the_same_alone_and_in_a_batch(family: Family, dtype: torch.dtype, name: str, method: Any):
    call = partial(all_four(family, dtype)[name], method=method)
    batch = call()
    for number, ids in enumerate(call.args[-1 if name != "latent_to_metric" else -2]):
        args = [ids if argument is call.args[-1 if name != "latent_to_metric" else -2] else argument for argument in call.args]
        alone, part = call.func(*args, **call.keywords), batch.prompt(number)
        for column in ("indptr", "indices", "gradient", "attribution", "total", "l1"):
            got, want = getattr(part, column), getattr(alone, column)
            if method == "adjoint" and want.is_floating_point():
                # a pack's prompts share the rows of its products, and a product of another shape adds up in another order
                assert_close(got, want, ROUNDING, column)
            else:
                assert torch.equal(got, want), column
        assert torch.equal(alone.targets.activation, part.targets.activation)
        assert torch.equal(alone.prompts.ids, part.prompts.ids)


@pytest.mark.parametrize("bos", [None, 9])
def test_prompts_as_text(bos: int | None):
    model, target = characters(build("gpt2", torch.float64), bos), Lens("standard", LATE, 7)
    edges = attrib.token_to_latent(model, target.dictionary("gpt2"), ["CAB", "D"])
    first = [] if bos is None else [bos]
    found = tuple(
        dense.token_to_latent(reference_model("gpt2"), target.sae("gpt2"), torch.tensor(ids)) for ids in ([*first, 2, 0, 1], [*first, 3])
    )
    assert_all(edges, found)
    assert edges.prompts.text(0) == (*(["J"] if first else []), "C", "A", "B")
    assert edges.sources.labels == edges.prompts.strings
    alone = attrib.token_to_latent(model, target.dictionary("gpt2"), "D")
    assert_close(edges.prompt(1).gradient, alone.gradient, ROUNDING)


def test_prompts_in_other_integer_dtypes():
    model, target, (ids,) = build("gpt2", torch.float64), Lens("standard", LATE, 7).dictionary("gpt2"), prompts(4)
    want = attrib.token_to_latent(model, target, ids)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(attrib.token_to_latent(model, target, ids.to(dtype)).gradient, want.gradient)


def test_progress_is_told_after_every_prompt():
    seen = []
    call = all_four("gpt2")["latent_to_latent"]
    call(progress=lambda *numbers: seen.append(numbers))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_call_is_written_into_the_result():
    edges = all_four("gpt2")["latent_to_latent"](keep=TopK(3), policy=attrib.LINEAR, error=False, positions=[-1])
    assert {key: edges.call[key] for key in ("kind", "keep", "error", "positions", "dtype", "method")} == {
        "kind": "latent_to_latent",
        "keep": "TopK(k=3)",
        "error": False,
        "positions": [-1],
        "dtype": "float64",
        "method": "adjoint",
    }
    assert edges.call["policy"] == {"attention": "frozen", "norm": "frozen", "mlp": "exact"}
    assert edges.call["source"]["site"] == MIDDLE
    assert edges.call["model"]["sha256"] == build("gpt2", torch.float64).fingerprint


# ---------------------------------------------------------------------------- arguments stay as they are


@pytest.mark.few
@each_pair(family=FAMILIES, dtype=DTYPES, name=NAMES)
def test_no_argument_is_changed(family: Family, dtype: torch.dtype, name: str):
    call = all_four(family, dtype)[name]
    held = [getattr(argument, "params", argument) for argument in call.args]
    leaves = [leaf for leaf in pytree.tree_leaves(held) if isinstance(leaf, Tensor)]
    before = [(leaf._version, leaf.clone(), leaf.requires_grad, leaf.grad) for leaf in leaves]
    assert len(leaves) > 20
    for options in ({}, {"policy": attrib.LINEAR, "dtype": "float64"}):
        call(**options)
    for leaf, (version, value, requires_grad, grad) in zip(leaves, before, strict=True):
        assert leaf._version == version
        assert torch.equal(leaf, value)
        assert leaf.requires_grad == requires_grad
        assert leaf.grad is grad


def test_parameters_that_require_grad_give_results_that_do_not():
    model = build("gpt2", torch.float64)
    params = pytree.tree_map(lambda p: p.clone().requires_grad_(p.is_floating_point()), model.params)
    source, target = (lens.dictionary("gpt2") for lens in lenses("standard"))
    edges = attrib.latent_to_latent(replace(model, params=params), source, target, prompts(4))
    assert not edges.gradient.requires_grad
    assert not edges.targets.activation.requires_grad
    assert torch.equal(edges.gradient, attrib.latent_to_latent(model, source, target, prompts(4)).gradient)


# ---------------------------------------------------------------------------------- bad arguments


@pytest.fixture
def as_in_production() -> Iterator[None]:
    with without_shape_checks():
        yield


def wider() -> Any:
    return attrib.from_sae_lens(builders.sae("standard", 33, torch.float64), name="a stranger")


BAD_TOKENS = [
    pytest.param([], ["tokens", "no prompts", "at least one"], id="no prompts"),
    pytest.param(torch.zeros(0, dtype=torch.long), ["tokens", "prompt 0", "0 tokens", "1 to 64"], id="empty"),
    pytest.param(
        [torch.tensor([1]), torch.zeros(0, dtype=torch.long)], ["tokens", "prompt 1", "0 tokens", "1 to 64"], id="empty in a list"
    ),
    pytest.param(torch.zeros(65, dtype=torch.long), ["tokens", "prompt 0", "65 tokens", "1 to 64", "tiny-gpt2"], id="too long"),
    pytest.param(torch.tensor([3, 60]), ["tokens", "prompt 0", "3 to 60", "0 to 59"], id="above the vocabulary"),
    pytest.param([torch.tensor([3]), torch.tensor([-1, 4])], ["tokens", "prompt 1", "-1 to 4", "0 to 59"], id="below the vocabulary"),
    pytest.param(torch.tensor([1.0, 2.0]), ["tokens", "prompt 0", "float32", "1-D tensor of ints"], id="float"),
    pytest.param(torch.tensor([True, False]), ["tokens", "prompt 0", "bool", "1-D tensor of ints"], id="bool"),
    pytest.param(torch.tensor([[[1, 2]]]), ["tokens", "[1, 1, 2]", "[positions]", "[prompts, positions]"], id="3-D"),
    pytest.param(torch.tensor(1), ["tokens", "[]", "[positions]"], id="0-D"),
    pytest.param("text", ["tokens", "got text", "tiny-gpt2 has no tokenizer", "give token ids"], id="no tokenizer"),
]


@pytest.mark.parametrize(("tokens", "words"), BAD_TOKENS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("as_in_production")
def test_bad_tokens(tokens: Any, words: list[str], name: str):
    call = all_four("gpt2")[name]
    at = -2 if name == "latent_to_metric" else -1
    args = [tokens if argument is call.args[at] else argument for argument in call.args]
    with pytest.raises(InputError) as caught:
        call.func(*args, **call.keywords)
    assert_says(caught.value, words)


def assert_says(error: Exception, words: list[str]) -> None:
    """The message begins with the argument's name and holds every word."""
    message = str(error)
    assert message.startswith(words[0]), message
    assert [word for word in words if word not in message] == [], message


BAD_OPTIONS = [
    pytest.param({"keep": TopK(0)}, ["keep", "TopK(0)", "k >= 1"], id="TopK(0)"),
    pytest.param({"keep": Threshold(-1.0)}, ["keep", "Threshold(-1.0)", "t >= 0"], id="Threshold(-1)"),
    pytest.param({"keep": Threshold(float("nan"))}, ["keep", "Threshold(nan)", "t >= 0"], id="Threshold(nan)"),
    pytest.param({"keep": Mass(0.0)}, ["keep", "Mass(0.0)", "0 < fraction <= 1"], id="Mass(0)"),
    pytest.param({"keep": Mass(1.5)}, ["keep", "Mass(1.5)", "0 < fraction <= 1"], id="Mass(1.5)"),
    pytest.param({"keep": Mass(float("nan"))}, ["keep", "Mass(nan)", "0 < fraction <= 1"], id="Mass(nan)"),
    pytest.param({"keep": "all"}, ["keep", "'all'", "Dense(), TopK(k), Threshold(t) or Mass(fraction)"], id="keep of another type"),
    pytest.param({"dtype": "int8"}, ["dtype", "'int8'", "float32, float64"], id="dtype int8"),
    pytest.param({"dtype": torch.float16}, ["dtype", "torch.float16", "float32, float64"], id="dtype float16"),
    pytest.param(
        {"policy": "exact"}, ["policy", "'exact'", "attrib.EXACT, attrib.LINEAR, attrib.RELP or Policy"], id="policy of another type"
    ),
    pytest.param({"policy": Policy(norm="half")}, ["policy", "norm='half'", "'exact' and 'frozen'"], id="unknown treatment"),
    pytest.param({"method": "autograd"}, ["method", "'autograd'", "torch.func"], id="method"),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("as_in_production")
def test_bad_options(options: dict[str, Any], words: list[str], name: str):
    with pytest.raises(InputError) as caught:
        all_four("gpt2")[name](**options)
    assert_says(caught.value, words)


@pytest.mark.parametrize("positions", [9, -10, [0, 9], []], ids=str)
@pytest.mark.parametrize("name", ["token_to_latent", "latent_to_latent", "latent_to_logit"])
@pytest.mark.usefixtures("as_in_production")
def test_positions_outside_a_prompt(positions: Any, name: str):
    done = []
    with pytest.raises(InputError) as caught:
        all_four("gpt2", torch.float64, 12, 9)[name](positions=positions, progress=lambda *numbers: done.append(numbers))
    assert not done  # refused before the prompt that they would fit
    assert_says(
        caught.value,
        ["positions", str(positions if isinstance(positions, list) else [positions]), "9 tokens" if positions else "12 tokens"],
    )


@pytest.mark.usefixtures("as_in_production")
def test_dictionaries_that_do_not_fit_the_model():
    model, (source, target) = build("gpt2", torch.float64), lenses("standard")
    source, target, ids = source.dictionary("gpt2"), target.dictionary("gpt2"), prompts(4)
    outside = Lens("standard", "blocks.4.hook_resid_pre").dictionary("gpt2")
    width = ["a stranger", "vectors of 33", "tiny-gpt2 has 32 at blocks.1.hook_resid_pre"]
    site = ["blocks.4.hook_resid_pre", "tiny-gpt2", "layers 0 to 3"]
    calls = {
        "target": [
            lambda bad: attrib.token_to_latent(model, bad, ids),
            lambda bad: attrib.latent_to_latent(model, source, bad, ids),
        ],
        "source": [
            lambda bad: attrib.latent_to_latent(model, bad, target, ids),
            lambda bad: attrib.latent_to_logit(model, bad, ids),
            lambda bad: attrib.latent_to_metric(model, bad, ids, metric),
        ],
    }
    for argument, call in [(argument, call) for argument, several in calls.items() for call in several]:
        for bad, words in ((wider(), width), (outside, site)):
            with pytest.raises(InputError) as caught:
                call(bad)
            assert_says(caught.value, [argument, *words])


@pytest.mark.parametrize(
    ("start", "stop"),
    [(LATE, MIDDLE), (MIDDLE, MIDDLE), ("blocks.0.hook_resid_post", MIDDLE), ("blocks.1.hook_mlp_out", "blocks.1.hook_resid_mid")],
)
@pytest.mark.usefixtures("as_in_production")
def test_a_target_that_is_not_after_the_source(start: str, stop: str):
    source, target = Lens("standard", start).dictionary("gpt2"), Lens("standard", stop).dictionary("gpt2")
    with pytest.raises(InputError) as caught:
        attrib.latent_to_latent(build("gpt2", torch.float64), source, target, prompts(4))
    assert_says(caught.value, ["target", stop, start, "later target"])


BAD_LOGITS = [
    pytest.param(TokenLogits(["AB"]), ["logits", "'AB' is 2 tokens", "['A', 'B']", "expected one"], id="two tokens"),
    pytest.param(Difference("A", "AB"), ["logits", "'AB' is 2 tokens", "expected one"], id="two tokens of a difference"),
    pytest.param(TokenLogits([""]), ["logits", "'' is 0 tokens", "expected one"], id="no token"),
    pytest.param(TokenLogits([60]), ["logits", "60", "vocabulary of 60"], id="outside the vocabulary"),
    pytest.param(TokenLogits([-1]), ["logits", "-1", "vocabulary of 60"], id="negative"),
    pytest.param(TokenLogits([]), ["logits", "no tokens", "at least one"], id="none"),
    pytest.param(Difference([], 1), ["logits", "no tokens", "at least one"], id="none of a difference"),
    pytest.param(Direction(torch.zeros(31)), ["logits", "[31]", "vectors of 32"], id="direction of another width"),
    pytest.param(
        Direction(torch.zeros(32), Site(4, "resid_pre")), ["logits", "blocks.4.hook_resid_pre", "layers 0 to 3"], id="direction outside"
    ),
    pytest.param(
        Direction(torch.zeros(32), Site(0, "resid_pre")), ["target", "blocks.0.hook_resid_pre", "blocks.1"], id="direction before"
    ),
    pytest.param(TopLogits(0), ["logits", "TopLogits", "0", "k >= 1"], id="no logits"),
    pytest.param(TopLogits(5, 0.0), ["logits", "TopLogits", "0.0", "0 < mass <= 1"], id="no mass"),
]


@pytest.mark.parametrize(("logits", "words"), BAD_LOGITS)
@pytest.mark.usefixtures("as_in_production")
def test_bad_logits(logits: Any, words: list[str]):
    model = characters(build("gpt2", torch.float64))
    with pytest.raises(InputError) as caught:
        attrib.latent_to_logit(model, Lens().dictionary("gpt2"), prompts(4), logits=logits)
    assert_says(caught.value, words)


@pytest.mark.usefixtures("as_in_production")
def test_tokens_as_strings_without_a_tokenizer():
    with pytest.raises(InputError) as caught:
        attrib.latent_to_logit(build("gpt2", torch.float64), Lens().dictionary("gpt2"), prompts(4), logits=TokenLogits(["A"]))
    assert_says(caught.value, ["logits", "got text", "tiny-gpt2 has no tokenizer", "give token ids"])


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (lambda logits: logits[-1], "[60]"),
        (lambda logits: logits[-1, :1], "[1]"),
        (lambda logits: 3.0, "float"),
        (lambda logits: None, "NoneType"),
    ],
)
@pytest.mark.usefixtures("as_in_production")
def test_a_metric_that_is_no_scalar(bad: Any, got: str):
    with pytest.raises(InputError) as caught:
        attrib.latent_to_metric(build("gpt2", torch.float64), Lens().dictionary("gpt2"), prompts(4), bad)
    assert_says(caught.value, ["metric", got, "scalar tensor", "[positions, d_vocab]"])
