"""Statistics ↔ HDF5; docs/statistics.md is the specification."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from attrib.core.types import FormatError
from attrib.stats import fixed
from attrib.stats.fixed import Fixed
from attrib.stats.rows import COUNTS, LARGEST_LATENT, Aggregates, empty, keys_of, pair_name, pairs_of, transposed
from attrib.stats.sketch import DEPTH, LEAST_MEMORY, LEVELS, Sketch, bits_of, check
from attrib.stats.statistics import BlockStatistics, Statistics
from attrib.stats.table import PART, Exact, Table
from attrib.store.layout import REMEDY, Block
from attrib.store.reading import Fault
from attrib.store.statistics import Column, Groups, Stored, Written, damaged_statistics, read_statistics, write_statistics

_INTEGER = ("<i4", "<i8")
_COLUMNS: dict[str, tuple[str, ...]] = {name: ("<f8",) if name == "maximum" else _INTEGER for name in Aggregates._fields if name != "key"}
_SIDES = ("by_target", "by_source")
_TABLE = {side: {"latent": _INTEGER, "ptr": _INTEGER, "other": _INTEGER} | _COLUMNS for side in _SIDES}
_LEVELS = ["_".join(f"{end}{bits}" for end, bits in zip(("target", "source"), lengths, strict=True) if bits) for lengths in LEVELS]
_LEAVES: dict[str, tuple[str, ...]] = {"key": ("<u8",)} | {name: dtypes[-1:] for name, dtypes in _COLUMNS.items()}
_SKETCH = {name: {"high": ("<i8",), "low": ("<i8",)} for name in _LEVELS} | {"leaves": _LEAVES}


def save(path: str | os.PathLike[str], statistics: Statistics, *, overwrite: bool = False) -> Path:
    """Write statistics to one file and return its path. Equal statistics are equal files, byte by byte.

    Raises InputError where the path exists and `overwrite` is false, or its folder does not exist.
    """
    path = Path(path)
    write_statistics(path, statistics.memory, map(_written, statistics.parts), overwrite=overwrite)
    return path


def open(path: str | os.PathLike[str], *, verify: bool = False) -> Statistics:
    """Open a statistics file. Nothing but its header is read; what is asked for is read when it is.

    `verify` reads everything, and holds the two orders of each table, or the rows of each sketch, against each other.

    Raises:
        InputError: there is no such file.
        FormatError: it is not a statistics file, of another version, truncated or damaged; with `verify`, the first fault that is found.
    """
    if verify and (fault := next(faults(path), None)):
        raise FormatError(f"{fault}. `attrib verify-file` lists all faults; {REMEDY}")
    path = Path(path)
    memory, blocks = read_statistics(path, _TABLE, _SKETCH)
    if memory < LEAST_MEMORY:
        raise FormatError(f"{path}: damaged: a memory bound of {memory} bytes, less than the least, {LEAST_MEMORY}.")
    held = [_stored_table(path, stored) if stored.bits is None else _stored_sketch(path, stored, memory) for stored in blocks]
    return Statistics(memory, tuple(BlockStatistics(b.block, one, b.call) for b, one in zip(blocks, held, strict=True)))


def faults(path: str | os.PathLike[str]) -> Iterator[Fault]:
    """What is wrong with a statistics file: everything is read. Raises InputError where there is none."""
    path = Path(path)
    try:
        parts = open(path).parts
    except FormatError as error:
        yield Fault.of_error(path, error)
        return
    for part in parts:
        try:
            if isinstance(part.held, Sketch):
                check(part.held)
            elif isinstance(part.held, StoredTable):
                yield from part.held.contradictions()
        except FormatError as error:
            yield Fault.of_error(path, error, f"/blocks/{part.block.group}")


# -------------------------------------------------------------------------------------- writing


def _written(part: BlockStatistics) -> Written:
    groups: Groups
    if isinstance(part.held, Sketch):
        levels = {name: level._asdict().items() for name, level in zip(_LEVELS, part.held.levels, strict=True)}
        return Written(part.block, part.call, part.held.bits, levels | {"leaves": part.held.leaves._asdict().items()})
    table = _loaded(part.held)
    targets, sources = pairs_of(table.rows.key)
    order = table.by_source()
    groups = {"by_target": _side(targets, sources, table.rows, None), "by_source": _side(sources, targets, table.rows, order)}
    return Written(part.block, part.call, None, groups)


def _loaded(held: Exact) -> Table:
    if isinstance(held, Table):
        return held
    parts = [empty(), *held.parts()]
    return Table(Aggregates(*(np.concatenate(columns) for columns in zip(*parts, strict=True))))


def _side(
    latent: Int64[np.ndarray, " rows"], other: Int64[np.ndarray, " rows"], rows: Aggregates, order: Int64[np.ndarray, " rows"] | None
) -> Iterator[tuple[str, Column]]:
    """The columns of a table in the order of one end, and where each latent of that end begins."""

    def ordered(column: np.ndarray) -> np.ndarray:
        return column if order is None else column[order]

    present, starts = np.unique(ordered(latent), return_index=True)
    yield "latent", _narrow(present)
    yield "ptr", _narrow(np.append(starts, len(latent)).astype(np.int64))
    yield "other", _narrow(ordered(other))
    for name in _COLUMNS:
        yield name, _narrow(ordered(getattr(rows, name)))


def _narrow(column: Column) -> Column:
    """Whole numbers as int32 where every value fits."""
    if column.dtype != np.int64:
        return column
    limits = np.iinfo(np.int32)
    return column.astype(np.int32) if limits.min <= column.min(initial=0) and column.max(initial=0) <= limits.max else column


# -------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class StoredTable:
    """A table in a file: its columns twice, by (target, source) and by (source, target), each with its latents' places."""

    path: Path
    block: Block
    sides: dict[str, dict[str, Column]]

    def __len__(self) -> int:
        return len(self.sides["by_target"]["other"])

    def of_target(self, latent: int) -> Aggregates:
        """The pairs of one target, by source."""
        return self._of("by_target", latent)

    def of_source(self, latent: int) -> Aggregates:
        """The pairs of one source, by target."""
        return self._of("by_source", latent)

    def parts(self) -> Iterator[Aggregates]:
        """All pairs in ascending order of the key, some at a time. Raises FormatError where they are not."""
        return self._parts("by_target")

    def l1(self) -> Iterator[Fixed]:
        """The mass of every pair, some at a time, without the rest of them. Raises FormatError where a sum is none."""
        side = self.sides["by_target"]
        for start in range(0, len(self), PART):
            part = Fixed(*(side[name][start : start + PART].astype(np.int64) for name in ("l1_high", "l1_low")))
            if not fixed.are_numbers(part) or (part.high < 0).any():
                raise self._damaged("by_target: an l1 is no fixed-point number from 0")
            yield part

    def contradictions(self) -> Iterator[Fault]:
        """Where the two orders of the pairs do not hold the same. Raises FormatError where one of them is none."""
        by_target, by_source = (np.concatenate([empty().key, *(rows.key for rows in self._parts(side))]) for side in _SIDES)
        order = np.argsort(by_source)
        columns = {"other": (by_target, by_source)} | {
            name: (self.sides["by_target"][name], self.sides["by_source"][name]) for name in _COLUMNS
        }
        for name, (of_target, of_source) in columns.items():
            apart = np.flatnonzero(of_target != of_source[order])
            if len(apart):
                row, first = int(order[apart[0]]), int(apart[0])
                what = f"it has not what by_target has in row {first}, {pair_name(int(by_target[first]))}"
                yield Fault(self.path, f"/blocks/{self.block.group}/by_source/{name}", what, None, row, len(apart) - 1)
            if name == "other" and len(apart):
                return  # of other pairs, all else differs

    def _parts(self, name: str) -> Iterator[Aggregates]:
        """All pairs in the order of one side."""
        side, last = self.sides[name], -1
        latents, ptr = side["latent"].astype(np.int64), side["ptr"].astype(np.int64)
        if ptr[0] != 0 or ptr[-1] != len(self) or (np.diff(ptr) < 0).any():
            raise self._damaged(f"{name}/ptr does not rise from 0 to {len(self)}")
        for start in range(0, len(self), PART):
            span = slice(start, min(start + PART, len(self)))
            rows = self._rows(side, span, latents[np.searchsorted(ptr, np.arange(span.start, span.stop), "right") - 1], name)
            order = rows.key if name == "by_target" else transposed(rows.key)
            if int(order[0]) <= last:
                raise self._damaged("the pairs do not ascend")
            last = int(order[-1])
            yield rows

    def _of(self, name: str, latent: int) -> Aggregates:
        side = self.sides[name]
        latents = side["latent"]
        if not np.iinfo(latents.dtype).min <= latent <= np.iinfo(latents.dtype).max:
            return empty()
        at = int(np.searchsorted(latents, latents.dtype.type(latent)))  # a number of another type would have all of them copied
        if at == len(latents) or latents[at] != latent:
            return empty()
        span = slice(int(side["ptr"][at]), int(side["ptr"][at + 1]))
        if not 0 <= span.start < span.stop <= len(self):
            raise self._damaged(f"{name}/ptr of latent {latent} is {span.start}:{span.stop}, and there are {len(self)} pairs")
        return self._rows(side, span, np.full(span.stop - span.start, latent, np.int64), name)

    def _rows(self, side: dict[str, Column], span: slice, latent: Int64[np.ndarray, " rows"], name: str) -> Aggregates:
        """Rows of one side, whose values are possible."""
        other = side["other"][span].astype(np.int64)
        if (np.minimum(latent, other) < -1).any() or (np.maximum(latent, other) > LARGEST_LATENT).any():
            raise self._damaged(f"{name} has latents outside -1 … {LARGEST_LATENT}")
        order = keys_of(latent, other)
        if (order[1:] <= order[:-1]).any():
            raise self._damaged(f"the pairs of {name} do not ascend")
        key = order if name == "by_target" else keys_of(other, latent)
        columns = {column: side[column][span].astype(np.float64 if column == "maximum" else np.int64) for column in _COLUMNS}
        rows = Aggregates(key=key, **columns)
        if fault := _impossible(rows):
            raise self._damaged(f"{name}: {fault}")
        return rows

    def _damaged(self, fault: str) -> FormatError:
        return damaged_statistics(self.path, self.block, fault)


