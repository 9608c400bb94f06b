"""Heads as nodes: each edge of a graph as the sum of its routes through heads of several layers, so that paths read heads one by one.

A row says what its target t is made of. Cut at the last attention that each way passes, it is

    t  =  what reaches it past no attention  +  Σ_l Σ_h Σ_s  T[l,h,s],        T[l,h,s] = g · x[s],    g = a[p,s] N(W_V^h o[l,h])

with o the cotangent of t at the z of layer l that has met no attention, a the pattern, N the norm at its denominator, and x the stream that
layer l reads. So a head that reads s on its way to t is itself a target: the direction g of the stream at s, whose value T is what it
brings to t; and its row is cut in the same way, at heads further down (routes.py). Each head is a node for the one target that it is on the
way to, since what it reads depends on that. The value of a path t <- head <- head <- s is then what s does to t by these very heads, and
all of them together are the edge from s to t: nothing is lost, as all is linear where patterns and norms are held.

Which heads become nodes is decided by what they bring of each of the row's own sources, in sizes: what many bring may cancel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypedDict, Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_dictionaries, as_model, takes
from attrib.attribution.options import with_options
from attrib.attribution.record import products_record
from attrib.core.room import memory_named
from attrib.core.slices import ptr_of
from attrib.core.types import InputError, Site, TopLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.precision import products
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph.again import open_graph
from attrib.graph.graph import Graph
from attrib.graph.nodes import Nodes, NodeSet, head_name
from attrib.graph.outputs import Output
from attrib.graph.paths import step_of
from attrib.graph.routes import Routes
from attrib.models.transformer import Model


class HeadedOptions(TypedDict, total=False):
    """The options of `with_heads`; what each means is said there."""

    least: float
    longest: int | None
    targets: Output | Sequence[Output]
    budget: int


@dataclass(frozen=True)
class HeadedAsked:
    """Their defaults."""

    least: Any = 0.02
    longest: Any = None
    targets: Any = TopLogits(10, mass=0.95)  # noqa: RUF009 - an immutable value
    budget: int = DEFAULT_BUDGET

    def __post_init__(self) -> None:
        if isinstance(self.least, bool) or not isinstance(self.least, int | float) or not 0 <= self.least <= 1:
            raise InputError(f"least: {self.least!r}; expected a share of a row, between 0 and 1.")
        if self.longest is not None and (isinstance(self.longest, bool) or not isinstance(self.longest, int) or self.longest < 1):
            raise InputError(f"longest: {self.longest!r}; expected a number of heads of at least 1, or None.")


@takes(model=as_model, dictionaries=as_dictionaries, budget=as_bytes)
@partial(with_options, asked=HeadedAsked)
def with_heads(model: Model, dictionaries: Dictionary | Sequence[Dictionary], graph: Graph, **options: Unpack[HeadedOptions]) -> Graph:
    """The same graph with heads as nodes: in place of each edge its routes, through heads of several layers or past all of them.

    A node of kind "head" is a head of one layer that reads from its `position`, on the way to one target, which its set's name says. Its
    value is what it brings to that target, of all that stands there. Whatever searches a graph takes the result: `strongest`, `greedy`,
    `PathFilter` with `Where(head=3)`, `sources`, `graph_of`. The value of a path through heads is what its source does to its target by
    these very heads; all paths of one source within a row add up to the edge that the graph had. What is left out of a row is `dropped`.

    Rows grow: give a part of a graph, such as `graph_of(graph, strongest(graph, node, 20))` or what `prune` leaves.

    Args:
        dictionaries: those that the graph was built with.
        graph: one that `build` made with attention and norms frozen, as by default; or a part of it.
        least: a head becomes a node where what it brings of the row's sources, in sizes, is at least this share of the row at the route's
            end. 0 is every head.
        longest: how many heads a route passes at most; None is any number.
        targets: those that the graph was built with, where they were no default.
        budget: bytes of working memory, beside the parameters and the result.

    Raises:
        InputError: for a graph of another model, other dictionaries or other targets; where attention or norms were differentiated.
        BudgetError: where what is asked for does not fit.
    """
    asked, several = HeadedAsked(**options), dictionaries
    _check_frozen(graph)
    given: Any = {name: value for name, value in options.items() if name in ("targets", "budget")}
    again = open_graph(model, list(several) if isinstance(several, Sequence) else [several], graph, given)
    doing = memory_named("making nodes of heads", "Give fewer edges, or a larger share as `least`.")
    with doing, torch.no_grad(), products(again.precision):
        routes = Routes(again, graph, float(asked.least), asked.longest)
        routes.find()
    return _joined(graph, routes)


def _check_frozen(graph: Graph) -> None:
    """Raises InputError where a graph's rows are no sums over what heads read."""
    policy: Any = graph.call.get("policy", {})
    if "exact" in (policy.get("attention"), policy.get("norm")):
        raise InputError(
            f"graph: its policy is {dict(policy)}, under which heads bring more than their values; expected attention and norms frozen. "
            "Build it with policy=attrib.LINEAR, or take head_loadings."
        )


