"""Sweeps that are captured on a device once, and replayed for every other pack of the same shape: CUDA graphs.

Asking a GPU for the operations of a sweep, one by one, takes the host a few hundred times 5 µs. Where the operations themselves take less,
the GPU stands idle. A captured sweep is asked for once: it reads where the first pack's numbers lay, to which those of the next are copied,
and does the same operations in the same order. filled.py brings prompts to few shapes.

A shape that comes for the first time is asked for as usual. The second time its operations are captured, and from the third on replayed.
"""

import warnings
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from attrib.core.devices import Brought, backend
from attrib.engine import tiles
from attrib.engine.blocks.kernels import Impl
from attrib.engine.filled import Filled, Shape, as_opened, filled, shape_for
from attrib.engine.outgoing import MOST as ON_THE_WAY
from attrib.engine.path import Path
from attrib.engine.plan.choose import PackPlan
from attrib.engine.plan.task import NOTHING_OPENED, Task
from attrib.engine.precision import Precision
from attrib.engine.tiles import order_of
from attrib.engine.transforms import Tile

Sweep = Callable[[Sequence[Path], PackPlan, Precision, Impl], Iterator[tuple[int, Tile]]]
"""What sweeps a pack of paths by its plan."""

REMEMBERED = 16
"""How many shapes are remembered to which others are filled up, of those that came last."""


class _Captured(NamedTuple):
    """A sweep that can be replayed."""

    graph: Any
    brought: Brought
    """Numbers of the host that it reads."""
    paths: tuple[Path, ...]
    """Whose numbers it reads."""
    found: list[Float[Tensor, "targets sources"]]
    """Where it writes what it finds, each time anew."""
    held: int
    """Bytes of the device that are its own, about."""

    def replay(self, paths: Sequence[Path]) -> list[Float[Tensor, "targets sources"]]:
        """What it finds for other paths of its shape; to be taken before the next replay."""
        into, given = (list(each) for each in zip(*_pairs(self.paths, paths), strict=True))
        torch._foreach_copy_(into, given)
        self.graph.replay()
        return self.found


