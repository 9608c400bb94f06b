"""Bytes from elsewhere: whatever stands in a file, it is read, or refused by one of attrib's errors, quickly and in little memory."""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import attrib
from attrib.core.types import AttribError, FormatError
from attrib.jobs.config import JobFile, job_file
from attrib.jobs.folder import FAILURES, JOB, PROMPTS, RECORDS, open_job
from attrib.jobs.records import Failure, Record, failures, records, refused, write
from attrib.jobs.status import status
from attrib.runs.prompts import read
from attrib.runs.run import run_file
from attrib.runs.spec import STORED, checked, toml_table
from tests.adapters.test_dictionary_folders import PATH, POINTS, clt, gemma_scope, gemma_scope_2, sparsify, transcoder_set
from tests.support.builders import D_MODEL, sae
from tests.support.examples import examples
from tests.support.job_cases import corpus, make_job

PACKAGE = Path(attrib.__file__).parent
FUZZ = settings(max_examples=examples(60), deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
MORE = 16 << 20
"""Bytes that a reader may allocate beside its file."""
SLOWEST = 10.0
"""Seconds of CPU for one file: by the clock it takes longer where others are at work too."""

Read = Callable[[Path], object]


def survives(reads: Read, path: Path) -> bool:
    """Whether a file is read; else it was refused by one of attrib's errors. Anything else fails, and so does much memory or time."""
    begun = time.process_time()
    tracemalloc.start()
    try:
        reads(path)
    except AttribError:
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MORE, peak
        assert time.process_time() - begun < SLOWEST
    return True


# -------------------------------------------------------------------------------------------- mutations

STRANGE: list[Any] = [
    None, True, 0, -1, 1 << 40, 1 << 70, 10**400, 1.5, 1e308, float("inf"), float("nan"), "", "x" * 300, "9" * 5000, "\x00", "../x",
    "blocks." + "9" * 5000 + ".hook_resid_pre", "layer_" + "9" * 5000, [], [[]], {}, {"a": 1}, [1, "a"],
]  # fmt: skip
"""What a value may become."""


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON value has values."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], by: Any) -> Any:
    if not at:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(copy[at[0]], at[1:], by)
    return copy


def damaged_bytes(data: st.DataObject, whole: bytes, first: int = 1 << 12) -> bytes:
    """Bytes with a few changed among the first, or cut short."""
    if data.draw(st.booleans(), "cut"):
        return whole[: data.draw(st.integers(0, len(whole)), "at")]
    made = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, min(len(made), first) - 1)))
        made[at : at + 1] = data.draw(st.binary(max_size=3))
    return bytes(made)


def damaged_json(data: st.DataObject, whole: bytes) -> bytes:
    """JSON with a value of another kind, or without a key, or with one more; or just other bytes."""
    how = data.draw(st.sampled_from(["value", "value", "less", "more", "bytes", "deep"]))
    value = json.loads(whole)
    if how == "bytes":
        return damaged_bytes(data, whole)
    if how == "deep":
        return b"[" * 50_000
    at = data.draw(st.sampled_from(list(places(value))))
    if how == "value":
        return json.dumps(replaced(value, at, data.draw(st.sampled_from(STRANGE)))).encode()
    holder = value
    for key in at:
        holder = holder[key]
    if not isinstance(holder, dict):
        return damaged_bytes(data, whole)
    keys = [*holder]
    changed = (
        holder | {"strange": 1}
        if how == "more" or not keys
        else {key: holder[key] for key in keys if key != data.draw(st.sampled_from(keys))}
    )
    return json.dumps(replaced(value, at, changed)).encode()


# ---------------------------------------------------------------------------------------------- configs

TABLE: dict[str, Any] = {
    "model": "model", "prompts": {"source": ["a.jsonl"], "limit": 3, "long": "truncate", "split": "train"}, "keep": "mass:0.9",
    "policy": "linear", "dtype": "float32", "precision_rows": 1, "budget": "1GiB", "positions": [-1], "error": True, "threads": 1,
    "shards": {"prompts": 2, "tokens": 100}, "compression": "gzip",
    "attribution": [{"kind": "latent_to_logit", "source": "s", "cuts": ["c"], "effect": "total", "top_logits": 3, "mass": 0.5}],
}  # fmt: skip


