"""One call over two devices that are not there (tests/support/pretend.py): the values of one, and both have worked."""

import signal
import threading
from collections.abc import Callable
from time import sleep
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attrib
from attrib.attribution.options import Options
from attrib.core.devices import check_devices
from attrib.core.rates import FREE
from attrib.core.types import EXACT, LINEAR, RELP, Mass, TopK, TopLogits
from attrib.engine import bundle as bundles
from attrib.engine import tiles
from attrib.engine.precision import precision_of, products
from attrib.engine.spread import cut_runs
from attrib.engine.sweep import cells
from attrib.graph.building import build as build_graphs
from tests.engine.test_pretend import DOUBLE, lens, numbers
from tests.support.builders import build, prompt
from tests.support.cut_cases import SETS, ours
from tests.support.examples import examples
from tests.support.pretend import NAME, MixedDevicesError, pretending
from tests.support.tolerances import ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")

pytest.importorskip("sae_lens", exc_type=ImportError)  # of which the cases below are made
TWO = [f"{NAME}:0", f"{NAME}:1"]
IDS, PACK = prompt(5), [prompt(length, seed=length) for length in (3, 1)]
MODEL, GPT2 = build("llama", DOUBLE), build("gpt2", DOUBLE)
CUTS = ours(SETS["transcoders"](GPT2))
FIRST, SECOND, THIRD = lens(0), lens(1), lens(2)
Call = Callable[..., Any]

CALLS: dict[str, Call] = {
    "latents": lambda **device: attrib.latent_to_latent(MODEL, FIRST, SECOND, IDS, policy=EXACT, **device),
    "one position": lambda **device: attrib.latent_to_logit(MODEL, SECOND, IDS, logits=TopLogits(5), **device),
    "positions in another order": lambda **device: attrib.latent_to_logit(
        MODEL, THIRD, IDS, logits=TopLogits(2), positions=[-1, 0, 3], policy=LINEAR, **device
    ),
    "a pack": lambda **device: attrib.token_to_latent(MODEL, SECOND, PACK, keep=Mass(0.9), **device),
    "errors and biases": lambda **device: attrib.latent_to_latent(
        MODEL, FIRST, SECOND, IDS, policy=RELP, error="source", bias=True, **device
    ),
    "cuts": lambda **device: attrib.token_to_latent(GPT2, lens(2, "standard"), IDS, cuts=CUTS[:1], effect="total", **device),
    "a Jacobian": lambda **device: attrib.jacobian(MODEL, ["tokens", FIRST], [SECOND, TopLogits(2)], IDS, **device),
    "a graph": lambda **device: build_graphs(GPT2, CUTS[:1], IDS[:3], targets=TopLogits(2), keep=TopK(30), **device),
}  # fmt: skip


ELSEWHERE = ("latents", "a Jacobian")
"""Whose values tests of their own look at."""


def same(got: Any, want: Any, *, bits: bool = False) -> None:
    got, want = ({name: each for name, each in numbers(found) if ".call[" not in name} for found in (got, want))
    assert got.keys() == want.keys()
    for name, each in want.items():
        if isinstance(each, torch.Tensor) and each.is_floating_point() and not bits:
            assert_close(got[name].nan_to_num(7.0), each.nan_to_num(7.0), ROUNDING, name)
        elif isinstance(each, torch.Tensor):
            assert torch.equal(got[name].nan_to_num(7.0), each.nan_to_num(7.0)), name
        else:
            assert got[name] == each, name


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("attrib")]


@pytest.mark.few
@pytest.mark.parametrize("what", [what for what in CALLS if what not in ELSEWHERE])
def test_the_values_are_those_of_one(what: str):
    want = CALLS[what]()
    with pretending(count=2) as device:
        same(CALLS[what](device=TWO), want)
        assert device.launched[0] > 100
        assert device.launched[1] > 100
    assert not threads()


