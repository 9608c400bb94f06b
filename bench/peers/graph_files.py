"""Graph files between attrib and circuit-tracer: each reads what the other writes, edge by edge.

The two run in environments of their own, as in bench/peers/circuit_tracer.py, and meet in a folder:

    python -m bench.peers.graph_files write FOLDER       # attrib's graphs: for Graph.from_pt, and as JSON for the frontend
    ct/bin/python -m bench.peers.graph_files theirs FOLDER  # circuit-tracer reads and prunes them, and attributes random models of its own
    python -m bench.peers.graph_files compare FOLDER     # attrib reads what circuit-tracer wrote; exits 1 where any edge differs

`compare --schema FILE` holds attrib's JSON against Neuronpedia's published JSON schema as well, where jsonschema is installed.
"""

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.peers.circuit_tracer import SHAPES, Case, Ids, randomise, transcoders_of

Edges = dict[tuple[Any, ...], float]
SEEDS = range(3)
OPTIONS: dict[str, dict[str, Any]] = {"all": {}, "some": {"max_feature_nodes": 40}, "direction": {"attribution_targets": True}}
"""What circuit-tracer is asked of a random model: of all active latents, of some of them, and of a direction in place of logits."""
CONFIG = {"d_vocab": 60, "model_name": "random", "n_layers": 3}

# ------------------------------------------------------------------------------------------- attrib's first half


def write(folder: Path) -> None:
    """Random graphs in both formats."""
    from attrib.core.types import AttribWarning
    from attrib.graph import to_circuit_tracer, to_neuronpedia
    from tests.support.graphs import random_graph

    (folder / "frontend").mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        graph = random_graph(seed, positions=6, latents=20)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttribWarning)  # constants are left out, which is meant
            to_circuit_tracer(graph, folder / f"ours-{seed}.pt", config=CONFIG, scan="random", others="drop", overwrite=True)
        to_neuronpedia(graph, folder / "frontend" / f"attrib-{seed}.json", scan="random", overwrite=True)


# -------------------------------------------------------------------------------------------- circuit-tracer's half


def tokenizer(folder: Path, size: int) -> str:
    """A folder with a tokenizer of words t0, t1, …, which create_graph_files loads."""
    tokenizers, transformers = import_module("tokenizers"), import_module("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"t{n}": n for n in range(size)}, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0").save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


def dump(folder: Path, name: str, graph: Any) -> None:
    """What circuit-tracer has in memory, in a format that neither of the readers under test is needed for; and its own files."""
    of_graph = import_module("circuit_tracer.graph")
    pruned = of_graph.prune_graph(graph)
    tensors = {
        "matrix": graph.adjacency_matrix, "active": graph.active_features[graph.selected_features], "tokens": graph.input_tokens,
        "activation": graph.activation_values[graph.selected_features], "probability": graph.logit_probabilities,
        "logits": graph.logit_token_ids, "node_mask": pruned.node_mask, "edge_mask": pruned.edge_mask,
        "sizes": torch.tensor([graph.cfg.n_layers, graph.vocab_size]),
    }  # fmt: skip
    replacement, completeness = of_graph.compute_graph_scores(graph)
    print(f"{name}: {int(pruned.node_mask.sum())} of {len(pruned.node_mask)} nodes are left; scores {replacement:.3f}, {completeness:.3f}")
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    graph.cfg.tokenizer_name = tokenizer(folder, graph.vocab_size)
    graph.to_pt(str(folder / f"{name}.again.pt"))
    import_module("circuit_tracer.utils.create_graph_files").create_graph_files(graph, name, str(folder / "frontend"), scan="random")


def theirs(folder: Path) -> None:
    """circuit-tracer reads attrib's files, and writes its own."""
    of_graph, models = import_module("circuit_tracer.graph"), import_module("circuit_tracer.frontend.graph_models")
    for path in sorted(folder.glob("ours-?.pt")):
        dump(folder, path.stem, of_graph.Graph.from_pt(str(path)))
    for path in sorted((folder / "frontend").glob("attrib-*.json")):
        found = models.Model.model_validate_json(path.read_text())
        print(f"{path.name}: circuit-tracer's model of its frontend takes {len(found.nodes)} nodes and {len(found.links)} links")
    for name, options in OPTIONS.items():
        dump(folder, f"theirs-{name}", attributed(Case("gpt2", "set", "hook_resid_mid"), dict(options)))


