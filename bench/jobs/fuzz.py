"""Coverage-guided fuzzing of everything that reads files from elsewhere, by atheris (pip install atheris).

    python -m bench.jobs.fuzz TARGET --seconds N        TARGET is one of TARGETS, or `all`

A target is given bytes, lays them where its reader looks, and reads all that it finds. Only attrib's own errors
may come out, within MEMORY. What breaks that is written to bench/results/fuzz-TARGET-…, and read again by
`python -m bench.jobs.fuzz TARGET --again FILE`. Seeds are made here; `tests/data/v1.h5` is one.

libFuzzer does not come back from a run, so each target runs in a process of its own, with its corpus in memory.
"""

import gzip
import importlib
import io
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

RESULTS = Path(__file__).parent.parent / "results"
V1 = Path(__file__).parent.parent.parent / "tests" / "data" / "v1.h5"
MEMORY = 2048
"""MiB of the whole process, of which torch and HDF5 take some 600 before a byte is read."""
SLOWEST = 20
"""Seconds for one input."""

Read = Callable[[Path], object]


class Target(NamedTuple):
    """A reader: the file that it is given, what lies beside it, and bytes to begin with."""

    read: Read
    """Reads all of what lies at a path."""
    file: str
    """Where the bytes are laid, in a folder of their own."""
    seeds: Callable[[], list[bytes]]
    beside: Callable[[Path], object] = lambda folder: None
    """Writes the files that stay as they are."""


# ---------------------------------------------------------------------------------------------- HDF5


def _store(path: Path) -> None:
    import attrib

    with attrib.open(path) as result:
        for block in result.blocks:
            result.edges(*block).top(5)


def _statistics(path: Path) -> None:
    from attrib import stats

    opened = stats.open(path)
    for part in opened.parts:
        part.top(part.parents(0), 5, "l1")
    stats.merge(opened)


def _statistics_seeds() -> list[bytes]:
    import attrib
    from attrib import stats

    with attrib.open(V1) as result, tempfile.TemporaryDirectory() as folder:
        edges = [result.edges(*block) for block in result.blocks]
        return [stats.save(Path(folder) / f"{i}.h5", stats.of(one, memory=1 << 16)).read_bytes() for i, one in enumerate(edges)]


# --------------------------------------------------------------------------------------------- prompts


def _prompts(path: Path) -> None:
    from attrib.runs.prompts import read

    for found in read(path):
        assert (found.prompt is None) == bool(found.fault), found


LINES = b'first\n"caf\\u00e9"\n{"text": "a"}\n{"tokens": [1, 2, 3]}\n\xff\n[1, -2]\n{"prompt": null}\n1e999\n"\\ud800"\n[[[[]]]]\r\n'


def _parquet_seeds() -> list[bytes]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    made = []
    for column in (
        pyarrow.array(["a", None, "b"]),
        pyarrow.array([b"a", b"\xff"]),
        pyarrow.array([[1, 2], [], None], pyarrow.list_(pyarrow.int32())),
    ):
        for compression in ("none", "snappy"):
            out = io.BytesIO()
            parquet.write_table(pyarrow.table({"text": column}), out, compression=compression)
            made.append(out.getvalue())
    return made


# ---------------------------------------------------------------------------------------------- configs

JOB = b"""model = "model"
prompts = "prompts.jsonl"
keep = "mass:0.9"
budget = "1GiB"
positions = [-1]
[shards]
prompts = 2
[[attribution]]
kind = "latent_to_logit"
source = "smollm2-135m/blocks.6.hook_resid_pre"
logit_tokens = [1, " a"]
"""


def _toml(path: Path) -> None:
    from attrib.core.types import AttribError
    from attrib.jobs.config import confined, job_file
    from attrib.runs.run import run_file
    from attrib.runs.spec import toml_table

    table = toml_table(path)
    for check in (job_file, run_file):
        try:
            check(dict(table))
        except AttribError:
            continue
    job = job_file(table)
    json.dumps(job.model_dump(mode="json"))
    for name in (job.model, *job.dictionaries, *job.prompts.source):
        confined("name", name, path.parent, [])


# ----------------------------------------------------------------------------------------- dictionaries

D_IN, D_SAE = 4, 6


