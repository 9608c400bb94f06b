"""circuit-tracer's graphs, as its Graph.to_pt writes them: every entry is held against the others before the matrix is looked at."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.labels import unnamed
from attrib.core.types import FormatError, InputError
from attrib.graph.files.foreign import HOOKS, Found, arranged, check_hooks, graph_of
from attrib.graph.files.pickles import CONFIG, KEY, REMEDY, LogitTarget, read_pickle
from attrib.graph.graph import Graph
from attrib.graph.nodes import NodeKind

_AT_ONCE = 1 << 22
"""Entries of the matrix that are looked at together."""


def from_circuit_tracer(path: str | os.PathLike[str], *, hooks: tuple[str, str] = HOOKS, strings: Sequence[str] | None = None) -> Graph:
    """Read what circuit-tracer's `Graph.to_pt` wrote. Nothing of the file is run.

    The file tells less than attrib: `value` and `own` of rows, and a logit's value, are NaN; `total` and `l1` are sums of its edges.
    Where it has fewer selected than active latents, edges from the others are not in it. What it says of the model, the prompt and the
    dictionaries is `graph.call["circuit_tracer"]`, and written again by `to_circuit_tracer`.

    Args:
        path: the file.
        hooks: the hooks within a layer that dictionaries read and write, which the file does not say.
        strings: the tokens' labels, which the file does not say either; default: their ids.

    Raises:
        InputError: there is no such file, or hooks or strings cannot be used.
        FormatError: it is damaged, or no graph of circuit-tracer's; names the field.
    """
    check_hooks(hooks)
    fields = _Fields(Path(path), read_pickle(Path(path)))
    config = fields.config()
    layers = config["n_layers"]
    tokens = fields.integers("input_tokens", 1)
    positions = len(tokens)
    active, selected = fields.integers("active_features", 2), fields.integers("selected_features", 1)
    values = fields.floats("activation_values", 1)
    probability = fields.floats("logit_probabilities", 1)
    logits = fields.logits()
    matrix = fields.floats("adjacency_matrix", 2, finite=False)  # it is looked at by rows
    fields.check(active.shape[1] == 3, "active_features", f"{list(active.shape)}, and not three columns: layer, position, index")
    fields.check(len(values) == len(active), "activation_values", f"{len(values)} of them for {len(active)} active features")
    fields.check(len(probability) == len(logits), "logit_probabilities", f"{len(probability)} of them for {len(logits)} logits")
    fields.check(bool(positions), "input_tokens", "there is none")
    in_range = bool(((selected >= 0) & (selected < len(active))).all()) and len(selected.unique()) == len(selected)
    fields.check(in_range, "selected_features", f"not all are different rows of the {len(active)} active features")
    limits = torch.tensor([layers, positions, 1 << 62])
    fields.check(
        bool(((active >= 0) & (active < limits)).all()), "active_features", f"not all lie in {layers} layers and {positions} positions"
    )
    count = len(selected) + (layers + 1) * positions + len(logits)
    fields.check(
        matrix.shape == (count, count), "adjacency_matrix",
        f"{list(matrix.shape)}, where {len(selected)} latents, errors in {layers} layers and tokens at {positions} positions, and "
        f"{len(logits)} logits are {count} nodes",
    )  # fmt: skip
    if strings is not None and len(strings) != positions:
        raise InputError(f"strings: {len(strings)} of them for {positions} tokens; expected one for each.")
    labels = [unnamed(number) for number in tokens.tolist()] if strings is None else list(strings)
    scan, vocab_size = fields.scan(), fields.whole_number("vocab_size", config.get("d_vocab"))
    found = _found(active[selected], values[selected], layers, tokens, labels, logits, vocab_size)
    names = scan if isinstance(scan, list) and len(scan) == layers else [scan if isinstance(scan, str) else ""] * layers
    nodes, order = arranged(found, layers, hooks, names, torch.promote_types(values.dtype, torch.float32))
    counts, indices, weight = _edges(fields, matrix, nodes.of_kind("latent", "logit", "target"), order)
    call = {
        KEY: {
            "config": config | {"d_vocab": vocab_size}, "scan": scan, "prompt": fields.text("input_string"),
            "left_out": len(active) - len(selected),
        }
    }  # fmt: skip
    importance = torch.cat([weight.new_zeros(len(counts) - len(logits)), probability.to(weight.dtype)])
    return graph_of(nodes, counts, indices, weight, importance, tokens, labels, call)


def _found(
    active: Int[Tensor, "latents 3"],
    values: Float[Tensor, " latents"],
    layers: int,
    tokens: Int[Tensor, " positions"],
    labels: list[str],
    logits: list[LogitTarget],
    vocab_size: int | None,
) -> Found:
    """All nodes, in the order of the matrix."""
    positions, n_latents = len(tokens), len(active)
    errors, last = layers * positions, [positions - 1] * len(logits)
    is_virtual = [vocab_size is not None and each.vocab_idx >= vocab_size for each in logits]
    at = list(range(positions))
    kinds: list[NodeKind] = ["latent"] * n_latents + ["error"] * errors + ["token"] * positions  # type: ignore[assignment]
    return Found(
        kind=kinds + ["target" if virtual else "logit" for virtual in is_virtual],
        layer=active[:, 0].tolist() + [layer for layer in range(layers) for _ in at] + [-1] * (positions + len(logits)),
        position=active[:, 1].tolist() + at * layers + at + last,
        latent=active[:, 2].tolist() + [-1] * errors + tokens.tolist()
        + [-1 if virtual else each.vocab_idx for virtual, each in zip(is_virtual, logits, strict=True)],
        activation=values.tolist() + [1.0] * (errors + positions) + [float("nan")] * len(logits),
        label=[""] * (n_latents + errors) + labels + [each.token_str for each in logits],
        is_attention=[False] * (n_latents + errors + positions + len(logits)),
    )  # fmt: skip


def _edges(
    fields: "_Fields", matrix: Tensor, targets: Int[Tensor, " targets"], order: Int[Tensor, " nodes"]
) -> tuple[Int[Tensor, " targets"], Int[Tensor, " edges"], Float[Tensor, " edges"]]:
    """How many edges each row has, where they come from, and their weights, from a matrix in circuit-tracer's order."""
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    is_target = torch.zeros(len(order), dtype=torch.bool).index_fill(0, targets, True)
    for rows in _blocks(order[~is_target], len(order)):
        fields.check(not matrix[rows].any(), "adjacency_matrix", "edges go to an error or a token")
    counts, indices, weights = [], [], []
    for numbers in _blocks(targets, len(order)):
        block = matrix[order[numbers]].to(dtype)[:, order]
        fields.check(bool(block.isfinite().all()), "adjacency_matrix", "not all are finite numbers")
        row, column = block.nonzero(as_tuple=True)
        fields.check(bool((column < numbers[row]).all()), "adjacency_matrix", "an edge comes from its own layer, or from above")
        counts.append((block != 0).sum(1))
        indices.append(column)
        weights.append(block[row, column])
    none = targets.new_zeros(0)
    return torch.cat([none, *counts]), torch.cat([none, *indices]), torch.cat([torch.zeros(0, dtype=dtype), *weights])


