"""What a call is asked for, and whether that can be: everything that is wrong is said before anything is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, wraps
from inspect import Parameter, signature
from typing import Any, Literal, NamedTuple, ParamSpec, TypedDict, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

from attrib.attribution.needs import Needs
from attrib.core.devices import Devices, check_devices
from attrib.core.keep import check_keep
from attrib.core.positions import Positions, PositionsLike, plain_positions
from attrib.core.rules import USUAL, Ablation, IntegratedGradients, Patching, Rule, check_rule, is_usual, other_prompts, rule_text
from attrib.core.types import EXACT, Dense, EdgeKind, Effect, InputError, Keep, MLPTreatment, Policy, Progress, Site, Treatment
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.blocks.kernels import Impl, check_impl
from attrib.engine.blocks.passing import place_of
from attrib.engine.free import free_budget
from attrib.engine.precision import Precision, precision_of
from attrib.engine.spread import Team
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.models.tokens import TokensLike, to_prompts
from attrib.models.transformer import Model
from attrib.paths.cuts import Cuts, apart_from, cuts_between
from attrib.paths.ends import stop_site
from attrib.paths.path import check_source, start_site
from attrib.paths.targets import as_logits, read_site

P = ParamSpec("P")
R = TypeVar("R")
Method = Literal["adjoint", "adjoint-triton", "torch.func"]
ErrorAs = bool | Literal["source"]
"""Whether the source's error is added to its reconstruction: as a constant, not at all, or as a source of each position."""

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
    rule: Rule


class MetricOptions(CommonOptions, total=False):
    """Those of an attribution to a metric, which has no positions, and one row alone."""

    method: Method
    progress: bool | Progress
    device: Devices | None


class PlanOptions(CommonOptions, total=False):
    """Those of a plan, which is the same whatever the method."""

    positions: PositionsLike
    precision_rows: int | None


class CallOptions(MetricOptions, PlanOptions, total=False):
    """Those of every other attribution."""

    replay: bool


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
    rule: Rule = USUAL
    device: Devices | None = None
    replay: bool = False
    result_fits: bool = True
    """Whether the result has to fit into memory: a plan only tells its size."""

    def __post_init__(self) -> None:
        check_keep(self.keep)
        check_rule(self.rule)
        rows = self.precision_rows
        if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 0):
            raise InputError(f"precision_rows: {self.precision_rows!r}; expected a whole number, 0 or more, or None.")
        if not (isinstance(self.progress, bool) or callable(self.progress)):
            raise InputError(f"progress: {self.progress!r}; expected True, False or a function called with (prompts done, prompts in all).")
        check_policy(self.policy)
        if self.method not in get_args(Method):
            raise InputError(f"method: {self.method!r}; expected one of {', '.join(get_args(Method))}.")
        check_impl(self.impl)
        if not isinstance(self.replay, bool):
            raise InputError(f"replay: {self.replay!r}; expected True or False.")
        if self.replay:
            self._check_replay()
        if len(self.devices) > 1:
            if self.method == "torch.func":
                raise InputError("device: several, and method='torch.func' goes row by row on one; expected 'adjoint' or 'adjoint-triton'.")
            if isinstance(self.rule, IntegratedGradients | Ablation):
                raise InputError(
                    f"device: several, and the rule {rule_text(self.rule)} looks at more points than one; expected one device."
                )

    def _check_replay(self) -> None:
        """Raises InputError for options with which no sweep can be captured."""
        if self.method != "adjoint":
            what = "sweeps nothing" if self.method == "torch.func" else "brings numbers of the host to its kernels"
            raise InputError(f"replay: True, and method={self.method!r} {what}; expected 'adjoint' with it.")
        if isinstance(self.rule, IntegratedGradients | Ablation):
            raise InputError(f"replay: True, and the rule {rule_text(self.rule)} looks at more points than one; leave one of them out.")
        if len(self.devices) > 1:
            raise InputError("replay: True, and several devices share each sweep; expected one device, or replay=False.")

    @cached_property
    def devices(self) -> tuple[torch.device, ...]:
        """Those that were named; none where the model's own is meant."""
        return () if self.device is None else check_devices(self.device)

    def there(self, model: Model) -> Model:
        """The model on the first of them, which opens prompts."""
        return model.to(device=self.devices[0]) if self.devices else model

    def team(self, model: Model) -> Team:
        """All of them, to share the sweeps of a model that is on the first."""
        return Team(self.devices or (model.device,), self.budget)

    @property
    def impl(self) -> Impl:
        """Whose attention maps and selection are used."""
        return "triton" if self.method == "adjoint-triton" else "torch"


