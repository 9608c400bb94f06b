"""What the user has set of torch's matrix products, through either of its interfaces, is no obstacle, and reads the same afterwards.

In processes of their own: the settings are global. They are forks of one that has imported what takes seconds to import.
"""

import os
import subprocess
import sys

import pytest

from tests.support.root import ROOT

PROGRAM = '''
import multiprocessing
import sys
import torch
import transformers.models.gpt2.modeling_gpt2

def forked(target, *args):
    child = multiprocessing.get_context("fork").Process(target=target, args=args)
    child.start()
    child.join()
    assert child.exitcode == 0, args

def older():
    """A torch of before the newer interface, which attrib is then imported with."""

    class Older:
        allow_bf16_reduced_precision_reduction = True

    torch.backends.cuda.matmul = Older()
    del type(torch.backends.mkldnn).matmul

    from attrib.engine.precision import precision_of, products
    from tests.support.builders import build

    for words in ("highest", "high"):
        torch.set_float32_matmul_precision(words)
        for dtype in ("float32", "tf32", "bfloat16"):
            with products(precision_of(build("gpt2"), dtype)):
                assert torch.get_float32_matmul_precision() == ("high" if dtype == "tf32" else "highest")
                assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction is False
            assert torch.get_float32_matmul_precision() == words
            assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction is True

assert "attrib" not in sys.modules
forked(older)
print("older")

import attrib
from attrib.engine.precision import precision_of, products
from tests.support.builders import build, dictionary, prompt

matmul, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul

def legacy(value):
    matmul.allow_tf32 = value

def newer(*places, to):
    for place in places:
        place.fp32_precision = to

SETTINGS = {
    "nothing": lambda: None,
    "allow_tf32": lambda: legacy(True),
    "allow_tf32 off": lambda: legacy(False),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "tf32": lambda: newer(matmul, to="tf32"),
    "ieee": lambda: newer(matmul, to="ieee"),
    "all tf32": lambda: newer(torch.backends, to="tf32"),
    "all ieee": lambda: newer(torch.backends, to="ieee"),
    "cpu bf16": lambda: newer(cpu, to="bf16"),
    "both ways": lambda: (legacy(True), newer(matmul, to="ieee")),
    "no reduction": lambda: setattr(matmul, "allow_bf16_reduced_precision_reduction", (False, False)),
}

def readable():
    """Every value, or that it cannot be read."""
    of = {"cuda": matmul, "all": torch.backends, "cpu": cpu, "cudnn": torch.backends.cudnn, "mkldnn": torch.backends.mkldnn}
    calls = {name: lambda one=one: one.fp32_precision for name, one in of.items()}
    calls |= {"legacy": lambda: matmul.allow_tf32, "words": torch.get_float32_matmul_precision}
    calls |= {name: lambda name=name: getattr(matmul, name) for name in (
        "allow_bf16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction_split_k")}
    found = {}
    for name, call in calls.items():
        try:
            found[name] = call()
        except RuntimeError:
            found[name] = "mixed"
    return found

def run(name):
    SETTINGS[name]()
    before = readable()
    model, source, target = build("gpt2"), *(dictionary("topk", site=f"blocks.{layer}.hook_resid_pre") for layer in (0, 3))
    for dtype in ("float32", "tf32", "bfloat16"):
        assert len(attrib.latent_to_latent(model, source, target, [prompt(4)], dtype=dtype))
        assert readable() == before, (name, dtype, before, readable())
        inside = {}
        try:
            with products(precision_of(model, dtype)):
                inside = matmul.fp32_precision, cpu.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert inside == ("tf32" if dtype == "tf32" else "ieee", "ieee", False)
        assert readable() == before, (name, dtype)
    if name.startswith("all "):  # what followed the wider setting follows it still
        torch.backends.fp32_precision = "ieee" if name == "all tf32" else "tf32"
        assert matmul.fp32_precision == torch.backends.fp32_precision

run("nothing")  # and everything is imported, once
for name in SETTINGS:
    forked(run, name)
print("done", len(SETTINGS))
'''


def child(program: str) -> list[str]:
    """The words that a program prints in a process of its own."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.long
def test_settings_of_products_are_read_and_put_back_also_without_the_newer_interface():
    pytest.importorskip("transformers", exc_type=ImportError)
    assert child(PROGRAM) == ["older", "done", "12"]
