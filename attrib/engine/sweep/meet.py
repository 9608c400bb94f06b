"""Jacobians of a pack of prompts: where cotangents and tangents meet, and the ways down and up to that place.

`reverse`, and `meet` wherever it is that tangents are lifted to, give the same numbers and differ in cost alone; choose.py chooses.
Both return, for every prompt of the pack, the rows of its targets by the columns of its sources.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.devices import to_device
from attrib.core.types import Site
from attrib.engine.blocks.kernels import read_out
from attrib.engine.blocks.norm_mlp import fold_space
from attrib.engine.blocks.passing import NOTHING, Between, place_of
from attrib.engine.blocks.product import add_product, product
from attrib.engine.sweep.cells import Band, Cells, Cone, alive_rows, cells_of, even, read_runs, rows_over, together
from attrib.engine.sweep.compute import Down
from attrib.engine.sweep.primal import Primal, Seeds, attentions_between
from attrib.engine.sweep.seeded import LayerMLP, fold_rows, layer_mlp, with_mlp
from attrib.engine.sweep.steps import Flat, head_width, into_heads, pulled_heads
from attrib.engine.sweep.up import Up

Jacobians = list[Float[Tensor, "_ _"]]
"""[targets, sources] of each prompt of a pack."""


class Lifted(NamedTuple):
    """Tangents at the end of their way up."""

    way: Up
    """With what waits in dictionaries, and where rows lie."""
    rows: Flat | None
    """What the model brings to `way.to`; None is zeros."""


def contract(primal: Primal, cone: Cone, rows: Flat, sources: Sequence[tuple[Seeds, Sequence[Tensor]]]) -> None:
    """Add rows[r, t] · seeded[c], for every seed c at position t of the cone, to [rows, seeds] of each prompt, for some sets of seeds.

    The rows that live at a position are gathered once for all sets, in pieces that a processor's cache holds.
    """
    by_kernel = primal.impl == "triton" and rows.dtype != torch.float64  # whose sums are in float32
    for prompt, length in enumerate(primal.lengths):
        bands = [band for band in cone.bands if band.prompt == prompt]
        if not bands:
            continue
        if primal.pieces.span > 1 and not by_kernel:
            alive = alive_rows(bands, length)
            for seeded, out in sources:
                _contract_wide(primal, prompt, alive, bands, rows, seeded, out[prompt])
            continue
        cells, before = cells_of(cone, prompt, length, rows.device), bands[0].row  # rows of the prompt that this cone is without
        if by_kernel:
            _contract_in_place(prompt, cells, before, rows, sources)
            continue
        for t, (first, end) in enumerate(cells.alive):
            there = list[tuple[Tensor, Tensor]]()
            for seeded, out in sources:
                low, high = seeded.begins[prompt][t : t + 2]
                if low < high:
                    there.append((seeded.value[(start := seeded.first(prompt)) + low : start + high].T, out[prompt][:, low:high]))
            size = even(end - first, primal.pieces.chunk)
            for begin in range(first, end, size) if there else ():
                upto = min(begin + size, end)
                here = rows.index_select(0, cells.at(t, begin - before, upto - before))
                for directions, into in there:
                    add_rows(here, directions, into[begin:upto])
                del here  # a piece is gone before the next is gathered: see sizes.py


def _contract_in_place(prompt: int, cells: Cells, before: int, rows: Flat, sources: Sequence[tuple[Seeds, Sequence[Tensor]]]) -> None:
    """`contract` by the kernel, of all positions at once; `before` are the prompt's rows that come before those of `cells`."""
    alive = [(first - before, end - before) if first < end else (0, 0) for first, end in cells.alive]
    for seeded, out in sources:
        own = seeded.first(prompt)
        seeds, into = seeded.value[own : own + seeded.counts[prompt]], out[prompt][before : before + len(cells.start)]
        read_out(rows, cells.start, cells.step, alive, seeded.begins[prompt], seeds, into)


