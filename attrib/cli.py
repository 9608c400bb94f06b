"""The command line: run, show, fetch, info. Errors are one clear message; `--debug` adds the traceback."""

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from attrib.commands import job, stats
from attrib.commands.bars import bar
from attrib.commands.export import export
from attrib.types import AttribError, InputError, first_line

if TYPE_CHECKING:
    from attrib.sources.kinds import DictionaryKind

LISTED = 64
"""Prompts that `attrib show` sums up, where not all are asked for: a folder may hold a million."""

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Exact attributions between tokens, sparse latents and logits.", epilog="Give --debug for the traceback of an error.",
)  # fmt: skip
app.add_typer(job.app, name="job")
app.add_typer(stats.app, name="stats")
app.command()(export)


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(help="TOML file with the same options; those given here win")] = None,
    model: Annotated[str | None, typer.Option(help="smollm2-135m, a local folder or a TransformerLens name")] = None,
    source: Annotated[str | None, typer.Option(help="Dictionary whose latents are the sources: shipped, folder, or release/id")] = None,
    target: Annotated[str | None, typer.Option(help="Dictionary whose latents are the targets")] = None,
    cut: Annotated[list[str] | None, typer.Option(help="Dictionary that is put in on the way; may be repeated")] = None,
    effect: Annotated[str | None, typer.Option(help="direct, which stops at the cuts, or total, through their active latents")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="token_to_latent, latent_to_latent or latent_to_logit; may be repeated")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt a line, or .jsonl")] = None,
    out: Annotated[Path | None, typer.Option(help="HDF5 file to write")] = None,
    keep: Annotated[str | None, typer.Option(help="dense, topk:K, threshold:T or mass:FRACTION")] = None,
    policy: Annotated[str | None, typer.Option(help="exact or linear")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float64, or float32 with products in tf32 (CUDA) or bfloat16")] = None,
    precision_rows: Annotated[int | None, typer.Option(help="Rows whose error against float64 is measured and written")] = None,
    method: Annotated[str | None, typer.Option(help="adjoint, adjoint-triton or torch.func (the slow reference)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N")] = None,
    budget: Annotated[str | None, typer.Option(help="Working memory, as 512MiB or 2GiB")] = None,
    position: Annotated[list[int] | None, typer.Option(help="Target position, negative from the end; may be repeated")] = None,
    top_logits: Annotated[int | None, typer.Option(help="Logits of the most probable tokens")] = None,
    mass: Annotated[float | None, typer.Option(help="Of those, the fewest that reach this probability")] = None,
    logit_token: Annotated[list[str] | None, typer.Option(help="Logit of this token; may be repeated")] = None,
    logit_difference: Annotated[tuple[str, str] | None, typer.Option(help="Logit of the first token minus that of the second")] = None,
    error: Annotated[bool | None, typer.Option("--error/--no-error", help="Keep the source's error as a constant")] = None,
    compression: Annotated[str | None, typer.Option(help="gzip, lzf, blosc-lz4 or zstd")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace the output")] = None,
) -> None:
    """Attribute every prompt of a file and write sparse HDF5."""
    from attrib.run import execute, read_toml, run_file

    table = {} if config is None else read_toml(config)
    given = {
        "model": model, "prompts": prompts, "out": out, "keep": keep, "policy": policy, "dtype": dtype, "device": device, "method": method,
        "precision_rows": precision_rows, "budget": budget, "positions": position or None,
        "error": error, "compression": compression, "overwrite": overwrite or None,
    }  # fmt: skip
    table |= {name: value for name, value in given.items() if value is not None}
    of_kinds = {
        "source": source, "target": target, "cuts": cut or None, "effect": effect, "top_logits": top_logits, "mass": mass,
        "logit_tokens": logit_token or None, "logit_difference": logit_difference,
    }  # fmt: skip
    of_kinds = {name: value for name, value in of_kinds.items() if value is not None}
    if kind:
        table["attribution"] = [{"kind": one, **of_kinds} for one in kind]
    elif of_kinds:
        raise InputError(f"kind: missing beside {', '.join(of_kinds)}; give --kind, once for each kind.")
    missing = [name for name in ("model", "prompts", "out") if name not in table] + ([] if "attribution" in table else ["kind"])
    if missing:
        raise InputError(f"missing: {', '.join('--' + name for name in missing)}; give them as options or in a TOML file.")
    checked = run_file(table)
    with bar() as shown:
        task = shown.add_task("attributing", total=None)
        results = execute(checked, lambda done, total: shown.update(task, completed=done, total=total))
    edges = sum(len(result) for result in results)
    size = checked.out.stat().st_size / 1e6
    print(f"{checked.out}: {len(results)} blocks, {len(results[0].prompts)} prompts, {edges:,} edges, {size:.1f} MB")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="HDF5 file that attrib wrote, or a folder of them")],
    prompt: Annotated[list[int] | None, typer.Option(help="Number of a prompt to show in full; may be repeated. Usually the first")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every prompt in full")] = False,
    kind: Annotated[list[str] | None, typer.Option(help="Only blocks of this kind; may be repeated")] = None,
    top: Annotated[int, typer.Option(help="Edges in a table", min=1)] = 8,
    first_position: Annotated[int, typer.Option(help="Leave out edges at earlier positions, such as an attention sink at 0", min=0)] = 0,
) -> None:
    """Print a result: a summary of all prompts, and the strongest edges of some."""
    from attrib.store import open_collection
    from attrib.view.tables import tables

    console = Console()
    if not console.is_terminal:
        console = Console(width=132)  # piped into a file, tables keep their columns
    with open_collection(file) as result:
        numbers = result.numbers.tolist()
        chosen = numbers if every else prompt or numbers[:1]
        if outside := sorted({*chosen} - {*numbers}):
            raise InputError(f"prompt: {outside[0]} is not in {file}, which has {len(numbers)} prompts, {numbers[0]} to {numbers[-1]}.")
        listed = numbers if every else sorted({*numbers[:LISTED], *chosen})
        blocks = [block for block in result.blocks if not kind or block[0] in kind]
        if not blocks:
            raise InputError(
                f"kind: no block of {', '.join(kind or [])} in this file, which has {', '.join(sorted({b[0] for b in result.blocks}))}."
            )
        for block in blocks:
            for table in tables(result.edges(*block, prompts=listed), chosen, top, first_position):
                console.print(table)
        if len(listed) < len(numbers):
            console.print(f"{len(numbers) - len(listed):,} more prompts; --all shows them too")


