"""A transformer as a pure function: parameters as a pytree, a frozen config, and what to do with them.

    x_0   = W_E[token] · scale (+ W_pos)                                    embed
    z     = softmax(q k^T · scale, mask) v,  (q, k, v) = norm(x) W + b      attention
    mid   = x + z W_O + b_O                                                 resid_mid
    post  = mid + mlp(norm(mid))                                            resid_post
    logit = norm(x_L) W_U + b_U                                             unembed

Families differ in what ModelConfig says: norms before or after what is added to the stream, or both; an MLP that
reads `x` beside the attention (`parallel`; `mid` is then only a sum); norms on queries and keys; windows; soft caps; no norms
and no MLPs at all; attention that sees what comes behind it.
What can be said by other parameters is: rotary pairs are laid out as halves, a norm's (1 + w) is its weight.

Nothing here knows where the parameters came from (see sources/), and nothing is mutated. Shapes carry
any leading batch dimensions; positions start at 0, so a prefix of a prompt is a prompt.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, assert_never, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from attrib.core.devices import check_device, check_dtype
from attrib.core.fingerprints import Fingerprinted, moved
from attrib.core.shown import in_one_line
from attrib.core.types import EXACT, SITE_KINDS, InputError, Policy, Site, SiteKind, UnsupportedError
from attrib.core.warned import renamed
from attrib.models.tokenizer import Tokenizer as Tokenizer

Stream = Float[Tensor, "*batch positions d_model"]

MLP_KINDS: tuple[SiteKind, ...] = ("mlp_in", "mlp_out")
"""The kinds of sites that a model without MLPs does not have."""

Put = Callable[[Site, Tensor], Tensor]
"""What stands at a place, from what the model has computed there."""


@in_one_line
class Norm(NamedTuple):
    """LayerNorm or RMSNorm; a folded norm has weight 1 and bias 0."""

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]


ABSENT = Norm(torch.empty(0), torch.empty(0))
"""In place of a norm that a family does not have."""


@in_one_line
class Attention(NamedTuple):
    """Heads lie side by side in the columns; with grouped queries, `d_kv < d_q`."""

    W_Q: Float[Tensor, "d_model d_q"]
    b_Q: Float[Tensor, " d_q"]
    W_K: Float[Tensor, "d_model d_kv"]
    b_K: Float[Tensor, " d_kv"]
    W_V: Float[Tensor, "d_model d_kv"]
    b_V: Float[Tensor, " d_kv"]
    W_O: Float[Tensor, "d_q d_model"]
    b_O: Float[Tensor, " d_model"]
    q_norm: Float[Tensor, " d_q_norm"] = ABSENT.weight  # [d_head], or [d_q] where all heads are normed together
    k_norm: Float[Tensor, " d_k_norm"] = ABSENT.weight


@in_one_line
class MLP(NamedTuple):
    """`act(x W_in + b_in) W_out + b_out`; when gated, `act(x W_gate + b_gate) * (x W_in + b_in)` in the middle."""

    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_gate: Float[Tensor, "d_model d_gate"]  # d_gate is d_mlp, or 0 where there is no gate
    b_gate: Float[Tensor, " d_gate"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]


@in_one_line
class Block(NamedTuple):
    """One layer: attention and MLP, each behind its norm, and the norms of what they write where there are such."""

    norm_1: Norm
    attention: Attention
    norm_2: Norm
    mlp: MLP
    post_1: Norm = ABSENT
    post_2: Norm = ABSENT


@in_one_line
class Params(NamedTuple):
    """Every tensor of the model. Unused tables have no rows."""

    W_E: Float[Tensor, "d_vocab d_model"]
    W_pos: Float[Tensor, "n_ctx_learned d_model"]
    rotary_cos: Float[Tensor, "tables n_ctx_rotary d_rotary"]
    rotary_sin: Float[Tensor, "tables n_ctx_rotary d_rotary"]
    blocks: tuple[Block, ...]
    norm_final: Norm
    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, " d_vocab"]


Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


NormKind = Literal["layer", "rms", "none"]
Positions = Literal["learned", "rotary"]
HeadNorms = Literal["none", "head", "whole"]

_WORDS: dict[str, tuple[str, ...]] = {
    "norm": get_args(NormKind), "activation": get_args(Activation), "positions": get_args(Positions), "qk_norm": get_args(HeadNorms),
}  # fmt: skip
"""The words that the fields of a config may have. Most code asks for one and takes the rest for the other."""


@dataclass(frozen=True)
class ModelConfig:
    """The static facts of a model."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    """The width of an MLP's hidden layer; 0 where the model has no MLPs."""
    d_vocab: int
    n_ctx: int
    norm: NormKind
    eps: float
    activation: Activation
    gated: bool
    positions: Positions
    attention_scale: float
    parallel: bool = False
    """The MLP reads the stream that attention reads, and not what attention has added to it."""
    pre_norm: bool = True
    """Attention and MLP read a normed stream."""
    post_norm: bool = False
    """What attention and MLP write is normed before it is added to the stream."""
    qk_norm: HeadNorms = "none"
    """An RMSNorm of queries and keys before they are rotated: of each head, or of all heads together."""
    windows: tuple[int | None, ...] = ()
    """How many positions each layer's queries see, their own among them; None is all. Empty where no layer has a window."""
    rotary_tables: tuple[int, ...] = ()
    """Which rotary table each layer uses; empty where all use the first."""
    score_cap: float | None = None
    """Attention scores s become cap · tanh(s / cap)."""
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    causal: bool = field(default=True, repr=False)  # whose repr is hashed: models were named by it before this was a fact
    """Whether a position sees those before it alone, and not those behind it."""

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if (word := getattr(self, name)) not in words:
                raise UnsupportedError(f"{name}: {word!r}; attrib computes {', '.join(map(repr, words))}.")
        if self.norm == "none" and (self.pre_norm or self.post_norm):
            raise UnsupportedError("norm: 'none' where pre_norm or post_norm is True; expected neither in a model without norms.")
        if not self.has_mlps and (self.parallel or self.gated):
            raise UnsupportedError("d_mlp: 0 where MLPs are gated or beside attention; expected neither of a model without MLPs.")
        if not self.causal and any(self.windows):
            raise UnsupportedError("windows: in attention that is not causal; attrib computes windows of causal attention alone.")

    @property
    def has_mlps(self) -> bool:
        """Whether there are MLPs: a model of attention alone has none."""
        return self.d_mlp > 0

    def seen(self, position: int, positions: int) -> range:
        """The positions that a query sees, windows aside: those up to its own, or all of them."""
        return range(position + 1 if self.causal else positions)

    def seeing(self, position: int, positions: int) -> range:
        """The positions that see a key, windows aside: those from its own on, or all of them."""
        return range(position if self.causal else 0, positions)

    @property
    def last(self) -> Site:
        """The residual stream that the unembedding reads."""
        return Site(self.n_layers - 1, "resid_post")


