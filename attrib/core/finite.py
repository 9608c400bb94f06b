"""Numbers that are none: found where they first stand, and told as an error that names the tensor, the prompt and the position.

NaN compares as false with everything, so a latent whose pre-activation is NaN would count as not active, and an attribution
over it as an empty one. What is not finite in the stream goes on to every later place of its position, so a prompt is asked
at its ends alone, and place by place only where something is wrong there.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.types import NotFiniteError


def bad(value: Float[Tensor, "*any"], *, from_below: bool = False) -> Bool[Tensor, "*any"]:
    """Where a tensor holds no finite number.

    Args:
        from_below: whether minus infinity is a value like others: of a pre-activation or a logit it means "never", and some mean that.
    """
    return value.isnan() | (value == torch.inf) if from_below else ~value.isfinite()


def total(value: Float[Tensor, "*any"]) -> Float[Tensor, ""]:
    """The sum of a tensor, which is finite where all of it is, unless it overflows itself: then the terms are looked at."""
    return value.sum(dtype=torch.promote_types(value.dtype, torch.float32))


def require_finite(
    values: Mapping[str, Float[Tensor, "*_"]], *, from_below: bool = False, position: Int[Tensor, " rows"] | None = None
) -> None:
    """See that tensors of one prompt hold numbers, with one question to their device.

    Args:
        values: by what an error is to call them, in order of computation.
        from_below: see `bad`.
        position: of each row; None is one row for each position.

    Raises:
        NotFiniteError: for the first that does not, with its first position.
    """
    if not values or bool(torch.stack([total(value) for value in values.values()]).isfinite().all()):
        return
    for what, value in values.items():
        wrong = bad(value, from_below=from_below)
        if rows := wrong.flatten(1).any(1).nonzero().flatten().tolist() if wrong.ndim > 1 else wrong.nonzero().flatten().tolist():
            first = min(rows, key=lambda row: row if position is None else int(position[row]))
            raise NotFiniteError(what, first if position is None else int(position[first]), float(value[first][wrong[first]].flatten()[0]))


@contextmanager
def of_prompt(number: int) -> Iterator[None]:
    """Let what is raised of a prompt name it."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(error.what, error.position, error.value, number) from None


@contextmanager
def of_prompts(numbers: Sequence[int]) -> Iterator[None]:
    """Let what names a prompt by its place among several name it by its number."""
    try:
        yield
    except NotFiniteError as error:
        prompt = error.prompt if error.prompt is None else numbers[error.prompt]
        raise NotFiniteError(error.what, error.position, error.value, prompt) from None
