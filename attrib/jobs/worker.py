"""A worker: shards one after another on one device. The next is computed while the last is written."""

import gc
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

from attrib.core.inside import Foreign
from attrib.core.room import is_out_of_memory
from attrib.core.types import AttribError
from attrib.jobs.folder import Job, Shard
from attrib.jobs.records import Failure, FailureKind, Record
from attrib.jobs.shard import Computed, Ready, commit, compute
from attrib.jobs.witness import Overwritten


class Began(NamedTuple):
    """A shard is being computed."""

    shard: int


class Waits(NamedTuple):
    """The shard that was computed last is being written, and another may be given."""


class Stop(NamedTuple):
    """The job cannot go on, here or anywhere: its disk is full, say."""

    reason: str


Done = TypeVar("Done")
Outcome = Record | Failure
Event = Began | Waits | Stop | Outcome
Tell = Callable[[Event], None]


def work(ready: Ready, shards: Iterable[Shard], tell: Tell) -> None:
    """Do shards, and tell what becomes of each; ends early where the job cannot go on.

    One shard is computed while the one before is written: no more than two are in memory.
    """
    with ThreadPoolExecutor(1, "writer") as writer:
        before: Future[bool] | None = None
        for shard in shards:
            tell(Began(shard.number))
            # the first time, the writer's thread is started, for which memory may not suffice
            writing = attempt(lambda shard=shard: writer.submit(_put, ready, compute(ready, shard), tell), ready.job, shard)  # type: ignore[misc]
            if before is not None and not before.result():
                return
            if isinstance(writing, Failure | Stop):
                tell(writing)
            if isinstance(writing, Stop):
                return
            before = writing if isinstance(writing, Future) else None
            tell(Waits())
        if before is not None:
            before.result()


def do(ready: Ready, shard: Shard) -> Outcome | Stop:
    """Compute and write one shard."""
    return attempt(lambda: commit(ready, compute(ready, shard)), ready.job, shard)


def _put(ready: Ready, computed: Computed, tell: Tell) -> bool:
    """Write a shard. Returns whether the job can go on."""
    outcome = attempt(lambda: commit(ready, computed), ready.job, computed.shard)
    tell(outcome)
    return not isinstance(outcome, Stop)


def attempt(step: Callable[[], Done], job: Job, shard: Shard) -> Done | Failure | Stop:
    """A step of a shard; what it raises, as a failure of the shard, or a reason to stop all."""
    try:
        return step()
    except (Foreign, Overwritten) as error:  # no other try would find it otherwise
        return Stop(str(error))
    except Exception as error:
        if reason := _disk_fault(error):
            return Stop(f"{job.folder}: {reason}. What is done stays; mend that, and `attrib job run {job.folder}` goes on.")
        details = "".join(traceback.format_exception(error))
        kind: FailureKind = "memory" if is_out_of_memory(error) else "error"
        reason = str(error) if isinstance(error, AttribError) else f"{type(error).__name__}: {error}"
        failed = _failure(shard, kind, reason.split("\n")[0], details)
    if kind == "memory":  # here, where the error and the frames that it held are gone
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return failed


def died(shard: Shard, ending: str) -> Failure:
    """The failure of a shard whose process ended while it was computed."""
    return _failure(shard, "died", f"its process ended: {ending}")


def _failure(shard: Shard, kind: FailureKind, reason: str, details: str = "") -> Failure:
    return Failure(shard=shard.number, id=shard.id, kind=kind, reason=reason, details=details, attempts=1, finished=time.time())


def _disk_fault(error: BaseException) -> str | None:
    """What is wrong with the disk, or with the folder on it, where that is the error; else None.

    HDF5's errors are RuntimeErrors too, and name errno in their text alone.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    for found in chain:
        number = found.errno if isinstance(found, OSError) else None
        if number is None and (named := re.search(r"errno = (\d+)", str(found))):
            number = int(named[1])
        if number is not None:
            return os.strerror(number) + (f" ({found.filename})" if isinstance(found, OSError) and found.filename else "")
        if isinstance(found, OSError):
            return str(found).split("\n")[0]
    return None
