"""What is read at the end of a path: a dictionary's active latents, chosen logits, a direction."""

from collections.abc import Callable, Iterable, Mapping, Set
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.finite import require_finite
from attrib.core.positions import Positions, chosen_positions
from attrib.core.sparse import columns_of, select
from attrib.core.types import Difference, Direction, InputError, Logits, Policy, Site, TokenLogits, TopLogits
from attrib.dictionaries.dictionary import Dictionary, encode_at, encode_sparse, wins_at
from attrib.dictionaries.fit import check_fit
from attrib.models.tokens import token_ids, token_strings
from attrib.models.transformer import Model, cap, check_end, normalise, unembed, width

LogitsLike = Any
"""A choice of logits; or a str or a list of str and ids, which are tokens, or an int, the number of the largest."""


class Read(NamedTuple):
    """What is read of the stream at a site: one number from the row at each target's position."""

    position: Int[Tensor, " targets"]
    latent: Int[Tensor, " targets"]
    function: Callable[[Float[Tensor, "targets width_b"]], Float[Tensor, " targets"]]
    labels: tuple[str, ...] = ()
    probability: Float[Tensor, " targets"] | None = None


def read_latents(
    target: Dictionary, true: Float[Tensor, "positions width_b"], reached: Float[Tensor, "positions width_b"], positions: Positions
) -> Read:
    """The target dictionary's latents that are active on the true activations.

    Args:
        reached: x_B along the path; differs from `true` where the source's error is left out, and then
            decides, for TopK, which targets still win their place.
    """
    found = encode_sparse(target, true)
    chosen = found if positions is None else select(found, _is_chosen(positions, len(true), true.device)[found.position])
    gate = torch.ones_like(chosen.latent, dtype=torch.bool)
    if reached is not true:
        gate = wins_at(target, reached, chosen.position, chosen.latent)

    def function(rows: Float[Tensor, "targets width_b"]) -> Float[Tensor, " targets"]:
        return encode_at(target, rows, torch.arange(len(chosen.latent), device=rows.device), chosen.latent, gate)

    return Read(chosen.position, chosen.latent, function)


def _is_chosen(positions: Positions, length: int, device: torch.device) -> Bool[Tensor, " positions"]:
    """Whether each position is chosen."""
    return torch.zeros(length, dtype=torch.bool, device=device).index_fill(0, chosen_positions(positions, length, device), True)


def read_logits(
    model: Model, what: TopLogits | TokenLogits | Difference, x: Float[Tensor, "positions d_model"], positions: Positions, policy: Policy
) -> Read:
    """Chosen logits, or a difference of them, at the last position or at `positions`; only their columns of W_U are touched.

    Args:
        x: the true last residual stream, from which the largest logits are chosen.
    """
    at = chosen_positions(-1 if positions is None else positions, len(x), x.device)
    if isinstance(what, Difference):
        return _read_difference(model, what, at, policy)
    else:
        logits = unembed(model, x.index_select(0, at))
        require_finite({"the logits": logits}, from_below=True, position=at, now=True)  # one that is none makes NaN of all probabilities
        log_probability = logits.log_softmax(-1)
        ids = [top_tokens(row, what) if isinstance(what, TopLogits) else token_ids(model, what.tokens, "logits") for row in log_probability]
        counts = torch.tensor([len(chosen) for chosen in ids], device=at.device)
        position, latent = at.repeat_interleave(counts), torch.cat(ids)
        columns, offsets = columns_of(model.params.W_U, latent), model.params.b_U.index_select(0, latent)
        labels = token_strings(model, latent)
        probability = torch.cat([row.index_select(0, chosen).exp() for row, chosen in zip(log_probability, ids, strict=True)])

    def function(rows: Float[Tensor, "targets d_model"]) -> Float[Tensor, " targets"]:
        raw = (normalise(model.config, model.params.norm_final, rows, policy) * columns).sum(-1) + offsets
        return cap(raw, model.config.logit_cap, policy)

    return Read(position, latent, function, labels, probability)


def _read_difference(model: Model, what: Difference, at: Int[Tensor, " targets"], policy: Policy) -> Read:
    """Mean logit of `a` minus mean logit of `b` at each position."""
    sides = [token_ids(model, side, "logits") for side in (what.a, what.b)]
    label = " - ".join(" + ".join(token_strings(model, side)) for side in sides)
    both = torch.cat(sides)
    W_U, b_U = columns_of(model.params.W_U, both).T, model.params.b_U.index_select(0, both)

    def function(rows: Float[Tensor, "targets d_model"]) -> Float[Tensor, " targets"]:
        raw = normalise(model.config, model.params.norm_final, rows, policy) @ W_U + b_U
        plus, minus = cap(raw, model.config.logit_cap, policy).split([len(side) for side in sides], dim=-1)
        return plus.mean(-1) - minus.mean(-1)

    nan = torch.full((len(at),), torch.nan, dtype=b_U.dtype, device=at.device)
    return Read(at, torch.full_like(at, -1), function, (label,) * len(at), nan)


