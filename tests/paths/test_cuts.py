"""Attributions with dictionaries on the way: sweeps against torch.func on the replaced pass, and autograd through transformers."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.types import EXACT, LINEAR, BudgetError, Direction, InputError, Policy, Site, TokenLogits, TopK
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.plan.choose import plan_pack
from attrib.engine.sweep.cells import ON_CPU
from attrib.engine.sweep.primal import attentions_between
from attrib.engine.tiles import adjoint, task_of
from attrib.engine.transforms import MAX_CHUNK, by_function
from attrib.models.transformer import Model
from tests.adapters.test_dictionary_folders import clt
from tests.attribution.test_plan import forced
from tests.support.attribution_cases import without_shape_checks
from tests.support.builders import D_MODEL, Family, build, normal, prompt, tiny
from tests.support.covering import each_pair, named, pairwise
from tests.support.cut_cases import SETS, SOME, Foreign, cross, foreign_logits, lens, moved, ours, standing
from tests.support.exact_transformers import keep_dtype
from tests.support.tolerances import ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TOKENS = prompt(6)
PROMPTS = [prompt(5), prompt(1, seed=3), prompt(3, seed=4)]
FEW: tuple[Family, ...] = ("gpt2", "llama", "gptj", "gemma2")
EVERY: tuple[Family, ...] = (*FEW, "olmo2", "gpt_neox")

ALL_SETS: dict[str, Callable[[Model], list[Foreign]]] = SETS | {
    "mlp_out": lambda m: [
        lens(m, "standard", "blocks.1.hook_mlp_out", seed=41, normalize_activations="layer_norm"),
        lens(m, "topk", "blocks.2.hook_mlp_out", seed=42),
    ],
    "mlp_in": lambda m: [lens(m, "standard", "blocks.1.mlp.hook_in", seed=43), lens(m, "topk", "blocks.2.mlp.hook_in", seed=44)],
    "every layer": lambda m: cross(m, range(4)),
}
SOURCES: dict[str, Callable[[Model], Dictionary | None]] = {
    "tokens": lambda _: None,
    "resid_pre": lambda m: lens(m, "topk", "blocks.1.hook_resid_pre", seed=21).ours,
    "z": lambda m: lens(m, "standard", "blocks.0.attn.hook_z", seed=23).ours,
    "attn_out": lambda m: lens(m, "topk", "blocks.1.hook_attn_out", seed=27).ours,
    "mlp_in": lambda m: lens(m, "standard", "blocks.1.mlp.hook_in", seed=29).ours,
    "mlp_out": lambda m: lens(m, "standard", "blocks.0.hook_mlp_out", seed=22).ours,
    "skip transcoder": lambda m: lens(m, "jumprelu_skip_transcoder", "blocks.0.mlp.hook_in", seed=24).ours,
    "cross-layer": lambda m: cross(m, range(4))[0].ours,
}
TARGETS: dict[str, Callable[[Model], Dictionary | None]] = {
    "resid_post": lambda m: lens(m, "topk", "blocks.3.hook_resid_post", seed=31).ours,
    "mlp_in": lambda m: lens(m, "transcoder", "blocks.3.mlp.hook_in", seed=32).ours,
    "z": lambda m: lens(m, "standard", "blocks.3.attn.hook_z", seed=33).ours,
    "mlp_out": lambda m: lens(m, "standard", "blocks.2.hook_mlp_out", seed=35).ours,
    "logits": lambda _: None,
}


@cache
def put_in(family: Family, which: str, dtype: torch.dtype = torch.float64) -> list[Dictionary]:
    return ours(ALL_SETS[which](build(family, dtype)))


def attribute(model: Model, source: Dictionary | None, target: Dictionary | None, tokens: Any, **options: Any) -> attrib.Edges:
    """Of whichever kind the ends ask for; logits where there is no target."""
    if source is None:
        assert target is not None
        options.pop("error", None)
        return attrib.token_to_latent(model, target, tokens, **options)
    if target is None:
        return attrib.latent_to_logit(model, source, tokens, logits=attrib.TopLogits(3), **options)
    return attrib.latent_to_latent(model, source, target, tokens, **options)


# ------------------------------------------------------------------------------- against the plain function


TAKEN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "residual": (("resid_pre",), ()),
    "transcoders": (("cross-layer",), ("mlp_out",)),
    "attn_out": (("attn_out",), ()),
    "cross": ((), ("mlp_out",)),
    "all": (("attn_out", "mlp_out", "skip transcoder", "cross-layer"), ("mlp_out", "resid_post")),
    "mlp_out": (("cross-layer",), ("mlp_out",)),
    "mlp_in": (("mlp_in",), ()),
    "every layer": (("mlp_out", "skip transcoder"), ("mlp_out",)),
}
"""The sources and the targets that replace a place which some set replaces too."""


def is_taken(which: str, source: str, target: str) -> bool:
    sources, targets = TAKEN.get(which, ((), ()))
    return source in sources or target in targets or (source, target) == ("cross-layer", "mlp_out")


def is_shut(row: dict[str, Any]) -> bool:
    """Whether nothing comes through: a comparison of zeros would prove nothing."""
    if row["target"] == "mlp_out" and row["policy"].mlp == "frozen":
        return True
    is_at_mlp = row["source"] == "mlp_in" and row["which"] in ("cross", "mlp_out", "every layer")
    is_at_mlp |= (row["which"], row["target"]) == ("mlp_in", "mlp_out")
    return row["effect"] == "direct" and (is_at_mlp or row["which"] in SHUT)


SHUT = ("residual", "all")
"""Sets with a cut of the stream, past which there is no direct effect."""
ENDS = {"which": list(ALL_SETS), "source": list(SOURCES), "target": list(TARGETS)}
WITH_CUTS = pairwise(
    {"family": EVERY, **ENDS, "policy": (EXACT, LINEAR, Policy(mlp="frozen")), "effect": ("direct", "total"), "error": (True, False)},
    lambda row: (
        not is_taken(row["which"], row["source"], row["target"])
        and not is_shut(row)
        and (row["source"], row["target"]) != ("tokens", "logits")
        and (row["policy"] == EXACT or row["source"] != "mlp_in")
    ),  # some way must be left
)
"""Each pair of a family, a set, a source, a target, a policy, an effect, and with or without the source's error, at least once."""