@dataclass(frozen=True)
class Model(Fingerprinted):
    """Parameters, config and (where known) tokenizer of one transformer."""

    params: Params
    config: ModelConfig
    name: str
    tokenizer: Tokenizer | None = None

    def __repr__(self) -> str:
        c, dtype = self.config, str(self.dtype).removeprefix("torch.")
        p = self.params._replace(rotary_cos=self.params.W_E, rotary_sin=self.params.W_E)
        held = {(leaf.data_ptr(), leaf.numel()) for leaf in pytree.tree_leaves(p)}  # tied tables once
        return (
            f"Model({self.name!r}, {c.n_layers} layers, d_model {c.d_model}, {c.n_heads} heads of {c.d_head}, vocabulary {c.d_vocab:,}, "
            f"{sum(numbers for _, numbers in held):,} parameters, {dtype}, {self.device})"
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every parameter."""
        return self.params.W_E.dtype

    @property
    def device(self) -> torch.device:
        """The device of every parameter."""
        return self.params.W_E.device

    def to(self, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None) -> "Model":
        """Put the model into another dtype or on another device; it is given back itself where nothing changes.

        Raises:
            InputError: for a dtype that is none, and a device that is not there.
        """
        dtype = None if dtype is None else check_dtype(dtype)
        device = None if device is None else check_device(device)
        if dtype in (None, self.dtype) and device in (None, self.device):
            return self
        params = pytree.tree_map(lambda p: p.to(dtype=dtype, device=device), self.params)
        moved(self.params, params)
        return replace(self, params=params)

    def _hashed(self, how: Callable[..., str]) -> str:
        return how(self.params, self.config, *(() if self.config.causal else ("not causal",)))

    def with_special_tokens(self, special_tokens: str) -> "Model":
        """Give the model with prompts that take a special token that is spelled out in their text as it says.

        Args:
            special_tokens: "allow", it is that token, as the tokenizer has it; "text", it is text like any other; "refuse", an error.

        Raises:
            InputError: for another choice, or where there is no tokenizer that could take it.
        """
        if self.tokenizer is None:
            raise InputError(f"special_tokens: {self.name} has no tokenizer, so no text is taken.")
        return replace(self, tokenizer=self.tokenizer.with_special_tokens(special_tokens))


# ----------------------------------------------------------------------------- pieces of a block


def centres(config: ModelConfig) -> bool:
    """Whether the model's norms subtract the mean before they divide. Whoever computes a norm, or its derivative, asks here."""
    match config.norm:
        case "layer":
            return True
        case "rms" | "none":
            return False
    assert_never(config.norm)


def normalise(config: ModelConfig, norm: Norm, x: Stream, policy: Policy = EXACT) -> Stream:
    """LayerNorm or RMSNorm over the last dimension, or nothing; a frozen norm holds its denominator."""
    if config.norm == "none":
        return x
    if centres(config):
        if policy.norm == "exact" and x.dtype == norm.weight.dtype:
            return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, config.eps)
        x = x - x.mean(-1, keepdim=True)
    return _rms(config, x, policy) * norm.weight + norm.bias


