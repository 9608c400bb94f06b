"""The command line as a user meets it: what it writes, what it prints, and what it refuses before computing."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import typer

import attrib
from attrib.adapters.dictionaries.kinds import KINDS
from attrib.adapters.models.families import FAMILIES
from attrib.cli import main as cli
from attrib.core.keep import RULES, parse_keep
from attrib.core.types import Dense, InputError, Mass, Threshold, TopK
from attrib.runs import run
from attrib.runs import spec as work
from tests.support.builders import D_MODEL, N_CTX, dictionary, prompt, sae, tiny
from tests.support.root import ROOT
from tests.support.typed import Command

CUTS = ("blocks.1.mlp.hook_in", "blocks.2.mlp.hook_in")
"""Transcoders between the source and the target."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, dictionaries and prompts."""
    folder = tmp_path_factory.mktemp("files")
    tiny("llama").save_pretrained(folder / "model")
    for site in ("blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"):
        sae("topk", site=site).save_model(folder / site)
    for site in CUTS:
        sae("transcoder", site=site).save_model(folder / site)
    sae("standard", d_in=D_MODEL + 8).save_model(folder / "wide")
    sae("standard", site="blocks.9.hook_resid_pre").save_model(folder / "deep")
    lines = [json.dumps({"tokens": prompt(length, seed=length).tolist()}) for length in (5, 1, 7)]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def options(files: Path, out: object, **changed: object) -> list[object]:
    """A whole and valid set of options, but for what is changed; None leaves an option out."""
    usual = {
        "model": files / "model", "source": files / "blocks.1.hook_resid_pre", "target": files / "blocks.3.hook_resid_pre",
        "kind": "latent_to_latent", "prompts": files / "prompts.jsonl", "out": out,
    }  # fmt: skip
    return [part for name, value in (usual | changed).items() if value is not None for part in (f"--{name.replace('_', '-')}", value)]


