"""Sweeps: cotangents of many targets pulled down a segment, tangents of many sources pushed up, over their cones.

Rows go through two regimes. A row is *seeded*: it lives at its own position, and norms, projections and MLPs
run on that one position. The first attention that it meets spreads it over its cone, cheaply, because what
comes from one position is of low rank (`attention_pull_at`, `attention_push_at`). From there on it is
*spread*: each layer is an attention map per band, and products over all bands at once.

A Jacobian is a meeting of the two: J[j, i] = Σ_t g[j, t] · x[i, t] at any one place of the segment, with
cotangents g pulled down to it and tangents x pushed up to it. Where one side is still seeded, one term of the
sum is left. These are the steps of both sides; route.py knows the order of those that go down, ascent.py the order of those that go up.

    reverse   cotangents go down and are read out against seeded sources, at every source site that they pass;
              in the lowest layer in head space, where the sources were pushed once
    forward   tangents go up and are read out against seeded targets
    meet      both are spread, down to an MLP and up to it, and at each position the fewer rows go through it
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.devices import to_device
from attrib.core.types import Policy
from attrib.engine.blocks.attention import (
    AttentionPoint,
    AttentionWeights,
    attention_pull,
    attention_pull_at,
    attention_push,
    attention_push_at,
    attention_weights,
    head_room,
    head_rows,
    pull_heads,
    takes_norm,
    with_norm,
)
from attrib.engine.blocks.attention_wide import attention_pull_wide, attention_push_wide
from attrib.engine.blocks.norm_mlp import (
    Leaving,
    NormPoint,
    fold_space,
    leave_pull,
    leave_push,
    mlp_pull,
    mlp_push,
    mlp_weights,
    norm_map,
    norm_pull,
    norm_push,
)
from attrib.engine.blocks.product import add_product, product, product_into
from attrib.engine.sweep.cells import Band, Cone, Rectangle, cells_of, even, rectangles, seed_cells, together
from attrib.engine.sweep.primal import Primal, Seeds
from attrib.engine.sweep.seeded import fold_rows, layer_mlp

Flat = Float[Tensor, "_ _"]
Move = Callable[..., Tensor]
"""`attention_pull` or `attention_push`, of one band."""
MoveBlock = Callable[[Primal, AttentionPoint, Rectangle, Flat, Flat], None]
"""The same of several bands, from cells into cells."""


class Part(NamedTuple):
    """Cells that lie behind each other, and where their points are: a rectangle of positions and rows, or rows of one position each."""

    cells: slice
    rows: int
    at: slice | Int[Tensor, " cells"]

    def of(self, flat: Flat) -> Float[Tensor, "positions rows width"]:
        """Its part of a flat array, as a view."""
        return flat[self.cells].view((self.cells.stop - self.cells.start) // self.rows, self.rows, flat.shape[1])


def parts(primal: Primal, bands: Sequence[Band], most: int) -> Iterator[Part]:
    """Bands one by one; or, where each is at one position alone, as before the first attention, about `most` rows of them at once."""
    if any(band.end - band.begin > 1 for band in bands):
        for band in bands:
            yield Part(slice(band.offset, band.offset + band.cells), band.rows, primal.tokens(band))
        return
    token = _tokens(primal, [(band, band.begin, band.end) for band in bands])
    first, size = 0, even(len(token), most)
    for at in token.split(size):
        yield Part(slice(first, first + len(at)), 1, at)
        first += len(at)


def through_norm_2(primal: Primal, layer: int, cone: Cone, rows: Flat) -> Flat:
    """Cotangents of the stream from those of mlp_in."""
    model, point, out = primal.weights, primal.norm_2(layer), torch.empty_like(rows)
    norm = model.params.blocks[layer].norm_2
    for part in parts(primal, cone.bands, max(1, cone.cells)):
        part.of(out).copy_(norm_pull(model.config, norm, point.at(part.at), part.of(rows), primal.policy))
    return out


def pull_to_mlp_in(primal: Primal, layer: int, cone: Cone, g: Flat) -> Flat:
    """Cotangents of mlp_in from those of mlp_out."""
    weights, point, leaving = mlp_weights(primal.weights, layer, fold=False), primal.mlp(layer), primal.leaving_2(layer)
    out = torch.empty_like(g)
    for part in parts(primal, cone.bands, primal.pieces.mlp):
        left = leave_pull(primal.model.config, leaving, part.of(g), part.at, primal.policy)
        part.of(out).copy_(mlp_pull(weights, point.at(part.at), left))
    return out


def push_norm_2(primal: Primal, layer: int, cone: Cone, rows: Flat) -> Flat:
    """Tangents of mlp_in from those of the stream that the MLP reads."""
    model, point, out = primal.weights, primal.norm_2(layer), torch.empty_like(rows)
    norm = model.params.blocks[layer].norm_2
    for part in parts(primal, cone.bands, max(1, cone.cells)):
        part.of(out).copy_(norm_push(model.config, norm, point.at(part.at), part.of(rows), primal.policy))
    return out


def push_to_mlp_out(primal: Primal, layer: int, cone: Cone, x: Flat) -> Flat:
    """Tangents of mlp_out from those of mlp_in."""
    weights, point, leaving = mlp_weights(primal.weights, layer, fold=False), primal.mlp(layer), primal.leaving_2(layer)
    out = torch.empty_like(x)
    for part in parts(primal, cone.bands, primal.pieces.mlp):
        pushed = mlp_push(weights, point.at(part.at), part.of(x))
        part.of(out).copy_(leave_push(primal.model.config, leaving, pushed, part.at, primal.policy))
    return out


def push_output(primal: Primal, layer: int, bands: Sequence[Band], z: Flat) -> Flat:
    """Tangents of attn_out from those of z."""
    out, leaving = product(z, primal.weights.params.blocks[layer].attention.W_O), primal.leaving_1(layer)
    if leaving is not None:
        for part in parts(primal, bands, max(1, len(z))):
            part.of(out).copy_(leave_push(primal.model.config, leaving, part.of(out), part.at, primal.policy))
    return out


def leaving_rows(primal: Primal, bands: Sequence[Band], leaving: Leaving | None, g: Flat) -> Flat:
    """Cotangents of what a component computes from those of what it adds to the stream; the same where no norm is between."""
    if leaving is None:
        return g
    out = torch.empty_like(g)
    for part in parts(primal, bands, max(1, len(g))):
        part.of(out).copy_(leave_pull(primal.model.config, leaving, part.of(g), part.at, primal.policy))
    return out


def spread_down(primal: Primal, layer: int, z: Seeds, stream: Tensor | None, cone: Cone) -> Flat:
    """Cotangents of resid_pre over their cone, from seeded ones of z and of the stream at resid_mid."""
    weights, norm = attention_weights(primal.weights, layer, primal.policy), primal.norm_1(layer)
    points, config, is_normed = primal.attentions(layer), primal.model.config, takes_norm(primal.policy)
    points = _with_norms(primal, norm, points) if is_normed else points
    out = z.value.new_empty(cone.cells, config.d_model)
    for band in cone.bands:
        point, rows, scale, into = points[band.prompt], z.rows(band), config.attention_scale, band.of(out)
        if band.is_wide:
            attention_pull_wide(point, weights, rows, _positions(primal, z, band), scale, primal.policy, into)
        else:
            attention_pull_at(point, weights, rows, band.seed, scale, primal.policy, into, causal=config.causal)
        if not is_normed:
            norm_map(norm.at(primal.tokens(band)), into, primal.policy)
    if stream is not None:
        out.index_add_(0, seed_cells(cone, out.device), stream)
    return out


def _positions(primal: Primal, rows: Seeds, band: Band) -> Int[Tensor, " rows"]:
    """The position of each of a band's rows."""
    first, begin = rows.first(band.prompt) + band.row, primal.first(band.prompt)
    token = rows.token[first : first + band.rows]
    return token - begin if begin else token


