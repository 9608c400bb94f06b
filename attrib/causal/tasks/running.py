"""A task gone through in blocks of a few examples: nothing is held but the block at hand, and a run that was stopped goes on."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attrib.adapters.given import as_bytes, as_dictionaries, as_model, takes
from attrib.causal.tasks import results as stored
from attrib.causal.tasks.examples import Example, Item, Task, digest, encoded
from attrib.causal.tasks.frames import FRAMES, joined_frames
from attrib.causal.tasks.memory import Phases
from attrib.causal.tasks.operations import Batch, Operation, names_of, operations_of, rows_of
from attrib.causal.tasks.results import TaskResults
from attrib.causal.tasks.spliced import BUDGET
from attrib.core.lock import held
from attrib.core.positions import PositionsLike, plain_positions
from attrib.core.room import memory_named
from attrib.core.types import InputError
from attrib.core.version import __version__
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model
from attrib.passes.replacement import replace

if TYPE_CHECKING:
    import pandas as pd


Progress = Callable[[int], object]
"""Told of every block: how many examples are done."""


@torch.inference_mode(False)  # in which nothing can be differentiated; Lightning predicts in it
@memory_named("running a task", "Give a smaller batch or budget, or shorter prompts.")
@takes(model=as_model, dictionaries=as_dictionaries, budget=as_bytes)
def run_task(
    model: Model,
    task: Task,
    dictionaries: Sequence[Dictionary] = (),
    *,
    operations: Sequence[str] | dict[str, Operation] = ("base",),
    errors: bool = False,
    positions: PositionsLike = "last",
    batch: int = 8,
    limit: int | None = None,
    out: str | os.PathLike[str] | None = None,
    budget: int = BUDGET,
    memory: bool = False,
    progress: Progress | None = None,
) -> TaskResults:
    """Ask operations of every example of a task.

    Args:
        task: its examples are gone through once, a batch at a time.
        dictionaries, errors: put into the pass, as `logit_differences` takes them.
        operations: names of `OPERATIONS`, in the order of the tables: "base", "spliced", "gradient", "ablation"; or functions of a `Batch`
            by names of one's own.
        positions: at which latents are looked at; "last" is where the answer is read.
        batch: examples of a block.
        limit: examples at most; None is all.
        out: a folder for the results, made where it is not there. One that was begun with the same arguments is gone on with, and may
            have a larger limit. None keeps all in memory.
        budget: bytes of working memory for ablations.
        memory: whether the most that each phase takes is measured; on a CPU this resets the process's own peak.

    Raises:
        InputError: for bad arguments, before anything is computed; for an example that is none, where it is come to; for a folder of
            something else, one that another run is at, and examples other than those that a folder has results of.
        FormatError: where the folder's files are damaged.
        NotFiniteError: where a value of some example is NaN or infinite.
    """
    chosen = operations_of(operations, bool(dictionaries))
    if not isinstance(task, Task):
        raise InputError(f"task: a {type(task).__name__}; expected an attrib.causal.tasks.Task.")
    for argument, value in (("batch", batch), ("limit", 1 if limit is None else limit)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{argument}: {value!r}; expected a whole number, 1 or more.")
    replaced, plain = replace(model, dictionaries), plain_positions(positions, [])
    phases = Phases(model.device, memory)
    record = described(model, task.name, dictionaries, [*chosen], errors, plain, batch, budget)
    names = names_of(replaced)

    def rows(items: Sequence[Item], first: int) -> "dict[str, pd.DataFrame]":
        numbers = range(first, first + len(items))
        return rows_of(Batch(model, replaced, names, items, numbers, errors, plain, budget), chosen, phases)

    blocks = _blocks(model, task, batch, limit)
    if out is None:
        found = []
        for items, first in blocks:
            found.append(rows(items, first))
            _told(progress, first + len(items))
        if not found:
            raise _empty(task)
        frames = {kind: joined_frames(columns, [each[kind] for each in found]) for kind, columns in FRAMES.items()}
        return TaskResults(record, held=frames, memory=phases.to_pandas() if memory else None)
    folder = _begun(Path(out), record)
    with held(folder / stored.LOCK):
        stored.remove_partial(folder)
        there, total = stored.count_blocks(folder), 0
        for number, (items, first) in enumerate(blocks):
            total = first + len(items)
            mine = digest(items)
            if number < there and _is_there(folder, number, items, mine, is_last=number == there - 1):
                continue
            (folder / stored.DONE).unlink(missing_ok=True)
            stored.write_rows(stored.block_file(folder, number), record, rows(items, first), examples=mine)
            _told(progress, total)
        if not total:
            raise _empty(task)
        if -(-total // batch) < there:
            raise InputError(
                f"out: {folder} has results of more than the {total:,} examples that are asked for now. Choose another folder."
            )
        stored.write_json(folder / stored.DONE, {"examples": total})
        if memory:
            stored.write_json(folder / stored.MEMORY, phases.to_pandas().to_dict("records"))
    return TaskResults(record, folder, memory=phases.to_pandas() if memory else None)


def _blocks(model: Model, task: Task, batch: int, limit: int | None) -> Iterator[tuple[list[Item], int]]:
    """The examples as a model reads them, a batch at a time, with the number of the first."""
    examples: Iterator[Example] = islice(iter(task.examples), limit)
    first = 0
    while some := list(islice(examples, batch)):
        yield encoded(model, some, first), first
        first += len(some)


def _is_there(folder: Path, number: int, items: Sequence[Item], mine: str, *, is_last: bool) -> bool:
    """Whether a block has the results of these examples. A last one that is of fewer is made again."""
    known, count = stored.digest_of_block(folder, number)
    if known == mine:
        return True
    if is_last and count < len(items) and known == digest(items[:count]):
        return False
    raise InputError(f"task: its examples are not those that block {number} of {folder} has results of. Choose another folder.")


def _begun(folder: Path, record: Mapping[str, Any]) -> Path:
    """A run's folder, made where it is not there, with what is asked in it."""
    before = stored.read_record(folder)
    if before is None:
        if folder.exists() and (not folder.is_dir() or any(each.name not in (stored.LOCK, stored.BLOCKS) for each in folder.iterdir())):
            raise InputError(f"out: {folder} is there, and not the folder of a run of a task; expected a new name.")
        if not folder.absolute().parent.is_dir():
            raise InputError(f"out: the folder {folder.absolute().parent} does not exist; make it first.")
        (folder / stored.BLOCKS).mkdir(parents=True, exist_ok=True)
        stored.write_json(folder / stored.TASK, record)
    elif other := [key for key in record if record[key] != before.get(key)]:
        was, now = (str(each.get(other[0]))[:200] for each in (before, record))
        raise InputError(f"out: {folder} was begun with another {other[0]}: {was}, and not {now}. Choose another folder.")
    return folder


def described(
    model: Model,
    task: str,
    dictionaries: Sequence[Dictionary],
    operations: list[str],
    errors: bool,
    positions: Any,
    batch: int,
    budget: int,
) -> dict[str, Any]:
    """What is asked, as JSON can hold it; `task` is its name."""
    return {
        "format": stored.FORMAT, "attrib": __version__, "task": task, "model": {"name": model.name, "sha256": model.fingerprint},
        "dtype": str(model.dtype).removeprefix("torch."), "tokenizer": model.tokenizer.sha256 if model.tokenizer else None,
        "dictionaries": [{"name": d.name, "site": str(d.site), "sha256": d.fingerprint} for d in dictionaries], "operations": operations,
        "errors": errors, "positions": list(positions) if isinstance(positions, tuple) else positions, "batch": batch, "budget": budget,
    }  # fmt: skip


def _told(progress: Progress | None, examples: int) -> None:
    if progress is not None:
        progress(examples)


def _empty(task: Task) -> InputError:
    return InputError(f"task: {task.name} has no examples; expected at least one.")
