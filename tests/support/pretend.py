"""A device that is not there: tensors that say they are on it, and behave as on CUDA where that differs from a CPU.

    with pretending() as device:
        model, source, target = (each.to(device=NAME) for each in (model, source, target))
        device.begin()
        attrib.latent_to_latent(model, source, target, tokens)
    print(device.counts.table())

A tensor there (`There`) wraps one of the host, and every operation of torch comes by here (a TorchDispatchMode), below autograd and
torch.func's transforms. What CUDA refuses is refused: operands of which some are on the host. It is stricter in one thing: CUDA takes
indices from the host for a tensor of its own and copies them without a word, at every call; here they are refused too.

What is counted, by the line of attrib that asked:

launches    operations that compute. Views and memory without values are none; sorting or `nonzero` are one, and several kernels on CUDA
waits       moments at which the host stops until the device has done all that it was given: it needs a number (`item`, `tolist`,
            `bool`), or a size that hangs on values (`nonzero`, masks as indices, `unique`), or it copies without `non_blocking=True`,
            in either direction, or to memory that is not pinned
events      moments at which it stops until one copy is done that goes on beside
copies      to the device, and to the host, with their bytes
bytes       that launches read and write: what is changed in place is both; of a tensor that is indexed only what is picked or written there
FLOPs       of products, by torch's own formulas

The memory that is held is counted too, by storage. `limit` is how much there is: beyond it torch.OutOfMemoryError, as CUDA says it.

There can be several (`pretending(count=2)`): "pretend:0" and "pretend:1" are no more to be mixed than either with the host, `limit` is of
each, and `launched` says how much each was asked for. Threads that attrib starts for a device see it too.

Streams, events and pinned memory are there (`Stream`). A copy to pinned memory is done when the host has waited for it, and no sooner,
unless `comes_after` says so; until then the memory holds no number. Faults that show on CUDA now and then are errors here, each time
(`RaceError`): memory is read on the host, or kept from a copy, before the copy is done; a stream reads what another has been asked for
and may not have made yet; memory that another stream reads is let go of without `record_stream`. What that holds counts as held.

Sweeps can be captured and replayed (`Graph`): what a capture would refuse is refused, nothing that is captured is done before it is
replayed, and a replay is one launch.

Not told: memory that is written again while a copy reads it, cuBLAS's rounding, kernels of Triton, and what an allocator loses between
blocks.
"""

import sys
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

NAME, HOST = "pretend", torch.device("cpu")
NAMED = "NVIDIA H200"
"""What it says that it is: plans weigh products against what asking this one costs."""
ROOT = str(Path(__file__).parents[2]) + "/"
WATCHED = ("attrib/", "kernels/attrib_kernels/")
"""Whose lines are counted."""

WITHOUT_VALUES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_efficientzerotensor",
                  "_unsafe_view", "_local_scalar_dense"}  # fmt: skip
"""Operations that launch nothing; views launch nothing either."""
NEEDS_SIZE = {"nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive", "equal", "isin", "histc",
              "_local_scalar_dense"}  # fmt: skip
"""Operations whose answer, or its size, the host waits for."""
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
ONLY_WRITE = {"copy_", "fill_", "zero_"}
"""What was there before is not read."""
MOVED_OF_ROWS = {"index_select": 2, "gather": 2, "index_copy_": 2, "index_add_": 3}
"""How often the rows that are picked, or given, are read or written; of the indexed tensor no others are."""
TAKES_A_NUMBER = {"fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_", "index_put", "index_put_", "copy_", "fill"}
"""Operations beside the pointwise ones that take a number of the host, as a tensor without dimensions."""


class MixedDevicesError(RuntimeError):
    """Operands on two devices."""


class RaceError(RuntimeError):
    """What is read may not be there yet, or no longer."""


@dataclass
class Count:
    """What one line asked for."""

    launches: int = 0
    waits: int = 0
    events: int = 0
    to_device: int = 0
    to_host: int = 0
    copied: int = 0
    """Bytes, in both directions."""
    bytes: int = 0
    flops: int = 0

    def __iadd__(self, other: "Count") -> "Count":
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


