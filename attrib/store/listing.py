"""Which files are the shards of a folder, or of a merged file, and of what they are."""

import os
from contextlib import suppress
from pathlib import Path

from attrib.core.types import InputError
from attrib.store.index import Identity, ShardFile
from attrib.store.layout import GRAPHS
from attrib.store.merged import merged_names
from attrib.store.writing import format_at

SHARDS = "shards"
"""The folder of a job that its shards lie in."""


def folder_of(path: Path) -> Path:
    """Where a path's shards lie, from wherever the process is later."""
    path = Path(os.path.abspath(path))
    if path.is_dir():
        return path / SHARDS if (path / SHARDS).is_dir() else path
    return path.parent


def listed(path: Path) -> list[ShardFile]:
    """The shards that are there now."""
    folder, found = folder_of(path), []
    if not path.is_dir():
        if (names := merged_names(path)) is not None:
            return [_named(folder, name) for name in names]
        return [ShardFile(path.name, Identity.of(path.stat()))]
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.endswith(".h5"):
                continue
            if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(folder.resolve()):
                raise InputError(
                    f"{entry.path}: a link to {os.readlink(entry.path)}, outside the folder; expected shards that lie in it. "
                    "Copy the file into the folder, or open it by itself."
                )
            if not entry.is_file():
                raise InputError(f"{entry.path}: neither a file nor a link to one in the folder; expected a shard. Move it elsewhere.")
            with suppress(FileNotFoundError):  # removed in this very moment
                found.append(ShardFile(entry.name, Identity.of(entry.stat())))
    return found


def _named(folder: Path, name: str) -> ShardFile:
    """A shard that a merged file names."""
    if not (folder / name).is_file():
        raise InputError(f"{folder / name}: it is gone since the merged file was made. Put it back, or merge again.")
    return ShardFile(name, Identity.of((folder / name).stat()))


def is_one_file(path: Path) -> bool:
    """Whether a path is a file that stands for itself, and not a folder or a merged file. Raises InputError where there is none."""
    return not path.is_dir() and merged_names(path) is None


def holds_graphs(path: Path) -> bool:
    """Whether the first of a path's shards is of graphs. Raises InputError as `listed`, and where there is no such path."""
    first = min(listed(path), default=None)
    return first is not None and format_at(folder_of(path) / first.name) == GRAPHS
