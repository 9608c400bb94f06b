"""Making a job: every prompt read once, tokenised, put with others of its length, and cut into shards.

Prompts stream through: what is held is one prompt, and an open file for each bucket of lengths. A prompt that
is none is written down with the reason, and the next is read.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import ceil, log2
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from attrib.core.files import sync
from attrib.core.types import InputError, Progress
from attrib.jobs.building import built
from attrib.jobs.folder import FAILURES, JOB, PROMPTS, RECORDS, SHARDS, Fixed, Job, identity, open_job, shard_id
from attrib.jobs.kind import Config, Parts, Read, Source
from attrib.jobs.kinds import kind_of
from attrib.jobs.refusals import Refusals
from attrib.jobs.told import Reach, ShardsOf, with_multiplier
from attrib.store.columns import packages

STEPS = 4
"""Buckets of lengths in each doubling: the shortest prompt of a shard is at least 0.84 of its longest."""


def make(folder: Path, config: Config, beside: Path, *, allowed: Sequence[Path] = (), progress: Progress | None = None) -> Job:
    """Make a job's folder: all of it, or nothing.

    Args:
        folder: of the job; must not exist, or be empty.
        beside: the folder of the config, where the paths that it names begin.
        allowed: further folders that the config may read from.
        progress: called with (prompts read, prompts in all or -1 where that is not known).

    Raises:
        InputError: where the folder is taken, the config cannot be computed, or it reads outside its folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) or folder.samefile(Path.cwd())):
        raise InputError(f"job: {folder} is there already. Run it with `attrib job run {folder}`, or choose another folder.")
    if not folder.parent.is_dir():
        raise InputError(f"job: the folder {folder.parent} does not exist; make it first.")
    kind, reach = kind_of(config), Reach(beside, tuple(allowed))
    named = {"model": config.model} | {f"dictionary {name}": name for name in config.dictionaries}
    places = {name: str(path) for argument, name in named.items() if (path := reach.confined(argument, name)) is not None}
    source = kind.open(config, reach)
    return make_of(folder, config, load(config, torch.device("cpu"), places), source, places=places, progress=progress)


