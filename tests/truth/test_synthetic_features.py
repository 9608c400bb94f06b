"""SAELens' synthetic features, between which a network moves what is known: every edge is an entry of a matrix that was drawn.

26 features that are no orthogonal directions stand in a stream of 32. The tokens bring the first six, as SAELens' generator fires them, and
positions the last eight; a head takes the six to the next token as six others, and an MLP makes six more of all twelve,

    H[p] = relu(F[p] C_F + G[p] C_G),        G[p] = F[p - 1] C_1,

with sparse matrices that are not negative, so that every unit is in its linear part.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.types import EXACT, LINEAR, Dense, Policy, TokenLogits
from attrib.dictionaries.dictionary import Dictionary
from tests.support.builders import sae
from tests.support.compiled import auroc
from tests.support.tolerances import assert_close

synthetic = pytest.importorskip("sae_lens.synthetic")
ActivationGenerator, FeatureDictionary = synthetic.ActivationGenerator, synthetic.FeatureDictionary
init_sae_to_match_feature_dict = synthetic.init_sae_to_match_feature_dict

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EACH, POSITIONS, WIDTH, VOCABULARY = 6, 8, 32, 40
F, G, H, PLACES = (slice(first, first + size) for first, size in ((0, EACH), (EACH, EACH), (2 * EACH, EACH), (3 * EACH, POSITIONS)))
COUNT = 3 * EACH + POSITIONS
FALSE = 1e-9
TOKENS = torch.tensor([3, 17, 8, 25, 11])


class Known(NamedTuple):
    """A model, its features, and what moves what."""

    model: attrib.Model
    features: FeatureDictionary
    C_1: Tensor
    C_F: Tensor
    C_G: Tensor


@lru_cache
def known() -> Known:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    features = FeatureDictionary(COUNT, WIDTH, initializer=None, seed=0).double()
    rng = torch.Generator().manual_seed(1)

    def drawn() -> Tensor:
        present = torch.rand(EACH, EACH, generator=rng) < 0.3
        return torch.rand(EACH, EACH, generator=rng, dtype=torch.float64).add(0.2) * present

    C_1, C_F, C_G = drawn(), drawn(), drawn()
    E, read = features.feature_vectors.detach(), torch.linalg.pinv(features.feature_vectors.detach())  # E read = 1
    config = HookedTransformerConfig(
        n_layers=1, d_model=WIDTH, n_ctx=POSITIONS, n_heads=1, d_head=POSITIONS, d_mlp=EACH, d_vocab=VOCABULARY, act_fn="relu",
        normalization_type=None, use_attn_scale=False, device="cpu", dtype=torch.float64, init_weights=False, model_name="features",
    )  # fmt: skip
    model = HookedTransformer(config)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        fired = ActivationGenerator(EACH, 0.5, std_firing_magnitudes=0.3).sample(VOCABULARY).double()
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if not name.endswith(("mask", "IGNORE"))}
    before = torch.eye(POSITIONS, dtype=torch.float64).roll(1, 0)  # what stands before each position; the first finds none, and sees itself
    state["embed.W_E"], state["pos_embed.W_pos"] = fired @ E[F], E[PLACES]
    state["blocks.0.attn.W_Q"], state["blocks.0.attn.W_K"] = (200 * read[:, PLACES] @ before)[None], read[:, PLACES][None]
    state["blocks.0.attn.W_V"][0, :, :EACH], state["blocks.0.attn.W_O"][0, :EACH] = read[:, F] @ C_1, E[G]
    state["blocks.0.mlp.W_in"], state["blocks.0.mlp.W_out"] = read[:, F] @ C_F + read[:, G] @ C_G, E[H]
    state["unembed.W_U"][:, :EACH] = read[:, H]
    model.load_state_dict(model.state_dict() | state)
    return Known(attrib.from_transformer_lens(model), features, C_1, C_F, C_G)


@lru_cache
def dictionary(site: str) -> Dictionary:
    """The features as sae-lens puts them into an SAE, and an encoder that tells them apart."""
    made: Any = sae("standard", WIDTH, torch.float64, d_sae=COUNT, site=site, apply_b_dec_to_input=False)
    init_sae_to_match_feature_dict(made, known().features)
    with torch.no_grad():
        made.W_enc.copy_(torch.linalg.pinv(made.W_dec))
        made.b_enc.zero_()
        made.b_dec.zero_()
    return attrib.from_sae_lens(made.requires_grad_(False))


def between(edges: attrib.Edges, matrix: Tensor, sources: slice, targets: slice, shift: int) -> Tensor:
    """What an entry of a matrix is to each pair of latents: of these features, `shift` positions apart."""
    whole = torch.zeros(COUNT, COUNT, dtype=torch.float64)
    whole[sources, targets] = matrix
    a, b = edges.sources, edges.targets
    apart = b.position[:, None] - a.position == shift
    return whole[a.latent][:, b.latent].T * apart


@pytest.mark.parametrize("method", ["adjoint", "torch.func"])
@pytest.mark.parametrize("policy", [LINEAR, EXACT], ids=["linear", "exact"])
def test_what_a_head_and_an_mlp_move_is_found(method: str, policy: Policy):
    facts, tokens = known(), TOKENS
    source = dictionary("blocks.0.hook_resid_pre")
    options: dict[str, Any] = {"policy": policy, "method": method}
    attended = attrib.latent_to_latent(facts.model, source, dictionary("blocks.0.hook_attn_out"), tokens, **options)
    wanted = between(attended, facts.C_1, F, G, 1)
    # the rounding of an inverse makes latents of what is nothing: those that are told are of features that were written
    rows = real(attended.targets)
    assert_recovered(attended, wanted, rows & (attended.targets.position > 0))
    made = attrib.latent_to_latent(facts.model, source, dictionary("blocks.0.hook_mlp_out"), tokens, **options)
    wanted = between(made, facts.C_F, F, H, 0) + between(made, facts.C_1 @ facts.C_G, F, H, 1)
    assert_recovered(made, wanted, real(made.targets) & (made.targets.position > 0))


def real(nodes: Any) -> Tensor:
    """Latents that are no rounding."""
    return nodes.activation.abs() > 1e-6


def assert_recovered(edges: attrib.Edges, wanted: Tensor, rows: Tensor) -> None:
    columns = real(edges.sources)
    got, want = edges.dense(0)[rows][:, columns], wanted[rows][:, columns]
    is_true = want != 0
    assert is_true.sum() > 5
    assert_close(got, want, FALSE)
    assert got[~is_true].abs().max() < FALSE
    assert auroc(got.abs().numpy().ravel(), is_true.numpy().ravel()) >= 0.99


def test_a_graph_has_these_edges_and_no_others():
    facts, tokens = known(), TOKENS
    sites = [f"blocks.0.{name}" for name in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")]
    options: dict[str, Any] = {"targets": TokenLogits((0, 1)), "keep": Dense(), "mlps": "exact", "demean": False}
    (graph,) = attrib.graph.build(facts.model, [dictionary(site) for site in sites], tokens, **options)
    assert graph.remainder.abs().max() < FALSE
    nodes, got = graph.nodes, torch.from_numpy(graph.to_scipy().toarray())[graph.targets]
    whole = {site: next(n for n, each in enumerate(nodes.sets) if each.kind == "latent" and each.site == site) for site in sites}
    matrices = {(0, 1): (facts.C_1, F, G, 1), (0, 2): (facts.C_F, F, H, 0), (1, 2): (facts.C_G, G, H, 0)}
    rows = graph.targets
    for (of, to), (matrix, read, written, shift) in matrices.items():
        columns = torch.arange(len(nodes))[nodes.rows(whole[sites[of]])]
        mine = torch.isin(rows, torch.arange(len(nodes))[nodes.rows(whole[sites[to]])])
        mine &= (nodes.position[rows] > 0) & (nodes.activation[rows] > 1e-6)
        table = torch.zeros(COUNT, COUNT, dtype=torch.float64)
        table[read, written] = matrix
        apart = nodes.position[rows[mine]][:, None] - nodes.position[columns] == shift
        want = table[nodes.latent[columns]][:, nodes.latent[rows[mine]]].T * apart * nodes.activation[columns]
        want[:, nodes.activation[columns] < 1e-6] = 0
        assert (want > 0.05).sum() > 3
        assert_close(got[mine][:, columns], want, FALSE, (of, to))
