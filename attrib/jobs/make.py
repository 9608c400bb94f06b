"""Making a job: every prompt read once, tokenised, put with others of its length, and cut into shards.

Prompts stream through: what is held is one prompt, and an open file for each bucket of lengths. A prompt that
is none is written down with the reason, and the next is read.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from math import ceil, log2
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from attrib.core.files import sync
from attrib.core.positions import least_length
from attrib.core.types import InputError, Progress
from attrib.jobs.building import built
from attrib.jobs.config import JobFile, PromptsOf, ShardsOf, confined
from attrib.jobs.folder import FAILURES, JOB, PROMPTS, RECORDS, SHARDS, Fixed, Job, identity, open_job, shard_id
from attrib.jobs.ids import parts_of
from attrib.jobs.refusals import Refusals
from attrib.models.transformer import Model
from attrib.runs.prompts import Given, check_effect, read, read_pairs, uses
from attrib.runs.spec import Loaded, load
from attrib.store.columns import packages

STEPS = 4
"""Buckets of lengths in each doubling: the shortest prompt of a shard is at least 0.84 of its longest."""


def make(folder: Path, config: JobFile, beside: Path, *, allowed: Sequence[Path] = (), progress: Progress | None = None) -> Job:
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
    named = {"model": config.model} | {f"dictionary {name}": name for name in config.dictionaries}
    places = {name: str(path) for argument, name in named.items() if (path := confined(argument, name, beside, allowed)) is not None}
    sources = [_source(name, beside, allowed) for name in config.prompts.source]
    check_effect(sources, config.prompts.form, field=config.prompts.field, split=config.prompts.split)
    loaded = load(config, torch.device("cpu"), places)
    context = loaded.model.config.n_ctx
    if (most := config.prompts.max_tokens or context) > context:
        raise InputError(f"prompts.max_tokens: {most:,}, more than the {context:,} that the model reads. Give fewer.")
    example = [torch.zeros(least_length(config.positions, context), dtype=torch.int64)]
    loaded.check(example, example if config.prompts.corrupt is not None else None)
    target = folder.resolve()  # of "jobs/.." too, which has no name to build beside
    with built(target) as building:
        for inner in (PROMPTS, SHARDS, RECORDS, FAILURES):
            (building / inner).mkdir()
        fixed = _write_prompts(building / PROMPTS, config, sources, (beside, *allowed), loaded, places, progress)
        (building / JOB).write_text(fixed.model_dump_json(indent=1), encoding="utf-8")
        for path in building.rglob("*"):
            sync(path)
    return open_job(folder)


def _source(name: str, beside: Path, allowed: Sequence[Path]) -> str | Path:
    if name == "-" or name.startswith("hf:"):
        return name
    found = confined("prompts.source", name, beside, allowed)
    if found is None:
        raise InputError(f"prompts.source: {beside / name} does not exist.")
    if found.exists() and not (found.is_file() or found.is_dir() or found in allowed):  # a pipe would be waited for
        raise InputError(f"prompts.source: {name} is a pipe or a device; expected a file or a folder. Give it as --prompts {found}.")
    return found


# ---------------------------------------------------------------------------------------------- prompts


@dataclass
class _Bucket:
    """Prompts of about one length, on the disk: their ids, and of each its number and length; and those that they are compared with."""

    ids: BinaryIO
    index: BinaryIO
    corrupt: BinaryIO

    def add(self, number: int, ids: Tensor, corrupt: Tensor | None) -> None:
        self.ids.write(ids.numpy().astype("<i4").tobytes())
        if corrupt is not None:
            self.corrupt.write(corrupt.numpy().astype("<i4").tobytes())
        self.index.write(np.array([number, len(ids)], "<i8").tobytes())


def bucket_of(length: int) -> int:
    """The bucket of a length: one for each up to STEPS, then STEPS in each doubling."""
    return length if length <= STEPS else ceil(STEPS * log2(length / STEPS)) + STEPS


def _write_prompts(
    folder: Path,
    config: JobFile,
    sources: Sequence[str | Path],
    allowed: Sequence[Path],
    loaded: Loaded,
    places: dict[str, str],
    progress: Progress | None,
) -> Fixed:
    given = 0
    with ExitStack() as opened:
        buckets: dict[int, _Bucket] = {}
        log, split = (opened.enter_context((folder / f"{name}.jsonl").open("w", encoding="utf-8")) for name in ("refused", "split"))
        refusals = Refusals(log)
        for found, other in _limited(config.prompts, sources, allowed):
            parts, fault = parts_of(loaded.model, given, found, config.prompts)
            corrupt: Tensor | None = None
            if other is not None and parts:
                corrupt, fault = _corrupt_of(loaded.model, given, parts[0], other, config.prompts)
                parts = parts if corrupt is not None else []
            if not parts:
                refusals.add(given, found.where, fault)
            if len(parts) > 1:
                split.write(json.dumps({"number": given, "prompts": len(parts), "where": found.where}) + "\n")
            for number, ids in enumerate(parts, given):
                key = bucket_of(len(ids))
                if key not in buckets:
                    files = [opened.enter_context((folder / f"bucket-{key}.{what}").open("w+b")) for what in ("ids", "index", "corrupt")]
                    buckets[key] = _Bucket(*files)
                buckets[key].add(number, ids, corrupt)
            given += max(1, len(parts))
            if progress:
                progress(given, -1)
        refusals.close()
        if given == refusals.count:
            raise InputError(
                "prompts: there are none; expected at least one."
                if not given
                else f"prompts: none of {given} can be one. The last: {found.where} {fault}."
            )
        facts = Fixed(
            config=config.model_dump(mode="json"), places=places, model=loaded.model.fingerprint,
            tokenizer=loaded.model.tokenizer.sha256 if loaded.model.tokenizer else None,
            dictionaries={name: one.fingerprint for name, one in loaded.dictionaries.items()},
            packages=packages(), given=given, refused=refusals.count, prompts=0, tokens=0,
        )  # fmt: skip
        who = identity(facts.config, facts.model, facts.tokenizer, facts.dictionaries)
        ordered = [buckets[key] for key in sorted(buckets)]
        prompts, tokens = _lay_out(folder, ordered, config.shards, who, are_pairs=config.prompts.corrupt is not None)
    for left in folder.glob("bucket-*"):
        left.unlink()
    return facts.model_copy(update={"prompts": prompts, "tokens": tokens})


def _corrupt_of(model: Model, number: int, ids: Tensor, other: Given, of: PromptsOf) -> tuple[Tensor | None, str]:
    """The token ids of the prompt that one is compared with, or what is wrong with the pair."""
    parts, fault = parts_of(model, number, other, of)
    if not parts:
        return None, f"has a corrupt prompt that {fault}"
    if len(parts[0]) != len(ids):
        return None, f"has {len(ids)} tokens, and its corrupt prompt {len(parts[0])}; expected as many"
    return parts[0], ""


def _limited(of: PromptsOf, sources: Sequence[str | Path], allowed: Sequence[Path]) -> Iterator[tuple[Given, Given | None]]:
    """The prompts, each with the one that it is compared with, where pairs are asked for."""
    options = {"field": of.field, "split": of.split}

    def prompts_of(source: str | Path) -> Iterator[tuple[Given, Given | None]]:
        used = {name: value for name, value in options.items() if name in uses(source, of.form)}
        if of.corrupt is not None:
            yield from read_pairs(source, of.corrupt, form=of.form, allowed=allowed, **used)
        else:
            yield from ((found, None) for found in read(source, form=of.form, allowed=allowed, **used))

    return islice((found for source in sources for found in prompts_of(source)), of.limit)


# ----------------------------------------------------------------------------------------------- shards


def _lay_out(folder: Path, buckets: Sequence[_Bucket], limits: ShardsOf, who: bytes, *, are_pairs: bool) -> tuple[int, int]:
    """Write ids, ptr and number in the order of the shards, of pairs also corrupt, and the shards' listing. Returns (prompts, tokens)."""
    counts = [(bucket.ids.tell() // 4, bucket.index.tell() // 16) for bucket in buckets]
    tokens, prompts = (sum(column) for column in zip(*counts, strict=True))
    with ExitStack() as opened:
        ids, ptr, number = (
            opened.enter_context(_column(folder / f"{name}.npy", dtype, length))
            for name, dtype, length in (("ids", "<i4", tokens), ("ptr", "<i8", prompts + 1), ("number", "<i8", prompts))
        )
        corrupt = opened.enter_context(_column(folder / "corrupt.npy", "<i4", tokens)) if are_pairs else None
        listing = opened.enter_context((folder / "shards.jsonl").open("w", encoding="utf-8"))
        ptr.write(np.zeros(1, "<i8").tobytes())
        before = 0
        for bucket, (_, rows) in zip(buckets, counts, strict=True):
            bucket.ids.seek(0)
            bucket.corrupt.seek(0)
            bucket.index.seek(0)
            for index in _cut(bucket.index, rows, limits):
                length = int(index[:, 1].sum())
                raw = bucket.ids.read(4 * length)
                ends = before + index[:, 1].cumsum()
                ids.write(raw)
                ptr.write(ends.astype("<i8").tobytes())
                number.write(index[:, 0].astype("<i8").tobytes())
                columns = [np.frombuffer(raw, "<i4")]
                if corrupt is not None:
                    others = bucket.corrupt.read(4 * length)
                    corrupt.write(others)
                    columns.append(np.frombuffer(others, "<i4"))
                name = shard_id(who, index[:, 0], np.concatenate([[before], ends]), *columns)
                listing.write(json.dumps({"id": name, "prompts": len(index), "tokens": length}) + "\n")
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
