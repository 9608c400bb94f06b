"""What latents read of the residual stream and what they write to it, as directions of it: all that weights fix, and no prompt changes.

Latent j of a target reads e_j · x of the stream x, and latent i of a source writes d_i to it. A head moves x W_V W_O from one position to
another. Norms are folded as attrib folds them (`fold_norm`): the norm's weight w is multiplied into the matrix that reads, and for
LayerNorm the mean is taken off:

    e_j = C (w_2 ⊙ E_j)            of a dictionary that reads mlp_in, with C x = x - mean x where norms centre, else C = 1
    W_V → C (w_1 ⊙ W_V)            of attention behind norm_1
    W_O → (W_O C) ⊙ w_post         of attention before a norm of what it writes (Gemma 2 and 3, OLMo 2)

What is left out is what a prompt fixes: each norm's 1/s, the attention pattern, and the scale by which a normalising dictionary divides its
input or multiplies its output. Biases are left out too: none of them depends on a latent.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_dictionary
from attrib.core.types import BudgetError, InputError, Site
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.fit import fitted
from attrib.engine.blocks.norm_mlp import fold_norm
from attrib.models.transformer import Model, ModelConfig, Norm, centres

LatentsLike = Any
"""Latents as callers give them: None for all, a number, several, a slice, or a mask of booleans."""

Heads = int | Iterable[int] | None
"""A head, several, or all of a layer."""

Step = tuple[int, int]
"""A moment of the stream: before attention of a layer, (layer, 0), or between its attention and its MLP, (layer, 1)."""


def written_from(site: Site) -> Step | None:
    """From when on the stream holds what is written at a site. None for mlp_in, which only the MLP reads."""
    match site.kind:
        case "resid_pre":
            return site.layer, 0
        case "resid_mid":
            return site.layer, 1
        case "z" | "attn_out":
            return behind_attention(site.layer)
        case "mlp_out" | "resid_post":
            return site.layer + 1, 0
        case "mlp_in":
            return None


def read_when(model: Model, site: Site) -> Step | None:
    """When the stream is read by what reads a site. None for what one component gives: z, attn_out and mlp_out."""
    match site.kind:
        case "resid_pre" | "resid_mid" | "resid_post":
            return written_from(site)
        case "mlp_in":
            return site.layer, 0 if model.config.parallel else 1
        case "z" | "attn_out" | "mlp_out":
            return None


def behind_attention(layer: int) -> Step:
    """From when on the stream holds what attention of a layer writes."""
    return layer, 1


def dtype_of(model: Model) -> torch.dtype:
    """What products are computed in: the model's dtype, and float32 where that has fewer digits."""
    return torch.promote_types(model.dtype, torch.float32)


# ------------------------------------------------------------------------------------------ which latents


def chosen_latents(given: LatentsLike, count: int, argument: str) -> Int[Tensor, " latents"]:
    """The numbers of chosen latents, in the order in which they are given.

    Raises:
        InputError: for what is no choice of latents, for none of them, and for one that the dictionary does not have.
    """
    if given is None:
        return torch.arange(count)
    found = _numbers(given, count)
    if found is None or found.ndim != 1:
        raise InputError(f"{argument}: {given!r:.80}; expected None for all, whole numbers, a slice, or a mask of {count:,} booleans.")
    if not len(found):
        raise InputError(f"{argument}: none chosen; expected at least one latent, or None for all.")
    if int(found.min()) < 0 or int(found.max()) >= count:
        wrong = int(found[(found < 0) | (found >= count)][0])
        raise InputError(f"{argument}: {wrong} is no latent; expected numbers from 0 to {count - 1:,}.")
    return found


def place_of_latent(latent: int, asked: Int[Tensor, " latents"]) -> int:
    """Where a latent is among those that were asked about. Raises InputError where it is none of them."""
    found = (asked == latent).nonzero()[:, 0]
    if not len(found):
        raise InputError(f"latent: {latent!r}; expected one that was asked about: {', '.join(map(str, asked.tolist()[:8]))}.")
    return int(found[0])


