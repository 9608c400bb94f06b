"""What `bench.kernels` measures: every operation of attrib_kernels at sizes of real models, with tensors to run it on.

A case makes its tensors, gives its operation as a function of them in either implementation, and says which bytes
no implementation can do without: what comes in read once, what goes out written once.

Compaction decides, and a number that is rounded otherwise may be decided otherwise. So its tiles hold whole
numbers whose products and sums no dtype and no order rounds: what is kept is then one answer, also in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from attrib_kernels.attention_adjoint import AttentionCotangents, attention_adjoint, attention_tangent
from attrib_kernels.compact import Rule, compact
from attrib_kernels.impl import Loads, Precision
from attrib_kernels.read_out import read_out
from torch import Tensor

Impl = Literal["reference", "triton"]
Tensors = tuple[Tensor, ...]
Results = Mapping[str, Tensor]


def bytes_of(*tensors: Tensor) -> int:
    """Bytes of the numbers of some tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)


def dtype_name(dtype: torch.dtype) -> str:
    """As in `torch.float32`, without torch."""
    return str(dtype).removeprefix("torch.")


def generator(device: torch.device) -> torch.Generator:
    """The same numbers in every run on one kind of device."""
    return torch.Generator(device).manual_seed(0)


def normal(device: torch.device) -> Callable[..., Tensor]:
    """Draws normal numbers of a shape, in float64."""
    source = generator(device)
    return lambda *shape: torch.randn(shape, generator=source, dtype=torch.float64, device=device)


def whole(device: torch.device) -> Callable[..., Tensor]:
    """Draws whole numbers from `low` to `high`, both included, as integers."""
    source = generator(device)
    return lambda low, high, *shape: torch.randint(low, high + 1, shape, generator=source, device=device)


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """One operation at one size in one dtype."""

    name: str
    dtype: torch.dtype
    quick: bool = False
    precision: Precision = "tf32x3"
    """How float32 numbers are multiplied: as float32 but for a bit or two, or rounded to TF32, by torch too."""

    waits_for_host: ClassVar[bool] = False
    """Whether the host must know a number in the middle: such a call cannot be captured in a CUDA graph."""

    @property
    @abstractmethod
    def what(self) -> str:
        """The operation and its sizes, in words."""

    @abstractmethod
    def tensors(self, device: torch.device) -> Tensors:
        """What the operation is run on."""

    @abstractmethod
    def function(self, impl: Impl) -> Callable[..., Any]:
        """The operation as a function of `tensors`; it gives a tensor, or a NamedTuple of tensors or None."""

    def by_descriptors(self) -> "Attention | None":
        """The same case with tiles loaded by tensor descriptors; None where its kernels load none so."""
        return None

    def least_bytes(self, tensors: Tensors, results: Results) -> int:
        """Bytes read and written at the least."""
        return bytes_of(*tensors, *results.values())

    @abstractmethod
    def tiny(self) -> "Case":
        """The same operation at sizes that an interpreter computes at once."""


# ------------------------------------------------------------------------------------------- attention


