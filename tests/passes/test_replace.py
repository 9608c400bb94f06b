"""Many dictionaries at once: with errors the model itself, without them what other libraries' modules give, and derivatives of both kinds.

The oracle is transformers' own model with hooks that put in what sae-lens' own modules compute, differentiated by autograd.
"""

from collections.abc import Callable
from dataclasses import replace as changed
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils import _pytree as pytree

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import EXACT, LINEAR, InputError, Policy, Site, SparseLatents
from attrib.dictionaries.dictionary import Dictionary, after_gain, encode
from attrib.models.transformer import embed, forward, place, walk
from attrib.passes.replacement import CutLeaves, Replacement
from tests.support.builders import ALL_FAMILIES, D_MODEL, DTYPES, Family, all_sites, build, normal, prompt, tiny
from tests.support.cut_cases import SETS, SOME, TOKENS, Foreign, errors_of, foreign_logits, lens, moved, ours, put_in, standing
from tests.support.exact_transformers import keep_dtype
from tests.support.tolerances import FINITE_DIFFERENCE, FOREIGN, ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

WITH_ERRORS = {torch.float32: ROUNDING[torch.float32], torch.float64: FOREIGN[torch.float64]}
ORACLES: tuple[Family, ...] = ("gpt2", "llama", "gptj", "gemma2")

each_set = pytest.mark.parametrize("which", SETS)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_dtype(monkeypatch)


# -------------------------------------------------------------------------------------------- values


@pytest.mark.few
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_with_errors_the_logits_are_the_models(family: Family, dtype: torch.dtype):
    """On the direct way from leaves, and on the total way from tokens (in float32 for the largest set alone)."""
    want = forward(build(family, dtype), TOKENS)
    for which in SETS:
        replaced = put_in(family, which, dtype)
        leaves = replaced.leaves(TOKENS)
        assert all(error.abs().max() > 0.1 for error in leaves.errors)
        assert all(len(values) > 20 for values in leaves.activations)
        assert_close(replaced.forward(leaves), want, WITH_ERRORS, what=f"{which}: direct")
        if dtype == torch.float64 or which == "all":
            assert_close(replaced.run(TOKENS, leaves.errors), want, WITH_ERRORS, what=f"{which}: total")


@each_set
@pytest.mark.parametrize("family", ORACLES)
@pytest.mark.usefixtures("exact")
def test_without_errors_the_logits_are_those_of_transformers_with_sae_lens(family: Family, which: str):
    replaced = put_in(family, which)
    found, foreign = SETS[which](replaced.model), tiny(family, torch.float64)
    with torch.no_grad():
        want = foreign_logits(foreign, found, TOKENS)
    assert_close(replaced.run(TOKENS), want)
    leaves = replaced.leaves(TOKENS)
    assert_close(replaced.run(leaves.embedded), want)
    assert_close(replaced.forward(leaves, effect="total", errors=False), want)
    read: dict[int, Tensor] = {}
    with torch.no_grad():  # the direct way: each writes what it makes of the model's own pass
        foreign_logits(foreign, found, TOKENS, errors=errors_of(replaced, leaves), read=read)
        alone = foreign_logits(foreign, found, TOKENS, written={n: standing(one, read[n]) for n, one in enumerate(found)})
    assert_close(replaced.forward(leaves, errors=False), alone)
    if len(found) > 1:
        assert (alone - want).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "policy"),
    [(family, EXACT) for family in ALL_FAMILIES] + [(family, policy) for family in ORACLES for policy in (LINEAR, Policy(mlp="frozen"))],
)
def test_with_nothing_put_in_it_is_the_model(family: Family, policy: Policy):
    """Asking at every place what stands there changes nothing: every site and its derivative."""
    model = build(family, torch.float64)
    x = embed(model, TOKENS)
    want = dict(walk(model, Site(0, "resid_pre"), x, policy=policy))
    asked: list[Site] = []
    got = dict(walk(model, Site(0, "resid_pre"), x, policy=policy, put=lambda at, value: asked.append(at) or value))
    assert sorted(asked, key=lambda at: at.depth) == asked
    assert {*asked} == {place(model, site) for site in all_sites()}
    assert len({*asked}) == len(asked)
    assert got.keys() == {*all_sites()}
    for site, value in got.items():
        assert torch.equal(value, want[site]), site
    empty = attrib.replace(model, (), policy=policy)
    every = empty.values(empty.leaves(TOKENS), all_sites())
    assert list(every) == all_sites()
    assert all(torch.equal(every[site], want[site]) for site in all_sites())

    def by_walk(x: Tensor) -> Tensor:
        *_, (_, last) = walk(model, Site(0, "resid_pre"), x, policy=policy)
        return attrib.unembed(model, last, policy=policy)

    cotangent = normal(*by_walk(x).shape, dtype=x.dtype)
    assert torch.equal(vjp(empty.run, x)[1](cotangent)[0], vjp(by_walk, x)[1](cotangent)[0])


