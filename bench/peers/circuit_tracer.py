"""circuit-tracer's attribution graphs and attrib's, value by value, and how long each takes.

The two run in environments of their own, since circuit-tracer pins other versions, and meet in a folder:

    python -m venv ct && ct/bin/pip install circuit-tracer==0.5.0 -r bench/peers/requirements.txt
    ct/bin/python -m bench.peers.circuit_tracer graph FOLDER     # random models and transcoders, and circuit-tracer's graph of each
    python -m bench.peers.circuit_tracer compare FOLDER          # attrib's graph of what lies there; exits 1 where any differ

With `--case NAME` (more than once) only these are made or compared; those whose names begin with "large-" are made by name alone.
`make peers` does all of it, and `make peers PEER=...` with any circuit-tracer that pip can install: a folder with its source, or
git+https://github.com/decoderesearch/circuit-tracer. The table says which one it was.

With transcoders in place of all MLPs, and attention patterns and norm scales held fixed, circuit-tracer's edge from node s to
latent t is D_s · J · E_t: what s writes, the residual stream's linear map, the encoder column of t. That is `attrib.graph.build` with its
conventions as options: nothing has latents or errors at the first position (`skip_positions=1`, and attrib's errors there are left
out), logits are less their mean (`demean`), and a token's node is its row of W_E alone. attrib has nodes for biases and for
learned positions beside; circuit-tracer has none, and they are left out of the comparison.

Of a case that says `one_in`, circuit-tracer computes the rows of its logits and one batch of latents in so many; the others are left at
zero and not compared, and the time of the batches is multiplied by how many there would be.

Times are of a second run: of attribute() there, of `build` here, which keeps every edge (`Dense()`), or what `--keep` says. They compare
where both ran on one machine, with as many threads (OMP_NUM_THREADS).
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.measure import Time, timed

T = TypeVar("T")
Facts = dict[str, Any]
Kind = Literal["set", "set-skip", "set-jump", "set-topk", "clt"]

TOLERANCE = 1e-5  # of float32 values, relative to the largest of their kind in the case
BATCH = 16  # rows of one backward pass of circuit-tracer: on a CPU its default of 512 takes three times as long for gpt2-small

LAYER: Facts = {"normalization_type": "LN", "act_fn": "gelu_new", "positional_embedding_type": "standard", "device": "cpu"}
RMS: Facts = {"normalization_type": "RMS", "act_fn": "silu", "positional_embedding_type": "rotary", "gated_mlp": True, "device": "cpu"}
TINY: Facts = {"n_layers": 4, "d_model": 32, "n_ctx": 64, "n_heads": 4, "d_head": 8, "d_mlp": 96, "d_vocab": 60}
SMALL: Facts = {"n_layers": 12, "d_model": 768, "n_ctx": 64, "n_heads": 12, "d_head": 64, "d_mlp": 3072, "d_vocab": 1000}
MIDDLE: Facts = {"n_layers": 4, "d_model": 256, "n_ctx": 64, "n_heads": 8, "d_head": 32, "d_mlp": 1024, "d_vocab": 1000}
SHAPES = {
    "d256": LAYER | MIDDLE,
    "gpt2": LAYER | TINY,
    "llama": RMS | TINY | {"rotary_dim": 8},
    "gpt2-small": LAYER | SMALL,
}  # of HookedTransformerConfig


@dataclass(frozen=True)
class Case:
    """Random transcoders at a hook of a random model; about `active` latents of each are active per position."""

    shape: str
    kind: Kind
    hook: str
    d_sae: int = 60
    active: int = 12
    positions: int = 12
    batch: int = BATCH
    label: str = ""
    max_nodes: int | None = None
    one_in: int = 1

    @property
    def name(self) -> str:
        return self.label or f"{self.shape}-{self.kind}-{self.hook}"

    @property
    def is_large(self) -> bool:
        return self.name.startswith("large-")


HOOKS = ("hook_resid_mid", "ln2.hook_normalized")
CASES = [Case(shape, kind, hook) for shape in ("gpt2", "llama") for kind in get_args(Kind) for hook in HOOKS]
CASES.append(Case("gpt2-small", "set", "ln2.hook_normalized", d_sae=3072, active=20, positions=16))
CASES += [
    Case("d256", "set", "ln2.hook_normalized", d_sae=2048, active=160, positions=24, batch=64, label="large-4-layers"),
    Case("gpt2-small", "set", "ln2.hook_normalized", d_sae=3072, active=20, positions=32, label="large-gpt2-32"),
    Case("gpt2-small", "set", "ln2.hook_normalized", d_sae=3072, active=30, positions=48, label="large-gpt2-48", one_in=10),
    Case("d256", "set", "ln2.hook_normalized", d_sae=2048, active=160, positions=24, batch=64, label="large-4-layers-2000", max_nodes=2000),
    Case("gpt2-small", "set", "ln2.hook_normalized", d_sae=3072, active=20, positions=32, label="large-gpt2-32-2000", max_nodes=2000),
]


class Graph(NamedTuple):
    """Active latents (layer, position, index), ascending, and all edges, row from column, as circuit-tracer orders them."""

    tokens: Int[Tensor, " positions"]
    logits: Int[Tensor, " logits"]
    latents: Int[Tensor, "latents 3"]
    activation: Float[Tensor, " latents"]
    edges: Float[Tensor, "rows columns"]
    """Rows: the latents that have some, then logits. Columns: latents, then errors and tokens by layer and position."""
    rows: Int[Tensor, " rows_of_latents"]
    """The numbers of the latents that have rows, ascending."""


class Known(NamedTuple):
    """What circuit-tracer's half says of a case beside its graph."""

    time: Time
    max_nodes: int | None = None
    peer: str = ""
    """Which circuit-tracer it was."""


