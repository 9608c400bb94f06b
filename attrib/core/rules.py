"""Rules of attribution: what of a target is put down to each source. A rule is a value; its text form is what files and command lines say.

Let F be the targets as a function of the sources' values, v the values that they have, and g = ∂F/∂v. Every rule gives two numbers
for a source and a target, of which the second is the first times how far the source moves:

    attribution = gradient · change

    rule                          gradient                          change
    GradientTimesActivation()     g(v)                              v
    Gradient()                    g(v)                              1
    IntegratedGradients(n, b)     ∫ g(b + t (v - b)) dt, 0 to 1     v - b        (Sundararajan et al. 2017, equation 1)
    Patching(corrupt)             g(v)                              v' - v       (Nanda 2023; Syed et al. 2023)
    Ablation()                    (F(v) - F(v with v_i = 0)) / v_i  v

with v' the values that the sources have on another prompt. The integral is a sum over the nodes of a quadrature. `gap` is what the sum over
all sources misses of what they do together: of integrated gradients (F(v) - F(b)) - Σ, which the theorem of completeness makes
zero up to the quadrature, where F is smooth; of patching (F(v') - F(v)) - Σ, of ablation (F(v) - F(0)) - Σ.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal, TypeGuard, get_args

from attrib.core.types import InputError

Quadrature = Literal["legendre", "midpoint"]
MOST_STEPS = 4096
"""Nodes of an integral at most: beyond, rounding is all that is left."""


@dataclass(frozen=True)
class GradientTimesActivation:
    """What a target would lose, to first order, if the source were nothing. The usual rule."""


@dataclass(frozen=True)
class Gradient:
    """The derivative alone, by which edges are then kept, ranked and summed."""


@dataclass(frozen=True)
class IntegratedGradients:
    """The mean gradient on the straight way from a baseline to the activations, times what they differ by."""

    steps: int = 16
    """Nodes of the quadrature, each a gradient of its own."""
    baseline: Any = "zero"
    """Where the way begins: "zero", or prompts, aligned with those of the call, whose activations it is."""
    nodes: Quadrature = "legendre"
    """Gauss-Legendre, or the midpoints of equal steps."""


@dataclass(frozen=True)
class Patching:
    """What a target would gain, to first order, if the source had the activation that it has on another prompt."""

    corrupt: Any = None
    """A prompt for each of the call's, with as many tokens, in every form that prompts have."""


@dataclass(frozen=True)
class Ablation:
    """What a target loses when the source alone is set to zero, computed by a forward pass for each: no approximation."""


Rule = GradientTimesActivation | Gradient | IntegratedGradients | Patching | Ablation
USUAL = GradientTimesActivation()

NAMES: dict[str, Callable[..., Rule]] = {
    "gradient_times_activation": GradientTimesActivation, "gradient": Gradient, "ig": IntegratedGradients, "patching": Patching,
    "ablation": Ablation,
}  # fmt: skip
"""Rules by the names that files and command lines have for them."""
RULES: dict[str, Callable[..., Rule]] = {kind.__name__: kind for kind in get_args(Rule)}
"""Rules by the names that Python has for them, as a result's call writes them."""


def check_rule(rule: object) -> Rule:
    """Raises InputError for what is no rule, or one whose numbers make no sense. Its prompts are looked at where the others are."""
    match rule:
        case IntegratedGradients(steps, _, nodes):
            if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= MOST_STEPS:
                raise InputError(f"rule: IntegratedGradients of {steps!r} steps; expected a whole number from 1 to {MOST_STEPS:,}.")
            if nodes not in get_args(Quadrature):
                raise InputError(f"rule: IntegratedGradients of nodes {nodes!r}; expected 'legendre' or 'midpoint'.")
            if isinstance(rule.baseline, str) and rule.baseline in ("", "corrupt"):
                raise InputError(f"rule: IntegratedGradients from {rule.baseline!r}; expected 'zero', or the prompts themselves.")
            if rule.baseline is None:
                raise InputError("rule: IntegratedGradients from None; expected 'zero', or the prompts themselves.")
            return rule
        case Patching(None):
            raise InputError("rule: Patching without corrupt prompts; expected Patching(corrupt), one for each prompt of the call.")
        case GradientTimesActivation() | Gradient() | Patching() | Ablation():
            return rule
    raise InputError(
        f"rule: {rule!r:.60}; expected GradientTimesActivation(), Gradient(), IntegratedGradients(steps, baseline), Patching(corrupt) or "
        "Ablation()."
    )


