"""Options without effect, text that a terminal would obey, encodings without its signs, and what the tables and records say."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib.cli import main as cli
from attrib.core.positions import numbers_of, plain_positions
from attrib.core.types import AttribWarning, InputError, natural
from attrib.jobs.config import JobFile, job_file
from attrib.runs import run
from attrib.runs import spec as work
from attrib.runs.prompts import read
from attrib.view import terminal
from attrib.view.chosen import Chosen
from attrib.view.records import write_csv
from tests.support.builders import dictionary, prompt, sae, tiny
from tests.support.root import ROOT
from tests.support.typed import Command

SITES = ("blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre")
CUT = "blocks.2.mlp.hook_in"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, dictionaries and prompts."""
    folder = tmp_path_factory.mktemp("files")
    tiny("llama").save_pretrained(folder / "model")
    for site in SITES:
        sae("topk", site=site).save_model(folder / site)
    sae("transcoder", site=CUT).save_model(folder / CUT)
    (folder / "p.jsonl").write_text("\n".join(json.dumps(prompt(length, seed=length).tolist()) for length in (5, 7)) + "\n")
    return folder


def usual(files: Path, *kinds: str) -> list[object]:
    found: list[object] = ["--model", files / "model", "--prompts", files / "p.jsonl"]
    return found + [part for kind in kinds for part in ("--kind", kind)]


# ------------------------------------------------------------------------------- options without effect

SOURCE, TARGET = ["--source", SITES[0]], ["--target", SITES[1]]
WITHOUT_EFFECT = {
    "a target of logits": (["latent_to_logit"], [*SOURCE, *TARGET], "--target: no effect on latent_to_logit"),
    "a source of tokens": (["token_to_latent"], [*SOURCE, *TARGET], "--source: no effect on token_to_latent"),
    "logits of latents": (["latent_to_latent"], [*SOURCE, *TARGET, "--top-logits", 10], "--top-logits: no effect on latent_to_latent"),
    "tokens and the largest": (
        ["latent_to_logit"],
        [*SOURCE, "--logit-token", 3, "--top-logits", 10],
        "--top-logits and --logit-token: each",
    ),
    "tokens and a mass": (["latent_to_logit"], [*SOURCE, "--logit-token", 3, "--mass", 0.5], "--mass and --logit-token: each"),
    "tokens and a difference": (
        ["latent_to_logit"],
        [*SOURCE, "--logit-token", 3, "--logit-difference", 1, 2],
        "--logit-token and --logit-difference: each",
    ),
    "an effect without cuts": (
        ["latent_to_latent"],
        [*SOURCE, *TARGET, "--effect", "total"],
        "--effect: 'total' has no effect without cuts",
    ),
    "an error of tokens": (["token_to_latent"], [*TARGET, "--no-error"], "error: no effect on token_to_latent"),
    "a metric of logits": (["latent_to_logit"], [*SOURCE, "--metric", "a:b"], "--metric: no effect on latent_to_logit"),
    "positions of a metric": (
        ["latent_to_metric"],
        [*SOURCE, "--metric", "a:b", "--position", 1],
        "positions: no effect on latent_to_metric",
    ),
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_an_option_without_effect_is_an_error(name: str, verb: str, files: Path, tmp_path: Path, command: Command) -> None:
    kinds, options, words = WITHOUT_EFFECT[name]
    ran = command(verb, *usual(files, *kinds), "--out", tmp_path / "x.h5", *options)
    assert ran.status == 1
    assert re.search(words, ran.err), ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "x.h5").exists()


def test_an_option_of_one_kind_among_several_is_fine(files: Path, tmp_path: Path, command: Command) -> None:
    kinds = ("token_to_latent", "latent_to_latent", "latent_to_logit")
    ends = ["--source", files / SITES[0], "--target", files / SITES[1]]
    ran = command("run", *usual(files, *kinds), *ends, "--top-logits", 2, "--no-error", "--out", tmp_path / "x.h5")
    assert ran.status == 0, ran.err
    with attrib.open(tmp_path / "x.h5") as result:
        assert [block.kind for block in result.blocks] == [*kinds]
        assert result.edges("latent_to_logit").call["target"] == "TopLogits(k=2, mass=None)"


