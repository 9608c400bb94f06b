"""attrib itself, as the bench calls it: the one place that knows its public functions and its plan."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import attrib
from attrib.dictionary import Dictionary
from attrib.edges import Edges
from bench.cases import Problem

Method = Literal["adjoint", "torch.func"]

METHOD: Method = "adjoint"
"""The engine that is measured."""


def attribute(problem: Problem, method: Method, positions: Sequence[int] | None = None) -> Edges:
    """All edges of a problem, or those into the targets at some positions, by the public function of its kind."""
    p = problem
    if not isinstance(p.target, Dictionary):
        assert p.source is not None  # no case goes from tokens to logits
        return attrib.latent_to_logit(
            p.model, p.source, p.tokens, logits=p.target, policy=p.policy, positions=positions, budget=p.budget, method=method
        )
    if p.source is None:
        return attrib.token_to_latent(p.model, p.target, p.tokens, policy=p.policy, positions=positions, budget=p.budget, method=method)
    return attrib.latent_to_latent(
        p.model, p.source, p.target, p.tokens, policy=p.policy, positions=positions, budget=p.budget, method=method
    )


class Plan(NamedTuple):
    """What attrib expects before it runs."""

    flops: float
    floor: float
    """The least FLOPs that the answer needs."""
    peak: int
    """Bytes."""
    direction: str


def read_plan(problem: Problem) -> Plan | None:
    """attrib's plan of a problem; None where this attrib has none. ADAPT HERE where `attrib.plan` changes."""
    plan = getattr(attrib, "plan", None)
    if not callable(plan):  # absent, or only the module of that name
        return None
    found = plan(problem.model, problem.source, problem.target, problem.tokens, policy=problem.policy, budget=problem.budget)
    return Plan(float(found.flops), float(found.floor), int(found.peak), str(found.direction))
