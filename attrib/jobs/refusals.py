"""Prompts that are none, written down: each of the first of a kind with its reason, and of the rest how many.

A source of a few kilobytes may hold millions of lines that are no prompt, and a line about each would fill the disk.
"""

import json
import re
from dataclasses import dataclass
from typing import TextIO

EACH = 1000
"""Prompts of a kind that are written down one by one."""
KINDS, OTHERS = 64, "for other reasons"
"""Kinds that are told apart, and what the others are counted as."""
LONGEST_REASON = 400
"""Characters. A reason may repeat what a file says."""

_KIND = re.compile(r"[^\d\"'\[{(]*")
"""What reasons of a kind begin with: all that stands before the first figure, quotation or bracket."""


@dataclass
class _Rest:
    """Prompts of a kind beyond the first EACH."""

    count: int = 0
    more: int = 0
    number: int = 0
    where: str = ""
    last: str = ""
    reason: str = ""


class Refusals:
    """A listing that is being written. `close` puts down how many more there were of each kind."""

    def __init__(self, file: TextIO) -> None:
        self.count = 0
        self._file, self._kinds = file, dict[str, _Rest]()

    def add(self, number: int, where: str, reason: str) -> None:
        """Put down a prompt that is none."""
        self.count += 1
        reason = reason if len(reason) <= LONGEST_REASON else reason[: LONGEST_REASON - 3] + "..."
        found = _KIND.match(reason)
        kind = found[0] if found else ""
        rest = self._kinds.setdefault(kind if kind in self._kinds or len(self._kinds) < KINDS else OTHERS, _Rest())
        rest.count += 1
        if rest.count <= EACH:
            self._write(number, where, reason)
            return
        if not rest.more:
            rest.number, rest.where, rest.reason = number, where, reason
        rest.more, rest.last = rest.more + 1, where

    def close(self) -> None:
        """Put down the rest of each kind, in a line: the first of them, how many they are, and where the last is."""
        for kind, rest in self._kinds.items():
            if rest.more > 1:
                alike = kind if kind == OTHERS else "for reasons like this"
                self._write(rest.number, rest.where, f"{rest.reason}; so are {rest.more - 1:,} more left out {alike}, up to {rest.last}")
            elif rest.more:
                self._write(rest.number, rest.where, rest.reason)

    def _write(self, number: int, where: str, reason: str) -> None:
        self._file.write(json.dumps({"number": number, "where": where, "reason": reason}) + "\n")
