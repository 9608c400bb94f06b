"""Chosen logits of the last stream: only their columns of the unembedding are touched."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import Difference, Direction, InputError, Policy, TokenLogits
from attrib.models.tokens import token_ids, token_strings
from attrib.models.transformer import Model, unembed
from attrib.passes.beside import Recorded, read_beside
from attrib.paths.targets import LogitsLike, as_logits, read_site


@dataclass(frozen=True)
class Readout:
    """What is read of the last stream: logits of tokens, a difference of them, or a direction."""

    narrow: Model
    """The model with the columns of these tokens alone in its unembedding."""
    labels: tuple[str, ...]
    mix: Float[Tensor, "tokens read"] | None = None
    """What is made of the tokens' logits; None is themselves."""
    direction: Float[Tensor, " d_model"] | None = None

    @property
    def is_number(self) -> bool:
        """Whether one number is read, and not a row of them."""
        return self.mix is not None or self.direction is not None

    def __call__(
        self, held: Recorded, last: Float[Tensor, "*batch rows d_model"], rows: slice | Int[Tensor, " rows"], policy: Policy
    ) -> Float[Tensor, "*batch rows read"]:
        """What is read.

        Args:
            last: the last stream, of some rows of a prompt.
            held, policy: what is held of the final norm, and whether it is.
            rows: which of the prompt's rows these are.
        """
        if self.direction is not None:
            return (last @ self.direction)[..., None]
        found = read_beside(self.narrow, held, partial(unembed, self.narrow, policy=policy), last, rows, policy)
        return found if self.mix is None else found @ self.mix


def readout(model: Model, given: LogitsLike, argument: str) -> Readout:
    """What is read, of a choice of logits that names its tokens.

    Raises:
        InputError: for what is no choice of logits of this model, the largest ones (which are other ones under other edits), and a
            direction at another site than the last.
    """
    logits = as_logits(given)
    match logits:
        case Direction(site=site) if site not in (None, model.config.last):
            raise InputError(f"{argument}: a Direction at {site}; expected one at the last site.")
        case Direction():
            read_site(model, logits)
            return Readout(model, ("direction",), direction=logits.vector.to(dtype=model.dtype, device=model.device))
        case TokenLogits(tokens=tokens):
            return of_tokens(model, token_ids(model, tokens, argument).tolist())
        case Difference():
            return _difference(model, logits, argument)
    raise InputError(f"{argument}: {logits}, and which are largest depends on the edits; expected TokenLogits, Difference or Direction.")


def of_tokens(model: Model, ids: Sequence[int]) -> Readout:
    """The logits of these tokens."""
    chosen = torch.tensor(list(ids), device=model.device)
    return Readout(narrowed(model, chosen), token_strings(model, chosen))


def _difference(model: Model, what: Difference, argument: str) -> Readout:
    a, b = (token_ids(model, side, argument) for side in what)
    shares = [torch.full((len(a),), 1 / len(a)), torch.full((len(b),), -1 / len(b))]
    label = " - ".join(" + ".join(token_strings(model, side)) for side in (a, b))
    mix = torch.cat(shares).to(dtype=model.dtype, device=model.device)[:, None]
    return Readout(narrowed(model, torch.cat([a, b])), (label,), mix)


def narrowed(model: Model, ids: Int[Tensor, " tokens"]) -> Model:
    """The model whose unembedding has the columns of these tokens alone."""
    params = model.params
    narrow = params._replace(W_U=params.W_U.index_select(1, ids), b_U=params.b_U.index_select(0, ids))
    return replace(model, params=narrow)
