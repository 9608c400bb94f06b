"""A pass beside a recorded one: of later positions, and with nonlinearities held, against whole passes and hooks."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.types import EXACT, LINEAR, SITE_KINDS, Policy, Site
from attrib.models.transformer import Model, place, walk
from attrib.passes.beside import places_held, record, unembed_beside, walk_beside
from tests.support.builders import ALL_FAMILIES, Family, build, normal, prompt
from tests.support.hooked import hooked
from tests.support.tolerances import ROUNDING, assert_close

STARTS = ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_mlp_out", "blocks.1.mlp.hook_in")
ALL = {Site(layer, kind) for layer in range(4) for kind in SITE_KINDS}
BARE: tuple[Any, ...] = ("gpt2 without norms", "llama without norms and MLPs")
POLICIES = (LINEAR, Policy(norm="frozen"))


def base_of(values: dict[Site, Tensor], start: Site) -> Tensor | None:
    if start.is_residual:
        return None
    return values[Site(start.layer, "resid_mid" if start.kind.startswith("mlp") else "resid_pre")]


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("policy", [EXACT, Policy("frozen", "frozen", "frozen")], ids=str)
def test_at_the_recorded_values_it_is_the_recorded_pass(family: Family, policy: Policy):
    model, ids = build(family, torch.float64), prompt(10)
    recorded = record(model, attrib.embed(model, ids), ALL, patterns=True)
    want = attrib.forward(model, ids)
    for name in STARTS:
        start = Site.parse(name)
        for first in (0, 9):
            rows = slice(first, None)
            base = base_of(recorded.values, start)
            x = recorded.values[start][rows]
            *_, (_, last) = walk_beside(model, recorded, start, x, None if base is None else base[rows], first=first, policy=policy)
            assert_close(unembed_beside(model, recorded, last, first=first, policy=policy), want[rows], ROUNDING, (name, first))


@pytest.mark.parametrize("family", [*ALL_FAMILIES, *BARE])
def test_a_change_of_later_rows_gives_those_rows_of_the_whole_pass(family: Family):
    """With batch dimensions, and for keys before the first row inside and outside of windows."""
    model, ids = build(family, torch.float64), prompt(12)
    recorded = record(model, attrib.embed(model, ids), ALL)
    for name in STARTS if model.config.has_mlps else STARTS[:2]:
        start, first = Site.parse(name), 7
        x, base = recorded.values[start], base_of(recorded.values, start)
        noise = normal(2, 3, len(ids) - first, x.shape[-1], dtype=torch.float64)
        for b in ((1, 2),):
            changed = torch.cat([x[:first], x[first:] + noise[b]])
            *_, (_, want) = walk(model, start, changed, base)
            batch = (x[first:] + noise, None if base is None else base[first:].expand(2, 3, -1, -1))
            *_, (_, got) = walk_beside(model, recorded, start, *batch, first=first)
            assert_close(got[b], want[first:], ROUNDING, name)


@cache
def raw(family: str) -> tuple[Any, Model]:
    """A random HookedTransformer, and attrib's model of it."""
    lens = hooked(family, torch.float64)
    return lens, attrib.from_transformer_lens(lens)


def frozen_hooks(lens: Any, tokens: Tensor, names: tuple[str, ...]) -> list[tuple[str, Any]]:
    """TransformerLens' own hooks that put back what its clean pass had."""
    _, cache = lens.run_with_cache(tokens)
    kept = [name for name in cache if name.endswith(names)]
    return [(name, lambda value, hook: cache[hook.name]) for name in kept]


@pytest.mark.parametrize("family", ["gpt2", "pythia", "qwen3", "gpt-neo"])
@pytest.mark.parametrize(
    ("policy", "held"),
    [
        (Policy(attention="frozen"), ("hook_pattern",)),
        (Policy(norm="frozen"), ("hook_scale",)),
        (LINEAR, ("hook_pattern", "hook_scale")),
        (Policy("frozen", "exact", "frozen"), ("hook_pattern", "hook_mlp_out")),
    ],
    ids=str,
)
def test_what_is_held_is_what_transformer_lens_hooks_hold(family: str, policy: Policy, held: tuple[str, ...]):
    (lens, model), ids = raw(family), prompt(9)
    noise = normal(9, 32, dtype=torch.float64)
    hooks = [*frozen_hooks(lens, ids[None], held), (str(start_of(model)), lambda value, hook: value + noise)]
    with torch.no_grad():
        want = lens.run_with_hooks(ids[None], fwd_hooks=hooks)[0]
    assert_close(changed_logits(model, ids, noise, policy), want, what=policy)


def start_of(model: Model) -> Site:
    return Site(1, "resid_pre") if model.config.parallel else Site(0, "resid_mid")


def changed_logits(model: Model, ids: Tensor, noise: Tensor, policy: Policy) -> Tensor:
    start = start_of(model)
    recorded = record(model, attrib.embed(model, ids), {place(model, start), *places_held(model, policy)}, patterns=True)
    *_, (_, last) = walk_beside(model, recorded, start, recorded.values[start] + noise, policy=policy)
    return unembed_beside(model, recorded, last, policy=policy)


@pytest.mark.few
@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_its_derivative_at_the_recorded_values_is_the_policy_s(family: Family, policy: Policy):
    """Soft caps, norms of queries and keys, and norms behind what is added among what is held."""
    model, ids = build(family, torch.float64), prompt(6)
    start = Site(1, "resid_pre")
    recorded = record(model, attrib.embed(model, ids), {start, *places_held(model, policy)}, patterns=True)
    x, tangent = recorded.values[start], normal(6, 32, dtype=torch.float64)

    def ours(x: Tensor) -> Tensor:
        *_, (_, last) = walk_beside(model, recorded, start, x, policy=policy)
        return unembed_beside(model, recorded, last, policy=policy)

    def theirs(x: Tensor) -> Tensor:
        *_, (_, last) = walk(model, start, x, policy=policy)
        return attrib.unembed(model, last, policy=policy)

    assert_close(torch.func.jvp(ours, (x,), (tangent,))[1], torch.func.jvp(theirs, (x,), (tangent,))[1])
    (by_tape,) = torch.autograd.grad(ours(y := x.clone().requires_grad_())[-1, :5].sum(), y)
    assert_close(by_tape, torch.func.grad(lambda x: theirs(x)[-1, :5].sum())(x))