def enter(config: ModelConfig, norm: Norm, x: Stream, policy: Policy = EXACT) -> Stream:
    """What attention or an MLP reads of the stream."""
    return normalise(config, norm, x, policy) if config.pre_norm and norm.weight.numel() else x


def leave(config: ModelConfig, norm: Norm, x: Stream, policy: Policy = EXACT) -> Stream:
    """What attention or an MLP adds to the stream."""
    return normalise(config, norm, x, policy) if config.post_norm else x


def _rms(config: ModelConfig, x: Float[Tensor, "*batch d"], policy: Policy) -> Float[Tensor, "*batch d"]:
    return x / rms(config, x, policy)


def rms(config: ModelConfig, x: Float[Tensor, "*batch d"], policy: Policy = EXACT) -> Float[Tensor, "*batch 1"]:
    """A norm's denominator: the root of the mean square of `x`, which LayerNorm has centred."""
    denominator = (x.pow(2).mean(-1, keepdim=True) + config.eps).sqrt()
    return denominator.detach() if policy.norm == "frozen" else denominator


def cap(x: Float[Tensor, "*any"], at: float | None, policy: Policy = EXACT) -> Float[Tensor, "*any"]:
    """`at` · tanh(x / at); None does nothing. Where norms are frozen it is a scale, held at its primal value as theirs is."""
    if at is None:
        return x
    capped = at * (x / at).tanh()
    return x * (capped / x).where(x != 0, 1).detach() if policy.norm == "frozen" else capped