def _impossible(rows: Aggregates) -> str | None:
    """What no aggregate can be."""
    if (rows.count < 1).any() or any((getattr(rows, name) < 0).any() for name in COUNTS):
        return "a count is below 0, or a pair has no edges"
    if (rows.positive > rows.count - rows.negative).any() or (rows.prompts > rows.count).any():
        return "the counts disagree"
    if not all(fixed.are_numbers(numbers) for numbers in (rows.l1, rows.sum, rows.squares)) or not np.isfinite(rows.maximum).all():
        return "a sum is no fixed-point number, or a maximum not finite"
    # each value was rounded to the grid once, the same for both signs, so that these hold without rounding
    size = fixed.magnitude(rows.sum)
    if fixed.less(rows.l1, size).any() or (np.abs(rows.maximum) >= np.sqrt(fixed.LIMIT)).any():
        return "a sum is larger than that of the absolute values, or a maximum than any can be"
    if fixed.less(rows.l1, fixed.rounded(np.abs(rows.maximum))).any() or fixed.less(rows.squares, fixed.rounded(rows.maximum**2)).any():
        return "a maximum is larger than the sum of the absolute values, or its square than that of the squares"
    is_below, is_above = rows.sum.high < 0, fixed.less(Fixed(np.zeros(1, np.int64), np.zeros(1, np.int64)), rows.sum)
    is_less = fixed.less(size, rows.l1)
    if ((rows.negative == 0) & (is_below | is_less) | (rows.positive == 0) & (is_above | is_less)).any():
        return "a pair has edges of one sign, and a sum that says otherwise"
    return None


def _stored_table(path: Path, stored: Stored) -> StoredTable:
    pairs = len(stored.groups["by_target"]["other"])
    for side, columns in stored.groups.items():
        wanted = {"latent": len(columns["latent"]), "ptr": len(columns["latent"]) + 1}
        if wrong := [f"{side}/{name}" for name, column in columns.items() if len(column) != wanted.get(name, pairs)]:
            raise damaged_statistics(path, stored.block, f"the length of {', '.join(wrong)} disagrees with the others")
    return StoredTable(path, stored.block, stored.groups)


def _stored_sketch(path: Path, stored: Stored, memory: int) -> Sketch:
    bits = bits_of(memory)
    lengths = {len(column) for columns in stored.groups.values() for column in columns.values()}
    if stored.bits != bits or lengths != {DEPTH << bits}:
        fault = f"a sketch of {stored.bits} bits in columns of {sorted(lengths)}; expected {bits} for its memory bound, and {DEPTH << bits}"
        raise damaged_statistics(path, stored.block, fault)
    levels = tuple(Fixed(**stored.groups[name]) for name in _LEVELS)
    return Sketch(bits, levels, Aggregates(**stored.groups["leaves"]))
