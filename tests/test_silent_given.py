"""What is meant where a model or a dictionary is expected: names and other libraries' objects are taken, the rest is one clear error."""

from typing import Any

import pytest
import torch

import attrib
from attrib.sources import as_dictionary, as_model
from tests import builders, hooked


def test_a_model_is_itself():
    model = builders.build("gpt2")
    assert as_model(model) is model


def test_names_are_loaded(tmp_path):
    original = builders.tiny("gpt2")
    original.save_pretrained(tmp_path / "tiny")
    for name in (tmp_path / "tiny", str(tmp_path / "tiny")):
        assert torch.equal(as_model(name).params.W_E, original.transformer.wte.weight)
    shipped = "smollm2-135m/blocks.6.hook_resid_pre"
    assert as_dictionary(shipped).name == shipped


def test_other_libraries_objects_are_converted():
    tokens = builders.prompt()
    original = builders.tiny("llama")
    torch.testing.assert_close(attrib.logits(as_model(original), tokens), original(tokens[None]).logits[0].detach(), rtol=1e-4, atol=1e-4)
    lens = hooked.hooked("gpt2")
    torch.testing.assert_close(attrib.logits(as_model(lens), tokens), lens(tokens[None])[0].detach(), rtol=1e-4, atol=1e-4)
    sae = builders.sae("standard")
    assert torch.equal(as_dictionary(sae).params.W_enc, sae.W_enc)


def test_what_is_around_a_model_is_named():
    for wrapped in (torch.compile(builders.tiny("llama"), backend="eager"), torch.nn.DataParallel(builders.tiny("llama"))):
        with pytest.raises(attrib.UnsupportedError, match=r"Give that: model\.(_orig_mod|module)\."):
            as_model(wrapped)


@pytest.mark.parametrize("given", [None, 3, torch.nn.Linear(2, 2), attrib.Model, [1]], ids=lambda given: type(given).__name__)
@pytest.mark.parametrize("take", [as_model, as_dictionary])
def test_anything_else_is_one_error_that_names_the_argument(take: Any, given: Any):
    with pytest.raises(attrib.InputError, match=r"^there: got .*; expected an attrib\.") as raised:
        take(given, "there")
    assert len(str(raised.value)) < 300
