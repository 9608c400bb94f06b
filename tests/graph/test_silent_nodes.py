"""Nodes that bring nothing, such as biases that a model has not, do not go up, and no sum misses them."""

import torch

from attrib.core.types import LINEAR, Dense
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph.again import Again, open_prompt
from attrib.graph.head_space import Wanted, chosen_sources, in_heads, without_silent
from attrib.graph.options import GraphAsked
from attrib.graph.qk import qk_attribution
from tests.support.brought import PROMPT, dictionaries
from tests.support.builders import build

SILENT = "blocks.1.hook_attn_out"
"""Where a model without biases has nothing of its own: with patterns held, what attention writes is all of other nodes."""


def opened() -> Again:
    model = build("llama", torch.float64)
    return open_prompt(model, dictionaries(model, "transcoders"), PROMPT, GraphAsked(keep=Dense(), policy=LINEAR))


def test_what_goes_up_is_all_that_is_written():
    there = opened().opened
    ends, columns = without_silent(*chosen_sources(there.bundle.sources, there.columns, None))
    going, every = torch.cat(columns), torch.cat(there.columns)
    assert 0 < len(going) < len(every)
    for before, node, after, left in zip(there.bundle.sources, there.columns, ends, columns, strict=True):
        written = before.sources.direction * before.sources.value[:, None]
        assert torch.equal(left, node[written.abs().sum(1) > 0])
        assert torch.equal(after.sources.direction, written[torch.isin(node, left)])
        assert torch.equal(after.sources.position, before.sources.position[torch.isin(node, left)])


def test_silent_nodes_alone_bring_nothing():
    again = opened()
    (silent,) = [
        node
        for end, node in zip(again.opened.bundle.sources, again.opened.columns, strict=True)
        if str(end.writes[0]) == SILENT and not end.sources.direction.any()
    ]
    (there,) = in_heads(again.opened, {2: Wanted(frozenset({5}), frozenset({3}))}, again.precision, DEFAULT_BUDGET, silent)
    assert [len(vectors.node) for stack in there.stacks for _, vectors in stack.items()] == [0, 0]


def test_scores_are_whole_without_them():
    model = build("llama", torch.float64)
    found = qk_attribution(model, dictionaries(model, "transcoders"), PROMPT, [(3, 1, 5, 2), (2, 3, 5, 1)], keep=Dense())
    assert found.worst < 1e-10
    assert found.value.abs().max() > 1e-3
    silent = [number for number, each in enumerate(found.nodes.sets) if each.site == SILENT]
    assert silent
    assert not torch.isin(found.nodes.set_of[found.query_node[found.query_node >= 0]], torch.tensor(silent)).any()
