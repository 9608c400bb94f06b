"""Examples of a latent band by band, where each band holds about as many places as another."""

import numpy as np

from attrib.core.types import InputError
from attrib.latents.bins import bins_of, edges
from attrib.latents.surveyed import Band, LatentSurvey


def quantile_bands(survey: LatentSurvey, latent: int, count: int = 5, *, examples: int | None = None) -> list[Band]:
    """A latent's scores divided by quantiles, the highest band first, each with a sample.

    A band is made of whole bins of the survey's histogram, so how many places it has is exact, and its bounds are edges of bins: of
    `count` bands each ends at the edge that comes nearest to so many count-ths of all places. Where one bin holds more than that, there
    are fewer bands; `share` says how large each is.

    Args:
        survey: of one dictionary.
        count: how many bands at most.
        examples: of each band at most; None is all that `LatentSurvey.examples` has. Within an octave of scores they are a uniform sample.

    Returns:
        Bands from `low` up to `high`, of the places at which the score is not zero; none where the latent has no score.

    Raises:
        InputError: for a latent that was not surveyed, or no band.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"count: {count!r}; expected a whole number of bands, at least 1.")
    counts = survey.counts(latent)
    filled = np.flatnonzero(counts)
    if not len(filled):
        return []
    upto = counts[filled].cumsum()
    lasts = sorted({int(np.abs(upto * count - upto[-1] * band).argmin()) for band in range(1, count + 1)})
    found = []
    for first, last in zip([0, *(last + 1 for last in lasts[:-1])], lasts, strict=True):
        bins = filled[first : last + 1]
        low, high = (float(edges()[at]) for at in (bins[0], bins[-1] + 1))
        there = [one for one in survey.examples(latent, low, high) if bins[0] <= bins_of(np.array([one.value]))[0] <= bins[-1]]
        places = int(counts[bins].sum())
        found.append(Band(low, high, places, places / int(upto[-1]), tuple(there[:examples])))
    return found[::-1]
