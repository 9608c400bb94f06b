"""The transcoders that come with attrib, on the real SmolLM2: sae-lens computes the same, and edges equal a dense Jacobian.

As in test_shipped.py, the Jacobian is transformers' own layers around sae-lens's own modules, differentiated by
autograd: no code of attrib's is in it.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import attrib
from attrib.adapters import shipped, shipped_folder
from tests.adapters.test_shipped import ROWS, TEXT, llama, model, rows, sae  # noqa: F401
from tests.support.tolerances import FOREIGN, assert_close

NAMES = [name for name in shipped() if name.endswith("mlp.hook_in")]
EIGHT, NINE, RESIDUAL = (f"smollm2-135m/blocks.{rest}" for rest in ("8.mlp.hook_in", "9.mlp.hook_in", "9.hook_resid_pre"))
FLOOR = 0.4
"""Explained variance that the card states at least, of what the MLP writes."""

PROSE = (
    "The harbour was quiet when the boats came in. Nobody had expected them before the evening, and the market on the quay was "
    "already closed. A boy ran up the hill to tell the baker, who laughed, took off his apron and went to see for himself."
)


class Ends(NamedTuple):
    """A dense function of a transcoder's latents to a later layer's stream, where it is taken, and the active pairs."""

    function: Callable[[Tensor], dict[str, Tensor]]
    latents: Tensor
    positions: Tensor
    indices: Tensor


def mlp_values(llama: Any, ids: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:  # noqa: F811
    """The stream before a layer's MLP, what enters the MLP's matrices and what the MLP writes."""
    block, caught = llama.model.layers[layer], {}
    handles = [
        block.post_attention_layernorm.register_forward_pre_hook(lambda _, inputs: caught.update(stream=inputs[0])),
        block.mlp.register_forward_hook(lambda _, inputs, output: caught.update(read=inputs[0], written=output)),
    ]
    with torch.no_grad():
        llama(ids[None])
    for handle in handles:
        handle.remove()
    return caught["stream"][0], caught["read"][0], caught["written"][0]


Written = Callable[[Tensor], Tensor]
"""What stands where an MLP writes, from what enters it."""


def start(llama: Any, ids: Tensor, name: str, stop: int, between: dict[int, Written] | None = None) -> Ends:  # noqa: F811
    """From the latents of a transcoder to what a residual SAE at `stop`, and a transcoder there, read; MLPs of some layers replaced."""
    source, layer = sae(name), attrib.load_dictionary(name).site.layer
    stream, read, written = mlp_values(llama, ids, layer)
    with torch.no_grad():
        latents = source.encode(read)
        error = written - source.decode(latents)
    rotary = llama.model.rotary_emb(stream[None], torch.arange(len(ids))[None])
    mask = torch.full((len(ids), len(ids)), float("-inf")).triu(1)[None, None]

    def to_mlp(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        attended = x + block.self_attn(block.input_layernorm(x), attention_mask=mask, position_embeddings=rotary)[0]
        return attended, block.post_attention_layernorm(attended)[0]

    def function(values: Tensor) -> dict[str, Tensor]:
        x = (stream + source.decode(values) + error)[None]
        for number, block in enumerate(llama.model.layers[layer + 1 : stop], layer + 1):
            if number in (between or {}):
                attended, read = to_mlp(block, x)
                x = attended + between[number](read)
            else:
                x = block(x, attention_mask=mask, position_embeddings=rotary)
        return {"hook_resid_pre": x[0], "mlp.hook_in": to_mlp(llama.model.layers[stop], x)[1]}

    return Ends(function, latents, *(latents > 0).nonzero(as_tuple=True))


def test_three_layers_one_after_another() -> None:
    found = [attrib.load_dictionary(name) for name in NAMES]
    layers = [dictionary.site.layer for dictionary in found]
    assert len(layers) >= 3
    assert layers == list(range(layers[0], layers[0] + len(layers)))
    for dictionary in found:
        assert dictionary.site == attrib.Site(dictionary.site.layer, "mlp_in")
        assert dictionary.writes == (attrib.Site(dictionary.site.layer, "mlp_out"),)


@pytest.mark.few
@pytest.mark.parametrize("name", NAMES)
def test_sae_lens_computes_the_same(name: str, llama: Any, model: attrib.Model) -> None:  # noqa: F811
    ids = torch.tensor(model.tokenizer.encode(TEXT))
    dictionary = attrib.load_dictionary(name)
    _, read, _ = mlp_values(llama, ids, dictionary.site.layer)
    with torch.no_grad():
        theirs, ours = sae(name).encode(read), attrib.encode(dictionary, read)
        assert theirs.any(), "something is active"
        assert torch.equal(theirs > 0, ours > 0)
        assert_close(ours, theirs, what=name)
        assert_close(attrib.decode(dictionary, ours), sae(name)(read), what=name)


@pytest.mark.few
@pytest.mark.parametrize("name", NAMES)
def test_explained_variance_on_other_prose(name: str, llama: Any, model: attrib.Model) -> None:  # noqa: F811
    """Of what the MLP writes, from what really enters it: a norm's weight left out or put in twice would show here."""
    ids = torch.tensor(model.tokenizer.encode(PROSE))
    _, read, written = mlp_values(llama, ids, attrib.load_dictionary(name).site.layer)
    with torch.no_grad():
        written, recon = written[1:], sae(name)(read)[1:]  # the first token is a sink, outside what they were trained on
    explained = 1 - (written - recon).pow(2).sum() / (written - written.mean(0)).pow(2).sum()
    assert explained > FLOOR


