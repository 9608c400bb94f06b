"""Edges: the result of every attribution, a CSR matrix over targets × sources with its node tables.

Rows are the targets of all prompts, columns the sources of all prompts; a prompt's edges lie in its own
rows and columns. Both tables are in canonical order: by prompt, then (position, latent); logits stand in
the order in which they were asked for.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.room import memory_named
from attrib.core.shown import SHOWN, frame_in_html
from attrib.core.slices import Chosen, counts_of, entries_of, join_ptr, part_of, ptr_of, taken
from attrib.core.types import BIAS, ERROR, EdgeKind, InputError, NodeKind

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse

Value = Literal["gradient", "attribution"]

_KINDS = {ERROR: "error", BIAS: "bias"}
"""What stands among latents and is none."""


@dataclass(frozen=True, repr=False)
class Prompts:
    """The prompts of a result: token ids one after another, where each begins, and their strings."""

    ptr: Int[Tensor, " prompts_plus_1"]
    ids: Int[Tensor, " tokens"]
    strings: tuple[str, ...]
    number: Int[Tensor, " prompts"] | None = None
    """The number of each prompt in the data set that it was taken from; None where that is its place here."""
    corrupt: Int[Tensor, " tokens"] | None = None
    """Of a rule that compares with other prompts, their token ids, position by position; see attrib.core.rules."""

    def __len__(self) -> int:
        return self.ptr.shape[0] - 1

    def __repr__(self) -> str:
        return f"Prompts({len(self):,} of {len(self.ids):,} tokens in all)"

    def equals(self, other: "Prompts") -> bool:
        """Whether both are the same prompts of the same numbers."""
        numbered = torch.equal(self.numbers, other.numbers)
        if self.corrupt is None or other.corrupt is None:
            numbered &= self.corrupt is other.corrupt
        else:
            numbered &= torch.equal(self.corrupt, other.corrupt)
        return numbered and torch.equal(self.ptr, other.ptr) and torch.equal(self.ids, other.ids) and self.strings == other.strings

    @property
    def numbers(self) -> Int[Tensor, " prompts"]:
        """The number of each prompt in its data set."""
        return torch.arange(len(self)) if self.number is None else self.number

    def take(self, prompts: Chosen) -> "Prompts":
        """Some prompts, by their place here, with the numbers that they have here."""
        tokens = entries_of(self.ptr, prompts)
        number = None if self.number is None else self.number[prompts]
        corrupt = None if self.corrupt is None else self.corrupt[tokens]
        return Prompts(ptr_of(counts_of(self.ptr, prompts)), self.ids[tokens], taken(self.strings, tokens), number, corrupt)

    def text(self, prompt: int) -> tuple[str, ...]:
        """The token strings of one prompt."""
        return self.strings[int(self.ptr[prompt]) : int(self.ptr[prompt + 1])]


@dataclass(frozen=True, repr=False)
class Nodes:
    """A table of nodes of one kind at one site. Rows of prompt i are `ptr[i]:ptr[i+1]`.

    `latent` is the latent's index, the vocabulary id of a token or logit, or -1 for an error, a difference, a
    direction or a metric. Among latents, -1 is the error at a position and -2 the bias, where these are sources too.
    `activation` is the latent's activation, a token's or an error's scale (1), or the value of a logit, direction or metric.
    Targets have their value at the end of the path: with `error=False`, what the reconstruction alone leads to, which is
    0 for a latent that is not active there.
    """

    kind: NodeKind
    site: str
    ptr: Int[Tensor, " prompts_plus_1"]
    position: Int[Tensor, " nodes"]
    latent: Int[Tensor, " nodes"]
    activation: Float[Tensor, " nodes"]
    labels: tuple[str, ...] = ()
    """A name for each row that is not a latent: a token's string, 'A - B' of a difference. Empty for latents."""
    probability: Float[Tensor, " nodes"] | None = None
    """The probability of each logit's token; NaN for a difference or direction. None for other kinds."""
    change: Float[Tensor, " nodes"] | None = None
    """Of sources, what gradients are multiplied by to give attributions; None where that is the activation. See attrib.core.rules."""

    def __len__(self) -> int:
        return self.position.shape[0]

    def __repr__(self) -> str:
        return f"Nodes({len(self):,} {self.kind}s at {self.site}, {len(self.ptr) - 1:,} prompts)"

    @property
    def prompt(self) -> Int[Tensor, " nodes"]:
        """The prompt number of every row."""
        return torch.repeat_interleave(torch.arange(len(self.ptr) - 1), self.ptr.diff())

    @property
    def step(self) -> Float[Tensor, " nodes"]:
        """What gradients by these sources are multiplied by to give attributions: `change`, or the activation."""
        return self.activation if self.change is None else self.change

    def rows(self, prompt: int) -> slice:
        """The rows of one prompt."""
        return slice(int(self.ptr[prompt]), int(self.ptr[prompt + 1]))

    def take(self, rows: Chosen, counts: Int[Tensor, " prompts"]) -> "Nodes":
        """Some rows, prompt by prompt: so many of each."""
        return replace(
            self,
            ptr=ptr_of(counts),
            position=self.position[rows],
            latent=self.latent[rows],
            activation=self.activation[rows],
            labels=taken(self.labels, rows) if self.labels else (),
            probability=None if self.probability is None else self.probability[rows],
            change=None if self.change is None else self.change[rows],
        )


