"""What is to be computed of any prompts: a model, some attributions between its dictionaries, and their options.

`Work` is the part that a run file and a job have in common; `Loaded` is a work with its model and dictionaries in memory.
"""

import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)
from torch import Tensor

from attrib.adapters import load_dictionary, load_model
from attrib.attribution import questions
from attrib.attribution.loop import shifted
from attrib.attribution.options import ErrorAs, Method
from attrib.attribution.options import check as check_attribution
from attrib.attribution.plan import plan
from attrib.attribution.planned import Plan
from attrib.core.devices import check_device as check_device
from attrib.core.devices import check_devices as check_devices
from attrib.core.edges import Edges
from attrib.core.fingerprints import seal
from attrib.core.keep import keep_text, parse_keep
from attrib.core.positions import plain_positions
from attrib.core.rules import USUAL, Rule, is_usual, parse_rule, rule_text, with_other
from attrib.core.types import (
    POLICIES,
    Difference,
    Effect,
    InputError,
    Keep,
    Logits,
    Mass,
    Progress,
    Question,
    TokenLogits,
    TopLogits,
    first_line,
)
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.fit import known_to
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph import building
from attrib.graph.expand import BLOCK
from attrib.graph.graph import Graph
from attrib.graph.neurons import Neurons, neurons_named
from attrib.graph.options import GraphAsked, Mlps
from attrib.graph.outputs import Output, Span
from attrib.models.tokenizer import SpecialTokens
from attrib.models.transformer import Model
from attrib.runs.asked import faults_of

LONGEST_CONFIG = 1 << 20
"""Bytes of a TOML file, at most."""

KINDS: tuple[Question, ...] = get_args(Question)
Kind = Literal[Question, "graph"]
"""What can be asked for: edges between two places, or a whole graph of each prompt."""
Results = list[Edges] | list[Graph]
"""What comes out: the edges of each attribution, of all prompts; or the graph of each prompt."""
Whole = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63, strict=True)]
"""TOML has whole numbers of any length, and nothing behind it has; and true is no number."""


def _positions(given: Any) -> Any:
    """Positions as they are written, once it is seen that they are some. Raises ValueError."""
    try:
        plain_positions(given, [])
    except InputError as error:
        raise ValueError(str(error).removeprefix("positions: ")) from None
    return given


Written = Annotated[int | str | list[int] | list[bool] | None, PlainValidator(_positions)]
"""Positions in every form that TOML has: a number, a list of them, a mask, "last", "all", or a slice as text."""


USUAL_KEEP = Mass(0.99)
"""What files keep, where nobody says: of a dense result most edges are too small to matter, and it may not fit in memory.

The functions of Python, whose result is in memory anyway, keep everything.
"""


_OF_LOGITS = ("top_logits", "mass", "logit_tokens", "logit_difference")
_OF_GRAPHS = (*_OF_LOGITS, "span", "mlps", "demean", "skip_positions", "max_nodes", "block")
_NEEDS: dict[Kind, tuple[str, ...]] = {
    "token_to_latent": ("target",), "latent_to_latent": ("source", "target"), "latent_to_logit": ("source",),
    "latent_to_metric": ("source", "metric"), "graph": ("dictionaries",),
}  # fmt: skip
_MAY: dict[Kind, tuple[str, ...]] = {"latent_to_logit": ("cuts", "effect", *_OF_LOGITS), "graph": _OF_GRAPHS}
TAKES: dict[Kind, frozenset[str]] = {kind: frozenset({*needs, *_MAY.get(kind, ("cuts", "effect"))}) for kind, needs in _NEEDS.items()}
"""The keys of an attribution that each kind uses."""

_UNUSED: dict[str, tuple[Kind, ...]] = {
    "error": ("token_to_latent", "graph"), "positions": ("latent_to_metric",), "method": ("latent_to_metric",),
    "precision_rows": ("latent_to_metric", "graph"), "rule": ("graph",), "bias": ("token_to_latent", "latent_to_metric", "graph"),
}  # fmt: skip
"""Options of a whole work, and the kinds that have no use for them."""

STORED = {"stored": True}
"""Validation's context for a description that attrib wrote down itself, with every option's usual value in it."""


def _given(described: BaseModel, info: Any) -> set[str]:
    """The keys that somebody set, whatever to. `info` is pydantic's ValidationInfo, a protocol that beartype cannot check."""
    return set() if (info.context or {}).get("stored") else described.model_fields_set


