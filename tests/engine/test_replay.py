"""Sweeps that are captured and replayed, on a device that is not there: values are the CPU's, and much less is asked for."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies
from torch import Tensor

import attrib
from attrib.core.devices import Brought
from attrib.core.edges import Edges
from attrib.core.types import LINEAR, RELP, InputError, TopK, TopLogits
from attrib.engine import replay, tiles
from attrib.engine.filled import FILLED, bucket, shape_for
from attrib.engine.replay import Replays
from attrib.engine.sweep import cells
from attrib.models.transformer import Model
from tests.support import pretend
from tests.support.attribution_cases import Lens
from tests.support.builders import Family, build, prompt
from tests.support.cut_cases import SETS, ours
from tests.support.examples import examples
from tests.support.pretend import NAME, Device, pretending
from tests.support.tolerances import ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PROMPTS = [prompt(9, seed=number) for number in range(7)]
BUDGET = 1 << 30


@pytest.fixture(autouse=True)
def each_prompt_is_a_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """As prompts of a large model are."""
    monkeypatch.setattr(cells, "ON_CUDA", cells.ON_CUDA._replace(pack=1))


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many operations each capture has."""
    found, real = list[int](), Replays._capture

    def capture(self: Replays, *given: Any) -> Any:
        made = real(self, *given)
        if made[1] is not None:
            found.append(len(made[1].graph.done))
        return made

    monkeypatch.setattr(Replays, "_capture", capture)
    return found


def lens(at: int, kind: str = "topk", where: str = "hook_resid_pre", dtype: torch.dtype = torch.float64) -> attrib.Dictionary:
    return Lens(kind, f"blocks.{at}.{where}", seed=3 + at).dictionary("gpt2", dtype)  # type: ignore[arg-type]


def there(given: Any) -> Any:
    return given.to(device=NAME) if hasattr(given, "to") else given


MODEL = build("gpt2", torch.float64)
Call = Callable[[Callable[[Any], Any], dict[str, Any]], Edges]


def call_of(source: Any, target: Any, model: Model | Family = MODEL, prompts: list[Tensor] = PROMPTS, **usual: Any) -> Call:
    """An attribution, to be made where everything is put."""

    def call(put: Callable[[Any], Any], options: dict[str, Any]) -> Edges:
        options, on = {"keep": TopK(5), **usual, **options}, put(build(model, torch.float64) if isinstance(model, str) else model)
        if source is None:
            return attrib.token_to_latent(on, put(target), prompts, **options)
        if not isinstance(target, attrib.Dictionary):
            return attrib.latent_to_logit(on, put(source), prompts, logits=target, **options)
        return attrib.latent_to_latent(on, put(source), put(target), prompts, **options)

    return call


def on_device(call: Call, **options: Any) -> tuple[Edges, Device]:
    with pretending() as device:
        device.begin()
        return call(there, {"budget": BUDGET, **options}), device


def assert_same(found: Edges, want: Edges) -> None:
    """The same edges, and tables of both ends."""
    for name in ("indptr", "indices"):
        assert torch.equal(getattr(found, name), getattr(want, name)), name
    for name in ("gradient", "attribution", "total", "l1"):
        assert_close(getattr(found, name), getattr(want, name), ROUNDING)
    for end in ("sources", "targets"):
        for name in ("position", "latent", "ptr"):
            assert torch.equal(getattr(getattr(found, end), name), getattr(getattr(want, end), name)), (end, name)
        assert_close(getattr(found, end).activation, getattr(want, end).activation, ROUNDING)