def spread_up(primal: Primal, layer: int, sources: Seeds, cone: Cone, beside: Seeds | None) -> Flat:
    """What attention makes of seeded tangents of resid_pre, over their cone.

    Args:
        beside: what it is added to at their own position: the stream that attention reads, in a parallel block with its MLP; None is zeros.
    """
    weights, points = attention_weights(primal.weights, layer, primal.policy), primal.attentions(layer)
    pushed, config = sources._replace(value=into_heads(primal, layer, sources, weights)), primal.model.config
    out = sources.value.new_empty(cone.cells, config.d_model)
    for is_alone, block in spread_blocks(cone.bands, primal.policy, primal.pieces.band):
        point = points[block.prompt]
        if is_alone:
            product_into(_spread_block(primal, point, pushed, block), weights.W_out, out[block.part])
            continue
        for band in block.bands:
            rows, scale, into = pushed.rows(band), config.attention_scale, band.of(out)
            if band.is_wide:
                end = band.seeded[-1][0] + 1
                attention_push_wide(point, weights, rows, _positions(primal, sources, band), end, scale, primal.policy, into)
            else:
                attention_push_at(point, weights, rows, band.seed, scale, primal.policy, into, causal=config.causal)
    leaving = primal.leaving_1(layer, points)
    for band in cone.bands if leaving is not None else ():
        band.of(out).copy_(leave_push(config, leaving, band.of(out), primal.tokens(band), primal.policy))
    if beside is not None:
        out.index_add_(0, seed_cells(cone, out.device), beside.value)
    return out