@each_set
def test_what_stands_at_sites(which: str):
    """With errors the true values everywhere; without them, at a written site, what is decoded."""
    replaced = put_in("llama", which)
    true = attrib.capture(replaced.model, TOKENS, all_sites())
    leaves = replaced.leaves(TOKENS)
    for effect in ("direct", "total"):
        got = replaced.values(leaves, all_sites(), effect=effect)
        for site, value in true.items():
            assert_close(got[site], value, what=(effect, site))
    alone = replaced.values(leaves, replaced.written, errors=False)
    for site, error in zip(replaced.written, leaves.errors, strict=True):
        assert_close(alone[site] + error, true[site], what=site)
    for got_latents in (replaced.latents(leaves), replaced.latents(leaves, effect="total")):
        for got_values, values in zip(got_latents, leaves.activations, strict=True):
            assert_close(got_values, values)


def test_a_place_has_two_names():
    """resid_post of a layer is resid_pre of the next, for what writes there, what reads there, and what is asked for."""
    model = build("gpt2", torch.float64)
    first = [lens(model, "standard", f"blocks.{name}").ours for name in ("1.hook_resid_pre", "0.hook_resid_post")]
    reader = lens(model, "standard", "blocks.0.hook_resid_post", seed=4).ours
    reader = changed(reader, config=changed(reader.config, writes=(Site(2, "mlp_out"),)))
    one, two = (attrib.replace(model, [dictionary, reader]) for dictionary in first)
    assert one.written == two.written == (Site(1, "resid_pre"), Site(2, "mlp_out"))
    leaves = one.leaves(TOKENS)
    for name in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"):
        (value,) = one.values(leaves, [name], errors=False).values()
        assert_close(value, attrib.decode(first[0], encode(first[0], attrib.capture(model, TOKENS, [name])[Site.parse(name)])))
    assert torch.equal(one.run(TOKENS), two.run(TOKENS))
    # the reader reads what has been put there, and not what the model brings
    (stands,) = one.values(leaves, ["blocks.1.hook_resid_pre"], errors=False, effect="total").values()
    (decoded,) = one.values(leaves, ["blocks.2.hook_mlp_out"], errors=False, effect="total").values()
    assert_close(decoded, attrib.decode(reader, encode(reader, stands)))


# ---------------------------------------------------------------------------------------- direct effect


def by_activations(replaced: Replacement, leaves: CutLeaves, number: int, function: Callable[[Any], Any]) -> Callable[[Tensor], Any]:
    """A function of leaves as one of a single dictionary's latent values."""

    def of_values(values: Tensor) -> Any:
        activations = [*leaves.activations]
        activations[number] = values
        return function(leaves.with_activations(activations))

    return of_values


