"""Jobs of graphs: what they write, that any disturbance comes to the same bytes, and what is done with a folder of graphs."""

import json
import random
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
import torch
import typer.testing

import attrib
from attrib.cli import main as cli
from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.jobs import run as running
from attrib.jobs.config import job_file
from attrib.jobs.folder import RECORDS, SHARDS, Job, Shard, open_job
from attrib.jobs.records import refused
from attrib.jobs.run import run
from attrib.jobs.status import status
from attrib.jobs.tidy import tidy
from attrib.jobs.verify import verify
from attrib.runs.prompts import read
from attrib.runs.rerun import rerun
from attrib.runs.spec import Loaded
from attrib.store.graphs import open_graph_file, save_graphs
from tests.support.builders import sae
from tests.support.job_cases import LENGTHS, bytes_of, corpus, forked, here, killed, make_job, tiny_smollm2
from tests.support.typed import Command

TRANSCODERS = ("blocks.1.mlp.hook_in", "blocks.3.mlp.hook_in")
NODES = [TRANSCODERS[0], "neurons:2", TRANSCODERS[1]]
KEPT = [number for number in range(len(LENGTHS) + 1) if number != 3]
"""The numbers of the prompts that are some."""


def asked(**options: Any) -> dict[str, Any]:
    return {"attribution": [{"kind": "graph", "dictionaries": NODES, "top_logits": 2} | options]}


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_smollm2(tmp_path_factory.mktemp("cache")):
        folder = corpus(tmp_path_factory.mktemp("corpus"), has_model=False)
        for site in TRANSCODERS:
            sae("transcoder", site=site).save_model(folder / site)
        yield folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, beside: Path) -> Path:
    """A job that nothing disturbed. Nothing is changed in it."""
    job = make_job(tmp_path_factory.mktemp("finished") / "job", beside, **asked())
    run(job.folder, here)
    return job.folder


@pytest.fixture
def folder(tmp_path: Path, beside: Path) -> Path:
    """A job of which nothing is done."""
    return make_job(tmp_path / "job", beside, **asked()).folder


@pytest.fixture
def copy(tmp_path: Path, finished: Path) -> Job:
    """A job of which all is done, to be changed."""
    return open_job(Path(shutil.copytree(finished, tmp_path / "copy")))


def same(ours: Graph, other: Graph) -> bool:
    columns = ("targets", "indptr", "indices", "weight", "value", "own", "total", "l1", "importance", "tokens")
    return all(torch.equal(getattr(ours, name), getattr(other, name)) for name in columns) and ours.nodes.sets == other.nodes.sets


def as_built(beside: Path, tokens: list[Any], **options: Any) -> list[Graph]:
    """What the function gives."""
    put_in = [attrib.graph.Neurons(2) if name.startswith("neurons") else attrib.load_dictionary(beside / name) for name in NODES]
    usual: dict[str, Any] = {"targets": attrib.TopLogits(2, 0.95), "keep": attrib.Mass(0.9)}
    return attrib.graph.build(attrib.load_model("smollm2-135m"), put_in, tokens, **(usual | options))


# ------------------------------------------------------------------------------------- what it writes


def test_a_folder_holds_the_graphs_of_its_prompts_by_number(finished: Path, beside: Path) -> None:
    given = [found.prompt for found in read(beside / "prompts.jsonl")]
    with attrib.open_graphs(finished) as graphs:
        assert graphs.numbers.tolist() == KEPT
        assert len(graphs) == len(KEPT)
        for number in (0, 5, -1):
            at = number if number >= 0 else KEPT[number]
            [want] = as_built(beside, [given[at]])
            got = graphs[number]
            assert torch.equal(got.indices, want.indices)
            torch.testing.assert_close(got.weight, want.weight)
            assert got.worst < 1e-4, "policy is linear, where nobody says"
        assert [len(graph.tokens) for graph in graphs] == [len(given[number]) for number in KEPT]  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"graphs: 3 is not among the 8 prompts of .* \(numbers 0, 1, 2, 4, 5, .* 8\)"):
            graphs[3]
        path, place = graphs.place_of(5)  # type: ignore[union-attr]
    with attrib.open_graphs(path) as one_file:
        assert one_file.numbers[place] == 5
        assert len(one_file[place].tokens) == len(given[5])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="closed"):
        graphs[0]