@given(data=st.data())
@settings(FUZZ, max_examples=examples(300))
def test_a_job_of_any_values(data: st.DataObject) -> None:
    at = data.draw(st.sampled_from(list(places(TABLE))[1:]))
    changed = replaced(TABLE, at, data.draw(st.sampled_from(STRANGE)))
    try:
        job = job_file(changed)
    except AttribError:
        return
    assert checked(JobFile, json.loads(json.dumps(job.model_dump(mode="json"))), "job", context=STORED) is not None, (
        "what is accepted can be written, and read again"
    )


def test_a_run_of_any_values() -> None:
    table = TABLE | {"out": "out.h5", "prompts": "a.jsonl"}
    table = {key: value for key, value in table.items() if key not in ("threads", "shards")}
    assert run_file(table)
    for at in places(table):
        for value in STRANGE if at else ():
            try:
                run_file(replaced(table, at, value))
            except AttribError:
                continue


TOML = b'model = "m"\nprompts = "p.txt"\nout = "o.h5"\n[[attribution]]\nkind = "latent_to_logit"\nsource = "s"\nx = 2001-01-01T00:00:00Z\n'


@given(data=st.data())
@settings(FUZZ, max_examples=examples(200))
def test_any_bytes_as_toml(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    pieces = st.lists(
        st.sampled_from([b"a.", b"[", b"]", b"{", b"}", b'"', b"'", b"\\u", b"=", b"\n", b"1", b"e9", b"-", b'"""', b"\xff", b"inf"])
    )
    path.write_bytes(damaged_bytes(data, TOML) if data.draw(st.booleans()) else b"".join(data.draw(pieces)))
    survives(lambda at: run_file(toml_table(at)), path)


@pytest.mark.few
@pytest.mark.parametrize(
    "text",
    [
        "a." * 400_000 + "a = 1", "[" + "a." * 400_000 + "a]", "x = {" + '"?" . ' * 100_000 + "a = 1}", "[[a]]\n" * 100_000,
        '"\\"' * 300_000, "a = " + "9" * 10_000, "a = 0x" + "f" * 100_000, "a = " + "[" * 500_000, "a=" + "{a=" * 200_000,
        ("a." * 63 + "b = 1\n") * 4_000,
    ],
    ids=range(10),
)  # fmt: skip
def test_toml_that_takes_long(text: str, tmp_path: Path) -> None:
    """Python's reader takes time in the square of a key's parts; nothing of that kind takes more than seconds."""
    (tmp_path / "a.toml").write_text(text)
    begun = time.process_time()
    with pytest.raises(AttribError):
        run_file(toml_table(tmp_path / "a.toml"))
    assert time.process_time() - begun < SLOWEST


# ------------------------------------------------------------------------------------------ a job's folder


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder with a record and a failure, as a run might leave it."""
    beside = corpus(tmp_path_factory.mktemp("corpus"), (3, 2, 3))
    made = make_job(tmp_path_factory.mktemp("jobs") / "job", beside)
    done, failed = made.shards
    facts = {"sha256": None, "bytes": 0, "prompts": 0, "tokens": 0, "edges": 0, "seconds": 1.0, "seconds_writing": 1.0, "device": "cpu"}
    reasons = [{"number": 0, "reason": "is none"}]
    write(made.folder, made.record(done), Record(shard=done.number, id=done.id, refused=reasons, finished=1.0, **facts))  # type: ignore[arg-type]
    write(made.folder, made.failure(failed), Failure(shard=failed.number, id=failed.id, kind="error", reason="r", attempts=1, finished=1.0))
    return made.folder


def read_all(folder: Path) -> None:
    """Everything that a job's folder is asked."""
    opened = open_job(folder)
    assert opened.config
    for shard in opened.shards:
        opened.prompts(shard)
    records(opened)
    list(failures(opened))
    list(refused(opened))
    status(folder).model_dump_json()


FILES = [JOB, f"{PROMPTS}/shards.jsonl", f"{PROMPTS}/refused.jsonl", f"{RECORDS}/*.json", f"{FAILURES}/*.json"]


@pytest.mark.few
@pytest.mark.parametrize("name", FILES)
def test_any_damage_of_a_jobs_files(name: str, job: Path) -> None:
    (path,) = job.glob(name)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True) if path.suffix == ".jsonl" else [whole]

    @given(data=st.data())
    @settings(FUZZ, max_examples=examples(80))
    def damage(data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(lines) - 1))
        changed = damaged_json(data, lines[number])
        path.write_bytes(b"".join([*lines[:number], changed.rstrip(b"\n") + b"\n", *lines[number + 1 :]]))
        survives(read_all, job)

    try:
        assert survives(read_all, job)
        damage()
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["prompts", "tokens"])
@pytest.mark.parametrize("count", [1e400, True, "2", 1.0, 1 << 70, -1, None])
def test_counts_of_shards_are_whole_numbers(name: str, count: Any, job: Path) -> None:
    path = job / PROMPTS / "shards.jsonl"
    whole = path.read_text()
    entry = json.loads(whole.splitlines()[0]) | {name: count}
    try:
        path.write_text("\n".join([json.dumps(entry), *whole.splitlines()[1:]]))
        with pytest.raises(FormatError, match=rf"not a job of this version, or damaged: {name}: .*; expected .*\. Make it again"):
            open_job(job)
    finally:
        path.write_text(whole)


