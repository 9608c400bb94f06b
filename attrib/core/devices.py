"""Devices and dtypes as users give them, by name or as torch's own, and held against what there is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from attrib.core.types import InputError

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What parameters may be in."""


def check_device(given: torch.device | str | int) -> torch.device:
    """A device that this machine has and attrib computes on. Raises InputError for any other."""
    try:
        if isinstance(given, bool):
            raise TypeError
        device = torch.device(given)
    except (RuntimeError, TypeError):
        raise InputError(f"device: {given!r} is not a device; expected cpu, cuda or cuda:N.") from None
    match device.type:
        case "cpu" if not device.index:
            return torch.device("cpu")
        case "cpu":
            raise InputError(f"device: {str(given)!r}; there is one cpu, without a number.")
        case "cuda" if torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count():
            return device
        case "cuda":
            raise InputError(f"device: {str(given)!r} is not on this machine, which has {torch.cuda.device_count()} CUDA devices.")
    raise InputError(f"device: {str(given)!r}; attrib computes on cpu, cuda or cuda:N.")


Devices = torch.device | str | int | Sequence[torch.device | str | int]
"""One device, or several that share the work; "all" are those of the machine, and "cuda:0,cuda:1" are two."""


def check_devices(given: Devices) -> tuple[torch.device, ...]:
    """The devices that are meant, in their order. Raises InputError for none, for one twice, and for several that are not GPUs."""
    named: list[Any] = list(given.split(",")) if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else [given]
    if named == ["all"]:
        if not (found := every_device()):
            raise InputError("device: 'all', and this machine has no CUDA device; expected cpu.")
        return found
    if "all" in named:
        raise InputError(f"device: {given!r}; 'all' stands alone.")
    if not named:
        raise InputError("device: none; expected one, a list of them, or 'all'.")
    devices = [check_device(one.strip() if isinstance(one, str) else one) for one in named]
    if len(devices) == 1:
        return tuple(devices)
    devices = [torch.device(one.type, one.index or 0) for one in devices]
    if twice := [one for number, one in enumerate(devices) if one in devices[:number]]:
        raise InputError(f"device: {twice[0]} is named twice; expected each device once.")
    if strange := [one for one in devices if one.type == "cpu"]:
        raise InputError(f"device: {strange[0].type} beside others; expected several CUDA devices, or cpu alone.")
    return tuple(devices)


def every_device() -> tuple[torch.device, ...]:
    """Every CUDA device of this machine."""
    return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))


def backend(device: torch.device) -> Any:
    """What torch knows of a kind of device: torch.cuda of a GPU. It is asked for what not every kind has; None where there is nothing."""
    return getattr(torch, device.type, None)


def entering(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """How another thread comes to compute on a device, behind what this one has asked of it: on the stream that is current here."""
    return partial(torch.cuda.stream, torch.cuda.current_stream(device)) if device.type == "cuda" else nullcontext


def check_dtype(given: torch.dtype | str) -> torch.dtype:
    """A floating dtype, by torch's name for it or as torch has it. Raises InputError for any other."""
    named = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    found = named.get(str(given).removeprefix("torch."))
    if found is None:
        raise InputError(f"dtype: {given!r}; expected one of {', '.join(named)}.")
    return found


def to_device(numbers: Sequence[Any], device: torch.device) -> Int[Tensor, "*_"]:
    """Whole numbers of the host, in lists of one length, on a device; behind which the host need not wait, as it does for torch.tensor."""
    brought = _BROUGHT.get()
    return _to_device(numbers, device) if brought is None else brought.of(numbers, device)


def _to_device(numbers: Sequence[Any], device: torch.device) -> Int[Tensor, "*_"]:
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


class Brought:
    """Whole numbers that have been brought to a device, and are there when the same are asked for again.

    Work that a device captures (engine/replay.py) cannot bring any: it would read the host's memory again each time that it is replayed.
    """

    def __init__(self) -> None:
        self.is_complete = False
        """Whether there will be no others: those that are not there are an error."""
        self._there = dict[tuple[torch.device, tuple[Any, ...]], Tensor]()

    def of(self, numbers: Sequence[Any], device: torch.device) -> Int[Tensor, "*_"]:
        """What `to_device` gives. It is shared, and must not be written to. Raises RuntimeError for others where none are to come."""
        key = device, tuple(tuple(each) if isinstance(each, list | tuple) else each for each in numbers)
        found = self._there.get(key)
        if found is None:
            if self.is_complete:
                raise RuntimeError("numbers of the host that were not asked for before")
            found = self._there[key] = _to_device(numbers, device)
        return found

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Have `to_device` ask here, in this thread."""
        token = _BROUGHT.set(self)
        try:
            yield
        finally:
            _BROUGHT.reset(token)


_BROUGHT: ContextVar[Brought | None] = ContextVar("brought", default=None)


class Copies:
    """Tensors of a device of which copies are on the host already."""

    def __init__(self, there: Sequence[Tensor] = (), here: Sequence[Tensor] = ()) -> None:
        self.known = {id(tensor): (tensor, copy) for tensor, copy in zip(there, here, strict=True)}

    def __or__(self, others: "Copies") -> "Copies":
        both = Copies()
        both.known = self.known | others.known
        return both

    def of(self, tensors: Sequence[Shaped[Tensor, "*_"]]) -> list[Tensor]:
        """The same tensors on the host: those that are, as they are; others come in one copy, as `to_host` brings them."""
        come = iter(to_host([tensor for tensor in tensors if id(tensor) not in self.known]))
        return [self.known[id(tensor)][1] if id(tensor) in self.known else next(come) for tensor in tensors]


def to_host(tensors: Sequence[Shaped[Tensor, "*_"]]) -> list[Tensor]:
    """The same tensors on the host. What lies on one device comes in one copy, for which alone the host waits."""
    found = list(tensors)
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        own = [n for n, tensor in enumerate(tensors) if tensor.device == device]
        there, apart = in_one([tensors[n] for n in own])
        for n, part in zip(own, apart(there.cpu()), strict=True):
            found[n] = part
    return found


def in_one(tensors: Sequence[Shaped[Tensor, "*_"]]) -> tuple[UInt8[Tensor, " bytes"], Callable[[Tensor], list[Tensor]]]:
    """The bytes of a device's tensors in one, for one copy; and what gives them apart again, as views of that."""
    # wide numbers first, so that each begins at a multiple of its size
    order = sorted(range(len(tensors)), key=lambda n: -tensors[n].itemsize)
    # a single number counts as contiguous whatever its stride, and only numbers with a stride of 1 are bytes in a row
    sent = [tensors[n].contiguous().as_strided((tensors[n].numel(),), (1,)).view(torch.uint8) for n in order]
    sizes, kinds = [len(part) for part in sent], [(n, tensors[n].dtype, tensors[n].shape) for n in order]

    def apart(come: Tensor) -> list[Tensor]:
        parts = zip(kinds, come.split(sizes), strict=True)
        by_number = {n: part.view(dtype).view(shape) for (n, dtype, shape), part in parts}
        return [by_number[n] for n in range(len(kinds))]

    return torch.cat(sent), apart
