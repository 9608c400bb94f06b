"""What a call will do and cost, as a value: `Plan`, and how it is put together of the sweeps that were planned."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from attrib.core.rules import USUAL, rule_text
from attrib.core.shown import SHOWN, in_html
from attrib.core.types import Site
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.plan.choose import PackPlan
from attrib.engine.plan.choose_joint import JointPlan
from attrib.engine.plan.cost import Cost, Part
from attrib.engine.plan.result import size_of
from attrib.engine.precision import Precision
from attrib.models.transformer import Model


@dataclass(frozen=True, repr=False)
class Plan:
    """What an attribution will do and cost. Operations are those of matrix products, 2 m k n each."""

    packs: tuple[PackPlan | JointPlan, ...]
    """The sweeps, pack of prompts by pack of prompts: way, where both sides meet, bands, runs of targets."""
    flops_by_part: Mapping[Part, int]
    bytes_by_part: Mapping[Part, int]
    """Operands and results of every product, once each."""
    peak: int
    """Bytes of working memory at the fullest moment, beside the parameters and the result."""
    floor: int | None
    """The least operations that the answer needs, as far as is known; docs/engine.md derives it. None of sweeps that many targets join."""
    floor_bytes: int | None
    result: int
    """Bytes of the result at most, which lies beside the working memory: exact for Dense() and TopK(k) but for gradients that are zero."""
    copies: int
    """Bytes of parameters in another precision than they are given in, beside the working memory."""
    rule: str = rule_text(USUAL)
    """The rule of attribution, as text."""
    points: int = 1
    """At how many points each prompt is swept; 0 where no sweep computes the rule, but forward passes."""

    @property
    def flops(self) -> int:
        """Operations of all parts."""
        return sum(self.flops_by_part.values())

    @property
    def direction(self) -> str:
        """The ways taken, the same for all packs or put together by commas: local, reverse, forward, both, through, joined, or passes."""
        if not self.points:
            return "passes"
        return ", ".join(sorted({pack.way for pack in self.packs}))

    def __repr__(self) -> str:
        return (
            f"Plan({self.direction}: {self.flops / 1e9:.2f} GFLOP{self._of_floor}, "
            f"peak {size_of(self.peak)}, result up to {size_of(self.result)}, {len(self.packs)} pack(s))"
        )

    def __str__(self) -> str:
        lines = [
            f"{self.direction}: {self.flops / 1e9:.2f} GFLOP{self._of_floor}, peak {self.peak / 1e6:.0f} MB, "
            f"result up to {size_of(self.result)}" + (f", {size_of(self.copies)} of parameters in another precision" if self.copies else "")
        ]
        if self.rule != rule_text(USUAL):
            what = f"{self.points} points of each prompt are swept" if self.points != 1 else "one point of each prompt is swept"
            lines.append(f"  rule {self.rule}: " + (what if self.points else "one forward pass for each source"))
        lines += [f"  {part:<10}{flops / 1e9:>10.3f} GFLOP {size / 1e6:>10.1f} MB" for part, flops, size in self._parts]
        return "\n".join([*lines, *(f"  {pack}" for pack in self.packs)])

    def _repr_html_(self) -> str:
        """What each part costs, for notebooks."""
        packs = [*map(str, self.packs[:SHOWN]), *(["…"] if len(self.packs) > SHOWN else [])]
        rows = [(part, f"{flops / 1e9:,.3f}", f"{size / 1e6:,.1f}") for part, flops, size in self._parts]
        return in_html("\n".join([str(self).splitlines()[0], *packs]), ("part", "GFLOP", "MB moved"), rows)

    @property
    def _parts(self) -> list[tuple[Part, int, int]]:
        return [(part, flops, self.bytes_by_part[part]) for part, flops in self.flops_by_part.items()]

    @property
    def _of_floor(self) -> str:
        return "" if self.floor is None else f", {self.flops / self.floor:.2f} of the floor"


def plan_of(
    packs: Sequence[PackPlan | JointPlan],
    again: Sequence[PackPlan | JointPlan],
    opened: Cost,
    result: int,
    copies: int,
    floor: Cost | None = None,
) -> Plan:
    """All of a call together.

    Args:
        again: the sweeps over sampled rows.
        opened: what opening the prompts costs.
        result, copies: bytes, as `Plan` has them.
    """
    total = sum((part.cost for part in (*packs, *again)), opened)
    peak = max(part.peak for part in (*packs, *again))
    least, least_bytes = (None, None) if floor is None else (floor.total, sum(floor.bytes.values()))
    return Plan(tuple(packs), dict(total.flops), dict(total.bytes), peak, least, least_bytes, result, copies)


def copied_bytes(model: Model, ends: Iterable[Any], precision: Precision, rows: int, start: Site, stop: Site) -> int:
    """Bytes of parameters that are converted: all to the path's precision, the blocks between its ends to the sweep's, and to float64.

    Args:
        ends: dictionaries, and whatever else is at an end, which has no parameters.
        rows: how many rows are computed again in float64.
    """

    def numbers(params: Any) -> int:
        return sum(leaf.numel() for leaf in pytree.tree_leaves(params) if isinstance(leaf, torch.Tensor))

    path, sweep = precision.path, precision.sweep
    given: list[Any] = [model.params] if model.dtype != path else []
    dictionaries = {id(d): d for d in ends if isinstance(d, Dictionary) and not d.config.lazy}.values()
    given += [d.params for d in dictionaries if d.params.W_dec.dtype != path]
    blocks = numbers(model.params.blocks[start.layer : stop.layer + 1])
    swept = [sweep] if sweep != path else []
    swept += [torch.float64] if rows and path != torch.float64 else []
    return numbers(given) * path.itemsize + blocks * sum(dtype.itemsize for dtype in swept)


def together(plans: Sequence[Plan]) -> Plan:
    """The plan of calls that are made one after another."""
    floors, least = [one.floor for one in plans], [one.floor_bytes for one in plans]
    return Plan(
        tuple(pack for one in plans for pack in one.packs), _sums([one.flops_by_part for one in plans]),
        _sums([one.bytes_by_part for one in plans]), max(one.peak for one in plans), _sum(floors), _sum(least),
        sum(one.result for one in plans), max(one.copies for one in plans), plans[0].rule, plans[0].points,
    )  # fmt: skip


def _sums(parts: Sequence[Mapping[Part, int]]) -> dict[Part, int]:
    return {part: sum(each.get(part, 0) for each in parts) for part in dict.fromkeys(part for each in parts for part in each)}


def _sum(numbers: Sequence[int | None]) -> int | None:
    """Of all, where each is known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