def test_runs_of_a_plan_are_swept_as_one_device_sweeps_them():
    """So little budget that there are several runs: they are not cut, and the bits are the same."""
    budget = 90_000
    planned = attrib.plan(MODEL, FIRST, SECOND, IDS, policy=EXACT, budget=budget)
    with pretending():
        want = CALLS["latents"](device=NAME, budget=budget)
    with pretending(count=2) as device:
        same(CALLS["latents"](device="all", budget=budget), want, bits=True)
        assert device.launched[1] > 100
    assert len(planned.packs[0].sweeps) in (2, 3), planned


def test_lifting_that_runs_out_of_memory_on_one_device(monkeypatch: pytest.MonkeyPatch):
    want, share, failed = CALLS["a Jacobian"](), bundles.share, list[bool]()

    def short(those: Any, plan: Any, *rest: Any) -> Any:
        if str(those[0].model.device) == TWO[1] and plan.joint.meets is not None:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return share(those, plan, *rest)

    monkeypatch.setattr(bundles, "share", short)
    monkeypatch.setattr(cells, "asking", lambda *_: FREE)  # else going down is less to ask for than lifting so few
    with pretending(count=2), pytest.warns(UserWarning, match="out of memory with 1 prompt"):
        same(CALLS["a Jacobian"](device=TWO), want)
    assert failed == [True]


def on_the_second(monkeypatch: pytest.MonkeyPatch, do: Callable[[], Any]) -> None:
    """Have something done in the second device's thread before it sweeps."""
    sweep = tiles._sweep

    def swept(shared: Any, plan: Any, precision: Any, paths: Any, *rows: Any) -> Any:
        if str(paths[0].x.device) == TWO[1]:
            do()
        return sweep(shared, plan, precision, paths, *rows)

    monkeypatch.setattr(tiles, "_sweep", swept)


