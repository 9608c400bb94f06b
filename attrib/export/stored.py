"""What is exported: blocks of a collection, in pieces of a size that fits in memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from attrib.core.edges import Edges, join
from attrib.core.optional import needed
from attrib.core.types import FormatError, InputError, Site
from attrib.store import Block, Collection, Store, open_collection
from attrib.store.select import Selection

Stored = str | os.PathLike[str] | Store | Collection
"""A shard, a folder of shards, or what `attrib.open` made of one."""

LEAST, MOST = 1 << 18, 1 << 19
"""Edges of a piece: small shards are put together, large ones are taken apart. A prompt is never divided."""


import_needed = partial(needed, argument="export", extra="export")
"""A package that attrib does not depend on, by its name."""


@contextmanager
def collected(stored: Stored) -> Iterator[Collection]:
    """What is given, as a collection; closed at the end where it was opened here."""
    if isinstance(stored, Collection):
        yield stored
        return
    with open_collection(stored.path if isinstance(stored, Store) else stored) as collection:
        yield collection


def fitting(collection: Collection, kind: str | None, source: str | Site | None, target: str | Site | None) -> list[Block]:
    """All blocks with this kind and these sites; None fits any. Raises InputError where there are none."""
    asked = [None if name is None else str(name) for name in (kind, source, target)]
    found = [block for block in collection.blocks if all(name in (None, part) for name, part in zip(asked, block, strict=True))]
    if not found:
        raise InputError(
            f"export(kind={asked[0]!r}, source={asked[1]!r}, target={asked[2]!r}): no blocks of {collection.path} fit; expected "
            f"some of: {'; '.join(map(str, collection.blocks))}."
        )
    return found


def file_name(block: Block) -> str:
    """A block's name as a file's: as in a shard, but joined by commas, since ':' means a drive or a protocol to others."""
    return block.group.replace(":", ",")


def manifest(collection: Collection, blocks: list[Block], to: str) -> dict[str, Any]:
    """What an export says of itself."""
    return {"format": to, "blocks": {file_name(block): block._asdict() for block in blocks}, "call": collection.call}


def pieces(collection: Collection, block: Block, prompts: Selection) -> Iterator[Edges]:
    """The edges of a block, shard by shard, in pieces of at least `LEAST` edges but for the last; the first may be empty.

    Raises FormatError where values have one type in some shards and another in others, which a table cannot hold.
    """
    parts, size = [collection.edges(*block, prompts=[])], 0
    wanted = types_of(parts[0])
    for part in collection.iterate(*block, prompts=prompts, by="shard", most=MOST):
        if types_of(part) != wanted:
            raise FormatError(
                f"{collection.path}: values of block '{block}' are {types_of(part)} in one shard and {wanted} in another; expected one "
                "type. Make the shards again in one dtype."
            )
        parts.append(part)
        size += len(part)
        if size >= LEAST:
            yield join(parts)
            parts, size = [], 0
    if parts:
        yield join(parts)


def types_of(edges: Edges) -> tuple[str, str, str]:
    """The types of a result's values, and of its nodes' activations."""
    columns = (edges.gradient, edges.sources.activation, edges.targets.activation)
    return tuple(str(column.dtype).removeprefix("torch.") for column in columns)  # type: ignore[return-value]


def plain(string: str) -> str:
    """A string as any file holds it: a NUL becomes its symbol, ␀, and half of a surrogate pair the replacement character.

    >>> plain("a\\0b\\ud800")
    'a␀b\ufffd'
    """
    return string.replace("\0", "␀").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
