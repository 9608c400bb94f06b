"""Every architecture of transformers that attrib has, against transformers' own class: each site, the logits, each option.

The oracle is the class itself, with random weights far from their defaults (see builders) and with the parts that it
computes in float32 kept in its own dtype (see exact_transformers).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import attrib
from attrib.adapters.models.families import FAMILIES, model_config
from attrib.adapters.models.families.family import windows_of
from attrib.adapters.models.families.gpt import pairs_as_halves
from attrib.adapters.models.families.weights import Weights
from attrib.core.types import FormatError, InputError, Site, UnsupportedError
from attrib.models.transformer import Model, Norm, forward
from attrib.passes.capture import capture
from tests.adapters.test_sources import assert_untouched, everything_of
from tests.support.builders import (
    ALL_FAMILIES,
    ALL_VARIANTS,
    DTYPES,
    N_LAYERS,
    Family,
    all_sites,
    attrib_model,
    normal,
    prompt,
    tiny,
    tiny_variant,
    transformers_values,
)
from tests.support.exact_transformers import keep_dtype
from tests.support.tolerances import assert_close


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_dtype(monkeypatch)


def sites_of(model: attrib.Model, n_layers: int = N_LAYERS) -> list[Site]:
    """The sites that a model has: between attention and MLP of a parallel block there is none."""
    return [site for site in all_sites(n_layers) if not (model.config.parallel and site.kind == "resid_mid")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_logits_and_every_site_are_transformers_own(variant: str, dtype: torch.dtype):
    foreign = tiny_variant(variant, dtype)
    model = attrib.from_hugging_face(foreign)
    tokens = prompt(20, batch=(2,))
    want_logits, want = transformers_values(foreign, tokens)
    got = capture(model, tokens, sites_of(model))
    assert got.keys() == want.keys()
    for site, value in got.items():
        assert_close(value, want[site], what=site)
    assert_close(forward(model, tokens), want_logits, what="logits")


def test_the_variants_are_of_every_family():
    assert {family for family, _ in ALL_VARIANTS.values()} == set(ALL_FAMILIES) == set(FAMILIES)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_prompt_longer_than_every_window_to_the_end_of_the_context(family: Family):
    foreign = tiny(family, torch.float64)
    model, tokens = attrib.from_hugging_face(foreign), prompt(64)
    want_logits, want = transformers_values(foreign, tokens)
    assert_close(forward(model, tokens), want_logits)
    for site, value in capture(model, tokens, sites_of(model)).items():
        assert_close(value, want[site], what=site)
    with pytest.raises(InputError, match="65 positions"):
        forward(model, prompt(65))


@pytest.mark.few
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_model_is_left_as_it_is_and_its_folder_gives_the_same(family: Family, tmp_path: Path):
    foreign = tiny(family, n_layers=2)
    before = everything_of(foreign)
    model = attrib.from_hugging_face(foreign)
    assert_untouched(foreign, before)
    assert model.params.W_E.data_ptr() == foreign.get_input_embeddings().weight.data_ptr()
    foreign.save_pretrained(tmp_path / "saved")
    again = attrib.load_model(tmp_path / "saved")
    assert (again.name, again.config) == ("saved", model.config)
    assert again.fingerprint == model.fingerprint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_half_precision_weights_come_as_they_are(family: Family, dtype: torch.dtype):
    foreign = tiny(family, dtype)
    model = attrib.from_hugging_face(foreign)
    assert {leaf.dtype for leaf in pytree.tree_leaves(model.params) if leaf.numel()} == {dtype}
    assert model.params.W_E.data_ptr() == foreign.get_input_embeddings().weight.data_ptr()
    assert torch.isfinite(forward(model, prompt(9))).all()


def test_the_embedding_scale_is_rounded_as_the_original_rounds_it():
    """Gemma holds the square root of its width as a number of the weights' dtype; in bfloat16 that is another one."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = attrib.from_hugging_face(tiny("gemma", dtype))
        assert model.config.embedding_scale == float(torch.tensor(32**0.5).to(dtype))
    loaded_in_half = tiny("gemma").to(torch.bfloat16).to(torch.float32)
    model = attrib.from_hugging_face(loaded_in_half)
    assert_close(forward(model, prompt(9)), transformers_values(loaded_in_half, prompt(9))[0])
    assert model.config.embedding_scale != attrib_model("gemma").config.embedding_scale


