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
    torch.testing.assert_close(attrib.forward(as_model(original), tokens), original(tokens[None]).logits[0].detach(), rtol=1e-4, atol=1e-4)
    lens = hooked.hooked("gpt2")
    torch.testing.assert_close(attrib.forward(as_model(lens), tokens), lens(tokens[None])[0].detach(), rtol=1e-4, atol=1e-4)
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


def test_public_functions_take_names_and_other_libraries_objects():
    """Each public function, with the objects of other libraries and with attrib's own: the same numbers."""
    original, sae, ids = builders.tiny("llama"), builders.sae("topk", site="blocks.1.hook_resid_pre"), builders.prompt()
    model, source = as_model(original), as_dictionary(sae)
    for of in (
        lambda model, source: attrib.latent_to_logit(model, source, ids).total,
        lambda model, source: attrib.latent_to_metric(model, source, ids, lambda logits: logits[-1, 3]).total,
        lambda model, source: attrib.token_to_latent(model, source, ids, budget="1GiB").total,
        lambda model, source: attrib.path(model, source, attrib.TopLogits(2), ids).targets.value,
        lambda model, source: attrib.path(model, None, source, ids).targets.value,
        lambda model, source: attrib.replace(model, source).run(ids),
        lambda model, source: torch.tensor(attrib.plan(model, None, source, ids, budget="1GiB").flops),
        lambda model, source: next(iter(attrib.capture(model, ids, ["blocks.1.hook_resid_pre"]).values())),
        lambda model, source: attrib.segment(model, "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre")(torch.ones(3, 32)),
    ):
        assert torch.equal(of(original, sae), of(model, source))


@pytest.mark.parametrize("budget", ["a lot", -1, True, 1.5, "1 parsec", None])
def test_a_budget_that_is_no_size_is_one_error(budget: Any):
    with pytest.raises(attrib.InputError, match=r"^budget: .*; expected a number of bytes, or a size as text, such as '512MiB'"):
        attrib.token_to_latent(builders.build("llama"), builders.dictionary("topk"), builders.prompt(), budget=budget)


def test_a_name_that_is_none_is_one_error():
    with pytest.raises(attrib.InputError, match=r"^source: nonsense is no folder"):
        attrib.latent_to_logit(builders.build("llama"), "nonsense", builders.prompt())
    with pytest.raises(attrib.InputError, match=r"^source: got a list"):
        attrib.latent_to_logit(builders.build("llama"), [1], builders.prompt())
