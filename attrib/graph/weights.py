"""Virtual weights: how much a latent of one dictionary writes of what a latent of a later one reads, by their weights alone.

    straight through the stream         V[j, i] = e_j · d_i
    through heads of a layer between    V[j, i] = Σ_h e_j · (d_i W_V^h W_O^h)

with e_j and d_i as in stream.py, where it is said what is folded and what is left out. Under LINEAR, with no more than one attention and
no MLP between, the gradient of target j at position p by source i at position q is these times what the prompt fixes
(tests/graph/test_weights.py):

    (δ_pq V[j, i] + Σ_h a_h[p, q] V_h[j, i] / (s_1[q] s_post[p])) / s_2[p]

Global weights are V[j, i] times an expectation over a corpus: of the source's activation, E[a_i], which gives the expected residual
attribution; or E[a_i a_j] / E[a_j], its target-weighted form, in which pairs that never are active together, whose weights are
interference, vanish (Ameisen et al. 2025, Circuit Tracing, "Global Weights"; "virtual weights" are Elhage et al. 2021's).

A matrix [d_sae, d_sae] is never held: rows of the target are made in tiles within the budget, and `keep` selects from each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_model, takes
from attrib.core.edges import Growing
from attrib.core.keep import check_keep, kept, most_kept
from attrib.core.room import free_memory, memory_named
from attrib.core.shown import SHOWN, frame_in_html
from attrib.core.slices import ptr_of
from attrib.core.sparse import to_csr
from attrib.core.types import BudgetError, InputError, Keep, TopK
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.plan.result import fits, size_of
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph.stream import (
    OV,
    Heads,
    LatentsLike,
    Reader,
    Writer,
    as_directions,
    chosen_heads,
    circuit_bytes,
    dtype_of,
    fitting,
    in_head_space,
    ov_circuit,
    parts_reaching,
    reader,
    require_numbers,
    writer,
)
from attrib.models.transformer import Model

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse

Value = Literal["weight", "attribution"]

KEPT = TopK(32)
"""What is kept where nobody says: all weights of two dictionaries would be [d_sae, d_sae]."""


@dataclass(frozen=True, repr=False)
class VirtualWeights:
    """Weights from latents of a source to latents of a target, those that were kept, as CSR.

    Row t, of latent `targets[t]`, holds entries `indptr[t]:indptr[t+1]`: columns `indices` (ascending, into `sources`), their
    `weight`, and `attribution` = weight × the source's expectation, which is the weight where there is none. `total` and `l1` are the
    sums of attribution and of |attribution| over all sources of the row, kept or not.
    """

    source: str
    target: str
    sources: Int[Tensor, " sources"]
    targets: Int[Tensor, " targets"]
    indptr: Int[Tensor, " targets_plus_1"]
    indices: Int[Tensor, " entries"]
    weight: Float[Tensor, " entries"]
    attribution: Float[Tensor, " entries"]
    total: Float[Tensor, " targets"]
    l1: Float[Tensor, " targets"]
    attention: int | None = None
    """The layer whose heads were passed; None is straight through the stream."""
    heads: tuple[int, ...] = ()
    """Which of its heads."""

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        rows, columns = self.shape
        way = "" if self.attention is None else f" through heads {', '.join(map(str, self.heads))} of layer {self.attention}"
        return f"VirtualWeights({self.source} -> {self.target}{way}: {rows:,} targets x {columns:,} sources, {len(self):,} kept)"

    def _repr_html_(self) -> str:
        """The strongest as a small table, for notebooks."""
        return frame_in_html(f"{self!r}; the strongest:", self.top(SHOWN))

    @property
    def shape(self) -> tuple[int, int]:
        """(targets, sources)."""
        return len(self.targets), len(self.sources)

    @property
    def row(self) -> Int[Tensor, " entries"]:
        """The row of every entry."""
        return torch.repeat_interleave(torch.arange(len(self.targets)), self.indptr.diff())

    @property
    def remainder(self) -> Float[Tensor, " targets"]:
        """The attribution of each row that `keep` dropped."""
        return self.total - torch.zeros_like(self.total).index_add(0, self.row, self.attribution)

    def values(self, value: Value = "weight") -> Float[Tensor, " entries"]:
        """The entries of one of the two values."""
        if value not in get_args(Value):
            raise InputError(f"value: {value!r}; expected 'weight' or 'attribution'.")
        return self.weight if value == "weight" else self.attribution

    @memory_named("making a dense matrix", "It has all pairs: choose targets, or take `to_scipy`, which has what was kept alone.")
    def dense(self, value: Value = "weight") -> Float[Tensor, "targets sources"]:
        """A dense matrix; entries that were not kept are zero."""
        return torch.zeros(self.shape, dtype=self.weight.dtype).index_put((self.row, self.indices), self.values(value))

    def to_scipy(self, value: Value = "weight") -> "scipy.sparse.csr_array":
        """A scipy CSR array [targets, sources]."""
        import scipy.sparse

        return scipy.sparse.csr_array((self.values(value).numpy(), self.indices.numpy(), self.indptr.numpy()), shape=self.shape)

    def top(self, k: int, value: Value = "attribution") -> "pd.DataFrame":
        """The k entries of largest absolute value, strongest first; of equal ones the first. Raises InputError where k is below 1."""
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"k: {k!r}; expected a whole number, at least 1.")
        return self._table(self.values(value).abs().argsort(descending=True, stable=True)[:k])

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each entry, in the order of rows and columns."""
        return self._table(torch.arange(len(self)))

    def _table(self, entries: Int[Tensor, " chosen"]) -> "pd.DataFrame":
        import pandas as pd

        columns = {"source_latent": self.sources[self.indices[entries]], "target_latent": self.targets[self.row[entries]]}
        columns |= {name: self.values(name)[entries] for name in get_args(Value)}
        return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


