"""Tangents of all nodes on one way up, against cotangents of every direction of the stream on the way down."""

from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import EXACT, LINEAR, Dense, Policy, Site
from attrib.engine.bundle import source_set
from attrib.engine.sweep.rise import rise
from attrib.graph.again import open_prompt
from attrib.graph.building import build as build_graphs
from attrib.graph.head_space import chosen_sources, primal_of
from attrib.graph.options import GraphAsked
from attrib.graph.outputs import Custom
from attrib.models.transformer import Model
from tests.support.brought import PROMPT, dictionaries
from tests.support.builders import D_MODEL, Family, build, normal
from tests.support.covering import each_pair
from tests.support.cut_cases import BARE, fits
from tests.support.tolerances import FOREIGN, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def crossing(model: Model) -> list[attrib.Dictionary]:
    """A cross-layer transcoder from the lowest layer on, whose skip connections cross layers too."""
    found = []
    for layer in range(4):
        writes = tuple(Site(later, "mlp_out") for later in range(layer, 4))
        made = {
            "W_enc": normal(D_MODEL, 20, seed=layer), "b_enc": normal(20, seed=10 + layer),
            "W_dec": normal(20, len(writes) * D_MODEL, seed=20 + layer) / 4, "b_dec": normal(len(writes) * D_MODEL, seed=30 + layer),
            "W_skip": normal(D_MODEL, len(writes) * D_MODEL, seed=40 + layer) / 8,
        }  # fmt: skip
        found.append(from_tensors(site=Site(layer, "mlp_in"), writes=writes, **{name: part.to(model.dtype) for name, part in made.items()}))
    return found


@pytest.mark.few
@each_pair(fits, family=["gpt2", "llama", "gpt_neox", "olmo2", *BARE], which=["crossing", "all", "residual", None], policy=[LINEAR, EXACT])
def test_what_goes_up_is_what_comes_down(family: Family, which: str | None, policy: Policy):
    model = build(family, torch.float64)
    cuts = crossing(model) if which == "crossing" else dictionaries(model, which)
    position, basis = 4, torch.eye(D_MODEL).double()
    targets = {layer: [Custom(f"{n}", basis[n], site=Site(layer, "resid_pre")) for n in range(D_MODEL)] for layer in (1, 3)}
    asked: Any = {"policy": policy, "targets": targets[1] + targets[3], "positions": position, "keep": Dense()}
    (graph,) = build_graphs(model, cuts, PROMPT, **asked)
    again = open_prompt(model, cuts, PROMPT, GraphAsked(**asked))
    rows = graph.row_of[graph.nodes.of_kind("target")]
    down = torch.from_numpy(graph.to_scipy().toarray())[graph.targets][rows].unflatten(0, (2, D_MODEL))
    bundle = again.opened.bundle
    on, (ends, numbers) = primal_of(bundle, again.precision), chosen_sources(bundle.sources, again.opened.columns, None)
    up = dict[int, Tensor]()
    for layer, brought in rise(on, [source_set(on, [end]) for end in ends], 3, bundle.between, torch.cat(numbers)):
        node, x = brought.at(position)
        assert len(node) == brought.count(position)
        up[layer] = torch.zeros(D_MODEL, len(graph.nodes)).double().index_copy_(1, node, x.T)
    for layer, want in zip((1, 3), down, strict=True):
        assert_close(up[layer], want, FOREIGN, f"layer {layer}")
    assert up[3].abs().sum(0).gt(0).sum() > (10 if which else 4)
