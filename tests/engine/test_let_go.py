"""What one sweep has found is let go of before the next is swept: else twice the memory is taken that a plan counts with."""

import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import attrib
from attrib.engine import bundle, tiles
from attrib.engine.sweep.join import Block
from tests.support import builders

MODEL, IDS = builders.build("gpt2"), builders.prompt(24)
DICTIONARIES = [builders.dictionary("topk", f"blocks.{layer}.hook_resid_pre") for layer in (1, 2)]


def tensors(found: Any) -> list[torch.Tensor]:
    """Those of a sweep's result."""
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, Block):
        return [*found.value]
    return [tensor for each in found for tensor in tensors(each)] if isinstance(found, list | tuple) else []


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (bundle, "sweep", lambda **options: attrib.graph.build(MODEL, DICTIONARIES, [IDS], **options)),
        (bundle, "sweep", lambda **options: attrib.jacobian(MODEL, DICTIONARIES[:1], DICTIONARIES[1:], IDS, **options)),
        (tiles, "_sweep", lambda **options: attrib.latent_to_latent(MODEL, *DICTIONARIES, IDS, **options)),
    ],
    ids=["graph", "jacobian", "one pair"],
)
def test_nothing_of_a_sweep_is_there_while_the_next_is_swept(
    module: Any, name: str, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    before: list[list[weakref.ref[torch.Tensor]]] = []
    swept = getattr(module, name)

    def sweep(*given: Any, **options: Any) -> Any:
        assert not [tensor for each in before[-1:] for ref in each if (tensor := ref()) is not None]
        found = swept(*given, **options)
        before.append([weakref.ref(tensor) for tensor in tensors(found)])
        return found

    monkeypatch.setattr(module, name, sweep)
    with pytest.raises(attrib.BudgetError) as refused:
        call(budget=1)
    [least] = re.findall(r"at least ([\d,]+)", str(refused.value))
    call(budget=int(1.05 * int(least.replace(",", ""))))
    assert len(before) > 2
    assert all(before)