@takes(model=as_model, source=as_directions, target=as_directions, budget=as_bytes)
def virtual_weights(
    model: Model,
    source: Dictionary | Tensor,
    target: Dictionary | Tensor,
    *,
    attention: int | None = None,
    heads: Heads = None,
    sources: LatentsLike = None,
    targets: LatentsLike = None,
    keep: Keep = KEPT,
    budget: int = DEFAULT_BUDGET,
) -> VirtualWeights:
    """Virtual weights from the latents of `source` to those of `target`, without any prompt.

    Args:
        source: a dictionary. What a cross-layer transcoder writes at several sites is summed over those that the target (or the
            attention that is passed) reads. Or directions of the stream [directions, d_model], such as `model.params.W_E`, which are taken
            to be there from the start.
        target: a later dictionary; or directions of the stream, which read it at its end, behind all that the source writes.
        attention: the layer between both whose heads are passed. None is straight through the stream.
        heads: which of its heads: a number or several, whose weights are added up. None is all of them.
        sources, targets: which latents: numbers, a slice, or a mask. None is all.
        keep: which weights of each target are kept, by their absolute value; `Dense()` is all of them.
        budget: bytes of working memory, beside the parameters and the result.

    Raises:
        InputError: for dictionaries of another model, and where the source does not write what the target reads; names both places.
        BudgetError: where the budget is too small for one row, or a result of known size takes too much memory.
    """
    return _weights(model, source, target, None, attention, heads, sources, targets, keep, budget)


@takes(model=as_model, source=as_directions, target=as_directions, budget=as_bytes)
def global_weights(
    model: Model,
    source: Dictionary | Tensor,
    target: Dictionary | Tensor,
    expected: Any,
    *,
    attention: int | None = None,
    heads: Heads = None,
    sources: LatentsLike = None,
    targets: LatentsLike = None,
    keep: Keep = KEPT,
    budget: int = DEFAULT_BUDGET,
) -> VirtualWeights:
    """Virtual weights times what the source's latents are expected to be over a corpus; kept, and ranked, by that product.

    Args:
        expected: [d_sae of the source], the mean activation of each of its latents: expected residual attributions. Or, for each target,
            [d_sae of the target, d_sae of the source], a tensor, an array or a scipy sparse array, such as E[a_i a_j] / E[a_j]: a pair
            that is zero there is dropped, whatever its weight. It is of whole dictionaries, whichever latents are chosen.

    The other options and errors are those of `virtual_weights`.

    Raises:
        InputError: for expectations of another shape, or that are no finite numbers.
    """
    return _weights(model, source, target, expected, attention, heads, sources, targets, keep, budget)