@pytest.mark.parametrize("make", [run.run_file, job_file])
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"kind": "latent_to_logit", "source": "a", "target": "b"}, r"attribution\[0\]: target: no effect on latent_to_logit"),
        ({"kind": "latent_to_logit", "source": "a", "logit_tokens": [1], "top_logits": 10}, "top_logits and logit_tokens: each"),
        ({"kind": "latent_to_logit", "source": "a", "logit_tokens": []}, "logit_tokens: an empty list"),
        ({"kind": "token_to_latent", "target": "b", "effect": "direct"}, "effect: 'direct' has no effect without cuts"),
        ({"kind": "token_to_latent", "target": "b", "mass": 0.5}, "mass: no effect on token_to_latent"),
    ],
)
def test_a_key_without_effect_is_an_error(make: Callable[[dict[str, Any]], Any], keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make({"model": "m", "prompts": "p", "attribution": [keys]})


def test_a_stored_job_is_not_asked_why_every_option_has_its_usual_value() -> None:
    made = job_file({"model": "m", "prompts": "p", "attribution": [{"kind": "token_to_latent", "target": "b"}]})
    stored = json.loads(json.dumps(made.model_dump(mode="json")))
    assert work.checked(JobFile, stored, "job", context=work.STORED) == made
    with pytest.raises(InputError, match="no effect"):
        work.checked(JobFile, stored, "job")


def test_options_of_show_and_status_that_exclude_each_other(tmp_path: Path, command: Command) -> None:
    assert "--prompt: 0 has no effect beside --all" in command("show", "x.h5", "--prompt", 0, "--all").err
    assert "--csv, --json" in command("show", "x.h5", "--csv", "--json").err
    assert "--refused and --json" in command("job", "status", tmp_path, "--refused", "--json").err


@pytest.mark.parametrize(
    ("written", "typed", "chosen"),
    [
        ('"last"', ["last"], [3]),
        ('"1:3"', ["1:3"], [1, 2]),
        ("-1", ["-1"], [3]),
        ("[0, -1]", ["0", "-1"], [0, 3]),
        ("[false, true, false, false]", None, [1]),
        ('"all"', ["all"], [0, 1, 2, 3]),
    ],
)
def test_positions_in_every_form(
    written: str, typed: list[str] | None, chosen: list[int], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run file, a job's and typed."""
    block = "[[attribution]]\nkind = 'latent_to_logit'\nsource = 'b'\n"
    (tmp_path / "run.toml").write_text(f"model = 'm'\nprompts = 'p'\npositions = {written}\n{block}")
    table = work.toml_table(tmp_path / "run.toml")
    positions = [run.run_file(table | {"out": "o"}).positions, job_file(table).positions]
    stored = json.loads(job_file(table).model_dump_json())
    assert work.checked(JobFile, stored, "job", context=work.STORED) == job_file(table)
    if typed is not None:
        monkeypatch.setattr(run, "execute", lambda made, *_: positions.append(made.positions) or sys.exit(0))
        options = [part for one in typed for part in ("--position", one)]
        given = ["--model", "m", "--kind", "latent_to_logit", "--source", "b", "--prompt", "a", "--out", tmp_path / "o.h5"]
        assert command("run", *given, *options).status == 0
        assert len(positions) == 3
    assert all(sorted(set(numbers_of(plain_positions(one, [4]), 4))) == chosen for one in positions)


def test_a_slice_is_typed_alone(command: Command) -> None:
    given = ["--model", "m", "--kind", "latent_to_logit", "--source", "b", "--prompt", "a", "--out", "o.h5"]
    assert "--position: '1:' beside others; give numbers, or one of" in command("run", *given, "--position", "3", "--position", "1:").err


# -------------------------------------------------------------------------------------- faults in words


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"attribution": [{"kind": "latent"}]}, "attribution[0].kind: 'latent'; expected 'token_to_latent', "),
        ({"attribution": 3}, "attribution: 3; expected a list"),
        ({"attribution": ["x"]}, "attribution[0]: 'x'; expected a table"),
        ({"positions": [1, "b"]}, "positions: 'b'; expected whole numbers, a mask"),
        ({"positions": [True, 0]}, "positions: True; expected whole numbers, a mask"),  # and true is no 1
        ({"positions": 1.0}, "positions: 1.0; expected whole numbers"),
        ({"positions": "first"}, "positions: 'first'; expected whole numbers"),
        ({"precision_rows": True}, "precision_rows: true; expected a whole number"),
        ({"model": 3}, "model: 3; expected text in quotes"),
        ({"error": "perhaps"}, "error: 'perhaps'; expected true or false"),
        ({"budget": "much"}, "budget: 'much'; expected a size, as 512MiB or 2GiB"),
        ({"policy": "loose"}, "policy: 'loose'; expected 'exact', 'linear' or 'relp'"),
        ({"speedy mode": 1}, "speedy mode: there is no such key"),
        ({"keep": "some"}, "keep: 'some' is not a rule; expected dense, topk:K"),
        ({"prompts": 3}, "prompts: 3; expected a path in quotes"),
        ({"prompt": ["a"]}, "prompts: given beside prompt"),
        (
            {"attribution": [{"kind": "latent_to_logit", "source": "a", "logit_tokens": [1.5]}]},
            "attribution[0].logit_tokens[0]: 1.5; expected a whole number or text in quotes",
        ),
    ],
)
def test_a_wrong_key_is_named_as_in_the_file(changed: dict[str, Any], line: str) -> None:
    good = {"model": "m", "prompts": "p", "out": "o", "attribution": [{"kind": "token_to_latent", "target": "b"}]}
    with pytest.raises(InputError) as caught:
        run.run_file(good | changed)
    assert str(caught.value).startswith(line), str(caught.value)
    assert "Input should" not in str(caught.value)


