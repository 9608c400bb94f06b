"""A job's folder: what lies where, and what was fixed when it was made.

    JOB/
    ├── job.json            what to compute, of what: fixed
    ├── prompts/            the prompts as token ids, in the order of the shards: fixed
    │   ├── ids.npy         int32 [tokens]
    │   ├── ptr.npy         int64 [prompts + 1]    the tokens of each prompt
    │   ├── number.npy      int64 [prompts]        its number among all that were read
    │   ├── beside.npy, beside_ptr.npy             what else each is asked with, of kinds that have that
    │   ├── shards.jsonl    id, prompts and tokens of each shard
    │   ├── split.jsonl     documents that became several prompts: the first one's number, how many
    │   └── refused.jsonl   prompts that are none, with the reason
    ├── shards/             NNNNNN-<id>.h5, as docs/format.md has it
    ├── records/            NNNNNN-<id>.json       written after its shard is on the disk: what is done
    ├── failures/           NNNNNN-<id>.json       what failed the last time that it was tried
    └── lock                held by the run that is going on

Nothing says twice what is done: a shard is done when its record is there and its file as long as the record
says. Both appear whole, by renaming, the record last; so a listing of the folder is always true.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from attrib.core import inside
from attrib.core.types import FormatError, InputError
from attrib.jobs.config import stored_file
from attrib.jobs.kind import Of, Portion
from attrib.jobs.kinds import Kind, kind_of
from attrib.runs.asked import faults_of

JOB, PROMPTS, SHARDS, RECORDS, FAILURES, LOCK = "job.json", "prompts", "shards", "records", "failures", "lock"
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class Fixed(BaseModel, extra="forbid"):
    """What job.json holds."""

    format: Literal["attrib-job"] = "attrib-job"
    version: Literal[1] = 1
    config: dict[str, Any]
    """The job file, every key of it."""
    places: dict[str, str]
    """Where the model and dictionaries lie whose names are paths."""
    model: str
    """sha256 of its weights, as in the shards."""
    tokenizer: str | None
    dictionaries: dict[str, str]
    """sha256 of each."""
    packages: dict[str, str]
    """Versions that the job was made with: others may give other last digits."""
    given: Count
    """Prompts that were read, refused ones among them, and each part of a document that was split."""
    sources: dict[str, str] = {}
    """sha256 of every file that prompts were read from."""
    refused: Count
    prompts: Count
    tokens: Count


class _Listed(BaseModel, extra="forbid", strict=True):
    """A line of shards.jsonl."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    prompts: Annotated[Count, Field(ge=1)]
    tokens: Annotated[Count, Field(ge=1)]


class Shard(NamedTuple):
    """A run of the job's prompts, one file."""

    number: int
    id: str
    first: int
    stop: int
    tokens: int

    @property
    def name(self) -> str:
        """What its files are called, but for their suffix."""
        return f"{self.number:06d}-{self.id[:16]}"


@dataclass(frozen=True)
class Job:
    """A job's folder and what was fixed when it was made. `open_job` makes one."""

    folder: Path
    fixed: Fixed
    shards: tuple[Shard, ...]

    def __repr__(self) -> str:
        return f"Job({str(self.folder)!r}, {self.fixed.prompts:,} prompts, {self.fixed.tokens:,} tokens, {len(self.shards):,} shards)"

    @cached_property
    def config(self) -> Any:
        """What was asked for, as its kind has it."""
        return stored_file(self.fixed.config, str(self.folder / JOB))

    @cached_property
    def kind(self) -> Kind:
        """What is made of the prompts."""
        return kind_of(self.config)

    @property
    def of(self) -> Of:
        """What shards are held against."""
        return Of(self.config, self.fixed.model, self.fixed.dictionaries)

    @cached_property
    def identity(self) -> bytes:
        """Hash of all that a shard follows from beside its prompts."""
        return identity(self.fixed.config, self.fixed.model, self.fixed.tokenizer, self.fixed.dictionaries)

    def file(self, shard: Shard) -> Path:
        """Where a shard lies, or will."""
        return self.folder / SHARDS / f"{shard.name}.h5"

    def record(self, shard: Shard) -> Path:
        """Where it is written that a shard is done."""
        return self.folder / RECORDS / f"{shard.name}.json"

    def failure(self, shard: Shard) -> Path:
        """Where it is written why a shard failed."""
        return self.folder / FAILURES / f"{shard.name}.json"

    def prompts(self, shard: Shard) -> tuple[list[Int[Tensor, " _"]], Int64[np.ndarray, " prompts"]]:
        """A shard's prompts, and their numbers among all that were read. Raises as `portion`."""
        return self.portion(shard)[:2]

    def portion(self, shard: Shard) -> Portion:
        """What a shard is computed of.

        Raises:
            FormatError: where that is not what the shard's id was made of.
        """
        number = np.asarray(self._column("number")[shard.first : shard.stop])
        found = [_ragged(self._column("ptr"), self._column("ids"), shard, least=1)]
        if self.kind.has_beside(self.config):
            found.append(_ragged(self._column("beside_ptr"), self._column("beside"), shard, least=0))
        # held against what the shard should have before any of it is read
        columns = [column for pair in found if pair is not None for column in pair]
        fits = None not in found and len(number) == shard.stop - shard.first and len(columns[1]) == shard.tokens
        if not fits or shard_id(self.identity, number, *columns) != shard.id:
            raise FormatError(
                f"{self.folder / PROMPTS}: the prompts of shard {shard.name}, or {JOB}, are not what they were. Make the job again."
            )
        ids, *beside = ([*map(_copied, np.split(each, ptr[1:-1] - ptr[0]))] for ptr, each in zip(columns[::2], columns[1::2], strict=True))
        return Portion([*map(torch.from_numpy, ids)], number, [tuple(one.tolist()) for each in beside for one in each])

    def _column(self, name: str) -> np.ndarray:
        return _array(self.folder, self.folder / PROMPTS / f"{name}.npy")


