"""What is trained is what sae-lens' own trainer makes of the same batches, and what is saved is what was trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import attrib
from attrib.training import ARCHITECTURES, ActivationStore, Training, store_activations, train
from attrib.training.biases import SAMPLE, initial_bias
from attrib.training.fitting import trainer_of
from attrib.training.modules import fold_scales, mean_norm_scale, wanted
from tests.support.builders import build

sae_lens = pytest.importorskip("sae_lens")

RESID, Z, MLP_IN, MLP_OUT = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
OWN: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 0.3, "l1_warm_up_steps": 5},
    "gated": {"l1_coefficient": 0.3, "l1_warm_up_steps": 5},
    "jumprelu": {"l0_coefficient": 0.2, "jumprelu_bandwidth": 0.1, "l0_warm_up_steps": 4},
    "topk": {"k": 4},
    "abstopk": {"k": 4},
    "batchtopk": {"k": 3.5, "topk_threshold_lr": 0.1},
    "matryoshka_batchtopk": {"k": 4, "matryoshka_widths": [8, 20], "topk_threshold_lr": 0.1},
}
USUAL: dict[str, Any] = {"reads": RESID, "width": 40, "samples": 64 * 30, "batch": 64, "lr": 3e-3, "dead_feature_window": 4}


@pytest.fixture(scope="module")
def model() -> attrib.Model:
    return build("llama")


@pytest.fixture(scope="module")
def store(model: attrib.Model, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    ids = torch.randint(0, 60, (24, 16), generator=torch.Generator().manual_seed(0))
    return store_activations(model, ids, [RESID, Z, MLP_IN, MLP_OUT], tmp_path_factory.mktemp("activations"), dataset="numbers")


def by_hand(store: ActivationStore, batches: Iterator[torch.Tensor], sae: Any, first_bias: torch.Tensor) -> Any:
    """sae-lens' own loop over the same batches, with its scheduler's numbers for 30 steps."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae.b_dec.data = first_bias
    config = SAETrainerConfig(
        total_training_samples=1920, train_batch_size_samples=64, lr=3e-3, lr_end=3e-4, lr_warm_up_steps=7, lr_decay_steps=6,
        dead_feature_window=4,
    )  # fmt: skip
    return SAETrainer(config, sae, batches).fit()


CLASSES = {
    "standard": "Standard", "gated": "Gated", "jumprelu": "JumpReLU", "topk": "TopK", "abstopk": "AbsTopK", "batchtopk": "BatchTopK",
    "matryoshka_batchtopk": "MatryoshkaBatchTopK",
}  # fmt: skip


@pytest.mark.few
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sae_is_what_sae_lens_trains(architecture: str, model: attrib.Model, store: ActivationStore, tmp_path: Path) -> None:
    trained = train(model, store, USUAL | OWN[architecture] | {"architecture": architecture, "bias": "mean"}, tmp_path / "out")

    site, rows = attrib.Site.parse(RESID), np.arange(24 * 16)
    sample = store.rows(site, np.random.default_rng(0).permutation(rows)[:8192])
    scale = float(32**0.5 / sample.norm(dim=1).mean())

    def batches() -> Iterator[torch.Tensor]:
        rng = np.random.default_rng(0)
        values = torch.from_numpy(np.load(store.folder / f"{RESID}.npy").astype(np.float32))
        while True:
            order = rng.permutation(rows)
            yield from (values[order[first : first + 64]] * scale for first in range(0, 384, 64))

    own = {"l1_warm_up_steps": 5} if "l1_coefficient" in OWN[architecture] else {}
    options = {"d_in": 32, "d_sae": 40} | own | OWN[architecture]
    if architecture.startswith("matryoshka"):
        options["matryoshka_widths"] = [8, 20, 40]
    torch.manual_seed(0)
    config = getattr(sae_lens, f"{CLASSES[architecture]}TrainingSAEConfig")(**options)
    theirs = by_hand(store, batches(), getattr(sae_lens, f"{CLASSES[architecture]}TrainingSAE")(config), (sample * scale).mean(0))
    threshold = theirs.topk_threshold / scale if "batchtopk" in architecture else None  # in units of what is written
    theirs.fold_activation_norm_scaling_factor(scale)
    if threshold is not None:  # which newer sae-lens folds too, and older does not
        theirs.topk_threshold = threshold
    theirs.save_inference_model(tmp_path / "theirs")
    ours, want = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("out", "theirs"))
    assert ours.keys() == want.keys()
    for name in want:
        assert torch.equal(ours[name], want[name]), f"{name}: apart by {(ours[name] - want[name]).abs().max()}"
    assert trained.curves[-1]["explained_variance"] > 0.1