def _dictionary(path: Path) -> None:
    import attrib

    folder = path.parent
    layer = 0 if (folder / "config.yaml").is_file() else None
    for lazy in (False, True):
        if not (lazy and path.suffix == ".npz"):
            attrib.load_dictionary(folder, layer=layer, lazy=lazy).fingerprint.encode()


def _file(path: Path) -> None:
    import attrib

    attrib.load_dictionary(path).fingerprint.encode()


def _tensors(shapes: dict[str, tuple[int, ...]]) -> bytes:
    import torch
    from safetensors.torch import save

    return save({name: torch.ones(shape) for name, shape in shapes.items()})


SAE_LENS = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
SPARSIFY = {"encoder.weight": (D_SAE, D_IN), "encoder.bias": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
TRACED = {"W_enc": (D_SAE, D_IN), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
SCOPE = SAE_LENS | {"threshold": (D_SAE,)}
CONFIGS = {
    "sae-lens": {
        "architecture": "standard", "normalize_activations": "none", "apply_b_dec_to_input": True,
        "metadata": {"hook_name": "blocks.1.hook_resid_pre", "model_name": "tiny"},
    },
    "sae-lens 5": {
        "architecture": "standard", "hook_name": "blocks.1.hook_resid_pre",
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2},
    },
    "sparsify": {"activation": "topk", "k": 2, "d_in": D_IN, "num_latents": D_SAE, "transcode": False, "skip_connection": False},
}  # fmt: skip
YAML = b"model_kind: transcoder_set\nmodel_name: tiny\nfeature_input_hook: ln2.hook_normalized\nfeature_output_hook: hook_mlp_out\n"


def _npz(compressed: bool) -> bytes:
    import numpy as np

    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **{key: np.ones(shape, np.float32) for key, shape in SCOPE.items()})  # type: ignore[arg-type]
    return out.getvalue()


def _json(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(CONFIGS[name]).encode() for name in names]


def _weights(shapes: dict[str, tuple[int, ...]]) -> Callable[[], list[bytes]]:
    return lambda: [_tensors(shapes)]


def _beside(file: str, made: Callable[[], list[bytes]]) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(made()[0])


SCOPED = "gemma-scope-2b-pt-res/layer_3"


# ----------------------------------------------------------------------------------------------- models


def _model(path: Path) -> None:
    import attrib

    attrib.load_model(path.parent).fingerprint.encode()


def _saved_model(folder: Path) -> None:
    """config.json, model.safetensors and tokenizer.json of a small Llama."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=10, max_position_embeddings=16, **sizes)).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<s>": 0} | {f"word{i}": i for i in range(1, 10)}, unk_token="<s>"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(folder)


def _of_model(file: str) -> Callable[[], list[bytes]]:
    def made() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            _saved_model(Path(folder))
            return [(Path(folder) / file).read_bytes()]

    return made


def _pickles() -> list[bytes]:
    """A transcoder of transcoder_circuits in the three forms of its files."""
    import pickle

    import torch

    hooks = {"hook_point": "blocks.3.ln2.hook_normalized", "out_hook_point": "blocks.3.hook_mlp_out", "is_transcoder": True}
    shapes = {"W_enc": (6, 8), "W_dec": (8, 5), "b_enc": (8,), "b_dec": (6,), "b_dec_out": (5,)}
    value = {"cfg": hooks | {"dtype": torch.float32}, "state_dict": {name: torch.ones(shape) for name, shape in shapes.items()}}
    made = [pickle.dumps(value), gzip.compress(pickle.dumps(value))]
    for zipped in (True, False):
        out = io.BytesIO()
        torch.save(value, out, _use_new_zipfile_serialization=zipped)
        made.append(out.getvalue())
    return made


TARGETS: dict[str, Target] = {
    "store": Target(_store, "a.h5", lambda: [V1.read_bytes()]),
    "statistics": Target(_statistics, "a.h5", _statistics_seeds),
    "text": Target(_prompts, "a.txt", lambda: [LINES]),
    "jsonl": Target(_prompts, "a.jsonl", lambda: [LINES]),
    "gzip": Target(_prompts, "a.jsonl.gz", lambda: [gzip.compress(LINES)]),
    "parquet": Target(_prompts, "a.parquet", _parquet_seeds),
    "toml": Target(_toml, "a.toml", lambda: [JOB]),
    "cfg": Target(_dictionary, "d/cfg.json", _json("sae-lens", "sae-lens 5"), _beside("d/sae_weights.safetensors", _weights(SAE_LENS))),
    "sparsify": Target(_dictionary, "layers.5/cfg.json", _json("sparsify"), _beside("layers.5/sae.safetensors", _weights(SPARSIFY))),
    "safetensors": Target(_dictionary, "d/sae_weights.safetensors", _weights(SAE_LENS), _beside("d/cfg.json", _json("sae-lens"))),
    "yaml": Target(_dictionary, "d/config.yaml", lambda: [YAML], _beside("d/layer_0.safetensors", _weights(TRACED))),
    **{
        name: Target(_model, f"model/{file}", _of_model(file), lambda folder: _saved_model(folder / "model"))
        for name, file in (("model", "config.json"), ("weights", "model.safetensors"), ("tokenizer", "tokenizer.json"))
    },
    "pickles": Target(_file, "a.pt", _pickles),
    "npz": Target(_dictionary, f"{SCOPED}/params.npz", lambda: [_npz(False), _npz(True)]),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- runs


class Ran(NamedTuple):
    """What a run came to."""

    executions: int
    seconds: float
    fault: str
    """What came out that should not; empty where nothing did."""


def fuzz(name: str, seconds: int) -> Ran:
    """Fuzz one target, in a process of its own."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "bench.jobs.fuzz", name, "--inside", str(seconds)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    counts = re.findall(r"^#(\d+)", ran.stderr, re.M) + re.findall(r"number_of_executed_units: (\d+)", ran.stderr)
    done = re.findall(r"Done (\d+) (?:runs )?in", ran.stderr)
    fault = "" if ran.returncode == 0 else f"status {ran.returncode}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    return Ran(max(map(int, counts + done), default=0), time.monotonic() - begun, fault)