# ------------------------------------------------------------------------------- nothing passes by accident


def facts(**changed: Any) -> Callable[[Model], Model]:
    """The model with other facts."""
    return lambda model: replace(model, config=replace(model.config, **changed))


def blocks(change: Callable[[Any], Any]) -> Callable[[Model], Model]:
    """The model with every block changed."""
    return lambda model: replace(model, params=model.params._replace(blocks=tuple(change(block) for block in model.params.blocks)))


def attention(**to: Callable[[Tensor], Tensor]) -> Callable[[Model], Model]:
    """The model with some of every attention's tensors changed."""
    return blocks(
        lambda block: block._replace(
            attention=block.attention._replace(**{name: change(getattr(block.attention, name)) for name, change in to.items()})
        )
    )


def params(**to: Callable[[Tensor], Tensor]) -> Callable[[Model], Model]:
    """The model with some of its own tensors changed."""
    return lambda model: replace(
        model, params=model.params._replace(**{name: change(getattr(model.params, name)) for name, change in to.items()})
    )


def minus_one(norm: Norm) -> Norm:
    return norm._replace(weight=norm.weight - 1)


WITHOUT: dict[str, tuple[str, Callable[[Model], Model]]] = {
    "sliding window": ("mistral", facts(windows=())),
    "window of the later layers": ("qwen2-window", facts(windows=())),
    "a window one longer": ("mistral", facts(windows=(8,) * N_LAYERS)),
    "local layers": ("gpt_neo", facts(windows=())),
    "which layers are local": ("gpt_neo", facts(windows=(6, None, 6, None))),
    "which layers have a window": ("gemma2", facts(windows=(None, 5, None, 5))),
    "unscaled scores": ("gpt_neo", facts(attention_scale=8**-0.5)),
    "query scalar": ("gemma2", facts(attention_scale=10**-0.5)),
    "cap on scores": ("gemma2", facts(score_cap=None)),
    "cap on logits": ("gemma2", facts(logit_cap=None)),
    "cap on logits of Gemma 3": ("gemma3_text-capped-global", facts(logit_cap=None)),
    "embedding scale": ("gemma", facts(embedding_scale=1.0)),
    "one plus norms": ("gemma", blocks(lambda block: block._replace(norm_1=minus_one(block.norm_1)))),
    "one plus last norm": ("gemma", params(norm_final=minus_one)),
    "norms after": ("gemma2", facts(post_norm=False)),
    "norm after the MLP": ("olmo2", blocks(lambda block: block._replace(post_2=block.post_1))),
    "norms of heads": ("qwen3", facts(qk_norm="none")),
    "norms of heads, one plus": ("gemma3_text", attention(q_norm=lambda w: w - 1)),
    "norm of keys": ("qwen3", attention(k_norm=torch.ones_like)),
    "norms of all heads": ("olmo2", facts(qk_norm="none")),
    "norms before": ("llama", facts(pre_norm=False)),
    "parallel": ("gpt_neox", facts(parallel=False)),
    "parallel, one norm": ("phi", facts(parallel=False)),
    "in sequence": ("gpt_neox-sequential", facts(parallel=True)),
    "second norm": ("gpt_neox", blocks(lambda block: block._replace(norm_2=block.norm_1))),
    "two rotary tables": ("gemma3_text", facts(rotary_tables=())),
    "which layer has which table": ("gemma3_text", facts(rotary_tables=(0, 1, 0, 1))),
    "partial rotary": ("gpt_neox", params(rotary_cos=lambda t: t.repeat(1, 1, 2), rotary_sin=lambda t: t.repeat(1, 1, 2))),
    "yarn's scale": ("llama-yarn", params(rotary_cos=lambda t: t / t[0, 0, 0], rotary_sin=lambda t: t / t.max())),
    "query bias": ("qwen2", attention(b_Q=torch.zeros_like)),
    "value bias": ("qwen2", attention(b_V=torch.zeros_like)),
    "unembedding bias of GPT-J": ("gptj", params(b_U=torch.zeros_like)),
    "unembedding bias of Phi": ("phi", params(b_U=torch.zeros_like)),
    "offset of positions": ("opt", params(W_pos=lambda t: t.roll(2, 0))),
}