@app.command()
def rerun(
    file: Annotated[Path, typer.Argument(help="HDF5 file that attrib wrote, or a folder of them")],
    prompt: Annotated[int, typer.Option(help="Its number in the data set; in a file without numbers, its place from 0")],
    at: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER, where a model or dictionary lies; may be repeated")] = None,
) -> None:
    """Make a prompt's edges again, as the file says that they were made, and compare."""
    from attrib.jobs.folder import places_of
    from attrib.rerun import rerun as rerun_prompt

    given = dict(each.partition("=")[::2] for each in at or [])
    if wrong := [name for name, folder in given.items() if not folder]:
        raise InputError(f"at: {wrong[0]!r}; expected NAME=FOLDER.")
    compared = rerun_prompt(file, prompt, places=places_of(file.resolve()) | given)
    for one in compared:
        also = f", {one.only_one_keeps} edges at the limit kept by one alone" if one.only_one_keeps else ""
        verdict = "NOT THE SAME" if not one.is_same else "the same to rounding" if one.apart else "the same"
        print(f"{one.kind} {one.source} -> {one.target}: {verdict}: {one.edges:,} edges, apart by {one.apart:.1e} of the largest{also}")
    if not all(one.is_same for one in compared):
        raise InputError(f"prompt: {prompt} of {file} does not come out as it was stored.")


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="smollm2-135m")]) -> None:
    """Download a model into the cache, checked and ready."""
    from attrib.sources import SMOLLM2, smollm2

    if name != SMOLLM2:
        raise InputError(f"name: {name!r} cannot be fetched; expected {SMOLLM2}. Models of a hub are loaded by name, without fetching.")
    print(smollm2.fetch(lambda step: print(step, file=sys.stderr)))


@app.command()
def info() -> None:
    """Models, dictionaries, devices and versions."""
    import torch

    from attrib.sources import SMOLLM2, shipped
    from attrib.sources.families import FAMILIES
    from attrib.sources.kinds import KINDS
    from attrib.sources.smollm2 import cache_folder

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    cached = (cache_folder() / SMOLLM2).is_dir()
    rows: dict[str, Any] = {
        "models": f"{SMOLLM2} ({'fetched' if cached else f'run `attrib fetch {SMOLLM2}`'}), local folders, TransformerLens names",
        "architectures": ", ".join(sorted(FAMILIES)),
        "dictionaries": "\n".join(shipped()) or "none shipped",
        **{f"of {library}": "\n".join(kinds) for library, kinds in _kinds(KINDS).items()},
        "cache": cache_folder(),
        "devices": ", ".join(["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count()))]),
        "python": platform.python_version(),
        **{name: version(name) for name in ("attrib", "torch", "transformers", "transformer-lens", "sae-lens", "h5py", "triton")},
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console().print(table)


def _kinds(known: "Sequence[DictionaryKind]") -> dict[str, list[str]]:
    """The kinds of each library, and which are refused."""
    found: dict[str, list[str]] = {}
    for kind in known:
        found.setdefault(kind.library, []).append(kind.name if kind.rule else f"{kind.name} (refused: {kind.remark})")
    return found


def main() -> None:
    """Entry point: every error that attrib raises on purpose becomes one message and exit status 1."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (AttribError, OSError, MemoryError) as error:
        if debug:
            raise
        print(f"error: {error or type(error).__name__}", file=sys.stderr)
        sys.exit(1)
    except RuntimeError as error:
        from attrib.result import is_out_of_memory

        if debug or not is_out_of_memory(error):
            raise
        print(f"error: out of memory ({first_line(error)}). Give less at a time, or close what else runs.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
