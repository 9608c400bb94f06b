"""Which paths: rules on their nodes, as a plain value, and as a machine that reads a path from where it begins.

A search keeps the best paths into every node. It can do so among the paths that follow rules if what a rule has seen of a path is
one of a few states: then it keeps the best for each node *and state*, and what it finds is exactly the best of the allowed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.nodes import Nodes
from attrib.graph.paths import Path
from attrib.graph.where import NodeFilter

Sign = Literal["both", "positive", "negative"]

MOST_STATES: Final = 1024
"""States of a machine: tables hold one number for each of a graph's nodes and each of these."""


@dataclass(frozen=True)
class PathFilter:
    """Paths of which everything that is given holds. `PathFilter()` is every path that cannot be continued.

    A pattern is a sequence of filters for nodes that follow each other on a path, the one nearer to the node asked about first.
    """

    through: NodeFilter | None = None
    """All nodes of a path but the first, that was asked about: `~Where(kind=("error", "bias"))` leaves those out."""
    ends: NodeFilter | None = None
    """Where a path may begin. None: nodes that no edge goes to, but for heads, which bring what others are."""
    containing: Sequence[NodeFilter] = ()
    """A pattern that is somewhere on the path."""
    without: Sequence[NodeFilter] = ()
    """A pattern that is nowhere on it."""
    ending: Sequence[NodeFilter] = ()
    """A pattern at its last nodes, where it begins."""
    longest: int | None = None
    """How many edges it has at most."""
    sign: Sign = "both"
    """Of its value."""
    least: float = 0.0
    """The least size of its value."""

    def __post_init__(self) -> None:
        for field in ("through", "ends"):
            if not isinstance(getattr(self, field), NodeFilter | None):
                raise InputError(f"{field}: {getattr(self, field)!r}; expected a filter of nodes, such as Where(kind='latent').")
        for field in ("containing", "without", "ending"):
            pattern = getattr(self, field)
            object.__setattr__(self, field, (pattern,) if isinstance(pattern, NodeFilter) else tuple(pattern))
            if not all(isinstance(each, NodeFilter) for each in getattr(self, field)):
                raise InputError(f"{field}: {pattern!r}; expected filters of nodes, such as [Where(layer=3), Where(layer=2)].")
        if self.longest is not None and (not isinstance(self.longest, int) or self.longest < 1):
            raise InputError(f"longest: {self.longest!r}; expected a number of edges of at least 1.")
        if self.sign not in get_args(Sign):
            raise InputError(f"sign: {self.sign!r}; expected one of {', '.join(get_args(Sign))}.")
        if not self.least >= 0:
            raise InputError(f"least: {self.least!r}; expected a size of at least 0.")


class _State(NamedTuple):
    """What has been read of a path."""

    ending: int
    """How many nodes of that pattern have been found; its length when it is done."""
    containing: int
    """Bit i: the last i + 1 nodes are the pattern's first of this reading. -1 when it was found."""
    without: int
    length: int
    """Edges, where their number is bounded."""


class Machine(NamedTuple):
    """Rules as a table of states. The class of a node says which of the rules' filters it passes."""

    node_class: Int[Tensor, " nodes"]
    start: Int[Tensor, " classes"]
    """The state after the node where a path begins, or -1 where none may."""
    step: Int[Tensor, "states classes"]
    """The state after one more node, or -1 where the path is none that is meant."""
    accepts: Bool[Tensor, " states"]
    """Whether a path may stop there."""


def machine(rules: PathFilter, nodes: Nodes) -> Machine:
    """The rules on the order of a path's nodes.

    Raises:
        InputError: where patterns are so long that there are too many states.
    """
    patterns = [tuple(reversed(pattern)) for pattern in (rules.ending, rules.containing, rules.without)]
    several = [each for pattern in patterns for each in pattern]
    if len(several) > 62:
        raise InputError(f"which: {len(several)} filters in patterns; expected at most 62.")
    bits = torch.zeros(len(nodes), dtype=torch.int64)
    for number, each in enumerate(several):
        bits |= each.mask(nodes).long() << number
    classes, node_class = bits.unique(return_inverse=True)
    reader = _Reader(tuple(map(len, patterns)), rules.longest)
    states: dict[_State, int] = {}
    steps: list[list[int]] = []

    def numbered(state: _State | None) -> int:
        if state is not None and len(states) >= MOST_STATES and state not in states:
            raise InputError(f"which: the patterns and `longest` need more than {MOST_STATES} states; expected shorter ones.")
        return -1 if state is None else states.setdefault(state, len(states))

    start = [numbered(reader.read(None, code)) for code in classes.tolist()]
    while len(steps) < len(states):  # those that a step has found stand behind, and come in turn
        state = list(states)[len(steps)]
        steps.append([numbered(reader.read(state, code)) for code in classes.tolist()])
    return Machine(
        node_class, torch.tensor(start), torch.tensor(steps, dtype=torch.int64).reshape(len(states), len(classes)),
        torch.tensor([reader.accepts(state) for state in states], dtype=torch.bool),
    )  # fmt: skip