CASES: dict[str, Call] = {
    "latents of TopK": call_of(lens(0), lens(3)),
    "LINEAR": call_of(lens(0), lens(3), policy=LINEAR),
    "RELP": call_of(lens(1), lens(2), policy=RELP),
    "within a layer": call_of(lens(1), lens(1, where="hook_resid_mid")),
    "tokens": call_of(None, lens(2)),
    "logits": call_of(lens(1), TopLogits(3)),
    "another family": call_of(
        Lens("topk", "blocks.0.hook_resid_pre").dictionary("gemma2", torch.float64),
        Lens("topk", "blocks.2.hook_resid_pre").dictionary("gemma2", torch.float64), "gemma2",
    ),
    "bfloat16": call_of(lens(0, dtype=torch.float32), lens(3, dtype=torch.float32), build("gpt2", torch.float32), dtype="bfloat16"),
    "without the error": call_of(lens(0), lens(3), error=False),
    "filled up": call_of(lens(0, "jumprelu"), lens(3, "jumprelu")),
    "filled up at one end": call_of(lens(0, "standard"), lens(3)),
    "some positions": call_of(lens(0, "jumprelu"), lens(3), positions=[-1, 2]),
}  # fmt: skip


FILLED_UP = {"filled up", "filled up at one end", "some positions"}
"""Whose prompts have several shapes, of which so few prompts replay few."""


@pytest.mark.few
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("what", CASES)
def test_values_are_those_of_the_cpu_and_less_is_asked_for(what: str, captured: list[int]):
    call = CASES[what]
    reduced = {"precision_rows": 0} if what == "bfloat16" else {}
    plain, before = on_device(call, **reduced)
    found, device = on_device(call, replay=True, **reduced)
    want = plain if what == "bfloat16" else call(lambda given: given, {})  # the CPU's bfloat16 has other pieces
    assert_same(found, want)
    assert captured, "nothing was captured"
    if what not in FILLED_UP:
        saved = before.counts.total.launches - device.counts.total.launches
        assert saved > captured[0], "five replays save more than one capture costs"
    assert device.counts.total.waits <= before.counts.total.waits


@pytest.mark.parametrize("cells_of_a_pack", [60, 400])
def test_packs_of_several_prompts(cells_of_a_pack: int, captured: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cells, "ON_CUDA", cells.ON_CUDA._replace(pack=cells_of_a_pack))
    call = call_of(lens(0), lens(3), prompts=[prompt(5, seed=number) for number in range(16)])
    assert_same(on_device(call, replay=True)[0], call(lambda given: given, {}))
    assert len(captured) == 1


def test_prompts_of_several_lengths_each_have_their_own(captured: list[int]):
    call = call_of(lens(0), lens(3), prompts=[prompt(length, seed=number) for number, length in enumerate((4, 6, 1) * 4)])
    assert_same(on_device(call, replay=True)[0], call(lambda given: given, {}))
    assert len(captured) == 3


def test_a_shape_that_comes_once_is_not_captured(captured: list[int]):
    call = call_of(lens(0), lens(3), prompts=[prompt(length) for length in (3, 4, 5)])
    found, device = on_device(call, replay=True)
    assert_same(found, call(lambda given: given, {}))
    assert not captured
    assert device.counts.total.launches == on_device(call)[1].counts.total.launches


# ------------------------------------------------------------------------------------ what would be wrong is seen


def broken(patch: pytest.MonkeyPatch) -> None:
    """The numbers of the prompt are not brought to where the sweep reads them."""
    patch.setattr(torch, "_foreach_copy_", lambda into, given: None)


def not_taken(patch: pytest.MonkeyPatch) -> None:
    """What a replay finds is handed on where the next writes it too."""
    patch.setattr(replay._Captured, "replay", lambda self, paths: self.found)


@pytest.mark.parametrize("fault", [broken, not_taken])
def test_values_of_another_prompt_are_seen(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch):
    fault(monkeypatch)
    call = CASES["latents of TopK"]
    with pytest.raises((AssertionError, attrib.NotFiniteError)):
        assert_same(on_device(call, replay=True)[0], call(lambda given: given, {}))


