"""Rows of a file's columns, as tensors."""

from itertools import pairwise

import h5py
import numpy as np
import torch
from torch import Tensor

from attrib.store.reading import BYTE, FLOAT, POINTER, damaged, dataset


def read_column(group: h5py.Group, name: str, dtypes: tuple[str, ...], length: int, rows: slice) -> Tensor:
    """`rows` of a column; integers as int64."""
    values = dataset(group, name, dtypes, length)[rows]
    return torch.from_numpy(values if dtypes is FLOAT else values.astype(np.int64))


def read_ptr(group: h5py.Group, name: str, count: int, entries: int, rows: slice) -> tuple[Tensor, slice]:
    """The pointers of `rows`, starting from 0, and the slice of the entries that they point to."""
    whole = dataset(group, name, POINTER, count + 1)
    ptr = torch.from_numpy(whole[rows.start : rows.stop + 1])
    ends = *whole[:1], *whole[-1:]
    if ends != (0, entries) or ptr[0] < 0 or ptr[-1] > entries or (ptr.diff() < 0).any():
        raise damaged(whole.data, f"does not rise from 0 to {entries}")
    return ptr - ptr[0], slice(int(ptr[0]), int(ptr[-1]))


def read_strings(group: h5py.Group, count: int, rows: slice) -> tuple[str, ...]:
    """`rows` of a table of `count` strings."""
    data = dataset(group, "bytes", BYTE)
    ptr, span = read_ptr(group, "ptr", count, len(data), rows)
    raw, ends = data[span].tobytes(), ptr.tolist()
    return tuple(raw[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(ends))
