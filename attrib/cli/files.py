"""`attrib show`, `attrib export` and `attrib verify-file`: results as tables, as files of other programs, and whether they can be."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attrib.core.types import AttribError, InputError, natural
from attrib.view.terminal import plain
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    from attrib.store import Block, Collection
    from attrib.view.chosen import Chosen

LISTED = 64
"""Prompts that `attrib show` sums up, where not all are asked for: a folder may hold a million."""
TOP = 8


def show(
    file: Annotated[Path, typer.Argument(help="HDF5 file that attrib wrote, or a folder of them")],
    prompt: Annotated[list[int] | None, typer.Option(help="Number of a prompt to show in full; may be repeated. Usually the first")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every prompt in full")] = False,
    kind: Annotated[list[str] | None, typer.Option(help="Only blocks of this kind; may be repeated")] = None,
    top: Annotated[int | None, typer.Option(help=f"Edges in a table, usually {TOP}; of --csv and --json, all", min=1)] = None,
    first_position: Annotated[int, typer.Option(help="Leave out edges at earlier positions, such as an attention sink at 0", min=0)] = 0,
    latent: Annotated[list[int] | None, typer.Option(help="Only edges from or to this latent; may be repeated", min=0)] = None,
    token: Annotated[
        list[str] | None, typer.Option(help="Only edges from or to this token, its space left out or not; may be repeated")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Edges as CSV, strongest first, one a line")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON")] = False,
) -> None:
    """Print a result: a summary of all prompts, and the strongest edges of some."""
    from attrib.store import open_collection
    from attrib.store.numbers import told
    from attrib.view.chosen import Chosen

    if as_csv and as_json:
        raise InputError("--csv, --json: one form at a time; give one of them.")
    if every and prompt:
        raise InputError(f"--prompt: {prompt[0]} has no effect beside --all; give one of them.")
    chosen = Chosen(top if top or as_csv or as_json else TOP, first_position, frozenset(latent or ()), frozenset(token or ()))
    with open_collection(file) as result:
        numbers = result.numbers.tolist()
        in_full = numbers if every else prompt or numbers[:1]
        if outside := sorted({*in_full} - {*numbers}):
            raise InputError(f"prompt: {outside[0]} is not in {file}, which has {len(numbers)} prompts ({told(numbers)}).")
        blocks = _blocks(result, kind or [])
        if chosen.latents:
            chosen.check([result.edges(*block, prompts=in_full[:1]).call for block in blocks])
        if as_csv or as_json:
            _records(result, blocks, in_full, chosen, as_json)
            return
        listed = numbers if every else sorted({*numbers[:LISTED], *in_full})
        _tables(result, blocks, in_full, listed, chosen)


def _blocks(result: "Collection", kinds: list[str]) -> list["Block"]:
    """The blocks of these kinds, or all. Raises InputError for a kind that no block has."""
    there = dict.fromkeys(block.kind for block in result.blocks)
    if absent := [kind for kind in kinds if kind not in there]:
        raise InputError(f"kind: no block of {absent[0]} in this file, which has {', '.join(there)}.")
    return [block for block in result.blocks if not kinds or block.kind in kinds]


def _tables(result: "Collection", blocks: list["Block"], in_full: list[int], listed: list[int], chosen: "Chosen") -> None:
    from attrib.view.tables import tables

    for block in blocks:
        for table in tables(result.edges(*block, prompts=listed), in_full, chosen):
            print_table(table)
    if left := len(result.numbers) - len(listed):
        print_table(f"{left:,} more prompts; --all shows them too")


def _records(result: "Collection", blocks: list["Block"], in_full: list[int], chosen: "Chosen", as_json: bool) -> None:
    """Straight to standard output, a prompt of a block at a time."""
    from attrib.view.records import write_csv, write_json

    write = write_json if as_json else write_csv
    is_first = True
    for block in blocks:
        for number in in_full:
            write(result.edges(*block, prompts=[number]), chosen, sys.stdout, header=is_first)
            is_first = False
    if left := len(result.numbers) - len(in_full):
        print(plain(f"{len(in_full):,} of {len(result.numbers):,} prompts; {left:,} more with --prompt or --all"), file=sys.stderr)


FORMATS = ("parquet", "zarr", "anndata")


def export(
    stored: Annotated[Path, typer.Argument(help="HDF5 file that attrib wrote, or a folder of them, such as a job's")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with one file or store for each block")],
    to: Annotated[str, typer.Option(help="parquet, zarr or anndata")],
    kind: Annotated[str | None, typer.Option(help="Only blocks of this kind")] = None,
    source: Annotated[str | None, typer.Option(help="Only blocks from this site, as blocks.6.hook_resid_pre")] = None,
    target: Annotated[str | None, typer.Option(help="Only blocks to this site")] = None,
    prompt: Annotated[list[int] | None, typer.Option(help="Only the prompt of this number in the data set; may be repeated")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export")] = False,
) -> None:
    """Write shards as files of other programs: Parquet, Zarr or AnnData."""
    from attrib.export import to_anndata, to_parquet, to_zarr

    if to not in FORMATS:
        raise InputError(f"to: {to!r}; expected {', '.join(FORMATS)}.")
    write = {"parquet": to_parquet, "zarr": to_zarr, "anndata": to_anndata}[to]
    folder = write(stored, out, kind=kind, source=source, target=target, prompts=prompt or None, overwrite=overwrite)
    for file in sorted(folder.glob("[!_]*"), key=natural):
        size = sum(part.stat().st_size for part in [file, *file.rglob("*")] if part.is_file())
        print(plain(f"{file}: {size / 1e6:.1f} MB"))


if TYPE_CHECKING:
    from attrib.store import Fault


def verify_file(
    files: Annotated[list[Path], typer.Argument(help="HDF5 files that attrib wrote, or folders of results")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
) -> None:
    """Read all of some files, and say what in them cannot be, or is told in two ways. Exit status 1 where anything is."""
    found = [fault for file in files for fault in _faults(file)]
    if as_json:
        listed = [fault._asdict() | {"file": str(fault.file)} for fault in found]
        print(json.dumps({"files": len(files), "faults": listed}, indent=1))
    else:
        for fault in found:
            print(plain(fault))
    if found:
        count = len({fault.file for fault in found})
        raise InputError(f"{len(found):,} {'faults' if len(found) > 1 else 'fault'} in {count:,} {'files' if count > 1 else 'file'}.")
    if not as_json:
        for file in files:
            print(plain(f"{file}: no fault in it"))


def _faults(file: Path) -> Iterator["Fault"]:
    """What is wrong with a file; that it cannot be opened is among it, so that the others are looked at all the same."""
    from attrib import latents, stats, store
    from attrib.causal import tasks
    from attrib.store.layout import STATISTICS, SURVEY, TABLES
    from attrib.store.listing import folder_of, listed
    from attrib.store.writing import format_at

    own = {STATISTICS: stats.faults, SURVEY: latents.faults, TABLES: tasks.faults}
    try:
        inside = [folder_of(file) / each.name for each in sorted(listed(file))] if file.is_dir() else []
        if inside and (one := str(format_at(inside[0]))) in own:
            for each in inside:
                yield from own[one](each)
            return
        yield from own.get(str(format_at(file)), store.faults)(file)
    except AttribError as error:
        yield store.Fault.of_error(file, error)
