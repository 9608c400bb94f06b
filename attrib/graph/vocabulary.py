"""De-embeddings and logit weights: which tokens a latent reads most, and which logits it raises most, by the weights alone.

    de-embedding     W_E[v] · e_j, times the scale by which a model multiplies embeddings
    logit weight     ((d_i C) ⊙ w_final) · W_U[:, v], with the weight of the last norm

e_j, d_i and C as in stream.py, and what is left out of both as well; the positions' embeddings, the unembedding's bias and a cap on
logits too.
A shift of all logits changes no probability, so logit weights are taken less their mean over the vocabulary unless that is not wanted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_model, takes
from attrib.core.room import memory_named
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph.stream import (
    Heads,
    LatentsLike,
    Reader,
    added,
    as_directions,
    check_passes,
    chosen_heads,
    circuit_bytes,
    dtype_of,
    fitting,
    in_head_space,
    ov_circuit,
    parts_reaching,
    read_when,
    reader,
    require_numbers,
    writer,
)
from attrib.models.tokens import token_strings
from attrib.models.transformer import Model

if TYPE_CHECKING:
    import pandas as pd

VOCABULARY_TILE = 4096
"""Rows of a table of tokens that are converted together, where it is in a dtype of fewer digits than products are computed in."""


@dataclass(frozen=True, repr=False)
class TokenWeights:
    """For each latent the k tokens of largest weight, largest first, and the k of lowest weight, lowest first.

    Of tokens of equal weight any may come first.
    """

    latent: Int[Tensor, " latents"]
    highest: Int[Tensor, "latents k"]
    highest_weight: Float[Tensor, "latents k"]
    lowest: Int[Tensor, "latents k"]
    lowest_weight: Float[Tensor, "latents k"]

    def __len__(self) -> int:
        return len(self.latent)

    def __repr__(self) -> str:
        return f"TokenWeights({len(self):,} latents, {self.highest.shape[1]} tokens each)"

    def to_pandas(self, model: Model) -> "pd.DataFrame":
        """One row for each latent and rank, with the tokens as the model's tokenizer spells them."""
        import pandas as pd

        k = self.highest.shape[1]
        table: dict[str, Any] = {"latent": self.latent.repeat_interleave(k).numpy(), "rank": torch.arange(k).repeat(len(self)).numpy()}
        for name, token, weight in (("highest", self.highest, self.highest_weight), ("lowest", self.lowest, self.lowest_weight)):
            table[f"{name}_token"] = token_strings(model, token.flatten())
            table[f"{name}_weight"] = weight.flatten().numpy()
        return pd.DataFrame(table)