def fails(error: BaseException) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("raised", "error", "said"),
    [
        (RuntimeError("broken"), RuntimeError, "^on pretend:1: broken$"),
        (MemoryError("no room"), attrib.OutOfMemoryError, "on pretend:1: no room"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_fails_in_a_thread_is_raised_and_names_the_device(
    raised: BaseException, error: type[BaseException], said: str, monkeypatch: pytest.MonkeyPatch
):
    on_the_second(monkeypatch, fails(raised))
    with pretending(count=2), pytest.raises(error, match=said):
        CALLS["one position"](device=TWO)
    assert not threads()


def test_an_interrupt_ends_the_threads(monkeypatch: pytest.MonkeyPatch):
    on_the_second(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process that was begun in the background has not
    try:
        with pretending(count=2), pytest.raises(KeyboardInterrupt):
            CALLS["one position"](device=TWO)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not threads()


def test_an_interrupt_while_a_thread_begins_ends_it(monkeypatch: pytest.MonkeyPatch):
    """The thread is at work before the call that begins it has returned."""
    begun = threading.Thread.start

    def start(self: threading.Thread) -> None:
        begun(self)
        if self.name == f"attrib on {TWO[1]}":
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start)
    with pretending(count=2), pytest.raises(KeyboardInterrupt):
        CALLS["one position"](device=TWO)
    assert not threads()


def test_what_fails_where_rows_are_taken_ends_the_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("attrib.attribution.rows.EdgeRows.add", lambda *_: fails(ValueError("not taken"))())
    with pretending(count=2), pytest.raises(ValueError, match="not taken"):
        CALLS["one position"](device=TWO)
    assert not threads()


REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "method": ("torch.func' goes row by row", lambda: CALLS["latents"](device=TWO, method="torch.func")),
    "ablations": ("more points than one", lambda: attrib.latent_to_logit(MODEL, FIRST, IDS, rule=attrib.Ablation(), device=TWO)),
    "a metric": ("one row", lambda: attrib.latent_to_metric(MODEL, FIRST, IDS, lambda logits: logits[-1, 0], device=TWO)),
    "metrics": ("one row", lambda: attrib.latents_to_metric(MODEL, [FIRST], IDS, lambda logits: logits[-1, 0], device=TWO)),
    "chosen rows": ("chosen by those before", lambda: CALLS["a graph"](device=TWO, max_nodes=5)),
    "twice": ("pretend:0 is named twice", lambda: Options(device=f"{NAME}:0,{NAME}")),
    "the host": ("cpu beside others", lambda: Options(device=["cpu", TWO[0]])),
    "nothing": ("device: none", lambda: Options(device=[])),
    "all and one": ("stands alone", lambda: Options(device="all,cpu")),
    "a name": ("is not a device", lambda: Options(device="cpu,gpu")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_split_is_refused(what: str):
    said, call = REFUSED[what]
    with pretending(count=2), pytest.raises(attrib.InputError, match=said):
        call()


def test_devices_by_name():
    assert check_devices("cpu") == check_devices(["cpu"]) == (torch.device("cpu"),)
    with pytest.raises(attrib.InputError, match="no CUDA device"):
        check_devices("all")
    with pretending(count=2):
        assert list(map(str, check_devices("all"))) == list(map(str, check_devices(",".join(TWO)))) == TWO
        x, y = (torch.ones(2, device=name) for name in TWO)
        with pytest.raises(MixedDevicesError, match=r"pretend:0 and pretend:1"):
            x + y
        assert str(y.to(TWO[0]).device) == TWO[0]


def test_runs_are_cut_by_weight_where_there_are_too_few():
    assert cut_runs([(0, 3), (3, 9)], [1] * 9, 2) == [(0, 3), (3, 9)]
    assert cut_runs([(0, 8)], [1] * 8, 2) == [(0, 4), (4, 8)]
    assert cut_runs([(0, 4)], [1, 2, 3, 6], 2) == [(0, 3), (3, 4)]
    assert cut_runs([(0, 3)], [20, 1, 35], 2) == [(0, 2), (2, 3)], "the last alone is more than half"
    assert cut_runs([(0, 3)], [1, 1, 100], 3) == [(0, 1), (1, 2), (2, 3)], "none is without a row"
    assert cut_runs([(0, 3)], [100, 1, 1], 3) == [(0, 1), (1, 2), (2, 3)]
    assert cut_runs([(0, 1)], [5], 3) == [(0, 1)]
    assert cut_runs([(0, 0)], [], 2) == [(0, 0)]
    for count in range(1, 7):
        runs = cut_runs([(0, 5), (5, 11)], list(range(1, 12)), count)
        assert [row for first, end in runs for row in range(first, end)] == list(range(11))
        assert len(runs) >= count


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(2, 6))
def test_no_device_has_more_than_its_share_and_a_row(weights: list[int], count: int):
    runs, parts = cut_runs([(0, len(weights))], weights, count), min(count, len(weights))
    assert len(runs) == parts
    assert [row for first, end in runs for row in range(first, end)] == list(range(len(weights)))
    assert max(sum(weights[first:end]) for first, end in runs) <= sum(weights) / parts + max(weights)


def test_threads_that_want_other_products_wait_for_each_other():
    """The settings are the process's: whoever wants TF32 computes in it, and whoever does not never does."""
    seen, matmul = set[tuple[bool, str]](), torch.backends.cuda.matmul
    before = matmul.fp32_precision

    def work(is_tf32: bool) -> None:
        for _ in range(200):
            with products(precision_of(MODEL, "tf32" if is_tf32 else "float32")):
                seen.add((is_tf32, matmul.fp32_precision))
                sleep(0)
                seen.add((is_tf32, matmul.fp32_precision))

    several = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(4)]
    for each in several:
        each.start()
    for each in several:
        each.join()
    assert seen == {(True, "tf32"), (False, "ieee")}
    assert matmul.fp32_precision == before