def rotate(
    x: Float[Tensor, "*batch positions d_head"], cos: Float[Tensor, "*tables d_rotary"], sin: Float[Tensor, "*tables d_rotary"]
) -> Float[Tensor, "*batch positions d_head"]:
    """Rotary embedding, halves turned against each other (Su et al. 2021, GPT-NeoX layout); the tables broadcast over heads."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)


def attention_pattern(
    q: Float[Tensor, "*batch kv_heads group queries d_head"],
    k: Float[Tensor, "*batch kv_heads keys d_head"],
    scale: float,
    window: int | None = None,
    score_cap: float | None = None,
    causal: bool = True,
) -> Float[Tensor, "*batch kv_heads group queries keys"]:
    """Softmax attention of grouped query heads, each group of which shares its keys; the queries are those of the last positions."""
    if not causal:
        return cap(attention_scores(q, k, scale), score_cap).softmax(-1)
    hidden = hidden_keys(q.shape[-2], k.shape[-2], window, q.device)
    return _pattern_hiding(q, k, hidden, scale, score_cap)


def hidden_keys(rows: int, keys: int, window: int | None, device: torch.device) -> Bool[Tensor, "rows keys"]:
    """Which keys the last `rows` of as many positions as there are keys do not see: those behind their own, and before the window."""
    own, every = keys - rows, torch.ones(rows, keys, dtype=torch.bool, device=device)
    later = every.triu(own + 1)
    return later if window is None else later | every.tril(own - window)


def pattern_where(
    q: Float[Tensor, "*batch kv_heads group queries d_head"],
    k: Float[Tensor, "*batch kv_heads keys d_head"],
    seen: Bool[Tensor, "*broadcast queries keys"],
    scale: float,
    score_cap: float | None = None,
) -> Float[Tensor, "*batch kv_heads group queries keys"]:
    """Softmax attention over the keys that each query sees, which must be one at least."""
    return _pattern_hiding(q, k, ~seen, scale, score_cap)


def _pattern_hiding(
    q: Float[Tensor, "*batch kv_heads group queries d_head"],
    k: Float[Tensor, "*batch kv_heads keys d_head"],
    hidden: Bool[Tensor, "*broadcast queries keys"],
    scale: float,
    score_cap: float | None,
) -> Float[Tensor, "*batch kv_heads group queries keys"]:
    return cap(attention_scores(q, k, scale), score_cap).masked_fill(hidden, -math.inf).softmax(-1)


def attention_scores(
    q: Float[Tensor, "*batch kv_heads group queries d_head"], k: Float[Tensor, "*batch kv_heads keys d_head"], scale: float
) -> Float[Tensor, "*batch kv_heads group queries keys"]:
    """Scaled products of queries and keys, before cap and mask."""
    # one product per key head: the queries of a group stand below each other, so keys are never copied
    scores = rearrange(q, "... group pos d -> ... (group pos) d") @ k.transpose(-1, -2)
    return rearrange(scores, "... (group pos) key -> ... group pos key", pos=q.shape[-2]) * scale


@in_one_line
class Heads(NamedTuple):
    """Queries, keys and values of one layer, rotated where the model rotates."""

    q: Float[Tensor, "*batch kv_heads group positions d_head"]
    k: Float[Tensor, "*batch kv_heads positions d_head"]
    v: Float[Tensor, "*batch kv_heads positions d_head"]


@in_one_line
class Projected(NamedTuple):
    """Queries, keys and values side by side, before norms and rotation."""

    q: Float[Tensor, "*batch positions d_q"]
    k: Float[Tensor, "*batch positions d_kv"]
    v: Float[Tensor, "*batch positions d_kv"]


def project(model: Model, layer: int, x: Stream) -> Projected:
    """The normed stream `x` through the matrices into head space."""
    p = model.params.blocks[layer].attention
    return Projected(affine(x, p.W_Q, p.b_Q), affine(x, p.W_K, p.b_K), affine(x, p.W_V, p.b_V))


def affine(x: Float[Tensor, "*batch d_in"], W: Float[Tensor, "d_in d_out"], b: Float[Tensor, " d_out"]) -> Float[Tensor, "*batch d_out"]:
    """x W + b, in one launch."""
    return F.linear(x, W.T, b)


def heads(model: Model, layer: int, x: Stream, policy: Policy = EXACT) -> Heads:
    """Queries, keys and values from the normed stream `x`."""
    return turned_heads(model, layer, project(model, layer, x), policy)


def turned_heads(
    model: Model, layer: int, projected: Projected, policy: Policy = EXACT, at: Int[Tensor, "*batch positions"] | None = None
) -> Heads:
    """The heads apart, with their norms and rotation; `at` says which positions these are, and None that they begin at 0."""
    config, p = model.config, model.params.blocks[layer].attention
    q, k, v = projected
    if config.qk_norm == "whole":
        q, k = _rms(config, q, policy) * p.q_norm, _rms(config, k, policy) * p.k_norm
    q = rearrange(q, "... pos (kv group d) -> ... kv group pos d", kv=config.n_kv_heads, d=config.d_head)
    k, v = (rearrange(part, "... pos (kv d) -> ... kv pos d", kv=config.n_kv_heads) for part in (k, v))
    if config.qk_norm == "head":
        q, k = _rms(config, q, policy) * p.q_norm, _rms(config, k, policy) * p.k_norm
    if config.positions == "rotary":
        cos, sin = (table.unsqueeze(-3) for table in rotary(model, layer, q.shape[-2] if at is None else at))  # the same for all heads
        q, k = rotate(q, cos.unsqueeze(-4), sin.unsqueeze(-4)), rotate(k, cos, sin)
    return Heads(q, k, v)


def rotary(
    model: Model, layer: int, positions: int | Int[Tensor, "*batch positions"]
) -> tuple[Float[Tensor, "*batch positions d_rotary"], Float[Tensor, "*batch positions d_rotary"]]:
    """A layer's cos and sin at the first positions, or at those given; of no width where positions are not rotary."""
    config, params = model.config, model.params
    if config.positions != "rotary":
        shape = (positions,) if isinstance(positions, int) else positions.shape
        return (params.W_E.new_zeros(*shape, 0),) * 2
    table = config.rotary_tables[layer] if config.rotary_tables else 0
    at = slice(positions) if isinstance(positions, int) else positions
    return params.rotary_cos[table, at], params.rotary_sin[table, at]


