"""The kernels as they are compiled for GPUs that are not there: the table that is kept, and what a launch is compiled for."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.kernel_device import DEVICE
from tests.support.root import ROOT

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from attrib_kernels.attention_adjoint import AttentionCotangents, attention_adjoint, attention_tangent
from attrib_kernels.impl import check_precision

from attrib.engine.blocks import kernels as door
from attrib.engine.precision import Precision, products
from bench.kernels import compiled, roofline
from tests.support.builders import normal

TABLES = sorted(compiled.RESULTS.glob("kernels-triton-*.tsv"))
QUICK = "key-frozen bfloat16 16-bit d64 g1 T128"
"""What the test compiles again, for each target in about a second."""
EVERY_TABLE = pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def launched() -> list[str]:
    """The names of all launches; nothing is compiled."""
    return [f"sm_{target} {name}" for target in compiled.TARGETS for name, *_ in compiled.launches(target)]


def test_one_table_has_every_launch_and_none_has_another(launched: list[str]):
    """Of a new Triton, the entries that matter can come first."""
    names = {path.stem: set(compiled.read(path)) for path in TABLES}
    assert set(launched) in names.values()
    assert not {table: found - set(launched) for table, found in names.items() if found - set(launched)}
    assert not [name for name in launched if name.endswith(" descriptors") and not name.startswith("sm_90")]
    assert all({f"sm_{target} {QUICK}" for target in compiled.TARGETS} <= found for found in names.values())


@EVERY_TABLE
def test_no_kernel_spills_at_the_usual_sizes_of_heads(table: Path):
    entries = compiled.read(table).values()
    held = (" d64 ", " d128 ", " read-out ")
    assert not {entry.name: entry.stack for entry in entries if entry.stack and any(part in entry.name for part in held)}
    assert all(0 < entry.registers <= 255 and entry.shared <= compiled.SHARED[int(entry.name[3:5])] for entry in entries)


@EVERY_TABLE
def test_tensor_cores_multiply_and_loads_are_under_way_meanwhile(table: Path):
    entries = compiled.read(table)
    for name, entry in entries.items():
        if " ieee " in name or "compact" in name:
            assert entry.wgmma == entry.mma == 0, name
        else:
            assert entry.wgmma or entry.mma, name
            assert not entry.wgmma or name.startswith("sm_90"), name
        if " d64 " in name and "T128" in name and " ieee " not in name:
            assert entry.stages >= 2, name
            assert entry.loads or entry.tma, name
            assert entry.mma == 0 or name.startswith("sm_80"), name  # 64 rows of a tile are what Hopper's take


@EVERY_TABLE
def test_by_descriptors_tiles_come_whole_and_no_kernel_spills(table: Path):
    entries = compiled.read(table)
    described = {name for name in entries if name.endswith(" descriptors")}
    assert described
    for name, entry in entries.items():
        assert (entry.tma > 0) is (name in described), name
        if name in described:
            assert entry.stack == 0, name
            pointers = entries[name.removesuffix(" descriptors")]
            assert entry.loads < pointers.loads or not pointers.loads, name
            assert " d64 g" not in name or "T32" in name or entry.registers <= pointers.registers, name


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a Python says that interprets nothing: which entries it compiled, and what each call would be compiled for."""
    program = f"""
import json, sys
import attrib_kernels.attention_adjoint, attrib_kernels.mlp_pointwise
assert "triton" not in sys.modules, "the kernels import triton before one of them is asked for"
import torch
from bench.kernels import compiled
entries = list(compiled.compiled(pattern="sm_?? {QUICK}"))

from attrib_kernels.attention_adjoint import triton as launchers
found = {{}}
def note(kernel, key, *rest):
    found.setdefault(kernel.fn.__name__, set()).add(key)
type(launchers._key_kernel)._do_compile = note
for name in compiled.attention_kernels(launchers):
    kernel = getattr(launchers, name)
    setattr(launchers, name, compiled.Instead(kernel, lambda kernel, args, options: kernel.warmup(*args, grid=(1,), **options)))
def empty(*shape):
    return torch.empty(shape, device="meta")
for positions in (33, 64, 100, 128, 500):
    for rows in (1, 15, 16, 512):
        for heads in (1, 12, 16):
            each, of_head = (positions, rows, heads, 64), (heads, positions, 64)
            primal = (empty(heads, positions, positions), *(empty(*of_head) for _ in range(4)), 0.1)
            for loads in ("pointers", "descriptors"):
                for capability in (80, 90):
                    compiled.compile_for(capability)
                    launchers.tangent(launchers.adjoint(empty(*each), *primal, loads=loads), *primal, loads=loads)
described = {{name: sum("tensordesc" in key for key in keys) for name, keys in found.items()}}
print(json.dumps([entries, {{name: len(keys) for name, keys in found.items()}}, described]))
"""
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    plain |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    entries, keys, described = json.loads(done.stdout)
    return {"entries": {name: compiled.Entry(name, *rest) for name, *rest in entries}, "keys": keys, "described": described}