def test_a_replay_reads_nothing_of_the_host():
    """A sum of two vectors, of which one comes from the host: a capture would read the host's memory again."""
    with pretending() as device:
        there, module = torch.ones(2).to(NAME), pretend._Module
        stream = module.Stream(NAME)
        with pytest.raises(RuntimeError, match="when stream is capturing"), module.graph(pretend.Graph(), stream=stream):
            there += torch.ones(2).to(NAME, non_blocking=True)
        with pytest.raises(RuntimeError, match="when stream is capturing"), module.graph(pretend.Graph(), stream=stream):
            there.sum().item()
        graph = pretend.Graph()
        with module.graph(graph, stream=stream):
            doubled = there * 2
            there += 1
        assert there.tolist() == [1, 1], "nothing that is captured is done"
        assert doubled.isnan().all()
        there.fill_(5)
        before = device.counts.total.launches
        graph.replay()
        assert device.counts.total.launches == before + 1
        assert (there.tolist(), doubled.tolist()) == ([6, 6], [10, 10])


# ------------------------------------------------------------------------------------ where it cannot be


def waits(patch: pytest.MonkeyPatch) -> str:
    real = tiles.at_once
    patch.setattr(tiles, "at_once", lambda *given: (float(given[0][0].x.sum()), real(*given))[1])
    return "operation not permitted when stream is capturing"