def spread_heads(primal: Primal, layer: int, sources: Seeds, cone: Cone) -> Float[Tensor, "cells d_q"]:
    """Tangents of z over their cone, from seeded ones of resid_pre, by the map for tangents that live anywhere."""
    points, pushed = primal.attentions(layer), sources._replace(value=into_heads(primal, layer, sources))
    z = pushed.value.new_empty(cone.cells, primal.model.config.n_heads * primal.model.config.d_head)
    for block in rectangles(cone.bands, primal.pieces.band):
        z[block.part] = _spread_block(primal, points[block.prompt], pushed, block)
    return z


def spread_blocks(bands: Sequence[Band], policy: Policy, most: int) -> Iterator[tuple[bool, Rectangle]]:
    """The blocks in which tangents are spread, and whether each of their rows is alone at its position.

    Rows of one position share most of their products in `attention_push_at`; one alone would have them all to itself.
    """
    return ((is_alone, block) for is_alone, run in spread_runs(bands, policy) for block in rectangles(run, most))


def spread_runs(bands: Sequence[Band], policy: Policy) -> Iterator[tuple[bool, list[Band]]]:
    """The bands of these blocks, which are of one kind each."""
    for is_alone, run in groupby(bands, key=lambda band: band.rows == 1 and policy.attention == "exact"):
        yield is_alone, list(run)


def _spread_block(primal: Primal, point: AttentionPoint, pushed: Seeds, block: Rectangle) -> Float[Tensor, "cells d_q"]:
    """Tangents of z, as cells, from seeded ones in head space, by the map for tangents that live anywhere."""
    seeded = pushed.value.new_zeros(block.end - block.begin, block.rows, pushed.value.shape[1])
    row = 0
    for band in block.bands:
        parts = pushed.rows(band).split([rows for _, rows in band.seeded])
        for (position, rows), part in zip(band.seeded, parts, strict=True):
            seeded[position - block.begin, row : row + rows] = part
            row += rows
    config = primal.model.config
    moved = attention_push(point, seeded, config.attention_scale, primal.policy, primal.impl, causal=config.causal)
    z = moved.new_empty(block.part.stop - block.part.start, moved.shape[-1])
    block.moved(block.part.start).scatter(moved, z)
    return z


def into_heads(primal: Primal, layer: int, sources: Seeds, weights: AttentionWeights | None = None) -> Float[Tensor, "rows d_heads"]:
    """Seeded tangents of resid_pre through norm_1 into head space, by the layer's weights, which are made where they are not at hand."""
    weights, norm = weights or attention_weights(primal.weights, layer, primal.policy), primal.norm_1(layer)
    return product(norm_map(norm.at(sources.token), sources.value[:, None].clone(), primal.policy)[:, 0], weights.W_in)


