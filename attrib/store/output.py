"""Names that may be written to: one rule for the files that another of their kind may replace."""

from pathlib import Path

from attrib.core.types import AttribError, InputError
from attrib.store.checked import format_of, open_file, translated
from attrib.store.layout import MERGED, STATISTICS

OVERWRITE = "--overwrite (in Python, overwrite=True)"
"""How a caller says it."""
_NAMES = {MERGED: "a merged file", STATISTICS: "a statistics file"}


def check_output(argument: str, path: Path, kind: str | None, *, overwrite: bool) -> None:
    """Raises InputError where a file of this kind (its root attribute `format`) cannot be written.

    The path exists and `overwrite` is false, or what is there is of another kind: it may be someone's only copy; None replaces
    any file. Or its folder does not exist.
    """
    named = "the file" if kind is None else _NAMES[kind]
    if not path.parent.is_dir():
        raise InputError(f"{argument}: the folder {path.parent} does not exist; make it first.")
    if not path.exists():
        return
    if path.is_dir() or not overwrite:
        what = "" if path.is_dir() else f", or replace {named} with {OVERWRITE}"
        raise InputError(f"{argument}: {path} exists already; expected a new name. Choose another{what}.")
    if kind is not None and format_at(path) != kind:
        raise InputError(f"{argument}: {path} is not {named}, and {OVERWRITE} replaces nothing else here. Choose another name.")


def format_at(path: Path) -> str | None:
    """What a file says that it is; None for one that cannot be read."""
    try:
        with open_file(path) as file, translated(path):
            return format_of(file)
    except AttribError:
        return None
