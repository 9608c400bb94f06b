"""examples/train_dictionaries.py on a little text: SAEs and transcoders, several layers in one pass, and going on after an interruption."""

import importlib
import json
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file
from scipy.optimize import minimize

import attrib
from attrib.adapters import from_tensors
from tests.support.root import ROOT

EXAMPLES = ROOT / "examples"
FOLDERS = {"sae": "blocks.{}.hook_resid_pre", "transcoder": "blocks.{}.mlp.hook_in"}


class StoppedError(Exception):
    """The machine goes down."""


@pytest.fixture(scope="module", autouse=True)
def examples() -> Iterator[None]:
    """Scripts import what lies beside them."""
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def script(examples: None) -> ModuleType:
    return importlib.import_module("train_dictionaries")


@pytest.fixture(scope="module")
def short(smollm2_folder: Path) -> attrib.Model:
    whole = attrib.load_model(attrib.SMOLLM2)
    params = whole.params._replace(blocks=whole.params.blocks[:3])
    return replace(whole, params=params, config=replace(whole.config, n_layers=3))


@pytest.fixture
def first_layers(script: ModuleType, short: attrib.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script finds the first three layers of SmolLM2 alone: what it does with them is what it does with thirty."""
    monkeypatch.setattr(attrib, "load_model", lambda name: short)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two text files."""
    folder, rng = tmp_path_factory.mktemp("text"), random.Random(0)
    words = ["the", "a", "cat", "dog", "house", "river", "runs", "sleeps", "under", "with", "old", "new", "green", "and", "but", "in", "of"]
    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text(" ".join(rng.choices(words, k=6000)))
    return folder


def options(text: Path, folder: Path, **changed: Any) -> dict[str, Any]:
    from bias_initialisation import Bias
    from train_dictionaries import Kind

    usual = {
        "text": [text], "out": folder / "out", "work": folder / "work", "kind": "sae", "layer": [1, 2], "place": "resid_pre",
        "tokens": 8000, "context": 16, "width": [64], "k": [4], "bias": "zeros", "samples": 4096, "batch": 256, "lr": 1e-3,
        "autocast": False, "max_norm": 10.0, "measured": 128, "seed": 0,
    } | changed  # fmt: skip
    return usual | {"kind": Kind(usual["kind"]), "bias": Bias(usual["bias"])}


@pytest.mark.usefixtures("first_layers")
@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_training_goes_on_after_interruptions(
    kind: str, script: ModuleType, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.training.sae_trainer import SAETrainer

    chosen = {"kind": kind, "bias": "mean"}
    folders = [FOLDERS[kind].format(layer) for layer in (1, 2)]
    arrays = ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"] if kind == "sae" else ["blocks.1.mlp.hook_in", "blocks.2.hook_mlp_out"]

    # stopped in the middle of the activations
    mark, marks = script.Store.mark, []

    def mark_twice(self: Any, contexts: int) -> None:
        if len(marks) == 3:
            raise StoppedError
        marks.append(contexts)
        mark(self, contexts)

    monkeypatch.setattr(script.Store, "mark", mark_twice)
    with pytest.raises(StoppedError):
        script.main(**options(text, tmp_path, **chosen))
    assert marks == [0, 64, 128]
    monkeypatch.setattr(script.Store, "mark", mark)

    # stopped in the middle of the first training
    step, steps = SAETrainer.step, []

    def step_nine_times(self: Any, batch: torch.Tensor) -> Any:
        if len(steps) == 9:
            raise StoppedError
        steps.append(batch)
        return step(self, batch)

    monkeypatch.setattr(SAETrainer, "step", step_nine_times)
    with pytest.raises(StoppedError):
        script.main(**options(text, tmp_path, **chosen))
    first = {name: np.load(tmp_path / f"work/{name}.npy") for name in arrays}
    assert all((np.abs(values).sum(1) > 0).all() for values in first.values()), "every row was filled, by one run or the other"
    assert not (tmp_path / "out" / folders[0]).exists()

    # and now to the end
    resumed = []

    def count(self: Any, batch: torch.Tensor) -> Any:
        resumed.append(self.n_training_samples)
        return step(self, batch)

    monkeypatch.setattr(SAETrainer, "step", count)
    script.main(**options(text, tmp_path, **chosen))
    assert 0 < resumed[0] <= 9 * 256, "from the newest checkpoint, not from the start"
    assert len(resumed) == (4096 - resumed[0]) // 256 + 16

    card = json.loads((tmp_path / "out" / ("card.json" if kind == "sae" else "card-transcoders.json")).read_text())
    for name in folders:
        dictionary = attrib.load_dictionary(tmp_path / "out" / name)
        assert dictionary.d_sae == 64
        found = card["results"][name]
        assert found["l0"] > 0
        assert found["explained_variance"] < 1, "so little training explains next to nothing"
        assert found["cross_entropy_original"] != found["cross_entropy_spliced"] != found["cross_entropy_zero"]
        assert name in (tmp_path / "out/README.md").read_text()
        density = found["density"]
        assert density["dead"] + sum(density["latents"]) == 64, "each latent is dead or in one bin"
        assert 0 < density["tokens"] <= card["runs"][0]["training_tokens"]
    assert card["runs"][0]["options"]["bias"] == "mean"
    assert (tmp_path / "work/density.html").exists()

    # a fresh, uninterrupted run captures the same activations and ends with the same weights
    script.main(**options(text, tmp_path / "again", **chosen))
    for name, values in first.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"again/work/{name}.npy"), values)
    for name in folders:
        one, other = (load_file(folder / name / "sae_weights.safetensors") for folder in (tmp_path / "out", tmp_path / "again/out"))
        assert one.keys() == other.keys()
        for tensor in one:
            assert torch.equal(one[tensor], other[tensor]), f"{tensor} of {name}: going on is not the same as never stopping"


