"""From words on a command line to an engine."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from attrib.core.types import InputError
from attrib.jobs.engines import Engine
from attrib.jobs.engines.cluster import cluster
from attrib.jobs.engines.launch import launch_of, ranked
from attrib.jobs.engines.local import local
from attrib.jobs.folder import open_job
from attrib.runs.spec import check_devices

NAMES = ("auto", "local", "ray", "rank")


def choose(
    folder: Path, name: str, devices: Sequence[str] | None, workers: int | None, address: str | None, timeout: float | None = None
) -> tuple[Engine, tuple[str, int, int] | None]:
    """An engine, and for a rank its (launch, rank, world).

    Args:
        name: one of `NAMES`; auto is rank where the environment tells of a launch of several processes, else local.
        devices: each one, several as `check_devices` reads them, or "all". None is every CUDA device, or the CPU where there is none.
        workers: processes on each device, but for ray. None is 1; on a CPU as many as its cores have threads for.
        timeout: seconds without a word of a worker that has a shard, after which it is ended; not with ray. None is no end.
        address: of a ray cluster; None is RAY_ADDRESS of the environment, or else one that is started on this machine.

    Raises:
        InputError: for a name or device that there is not, or options that do not belong together.
    """
    if name not in NAMES:
        raise InputError(f"engine: {name!r}; expected one of {', '.join(NAMES)}.")
    if address is not None and name != "ray":
        raise InputError(f"address: {address!r} is of a ray cluster, and the engine is {name}; give --engine ray.")
    threads = open_job(folder).config.threads
    launch = launch_of() if name in ("auto", "rank") else None
    if name == "rank" and launch is None:
        raise InputError("engine: rank, but neither torchrun nor SLURM started this process. Start it with one of them, or use local.")
    if name == "ray":
        if devices is not None and len(devices) > 1:
            raise InputError(f"device: {', '.join(devices)}; ray chooses among its own. Give cpu or cuda, or leave it out.")
        if workers is not None:
            raise InputError(f"workers: {workers}; ray has as many as its nodes have room for. Leave it out.")
        if timeout is not None:
            raise InputError(f"shard_timeout: {timeout:g}; ray's actors are not watched for that. Leave it out.")
        return partial(cluster, address=address, device=devices[0] if devices else None), None
    if launch is not None and (name == "rank" or launch.world > 1):
        device = devices[0] if devices else f"cuda:{launch.on_machine % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
        return partial(ranked, launch=launch, device=device, timeout=timeout), (launch.name, launch.rank, launch.world)
    named = [str(device) for given in devices or ["all" if torch.cuda.is_available() else "cpu"] for device in check_devices(given)]
    each = [workers or (max(1, _cores() // threads) if device == "cpu" else 1) for device in named]
    of_each = [device for device, count in zip(named, each, strict=True) for _ in range(count)]
    return partial(local, devices=of_each, timeout=timeout), None


def _cores() -> int:
    """Cores that this process may use: fewer than there are, in a container or a SLURM task."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
