"""One shard: from its prompts to its file. Every engine does a shard here, and nowhere else."""

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core import inside
from attrib.core.fingerprints import seal
from attrib.core.types import AttribWarning, InputError, UnsupportedError
from attrib.engine.blocks.multiplier import multiplied_by
from attrib.jobs.folder import Job, Shard, open_job
from attrib.jobs.kind import Kind, Parts, Portion
from attrib.jobs.records import Record, Refused, digest, write
from attrib.jobs.told import check_multiplier
from attrib.jobs.witness import Witness
from attrib.runs.results import Counts
from attrib.runs.spec import check_device

_OF_A_PROMPT = (InputError, UnsupportedError)
"""What puts a prompt down, where it is raised of that prompt alone: too long, no such position, a number that is none. A file that is
not what it was (FormatError), or memory that does not suffice, is of no prompt."""


@dataclass(frozen=True)
class Ready:
    """A job with its model and dictionaries on a device."""

    job: Job
    loaded: Parts
    device: str
    witness: Witness


@dataclass(frozen=True)
class Computed:
    """What a shard will hold, not written yet."""

    shard: Shard
    results: Any
    """What the job's kind makes of them; None where every prompt was refused."""
    numbers: Int[Tensor, " prompts"]
    """The numbers of the prompts that were not refused."""
    refused: list[Refused]
    seconds: float


def prepare(folder: Path, device: str) -> Ready:
    """Load what a job computes with, and see that it is what the job was made with. The process then has the job's threads.

    Raises:
        InputError: where the model, its tokenizer or a dictionary is another now, or is gone.
    """
    job = open_job(folder)
    check_multiplier(job.config.products)
    torch.set_num_threads(job.config.threads)
    witness = Witness(job.fixed.places)  # before anything is read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttribWarning)  # whoever made the job was told, and need not be by every worker
        loaded = job.kind.load(job.config, check_device(device), job.fixed.places)
    return ready_of(job, loaded, device, witness)


def ready_of(job: Job, loaded: Any, device: str, witness: Witness) -> Ready:
    """A job with parts that are in memory, once it is seen that they are what it was made with. Raises as `prepare`."""
    fixed, tokenizer = job.fixed, loaded.model.tokenizer
    same = {"tokenizer": (tokenizer.sha256 if tokenizer else None) == fixed.tokenizer, job.config.model: loaded.model.matches(fixed.model)}
    same |= {name: name in fixed.dictionaries and one.matches(fixed.dictionaries[name]) for name, one in loaded.dictionaries.items()}
    for name in (name for name, is_same in same.items() if not is_same):
        raise InputError(f"job: {name} is not what it was when {job.folder} was made. Put the old one back, or make a new job.")
    dictionaries = {name: seal(one, fixed.dictionaries[name]) for name, one in loaded.dictionaries.items()}
    model = seal(loaded.model, fixed.model)
    witness.parts = {job.config.model: (model, fixed.model)} | {name: (one, fixed.dictionaries[name]) for name, one in dictionaries.items()}
    return Ready(job, replace(loaded, model=model, dictionaries=dictionaries), device, witness)


def compute(ready: Ready, shard: Shard) -> Computed:
    """A shard's results. A prompt that cannot be computed is named and left out.

    Raises:
        Overwritten: where it was computed with other weights than were hashed.
    """
    begun = time.perf_counter()
    kind, portion, refused = ready.job.kind, ready.job.portion(shard), list[Refused]()
    left, results = list(range(len(portion.ids))), None
    while left:  # what is left is computed as if the others had never been there
        with multiplied_by(ready.job.config.products):
            results, wrong = _computed(kind, ready.loaded, portion.take(left))
        refused += [Refused(number=int(portion.numbers[left[at]]), reason=reason) for at, reason in wrong.items()]
        left = [index for at, index in enumerate(left) if at not in wrong]
        if not wrong:
            break
    ready.witness.check()
    refused.sort(key=lambda one: one.number)
    kept = torch.from_numpy(portion.numbers[left].astype("int64"))
    return Computed(shard, results if left else None, kept, refused, time.perf_counter() - begun)


def commit(ready: Ready, computed: Computed) -> Record:
    """Put a shard on the disk, and then its record: from then on it is done."""
    begun = time.perf_counter()
    job, shard, results = ready.job, computed.shard, computed.results
    path = inside.check(job.folder, job.file(shard))
    sha256, size, counts = None, 0, Counts(0, 0, 0)
    if results is not None:
        inside.remove(job.folder, path)  # no record vouches for what is there, whatever it is
        job.kind.write(path, results, computed.numbers, job.config.compression)
        sha256, size, counts = digest(job.folder, path), inside.size(job.folder, path), job.kind.counts(results)
    record = Record(
        shard=shard.number, id=shard.id, sha256=sha256, bytes=size, **counts._asdict(),
        refused=computed.refused, seconds=computed.seconds, seconds_writing=time.perf_counter() - begun, device=ready.device,
        finished=time.time(),
    )  # fmt: skip
    write(job.folder, job.record(shard), record)
    inside.remove(job.folder, job.failure(shard))
    return record


def _computed(kind: Kind, parts: Parts, portion: Portion) -> tuple[Any, dict[int, str]]:
    """The results of some prompts; or, where some of them cannot be computed, which, by their place, and why."""
    try:
        results = kind.compute(parts, portion)
    except _OF_A_PROMPT:
        if wrong := {at: fault for at in range(len(portion.ids)) if (fault := _fault(kind, parts, portion.take([at])))}:
            return None, wrong
        raise  # each is well alone: it is not the prompts
    return results, kind.faulty(results)


def _fault(kind: Kind, parts: Parts, alone: Portion) -> str:
    """What is raised at one prompt alone."""
    try:
        kind.compute(parts, alone._replace(numbers=np.zeros(1, np.int64)))
    except _OF_A_PROMPT as error:
        return str(error).replace("prompt 0", "it")
    return ""
