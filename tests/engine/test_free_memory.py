"""Where no budget is named, a call on a device with memory of its own works in half of what is free there."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

import attrib
from attrib.core import devices
from attrib.engine.free import free_budget
from attrib.engine.tiles import DEFAULT_BUDGET
from bench.engine.cases import latents
from bench.engine.launches import SMALL
from tests.support.pretend import NAME, pretending

GIB = 1 << 30
PROBLEM = latents(SMALL, 0, 3, 8, d_sae=64, active=(3, 3))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, int, int]]:
    """Of each device what is free, and what torch has taken and what of it is in use; as CUDA says it."""
    there = dict[int, tuple[int, int, int]]()

    def known(device: Any, at: int) -> int:
        return there[torch.device(device).index or 0][at]

    with pretending(count=2):  # which registers the device's module
        module = getattr(torch, NAME)
    for name, said in {
        "mem_get_info": lambda device: (known(device, 0), 1 << 60),
        "memory_reserved": lambda device: known(device, 1),
        "memory_allocated": lambda device: known(device, 2),
    }.items():
        monkeypatch.setattr(module, name, staticmethod(said), raising=False)
    return there


def test_half_of_what_is_free_rounded_down(memory: dict[int, tuple[int, int, int]]) -> None:
    memory |= {0: (120 * GIB, 17 * GIB, GIB), 1: (23 * GIB, 0, 0)}
    first, second = torch.device(NAME, 0), torch.device(NAME, 1)
    assert free_budget([first]) == 64 * GIB  # of 68, and not 56 of 60
    assert free_budget([second]) == 10 * GIB  # of 11.5
    assert free_budget([first, second]) == 10 * GIB, "the fullest has to do"
    memory[1] = (7, 0, 0)
    assert free_budget([second]) == 3
    assert free_budget([torch.device("cpu")]) is None


def test_a_module_that_is_first_imported_meanwhile_has_the_real_names_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    real, late = devices.entering, ModuleType("attrib.late")
    monkeypatch.setitem(sys.modules, "attrib.late", late)
    with pretending():
        assert devices.entering is not real
        vars(late)["entering"] = devices.entering
    assert devices.entering is real
    assert vars(late)["entering"] is real


def test_calls_that_name_none_take_it_and_say_so(memory: dict[int, tuple[int, int, int]]) -> None:
    memory |= {0: (20 * GIB, 0, 0), 1: (8 * GIB, 0, 0)}
    model, source, target, tokens = PROBLEM.model, PROBLEM.source, PROBLEM.target, PROBLEM.tokens
    assert source is not None
    assert isinstance(target, attrib.Dictionary)

    def told(**options: Any) -> int:
        with pretending(count=2):
            on = model.to(device=NAME)
            return int(attrib.latent_to_latent(on, source.to(device=NAME), target.to(device=NAME), tokens, **options).call["budget"])

    assert told() == 10 * GIB
    assert told(device=[f"{NAME}:0", f"{NAME}:1"]) == 4 * GIB
    assert told(budget="300MiB") == 300 << 20
    assert attrib.latent_to_latent(model, source, target, tokens).call["budget"] == DEFAULT_BUDGET
    with pretending():
        on = model.to(device=NAME)
        [graph] = attrib.graph.build(on, [source.to(device=NAME)], tokens, targets=attrib.TopLogits(2))
    assert graph.call["budget"] == 10 * GIB
