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
from attrib.engine.blocks.passing import station
from attrib.engine.sweep.cells import Cone, blocks, cells_of
from attrib.engine.sweep.primal import Primal, Seeds, bounds
from attrib.engine.sweep.seeded import Station, fold_rows, layer_mlp, pull_seeded, with_mlp
from attrib.engine.sweep.steps import (
    Flat,
    descend,
    into_heads,
    pull_layer,
    pulled_heads,
    push_attention,
    push_layer,
    spread_down,
    spread_up,
    through_mlp,
)

Jacobians = list[Float[Tensor, "_ _"]]
"""[targets, sources] of each prompt of a pack."""


def contract(primal: Primal, cone: Cone, rows: Flat, seeded: Seeds, out: Sequence[Tensor]) -> None:
    """Add rows[r, t] · seeded[c], for every seed c at position t of the cone, to `out` [rows, seeds] of each prompt."""
    at = bounds(primal, seeded)
    for block in blocks(cone.bands, primal.pieces.band):
        first, begins, row = seeded.first(block.prompt), at[block.prompt], block.bands[0].row
        into, rectangle = out[block.prompt][row : row + block.rows], block.gather(rows)
        for t in range(block.begin, block.end):
            if begins[t] < begins[t + 1]:
                seeds = seeded.value[first + begins[t] : first + begins[t + 1]]
                into[:, begins[t] : begins[t + 1]] += rectangle[t - block.begin] @ seeds.T


def contract_seeded(primal: Primal, targets: Seeds, sources: Seeds, out: Sequence[Tensor]) -> None:
    """The same where both sides are seeded: only rows at one position meet."""
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
    primal: Primal, stop: Site, targets: Seeds, down: Cone, sources: Mapping[Site, Seeds], found: Mapping[Site, Jacobians] | None = None
) -> Mapping[Site, Jacobians]:
    """Cotangents go down, and are read out at every site of `sources` that they pass.

    Args:
        found: what is read at each site is added to; None is zeros. Sources that write at several sites have one for all.
    """
    found = found or {site: empty(primal, targets, seeds) for site, seeds in sources.items()}
    left = dict(sources)

    def here(at: Station) -> list[tuple[Seeds, Jacobians]]:
        return [(left.pop(site), found[site]) for site in list(left) if station(site) == station(at.site)]

    for at in pull_seeded(primal, stop, targets):
        for seeds, out in here(at):
            contract_seeded(primal, targets._replace(value=at.rows), seeds, out)
        if not left:
            return found
    layer = at.site.layer
    g = spread_down(primal, layer, targets._replace(value=at.rows), at.stream, down)
    del at  # its rows are in the cone
    bottom = min(left, key=lambda site: site.depth)
    low = station(bottom)
    in_heads = low.kind == "resid_pre" and low.layer < layer and heads_pay(primal, down, left[bottom])
    wanted = [site for site in left if not (in_heads and station(site) == low)]
    if in_heads:
        wanted.append(Site(low.layer, "resid_post" if primal.model.config.parallel else "resid_mid"))
    for at in descend(primal, Site(layer, "resid_pre"), down, g, wanted):
        for seeds, out in here(at):
            contract(primal, down, at.rows, seeds, out)
        if at.stream is not None:
            g = at.stream  # which may have moved to other memory
    for site, seeds in left.items():
        read_in_head_space(primal, low.layer, down, g, seeds, found[site])
    return found


def heads_pay(primal: Primal, cone: Cone, sources: Seeds) -> bool:
    """Whether pushing the sources into head space is fewer products than pulling the cone out of it."""
    at = bounds(primal, sources)
    met = sum(band.rows * (at[band.prompt][band.end] - at[band.prompt][band.begin]) for band in cone.bands)
    return met + len(sources.value) * primal.model.config.d_model < cone.cells * primal.model.config.d_model


def read_in_head_space(primal: Primal, layer: int, cone: Cone, g: Flat, sources: Seeds, out: Jacobians) -> None:
    """Read out at resid_pre with g at resid_mid: sources are pushed through norm and projections, once for all rows.

    In a parallel block g is that of resid_post too, and sources pass the MLP at their own position.
    """
    beside = with_mlp(primal, layer, sources) if primal.model.config.parallel else sources
    seeds = sources._replace(value=torch.cat([beside.value, into_heads(primal, layer, sources)], dim=1))
    for part, bands, heads in pulled_heads(primal, layer, cone, g):
        contract(primal, Cone(tuple(bands)), torch.cat([g[part], heads], dim=1), seeds, out)
        del heads


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


def forward(primal: Primal, stop: Site, targets: Seeds, sources: Seeds, up: Cone, x: Flat) -> Jacobians:
    """Tangents `x`, lifted to the layer of the last attention, are read out against the seeded targets.

    `stop` lies behind at least one attention, and is not itself a part of one (z, attn_out).
    """
    found = empty(primal, targets, sources)
    met = "resid_post" if primal.model.config.parallel else "resid_mid"
    seeded = next(at for at in pull_seeded(primal, stop, targets) if at.site.kind == met)
    contract(primal, up, x, targets._replace(value=seeded.rows), [jacobian.T for jacobian in found])
    return found


def both(primal: Primal, stop: Site, targets: Seeds, down: Cone, sources: Seeds, up: Cone, x: Flat, layer: int) -> Jacobians:
    """Cotangents go down to the MLP of `layer`, below at least one attention, and meet tangents `x` lifted to it."""
    found = empty(primal, targets, sources)
    *_, at = pull_seeded(primal, stop, targets)
    top = at.site.layer
    g = spread_down(primal, top, targets._replace(value=at.rows), at.stream, down)
    del at  # its rows are in the cone
    for above in range(top - 1, layer, -1):
        g = pull_layer(primal, above, down, g)
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