def _contract_wide(
    primal: Primal, prompt: int, alive: Sequence[tuple[int, int]], bands: Sequence[Band], rows: Flat, seeded: Seeds, out: Tensor
) -> None:
    """`contract` of several positions at once, with as many seeds at each as at the one that has most."""
    begins, value, most = seeded.begins[prompt], seeded.value, primal.pieces.chunk
    for begin, end, widest in read_runs(primal.pieces.span, alive, begins):
        (first, last), low, high, positions = alive[begin], begins[begin], begins[end], end - begin
        own = seeded.first(prompt)
        here, is_filled = value[own + low : own + high], widest * positions > high - low
        if is_filled:
            filled = [own + min(begins[t] + n, begins[-1] - 1) for t in range(begin, end) for n in range(widest)]
            chosen = [(t - begin) * widest + n for t in range(begin, end) for n in range(begins[t + 1] - begins[t])]
            into_filled, into_chosen = (to_device(numbers, value.device) for numbers in (filled, chosen))
            here = value.index_select(0, into_filled)
        directions = here.view(positions, widest, -1).mT
        size = even(last - first, max(1, most // positions))
        for row in range(first, last, size):
            upto = min(row + size, last)
            there = rows_over(bands, rows, begin, end, row, upto)
            into = out[row:upto, low:high]
            if not is_filled and out.dtype == there.dtype:
                by_position = into.unflatten(1, (positions, widest)).transpose(0, 1)
                torch.baddbmm(by_position, there, directions, out=by_position)
            else:
                found = there.new_empty(upto - row, positions * widest)
                torch.bmm(there, directions, out=found.unflatten(1, (positions, widest)).transpose(0, 1))
                into += found.index_select(1, into_chosen) if is_filled else found
                del found
            del there  # a piece is gone before the next is gathered: see sizes.py


def add_rows(a: Float[Tensor, "rows inner"], w: Float[Tensor, "inner width"], out: Float[Tensor, "rows width"]) -> None:
    """Add `a @ w` to `out`."""
    if out.dtype == a.dtype:
        add_product(a, w, out)
    else:  # a sweep of few digits adds up in many
        out += a @ w


def contract_seeded(primal: Primal, targets: Seeds, sources: Seeds, out: Sequence[Tensor]) -> None:
    """Contract where both sides are seeded: only rows at one position meet."""
    for prompt, (rows, columns) in enumerate(zip(targets.begins, sources.begins, strict=True)):
        first_row, first_column = targets.first(prompt), sources.first(prompt)
        for (r0, r1), (c0, c1) in zip(pairwise(rows), pairwise(columns), strict=True):
            g, x = targets.value[first_row + r0 : first_row + r1], sources.value[first_column + c0 : first_column + c1]
            add_rows(g, x.T, out[prompt][r0:r1, c0:c1])


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
    low = place_of(min(sources, key=lambda site: site.depth))
    above = [site for site in sources if place_of(site) != low]

    def at(place: Site) -> list[tuple[Seeds, Jacobians]]:
        return [(seeds, found[site]) for site, seeds in sources.items() if place_of(site) == place]

    def read(place: Site, rows: Flat, is_spread: bool) -> None:
        for seeds, out in at(place):
            if is_spread:
                contract(primal, down, rows, [(seeds, out)])
            else:
                contract_seeded(primal, targets._replace(value=rows), seeds, out)

    def read_heads(layer: int, stream: Flat, z: Flat | None) -> None:
        read_in_head_space(primal, layer, down, stream, at(low), z)

    # in head space the whole of the lowest layer is passed at once, so nothing may be written there that sources would pass
    is_open = not between.passing and all(site.layer in primal.shut_mlps for site in between.held)
    can = is_open and low.kind == "resid_pre" and len(attentions_between(low, stop)) > 1
    pays = can and all(heads_pay(primal, down, seeds) for seeds, _ in at(low))
    Down(primal, stop, down, above, read, brought=[low], between=between, read_heads=read_heads if pays else None).seeded(targets)
    return found


def heads_pay(primal: Primal, cone: Cone, sources: Seeds) -> bool:
    """Whether pushing the sources into head space is fewer products than pulling the cone out of it."""
    at = sources.begins
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
    pushed, d_model = [], g.shape[1]
    for seeds, out in sources:
        beside = with_mlp(primal, layer, seeds) if primal.model.config.parallel else seeds
        pushed.append((seeds._replace(value=torch.cat([beside.value, into_heads(primal, layer, seeds)], dim=1)), out))
    largest = max((part.stop - part.start for part, _ in cone.chunks(primal.pieces.chunk)), default=0)
    both = g.new_empty(largest, d_model + head_width(primal))
    for part, bands, heads in pulled_heads(primal, layer, cone, g, z, into=both[:, d_model:]):
        rows = both[: len(heads)]
        rows[:, :d_model] = g[part]
        contract(primal, Cone(tuple(bands)), rows, pushed)


def lift(primal: Primal, start: Site, sources: Mapping[Site, Seeds], up: Cone, to: Site, between: Between = NOTHING) -> Lifted:
    """Tangents of sources at `start`, and at what else they write below it, go up to `to`, through what stands between."""
    way = Up(primal, start, sources, up, to, between)
    rows = way.climb()
    return Lifted(way, rows)


def meet(
    primal: Primal,
    stop: Site,
    targets: Seeds,
    down: Cone,
    sources: Mapping[Site, Seeds],
    lifted: Lifted,
    place: Site,
    between: Between = NOTHING,
) -> Jacobians:
    """Cotangents go down to tangents that have been lifted, and meet them.

    What tangents do not pass is left to cotangents: they are read out at what sources write above, and in a dictionary that reads
    below and writes above, both sides meet in its terms.

    Args:
        place: where cotangents come down to; as `place_of` names it. Where tangents have come to another, an MLP lies between.
    """
    found, up = empty(primal, targets, next(iter(sources.values()))), lifted.way
    layer = None if place == up.to else up.to.layer
    above = {site: seeds for site, seeds in sources.items() if site.depth > place.depth}
    met: list[Flat] = []

    def read(site: Site, rows: Flat, is_spread: bool) -> None:  # which knows nothing of `way`: a cycle would keep all its rows
        if site == place:
            met.append(rows)
        elif is_spread:
            contract(primal, down, rows, [(above[site], found)])
        else:
            contract_seeded(primal, targets._replace(value=rows), above[site], found)

    way = Down(primal, stop, down, above, read, brought=[place], between=between)
    way.seeded(targets)
    meet_ways(way, met.pop() if met else None, up, lifted.rows, found, layer)
    return found


def meet_ways(way: Down, g: Flat | None, up: Up, x: Flat | None, out: Jacobians, layer: int | None = None) -> None:
    """Contract what has come down and up to one place, or about the MLP of a layer, and what waits of both in dictionaries.

    Args:
        g, x: rows there; None are zeros.
        out: is added to: the rows of the one by those of the other.
    """
    if g is not None and x is not None:
        _meet_rows(way.primal, way.targets, way, g, up, x, layer, out)
    for number in sorted(way.waiting & up.waiting):
        _meet_terms(way.primal, way, up, number, out)
        g, x = way.waits[number].skip, up.waits[number].skip
        if g is not None and x is not None:
            _meet_rows(way.primal, way.targets, way, g, up, x, None, out)


def _meet_rows(primal: Primal, targets: Seeds, way: Down, g: Flat, up: Up, x: Flat, layer: int | None, out: Jacobians) -> None:
    """Contract rows of both sides at one place, or about the MLP of a layer; each lies on its cone, or at its own positions."""
    if way.is_spread and up.is_spread:
        meet_at_mlp(primal, layer, way.down, g, up.up, x, out)
        return
    if layer is not None and up.is_spread:  # whichever side is still at its own positions is the fewer rows
        g = way.through_mlp(layer, g, keeps=False)
    elif layer is not None:
        x = up.through_mlp(layer, x, keeps=True)
    if up.is_spread:
        contract(primal, up.up, x, [(targets._replace(value=g), [jacobian.T for jacobian in out])])
    elif way.is_spread:
        contract(primal, way.down, g, [(up.first._replace(value=x), out)])
    else:
        contract_seeded(primal, targets._replace(value=g), up.first._replace(value=x), out)


def _meet_terms(primal: Primal, way: Down, up: Up, number: int, out: Jacobians) -> None:
    """Contract what waits from both sides in the terms of one dictionary, position by position."""
    device, given, taken = primal.model.device, way.waits[number].terms, up.waits[number].terms
    for prompt, length in enumerate(primal.lengths):
        first = primal.first(prompt)
        g_alive, x_alive = (cells_of(cone, prompt, length, device).alive for cone in (way.cone, up.cone))
        for t in range(length):
            if first + t in given and first + t in taken:
                g, x = given[first + t], taken[first + t]
                low, end = g_alive[t][0], x_alive[t][1]  # those at their own position are the first of cotangents, the last of tangents
                add_rows(g, x.T, out[prompt][low : low + len(g), end - len(x) : end])


def meet_at_mlp(primal: Primal, layer: int | None, down: Cone, g: Flat, up: Cone, x: Flat, out: Jacobians) -> None:
    """Σ_t g[j, t] · (∂resid_post / ∂resid_mid)[t] · x[i, t]: at each position the fewer rows go through the MLP.

    Where there is no MLP between them, or nothing moves through it, they meet as they are.
    """
    passes = layer is not None and primal.passes_mlp(layer)
    mlp, pays, space = layer_mlp(primal, layer) if layer is not None and passes else None, fold_rows(primal.model.config), None
    if primal.pieces.span > 1:
        _meet_wide(primal, mlp, down, g, up, x, out)
        return
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
                moved = product(rows, M.T if is_up else M)
            else:
                moved = rows + mlp.change(rows[None], at, is_up)[0]
            g_t, x_t = (cotangents, moved) if is_up else (moved, tangents)
            add_rows(g_t, x_t.T, out[prompt][low : low + len(g_t), left : left + len(x_t)])


def _meet_wide(primal: Primal, mlp: LayerMLP | None, down: Cone, g: Flat, up: Cone, x: Flat, out: Jacobians) -> None:
    """`meet_at_mlp` of several positions at once: their sum is one product, whose inner side is all of them."""
    pays, point = fold_rows(primal.model.config), None
    for prompt, length in enumerate(primal.lengths):
        first = primal.first(prompt)
        g_cells, x_cells = (cells_of(cone, prompt, length, g.device) for cone in (down, up))
        for begin, end in together(primal.pieces.span, g_cells.alive, x_cells.alive):
            (low, low_end), (left, left_end) = g_cells.alive[begin], x_cells.alive[begin]
            counts, positions, at = (low_end - low, left_end - left), end - begin, slice(first + begin, first + end)
            if not min(counts):
                continue
            is_up = counts[1] < counts[0]
            here = [flat.index_select(0, cells.by_row(begin, end)) for flat, cells in ((g, g_cells), (x, x_cells))]
            if mlp is not None:
                rows = here[is_up].view(counts[is_up], positions, -1).transpose(0, 1)
                if counts[is_up] > pays:
                    point = point or mlp.fold_point()
                    change = mlp.change_folded(rows, at, point, is_up)
                else:
                    change = mlp.change(rows, at, is_up)
                here[is_up] = change.add_(rows).transpose(0, 1).reshape(here[is_up].shape)
                del rows, change
            cotangents, tangents = (part.view(count, -1) for part, count in zip(here, counts, strict=True))
            add_rows(cotangents, tangents.T, out[prompt][low:low_end, left:left_end])
            del here, cotangents, tangents  # these positions are gone before the next are gathered: see sizes.py
