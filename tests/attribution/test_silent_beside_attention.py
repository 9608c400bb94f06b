"""Parallel blocks, whose MLP reads the stream beside attention: what is written there reaches what is read there."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import EXACT, LINEAR, Direction, InputError, Policy, Site
from attrib.dictionaries.dictionary import Dictionary, encode
from attrib.models.transformer import Model, width
from tests.support.builders import D_MODEL, Family, build, normal, prompt
from tests.support.tolerances import assert_close

TOKENS = prompt(6)
PARALLEL: tuple[Family, ...] = ("gpt_neox", "gptj", "phi")
WAYS = [(effect, policy, error) for effect in ("direct", "total") for policy in (EXACT, LINEAR) for error in (True, False)]
families = pytest.mark.parametrize("family", PARALLEL)


def dictionary(model: Model, reads: Site, writes: list[Site], seed: int, has_skip: bool = False) -> Dictionary:
    d_in, d_out, skip = width(model.config, reads), sum(width(model.config, at) for at in writes or [reads]), {}
    if has_skip:
        skip = {"W_skip": normal(d_in, d_out, dtype=torch.float64, seed=seed) / 8}

    def noise(number: int, *shape: int) -> Tensor:
        return normal(*shape, dtype=torch.float64, seed=10 * seed + number) / 4

    return from_tensors(
        site=reads, writes=writes, W_enc=noise(0, d_in, 20), b_enc=noise(1, 20), W_dec=noise(2, 20, d_out), b_dec=noise(3, d_out), **skip
    )


def spread(model: Model) -> Dictionary:
    """A layer of a cross-layer transcoder that writes what three layers' MLPs do."""
    return dictionary(model, Site(0, "mlp_in"), [Site(layer, "mlp_out") for layer in range(3)], 1)


def by_replacing(
    model: Model, source: Dictionary, cuts: list[Dictionary], read: Callable[[dict[Site, Tensor]], Tensor], site: Site, way: Any
):
    """The Jacobian of what is read at a site of the plain pass with all of them in it."""
    effect, policy, error = way
    replaced = attrib.replace(model, [source, *cuts], policy=policy)
    leaves = replaced.leaves(TOKENS)
    if not error:
        written = {at.depth for at in source.writes}
        errors = (e * 0 if at.depth in written else e for at, e in zip(replaced.written, leaves.errors, strict=True))
        leaves = leaves._replace(errors=tuple(errors))
    others = leaves.activations[1:]

    def function(values: Tensor) -> Tensor:
        at = leaves.with_activations((values, *others))
        return read(replaced.values(at, [site], effect=effect, sources=(0,) if effect == "total" else ()))

    return jacrev(function)(leaves.activations[0])


@pytest.mark.few
@families
def test_a_direction_where_the_source_itself_writes_is_its_decoder(family: Family):
    model = build(family, torch.float64)
    source, v = spread(model), normal(D_MODEL, dtype=torch.float64)
    for layer, (effect, policy, error) in product(range(3), WAYS):
        logits, options = Direction(v, Site(layer, "mlp_out")), {"effect": effect, "policy": policy, "error": error}
        edges = attrib.latent_to_logit(model, source, TOKENS, logits=logits, positions=[2, -1], **options)
        part = source.params.W_dec[:, layer * D_MODEL : (layer + 1) * D_MODEL][edges.sources.latent] @ v
        at_same_position = edges.sources.position == edges.targets.position[:, None]
        assert_close(edges.dense(0), part.where(at_same_position, 0), what=(layer, effect, policy, error))
        assert edges.dense(0).any(1).all()


@pytest.mark.few
@families
def test_what_reads_where_the_source_writes(family: Family):
    """A dictionary that reads there and writes elsewhere."""
    model = build(family, torch.float64)
    source = spread(model)
    for number, way in enumerate(WAYS):
        site = Site(1 + number % 2, "mlp_out")
        target = dictionary(model, site, [Site(3, "resid_post")], 20 + number)
        edges = attrib.latent_to_latent(model, source, target, TOKENS, effect=way[0], policy=way[1], error=way[2])
        at = edges.targets.position, edges.targets.latent
        want = by_replacing(model, source, [], lambda seen, t=target, s=site, at=at: encode(t, seen[s])[at], site, way)
        assert_close(edges.dense(0), want, what=(site, way))
        assert want.abs().max() > 0.01


def sources(model: Model) -> Iterator[Dictionary]:
    """Some that write one place within a block, and some that write at several."""
    for number, kind in enumerate(("resid_pre", "z", "attn_out", "mlp_in", "mlp_out")):
        yield dictionary(model, Site(1, kind), [], 30 + number)
    yield spread(model)
    yield dictionary(
        model,
        Site(1, "resid_pre"),
        [Site(1, "attn_out"), Site(1, "mlp_out"), Site(2, "mlp_in")],
        40,
        has_skip=True,
    )
    yield dictionary(model, Site(0, "attn_out"), [Site(1, "mlp_in"), Site(1, "mlp_out"), Site(2, "resid_pre")], 41)


