"""One prompt's path as the engine takes it: linear ends, and the segment of the model between them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.devices import Copies
from attrib.core.shown import record
from attrib.core.types import Site
from attrib.engine.blocks.passing import NOTHING, Between
from attrib.engine.segment import Segment
from attrib.engine.sweep.primal import Streams
from attrib.passes.behind import Known


class Sources(NamedTuple):
    """Leaves of one prompt, sorted by position, and the direction that each writes at its position."""

    position: Int[Tensor, " sources"]
    latent: Int[Tensor, " sources"]
    value: Float[Tensor, " sources"]
    direction: Float[Tensor, "sources width_a"]

    def __repr__(self) -> str:
        return record(self)


class Targets(NamedTuple):
    """Targets of one prompt, and the cotangent of each at its position."""

    position: Int[Tensor, " targets"]
    latent: Int[Tensor, " targets"]
    value: Float[Tensor, " targets"]
    cotangent: Float[Tensor, "targets width_b"]

    def __repr__(self) -> str:
        return record(self)


@dataclass(frozen=True)
class Path:
    """One prompt's path at its primal point.

    `x` is the primal at the first site, `base` the stream it is added to where that site is not the
    stream itself. `function` maps `sources.value` to `targets.value`.
    """

    through: Segment
    x: Float[Tensor, "positions width_a"]
    base: Float[Tensor, "positions d_model"] | None
    sources: Sources
    targets: Targets
    function: Callable[[Float[Tensor, " sources"]], Float[Tensor, " targets"]]
    labels: tuple[str, ...] = ()
    probability: Float[Tensor, " targets"] | None = None
    from_tokens: bool = False
    streams: Streams | None = None
    """What the sweeps need of the primal, where it is at hand; else they walk it from `x`."""
    writes: tuple[Site, ...] = ()
    """Where the sources write, the first of it where `x` is, in the order in which their directions lie side by side."""
    between: Between = NOTHING
    """What dictionaries write on the way."""
    active: tuple[int, ...] = ()
    """How many latents of each dictionary that is put in are active, where opening the path has counted them."""
    other: Float[Tensor, " sources"] | None = None
    """The sources' values at another prompt, where the path was opened beside one."""
    copies: Copies = field(default_factory=Copies, compare=False, repr=False)
    """Of where sources and targets are, on the host."""
    moved: "Callable[[Float[Tensor, ' sources']], Path] | None" = None
    """The path where the sources have other values, with its own primal: what it reads there, competition included. Where asked for."""
    known: Callable[[], Known] | None = None
    """The primal as a pass that others go beside, from what the sources write to where it is read. Where asked for."""
    reading: Callable[[Float[Tensor, "rows width"], int], Float[Tensor, " targets"]] | None = None
    """The targets' values where this stands at the end of `known`, from a first position on, competition included. Where asked for."""

    def __repr__(self) -> str:
        what = "tokens" if self.from_tokens else "latents"
        return (
            f"Path({len(self.sources.value):,} source {what} at {', '.join(map(str, self.writes)) or self.through.start} to "
            f"{len(self.targets.value):,} targets at {self.through.stop}, {len(self.x)} positions of {self.through.model.name!r})"
        )

    @property
    def is_cut(self) -> bool:
        """Whether more is written than is read at the ends: then `through` is only part of what `function` does."""
        return len(self.writes) > 1 or self.between is not NOTHING
