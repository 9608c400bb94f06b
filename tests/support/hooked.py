"""Small random HookedTransformers, with the config fields that loading each family by name sets, and what they compute."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attrib.core.types import SITE_KINDS, Site
from attrib.models.transformer import Model, ModelConfig, forward
from attrib.passes.capture import capture
from tests.support.builders import ALL_FAMILIES, DTYPES, Family, randomise, tiny
from tests.support.tolerances import error

TINY: dict[str, Any] = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 48, "d_vocab": 60, "n_ctx": 64}

LAYER: dict[str, Any] = {"normalization_type": "LN", "act_fn": "gelu_new"}
ROTARY: dict[str, Any] = {"positional_embedding_type": "rotary", "rotary_adjacent_pairs": False}
RMS: dict[str, Any] = ROTARY | {"normalization_type": "RMS", "act_fn": "silu", "gated_mlp": True, "eps": 1e-6}
GEMMA = RMS | {"act_fn": "gelu_pytorch_tanh", "n_key_value_heads": 2, "d_head": 10, "rotary_dim": 10, "final_rms": True}
GEMMA_2 = GEMMA | {"use_normalization_before_and_after": True, "use_local_attn": True, "window_size": 5}
LLAMA = RMS | {"final_rms": True, "rotary_dim": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": LAYER | {"use_attn_scale": True, "use_local_attn": False, "original_architecture": "GPT2LMHeadModel"},
    "stanford-gpt2": LAYER | {"scale_attn_by_inverse_layer_idx": True, "original_architecture": "GPT2LMHeadModel"},
    "gpt-neo": LAYER | {
        "use_attn_scale": False, "use_local_attn": True, "window_size": 5, "attn_types": ["global", "local"],
        "original_architecture": "GPTNeoForCausalLM",
    },
    "opt": LAYER | {"act_fn": "relu", "original_architecture": "OPTForCausalLM"},
    "gpt-j": LAYER | ROTARY | {
        "parallel_attn_mlp": True, "rotary_dim": 6, "rotary_adjacent_pairs": True, "original_architecture": "GPTJForCausalLM",
    },
    "pythia": LAYER | ROTARY | {
        "act_fn": "gelu", "parallel_attn_mlp": True, "rotary_dim": 2, "default_prepend_bos": False,
        "original_architecture": "GPTNeoXForCausalLM",
    },
    "gpt-neox-sequential": LAYER | ROTARY | {"act_fn": "gelu_fast", "rotary_dim": 4, "original_architecture": "GPTNeoXForCausalLM"},
    "phi-2": LAYER | ROTARY | {"parallel_attn_mlp": True, "rotary_dim": 4, "original_architecture": "PhiForCausalLM"},
    "llama-2": LLAMA | {"original_architecture": "LlamaForCausalLM"},
    "llama-3.1": LLAMA | {
        "n_key_value_heads": 2, "rotary_base": 500000.0, "use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 32,
        "NTK_by_parts_factor": 8.0, "NTK_by_parts_low_freq_factor": 1.0, "NTK_by_parts_high_freq_factor": 4.0,
        "original_architecture": "LlamaForCausalLM",
    },
    "mistral": RMS | {
        "n_key_value_heads": 2, "use_local_attn": True, "window_size": 6, "attn_types": ["local", "local"], "d_head": 10,
        "original_architecture": "MistralForCausalLM",
    },
    "qwen-1": RMS | {
        "use_logn_attn": True, "use_dynamic_ntk_rope": True, "train_seq_length": 64, "final_rms": True,
        "original_architecture": "QWenLMHeadModel",
    },
    "qwen2": LLAMA | {"n_key_value_heads": 2, "rotary_base": 1000000, "original_architecture": "Qwen2ForCausalLM"},
    "qwen3": LLAMA | {
        "n_key_value_heads": 2, "d_head": 10, "rotary_dim": 10, "rotary_base": 1000000, "use_qk_norm": True,
        "original_architecture": "Qwen3ForCausalLM",
    },
    "phi-3": RMS | {
        "rotary_dim": 8, "use_local_attn": True, "window_size": 7, "attn_types": ["local", "local"],
        "original_architecture": "Phi3ForCausalLM",
    },
    "gemma": GEMMA | {"act_fn": "gelu", "n_key_value_heads": 1, "original_architecture": "GemmaForCausalLM"},
    "gemma-2": GEMMA_2 | {
        "attn_types": ["local", "global"], "attn_scale": 2.5, "attn_scores_soft_cap": 4.0, "output_logits_soft_cap": 3.0,
        "original_architecture": "Gemma2ForCausalLM",
    },
    "gemma-3": GEMMA_2 | {
        "n_layers": 3, "attn_types": ["local", "local", "global"], "use_qk_norm": True, "rotary_base": 1000000,
        "rotary_base_local": 10000, "rotary_scaling_factor": 8.0, "original_architecture": "Gemma3ForCausalLM",
    },
    "olmo": LAYER | ROTARY | {"act_fn": "silu", "gated_mlp": True, "original_architecture": "OlmoForCausalLM"},
    "olmo-2": RMS | {"rotary_base": 500000.0, "attn_types": ["global"] * 2, "original_architecture": "Olmo2ForCausalLM"},
    "olmo-3": RMS | {
        "n_key_value_heads": 2, "rotary_base": 500000.0, "use_local_attn": True, "window_size": 5, "attn_types": ["local", "global"],
        "use_yarn_rope": True, "yarn_global_attn_only": True, "yarn_factor": 8.0, "yarn_attention_factor": 1.2,
        "yarn_original_max_position_embeddings": 32, "original_architecture": "Olmo3ForCausalLM",
    },
}  # fmt: skip
"""What loading_from_pretrained sets, made small, windows and all; biases and norms are random everywhere."""

BARE: dict[str, dict[str, Any]] = {
    "attn-only": LAYER | {"attn_only": True, "d_mlp": None, "act_fn": None, "original_architecture": "neel"},
    "attn-only-norms-behind": GEMMA_2 | {"attn_only": True, "d_mlp": None, "attn_types": ["local", "global"]},
    "no-norms": {"normalization_type": None, "act_fn": "relu"},
    "bidirectional": LAYER | {"attention_dir": "bidirectional"},
    "bidirectional-rotary": RMS | {"attention_dir": "bidirectional", "n_key_value_heads": 2, "rotary_dim": 8, "use_qk_norm": True},
    "attn-only-bidirectional-no-norms": {"attn_only": True, "normalization_type": None, "attention_dir": "bidirectional", "d_mlp": None},
}
"""Small models that people train themselves: of attention alone, without norms, or seeing both ways."""

SHARED_NORM = ("gpt-j", "phi-2")
"""Families whose MLP and attention read one norm, of which TransformerLens makes two."""

NOTHING = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
OPTIONS: dict[str, dict[str, bool] | None] = {
    "raw": None,
    "fold_ln": NOTHING | {"fold_ln": True},
    "center_writing_weights": NOTHING | {"center_writing_weights": True},
    "center_unembed": NOTHING | {"center_unembed": True},
    "fold_value_biases": NOTHING | {"fold_value_biases": True},
    "all": dict.fromkeys(NOTHING, True),
    "refactor_factored_attn_matrices": dict.fromkeys(NOTHING, True) | {"refactor_factored_attn_matrices": True},
}
"""Ways to process weights; the names are TransformerLens' own, "all" is its default."""