def write_case(folder: Path, config: Facts, parameters: Mapping[str, Tensor], graph: Graph, known: Known) -> None:
    """All that `compare` reads beside the folder `transcoders`."""
    for name, tensors in (("model", parameters), ("graph", graph._asdict())):
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    facts = {"config": config} | known._asdict() | {"time": known.time._asdict()}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


def second_of(run: Callable[[], T]) -> tuple[T, Time]:
    """The result and the time of a second run: the first one loads and allocates."""
    run()
    return timed(run, torch.device("cpu"))


# ---------------------------------------------------------------------------------------- circuit-tracer's half


class Ids:
    """As much of a tokenizer as attribute() asks for. Prompts begin with a special token, so that none is put before them."""

    all_special_ids, vocab_size, padding_side = (0,), 0, "right"

    def decode(self, ids: object) -> str:
        return str(ids)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Matrices keep the size of what they multiply, norm weights lie near 1, biases near 0."""
    for name, parameter in module.named_parameters():
        kind, noise = name.split(".")[-1], torch.randn_like(parameter)
        if kind == "w":
            parameter.copy_(1 + 0.1 * noise)
        elif kind.startswith("b"):
            parameter.copy_(0.1 * noise)
        elif kind != "threshold":
            parameter.copy_(noise * parameter.shape[-2] ** -0.5)


@torch.no_grad()
def transcoders_of(case: Case, inputs: list[Float[Tensor, "positions d_model"]]) -> Any:
    """circuit-tracer's transcoders; in each layer one bias, with which `active · positions` latents pass zero or their threshold."""
    names = ("single_layer_transcoder", "cross_layer_transcoder", "activation_functions")
    single, cross, act = (import_module(f"circuit_tracer.transcoder.{name}") for name in names)
    n_layers, d_model, on = len(inputs), inputs[0].shape[1], {"device": torch.device("cpu"), "dtype": torch.float32}
    threshold, skips = 0.3 if case.kind == "set-jump" else 0.0, case.kind == "set-skip"
    other = {"set-jump": lambda: act.JumpReLU(torch.full((case.d_sae,), threshold)), "set-topk": lambda: act.TopK(case.active)}
    if case.kind == "clt":
        made = cross.CrossLayerTranscoder(n_layers, case.d_sae, d_model, lazy_decoder=False, feature_input_hook=case.hook, **on)
    else:
        rules = [other[case.kind]() if case.kind in other else torch.relu for _ in inputs]
        layers = {i: single.SingleLayerTranscoder(d_model, case.d_sae, rule, i, skips, **on) for i, rule in enumerate(rules)}
        made = single.TranscoderSet(layers, case.hook, "hook_mlp_out")
    made.scan = "random"  # it warns without
    randomise(made)
    for number, x in enumerate(inputs):
        W_enc, b_enc = (made.W_enc[number], made.b_enc[number]) if case.kind == "clt" else (made[number].W_enc, made[number].b_enc)
        largest = (x @ W_enc.T).flatten().topk(case.active * len(x) + 1).values
        b_enc.fill_(threshold - float(largest[-2:].mean()))
    return made


