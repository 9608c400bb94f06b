"""MLPs' own units where heads are asked about nodes: as a transcoder that is the same MLP has them, and in sums that are whole."""

import pytest
import torch
from torch import Tensor

from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import LINEAR, Dense, InputError, Site, TopLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.graph import Latents, Neurons, head_loadings, qk_attribution
from attrib.graph.building import build as build_graphs
from attrib.graph.qk import Attended, QKAttribution
from attrib.models.transformer import Model
from tests.support.builders import Family, build, prompt
from tests.support.tolerances import FOREIGN, ROUNDING, assert_close

PROMPT = prompt(6)
SCORES = [(1, 0, 5, 3), (2, 3, 5, 1), (3, 1, 5, 2)]


def same_mlp(model: Model, layer: int) -> Dictionary:
    """A model's MLP of rectified units, as a transcoder."""
    p = model.params.blocks[layer].mlp
    site, written = Site(layer, "mlp_in"), Site(layer, "mlp_out")
    return from_tensors(site=site, writes=(written,), W_enc=p.W_in, b_enc=p.b_in, W_dec=p.W_out, b_dec=p.b_out)


def dense(found: QKAttribution) -> Tensor:
    """[scores, nodes and own, nodes and own]."""
    size = len(found.nodes) + 1
    score = torch.arange(len(found)).repeat_interleave(found.indptr.diff())
    at = score, found.query_node % size, found.key_node % size  # OWN is the last
    return torch.zeros(len(found), size, size, dtype=found.weight.dtype).index_put(at, found.weight)


def test_units_are_what_a_transcoder_of_the_same_mlp_has():
    model = build("opt", torch.float64)
    units, cuts = [Neurons(1, None), Neurons(2, None)], [same_mlp(model, 1), same_mlp(model, 2)]
    mine, theirs = (qk_attribution(model, given, PROMPT, SCORES, keep=Dense()) for given in (units, cuts))
    assert [each.size for each in mine.nodes.sets] == [each.size for each in theirs.nodes.sets]
    assert torch.equal(mine.nodes.latent, theirs.nodes.latent)
    assert len(mine.nodes.of_kind("latent")) > 50
    assert_close(dense(mine), dense(theirs), FOREIGN)
    assert mine.weight.abs().max() > 1e-3
    graphs = [build_graphs(model, given, PROMPT, targets=TopLogits(2), keep=Dense())[0] for given in (units, cuts)]
    of_mine, of_theirs = (
        head_loadings(model, given, graph, 200, targets=TopLogits(2), keep=Dense())
        for given, graph in zip((units, cuts), graphs, strict=True)
    )
    assert torch.equal(of_mine.source, of_theirs.source)
    assert_close(of_mine.direct, of_theirs.direct, FOREIGN)
    assert_close(of_mine.total, of_theirs.total, FOREIGN)
    assert torch.equal(of_mine.head, of_theirs.head)
    assert_close(of_mine.loading, of_theirs.loading, FOREIGN)
    assert of_mine.loading.abs().max() > 1e-3


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_scores_and_edges_are_whole_where_units_and_latents_are_targets(family: Family):
    model = build(family, torch.float64)
    units, targets = [Neurons(2, 5), Neurons(1, 9)], Latents([(0, 7, -1), (1, 3, 4)])
    (graph,) = build_graphs(model, units, PROMPT, targets=targets)
    found = head_loadings(model, units, graph, len(graph), targets=targets)
    assert found.worst < 1e-10
    assert found.loading.abs().max() > 0
    by_graph = qk_attribution(model, units, graph, Attended(0.2, (0, 1, 2)), targets=targets)
    alone = qk_attribution(model, units, PROMPT, Attended(0.2, (0, 1, 2)), targets=targets)
    assert by_graph.worst < 1e-10
    assert len(by_graph) > 10
    assert_close(by_graph.weight, alone.weight, ROUNDING)


def test_other_units_than_the_graphs_are_refused():
    model = build("gpt2", torch.float64)
    (graph,) = build_graphs(model, [Neurons(1, 5)], PROMPT, policy=LINEAR)
    for other in ([Neurons(1, 6)], [Neurons(2, 5)], [], [Neurons(1, 5)] * 2, [same_mlp(model, 1)]):
        with pytest.raises(InputError, match=r"dictionaries: \d that are not those of the graph, in its order; expected neurons"):
            qk_attribution(model, other, graph, SCORES)
    with pytest.raises(InputError, match=r"dictionaries\[0\]: .* from 0 to 3"):
        qk_attribution(model, Neurons(9), PROMPT, SCORES)
