"""circuit-tracer's graphs, as its Graph.from_pt reads them: a dense matrix between the nodes of one prompt.

Rows and columns stand in one order: latents by (layer, position, index); the errors of all layers at all positions, at
layer · positions + position; tokens; logits. A row is a target and a column a source, as in attrib. What attrib knows beyond that has
no place there: constants, position embeddings, MLPs without a dictionary; what a row's target reads with, and what was dropped of it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.files import check_free, whole
from attrib.core.room import free_memory, memory_named
from attrib.core.types import BudgetError, InputError, warn
from attrib.graph.files.foreign import labels_of, layer_of, n_layers_of
from attrib.graph.files.pickles import CONFIG, KEY, LogitTarget, UnifiedConfig, write_pickle
from attrib.graph.graph import Graph
from attrib.graph.nodes import NodeKind

if TYPE_CHECKING:
    from attrib.models.transformer import Model

Others = Literal["error", "drop"]
_PLACED: tuple[NodeKind, ...] = ("latent", "error", "token", "logit", "target")


def to_circuit_tracer(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    config: "Model | Mapping[str, Any] | None" = None,
    prompt: str | None = None,
    scan: str | Sequence[str] | None = None,
    others: Others = "error",
    budget: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a graph for circuit-tracer's `Graph.from_pt`, and return the path. Weights are written in float32.

    Kept are the edges, activations, tokens, and logits with their `importance` for a probability. Lost are `value`, `own`, `total` and
    `l1` of the rows, dictionaries' names, and edges of weight 0.

    Args:
        graph: the graph; its logits and targets are of the prompt's last position, as circuit-tracer has them.
        path: the new file, usually `*.pt`.
        config: the model, or its facts by circuit-tracer's names (`CONFIG`). Default: those of the file that the graph was read from,
            or else the number of layers alone, which suffices for `from_pt` and pruning. `create_graph_files` needs `tokenizer_name`.
        prompt: the text. Default: that of the file that the graph was read from, or else its tokens' labels, joined.
        scan: circuit-tracer's name for the dictionaries, or one of each layer.
        others: what becomes of nodes of kinds that circuit-tracer has not, constants, position embeddings, MLPs without a dictionary:
            "error" refuses, "drop" leaves them and their edges out, and warns of how much that is.
        budget: bytes that the matrix may take; default: half of the free memory.
        overwrite: replace what is there.

    Raises:
        InputError: the path cannot be used; there are nodes that have no place, or two that have one; a logit is of another position;
            a target that is no token's logit needs `d_vocab`.
        BudgetError: the matrix, 4 · nodes² bytes, is larger than the budget.
    """
    path = Path(path)
    check_free("path", path, overwrite=overwrite)
    known = _known(graph)
    facts = _facts(config, known.get("config", {}))
    layers = facts["n_layers"] = _layers(graph, facts.get("n_layers"))
    _check_others(graph, others)
    places, count = _places(graph, layers)
    need, budget = 4 * count * count, free_memory() // 2 if budget is None else budget
    if need > budget:
        raise BudgetError(
            f"budget: {budget:,} bytes, and a dense matrix of {count:,} nodes needs {need:,}. Raise the budget, or give a pruned graph."
        )
    latents = graph.nodes.of_kind("latent")
    latents = latents[places[latents].argsort()]
    logits = graph.nodes.of_kind("logit", "target")
    layer = torch.tensor([layer_of(each) if each.kind == "latent" else -1 for each in graph.nodes.sets], dtype=torch.int64)
    with memory_named(f"making a dense matrix of {count:,} nodes"), whole(path) as partial:
        state = {
            "input_string": known.get("prompt", "".join(graph.strings)) if prompt is None else prompt,
            "adjacency_matrix": _dense(graph, places, count),
            "cfg": _stand_in(facts),
            "active_features": torch.stack(
                [layer[graph.nodes.set_of[latents]], graph.nodes.position[latents], graph.nodes.latent[latents]], 1
            ),
            "logit_targets": _logit_targets(graph, logits, facts.get("d_vocab")),
            "logit_probabilities": _float32("importance", graph.importance[graph.row_of[logits]]),
            "vocab_size": facts.get("d_vocab"),
            "input_tokens": graph.tokens.clone(),
            "selected_features": torch.arange(len(latents)),
            "activation_values": _float32("activation", graph.nodes.activation[latents]),
            "scan": known.get("scan") if scan is None else scan if isinstance(scan, str) else list(scan),
        }
        write_pickle(partial, state)
    return path


def _known(graph: Graph) -> Mapping[str, Any]:
    known = graph.call.get(KEY, {})
    return known if isinstance(known, Mapping) else {}


