"""What an accelerator is asked once: the same errors as one by one, and copies that belong to their tensors."""

from dataclasses import replace

import pytest
import torch

import attrib
from attrib.core.devices import Copies
from attrib.core.finite import asked_together, require_finite
from attrib.core.sparse import to_csr
from attrib.core.types import InputError, NotFiniteError
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model
from tests.support.builders import build, dictionary
from tests.support.pretend import NAME, pretending

IDS = torch.tensor([3, 5, 17, 13, 2])


def sick(model: Model, source: Dictionary, target: Dictionary, what: str) -> tuple[Model, Dictionary, Dictionary]:
    """The same with one number that is none."""

    def with_nan(tensor: torch.Tensor, *at: int) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[at] = torch.nan
        return tensor

    if what == "embedding":
        return replace(model, params=model.params._replace(W_E=with_nan(model.params.W_E, 17, 3))), source, target
    if what == "encoder":
        return model, replace(source, params=source.params._replace(b_enc=with_nan(source.params.b_enc, 4))), target
    return model, source, replace(target, params=target.params._replace(threshold=with_nan(target.params.threshold, 6)))


@pytest.mark.parametrize("what", ["embedding", "encoder", "threshold"])
def test_errors_are_those_of_the_host(what: str):
    ends = sick(build("gpt2"), dictionary("standard", "blocks.1.hook_resid_pre"), dictionary("standard", "blocks.3.hook_resid_pre"), what)
    said = []
    with pretending():
        for there in (ends, [each.to(device=NAME) for each in ends]):
            with pytest.raises((NotFiniteError, InputError)) as raised:
                attrib.latent_to_latent(*there, [IDS[:2], IDS])
            said.append((type(raised.value), str(raised.value)))
    assert said[0] == said[1]
    assert "nan" in said[0][1]


def test_an_error_that_numbers_have_led_to_is_theirs():
    def ask() -> None:
        with asked_together():
            require_finite({"the first": torch.ones(3, 2, device=NAME)})
            require_finite({"the second": torch.full((3, 2), torch.inf, device=NAME)})
            raise ValueError("of what was made of them")

    with pretending(), pytest.raises(NotFiniteError, match="inf at the second"):
        ask()


def test_copies_are_known_by_their_tensor():
    with pretending() as device:
        known, other = torch.arange(3, device=NAME), torch.arange(3, device=NAME)
        copies = Copies([known], [torch.tensor([7, 8, 9])])
        device.begin()
        assert [each.tolist() for each in copies.of([other, known])] == [[0, 1, 2], [7, 8, 9]]
        assert device.counts.total.waits == 1
        assert (copies | Copies()).of([known])[0].tolist() == [7, 8, 9]
        assert device.counts.total.waits == 1


@pytest.mark.parametrize("most", [1, 2, 9])
def test_a_known_most_is_not_waited_for(most: int):
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[[0, 0, 2, 3], [1, 4, 0, 4]] = True
    mask = mask & (mask.cumsum(1) <= most)
    want = to_csr(mask)
    with pretending() as device:
        there = mask.to(NAME)
        device.begin()
        found = to_csr(there, most)
        assert device.counts.total.waits == 0
        here = [each.cpu() for each in found]
    count = int(here[0][-1])
    assert torch.equal(here[0], want[0])
    assert len(here[1]) == 4 * min(most, 5)
    assert [each[:count].tolist() for each in here[1:]] == [each.tolist() for each in want[1:]]