@dataclass(frozen=True, kw_only=True)
class Attention(Case):
    """The adjoint of causal attention, exact or with the pattern frozen, or its tangent map."""

    kind: Literal["adjoint", "frozen", "tangent"]
    positions: int
    rows: int
    heads: int
    kv_heads: int
    d_head: int
    loads: Loads = "pointers"

    @property
    def what(self) -> str:
        names = {"adjoint": "attention adjoint", "frozen": "attention adjoint, pattern frozen", "tangent": "attention tangent"}
        sizes = f"{self.positions} positions, {self.rows} rows, {self.heads} heads on {self.kv_heads} key heads of {self.d_head}"
        return f"{names[self.kind]}: {sizes}"

    def tensors(self, device: torch.device) -> Tensors:
        """What is carried (o, or q̇, k̇, v̇), then pattern, q, k, v, z."""
        draw, group = normal(device), self.heads // self.kv_heads
        q, k, v = (draw(heads, self.positions, self.d_head) for heads in (self.heads, self.kv_heads, self.kv_heads))
        hidden = torch.ones(self.positions, self.positions, dtype=torch.bool, device=device).triu(1)
        scores = q @ k.repeat_interleave(group, 0).mT * self.d_head**-0.5
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        z = pattern @ v.repeat_interleave(group, 0)
        heads = [self.heads, self.kv_heads, self.kv_heads] if self.kind == "tangent" else [self.heads]
        carried = (draw(self.positions, self.rows, n, self.d_head).to(self.dtype) for n in heads)
        return *carried, *(x.to(self.dtype) for x in (pattern, q, k, v, z))

    def function(self, impl: Impl) -> Callable[..., Any]:
        scale, frozen = self.d_head**-0.5, self.kind == "frozen"
        how: dict[str, Any] = {"impl": impl, "precision": self.precision, "loads": self.loads}
        if self.kind == "tangent":
            return lambda q_dot, k_dot, v_dot, a, q, k, v, z: attention_tangent(
                AttentionCotangents(q_dot, k_dot, v_dot), a, q, k, v, z, scale, **how
            )
        return lambda o, a, q, k, v, z: attention_adjoint(o, a, q, k, v, z, scale, frozen=frozen, **how)

    def by_descriptors(self) -> "Attention | None":
        """Not with `tf32x3`, whose tiles always come by pointers."""
        return replace(self, loads="descriptors") if self.dtype != torch.float32 or self.precision == "tf32" else None

    def tiled(self, tensors: Tensors) -> Tensors:
        """What kernels may read by descriptors: all but the pattern."""
        *carried, _, q, k, v, z = tensors
        return *carried, q, k, v, z

    def least_bytes(self, tensors: Tensors, results: Results) -> int:
        """Without the primal, which all rows share."""
        return bytes_of(*tensors[:-5], *results.values())

    def tiny(self) -> "Attention":
        """Two heads, on one key head where the heads are grouped."""
        return replace(self, positions=5, rows=3, heads=2, kv_heads=2 if self.heads == self.kv_heads else 1, d_head=8)


# ------------------------------------------------------------------------------------------- compaction


def judgement(rule: Rule, amount: float | int) -> str:
    """A rule in words."""
    return rule if rule == "dense" else f"{rule} {amount:g}"


