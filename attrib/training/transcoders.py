"""Transcoders that sae-lens' own SAETrainer trains.

sae-lens has transcoders for inference only. One of its training SAEs becomes one by reading the first part of each batch and
reconstructing the second: encoder, rule, threshold, losses, optimiser and schedule stay sae-lens'. What is trained is saved as the
transcoder that sae-lens has for its rule: a batchtopk as a JumpReLU transcoder, as sae-lens saves BatchTopK SAEs as JumpReLU SAEs.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


@cache
def transcoder_classes(architecture: str, skip: bool) -> tuple[Any, Any]:
    """The training module and its config for a transcoder of an architecture of sae-lens, with or without a skip connection.

    Made when it is asked for: sae-lens takes seconds to import. A module's batches are [samples, d_in + d_out]: what is read,
    then what is to be written.
    """
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import mse_loss

    base, base_config = get_sae_training_class(architecture)
    inference = f"{'' if architecture == 'standard' else 'jumprelu_'}{'skip_' if skip else ''}transcoder"

    @dataclass
    class TrainingTranscoderConfig(base_config):  # type: ignore[misc, valid-type]
        """The architecture's, with nothing subtracted from the input: b_dec belongs to what is written."""

        apply_b_dec_to_input: bool = False
        d_out: int = 0

        @classmethod
        def architecture(cls) -> str:
            """What the saved metadata call the way of training."""
            return f"{architecture}_{'skip_' if skip else ''}transcoder"

        def get_inference_config_class(self) -> Any:
            """What it is saved as."""
            return get_sae_class(inference)[1]

    class TrainingTranscoder(base):  # type: ignore[misc, valid-type]
        """The architecture's, from what is read to what is to be written."""

        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            # sae-lens takes the loss between what is written and the whole batch, of which the second part is meant
            self.mse_loss_fn = lambda written, batch: mse_loss(written, self.wanted(batch))

        def initialize_weights(self) -> None:
            """As sae-lens has it, with an encoder that is not the decoder's transpose, since the two are of different places."""
            super().initialize_weights()
            sizes = {"dtype": self.dtype, "device": self.device}
            self.W_enc = nn.Parameter(self._rows(self.cfg.d_in, sizes).T.contiguous())
            self.W_dec = nn.Parameter(self._rows(self.cfg.d_out, sizes))
            self.b_dec = nn.Parameter(torch.zeros(self.cfg.d_out, **sizes))
            if skip:
                self.W_skip = nn.Parameter(torch.zeros(self.cfg.d_out, self.cfg.d_in, **sizes))

        def _rows(self, d: int, sizes: dict[str, Any]) -> Tensor:
            """[d_sae, d] rows of random directions, with the norm of the config."""
            rows = nn.init.kaiming_uniform_(torch.empty(self.cfg.d_sae, d, **sizes))
            return rows if self.cfg.decoder_init_norm is None else rows / rows.norm(dim=1, keepdim=True) * self.cfg.decoder_init_norm

        def process_sae_in(self, sae_in: Tensor) -> Tensor:
            """What is read of a batch."""
            return self.hook_sae_input(sae_in[..., : self.cfg.d_in].to(self.dtype))

        def wanted(self, batch: Tensor) -> Tensor:
            """What latents and bias are to write: the batch's second part, without what the skip connection brings."""
            read, written = batch.to(self.dtype).split([self.cfg.d_in, self.cfg.d_out], dim=-1)
            return written - read @ self.W_skip.T if skip else written

        def calculate_aux_loss(self, step_input: Any, **rest: Any) -> Any:
            """Dead latents learn what the others leave of what is to be written."""
            return super().calculate_aux_loss(step_input=replace(step_input, sae_in=self.wanted(step_input.sae_in)), **rest)

    return TrainingTranscoder, TrainingTranscoderConfig