def _named(names: list[str]) -> list[str]:
    """Names of what has latents in a graph. Raises ValueError for an MLP's units of no layer."""
    try:
        list(map(neurons_named, names))
    except InputError as error:
        raise ValueError(str(error).removeprefix("dictionaries: ")) from None
    return names


_OF_GRAPH = GraphAsked()
"""What a graph is asked for where nobody says."""
Number = Annotated[Whole, Field(ge=0)]


class Attribution(BaseModel, extra="forbid"):
    """One block of the file: a kind, its dictionaries, those put in on the way and, for logits, which ones. Or the graphs of a file."""

    kind: Kind
    source: str | None = None
    target: str | None = None
    cuts: list[str] = Field(default_factory=list)
    effect: Effect = "direct"
    top_logits: Annotated[Whole, Field(ge=1)] = 10
    mass: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    logit_tokens: list[Whole | str] = Field(default_factory=list)
    logit_difference: tuple[Whole | str, Whole | str] | None = None
    metric: str | None = None
    """`module:function`, of latent_to_metric."""
    dictionaries: Annotated[list[str], AfterValidator(_named)] = Field(default_factory=list)
    """All that have latents in a graph; `neurons:LAYER` is an MLP's own units."""
    span: Whole | None = None
    """The targets of a graph are the prompt's own tokens from this position on."""
    mlps: Mlps = "exact"
    demean: Annotated[bool, Field(strict=True)] = True
    skip_positions: Number = 0
    max_nodes: Number | None = None
    block: Annotated[Whole, Field(ge=1)] = BLOCK

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "Attribution":
        missing = [name for name in _NEEDS[self.kind] if getattr(self, name) in (None, [])]
        if missing == ["dictionaries"]:
            raise ValueError("dictionaries: none; a graph needs a list of at least one, whose latents are its nodes.")
        if missing:
            raise ValueError(f"{self.kind} needs a {' and a '.join(missing)}{' dictionary' if missing != ['metric'] else ''}.")
        return self

    @model_validator(mode="after")
    def _uses_what_it_is_given(self, info: Any) -> "Attribution":
        """An option that changes nothing was meant to change something."""
        given = _given(self, info)
        if unused := sorted(given - TAKES[self.kind] - {"kind"}):
            raise ValueError(f"{', '.join(unused)}: no effect on {self.kind}, which takes {', '.join(sorted(TAKES[self.kind]))}.")
        if "effect" in given and not self.cuts:
            raise ValueError(f"effect: {self.effect!r} has no effect without cuts; leave it out, or name the cuts.")
        ways = (_OF_LOGITS[:2], _OF_LOGITS[2:3], _OF_LOGITS[3:], ("span",))
        choices = [", ".join(of) for one in ways if (of := [n for n in one if n in given])]
        if len(choices) > 1:
            raise ValueError(f"{' and '.join(choices)}: each says which logits, and one of them would have no effect. Give one.")
        if "logit_tokens" in given and not self.logit_tokens:
            raise ValueError("logit_tokens: an empty list; expected at least one token.")
        return self

    @model_validator(mode="after")
    def _is_as_graphs_are(self) -> "Attribution":
        """A graph's logits are fewer where few are probable, unless somebody says otherwise."""
        if self.kind == "graph" and self.mass is None:
            self.mass = _OF_GRAPH.targets[0].mass
        return self

    @property
    def outputs(self) -> Output:
        """What a graph is of."""
        return self.logits if self.span is None else Span(self.span)

    @property
    def latents(self) -> list[str]:
        """The names of all its dictionaries."""
        named = (self.source, self.target, *self.cuts, *self.dictionaries)
        return [name for name in named if name is not None and neurons_named(name) is None]

    @property
    def logits(self) -> Logits:
        """Which logits are the targets."""
        if self.logit_difference is not None:
            return Difference(*self.logit_difference)
        return TokenLogits(tuple(self.logit_tokens)) if self.logit_tokens else TopLogits(self.top_logits, self.mass)


def _shared_by(item: Attribution) -> Any:
    """What blocks have in common whose attributions may be one call; one of a metric is a call of its own."""
    own = {"token_to_latent": "target", "latent_to_metric": ""}.get(item.kind, "source")
    return item.model_dump(exclude={own}) if own else id(item)


def _one_each(blocks: Any) -> Any:
    """A block for each of the dictionaries that a block lists as its sources or targets."""
    if not isinstance(blocks, list):
        return blocks
    found = blocks
    for key in ("source", "target"):
        found = [each for block in found for each in _of_each(block, key)]
    return found