def _ragged(ptr: np.ndarray, values: np.ndarray, shard: Shard, *, least: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The pointers and the values of a shard's prompts, not read yet; None where they are not as many, or one has fewer than `least`."""
    some = np.asarray(ptr[shard.first : shard.stop + 1])
    rises = len(some) == shard.stop - shard.first + 1 and some[0] >= 0 and bool((np.diff(some) >= least).all())
    return (some, values[int(some[0]) : int(some[-1])]) if rises and some[-1] <= len(values) else None


def _copied(column: np.ndarray) -> np.ndarray:
    """Of the memory that a file is mapped to, which may be no one's to write."""
    return np.array(column, np.int64)


def places_of(path: Path) -> dict[str, str]:
    """Where what a job's shards were made of lies, by sha256; nothing for a path that is no job, nor a shard of one."""
    folder = next((each for each in (path, path.parent, path.parent.parent) if (each / JOB).is_file()), None)
    if folder is None:
        return {}
    job = open_job(folder)
    hashes = {job.config.model: job.fixed.model} | job.fixed.dictionaries
    return {sha256: job.fixed.places.get(name, name) for name, sha256 in hashes.items()}


def identity(config: Mapping[str, Any], model: str, tokenizer: str | None, dictionaries: Mapping[str, str]) -> bytes:
    """Hash of a job's config, but for how it was cut into shards, and of what it is computed of."""
    facts = {name: value for name, value in config.items() if name not in ("prompts", "shards")}
    text = json.dumps([facts, model, tokenizer, dict(dictionaries)], sort_keys=True)
    return hashlib.sha256(text.encode()).digest()


def shard_id(
    identity: bytes,
    number: Int64[np.ndarray, " prompts"],
    ptr: Int64[np.ndarray, " prompts_plus_1"],
    ids: Int[np.ndarray, " tokens"],
    beside_ptr: Int64[np.ndarray, " prompts_plus_1"] | None = None,
    beside: Int[np.ndarray, " numbers"] | None = None,
) -> str:
    """Hash of a job's identity and of a shard's prompts, in hexadecimal digits.

    Args:
        beside_ptr: of what prompts are asked with beside their tokens, and `beside` that; None of kinds that have none.
    """
    found = hashlib.sha256(identity)
    more = () if beside_ptr is None or beside is None else (np.diff(beside_ptr), beside)
    for column in (number, np.diff(ptr), ids, *more):
        found.update(np.ascontiguousarray(column, "<i8").tobytes())
    return found.hexdigest()


def open_job(folder: Path) -> Job:
    """A job from its folder.

    Raises:
        InputError: where there is none, or it may not be read.
        FormatError: where what was fixed is damaged, or of another version.
    """
    try:
        text = inside.read_text(folder, folder / JOB)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"job: {folder} holds no {JOB}; make a job there with `attrib job init {folder} --config job.toml`.") from None
    except OSError as error:
        raise _unreadable(error) from error
    except ValueError as error:
        raise _damaged(folder, error) from error
    try:
        fixed = Fixed.model_validate_json(text)
        lines = inside.read_text(folder, folder / PROMPTS / "shards.jsonl").splitlines()
        shards, first = [], 0
        for number, line in enumerate(lines):
            entry = _Listed.model_validate_json(line)
            shards.append(Shard(number, entry.id, first, first + entry.prompts, entry.tokens))
            first += entry.prompts
        if (first, sum(shard.tokens for shard in shards)) != (fixed.prompts, fixed.tokens):
            raise ValueError(f"its shards hold {first} prompts, and not {fixed.prompts}, or other tokens")
    except PermissionError as error:
        raise _unreadable(error) from error
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    return Job(folder, fixed, tuple(shards))


def fault_of(error: Exception) -> str:
    """What is wrong with an entry, in one line."""
    lines = faults_of(error, "its JSON") if isinstance(error, ValidationError) else str(error).splitlines()
    return next(iter(lines), type(error).__name__)


def _damaged(folder: Path, error: Exception) -> FormatError:
    return FormatError(f"{folder}: not a job of this version, or damaged: {fault_of(error)}. Make it again.")


def _unreadable(error: OSError) -> InputError:
    return InputError(f"job: {error.filename} cannot be read: {error.strerror}. Nothing is wrong with the job as far as that tells.")


def _array(folder: Path, path: Path) -> np.ndarray:
    """A column of integers on the disk, mapped and not read."""
    try:
        with inside.opened(folder, path) as file:
            if (version := np.lib.format.read_magic(file)) != (1, 0):
                raise ValueError(f"it is of version {version} of numpy's format, and a job's are of (1, 0)")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            # numpy maps what it is given open, from where its header ends; objects it would not map, and they are no integers
            column = np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")
    except inside.Foreign:
        raise
    except Exception as error:  # numpy hands on whatever Python's tokenizer and parser raise
        raise FormatError(f"{path}: missing or damaged: {fault_of(error)}. Make the job again.") from error
    if not isinstance(column, np.ndarray) or column.ndim != 1 or column.dtype.kind != "i":
        raise FormatError(f"{path}: not one column of integers. Make the job again.")
    return column