def window(config: ModelConfig, layer: int) -> int | None:
    """How many positions a layer's queries see; None is all."""
    return config.windows[layer] if config.windows else None


def attend(model: Model, layer: int, x: Stream, policy: Policy = EXACT) -> Float[Tensor, "*batch positions d_q"]:
    """`z` of one layer from the normed stream `x`."""
    q, k, v = heads(model, layer, x, policy)
    pattern = pattern_of(model, layer, q, k)
    if policy.attention == "frozen":
        pattern = pattern.detach()
    return weighted(pattern, v)


def pattern_of(
    model: Model,
    layer: int,
    q: Float[Tensor, "*batch kv_heads group queries d_head"],
    k: Float[Tensor, "*batch kv_heads keys d_head"],
) -> Float[Tensor, "*batch kv_heads group queries keys"]:
    """The attention pattern of one layer, of the last of as many positions as there are keys."""
    config = model.config
    return attention_pattern(q, k, config.attention_scale, window(config, layer), config.score_cap, config.causal)


def weighted(
    pattern: Float[Tensor, "*batch kv_heads group queries keys"], v: Float[Tensor, "*batch kv_heads keys d_head"]
) -> Float[Tensor, "*batch queries d_q"]:
    """`z`: each head's values by its pattern, heads side by side."""
    z = rearrange(pattern, "... group pos key -> ... (group pos) key") @ v
    return rearrange(z, "... kv (group pos) d -> ... pos (kv group d)", pos=pattern.shape[-2])


def attention_written(model: Model, layer: int, z: Float[Tensor, "*batch positions d_q"], policy: Policy = EXACT) -> Stream:
    """`attn_out` from `z`."""
    p = model.params.blocks[layer]
    return leave(model.config, p.post_1, affine(z, p.attention.W_O, p.attention.b_O), policy)


def mlp(model: Model, layer: int, x: Stream, policy: Policy = EXACT) -> Stream:
    """`mlp_out` from `mlp_in`."""
    out = leave(model.config, model.params.blocks[layer].post_2, mlp_raw(model, layer, x, policy), policy)
    return out.detach() if policy.mlp == "frozen" else out


def activation_of(config: ModelConfig) -> Callable[[Tensor], Tensor]:
    """The nonlinearity of the model's MLPs."""
    return _ACTIVATIONS[config.activation]


