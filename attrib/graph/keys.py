"""Keys: what a node is called in every graph, so that nodes of two graphs, or of one at several positions, can be told to be the same."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.types import InputError, natural
from attrib.graph.graph import Graph
from attrib.graph.nodes import KINDS, NAMED_KINDS, NodeKind, Nodes, head_name

_AT = re.compile(r" @\d+(?= ← |$)")
"""The positions in the name of a set of heads."""


class Key(NamedTuple):
    """What a node is: its kind, its site, its number there, its position."""

    kind: NodeKind
    site: str
    latent: int = -1
    """A latent's index, a head's, the vocabulary id of a token or logit, the position of a position's embedding; else -1."""
    position: int | None = None
    """None is every position."""
    name: str = ""
    """The dictionary of a latent, what a head is on the way to, or a target's label: needed where two dictionaries read one site. Empty is
    any."""

    def __str__(self) -> str:
        number = f"[{self.latent}]" if self.latent >= 0 else ""
        of, at = f" of {self.name!r}" if self.name else "", "" if self.position is None else f" @{self.position}"
        return f"{self.kind} {self.site}{number}{of}{at}"


class _Place(NamedTuple):
    """A set of nodes, in any graph."""

    kind: NodeKind
    site: str
    name: str

    @property
    def order(self) -> tuple[object, ...]:
        first = {"token": 0, "position": 1, "logit": 3, "target": 4}.get(self.kind, 2)
        return first, natural(self.site), KINDS.index(self.kind), natural(self.name), self.name


