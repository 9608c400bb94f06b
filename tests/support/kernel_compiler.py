"""Compile Triton kernels for a Hopper GPU on a machine without one: types, shapes and shared memory are checked, nothing runs.

The interpreter accepts code that the compiler does not. Run as a program, in an interpreter of its own without
TRITON_INTERPRET, this imports the kernels, which must not import triton, calls the launchers of one operation on
meta tensors, compiles what they would launch, and prints the bytes of shared memory of each kernel as JSON.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.support.root import ROOT

HOPPER, SHARED = 90, 227 * 1024
"""Compute capability, and the shared memory that one block of threads may have."""
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


class Compiled:
    """Stands in for a jitted kernel: a launch compiles it and notes its shared memory."""

    def __init__(self, name: str, kernel: Any, found: dict[str, int]) -> None:
        self.name, self.kernel, self.found = name, kernel, found

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self.launch

    def launch(self, *args: Any, num_warps: int, num_stages: int = 3, **constants: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        def of(value: Any) -> str:
            return POINTERS[value.dtype] if isinstance(value, Tensor) else "fp32" if isinstance(value, float) else "i32"

        names = self.kernel.arg_names
        assert len(args) + len(constants) == len(names), f"{self.name}: {names} came as {len(args)} and {sorted(constants)}"
        signature = dict(zip(names, map(of, args), strict=False)) | dict.fromkeys(constants, "constexpr")
        source = ASTSource(self.kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        options = {"num_warps": num_warps, "num_stages": num_stages}
        done = triton.compile(source, target=GPUTarget("cuda", HOPPER, 32), options=options)
        dtype = str(args[0].dtype).removeprefix("torch.")
        self.found[" ".join([self.name, dtype, *(f"{name}={value}" for name, value in constants.items())])] = done.metadata.shared


def attention_adjoint(launchers: Any) -> None:
    from attrib_kernels.attention_adjoint import AttentionCotangents

    for dtype, d_head, frozen in ((torch.bfloat16, 64, False), (torch.float32, 10, True)):
        shapes = {"a": (4, 33, 33), "q": (4, 33, d_head), "k": (2, 33, d_head), "v": (2, 33, d_head), "z": (4, 33, d_head)}
        cotangent, *primal = (torch.empty(shape, device="meta", dtype=dtype) for shape in ((33, 500, 4, d_head), *shapes.values()))
        out = launchers.adjoint(cotangent, *primal, 0.1, frozen=frozen)
        if not frozen:
            launchers.tangent(AttentionCotangents(*out), *primal, 0.1)


def main() -> None:
    sys.path.insert(0, str(ROOT / "kernels"))
    import importlib

    importlib.import_module("attrib_kernels.attention_adjoint")
    importlib.import_module("attrib_kernels.mlp_pointwise")
    assert "triton" not in sys.modules, "the kernels import triton before one of them is asked for"
    import triton

    found: dict[str, int] = {}
    launchers = importlib.import_module("attrib_kernels.attention_adjoint.triton")
    for name in ("_query_kernel", "_key_kernel", "_tangent_kernel"):
        kernel = getattr(launchers, name)
        assert isinstance(kernel, triton.JITFunction), "unset TRITON_INTERPRET: an interpreted kernel cannot be compiled"
        setattr(launchers, name, Compiled(name, kernel, found))
    attention_adjoint(launchers)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
