"""Direct feature attribution by head, against einsums over TransformerLens' cache."""

from typing import Any

import pytest
import torch
from einops import einsum

import attrib
from attrib.core.types import BudgetError, InputError
from attrib.dictionaries.dictionary import pre_activations
from tests.support.attribution_cases import Lens, assert_same, prompts, without_shape_checks
from tests.support.builders import build, dictionary, prompt
from tests.support.hooked import hooked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TOKENS = [prompt(7), prompt(1, seed=4), prompt(5, seed=5)]


def dense(found: Any, prompt_number: int) -> torch.Tensor:
    """[targets, layers, heads, positions] of a result that keeps everything."""
    rows = (found.prompt == prompt_number).nonzero().squeeze(1)
    out = torch.zeros(len(found), len(found.layers), found.by_head.shape[2], len(TOKENS[prompt_number]), dtype=torch.float64)
    own = torch.isin(found.row, rows)
    layer = torch.searchsorted(torch.tensor(found.layers), found.layer[own])
    out = out.index_put((found.row[own], layer, found.head[own], found.source_position[own]), found.share[own])[rows]
    return out


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "mistral"])
@pytest.mark.parametrize("site", ["blocks.1.attn.hook_z", "blocks.1.hook_attn_out", "blocks.1.hook_resid_post"])
def test_by_position(family: str, site: str):
    foreign = hooked(family, torch.float64)
    width = foreign.cfg.n_heads * foreign.cfg.d_head if site.endswith("hook_z") else foreign.cfg.d_model
    target = dictionary("jumprelu", site, torch.float64, d_in=width, seed=5)
    found = attrib.head_attribution(foreign, target, TOKENS, keep=attrib.Dense())
    layers = (0, 1) if site.endswith("resid_post") else (1,)
    assert found.layers == layers
    for number, tokens in enumerate(TOKENS):
        with torch.no_grad():
            _, cache = foreign.run_with_cache(tokens[None])
        rows = found.prompt == number
        columns = target.params.W_enc.T[found.latent[rows]]
        want = []
        for layer in layers:
            pattern, v = cache["pattern", layer][0], cache["v", layer][0]
            v = v.repeat_interleave(pattern.shape[0] // v.shape[1], dim=1)
            W_O = foreign.W_O[layer].detach()
            o = columns.unflatten(1, (len(W_O), -1)) if site.endswith("hook_z") else einsum(columns, W_O, "t m, h d m -> t h d")
            want.append(einsum(pattern[:, found.position[rows]], v, o, "h t s, s h d, t h d -> t h s"))
        assert_same(dense(found, number), torch.stack(want, 1), site)
        assert_same(found.by_head[rows], torch.stack(want, 1).sum(-1), "by head")
    assert_same(found.total + found.rest, found.activation, "sums")
    if site.endswith("hook_z"):  # of which nothing but the dictionary's own biases is left
        assert_same(found.rest, pre_activations(target, torch.zeros(1, width, dtype=torch.float64))[0, found.latent], "rest")


def test_by_source_latents():
    """Latents of a dictionary at the attention's own input: their shares, its error's and its biases' are each position's whole."""
    foreign, target = hooked("gpt2", torch.float64), dictionary("standard", "blocks.1.hook_attn_out", torch.float64, seed=5)
    source = Lens("standard", "blocks.1.hook_resid_pre").dictionary("gpt2")
    found = attrib.head_attribution(foreign, target, TOKENS[:1], source=source, keep=attrib.Dense())
    with torch.no_grad():
        _, cache = foreign.run_with_cache(TOKENS[0][None])
        latents = attrib.encode_sparse(source, cache["blocks.1.hook_resid_pre"][0])
        block, scale = foreign.blocks[1], cache["blocks.1.ln1.hook_scale"][0]
        written = latents.value[:, None] * source.params.W_dec[latents.latent]
        seen = (written - written.mean(-1, keepdim=True)) / scale[latents.position] * block.ln1.w
        v = einsum(seen, foreign.W_V[1], "i m, h m d -> i h d")
        o = einsum(target.params.W_enc.T[found.latent], foreign.W_O[1], "t m, h d m -> t h d")
        pattern = cache["pattern", 1][0][:, found.position][:, :, latents.position]
        want = einsum(pattern, v, o, "h t i, i h d, t h d -> t h i")
    assert_same(found.by_head[:, 0], want.sum(-1), "by head")
    table = found.to_pandas()
    row, head, column = (found.row, found.head, None)
    key = {at: i for i, at in enumerate(zip(latents.position.tolist(), latents.latent.tolist(), strict=True))}
    column = torch.tensor([key[at] for at in zip(table.source_position, table.source_latent, strict=True)])
    assert_same(found.share, want[row, head, column], "shares")
    assert len(found.share) == int((want != 0).sum())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_enters_an_mlp_adds_up(family: Any):
    """Under a held norm heads' shares are the change of the pre-activation that taking a head's output away makes."""
    model = build(family, torch.float64)
    target = dictionary("transcoder", "blocks.2.mlp.hook_in", torch.float64, seed=4)
    found = attrib.head_attribution(model, target, TOKENS[:1], positions=-1, keep=attrib.TopK(3))
    assert found.layers == (0, 1, 2)
    assert (found.indptr.diff() == 3).all()
    # one head of the last layer, taken out of the stream with the denominator as it was
    x = attrib.capture(model, TOKENS[0], "blocks.2.hook_resid_mid")[attrib.Site(2, "resid_mid")][-1]
    out = attrib.head_outputs(model, TOKENS[0], 2)[2][1, -1]
    if model.config.norm == "layer":
        x, out = x - x.mean(), out - out.mean()
    gain = model.params.blocks[2].norm_2.weight / (x.square().mean() + model.config.eps).sqrt()
    assert_same(found.by_head[:, 2, 1], (out * gain) @ target.params.W_enc[:, found.latent], "head")


def test_latents_pieces_and_means():
    model, target = build("gpt2", torch.float64), Lens("standard", "blocks.2.hook_resid_pre").dictionary("gpt2")
    whole = attrib.head_attribution(model, target, TOKENS)
    some = sorted({*whole.latent.tolist()})[:3]
    few = attrib.head_attribution(model, target, TOKENS, latents=some, budget=20_000)
    rows = torch.isin(whole.latent, torch.tensor(some))
    assert_same(few.by_head, whole.by_head[rows], "by head")
    assert_same(few.mean_by_head(some[0]), whole.by_head[whole.latent == some[0]].mean(0), "mean")
    none = attrib.head_attribution(model, target, TOKENS[1], latents=[n for n in range(40) if n not in whole.latent.tolist()][:1] or [0])
    assert len(none.to_pandas()) == len(none.share)


pytest.importorskip("sae_lens", exc_type=ImportError)  # of which the cases below are made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": dictionary("transcoder", "blocks.2.hook_mlp_out")}, "target: it reads blocks.2.hook_mlp_out, which no head writes to"),
        ({"latents": 99999}, r"latents: 99999; expected numbers from 0"),
        ({"latents": []}, "latents: none"),
        ({"layers": 3}, r"layers: 3 has no heads that write to the target's"),
        ({"layers": []}, r"layers: none of them have"),
        ({"source": Lens("standard", "blocks.1.hook_resid_pre").dictionary("gpt2", torch.float32), "layers": 0}, "behind the source's"),
        ({"source": Lens("standard", "blocks.0.attn.hook_z").dictionary("gpt2", torch.float32)}, "source: it writes"),
        ({"keep": attrib.TopK(0)}, "keep: "),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str):
    given = {"target": Lens("standard", "blocks.2.hook_resid_pre").dictionary("gpt2", torch.float32)} | options
    with without_shape_checks(), pytest.raises(InputError, match=message):
        attrib.head_attribution(build("gpt2", torch.float32), given.pop("target"), prompts(3), **given)


def test_a_budget_that_is_too_small():
    with pytest.raises(BudgetError, match="needs at least"):
        attrib.head_attribution(build("gpt2"), Lens("standard").dictionary("gpt2", torch.float32), prompts(3), budget=10)
