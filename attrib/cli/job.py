"""`attrib job`: make a job, run it, see how it stands, and see to its folder."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from attrib.cli.bars import bar, counted
from attrib.core.types import InputError
from attrib.view.terminal import console, facts, plain, so_many
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    from attrib.jobs.status import Status

app = typer.Typer(no_args_is_help=True, help="Edges, graphs, surveys or tasks over a corpus, shard by shard, on one machine or many.")

Folder = Annotated[Path, typer.Argument(help="Folder of the job")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the job, to be made")],
    config: Annotated[Path, typer.Option(help="TOML file; docs/jobs.md has its keys")],
    model: Annotated[str | None, typer.Option(help="In place of the config's")] = None,
    prompts: Annotated[list[str] | None, typer.Option(help="In place of the config's; a file, hf:NAME, or - for standard input")] = None,
    form: Annotated[str | None, typer.Option(help="text, jsonl, parquet or dataset, where the source's name does not say")] = None,
    allow: Annotated[list[Path] | None, typer.Option(help="A further folder that the config may read from; may be repeated")] = None,
) -> None:
    """Read and tokenise the prompts, cut them into shards, and fix what is to be computed."""
    from attrib.jobs.config import job_file
    from attrib.jobs.make import make
    from attrib.runs.spec import toml_table

    table = toml_table(config)
    if absent := [path for path in allow or [] if not os.path.exists(path)]:  # Path.exists raises for names that are too long
        raise InputError(f"allow: {absent[0]} does not exist.")
    allowed = [path.resolve() for path in allow or []]
    if model is not None:
        table["model"] = _own(model, allowed) or model
    given = {"source": [_source(name, allowed) for name in prompts or []] or None, "form": form}
    of, changed = table.get("prompts", {}), {key: value for key, value in given.items() if value is not None}
    if changed or "prompts" in table or table.get("kind") != "task":  # which has a task in their place
        table["prompts"] = (of if isinstance(of, dict) else {"source": of}) | changed
    try:
        wanted = job_file(table)
    except InputError as error:
        raise InputError("\n".join(f"{config}: {line}" for line in str(error).splitlines())) from None
    with counted("reading prompts") as progress:
        job = make(folder, wanted, config.parent, allowed=allowed, progress=progress)
    fixed = job.fixed
    print(plain(f"{folder}: {so_many(fixed.prompts, 'prompt')}, {so_many(fixed.tokens, 'token')}, {so_many(len(job.shards), 'shard')}"))
    if fixed.refused:
        print(plain(f"{fixed.refused:,} of {fixed.given:,} prompts are left out; `attrib job status {folder} --refused` says why"))


def _source(name: str, allowed: list[Path]) -> str:
    """Where prompts that the user named come from."""
    found = name if name == "-" or name.startswith("hf:") else _own(name, allowed)
    if found is None:
        raise InputError(f"prompts: {name} does not exist.")
    return found


def _own(name: str, allowed: list[Path]) -> str | None:
    """A path that the user gave by hand, which may lie anywhere; None for what is no path."""
    try:
        path = Path(name).expanduser()
        if not path.exists():
            return None
        found = path.resolve() if path.resolve().exists() else path.absolute()  # behind the links of a shell's pipe is no path
    except (OSError, RuntimeError, ValueError):  # too long for a path, a user that is not there
        return None
    allowed.append(found)
    return str(found)


@app.command()
def run(
    folder: Folder,
    engine: Annotated[str, typer.Option(help="local, ray, rank (torchrun, SLURM), or auto: rank where such a launch is seen")] = "auto",
    device: Annotated[
        list[str] | None, typer.Option(help="cpu, cuda, cuda:N or all; may be repeated. Usually all of CUDA, else cpu")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on each device. Usually 1; on a CPU, as its threads allow")] = None,
    address: Annotated[str | None, typer.Option(help="Of a ray cluster; none starts one here")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="How often a shard is tried")] = 3,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare shards that are there with their checksums")] = True,
    other_packages: Annotated[bool, typer.Option("--other-packages", help="Go on with other versions than the job was made with")] = False,
    shard_timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds after which a worker that has a shard and says nothing is ended. Usually never")
    ] = None,
) -> None:
    """Do what is missing. Stop it whenever you like: what is done stays, and the next run goes on."""
    _run(folder, engine, device, workers, address, shard_timeout, attempts=attempts, check=check, other_packages=other_packages)


@app.command()
def retry(
    folder: Folder,
    engine: Annotated[str, typer.Option(help="As of run")] = "auto",
    device: Annotated[list[str] | None, typer.Option(help="As of run")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="As of run")] = None,
    address: Annotated[str | None, typer.Option(help="As of run")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="How often a shard is tried")] = 3,
    shard_timeout: Annotated[float | None, typer.Option(min=1, help="As of run")] = None,
) -> None:
    """Do only the shards that failed."""
    _run(folder, engine, device, workers, address, shard_timeout, attempts=attempts, only_failed=True)


def _run(
    folder: Path, engine: str, device: list[str] | None, workers: int | None, address: str | None, timeout: float | None, **options: Any
) -> None:
    from attrib.cli.run_bar import RunBar
    from attrib.jobs.engines.choose import choose
    from attrib.jobs.run import run as run_job
    from attrib.jobs.status import status as status_of

    chosen, launch = choose(folder, engine, device, workers, address, timeout)
    with bar() as shown, _ended_by_signal(folder):
        ran = run_job(folder, chosen, launch=launch, watch=RunBar(shown), **options)
    now = status_of(folder)
    if ran.damaged:
        print(plain(f"{len(ran.damaged)} shards were damaged, and were made again"))
    if launch:
        print(
            plain(f"{folder}: this was rank {launch[1]} of {launch[2]} ({launch[0]}), which does every {launch[2]}th shard; of all ranks:")
        )
    done = (
        f"{folder}: {now.shards_done:,} of {now.shards:,} shards, {now.prompts_done:,} of {now.prompts:,} prompts, "
        f"{now.edges:,} {now.makes}, {now.bytes / 1e6:,.1f} MB"
    )
    print(plain(done + (f"; {now.refused:,} prompts left out" if now.refused else "")))
    if ran.put_down:
        first_down = ran.put_down[0]
        told = (
            f"{len(ran.put_down):,} prompts could not be computed; prompt {first_down.number}: {first_down.reason} "
            f"`attrib job status {folder} --refused` lists them."
        )
        if not now.prompts_done and now.is_done:
            raise InputError(f"{folder} is done, and holds nothing: all of {told}")
        print(plain(told))
    if ran.changed is not None:
        print(plain(f"{folder}: the shards are right, but what they were made of is there no more. {ran.changed}"), file=sys.stderr)
    if ran.failed:
        first = ran.failed[0]
        raise InputError(
            f"{len(ran.failed)} shards failed after {first.attempts} attempts; shard {first.shard}: {first.reason}. "
            f"`attrib job status {folder}` lists them, `attrib job retry {folder}` tries them again."
        )
    if now.shards_done < now.shards and launch is None and not options.get("only_failed"):
        raise InputError(
            f"{now.shards - now.shards_done} shards were done and are gone: something removed or changed them while the job ran. "
            f"`attrib job run {folder}` makes them again."
        )


@app.command()
def status(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the run ends")] = False,
    refused: Annotated[bool, typer.Option("--refused", help="List the prompts that are left out, and why")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
) -> None:
    """How the job stands: what is done, how fast, what is left, what failed."""
    from attrib.jobs.folder import open_job
    from attrib.jobs.records import refused as refused_of
    from attrib.jobs.status import status as status_of

    if len(asked := [name for name, given in (("--watch", watch), ("--refused", refused), ("--json", as_json)) if given]) > 1:
        raise InputError(f"{' and '.join(asked)}: each prints something of its own, and one would have no effect. Give one.")
    if refused:
        for one, where in refused_of(open_job(folder)):
            print(plain(f"prompt {one.number} ({where}): {one.reason}"))
        return
    now = status_of(folder)
    if as_json:
        print(json.dumps(now.model_dump(mode="json"), indent=1))
        return
    if watch:
        with Live(_table(now), console=console(), auto_refresh=False, transient=True) as live:
            while now.run_by is not None:
                time.sleep(1)
                now = status_of(folder)
                live.update(_table(now), refresh=True)
    print_table(_table(now))
    for failure in now.failures:
        print(plain(f"shard {failure.shard} failed {failure.attempts} times: {failure.reason}"))


@app.command()
def verify(
    folder: Folder,
    recompute: Annotated[int, typer.Option(min=0, help="Shards, chosen at random, that are computed again")] = 1,
    seed: Annotated[int, typer.Option(help="Of that choice")] = 0,
    device: Annotated[str, typer.Option(help="That computes them")] = "cpu",
) -> None:
    """See whether all shards are there and right: checksums, rows, prompts; some are computed again. Exit status 1 where they are not."""
    from attrib.jobs.records import NOT_DONE
    from attrib.jobs.verify import verify as verify_job

    with counted("reading shards") as progress:
        faults = verify_job(folder, recompute=recompute, seed=seed, device=device, progress=progress)
    left = sum(fault.what == NOT_DONE for fault in faults)
    for fault in faults:
        if fault.what != NOT_DONE:
            print(plain(f"shard {fault.shard.number} ({fault.shard.name}): {fault.what}"))
    if faults:
        raise InputError(
            f"{folder}: {len(faults) - left} faults, and {left} shards that are not done. `attrib job run {folder}` makes what is missing "
            "or damaged."
        )
    print(plain(f"{folder}: all shards are there, and no fault in them"))


@app.command()
def merge(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="HDF5 file to write, above the shards. Usually merged.h5 in the job's folder")] = None,
    compression: Annotated[str | None, typer.Option(help="Of surveys and tables, which are copied: gzip, lzf, blosc-lz4 or zstd")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace it")] = False,
) -> None:
    """Write one HDF5 file of the shards that are done: links to edges and graphs, which stay where they are; all else as one result."""
    from attrib.jobs.folder import open_job
    from attrib.jobs.records import records

    job_of = open_job(folder)
    shards = [job_of.file(job_of.shards[number]) for number, record in sorted(records(job_of).items()) if record.sha256]
    path = job_of.kind.merge(out or folder / "merged.h5", shards, compression, overwrite)
    print(plain(f"{path}: {len(shards):,} of {len(job_of.shards):,} shards"))


@app.command()
def gc(folder: Folder, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed")] = False) -> None:
    """Remove what killed runs left half-written, and what is not the job's; beside it, what a killed `init` left."""
    from attrib.jobs.tidy import tidy

    removed = tidy(folder, dry_run=dry_run)
    for path in removed:
        print(plain(path))
    print(plain(f"{len(removed)} files or folders {'would be' if dry_run else 'were'} removed"))