def pull_attention(primal: Primal, layer: int, cone: Cone, g: Flat, z: Flat | None = None, written: Flat | None = None) -> None:
    """From resid_mid to resid_pre, in place.

    Args:
        z, written: cotangents of z, or of what attention adds to the stream, where that is not `g`; what comes through
            them is added to `g`.
    """
    weights, norm = attention_weights(primal.weights, layer, primal.policy), primal.norm_1(layer)
    # a norm that is held is a scale for each position, which is taken before the product, and that straight into its place
    held = norm if primal.policy.norm == "frozen" else None
    for part, bands, heads in pulled_heads(primal, layer, cone, g if written is None else written, z, held):
        if held is not None:
            add_product(heads, weights.W_in.T, g[part])
        else:
            y = _normed(primal, norm, bands, product(heads, weights.W_in.T))
            g[part] += y
            del y
        del heads


def _normed(primal: Primal, norm: NormPoint, bands: Sequence[Band], rows: Flat) -> Flat:
    """N of each band, in place."""
    for band in bands:
        norm_map(norm.at(primal.tokens(band)), band.of(rows), primal.policy)
    return rows


def _with_norms(primal: Primal, norm: NormPoint, points: Sequence[AttentionPoint]) -> list[AttentionPoint]:
    """Each prompt's attention with the norm before it in its pattern."""
    return [with_norm(point, inverse) for point, inverse in zip(points, norm.inverse.split(primal.lengths), strict=True)]


def pulled_heads(
    primal: Primal, layer: int, cone: Cone, g: Flat, z: Flat | None = None, norm: NormPoint | None = None, into: Flat | None = None
) -> Iterator[tuple[slice, list[Band], Flat]]:
    """Head-space cotangents of one chunk of the cone after the other, from those at resid_mid or of z.

    Args:
        norm: one that is held, and taken too.
        into: has room for the largest chunk, which is written there.
    """
    W_O, points = primal.weights.params.blocks[layer].attention.W_O, primal.attentions(layer)
    leaving = primal.leaving_1(layer, points) if z is None else None
    if norm is not None and takes_norm(primal.policy):
        points, norm = _with_norms(primal, norm, points), None
    for part, bands in cone.chunks(primal.pieces.chunk):
        o = product(leaving_rows(primal, bands, leaving, g[part]), W_O.T) if z is None else z[part]
        heads = o.new_empty(len(o), head_width(primal)) if into is None else into[: len(o)]
        _attend(primal, points, bands, o, heads, attention_pull, _pull_block)
        del o  # a chunk is gone before the next is made: see sizes.py
        if norm is not None:
            _normed(primal, norm, bands, heads)
        yield part, bands, heads
        del heads


def _attend(
    primal: Primal, points: Sequence[AttentionPoint], bands: Sequence[Band], rows: Flat, out: Flat, move: Move, move_block: MoveBlock
) -> None:
    """Rows through an attention map, block by block, into `out`."""
    for block in rectangles(bands, primal.pieces.band):
        point = points[block.prompt]
        if len(block.bands) == 1:
            (band,) = block.bands
            scale, causal = primal.model.config.attention_scale, primal.model.config.causal
            move(point, band.of(rows), scale, primal.policy, primal.impl, out=band.of(out), causal=causal)
        else:
            move_block(primal, point, block, rows, out)


def _pull_block(primal: Primal, point: AttentionPoint, block: Rectangle, o: Flat, out: Flat) -> None:
    """Several bands of cotangents of z as one rectangle, which lies as it is multiplied, into head space."""
    config, impl = primal.model.config, primal.impl
    room = head_room(point, o, block.end - block.begin, block.rows, impl, causal=config.causal)
    given = block.gather(o.unflatten(1, room.shape[2:]), room)
    found = pull_heads(point, given, config.attention_scale, primal.policy, impl, causal=config.causal)
    for part, there in zip(found.parts, head_rows(point, out), strict=True):
        block.scatter(part, there)


