"""An MLP's own hidden units as a dictionary: what a unit is, is its activation, and it writes its row of W_out.

    hidden = act(x W_in + b_in),  or  act(x W_gate + b_gate) · (x W_in + b_in)        mlp_out = N(hidden W_out + b_out) + b_post

with N the norm behind the MLP, held at its primal scale, where a family has one. All units of a smooth activation are active, so the
largest of each position are nodes, by what they add to the stream, and the others together are the error of the place.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.core.sparse import columns_of
from attrib.core.types import EXACT, InputError, Policy, Site, SparseLatents
from attrib.engine.path import Sources
from attrib.graph.constants import behind_norm
from attrib.models.transformer import Model, mlp_hidden
from attrib.paths.targets import Read

NAME = "neurons"


class Neurons(NamedTuple):
    """The hidden units of a layer's MLP, in the place of a dictionary of `build`.

    `k` is how many of each position are nodes, those that write most; None is all that are not zero.
    """

    layer: int
    k: int | None = 64

    @property
    def reads(self) -> Site:
        """What enters the MLP's matrices."""
        return Site(self.layer, "mlp_in")

    @property
    def writes(self) -> Site:
        """What the MLP adds to the stream."""
        return Site(self.layer, "mlp_out")


def neurons_named(name: str) -> Neurons | None:
    """The units that `neurons:LAYER` names, or None for a dictionary's name. Raises InputError where no layer is named."""
    kind, colon, layer = name.partition(":")
    if (kind, colon) != (NAME, ":"):
        return None
    if not (layer.isascii() and layer.isdecimal() and len(layer) < 10):
        raise InputError(f"dictionaries: {name[:60]!r}; expected neurons:LAYER with a number, as neurons:8.")
    return Neurons(int(layer))


def check_neurons(model: Model, given: Neurons, argument: str) -> Neurons:
    """Raises InputError for a layer that the model does not have, or a number of units that is none."""

    def is_whole(number: Any, least: int) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and number >= least

    if not model.config.has_mlps:
        raise InputError(f"{argument}: {given}; {model.name} has no MLPs. Give dictionaries.")
    if not is_whole(given.layer, 0) or given.layer >= model.config.n_layers:
        raise InputError(f"{argument}: {given}; expected a layer of {model.name}, from 0 to {model.config.n_layers - 1}.")
    if given.k is not None and not is_whole(given.k, 1):
        raise InputError(f"{argument}: {given}; expected k of at least 1, or None for all units that are not zero.")
    return given


def hidden_units(model: Model, layer: int, x: Float[Tensor, "positions d_model"]) -> Float[Tensor, "positions d_mlp"]:
    """Every unit's activation, from what enters the MLP's matrices."""
    p = model.params.blocks[layer].mlp
    return mlp_hidden(model.config, x @ p.W_in + p.b_in, x @ p.W_gate + p.b_gate if model.config.gated else None)


def active_units(model: Model, what: Neurons, hidden: Float[Tensor, "positions d_mlp"]) -> SparseLatents:
    """Those that are nodes, by (position, unit)."""
    is_node = hidden != 0
    if what.k is not None and what.k < hidden.shape[1]:
        size = hidden.abs() * model.params.blocks[what.layer].mlp.W_out.norm(dim=1)
        is_node &= torch.zeros_like(is_node).scatter(1, size.topk(what.k, dim=1).indices, True)
    position, unit = is_node.nonzero(as_tuple=True)
    return SparseLatents(position, unit, hidden[position, unit])


def unit_sources(model: Model, what: Neurons, units: SparseLatents, hidden: Float[Tensor, "positions d_mlp"]) -> Sources:
    """What each writes at mlp_out."""
    block = model.params.blocks[what.layer]
    raw = hidden @ block.mlp.W_out + block.mlp.b_out
    rows = block.mlp.W_out.index_select(0, units.latent)
    return Sources(*units, behind_norm(model, block.post_2, raw.index_select(0, units.position), rows))


def unit_constants(
    model: Model, what: Neurons, units: SparseLatents, hidden: Float[Tensor, "positions d_mlp"]
) -> tuple[Float[Tensor, "positions d_model"], Float[Tensor, "positions d_model"]]:
    """What the units that are no nodes write together, and what the MLP adds of its own."""
    block = model.params.blocks[what.layer]
    raw = hidden @ block.mlp.W_out + block.mlp.b_out
    others = hidden.index_put((units.position, units.latent), torch.zeros_like(units.value))
    bias = behind_norm(model, block.post_2, raw, block.mlp.b_out.expand_as(raw))
    if model.config.post_norm:
        bias = bias + block.post_2.bias
    return behind_norm(model, block.post_2, raw, others @ block.mlp.W_out), bias


def read_units(model: Model, what: Neurons, units: SparseLatents, policy: Policy = EXACT) -> Read:
    """Their activations, from what enters the MLP's matrices; under "relp" by its linear map, which has the same value."""
    p = model.params.blocks[what.layer].mlp

    def through(rows: Float[Tensor, "units d_model"], W: Float[Tensor, "d_model d_mlp"], b: Float[Tensor, " d_mlp"]) -> Tensor:
        return (rows * columns_of(W, units.latent)).sum(-1) + b.index_select(0, units.latent)

    def function(rows: Float[Tensor, "units d_model"]) -> Float[Tensor, " units"]:
        gate = through(rows, p.W_gate, p.b_gate) if model.config.gated else None
        return mlp_hidden(model.config, through(rows, p.W_in, p.b_in), gate, policy)

    return Read(units.position, units.latent, function)