@dataclass(frozen=True, repr=False)
class LogitHistogram:
    """For each latent, how many logit weights lie between two edges: the first half of the bins is below zero, the second from zero on.

    Both halves are divided evenly, from the lowest weight to zero and from zero to the highest; where no weight has a sign, its half is
    of no width and empty.
    """

    latent: Int[Tensor, " latents"]
    edges: Float[Tensor, "latents bins_plus_1"]
    count: Int[Tensor, "latents bins"]  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"LogitHistogram({len(self.latent):,} latents, {self.count.shape[1]} bins each)"

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each latent and bin."""
        import pandas as pd

        columns = {"low": self.edges[:, :-1], "high": self.edges[:, 1:], "count": self.count}
        latent = self.latent.repeat_interleave(self.count.shape[1])
        return pd.DataFrame({"latent": latent.numpy()} | {name: column.flatten().numpy() for name, column in columns.items()})


@takes(model=as_model, target=as_directions, budget=as_bytes)
@memory_named("making de-embeddings", "Choose fewer latents.")
@torch.no_grad()
def de_embeddings(
    model: Model,
    target: Dictionary | Tensor,
    latents: LatentsLike = None,
    *,
    attention: int | None = None,
    heads: Heads = None,
    k: int = 10,
    budget: int = DEFAULT_BUDGET,
) -> TokenWeights:
    """Which tokens' embeddings the latents of `target` read most.

    Args:
        target: a dictionary; or directions of the stream [directions, d_model], of which each counts as a latent.
        latents: which of its latents: numbers, a slice, or a mask. None is all.
        attention: the layer whose heads move the embedding to where it is read; 0 is what the first layer makes of it. None is directly.
        heads: which of its heads, added up. None is all of them.
        k: how many tokens at either end.
        budget: bytes of working memory, beside the parameters and the result.

    Raises:
        InputError: for a dictionary of another model; for one that does not read the stream, or not behind the attention that is passed.
        BudgetError: where the budget is too small for one latent.
    """
    reads, passed = reader(model, target, latents, "target", "latents"), chosen_heads(model, attention, heads)
    check_reads_stream(model, reads, attention)
    circuit = None if passed is None or attention is None else ov_circuit(model, attention, passed)

    def directions(first: int, last: int) -> Float[Tensor, "d_model latents"]:
        columns = reads.columns(first, last)
        columns = columns if circuit is None else circuit.W_V @ in_head_space(circuit, reads.site, columns)
        return columns * model.config.embedding_scale

    fixed = 0 if passed is None else circuit_bytes(model, len(passed))
    return _strongest(_Tiles(model.params.W_E, reads.latent, directions, reads.width, fixed, budget, demean=False), model, k)


@takes(model=as_model, source=as_directions, budget=as_bytes)
@memory_named("making logit weights", "Choose fewer latents.")
@torch.no_grad()
def logit_weights(
    model: Model,
    source: Dictionary | Tensor,
    latents: LatentsLike = None,
    *,
    attention: int | None = None,
    heads: Heads = None,
    k: int = 10,
    demean: bool = True,
    budget: int = DEFAULT_BUDGET,
) -> TokenWeights:
    """Which logits the latents of `source` raise and lower most, through the last norm's weights and the unembedding.

    Args:
        source: a dictionary, all of whose sites are summed; or directions of the stream [directions, d_model].
        latents: which of its latents: numbers, a slice, or a mask. None is all.
        attention: a later layer whose heads move what is written. None is straight through the stream.
        heads: which of its heads, added up. None is all of them.
        k: how many tokens at either end.
        demean: whether each latent's mean over the vocabulary is taken off: a shift of all logits changes no probability.
        budget: bytes of working memory, beside the parameters and the result.

    Raises:
        InputError: for a dictionary of another model, or one that does not write the stream that the attention or the unembedding reads.
        BudgetError: where the budget is too small for one latent.
    """
    return _strongest(_onto_logits(model, source, latents, attention, heads, demean, budget), model, k)


@takes(model=as_model, source=as_directions, budget=as_bytes)
@memory_named("counting logit weights", "Choose fewer latents.")
@torch.no_grad()
def logit_histogram(
    model: Model,
    source: Dictionary | Tensor,
    latents: LatentsLike = None,
    *,
    attention: int | None = None,
    heads: Heads = None,
    bins: int = 20,
    demean: bool = True,
    budget: int = DEFAULT_BUDGET,
) -> LogitHistogram:
    """How the logit weights of latents are spread over the vocabulary: those of which `logit_weights` gives both ends.

    Args:
        bins: how many on either side of zero.

    The other options and errors are those of `logit_weights`.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise InputError(f"bins: {bins!r}; expected a whole number, at least 1, on either side of zero.")
    tiles = _onto_logits(model, source, latents, attention, heads, demean, budget)
    part, found = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=model.device), []
    for weight in tiles.weights(model):
        low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
        edges = torch.cat([low[:, None] * part.flip(0)[:-1], high[:, None] * part], dim=1).to(weight)
        at = (torch.searchsorted(edges, weight, right=True) - 1).clamp_(0, 2 * bins - 1)
        count = torch.zeros(len(weight), 2 * bins, dtype=torch.int64, device=weight.device)
        found.append((edges.cpu(), count.scatter_add_(1, at, torch.ones_like(at)).cpu()))
    edges, count = (torch.cat(column) for column in zip(*found, strict=True))
    return LogitHistogram(tiles.latent, edges, count)


