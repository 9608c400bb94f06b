"""`python -m bench.kernels.compiled`: what the kernels compile to for GPUs that are not there, as a table. See bench/README.md, "Kernels".

Triton compiles without a device once a driver says which GPU it has. The launchers are then called on tensors without values, and each
kernel is specialised as a launch would specialise it. What comes out is read from the machine code: registers of a thread, its stack (bytes
that did not fit into registers), shared memory of a block, and how many instructions of each kind of tensor core there are.

TRITON_INTERPRET must not be set: an interpreted kernel is never compiled.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple, get_args

import torch
import typer
from attrib_kernels.impl import Precision
from torch import Tensor

RESULTS = Path(__file__).parents[1] / "results"
TARGETS = (90, 80)
"""Compute capabilities: H100 and H200, A100."""
HOPPER = 90
"""From here on there are tensor descriptors."""
SHARED = {90: 227 * 1024, 80: 163 * 1024}
"""Bytes of shared memory that one block of threads may have."""
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Entry(NamedTuple):
    """One kernel as attrib launches it for one kind of GPU, and what it became."""

    name: str
    """Target, kernel, dtype, precision, d_head, heads of a group, positions, and how tiles are loaded, if not by pointers."""
    registers: int
    stack: int
    shared: int
    warps: int
    stages: int
    wgmma: int
    """Instructions of Hopper's tensor cores, of 64 rows each."""
    mma: int
    """Instructions of the tensor cores before, of 16 rows each."""
    loads: int
    """Asynchronous copies into shared memory, of up to 16 bytes for each thread."""
    tma: int
    """The same of tiles, each asked for by one thread through a tensor descriptor."""


class Driver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        """The only one; each capability has a number, so that what was compiled for one is not taken for another."""
        return self.capability

    def get_current_stream(self, device: int | None = None) -> int:
        """None is used."""
        return 0

    def get_current_target(self) -> Any:
        """The GPU that is compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def compile_for(capability: int) -> None:
    """Let Triton compile for such a GPU from here on."""
    from triton.runtime.driver import driver

    driver.set_active(Driver(capability))


class Instead:
    """Stands in for a jitted kernel: what would be launched is given to `seen`."""

    def __init__(self, kernel: Any, seen: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], None]) -> None:
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        """As a kernel takes its grid."""
        return lambda *args, **options: self.seen(self.kernel, args, options)


# ------------------------------------------------------------------------------------------------ the cases


class Attention(NamedTuple):
    """A call of the attention kernels."""

    dtype: torch.dtype
    precision: str
    d_head: int
    group: int = 1
    positions: int = 128
    loads: str = "pointers"

    @property
    def name(self) -> str:
        """Its part of an entry's name."""
        sizes = f"{DTYPES[self.dtype]} {self.precision} d{self.d_head} g{self.group} T{self.positions}"
        return sizes if self.loads == "pointers" else f"{sizes} {self.loads}"


def attention_calls(capability: int) -> Iterator[Attention]:
    """GPT-2's and SmolLM2's heads of 64, Llama's and Qwen's of 128, Gemma's of 256, and prompts of fewer positions than a tile has.

    Where there are descriptors, the calls that have some come again.
    """
    for d_head in (64, 128, 256):
        yield Attention(torch.bfloat16, "16-bit", d_head)
        yield Attention(torch.float32, "tf32", d_head)
        yield Attention(torch.float32, "tf32x3", d_head)
    yield Attention(torch.float32, "ieee", 64)
    yield Attention(torch.float32, "tf32", 64, group=3)
    yield Attention(torch.float32, "tf32", 64, positions=32)
    if capability < HOPPER:
        return
    for d_head in (64, 128, 256):
        yield Attention(torch.bfloat16, "16-bit", d_head, loads="descriptors")
        yield Attention(torch.float32, "tf32", d_head, loads="descriptors")
    yield Attention(torch.float32, "tf32", 64, group=3, loads="descriptors")
    yield Attention(torch.float32, "tf32", 64, positions=32, loads="descriptors")


