"""Processes of this machine, one for each device, or as many as asked for on a CPU.

Each holds the model once and does shard after shard. One that dies, by a signal or the kernel's want of memory,
is replaced, and what it had is tried again.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm import tqdm

from attrib.jobs.engines.engine import JobError
from attrib.jobs.engines.queue import Queue
from attrib.jobs.folder import Job, Shard
from attrib.jobs.records import Failure, Record, record_of
from attrib.jobs.shard import prepare
from attrib.jobs.worker import Began, Event, Outcome, Stop, Waits, died, work
from attrib.types import warn

STARTS = 3
"""How often a worker may be killed, one time after another, before it has loaded the model."""


@dataclass
class _Worker:
    """A process and the shards that it has: one that it computes, and before it one that it writes."""

    device: str
    process: BaseProcess
    pipe: Connection
    has: list[Shard] = field(default_factory=list)
    starts: int = 1
    """How often it was started since it last began."""
    computes: int | None = None
    is_ready: bool = False
    is_idle: bool = False
    has_died: bool = False


def local(job: Job, shards: Sequence[Shard], attempts: int, *, devices: Sequence[str]) -> Generator[Outcome, None, None]:
    """Do shards in processes of this machine, one for each of `devices`; a device may be named more than once.

    Yields:
        Each record, and each failure that is not tried again.

    Raises:
        JobError: where the job cannot go on.
    """
    queue, by_number = Queue(job.folder, shards, attempts), {shard.number: shard for shard in shards}
    workers = [_start(job.folder, device) for device in devices[: len(shards)]]
    try:
        while queue.left:
            for pipe in wait([worker.pipe for worker in workers]):
                worker = next(each for each in workers if each.pipe is pipe)
                for outcome in _heard(job, worker):
                    shard = by_number[outcome.shard]
                    worker.has.remove(shard)
                    yield from queue.heard(shard, outcome)
                if worker.has_died:
                    for shard in worker.has:
                        queue.put_back(shard)
                    workers.remove(worker)
                    workers += _replaced(job, worker, len(workers))
            for worker in workers:
                if worker.is_idle and queue:
                    shard = queue.take()
                    worker.has.append(shard)
                    worker.is_idle = False
                    _send(worker, shard)
        for worker in workers:
            _send(worker, None)
            worker.process.join()
    finally:
        for worker in workers:
            worker.process.kill()  # what it was writing has no name yet
            worker.process.join()


def _heard(job: Job, worker: _Worker) -> Iterator[Outcome]:
    """The outcome, if any, in what a worker says next; or in its death."""
    try:
        event: Event = worker.pipe.recv()
    except (EOFError, ConnectionResetError):  # after all that it said
        worker.process.join()
        worker.has_died = True
        if not worker.is_ready and not _was_killed(worker):
            raise JobError(
                f"{job.folder}: a worker on {worker.device} ended ({_ending(worker)}) before it could begin. A script that runs a job must "
                'do so beneath `if __name__ == "__main__":`, since workers import it.'
            ) from None
        for shard in tuple(worker.has):
            if record := record_of(job, shard):  # it was done, and there was no time to say so
                yield record
            elif shard.number == worker.computes:
                yield died(shard, _ending(worker))
        return
    match event:
        case Stop(reason):
            raise JobError(reason)
        case Began(number):
            worker.computes = number
        case Waits():
            worker.computes, worker.is_ready, worker.is_idle = None, True, True
        case Record() | Failure():
            yield event


def _replaced(job: Job, worker: _Worker, others: int) -> list[_Worker]:
    """Another worker in the place of one that died; none, where it was killed each time before it could begin, and there are others."""
    starts = 1 if worker.is_ready else worker.starts + 1
    if starts <= STARTS:
        return [_start(job.folder, worker.device, starts)]
    what = f"{job.folder}: a worker on {worker.device} was killed {STARTS} times while it loaded the model ({_ending(worker)})"
    if not others:
        raise JobError(f"{what}. What is done stays; `attrib job run {job.folder}` goes on.")
    warn(f"{what}; the job goes on with {others} others.")
    return []


def _send(worker: _Worker, shard: Shard | None) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it has died, as its pipe will say
        worker.pipe.send(shard)


def _was_killed(worker: _Worker) -> bool:
    return (worker.process.exitcode or 0) < 0


def _ending(worker: _Worker) -> str:
    code = worker.process.exitcode or 0
    if not _was_killed(worker):
        return f"exit status {code}"
    memory = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{memory}"


def _start(folder: Path, device: str, starts: int = 1) -> _Worker:
    spawn = multiprocessing.get_context("spawn")  # a fork would share CUDA and the threads of BLAS
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(folder, device, theirs), daemon=True)
    start_deaf(process)
    theirs.close()
    return _Worker(device, process, ours, starts=starts)


def start_deaf(process: BaseProcess) -> None:
    """Start a process that Ctrl-C does not reach, not even while it imports what it needs: it is the parent's, which then ends it."""
    resource_tracker.ensure_running()  # or starting the process would start it, and let the signal through again
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the new process inherits that, and here it waits
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _serve(folder: Path, device: str, pipe: Connection) -> None:
    """A worker's life: shards that come through the pipe, until None does, or the parent is gone."""
    tqdm.set_lock(threading.RLock())  # its own takes a semaphore of the machine's, which a process that is killed leaves behind
    turn = threading.Lock()

    def tell(event: Event) -> None:
        with turn:
            pipe.send(event)

    try:
        threading.Thread(target=end_with_parent, daemon=True).start()
        ready = prepare(folder, device)
        tell(Waits())
        work(ready, iter(pipe.recv, None), tell)
    except Exception as error:
        with suppress(BrokenPipeError):  # the parent is gone, and this process with it
            tell(Stop(f"{folder}: {str(error) or type(error).__name__}"))


def end_with_parent() -> None:
    """Wait until the process that started this one has ended, and end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
