"""ATTRIB_TYPECHECK=1 holds every call against its signature, in both packages, outside of tests too; and importing stays cheap."""

import os
import subprocess
import sys

import pytest

from tests.support.root import ROOT

WRONG = """
import sys
import attrib
heavy = {"torch"} & {*sys.modules}
hooked = "jaxtyping" in sys.modules
import torch
from attrib.models.transformer import cap
from attrib_kernels.compact import compact

def refused(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__ == "TypeCheckError"
    return False

print(heavy or "cheap", hooked, refused(lambda: cap(torch.ones(2, dtype=torch.int64), None)),
      refused(lambda: compact(torch.ones(3), torch.ones(2), "dense", impl="reference")), cap(torch.ones(2), None).tolist())
"""


@pytest.mark.parametrize(("variable", "checks"), [("1", True), ("0", False)])
def test_the_variable_turns_checks_on(variable: str, checks: bool) -> None:
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "ATTRIB_TYPECHECK": variable}
    told = subprocess.run([sys.executable, "-c", WRONG], env=env, capture_output=True, text=True, check=True)
    assert told.stdout == f"cheap {checks} {checks} {checks} [1.0, 1.0]\n"
