"""A ray cluster: an actor for each device or share of cores, wherever there is room; each does one shard after another.

All nodes must see the job's folder, and its model and dictionaries, at the same paths.

ray ends the process of a driver whose cluster is lost, and prints to its terminal: so the driver is a process of its own,
and what it hears comes through a pipe. Within it, `attrib.jobs.engines.actors` does the placing.
"""

import importlib
import importlib.util
import multiprocessing
import os
import socket
import threading
import traceback
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from attrib.core.types import AttribError, InputError
from attrib.jobs.engines.actors import place
from attrib.jobs.engines.local import end_with_parent, start
from attrib.jobs.engines.queue import JobError
from attrib.jobs.folder import Job, Shard, open_job
from attrib.jobs.worker import Outcome

GRACE = 10.0
"""Seconds that a driver is given to leave its cluster, and to end one that it started."""
JOINING = 120.0
"""Seconds in which it is to have joined one: ray itself would try for many minutes."""
REACHED = 10.0
"""Seconds in which its port must answer."""
STORE = 100 << 20
"""Bytes of the object store of a cluster that is started here: a record goes through it, and no more."""


class _Joined(NamedTuple):
    """The driver is in a cluster."""


def cluster(job: Job, shards: Sequence[Shard], attempts: int, *, address: str | None, device: str | None) -> Generator[Outcome, None, None]:
    """Do shards in actors of a ray cluster.

    Args:
        address: of the cluster, as ray takes it: HOST:PORT, "auto", or ray://HOST:PORT. None is that in the environment as
            RAY_ADDRESS; where there is none, a cluster is started on this machine, and ended.
        device: "cuda" gives each actor one GPU, "cpu" as many cores as the job has threads. None: cuda where the cluster has any.

    Yields:
        Each record, and each failure that is not tried again.

    Raises:
        InputError: where ray is not installed, no cluster answers there, or it has no such device.
        JobError: where the job cannot go on, or the cluster is lost.
    """
    if not _is_installed("ray"):
        raise InputError("engine: needs the package ray, which is not installed; pip install 'attrib[ray]'.")
    if device not in (None, "cpu", "cuda"):
        raise InputError(f"device: {device!r}; ray chooses among its own. Give cpu or cuda, or leave it out.")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    spawn = multiprocessing.get_context("spawn")  # a fork would share the threads and locks of this process
    ours, theirs = spawn.Pipe(duplex=False)
    numbers = [shard.number for shard in shards]
    driver = spawn.Process(target=_drive, args=(job.folder.resolve(), numbers, attempts, address, device, theirs), daemon=True)
    start(driver)
    theirs.close()
    joined = False
    try:
        if not ours.poll(JOINING):
            raise _unanswered(address, f"nothing came of it in {JOINING:.0f} seconds")
        for event in iter(ours.recv, None):
            if isinstance(event, _Joined):
                joined = True
            elif isinstance(event, AttribError):
                raise event
            else:
                yield event
        driver.join(GRACE)
    except (EOFError, ConnectionResetError):
        driver.join()
        if not joined:
            raise _unanswered(address, f"the driver ended with status {driver.exitcode}") from None
        raise JobError(
            f"{job.folder}: the ray cluster at {address} was lost. What is done stays; `attrib job run {job.folder}` goes on."
        ) from None
    finally:
        driver.terminate()
        driver.join(GRACE)
        driver.kill()  # its actors and what it started see that, and end
        driver.join()


def _drive(folder: Path, numbers: list[int], attempts: int, address: str, device: str | None, pipe: Connection) -> None:
    """The driver's life: join the cluster, place shards, tell what becomes of them. Nothing that ray prints is shown."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        ray = _join(address)
        pipe.send(_Joined())
        job = open_job(folder)
        for outcome in place(ray, job, [job.shards[number] for number in numbers], attempts, device=device):
            pipe.send(outcome)
        ray.shutdown()
        pipe.send(None)
    except Exception as error:
        told = error
        if not isinstance(error, AttribError):
            told = JobError(
                f"{folder}: the driver of ray failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            told.add_note(traceback.format_exc())
        pipe.send(told)


def _join(address: str) -> Any:
    """ray, in the cluster at an address, or in one that is started."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # or ray tells its makers of each cluster that it starts
    ray = importlib.import_module("ray")
    importlib.import_module("ray.exceptions")
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    started = {"include_dashboard": False, "object_store_memory": STORE} if address == "local" else {}
    try:
        if separator and port.isdecimal():
            socket.create_connection((host, int(port)), timeout=REACHED).close()  # ray would not say that nobody is there
        ray.init(address=address, logging_level="error", log_to_driver=False, **started)
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        raise _unanswered(address, str(error).splitlines()[0]) from error
    return ray


def _is_installed(package: str) -> bool:
    """Whether a package can be imported, which this does not do."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it is kept from being imported
        return False


def _unanswered(address: str, reason: str) -> InputError:
    return InputError(
        f"address: no ray cluster answers at {address}: {reason.rstrip('.')}. Look with `ray status`; where a cluster asks for a token, "
        "RAY_AUTH_MODE=token gives it."
    )
