"""`attrib verify-file`: whether files hold what a result can hold."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attrib.core.types import AttribError, InputError
from attrib.view.terminal import plain

if TYPE_CHECKING:
    from attrib.store import Fault


def verify_file(
    files: Annotated[list[Path], typer.Argument(help="HDF5 files that attrib wrote, results or statistics, or folders of results")],
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
    from attrib import stats, store
    from attrib.store.layout import STATISTICS
    from attrib.store.writing import format_at

    try:
        yield from (stats if format_at(file) == STATISTICS else store).faults(file)
    except AttribError as error:
        yield store.Fault.of_error(file, error)