def launch_attention(call: Attention, frozen: bool, launchers: Any) -> None:
    """Ask for the adjoint and the tangent map of tensors without values."""
    from attrib_kernels.attention_adjoint import AttentionCotangents, FrozenCotangents

    positions, heads = call.positions, 4 * call.group

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=call.dtype, device="meta")

    q, z = (empty(heads, positions, call.d_head) for _ in range(2))
    k, v = (empty(4, positions, call.d_head) for _ in range(2))
    primal = (empty(heads, positions, positions), q, k, v, z, call.d_head**-0.5)
    precision = "tf32" if call.precision == "16-bit" else call.precision
    launchers.adjoint(empty(positions, 500, heads, call.d_head), *primal, frozen=frozen, precision=precision, loads=call.loads)
    of_keys = empty(positions, 500, 4, call.d_head)
    tangents = (
        FrozenCotangents(None, None, of_keys)
        if frozen
        else AttentionCotangents(empty(positions, 500, heads, call.d_head), of_keys, of_keys.clone())
    )
    launchers.tangent(tangents, *primal, precision=precision, loads=call.loads)


def attention_kernels(launchers: Any) -> list[str]:
    """The names of the kernels in a module of launchers."""
    return [name for name in dir(launchers) if name.endswith("_kernel")]


def launches(capability: int) -> Iterator[tuple[str, Any, tuple[Any, ...], Mapping[str, Any]]]:
    """Every launch on such a GPU by name: the kernel, its arguments and its options."""
    from attrib_kernels.attention_adjoint import triton as launchers

    found: list[tuple[Any, tuple[Any, ...], Mapping[str, Any]]] = []
    kernels = {name: getattr(launchers, name) for name in attention_kernels(launchers)}
    for call in attention_calls(capability):
        for frozen in (False, True):
            for name, kernel in kernels.items():
                setattr(launchers, name, Instead(kernel, lambda *launch: found.append(launch)))
            try:
                launch_attention(call, frozen, launchers)
            finally:
                for name, kernel in kernels.items():
                    setattr(launchers, name, kernel)
            for kernel, args, options in found:
                yield f"{short(kernel)}{'-frozen' if frozen else ''} {call.name}", kernel, args, options
            found.clear()
    yield from compact_launches()
    yield from read_out_launches()


def short(kernel: Any) -> str:
    """A kernel's name without what all names have."""
    return kernel.fn.__name__.strip("_").removesuffix("_kernel")


def compact_launches() -> Iterator[tuple[str, Any, tuple[Any, ...], Mapping[str, Any]]]:
    """Both passes over a tile of 6400 columns, by each rule that the kernel knows."""
    import triton.language as tl
    from attrib_kernels.compact import triton as compact

    for dtype in DTYPES:
        tile, sums = torch.empty(64, 6400, dtype=dtype, device="meta"), torch.empty(64, 2, device="meta")
        whole = torch.empty(129, dtype=torch.int64, device="meta")
        tensors = {"ties": whole, "offsets": whole, "indices": whole, "total": sums, "l1": sums, "counts": whole.int()}
        for rule in ("dense", "threshold", "ranked"):
            numbers = {
                "columns": 6400, "span": 6400 if rule == "ranked" else compact.SPAN,
                "stride_row": 6400, "stride_column": 1, "stride_bound": int(rule == "ranked"),
            }  # fmt: skip
            options = {"RULE": rule, "ACC": tl.float32, "BLOCK": compact.BLOCK}
            for kernel in (compact._count, compact._write):
                args = tuple({**tensors, **numbers}.get(name, tile) for name in kernel.arg_names if name not in options)
                yield f"compact-{short(kernel)} {DTYPES[dtype]} {rule}", kernel, args, options