def _push_block(primal: Primal, point: AttentionPoint, block: Rectangle, heads: Flat, out: Flat) -> None:
    """Several bands of tangents of head space as one rectangle, to those of z."""
    config, zeros = primal.model.config, heads.new_zeros(block.end - block.begin, block.rows, heads.shape[1])
    moved = attention_push(point, block.gather(heads, zeros), config.attention_scale, primal.policy, primal.impl, causal=config.causal)
    block.scatter(moved, out)


def head_width(primal: Primal) -> int:
    """Width of head space: q | k | v of all heads, or v alone."""
    c = primal.model.config
    return c.d_head * (c.n_kv_heads if primal.policy.attention == "frozen" else c.n_heads + 2 * c.n_kv_heads)


def push_attention(primal: Primal, layer: int, cone: Cone, x: Flat, read: Flat | None = None) -> None:
    """From resid_pre to resid_mid, in place; what attention makes of `read` is added to `x` where that is not `x`."""
    points = primal.attentions(layer)
    leaving, W_O = primal.leaving_1(layer, points), primal.weights.params.blocks[layer].attention.W_O
    for part, bands, z in pushed_heads(primal, layer, cone, x if read is None else read, points):
        if leaving is None:
            add_product(z, W_O, x[part])
        else:
            written = product(z, W_O)
            for band in bands:
                at = primal.tokens(band)
                band.of(x[part]).add_(leave_push(primal.model.config, leaving, band.of(written), at, primal.policy))
            del written
        del z


def push_heads(primal: Primal, layer: int, cone: Cone, x: Flat) -> Float[Tensor, "cells d_q"]:
    """Tangents of z from those of resid_pre."""
    out = x.new_empty(cone.cells, primal.model.config.n_heads * primal.model.config.d_head)
    for part, _, z in pushed_heads(primal, layer, cone, x, primal.attentions(layer)):
        out[part] = z
        del z
    return out


def pushed_heads(
    primal: Primal, layer: int, cone: Cone, x: Flat, points: Sequence[AttentionPoint]
) -> Iterator[tuple[slice, list[Band], Flat]]:
    """Tangents of z of one chunk of the cone after the other, from those of resid_pre."""
    weights, norm = attention_weights(primal.weights, layer, primal.policy), primal.norm_1(layer)
    for part, bands in cone.chunks(primal.pieces.chunk):
        if primal.policy.norm == "frozen":  # a scale for each position, as on the way down
            heads = _normed(primal, norm, bands, product(x[part], weights.W_in))
        else:
            heads = product(_normed(primal, norm, bands, x[part].clone()), weights.W_in)
        z = heads.new_empty(len(heads), len(weights.W_out))
        _attend(primal, points, bands, heads, z, attention_push, _push_block)
        yield part, bands, z
        del heads, z  # a chunk is gone before the next is made: see sizes.py


