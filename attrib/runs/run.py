"""A run: prompts from a file or as text, one model, some attributions, one HDF5 file. The CLI's work, as a function.

A run is described by `RunFile`, whose fields are the options of `attrib run` and the keys of its TOML
file. Everything that can be refused is refused before anything is computed.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from torch import Tensor

from attrib import store
from attrib.attribution.planned import Plan
from attrib.core.rules import rule_text, takes_other
from attrib.core.types import InputError, Progress
from attrib.runs.prompts import Messages, read, read_pairs
from attrib.runs.spec import Loaded, Results, Work, check_devices, checked, load, toml_table
from attrib.store.writing import check_output

CORRUPT = ("corrupt", "corrupt_prompt", "corrupt_field")
"""The keys that say where the prompts are that a rule compares with."""


class RunFile(Work):
    """Everything that `attrib run` needs."""

    prompts: Path | None = None
    """A file of prompts, as `attrib.runs.prompts.read` takes it."""
    prompt: Annotated[list[str], Field(min_length=1)] | None = None
    """Prompts themselves, in place of a file."""
    corrupt: Path | None = None
    """A file of the prompts that the rule compares with, one for each, of as many tokens."""
    corrupt_prompt: Annotated[list[str], Field(min_length=1)] | None = None
    """Those prompts themselves, in place of a file."""
    corrupt_field: Annotated[str, Field(min_length=1)] | None = None
    """The key or column of the file of prompts that holds them, in place of another file."""
    out: Path | None = None
    """The file to write; a plan needs none."""
    device: str | list[str] = "cpu"
    """One, or several that share the rows of every sweep: a list, "cuda:0,cuda:1", or "all"."""
    overwrite: bool = False

    @model_validator(mode="after")
    def _has_prompts(self) -> "RunFile":
        if (self.prompts is None) == (self.prompt is None):
            given = "missing" if self.prompt is None else "given beside prompt"
            raise ValueError(f"prompts: {given}; expected either prompts, a file, or prompt, the text itself.")
        return self

    @model_validator(mode="after")
    def _has_what_its_rule_takes(self) -> "RunFile":
        given, text = [name for name in CORRUPT if getattr(self, name) is not None], rule_text(self.rule)
        if len(given) > 1:
            raise ValueError(
                f"{given[0]}: given beside {given[1]}; expected one of corrupt, a file, corrupt_prompt, the text itself, and "
                "corrupt_field, a key of the file of prompts."
            )
        if self.corrupt_field is not None and self.prompts is None:
            raise ValueError("corrupt_field: it is a key of the file of prompts, and there is none; give corrupt_prompt.")
        if given and not takes_other(self.rule):
            raise ValueError(f"{given[0]}: no effect on the rule {text}; leave it out, or choose rule = 'patching' or 'ig:16:corrupt'.")
        if not given and takes_other(self.rule):
            raise ValueError(
                f"corrupt: missing, and the rule {text} compares with other prompts; give corrupt, a file of one for each prompt, "
                "corrupt_prompt, the texts, or corrupt_field, the key that holds them in the file of prompts."
            )
        return self


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a TOML run file; a relative path of prompts is taken from its folder."""
    table = toml_table(path)
    for key in ("prompts", "corrupt"):
        if isinstance(named := table.get(key), str) and named != "-" and not named.startswith("hf:"):
            table[key] = path.parent / named
    return table


def run_file(table: dict[str, Any]) -> RunFile:
    """A checked run from its keys. Raises InputError naming every key that is wrong."""
    return checked(RunFile, table, "run")


def read_prompts(path: Path) -> list[str | Tensor | Messages]:
    """All prompts of a file, as `attrib.runs.prompts.read` finds them.

    Raises:
        InputError: where the file is missing, or holds something else than a prompt; names the line.
    """
    name = str(path)
    if name != "-" and not name.startswith("hf:") and not os.path.exists(path):  # a text that is no name, such as a long one, is none
        raise InputError(
            f"prompts: {name} does not exist; expected a file, one prompt a line, or .jsonl. Text itself is given with --prompt "
            "(in a run file, prompt = [...])."
        )
    given = []
    for found in read(name):
        if found.prompt is None:
            raise InputError(f"prompts: {found.where} {found.fault}. Remove it, or write a prompt there.")
        given.append(found.prompt)
    if not given:
        raise InputError(f"prompts: {path} is empty; expected one prompt a line.")
    return given


def prompts_of(run: RunFile) -> list[str | Tensor | Messages]:
    """A run's prompts. Raises what `read_prompts` raises, and InputError for a text that is none."""
    found = _prompts("prompt", run.prompts, run.prompt)
    assert found is not None
    return found


def corrupt_of(run: RunFile) -> list[str | Tensor | Messages] | None:
    """The prompts that a run's rule compares with; None where it does without. Raises as `prompts_of`."""
    if run.corrupt_field is not None:
        assert run.prompts is not None
        found = list(read_pairs(run.prompts, run.corrupt_field))
        if wrong := next((other for _, other in found if other.prompt is None), None):
            raise InputError(f"corrupt_field: {wrong.where} {wrong.fault}. Give every prompt the one that it is compared with.")
        return [other.prompt for _, other in found if other.prompt is not None]
    return _prompts("corrupt_prompt", run.corrupt, run.corrupt_prompt)


def _prompts(argument: str, file: Path | None, texts: list[str] | None) -> list[str | Tensor | Messages] | None:
    if texts is None:
        return None if file is None else read_prompts(file)
    if empty := [number for number, text in enumerate(texts) if not text.strip()]:
        raise InputError(f"{argument}: number {empty[0]} is empty; expected text.")
    return list(texts)


def execute(run: RunFile, progress: Progress | None = None) -> Results:
    """Compute a run and write its file; returns what was written.

    Args:
        progress: called with (prompts done, prompts in all), over all attributions.
    """
    if run.out is None:
        raise InputError("out: missing; expected the HDF5 file to write.")
    loaded, prompts, corrupt = _ready(run)
    loaded.check(prompts, corrupt)
    results = loaded.attribute(prompts, progress, corrupt)
    store.save(run.out, results, compression=run.compression, overwrite=run.overwrite)
    return results


def forecast(run: RunFile) -> list[Plan | None]:
    """What `execute` would do for each attribution, and raise before it computes; None for one that is not planned."""
    if run.method == "torch.func":
        raise InputError("method: torch.func goes row by row, without a plan; expected adjoint or adjoint-triton.")
    loaded, prompts, corrupt = _ready(run)
    return loaded.plan(prompts, corrupt)


def _ready(run: RunFile) -> tuple[Loaded, list[str | Tensor | Messages], list[str | Tensor | Messages] | None]:
    if run.out is not None:
        check_output("out", run.out, None, overwrite=run.overwrite)
    prompts, corrupt = prompts_of(run), corrupt_of(run)
    devices = check_devices(run.device)
    return load(run, devices[0], devices=devices), prompts, corrupt