@dataclass(frozen=True, repr=False)
class Edges:
    """Gradients and attributions from sources to targets; see the module's docstring for the order.

    Row t holds entries `indptr[t]:indptr[t+1]`: columns `indices` (ascending, into `sources`), `gradient`
    = d target / d source, `attribution` = gradient × source activation, or what the call's rule says in their place
    (attrib.core.rules). `total` and `l1` are the sums of attribution and of |attribution| over all sources of the row, kept or not.
    """

    kind: EdgeKind
    sources: Nodes
    targets: Nodes
    indptr: Int[Tensor, " targets_plus_1"]
    indices: Int[Tensor, " edges"]
    gradient: Float[Tensor, " edges"]
    attribution: Float[Tensor, " edges"]
    total: Float[Tensor, " targets"]
    l1: Float[Tensor, " targets"]
    prompts: Prompts
    call: dict[str, Any] = field(default_factory=dict)
    """What was asked for, and hashes of what it was asked of; see docs/format.md."""
    gap: Float[Tensor, " targets"] | None = None
    """Of rules that say what all sources do together, what `total` misses of it; None of gradients alone. See attrib.core.rules."""

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __repr__(self) -> str:
        dtype = str(self.gradient.dtype).removeprefix("torch.")
        return (
            f"Edges({self.kind} {self.sources.site} -> {self.targets.site}: {len(self.prompts):,} prompts, "
            f"{len(self.targets):,} targets x {len(self.sources):,} sources, {len(self):,} edges, {dtype})"
        )

    def _repr_html_(self) -> str:
        """The strongest edges as a small table, for notebooks."""
        return frame_in_html(f"{self!r}; the strongest:", self.top(SHOWN))

    @property
    def shape(self) -> tuple[int, int]:
        """(targets, sources), over all prompts."""
        return len(self.targets), len(self.sources)

    @property
    def row(self) -> Int[Tensor, " edges"]:
        """The target row of every entry."""
        return torch.repeat_interleave(torch.arange(len(self.targets)), self.indptr.diff())

    @property
    def remainder(self) -> Float[Tensor, " targets"]:
        """The attribution of each row that `keep` dropped."""
        return self.total - torch.zeros_like(self.total).index_add(0, self.row, self.attribution)

    def prompt(self, number: int) -> "Edges":
        """The edges of one prompt, with its own rows and columns. Negative numbers count from the end."""
        count = len(self.prompts)
        if not -count <= number < count:
            raise InputError(f"prompt: {number} is outside the {count} prompts of this result.")
        return self.take(slice(number % count, number % count + 1))

    def take(self, prompts: Chosen) -> "Edges":
        """The edges of some prompts, by their place here, with their own rows and columns; one may be taken again."""
        columns, rows = (entries_of(nodes.ptr, prompts) for nodes in (self.sources, self.targets))
        sources = self.sources.take(columns, counts_of(self.sources.ptr, prompts))
        targets = self.targets.take(rows, counts_of(self.targets.ptr, prompts))
        counts, entries = counts_of(self.indptr, rows), entries_of(self.indptr, rows)
        if isinstance(columns, slice):
            moved: int | Tensor = -columns.start
        else:  # a prompt's columns move together: by this much for each of its rows, and so for each of their entries
            moved = (sources.ptr[:-1] - self.sources.ptr[prompts]).repeat_interleave(targets.ptr.diff()).repeat_interleave(counts)
        return replace(
            self,
            sources=sources,
            targets=targets,
            indptr=ptr_of(counts),
            indices=self.indices[entries] + moved,
            gradient=self.gradient[entries],
            attribution=self.attribution[entries],
            total=self.total[rows],
            l1=self.l1[rows],
            prompts=self.prompts.take(prompts),
            gap=None if self.gap is None else self.gap[rows],
        )

    @memory_named("making a dense matrix", "It has all pairs: take fewer targets, or `to_scipy`, which has the edges alone.")
    def dense(self, prompt: int = 0, value: Value = "gradient") -> Float[Tensor, "targets sources"]:
        """One prompt's edges as a dense matrix in canonical order; entries that were not kept are zero."""
        part = self.prompt(prompt)
        return torch.zeros(part.shape, dtype=part.gradient.dtype).index_put((part.row, part.indices), part.values(value))

    def values(self, value: Value) -> Float[Tensor, " edges"]:
        """The entries of one of the two values."""
        if value not in ("gradient", "attribution"):
            raise InputError(f"value: {value!r}; expected 'gradient' or 'attribution'.")
        return self.gradient if value == "gradient" else self.attribution

    def to_scipy(self, value: Value = "attribution") -> "scipy.sparse.csr_array":
        """All prompts as one scipy CSR array [targets, sources]."""
        import scipy.sparse

        return scipy.sparse.csr_array((self.values(value).numpy(), self.indices.numpy(), self.indptr.numpy()), shape=self.shape)

    @memory_named("making a table", "Take `top(k)`, or `prompt(number)` first.")
    def to_pandas(self) -> "pd.DataFrame":
        """One row per edge, with both ends' columns spelled out."""
        return self._table(torch.arange(len(self)))

    def top(self, k: int, value: Value = "attribution") -> "pd.DataFrame":
        """The k edges of largest absolute value over all prompts, strongest first. Raises InputError where k is below 1."""
        if k < 1:
            raise InputError(f"k: {k}; expected at least 1.")
        return self._table(_largest(self.values(value), k))

    def _table(self, entries: Int[Tensor, " chosen"]) -> "pd.DataFrame":
        """Chosen entries as a table, in the order in which they are given; the cost is theirs alone."""
        import pandas as pd

        row = part_of(self.indptr, entries)
        prompt = part_of(self.targets.ptr, row)
        first = self.prompts.ptr[prompt]
        table: dict[str, Any] = {"prompt": prompt.numpy()}
        for name, nodes, at in (("source", self.sources, self.indices[entries]), ("target", self.targets, row)):
            position = nodes.position[at]
            table[f"{name}_position"] = position.numpy()
            table[f"{name}_token"] = [self.prompts.strings[i] for i in (first + position).tolist()]
            table[f"{name}_latent"] = nodes.latent[at].numpy()
            if nodes.kind == "latent" and bool((nodes.latent < 0).any()):
                table[f"{name}_kind"] = [_KINDS.get(latent, "latent") for latent in nodes.latent[at].tolist()]
            table[f"{name}_activation"] = nodes.activation[at].numpy()
            if nodes.change is not None:
                table[f"{name}_change"] = nodes.change[at].numpy()
            if nodes.labels:
                table[f"{name}_label"] = [nodes.labels[i] for i in at.tolist()]
        values: dict[str, Any] = {name: self.values(name)[entries].numpy() for name in get_args(Value)}
        return pd.DataFrame(table | values)