def attributed(case: Case, options: dict[str, Any]) -> Any:
    """circuit-tracer's graph of a random model with random transcoders, as bench/peers/circuit_tracer.py makes them."""
    attribute, lens = import_module("circuit_tracer").attribute, import_module("transformer_lens")
    replacement = import_module("circuit_tracer.replacement_model.replacement_model_transformerlens")
    torch.manual_seed(0)
    config = SHAPES[case.shape]
    model = replacement.TransformerLensReplacementModel(lens.HookedTransformerConfig(**config))
    randomise(model)
    tokens = torch.randint(1, config["d_vocab"], (case.positions,)).index_fill(0, torch.tensor([0]), 0)
    hooks = [f"blocks.{layer}.{case.hook}" for layer in range(config["n_layers"])]
    _, cache = model.run_with_cache(tokens, names_filter=hooks)
    model._configure_replacement_model(transcoders_of(case, [cache[hook][0] for hook in hooks]))
    model.tokenizer = Ids()
    model.tokenizer.vocab_size = config["d_vocab"]  # a number beyond it is that of a direction
    options.setdefault("attribution_targets", torch.tensor([3, 7, 9]))
    if options["attribution_targets"] is True:
        options["attribution_targets"] = [("a direction", 0.5, torch.randn(config["d_model"]))]
    return attribute(tokens, model, batch_size=16, **options)


# ------------------------------------------------------------------------------------------- attrib's second half


@dataclass(frozen=True)
class Found:
    """A comparison: of how many edges and numbers of nodes, how many differ."""

    name: str
    edges: int
    differ: int


def named(found: dict[str, Tensor], node: int) -> tuple[Any, ...]:
    """A node by its number in circuit-tracer's matrix."""
    layers, positions, latents = int(found["sizes"][0]), len(found["tokens"]), len(found["active"])
    if node < latents:
        return "latent", *found["active"][node].tolist()
    if (place := node - latents) < layers * positions:
        return "error", *divmod(place, positions), -1
    if (place := place - layers * positions) < positions:
        return "token", -1, place, int(found["tokens"][place])
    vocab = int(found["logits"][place - positions])
    return "logit", -1, positions - 1, vocab


def dense_edges(found: dict[str, Tensor], mask: Tensor | None = None) -> Edges:
    """The edges of circuit-tracer's matrix."""
    kept = found["matrix"] != 0 if mask is None else mask
    names = [named(found, node) for node in range(len(kept))]
    return {(names[row], names[column]): float(found["matrix"][row, column]) for row, column in kept.nonzero().tolist()}


def dense_numbers(found: dict[str, Tensor]) -> Edges:
    """The activations of latents and the probabilities of logits in circuit-tracer's graph."""
    latents, logits = len(found["active"]), len(found["logits"])
    nodes = [*range(latents), *range(len(found["matrix"]) - logits, len(found["matrix"]))]
    values = [*found["activation"].tolist(), *found["probability"].tolist()]
    return {(named(found, node),): value for node, value in zip(nodes, values, strict=True)}


def graph_names(graph: Any, virtual: int) -> list[tuple[Any, ...]]:
    """The nodes of attrib's graph, by the same names; targets that are no token's logit count from `virtual`."""
    nodes = graph.nodes
    first = int(nodes.of_kind("logit", "target")[0])

    def name(node: int) -> tuple[Any, ...]:
        each, at, index = nodes.sets[int(nodes.set_of[node])], int(nodes.position[node]), int(nodes.latent[node])
        if each.kind in ("logit", "target"):
            return "logit", -1, at, virtual + node - first if index < 0 else index
        return each.kind, int(each.site.split(".")[1]) if "." in each.site else -1, at, index

    return [name(node) for node in range(len(nodes))]