@pytest.mark.usefixtures("first_layers")
def test_one_site_trained_again_leaves_the_others_as_they_are(script: ModuleType, text: Path, tmp_path: Path) -> None:
    out, (one, two) = tmp_path / "out", ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre")
    first = options(text, tmp_path, width=[64, 32], k=[4, 3], samples=1024)
    script.main(**first)
    before, weights = json.loads((out / "card.json").read_text()), (out / one / "sae_weights.safetensors").read_bytes()
    lines = (out / "README.md").read_text().splitlines()
    assert [before["results"][site]["d_sae"] for site in (one, two)] == [64, 32]
    assert [attrib.load_dictionary(out / site).d_sae for site in (one, two)] == [64, 32]

    again = options(
        text, tmp_path, layer=[2], width=[16], k=[5], tokens=7000, samples=1024, lr=3e-3, work=tmp_path / "other", autocast=True
    )
    with pytest.raises(typer.BadParameter, match="has 32 latents and k 3, and 16 and 5 are asked for; delete the folder"):
        script.main(**again)
    shutil.rmtree(out / two)
    with pytest.raises(typer.BadParameter, match=r"made with sites \['blocks.1.*, now \['blocks.2.*delete it, or give another folder"):
        script.main(**again | {"work": tmp_path / "work"})
    script.main(**again)

    assert (out / one / "sae_weights.safetensors").read_bytes() == weights
    assert attrib.load_dictionary(out / two).d_sae == 16
    card = json.loads((out / "card.json").read_text())
    assert card["results"][one] == before["results"][one]
    assert (card["results"][two]["d_sae"], card["results"][two]["l0"]) == (16, 5)
    assert [run["sites"] for run in card["runs"]] == [[one], [two]]
    assert card["runs"][0] == before["runs"][0] | {"sites": [one]}
    assert card["runs"][1]["training_tokens"] < before["runs"][0]["training_tokens"]
    readme = (out / "README.md").read_text()
    assert next(line for line in lines if line.startswith(f"| `{one}` | 64")) in readme.splitlines()
    assert readme.count(f"| `{two}` | 16 | {card['results'][two]['explained_variance']:.3f} | 5.0 |") == 1
    assert f"`{one}`. Text: one (4,000 tokens)" in readme
    assert f"`{two}`. Text: one (3,488 tokens)" in readme, "whole contexts of the run's own share"
    assert [asked(script, command) for command in commands(readme)] == [
        first | {"layer": [1], "width": [64], "k": [4]} | UNASKED, again | UNASKED
    ], "the commands ask for what was asked for"  # fmt: skip


UNASKED = {"text": [Path("text")], "out": Path("dictionaries"), "work": None}
"""Folders, which a card does not tell."""


def commands(readme: str) -> list[list[str]]:
    """The arguments of each command that trains."""
    whole = readme.replace("\\\n", " ")
    return [line.split()[2:] for line in whole.splitlines() if "train_dictionaries.py" in line]


