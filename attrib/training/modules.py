"""sae-lens' training modules, as one training describes them: made, read, scaled back and saved."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from attrib.core.types import InputError, Site
from attrib.training.config import Training
from attrib.training.transcoders import transcoder_classes

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"


def untrained(training: Training, widths: Mapping[Site, int], facts: Mapping[str, Any]) -> Any:
    """sae-lens' training SAE, or a training transcoder, with its weights as `seed` makes them, on the CPU.

    Args:
        widths: the size of the vector at each site.
        facts: what the metadata say beside the hooks: model_name, context_size, prepend_bos, dataset_path.
    """
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(hook_name=training.reads, **{name: fact for name, fact in facts.items() if fact is not None})
    options = training.own | {"d_in": widths[training.site], "d_sae": training.width, "dtype": training.dtype, "metadata": metadata}
    if inner := options.get("matryoshka_widths"):
        options["matryoshka_widths"] = list(dict.fromkeys([*inner, training.width]))
    if training.is_transcoder:
        metadata.hook_name_out = str(training.site_out)
        options["d_out"] = widths[training.site_out]
        module, config = transcoder_classes(training.architecture, training.skip)
    else:
        options["reshape_activations"] = "hook_z" if training.site.kind == "z" else "none"
        module, config = get_sae_training_class(training.architecture)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(training.seed)
        return module(config(**options))


def wanted(sae: Any, batch: Float[Tensor, "samples width"]) -> Float[Tensor, "samples d_out"]:
    """What the latents of a training module are to write: the batch itself, or what is asked of a transcoder."""
    return sae.wanted(batch) if hasattr(sae, "wanted") else batch.to(sae.dtype)


def read(sae: Any, batch: Float[Tensor, "samples width"]) -> Float[Tensor, "samples d_in"]:
    """What the encoder of a training module is multiplied with: a bias that is taken off is off."""
    return sae.process_sae_in(batch)


def mean_norm_scale(rows: Float[Tensor, "samples d"], site: Site) -> float:
    """By what vectors are multiplied to have a mean norm of √d. Raises InputError where all of them are zero."""
    mean = float(rows.norm(dim=1).mean())
    if not mean:
        raise InputError(f"scale: every value at {site} is zero, so that there is nothing to learn; take another site.")
    return math.sqrt(rows.shape[1]) / mean


@torch.no_grad()
def fold_scales(sae: Any, reads: float, writes: float) -> None:
    """Make a module take values x and give values y where so far x · reads came and y · writes was given.

    The threshold of batchtopk is in units of decoder rows of length 1, and so shrinks with what is written. (sae-lens' own
    `fold_activation_norm_scaling_factor` left it as it was up to 6.54.0, and divides it in 6.54.12.)
    """
    sae.W_enc.mul_(reads)
    sae.W_dec.div_(writes)
    sae.b_dec.div_(writes)
    if hasattr(sae, "W_skip"):
        sae.W_skip.mul_(reads / writes)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.div_(writes)


def save_inference(sae: Any, folder: Path, saved_as: str) -> None:
    """Weights and config of the inference form, as sae-lens writes them, in the dtype `saved_as` and for the CPU.

    Raises:
        InputError: where a weight is not finite in this dtype.
    """
    sae.save_inference_model(folder)
    weights = {name: value.to(getattr(torch, saved_as)).contiguous() for name, value in load_file(folder / WEIGHTS).items()}
    if wrong := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise InputError(f"saved_as: {wrong[0]} has values that are not finite in {saved_as}; take float32, or a smaller learning rate.")
    save_file(weights, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text()) | {"dtype": saved_as, "device": "cpu"}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