def mlp_raw(model: Model, layer: int, x: Stream, policy: Policy = EXACT) -> Stream:
    """The MLP's own output, before the norm that some families put behind it."""
    p = model.params.blocks[layer].mlp
    gate = affine(x, p.W_gate, p.b_gate) if model.config.gated else None
    return affine(mlp_hidden(model.config, affine(x, p.W_in, p.b_in), gate, policy), p.W_out, p.b_out)


def mlp_hidden(
    config: ModelConfig, pre: Float[Tensor, "*batch units"], gate: Float[Tensor, "*batch units"] | None, policy: Policy = EXACT
) -> Float[Tensor, "*batch units"]:
    """The hidden units of an MLP, from x W_in + b_in and, where there is a gate, x W_gate + b_gate.

    Under "relp" they are what each pre-activation brings to them, with the same value.
    """
    if policy.mlp == "relp":
        slopes = relevance_slopes(config, pre.detach(), None if gate is None else gate.detach())
        return slopes[-1] * pre if gate is None else slopes[0] * gate + slopes[1] * pre
    act = activation_of(config)
    return act(pre) if gate is None else act(gate) * pre


def relevance_slopes(
    config: ModelConfig, pre: Float[Tensor, "*batch units"], gate: Float[Tensor, "*batch units"] | None
) -> tuple[Float[Tensor, "*batch units"], ...]:
    """The linear map of an MLP's middle by layer-wise relevance propagation, which has its value: hidden = Σ slope · pre-activation.

    Of hidden = act(u) it is the identity rule, act(u) / u; of act(g) w the half rule with it, act(g) / g · w / 2 of the gate and
    act(g) / 2 of what it multiplies (Rezaei Jafari et al. 2025, RelP; Achtibat et al. 2024, AttnLRP). A pre-activation of 0 brings nothing.

    Args:
        pre: x W_in + b_in.
        gate: x W_gate + b_gate, or None where there is no gate.

    Returns:
        As `mlp_point` has them: of the gate, where there is one, and then of `pre`.
    """
    through = pre if gate is None else gate
    acted = activation_of(config)(through)
    ratio = (acted / through.where(through != 0, 1)).where(through != 0, 0)
    return (ratio,) if gate is None else (ratio * pre / 2, acted / 2)


# --------------------------------------------------------------------------- the whole transformer

Attend = Callable[[Model, int, Stream, Policy], Tensor]
"""`z` of a layer from the normed stream that its attention reads."""


def embed(model: Model, tokens: Int[Tensor, "*batch positions"], at: Int[Tensor, "*batch positions"] | None = None) -> Stream:
    """Sum of token and (where learned) position embeddings: `resid_pre` of layer 0.

    Args:
        at: the position of each token, where they do not begin at 0.

    Raises:
        InputError: for a prompt longer than the model's context.
    """
    if tokens.shape[-1] > model.config.n_ctx:
        raise InputError(f"tokens: {tokens.shape[-1]} positions, and {model.name} has {model.config.n_ctx}. Shorten the prompt.")
    x = F.embedding(tokens, model.params.W_E)
    if model.config.embedding_scale != 1:
        x = x * model.config.embedding_scale
    if model.config.positions != "learned":
        return x
    return x + (model.params.W_pos[: tokens.shape[-1]] if at is None else F.embedding(at, model.params.W_pos))


