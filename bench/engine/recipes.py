"""The other ways to the same Jacobian, each giving rows of J [targets, sources] with no code of the engine's.

The notebook's function goes densely through both dictionaries: with source latents a at (q_i, m_i) and
target latents b at (p_j, n_j),

    A = 0 [positions, d_sae],  A[q_i, m_i] = a_i         dense scatter
    x_A = A W_dec + b_dec + error                         dense decode
    x_B = segment(x_A)                                    the model's layers
    B = act(x_B W_enc + b_enc) [positions, d_sae]         dense encode
    f(a)_j = B[p_j, n_j]                                  the active ones

and J = ∂f/∂a. From tokens, x_A is the embedding times one scale per position; to logits, B is the
unembedding of every position and f reads the last. The ways to differentiate f:

    as_written         jacrev: one vmap over every target
    chunked            vmap(vjp) over chunks of targets
    autograd_batched   torch.autograd.grad(is_grads_batched=True) over chunks of targets

`through_attrib` is attrib's own path, under plain torch.func (method="torch.func") or the engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import jacrev, vjp, vmap

from attrib.core.edges import Edges, Nodes
from attrib.core.types import InputError, Site
from attrib.dictionaries.dictionary import Dictionary
from bench.engine import plain
from bench.engine.cases import Problem
from bench.engine.ours import Dtype, Method, attribute

MIN_CHUNK, MAX_CHUNK = 16, 128
"""More rows at once are not faster: at GPT-2's sizes 32 to 170 are alike, at SmolLM2's 256 take a third longer than 128."""

# ----------------------------------------------------------------------------- the notebook's function


class Dense(NamedTuple):
    """The notebook's function f at its primal point; nodes are (position, latent or token)."""

    function: Callable[[Float[Tensor, " sources"]], Float[Tensor, " targets"]]
    values: Float[Tensor, " sources"]
    sources: Int[Tensor, "sources 2"]
    targets: Int[Tensor, "targets 2"]


class Start(NamedTuple):
    """The leaves of the notebook's function and how they enter the stream."""

    nodes: Int[Tensor, "sources 2"]
    values: Float[Tensor, " sources"]
    enter: Callable[[Float[Tensor, " sources"]], Float[Tensor, "positions d_model"]]


def layer_of(site: Site) -> int:
    """The layer that a residual site stands before. Raises InputError for the others."""
    layer, step = site.depth
    if step:
        raise InputError(f"site: {site}; the notebook recipe knows the stream between layers (resid_pre, resid_post) alone.")
    return layer


@torch.no_grad()
def notebook(problem: Problem) -> Dense:
    """Run the prompt once, as the notebook does, and close f over what it holds constant."""
    model, policy, target = problem.model, problem.policy, problem.target
    first = layer_of(problem.source.site) if problem.source else 0
    stop = layer_of(target.site) if isinstance(target, Dictionary) else model.config.n_layers
    x = plain.forward(model, plain.embed(model, problem.tokens), 0, first, policy)
    start = from_tokens(problem, x) if problem.source is None else from_latents(problem.source, x)
    x = plain.forward(model, x, first, stop, policy)

    def read(x: Float[Tensor, "positions d_model"]) -> Float[Tensor, "positions width"]:
        return plain.encode(target, x) if isinstance(target, Dictionary) else plain.unembed(model, x, policy)

    if isinstance(target, Dictionary):
        targets = (read(x) > 0).nonzero()
    else:
        chosen = read(x)[-1].topk(target.k).indices
        targets = torch.stack([torch.full_like(chosen, len(x) - 1), chosen], 1)

    def function(values: Float[Tensor, " sources"]) -> Float[Tensor, " targets"]:
        return read(plain.forward(model, start.enter(values), first, stop, policy))[targets.unbind(1)]

    return Dense(function, start.values, start.nodes, targets)


def from_tokens(problem: Problem, x: Float[Tensor, "positions d_model"]) -> Start:
    """One scale per position."""
    nodes = torch.stack([torch.arange(len(x), device=x.device), problem.tokens], 1)
    return Start(nodes, torch.ones_like(x[:, 0]), lambda scales: x * scales[:, None])


def from_latents(source: Dictionary, x: Float[Tensor, "positions d_model"]) -> Start:
    """The dictionary's active latents, with its error as a constant."""
    dense = plain.encode(source, x)
    nodes = (dense > 0).nonzero()
    error = x - plain.decode(source, dense)

    def enter(values: Float[Tensor, " sources"]) -> Float[Tensor, "positions d_model"]:
        return plain.decode(source, torch.zeros_like(dense).index_put(nodes.unbind(1), values)) + error

    return Start(nodes, dense[nodes.unbind(1)], enter)


def row_bytes(problem: Problem) -> int:
    """Bytes of dense tensors that one cotangent of f holds at its fullest moment: two of [positions, width].

    The width is that of the wider end. At the target they are the cotangents behind and before the
    activation rule; at the source, the cotangent of A and, beside it, what the product is made in.
    """
    widths = [d.d_sae for d in (problem.source, problem.target) if isinstance(d, Dictionary)]
    if not isinstance(problem.target, Dictionary):
        widths.append(problem.model.config.d_vocab)
    return 2 * len(problem.tokens) * max(widths) * problem.model.dtype.itemsize