def test_the_record_counts_and_says_of_what_graphs_are(finished: Path) -> None:
    job, now = open_job(finished), status(finished)
    assert (now.prompts_done, now.tokens_done, now.refused) == (len(LENGTHS), sum(LENGTHS), 1)
    with attrib.open_graphs(finished) as graphs:
        assert now.edges == sum(map(len, graphs)) > 0
        call: Any = graphs[0].call
    assert call["model"]["sha256"] == job.fixed.model
    assert [each.get("sha256") for each in call["dictionaries"]] == [job.fixed.dictionaries.get(name) for name in NODES]
    assert job.fixed.dictionaries.keys() == set(TRANSCODERS)
    assert call["policy"] == attrib.LINEAR._asdict()


def test_every_option_reaches_the_graphs(tmp_path: Path, beside: Path) -> None:
    options: dict[str, Any] = {"mlps": "leaf", "demean": False, "skip_positions": 1, "max_nodes": 9, "block": 4, "span": -1}
    table = {"attribution": [{"kind": "graph", "dictionaries": NODES} | options]} | {"policy": "exact", "dtype": "float64"}
    job = make_job(tmp_path / "job", beside, **table, keep="topk:30", prompts={"source": "prompts.jsonl", "limit": 1})
    run(job.folder, here)
    with attrib.open_graphs(job.folder) as graphs:
        graph = graphs[0]
    del options["span"]
    keep = {"targets": attrib.graph.Span(-1), "keep": attrib.TopK(30), "policy": attrib.EXACT, "dtype": "float64"}
    [want] = as_built(beside, [graph.tokens], **options, **keep)
    assert same(graph, want)
    assert {name: graph.call[name] for name in options} == options
    [again] = rerun(job.folder, 0, places={name: beside / name for name in TRANSCODERS})
    assert (again.kind, again.apart, again.is_same) == ("graph", 0.0, True)
    assert verify(job.folder) == []


# ---------------------------------------------------------------------------------- what goes wrong


def test_a_second_run_has_nothing_to_do_and_verify_finds_nothing(finished: Path) -> None:
    before = bytes_of(finished)
    assert run(finished, here).damaged == []
    assert verify(finished, recompute=len(open_job(finished).shards)) == []
    assert bytes_of(finished) == before


@pytest.mark.few
@pytest.mark.parametrize("damage", ["flip", "cut", "unlink", "record"])
def test_what_was_damaged_is_made_again(copy: Job, finished: Path, damage: str) -> None:
    shard = copy.shards[2]
    path = copy.record(shard) if damage == "record" else copy.file(shard)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.unlink() if damage == "unlink" else path.write_bytes(bytes(content[:-9]) if damage == "cut" else bytes(content))
    assert [fault.shard for fault in verify(copy.folder, recompute=0)] == [shard]
    run(copy.folder, here)
    assert bytes_of(copy.folder) == bytes_of(finished)


