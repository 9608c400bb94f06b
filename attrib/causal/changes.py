"""Edits found good for one prompt of a model with dictionaries, and what they make of the values that the pass has there.

A `Change` says at which place of the pass it works (a dictionary's latents, the error of a place, the value of one), on which
columns, at which positions, and what becomes of v, in the symbols of edits.py. `changed` applies it to the rows of some positions, out
of place, for every transform of torch.func.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from attrib.causal.edits import Ablate, Add, Edit, Head, Latents, Scale, Set, name_of, text_of
from attrib.core.positions import positions_in
from attrib.core.types import ErrorAt, InputError, Site
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model, check_end, place, width

Place = int | Site | ErrorAt
"""Where in the pass a change works: the latents of a dictionary, by its number; what stands at a place; the error of a place."""


class Edited(NamedTuple):
    """What an edit names, in terms of the model and the dictionaries of a call."""

    place: Place
    columns: tuple[int, ...] | None
    """Which columns of what stands there; None is all."""
    shape: tuple[int, ...]
    """What one position has, as the edit sees it: () for a single latent."""


class Change(NamedTuple):
    """One edit, found good for one prompt; or for several whose rows stand one behind the other."""

    place: Place
    columns: tuple[int, ...] | None
    shape: tuple[int, ...]
    positions: tuple[int, ...]
    """Ascending, each once."""
    become: Callable[[Tensor], Any]
    """From v to v', which is to broadcast to v's shape."""
    text: str
    """The edit, for errors."""


# --------------------------------------------------------------------------------------- what is meant


def edited_by(model: Model, dictionaries: Sequence[Dictionary], what: Any, argument: str = "edits") -> Edited:
    """What an edit, or whoever wants to read a value, names.

    Raises:
        InputError: for a dictionary that is not among those of the call, a latent, a head or a site that is not there.
    """
    match what:
        case Latents(dictionary=of, latents=latents):
            number = number_of(of, dictionaries, argument)
            d_sae = dictionaries[number].d_sae
            if latents is None:
                return Edited(number, None, (d_sae,))
            chosen = _whole(latents, d_sae, f"latents of {dictionaries[number].name}", argument)
            return Edited(number, chosen, () if isinstance(latents, Integral) else (len(chosen),))
        case Head(layer=layer, heads=heads):
            config = model.config
            (in_layer,) = _whole(layer, config.n_layers, f"layers of {model.name}", argument)
            chosen = _whole(heads, config.n_heads, f"heads of {model.name}", argument)
            columns = tuple(head * config.d_head + d for head in chosen for d in range(config.d_head))
            shape = (config.d_head,) if isinstance(heads, Integral) else (len(chosen), config.d_head)
            return Edited(Site(in_layer, "z"), columns, shape)
        case ErrorAt(site=site):
            at = check_end(model, site, argument)
            written = {place(model, w): str(w) for d in dictionaries for w in d.writes}
            if place(model, at) not in written:
                known = ", ".join(written.values()) or "none, as no dictionary was given"
                raise InputError(f"{argument}: {name_of(what)}, where no dictionary writes; expected one of {known}.")
            return Edited(ErrorAt(place(model, at)), None, (width(model.config, at),))
        case Site() | str():
            at = check_end(model, what, argument)
            return Edited(place(model, at), None, (width(model.config, at),))
    raise InputError(f"{argument}: {type(what).__name__}; expected a site, Latents, Head or ErrorAt.")


def number_of(of: Any, dictionaries: Sequence[Dictionary], argument: str) -> int:
    """Which of the dictionaries is meant by itself, its number, its name, or the site that it reads. Raises InputError."""
    found = [number for number, d in enumerate(dictionaries) if _is_called(d, number, of)]
    if isinstance(of, Dictionary) and len(found) > 1:
        found = [number for number in found if dictionaries[number] is of]
    if len(found) == 1:
        return found[0]
    known = "; ".join(f"{number} is {d.name} at {d.site}" for number, d in enumerate(dictionaries)) or "there are none"
    shown = of.name if isinstance(of, Dictionary) else of
    raise InputError(
        f"{argument}: latents of {shown!r}, which is {len(found) or 'none'} of the dictionaries of the call; expected one of them: {known}."
    )


def _is_called(one: Dictionary, number: int, of: Any) -> bool:
    if isinstance(of, Dictionary):  # a dictionary that was brought into the model's dtype is not the same object
        return one is of or (one.name, one.site, one.writes, one.d_sae) == (of.name, of.site, of.writes, of.d_sae)
    if isinstance(of, Integral):
        return not isinstance(of, bool) and of == number
    names = {str(of)}
    with suppress(InputError):  # what is no site's name may be a dictionary's
        names.add(str(Site.parse(of)))
    return not names.isdisjoint((one.name, str(one.site)))


def _whole(given: Any, count: int, what: str, argument: str) -> tuple[int, ...]:
    """Whole numbers below a count, each once."""
    given = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    numbers = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    for one in numbers:
        if isinstance(one, bool) or not isinstance(one, Integral) or not 0 <= int(one) < count:
            raise InputError(f"{argument}: {one!r} among the {what}; expected whole numbers from 0 to {count - 1}.")
    if len({*numbers}) < max(1, len(numbers)):
        raise InputError(f"{argument}: {numbers} of the {what}; expected at least one, and each once.")
    return tuple(map(int, numbers))


# ---------------------------------------------------------------------------------------- for one prompt


def changes_of(model: Model, dictionaries: Sequence[Dictionary], edits: Sequence[Edit], length: int, number: int = 0) -> tuple[Change, ...]:
    """The edits as changes of one prompt, in their order.

    Args:
        length, number: how many tokens the prompt has, and its number among those of the call, for errors.

    Raises:
        InputError: for what is not there (see `edited_by`), positions that the prompt has not, values that are no finite numbers, and
            an ablation whose values are still to be taken from other prompts.
    """
    found = []
    for nth, edit in enumerate(edits):
        argument = "edits" if len(edits) == 1 else f"edits[{nth}]"
        edited = edited_by(model, dictionaries, edit.what, argument)
        try:
            positions = tuple(sorted({*positions_in(edit.positions, length, number)}))
        except InputError as error:
            raise InputError(f"{argument}: {text_of(edit)}: {error}") from error
        found.append(Change(*edited, positions, _become(edit, argument), f"{argument}, {text_of(edit)}"))
    return tuple(found)


def _become(edit: Edit, argument: str) -> Callable[[Tensor], Any]:
    match edit:
        case Set(value=value) if callable(value):
            return lambda v: value(v.clone())  # functions written as hooks change what they are given
        case Set(value=value):
            values = _values(value, edit, argument)
            return lambda v: values
        case Scale(factor=factor):
            factors = _values(factor, edit, argument)
            return lambda v: v * factors
        case Add(value=value):
            values = _values(value, edit, argument)
            return lambda v: v + values
        case Ablate(how="zero"):
            return torch.zeros_like
    raise InputError(f"{argument}: {text_of(edit)} has no values yet; `attrib.causal.settled` takes them from its prompts.")


def together(of_prompts: Sequence[Sequence[Change]], starts: Sequence[int]) -> tuple[Change, ...]:
    """The same edits of several prompts, as changes of all their rows.

    Each prompt's values are made from its own rows, so an edit is in a prompt what it is there alone.

    Args:
        of_prompts: for each prompt what `changes_of` makes of the edits.
        starts: the first row of each prompt.
    """
    return tuple(_together(several, starts) for several in zip(*of_prompts, strict=True)) if len(starts) > 1 else tuple(of_prompts[0])


def _together(several: Sequence[Change], starts: Sequence[int]) -> Change:
    one, sizes = several[0], [len(each.positions) for each in several]

    def become(v: Tensor) -> Tensor:
        parts = v.split(sizes, dim=-1 - len(one.shape))
        return torch.cat([_fitted(each, part) for each, part in zip(several, parts, strict=True)], -1 - len(one.shape))

    positions = tuple(start + position for each, start in zip(several, starts, strict=True) for position in each.positions)
    return one._replace(positions=positions, become=become)


def _values(given: Any, edit: Edit, argument: str) -> Any:
    """A number, or a tensor of real ones."""
    if isinstance(given, Real) and not isinstance(given, bool):
        number = float(given)
        if not math.isfinite(number):
            raise InputError(f"{argument}: {text_of(edit)}; expected a finite number.")
        return number
    if isinstance(given, list | tuple | np.ndarray | np.generic):
        with suppress(TypeError, ValueError, RuntimeError):  # said below
            given = torch.as_tensor(given)
    if not isinstance(given, Tensor) or given.dtype == torch.bool or given.is_complex():
        came = str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
        raise InputError(f"{argument}: {came} as the value of {name_of(edit.what)}; expected a number, or a tensor of numbers.")
    if not is_functorch_wrapped_tensor(given) and not bool(given.isfinite().all()):
        raise InputError(f"{argument}: NaN or infinity in the value of {name_of(edit.what)}; expected finite numbers.")
    return given


# ------------------------------------------------------------------------------------------ in the pass


def changed(change: Change, value: Float[Tensor, "*batch rows width"]) -> Float[Tensor, "*batch rows width"]:
    """What a change makes of a value.

    Args:
        value: what stands at `change.place`, one row for each position.

    Raises:
        InputError: for values that do not broadcast to what is edited, and functions that give no tensor that does.
    """
    rows = change.positions
    part = value if len(rows) == value.shape[-2] else value.index_select(-2, _index(rows, value))
    v = part if change.columns is None else part.index_select(-1, _index(change.columns, value))
    shape = v.shape[:-1] + change.shape
    new = _fitted(change, v.reshape(shape)).reshape(v.shape)
    if change.columns is not None:
        new = _copied(part, -1, change.columns, new)
    return new if len(rows) == value.shape[-2] else _copied(value, -2, rows, new)


def _fitted(change: Change, v: Tensor) -> Tensor:
    expected = f"expected numbers that broadcast to {list(v.shape)}: {_said(change.shape)}"
    try:
        new = change.become(v)
    except RuntimeError as error:
        raise InputError(f"{change.text}: {str(error).splitlines()[0]}; {expected}.") from error
    if isinstance(new, Real) and not isinstance(new, bool):
        new = torch.tensor(float(new), dtype=torch.float64, device=v.device)
    if not isinstance(new, Tensor) or new.dtype == torch.bool or new.is_complex():
        raise InputError(f"{change.text}: {type(new).__name__}; {expected}.")
    try:
        new = new.to(v).expand(v.shape)
    except RuntimeError as error:
        raise InputError(f"{change.text}: shape {list(new.shape)}; {expected}.") from error
    if not is_functorch_wrapped_tensor(new) and not bool(new.isfinite().all()):
        dtype = str(v.dtype).removeprefix("torch.")
        raise InputError(f"{change.text}: it makes NaN or infinity of what stands there; expected finite numbers, in {dtype}.")
    return new


def _said(shape: tuple[int, ...]) -> str:
    return "[positions" + "".join(f", {size}" for size in shape) + "], of the positions that are edited"


def _copied(into: Tensor, dim: int, at: Sequence[int], new: Tensor) -> Tensor:
    """`into` with `new` at some places of a dimension; out of place, and for each member of a vmap over either."""
    order = torch.full((into.shape[dim],), -1)
    order[list(at)] = torch.arange(len(at))
    kept = torch.arange(into.shape[dim])
    source = torch.where(order < 0, kept, order + into.shape[dim]).to(into.device)
    return torch.cat([into, new.to(into.dtype)], dim=dim).index_select(dim, source)


def _index(at: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(list(at), device=like.device)
