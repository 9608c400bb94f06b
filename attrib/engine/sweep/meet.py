"""Jacobians of a pack of prompts: where cotangents and tangents meet, and the ways down and up to that place.

`reverse`, `forward` and `both` give the same numbers and differ in cost alone; choose.py chooses. Each returns, for
every prompt of the pack, the rows of its targets by the columns of its sources.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.types import Site
from attrib.engine.blocks.norm_mlp import fold_space
from attrib.engine.blocks.passing import NOTHING, Between, station
from attrib.engine.sweep.cells import Cone, cells_of, rectangles
from attrib.engine.sweep.compute import Down
from attrib.engine.sweep.primal import Primal, Seeds, attentions_between, bounds
from attrib.engine.sweep.seeded import fold_rows, layer_mlp, with_mlp
from attrib.engine.sweep.steps import Flat, into_heads, pulled_heads, push_attention, push_layer, spread_up, through_mlp

Jacobians = list[Float[Tensor, "_ _"]]
"""[targets, sources] of each prompt of a pack."""


def contract(primal: Primal, cone: Cone, rows: Flat, seeded: Seeds, out: Sequence[Tensor]) -> None:
    """Add rows[r, t] · seeded[c], for every seed c at position t of the cone, to `out` [rows, seeds] of each prompt."""
    at = bounds(primal, seeded)
    for block in rectangles(cone.bands, primal.pieces.band):
        first, begins, row = seeded.first(block.prompt), at[block.prompt], block.bands[0].row
        into, rectangle = out[block.prompt][row : row + block.rows], block.gather(rows)
        for t in range(block.begin, block.end):
            if begins[t] < begins[t + 1]:
                seeds = seeded.value[first + begins[t] : first + begins[t + 1]]
                into[:, begins[t] : begins[t + 1]] += rectangle[t - block.begin] @ seeds.T


def contract_seeded(primal: Primal, targets: Seeds, sources: Seeds, out: Sequence[Tensor]) -> None:
    """Contract where both sides are seeded: only rows at one position meet."""
    at_target, at_source = bounds(primal, targets), bounds(primal, sources)
    for prompt, (rows, columns) in enumerate(zip(at_target, at_source, strict=True)):
        first_row, first_column = targets.first(prompt), sources.first(prompt)
        for (r0, r1), (c0, c1) in zip(pairwise(rows), pairwise(columns), strict=True):
            g, x = targets.value[first_row + r0 : first_row + r1], sources.value[first_column + c0 : first_column + c1]
            out[prompt][r0:r1, c0:c1] += g @ x.T


def empty(primal: Primal, targets: Seeds, sources: Seeds) -> Jacobians:
    """Zeros, which stay where a target cannot see a source."""
    zeros = partial(targets.value.new_zeros, dtype=primal.model.dtype)
    return [zeros((rows, columns)) for rows, columns in zip(targets.counts, sources.counts, strict=True)]


def reverse(
    primal: Primal,
    stop: Site,
    targets: Seeds,
    down: Cone,
    sources: Mapping[Site, Seeds],
    found: Mapping[Site, Jacobians] | None = None,
    between: Between = NOTHING,
) -> Mapping[Site, Jacobians]:
    """Cotangents go down, through what stands between, and are read out at every site of `sources` that they pass.

    Args:
        found: what is read at each site is added to; None is zeros. Sources that write at several sites have one for all.
    """
    found = found or {site: empty(primal, targets, seeds) for site, seeds in sources.items()}
    low = station(min(sources, key=lambda site: site.depth))
    above = [site for site in sources if station(site) != low]

    def at(place: Site) -> list[tuple[Seeds, Jacobians]]:
        return [(seeds, found[site]) for site, seeds in sources.items() if station(site) == place]

    def read(place: Site, rows: Flat, _: bool) -> None:
        for seeds, out in at(place):
            if way.is_spread:
                contract(primal, down, rows, seeds, out)
            else:
                contract_seeded(primal, targets._replace(value=rows), seeds, out)

    def read_heads(layer: int, stream: Flat, z: Flat | None) -> None:
        read_in_head_space(primal, layer, down, stream, at(low), z)

    # in head space the whole of the lowest layer is passed at once, so nothing may be written there that sources would pass
    is_open = not between.passing and all(site.layer in primal.shut_mlps for site in between.held)
    can = is_open and low.kind == "resid_pre" and len(attentions_between(low, stop)) > 1
    pays = can and all(heads_pay(primal, down, seeds) for seeds, _ in at(low))
    way = Down(primal, stop, down, above, read, brought=[low], between=between, read_heads=read_heads if pays else None)
    way.seeded(targets)
    return found


def pulled(primal: Primal, stop: Site, targets: Seeds, down: Cone, to: Site, between: Between) -> Flat | None:
    """Cotangents at a place below `stop`: on their cone, or each at its own position where no attention is between; None is zeros."""
    found: list[Flat] = []
    Down(primal, stop, down, (), lambda _, rows, __: found.append(rows), brought=[to], between=between).seeded(targets)
    return found[0] if found else None


def heads_pay(primal: Primal, cone: Cone, sources: Seeds) -> bool:
    """Whether pushing the sources into head space is fewer products than pulling the cone out of it."""
    at = bounds(primal, sources)
    met = sum(band.rows * (at[band.prompt][band.end] - at[band.prompt][band.begin]) for band in cone.bands)
    return met + len(sources.value) * primal.model.config.d_model < cone.cells * primal.model.config.d_model


def read_in_head_space(
    primal: Primal, layer: int, cone: Cone, g: Flat, sources: Sequence[tuple[Seeds, Jacobians]], z: Flat | None = None
) -> None:
    """Read out at resid_pre with g at resid_mid, and z if it is known: sources are pushed through norm and projections, once for all rows.

    In a parallel block g is that of resid_post too, and sources pass the MLP at their own position.

    Args:
        sources: sets of them, each with the Jacobian that is added to.
    """
    pushed = []
    for seeds, out in sources:
        beside = with_mlp(primal, layer, seeds) if primal.model.config.parallel else seeds
        pushed.append((seeds._replace(value=torch.cat([beside.value, into_heads(primal, layer, seeds)], dim=1)), out))
    for part, bands, heads in pulled_heads(primal, layer, cone, g, z):
        rows = torch.cat([g[part], heads], dim=1)
        for seeds, out in pushed:
            contract(primal, Cone(tuple(bands)), rows, seeds, out)
        del heads, rows


def lift(primal: Primal, start: Site, sources: Seeds, up: Cone, layer: int) -> Flat:
    """Tangents of sources seeded at the `resid_pre` of an attention's layer, over their cone at the resid_mid of `layer`.

    In parallel blocks at its resid_post: there is no stream between attention and MLP that would be met.
    """
    if primal.model.config.parallel:
        x = spread_up(primal, start.layer, sources, up, with_mlp(primal, start.layer, sources))
        for above in range(start.layer + 1, layer + 1):
            x = push_layer(primal, above, up, x)
        return x
    x = spread_up(primal, start.layer, sources, up)
    for below in range(start.layer, layer):
        through_mlp(primal, below, up, x, up=True)
        push_attention(primal, below + 1, up, x)
    return x


def forward(
    primal: Primal, stop: Site, targets: Seeds, down: Cone, sources: Seeds, up: Cone, x: Flat, between: Between = NOTHING
) -> Jacobians:
    """Tangents `x`, lifted to the layer of the last attention, are read out against the seeded targets.

    `stop` lies behind at least one attention, and is not itself a part of one (z, attn_out).
    """
    found = empty(primal, targets, sources)
    last = attentions_between(Site(0, "resid_pre"), stop)[-1]
    met = Site(last, "resid_post" if primal.model.config.parallel else "resid_mid")
    if (rows := pulled(primal, stop, targets, down, met, between)) is not None:
        contract(primal, up, x, targets._replace(value=rows), [jacobian.T for jacobian in found])
    return found


def both(
    primal: Primal,
    stop: Site,
    targets: Seeds,
    down: Cone,
    sources: Seeds,
    up: Cone,
    x: Flat,
    layer: int,
    between: Between = NOTHING,
) -> Jacobians:
    """Cotangents go down to the MLP of `layer`, below at least one attention, and meet tangents `x` lifted to it."""
    found = empty(primal, targets, sources)
    if (g := pulled(primal, stop, targets, down, Site(layer, "resid_post"), between)) is not None:
        meet_at_mlp(primal, layer, down, g, up, x, found)
    return found


def meet_at_mlp(primal: Primal, layer: int, down: Cone, g: Flat, up: Cone, x: Flat, out: Jacobians) -> None:
    """Σ_t g[j, t] · (∂resid_post / ∂resid_mid)[t] · x[i, t]: at each position the fewer rows go through the MLP.

    Where nothing moves through the MLP, or tangents have passed it beside attention, they meet as they are.
    """
    passes = primal.passes_mlp(layer) and not primal.model.config.parallel
    mlp, pays, space = layer_mlp(primal, layer) if passes else None, fold_rows(primal.model.config), None
    most = [max(max(cone.rows_at(b, length)) for b, length in enumerate(primal.lengths)) for cone in (down, up)]
    gathered = [flat.new_empty(rows, flat.shape[1]) for flat, rows in zip((g, x), most, strict=True)]
    for prompt, length in enumerate(primal.lengths):
        first = primal.first(prompt)
        g_cells, x_cells = (cells_of(cone, prompt, length, g.device) for cone in (down, up))
        for t in range(length):
            (low, _), (left, _) = g_cells.alive[t], x_cells.alive[t]
            here = zip((g, x), (g_cells.at(t), x_cells.at(t)), gathered, strict=True)
            cotangents, tangents = (torch.index_select(flat, 0, cells, out=into[: len(cells)]) for flat, cells, into in here)
            if not len(cotangents) or not len(tangents):
                continue
            is_up = len(tangents) < len(cotangents)
            rows = tangents if is_up else cotangents
            at = slice(first + t, first + t + 1)
            if mlp is None:
                moved = rows
            elif len(rows) > pays:
                space = space or fold_space(mlp.weights)
                M = mlp.fold(at, space)
                moved = rows @ (M.T if is_up else M)
            else:
                moved = rows + mlp.change(rows[None], at, is_up)[0]
            g_t, x_t = (cotangents, moved) if is_up else (moved, tangents)
            block = out[prompt][low : low + len(g_t), left : left + len(x_t)]
            if block.dtype == g_t.dtype:
                torch.addmm(block, g_t, x_t.T, out=block)
            else:  # a sweep of few digits adds up in many
                block += g_t @ x_t.T
