"""Files that are whole or not there: written under another name, put on the disk, renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""What the names of files end in that are being written, or were when their writer was killed."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name in the folder of `path` to write a file to, which takes the name `path` when the block ends well.

    By then it is on the disk, and so is its name: a reader, and a machine that lost its power, see the whole
    file or none. An error removes it; a killed process leaves it, under a name that ends in `PARTIAL`.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