@pytest.mark.few
@pytest.mark.parametrize("row", WITH_CUTS, ids=named)
def test_every_set_in_every_way_is_the_plain_function(row: dict[str, Any]):
    """Both sides meet at any layer, in the terms of dictionaries that read below it and write above it too."""
    model = build(row["family"], torch.float64)
    source, target = SOURCES[row["source"]](model), TARGETS[row["target"]](model)
    options = {name: row[name] for name in ("policy", "effect", "error")} | {"cuts": put_in(row["family"], row["which"])}
    found = [attrib.path(model, source, target or attrib.TopLogits(3), tokens, **options) for tokens in PROMPTS]
    want = [torch.cat([tile.gradient for tile in by_function(path, MAX_CHUNK)]) for path in found]
    assert max(gradient.abs().max() for gradient in want) > 0.01

    edges = attribute(model, source, target, PROMPTS, **options)
    for number, gradient in enumerate(want):
        assert_close(edges.dense(number), gradient, what=number)
    totals = [gradient @ path.sources.value for gradient, path in zip(want, found, strict=True)]
    assert_close(edges.total, torch.cat(totals), what="totals")

    plans = forced(task_of(found))
    has_ways = bool(attentions_between(found[0].through.start, found[0].through.stop)) and not plans[0].task.is_beside
    assert {plan.way for plan in plans[1:]} >= {"forward"} if has_ways else len(plans) == 1
    for plan in plans:
        for number, (_, tile) in enumerate(adjoint(found, plan)):
            assert_close(tile.gradient, want[number][:, : tile.gradient.shape[1]], what=(plan.way, plan.layer, number))
            assert not want[number][:, tile.gradient.shape[1] :].any()


@pytest.mark.few
@pytest.mark.parametrize("which", SHUT)
@pytest.mark.parametrize("family", EVERY)
def test_nothing_passes_a_cut_of_the_stream_directly(family: Family, which: str):
    model, cuts = build(family, torch.float64), put_in(family, which)
    source = "z" if which == "all" else "mlp_in"
    got = attribute(model, SOURCES[source](model), TARGETS["z"](model), PROMPTS, cuts=cuts)
    assert len(got) == 0
    assert not got.total.any()


