"""TransformerLens models of every family and every way of processing their weights, held against their own values."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.adapters.models.hooked_config import HARMLESS, READ, REFUSED, hooked_config
from attrib.core.types import Site, UnsupportedError
from attrib.models.transformer import Model, forward
from attrib.passes.capture import capture
from tests.support.builders import normal, prompt, sae, tiny_variant
from tests.support.hooked import (
    FAMILIES,
    NOTHING,
    SHARED_NORM,
    TINY,
    bridge,
    bridge_cases,
    custom,
    errors,
    hooked,
    hooked_cases,
    lens_values,
    options_of,
    sites_of,
    tiny_bridge,
)
from tests.support.models_table import DOCUMENT, committed, expected
from tests.support.tolerances import FOREIGN, assert_close

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # TransformerLens 3.9 announces its own 4.0
    pytest.mark.filterwarnings("ignore:.*does not support fold_ln"),  # it says so of Phi-3 and OLMo 2, whose own adapters see to it
]

POSITIONS = 20  # beyond every window


@pytest.mark.parametrize(("family", "options", "dtype"), hooked_cases())
def test_every_site_and_the_logits(family: str, options: str, dtype: torch.dtype):
    foreign, tokens = hooked(family, dtype, options=options), prompt(POSITIONS, batch=(2,))
    model = attrib.from_transformer_lens(foreign, name="tiny")
    assert model.dtype == dtype
    found = errors(model, tokens, lens_values(foreign, tokens))
    assert len(found) == 1 + len(sites_of(model.config))
    assert max(found.values()) <= FOREIGN[dtype], found


def test_what_the_families_have_is_read():
    """The facts that a wrong but plausible reading would miss on short prompts."""
    configs = {family: attrib.from_transformer_lens(hooked(family)).config for family in FAMILIES}
    assert {family for family, config in configs.items() if config.parallel} == {"gpt-j", "pythia", "phi-2"}
    assert {family for family, config in configs.items() if not config.pre_norm} == {"olmo-2", "olmo-3"}
    assert {family for family, config in configs.items() if config.post_norm} == {"olmo-2", "olmo-3", "gemma-2", "gemma-3"}
    assert {family: config.qk_norm for family, config in configs.items() if config.qk_norm != "none"} == {
        "qwen3": "head", "gemma-3": "head", "olmo-2": "whole", "olmo-3": "whole"
    }  # fmt: skip
    assert configs["gemma-3"].rotary_tables == (0, 0, 1)
    assert configs["gemma-3"].windows == (5, 5, None)
    assert configs["gpt-neo"].windows == (None, 5)
    assert configs["llama-2"].windows == configs["llama-2"].rotary_tables == ()
    assert (configs["gemma-2"].score_cap, configs["gemma-2"].logit_cap) == (4.0, 3.0)
    assert all(config.embedding_scale == 1 for config in configs.values())  # TransformerLens scales W_E itself


@pytest.mark.parametrize("switch", ["use_split_qkv_input", "use_hook_mlp_in", "use_attn_result", "ungroup_grouped_query_attention"])
def test_hooks_that_can_be_switched_on_change_nothing(switch: str):
    foreign, tokens = hooked("llama-3.1"), prompt(POSITIONS, batch=(2,))
    getattr(foreign, f"set_{switch}")(True)
    assert max(errors(attrib.from_transformer_lens(foreign), tokens, lens_values(foreign, tokens)).values()) <= FOREIGN[torch.float32]


def test_local_layers_beyond_the_first_rotary_tables():
    """TransformerLens makes 2048 positions at first, and longer tables of local layers with their own base."""
    foreign = hooked("gemma-3", n_ctx=2100)
    model = attrib.from_transformer_lens(foreign)
    assert model.params.rotary_cos.shape[:2] == (2, 2100)
    for layer, table in enumerate(model.config.rotary_tables):
        attention = foreign.blocks[layer].attn
        assert len(attention.rotary_cos) == 2048
        attention._extend_rotary_embeddings(2100)
        assert torch.equal(model.params.rotary_cos[table], attention.rotary_cos)
        assert torch.equal(model.params.rotary_sin[table], attention.rotary_sin)


# -------------------------------------------------------------------------------------------------------- bridges

WIDER = ["gpt_neox-sequential", "opt-no-bias", "qwen2-window", "llama-biases", "phi3-window"]


@pytest.mark.few
@pytest.mark.parametrize(("family", "options", "dtype"), bridge_cases())
def test_every_site_and_the_logits_of_a_bridge(family: Any, options: str, dtype: torch.dtype, tmp_path: Path):
    assert_bridge(tiny_bridge(family, tmp_path, dtype, options=options))


@pytest.mark.few
@pytest.mark.parametrize("variant", WIDER)
def test_options_of_a_bridge(variant: str, tmp_path: Path):
    assert_bridge(bridge(tiny_variant(variant), tmp_path, options="all"))


@pytest.mark.few
@pytest.mark.parametrize("options", ["fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2"])
def test_one_way_of_processing_a_bridge(family: Any, options: str, tmp_path: Path):
    assert_bridge(tiny_bridge(family, tmp_path, options=options))


def assert_bridge(foreign: Any) -> None:
    tokens, dtype = prompt(POSITIONS, batch=(2,)), foreign.original_model.dtype
    model = attrib.from_transformer_lens(foreign, name="tiny")
    found = errors(model, tokens, lens_values(foreign, tokens))
    assert max(found.values()) <= FOREIGN[dtype], found


def test_a_bridge_that_gives_zeros_for_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    foreign = tiny_bridge("gpt2", tmp_path)
    given = foreign.tl_parameters()
    given["blocks.1.mlp.W_out"] = torch.zeros_like(given["blocks.1.mlp.W_out"])
    monkeypatch.setattr(type(foreign), "tl_parameters", property(lambda bridge: lambda: given))
    with pytest.raises(UnsupportedError, match=r"gives no blocks\.1\.mlp\.W_out"):
        attrib.from_transformer_lens(foreign)


# ------------------------------------------------------------------------------------------------ what is refused


def test_every_field_of_the_config_is_known():
    from transformer_lens import HookedTransformerConfig

    fields = {field.name for field in dataclasses.fields(HookedTransformerConfig)}
    assert READ | HARMLESS | REFUSED.keys() == fields
    assert len(READ) + len(HARMLESS) + len(REFUSED) == len(fields), "a field stands in two tables"


def test_a_field_that_nobody_knows():
    from transformer_lens import HookedTransformerConfig

    @dataclasses.dataclass
    class Newer(HookedTransformerConfig):
        swirl: float = 0.0

    facts: dict[str, Any] = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "d_vocab": 9, "n_ctx": 8, "device": "cpu"}
    assert hooked_config(Newer(**facts)).d_model == 8
    with pytest.raises(UnsupportedError, match=r"custom with swirl=0\.5: attrib does not know this field.*0\.0 can be read"):
        hooked_config(Newer(**facts, swirl=0.5))


ROTARY = {"positional_embedding_type": "rotary"}
UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "windows both ways": (
        {"attention_dir": "bidirectional", "use_local_attn": True, "window_size": 3, "attn_types": ["local"]},
        "windows of attention that is not causal",
    ),
    "norms behind no norms": ({"normalization_type": None, "use_normalization_before_and_after": True}, "norms behind components"),
    "alibi": ({"positional_embedding_type": "alibi"}, "positional_embedding_type='alibi'"),
    "shortformer": ({"positional_embedding_type": "shortformer"}, "positional_embedding_type='shortformer'"),
    "relative": ({"positional_embedding_type": "relative_positional_bias"}, "positional_embedding_type='relative_positional_bias'"),
    "embedding norm": ({"post_embedding_ln": True}, "a norm after the embedding"),
    "experts": ({"num_experts": 2, "experts_per_token": 1, "gated_mlp": True}, "mixtures of experts"),
    "sinks": ({"use_attention_sinks": True}, "attention sinks"),
    "logn": ({"use_logn_attn": True, "train_seq_length": 32}, "attention scaled by the logarithm"),
    "dynamic ntk": ({"use_dynamic_ntk_rope": True, "train_seq_length": 32} | ROTARY, "depend on the prompt's length"),
    "clip": ({"clip_qkv": 1.0}, "clipped queries, keys and values"),
    "final rms": ({"final_rms": True}, "a final RMSNorm after LayerNorms"),
    "vocabularies": ({"d_vocab_out": 7}, "d_vocab_out=7.*another vocabulary for outputs"),
    "quantized": ({"quantization_method": "gptq"}, "quantization_method='gptq'.*quantized weights"),
    "two norms of queries": ({"use_qk_norm": True, "original_architecture": "Olmo2ForCausalLM"}, "Olmo2ForCausalLM has norms on queries"),
    "parallel olmo": ({"parallel_attn_mlp": True, "original_architecture": "Olmo2ForCausalLM"}, "parallel_attn_mlp=True.*Olmo2ForCausalLM"),
    "solu": ({"act_fn": "solu_ln"}, "activation function 'solu_ln'"),
    "relu2": ({"act_fn": "relu2"}, "activation function 'relu2'"),
}  # fmt: skip


@pytest.mark.parametrize(("facts", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_models_that_attrib_does_not_compute(facts: dict[str, Any], message: str):
    with pytest.raises(UnsupportedError, match=message):
        attrib.from_transformer_lens(custom(n_layers=1, **facts))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("load_in_4bit", True, "load_in_4bit=True"), ("n_devices", 2, "n_devices=2"), ("act_fn", "xielu", "activation function 'xielu'")],
)
def test_configs_of_models_that_are_not_built_here(field: str, value: Any, message: str):
    foreign = hooked("gpt2")
    setattr(foreign.cfg, field, value)
    with pytest.raises(UnsupportedError, match=message):
        attrib.from_transformer_lens(foreign)


def test_encoders_are_refused():
    from transformer_lens import HookedEncoder, HookedTransformerConfig

    facts = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "d_vocab": 9, "n_ctx": 8, "act_fn": "gelu", "device": "cpu"}
    with pytest.raises(UnsupportedError, match="HookedEncoder: attrib computes HookedTransformers"):
        attrib.from_transformer_lens(HookedEncoder(HookedTransformerConfig(**facts)))


def test_attached_saes_are_refused():
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig

    foreign = HookedSAETransformer(HookedTransformerConfig(**TINY | {"act_fn": "relu", "device": "cpu"}))
    assert attrib.from_transformer_lens(foreign).config.d_model == 32
    foreign.add_sae(sae("standard"))
    with pytest.raises(UnsupportedError, match=r"SAEs at blocks\.1\.hook_resid_pre.*reset_saes"):
        attrib.from_transformer_lens(foreign)


# -------------------------------------------------------------------------- what processing does to values (docs/models.md)

PROCESSED = 2e-5
"""TransformerLens processes weights in float32 whatever their dtype, so raw and processed models agree to float32's rounding."""