@pytest.mark.long
def test_a_worker_that_is_killed_at_random_moments_is_replaced(folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this, killed, chance = psutil.Process(), set[int](), random.Random(7)
    others, stop = {child.pid for child in this.children()}, threading.Event()

    def kill() -> None:
        while not stop.is_set() and len(killed) < 3:
            done, begun = len(list((folder / RECORDS).glob("*.json"))), time.monotonic()
            while len(list((folder / RECORDS).glob("*.json"))) == done and time.monotonic() - begun < 60 and not stop.is_set():
                time.sleep(0.002)
            time.sleep(chance.random() * 0.1)
            for child in this.children():
                if child.pid not in others | killed and "resource_tracker" not in " ".join(child.cmdline()):
                    child.kill()
                    killed.add(child.pid)

    killer = threading.Thread(target=kill)
    with forked(monkeypatch):
        killer.start()
        ran = typer.testing.CliRunner().invoke(cli.app, ["job", "run", str(folder), "--workers", "1", "--attempts", "9"])
        stop.set()
        killer.join()
    assert killed
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert bytes_of(folder) == bytes_of(finished)
    assert status(folder).is_done


def test_a_run_that_is_killed_goes_on_to_the_same_bytes(folder: Path, finished: Path) -> None:
    for wanted in (1, 3):
        killed(folder, wanted)
    run(folder, here)
    assert bytes_of(folder) == bytes_of(finished)
    assert len(list((folder / SHARDS).iterdir())) == len(open_job(folder).shards), "nothing half-written is left"


def of_two(job: Job) -> Shard:
    """A shard of two prompts."""
    return next(shard for shard in job.shards if shard.stop - shard.first == 2)


def rewritten(job: Job, shard: Shard, change: Any, numbers: Any = None) -> None:
    """A shard with other graphs, with its checksum on record, as a broken machine would write it."""
    path, entry = job.file(shard), job.record(shard)
    with open_graph_file(path) as graphs:
        wrong, numbers = [change(graph) for graph in graphs], graphs.numbers if numbers is None else numbers(graphs.numbers)
    save_graphs(path, wrong, numbers=numbers, overwrite=True)
    now = {"sha256": running.digest(job.folder, path), "bytes": path.stat().st_size}
    entry.write_text(json.dumps(json.loads(entry.read_text()) | now))


def doubled(graph: Graph) -> Graph:
    return replace(graph, **{name: getattr(graph, name) * 2 for name in ("weight", "value", "own", "total", "l1")})


def without_the_strongest(graph: Graph) -> Graph:
    return graph.only(graph.weight.abs() < graph.weight.abs().max() / 2)


@pytest.mark.few
@pytest.mark.parametrize(
    ("change", "numbers", "words", "recompute"),
    [
        (doubled, None, "differs by 5.0e-01 of the largest attribution", 9),
        (without_the_strongest, None, r"rows/l1: row \d+: it is .*, of which the keep rule stores 0\.9 at least, and .* is stored", 0),
        (lambda graph: replace(graph, call={}), None, "does not say that it is of the job's model and dictionaries", 0),
        (lambda graph: replace(graph, tokens=graph.tokens.flip(0)), None, "its prompts have other tokens than the job's", 0),
        (lambda graph: graph, lambda numbers: numbers.flip(0), "its prompts have other numbers than the job's", 0),
    ],
)
def test_verify_sees_what_a_right_checksum_hides(copy: Job, change: Any, numbers: Any, words: str, recompute: int) -> None:
    shard = of_two(copy)
    rewritten(copy, shard, change, numbers)
    found = verify(copy.folder, recompute=recompute)
    assert {fault.shard for fault in found} == {shard}
    assert any(re.search(words, fault.what) for fault in found), found


def test_prompts_that_cannot_be_computed_are_left_out_by_number(tmp_path: Path, beside: Path) -> None:
    job = make_job(tmp_path / "job", beside, **asked(), positions=[6])
    ran = run(job.folder, here)
    assert ran.failed == []
    left_out = {one.number: one.reason for one, _ in refused(job) if one.number != 3}
    lengths = dict(zip(KEPT, LENGTHS, strict=True))
    assert left_out.keys() == {number for number, length in lengths.items() if length < 7}
    assert all("positions: [6] for it, which has" in reason for reason in left_out.values())
    with attrib.open_graphs(job.folder) as graphs:
        assert graphs.numbers.tolist() == [number for number in KEPT if number not in left_out]
    assert verify(job.folder, recompute=2) == []


@pytest.mark.long
def test_a_budget_too_small_for_some_prompts_leaves_these_out(tmp_path: Path, beside: Path) -> None:
    budget = 600_000
    job = make_job(tmp_path / "job", beside, **asked(), budget=budget, shards={"prompts": 3})
    run(job.folder, here)
    reasons = {one.number: one.reason for one, _ in refused(job) if one.number != 3}
    assert 0 < len(reasons) < len(KEPT)
    assert all(f"{budget:,} bytes are too few for it" in reason for reason in reasons.values()), reasons
    assert verify(job.folder, recompute=1) == []


def test_a_graph_that_is_not_finite_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, victim = Loaded.attribute, open_job(folder).shards[1]
    [ids, *_], [number, *_] = open_job(folder).prompts(victim)

    def overflowing(self: Loaded, given: Any, *rest: Any) -> Any:
        return [
            replace(graph, total=graph.total / 0) if torch.equal(graph.tokens, ids) else graph for graph in attribute(self, given, *rest)
        ]

    monkeypatch.setattr(Loaded, "attribute", overflowing)
    record = run(folder, here).done[victim.number]
    assert (int(number), "its edges are not finite numbers") in [(one.number, one.reason) for one in record.refused]


# ------------------------------------------------------------------------------------ the config


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"source": "x"}, "source: no effect on graph, which takes"),
        ({"cuts": ["x"]}, "cuts: no effect on graph, which takes"),
        ({"dictionaries": []}, "dictionaries: none; a graph needs"),
        ({"dictionaries": ["neurons:x"]}, r"attribution\[0\]\.dictionaries: 'neurons:x'; expected neurons:LAYER"),
        ({"mlps": "gone"}, r"attribution\[0\]\.mlps: 'gone'; expected 'exact' or 'leaf'"),
        ({"max_nodes": -1}, r"attribution\[0\]\.max_nodes: -1; expected 0 or more"),
        ({"block": 0}, r"attribution\[0\]\.block: 0; expected 1 or more"),
        ({"skip_positions": True}, r"attribution\[0\]\.skip_positions: true; expected a whole number"),
        ({"span": 1, "top_logits": 3}, "top_logits and span: each says which logits"),
        ({"max_node": 3}, r"attribution\[0\]\.max_node: there is no such key"),
    ],
)
def test_a_key_of_a_graph_that_makes_no_sense_is_refused_by_name(changed: dict[str, Any], words: str) -> None:
    one = {"kind": "graph", "dictionaries": ["x"]} | changed
    with pytest.raises(InputError, match=words):
        job_file({"model": "m", "prompts": "p", "attribution": [one]})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"error": True}, "error: no effect on graph; leave it out"),
        ({"precision_rows": 3}, "precision_rows: no effect on graph; leave it out"),
        ({"attribution": [{"kind": "graph", "dictionaries": ["x"]}] * 2}, "attribution: a graph beside others"),
        ({"attribution": [{"kind": "latent_to_logit", "source": "x", "max_nodes": 3}]}, "max_nodes: no effect on latent_to_logit"),
        ({"max_nodes": 3}, "max_nodes: there is no such key"),
    ],
)
def test_a_key_that_is_misplaced_is_refused_by_name(changed: dict[str, Any], words: str) -> None:
    table = {"model": "m", "prompts": "p", "attribution": [{"kind": "graph", "dictionaries": ["x"]}]}
    with pytest.raises(InputError, match=words):
        job_file(table | changed)