def test_every_wrong_key_has_a_line() -> None:
    with pytest.raises(
        InputError, match=r"^model: missing[^\n]*\nattribution\[0\].kind: missing[^\n]*\nspeed: there is no such key[^\n]*$"
    ):
        run.run_file({"prompts": "p", "attribution": [{}], "speed": 1})


# --------------------------------------------------------------------------------- what a terminal is given

HOSTILE = "\x1b]0;owned\x07\x1b[31m\u202etxt\u2066\r\n\x9b[0/red] → \ud800"
SHOWN = r"\x1b]0;owned\x07\x1b[31m\u202etxt\u2066\r\n\x9b[0/red] → \ud800"


@pytest.fixture(scope="module")
def hostile_file(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose tokens and dictionaries' names are what a terminal would obey and rich would take for markup."""
    model = attrib.load_model(files / "model")
    edges = attrib.latent_to_logit(model, dictionary("topk"), torch.tensor([1, 2, 3]), logits=attrib.TopLogits(2))
    strings, labels = (HOSTILE, "[/red]", "[bold] x"), (HOSTILE, "[/x]")
    edges = replace(edges, prompts=replace(edges.prompts, strings=strings), targets=replace(edges.targets, labels=labels))
    edges = replace(
        edges, sources=replace(edges.sources, site="[/red]\x1b[1m"), call=edges.call | {"effect": "[/b]", "cuts": [{"site": "\x1b"}]}
    )
    return attrib.save(tmp_path_factory.mktemp("hostile") / "x.h5", edges)


def obeyed(text: str) -> list[str]:
    return [char for char in text if not char.isprintable() and char != "\n"]


def test_show_prints_hostile_text_as_escapes(hostile_file: Path, command: Command) -> None:
    ran = command("show", hostile_file, "--top", 500)
    assert ran.status == 0, ran.err
    assert obeyed(ran.out) == []
    assert SHOWN in ran.out
    assert r"[/red]\x1b[1m → logits" in ran.out
    assert r"[/b] effects, with cuts at \x1b" in ran.out
    assert obeyed(command("show", hostile_file, "--json").out) == []


def test_records_have_the_text_as_it_is(hostile_file: Path, command: Command) -> None:
    tokens = {json.loads(line)["source_token"] for line in command("show", hostile_file, "--json").out.splitlines()}
    assert HOSTILE in tokens
    as_csv = command("show", hostile_file, "--csv").out
    assert "\x1b]0;owned" in as_csv, "a pipe is a program's"
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]
    with attrib.open(hostile_file) as result:
        write_csv(result.edges(), Chosen(), out, header=True)
    assert obeyed(out.getvalue()) == []


