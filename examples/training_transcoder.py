"""A BatchTopK transcoder that sae-lens's own SAETrainer trains.

sae-lens has transcoders for inference only, and none with a TopK rule. Its BatchTopK training SAE becomes one by
reading one half of each batch and reconstructing the other: encoder, rule, threshold, loss for dead latents,
optimiser, schedule and checkpoints stay sae-lens's. It is saved as a JumpReLU transcoder, as sae-lens saves
BatchTopK SAEs as JumpReLU SAEs: the threshold is what the k-th latent needed on average.

Imported only when something is trained: sae-lens takes seconds to import, and --help should not wait for it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput, mse_loss
from sae_lens.saes.transcoder import JumpReLUTranscoderConfig
from torch import Tensor


@dataclass
class TrainingTranscoderConfig(BatchTopKTrainingSAEConfig):
    """BatchTopK's, with nothing subtracted from the input: b_dec belongs to what is written."""

    apply_b_dec_to_input: bool = False
    d_out: int = 0

    def __post_init__(self) -> None:
        if self.d_out not in (0, self.d_in):
            raise ValueError(f"d_out: {self.d_out}, but d_in is {self.d_in}; an MLP reads and writes d_model.")
        self.d_out = self.d_in
        super().__post_init__()

    @classmethod
    def architecture(cls) -> str:
        """What the saved metadata call the way of training."""
        return "batchtopk_transcoder"

    def get_inference_config_class(self) -> type[JumpReLUTranscoderConfig]:
        """What it is saved as."""
        return JumpReLUTranscoderConfig


class TrainingTranscoder(BatchTopKTrainingSAE):
    """Batches are [samples, d_in + d_out]: what is read, then what is to be written."""

    def __init__(self, cfg: TrainingTranscoderConfig) -> None:
        super().__init__(cfg)
        # the loss is taken between what is written and the batch, of which the second half is meant
        self.mse_loss_fn: Callable[[Tensor, Tensor], Tensor] = lambda written, batch: mse_loss(written, self.halves(batch)[1])

    def halves(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """What is read, and what is to be written."""
        read, wanted = batch.split(self.cfg.d_in, dim=-1)
        return read, wanted

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and pre-activations of what is read."""
        return super().encode_with_hidden_pre(self.halves(x)[0])

    def calculate_aux_loss(self, step_input: TrainStepInput, **rest: Any) -> dict[str, Tensor]:
        """Dead latents learn what the others leave of what is to be written."""
        return super().calculate_aux_loss(step_input=replace(step_input, sae_in=self.halves(step_input.sae_in)[1]), **rest)

    @torch.no_grad()
    def fold_scales(self, read: float, written: float) -> None:
        """Take raw activations x and y where so far x · read and y · written came.

        Latents are measured in units of decoder rows of length 1 (`rescale_acts_by_decoder_norm`), so the
        threshold shrinks with what is written.
        """
        self.W_enc.mul_(read)
        self.W_dec.div_(written)
        self.b_dec.div_(written)
        self.topk_threshold.div_(written)
