"""What a file says of how it was made is enough to make it again."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib.core.keep import RULES
from attrib.core.types import FormatError, InputError, UnsupportedError
from attrib.engine.blocks import multiplier as who
from attrib.graph.building import build as build_graphs
from attrib.jobs.folder import places_of
from attrib.jobs.run import run
from attrib.runs.rerun import Compared, _least, rerun
from tests.support.builders import prompt, sae
from tests.support.job_cases import SITES, corpus, here, make_job
from tests.support.typed import Command

TRANSCODER = "blocks.2.mlp.hook_in"


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = corpus(tmp_path_factory.mktemp("corpus"))
    sae("transcoder", site=TRANSCODER).save_model(folder / TRANSCODER)
    return folder


@pytest.fixture(scope="module")
def parts(beside: Path) -> tuple[attrib.Model, list[attrib.Dictionary]]:
    return attrib.load_model(beside / "model"), [attrib.load_dictionary(beside / site) for site in (*SITES, TRANSCODER)]


def places(beside: Path) -> dict[str, Path]:
    return {name: beside / name for name in ("model", *SITES, TRANSCODER)}


TOKENS = [prompt(length, seed=length) for length in (7, 4, 9)]
LOGITS = (attrib.TopLogits(3), attrib.TopLogits(9, mass=0.5), attrib.TokenLogits((3, 5)), attrib.Difference(3, (4, 5)))
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"keep": attrib.Mass(0.8), "policy": attrib.LINEAR, "error": False},
    {"keep": attrib.TopK(3), "positions": [-1, 2], "dtype": "float64"},
    {"keep": attrib.Threshold(0.01), "method": "torch.func", "positions": -1},
    {"dtype": "bfloat16", "precision_rows": 4},
    {"cuts": True, "effect": "total"},
)


def test_every_keep_rule_is_among_them() -> None:
    assert {type(options.get("keep", attrib.Dense())) for options in OPTIONS} == set(RULES.values())


@pytest.mark.few
@pytest.mark.parametrize("number", range(len(OPTIONS)), ids=map(str, OPTIONS))
def test_a_prompt_comes_out_again(tmp_path: Path, beside: Path, parts: Any, number: int) -> None:
    """Every prompt of a file with every kind of block, and one of a file for each other choice of logits: another one with other
    options, so that each choice meets each prompt."""
    model, (source, target, transcoder) = parts
    options = OPTIONS[number] | ({"cuts": [transcoder]} if "cuts" in OPTIONS[number] else {})
    plain = {key: value for key, value in options.items() if key not in ("cuts", "effect")}
    of_logits = [attrib.latent_to_logit(model, target, TOKENS, logits=logits, **plain) for logits in LOGITS]
    every_kind = [
        attrib.latent_to_latent(model, source, target, TOKENS, **options),
        of_logits[0],
        attrib.token_to_latent(model, source, TOKENS, **{key: value for key, value in plain.items() if key != "error"}),
    ]
    asked = [(every_kind, range(len(TOKENS)))]
    asked += [([block], [(number + at) % len(TOKENS)]) for at, block in enumerate(of_logits[1:])]
    for blocks, prompts in asked:
        path = attrib.save(tmp_path / "shard.h5", blocks, overwrite=True)
        for one in prompts:
            found = rerun(path, one, places=places(beside))
            assert [again.kind for again in found] == [block.kind for block in blocks]
            assert all(again.is_same for again in found), found


def test_shards_without_numbers_are_counted_on(tmp_path: Path, beside: Path, parts: Any) -> None:
    model, (source, target, _) = parts
    for name, tokens in (("a.h5", TOKENS[:1]), ("b.h5", TOKENS[1:])):
        attrib.save(tmp_path / name, attrib.latent_to_latent(model, source, target, tokens))
    for number in range(len(TOKENS)):
        [found] = rerun(tmp_path, number, places=places(beside))
        assert found.is_same
    with pytest.raises(InputError, match="prompt: 3 is not among the 3 prompts of"):
        rerun(tmp_path, 3, places=places(beside))


@pytest.mark.parametrize("lacks", [False, True])
def test_products_go_to_whom_the_file_names(
    tmp_path: Path, beside: Path, parts: Any, command: Command, lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is named is asked for, and not whom the environment names; and who multiplies instead is said where this torch lacks him."""
    model, (source, target, _) = parts
    monkeypatch.setenv(who.VARIABLE, "torch")
    graph = build_graphs(model, [source], TOKENS[0])[0]
    monkeypatch.setenv(who.VARIABLE, "onednn")
    monkeypatch.setattr(who, "operation", object)  # who is asked for is looked at, and all multiply as torch does
    asked = set[str]()

    def sizes(a: torch.Tensor, w: torch.Tensor) -> tuple[int, ...]:
        asked.add(who.multiplier())
        return ()

    monkeypatch.setattr("attrib.engine.blocks.product._sizes", sizes)
    monkeypatch.setattr("attrib.engine.blocks.product.LEAST_FLOPS", 0)
    edges = attrib.latent_to_latent(model, source, target, TOKENS[:1])
    assert (graph.call["products"], edges.call["products"]) == ("torch", "onednn")
    monkeypatch.setenv(who.VARIABLE, "torch")
    if lacks:
        monkeypatch.setattr(who, "operation", lambda: None)
    for number, (made, one) in enumerate((("torch", graph), ("onednn", edges))):
        path = attrib.save(tmp_path / f"{number}.h5", one)
        asked.clear()
        [found] = rerun(path, 0, places=places(beside))
        instead = "torch" if lacks and made == "onednn" else ""
        assert (found.is_same, found.instead) == (True, instead)
        assert asked == {instead or made}
        ran = command("rerun", path, "--prompt", 0, *(f"--at={name}={at}" for name, at in places(beside).items()))
        assert ran.status == 0, ran.err
        assert ("; multiplied by torch, since this torch is without the one that the file names" in ran.out) == bool(instead)
    assert who.multiplier() == "torch", "it is pinned for more than the rerun"