@dataclass(frozen=True, kw_only=True)
class Compact(Case):
    """A tile of a causal Jacobian into CSR: entries of sources after their target are zero."""

    rule: Rule
    rows: int
    columns: int
    positions: int

    waits_for_host = True  # for the number of kept entries

    @property
    def amount(self) -> float | int:
        """Of threshold, what about one entry of twenty reaches; of topk, one column of 32."""
        gradient, activation = self.largest
        return {"dense": 0, "threshold": 3 * gradient * activation // 5, "topk": self.columns // 32, "mass": 0.75}[self.rule]

    @property
    def largest(self) -> tuple[int, int]:
        """Of |gradient| and of activation: bfloat16 holds whole numbers up to 256, float32 sums of 6400 products."""
        return (15, 15) if self.dtype == torch.bfloat16 else (255, 7)

    @property
    def what(self) -> str:
        return f"compact, {judgement(self.rule, self.amount)}: tile of {self.rows} × {self.columns}, {self.positions} positions"

    def tensors(self, device: torch.device) -> Tensors:
        draw, (gradient, activation) = whole(device), self.largest
        target, source = (torch.arange(n, device=device) * self.positions // n for n in (self.rows, self.columns))
        tile = draw(-gradient, gradient, self.rows, self.columns) * (source <= target[:, None])
        return tile.to(self.dtype), draw(1, activation, self.columns).to(self.dtype)

    def function(self, impl: Impl) -> Callable[..., Any]:
        rule, amount = self.rule, self.amount
        return lambda gradient, activation: compact(gradient, activation, rule, amount, impl=impl)

    def tiny(self) -> "Compact":
        return replace(self, rows=9, columns=64, positions=3)


# ------------------------------------------------------------------------------------------- reading out


@dataclass(frozen=True, kw_only=True)
class ReadOut(Case):
    """Cotangents of as many targets at each position, read out against as many seeds at each position that they see."""

    positions: int
    each: int
    """Targets and seeds of a position."""
    width: int

    waits_for_host = True  # which gives where rows live at each call

    @property
    def what(self) -> str:
        return f"read out: {self.positions} positions, {self.each} targets and {self.each} seeds at each, width {self.width}"

    def tensors(self, device: torch.device) -> Tensors:
        """Rows in one band for each target's position, seeds, a table, and where cells begin and how far they are apart."""
        draw, all_of, each = normal(device), self.positions * self.each, self.each
        cells = each * self.positions * (self.positions + 1) // 2
        offsets = [each * t * (t + 1) // 2 for t in range(self.positions)]
        start = (torch.tensor(offsets)[:, None] + torch.arange(each)).flatten().to(device)
        floats = (draw(cells, self.width), draw(all_of, self.width), draw(all_of, all_of))
        return *(x.to(self.dtype) for x in floats), start, torch.full_like(start, each)

    def function(self, impl: Impl) -> Callable[..., Any]:
        alive = [(t * self.each, self.positions * self.each) for t in range(self.positions)]
        begins = [t * self.each for t in range(self.positions + 1)]

        def run(rows: Tensor, seeds: Tensor, out: Tensor, start: Tensor, step: Tensor) -> Tensor:
            table = out.clone()  # each call begins with the same; the copy is in every way's time
            read_out(rows, start, step, alive, begins, seeds, table, impl=impl, precision=self.precision)
            return table

        return run

    def tiny(self) -> "ReadOut":
        return replace(self, positions=5, each=3, width=24)


# --------------------------------------------------------------------------------------------- the list

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16

HEADS = {"gpt2": (12, 12, 64), "smollm2": (9, 3, 64), "gemma": (8, 4, 256)}
"""heads, kv_heads, d_head."""

ATTENTION = [
    ("gpt2", 128, 512),
    ("gpt2", 128, 64),
    ("gpt2", 32, 512),
    ("gpt2", 32, 64),
    ("smollm2", 128, 512),
    ("gemma", 128, 512),
]
"""Model, positions, rows; the first are the quick ones."""

TILES = {1600: 32, 6400: 128}
"""Active latents of a prompt, 50 at each of its positions."""


def all_cases() -> dict[str, Case]:
    """Every case by its name."""
    return {case.name: case for case in (*attention_cases(), *compact_cases(), *read_out_cases())}


def attention_cases() -> Iterator[Case]:
    """GPT-2's heads at four sizes, grouped heads as SmolLM2's, and wide ones as Gemma's."""
    for model, positions, rows in ATTENTION:
        heads, kv_heads, d_head = HEADS[model]
        sizes = dict[str, Any](positions=positions, rows=rows, heads=heads, kv_heads=kv_heads, d_head=d_head)
        for kind in ("adjoint", "frozen", "tangent"):
            name, quick = f"attention-{kind}-{model}-T{positions}-rows{rows}", (model, positions, rows) == ATTENTION[0]
            for dtype in (FLOAT32, BFLOAT16):
                yield Attention(name=f"{name}-{dtype_name(dtype)}", dtype=dtype, quick=quick, kind=kind, **sizes)
            yield Attention(name=f"{name}-float32-tf32", dtype=FLOAT32, quick=quick, precision="tf32", kind=kind, **sizes)


def read_out_cases() -> Iterator[Case]:
    """GPT-2's width, 50 active latents; none is quick, since torch.compile takes its time over so many positions."""
    sizes = dict[str, Any](positions=128, each=50, width=768)
    for dtype in (FLOAT32, BFLOAT16):
        yield ReadOut(name=f"read-out-gpt2-T128-{dtype_name(dtype)}", dtype=dtype, **sizes)
    yield ReadOut(name="read-out-gpt2-T128-float32-tf32", dtype=FLOAT32, precision="tf32", **sizes)


def compact_cases() -> Iterator[Case]:
    """Every rule; mass in float32 alone, since its running sum in 16 bits is rounded too far to have one answer."""
    for size, positions in TILES.items():
        for dtype in (FLOAT32, BFLOAT16):
            end = f"{size}-{dtype_name(dtype)}"
            rules: tuple[Rule, ...] = ("dense", "threshold", "topk", "mass") if dtype == FLOAT32 else ("dense", "threshold", "topk")
            quick = size == 1600 and dtype == FLOAT32
            for rule in rules:
                sizes = dict[str, Any](rows=size, columns=size, positions=positions)
                yield Compact(name=f"compact-{rule}-{end}", dtype=dtype, quick=quick, rule=rule, **sizes)
