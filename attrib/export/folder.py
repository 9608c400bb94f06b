"""A folder that is whole or not there, and says what it was made of."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrib.core.files import OVERWRITE, PARTIAL, sync
from attrib.core.types import InputError

MANIFEST = "_attrib.json"
"""What was exported. Arrow passes over names that begin with an underscore, so a folder of Parquet files opens as one."""


@contextmanager
def whole_folder(path: str | os.PathLike[str], manifest: dict[str, Any], overwrite: bool) -> Iterator[Path]:
    """A new folder beside `path` to write into, which takes its name when the block ends well, with the manifest in it.

    An error removes it; a killed process leaves it, under a name that begins with a dot and ends in `PARTIAL`. With
    `overwrite`, an earlier export is moved away in the moment before, and then removed.

    Raises:
        InputError: `path` exists, and `overwrite` is false or it is not an earlier export; or its folder does not exist.
    """
    path = Path(os.path.abspath(path))
    if not path.parent.is_dir():
        raise InputError(f"path: the folder {path.parent} does not exist; make it first.")
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise InputError(f"path: {path} exists already; expected a new name. Choose another, or replace an export with {OVERWRITE}.")
        if path.is_symlink() or not (path / MANIFEST).is_file():  # whatever it is, it may be someone's only copy
            raise InputError(f"path: {path} is not an earlier export, which has a file {MANIFEST}; {OVERWRITE} replaces nothing else.")
    partial, replaced = (path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}") for _ in range(2))
    partial.mkdir()
    try:
        yield partial
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for file in partial.rglob("*"):
            sync(file)
        sync(partial)
        if path.exists():
            os.rename(path, replaced)
        os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    sync(path.parent)
