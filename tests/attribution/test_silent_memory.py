"""A result has a size: it is planned, refused before it is computed where there is no room; and what an allocator says is one line."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attrib
import attrib.attribution.loop
import attrib.attribution.needs
import attrib.attribution.questions
import attrib.cli.main
import attrib.engine.tiles
from attrib.core import room
from attrib.core.edges import Edges, Growing, concatenated, join
from attrib.core.keep import RULES, is_counted
from attrib.core.types import AttribError, BudgetError, OutOfMemoryError, Threshold
from attrib.engine.plan.result import edges_at_most, result_bytes
from tests.support.builders import build, dictionary, prompt

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

KEEPS = [attrib.Dense(), attrib.TopK(4), attrib.Mass(0.5), Threshold(0.1)]


def test_every_keep_rule_is_among_them():
    assert {type(keep) for keep in KEEPS} == set(RULES.values())


rules = pytest.mark.parametrize("rule", ["topk", "standard"])


class Small:
    """A small call, and its plan."""

    def __init__(self, rule: str = "topk", lengths: tuple[int, ...] = (9, 5), dtype: str = "float32") -> None:
        k = {"k": 6} if rule == "topk" else {}
        self.ends = [dictionary(rule, site=f"blocks.{layer}.hook_resid_pre", **k) for layer in (1, 3)]
        self.tokens, self.dtype = [prompt(length, seed=length) for length in lengths], dtype

    def plan(self, **options: Any) -> attrib.Plan:
        return attrib.plan(build("llama"), *self.ends, self.tokens, dtype=self.dtype, **options)

    def run(self, **options: Any) -> Edges:
        return attrib.latent_to_latent(build("llama"), *self.ends, self.tokens, dtype=self.dtype, **options)


def held(edges: Edges) -> int:
    columns = [edges.indices, edges.gradient, edges.attribution, edges.total, edges.l1, edges.indptr]
    columns += [column for nodes in (edges.sources, edges.targets) for column in (nodes.position, nodes.latent, nodes.activation)]
    return sum(column.numel() * column.element_size() for column in columns)


# ------------------------------------------------------------------------------------------ its size


@pytest.mark.few
@pytest.mark.parametrize("keep", KEEPS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@rules
def test_the_result_is_in_the_plan(rule: str, dtype: str, keep: Any):
    case = Small(rule, dtype=dtype)
    edges, plan = case.run(keep=keep), case.plan(keep=keep)
    assert held(edges) - 8 <= plan.result
    if is_counted(keep):
        assert held(edges) >= 0.95 * plan.result
    assert len(edges) <= sum(edges_at_most(pack.task, keep) for pack in plan.packs)
    assert plan.result == sum(result_bytes(pack.task, keep) for pack in plan.packs)


def test_halves_are_given_as_float32_and_planned_so():
    model, source = build("llama", torch.bfloat16), dictionary("topk", k=6)
    options: dict[str, Any] = {"logits": attrib.TokenLogits([1, 2]), "precision_rows": 0}
    edges = attrib.latent_to_logit(model, source, [prompt(9)], **options)
    plan = attrib.plan(model, source, attrib.TokenLogits([1, 2]), [prompt(9)], precision_rows=0)
    assert 0.95 * plan.result <= held(edges) <= plan.result + 8


@pytest.mark.parametrize("method", ["adjoint", "torch.func"])
@rules
def test_a_result_that_memory_cannot_hold_is_refused(rule: str, method: str, monkeypatch: pytest.MonkeyPatch):
    case, computed = Small(rule), list[object]()
    free = int(case.plan().result)  # of which it may take half
    monkeypatch.setattr(attrib.attribution.needs, "free_memory", lambda: free)
    for where, name in ((attrib.attribution.loop, "path_of"), (attrib.engine.tiles, "adjoint"), (attrib.attribution.loop, "by_vjp")):
        plain = getattr(where, name)
        spied = lambda *a, plain=plain, name=name, **b: (computed.append(name), plain(*a, **b))[1]  # noqa: E731
        monkeypatch.setattr(where, name, spied)
    with pytest.raises(
        BudgetError, match=r"keep: Dense\(\) gives a result of up to \d.* memory are free.*keep=TopK\(\d+\) or fewer"
    ) as refused:
        case.run(method=method)
    # where active latents have to be counted, passes are made until the result is too large
    assert rule != "topk" or not computed
    k = int(re.search(r"TopK\(([\d,]+)\)", str(refused.value))[1].replace(",", ""))
    assert len(case.run(keep=attrib.TopK(k), method=method)) > 0
    assert len(case.run(keep=attrib.Mass(0.5), method=method)) > 0
    with pytest.raises(BudgetError, match=r"keep: TopK\(k=1000\)"):
        case.run(keep=attrib.TopK(1000), method=method)
    assert case.plan().result > 0.5 * free  # and is planned all the same


def test_columns_grow_and_are_let_go_of(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Growing, "LARGEST", 8)
    pieces = [torch.arange(size) + size for size in (3, 0, 20, 1, 5, 5, 5, 5, 30, 2)]
    column = Growing()
    for piece in pieces:
        column.add(piece)
    assert torch.equal(column.whole(pieces[1]), torch.cat(pieces))
    assert torch.equal(Growing().whole(pieces[1]), pieces[1])
    want = torch.cat(pieces)
    assert torch.equal(concatenated(pieces), want)
    assert pieces == []
    parts = [Small(lengths=(length,), dtype="float64").run() for length in (4, 7, 2)]
    want_whole = Small(lengths=(4, 7, 2), dtype="float64").run()
    for whole in (join(parts), join(parts, release=True)):
        for name in ("indptr", "indices", "gradient", "attribution", "total", "l1"):
            torch.testing.assert_close(getattr(whole, name), getattr(want_whole, name))
    assert parts == []


# ------------------------------------------------------------------------------- what allocators say


def fails(error: BaseException) -> None:
    raise error


FAULTS: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.empty(1 << 60, dtype=torch.int8),
    "numpy": lambda: np.empty(1 << 60, dtype=np.int8),
    "cuda": lambda: fails(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")),
    "cublas": lambda: fails(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")),
    "python": lambda: fails(MemoryError()),
}
faults = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@pytest.mark.few
@faults
def test_allocators_say_one_line(fault: Callable[[], object], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attrib.engine.tiles, "adjoint", lambda *_: fault())
    with pytest.raises(
        OutOfMemoryError, match=r"^out of memory while attributing 2 prompt.s. of up to 9 tokens \(.*keep fewer edges"
    ) as said:
        Small().run()
    assert isinstance(said.value, AttribError | MemoryError)
    assert "\n" not in str(said.value)


CALLS: dict[str, tuple[str, Callable[[], object]]] = {
    "plan": ("attrib.attribution.plan.check", lambda: Small().plan()),
    "path": ("attrib.paths.path.path_of", lambda: attrib.path(build("llama"), *Small().ends, prompt(4))),
    "capture": ("attrib.passes.capture.walk_model", lambda: attrib.capture(build("llama"), prompt(4), ["blocks.1.hook_resid_pre"])),
    "logits": ("attrib.passes.capture.unembed", lambda: attrib.forward(build("llama"), prompt(4))),
    "dense": ("attrib.core.edges.Edges.prompt", lambda: Small().run().dense(0)),
}


@pytest.mark.few
@pytest.mark.parametrize(("where", "call"), CALLS.values(), ids=CALLS)
def test_so_do_the_other_calls(where: str, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(where, lambda *_, **__: FAULTS["torch"]())
    with pytest.raises(OutOfMemoryError, match=r"^out of memory while") as said:
        call()
    assert "\n" not in str(said.value)


def test_other_faults_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(attrib.engine.tiles, "adjoint", lambda *_: fails(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"):
        Small().run()
    monkeypatch.setattr(attrib.cli.main, "app", lambda: fails(RuntimeError("shape mismatch")))
    monkeypatch.setattr(sys, "argv", ["attrib"])
    with pytest.raises(SystemExit):
        attrib.cli.main.main()
    assert capsys.readouterr().err.startswith("error: RuntimeError: shape mismatch\n")
    monkeypatch.setattr(sys, "argv", ["attrib", "--debug"])
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"):
        attrib.cli.main.main()


@faults
def test_the_command_line_says_one_line(fault: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(attrib.cli.main, "app", fault)
    monkeypatch.setattr(sys, "argv", ["attrib"])
    with pytest.raises(SystemExit):
        attrib.cli.main.main()
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (")
    assert "--keep topk:K" in said
    assert said.count("\n") == 1


# -------------------------------------------------------------------------------------- what is free


def test_free_memory_is_no_more_than_the_machine_has():
    psutil = pytest.importorskip("psutil")
    assert 0 < room.free_memory() <= psutil.virtual_memory().total
    assert room._mapped()[0] == pytest.approx(psutil.Process().memory_info().vms, rel=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="there alone it is not needed")
def test_free_memory_asks_no_other_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert room.free_memory() > 0


@pytest.mark.parametrize("version", [1, 2])
def test_the_narrowest_control_group_counts(tmp_path: Path, version: int):
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("9:cpu:/other\n4:memory:/a/b\n0::/none\n" if version == 1 else "0::/a/b\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    top = root / "memory" if version == 1 else root
    for group, limit, used in (("a", "1000", "300"), ("a/b", "max", "200")):
        (top / group).mkdir(parents=True, exist_ok=True)
        for name, text in zip(names, (limit, used), strict=True):
            (top / group / name).write_text(text)
    (top / "a" / "memory.stat").write_text("anon 100\ninactive_file 50\n")
    assert list(room._below_groups(root, own)) == [750]
    assert list(room._below_groups(root, tmp_path / "missing")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="says how much is data")
@pytest.mark.parametrize("which", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_limit_of_the_process_counts(which: str, monkeypatch: pytest.MonkeyPatch):
    import resource

    used, limited = room._mapped()[which == "RLIMIT_DATA"], getattr(resource, which)
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (used + 10_000_000 if asked == limited else -1, -1))
    assert 0 < room.free_memory() <= 20_000_000