def test_what_the_model_has_not_is_refused_when_the_job_is_made(tmp_path: Path, beside: Path) -> None:
    for changed, words in (
        ({"dictionaries": ["neurons:9"]}, r"expected a layer of .*, from 0 to 3"),
        ({"dictionaries": [TRANSCODERS[0], TRANSCODERS[0]]}, "dictionaries"),
        ({"dictionaries": ["../x"]}, "lies outside"),
        ({"top_logits": 2, "mass": 2.0}, "mass"),
    ):
        with pytest.raises(InputError, match=words):
            make_job(tmp_path / "job", beside, **asked(**changed))
    with pytest.raises(InputError, match="method"):
        make_job(tmp_path / "job", beside, **asked(), method="torch.func")
    assert not (tmp_path / "job").exists()


def test_a_job_knows_its_usual_values_when_it_is_opened(finished: Path) -> None:
    config = open_job(finished).config
    assert (config.policy, config.attribution[0].mass, config.is_of_graphs) == ("linear", 0.95, True)
    plain = job_file({"model": "m", "prompts": "p", "attribution": [{"kind": "graph", "dictionaries": ["x"]}]})
    assert plain.keep == attrib.Mass(0.98)
    exact = job_file({"model": "m", "prompts": "p", "policy": "exact", "attribution": [{"kind": "graph", "dictionaries": ["x"]}]})
    assert exact.policy == "exact"


