"""The files of a job's folder, and nothing but them: what lies in the folder is never followed out of it.

A job's folder may come from elsewhere, and hold a link to the user's other files, or a pipe that nobody writes to, in the
place of a file of its own. So every file of it is opened, measured, listed and removed here: from the descriptor of the folder
that it lies in, without following a link, and only where it is a regular file. The job's folder itself may be a link, for that
is the user's. What is written by name (HDF5, renaming) is looked at by `check` first, and renaming replaces a link, never what it
points to.

Every function takes the job's folder and the path of a file in it, which begins with the former.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from attrib.core.files import FILE_KINDS, PARTIAL
from attrib.core.types import FormatError

LARGEST_TEXT = 1 << 28
"""Bytes of a text file of a job, at most: two million shards' listing."""

_FLAGS: dict[str, int] = {"r": os.O_RDONLY, "r+": os.O_RDWR, "a+": os.O_RDWR | os.O_CREAT}


class Foreign(FormatError):  # noqa: N818
    """Something in a job's folder that is not the file, or the folder, that a job has there."""


def opened(folder: Path, path: Path, mode: Literal["r", "r+", "a+"] = "r") -> IO[bytes]:
    """A file of a job, in bytes; without a buffer where it may be written. "a+" makes it where it is not there, and is else "r+".

    Raises:
        Foreign: where it is a link, a pipe or anything but a regular file, or is reached through a link.
        OSError: where it is not there, or may not be opened.
    """
    with _parent(folder, path) as parent:
        try:  # without O_NONBLOCK, opening a pipe waits for its other end
            descriptor = os.open(path.name, _FLAGS[mode] | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666, dir_fd=parent)
        except OSError as error:
            _require(path, _mode(parent, path, error), stat.S_IFREG)
            raise _named(error, path) from None
    try:
        _require(path, os.fstat(descriptor).st_mode, stat.S_IFREG)
        return open(descriptor, "rb") if mode == "r" else open(descriptor, "r+b", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def read_text(folder: Path, path: Path) -> str:
    """A text file of a job. Raises as `opened`, and ValueError where it is too large to be one, or not UTF-8."""
    with opened(folder, path) as file:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST_TEXT:
            raise ValueError(f"{path} has {size:,} bytes, more than {LARGEST_TEXT:,}")
        return file.read(size).decode()


def size(folder: Path, path: Path) -> int:
    """Bytes of a file of a job. Raises as `opened`."""
    with _parent(folder, path) as parent:
        try:
            found = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            raise _named(error, path) from None
    _require(path, found.st_mode, stat.S_IFREG)
    return found.st_size


def check(folder: Path, path: Path) -> Path:
    """The path of a file that is about to be written by its name. Raises Foreign where it would not become a file of the job."""
    with suppress(FileNotFoundError):  # it is to be made
        size(folder, path)
    return path


def names(folder: Path, inner: str) -> set[str]:
    """What lies in a folder of a job and is no folder, links and pipes among it. Nothing where there is no such folder.

    Raises:
        Foreign: where that folder is a link, or no folder.
    """
    return {entry.name for entry in _entries(folder, inner) if not entry.is_dir(follow_symlinks=False)}


def others(folder: Path, inner: str) -> set[str]:
    """What lies in a folder of a job and is no regular file. Raises as `names`."""
    return {entry.name for entry in _entries(folder, inner) if not entry.is_file(follow_symlinks=False)}


def _entries(folder: Path, inner: str) -> Iterator["os.DirEntry[str]"]:
    with suppress(FileNotFoundError), _parent(folder, folder / inner / "*") as parent, os.scandir(parent) as entries:
        yield from entries


def is_partial(name: str) -> bool:
    """Whether a file is called as one that is being written, or was by a run that was killed."""
    return name.startswith(".") and name.endswith(PARTIAL)


def remove(folder: Path, path: Path) -> None:
    """Remove a file of a job, or a link or pipe in its place; it need not be there. Raises as `opened`, and where it is a folder."""
    try:
        with _parent(folder, path) as parent:
            os.unlink(path.name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _named(error, path) from None


def make_folder(folder: Path, inner: str) -> None:
    """Make a folder of a job where it is not there. Raises Foreign where something else is."""
    path = folder / inner
    with _parent(folder, path) as parent:
        try:
            os.mkdir(path.name, dir_fd=parent)
        except FileExistsError as error:
            _require(path, _mode(parent, path, error), stat.S_IFDIR)


@contextmanager
def _parent(folder: Path, path: Path) -> Iterator[int]:
    """A descriptor of the folder that a file lies in, reached from the job's without a link."""
    at, descriptor = folder, os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in path.relative_to(folder).parts[:-1]:
            at /= part
            try:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                _require(at, _mode(descriptor, at, error), stat.S_IFDIR)
                raise _named(error, at) from None
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _mode(parent: int, path: Path, error: OSError) -> int:
    """What stands at a path that could not be opened. Raises that error where nothing does."""
    try:
        return os.stat(path.name, dir_fd=parent, follow_symlinks=False).st_mode
    except OSError:
        raise _named(error, path) from None


def _require(path: Path, mode: int, kind: int) -> None:
    if (found := stat.S_IFMT(mode)) != kind:
        raise Foreign(
            f"{path}: {FILE_KINDS.get(found, 'something')}, where a job has {FILE_KINDS[kind]} of its own; nothing is followed out of a "
            "job's folder. Remove it, or move it elsewhere."
        )


def _named(error: OSError, path: Path) -> OSError:
    """An error with the whole path in it, and not only the name in its folder."""
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(path))
