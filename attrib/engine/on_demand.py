"""Rows of one prompt that are asked for part by part. What all parts share is made once: the primal point, and what is lifted.

Targets below the place to which sources are lifted are read as tangents pass them, all of them at once, and kept until they are asked for;
rows of others are swept as they are asked for. Which rows matter may hang on those before (graph/expand.py).
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attrib.engine.blocks.kernels import Impl
from attrib.engine.bundle import Bundle, Found, Order, Shared, share, sweep
from attrib.engine.halves import in_halves
from attrib.engine.plan.choose_joint import JointPlan, in_smaller_pieces, rows_at_once
from attrib.engine.plan.joined import lift_held
from attrib.engine.precision import Precision


class OnDemand:
    """One prompt's rows."""

    def __init__(self, bundle: Bundle, plan: JointPlan, precision: Precision, impl: Impl, budget: int) -> None:
        """Lift what is lifted.

        Args:
            plan: where both sides meet.
            budget: bytes of working memory, which the plan fits into.

        Warns:
            UserWarning: where the device ran out of memory, and nothing is lifted.
        """
        self.bundle, self.precision = bundle, precision
        shared = _shared(bundle, plan, precision, impl)
        if shared is None:  # and only now, when nothing of what was begun is held any more
            warnings.warn("out of memory while sources were lifted; going on without, in smaller pieces.", stacklevel=2)
            plan = in_smaller_pieces(replace(plan.joint, meets=None), plan)
            shared = share([bundle], plan, precision, impl)
        self.shared = shared._replace(on=shared.on.remembering())
        self.below = [Found(rows.orders[0], 0, rows.blocks) for rows in self.shared.below]
        self.shared.below.clear()
        self.above = bundle.order_of([number for number in range(len(bundle.targets)) if number not in plan.joint.below])
        self.most = rows_at_once(plan.joint, lift_held(plan.joint), budget)

    def rows(self, asked: Sequence[Int[Tensor, " _"]]) -> Iterator[tuple[Found, Bool[Tensor, " rows"] | None]]:
        """What is found of some rows, and which rows these are of what is found; None is all.

        Args:
            asked: which targets of each set.
        """
        for found in self.below:
            if bool((chosen := _among(found.order, asked)).any()):
                yield found, chosen
        chosen = _among(self.above, asked)
        order = Order(self.above.of_set[chosen], self.above.place[chosen])
        count = len(order.place)
        runs = [(first, min(first + self.most, count)) for first in range(0, count, self.most)]
        for done in in_halves(
            runs, lambda: self.shared, lambda shared, a, b: sweep(shared, [self.bundle], [order], self.precision, a, b), lambda _: False
        ):
            assert done is not None
            for rows in done[1]:
                yield Found(rows.orders[0], 0, rows.blocks), None
                del rows
            del done  # before the next sweep fills another


def _shared(bundle: Bundle, plan: JointPlan, precision: Precision, impl: Impl) -> Shared | None:
    """What all parts share; None where the device has too little memory left for what is lifted."""
    try:
        return share([bundle], plan, precision, impl)
    except torch.OutOfMemoryError:
        if plan.joint.meets is None:
            raise
    return None


def _among(order: Order, asked: Sequence[Int[Tensor, " _"]]) -> Bool[Tensor, " rows"]:
    found = torch.zeros(len(order.place), dtype=torch.bool)
    for number, places in enumerate(asked):
        if len(places):
            found |= (order.of_set == number) & torch.isin(order.place, places)
    return found