def test_what_is_compiled_here_is_what_the_table_says(compiler: dict[str, Any]):
    assert set(compiler["entries"]) == {f"sm_{target} {QUICK}" for target in compiled.TARGETS}
    assert all(entry.stack == 0 and entry.registers > 0 for entry in compiler["entries"].values())
    table = compiled.path_of(version("triton"))
    if not table.exists():
        pytest.skip(f"the tables are of {[path.stem for path in TABLES]}, and Triton here is {version('triton')}")
    assert compiler["entries"] == {name: compiled.read(table)[name] for name in compiler["entries"]}


def test_lengths_are_not_compiled_for(compiler: dict[str, Any]):
    """60 calls of other positions, rows and heads ask for one kernel each, and by descriptors for another."""
    assert compiler["keys"] == {"_query_kernel": 2, "_key_kernel": 2, "_tangent_kernel": 2}
    assert compiler["described"] == {"_query_kernel": 1, "_key_kernel": 1, "_tangent_kernel": 1}


# ---------------------------------------------------------------------------------- how float32 is multiplied


@pytest.mark.few
@pytest.mark.parametrize(("precision", "bound"), [("tf32", 3e-3), ("tf32x3", 5e-6), ("ieee", 5e-6)])
def test_every_precision_is_as_near_as_it_says(precision: Any, bound: float):
    """On a GPU; the interpreter rounds nothing, so that there all are as near as float32."""
    positions, rows, heads, d_head = 5, 3, 2, 8

    def drawn(*shape: int, seed: int) -> torch.Tensor:
        return normal(*shape, dtype=torch.float64, seed=seed).to(DEVICE)

    pattern = drawn(heads, positions, positions, seed=1).tril().softmax(-1).tril()
    q, k, v, z = (drawn(heads, positions, d_head, seed=seed) for seed in range(2, 6))
    o = drawn(positions, rows, heads, d_head, seed=6)
    exact = attention_adjoint(o, pattern, q, k, v, z, 0.3, impl="reference")
    pushed = attention_tangent(exact, pattern, q, k, v, z, 0.3, impl="reference")
    primal = (*(x.float() for x in (pattern, q, k, v, z)), 0.3)
    got = attention_adjoint(o.float(), *primal, impl="triton", precision=precision)
    moved = attention_tangent(AttentionCotangents(*(x.float() for x in exact)), *primal, impl="triton", precision=precision)
    for ours, want in zip((*got, moved), (*exact, pushed), strict=True):
        assert (ours.double() - want).norm() <= bound * want.norm()
    assert torch.equal(attention_tangent(got, *primal, impl="triton"), attention_tangent(got, *primal, impl="triton", precision="tf32"))


def test_a_precision_that_is_none_is_refused_by_name():
    with pytest.raises(ValueError, match="precision: 'fp8'; expected one of tf32, tf32x3, ieee"):
        check_precision("fp8")


@pytest.mark.parametrize(("tf32", "precision"), [(True, "tf32"), (False, "tf32x3")])
def test_attrib_multiplies_as_its_dtype_says(tf32: bool, precision: str):
    """float32 stays float32: the kernels' own default, TF32, is for who asks for it."""
    with products(Precision("tf32" if tf32 else "float32", torch.float32, torch.float32, tf32=tf32)):
        assert door._precision() == precision


# ------------------------------------------------------------------------------------------------ rooflines


@pytest.mark.parametrize("folder", roofline.TABLES)
def test_the_readmes_have_what_is_computed(folder: str):
    text = (roofline.KERNELS / folder / "README.md").read_text()
    assert roofline.with_table(text, roofline.TABLES[folder]()) == text


def test_a_floor_by_hand():
    """Two positions see three pairs; one row of two heads on one key head of width 5."""
    shape = roofline.Shape("none", positions=2, rows=1, heads=2, kv_heads=1, d_head=5)
    S, K, x = 4 * 2 * 2 * 5, 4 * 2 * 5, 4 * 2 * 2
    adjoint = roofline.attention("adjoint", shape, "tf32")
    assert (adjoint.bytes, adjoint.flops) == (3 * S + 2 * K + 2 * x, 3 * 2 * 2 * 3 * 5 + 2 * 2 * 2 * 25 + 2 * 2 * 3 * 25)
    frozen = roofline.attention("frozen", shape, "bfloat16")
    assert (frozen.bytes, frozen.flops) == ((S + K) / 2, 2 * 2 * 3 * 5)
    assert roofline.attention("tangent", shape, "tf32").flops == 4 * 2 * 2 * 3 * 5
    assert (adjoint.moving, adjoint.bound) == (adjoint.bytes / 4.8e12, "memory")
