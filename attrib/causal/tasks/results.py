"""The folder of a run: what was asked, and a block of results for every few examples.

    task.json                       what was asked, of which model and dictionaries, by their hashes
    blocks/000000.samples.parquet   rows of `SAMPLES` (frames.py), with a hash of the examples that they are of
    blocks/000000.latents.parquet   rows of `LATENTS`; written before the samples, so that a block with samples is whole
    done.json                       how many examples there are, once all are done
    memory.json                     peaks by phase, where they were measured

Every file is written whole or not at all. A run that was killed goes on behind its last whole block, to the same bytes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.causal.tasks.frames import LATENTS, SAMPLES, joined_frames
from attrib.causal.tasks.memory import BYTES
from attrib.core.files import PARTIAL, whole
from attrib.core.optional import needed
from attrib.core.types import FormatError, InputError, first_line

if TYPE_CHECKING:
    import pandas as pd

TASK, DONE, MEMORY, BLOCKS, LOCK = "task.json", "done.json", "memory.json", "blocks", "lock"
FORMAT = 1
KINDS: dict[str, Mapping[str, str]] = {"samples": SAMPLES, "latents": LATENTS}


@dataclass(frozen=True)
class TaskResults:
    """What a run has come to, in memory or in a folder, from which it is read when it is asked for."""

    record: Mapping[str, Any]
    """What was asked."""
    folder: Path | None = None
    held: Mapping[str, "pd.DataFrame"] | None = None
    memory: "pd.DataFrame | None" = None
    """Peaks by phase, where they were measured."""

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else f"in {self.folder}"
        return f"TaskResults({self.record['task']!r}, {', '.join(self.record['operations'])}, {where})"

    @property
    def samples(self) -> "pd.DataFrame":
        """All rows of `SAMPLES`."""
        return self._all("samples")

    @property
    def latents(self) -> "pd.DataFrame":
        """All rows of `LATENTS`. Where these are too many to hold, take `blocks("latents")`."""
        return self._all("latents")

    @property
    def is_done(self) -> bool:
        """Whether every example that was asked for is there."""
        return self.folder is None or (self.folder / DONE).is_file()

    def blocks(self, kind: str) -> Iterator["pd.DataFrame"]:
        """Block by block, the rows of "samples" or "latents".

        Raises:
            FormatError: where a file is damaged.
        """
        if kind not in KINDS:
            raise InputError(f"kind: {kind!r}; expected {' or '.join(map(repr, KINDS))}.")
        if self.folder is None:
            assert self.held is not None
            yield self.held[kind]
            return
        for number in range(count_blocks(self.folder)):
            yield read_block(self.folder, number, kind)

    def _all(self, kind: str) -> "pd.DataFrame":
        return joined_frames(KINDS[kind], list(self.blocks(kind)))


def open_results(folder: str | Path) -> TaskResults:
    """The results of a run's folder, whether or not it is done.

    Raises:
        InputError: for what is no such folder.
        FormatError: where what it says of itself is damaged.
    """
    import pandas as pd

    path = Path(folder)
    record = read_record(path)
    if record is None:
        raise InputError(f"folder: {path} has no {TASK}; expected the folder of a run of a task.")
    file = path / MEMORY
    memory = pd.DataFrame(_json(file)).astype(BYTES) if file.is_file() else None
    return TaskResults(record, path, memory=memory)


# ------------------------------------------------------------------------------------------ files


def read_record(folder: Path) -> dict[str, Any] | None:
    """What a folder says was asked; None where it says nothing. Raises FormatError where that is damaged, or of another format."""
    if not (folder / TASK).is_file():
        return None
    record = _json(folder / TASK)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise FormatError(f"{folder / TASK}: of another format than {FORMAT}, or damaged; expected what a run of a task wrote.")
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


def count_blocks(folder: Path) -> int:
    """How many blocks are whole, from the first on."""
    number = 0
    while _file(folder, number, "samples").is_file():
        number += 1
    return number


def write_block(folder: Path, number: int, rows: Mapping[str, "pd.DataFrame"], digest: str) -> None:
    """The rows of one block: latents first, so that a block with samples is whole."""
    arrow, parquet = _arrow()
    for kind in ("latents", "samples"):
        types = {"str": arrow.string(), "bool": arrow.bool_()}
        columns = [arrow.field(name, types.get(dtype) or getattr(arrow, dtype)()) for name, dtype in KINDS[kind].items()]
        schema = arrow.schema(columns, metadata={"attrib": json.dumps({"format": FORMAT, "examples": digest})})
        arrays = [arrow.array(rows[kind][field.name].to_numpy(), field.type) for field in columns]
        table = arrow.table(arrays, schema=schema)
        with whole(_file(folder, number, kind)) as partial:
            parquet.write_table(table, partial, compression="zstd")


def read_block(folder: Path, number: int, kind: str) -> "pd.DataFrame":
    """The rows of one block. Raises FormatError where its file is damaged."""
    _, parquet = _arrow()
    file = _file(folder, number, kind)
    try:
        found = parquet.read_table(file).to_pandas()
    except Exception as error:  # Arrow's errors are of many kinds
        raise FormatError(
            f"{file}: is damaged, or not there: {first_line(error)}. Remove the block's files to have it made again."
        ) from error
    if list(found.columns) != [*KINDS[kind]]:
        raise FormatError(f"{file}: has the columns {', '.join(found.columns)}; expected {', '.join(KINDS[kind])}.")
    return found


def digest_of_block(folder: Path, number: int) -> tuple[str, int]:
    """The hash of the examples that a block is of, and how many they are."""
    file = _file(folder, number, "samples")
    found = read_block(folder, number, "samples")
    _, parquet = _arrow()
    said = (parquet.read_schema(file).metadata or {}).get(b"attrib", b"{}")
    return str(json.loads(said).get("examples")), int(found["example"].nunique())


def remove_partial(folder: Path) -> None:
    """Remove what a run that was killed was writing."""
    for inner in (folder, folder / BLOCKS):
        for file in inner.glob(f".*{PARTIAL}"):
            file.unlink(missing_ok=True)


def check_arrow() -> None:
    """Raises InputError where Parquet cannot be written."""
    _arrow()


def _arrow() -> tuple[Any, Any]:
    return needed("pyarrow", "out", "jobs"), needed("pyarrow.parquet", "out", "jobs")


def _file(folder: Path, number: int, kind: str) -> Path:
    return folder / BLOCKS / f"{number:06d}.{kind}.parquet"
