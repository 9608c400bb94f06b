"""Which numbers a result was computed with: a hash of all tensors of a model or dictionary, taken at every call.

    content(t)     = XXH3-128 of the bytes of t, row by row
    fingerprint    = SHA-256 of the static facts and, of each tensor in order, its dtype, shape and content

XXH3 runs at the speed of memory, so that what was edited in place is seen; it tells contents apart and is no defence
against someone who makes two of one hash. Two things keep the rest cheap. What is not row by row in memory (a matrix read
as its transpose) need not be copied each time, and what is on an accelerator need not come back: both have a quick
checksum where and as they lie, and contents are remembered by it. So nothing depends on noticing that something was written.
"""

import hashlib
from collections.abc import Callable
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
    digest = hashlib.sha256("".join(map(repr, facts)).encode())
    for leaf in pytree.tree_leaves(params):
        digest.update(f"{leaf.dtype}{tuple(leaf.shape)}{content(leaf)}".encode())
    return digest.hexdigest()


def sha256_of(params: Any, *facts: object) -> str:
    """SHA-256 over the bytes themselves. Prompts are hashed so, and what files of version 0.1 name by their hash was."""
    digest = hashlib.sha256("".join(map(repr, facts)).encode())
    for leaf in pytree.tree_leaves(params):
        digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
        digest.update(_bytes(leaf.detach().cpu().contiguous()))
    return digest.hexdigest()


def content(tensor: Shaped[Tensor, "..."]) -> str:
    """XXH3-128 of a tensor's bytes, row by row, in hexadecimal digits; the same for every layout and device."""
    tensor = tensor.detach()
    if on_host(tensor) and tensor.is_contiguous():
        return str(xxhash.xxh3_128_hexdigest(_bytes(tensor)))
    key = _key(tensor)
    if key not in _known:
        _remember(key, str(xxhash.xxh3_128_hexdigest(_bytes(tensor.cpu().contiguous()))))
    return _known[key]


def moved(before: Any, after: Any) -> None:
    """Remember that `after` holds what `before` does, on another device, so that nothing is copied back to be hashed."""
    for old, new in zip(pytree.tree_leaves(before), pytree.tree_leaves(after), strict=True):
        if new.dtype == old.dtype and not on_host(new):
            _remember(_key(new.detach()), content(old))


def on_host(tensor: Tensor) -> bool:
    """Whether its memory can be read here."""
    return tensor.device.type == "cpu"


def _key(tensor: Tensor) -> tuple[object, ...]:
    """What tells contents apart without bringing them into order, or to the host."""
    order = sorted(range(tensor.ndim), key=lambda dim: -int(tensor.stride()[dim]))
    laid = tensor.permute(order)
    laid = (laid if laid.is_contiguous() else tensor.contiguous()).flatten()
    quick = xxhash.xxh3_128_digest(_bytes(laid)) if on_host(tensor) else sums(laid)
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.device.type, quick


def sums(flat: Shaped[Tensor, " n"]) -> bytes:
    """Two sums of all 32-bit words, modulo 2^64, each word times a number that is mixed from its place.

    Exact in any order, so the same on every device and at every call. Two contents that differ have the same
    sums by chance alone.
    """
    whole = flat.nbytes % 4 == 0 and (flat.storage_offset() * flat.itemsize) % 4 == 0
    words = flat.view(torch.int32 if whole else torch.uint8)
    found = []
    for first in range(0, len(words), PIECE):
        part = words[first : first + PIECE].to(torch.int64)
        place = torch.arange(first + 1, first + 1 + len(part), device=part.device)
        first_weight = _mixed(place)
        found.append(torch.stack([(part * weight).sum() for weight in (first_weight, _mixed(first_weight))]))
    return torch.stack(found).cpu().numpy().tobytes() if found else b""


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
