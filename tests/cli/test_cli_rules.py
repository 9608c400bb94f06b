"""Rules on the command line and in run files: computed, planned, shown, refused, and made again from what the file says."""

import json
from pathlib import Path

import pytest
import torch

import attrib
from attrib.core.types import InputError
from attrib.jobs.config import job_file
from attrib.runs.rerun import rerun
from tests.support.builders import prompt, sae, tiny
from tests.support.typed import Command

SOURCE, TARGET = "blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"
LENGTHS = (5, 1, 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny("llama").save_pretrained(folder / "model")
    for site in (SOURCE, TARGET):
        sae("topk", site=site).save_model(folder / site)
    for name, first in (("prompts", 0), ("corrupt", 50)):
        lines = [json.dumps({"tokens": prompt(length, seed=first + length).tolist()}) for length in LENGTHS]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def options(files: Path, **changed: object) -> list[object]:
    usual = {
        "model": files / "model", "source": files / SOURCE, "target": files / TARGET, "kind": "latent_to_latent",
        "prompts": files / "prompts.jsonl", "keep": "dense",
    }  # fmt: skip
    return [part for name, value in (usual | changed).items() if value is not None for part in (f"--{name.replace('_', '-')}", value)]


@pytest.mark.few
@pytest.mark.parametrize("rule", ["gradient", "ig:2:corrupt", "patching", "ablation"])
def test_run_show_and_rerun(files: Path, tmp_path: Path, command: Command, rule: str) -> None:
    out, beside = tmp_path / "out.h5", {"corrupt": files / "corrupt.jsonl"} if rule in ("ig:2:corrupt", "patching") else {}
    kinds = ["--kind", "token_to_latent", "--kind", "latent_to_logit", "--top-logits", 3]
    ran = command("run", *options(files, out=out, rule=rule, **beside), *kinds)
    assert ran.status == 0, ran.err
    shown = command("show", out)
    assert shown.status == 0, shown.err
    assert shown.out.count("rule ") == 3
    assert ("gap up to" in shown.out) == (rule != "gradient")
    assert ("change" in shown.out) == (rule != "ablation")
    assert command("verify-file", out).status == 0
    again = rerun(out, 2, places={name: files / name for name in ("model", SOURCE, TARGET)})
    assert len(again) == 3
    assert all(each.is_same for each in again), again


def test_a_run_file_says_the_same(files: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "corrupt.jsonl").write_text((files / "corrupt.jsonl").read_text())
    (tmp_path / "run.toml").write_text(
        f"""
        model = "{files / "model"}"
        prompts = "{files / "prompts.jsonl"}"
        out = "{tmp_path / "out.h5"}"
        keep = "dense"
        rule = "patching"
        corrupt = "corrupt.jsonl"
        [[attribution]]
        kind = "latent_to_logit"
        source = "{files / SOURCE}"
        top_logits = 2
        """
    )
    assert command("run", tmp_path / "run.toml").status == 0
    model, source = attrib.load_model(files / "model"), attrib.load_dictionary(files / SOURCE)
    here, there = ([torch.tensor(json.loads(line)["tokens"]) for line in (files / f"{n}.jsonl").open()] for n in ("prompts", "corrupt"))
    want = attrib.latent_to_logit(model, source, here, logits=attrib.TopLogits(2), rule=attrib.Patching(there))
    with attrib.open(tmp_path / "out.h5") as store:
        found = store.edges()
    torch.testing.assert_close(found.attribution, want.attribution)
    torch.testing.assert_close(found.gap, want.gap)
    assert found.prompts.corrupt.tolist() == torch.cat(there).tolist()


def test_the_error_and_the_bias_as_sources(files: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out.h5"
    kinds = ["--kind", "latent_to_logit", "--top-logits", 1, "--error-source"]
    assert command("run", *options(files, out=out), *kinds).status == 0
    shown = command("show", out, "--top", 60)
    assert shown.status == 0
    assert "error at" in shown.out
    assert command("verify-file", out).status == 0
    again = rerun(out, 0, places={name: files / name for name in ("model", SOURCE, TARGET)})
    assert all(each.is_same for each in again), again
    refused = command("run", *options(files, out=tmp_path / "no.h5", policy="linear"), *kinds, "--bias")
    assert refused.status == 1
    assert "bias: the MLP at blocks.1.hook_mlp_out is on the way" in refused.err
    both = command("run", *options(files, out=tmp_path / "no.h5"), "--error-source", "--no-error")
    assert both.status == 1
    assert "--error-source, --no-error" in both.err


def test_a_plan_says_what_a_rule_costs(files: Path, command: Command) -> None:
    usual, integrated, ablation = (command("plan", *options(files, rule=rule)) for rule in (None, "ig:8", "ablation"))
    assert "rule ig:8: 8 points of each prompt are swept" in integrated.out
    assert "rule ablation: one forward pass for each source" in ablation.out
    model, (source, target) = attrib.load_model(files / "model"), map(attrib.load_dictionary, (files / SOURCE, files / TARGET))
    ids = prompt(9)
    one, many = (attrib.plan(model, source, target, ids, rule=attrib.IntegratedGradients(n)) for n in (4, 8))
    assert 1.5 < many.flops / one.flops <= 2
    assert usual.status == integrated.status == ablation.status == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rule": "ig:0"}, "rule: 'ig:0' is not a rule; expected"),
        ({"rule": "patching"}, "corrupt: missing, and the rule patching compares with other prompts"),
        ({"rule": "ablation", "corrupt": "x"}, "corrupt: no effect on the rule ablation"),
        ({"rule": "ablation", "policy": "linear"}, "rule: ablation computes forward passes"),
        ({"rule": "patching", "corrupt": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"rule": "patching", "corrupt": "x", "corrupt_prompt": "x"}, "corrupt: given beside corrupt_prompt"),
        ({"rule": "patching", "corrupt_prompt": " "}, "corrupt_prompt: number 0 is empty"),
    ],
)
def test_what_is_refused(files: Path, tmp_path: Path, command: Command, changed: dict[str, object], message: str) -> None:
    ran = command("run", *options(files, out=tmp_path / "out.h5", **changed))
    assert ran.status == 1
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out.h5").exists()


def test_corrupt_prompts_of_other_lengths_are_refused(files: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "long.jsonl").write_text("\n".join(json.dumps({"tokens": [1] * n}) for n in (5, 2, 4)))
    ran = command("run", *options(files, out=tmp_path / "out.h5", rule="patching", corrupt=tmp_path / "long.jsonl"))
    assert ran.status == 1
    assert "corrupt prompt 1 has 2 tokens, and the prompt that it goes with 1" in ran.err


def test_a_job_has_no_other_prompts() -> None:
    table = {"model": "model", "prompts": "prompts.jsonl", "rule": "patching"}
    table |= {"attribution": [{"kind": "latent_to_logit", "source": SOURCE}]}
    with pytest.raises(InputError, match=r"prompts\.corrupt: missing, and the rule patching compares each prompt with another"):
        job_file(table)
    assert job_file(table | {"rule": "ig:8"}).model_dump(mode="json")["rule"] == "ig:8"
