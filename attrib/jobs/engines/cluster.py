"""A ray cluster: each shard is a task, on whichever node has room. All nodes must see the job's folder, and its models.

ray starts a task again whose node or process was lost, elsewhere; nodes that join are used, since no more tasks
wait at a time than there is room for twice.
"""

import importlib
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from attrib.jobs.engines import JobError, Tries
from attrib.jobs.folder import Job, Shard
from attrib.jobs.records import Failure, record_of
from attrib.jobs.shard import Ready, prepare
from attrib.jobs.worker import Outcome, Stop, died, do
from attrib.types import AttribError, InputError


def cluster(job: Job, shards: Sequence[Shard], attempts: int, *, address: str | None, device: str | None) -> Iterator[Outcome]:
    """Do shards as tasks of a ray cluster.

    Args:
        address: of the cluster, as ray takes it; None starts one on this machine.
        device: "cuda" gives each task one GPU, "cpu" as many cores as the job has threads. None: cuda where the cluster has any.

    Yields:
        Each record, and each failure that is not tried again.

    Raises:
        InputError: where ray is not installed, or no cluster answers there.
        JobError: where the job cannot go on, or the cluster is lost.
    """
    ray = _connect(address)
    try:
        gpus = ray.cluster_resources().get("GPU", 0) >= 1 if device is None else device.startswith("cuda")
        room = {"num_gpus": 1} if gpus else {"num_cpus": job.config.threads}
        task = ray.remote(**room, max_retries=attempts - 1)(_task)
        waiting, tries, running = deque(shards), Tries(attempts), dict[Any, Shard]()
        while waiting or running:
            slots = ray.cluster_resources().get("GPU" if gpus else "CPU", 0) // next(iter(room.values()))
            while waiting and len(running) < max(2, 2 * slots):
                shard = waiting.popleft()
                running[task.remote(job.folder.resolve(), shard, "cuda" if gpus else "cpu")] = shard
            for reference in ray.wait(list(running), timeout=1.0)[0]:
                shard = running.pop(reference)
                outcome = _outcome(ray, job, shard, reference)
                if isinstance(outcome, Stop):
                    raise JobError(outcome.reason)
                if isinstance(outcome, Failure) and tries.again(outcome):
                    waiting.append(shard)
                    continue
                yield outcome
    except ray.exceptions.RaySystemError as error:
        reason = str(error).split("\n")[0]
        raise JobError(f"{job.folder}: the ray cluster was lost: {reason}. Run the job again when there is one.") from error
    finally:
        ray.shutdown()


def _connect(address: str | None) -> Any:
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.exceptions")
    except ImportError as error:
        raise InputError("engine: ray is not installed; pip install 'attrib[ray]'.") from error
    try:
        ray.init(address=address, logging_level="error", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"address: no ray cluster answers at {address}: {str(error).splitlines()[0]}") from error
    return ray


def _outcome(ray: Any, job: Job, shard: Shard, reference: Any) -> Outcome | Stop:
    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        # it may have been done, and its node lost before it could say so
        return record_of(job, shard) or died(shard, str(error).split("\n")[0])


def _task(folder: Path, shard: Shard, device: str) -> Outcome | Stop:
    """A shard, wherever ray places it."""
    try:
        ready = _ready(folder, device)
    except AttribError as error:
        return Stop(str(error))
    return do(ready, shard)


@lru_cache(maxsize=1)
def _ready(folder: Path, device: str) -> Ready:
    """A process that does one shard after another loads the model once."""
    return prepare(folder, device)
