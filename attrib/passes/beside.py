"""A pass beside one that was recorded: of later positions alone, and with nonlinearities held at the values that they had there.

What a change at a position moves lies at that position and behind it. The pass of rows first … T - 1 needs of the ones before
nothing but their keys and values, which the record has:

    z_t = softmax(q_t [k°_0 … k°_{first-1} k_first … k_t]^T · scale) [v°_0 … v°_{first-1} v_first … v_t]      ° : as recorded

A frozen nonlinearity (`Policy`) is held at the record's values, and not at those of this pass: patterns and MLP outputs are
taken from it, and a norm has its denominator (the logits' soft cap its scale). Under a frozen policy a norm is affine, so its value is

    f_held(x) = f(x°) + (df at x°, under the policy) (x - x°)

exactly, whatever the kind of norm; its derivative is the one that the policy means everywhere. At x = x° this pass is the recorded one.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.shown import in_one_line
from attrib.core.types import EXACT, Policy, Site
from attrib.models.transformer import (
    Heads,
    Model,
    Projected,
    Put,
    Stream,
    attention_written,
    base_site,
    enter,
    leave,
    mlp_raw,
    place,
    project,
    turned_heads,
    unembed,
    walk,
    weighted,
)
from attrib.passes.packed import ALONE, Group, Packed


@in_one_line
class Recorded(NamedTuple):
    """What a later pass takes from one that was recorded, of one prompt or several."""

    values: dict[Site, Float[Tensor, "positions _"]]
    """By place."""
    keys: dict[int, Float[Tensor, "kv_heads positions d_head"]]
    """By layer, as it attends to them; of one prompt alone."""
    heads: dict[int, Float[Tensor, "kv_heads positions d_head"]]
    """The values of each layer's key heads."""
    patterns: dict[int, tuple[Float[Tensor, "*prompts kv_heads group positions positions"], ...]]
    """By layer, for each group of prompts that stand side by side (see packed.py). Empty where no pattern is to be held."""


def places_held(model: Model, policy: Policy) -> set[Site]:
    """The places whose recorded values a pass under a policy asks for."""
    config, kinds = model.config, []
    if policy.norm == "frozen":
        kinds += ["resid_pre"] if config.parallel else ["resid_pre", "resid_mid"]
        kinds += ["z", "mlp_in"] if config.post_norm else []
    if policy.mlp == "frozen":
        kinds += ["mlp_out"]
    found = {Site(layer, kind) for layer in range(config.n_layers) for kind in kinds}  # type: ignore[arg-type]
    return found | {config.last} if policy.norm == "frozen" else found


def record(
    model: Model,
    x: Float[Tensor, "positions width"],
    places: Iterable[Site],
    *,
    start: Site = Site(0, "resid_pre"),  # noqa: B008
    base: Stream | None = None,
    patterns: bool = False,
    put: Put | None = None,
    packed: Packed = ALONE,
) -> Recorded:
    """Walk from a place on, and keep what stands at some places and every layer's keys and values.

    Args:
        x, start, base, put: as `walk` takes them; where there is a `base`, it is kept too.
        places: of which values are kept, as `place` names them.
        patterns: whether attention patterns are kept.
        packed: how the rows of several prompts lie in `x`. Of several, no keys and values are kept.
    """
    wanted, keys, heads = {*places}, dict[int, Tensor](), dict[int, Tensor]()
    found: dict[int, tuple[Tensor, ...]] = {}

    def attention(model: Model, layer: int, x: Stream, policy: Policy = EXACT) -> Tensor:
        projected, kept = project(model, layer, x), list[Tensor]()

        def of_group(number: int, group: Group) -> Tensor:
            q, k, v = turned_heads(model, layer, Projected(*map(group.take, projected)), policy)
            pattern = group.pattern(model, layer, q, k)
            if patterns:
                kept.append(pattern)
            if packed.is_one:
                keys[layer], heads[layer] = k, v
            return weighted(pattern, v)

        z = packed.by_group(of_group)
        found[layer] = tuple(kept)
        return z

    values = {}
    if base is not None and (at := base_site(start)) is not None:
        values[at] = base
    for site, value in walk(model, start, x, base, put=put, attention=attention):
        if (at := place(model, site)) in wanted:
            values[at] = value
    return Recorded(values, keys, heads, found if patterns else {})


UNRECORDED = Recorded({}, {}, {}, {})
"""Where nothing is held and every row is computed."""


def walk_beside(
    model: Model,
    recorded: Recorded,
    start: Site,
    x: Float[Tensor, "*batch rows width"],
    base: Stream | None = None,
    *,
    first: int = 0,
    policy: Policy = EXACT,
    put: Put | None = None,
    held: Recorded | None = None,
    kept: list[tuple[Tensor, Tensor]] | None = None,
    packed: Packed = ALONE,
) -> Iterator[tuple[Site, Tensor]]:
    """Every site from `start` on with its value, at the positions from `first` on. Where attention is not causal, `first` is 0.

    Args:
        recorded: the pass whose positions before `first` are this one's too.
        x, base: as `attrib.walk` takes them, at the positions from `first` to the last, with any batch dimensions before them.
        policy: what is held.
        put: as `walk` takes it; it is given what the held model has computed.
        held: the pass at whose values nonlinearities are held, with those at `places_held`; None is `recorded`.
        kept: a list to which each layer's keys and values are added, of all positions.
        packed: how the rows of several prompts lie in `x`, whose first rows are all there.
    """
    beside = _Beside(model, recorded, held or recorded, policy, first, start, x if base is None else base, put, kept, packed)
    return walk(model, start, x, base, EXACT, beside.stands, beside.attend)