def test_a_file_that_is_missing(job: Path, tmp_path: Path) -> None:
    for name in [f"{PROMPTS}/{column}.npy" for column in ("ids", "ptr", "number")] + FILES[:3]:
        copy = Path(shutil.copytree(job, tmp_path / name.replace("/", "-")))
        (copy / name).unlink()
        assert not survives(read_all, copy), name


def test_a_failure_that_is_mended_meanwhile(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run removes it between the listing and the reading: whoever looks at the job is told nothing of it."""
    opened = open_job(job)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / f"{shard.name}.json" for shard in opened.shards]))
    assert [failure.shard for failure in failures(opened)] == [1]


# ------------------------------------------------------------------------------------------ dictionaries


class Folder(NamedTuple):
    """A whole folder of a dictionary: what is damaged of it, and how it is read."""

    make: Callable[[Path], Path]
    file: str
    layer: int | None = None
    lazy: bool = True


def of_sae_lens(folder: Path) -> Path:
    sae("topk", D_MODEL, d_sae=16).save_model(folder)
    return folder


def old(folder: Path) -> Path:
    """As sae-lens 5 wrote it."""
    of_sae_lens(folder)
    facts = {
        "hook_name": "blocks.1.hook_resid_pre",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "normalize_activations": "none",
    }
    (folder / "cfg.json").write_text(json.dumps(facts))
    return folder


DICTIONARIES = {
    "sae-lens cfg": Folder(of_sae_lens, "cfg.json"),
    "sae-lens transcoder cfg": Folder(lambda at: (sae("skip_transcoder", D_MODEL, d_sae=16).save_model(at), at)[1], "cfg.json"),
    "sae-lens 5 cfg": Folder(old, "cfg.json"),
    "sae-lens weights": Folder(of_sae_lens, "sae_weights.safetensors"),
    "sparsify cfg": Folder(lambda at: sparsify(at / "layers.5.mlp"), "cfg.json"),
    "sparsify weights": Folder(lambda at: sparsify(at / "layers.5.mlp"), "sae.safetensors"),
    "transcoders config": Folder(transcoder_set, "config.yaml", 1),
    "transcoders weights": Folder(transcoder_set, "layer_1.safetensors", 1),
    "cross-layer weights": Folder(clt, "W_dec_1.safetensors", 1),
    "Gemma Scope": Folder(lambda at: gemma_scope(at / "gemma-scope-2b-pt-res" / PATH), "params.npz", None, False),
    "Gemma Scope 2 config": Folder(lambda at: gemma_scope_2(at, True, **POINTS), "config.json"),
    "Gemma Scope 2 weights": Folder(lambda at: gemma_scope_2(at, True, **POINTS), "params.safetensors"),
}


def load(one: Folder, folder: Path) -> None:
    for lazy in [False, True] if one.lazy else [False]:
        assert attrib.load_dictionary(folder, layer=one.layer, lazy=lazy).fingerprint


@pytest.mark.few
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", DICTIONARIES)
def test_any_damage_of_a_dictionary(name: str, tmp_path: Path) -> None:
    one = DICTIONARIES[name]
    folder = one.make(tmp_path / "made")
    path = folder / one.file
    whole = path.read_bytes()

    def reads(at: Path) -> None:
        load(one, at.parent)

    assert survives(reads, path)

    @given(data=st.data())
    @settings(FUZZ, max_examples=examples(120 if path.suffix == ".json" else 60))
    def damage(data: st.DataObject) -> None:
        path.write_bytes(damaged_json(data, whole) if path.suffix == ".json" else damaged_bytes(data, whole))
        survives(reads, path)

    damage()


NESTED = [*pairwise("abcdefgh")]
YAMLS = {
    "laughs": "a: &a [x, x, x]\n" + "".join(f"{b}: &{b} [{','.join(9 * ['*' + a])}]\n" for a, b in NESTED) + "model_kind: *h\n",
    "merges": "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{','.join(9 * ['*' + a])}]}}\n" for a, b in NESTED),
    "deep": "[" * 50_000, "sequences": "- " * 20_000, "keys": "? " * 20_000,
    "digits": "a: " + "9" * 5000, "date": "a: 2001-99-99", "empty int": "a: !!int ''", "bool": "a: !!bool x",
    "stamp": "a: !!timestamp x", "object": "!!python/object/apply:os.system ['false']", "long": "a: 1\n" * 60_000, "UTF-16": "\ufeffa",
}  # fmt: skip


@pytest.mark.few
@pytest.mark.parametrize("name", YAMLS)
def test_a_hostile_yaml(name: str, tmp_path: Path) -> None:
    folder = transcoder_set(tmp_path)
    (folder / "config.yaml").write_text(YAMLS[name])
    assert not survives(lambda at: attrib.load_dictionary(at, layer=0), folder)


def header_of(shape: str, offsets: str) -> bytes:
    text = f'{{"W_enc":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}'.encode()
    return len(text).to_bytes(8, "little") + text


CLAIMS = {
    "safetensors of 4 TB": header_of("[1000000,1000000]", "[0,4000000000000]"),
    "safetensors of too many numbers": header_of("[4611686018427387904,16]", "[0,64]"),
    "a header of 2^60 bytes": (1 << 60).to_bytes(8, "little") + b"{}",
    "a header of 100 MB": (100_000_000).to_bytes(8, "little") + b"{}",
    "nothing": b"",
    "deep": (50_000).to_bytes(8, "little") + b"[" * 50_000,
}


@pytest.mark.parametrize("name", CLAIMS)
def test_weights_that_claim_more_than_there_is(name: str, tmp_path: Path) -> None:
    folder = of_sae_lens(tmp_path / "d")
    (folder / "sae_weights.safetensors").write_bytes(CLAIMS[name])
    assert not survives(attrib.load_dictionary, folder)


def hostile_npz(path: Path, entries: dict[str, bytes], sizes: dict[str, int] | None = None) -> None:
    """An archive whose directory says other sizes than there are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)
            if sizes and name in sizes:
                archive.filelist[-1].file_size = sizes[name]