class _Reader(NamedTuple):
    """Reads a path node by node, from where it begins."""

    lengths: tuple[int, ...]
    """Of the patterns `ending`, `containing` and `without`, whose filters are bits of a class in this order."""
    longest: int | None

    def read(self, state: _State | None, code: int) -> _State | None:
        """The state after a node of this class. None before: it is the first; None after: the path is not meant."""
        n_ending, n_containing, _ = self.lengths
        ending, containing, without, length = state or (0, 0, 0, -1)
        if ending < n_ending and not code >> ending & 1:
            return None
        containing = _follow(containing, code >> n_ending, n_containing)
        without = _follow(without, code >> (n_ending + n_containing), self.lengths[2])
        length = 0 if self.longest is None else length + 1
        if (without < 0 and self.lengths[2]) or (self.longest is not None and length > self.longest):
            return None
        return _State(min(ending + 1, n_ending), containing, without, length)

    def accepts(self, state: _State) -> bool:
        """Whether all patterns were found."""
        return state.ending == self.lengths[0] and state.containing < 0


def _follow(found: int, code: int, length: int) -> int:
    """Which beginnings of a pattern end at this node, given those that ended at the one before; -1 once the whole was found."""
    if found < 0 or not length:
        return -1
    found = (found << 1 | 1) & code & ((1 << length) - 1)
    return -1 if found >> (length - 1) else found


def may_begin(rules: PathFilter, graph: Graph) -> Bool[Tensor, " nodes"]:
    """At which nodes a path may begin, if it may lead through them."""
    if rules.ends is not None:
        return rules.ends.mask(graph.nodes)
    found = torch.ones(len(graph.nodes), dtype=torch.bool)
    found[graph.targets[graph.indptr.diff() > 0]] = False
    found[graph.nodes.of_kind("head")] = False
    return found


def may_pass(rules: PathFilter, nodes: Nodes) -> Bool[Tensor, " nodes"]:
    """Which nodes may be on a path, behind the first."""
    return torch.ones(len(nodes), dtype=torch.bool) if rules.through is None else rules.through.mask(nodes)


def is_meant(rules: PathFilter, value: float) -> bool:
    """Whether a path of this value is meant."""
    sign = {"both": value != 0, "positive": value > 0, "negative": value < 0}[rules.sign]
    return sign and abs(value) >= rules.least


def select(graph: Graph, paths: Iterable[Path], which: PathFilter) -> list[Path]:
    """Those of some paths of the graph that follow the rules."""
    rules, begins, passes = machine(which, graph.nodes), may_begin(which, graph), may_pass(which, graph.nodes)
    return [
        path
        for path in paths
        if is_meant(which, path.value)
        and bool(begins[path.nodes[-1]])
        and bool(passes[list(path.nodes[1:])].all())
        and _is_accepted(rules, path)
    ]


def _is_accepted(rules: Machine, path: Path) -> bool:
    first, *others = rules.node_class[list(reversed(path.nodes))].tolist()
    state = int(rules.start[first])
    for each in others:
        state = int(rules.step[state, each]) if state >= 0 else -1
    return state >= 0 and bool(rules.accepts[state])


def signed(value: Float[Tensor, "*shape"], sign: Sign) -> Float[Tensor, "*shape"]:
    """What values are ranked by: their size, and -inf where they are zero or of another sign than is meant."""
    found = value.abs() if sign == "both" else value if sign == "positive" else -value
    return found.where(found > 0, -torch.inf)