def _onto_logits(
    model: Model,
    source: Dictionary | Tensor,
    latents: LatentsLike,
    attention: int | None,
    heads: Heads,
    demean: bool,
    budget: int,
) -> "_Tiles":
    """What latents write, against the columns of the unembedding."""
    writes, passed = writer(model, source, latents, "source", "latents"), chosen_heads(model, attention, heads)
    parts = parts_reaching(model, writes, None, attention)
    circuit = None if passed is None or attention is None else ov_circuit(model, attention, passed)

    def directions(first: int, last: int) -> Float[Tensor, "d_model latents"]:
        rows = writes.rows(first, last, parts)
        rows = rows if circuit is None else rows @ circuit.W_V @ circuit.W_O
        return added(model.config, model.params.norm_final, rows).T

    fixed = 0 if passed is None else circuit_bytes(model, len(passed))
    return _Tiles(model.params.W_U.T, writes.latent, directions, writes.width, fixed, budget, demean)


def check_reads_stream(model: Model, reads: Reader, attention: int | None) -> None:
    """Raises InputError where a reader does not read the stream, or not behind the attention that is passed."""
    if attention is not None:
        check_passes(model, reads.site, attention)
    elif (site := reads.site) is not None and read_when(model, site) is None:
        way = f" Pass it: attention={site.layer}." if site.kind in ("z", "attn_out") else " Take a dictionary of another place."
        raise InputError(f"target: it reads {site}, what one component gives, and not the stream that holds embeddings.{way}")


class _Tiles(NamedTuple):
    """Latents against a table of the vocabulary, some latents at a time."""

    table: Float[Tensor, "d_vocab d_model"]
    latent: Int[Tensor, " latents"]
    directions: Callable[[int, int], Float[Tensor, "d_model latents"]]
    """Of some latents, by the first and the one behind the last."""
    width: int
    """Numbers that are held for one latent while its direction is made."""
    fixed: int
    """Bytes that are held beside them."""
    budget: int
    demean: bool

    def weights(self, model: Model) -> Iterator[Float[Tensor, "some d_vocab"]]:
        """The weight of every token for some latents, and then for the next, as many as the budget allows."""
        config, number = model.config, dtype_of(model).itemsize
        is_converted = self.table.dtype != dtype_of(model)
        converted = number * config.d_model * min(VOCABULARY_TILE, config.d_vocab) if is_converted else 0
        each = number * (3 * config.d_vocab + 4 * (self.width + config.d_model)) + 8 * config.d_vocab
        rows = fitting(self.budget, each, len(self.latent), self.fixed + converted)
        for first in range(0, len(self.latent), rows):
            at = self.directions(first, min(first + rows, len(self.latent)))
            weight = torch.cat([at.T @ part.T for part in _parts(self.table, at, is_converted)], dim=1)
            require_numbers(weight, f"latents: those from {int(self.latent[first]):,} on")
            if self.demean:
                weight -= weight.mean(-1, keepdim=True)
            yield weight


def _strongest(tiles: _Tiles, model: Model, k: int) -> TokenWeights:
    """The strongest tokens of each latent."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= model.config.d_vocab:
        raise InputError(f"k: {k!r}; expected a whole number from 1 to the {model.config.d_vocab:,} tokens of {model.name}.")
    found = [[part.cpu() for largest in (True, False) for part in weight.topk(k, largest=largest)] for weight in tiles.weights(model)]
    highest_weight, highest, lowest_weight, lowest = (torch.cat(column) for column in zip(*found, strict=True))
    return TokenWeights(tiles.latent, highest, highest_weight, lowest, lowest_weight)


def _parts(table: Float[Tensor, "d_vocab d_model"], like: Tensor, is_converted: bool) -> Iterator[Float[Tensor, "tokens d_model"]]:
    """The table as it is, or part by part where it has to be converted."""
    if not is_converted:
        yield table
        return
    for part in table.split(VOCABULARY_TILE):
        yield part.to(like.dtype)
