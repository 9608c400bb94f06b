"""RASP programs compiled to transformers by tracr, and what each part of them must move, by the program alone.

tracr's compiler makes of a program a series of heads and MLPs over named directions (`tracr.craft`, numpy matrices), which it then puts
into haiku modules. Here they are put into a HookedTransformer of TransformerLens, so that neither jax nor haiku is needed: `tracr.compiler`
is imported without its own `__init__`, and absl, of which a logger alone is asked for, is stood in for while that happens.

What is true of the circuit is told without a derivative, and without the model's attention:

    a head reads position s from p      where the program's selector, evaluated by RASP's own interpreter, says so: of n selected 1/n each
    a head moves direction i to j       where craft's W_OV does
    an MLP's unit reads i, and writes j where craft's matrices do, and the unit is above zero

so a source that writes u at s gives a target its pattern times u W_OV, or u W_in of a unit, or u W_U, and nothing to all others.
"""

import importlib
import logging
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import LINEAR, Dense, Policy, Site, TokenLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.graph.graph import Graph
from attrib.graph.neurons import Neurons
from attrib.models.transformer import Model

BOS, PAD = "compiler_bos", "compiler_pad"


class Tracr(NamedTuple):
    """The modules of tracr that are needed."""

    rasp: Any
    causal_eval: Any
    lib: Any
    cases: Any
    bases: Any
    nodes: Any
    transformers: Any
    project: Any
    extract: Any
    infer_bases: Any
    add_craft: Any
    to_model: Any


@lru_cache
def tracr() -> Tracr:
    """tracr without jax. Raises ModuleNotFoundError where it is not installed: `pip install --no-deps tracr-pypi`."""
    folder = Path(importlib.import_module("tracr").__path__[0])
    with _standing_in(folder):
        names = (
            "rasp.rasp", "rasp.causal_eval", "compiler.lib", "compiler.test_cases", "craft.bases", "compiler.nodes", "craft.transformers",
            "craft.vectorspace_fns", "compiler.rasp_to_graph", "compiler.basis_inference", "compiler.expr_to_craft_graph",
            "compiler.craft_graph_to_model",
        )  # fmt: skip
        *plain, functions, graph, inference, craft, model = (importlib.import_module(f"tracr.{name}") for name in names)
    found = (functions.project, graph.extract_rasp_graph, inference.infer_bases, craft.add_craft_components_to_rasp_graph)
    return Tracr._make([*plain, *found, model.craft_graph_to_model])


@contextmanager
def _standing_in(folder: Path) -> Iterator[None]:
    """In place of absl a module with a logger, and of `tracr.compiler` a package that imports nothing by itself."""
    absl: Any = types.ModuleType("absl")
    absl.logging = logging.getLogger("absl")
    compiler = types.ModuleType("tracr.compiler")
    compiler.__path__ = [str(folder / "compiler")]
    given = {name: module for name, module in (("absl", absl), ("tracr.compiler", compiler)) if name not in sys.modules}
    sys.modules.update(given)
    try:
        yield
    finally:
        if given.get("absl") is not None:
            del sys.modules["absl"]  # others may want the real one


class Program(NamedTuple):
    """A program, an input, and what it makes of that."""

    name: str
    program: Any
    vocab: frozenset[Any]
    longest: int
    given: tuple[Any, ...]
    wanted: tuple[Any, ...]
    causal: bool


@lru_cache
def programs() -> dict[str, Program]:
    """tracr's own integration cases, causal and not, and some of other kinds, by name."""
    t, found = tracr(), dict[str, Program]()
    several = (("", t.cases.TEST_CASES, False), ("causal_", t.cases.CAUSAL_TEST_CASES, True))
    for prefix, cases, causal in several:
        for case in cases:
            name = prefix + case["testcase_name"]
            found[name] = Program(
                name, case["program"], frozenset(case["vocab"]), case["max_seq_len"], tuple(case["test_input"]),
                tuple(case["expected_output"]), causal,
            )  # fmt: skip
    return found | {each.name: each for each in _own(t.rasp)}