@pytest.mark.parametrize(("variant", "without"), WITHOUT.values(), ids=WITHOUT.keys())
def test_every_feature_matters_to_the_tiny_models(variant: str, without: Callable[[Model], Model]):
    """Turned off, it moves the logits by far more than any tolerance: so the comparison above would have seen it missing."""
    model, tokens = attrib.from_hugging_face(tiny_variant(variant, torch.float64)), prompt(20)
    want = forward(model, tokens)
    assert (forward(without(model), tokens) - want).abs().max() > 1e-2 * want.abs().max()


@pytest.mark.parametrize(
    ("family", "window", "options"),
    [
        ("mistral", 7, {}),
        ("gpt_neo", 6, {"attention_types": [[["local"], 1]]}),
        ("gemma3_text", 5, {"layer_types": ["sliding_attention"]}),
        ("phi3", 4, {"sliding_window": 4}),
    ],
)
def test_a_window_holds_as_many_positions_as_it_says(family: Family, window: int, options: dict[str, Any]):
    """One layer, in transformers and in attrib: attention at t knows token t - window + 1, and not the one before it."""
    foreign = tiny(family, torch.float64, n_layers=1, **options)
    model, site = attrib.from_hugging_face(foreign), Site(0, "attn_out")
    assert model.config.windows == (window,)
    tokens = prompt(20)
    other = tokens.clone()
    other[3] = (other[3] + 1) % 60
    for moved in (
        transformers_values(foreign, other)[1][site] - transformers_values(foreign, tokens)[1][site],
        capture(model, other, [site])[site] - capture(model, tokens, [site])[site],
    ):
        assert (moved.abs().amax(-1) > 1e-12).nonzero().flatten().tolist() == list(range(3, 3 + window))


def test_gptj_heads_are_reordered_without_changing_their_products():
    """Turning neighbouring pairs of q and k as GPT-J does, and halves of the reordered ones as attrib does: equal scores."""
    n_heads, d_rotary, positions = 3, 6, 5
    W_Q, W_K, x = (
        normal(12, 24, dtype=torch.float64),
        normal(12, 24, dtype=torch.float64, seed=3),
        normal(positions, 12, dtype=torch.float64),
    )
    angle = torch.arange(positions)[:, None] / torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angle), angle)

    def pairs(t: Tensor) -> Tensor:
        turned = torch.view_as_complex(t[..., :d_rotary].reshape(positions, 3, 2).contiguous()) * turn
        return torch.cat([torch.view_as_real(turned).flatten(1), t[..., d_rotary:]], 1)

    def halves(t: Tensor) -> Tensor:
        turned = torch.complex(t[:, :3], t[:, 3:d_rotary]) * turn
        return torch.cat([turned.real, turned.imag, t[:, d_rotary:]], 1)

    Q, K = (x @ pairs_as_halves(W, n_heads, d_rotary) for W in (W_Q, W_K))
    for head in range(n_heads):
        mine = slice(head * 8, head * 8 + 8)
        want = pairs((x @ W_Q)[:, mine]) @ pairs((x @ W_K)[:, mine]).T
        assert_close(halves(Q[:, mine]) @ halves(K[:, mine]).T, want)
    assert torch.equal(pairs_as_halves(torch.arange(8), 1, 4), torch.tensor([0, 2, 1, 3, 4, 5, 6, 7]))


