"""Folders that a killed process may leave behind: put there whole or not at all, and told apart by what they were made with."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrib.core.files import PARTIAL, sync, whole
from attrib.core.types import FormatError, InputError

NOTE = "made-with.json"


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to write files into, which takes the name `path` when the block ends well: by then all of it is on the disk.

    What an earlier process left of the same folder when it was killed is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*{PARTIAL}"):
        shutil.rmtree(left)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            sync(file)
        sync(partial)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json_file(path: Path) -> Any:
    """What a JSON file of attrib's own says. Raises FormatError for one that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is damaged: {error}. Delete it.") from None


def check_made_with(folder: Path, facts: Mapping[str, Any], argument: str) -> None:
    """Note in a folder what its contents are made with.

    Raises:
        InputError: where it was made with something else, for the two would be mixed; names what changed.
    """
    note = folder / NOTE
    now = json.loads(json.dumps(facts))  # as it will be read
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, now)
        return
    found = read_json_file(note)
    if found != now:
        before = found if isinstance(found, dict) else {}
        changed = [f"{key} {before.get(key)}, now {now.get(key)}" for key in {**before, **now} if before.get(key) != now.get(key)]
        raise InputError(f"{argument}: {folder} was made with {'; '.join(changed)}. Delete it, or give another folder.")