def captured(model: Model, tokens: Tensor) -> dict[str, Tensor]:
    return {str(site): value for site, value in capture(model, tokens, sites_of(model.config)).items()} | {"logits": forward(model, tokens)}


def pair(family: str, **options: bool) -> tuple[Model, dict[str, Tensor], Model, dict[str, Tensor]]:
    """One model raw and processed by the given options alone, in float64, with the values of both."""
    tokens = prompt(POSITIONS)
    raw = hooked(family, torch.float64)
    processed = hooked(family, torch.float64)
    processed.load_and_process_state_dict(processed.state_dict(), **NOTHING | options)
    models = [attrib.from_transformer_lens(foreign, name="tiny") for foreign in (raw, processed)]
    (a, before), (b, after) = ((model, captured(model, tokens)) for model in models)
    return a, before, b, after


def kept(before: dict[str, Tensor], after: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
    """All values but those of some kinds are what they were."""
    for name in before:
        if not name.endswith(but or ("nothing",)):
            assert_close(after[name], before[name], PROCESSED, what=name)


def changed(before: Tensor, after: Tensor) -> bool:
    return bool((before - after).abs().max() > 0.05)


PRE_NORM = [family for family in FAMILIES if family not in ("olmo-2", "olmo-3", "olmo")]
LAYER_NORM = [family for family in PRE_NORM if FAMILIES[family]["normalization_type"] == "LN"]


@pytest.mark.parametrize("family", PRE_NORM)
def test_fold_ln_divides_mlp_in_by_the_gain(family: str):
    raw, before, _, after = pair(family, fold_ln=True)
    kept(before, after, but=("mlp.hook_in",))
    for layer in range(raw.config.n_layers):
        norm, at = raw.params.blocks[layer].norm_2, str(Site(layer, "mlp_in"))
        assert_close(after[at] * norm.weight + norm.bias, before[at], PROCESSED, what=at)
        assert changed(before[at], after[at])


def test_fold_ln_is_not_exact_for_a_gated_mlp_behind_a_layer_norm_with_bias():
    """TransformerLens has no gate bias to fold it into. OLMo's norms have none; attrib equals the model that came out."""
    _, before, _, after = pair("olmo", fold_ln=True)
    assert changed(before["logits"], after["logits"])


@pytest.mark.parametrize("family", LAYER_NORM)
def test_center_writing_weights_takes_the_mean_off_the_stream(family: str):
    _, before, _, after = pair(family, center_writing_weights=True)
    moved = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    kept(before, after, but=moved)
    for name in before:
        if name.endswith(moved):
            assert_close(after[name], before[name] - before[name].mean(-1, keepdim=True), PROCESSED, what=name)
            assert changed(before[name], after[name])


@pytest.mark.few
@pytest.mark.parametrize("family", ["llama-2", "gemma-2", "olmo-2"])
def test_center_writing_weights_leaves_rms_norms_alone(family: str):
    _, before, _, after = pair(family, center_writing_weights=True)
    kept(before, after)


@pytest.mark.few
@pytest.mark.parametrize("family", [family for family in FAMILIES if "center_unembed" in options_of(family)])
def test_center_unembed_takes_a_constant_off_the_logits_of_a_position(family: str):
    _, before, _, after = pair(family, center_unembed=True)
    kept(before, after, but=("logits",))
    assert_close(after["logits"], before["logits"] - before["logits"].mean(-1, keepdim=True), PROCESSED)
    assert changed(before["logits"], after["logits"])


@pytest.mark.parametrize("family", FAMILIES)
def test_fold_value_biases_takes_them_off_z(family: str):
    raw, before, folded, after = pair(family, fold_value_biases=True)
    kept(before, after, but=("hook_z",))
    for layer in range(raw.config.n_layers):
        b_V, at = raw.params.blocks[layer].attention.b_V, str(Site(layer, "z"))
        by_head = b_V.unflatten(0, (raw.config.n_kv_heads, -1)).repeat_interleave(raw.config.n_heads // raw.config.n_kv_heads, 0)
        assert_close(after[at], before[at] - by_head.flatten(), PROCESSED, what=at)
        assert not folded.params.blocks[layer].attention.b_V.any()


def test_refactoring_gives_z_other_coordinates():
    raw, before, new, after = pair("gpt2", refactor_factored_attn_matrices=True)
    kept(before, after, but=("hook_z",))
    for layer in range(raw.config.n_layers):
        at, old, made = str(Site(layer, "z")), raw.params.blocks[layer].attention, new.params.blocks[layer].attention
        assert changed(before[at], after[at])
        for head in range(raw.config.n_heads):
            own = slice(head * raw.config.d_head, (head + 1) * raw.config.d_head)
            written = (before[at] - old.b_V)[:, own] @ old.W_O[own]
            assert_close(after[at][:, own] @ made.W_O[own], written, PROCESSED, what=(at, head))


# --------------------------------------------------------------------------------------------- ln2.hook_normalized


@pytest.mark.parametrize("options", ["raw", "fold_ln"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("olmo-2", "olmo-3")])
def test_hook_normalized_of_a_hooked_transformer_stands_before_the_gain(family: str, options: str):
    """mlp_in = hook_normalized · weight + bias; the two are one where the norm is folded."""
    foreign, tokens = hooked(family, torch.float64, options=options), prompt(POSITIONS, batch=(2,))
    model = attrib.from_transformer_lens(foreign)
    _, cache = foreign.run_with_cache(tokens)
    for layer in range(model.config.n_layers):
        site, norm = Site(layer, "mlp_in"), model.params.blocks[layer].norm_2
        normalised, value = cache[f"blocks.{layer}.ln2.hook_normalized"], capture(model, tokens, [site])[site]
        assert_close(normalised * norm.weight + norm.bias, value, what=site)
        assert changed(normalised, value) == (options == "raw")


@pytest.mark.few
@pytest.mark.parametrize("options", ["raw", "all"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_hook_normalized_of_a_bridge_stands_before_the_gain(family: Any, options: str, tmp_path: Path):
    """As in a HookedTransformer; `mlp.hook_in` is mlp_in itself, folded or not."""
    foreign, tokens = tiny_bridge(family, tmp_path, options=options), prompt(POSITIONS, batch=(2,))
    model = attrib.from_transformer_lens(foreign)
    with torch.no_grad():
        _, cache = foreign.run_with_cache(tokens)
    for layer in range(2):
        site, norm = Site(layer, "mlp_in"), model.params.blocks[layer].norm_2
        normalised, value = cache[f"blocks.{layer}.ln2.hook_normalized"], capture(model, tokens, [site])[site]
        assert_close(normalised * norm.weight + norm.bias, value, what=site)
        assert changed(normalised, value) == (options == "raw")
        assert_close(cache[f"blocks.{layer}.mlp.hook_in"], value, what=site)


@pytest.mark.parametrize("family", ["olmo-2", "olmo-3"])
def test_hook_normalized_of_a_norm_behind_the_mlp_is_no_mlp_in(family: str):
    """There ln2 norms what the MLP writes: mlp_out = hook_normalized · weight."""
    foreign, tokens = hooked(family, torch.float64), prompt(POSITIONS, batch=(2,))
    model = attrib.from_transformer_lens(foreign)
    _, cache = foreign.run_with_cache(tokens)
    site, post = Site(1, "mlp_out"), model.params.blocks[1].post_2
    assert_close(cache["blocks.1.ln2.hook_normalized"] * post.weight, capture(model, tokens, [site])[site])


def test_a_dictionary_of_hook_normalized_written_for_mlp_in():
    """The rewriting that docs/models.md states gives the same pre-activations, and writes what it wrote."""
    foreign, tokens = hooked("gpt2", torch.float64), prompt(POSITIONS)
    model, site = attrib.from_transformer_lens(foreign), Site(1, "mlp_in")
    with torch.no_grad():
        normalised = foreign.run_with_cache(tokens[None])[1]["blocks.1.ln2.hook_normalized"][0]
    w, b = model.params.blocks[1].norm_2
    W_enc, b_enc, W_dec, b_dec = (normal(*shape, dtype=torch.float64, seed=i) for i, shape in enumerate([(32, 50), (50,), (50, 32), (32,)]))
    latents = normalised @ W_enc + b_enc
    assert_close(capture(model, tokens, [site])[site] @ (W_enc / w[:, None]) + b_enc - (b / w) @ W_enc, latents)
    assert_close(latents @ (W_dec * w) + b_dec * w + b, (latents @ W_dec + b_dec) * w + b)


def test_shared_norms_stay_shared():
    """Parallel blocks with one norm hold it twice, and fold it twice."""
    for family in SHARED_NORM:
        block = attrib.from_transformer_lens(hooked(family)).params.blocks[0]
        assert torch.equal(block.norm_1.weight, block.norm_2.weight)


# -------------------------------------------------------------------------------------------------------- docs/models.md


def test_the_committed_table_lists_what_the_code_has():
    """Every family of every source with its ways of processing; how far apart they are is for the run that writes it."""
    assert committed(DOCUMENT.read_text()) == expected(), "docs/models.md is not of this code: run python -m tests.support.models_table"
