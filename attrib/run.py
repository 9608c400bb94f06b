"""A run: prompts from a file, one model, some attributions, one HDF5 file. The CLI's work, as a function.

A run is described by `RunFile`, whose fields are the options of `attrib run` and the keys of its TOML
file. Everything that can be refused is refused before anything is computed.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from attrib import store
from attrib.edges import Edges
from attrib.prompts import Messages, read
from attrib.types import InputError, Progress
from attrib.work import Work, check_device, checked, load, toml_table


class RunFile(Work):
    """Everything that `attrib run` needs."""

    prompts: Path
    out: Path
    device: str = "cpu"
    overwrite: bool = False


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a TOML run file; a relative path of prompts is taken from its folder."""
    table = toml_table(path)
    if isinstance(table.get("prompts"), str):
        table["prompts"] = path.parent / table["prompts"]
    return table


def run_file(table: dict[str, Any]) -> RunFile:
    """A checked run from its keys. Raises InputError naming every key that is wrong."""
    return checked(RunFile, table, "run")


def read_prompts(path: Path) -> list[str | Tensor | Messages]:
    """All prompts of a file, as `attrib.prompts.read` finds them.

    Raises:
        InputError: where the file is missing, or holds something else than a prompt; names the line.
    """
    given = []
    for found in read(path):
        if found.prompt is None:
            raise InputError(f"prompts: {found.where} {found.fault}. Remove it, or write a prompt there.")
        given.append(found.prompt)
    if not given:
        raise InputError(f"prompts: {path} is empty; expected one prompt a line.")
    return given


def check_output(path: Path, overwrite: bool) -> None:
    """Raises InputError where the file exists and may not be replaced, or its folder does not."""
    if path.exists() and not overwrite:
        raise InputError(f"out: {path} exists; give --overwrite to replace it, or another name.")
    if not path.parent.is_dir():
        raise InputError(f"out: the folder {path.parent} does not exist.")


def execute(run: RunFile, progress: Progress | None = None) -> list[Edges]:
    """Compute a run and write its file; returns what was written.

    Args:
        progress: called with (prompts done, prompts in all), over all attributions.
    """
    check_output(run.out, run.overwrite)
    prompts = read_prompts(run.prompts)
    loaded = load(run, check_device(run.device))
    loaded.check(prompts)
    results = loaded.attribute(prompts, progress)
    store.save(run.out, results, compression=run.compression, overwrite=run.overwrite)
    return results