def test_what_would_be_replaced_twice_is_refused():
    model, tokens = build("gpt2", torch.float64), prompt(1)
    for which, source, target in product(*ENDS.values()):
        if is_taken(which, source, target) and (source, target) != ("tokens", "logits"):
            with pytest.raises(InputError, match="both replace"):
                attribute(model, SOURCES[source](model), TARGETS[target](model), tokens, cuts=put_in("gpt2", which))


@pytest.mark.few
@pytest.mark.parametrize(
    ("family", "which", "effect"),
    [("gpt2", "transcoders", "direct"), ("llama", "transcoders", "total"), ("gptj", "all", "total"), ("gemma2", "every layer", "total")],
)
def test_in_float32(family: Family, which: str, effect: str):
    """Single precision against double, on the same model and dictionaries."""
    model, exact = build(family, torch.float32), build(family, torch.float64)
    source, target = SOURCES["resid_pre"](model), TARGETS["z"](model)
    cuts = put_in(family, which, torch.float32)
    got = attribute(model, source, target, TOKENS, cuts=cuts, effect=effect)
    want = attribute(exact, source, target, TOKENS, cuts=cuts, effect=effect, dtype="float64")
    assert want.dense(0).abs().max() > 0.1
    assert_close(got.dense(0), want.dense(0).float())


# ------------------------------------------------------------------------ against transformers and sae-lens


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_dtype(monkeypatch)


class Oracle:
    """Transformers' model with dictionaries hooked in, as a function of one dictionary's latents."""

    def __init__(self, family: Family, found: list[Foreign], effect: str) -> None:
        self.model, self.foreign = build(family, torch.float64), tiny(family, torch.float64).requires_grad_(False)
        self.found, self.effect = found, effect
        self.replaced = attrib.replace(self.model, ours(found))
        self.leaves = self.replaced.leaves(TOKENS)
        self.errors = dict(zip(self.replaced.written, self.leaves.errors, strict=True))
        self.true: dict[int, Tensor] = {}
        foreign_logits(self.foreign, found, TOKENS, errors=self.errors, read=self.true)

    def jacobian(self, source: int, read: Callable[[Tensor, dict[int, Tensor]], Tensor]) -> Tensor:
        """Of what is read of the logits and of each dictionary's input."""
        nodes, one = self.leaves.cuts[source].latents, self.found[source]

        def function(values: Tensor) -> Tensor:
            written = {n: standing(other, self.true[n]) for n, other in enumerate(self.found)} if self.effect == "direct" else {}
            written[source] = moved(one, self.true[source], nodes, values)
            reads: dict[int, Tensor] = {}
            logits = foreign_logits(self.foreign, self.found, TOKENS, errors=self.errors, written=written, read=reads)
            return read(logits, reads)

        return torch.autograd.functional.jacobian(function, nodes.value)


BY_AUTOGRAD = pairwise(
    {
        "family": FEW,
        "which": ["residual", "transcoders", "attn_out", "z", "cross", "mlp_out", "every layer"],
        "effect": ["direct", "total"],
        "is_before": [False, True],
    }
)
"""Each pair of a family, a set, an effect, and where the source is: the first dictionary of the set, or one before all of them."""


@pytest.mark.few
@pytest.mark.parametrize("row", BY_AUTOGRAD, ids=named)
@pytest.mark.usefixtures("exact")
def test_logits_are_autograds(row: dict[str, Any]):
    model = build(row["family"], torch.float64)
    first = [lens(model, "topk", "blocks.0.hook_resid_pre", seed=51)] if row["is_before"] else []
    found = first + ALL_SETS[row["which"]](model)
    want = Oracle(row["family"], found, row["effect"]).jacobian(0, lambda logits, _: logits[-1, :SOME])
    source, cuts = found[0].ours, ours(found[1:])
    got = attrib.latent_to_logit(model, source, TOKENS, logits=TokenLogits(range(SOME)), cuts=cuts, effect=row["effect"])
    is_blocked = row["effect"] == "direct" and row["which"] == "residual"
    assert bool(want.abs().max() > 1e-6) != is_blocked
    assert len(got) == 0 if is_blocked else len(got) > 100
    assert_close(got.dense(0), want)


