"""`attrib show`: a result as tables, or as records for programs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attrib.core.types import InputError
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
            raise InputError(f"prompt: {outside[0]} is not in {file}, which has {len(numbers)} prompts, {numbers[0]} to {numbers[-1]}.")
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
