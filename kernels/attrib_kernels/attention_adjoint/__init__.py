"""The adjoint of causal softmax attention for many cotangents that share one primal.

`attention_adjoint` pulls cotangents of z back to queries, keys and values; `attention_tangent` is its
transpose and pushes tangents forward. README.md has the mathematics, `rule` the derivatives and batching.
"""

from typing import Literal, overload

from attrib_kernels.attention_adjoint.arguments import check_arguments
from attrib_kernels.attention_adjoint.reference import AttentionCotangents, FrozenCotangents, Keys, Pattern, Queries, Rows
from attrib_kernels.attention_adjoint.rule import pull, push
from attrib_kernels.impl import Impl, Loads, Precision, check_loads, check_precision

__all__ = ["AttentionCotangents", "FrozenCotangents", "attention_adjoint", "attention_tangent", "check_arguments"]


@overload
def attention_adjoint(
    cotangent: Rows, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float,
    *, impl: Impl, frozen: Literal[False] = False, precision: Precision = "tf32", loads: Loads = "pointers",
) -> AttentionCotangents: ...  # fmt: skip
@overload
def attention_adjoint(
    cotangent: Rows, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float,
    *, impl: Impl, frozen: Literal[True], precision: Precision = "tf32", loads: Loads = "pointers",
) -> FrozenCotangents: ...  # fmt: skip
@overload
def attention_adjoint(
    cotangent: Rows, pattern: Pattern, q: Queries, k: Keys, v: Keys, z: Queries, scale: float,
    *, impl: Impl, frozen: bool, precision: Precision = "tf32", loads: Loads = "pointers",
) -> AttentionCotangents | FrozenCotangents: ...  # fmt: skip
def attention_adjoint(
    cotangent: Rows,
    pattern: Pattern,
    q: Queries,
    k: Keys,
    v: Keys,
    z: Queries,
    scale: float,
    *,
    impl: Impl,
    frozen: bool = False,
    precision: Precision = "tf32",
    loads: Loads = "pointers",
) -> AttentionCotangents | FrozenCotangents:
    """Cotangents of queries, keys and values from cotangents of z.

    Args:
        cotangent: of z; each row is one cotangent of the whole layer.
        pattern: the softmax; only keys at or before their query are read.
        q, k: rotated, where the model rotates; query head h reads key head h // (heads / kv_heads).
        z: pattern @ v, from the primal pass.
        scale: the factor of q·k before the softmax.
        frozen: the pattern is a constant; q and k are then None in the result.
        impl: "reference" (plain torch) or "triton" (CUDA, or CPU under TRITON_INTERPRET=1; no float64).
        precision: how the Triton kernels multiply float32 numbers: "tf32" in one product, "tf32x3" in three, which lose a bit or two,
            "ieee" without tensor cores. The reference multiplies as torch is set.
        loads: how the Triton kernels load tiles: by "pointers", or by "descriptors" where there can be some, which is on compute capability
            9.0 and later, for 16-bit numbers and "tf32", with rows of a multiple of 16 bytes; pointers elsewhere. Values are the same.

    Returns:
        The cotangents in the dtype of the arguments, each with one row for each row of `cotangent`.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together, and where `impl` cannot run.
        ImportError: for impl="triton" without triton.
    """
    check_arguments(q=q, k=k, v=v, z=z, pattern=pattern, cotangent=cotangent)
    check_precision(precision)
    check_loads(loads)
    out = pull(cotangent, pattern, q, k, v, z, scale, frozen, impl, precision, loads)
    return FrozenCotangents(None, None, *out) if frozen else AttentionCotangents(*out)


def attention_tangent(
    tangents: AttentionCotangents | FrozenCotangents,
    pattern: Pattern,
    q: Queries,
    k: Keys,
    v: Keys,
    z: Queries,
    scale: float,
    *,
    impl: Impl,
    precision: Precision = "tf32",
    loads: Loads = "pointers",
) -> Rows:
    """The tangent of z from tangents of queries, keys and values: the transpose of `attention_adjoint`.

    Args:
        tangents: q [positions, rows, heads, d_head], k and v [positions, rows, kv_heads, d_head]; q and k
            are None where the pattern is frozen.

    The other arguments, and what is raised, are those of `attention_adjoint`.
    """
    carried = {"tangents__v": tangents.v} if tangents.q is None else {f"tangents__{name}": x for name, x in tangents._asdict().items()}
    check_arguments(q=q, k=k, v=v, z=z, pattern=pattern, **carried)
    check_precision(precision)
    check_loads(loads)
    return push(*tangents, pattern, q, k, v, z, scale, impl, precision, loads)