def read_out_launches() -> Iterator[tuple[str, Any, tuple[Any, ...], Mapping[str, Any]]]:
    """GPT-2's stream of 768 and SmolLM2's of 576, two positions with 50 seeds each."""
    from attrib_kernels.read_out import triton as launchers

    found: list[tuple[Any, tuple[Any, ...], Mapping[str, Any]]] = []
    kernel = launchers._read_kernel
    calls: list[tuple[torch.dtype, Precision]] = [(torch.bfloat16, "tf32"), *((torch.float32, each) for each in get_args(Precision))]
    for width in (768, 576):
        for dtype, precision in calls:
            rows, seeds, out = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((200, width), (100, width), (100, 100)))
            start, step = (torch.empty(100, dtype=torch.int64, device="meta") for _ in range(2))
            launchers._read_kernel = Instead(kernel, lambda *launch: found.append(launch))
            try:
                launchers.read_out(rows, start, step, [(0, 100)] * 2, [0, 50, 100], seeds, out, precision=precision)
            finally:
                launchers._read_kernel = kernel
            products = precision if dtype == torch.float32 else "16-bit"
            yield f"read-out {DTYPES[dtype]} {products} width{width}", *found.pop()


# ------------------------------------------------------------------------------------------------ the table


def entry_of(name: str, kernel: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Entry:
    """Compile a launch for the GPU that the driver has and read what came out."""
    done = kernel.warmup(*args, grid=(1,), **options)
    code = done.asm["ptx"]
    registers, stack = resources(done.asm["cubin"])
    counts = (code.count("wgmma.mma_async"), code.count("mma.sync."), code.count("cp.async.c"), code.count("cp.async.bulk.tensor"))
    facts = done.metadata
    return Entry(name, registers, stack, facts.shared, facts.num_warps, facts.num_stages, *counts)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack, as the disassembler in Triton's wheel reads them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        said = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
    facts = dict(word.split(":", 1) for word in said.split() if word.startswith(("REG:", "STACK:")))
    return int(facts["REG"]), int(facts["STACK"])


def compiled(targets: Iterable[int] = TARGETS, pattern: str = "*") -> Iterator[Entry]:
    """The entries whose name a pattern fits, one by one as they are compiled."""
    for target in targets:
        compile_for(target)
        for launch, *what in launches(target):
            name = f"sm_{target} {launch}"
            if fnmatch(name, pattern):
                yield entry_of(name, *what)


def path_of(version: str) -> Path:
    """Where the table of a version of Triton is."""
    return RESULTS / f"kernels-triton-{version}.tsv"


def read(path: Path) -> dict[str, Entry]:
    """A table by names."""
    head, *lines = path.read_text().splitlines()
    if tuple(head.split("\t")) != Entry._fields:
        raise ValueError(f"{path.name}: columns {head.split()} came, expected {list(Entry._fields)}. Make it anew.")
    rows = (line.split("\t") for line in lines)
    return {name: Entry(name, *map(int, numbers)) for name, *numbers in rows}


def write(path: Path, entries: Mapping[str, Entry]) -> None:
    """A table, as text of one line for each entry."""
    lines = ("\t".join(map(str, entry)) for entry in (Entry._fields, *entries.values()))
    path.write_text("".join(f"{line}\n" for line in lines))


def main(
    only: Annotated[str, typer.Option("--only", help="Entries whose name this pattern of * fits; others stay as they are.")] = "*",
    out: Annotated[Path | None, typer.Option("--out", help="The table; bench/results/kernels-triton-VERSION.tsv otherwise.")] = None,
) -> None:
    """Compile the kernels for each target and write the table."""
    import triton

    if triton.knobs.runtime.interpret:
        raise typer.BadParameter("TRITON_INTERPRET is set: an interpreted kernel is not compiled. Unset it.")
    path = out or path_of(triton.__version__)
    entries = read(path) if path.exists() and only != "*" else {}
    for entry in compiled(pattern=only):
        entries[entry.name] = entry
        print(*entry, file=sys.stderr)
        write(path, entries)


if __name__ == "__main__":
    typer.run(main)
