"""Every edge by the thing itself: what a node writes is written once more, and each target moves by exactly its edge.

That is how circuit-tracer tests its graphs. The pass is TransformerLens' own forward, held by hooks: attention patterns and norms'
denominators stay as the prompt has them, and so does what stands at the places that dictionaries write. Dictionaries are plain
formulas here, so that nothing of what is tested has a part in what it is compared with.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import jvp

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import Dense, TokenLogits
from attrib.graph.graph import Graph
from tests.support.builders import normal, prompt
from tests.support.covering import each_pair
from tests.support.hooked import hooked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:HookedTransformer is deprecated")

EXACTLY = 1e-10
LAYERS, WIDTH, LATENTS, LOGITS = 3, 32, 40, [3, 8, 20]
TOKENS = prompt(8)
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},  # LayerNorm, learned positions
    "qwen2": {},  # RMSNorm, grouped queries with biases, rotary
    "gemma-2": {"attn_types": ["local", "global", "local"]},  # norms behind as well, windows, caps
    "pythia": {},  # the MLP beside attention
}


@lru_cache
def lens(family: str) -> Any:
    """TransformerLens' model."""
    return hooked(family, torch.float64, n_layers=LAYERS, **FAMILIES[family]).requires_grad_(False)


# ------------------------------------------------------------------------------------ dictionaries as formulas


@dataclass(frozen=True)
class Plain:
    """A dictionary of one place, and the places that it writes, side by side in its decoder."""

    reads: str
    writes: tuple[str, ...]
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    has_skip: bool = False

    def _normal(self, at: int, *shape: int, size: float = 1.0) -> Tensor:
        return normal(*shape, dtype=torch.float64, seed=10 * self.seed + at) * size

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """What `from_tensors` takes."""
        out = WIDTH * len(self.writes)
        found = {
            "W_enc": self._normal(0, WIDTH, LATENTS, size=WIDTH**-0.5), "b_enc": self._normal(1, LATENTS, size=0.5) - 0.5,
            "W_dec": self._normal(2, LATENTS, out, size=0.3), "b_dec": self._normal(3, out, size=0.3),
        }  # fmt: skip
        return found | {"W_skip": self._normal(4, WIDTH, out, size=WIDTH**-0.5)} if self.has_skip else found

    @property
    def ours(self) -> attrib.Dictionary:
        """attrib's."""
        return from_tensors(site=self.reads, writes=self.writes, **self.tensors, **self.options, name=f"number {self.seed}")

    def pre(self, x: Tensor) -> Tensor:
        return x @ self.tensors["W_enc"] + self.tensors["b_enc"]

    def latents(self, x: Tensor) -> Tensor:
        """Dense latents, by the rule."""
        pre = self.pre(x)
        passes = (pre > 0) & (pre > self.options.get("threshold", torch.zeros(())))
        if "k" in self.options:
            passes &= pre >= pre.sort(-1, descending=True).values[..., self.options["k"] - 1 : self.options["k"]]
        return pre * passes

    def parts(self, written: Tensor) -> dict[str, Tensor]:
        """What is written, by place."""
        return dict(zip(self.writes, written.chunk(len(self.writes), -1), strict=True))

    def skipped(self, x: Tensor) -> dict[str, Tensor]:
        """What goes past the latents."""
        return self.parts(x @ self.tensors["W_skip"]) if self.has_skip else {}


def mlp_in(layer: int) -> str:
    return f"blocks.{layer}.mlp.hook_in"


def mlp_out(layer: int) -> str:
    return f"blocks.{layer}.hook_mlp_out"


def transcoders(options: dict[str, Any], layers: range = range(LAYERS), has_skip: bool = False) -> list[Plain]:
    return [Plain(mlp_in(layer), (mlp_out(layer),), 1 + layer, options, has_skip) for layer in layers]


def cross() -> list[Plain]:
    """A cross-layer transcoder."""
    return [Plain(mlp_in(layer), tuple(map(mlp_out, range(layer, LAYERS))), 4 + layer) for layer in range(LAYERS)]


def sae(place: str, seed: int, **options: Any) -> Plain:
    return Plain(place, (place,), seed, options)


