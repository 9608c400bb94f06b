"""What a graph is of: logits, directions, or the tokens of an answer. Each is read at the end of the stream, or where it says."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.positions import Positions
from attrib.core.sparse import columns_of
from attrib.core.types import Difference, Direction, InputError, Logits, Policy, Site, TokenLogits, TopLogits
from attrib.models.tokens import token_strings
from attrib.models.transformer import Model, cap, normalise, unembed
from attrib.paths.targets import Read, as_logits, read_direction, read_logits, read_site


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


Output = Logits | Span | Custom


def as_outputs(given: Any) -> tuple[Output, ...]:
    """Outputs from one or several: choices of logits as `latent_to_logit` takes them, spans and custom directions.

    Raises:
        InputError: for what is none.
    """
    is_list = isinstance(given, list | tuple) and not hasattr(given, "_fields")
    of_several = is_list and any(hasattr(one, "_fields") for one in given)  # else a list of tokens, which is one choice
    found = tuple(_as_output(one) for one in (given if of_several else [given]))
    if not found or (is_list and not given):
        raise InputError("targets: none; expected choices of logits such as TopLogits(10), Span(first) or Custom(label, vector).")
    return found


def _as_output(one: Any) -> Output:
    if isinstance(one, Span):
        if not all(isinstance(at, int) and not isinstance(at, bool) for at in one if at is not None):
            raise InputError(f"targets: {one}; expected whole numbers, or None for the end of the prompt.")
        return one
    if isinstance(one, Custom):
        direction = as_logits(Direction(one.vector, one.site))
        assert isinstance(direction, Direction)
        if not isinstance(one.label, str) or not isinstance(one.weight, int | float) or not one.weight >= 0:
            raise InputError(f"targets: Custom({one.label!r}, weight={one.weight!r}); expected a text and a weight of at least 0.")
        return one._replace(vector=direction.vector)
    return as_logits(one)


def as_logits_read(what: Output) -> Logits:
    """A choice of logits that is read at the same place."""
    match what:
        case Span():
            return TopLogits(1)
        case Custom(vector=vector, site=site):
            return Direction(vector, site)
    return what


def output_site(model: Model, what: Output) -> Site:
    """Where it is read. Raises InputError where it does not fit the model."""
    return read_site(model, as_logits_read(what))


class OutputRead(NamedTuple):
    """What is read of an output, and by how much each row of it counts."""

    read: Read
    importance: Float[Tensor, " rows"]
    is_logit: bool


def read_output(
    model: Model,
    what: Output,
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
        case Custom(label=label, vector=vector, weight=weight):
            read = read_direction(Direction(vector), x, positions)
            count = len(read.position)
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


def _demeaned(model: Model, read: Read, policy: Policy) -> Read:
    """The same logits less the mean over the vocabulary, before any cap."""
    W_U, b_U = model.params.W_U, model.params.b_U
    columns, offsets = columns_of(W_U, read.latent) - W_U.mean(1), b_U.index_select(0, read.latent) - b_U.mean()

    def function(rows: Float[Tensor, "targets d_model"]) -> Float[Tensor, " targets"]:
        return (normalise(model.config, model.params.norm_final, rows, policy) * columns).sum(-1) + offsets

    return read._replace(function=function)