class Counts:
    """Counts by line: "attrib/engine/tiles.py:36 task_of"."""

    def __init__(self) -> None:
        self.lines: dict[str, Count] = defaultdict(Count)
        self.peak = 0
        """Bytes held at the fullest moment."""

    @property
    def total(self) -> Count:
        """All lines together."""
        total = Count()
        for count in self.lines.values():
            total += count
        return total

    def of_files(self) -> dict[str, Count]:
        """The same by file."""
        found: dict[str, Count] = defaultdict(Count)
        for line, count in self.lines.items():
            found[line.partition(":")[0]] += count
        return found

    def table(
        self,
        most: int = 20,
        by: Callable[[Count], float] = lambda count: count.launches + 2 * count.waits,
        seconds: Callable[[Count], float] | None = None,
    ) -> str:
        """The lines that ask for most, and all together.

        Args:
            by: what lines are ordered by, most first.
            seconds: how long a line takes, for a column of milliseconds; all together take the sum.
        """
        rows = sorted(self.lines.items(), key=lambda item: -by(item[1]))[:most]
        times = [] if seconds is None else [*(seconds(count) for _, count in rows), sum(map(seconds, self.lines.values()))]
        last = ["       ms", *(f" {1e3 * time:>8.3f}" for time in times)] if times else [""] * (len(rows) + 2)
        written = [f"{'launches':>9} {'waits':>6} {'events':>6} {'to dev':>6} {'to host':>7} {'MFLOP':>10} {'MB':>8}{last[0]}  line"]
        for (line, count), time in zip([*rows, ("all", self.total)], last[1:], strict=True):
            written.append(
                f"{count.launches:>9} {count.waits:>6} {count.events:>6} {count.to_device:>6} {count.to_host:>7} "
                f"{count.flops / 1e6:>10.1f} {count.bytes / 1e6:>8.1f}{time}  {line}"
            )
        return "\n".join(written)


class _Held:
    """The memory of one storage, which all its views hold."""

    def __init__(self, device: "Device", size: int, index: int) -> None:
        self.device, self.size, self.index = device, size, index
        self.made: tuple[Stream, int] | None = None
        """The stream that was asked for what is in it last, and as its which request."""
        self.read_by = set[Stream]()
        """Streams that it is held for as well."""
        device.held += size
        device.held_on[index] += size

    def __del__(self) -> None:
        copies = self.device.copies_from(self)
        for copy in copies:
            copy.is_lost, copy.memory = copy.stream not in self.read_by, 0
        if copies:  # the allocator gives the memory to others once the last is done
            copies[-1].holds.append((self.size, self.index))
        else:
            self.device.let_go(self.size, self.index)


class Stream:
    """Work that a device does in order; of several beside each other it does either first."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.index = torch.device(NAME if device is None else device).index or 0
        self.device, self.asked = _STANDING[-1], 0
        """And how much it has been asked for."""
        self.known = dict[Stream, int]()
        """Of other streams, up to which request it waits for them."""
        self.copies = deque[_Copy]()
        self.device.all_streams.append(self)

    def wait_stream(self, other: "Stream") -> None:
        """What is asked from here on comes behind all that the other has been asked for."""
        for stream, asked in (*other.known.items(), (other, other.asked)):
            self.known[stream] = max(asked, self.known.get(stream, 0))

    def record_event(self) -> "Event":
        """What is done when all is that was asked for so far."""
        return Event(self)

    def require(self, memory: _Held) -> None:
        """Raises RaceError where it would read what another may not have made yet."""
        if memory.made is not None and memory.made[0] is not self and memory.made[1] > self.known.get(memory.made[0], 0):
            raise RaceError(f"{_line()}: a stream reads what another may not have made yet; expected wait_stream.")

    def do(self, upto: int) -> None:
        """Have its copies done."""
        while self.copies and self.copies[0].number <= upto:
            self.copies.popleft().do()


class Event:
    """A place in a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.number, self.since = stream, stream.asked, sum(stream.device.launched.values())

    def query(self) -> bool:
        """Whether the stream has come there."""
        device = self.stream.device
        with device.lock:
            if device.comes_after is not None and sum(device.launched.values()) - self.since >= device.comes_after:
                self.stream.do(self.number)
            return not self.stream.copies or self.stream.copies[0].number > self.number

    def synchronize(self) -> None:
        """Wait for it."""
        device = self.stream.device
        with device.lock:
            if not self.query():
                device.counts.lines[_line()].events += 1
                device.waited.append(sum(device.launched.values()))
            self.stream.do(self.number)


