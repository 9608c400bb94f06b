"""Results on their way to the host, on a device that is not there: they are the CPU's, come late, and nothing waits for them too early."""

import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.scratch import Scratch
from attrib.core.types import LINEAR, Dense, Keep, Mass, NotFiniteError, Threshold, TopK, TopLogits
from attrib.engine import bundle, outgoing, tiles
from attrib.engine.outgoing import Outgoing
from attrib.engine.spread import Team
from attrib.graph.building import build as build_graphs
from attrib.graph.selected import Selected
from tests.support import pretend
from tests.support.attribution_cases import Lens
from tests.support.builders import build, prompt
from tests.support.cut_cases import SETS, ours
from tests.support.pretend import NAME, Device, RaceError, pretending
from tests.support.tolerances import ROUNDING, assert_close

ROOM = 1 << 20


def sent(way: Outgoing, values: list[Any], into: list[Any]) -> None:
    way.send([torch.tensor(each).to(NAME) for each in values], lambda found: into.append([each.tolist() for each in found]))


FIRST, SECOND = [[1.5, -2.0], 7, [[True], [False]], []], [[3], [0.1]]


# ------------------------------------------------------------------------------------ on their way


def test_on_a_cpu_they_are_there():
    given, taken = [torch.ones(3), torch.arange(2)], list[list[Tensor]]()
    Outgoing(ROOM).send(given, taken.append)
    assert all(map(lambda got, want: got is want, taken[0], given))


def test_they_come_late_and_in_order():
    taken = list[Any]()
    with pretending() as device:
        way = Outgoing(ROOM)
        sent(way, FIRST, taken)
        before = device.counts.total
        sent(way, SECOND, taken)
        assert not taken
        way.finish()
        assert taken == [FIRST, [[3], [pytest.approx(0.1)]]]
        assert device.counts.total.events == 2
        assert device.counts.total.to_host == 2
        # each tensor was copied there by the test, which waited; nothing else was waited for
        assert device.counts.total.waits - before.waits == len(SECOND)
        assert (way.size, device.held) == (0, 0)


def test_what_has_come_is_taken_without_waiting():
    taken = list[Any]()
    with pretending() as device:
        device.comes_after = 0
        sent(Outgoing(ROOM), FIRST, taken)
        assert taken == [FIRST]
        assert device.counts.total.events == 0


@pytest.mark.parametrize(("room", "late"), [(0, 0), (21, 1), (62, 2), (63, 3), (84, 4)])
def test_no_more_are_on_their_way_than_there_is_room_for(room: int, late: int):
    """Of four results of 21 bytes, and one of 160 that is waited for in any case."""
    taken = list[Any]()
    with pretending() as device:
        way = Outgoing(room)
        for number in range(4):
            sent(way, [[number, 0], [number / 2], [True]], taken)
            assert way.size <= room
        assert len(taken) == 4 - late
        sent(way, [[*range(20)]], taken)
        assert [each[0][0] for each in taken] == [0, 1, 2, 3, 0]
        assert device.held == 0


def test_an_error_or_an_interrupt_leaves_nothing_in_the_way_of_others():
    def fails(found: list[Tensor]) -> None:
        raise KeyboardInterrupt

    taken = list[Any]()
    with pretending():
        way = Outgoing(ROOM)
        way.send([torch.ones(3).to(NAME)], fails)
        sent(way, FIRST, taken)
        with pytest.raises(KeyboardInterrupt):
            way.finish()
        del way
        sent(other := Outgoing(ROOM), SECOND, taken)
        other.finish()
    assert taken == [[[3], [pytest.approx(0.1)]]]


# ------------------------------------------------------------------------------------ faults are found


