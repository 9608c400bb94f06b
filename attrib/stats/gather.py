"""Edges to the rows of their pairs, a run of prompts at a time."""

from collections.abc import Iterator

import numpy as np

from attrib.core.edges import Edges
from attrib.core.types import InputError
from attrib.stats import fixed
from attrib.stats.rows import LARGEST_LATENT, Aggregates, collapse, keys_of

EDGES_AT_ONCE = 1 << 18
"""Prompts are taken together until they have so many edges."""


def pairs_of_edges(edges: Edges) -> Iterator[Aggregates]:
    """The pairs of successive runs of prompts, each in ascending order of the key. No prompt is in two runs.

    Raises:
        InputError: an attribution is not finite or too large for fixed-point numbers, or a latent is not in -1 … 2**32 - 2.
    """
    ends = edges.indptr[edges.targets.ptr].numpy()  # of the prompts, in entries
    start = 0
    while start < len(edges.prompts):
        stop = int(np.searchsorted(ends, ends[start] + EDGES_AT_ONCE, "right")) - 1
        stop = min(max(stop, start + 1), len(edges.prompts))
        if ends[stop] > ends[start]:
            yield _pairs(edges, start, stop)
        start = stop


def _pairs(edges: Edges, start: int, stop: int) -> Aggregates:
    part = edges.take(slice(start, stop))
    targets, sources, row, column = part.targets, part.sources, part.row.numpy(), part.indices.numpy()
    prompt = targets.prompt.numpy()[row]
    number = edges.prompts.numbers[start:stop].numpy()[prompt].astype(np.int64)
    value = part.attribution.double().numpy()
    _check_values(value, number)
    target, source = targets.latent.numpy()[row], sources.latent.numpy()[column]
    for end, latent in (("target", target), ("source", source)):
        outside = (latent < -1) | (latent > LARGEST_LATENT)
        if outside.any():
            raise InputError(f"edges: the {end} latent {latent[outside][0]} is outside -1 … {LARGEST_LATENT}, which statistics hold.")

    key = keys_of(target.astype(np.int64), source.astype(np.int64))
    # prompts stand one after another, so a stable sort leaves those of a pair in order: each is counted where it begins
    order = np.argsort(key, kind="stable")
    begins = np.ones(len(order), np.int64)
    begins[1:] = (key[order[1:]] != key[order[:-1]]) | (prompt[order[1:]] != prompt[order[:-1]])
    key, value, row, column, number = (each[order] for each in (key, value, row, column, number))
    l1, total, squares = (fixed.rounded(numbers) for numbers in (np.abs(value), value, value * value))
    edge = Aggregates(
        key=key,
        count=np.ones(len(key), np.int64),
        positive=(value > 0).astype(np.int64),
        negative=(value < 0).astype(np.int64),
        prompts=begins,
        l1_high=l1.high,
        l1_low=l1.low,
        sum_high=total.high,
        sum_low=total.low,
        squares_high=squares.high,
        squares_low=squares.low,
        maximum=value + 0.0,  # no negative zero, which would be other bytes
        prompt=number,
        target_position=targets.position.numpy()[row].astype(np.int64),
        source_position=sources.position.numpy()[column].astype(np.int64),
    )
    return collapse([edge], [key])[1]


def _check_values(value: np.ndarray, number: np.ndarray) -> None:
    wrong = ~np.isfinite(value)
    if wrong.any():
        raise InputError(
            f"edges: prompt {number[wrong][0]} has an attribution of {value[wrong][0]}; expected finite numbers. "
            "Attribute that prompt again, in float64 if it overflowed."
        )
    large = np.abs(value) >= np.sqrt(fixed.LIMIT)
    if large.any():
        raise InputError(
            f"edges: prompt {number[large][0]} has an attribution of {value[large][0]:.3g}; "
            f"expected less than {np.sqrt(fixed.LIMIT):.1e}, whose square fixed-point numbers hold."
        )
