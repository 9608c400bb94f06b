"""The model as heads and MLPs with an edge between each two, and EAP-IG over them: the baseline without dictionaries.

A component v (a head, an MLP, the logits) reads the sum of what all earlier ones u write (embeddings, heads, MLPs). Where the edge from
u to v is taken out, v reads in the place of what u writes its mean over prompts, or nothing:

    x_v = Σ_u kept[v, u] out_u + (1 - kept[v, u]) ref_u + biases of attention

EAP-IG (Hanna et al. 2024) scores an edge by the gradient at v's input, averaged over embeddings on the straight way from the reference to
the prompt; with one point at its end it is edge attribution patching (Syed et al. 2023):

    score[v, u] = (out_u - ref_u) · (1/points) Σ_t ∂m/∂x_v at embeddings ref + t (x_0 - ref),   t = 1/points, 2/points, ..., 1

Scores are summed over positions and averaged over prompts. For models whose blocks read one normed stream: attention, then the MLP.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_model, takes
from attrib.attribution.needs import constant
from attrib.causal.faithfulness_curves import Faithfulness, checked_counts, curves
from attrib.causal.generators import Contrast
from attrib.causal.keeping import Reference, Score, aligned, logit_difference, scores
from attrib.causal.rankings import PASSES
from attrib.core.room import memory_named
from attrib.core.types import InputError, UnsupportedError
from attrib.models.transformer import (
    Model,
    Projected,
    embed,
    mlp,
    normalise,
    pattern_of,
    turned_heads,
    unembed,
)

EdgeRule = Literal["EAP-IG", "EAP", "random"]

Outputs = Float[Tensor, "components prompts positions d_model"]


class EdgeRanking(NamedTuple):
    """A score for each edge between components: the larger, the sooner it is kept."""

    name: str
    scores: Float[Tensor, "readers writers"]
    """Where a writer is not before a reader, the score is of no edge."""


@dataclass(frozen=True)
class Components:
    """A model's components: writers are the embeddings and then, layer by layer, its heads and its MLP; readers all but the first, and
    the logits at the end."""

    model: Model

    def __post_init__(self) -> None:
        c = self.model.config
        if c.parallel or c.post_norm or not c.pre_norm:
            raise UnsupportedError(
                f"model: {self.model.name} has blocks in which attention and MLP stand side by side, or norms behind them; edges between "
                "components are for models whose attention and MLP each read the normed stream before them."
            )

    @property
    def per_layer(self) -> int:
        """How many components a layer has."""
        return self.model.config.n_heads + 1

    @property
    def count(self) -> int:
        """How many write, and how many read."""
        return 1 + self.model.config.n_layers * self.per_layer

    @property
    def names(self) -> list[str]:
        """Of all that write, and the logits behind them."""
        heads = self.model.config.n_heads
        each = [[*(f"attn{layer}[{head}]" for head in range(heads)), f"mlp{layer}"] for layer in range(self.model.config.n_layers)]
        return ["embed", *(name for names in each for name in names), "logits"]

    @cached_property
    def edges(self) -> tuple[Int[Tensor, " edges"], Int[Tensor, " edges"]]:
        """The reader and the writer of each edge. Heads of one layer do not read each other, and its MLP reads them."""
        found = torch.zeros(self.count, self.count, dtype=torch.bool)
        for layer in range(self.model.config.n_layers):
            first = 1 + layer * self.per_layer  # as a writer; as a reader it has one number less
            found[first - 1 : first - 1 + self.per_layer - 1, :first] = True
            found[first + self.per_layer - 2, : first + self.per_layer - 1] = True
        found[-1] = True
        reader, writer = found.nonzero(as_tuple=True)
        return reader, writer

    @cached_property
    def _apart(self) -> Model:
        """The model with keys and values of its own for each head, so that each can read something else."""
        config, blocks = self.model.config, []
        group = config.n_heads // config.n_kv_heads
        for block in self.model.params.blocks:
            a = block.attention
            W_K, W_V = (repeat(W, "d (kv e) -> d (kv group e)", group=group, e=config.d_head) for W in (a.W_K, a.W_V))
            b_K, b_V = (repeat(b, "(kv e) -> (kv group e)", group=group, e=config.d_head) for b in (a.b_K, a.b_V))
            if config.qk_norm == "whole":
                raise UnsupportedError(f"model: {self.model.name} norms the keys of all heads together, so no head can read by itself.")
            blocks.append(block._replace(attention=a._replace(W_K=W_K, b_K=b_K, W_V=W_V, b_V=b_V)))
        params = self.model.params._replace(blocks=tuple(blocks))
        return replace(self.model, params=params, config=replace(config, n_kv_heads=config.n_heads))

    def run(
        self,
        embedded: Float[Tensor, "prompts positions d_model"],
        kept: Float[Tensor, "readers writers"] | None = None,
        reference: Float[Tensor, "writers positions d_model"] | None = None,
        extra: Float[Tensor, "readers prompts positions d_model"] | None = None,
    ) -> tuple[Float[Tensor, "prompts positions d_vocab"], Float[Tensor, "writers prompts positions d_model"]]:
        """Logits, and what each component writes.

        Args:
            kept: which edges are kept, all where it is None; the others carry the `reference`.
            extra: what is added to the input of each reader, to differentiate by.
        """
        config, heads = self.model.config, self.model.config.n_heads
        written = [embedded[None]]
        stream, bias = embedded, torch.zeros_like(embedded)  # the stream is looked at where all edges are kept

        def read(first: int, last: int) -> Float[Tensor, "some prompts positions d_model"]:
            if kept is None or reference is None:
                x = (stream + bias).expand(last - first, *embedded.shape)
            else:
                out = torch.cat(written)
                by = reference[: len(out), None]
                x = torch.einsum("vu,ubpd->vbpd", kept[first:last, : len(out)], out - by) + by.sum(0) + bias
            return x if extra is None else x + extra[first:last]

        for layer, block in enumerate(self.model.params.blocks):
            first = layer * self.per_layer
            x = normalise(config, block.norm_1, read(first, first + heads))
            written.append(self._heads(layer, x))
            stream, bias = stream + written[-1].sum(0), bias + block.attention.b_O
            x = read(first + heads, first + heads + 1)[0]
            written.append(mlp(self.model, layer, normalise(config, block.norm_2, x))[None])
            stream = stream + written[-1][0]
        return unembed(self.model, read(self.count - 1, self.count)[0]), torch.cat(written)

    def _heads(self, layer: int, x: Float[Tensor, "heads prompts positions d_model"]) -> Outputs:
        """What each head of a layer writes, from what each reads."""
        model, config = self._apart, self._apart.config
        a = model.params.blocks[layer].attention

        def projected(W: Tensor, b: Tensor) -> Tensor:
            apart = torch.einsum("hbpd,dhe->bphe", x, rearrange(W, "d (h e) -> d h e", h=config.n_heads))
            return rearrange(apart, "b p h e -> b p (h e)") + b

        q, k, v = turned_heads(model, layer, Projected(projected(a.W_Q, a.b_Q), projected(a.W_K, a.b_K), projected(a.W_V, a.b_V)))
        pattern = pattern_of(model, layer, q, k)[:, :, 0]
        z = torch.einsum("bhqk,bhke->bhqe", pattern, v)
        return torch.einsum("bhqe,hed->hbqd", z, rearrange(a.W_O, "(h e) d -> h e d", h=config.n_heads))


def _reference(there: Components, embedded: Tensor, ablate: str) -> Float[Tensor, "writers positions d_model"]:
    if ablate not in get_args(Reference):
        raise InputError(f"ablate: {ablate!r}; expected 'zero' or 'mean'.")
    _, written = there.run(embedded)
    return written.mean(1) if ablate == "mean" else torch.zeros_like(written[:, 0])


@memory_named("ranking edges")
@takes(model=as_model)
def rank_edges(
    model: Model,
    examples: Sequence[Contrast],
    rule: str = "EAP-IG",
    *,
    metric: Score = logit_difference,
    ablate: str = "mean",
    points: int = 5,
    seed: int = 0,
) -> EdgeRanking:
    """Rank the edges between a model's components by the size of their mean score over prompts.

    The arguments are those of `rank`, and the errors.

    Raises:
        UnsupportedError: for models with parallel blocks, norms behind what is written, or keys that are normed together.
    """
    if rule not in get_args(EdgeRule):
        raise InputError(f"rule: {rule!r}; expected one of {', '.join(get_args(EdgeRule))}.")
    if isinstance(points, bool) or not isinstance(points, int) or points < 1:
        raise InputError(f"points: {points!r}; expected a whole number, 1 or more.")
    there, tokens = Components(constant(model)), aligned(examples, "examples")
    if rule == "random":
        return EdgeRanking(rule, torch.rand(there.count, there.count, generator=torch.Generator().manual_seed(seed)))
    embedded = embed(there.model, tokens)
    with torch.no_grad():
        reference = _reference(there, embedded, ablate)
    points = points if rule == "EAP-IG" else 1
    found = torch.zeros(there.count, there.count, dtype=embedded.dtype)
    for some in torch.arange(len(tokens)).split(max(1, PASSES // (4 * tokens.shape[1]))):
        chosen, x = [examples[place] for place in some.tolist()], embedded[some]
        with torch.no_grad():
            moved = there.run(x)[1] - reference[:, None]
        for point in range(points):
            share = (point + 1) / points
            extra = x.new_zeros(there.count, *x.shape).requires_grad_()
            with torch.enable_grad():
                total = scores(metric, there.run(reference[0] + share * (x - reference[0]), extra=extra)[0], chosen).sum()
                (gradient,) = torch.autograd.grad(total, extra)
            found += torch.einsum("vbpd,ubpd->vu", gradient, moved) / (points * len(tokens))
    return EdgeRanking(rule, found.abs())


@memory_named("measuring faithfulness")
@takes(model=as_model)
@torch.no_grad()
def edge_faithfulness(
    model: Model,
    examples: Sequence[Contrast],
    ranking: EdgeRanking,
    *,
    held_out: Sequence[Contrast] | None = None,
    metric: Score = logit_difference,
    keep: Sequence[int] | None = None,
    ablate: str = "mean",
    seed: int = 0,
) -> Faithfulness:
    """`faithfulness` of edges between components: curves of a metric against the number of edges kept. The arguments and errors are its."""
    there = Components(constant(model))
    parts = {"train": (examples, aligned(examples, "examples"))}
    if held_out is not None:
        parts["held out"] = (held_out, aligned(held_out, "held_out"))
    if len({tokens.shape[1] for _, tokens in parts.values()}) > 1:
        raise InputError("held_out: prompts of another length than examples; expected one length.")
    reader, writer = there.edges
    if ranking.scores.shape != (there.count, there.count) or bool(ranking.scores[reader, writer].isnan().any()):
        raise InputError(f"ranking: expected numbers of [{there.count}, {there.count}], readers and writers of {there.model.name}.")
    order = ranking.scores[reader, writer].argsort(descending=True, stable=True)
    reference = _reference(there, embed(there.model, parts["train"][1]), ablate)

    def measured(part: str, out: Float[Tensor, " edges"]) -> Float[Tensor, " prompts"]:
        some, tokens = parts[part]
        kept = reference.new_zeros(there.count, there.count).index_put((reader, writer), 1 - out.to(reference))
        values = []
        for rows in torch.arange(len(tokens)).split(max(1, PASSES // tokens.shape[1])):
            logits, _ = there.run(embed(there.model, tokens[rows]), kept, reference)
            values.append(scores(metric, logits, [some[row] for row in rows.tolist()]))
        return torch.cat(values)

    counts = checked_counts(keep, len(order))
    call = {"metric": getattr(metric, "__name__", "metric"), "ablate": ablate, "seed": seed}
    return curves(ranking.name, order, counts, measured, [*parts], call)
