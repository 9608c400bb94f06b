"""Several devices by the command line and by a run file: the values of one, work for each, and the names that no machine has refused."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import attrib
from tests.support.builders import prompt, sae
from tests.support.notebooks import transformers_model
from tests.support.pretend import NAME, Device, pretending
from tests.support.tolerances import ROUNDING, assert_close
from tests.support.typed import Command

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")

TEXT = "The tower is in the city of"
SITES = ("blocks.1.mlp.hook_in", "blocks.2.mlp.hook_in")
Options = Callable[[Path, Path], list[object]]
BOTH = [f"{NAME}:0", f"{NAME}:1"]
GIVEN = {"a list": ",".join(BOTH), "spaces": ", ".join(BOTH), "all": "all"}
"""Ways to name two devices on the command line."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, its tokenizer, two transcoders and prompts."""
    folder = tmp_path_factory.mktemp("files")
    model, tokenizer = transformers_model((TEXT,))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for site in SITES:
        sae("transcoder", site=site).save_model(folder / site)
    lines = [json.dumps({"tokens": prompt(length, seed=length).tolist()}) for length in (5, 1, 7)]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@contextmanager
def two() -> Iterator[Device]:
    """Two devices, both of which must have worked."""
    with pretending(count=2) as device:
        yield device
        assert min(device.launched[0], device.launched[1]) > 100, device.launched


def of_run(files: Path, out: Path) -> list[object]:
    first, second = (files / site for site in SITES)
    kinds = ("latent_to_latent", "token_to_latent", "latent_to_logit")
    return [
        "--model", files / "model", "--source", first, "--target", second, "--prompts", files / "prompts.jsonl", "--out", out,
        *(part for kind in kinds for part in ("--kind", kind)), "--top-logits", 3, "--keep", "dense", "--dtype", "float64",
    ]  # fmt: skip


def of_graph(files: Path, out: Path) -> list[object]:
    sites = [part for site in SITES for part in ("-t", files / site)]
    return [TEXT, "-m", files / "model", *sites, "-o", out, "--keep", "dense", "--top-logits", 3, "--dtype", "float64"]


def assert_same_blocks(one: Path, other: Path) -> None:
    with attrib.open(one) as wanted, attrib.open(other) as found:
        assert found.blocks == wanted.blocks
        for block in wanted.blocks:
            want, got = wanted.edges(block.kind), found.edges(block.kind)
            assert torch.equal(got.indices, want.indices), block
            assert_close(got.attribution, want.attribution, ROUNDING, str(block))


def written(what: list[object], of: Options, files: Path, tmp_path: Path, command: Command, *options: object) -> tuple[Path, Path]:
    """What a command writes without a device, and with options that name two."""
    one, other = tmp_path / "one.h5", tmp_path / "two.h5"
    assert command(what[0], *of(files, one)).status == 0
    with two():
        ran = command(*what, *of(files, other), *options)
    assert ran.status == 0, ran.err
    return one, other


@pytest.mark.parametrize("given", GIVEN)
def test_run(given: str, files: Path, tmp_path: Path, command: Command):
    assert_same_blocks(*written(["run"], of_run, files, tmp_path, command, "--device", GIVEN[given]))


@pytest.mark.parametrize("given", [json.dumps(BOTH), json.dumps(",".join(BOTH)), '"all"'], ids=["a list", "one text", "all"])
def test_a_run_file(given: str, files: Path, tmp_path: Path, command: Command):
    (tmp_path / "run.toml").write_text(f"device = {given}\n")
    assert_same_blocks(*written(["run", tmp_path / "run.toml"], of_run, files, tmp_path, command))


@pytest.mark.parametrize("given", GIVEN)
def test_a_graph(given: str, files: Path, tmp_path: Path, command: Command):
    one, other = written(["graph"], of_graph, files, tmp_path, command, "--device", GIVEN[given])
    with attrib.open_graphs(one) as wanted, attrib.open_graphs(other) as found:
        (want,), (got,) = list(wanted), list(found)
        assert torch.equal(got.indices, want.indices)
        assert_close(got.weight, want.weight, ROUNDING, "weight")


REFUSED = {
    "one that is not there": ("cuda:0,cuda:7", "cuda:0"),
    "one twice": (f"{BOTH[0]},{BOTH[0]}", "named twice"),
    "all and another": (f"all,{BOTH[0]}", "'all' stands alone"),
    "a cpu beside": (f"cpu,{BOTH[0]}", "cpu beside others"),
    "nothing after a comma": (f"{BOTH[0]},", "'' is not a device"),
    "nothing": ("", "'' is not a device"),
}


@pytest.mark.parametrize("what", ["run", "graph"])
@pytest.mark.parametrize("given", REFUSED)
def test_what_is_refused(given: str, what: str, files: Path, tmp_path: Path, command: Command):
    """By name, and nothing is written."""
    devices, words = REFUSED[given]
    options = (of_run if what == "run" else of_graph)(files, tmp_path / "out.h5")
    with pretending(count=2):
        ran = command(what, *options, "--device", devices)
    assert ran.status == 1
    assert "device: " in ran.err
    assert words in ran.err, ran.err
    assert not (tmp_path / "out.h5").exists()
