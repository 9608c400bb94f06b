"""Which numbers a result was computed with: a hash of all tensors of a model or dictionary, taken at every call.

    content(t)     = XXH3-128 of the bytes of t, row by row
    fingerprint    = SHA-256 of the static facts and, of each tensor in order, its dtype, shape and content

XXH3 runs at the speed of memory, so that what was edited in place is seen; it tells contents apart and is no defence
against someone who makes two of one hash. Two things keep the rest cheap. What is not row by row in memory (a matrix read
as its transpose) need not be copied each time, and what is on an accelerator need not come back: both have a quick
checksum where and as they lie, and contents are remembered by it. So nothing depends on noticing that something was written.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import torch
import xxhash
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils import _pytree as pytree

from attrib.core.devices import to_device

MOST_KNOWN = 1 << 17
"""Contents that are remembered, of about 300 bytes each; the oldest go first."""
PIECE = 1 << 23
"""Words that an accelerator sums at once, of one tensor or of many."""
ROW = 1 << 10
"""Words that are summed first; where a tensor ends, its last row is filled up with zeros."""

_known: dict[tuple[object, ...], str] = {}
"""Contents by dtype, shape, strides and quick checksum."""


class Fingerprinted:
    """A model or dictionary that can be told from others by its numbers."""

    @property
    def _is_fixed(self) -> bool:
        """Whether its tensors cannot be written, so that one look is enough."""
        return False

    def _hashed(self, how: Callable[..., str]) -> str:
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """Hash of all parameters, as they are now, and of what else its numbers follow from: which one a result came from."""
        return fingerprints([self])[0]

    def matches(self, sha256: str) -> bool:
        """Whether a stored hash is this one's: its fingerprint, or the SHA-256 over its bytes that version 0.1 stored."""
        return sha256 == self.fingerprint or sha256 == self._hashed(sha256_of)


Part = TypeVar("Part", bound=Fingerprinted)


def seal(part: Part, known: str | None = None) -> Part:
    """Give a model or dictionary its fingerprint as it is now, for who holds weights that nobody else can edit.

    Args:
        known: a stored hash that it `matches`; a job of version 0.1 goes on under the hashes that it was made with.
    """
    made: Part = replace(part)  # type: ignore[type-var]
    made.__dict__[_SEALED] = known or part.fingerprint
    return made


_SEALED = "_sealed"
"""Where `seal` puts it: no field, so that whatever is made by `dataclasses.replace` is hashed anew."""


def fingerprints(parts: Sequence[Fingerprinted]) -> list[str]:
    """The fingerprint of each, for all of which an accelerator is asked once."""
    leaves, found = list[Tensor](), dict[int, str]()

    def looked_at(params: Any, *_: object) -> str:
        leaves.extend(pytree.tree_leaves(params))
        return ""

    unknown = {id(part): part for part in parts if not part.__dict__.get(_SEALED)}
    for part in unknown.values():
        part._hashed(looked_at)
    known = dict(zip(map(id, leaves), contents(leaves), strict=True))
    for number, part in unknown.items():
        found[number] = part._hashed(partial(_digest, known))
        if part._is_fixed:
            part.__dict__[_SEALED] = found[number]
    return [found.get(id(part)) or part.__dict__[_SEALED] for part in parts]


def fingerprint(params: Any, *facts: object) -> str:
    """SHA-256, in hexadecimal digits, over static facts, as Python writes them, and the content of every tensor of a pytree, in order."""
    leaves = pytree.tree_leaves(params)
    return _digest(dict(zip(map(id, leaves), contents(leaves), strict=True)), params, *facts)


def _digest(known: Mapping[int, str], params: Any, *facts: object) -> str:
    """A fingerprint by the contents of its tensors."""
    digest = hashlib.sha256("".join(map(repr, facts)).encode())
    for leaf in pytree.tree_leaves(params):
        digest.update(f"{leaf.dtype}{tuple(leaf.shape)}{known[id(leaf)]}".encode())
    return digest.hexdigest()


def sha256_of(params: Any, *facts: object) -> str:
    """SHA-256 over the bytes themselves. Prompts are hashed so, and what files of version 0.1 name by their hash was."""
    digest = hashlib.sha256("".join(map(repr, facts)).encode())
    for leaf in pytree.tree_leaves(params):
        digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
        digest.update(_bytes(leaf.detach().cpu().contiguous()))
    return digest.hexdigest()


def contents(tensors: Sequence[Tensor]) -> list[str]:
    """XXH3-128 of each tensor's bytes, row by row, in hexadecimal digits; the same for every layout and device.

    An accelerator is asked once for all that it holds.
    """
    found = [str(xxhash.xxh3_128_hexdigest(_bytes(each.detach()))) if _is_plain(each) else None for each in tensors]
    others = [tensor.detach() for tensor, known in zip(tensors, found, strict=True) if known is None]
    looked_up = iter(_looked_up(tensor, key) for tensor, key in zip(others, _keys(others), strict=True))
    return [next(looked_up) if known is None else known for known in found]


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's bytes lie row by row, and here."""
    return on_host(tensor) and tensor.is_contiguous()


def _looked_up(tensor: Tensor, key: tuple[object, ...]) -> str:
    if key not in _known:
        _remember(key, str(xxhash.xxh3_128_hexdigest(_bytes(tensor.cpu().contiguous()))))
    return _known[key]