def test_errors_and_warnings_are_escaped_too(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = command("show", tmp_path / "\x1b[2J.h5")
    assert ran.status == 1
    assert obeyed(ran.err) == []
    assert r"\x1b[2J.h5" in ran.err

    def warn() -> None:
        warnings.warn("\x1b[2J is odd", AttribWarning, stacklevel=2)
        warnings.warn("of another library", FutureWarning, stacklevel=2)

    monkeypatch.setattr(cli, "app", warn)
    before = warnings.showwarning
    assert command("info").err == "warning: \\x1b[2J is odd\n", "one line, and nothing of other libraries"
    assert warnings.showwarning is before


def test_statistics_and_status_are_escaped_too(hostile_file: Path, tmp_path: Path, command: Command) -> None:
    assert obeyed(command("stats", "build", tmp_path / "s.h5", hostile_file).out) == []
    shown = command("stats", "show", tmp_path / "s.h5")
    assert obeyed(shown.out) == []
    assert r"[/red]\x1b[1m" in shown.out
    assert obeyed(command("stats", "top-children", tmp_path / "s.h5", 1).out) == []


@pytest.mark.parametrize("text", ["naïve", "日本　語", "a\u200db", "می\u200cخواهم", "🙂"])
def test_ordinary_text_is_as_it_is(text: str) -> None:
    assert terminal.plain(text) == text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_encoding_without_our_signs(encoding: str, hostile_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In which a table would end in UnicodeEncodeError."""
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
    monkeypatch.setattr(sys, "argv", ["attrib", "show", str(hostile_file), "--all"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    sys.stdout.flush()
    text = printed.getvalue().decode(encoding)
    assert not stop.value.code
    assert "-> logits" in text
    assert r"\u2192" in text, "an arrow of the prompt's own is an escape"
    assert "sum |attr.|" in text
    assert "+---" in text


@pytest.mark.few
@pytest.mark.parametrize("width", [40, 80, 132])
def test_numbers_are_never_cut(width: int, shown_file: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = command("show", shown_file, "--top", 4).out
    monkeypatch.setenv("COLUMNS", str(width))
    narrow = command("show", shown_file, "--top", 4).out
    numbers = r"[+-]?\d[\d,.]*(?:e[+-]\d+)?%?"
    assert "…" not in narrow
    assert sorted(re.findall(numbers, narrow)) == sorted(re.findall(numbers, wide))
    if width >= 80:
        assert max(map(len, narrow.splitlines())) <= width


def test_no_color_is_plain(shown_file: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in command("show", shown_file).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in command("show", shown_file).out


# --------------------------------------------------------------------------------------------------- show


@pytest.fixture(scope="module")
def shown_file(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = attrib.load_model(files / "model")
    source, target = (attrib.load_dictionary(files / site) for site in SITES)
    tokens = run.read_prompts(files / "p.jsonl")
    blocks = [
        attrib.token_to_latent(model, target, tokens),
        attrib.latent_to_latent(model, source, target, tokens),
        attrib.latent_to_logit(model, source, tokens, logits=attrib.TopLogits(2)),
    ]
    return attrib.save(tmp_path_factory.mktemp("shown") / "out.h5", blocks)


def test_stored_is_a_share_of_the_pairs_that_there_are(shown_file: Path, command: Command) -> None:
    """A dense result has every pair whose source is not behind its target, so that no share is above 100%."""
    shares = [float(share) for share in re.findall(r"│ +(\d+\.\d\d)% │", command("show", shown_file, "--kind", "latent_to_latent").out)]
    assert len(shares) == 2
    assert all(99 < share <= 100 for share in shares)


def test_records_are_the_edges(shown_file: Path, command: Command) -> None:
    as_json = [json.loads(line) for line in command("show", shown_file, "--json", "--all").out.splitlines()]
    as_csv = list(csv.DictReader(io.StringIO(command("show", shown_file, "--csv", "--all").out)))
    with attrib.open(shown_file) as result:
        frames = {kind: result.edges(kind).to_pandas() for kind, *_ in result.blocks}
    assert len(as_json) == len(as_csv) == sum(map(len, frames.values()))
    for one, other in zip(as_json, as_csv, strict=True):
        assert [*one] == [*other]
        assert all(other[name] == ("" if value is None else str(value)) for name, value in one.items())
    for kind, frame in frames.items():
        of_kind = [record for record in as_json if record["kind"] == kind]
        key = ["prompt", "source_position", "source_latent", "target_position", "target_latent"]
        found = {tuple(record[name] for name in key): record for record in of_kind}
        for row in frame.to_dict("records"):
            record = found[tuple(row[name] for name in key)]
            for name in ("gradient", "attribution", "source_activation", "target_activation", "source_token"):
                assert record[name] == row[name]
    sizes = [abs(record["attribution"]) for record in as_json if (record["kind"], record["prompt"]) == ("latent_to_latent", 1)]
    assert sizes == sorted(sizes, reverse=True)


def test_what_is_left_out_of_records_is_said(shown_file: Path, command: Command) -> None:
    ran = command("show", shown_file, "--json", "--top", 2)
    assert [json.loads(line)["prompt"] for line in ran.out.splitlines()] == [0] * 6
    assert ran.err == "1 of 2 prompts; 1 more with --prompt or --all\n"


def test_edges_of_a_latent_or_token(shown_file: Path, command: Command) -> None:
    everything = [json.loads(line) for line in command("show", shown_file, "--json", "--all").out.splitlines()]
    latent, token = everything[-1]["source_latent"], everything[-1]["target_label"]

    def has_latent(record: dict[str, Any]) -> bool:
        ends = {"token_to_latent": ["target"], "latent_to_logit": ["source"]}.get(record["kind"], ["source", "target"])
        return latent in [record[f"{end}_latent"] for end in ends]

    def has_token(record: dict[str, Any]) -> bool:
        return token in [record[f"{end}_{name}"] for end in ("source", "target") for name in ("token", "label")]

    for options, keeps in (
        (["--latent", latent], has_latent),
        (["--token", token], has_token),
        (["--latent", latent, "--token", token], lambda record: has_latent(record) and has_token(record)),
    ):
        found = [json.loads(line) for line in command("show", shown_file, "--json", "--all", *options).out.splitlines()]
        assert found == [record for record in everything if keeps(record)]
        assert 0 < len(found) < len(everything)
    assert f"with latent {latent} at an end" in command("show", shown_file, "--latent", latent).out
    assert "latent: 9999; the dictionaries of this file have the latents 0 to 79" in command("show", shown_file, "--latent", 9999).err


def test_a_latent_out_of_range_is_no_latent_without_edges(shown_file: Path, tmp_path: Path, command: Command) -> None:
    command("stats", "build", tmp_path / "s.h5", shown_file)
    for ask, end in (("top-parents", "targets"), ("top-children", "sources")):
        ran = command("stats", ask, tmp_path / "s.h5", 99999, "--block", "latent_to_latent")
        assert ran.status == 1
        assert re.search(rf"latent: 99999; expected 0 to 79, the latents of \S+, which are the {end} here", ran.err), ran.err
        assert command("stats", ask, tmp_path / "s.h5", 79, "--block", "latent_to_latent").status == 0
    assert command("stats", "top-parents", tmp_path / "s.h5", 59, "--block", "logit").status == 0, "a vocabulary id"


# ------------------------------------------------------------------------------------ run, plan and the rest


def test_prompts_as_text_reach_the_attribution(files: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(work.Loaded, "check", lambda _, prompts, corrupt: given.extend(prompts))
    monkeypatch.setattr(work.Loaded, "attribute", lambda *_: sys.exit(7))
    (tmp_path / "run.toml").write_text('prompts = "nowhere.txt"\n')
    kind = ["--model", files / "model", "--kind", "token_to_latent", "--target", files / SITES[1], "--out", tmp_path / "x.h5"]
    ran = command("run", tmp_path / "run.toml", *kind, "--prompt", "one\ntwo", "--prompt", "three")
    assert ran.status == 7, ran.err
    assert given == ["one\ntwo", "three"]
    assert "prompt: number 0 is empty" in command("run", *kind, "--prompt", " ").err
    assert "given beside prompt" in command("run", *kind, "--prompt", "a", "--prompts", files / "p.jsonl").err


@pytest.mark.parametrize("text", ["The Eiffel tower is in", "x" * 5000])
def test_text_in_place_of_a_file_of_prompts(text: str, files: Path, tmp_path: Path, command: Command) -> None:
    ran = command("run", *usual(files, "token_to_latent"), "--target", files / SITES[1], "--prompts", text, "--out", tmp_path / "x.h5")
    assert ran.status == 1
    assert "does not exist; expected a file" in ran.err
    assert "Text itself is given with --prompt" in ran.err


def test_a_plan_is_that_of_the_function(files: Path, tmp_path: Path, command: Command) -> None:
    ends = ["--source", files / SITES[0], "--target", files / SITES[1], "--cut", files / CUT, "--effect", "total"]
    ran = command("plan", *usual(files, "token_to_latent", "latent_to_latent", "latent_to_logit"), *ends)
    assert ran.status == 0, ran.err
    model = attrib.load_model(files / "model")
    source, target, cut = (attrib.load_dictionary(files / site) for site in (*SITES, CUT))
    tokens = run.read_prompts(files / "p.jsonl")
    for first, to in ((None, target), (source, target), (source, attrib.TopLogits())):
        assert str(attrib.plan(model, first, to, tokens, cuts=[cut], effect="total")) in ran.out
    assert list(tmp_path.iterdir()) == []
    refused = command("plan", *usual(files, "token_to_latent"), "--target", files / SITES[1], "--budget", 1000)
    assert "budget: 1,000 bytes" in refused.err, "what a run would say"
    assert "method: torch.func" in command("plan", *usual(files, "token_to_latent"), "--target", "x", "--method", "torch.func").err


def test_a_metric_by_its_name(files: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metrics_of_a_test.py").write_text("def entropy(logits):\n    return logits[-1].logsumexp(-1)\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    options = [*usual(files, "latent_to_metric"), "--source", files / SITES[0], "--keep", "dense"]
    ran = command("run", *options, "--metric", "my_metrics_of_a_test:entropy", "--out", tmp_path / "x.h5")
    assert ran.status == 0, ran.err
    model, source = attrib.load_model(files / "model"), attrib.load_dictionary(files / SITES[0])
    want = attrib.latent_to_metric(model, source, run.read_prompts(files / "p.jsonl"), lambda logits: logits[-1].logsumexp(-1))
    with attrib.open(tmp_path / "x.h5") as result:
        torch.testing.assert_close(result.edges().attribution, want.attribution)
        assert result.edges().call["target"] == "entropy"
    assert "not planned" in command("plan", *options, "--metric", "my_metrics_of_a_test:entropy").out
    assert str(tmp_path) not in sys.path
    for name, words in (
        ("entropy", "expected module:function"),
        ("no_such_module_here:f", "cannot be imported: ModuleNotFoundError"),
        ("my_metrics_of_a_test:absent", "cannot be imported: AttributeError"),
        ("my_metrics_of_a_test:number", "is a int; expected a function"),
    ):
        assert words in command("plan", *options, "--metric", name).err
    sys.modules.pop("my_metrics_of_a_test")


def test_a_job_runs_no_code_of_its_config() -> None:
    with pytest.raises(InputError, match="runs the code that its metric names"):
        job_file({"model": "m", "prompts": "p", "attribution": [{"kind": "latent_to_metric", "source": "a", "metric": "os:system"}]})


def test_what_is_kept_is_said_where_nobody_chose(files: Path, tmp_path: Path, command: Command) -> None:
    options = [*usual(files, "token_to_latent"), "--target", files / SITES[1]]
    assert "kept: mass:0.99" in command("run", *options, "--out", tmp_path / "x.h5").out
    with attrib.open(tmp_path / "x.h5") as result:
        assert result.edges().call["keep"] == "Mass(fraction=0.99)"
    assert "kept:" not in command("run", *options, "--out", tmp_path / "y.h5", "--keep", "dense").out
    assert run.RunFile.model_fields["keep"].default == JobFile.model_fields["keep"].default == attrib.Mass(0.99)


def test_the_version_is_told_without_torch(command: Command) -> None:
    assert command("--version").out == f"attrib {attrib.__version__}\n"


@pytest.mark.parametrize("words", [(), ("run",), ("plan",), ("show",), ("job", "init"), ("stats", "top-parents"), ("export",)])
def test_every_command_has_h(words: tuple[str, ...], command: Command) -> None:
    ran = command(*words, "-h")
    assert ran.status == 0
    assert "Usage:" in ran.out


def test_layers_stand_in_their_order() -> None:
    names = [f"m/blocks.{layer}.hook_resid_pre" for layer in (0, 6, 9, 18, 27, 100)]
    assert sorted({*names}, key=natural) == names
    shipped = attrib.adapters.shipped()
    layers = [int(name.split(".")[1]) for name in shipped if name.startswith("smollm2-135m/")]
    assert layers == sorted(layers)
    assert len(natural("9" * 9999)) == 3, "a number of any length"


def test_closed_streams_put_no_errors_into_results(tmp_path: Path) -> None:
    """The next file that is opened would be in the place of standard error, and Python prints there what is for neither."""
    shown = """
import os, sys
sys.argv = ["attrib", "show", "absent.h5"]
from attrib.cli import main as cli
try:
    cli.main()
except SystemExit as ended:
    print("ended with", ended.code, os.open("data", os.O_CREAT | os.O_WRONLY) > 2)
"""
    told = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 2>&- <&-', sys.executable, shown],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == "ended with 1 True\n"


def test_prompts_of_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input, is closed"):
        list(read("-"))