PAIRS = {
    "residual": ("topk", "blocks.1.hook_resid_pre", "jumprelu", "blocks.3.hook_resid_pre"),
    "transcoders": ("jumprelu_skip_transcoder", "blocks.1.mlp.hook_in", "transcoder", "blocks.3.mlp.hook_in"),
    "heads": ("standard", "blocks.0.attn.hook_z", "gated", "blocks.2.hook_attn_out"),
}


@pytest.mark.few
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("family", "policy"), [*((family, EXACT) for family in ORACLES), ("gemma2", LINEAR), ("gptj", LINEAR)])
def test_direct_effects_with_nothing_between_are_latent_to_latent(family: Family, pair: str, policy: Policy):
    model = build(family, torch.float64)
    a, site_a, b, site_b = PAIRS[pair]
    source, target = lens(model, a, site_a).ours, lens(model, b, site_b, seed=4).ours
    replaced = attrib.replace(model, [source, target], policy=policy)
    leaves = replaced.leaves(TOKENS)
    got = jacrev(by_activations(replaced, leaves, 0, lambda at: replaced.latents(at)[1]))(leaves.activations[0])
    want = attrib.latent_to_latent(model, source, target, TOKENS, policy=policy).dense(0)
    assert want.abs().max() > 1e-3
    assert_close(got, want)


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "gemma2"])
def test_direct_effects_stop_at_a_cut_of_the_stream(family: Family):
    """Exactly: not a rounding error gets through. What lies on this side of the cut is what it was."""
    model = build(family, torch.float64)
    sites = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.3.hook_resid_pre")
    a, b, c, d = (lens(model, "standard", site, seed=seed).ours for seed, site in enumerate(sites))
    replaced, without = attrib.replace(model, [a, b, c, d]), attrib.replace(model, [a, b, d])
    leaves = replaced.leaves(TOKENS)
    to_latents = jacrev(by_activations(replaced, leaves, 1, replaced.latents))(leaves.activations[1])
    assert [bool((part != 0).any()) for part in to_latents] == [False, False, True, False]
    assert_close(to_latents[2], attrib.latent_to_latent(model, b, c, TOKENS).dense(0))
    for number, does_reach in enumerate((False, False, False, True)):
        to_logits = jacrev(by_activations(replaced, leaves, number, lambda at: replaced.forward(at)[:, :SOME]))
        assert to_logits(leaves.activations[number]).any() == does_reach
    again = without.leaves(TOKENS)
    assert jacrev(by_activations(without, again, 1, without.latents))(again.activations[1])[2].any()