def asked(script: ModuleType, arguments: list[str]) -> dict[str, Any]:
    """What `main` is called with for a command line."""
    app = typer.Typer()
    app.command()(script.main)
    return typer.main.get_command(app).make_context("train", arguments).params | {"work": None}


def test_a_card_after_one_more_run(script: ModuleType, tmp_path: Path) -> None:
    from dictionary_card import read_card, with_run

    a, b, c = (f"blocks.{layer}.hook_resid_pre" for layer in (18, 6, 9))
    card = with_run(read_card(tmp_path, "sae"), {"options": 1}, {a: 1, b: 1})
    assert card == {"runs": [{"sites": [a, b], "options": 1}], "results": {b: 1, a: 1}}
    assert list(card["results"]) == [b, a], "in the order of layers, by number"
    more = with_run(card, {"options": 2}, {c: 2, a: 2})
    assert more["runs"] == [{"sites": [b], "options": 1}, {"sites": [c, a], "options": 2}]
    assert more["results"] == {b: 1, c: 2, a: 2}
    last = with_run(more, {"options": 3}, {b: 3})
    assert [run["options"] for run in last["runs"]] == [2, 3], "a run of which nothing is left is not told"
    (tmp_path / "card.json").write_text(json.dumps({"options": {}, "results": {}}))
    with pytest.raises(typer.BadParameter, match=r"card\.json does not tell runs apart"):
        read_card(tmp_path, "sae")


def test_a_folder_made_with_something_else_is_refused(script: ModuleType, text: Path, tmp_path: Path) -> None:
    from activation_store import Store

    site, tokens = attrib.Site(0, "resid_pre"), np.arange(64, dtype=np.int32).reshape(4, 16)
    Store(tmp_path, [site], tokens, 5).mark(2)
    assert Store(tmp_path, [site], tokens, 5).done == 2, "the same goes on"
    for changed in (tokens.reshape(8, 8), tokens + 1):
        with pytest.raises(typer.BadParameter, match="was made with"):
            Store(tmp_path, [site], changed, 5)
    with pytest.raises(typer.BadParameter, match="was made with sites"):
        Store(tmp_path, [attrib.Site(1, "resid_pre")], tokens, 5)
    read = torch.rand(512, 16, generator=torch.Generator().manual_seed(0))
    trained(script, read, read, tmp_path / "again", samples=512)
    shutil.rmtree(tmp_path / "again/blocks.0.mlp.hook_in")
    with pytest.raises(typer.BadParameter, match=r"checkpoints-.* was made with lr 0\.01, now 0\.001"):
        trained(script, read, read, tmp_path / "again", samples=512, lr=1e-3)


