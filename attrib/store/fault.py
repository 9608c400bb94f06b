"""What is wrong with a file, as one line."""

from pathlib import Path
from typing import NamedTuple

from attrib.core.types import AttribError


class Fault(NamedTuple):
    """Something in a file that cannot be, or that two of its parts tell differently."""

    file: Path
    where: str
    """The dataset or group; empty for the file as a whole."""
    what: str
    prompt: int | None = None
    """The number of the prompt in its data set."""
    row: int | None = None
    """The row of the dataset."""
    more: int = 0
    """How many further rows have the same fault."""

    @classmethod
    def of_error(cls, file: Path, error: AttribError, where: str = "", prompt: int | None = None) -> "Fault":
        """What a reader raised at a file."""
        return cls(file, where, str(error).removeprefix(f"{file}: ").removeprefix("damaged: "), prompt)

    def __str__(self) -> str:
        places = [f"{name} {number}" for name, number in (("prompt", self.prompt), ("row", self.row)) if number is not None]
        at = "".join(f"{part}: " for part in (self.where, ", ".join(places)) if part)
        return f"{self.file}: {at}{self.what}{f'; and {self.more:,} more rows like it' if self.more else ''}"