def options_of(family: str) -> list[str]:
    """The ways of processing that TransformerLens takes for a family: it drops or refuses those that would change what is computed."""
    facts, left = (FAMILIES | BARE)[family], dict(OPTIONS)
    if facts["normalization_type"] is None:
        return ["raw", "center_unembed"]  # what else there is asks for norms
    if facts["normalization_type"] == "RMS":
        del left["center_writing_weights"]  # does nothing: an RMSNorm sees the mean
    if facts.get("positional_embedding_type") == "rotary":
        del left["refactor_factored_attn_matrices"]  # rotation stands between queries and keys
    if "output_logits_soft_cap" in facts:
        del left["center_unembed"]
    if family in ("olmo-2", "olmo-3"):
        del left["fold_ln"]
    return list(left)


def hooked(family: str, dtype: torch.dtype = torch.float32, *, options: str = "raw", seed: int = 0, **more: Any) -> Any:
    """A random HookedTransformer of a family, its weights processed."""
    model = custom(dtype, seed=seed, **(FAMILIES | BARE)[family] | more)
    if family in SHARED_NORM:
        with torch.no_grad():
            for block in model.blocks:
                for name, parameter in block.ln2.named_parameters():
                    parameter.copy_(getattr(block.ln1, name))
    if OPTIONS[options] is not None:
        wanted = dict(OPTIONS[options] or {})
        for option in ("fold_ln", "center_unembed"):  # as from_pretrained drops them
            wanted[option] = wanted[option] and option in options_of(family)
        model.load_and_process_state_dict(model.state_dict(), **wanted)
    return model


