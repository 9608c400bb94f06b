"""What a survey can be: everything that its parts tell twice is told alike."""

import numpy as np
from jaxtyping import Int64

from attrib.latents.bins import BANDS, BINS, STEPS, bins_of
from attrib.latents.places import Places, groups_of, largest, sampled
from attrib.latents.spans import fault as fault_of_spans
from attrib.latents.surveyed import LatentSurvey
from attrib.stats import fixed


def fault(part: LatentSurvey) -> str | None:
    """What keeps a survey from being well formed. A later check relies on the ones before it."""
    tally, asked = part.tally, part.asked
    spans = np.array(part.prompts, np.int64).reshape(-1, 2)
    if wrong := fault_of_spans(spans):
        return wrong
    if not len(part.latents) or not _ascends(part.latents, asked.d_sae) or not _ascends(part.chosen, asked.d_sae):
        return f"the latents do not ascend from 0 to below {asked.d_sae}"
    if not np.isin(part.chosen, part.latents).all():
        return "latents are counted together that were not surveyed"
    prompts = int(np.diff(spans).sum())
    if not part.places <= part.tokens or prompts > part.tokens:
        return f"{part.places} places count of {part.tokens} tokens of {prompts} prompts"
    if (tally.prompts < 0).any() or (tally.prompts > tally.places).any() or ((tally.prompts == 0) != (tally.places == 0)).any():
        return "the counts of places and of prompts disagree"
    if (tally.places > part.places).any() or (tally.prompts > prompts).any():
        return "a latent is active at more places or prompts than there are"
    if not np.array_equal(tally.histogram.sum(1), tally.places):
        return "a histogram does not add up to its latent's count"
    if not all(fixed.are_numbers(numbers) for numbers in (tally.sum, tally.squares)) or (tally.squares.high < 0).any():
        return "a sum is no fixed-point number"
    expected = {"top": np.minimum(tally.places, asked.limits.top), "sample": _of_bands(part)}
    for name, places in (("top", tally.top), ("sample", tally.sample)):
        if wrong := _of_places(part, places, spans):
            return f"{name}: {wrong}"
        key, groups = (places.at, len(part.latents)) if name == "top" else (groups_of(places), len(part.latents) * BANDS)
        if not np.array_equal(np.bincount(key, minlength=groups), expected[name].ravel()):
            return f"{name} has not as many places of each latent as the histogram says"
        order = largest(places, 1 << 62) if name == "top" else sampled(places, part.latents, asked.limits.seed, 1 << 62)
        if not np.array_equal(order, np.arange(len(places.at))):
            return f"the places of {name} are not in their order"
    if wrong := _of_maxima(part):
        return wrong
    return _of_together(part) or _of_strings(part)


def _ascends(latents: Int64[np.ndarray, " latents"], d_sae: int) -> bool:
    return bool((np.diff(latents, prepend=-1) > 0).all() and (latents < d_sae).all())


def _of_bands(part: LatentSurvey) -> Int64[np.ndarray, "latents bands"]:
    return np.minimum(part.tally.histogram.reshape(len(part.latents), -1, STEPS).sum(2), part.asked.limits.per_band)


def _of_places(part: LatentSurvey, places: Places, spans: Int64[np.ndarray, "spans 2"]) -> str | None:
    limits = part.asked.limits
    if not np.isfinite(places.value).all() or (places.value == 0).any() or not np.isfinite(places.values).all():
        return "a score is zero or not finite"
    if (places.position < part.asked.skip).any():
        return "a position is below those that count"
    span = np.searchsorted(spans[:, 0], places.prompt, "right") - 1
    if (span < 0).any() or (places.prompt >= spans[span, 1]).any():
        return "a prompt is not among those that were read"
    there = places.tokens >= 0
    if (places.tokens < -1).any() or not there[:, limits.before].all():
        return "a token is no id"
    left, right = there[:, : limits.before + 1], there[:, limits.before :]
    if (left[:, 1:] < left[:, :-1]).any() or (right[:, 1:] > right[:, :-1]).any():
        return "the tokens around a place have gaps"
    if (left.sum(1) - 1 != np.minimum(places.position, limits.before)).any():
        return "a place has not the tokens before it that its position says"
    if (places.values[:, limits.before] != places.value).any() or places.values[~there].any():
        return "a score differs from that in its context"
    if np.isin(places.tokens[:, limits.before], part.asked.ignore).any():
        return "a place has a token that does not count"
    return None


def _of_maxima(part: LatentSurvey) -> str | None:
    top, histogram = part.tally.top, part.tally.histogram
    first = np.flatnonzero(np.diff(top.at, prepend=-1))
    highest = BINS - 1 - (histogram[top.at[first], ::-1] > 0).argmax(1)
    if not np.array_equal(bins_of(top.value[first]), highest):
        return "a largest score is not in the last bin of its latent's histogram"
    return None


def _of_together(part: LatentSurvey) -> str | None:
    counts, at = part.tally.together, np.searchsorted(part.latents, part.chosen)
    own = part.tally.histogram[at, BINS // 2 :].sum(1)
    if not np.array_equal(counts.diagonal(), own) or (counts > np.minimum(own[:, None], own)).any():
        return "two latents are active together more often than alone"
    return None


def _of_strings(part: LatentSurvey) -> str | None:
    ids = np.array(list(part.strings), np.int64)
    if (np.diff(ids, prepend=-1) <= 0).any():
        return "the ids of strings do not ascend from 0"
    used = np.concatenate([part.tally.top.tokens.ravel(), part.tally.sample.tokens.ravel()])
    if len(ids) and not np.isin(used[used >= 0], ids).all():
        return "a token of an example has no string"
    return None