def check_error(error: object, bias: object = False) -> None:
    """Raises InputError for what does not say whether the error, or all that is constant, is a source."""
    if not (isinstance(error, bool) or error == "source"):
        raise InputError(f"error: {error!r}; expected True or False, or 'source'.")
    if not isinstance(bias, bool):
        raise InputError(f"bias: {bias!r}; expected True or False.")


def check_replay(options: Options, model: Model, *, is_joint: bool = False) -> None:
    """Raises InputError where sweeps are to be captured that cannot be.

    Args:
        is_joint: whether many ends share a sweep, which looks at numbers of the device in between.
    """
    if options.replay and model.device.type == "cpu":
        raise InputError("replay: True, and the model is on a CPU, which is not asked for operations; expected a GPU, or replay=False.")
    if options.replay and is_joint:
        raise InputError("replay: True, and several sources or targets share a sweep; expected one of each, or replay=False.")


def check_policy(policy: object) -> None:
    """Raises InputError for what is no policy."""
    words = get_args(Treatment), get_args(Treatment), get_args(MLPTreatment)
    if not isinstance(policy, Policy) or not all(given in known for given, known in zip(policy, words, strict=True)):
        raise InputError(
            f"policy: {policy!r}; expected attrib.EXACT, attrib.LINEAR, attrib.RELP or Policy(attention, norm, mlp) of 'exact' and "
            "'frozen', where mlp may also be 'relp'."
        )


def with_options(function: Callable[P, R], asked: type | None = None) -> Callable[P, R]:
    """The function, whose signature spells out the options that it names as a typed dictionary, each with its default of `Options`.

    So `help` shows them, and `takes` refuses any other by its name, as Python does. The budget is shown as it is on a CPU: of a call on
    another device that names none it is what is free there.

    Args:
        asked: the dataclass that has their defaults, where it is another.
    """
    plain = signature(function)
    *own, options = plain.parameters.values()
    types = get_type_hints(get_args(options.annotation)[0])
    spelled = [
        Parameter(option.name, Parameter.KEYWORD_ONLY, default=option.default, annotation=types[option.name])
        for option in fields(asked or Options)
        if option.name in types
    ]
    function.__signature__ = plain.replace(parameters=[*own, *spelled])  # type: ignore[attr-defined]
    return _with_free_budget(function) if "budget" in types else function