def _of_each(block: Any, key: str) -> list[Any]:
    names = block.get(key) if isinstance(block, dict) else None
    return [block | {key: name} for name in names] if isinstance(names, list) and names else [block]


class Work(BaseModel, extra="forbid", arbitrary_types_allowed=True):
    """What to compute, and how: everything that a result's numbers follow from, but for the prompts and the device."""

    model: str
    attribution: Annotated[list[Attribution], BeforeValidator(_one_each), Field(min_length=1)]
    """Of which a block with a list of sources, or targets, is one for each."""
    keep: Annotated[Keep, BeforeValidator(parse_keep), PlainSerializer(keep_text)] = USUAL_KEEP
    policy: Literal["exact", "linear", "relp"] = "exact"
    dtype: Literal["float32", "float64", "tf32", "bfloat16"] = "float32"
    precision_rows: Annotated[Whole, Field(ge=0)] | None = None
    method: Method = "adjoint"
    budget: Annotated[ByteSize, Field(lt=1 << 63)] = ByteSize(DEFAULT_BUDGET)
    positions: Written = None
    error: ErrorAs = True
    bias: bool = False
    rule: Annotated[Rule, BeforeValidator(parse_rule), PlainSerializer(rule_text)] = USUAL
    special_tokens: SpecialTokens = "allow"
    compression: Literal["gzip", "lzf", "blosc-lz4", "zstd"] | None = None

    @model_validator(mode="after")
    def _uses_what_it_is_given(self, info: Any) -> "Work":
        kinds = {one.kind for one in self.attribution}
        for name, useless in _UNUSED.items():
            if name in _given(self, info) and kinds <= {*useless}:
                raise ValueError(f"{name}: no effect on {' and '.join(sorted(kinds))}; leave it out.")
        return self

    @model_validator(mode="after")
    def _is_as_graphs_are(self, info: Any) -> "Work":
        """Graphs lie in files of their own, and their rows add up, unless somebody says otherwise."""
        if not self.is_of_graphs:
            return self
        if len(self.attribution) > 1:
            raise ValueError(
                "attribution: a graph beside others; a file holds edges, or graphs of one description. Describe each in a file of its own."
            )
        if not (info.context or {}).get("stored"):
            self.policy = self.policy if "policy" in self.model_fields_set else "linear"
            self.keep = self.keep if "keep" in self.model_fields_set else _OF_GRAPH.keep
        return self

    @property
    def is_of_graphs(self) -> bool:
        """Whether what comes out are graphs, and not edges."""
        return any(one.kind == "graph" for one in self.attribution)

    @property
    def groups(self) -> list[list[Attribution]]:
        """The blocks, those together that follow one another and differ in nothing but the source, or, from tokens, the target."""
        return [list(group) for _, group in groupby(self.attribution, key=_shared_by)]

    @property
    def dictionaries(self) -> list[str]:
        """The names of all dictionaries that take part, each once."""
        return list(dict.fromkeys(name for one in self.attribution for name in one.latents))


# Python's reader takes time in the square of a key's parts: minutes for `a.a.a…` of 100 kB. A run that \w+ or quotes begin is met once.
_PART = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![\w\\-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{64}}")


def toml_table(path: Path) -> dict[str, Any]:
    """The keys of a TOML file. Raises InputError where it cannot be read, is too long, or no TOML."""
    try:
        with path.open("rb") as file:
            read = file.read(LONGEST_CONFIG + 1)
        if len(read) > LONGEST_CONFIG:
            raise InputError(f"config: {path} has more than {LONGEST_CONFIG:,} bytes, which no config needs.")
        if found := _LONG_KEY.search(text := read.decode("utf-8-sig")):
            raise InputError(f"config: {path} has a key of more than 64 parts: {found[0][:40]}...")
        return tomllib.loads(text)
    except FileNotFoundError:
        raise InputError(f"config: {path} does not exist.") from None
    except OSError as error:
        raise InputError(f"config: {path} cannot be read: {error.strerror}.") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # not TOML or UTF-8, or a number of too many digits
        raise InputError(f"config: {path} is not TOML: {error}.") from None


Description = TypeVar("Description", bound=BaseModel)


def checked(kind: type[Description], table: dict[str, Any], what: str, *, context: dict[str, Any] | None = None) -> Description:
    """A checked description from its keys. Raises InputError naming every key that is wrong.

    Args:
        context: STORED, for what attrib wrote down itself.
    """
    try:
        return kind.model_validate(table, context=context)
    except ValidationError as error:
        raise InputError("\n".join(faults_of(error, what))) from None


