"""Small random models and dictionaries, the same for the same seed, for every test.

`build(family, dtype)` is attrib's model, `tiny_gpt2` and `tiny_llama` the transformers models behind it;
`sae(kind, d_in, dtype)` is a sae-lens SAE and `dictionary(kind, site, dtype)` attrib's view of one. Weights
are perturbed away from the values that hide mistakes: biases from zero, norm weights and decoder norms from one.
"""

from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

import attrib
from attrib.dictionary import Dictionary
from attrib.model import Model
from attrib.types import SITE_KINDS, Site

Family = Literal["gpt2", "llama"]
Kind = Literal["standard", "topk", "jumprelu"]

FAMILIES: tuple[Family, ...] = ("gpt2", "llama")
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
"""Options of the transformers config that each take another way through attrib's adapter."""


def randomise(module: nn.Module, seed: int) -> None:
    """Give every parameter a value far from its default, by its shape: matrices keep the stream's size about constant."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim == 1:
                is_norm_weight = name.endswith("weight") or name.endswith(".w")
                value = 1 + 0.3 * noise if is_norm_weight else 0.3 * noise
            else:
                # half as large again as 1/sqrt(d_model): attention is then far from uniform and activations from linear
                d_model = max(parameter.shape[-2:]) if parameter.ndim == 3 else min(parameter.shape)  # 3: TransformerLens' heads apart
                value = 1.5 * noise * d_model**-0.5
            parameter.copy_(value)


def tiny_gpt2(dtype: torch.dtype = torch.float32, *, seed: int = 0, n_layers: int = N_LAYERS, **options: Any) -> nn.Module:
    """A transformers GPT2LMHeadModel: 4 layers, 4 heads of 8, learned positions, gelu_new."""
    from transformers import GPT2Config, GPT2LMHeadModel

    facts = {"n_layer": n_layers, "n_embd": D_MODEL, "n_head": 4, "vocab_size": D_VOCAB, "n_positions": N_CTX}
    facts |= {"attn_implementation": "sdpa", "bos_token_id": 0, "eos_token_id": 0} | options
    model = GPT2LMHeadModel(GPT2Config(**facts))
    randomise(model, seed)
    return model.to(dtype).eval()


def tiny_llama(dtype: torch.dtype = torch.float32, *, seed: int = 0, n_layers: int = N_LAYERS, **options: Any) -> nn.Module:
    """A transformers LlamaForCausalLM: 4 layers, 4 query heads of 10 on 2 key heads, gated MLP, so that `z` is wider than the stream."""
    from transformers import LlamaConfig, LlamaForCausalLM

    facts = {"num_hidden_layers": n_layers, "hidden_size": D_MODEL, "num_attention_heads": 4, "num_key_value_heads": 2}
    facts |= {"head_dim": 10, "intermediate_size": 48, "vocab_size": D_VOCAB, "max_position_embeddings": N_CTX}
    facts |= {"attn_implementation": "sdpa", "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None} | options
    model = LlamaForCausalLM(LlamaConfig(**facts))
    randomise(model, seed)
    return model.to(dtype).eval()


def tiny(family: Family, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """The transformers model of a family."""
    return {"gpt2": tiny_gpt2, "llama": tiny_llama}[family](dtype, **options)


def tiny_variant(variant: str, dtype: torch.dtype = torch.float32, **more: Any) -> nn.Module:
    """The transformers model of one of VARIANTS."""
    family, options = VARIANTS[variant]
    return tiny(family, dtype, **options | more)


def attrib_model(family: Family, dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    """attrib's model of a fresh transformers one."""
    return attrib.from_hugging_face(tiny(family, dtype, **options), name=f"tiny-{family}")


@lru_cache(maxsize=64)
def build(family: Family, dtype: torch.dtype = torch.float32, seed: int = 0) -> Model:
    """attrib's model with 4 layers, d_model 32, 60 tokens and 64 positions; the same object at every call."""
    return attrib_model(family, dtype, seed=seed)


def prompt(positions: int = 12, *, batch: tuple[int, ...] = (), seed: int = 1, d_vocab: int = D_VOCAB) -> Tensor:
    """Random token ids [*batch, positions]."""
    return torch.randint(0, d_vocab, (*batch, positions), generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 2) -> Tensor:
    """Standard normal numbers, the same ones in every dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def all_sites(n_layers: int = N_LAYERS) -> list[Site]:
    """Every site of a model, in order of computation."""
    return [Site(layer, kind) for layer in range(n_layers) for kind in SITE_KINDS]


# --------------------------------------------------------------------------------- what transformers computes


def transformers_values(model: nn.Module, tokens: Tensor) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits and the value at every site of a transformers GPT-2 or Llama, by hooks on its own modules, which are taken off again."""
    found: dict[Site, Tensor] = {}
    handles = []

    def first(value: Any) -> Tensor:
        return (value[0] if isinstance(value, tuple) else value).detach()

    def into(module: nn.Module, site: Site) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, args: found.__setitem__(site, first(args))))

    def out_of(module: nn.Module, site: Site) -> None:
        handles.append(module.register_forward_hook(lambda _, args, out: found.__setitem__(site, first(out))))

    is_gpt2 = model.config.model_type == "gpt2"
    for i, layer in enumerate(model.transformer.h if is_gpt2 else model.model.layers):
        project = layer.attn.c_proj if is_gpt2 else layer.self_attn.o_proj
        into(layer.ln_1 if is_gpt2 else layer.input_layernorm, Site(i, "resid_pre"))
        into(project, Site(i, "z"))
        out_of(project, Site(i, "attn_out"))
        into(layer.ln_2 if is_gpt2 else layer.post_attention_layernorm, Site(i, "resid_mid"))
        into(layer.mlp, Site(i, "mlp_in"))
        out_of(layer.mlp, Site(i, "mlp_out"))
        out_of(layer, Site(i, "resid_post"))
    try:
        with torch.no_grad():
            logits = model(tokens[None] if tokens.ndim == 1 else tokens).logits
    finally:
        for handle in handles:
            handle.remove()
    if tokens.ndim == 1:
        return logits[0], {site: value[0] for site, value in found.items()}
    return logits, found


# --------------------------------------------------------------------------------------------- dictionaries


def sae(
    kind: Kind,
    d_in: int = D_MODEL,
    dtype: torch.dtype = torch.float32,
    *,
    d_sae: int = 80,
    k: int = 6,
    site: Site | str = "blocks.1.hook_resid_pre",
    seed: int = 3,
    **options: Any,
) -> Any:
    """A random sae-lens SAE with biases, thresholds and decoder norms away from their defaults.

    Args:
        options: fields of its config: apply_b_dec_to_input, normalize_activations, reshape_activations
            ("hook_z" needs a `z` site) and, for topk, rescale_acts_by_decoder_norm.
    """
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(hook_name=str(Site.parse(site)), model_name="tiny")
    facts = {"d_in": d_in, "d_sae": d_sae, "dtype": str(dtype).removeprefix("torch."), "device": "cpu", "metadata": metadata} | options
    made = {
        "standard": lambda: StandardSAE(StandardSAEConfig(**facts)),
        "topk": lambda: TopKSAE(TopKSAEConfig(k=k, **facts)),
        "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(**facts)),
    }[kind]()
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


def dictionary(kind: Kind, site: Site | str = "blocks.1.hook_resid_pre", dtype: torch.dtype = torch.float32, **options: Any) -> Dictionary:
    """attrib's dictionary of a random SAE at a site; options as for `sae`."""
    return attrib.from_sae_lens(sae(kind, options.pop("d_in", D_MODEL), dtype, site=site, **options))
