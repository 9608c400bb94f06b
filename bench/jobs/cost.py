"""What a job costs beside its computation: writing, and memory that should not grow with the number of prompts.

    OMP_NUM_THREADS=1 python -m bench.jobs --json figures.json          # both; 10 minutes on 2 cores
    OMP_NUM_THREADS=1 python -m bench.jobs writing                      # SmolLM2, three rules of what is kept
    OMP_NUM_THREADS=1 python -m bench.jobs memory                       # a small random model, 100 and 10,000 prompts

*writing*: the same shards are computed and thrown away, and computed and written by a worker, one after the other,
several times; the share is the difference of the medians over that of the latter. Where that drowns in noise, the seconds that
the writer's thread was at work, beside the computation, over those of the whole bound it from above. *memory*: the
highest sum of private memory over the processes of `attrib job run`.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from attrib.adapters import load_model
from attrib.jobs.config import job_file
from attrib.jobs.folder import open_job
from attrib.jobs.make import make
from attrib.jobs.records import Record, records
from attrib.jobs.shard import Ready, compute, prepare
from attrib.jobs.worker import work
from bench.jobs.soak import ROOT, SITES

LENGTH, PROMPTS, REPEATS = 32, 16, 3
FORMS = {"seconds": ".1f", "share_of_writing": ".1%"}
SMALL = """
model = "model"
prompts = "prompts.jsonl"
keep = "mass:0.9"
[shards]
prompts = 16
[[attribution]]
kind = "latent_to_latent"
source = "blocks.1.hook_resid_pre"
target = "blocks.3.hook_resid_pre"
"""
"""A job over the tests' small corpus."""


def texts(folder: Path, count: int, length: int) -> None:
    """Prompts cut from this repository's own documents."""
    tokenizer = load_model("smollm2-135m").tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode("\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))))
    draw = random.Random(0)
    starts = [draw.randrange(len(ids) - length) for _ in range(count)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"tokens": ids[at : at + length]}) + "\n" for at in starts))


def times(step: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds of the process, wall seconds)."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - cpu, time.perf_counter() - wall


def thrown_away(ready: Ready) -> None:
    for shard in ready.job.shards:
        compute(ready, shard)


def written(ready: Ready) -> None:
    work(ready, ready.job.shards, lambda _: None)


def writing(keep: str) -> dict[str, Any]:
    """The share of writing where this much is kept."""
    block = {"kind": "latent_to_latent", "source": SITES[0], "target": SITES[1]}
    with tempfile.TemporaryDirectory() as scratch:
        beside = Path(scratch)
        texts(beside, PROMPTS, LENGTH)
        table = {"model": "smollm2-135m", "prompts": "prompts.jsonl", "keep": keep, "attribution": [block], "shards": {"prompts": 4}}
        folder = make(beside / "job", job_file(table), beside).folder
        ready = prepare(folder, "cpu")
        compute(ready, ready.job.shards[0])
        pairs = [(times(lambda: thrown_away(ready)), times(lambda: written(ready))) for _ in range(REPEATS)]
        done = records(open_job(folder)).values()
    (cpu, wall), (cpu_written, wall_written) = (
        tuple(median(column) for column in zip(*side, strict=True)) for side in zip(*pairs, strict=True)
    )
    size, writer = sum(record.bytes for record in done), sum(record.seconds_writing for record in done)
    return {
        "keep": keep, "edges": sum(record.edges for record in done), "bytes": size,
        "cpu_seconds": cpu_written, "cpu_share_of_writing": max(0.0, 1 - cpu / cpu_written),
        "wall_seconds": wall_written, "wall_share_of_writing": max(0.0, 1 - wall / wall_written),
        "seconds_in_writer": writer, "share_in_writer": writer / wall_written, "megabytes_per_cpu_second": size / 1e6 / cpu_written,
    }  # fmt: skip


def memory(count: int) -> dict[str, Any]:
    """The highest private memory of a job's processes, over so many prompts, and that of making the job."""
    from tests.support.builders import prompt
    from tests.support.job_cases import corpus

    with tempfile.TemporaryDirectory() as scratch:
        beside = corpus(Path(scratch), [1])
        draw = random.Random(0)
        lines = (json.dumps({"tokens": prompt(draw.randint(3, 12), seed=number).tolist()}) + "\n" for number in range(count))
        with (beside / "prompts.jsonl").open("w") as file:
            file.writelines(lines)
        (beside / "job.toml").write_text(SMALL)
        made, _ = peak("init", beside / "job", "--config", beside / "job.toml")
        ran, seconds = peak("run", beside / "job", "--workers", 1)
        done: dict[int, Record] = records(open_job(beside / "job"))
        assert sum(record.prompts for record in done.values()) == count
    return {"prompts": count, "shards": len(done), "peak_of_init": made, "peak_of_run": ran, "seconds": seconds}


def peak(*arguments: object) -> tuple[int, float]:
    """The highest private bytes of `attrib job ARGUMENTS` and its children, and its seconds."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    begun, highest = time.perf_counter(), 0
    process = psutil.Popen([sys.executable, "-m", "attrib.cli.main", "job", *map(str, arguments)], env=env, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            highest = max(highest, sum(one.memory_full_info().uss for one in (process, *process.children(recursive=True))))
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.05)
    assert process.returncode == 0
    return highest, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["writing", "memory", []], default=["writing", "memory"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, found = Console(width=140), dict[str, Any](machine=platform.processor() or platform.machine(), torch=torch.__version__)
    if "writing" in options.what:
        found["writing"] = [writing(keep) for keep in ("topk:16", "mass:0.95", "dense")]
        table = Table("keep", "edges", "MB", "CPU s", "of it writing", "wall s", "of it writing", "writer at work")
        for row in found["writing"]:
            times_of = [f"{row[f'{kind}_{what}']:{form}}" for kind in ("cpu", "wall") for what, form in FORMS.items()]
            table.add_row(row["keep"], f"{row['edges']:,}", f"{row['bytes'] / 1e6:.1f}", *times_of, f"{row['share_in_writer']:.1%}")
        console.print(table)
    if "memory" in options.what:
        found["memory"] = [memory(count) for count in (100, 10_000)]
        few, many = found["memory"]
        for what in ("peak_of_init", "peak_of_run"):
            console.print(
                f"{what}: {few[what] / 1e6:.1f} MB for 100 prompts, {many[what] / 1e6:.1f} MB for 10,000: {many[what] / few[what] - 1:+.1%}"
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