class _Copy:
    """A copy to pinned memory that is not done."""

    def __init__(self, into: Tensor, of: Tensor, memory: _Held, stream: Stream) -> None:
        self.into, self.of, self.stream, self.number = into, of, stream, stream.asked
        self.memory = id(memory)
        """0 once it has been let go of."""
        self.is_lost, self.holds = False, list[tuple[int, int]]()
        into.view(torch.uint8).fill_(255)  # no number in any type, and no index
        stream.copies.append(self)

    def do(self) -> None:
        for size, index in self.holds:
            self.stream.device.let_go(size, index)
        if self.is_lost:
            raise RaceError("memory was let go of while a copy on another stream was to read it; expected record_stream.")
        self.into.copy_(self.of)


@dataclass
class _Done:
    """An operation that was captured."""

    func: Any
    args: Any
    kwargs: Any
    made: list[tuple[int, Tensor]]
    """Of what it gives, the tensors in memory of their own, by their number."""


class Graph:
    """Operations that were captured, to be replayed: a CUDAGraph."""

    def __init__(self) -> None:
        self.done, self.reads, self.bytes, self.flops = list[_Done](), dict[int, _Held](), 0, 0
        self.writes = list[ref[_Held]]()
        self.held: _Held | None = None
        """Memory that is its own, as long as it lives."""

    def replay(self) -> None:
        """Do them again, where they were: one launch."""
        device = _STANDING[-1]
        with device.lock, no_dispatch():
            assert self.held is not None, "nothing was captured"
            count, stream = device.counts.lines[_line()], device.stream_of(self.held.index)
            count.launches, count.bytes, count.flops = count.launches + 1, count.bytes + self.bytes, count.flops + self.flops
            device.launched[self.held.index] += 1
            stream.asked += 1
            for memory in self.reads.values():
                stream.require(memory)
            for written in self.writes:
                if (memory := written()) is not None:
                    memory.made = stream, stream.asked
            for each in self.done:
                found = each.func(*each.args, **each.kwargs)
                parts = found if type(found) in (list, tuple) else [found]
                for number, into in each.made:
                    into.copy_(parts[number])


class _Capture:
    """What is captured while it lasts. On CUDA none of it is done: memory that was there before is as it was afterwards, and what was
    made holds no number until it is replayed."""

    def __init__(self, device: "Device", graph: Graph, stream: Stream) -> None:
        self.device, self.graph, self.stream, self.own = device, graph, stream, dict[int, Tensor]()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.start, self.peak = device.held, 0

    def refuse(self, what: str) -> None:
        """Raise what CUDA raises where the host would wait."""
        raise RuntimeError(f"{_line()}: CUDA error: operation not permitted when stream is capturing ({what})")

    def keep(self, written: "Iterable[There]") -> None:
        """Remember what stands in memory that was there before, and is written to."""
        if self.device.is_left_out is not None:
            return
        for each in written:
            self.graph.writes.append(ref(each.memory))
            storage = each.here.untyped_storage()
            if storage._cdata not in self.own and storage._cdata not in self.before:
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                self.before[storage._cdata] = whole, whole.clone()

    def add(self, func: Any, args: Any, kwargs: Any, out: Any, there: list["There"], flops: int, size: int) -> None:
        """An operation that was done."""
        self.graph.bytes, self.graph.flops = self.graph.bytes + size, self.graph.flops + flops
        if self.device.is_left_out is not None:
            return  # nothing is done again
        given = {_here(each).untyped_storage()._cdata for each in there}
        for each in there:
            if each.here.untyped_storage()._cdata not in self.own:
                self.graph.reads[id(each.memory)] = each.memory
        made = []
        for number, each in enumerate(out if type(out) in (list, tuple) else [out]):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in given:
                self.own[each.untyped_storage()._cdata] = each
                made.append((number, each))
        self.graph.done.append(_Done(func, args, kwargs, made))

    def end(self) -> None:
        """Leave memory as a capture leaves it."""
        for whole, values in self.before.values():
            whole.copy_(values)
        for each in self.own.values():
            torch.empty(0, dtype=torch.uint8).set_(each.untyped_storage()).fill_(255)
        left = [memory for at in self.own if (memory := self.device.storages.get(at)) is not None]
        for memory in left:  # which the graph holds from here on, with all else that it took
            self.device.let_go(memory.size, memory.index)
            memory.size = 0
        self.graph.writes += [ref(memory) for memory in left]
        self.graph.held = _Held(self.device, self.peak, self.stream.index)


