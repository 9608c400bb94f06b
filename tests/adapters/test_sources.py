"""Models from elsewhere: TransformerLens, bridges, transformers objects and folders give their own logits and sites, untouched.

Everything is built here from small random configs; nothing is fetched.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attrib
from attrib.core.types import FetchError, FormatError, InputError, Site, UnsupportedError
from attrib.models.transformer import Model, forward
from attrib.passes.capture import capture
from tests.support.builders import (
    DTYPES,
    FAMILIES,
    VARIANTS,
    Family,
    all_sites,
    prompt,
    randomise,
    sae,
    tiny,
    tiny_gpt2,
    tiny_llama,
    tiny_variant,
)
from tests.support.tolerances import FOREIGN, assert_close

pytestmark = [
    pytest.mark.usefixtures("exact_rms_norm"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # TransformerLens 3.9 announces its own 4.0
]

GPT2_LIKE = {"act_fn": "gelu_new", "normalization_type": "LN"}
LLAMA_LIKE = {
    "act_fn": "silu",
    "normalization_type": "RMS",
    "positional_embedding_type": "rotary",
    "gated_mlp": True,
    "n_key_value_heads": 2,
    "d_head": 10,
}
HOOKED: dict[str, dict[str, Any]] = {
    "gpt2": GPT2_LIKE,
    "gpt2-gelu": GPT2_LIKE | {"act_fn": "gelu"},
    "gpt2-scale": GPT2_LIKE | {"attn_scale": 3.0},
    "gpt2-unscaled": GPT2_LIKE | {"use_attn_scale": False},
    "llama": LLAMA_LIKE,
    "llama-ungrouped": LLAMA_LIKE | {"n_key_value_heads": None},
    "llama-flag": LLAMA_LIKE | {"ungroup_grouped_query_attention": True},
    "llama-part-rotary": LLAMA_LIKE | {"rotary_dim": 6},
    "llama-rope3": LLAMA_LIKE | {"use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 32},
    "llama-yarn": LLAMA_LIKE | {"use_yarn_rope": True, "yarn_factor": 2.0, "yarn_original_max_position_embeddings": 32},
}


def hooked(dtype: torch.dtype = torch.float32, *, seed: int = 0, **options: Any) -> Any:
    """A random HookedTransformer from a local config; `b_in` of a gated MLP included, which no Llama has."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    facts: dict[str, Any] = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 64, "d_vocab": 60, "n_ctx": 64}
    facts |= {"act_fn": "gelu_new", "device": "cpu", "dtype": dtype, "init_weights": False} | options
    model = HookedTransformer(HookedTransformerConfig(**facts))
    randomise(model, seed)
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer(smollm2_folder: Path) -> Any:
    """A real tokenizer; the tiny models have fewer tokens than it, which nothing here minds."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_folder, local_files_only=True)


def bridge(model: nn.Module, tokenizer: Any, folder: Path, *, processed: bool) -> Any:
    """A TransformerBridge over a transformers model, as loaded or after TransformerLens' weight processing."""
    from transformer_lens.model_bridge import TransformerBridge

    model.save_pretrained(folder)
    made = TransformerBridge.boot_transformers(str(folder), hf_model=model, device="cpu", tokenizer=tokenizer, dtype=model.dtype)
    if processed:
        made.enable_compatibility_mode(disable_warnings=True)
    return made


# ------------------------------------------------------------------------------------------ left as it was


def everything_of(model: nn.Module) -> dict[str, Any]:
    """All that an extraction could change: tensors and their versions, flags, hooks, and every attribute's name."""
    seen: dict[str, Any] = {"state": {key: value.clone() for key, value in model.state_dict().items()}}
    for name, tensor in tensors_of(model):
        seen[f"tensor {name}"] = (tensor._version, tensor.requires_grad, tensor.grad is None, tensor.data_ptr(), tensor.dtype)
    for name, module in model.named_modules():
        hooks = {key: len(value) for key, value in vars(module).items() if "hooks" in key and hasattr(value, "__len__")}
        points = {key: len(getattr(module, key)) for key in ("fwd_hooks", "bwd_hooks") if hasattr(module, key)}
        seen[f"module {name}"] = (module.training, hooks, points, sorted(vars(module)))
    return seen


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from nn.Module.named_parameters(model)
    yield from nn.Module.named_buffers(model)


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = everything_of(model)
    state_before, state_after = before.pop("state"), after.pop("state")
    assert after == before
    assert state_after.keys() == state_before.keys()
    assert all(torch.equal(state_after[key], state_before[key]) for key in state_before)