@pytest.mark.few
@pytest.mark.parametrize(
    ("architecture", "reads", "writes", "skip", "saved"),
    [
        ("gated", Z, None, False, "gated"), ("jumprelu", Z, None, False, "jumprelu"),
        ("abstopk", Z, None, False, "abstopk"), ("batchtopk", RESID, None, False, "jumprelu"),
        ("matryoshka_batchtopk", RESID, None, False, "jumprelu"), ("standard", MLP_IN, MLP_OUT, False, "transcoder"),
        ("standard", MLP_IN, MLP_OUT, True, "skip_transcoder"), ("jumprelu", Z, MLP_OUT, True, "jumprelu_skip_transcoder"),
        ("batchtopk", MLP_IN, MLP_OUT, True, "jumprelu_skip_transcoder"),
    ],
)  # fmt: skip
def test_what_is_saved_loads_in_both_and_says_what_was_trained(
    architecture: str, reads: str, writes: str | None, skip: bool, saved: str, model: attrib.Model, store: ActivationStore, tmp_path: Path
) -> None:
    where = {"reads": reads} if writes is None else {"reads": reads, "writes": writes, "skip": skip}
    config = Training(**USUAL | OWN[architecture] | where | {"architecture": architecture, "samples": 64 * 80, "log_every": 4})
    dictionary, folder, curves = train(model, store, config, tmp_path / "out")
    theirs = sae_lens.SAE.load_from_disk(folder)
    assert theirs.cfg.architecture() == saved
    metadata = theirs.cfg.metadata
    assert (metadata.hook_name, metadata.context_size, metadata.prepend_bos, metadata.dataset_path) == (reads, 16, False, "numbers")
    assert (str(dictionary.site), *map(str, dictionary.writes)) == (reads, writes or reads)
    assert dictionary.config.metadata.context_size == 16
    assert metadata.model_name == store.model_name

    x, y = (store.rows(attrib.Site.parse(name), range(384)) for name in (reads, writes or reads))
    as_theirs = x.unflatten(-1, (model.config.n_heads, -1)) if reads == Z and writes is None else x
    with torch.no_grad():
        want_latents, want = theirs.encode(as_theirs), theirs(as_theirs).flatten(1)
    torch.testing.assert_close(attrib.encode(dictionary, x), want_latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attrib.reconstruct(dictionary, x), want, atol=1e-5, rtol=1e-4)
    explained = 1 - float((y - want).square().sum() / (y - y.mean(0)).square().sum())
    assert explained == pytest.approx(np.mean([row["explained_variance"] for row in curves[-5:]]), abs=0.05), (
        "scales are folded: raw values in, raw values out"
    )
    l0 = float((want_latents != 0).sum() / len(x))
    assert l0 == pytest.approx(np.mean([row["l0"] for row in curves[-5:]]), rel=0.25), "and so is the threshold"


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_is_what_a_plain_loop_trains(skip: bool, model: attrib.Model, store: ActivationStore, tmp_path: Path) -> None:
    """Adam on mean squared error and L1, written out, of a ReLU transcoder from z to mlp_out, which have different widths."""
    config = Training(
        reads=Z, writes=MLP_OUT, architecture="standard", skip=skip, width=24, l1_coefficient=0.2, samples=640, batch=64, lr=1e-2,
        lr_warm_up_steps=0, lr_decay_steps=0, dtype="float64",
    )  # fmt: skip
    train(model, store, config, tmp_path / "out")
    sites, rows = (attrib.Site.parse(Z), attrib.Site.parse(MLP_OUT)), np.arange(384)
    sample = np.random.default_rng(0).permutation(rows)[:SAMPLE]
    scales = {site: mean_norm_scale(store.rows(site, sample), site) for site in sites}
    start = trainer_of(config, store, scales, sample).sae
    assert start.W_enc.shape == (40, 24)
    assert not torch.allclose(start.W_enc[:32], start.W_dec.T), "an encoder that is not the decoder's transpose"
    names = ("W_enc", "b_enc", "W_dec", "b_dec", *(["W_skip"] if skip else []))
    p = {name: getattr(start, name).detach().clone().requires_grad_() for name in names}
    optimizer = torch.optim.Adam(list(p.values()), lr=1e-2)
    batches = store.batches(scales, rows, 64, 0)
    for _ in range(10):
        x, y = next(batches).double().split([40, 32], dim=1)
        latents = torch.relu(x @ p["W_enc"] + p["b_enc"])
        out = latents @ p["W_dec"] + p["b_dec"] + (x @ p["W_skip"].T if skip else 0)
        loss = (out - y).square().sum(1).mean() + 0.2 * (latents * p["W_dec"].norm(dim=1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
        optimizer.step()
    found = load_file(tmp_path / "out" / "sae_weights.safetensors")
    a, b = (scales[site] for site in sites)
    want = {"W_enc": p["W_enc"] * a, "b_enc": p["b_enc"], "W_dec": p["W_dec"] / b, "b_dec": p["b_dec"] / b}
    for name, value in (want | ({"W_skip": p["W_skip"] * a / b} if skip else {})).items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-9, atol=1e-12)


def test_dead_latents_of_a_transcoder_learn_what_the_others_leave_of_what_is_written(store: ActivationStore) -> None:
    """sae-lens' auxiliary loss, taken of a transcoder with a skip connection, against its definition."""
    from sae_lens.saes.sae import TrainStepInput

    config = Training(reads=MLP_IN, writes=MLP_OUT, architecture="batchtopk", skip=True, width=40, k=3, samples=640, batch=64)
    sites = (config.site, config.site_out)
    sae = trainer_of(config, store, dict.fromkeys(sites, 1.0), np.arange(64)).sae
    torch.nn.init.normal_(sae.W_skip, generator=torch.Generator().manual_seed(0))
    batch, dead = store.batch(dict.fromkeys(sites, 1.0), np.arange(64)), torch.arange(40) < 10
    output = sae.training_forward_pass(TrainStepInput(batch, {}, dead, 0, False))
    x, y = batch.split(32, dim=1)
    residual = y - x @ sae.W_skip.T - output.sae_out
    torch.testing.assert_close(output.losses["mse_loss"], residual.square().sum(1).mean())
    # the 16 dead latents of largest pre-activation, of which there are 10, at 10/16 of the loss's weight
    of_dead = (x @ sae.W_enc + sae.b_enc)[:, dead] @ sae.W_dec[dead]
    torch.testing.assert_close(output.losses["auxiliary_reconstruction_loss"], 10 / 16 * (of_dead - residual).square().sum(1).mean())
    assert torch.equal(wanted(sae, batch), y - x @ sae.W_skip.T)


def test_scales_are_folded_into_a_batchtopk_with_its_threshold(store: ActivationStore) -> None:
    config = Training(reads=RESID, architecture="batchtopk", width=40, k=3, samples=640, batch=64)
    sae = trainer_of(config, store, {config.site: 1.0}, np.arange(64)).sae
    sae.topk_threshold.fill_(0.3)
    x = store.rows(config.site, np.arange(64))
    latents = ((x * 3 - sae.b_dec) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=1)
    fires = latents > 0.3
    fold_scales(sae, 3.0, 3.0)
    now = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=1)
    assert torch.equal(now > sae.topk_threshold, fires)
    assert 0 < fires.sum() < fires.numel()


def test_a_bias_begins_where_it_is_said(store: ActivationStore) -> None:
    values = store.rows(attrib.Site.parse(RESID), np.arange(384))
    assert not initial_bias("zeros", values).any()
    assert torch.equal(initial_bias("mean", values), values.mean(0))
    with pytest.raises(attrib.InputError, match="bias: 'median'; expected zeros, mean or geometric-median"):
        initial_bias("median", values)