# ------------------------------------------------------------------------------------ the commands


def test_the_commands_of_jobs(folder: Path, beside: Path, command: Command) -> None:
    assert "has no graphs yet" in command("graph", "show", folder).err
    run(folder, here)
    assert "--watch" not in command("job", "status", folder).err
    assert "8 of 8" in command("job", "status", folder).out
    assert command("job", "verify", folder).out == f"{folder}: all shards are there, and no fault in them\n"
    assert command("verify-file", folder).out == f"{folder}: no fault in it\n"
    assert "0 files" in command("job", "gc", folder).out
    assert tidy(folder) == []
    merged = command("job", "merge", folder)
    assert merged.status == 0, merged.err
    with attrib.open_graphs(folder / "merged.h5") as graphs, attrib.open_graphs(folder) as others:
        assert graphs.numbers.tolist() == KEPT
        assert same(graphs[4], others[4])
    assert command("verify-file", folder / "merged.h5").status == 0
    ran = command("rerun", folder, "--prompt", 4)
    assert (ran.status, ran.out.startswith("graph: the same")) == (0, True), ran.err
    assert f"`attrib job status {folder} --refused` lists" in command("rerun", folder, "--prompt", 3).err


@pytest.mark.parametrize("typed", [["show"], ["stats", "build"], ["export", "--to", "parquet"]])
def test_commands_for_edges_say_what_a_folder_of_graphs_is(finished: Path, tmp_path: Path, command: Command, typed: list[str]) -> None:
    name = typed[:2] if typed[0] == "stats" else typed[:1]
    more = {"show": [], "stats": [tmp_path / "s.h5"], "export": [tmp_path / "out", *typed[1:]]}[typed[0]]
    ran = command(*name, *more, finished) if typed[0] == "stats" else command(*name, finished, *more)
    assert ran.status == 1
    assert "attribution graphs, which attrib.open_graphs reads, and `attrib graph show`" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.long
def test_a_folder_of_graphs_is_shown_pruned_and_exported(finished: Path, tmp_path: Path, command: Command) -> None:
    with attrib.open_graphs(finished) as graphs:
        graph, first, pruned = graphs[5], graphs[0], [attrib.graph.prune(each, 0.6).graph for each in graphs]
    assert repr(graph) in command("graph", "show", finished, "--graph", 5).out
    assert repr(first) in command("graph", "show", finished).out
    assert "3 is not among the 8 prompts" in command("graph", "show", finished, "--graph", 3).err
    assert command("graph", "paths", finished, "--graph", 5, "--top", 1).status == 0
    assert command("graph", "diff", finished, finished, "--graph", 5, "--other", 0).status == 0
    assert "would lie among the graphs" in command("graph", "prune", finished, finished / SHARDS / "p.h5").err
    ran = command("graph", "prune", finished, tmp_path / "p.h5", "--nodes", 0.6)
    assert ran.status == 0, ran.err
    with attrib.open_graphs(tmp_path / "p.h5") as found:
        assert found.numbers.tolist() == KEPT
        assert all(same(ours, other) for ours, other in zip(found, pruned, strict=True))
    ran = command("graph", "export", finished, tmp_path / "five.json", "--to", "neuronpedia", "--graph", 5)
    assert ran.status == 0, ran.err
    assert same(attrib.graph.from_neuronpedia(tmp_path / "five.json"), graph)


# ------------------------------------------------------------------------------------ made again