def test_windows_say_only_what_matters():
    assert windows_of([None, None], 64) == ()
    assert windows_of([64, 100], 64) == ()
    assert windows_of([63, None, 64], 64) == (63, None, None)


# -------------------------------------------------------------------------------------------------- refused


def moe(config: str, model: str, **options: Any) -> nn.Module:
    import transformers

    common = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 60}
    facts = common | {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": None} | options
    return getattr(transformers, model)(getattr(transformers, config)(**facts))


def longrope(d_rotary: int) -> dict[str, Any]:
    factors = {"long_factor": [1.0] * (d_rotary // 2), "short_factor": [1.0] * (d_rotary // 2)}
    return {
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32} | factors
    }


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "opt norms after": (lambda: tiny("opt", do_layer_norm_before=False), "do_layer_norm_before=False.*norms after the stream"),
    "opt projections": (lambda: tiny("opt", word_embed_proj_dim=16), "word_embed_proj_dim=16 and hidden_size=32.*projections"),
    "opt without last norm": (lambda: tiny("opt", _remove_final_layer_norm=True), "_remove_final_layer_norm=True"),
    "phi qk norm": (lambda: tiny("phi", qk_layernorm=True, head_dim=8), "qk_layernorm=True.*LayerNorms on queries and keys"),
    "phi3 longrope": (lambda: tiny("phi3", head_dim=8, **longrope(8)), "rope_type='longrope'.*depend on the prompt's length"),
    "gemma3 dynamic": (
        lambda: tiny("gemma3_text", rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        }),
        "rope_type='dynamic'",
    ),
    "gemma both ways": (lambda: tiny("gemma", use_bidirectional_attention=True), "use_bidirectional_attention=True.*not causal"),
    "gemma2 both ways": (lambda: tiny("gemma2", use_bidirectional_attention=True), "use_bidirectional_attention=True"),
    "gemma3 both ways": (lambda: tiny("gemma3_text", use_bidirectional_attention=True), "use_bidirectional_attention=True"),
    "gemma3 capped scores": (lambda: tiny("gemma3_text", attn_logit_softcapping=30.0), "attn_logit_softcapping=30.0.*leaves this cap out"),
    "gptj all rotary": (lambda: tiny("gptj", rotary_dim=0), "rotary_dim=0"),
    "activation": (lambda: tiny("gemma2", hidden_activation="mish"), "activation function 'mish'"),
    "mixtral": (lambda: moe("MixtralConfig", "MixtralForCausalLM", num_local_experts=2), "'mixtral'.*gpt2.*llama.*mixture of experts"),
    "qwen2_moe": (
        lambda: moe("Qwen2MoeConfig", "Qwen2MoeForCausalLM", num_experts=2, moe_intermediate_size=8, shared_expert_intermediate_size=8),
        "'qwen2_moe'.*mixture of experts",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_attrib_does_not_compute_is_refused_by_name(make: Callable[[], nn.Module], message: str, tmp_path: Path):
    foreign = make()
    with pytest.raises(UnsupportedError, match=message):
        attrib.from_hugging_face(foreign)
    foreign.config.save_pretrained(tmp_path)  # no weights: a folder is refused before they are looked for
    with pytest.raises(UnsupportedError, match=message):
        attrib.load_model(tmp_path)


def test_other_architectures_and_configs_are_refused():
    from transformers import Gemma3Config, T5Config

    with pytest.raises(UnsupportedError, match=r"'t5'.*has an encoder"):
        model_config(T5Config())
    with pytest.raises(UnsupportedError, match=r"'gemma3'.*load its language model by itself"):
        model_config(Gemma3Config())
    config = tiny("qwen2").config
    config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(UnsupportedError, match="qwen2 with quant_method='awq': attrib does not compute with quantised weights"):
        model_config(config)
    config.quantization_config = {"quant_method": "gguf"}
    assert model_config(config) == model_config(tiny("qwen2").config)
    config = tiny("qwen2").config
    config.layer_types[1] = "chunked_attention"
    with pytest.raises(UnsupportedError, match=r"layer_types='chunked_attention'.*full_attention and sliding_attention"):
        model_config(config)
    config = tiny("llama").config
    config.rope_parameters["rope_type"] = "spiral"
    with pytest.raises(UnsupportedError, match="rope_type='spiral': attrib knows default, linear, llama3, yarn"):
        model_config(config)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_parameter_that_nobody_reads_is_refused_by_name(family: Family):
    foreign = tiny(family, n_layers=2)
    name, module = next(
        (name, module) for name, module in foreign.named_modules() if name.endswith(("o_proj", "out_proj", "c_proj", "dense"))
    )
    module.register_parameter("sink", nn.Parameter(torch.ones(3)))
    with pytest.raises(UnsupportedError, match=rf"{family} with {name}\.sink: a part that attrib does not know"):
        attrib.from_hugging_face(foreign)
    module.register_parameter("drain", nn.Parameter(torch.ones(3)))
    with pytest.raises(UnsupportedError, match=r"\(and 1 more\)"):
        attrib.from_hugging_face(foreign)


def test_masks_and_frequencies_of_older_files_are_no_parameters():
    """Old checkpoints carry them; they say nothing that the config does not."""
    old = {
        "gpt2": ["transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias"],
        "gpt_neo": ["transformer.h.0.attn.attention.bias", "transformer.h.0.attn.attention.masked_bias"],
        "gpt_neox": ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"],
        "gptj": ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"],
        "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
    }
    for family, names in old.items():
        Weights(dict.fromkeys(names, torch.ones(1)), family).finish(FAMILIES[family].buffers)
        with pytest.raises(UnsupportedError):
            Weights({"model.layers.0.attn.q.bias": torch.ones(1)}, family).finish(FAMILIES[family].buffers)


def test_weights_that_are_missing_wrapped_or_of_several_dtypes():
    foreign = tiny("llama", n_layers=1)
    layer = foreign.model.layers[0].self_attn
    layer.q_proj = nn.Sequential(layer.q_proj)
    with pytest.raises(UnsupportedError, match=r"model\.layers\.0\.self_attn\.q_proj is a container\.Sequential, another class.*merge"):
        attrib.from_hugging_face(foreign)
    foreign = tiny("llama", n_layers=1)
    foreign.model.norm.double()
    with pytest.raises(InputError, match=r"several dtypes: torch\.float32 .*torch\.float64 \(model\.norm\.weight\)"):
        attrib.from_hugging_face(foreign)
    foreign = tiny("llama", n_layers=1)
    foreign.model.norm.weight = nn.Parameter(torch.ones(32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight is torch\.int8"):
        attrib.from_hugging_face(foreign)


def test_a_tensor_of_a_file_that_its_class_does_not_use_is_refused(tmp_path: Path):
    """transformers leaves it out with a warning, and would go on."""
    from safetensors.torch import load_file, save_file

    tiny("mistral", n_layers=1).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    save_file(state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5)}, weights, metadata={"format": "pt"})
    assert attrib.load_model(tmp_path).config.n_layers == 1
    save_file(state | {"model.layers.0.self_attn.sinks": torch.ones(4)}, weights, metadata={"format": "pt"})
    with pytest.raises(UnsupportedError, match=r"have model\.layers\.0\.self_attn\.sinks, which MistralForCausalLM does not use"):
        attrib.load_model(tmp_path)


def test_a_config_that_transformers_cannot_read(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    with pytest.raises(FormatError, match=r"transformers cannot read .*config\.json: .*hidden_size"):
        attrib.load_model(tmp_path)
