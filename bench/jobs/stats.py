"""Corpus statistics at size: a file of ten million pairs, made and asked.

    python -m bench.jobs.stats [--pairs 10000000] [--folder /tmp]

Pairs are of 16,384 latents at either end, drawn by Zipf's law so that some latents have thousands of partners. Answers
are checked against the pairs before they are timed. Each question is asked by the command line in a fresh process
(median of five), warm, and once with the file put out of the page cache; and by an open `Statistics` in this process.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from attrib import stats
from attrib.stats import fixed
from attrib.stats.accumulate import Accumulator, Held
from attrib.stats.rows import Aggregates, collapse, keys_of, pairs_of
from attrib.stats.sketch import BYTES_PER_PAIR, Sketch
from attrib.stats.statistics import BlockStatistics, Statistics
from attrib.stats.table import Table
from attrib.store import Block

LATENTS = 1 << 14
BATCH = 1 << 18
BLOCK = Block("latent_to_latent", "blocks.6.hook_resid_pre", "blocks.9.hook_resid_pre")


def edges(rng: np.random.Generator, count: int) -> Aggregates:
    """So many edges as the rows of their pairs."""
    target, source = (np.minimum(rng.zipf(1.15, (2, count)), 64 * LATENTS) * 40_503) % LATENTS
    uniform = rng.random((2, count)) < 0.7  # most partners are rare, or ten million pairs would never come together
    target, source = (np.where(pick, rng.integers(0, LATENTS, count), end) for pick, end in zip(uniform, (target, source), strict=True))
    value = rng.standard_normal(count).astype(np.float32).astype(np.float64)
    l1, total, squares = (fixed.rounded(numbers) for numbers in (np.abs(value), value, value**2))
    ones, places = np.ones(count, np.int64), rng.integers(0, 128, (2, count))
    signs = (value > 0).astype(np.int64), (value < 0).astype(np.int64)
    row = Aggregates(keys_of(target, source), ones, *signs, ones, *l1, *total, *squares, value, rng.integers(0, 10**6, count), *places)
    return collapse([row], [row.key])[1]


def gathered(pairs: int, memory: int) -> tuple[Held, float, int]:
    """Statistics of `pairs` distinct pairs or a few more, the seconds that merging took, and the edges."""
    rng, accumulator, seconds, count = np.random.default_rng(0), Accumulator(memory), 0.0, 0
    found = np.zeros(LATENTS * LATENTS // 8, np.uint8)
    while int(np.bitwise_count(found).sum()) < pairs:
        batch = edges(rng, BATCH)
        target, source = pairs_of(batch.key)
        place = target * LATENTS + source
        np.bitwise_or.at(found, place >> 3, (1 << (place & 7)).astype(np.uint8))
        begin = time.process_time()
        accumulator.add_rows(batch)
        seconds, count = seconds + time.process_time() - begin, count + BATCH
    begin = time.process_time()
    held = accumulator.result()
    return held, seconds + time.process_time() - begin, count


def median_of(action: Callable[[], object], runs: int = 5) -> float:
    """Wall seconds."""
    found = []
    for _ in range(runs):
        begin = time.perf_counter()
        action()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def process(*words: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)


def forget(path: Path) -> None:
    """Ask the system to drop a file from its page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def check(path: Path, table: Table, latents: dict[str, int]) -> None:
    """What the file answers is what its table holds."""
    target, source = pairs_of(table.rows.key)
    l1 = fixed.floats(table.rows.l1)
    opened = stats.open(path)
    for end, ask, latent in ((target, opened.top_parents, latents["parents"]), (source, opened.top_children, latents["children"])):
        wanted = np.sort(l1[end == latent])[::-1][:20]
        assert np.array_equal(ask(latent)["l1"].to_numpy(), wanted)


def answer(path: Path, name: str, latent: int) -> None:
    opened = stats.open(path)
    (opened.top_parents if name == "parents" else opened.top_children)(latent)


def ask(path: Path, latents: dict[str, int], partners: dict[str, int]) -> None:
    print(
        f"import numpy, h5py, jaxtyping, typer, rich: {median_of(process('-c', 'import numpy, h5py, jaxtyping, typer, rich.table')):.2f} s"
    )
    for name, latent in latents.items():
        command = process("-m", "attrib.cli.main", "stats", f"top-{name}", str(path), str(latent))
        forget(path)
        cold = median_of(command, 1)
        warm = median_of(command)
        forget(path)
        cold_question = median_of(partial(answer, path, name, latent), 1)
        question = median_of(partial(answer, path, name, latent))
        print(
            f"top-{name} {latent} of {partners[name]:,} pairs: process {warm:.2f} s ({cold:.2f} s from the disk); "
            f"open and ask {question * 1e3:.1f} ms ({cold_question * 1e3:.1f} ms)"
        )


def main(pairs: int, folder: Path) -> None:
    held, seconds, count = gathered(pairs, BYTES_PER_PAIR * (pairs + BATCH))
    assert isinstance(held, Table)
    print(f"table: {len(held):,} pairs of {count:,} edges, {count / seconds / 1e6:.2f} million edges a second", end="; ")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    table = 8 * len(Aggregates._fields) * len(held)
    print(f"peak {peak / 1e9:.2f} GB, bound {BYTES_PER_PAIR * len(held) / 1e9:.2f} GB, table {table / 1e9:.2f} GB")
    path, memory = folder / "bench-stats.h5", BYTES_PER_PAIR * len(held)
    begin = time.perf_counter()
    stats.save(path, Statistics(memory, (BlockStatistics(BLOCK, held),)), overwrite=True)
    size = path.stat().st_size
    print(f"saved in {time.perf_counter() - begin:.1f} s: {size / 1e9:.2f} GB, {size / len(held):.0f} bytes a pair")
    counts = {name: np.bincount(end, minlength=LATENTS) for name, end in zip(("parents", "children"), pairs_of(held.rows.key), strict=True)}
    largest = {name: int(count.argmax()) for name, count in counts.items()}
    usual = {name: int(np.argsort(count)[LATENTS // 2]) for name, count in counts.items()}
    for latents in (usual, largest):
        check(path, held, latents)
        ask(path, latents, {name: int(counts[name][latent]) for name, latent in latents.items()})
    memory = min(1 << 30, 100 * pairs)
    held, seconds, count = gathered(pairs, memory)
    assert isinstance(held, Sketch)
    print(f"sketch in {memory / 2**30:.2f} GiB: 2^{held.bits} cells, {count / seconds / 1e6:.2f} million edges a second", end="; ")
    stats.save(path, Statistics(memory, (BlockStatistics(BLOCK, held),)), overwrite=True)
    print(f"{path.stat().st_size / 1e9:.2f} GB, phi {held.phi:.1e}, epsilon {held.epsilon:.1e}")
    ask(path, largest, dict.fromkeys(largest, len(stats.open(path).top_parents(largest["parents"], 10**6))))
    path.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    main(given.pairs, given.folder)
