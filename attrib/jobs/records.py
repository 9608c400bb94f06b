"""What is known of shards that were tried: a record of each that is done, a failure of each that was not."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from attrib.core import inside
from attrib.core.files import whole
from attrib.core.types import FormatError
from attrib.jobs.folder import FAILURES, PROMPTS, RECORDS, Count, Job, Shard, fault_of

FailureKind = Literal["memory", "died", "error"]


class Refused(BaseModel, extra="forbid"):
    """A prompt of a shard that could not be computed."""

    number: Count
    reason: str


class Record(BaseModel, extra="forbid"):
    """A shard that is done."""

    shard: Count
    id: str
    sha256: str | None
    """The checksum of its file; None where there is no file, since all its prompts were refused."""
    bytes: Count
    prompts: Count
    tokens: Count
    edges: Count
    """What the job's kind makes of prompts: edges, or what `Kind.makes` says."""
    refused: list[Refused] = []
    seconds: float
    """How long computing took, the choice of what is kept included."""
    seconds_writing: float
    device: str
    finished: float
    """Seconds since 1970."""


class Failure(BaseModel, extra="forbid"):
    """A shard that was tried and is not done."""

    shard: Count
    id: str
    kind: FailureKind
    reason: str
    details: str = Field("", repr=False)
    """A traceback, where there is one."""
    attempts: Count
    finished: float


def write(folder: Path, path: Path, entry: Record | Failure) -> None:
    """Write an entry of a job's folder, whole."""
    with whole(inside.check(folder, path)) as partial:
        partial.write_text(entry.model_dump_json(indent=1) + "\n", encoding="utf-8")


NOT_DONE = "it is not done"


def record_or_fault(job: Job, shard: Shard) -> Record | str:
    """A shard's record, where it has one and its file is as long as that says; else why it counts as not done."""
    try:
        record = Record.model_validate_json(inside.read_text(job.folder, job.record(shard)))
    except FileNotFoundError:
        return NOT_DONE
    except inside.Foreign as error:
        return str(error)
    except (OSError, ValueError) as error:  # cut short by a disk that failed, say
        return f"its record is damaged: {fault_of(error)}"
    if (record.shard, record.id) != (shard.number, shard.id):
        return f"its record is of shard {record.shard}, {record.id}"
    if record.sha256 is None:
        return record
    try:
        size = inside.size(job.folder, job.file(shard))
    except inside.Foreign as error:
        return str(error)
    except OSError:
        return "its file is gone"
    return record if size == record.bytes else f"its file has {size:,} bytes, and its record says {record.bytes:,}"


def record_of(job: Job, shard: Shard) -> Record | None:
    """A shard's record, where it is done."""
    found = record_or_fault(job, shard)
    return found if isinstance(found, Record) else None


def records(job: Job) -> dict[int, Record]:
    """The record of every shard that is done, by its number."""
    listed = inside.names(job.folder, RECORDS)
    found = ((shard.number, record_of(job, shard)) for shard in job.shards if job.record(shard).name in listed)
    return {number: record for number, record in found if record is not None}


def failures(job: Job) -> Iterator[Failure]:
    """Shards that failed when they were last tried, in order."""
    listed = inside.names(job.folder, FAILURES)
    for shard in job.shards:
        if job.failure(shard).name in listed:
            try:
                yield Failure.model_validate_json(inside.read_text(job.folder, job.failure(shard)))
            except FileNotFoundError:
                continue  # a run that is going on has done the shard
            except (OSError, ValueError) as error:
                raise FormatError(f"{job.failure(shard)}: damaged: {fault_of(error)}. Delete it.") from error


def refused(job: Job) -> Iterator[tuple[Refused, str]]:
    """Prompts that the job leaves out, with where each stood: those that are none, and those whose shard says so."""
    path = job.folder / PROMPTS / "refused.jsonl"
    try:
        with inside.opened(job.folder, path) as lines:
            for line in lines:
                entry = json.loads(line)
                yield Refused(number=entry["number"], reason=entry["reason"]), str(entry["where"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: damaged: {fault_of(error)}.") from error
    for record in records(job).values():
        yield from ((one, f"shard {record.shard}") for one in record.refused)


def faults_of_counts(record: Record, counted: Mapping[str, int]) -> Iterator[str]:
    """Where a shard holds other numbers of things than its record says."""
    for name, count in counted.items():
        if (said := getattr(record, name)) != count:
            yield f"it has {count:,} {name}, and its record says {said:,}"


def digest(folder: Path, path: Path) -> str:
    """sha256 of a file in a folder, in hexadecimal digits. Raises as `inside.opened`."""
    with inside.opened(folder, path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