def _with_free_budget(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which works in what its devices have free where no budget is named, and they have memory of their own."""
    known = signature(function)

    @wraps(function)
    def called(*args: P.args, **given: P.kwargs) -> R:
        if "budget" not in given:
            named: Any = given.get("device")
            devices = (known.bind(*args, **given).arguments["model"].device,) if named is None else check_devices(named)
            if (free := free_budget(devices)) is not None:
                given["budget"] = free
        return function(*args, **given)

    return called


def check(kind: EdgeKind, model: Model, source: Dictionary | None, target: Any, tokens: TokensLike, **options: Any) -> Needs:
    """Raise what the attribution of this kind would raise for these arguments, and say what it needs of memory; computes nothing.

    Args:
        target: a dictionary, a choice of logits, or a metric.
    """
    error, bias = options.pop("error", True), options.pop("bias", False)
    error = True if source is None else error
    check_error(error, bias)
    if kind == "latent_to_logit":
        target = as_logits(target)
    options["cuts"] = apart_from(options.get("cuts", ()), source, target)
    return check_call(kind, model, source, target, tokens, Options(**options), error, bias).needs


class Call(NamedTuple):
    """A call whose arguments were found good: where it starts and ends, its prompts and their sweeps."""

    start: Site
    stop: Site
    precision: Precision
    prompts: list[Tensor]
    positions: Positions
    needs: Needs


def check_call(
    kind: EdgeKind,
    model: Model,
    source: Dictionary | None,
    target: Any,
    tokens: TokensLike,
    options: Options,
    error: ErrorAs,
    bias: bool = False,
) -> Call:
    """Raise what is wrong with a call's arguments."""
    precision = precision_of(model, options.dtype)
    if kind == "latent_to_metric" and len(options.devices) > 1:
        raise InputError("device: several, and a metric has one row for a prompt, which cannot be split; expected one device.")
    if precision.is_reduced and (options.method == "torch.func" or kind == "latent_to_metric"):
        raise InputError(f"dtype: {precision.name} is a precision of the adjoint sweep; expected float32 or float64 here.")
    if options.precision_rows and options.method == "torch.func":
        raise InputError("precision_rows: it measures the adjoint sweep; expected None or 0 with method='torch.func'.")
    prompts = to_prompts(model, tokens)
    others = _other_prompts(model, prompts, options.rule)
    check_goes_together(kind, options, precision, error, bias)
    start = start_site(source)
    if kind == "latent_to_metric" and not callable(target):
        raise InputError(f"metric: {target!r:.60}; expected a function from logits [positions, d_vocab] to a scalar tensor.")
    stop = model.config.last if kind == "latent_to_metric" else stop_site(model, target, (source, *options.cuts))
    if source is not None:
        check_source(model, source, stop, target)
    put_in = cuts_between(model, source, target, start, stop, options.cuts, options.effect, options.policy)
    if bias:
        check_linear(model, target, start, max(stop, read_site(model, target), key=lambda site: site.depth), put_in, options)
    positions = plain_positions(options.positions, [len(ids) for ids in prompts])
    is_reference, rows = options.method == "torch.func", sampled_rows(options.precision_rows, precision, options.method)
    needs = Needs(
        kind, model, source, target, options.cuts, options.effect, options.policy, positions, bool(error), precision, is_reference, rows,
        options.keep, options.budget, options.rule, others, error == "source",
    )  # fmt: skip
    needs.check(prompts, result=options.result_fits)
    return Call(start, stop, precision, prompts, positions, needs)


def _other_prompts(model: Model, prompts: Sequence[Tensor], rule: Rule) -> list[Tensor] | None:
    """The prompts that a rule compares with, aligned with the call's; None where it does without.

    Raises:
        InputError: where they are others in number or length, naming the first; else as `to_prompts`.
    """
    given = other_prompts(rule)
    if given is None:
        return None
    found, name = to_prompts(model, given), "corrupt" if isinstance(rule, Patching) else "baseline"
    if len(found) != len(prompts):
        raise InputError(f"rule: {len(found)} {name} prompts for {len(prompts)} prompts; expected one for each, in their order.")
    for number, (ids, other) in enumerate(zip(prompts, found, strict=True)):
        if len(ids) != len(other):
            raise InputError(
                f"rule: {name} prompt {number} has {len(other)} tokens, and the prompt that it goes with {len(ids)}; expected as many: "
                "positions are compared one by one. Choose words of as many tokens."
            )
    return list(found)


def check_goes_together(kind: EdgeKind, options: Options, precision: Precision, error: ErrorAs, bias: bool) -> None:
    """Raises InputError where a rule and the other options do not go together."""
    rule, name = options.rule, rule_text(options.rule)
    if isinstance(rule, Ablation):
        if options.policy != EXACT:
            raise InputError(
                f"rule: {name} computes forward passes, and {options.policy} is of derivatives; expected attrib.EXACT with it."
            )
        if options.method != "adjoint":
            raise InputError(f"rule: {name} computes forward passes, and no method changes them; leave out method={options.method!r}.")
        if precision.is_reduced or options.precision_rows:
            raise InputError(
                f"rule: {name} has no sweep whose products could be of another dtype, or measured; expected float32 or float64."
            )
    if error == "source" and other_prompts(rule) is not None:
        raise InputError(
            f"error: 'source' beside {name} of other prompts, whose errors are other vectors and not this one at another scale; "
            "expected True or False."
        )
    if bias and not is_usual(rule):
        raise InputError(f"bias: it is what gradient times activation leaves of a linear target, and the rule is {name}; leave one out.")
    if bias and error != "source":
        raise InputError(f"bias: True with error={error!r}, so that it would hold the error too; expected error='source' with it.")
    if bias and kind not in ("latent_to_latent", "latent_to_logit"):
        raise InputError(f"bias: no effect on {kind}; leave it out.")


def check_linear(model: Model, target: Any, start: Site, stop: Site, cuts: Cuts | None, options: Options) -> None:
    """Raises InputError where a target is no linear function of what its sources write, so that the rest is more than biases."""
    policy = options.policy
    if policy.attention != "frozen" or policy.norm != "frozen":
        raise InputError(f"bias: under {policy} a target is no sum of its sources and a constant; expected attrib.LINEAR.")
    held = frozenset[Site]() if cuts is None else cuts.held
    outputs = (Site(layer, "mlp_out") for layer in range(model.config.n_layers))
    passed = [site for site in outputs if start.depth < site.depth <= stop.depth and place_of(site) not in held]
    if passed and policy.mlp == "exact":
        raise InputError(
            f"bias: the MLP at {passed[0]} is on the way, so that a target is no sum of its sources and a constant; expected "
            "Policy('frozen', 'frozen', 'frozen'), attrib.RELP, or transcoders as cuts in place of the MLPs."
        )
    dictionaries = [target] if isinstance(target, Dictionary) else []
    dictionaries += [] if cuts is None or options.effect == "direct" else cuts.passed_dictionaries
    if scaled := [d for d in dictionaries if d.config.normalisation != "none"]:
        raise InputError(f"bias: {scaled[0].name} divides by the size of its input, which is not linear; leave bias out.")


def sampled_rows(asked: int | None, precision: Precision, method: Method = "adjoint") -> int:
    """How many rows are computed again, of what was asked for."""
    return (SAMPLED_ROWS if precision.is_measured and method != "torch.func" else 0) if asked is None else asked
