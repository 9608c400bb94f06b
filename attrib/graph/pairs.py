"""The pairs that a rule keeps of bilinear forms, without all pairs where a bound will do.

With rows l_i and r_j the weight of a pair is l_i · r_j, and no larger than |l_i| |r_j|. So where a rule keeps by size, rows that are too
short for any of their pairs to be kept are left out before products are taken, and each row meets only those that are long enough for it;
what is kept is the same. Forms that share their rows, as the scores of a layer do, are looked at together: of each only a few rows are
left, and small products are slow one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.keep import kept
from attrib.core.ranked import largest_of_runs
from attrib.core.types import Keep, Threshold, TopK

AT_ONCE = 1 << 20
"""Numbers that are looked at together: products of many forms, or one form alone where it has more."""

_LEAST = 16
"""Rows that are taken at least: blocks are put together whose rows are as many, up to the next power of two."""


@dataclass(frozen=True)
class Rows:
    """One side of several forms: rows of one group after the other, each with a vector for every head. A *run* is a group's, of a head."""

    vector: Float[Tensor, "rows heads d_head"]
    begins: tuple[int, ...]
    """Where each group begins, and behind them the end of the last."""

    @cached_property
    def totals(self) -> Float[Tensor, "groups heads d_head"]:
        """The sum of each run."""
        groups = zip(self.begins, self.begins[1:], strict=False)
        return torch.stack([self.vector[begin:end].sum(0) for begin, end in groups])

    @cached_property
    def _ranked(self) -> tuple[Float[Tensor, " ranked"], Int[Tensor, " ranked"]]:
        """The lengths of the rows of each run, and the rows, the longest first; head by head, and of each head group by group."""
        norm = self.vector.norm(dim=2).T.contiguous()
        row = torch.empty_like(norm, dtype=torch.int64)
        for begin, end in zip(self.begins, self.begins[1:], strict=False):
            norm[:, begin:end], order = norm[:, begin:end].sort(dim=1, descending=True)
            row[:, begin:end] = order + begin
        return norm.flatten(), row.flatten()

    def runs(self, group: Int[Tensor, " forms"], head: Int[Tensor, " forms"]) -> "Runs":
        """Some runs, by their groups and heads."""
        begins = torch.tensor(self.begins, device=self.vector.device)
        return Runs(self, head, head * len(self.vector) + begins[group], begins[group + 1] - begins[group])


class Runs(NamedTuple):
    """Runs of rows, one for each form."""

    of: Rows
    head: Int[Tensor, " forms"]
    first: Int[Tensor, " forms"]
    """Where each begins among the ranked rows of all."""
    size: Int[Tensor, " forms"]

    @property
    def longest(self) -> Float[Tensor, " forms"]:
        """The length of the longest row of each; zero where there is none."""
        norm = self.of._ranked[0]
        return torch.where(self.size > 0, norm[self.first.clamp_max(len(norm) - 1)], 0.0)

    def as_long_as(self, least: Float[Tensor, " forms"]) -> Int[Tensor, " forms"]:
        """How many rows of each are no shorter than that."""
        norm = self.of._ranked[0]
        low, high = self.first, self.first + self.size
        for _ in range(int(self.size.max()).bit_length() if len(self.size) else 0):
            middle = (low + high) // 2
            is_long = (norm[middle.clamp_max(len(norm) - 1)] >= least) & (low < high)
            low, high = torch.where(is_long, middle + 1, low), torch.where(is_long, high, torch.minimum(middle, high))
        return low - self.first

    def some(self, chosen: Int[Tensor, " chosen"]) -> "Runs":
        """Those of some forms."""
        return Runs(self.of, *(column[chosen] for column in self[1:]))

    def longest_rows(self, most: int) -> Int[Tensor, "forms most"]:
        """The longest rows of each; where there are fewer, others."""
        row = self.of._ranked[1]
        return row[(self.first[:, None] + torch.arange(most, device=row.device)).clamp_max(len(row) - 1)]

    def vectors(self, row: Int[Tensor, "forms some"]) -> Float[Tensor, "forms some d_head"]:
        """Those of rows of each."""
        heads, d_head = self.of.vector.shape[1:]
        place = (row * heads + self.head[:, None]).flatten()
        return self.of.vector.flatten(0, 1).index_select(0, place).view(*row.shape, d_head)


class Pairs(NamedTuple):
    """Some pairs of several forms, form by form; those of a form in order of its left rows, and then of the right."""

    form: Int[Tensor, " pairs"]
    left: Int[Tensor, " pairs"]
    right: Int[Tensor, " pairs"]
    weight: Float[Tensor, " pairs"]


def strongest(left: Runs, right: Runs, scale: Float[Tensor, " forms"], keep: Keep) -> Pairs:
    """The pairs that a rule keeps of each form, each weighing the form's `scale`, which is positive, times its product."""
    if not isinstance(keep, TopK | Threshold):
        return _in_order([_of_all(left, right, scale, keep, form) for form in range(len(scale))], scale)
    # a product that is taken again rounds otherwise, by no more than this
    rounding = 2 * left.of.vector.shape[2] * torch.finfo(scale.dtype).eps * left.longest * right.longest
    bound = (_bound(left, right, scale, keep) - rounding).clamp_min(0)
    found = _in_order(list(_long_enough(left, right, scale, bound)), scale)
    match keep:
        case TopK(k):
            chosen = largest_of_runs(found.weight.abs(), found.form, k)
        case Threshold(t):
            chosen = found.weight.abs() >= t
    return Pairs(*(column[chosen] for column in found))


