"""Rules of what is kept of a result: whether one makes sense, what it keeps of a tile, and its text in files and on command lines.

The rules themselves are words of attrib.core.types; `attrib.engine.blocks.kernels.compact` does on a GPU what `kept` says. What
others ask of a rule is asked here, case by case: a rule that is forgotten in one of them is a fault of types, and an error when it runs.
"""

from numbers import Integral, Real
from typing import assert_never, get_args

from jaxtyping import Bool, Float
from torch import Tensor

from attrib.core.ranked import fewest, largest
from attrib.core.types import Dense, InputError, Keep, Mass, Threshold, TopK

RULES: dict[str, type[Keep]] = {kind.__name__: kind for kind in get_args(Keep)}
"""Every rule by its name."""

_BY_TEXT = {name.lower(): kind for name, kind in RULES.items()}


def check_keep(keep: Keep) -> Keep:
    """Raises InputError for a rule whose number makes no sense."""
    match keep:
        case TopK(k) if isinstance(k, bool) or not isinstance(k, Integral):
            raise InputError(f"keep: TopK({k!r}); expected a whole number.")
        case TopK(k) if k < 1:
            raise InputError(f"keep: TopK({k}) keeps nothing; expected k >= 1.")
        case Threshold(number) | Mass(number) if isinstance(number, bool) or not isinstance(number, Real):
            raise InputError(f"keep: {keep!r}; expected a number.")
        case Threshold(t) if not t >= 0:
            raise InputError(f"keep: Threshold({t}) is not a bound on |attribution|; expected t >= 0.")
        case Mass(fraction) if not 0 < fraction <= 1:
            raise InputError(f"keep: Mass({fraction}) is not a fraction of a sum; expected 0 < fraction <= 1.")
        case Dense() | TopK() | Threshold() | Mass():
            return keep
        case _:
            raise InputError(f"keep: expected Dense(), TopK(k), Threshold(t) or Mass(fraction), got {keep!r}.")


def kept(
    keep: Keep, gradient: Float[Tensor, "targets sources"], attribution: Float[Tensor, "targets sources"]
) -> Bool[Tensor, "targets sources"]:
    """Which entries of a tile of the Jacobian the rule keeps. Ties go to the earlier source.

    An entry whose gradient is exactly zero (a source after its target, say) is never kept.
    """
    there = gradient != 0
    match keep:
        case Threshold(t):
            return there & (attribution.abs() >= t)
        case TopK(k):
            return there & largest(attribution.abs(), k)
        case Mass(fraction):
            return there & fewest(attribution.abs(), fraction)
        case Dense():
            return there
    assert_never(keep)  # a rule that nobody taught this would keep everything


def most_kept(keep: Keep, seen: int) -> int:
    """How many edges of a row the rule keeps at most, where its target can see so many sources."""
    match keep:
        case TopK(k):
            return min(seen, k)
        case Dense() | Threshold() | Mass():  # the last two choose by value, so all is their bound
            return seen
    assert_never(keep)


def is_counted(keep: Keep) -> bool:
    """Whether `most_kept` is what the rule keeps, but for gradients that are zero, and no mere bound."""
    match keep:
        case Dense() | TopK():
            return True
        case Threshold() | Mass():
            return False
    assert_never(keep)


def least_share(keep: Keep) -> float:
    """The fraction of each row's l1 that the rule keeps at least."""
    match keep:
        case Dense():
            return 1.0
        case Mass(fraction):
            return fraction
        case TopK() | Threshold():
            return 0.0
    assert_never(keep)


def keep_text(keep: Keep) -> str:
    """The text that `parse_keep` reads as this rule."""
    return ":".join([type(keep).__name__.lower(), *(repr(number) for number in keep)])


def parse_keep(text: object) -> Keep:
    """A rule from its text: `dense`, `topk:32`, `threshold:0.1` or `mass:0.99`. A rule is given back as it is.

    Raises:
        ValueError: where the text is no rule.
    """
    if isinstance(text, Keep):
        return text
    name, *numbers = str(text).split(":")
    try:
        kind = _BY_TEXT[name]
        takes = [kind.__annotations__[field] for field in kind._fields]
        return kind(*(take(number) for take, number in zip(takes, numbers, strict=True)))
    except (KeyError, ValueError):
        forms = [":".join([each, *(field.upper() for field in kind._fields)]) for each, kind in _BY_TEXT.items()]
        raise ValueError(f"{text!r} is not a rule; expected {', '.join(forms[:-1])} or {forms[-1]}") from None
