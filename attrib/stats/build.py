"""Edges to statistics, and statistics to one."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attrib.core.edges import Edges
from attrib.core.types import InputError
from attrib.stats.accumulate import Accumulator
from attrib.stats.files import open
from attrib.stats.gather import EDGES_AT_ONCE, pairs_of_edges
from attrib.stats.sketch import DEFAULT_MEMORY, Sketch, check, check_memory
from attrib.stats.statistics import BlockStatistics, Statistics
from attrib.store import Block, open_collection
from attrib.store.columns import as_json
from attrib.store.listing import listed
from attrib.store.wellformed import fault


def of(edges: Edges | Iterable[Edges], *, memory: int = DEFAULT_MEMORY) -> Statistics:
    """The statistics of results, which may be of several blocks and are gone through once.

    `memory` bounds, for each block, the bytes of its table or sketch and of what merging takes; beside them there is the
    Edges at hand, and about 300 bytes for each edge of a run of prompts (262,144 edges, or one prompt that has more).

    Raises:
        InputError: `memory` is too small, a result is malformed, an attribution is not finite, sums pass what
            fixed-point numbers hold, or two results of one block are of other models, dictionaries or policies.
    """
    building = Building(memory)
    for part in [edges] if isinstance(edges, Edges) else edges:
        building.add_edges(part)
    return building.result()


def merge(*parts: Statistics | str | os.PathLike[str]) -> Statistics:
    """Statistics of all that these are of; paths are opened and read in slices. The order makes no difference.

    The least of the memory bounds holds for the result. A prompt whose edges are in two parts counts twice.

    Raises:
        InputError: nothing is given, or as `of`.
        FormatError: a file is damaged.
    """
    if not parts:
        raise InputError("parts: got none; expected at least one Statistics or path.")
    opened = [part if isinstance(part, Statistics) else open(part) for part in parts]
    building = Building(min(part.memory for part in opened))
    for statistics in opened:
        building.add(statistics)
    return building.result()


class Building:
    """Statistics in the making, block by block."""

    def __init__(self, memory: int) -> None:
        self.memory = check_memory(memory)
        self._blocks: dict[Block, tuple[Accumulator, dict[str, Any]]] = {}

    def add_edges(self, edges: Edges) -> None:
        """Add a result; raises as `of` does."""
        block = Block(edges.kind, edges.sources.site, edges.targets.site)
        if wrong := fault(edges):
            raise InputError(f"edges: in '{block}', {wrong}; expected a result as attrib's functions return it.")
        into = self._into(block, json.loads(as_json(edges.call)))
        for rows in pairs_of_edges(edges):
            into.add_rows(rows)

    def add(self, statistics: Statistics) -> None:
        """Add statistics; raises as `merge` does."""
        for part in statistics.parts:
            if isinstance(part.held, Sketch):
                check(part.held)
            self._into(part.block, part.call).add(part.held)

    def _into(self, block: Block, call: dict[str, Any]) -> Accumulator:
        """The accumulator of a block, whose call becomes what it has in common with this one."""
        if block not in self._blocks:
            self._blocks[block] = Accumulator(self.memory), call
        accumulator, shared = self._blocks[block]
        check_same(block, shared, call)
        self._blocks[block] = accumulator, common(shared, call)
        return accumulator

    def result(self) -> Statistics:
        """The statistics of all that was added. Nothing can be added after."""
        blocks = sorted(self._blocks, key=lambda block: block.group)
        return Statistics(self.memory, tuple(BlockStatistics(b, self._blocks[b][0].result(), self._blocks[b][1]) for b in blocks))


def of_files(paths: Iterable[str | os.PathLike[str]], *, memory: int = DEFAULT_MEMORY) -> Statistics:
    """The statistics of shards, files or folders of them, all blocks that are in them.

    Files are read one after another, a run of prompts of at most 262,144 edges at a time: what is held beside
    `memory` for each block (see `of`) does not grow with the number of shards, but for 16 bytes a prompt of a folder.

    Raises:
        InputError: no path is given, a path is not there, a folder has no shards, or as `of`.
        FormatError: a file is damaged.
    """
    building, paths = Building(memory), list(paths)
    if not paths:
        raise InputError("paths: got none; expected shards, or folders of them.")
    if empty := [path for path in paths if not listed(Path(path))]:  # before hours of work, not after
        raise InputError(f"paths: the folder {empty[0]} has no shards; expected some. Run its job first, or leave it out.")
    for path in paths:
        with open_collection(path) as shards:
            for block in shards.blocks:
                for edges in shards.iterate(*block, by="shard", most=EDGES_AT_ONCE):
                    building.add_edges(edges)
    return building.result()


# ------------------------------------------------------------------------ which calls go together

_ONE = ("model", "source", "target", "cuts", "effect", "policy", "error")
"""What must be the same: statistics over other models, dictionaries or derivatives would be of nothing."""


def check_same(block: Block, a: dict[str, Any], b: dict[str, Any]) -> None:
    """Raises InputError where two calls of a block are not of one model, source, target and way to differentiate."""
    for name in _ONE:
        first, second = _identity(a.get(name)), _identity(b.get(name))
        if first != second:
            raise InputError(
                f"edges: the calls of '{block}' differ in {name}: {first!r} and {second!r}; expected the same. Keep their statistics apart."
            )


def common(a: Any, b: Any) -> Any:
    """What two calls share, key by key. The same for any order and grouping of several."""
    if isinstance(a, dict) and isinstance(b, dict):
        both = {key: common(a[key], b[key]) for key in sorted(a.keys() & b.keys())}
        return {key: value for key, value in both.items() if value is not _DIFFERENT}
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        items = [common(*pair) for pair in zip(a, b, strict=True)]
        return _DIFFERENT if any(item is _DIFFERENT for item in items) else items
    return a if type(a) is type(b) and a == b else _DIFFERENT


_DIFFERENT = object()


def _identity(value: Any) -> Any:
    """Parameters are known by their hash, whatever they are called."""
    if isinstance(value, dict):
        return value.get("sha256", value)
    return [_identity(item) for item in value] if isinstance(value, list) else value
