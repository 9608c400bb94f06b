"""Faithfulness: how much of a metric a ranking's first latents carry, and how much is lost without them.

m(K) is the mean metric where the latents K are kept and all others of the dictionaries taken out, M all of them:

    share(n) = (m(first n) - m(∅)) / (m(M) - m(∅))

*Completeness* keeps the first n on the prompts that the ranking was made from; *sufficiency* does so on prompts that it has not seen;
*necessity* takes the first n out there, and tells share(M without the first n). The area under a curve is taken over log(1 + n), from
0 to all: near 1 for a ranking that keeps much of the metric in few latents, and near 0 for necessity, where little is left. These are the
faithfulness and completeness of Marks et al. 2024, for any ranking. Shares and areas have bootstrap intervals over the prompts that
the metric is measured on, with the ranking as it is: see `attrib.causal.intervals`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.causal.generators import Contrast
from attrib.causal.intervals import Interval, bootstrap
from attrib.causal.keeping import Ablation, Score, ablation, aligned, logit_difference, scores
from attrib.causal.rankings import PASSES, Ranking
from attrib.core.room import memory_named
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model

if TYPE_CHECKING:
    import pandas as pd

CURVES = {"completeness": ("train", True), "sufficiency": ("held out", True), "necessity": ("held out", False)}
"""Of each: the part of the prompts that it is measured on, and whether the first n are kept."""


@dataclass(frozen=True, repr=False)
class Faithfulness:
    """Curves of a metric against the number of units kept, or taken out.

    `table` has a line for each curve and number: `curve`, `n`, `metric` (its mean over prompts), `share`, `low` and `high` (the share's
    bootstrap interval of 95% over prompts), `right` (the share of prompts whose metric is above 0) and `prompts` (how many there are).
    """

    ranking: str
    table: "pd.DataFrame"
    whole: Mapping[str, float]
    """The mean metric with everything kept, and `empty` with nothing, of "train" and of "held out" prompts; of "graphs"."""
    empty: Mapping[str, float]
    units: int
    """How many there are to keep."""
    each: Mapping[str, Float[Tensor, "prompts counts"]]
    """Of each curve the metric of each prompt, at the numbers of the table, of which the first is 0 and the last all."""
    call: Mapping[str, Any]

    def area(self, curve: str, *, less: "Faithfulness | None" = None) -> Interval:
        """The area under a curve of shares over log(1 + n), of the whole width, with its bootstrap interval over prompts.

        Args:
            less: another ranking's curves on the same prompts, whose area is taken off: an interval without 0 in it tells the two apart.

        Raises:
            InputError: for a curve that is not there, and for curves of other prompts.
        """
        several = [self._curve(curve), *(() if less is None else (less._curve(curve),))]
        of_prompts = [values for _, values in several]
        ends = [torch.stack([values[:, 0], values[:, -1]]) for values in of_prompts]
        if less is not None and (ends[0].shape != ends[1].shape or not torch.allclose(ends[0], ends[1], rtol=1e-3, atol=1e-3)):
            raise InputError("less: curves of other prompts, or of other units; expected another ranking's of the same.")
        widths = [values.shape[1] for values in of_prompts]

        def areas(means: Float[Tensor, "*draws counts"]) -> Float[Tensor, "*draws 1"]:
            each = [_area(at, shares(curve, part)) for (at, _), part in zip(several, means.split(widths, -1), strict=True)]
            return (each[0] if less is None else each[0] - each[1])[..., None]

        return bootstrap(torch.cat(of_prompts, 1), areas, seed=self.call["seed"])[0]

    def _curve(self, curve: str) -> tuple[Float[Tensor, " counts"], Float[Tensor, "prompts counts"]]:
        """Its numbers on a scale of log(1 + n), and the metrics."""
        if curve not in self.each:
            raise InputError(f"curve: {curve!r}; expected one of {', '.join(self.each)}.")
        return torch.from_numpy(self.table[self.table.curve == curve].n.to_numpy(float)).log1p(), self.each[curve].double()

    def __repr__(self) -> str:
        areas = ", ".join(f"{curve} {self.area(curve)}" for curve in self.each)
        return f"Faithfulness(by {self.ranking} of {self.units:,}: areas {areas})"


def shares(curve: str, metrics: Float[Tensor, "*draws counts"]) -> Float[Tensor, "*draws counts"]:
    """What part of the way from nothing to all each mean metric of a curve is; NaN where the two are the same."""
    first, last = metrics[..., :1], metrics[..., -1:]
    empty, whole = (first, last) if CURVES[curve][1] else (last, first)
    return torch.where(whole == empty, torch.nan, (metrics - empty) / (whole - empty))


def _area(at: Float[Tensor, " counts"], share: Float[Tensor, "*draws counts"]) -> Float[Tensor, "*draws"]:
    return torch.trapezoid(share, at, dim=-1) / (at[-1] - at[0])


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
    seed: int = 0,
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
        seed: of the draws of prompts that the intervals are made from.

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

    below = {part: there.streams(tokens, lowest) for part, (_, tokens) in parts.items()}  # where nothing is taken out

    def measured(part: str, out: Float[Tensor, " units"]) -> Float[Tensor, " prompts"]:
        some, tokens = parts[part]
        shared = [
            share.view(each.shape).to(each)
            for share, each in zip(out.split([r.numel() for r in there.reference]), there.reference, strict=True)
        ]
        values = []
        for rows in torch.arange(len(tokens)).split(max(1, PASSES // tokens.shape[1])):
            logits = there.logits(below[part][rows], shared, lowest)
            values.append(scores(metric, logits, [some[row] for row in rows.tolist()]))
        return torch.cat(values)

    call = {"metric": getattr(metric, "__name__", "metric"), "ablate": ablate, "seed": seed}
    return curves(ranking.name, order, counts, measured, [*parts], call)


def curves(
    ranking: str,
    order: Int[Tensor, " units"],
    counts: Sequence[int],
    measured: Callable[[str, Float[Tensor, " units"]], Float[Tensor, " prompts"]],
    parts: Sequence[str],
    call: Mapping[str, Any],
) -> Faithfulness:
    """The curves of any units.

    Args:
        order: the units, first those that are kept first.
        measured: of a part's name and which units are taken out, the metric of each prompt.
        call: with the `seed` of the intervals.
    """
    units, each = len(order), dict[str, Tensor]()
    found: dict[tuple[str, bool, int], Tensor] = {}

    def value(part: str, is_kept: bool, n: int) -> Float[Tensor, " prompts"]:
        if not is_kept and n in (0, units):  # all but the first none are all, which is measured once
            is_kept, n = True, units - n
        if (part, is_kept, n) not in found:
            out = torch.full((units,), float(is_kept))
            out[order[:n]] = float(not is_kept)
            found[part, is_kept, n] = measured(part, out)
        return found[part, is_kept, n]

    for curve, (part, is_kept) in CURVES.items():
        if part in parts:
            each[curve] = torch.stack([value(part, is_kept, n) for n in counts], 1)
    return faithfulness_of(ranking, counts, each, call)


def faithfulness_of(
    ranking: str,
    counts: Sequence[int],
    each: Mapping[str, Float[Tensor, "prompts counts"]],
    call: Mapping[str, Any],
    part: str | None = None,
) -> Faithfulness:
    """The curves of metrics that were measured.

    Args:
        counts: numbers of units, ascending, from 0 to all.
        each: of each curve the metric of each prompt at these numbers.
        call: with the `seed` of the intervals.
        part: what the prompts of all curves are called, where none are held out.
    """
    import pandas as pd

    lines, whole, empty = list["pd.DataFrame"](), dict[str, float](), dict[str, float]()
    for curve, values in each.items():
        between = bootstrap(values, partial(shares, curve), seed=call["seed"])
        mean, of = values.double().mean(0), part or CURVES[curve][0]
        lines.append(pd.DataFrame({
            "curve": curve, "n": counts, "metric": mean, "share": [one.mean for one in between],
            "low": [one.low for one in between], "high": [one.high for one in between],
            "right": (values > 0).double().mean(0), "prompts": len(values),
        }))  # fmt: skip
        empty[of], whole[of] = (float(mean[at]) for at in ((0, -1) if CURVES[curve][1] else (-1, 0)))
    return Faithfulness(ranking, pd.concat(lines, ignore_index=True), whole, empty, counts[-1], each, call)


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
