"""One dictionary, trained by sae-lens' SAETrainer: step by step through its public seams, so that what is killed goes on."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from attrib.adapters import load_dictionary
from attrib.adapters.given import as_model, takes
from attrib.core.files import sync
from attrib.core.optional import needed
from attrib.core.room import memory_named
from attrib.core.shown import in_one_line
from attrib.core.types import InputError, warn
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model, check_site
from attrib.training.activations import ActivationStore, store_activations
from attrib.training.biases import SAMPLE, initial_bias
from attrib.training.checkpoints import load_checkpoint, save_checkpoint
from attrib.training.config import Training, training
from attrib.training.contexts import pack
from attrib.training.curves import Row, append_row, row_of, rows_until
from attrib.training.folders import check_made_with, read_json_file, whole_folder, write_json
from attrib.training.modules import fold_scales, mean_norm_scale, save_inference, untrained
from attrib.training.resampling import resample

CURVES, DESCRIPTION = "curves.jsonl", "training.json"
Told = Callable[[Row, int], None]
"""Called with each row of the curves, and the steps in all."""
THRESHOLD_LR = 0.01
"""sae-lens' own topk_threshold_lr."""
CONTEXT = 128
"""Tokens of a context of texts, where nobody says."""


@in_one_line
class Trained(NamedTuple):
    """A dictionary that was trained, where it lies, and its curves."""

    dictionary: Dictionary
    folder: Path
    curves: list[Row]


@memory_named("training", "Take a smaller batch or width, or close what else runs.")
@takes(model=as_model)
def train(
    model: Model,
    data: Any,
    config: Training | dict[str, Any],
    out: str | Path,
    *,
    context: int | None = None,
    work: str | Path | None = None,
    progress: Told | None = None,
) -> Trained:
    """Train one dictionary and save it in sae-lens' folder format, with what attrib and sae-lens need to know of it in its metadata.

    A training that was killed goes on from its newest checkpoint with the same call, and ends with the same bytes as one that was not.

    Args:
        data: an `ActivationStore` of the model, or texts (or lists of token ids) that are packed into contexts and stored in `work`.
        config: a `Training`, or its keys.
        out: the folder to make; beside the dictionary it holds its curves and how it was trained.
        context: tokens of a context of texts; 128 where it is left out.
        work: folder of checkpoints, and of the activations of texts, which stays; where it is left out, one beside `out`, which is removed
            at the end.
        progress: called with each row of the curves, and the steps in all.

    Raises:
        InputError: for a key that is wrong or that the architecture has no use for; where `out` is there already, where `work` was made
            with something else, and where there are fewer rows than a batch takes; and where the loss is not finite.
    """
    asked, out = training(config), Path(out)
    for key, site in (("reads", asked.site), ("writes", asked.site_out)):
        check_site(model, site, key)
    check_new(out)
    needed("sae_lens", "train", "lens")
    folder = out.with_name(f".{out.name}.training") if work is None else Path(work)
    _warn_of_threshold(asked)
    store = _stored(model, data, asked, folder, context)
    curves = _fit(store, asked, out, folder / f"checkpoints-{out.name}", progress)
    if work is None:
        shutil.rmtree(folder)
    return Trained(load_dictionary(out), out, curves)


def _warn_of_threshold(asked: Training) -> None:
    """The threshold that a batchtopk is saved with begins at 0 and follows slowly: too low, it lets more latents through than k."""
    left = (1 - (asked.topk_threshold_lr or THRESHOLD_LR)) ** asked.steps
    if "batchtopk" in asked.architecture and left > 0.05:
        warn(
            f"topk_threshold_lr: after {asked.steps} steps the threshold that this dictionary is saved with will have come {1 - left:.0%} "
            "of its way from 0, so that more latents are active than k. Give a larger one, such as 0.1, or more samples."
        )


def check_new(out: Path) -> None:
    """Raises InputError where something is there already."""
    if out.exists():
        raise InputError(f"out: {out} exists already; expected a new folder. Choose another, or delete it.")


def _stored(model: Model, data: Any, asked: Training, folder: Path, context: int | None) -> ActivationStore:
    """The store of what was given."""
    if not isinstance(data, ActivationStore):
        contexts = pack(model, data, CONTEXT if context is None else context)
        return store_activations(model, contexts, [asked.site, asked.site_out], folder / "activations")
    if context is not None:
        raise InputError("context: no effect on activations that are stored already; leave it out.")
    if data.model_name != model.name:
        raise InputError(f"data: {data.folder} has activations of {data.model_name}, and not of {model.name}; store those first.")
    if missing := [site for site in (asked.site, asked.site_out) if site not in data.arrays]:
        raise InputError(f"data: {data.folder} has no activations of {missing[0]}; it has {', '.join(map(str, data.arrays))}.")
    if not data.is_whole:
        raise InputError(f"data: {data.folder} has {data.done} of {len(data.contexts)} contexts; make it whole with store_activations.")
    return data