@pytest.mark.few
@pytest.mark.parametrize(
    "options",
    [
        {"targets": [attrib.TopLogits(1), attrib.Difference(3, (4, 5))], "policy": attrib.EXACT, "positions": [1, -2], "mlps": "leaf"},
        {"targets": attrib.TokenLogits((3, 5)), "positions": "1:", "dtype": "float64", "keep": attrib.TopK(9), "demean": False},
        {"targets": attrib.graph.Span(1, 3), "keep": attrib.Threshold(0.05), "max_nodes": 5, "block": 2, "skip_positions": 1},
        {"targets": [attrib.graph.Latents([(0, 3, -1), (TRANSCODERS[1], 1, 0)], 0.5), attrib.TopLogits(1)]},
    ],
)
def test_a_graph_comes_out_again(beside: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    tokens = [found.prompt for found in read(beside / "prompts.jsonl")][4:6]
    path = attrib.save(tmp_path / "g.h5", as_built(beside, tokens, **options))
    for number in range(2):
        [found] = rerun(path, number, places={name: beside / name for name in TRANSCODERS})
        assert (found.kind, found.is_same) == ("graph", True)
        assert found.edges > 0


@pytest.mark.few
@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"keep": "__import__('os').system('touch hacked')"}, attrib.UnsupportedError, "does not say enough"),
        ({"targets": ["Custom(label='a')"]}, attrib.UnsupportedError, "does not say enough"),
        ({"dictionaries": 5}, attrib.FormatError, "it does not say how"),
        ({"dictionaries": [{"name": "neurons", "site": "blocks.2.mlp.hook_in", "k": "x"}]}, InputError, "expected k of at least 1"),
        ({"policy": {"heads": "exact"}}, attrib.FormatError, "it does not say how"),
        ({"model": None}, attrib.FormatError, "it does not say how"),
        ({"budget": "much"}, attrib.FormatError, "it does not say how"),
    ],
)
def test_a_call_from_elsewhere_runs_nothing(
    finished: Path, tmp_path: Path, beside: Path, changed: dict[str, Any], error: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with attrib.open_graphs(finished) as graphs:
        graph = graphs[1]
    path = attrib.save(tmp_path / "g.h5", replace(graph, call=dict(graph.call) | changed))
    with pytest.raises(error, match=words):
        rerun(path, 0, places={name: beside / name for name in TRANSCODERS})
    assert not (tmp_path / "hacked").exists()


# ------------------------------------------------------------------------------------ files


def test_numbers_of_a_file_from_elsewhere_are_looked_at(finished: Path, tmp_path: Path) -> None:
    job = open_job(finished)
    content = job.file(of_two(job)).read_bytes()
    for wrong in (np.array([-1, 2], "<i8"), np.array([2, 2], "<i8"), np.array([1], "<i8"), np.array([1.0, 2.0])):
        path = tmp_path / "g.h5"
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            del file["number"]
            file["number"] = wrong
        with pytest.raises(attrib.FormatError, match="number"):
            attrib.open_graphs(path)


def test_a_number_in_two_files_is_refused(finished: Path, tmp_path: Path) -> None:
    content = next((finished / SHARDS).iterdir()).read_bytes()
    for name in ("a.h5", "b.h5"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(attrib.FormatError, match="each prompt of a data set once"):
        attrib.open_graphs(tmp_path)


def test_files_without_numbers_count_on(finished: Path, tmp_path: Path) -> None:
    with attrib.open_graphs(finished) as graphs:
        some = [graphs[number] for number in (0, 1, 2)]
    attrib.save(tmp_path / "a.h5", some[:1])
    attrib.save(tmp_path / "b.h5", some[1:])
    with attrib.open_graphs(tmp_path) as found:
        assert found.numbers.tolist() == [0, 1, 2]
        assert all(same(ours, other) for ours, other in zip(found, some, strict=True))
        assert not found.is_numbered
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no files that end in \.h5"):
        attrib.open_graphs(tmp_path / "empty")