def assert_same_model(foreign: Any, model: Model, dtype: torch.dtype, *, positions: int = 20, normalised: str | None = None) -> None:
    """Logits, and every site that TransformerLens has in its cache, against attrib's."""
    tokens = prompt(positions, batch=(2,))
    with torch.no_grad():
        want, cache = foreign.run_with_cache(tokens)
    assert_close(forward(model, tokens), want, FOREIGN[dtype], what="logits")
    values = capture(model, tokens, all_sites(model.config.n_layers))
    for site, value in values.items():
        if site.kind == "mlp_in":
            if normalised is not None:
                assert_close(value, cache[f"blocks.{site.layer}.{normalised}"], FOREIGN[dtype], what=site)
            continue
        there = cache[str(site)]
        assert_close(value, there.flatten(-2) if there.ndim == 4 else there, FOREIGN[dtype], what=site)


# ------------------------------------------------------------------------------------------ TransformerLens


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("processed", [False, True], ids=["raw", "processed"])
@pytest.mark.parametrize("options", HOOKED.values(), ids=HOOKED.keys())
def test_hooked_transformer(options: dict[str, Any], processed: bool, dtype: torch.dtype):
    foreign = hooked(dtype, **options)
    if processed:
        foreign.process_weights_()
        assert foreign.cfg.normalization_type in ("LNPre", "RMSPre")
    before = everything_of(foreign)
    model = attrib.from_transformer_lens(foreign, name="tiny")
    assert_untouched(foreign, before)
    assert model.config.norm == ("layer" if foreign.cfg.normalization_type.startswith("LN") else "rms")
    # a folded norm has no weights after its hook, so there its value is the MLP's input
    assert_same_model(foreign, model, dtype, normalised="ln2.hook_normalized" if processed else None)


def test_hooked_transformer_with_a_context_beyond_its_first_rotary_tables():
    """TransformerLens makes tables for 2048 positions and lengthens them in its forward pass."""
    foreign = hooked(n_layers=1, n_ctx=2100, **LLAMA_LIKE)
    model = attrib.from_transformer_lens(foreign)
    assert foreign.blocks[0].attn.rotary_cos.shape[0] == 2048
    tokens = prompt(2060)
    with torch.no_grad():
        want = foreign(tokens[None])[0, 2040:]
    assert_close(forward(model, tokens)[2040:], want)


def test_weights_are_shared_where_they_can_be():
    foreign = hooked(**GPT2_LIKE)
    model = attrib.from_transformer_lens(foreign)
    assert model.params.W_E.data_ptr() == foreign.W_E.data_ptr()
    assert not any(leaf.requires_grad for leaf in (model.params.W_E, model.params.blocks[0].mlp.W_in))


def test_what_is_no_transformer_lens_model():
    with pytest.raises(InputError, match=r"expected a HookedTransformer or a TransformerBridge, got GPT2LMHeadModel.*from_hugging_face"):
        attrib.from_transformer_lens(tiny_gpt2())
    with pytest.raises(InputError, match="got str"):
        attrib.from_transformer_lens("gpt2")


# -------------------------------------------------------------------------------------------------- bridges


