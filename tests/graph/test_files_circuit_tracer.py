"""circuit-tracer's files: what is written lies where circuit-tracer looks for it, what it writes is read, and nothing of a file runs."""

import os
import pickletools
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attrib.core.types import AttribWarning, BudgetError, FormatError, InputError
from attrib.graph import Graph, Nodes, NodeSet, from_circuit_tracer, to_circuit_tracer
from attrib.graph.files import pickles
from attrib.graph.files.pickles import LogitTarget, UnifiedConfig, read_pickle, write_pickle
from tests.support.graphs import random_graph
from tests.support.zips import repacked

CONFIG = {"n_layers": 3, "d_model": 8, "d_head": 4, "n_heads": 2, "d_mlp": 16, "d_vocab": 60, "tokenizer_name": "t", "model_name": "m"}
KEPT = ("token", "latent", "error", "logit", "target")


def kept_graph(seed: int = 0) -> Graph:
    """A graph of kinds that circuit-tracer has, with numbers of float32."""
    graph = random_graph(seed)
    graph = graph.take(graph.nodes.of_kind(*KEPT))
    activation = graph.nodes.activation.float()
    return replace(
        graph, nodes=replace(graph.nodes, activation=activation), weight=graph.weight.float(), importance=graph.importance.float()
    )


def key(graph: Graph, node: int) -> tuple[Any, ...]:
    each = graph.nodes.sets[int(graph.nodes.set_of[node])]
    return each.kind, each.site, int(graph.nodes.position[node]), int(graph.nodes.latent[node])


def edges_of(graph: Graph) -> dict[tuple[Any, ...], float]:
    pairs = zip(graph.target.tolist(), graph.indices.tolist(), graph.weight.tolist(), strict=True)
    return {(key(graph, target), key(graph, source)): weight for target, source, weight in pairs}


