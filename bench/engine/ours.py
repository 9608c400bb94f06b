"""attrib itself, as the bench calls it: the one place that knows its public functions and its plan."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

import attrib
from attrib.core.edges import Edges
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.blocks.kernels import check_impl
from bench.engine.cases import Problem

Engine = Literal["adjoint", "adjoint-triton"]
"""What can be measured."""
Method = Literal[Engine, "torch.func"]
Dtype = Literal["float32", "tf32", "bfloat16"]
"""What a sweep multiplies in; activations, primal and result are float32 in all of them."""

METHOD: Engine = "adjoint"
"""The engine that is measured where none is named."""


def check_engine(method: Engine, dtype: Dtype, device: torch.device) -> None:
    """Raise InputError, which says what to do, where a method or a dtype means nothing on a device."""
    if dtype == "tf32" and device.type == "cpu":
        raise InputError("dtype: tf32 is how CUDA multiplies, and on a CPU would be float32 by another name; expected float32 or bfloat16.")
    if method == "adjoint-triton":
        check_impl("triton")
        import triton  # it is there, by the line before

        if triton.knobs.runtime.interpret != (device.type == "cpu"):
            todo = "set TRITON_INTERPRET=1 to have its kernels interpreted" if device.type == "cpu" else "unset TRITON_INTERPRET"
            raise InputError(f"method: {method!r} on {device.type}; {todo}.")


def attribute(problem: Problem, method: Method, dtype: Dtype, positions: Sequence[int] | None = None) -> Edges:
    """All edges of a problem, or those into the targets at some positions, by the public function of its kind."""
    p = problem
    options: dict[str, Any] = {"policy": p.policy, "positions": positions, "budget": p.budget, "method": method, "dtype": dtype}
    options["precision_rows"] = 0  # the bench compares values by itself, and does not time that
    options |= put_in(p)
    if not isinstance(p.target, Dictionary):
        assert p.source is not None  # no case goes from tokens to logits
        return attrib.latent_to_logit(p.model, p.source, p.tokens, logits=p.target, **options)
    if p.source is None:
        return attrib.token_to_latent(p.model, p.target, p.tokens, **options)
    return attrib.latent_to_latent(p.model, p.source, p.target, p.tokens, **options)


def put_in(problem: Problem) -> dict[str, Any]:
    """The options that say what is put in on the way; none where nothing is."""
    return {"cuts": problem.cuts, "effect": problem.effect} if problem.is_cut else {}


class Plan(NamedTuple):
    """What attrib expects before it runs."""

    flops: float
    floor: float
    """The least FLOPs that the answer needs."""
    peak: int
    """Bytes."""
    direction: str


def read_plan(problem: Problem, dtype: Dtype) -> Plan:
    """attrib's plan of a problem. ADAPT HERE where `attrib.plan` changes."""
    p = problem
    found = attrib.plan(p.model, p.source, p.target, p.tokens, policy=p.policy, budget=p.budget, dtype=dtype, **put_in(p))
    assert found.floor is not None  # every plan of one source and one target has one
    return Plan(float(found.flops), float(found.floor), int(found.peak), str(found.direction))
