"""Dead latents are begun again from what the dictionary reconstructs worst.

Bricken et al., "Towards Monosemanticity" (2023), appendix on neuron resampling: of many inputs each is drawn with a probability that
goes with the square of its loss; its direction becomes the dead latent's row of the decoder, and, at a fifth of the living latents'
mean norm, its column of the encoder; its bias becomes zero, and so do Adam's moments of every number that was changed. There all
decoder rows have length 1; here they have none that is fixed, and the new row has the living ones' mean.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.training.modules import read, wanted

BIASES = ("b_enc", "b_gate", "b_mag", "r_mag")
"""What an encoder has for each latent beside its column."""


@torch.no_grad()
def resample(
    trainer: Any, batch: Float[Tensor, "samples width"], *, scale: float = 0.2, generator: torch.Generator | None = None
) -> Int[Tensor, " dead"]:
    """Begin the dead latents of a training again, and count them as alive from now on.

    Args:
        trainer: sae-lens' SAETrainer, of which weights, Adam's moments and the count of steps without activity are changed.
        batch: many rows, as the trainer gets them; each latent is given another one, where there are enough with a loss.
        scale: norm of a new column of the encoder, of the living ones' mean norm.
        generator: draws the rows.

    Returns:
        The latents that were dead; none where nothing is left to learn.
    """
    sae = trainer.sae
    is_dead = trainer.dead_neurons
    dead = is_dead.nonzero().flatten()
    batch = batch.to(sae.device)
    target = wanted(sae, batch)
    loss = (target - sae.decode(sae.encode(batch))).pow(2).sum(1).double().cpu()
    if not len(dead) or not loss.any():
        return dead[:0]
    probability = (loss / loss.max()).square()
    enough = len(dead) <= int((probability > 0).sum())
    picked = torch.multinomial(probability, len(dead), replacement=not enough, generator=generator).to(dead.device)
    sae.W_dec[dead] = _directions(target[picked] - sae.b_dec) * _mean_norm(sae.W_dec, ~is_dead)
    sae.W_enc[:, dead] = _directions(read(sae, batch[picked])).T * (scale * _mean_norm(sae.W_enc.T, ~is_dead))
    biases = [bias for name in BIASES if (bias := getattr(sae, name, None)) is not None]
    for bias in biases:
        bias[dead] = 0
    for parameter in (sae.W_enc, sae.W_dec, *biases):
        for moment in ("exp_avg", "exp_avg_sq"):
            if (moments := trainer.optimizer.state[parameter].get(moment)) is not None:  # before the first step there are none
                (moments.T if parameter is sae.W_enc else moments)[dead] = 0
    trainer.n_forward_passes_since_fired[dead] = 0
    return dead


def _directions(rows: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _mean_norm(rows: Float[Tensor, "d_sae d"], alive: Tensor) -> float:
    """Of the living latents; 1 where none lives."""
    return float(rows[alive].norm(dim=1).mean()) if alive.any() else 1.0