class Replays:
    """The captured sweeps of one call."""

    def __init__(self, sweep: Sweep, device: torch.device, budget: int, *, is_on: bool) -> None:
        """None yet.

        Args:
            sweep: what sweeps as usual: `tiles.adjoint`, or a team's.
            device: the one that sweeps.
            budget: bytes of working memory. What captured sweeps hold, and what is swept beside them, is within it.
            is_on: whether any are captured; else all is asked for as usual.
        """
        self.sweep, self.device, self.budget, self.is_on = sweep, device, budget, is_on
        self._seen, self._shapes = Counter[int](), deque[Shape](maxlen=REMEMBERED)
        self._captured = OrderedDict[Any, _Captured]()

    @property
    def held(self) -> int:
        """Bytes that captured sweeps hold."""
        return sum(each.held for each in self._captured.values())

    def opened(self, ids: Int[Tensor, " positions"], path: Path, task_of: Callable[[Path], Task]) -> Filled:
        """A prompt whose path has been opened, filled up where its sweep is to be captured."""
        task = task_of(path)
        if not self.is_on:
            return as_opened(ids, path, task)
        ends = task.targets[0], task.sources[0]
        want = shape_for(ends, list(self._shapes))
        if want not in self._shapes:
            self._shapes.append(want)
        return filled(ids, path, task, want, task_of, self.budget)

    def adjoint(self, pack: Sequence[Filled], plan: PackPlan, precision: Precision, impl: Impl) -> Iterator[tuple[int, Tile]]:
        """What `tiles.adjoint` gives of the prompts' own rows.

        Warns:
            UserWarning: where a sweep cannot be captured; nothing is from then on.
        """
        paths = [each.path for each in pack]
        if self.is_on and any(path.between.passing for path in paths):
            self._off("dictionaries that derivatives pass are asked which latents are active")
        swept = self._at_once(paths, plan, precision, impl) if self.is_on and _is_one_sweep(paths, plan) else None
        if swept is not None:
            for number, gradient in enumerate(swept):
                tile = pack[number].taken(Tile(0, gradient))
                yield number, tile if tile.gradient is not gradient else Tile(0, gradient.clone())
                del tile, gradient
            return
        self._leave(plan.peak)
        for number, tile in self.sweep(paths, plan, precision, impl):
            yield number, pack[number].taken(tile)
            del tile  # before the next is computed

    def _at_once(self, paths: Sequence[Path], plan: PackPlan, precision: Precision, impl: Impl) -> list[Tensor] | None:
        """What a captured sweep finds, or one that is being captured; None where it is to be asked for as usual."""
        task = replace(plan.task, opened=NOTHING_OPENED)
        key = (task, plan.way, plan.layer, precision, impl, id(paths[0].through.model), tuple(path.streams is None for path in paths))
        if key in self._captured:
            self._captured.move_to_end(key)
            return self._captured[key].replay(paths)
        self._seen[hash(key)] += 1
        if self._seen[hash(key)] != 2:  # captured the second time, or not at all: two shapes that have no room together would take turns
            return None
        size = plan.peak + _cast_bytes(paths[0], precision) + sum(each.nbytes for path in paths for each in _numbers(path))
        if self.held + size + plan.peak > self.budget - ON_THE_WAY:
            return None
        found, captured = self._capture(paths, plan, precision, impl, size)
        if captured is not None:
            self._captured[key] = captured
        return found

    def _capture(
        self, paths: Sequence[Path], plan: PackPlan, precision: Precision, impl: Impl, size: int
    ) -> tuple[list[Tensor] | None, _Captured | None]:
        """What a sweep finds, asked for once more as usual, and the sweep as it can be replayed."""
        module, brought = backend(self.device), Brought()
        still = tuple(map(_still, paths))
        found = None
        try:
            # once on the stream that captures: libraries take memory of their own at their first call there, and numbers are brought
            stream = module.Stream(self.device)
            stream.wait_stream(module.current_stream(self.device))
            with brought.remembering(), module.stream(stream):
                found = tiles.at_once(still, plan, precision, impl)
            module.current_stream(self.device).wait_stream(stream)
            for gradient in found:
                gradient.record_stream(module.current_stream(self.device))
            brought.is_complete = True
            graph = module.CUDAGraph()
            # thread_local: other threads, of a progress bar or of data, may ask the device for what a capture would refuse
            with brought.remembering(), module.graph(graph, stream=stream, capture_error_mode="thread_local"):
                into = tiles.at_once(still, plan, precision, impl)
        except RuntimeError as error:  # torch's own, and that memory does not suffice
            self._off(str(error).split("\n", 1)[0])
            return found, None
        return found, _Captured(graph, brought, still, into, size)

    def _off(self, why: str) -> None:
        """Capture nothing from here on."""
        self.is_on = False
        self._captured.clear()
        warnings.warn(f"replay: sweeps cannot be captured ({why}); all is asked for as usual.", stacklevel=3)

    def _leave(self, size: int) -> None:
        """Have so many bytes of the budget free, for which the captured sweeps that were not replayed for longest are let go of."""
        while self._captured and self.held + size > self.budget:
            self._captured.popitem(last=False)


def _is_one_sweep(paths: Sequence[Path], plan: PackPlan) -> bool:
    """Whether the host looks at nothing between the beginning and the end, and rows come in the order in which they are given."""
    return len(plan.sweeps) == 1 and all(order_of(at) is None for at in _positions(paths))


def _positions(paths: Sequence[Path]) -> list[Tensor]:
    return [at for path in paths for at in path.copies.of([path.targets.position])]


def _numbers(path: Path) -> list[Tensor]:
    """What a sweep reads of a path that another of its shape has other values of; positions are the shape's."""
    walked = [path.x, *([] if path.base is None else [path.base])]
    streams = walked if path.streams is None else [path.streams[site] for site in sorted(path.streams, key=str)]
    return [*streams, path.sources.direction, path.targets.cotangent]


def _pairs(kept: Sequence[Path], given: Sequence[Path]) -> Iterator[tuple[Tensor, Tensor]]:
    for one, other in zip(kept, given, strict=True):
        yield from zip(_numbers(one), _numbers(other), strict=True)


def _still(path: Path) -> Path:
    """The path with copies of these numbers, which stay where they are."""
    streams = None if path.streams is None else {site: value.clone() for site, value in path.streams.items()}
    return replace(
        path, x=path.x.clone() if streams is None else path.x, base=None if path.base is None else path.base.clone(), streams=streams,
        sources=path.sources._replace(direction=path.sources.direction.clone()),
        targets=path.targets._replace(cotangent=path.targets.cotangent.clone()),
    )  # fmt: skip


def _cast_bytes(path: Path, precision: Precision) -> int:
    """Bytes of the blocks between a path's ends in the precision of the products, where that is another than the model's."""
    run, model = path.through, path.through.model
    if precision.sweep == model.dtype:
        return 0
    blocks: Sequence[Any] = model.params.blocks[run.start.layer : run.stop.layer + 1]
    return sum(leaf.numel() for leaf in pytree.tree_leaves(blocks) if isinstance(leaf, Tensor)) * precision.sweep.itemsize
