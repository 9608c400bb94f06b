"""A prompt's nodes once more, for what is asked of a graph, or in the way in which a graph is asked for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.positions import plain_positions
from attrib.core.types import InputError, Policy
from attrib.engine.precision import Precision, precision_of
from attrib.graph.ends import Opened
from attrib.graph.given import as_known, ends_of, record_of
from attrib.graph.graph import Graph
from attrib.graph.latents import Given
from attrib.graph.nodes import Nodes
from attrib.graph.options import GraphAsked
from attrib.models.tokens import TokensLike, one_prompt
from attrib.models.transformer import Model


class Again(NamedTuple):
    """One prompt's ends, and in what they are computed."""

    tokens: Int[Tensor, " positions"]
    opened: Opened
    precision: Precision
    asked: GraphAsked


def open_prompt(model: Model, dictionaries: Sequence[Given], tokens: TokensLike, asked: GraphAsked) -> Again:
    """A prompt's nodes, as `build` has them with the same options.

    Raises:
        InputError: for several prompts, and as `build`.
    """
    ids = one_prompt(model, tokens)
    asked = asked.at(plain_positions(asked.positions, [len(ids)]))
    precision = precision_of(model, asked.dtype)
    ends = ends_of(model, as_known(model, dictionaries), asked, precision, [ids])
    return Again(ids, ends.open(ids), precision, asked)


def open_graph(model: Model, dictionaries: Sequence[Given], graph: Graph, given: dict[str, Any]) -> Again:
    """The nodes of a graph's prompt, with the options that it was built with.

    Args:
        given: other options; those that the graph was built with may be among them.

    Raises:
        InputError: where the graph was built with another model, other dictionaries or other options.
    """
    call: Any = graph.call
    if call.get("kind") != "graph":
        raise InputError("graph: does not say how it was built; expected one that attrib.graph.build made.")
    if model.fingerprint != call["model"]["sha256"]:
        raise InputError(f"model: {model.name} is not that of the graph, which is of {call['model']['name']}; give the same one.")
    if [_told_apart(record_of(one)) for one in dictionaries] != list(map(_told_apart, call["dictionaries"])):
        of_graph = ", ".join(each["name"] for each in call["dictionaries"]) or "none"
        raise InputError(f"dictionaries: {len(dictionaries)} that are not those of the graph, in its order; expected {of_graph}.")
    positions = call["positions"]
    built = {name: call[name] for name in ("mlps", "demean", "skip_positions")}
    built |= {"positions": tuple(positions) if isinstance(positions, list) else positions}
    built |= {"policy": Policy(**call["policy"]), "dtype": None if call["dtype"].endswith("throughout") else call["dtype"]}
    for name, option in built.items():
        if name in given and given[name] != option:
            raise InputError(f"{name}: {given[name]!r}, but the graph was built with {option!r}; leave it out.")
    asked = GraphAsked(**(built | given))
    if [repr(what) for what in asked.outputs] != call["targets"]:
        raise InputError(f"targets: {asked.targets!r}, but the graph was built with {', '.join(call['targets'])}; give the same ones.")
    return open_prompt(model, dictionaries, graph.tokens, asked)


def _told_apart(record: dict[str, Any]) -> object:
    """What a dictionary is known by again: its hash, or which of an MLP's units are nodes."""
    return record.get("sha256") or (record["site"], record["k"])


def numbers_among(nodes: Nodes, among: Nodes) -> Int[Tensor, " nodes"]:
    """The number that each of some nodes has among all of its prompt.

    Raises:
        InputError: where one is not there.
    """
    found = places_among(nodes, among)
    if (found < 0).any():
        raise InputError(f"graph: has {nodes.label(int((found < 0).nonzero()[0]))}, which its prompt has not; build it again.")
    return found


def places_among(nodes: Nodes, among: Nodes) -> Int[Tensor, " nodes"]:
    """The same, with -1 for a node that is not there, as one at its threshold may be in another precision.

    Raises:
        InputError: where the sets of nodes are others.
    """
    if [each[:3] for each in nodes.sets] != [each[:3] for each in among.sets]:
        raise InputError(
            f"graph: {nodes!r} are of other kinds than its prompt's nodes, {among!r}; give one that build made, or a part of it."
        )
    found = torch.full((len(nodes),), -1)
    for number, each in enumerate(nodes.sets):
        mine, theirs = nodes.rows(number), among.rows(number)
        if not each.size or not among.sets[number].size:
            continue
        base = 1 + max(int(nodes.latent[mine].max()), int(among.latent[theirs].max()))
        ours, all_of = (of.position[at] * (base + 1) + of.latent[at] + 1 for of, at in ((nodes, mine), (among, theirs)))
        order = all_of.argsort(stable=True)
        place = torch.searchsorted(all_of[order], ours).clamp_max(len(all_of) - 1)
        found[mine] = torch.where(all_of[order[place]] == ours, theirs.start + order[place], -1)
    return found