@pytest.mark.few
@pytest.mark.parametrize("processed", [False, True], ids=["raw", "compatible"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bridge(variant: str, processed: bool, tokenizer: Any, tmp_path: Path):
    foreign = bridge(tiny_variant(variant, n_layers=2), tokenizer, tmp_path, processed=processed)
    before = everything_of(foreign)
    model = attrib.from_transformer_lens(foreign, name="tiny")
    assert_untouched(foreign, before)
    assert_same_model(foreign, model, torch.float32, normalised="mlp.hook_in")


def test_bridge_in_double_precision(tokenizer: Any, tmp_path: Path):
    """GPT-2 alone: a bridge's Llama attention and norms compute in float32 whatever the model's dtype."""
    foreign = bridge(tiny_gpt2(torch.float64), tokenizer, tmp_path, processed=True)
    assert_same_model(foreign, attrib.from_transformer_lens(foreign), torch.float64)


def test_processing_changes_the_stream_and_attrib_follows(tokenizer: Any, tmp_path: Path):
    """Centred and folded weights have the same next-token distribution and another residual stream."""
    raw = attrib.from_transformer_lens(bridge(tiny_gpt2(), tokenizer, tmp_path / "raw", processed=False))
    folded = attrib.from_transformer_lens(bridge(tiny_gpt2(), tokenizer, tmp_path / "folded", processed=True))
    tokens, site = prompt(10), Site(2, "resid_pre")
    assert_close(forward(raw, tokens).log_softmax(-1), forward(folded, tokens).log_softmax(-1))
    assert (capture(raw, tokens, [site])[site] - capture(folded, tokens, [site])[site]).abs().max() > 0.1


def test_a_bridge_brings_its_tokenizer(tokenizer: Any, tmp_path: Path):
    model = attrib.from_transformer_lens(bridge(tiny_llama(), tokenizer, tmp_path, processed=False))
    text = "The Eiffel tower"
    assert model.tokenizer.encode(text) == tokenizer(text, add_special_tokens=False).input_ids
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    assert model.tokenizer.around == ([tokenizer.bos_token_id], [])  # TransformerLens puts it first unless told otherwise


def test_a_native_bridge_is_refused():
    from transformer_lens.model_bridge import TransformerBridge

    facts = {"d_model": 32, "d_head": 8, "n_heads": 4, "n_layers": 2, "n_ctx": 16, "d_vocab": 60, "d_mlp": 64, "act_fn": "gelu"}
    with pytest.raises(UnsupportedError, match=r"NativeModel in a TransformerBridge.*transformers models only"):
        attrib.from_transformer_lens(TransformerBridge.boot_native(facts))


# --------------------------------------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_a_transformers_model_is_left_as_it_is(family: Family, training: bool):
    foreign = tiny(family).train(training)
    before = everything_of(foreign)
    model = attrib.from_hugging_face(foreign)
    forward(model, prompt(5))
    assert_untouched(foreign, before)
    assert model.params.W_E.data_ptr() == foreign.get_input_embeddings().weight.data_ptr()
    assert (model.tokenizer, model.name) == (None, family)


def test_a_transformers_model_with_its_tokenizer(tokenizer: Any):
    model = attrib.from_hugging_face(tiny_llama(), tokenizer, name="mine")
    assert model.name == "mine"
    assert model.tokenizer.decode(model.tokenizer.encode(" Paris is")) == " Paris is"
    assert model.tokenizer.around == ([], [])  # this tokenizer puts nothing around a prompt


@pytest.mark.few
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder(variant: str, dtype: torch.dtype, tmp_path: Path):
    foreign, folder = tiny_variant(variant, dtype, n_layers=2), tmp_path / "tiny-model"
    foreign.save_pretrained(folder)
    model = attrib.load_model(folder)
    assert (model.name, model.dtype, model.tokenizer) == ("tiny-model", dtype, None)
    tokens = prompt(12)
    with torch.no_grad():
        assert_close(forward(model, tokens), foreign(tokens[None]).logits[0])
    assert attrib.load_model(str(folder)).fingerprint == model.fingerprint


def test_a_folder_with_a_tokenizer(tokenizer: Any, tmp_path: Path):
    tiny_llama().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert attrib.load_model(tmp_path).tokenizer.encode("The Eiffel tower") == tokenizer("The Eiffel tower").input_ids


def bloom() -> nn.Module:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=60))


def rope(kind: str) -> dict[str, Any]:
    longrope = {"long_factor": [1.0] * 5, "short_factor": [1.0] * 5, "original_max_position_embeddings": 32} if kind == "longrope" else {}
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0} | longrope}


