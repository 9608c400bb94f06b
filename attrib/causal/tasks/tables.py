"""What a run comes to, as pure functions from its long frames (frames.py) to tables.

A latent's effect in an example where it is not active is zero: it has no row, and counts in `mean`, which is over all samples, and not in
`mean_fired`, which is over those where it fired.
"""

from typing import TYPE_CHECKING, Any, Literal, get_args

from attrib.causal.tasks.frames import LATENTS, SAMPLES, check_frame
from attrib.core.types import InputError

if TYPE_CHECKING:
    import pandas as pd

Sign = Literal["positive", "negative", "both"]
RANKINGS = ("total", "mean", "mean_fired")
"""By which columns latents are ranked."""


def correctness(samples: "pd.DataFrame") -> "pd.DataFrame":
    """By operation, in the order in which they were done: n, how many are correct and which share, and means over the samples.

    Returns:
        A frame with operation, n, correct, share, difference, loss and probability.

    Raises:
        InputError: for what is no frame of samples.
    """
    check_frame(samples, SAMPLES, "samples")
    by = samples.groupby("operation", sort=False)
    columns = {"n": ("correct", "size"), "correct": ("correct", "sum"), "share": ("correct", "mean")}
    means = {name: (name, "mean") for name in ("difference", "loss", "probability")}
    return by.agg(**columns, **means).reset_index()


def classification(samples: "pd.DataFrame") -> "pd.DataFrame":
    """By operation, how well its predictions tell the labels: accuracy, and means in which each label counts alike.

    With tp, fp and fn the right, wrong and missed predictions of a label, its recall is tp / (tp + fn), and its F1 2 tp / (2 tp + fp + fn).
    `macro_accuracy` is the mean recall of the labels that samples have, `macro_f1` the mean F1 of those that samples have or are
    predicted. The predictions of "ablation" are those of the pass that is ablated.

    Returns:
        A frame with operation, n, labels (how many samples have), accuracy, macro_accuracy and macro_f1.

    Raises:
        InputError: for what is no frame of samples.
    """
    import pandas as pd

    check_frame(samples, SAMPLES, "samples")
    rows = []
    for operation, part in samples.groupby("operation", sort=False):
        label, said = part["label"], part["prediction"]
        hits = {one: int(((label == one) & (said == one)).sum()) for one in sorted({*label} | {*said})}
        of, predicted = label.value_counts(), said.value_counts()
        recall = [hits[one] / of[one] for one in of.index]
        f1 = [2 * hit / (of.get(one, 0) + predicted.get(one, 0)) for one, hit in hits.items()]
        row = {"operation": operation, "n": len(part), "labels": len(of), "accuracy": sum(hits.values()) / len(part)}
        rows.append(row | {"macro_accuracy": sum(recall) / len(recall), "macro_f1": sum(f1) / len(f1)})
    return pd.DataFrame(rows, columns=["operation", "n", "labels", "accuracy", "macro_accuracy", "macro_f1"])


def base_against_spliced(samples: "pd.DataFrame", *, other: str = "spliced", top: int | None = None) -> "pd.DataFrame":
    """Each example's difference with the model alone and with dictionaries in it, the largest of the model's own first.

    Args:
        other: the operation that is held against "base".
        top: so many examples; None is all.

    Returns:
        A frame with example, tokens, right, wrong, then base and the other operation, change (other minus base), and of each whether it
        is correct.

    Raises:
        InputError: for what is no frame of samples, or one without these operations.
    """
    check_frame(samples, SAMPLES, "samples")
    first, second = (_of_operation(samples, name) for name in ("base", other))
    keys = ["example", "tokens", "label", "right", "wrong"]
    both = first[[*keys, "difference", "correct"]].merge(second[[*keys, "difference", "correct"]], on=keys, suffixes=("_1", "_2"))
    both = both.rename(
        columns={"difference_1": "base", "difference_2": other, "correct_1": "base_correct", "correct_2": f"{other}_correct"}
    )
    both["change"] = both[other] - both["base"]
    order = ["example", "tokens", "label", "right", "wrong", "base", other, "change", "base_correct", f"{other}_correct"]
    return (
        both.sort_values(["base", "example"], ascending=[False, True])[order].head(len(both) if top is None else top).reset_index(drop=True)
    )


def effects_of_latents(
    latents: "pd.DataFrame", samples: "pd.DataFrame", operation: str = "ablation", *, correct: bool | None = None
) -> "pd.DataFrame":
    """What each latent of each dictionary does over the samples.

    Args:
        operation: "gradient" or "ablation", or another that gives effects.
        correct: only samples that this operation has right (True), or wrong (False); None is all.

    Returns:
        A frame with dictionary, latent, n (samples where it fired), samples, total, mean (over all samples), mean_fired, activation
        (the mean where it fired) and flipped (samples with the right answer that are wrong without it, of an ablation); the largest
        total of each dictionary first.

    Raises:
        InputError: for frames of something else, or without this operation.
    """
    check_frame(latents, LATENTS, "latents")
    check_frame(samples, SAMPLES, "samples")
    chosen = _of_operation(samples, operation)
    chosen = chosen if correct is None else chosen[chosen["correct"] == correct]
    rows = latents[(latents["operation"] == operation) & latents["example"].isin(chosen["example"])]
    right = chosen[chosen["prediction"] == chosen["label"]]["example"]
    rows = rows.assign(flipped=~rows["kept"] & rows["example"].isin(right))
    columns = {"n": ("example", "nunique"), "total": ("effect", "sum"), "mean_fired": ("effect", "mean")}
    made = rows.groupby(["dictionary", "latent"], sort=False).agg(**columns, activation=("activation", "mean"), flipped=("flipped", "sum"))
    made = made.reset_index().assign(samples=len(chosen))
    made["mean"] = made["total"] / max(1, len(chosen))
    order = ["dictionary", "latent", "n", "samples", "total", "mean", "mean_fired", "activation", "flipped"]
    return _by_dictionary(made, latents, "total")[order].reset_index(drop=True)