def state() -> dict[str, Any]:
    """What circuit-tracer writes, by hand: two layers, three tokens, four active features of which three are selected, two logits."""
    config = UnifiedConfig()
    config.__dict__.update({"n_layers": 2, "d_vocab": 9, "dtype": torch.float32, "tokenizer_name": "t", "extra": None})
    matrix = torch.zeros(3 + 6 + 3 + 2, 3 + 6 + 3 + 2)
    matrix[1, [0, 3, 9]] = torch.tensor([1.5, -2.0, 0.25])  # the second latent, of layer 1, by the first, an error of layer 0, a token
    matrix[0, 9] = 3.0
    matrix[12, [0, 1, 2, 8]] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    matrix[13, 11] = -1.0
    return {
        "input_string": "a b c",
        "adjacency_matrix": matrix,
        "cfg": config,
        "active_features": torch.tensor([[0, 0, 5], [0, 1, 7], [1, 1, 4], [1, 2, 6]]),
        "logit_targets": [LogitTarget(" x", 3), LogitTarget("x - y", 10)],
        "logit_probabilities": torch.tensor([0.5, 0.25]),
        "vocab_size": 9,
        "input_tokens": torch.tensor([1, 2, 8]),
        "selected_features": torch.tensor([0, 2, 3]),
        "activation_values": torch.tensor([1.0, 9.0, 2.0, 3.0]),
        "scan": ["first", "second"],
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "graph.pt"


def test_all_lies_where_circuit_tracer_looks_for_it(path: Path):
    graph = kept_graph()
    assert to_circuit_tracer(graph, path, config=CONFIG, scan="s", prompt="p") == path
    found = read_pickle(path)
    matrix, positions, layers = found["adjacency_matrix"], len(graph.tokens), 3
    n_latents = len(graph.nodes.of_kind("latent"))
    assert found["input_string"] == "p"
    assert (found["scan"], found["vocab_size"], vars(found["cfg"])["d_mlp"]) == ("s", 60, 16)
    assert found["selected_features"].tolist() == list(range(n_latents))
    assert found["active_features"].tolist() == sorted(found["active_features"].tolist())
    assert found["logit_targets"][-1] == LogitTarget("direction", 60 + 3)

    def place(node: int) -> int:
        kind, site, position, latent = key(graph, node)
        layer = int(site.split(".")[1]) if "." in site else 0
        if kind == "latent":
            return found["active_features"].tolist().index([layer, position, latent])
        if kind == "error":
            return n_latents + layer * positions + position
        if kind == "token":
            return n_latents + layers * positions + position
        return len(matrix) - 4 + node - int(graph.nodes.of_kind("logit")[0])

    for target, source, weight in zip(graph.target.tolist(), graph.indices.tolist(), graph.weight.tolist(), strict=True):
        assert matrix[place(target), place(source)] == weight
    assert matrix.count_nonzero() == len(graph)
    for node in graph.nodes.of_kind("latent").tolist():
        assert found["activation_values"][place(node)] == graph.nodes.activation[node]
    assert found["logit_probabilities"].tolist() == graph.importance[-4:].tolist()


def test_a_graph_comes_back(path: Path):
    graph = kept_graph(1)
    to_circuit_tracer(graph, path, config=CONFIG, scan=["a", "b", "c"])
    read = from_circuit_tracer(path, strings=graph.strings)
    assert edges_of(read) == edges_of(graph)
    assert {key(graph, node) for node in range(len(graph.nodes))} <= {key(read, node) for node in range(len(read.nodes))}
    assert read.nodes.labels == graph.nodes.labels
    assert read.strings == graph.strings
    assert torch.equal(read.tokens, graph.tokens)
    assert torch.equal(read.importance, graph.importance)
    assert [each.name for each in read.nodes.sets if each.kind == "latent"] == ["a", "b", "c"]
    latents = graph.nodes.of_kind("latent")
    assert torch.equal(read.nodes.activation[read.nodes.of_kind("latent")], graph.nodes.activation[latents])
    dense = torch.from_numpy(read.to_scipy().toarray())[read.targets]
    assert torch.allclose(read.total, dense.sum(1))
    assert torch.allclose(read.l1, dense.abs().sum(1))
    assert read.value.isnan().all()
    assert read.own.isnan().all()
    # what the file says of the model is written again
    again = path.with_name("again.pt")
    to_circuit_tracer(read, again)
    first, second = read_pickle(path), read_pickle(again)
    assert first.keys() == second.keys()
    for name, value in first.items():
        other = second[name]
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype
            assert torch.equal(value, other), name
        else:
            assert (vars(value) if name == "cfg" else value) == (vars(other) if name == "cfg" else other), name


def test_what_circuit_tracer_writes_is_read(path: Path):
    write_pickle(path, state())
    graph = from_circuit_tracer(path, hooks=("hook_resid_mid", "hook_mlp_out"))
    a, b, c = (("latent", f"blocks.{layer}.hook_resid_mid", at, index) for layer, at, index in ((0, 0, 5), (1, 1, 4), (1, 2, 6)))
    token = ("token", "embed", 0, 1)
    error = ("error", "blocks.0.hook_mlp_out", 0, -1)
    last = "blocks.1.hook_resid_post"
    x, custom = ("logit", last, 2, 3), ("target", last, 2, -1)
    assert edges_of(graph) == {
        (b, a): 1.5, (b, error): -2.0, (b, token): 0.25, (a, token): 3.0, (x, a): 1.0, (x, b): 2.0, (x, c): 3.0,
        (x, ("error", "blocks.1.hook_mlp_out", 2, -1)): 4.0, (custom, ("token", "embed", 2, 8)): -1.0,
    }  # fmt: skip
    assert graph.nodes.activation[graph.nodes.of_kind("latent")].tolist() == [1.0, 2.0, 3.0]
    assert graph.importance.tolist() == [0, 0, 0, 0.5, 0.25]
    assert graph.nodes.labels == ("<id 1>", "<id 2>", "<id 8>", " x", "x - y")
    assert [each.name for each in graph.nodes.sets if each.kind == "latent"] == ["first", "second"]
    assert graph.call["circuit_tracer"] == {
        "config": {"n_layers": 2, "d_vocab": 9, "dtype": "float32", "tokenizer_name": "t"}, "scan": ["first", "second"], "prompt": "a b c",
        "left_out": 1,
    }  # fmt: skip


@pytest.mark.parametrize("old", ["logit_targets", "logit_tokens"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_older_files_are_read(old: str, dtype: torch.dtype, path: Path):
    """Logits as a tensor of ids, TransformerLens' config, no size of the vocabulary, other dtypes, a tensor that is a view."""
    older = state()
    del older["logit_targets"], older["vocab_size"]
    older[old] = torch.tensor([3, 4])
    older["cfg"] = pickles.HookedTransformerConfig()
    older["cfg"].__dict__.update({"n_layers": 2, "d_vocab": 9, "device": "cpu", "act_fn": "gelu"})
    older["adjacency_matrix"] = older["adjacency_matrix"].to(dtype)
    older["active_features"] = older["active_features"].T.contiguous().T
    older["scan"] = None
    write_pickle(path, older)
    graph = from_circuit_tracer(path)
    assert graph.weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert sorted(graph.weight.tolist()) == [-2.0, -1.0, 0.25, 1.0, 1.5, 2.0, 3.0, 3.0, 4.0]
    assert graph.nodes.latent[-2:].tolist() == [3, 4]
    assert graph.nodes.sets[-1].kind == "logit"
    assert graph.nodes.labels[-2:] == ("", "")


def test_a_large_matrix_is_looked_at_in_parts(path: Path, monkeypatch: pytest.MonkeyPatch):
    from attrib.graph.files import circuit_tracer_reading

    to_circuit_tracer(kept_graph(), path, config=CONFIG)
    whole = from_circuit_tracer(path)
    monkeypatch.setattr(circuit_tracer_reading, "_AT_ONCE", 100)
    assert edges_of(from_circuit_tracer(path)) == edges_of(whole)


# --------------------------------------------------------------------------------------------- what has no place


def test_other_kinds_are_refused_or_left_out_aloud(path: Path):
    graph = random_graph()
    lost = r"4 position nodes and 24 bias nodes, which circuit-tracer has no place for, with 152 of 309 edges and 49\.8%"
    with pytest.raises(InputError, match=rf"others: the graph has {lost}.*others='drop'"):
        to_circuit_tracer(graph, path, config=CONFIG)
    assert not path.exists()
    with pytest.warns(AttribWarning, match=lost):
        to_circuit_tracer(graph, path, config=CONFIG, others="drop")
    assert len(edges_of(from_circuit_tracer(path))) == 309 - 152


def with_set(number: int, **changes: Any) -> Graph:
    graph = kept_graph()
    sets = list(graph.nodes.sets)
    sets[number] = sets[number]._replace(**changes)
    return replace(graph, nodes=replace(graph.nodes, sets=tuple(sets)))


def with_position(position: int) -> Graph:
    graph = kept_graph()
    moved = graph.nodes.position.clone()
    moved[graph.nodes.of_kind("logit")] = position
    return replace(graph, nodes=replace(graph.nodes, position=moved))


def of_kind(kind: str, graph: Graph) -> int:
    return [each.kind for each in graph.nodes.sets].index(kind)  # type: ignore[arg-type]


ERROR, LATENT = (of_kind(kind, kept_graph()) for kind in ("error", "latent"))
REFUSED: dict[str, tuple[Callable[[], Graph], dict[str, Any], str]] = {
    "a site of no layer": (lambda: with_set(ERROR, site="embed"), {}, "error nodes at 'embed', which is in no layer"),
    "two errors of a layer": (lambda: with_set(ERROR, site="blocks.1.hook_attn_out"), {}, "two error nodes of one layer and position"),
    "a logit before the last position": (lambda: with_position(1), {}, "a logit or target of a position before the last"),
    "too few layers": (kept_graph, {"config": {"n_layers": 2}}, "n_layers 2, and the graph has nodes in layer 2; expected 3 at least"),
    "another name": (kept_graph, {"config": {"layers": 2}}, "config: 'layers'; expected names among n_layers"),
    "a direction without d_vocab": (kept_graph, {"config": {"n_layers": 3}}, "'direction' is no token's logit"),
    "a number beyond float32": (lambda: replace(kept_graph(), weight=kept_graph().weight.double() * 1e300), {}, "weight has a number that"),
    "an activation that is none": (
        lambda: replace(kept_graph(), nodes=replace(kept_graph().nodes, activation=kept_graph().nodes.activation * torch.nan)), {},
        "activation has a number that is not finite",
    ),
    "an unknown token": (lambda: replace(kept_graph(), tokens=kept_graph().tokens - 8), {}, "a token whose id is not known"),
    "a matrix too large": (kept_graph, {"budget": 4 * 37**2}, "budget: 5,476 bytes, and a dense matrix of 38 nodes needs 5,776"),
    "no such option": (kept_graph, {"others": "fold"}, "others"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_circuit_tracer_cannot_hold_is_refused(case: str, path: Path):
    made, options, said = REFUSED[case]
    if case == "no such option" and os.environ.get("ATTRIB_TYPECHECK"):
        pytest.skip("the types refuse it first")
    with pytest.raises(BudgetError if "large" in case else InputError, match=re.escape(said)):
        to_circuit_tracer(made(), path, **({"config": CONFIG} | options))
    assert not list(path.parent.iterdir())


def test_two_dictionaries_of_a_layer_are_refused(path: Path):
    one = torch.zeros(2, dtype=torch.int64)
    sets = tuple(NodeSet("latent", f"blocks.0.{hook}", "", 1) for hook in ("hook_resid_mid", "hook_resid_post"))
    none, nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    graph = Graph(
        Nodes(sets, one, one, one.float()), none, one[:1], none, nothing, nothing, nothing, nothing, nothing, nothing, one[:1], ("a",)
    )
    with pytest.raises(InputError, match="two latent nodes of one layer and position"):
        to_circuit_tracer(graph, path)


# -------------------------------------------------------------------------------------------------- hostile files


class Ran:
    """Runs where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["ATTRIB_RAN"],)


def changed(**values: Any) -> Callable[[], dict[str, Any]]:
    return lambda: state() | values


def matrix(row: int, column: int, value: float) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        made = state()
        made["adjacency_matrix"][row, column] = value
        return made

    return make


def without(name: str) -> Callable[[], dict[str, Any]]:
    return lambda: {other: value for other, value in state().items() if other != name}


def config(**facts: Any) -> UnifiedConfig:
    made = UnifiedConfig()
    made.__dict__.update(facts)
    return made


def nested(depth: int) -> tuple[Any, ...]:
    found: tuple[Any, ...] = ()
    for _ in range(depth):
        found = (found,)
    return found


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "a list": (lambda: [1], "it holds list, and not a dictionary of names"),
    "no matrix": (without("adjacency_matrix"), "adjacency_matrix: None, and not a tensor of 2 dimensions"),
    "another shape": (changed(adjacency_matrix=torch.zeros(14, 13)), r"adjacency_matrix: \[14, 13\], where 3 latents, errors in 2 layers"),
    "a shape of nothing": (
        lambda: state() | {"adjacency_matrix": torch.zeros(1).expand(1 << 20, 1 << 20)}, r"adjacency_matrix: \[1048576, 1048576\] is more",
    ),
    "integers": (changed(adjacency_matrix=torch.zeros(14, 14, dtype=torch.int64)), "adjacency_matrix: torch.int64, and not floats"),
    "NaN": (matrix(12, 0, torch.nan), "adjacency_matrix: not all are finite"),
    "an edge into an error": (matrix(3, 0, 1.0), "adjacency_matrix: edges go to an error or a token"),
    "an edge from above": (matrix(0, 1, 1.0), "adjacency_matrix: an edge comes from its own layer, or from above"),
    "an edge into itself": (matrix(12, 12, 1.0), "adjacency_matrix: an edge comes from its own layer"),
    "an edge from a logit": (matrix(1, 12, 1.0), "adjacency_matrix: an edge comes from its own layer"),
    "a layer beyond": (changed(active_features=torch.tensor([[0, 0, 5], [2, 1, 7], [1, 1, 4], [1, 2, 6]])), "active_features: not all lie"),
    "a position below 0": (changed(active_features=torch.tensor([[0, -1, 5]] * 4)), "active_features: numbers below 0"),
    "two columns": (changed(active_features=torch.zeros(4, 2, dtype=torch.int64)), "active_features: .*three columns"),
    "selected twice": (changed(selected_features=torch.tensor([0, 2, 2])), "selected_features: not all are different rows"),
    "selected beyond": (changed(selected_features=torch.tensor([0, 2, 4])), "selected_features: not all are different rows"),
    "too few activations": (changed(activation_values=torch.ones(3)), "activation_values: 3 of them for 4 active"),
    "an activation that is none": (changed(activation_values=torch.tensor([1, torch.inf, 1, 1])), "activation_values: not all are"),
    "too few probabilities": (changed(logit_probabilities=torch.ones(1)), "logit_probabilities: 1 of them for 2 logits"),
    "no logits": (without("logit_targets"), "logit_tokens: None, and not a list of logits"),
    "logits of another kind": (changed(logit_targets=[("x", 3), ("y", 4)]), "logit_targets: a list, and not a list of logits"),
    "a logit below 0": (changed(logit_targets=[LogitTarget("x", -3)] * 2), "logit_targets: "),
    "a logit with no number": (changed(logit_targets=[LogitTarget("x", "3")] * 2), "logit_targets: "),
    "no tokens": (changed(input_tokens=torch.zeros(0, dtype=torch.int64)), "input_tokens: there is none"),
    "tokens in a batch": (changed(input_tokens=torch.tensor([[1, 2, 8]])), r"input_tokens: torch.int64 \[1, 3\], and not a tensor of 1"),
    "no config": (without("cfg"), "cfg: n_layers is None"),
    "a config without layers": (changed(cfg=config(n_layers="2")), "cfg: n_layers is '2'"),
    "layers without end": (changed(cfg=config(n_layers=1 << 60)), "cfg: n_layers is"),
    "a width within tuples": (changed(cfg=config(n_layers=2, d_model=nested(50))), "cfg: d_model is a tuple, and not a number"),
    "a vocabulary below 0": (changed(cfg=config(n_layers=2, d_vocab=-1)), "cfg: d_vocab is -1"),
    "a vocabulary of text": (changed(vocab_size="9"), "vocab_size: '9'"),
    "a prompt of bytes": (changed(input_string=None), "input_string: None, and not text"),
    "a scan of numbers": (changed(scan=[1]), "scan: a list"),
    "another global": (changed(scan=Ran()), r"its pickle names posix\.mkdir, which runs code"),
    "a function of torch": (changed(scan=torch.nn.Parameter(torch.ones(1))), r"its pickle names torch\._utils\._rebuild_parameter, which"),
    "a sparse matrix": (lambda: state() | {"adjacency_matrix": torch.eye(14).to_sparse()}, r"names torch\._utils\._rebuild_sparse_tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_and_nothing_runs(case: str, path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ATTRIB_RAN", str(path.parent / "ran"))
    made, said = HOSTILE[case]
    if case == "a list":
        torch.save(made(), path)
    else:
        write_pickle(path, made())
    with pytest.raises(FormatError, match=said) as raised:
        from_circuit_tracer(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_pickle_that_puts_names_together_is_refused(path: Path):
    write_pickle(path, state())
    stacked = b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93."
    assert "STACK_GLOBAL" in [operation.name for operation, *_ in pickletools.genops(stacked)]
    repacked(path, lambda name, raw: stacked if name.endswith("data.pkl") else raw)
    with pytest.raises(FormatError, match="its pickle names STACK_GLOBAL"):
        from_circuit_tracer(path)


def test_what_would_unpack_to_more_is_refused(path: Path):
    write_pickle(path, state())
    repacked(path, lambda _, raw: raw + bytes(1 << 20), zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="what is in its zip is compressed, or overlaps"):
        from_circuit_tracer(path)


def test_a_tensor_that_claims_more_than_lies_there_is_refused(path: Path):
    write_pickle(path, state())
    shape, larger = b"K\x0eK\x0e\x86", b"M\xff\x7fM\xff\x7f\x86"
    repacked(path, lambda name, raw: raw.replace(b"K\xc4", b"J\x00\x00\x00\x7f").replace(shape, larger) if name.endswith(".pkl") else raw)
    with pytest.raises(FormatError, match="not torch's, or damaged"):
        from_circuit_tracer(path)


def test_cut_and_changed_files_are_errors_or_right(path: Path):
    write_pickle(path, state())
    raw, numbers = path.read_bytes(), torch.Generator().manual_seed(0)
    for part in range(20):
        path.write_bytes(raw[: len(raw) * part // 20])
        with pytest.raises(FormatError):
            from_circuit_tracer(path)
    for place, byte in zip(torch.randint(len(raw), (150,), generator=numbers), torch.randint(256, (150,), generator=numbers), strict=True):
        path.write_bytes(raw[:place] + bytes([int(byte)]) + raw[place + 1 :])
        try:
            graph = from_circuit_tracer(path)
        except FormatError:
            continue
        assert graph.weight.isfinite().all()


@pytest.mark.parametrize("what", ["nothing", "pipe", "text", "hooks", "strings"])
def test_other_paths_and_arguments_are_refused(what: str, path: Path):
    write_pickle(path, state())
    given: dict[str, Any] = {"hooks": {"hooks": ("mlp.hook_in", "hook_here")}, "strings": {"strings": ["a"]}}
    if what in ("nothing", "pipe"):
        path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    if what == "text":
        path.write_text("no")
    said = {"nothing": "there is no file", "pipe": "is a pipe", "text": "not torch's", "hooks": "hook_here", "strings": "1 of them for 3"}
    with pytest.raises(FormatError if what == "text" else InputError, match=said[what]):
        from_circuit_tracer(path, **given.get(what, {}))
