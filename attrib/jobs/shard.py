"""One shard: from its prompts to its file. Every engine does a shard here, and nowhere else."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.fingerprints import seal
from attrib.core.types import AttribWarning, InputError, UnsupportedError
from attrib.jobs import inside
from attrib.jobs.folder import Job, Shard, open_job
from attrib.jobs.records import Record, Refused, digest, write
from attrib.jobs.witness import Witness
from attrib.runs.results import counts, not_finite
from attrib.runs.results import write as write_results
from attrib.runs.spec import Loaded, Results, check_device, load

_OF_A_PROMPT = (InputError, UnsupportedError)
"""What puts a prompt down, where it is raised of that prompt alone: too long, no such position, a number that is none. A file that is
not what it was (FormatError), or memory that does not suffice, is of no prompt."""


@dataclass(frozen=True)
class Ready:
    """A job with its model and dictionaries on a device."""

    job: Job
    loaded: Loaded
    device: str
    witness: Witness


@dataclass(frozen=True)
class Computed:
    """What a shard will hold, not written yet."""

    shard: Shard
    results: Results
    """The edges of each attribution, or the graph of each prompt; none where every prompt was refused."""
    numbers: Int[Tensor, " prompts"]
    """The numbers of the prompts that were not refused."""
    refused: list[Refused]
    seconds: float


def prepare(folder: Path, device: str) -> Ready:
    """Load what a job computes with, and see that it is what the job was made with.

    Raises:
        InputError: where the model, its tokenizer or a dictionary is another now, or is gone.
    """
    job = open_job(folder)
    torch.set_num_threads(job.config.threads)
    witness = Witness(job.fixed.places)  # before anything is read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttribWarning)  # whoever made the job was told, and need not be by every worker
        loaded = load(job.config, check_device(device), job.fixed.places)
    fixed, tokenizer = job.fixed, loaded.model.tokenizer
    same = {"tokenizer": (tokenizer.sha256 if tokenizer else None) == fixed.tokenizer, job.config.model: loaded.model.matches(fixed.model)}
    same |= {name: name in fixed.dictionaries and one.matches(fixed.dictionaries[name]) for name, one in loaded.dictionaries.items()}
    for name in (name for name, is_same in same.items() if not is_same):
        raise InputError(f"job: {name} is not what it was when {folder} was made. Put the old one back, or make a new job.")
    dictionaries = {name: seal(one, fixed.dictionaries[name]) for name, one in loaded.dictionaries.items()}
    model = seal(loaded.model, fixed.model)
    witness.parts = {job.config.model: (model, fixed.model)} | {name: (one, fixed.dictionaries[name]) for name, one in dictionaries.items()}
    return Ready(job, replace(loaded, model=model, dictionaries=dictionaries), device, witness)


def compute(ready: Ready, shard: Shard) -> Computed:
    """A shard's results. A prompt that cannot be attributed is named and left out.

    Raises:
        Overwritten: where it was computed with other weights than were hashed.
    """
    begun = time.perf_counter()
    prompts, numbers, corrupt = ready.job.prompts(shard)
    left, refused = list(range(len(prompts))), []
    while True:  # what is left is computed as if the others had never been there
        others = None if corrupt is None else [corrupt[index] for index in left]
        results, wrong = _attribute(ready.loaded, [prompts[index] for index in left], others) if left else ([], {})
        refused += [Refused(number=int(numbers[left[at]]), reason=reason) for at, reason in wrong.items()]
        left = [index for at, index in enumerate(left) if at not in wrong]
        if not wrong:
            break
    ready.witness.check()
    refused.sort(key=lambda one: one.number)
    kept = torch.from_numpy(numbers[left].astype("int64"))
    return Computed(shard, results, kept, refused, time.perf_counter() - begun)


def commit(ready: Ready, computed: Computed) -> Record:
    """Put a shard on the disk, and then its record: from then on it is done."""
    begun = time.perf_counter()
    job, shard, results = ready.job, computed.shard, computed.results
    path = inside.check(job.folder, job.file(shard))
    if results:
        write_results(path, results, computed.numbers, compression=job.config.compression, overwrite=True)
    sha256, size = (digest(job.folder, path), inside.size(job.folder, path)) if results else (None, 0)
    record = Record(
        shard=shard.number, id=shard.id, sha256=sha256, bytes=size, **counts(results)._asdict(),
        refused=computed.refused, seconds=computed.seconds, seconds_writing=time.perf_counter() - begun, device=ready.device,
        finished=time.time(),
    )  # fmt: skip
    write(job.folder, job.record(shard), record)
    inside.remove(job.folder, job.failure(shard))
    return record


def _attribute(loaded: Loaded, prompts: Sequence[Tensor], corrupt: Sequence[Tensor] | None) -> tuple[Results, dict[int, str]]:
    """The results of some prompts; or, where some of them cannot be attributed, which, by their place, and why.

    Args:
        corrupt: the prompts that they are compared with.
    """
    try:
        results = loaded.attribute(prompts, None, corrupt)
    except _OF_A_PROMPT:
        pairs = [(ids, None if corrupt is None else [corrupt[at]]) for at, ids in enumerate(prompts)]
        if wrong := {at: fault for at, pair in enumerate(pairs) if (fault := _fault(loaded, *pair))}:
            return [], wrong
        raise  # each is well alone: it is not the prompts
    return results, dict.fromkeys(not_finite(results), "its edges are not finite numbers")


def _fault(loaded: Loaded, ids: Tensor, corrupt: Sequence[Tensor] | None) -> str:
    """What is raised at one prompt alone."""
    try:
        loaded.attribute([ids], None, corrupt)
    except _OF_A_PROMPT as error:
        return str(error).replace("prompt 0", "it")
    return ""
