"""Going through a corpus: one forward pass for each prompt, what each dictionary makes of it, and a tally that does not grow with it.

A prompt is computed alone, so it gives the same scores whichever prompts came before it, and a survey of parts is one of the whole.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count as from_number
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_dictionaries, as_model, takes
from attrib.attribution.needs import constant
from attrib.core.finite import of_prompt, require_finite
from attrib.core.room import memory_named
from attrib.core.types import BudgetError, InputError, Progress, natural
from attrib.dictionaries.dictionary import Dictionary, encode_sparse
from attrib.dictionaries.fit import fitted
from attrib.graph.corpus import one_by_one
from attrib.graph.stream import LatentsLike, chosen_latents
from attrib.latents.bins import BANDS, BINS
from attrib.latents.spans import Spans, spans_of, united
from attrib.latents.surveyed import Asked, LatentSurvey, Survey
from attrib.latents.tally import Limits, Read, Tally, added, blank, tallied
from attrib.models.tokens import TokensLike, token_ids, token_strings
from attrib.models.transformer import Model
from attrib.passes.capture import capture
from attrib.stats.scoring import Score, scored

DEFAULT_BUDGET = 4 << 30
"""Bytes of a survey at its fullest."""
ROWS, PLACES = 1 << 18, 1 << 14
"""Scores and places that are gathered before they are tallied."""


@takes(model=as_model, dictionaries=as_dictionaries, budget=as_bytes)
@memory_named("surveying latents", "Survey fewer latents, or keep fewer places of each.")
@torch.no_grad()
def survey(
    model: Model,
    dictionaries: Dictionary | Sequence[Dictionary],
    tokens: TokensLike | Iterable[Any],
    *,
    score: Score = "activation",
    latents: LatentsLike = None,
    together: LatentsLike | bool = False,
    ignore: int | str | Sequence[int | str] | None = None,
    special: bool = True,
    skip: int = 0,
    top: int = 20,
    per_band: int = 4,
    context: tuple[int, int] = (16, 8),
    seed: int = 0,
    numbers: Iterable[int] | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> Survey:
    """What the latents of dictionaries are over a corpus: how often and how strongly they are active, and where, with examples in context.

    Args:
        dictionaries: one, or several, which share one pass for each prompt.
        tokens: prompts, as everywhere; or an iterator of them, which is gone through once, prompt by prompt.
        score: "activation"; "pre_activation", before the activation rule; or "decoder", the input less b_dec along the latent's decoder
            row, of dictionaries that write what they read. The last two are scores at every place, and so are slow for many latents.
        latents: which latents of each dictionary: numbers, a slice, or a mask. None is all.
        together: latents of which it is counted at how many places any two are both above zero, a square of numbers for each
            dictionary; True is all that are surveyed.
        ignore: tokens whose places do not count, by id or string.
        special: whether the places of the tokenizer's special tokens count.
        skip: how many first positions of each prompt do not count.
        top: places of largest score that are kept of each latent.
        per_band: places that are kept, as a uniform sample, of each latent and octave of its scores.
        context: how many tokens are kept before and behind each place.
        seed: of the sample.
        numbers: the number of each prompt in its data set; None counts from 0. Surveys that are merged have no number in common.
        budget: bytes that the survey may take at its fullest, with what it takes to add to it.
        progress: called with (prompts done, -1).

    Raises:
        InputError: where a dictionary does not fit the model, an argument makes no sense, or no place is left.
        BudgetError: where the survey could become larger than `budget`.
        NotFiniteError: where a prompt gives NaN or infinity.
    """
    options = {"score": score, "latents": latents, "together": together, "ignore": ignore, "special": special, "skip": skip}
    made = gathered(
        model,
        dictionaries,
        tokens,
        numbers,
        progress,
        options | {"top": top, "per_band": per_band, "context": context, "seed": seed},
        budget,
    )
    first = made.parts[0]
    if not first.prompts:
        raise InputError("tokens: no prompts given; expected at least one.")
    if not first.places:
        raise InputError(f"ignore: {ignore!r}, with skip={skip} and special={special}, leaves no place of these prompts; expected some.")
    return made


def gathered(
    model: Model,
    dictionaries: Dictionary | Sequence[Dictionary],
    tokens: Any,
    numbers: Iterable[int] | None,
    progress: Progress | None,
    options: Mapping[str, Any],
    budget: int,
) -> Survey:
    """As `survey`, with its options by name; of no prompts, or none that count, a survey of nothing, which can be merged."""
    limits = _limits(*(options[name] for name in ("top", "per_band", "context", "seed")))
    ignored, skipped = _ignored(model, options["ignore"], options["special"]), _whole("skip", options["skip"], 0)
    score, latents, together = (options[name] for name in ("score", "latents", "together"))
    several = (dictionaries,) if isinstance(dictionaries, Dictionary) else dictionaries
    gatherers = [_gatherer(model, d, number, score, latents, together, ignored, skipped, limits) for number, d in enumerate(several)]
    _check_gatherers(gatherers, budget)
    sites, seen = [gatherer.dictionary.site for gatherer in gatherers], 0
    read: list[int] = []
    given = _numbers(numbers)
    for ids in one_by_one(model, tokens):
        if (number := next(given, None)) is None:
            raise InputError(f"numbers: {len(read)} for more prompts; expected one for each.")
        with of_prompt(number):
            found = capture(model, ids, sites)
            counts = (~torch.isin(ids.cpu(), torch.tensor(ignored))) & (torch.arange(len(ids)) >= skipped)
            for gatherer in gatherers:
                gatherer.gather(found[gatherer.dictionary.site], number, ids.cpu().numpy(), counts.numpy())
        read.append(number)
        seen += len(ids)
        if progress is not None:
            progress(len(read), -1)
    if numbers is not None and next(given, None) is not None:
        raise InputError(f"numbers: more than the {len(read)} prompts; expected one for each.")
    spans = spans_of(read)
    return ordered(gatherer.done(spans, seen) for gatherer in gatherers)


def _check_gatherers(gatherers: "Sequence[_Gatherer]", budget: int) -> None:
    """Raises InputError for no dictionaries or one that is there twice, and BudgetError where they could take too much."""
    names = [gatherer.asked.dictionary for gatherer in gatherers]
    if not names:
        raise InputError("dictionaries: none given; expected at least one.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"dictionaries: {twice!r} is there twice; expected each once, under a name of its own.")
    if (needed := sum(gatherer.most for gatherer in gatherers)) > budget:
        raise BudgetError(
            f"budget: {budget:,} bytes, and the survey could take {needed:,}; expected room for it. Raise the budget, survey fewer "
            "latents, or keep fewer places with top= and per_band=."
        )


def ordered(parts: Iterable[LatentSurvey]) -> Survey:
    """Parts in the order of their sites and names."""
    return Survey(tuple(sorted(parts, key=lambda part: (natural(part.asked.site), natural(part.asked.dictionary)))))


def merge(*surveys: Survey) -> Survey:
    """Surveys of different prompts as one, the same bit for bit in any order and grouping.

    Raises:
        InputError: where they differ in what they were asked for, or have a prompt in common.
    """
    if not surveys:
        raise InputError("surveys: none given; expected at least one.")
    names = [[part.asked.dictionary for part in one] for one in surveys]
    if wrong := next((other for other in names if other != names[0]), None):
        raise InputError(f"surveys: one is of {', '.join(names[0])} and one of {', '.join(wrong)}; expected the same dictionaries.")
    return Survey(tuple(_merged(parts) for parts in zip(*surveys, strict=True)))


def _merged(parts: Sequence[LatentSurvey]) -> LatentSurvey:
    first = parts[0]
    for other in parts[1:]:
        _check_same(first, other)
    tally = first.tally
    for other in parts[1:]:
        tally = added(tally, other.tally, first.latents, first.asked.limits)
    strings: dict[int, str] = {}
    for part in parts:
        strings |= part.strings
    return replace(
        first,
        prompts=united(span for part in parts for span in part.prompts),
        tokens=sum(part.tokens for part in parts),
        places=sum(part.places for part in parts),
        tally=tally,
        strings={number: strings[number] for number in _tokens_of(tally) if number in strings},
    )


def _check_same(first: LatentSurvey, other: LatentSurvey) -> None:
    for name in first.asked.__dataclass_fields__:
        one, two = getattr(first.asked, name), getattr(other.asked, name)
        if one != two:
            raise InputError(f"surveys: {name} is {one!r:.80} in one and {two!r:.80} in another; {_EXPECTED}")
    for name in ("latents", "chosen"):
        if not np.array_equal(getattr(first, name), getattr(other, name)):
            raise InputError(f"surveys: they are of different {name}; {_EXPECTED}")


_EXPECTED = "expected surveys that differ in prompts alone."


def _tokens_of(tally: Tally) -> list[int]:
    """The ids of all tokens of the examples."""
    found = np.unique(np.concatenate([tally.top.tokens.ravel(), tally.sample.tokens.ravel()]))
    return [int(number) for number in found if number >= 0]


# ------------------------------------------------------------------------------------------ one dictionary


@dataclass
class _Gatherer:
    """What is gathered of one dictionary while a corpus is gone through."""

    model: Model
    dictionary: Dictionary
    asked: Asked
    latents: Int[Tensor, " latents"]
    chosen: np.ndarray
    """Counted among the latents that are surveyed."""
    tally: Tally
    most: int
    """Bytes at the fullest."""

    def __post_init__(self) -> None:
        self.places = 0
        self._waiting: list[Read] = []
        self._place = torch.full((self.dictionary.d_sae,), -1)
        self._place[self.latents] = torch.arange(len(self.latents))
        self._is_all = len(self.latents) == self.dictionary.d_sae

    def gather(self, x: Float[Tensor, "positions d_in"], number: int, ids: np.ndarray, counts: np.ndarray) -> None:
        """A prompt's scores."""
        place, at, value = self._scores(x)
        whole = np.full(len(ids), number, np.int64), np.arange(len(ids)), ids, counts
        self._waiting.append(Read(*whole, place.cpu().numpy(), at.cpu().numpy(), value.cpu().to(getattr(torch, self.asked.dtype)).numpy()))
        self.places += int(counts.sum())
        if sum(len(one.value) for one in self._waiting) >= ROWS or sum(len(one.prompt) for one in self._waiting) >= PLACES:
            self._flush()

    def _scores(self, x: Float[Tensor, "positions d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """The scores that are not zero: their places, their latents as they are counted here, and the scores, in this order."""
        if self.asked.score == "activation":
            active = encode_sparse(self.dictionary, x)
            if self._is_all:
                return active.position, active.latent, active.value
            at = self._place.to(active.latent.device)[active.latent]
            meant = at >= 0
            return active.position[meant], at[meant], active.value[meant]
        dense = scored(self.dictionary, x, self.latents, self.asked.score)
        require_finite({f"the scores of {self.dictionary.name}": dense})
        place, at = dense.nonzero(as_tuple=True)
        return place, at, dense[place, at]

    def _flush(self) -> None:
        begins = np.cumsum([0, *(len(one.prompt) for one in self._waiting)])
        moved = [one._replace(place=one.place + begin) for one, begin in zip(self._waiting, begins, strict=False)]
        self._waiting = []
        if moved:
            read = Read(*(np.concatenate(column) for column in zip(*moved, strict=True)))
            self.tally = tallied(self.tally, read, self.latents.numpy(), self.chosen, self.asked.limits)

    def done(self, prompts: Spans, tokens: int) -> LatentSurvey:
        """All that was gathered."""
        self._flush()
        ids = _tokens_of(self.tally)
        strings = (
            {}
            if self.model.tokenizer is None
            else dict(zip(ids, token_strings(self.model, torch.tensor(ids, dtype=torch.int64)), strict=True))
        )
        latents = self.latents.numpy()
        return LatentSurvey(self.asked, latents, latents[self.chosen], prompts, tokens, self.places, self.tally, strings)


def _gatherer(
    model: Model,
    given: Dictionary,
    number: int,
    score: Score,
    latents: LatentsLike,
    together: LatentsLike | bool,
    ignored: tuple[int, ...],
    skip: int,
    limits: Limits,
) -> _Gatherer:
    if score not in get_args(Score):
        raise InputError(f"score: {score!r}; expected one of {', '.join(get_args(Score))}.")
    d = constant(fitted(model, given, f"dictionaries[{number}]"))
    if score == "decoder" and d.writes != (d.site,):
        raise InputError(f"score: 'decoder', but {d.name} reads {d.site} and writes {', '.join(map(str, d.writes))}; expected one place.")
    surveyed = chosen_latents(latents, d.d_sae, "latents").unique()
    dtype = torch.promote_types(model.dtype, torch.float32)
    asked = Asked(
        given.name, str(given.site), d.d_sae, given.fingerprint, model.name, model.fingerprint, score, ignored, skip, limits,
        str(dtype).removeprefix("torch."), given.config.metadata.table(),
    )  # fmt: skip
    chosen = _chosen(together, surveyed, d.d_sae)
    held = blank(len(surveyed), len(chosen), limits.window, np.dtype(asked.dtype))
    return _Gatherer(model, d, asked, surveyed, chosen, held, most_bytes(asked, d, len(surveyed), len(chosen)))


def most_bytes(asked: Asked, d: Dictionary, latents: int, chosen: int) -> int:
    """What a tally of so many latents could take, three times over: what is held, what is added, and their sum."""
    is_signed = asked.score != "activation" or d.config.rule in ("jump", "rawtopk", "abstopk")
    rows = asked.limits.top + (BANDS if is_signed else BANDS // 2) * asked.limits.per_band
    row = 24 + (np.dtype(asked.dtype).itemsize + 4) * asked.limits.window + np.dtype(asked.dtype).itemsize
    return 3 * (latents * (8 * (6 + BINS) + rows * row) + 8 * chosen**2)


def _chosen(together: LatentsLike | bool, surveyed: Int[Tensor, " latents"], d_sae: int) -> np.ndarray:
    """Which of the surveyed latents are looked at together."""
    if isinstance(together, bool):
        return np.arange(len(surveyed) if together else 0)
    asked = chosen_latents(together, d_sae, "together").unique()
    if len(missing := asked[~torch.isin(asked, surveyed)]):
        raise InputError(f"together: latent {int(missing[0])} is not among those surveyed; expected some of `latents`.")
    return torch.searchsorted(surveyed, asked).numpy()


def _limits(top: int, per_band: int, context: tuple[int, int], seed: int) -> Limits:
    if not isinstance(context, tuple | list) or len(context) != 2:
        raise InputError(f"context: {context!r}; expected two numbers, of tokens before and behind each place.")
    return Limits(
        _whole("top", top, 0), _whole("per_band", per_band, 0), _whole("context", context[0], 0), _whole("context", context[1], 0),
        _whole("seed", seed, 0),
    )  # fmt: skip


def _whole(argument: str, given: Any, least: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given < 1 << 31:
        raise InputError(f"{argument}: {given!r}; expected a whole number from {least} on, below 2^31.")
    return given


def _ignored(model: Model, ignore: int | str | Sequence[int | str] | None, special: bool) -> tuple[int, ...]:
    found = set() if ignore is None else set(token_ids(model, ignore, "ignore").tolist())
    if not special:
        if model.tokenizer is None:
            raise InputError(f"special: False, but {model.name} has no tokenizer that says which tokens are; give their ids as ignore=.")
        found |= {*model.tokenizer.special}
    return tuple(sorted(found))


def _numbers(given: Iterable[int] | None) -> Iterator[int]:
    return from_number() if given is None else (_whole("numbers", number, 0) for number in given)
