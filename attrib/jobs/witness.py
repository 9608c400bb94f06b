"""Whether a worker still computes with what it hashed when it began.

Its weights are its own copies, so that a file which somebody writes into while the job runs changes nothing. That is not taken on
trust: after each shard, before it is written, the files are looked at (size, times, inode), and where they changed the
weights in memory are hashed again. A worker that starts later reads the new files, and refuses them by name.
"""

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from attrib.core.fingerprints import Fingerprinted
from attrib.core.types import AttribError


class Overwritten(AttribError):  # noqa: N818
    """Weights that are no longer what was hashed when they were loaded. Nothing that is computed with them may be written."""


class Stamp(NamedTuple):
    """What of a file changes whenever it is written into, or put in place of another."""

    size: int
    modified: int
    changed: int
    """Nanoseconds; of the inode, which no program can set back."""
    inode: int


Stamps = dict[str, Stamp]


class Witness:
    """The weights of a worker and the files that they came from, as they were before they were read."""

    def __init__(self, places: Mapping[str, str | Path]) -> None:
        self._places = dict(places)
        self._seen = stamps(self._places)
        self.parts: dict[str, tuple[Fingerprinted, str]] = {}
        """Each model or dictionary by its name, and the hash that it had."""

    def check(self) -> None:
        """Raises Overwritten where weights changed in memory. They are hashed only where a file did."""
        now = stamps(self._places)
        if now == self._seen:
            return
        for name, (part, sha256) in self.parts.items():
            if not replace(part).matches(sha256):  # type: ignore[type-var]  # a new object remembers no hash
                raise Overwritten(
                    f"job: {name} was overwritten while the job ran, and the weights in memory with it; the shard that was being computed "
                    "is thrown away, and those before it are right. Put the old one back, or make a new job."
                )
        self._seen = now


def stamps(places: Mapping[str, str | Path]) -> Stamps:
    """A stamp of every file of these folders and files; links are followed, as reading does."""
    found = {}
    for place in places.values():
        for path in _files(Path(place)):
            try:
                now = os.stat(path)
            except OSError:
                continue  # a link to nothing, or just removed: that it is missing is a change as well
            found[str(path)] = Stamp(now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
    return found


def _files(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from (path for path in place.rglob("*") if not path.is_dir())
    else:
        yield from place.parent.glob(f"{glob.escape(place.name)}*")  # a layer of a folder goes by its name without the suffix