# ----------------------------------------------------------------------------------------------- output


def _table(now: "Status") -> Table:
    rows: dict[str, str] = {}
    row = rows.__setitem__
    row("prompts", f"{now.prompts_done:,} of {now.prompts:,}" + (f"; {now.refused:,} left out" if now.refused else ""))
    row("shards", f"{now.shards_done:,} of {now.shards:,}" + (f"; {len(now.failures):,} failed" if now.failures else ""))
    row("tokens", f"{now.tokens_done:,} of {now.tokens:,}")
    row(now.makes, f"{now.edges:,}")
    to_come = "" if now.bytes_to_come is None else f", {now.bytes_to_come / 1e6:,.1f} MB to come"
    row("size", f"{now.bytes / 1e6:,.1f} MB{to_come}; {now.bytes_free / 1e9:,.1f} GB free")
    if now.run_by is None or now.elapsed is None:
        row("run", "done" if now.is_done else "by nobody")
    else:
        row("run", f"by process {now.run_by.pid} on {now.run_by.host}, for {_time(now.elapsed)}")
        row("speed", f"{now.prompts_per_second:,.2f} prompts/s, {now.edges_per_second:,.0f} {now.makes}/s")
        row("left", "?" if now.seconds_left is None else _time(now.seconds_left))
    return facts(rows)


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


@contextmanager
def _ended_by_signal(folder: Path) -> Iterator[None]:
    """Ctrl-C, and SIGTERM, as SLURM sends it before it takes a machine away, end a run in order: workers first."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit:
        print(plain(f"{folder}: stopped; `attrib job run {folder}` goes on"), file=sys.stderr)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