def _blocks(rows: Int[Tensor, " rows"], columns: int) -> Iterator[Int[Tensor, " some"]]:
    yield from rows.split(max(1, _AT_ONCE // max(columns, 1)))


class _Fields:
    """The entries of a file, each of the type that it should be."""

    def __init__(self, path: Path, found: dict[str, Any]) -> None:
        self.path, self.found = path, found

    def check(self, is_right: bool, name: str, wrong: str) -> None:
        """Raises FormatError where it is not right."""
        if not is_right:
            raise FormatError(f"{self.path}: {name}: {wrong}; {REMEDY}")

    def _tensor(self, name: str, dims: int) -> Tensor:
        value = self.found.get(name)
        is_right = isinstance(value, Tensor) and value.dim() == dims
        self.check(is_right, name, f"{_shown(value)}, and not a tensor of {dims} dimensions")
        return value  # type: ignore[return-value]

    def integers(self, name: str, dims: int) -> Tensor:
        """Whole numbers from 0."""
        value = self._tensor(name, dims)
        self.check(not value.is_floating_point() and value.dtype != torch.bool, name, f"{value.dtype}, and not integers")
        value = value.to(torch.int64, copy=True)
        self.check(not (value < 0).any(), name, "numbers below 0")
        return value

    def floats(self, name: str, dims: int, *, finite: bool = True) -> Tensor:
        """Numbers, in float32 at least where they are looked at."""
        value = self._tensor(name, dims)
        self.check(value.is_floating_point(), name, f"{value.dtype}, and not floats")
        if not finite:
            return value
        self.check(bool(value.isfinite().all()), name, "not all are finite numbers")
        return value.to(torch.promote_types(value.dtype, torch.float32), copy=True)

    def text(self, name: str) -> str:
        """A string."""
        value = self.found.get(name)
        self.check(isinstance(value, str), name, f"{_shown(value)}, and not text")
        return str(value)

    def whole_number(self, name: str, default: int | None) -> int | None:
        """A number from 0, or the default where there is none."""
        value = self.found.get(name)
        self.check(value is None or (type(value) is int and value >= 0), name, f"{_shown(value)}, and not a number from 0")
        return default if value is None else value

    def scan(self) -> str | list[str] | None:
        """The dictionaries' name, or one of each layer."""
        value = self.found.get("scan")
        is_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
        self.check(value is None or isinstance(value, str) or is_list, "scan", f"{_shown(value)}, and not a name, a list of names, or None")
        return value

    def config(self) -> dict[str, Any]:
        """What is said of the model, as JSON can hold it."""
        value = self.found.get("cfg")
        facts = value if isinstance(value, dict) else vars(value) if hasattr(value, "__dict__") else {}
        layers = facts.get("n_layers")
        self.check(type(layers) is int and 0 < layers < 1 << 20, "cfg", f"n_layers is {_shown(layers)}, and not a number from 1")
        told = {name: facts[name] for name in CONFIG if facts.get(name) is not None}
        for name, each in told.items():
            self.check(isinstance(each, int | str | torch.dtype), "cfg", f"{name} is {_shown(each)}, and not a number, text or a dtype")
        plain = {name: str(each).removeprefix("torch.") if isinstance(each, torch.dtype) else each for name, each in told.items()}
        vocabulary = plain.get("d_vocab", 0)
        self.check(type(vocabulary) is int and vocabulary >= 0, "cfg", f"d_vocab is {_shown(vocabulary)}, and not a number from 0")
        return plain

    def logits(self) -> list[LogitTarget]:
        """The logits: a list of texts and ids, or in older files their ids alone."""
        name = "logit_targets" if "logit_targets" in self.found else "logit_tokens"
        value = self.found.get(name)
        if isinstance(value, Tensor):
            return [LogitTarget("", number) for number in self.integers(name, 1).tolist()]
        is_right = isinstance(value, list) and all(
            isinstance(each, LogitTarget)
            and isinstance(each.token_str, str)
            and type(each.vocab_idx) is int
            and 0 <= each.vocab_idx < 1 << 62
            for each in value
        )
        self.check(is_right, name, f"{_shown(value)}, and not a list of logits with a text and an id, or a tensor of ids")
        return value  # type: ignore[return-value]


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"{value!r:.60}" if value is None or isinstance(value, int | float | str) else f"a {type(value).__name__}"