def moved(before: Any, after: Any) -> None:
    """Remember that `after` holds what `before` does, on another device, so that nothing is copied back to be hashed."""
    pairs = zip(pytree.tree_leaves(before), pytree.tree_leaves(after), strict=True)
    told = [(old, new.detach()) for old, new in pairs if new is not old and new.dtype == old.dtype and not on_host(new)]
    for key, what in zip(_keys([new for _, new in told]), contents([old for old, _ in told]), strict=True):
        _remember(key, what)


def on_host(tensor: Tensor) -> bool:
    """Whether its memory can be read here."""
    return tensor.device.type == "cpu"


def _keys(tensors: Sequence[Tensor]) -> list[tuple[object, ...]]:
    """What tells each tensor's contents apart without bringing them into order, or to the host."""
    quick = dict[int, bytes]()
    away = [number for number, tensor in enumerate(tensors) if not on_host(tensor)]
    for device in dict.fromkeys(tensors[number].device for number in away):
        there = [number for number in away if tensors[number].device == device]
        quick |= zip(there, sums([_laid(tensors[number]) for number in there]), strict=True)
    for number in set(range(len(tensors))) - set(away):
        quick[number] = xxhash.xxh3_128_digest(_bytes(_laid(tensors[number])))
    return [(each.dtype, each.shape, each.stride(), each.device.type, quick[number]) for number, each in enumerate(tensors)]


def _laid(tensor: Tensor) -> Shaped[Tensor, " n"]:
    """A tensor's numbers as they lie in memory, where they lie together."""
    laid = tensor.permute(sorted(range(tensor.ndim), key=lambda dim: -int(tensor.stride()[dim])))
    return (laid if laid.is_contiguous() else tensor.contiguous()).flatten()


def sums(flats: Sequence[Shaped[Tensor, " _"]]) -> list[bytes]:
    """Of each tensor of one device: two sums of all 32-bit words, modulo 2^64, each word times a number of its column and one of its row.

    Exact in any order, so the same on every device and at every call. Two contents that differ have the same
    sums by chance alone. All tensors lie one behind the other for this, in rows, and are summed piece by piece: how often the device is
    asked for something hangs on their size and not on their number. All sums are given at once, for which alone it is waited for.
    """
    words = [_words(flat) for flat in flats]
    rows = [-(-len(each) // ROW) for each in words]
    if not any(rows):
        return [b"" for _ in flats]
    device, total = words[0].device, sum(rows)
    mixed = _mixed(torch.arange(2, 2 + 2 * (ROW + max(rows)), device=device)).view(-1, 2)
    columns = mixed[:ROW].T.contiguous()
    found = [(_laid_together(piece).view(-1, 1, ROW) * columns).sum(-1) for piece in _pieces(words)]
    of_rows = torch.cat(found) if len(found) > 1 else found[0]
    begins, counts = to_device([[0, *accumulate(rows[:-1])], rows], device).unbind()
    owner = torch.arange(len(rows), device=device).repeat_interleave(counts, output_size=total)
    place = torch.arange(ROW, ROW + total, device=device) - begins.index_select(0, owner)
    sums = of_rows.new_zeros(len(rows), 2).index_add_(0, owner, of_rows * mixed.index_select(0, place))
    return [each.tobytes() if count else b"" for each, count in zip(sums.cpu().numpy(), rows, strict=True)]


def _pieces(words: Sequence[Int[Tensor, " _"]]) -> Iterator[list[Int[Tensor, " _"]]]:
    """Parts of the tensors in turn, PIECE words together, with zeros behind each tensor up to the end of its row."""
    piece, room, zeros = list[Tensor](), PIECE, words[0].new_zeros(ROW)
    for each in words:
        for begin in _cuts(len(each), room):
            part = each[begin : begin + room]
            piece += [part, zeros[: -len(part) % ROW]] if len(part) % ROW else [part]
            room -= -(-len(part) // ROW) * ROW
            if not room:
                yield piece
                piece, room = [], PIECE
    if piece:
        yield piece


def _cuts(length: int, first: int) -> Iterator[int]:
    """Where the parts of so many words begin: the first has room for so many, and those behind it for PIECE."""
    if length:
        yield 0
        yield from range(first, length, PIECE)


def _laid_together(piece: list[Int[Tensor, " _"]]) -> Int[Tensor, " words"]:
    return piece[0] if len(piece) == 1 else torch.cat(piece)


def _words(flat: Shaped[Tensor, " n"]) -> Int[Tensor, " words"]:
    """The same memory as 32-bit words, filled up with zeros where it does not divide into these."""
    if flat.nbytes % 4 == 0 and (flat.storage_offset() * flat.itemsize) % 4 == 0:
        return flat.view(torch.int32)
    there = flat.view(torch.uint8)
    return torch.cat([there, there.new_zeros(-len(there) % 4)]).view(torch.int32)


def _mixed(place: Tensor) -> Tensor:
    """Odd 64-bit numbers that look random (the multipliers are splitmix64's, as signed numbers)."""
    mixed = place * -7046029254386353131
    mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687
    mixed = (mixed ^ (mixed >> 27)) * -7723592293110705685
    return (mixed ^ (mixed >> 31)) | 1


def _bytes(tensor: Tensor) -> Any:
    """A contiguous tensor's own memory."""
    return tensor.flatten().view(torch.uint8).numpy()


def _remember(key: tuple[object, ...], what: str) -> None:
    while len(_known) >= MOST_KNOWN:
        _known.pop(next(iter(_known)))
    _known[key] = what
