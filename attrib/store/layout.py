"""What a shard is called: its format's version, its blocks, the filters that it may use."""

from enum import IntEnum
from typing import NamedTuple
from urllib.parse import quote

FORMAT, VERSION = "attrib", 1
RULED = 2
"""The version of a shard that holds what version 1 has no word for: rules, and sources that are no latents beside latents."""
VERSIONS = (VERSION, RULED)
"""Those that are read."""
MERGED, STATISTICS, GRAPHS, SURVEY, TABLES = "attrib-merged", "attrib-statistics", "attrib-graphs", "attrib-survey", "attrib-tables"
"""The root attribute `format` of attrib's other files."""
CHUNK = 1 << 20
"""Bytes of a chunk, at most. The reader accepts sixteen times as much, from files that were repacked."""
REMEDY = "expected a file as attrib wrote it. Copy it again, or make it again."


class Codec(IntEnum):
    """HDF5's numbers of the filters that compress."""

    DEFLATE, LZF, BLOSC, ZSTD = 1, 32000, 32001, 32015


SHUFFLE = 2
"""HDF5's number of the filter that puts the first bytes of all numbers first."""
CHAINS: dict[tuple[int, ...], str | None] = {
    (): None, (SHUFFLE, Codec.DEFLATE): "gzip", (SHUFFLE, Codec.LZF): "lzf", (Codec.BLOSC,): "blosc-lz4", (Codec.ZSTD,): "zstd",
}  # fmt: skip
"""The filters that a column of version 1 may have, in this order, and which compression of `save` they are."""
PLUGINS = {Codec.BLOSC, Codec.ZSTD}
"""Of them, what hdf5plugin brings."""


def filter_name(code: int) -> str:
    """A filter by its number among HDF5's registered ones; what a file calls it may be anything."""
    return Codec(code).name.lower() if code in [*Codec] else _FILTERS.get(code, f"number {code}")


_FILTERS = {
    SHUFFLE: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 307: "bzip2", 32004: "lz4", 32008: "bitshuffle",
    32013: "zfp", 32026: "blosc2",
}  # fmt: skip


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
