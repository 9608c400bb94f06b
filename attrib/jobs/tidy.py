"""What a job's folder no longer needs."""

from collections.abc import Iterator
from pathlib import Path

from attrib.jobs import inside
from attrib.jobs.folder import FAILURES, LOCK, RECORDS, SHARDS, Job, open_job
from attrib.jobs.lock import check_free, held
from attrib.jobs.records import records
from attrib.jobs.run import check_places, is_partial


def tidy(folder: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove what killed runs left half-written, shards that no record vouches for, and files that are not the job's.

    Args:
        dry_run: only say what that is, and write nothing, a lock neither.

    Returns:
        What was removed.

    Raises:
        InputError: where there is no job, or it is being run.
        ForeignError: where something else stands in the place of a file of the job.
    """
    job = open_job(folder)
    if dry_run:
        check_free(folder / LOCK)
        return sorted(_useless(job))
    with held(folder / LOCK):
        found = sorted(_useless(job))
        for path in found:
            inside.remove(folder, path)
        return found


def _useless(job: Job) -> Iterator[Path]:
    check_places(job)  # a record that is a link says nothing, and its shard would be taken for nobody's
    done = records(job)
    needed = {job.file(shard) for shard in job.shards if shard.number in done and done[shard.number].sha256}
    needed |= {job.record(job.shards[number]) for number in done}
    needed |= {job.failure(shard) for shard in job.shards if shard.number not in done}
    for inner, suffix in ((SHARDS, ".h5"), (RECORDS, ".json"), (FAILURES, ".json")):
        found = {job.folder / inner / name for name in inside.names(job.folder, inner) if name.endswith(suffix) or is_partial(name)}
        yield from found - needed