def _own(rasp: Any) -> Iterator[Program]:
    """Maps of tokens and of two things, means over what comes before, and the first token everywhere."""
    vocab = frozenset("abc")

    def made(name: str, program: Any, given: str, causal: bool = False) -> Program:
        evaluator = tracr().causal_eval.CausalEvaluator() if causal else rasp.DefaultRASPEvaluator()
        return Program(name, program, vocab, 5, tuple(given), tuple(evaluator.evaluate(program, list(given))), causal)

    yield made("own_map", rasp.Map(lambda x: "b" if x == "a" else "a", rasp.tokens).named("swap"), "abca")
    yield made("own_two_maps", rasp.Map(lambda x: x == "up", rasp.Map(lambda x: "up" if x == "c" else "down", rasp.tokens)), "cab")
    yield made("own_pairs", rasp.SequenceMap(lambda x, i: f"{x}{i % 2}", rasp.tokens, rasp.indices).named("parity"), "abcb")
    first = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == 0)
    yield made("own_first", rasp.Aggregate(first, rasp.tokens).named("first"), "cab")
    yield made("own_causal_first", rasp.Aggregate(first, rasp.tokens).named("first"), "cab", causal=True)
    every = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)
    is_a = rasp.numerical(rasp.tokens == "a")
    yield made("own_share_of_a", rasp.numerical(rasp.Aggregate(every, is_a, default=0)), "abab")


class Head(NamedTuple):
    """A head, and the program's expression that it computes."""

    block: Any
    expression: Any