def _largest(values: Float[Tensor, " entries"], k: int) -> Int[Tensor, " chosen"]:
    """Where the k largest absolute values are, largest first; of equal ones the first. Only those that may be among them are sorted."""
    size = values.abs()
    places = (size >= size.topk(min(k, len(size))).values[-1:]).nonzero()[:, 0]
    return places[size[places].argsort(descending=True, stable=True)[:k]]


def _join_nodes(parts: Sequence[Nodes]) -> Nodes:
    first = parts[0]
    return replace(
        first,
        ptr=join_ptr([n.ptr for n in parts]),
        position=torch.cat([n.position for n in parts]),
        latent=torch.cat([n.latent for n in parts]),
        activation=torch.cat([n.activation for n in parts]),
        labels=tuple(label for n in parts for label in n.labels),
        probability=_joined([n.probability for n in parts]),
        change=_joined([n.change for n in parts]),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """A column that all parts have; None where one has not."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if len(there) == len(parts) else None


def join_prompts(parts: Sequence[Prompts]) -> Prompts:
    """Prompts of several results, one after another."""
    return Prompts(
        join_ptr([part.ptr for part in parts]),
        torch.cat([part.ids for part in parts]),
        tuple(string for part in parts for string in part.strings),
        _joined([part.number for part in parts]),
        _joined([part.corrupt for part in parts]),
    )


def concatenated(pieces: list[Tensor]) -> Tensor:
    """One piece after another, each let go of as soon as it is copied: the list is empty afterwards.

    `torch.cat` would hold everything twice, and a result can be larger than all else in memory.
    """
    if len(pieces) == 1:
        return pieces.pop()
    whole, at = pieces[0].new_empty(sum(map(len, pieces))), 0
    pieces.reverse()
    while pieces:
        piece = pieces.pop()
        whole[at : at + len(piece)] = piece
        at += len(piece)
        del piece
    return whole


class Growing:
    """A column that grows at its end, in pieces that double up to a size which the machine takes back when they are let go of.

    Many small tensors would stay in the process's heap, beside the whole that they are copied to.
    """

    LARGEST = 1 << 23

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []
        self.begins = [0]
        """Where each piece begins, and last where there is no more room."""
        self.used = self.size = 0

    def add(self, piece: Tensor) -> None:
        """Append a piece."""
        while len(piece):
            if not self.pieces or self.used == len(self.pieces[-1]):
                self.pieces.append(piece.new_empty(max(len(piece), min(self.size, self.LARGEST))))
                self.begins.append(self.begins[-1] + len(self.pieces[-1]))
                self.used = 0
            taken = min(len(piece), len(self.pieces[-1]) - self.used)
            self.pieces[-1][self.used : self.used + taken] = piece[:taken]
            self.used, self.size, piece = self.used + taken, self.size + taken, piece[taken:]

    def whole(self, none: Tensor) -> Tensor:
        """All of it; `none` where there is nothing. The column is empty afterwards."""
        if self.pieces:
            self.pieces[-1] = self.pieces[-1][: self.used]
        self.begins = [0]
        return concatenated(self.pieces or [none])

    def read(self, runs: Sequence[tuple[int, int]], into: Tensor) -> None:
        """Copy runs `[first, end)` of it, one behind the other."""
        at = 0
        for start, end in runs:
            first, number = start, bisect_right(self.begins, start) - 1
            while first < end:
                begin, upto = self.begins[number], min(end, self.begins[number + 1])
                into[at : at + upto - first] = self.pieces[number][first - begin : upto - begin]
                at, first, number = at + upto - first, upto, number + 1

    def in_order(self, runs: Sequence[tuple[int, int]], none: Tensor) -> Tensor:
        """Such runs as one tensor; the column is empty afterwards. `none` is of its kind."""
        whole = none.new_empty(sum(end - first for first, end in runs))
        self.read(runs, whole)
        self.clear()
        return whole

    def clear(self) -> None:
        """Let go of all of it."""
        self.pieces, self.begins = [], [0]
        self.used = self.size = 0


def join(parts: Sequence[Edges], *, release: bool = False) -> Edges:
    """Results of the same call on successive prompts, as one.

    Args:
        release: whether to empty the list of parts, and let go of each as it is copied, so that the whole is never held twice.
    """
    if len(parts) == 1:
        return parts[0]
    offsets = torch.tensor([0, *(len(p.sources) for p in parts)]).cumsum(0)
    tables: dict[str, Any] = {
        "kind": parts[0].kind,
        "call": parts[0].call,
        "sources": _join_nodes([p.sources for p in parts]),
        "targets": _join_nodes([p.targets for p in parts]),
        "indptr": join_ptr([p.indptr for p in parts]),
        "prompts": join_prompts([p.prompts for p in parts]),
        "gap": _joined([p.gap for p in parts]),
    }
    columns = {name: [getattr(p, name) for p in parts] for name in ("gradient", "attribution", "total", "l1", "indices")}
    sizes = [len(p) for p in parts]
    if release:
        cast(list[Edges], parts).clear()
    values: dict[str, Any] = {name: concatenated(column) for name, column in columns.items()}
    for offset, of_part in zip(offsets.tolist(), values["indices"].split(sizes), strict=False):
        of_part.add_(offset)
    return Edges(**tables, **values)