def _numbers(given: Any, count: int) -> Int[Tensor, " latents"] | None:
    """What was given as a tensor of numbers; None for what is no choice of latents."""
    given = [given] if isinstance(given, Integral) else given
    try:
        if isinstance(given, slice):
            return torch.arange(count)[list(range(count)[given])]
        found = given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(np.asarray(given))
    except (TypeError, ValueError, RuntimeError):
        return None
    if found.dtype == torch.bool:
        return found.nonzero()[:, 0] if found.shape == (count,) else None
    return None if found.dtype.is_floating_point or found.dtype.is_complex else found.to(torch.int64)


# --------------------------------------------------------------------------------------- reading and writing


@dataclass(frozen=True)
class Reader:
    """Latents by what their encoders read, tile by tile; or directions of the stream, as they are given."""

    model: Model
    of: Dictionary | Tensor
    latent: Int[Tensor, " latents"]
    is_all: bool

    @property
    def site(self) -> Site | None:
        """Where the dictionary reads; None for directions, which stand anywhere in the stream."""
        return self.of.site if isinstance(self.of, Dictionary) else None

    @property
    def width(self) -> int:
        """Numbers that are held for one latent while its direction is made."""
        return max(self.of.d_in if isinstance(self.of, Dictionary) else self.of.shape[1], self.model.config.d_model)

    def columns(self, first: int, last: int) -> Float[Tensor, "width latents"]:
        """Directions of some latents as columns: of the stream; of z, attn_out or mlp_out where the dictionary reads one of these."""
        if isinstance(self.of, Tensor):
            return _in(self.model, self.of[first:last]).T
        if self.is_all:
            E = self.of.encoder(first, last)
        else:
            E = self.of.encoder_columns(self.latent[first:last].to(self.of.params.b_enc.device)).T
        E = _in(self.model, E)
        if self.of.config.normalisation == "layer_norm":
            E = E - E.mean(0, keepdim=True)
        return fold_norm(self.model.config, self.model.params.blocks[self.of.site.layer].norm_2, E) if self.of.site.kind == "mlp_in" else E