@dataclass(frozen=True)
class Compiled:
    """A compiled program."""

    program: Program
    directions: tuple[Any, ...]
    """Of the stream, by their names: one basis vector each."""
    token_directions: tuple[Any, ...]
    heads: Mapping[int, tuple[Head, ...]]
    """By layer."""
    mlps: Mapping[int, Any]
    n_layers: int
    outputs: tuple[Any, ...]
    """The directions that the output is read from."""

    # --------------------------------------------------------------------------------- craft's matrices

    @cached_property
    def space(self) -> Any:
        """The stream."""
        return tracr().bases.VectorSpaceWithBasis(list(self.directions))

    def _from(self, space: Any) -> np.ndarray:
        return np.asarray(tracr().project(self.space, space).matrix)

    def into_head(self, head: Head) -> np.ndarray:
        """W_OV of a head, from the stream to the stream."""
        ov = head.block.w_ov
        return np.asarray(self._from(ov.input_space) @ ov.matrix @ self._from(ov.output_space).T)

    def meeting(self, head: Head) -> np.ndarray:
        """W_QK of a head: what a direction of the stream at the query and one at the key are to their score."""
        qk = head.block.w_qk
        return np.asarray(self._from(qk.left_space) @ qk.matrix @ self._from(qk.right_space).T)

    def into_units(self, layer: int) -> np.ndarray:
        """What the units of a layer's MLP read."""
        mlp = self.mlps[layer]
        return np.asarray(self._from(mlp.fst.input_space) @ mlp.fst.matrix)

    def out_of_units(self, layer: int) -> np.ndarray:
        """What they write."""
        mlp = self.mlps[layer]
        return np.asarray(mlp.snd.matrix @ self._from(mlp.snd.output_space).T)

    @cached_property
    def embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        """What each token brings, the direction that is 1 everywhere among it; and each position, of which the first has none."""
        t, one = tracr(), tracr().bases.BasisDirection("one")
        W_E = np.zeros((len(self.token_directions), len(self.directions)))
        for row, direction in enumerate(self.token_directions):
            W_E[row, self.directions.index(direction)] = 1
        if one in self.directions:
            W_E[:, self.directions.index(one)] = 1
        W_pos = np.zeros((self.program.longest + 1, len(self.directions)))
        for index in range(self.program.longest):
            W_pos[index + 1, self.directions.index(t.bases.BasisDirection(t.rasp.indices.label, index))] = 1
        return W_E, W_pos

    @cached_property
    def unembedding(self) -> np.ndarray:
        """The coordinates of the output's directions."""
        return np.eye(len(self.directions))[:, [self.directions.index(each) for each in self.outputs]]

    # -------------------------------------------------------------------------------------- as a model

    @cached_property
    def foreign(self) -> Any:
        """The same as a HookedTransformer in float64."""
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        n_heads = max((len(heads) for heads in self.heads.values()), default=1)
        d_head = max((max(*head.block.w_qk.matrix.shape, head.block.w_ov.matrix.shape[1]) for head in self._every_head()), default=1)
        d_mlp = max((mlp.fst.output_space.num_dims for mlp in self.mlps.values()), default=0)
        W_E, W_pos = self.embeddings
        d_vocab = max(len(W_E), len(self.outputs))  # one vocabulary for both, of which some are never read, or never said
        config = HookedTransformerConfig(
            n_layers=self.n_layers, d_model=len(self.directions), n_ctx=len(W_pos), n_heads=n_heads, d_head=d_head, d_vocab=d_vocab,
            d_mlp=d_mlp or None, act_fn="relu" if d_mlp else None, attn_only=not d_mlp, normalization_type=None, use_attn_scale=False,
            attention_dir="causal" if self.program.causal else "bidirectional", device="cpu", dtype=torch.float64, init_weights=False,
            model_name=self.program.name,
        )  # fmt: skip
        model = HookedTransformer(config)
        state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        for name, value in self._tensors(n_heads, d_head, d_mlp, d_vocab):
            assert state[name].shape == value.shape, name
            state[name] = torch.from_numpy(value).to(state[name])
        model.load_state_dict(state | {name: value for name, value in model.state_dict().items() if name.endswith(("mask", "IGNORE"))})
        return model.requires_grad_(False).eval()

    def _every_head(self) -> Iterator[Head]:
        for heads in self.heads.values():
            yield from heads

    def _tensors(self, n_heads: int, d_head: int, d_mlp: int, d_vocab: int) -> Iterator[tuple[str, np.ndarray]]:
        d, (W_E, W_pos) = len(self.directions), self.embeddings
        yield "embed.W_E", np.pad(W_E, ((0, d_vocab - len(W_E)), (0, 0)))
        yield "pos_embed.W_pos", W_pos
        yield "unembed.W_U", np.pad(self.unembedding, ((0, 0), (0, d_vocab - len(self.outputs))))
        for layer in range(self.n_layers):
            parts = {name: np.zeros((n_heads, d, d_head)) for name in ("W_Q", "W_K", "W_V")} | {"W_O": np.zeros((n_heads, d_head, d))}
            for number, (block, _) in enumerate(self.heads.get(layer, ())):
                qk, ov = block.w_qk, block.w_ov
                key_size, value_size = qk.matrix.shape[1], ov.matrix.shape[1]
                parts["W_Q"][number, :, :key_size] = self._from(qk.left_space) @ qk.matrix
                parts["W_K"][number, :, :key_size] = self._from(qk.right_space)
                parts["W_V"][number, :, :value_size] = self._from(ov.input_space) @ ov.matrix
                parts["W_O"][number, :value_size] = self._from(ov.output_space).T
            yield from ((f"blocks.{layer}.attn.{name}", value) for name, value in parts.items())
            if layer in self.mlps:
                W_in, W_out = self.into_units(layer), self.out_of_units(layer)
                yield f"blocks.{layer}.mlp.W_in", np.pad(W_in, ((0, 0), (0, d_mlp - W_in.shape[1])))
                yield f"blocks.{layer}.mlp.W_out", np.pad(W_out, ((0, d_mlp - len(W_out)), (0, 0)))

    @cached_property
    def model(self) -> Model:
        """As attrib's."""
        return attrib.from_transformer_lens(self.foreign)

    @cached_property
    def tokens(self) -> Tensor:
        """The program's input, behind the token that the compiler puts before it."""
        values = [each.value for each in self.token_directions]
        return torch.tensor([values.index(value) for value in (BOS, *self.program.given)])

    def said(self, logits: Tensor) -> list[Any]:
        """What the program's output is, by the logits at its positions."""
        read = logits[1:, : len(self.outputs)]
        if tracr().rasp.is_categorical(self.program.program):
            return [self.outputs[at].value if row.max() > 0.5 else None for at, row in zip(read.argmax(-1).tolist(), read, strict=True)]
        return read[:, 0].tolist()

    # ------------------------------------------------------------------------------- its known circuit

    def pattern(self, head: Head) -> np.ndarray:
        """How much of each position (columns) the head takes to each, by the program: the first sees itself alone."""
        t, size = tracr(), len(self.tokens)
        evaluator = t.causal_eval.CausalEvaluator() if self.program.causal else t.rasp.DefaultRASPEvaluator()
        selected = np.zeros((size, size))
        selected[1:, 1:] = np.asarray(evaluator.evaluate(head.expression.selector, list(self.program.given)), dtype=float)
        # the first position is seen where nothing is selected; a width's head sees it beside what is selected
        is_width = isinstance(head.expression, t.rasp.SelectorWidth)
        selected[:, 0] = 1.0 if is_width else (selected.sum(1) == 0).astype(float)
        return np.asarray(selected / selected.sum(1, keepdims=True))

    @cached_property
    def run(self) -> "Run":
        """The program's own pass, by its selectors and craft's matrices."""
        W_E, W_pos = self.embeddings
        x = W_E[self.tokens.numpy()] + W_pos[: len(self.tokens)]
        attended, hidden = dict[int, np.ndarray](), dict[int, np.ndarray]()
        for layer in range(self.n_layers):
            heads = self.heads.get(layer, ())
            attended[layer] = np.zeros_like(x) + sum(self.pattern(head) @ x @ self.into_head(head) for head in heads)
            x = x + attended[layer]
            if layer in self.mlps:
                hidden[layer] = np.maximum(x @ self.into_units(layer), 0)
                x = x + hidden[layer] @ self.out_of_units(layer)
        return Run(attended, hidden, x @ self.unembedding)

    @cached_property
    def dictionaries(self) -> list[Dictionary | Neurons]:
        """What attention adds to the stream, direction by direction; and the MLPs' own units."""
        found: list[Dictionary | Neurons] = [identity(self.model, Site(layer, "attn_out")) for layer in sorted(self.heads)]
        return found + [Neurons(layer, None) for layer in range(self.n_layers) if self.model.config.has_mlps]

    @cached_property
    def graph(self) -> Graph:
        """attrib's graph of the program's input, with patterns held."""
        return graph_of(self, self.model, LINEAR)

    def wanted(self, graph: Graph) -> np.ndarray:
        """[rows, nodes]: the edges that there must be, by the program; all others are zero."""
        nodes = graph.nodes
        (vectors, depth), positions = self.written(graph), nodes.position.numpy()
        out = np.zeros((len(graph.targets), len(nodes)))
        for row, node in enumerate(graph.targets.tolist()):
            read, layer, at, number = *kind_of(graph, node), int(positions[node]), int(nodes.latent[node])
            if read == "attended":
                given = sum(self.pattern(head)[at, positions] * (vectors @ self.into_head(head)[:, number]) for head in self.heads[layer])
                before = depth < 2 * layer
            elif read == "unit":
                W_in = self.into_units(layer) if layer in self.mlps else np.zeros((len(self.directions), number + 1))
                given, before = (positions == at) * (vectors @ W_in[:, number]), depth < 2 * layer + 1
            else:
                given, before = (positions == at) * (vectors @ self.unembedding[:, number]), depth < 2 * self.n_layers
            out[row] = given * before
        return out

    def written(self, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
        """What every node writes into the stream by the program, [nodes, d], and behind which half of which layer."""
        written = [self._written(graph, node) for node in range(len(graph.nodes))]
        return np.stack([u for u, _ in written]), np.array([at for _, at in written])

    def _written(self, graph: Graph, node: int) -> tuple[np.ndarray, int]:
        """What a node writes into the stream by the program, and behind which half of which layer."""
        nodes, (read, layer) = graph.nodes, kind_of(graph, node)
        at, number, none = int(nodes.position[node]), int(nodes.latent[node]), np.zeros(len(self.directions))
        W_E, W_pos = self.embeddings
        match read:
            case "token":
                return W_E[number], -1
            case "position":
                return W_pos[at], -1
            case "attended":
                return np.eye(len(none))[number] * self.run.attended[layer][at, number], 2 * layer
            case "unit" if layer in self.mlps and number < self.run.hidden[layer].shape[1]:
                return self.run.hidden[layer][at, number] * self.out_of_units(layer)[number], 2 * layer + 1
        return none, 2 * self.n_layers  # errors and biases, of which there are none; outputs


def outputs_of(known: Compiled) -> TokenLogits:
    """Every output of a program."""
    return TokenLogits(tuple(range(len(known.outputs))))


def graph_of(known: Compiled, model: Model, policy: Policy) -> Graph:
    """Every output of a program at every position, and all that moves it in a model."""
    positions = list(range(1, len(known.tokens)))
    options: dict[str, Any] = {"targets": outputs_of(known), "positions": positions, "policy": policy, "keep": Dense(), "demean": False}
    (graph,) = attrib.graph.build(model, known.dictionaries, known.tokens, **options)
    return graph


class Run(NamedTuple):
    """What a program computes on its way."""

    attended: Mapping[int, np.ndarray]
    """By layer, what heads add to the stream."""
    hidden: Mapping[int, np.ndarray]
    """By layer, the MLP's units."""
    outputs: np.ndarray


def kind_of(graph: Graph, node: int) -> tuple[str, int]:
    """What a node is in a compiled program, and its layer."""
    each = graph.nodes.sets[int(graph.nodes.set_of[node])]
    if each.kind in ("token", "position", "logit"):
        return each.kind, -1
    kind = ("unit" if each.name == "neurons" else "attended") if each.kind == "latent" else each.kind
    return kind, Site.parse(each.site).layer


def identity(model: Model, site: Site) -> Dictionary:
    """A dictionary of the basis directions themselves: a latent is a coordinate, whatever its sign."""
    eye = torch.eye(model.config.d_model, dtype=model.dtype)
    zeros = eye.new_zeros(len(eye))
    return from_tensors(site=site, W_enc=eye, W_dec=eye, b_enc=zeros, b_dec=zeros, rule="abstopk", k=len(eye), name=f"directions at {site}")


@lru_cache(maxsize=128)
def compiled(name: str) -> Compiled:
    """A program of `programs` by name."""
    t, program = tracr(), programs()[name]
    extracted = t.extract(program.program)
    graph, sources, sink = extracted.graph, extracted.sources, extracted.sink
    t.infer_bases(graph, sink, set(program.vocab), program.longest)
    label = t.rasp.tokens.label
    t.add_craft(graph, bos_dir=t.bases.BasisDirection(label, BOS), mlp_exactness=100)
    craft = t.to_model(graph, sources)
    values = set(graph.nodes[label][t.nodes.VALUE_SET]) | {BOS, PAD}
    token_space = t.bases.VectorSpaceWithBasis.from_values(label, values)
    index_space = t.bases.VectorSpaceWithBasis.from_values(t.rasp.indices.label, range(program.longest))
    outputs = t.bases.VectorSpaceWithBasis(sink[t.nodes.OUTPUT_BASIS])
    whole = t.bases.join_vector_spaces(craft.residual_space, token_space, index_space, outputs)
    heads, mlps, layer, has_mlp = dict[int, tuple[Head, ...]](), dict[int, Any](), -1, True
    computes = _expressions(graph)
    for block in craft.blocks:  # attention begins a layer, and so does an MLP behind another
        if isinstance(block, t.transformers.MLP):
            layer += has_mlp
            mlps[layer], has_mlp = block, True
        else:
            layer, has_mlp = layer + 1, False
            heads[layer] = tuple(Head(head, computes[id(head)]) for head in block.as_multi().heads())
    return Compiled(program, tuple(whole.basis), tuple(token_space.basis), heads, mlps, layer + 1, tuple(outputs.basis))


def _expressions(graph: Any) -> dict[int, Any]:
    """The expression that each head computes, by the identity of its block."""
    t, found = tracr(), dict[int, Any]()
    for node in graph.nodes.values():
        block = node.get(t.nodes.MODEL_BLOCK)
        if isinstance(block, t.transformers.SeriesWithResiduals):
            block = block.blocks[0]
        if isinstance(block, t.transformers.AttentionHead):
            found[id(block)] = node[t.nodes.EXPR]
    return found


def auroc(scores: Sequence[float] | np.ndarray, truth: np.ndarray) -> float:
    """The share of pairs of a true edge and another in which the true one has the larger score; a tie is half."""
    from scipy.stats import rankdata

    ranks, truth = rankdata(np.asarray(scores)), truth.astype(bool)
    yes, no = int(truth.sum()), int((~truth).sum())
    return float((ranks[truth].sum() - yes * (yes + 1) / 2) / (yes * no)) if yes and no else float("nan")
