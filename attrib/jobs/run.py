"""Running a job: what is missing or damaged is done, by some engine, until nothing is."""

from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch

from attrib.core import inside
from attrib.core.lock import held
from attrib.core.types import AttribError, InputError
from attrib.jobs.engines import Engine
from attrib.jobs.folder import FAILURES, LOCK, RECORDS, SHARDS, Job, Shard, open_job
from attrib.jobs.records import Failure, Record, Refused, digest, failures, records, write
from attrib.jobs.shard import prepare
from attrib.jobs.worker import Outcome
from attrib.store.columns import packages


class Ran(NamedTuple):
    """What a run came to."""

    job: Job
    done: dict[int, Record]
    """All shards that are done, by number; those of earlier runs among them."""
    failed: list[Failure]
    damaged: list[Shard]
    """Shards that were done once, found to be damaged, and done again."""
    changed: str | None = None
    """Why the model or dictionaries of a job that was done before, as they are now, are not what it was made with."""

    def __repr__(self) -> str:
        counts = f"{len(self.done):,} shards done, {len(self.failed):,} failed, {len(self.damaged):,} made again"
        return f"Ran({self.job!r}, {counts}{'' if self.changed is None else ', what they were made of changed'})"

    @property
    def put_down(self) -> list[Refused]:
        """Prompts of these shards that could not be computed, each with the reason."""
        return sorted((one for record in self.done.values() for one in record.refused), key=lambda one: one.number)


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
        check: read every shard that is there and compare it with its checksum; else only its length. Where all are there, the
            model and the dictionaries too are compared with what the job was made with.
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
        _check_places(job)
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
        pending = [shard for shard in (reversed(own) if job.kind.by_length else own) if shard.number not in done and shard.number in wanted]
        watch.began(job, done, pending, killed is not None)
        changed = _changed(folder) if check and not (pending or only_failed or rank) else None
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
        return Ran(job, done, failed, damaged, changed)


def remove_partial(folder: Path) -> list[Path]:
    """Remove what a killed run was writing. The lock must be held. Returns what it was."""
    left = [
        folder / inner / name for inner in (SHARDS, RECORDS, FAILURES) for name in inside.names(folder, inner) if inside.is_partial(name)
    ]
    for path in left:
        inside.remove(folder, path)
    return left


def _check_places(job: Job) -> None:
    """Raises Foreign where something else stands in the place of a file of the job: no try would get past it."""
    for inner, place in ((SHARDS, job.file), (RECORDS, job.record), (FAILURES, job.failure)):
        wanted = {place(shard).name: shard for shard in job.shards}
        for name in wanted.keys() & inside.others(job.folder, inner):
            inside.check(job.folder, place(wanted[name]))


def _changed(folder: Path) -> str | None:
    """Why a worker could not begin now, which no worker does where nothing is left to do."""
    threads = torch.get_num_threads()
    try:
        prepare(folder, "cpu")
    except AttribError as error:
        return str(error)
    finally:
        torch.set_num_threads(threads)
    return None


def _damaged(job: Job, shards: list[Shard], done: dict[int, Record], watch: Watch) -> list[Shard]:
    """Those of some shards that are done whose bytes are not those that were written.

    Raises:
        FormatError: where the prompts that they were made of are not what they were.
    """
    found = []
    for number, shard in enumerate(shards, 1):
        job.prompts(shard)
        if (was := done[shard.number].sha256) is not None and digest(job.folder, job.file(shard)) != was:
            found.append(shard)
        watch.checked(number, len(shards))
    return found


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