def top_latents(
    table: "pd.DataFrame", k: int = 10, *, sign: Sign = "both", by: str = "total", per_dictionary: bool = True
) -> "pd.DataFrame":
    """The k latents of the largest effects, and the k of the smallest, of a table of `effects_of_latents`.

    Args:
        sign: "positive" or "negative" is one of the two, and only effects of that sign.
        by: total, mean or mean_fired.
        per_dictionary: k of each dictionary, or of all together.

    Returns:
        The rows, with the column `sign`; the strongest of each sign first.

    Raises:
        InputError: for another column or sign, or a number below 1.
    """
    import pandas as pd

    if by not in RANKINGS:
        raise InputError(f"by: {by!r}; expected {', '.join(RANKINGS)}.")
    if sign not in get_args(Sign):
        raise InputError(f"sign: {sign!r}; expected {', '.join(get_args(Sign))}.")
    if k < 1:
        raise InputError(f"k: {k}; expected at least 1.")
    parts = []
    for _, part in table.groupby("dictionary", sort=False) if per_dictionary else [("", table)]:
        if sign != "negative":
            parts.append(part[part[by] > 0].sort_values([by, "latent"], ascending=[False, True]).head(k).assign(sign="positive"))
        if sign != "positive":
            parts.append(part[part[by] < 0].sort_values([by, "latent"], ascending=[True, True]).head(k).assign(sign="negative"))
    return pd.concat(parts, ignore_index=True) if parts else table.assign(sign="")


def activation_summary(latents: "pd.DataFrame", samples: "pd.DataFrame", operation: str = "spliced") -> "pd.DataFrame":
    """When each latent fires, and how strongly, at the chosen positions.

    Returns:
        A frame with dictionary, latent, n (samples where it fired), share of the samples, mean (over all), mean_fired, and the largest
        activation with the example that has it; the most frequent of each dictionary first.

    Raises:
        InputError: for frames of something else, or without this operation.
    """
    check_frame(latents, LATENTS, "latents")
    check_frame(samples, SAMPLES, "samples")
    count = len(_of_operation(samples, operation))
    rows = latents[latents["operation"] == operation].sort_values(["activation", "example"], ascending=[False, True])
    columns = {"n": ("example", "nunique"), "total": ("activation", "sum"), "mean_fired": ("activation", "mean")}
    made = rows.groupby(["dictionary", "latent"], sort=False).agg(**columns, largest=("activation", "first"), example=("example", "first"))
    made = made.reset_index()
    made["share"], made["mean"] = made["n"] / max(1, count), made["total"] / max(1, count)
    order = ["dictionary", "latent", "n", "share", "mean", "mean_fired", "largest", "example"]
    return _by_dictionary(made, latents, "n")[order].reset_index(drop=True)


def one_against_another(latents: "pd.DataFrame", one: str = "ablation", other: str = "gradient") -> "pd.DataFrame":
    """The totals of each latent by two operations, side by side: how well the cheap one tells the dear one.

    Returns:
        A frame with dictionary, latent and a column for each operation, the largest of the first one first. `table.attrs["r"]` is
        Pearson's r by dictionary; NaN where fewer than two latents are there, or all are alike.

    Raises:
        InputError: for what is no frame of latents, or one without these operations.
    """
    check_frame(latents, LATENTS, "latents")
    totals = []
    for name in (one, other):
        rows = latents[latents["operation"] == name]
        if not len(rows):
            raise InputError(f"latents: no rows of {name!r}; expected those of {one!r} and {other!r}.")
        totals.append(rows.groupby(["dictionary", "latent"], sort=False)["effect"].sum().rename(name))
    made = totals[0].to_frame().join(totals[1], how="outer").fillna(0.0).reset_index()
    made = _by_dictionary(made, latents, one).drop(columns="place").reset_index(drop=True)
    of_each = made.groupby("dictionary", sort=False)
    made.attrs["r"] = {str(name): _pearson(part[one].to_numpy(), part[other].to_numpy()) for name, part in of_each}
    return made


def _pearson(x: Any, y: Any) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = float((x @ x) * (y @ y)) ** 0.5
    return float(x @ y) / size if size else float("nan")


def _by_dictionary(made: "pd.DataFrame", latents: "pd.DataFrame", by: str) -> "pd.DataFrame":
    """Rows in the order in which dictionaries come up, and the largest of a column first in each."""
    place = {name: number for number, name in enumerate(latents["dictionary"].unique())}
    made = made.assign(place=made["dictionary"].map(place))
    return made.sort_values(["place", by, "latent"], ascending=[True, False, True])


def _of_operation(samples: "pd.DataFrame", operation: str) -> "pd.DataFrame":
    found = samples[samples["operation"] == operation]
    if not len(found):
        there = ", ".join(map(repr, samples["operation"].unique())) or "none"
        raise InputError(f"operation: no samples of {operation!r}; there are {there}.")
    return found
