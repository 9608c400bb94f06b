"""Several ways of saying how much things matter, held against each other: a parity table and its figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attrib.adapters.given import as_dictionaries, as_dictionary, as_model
from attrib.causal.agreement import Agreement, correlation, slope
from attrib.causal.rankings import Ranking
from attrib.causal.verifying import verify
from attrib.core.edges import Edges
from attrib.core.plotted import add_points, panels, text
from attrib.core.rules import Rule, parse_rule, rule_text
from attrib.core.shown import frame_in_html
from attrib.core.types import InputError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

TOPS = (10, 100)
POINTS = 2000
"""Points of a figure's panel at most."""
MEASURED = "ablation"
GRADIENT = "attribution"


@dataclass(frozen=True, repr=False)
class Parity:
    """Scores of the same things by several rules.

    `table` has a line for each two rules: Pearson's `correlation`, Spearman's `rank_correlation` of the sizes, the `slope` of the second
    on the first through the origin, `same_sign` (the share of those that neither holds for zero), and for each k `top_k`: the share
    of the k largest sizes of the one that are among the k largest of the other.
    """

    scores: Mapping[str, np.ndarray]
    table: "pd.DataFrame"

    def __repr__(self) -> str:
        count = len(next(iter(self.scores.values())))
        return f"Parity of {len(self.scores)} rules over {count:,} scores:\n{self.table.round(4).to_string(index=False)}"

    def _repr_html_(self) -> str:
        return frame_in_html(repr(self).splitlines()[0], self.table)

    def points(self, a: str, b: str, *, seed: int = 0) -> "pd.DataFrame":
        """What the figure shows of two rules: their scores, of at most 2,000 things drawn by the seed. InputError for an unknown rule."""
        import pandas as pd

        for name in (a, b):
            if name not in self.scores:
                raise InputError(f"rule: {name!r}; expected one of {', '.join(self.scores)}.")
        count = len(self.scores[a])
        chosen = np.random.default_rng(seed).permutation(count)[:POINTS] if count > POINTS else np.arange(count)
        return pd.DataFrame({"at": chosen, a: self.scores[a][chosen], b: self.scores[b][chosen]})

    def figure(self) -> "go.Figure":
        """Each two rules against each other, with the line on which they are one. Raises InputError where plotly is not installed."""
        pairs = list(combinations(self.scores, 2))
        lines = [self.table[(self.table.a == a) & (self.table.b == b)].iloc[0] for a, b in pairs]
        titles = [f"r = {line.correlation:.3f}, slope {line.slope:.3f}" for line in lines]
        made = panels(titles)
        for column, (a, b) in enumerate(pairs, start=1):
            points = self.points(a, b)
            add_points(made, points[a], points[b], marker={"size": 4, "opacity": 0.5}, row=1, col=column)
            made.update_xaxes(title_text=text(a), row=1, col=column)
            made.update_yaxes(title_text=text(b), row=1, col=column)
        return made


def compare(rules: Mapping[str, Any], *, tops: Sequence[int] = TOPS) -> Parity:
    """Hold several scores of the same things against each other.

    Args:
        rules: by name, `Edges` over the same nodes, whose edges that are not kept count as 0; a `Ranking`; an `Agreement`, whose measured
            changes at one step are taken; or an array or a tensor of any shape, the same for all.
        tops: for how many of the largest scores to tell the overlap; those above the number of scores are left out.

    Raises:
        InputError: for fewer than two rules, scores of different numbers or nodes, or ones that are no finite numbers.
    """
    import pandas as pd

    if len(rules) < 2:
        raise InputError(f"rules: {len(rules)}; expected two or more to compare.")
    if wrong := [k for k in tops if isinstance(k, bool) or not isinstance(k, int) or k < 1]:
        raise InputError(f"tops: {wrong[0]!r}; expected whole numbers, 1 or more.")
    _check_nodes(rules)
    scores = {name: _numbers(given, name) for name, given in rules.items()}
    first, *others = scores
    for name in others:
        if len(scores[name]) != len(scores[first]):
            raise InputError(
                f"rules: {name!r} has {len(scores[name])} scores, and {first!r} {len(scores[first])}; expected the same things."
            )
    return Parity(scores, pd.DataFrame([_line(a, b, scores[a], scores[b], tops) for a, b in combinations(scores, 2)]))


