"""Norms of latents' directions behind each head's OV circuit: how much of what a latent reads, or writes, each head could move.

    encoder   |W_V^h W_O^h e_j|      what head h lets the latent read of the stream before it
    decoder   |d_i W_V^h W_O^h|      what head h writes of what the latent has written

with e_j, d_i, W_V and W_O as in stream.py. Both are norms of vectors of d_head numbers: with W_V = Q R, |W_V u| = |R u|, so that no
vector of the stream's width is made for a head. (Its square by W_V^T W_V would lose half of the digits.)
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_model, takes
from attrib.core.room import memory_named
from attrib.core.shown import in_one_line
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph.stream import (
    LatentsLike,
    Reader,
    Writer,
    as_directions,
    check_layer,
    check_passes,
    circuit_bytes,
    dtype_of,
    fitting,
    in_head_space,
    ov_circuit,
    parts_reaching,
    reader,
    require_numbers,
    writer,
)
from attrib.models.transformer import Model


@in_one_line
class OVNorms(NamedTuple):
    """The norm of each latent's direction behind each head of each layer."""

    latent: Int[Tensor, " latents"]
    layer: Int[Tensor, " layers"]
    norm: Float[Tensor, "latents layers heads"]


@takes(model=as_model, dictionary=as_directions, budget=as_bytes)
@memory_named("taking norms behind heads", "Choose fewer latents.")
@torch.no_grad()
def ov_norms(
    model: Model,
    dictionary: Dictionary | Tensor,
    latents: LatentsLike = None,
    *,
    of: Literal["encoder", "decoder"] = "encoder",
    layers: int | Iterable[int] | None = None,
    budget: int = DEFAULT_BUDGET,
) -> OVNorms:
    """How large the directions of latents are behind the OV circuit of each head.

    Args:
        dictionary: a dictionary; or directions of the stream [directions, d_model], of which each counts as a latent.
        latents: which of its latents: numbers, a slice, or a mask. None is all.
        of: "encoder", what each head lets them read of the stream before it; or "decoder", what each head writes of what they have written.
        layers: whose heads. None is all those whose attention the encoder sees, or that see the decoder.
        budget: bytes of working memory, beside the parameters and the result.

    Raises:
        InputError: for a dictionary of another model; for a layer whose attention is not before what the encoder reads, or not behind what
            the decoder writes, or where there is none.
        BudgetError: where the budget is too small for one latent.
    """
    if of not in ("encoder", "decoder"):
        raise InputError(f"of: {of!r}; expected 'encoder' or 'decoder'.")
    end = (reader if of == "encoder" else writer)(model, dictionary, latents, "dictionary", "latents")
    at = _layers(model, end, layers)
    each = dtype_of(model).itemsize * (3 * end.width + 3 * model.config.n_heads * model.config.d_head + model.config.d_model)
    rows = fitting(budget, each, len(end.latent), circuit_bytes(model, model.config.n_heads))
    return OVNorms(end.latent, torch.tensor(at), torch.stack([_norms(model, end, layer, rows) for layer in at], dim=1))


def _layers(model: Model, end: Reader | Writer, given: int | Iterable[int] | None) -> list[int]:
    """The layers that are asked for, or all that lead to a reader or away from a writer."""
    if given is not None:
        layers = list(given) if isinstance(given, Iterable) else [given]
        for layer in layers:
            check_layer(model, layer, "layers")
            _check_leads(model, end, layer)
    else:
        layers = [layer for layer in range(model.config.n_layers) if _leads(model, end, layer)]
    if not layers:
        which = "before what its encoder reads" if isinstance(end, Reader) else "behind what its decoder writes"
        raise InputError(f"layers: none; {model.name} has no attention {which}. Take another dictionary.")
    return layers


def _check_leads(model: Model, end: Reader | Writer, layer: int) -> None:
    """Raises InputError where attention of a layer does not lead to a reader, or away from a writer."""
    if isinstance(end, Reader):
        check_passes(model, end.site, layer)
    else:
        parts_reaching(model, end, None, layer)


def _leads(model: Model, end: Reader | Writer, layer: int) -> bool:
    try:
        _check_leads(model, end, layer)
    except InputError:
        return False
    return True


def _norms(model: Model, end: Reader | Writer, layer: int, rows: int) -> Float[Tensor, "latents heads"]:
    """The norms of all latents behind all heads of a layer, so many latents at a time."""
    heads, count = model.config.n_heads, len(end.latent)
    circuit = ov_circuit(model, layer, torch.arange(heads))
    parts = parts_reaching(model, end, None, layer) if isinstance(end, Writer) else []
    outer = circuit.W_V if isinstance(end, Reader) else circuit.W_O.T
    R = torch.linalg.qr(outer.unflatten(1, (heads, -1)).transpose(0, 1), mode="r").R
    found = []
    for first in range(0, count, rows):
        last = min(first + rows, count)
        if isinstance(end, Reader):
            inner = in_head_space(circuit, end.site, end.columns(first, last))
        else:
            inner = (end.rows(first, last, parts) @ circuit.W_V).T
        norm = (R @ inner.unflatten(0, (heads, -1))).norm(dim=1).T
        require_numbers(norm, f"latents: those from {int(end.latent[first]):,} on")
        found.append(norm.cpu())
    return torch.cat(found)