@torch.no_grad()
@memory_named("making virtual weights", "Choose fewer targets or sources, or keep less of each target.")
def _weights(
    model: Model,
    source: Dictionary | Tensor,
    target: Dictionary | Tensor,
    expected: Any,
    attention: int | None,
    heads: Heads,
    sources: LatentsLike,
    targets: LatentsLike,
    keep: Keep,
    budget: int,
) -> VirtualWeights:
    check_keep(keep)
    passed = chosen_heads(model, attention, heads)
    writes, reads = writer(model, source, sources, "source", "sources"), reader(model, target, targets, "target", "targets")
    parts = parts_reaching(model, writes, reads.site, attention)
    circuit = None if passed is None or attention is None else ov_circuit(model, attention, passed)
    pair = _Pair(reads, writes, parts, circuit, _expectation(expected, reads, writes))
    _check_result(pair, keep)
    columns = _Columns()
    for tile in _tiles(pair, _sizes(pair, budget)):
        columns.add(keep, *tile)
    return VirtualWeights(
        _named(source), _named(target), writes.latent, reads.latent, **columns.whole(), attention=attention,
        heads=() if passed is None else tuple(passed.tolist()),
    )  # fmt: skip


def _named(given: Dictionary | Tensor) -> str:
    return given.name if isinstance(given, Dictionary) else "directions"


# -------------------------------------------------------------------------------------------------- the products


class _Pair(NamedTuple):
    """Both ends and what is between them."""

    reads: Reader
    writes: Writer
    parts: list[int]
    circuit: OV | None
    expected: "_Expectation | None"

    @property
    def itemsize(self) -> int:
        return dtype_of(self.reads.model).itemsize

    @property
    def is_narrow(self) -> bool:
        """Whether both sides meet among the heads' values: where these are fewer than the stream's numbers."""
        return self.circuit is not None and self.circuit.W_V.shape[1] < self.reads.model.config.d_model

    def left(self, first: int, last: int) -> Float[Tensor, "width targets"]:
        """What some targets read, where both sides meet."""
        columns = self.reads.columns(first, last)
        if self.circuit is None:
            return columns
        columns = in_head_space(self.circuit, self.reads.site, columns)
        return columns if self.is_narrow else self.circuit.W_V @ columns

    def right(self, first: int, last: int) -> Float[Tensor, "sources width"]:
        """What some sources write, where both sides meet."""
        rows = self.writes.rows(first, last, self.parts)
        return rows @ self.circuit.W_V if self.circuit is not None and self.is_narrow else rows


class _Sizes(NamedTuple):
    """How many targets are multiplied at once, with how many sources, and how many of their rows are selected from."""

    targets: int
    sources: int
    selected: int