def other_prompts(rule: Rule) -> Any:
    """The prompts that a rule compares with; None for one that does without."""
    match rule:
        case IntegratedGradients(baseline="zero"):
            return None
        case IntegratedGradients(baseline=prompts) | Patching(corrupt=prompts):
            return prompts
    return None


def takes_other(rule: Rule) -> TypeGuard[IntegratedGradients | Patching]:
    """Whether a rule, with prompts or without them yet, compares with other prompts."""
    return isinstance(rule, Patching) or (isinstance(rule, IntegratedGradients) and not _is_zero(rule.baseline))


def with_other(rule: Rule, prompts: Any) -> Rule:
    """A rule that was read from text, with the prompts that it compares with; others are given back as they are."""
    match rule:
        case Patching():
            return replace(rule, corrupt=prompts)
        case IntegratedGradients() if takes_other(rule):
            return replace(rule, baseline=prompts)
    return rule


def is_usual(rule: Rule) -> bool:
    """Whether a rule is the one that files say nothing of."""
    return isinstance(rule, GradientTimesActivation)


def rule_record(rule: Rule) -> str:
    """What a result's call says of a rule, as Python writes it; prompts are stored beside the call's own."""
    match rule:
        case Patching():
            return "Patching()"
        case IntegratedGradients(steps, baseline, nodes):
            return f"IntegratedGradients(steps={int(steps)}, baseline={'zero' if _is_zero(baseline) else 'corrupt'!r}, nodes={nodes!r})"
    return repr(rule)


def rule_text(rule: Rule) -> str:
    """The text that `parse_rule` reads as this rule, its prompts left out."""
    match rule:
        case IntegratedGradients(steps, baseline, nodes):
            more = ["corrupt"] * (not _is_zero(baseline)) + [nodes] * (nodes != "legendre")
            return ":".join(["ig", str(int(steps)), *more])
    return next(name for name, kind in NAMES.items() if kind is type(rule))


def parse_rule(text: object) -> Rule:
    """A rule from its text: `ig:16`, `ig:32:midpoint`, `ig:16:corrupt`, `ablation` and so on. A rule is given back as it is.

    Raises:
        ValueError: where the text is no rule.
    """
    if isinstance(text, get_args(Rule)):
        return text  # type: ignore[return-value]
    name, *words = str(text).split(":")
    if name in NAMES and name != "ig" and not words:
        return NAMES[name]()
    found: dict[str, Any] = {}
    for word in words:
        key = "steps" if re.fullmatch("[0-9]{1,9}", word) else "baseline" if word in ("zero", "corrupt") else "nodes"
        if key in found or (key == "nodes" and word not in get_args(Quadrature)):
            break
        found[key] = int(word) if key == "steps" else word
    else:
        if name == "ig" and 1 <= found.get("steps", 1) <= MOST_STEPS:
            return IntegratedGradients(**found)
    forms = "gradient_times_activation, gradient, ig:STEPS, ig:STEPS:corrupt, ig:STEPS:midpoint, patching or ablation"
    raise ValueError(f"{text!r:.60} is not a rule; expected {forms}, with STEPS from 1 to {MOST_STEPS:,}")


def _is_zero(baseline: Any) -> bool:
    return isinstance(baseline, str) and baseline == "zero"
