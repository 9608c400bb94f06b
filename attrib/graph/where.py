"""Which nodes: filters as plain values, joined by `&`, `|` and `~`, and asked of a table of nodes at once."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attrib.core.types import InputError
from attrib.graph.nodes import KINDS, Nodes

_LAYER = re.compile(r"^blocks\.(\d+)\.")

Words = str | Iterable[str] | None
Numbers = int | Iterable[int] | None


class NodeFilter:
    """Says of every node whether it is meant. `a & b`, `a | b` and `~a` are filters too."""

    def mask(self, nodes: Nodes) -> Bool[Tensor, " nodes"]:
        """Which nodes are meant."""
        raise NotImplementedError

    def find(self, nodes: Nodes) -> Int[Tensor, " found"]:
        """The numbers of the nodes that are meant, ascending."""
        return self.mask(nodes).nonzero()[:, 0]

    def __and__(self, other: "NodeFilter") -> "NodeFilter":
        return _Both(self, other)

    def __or__(self, other: "NodeFilter") -> "NodeFilter":
        return ~(~self & ~other)

    def __invert__(self) -> "NodeFilter":
        return _Not(self)


@dataclass(frozen=True)
class _Both(NodeFilter):
    first: NodeFilter
    second: NodeFilter

    def mask(self, nodes: Nodes) -> Bool[Tensor, " nodes"]:
        return self.first.mask(nodes) & self.second.mask(nodes)


@dataclass(frozen=True)
class _Not(NodeFilter):
    inner: NodeFilter

    def mask(self, nodes: Nodes) -> Bool[Tensor, " nodes"]:
        return ~self.inner.mask(nodes)


@dataclass(frozen=True)
class Where(NodeFilter):
    """Nodes of which everything that is given holds; each is one value or several, of which one has to hold. `Where()` is every node.

    Ranges are ranges: `layer=range(3, 6)`, and `~Where(layer=range(3))` is all that is not below layer 3.
    """

    kind: Words = None
    """"token", "latent", "error" and so on (`attrib.graph.NodeKind`)."""
    site: Words = None
    """A hook's name as in `NodeSet.site`."""
    name: Words = None
    """A dictionary's name."""
    layer: Numbers = None
    """The layer of the site. Embeddings have none, and so are never of one."""
    position: Numbers = None
    latent: Numbers = None
    """The index of a latent; the vocabulary id of a token or logit."""
    head: Numbers = None
    """The number of a head in its layer, of nodes that are heads (`attrib.graph.with_heads`)."""
    label: Words = None
    """The string of a token or logit, the name of a target."""

    def __post_init__(self) -> None:
        for field in ("kind", "site", "name", "label"):
            object.__setattr__(self, field, _words(field, getattr(self, field)))
        for field in ("layer", "position", "latent", "head"):
            object.__setattr__(self, field, _numbers(field, getattr(self, field)))
        for kind in self.kind or ():
            if kind not in KINDS:
                raise InputError(f"kind: {kind!r}; expected one of {', '.join(KINDS)}.")

    def mask(self, nodes: Nodes) -> Bool[Tensor, " nodes"]:
        """Which nodes are meant."""
        of_sets = {"kind": "kind", "site": "site", "name": "name"}
        wanted = [
            all(getattr(self, field) is None or getattr(each, of) in getattr(self, field) for field, of in of_sets.items())
            and (self.layer is None or layer_of(each.site) in self._numbers_of("layer"))
            for each in nodes.sets
        ]
        found = torch.tensor(wanted, dtype=torch.bool)[nodes.set_of]
        is_head = torch.zeros(len(nodes), dtype=torch.bool)
        is_head[nodes.of_kind("head")] = True
        columns = {"position": nodes.position, "latent": nodes.latent.where(~is_head, -1), "head": nodes.latent.where(is_head, -1)}
        for field, column in columns.items():
            if getattr(self, field) is not None:
                found &= torch.isin(column, torch.tensor(self._numbers_of(field), dtype=torch.int64))
        return found if self.label is None else found & self._labelled(nodes)

    def _numbers_of(self, field: str) -> tuple[int, ...]:
        numbers: tuple[int, ...] = getattr(self, field)
        return numbers

    def _labelled(self, nodes: Nodes) -> Bool[Tensor, " nodes"]:
        is_wanted = torch.tensor([label in (self.label or ()) for label in nodes.labels], dtype=torch.bool)
        found = torch.zeros(len(nodes), dtype=torch.bool)
        found[nodes.of_kind("token", "logit", "target")[is_wanted]] = True
        return found


def layer_of(site: str) -> int | None:
    """The layer of a hook's name; None of embeddings."""
    found = _LAYER.match(site)
    return int(found[1]) if found else None


def _words(field: str, given: Words) -> tuple[str, ...] | None:
    """Words as a tuple.

    Raises:
        InputError: where something else is among them.
    """
    if given is None:
        return None
    words = (given,) if isinstance(given, str) else tuple(given)
    for word in words:
        if not isinstance(word, str):
            raise InputError(f"{field}: {word!r}; expected a string or several.")
    return words


def _numbers(field: str, given: Numbers) -> tuple[int, ...] | None:
    """Whole numbers as a tuple.

    Raises:
        InputError: where something else is among them.
    """
    if given is None:
        return None
    numbers = (given,) if isinstance(given, Integral | str) or not isinstance(given, Iterable) else tuple(given)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, Integral) or number < 0:
            raise InputError(f"{field}: {number!r}; expected a whole number of at least 0, or several, such as range(3, 6).")
    return tuple(int(number) for number in numbers)
