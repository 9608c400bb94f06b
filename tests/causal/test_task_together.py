"""A task's prompts in one pass: each says what it says alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attrib.causal.tasks import Example, latent_effects, logit_differences
from attrib.core.types import NotFiniteError
from attrib.models import transformer
from tests.support.builders import build, dictionary, prompt
from tests.support.tolerances import ROUNDING, assert_close

LENGTHS = (5, 1, 8, 6)
EXAMPLES = [Example(prompt(length, seed=30 + length), ([3, 9], [11]), length % 2) for length in LENGTHS]
SITES = ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre")


@pytest.mark.parametrize("family", ["gpt2", "llama without masks"])
def test_a_batch_gives_what_each_gives_alone(family: Any, monkeypatch: pytest.MonkeyPatch):
    """With as many passes for all as for one: none is of a single prompt, or padded."""
    model = build(family, torch.float64)
    dictionaries = [dictionary(kind, site, torch.float64) for kind, site in zip(("topk", "jumprelu"), SITES, strict=True)]
    rows, mlp = list[int](), transformer.mlp

    def counted(model: Any, layer: int, x: Tensor, *rest: Any) -> Tensor:
        rows.extend([x.shape[-2]] if layer == 3 else [])
        return mlp(model, layer, x, *rest)

    monkeypatch.setattr(transformer, "mlp", counted)
    for put_in, errors in (([], False), (dictionaries, False), (dictionaries, True)):
        rows.clear()
        found = logit_differences(model, EXAMPLES, put_in, errors=errors)
        assert {*rows} == {sum(LENGTHS)}
        for number, one in enumerate(EXAMPLES):
            want = logit_differences(model, [one], put_in, errors=errors)
            assert_close(found.difference[number], want.difference[0], ROUNDING, number)
    for errors in (False, True):
        rows.clear()
        effects = latent_effects(model, EXAMPLES, dictionaries, errors=errors, positions="all")
        assert {*rows} == {sum(LENGTHS)}
        alone = [latent_effects(model, [one], dictionaries, errors=errors, positions="all") for one in EXAMPLES]
        for field in ("dictionary", "latent", "positions", "kept"):
            assert torch.equal(getattr(effects, field), torch.cat([getattr(one, field) for one in alone])), field
        assert_close(effects.effect, torch.cat([one.effect for one in alone]), ROUNDING)
        assert_close(effects.activation, torch.cat([one.activation for one in alone]), ROUNDING)


def test_what_is_no_number_is_named_by_its_prompt():
    model, one = build("gpt2"), dictionary("standard", SITES[0])
    W_E = model.params.W_E.clone()
    token = int(EXAMPLES[2].prompt[4])
    examples = [example for example in EXAMPLES if token not in example.prompt.tolist()]
    W_E[token] = torch.inf
    broken = replace(model, params=model.params._replace(W_E=W_E))
    with pytest.raises(NotFiniteError, match=rf"prompt {len(examples)} gives nan at blocks.1.hook_resid_pre, which"):
        latent_effects(broken, [*examples, EXAMPLES[2]], [one])
