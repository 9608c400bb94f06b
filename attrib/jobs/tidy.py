"""What a job's folder no longer needs."""

from collections.abc import Iterator
from pathlib import Path

from attrib.jobs.folder import FAILURES, LOCK, RECORDS, SHARDS, Job, open_job
from attrib.jobs.lock import held
from attrib.jobs.records import records
from attrib.store.whole import PARTIAL


def tidy(folder: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove what killed runs left half-written, shards that no record vouches for, and files that are not the job's.

    Args:
        dry_run: only say what that is.

    Returns:
        What was removed.

    Raises:
        InputError: where there is no job, or it is being run.
    """
    job = open_job(folder)
    with held(folder / LOCK):
        found = sorted(_useless(job))
        if not dry_run:
            for path in found:
                path.unlink()
        return found


def _useless(job: Job) -> Iterator[Path]:
    done = records(job)
    needed = {job.file(shard) for shard in job.shards if shard.number in done and done[shard.number].sha256}
    needed |= {job.record(job.shards[number]) for number in done}
    needed |= {job.failure(shard) for shard in job.shards if shard.number not in done}
    for inner, pattern in ((SHARDS, "*.h5"), (RECORDS, "*.json"), (FAILURES, "*.json")):
        yield from (path for path in (job.folder / inner).glob(pattern) if path not in needed)
        yield from (path for path in (job.folder / inner).glob(f".*{PARTIAL}"))