def read_direction(what: Direction, x: Float[Tensor, "positions d_model"], positions: Positions) -> Read:
    """The stream dotted with a vector, at the last position or at `positions`."""
    at = chosen_positions(-1 if positions is None else positions, len(x), x.device)
    vector = what.vector.to(x)
    return Read(at, torch.full_like(at, -1), lambda rows: rows @ vector, ("direction",) * len(at), torch.full_like(x[at, 0], torch.nan))


def top_tokens(log_probability: Float[Tensor, " d_vocab"], what: TopLogits) -> Int[Tensor, " chosen"]:
    """Ids of the largest logits, largest first: `k` of them, or the fewest that reach `mass`."""
    top = log_probability.topk(min(what.k, len(log_probability)))
    if what.mass is None:
        return top.indices
    before = top.values.exp().cumsum(0) - top.values.exp()
    return top.indices[before < what.mass]


def as_logits(what: LogitsLike) -> Logits:
    """Which logits are meant, with plain ints and strings in it: a str, or a list of str and ids, is these tokens; an int alone is top-k.

    Raises:
        InputError: for what is no choice of logits.
    """
    match what:
        case TopLogits(k=k, mass=mass) if mass is None or (isinstance(mass, Real) and not isinstance(mass, bool)):
            return TopLogits(_plain_token(k, what), mass)
        case TokenLogits(tokens=tokens):
            return TokenLogits(tuple(_plain_tokens(tokens, what)))
        case Difference(a=a, b=b):
            sides = [tuple(_plain_tokens(side, what)) for side in (a, b)]
            return Difference(*(side[0] if len(side) == 1 else side for side in sides))
        case Direction(vector=vector, site=site):
            return what if isinstance(vector, Tensor) else Direction(_vector(vector), site)
    if isinstance(what, Integral) and not isinstance(what, bool):
        return TopLogits(int(what))
    return TokenLogits(tuple(_plain_tokens(what, what)))


def _vector(given: Any) -> Float[Tensor, " d"]:
    """A direction's vector from an array or a list of numbers."""
    try:
        made = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        made = None
    if made is None or made.dtype == torch.bool or made.is_complex():
        raise InputError(f"logits: Direction of a {type(given).__name__}; expected a vector of numbers, as a tensor, an array or a list.")
    return made if made.is_floating_point() else made.double()


def _plain_tokens(given: Any, what: Any) -> list[int | str]:
    if isinstance(given, Tensor | np.ndarray):
        given = given.tolist()
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping | Set)
    return [_plain_token(one, what) for one in given] if several else [_plain_token(given, what)]


def _plain_token(one: Any, what: Any) -> Any:
    if isinstance(one, str):
        return str(one)
    if isinstance(one, Tensor | np.generic) and one.ndim == 0:
        one = one.item()
    if isinstance(one, Integral) and not isinstance(one, bool):
        return int(one)
    shown = repr(what)
    raise InputError(
        f"logits: {shown if len(shown) < 80 else shown[:77] + '...'}; expected TopLogits(k, mass), TokenLogits([...]), Difference(a, b) or "
        "Direction(vector); or a string or a list of strings and token ids, which are these tokens; or a whole number, the k largest."
    )


def read_site(model: Model, target: Dictionary | Logits) -> Site:
    """Where a target is read. Raises InputError where it does not fit the model."""
    if isinstance(target, Dictionary):
        check_fit(model, target, "target")
        return target.site
    if isinstance(target, Direction):
        site = check_end(model, target.site or model.config.last, "logits")
        if target.vector.shape != (width(model.config, site),):
            raise InputError(
                f"logits: Direction of shape {list(target.vector.shape)}, but {site} of {model.name} has vectors of "
                f"{width(model.config, site)}."
            )
        return site
    if isinstance(target, TopLogits) and (target.k < 1 or (target.mass is not None and not 0 < target.mass <= 1)):
        raise InputError(f"logits: {target}; expected k >= 1 and, where given, 0 < mass <= 1.")
    if isinstance(target, TokenLogits):
        token_ids(model, target.tokens, "logits")
    if isinstance(target, Difference):
        token_ids(model, target.a, "logits")
        token_ids(model, target.b, "logits")
    return model.config.last
