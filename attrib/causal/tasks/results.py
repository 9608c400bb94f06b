"""What a run of a task comes to: files of tables, one for every few examples, in the folder of a run or of a job.

Of a run (`run_task` with `out`):

    task.json             what was asked, of which model and dictionaries, by their hashes
    blocks/000000.h5      rows of `SAMPLES` and `LATENTS` (frames.py), with what was asked and a hash of the examples that they are of
    done.json             how many examples there are, once all are done
    memory.json           peaks by phase, where they were measured

Of a job (docs/jobs.md) the shards are such files. Every file is written whole or not at all, and says itself what was asked.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.causal.tasks.frames import FRAMES, frame, joined_frames
from attrib.causal.tasks.memory import BYTES
from attrib.core.files import PARTIAL, whole
from attrib.core.shown import in_html
from attrib.core.types import FormatError, InputError, first_line
from attrib.store.listing import SHARDS, folder_of, listed
from attrib.store.reading import Fault
from attrib.store.tables import read_facts, read_tables, write_tables

if TYPE_CHECKING:
    import pandas as pd

TASK, DONE, MEMORY, BLOCKS, LOCK = "task.json", "done.json", "memory.json", "blocks", "lock"
FORMAT = 2


@dataclass(frozen=True)
class TaskResults:
    """What a run has come to, in memory or in files, from which it is read when it is asked for."""

    record: Mapping[str, Any]
    """What was asked."""
    folder: Path | None = None
    held: Mapping[str, "pd.DataFrame"] | None = None
    memory: "pd.DataFrame | None" = None
    """Peaks by phase, where they were measured."""
    shards: tuple[Path, ...] | None = None
    """The files of a job, or of one that stands for it; None of a run, whose blocks are in its folder."""

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else f"in {self.folder}"
        return f"TaskResults({self.record['task']!r}, {', '.join(self.record['operations'])}, {where})"

    def _repr_html_(self) -> str:
        asked = self.record
        names = ", ".join(each["name"] for each in asked["dictionaries"])
        done = {None: "see `attrib job status`", True: "yes", False: "no"}[self.is_done]
        rows = [
            ("model", asked["model"]["name"]), ("dictionaries", names), ("operations", ", ".join(asked["operations"])),
            ("files", len(self.files)), ("done", done),
        ]  # fmt: skip
        return in_html(repr(self), [], rows)

    @property
    def samples(self) -> "pd.DataFrame":
        """All rows of `SAMPLES`."""
        return self._all("samples")

    @property
    def latents(self) -> "pd.DataFrame":
        """All rows of `LATENTS`. Where these are too many to hold, take `blocks("latents")`."""
        return self._all("latents")

    @property
    def is_done(self) -> bool | None:
        """Whether every example that was asked for is there; None of a job, of which `attrib job status` tells."""
        if self.shards is not None:
            return None
        return self.folder is None or (self.folder / DONE).is_file()

    @property
    def files(self) -> list[Path]:
        """The files that hold the rows, in the order of the examples."""
        if self.shards is not None or self.folder is None:
            return list(self.shards or ())
        return [block_file(self.folder, number) for number in range(count_blocks(self.folder))]

    def blocks(self, kind: str) -> Iterator["pd.DataFrame"]:
        """File by file, the rows of "samples" or "latents".

        Raises:
            FormatError: where a file is damaged.
        """
        if kind not in FRAMES:
            raise InputError(f"kind: {kind!r}; expected {' or '.join(map(repr, FRAMES))}.")
        if self.held is not None:
            yield self.held[kind]
        for file in self.files:
            yield read_rows(file, kind)[kind]

    def _all(self, kind: str) -> "pd.DataFrame":
        return joined_frames(FRAMES[kind], list(self.blocks(kind)))


def open_results(folder: str | Path) -> TaskResults:
    """The results of a run's or a job's folder, whether or not it is done; or of one file of tables.

    Raises:
        InputError: for what is no such folder or file, and a job of which nothing is done.
        FormatError: where what it says of itself is damaged.
    """
    import pandas as pd

    path = Path(folder)
    record = read_record(path)
    if record is not None:
        file = path / MEMORY
        memory = pd.DataFrame(_json(file)).astype(BYTES) if file.is_file() else None
        return TaskResults(record, path, memory=memory)
    if path.is_file():
        return TaskResults(record_of(path), path, shards=(path,))
    if not (path / SHARDS).is_dir():
        raise InputError(f"folder: {path} has no {TASK}, and is no job of a task; expected the folder of a run of a task, or of a job.")
    shards = tuple(folder_of(path) / each.name for each in sorted(listed(path)))
    if not shards:
        raise InputError(f"folder: {path} has no results yet; go on with `attrib job run {path}`.")
    return TaskResults(record_of(shards[0]), path, shards=shards)


# ------------------------------------------------------------------------------------------ files


def read_record(folder: Path) -> dict[str, Any] | None:
    """What a run's folder says was asked; None where it says nothing. Raises FormatError where that is damaged, or of another format."""
    return _of_format(folder / TASK, _json(folder / TASK)) if (folder / TASK).is_file() else None


