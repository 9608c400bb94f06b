"""Files of any format: what stands under a name, and how a file is put there, whole or not at all."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrib.core.types import InputError

FILE_KINDS = {
    stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFREG: "a file",
}  # fmt: skip
"""What may stand under a name, by the format of its mode."""
OVERWRITE = "--overwrite (in Python, overwrite=True)"
"""How a caller says that a file is to be replaced."""
PARTIAL = ".partial"
"""What the names of files end in that are being written, or were when their writer was killed."""


def kind_of_file(path: Path) -> str | None:
    """What stands at a path, links followed, without opening it: opening a pipe waits for its other end. None where nothing does."""
    try:
        return FILE_KINDS.get(stat.S_IFMT(path.stat().st_mode), "no file")
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        return None


def check_file(path: Path, expected: str) -> None:
    """Raises InputError where no file is there to be read, such as a pipe, which would keep its reader waiting."""
    if (kind := kind_of_file(path)) != "a file":
        raise InputError(f"path: {f'there is no file {path}' if kind is None else f'{path} is {kind}'}; expected {expected}.")


def check_free(argument: str, path: Path, named: str = "the file", *, overwrite: bool) -> None:
    """Raises InputError where the folder does not exist, or something is there already that is not to be replaced."""
    if not path.parent.is_dir():
        raise InputError(f"{argument}: the folder {path.parent} does not exist; make it first.")
    if path.exists() and (path.is_dir() or not overwrite):
        what = "" if path.is_dir() else f", or replace {named} with {OVERWRITE}"
        raise InputError(f"{argument}: {path} exists already; expected a new name. Choose another{what}.")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name in the folder of `path` to write a file to, which takes the name `path` when the block ends well.

    By then it is on the disk, and so is its name: a reader, and a machine that lost its power, see the whole
    file or none. An error removes it; a killed process leaves it, under a name that ends in `PARTIAL`, unless it had none (`unnamed`).
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def unnamed(path: Path) -> int | None:
    """A new file in the folder of `path`, open to read and write, that has no name before `named` gives it one, so that none is left of it
    even by a process that is killed. None where system or disk do not have such files."""
    try:
        probe = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
        try:
            named(probe, path)  # what can be named now can be named when it is done
            path.unlink()
        finally:
            os.close(probe)
        return os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
    except (AttributeError, OSError):
        return None


def named(descriptor: int, path: Path) -> None:
    """Give an unnamed file its name, which nothing may have."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.link(f"/proc/self/fd/{descriptor}", path.name, dst_dir_fd=folder)
    finally:
        os.close(folder)


def sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
