"""What is to be computed of any prompts: a model, some attributions between its dictionaries, and their options.

`Work` is the part that a run file and a job have in common; `Loaded` is a work with its model and dictionaries in memory.
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from attrib import attribute
from attrib.between import Effect
from attrib.dictionary import Dictionary
from attrib.edges import Edges
from attrib.jacobian import DEFAULT_BUDGET
from attrib.model import Model
from attrib.sources import load_dictionary, load_model
from attrib.tokenizer import SpecialTokens
from attrib.types import POLICIES, Dense, Difference, InputError, Keep, Logits, Mass, Progress, Threshold, Tokens, TopK, TopLogits

LONGEST_CONFIG = 1 << 20
"""Bytes of a TOML file, at most."""

Kind = Literal["token_to_latent", "latent_to_latent", "latent_to_logit"]
Whole = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
"""TOML has whole numbers of any length, and nothing behind it has."""


def keep_text(keep: Keep) -> str:
    """The text that `parse_keep` reads as this rule."""
    return ":".join([type(keep).__name__.lower(), *(repr(number) for number in keep)])


def parse_keep(text: object) -> Keep:
    """`dense`, `topk:32`, `threshold:0.1` or `mass:0.99`."""
    if isinstance(text, Dense | TopK | Threshold | Mass):
        return text
    rules: dict[str, Callable[[str], Keep]] = {
        "dense": lambda _: Dense(),
        "topk": lambda k: TopK(int(k)),
        "threshold": lambda t: Threshold(float(t)),
        "mass": lambda fraction: Mass(float(fraction)),
    }
    name, _, number = str(text).partition(":")
    try:
        return rules[name](number)
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not a rule; expected dense, topk:K, threshold:T or mass:FRACTION") from None


class Attribution(BaseModel):
    """One block of the file: a kind, its dictionaries, those put in on the way and, for logits, which ones."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    source: str | None = None
    target: str | None = None
    cuts: list[str] = Field(default_factory=list)
    effect: Effect = "direct"
    top_logits: Whole = 10
    mass: float | None = None
    logit_tokens: list[Whole | str] = Field(default_factory=list)
    logit_difference: tuple[Whole | str, Whole | str] | None = None

    @model_validator(mode="after")
    def _has_its_dictionaries(self) -> "Attribution":
        needs = {"token_to_latent": ("target",), "latent_to_latent": ("source", "target"), "latent_to_logit": ("source",)}[self.kind]
        missing = [name for name in needs if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{self.kind} needs a {' and a '.join(missing)} dictionary")
        return self

    @property
    def logits(self) -> Logits:
        """Which logits are the targets."""
        if self.logit_difference is not None:
            return Difference(*self.logit_difference)
        return Tokens(tuple(self.logit_tokens)) if self.logit_tokens else TopLogits(self.top_logits, self.mass)


class Work(BaseModel):
    """What to compute, and how: everything that a result's numbers follow from, but for the prompts and the device."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str
    attribution: list[Attribution] = Field(min_length=1)
    keep: Annotated[Dense | TopK | Threshold | Mass, BeforeValidator(parse_keep), PlainSerializer(keep_text)] = Dense()
    policy: Literal["exact", "linear"] = "exact"
    dtype: Literal["float32", "float64", "tf32", "bfloat16"] = "float32"
    precision_rows: Annotated[Whole, Field(ge=0)] | None = None
    method: attribute.Method = "adjoint"
    budget: Annotated[ByteSize, Field(lt=1 << 63)] = ByteSize(DEFAULT_BUDGET)
    positions: list[Whole] | None = None
    error: bool = True
    special_tokens: SpecialTokens = "allow"
    compression: Literal["gzip", "lzf", "blosc-lz4", "zstd"] | None = None

    @property
    def dictionaries(self) -> list[str]:
        """The names of all dictionaries that take part, each once."""
        named = (name for a in self.attribution for name in (a.source, a.target, *a.cuts) if name is not None)
        return list(dict.fromkeys(named))


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


Checked = TypeVar("Checked", bound=BaseModel)


def checked(kind: type[Checked], table: dict[str, Any], what: str) -> Checked:
    """A checked description from its keys. Raises InputError naming every key that is wrong."""
    try:
        return kind(**table)
    except ValidationError as error:
        raise InputError("\n".join(faults_of(error, what))) from None


def faults_of(error: ValidationError, what: str) -> list[str]:
    """A line for each key that is wrong; `what` stands for the whole."""
    found = error.errors(include_url=False, include_input=False)
    return [f"{'.'.join(map(str, e['loc'])) or what}: {e['msg'].removeprefix('Value error, ')}" for e in found]


def check_device(name: str) -> torch.device:
    """A device that this machine has."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: {name!r} is not a device; expected cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise InputError(f"device: {name!r} is not on this machine, which has {torch.cuda.device_count()} CUDA devices.")
    return device


@dataclass(frozen=True)
class Loaded:
    """A work whose model and dictionaries are in memory: a function from prompts to edges. `load` makes one."""

    work: Work
    model: Model
    dictionaries: dict[str, Dictionary]

    @property
    def _options(self) -> dict[str, Any]:
        work = self.work
        return {
            "policy": POLICIES[work.policy], "keep": work.keep, "dtype": work.dtype, "budget": int(work.budget),
            "positions": work.positions, "method": work.method, "precision_rows": work.precision_rows,
        }  # fmt: skip

    def check(self, prompts: Sequence[Any]) -> None:
        """Raise what attributing these prompts would raise, as far as that is known before anything is computed."""
        for item in self.work.attribution:
            source, target = (self.dictionaries.get(name or "") for name in _used(item))
            to = item.logits if target is None else target
            attribute.check(item.kind, self.model, source, to, prompts, **self._options, **_put_in(item, self.dictionaries))
        _check_apart(self.work.attribution, self.dictionaries)

    def attribute(self, prompts: Sequence[Any], progress: Progress | None = None) -> list[Edges]:
        """The edges of all attributions, one after another.

        Args:
            progress: called with (prompts done, prompts in all), over all attributions.
        """
        results = []
        for number, item in enumerate(self.work.attribution):
            report = _shifted(progress, number * len(prompts), len(self.work.attribution) * len(prompts))
            options = self._options | _put_in(item, self.dictionaries) | {"progress": report}
            results.append(_attribute(item, self.model, self.dictionaries, prompts, self.work.error, options))
        return results


def load(work: Work, device: torch.device, places: Mapping[str, str | Path] | None = None) -> Loaded:
    """The model and dictionaries of a work. Raises what `load_model` and `load_dictionary` raise.

    Args:
        places: where those lie whose names are not enough to find them.
    """
    places = places or {}
    model = load_model(places.get(work.model, work.model)).to(device=device)
    if work.special_tokens != "allow":
        model = model.with_special_tokens(work.special_tokens)
    dictionaries = {name: load_dictionary(places.get(name, name)) for name in work.dictionaries}
    return Loaded(work, model, dictionaries)


def _check_apart(blocks: Sequence[Attribution], dictionaries: dict[str, Dictionary]) -> None:
    """Raises InputError where two attributions are between the same places: a file has one block for each such pair."""
    seen: dict[tuple[object, ...], int] = {}
    for number, item in enumerate(blocks):
        ends = [None if name is None else dictionaries[name].site for name in _used(item)]
        if (first := seen.setdefault((item.kind, *ends), number)) != number:
            raise InputError(
                f"attribution.{number}: {item.kind} between the same places as attribution.{first}; a file holds one of them. "
                "Write the other, with its own options, to a file of its own."
            )


def _used(item: Attribution) -> tuple[str | None, str | None]:
    """The dictionaries that a kind uses, of those that are given for several kinds at once."""
    return None if item.kind == "token_to_latent" else item.source, None if item.kind == "latent_to_logit" else item.target


def _put_in(item: Attribution, dictionaries: dict[str, Dictionary]) -> dict[str, Any]:
    """What is put in on the way, as the attributions' options."""
    return {"cuts": [dictionaries[name] for name in item.cuts], "effect": item.effect}


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | Literal[False]:
    return (lambda done, _: progress(before + done, total)) if progress else False


def _attribute(
    item: Attribution, model: Model, dictionaries: dict[str, Dictionary], prompts: Sequence[Any], error: bool, options: dict[str, Any]
) -> Edges:
    source, target = (dictionaries.get(name or "") for name in _used(item))
    if source is None:
        assert target is not None
        return attribute.token_to_latent(model, target, prompts, **options)
    if target is None:
        return attribute.latent_to_logit(model, source, prompts, logits=item.logits, error=error, **options)
    return attribute.latent_to_latent(model, source, target, prompts, error=error, **options)
