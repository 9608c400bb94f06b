"""A survey: what was seen of the latents of one or several dictionaries over a corpus, and what can be asked of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64, Int64

from attrib.core.labels import unnamed
from attrib.core.shown import in_html
from attrib.core.types import InputError
from attrib.latents.bins import BINS, STEPS, band_of, bins_of, edges
from attrib.latents.places import Places, hashes_of
from attrib.latents.spans import Spans, count
from attrib.latents.tally import Limits, Tally
from attrib.stats import fixed
from attrib.stats.scoring import Score

if TYPE_CHECKING:
    import pandas as pd


SCORES: tuple[str, ...] = get_args(Score)
"""What a survey may be of."""
SUMMARY = ("dictionary", "score", "latents", "never active", "median density", "prompts", "places")


@dataclass(frozen=True)
class Asked:
    """What a survey was asked for. Surveys of different prompts are merged where they agree in this."""

    dictionary: str
    """Its name."""
    site: str
    d_sae: int
    dictionary_sha256: str
    model: str
    model_sha256: str
    score: Score
    ignore: tuple[int, ...]
    """Tokens whose places did not count, by id."""
    skip: int
    """So many first positions of each prompt did not count."""
    limits: Limits
    dtype: str
    """Of the scores: float32 or float64."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the dictionary's own files say of it: data set, context size, Neuronpedia id."""


class Example(NamedTuple):
    """A place at which a latent scores, with what stands around it."""

    value: float
    prompt: int
    position: int
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    values: tuple[float, ...]
    """The latent's scores at these tokens."""
    at: int
    """Which of the tokens stands at the place."""

    @property
    def token(self) -> str:
        """What stands at the place."""
        return self.tokens[self.at]

    @property
    def text(self) -> str:
        """The tokens one after another."""
        return "".join(self.tokens)


class Band(NamedTuple):
    """An octave of scores, from `low` to `high`, how many places it has, and a uniform sample of them."""

    low: float
    high: float
    places: int
    share: float
    """Of the places at which the score is not zero."""
    examples: tuple[Example, ...]


