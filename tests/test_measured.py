"""What tests/support/measured.py counts is what torch's own counter and profiler count."""

from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tests.support.measured import flops, measured, peak


def run() -> torch.Tensor:
    """Products of every kind, written as attrib does and as torch takes them apart."""
    x, many = torch.ones(6, 6), torch.ones(3, 6, 6)
    x = x @ x + torch.einsum("bij,jk->ik", many, x) + torch.nn.functional.linear(x, x, x[0])
    many = torch.baddbmm(many, many, many) + torch.addmm(x, x, x)
    return torch.nn.functional.scaled_dot_product_attention(many[None], many[None], many[None]).softmax(-1)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
def test_operations_and_memory_are_those_that_torch_counts(mode: type[torch.no_grad]):
    with mode():
        with FlopCounterMode(display=False) as counter:
            want = run()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
            run()
        found = measured(run)
        assert torch.equal(found.result, want)
        assert found.flops == flops(run) == counter.get_total_flops() > 0
        changes = (event.nbytes() for event in events.profiler.kineto_results.events() if event.name() == "[memory]")
        assert peak(run) == found.peak == max(accumulate(changes, initial=0)) > 0
        assert peak(lambda: torch.zeros(1000)) == 4000


def test_a_run_that_fails_leaves_no_profiler_behind():
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measured(fail)
    assert peak(lambda: torch.zeros(10)) == 40
