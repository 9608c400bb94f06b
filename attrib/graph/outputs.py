"""What a graph is of: logits, directions, the tokens of an answer, or latents. Each is read at the end of the stream, or where it says."""

from collections.abc import Callable, Iterator
from itertools import groupby
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.positions import Positions
from attrib.core.sparse import columns_of
from attrib.core.types import Difference, Direction, InputError, Logits, Policy, Site, TokenLogits, TopLogits
from attrib.graph.latents import Latents, LatentsOf, as_latents
from attrib.models.tokens import token_strings
from attrib.models.transformer import Model, cap, normalise, unembed
from attrib.paths.targets import Read, as_logits, read_direction, read_logits


class Span(NamedTuple):
    """The logit of every token of the prompt from position `first` to before `end`, each read at the position before it.

    Put a model's answer behind its prompt, and all tokens of the answer are targets at once. Numbers may count from the end.
    """

    first: int
    end: int | None = None


class Custom(NamedTuple):
    """A direction with a name and a weight: the stream at `site` (default: the last) dotted with `vector`."""

    label: str
    vector: "Float[Tensor, ' d_model']"
    weight: float = 1.0
    """By how much it counts when influence is asked for, beside the probabilities of logits."""
    site: Site | None = None
    unembeds: bool = False
    """Whether the vector is as a column of W_U is, behind the last norm: sums of such columns are sums of logits."""


Output = Logits | Span | Custom | Latents
ReadOutput = Logits | Span | Custom | LatentsOf
"""An output of which it is known where it is read."""


def as_outputs(given: Any) -> tuple[Output, ...]:
    """Outputs from one or several: choices of logits as `latent_to_logit` takes them, spans, custom directions and latents.

    A triple (label, weight, vector) is a custom direction behind the last norm. In a list texts and numbers are tokens.

    Raises:
        InputError: for what is none.
    """
    is_list = isinstance(given, list | tuple) and not hasattr(given, "_fields") and not _is_triple(given)
    found = tuple(map(_as_output, _listed(given) if is_list else [given]))
    if not found:
        raise InputError(
            "targets: none; expected choices of logits such as TopLogits(10), Span(first), Custom(label, vector) or Latents([...])."
        )
    return found


def _listed(given: Any) -> Iterator[Any]:
    """What stands in a list, with tokens that lie side by side as one choice."""
    for is_token, some in groupby(given, lambda one: isinstance(one, str | Integral) or getattr(one, "ndim", None) == 0):
        side_by_side = list(some)
        yield from [side_by_side] if is_token else side_by_side


def _is_triple(one: Any) -> bool:
    """Whether it is a label, a weight and a vector, as circuit-tracer has them."""
    if type(one) is not tuple or len(one) != 3 or not isinstance(one[0], str) or not isinstance(one[1], Real):
        return False
    return not isinstance(one[2], str | Integral) and getattr(one[2], "ndim", 1) == 1


def _as_output(one: Any) -> Output:
    if isinstance(one, Span):
        if not all(isinstance(at, int) and not isinstance(at, bool) for at in one if at is not None):
            raise InputError(f"targets: {one}; expected whole numbers, or None for the end of the prompt.")
        return one
    if isinstance(one, Latents):
        return as_latents(one)
    if _is_triple(one):
        one = Custom(one[0], one[2], one[1], unembeds=True)
    return _as_custom(one) if isinstance(one, Custom) else as_logits(one)


def _as_custom(one: Custom) -> Custom:
    direction = as_logits(Direction(one.vector, one.site))
    assert isinstance(direction, Direction)
    if not isinstance(one.label, str) or not isinstance(one.weight, int | float) or not 0 <= one.weight < float("inf"):
        raise InputError(f"targets: Custom({one.label!r}, weight={one.weight!r}); expected a text and a weight of at least 0, and finite.")
    if not isinstance(one.unembeds, bool) or (one.unembeds and one.site is not None):
        raise InputError(
            f"targets: Custom({one.label!r}, site={one.site}, unembeds={one.unembeds!r}); expected no site where the last norm is passed."
        )
    return one._replace(vector=direction.vector)