def graph_edges(graph: Any, virtual: int) -> Edges:
    """The edges of attrib's graph."""
    names = graph_names(graph, virtual)
    ends = zip(graph.target.tolist(), graph.indices.tolist(), graph.weight.tolist(), strict=True)
    return {(names[target], names[source]): weight for target, source, weight in ends}


def graph_numbers(graph: Any, virtual: int) -> Edges:
    """The activations of latents and the probabilities of logits in attrib's graph."""
    names, latents, logits = graph_names(graph, virtual), graph.nodes.of_kind("latent"), graph.nodes.of_kind("logit", "target")
    values = [*graph.nodes.activation[latents].tolist(), *graph.importance[graph.row_of[logits]].tolist()]
    return {(names[node],): value for node, value in zip([*latents.tolist(), *logits.tolist()], values, strict=True)}


def differ(name: str, mine: Edges, theirs: Edges) -> Found:
    """How many edges are of one side alone, or have another weight."""
    return Found(name, len(theirs), sum(mine.get(pair) != theirs.get(pair) for pair in mine.keys() | theirs.keys()))


def compared(folder: Path) -> Iterator[Found]:
    """All that can be compared in a folder."""
    from attrib.graph import from_circuit_tracer, from_neuronpedia
    from tests.support.graphs import random_graph

    for path in sorted(folder.glob("*.safetensors")):
        found, name = load_file(path), path.stem
        virtual = int(found["sizes"][1])
        if name.startswith("ours"):
            own = random_graph(int(name[-1]), positions=6, latents=20)
            mine = graph_edges(own, virtual) | graph_numbers(own, virtual)
            kept = {pair: float(torch.tensor(weight).float()) for pair, weight in mine.items() if pair[-1][0] not in ("position", "bias")}
            yield differ(f"{name}: attrib's .pt in circuit-tracer", kept, dense_edges(found) | dense_numbers(found))
        again = from_circuit_tracer(folder / f"{name}.again.pt", hooks=("hook_resid_mid", "hook_mlp_out"))
        yield differ(
            f"{name}: circuit-tracer's .pt in attrib",
            graph_edges(again, virtual) | graph_numbers(again, virtual),
            dense_edges(found) | dense_numbers(found),
        )
        pruned = dense_edges(found, found["edge_mask"] & found["node_mask"] & found["node_mask"][:, None])
        file = folder / "frontend" / f"{name}.json"
        shown = from_neuronpedia(file)
        shared = sum(count > 1 for count in Counter(node["node_id"] for node in json.loads(file.read_text())["nodes"]).values())
        yield differ(f"{name}: circuit-tracer's JSON in attrib, {shared} ids of two nodes", graph_edges(shown, virtual), pruned)


def compare(folder: Path, schema: Path | None) -> bool:
    """Print a table of all comparisons, and say whether there are any and all agree."""
    from rich.table import Table

    from bench.output import wide_console

    found = list(compared(folder))
    table = Table("what", title="graph files between attrib and circuit-tracer: edges and numbers of nodes, and how many differ")
    for column in ("compared", "differ"):
        table.add_column(column, justify="right")
    for each in found:
        table.add_row(each.name, f"{each.edges:,}", f"{each.differ:,}", style="red" if each.differ else None)
    wide_console().print(table)
    if schema is not None:
        for path in sorted((folder / "frontend").glob("attrib-*.json")):
            import_module("jsonschema").validate(json.loads(path.read_text()), json.loads(schema.read_text()))
            print(f"{path.name}: as the schema says")
    return bool(found) and not any(each.differ for each in found)


def main() -> bool:
    """Run one part on a folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["write", "theirs", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--schema", type=Path)
    given = parser.parse_args()
    if given.part == "compare":
        return compare(given.folder, given.schema)
    {"write": write, "theirs": theirs}[given.part](given.folder)
    return True


if __name__ == "__main__":
    raise SystemExit(not main())