def test_a_changed_value_is_seen(tmp_path: Path, beside: Path, parts: Any) -> None:
    model, (source, target, _) = parts
    edges = attrib.latent_to_latent(model, source, target, TOKENS, keep=attrib.TopK(4))
    largest = edges.prompt(1).attribution.abs().max()
    start = int(edges.indptr[edges.targets.rows(1).start])
    for amount, same in ((3e-5, True), (3e-4, False)):
        wrong = edges.attribution.clone()
        wrong[start] += amount * largest
        path = attrib.save(tmp_path / "shard.h5", replace(edges, attribution=wrong), overwrite=True)
        assert [rerun(path, number, places=places(beside))[0].is_same for number in range(3)] == [True, same, True]
    moved = replace(edges, indices=edges.indices.clone())
    row = slice(start, start + 4)
    others = sorted(set(range(*edges.sources.rows(1).indices(len(edges.sources)))) - set(edges.indices[row].tolist()))
    moved.indices[row] = torch.tensor(others[:4])
    path = attrib.save(tmp_path / "shard.h5", moved, overwrite=True)
    [found] = rerun(path, 1, places=places(beside))
    assert (found.only_one_keeps, found.is_same) == (8, False)


def test_edges_at_the_limit_may_change_places() -> None:
    least = _least({0: 5.0, 1: -1.0, 12: 0.9}, 10, attrib.TopK(2))
    assert [least(9), least(15), least(25)] == [1.0, 0.9, 0.0]
    for held in ({}, {1: 5.0}):  # what stands above a threshold says nothing of where it is
        assert _least(held, 10, attrib.Threshold(0.5))(3) == 0.5


def test_a_job_is_made_again_by_number(tmp_path: Path, beside: Path, command: Command) -> None:
    job = make_job(tmp_path / "job", beside, shards={"prompts": 1})  # alone, as it is made again: not a digit is another
    run(job.folder, here)
    assert set(places_of(job.folder)) == {job.fixed.model, *job.fixed.dictionaries.values()}
    shard = job.shards[2]
    number = int(job.prompts(shard)[1][0])
    for path in (job.folder, job.file(shard)):
        ran = command("rerun", path, "--prompt", number)
        assert ran.status == 0, ran.err
        assert ran.out.count(": the same: ") == 2
    for path in (job.folder, job.folder / "shards", job.file(shard)):
        ran = command("rerun", path, "--prompt", 3)
        assert ran.status == 1
        assert re.search(rf"prompt: 3 is not among the \d+ prompts of {path} ", ran.err), ran.err
        assert f"`attrib job status {job.folder} --refused` lists the prompts that the job left out, and why." in ran.err
    assert "prompt 3 (" in command("job", "status", job.folder, "--refused").out


@pytest.mark.few
@pytest.mark.parametrize("number", [5, -1, 10**23])
def test_a_prompt_that_is_not_there_names_the_file(tmp_path: Path, beside: Path, parts: Any, command: Command, number: int) -> None:
    model, (source, target, _) = parts
    path = attrib.save(tmp_path / "run.h5", attrib.latent_to_latent(model, source, target, TOKENS))
    message = f"prompt: {number} is not among the 3 prompts of {path} (numbers 0 to 2); expected numbers of the data set that are there"
    ran = command("rerun", path, f"--prompt={number}")
    assert (ran.status, ran.err.startswith(f"error: {message}")) == (1, True), ran.err
    assert "slice" not in ran.err
    assert "job status" not in ran.err
    with pytest.raises(InputError, match=re.escape(message)):
        rerun(path, number)