def nothing(*_: Any) -> None:
    """What a careless copy would leave out."""


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "the stream does not wait": ("expected wait_stream", lambda patch: patch.setattr(pretend.Stream, "wait_stream", nothing)),
    "the source is not held": ("expected record_stream", lambda patch: patch.setattr(pretend.There, "record_stream", nothing)),
    "the event is not waited for": ("wait for its event", lambda patch: patch.setattr(pretend.Event, "synchronize", nothing)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_careless_copy_is_found(fault: str, monkeypatch: pytest.MonkeyPatch):
    said, careless = FAULTS[fault]
    careless(monkeypatch)
    with pretending():
        there, way = torch.ones(3).to(NAME), Outgoing(ROOM)

        def call() -> None:
            way.send([there], torch.cat)  # type: ignore[arg-type]
            way.finish()

        with pytest.raises(RaceError, match=said):
            call()


def test_memory_that_is_not_pinned_is_waited_for():
    with pretending() as device:
        there = torch.ones(3).to(NAME)
        device.begin()
        torch.empty(3).copy_(there, non_blocking=True)
        assert device.counts.total.waits == 1
        torch.empty(3, pin_memory=True).copy_(there, non_blocking=True)
        assert device.counts.total.waits == 1


def test_what_comes_is_no_number_before_it_has_come():
    with pretending():
        here = torch.empty(2, pin_memory=True)
        here.copy_(torch.ones(2).to(NAME), non_blocking=True)
        assert here.numpy().tobytes() == b"\xff" * 8  # past torch, as numpy reads it
        with pytest.raises(RaceError, match="wait for its event"):
            here.sum()


# ------------------------------------------------------------------------------------ whole calls


def lens(at: int, dtype: torch.dtype) -> attrib.Dictionary:
    return Lens("topk", f"blocks.{at}.hook_resid_pre", seed=3 + at).dictionary("gpt2", dtype)  # type: ignore[arg-type]


IDS = prompt(5)


class Case:
    """A call that has several sweeps at its budget, where all that it needs lies on a device, or on the first of several."""

    def __init__(self, what: str, dtype: torch.dtype, where: str | list[str] = "cpu") -> None:
        model = build("gpt2", dtype)
        ends = ours(SETS["transcoders"](model))[:1] if what == "graph" else [lens(at, dtype) for at in (0, 1, 2)]
        first = where if isinstance(where, str) else where[0]
        self.what, self.model, self.ends = what, model.to(device=first), [each.to(device=first) for each in ends]
        self.options: dict[str, Any] = {} if isinstance(where, str) else {"device": where}

    def __call__(self, **options: Any) -> Any:
        model, ends, options = self.model, self.ends, options | self.options
        if self.what == "graph":
            return build_graphs(model, ends, [IDS[:3]], targets=TopLogits(2), **options)
        if self.what == "jacobian":
            return attrib.jacobian(model, ends[:2], [ends[2], TopLogits(2)], [IDS], policy=LINEAR, **options)
        tokens = [IDS, IDS[:2]] if self.what == "prompts" else IDS
        return attrib.latent_to_latent(model, ends[0], ends[2], tokens, policy=LINEAR, **options)

    def least(self) -> int:
        """The smallest budget."""
        with pytest.raises(attrib.BudgetError) as refused:
            self(budget=1)
        [least] = re.findall(r"at least ([\d,]+)", str(refused.value))
        return int(least.replace(",", ""))


@pytest.fixture
def much_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a plan does not leave of so small a budget."""
    monkeypatch.setattr(Team, "left", lambda *_: ROOM)


def columns(found: Any) -> list[Tensor]:
    """All that a result holds of its edges."""
    if isinstance(found, dict):
        return [column for each in found.values() for column in columns(each)]
    if isinstance(found, list):
        return [column for each in found for column in columns(each)]
    edges = ("weight",) if isinstance(found, attrib.graph.Graph) else ("gradient", "attribution")
    return [getattr(found, name) for name in ("indptr", "indices", *edges, "total", "l1")]


CASES: dict[str, tuple[str, torch.dtype, Keep, int, int | None]] = {
    "TopK": ("path", torch.float64, TopK(3), 1, None),
    "Threshold": ("path", torch.float32, Threshold(0.01), 1, None),
    "Mass": ("path", torch.float32, Mass(0.9), 1, 30),
    "dense": ("path", torch.float64, Dense(), 1, None),
    "prompts": ("prompts", torch.float32, TopK(3), 1, None),
    "a Jacobian": ("jacobian", torch.float64, TopK(4), 1, None),
    "a Jacobian, by mass": ("jacobian", torch.float32, Mass(0.9), 1, 0),
    "a graph": ("graph", torch.float64, TopK(5), 1, None),
    "a graph, by mass": ("graph", torch.float32, Mass(0.9), 1, None),
    "two devices": ("path", torch.float64, TopK(3), 2, None),
    "a Jacobian on two": ("jacobian", torch.float64, Dense(), 2, 20),
    "a graph on two": ("graph", torch.float64, TopK(5), 2, None),
}


@pytest.mark.few
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("what", CASES)
@pytest.mark.usefixtures("much_is_left")
def test_the_values_are_those_of_the_cpu(what: str, monkeypatch: pytest.MonkeyPatch):
    kind, dtype, keep, count, comes_after = CASES[what]
    real, begun = Outgoing._begun, list[int]()
    monkeypatch.setattr(Outgoing, "_begun", lambda self, *given: (begun.append(1), real(self, *given))[1])
    want = columns(Case(kind, dtype)(keep=keep))
    with pretending(count=count) as device:
        case = Case(kind, dtype, [f"{NAME}:{number}" for number in range(count)] if count > 1 else NAME)
        device.comes_after = comes_after
        got = columns(case(keep=keep, budget=2 * case.least()))
    assert len(begun) > 1, "nothing was on its way"
    for here, there in zip(want, got, strict=True):
        if here.is_floating_point():
            assert_close(there, here, ROUNDING)
        else:
            assert torch.equal(there, here)


@pytest.mark.parametrize("keep", [TopK(2), Mass(0.7), Threshold(0.5), Dense()], ids=str)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_what_is_kept_of_a_graph(keep: Keep, where: str, tmp_path: Path):
    """Rows whose whole columns are kept, rows of which none has an entry, and others."""
    gaps = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    rows = [torch.randn(number + 1, 5, generator=torch.Generator().manual_seed(number)) * (gaps if number else 1) for number in range(3)]
    rows.insert(1, torch.zeros(2, 5))

    def found(put: Callable[[Tensor], Tensor], way: Outgoing) -> list[Tensor]:
        with Scratch(tmp_path) as scratch:
            selected = Selected(torch.float32, *([scratch.column, torch.int32] if where == "disk" else []), outgoing=way)
            for number, weight in enumerate(rows):
                selected.add(torch.arange(len(weight)) + 10 * (5 - number), put(weight), torch.arange(5) * 2 + number, keep)
            ordered = selected.ordered()
            return [*ordered[:4], *ordered.whole()]

    want = found(lambda weight: weight, Outgoing())
    with pretending() as device:
        got = found(lambda weight: weight.to(NAME), Outgoing(ROOM))
        assert device.counts.total.events == len(rows)
        assert device.counts.total.waits == len(rows) * (1 if isinstance(keep, TopK) else 2)  # the test's copy, and how many there are
    assert all(map(torch.equal, got, want))


# ------------------------------------------------------------------------------------ when it is waited for


def begins(device: Device, monkeypatch: pytest.MonkeyPatch, fail: Callable[[int], None] = nothing) -> list[int]:
    """How many launches there had been as each sweep began."""
    real, found = tiles._sweep, list[int]()

    def sweep(*given: Any) -> Any:
        found.append(sum(device.launched.values()))
        fail(len(found))
        return real(*given)

    monkeypatch.setattr(tiles, "_sweep", sweep)
    return found


@pytest.mark.usefixtures("much_is_left")
def test_no_wait_comes_before_the_next_sweep_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    """Of few sweeps and of many; and where there is room for one result or two, so that results are waited for in between."""
    waits = set[int]()
    with pretending() as device:
        case = Case("path", torch.float64, NAME)
        case(keep=TopK(3))  # the weights' hashes are known from here on
        least, begun = case.least(), begins(device, monkeypatch)
        for times, most in ((1.1, ROOM), (1.4, ROOM), (1.1, 1000)):
            monkeypatch.setattr(outgoing, "MOST", most)
            device.begin()
            begun.clear()
            case(keep=TopK(3), budget=int(times * least))
            assert len(begun) > 2
            assert len(device.waited) == device.counts.total.events == len(begun)
            for waited, after in zip(device.waited, begun[1:], strict=False):
                assert waited > after
            assert (device.waited[0] < begun[-1]) == (most < ROOM), "there was room for all, or not"
            waits.add(device.counts.total.waits)
    assert len(waits) == 1, "more sweeps are not waited for more often"


@pytest.mark.usefixtures("much_is_left")
def test_memory_that_runs_out_and_a_call_that_ends_in_between(monkeypatch: pytest.MonkeyPatch):
    want = columns(Case("path", torch.float64)(keep=TopK(3)))
    raised, real = list[BaseException](), tiles._sweep

    def fail(number: int) -> None:
        if number == 2 and raised:
            raise raised.pop()

    with pretending() as device:
        case = Case("path", torch.float64, NAME)
        budget, begun = 2 * case.least(), begins(device, monkeypatch, fail)
        raised.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            case(keep=TopK(3), budget=budget)
        begun.clear()
        raised.append(torch.OutOfMemoryError("CUDA out of memory."))
        with pytest.warns(UserWarning, match="out of memory with"):
            got = columns(case(keep=TopK(3), budget=budget))
        for here, there in zip(want, got, strict=True):
            assert_close(there.double(), here.double(), ROUNDING)
        monkeypatch.setattr(tiles, "_sweep", lambda *given: [each * torch.nan for each in real(*given)])
        with pytest.raises(NotFiniteError, match="the gradients of"):
            case(keep=TopK(3), budget=budget)


@pytest.mark.usefixtures("much_is_left")
def test_nothing_of_a_sweep_is_there_while_the_next_is_swept(monkeypatch: pytest.MonkeyPatch):
    """Rows themselves are let go of, though what is kept of them is still on its way."""
    real, before = bundle.sweep, list[list[weakref.ref[Tensor]]]()

    def sweep(*given: Any) -> Any:
        assert not [1 for each in before[-1:] for ref in each if ref() is not None]
        found = real(*given)
        before.append([weakref.ref(part) for rows in found for block in rows.blocks for part in block.value])
        return found

    monkeypatch.setattr(bundle, "sweep", sweep)
    with pretending():
        case = Case("jacobian", torch.float64, NAME)
        case(keep=TopK(5), budget=int(1.5 * case.least()))
    assert len(before) > 2
    assert all(before)
