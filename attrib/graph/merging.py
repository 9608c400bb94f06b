"""Merging: nodes put together as supernodes, whose edges are the sums over their members, so that rows still add up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.slices import ptr_of
from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.keys import Key, align, matching
from attrib.graph.nodes import Nodes
from attrib.graph.rowed import Rowed


@dataclass(frozen=True, repr=False)
class MergedGraph(Rowed):
    """A graph of supernodes: each node of a graph is a member of one, alone or with others. Row r is that of supernode `targets[r]`.

    Each column of a row is the sum over the rows of its members, and so is each edge. What members give to each other is `inner`:

        value  =  own + total + remainder,        total = inner + the edges + what was dropped

    Members of which no row was computed (errors, say) bring edges out and none in. Supernodes that hold nodes of several layers may
    form cycles: nothing here is in order of computation.
    """

    names: tuple[str, ...]
    """What each supernode is called: by its group, or, where a node is alone, by its label. By the lowest number of a member."""
    nodes: Nodes
    """The nodes that are members."""
    member_of: Int[Tensor, " nodes"]
    """The number of the supernode of each node."""
    targets: Int[Tensor, " targets"]
    """The numbers of the supernodes that have rows, ascending."""
    rows: Int[Tensor, " targets"]
    """How many members of each have rows."""
    indptr: Int[Tensor, " targets_plus_1"]
    indices: Int[Tensor, " edges"]
    """The number of the supernode that each edge comes from, ascending within a row."""
    weight: Float[Tensor, " edges"]
    inner: Float[Tensor, " targets"]
    """The sum of the edges among members."""
    value: Float[Tensor, " targets"]
    own: Float[Tensor, " targets"]
    total: Float[Tensor, " targets"]
    l1: Float[Tensor, " targets"]
    """The sum of the sizes of all attributions of members, before those of one edge are added up."""
    importance: Float[Tensor, " targets"]
    tokens: Int[Tensor, " positions"]
    strings: tuple[str, ...]
    call: Mapping[str, object] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"MergedGraph({len(self.names):,} supernodes of {len(self.nodes):,} nodes, {len(self.targets):,} rows, {len(self):,} edges)"

    @property
    def dropped(self) -> Float[Tensor, " targets"]:
        """The attribution of each row that is no edge here: dropped by `keep`, or when nodes were left out."""
        return self.total - self.inner - torch.zeros_like(self.total).index_add(0, self.row, self.weight)

    def find(self, name: str) -> int:
        """The number of a supernode by its name. Raises InputError where none or several have it."""
        found = [number for number, each in enumerate(self.names) if each == name]
        if len(found) != 1:
            raise InputError(f"name: {name!r}, which {len(found)} supernodes have; expected the name of one.")
        return found[0]

    def members(self, number: int) -> Int[Tensor, " members"]:
        """The nodes of a supernode, ascending."""
        return (self.member_of == number).nonzero()[:, 0]


def merge_positions(graph: Graph) -> MergedGraph:
    """A latent at all its positions as one node, and so each token of one id, each constant, each error of one place.

    No set of nodes has edges within itself, so there are no cycles, and `inner` is zero.
    """
    table, (at,) = align([graph], positions=False)
    number, member_of = _by_first_member(at)
    labels = table.labels
    return _merged(graph, tuple(labels[each] for each in number.tolist()), member_of)


def merge(graph: Graph, groups: Mapping[str, Sequence[Key]], *, missing: str = "refuse") -> MergedGraph:
    """Put the nodes of each group together under its name. A node in no group stays alone, under its label.

    Args:
        groups: for each name the keys of its nodes; a key without a position is of every position.
        missing: what to do about a key that no node has: groups written for other prompts have many. A group with no node
            at all is left out then.

    Raises:
        InputError: for a key of no node, a node in two groups, and a group without keys.
    """
    if missing not in ("refuse", "ignore"):
        raise InputError(f"missing: {missing!r}; expected 'refuse' or 'ignore'.")
    count = len(graph.nodes)
    group_of = torch.full((count,), -1)
    for number, (name, keys) in enumerate(groups.items()):
        if not keys:
            raise InputError(f"groups: {name!r} has no nodes; expected keys of nodes.")
        for key in keys:
            found = matching(graph.nodes, key)
            if not len(found) and missing == "refuse":
                raise InputError(
                    f"groups: {name!r} names {key}, which the graph has not; expected keys of its nodes. Leave it out, or pass "
                    "missing='ignore' for groups that were made for other graphs."
                )
            taken = found[(group_of[found] >= 0) & (group_of[found] != number)]
            if len(taken):
                other = list(groups)[int(group_of[taken[0]])]
                raise InputError(f"groups: {key} is in {other!r} and in {name!r}; expected each node in one group at most.")
            group_of[found] = number
    # groups first, then every node by itself
    first, member_of = _by_first_member(torch.where(group_of >= 0, group_of, torch.arange(count) + len(groups)))
    names = list(groups)
    called = tuple(names[each] if each < len(names) else graph.nodes.label(each - len(names)) for each in first.tolist())
    return _merged(graph, called, member_of)


def _by_first_member(part: Int[Tensor, " nodes"]) -> tuple[Int[Tensor, " parts"], Int[Tensor, " nodes"]]:
    """Parts in the order of their lowest nodes, and where each node's part is among them."""
    unique, inverse = part.unique(return_inverse=True)
    lowest = torch.full((len(unique),), len(part)).scatter_reduce(0, inverse, torch.arange(len(part)), "amin")
    order = lowest.argsort()
    return unique[order], order.argsort()[inverse]


def _merged(graph: Graph, names: tuple[str, ...], member_of: Int[Tensor, " nodes"]) -> MergedGraph:
    targets, row_of_row = member_of[graph.targets].unique(return_inverse=True)
    count = len(targets)

    def added(value: Float[Tensor, " parts"], into: Int[Tensor, " parts"], size: int) -> Float[Tensor, " whole"]:
        return torch.zeros(size, dtype=torch.float64).index_add(0, into, value.double()).to(value.dtype)

    row, source = row_of_row[graph.row], member_of[graph.indices]
    is_inner = source == targets[row]
    code, edge = (row * len(names) + source)[~is_inner].unique(return_inverse=True)
    columns = {name: added(getattr(graph, name), row_of_row, count) for name in ("value", "own", "total", "l1", "importance")}
    return MergedGraph(
        names, graph.nodes, member_of, targets, torch.bincount(row_of_row, minlength=count),
        ptr_of(torch.bincount(code // max(1, len(names)), minlength=count)), code % max(1, len(names)),
        added(graph.weight[~is_inner], edge, len(code)), added(graph.weight[is_inner], row[is_inner], count),
        **columns, tokens=graph.tokens, strings=graph.strings, call=graph.call,
    )  # fmt: skip