def _inside(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    assert "attrib" not in sys.modules, "what is imported already is not instrumented"
    with atheris.instrument_imports(include=["attrib"]):  # of all modules: later, when they are used, is too late
        import attrib

        for module in pkgutil.walk_packages(attrib.__path__, "attrib."):
            importlib.import_module(module.name)

    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder, corpus = Path(temporary) / "in", Path(temporary) / "corpus"
        path = folder / target.file
        path.parent.mkdir(parents=True)
        corpus.mkdir()
        target.beside(folder)
        seeds = target.seeds()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
            path.write_bytes(seed)
            target.read(path)  # a seed that is refused would teach nothing
        RESULTS.mkdir(exist_ok=True)
        longest = max(4096, 2 * max(map(len, seeds)))
        limits = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY}", f"-timeout={SLOWEST}", f"-max_len={longest}"]
        kept = f"-artifact_prefix={RESULTS}/fuzz-{name}-"
        atheris.Setup(
            [sys.argv[0], *limits, kept, "-print_final_stats=1", "-close_fd_mask=0", str(corpus)], lambda data: _one(target, path, data)
        )
        atheris.Fuzz()


def _one(target: Target, path: Path, data: bytes) -> None:
    from attrib.core.types import AttribError  # when all of attrib has been imported, by the one who counts its branches

    path.write_bytes(data)
    try:
        target.read(path)
    except AttribError:
        return


def main(
    target: Annotated[str, typer.Argument(help=f"{', '.join(TARGETS)}, or all")],
    seconds: Annotated[int, typer.Option(min=1, help="For each target")] = 60,
    again: Annotated[Path | None, typer.Option(help="Read this one file, and show what comes out")] = None,
    inside: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Fuzz a reader, or all."""
    if target != "all" and target not in TARGETS:
        raise typer.BadParameter(f"{target!r}; expected {', '.join(TARGETS)} or all.", param_hint="TARGET")
    if inside is not None:
        _inside(target, inside)
    if again is not None:
        one = TARGETS[target]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / one.file
            path.parent.mkdir(parents=True)
            one.beside(Path(folder))
            shutil.copy(again, path)
            one.read(path)
        return
    failed = False
    for name in TARGETS if target == "all" else [target]:
        ran = fuzz(name, seconds)
        print(f"{name:12} {ran.executions:10,} inputs in {ran.seconds:.0f} s: {'nothing found' if not ran.fault else 'FOUND'}", flush=True)
        if ran.fault:
            print(ran.fault, flush=True)
            failed = True
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
