"""Compressed chunks, unpacked to the size that their column declares and to no other.

A filter of HDF5's makes whatever its input says: a chunk of a few kilobytes may become gigabytes before HDF5 looks at its length, or
fall short, and then the rest is whatever lay in memory. So no filter sees a chunk of which it is not known what it becomes. Deflate is
unpacked here, by zlib, which stops where it is told to: that costs no more than HDF5 does. What zstd and blosc will make stands at
the head of a chunk. Of lzf only all its runs together tell, and going through them takes twice as long as unpacking them does.
"""

import zlib

import h5py
import numpy as np

from attrib.store.layout import Codec


class Packed:
    """The compressed chunks of a column, of which rows are read. The column's type, length, filters and storage were checked."""

    def __init__(self, data: h5py.Dataset, codec: Codec, shuffled: bool) -> None:
        self._data, self._codec, self._shuffled = data, codec, shuffled
        self._length: int = data.chunks[0]
        self._size = self._length * data.dtype.itemsize
        self._last = -1, np.empty(0, data.dtype)
        self._sound: set[int] = set()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """These rows. Raises ValueError where a chunk does not unpack to what the column declares."""
        numbers = range(start // self._length, -(-stop // self._length)) if start < stop else range(0)
        if self._codec is not Codec.DEFLATE:
            for number in numbers:
                self._check(number)
            return self._data[start:stop]
        parts = [self._inflated(n)[max(0, start - n * self._length) : stop - n * self._length] for n in numbers]
        return np.concatenate([np.empty(0, self._data.dtype), *parts])

    def _inflated(self, number: int) -> np.ndarray:
        """The rows of a chunk of deflate; the last one is kept, since prompts that follow one another share it."""
        last, rows = self._last
        if last != number:
            raw, is_packed = self._raw(number)
            rows = self._unshuffled(_inflate(number, raw, self._size) if is_packed else raw)
            self._last = number, rows
        return rows

    def _check(self, number: int) -> None:
        """That HDF5 may unpack a chunk."""
        if number in self._sound:
            return
        raw, is_packed = self._raw(number)
        if is_packed and (becomes := _LENGTHS[self._codec](raw)) != self._size:
            raise ValueError(f"its chunk {number} unpacks to {_bytes(becomes)}, where {self._size} are declared")
        self._sound.add(number)

    def _raw(self, number: int) -> tuple[bytes, bool]:
        """A chunk as it is stored, and whether it is compressed: what that would make larger is left as it is."""
        mask, raw = self._data.id.read_direct_chunk((number * self._length,))
        compression = 2 if self._shuffled else 1
        if mask not in (0, compression) or (mask and len(raw) != self._size):
            raise ValueError(f"its chunk {number} of {len(raw)} bytes, where {self._size} are declared, leaves out some of its filters")
        return raw, not mask

    def _unshuffled(self, raw: bytes) -> np.ndarray:
        """Bytes that lie first byte of every number first, as numbers."""
        if not self._shuffled:
            return np.frombuffer(raw, self._data.dtype)
        planes = np.frombuffer(raw, np.uint8).reshape(-1, self._length)
        rows = np.empty((self._length, len(planes)), np.uint8)
        for place, plane in enumerate(planes):
            rows[:, place] = plane
        return rows.reshape(-1).view(self._data.dtype)


def _inflate(number: int, raw: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        whole = stream.decompress(raw, size + 1)  # one more, so that the checksum at its end is read
    except zlib.error as error:
        raise ValueError(f"its chunk {number} is not deflate ({error})") from error
    if len(whole) != size or not stream.eof or stream.unused_data:
        becomes = f"more than {size}" if len(whole) > size else len(whole)
        raise ValueError(f"its chunk {number} unpacks to {becomes} bytes, where {size} are declared")
    return whole


def _bytes(number: int | None) -> str:
    return "no number of bytes" if number is None else f"{number} bytes"


# control bytes of lzf: a run of up to 32 bytes as they are, or one of up to 264 that came before, whose length may have a byte of its own
_STEP = bytes([*range(2, 34)] + [2] * 192 + [3] * 32)
_BECOMES = bytes([*range(1, 33)] + [(control >> 5) + 2 for control in range(32, 224)] + [9] * 32)


def _length_of_lzf(raw: bytes) -> int | None:
    """All runs together; None for what ends within one."""
    at, length, end = 0, 0, len(raw) - 1
    step, becomes = _STEP, _BECOMES
    while at < end:
        control = raw[at]
        if control >= 224:
            length += raw[at + 1]
        length += becomes[control]
        at += step[control]
    return length if at == end + 1 else None


def _length_of_blosc(raw: bytes) -> int | None:
    """What the chunk's head says that it becomes, if it is all there is; see README_CHUNK_FORMAT of c-blosc."""
    whole, stored = int.from_bytes(raw[4:8], "little"), int.from_bytes(raw[12:16], "little")
    return whole if stored == len(raw) else None


def _length_of_zstd(raw: bytes) -> int | None:
    """What the frame's header says that it becomes, where it does; RFC 8878, section 3.1.1.1."""
    if len(raw) < 5 or raw[:4] != b"\x28\xb5\x2f\xfd":
        return None
    is_single = raw[4] >> 5 & 1
    width = (is_single, 2, 4, 8)[raw[4] >> 6]
    at = 5 + (1 - is_single) + (0, 1, 2, 4)[raw[4] & 3]
    return int.from_bytes(raw[at : at + width], "little") + 256 * (width == 2) if width else None


_LENGTHS = {Codec.LZF: _length_of_lzf, Codec.BLOSC: _length_of_blosc, Codec.ZSTD: _length_of_zstd}
"""How many bytes a chunk becomes, or None where it does not say."""
