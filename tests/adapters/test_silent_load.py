"""Options of loading do what they say or are refused, numbers that are none are found, and no other library's bar is drawn."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib import FormatError, InputError
from attrib.adapters.models import smollm2
from tests.support import builders, hooked

DEVICES = {
    "cuda:3": r"device: 'cuda:3' is not on this machine, which has \d CUDA devices",
    "mps": "device: 'mps'; attrib computes on cpu, cuda or cuda:N",
    "xpu": "device: 'xpu'; attrib computes on",
    "meta": "device: 'meta'; attrib computes on",
    "cpu:1": "device: 'cpu:1'; there is one cpu",
    "gpu": "device: 'gpu' is not a device; expected cpu, cuda or cuda:N",
}


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A name of each kind that `load_model` takes, all of tiny models."""
    from transformer_lens import HookedTransformer

    def from_pretrained(name: str, *, device: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        return hooked.hooked("gpt2", dtype).to(device)

    monkeypatch.setattr(HookedTransformer, "from_pretrained", from_pretrained)
    monkeypatch.setattr(smollm2, "load", lambda: builders.build("llama"))
    builders.tiny("llama").save_pretrained(tmp_path / "tiny")
    return {"smollm2": "smollm2-135m", "folder": tmp_path / "tiny", "TransformerLens": "pythia-70m"}


@pytest.mark.few
@pytest.mark.parametrize("kind", ["smollm2", "folder", "TransformerLens"])
def test_options_do_what_they_say(kind: str, names: dict[str, Any]):
    name = names[kind]
    for dtype in ("bfloat16", torch.bfloat16, "torch.bfloat16"):
        assert attrib.load_model(name, dtype=dtype).dtype == torch.bfloat16
    for device in ("cpu", torch.device("cpu"), "cpu:0", None):
        assert attrib.load_model(name, device=device).device == torch.device("cpu")
    with pytest.raises(InputError, match="dtype: 'int8'; expected one of float64, float32, float16, bfloat16"):
        attrib.load_model(name, dtype="int8")
    with pytest.raises(InputError, match=DEVICES["cuda:3"]):
        attrib.load_model(name, device="cuda:3", dtype="bfloat16", nonsense=1)
    with pytest.raises(InputError, match=r"^nonsense: (is )?no option of load_model"):
        attrib.load_model(name, nonsense=1)
    if kind != "TransformerLens":
        with pytest.raises(InputError, match=r"^fold_ln: is an option of TransformerLens names, and .* takes device and dtype alone"):
            attrib.load_model(name, fold_ln=False)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_device_that_is_not_there_is_one_error_everywhere(device: Any):
    for part in (builders.build("gpt2"), builders.dictionary("standard")):
        with pytest.raises(InputError, match=DEVICES[device]):
            part.to(device=device)


def test_dtypes_by_name():
    for part in (builders.build("gpt2"), builders.dictionary("standard")):
        wide = part.to(dtype="float64")
        assert {leaf.dtype for leaf in torch.utils._pytree.tree_leaves(wide.params)} == {torch.float64}
        with pytest.raises(InputError, match="dtype: 'tf32'; expected one of"):
            part.to(dtype="tf32")


def test_what_is_no_name():
    with pytest.raises(InputError, match=r"model: expected a name or a folder, got int.*as_model"):
        attrib.load_model(3)


# ------------------------------------------------------------------------------------------ numbers that are none


@pytest.mark.few
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_a_number_that_is_none_is_found_when_a_model_is_taken_over(number: float, tmp_path: Path):
    original = builders.tiny("llama")
    original.model.layers[2].mlp.up_proj.weight.data[5, 3] = number
    where = rf"model: blocks\[2\]\.mlp\.W_in\[3, 5\] is {number}, and 1 of its [\d,]+ numbers are not finite"
    with pytest.raises(InputError, match=where):
        attrib.from_hugging_face(original)
    original.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=where):
        attrib.load_model(tmp_path)
    lens = hooked.hooked("gpt2")
    lens.embed.W_E.data[7] = number
    with pytest.raises(InputError, match=rf"model: W_E\[7, 0\] is {number}, and 32 of its"):
        attrib.from_transformer_lens(lens)