def _fit(store: ActivationStore, asked: Training, out: Path, folder: Path, progress: Told | None) -> list[Row]:
    """Train from a store into `out`, with checkpoints in `folder`."""
    check_made_with(folder, asked.model_dump() | {"activations": store.digest}, "work")
    reads, writes = asked.site, asked.site_out
    rows = store.usual((reads, writes), asked.max_norm)
    if len(rows) < asked.batch:
        raise InputError(
            f"batch: {asked.batch}, but {asked.reads} has {len(rows)} rows"
            f"{' of a usual norm' if len(rows) < store.contexts.numel() else ''}; give smaller batches, or more text."
        )
    sample = np.random.default_rng(asked.seed).permutation(rows)[:SAMPLE]
    scales = {site: mean_norm_scale(store.rows(site, sample), site) if asked.scale == "mean-norm" else 1.0 for site in (reads, writes)}
    trainer = trainer_of(asked, store, scales, sample)
    done = load_checkpoint(trainer, folder)
    curves = rows_until(folder / CURVES, done)
    batches = store.batches(scales, rows, asked.batch, asked.seed, skip=done)
    for step in range(done + 1, asked.steps + 1):
        trainer.maybe_reset_sparsity()
        learning_rate = float(trainer.optimizer.param_groups[0]["lr"])
        output = trainer.step(next(batches).to(trainer.sae.dtype))
        trainer.n_training_steps += 1
        resampled = _resampled(trainer, asked, store, scales, rows, step) if asked.resamples_after(step) else 0
        if step % asked.logged == 0 or resampled or step in (1, asked.steps):
            row = row_of(trainer, output, learning_rate, resampled)
            _check_finite(row)
            append_row(folder / CURVES, row)
            curves.append(row)
            if progress is not None:
                progress(row, asked.steps)
        if step % asked.checkpointed == 0 and step < asked.steps:
            sync(folder / CURVES)  # a checkpoint stands on rows that are on the disk
            save_checkpoint(trainer, folder)
    trainer.set_final_sae_metadata()
    fold_scales(trainer.sae, scales[reads], scales[writes])
    with whole_folder(out) as partial:
        save_inference(trainer.sae, partial, asked.saved_as or asked.dtype)
        shutil.copy(folder / CURVES, partial / CURVES)
        write_json(partial / DESCRIPTION, asked.model_dump(exclude_defaults=True) | {"activations": store.digest})
    return curves


def trainer_of(asked: Training, store: ActivationStore, scales: dict[Any, float], sample: Any) -> Any:
    """sae-lens' trainer before its first step, with the bias as it begins."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    facts = {
        "model_name": store.model_name, "context_size": store.contexts.shape[1], "prepend_bos": store.prepend_bos,
        "dataset_path": store.dataset,
    }  # fmt: skip
    sae = untrained(asked, {site: array.shape[1] for site, array in store.arrays.items()}, facts)
    sae.b_dec.data = initial_bias(asked.bias, store.rows(asked.site_out, sample) * scales[asked.site_out]).to(sae.dtype)
    sae.to(asked.device)
    scheduler = {"constant": "constant", "cosine": "cosineannealing"}[asked.lr_scheduler]
    config = SAETrainerConfig(
        total_training_samples=asked.steps * asked.batch, train_batch_size_samples=asked.batch, lr=asked.lr,
        lr_end=asked.lr / 10 if asked.lr_end is None else asked.lr_end, lr_scheduler_name=scheduler, lr_warm_up_steps=asked.warm_up,
        lr_decay_steps=asked.decay, adam_beta1=asked.adam_beta1, adam_beta2=asked.adam_beta2, device=asked.device,
        autocast=asked.autocast, dead_feature_window=asked.dead_feature_window,
    )  # fmt: skip
    return SAETrainer(config, sae, iter(()))


def _resampled(trainer: Any, asked: Training, store: ActivationStore, scales: dict[Any, float], rows: Any, step: int) -> int:
    """Resample what is dead after a step, with rows that follow from the seed and the step alone."""
    if not trainer.dead_neurons.any():
        return 0
    rng = np.random.default_rng((asked.seed, step))
    chosen = np.sort(rng.choice(rows, min(len(rows), asked.resample_rows), replace=False))
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    return len(resample(trainer, store.batch(scales, chosen), scale=asked.resample_scale, generator=generator))


def _check_finite(row: Row) -> None:
    if not math.isfinite(row["loss"]):
        raise InputError(f"lr: the loss is {row['loss']} after step {row['step']}; take a smaller learning rate, or a longer warm-up.")


def trained_as(folder: Path) -> Training | None:
    """How a finished dictionary was trained; None for a folder that no training of attrib made."""
    file = folder / DESCRIPTION
    if not file.is_file():
        return None
    found = read_json_file(file)
    return training({key: value for key, value in found.items() if key != "activations"}, str(file)) if isinstance(found, dict) else None