@pytest.mark.usefixtures("first_layers")
@pytest.mark.parametrize(("reads", "writes"), [("resid_pre", "resid_pre"), ("mlp_in", "mlp_out")])
def test_what_is_measured(reads: Any, writes: Any, script: ModuleType) -> None:
    """A dictionary that loses nothing, and one that writes nothing: the two ends of every scale."""
    from dictionary_card import measure

    model, site, written = attrib.load_model(attrib.SMOLLM2), attrib.Site(1, reads), attrib.Site(1, writes)
    d, eye = model.config.d_model, torch.eye(model.config.d_model)
    tokens = np.random.default_rng(0).integers(1000, 40_000, (8, 12))
    both = {"site": site, "writes": [written], "rule": "relu", "b_dec": torch.zeros(d)}
    nothing = from_tensors(W_enc=torch.cat([eye, eye], 1), W_dec=torch.zeros(2 * d, d), b_enc=torch.zeros(2 * d), **both)
    found = measure(model, nothing, tokens, 1e9)
    ids = torch.from_numpy(tokens)
    plain = torch.nn.functional.cross_entropy(attrib.forward(model, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert found["cross_entropy_spliced"] == pytest.approx(found["cross_entropy_zero"], abs=1e-5)
    assert found["loss_recovered"] == pytest.approx(0, abs=1e-4)
    assert found["explained_variance"] <= 0
    assert found["cross_entropy_original"] == pytest.approx(float(plain), abs=1e-4)
    if reads == writes:
        halves = torch.cat([eye, -eye], 1)
        everything = from_tensors(W_enc=halves, W_dec=halves.T.contiguous(), b_enc=torch.zeros(2 * d), **both)
        found = measure(model, everything, tokens, 1e9)
        assert found["cross_entropy_spliced"] == pytest.approx(found["cross_entropy_original"], abs=1e-5)
        assert found["explained_variance"] == pytest.approx(1)
        assert found["l0"] == pytest.approx(d, rel=1e-3), "one of each pair of opposite latents"
    else:
        x = attrib.capture(model, ids, [site])[site]
        assert found["l0"] == pytest.approx(2 * float((x > 0).float().sum(-1).mean()), rel=1e-3), "counted on what is read"


@pytest.fixture(scope="module")
def linear_map() -> tuple[torch.Tensor, torch.Tensor]:
    """What is read, sparse combinations of 12 directions; and what is to be written, other directions times the same, and an offset."""
    g = torch.Generator().manual_seed(0)
    codes = torch.rand(4096, 12, generator=g) * (torch.rand(4096, 12, generator=g) < 0.2)
    into, out = torch.randn(12, 16, generator=g), torch.randn(12, 16, generator=g)
    return codes @ into, codes @ out + 3


def trained(script: ModuleType, read: torch.Tensor, written: torch.Tensor, folder: Path, **changed: Any) -> Path:
    """The folder of a transcoder trained on given values."""
    from attrib.core.types import Site

    reads, writes = Site(0, "mlp_in"), Site(0, "mlp_out")
    store = script.Store(folder / "work", [reads, writes], np.zeros((len(read) // 16, 16), dtype=np.int32), read.shape[1])
    store.arrays[reads][:], store.arrays[writes][:] = read.numpy(), written.numpy()
    usual = {"samples": 64 * 256, "batch": 256, "lr": 1e-2, "autocast": False, "max_norm": 10.0, "seed": 0}
    numbers = script.Options(**usual | {"bias": script.Bias("zeros")} | changed)
    script.train(store, script.Task(reads, writes, 24, 3), folder, numbers)
    return folder / "blocks.0.mlp.hook_in"


def test_a_transcoder_learns_what_is_written(script: ModuleType, linear_map: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    from sae_lens import SAE

    read, written = linear_map
    folder = trained(script, read, written, tmp_path, samples=300 * 256)
    config = json.loads((folder / "cfg.json").read_text())
    assert (config["architecture"], config["metadata"]["training_architecture"]) == ("jumprelu_transcoder", "batchtopk_transcoder")
    assert config["metadata"]["hook_name"] == "blocks.0.mlp.hook_in", "the hook that means the MLP's own input"
    assert config["metadata"]["hook_name_out"] == "blocks.0.hook_mlp_out"
    dictionary = attrib.load_dictionary(folder)
    assert list(map(str, dictionary.writes)) == ["blocks.0.hook_mlp_out"]
    theirs = SAE.load_from_disk(folder, dtype="float32")
    with torch.no_grad():
        recon = theirs(read)
    explained = 1 - (written - recon).pow(2).sum() / (written - written.mean(0)).pow(2).sum()
    assert explained > 0.8, "scales and norms are folded: raw values in, raw values out"
    active = (attrib.encode(dictionary, read) > 0).float().sum(1).mean()
    assert 1 < active < 4, "the threshold, in folded units, lets through about k"
    assert torch.allclose(dictionary.params.W_dec.norm(dim=1), torch.ones(24), atol=1e-3), "decoder rows of length 1"


@pytest.mark.parametrize("bias", ["zeros", "mean", "geometric-median"])
def test_where_the_bias_begins(
    bias: str, script: ModuleType, linear_map: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.training.sae_trainer import SAETrainer

    monkeypatch.setattr(SAETrainer, "fit", lambda self: self.sae)  # what is saved is then what training begins with
    read, written = linear_map
    found = load_file(trained(script, read, written, tmp_path, bias=script.Bias(bias)) / "sae_weights.safetensors")["b_dec"].float()
    if bias == "zeros":
        assert not found.any()
    else:
        want = written.mean(0) if bias == "mean" else geometric_median_by_search(written)
        assert torch.allclose(found, want, atol=5e-3), f"of what is to be written, in its own units: {found - want}"
        assert not torch.allclose(found, geometric_median_by_search(written) if bias == "mean" else written.mean(0), atol=5e-3)


def geometric_median_by_search(points: torch.Tensor) -> torch.Tensor:
    """The least sum of distances, by a minimiser that knows nothing of the problem but values and slopes."""
    x = points.double().numpy()

    def total(m: np.ndarray) -> tuple[float, np.ndarray]:
        difference = m - x
        distance = np.linalg.norm(difference, axis=1)
        return distance.mean(), (difference / np.maximum(distance, 1e-300)[:, None]).mean(0)

    return torch.from_numpy(minimize(total, x[0] + 0.5, jac=True, method="BFGS", options={"gtol": 1e-9}).x).to(points.dtype)


@pytest.mark.parametrize(("count", "d", "outliers"), [(50, 2, 0), (200, 5, 20), (999, 16, 300)])
def test_the_geometric_median_has_the_least_sum_of_distances(count: int, d: int, outliers: int) -> None:
    from bias_initialisation import geometric_median

    g = torch.Generator().manual_seed(count)
    points = torch.randn(count, d, generator=g, dtype=torch.float64)
    points[:outliers] += 100
    found = geometric_median(points)
    assert torch.allclose(found, geometric_median_by_search(points), atol=1e-5)
    if outliers:
        assert (found - points[outliers:].mean(0)).norm() < 0.1 * (points.mean(0) - points[outliers:].mean(0)).norm(), (
            "outliers hardly count"
        )


def test_the_geometric_median_on_a_point_or_of_equal_points() -> None:
    from bias_initialisation import geometric_median

    cross = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    assert torch.allclose(geometric_median(cross), torch.zeros(2), atol=1e-6)
    assert torch.equal(geometric_median(torch.full((4, 3), 2.0)), torch.full((3,), 2.0))


def test_densities_are_counted(script: ModuleType, tmp_path: Path) -> None:
    from dictionary_card import density, density_report, sparkline

    # latent i of four is active on every (10 ** i)-th of 10 000 tokens; the last one never
    tokens = torch.arange(10_000)
    x = torch.stack([(tokens % 10**i == 0).float() for i in range(4)] + [torch.zeros(10_000)], dim=1)
    site = attrib.Site(0, "resid_pre")
    store = script.Store(tmp_path, [site], np.zeros((625, 16), dtype=np.int32), 5)
    store.arrays[site][:] = x.numpy()
    eye = torch.eye(5)
    dictionary = from_tensors(W_enc=eye, W_dec=eye, b_enc=torch.zeros(5), b_dec=torch.zeros(5), site=site, rule="relu")
    report = density(store, dictionary, np.arange(10_000))
    assert report == density_report(np.array([10_000, 1000, 100, 10, 0]), 10_000)
    assert (report["dead"], report["dead_fraction"], report["tokens"]) == (1, 0.2, 10_000)
    edges, latents = np.array(report["log10_edges"]), np.array(report["latents"])
    assert len(edges) == len(latents) + 1
    for power in (0, -1, -2, -3):
        (bin_,) = np.flatnonzero((edges[:-1] - 1e-9 <= power) & ((power < edges[1:] - 1e-9) | ((power == 0) & (edges[1:] == 0))))
        assert latents[bin_] == 1, f"one latent of density 1e{power}"
    assert report["log10_quantiles"]["50%"] == pytest.approx(-1.5)
    assert sparkline(report).count("█") == 4
    assert sparkline(report).count("·") == len(latents) - 4
    only_dead = density_report(np.zeros(3, dtype=np.int64), 10)
    assert (only_dead["dead"], only_dead["log10_quantiles"], sum(only_dead["latents"])) == (3, {}, 0)


def test_wrong_requests_are_said(script: ModuleType, text: Path, tmp_path: Path, first_layers: None) -> None:
    with pytest.raises(typer.BadParameter, match=r"no \.txt file"):
        script.main(**options(tmp_path, tmp_path))
    with pytest.raises(typer.BadParameter, match="2 numbers for 1 layers"):
        script.main(**options(text, tmp_path, layer=[1], k=[4, 5]))
    with pytest.raises(typer.BadParameter, match=r"8192, but blocks\.1\.hook_resid_pre has 7488 tokens"):
        script.main(**options(text, tmp_path, batch=8192))
    with pytest.raises(typer.BadParameter, match="4000: too few for any to be held out"):
        script.main(**options(text, tmp_path, tokens=4000))
    with pytest.raises(typer.BadParameter, match="3 numbers for 2 layers"):
        script.main(**options(text, tmp_path, width=[4, 5, 6]))
    with pytest.raises(typer.BadParameter, match="mlp_out for a transcoder"):
        script.main(**options(text, tmp_path, kind="transcoder", place="mlp_out"))