def test_numbers_too_large_for_their_sum_are_numbers():
    original = builders.tiny("llama", torch.float16)
    original.model.embed_tokens.weight.data[:] = 60000.0
    assert attrib.from_hugging_face(original).params.W_E[0, 0] == 60000
    wide = builders.tiny("llama")
    wide.model.embed_tokens.weight.data[:] = 3e38
    attrib.from_hugging_face(wide)


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_file_that_is_overwritten_later_changes_nothing(dtype: torch.dtype, tied: bool, tmp_path: Path):
    builders.tiny("llama", dtype, tie_word_embeddings=tied).save_pretrained(tmp_path)
    model = attrib.load_model(tmp_path)
    before, logits = model.fingerprint, attrib.forward(model, builders.prompt(5))
    overwrite(tmp_path / "model.safetensors")
    assert model.fingerprint == before
    assert torch.equal(attrib.forward(model, builders.prompt(5)), logits)
    assert (model.params.W_U.data_ptr() == model.params.W_E.data_ptr()) == tied
    with pytest.raises(attrib.AttribError):
        attrib.load_model(tmp_path)


def test_the_fetched_models_file_that_is_overwritten_later(tmp_path: Path):
    from tokenizers import Tokenizer, models

    original = builders.tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    original.save_pretrained(tmp_path)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    model = smollm2.read(tmp_path)
    before = model.fingerprint
    overwrite(tmp_path / "model.safetensors")
    assert model.fingerprint == before


def overwrite(path: Path) -> None:
    """Other numbers in the same file, as `cp` writes them: no new one."""
    with path.open("r+b") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        file.seek(begin)
        file.write(b"\xff" * (path.stat().st_size - begin))


# ------------------------------------------------------------------------------------------ bars


@pytest.mark.parametrize("shown", [True, False])
def test_no_other_librarys_bar_is_drawn(shown: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    from transformers.utils import logging

    builders.tiny("llama").save_pretrained(tmp_path)
    was = logging.is_progress_bar_enabled()
    try:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        capfd.readouterr()
        attrib.load_model(tmp_path)
        assert "%|" not in "".join(capfd.readouterr())
        assert logging.is_progress_bar_enabled() == shown
    finally:
        (logging.enable_progress_bar if was else logging.disable_progress_bar)()


@pytest.mark.parametrize("device", DEVICES)
def test_the_command_line_says_so_in_one_line(device: str, tmp_path: Path):
    from typer.testing import CliRunner

    from attrib.cli import main as cli

    (tmp_path / "prompts.txt").write_text("a prompt\n")
    given = {"--model": "nowhere", "--target": "nowhere", "--kind": "token_to_latent", "--prompts": "prompts.txt", "--out": "out.h5"}
    paths = {key: str(tmp_path / value) if "." in value else value for key, value in given.items()}
    asked = CliRunner().invoke(cli.app, ["run", "--device", device, *(word for pair in paths.items() for word in pair)])
    assert asked.exit_code != 0
    assert isinstance(asked.exception, SystemExit | InputError)
    said = " ".join((asked.output + str(asked.exception)).split())
    assert re.search(DEVICES[device], said), said
    assert "Traceback" not in said


@pytest.mark.few
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json"])
def test_json_of_a_model_is_of_a_sensible_size(name: str, tmp_path: Path) -> None:
    """In memory some JSON takes thirty times its bytes, and transformers reads all of it."""
    builders.tiny("llama").save_pretrained(tmp_path)
    if "index" in name:
        (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    facts = json.loads((tmp_path / name).read_text()) if (tmp_path / name).exists() else {}
    (tmp_path / name).write_text(json.dumps(facts | {"x": "x" * (1 << 24)}))
    with pytest.raises(FormatError, match=rf"{name} has 16,7[\d,]+ bytes; expected at most"):
        attrib.load_model(str(tmp_path))