def _facts(config: "Model | Mapping[str, Any] | None", known: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a model by circuit-tracer's names."""
    if config is None:
        return dict(known)
    if not isinstance(config, Mapping):
        own = config.config
        facts = {name: getattr(own, name) for name in ("n_layers", "d_model", "d_head", "n_heads", "d_mlp", "d_vocab")}
        return facts | {"n_key_value_heads": own.n_kv_heads, "model_name": config.name, "tokenizer_name": config.name}
    if unknown := [name for name in config if name not in CONFIG]:
        raise InputError(f"config: {unknown[0]!r}; expected names among {', '.join(CONFIG)}.")
    return dict(config)


def _layers(graph: Graph, said: Any) -> int:
    least = n_layers_of(graph.nodes)
    if said is not None and (type(said) is not int or said < least):
        raise InputError(f"config: n_layers {said!r}, and the graph has nodes in layer {least - 1}; expected {least} at least.")
    return least if said is None else said


def _check_others(graph: Graph, others: Others) -> None:
    """Say what has no place, or refuse it."""
    if others not in get_args(Others):
        raise InputError(f"others: {others!r}; expected one of {', '.join(map(repr, get_args(Others)))}.")
    if len(heads := graph.nodes.of_kind("head")):
        raise InputError(
            f"graph: {len(heads):,} of its nodes are heads, which circuit-tracer has no place for, and effects pass them; expected the "
            "graph from which with_heads made it."
        )
    counts: dict[str, int] = {}
    for each in graph.nodes.sets:
        if each.kind not in _PLACED and each.size:
            counts[each.kind] = counts.get(each.kind, 0) + each.size
    if not counts:
        return
    kinds = torch.tensor([each.kind not in _PLACED for each in graph.nodes.sets], dtype=torch.bool)
    is_lost = kinds[graph.nodes.set_of][graph.indices]
    share = float(graph.weight.abs()[is_lost].double().sum() / graph.weight.abs().double().sum().clamp_min(1e-300))
    what = (
        f"{' and '.join(f'{count:,} {kind} nodes' for kind, count in counts.items())}, which circuit-tracer has no place for, with "
        f"{int(is_lost.sum()):,} of {len(graph):,} edges and {share:.1%} of the sum of their sizes"
    )
    if others == "error":
        raise InputError(f"others: the graph has {what}; expected others='drop' to leave them out. Its rows then add up no more.")
    warn(f"others: left out {what}.")


def _places(graph: Graph, layers: int) -> tuple[Int[Tensor, " nodes"], int]:
    """Each node's place in the matrix, -1 where it has none, and how many places there are."""
    nodes, positions = graph.nodes, len(graph.tokens)
    latents, errors, tokens, logits = (nodes.of_kind(*kinds) for kinds in (("latent",), ("error",), ("token",), ("logit", "target")))
    if (graph.tokens < 0).any():
        raise InputError("graph: a token whose id is not known; expected all of the prompt's ids, which circuit-tracer keeps.")
    if (nodes.position[logits] != positions - 1).any():
        raise InputError("graph: a logit or target of a position before the last; expected the last alone, as circuit-tracer has it.")
    if (graph.row_of[logits] < 0).any():
        raise InputError("graph: a logit without a row, which would have no probability; expected a row for each logit and target.")
    layer = torch.tensor([layer_of(each) if each.kind in ("latent", "error") else 0 for each in nodes.sets], dtype=torch.int64)[
        nodes.set_of
    ]
    places = torch.full((len(nodes),), -1)
    keys = torch.stack([layer[latents], nodes.position[latents], nodes.latent[latents]], 1)
    unique, rank = keys.unique(dim=0, return_inverse=True)
    places[latents] = rank
    first_error = len(latents)
    first_token = first_error + layers * positions
    first_logit = first_token + positions
    places[errors] = first_error + layer[errors] * positions + nodes.position[errors]
    places[tokens] = first_token + nodes.position[tokens]
    places[logits] = first_logit + torch.arange(len(logits))
    taken = places[places >= 0]
    if len(unique) < len(latents) or len(taken.unique()) < len(taken):
        again = next(kind for kind in _PLACED if len(places[of := nodes.of_kind(kind)].unique()) < len(of))
        raise InputError(
            f"graph: two {again} nodes of one layer and position would have one place; expected one dictionary and one error a layer, "
            "as circuit-tracer has them."
        )
    return places, first_logit + len(logits)


def _dense(graph: Graph, places: Int[Tensor, " nodes"], count: int) -> Float[Tensor, "count count"]:
    matrix = torch.zeros(count, count)
    row, column = places[graph.target], places[graph.indices]
    kept = column >= 0
    matrix[row[kept], column[kept]] = _float32("weight", graph.weight[kept])
    return matrix


def _float32(name: str, values: Tensor) -> Float[Tensor, " n"]:
    found = values.float()
    if not found.isfinite().all():
        raise InputError(
            f"graph: {name} has a number that is not finite in float32; expected finite ones, which circuit-tracer computes with."
        )
    return found


def _logit_targets(graph: Graph, logits: Int[Tensor, " logits"], d_vocab: int | None) -> list[LogitTarget]:
    """Logits by their token; other targets by numbers beyond the vocabulary, in order."""
    found, labels = [], labels_of(graph.nodes)
    for place, node in enumerate(logits.tolist()):
        vocab, label = int(graph.nodes.latent[node]) if graph.nodes.kind(node) == "logit" else -1, labels[node]
        if vocab < 0 and d_vocab is None:
            raise InputError(f"config: {label!r} is no token's logit, and is numbered beyond the vocabulary; expected d_vocab in `config`.")
        found.append(LogitTarget(label, vocab if vocab >= 0 else int(d_vocab or 0) + place))
    return found


def _stand_in(facts: Mapping[str, Any]) -> UnifiedConfig:
    config = UnifiedConfig()
    dtype = facts.get("dtype")
    known = dict.fromkeys(CONFIG) | dict(facts) | {"dtype": getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype}
    config.__dict__.update(known)
    return config
