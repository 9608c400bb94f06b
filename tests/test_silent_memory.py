"""A result has a size: it is planned, refused before it is computed where there is no room, and what an allocator says is one line."""

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import attrib
from attrib import cli, room, size
from attrib.edges import join
from attrib.room import free_memory, is_out_of_memory, named_shortage
from attrib.sparse import Column, lay
from attrib.types import Keep
from tests.builders import build, dictionary, prompt
from tests.test_budget import peak

KEEPS = [attrib.Dense(), attrib.TopK(3), attrib.Mass(0.9), attrib.Threshold(0.0)]


def ends(rule: Any = "topk") -> tuple[attrib.Dictionary, attrib.Dictionary]:
    k = {"k": 5} if rule == "topk" else {}
    source, target = (dictionary(rule, site=f"blocks.{layer}.hook_resid_pre", d_sae=64, **k) for layer in (1, 3))
    return source, target


def bytes_of(edges: attrib.Edges) -> int:
    nodes = [getattr(table, name) for table in (edges.sources, edges.targets) for name in ("position", "latent", "activation")]
    columns = [edges.indptr, edges.indices, edges.gradient, edges.attribution, edges.total, edges.l1, *nodes]
    return sum(column.numel() * column.element_size() for column in columns)


@pytest.mark.parametrize("keep", KEEPS, ids=str)
@pytest.mark.parametrize("rule", ["topk", "standard"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_plan_counts_the_result(rule: str, keep: Keep, dtype: str) -> None:
    model, (source, target), tokens = build("gpt2"), ends(rule), [prompt(9), prompt(5, seed=1)]
    planned = attrib.plan(model, source, target, tokens, keep=keep, dtype=dtype)
    held = bytes_of(attrib.latent_to_latent(model, source, target, tokens, keep=keep, dtype=dtype))
    assert held <= planned.result
    if isinstance(keep, attrib.Dense | attrib.TopK):
        assert planned.result < 1.02 * held + 100
    assert f"result up to {planned.result / 1e6:.1f} MB" in str(planned)


@pytest.mark.parametrize("rule", ["topk", "standard"])
def test_a_result_without_room_is_refused_before_it_is_computed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (source, target), tokens = build("gpt2"), ends(rule), [prompt(9), prompt(5, seed=1)]
    needs = [attrib.plan(model, source, target, ids).result for ids in tokens]
    monkeypatch.setattr("attrib.attribute.adjoint", lambda *_: pytest.fail("a sweep"))
    # counted beforehand, both prompts are in the number; else what is known at the first that does not fit
    monkeypatch.setattr(size, "free_memory", lambda: 2 * needs[0] - 2 if rule == "standard" else 2 * sum(needs) - 2)
    with pytest.raises(
        attrib.BudgetError, match=r"keep: Dense\(\) would keep up to [\d,]+ edges.*TopK\(k\) fits up to k = \d+; Mass"
    ) as refused:
        attrib.latent_to_latent(model, source, target, tokens)
    assert isinstance(refused.value, MemoryError)
    assert ("of the first 1 of 2 prompts" in str(refused.value)) == (rule == "standard")


def test_the_rules_that_are_named_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (source, target), tokens = build("gpt2"), ends(), [prompt(9), prompt(9, seed=1)]
    monkeypatch.setattr(size, "free_memory", lambda: attrib.plan(model, source, target, tokens).result)
    with pytest.raises(attrib.BudgetError) as refused:
        attrib.latent_to_latent(model, source, target, tokens)
    most = int(str(refused.value).split("k = ")[1].split(";")[0])
    assert most > 1
    for keep in (attrib.TopK(most), attrib.Mass(0.99)):
        assert len(attrib.latent_to_latent(model, source, target, tokens, keep=keep)) > 0
    with pytest.raises(attrib.BudgetError, match=r"keep: TopK\(k=1000\)"):
        attrib.latent_to_latent(model, source, target, tokens, keep=attrib.TopK(1000))


def test_a_result_is_not_in_memory_twice() -> None:
    many = 200
    parts = [torch.full((10_000,), float(number)) for number in range(many)]
    want = torch.cat(parts)
    held: list[int] = []

    def laid() -> None:
        held.append(peak(lambda: lay([part.clone() for part in parts])))

    laid()
    assert held[0] < 2.02 * many * 40_000  # in pages that are touched it is once: parts go as the whole fills
    given = [part.clone() for part in parts]
    assert torch.equal(lay(given), want)
    assert given == []
    (alone,) = (part.clone() for part in parts[:1])
    assert lay([alone]) is alone
    for most in (0, 3, len(want), 2 * len(want)):
        column = Column(want, most)
        for part in parts:
            column.append(part)
        assert torch.equal(found := column.take(), want)
        assert found.untyped_storage().nbytes() == want.untyped_storage().nbytes()


def test_joining_gives_what_the_prompts_give(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (source, target), tokens = build("gpt2"), ends(), [prompt(9), prompt(1), prompt(5, seed=1)]
    each = [attrib.latent_to_latent(model, source, target, ids) for ids in tokens]
    whole = join(iter(each))
    for number, edges in enumerate(each):
        assert torch.equal(whole.prompt(number).indices, edges.indices)
        assert torch.equal(whole.prompt(number).gradient, edges.gradient)
        assert torch.equal(whole.prompt(number).total, edges.total)


ERRORS = [
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    ),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
    MemoryError("Unable to allocate 2 GiB for an array"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_an_allocator_says_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    model, (source, target) = build("gpt2"), ends()
    with monkeypatch.context() as broken:
        broken.setattr("attrib.attribute.path", fails)
        with pytest.raises(attrib.BudgetError, match=r"^memory: it did not suffice.*Take fewer or shorter prompts") as caught:
            attrib.latent_to_latent(model, source, target, prompt(4))
    assert "\n" not in str(caught.value)
    for raised in (error, caught.value):
        assert is_out_of_memory(raised)
        monkeypatch.setattr(cli, "app", lambda raised=raised: (_ for _ in ()).throw(raised))
        monkeypatch.setattr(sys, "argv", ["attrib"])
        with pytest.raises(SystemExit):
            cli.main()
        line = capsys.readouterr().err
        assert line.startswith("error: memory: it did not suffice")
        assert line.count("\n") == 1


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"^shapes$"), named_shortage("Less."):
        raise RuntimeError("shapes")
    monkeypatch.setattr(cli, "app", lambda: (_ for _ in ()).throw(RuntimeError("shapes")))
    monkeypatch.setattr(sys, "argv", ["attrib"])
    with pytest.raises(RuntimeError, match=r"^shapes$"):
        cli.main()


# ------------------------------------------------------------------------------- what is free


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    assert 0 < free_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize("version", [1, 2])
def test_the_narrowest_control_group_counts(tmp_path: Path, version: int) -> None:
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


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + 10_000_000, -1))
    assert 0 < free_memory() <= 20_000_000