def _sizes(pair: _Pair, budget: int) -> _Sizes:
    """Half of the budget is for rows of weights and what their targets read, a quarter for what sources write, a quarter for selecting."""
    number, model, sources = pair.itemsize, pair.reads.model, len(pair.writes.latent)
    between = 0 if pair.circuit is None else pair.circuit.W_V.shape[1]
    row = number * (sources + 3 * pair.reads.width + between + model.config.d_model)
    column = number * (1 + 2 * pair.writes.width + between)
    fixed = 0 if pair.circuit is None else circuit_bytes(model, between // model.config.d_head)
    selected = sources * (7 * number + 40)  # sizes, an order of 8 bytes each, running sums, masks and places: `kept` and `to_csr`
    least = fixed + max(2 * row, 4 * column, 4 * selected)
    if budget < least:
        raise BudgetError(
            f"budget: {budget:,} bytes are too few for one target of {sources:,} sources, which needs {least:,}. Raise the budget, or "
            "choose fewer sources."
        )
    budget -= fixed
    targets = fitting(budget // 2, row, len(pair.reads.latent))
    return _Sizes(targets, fitting(budget // 4, column + number * (targets - 1), sources), fitting(budget // 4, selected, targets))


def _tiles(pair: _Pair, sizes: _Sizes) -> Iterator[tuple[Float[Tensor, "targets sources"], Float[Tensor, "targets sources"]]]:
    """Weights and attributions of some targets at a time, in order; they hold until the next are asked for."""
    sources, targets = len(pair.writes.latent), len(pair.reads.latent)
    model = pair.reads.model
    space = torch.empty(sizes.targets, sources, dtype=dtype_of(model), device=model.device)  # each tile overwrites the one before
    for first in range(0, targets, sizes.targets):
        left = pair.left(first, min(first + sizes.targets, targets))
        weight = space[: left.shape[1]]
        for start in range(0, sources, sizes.sources):
            stop = min(start + sizes.sources, sources)
            weight[:, start:stop] = left.T @ pair.right(start, stop).T
        require_numbers(weight, f"target: latents from {int(pair.reads.latent[first]):,} on")
        for row in range(0, len(weight), sizes.selected):
            some = weight[row : row + sizes.selected]
            yield some, some if pair.expected is None else some * pair.expected.rows(first + row, first + row + len(some), some)


class _Columns:
    """The result's columns, which grow row by row."""

    def __init__(self) -> None:
        self.counts, self.indices, self.weight, self.attribution, self.total, self.l1 = (Growing() for _ in range(6))
        self.like = torch.empty(0)

    def add(self, keep: Keep, weight: Float[Tensor, "targets sources"], attribution: Float[Tensor, "targets sources"]) -> None:
        """Append what the rule keeps of a tile. An attribution of zero is never kept, whatever the weight."""
        indptr, indices, place = to_csr(kept(keep, attribution, attribution))
        self.like = weight.new_empty(0, device="cpu")
        for column, piece in (
            (self.counts, indptr.diff()),
            (self.indices, indices),
            (self.weight, weight.flatten()[place]),
            (self.attribution, attribution.flatten()[place]),
            (self.total, attribution.sum(-1)),
            (self.l1, attribution.abs().sum(-1)),
        ):
            column.add(piece.cpu())

    def whole(self) -> dict[str, Tensor]:
        """All columns, by the names that they have in the result."""
        none = torch.empty(0, dtype=torch.int64)
        floats = ("weight", "attribution", "total", "l1")
        return {"indptr": ptr_of(self.counts.whole(none)), "indices": self.indices.whole(none)} | {
            name: getattr(self, name).whole(self.like) for name in floats
        }


def _check_result(pair: _Pair, keep: Keep) -> None:
    """Raises BudgetError where a result of known size takes too much of the memory that is free."""
    targets, sources = len(pair.reads.latent), len(pair.writes.latent)
    needed, free = targets * most_kept(keep, sources) * (8 + 2 * pair.itemsize), free_memory()
    if not fits(needed, keep, free):
        raise BudgetError(
            f"keep: {keep} gives a result of {size_of(needed)} for {targets:,} targets of {sources:,} sources, and {size_of(free)} of "
            "memory are free, of which a result may take half. Take TopK(k), Mass(fraction) or Threshold(t), or choose fewer targets."
        )


# ----------------------------------------------------------------------------------------------- expectations


class _Expectation(NamedTuple):
    """What sources are expected to be: one row for all targets, or one for each; dense or a scipy array."""

    values: Any
    targets: Int[Tensor, " targets"] | None
    """The rows of `values` that are chosen; None where there is one for all."""
    sources: Int[Tensor, " sources"] | None
    """The columns that are chosen; None where they are taken already."""

    def rows(self, first: int, last: int, like: Tensor) -> Float[Tensor, "rows_or_1 sources"]:
        """The rows of some targets, where and as `like` is."""
        if self.targets is None:
            found = self.values[None]
        else:
            chosen = self.targets[first:last]
            found = self.values[chosen] if isinstance(self.values, Tensor) else torch.from_numpy(self.values[chosen.numpy()].toarray())
        found = found if self.sources is None else found.index_select(1, self.sources)
        return found.to(like)


def _expectation(given: Any, reads: Reader, writes: Writer) -> _Expectation | None:
    """Expectations of whole dictionaries, for the latents that are chosen. Raises InputError for other shapes, and for NaN or infinity."""
    if given is None:
        return None
    shape = tuple(end.of.d_sae if isinstance(end.of, Dictionary) else len(end.of) for end in (reads, writes))
    is_sparse = hasattr(given, "tocsr")
    try:
        values = given.tocsr() if is_sparse else given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(np.asarray(given))
    except (TypeError, ValueError):
        values = None
    if values is None or tuple(values.shape) not in (shape[1:], shape):
        what = f"shape {tuple(values.shape)}" if values is not None else f"a {type(given).__name__}"
        raise InputError(f"expected: got {what}; expected [{shape[1]}], one number for each latent of the source, or {list(shape)}.")
    numbers = torch.from_numpy(values.data) if is_sparse else values
    if numbers.is_complex() or not bool(numbers.to(torch.float64).sum().isfinite()):
        raise InputError("expected: some are no finite numbers; expected means over a corpus. Leave latents out that have none.")
    if values.ndim == 1:
        return _Expectation(values[writes.latent], None, None)
    return _Expectation(values, reads.latent, None if writes.is_all else writes.latent)
