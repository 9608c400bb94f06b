"""What a driver of ray does: actors where there is room, a shard to each that is ready, and what becomes of it.

Actors, and not tasks: a task with a GPU has a process of its own, which would load the model for each shard; and an
actor keeps its GPU, where a process of tasks is given another one each time.

ray starts nothing again by itself, for it counts a node that is lost as it counts a process that a shard took down, and
one that takes all memory not at all. Here the second and third are the shard's fault and are counted; the first is not.
"""

import importlib
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attrib.core.types import InputError
from attrib.jobs.engines.queue import JobError, Queue
from attrib.jobs.folder import Job, Shard
from attrib.jobs.records import Failure, FailureKind, record_of
from attrib.jobs.shard import prepare
from attrib.jobs.worker import Outcome, Stop, died, do
from attrib.store.columns import packages

LOSSES = 10
"""How often a shard's node is lost until that, too, is a failure of the shard."""
STARTS = 3
"""How many actors may end, one after another, before they have loaded the model."""
STARVED = 600.0
"""Seconds without any node that has room for an actor, after which the job is given up."""
POLL = 1.0
"""Seconds between two looks at the nodes, at most."""


class Actor:
    """A process somewhere in the cluster, with the model on its device."""

    def prepare(self, folder: Path, device: str, versions: Mapping[str, str]) -> str | Stop:
        """Load the model, and tell the node; or why the job cannot go on."""
        where = f"{folder}, on {socket.gethostname()}"
        if (here := packages()) != versions:
            return Stop(f"{where}: the packages are {here}, and the driver's are {dict(versions)}. Install the same on all nodes.")
        try:
            self._ready = prepare(folder, device)
        except Exception as error:
            return Stop(f"{where}: {str(error) or type(error).__name__}")
        return self.node()

    def node(self) -> str:
        """Where it is. It answers this after all that it was asked before."""
        return str(importlib.import_module("ray").get_runtime_context().get_node_id())

    def do(self, shard: Shard) -> Outcome | Stop:
        """Compute and write one shard."""
        return do(self._ready, shard)


@dataclass(eq=False)
class _Worker:
    """An actor, as the driver knows it."""

    actor: Any
    node: str | None = None
    """None until it has loaded the model."""
    has: Shard | None = None


class _Ended(NamedTuple):
    """An actor is no more."""

    kind: FailureKind
    reason: str
    details: str

    def failure(self, shard: Shard) -> Failure:
        """What became of the shard that it had."""
        return died(shard, self.reason).model_copy(update={"kind": self.kind, "details": self.details})


def place(ray: Any, job: Job, shards: Sequence[Shard], attempts: int, *, device: str | None) -> Iterator[Outcome]:
    """Do shards in the cluster that ray is in. Arguments, and what is yielded and raised, as of `cluster`."""
    device, needs = _device(_nodes(ray), device, job.config.threads)
    kind = ray.remote(max_restarts=0, max_task_retries=0, num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0))(Actor)
    queue, losses = Queue(job.folder, shards, attempts), Counter[int]()
    asked, idle = dict[Any, _Worker](), list[_Worker]()
    unready, fed = 0, time.monotonic()
    while queue.left:
        nodes = _nodes(ray)
        if slots := sum(room(node, needs) for node in nodes.values()):
            fed = time.monotonic()
        elif time.monotonic() - fed > STARVED:
            raise JobError(
                f"{job.folder}: for {STARVED:.0f} seconds the ray cluster had no node with {_listed(needs)}. Add one, and run again."
            )
        # one more than there is room for: it is what an autoscaler looks at, and it takes the place of one that ends
        while len(asked) + len(idle) < min(slots + 1, queue.left):
            worker = _Worker(kind.remote())
            asked[worker.actor.prepare.remote(job.folder, device, packages())] = worker
        while queue and idle:
            worker = idle.pop()
            worker.has = queue.take()
            asked[worker.actor.do.remote(worker.has)] = worker
        for reference in ray.wait(list(asked), timeout=POLL)[0]:
            worker = asked.pop(reference)
            said = _heard(ray, reference)
            if isinstance(said, Stop):
                raise JobError(said.reason)
            if said is None:
                asked[worker.actor.node.remote()] = worker
                continue
            if isinstance(said, _Ended) and worker.node is None:
                unready += 1
                if unready == STARTS:
                    raise JobError(f"{job.folder}: {STARTS} actors of ray ended before they could begin. The last: {said.reason}")
                continue
            if isinstance(said, str):
                worker.node, unready = said, 0
            if not isinstance(said, _Ended):
                idle.append(worker)
            if (shard := worker.has) is None:
                continue
            worker.has = None
            if isinstance(said, str | _Ended):  # it may have been done, and its answer lost
                said = record_of(job, shard) or said
            is_lost = isinstance(said, _Ended) and worker.node not in _nodes(ray)
            losses[shard.number] += is_lost
            if isinstance(said, str) or (is_lost and losses[shard.number] < LOSSES):
                queue.put_back(shard)
            else:
                yield from queue.heard(shard, said.failure(shard) if isinstance(said, _Ended) else said)


def _device(nodes: Mapping[str, Mapping[str, float]], device: str | None, threads: int) -> tuple[str, dict[str, int]]:
    """Where actors compute, cuda where a node has any and nobody says otherwise, and what each takes of its node.

    Raises:
        InputError: where no node has that.
    """
    if device is None:
        device = "cuda" if any(node.get("GPU", 0) >= 1 for node in nodes.values()) else "cpu"
    needs = needs_of(device, threads)
    if not any(room(node, needs) for node in nodes.values()):
        raise InputError(f"device: {device} takes a node with {_listed(needs)}, and the ray cluster has none. Add one, or give another.")
    return device, needs


def needs_of(device: str, threads: int) -> dict[str, int]:
    """What an actor takes of its node."""
    return {"CPU": 1, "GPU": 1} if device == "cuda" else {"CPU": threads}


def room(node: Mapping[str, float], needs: Mapping[str, int]) -> int:
    """How many actors a node has room for, by its resources in all."""
    return min(int(node.get(name, 0) // amount) for name, amount in needs.items())


def _nodes(ray: Any) -> dict[str, dict[str, float]]:
    """The resources of each node that is alive."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _heard(ray: Any, reference: Any) -> str | Outcome | Stop | _Ended | None:
    """What an actor answers, or that it is no more; None where it cannot be reached, and may live."""
    try:
        return ray.get(reference)
    except ray.exceptions.ActorUnavailableError:
        return None
    except ray.exceptions.OutOfMemoryError as error:
        return _Ended("memory", "ray killed it, since its node had little memory left", str(error))
    except ray.exceptions.RayTaskError as error:  # of no shard: what a shard raises is an answer
        return Stop(f"an actor of ray failed: {_last_line(error)}")
    except ray.exceptions.ActorDiedError as error:
        if error.actor_init_failed:
            return Stop(f"an actor of ray cannot be made: {_last_line(error)}. Is attrib installed on all nodes?")
        told = [line for line in str(error).splitlines()[1:] if not line.startswith("\t")]
        return _Ended("died", told[0] if told else str(error), str(error))


def _last_line(error: Exception) -> str:
    """What was raised in another process, from an error that has that process's traceback in its text."""
    return str(error).strip().splitlines()[-1]


def _listed(needs: Mapping[str, int]) -> str:
    return " and ".join(f"{amount} {name}" for name, amount in needs.items())
