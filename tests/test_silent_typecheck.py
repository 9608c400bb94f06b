"""ATTRIB_TYPECHECK=1 turns the checks of shapes on for users, whose own code no test has seen; without it nothing is paid for them."""

import os
import subprocess
import sys

import pytest

from tests.test_layering import ROOT

CODE = """
import sys
import attrib
loaded = {"torch", "jaxtyping", "beartype"} & sys.modules.keys()

import torch
import attrib_kernels.attention_adjoint.triton, attrib_kernels.sparse_encode.triton  # whose kernels take no checks
from attrib.finite import bad

def told(values):
    try:
        return bad(values).tolist()
    except Exception as error:
        return type(error).__name__

hooked = {type(sys.modules[name].__spec__.loader).__module__.split(".")[0] for name in ("attrib.finite", "attrib_kernels.sparse_encode")}
print(sorted(loaded), told(torch.ones(2)), told(torch.ones(2, dtype=torch.long)), hooked)
"""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1", "['jaxtyping'] [False, False] TypeCheckError {'jaxtyping'}"),
        ("0", "[] [False, False] [False, False] {'_frozen_importlib_external'}"),
    ],
)
def test_shapes_are_checked_where_that_is_asked_for(value: str, said: str) -> None:
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "ATTRIB_TYPECHECK": value}
    child = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], env=env, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == said
