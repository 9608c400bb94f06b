"""Faithfulness: how much of a metric a ranking's first latents carry, and how much is lost without them.

m(K) is the mean metric where the latents K are kept and all others of the dictionaries taken out, M all of them:

    share(n) = (m(first n) - m(∅)) / (m(M) - m(∅))

*Completeness* keeps the first n on the prompts that the ranking was made from; *sufficiency* does so on prompts that it has not seen;
*necessity* takes the first n out there, and tells share(M without the first n). The area under a curve is taken over log(1 + n), from
0 to all: near 1 for a ranking that keeps much of the metric in few latents, and near 0 for necessity, where little is left. These are the
faithfulness and completeness of Marks et al. 2024, for any ranking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.causal.generators import Contrast
from attrib.causal.keeping import Ablation, Score, ablation, aligned, logit_difference, scores
from attrib.causal.rankings import PASSES, Ranking
from attrib.core.room import memory_named
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model

if TYPE_CHECKING:
    import pandas as pd

CURVES = ("completeness", "sufficiency", "necessity")


@dataclass(frozen=True, repr=False)
class Faithfulness:
    """Curves of a metric against the number of units kept, or taken out.

    `table` has a line for each curve and number: `curve`, `n`, `metric` (its mean over prompts), `share` and `right` (the share of
    prompts whose metric is above 0).
    """

    ranking: str
    table: "pd.DataFrame"
    whole: Mapping[str, float]
    """The mean metric with everything kept, and `empty` with nothing, of "train" and of "held out" prompts."""
    empty: Mapping[str, float]
    units: int
    """How many there are to keep."""
    call: Mapping[str, Any]

    def area(self, curve: str) -> float:
        """The area under a curve of shares over log(1 + n), of the whole width. Raises InputError for a curve that is not there."""
        part = self.table[self.table.curve == curve]
        if not len(part):
            raise InputError(f"curve: {curve!r}; expected one of {', '.join(self.table.curve.unique())}.")
        at, share = torch.tensor(part.n.to_numpy(float)).log1p(), part.share.to_list()
        return sum(
            (b - a) * (left + right) / 2 for (a, b), (left, right) in zip(pairwise(at.tolist()), pairwise(share), strict=True)
        ) / float(at[-1] - at[0])

    def __repr__(self) -> str:
        areas = ", ".join(f"{curve} {self.area(curve):.3f}" for curve in self.table.curve.unique())
        return f"Faithfulness(by {self.ranking} of {self.units:,}: areas {areas})"


@memory_named("measuring faithfulness")
@takes(model=as_model, dictionaries=as_dictionaries)
@torch.no_grad()
def faithfulness(
    model: Model,
    dictionaries: Sequence[Dictionary],
    examples: Sequence[Contrast],
    ranking: Ranking,
    *,
    held_out: Sequence[Contrast] | None = None,
    metric: Score = logit_difference,
    keep: Sequence[int] | None = None,
    ablate: str = "zero",
) -> Faithfulness:
    """Curves of a metric against the number of latents kept, in the order of a ranking.

    Args:
        dictionaries: whose latents are kept or taken out; all of them are put in together.
        examples: the prompts that the ranking was made from; those of a task are all of one length.
        ranking: of every position and latent of these dictionaries; `attrib.causal.rank` makes some, and `Ranking` takes any scores.
        held_out: prompts for sufficiency and necessity, of the same length; None leaves these curves out.
        metric: of a prompt's logits [positions, d_vocab] and the prompt.
        keep: numbers of latents; 0 and all of them are always among them. None is powers of 4.
        ablate: what stands for a latent that is taken out: "zero", or its "mean" over `examples` at that position.

    Raises:
        InputError: for a ranking of another shape or without numbers, prompts of several lengths, numbers that are not there, and as
            `attrib.causal.rank`.
    """
    there = ablation(model, dictionaries, examples, ablate)
    flat = _checked(ranking, there)
    counts = checked_counts(keep, len(flat))
    parts = {"train": (examples, aligned(examples, "examples"))}
    if held_out is not None:
        parts["held out"] = (held_out, aligned(held_out, "held_out"))
        if parts["held out"][1].shape[1] != parts["train"][1].shape[1]:
            lengths = " and ".join(str(tokens.shape[1]) for _, tokens in parts.values())
            raise InputError(f"held_out: prompts of another length than examples ({lengths} tokens); expected one length.")
    lowest = min(one.site.layer for one in there.dictionaries)
    order = flat.argsort(descending=True, stable=True)

    def measured(part: str, out: Float[Tensor, " units"]) -> Float[Tensor, " prompts"]:
        some, tokens = parts[part]
        shared = [
            share.view(each.shape).to(each)
            for share, each in zip(out.split([r.numel() for r in there.reference]), there.reference, strict=True)
        ]
        values = []
        for rows in torch.arange(len(tokens)).split(max(1, PASSES // tokens.shape[1])):
            logits = there.logits(there.streams(tokens[rows], lowest), shared, lowest)
            values.append(scores(metric, logits, [some[row] for row in rows.tolist()]))
        return torch.cat(values)

    return curves(ranking.name, order, counts, measured, [*parts], {"metric": getattr(metric, "__name__", "metric"), "ablate": ablate})


def curves(
    ranking: str, order: Tensor, counts: Sequence[int], measured: Any, parts: Sequence[str], call: Mapping[str, Any]
) -> Faithfulness:
    """The curves of any units.

    Args:
        order: the units, first those that are kept first.
        measured: of a part's name and which units are taken out, the metric of each prompt.
    """
    import pandas as pd

    units, lines = len(order), list[dict[str, Any]]()
    found: dict[tuple[str, bool, int], Tensor] = {}

    def value(part: str, is_kept: bool, n: int) -> Tensor:
        if not is_kept:  # all but the first n are kept: with none, all
            is_kept, n, turned = (True, units, False) if n == 0 else (True, 0, False) if n == units else (False, n, True)
        else:
            turned = False
        if (part, turned, n) not in found:
            out = torch.zeros(units) if turned else torch.ones(units)
            out[order[:n]] = 1.0 if turned else 0.0
            found[part, turned, n] = measured(part, out)
        return found[part, turned, n]

    whole = {part: float(value(part, True, units).mean()) for part in parts}
    empty = {part: float(value(part, True, 0).mean()) for part in parts}
    for curve, part, is_kept in (("completeness", "train", True), ("sufficiency", "held out", True), ("necessity", "held out", False)):
        for n in counts if part in parts else ():
            each = value(part, is_kept, n)
            width = whole[part] - empty[part]
            share = (float(each.mean()) - empty[part]) / width if width else float("nan")
            lines.append({"curve": curve, "n": n, "metric": float(each.mean()), "share": share, "right": float((each > 0).double().mean())})
    return Faithfulness(ranking, pd.DataFrame(lines), whole, empty, units, call)


def checked_counts(keep: Sequence[int] | None, units: int) -> list[int]:
    """Numbers of units, ascending, with 0 and all of them."""
    if keep is None:
        keep = [4**power for power in range((units.bit_length() + 1) // 2)]
    several = list(keep)
    if wrong := [n for n in several if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= units]:
        raise InputError(f"keep: {wrong[0]!r}; expected whole numbers from 0 to {units:,}, which is all.")
    return sorted({0, units, *several})


def _checked(ranking: Ranking, there: Ablation) -> Float[Tensor, " units"]:
    shapes, expected = ([list(each.shape) for each in of] for of in (ranking.scores, there.reference))
    if shapes != expected:
        raise InputError(f"ranking: scores of shapes {shapes}; expected {expected}, positions and latents of each dictionary.")
    if bool(ranking.flat.isnan().any()):
        raise InputError(f"ranking: a score of {ranking.name!r} is NaN; expected numbers.")
    return ranking.flat