UNSUPPORTED_HUGGING_FACE: dict[str, tuple[Any, str]] = {
    "bloom": (bloom, "architecture 'bloom'"),
    "layer scale": (lambda: tiny_gpt2(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True.*layer number"),
    "unscaled": (lambda: tiny_gpt2(scale_attn_weights=False), "scale_attn_weights=False.*unscaled attention"),
    "cross": (lambda: tiny_gpt2(add_cross_attention=True), "cross-attention"),
    "mish": (lambda: tiny_gpt2(activation_function="mish"), "activation function 'mish'.*gelu_new"),
    "llama mish": (lambda: tiny_llama(hidden_act="mish"), "activation function 'mish'"),
    "dynamic": (lambda: tiny_llama(**rope("dynamic")), "rope_type='dynamic'.*depend on the prompt's length"),
    "longrope": (lambda: tiny_llama(**rope("longrope")), "rope_type='longrope'"),
}


@pytest.mark.parametrize(("make", "message"), UNSUPPORTED_HUGGING_FACE.values(), ids=UNSUPPORTED_HUGGING_FACE.keys())
def test_transformers_models_that_attrib_does_not_compute(make: Any, message: str, tmp_path: Path):
    foreign = make()
    with pytest.raises(UnsupportedError, match=message):
        attrib.from_hugging_face(foreign)
    foreign.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=message):
        attrib.load_model(tmp_path)


def test_what_is_no_transformers_model():
    from transformers import GPT2Model

    with pytest.raises(InputError, match=r"expected a transformers causal language model .AutoModelForCausalLM., got dict"):
        attrib.from_hugging_face({})
    with pytest.raises(InputError, match=r"GPT2Model has no unembedding.*AutoModelForCausalLM"):
        attrib.from_hugging_face(GPT2Model(tiny_gpt2().config))


# ---------------------------------------------------------------------------------------- names and folders


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", Path("nowhere")])
def test_a_missing_folder(name: str | Path):
    with pytest.raises(InputError, match=f"model: the folder {name} does not exist"):
        attrib.load_model(name)
    with pytest.raises(InputError, match=f"dictionary: {name} is no folder"):
        attrib.load_dictionary(name)


def test_a_name_that_nobody_knows():
    """Offline (see conftest): TransformerLens and sae-lens know their names without a hub."""
    with pytest.raises(
        InputError, match=r"model: 'no-such-model' is neither 'smollm2-135m', nor a local folder, nor a model that TransformerLens"
    ):
        attrib.load_model("no-such-model")
    with pytest.raises(InputError, match="sae-lens does not know 'no-such-release'"):
        attrib.load_dictionary("no-such-release/blocks.0.hook_resid_pre")
    with pytest.raises(InputError, match=r"sae-lens does not know 'gpt2-small-res-jb'.*Valid IDs"):
        attrib.load_dictionary("gpt2-small-res-jb/no-such-id")
    with pytest.raises(InputError, match=r"no folder, no file of transcoder_circuits, and not of the form release/sae_id"):
        attrib.load_dictionary("no-slash")
    with pytest.raises(FetchError, match=r"gpt2-small-res-jb/blocks\.0\.hook_resid_pre could not be fetched; is a model hub reachable"):
        attrib.load_dictionary("gpt2-small-res-jb/blocks.0.hook_resid_pre")


def test_a_transformer_lens_name_reaches_it_with_its_options(monkeypatch: pytest.MonkeyPatch):
    from transformer_lens import HookedTransformer

    model, asked = hooked(**LLAMA_LIKE), {}

    def from_pretrained(name: str, **options: Any) -> Any:
        asked.update(options, name=name)
        return model

    monkeypatch.setattr(HookedTransformer, "from_pretrained", from_pretrained)
    loaded = attrib.load_model("pythia-70m", fold_ln=False)
    assert asked == {"name": "pythia-70m", "device": "cpu", "fold_ln": False}
    assert loaded.name == "pythia-70m"
    assert_same_model(model, loaded, torch.float32)


def test_a_release_name_reaches_sae_lens(monkeypatch: pytest.MonkeyPatch):
    from sae_lens import SAE

    made, asked = sae("jumprelu"), {}

    def from_pretrained(release: str, sae_id: str, **options: Any) -> Any:
        asked.update(options, release=release, sae_id=sae_id)
        return made

    monkeypatch.setattr(SAE, "from_pretrained", from_pretrained)
    loaded = attrib.load_dictionary("gpt2-small-res-jb/blocks.7.hook_resid_pre")
    assert asked == {"release": "gpt2-small-res-jb", "sae_id": "blocks.7.hook_resid_pre", "dtype": "float32"}
    assert loaded.name == "gpt2-small-res-jb/blocks.7.hook_resid_pre"
    assert torch.equal(loaded.params.W_enc, made.W_enc)


def test_a_folder_without_a_model(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no config\.json; expected a folder written by transformers' save_pretrained"):
        attrib.load_model(tmp_path)
    tiny_gpt2().config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds no safetensors weights"):
        attrib.load_model(tmp_path)


def test_a_damaged_folder(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    tiny_gpt2().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, facts = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-100])
    with pytest.raises(FormatError, match=r"model\.safetensors is missing or damaged"):
        attrib.load_model(tmp_path)
    weights.write_bytes(whole)
    state = load_file(weights)
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"lack transformer\.h\.1\.mlp\.c_fc\.weight"):
        attrib.load_model(tmp_path)
    config.write_text(facts[:50])
    with pytest.raises(FormatError, match=r"config\.json is damaged"):
        attrib.load_model(tmp_path)
    config.write_text(json.dumps([1]))
    with pytest.raises(FormatError, match=r"config\.json holds a list, expected an object"):
        attrib.load_model(tmp_path)