@dataclass(frozen=True, repr=False)
class LatentSurvey:
    """What was seen of the latents of one dictionary."""

    asked: Asked
    latents: Int64[np.ndarray, " latents"]
    """Those that were surveyed, ascending."""
    chosen: Int64[np.ndarray, " chosen"]
    """Those of which it was counted which are active together, ascending."""
    prompts: Spans
    """The numbers of all prompts that were read."""
    tokens: int
    """Tokens of all prompts."""
    places: int
    """Of these, those that count."""
    tally: Tally
    strings: dict[int, str]
    """How each token of the examples reads; empty where the model had no tokenizer."""

    def __repr__(self) -> str:
        return (
            f"LatentSurvey({self.asked.dictionary!r}, {len(self.latents):,} latents, {count(self.prompts):,} prompts, "
            f"{self.places:,} places)"
        )

    def _repr_html_(self) -> str:
        return in_html(repr(self), SUMMARY, [self.summary])

    @property
    def summary(self) -> tuple[str, ...]:
        """In words, what `SUMMARY` names."""
        never, of = int((self.active == 0).sum()), f"{len(self.latents):,} of {self.asked.d_sae:,}"
        density = f"{float(np.median(self.density)):.3%}" if len(self.latents) else ""
        return self.asked.dictionary, self.asked.score, of, f"{never:,}", density, f"{count(self.prompts):,}", f"{self.places:,}"

    # ----------------------------------------------------------------------------- numbers of all latents

    @property
    def count(self) -> Int64[np.ndarray, " latents"]:
        """Places at which each latent's score is not zero."""
        return self.tally.places

    @property
    def active(self) -> Int64[np.ndarray, " latents"]:
        """Places at which each latent is active: its activation is not zero; of scores that are none, the score is above zero."""
        if self.asked.score == "activation":
            return self.tally.places
        return self.tally.histogram[:, BINS // 2 :].sum(1)

    @property
    def density(self) -> Float64[np.ndarray, " latents"]:
        """The share of the places that count at which each latent is active."""
        return self.active / max(1, self.places)

    @property
    def distinct_prompts(self) -> Int64[np.ndarray, " latents"]:
        """In how many prompts each latent's score is somewhere not zero."""
        return self.tally.prompts

    @property
    def sum(self) -> Float64[np.ndarray, " latents"]:
        """The sum of each latent's scores."""
        return fixed.floats(self.tally.sum)

    @property
    def mean(self) -> Float64[np.ndarray, " latents"]:
        """The mean of each latent's scores where they are not zero; NaN of a latent that never is."""
        with np.errstate(invalid="ignore"):
            return self.sum / self.tally.places

    @property
    def std(self) -> Float64[np.ndarray, " latents"]:
        """Their standard deviation there, from exact sums."""
        with np.errstate(invalid="ignore"):
            squares = fixed.floats(self.tally.squares) / self.tally.places
            return np.sqrt(np.maximum(squares - self.mean**2, 0))

    @property
    def maximum(self) -> Float64[np.ndarray, " latents"]:
        """The largest score that is not zero; NaN of a latent that has none, or where no places were kept."""
        top, found = self.tally.top, np.full(len(self.latents), np.nan)
        first = np.flatnonzero(np.diff(top.at, prepend=-1))
        found[top.at[first]] = top.value[first]
        return found

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each latent."""
        import pandas as pd

        columns = {"latent": self.latents, "density": self.density, "count": self.count, "prompts": self.distinct_prompts}
        return pd.DataFrame(columns | {"mean": self.mean, "std": self.std, "maximum": self.maximum})

    # ----------------------------------------------------------------------------------- of one latent

    def counts(self, latent: int) -> Int64[np.ndarray, " all_bins"]:
        """How many places each of the survey's bins has, empty ones too; `histogram` leaves those out at either end."""
        return self.tally.histogram[self._at(latent)]

    def histogram(self, latent: int) -> tuple[Float64[np.ndarray, " edges"], Int64[np.ndarray, " bins"]]:
        """The edges of the bins from the first to the last that is not empty, and how many places each has. Four bins are an octave."""
        counts = self.counts(latent)
        filled = np.flatnonzero(counts)
        if not len(filled):
            return np.empty(0), np.empty(0, np.int64)
        first, last = int(filled[0]), int(filled[-1]) + 1
        return edges()[first : last + 1], counts[first:last]

    def percentiles(self, latent: int, of: Sequence[float | int] = (5, 25, 50, 75, 95)) -> list[tuple[float, float]]:
        """Between which scores each percentile lies, among the places where the score is not zero; a bin's edges.

        It is the score that so much of all stands at or below: of n scores in order, the one of rank ceil(n p / 100), at least the first.

        Raises:
            InputError: for a latent that was not surveyed or never has a score, and for a percentile outside 0 to 100.
        """
        if wrong := [p for p in of if not 0 <= p <= 100]:
            raise InputError(f"of: {wrong[0]}; expected percentiles from 0 to 100.")
        at = self._at(latent)
        counts = self.tally.histogram[at].cumsum()
        if not counts[-1]:
            raise InputError(f"latent: {latent} is active nowhere in this corpus, so it has no percentiles; expected another.")
        rank = np.ceil(counts[-1] * np.asarray(of, np.float64) / 100).clip(1)
        bins, bounds = np.searchsorted(counts, rank), edges()
        most = self.maximum[at]
        high = bounds[bins + 1] if np.isnan(most) else np.minimum(bounds[bins + 1], most)
        return list(zip(bounds[bins].tolist(), high.tolist(), strict=True))

    def top(self, latent: int, count: int | None = None) -> list[Example]:
        """The places of largest score, the largest first."""
        return self._examples(self.tally.top, self._rows(self.tally.top, latent)[:count])

    def top_tokens(self, latent: int) -> list[tuple[int, float]]:
        """The token ids at which these scores are, with each score: what `top` says, without what stands around."""
        there = self.tally.top.take(self._rows(self.tally.top, latent))
        return list(zip(there.tokens[:, self.asked.limits.before].tolist(), there.value.tolist(), strict=True))

    def examples(self, latent: int, low: float = -np.inf, high: float = np.inf, count: int | None = None) -> list[Example]:
        """Sampled places whose score is from `low` up to `high`, in the order of their draw.

        Within one band, an octave, they are a uniform sample without replacement. Across bands only those of less hash are taken than
        the last that is kept of any full band, so that a place of one band is as likely to be there as a place of another, but for
        what one place more or less of `per_band` makes. `bands` has all that were kept.
        """
        sample, rows = self.tally.sample, self._rows(self.tally.sample, latent)
        value, hashed = sample.value[rows], hashes_of(sample.take(rows), self.latents, self.asked.limits.seed)
        band, bounds, counts = band_of(bins_of(value)), edges()[::STEPS], self._of_bands(latent)
        met = [octave for octave in np.flatnonzero(counts) if bounds[octave] <= high and bounds[octave + 1] >= low]
        full = [octave for octave in met if counts[octave] > (band == octave).sum()]
        known = (value >= low) & (value <= high)
        if len(met) > 1:
            for octave in full:
                known &= hashed < hashed[band == octave].max(initial=0)
        drawn = np.flatnonzero(known)
        return self._examples(sample, rows[drawn[np.argsort(hashed[drawn], kind="stable")]][:count])

    def bands(self, latent: int) -> list[Band]:
        """The octaves in which a latent has scores, the highest first, each with its sample."""
        counts = self._of_bands(latent)
        rows, bounds = self._rows(self.tally.sample, latent), edges()[::STEPS]
        band = band_of(bins_of(self.tally.sample.value[rows]))
        return [
            Band(
                float(bounds[octave]), float(bounds[octave + 1]), int(counts[octave]), float(counts[octave] / counts.sum()),
                tuple(self._examples(self.tally.sample, rows[band == octave])),
            )
            for octave in np.flatnonzero(counts)[::-1]
        ]  # fmt: skip

    def _of_bands(self, latent: int) -> Int64[np.ndarray, " bands"]:
        return self.tally.histogram[self._at(latent)].reshape(-1, STEPS).sum(1)

    def _at(self, latent: int) -> int:
        at = int(np.searchsorted(self.latents, latent)) if isinstance(latent, int | np.integer) and not isinstance(latent, bool) else -1
        if not 0 <= at < len(self.latents) or self.latents[at] != latent:
            few = ", ".join(map(str, self.latents[:8])) + (", ..." if len(self.latents) > 8 else "")
            raise InputError(f"latent: {latent!r}; expected one of the {len(self.latents):,} that were surveyed: {few}.")
        return at

    def _rows(self, places: Places, latent: int) -> Int64[np.ndarray, " rows"]:
        at = self._at(latent)
        return np.arange(*np.searchsorted(places.at, [at, at + 1]))

    def _examples(self, places: Places, rows: Int64[np.ndarray, " rows"]) -> list[Example]:
        return list(self._told(places.take(rows)))

    def _told(self, places: Places) -> Iterator[Example]:
        before = self.asked.limits.before
        for prompt, position, value, tokens, values in zip(*places[1:], strict=True):
            there = tokens >= 0
            ids = tuple(tokens[there].tolist())
            strings = tuple(self.string(number) for number in ids)
            yield Example(
                float(value), int(prompt), int(position), strings, ids, tuple(values[there].tolist()), before - int((~there[:before]).sum())
            )

    def string(self, token: int) -> str:
        """How a token reads."""
        return self.strings.get(token) or unnamed(token)


@dataclass(frozen=True, repr=False)
class Survey:
    """Surveys of one or several dictionaries of a model, in the order of their sites and names."""

    parts: tuple[LatentSurvey, ...]

    def __repr__(self) -> str:
        return f"Survey({', '.join(part.asked.dictionary for part in self.parts)})"

    def _repr_html_(self) -> str:
        """A row for each dictionary, for notebooks."""
        return in_html(f"Survey of {len(self.parts)} dictionaries", SUMMARY, [part.summary for part in self.parts])

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[LatentSurvey]:
        return iter(self.parts)

    def __getitem__(self, dictionary: str) -> LatentSurvey:
        """The survey of a dictionary, by its name or a part of it that no other has. Raises InputError."""
        return self.of(dictionary)

    def of(self, dictionary: str | None = None) -> LatentSurvey:
        """The survey of a dictionary; None where there is but one. Raises InputError where it is not clear which."""
        names = [part.asked.dictionary for part in self.parts]
        exact = [part for part in self.parts if part.asked.dictionary == dictionary]
        found = exact or [part for part in self.parts if dictionary is None or dictionary in part.asked.dictionary]
        if len(found) != 1:
            what = "none was named" if dictionary is None else f"{dictionary!r} is in the names of {len(found) or 'none'}"
            raise InputError(f"dictionary: {what}; expected one of {', '.join(names)}. Name it.")
        return found[0]