def walk(
    model: Model,
    start: Site,
    x: Float[Tensor, "*batch positions width"],
    base: Stream | None = None,
    policy: Policy = EXACT,
    put: Put | None = None,
    attention: Attend = attend,
) -> Iterator[tuple[Site, Tensor]]:
    """Yield every site from `start` on, in order of computation, with its value.

    Args:
        x: the value at `start`.
        base: the residual stream to which a component's output is added; needed where `start` is not
            itself the stream: `resid_pre` for z and attn_out, `resid_mid` for mlp_in and mlp_out.
        put: what takes the place of each value, `x` among them, on which all that follows is computed. It is asked once of each
            place, by the name that `place` gives it.
        attention: what computes `z` of a layer from the normed stream, in place of `attend`.

    Raises:
        InputError: where `base` is missing or not wanted.
        UnsupportedError: at `resid_mid` of a parallel block, which nothing reads.
    """
    blocks, config = model.params.blocks, model.config
    if start.is_residual == (base is not None):
        what = "missing" if base is None else "not wanted"
        raise InputError(f"base: {what} for a path that starts at {start}; only components that add to the stream need it.")
    if config.parallel and start.kind == "resid_mid":
        raise UnsupportedError(
            f"{start}: attention and MLP of {model.name} both read resid_pre, and nothing reads the stream between them."
        )

    def stands(at: Site, value: Tensor) -> Tensor:
        return value if put is None else put(place(model, at), value)

    value, done = stands(start, x), SITE_KINDS.index(start.kind)
    stream = before = value if base is None else base
    yield start, value
    for layer in range(start.layer, config.n_layers):
        for kind in SITE_KINDS[done + 1 :]:
            at = Site(layer, kind)
            if kind in MLP_KINDS and not config.has_mlps:
                continue
            match kind:
                case "z":
                    before = stream
                    value = stands(at, attention(model, layer, enter(config, blocks[layer].norm_1, stream, policy), policy))
                case "attn_out":
                    value = stands(at, attention_written(model, layer, value, policy))
                case "resid_post" if not config.has_mlps:
                    value = stream = stands(at, stream)
                case "resid_mid" | "resid_post":
                    value = stream = stands(at, stream + value)
                case "mlp_in":
                    value = stands(at, enter(config, blocks[layer].norm_2, before if config.parallel else stream, policy))
                case "mlp_out":
                    value = stands(at, mlp(model, layer, value, policy))
            yield at, value
        done = 0
        if layer + 1 < config.n_layers:
            yield Site(layer + 1, "resid_pre"), stream


def unembed(model: Model, x: Stream, *, policy: Policy = EXACT) -> Float[Tensor, "*batch positions d_vocab"]:
    """Logits from the last `resid_post`."""
    raw = normalise(model.config, model.params.norm_final, x, policy) @ model.params.W_U + model.params.b_U
    return cap(raw, model.config.logit_cap, policy)


def forward(model: Model, tokens: Int[Tensor, "*batch positions"]) -> Float[Tensor, "*batch positions d_vocab"]:
    """The whole model: logits from ids."""
    *_, (_, last) = walk(model, Site(0, "resid_pre"), embed(model, tokens))
    return unembed(model, last)


def place(model: Model, site: Site) -> Site:
    """One name for `resid_post` of a layer and `resid_pre` of the next, which are the same value: the latter."""
    return Site(site.layer + 1, "resid_pre") if site.kind == "resid_post" and site != model.config.last else site


def base_site(start: Site) -> Site | None:
    """The stream to which a component's output is added; None where `start` is the stream."""
    match start.kind:
        case "z" | "attn_out":
            return Site(start.layer, "resid_pre")
        case "mlp_in" | "mlp_out":
            return Site(start.layer, "resid_mid")
    return None


def width(config: ModelConfig, site: Site) -> int:
    """The size of the vector at a site."""
    return config.n_heads * config.d_head if site.kind == "z" else config.d_model


def check_site(model: Model, site: Site | str, argument: str) -> Site:
    """Parse a site and see that the model has it."""
    site = Site.parse(site)
    if site.layer >= model.config.n_layers:
        raise InputError(f"{argument}: {site} is outside {model.name}, which has layers 0 to {model.config.n_layers - 1}.")
    if site.kind in MLP_KINDS and not model.config.has_mlps:
        raise InputError(f"{argument}: {site} is of an MLP, and {model.name} has none. Take attn_out, z, resid_pre or resid_post.")
    return site


def check_end(model: Model, site: Site | str, argument: str) -> Site:
    """Parse a site and see that a path can begin or end there."""
    site = check_site(model, site, argument)
    if model.config.parallel and site.kind == "resid_mid":
        raise InputError(
            f"{argument}: {site} is only a sum in {model.name}, whose attention and MLP both read resid_pre. "
            "Take resid_pre, attn_out, mlp_out or resid_post."
        )
    return site


if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, logits="forward")