class There(torch.Tensor):
    """A tensor on the device, which wraps one of the host."""

    here: Tensor
    memory: _Held
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor, memory: _Held) -> "There":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(NAME, memory.index),
        )
        made.here, made.memory = here, memory
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({list(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        """A copy to the host, which torch does not dispatch."""
        return self.cpu().tolist()

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        """Hold the memory until the stream has done what it was asked for so far."""
        self.memory.read_by.add(stream)

    def numpy(self, **_: Any) -> Any:
        """Refused, as CUDA refuses it."""
        raise TypeError(f"can't convert a {self.device} tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of {NAME} outside of `pretending()`")


class Device(TorchDispatchMode):
    """The device, while it lasts; or several."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.count = count
        self.counts = Counts()
        self.launched = Counter[int]()
        """How many launches each was asked for."""
        self.lock = threading.RLock()
        self.held = 0
        self.held_on = Counter[int]()
        """The same by device."""
        self.limit: int | None = None
        """Bytes that the device has."""
        self.refused = 0
        """How often there was too little memory."""
        self.storages: WeakValueDictionary[int, _Held] = WeakValueDictionary()
        self.streams = dict[tuple[int, int], Stream]()
        """By thread and device, the one that is asked."""
        self.plain = dict[int, Stream]()
        """Of each device, the one that is asked where no other is named."""
        self.comes_after: int | None = None
        """After how many launches a copy beside them is done, where the host has not waited for it; None is after none."""
        self.waited = list[int]()
        """How many launches there had been each time that an event was waited for."""
        self.all_streams: list[Stream] = []
        self.captures = dict[int, _Capture]()
        """By thread."""
        self.is_left_out: Callable[[str], bool] | None = None
        """Of a line of attrib, whether the arithmetic of floating numbers is left out there, and zeros stand for what it makes."""

    def begin(self) -> None:
        """Count from here on."""
        self.counts = Counts()
        self.launched.clear()
        self.waited.clear()
        self.counts.peak = self.held

    def let_go(self, size: int, index: int) -> None:
        """Have so much memory again."""
        self.held -= size
        self.held_on[index] -= size

    def copies_from(self, memory: _Held) -> "list[_Copy]":
        """Those that are not done."""
        return [copy for stream in self.all_streams for copy in stream.copies if copy.memory == id(memory)]

    def stream_of(self, index: int) -> Stream:
        """The one that this thread asks."""
        found = self.streams.get((threading.get_ident(), index))
        if found is None and (found := self.plain.get(index)) is None:
            found = self.plain[index] = Stream(torch.device(NAME, index))
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self.lock:
            return self._dispatched(func, args, kwargs or {})

    def _dispatched(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [each for each in _leaves(args, kwargs.values()) if isinstance(each, Tensor)]
        there = [each for each in tensors if isinstance(each, There)]
        what = _known(func)
        name = what.name
        asked = kwargs.get("device")
        to = None if asked is None else torch.device(asked)
        if not there and (to is None or to.type != NAME):
            return self._on_host(func, what, tensors, args, kwargs)
        if to is not None and to.type == "meta":  # torch's own question about shapes
            return func(*map(_here, args), **{key: _here(each) for key, each in kwargs.items()})
        if what.is_inplace_view:
            func(args[0].here, *args[1:], **kwargs)
            with no_dispatch():  # the wrapper's own shape
                func(*args, **kwargs)
            return args[0]
        if name == "_to_copy":
            return self._copied(func, args, kwargs, to)
        line = _line()
        count, capture = self.counts.lines[line], self.captures.get(threading.get_ident())
        if name == "copy_" and isinstance(args[1], Tensor) and len({each.device for each in tensors}) == 2:
            is_background = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if capture is not None:
                capture.refuse("a copy between host and device, which would read or write the host's memory at every replay")
            if not isinstance(args[0], There):
                is_background = is_background and _is_pinned(args[0])
                stream = self.stream_of(args[1].memory.index)
                stream.require(args[1].memory)
                stream.asked += 1
            self._count_copy(count, args[1], isinstance(args[0], There), is_background)
            if is_background and not isinstance(args[0], There):
                _Copy(args[0], args[1].here, args[1].memory, stream)
            else:
                _here(args[0]).copy_(_here(args[1]))
            return args[0]
        if there and (to is None or to.type == NAME):
            self._require_there(what, tensors)
        on = there[0].memory.index if there else (to.index or 0 if to is not None else 0)
        if name == "_efficientzerotensor":  # a tangent of zeros, which must not be none to the operations below
            return self.wrap(torch.zeros(args[0], dtype=kwargs.get("dtype")), on)
        plain_args = [_here(each) for each in args]
        plain_kwargs = {key: HOST if isinstance(each, torch.device) else _here(each) for key, each in kwargs.items()}
        waits = name in NEEDS_SIZE or (name == "repeat_interleave" and kwargs.get("output_size") is None) or _is_masked(name, args)
        if capture is not None:
            if waits or (to is not None and to.type == "cpu"):
                capture.refuse("the host waits")
            capture.keep(each for each in what.written(args, kwargs) if isinstance(each, There))
        is_left_out = what.launches and self.is_left_out is not None and self.is_left_out(line) and name not in NEEDS_SIZE
        out = _without_arithmetic(what, func, plain_args, plain_kwargs) if is_left_out else None
        out = func(*plain_args, **plain_kwargs) if out is None else out
        count.waits += waits
        if name == "_local_scalar_dense":
            count.to_host, count.copied = count.to_host + 1, count.copied + there[0].element_size()
            return out
        if to is not None and to.type == "cpu":
            return out
        written = {id(_here(each)): each for each in what.written(args, kwargs)}
        if what.launches:
            count.launches += 1
            self.launched[on] += 1
            stream = self.stream_of(on)
            stream.asked += 1
            for each in there:
                stream.require(each.memory)
            for each in written.values() if capture is None else ():
                each.memory.made = stream, stream.asked
            made = [each for each in _leaves((out,)) if isinstance(each, Tensor) and id(each) not in written]
            size = _moved(what, tensors, args, made)
            flops = 0 if what.formula is None else what.formula(*plain_args, **plain_kwargs, out_val=out)
            if capture is not None:
                capture.add(func, plain_args, plain_kwargs, out, there, flops, size)
            count.bytes, count.flops = count.bytes + size, count.flops + flops
        elif capture is not None and self.is_left_out is None and name.startswith(("empty", "new_empty")):
            capture.own[out.untyped_storage()._cdata] = out

        def given_back(each: Any) -> Any:
            if not isinstance(each, Tensor):
                return each
            return written[id(each)] if id(each) in written else self.wrap(each, on)

        return type(out)(map(given_back, out)) if type(out) in (list, tuple) else given_back(out)

    def wrap(self, here: Tensor, index: int = 0) -> There:
        """A tensor of the host as one of the device; new memory is taken for a new storage."""
        storage = here.untyped_storage()
        memory = self.storages.get(storage._cdata)
        if memory is None:
            if self.limit is not None and self.held_on[index] + storage.nbytes() > self.limit:
                self.refused += 1
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {storage.nbytes()} bytes in {_line()}; {self.held_on[index]} of "
                    f"{self.limit} are held."
                )
            memory = self.storages[storage._cdata] = _Held(self, storage.nbytes(), index)
            self.counts.peak = max(self.counts.peak, self.held)
            if (capture := self.captures.get(threading.get_ident())) is None:
                memory.made = (stream := self.stream_of(index)), stream.asked
            else:
                capture.peak = max(capture.peak, self.held - capture.start)
        return There(here, memory)

    def _on_host(self, func: Any, what: "_Operation", tensors: list[Tensor], args: Any, kwargs: Any) -> Any:
        """What is computed on the host. Raises RaceError where it reads what has not come."""
        if kwargs.pop("pin_memory", False):
            found = func(*args, **kwargs)
            found.is_pinned_there = True
            return found
        if what.launches or what.name == "_local_scalar_dense":
            coming = {copy.into.untyped_storage()._cdata for stream in self.all_streams for copy in stream.copies}
            if coming and any(each.untyped_storage()._cdata in coming for each in tensors):
                raise RaceError(
                    f"{_line()}: {what.func} reads memory of the host before what was copied there has come; wait for its event."
                )
        return func(*args, **kwargs)

    def _copied(self, func: Any, args: Any, kwargs: Any, to: torch.device | None) -> Tensor:
        """To another dtype or device."""
        (given,) = args
        is_there, count = isinstance(given, There), self.counts.lines[_line()]
        assert not (is_there and to is not None and to.type == "cpu" and kwargs.get("non_blocking")), "use copy_, into pinned memory"
        goes_there = is_there if to is None else to.type == NAME
        before = given.memory.index if is_there else 0
        on = before if to is None or to.index is None else to.index
        capture, plain_kwargs = self.captures.get(threading.get_ident()), {**kwargs, "device": HOST, "non_blocking": False}
        if capture is not None and is_there != goes_there:
            capture.refuse("a copy between host and device, which would read or write the host's memory at every replay")
        out = func(_here(given), **plain_kwargs)
        if out.untyped_storage()._cdata == _here(given).untyped_storage()._cdata:
            out = out.clone()
        if is_there != goes_there or (is_there and on != before):
            self._count_copy(count, out, goes_there, kwargs.get("non_blocking", False))
        else:
            count.launches += 1
            self.launched[on] += 1
            size = _touched(given) + _touched(out)
            count.bytes += size
            if capture is not None:
                capture.add(func, [_here(given)], plain_kwargs, out, [given], 0, size)
        return self.wrap(out, on) if goes_there else out

    def _count_copy(self, count: Count, moved: Tensor, to_device: bool, is_background: bool) -> None:
        count.copied += moved.numel() * moved.element_size()
        if to_device:
            count.to_device += 1
        else:
            count.to_host += 1
        count.waits += not is_background

    def _require_there(self, what: "_Operation", tensors: list[Tensor]) -> None:
        here = [each for each in tensors if not isinstance(each, There) and not (each.ndim == 0 and what.takes_numbers)]
        if here:
            raise MixedDevicesError(
                f"{_line()}: {what.func}: Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and "
                f"cpu; on cpu: {', '.join(str(list(each.shape)) for each in here)}."
            )
        if len(found := {str(each.device) for each in tensors if isinstance(each, There)}) > 1:
            raise MixedDevicesError(
                f"{_line()}: {what.func}: Expected all tensors to be on the same device, but found {' and '.join(sorted(found))}."
            )


def _is_pinned(here: Tensor) -> bool:
    return any(getattr(each, "is_pinned_there", False) for each in (here, here._base))


def _here(given: Any) -> Any:
    """What torch computes with: tensors of the host, also in a list."""
    if isinstance(given, There):
        return given.here
    return [_here(each) for each in given] if type(given) in (list, tuple) else given


def _leaves(*groups: Iterable[Any]) -> Iterator[Any]:
    """What an operation is given: operations take nothing that is nested deeper than a list."""
    for group in groups:
        for each in group:
            if type(each) in (list, tuple):
                yield from each
            else:
                yield each


class _Operation:
    """What is known of an operation of torch."""

    def __init__(self, func: Any) -> None:
        self.func, self.name = func, func._schema.name.partition("::")[2]
        self.is_inplace_view = torch.Tag.inplace_view in func.tags
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        self.launches = self.name not in WITHOUT_VALUES and not is_view
        # what is written in place is counted as what is not
        self.formula = flop_registry.get(getattr(torch.ops.aten, self.name.rstrip("_"), None))
        self.takes_numbers = torch.Tag.pointwise in func.tags or self.name in TAKES_A_NUMBER
        self.only_writes = self.name in ONLY_WRITE
        self.is_told_by_shape = self.name.startswith("new_") or self.name.endswith("_like")
        arguments = enumerate(func._schema.arguments)
        self.writes = [(number, each.name) for number, each in arguments if each.alias_info is not None and each.alias_info.is_write]

    def written(self, args: Any, kwargs: Any) -> Iterator[Tensor]:
        """The tensors that it writes into, and gives back."""
        values = (args[number] if number < len(args) else kwargs.get(name) for number, name in self.writes)
        return (each for each in _leaves(values) if isinstance(each, Tensor))


@cache
def _known(func: Any) -> _Operation:
    return _Operation(func)


def _without_arithmetic(what: _Operation, func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation gives, with zeros where it would give floating numbers; None where it gives others, which are computed."""

    def elsewhere(each: Any) -> Any:
        if isinstance(each, Tensor):
            return torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="meta")
        if isinstance(each, torch.device):
            return torch.device("meta")
        return [elsewhere(part) for part in each] if type(each) in (list, tuple) else each

    written = list(what.written(args, kwargs))
    if written:
        if len(written) > 1 or not written[0].is_floating_point() or len(func._schema.returns) != 1:
            return None
        return written[0]
    made = func(*map(elsewhere, args), **{key: elsewhere(each) for key, each in kwargs.items()})
    if not isinstance(made, Tensor) or not made.is_floating_point():
        return None
    return _zeros(made)


def _zeros(like: Tensor) -> Tensor:
    """Zeros that lie as a tensor without memory does; pages that nobody touches take none of the host's."""
    size = 1 + sum((length - 1) * stride for length, stride in zip(like.shape, like.stride(), strict=True)) if like.numel() else 0
    return torch.zeros(size, dtype=like.dtype).as_strided(like.shape, like.stride())


def _is_masked(name: str, args: Any) -> bool:
    """Whether an operation indexes by a mask, whose true entries are looked for; a number where it is true needs no look."""
    if name not in INDEXING or not any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
        return False
    return len(args) < 3 or isinstance(args[2], There) or args[2].ndim > 0


def _touched(tensor: Tensor) -> int:
    """Bytes that are read or written of it: what is expanded lies there once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count


def _moved(what: _Operation, given: Sequence[Tensor], args: Any, made: Sequence[Tensor]) -> int:
    """Bytes that an operation reads and writes; `given` are all its tensors, those of `args`, its arguments by place, among them."""
    if (of_rows := MOVED_OF_ROWS.get(what.name)) is not None:
        _, where, *rows = given
        return _touched(where) + of_rows * sum(map(_touched, rows or made))
    if what.is_told_by_shape:
        _, *given = given
    in_place = () if what.only_writes else what.written(args, {})  # `out=` is written alone, and there among those given
    return sum(map(_touched, (*given, *in_place, *made)))


@cache
def _watched(path: str) -> str | None:
    """The file that is counted, and None for others'."""
    path = path.removeprefix(ROOT)
    return path if path.startswith(WATCHED) else None


def _line() -> str:
    """The innermost line of attrib."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if (path := _watched(code.co_filename)) is not None:
            return f"{path}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class _Module:
    """What torch asks of a backend's module."""

    @staticmethod
    def is_available() -> bool:
        """Only while someone pretends, so that no library finds an accelerator else."""
        return bool(_STANDS[0])

    is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: _STANDS[0])
    manual_seed_all = staticmethod(lambda seed: None)
    synchronize = staticmethod(lambda *_: None)
    get_device_name = staticmethod(lambda *_: NAMED)
    Stream = Stream
    CUDAGraph = Graph

    @staticmethod
    @contextmanager
    def graph(given: Graph, *, stream: Stream, capture_error_mode: str = "global") -> Iterator[None]:
        """Capture what this thread asks for."""
        assert capture_error_mode in ("global", "thread_local", "relaxed")
        device, own = stream.device, threading.get_ident()
        assert own not in device.captures
        _Module.synchronize()
        capture = device.captures[own] = _Capture(device, given, stream)
        for other in device.all_streams:  # all are waited for before
            stream.wait_stream(other)
        try:
            with _Module.stream(stream):
                yield
        finally:
            del device.captures[own]
            with no_dispatch():
                capture.end()

    @staticmethod
    def current_stream(device: Any = None) -> Stream:
        """The one that this thread asks."""
        return _STANDING[-1].stream_of(torch.device(NAME if device is None else device).index or 0)

    @staticmethod
    @contextmanager
    def stream(given: Stream) -> Iterator[None]:
        """Ask another."""
        streams, key = given.device.streams, (threading.get_ident(), given.index)
        before = streams.get(key)
        streams[key] = given
        try:
            yield
        finally:
            del streams[key]
            if before is not None:
                streams[key] = before


_STANDS: list[int] = [0]
"""How many there are."""
_STANDING: list["Device"] = []
"""Those that are pretended, the last of which is asked."""


@cache
def _register() -> None:
    """Give torch's backend for others a name, and the guards and hooks that autograd asks it for; once in a process."""
    from torch.utils.backend_registration import _DummyPrivateUse1Hook, _setup_privateuseone_for_python_backend

    class Hook(_DummyPrivateUse1Hook):
        def is_available(self) -> bool:
            return bool(_STANDS[0])

        def has_primary_context(self, dev_id: int) -> bool:
            return dev_id < _STANDS[0]

    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Module, hook=Hook())