def test_run_writes_what_the_functions_give(files: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out.h5"
    kinds = ["--kind", "token_to_latent", "--kind", "latent_to_logit", "--top-logits", 3]
    ran = command("run", *options(files, out), *kinds, "--keep", "mass:0.9")
    assert ran.status == 0, ran.err
    assert "3 blocks, 3 prompts" in ran.out
    assert ran.err == "", "no progress bar where the output is not a terminal"
    model = attrib.load_model(files / "model")
    source, target = (attrib.load_dictionary(files / f"blocks.{i}.hook_resid_pre") for i in (1, 3))
    tokens = run.read_prompts(files / "prompts.jsonl")
    keep = attrib.Mass(0.9)
    expected = {
        "latent_to_latent": attrib.latent_to_latent(model, source, target, tokens, keep=keep),
        "token_to_latent": attrib.token_to_latent(model, target, tokens, keep=keep),
        "latent_to_logit": attrib.latent_to_logit(model, source, tokens, keep=keep, logits=attrib.TopLogits(3)),
    }
    with attrib.open(out) as result:
        for kind, want in expected.items():
            got = result.edges(kind)
            torch.testing.assert_close(got.attribution, want.attribution)
            assert torch.equal(got.indices, want.indices)
            assert got.call["policy"] == {"attention": "exact", "norm": "exact", "mlp": "exact"}


def test_run_takes_the_same_from_toml_and_options_win(files: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"tokens": [1, 2, 3]}\n')
    (tmp_path / "run.toml").write_text(
        f"""
        model = "{files / "model"}"
        prompts = "prompts.jsonl"
        out = "{tmp_path / "never.h5"}"
        keep = "topk:2"
        [[attribution]]
        kind = "latent_to_logit"
        source = "{files / "blocks.3.hook_resid_pre"}"
        logit_difference = [4, 5]
        """
    )
    ran = command("run", tmp_path / "run.toml", "--out", tmp_path / "given.h5", "--dtype", "float64")
    assert ran.status == 0, ran.err
    reduced = command(
        "run",
        tmp_path / "run.toml",
        "--out",
        tmp_path / "reduced.h5",
        "--dtype",
        "bfloat16",
        "--precision-rows",
        "1",
        "--method",
        "adjoint",
    )
    assert reduced.status == 0, reduced.err
    with attrib.open(tmp_path / "reduced.h5") as result:
        call = result.edges().call
        assert (call["dtype"], call["method"], call["precision_error"]["rows"]) == ("bfloat16", "adjoint", 1)
    assert not (tmp_path / "never.h5").exists()
    with attrib.open(tmp_path / "given.h5") as result:
        edges = result.edges()
        assert edges.call["dtype"] == "float64"
        assert edges.call["keep"] == "TopK(k=2)"
        assert edges.targets.labels == ("4 - 5",)
        assert len(edges) == 2


def with_cuts(files: Path, effect: str) -> dict[str, attrib.Edges]:
    """What the functions give for each kind, with the transcoders put in."""
    model = attrib.load_model(files / "model")
    source, target = (attrib.load_dictionary(files / f"blocks.{i}.hook_resid_pre") for i in (1, 3))
    put_in = {"cuts": [attrib.load_dictionary(files / site) for site in CUTS], "effect": effect}
    tokens = run.read_prompts(files / "prompts.jsonl")
    return {
        "token_to_latent": attrib.token_to_latent(model, target, tokens, **put_in),
        "latent_to_latent": attrib.latent_to_latent(model, source, target, tokens, **put_in),
        "latent_to_logit": attrib.latent_to_logit(model, source, tokens, **put_in),
    }


def assert_same_with_cuts(out: Path, expected: dict[str, attrib.Edges], effect: str) -> None:
    with attrib.open(out) as result:
        assert [block.kind for block in result.blocks] == [*expected]
        for kind, want in expected.items():
            got = result.edges(kind)
            torch.testing.assert_close(got.attribution, want.attribution)
            assert torch.equal(got.indices, want.indices)
            assert ([cut["site"] for cut in got.call["cuts"]], got.call["effect"]) == ([*CUTS], effect)


def test_a_run_file_puts_in_cuts_for_its_block_alone(files: Path, tmp_path: Path, command: Command) -> None:
    source, target = (files / f"blocks.{i}.hook_resid_pre" for i in (1, 3))
    cuts = [str(files / site) for site in CUTS]
    (tmp_path / "run.toml").write_text(
        f"""
        model = "{files / "model"}"
        prompts = "{files / "prompts.jsonl"}"
        out = "{tmp_path / "out.h5"}"
        keep = "dense"
        [[attribution]]
        kind = "token_to_latent"
        target = "{target}"
        cuts = {cuts}
        effect = "total"
        [[attribution]]
        kind = "latent_to_latent"
        source = "{source}"
        target = "{target}"
        [[attribution]]
        kind = "latent_to_logit"
        source = "{source}"
        cuts = {cuts}
        """
    )
    ran = command("run", tmp_path / "run.toml")
    assert ran.status == 0, ran.err
    total, direct = (with_cuts(files, effect) for effect in ("total", "direct"))
    with attrib.open(tmp_path / "out.h5") as result:
        of = {kind: result.edges(kind) for kind in total}
    assert [(len(edges.call["cuts"]), edges.call["effect"]) for edges in of.values()] == [(2, "total"), (0, "direct"), (2, "direct")]
    torch.testing.assert_close(of["token_to_latent"].attribution, total["token_to_latent"].attribution)
    torch.testing.assert_close(of["latent_to_logit"].attribution, direct["latent_to_logit"].attribution)
    for effect in (total, direct):
        assert not torch.allclose(of["latent_to_latent"].total, effect["latent_to_latent"].total), "this block has no cuts"


@pytest.mark.parametrize("effect", ["direct", "total"])
def test_options_put_in_cuts_for_every_kind(effect: str, files: Path, tmp_path: Path, command: Command) -> None:
    expected = with_cuts(files, effect)
    more = [part for kind in [*expected][1:] for part in ("--kind", kind)]
    more += [part for site in CUTS for part in ("--cut", files / site)]
    ran = command("run", *options(files, tmp_path / "out.h5", kind="token_to_latent", effect=effect, keep="dense"), *more)
    assert ran.status == 0, ran.err
    assert_same_with_cuts(tmp_path / "out.h5", expected, effect)
    shown = command("show", tmp_path / "out.h5").out
    assert shown.count(f"{effect} effects, with cuts at {', '.join(CUTS)}") == len(expected)


def test_a_dictionary_is_loaded_once(files: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(work, "load_dictionary", lambda name: names.append(name) or attrib.load_dictionary(name))
    source, cut = files / "blocks.1.hook_resid_pre", files / CUTS[0]
    given = options(files, tmp_path / "out.h5", cut=source)
    ran = command("run", *given, "--cut", cut, "--kind", "latent_to_logit")
    assert ran.status == 0, ran.err
    assert sorted(names) == sorted(map(str, (source, cut, files / "blocks.3.hook_resid_pre")))


REFUSED = {
    "missing prompts": ({"prompts": "nowhere.txt"}, ["prompts", "nowhere.txt", "does not exist"]),
    "missing model": ({"model": "./nowhere"}, ["model", "nowhere", "does not exist"]),
    "missing dictionary": ({"source": "./nowhere"}, ["dictionary", "nowhere"]),
    "missing cut": ({"cut": "./nowhere"}, ["dictionary", "nowhere"]),
    "a cut outside": ({"cut": "deep"}, ["blocks.9.hook_resid_pre", "layers 0 to 3"]),
    "strange effect": ({"effect": "sideways"}, ["effect", "'direct' or 'total'"]),
    "another width": ({"source": "wide"}, ["source", f"reads vectors of {D_MODEL + 8}", f"has {D_MODEL}"]),
    "site outside": ({"target": "deep"}, ["target", "blocks.9.hook_resid_pre", "layers 0 to 3"]),
    "target first": ({"source": "blocks.3.hook_resid_pre", "target": "blocks.1.hook_resid_pre"}, ["target", "not after", "later target"]),
    "small budget": ({"budget": "1000"}, ["budget", "1,000 bytes", "at least"]),
    "strange budget": ({"budget": "much"}, ["budget"]),
    "strange kind": ({"kind": "latent"}, ["kind", "token_to_latent"]),
    "strange keep": ({"keep": "some"}, ["keep", "'some'", "mass:FRACTION"]),
    "senseless keep": ({"keep": "topk:0"}, ["keep", "TopK(0)", "k >= 1"]),
    "strange policy": ({"policy": "loose"}, ["policy", "exact"]),
    "strange dtype": ({"dtype": "int8"}, ["dtype", "float32"]),
    "strange method": ({"method": "fast"}, ["method", "adjoint"]),
    "too few rows": ({"precision-rows": "-1"}, ["precision_rows", "-1; expected 0 or more"]),
    "another precision of the reference": (
        {"method": "torch.func", "dtype": "bfloat16"},
        ["dtype", "bfloat16 is a precision of the adjoint"],
    ),
    "strange device": ({"device": "abacus"}, ["device", "'abacus'", "cuda"]),
    "no target": ({"target": None}, ["latent_to_latent needs a target"]),
    "no kind": ({"kind": None}, ["kind", "missing"]),
    "no prompts": ({"prompts": None}, ["missing", "--prompts"]),
    "position outside": ({"position": 99}, ["positions", "99"]),
    "out in no folder": ({"out": "nowhere/out.h5"}, ["out", "does not exist"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_run_refuses_before_computing(name: str, files: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, words = REFUSED[name]
    here = {key: files / value if isinstance(value, str) and (files / value).is_dir() else value for key, value in changed.items()}
    monkeypatch.setattr(attrib.attribution.loop, "path_of", lambda *_, **__: pytest.fail("computed before refusing"))
    monkeypatch.chdir(tmp_path)
    ran = command("run", *options(files, **{"out": tmp_path / "out.h5"} | here))
    assert ran.status == 1
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1, "one line"
    for word in words:
        assert word in ran.err, ran.err
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


def test_a_cut_of_a_later_block_is_refused_before_computing(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attrib.attribution.loop, "path_of", lambda *_, **__: pytest.fail("computed before refusing"))
    good = {"kind": "latent_to_logit", "source": str(files / "blocks.1.hook_resid_pre")}
    table = {"model": str(files / "model"), "prompts": files / "prompts.jsonl", "out": tmp_path / "out.h5"}
    bad = run.run_file(table | {"attribution": [good, good | {"cuts": [str(files / "deep")]}]})
    with pytest.raises(InputError, match=r"blocks\.9\.hook_resid_pre"):
        run.execute(bad)


def test_two_attributions_between_the_same_places_are_refused_before_computing(files: Path, tmp_path: Path) -> None:
    """Direct and total effects of one pair, say: a file has one block for both."""
    block = {"kind": "latent_to_logit", "source": str(files / "blocks.1.hook_resid_pre")}
    table = {"model": str(files / "model"), "prompts": files / "prompts.jsonl", "out": tmp_path / "out.h5"}
    with pytest.raises(InputError, match=r"attribution\[1\]: latent_to_logit between the same places as attribution\[0\]"):
        run.execute(run.run_file(table | {"attribution": [block, block | {"top_logits": 3}]}))
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.few
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "", ["p.txt is empty"]),
        ("p.txt", "one\n\nthree\n", ["line 2 is an empty prompt"]),
        ("p.txt", "one\n   \n", ["line 2 is an empty prompt"]),
        ("p.jsonl", '{"tokens": []}\n', ["line 1 is an empty prompt"]),
        ("p.jsonl", '"fine"\n{"tokens": [1, "a"]}\n', ["line 2", "expected a string"]),
        ("p.jsonl", '{"tokens": [1]}\nnot json\n', ["line 2 is not JSON"]),
        ("p.jsonl", '{"tokens": [1, 2, 100000]}\n', ["prompt 0", "vocabulary"]),
        ("p.jsonl", json.dumps({"tokens": [1] * (N_CTX + 1)}), [f"prompt 0 has {N_CTX + 1} tokens", f"1 to {N_CTX}"]),
        ("p.txt", "words\n", ["no tokenizer", "give token ids"]),
    ],
)
def test_bad_prompts_are_named(name: str, text: str, words: list[str], files: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / name).write_text(text)
    ran = command("run", *options(files, tmp_path / "out.h5", prompts=tmp_path / name))
    assert ran.status == 1
    for word in words:
        assert word in ran.err, ran.err
    assert not (tmp_path / "out.h5").exists()


def test_prompts_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match=r"p\.txt, line 1 is not UTF-8: invalid start byte at byte 0"):
        run.read_prompts(tmp_path / "p.txt")


def test_an_output_that_exists_is_kept_unless_told(files: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out.h5"
    out.write_text("precious")
    ran = command("run", *options(files, out))
    assert ran.status == 1
    assert "--overwrite" in ran.err
    assert out.read_text() == "precious"
    assert command("run", *options(files, out), "--overwrite").status == 0
    with attrib.open(out) as result:
        assert len(result.prompts) == 3


def test_an_unknown_option_or_key_is_refused(files: Path, tmp_path: Path, command: Command) -> None:
    ran = command("run", *options(files, tmp_path / "out.h5"), "--quickly")
    assert ran.status == 2
    assert "quickly" in ran.err
    (tmp_path / "run.toml").write_text('quickly = true\n[[attribution]]\nkind = "latent_to_latent"\nspeed = 3\n')
    ran = command("run", tmp_path / "run.toml", *options(files, tmp_path / "out.h5", source=None, target=None, kind=None))
    assert ran.status == 1
    assert "quickly" in ran.err


@pytest.mark.parametrize(("text", "words"), [("model = ", "is not TOML"), (None, "does not exist")])
def test_a_bad_run_file(text: str | None, words: str, tmp_path: Path, command: Command) -> None:
    if text is not None:
        (tmp_path / "run.toml").write_text(text)
    ran = command("run", tmp_path / "run.toml")
    assert ran.status == 1
    assert words in ran.err


def test_debug_gives_the_traceback(tmp_path: Path, command: Command) -> None:
    with pytest.raises(InputError, match="does not exist"):
        command("run", "--debug", tmp_path / "nowhere.toml")


def test_keep_rules_as_text() -> None:
    assert [parse_keep(text) for text in ("dense", "topk:3", "threshold:0.5", "mass:0.9")] == [
        Dense(),
        TopK(3),
        Threshold(0.5),
        Mass(0.9),
    ]


@pytest.mark.parametrize("name", RULES)
def test_every_keep_rule_is_told(name: str, command: Command) -> None:
    assert hasattr(attrib, name)
    assert f"`{name}`" in re.findall(r"^\| \*\*keep\*\* .*$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)[0]
    assert re.search(rf"`{name}\(", (ROOT / "README.md").read_text())
    told = next(option.help for option in typer.main.get_command(cli.app).commands["run"].params if option.name == "keep")
    assert re.search(rf"\b{name.lower()}\b", told), told


# ------------------------------------------------------------------------------------------------ show


@pytest.fixture(scope="module")
def shown_file(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two kinds."""
    model = attrib.load_model(files / "model")
    source, target = (attrib.load_dictionary(files / f"blocks.{i}.hook_resid_pre") for i in (1, 3))
    tokens = run.read_prompts(files / "prompts.jsonl")
    blocks = [
        attrib.latent_to_latent(model, source, target, tokens),
        attrib.latent_to_logit(model, source, tokens, logits=attrib.TopLogits(2)),
    ]
    return attrib.save(tmp_path_factory.mktemp("shown") / "out.h5", blocks)


def test_show_prints_the_strongest_edges(shown_file: Path, command: Command) -> None:
    ran = command("show", shown_file, "--top", 2, "--prompt", 2)
    assert ran.status == 0, ran.err
    assert "latent_to_latent: blocks.1.hook_resid_pre → blocks.3.hook_resid_pre" in ran.out
    with attrib.open(shown_file) as result:
        one = result.edges("latent_to_latent").prompt(2)
    order = one.attribution.abs().argsort(descending=True)
    assert f"{float(one.attribution[order[0]]):+.4g}" in ran.out
    apart = order[one.sources.position[one.indices[order]] != one.targets.position[one.row[order]]]
    after = ran.out.split("the strongest between different tokens")[1]
    assert f"{float(one.attribution[apart[0]]):+.4g}" in after
    pairs = sum(int(s <= t) for s in one.sources.position for t in one.targets.position)
    assert f"│ {pairs:,} │ {len(one):,} │ {len(one) / pairs:.2%} │" in re.sub(" +", " ", ran.out)
    assert f"{float(one.l1.sum()):.1f}" in ran.out
    assert re.search(r"p = 0\.\d{3}", ran.out), "logits are shown with their probability"
    sums = torch.zeros(len(one.prompts.ids)).double().index_add(0, one.sources.position[one.indices], one.attribution.abs().double())
    most = int(sums.argmax())
    assert f"from each token\nthe largest: {float(sums[most]):.4g} at {one.prompts.strings[most]!r} ({most})\n" in ran.out
    heights = ["▁▂▃▄▅▆▇█"[math.ceil(float(8 * size / sums[most])) - 1] for size in sums]
    bars = "".join(height * len(string) for height, string in zip(heights, one.prompts.strings, strict=True))
    assert f"\n{''.join(one.prompts.strings)}\n{bars}\n" in ran.out


def test_show_leaves_out_early_positions(shown_file: Path, command: Command) -> None:
    ran = command("show", shown_file, "--prompt", 2, "--first-position", 3, "--top", 1000, "--kind", "latent_to_latent")
    positions = [int(number) for number in re.findall(r"' \((\d+)\)", ran.out)]
    assert min(positions) == 3
    assert "from position 3 on" in ran.out


def test_show_of_what_no_position_and_no_latent_is_so_large_as(shown_file: Path, command: Command) -> None:
    ran = command("show", shown_file, "--prompt", 2, "--first-position", 10**20, "--kind", "latent_to_latent")
    assert (ran.status, ran.err) == (0, "")
    assert f"from position {10**20} on" in ran.out
    assert not re.findall(r"' \((\d+)\)", ran.out)
    assert f"latent: {10**20}; the dictionaries of this file" in command("show", shown_file, "--latent", 10**20).err


@pytest.mark.parametrize("arguments", [("show", "--help"), ("show",), ("show", "x", "--top", "0")])
def test_help_and_usage_errors_are_plain_where_that_is_asked(
    arguments: tuple[str, ...], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.FORCE_TERMINAL", True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    ran = command(*arguments)
    assert "\x1b[" in ran.out + ran.err
    monkeypatch.setenv("NO_COLOR", "1")
    ran = command(*arguments)
    assert "show" in ran.out + ran.err
    assert "\x1b" not in ran.out + ran.err


def test_show_chooses_kinds_and_prompts(shown_file: Path, command: Command) -> None:
    ran = command("show", shown_file, "--kind", "latent_to_logit", "--all")
    assert "latent_to_latent" not in ran.out
    assert all(f"prompt {number}:" in ran.out for number in range(3))
    assert "prompt: 3 is not in" in command("show", shown_file, "--prompt", 3).err
    assert "no block of token_to_latent" in command("show", shown_file, "--kind", "token_to_latent").err


def test_show_of_something_else(tmp_path: Path, command: Command) -> None:
    (tmp_path / "x.h5").write_text("not HDF5")
    ran = command("show", tmp_path / "x.h5")
    assert (ran.status, ran.err[:7]) == (1, "error: ")
    assert command("show", tmp_path / "none.h5").status == 1


def test_brackets_in_tokens_are_not_markup(files: Path, tmp_path: Path, command: Command) -> None:
    model = attrib.load_model(files / "model")
    edges = attrib.latent_to_logit(model, dictionary("topk"), torch.tensor([1, 2]), logits=attrib.TopLogits(1))
    strings = ("[bold]", "[/x]")
    edges = attrib.core.edges.replace(edges, prompts=attrib.core.edges.replace(edges.prompts, strings=strings))
    attrib.save(tmp_path / "out.h5", edges)
    ran = command("show", tmp_path / "out.h5")
    assert ran.status == 0, ran.err
    assert "[bold][/x]" in ran.out


# ---------------------------------------------------------------------------------------- fetch and info


def test_fetch_of_an_unknown_name(command: Command) -> None:
    ran = command("fetch", "gpt5")
    assert ran.status == 1
    assert "'gpt5' cannot be fetched; expected smollm2-135m" in ran.err


def test_info_names_what_there_is(command: Command) -> None:
    ran = command("info")
    assert ran.status == 0
    for word in ("smollm2-135m", "cpu", "torch", "sae-lens"):
        assert word in ran.out
    flat = " ".join(ran.out.replace("│", " ").split())
    for word in (*FAMILIES, *(kind.name for kind in KINDS if kind.rule), "temporal (refused:"):
        assert word in flat
