"""The pointwise middle of the MLP's adjoint, with the slopes made where they are used.

`mlp_pointwise` pulls cotangents of the hidden layer back to its pre-activations; `mlp_pointwise_tangent` is
its transpose and pushes tangents forward; `slopes` are the factors. README.md has the mathematics.
"""

from torch import Tensor

from attrib_kernels.impl import Impl
from attrib_kernels.mlp_pointwise.reference import ACTIVATIONS, Activation, Hidden, HiddenRows, Rows
from attrib_kernels.mlp_pointwise.reference import slopes as _slopes
from attrib_kernels.mlp_pointwise.rule import pull, push

__all__ = ["ACTIVATIONS", "Activation", "check_arguments", "mlp_pointwise", "mlp_pointwise_tangent", "slopes"]


def mlp_pointwise(g: Rows, pre: Hidden, gate_pre: Hidden | None, activation: Activation, *, impl: Impl) -> HiddenRows:
    """Cotangents of an MLP's pre-activations from cotangents `g` of its middle, act(pre) or act(gate_pre) * pre.

    Args:
        g: each row is one cotangent at every position.
        pre: x W_in + b_in.
        gate_pre: x W_gate + b_gate, or None where there is no gate.
        activation: relu, gelu, gelu_tanh or silu.
        impl: "reference" (plain torch) or "triton" (CUDA, or CPU under TRITON_INTERPRET=1; no float64).

    Returns:
        g * act'(pre); with a gate [.., 2 d_mlp], the cotangents of gate_pre and then those of pre.

    Raises:
        ValueError: for arguments that do not fit together, and where `impl` cannot run.
        ImportError: for impl="triton" without triton.
    """
    check_arguments("g", g, pre, gate_pre, activation, parts=1)
    return pull(g, pre, gate_pre, activation, impl)


def mlp_pointwise_tangent(x_dot: HiddenRows, pre: Hidden, gate_pre: Hidden | None, activation: Activation, *, impl: Impl) -> Rows:
    """Tangents of an MLP's middle from tangents of its pre-activations: the transpose of `mlp_pointwise`.

    Args:
        x_dot: with a gate [.., 2 d_mlp], the tangents of gate_pre and then those of pre.

    The other arguments, and what is raised, are those of `mlp_pointwise`.
    """
    check_arguments("x_dot", x_dot, pre, gate_pre, activation, parts=1 if gate_pre is None else 2)
    return push(x_dot, pre, gate_pre, activation, impl)


def slopes(pre: Hidden, gate_pre: Hidden | None, activation: Activation) -> tuple[Hidden, ...]:
    """The derivatives of the MLP's middle: (act'(pre),), or with a gate (act'(gate_pre) pre, act(gate_pre)), for gate and up.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    check_arguments("pre", pre[:, None], pre, gate_pre, activation, parts=1)
    return _slopes(pre, gate_pre, activation)


def check_arguments(name: str, carried: Tensor, pre: Tensor, gate_pre: Tensor | None, activation: str, *, parts: int) -> None:
    """Raise ValueError, naming the argument, for shapes, dtypes or devices that do not fit; `carried` has `parts` of d_mlp units."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: {activation!r} came; expected one of {', '.join(ACTIVATIONS)}.")
    if pre.ndim != 2:
        raise ValueError(f"pre: shape {tuple(pre.shape)} came, expected [positions, d_mlp].")
    positions, width = pre.shape
    if gate_pre is not None and gate_pre.shape != pre.shape:
        raise ValueError(f"gate_pre: shape {tuple(gate_pre.shape)} came, expected that of pre, {tuple(pre.shape)}.")
    if carried.ndim != 3 or (carried.shape[0], carried.shape[2]) != (positions, parts * width):
        raise ValueError(f"{name}: shape {tuple(carried.shape)} came, expected [positions={positions}, rows, {parts * width}] to fit pre.")
    for other, x in ((name, carried), ("gate_pre", gate_pre)):
        if x is not None and (x.dtype != pre.dtype or x.device != pre.device):
            raise ValueError(f"{other}: {x.dtype} on {x.device} came, and pre is {pre.dtype} on {pre.device}. Convert all to one.")
