"""Whether a job's shards are what they should be: bytes, rows, and a sample computed again."""

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from attrib.core.types import FormatError
from attrib.jobs.folder import Job, Shard, open_job
from attrib.jobs.records import Record, digest, faults_of_counts, record_or_fault
from attrib.jobs.shard import compute, prepare


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
    portion = job.portion(shard)
    left_out = {one.number for one in record.refused}
    if record.sha256 is None:
        if left_out != set(portion.numbers.tolist()):
            yield "it has no file, and not all its prompts were refused"
        return
    path = job.file(shard)
    if (now := digest(job.folder, path)) != record.sha256:
        yield f"its sha256 is {now}, and not {record.sha256}"
        return
    kept = portion.take([at for at, number in enumerate(portion.numbers.tolist()) if number not in left_out])
    try:
        faults, counts = job.kind.faults(path, job.of, kept)
    except FormatError as error:
        faults = [str(error)]
    yield from faults or faults_of_counts(record, counts._asdict())


def _recomputed(folder: Path, sample: list[tuple[Shard, str]], device: str) -> Iterator[FaultyShard]:
    """Compute shards with these checksums again, and give those that come out otherwise."""
    if not sample:
        return
    ready = prepare(folder, device)
    job = ready.job
    for shard, sha256 in sample:
        computed = compute(ready, shard)
        if computed.results is None:
            yield FaultyShard(shard, f"computed again, none of its prompts can be: {computed.refused[0].reason}")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            again = job.kind.write(Path(scratch) / "again.h5", computed.results, computed.numbers, job.config.compression)
            if digest(again.parent, again) != sha256:
                yield FaultyShard(shard, job.kind.difference(job.file(shard), computed.results))