SETS: dict[str, list[Plain]] = {
    "relu": transcoders({}),
    "skip": transcoders({}, range(1, LAYERS), has_skip=True),
    "jumprelu": transcoders({"threshold": torch.linspace(-0.1, 0.6, LATENTS, dtype=torch.float64)}),
    "topk": transcoders({"k": 5}),
    "cross-layer": cross(),
    "saes": [sae("blocks.1.hook_resid_pre", 7), sae("blocks.2.hook_resid_pre", 8, k=6)],
    "all": [*cross(), sae("blocks.1.hook_attn_out", 7), sae("blocks.2.hook_resid_pre", 8, k=6)],
}

# ---------------------------------------------------------------------------------------- the pass that is held


class Node(NamedTuple):
    """Where a node writes, and what. `is_read` says that a dictionary which reads and writes the place reads it, too."""

    place: str
    is_read: bool


Added = dict[Node, Tensor]
"""What is added at each place: [rows, positions, d_model], each row in a pass of its own."""


class Held:
    """TransformerLens' forward of one prompt, in which only what is linear moves."""

    def __init__(self, model: Any, plain: list[Plain], mlps: str) -> None:
        self.model, self.plain = model, plain
        self.written = {place for each in plain for place in each.writes}
        self.is_leaf = [mlps == "leaf" and mlp_out(layer) not in self.written for layer in range(LAYERS)]
        self.written |= {mlp_out(layer) for layer, is_leaf in enumerate(self.is_leaf) if is_leaf}
        self.raw: dict[int, Tensor] = {}
        with ExitStack() as stack:
            self.clean: dict[str, Tensor] = {}
            for layer, block in enumerate(model.blocks):
                stack.callback(block.mlp.register_forward_hook(self._keep(layer)).remove)
            _, cache = model.run_with_cache(TOKENS)
        self.clean |= {name: value[0] for name, value in cache.items()}
        self.read = {each.reads: self.clean[each.reads] for each in plain}

    def _keep(self, layer: int) -> Callable[[Any, Any, Tensor], None]:
        def hook(module: Any, given: Any, out: Tensor) -> None:
            self.clean[mlp_in(layer)], self.raw[layer] = given[0][0], out[0]

        return hook

    def moved(self, added: Added, latents: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Pre-activations at (positions, latents) of each dictionary and then the logits less their mean: [rows, targets]."""
        rows, live = len(next(iter(added.values()))), dict[str, Tensor]()
        found: dict[str, Tensor] = {}

        def held(value: Tensor, hook: Any) -> Tensor:
            return self.clean[hook.name].expand_as(value)

        def at(value: Tensor, hook: Any) -> Tensor:
            return self._stands(hook.name, value, added, live)

        names = [name for name in self.model.hook_dict if name.endswith(("hook_pattern", "hook_scale"))]
        places = {*self.written, *self.read, *(node.place for node in added)} & set(self.model.hook_dict)
        with ExitStack() as stack:
            stack.enter_context(self.model.hooks([*((name, held) for name in names), *((name, at) for name in places)]))
            for layer, block in enumerate(self.model.blocks):
                stack.callback(block.mlp.register_forward_pre_hook(self._entering(layer, added, live)).remove)
                stack.callback(block.mlp.register_forward_hook(self._leaving(layer)).remove)
            stack.callback(self.model.ln_final.register_forward_hook(lambda _, __, out: found.update(out=out)).remove)
            self.model(TOKENS.expand(rows, -1))
        last = found["out"][:, -1] @ self.model.W_U + self.model.b_U
        read = [each.pre(live[each.reads])[:, position, latent] for each, (position, latent) in zip(self.plain, latents, strict=True)]
        return torch.cat([*read, last[:, LOGITS] - last.mean(-1, keepdim=True)], 1)

    def _stands(self, place: str, value: Tensor, added: Added, live: dict[str, Tensor]) -> Tensor:
        """What stands at a place: what is read there, and what is written in place of it."""
        live[place] = value = value + added.get(Node(place, True), 0)
        if place not in self.written:
            return value
        held = self.clean[place] + added.get(Node(place, False), 0)
        moves = (each.skipped(live[each.reads] - self.clean[each.reads]) for each in self.plain if place in each.writes)
        return held.expand_as(value) + sum(one[place] for one in moves if one)

    def _entering(self, layer: int, added: Added, live: dict[str, Tensor]) -> Callable[[Any, Any], Any]:
        return lambda module, given: (self._stands(mlp_in(layer), given[0], added, live), *given[1:])

    def _leaving(self, layer: int) -> Callable[[Any, Any, Tensor], Tensor]:
        """An MLP as its derivative has it."""

        def hook(module: Any, given: Any, out: Tensor) -> Tensor:
            if mlp_out(layer) in self.written:
                return out
            x = self.clean[mlp_in(layer)].repeat(len(out), 1, 1)
            return self.raw[layer] + jvp(module.forward, (x,), (given[0] - x,))[1]

        return hook

    # ------------------------------------------------------------------------------------- what nodes write

    def behind(self, layer: int, norm: str, part: Tensor) -> Tensor:
        """A part of what attention or an MLP gives, behind the norm that some models have there."""
        name = f"blocks.{layer}.{norm}"
        return part / self.clean[f"{name}.hook_scale"] * self.model.get_submodule(name).w if f"{name}.hook_scale" in self.clean else part

    def of_attention(self, layer: int) -> Tensor:
        """What attention adds whatever it reads."""
        block = self.model.blocks[layer]
        value = block.attn.b_V + torch.einsum("d,hde->he", bias_of(block.ln1), block.attn.W_V)
        given = torch.einsum("he,hed->d", value, block.attn.W_O) + block.attn.b_O
        return self.behind(layer, "ln1_post", given.expand(len(TOKENS), -1))

    def of_mlp(self, layer: int) -> Tensor:
        """What an MLP writes beside its derivative's share of what others bring it."""
        if self.is_leaf[layer]:
            return self.clean[mlp_out(layer)]
        block, x = self.model.blocks[layer], self.clean[mlp_in(layer)]
        is_apart = mlp_in(layer) in self.read
        raw, slope = jvp(block.mlp.forward, (x,), (x if is_apart else x - bias_of(block.ln2),))
        return self.behind(layer, "ln2_post", raw - slope)

    def error(self, place: str) -> Tensor:
        """What is left of a written place."""
        rest = self.clean[place]
        for each in self.plain:
            if place in each.writes:
                x = self.clean[each.reads]
                own = each.latents(x) @ each.tensors["W_dec"] + each.tensors["b_dec"]
                rest = rest - each.parts(own)[place] - each.skipped(x).get(place, 0)
        return rest

    def of_dictionaries(self, place: str) -> Tensor:
        """The biases of all that write a place."""
        return sum(each.parts(each.tensors["b_dec"])[place] for each in self.plain if place in each.writes).expand(len(TOKENS), -1)


def bias_of(norm: Any) -> Tensor:
    return norm.b if hasattr(norm, "b") else torch.zeros(WIDTH, dtype=torch.float64)


def vectors(held: Held, graph: Graph) -> Iterator[dict[Node, Tensor]]:
    """What each node of the graph adds to the stream, at its own position."""
    nodes, seen = graph.nodes, set()
    plain = {each.ours.name: each for each in held.plain}
    for number, each in enumerate(nodes.sets):
        at, which = nodes.position[nodes.rows(number)], nodes.latent[nodes.rows(number)]
        layer = int(each.site.split(".")[1]) if "." in each.site else 0
        is_second = (each.kind, each.site) in seen
        seen.add((each.kind, each.site))
        match each.kind:
            case "token":
                whole = {Node("hook_embed", True): held.clean["hook_embed"]}
            case "position":
                whole = {Node("hook_pos_embed", True): held.model.W_pos[: len(TOKENS)]}
            case "error":
                whole = {Node(each.site, False): held.error(each.site)}
            case "mlp":
                # beside an MLP that is passed, what it gives is not held: there the node is one more thing that is brought
                whole = {Node(each.site, not held.is_leaf[layer]): held.of_mlp(layer)}
            case "bias" if each.site.endswith("attn_out") and not is_second:
                whole = {Node(each.site, True): held.of_attention(layer)}
            case "bias" if each.site == mlp_in(layer):
                whole = {Node(each.site, True): bias_of(held.model.blocks[layer].ln2).expand(len(TOKENS), -1)}
            case "bias":
                whole = {Node(each.site, False): held.of_dictionaries(each.site)}
            case "latent":
                one = plain[each.name]
                dense = one.latents(held.clean[one.reads])
                assert torch.equal(torch.stack([at, which]), dense.nonzero().T), each
                rows = dense[at, which][:, None] * one.tensors["W_dec"][which]
                for row, position in zip(rows, at.tolist(), strict=True):
                    yield {Node(place, False): alone(part, position) for place, part in one.parts(row).items()}
                continue
            case _:
                continue
        for position in at.tolist():
            yield {node: alone(value[position], position) for node, value in whole.items()}


def alone(vector: Tensor, position: int) -> Tensor:
    """At one position of a prompt."""
    return torch.zeros(len(TOKENS), WIDTH, dtype=torch.float64).index_put((torch.tensor(position),), vector)


def stacked(found: list[dict[Node, Tensor]]) -> Added:
    """One row for each node."""
    places = {node: None for each in found for node in each}
    none = torch.zeros(len(TOKENS), WIDTH, dtype=torch.float64)
    return {node: torch.stack([each.get(node, none) for each in found]) for node in places}


# ------------------------------------------------------------------------------------------------- the test


class Asked(NamedTuple):
    """A graph's edges [targets, sources], and how far targets move: a function of what is added, factor by factor."""

    edges: Tensor
    scale: Tensor
    moves: Callable[[Tensor], Tensor]


@lru_cache
def asked(family: str, which: str, mlps: str) -> Asked:
    model, plain = lens(family), SETS[which]
    ours, held = attrib.from_transformer_lens(model), Held(model, plain, mlps)
    options: Any = {"targets": TokenLogits(tuple(LOGITS)), "keep": Dense(), "mlps": mlps}
    (graph,) = attrib.graph.build(ours, [each.ours for each in plain], TOKENS, **options)
    assert graph.worst < EXACTLY
    sources = graph.nodes.of_kind("token", "position", "error", "mlp", "bias", "latent")
    dense = torch.from_numpy(graph.to_scipy().toarray())
    latents, rows = [], []
    for each in plain:
        number = next(n for n, one in enumerate(graph.nodes.sets) if one.name == each.ours.name)
        at = graph.nodes.rows(number)
        latents.append((graph.nodes.position[at], graph.nodes.latent[at]))
        rows.append(torch.arange(at.start, at.stop))
    chosen = torch.cat([*rows, graph.nodes.of_kind("logit")])
    assert torch.equal(graph.nodes.latent[chosen[-len(LOGITS) :]], torch.tensor(LOGITS))
    added = stacked(list(vectors(held, graph)))

    def moves(factors: Tensor) -> Tensor:
        """[rows, sources] of factors to [rows, targets] of differences."""
        some = {node: torch.einsum("rs,spd->rpd", factors, each) for node, each in added.items()}
        none = {node: torch.zeros_like(each[:1]) for node, each in some.items()}
        base = held.moved(none, latents)
        assert (base[0] - graph.value[graph.row_of[chosen]]).abs().max() < EXACTLY
        return held.moved(some, latents) - base

    return Asked(dense[chosen][:, sources], graph.scale[graph.row_of[chosen]], moves)


def apart(got: Tensor, want: Tensor, scale: Tensor) -> float:
    """The largest difference of a row, of all that it is made of."""
    return float(((got - want).abs() / scale).max())


CASES = {"family": list(FAMILIES), "which": list(SETS), "mlps": ["exact", "leaf"]}


@pytest.mark.few
@each_pair(**CASES)
def test_what_is_added_again_moves_each_target_by_its_edge(family: str, which: str, mlps: str):
    edges, scale, moves = asked(family, which, mlps)
    once = moves(torch.eye(edges.shape[1], dtype=torch.float64))
    assert apart(once.T, edges, scale[:, None]) < EXACTLY
    assert (edges != 0).float().mean() > 0.02
    assert edges.shape[0] > 100


@pytest.mark.few
@each_pair(**CASES)
def test_what_is_held_leaves_no_second_derivative(family: str, which: str, mlps: str):
    """Twice, three times, less than nothing, and all nodes together: all of it adds up."""
    edges, scale, moves = asked(family, which, mlps)
    one = torch.eye(edges.shape[1], dtype=torch.float64)[:: max(1, edges.shape[1] // 40)]
    together = normal(5, edges.shape[1], dtype=torch.float64)
    for factors in (2 * one, 3 * one, -one, together):
        assert apart(moves(factors), factors @ edges.T, scale) < EXACTLY
