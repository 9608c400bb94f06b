"""Files of tables: long data frames as plain columns of numbers, truths and texts, written whole and read whole.

docs/tasks.md is the specification; what the columns mean is for attrib.causal.tasks to know. As in a shard, types, lengths and
storage are checked before anything is allocated.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Shaped

from attrib.store.columns import filters_of, json_text, narrow, packages, text, write_columns, write_strings
from attrib.store.layout import TABLES
from attrib.store.reading import FLOAT, INTEGER, Checked, check_kind, child, damaged, dataset, open_file, read_json, translated
from attrib.store.rows import read_strings
from attrib.store.writing import check_output, check_size, created

VERSION = 1

Column = Shaped[np.ndarray, " rows"]
Schema = Mapping[str, Mapping[str, str]]
"""Of each table, the columns that it has, with what they hold: "int64", "float64", "bool" or "str"."""
Tables = Mapping[str, Mapping[str, Column]]


def write_tables(path: Path, facts: dict[str, Any], tables: Tables, schema: Schema, *, compression: str | None, overwrite: bool) -> Path:
    """Write a file of tables, whole or not at all.

    Args:
        facts: what they are of, as JSON has it.
        tables: every column of the schema; texts as an array of objects.

    Raises:
        InputError: where the path or the compression cannot be used.
    """
    check_output("path", path, TABLES, overwrite=overwrite)
    filters = filters_of(compression)
    with created(path) as file:
        file.attrs.update({"format": text(TABLES), "format_version": VERSION, "packages": json_text(packages()), "facts": json_text(facts)})
        listing, longest = file.create_group("tables"), 0
        for name, columns in schema.items():
            group = listing.create_group(name)
            for column, kind in columns.items():
                values = np.asarray(tables[name][column])
                longest = max(longest, len(values))
                if kind == "str":
                    _write_texts(group.create_group(column), values, filters)
                else:
                    write_columns(group, {column: values.astype(np.float64) if kind == "float64" else narrow(values)}, filters)
        if filters:
            check_size(file, longest, compression)
    return path


def read_facts(path: Path) -> dict[str, Any]:
    """What the tables of a file are of. Raises as `read_tables`."""
    with translated(path), open_file(path) as file:
        return read_json(_root(file), "facts")


def read_tables(path: Path, schema: Schema) -> dict[str, dict[str, Column]]:
    """Those tables of a file that are in the schema: whole numbers as int64, texts as objects.

    Raises:
        InputError: there is no such file.
        FormatError: it is no file of tables, of another version, truncated or damaged.
    """
    with translated(path), open_file(path) as file:
        listing = child(_root(file), "tables", h5py.Group)
        return {name: _read_table(child(listing, name, h5py.Group), columns) for name, columns in schema.items()}


def _root(file: h5py.File) -> Checked:
    check_kind(file, TABLES, VERSION, "tables", "`attrib task run` or a job of a task wrote")
    return Checked(file["/"].id)


def _read_table(group: Checked, columns: Mapping[str, str]) -> dict[str, Column]:
    found = {name: _read(group, name, kind) for name, kind in columns.items()}
    if len({len(column) for column in found.values()}) > 1:
        raise damaged(group, "its columns have different lengths")
    return found


def _read(group: Checked, name: str, kind: str) -> Column:
    if kind == "str":
        return _read_texts(child(group, name, h5py.Group))
    column = dataset(group, name, FLOAT if kind == "float64" else INTEGER)
    values = column[slice(0, len(column))]
    if kind == "float64":
        return values.astype(np.float64)
    if kind == "bool" and not np.isin(values, (0, 1)).all():
        raise damaged(column.data, "a number that is neither 0 nor 1")
    return values.astype(bool if kind == "bool" else np.int64)


def _write_texts(group: h5py.Group, values: Column, filters: dict[str, Any]) -> None:
    """Texts that come again and again: each once, in the order in which they first come, and which of them each row has."""
    known: dict[str, int] = {}
    code = np.array([known.setdefault(value, len(known)) for value in values.tolist()], np.int64)
    write_columns(group, {"code": narrow(code)}, filters)
    write_strings(group.create_group("text"), list(known))


def _read_texts(group: Checked) -> Column:
    strings, column = child(group, "text", h5py.Group), dataset(group, "code", INTEGER)
    count, code = len(dataset(strings, "ptr", ("<i8",))) - 1, column[slice(0, len(column))]
    if len(code) and not (code.min() >= 0 and code.max() < count):
        raise damaged(column.data, f"a number that is none of the {count} texts")
    texts = np.empty(max(count, 0), object)
    texts[:] = read_strings(strings, max(count, 0), slice(0, max(count, 0)))
    return texts[code]
