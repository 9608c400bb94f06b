"""A run: prompts from a file, one model, some attributions, one HDF5 file. The CLI's work, as a function.

A run is described by `RunFile`, whose fields are the options of `attrib run` and the keys of its TOML
file. Everything that can be refused is refused before anything is computed.
"""

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, model_validator

from attrib import attribute, store
from attrib.between import Effect
from attrib.dictionary import Dictionary
from attrib.edges import Edges
from attrib.jacobian import DEFAULT_BUDGET
from attrib.model import Model
from attrib.sources import load_dictionary, load_model
from attrib.types import POLICIES, Dense, Difference, InputError, Keep, Logits, Mass, Threshold, Tokens, TopK, TopLogits

Kind = Literal["token_to_latent", "latent_to_latent", "latent_to_logit"]


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
    top_logits: int = 10
    mass: float | None = None
    logit_tokens: list[int | str] = Field(default_factory=list)
    logit_difference: tuple[int | str, int | str] | None = None

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


class RunFile(BaseModel):
    """Everything that `attrib run` needs."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str
    prompts: Path
    out: Path
    attribution: list[Attribution] = Field(min_length=1)
    keep: Annotated[Dense | TopK | Threshold | Mass, BeforeValidator(parse_keep)] = Dense()
    policy: Literal["exact", "linear"] = "exact"
    dtype: Literal["float32", "float64", "tf32", "bfloat16"] = "float32"
    precision_rows: Annotated[int, Field(ge=0)] | None = None
    method: attribute.Method = "adjoint"
    device: str = "cpu"
    budget: ByteSize = ByteSize(DEFAULT_BUDGET)
    positions: list[int] | None = None
    error: bool = True
    compression: Literal["gzip", "lzf", "blosc-lz4", "zstd"] | None = None
    overwrite: bool = False


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a TOML run file; a relative path of prompts is taken from its folder."""
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"config: {path} does not exist.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"config: {path} is not TOML: {error}.") from None
    if isinstance(table.get("prompts"), str):
        table["prompts"] = path.parent / table["prompts"]
    return table


def run_file(table: dict[str, Any]) -> RunFile:
    """A checked run from its keys. Raises InputError naming every key that is wrong."""
    try:
        return RunFile(**table)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'run'}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise InputError("\n".join(lines)) from None


def read_prompts(path: Path) -> list[str | torch.Tensor]:
    """Prompts of a text file, one a line, or of a .jsonl file: strings, {"text": ...} or {"tokens": [...]}.

    Raises:
        InputError: where the file is missing, not text, or holds an empty prompt; names the line.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise InputError(f"prompts: {path} does not exist.") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(f"prompts: {path} is not a text file: {error}.") from None
    lines = text.removesuffix("\n").split("\n") if text else []
    if not lines:
        raise InputError(f"prompts: {path} is empty; expected one prompt a line.")
    parse = _json_prompt if path.suffix == ".jsonl" else lambda line, _: line
    prompts = [parse(line, f"prompts: {path}, line {number}") for number, line in enumerate(lines, 1)]
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) == 0 or (isinstance(prompt, str) and not prompt.strip()):
            raise InputError(f"prompts: {path}, line {number} is an empty prompt; remove the line or write one.")
    return prompts


def _json_prompt(line: str, where: str) -> str | torch.Tensor:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}.") from None
    if isinstance(value, dict):
        value = value.get("text", value.get("tokens"))
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(token, int) and not isinstance(token, bool) for token in value):
        return torch.tensor(value, dtype=torch.int64)
    raise InputError(f'{where}: expected a string, {{"text": "..."}} or {{"tokens": [ids]}}.')


def check_output(path: Path, overwrite: bool) -> None:
    """Raises InputError where the file exists and may not be replaced, or its folder does not."""
    if path.exists() and not overwrite:
        raise InputError(f"out: {path} exists; give --overwrite to replace it, or another name.")
    if not path.parent.is_dir():
        raise InputError(f"out: the folder {path.parent} does not exist.")


def check_device(name: str) -> torch.device:
    """A device that this machine has."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: {name!r} is not a device; expected cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise InputError(f"device: {name!r} is not on this machine, which has {torch.cuda.device_count()} CUDA devices.")
    return device


Step = Callable[[int, int], None]


def execute(run: RunFile, progress: Step | None = None) -> list[Edges]:
    """Compute a run and write its file; returns what was written.

    Args:
        progress: called with (prompts done, prompts in all), over all attributions.
    """
    check_output(run.out, run.overwrite)
    prompts = read_prompts(run.prompts)
    device = check_device(run.device)
    model = load_model(run.model).to(device=device)
    named = dict.fromkeys(name for a in run.attribution for name in (a.source, a.target, *a.cuts) if name is not None)
    dictionaries = {name: load_dictionary(name) for name in named}
    options: dict[str, Any] = {
        "policy": POLICIES[run.policy], "keep": run.keep, "dtype": run.dtype, "budget": int(run.budget), "positions": run.positions,
        "method": run.method, "precision_rows": run.precision_rows,
    }  # fmt: skip
    for item in run.attribution:
        source, target = (dictionaries.get(name or "") for name in _used(item))
        put_in = _put_in(item, dictionaries)
        attribute.check(item.kind, model, source, item.logits if target is None else target, prompts, **options, **put_in)
    _check_apart(run.attribution, dictionaries)
    results = []
    for number, item in enumerate(run.attribution):
        report = _shifted(progress, number * len(prompts), len(run.attribution) * len(prompts))
        own = _put_in(item, dictionaries) | {"progress": report}
        results.append(_attribute(item, model, dictionaries, prompts, run.error, options | own))
    store.save(run.out, results, compression=run.compression, overwrite=run.overwrite)
    return results


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


def _shifted(progress: Step | None, before: int, total: int) -> Step | Literal[False]:
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
