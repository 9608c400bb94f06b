"""The SAEs that come with attrib, on the real SmolLM2: sae-lens reads them alike, and edges equal a dense Jacobian.

The Jacobian here is transformers' own layers between sae-lens's own modules, differentiated by autograd: no
code of attrib's is in it.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import attrib
from attrib.adapters import shipped, shipped_folder
from tests.support.tolerances import FOREIGN, assert_close

SAES = [name for name in shipped() if name.endswith("hook_resid_pre")]
TEXT = "Her sister sold the old piano"
ROWS = 10


class Ends(NamedTuple):
    """A dense function of the source's latents, where it is taken, and the active pairs at its beginning."""

    function: Callable[[Tensor], Tensor]
    latents: Tensor
    positions: Tensor
    indices: Tensor


@pytest.fixture(scope="module")
def llama(smollm2_folder: Path) -> Any:
    """transformers' SmolLM2 with attention written out."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2_folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def model(smollm2_folder: Path) -> attrib.Model:
    return attrib.load_model(attrib.SMOLLM2)


@lru_cache
def sae(name: str) -> Any:
    from sae_lens import SAE

    return SAE.load_from_disk(shipped_folder(name), dtype="float32")


def start(llama: Any, ids: Tensor, name: str, stop: int) -> Ends:
    """From the latents of a residual SAE to the stream before layer `stop`, or past the last layer."""
    source, first = sae(name), attrib.load_dictionary(name).site.layer
    with torch.no_grad():
        x = llama(ids[None], output_hidden_states=True).hidden_states[first][0]
        latents = source.encode(x)
        error = x - source.decode(latents)
    rotary = llama.model.rotary_emb(x[None], torch.arange(len(ids))[None])
    mask = torch.full((len(ids), len(ids)), float("-inf")).triu(1)[None, None]

    def function(values: Tensor) -> Tensor:
        stream = (source.decode(values) + error)[None]
        for layer in llama.model.layers[first:stop]:
            stream = layer(stream, attention_mask=mask, position_embeddings=rotary)
        return stream[0]

    return Ends(function, latents, *(latents > 0).nonzero(as_tuple=True))


def rows(ends: Ends, read: Callable[[Tensor], Tensor], chosen: Tensor) -> Tensor:
    """Rows of the dense Jacobian of `read(function(latents))`, at the active sources."""
    values = ends.latents.clone().requires_grad_()
    out = read(ends.function(values))
    return torch.stack([torch.autograd.grad(out[i], values, retain_graph=True)[0][ends.positions, ends.indices] for i in chosen])


def test_pairs_are_short_long_and_late() -> None:
    layers = sorted(attrib.load_dictionary(name).site.layer for name in SAES)
    assert len(layers) >= 4
    gaps = [b - a for a in layers for b in layers if b > a]
    assert 3 in gaps
    assert max(gaps) >= 9
    assert max(layers) >= 24, "one near the end, for logits"


def test_all_of_them_leave_room_under_32_mb_for_the_rest() -> None:
    assert sum(f.stat().st_size for f in shipped_folder("smollm2-135m").rglob("*") if f.is_file()) <= 30e6


@pytest.mark.few
@pytest.mark.parametrize("name", SAES)
def test_sae_lens_reads_them_alike(name: str, llama: Any, model: attrib.Model) -> None:
    ids = torch.tensor(model.tokenizer.encode(TEXT))
    dictionary = attrib.load_dictionary(name)
    with torch.no_grad():
        x = llama(ids[None], output_hidden_states=True).hidden_states[dictionary.site.layer][0]
        theirs, ours = sae(name).encode(x), attrib.encode(dictionary, x)
        assert torch.equal(theirs > 0, ours > 0)
        assert_close(ours, theirs, what=name)
        assert_close(attrib.decode(dictionary, ours), sae(name)(x), what=name)


@pytest.mark.parametrize("name", SAES)
def test_the_card_has_its_numbers(name: str) -> None:
    folder, _, site = name.partition("/")
    card = json.loads((shipped_folder(folder) / "card.json").read_text())
    found = card["results"][site]
    first_half = attrib.load_dictionary(name).site.layer < 15
    assert found["explained_variance"] >= (0.85 if first_half else 0.75)
    assert found["cross_entropy_original"] < found["cross_entropy_spliced"] < found["cross_entropy_zero"]
    assert f"{found['explained_variance']:.3f}" in (shipped_folder(folder) / "README.md").read_text()


def test_latent_to_latent_on_the_real_model(llama: Any, model: attrib.Model) -> None:
    names = [f"smollm2-135m/blocks.{layer}.hook_resid_pre" for layer in (6, 9)]
    edges = attrib.latent_to_latent(model, *map(attrib.load_dictionary, names), TEXT)
    ends = start(llama, torch.tensor(model.tokenizer.encode(TEXT)), names[0], 9)
    with torch.no_grad():
        latents = sae(names[1]).encode(ends.function(ends.latents))
    position, latent = (latents > 0).nonzero(as_tuple=True)
    assert torch.equal(edges.targets.position, position)
    assert torch.equal(edges.targets.latent, latent)
    assert torch.equal(edges.sources.latent, ends.indices)
    chosen = torch.randperm(len(position), generator=torch.Generator().manual_seed(0))[:ROWS]
    want = rows(ends, lambda x: sae(names[1]).encode(x)[position, latent], chosen)
    assert_close(edges.dense(0)[chosen], want, FOREIGN)
    assert_close(edges.dense(0, "attribution")[chosen], want * ends.latents[ends.positions, ends.indices], FOREIGN)


def test_latent_to_logit_on_the_real_model(llama: Any, model: attrib.Model) -> None:
    name = "smollm2-135m/blocks.27.hook_resid_pre"
    edges = attrib.latent_to_logit(model, attrib.load_dictionary(name), TEXT, logits=attrib.TopLogits(3))
    ends = start(llama, torch.tensor(model.tokenizer.encode(TEXT)), name, 30)
    with torch.no_grad():
        top = llama(torch.tensor(model.tokenizer.encode(TEXT))[None]).logits[0, -1].topk(3)
    assert torch.equal(edges.targets.latent, top.indices)
    assert_close(edges.targets.activation, top.values)
    want = rows(ends, lambda x: llama.lm_head(llama.model.norm(x[-1]))[top.indices], torch.arange(3))
    assert_close(edges.dense(0), want, FOREIGN)
