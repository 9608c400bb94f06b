"""An attribution graph of one prompt: direct effects between its nodes, as sparse rows that say what they leave out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.shown import in_html
from attrib.core.slices import counts_of, entries_of, ptr_of
from attrib.core.types import InputError
from attrib.graph.nodes import KINDS, Nodes
from attrib.graph.rowed import Rowed

if TYPE_CHECKING:
    import scipy.sparse

LONGEST = 200
"""Characters of a prompt that a notebook shows."""


AT_ONCE = 1 << 20
"""Edges that are read or written together, about: of a row that has more, all."""


class Accounts(Rowed):
    """What rows say without their edges."""

    nodes: Nodes
    l1: Float[Tensor, " targets"]
    tokens: Int[Tensor, " positions"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary})"

    @property
    def summary(self) -> str:
        """How much there is, and how far rows add up."""
        return (
            f"{len(self.tokens)} tokens, {len(self.nodes):,} nodes, {len(self.targets):,} rows, {len(self):,} edges; "
            f"remainder at most {self.worst:.1e} of its row's scale"
        )

    @property
    def scale(self) -> Float[Tensor, " targets"]:
        """The sum of the sizes of all that each row is made of: what a remainder is compared with."""
        return self.l1 + self.own.abs()

    @property
    def worst(self) -> float:
        """The largest remainder of a row, of its scale; 0 where there are no rows."""
        share = self.remainder.abs() / self.scale.clamp_min(torch.finfo(self.scale.dtype).tiny)
        return float(share.max()) if len(share) else 0.0

    @property
    def row_of(self) -> Int[Tensor, " nodes"]:
        """The row of each node, or -1 where none was computed."""
        found = torch.full((len(self.nodes),), -1)
        found[self.targets] = torch.arange(len(self.targets))
        return found

    def blocks(self, first: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """Runs of rows, ascending, with about `AT_ONCE` edges each."""
        end = len(self.targets) if end is None else end
        while first < end:
            most = self.indptr[first] + AT_ONCE
            upto = min(end, max(first + 1, int(torch.searchsorted(self.indptr, most, right=True)) - 1))
            yield first, upto
            first = upto


@dataclass(frozen=True, repr=False)
class Graph(Accounts):
    """Direct effects on targets. Row r is that of node `targets[r]`, and holds the edges `indptr[r]:indptr[r+1]`.

    An edge's weight is an attribution: the derivative of the target by the source, with every other node held, times the source's
    activation. So a row says what its target is made of:

        value  =  own + total + remainder,        total = sum of all attributions, kept or not

    with `own` what the target reads with (an encoder's bias, that of the unembedding and of the norm before it). Where the policy is
    LINEAR the remainder is zero up to rounding; else it is what linearisation misses.
    """

    nodes: Nodes
    targets: Int[Tensor, " targets"]
    """The numbers of the nodes that rows were computed of, ascending."""
    indptr: Int[Tensor, " targets_plus_1"]
    indices: Int[Tensor, " edges"]
    """The number of the node that each edge comes from, ascending within a row."""
    weight: Float[Tensor, " edges"]
    value: Float[Tensor, " targets"]
    own: Float[Tensor, " targets"]
    total: Float[Tensor, " targets"]
    l1: Float[Tensor, " targets"]
    """The sum of the sizes of all attributions of a row, kept or not."""
    importance: Float[Tensor, " targets"]
    """By how much each row counts by itself when influence is asked for: the probability of a logit; 0 for a latent."""
    tokens: Int[Tensor, " positions"]
    strings: tuple[str, ...]
    call: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, and hashes of what it was asked of."""

    def __post_init__(self) -> None:
        count = len(self.targets)
        columns = {name: getattr(self, name) for name in ("value", "own", "total", "l1", "importance")}
        for name, column in columns.items():
            if len(column) != count:
                raise InputError(f"{name}: {len(column)} of them, but the graph has {count} rows.")
        if len(self.indptr) != count + 1 or len(self.indices) != len(self.weight) or int(self.indptr[-1]) != len(self.indices):
            raise InputError(
                f"indptr: {len(self.indptr)} of them up to {int(self.indptr[-1])}; expected {count + 1} for {count} rows, up to the "
                f"{len(self.indices)} edges, of which {len(self.weight)} have weights."
            )
        if len(self.strings) != len(self.tokens):
            raise InputError(f"strings: {len(self.strings)} of them for {len(self.tokens)} tokens.")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.weight.dtype

    def sources_of(self, first: int, end: int) -> Int[Tensor, " edges"]:
        """The numbers of the nodes that the edges of the rows `first:end` come from."""
        return self.indices[int(self.indptr[first]) : int(self.indptr[end])]

    def weights_of(self, first: int, end: int) -> Float[Tensor, " edges"]:
        """Their weights."""
        return self.weight[int(self.indptr[first]) : int(self.indptr[end])]

    def _repr_html_(self) -> str:
        """What kinds of nodes there are, and how much comes from each, for notebooks."""
        kinds = torch.tensor([KINDS.index(each.kind) for each in self.nodes.sets])[self.nodes.set_of]
        nodes = torch.bincount(kinds, minlength=len(KINDS)).tolist()
        edges = torch.bincount(kinds[self.indices], minlength=len(KINDS)).tolist()
        sizes = torch.zeros(len(KINDS), dtype=torch.float64).index_add(0, kinds[self.indices], self.weight.abs().double()).tolist()
        rows = [(kind, f"{nodes[at]:,}", f"{edges[at]:,}", sizes[at]) for at, kind in enumerate(KINDS) if nodes[at]]
        text = "".join(self.strings)
        said = f"{self!r}\n{text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'}"
        return in_html(said, ("kind", "nodes", "edges from them", "Σ|attribution|"), rows)

    @property
    def dropped(self) -> Float[Tensor, " targets"]:
        """The attribution of each row that `keep` has dropped."""
        return self.total - torch.zeros_like(self.total).index_add(0, self.row, self.weight)

    def to_scipy(self) -> "scipy.sparse.csr_matrix":
        """The adjacency matrix [nodes, nodes], entry (target, source)."""
        import scipy.sparse

        counts = torch.zeros(len(self.nodes), dtype=torch.int64).index_copy(0, self.targets, self.indptr.diff())
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return scipy.sparse.csr_matrix((self.weight.numpy(), self.indices.numpy(), indptr.numpy()), shape=(len(self.nodes),) * 2)

    def take(self, nodes: Int[Tensor, " chosen"]) -> "Graph":
        """The graph of some nodes, by ascending numbers, and the edges between them. Totals stay: what is left out is dropped."""
        new = torch.full((len(self.nodes),), -1)
        new[nodes] = torch.arange(len(nodes))
        is_node = new >= 0
        is_row = is_node[self.targets]
        is_kept = is_node[self.indices]
        if not is_row.all():
            is_kept &= is_row.repeat_interleave(self.indptr.diff())
        rows, edges = is_row.nonzero()[:, 0], is_kept.nonzero()[:, 0]
        counts = torch.searchsorted(edges, self.indptr).diff()[rows]  # edges ascend, as rows do
        columns = {name: getattr(self, name)[rows] for name in ("value", "own", "total", "l1", "importance")}
        return replace(
            self, nodes=self.nodes.take(nodes), targets=new[self.targets[rows]], indptr=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            indices=new[self.indices[edges]], weight=self.weight[edges], **columns,
        )  # fmt: skip

    def of_rows(self, rows: Int[Tensor, " chosen"]) -> "Graph":
        """The same nodes with some of the rows, by ascending numbers."""
        counts, entries = counts_of(self.indptr, rows), entries_of(self.indptr, rows)
        columns = {name: getattr(self, name)[rows] for name in ("targets", "value", "own", "total", "l1", "importance")}
        return replace(self, indptr=ptr_of(counts), indices=self.indices[entries], weight=self.weight[entries], **columns)

    def only(self, kept: "Tensor") -> "Graph":
        """The same nodes and rows with some of the edges, by a mask."""
        counts = torch.bincount(self.row[kept], minlength=len(self.targets))
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return replace(self, indptr=indptr, indices=self.indices[kept], weight=self.weight[kept])