@dataclass(frozen=True, repr=False)
class KeyTable:
    """The nodes of several graphs, each key once: by place (embeddings, then sites by name, then outputs), position and latent."""

    places: tuple[_Place, ...]
    place: Int[Tensor, " nodes"]
    position: Int[Tensor, " nodes"]
    """-1 where nodes are told apart without it."""
    latent: Int[Tensor, " nodes"]
    strings: tuple[str, ...]
    """What tokens, logits and targets are called; empty for others."""

    def __len__(self) -> int:
        return self.place.shape[0]

    def __repr__(self) -> str:
        return f"KeyTable({len(self):,} nodes at {len(self.places)} places)"

    def key(self, node: int) -> Key:
        """A node's key. Of a position's embedding without its position, the number is -1."""
        place, position, latent = self.places[int(self.place[node])], int(self.position[node]), int(self.latent[node])
        return Key(place.kind, place.site, latent, None if position < 0 else position, place.name)

    def label(self, node: int) -> str:
        """A node in a few words, as `Nodes.label` puts it, without what it was not told apart by."""
        key, string = self.key(node), self.strings[node]
        at = "" if key.position is None else f" @{key.position}"
        if key.kind in NAMED_KINDS:
            return f"{key.kind} {string!r}{at}"
        if key.kind == "head":
            return f"{head_name(key.site, key.latent)}{at}"
        return f"{key.site}[{key.latent}]{at}" if key.kind == "latent" else f"{key.kind} {key.site}{at}"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels of all nodes."""
        return tuple(self.label(node) for node in range(len(self)))


def key_of(nodes: Nodes, node: int) -> Key:
    """The key by which a node is found in other graphs."""
    each = nodes.sets[int(nodes.set_of[node])]
    name = _strings(nodes)[node] if each.kind == "target" else each.name
    return Key(each.kind, each.site, int(nodes.latent[node]), int(nodes.position[node]), name)


def matching(nodes: Nodes, key: Key) -> Int[Tensor, " found"]:
    """The numbers of all nodes that a key is of, ascending."""
    found = []
    for number, each in enumerate(nodes.sets):
        if (each.kind, each.site) == (key.kind, key.site) and (key.kind == "target" or key.name in ("", each.name)):
            at = nodes.rows(number)
            is_meant = nodes.latent[at] == key.latent
            if key.position is not None:
                is_meant &= nodes.position[at] == key.position
            found.append(is_meant.nonzero()[:, 0] + at.start)
    chosen = torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)
    if key.kind == "target" and key.name:
        names = _strings(nodes)
        return chosen[torch.tensor([names[node] == key.name for node in chosen.tolist()], dtype=torch.bool)]
    return chosen


def align(graphs: Sequence[Graph], *, positions: bool = True) -> tuple[KeyTable, tuple[Int[Tensor, " _"], ...]]:
    """A table of the nodes of all graphs, and for each graph the place of each of its nodes in it.

    Args:
        positions: whether nodes at different positions are different nodes.

    Raises:
        InputError: where, by position, two nodes of one graph have one key.
    """
    strings = [_strings(graph.nodes) for graph in graphs]
    found = [_places(graph.nodes, names, positions) for graph, names in zip(graphs, strings, strict=True)]
    places = tuple(sorted({place for each, _ in found for place in each}, key=lambda place: place.order))
    number = {place: at for at, place in enumerate(places)}
    columns = [
        torch.stack([torch.tensor([number[place] for place in each], dtype=torch.int64)[of], *_columns(graph.nodes, positions)])
        for graph, (each, of) in zip(graphs, found, strict=True)
    ]
    every = torch.cat([torch.zeros(3, 0, dtype=torch.int64), *columns], 1)
    unique, inverse = _unique_columns(every)
    at = inverse.split([len(graph.nodes) for graph in graphs])
    if positions:
        for which, (graph, where) in enumerate(zip(graphs, at, strict=True)):
            _check_once(graph, which, where)
    called: dict[int, str] = {}
    for where, names in zip(at, strings, strict=True):
        for node, name in names.items():
            key = int(where[node])
            called[key] = min(called.get(key, name), name)  # graphs should agree; where they do not, their order decides nothing
    place, position, latent = unique
    return KeyTable(places, place, position, latent, tuple(called.get(node, "") for node in range(len(place)))), at


def _strings(nodes: Nodes) -> dict[int, str]:
    """What tokens, logits and targets are called, by their numbers."""
    return dict(zip(nodes.of_kind(*NAMED_KINDS).tolist(), nodes.labels, strict=True))


def _places(nodes: Nodes, strings: Mapping[int, str], positions: bool) -> tuple[list[_Place], Int[Tensor, " nodes"]]:
    """Where nodes are: each set is a place, and of targets, which have no number, each label one."""
    places = [_Place(each.kind, each.site, "" if each.kind == "target" else each.name) for each in nodes.sets]
    if not positions:  # nor is a head told apart by the position of what it is on the way to
        places = [place._replace(name=_AT.sub("", place.name)) if place.kind == "head" else place for place in places]
    of = nodes.set_of.clone()
    for node in nodes.of_kind("target").tolist():
        places.append(places[int(nodes.set_of[node])]._replace(name=strings[node]))
        of[node] = len(places) - 1
    return places, of


def _columns(nodes: Nodes, positions: bool) -> tuple[Int[Tensor, " nodes"], Int[Tensor, " nodes"]]:
    if positions:
        return nodes.position, nodes.latent
    latent = nodes.latent.clone()
    latent[nodes.of_kind("position")] = -1  # which is the position
    return torch.full_like(latent, -1), latent


def _unique_columns(columns: Int[Tensor, "3 nodes"]) -> tuple[Int[Tensor, "3 unique"], Int[Tensor, " nodes"]]:
    """Columns in lexicographic order, each once, and where each column is among them: 8 times as fast as `torch.unique` does it."""
    order = torch.arange(columns.shape[1])
    for column in reversed(columns):
        order = order[column[order].argsort(stable=True)]
    ordered = columns[:, order]
    is_new = torch.ones(len(order), dtype=torch.bool)
    is_new[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(0)
    inverse = torch.empty_like(order)
    inverse[order] = is_new.cumsum(0) - 1
    return ordered[:, is_new], inverse


def _check_once(graph: Graph, which: int, where: Int[Tensor, " nodes"]) -> None:
    ordered, order = where.sort(stable=True)
    if len(twice := (ordered[1:] == ordered[:-1]).nonzero()):
        first, second = order[int(twice[0, 0])], order[int(twice[0, 0]) + 1]
        raise InputError(
            f"graphs: nodes {int(first)} and {int(second)} of graph {which} are both {key_of(graph.nodes, int(first))}; expected one "
            "node of a kind, site, number and position. Leave one out, or match with positions=False, which adds them up."
        )
