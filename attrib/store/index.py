"""What is known of a folder of shards without their edges: which file holds which prompt, in 16 bytes a prompt."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import unquote

import h5py
import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.slices import part_of, ptr_of
from attrib.core.types import EdgeKind, FormatError, InputError
from attrib.store.layout import Block
from attrib.store.reading import INTEGER, POINTER, check_version, child, damaged, dataset, open_file, read_call, translated
from attrib.store.rows import read_column

OWN = frozenset({"prompts", "corrupt", "method", "budget", "seed", "precision_error", "products"})
"""What shards of one data set may differ in: their prompts, and how each was computed."""


class Identity(NamedTuple):
    """What a file is known by: a name stays when another file takes it over, these do not."""

    inode: int
    bytes: int
    nanoseconds: int
    """When it was last changed."""

    @classmethod
    def of(cls, status: os.stat_result) -> "Identity":
        """From what the system says of a file."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class ShardFile(NamedTuple):
    """A file of the folder, as it was when it was found."""

    name: str
    identity: Identity


class Header(NamedTuple):
    """What a shard says of itself."""

    blocks: tuple[Block, ...]
    call: dict[str, Any]
    prompts: int
    number: Int[Tensor, " prompts"] | None


@dataclass(frozen=True)
class Index:
    """The shards of a folder, in the order of their names, and the numbers of their prompts.

    A *place* counts the prompts of all shards one after another: those of shard i are at `ptr[i]:ptr[i+1]`.
    """

    folder: Path
    shards: tuple[ShardFile, ...] = ()
    ptr: Int[Tensor, " shards_plus_1"] = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    number: Int[Tensor, " prompts"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """The number in the data set of the prompt at each place."""
    order: Int[Tensor, " prompts"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """The places in ascending order of number."""
    blocks: tuple[Block, ...] = ()
    call: dict[str, Any] = field(default_factory=dict)
    numbered: bool = True
    """Whether the shards carry their prompts' numbers."""

    def path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.folder / self.shards[shard].name

    def shard_of(self, places: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Which shard each place lies in."""
        return part_of(self.ptr, places)

    def places(self, prompts: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Where the prompts of these numbers lie; -1 for a number that no shard has."""
        if not len(self.order):
            return torch.full_like(prompts, -1)
        at = torch.searchsorted(self.number, prompts, sorter=self.order).clamp(max=len(self.order) - 1)
        places = self.order[at]
        return torch.where(self.number[places] == prompts, places, -1)


def index_of(
    folder: Path,
    shards: Iterable[ShardFile],
    known: Index | None = None,
    header_of: Callable[[Path, Identity], Header] | None = None,
) -> Index:
    """Read the headers of shards, but for those that `known` has already.

    Args:
        header_of: what reads them, where they are no shards of edges.

    Raises:
        FormatError: a file is no shard, or damaged; its blocks or its call are not those of the others; some shards carry
            the numbers of their prompts and others do not; a number is there twice.
    """
    shards = tuple(sorted(shards))
    known = known or Index(folder)
    old = {shard: i for i, shard in enumerate(known.shards)}
    blocks, call, numbered = known.blocks, known.call, known.numbered
    reference = known.shards[0].name if known.shards else ""
    counts: list[int] = []
    numbers: list[Tensor] = []
    for shard in shards:
        if shard in old:
            start, stop = known.ptr[old[shard] : old[shard] + 2].tolist()
            number: Tensor | None = known.number[start:stop]
            count = stop - start
        else:
            header = (header_of or read_header)(folder / shard.name, shard.identity)
            count, number = header.prompts, header.number
            if not reference:
                reference, blocks, call, numbered = shard.name, header.blocks, shared(header.call), number is not None
            _check_agreement(folder, shard.name, header, reference, blocks, call, numbered)
        counts.append(count)
        numbers.append(number if numbered and number is not None else torch.zeros(0, dtype=torch.int64))
    ptr = ptr_of(torch.tensor(counts, dtype=torch.int64))
    flat = torch.cat([torch.zeros(0, dtype=torch.int64), *numbers]) if numbered else torch.arange(int(ptr[-1]))
    found = Index(folder, shards, ptr, flat, flat.argsort(stable=True), blocks, call, numbered)
    _check_numbers(found)
    return found


def read_header(path: Path, identity: Identity) -> Header:
    """What a shard says of itself. Raises FormatError where it is none, and InputError where it is not the file that was found."""
    with open_file(path) as file, translated(path):
        check_identity(path, file.id.get_vfd_handle(), identity)
        check_version(file)
        listing, prompts = child(file, "blocks", h5py.Group), child(file, "prompts", h5py.Group)
        count = len(dataset(prompts, "ptr", POINTER)) - 1
        if count < 0:
            raise damaged(prompts, "ptr is empty")
        number = read_column(prompts, "number", INTEGER, count, slice(0, count)) if "number" in prompts else None
        if number is not None and (number < 0).any():
            raise damaged(prompts, "number falls below 0")
        # a block's name has its kind and sites; that its attributes say the same is seen when the shard is read
        return Header(tuple(_block_named(listing, name) for name in listing), read_call(file), count, number)


def check_identity(path: Path, descriptor: int, identity: Identity) -> None:
    """Raises InputError where the open file is not the one that was found under this name."""
    if Identity.of(os.fstat(descriptor)) != identity:
        raise InputError(f"{path}: it was replaced since the folder was opened; open the folder again (in Python, `refreshed()`).")


def shared(call: dict[str, Any]) -> dict[str, Any]:
    """The part of a shard's call that every shard of a data set shares."""
    return {key: value for key, value in call.items() if key not in OWN}


def differences(ours: dict[str, Any], others: dict[str, Any]) -> str:
    """The keys in which two calls differ, with both values."""
    absent = "absent"
    keys = [key for key in ours | others if ours.get(key, absent) != others.get(key, absent)]
    return "; ".join(f"{key} is {str(ours.get(key, absent))[:200]}, and not {str(others.get(key, absent))[:200]}" for key in keys)


def _block_named(listing: h5py.Group, name: str) -> Block:
    parts = [unquote(part) for part in name.split(":")]
    if len(parts) != 3 or parts[0] not in get_args(EdgeKind) or Block(*parts).group != name:
        raise damaged(listing, f"{name!r} does not name a block")
    return Block(*parts)


def _check_agreement(
    folder: Path, name: str, header: Header, reference: str, blocks: tuple[Block, ...], call: dict[str, Any], numbered: bool
) -> None:
    remedy = "expected the shards of one data set, made in one way. Move the file elsewhere, or open it by itself."
    if {*header.blocks} != {*blocks}:
        ours, others = ("; ".join(map(str, each)) for each in (header.blocks, blocks))
        raise FormatError(f"{folder / name}: its blocks are {ours}, and those of {reference} are {others}; {remedy}")
    if shared(header.call) != call:
        raise FormatError(f"{folder / name}: its call differs from that of {reference}: {differences(shared(header.call), call)}; {remedy}")
    if (header.number is not None) != numbered:
        which = "carries numbers of its prompts, and {} does not" if not numbered else "does not carry numbers of its prompts, and {} does"
        raise FormatError(f"{folder / name}: it {which.format(reference)}; {remedy}")


def _check_numbers(index: Index) -> None:
    ordered = index.number[index.order]
    twice = (ordered[1:] == ordered[:-1]).nonzero()[:, 0]
    if len(twice):
        first, second = (index.path(int(shard)) for shard in index.shard_of(index.order[twice[0] : twice[0] + 2]))
        raise FormatError(
            f"{second}: its prompt of number {int(ordered[twice[0]])} is in {'it twice' if first == second else f'{first} too'}; "
            "expected each prompt of a data set once. Move one of the files elsewhere."
        )
