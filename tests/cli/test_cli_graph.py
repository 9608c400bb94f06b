"""`attrib graph`: from a prompt to a file, and what is done with it, as a user types it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attrib
from tests.support.builders import sae, tiny
from tests.support.typed import Command

SITES = ("blocks.1.mlp.hook_in", "blocks.2.mlp.hook_in")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and two transcoders."""
    folder = tmp_path_factory.mktemp("files")
    tiny("llama").save_pretrained(folder / "model")
    for site in SITES:
        sae("transcoder", site=site).save_model(folder / site)
    return folder


def built(files: Path, out: Path) -> list[attrib.graph.Graph]:
    """The graphs of two prompts of ids, made by the function, and put where the command would put them."""
    model = attrib.load_model(files / "model")
    put_in = [attrib.load_dictionary(files / site) for site in SITES]
    graphs = attrib.graph.build(model, put_in, [torch.tensor([3, 1, 4, 1]), torch.tensor([5, 9, 2])], targets=attrib.TopLogits(2))
    attrib.save(out, graphs)
    return graphs


def test_a_prompt_becomes_a_file(smollm2_folder: Path, tmp_path: Path, command: Command) -> None:
    names = [f"smollm2-135m/blocks.{layer}.mlp.hook_in" for layer in (7, 8)]
    out = tmp_path / "g.h5"
    ran = command("graph", "The opposite of hot is", "-m", "smollm2-135m", "-t", names[0], "-t", names[1], "-o", out, "--max-n-logits", 3)
    assert ran.status == 0, ran.err
    assert "remainder at most" in ran.out
    with attrib.open_graphs(out) as graphs:
        graph = graphs[0]
    model, put_in = attrib.load_model("smollm2-135m"), [attrib.load_dictionary(name) for name in names]
    (want,) = attrib.graph.build(model, put_in, "The opposite of hot is", targets=attrib.TopLogits(3, 0.95))
    assert torch.equal(graph.weight, want.weight)
    assert torch.equal(graph.indices, want.indices)
    assert graph.worst < 1e-4
    again = command("graph", "build", "-p", "The opposite of hot is", "-m", "smollm2-135m", "-t", names[0], "-o", out)
    assert again.status == 1
    assert "--overwrite" in again.err


def test_a_latent_is_a_target(smollm2_folder: Path, tmp_path: Path, command: Command) -> None:
    site, out = "blocks.2.mlp.hook_in", tmp_path / "g.h5"
    ran = command(
        "graph", "hot", "-m", "smollm2-135m", "-t", "neurons:2", "-o", out, "--latent", f"{site}[35]@-1", "--latent", f"{site}[7] @0"
    )
    assert ran.status == 0, ran.err
    with attrib.open_graphs(out) as graphs:
        labels = [graphs[0].nodes.label(node) for node in graphs[0].nodes.of_kind("target").tolist()]
    assert labels[0] == f"target '{site}[7]' @0"
    assert labels[1].startswith(f"target '{site}[35]' @")


