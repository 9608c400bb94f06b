"""Many processes that something else starts: torchrun, SLURM's srun, SLURM's job arrays. Each does its own shards."""

import os
from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

from attrib.core.types import InputError
from attrib.jobs.engines import local as of_this_machine
from attrib.jobs.folder import Job, Shard
from attrib.jobs.worker import Outcome


class Launch(NamedTuple):
    """The place of this process among those that were started together."""

    rank: int
    world: int
    name: str
    """The same in all of them, and in no others."""
    on_machine: int
    """Which of this machine's processes it is."""


def launch_of(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What the environment says of a launch by torchrun or SLURM; None where there is none.

    Tasks of a job array count as ranks, and each may have several of srun's.

    Raises:
        InputError: where its numbers make no sense, or an array has gaps.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank, world, near = (_number(environment, name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        parts = [environment.get(part, "") for part in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
        return _checked(Launch(rank, world, " ".join(["torchrun", *parts]), near))
    if "SLURM_JOB_ID" not in environment:
        return None
    inner, of_inner, near = (
        _number(environment, name, usual) for name, usual in (("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1"), ("SLURM_LOCALID", "0"))
    )
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return _checked(Launch(inner, of_inner, f"slurm {environment['SLURM_JOB_ID']}", near))
    at, first, last, count = (_number(environment, f"SLURM_ARRAY_TASK_{what}") for what in ("ID", "MIN", "MAX", "COUNT"))
    step = _number(environment, "SLURM_ARRAY_TASK_STEP", "1")
    if last - first != (count - 1) * step:
        raise InputError(
            f"engine: the job array has {count} tasks from {first} to {last}; expected one without gaps, as --array=0-{count - 1}."
        )
    outer = (at - first) // step
    name = f"slurm array {environment.get('SLURM_ARRAY_JOB_ID', environment['SLURM_JOB_ID'])}"
    return _checked(Launch(outer * of_inner + inner, count * of_inner, name, near))


def ranked(
    job: Job, shards: Sequence[Shard], attempts: int, *, launch: Launch, device: str, timeout: float | None = None
) -> Generator[Outcome, None, None]:
    """Do the shards of this rank, every `world`-th of the job: which those are does not follow from what is done."""
    own = [shard for shard in shards if shard.number % launch.world == launch.rank]
    yield from of_this_machine.local(job, own, attempts, devices=[device], timeout=timeout)


def _number(environment: Mapping[str, str], name: str, usual: str | None = None) -> int:
    text = environment.get(name, usual)
    try:
        return int(text or "")
    except ValueError:
        raise InputError(f"engine: the environment has {name}={text!r}; expected a whole number.") from None


def _checked(launch: Launch) -> Launch:
    if not 0 <= launch.rank < launch.world:
        raise InputError(f"engine: the environment says rank {launch.rank} of {launch.world}; expected 0 to {launch.world - 1}.")
    return launch