def unembed_beside(
    model: Model, held: Recorded, x: Float[Tensor, "*batch rows d_model"], *, first: int = 0, policy: Policy = EXACT
) -> Float[Tensor, "*batch rows d_vocab"]:
    """Logits of the last stream at the positions from `first` on; a frozen norm has the denominator of the pass `held`."""
    return read_beside(model, held, partial(unembed, model, policy=policy), x, slice(first, None), policy)


def read_beside(
    model: Model,
    held: Recorded,
    function: Callable[[Tensor], Tensor],
    x: Float[Tensor, "*batch rows d_model"],
    rows: slice | Tensor,
    policy: Policy,
) -> Tensor:
    """What a function of the last stream's rows gives under a policy, its norm held where that is frozen."""
    return affine(function, held.values[model.config.last][rows], x) if policy.norm == "frozen" else function(x)


def affine(function: Callable[[Any], Any], at: Float[Tensor, "*any"], x: Float[Tensor, "*batch"]) -> Tensor:
    """A function by its value and derivative at one point: itself, where it is affine."""
    value, moved = torch.func.jvp(function, (at.expand_as(x).contiguous(),), (x - at,))[:2]
    return value + moved


class _Beside:
    """One such pass under way: the stream that has come up so far, and what is put in the place of what `walk` computes of it."""

    def __init__(
        self,
        model: Model,
        recorded: Recorded,
        held: Recorded,
        policy: Policy,
        first: int,
        start: Site,
        stream: Stream,
        put: Put | None,
        kept: list[tuple[Tensor, Tensor]] | None,
        packed: Packed,
    ) -> None:
        self.model, self.recorded, self.held, self.policy, self.packed = model, recorded, held, policy, packed
        self.first, self.put, self.kept = first, put, kept
        self.start = place(model, start)
        self.pre = self.mid = stream  # what attention and the MLP of this layer read
        self.z = self.mlp_in = stream

    def stands(self, at: Site, value: Tensor) -> Tensor:
        """What stands at a place, from what `walk` has computed there."""
        if at != self.start:
            value = self._held(at, value)
        if self.put is not None:
            value = self.put(at, value)
        match at.kind:
            case "resid_pre":
                self.pre = self.mid = value
            case "resid_mid" if not self.model.config.parallel:
                self.mid = value
            case "z":
                self.z = value
            case "mlp_in":
                self.mlp_in = value
        return value

    def _held(self, at: Site, value: Tensor) -> Tensor:
        model, config, policy = self.model, self.model.config, self.policy
        block = model.params.blocks[at.layer]
        if at.kind == "mlp_out" and policy.mlp == "frozen":
            return self.held.values[at][self.first :].expand_as(value)
        if policy.norm != "frozen":
            return value
        match at.kind:
            case "mlp_in":
                read = Site(at.layer, "resid_pre" if config.parallel else "resid_mid")
                return affine(lambda x: enter(config, block.norm_2, x, policy), self._at(read), self.mid)
            case "attn_out" if config.post_norm:
                return affine(lambda z: attention_written(model, at.layer, z, policy), self._at(Site(at.layer, "z")), self.z)
            case "mlp_out" if config.post_norm:
                given = mlp_raw(model, at.layer, self._at(Site(at.layer, "mlp_in")))
                return affine(lambda x: leave(config, block.post_2, x, policy), given, mlp_raw(model, at.layer, self.mlp_in))
        return value

    def _at(self, site: Site) -> Tensor:
        return self.held.values[site][self.first :]

    def attend(self, model: Model, layer: int, x: Stream, policy: Policy = EXACT) -> Tensor:
        """`z` of a layer; of the normed stream `x` where its norm is not held."""
        config, norm, given = model.config, model.params.blocks[layer].norm_1, None
        if self.policy.norm == "frozen":
            held = self._at(Site(layer, "resid_pre"))
            x = affine(lambda stream: enter(config, norm, stream, self.policy), held, self.pre)
            given = project(model, layer, enter(config, norm, held)) if config.qk_norm != "none" else None
        projected = project(model, layer, x)
        return self.packed.by_group(lambda number, group: self._attended(layer, number, group, projected, given))

    def _attended(self, layer: int, number: int, group: Group, projected: Projected, given: Projected | None) -> Tensor:
        """`z` of one group of prompts, from what is projected here and, where norms of queries and keys are held, in the recorded pass."""
        there = None if given is None else Projected(*map(group.take, given))
        q, k, v = self._turned(layer, Projected(*map(group.take, projected)), there)
        if self.first:
            before = self.recorded.keys[layer][..., : self.first, :], self.recorded.heads[layer][..., : self.first, :]
            k, v = (torch.cat([part.expand(*new.shape[:-2], *part.shape[-2:]), new], -2) for part, new in zip(before, (k, v), strict=True))
        if self.kept is not None:
            self.kept.append((k, v))
        if self.policy.attention == "frozen":
            return weighted(self.held.patterns[layer][number][..., self.first :, :].expand(*v.shape[:-2], -1, -1, -1), v)
        return weighted(group.pattern(self.model, layer, q, k), v)

    def _turned(self, layer: int, projected: Projected, given: Projected | None) -> Heads:
        """The heads apart; the norms of queries and keys held where norms are."""
        at = torch.arange(self.first, self.first + projected.q.shape[-2], device=projected.q.device) if self.first else None
        if given is None:
            return turned_heads(self.model, layer, projected, EXACT, at)

        def turned(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            return tuple(turned_heads(self.model, layer, Projected(q, k, v), self.policy, at))

        old = tuple(part.expand_as(new).contiguous() for part, new in zip(given, projected, strict=True))
        value, moved = torch.func.jvp(turned, old, tuple(new - part for new, part in zip(projected, old, strict=True)))[:2]
        return Heads(*(part + by for part, by in zip(value, moved, strict=True)))