def through_mlp(primal: Primal, layer: int, cone: Cone, rows: Flat, up: bool, is_alone: bool = False) -> None:
    """From resid_post to resid_mid, or `up` from resid_mid to resid_post, in place; folded where many rows share a position.

    Args:
        is_alone: whether the rows are of the MLP alone: what goes by beside it is not among what they become.
    """
    if not primal.passes_mlp(layer):
        return
    config, pays = primal.model.config, fold_rows(primal.model.config)
    folds = [[count > pays for count in cone.rows_at(prompt, length)] for prompt, length in enumerate(primal.lengths)]
    mlp = layer_mlp(primal, layer, fold=cone.cells >= config.d_mlp or any(map(any, folds)))
    rest: list[tuple[Band, int, int]] = []
    space, point = None, None
    for prompt, of_prompt in enumerate(folds):
        bands, first = [band for band in cone.bands if band.prompt == prompt], primal.first(prompt)
        for begin, end, here in _folded(primal, cone, prompt, of_prompt):
            at, given = slice(first + begin, first + end), rows.index_select(0, here)
            if end - begin == 1:
                space = space or fold_space(mlp.weights)
                M = mlp.fold(at, space)
                moved = product(given, M.T if up else M)
                rows.index_copy_(0, here, moved.sub_(given) if is_alone else moved)
                del M
            else:
                point = point or mlp.fold_point()
                moved = mlp.change_folded(given.view(end - begin, -1, given.shape[1]), at, point, up).view_as(given)
                (rows.index_copy_ if is_alone else rows.index_add_)(0, here, moved)
            del given, moved
        rest += [(band, band.begin + lo, band.begin + hi) for band in bands for lo, hi in plain_runs(of_prompt[band.begin : band.end])]
    del space, point
    for pieces in _pieces(rest, primal.pieces.mlp):
        where = [band.offset + (t - band.begin) * band.rows for band, *ends in pieces for t in ends]
        runs = [slice(first, end) for first, end in zip(where[::2], where[1::2], strict=True)]
        is_one = all(one.stop == following.start for one, following in pairwise(runs))
        given = rows[runs[0].start : runs[-1].stop] if is_one else torch.cat([rows[run] for run in runs])
        if len(pieces) == 1:  # one stretch of positions shares its points among all its rows
            ((band, lo, hi),) = pieces
            first = primal.first(band.prompt)
            changed = mlp.change(given.view(hi - lo, band.rows, -1), slice(first + lo, first + hi), up).flatten(0, 1)
        else:
            changed = mlp.change_alone(given, _tokens(primal, pieces), up)
        moved = given.copy_(changed) if is_alone else given.add_(changed)
        if not is_one:
            for run, part in zip(runs, moved.split([run.stop - run.start for run in runs]), strict=True):
                rows[run] = part


def _folded(primal: Primal, cone: Cone, prompt: int, folds: Sequence[bool]) -> Iterator[tuple[int, int, Int[Tensor, " cells"]]]:
    """Runs of a prompt's positions that are folded, together as far as a device takes them, and where their rows lie."""
    if not any(folds):
        return
    cells = cells_of(cone, prompt, len(folds), primal.model.device)
    for begin, end in together(primal.pieces.span, folds, cells.alive):
        if folds[begin]:
            yield begin, end, cells.over(begin, end)


def plain_runs(folds: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Maximal stretches of positions that are not folded."""
    for folded, run in groupby(range(len(folds)), key=lambda t: folds[t]):
        if not folded:
            positions = list(run)
            yield positions[0], positions[-1] + 1


def _pieces(rest: list[tuple[Band, int, int]], most: int) -> Iterator[list[tuple[Band, int, int]]]:
    """Stretches of bands in groups of about `most` cells; a long one is cut evenly by positions, and stands alone."""
    short: list[tuple[Band, int, int]] = []
    for band, lo, hi in rest:
        parts = -(-(hi - lo) * band.rows // most)
        for begin, end in pairwise(lo + (hi - lo) * part // parts for part in range(parts + 1)):
            if (end - begin) * band.rows > most // 3:
                yield [(band, begin, end)]
            elif begin < end:
                short.append((band, begin, end))
    ends = list(accumulate((end - begin) * band.rows for band, begin, end in short))
    size = even(ends[-1], most) if ends else most
    for _, group in groupby(zip(ends, short, strict=True), key=lambda piece: (piece[0] - 1) // size):
        yield [piece for _, piece in group]


def _tokens(primal: Primal, pieces: Sequence[tuple[Band, int, int]]) -> Int[Tensor, " cells"]:
    """The packed index of the position of every cell of some stretches of bands."""
    firsts = [primal.first(band.prompt) for band, _, _ in pieces]
    position = [first + t for first, (_, lo, hi) in zip(firsts, pieces, strict=True) for t in range(lo, hi)]
    count = [band.rows for band, lo, hi in pieces for _ in range(lo, hi)]
    at, times = to_device([position, count], primal.model.device).unbind()
    return at.repeat_interleave(times, output_size=sum(count))