def test_a_job_is_shown_by_number(tmp_path: Path, beside: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path / "job", beside)
    run(job.folder, here)
    kept = sorted({0, 1, 2, *range(4, 9)})

    def listed(out: str) -> list[int]:
        return [int(line.split("│")[1]) for line in out.splitlines() if line.startswith("│") and line.split("│")[1].strip().isdecimal()]

    ran = command("show", job.folder, "--kind", "token_to_latent", "--prompt", 7)
    assert (ran.status, listed(ran.out)) == (0, kept), ran.err
    assert "prompt 7: " in ran.out
    monkeypatch.setattr(sys.modules["attrib.cli.files"], "LISTED", 2)
    ran = command("show", job.folder, "--kind", "token_to_latent", "--prompt", 7)
    assert listed(ran.out) == [0, 1, 7]
    assert "5 more prompts; --all shows them too" in ran.out
    assert f"prompt: 3 is not in {job.folder}, which has 8 prompts (numbers 0, 1, 2, 4" in command("show", job.folder, "--prompt", 3).err


def test_what_is_not_here_any_more_is_named(tmp_path: Path, beside: Path, parts: Any, command: Command) -> None:
    model, (source, target, _) = parts
    path = attrib.save(tmp_path / "shard.h5", attrib.latent_to_latent(model, source, target, TOKENS))
    sae("topk", site=SITES[0], seed=9).save_model(tmp_path / "other")
    given = [f"--at=model={beside / 'model'}", f"--at={source.name}={tmp_path / 'other'}", f"--at={target.name}={beside / SITES[1]}"]
    ran = command("rerun", path, "--prompt", 0, *given)
    assert (ran.status, f"{source.name}: what is here under this name is not what the file was made with" in ran.err) == (1, True), ran.err
    assert command("rerun", path, "--prompt", 0, "--at", "model").err == "error: at: 'model'; expected NAME=FOLDER.\n"
    given[1] = f"--at={source.name}={beside / SITES[0]}"
    assert command("rerun", path, "--prompt", 0, *given).status == 0


def test_what_a_file_does_not_hold_is_named(tmp_path: Path, beside: Path, parts: Any) -> None:
    model, (source, _, _) = parts
    direction = attrib.latent_to_logit(model, source, TOKENS, logits=attrib.Direction(torch.ones(model.config.d_model)))
    metric = attrib.latent_to_metric(model, source, TOKENS, lambda logits: logits[-1, 0])
    for edges in (direction, metric):
        with pytest.raises(UnsupportedError, match="does not say enough: vectors of directions, and metrics, are not stored"):
            rerun(attrib.save(tmp_path / "shard.h5", edges, overwrite=True), 0, places=places(beside))


@pytest.mark.few
@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"keep": "__import__('os').system('touch hacked')"}, UnsupportedError, "does not say enough"),
        ({"keep": "Mass(fraction=__import__('os'))"}, UnsupportedError, "does not say enough"),
        ({"keep": "(" * 10_000}, UnsupportedError, "does not say enough"),
        ({"keep": "Mass(0.9)"}, UnsupportedError, "does not say enough"),
        ({"keep": "Mass(fraction=7)"}, InputError, "fraction"),
        ({"policy": {"attention": "exact"}, "budget": None}, FormatError, "it does not say how these edges were made"),
        ({"source": "tokens"}, FormatError, "it does not say how these edges were made"),
        ({"cuts": 5}, FormatError, "it does not say how these edges were made"),
        ({"products": "mkl"}, FormatError, "products 'mkl'; expected 'torch' or 'onednn'"),
        ({"products": ["onednn"]}, FormatError, "products .*; expected 'torch' or 'onednn'"),
    ],
)
def test_a_call_from_elsewhere_runs_nothing(
    tmp_path: Path, beside: Path, parts: Any, changed: dict[str, Any], error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, (source, target, _) = parts
    edges = attrib.latent_to_latent(model, source, target, TOKENS[:1])
    path = attrib.save(tmp_path / "shard.h5", replace(edges, call=json.loads(json.dumps(edges.call | changed))))
    with pytest.raises(error, match=words):
        rerun(path, 0, places=places(beside))
    assert not (tmp_path / "hacked").exists()


def test_compared_says_what_differs(beside: Path, parts: Any, tmp_path: Path) -> None:
    model, (source, target, _) = parts
    edges = attrib.latent_to_latent(model, source, target, TOKENS[:1])
    nodes = replace(edges.targets, latent=edges.targets.latent + 1)
    [found] = rerun(attrib.save(tmp_path / "shard.h5", replace(edges, targets=nodes)), 0, places=places(beside))
    assert found == Compared("latent_to_latent", *SITES, len(edges), float("inf"), 2 * len(edges), False)
