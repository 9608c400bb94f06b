"""Which numbers a result was computed with: a hash of all tensors of a model or dictionary, taken at every call.

    content(t)     = XXH3-128 of the bytes of t, row by row
    fingerprint    = SHA-256 of the static facts and, of each tensor in order, its dtype, shape and content

XXH3 runs at the speed of memory, so that what was edited in place is seen; it tells contents apart and is no defence
against someone who makes two of one hash. Two things keep the rest cheap. What is not row by row in memory (a matrix read
as its transpose) need not be copied each time, and what is on an accelerator need not come back: both have a quick
checksum where and as they lie, and contents are remembered by it. So nothing depends on noticing that something was written.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import xxhash
from jaxtyping import Shaped
from torch import Tensor
from torch.utils import _pytree as pytree

MOST_KNOWN = 1 << 17
"""Contents that are remembered, of about 300 bytes each; the oldest go first."""
PIECE = 1 << 22
"""Words that an accelerator sums at once."""

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
        found = self.__dict__.get(_SEALED) or self._hashed(fingerprint)
        if self._is_fixed:
            self.__dict__[_SEALED] = found
        return found

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


def fingerprint(params: Any, *facts: object) -> str:
    """SHA-256, in hexadecimal digits, over static facts, as Python writes them, and the content of every tensor of a pytree, in order."""
    digest, leaves = hashlib.sha256("".join(map(repr, facts)).encode()), pytree.tree_leaves(params)
    for leaf, found in zip(leaves, contents(leaves), strict=True):
        digest.update(f"{leaf.dtype}{tuple(leaf.shape)}{found}".encode())
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
    """Of each tensor of one device: two sums of all 32-bit words, modulo 2^64, each word times a number that is mixed from its place.

    Exact in any order, so the same on every device and at every call. Two contents that differ have the same
    sums by chance alone. Long tensors are summed piece by piece, and all sums are given: places count from the beginning of a
    piece, so numbers are mixed once for all pieces of all tensors. The device is asked once.
    """
    words = [_words(flat) for flat in flats]
    parts = [(number, part) for number, each in enumerate(words) for part in each.split(PIECE) if len(part)]
    longest, found = max((len(part) for _, part in parts), default=0), list[tuple[int, Tensor]]()
    if longest:
        weight = _mixed(torch.arange(1, 1 + longest, device=words[0].device))
        weights = torch.stack([weight, _mixed(weight)])
        found = [(number, (weights[:, : len(part)] * part).sum(1)) for number, part in parts]
    pieces = [bytearray() for _ in flats]
    for number, numbers in zip(
        (number for number, _ in found), torch.stack([each for _, each in found]).cpu() if found else (), strict=True
    ):
        pieces[number] += numbers.numpy().tobytes()
    return [bytes(piece) for piece in pieces]


def _words(flat: Shaped[Tensor, " n"]) -> Shaped[Tensor, " words"]:
    """The same memory as 32-bit words, or as bytes where it does not divide into these."""
    whole = flat.nbytes % 4 == 0 and (flat.storage_offset() * flat.itemsize) % 4 == 0
    return flat.view(torch.int32 if whole else torch.uint8)


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