def test_what_a_file_of_graphs_says(files: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "g.h5"
    graphs = built(files, out)
    shown = command("graph", "show", out, "--graph", -1, "--top", 2)
    assert shown.status == 0, shown.err
    assert repr(graphs[1]) in shown.out
    assert "completeness" in shown.out
    pruned = command("graph", "prune", out, tmp_path / "p.h5", "--nodes", 0.5)
    assert pruned.status == 0, pruned.err
    with attrib.open_graphs(tmp_path / "p.h5") as found:
        assert len(found[0].nodes) == len(attrib.graph.prune(graphs[0], 0.5).graph.nodes) < len(graphs[0].nodes)
    paths = command("graph", "paths", out, "--top", 2, "--kind", "latent", "--kind", "token", "--kind", "logit")
    assert paths.status == 0, paths.err
    assert paths.out.count(" <- token") == 4
    node = int(graphs[0].nodes.of_kind("logit")[0])
    chosen = command("graph", "tree", out, "--top", 3, "--into", node)
    first = attrib.graph.strongest(graphs[0], node, 1)[0]
    assert chosen.out.startswith(f"{graphs[0].nodes.short(node)}: {graphs[0].value[graphs[0].row_of[node]]:.4g}, by its 3 strongest paths")
    assert f"\n├── {first.weights[0]:+.3g} {graphs[0].nodes.short(first.nodes[1])}" in chosen.out
    label = graphs[0].nodes.labels[-1]
    assert command("graph", "tree", out, "--logit", label).out.startswith(f"logit {label!r}@")
    probable = int(graphs[0].nodes.of_kind("logit")[graphs[0].importance[graphs[0].row_of[graphs[0].nodes.of_kind("logit")]].argmax()])
    assert command("graph", "tree", out, "--top", 1).out.startswith(graphs[0].nodes.short(probable))
    assert "--logit: 'none' is none of the outputs" in command("graph", "tree", out, "--logit", "none").err
    assert "beside --into" in command("graph", "tree", out, "--logit", "none", "--into", node).err
    compared = command("graph", "diff", out, tmp_path / "p.h5", "--top", 1)
    assert compared.status == 0, compared.err
    assert "in the first alone" in compared.out
    exported = command("graph", "export", tmp_path / "p.h5", tmp_path / "slug.json", "--to", "neuronpedia")
    assert exported.status == 0, exported.err
    back = attrib.graph.from_neuronpedia(tmp_path / "slug.json")
    with attrib.open_graphs(tmp_path / "p.h5") as found:
        assert torch.equal(back.weight, found[0].weight)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["graph", "hot"], "--model: missing"),
        (["graph", "hot", "-m", "x", "-t", "y"], "--out: missing"),
        (["graph", "hot", "-m", "x", "-t", "y", "-o", "o.h5", "--policy", "none"], "--policy: 'none'"),
        (["graph", "hot", "-m", "x", "-t", "y", "-o", "o.h5", "--keep", "most"], "--keep: 'most'"),
        (["graph", "hot", "-m", "x", "-t", "y", "-o", "o.h5", "--span", "1", "--logit-token", "a"], "--span"),
        (["graph", "hot", "-m", "x", "-t", "y", "-o", "o.h5", "--span", "1", "--latent", "a"], "--span: it has no effect beside --latent"),
        (["graph", "hot", "-m", "x", "-t", "y", "-o", "o.h5", "--latent", "a[1]"], r"--latent: 'a[1]'; expected SITE[NUMBER]@"),
        (["graph", "show", "no.h5"], "no.h5"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(typed: list[str], said: str, command: Command) -> None:
    ran = command(*typed)
    assert ran.status != 0
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_another_format_and_the_same_file_are_refused(files: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "g.h5"
    built(files, out)
    assert "expected circuit-tracer" in command("graph", "export", out, tmp_path / "x", "--to", "dot").err
    assert "expected another" in command("graph", "prune", out, out, "--overwrite").err


def found_at(files: Path) -> list[str]:
    """Where what graphs were made of lies."""
    return [f"--at={name}={files / name}" for name in ("model", *SITES)]


def test_a_run_file_of_graphs(files: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"tokens": [3, 1, 4, 1]}\n{"tokens": [5, 9, 2]}\n')
    names = [str(files / site) for site in SITES]
    toml = (
        f'model = "{files / "model"}"\nprompts = "prompts.jsonl"\n[[attribution]]\nkind = "graph"\ndictionaries = {names}\ntop_logits = 2\n'
    )
    (tmp_path / "run.toml").write_text(toml)
    ran = command("run", tmp_path / "run.toml", "--out", tmp_path / "run.h5")
    assert ran.status == 0, ran.err
    want = built(files, tmp_path / "want.h5")
    assert ran.out.startswith(f"{tmp_path / 'run.h5'}: 2 prompts, {sum(map(len, want)):,} edges")
    with attrib.open_graphs(tmp_path / "run.h5") as graphs:
        assert all(torch.equal(ours.weight, other.weight) for ours, other in zip(graphs, want, strict=True))
    again = command("rerun", tmp_path / "run.h5", "--prompt", 1, *found_at(files))
    assert (again.status, again.out.startswith("graph: the same")) == (0, True), again.err
    assert "kind: graphs are not planned" in command("plan", tmp_path / "run.toml").err
    typed = command("run", "--kind", "graph", "--model", "m", "--prompt", "hot", "--out", "o.h5", "--target", "x")
    assert "`attrib graph`" in typed.err


def test_values_that_changed_in_a_file_of_graphs_are_seen(files: Path, tmp_path: Path, command: Command) -> None:
    graphs = built(files, tmp_path / "g.h5")
    weight = graphs[0].weight.clone()
    weight[weight.abs().argmax()] *= 1.01
    attrib.save(tmp_path / "g.h5", [replace(graphs[0], weight=weight, l1=graphs[0].l1 * 1.1), graphs[1]], overwrite=True)
    changed, other = (command("rerun", tmp_path / "g.h5", "--prompt", number, *found_at(files)) for number in (0, 1))
    assert (changed.status, "NOT THE SAME" in changed.out) == (1, True), changed.out
    assert other.status == 0, other.err
