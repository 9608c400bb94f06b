"""Whether a job's shards are what they should be: bytes, rows, and a sample computed again."""

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.keep import least_share
from attrib.core.types import FormatError
from attrib.jobs.folder import Job, Shard, open_job
from attrib.jobs.records import Record, digest, faults_of_counts, record_or_fault
from attrib.jobs.shard import compute, prepare
from attrib.jobs.verify_graphs import difference_of_graphs, faults_of_graphs
from attrib.runs.results import edges_of, graphs_of, write
from attrib.runs.spec import Results
from attrib.store import Store
from attrib.store.contradictions import faults_of
from attrib.store.shard import open_shard


class FaultyShard(NamedTuple):
    """A shard that is not what it should be."""

    shard: Shard
    what: str


def verify(
    folder: Path,
    *,
    recompute: int = 1,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[FaultyShard]:
    """What is wrong with a job's shards; those that are not done yet are among it, as `NOT_DONE`.

    Of every other: that its bytes have the checksum on record, that all of it can be read and nothing in it contradicts itself
    (see `attrib.store.contradictions`), that its prompts are those of the job with their numbers, its blocks those that were
    asked for, and its counts those on record.

    Args:
        recompute: how many shards, chosen at random, are computed again and compared byte for byte.
        progress: called with (shards done, shards in all).

    Raises:
        InputError: where there is no such job, or the model is another now.
    """
    job = open_job(folder)
    found: list[FaultyShard] = []
    right: list[tuple[Shard, str]] = []
    for count, shard in enumerate(job.shards, 1):
        record = record_or_fault(job, shard)
        faults = [record] if isinstance(record, str) else list(_faults(job, shard, record))
        found += [FaultyShard(shard, what) for what in faults]
        if isinstance(record, Record) and record.sha256 and not faults:
            right.append((shard, record.sha256))
        if progress:
            progress(count, len(job.shards))
    return found + list(_recomputed(folder, random.Random(seed).sample(right, min(recompute, len(right))), device))


def _faults(job: Job, shard: Shard, record: Record) -> Iterator[str]:
    prompts, numbers, corrupt = job.prompts(shard)
    left_out = {one.number for one in record.refused}
    if record.sha256 is None:
        if left_out != set(numbers.tolist()):
            yield "it has no file, and not all its prompts were refused"
        return
    path = job.file(shard)
    if (now := digest(job.folder, path)) != record.sha256:
        yield f"its sha256 is {now}, and not {record.sha256}"
        return
    kept = {number: ids for number, ids in zip(numbers.tolist(), prompts, strict=True) if number not in left_out}
    others = None if corrupt is None else [ids for number, ids in zip(numbers.tolist(), corrupt, strict=True) if number in kept]
    try:
        yield from (
            faults_of_graphs(job, path, record, kept) if job.config.is_of_graphs else _faults_of_edges(job, path, record, kept, others)
        )
    except FormatError as error:
        yield str(error)


def _faults_of_edges(
    job: Job, path: Path, record: Record, kept: dict[int, Int[Tensor, " _"]], others: list[Int[Tensor, " _"]] | None
) -> Iterator[str]:
    with open_shard(path) as store:
        at_fault = list(faults_of(store, least_share(job.config.keep)))
        if at_fault:
            yield from (str(fault).removeprefix(f"{path}: ") for fault in at_fault)
            return
        yield from _rows(store, job, record)
        if store.prompts.numbers.tolist() != list(kept):
            yield "its prompts have other numbers than the job's"
        elif not torch.equal(store.prompts.ids, torch.cat(list(kept.values()))):
            yield "its prompts have other tokens than the job's"
        elif others is not None and (store.prompts.corrupt is None or not torch.equal(store.prompts.corrupt, torch.cat(others))):
            yield "its corrupt prompts have other tokens than the job's"


def _rows(store: Store, job: Job, record: Record) -> Iterator[str]:
    kinds, wanted = [block.kind for block in store.blocks], [item.kind for item in job.config.attribution]
    if kinds != wanted:
        yield f"it has the blocks {', '.join(kinds)}, and not {', '.join(wanted)}"
    count = 0
    for block in store.blocks:
        count += int(store.sizes(block, range(len(store))).sum())
        try:
            hashes = _hashes(store.edges(*block, prompts=[]).call)
        except (KeyError, TypeError):
            yield f"the call of its {block.kind} does not say of what model and dictionaries it is"
            continue
        if not hashes <= {job.fixed.model, *job.fixed.dictionaries.values()}:
            yield f"its {block.kind} is of another model or dictionary than the job's"
    prompts = store.prompts
    yield from faults_of_counts(record, {"prompts": len(prompts), "tokens": len(prompts.ids), "edges": count})


def _hashes(call: dict[str, Any]) -> set[str]:
    """The checksums of the model and the dictionaries that a block names."""
    ends = (call["source"], call["target"], *call["cuts"])
    return {call["model"]["sha256"], *(end["sha256"] for end in ends if isinstance(end, dict))}


def _recomputed(folder: Path, sample: list[tuple[Shard, str]], device: str) -> Iterator[FaultyShard]:
    """Compute shards with these checksums again, and give those that come out otherwise."""
    if not sample:
        return
    ready = prepare(folder, device)
    for shard, sha256 in sample:
        computed = compute(ready, shard)
        with tempfile.TemporaryDirectory() as scratch:
            again = write(Path(scratch) / "again.h5", computed.results, computed.numbers, compression=ready.job.config.compression)
            if digest(again.parent, again) != sha256:
                yield FaultyShard(shard, _difference(ready.job.file(shard), computed.results))


def _difference(path: Path, again: Results) -> str:
    """How far a shard is from what comes out now."""
    if graphs := graphs_of(again):
        return difference_of_graphs(path, graphs)
    with open_shard(path) as store:
        for was, now in zip(store.values(), edges_of(again), strict=True):
            if not torch.equal(was.indptr, now.indptr) or not torch.equal(was.indices, now.indices):
                return f"computed again, its {was.kind} keeps other edges"
            largest = was.attribution.abs().max().clamp(min=1e-30)
            if apart := float(((was.attribution - now.attribution).abs().max() / largest) if len(was) else 0):
                return f"computed again, its {was.kind} differs by {apart:.1e} of the largest attribution"
    return "computed again, its values are the same, but not its bytes"