def array_header(shape: str, descr: str = "'<f4'", version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


def claiming(path: Path, size: int) -> None:
    """An archive whose directory and headers agree with each other on square matrices of this size, of which nothing is there."""
    shapes = {"W_enc": f"({size}, {size})", "W_dec": f"({size}, {size})"} | dict.fromkeys(("b_enc", "b_dec", "threshold"), f"({size},)")
    entries = {name: array_header(shape) for name, shape in shapes.items()}
    numbers = {name: size**2 if name.startswith("W") else size for name in shapes}
    hostile_npz(path, entries, {name: len(header) + 4 * numbers[name] for name, header in entries.items()})


def test_an_archive_that_claims_more_than_there_is(tmp_path: Path) -> None:
    """Memory is not taken for what it says."""
    folder = gemma_scope(tmp_path / "gemma-scope-2b-pt-res" / PATH)
    for size in (10**6, 16_000):  # the directory of an archive of 32 bits has 4 GB at most
        claiming(folder / "params.npz", size)
        assert not survives(attrib.load_dictionary, folder)
    for data in (
        array_header("(1,)", version=2),
        array_header("(1,)", "'|O'"),
        array_header("(-1,)"),
        array_header("(1e9,)"),
        b"",
        b"\x93NUMPY",
    ):
        hostile_npz(folder / "params.npz", {"W_enc": data})
        assert not survives(attrib.load_dictionary, folder)


CAPPED = """
import resource, sys
from pathlib import Path
import attrib
from attrib.adapters.dictionaries import circuit_tracer, gemma_scope, sae_lens, sparsify
from attrib.core.types import AttribError
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20), size + (256 << 20)))
for folder in sys.argv[1:]:
    try:
        attrib.load_dictionary(folder)
    except AttribError as error:
        print(type(error).__name__)
"""


@pytest.mark.long
def test_claims_are_refused_where_memory_is_short(tmp_path: Path) -> None:
    """What the profiler of Python does not see is not taken either: the address space of this process is closed at 256 MiB more."""
    folders = []
    for number, data in enumerate(CLAIMS.values()):
        folders.append(of_sae_lens(tmp_path / str(number)))
        (folders[-1] / "sae_weights.safetensors").write_bytes(data)
    folders.append(gemma_scope(tmp_path / "gemma-scope-2b-pt-res" / PATH))
    claiming(folders[-1] / "params.npz", 16_000)
    ran = subprocess.run([sys.executable, "-c", CAPPED, *map(str, folders)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.split() == ["FormatError"] * len(folders)


# ----------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("kind", ["parquet", "npy", "zip", "elf"])
def test_files_of_other_kinds_as_prompts(kind: str, tmp_path: Path) -> None:
    data = {
        "parquet": b"PAR1" + os.urandom(300) + b"PAR1",
        "npy": array_header("(3,)"),
        "zip": b"PK\x03\x04" + bytes(100),
        "elf": b"\x7fELF" + bytes(200),
    }
    for name in ("a.txt", "a.jsonl", "a.parquet", "a.txt.gz", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(data[kind])
        survives(lambda at: list(read(at)), tmp_path / name)


# --------------------------------------------------------------------------------------------- no pickles

PICKLES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


READS_TORCH = PACKAGE / "graph" / "files" / "pickles.py"
"""circuit-tracer's graphs are pickles: this module writes them, and has torch read them without running anything of theirs."""


def test_nothing_is_unpickled() -> None:
    """No module reads pickles, and numpy, which would, is told not to wherever it reads; torch reads weights alone, in one module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == READS_TORCH:
            loads = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            called = {ast.unparse(node.func): {each.arg: ast.unparse(each.value) for each in node.keywords} for node in loads}
            assert called["torch.load"]["weights_only"] == "True"
            assert not any(re.search(r"pickle\.loads?$|Unpickler", name) for name in called)
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.partition(".")[0] for alias in node.names} | {(getattr(node, "module", None) or "").partition(".")[0]}
                assert not names & PICKLES, where
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert not re.fullmatch(
                    r"torch\.load|torch\.jit\.load|(np|numpy|pd|pandas)\.read_pickle|yaml\.(unsafe_|full_)?load", called
                ), where
                if called in ("np.load", "numpy.load"):
                    assert options.get("allow_pickle") == "False", where
                assert options.get("trust_remote_code", "False") == "False", where
                assert options.get("weights_only", "True") == "True", where


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_payload_does_not_run(tmp_path: Path, job: Path) -> None:
    ran = tmp_path / "ran"
    payload = pickle.dumps(Payload(ran))
    pickle.loads(payload)
    assert ran.exists(), "it would"
    ran.unlink()
    objects = np.array([Payload(ran)] * 3, object)
    folder = gemma_scope(tmp_path / "gemma-scope-2b-pt-res" / PATH)
    for data in (array_header("(3,)", "'|O'") + payload, payload):
        hostile_npz(folder / "params.npz", {"W_enc": data})
        assert not survives(attrib.load_dictionary, folder)
    (folder / "params.npz").write_bytes(payload)
    assert not survives(attrib.load_dictionary, folder)
    copy = Path(shutil.copytree(job, tmp_path / "job"))
    for name in ("ids", "ptr", "number"):
        np.save(copy / PROMPTS / f"{name}.npy", objects, allow_pickle=True)
        assert not survives(read_all, copy)
        (copy / PROMPTS / f"{name}.npy").write_bytes(payload)
        assert not survives(read_all, copy)
    weights = of_sae_lens(tmp_path / "d")
    (weights / "sae_weights.safetensors").write_bytes(payload)
    assert not survives(attrib.load_dictionary, weights)
    assert not ran.exists()