def make_of(
    folder: Path,
    config: Config,
    parts: Parts,
    source: Source,
    *,
    places: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Job:
    """As `make`, of a model and dictionaries that are in memory, and of prompts wherever they come from.

    Args:
        places: where those lie that the config only names.
        sources: sha256 of the files that prompts come from, for whoever asks whether they are still the same.
    """
    config = with_multiplier(config)
    kind = kind_of(config)
    kind.check(parts)
    target = folder.resolve()  # of "jobs/.." too, which has no name to build beside
    with built(target) as building:
        for inner in (PROMPTS, SHARDS, RECORDS, FAILURES):
            (building / inner).mkdir()
        fixed = _write_prompts(building / PROMPTS, config, parts, source(parts), dict(places or {}), dict(sources or {}), progress)
        (building / JOB).write_text(fixed.model_dump_json(indent=1), encoding="utf-8")
        for path in building.rglob("*"):
            sync(path)
    return open_job(folder)


def load(config: Any, device: torch.device, places: Mapping[str, str | Path]) -> Parts:
    """What a config names in memory, as its kind has it."""
    parts: Parts = kind_of(config).load(config, device, places)
    return parts


# ---------------------------------------------------------------------------------------------- prompts


class _Bucket:
    """Prompts of about one length, on the disk: their ids, of each its number and length, and what it is asked with beside."""

    def __init__(self, folder: Path, key: int, opened: ExitStack, *, has_beside: bool) -> None:
        def file(what: str) -> BinaryIO:
            return opened.enter_context((folder / f"bucket-{key}.{what}").open("w+b"))

        self.ids, self.index = file("ids"), file("index")
        self.beside: BinaryIO | None = file("beside") if has_beside else None
        self.lengths: BinaryIO | None = file("lengths") if has_beside else None
        """How many numbers each prompt has beside."""

    def add(self, number: int, ids: Tensor, beside: tuple[int, ...]) -> None:
        self.ids.write(ids.numpy().astype("<i4").tobytes())
        self.index.write(np.array([number, len(ids)], "<i8").tobytes())
        if self.beside is not None and self.lengths is not None:
            self.beside.write(np.array(beside, "<i8").tobytes())
            self.lengths.write(np.array([len(beside)], "<i8").tobytes())

    def rewind(self) -> tuple[int, int, int]:
        """Go back to the beginning, to read. Returns how many prompts, tokens, and numbers beside there are."""
        counts = self.index.tell() // 16, self.ids.tell() // 4, self.beside.tell() // 8 if self.beside is not None else 0
        for file in (self.ids, self.index, self.beside, self.lengths):
            if file is not None:
                file.seek(0)
        return counts


def bucket_of(length: int) -> int:
    """The bucket of a length: one for each up to STEPS, then STEPS in each doubling."""
    return length if length <= STEPS else ceil(STEPS * log2(length / STEPS)) + STEPS


def _write_prompts(
    folder: Path,
    config: Config,
    loaded: Parts,
    prompts: Iterable[Read],
    places: dict[str, str],
    sources: dict[str, str],
    progress: Progress | None,
) -> Fixed:
    given, kind, described = 0, kind_of(config), config.model_dump(mode="json")
    with ExitStack() as opened:
        buckets: dict[int, _Bucket] = {}
        log, split = (opened.enter_context((folder / f"{name}.jsonl").open("w", encoding="utf-8")) for name in ("refused", "split"))
        refusals = Refusals(log)
        for parts, fault, where, beside in prompts:
            if not parts:
                refusals.add(given, where, fault)
            if len(parts) > 1:
                split.write(json.dumps({"number": given, "prompts": len(parts), "where": where}) + "\n")
            for number, ids in enumerate(parts, given):
                key = bucket_of(len(ids)) if kind.by_length else 0
                if key not in buckets:
                    buckets[key] = _Bucket(folder, key, opened, has_beside=kind.has_beside(config))
                buckets[key].add(number, ids, beside)
            given += max(1, len(parts))
            if progress:
                progress(given, -1)
        refusals.close()
        if given == refusals.count:
            raise InputError(
                "prompts: there are none; expected at least one."
                if not given
                else f"prompts: none of {given} can be one. The last: {where} {fault}."
            )
        facts = Fixed(
            config=described, places=places, model=loaded.model.fingerprint,
            tokenizer=loaded.model.tokenizer.sha256 if loaded.model.tokenizer else None,
            dictionaries={name: one.fingerprint for name, one in loaded.dictionaries.items()},
            packages=packages(), given=given, refused=refusals.count, prompts=0, tokens=0, sources=sources,
        )  # fmt: skip
        who = identity(facts.config, facts.model, facts.tokenizer, facts.dictionaries)
        ordered = [buckets[key] for key in sorted(buckets)]
        laid, tokens = _lay_out(folder, ordered, config.shards, who)
    for left in folder.glob("bucket-*"):
        left.unlink()
    return facts.model_copy(update={"prompts": laid, "tokens": tokens})


# ----------------------------------------------------------------------------------------------- shards


def _lay_out(folder: Path, buckets: Sequence[_Bucket], limits: ShardsOf, who: bytes) -> tuple[int, int]:
    """Write ids, ptr and number in the order of the shards, what is beside, and the shards' listing. Returns (prompts, tokens)."""
    counts = [bucket.rewind() for bucket in buckets]
    prompts, tokens, numbers = (sum(column) for column in zip(*counts, strict=True))
    has_beside = buckets[0].beside is not None
    with ExitStack() as opened:

        def column(name: str, dtype: str, length: int) -> BinaryIO:
            return opened.enter_context(_column(folder / f"{name}.npy", dtype, length))

        ids, ptr, number = column("ids", "<i4", tokens), column("ptr", "<i8", prompts + 1), column("number", "<i8", prompts)
        beside, beside_ptr = (column("beside", "<i8", numbers), column("beside_ptr", "<i8", prompts + 1)) if has_beside else (None, None)
        listing = opened.enter_context((folder / "shards.jsonl").open("w", encoding="utf-8"))
        for pointers in (ptr, beside_ptr):
            if pointers is not None:
                pointers.write(np.zeros(1, "<i8").tobytes())
        before = before_beside = 0
        for bucket, (rows, _, _) in zip(buckets, counts, strict=True):
            for index in _cut(bucket.index, rows, limits):
                length = int(index[:, 1].sum())
                raw = bucket.ids.read(4 * length)
                ends = before + index[:, 1].cumsum()
                ids.write(raw)
                ptr.write(ends.astype("<i8").tobytes())
                number.write(index[:, 0].astype("<i8").tobytes())
                columns = [index[:, 0], np.concatenate([[before], ends]), np.frombuffer(raw, "<i4")]
                if bucket.beside is not None and bucket.lengths is not None and beside is not None and beside_ptr is not None:
                    more = before_beside + np.frombuffer(bucket.lengths.read(8 * len(index)), "<i8").cumsum()
                    raw = bucket.beside.read(8 * int(more[-1] - before_beside))
                    beside.write(raw)
                    beside_ptr.write(more.astype("<i8").tobytes())
                    columns += [np.concatenate([[before_beside], more]), np.frombuffer(raw, "<i8")]
                    before_beside = int(more[-1])
                listing.write(json.dumps({"id": shard_id(who, *columns), "prompts": len(index), "tokens": length}) + "\n")
                before += length
    return prompts, tokens


def _cut(index: BinaryIO, rows: int, limits: ShardsOf) -> Iterator[Int64[np.ndarray, "prompts two"]]:
    """A bucket's numbers and lengths, as many at a time as a shard may hold; at least one."""
    waiting, most = np.zeros((0, 2), np.int64), min(rows, limits.prompts)
    while True:
        more = np.frombuffer(index.read(16 * (most - len(waiting))), "<i8").reshape(-1, 2)
        waiting = np.concatenate([waiting, more])
        if not len(waiting):
            return
        fits = max(1, int((waiting[:, 1].cumsum() <= limits.tokens).sum()))
        yield waiting[:fits]
        waiting = waiting[fits:]


def _column(path: Path, dtype: str, length: int) -> BinaryIO:
    """A .npy file of one column whose values are still to be written."""
    file = path.open("wb")
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": (length,)})
    return file
