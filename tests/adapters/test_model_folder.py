"""Model folders from anywhere: whatever their files say, they are read, or refused by one error, before much memory is taken."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attrib
from attrib.core.types import AttribError, FormatError, InputError
from tests.support.builders import ALL_FAMILIES, Family, tiny
from tests.support.examples import examples
from tests.support.memory import forget, peak

FUZZ = settings(max_examples=examples(60), deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MORE = 400 << 20
"""Bytes that a refusal may take, of which transformers' modules are most."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of each family."""
    made = {family: tmp_path_factory.mktemp(family) for family in ALL_FAMILIES}
    for family, folder in made.items():
        tiny(family).save_pretrained(folder)
    return made


def changed(folder: Path, into: Path, **fields: Any) -> Path:
    """A copy of a model's folder whose config says something else."""
    shutil.copytree(folder, into, dirs_exist_ok=True)
    (into / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | fields))
    return into


CONTRADICTIONS: dict[str, tuple[Family, dict[str, Any], str]] = {
    "vocabulary": ("llama", {"vocab_size": 10**10}, r"embed_tokens\.weight is \[60, 32\] in the weights of .* \[10000000000, 32\] by"),
    "width": ("llama", {"hidden_size": 64}, r"embed_tokens\.weight is \[60, 32\] in the weights of .*, and \[60, 64\]"),
    "MLP": ("gpt2", {"n_inner": 10**9}, r"mlp\.c_fc\.weight is \[32, 128\] in the weights of .*, and \[32, 1000000000\]"),
    "key heads": ("llama", {"num_key_value_heads": 1}, r"k_proj\.weight is \[20, 32\] in the weights of .*, and \[10, 32\]"),
    "head": ("llama", {"head_dim": 10**9}, r"whose tables have [\d,]+ bytes; beside these weights attrib takes up to"),
    "positions": ("gpt2", {"n_positions": 10**6}, r"wpe\.weight is \[64, 32\] in the weights of .*, and \[1000000, 32\]"),
    "context": ("llama", {"max_position_embeddings": 10**12}, r"says a context of 1,000,000,000,000 tokens, whose tables have"),
    "context of GPT-J": ("gptj", {"n_positions": 10**9}, r"says a context of 1,000,000,000 tokens, whose tables have"),
    "no context": ("llama", {"max_position_embeddings": -5}, r"says a context of -5 tokens; expected at least 1"),
    "more layers": ("llama", {"num_hidden_layers": 900}, r"says 900 layers, and the weights are 39 tensors"),
    "no layers": ("llama", {"num_hidden_layers": -1}, r"says -1 layers"),
    "many layers": ("gemma2", {"num_hidden_layers": 10**9}, r"says 1,000,000,000 in num_hidden_layers; expected at most 10,000"),
    "listed layers": ("gpt_neo", {"attention_types": [[["global"], 10**9]]}, r"says 1,000,000,000 in attention_types"),
    "part of a head": ("gptj", {"rotary_dim": 10**6}, r"rotary_dim=1000000: attrib computes heads of which a stated, even part is rotary"),
    "no scale": ("gemma2", {"query_pre_attn_scalar": 0}, r"config\.json cannot be: "),
    "dtype": ("llama", {"dtype": "int8"}, r"transformers cannot make what .*config\.json says: .*int8"),
    "padding": ("llama", {"pad_token_id": 99}, r"transformers cannot make what .*config\.json says"),
    "negative width": ("llama", {"hidden_size": -4}, r"transformers cannot make what .*config\.json says: .*negative"),
}  # fmt: skip


@pytest.mark.few
@pytest.mark.parametrize(("family", "fields", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_config_that_its_weights_contradict(
    family: Family, fields: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path
):
    attrib.load_model(folders[family])
    forget()
    before = peak()
    with pytest.raises(AttribError, match=message):
        attrib.load_model(changed(folders[family], tmp_path, **fields))
    assert peak() - before < MORE


STRANGE = (
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    7,
    1 << 31,
    10**30,
    0.5,
    -1.0,
    1e-320,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "relu",
    [],
    [1],
    [[]],
    {},
    {"a": {}},
)


@given(data=st.data())
@FUZZ
def test_any_field_may_say_anything(data: st.DataObject, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    family = data.draw(st.sampled_from(ALL_FAMILIES))
    fields = json.loads((folders[family] / CONFIG).read_text())
    key = data.draw(st.sampled_from(sorted(fields)))
    folder = changed(folders[family], tmp_path_factory.mktemp("changed"), **{key: data.draw(st.sampled_from(STRANGE))})
    forget()
    before = peak()
    try:
        attrib.load_model(folder)
    except AttribError as error:
        assert "model" in str(error) or family in str(error) or "architecture" in str(error) or "activation" in str(error)  # noqa: PT017
    assert peak() - before < MORE


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.long
@given(at=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
@FUZZ
def test_weights_with_any_byte_changed(at: float, byte: int, cut: bool, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    folder = changed(folders["gpt2"], tmp_path_factory.mktemp("changed"))
    content = bytearray((folder / WEIGHTS).read_bytes())
    place = int(at**4 * (len(content) - 1))  # most of them in the header
    content[place] = byte
    (folder / WEIGHTS).write_bytes(content[: place if cut else None])
    try:
        attrib.load_model(folder)
    except AttribError as error:
        assert "model" in str(error)  # noqa: PT017


def test_weights_in_several_files(folders: dict[str, Path], tmp_path: Path):
    tiny("llama").save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert attrib.load_model(tmp_path).fingerprint == attrib.load_model(folders["llama"]).fingerprint
    index = json.loads((tmp_path / INDEX).read_text())
    lost = sorted(set(index["weight_map"].values()))[0]
    (tmp_path / lost).rename(tmp_path.parent / "elsewhere.safetensors")
    with pytest.raises(FormatError, match=rf"{lost} is missing or damaged"):
        attrib.load_model(tmp_path)
    for name in ("../elsewhere.safetensors", str(tmp_path.parent / "elsewhere.safetensors"), 3, None):
        moved = {key: name if file == lost else file for key, file in index["weight_map"].items()}
        (tmp_path / INDEX).write_text(json.dumps(index | {"weight_map": moved}))
        with pytest.raises(FormatError, match="has no weight_map of names of files beside it"):
            attrib.load_model(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", "\udcff", "[" * 100_000, "{}", '{"weight_map": []}'])
def test_an_index_that_is_none(content: str, folders: dict[str, Path], tmp_path: Path):
    changed(folders["llama"], tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / INDEX).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(FormatError, match=r"index\.json"):
        attrib.load_model(tmp_path)


def test_without_weights(folders: dict[str, Path], tmp_path: Path):
    changed(folders["llama"], tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(InputError, match="holds no safetensors weights; expected a folder written by transformers' save_pretrained"):
        attrib.load_model(tmp_path)


# ---------------------------------------------------------------------------------------- what lies beside


def test_no_code_of_the_folder_is_run(folders: dict[str, Path], tmp_path: Path):
    """Nor is the user asked whether to run it."""
    evil = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    folder = changed(folders["llama"], tmp_path, auto_map=evil)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": evil}))
    with pytest.raises(FormatError, match="transformers cannot load"):
        attrib.load_model(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "BPE"}}', '{"version": "1.0", "model": {"type": "WordLevel"}}'])
def test_a_tokenizer_that_is_none(content: str, folders: dict[str, Path], tmp_path: Path):
    folder = changed(folders["llama"], tmp_path)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(FormatError, match="transformers cannot load"):
        attrib.load_model(folder)