def _of_all(left: Runs, right: Runs, scale: Float[Tensor, " forms"], keep: Keep, form: int) -> Pairs:
    """Those of one form, of which all are looked at."""
    (rows, l), (columns, r) = (_whole(runs, form) for runs in (left, right))
    value = (l @ r.T).flatten()[None] * scale[form]
    place = kept(keep, value, value)[0].nonzero()[:, 0]
    width = max(1, len(columns))
    return Pairs(torch.full_like(place, form), rows[place // width], columns[place % width], value[0, place])


def _whole(runs: Runs, form: int) -> tuple[Int[Tensor, " rows"], Float[Tensor, "rows d_head"]]:
    begin = int(runs.first[form]) - int(runs.head[form]) * len(runs.of.vector)
    rows = torch.arange(begin, begin + int(runs.size[form]), device=runs.first.device)
    return rows, runs.of.vector[rows, runs.head[form]]


def _bound(left: Runs, right: Runs, scale: Float[Tensor, " forms"], keep: TopK | Threshold) -> Float[Tensor, " forms"]:
    """A size that the product of every pair of a form that is kept has at least: with the longest rows it has as many already."""
    if isinstance(keep, Threshold):
        return keep.t / scale
    most = isqrt(4 * keep.k) + 1
    rows, columns = (min(most, int(runs.size.max())) if len(scale) else 0 for runs in (left, right))
    if rows * columns < keep.k:
        return torch.zeros_like(scale)
    parts = [
        _sizes(left.some(some), right.some(some), rows, columns).topk(keep.k, dim=1).values[:, -1]
        for some in torch.arange(len(scale), device=scale.device).split(max(1, AT_ONCE // (rows * columns)))
    ]
    return torch.cat(parts)


def _sizes(left: Runs, right: Runs, rows: int, columns: int) -> Float[Tensor, "forms pairs"]:
    """Of the pairs of so many of the longest rows of each; zero where there are fewer."""
    product = left.vectors(left.longest_rows(rows)) @ right.vectors(right.longest_rows(columns)).mT
    row, column = (torch.arange(count, device=product.device) for count in (rows, columns))
    there = (row < left.size[:, None])[:, :, None] & (column < right.size[:, None])[:, None]
    return product.abs().masked_fill(~there, 0).flatten(1)


def _stairs(left: Runs, right: Runs, bound: Float[Tensor, " forms"]) -> tuple[Int[Tensor, " steps"], Runs, Runs]:
    """Blocks of the products of forms in which some may have the form's bound: the form of each, and its rows and columns.

    The shorter rows are, the fewer columns are long enough for them. So a form's first rows are one step, and then twice as many each;
    one block of all of them would have several times the products.
    """
    rows = left.as_long_as(bound / right.longest)
    highest = int(rows.max()) if len(rows) else 0
    begins = torch.tensor([0, *(_LEAST << step for step in range(highest.bit_length()))], device=rows.device)
    form, step = (rows[:, None] > begins).nonzero(as_tuple=True)
    begin, some, others = begins[step], left.some(form), right.some(form)
    some = some._replace(first=some.first + begin, size=(rows[form] - begin).minimum(begin.clamp_min(_LEAST)))
    return form, some, others._replace(size=others.as_long_as(bound[form] / some.longest))


def _alike(rows: Int[Tensor, " blocks"], columns: Int[Tensor, " blocks"], d_head: int) -> Iterator[Int[Tensor, " some"]]:
    """Blocks that have about as many rows and columns, as many together as `AT_ONCE` says."""
    there = ((rows > 0) & (columns > 0)).nonzero()[:, 0]
    size = torch.stack([rows[there], columns[there]], dim=1).clamp_min(_LEAST).sub(1).double().log2().floor().add(1).exp2().long()
    for each in size.unique(dim=0):
        some = there[(size == each).all(dim=1)]
        yield from some.split(max(1, AT_ONCE // max(int(each.prod()), int(each.sum()) * d_head)))


def _long_enough(left: Runs, right: Runs, scale: Float[Tensor, " forms"], bound: Float[Tensor, " forms"]) -> Iterator[Pairs]:
    """The pairs whose products have their form's bound."""
    every, left, right = _stairs(left, right, bound)
    for some in _alike(left.size, right.size, left.of.vector.shape[2]):
        form, l, r = every[some], left.some(some), right.some(some)
        row, column = l.longest_rows(int(l.size.max())), r.longest_rows(int(r.size.max()))
        product = l.vectors(row) @ r.vectors(column).mT
        at, i, j = (product.abs() >= bound[form][:, None, None]).nonzero(as_tuple=True)
        is_own = (i < l.size[at]) & (j < r.size[at])
        at, i, j = at[is_own], i[is_own], j[is_own]
        weight = product[at, i, j] * scale[form][at]
        is_there = weight != 0
        yield Pairs(form[at][is_there], row[at, i][is_there], column[at, j][is_there], weight[is_there])


def _in_order(parts: Sequence[Pairs], like: Float[Tensor, " forms"]) -> Pairs:
    none = torch.zeros(0, dtype=torch.int64, device=like.device)
    form, left, right, weight = (torch.cat(list(each)) for each in zip(Pairs(none, none, none, like[:0]), *parts, strict=True))
    order = right.argsort()
    for column in (left, form):
        order = order[column[order].argsort(stable=True)]
    return Pairs(form[order], left[order], right[order], weight[order])
