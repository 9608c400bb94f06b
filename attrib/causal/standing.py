"""What a policy holds, held for changes of any size: recorded at the primal pass, and played back in passes beside it.

A frozen nonlinearity is `detach` where derivatives are taken (models/transformer.py). A finite change asks for more: the pattern, the
denominator or the MLP's output of the primal must stand there whatever comes in. `Standing.value` computes each place of a block from
what the pass has brought before it; `hold` names what is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import Policy, Site, UnsupportedError
from attrib.models.transformer import (
    Heads,
    Model,
    Norm,
    Projected,
    attention_pattern,
    cap,
    centres,
    mlp_raw,
    project,
    rms,
    turned_heads,
    window,
)

Make = Callable[[], Tensor]
FINAL, CAP = "final", "cap"


@dataclass(frozen=True)
class Held:
    """The frozen values of one primal pass, by their names. Empty under EXACT."""

    model: Model
    policy: Policy
    values: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.policy.mlp == "relp":
            raise UnsupportedError(
                "policy: relp holds ratios of activations, which no intervention on the model does; measure edges of EXACT or LINEAR."
            )

    def recording(self) -> "Standing":
        """A pass that keeps what is frozen of it. Its values are the model's own."""
        return Standing(self, is_recording=True)

    def playing(self) -> "Standing":
        """A pass with what was recorded in it."""
        return Standing(self, is_recording=False)


class Standing:
    """One pass under way. `value` is asked of each place in order; `stands` is told what stands there in the end."""

    def __init__(self, held: Held, *, is_recording: bool) -> None:
        self.model, self.policy, self._held, self._records = held.model, held.policy, held.values, is_recording
        self._before: Tensor | None = None
        self._stream: Tensor | None = None
        self._last: Tensor | None = None

    def begin(self, base: Float[Tensor, "*batch positions d_model"] | None, x: Float[Tensor, "*batch positions _"]) -> None:
        """What a pass starts from: the value where it begins, and the stream to which that is added."""
        self._last, self._stream = x, x if base is None else base
        self._before = self._stream

    def stands(self, at: Site, value: Float[Tensor, "*batch positions _"]) -> None:
        """What stands at a place."""
        self._last = value
        if at.is_residual:
            self._stream = value
        if at.kind in ("resid_pre", "resid_post"):
            self._before = value

    def value(self, at: Site, computed: Float[Tensor, "*batch positions _"]) -> Float[Tensor, "*batch positions _"]:
        """What the model brings to a place where what is frozen is held; `computed` is what it brings where nothing is."""
        if self.policy == Policy() or self._last is None or self._stream is None or self._before is None:
            return computed
        config, block = self.model.config, self.model.params.blocks[at.layer]
        read = self._before if config.parallel else self._stream
        match at.kind:
            case "z":
                entered = self._normed(f"{at}.norm", block.norm_1, self._before) if config.pre_norm else self._before
                return self._attended(at, entered)
            case "attn_out":
                written = self._last @ block.attention.W_O + block.attention.b_O
                return self._normed(f"{at}.norm", block.post_1, written) if config.post_norm else written
            case "mlp_in":
                return self._normed(f"{at}.norm", block.norm_2, read) if config.pre_norm else read
            case "mlp_out":
                if self.policy.mlp == "frozen":
                    return self._hold(str(at), lambda: computed)
                raw = mlp_raw(self.model, at.layer, self._last)
                return self._normed(f"{at}.norm", block.post_2, raw) if config.post_norm else raw
        return computed

    def logits(
        self, x: Float[Tensor, "*batch positions d_model"], positions: Int[Tensor, " read"], tokens: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "*batch read tokens"]:
        """Some logits at some positions of what stands at the end of the stream."""
        p, at = self.model.params, self.model.config.logit_cap
        rows = self._normed(FINAL, p.norm_final, x).index_select(-2, positions)
        raw = rows @ p.W_U.index_select(1, tokens) + p.b_U.index_select(0, tokens)
        if at is None or self.policy.norm == "exact":
            return cap(raw, at)
        return raw * self._hold(CAP, lambda: (cap(raw, at) / raw).where(raw != 0, 1))

    def _attended(self, at: Site, x: Float[Tensor, "*batch positions d_model"]) -> Float[Tensor, "*batch positions d_q"]:
        config, layer = self.model.config, at.layer

        def pattern() -> Tensor:
            q, k, _ = self._turned(at, project(self.model, layer, x))
            return attention_pattern(q, k, config.attention_scale, window(config, layer), config.score_cap, config.causal)

        weights = self._hold(f"{at}.pattern", pattern) if self.policy.attention == "frozen" else pattern()
        v = turned_heads(self.model, layer, project(self.model, layer, x)).v
        z = torch.einsum("...gpk,...kd->...gpd", weights, v)
        return rearrange(z, "... kv group pos d -> ... pos (kv group d)")

    def _turned(self, at: Site, projected: Projected) -> Heads:
        """Queries, keys and values, of which the norms of the first two are held where norms are."""
        config, p = self.model.config, self.model.params.blocks[at.layer].attention
        if config.qk_norm == "none" or self.policy.norm == "exact":
            return turned_heads(self.model, at.layer, projected)

        def normed(name: str, part: Float[Tensor, "*batch positions d"], weight: Float[Tensor, " d_norm"]) -> Tensor:
            apart = part.unflatten(-1, (-1, len(weight)))  # each head, or all of them as one
            return (apart / self._hold(f"{at}.{name}", lambda: rms(config, apart)) * weight).flatten(-2)

        q, k = normed("queries", projected.q, p.q_norm), normed("keys", projected.k, p.k_norm)
        plain = replace(self.model, config=replace(config, qk_norm="none"))
        return turned_heads(plain, at.layer, Projected(q, k, projected.v))

    def _normed(self, name: str, norm: Norm, x: Float[Tensor, "*batch positions d"]) -> Float[Tensor, "*batch positions d"]:
        centred = x - x.mean(-1, keepdim=True) if centres(self.model.config) else x

        def denominator() -> Tensor:
            return rms(self.model.config, centred)

        return centred / (self._hold(name, denominator) if self.policy.norm == "frozen" else denominator()) * norm.weight + norm.bias

    def _hold(self, name: str, make: Make) -> Tensor:
        if self._records:
            self._held[name] = make()
        return self._held[name]
