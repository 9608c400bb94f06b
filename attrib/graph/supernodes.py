"""Supernodes on disk: a small JSON file of names, each with the keys of its nodes.

    {"format": "attrib supernodes", "version": 1,
     "supernodes": {"capitals": [{"kind": "latent", "site": "blocks.7.mlp.hook_in", "latent": 355, "position": 4}]}}

`latent` is left out for nodes that have no number, `position` where all positions are meant, `name` (a dictionary's, or a target's
label) where it is not needed. Nothing else is allowed: a key that is misspelt would be a node that is silently missing.
"""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrib.core.types import FormatError, InputError
from attrib.graph.keys import Key
from attrib.graph.nodes import KINDS

FORMAT, VERSION = "attrib supernodes", 1
LONGEST_FILE = 1 << 22
"""Bytes of a file, at most: some forty thousand keys. In memory JSON takes up to thirty times as much."""
LONGEST_NAME = 1000
"""Characters of a name or a site, at most."""


def read_supernodes(path: str | Path) -> dict[str, tuple[Key, ...]]:
    """The groups of a file, for `merge`. Raises FormatError where it is missing, damaged, too large, or says what is not understood."""
    path = Path(path)
    if not path.is_file():  # a pipe would be waited for
        raise FormatError(f"path: {path} is {'no file' if path.exists() else 'missing'}; expected a file of supernodes.")
    try:
        with path.open("rb") as file:
            read = file.read(LONGEST_FILE + 1)
        if len(read) > LONGEST_FILE:
            raise FormatError(f"path: {path} has more than {LONGEST_FILE:,} bytes; expected a small file of supernodes.")
        return _groups(json.loads(read.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number))
    except OSError as error:
        raise FormatError(f"path: {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"path: {path} is no file of supernodes: {error}") from error


def write_supernodes(path: str | Path, groups: Mapping[str, Sequence[Key]]) -> None:
    """Write groups as a file, whole or not at all; one that is there is replaced. Raises InputError for what could not be read again."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"path: {path} is a folder; expected the name of a file.")
    if not path.parent.is_dir():
        raise InputError(f"path: the folder {path.parent} does not exist; make it first.")
    whole = {
        "format": FORMAT,
        "version": VERSION,
        "supernodes": {name: [_plain(key) for key in keys] for name, keys in groups.items()},
    }
    try:
        _groups(whole)
    except ValueError as error:
        raise InputError(f"groups: {error}") from error
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False).encode()
    if len(text) > LONGEST_FILE:
        raise InputError(f"groups: {len(text):,} bytes as a file; expected at most {LONGEST_FILE:,}. Leave keys without a position.")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_bytes(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _plain(key: Key) -> dict[str, Any]:
    nothing = {"latent": -1, "position": None, "name": ""}
    return {field: value for field, value in key._asdict().items() if field not in nothing or value != nothing[field]}


def _groups(whole: Any) -> dict[str, tuple[Key, ...]]:
    """The groups of a file's content; ValueError says what is wrong with it."""
    _object(whole, "the file", {"format", "version", "supernodes"}, {"format", "version", "supernodes"})
    if whole["format"] != FORMAT or type(whole["version"]) is not int or whole["version"] != VERSION:
        raise ValueError(
            f"it is {_short(whole['format'])} of version {_short(whole['version'])}; expected {FORMAT!r} of version {VERSION}."
        )
    if not isinstance(whole["supernodes"], dict):
        raise ValueError(f"supernodes: {_short(whole['supernodes'])}; expected an object of names.")
    return {_text(name, "a name"): _keys(name, keys) for name, keys in whole["supernodes"].items()}


def _keys(name: str, keys: Any) -> tuple[Key, ...]:
    if not isinstance(keys, list) or not keys:
        raise ValueError(f"{_short(name)}: {_short(keys)}; expected a list of at least one node.")
    return tuple(_key(f"node {number} of {_short(name)}", key) for number, key in enumerate(keys))


def _key(where: str, key: Any) -> Key:
    _object(key, where, set(Key._fields), {"kind", "site"})
    if key["kind"] not in KINDS:
        raise ValueError(f"{where}: kind {_short(key['kind'])}; expected one of {', '.join(KINDS)}.")
    latent, position = key.get("latent", -1), key.get("position")
    for field, value, least in (("latent", latent, -1), ("position", 0 if position is None else position, 0)):
        if type(value) is not int or not least <= value < 1 << 31:
            raise ValueError(f"{where}: {field} {_short(value)}; expected a whole number from {least} up to 2³¹.")
    name = key.get("name", "")
    return Key(key["kind"], _text(key["site"], f"{where}: site"), latent, position, _text(name, f"{where}: name") if name != "" else "")


def _object(value: Any, where: str, allowed: set[str], needed: set[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {_short(value)}; expected an object.")
    if value.keys() - allowed or needed - value.keys():
        raise ValueError(
            f"{where} has the fields {_short(sorted(value))}; expected {', '.join(sorted(needed))}"
            + (f", and perhaps {', '.join(sorted(allowed - needed))}." if allowed - needed else ".")
        )


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME or not value.isprintable():
        raise ValueError(f"{what} is {_short(value)}; expected 1 to {LONGEST_NAME} printable characters.")
    return value


def _short(value: Any) -> str:
    """What came, in a few characters that a terminal takes."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {_short(key)} stands twice in one object; nobody knows which is meant.")
        made[key] = value
    return made


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number.")
