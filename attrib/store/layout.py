"""What a shard is called: its format's version, its blocks, the filters that it may use."""

import importlib
from typing import Any, NamedTuple
from urllib.parse import quote

from attrib.types import InputError

FORMAT, VERSION = "attrib", 1
MERGED, STATISTICS = "attrib-merged", "attrib-statistics"
"""The root attribute `format` of attrib's other files."""
CHUNK = 1 << 20
"""Bytes of a chunk, at most. The reader accepts sixteen times as much, from files that were repacked."""
REMEDY = "expected a file as attrib wrote it. Copy it again, or make it again."
# HDF5's numbers of the filters that version 1 allows: deflate, shuffle, lzf; and, through hdf5plugin, blosc and zstd
BUILT_IN_FILTERS, PLUGIN_FILTERS = {1, 2, 32000}, {32001, 32015}


class Block(NamedTuple):
    """What names a block: the kind of its edges, and the sites they go between."""

    kind: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind} {self.source} -> {self.target}"

    @property
    def group(self) -> str:
        """The name of the block's group: its parts percent-encoded and joined by ':', so that no two blocks share one."""
        return ":".join(quote(part, safe="") for part in self)


def import_plugin(wanted_by: str) -> Any:
    """Import hdf5plugin, which gives HDF5 its filters. Raises InputError, beginning with `wanted_by`, where it is missing."""
    try:
        return importlib.import_module("hdf5plugin")
    except ImportError as error:
        raise InputError(f"{wanted_by} needs the package hdf5plugin, which is not installed; pip install 'attrib[jobs]'.") from error
