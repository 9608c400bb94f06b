"""Running a job: what is missing or damaged is done, by some engine, until nothing is."""

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from attrib.jobs import inside
from attrib.jobs.changes import changed_since
from attrib.jobs.engines import Engine
from attrib.jobs.folder import FAILURES, LOCK, RECORDS, SHARDS, Job, Shard, open_job
from attrib.jobs.lock import held
from attrib.jobs.records import Failure, Record, digest, failures, records, write
from attrib.jobs.worker import Outcome
from attrib.store.columns import packages
from attrib.store.whole import PARTIAL
from attrib.types import InputError


class Ran(NamedTuple):
    """What a run came to."""

    job: Job
    done: dict[int, Record]
    """All shards that are done, by number; those of earlier runs among them."""
    failed: list[Failure]
    damaged: list[Shard]
    """Shards that were done once, found to be damaged, and done again."""
    changed: list[str]
    """Of a job of which nothing was left to do: its model and dictionaries that are no longer what its shards were computed with."""


class Watch:
    """What a run tells while it goes on; nothing, unless overridden."""

    def checked(self, done: int, total: int) -> None:
        """So many of the shards that were there have been read and compared with their checksums."""

    def began(self, job: Job, done: dict[int, Record], pending: list[Shard], killed: bool) -> None:
        """The shards that are missing are about to be done. `killed`: the last run ended without an end."""

    def became(self, outcome: Outcome) -> None:
        """A shard is done, or has failed for good."""


def run(
    folder: Path,
    engine: Engine,
    *,
    attempts: int = 3,
    only_failed: bool = False,
    check: bool = True,
    other_packages: bool = False,
    launch: tuple[str, int, int] | None = None,
    watch: Watch | None = None,
) -> Ran:
    """Do what is left of a job. What was done stays; the bytes that come out are those of a run that nothing disturbed.

    Args:
        engine: where shards are done; `attrib.jobs.engines`.
        attempts: how often a shard is tried in this run.
        only_failed: do only the shards that failed the last time.
        check: read every shard that is there and compare it with its checksum; else only its length.
        other_packages: go on with other versions of torch, numpy, h5py or attrib than the job was made with.
        launch: (name, rank, world) of a process among many that were started together. Each checks and does its own shards.

    Raises:
        InputError: where there is no job, another run holds it, or packages differ.
        JobError: where the job cannot go on. What is done stays done.
    """
    watch = watch or Watch()
    job = open_job(folder)  # which is fixed, so that it need not be read again behind the lock
    name, rank, world = launch or (None, 0, 1)
    with held(folder / LOCK, launch=name, rank=rank) as killed:
        if not other_packages and (now := packages()) != job.fixed.packages:
            raise InputError(
                f"packages: {folder} was made with {_listed(job.fixed.packages)}; here are {_listed(now)}, which may compute other last "
                "digits. Install the former, or give --other-packages."
            )
        for inner in (SHARDS, RECORDS, FAILURES):
            inside.make_folder(folder, inner)  # whoever removed one wants it made again
        check_places(job)
        if launch is None:
            remove_partial(folder)
        own = [shard for shard in job.shards if shard.number % world == rank]
        done = records(job)
        damaged = _damaged(job, [shard for shard in own if shard.number in done], done, watch) if check else []
        for shard in damaged:
            inside.remove(folder, job.record(shard))
            del done[shard.number]
        wanted = {failure.shard for failure in failures(job)} if only_failed else {shard.number for shard in own}
        # longest prompts first: what takes most memory and time is known early, and short shards fill the end
        pending = [shard for shard in reversed(own) if shard.number not in done and shard.number in wanted]
        watch.began(job, done, pending, killed is not None)
        failed: list[Failure] = []
        outcomes = engine(job, pending, attempts)
        with closing(outcomes):
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    write(folder, job.failure(job.shards[outcome.shard]), outcome)
                    failed.append(outcome)
                else:
                    done[outcome.shard] = outcome
                watch.became(outcome)
        if launch is None:
            remove_partial(folder)  # of workers that were lost on the way
        changed = [] if pending or launch is not None else changed_since(job)  # a worker would have looked
        return Ran(job, done, failed, damaged, changed)


def remove_partial(folder: Path) -> list[Path]:
    """Remove what a killed run was writing. The lock must be held. Returns what it was."""
    left = [folder / inner / name for inner in (SHARDS, RECORDS, FAILURES) for name in inside.names(folder, inner) if is_partial(name)]
    for path in left:
        inside.remove(folder, path)
    return left


def is_partial(name: str) -> bool:
    """Whether a file is called as one that is being written, or was by a run that was killed."""
    return name.startswith(".") and name.endswith(PARTIAL)


def check_places(job: Job) -> None:
    """Raises ForeignError where something else stands in the place of a file of the job: no try would get past it."""
    for inner, place in ((SHARDS, job.file), (RECORDS, job.record), (FAILURES, job.failure)):
        wanted = {place(shard).name: shard for shard in job.shards}
        for name in wanted.keys() & inside.others(job.folder, inner):
            inside.check(job.folder, place(wanted[name]))


def _damaged(job: Job, shards: list[Shard], done: dict[int, Record], watch: Watch) -> list[Shard]:
    """Those of some shards that are done whose bytes are not those that were written."""
    found = []
    for number, shard in enumerate(shards, 1):
        if (was := done[shard.number].sha256) is not None and digest(job.folder, job.file(shard)) != was:
            found.append(shard)
        watch.checked(number, len(shards))
    return found


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
