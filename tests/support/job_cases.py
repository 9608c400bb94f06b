"""A tiny corpus and jobs over it, for every test of jobs. `undisturbed` is what each of them must come to."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attrib.adapters.models import SMOLLM2
from attrib.jobs.config import job_file
from attrib.jobs.engines import JobError, Queue
from attrib.jobs.folder import RECORDS, SHARDS, Job, Shard
from attrib.jobs.make import make
from attrib.jobs.run import run
from attrib.jobs.shard import prepare
from attrib.jobs.worker import Event, Outcome, Stop, work
from tests.support.builders import D_VOCAB, prompt, sae, tiny

LENGTHS = (5, 1, 7, 3, 12, 7, 11, 5)
SITES = ("blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre")


def corpus(folder: Path, lengths: Sequence[int] = LENGTHS, *, has_model: bool = True) -> Path:
    """A folder with a tiny model, two dictionaries and prompts of these lengths, one of which is none.

    Args:
        has_model: else its jobs are over what `tiny_smollm2` puts into the cache.
    """
    if has_model:
        tiny("llama").save_pretrained(folder / "model")
    for site in SITES:
        sae("topk", site=site).save_model(folder / site)
    lines = [json.dumps({"tokens": prompt(length, seed=number).tolist()}) for number, length in enumerate(lengths)]
    lines.insert(3, "{not json")
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@contextmanager
def tiny_smollm2(cache: Path) -> Iterator[str]:
    """The name of a fetched model, for which a tiny one lies in the cache for as long as is wanted.

    It is loaded without transformers, which a process takes several seconds to import, and is not compared with it at every run: for
    tests of what becomes of jobs, not of what they load.
    """
    from tokenizers import Tokenizer, models

    tiny("llama").save_pretrained(cache / SMOLLM2)
    Tokenizer(models.WordLevel({f"{word}": word for word in range(D_VOCAB)}, unk_token="0")).save(str(cache / SMOLLM2 / "tokenizer.json"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ATTRIB_CACHE", str(cache))
        yield SMOLLM2


def table(**changed: Any) -> dict[str, Any]:
    """The keys of a job over a corpus."""
    usual: dict[str, Any] = {
        "model": "model",
        "prompts": "prompts.jsonl",
        "keep": "mass:0.9",
        "shards": {"prompts": 2},
        "attribution": [
            {"kind": "latent_to_latent", "source": SITES[0], "target": SITES[1]},
            {"kind": "token_to_latent", "target": SITES[0]},
        ],
    }
    return usual | changed


def make_job(folder: Path, beside: Path, **changed: Any) -> Job:
    """A job over the corpus `beside`."""
    named = {} if (beside / "model").exists() else {"model": SMOLLM2}
    return make(folder, job_file(table(**named | changed)), beside)


def here(job: Job, shards: Sequence[Shard], attempts: int) -> Iterator[Outcome]:
    """An engine: this very process, which takes two shards at a time, so that one is written while the other is computed."""
    if not shards:
        return  # as engines start no worker then
    ready, queue = prepare(job.folder, "cpu"), Queue(job.folder, shards, attempts)
    while queue:
        told: list[Event] = []
        work(ready, [queue.take() for _ in range(min(2, len(queue)))], told.append)
        for event in told:
            if isinstance(event, Stop):
                raise JobError(event.reason)
            if isinstance(event, Outcome):
                yield from queue.heard(job.shards[event.shard], event)


@contextmanager
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers of the local engine that are forks of this process: they import nothing, and find in it what a test puts there."""
    fork = multiprocessing.get_context("fork")
    with monkeypatch.context() as patched:
        patched.setattr(multiprocessing, "get_context", lambda _: fork)
        yield


def killed(folder: Path, wanted: int, pause: float = 0.0) -> None:
    """A run of a job in a process that is killed so many seconds after as many shards are recorded."""
    process = os.fork()
    if not process:
        run(folder, here)
        os._exit(0)
    begun = time.monotonic()
    while len(list((folder / RECORDS).glob("*.json"))) < wanted and time.monotonic() - begun < 60:
        time.sleep(0.001)
    time.sleep(pause)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file among a job's shards, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted((folder / SHARDS).iterdir())}


@cache
def undisturbed(beside: Path) -> dict[str, bytes]:
    """The shards of a run over a corpus that nothing disturbed."""
    folder = beside / "undisturbed"
    make_job(folder, beside)
    run(folder, here)
    return bytes_of(folder)
