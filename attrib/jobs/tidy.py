"""What a job's folder no longer needs, and what killed ones left beside it when they were to make it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from attrib.core import inside
from attrib.core.lock import check_free, held
from attrib.core.types import InputError
from attrib.jobs.building import left_behind
from attrib.jobs.folder import FAILURES, LOCK, RECORDS, SHARDS, Job, open_job
from attrib.jobs.records import records


def tidy(folder: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove what killed runs left half-written, shards that no record vouches for, and files that are not the job's.

    So are the folders beside it in which a killed `attrib job init` was making this job, which need not have come to be. One that is
    being made is left alone.

    Args:
        dry_run: only say what that is, and write nothing, a lock neither.

    Returns:
        What was removed.

    Raises:
        InputError: where there is no job, or it is being run.
    """
    beside = left_behind(folder.resolve())
    try:
        job = open_job(folder)
    except InputError:
        if not beside or folder.exists():
            raise
        return _removed(beside, dry_run)
    if dry_run:
        check_free(folder / LOCK)
        return [*sorted(_useless(job)), *beside]
    with held(folder / LOCK):
        found = sorted(_useless(job))
        for path in found:
            inside.remove(folder, path)
        return [*found, *_removed(beside, dry_run)]


def _removed(beside: list[Path], dry_run: bool) -> list[Path]:
    for path in beside if not dry_run else ():
        shutil.rmtree(path)
    return beside


def _useless(job: Job) -> Iterator[Path]:
    done = records(job)
    needed = {job.file(shard) for shard in job.shards if shard.number in done and done[shard.number].sha256}
    needed |= {job.record(job.shards[number]) for number in done}
    needed |= {job.failure(shard) for shard in job.shards if shard.number not in done}
    for inner, suffix in ((SHARDS, ".h5"), (RECORDS, ".json"), (FAILURES, ".json")):
        found = {name for name in inside.names(job.folder, inner) if name.endswith(suffix) or inside.is_partial(name)}
        needless = found - {path.name for path in needed if path.parent.name == inner} | found & inside.others(job.folder, inner)
        yield from (job.folder / inner / name for name in needless)
