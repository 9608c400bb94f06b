"""The first day's steps on a device that is not there; the script around them, with a stand-in for their interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attrib
from attrib.core.rates import RATES
from bench.gpu import collect, steps
from bench.gpu.place import NOT_MEASURED, place
from bench.gpu.rates import floor_seconds
from tests.support.root import ROOT

GPU = "NVIDIA H200"


def test_the_least_time_is_that_of_products_or_of_memory():
    assert floor_seconds(GPU, "tf32", 494.5e12, 1) == pytest.approx(1)
    assert floor_seconds(GPU, "tf32", 1, 9.6e12) == pytest.approx(2)
    assert floor_seconds(GPU, "bfloat16", 989e12, 1) == pytest.approx(1)
    assert floor_seconds("NVIDIA Nothing", "tf32", 1, 1) is None
    assert all(rates.float32 < rates.tf32 < rates.bfloat16 for rates in RATES.values())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("step", ["launches", "replays", "asking", "kernels"])
def test_a_step_on_a_device_that_is_not_there(step: str):
    with place(pretend=True) as where:
        found = steps.STEPS[step](where)
        assert not found.faults
        assert found.figures
    if step == "asking":
        assert found.figures == {"launch": NOT_MEASURED, "wait": NOT_MEASURED}
    if step == "replays":
        assert len(found.figures) == 4
    if step == "kernels":
        assert found.figures == {"kernels": NOT_MEASURED}
    if step == "launches":
        assert found.figures["small-exact, tiny"]["predicted_launches"] > found.figures["small-linear, tiny"]["predicted_launches"] > 100


def test_values_that_differ_and_what_fails_are_faults():
    found = steps.Found()
    found.compare("a", torch.ones(1, 2), torch.ones(1, 2), 1e-4)
    assert not found.faults
    found.compare("b", torch.tensor([[1.0, 1.1]]), torch.ones(1, 2), 1e-4)
    found.compare("c", torch.ones(1, 3), torch.ones(1, 2), 1e-4)
    with steps._guarded(found, "d"):
        raise attrib.InputError("no such thing")
    assert [fault.partition(":")[0] for fault in found.faults] == ["b", "c", "d"]
    assert "InputError: no such thing" in found.faults[2]


PRETENDER = """#!/usr/bin/env bash
# `-W ignore -m bench.gpu STEP --out FILE` and `-m bench.gpu.collect ...`
if [ "$2" = bench.gpu.collect ]; then exec REAL "$@"; fi
case "$5" in
    parity) echo '{"device": "NVIDIA H200", "faults": [], "figures": {"a": 0.5, "b": {"c": 1}}}' > "$7" ;;
    budgets) echo '{"device": "NVIDIA H200", "faults": ["too much"], "figures": {}}' > "$7"; exit 1 ;;
    launches) exit 124 ;;
    kernels) exit 1 ;;
    memory) exit 9 ;;
esac
"""


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    pretender = tmp_path / "python"
    pretender.write_text(PRETENDER.replace("REAL", sys.executable))
    pretender.chmod(0o755)
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), "--out", str(tmp_path / "out"), *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHON": str(pretender)}, capture_output=True, text=True, check=False)


def test_steps_that_fail_are_named_and_the_others_done(tmp_path: Path):
    ran = run(tmp_path)
    assert ran.returncode == 1
    said = "budgets (wrong), launches (ran out of its time), kernels (failed), memory (failed with status 9)"
    assert f"not right: {said}" in ran.stderr
    found = json.loads((tmp_path / "out" / "nvidia-h200.json").read_text())
    assert list(found["steps"]) == ["parity", "budgets", "launches", "replays", "asking", "kernels", "memory", "floor"]
    assert found["steps"]["parity"]["figures"]["a"] == 0.5
    written = (tmp_path / "out" / "nvidia-h200.md").read_text()
    assert "## parity: right" in written
    assert "- too much" in written
    assert "| b | c 1 |" in written


def test_some_steps_alone(tmp_path: Path):
    ran = run(tmp_path, "--only", "parity", "--only", "floor")
    assert ran.returncode == 0, ran.stderr
    assert list(json.loads((tmp_path / "out" / "nvidia-h200.json").read_text())["steps"]) == ["parity", "floor"]
    ran = run(tmp_path, "--only", "nothing")
    assert ran.returncode == 2
    assert "nothing is no step" in ran.stderr
    assert run(tmp_path, "--strange").returncode == 2


def test_names_of_files():
    assert collect.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