def as_logits_read(what: Logits | Span | Custom) -> Logits:
    """A choice of logits that is read at the same place."""
    match what:
        case Span():
            return TopLogits(1)
        case Custom(vector=vector, site=site):
            return Direction(vector, site)
    return what


class OutputRead(NamedTuple):
    """What is read of an output, and by how much each row of it counts."""

    read: Read
    importance: Float[Tensor, " rows"]
    is_logit: bool


def read_output(
    model: Model,
    what: Logits | Span | Custom,
    tokens: Int[Tensor, " positions"],
    x: Float[Tensor, "positions _"],
    positions: Positions,
    policy: Policy,
    demean: bool,
) -> OutputRead:
    """An output of one prompt.

    Args:
        x: the true value where it is read.
        demean: whether a logit is read less the mean of all logits at its position, and before a cap; see `build`.
    """
    match what:
        case Custom(label=label, vector=vector, weight=weight, unembeds=unembeds):
            read = read_direction(Direction(vector), x, positions)
            count = len(read.position)
            if unembeds:
                read = read._replace(function=_behind_norm(model, vector.to(x), policy))
            return OutputRead(read._replace(labels=(label,) * count), x.new_full((count,), float(weight)), False)
        case Direction():
            read = read_direction(what, x, positions)
            return OutputRead(read, x.new_ones(len(read.position)), False)
        case Difference():
            read = read_logits(model, what, x, positions, policy)
            return OutputRead(read, x.new_ones(len(read.position)), False)
        case Span(first=first, end=end):
            read = _read_span(model, tokens, first, end, x, policy)
        case TopLogits() | TokenLogits():
            read = read_logits(model, what, x, positions, policy)
    assert read.probability is not None
    return OutputRead(_demeaned(model, read, policy) if demean else read, read.probability, True)


def _read_span(
    model: Model, tokens: Int[Tensor, " positions"], first: int, end: int | None, x: Float[Tensor, "positions d_model"], policy: Policy
) -> Read:
    """Token by token, each by itself at the position before it."""
    chosen = range(len(tokens))[first:end]
    if not chosen or chosen[0] == 0:
        raise InputError(
            f"targets: {Span(first, end)} of a prompt of {len(tokens)} tokens; expected some of its tokens, behind the first, whose logit "
            "no position gives."
        )
    at = torch.tensor([place - 1 for place in chosen], device=x.device)
    latent = tokens.index_select(0, at + 1)
    probability = unembed(model, x.index_select(0, at)).softmax(-1).gather(1, latent[:, None])[:, 0]
    columns, offsets = columns_of(model.params.W_U, latent), model.params.b_U.index_select(0, latent)

    def function(rows: Float[Tensor, "targets d_model"]) -> Float[Tensor, " targets"]:
        raw = (normalise(model.config, model.params.norm_final, rows, policy) * columns).sum(-1) + offsets
        return cap(raw, model.config.logit_cap, policy)

    return Read(at, latent, function, token_strings(model, latent), probability)


def _behind_norm(model: Model, vector: Float[Tensor, " d_model"], policy: Policy) -> Callable[[Tensor], Tensor]:
    """The stream behind the last norm dotted with a vector."""

    def function(rows: Float[Tensor, "targets d_model"]) -> Float[Tensor, " targets"]:
        return normalise(model.config, model.params.norm_final, rows, policy) @ vector

    return function


def _demeaned(model: Model, read: Read, policy: Policy) -> Read:
    """The same logits less the mean over the vocabulary, before any cap."""
    W_U, b_U = model.params.W_U, model.params.b_U
    columns, offsets = columns_of(W_U, read.latent) - W_U.mean(1), b_U.index_select(0, read.latent) - b_U.mean()

    def function(rows: Float[Tensor, "targets d_model"]) -> Float[Tensor, " targets"]:
        return (normalise(model.config, model.params.norm_final, rows, policy) * columns).sum(-1) + offsets

    return read._replace(function=function)
