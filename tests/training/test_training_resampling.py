"""Dead latents begin again: the right rows change, Adam forgets them, and nothing else is touched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attrib
from attrib.training import ActivationStore, Training, resample, store_activations, train
from attrib.training.fitting import trainer_of
from tests.support.builders import build

RESID, Z, MLP_OUT = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"
DEAD = torch.tensor([1, 4, 17])


@pytest.fixture(scope="module")
def model() -> attrib.Model:
    return build("gpt2")


@pytest.fixture(scope="module")
def store(model: attrib.Model, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    ids = torch.randint(0, 60, (24, 16), generator=torch.Generator().manual_seed(0))
    return store_activations(model, ids, [RESID, Z, MLP_OUT], tmp_path_factory.mktemp("activations"))


def stepped(store: ActivationStore, **options: Any) -> tuple[Any, torch.Tensor]:
    """A trainer after three steps, whose latents DEAD count as dead, and rows."""
    config = Training(**{"reads": RESID, "width": 24, "samples": 640, "batch": 64, "l1_coefficient": 0.1} | options)
    scales = dict.fromkeys((config.site, config.site_out), 2.0)
    trainer = trainer_of(config, store, scales, np.arange(384))
    batches = store.batches(scales, np.arange(384), 64, 0)
    for _ in range(3):
        trainer.step(next(batches))
        trainer.n_training_steps += 1
    trainer.n_forward_passes_since_fired[DEAD] = 1000
    return trainer, store.batch(scales, np.arange(200))


def numbers(trainer: Any) -> dict[str, torch.Tensor]:
    """All weights and Adam's moments of them, by name, with latents in rows."""
    found = {}
    for name, parameter in trainer.sae.named_parameters():
        state = trainer.optimizer.state[parameter]
        for kind, value in {"": parameter, " mean": state["exp_avg"], " square": state["exp_avg_sq"], " step": state["step"]}.items():
            found[name + kind] = (value.detach().T if name == "W_enc" and kind != " step" else value.detach()).clone()
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "standard"},
        {"architecture": "gated", "dtype": "float64"},
        {"architecture": "standard", "reads": Z, "writes": MLP_OUT, "skip": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_dead_latents_begin_again_and_others_do_not(options: dict[str, Any], store: ActivationStore) -> None:
    trainer, batch = stepped(store, **options)
    before = numbers(trainer)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(resample(trainer, batch, scale=0.3, generator=generator), DEAD)
    after = numbers(trainer)
    alive = torch.ones(24, dtype=torch.bool)
    alive[DEAD] = False
    of_latents = {name for name in after if name.split()[0] not in ("b_dec", "W_skip") and not name.endswith("step")}
    assert {"W_enc", "W_dec mean", "W_enc square"} <= of_latents
    for name in after:
        if name not in of_latents:
            assert torch.equal(after[name], before[name]), f"{name} has nothing of latents"
            continue
        assert torch.equal(after[name][alive], before[name][alive]), f"{name} of living latents"
        assert (name.startswith("W_") and " " not in name) or not after[name][DEAD].any(), f"{name} of dead latents is zero"
    for name in ("W_enc mean", "W_dec square"):
        assert before[name][DEAD].any(), "there was something to forget"
    assert not trainer.dead_neurons.any()

    # by the method's own words: rows drawn by the square of their loss; directions; a part of the mean norm
    sae, d_in = trainer.sae, before["W_enc"].shape[1]
    again, _ = stepped(store, **options)
    old = again.sae
    x = batch.to(old.dtype)
    read, wanted = (x, x) if "writes" not in options else (x[:, :d_in], x[:, d_in:] - x[:, :d_in] @ old.W_skip.T)
    with torch.no_grad():
        loss = (wanted - old.decode(old.encode(x))).square().sum(1)
    drawn = torch.multinomial((loss / loss.max()).double().square(), 3, generator=torch.Generator().manual_seed(3))
    offset = old.b_dec if "writes" not in options else 0
    for latent, row in zip(DEAD.tolist(), drawn.tolist(), strict=True):
        direction, other = read[row] - offset, wanted[row] - old.b_dec
        enc, dec = before["W_enc"][alive].norm(dim=1).mean(), before["W_dec"][alive].norm(dim=1).mean()
        torch.testing.assert_close(sae.W_enc[:, latent].detach(), (direction / direction.norm() * enc * 0.3).detach())
        torch.testing.assert_close(sae.W_dec[latent].detach(), (other / other.norm() * dec).detach())


def test_badly_reconstructed_rows_are_drawn(store: ActivationStore) -> None:
    trainer, batch = stepped(store, architecture="standard")
    batch = batch[:50].clone()
    trainer.sae.b_dec.data.zero_()
    batch[:49] = 0  # which costs nothing, for its reconstruction is zero
    trainer.sae.b_enc.data.fill_(-1)
    resample(trainer, batch, generator=torch.Generator().manual_seed(0))
    directions = trainer.sae.W_dec[DEAD] / trainer.sae.W_dec[DEAD].norm(dim=1, keepdim=True)
    torch.testing.assert_close(directions.detach(), (batch[49] / batch[49].norm()).expand(3, -1))


def test_nothing_is_resampled_where_none_is_dead_or_nothing_is_lost(store: ActivationStore) -> None:
    trainer, batch = stepped(store, architecture="standard")
    trainer.sae.b_dec.data.zero_()
    trainer.sae.b_enc.data.zero_()
    before = numbers(trainer)
    assert not len(resample(trainer, torch.zeros_like(batch)))
    trainer.n_forward_passes_since_fired.zero_()
    assert not len(resample(trainer, batch))
    assert all(torch.equal(value, before[name]) for name, value in numbers(trainer).items())


def test_a_training_resamples_when_it_is_told(model: attrib.Model, store: ActivationStore, tmp_path: Path) -> None:
    usual = {
        "reads": RESID, "architecture": "standard", "width": 64, "samples": 64 * 50, "batch": 64, "l1_coefficient": 6.0, "lr": 1e-2,
        "dead_feature_window": 5, "log_every": 7, "lr_decay_steps": 10,
    }  # fmt: skip
    _, _, without = train(model, store, usual, tmp_path / "without")
    _, _, curves = train(model, store, usual | {"resample_every": 15}, tmp_path / "with")
    resampled = {row["step"]: row["resampled"] for row in curves}
    assert {step for step, count in resampled.items() if count} == {15, 30}, "and not in the steps in which the learning rate falls"
    assert not any(row["resampled"] for row in without)
    assert curves[-1]["dead"] <= without[-1]["dead"] > 0
