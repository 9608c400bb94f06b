"""Latents as targets: which ones are meant, of which of the dictionaries that were given, and at which positions."""

from collections.abc import Iterator, Sequence
from numbers import Real
from operator import index
from typing import Any, NamedTuple

from attrib.core.types import InputError, Site
from attrib.dictionaries.dictionary import Dictionary
from attrib.graph.neurons import NAME, Neurons
from attrib.models.transformer import Model

Given = Dictionary | Neurons
"""What has latents."""

EXPECTED = "expected Latents([(dictionary, latent, position), ...], weight), with the number, the name or the site of each dictionary"


class Latents(NamedTuple):
    """Latents as targets, each as (dictionary, latent, position), whether they are active there or not.

    What is read is the latent's activation where it is active, and elsewhere its pre-activation, which an activation rule has set to
    zero. A dictionary goes by its number among those given, by its name, or by the site that it reads; a position may count from the end.
    (`attrib.causal.Latents` are another thing: those of one dictionary that an edit changes.)
    """

    chosen: "Sequence[tuple[int | str | Site, int, int]]"
    weight: float = 1.0
    """By how much each counts when influence is asked for, beside the probabilities of logits."""


class LatentsOf(NamedTuple):
    """Latents of one dictionary, as targets."""

    number: int
    """The number of its set of targets: dictionaries have the first, and MLPs' own units those behind."""
    at: tuple[tuple[int, int], ...]
    """(position, latent) of each; a position may count from the end."""
    label: str
    """What stands before a latent's number."""
    weight: float


def as_latents(given: Latents) -> Latents:
    """The same in plain numbers and text. Raises InputError for what is no choice of latents."""
    if isinstance(given.weight, bool) or not isinstance(given.weight, Real) or not given.weight >= 0 or given.weight == float("inf"):
        raise InputError(f"targets: Latents(weight={given.weight!r}); expected a finite number of at least 0.")
    try:
        chosen = [_plain(*one) for one in given.chosen]
    except TypeError:
        raise InputError(f"targets: {given!r:.120}; {EXPECTED}.") from None
    if not chosen:
        raise InputError(f"targets: Latents of none; {EXPECTED}.")
    return Latents(tuple(chosen), float(given.weight))


def _plain(of: Any, latent: Any, position: Any) -> tuple[int | str, int, int]:
    if isinstance(of, str | Site):
        return str(of), _whole(latent), _whole(position)
    return _whole(of), _whole(latent), _whole(position)


def _whole(one: Any) -> int:
    if isinstance(one, bool):
        raise TypeError
    return index(one)  # which a tensor of one whole number has too


def latents_of(model: Model, outputs: Sequence[Any], given: Sequence[Given], lengths: Sequence[int]) -> tuple[Any, ...]:
    """The outputs, with latents by the dictionary that they are of.

    Args:
        given: dictionaries and MLPs' own units, as they were given.
        lengths: of all prompts, each of which has the positions.

    Raises:
        InputError: for a dictionary, a latent or a position that is not there, and for a latent that is chosen twice.
    """
    found: list[Any] = []
    for what in outputs:
        found += _of_each(model, what, given, lengths) if isinstance(what, Latents) else [what]
    _check_once([each for each in found if isinstance(each, LatentsOf)], lengths)
    return tuple(found)


def _of_each(model: Model, what: Latents, given: Sequence[Given], lengths: Sequence[int]) -> Iterator[LatentsOf]:
    """Those of each dictionary together, in the order in which dictionaries are named first."""
    by_number: dict[int, list[tuple[int, int]]] = {}
    for of, latent, position in what.chosen:
        number = _number(of, given)
        _check(model, (of, latent, position), given[number], lengths)
        by_number.setdefault(number, []).append((position, latent))
    sets = [n for n, one in enumerate(given) if isinstance(one, Dictionary)] + [
        n for n, one in enumerate(given) if isinstance(one, Neurons)
    ]
    for number, at in by_number.items():
        site, name = _called(given[number])
        is_alone = sum(_called(one)[0] == site for one in given) == 1
        yield LatentsOf(sets.index(number), tuple(at), site if is_alone else f"{site} of {name}", what.weight)


def _number(of: Any, given: Sequence[Given]) -> int:
    """Which of the dictionaries is meant."""
    if isinstance(of, int) and 0 <= of < len(given):
        return of
    found = [number for number, one in enumerate(given) if not _names(of).isdisjoint(_called(one))]
    if len(found) == 1:
        return found[0]
    known = "; ".join(f"{number} is {name} at {site}" for number, (site, name) in enumerate(map(_called, given))) or "there are none"
    raise InputError(f"targets: latents of {of!r}, which is {len(found) or 'none'} of the dictionaries; expected one of them: {known}.")


def _names(of: Any) -> set[Any]:
    """What a dictionary may be called by; a place may have several names."""
    try:
        return {of, str(Site.parse(of))}
    except InputError:
        return {of}


def reads_of(one: Given) -> Site:
    """The site that it reads."""
    return one.reads if isinstance(one, Neurons) else one.site


def _called(one: Given) -> tuple[str, str]:
    """The site that it reads, and its name."""
    return str(reads_of(one)), NAME if isinstance(one, Neurons) else one.name


def _check(model: Model, chosen: tuple[Any, int, int], one: Given, lengths: Sequence[int]) -> None:
    """Raises InputError for a latent that the dictionary has not, and a position that a prompt has not."""
    _, latent, position = chosen
    count = model.config.d_mlp if isinstance(one, Neurons) else one.d_sae
    if not 0 <= latent < count:
        raise InputError(f"targets: latent {latent} in {chosen}; expected 0 to {count - 1}, which {' '.join(reversed(_called(one)))} has.")
    for number, length in enumerate(lengths):
        if not -length <= position < length:
            raise InputError(
                f"targets: position {position} in {chosen} for prompt {number}, which has {length} tokens; "
                f"expected {-length} to {length - 1}."
            )


def _check_once(chosen: Sequence[LatentsOf], lengths: Sequence[int]) -> None:
    for length in lengths:
        seen = set()
        for each in chosen:
            for position, latent in each.at:
                if (one := (each.number, position % length, latent)) in seen:
                    raise InputError(f"targets: {each.label}[{latent}] at position {position % length} twice; expected each latent once.")
                seen.add(one)