def brings(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(Brought, "of", lambda self, numbers, device: torch.tensor(numbers).to(device, non_blocking=True))
    return "would read or write the host's memory"


def is_full(patch: pytest.MonkeyPatch) -> str:
    def graph(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMuch more about it.")

    patch.setattr(pretend._Module, "graph", graph)
    return r"CUDA out of memory\.\)"


@pytest.mark.parametrize("why", [waits, brings, is_full])
def test_what_cannot_be_captured_is_said_and_asked_for_as_usual(why: Callable[[pytest.MonkeyPatch], str], monkeypatch: pytest.MonkeyPatch):
    call = CASES["latents of TopK"]
    want, said = call(lambda given: given, {}), why(monkeypatch)
    with pytest.warns(UserWarning, match=r"replay: sweeps cannot be captured.*" + said) as warned:
        found, device = on_device(call, replay=True)
    assert len([each for each in warned if "replay" in str(each.message)]) == 1
    assert_same(found, want)
    assert device.counts.total.launches > 7 * 100


def test_dictionaries_that_are_passed_are_asked_as_usual():
    cuts = ours(SETS["transcoders"](MODEL))
    source, target = lens(0), lens(3)

    def call(put: Callable[[Any], Any], options: dict[str, Any]) -> Edges:
        cuts_there = [put(cut) for cut in cuts]
        return attrib.latent_to_latent(put(MODEL), put(source), put(target), PROMPTS, cuts=cuts_there, effect="total", **options)

    with pytest.warns(UserWarning, match="replay: sweeps cannot be captured"):
        found, _ = on_device(call, replay=True)
    assert_same(found, call(lambda given: given, {}))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "torch.func": ({"method": "torch.func"}, "method='torch.func'"),
    "the kernels": ({"method": "adjoint-triton"}, "numbers of the host"),
    "a rule": ({"rule": attrib.IntegratedGradients(4)}, "looks at more points"),
    "several devices": ({"device": [f"{NAME}:0", f"{NAME}:1"]}, "several devices"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_go_with_it_is_refused_by_name(what: str):
    options, said = REFUSED[what]
    with pretending(count=2), pytest.raises(InputError, match=said):
        CASES["latents of TopK"](there, {"replay": True} | options)


def test_it_is_refused_on_a_cpu_and_for_several_ends():
    with pytest.raises(InputError, match="replay: True, and the model is on a CPU"):
        CASES["latents of TopK"](lambda given: given, {"replay": True})
    with pretending():
        model, ends = there(MODEL), [there(lens(at)) for at in (0, 1, 3)]
        with pytest.raises(InputError, match="replay: True, and several sources"):
            attrib.latent_to_latent(model, ends[:2], ends[2], PROMPTS, replay=True)
        with pytest.raises(InputError, match="replay: True, and several sources"):
            attrib.jacobian(model, ends[:2], ends[2], PROMPTS, replay=True)


def test_what_is_handed_on_stays_as_it_is(captured: list[int], monkeypatch: pytest.MonkeyPatch):
    """A replay writes where the one before it has written."""
    seen, real = list[tuple[Tensor, Tensor]](), Replays.adjoint

    def adjoint(self: Replays, *given: Any) -> Any:
        for number, tile in real(self, *given):
            seen.append((tile.gradient, tile.gradient.clone()))
            yield number, tile

    monkeypatch.setattr(Replays, "adjoint", adjoint)
    with pretending():
        CASES["latents of TopK"](there, {"budget": BUDGET, "replay": True})
        assert captured
        assert len(seen) == len(PROMPTS)
        assert all(torch.equal(tile, then) for tile, then in seen)


# ------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_captured_sweeps_are_within_the_budget(kind: str, captured: list[int], monkeypatch: pytest.MonkeyPatch):
    """Those that were not replayed for longest are let go of where others need the memory. What hashes of weights take is not looked at."""
    monkeypatch.setattr(replay, "ON_THE_WAY", 0)
    begun, real = list[int](), Replays.adjoint

    def adjoint(self: Replays, *given: Any) -> Any:
        if pretend._STANDING and not begun:
            pretend._STANDING[-1].counts.peak = 0
        begun.append(1)
        return real(self, *given)

    monkeypatch.setattr(Replays, "adjoint", adjoint)
    prompts = [prompt(length, seed=length) for length in (5, 7, 9, 11) for _ in range(2)] * 2 + [prompt(40)]
    call = call_of(lens(0, kind), lens(3, kind), prompts=prompts)
    want = call(lambda given: given, {})
    with pytest.raises(attrib.BudgetError) as refused:
        call(lambda given: given, {"budget": 1})
    [least] = re.findall(r"at least ([\d,]+)", str(refused.value))
    for share in (16, 64):
        budget = share * int(least.replace(",", ""))
        begun.clear()
        with pretending() as device:
            ends = there(MODEL), there(lens(0, kind)), there(lens(3, kind))
            before = device.held
            device.begin()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = attrib.latent_to_latent(*ends, prompts, keep=TopK(5), replay=True, budget=budget)
            peak = device.counts.peak - before
            assert device.held == before, "something is left"
        assert_same(found, want)
        assert peak <= budget
    assert len(captured) > 1


# ------------------------------------------------------------------------------------ shapes


ROWS = strategies.lists(strategies.integers(0, 40), min_size=1, max_size=12).map(tuple)


@given(ROWS)
@settings(max_examples=examples(200), deadline=None)
def test_a_bucket_has_room(counts: tuple[int, ...]):
    found = bucket(counts)
    assert len(found) == len(counts)
    assert all(more >= count for more, count in zip(found, counts, strict=True))
    assert bucket(found) == found, "a shape that is filled up stays as it is"
    assert sum(map(bool, found)) <= len(counts)


BUCKETS = [
    ((50,) * 4, (50,) * 4), ((3, 9, 0, 1), (3, 10, 10, 10)), ((0, 0, 4, 0), (0, 0, 4, 0)), ((0,), (0,)),
    ((1000, 50, 50), (1024, 50, 50)), ((0, 0, 37), (0, 0, 40)),
]  # fmt: skip


@pytest.mark.parametrize(("counts", "want"), BUCKETS)
def test_buckets(counts: tuple[int, ...], want: tuple[int, ...]):
    assert bucket(counts) == want


@given(strategies.lists(strategies.tuples(ROWS, ROWS), max_size=6), strategies.tuples(ROWS, ROWS))
@settings(max_examples=examples(200), deadline=None)
def test_a_shape_has_room_and_is_not_too_large(known: list[Any], ends: Any):
    found = shape_for(ends, known)
    for more, counts in zip(found, ends, strict=True):
        assert all(a >= b for a, b in zip(more, counts, strict=True))
        assert sum(more) <= FILLED * sum(counts)


def test_a_known_shape_is_taken():
    ends = ((2, 2), (3, 3))
    assert shape_for(ends, [((4, 4), (4, 4)), ((2, 3), (3, 3)), ((2,), (3,))]) == ((2, 3), (3, 3))
    assert shape_for(ends, [((9, 9), (3, 3))]) == ends