# ---------------------------------------------------------------------------------- the graph that they make


def _joined(graph: Graph, routes: Routes) -> Graph:
    """The graph with the heads that were found."""
    nodes, old, row = _numbered(graph, routes)
    every, nothing = (*routes.direct, *routes.through), graph.indices[:0]
    target = torch.cat([nothing, *(row[each.row] for each in every)])
    indices = torch.cat([nothing, *(old[each.source] for each in routes.direct), *(row[each.source] for each in routes.through)])
    weight, heads = torch.cat([graph.weight[:0], *(each.weight for each in every)]), routes.value
    place, order = row.argsort(), (target * len(nodes) + indices).argsort()
    # rows of few sources may be nearly nothing beside what cancelled in them: then rounding is more than all that is left
    stored, mass = (torch.zeros(len(nodes), dtype=torch.float64).index_add(0, target, part.double()) for part in (weight, weight.abs()))
    total = torch.cat([graph.total, heads])
    l1 = routes.l1.maximum((mass[row] + (total.double() - stored[row]).abs()).to(total))
    none, by = torch.zeros_like(heads), products_record(routes.again.opened.bundle.model, routes.again.precision)
    value, own, importance = (
        torch.cat([column, of_heads])[place] for column, of_heads in ((graph.value, heads), (graph.own, none), (graph.importance, none))
    )
    return replace(
        graph, nodes=nodes, targets=row[place], indptr=ptr_of(torch.bincount(target, minlength=len(nodes))[row[place]]),
        indices=indices[order], weight=weight[order], value=value, own=own, total=total[place], l1=l1[place], importance=importance,
        call={"kind": "graph with heads", "least": routes.least, "longest": routes.longest, "graph": dict(graph.call)} | by,
    )  # fmt: skip


def _numbered(graph: Graph, routes: Routes) -> tuple[Nodes, Int[Tensor, " nodes"], Int[Tensor, " rows"]]:
    """The new table of nodes, and where in it each node of the graph stands, and each row, those of heads behind those of the graph."""
    nodes, names = graph.nodes, _names(graph, routes)
    above = {layer: _set_above(nodes, layer) for layer in {head.layer for head in routes.heads}}
    members: dict[tuple[int, int, int], list[int]] = {}
    for number, head in enumerate(routes.heads):
        members.setdefault((above[head.layer], head.layer, head.parent), []).append(number)
    sets: list[NodeSet] = []
    order: list[Tensor] = []  # of all nodes, those of heads behind those of the graph
    waiting = sorted(members)
    for number in range(len(nodes.sets) + 1):
        while waiting and waiting[0][0] == number:
            _, layer, parent = key = waiting.pop(0)
            of = sorted(members[key], key=lambda each: (routes.heads[each].position, routes.heads[each].head))
            sets.append(NodeSet("head", str(Site(layer, "z")), names[parent], len(of)))
            order.append(torch.tensor(of) + len(nodes))
        if number < len(nodes.sets):
            sets.append(nodes.sets[number])
            order.append(torch.arange(len(nodes))[nodes.rows(number)])
    by_place = torch.cat(order)
    new = by_place.argsort()
    position, latent = (
        torch.cat([column, torch.tensor([getattr(head, name) for head in routes.heads], dtype=torch.int64)])[by_place]
        for column, name in ((nodes.position, "position"), (nodes.latent, "head"))
    )
    activation = torch.cat([nodes.activation, routes.value.to(nodes.activation)])[by_place]
    row = torch.cat([new[graph.targets], new[len(nodes) :]])
    return Nodes(tuple(sets), position, latent, activation, nodes.labels), new[: len(nodes)], row


def _set_above(nodes: Nodes, layer: int) -> int:
    """The first set that is not before the heads of a layer, which read the stream and write z."""
    before = [each.kind not in ("logit", "target") and _depth(each) < Site(layer, "z").depth for each in nodes.sets]
    return before.index(False) if False in before else len(before)


def _depth(each: NodeSet) -> tuple[int, int]:
    """Where a set stands in order of computation."""
    return (-1, 0) if each.kind in ("token", "position") else Site.parse(each.site).depth


def _names(graph: Graph, routes: Routes) -> list[str]:
    """What sets of heads that lead to each row are named by: 'blocks.8.mlp.hook_in[355] of a dictionary @12 ← attn6[3] @9'."""
    nodes = graph.nodes
    names = [f"{step_of(nodes, node)} @{int(nodes.position[node])}" for node in graph.targets.tolist()]
    for head in routes.heads:
        names.append(f"{names[head.parent]} ← {head_name(str(Site(head.layer, 'z')), head.head)} @{head.position}")
    return names