def chunk_of(problem: Problem, limit: int) -> int:
    """Rows of one chunk: as many as `limit` bytes of dense tensors hold, but no fewer and no more than make sense."""
    return max(MIN_CHUNK, min(limit // row_bytes(problem), MAX_CHUNK))


# ------------------------------------------------------------------------------------------ the ways


class Rows(NamedTuple):
    """Some rows of J and their places, with the nodes of those rows and of all columns, as one way found them."""

    place: Int[Tensor, " rows"]
    gradient: Float[Tensor, "rows sources"]
    targets: Int[Tensor, "rows 2"]
    sources: Int[Tensor, "sources 2"]


@dataclass(frozen=True)
class Way:
    """One way to rows of J: `run(open())` computes the rows at `place` of all `of`, and `read` says what came out.

    `open` is what is done once whatever the number of rows, so that a time can be scaled to all of them;
    `read` is not timed.
    """

    place: Int[Tensor, " rows"]
    of: int
    open: Callable[[], Any]
    run: Callable[[Any], Any]
    read: Callable[[Any, Any], Rows]
    repeats: bool = False
    """Whether `run` does again what `open` does: it is then taken off."""
    opened: int = 0
    """Rows that `open` computes, where `run` computes them again."""

    @property
    def is_sample(self) -> bool:
        """Whether only some rows are computed."""
        return len(self.place) < self.of

    def compute(self) -> tuple[Any, Any]:
        """Both steps, as `read` wants them."""
        opened = self.open()
        return opened, self.run(opened)


class Opened(NamedTuple):
    """The notebook's function after its forward pass."""

    dense: Dense
    argument: Float[Tensor, " sources"]
    value: Float[Tensor, " targets"]
    pull: Callable[..., tuple[Tensor]] | None


def one_hot(rows: Int[Tensor, " rows"], value: Float[Tensor, " targets"]) -> Float[Tensor, "rows targets"]:
    """Cotangents of f that each ask for one target."""
    seeds = value.new_zeros(len(rows), len(value))
    seeds[torch.arange(len(rows), device=rows.device), rows] = 1
    return seeds


def as_written(problem: Problem, of: int) -> Way:
    """jacrev of the notebook's function, all targets in one vmap."""

    def read(dense: Dense, found: Float[Tensor, "targets sources"]) -> Rows:
        return Rows(torch.arange(len(found)), found, dense.targets, dense.sources)

    return Way(torch.arange(of), of, lambda: notebook(problem), lambda dense: jacrev(dense.function)(dense.values), read)


def chunked(problem: Problem, rows: Int[Tensor, " rows"], of: int, chunk: int) -> Way:
    """vmap(vjp) of the notebook's function, `chunk` targets at a time; its forward pass is made once."""

    def open_once() -> Opened:
        dense = notebook(problem)
        value, pull, *_ = vjp(dense.function, dense.values)
        return Opened(dense, dense.values, value, pull)

    def run(opened: Opened) -> Float[Tensor, "rows sources"]:
        assert opened.pull is not None
        return torch.cat([vmap(opened.pull)(one_hot(part, opened.value))[0] for part in rows.to(opened.value.device).split(chunk)])

    return Way(rows, of, open_once, run, partial(read_sample, rows))


def autograd_batched(problem: Problem, rows: Int[Tensor, " rows"], of: int, chunk: int) -> Way:
    """torch.autograd.grad of the notebook's function with batched cotangents, `chunk` targets at a time."""

    def open_once() -> Opened:
        dense = notebook(problem)
        argument = dense.values.clone().requires_grad_()
        return Opened(dense, argument, dense.function(argument), None)

    def run(opened: Opened) -> Float[Tensor, "rows sources"]:
        def pull(part: Int[Tensor, " part"]) -> Float[Tensor, "part sources"]:
            seeds = one_hot(part, opened.value)
            return torch.autograd.grad(opened.value, opened.argument, seeds, retain_graph=True, is_grads_batched=True)[0]

        return torch.cat([pull(part) for part in rows.to(opened.value.device).split(chunk)])

    return Way(rows, of, open_once, run, partial(read_sample, rows))


def read_sample(rows: Int[Tensor, " rows"], opened: Opened, found: Float[Tensor, "rows sources"]) -> Rows:
    """Which rows of the notebook's function were computed."""
    return Rows(rows, found, opened.dense.targets[rows.to(opened.dense.targets.device)], opened.dense.sources)


def nodes(table: Nodes) -> Int[Tensor, "nodes 2"]:
    """(position, latent or token) of every row of a table."""
    return torch.stack([table.position, table.latent], 1)


def through_attrib(
    problem: Problem, method: Method, dtype: Dtype, targets: Int[Tensor, "targets 2"], positions: Sequence[int] | None = None
) -> Way:
    """attrib's public function, from the tokens to all edges, or to those into the targets at some positions."""
    everywhere = torch.ones(len(targets), dtype=torch.bool)
    place = (everywhere if positions is None else torch.isin(targets[:, 0], torch.tensor(positions))).nonzero()[:, 0]

    def read(_: object, edges: Edges) -> Rows:
        return Rows(place, edges.dense(0), nodes(edges.targets), nodes(edges.sources))

    def run(_: object) -> Edges:
        return attribute(problem, method, dtype, positions)

    if positions is None:
        return Way(place, len(targets), lambda: None, run, read)
    # the first position sees nothing but itself: next to no rows' work, and all that is done once for a prompt
    first, opened = [0], 0
    if problem.is_cut:  # where every row goes through the whole pass
        first = list(positions[:1])
        opened = int((targets[:, 0] == first[0]).sum())
    return Way(place, len(targets), lambda: attribute(problem, method, dtype, first), run, read, repeats=True, opened=opened)
