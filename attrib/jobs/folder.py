"""A job's folder: what lies where, and what was fixed when it was made.

    JOB/
    ├── job.json            what to compute, of what: fixed
    ├── prompts/            the prompts as token ids, in the order of the shards: fixed
    │   ├── ids.npy         int32 [tokens]
    │   ├── ptr.npy         int64 [prompts + 1]    the tokens of each prompt
    │   ├── corrupt.npy     int32 [tokens]         of a rule that compares with other prompts, theirs
    │   ├── number.npy      int64 [prompts]        its number among all that were read
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

from attrib.core.types import FormatError, InputError
from attrib.jobs import inside
from attrib.jobs.config import JobFile
from attrib.runs.asked import faults_of
from attrib.runs.spec import STORED, checked

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


class ShardPrompts(NamedTuple):
    """What a shard is made of."""

    tokens: list[Int[Tensor, " _"]]
    numbers: Int64[np.ndarray, " prompts"]
    """Of each prompt, among all that were read."""
    corrupt: list[Int[Tensor, " _"]] | None
    """The prompt that each is compared with."""


@dataclass(frozen=True)
class Job:
    """A job's folder and what was fixed when it was made. `open_job` makes one."""

    folder: Path
    fixed: Fixed
    shards: tuple[Shard, ...]

    def __repr__(self) -> str:
        return f"Job({str(self.folder)!r}, {self.fixed.prompts:,} prompts, {self.fixed.tokens:,} tokens, {len(self.shards):,} shards)"

    @cached_property
    def config(self) -> JobFile:
        """What was asked for."""
        return checked(JobFile, self.fixed.config, str(self.folder / JOB), context=STORED)

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

    def prompts(self, shard: Shard) -> ShardPrompts:
        """A shard's prompts.

        Raises:
            FormatError: where they are not those that the shard's id was made of.
        """
        names = ["ids", "ptr", "number"] + ["corrupt"] * (self.config.prompts.corrupt is not None)
        arrays = {name: _array(self.folder, self.folder / PROMPTS / f"{name}.npy") for name in names}
        ptr = np.asarray(arrays["ptr"][shard.first : shard.stop + 1])
        number = np.asarray(arrays["number"][shard.first : shard.stop])
        # held against what the shard should have before any of it is read
        rises = len(ptr) == len(number) + 1 == shard.stop - shard.first + 1 and bool((ptr[1:] > ptr[:-1]).all())
        fits = rises and ptr[0] >= 0 and int(ptr[-1]) - int(ptr[0]) == shard.tokens
        ids, *others = (arrays[name][int(ptr[0]) : int(ptr[-1])] if fits else arrays[name][:0] for name in ("ids", *names[3:]))
        is_whole = fits and all(len(column) == shard.tokens for column in (ids, *others))
        if not is_whole or shard_id(self.identity, number, ptr, ids, *others) != shard.id:
            raise FormatError(
                f"{self.folder / PROMPTS}: the prompts of shard {shard.name}, or {JOB}, are not what they were. Make the job again."
            )
        lengths = np.diff(ptr).tolist()
        each = [list(torch.from_numpy(np.asarray(column, np.int64)).split(lengths)) for column in (ids, *others)]
        return ShardPrompts(each[0], number, each[1] if others else None)


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
    identity: bytes, number: Int64[np.ndarray, " prompts"], ptr: Int64[np.ndarray, " prompts_plus_1"], *ids: Int[np.ndarray, " tokens"]
) -> str:
    """Hash of a job's identity and of a shard's prompts, in hexadecimal digits.

    Args:
        ids: of the prompts, and of those that they are compared with, where there are any.
    """
    found = hashlib.sha256(identity)
    for column in (number, np.diff(ptr), *ids):
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