@pytest.mark.few
@each_pair(family=FEW, ends=[(0, 1), (0, 3), (1, 3), (2, 3)], effect=["direct", "total"])
@pytest.mark.usefixtures("exact")
def test_edges_between_layers_of_a_cross_layer_transcoder(family: Family, ends: tuple[int, int], effect: str):
    """Where a layer writes, the model's own MLP is not looked at; the other layers stand still, or are passed."""
    model, (source, target) = build(family, torch.float64), ends
    found = cross(model, range(4))
    clt, oracle = ours(found), Oracle(family, found, effect)
    nodes = oracle.leaves.cuts[target].latents
    want = oracle.jacobian(source, lambda _, read: found[target].encode(read[target][None])[0][nodes.position, nodes.latent])
    got = attrib.latent_to_latent(model, clt[source], clt[target], TOKENS, cuts=clt, effect=effect)
    assert want.abs().max() > 0.05
    assert_close(got.dense(0), want)
    if effect == "direct":  # what the other layers write stands still, so they need not be named
        assert torch.equal(attrib.latent_to_latent(model, clt[source], clt[target], TOKENS).dense(0), got.dense(0))


# ---------------------------------------------------------------------------------------------- what it means


@pytest.mark.few
@pytest.mark.parametrize(("family", "policy"), [("gpt2", EXACT), ("llama", LINEAR), ("gptj", LINEAR), ("gemma2", EXACT)])
def test_total_effects_through_cuts_of_the_stream_are_products_of_direct_ones(family: Family, policy: Policy):
    model = build(family, torch.float64)
    a, b, c, d = (lens(model, "topk", f"blocks.{layer}.hook_resid_pre", seed=layer).ours for layer in range(4))
    edges = partial(attrib.latent_to_latent, model, tokens=TOKENS, policy=policy)
    ab, bc, cd = (edges(first, second).dense(0) for first, second in ((a, b), (b, c), (c, d)))
    assert_close(edges(a, d, cuts=[b, c], effect="total").dense(0), cd @ bc @ ab)
    assert_close(edges(a, d, cuts=[c], effect="total").dense(0), cd @ edges(a, c).dense(0))
    blocked = edges(a, d, cuts=[b])
    assert len(blocked) == 0
    assert not blocked.total.any()
    assert edges(a, d).dense(0).any()


@pytest.mark.few
@pytest.mark.parametrize("family", FEW)
def test_what_lies_outside_the_way_changes_nothing(family: Family):
    """Cuts before the source, after the target, and the ends themselves."""
    model = build(family, torch.float64)
    layers = [lens(model, "topk", f"blocks.{layer}.hook_resid_pre", seed=layer).ours for layer in range(4)]
    transcoder = lens(model, "skip_transcoder", "blocks.3.mlp.hook_in").ours
    for source, target in ((1, 2), (2, 3)):
        outside = [*layers[: source + 1], *layers[target:], transcoder]
        want = attrib.latent_to_latent(model, layers[source], layers[target], TOKENS)
        for effect in ("direct", "total"):
            got = attrib.latent_to_latent(model, layers[source], layers[target], TOKENS, cuts=outside, effect=effect)
            assert_close(got.dense(0), want.dense(0), ROUNDING)
    again = lens(model, "topk", "blocks.1.hook_resid_pre", seed=1).ours
    assert len(attrib.latent_to_latent(model, layers[1], layers[2], TOKENS, cuts=[replace(again), layers[2]])) == len(
        attrib.latent_to_latent(model, layers[1], layers[2], TOKENS)
    )


def test_tokens_are_what_is_brought_to_a_cut_of_the_first_stream():
    model = build("gpt2", torch.float64)
    first, target = (lens(model, "topk", f"blocks.{layer}.hook_resid_pre", seed=layer).ours for layer in (0, 2))
    assert len(attrib.token_to_latent(model, target, TOKENS, cuts=[first])) == 0
    total = attrib.token_to_latent(model, target, TOKENS, cuts=[first], effect="total").dense(0)
    chain = attrib.latent_to_latent(model, first, target, TOKENS).dense(0) @ attrib.token_to_latent(model, first, TOKENS).dense(0)
    assert_close(total, chain)