def record_of(file: Path) -> dict[str, Any]:
    """What a file of tables says was asked. Raises as `read_record`, and InputError where there is no such file."""
    return _of_format(file, read_facts(file).get("asked"))


def _of_format(file: Path, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise FormatError(f"{file}: of another format than {FORMAT}, or damaged; expected what a run of a task wrote.")
    return record


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise FormatError(f"{file}: is damaged: {first_line(error)}.") from error


def write_json(file: Path, value: Any) -> None:
    """A small file of JSON, whole or not at all."""
    with whole(file) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n")


def write_rows(
    file: Path, record: Mapping[str, Any], rows: Mapping[str, "pd.DataFrame"], *, examples: str = "", compression: str | None = "gzip",
    overwrite: bool = True,
) -> Path:  # fmt: skip
    """Write rows of samples and latents as one file.

    Args:
        record: what was asked.
        examples: a hash of the examples, for who wants to see whether they are the same.
    """
    tables = {kind: {name: rows[kind][name].to_numpy() for name in columns} for kind, columns in FRAMES.items()}
    facts = {"asked": dict(record), "examples": examples}
    return write_tables(file, facts, tables, FRAMES, compression=compression, overwrite=overwrite)


def read_rows(file: Path, *kinds: str) -> dict[str, "pd.DataFrame"]:
    """The rows of a file, by "samples" and "latents", of which some may be enough. Raises FormatError where it is damaged."""
    found = read_tables(file, {kind: FRAMES[kind] for kind in kinds or FRAMES})
    return {kind: frame(FRAMES[kind], columns) for kind, columns in found.items()}


def faults(file: str | Path) -> Iterator[Fault]:
    """What is wrong with a file of tables: its first fault. Raises InputError where there is none."""
    path = Path(file)
    try:
        record_of(path)
        rows = read_rows(path)
    except FormatError as error:
        yield Fault.of_error(path, error)
        return
    if wrong := sorted(set(rows["latents"]["example"]) - set(rows["samples"]["example"])):
        yield Fault(path, "/tables/latents", "rows of an example that has no sample", prompt=int(wrong[0]), more=len(wrong) - 1)


def count_blocks(folder: Path) -> int:
    """How many blocks are there, from the first on."""
    number = 0
    while block_file(folder, number).is_file():
        number += 1
    return number


def block_file(folder: Path, number: int) -> Path:
    """Where a block of a run lies."""
    return folder / BLOCKS / f"{number:06d}.h5"


def digest_of_block(folder: Path, number: int) -> tuple[str, int]:
    """The hash of the examples that a block is of, and how many they are. Raises FormatError where it is damaged."""
    file = block_file(folder, number)
    return str(read_facts(file).get("examples")), int(read_rows(file)["samples"]["example"].nunique())


def remove_partial(folder: Path) -> None:
    """Remove what a run that was killed was writing."""
    for inner in (folder, folder / BLOCKS):
        for file in inner.glob(f".*{PARTIAL}"):
            file.unlink(missing_ok=True)
