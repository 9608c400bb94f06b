"""Weights that can be trusted: numbers that are numbers, of a file that is still what it was when it was opened."""

from collections.abc import Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from attrib.core.types import AttribError, FormatError, InputError


class OpenedFile(NamedTuple):
    """A file as it was when it was opened. What is mapped of it is what was hashed only as long as nobody writes into it."""

    path: Path
    inode: int
    size: int
    written: int

    @classmethod
    def of(cls, path: Path) -> "OpenedFile":
        """The file now."""
        now = path.stat()
        return cls(path, now.st_ino, now.st_size, now.st_mtime_ns)

    def check(self) -> None:
        """Raises FormatError where the file was written into. One that was put in its place leaves the old one mapped, and whole."""
        try:
            now = OpenedFile.of(self.path)
        except FileNotFoundError:
            return
        if now.inode == self.inode and now != self:
            raise FormatError(
                f"dictionary: {self.path} was written into while it was in use, so what is read of it is not what was opened. "
                "Load it again; to change such a file, write another one and move it into its place."
            )


def check_finite(tensors: Mapping[str, Tensor], what: str, error: type[AttribError] = InputError) -> None:
    """Raises an error that names the first number that is none, or has no end: no latent could be trusted beside it.

    A threshold may be infinite: its latent never passes, or always.
    """
    for key, tensor in tensors.items():
        if not tensor.numel() or not (wrong := _not_finite(key, tensor)):
            continue
        bad = tensor.isnan() if key == "threshold" else ~tensor.isfinite()
        at = bad.nonzero()[0].tolist()
        raise error(
            f"{key}: {wrong} at {at} in dictionary {what}; expected finite numbers, which {int(bad.sum())} of {tensor.numel()} are "
            "not: the file or the training that it comes from is broken, or its numbers are too large for their dtype."
        )


def _not_finite(key: str, tensor: Tensor) -> float | None:
    """Some number that may not be there. One pass, and no memory: what lies transposed is read as it lies."""
    lying = tensor.T if tensor.ndim == 2 and tensor.stride(0) == 1 else tensor
    least, most = (float(bound) for bound in torch.aminmax(lying.detach()))
    wrong = [bound for bound in (least, most) if not isfinite(bound) and (key != "threshold" or isnan(bound))]
    return wrong[0] if wrong else None
