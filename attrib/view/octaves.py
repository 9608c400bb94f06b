"""How the scores of several latents are distributed, as a line of bars for each, all on one scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from attrib.latents.bins import FIRST, OCTAVES, STEPS
from attrib.view.sparks import in_cells

if TYPE_CHECKING:
    from jaxtyping import Int64

MOST = 12
"""Octaves that are drawn; what lies below these counts to the lowest."""


@dataclass(frozen=True)
class OctaveLines:
    """Places by the octave of the size of their score, for each of some latents."""

    places: "Int64[np.ndarray, 'latents octaves']"
    low: float
    """From where the lowest octave goes, where nothing lies below."""
    high: float
    """To where the highest goes."""

    def lines(self) -> list[str]:
        """A line for each latent, whose own largest octave is the highest bar; a point where there is no score."""
        return [in_cells(row.tolist()) for row in self.places]


def octaves_of(counts: "Sequence[Int64[np.ndarray, ' all_bins']]") -> OctaveLines:
    """The octaves that any of some latents has scores in, at most the highest `MOST`.

    Args:
        counts: of each latent, by `LatentSurvey.counts`.
    """
    half = OCTAVES * STEPS
    sizes = np.stack([each[half:] + each[:half][::-1] for each in counts]) if counts else np.zeros((0, half), np.int64)
    places = sizes.reshape(len(counts), OCTAVES, STEPS).sum(2)
    filled = np.flatnonzero(places.sum(0))
    if not len(filled):
        return OctaveLines(places[:, :0], 0.0, 0.0)
    last = int(filled[-1]) + 1
    first = max(int(filled[0]), last - MOST)
    shown = places[:, first:last].copy()
    shown[:, 0] += places[:, :first].sum(1)
    return OctaveLines(shown, float(np.ldexp(1.0, FIRST + int(filled[0]))), float(np.ldexp(1.0, FIRST + last)))
