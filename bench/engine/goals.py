"""The ratios that the engine is to reach on a 2-core CPU, and what a run says of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

RANDOM_32 = ("gpt2-0-3-exact", "gpt2-0-3-linear", "gpt2-6-8-exact")


class Goal(NamedTuple):
    """A bound on one figure of some cases; the worst of them counts.

    No cases named: every case of the run at the default budget and without cuts.
    """

    label: str
    figure: str
    bound: float
    at_least: bool
    cases: tuple[str, ...] = ()


GOALS = (
    Goal("GPT-2 shape 0→3, T=32, EXACT", "ratio_vs_notebook", 15, True, ("gpt2-0-3-exact",)),
    Goal("GPT-2 shape 6→8, T=32, EXACT", "ratio_vs_notebook", 25, True, ("gpt2-6-8-exact",)),
    Goal("GPT-2 shape 0→3, T=32, LINEAR", "ratio_vs_notebook", 18, True, ("gpt2-0-3-linear",)),
    Goal("SmolLM2 short pair, 64 tokens, EXACT", "ratio_vs_notebook", 8, True, ("smollm2-6-9-exact",)),
    Goal("token→latent, T=32", "ratio_vs_notebook", 30, True, ("token-latent",)),
    Goal("latent→logit, 25 logits, T=32", "ratio_vs_notebook", 3, True, ("latent-logit",)),
    Goal("notebook's peak memory over attrib's, GPT-2 shape, T=32, small budget", "peak_ratio", 10, True, ("gpt2-0-3-exact-tight",)),
    Goal("the same at the default budget", "peak_ratio", 10, True, RANDOM_32),
    Goal("measured FLOPs over the floor", "flops_over_floor", 1.3, False),
    Goal("measured FLOPs over the floor, GPT-2 shape, T=32", "flops_over_floor", 1.3, False, RANDOM_32),
    Goal("wall time over (FLOPs / matrix-product rate)", "wall_over_ideal", 1.5, False),
    Goal("wall time over (FLOPs / matrix-product rate), GPT-2 shape, T=32", "wall_over_ideal", 1.5, False, RANDOM_32),
)


class Verdict(NamedTuple):
    """What was found of a goal: the worst value, in which case, and whether it is good enough. No value: not measured."""

    value: float | None
    case: str | None
    reached: bool


def judge(goal: Goal, results: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """The worst value among the goal's cases. One that was not measured in any of its named cases is not reached."""
    names = goal.cases or tuple(name for name in results if not name.endswith("-tight") and not name.startswith("cuts-"))
    values = {name: results[name][goal.figure] for name in names if name in results and results[name][goal.figure] is not None}
    if not values or (goal.cases and len(values) < len(names)):
        return Verdict(None, None, False)
    case = (min if goal.at_least else max)(values, key=lambda name: values[name])
    value = values[case]
    return Verdict(value, case, value >= goal.bound if goal.at_least else value <= goal.bound)