@pytest.mark.few
@pytest.mark.parametrize(
    ("which", "effect"), [("transcoders", "direct"), ("z", "total"), ("every layer", "direct"), ("every layer", "total")]
)
def test_a_metric_of_the_logits(which: str, effect: str):
    model = build("llama", torch.float64)
    cuts = put_in("llama", which)
    options: dict[str, Any] = {"cuts": cuts, "effect": effect}
    for source in ("resid_pre", "cross-layer") if which != "transcoders" else ("resid_pre",):
        dictionary = SOURCES[source](model)
        assert dictionary is not None
        got = attrib.latent_to_metric(model, dictionary, PROMPTS, lambda logits: logits[-1, 4] - logits[-1, 7], **options)
        want = attrib.latent_to_logit(model, dictionary, PROMPTS, logits=attrib.Difference(4, 7), **options)
        for row in range(len(PROMPTS)):
            assert_close(got.dense(row), want.dense(row))
            assert want.dense(row).any()
        assert got.targets.site == "logits"


@pytest.mark.parametrize("effect", ["direct", "total"])
def test_a_direction_is_read_off_what_stands_there(effect: str):
    """At a place that a cut writes: nothing, or what comes through the cut."""
    model = build("gpt2", torch.float64)
    source = SOURCES["resid_pre"](model)
    assert source is not None
    vector = normal(D_MODEL, dtype=torch.float64)
    for kind, which in (("mlp_out", "transcoders"), ("mlp_out", "mlp_out"), ("mlp_in", "mlp_in"), ("z", "z"), ("resid_post", "all")):
        layer = {"resid_post": 3}.get(kind, 2)
        logits = Direction(vector, Site(layer, kind))
        call = partial(attrib.latent_to_logit, model, source, TOKENS, logits=logits, positions=[0, -1], effect=effect)
        cuts = [cut for cut in put_in("gpt2", which) if cut.site.depth > (1, 0)]
        got = call(cuts=cuts)
        assert_close(got.dense(0), call(cuts=cuts, method="torch.func").dense(0))
        assert bool(got.dense(0).any()) == (effect == "total")


# ------------------------------------------------------------------------------------------------ the sweeps


@pytest.mark.few
@pytest.mark.parametrize(("family", "which"), [("gpt2", "transcoders"), ("gemma2", "residual"), ("gemma2", "cross"), ("gpt2", "all")])
def test_packs_budgets_and_pieces_change_nothing(family: Family, which: str):
    model, cuts = build(family, torch.float64), put_in(family, which)
    source, target = SOURCES["z" if which == "residual" else "resid_pre"](model), TARGETS["z"](model)
    options: dict[str, Any] = {"cuts": cuts, "effect": "total"}
    whole = attribute(model, source, target, PROMPTS, **options)
    for row, tokens in enumerate(PROMPTS):
        assert_close(attribute(model, source, target, tokens, **options).dense(0), whole.dense(row))
    peak = attrib.plan(model, source, target, PROMPTS[:1], **options).peak
    few = attribute(model, source, target, PROMPTS[:1], budget=int(peak * 0.8), **options)
    assert len(attrib.plan(model, source, target, PROMPTS[:1], budget=int(peak * 0.8), **options).packs[0].sweeps) > 1
    assert_close(few.dense(0), whole.dense(0))
    with pytest.raises(BudgetError, match="budget: 1 bytes are too few"):
        attribute(model, source, target, PROMPTS[:1], budget=1, **options)
    found = [attrib.path(model, source, target, tokens, **options) for tokens in PROMPTS]
    for size in (1, 5):
        task = replace(task_of(found), pieces=ON_CPU._replace(band=size, chunk=size, mlp=size))
        plan = plan_pack(task, 1 << 30)
        for number, tile in adjoint(found, plan):
            assert_close(tile.gradient, whole.dense(number))
    some = attribute(model, source, target, TOKENS, positions=[2, -1], keep=TopK(3), **options)
    want = attribute(model, source, target, TOKENS, positions=[2, -1], keep=TopK(3), method="torch.func", **options)
    assert torch.equal(some.indices, want.indices)
    assert_close(some.gradient, want.gradient)


