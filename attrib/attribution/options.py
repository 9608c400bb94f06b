"""What a call is asked for, and whether that can be: everything that is wrong is said before anything is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from inspect import Parameter, signature
from typing import Any, Literal, NamedTuple, ParamSpec, TypedDict, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

from attrib.attribution.needs import Needs
from attrib.core.keep import check_keep
from attrib.core.positions import Positions, PositionsLike, plain_positions
from attrib.core.types import EXACT, Dense, EdgeKind, Effect, InputError, Keep, Policy, Progress, Site
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.blocks.kernels import Impl, check_impl
from attrib.engine.precision import Precision, precision_of
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.models.tokens import TokensLike, to_prompts
from attrib.models.transformer import Model
from attrib.paths.cuts import cuts_between
from attrib.paths.path import check_source, start_site, stop_site

P = ParamSpec("P")
R = TypeVar("R")
Method = Literal["adjoint", "adjoint-triton", "torch.func"]

SAMPLED_ROWS = 16
"""Rows that are computed again in float64, to tell the error of a reduced precision."""


class CommonOptions(TypedDict, total=False):
    """The options that every attribution and its plan have; what each means is said by `latent_to_latent`."""

    cuts: Sequence[Dictionary]
    effect: Effect
    policy: Policy
    keep: Keep
    dtype: torch.dtype | str | None
    budget: int


class MetricOptions(CommonOptions, total=False):
    """Those of an attribution to a metric, which has no positions, and one row alone."""

    method: Method
    progress: bool | Progress


class PlanOptions(CommonOptions, total=False):
    """Those of a plan, which is the same whatever the method."""

    positions: PositionsLike
    precision_rows: int | None


class CallOptions(MetricOptions, PlanOptions, total=False):
    """Those of every other attribution."""


@dataclass(frozen=True)
class Options:
    """The options of a call, found good, each with its default: no other place states one."""

    cuts: Sequence[Dictionary] = ()
    effect: Effect = "direct"
    policy: Policy = EXACT
    keep: Keep = Dense()  # noqa: RUF009 - an immutable value
    positions: PositionsLike = None
    dtype: torch.dtype | str | None = None
    budget: int = DEFAULT_BUDGET
    method: Method = "adjoint"
    precision_rows: int | None = None
    progress: bool | Progress = False
    result_fits: bool = True
    """Whether the result has to fit into memory: a plan only tells its size."""

    def __post_init__(self) -> None:
        check_keep(self.keep)
        rows = self.precision_rows
        if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 0):
            raise InputError(f"precision_rows: {self.precision_rows!r}; expected a whole number, 0 or more, or None.")
        if not (isinstance(self.progress, bool) or callable(self.progress)):
            raise InputError(f"progress: {self.progress!r}; expected True, False or a function called with (prompts done, prompts in all).")
        if not isinstance(self.policy, Policy) or not set(self.policy) <= {"exact", "frozen"}:
            raise InputError(
                f"policy: {self.policy!r}; expected attrib.EXACT, attrib.LINEAR or Policy(attention, norm, mlp) of 'exact' and 'frozen'."
            )
        if self.method not in get_args(Method):
            raise InputError(f"method: {self.method!r}; expected one of {', '.join(get_args(Method))}.")
        check_impl(self.impl)

    @property
    def impl(self) -> Impl:
        """Whose attention maps and selection are used."""
        return "triton" if self.method == "adjoint-triton" else "torch"


def with_options(function: Callable[P, R], asked: type | None = None) -> Callable[P, R]:
    """The function, whose signature spells out the options that it names as a typed dictionary, each with its default of `Options`.

    So `help` shows them, and `takes` refuses any other by its name, as Python does.

    Args:
        asked: the dataclass that has their defaults, where it is another.
    """
    plain = signature(function)
    *named, options = plain.parameters.values()
    types = get_type_hints(get_args(options.annotation)[0])
    spelled = [
        Parameter(option.name, Parameter.KEYWORD_ONLY, default=option.default, annotation=types[option.name])
        for option in fields(asked or Options)
        if option.name in types
    ]
    function.__signature__ = plain.replace(parameters=[*named, *spelled])  # type: ignore[attr-defined]
    return function


class Call(NamedTuple):
    """A call whose arguments were found good: where it starts and ends, its prompts and their sweeps."""

    start: Site
    stop: Site
    precision: Precision
    prompts: list[Tensor]
    positions: Positions
    needs: Needs


def check_call(
    kind: EdgeKind, model: Model, source: Dictionary | None, target: Any, tokens: TokensLike, options: Options, error: bool
) -> Call:
    """Raise what is wrong with a call's arguments."""
    precision = precision_of(model, options.dtype)
    if precision.is_reduced and (options.method == "torch.func" or kind == "latent_to_metric"):
        raise InputError(f"dtype: {precision.name} is a precision of the adjoint sweep; expected float32 or float64 here.")
    if options.precision_rows and options.method == "torch.func":
        raise InputError("precision_rows: it measures the adjoint sweep; expected None or 0 with method='torch.func'.")
    prompts = to_prompts(model, tokens)
    start = start_site(source)
    if kind == "latent_to_metric" and not callable(target):
        raise InputError(f"metric: {target!r:.60}; expected a function from logits [positions, d_vocab] to a scalar tensor.")
    stop = model.config.last if kind == "latent_to_metric" else stop_site(model, target, (source, *options.cuts))
    if source is not None:
        check_source(model, source, stop, target)
    cuts_between(model, source, target, start, stop, options.cuts, options.effect, options.policy)
    positions = plain_positions(options.positions, [len(ids) for ids in prompts])
    is_reference, rows = options.method == "torch.func", sampled_rows(options.precision_rows, precision, options.method)
    needs = Needs(
        kind, model, source, target, options.cuts, options.effect, options.policy, positions, error, precision, is_reference, rows,
        options.keep, options.budget,
    )  # fmt: skip
    needs.check(prompts, result=options.result_fits)
    return Call(start, stop, precision, prompts, positions, needs)


def sampled_rows(asked: int | None, precision: Precision, method: Method = "adjoint") -> int:
    """How many rows are computed again, of what was asked for."""
    return (SAMPLED_ROWS if precision.is_measured and method != "torch.func" else 0) if asked is None else asked
