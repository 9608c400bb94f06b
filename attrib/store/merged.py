"""One file that stands for many shards: an external link to each, and their names.

Other programs follow the links: `h5py.File(path)["shards"]["000000-…"]` is a shard's root group. attrib reads the
names, opens those files in the merged file's own folder or beneath it, and follows no link: in a file from
elsewhere it could lead to any file of the reader's.
"""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import h5py

from attrib.core.types import FormatError, InputError
from attrib.store.columns import text, write_strings
from attrib.store.layout import MERGED
from attrib.store.reading import POINTER, attribute, child, dataset, open_file, translated
from attrib.store.rows import read_strings
from attrib.store.writing import check_output, created

VERSION = 1


def merge(path: Path, shards: Iterable[Path], *, overwrite: bool = False) -> Path:
    """Write a file that stands for shards, which stay where they are: in folders beneath its own. Returns its path.

    `overwrite` replaces a merged file and nothing else.

    Raises:
        InputError: where the path is taken and `overwrite` false, or by another file; a shard lies elsewhere, or beside it; or
            two have one name.
    """
    check_output("path", path, MERGED, overwrite=overwrite)
    folder = path.parent.resolve()
    names = [_beneath(folder, shard) for shard in shards]
    if any(len(name.parts) == 1 for name in names):
        raise InputError(f"path: {path} lies in the folder of its shards, which then holds a file that is none. Choose a folder above it.")
    stems = [name.stem for name in names]
    if not names or len(set(stems)) < len(stems):
        raise InputError(f"shards: {len(names)} files, {len(set(stems))} names; expected at least one, each of another name.")
    with created(path) as file:
        file.attrs.update({"format": text(MERGED), "format_version": VERSION})
        write_strings(file.create_group("files"), [str(name) for name in names])
        links = file.create_group("shards")
        for name in names:
            links[name.stem] = h5py.ExternalLink(str(name), "/")
    return path


def merged_names(path: Path) -> list[str] | None:
    """The shards that a file stands for, as they are named from its folder; None for a file that is no merged one.

    Raises:
        FormatError: where it is damaged, of another version, or names a file outside its folder.
    """
    with open_file(path) as file, translated(path):
        if attribute(file, "format", "S") != MERGED.encode():
            return None
        if (version := attribute(file, "format_version", "i")) != VERSION:
            raise FormatError(f"{path}: format version {version} of merged files; this attrib reads version {VERSION}.")
        listing = child(file, "files", h5py.Group)
        count = len(dataset(listing, "ptr", POINTER)) - 1
        names = list(read_strings(listing, count, slice(0, count)))
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name or (os.sep == "\\" and "\\" in name):
            raise FormatError(f"{path}: it names {name!r}, which is not beneath its folder. Do not trust this file.")
        _beneath(path.parent.resolve(), path.parent / name)
    return names


def _beneath(folder: Path, shard: Path) -> PurePosixPath:
    resolved = shard.resolve()
    if not resolved.is_relative_to(folder):
        raise InputError(f"shards: {shard} is not beneath {folder}, where the merged file is. Put that higher, or the shard lower.")
    return PurePosixPath(resolved.relative_to(folder).as_posix())
