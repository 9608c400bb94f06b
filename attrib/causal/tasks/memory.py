"""What memory goes to: the bytes of a model's and its dictionaries' parameters, and the most that each phase of a run took.

On a GPU the most is what torch had allocated there at once. Elsewhere it is the process's largest resident size, which Linux counts and
can be told to count anew; other systems do not say it by phase.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model

if TYPE_CHECKING:
    import pandas as pd

_PROCESS = Path("/proc/self")

BYTES = {"peak": "Int64", "growth": "Int64"}
"""Types of the columns that may hold nothing."""


@takes(model=as_model, dictionaries=as_dictionaries)
def parameter_memory(model: Model, dictionaries: Sequence[Dictionary] = ()) -> "pd.DataFrame":
    """Bytes of parameters by object: name, object, device, dtype, parameters and bytes; memory that is shared counts once."""
    import pandas as pd

    held: set[tuple[str, int, int]] = set()
    rows: list[dict[str, Any]] = []
    every: list[tuple[str, Any]] = [("model", model), *(("dictionary", dictionary) for dictionary in dictionaries)]
    for kind, one in every:
        tensors = [each for each in pytree.tree_leaves(one.params) if each.numel() and _is_new(each, held)]
        device = str(tensors[0].device) if tensors else "cpu"
        dtypes = ", ".join(sorted({str(each.dtype).removeprefix("torch.") for each in tensors}))
        count, size = sum(each.numel() for each in tensors), sum(each.numel() * each.itemsize for each in tensors)
        rows.append({"name": one.name, "object": kind, "device": device, "dtype": dtypes, "parameters": count, "bytes": size})
    return pd.DataFrame(rows)


def _is_new(tensor: Tensor, held: set[tuple[str, int, int]]) -> bool:
    """Whether no tensor before it has its memory; a tied table is the same seen another way."""
    place = (str(tensor.device), tensor.data_ptr(), tensor.numel())
    is_new = place not in held
    held.add(place)
    return is_new


class Phases:
    """The most memory that each phase of a run took, over all its blocks. It measures nothing where `on` is false."""

    def __init__(self, device: torch.device, on: bool) -> None:
        self.device, self.on = device, on
        self.peak: dict[str, int | None] = {}
        """Bytes; None where the system does not say."""
        self.growth: dict[str, int | None] = {}
        """Of these, the most that were not there when the phase began."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is taken from here to the end of the block towards a phase."""
        if not self.on:
            yield
            return
        self._begin()
        start = self._most()
        yield
        most = self._most()
        for found, now in ((self.peak, most), (self.growth, None if most is None or start is None else most - start)):
            found[name] = now if found.get(name) is None or now is None else max(now, found[name] or 0)

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each phase: phase, device, peak in bytes, and growth, the most of them that a block had not when it began."""
        import pandas as pd

        columns = {"phase": [*self.peak], "device": [str(self.device)] * len(self.peak)}
        return pd.DataFrame(columns | {"peak": [*self.peak.values()], "growth": [*self.growth.values()]}).astype(BYTES)

    def _begin(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif (clear := _PROCESS / "clear_refs").exists():
            clear.write_text("5")  # the largest resident size is then what there is now

    def _most(self) -> int | None:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        status = _PROCESS / "status"
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
        return None if found is None else int(found[1]) << 10