class _Beside(TorchDispatchMode):
    """The device in another thread."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.device.__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def pretending(limit: int | None = None, count: int = 1) -> Iterator[Device]:
    """Have the device, and attrib take its name.

    Args:
        limit: bytes that it has.
        count: how many there are.
    """
    from attrib.core import devices

    _register()
    lifted = torch._C._only_lift_cpu_tensors()
    real: dict[str, Any] = {name: getattr(devices, name) for name in ("check_device", "every_device", "entering")}

    def check_device(given: Any) -> torch.device:
        if not str(given).startswith(NAME):
            return real["check_device"](given)
        found = torch.device(given)
        assert (found.index or 0) < count
        return torch.device(NAME, found.index or 0)

    @contextmanager
    def beside() -> Iterator[None]:
        with _Beside(device), torch.autograd.set_multithreading_enabled(False):
            yield

    put: dict[str, Any] = {
        "check_device": check_device, "every_device": lambda: tuple(torch.device(NAME, index) for index in range(count)),
        "entering": lambda where: beside if where.type == NAME else nullcontext,
    }  # fmt: skip

    def swap(those: dict[str, Any], others: dict[str, Any]) -> None:
        """Put others in their places: modules that are first imported in between have taken what stood there then."""
        for module in [module for name, module in sys.modules.items() if name.startswith("attrib")]:
            for name, own in those.items():
                if vars(module).get(name) is own:
                    setattr(module, name, others[name])

    device = Device(count)
    device.limit = limit
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(numbers, device=...) makes a tensor of the host first, and copies it
    _STANDS[0] = count
    _STANDING.append(device)
    try:
        swap(real, put)
        # backward passes of a device go to a thread of its own, which torch starts for devices that it has met at its first backward
        with device, torch.autograd.set_multithreading_enabled(False):
            yield device
    finally:
        _STANDS[0] = 0
        _STANDING.remove(device)
        torch._C._set_only_lift_cpu_tensors(lifted)
        swap(put, real)
