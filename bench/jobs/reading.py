"""How long folders of many shards take to open, and how fast edges come out of them, beside h5py itself.

    python -m bench.jobs.reading [--shards 10000] [--megabytes 200] [--tokens 64]

`opening` is of shards with two small prompts each. `reading` is of larger shards, every value of a block and its
tables: by `Collection.iterate`, which checks all of it and makes Edges, and by the few lines of h5py that read the same
columns unchecked. The values are compared before anything is timed. Time is the process's CPU time; files are in
the system's cache.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from attrib.core.edges import Edges, Nodes, Prompts
from attrib.store import Collection, open_collection, save
from bench.measure import Time, medians, timed

CPU = torch.device("cpu")
COLUMNS = [f"{end}/{name}" for end in ("sources", "targets") for name in ("ptr", "position", "latent", "activation")]
COLUMNS += ["gradient/indptr", "gradient/indices", "gradient/data", "attribution/data", "total", "l1"]


def made(numbers: list[int], tokens: int, active: int, kept: float) -> Edges:
    """Random edges: `active` latents at each of `tokens` positions, and a fraction of all pairs."""
    count, nodes = len(numbers), tokens * active
    generator = torch.Generator().manual_seed(numbers[0])
    ptr, each = torch.arange(count + 1) * nodes, torch.arange(tokens).repeat_interleave(active).repeat(count)

    def table(site: str) -> Nodes:
        latent = torch.rand(count * tokens, 256, generator=generator).argsort(-1)[:, :active].sort(-1).values.flatten()
        return Nodes("latent", site, ptr, each, latent, torch.rand(count * nodes, generator=generator))

    row, column = (torch.rand(count * nodes, nodes, generator=generator) < kept).nonzero(as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(row, minlength=count * nodes).cumsum(0)])
    gradient, sums = torch.randn(len(row), generator=generator), torch.rand(count * nodes, generator=generator)
    strings = tuple(f" t{i}" for i in range(count * tokens))
    prompts = Prompts(torch.arange(count + 1) * tokens, torch.arange(count * tokens), strings, torch.tensor(numbers))
    sites = table("blocks.0.hook_resid_pre"), table("blocks.2.hook_resid_pre")
    return Edges("latent_to_latent", *sites, indptr, column + row // nodes * nodes, gradient, gradient / 2, sums, sums, prompts)


def small_shards(folder: Path, count: int) -> None:
    """Shards of two prompts, equal but for their numbers."""
    first = save(folder / "00000.h5", made([0, 1], tokens=4, active=2, kept=0.5)).read_bytes()
    for shard in range(1, count):
        path = folder / f"{shard:05}.h5"
        path.write_bytes(first)
        with h5py.File(path, "r+") as file:
            file["prompts/number"][:] = [2 * shard, 2 * shard + 1]


def large_shards(folder: Path, megabytes: int, tokens: int) -> int:
    """Shards of 32 prompts with `tokens` tokens and 16 active latents each, of which a tenth of all pairs is kept. Returns their bytes."""
    written, shard = 0, 0
    while not shard or written < megabytes * 1e6:
        path = save(folder / f"{shard:05}.h5", made([*range(32 * shard, 32 * shard + 32)], tokens=tokens, active=16, kept=0.1))
        written, shard = written + path.stat().st_size, shard + 1
    return written


def by_h5py(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """The same columns, shard by shard."""
    for path in sorted(folder.iterdir()):
        with h5py.File(path) as file:
            block = next(iter(file["blocks"].values()))
            yield {name: block[name][:] for name in COLUMNS}


def prompt_by_h5py(folder: Path, number: int) -> tuple[np.ndarray, ...]:
    """One prompt as docs/format.md reads it with h5py alone, where it is known which shard holds it."""
    with h5py.File(folder / f"{number // 32:05}.h5") as file:
        block, prompt = next(iter(file["blocks"].values())), number % 32
        r0, r1 = block["targets/ptr"][prompt : prompt + 2]
        c0, c1 = block["sources/ptr"][prompt : prompt + 2]
        indptr = block["gradient/indptr"][r0 : r1 + 1]
        entries = slice(indptr[0], indptr[-1])
        tables = [
            block[f"{end}/{name}"][a:b]
            for end, a, b in (("sources", c0, c1), ("targets", r0, r1))
            for name in ("position", "latent", "activation")
        ]
        matrix = [block[name][entries] for name in ("gradient/data", "attribution/data", "gradient/indices")]
        return *tables, *matrix, indptr, block["total"][r0:r1], block["l1"][r0:r1]


def check(folder: Path, collection: Collection) -> None:
    """Raises AssertionError where the two ways read other values."""
    for edges, columns in zip(collection.iterate(by="shard"), by_h5py(folder), strict=True):
        assert np.array_equal(edges.gradient.numpy(), columns["gradient/data"])
        assert np.array_equal(edges.indices.numpy(), columns["gradient/indices"])
        assert np.array_equal(edges.targets.activation.numpy(), columns["targets/activation"])
        assert np.array_equal(edges.l1.numpy(), columns["l1"])
    number = int(collection.numbers[-1])
    assert np.array_equal(collection.edges(prompts=number).attribution.numpy(), prompt_by_h5py(folder, number)[7])


def repeated(run: Callable[[], object], times: int = 3) -> Time:
    """The median of a few runs, after one that is not counted."""
    run()
    return medians([timed(run, CPU)[1] for _ in range(times)])


def exhaust(parts: Iterator[object]) -> int:
    return sum(1 for _ in parts)


def main(shards: int = 10_000, megabytes: int = 200, tokens: int = 64) -> None:
    console = Console(width=None if Console().is_terminal else 120)
    with tempfile.TemporaryDirectory() as name:
        table = Table("shards", "open, s", "a shard, ms", "one prompt, ms", "refreshed, s", title="opening", title_justify="left")
        for count in sorted({max(shards // 10, 1), shards}):
            folder = Path(name) / str(count)
            folder.mkdir()
            small_shards(folder, count)
            collection, opened = timed(partial(open_collection, folder), CPU)
            asked = range(1, 2 * count, max(count // 10, 1))
            singles = [timed(partial(collection.edges, prompts=number), CPU)[1].cpu for number in asked]
            again = timed(collection.refreshed, CPU)[1]
            each = f"{opened.cpu / count * 1e3:.2f}"
            table.add_row(f"{count:,}", f"{opened.cpu:.2f}", each, f"{median(singles) * 1e3:.1f}", f"{again.cpu:.2f}")
            collection.close()
        console.print(table)
        folder = Path(name) / "large"
        folder.mkdir()
        size = large_shards(folder, megabytes, tokens)
        with open_collection(folder) as collection:
            check(folder, collection)
            numbers = torch.randperm(len(collection), generator=torch.Generator().manual_seed(0))[:64].tolist()
            latents = [*range(4)]
            ways: dict[str, tuple[Callable[[], object], int]] = {
                "h5py, shard by shard": (lambda: exhaust(by_h5py(folder)), size),
                "iterate(by='shard')": (lambda: exhaust(collection.iterate(by="shard")), size),
                "iterate(by='prompt')": (lambda: exhaust(collection.iterate()), size),
                "h5py, 64 prompts at random": (
                    lambda: [prompt_by_h5py(folder, n) for n in numbers],
                    size * len(numbers) // len(collection),
                ),
                "edges(prompts=n), 64 at random": (
                    lambda: [collection.edges(prompts=n) for n in numbers],
                    size * len(numbers) // len(collection),
                ),
                "4 of 256 target latents": (lambda: collection.edges(target_latents=latents), size),
            }
            table = Table("way", "s", "MB/s of file", title=f"reading {size / 1e6:.0f} MB, {len(collection)} prompts", title_justify="left")
            for way, (run, of) in ways.items():
                spent = repeated(run)
                table.add_row(way, f"{spent.cpu:.2f}", f"{of / 1e6 / spent.cpu:,.0f}")
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