def compare_rules(
    question: Callable[..., Edges],
    *arguments: Any,
    rules: Sequence[str | Rule] = (GRADIENT, MEASURED),
    tops: Sequence[int] = TOPS,
    **options: Any,
) -> Parity:
    """Ask a question by several rules, and hold the answers against each other.

    Args:
        question: one of attrib's, such as `attrib.latent_to_logit`, with its `arguments` and `options`.
        rules: "attribution" is gradient × activation, "ablation" what every target loses when a source is left out, measured for
            all sources (`verify` at a step of 1), by another pass than `rule=Ablation()` takes; any other is given to the question as its
            `rule`, a value or its text such as "ig:16".

    Raises:
        InputError: for a rule that the question does not take, and as `compare`.
    """
    others = {str(rule) if isinstance(rule, str) else rule_text(rule): rule for rule in rules}
    others = {name: _rule(rule) for name, rule in others.items() if name not in (GRADIENT, MEASURED) or not isinstance(rule, str)}
    if others and "rule" not in signature(question).parameters:
        raise InputError(f"rules: {next(iter(others))!r}; {question.__name__} takes no rule, so expected {GRADIENT!r} and {MEASURED!r}.")
    plain = question(*arguments, **options)
    given: dict[str, Any] = {}
    for rule in rules:
        name = rule if isinstance(rule, str) else rule_text(rule)
        if name in others:
            given[name] = question(*arguments, rule=others[name], **options)
        else:
            given[name] = plain if rule == GRADIENT else measured_edges(question, plain, arguments, options)
    return compare(given, tops=tops)


def _rule(given: str | Rule) -> Rule:
    try:
        return parse_rule(given)
    except ValueError as error:
        raise InputError(f"rules: {error}, or {GRADIENT!r}.") from error


def measured_edges(question: Callable[..., Edges], edges: Edges, arguments: Sequence[Any], options: Mapping[str, Any]) -> np.ndarray:
    """What every target loses when each source is left out, as numbers over [targets, sources], in the place of each edge that is there."""
    given = signature(question).bind(*arguments, **options).arguments
    given |= given.get("options", {})  # of a function that only passes them on
    ends = [as_dictionary(given[name], name) for name in ("source", "target") if name in given]
    goal = given.get("metric", given.get("logits"))
    known = [*ends, *as_dictionaries(given.get("cuts", ()), "cuts")]
    found = verify(edges, as_model(given["model"]), n=max(1, len(edges.sources)), steps=1, dictionaries=known, target=goal)
    return _dense(edges, torch.from_numpy(found.table.measured.to_numpy(float)))


def _numbers(given: Any, name: str) -> np.ndarray:
    if isinstance(given, Edges):
        found = _dense(given, given.attribution)
    elif isinstance(given, Ranking):
        found = given.flat.numpy()
    elif isinstance(given, Agreement):
        if given.table.step.nunique() != 1:
            raise InputError(f"rules: {name!r} is measured at {given.table.step.nunique()} steps; expected one. Call verify with one step.")
        found = given.table.measured.to_numpy(float)
    else:
        try:
            found = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=float).ravel()
        except (TypeError, ValueError):
            raise InputError(f"rules: {name!r} is a {type(given).__name__}; expected Edges, a Ranking, an Agreement or numbers.") from None
    if not len(found) or not np.isfinite(found).all():
        raise InputError(f"rules: {name!r} has {'no scores' if not len(found) else 'scores that are NaN or infinite'}; expected numbers.")
    return np.asarray(found, dtype=float)


def _dense(edges: Edges, values: Tensor) -> np.ndarray:
    """Values of edges over all pairs of a target and a source of one prompt, prompt by prompt; 0 where no edge is."""
    parts = []
    for number in range(len(edges.prompts)):
        rows, columns = edges.targets.rows(number), edges.sources.rows(number)
        first, last = int(edges.indptr[rows.start]), int(edges.indptr[rows.stop])
        whole = torch.zeros(rows.stop - rows.start, columns.stop - columns.start, dtype=torch.float64)
        whole[edges.row[first:last] - rows.start, edges.indices[first:last] - columns.start] = values[first:last].double()
        parts.append(whole.flatten())
    return torch.cat(parts).numpy()


def _check_nodes(rules: Mapping[str, Any]) -> None:
    several = {name: given for name, given in rules.items() if isinstance(given, Edges)}
    first = next(iter(several.values()), None)
    for name, other in several.items():
        assert first is not None
        for mine, theirs in ((first.sources, other.sources), (first.targets, other.targets)):
            same = [torch.equal(a, b) for a, b in ((mine.ptr, theirs.ptr), (mine.position, theirs.position), (mine.latent, theirs.latent))]
            if mine.site != theirs.site or not all(same):
                raise InputError(f"rules: {name!r} is of other nodes than {next(iter(several))!r}; expected edges over the same ones.")


def _line(a: str, b: str, x: np.ndarray, y: np.ndarray, tops: Sequence[int]) -> dict[str, Any]:
    from scipy.stats import rankdata

    both = (x != 0) & (y != 0)
    found = {
        "a": a, "b": b, "correlation": correlation(x, y), "rank_correlation": correlation(rankdata(np.abs(x)), rankdata(np.abs(y))),
        "slope": slope(x, y), "same_sign": float((np.sign(x) == np.sign(y))[both].mean()) if both.any() else float("nan"),
    }  # fmt: skip
    for k in tops:
        if k <= len(x):
            first, second = (set(np.argsort(-np.abs(each), kind="stable")[:k].tolist()) for each in (x, y))
            found[f"top_{k}"] = len(first & second) / k
    return found
