"""Numbers that are none: found where they first stand, and told as an error that names the tensor, the prompt and the position.

NaN compares as false with everything, so a latent whose pre-activation is NaN would count as not active, and an attribution
over it as an empty one. What is not finite in the stream goes on to every later place of its position, so a prompt is asked
at its ends alone, and place by place only where something is wrong there.

An accelerator is waited for at each question. Whoever has several, and lets nothing out before they are answered, asks them together
(`asked_together`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.core.devices import Copies, to_host
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


class Together:
    """Questions that have not been answered yet."""

    def __init__(self) -> None:
        self.numbers: list[Tensor] = []
        self.looks: list[tuple[int, Callable[[], None]]] = []
        self.also: list[Tensor] = []
        """What is brought to the host beside the answers."""
        self.copies = Copies()
        """Of these, once all is answered."""

    def answer(self) -> None:
        """Wait for all numbers at once, and look closely, in the order of the questions, where one is not finite."""
        count, (numbers, looks) = len(self.numbers), (self.numbers, self.looks)
        self.numbers, self.looks = [], []
        here = to_host([*numbers, *self.also])
        self.copies = Copies(self.also, here[count:])
        first = 0
        for many, look in looks:
            if not all(bool(number.isfinite()) for number in here[first : first + many]):
                look()
            first += many


_TOGETHER: ContextVar[Together | None] = ContextVar("together", default=None)


@contextmanager
def asked_together() -> Iterator[Together]:
    """What is asked of an accelerator's numbers within it is answered at its end; what raises there has its answers first."""
    together = Together()
    token = _TOGETHER.set(together)
    try:
        try:
            yield together
        finally:
            _TOGETHER.reset(token)
    except Exception:
        together.also = []
        together.answer()  # numbers that are none may be why
        raise
    together.answer()


def ask(numbers: Sequence[Float[Tensor, ""]], look: Callable[[], None], *, now: bool = False) -> None:
    """See that numbers are finite, now or with others (`asked_together`); where one is not, `look`, which may raise.

    Args:
        now: whether what follows cannot be computed else.
    """
    together = _TOGETHER.get()
    if together is None or now or not numbers or numbers[0].device.type == "cpu":
        if not all(bool(number.isfinite()) for number in to_host(numbers)):
            look()
        return
    together.numbers += numbers
    together.looks.append((len(numbers), look))


def require_finite(
    values: Mapping[str, Float[Tensor, "*_"]], *, from_below: bool = False, position: Int[Tensor, " rows"] | None = None, now: bool = False
) -> None:
    """See that tensors of one prompt hold numbers, with one question to their device.

    Args:
        values: by what an error is to call them, in order of computation.
        from_below: see `bad`.
        position: of each row; None is one row for each position.
        now: see `ask`.

    Raises:
        NotFiniteError: for the first that does not, with its first position.
    """
    ask([total(value) for value in values.values()], partial(_look, values, from_below, position), now=now)


def _look(values: Mapping[str, Float[Tensor, "*_"]], from_below: bool, position: Int[Tensor, " rows"] | None) -> None:
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
