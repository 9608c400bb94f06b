"""TransformerLens models, processed or not, into attrib's pytree.

A HookedTransformer and a TransformerBridge both give parameters under TransformerLens names, with
heads apart; attrib lays them side by side. Nothing is hooked, run or written.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.attachments import check_attachments, check_parts_of_bridge, check_parts_of_hooked, check_wrapper
from attrib.adapters.loading import check_finite
from attrib.adapters.models.bridge import bridge_config, bridge_rotary, bridge_state
from attrib.adapters.models.hooked_config import hooked_config
from attrib.adapters.models.text import from_transformers
from attrib.core.types import InputError, UnsupportedError
from attrib.models.transformer import MLP, Attention, Block, Model, ModelConfig, Norm, Params, Tokenizer

State = Mapping[str, Tensor]
Table = Float[Tensor, "tables n_ctx d_rotary"]


def from_transformer_lens(model: Any, *, name: str | None = None) -> Model:
    """attrib's model from a HookedTransformer or a TransformerBridge, which is left as it is.

    Weights come over as they stand: folded, centred or raw. The values at every site and the logits equal the
    model's own; docs/models.md says what each way of processing weights does to them.

    Raises:
        InputError: where a parameter is not finite.
        UnsupportedError: for a feature that attrib does not compute, and for what is attached to the model (hooks, SAEs,
            replaced modules; see attachments.py), by name.
    """
    check_wrapper(model)
    if hasattr(model, "original_model") and hasattr(model, "tl_parameters"):
        config = bridge_config(model)
        check_attachments(model)
        check_parts_of_bridge(model)
        state: State = bridge_state(model, config)
        cos, sin = bridge_rotary(model, config)
    else:
        _check_kind(model)
        config = hooked_config(model.cfg)
        check_attachments(model)
        check_parts_of_hooked(model)
        state = {key: value.detach() for key, value in model.state_dict().items()}
        state, config, cos, sin = _plain(model, state, config)
    tokenizer = None if getattr(model, "tokenizer", None) is None else _tokenizer(model)
    return check_finite(Model(_params(state, config, cos, sin), config, name or model.cfg.model_name, tokenizer))


def _check_kind(model: Any) -> None:
    """A HookedTransformer is computed; its siblings (encoders, encoder-decoders) are not."""
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if "HookedTransformer" in kinds:
        return
    if "HookedRootModule" in kinds:
        raise UnsupportedError(f"{type(model).__name__}: attrib computes HookedTransformers and TransformerBridges, and no encoders.")
    raise InputError(
        f"model: expected a HookedTransformer or a TransformerBridge, got {type(model).__name__}. "
        "For a transformers model use from_hugging_face."
    )


def _params(state: State, config: ModelConfig, cos: Table, sin: Table) -> Params:
    W_E = state["embed.W_E"]
    ones, zeros, none = W_E.new_ones(config.d_model), W_E.new_zeros(config.d_model), W_E.new_zeros(0)
    absent = Norm(none, none)

    def norm(at: str) -> Norm:
        if config.norm == "none":
            return absent
        return Norm(state.get(f"{at}.w", ones), state.get(f"{at}.b", zeros))

    def columns(at: str, every: int = 1) -> Tensor:
        """[heads, d_model, d_head] as [d_model, heads · d_head], of every so many heads."""
        return rearrange(state[at][::every], "heads d_model d_head -> d_model (heads d_head)")

    def key_heads(at: str, part: str) -> tuple[Tensor, Tensor]:
        """Keys or values of grouped queries, once for each group, whether TransformerLens repeats them or not."""
        if f"{at}._W_{part}" in state:
            return columns(f"{at}._W_{part}"), state[f"{at}._b_{part}"].flatten()
        every = config.n_heads // config.n_kv_heads if len(state[f"{at}.W_{part}"]) == config.n_heads else 1
        return columns(f"{at}.W_{part}", every), state[f"{at}.b_{part}"][::every].flatten()

    def block(i: int) -> Block:
        at = f"blocks.{i}.attn"
        attention = Attention(
            columns(f"{at}.W_Q"), state[f"{at}.b_Q"].flatten(), *key_heads(at, "K"), *key_heads(at, "V"),
            state[f"{at}.W_O"].flatten(0, 1), state[f"{at}.b_O"],
            *((none, none) if config.qk_norm == "none" else (state[f"{at}.q_norm.w"], state[f"{at}.k_norm.w"])),
        )  # fmt: skip
        if not config.has_mlps:
            wide, tall, norm_1 = W_E.new_zeros(config.d_model, 0), W_E.new_zeros(0, config.d_model), norm(f"blocks.{i}.ln1")
            before, behind = (norm_1, norm(f"blocks.{i}.ln1_post") if config.post_norm else absent) if config.pre_norm else (absent, norm_1)
            return Block(before, attention, absent, MLP(wide, none, wide, none, tall, zeros), behind)
        at = f"blocks.{i}.mlp"
        W_in, b_in = state[f"{at}.W_in"], state[f"{at}.b_in"]
        W_gate = state[f"{at}.W_gate"] if config.gated else W_in[:, :0]
        b_gate = state.get(f"{at}.b_gate", b_in.new_zeros(W_gate.shape[1]))
        mlp = MLP(W_in, b_in, W_gate, b_gate, state[f"{at}.W_out"], state[f"{at}.b_out"])
        norm_1, norm_2 = (norm(f"blocks.{i}.ln{part}") for part in (1, 2))
        if not config.pre_norm:  # the norms that TransformerLens calls ln1 and ln2 stand behind
            return Block(absent, attention, absent, mlp, norm_1, norm_2)
        post = (norm(f"blocks.{i}.ln{part}_post") if config.post_norm else absent for part in (1, 2))
        return Block(norm_1, attention, norm_2, mlp, *post)

    W_pos = state["pos_embed.W_pos"] if config.positions == "learned" else W_E[:0]
    blocks = tuple(block(i) for i in range(config.n_layers))
    return Params(W_E, W_pos, cos, sin, blocks, norm("ln_final"), state["unembed.W_U"], state["unembed.b_U"])


# ------------------------------------------------------------------ what a HookedTransformer does in its own way


def _plain(model: Any, state: State, config: ModelConfig) -> tuple[State, ModelConfig, Table, Table]:
    """Give parameters of the same computation as attrib reads them, and its rotary tables."""
    cfg = model.cfg
    if config.gated:
        state = _without_gated_bias(state, config)
    if cfg.scale_attn_by_inverse_layer_idx:
        state = _scaled_by_layer(state, config)
    none = state["embed.W_E"].new_zeros(0, 0, 0)
    if config.positions != "rotary":
        return state, config, none, none
    config, cos, sin = _rotary(model, config)
    if cfg.rotary_adjacent_pairs:
        halves = torch.cat([torch.arange(0, cfg.rotary_dim, 2), torch.arange(1, cfg.rotary_dim, 2)]).to(cos.device)
        state, cos, sin = _pairs_as_halves(state, config, halves), cos[..., halves], sin[..., halves]
    return state, config, cos, sin


def _without_gated_bias(state: State, config: ModelConfig) -> State:
    """HookedTransformer adds a gated MLP's `b_in` after the product with the gate, so it is a part of the output's bias."""
    moved = dict(state)
    for i in range(config.n_layers):
        b_in, at = state[f"blocks.{i}.mlp.b_in"], f"blocks.{i}.mlp.b_out"
        if b_in.any():
            moved[at] = state[at] + b_in @ state[f"blocks.{i}.mlp.W_out"]
            moved[f"blocks.{i}.mlp.b_in"] = torch.zeros_like(b_in)
    return moved


def _scaled_by_layer(state: State, config: ModelConfig) -> State:
    """Scores divided by the layer's number (from 1) are scores of queries divided by it."""
    names = ("q_norm.w",) if config.qk_norm != "none" else ("W_Q", "b_Q")
    return dict(state) | {at: state[at] / (i + 1) for i in range(config.n_layers) for at in (f"blocks.{i}.attn.{name}" for name in names)}