def test_the_plan_chooses_among_all_ways_whatever_is_put_in():
    model = build("gpt2", torch.float64)
    target, transcoders = TARGETS["resid_post"](model), put_in("gpt2", "cross")
    skipping = put_in("gpt2", "transcoders")[:1]
    for options in ({"cuts": skipping}, {"cuts": transcoders}, {"cuts": transcoders, "effect": "total"}):
        assert attrib.plan(model, None, target, TOKENS, **options).direction in ("forward", "both")
    few = {"positions": -1, "cuts": transcoders, "effect": "total"}
    assert attrib.plan(model, SOURCES["resid_pre"](model), attrib.TopLogits(1), TOKENS, **few).direction == "through"
    assert attrib.plan(model, cross(model, range(4))[0].ours, attrib.TopLogits(2), TOKENS).direction == "reverse"
    shut, free = (attrib.plan(model, None, target, TOKENS, cuts=cuts).flops_by_part["mlp"] for cuts in (transcoders, ()))
    assert shut < free
    with pytest.raises(InputError, match="active: 3, but where dictionaries are put in"):
        attrib.plan(model, None, target, TOKENS, cuts=transcoders, active=3)


@pytest.mark.parametrize("which", ["transcoders", "all"])
def test_a_reduced_precision_is_measured_through_cuts(which: str):
    model = build("llama", torch.float32)
    source, target, cuts = SOURCES["resid_pre"](model), TARGETS["z"](model), put_in("llama", which, torch.float32)
    for effect in ("direct", "total"):
        found = attribute(model, source, target, TOKENS, cuts=cuts, effect=effect, dtype="bfloat16")
        exact = attribute(model, source, target, TOKENS, cuts=cuts, effect=effect, precision_rows=4)
        measured, small = (edges.call["precision_error"] for edges in (found, exact))
        if which == "all" and effect == "direct":  # a cut of the stream
            assert len(found) == len(exact) == 0
            continue
        assert 1e-4 < measured["relative_frobenius"] < 0.1
        assert small["relative_frobenius"] < 1e-5
        assert_close(found.dense(0), exact.dense(0), 0.1)


def silent(dictionary: Dictionary) -> Dictionary:
    """The same with no latent ever active."""
    return replace(dictionary, params=dictionary.params._replace(b_enc=dictionary.params.b_enc - 1e3))


@pytest.mark.few
@each_pair(
    which=["transcoders", "cross", "z", "residual"], effect=["direct", "total"], silenced=["source", "target", "normalised target", "cuts"]
)
def test_where_no_latent_is_active(which: str, effect: str, silenced: str):
    """Nothing is passed then but skip connections and scales."""
    model = build("gpt2", torch.float64)
    source, target, cuts = SOURCES["z"](model), TARGETS["mlp_in"](model), put_in("gpt2", which)
    assert source is not None
    assert target is not None
    match silenced:
        case "source":
            source = silent(source)
        case "target":
            target = silent(target)
        case "normalised target":
            target = silent(lens(model, "standard", "blocks.3.hook_attn_out", normalize_activations="layer_norm").ours)
        case "cuts":
            cuts = [silent(cut) for cut in cuts]
    got, want = (
        attrib.latent_to_latent(model, source, target, PROMPTS, cuts=cuts, effect=effect, method=method)
        for method in ("adjoint", "torch.func")
    )
    for row in range(len(PROMPTS)):
        assert_close(got.dense(row), want.dense(row))


def test_sites_in_any_order():
    """A dictionary that lists a later site first."""
    model = build("gpt2", torch.float64)
    forward = cross(model, range(1, 4))[0].ours
    parts = forward.params.W_dec.split(D_MODEL, dim=1), forward.params.b_dec.split(D_MODEL)
    turned = replace(
        forward,
        params=forward.params._replace(W_dec=torch.cat(parts[0][::-1], dim=1), b_dec=torch.cat(parts[1][::-1])),
        config=replace(forward.config, writes=forward.writes[::-1]),
    )
    target = TARGETS["resid_post"](model)
    assert target is not None
    want, got = (attrib.latent_to_latent(model, source, target, TOKENS).dense(0) for source in (forward, turned))
    assert want.abs().max() > 0.1
    assert_close(got, want)


