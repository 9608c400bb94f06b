"""What a graph is asked for, and whether that can be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, get_args

import torch

from attrib.attribution.options import Method, Options
from attrib.core.devices import Devices
from attrib.core.positions import PositionsLike
from attrib.core.rules import USUAL, Rule, is_usual, rule_text
from attrib.core.types import LINEAR, InputError, Keep, Mass, Policy, Progress, TopLogits
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph.expand import BLOCK
from attrib.graph.outputs import Output, as_outputs

Mlps = Literal["exact", "leaf"]
"""What becomes of an MLP that no dictionary replaces: derivatives pass it, or what it writes is a node of its own."""


class EndsOptions(TypedDict, total=False):
    """Those of whatever is asked about a graph's nodes; what each means is said by `build`."""

    targets: Output | Sequence[Output]
    policy: Policy
    keep: Keep
    positions: PositionsLike
    mlps: Mlps
    demean: bool
    skip_positions: int
    dtype: torch.dtype | str | None
    budget: int
    rule: Rule


class GraphPlanOptions(EndsOptions, total=False):
    """The options of `plan`, which is the same whatever the method."""

    max_nodes: int | None
    block: int


class GraphOptions(GraphPlanOptions, total=False):
    """The options of `build`."""

    method: Method
    progress: bool | Progress
    device: Devices | None


@dataclass(frozen=True)
class GraphAsked:
    """The options of a graph, found good, each with its default."""

    targets: Any = TopLogits(10, mass=0.95)  # noqa: RUF009 - an immutable value
    policy: Policy = LINEAR
    keep: Keep = Mass(0.98)  # noqa: RUF009 - an immutable value
    positions: PositionsLike = None
    mlps: Any = "exact"  # these are looked at below
    demean: Any = True
    skip_positions: Any = 0
    max_nodes: Any = None
    block: Any = BLOCK
    dtype: torch.dtype | str | None = None
    budget: int = DEFAULT_BUDGET
    method: Method = "adjoint"
    progress: bool | Progress = False
    rule: Rule = USUAL
    device: Devices | None = None

    def __post_init__(self) -> None:
        assert self.common  # which checks what all attributions have
        if not is_usual(self.rule):
            raise InputError(
                f"rule: {rule_text(self.rule)}; an edge of a graph is gradient times activation, which makes rows add up. Leave it out: a "
                "gradient is an edge by its source's activation, and attrib.latent_to_logit and the others take every rule."
            )
        if self.method == "torch.func":
            raise InputError("method: 'torch.func' takes one source and one target at a time; expected 'adjoint' or 'adjoint-triton' here.")
        if self.mlps not in get_args(Mlps):
            raise InputError(f"mlps: {self.mlps!r}; expected 'exact' or 'leaf'.")
        if self.mlps == "leaf" and self.policy.mlp == "relp":
            raise InputError(
                f"mlps: 'leaf' beside {self.policy}: what an MLP writes is then a node, and no relevance passes it. Expected "
                "mlps='exact', or attrib.LINEAR."
            )
        if not isinstance(self.demean, bool):
            raise InputError(f"demean: {self.demean!r}; expected True or False.")
        _check_count("skip_positions", self.skip_positions, 0, "how many first positions have no latents")
        _check_count("block", self.block, 1, "how many rows are computed between two rankings")
        if self.max_nodes is not None:
            _check_count("max_nodes", self.max_nodes, 0, "how many latents stay at most, or None for all")
            if len(self.common.devices) > 1:
                raise InputError(
                    "device: several, and with max_nodes each block of rows is chosen by those before it; expected one device, or all rows."
                )
        object.__setattr__(self, "targets", as_outputs(self.targets))

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The targets, each by itself."""
        found: tuple[Output, ...] = self.targets
        return found

    @property
    def common(self) -> Options:
        """Those that every attribution has."""
        return Options(
            policy=self.policy, keep=self.keep, positions=self.positions, dtype=self.dtype, budget=self.budget, method=self.method,
            progress=self.progress, rule=self.rule, device=self.device,
        )  # fmt: skip

    def at(self, positions: PositionsLike) -> "GraphAsked":
        """The same at positions in their plain form."""
        return replace(self, positions=positions)


def _check_count(argument: str, given: object, least: int, what: str) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise InputError(f"{argument}: {given!r}; expected a whole number, {least} or more: {what}.")