def _pairs_as_halves(state: State, config: ModelConfig, halves: Int[Tensor, " d_rotary"]) -> State:
    """Queries and keys with their rotated components reordered: first members of all pairs, then second ones.

    Scores do not change where both are reordered alike, and a norm of a head does not where its weights are, too.
    """
    order = torch.cat([halves, torch.arange(len(halves), config.d_head, device=halves.device)])
    moved = dict(state)
    for i in range(config.n_layers):
        for name in ("W_Q", "b_Q", "W_K", "b_K", "_W_K", "_b_K", "q_norm.w", "k_norm.w"):
            if (at := f"blocks.{i}.attn.{name}") in state:
                by_head = state[at].unflatten(-1, (-1, config.d_head))  # weights of a norm over all heads hold them side by side
                moved[at] = by_head[..., order].flatten(-2)
    return moved


def _rotary(model: Any, config: ModelConfig) -> tuple[ModelConfig, Table, Table]:
    """The model's own tables, one for each kind of layer.

    TransformerLens begins with 2048 positions and makes longer tables of the same kind on need; attrib has all at once.
    """
    cfg, found = model.cfg, list[tuple[Tensor, Tensor]]()
    used = []
    for block in model.blocks:
        attention = block.attn
        cos, sin = attention.rotary_cos.detach(), attention.rotary_sin.detach()
        same = (i for i, (other, _) in enumerate(found) if torch.equal(cos, other[: len(cos)]))
        table = next(same, None)
        if table is None:
            table = len(found)
            if len(cos) < cfg.n_ctx:
                base = attention._rotary_base()  # of global or of local layers
                longer = attention.calculate_sin_cos_rotary(cfg.rotary_dim, cfg.n_ctx, base=base, dtype=cfg.dtype)
                sin, cos = (t.to(cos.device) for t in longer)
            found.append((cos, sin))
        used.append(table)
    cos, sin = (torch.stack(tables) for tables in zip(*found, strict=True))
    return replace(config, rotary_tables=tuple(used) if len(found) > 1 else ()), cos, sin


def _tokenizer(model: Any) -> Tokenizer:
    """The model's tokenizer, whose template is what `model.to_tokens` does: TransformerLens puts a first token before a text or takes
    it away, and a bridge takes away what ends it.

    Its facts are taken now: the functions keep no model in memory.
    """
    inner, cfg = model.tokenizer, model.cfg
    found = from_transformers(inner)
    wanted, has = bool(cfg.default_prepend_bos), bool(cfg.tokenizer_prepends_bos)
    first = inner.bos_token if wanted and not has else None
    if first is not None and hasattr(model, "original_model") and len(found.encode(first)) != 1:
        first = None  # a bridge puts no text before a prompt
    removes = not wanted and has and inner.bos_token_id is not None
    last = inner.eos_token_id if getattr(cfg, "tokenizer_appends_eos", False) else None

    def template(text: str) -> list[int]:
        ids = found.prompt(text if first is None or text.startswith(first) else first + text)
        while last is not None and len(ids) > 1 and ids[-1] == last:
            ids = ids[:-1]
        return ids[1:] if removes else ids

    return replace(found, template=template)