def this_peer() -> str:
    """The circuit-tracer that is installed: its version, and the beginning of a hash of its modules, which say more."""
    folder, found = Path(import_module("circuit_tracer").__file__ or "").parent, sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return f"circuit-tracer {version('circuit-tracer')} ({found.hexdigest()[:8]})"


def added(time: Time, other: Time, factor: float = 1.0) -> Time:
    """A time and so many times another."""
    return Time(time.cpu + factor * other.cpu, time.wall + factor * other.wall)


class Sampled:
    """Within it, circuit-tracer computes one batch of latents in so many, evenly over all of them; rows of the others are zero."""

    def __init__(self, one_in: int) -> None:
        self.one_in = one_in
        self.context = import_module("circuit_tracer.attribution.context_transformerlens").AttributionContext
        self.computed: list[bool] = []
        self.spent = Time(0.0, 0.0)

    def __enter__(self) -> "Sampled":
        self.whole = self.context.compute_batch
        self.context.compute_batch = lambda context, **given: self._batch(context, given)
        return self

    def __exit__(self, *_: object) -> None:
        self.context.compute_batch = self.whole

    def _batch(self, context: Any, given: Facts) -> Any:
        if bool((given["layers"] == context.n_layers).all()):  # those of logits
            self.computed, self.spent, self.width = [], Time(0.0, 0.0), 0
            found = self.whole(context, **given)
            self.width = found.shape[1]
            return found
        self.computed += [len(self.computed) % self.one_in == self.one_in // 2]
        if not self.computed[-1]:
            return given["inject_values"].new_zeros(len(given["layers"]), self.width)
        found, time = timed(partial(self.whole, context, **given), torch.device("cpu"))
        self.spent = added(self.spent, time)
        return found

    def rows(self, count: int, batch: int) -> Int[Tensor, " rows"]:
        """The numbers of the latents whose rows were computed in the last run."""
        return torch.tensor(self.computed).repeat_interleave(batch)[:count].nonzero()[:, 0]

    def scaled(self, time: Time) -> Time:
        """The time of the last run as if it had computed all batches."""
        more = len(self.computed) / max(1, sum(self.computed)) - 1
        return added(time, self.spent, more)


def replaced_model(folder: Path, case: Case) -> tuple[Any, dict[str, Tensor], Tensor]:
    """circuit-tracer's model of a case, with its transcoders, which are written too; its parameters by their usual names; and tokens."""
    lens = import_module("transformer_lens")
    replacement = import_module("circuit_tracer.replacement_model.replacement_model_transformerlens")
    torch.manual_seed(0)
    config = SHAPES[case.shape]
    model = replacement.TransformerLensReplacementModel(lens.HookedTransformerConfig(**config))
    randomise(model)
    model.unembed.W_U.data -= model.unembed.W_U.data.mean(1, keepdim=True)
    parameters = dict(model.named_parameters())  # before others are put in
    tokens = torch.randint(1, config["d_vocab"], (case.positions,)).index_fill(0, torch.tensor([0]), 0)
    hooks = [f"blocks.{layer}.{case.hook}" for layer in range(config["n_layers"])]
    _, cache = model.run_with_cache(tokens, names_filter=hooks)
    transcoders = transcoders_of(case, [cache[hook][0] for hook in hooks])
    transcoders.to_safetensors(str(folder / "transcoders"))
    names: Facts = {"model_kind": "cross_layer_transcoder" if case.kind == "clt" else "transcoder_set"}
    names |= {"feature_input_hook": case.hook, "feature_output_hook": "hook_mlp_out"}
    names |= {"activation": "topk", "k": case.active} if case.kind == "set-topk" else {}
    (folder / "transcoders" / "config.yaml").write_text(json.dumps(names))  # JSON is YAML
    model._configure_replacement_model(transcoders)  # the rest of its from_config, which would begin with other parameters
    model.tokenizer = Ids()
    return model, parameters, tokens


def write_graph(folder: Path, case: Case) -> Time:
    """Build a case, have circuit-tracer attribute it, and write both."""
    attribute = import_module("circuit_tracer").attribute
    config, logits = SHAPES[case.shape], torch.tensor([3, 7, 9])
    model, parameters, tokens = replaced_model(folder, case)
    options = {"attribution_targets": logits, "batch_size": case.batch, "max_feature_nodes": case.max_nodes}
    with Sampled(case.one_in) as sampled:
        found, time = second_of(partial(attribute, tokens, model, **options))
    whole, chosen = found.adjacency_matrix, found.selected_features
    rows, time = sampled.rows(len(chosen), case.batch), sampled.scaled(time)
    edges = torch.cat([whole[rows], whole[-len(logits) :]])[:, : -len(logits)]
    graph = Graph(tokens, logits, found.active_features[chosen], found.activation_values[chosen], edges, rows)
    write_case(folder, config, parameters, graph, Known(time, case.max_nodes, this_peer()))
    return time


# ------------------------------------------------------------------------------------------------ attrib's half


def attrib_graph(model: Any, layers: list[Any], tokens: Tensor, logits: Tensor, **options: Any) -> Any:
    """attrib's graph by circuit-tracer's conventions."""
    import attrib

    (graph,) = attrib.graph.build(model, layers, tokens, targets=attrib.TokenLogits(logits.tolist()), skip_positions=1, **options)
    return graph


def in_their_order(graph: Any, logits: Tensor, chosen: Int[Tensor, " rows_of_latents"] | None = None) -> Graph:
    """The same nodes and edges as circuit-tracer has them, with the rows of all latents or of those with these numbers."""
    nodes, length = graph.nodes, len(graph.tokens)
    latents = [number for number, each in enumerate(nodes.sets) if each.kind == "latent"]
    place = [(layer, nodes.rows(number)) for layer, number in enumerate(latents)]
    table = torch.cat(
        [torch.stack([torch.full_like(nodes.position[at], layer), nodes.position[at], nodes.latent[at]], 1) for layer, at in place]
    )
    chosen = torch.arange(len(table)) if chosen is None else chosen
    errors = nodes.of_kind("error")
    columns = torch.cat([nodes.of_kind("latent"), errors, nodes.of_kind("token")])
    some = graph.of_rows(graph.row_of[torch.cat([nodes.of_kind("latent")[chosen], nodes.of_kind("logit")])])
    whole = torch.zeros(len(some.targets), len(nodes)).index_put_((some.row, some.indices), some.weight)[:, columns]
    whole[:, len(table) : len(table) + len(errors) : length] = 0  # errors at the first position
    return Graph(graph.tokens, logits, table, nodes.activation[nodes.of_kind("latent")], whole, chosen)


def distance(mine: Graph, theirs: Graph) -> tuple[float, float]:
    """The largest difference of an edge, and of any value relative to the largest of its kind; infinite where other latents are active."""
    if not torch.equal(mine.latents, theirs.latents) or not torch.equal(mine.rows, theirs.rows):
        return float("inf"), float("inf")
    count = len(mine.logits)
    pairs = [
        (mine.edges[:-count], theirs.edges[:-count]), (mine.edges[-count:], theirs.edges[-count:]), (mine.activation, theirs.activation),
    ]  # fmt: skip
    differences, largest = (torch.stack(values) for values in zip(*(((a - b).abs().max(), b.abs().max()) for a, b in pairs), strict=True))
    return differences[:2].max().item(), (differences / largest).max().item()


def common(mine: Graph, theirs: Graph) -> tuple[Graph, Graph]:
    """Both graphs' share of the latents that they have in common, where each has chosen some of them."""
    keys = [(graph.latents * torch.tensor([1 << 40, 1 << 24, 1])).sum(1) for graph in (mine, theirs)]
    found = []
    for graph, own, other in ((mine, keys[0], keys[1]), (theirs, keys[1], keys[0])):
        order = own.argsort()
        kept = order[torch.isin(own[order], other)]
        columns = torch.cat([kept, torch.arange(len(own), graph.edges.shape[1])])
        rows = torch.cat([kept, torch.arange(len(own), len(graph.edges))])
        edges, every = graph.edges[rows][:, columns], torch.arange(len(kept))
        found.append(Graph(graph.tokens, graph.logits, graph.latents[kept], graph.activation[kept], edges, every))
    return found[0], found[1]


def read_model(folder: Path, config: Facts) -> tuple[Any, list[Any]]:
    """attrib's model and dictionaries of a case."""
    import attrib
    from attrib.adapters import load_dictionaries

    lens = import_module("transformer_lens")
    hooked = lens.HookedTransformer(lens.HookedTransformerConfig(**config))
    hooked.load_state_dict(hooked.state_dict() | load_file(folder / "model.safetensors"))  # which has no masks and rotary tables
    return attrib.from_transformer_lens(hooked, name=folder.name), load_dictionaries(folder / "transcoders")


def read_case(folder: Path) -> tuple[Any, list[Any], Graph, Known]:
    """attrib's model and dictionaries, circuit-tracer's graph, and what it says of it."""
    facts, graph = json.loads((folder / "facts.json").read_text()), Graph(**load_file(folder / "graph.safetensors"))
    return *read_model(folder, facts["config"]), graph, Known(Time(**facts["time"]), facts["max_nodes"], facts["peer"])


def compare(folder: Path, names: list[str], keep: str) -> bool:
    """Print a table of all cases of a folder, and say whether there are any and all agree."""
    from rich.table import Table

    import attrib
    from attrib.core.keep import parse_keep
    from bench.output import wide_console

    kept = parse_keep(keep)
    table = Table("case")
    for column in ("nodes", "edges", "largest", "difference", "relative", "attrib s", "circuit-tracer s", "ratio", "wall ratio"):
        table.add_column(column, justify="right")
    passed, peers = [], dict[str, None]()
    for path in sorted(file.parent for file in folder.glob("*/facts.json") if not names or file.parent.name in names):
        model, layers, theirs, (their_time, max_nodes, peer) = read_case(path)
        peers[peer] = None
        chosen = {} if max_nodes is None else {"max_nodes": max_nodes, "block": 4 * BATCH}  # theirs ranks anew after four batches
        run = partial(attrib_graph, model, layers, theirs.tokens, theirs.logits, budget="4GiB", **chosen)
        mine, time = second_of(partial(run, keep=kept))
        whole = mine if kept == attrib.Dense() else run(keep=attrib.Dense())
        ordered = in_their_order(whole, theirs.logits, theirs.rows if max_nodes is None else None)
        count, is_part = f"{len(theirs.latents) + len(theirs.logits):,}", len(theirs.rows) < len(theirs.latents)
        if max_nodes is not None:
            ordered, theirs = common(ordered, theirs)
        difference, relative = distance(ordered, theirs)
        count = count if max_nodes is None else f"{len(theirs.latents):,} of {max_nodes:,}"
        values = (
            count,
            f"{theirs.edges.count_nonzero():,}",
            f"{theirs.edges.abs().max():.2g}",
            f"{difference:.1e}",
            f"{relative:.1e}",
        )
        times = (time.cpu, their_time.cpu, their_time.cpu / time.cpu, their_time.wall / time.wall)
        passed.append(relative <= TOLERANCE)  # false of NaN
        if is_part:
            table.caption = "* scaled from the rows that were computed, whose edges alone are compared"
        figures = (f"{figure:.2f}{'*' * (is_part and number > 0)}" for number, figure in enumerate(times))
        table.add_row(path.name, *values, *figures, style=None if passed[-1] else "red")
        del mine, whole, theirs
    table.title = f"attrib ({keep}) beside {' and '.join(peers)}: nodes, edges, differences, and seconds of CPU time"
    wide_console().print(table)
    return bool(passed) and all(passed)


def main() -> bool:
    """Run one half on a folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("half", choices=["graph", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", action="append", default=[])
    parser.add_argument("--keep", default="dense")
    given = parser.parse_args()
    if given.half == "compare":
        return compare(given.folder, given.case, given.keep)
    for case in CASES:
        if case.name in given.case or (not given.case and not case.is_large):
            (folder := given.folder / case.name).mkdir(parents=True, exist_ok=True)
            print(f"{case.name}: {write_graph(folder, case).cpu:.2f} s of CPU time")
    return True


if __name__ == "__main__":
    raise SystemExit(not main())