@pytest.mark.parametrize("name", NAMES)
def test_the_card_has_its_numbers(name: str) -> None:
    folder, _, site = name.partition("/")
    card = json.loads((shipped_folder(folder) / "card-transcoders.json").read_text())
    found = card["results"][site]
    assert found["explained_variance"] >= FLOOR
    assert found["cross_entropy_original"] < found["cross_entropy_spliced"] < found["cross_entropy_zero"]
    assert found["density"]["dead"] + sum(found["density"]["latents"]) == attrib.load_dictionary(name).d_sae
    line = next(line for line in (shipped_folder(folder) / "README.md").read_text().splitlines() if f"`{site}`" in line)
    assert f"{found['explained_variance']:.3f}" in line


@pytest.mark.few
@pytest.mark.parametrize("target", [EIGHT, NINE, RESIDUAL])
def test_latent_to_latent_on_the_real_model(target: str, llama: Any, model: attrib.Model) -> None:  # noqa: F811
    """From what the transcoder of layer 7 writes to later transcoders and to the SAE behind them."""
    read = attrib.load_dictionary(target)
    edges = attrib.latent_to_latent(model, attrib.load_dictionary(NAMES[0]), read, TEXT)
    ends = start(llama, torch.tensor(model.tokenizer.encode(TEXT)), NAMES[0], read.site.layer)
    assert_rows(edges, ends, target)


@pytest.mark.parametrize("effect", ["direct", "total"])
@pytest.mark.parametrize("target", [NINE, RESIDUAL])
def test_through_the_transcoder_between(target: str, effect: Any, llama: Any, model: attrib.Model) -> None:  # noqa: F811
    """With that of layer 8 in its MLP's place: what it writes stands still, or follows what it reads."""
    ids, cut = torch.tensor(model.tokenizer.encode(TEXT)), sae(EIGHT)
    _, read, written = mlp_values(llama, ids, 8)
    with torch.no_grad():
        error = written - cut(read)
    stands: dict[str, Written] = {"direct": lambda _: written, "total": lambda x: cut(x) + error}
    ends = start(llama, ids, NAMES[0], 9, {8: stands[effect]})
    source, cuts = attrib.load_dictionary(NAMES[0]), [attrib.load_dictionary(EIGHT)]
    edges = attrib.latent_to_latent(model, source, attrib.load_dictionary(target), TEXT, cuts=cuts, effect=effect)
    assert_rows(edges, ends, target)


def assert_rows(edges: attrib.Edges, ends: Ends, target: str) -> None:
    """Some rows of an attribution against autograd's."""
    place = target.partition("/")[2].split(".", 2)[2]

    def encode(values: dict[str, Tensor]) -> Tensor:
        return sae(target).encode(values[place])

    with torch.no_grad():
        latents = encode(ends.function(ends.latents))
    position, latent = (latents > 0).nonzero(as_tuple=True)
    assert torch.equal(edges.targets.position, position)
    assert torch.equal(edges.targets.latent, latent)
    assert torch.equal(edges.sources.position, ends.positions)
    assert torch.equal(edges.sources.latent, ends.indices)
    chosen = torch.randperm(len(position), generator=torch.Generator().manual_seed(0))[:ROWS]
    want = rows(ends, lambda values: encode(values)[position, latent], chosen)
    assert want.abs().max() > 1e-2, "there is something to compare"
    assert_close(edges.dense(0)[chosen], want, FOREIGN)
    assert_close(edges.dense(0, "attribution")[chosen], want * ends.latents[ends.positions, ends.indices], FOREIGN)
