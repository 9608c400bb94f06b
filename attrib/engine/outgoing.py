"""Results on their way to the host: their copies are begun where they are made, and waited for once other work has been asked for.

A copy that is waited for has the device idle from then on, until the host has put the result away and asked for the next sweep. So a
result goes on a stream of its own, behind the sweep that made it and beside the next one, into memory that is pinned, which alone a
device reaches without the host. The host asks for the next sweep meanwhile. Results are taken in the order in which they were sent.

What lies in between is bounded by what a plan leaves of its budget, on the device and on the host. A result that is larger is waited
for, as all are where nothing is left. On a CPU nothing is on its way: a result is taken as it is sent.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from attrib.core.devices import backend, in_one, to_host

MOST = 1 << 26
"""Bytes that are on their way at once at most, however much is left: pinned memory stays with torch, which keeps it for the next ones, and
other programs cannot have it. A PCIe link takes 3 ms for as many (at 25 GB/s)."""

Take = Callable[[list[Tensor]], None]
"""Puts a result away. The tensors lie in memory that the next results get, so that what stays of them is copied."""


class _Sent(NamedTuple):
    """A result whose copy has been begun."""

    here: UInt8[Tensor, " bytes"]
    """Where it will be. Nothing may be read of it before the copy is done."""
    done: Any
    """The event that comes behind the copy."""
    apart: Callable[[Tensor], list[Tensor]]
    take: Take


class Outgoing:
    """Results of one call that are on their way. Whoever sends the last of them finishes.

    Let go of in the middle of it, as by an error, it leaves nothing behind: torch gives neither the pinned memory nor the device's to
    others while a copy goes on.
    """

    def __init__(self, room: int = 0) -> None:
        """None yet.

        Args:
            room: bytes that they may take, on a device and on the host; of less than the next one needs, it is waited for.
        """
        self.room, self.size = min(room, MOST), 0
        """Bytes: how many there may be, and how many there are."""
        self._sent, self._streams = deque[_Sent](), dict[torch.device, Any]()

    def send(self, tensors: Sequence[Shaped[Tensor, "*_"]], take: Take) -> None:
        """Have `take` called with the same tensors on the host, now or later, after all that were sent before.

        Args:
            tensors: of one device.
        """
        (device,) = {tensor.device for tensor in tensors}
        size = sum(tensor.nbytes for tensor in tensors)
        if device.type == "cpu" or size > self.room:
            self.finish()
            take(to_host(tensors))
            return
        while self.size + size > self.room:
            self._take()
        there, apart = in_one(tensors)
        self._sent.append(_Sent(*self._begun(there, device), apart, take))
        self.size += size
        while self._sent and self._sent[0].done.query():
            self._take()

    def finish(self) -> None:
        """Take all that are on their way."""
        while self._sent:
            self._take()

    def _begun(self, there: UInt8[Tensor, " bytes"], device: torch.device) -> tuple[UInt8[Tensor, " bytes"], Any]:
        """Where bytes of a device will be on the host, and the event behind their copy."""
        module = backend(device)
        if device not in self._streams:
            self._streams[device] = module.Stream(device)
        stream, here = self._streams[device], torch.empty(len(there), dtype=torch.uint8, pin_memory=True)
        stream.wait_stream(module.current_stream(device))  # which has been asked for the bytes, and may not have them yet
        there.record_stream(stream)  # which reads them after all that know of them have let go
        with module.stream(stream):
            here.copy_(there, non_blocking=True)
        return here, stream.record_event()

    def _take(self) -> None:
        """Take the first, once it has come."""
        sent = self._sent.popleft()
        self.size -= len(sent.here)
        sent.done.synchronize()
        sent.take(sent.apart(sent.here))
