"""Prompts of any lengths in one pass: their rows stand one behind the other, and each prompt attends to itself.

Everything but attention works on rows by themselves, so a pass over many prompts is one over a single long sequence, without padding:

    x = [x of prompt 0; x of prompt 1; ...]        [rows, d_model],  rows = Σ_n T_n

For attention, prompts of about one length stand side by side, the shorter ones filled up behind their end with copies of their last
row. No real row sees those: they lie behind what a causal query sees, and where attention sees both ways they are masked; what they
see is dropped. So a prompt gives what it gives alone, up to the rounding of larger products.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.types import EXACT, NotFiniteError, Policy
from attrib.models.transformer import (
    Model,
    ModelConfig,
    Projected,
    Stream,
    embed,
    pattern_of,
    pattern_where,
    project,
    turned_heads,
    weighted,
)

ROWS = 1024
"""Rows of a pass at most: with more of them products are not faster."""

NEAR = 1.25
"""How many times as long as the shortest the longest prompt may be that it stands beside."""


class Group(NamedTuple):
    """Prompts of about one length, side by side; or a single prompt, as it is."""

    slots: Int[Tensor, "prompts longest"] | None = None
    """The row that stands in each slot, and behind a prompt's end its last; None is the rows themselves."""
    real: Bool[Tensor, "prompts longest"] | None = None

    def take(self, rows: Float[Tensor, "*batch width"]) -> Float[Tensor, "*slots width"]:
        """What stands in the slots."""
        return rows if self.slots is None else rows.index_select(-2, self.slots.flatten()).unflatten(-2, self.slots.shape)

    def pattern(
        self,
        model: Model,
        layer: int,
        q: Float[Tensor, "*batch kv_heads group queries d_head"],
        k: Float[Tensor, "*batch kv_heads keys d_head"],
    ) -> Float[Tensor, "*batch kv_heads group queries keys"]:
        """The attention pattern of one layer within each prompt."""
        if self.real is None or model.config.causal:
            return pattern_of(model, layer, q, k)
        seen = self.real[:, None, None, None].expand(-1, -1, -1, q.shape[-2], -1)
        return pattern_where(q, k, seen, model.config.attention_scale, model.config.score_cap)


@dataclass(frozen=True)
class Packed:
    """How the rows of prompts lie in a pass over all of them."""

    lengths: tuple[int, ...]
    device: torch.device | None = None

    @property
    def is_one(self) -> bool:
        """Whether it is one prompt, whose rows need not be regrouped."""
        return len(self.lengths) < 2

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first row of each prompt."""
        return tuple(accumulate(self.lengths[:-1], initial=0))

    @cached_property
    def ends(self) -> Int[Tensor, " prompts"]:
        """The last row of each prompt."""
        return torch.tensor([*accumulate(self.lengths)], device=self.device) - 1

    def each(self, rows: Float[Tensor, "*rows"]) -> list[Float[Tensor, "*_"]]:
        """The rows of each prompt, which do not hold those of the others in memory."""
        return [rows] if self.is_one else [part.clone() for part in rows.split(self.lengths)]

    @contextmanager
    def named(self, first: int = 0) -> Iterator[None]:
        """Let what is raised of a row name its position and its prompt, the first of which has this number."""
        try:
            yield
        except NotFiniteError as error:
            prompt = max(number for number, start in enumerate(self.starts) if start <= error.position)
            raise NotFiniteError(error.what, error.position - self.starts[prompt], error.value, first + prompt) from None

    # ------------------------------------------------------------------------------------------ attention

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The prompts by their lengths."""
        if self.is_one:
            return (Group(),)
        found, order = [], sorted(range(len(self.lengths)), key=lambda n: self.lengths[n])
        while order:
            some = [n for n in order if self.lengths[n] <= NEAR * self.lengths[order[0]]]
            order = order[len(some) :]
            start, length = (torch.tensor([of[n] for n in some], device=self.device)[:, None] for of in (self.starts, self.lengths))
            at = torch.arange(self.lengths[some[-1]], device=self.device)
            found.append(Group(start + at.minimum(length - 1), at < length))
        return tuple(found)

    @cached_property
    def _slot_of_row(self) -> Int[Tensor, " rows"]:
        """The place of each row among the slots of all groups, one behind the other."""
        slots, real = (torch.cat([part.flatten() for part in parts if part is not None]) for parts in zip(*self.groups, strict=True))
        places = real.nonzero().flatten()
        return places[slots[places].argsort()]

    def by_group(self, of_group: Callable[[int, Group], Float[Tensor, "*slots width"]]) -> Float[Tensor, "*batch width"]:
        """What is made of each group, as rows."""
        if self.is_one:
            return of_group(0, self.groups[0])
        found = [of_group(number, group).flatten(-3, -2) for number, group in enumerate(self.groups)]
        return torch.cat(found, -2).index_select(-2, self._slot_of_row)

    def attend(self, model: Model, layer: int, x: Stream, policy: Policy = EXACT) -> Float[Tensor, "rows d_q"]:
        """`z` of one layer from the normed stream: what `attrib.models.transformer.attend` gives of each prompt."""
        projected = project(model, layer, x)

        def of_group(number: int, group: Group) -> Tensor:
            q, k, v = turned_heads(model, layer, Projected(*map(group.take, projected)), policy)
            pattern = group.pattern(model, layer, q, k)
            return weighted(pattern.detach() if policy.attention == "frozen" else pattern, v)

        return self.by_group(of_group)


ALONE = Packed(())
"""One prompt, of whatever length."""


class Together(NamedTuple):
    """Prompts that go through one pass."""

    numbers: range
    """Which they are."""
    packed: Packed
    embedded: Float[Tensor, "rows d_model"]
    """What stands before the first layer, prompt behind prompt."""


def side_by_side(
    model: Model, prompts: Sequence[Int[Tensor, " _"]], numbers_of_row: Callable[[int], int], budget: int
) -> Iterator[Together]:
    """All prompts, as many of them together as `packs` says.

    Args:
        budget: bytes that a pass may take.

    Raises:
        InputError: for a prompt longer than the model's context.
    """
    for some in packs([*map(len, prompts)], numbers_of_row, budget // model.dtype.itemsize):
        here = [prompts[number] for number in some]
        yield Together(some, Packed(tuple(map(len, here)), model.device), torch.cat([embed(model, ids) for ids in here]))


def packs(lengths: Sequence[int], numbers_of_row: Callable[[int], int], at_most: int) -> Iterator[range]:
    """Prompts that go together, in their order: as many as fit, and one at least.

    Args:
        numbers_of_row: how many numbers a row takes, from how long the longest of the prompts is.
        at_most: how many numbers a pass may take.
    """
    first, rows, longest = 0, 0, 0
    for number, length in enumerate(lengths):
        rows, longest = rows + length, max(longest, length)
        if number > first and (rows > ROWS or rows * numbers_of_row(longest) > at_most):
            yield range(first, number)
            first, rows, longest = number, length, length
    yield range(first, len(lengths))


def widest(config: ModelConfig, keys: int, encoded: int = 0) -> int:
    """About how many numbers a row of a pass takes at its fullest: an MLP's, scores against so many keys, or a dictionary's latents."""
    return max(3 * config.d_mlp, 3 * config.n_heads * keys, 2 * encoded) + 8 * config.d_model
