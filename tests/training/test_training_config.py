"""A key that is wrong, or of which an architecture makes no use, is refused by its name."""

from typing import Any

import pytest

import attrib
from attrib.training import Training, training_file
from attrib.training.config import TAKES, training

USUAL: dict[str, Any] = {"reads": "blocks.1.hook_resid_pre", "width": 64, "architecture": "topk", "k": 4}
STANDARD = {"architecture": "standard", "k": None}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"l1_coefficient": 1.0}, "l1_coefficient: no effect on topk, which takes k, aux_loss_coefficient; leave it out"),
        (STANDARD | {"l0_coefficient": 1.0}, "l0_coefficient: no effect on standard, which takes l1_coefficient, l1_warm"),
        (STANDARD | {"jumprelu_bandwidth": 0.1}, "jumprelu_bandwidth: no effect on standard"),
        (STANDARD | {"k": 4}, "k: no effect on standard"),
        ({"topk_threshold_lr": 0.1}, "topk_threshold_lr: no effect on topk"),
        ({"k": None}, "k: missing, and topk needs it"),
        ({"k": 4.5}, "k: 4.5; expected a whole number, since topk has so many latents at each token"),
        ({"k": 65}, "k: 65 active latents of 64; expected at most the width"),
        ({"k": True}, "k: true; expected a number"),
        ({"architecture": "matryoshka_batchtopk"}, "matryoshka_widths: missing, and matryoshka_batchtopk needs at least one"),
        ({"architecture": "matryoshka_batchtopk", "matryoshka_widths": [32, 16]}, r"matryoshka_widths: \[32, 16\]; expected"),
        ({"resample_every": 100}, r"resample_every: topk is not resampled; it has a loss for dead latents \(aux_loss_coefficient\)"),
        (STANDARD | {"resample_rows": 100}, "resample_rows: no effect without resample_every"),
        (STANDARD | {"architecture": "jumprelu", "resample_every": 9}, "resample_every: jumprelu is not resampled; it has pre_act_loss"),
        (STANDARD | {"architecture": "jumprelu", "jumprelu_tanh_scale": 4.0}, "jumprelu_tanh_scale: no effect without .*'tanh'"),
        (STANDARD | {"architecture": "jumprelu", "jumprelu_sparsity_loss_mode": "quadratic"}, "target_l0: .*'quadratic' needs it"),
        (STANDARD | {"architecture": "jumprelu", "target_l0": 9.0}, "target_l0: .*'quadratic' needs it, and no other takes it"),
        ({"architecture": "vanilla"}, "architecture: 'vanilla'; expected 'standard', 'gated'"),
        ({"reads": "blocks.1.hook_mlp_in"}, r"reads: Site.parse.*TransformerLens fires this hook before the norm"),
        ({"writes": "blocks.1.hook_mlp_out"}, "architecture: a transcoder of topk, which sae-lens could not load; expected"),
        (STANDARD | {"writes": "blocks.0.hook_mlp_out"}, "writes: blocks.0.hook_mlp_out is computed no later than blocks.1.hook_resid_pre"),
        ({"skip": True}, "skip: a dictionary that writes where it reads has no skip connection"),
        ({"samples": 100}, "samples: 100, fewer than a batch of 2048"),
        ({"lr_warm_up_steps": 900}, "lr_warm_up_steps: 900 and 195 of lr_decay_steps are more than all 976 steps"),
        ({"lr_end": 1e-5}, "lr_end: no effect on a constant learning rate"),
        ({"lr": 0.0}, "lr: 0.0; expected more than 0"),
        ({"lr": float("inf")}, "lr: inf; expected a finite number"),
        ({"lr": "fast"}, "lr: 'fast'; expected a number"),
        ({"width": 0}, "width: 0; expected 1 or more"),
        ({"width": 12.0}, "width: 12.0; expected a whole number"),
        ({"device": "tpu"}, "device: 'tpu'.* expected cpu, cuda or cuda:N"),
        ({"dtype": "float8"}, "dtype: 'float8'; expected 'float32', 'float64' or 'bfloat16'"),
        ({"bias": "median"}, "bias: 'median'; expected 'zeros', 'mean' or 'geometric-median'"),
        ({"l1": 3}, "l1: there is no such key; it is misspelt or does not belong here"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(attrib.InputError, match=f"^{said}"):
        training({key: value for key, value in (USUAL | changed).items() if value is not None})


def test_every_option_of_an_architecture_is_one_of_sae_lens() -> None:
    """And each of its other options is a field of ours, so that none is lost."""
    from dataclasses import fields

    from sae_lens.registry import get_sae_training_class

    for architecture, names in TAKES.items():
        theirs = {field.name for field in fields(get_sae_training_class(architecture)[1])}
        assert {*names} <= theirs
        assert {*names} <= {*Training.model_fields}


def test_usual_numbers_follow_from_the_steps() -> None:
    found = training(USUAL | {"samples": 2048 * 1000 + 5})
    assert (found.steps, found.warm_up, found.decay, found.logged, found.checkpointed) == (1000, 100, 200, 5, 200)
    assert not found.is_transcoder
    resampled = training(USUAL | {"architecture": "gated", "k": None, "samples": 2048 * 1000, "resample_every": 300})
    assert [step for step in range(1, 1001) if resampled.resamples_after(step)] == [300, 600]


def test_a_file_of_several_dictionaries() -> None:
    shared = {"architecture": "batchtopk", "k": 4, "width": 64}
    tables: list[dict[str, Any]] = [{"reads": "blocks.1.hook_resid_pre"}, {"reads": "blocks.2.hook_resid_pre", "k": 8}]
    table = {"model": "m", "texts": ["a.txt"], **shared, "dictionary": tables}
    found = training_file(table)
    assert [(one.folder, one.k) for one in found.dictionary] == [("blocks.1.hook_resid_pre", 4), ("blocks.2.hook_resid_pre", 8)]
    one = training_file({"model": "m", "texts": ["a.txt"], "reads": "blocks.1.hook_resid_pre", **shared})
    assert one.dictionary[0] == found.dictionary[0]
    tables[1]["reads"] = "blocks.1.hook_resid_pre"
    with pytest.raises(attrib.InputError, match=r"^dictionary: blocks.1.hook_resid_pre is there more than once; give each a name"):
        training_file(table)
    tables[1]["name"] = "../out"
    with pytest.raises(attrib.InputError, match=r"^dictionary\[1\].name: "):
        training_file(table)
    tables[1] = {"reads": "blocks.2.hook_resid_pre", "k": "many"}
    with pytest.raises(attrib.InputError, match=r"^dictionary\[1\].k: 'many'; expected a number"):
        training_file(table)
    with pytest.raises(attrib.InputError, match=r"^texts: missing, and it is required\ndictionary\[0\].reads: missing"):
        training_file({"model": "m", **shared})
    with pytest.raises(attrib.InputError, match=r"^dictionary: 3; expected a list"):
        training_file({"model": "m", "texts": ["a.txt"], **shared, "dictionary": 3})
