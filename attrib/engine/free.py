"""The memory that a call works in where none is named, and where it computes has memory of its own."""

from collections.abc import Sequence

import torch

from attrib.core.devices import backend

SHARE = 2
"""One part in so many of what a device has free: the rest is for what torch's allocator loses between blocks, and for other programs."""


def free_budget(devices: Sequence[torch.device]) -> int | None:
    """Bytes for each of the devices of a call: half of what the fullest of them has free; None for a CPU.

    It is rounded down to a quarter of a power of two, so that two calls on one machine plan the same though not quite as much is free.
    """
    found = [free for device in devices if (free := _free(device)) is not None]
    return _rounded(min(found) // SHARE) if found else None


def _free(device: torch.device) -> int | None:
    module = backend(device)
    if not hasattr(module, "mem_get_info"):
        return None
    kept = module.memory_reserved(device) - module.memory_allocated(device)  # by torch, for whoever asks it next
    return int(module.mem_get_info(device)[0] + kept)


def _rounded(size: int) -> int:
    step = 1 << max(0, size.bit_length() - 3)
    return size // step * step
