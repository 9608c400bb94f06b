"""Processes of this machine, one for each device, or as many as asked for on a CPU.

Each holds the model once and does shard after shard. One that dies, by a signal or the kernel's want of memory,
is replaced, and what it had is tried again; so is one of which nothing is heard for too long. Ctrl-C reaches all processes of a
terminal, and is the first one's alone, which then ends its workers.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from attrib.jobs.engines.queue import JobError, Queue
from attrib.jobs.folder import Job, Shard
from attrib.jobs.records import Failure, Record, record_of
from attrib.jobs.shard import prepare
from attrib.jobs.worker import Began, Event, Outcome, Stop, Waits, died, work

STARTS = 3
"""How many workers in one place may be killed, one after another, before they have loaded the model."""


@dataclass
class _Worker:
    """A process and the shards that it has: one that it computes, and before it one that it writes."""

    device: str
    process: BaseProcess
    pipe: Connection
    has: list[Shard] = field(default_factory=list)
    computes: int | None = None
    is_ready: bool = False
    is_idle: bool = False
    has_died: bool = False
    heard: float = 0.0
    """When it last said something, or was given a shard, by time.monotonic()."""
    silent: float | None = None
    """Seconds without a word after which it was ended."""
    before: int = 0
    """Workers in its place that were killed, one after another, before they had loaded the model."""


def local(
    job: Job, shards: Sequence[Shard], attempts: int, *, devices: Sequence[str], timeout: float | None = None
) -> Generator[Outcome, None, None]:
    """Do shards in processes of this machine, one for each of `devices`; a device may be named more than once.

    Args:
        timeout: seconds after which a worker that has a shard, and of which nothing is heard, is ended as if it had died.

    Yields:
        Each record, and each failure that is not tried again.

    Raises:
        JobError: where the job cannot go on.
    """
    queue, by_number = Queue(job.folder, shards, attempts), {shard.number: shard for shard in shards}
    workers = [_start(job.folder, device) for device in devices[: len(shards)]]
    try:
        while queue.left:
            for pipe in wait([worker.pipe for worker in workers], _seconds(workers, timeout)):
                worker = next(each for each in workers if each.pipe is pipe)
                for outcome in _heard(job, worker):
                    shard = by_number[outcome.shard]
                    worker.has.remove(shard)
                    yield from queue.heard(shard, outcome)
                if worker.has_died:
                    for shard in worker.has:
                        queue.put_back(shard)
                    _replace(job, workers, worker)
            for worker in workers:
                if timeout is not None and worker.has and time.monotonic() - worker.heard >= timeout and not worker.pipe.poll():
                    worker.silent = timeout
                    worker.process.kill()  # its pipe says the rest
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
        for worker in workers:
            worker.process.join()


def _seconds(workers: Sequence[_Worker], timeout: float | None) -> float | None:
    """How long to wait for a word until the first of these may have been silent for too long."""
    since = [worker.heard for worker in workers if worker.has]
    return None if timeout is None or not since else max(0.01, min(since) + timeout - time.monotonic())


def _heard(job: Job, worker: _Worker) -> Iterator[Outcome]:
    """The outcome, if any, in what a worker says next; or in its death."""
    try:
        event: Event = worker.pipe.recv()
    except (EOFError, ConnectionResetError):  # after all that it said
        worker.process.join()
        worker.has_died = True
        if not worker.is_ready and (worker.process.exitcode or 0) >= 0:
            raise JobError(
                f"{job.folder}: a worker on {worker.device} ended ({_ending(worker)}) before it could begin. A script that runs a job must "
                'do so beneath `if __name__ == "__main__":`, since workers import it.'
            ) from None
        for shard in tuple(worker.has):
            if record := record_of(job, shard):  # it was done, and there was no time to say so
                yield record
            elif shard.number == worker.computes or (worker.computes is None and worker.silent is not None):  # it wrote without an end
                yield died(shard, _ending(worker))
        return
    worker.heard = time.monotonic()
    match event:
        case Stop(reason):
            raise JobError(reason)
        case Began(number):
            worker.computes = number
        case Waits():
            worker.computes, worker.is_ready, worker.is_idle = None, True, True
        case Record() | Failure():
            yield event


def _replace(job: Job, workers: list[_Worker], dead: _Worker) -> None:
    """Start another worker in the place of one that has died; where none comes to begin there, the others must do."""
    before = 0 if dead.is_ready else dead.before + 1
    if before < STARTS:
        workers[workers.index(dead)] = _start(job.folder, dead.device, before)
    elif len(workers) > 1:
        workers.remove(dead)
    else:
        raise JobError(
            f"{job.folder}: {STARTS} workers on {dead.device} ended while they loaded the model; the last: {_ending(dead)}. "
            f"What is done stays; mend that, or give fewer --workers, and `attrib job run {job.folder}` goes on."
        )


def _send(worker: _Worker, shard: Shard | None) -> None:
    worker.heard = time.monotonic()
    with suppress(BrokenPipeError, ConnectionResetError):  # it has died, as its pipe will say
        worker.pipe.send(shard)


def _ending(worker: _Worker) -> str:
    if worker.silent is not None:
        return f"nothing was heard of it for {worker.silent:g} seconds"
    code = worker.process.exitcode or 0
    if code >= 0:
        return f"exit status {code}"
    memory = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{memory}"


def _start(folder: Path, device: str, before: int = 0) -> _Worker:
    spawn = multiprocessing.get_context("spawn")  # a fork would share CUDA and the threads of BLAS
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(folder, device, theirs), daemon=True)
    start(process)
    theirs.close()
    return _Worker(device, process, ours, before=before)


def _serve(folder: Path, device: str, pipe: Connection) -> None:
    """A worker's life: shards that come through the pipe, until None does, or the parent is gone."""
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


def start(process: BaseProcess) -> None:
    """Start a process that Ctrl-C does not reach, from its first moment on."""
    resource_tracker.ensure_running()  # which lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()  # and what it starts takes the mask over
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Wait until the process that started this one has ended, and end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