@pytest.mark.long
@families
def test_every_place_of_a_block_from_every_source(family: Family):
    """With and without cuts among what the MLP reads and writes; where nothing comes through, that is said."""
    model = build(family, torch.float64)
    cuts: dict[str, list[Dictionary]] = {
        "none": [],
        "mlp_in": [dictionary(model, Site(2, "mlp_in"), [], 50)],
        "transcoder": [dictionary(model, Site(2, "mlp_in"), [Site(2, "mlp_out")], 51, has_skip=True)],
        "from attention": [dictionary(model, Site(2, "attn_out"), [Site(2, "mlp_out")], 52)],
    }
    answered, number = 0, PARALLEL.index(family)
    for source, layer, kind in product(sources(model), (1, 2), ("z", "attn_out", "mlp_in", "mlp_out", "resid_post")):
        number += 1
        if number % 2:
            continue
        which, way, site = list(cuts)[number // 2 % 4], (*WAYS, ("direct", Policy(mlp="frozen"), True))[number // 2 % 9], Site(layer, kind)
        vector = normal(width(model.config, site), dtype=torch.float64, seed=number)
        call = {"logits": Direction(vector, site), "positions": [0, -1], "effect": way[0], "policy": way[1], "error": way[2]}
        try:
            edges = attrib.latent_to_logit(model, source, TOKENS, cuts=cuts[which], **call)
        except InputError as refused:
            assert "not after the source's" in str(refused) or "both replace" in str(refused)  # noqa: PT017
            continue
        want = by_replacing(model, source, cuts[which], lambda seen, v=vector, s=site: seen[s][[0, -1]] @ v, site, way)
        assert_close(edges.dense(0), want, what=(source.writes, site, which, way))
        plan = attrib.plan(model, source, call.pop("logits"), TOKENS, cuts=cuts[which], **call)
        assert plan.flops >= 0
        answered += 1
    assert answered > 20


@pytest.mark.few
@families
def test_what_attention_writes_is_no_source_of_the_mlp_beside_it(family: Family):
    """It is refused, naming both places as they were given."""
    model = build(family, torch.float64)
    for kind in ("z", "attn_out"):
        source, target = dictionary(model, Site(1, kind), [], 60), dictionary(model, Site(1, "mlp_out"), [], 61)
        with pytest.raises(InputError, match=r"target: blocks.1.hook_mlp_out is not after the source's blocks.1.* stands beside attention"):
            attrib.latent_to_latent(model, source, target, TOKENS)
    source, target = dictionary(model, Site(1, "mlp_in"), [], 62), dictionary(model, Site(1, "mlp_out"), [], 63)
    assert attrib.latent_to_latent(model, source, target, TOKENS).gradient.abs().max() > 0.01  # this one is


def test_parts_of_different_widths_are_refused():
    """A decoder's parts have one width: heads and stream that differ cannot be told apart in it."""
    model = build("phi", torch.float64)
    z, out = Site(1, "z"), Site(1, "mlp_out")
    assert width(model.config, z) != D_MODEL
    made = dictionary(model, Site(1, "resid_pre"), [z, out], 70)
    with pytest.raises(InputError, match=r"source: .* writes vectors of 36, but tiny-phi has 40 at blocks.1.attn.hook_z"):
        attrib.latent_to_logit(model, made, TOKENS)


def test_what_writes_before_it_reads_is_refused_alone_too():
    model = build("gpt2", torch.float64)
    made = dictionary(model, Site(1, "resid_post"), [Site(1, "mlp_out")], 71)
    with pytest.raises(InputError, match=r"source .*reads blocks.1.hook_resid_post and writes blocks.1.hook_mlp_out, which .* earlier"):
        attrib.latent_to_logit(model, made, TOKENS)


@pytest.mark.few
@families
@pytest.mark.parametrize("begins", ["z", "attn_out"])
def test_a_path_from_attention_to_the_mlp_beside_it_ends_where_a_cut_brought_it(family: Family, begins: Any):
    """Nothing comes from the one to the other but through the cut."""
    model = build(family, torch.float64)
    source, v = dictionary(model, Site(1, begins), [], 60), normal(D_MODEL, dtype=torch.float64)
    cut = dictionary(model, Site(1, "attn_out"), [Site(1, "mlp_in")], 61)
    for way in WAYS:
        site = Site(1, "mlp_out")
        options = {"effect": way[0], "policy": way[1], "error": way[2]}
        edges = attrib.latent_to_logit(model, source, TOKENS, cuts=cut, logits=Direction(v, site), positions="all", **options)
        want = by_replacing(model, source, [cut], lambda seen: seen[Site(1, "mlp_out")] @ v, site, way)
        assert_close(edges.dense(0), want, what=way)
        assert bool(want.any()) == (way[0] == "total")