@dataclass(frozen=True)
class Loaded:
    """A work whose model and dictionaries are in memory: a function from prompts to edges. `load` makes one."""

    work: Work
    model: Model
    dictionaries: dict[str, Dictionary]
    devices: tuple[torch.device, ...] = ()
    """Those that share the work, the first of which holds the model, where there are several."""

    @property
    def _options(self) -> dict[str, Any]:
        work = self.work
        return ({"device": self.devices} if len(self.devices) > 1 else {}) | {
            "policy": POLICIES[work.policy], "keep": work.keep, "dtype": work.dtype, "budget": int(work.budget),
            "positions": work.positions, "method": work.method, "precision_rows": work.precision_rows,
        }  # fmt: skip

    def _rule(self, corrupt: Sequence[Any] | None) -> dict[str, Any]:
        """The rule as an option, with the prompts that it compares with; nothing where it is the usual one."""
        return {} if is_usual(self.work.rule) else {"rule": with_other(self.work.rule, corrupt)}

    def _error(self, kind: Kind) -> dict[str, Any]:
        """Whether the error, and all that is constant, are sources, as an attribution of latents takes it."""
        if kind == "token_to_latent":
            return {}
        return {"error": self.work.error} | ({"bias": True} if self.work.bias and kind != "latent_to_metric" else {})

    def check(self, prompts: Sequence[Any], corrupt: Sequence[Any] | None = None) -> None:
        """Raise what attributing these prompts would raise, as far as that is known before anything is computed.

        Args:
            corrupt: the prompts that the rule compares with.
        """
        for item in self.work.attribution:
            if item.kind == "graph":
                building.check(self.model, self._nodes(item), prompts, **self._graph_options(item))
                continue
            source, to = self._ends(item)
            options = self._options | self._rule(corrupt) | self._error(item.kind) | self._put_in(item)
            check_attribution(item.kind, self.model, source, to, prompts, **options)
        _check_apart(self.work.attribution, self.dictionaries)

    def attribute(self, prompts: Sequence[Any], progress: Progress | None = None, corrupt: Sequence[Any] | None = None) -> Results:
        """The edges of all attributions, one after another; or the prompts' graphs.

        Args:
            corrupt: the prompts that the rule compares with.
            progress: called with (prompts done, prompts in all), over all attributions.
        """
        if self.work.is_of_graphs:
            [item] = self.work.attribution
            return building.build(self.model, self._nodes(item), prompts, progress=progress or False, **self._graph_options(item))
        results, groups = list[Edges](), self.work.groups
        for number, group in enumerate(groups):
            report = shifted(progress or False, number * len(prompts), len(groups) * len(prompts))
            options = self._options | self._rule(corrupt) | self._put_in(group[0]) | {"progress": report}
            results += self._attribute(group, prompts, options)
        return results

    def plan(self, prompts: Sequence[Any], corrupt: Sequence[Any] | None = None) -> list[Plan | None]:
        """What each group will do, by `attrib.plan`; None for a metric, which no sweep computes. Raises what `check` raises."""
        if self.work.is_of_graphs:
            raise InputError("kind: graphs are not planned; what does not fit into the budget is refused when they are built.")
        self.check(prompts, corrupt)
        options = self._rule(corrupt) | {
            name: self._options[name] for name in ("policy", "keep", "positions", "dtype", "budget", "precision_rows")
        }

        def planned(group: list[Attribution]) -> Plan | None:
            item, (source, to) = group[0], self._ends_of(group)
            return (
                None
                if item.kind == "latent_to_metric"
                else plan(self.model, source, to, prompts, **options, **self._error(item.kind), **self._put_in(item))
            )

        return [planned(group) for group in self.work.groups]

    def _nodes(self, item: Attribution) -> list[Dictionary | Neurons]:
        """What has latents in a graph."""
        return [neurons_named(name) or self.dictionaries[name] for name in item.dictionaries]

    def _graph_options(self, item: Attribution) -> dict[str, Any]:
        """The options of `attrib.graph.build`."""
        shared = {name: value for name, value in self._options.items() if name != "precision_rows"}
        own = {name: getattr(item, name) for name in ("mlps", "demean", "skip_positions", "max_nodes", "block")}
        return shared | own | {"targets": item.outputs}

    def _ends(self, item: Attribution) -> tuple[Dictionary | None, Any]:
        """The source, None for tokens; and the target: a dictionary, a choice of logits, or a metric."""
        source = None if item.source is None else self.dictionaries[item.source]
        if item.metric is not None:
            return source, metric_of(item.metric)
        return source, item.logits if item.target is None else self.dictionaries[item.target]

    def _ends_of(self, group: list[Attribution]) -> tuple[Any, Any]:
        """The source and the target, or, where there are several, all sources or all targets."""
        sources, targets = zip(*map(self._ends, group), strict=True)
        if len(group) == 1 or group[0].kind == "latent_to_metric":
            return sources[0], targets[0]
        return (None, list(targets)) if sources[0] is None else (list(sources), targets[0])

    def _put_in(self, item: Attribution) -> dict[str, Any]:
        """What is put in on the way, as the attributions' options."""
        return {"cuts": [self.dictionaries[name] for name in item.cuts], "effect": item.effect}

    def _attribute(self, group: list[Attribution], prompts: Sequence[Any], options: dict[str, Any]) -> list[Edges]:
        """The edges of each block of a group."""
        source, to = self._ends_of(group)
        kind, options = group[0].kind, options | self._error(group[0].kind)
        found: Edges | list[Edges]
        if kind == "token_to_latent":
            found = questions.token_to_latent(self.model, to, prompts, **options)
        elif kind == "latent_to_latent":
            found = questions.latent_to_latent(self.model, source, to, prompts, **options)
        elif kind == "latent_to_logit":
            found = questions.latent_to_logit(self.model, source, prompts, logits=to, **options)
        else:
            of_metric = {name: value for name, value in options.items() if name not in ("positions", "precision_rows")}
            found = questions.latent_to_metric(self.model, source, prompts, to, **of_metric)
        return [found] if isinstance(found, Edges) else found


