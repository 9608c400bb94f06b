"""Where a path ends: what is read there, at whatever value stands there, and the cotangent of each target."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp

from attrib.core.finite import require_finite
from attrib.core.positions import Positions
from attrib.core.types import Direction, Logits, Policy, Site
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.path import Targets
from attrib.engine.sweep.primal import BESIDE
from attrib.models.transformer import Model, enter, mlp
from attrib.paths.targets import Read, read_direction, read_latents, read_logits, read_site


class End(NamedTuple):
    """What is read at a path's end."""

    read: Read
    function: Callable[[Float[Tensor, "targets width_b"]], Float[Tensor, " targets"]]
    """Of each target's row of the value at `stop`."""
    targets: Targets


def read_end(
    model: Model,
    target: Dictionary | Logits,
    site: Site,
    stop: Site,
    value: Float[Tensor, "positions _"],
    true: Float[Tensor, "positions width_b"],
    reached: Float[Tensor, "positions width_b"],
    positions: Positions,
    policy: Policy,
) -> End:
    """The targets of a path, and the cotangent of each.

    Args:
        site, value: where they are read, and the true value there.
        stop, true: where the path ends, which differs in a parallel block (see `stop_site`), and the true value there.
        reached: the value at `stop` along the path, the same tensor where that is the true one.
    """
    reached_site = value if reached is true or not isinstance(target, Dictionary) else beside(model, site, stop, reached, policy)
    return end_of(model, read_at(model, target, value, true, reached_site, positions, policy), site, stop, reached, policy)


def read_at(
    model: Model,
    target: Dictionary | Logits,
    value: Float[Tensor, "positions _"],
    true: Float[Tensor, "positions width_b"],
    reached: Float[Tensor, "positions _"],
    positions: Positions,
    policy: Policy,
) -> Read:
    """What is read at a site whose true value is `value`, where `reached` stands there."""
    if isinstance(target, Dictionary):
        return read_latents(target, value, reached, positions)
    if isinstance(target, Direction):
        return read_direction(target, value, positions)
    return read_logits(model, target, true, positions, policy)


def end_of(model: Model, read: Read, site: Site, stop: Site, reached: Float[Tensor, "positions width_b"], policy: Policy) -> End:
    """What is read at a site, as targets at the place where their paths end.

    Args:
        stop, reached: where the paths end, and the value there.

    Raises:
        NotFiniteError: where a target is NaN or infinite; minus infinity may be a logit.
    """

    def function(rows: Float[Tensor, "targets width_b"]) -> Float[Tensor, " targets"]:
        return read.function(beside(model, site, stop, rows, policy))

    values, pull, *_ = vjp(function, reached.index_select(0, read.position))
    require_finite({f"the targets at {site}": values}, from_below=True, position=read.position)
    (cotangent,) = pull(torch.ones_like(values))  # each target reads its own row, so one pull gives every row
    return End(read, function, Targets(read.position, read.latent, values, cotangent))


def stop_site(model: Model, target: Dictionary | Logits, written_by: Iterable[Dictionary | None] = ()) -> Site:
    """Where the path to a target ends.

    In a parallel block what the MLP reads and writes does not depend on the attention beside it: it is read off
    resid_pre. But where a dictionary writes between the two, what it writes is on the way, and the path ends where the target reads.

    Args:
        written_by: the source and the cuts.
    """
    site = read_site(model, target)
    if not (model.config.parallel and site.kind in BESIDE):
        return site
    before = Site(site.layer, "resid_pre")
    places = (at for d in written_by if d is not None for at in d.writes)
    is_written = any(at.kind in BESIDE and before.depth < at.depth <= site.depth for at in places)
    return site if is_written else before


def beside(model: Model, site: Site, stop: Site, rows: Float[Tensor, "rows _"], policy: Policy) -> Float[Tensor, "rows _"]:
    """The value at `site` of a parallel block's MLP, from resid_pre."""
    if site == stop:
        return rows
    entered = enter(model.config, model.params.blocks[site.layer].norm_2, rows, policy)
    return entered if site.kind == "mlp_in" else mlp(model, site.layer, entered, policy)
