"""Small random models and dictionaries, the same for the same seed, for every test.

`build(family, dtype)` is attrib's model and `tiny(family, dtype, **options)` the transformers model behind it;
`sae(kind, d_in, dtype)` is a sae-lens SAE and `dictionary(kind, site, dtype)` attrib's view of one. Weights
are perturbed away from the values that hide mistakes: biases from zero, norm weights and decoder norms from one.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import SITE_KINDS, Site, SparseLatents
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import ABSENT, MLP, Block, Model
from tests.support.plain_models import can_be_made, plain_model, random_weight

Family = Literal[
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "phi",
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2",
]  # fmt: skip
Kind = Literal["standard", "topk", "jumprelu"]

FAMILIES: tuple[Family, ...] = ("gpt2", "llama")
"""The two that say most between them; tests of the engine's machinery run on these."""
ALL_FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = ("standard", "topk", "jumprelu")
DTYPES = (torch.float32, torch.float64)

N_LAYERS, D_MODEL, D_VOCAB, N_CTX = 4, 32, 60, 64

VARIANTS: dict[str, tuple[Family, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt2-relu-wide": ("gpt2", {"activation_function": "relu", "n_inner": 56}),
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-no-groups": ("llama", {"num_key_value_heads": 4, "hidden_act": "gelu_pytorch_tanh"}),
    "llama-rope3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
}
"""Options of the transformers config that each take another way through attrib's adapter, for the two of FAMILIES."""

# By family: config, model, the config's name of the number of layers, and its other fields. Windows (7, 6, 5) are shorter than
# test prompts, soft caps near the size of what they cap, and heads do not share out the stream evenly where they need not.
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_GPT = {"n_embd": D_MODEL, "n_head": 4, "n_positions": N_CTX}
_HEADS = {"hidden_size": D_MODEL, "num_attention_heads": 4, "max_position_embeddings": N_CTX}
_LLAMA = _HEADS | {"num_key_value_heads": 2, "head_dim": 10, "intermediate_size": 48}
_ALTERNATING = ["sliding_attention", "full_attention"]

_TINY: dict[Family, tuple[str, str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", "n_layer", _GPT),
    "gpt_neo": (
        "GPTNeoConfig", "GPTNeoForCausalLM", "num_layers",
        {"hidden_size": D_MODEL, "num_heads": 4, "max_position_embeddings": N_CTX, "window_size": 6, "intermediate_size": 56}
        | {"attention_types": [[["global", "local"], N_LAYERS // 2]], "attn_implementation": "eager"},
    ),
    "gpt_neox": (
        "GPTNeoXConfig", "GPTNeoXForCausalLM", "num_hidden_layers",
        _HEADS | {"intermediate_size": 56, "rope_parameters": _ROPE | {"partial_rotary_factor": 0.5}},
    ),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", "n_layer", _GPT | {"rotary_dim": 6, "attn_implementation": "eager"}),
    "opt": ("OPTConfig", "OPTForCausalLM", "num_hidden_layers", _HEADS | {"ffn_dim": 56}),
    "phi": (
        "PhiConfig", "PhiForCausalLM", "num_hidden_layers",
        _LLAMA | {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.6}},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", "num_hidden_layers", _LLAMA),
    "mistral": ("MistralConfig", "MistralForCausalLM", "num_hidden_layers", _LLAMA | {"sliding_window": 7}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", "num_hidden_layers", _LLAMA),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", "num_hidden_layers", _LLAMA),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", "num_hidden_layers", _LLAMA),
    "gemma2": (
        "Gemma2Config", "Gemma2ForCausalLM", "num_hidden_layers",
        _LLAMA | {"sliding_window": 5, "layer_types": _ALTERNATING, "query_pre_attn_scalar": 7, "attn_implementation": "eager"}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3_text": (
        "Gemma3TextConfig", "Gemma3ForCausalLM", "num_hidden_layers",
        _LLAMA | {"sliding_window": 5, "layer_types": _ALTERNATING, "query_pre_attn_scalar": 7, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        }},
    ),
    "phi3": (
        "Phi3Config", "Phi3ForCausalLM", "num_hidden_layers",
        _LLAMA | {"original_max_position_embeddings": N_CTX, "rope_parameters": _ROPE | {"partial_rotary_factor": 0.6}},
    ),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", "num_hidden_layers", _LLAMA),
}  # fmt: skip

_YARN = _ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_LINEAR = _ROPE | {"rope_type": "linear", "factor": 2.0}

ALL_VARIANTS: dict[str, tuple[Family, dict[str, Any]]] = VARIANTS | {
    "gpt2-inverse": ("gpt2", {"n_inner": 40, "layer_norm_epsilon": 1e-2}),
    "llama-linear": ("llama", {"rope_parameters": _LINEAR}),
    "llama-yarn": ("llama", {"rope_parameters": _YARN}),
    "gpt_neo": ("gpt_neo", {}),
    "gpt_neo-local": ("gpt_neo", {"attention_types": [[["local", "global", "global"], 1], [["local"], 1]], "window_size": 3}),
    "gpt_neo-untied-wide": ("gpt_neo", {"tie_word_embeddings": False, "intermediate_size": None, "activation_function": "relu"}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False, "hidden_act": "gelu_new"}),
    "gpt_neox-whole-rotary": ("gpt_neox", {"rope_parameters": _LINEAR | {"partial_rotary_factor": 1.0}}),
    "gpt_neox-no-bias-tied": ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    "gptj": ("gptj", {}),
    "gptj-whole-rotary": ("gptj", {"rotary_dim": 8, "n_inner": 40, "activation_function": "gelu"}),
    "opt": ("opt", {}),
    "opt-untied-gelu": ("opt", {"tie_word_embeddings": False, "activation_function": "gelu"}),
    "opt-no-bias": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "phi": ("phi", {}),
    "phi-no-groups": ("phi", {"num_key_value_heads": 4, "hidden_act": "gelu", "rope_parameters": _LINEAR | {"partial_rotary_factor": 0.4}}),
    "mistral": ("mistral", {}),
    "mistral-no-window": ("mistral", {"sliding_window": None, "rope_parameters": _YARN}),
    "mistral-tied": ("mistral", {"tie_word_embeddings": True, "sliding_window": 1}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3-biases-window": (
        "qwen3",
        {"attention_bias": True, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "rope_parameters": _YARN},
    ),
    "gemma": ("gemma", {}),
    "gemma-biases-untied": ("gemma", {"attention_bias": True, "tie_word_embeddings": False, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {}),
    "gemma2-no-caps": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True, "hidden_activation": "silu"},
    ),
    "gemma2-one-cap": ("gemma2", {"final_logit_softcapping": None, "layer_types": ["full_attention"] * N_LAYERS}),
    "gemma3_text": ("gemma3_text", {}),
    "gemma3_text-capped-global": (
        "gemma3_text",
        {"final_logit_softcapping": 3.0, "layer_types": ["full_attention"] * N_LAYERS, "attention_bias": True},
    ),
    "gemma3_text-uneven": (
        "gemma3_text",
        {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"], "tie_word_embeddings": False},
    ),
    "phi3": ("phi3", {}),
    "phi3-window": ("phi3", {"sliding_window": 5, "rope_parameters": _ROPE | {"partial_rotary_factor": 1.0}, "tie_word_embeddings": True}),
    "phi3-no-groups": ("phi3", {"num_key_value_heads": 4, "head_dim": 8}),
    "olmo2": ("olmo2", {}),
    "olmo2-biases": ("olmo2", {"attention_bias": True, "num_key_value_heads": 4, "tie_word_embeddings": True}),
}
"""The same for every family."""


def randomise(module: nn.Module, seed: int) -> None:
    """Give every parameter a value far from its default (see plain_models.py)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(random_weight(name, parameter.shape, generator))


def bare(model: Model, without: str) -> Model:
    """The same model without its "norms", its "MLPs", or its "masks", so that all positions see all; or without several: "norms and MLPs".

    Without norms nothing holds the stream at its size, so that what components write is made smaller.
    """
    config, params, gone = model.config, model.params, set(without.split(" and ")) - {""}
    assert gone <= {"norms", "MLPs", "masks"}
    if "norms" in gone:
        config = replace(config, norm="none", pre_norm=False, post_norm=False)
        blocks = [
            Block(ABSENT, attention._replace(W_O=attention.W_O / 4), ABSENT, mlp._replace(W_out=mlp.W_out / 4))
            for _, attention, _, mlp, *_ in params.blocks
        ]
        params = params._replace(W_E=params.W_E / 2, W_pos=params.W_pos / 2, blocks=tuple(blocks), norm_final=ABSENT)
    if "MLPs" in gone:
        config = replace(config, d_mlp=0, gated=False, parallel=False)
        wide, tall = params.W_E.new_zeros(config.d_model, 0), params.W_E.new_zeros(0, config.d_model)
        none = MLP(wide, wide[0], wide, wide[0], tall, params.W_E.new_zeros(config.d_model))
        params = params._replace(blocks=tuple(block._replace(mlp=none, norm_2=ABSENT) for block in params.blocks))
    if "masks" in gone:
        config = replace(config, causal=False, windows=())
    return replace(model, config=config, params=params) if gone else model


def tiny_gpt2(dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """A transformers GPT2LMHeadModel: 4 layers, 4 heads of 8, learned positions, gelu_new."""
    return tiny("gpt2", dtype, **options)


def tiny_llama(dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """A transformers LlamaForCausalLM: 4 layers, 4 query heads of 10 on 2 key heads, gated MLP, so that `z` is wider than the stream."""
    return tiny("llama", dtype, **options)


def tiny(family: Family, dtype: torch.dtype = torch.float32, *, seed: int = 0, n_layers: int = N_LAYERS, **options: Any) -> nn.Module:
    """The transformers model of a family; `options` are fields of its config."""
    import transformers

    config_class, model_class, *_ = _TINY[family]
    config = getattr(transformers, config_class)(**facts_of(family, n_layers, options))
    model = getattr(transformers, model_class)(config)
    randomise(model, seed)
    return model.to(dtype).eval()


def facts_of(family: Family, n_layers: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the config of a tiny model."""
    *_, layers, facts = _TINY[family]
    if family != "gpt2":
        facts = {"pad_token_id": None} | facts
    if family == "gpt_neo" and n_layers != N_LAYERS and "attention_types" not in options:
        facts = facts | {"attention_types": [[["global", "local"], n_layers // 2], [["global"], n_layers % 2]]}
    if "layer_types" in facts:
        facts = facts | {"layer_types": (facts["layer_types"] * n_layers)[:n_layers]}
    common = {layers: n_layers, "vocab_size": D_VOCAB, "attn_implementation": "sdpa", "bos_token_id": 0, "eos_token_id": 0}
    return {**common, **facts, **options}


def tiny_variant(variant: str, dtype: torch.dtype = torch.float32, **more: Any) -> nn.Module:
    """The transformers model of one of ALL_VARIANTS."""
    family, options = ALL_VARIANTS[variant]
    return tiny(family, dtype, **options | more)


def attrib_model(family: Family, dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    """attrib's model of a fresh transformers one; without transformers, the same of GPT-2's and Llama's shape."""
    try:
        made = tiny(family, dtype, **options)
    except ModuleNotFoundError as error:
        seed, n_layers = options.pop("seed", 0), options.pop("n_layers", N_LAYERS)
        if error.name != "transformers" or not can_be_made(family, facts := facts_of(family, n_layers, options)):
            raise
        return plain_model(family, facts, dtype, seed)
    return attrib.from_hugging_face(made, name=f"tiny-{family}")


@lru_cache(maxsize=64)
def build(family: Family, dtype: torch.dtype = torch.float32, seed: int = 0) -> Model:
    """attrib's model with 4 layers, d_model 32, 60 tokens and 64 positions; the same object at every call.

    Args:
        family: also with what the model is to lack: "gpt2 without masks and norms".
    """
    of, _, without = family.partition(" without ")
    return bare(attrib_model(of, dtype, seed=seed), without)  # type: ignore[arg-type]


def prompt(positions: int = 12, *, batch: tuple[int, ...] = (), seed: int = 1, d_vocab: int = D_VOCAB) -> Tensor:
    """Random token ids [*batch, positions]."""
    return torch.randint(0, d_vocab, (*batch, positions), generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 2) -> Tensor:
    """Standard normal numbers, the same ones in every dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def to_dense(latents: SparseLatents, positions: int, d_sae: int) -> Tensor:
    """Sparse latents as [positions, d_sae]."""
    return latents.value.new_zeros(positions, d_sae).index_put((latents.position, latents.latent), latents.value)


def all_sites(n_layers: int = N_LAYERS) -> list[Site]:
    """Every site of a model, in order of computation."""
    return [Site(layer, kind) for layer in range(n_layers) for kind in SITE_KINDS]


# --------------------------------------------------------------------------------- what transformers computes


def transformers_values(model: nn.Module, tokens: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits and the value at every site that a transformers model has, by hooks on its own modules, which are taken off again."""
    found: dict[Site, Tensor] = {}
    handles = []
    batch = tokens[None] if tokens.ndim == 1 else tokens

    def keep(site: Site, value: Any) -> None:
        value = (value[0] if isinstance(value, tuple) else value).detach().clone()
        found[site] = value.reshape(*batch.shape, -1)  # OPT's MLP works on all positions of all prompts in one row

    def into(module: nn.Module, site: Site) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(site, args if args else kwargs["hidden_states"])

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def out_of(module: nn.Module, site: Site) -> None:
        handles.append(module.register_forward_hook(lambda _, args, out: keep(site, out)))

    def watch(
        i: int, layer: nn.Module, *, project: str, mid: str | None, mlp: tuple[str, str], post: tuple[str, str] | None = None
    ) -> None:
        into(layer, Site(i, "resid_pre"))
        into(layer.get_submodule(project), Site(i, "z"))
        out_of(layer.get_submodule(post[0] if post else project), Site(i, "attn_out"))
        if mid is not None:
            into(layer.get_submodule(mid), Site(i, "resid_mid"))
        into(layer.get_submodule(mlp[0]), Site(i, "mlp_in"))
        out_of(layer.get_submodule(post[1] if post else mlp[1]), Site(i, "mlp_out"))
        out_of(layer, Site(i, "resid_post"))

    gated = ("mlp", "mlp")
    after = ("post_attention_layernorm", "post_feedforward_layernorm")
    for i in range(model.config.num_hidden_layers):
        match model.config.model_type:
            case "gpt2":
                watch(i, model.transformer.h[i], project="attn.c_proj", mid="ln_2", mlp=gated)
            case "gpt_neo":
                watch(i, model.transformer.h[i], project="attn.attention.out_proj", mid="ln_2", mlp=gated)
            case "gptj":
                watch(i, model.transformer.h[i], project="attn.out_proj", mid=None, mlp=gated)
            case "gpt_neox":
                mid = None if model.config.use_parallel_residual else "post_attention_layernorm"
                watch(i, model.gpt_neox.layers[i], project="attention.dense", mid=mid, mlp=gated)
            case "opt":
                watch(i, model.model.decoder.layers[i], project="self_attn.out_proj", mid="final_layer_norm", mlp=("fc1", "fc2"))
            case "phi":
                watch(i, model.model.layers[i], project="self_attn.dense", mid=None, mlp=gated)
            case "gemma2" | "gemma3_text":
                watch(i, model.model.layers[i], project="self_attn.o_proj", mid="pre_feedforward_layernorm", mlp=gated, post=after)
            case "olmo2":
                watch(i, model.model.layers[i], project="self_attn.o_proj", mid="mlp", mlp=gated, post=after)
            case _:
                watch(i, model.model.layers[i], project="self_attn.o_proj", mid="post_attention_layernorm", mlp=gated)
    try:
        with torch.no_grad():
            logits = model(batch, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    if tokens.ndim == 1:
        return logits[0], {site: value[0] for site, value in found.items()}
    return logits, found


# --------------------------------------------------------------------------------------------- dictionaries


def sae(
    kind: str,
    d_in: int = D_MODEL,
    dtype: torch.dtype = torch.float32,
    *,
    d_sae: int = 80,
    k: int = 6,
    site: Site | str = "blocks.1.hook_resid_pre",
    seed: int = 3,
    **options: Any,
) -> Any:
    """A random sae-lens SAE or transcoder with biases, thresholds, gates and decoder norms away from their defaults.

    Args:
        kind: an architecture of sae-lens.
        site: where it reads. A transcoder writes mlp_out of the same layer.
        options: fields of its config: apply_b_dec_to_input, normalize_activations, reshape_activations
            ("hook_z" needs a `z` site), for topk and abstopk rescale_acts_by_decoder_norm, for transcoders d_out.
    """
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    reads = Site.parse(site)
    metadata = SAEMetadata(hook_name=str(reads))  # of no named model: they are put into many
    facts = {"d_in": d_in, "d_sae": d_sae, "dtype": str(dtype).removeprefix("torch."), "device": "cpu", "metadata": metadata} | options
    if kind.endswith("topk"):
        facts["k"] = k
    if kind.endswith("transcoder"):
        metadata.hook_name_out = str(Site(reads.layer, "mlp_out"))
        facts = {"d_out": d_in, "apply_b_dec_to_input": False} | facts
    made_of, config_of = get_sae_class(kind)
    made = made_of(config_of(**facts))
    generator = torch.Generator().manual_seed(seed)

    def noise(parameter: Tensor) -> Tensor:
        return torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, parameter in made.named_parameters():
            match name:
                case "W_enc":
                    parameter.copy_(noise(parameter) * d_in**-0.5)
                case "W_dec":
                    rows = noise(parameter)
                    sizes = 0.5 + 1.5 * torch.rand(d_sae, 1, generator=generator, dtype=torch.float64)
                    parameter.copy_(rows / rows.norm(dim=-1, keepdim=True) * sizes)
                case "threshold":
                    # a few below zero, where the ReLU alone decides
                    parameter.copy_(torch.rand(d_sae, generator=generator, dtype=torch.float64) - 0.1)
                case _:
                    parameter.copy_(0.2 * noise(parameter))
    return made.eval()


def dictionary(kind: str, site: Site | str = "blocks.1.hook_resid_pre", dtype: torch.dtype = torch.float32, **options: Any) -> Dictionary:
    """attrib's dictionary of a random SAE at a site; options as for `sae`. Without sae-lens, one of the same kind and other numbers."""
    d_in = options.pop("d_in", D_MODEL)
    try:
        made = sae(kind, d_in, dtype, site=site, **options)
    except ModuleNotFoundError:
        if kind not in KINDS or set(options) - {"d_sae", "k", "seed", "apply_b_dec_to_input"}:
            raise
        return _without_sae_lens(kind, d_in, dtype, site=site, **options)
    return attrib.from_sae_lens(made)


def _without_sae_lens(
    kind: str,
    d_in: int,
    dtype: torch.dtype,
    *,
    site: Site | str,
    d_sae: int = 80,
    k: int = 6,
    seed: int = 3,
    apply_b_dec_to_input: bool = True,
) -> Dictionary:
    """A random dictionary of one of KINDS, by its tensors."""
    noise = partial(normal, dtype=dtype)
    size = 0.5 + 1.5 * torch.rand(d_sae, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    rows = noise(d_sae, d_in, seed=seed + 1)
    own = {"standard": {}, "topk": {"k": k}, "jumprelu": {"threshold": noise(d_sae, seed=seed + 2).abs() / 2 - 0.1}}
    return from_tensors(
        site=site, W_enc=noise(d_in, d_sae, seed=seed) * d_in**-0.5, W_dec=rows / rows.norm(dim=-1, keepdim=True) * size,
        b_enc=0.2 * noise(d_sae, seed=seed + 3), b_dec=0.2 * noise(d_in, seed=seed + 4),
        apply_b_dec_to_input=apply_b_dec_to_input, **own[kind],
    )  # fmt: skip