def custom(dtype: torch.dtype = torch.float32, *, seed: int = 0, **facts: Any) -> Any:
    """A random HookedTransformer with these config fields, and the tiny sizes where they say nothing."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    facts = TINY | {"act_fn": "gelu_new", "device": "cpu", "dtype": dtype, "init_weights": False} | facts
    model = HookedTransformer(HookedTransformerConfig(**facts))
    randomise(model, seed)
    return model.eval()


def bridge(model: nn.Module, folder: Path, *, options: str = "raw") -> Any:
    """A TransformerBridge over a transformers model, as it is or in compatibility mode; the folder is where both are written."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = {"<s>": 0} | {f"word{i}": i for i in range(1, TINY["d_vocab"])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<s>")), bos_token="<s>", eos_token="<s>")
    tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # TransformerLens reads it again from where it lies
    model.save_pretrained(folder)
    made = TransformerBridge.boot_transformers(str(folder), hf_model=model, device="cpu", tokenizer=tokenizer, dtype=model.dtype)
    if options != "raw":
        made.enable_compatibility_mode(disable_warnings=True, **OPTIONS[options] or {})
    return made


UNGROUPED: dict[str, dict[str, Any]] = {"phi": {"num_key_value_heads": 4}}
"""What a family must be for TransformerLens' bridge to fold it: Phi without grouped queries."""

IN_DOUBLE = ("gpt2", "gpt_neox", "opt")
"""Families whose bridges compute in float64 throughout; the others go through float32 in attention, rotation or norms."""


def tiny_bridge(family: Family, folder: Path, dtype: torch.dtype = torch.float32, *, options: str = "raw") -> Any:
    """A bridge over the tiny transformers model of a family."""
    return bridge(tiny(family, dtype, n_layers=2, **UNGROUPED.get(family, {})), folder, options=options)


def hooked_cases() -> list[tuple[str, str, torch.dtype]]:
    """Every family of HookedTransformer with every way of processing that it takes, in both dtypes."""
    return [(family, options, dtype) for family in (FAMILIES | BARE) for options in options_of(family) for dtype in DTYPES]


def bridge_cases() -> list[tuple[Family, str, torch.dtype]]:
    """Every family of transformers in a bridge, as it is and in compatibility mode, in the dtypes that bridges compute in."""
    dtypes = {family: DTYPES if family in IN_DOUBLE else DTYPES[:1] for family in ALL_FAMILIES}
    return [(family, options, dtype) for family in ALL_FAMILIES for options in ("raw", "all") for dtype in dtypes[family]]


def sites_of(config: ModelConfig) -> list[Site]:
    """Every site that a model has."""
    missing = () if config.has_mlps and not config.parallel else ("resid_mid",) if config.has_mlps else ("resid_mid", "mlp_in", "mlp_out")
    kinds = [kind for kind in SITE_KINDS if kind not in missing]
    return [Site(layer, kind) for layer in range(config.n_layers) for kind in kinds]


def lens_values(foreign: Any, tokens: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits and the value at every site of a TransformerLens model: from its own cache, and what enters its MLPs."""
    entered: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        return lambda module, args: entered.__setitem__(layer, args[0].detach())

    handles = [block.mlp.register_forward_pre_hook(keep(i)) for i, block in enumerate(foreign.blocks) if hasattr(block, "mlp")]
    try:
        with torch.no_grad():
            out, cache = foreign.run_with_cache(tokens)
    finally:
        for handle in handles:
            handle.remove()
    found = {Site(layer, "mlp_in"): value.reshape(*tokens.shape, -1) for layer, value in entered.items()}
    for layer in range(len(foreign.blocks)):
        for hook in (f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.mlp.in.hook_in"):  # bridges; the second is OPT's
            if hook in cache:
                found[Site(layer, "mlp_in")] = cache[hook].reshape(*tokens.shape, -1)
        for kind in SITE_KINDS:
            if kind != "mlp_in" and str(site := Site(layer, kind)) in cache:
                value = cache[str(site)]
                found[site] = value.flatten(-2) if value.ndim == 4 else value
    return out, found


def errors(model: Model, tokens: Tensor, want: tuple[Tensor, dict[Site, Tensor]]) -> dict[str, float]:
    """How far logits and every site lie from `want`, relative to the largest value of each.

    Raises:
        KeyError: where `want` lacks a site that the model has.
    """
    out, values = want
    got = capture(model, tokens, sites_of(model.config))
    found = {"logits": error(forward(model, tokens), out)}
    return found | {str(site): error(got[site], values[site]) for site in got}