@pytest.mark.parametrize("which", ["transcoders", "all"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.usefixtures("exact")
def test_direct_effects_around_cuts_are_transformers_own(family: Family, which: str):
    """Beside a transcoder the stream goes on, and through its skip connection; its latents stand still but for one dictionary's."""
    replaced = put_in(family, which)
    found, foreign = SETS[which](replaced.model), tiny(family, torch.float64).requires_grad_(False)
    leaves = replaced.leaves(TOKENS)
    errors, read = errors_of(replaced, leaves), dict[int, Tensor]()
    foreign_logits(foreign, found, TOKENS, errors=errors, read=read)
    for number, one in enumerate(found[:-1]):
        nodes = leaves.cuts[number].latents

        def of_values(values: Tensor, number: int = number, one: Foreign = one, nodes: SparseLatents = nodes) -> Tensor:
            written = {other: standing(each, read[other]) for other, each in enumerate(found)}
            written[number] = moved(one, read[number], nodes, values)
            return foreign_logits(foreign, found, TOKENS, errors=errors, written=written)[-1]

        want = torch.autograd.functional.jacobian(of_values, nodes.value)
        got = jacrev(by_activations(replaced, leaves, number, lambda at: replaced.forward(at)[-1]))(nodes.value)
        assert_close(got, want, what=number)
        assert bool(want.any()) == (which == "transcoders")  # in "all" a cut of the last stream comes after everything


# ----------------------------------------------------------------------------------------- total effect


@pytest.mark.few
@each_set
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.usefixtures("exact")
def test_total_effects_are_autograds_through_transformers_with_sae_lens(family: Family, which: str):
    """Of embedded tokens, with constant errors; and of the first dictionary's latents."""
    replaced = put_in(family, which)
    found, foreign = SETS[which](replaced.model), tiny(family, torch.float64).requires_grad_(False)
    leaves = replaced.leaves(TOKENS)
    errors = errors_of(replaced, leaves)
    embedded = foreign.get_input_embeddings()(TOKENS)  # what transformers scales, and adds positions to, itself
    rest = leaves.embedded - embedded

    def last(embedded: Tensor) -> Tensor:
        return foreign_logits(foreign, found, TOKENS, errors=errors, embedded=embedded)[-1, :SOME]

    want = torch.autograd.functional.jacobian(last, embedded)
    got = jacrev(lambda x: replaced.run(x + rest, leaves.errors)[-1, :SOME])(embedded)
    assert want.abs().max() > 1e-3
    assert_close(got, want, what="tokens")

    read: dict[int, Tensor] = {}
    foreign_logits(foreign, found, TOKENS, errors=errors, read=read)
    nodes, one = leaves.cuts[0].latents, found[0]

    def of_values(values: Tensor) -> Tensor:
        return foreign_logits(foreign, found, TOKENS, errors=errors, written={0: moved(one, read[0], nodes, values)})[-1, :SOME]

    want = torch.autograd.functional.jacobian(of_values, nodes.value)
    total = by_activations(replaced, leaves, 0, lambda at: replaced.forward(at, effect="total", sources=[0])[-1, :SOME])
    assert want.abs().max() > 1e-3
    assert_close(jacrev(total)(nodes.value), want, what="latents")


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2", "olmo2"])
def test_total_effects_are_those_of_differences(family: Family):
    replaced = put_in(family, "all")
    leaves = replaced.leaves(TOKENS)
    direction = normal(*leaves.embedded.shape, dtype=torch.float64)
    step = 1e-6 / direction.abs().max().item()

    def function(t: Tensor) -> Tensor:
        return replaced.run(leaves.embedded + t * direction, leaves.errors)

    zero = torch.zeros((), dtype=torch.float64)
    difference = (function(zero + step) - function(zero - step)) / (2 * step)
    assert difference.abs().max() > 0.01
    assert_close(jvp(function, (zero,), (zero + 1,))[1], difference, FINITE_DIFFERENCE)


@pytest.mark.parametrize("policy", [EXACT, LINEAR])
def test_a_total_effect_is_the_sum_over_ways_through_cuts(policy: Policy):
    """With two cuts of the stream: what leads from the first to the logits leads through the active latents of the second."""
    model = build("gpt2", torch.float64)
    first, second = lens(model, "topk", "blocks.1.hook_resid_pre").ours, lens(model, "jumprelu", "blocks.3.hook_resid_pre", seed=4).ours
    replaced = attrib.replace(model, [first, second], policy=policy)
    leaves = replaced.leaves(TOKENS)
    to_second = jacrev(by_activations(replaced, leaves, 0, lambda at: replaced.latents(at)[1]))(leaves.activations[0])
    to_logits = jacrev(by_activations(replaced, leaves, 1, replaced.forward))(leaves.activations[1])
    total = by_activations(replaced, leaves, 0, lambda at: replaced.forward(at, effect="total", sources=(0,)))
    assert_close(jacrev(total)(leaves.activations[0]), to_logits @ to_second)
    without = attrib.replace(model, first, policy=policy)
    everything = jacrev(by_activations(without, without.leaves(TOKENS), 0, without.forward))(leaves.activations[0])
    assert (everything - to_logits @ to_second).abs().max() > 0.01  # what does not pass through active latents


# --------------------------------------------------------------------------------------- under torch.func


@pytest.mark.parametrize("which", ["residual", "all"])
def test_every_transform_takes_it(which: str):
    replaced = put_in("llama", which)
    leaves = replaced.leaves(TOKENS)
    assert all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(leaves))
    nodes = leaves.activations
    direct = by_activations(replaced, leaves, 0, lambda at: replaced.forward(at)[-1, :SOME])
    reads = by_activations(replaced, leaves, 0, replaced.latents)
    total = by_activations(replaced, leaves, 0, lambda at: replaced.forward(at, effect="total", sources=[0])[-1])
    for function in (direct, reads, total):
        reverse, ahead = jacrev(function)(nodes[0]), jacfwd(function)(nodes[0])
        pytree.tree_map(assert_close, ahead, reverse)
    assert_close(jacfwd(lambda x: replaced.run(x, leaves.errors)[-1])(leaves.embedded), jacrev(total_of(replaced, leaves))(leaves.embedded))
    direction = normal(len(nodes[0]), dtype=torch.float64)
    second = jvp(grad(lambda values: total(values).square().sum()), (nodes[0],), (direction,))[1]
    h = 1e-5
    slopes = [grad(lambda values: total(values).square().sum())(nodes[0] + sign * h * direction) for sign in (1, -1)]
    assert_close(second, (slopes[0] - slopes[1]) / (2 * h), 1e-4)


def total_of(replaced: Replacement, leaves: CutLeaves) -> Callable[[Tensor], Tensor]:
    return lambda x: replaced.run(x, leaves.errors)[-1]


@pytest.mark.few
@each_set
def test_many_at_once_are_each_alone(which: str):
    """vmap over values, over whole leaves, and over prompts on the total way, where their active latents differ in number."""
    replaced = put_in("gpt2", which)
    leaves = replaced.leaves(TOKENS)
    factors = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    scaled = by_activations(replaced, leaves, 0, replaced.forward)
    many = factors[:, None] * leaves.activations[0]
    assert_close(vmap(scaled)(many), torch.stack([scaled(values) for values in many]))
    embedded = torch.stack([embed(replaced.model, prompt(10, seed=seed)) for seed in (1, 2, 3)])
    counts = {tuple(map(len, replaced.leaves(prompt(10, seed=seed)).activations)) for seed in (1, 2, 3)}
    assert len(counts) > 1
    alone = torch.stack([replaced.run(x) for x in embedded])
    assert_close(vmap(replaced.run)(embedded), alone)
    assert_close(vmap(replaced.run, in_dims=(0, None))(embedded, leaves.errors)[0], replaced.run(TOKENS, leaves.errors))

    def read(x: Tensor) -> tuple[Tensor, ...]:
        return replaced.latents(leaves._replace(embedded=x), effect="total")

    for got, want in zip(vmap(read)(embedded), zip(*map(read, embedded), strict=True), strict=True):
        assert_close(got, torch.stack(want))
    got = vmap(jacrev(lambda x: replaced.run(x)[-1, :3]))(embedded[:2])
    assert_close(got, torch.stack([jacrev(lambda x: replaced.run(x)[-1, :3])(x) for x in embedded[:2]]))


def test_nothing_is_changed():
    replaced = put_in("gemma2", "all")
    leaves = replaced.leaves(TOKENS)
    before = pytree.tree_map(torch.clone, leaves)
    prints = [each.fingerprint for each in (replaced.model, *replaced.dictionaries)]
    first = replaced.run(TOKENS)
    jacrev(by_activations(replaced, leaves, 1, lambda at: replaced.forward(at, effect="total", sources=[1])[-1, :2]))(leaves.activations[1])
    assert torch.equal(replaced.run(TOKENS), first)
    assert all(pytree.tree_leaves(pytree.tree_map(torch.equal, before, leaves)))
    assert [type(each)(*fields(each)).fingerprint for each in (replaced.model, *replaced.dictionaries)] == prints


def fields(each: Any) -> list[Any]:
    """Of a model or dictionary, so that its fingerprint is taken anew."""
    return [getattr(each, name) for name in type(each).__dataclass_fields__]


# ------------------------------------------------------------------------------------------- edge cases


def silent(dictionary: Dictionary) -> Dictionary:
    return changed(dictionary, params=dictionary.params._replace(b_enc=dictionary.params.b_enc - 100))


@pytest.mark.few
@pytest.mark.parametrize("which", ["transcoders", "cross", "residual"])
def test_no_latent_is_active(which: str):
    model = build("llama", torch.float64)
    replaced = attrib.replace(model, [silent(dictionary) for dictionary in ours(SETS[which](model))])
    leaves = replaced.leaves(TOKENS)
    assert not any(map(len, leaves.activations))
    want = forward(model, TOKENS)
    for got in (replaced.forward(leaves), replaced.forward(leaves, effect="total"), replaced.run(TOKENS, leaves.errors)):
        assert_close(got, want)
    for effect in ("direct", "total"):
        function = by_activations(replaced, leaves, 0, lambda at, effect=effect: replaced.forward(at, effect=effect))
        assert jacrev(function)(leaves.activations[0]).shape == (*want.shape, 0)
        assert all(values.shape == (0,) for values in replaced.latents(leaves, effect=effect))
    assert_close(vmap(replaced.run)(leaves.embedded[None])[0], replaced.run(TOKENS))


@each_set
def test_prompts_of_one_token(which: str):
    replaced = put_in("gpt2", which)
    leaves = replaced.leaves(TOKENS[:1])
    assert_close(replaced.forward(leaves), forward(replaced.model, TOKENS[:1]))
    assert_close(replaced.run(TOKENS[:1], leaves.errors), forward(replaced.model, TOKENS[:1]))
    whole = replaced.leaves(TOKENS)
    assert_close(replaced.run(TOKENS[:1]), replaced.run(TOKENS)[:1])  # causal, and alike whatever follows
    for one, all_of in zip(leaves.activations, whole.cuts, strict=True):
        assert_close(one, all_of.latents.value[all_of.latents.position == 0])


def test_of_latents_that_tie_the_first_wins_on_both_ways():
    """Latents in pairs with one encoder column and two decoder rows, and k odd: at most positions a pair ties for the last place."""
    model = build("gpt2", torch.float64)
    site = Site(1, "resid_pre")
    W_enc, W_dec = normal(D_MODEL, 20, dtype=torch.float64, seed=5) / 5, normal(40, D_MODEL, dtype=torch.float64, seed=6) / 3
    tied = from_tensors(site=site, W_enc=W_enc.repeat_interleave(2, 1), W_dec=W_dec, k=7)
    late = lens(model, "topk", "blocks.3.hook_resid_pre").ours
    replaced = attrib.replace(model, [tied, late])
    leaves = replaced.leaves(TOKENS)
    nodes = leaves.cuts[0].latents
    chosen = {*zip(nodes.position.tolist(), nodes.latent.tolist(), strict=True)}
    lonely = [latent for position, latent in chosen if (position, latent ^ 1) not in chosen]
    assert len(lonely) == 10
    assert all(latent % 2 == 0 for latent in lonely)
    want = forward(model, TOKENS)
    assert_close(replaced.forward(leaves), want)
    assert_close(replaced.run(TOKENS, leaves.errors), want)
    x = attrib.capture(model, TOKENS, [site])[site]
    pre = x @ tied.params.W_enc
    dense = torch.zeros_like(pre)
    for p, row in enumerate(pre.tolist()):
        for latent in sorted(range(40), key=lambda i: (-row[i], i))[:7]:
            dense[p, latent] = max(row[latent], 0.0)
    between = attrib.segment(model, site, late.site)(dense @ W_dec)
    end = attrib.segment(model, late.site, model.config.last)(attrib.decode(late, encode(late, between)))
    assert_close(replaced.run(TOKENS), attrib.unembed(model, end))
    assert_close(vmap(replaced.run)(leaves.embedded[None])[0], replaced.run(TOKENS))


def test_the_stream_between_attention_and_mlp():
    """transformers has no module there; the model's own segments do."""
    model = build("llama", torch.float64)
    dictionary = lens(model, "jumprelu", "blocks.2.hook_resid_mid").ours
    x = attrib.capture(model, TOKENS, [dictionary.site])[dictionary.site]
    end = attrib.segment(model, dictionary.site, model.config.last)(attrib.decode(dictionary, encode(dictionary, x)))
    replaced = attrib.replace(model, dictionary)
    assert_close(replaced.run(TOKENS), attrib.unembed(model, end))
    assert_close(replaced.forward(replaced.leaves(TOKENS)), forward(model, TOKENS))


def test_dictionaries_take_the_models_precision():
    model = build("gpt2", torch.float64)
    in_float32 = lens(build("gpt2"), "topk", "blocks.1.hook_resid_pre").ours
    replaced = attrib.replace(model, in_float32)
    assert_close(replaced.forward(replaced.leaves(TOKENS)), forward(model, TOKENS))


def test_what_was_trained_before_a_norms_weights_reads_there():
    model = build("gpt2", torch.float64)
    dictionary = lens(model, "skip_transcoder", "blocks.1.mlp.hook_in").ours
    before = changed(dictionary, config=changed(dictionary.config, hook_name="blocks.1.ln2.hook_normalized"))
    norm = model.params.blocks[1].norm_2
    got = attrib.replace(model, before)
    assert_close(got.run(TOKENS), attrib.replace(model, after_gain(dictionary, norm.weight, norm.bias)).run(TOKENS))
    assert (got.run(TOKENS) - attrib.replace(model, dictionary).run(TOKENS)).abs().max() > 1e-3


# -------------------------------------------------------------------------------------------- refusals


def raw(reads: str, *writes: str, d: int = D_MODEL, seed: int = 0) -> Dictionary:
    W_enc, W_dec = normal(d, 8, dtype=torch.float64, seed=seed), normal(8, d * max(1, len(writes)), dtype=torch.float64, seed=seed)
    return from_tensors(site=f"blocks.{reads}", writes=[f"blocks.{site}" for site in writes], W_enc=W_enc, W_dec=W_dec)


def layer(reads: int, *writes: int) -> Dictionary:
    return raw(f"{reads}.mlp.hook_in", *(f"{site}.hook_mlp_out" for site in writes))


REFUSED: dict[str, tuple[Family, list[Callable[[], Dictionary]], str]] = {
    "one place twice": (
        "gpt2", [lambda: raw("1.hook_resid_pre"), lambda: raw("1.hook_resid_pre", seed=1)],
        r"s\[0\] \(.*, at blocks\.1\.hook_resid_pre\) and dictionaries\[1\] .* both replace blocks\.1\.hook_resid_pre; expected .*Leave",
    ),
    "two names": (
        "gpt2", [lambda: raw("0.hook_resid_post"), lambda: raw("1.hook_resid_pre")],
        r"both replace blocks\.1\.hook_resid_pre; .*\(resid_post of a layer is resid_pre of the next\.\)",
    ),
    "two transcoders": ("gpt2", [lambda: layer(1, 1), lambda: layer(1, 1)], r"both replace blocks\.1\.hook_mlp_out"),
    "two that write one layer": ("gpt2", [lambda: layer(0, 2), lambda: layer(1, 2)], r"both replace blocks\.2\.hook_mlp_out"),
    "an SAE of what a transcoder writes": (
        "gpt2", [lambda: layer(1, 1), lambda: raw("1.hook_mlp_out")], r"both replace blocks\.1\.hook_mlp_out"
    ),
    "a transcoder amid a cross-layer one": ("gpt2", [lambda: layer(1, 1), lambda: layer(0, 0, 1, 2)], r"both replace blocks\.1"),
    "layers that read different kinds": (
        "gpt2", [lambda: layer(0, 0, 1), lambda: raw("1.hook_resid_mid", "1.hook_mlp_out")], r"both replace blocks\.1\.hook_mlp_out"
    ),
    "layers that write where they read": (
        "gpt2", [lambda: raw("0.hook_mlp_out", "0.hook_mlp_out", "1.hook_mlp_out"), lambda: raw("1.hook_mlp_out")],
        r"both replace blocks\.1\.hook_mlp_out",
    ),
    "backwards": ("gpt2", [lambda: layer(1, 0)], r"dictionaries\[0\].*: it reads blocks\.1\.mlp\.hook_in and writes blocks\.0"),
    "one place twice by itself": (
        "gpt2", [lambda: raw("0.mlp.hook_in", "0.hook_resid_post", "1.hook_resid_pre")], r"of which two are the same place"
    ),
    "a layer too many": ("gpt2", [lambda: raw("4.hook_resid_pre")], r"dictionaries\[0\].*blocks\.4\.hook_resid_pre is outside"),
    "another width": ("gpt2", [lambda: layer(1, 1), lambda: raw("2.hook_resid_pre", d=24)], r"dictionaries\[[01]\]: .* of 24, but"),
    "between parallel parts": ("gptj", [lambda: raw("1.hook_resid_mid")], r"dictionaries\[0\].*is only a sum in"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_put_in(case: str):
    family, given, message = REFUSED[case]
    for order in (1, -1):
        with pytest.raises(InputError, match=message):
            attrib.replace(build(family, torch.float64), [make() for make in given[::order]])


@pytest.mark.parametrize(
    "given",
    [
        [layer(0, 0, 1, 2, 3), layer(1, 1, 2, 3), layer(2, 2, 3), layer(3, 3)],
        [layer(3, 3), layer(0, 0, 1, 2, 3), layer(2, 2, 3)],
        [layer(0, 0, 1), layer(1, 1, 2), layer(2, 2, 3), layer(3, 3)],
        [layer(0, 0, 1), layer(2, 2, 3), raw("1.hook_resid_pre"), raw("1.hook_resid_pre", "3.hook_attn_out")],
    ],
    ids=["whole", "one missing", "runs of two", "side by side"],
)
def test_what_can_be_put_in(given: list[Dictionary]):
    model = build("gpt2", torch.float64)
    replaced = attrib.replace(model, given)
    leaves = replaced.leaves(TOKENS)
    assert_close(replaced.forward(leaves), forward(model, TOKENS))
    assert_close(replaced.run(TOKENS, leaves.errors), forward(model, TOKENS))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, at: r.forward(at, sources=[0]), r"sources: \[0\] with effect='direct', where .* Leave it out, or say effect='total'"),
        (lambda r, at: r.forward(at, effect="total", sources=[2]), r"sources: 2; expected numbers of dictionaries, from 0 to 1"),
        (lambda r, at: r.latents(at._replace(cuts=at.cuts[:1])), r"leaves: cuts of 1 dictionaries, but 2 are put in"),
        (lambda r, at: r.run(TOKENS, at.errors[:1]), r"errors: 1 of them, but 2 places are written: blocks\.1\.hook_resid_pre, blocks\.3"),
        (lambda r, at: r.values(at._replace(errors=()), []), r"errors: 0 of them, but 2 places"),
        (lambda r, at: r.values(at, ["blocks.4.hook_z"]), r"sites: blocks\.4\.attn\.hook_z is outside"),
        (lambda r, at: r.leaves(TOKENS[:0]), r"tokens: shape \[0\]; expected one prompt"),
    ],
)
def test_what_cannot_be_asked(call: Callable[[Replacement, Any], Any], message: str):
    replaced = put_in("gpt2", "residual")
    with pytest.raises(InputError, match=message):
        call(replaced, replaced.leaves(TOKENS))