@pytest.mark.long
@pytest.mark.parametrize("which", ["transcoders", "z"])
def test_on_triton_kernels(which: str):
    pytest.importorskip("triton")
    model, tokens = build("llama", torch.float32), prompt(6)
    source, target, cuts = SOURCES["resid_pre"](model), TARGETS["mlp_in"](model), put_in("llama", which, torch.float32)
    ours, kernels = (
        attribute(model, source, target, tokens, positions=[2, -1], cuts=cuts, effect="total", method=method)
        for method in ("adjoint", "adjoint-triton")
    )
    assert ours.gradient.abs().max() > 0.05
    assert_close(kernels.dense(0), ours.dense(0), ROUNDING)


def test_what_was_put_in_is_recorded_and_stored(tmp_path: Path):
    model, cuts = build("gpt2", torch.float32), put_in("gpt2", "every layer", torch.float32)
    edges = attrib.latent_to_logit(model, cuts[0], TOKENS, cuts=cuts[1:], effect="total")
    assert edges.call["effect"] == "total"
    assert [cut["sha256"] for cut in edges.call["cuts"]] == [cut.fingerprint for cut in cuts[1:]]
    attrib.save(tmp_path / "edges.h5", [edges])
    with attrib.open(tmp_path / "edges.h5") as store:
        assert torch.equal(store.edges().dense(0), edges.dense(0))
        assert store.call == edges.call


def test_parameters_that_require_gradients_are_constants():
    model = build("gpt2", torch.float64)
    cuts, source, target = put_in("gpt2", "transcoders"), SOURCES["resid_pre"](model), TARGETS["z"](model)
    wanting = [replace(cut, params=type(cut.params)(*(p.detach().clone().requires_grad_() for p in cut.params))) for cut in cuts]
    for effect in ("direct", "total"):
        got = attribute(model, source, target, TOKENS, cuts=wanting, effect=effect)
        assert not got.gradient.requires_grad
        assert_close(got.dense(0), attribute(model, source, target, TOKENS, cuts=cuts, effect=effect).dense(0))


def test_cross_layer_transcoders_that_stay_in_their_files(tmp_path: Path):
    """Every layer a source, a target and a cut, in the layout of circuit-tracer."""
    model, folder = build("gpt2", torch.float32), clt(tmp_path / "clt", model_name="tiny-gpt2")
    whole, maps = ([attrib.load_dictionary(folder, layer=layer, lazy=lazy) for layer in range(3)] for lazy in (False, True))
    for effect in ("direct", "total"):
        want = attrib.latent_to_latent(model, whole[0], whole[2], PROMPTS, cuts=whole, effect=effect)
        got = attrib.latent_to_latent(model, maps[0], maps[2], PROMPTS, cuts=maps, effect=effect)
        assert want.gradient.abs().max() > 0.01
        assert torch.equal(got.indices, want.indices)
        assert_close(got.gradient, want.gradient, ROUNDING)


# --------------------------------------------------------------------------------------------- bad arguments


def test_what_cannot_be_asked():
    model = build("gpt2", torch.float64)
    a, b, c = (lens(model, "topk", f"blocks.{layer}.hook_resid_pre", seed=layer).ours for layer in (0, 1, 3))
    twin, wide = (
        lens(model, "standard", "blocks.1.hook_resid_pre", seed=9).ours,
        replace(b, config=replace(b.config, site=Site(9, "resid_pre"))),
    )
    call = partial(attrib.latent_to_latent, model, a, c, TOKENS)
    for attempt, error, words in (
        (partial(call, cuts=[b], effect="both"), InputError, "effect: 'both'; expected 'direct' or 'total'"),
        (partial(call, cuts=["blocks.1"]), InputError, r"cuts\[0\]: blocks.1 is no folder"),
        (partial(call, cuts=[b, twin]), InputError, r"cuts\[0\] \(.*\) and cuts\[1\] \(.*\) both replace blocks.1.hook_resid_pre"),
        (partial(call, cuts=[wide]), InputError, r"cuts\[0\].*blocks.9.hook_resid_pre is outside"),
        (partial(attrib.latent_to_latent, model, a, twin, TOKENS, cuts=[b]), InputError, r"cuts\[0\] .* and target .* both replace"),
        (partial(attrib.plan, model, a, c, TOKENS, cuts=[b, twin]), InputError, "both replace"),
    ):
        with without_shape_checks(), pytest.raises(error, match=words):
            attempt()