def load(
    work: Work, device: torch.device, places: Mapping[str, str | Path] | None = None, devices: tuple[torch.device, ...] = ()
) -> Loaded:
    """The model and dictionaries of a work. Raises what `load_model` and `load_dictionary` raise.

    Warns once of each dictionary that was made for another model, and not again for every prompt.

    Args:
        places: where those lie whose names are not enough to find them.
        devices: that share the work, where there are several; the first is `device`.
    """
    for item in work.attribution:  # before the model, which takes time
        if item.metric is not None:
            metric_of(item.metric)
    model, dictionaries = load_parts(work.model, work.dictionaries, work.special_tokens, device, places or {})
    return Loaded(work, model, dictionaries, devices)


def load_parts(
    name: str, dictionaries: Sequence[str], special_tokens: SpecialTokens, device: torch.device, places: Mapping[str, str | Path]
) -> tuple[Model, dict[str, Dictionary]]:
    """A model and dictionaries by their names, as `load` has them, for whatever is made of them.

    Args:
        name: of the model.
        dictionaries: their names.
    """
    model = load_model(places.get(name, name)).to(device=device)
    if special_tokens != "allow":
        model = model.with_special_tokens(special_tokens)
    found = {one: known_to(model, load_dictionary(places.get(one, one)), one) for one in dictionaries}
    # nobody else holds them: one hash does for every prompt that they are used on
    return seal(model), {one: seal(dictionary) for one, dictionary in found.items()}


def metric_of(name: str) -> Callable[[Tensor], Tensor]:
    """The function that `module:function` names, from this folder or from what is installed. This runs the module's code.

    Raises:
        InputError: where there is no such module or function, or importing it fails.
    """
    module, colon, function = name.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise InputError(f"metric: {name!r}; expected module:function, as my_metrics:entropy.")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` does
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise InputError(f"metric: {name!r} cannot be imported: {type(error).__name__}: {first_line(error)}.") from error  # type: ignore[arg-type]
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise InputError(f"metric: {name!r} is a {type(found).__name__}; expected a function from logits to a scalar.")
    return found


def _check_apart(blocks: Sequence[Attribution], dictionaries: dict[str, Dictionary]) -> None:
    """Raises InputError where two attributions are between the same places: a file has one block for each such pair."""
    seen: dict[tuple[object, ...], int] = {}
    for number, item in enumerate(blocks):
        ends = [None if name is None else dictionaries[name].site for name in (item.source, item.target)]
        if (first := seen.setdefault((item.kind, *ends), number)) != number:
            raise InputError(
                f"attribution[{number}]: {item.kind} between the same places as attribution[{first}]; a file holds one of them. "
                "Write the other, with its own options, to a file of its own."
            )