@dataclass(frozen=True)
class Writer:
    """Latents by what their decoders write to the stream, tile by tile; or directions of the stream, as they are given."""

    model: Model
    of: Dictionary | Tensor
    latent: Int[Tensor, " latents"]
    is_all: bool

    @property
    def width(self) -> int:
        """Numbers that are held for one latent while its direction is made."""
        return 2 * (self.of.d_out // len(self.of.writes) if isinstance(self.of, Dictionary) else 0) + self.model.config.d_model

    def rows(self, first: int, last: int, parts: Iterable[int]) -> Float[Tensor, "latents d_model"]:
        """Directions of some latents as rows: the sum of what they write at some of the dictionary's sites, given by their place there."""
        if isinstance(self.of, Tensor):
            return _in(self.model, self.of[first:last])
        number = torch.arange(first, last) if self.is_all else self.latent[first:last]
        number, share = number.to(self.of.params.b_enc.device), self.of.d_out // len(self.of.writes)
        summed: Tensor | int = 0
        for part in parts:
            rows = _in(self.model, self.of.decoder_rows(number, slice(part * share, (part + 1) * share)))
            summed = _written(self.model, self.of.writes[part], rows) + summed
        assert isinstance(summed, Tensor)  # `parts_reaching` gives one at least
        return summed


def _in(model: Model, values: Tensor) -> Tensor:
    """Values on the model's device, in the dtype that products are computed in."""
    return values.to(device=model.device, dtype=dtype_of(model))


def _written(model: Model, site: Site, D: Float[Tensor, "latents width"]) -> Float[Tensor, "latents d_model"]:
    """What reaches the stream of rows that are written at a site."""
    if site.kind != "z":
        return D
    block = model.params.blocks[site.layer]
    return added(model.config, block.post_1, D @ _in(model, block.attention.W_O))


def added(config: ModelConfig, norm: Norm, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
    """Rows behind a norm, but for its 1/s and its bias; the same where there is no norm."""
    if not norm.weight.numel():
        return x
    return (x - x.mean(-1, keepdim=True) if centres(config) else x) * norm.weight


def as_directions(given: Any, argument: str) -> Any:
    """A tensor as it is, for directions of the stream; anything else as `as_dictionary` takes it."""
    return given if isinstance(given, Tensor) else as_dictionary(given, argument)


def reader(model: Model, given: Dictionary | Tensor, latents: LatentsLike, argument: str, choice: str) -> Reader:
    """What latents read. Raises InputError for a dictionary of another model, and for latents that it does not have."""
    return Reader(model, *_known(model, given, latents, argument, choice))


def writer(model: Model, given: Dictionary | Tensor, latents: LatentsLike, argument: str, choice: str) -> Writer:
    """What latents write. Raises InputError for a dictionary of another model, and for latents that it does not have."""
    return Writer(model, *_known(model, given, latents, argument, choice))


def _known(
    model: Model, given: Dictionary | Tensor, latents: LatentsLike, argument: str, choice: str
) -> tuple[Dictionary | Tensor, Int[Tensor, " latents"], bool]:
    """The dictionary as it reads and writes this model, which of its latents, and whether these are all."""
    if isinstance(given, Dictionary):
        given = fitted(model, given, argument)
        return given, chosen_latents(latents, given.d_sae, choice), latents is None
    if given.ndim != 2 or given.shape[1] != model.config.d_model or not len(given) or not given.is_floating_point():
        raise InputError(
            f"{argument}: a tensor {list(given.shape)} of {given.dtype}; expected directions of the stream, [directions, "
            f"{model.config.d_model}] of floating numbers, or a dictionary."
        )
    if latents is not None:
        raise InputError(f"{choice}: given beside a tensor of directions, which are all taken; expected None.")
    return given, torch.arange(len(given)), True


# ------------------------------------------------------------------------------------------ through heads


class OV(NamedTuple):
    """The OV circuits of some heads of a layer, side by side: they move `x @ W_V @ W_O`, the sum over the heads."""

    W_V: Float[Tensor, "d_model width"]
    """norm_1 folded."""
    W_O: Float[Tensor, "width d_model"]
    """The norm behind attention folded, where there is one."""
    place: Int[Tensor, " width"]
    """Where the heads lie in z."""


def ov_circuit(model: Model, layer: int, heads: Int[Tensor, " heads"]) -> OV:
    """The OV circuits of heads of a layer. Heads of a group share their values."""
    config, block = model.config, model.params.blocks[layer]
    within = torch.arange(config.d_head)
    place = (heads[:, None] * config.d_head + within).flatten().to(model.device)
    shared = (heads[:, None] // (config.n_heads // config.n_kv_heads) * config.d_head + within).flatten().to(model.device)
    W_V = fold_norm(config, block.norm_1, _in(model, block.attention.W_V.index_select(1, shared)))
    return OV(W_V, added(config, block.post_1, _in(model, block.attention.W_O.index_select(0, place))), place)


def in_head_space(ov: OV, site: Site | None, columns: Float[Tensor, "width latents"]) -> Float[Tensor, "head_width latents"]:
    """What readers read of the heads' values: of what these add to the stream, or of z itself."""
    return columns.index_select(0, ov.place) if site is not None and site.kind == "z" else ov.W_O @ columns


def chosen_heads(model: Model, attention: int | None, heads: Heads) -> Int[Tensor, " heads"] | None:
    """The numbers of the heads that are passed, each once and ascending; None where no attention is.

    Raises:
        InputError: for a layer or a head that the model does not have, and for heads of no layer.
    """
    if attention is None:
        if heads is not None:
            raise InputError(f"heads: {heads!r:.60} without their layer; give attention=layer too.")
        return None
    check_layer(model, attention, "attention")
    count = model.config.n_heads
    given = list(range(count)) if heads is None else list(heads) if isinstance(heads, Iterable) else [heads]
    if not given or not all(isinstance(head, Integral) and not isinstance(head, bool) and 0 <= head < count for head in given):
        raise InputError(f"heads: {heads!r:.60}; expected numbers from 0 to {count - 1}, as {model.name} has heads, or None for all.")
    return torch.tensor(sorted({int(head) for head in given}))


def check_layer(model: Model, layer: int, argument: str) -> None:
    """Raises InputError for a layer that the model does not have."""
    last = model.config.n_layers - 1
    if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer <= last:
        raise InputError(f"{argument}: {layer!r:.60}; expected a whole number from 0 to {last}, as {model.name} has layers.")


# ---------------------------------------------------------------------------------------- what reaches what


def parts_reaching(model: Model, source: Writer, target: Site | None, attention: int | None) -> list[int]:
    """Which of the sites that a source writes reach what a target reads, by their place among them; a cross-layer transcoder has several.

    Args:
        target: where the target reads; None is the end of the model, where the unembedding reads.
        attention: the layer whose heads are passed; None is straight through the stream.

    Raises:
        InputError: where none does, naming both places.
    """
    if attention is not None:
        check_passes(model, target, attention)
    if isinstance(source.of, Tensor):
        if attention is None and target is not None and read_when(model, target) is None:
            raise InputError(_of_a_component(target))
        return [0]
    writes = source.of.writes
    if target is not None and target.depth <= (first := min(writes, key=lambda site: site.depth)).depth:
        raise InputError(f"target: {target} is not after the source's {first}; weights lead forward. Choose a later target.")
    if attention is None:
        when = _end(model) if target is None else read_when(model, target)
        found = [part for part, site in enumerate(writes) if (site == target if when is None else _before(site, when))]
    else:
        found = [part for part, site in enumerate(writes) if _before(site, (attention, 0))]
    if not found:
        raise InputError(_unreached(model, source.of, target, attention))
    return found


def check_passes(model: Model, target: Site | None, attention: int) -> None:
    """Raises InputError where what reads at `target` does not see what attention of a layer writes."""
    if target is None:
        return
    if target.kind in ("z", "attn_out"):
        if attention == target.layer:
            return
        raise InputError(f"attention: {attention}, but {target} holds what layer {target.layer} gives; expected {target.layer}.")
    when = read_when(model, target)
    if when is None:
        raise InputError(_of_a_component(target))
    if behind_attention(attention) > when:
        raise InputError(f"attention: {attention}, which writes behind {target}, where the target reads. Choose an earlier layer.")


def _before(site: Site, when: Step) -> bool:
    """Whether the stream holds, when it is read, what is written at a site."""
    step = written_from(site)
    return step is not None and step <= when


def _end(model: Model) -> Step:
    return model.config.n_layers, 0


def _unreached(model: Model, source: Dictionary, target: Site | None, attention: int | None) -> str:
    """Why no site that a source writes leads to a target."""
    first = min(source.writes, key=lambda site: site.depth)
    if first.kind == "mlp_in":
        return f"source: {source.name} writes {first}, which the MLP alone reads, and not the stream. Take a dictionary of another place."
    if attention is not None:
        return f"attention: {attention}, which reads the stream before the source writes {first}. Choose a later layer."
    assert target is not None  # all other sites are in the stream at its end
    if read_when(model, target) is None:
        return _of_a_component(target)
    return f"target: {target} does not see the source's {first}: the MLP of {model.name} stands beside attention. Choose a later target."


def _of_a_component(target: Site) -> str:
    """Why what one component gives is not read off the stream."""
    if target.kind == "mlp_out":
        return f"target: it reads {target}, what the MLP gives, which no weight leads to. Take a dictionary of another place."
    return f"target: it reads {target}, what attention gives. Pass it: attention={target.layer}."


# ----------------------------------------------------------------------------------------------- within the budget


def fitting(budget: int, each: int, most: int, fixed: int = 0) -> int:
    """How many of `most` rows fit, of so many bytes each, beside what is held in any case. Raises BudgetError where none does."""
    if budget < fixed + each:
        raise BudgetError(f"budget: {budget:,} bytes are too few for one latent, which needs {fixed + each:,}. Raise the budget.")
    return min(most, (budget - fixed) // each)


def circuit_bytes(model: Model, heads: int) -> int:
    """Bytes that the OV circuits of so many heads take, and the copies of them while they are made."""
    return 6 * dtype_of(model).itemsize * model.config.d_model * heads * model.config.d_head


def require_numbers(values: Float[Tensor, "*any"], what: str) -> None:
    """Raises InputError where a product holds NaN or an infinity."""
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
        raise InputError(f"{what}: a weight is NaN or too large for {values.dtype}; expected finite numbers. Load it anew, or in float64.")
