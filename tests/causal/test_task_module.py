"""A model as a torch module, and the task's one function in a plain loop and in Lightning, as examples/interpretune_task.py has both."""

import warnings
from typing import Any

import pandas as pd
import pytest
import torch

import attrib
from attrib.causal import tasks
from tests.support.builders import FAMILIES, build, prompt
from tests.support.notebooks import notebook
from tests.support.task_cases import examples, saes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_module_is_the_model_wherever_it_is_moved(family: Any) -> None:
    model, ids = build(family), prompt(7, batch=(2,))
    module = attrib.as_module(model)
    assert torch.equal(module(ids), attrib.forward(model, ids))
    assert module.model.fingerprint == model.fingerprint
    assert module.model.params.W_E.data_ptr() == model.params.W_E.data_ptr(), "it shares memory"
    moved = torch.nn.Sequential(module).double()[0]
    assert torch.equal(moved(ids), attrib.forward(model.to(dtype="float64"), ids))
    assert (list(module.parameters()), module.state_dict(), module.training) == ([], {}, False)
    assert repr(model.config.n_layers) in repr(module)


def test_lightning_and_a_plain_loop_give_the_same() -> None:
    example = notebook("interpretune_task")
    model, dictionaries = build("llama"), [attrib.from_sae_lens(one) for one in saes("topk", torch.float32).values()]
    loader = torch.utils.data.DataLoader(examples(), batch_size=3, collate_fn=list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, of loaders without workers
        found = [example.in_pytorch(model, dictionaries, loader), example.in_lightning(model, dictionaries, loader)]
    assert len(found[0]) == len(found[1]) == 2
    for plain, lightning in zip(*found, strict=True):
        for ours, theirs in zip(plain, lightning, strict=True):
            pd.testing.assert_frame_equal(ours, theirs)
    expected = tasks.latent_effects(model, examples(), dictionaries)
    together = pd.concat([latents for _, latents in found[1]])
    assert together[together.operation == "gradient"].effect.to_numpy() == pytest.approx(expected.effect.numpy(), rel=1e-4, abs=1e-5)
