"""What ablations have shown: a row for each, with what was read and what it changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Ablations:
    """Ablations of one latent each, or of two (`size` 2), of one or several prompts.

    `change` is what an ablation does to what is read. An attribution predicts its opposite: `latent_to_logit` says what a latent brings.
    """

    prompt: Int[Tensor, " ablations"]
    position: Int[Tensor, "ablations size"]
    latent: Int[Tensor, "ablations size"]
    activation: Float[Tensor, "ablations size"]
    base: Float[Tensor, "prompts read"]
    """What is read without ablation."""
    ablated: Float[Tensor, "ablations read"]
    labels: tuple[tuple[str, ...], ...]
    """For each prompt, what is read."""

    def __repr__(self) -> str:
        what = "pairs of latents" if self.position.shape[-1] == 2 else "latents"
        return f"Ablations({len(self)} {what} of {len(self.labels)} prompts, {self.ablated.shape[-1]} read of each)"

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def change(self) -> Float[Tensor, "ablations read"]:
        """What is read with each ablation less what is read without."""
        return self.ablated - self.base.index_select(0, self.prompt.to(self.base.device))

    @classmethod
    def joined(cls, several: Sequence["Ablations"]) -> "Ablations":
        """Those of several prompts, in their order."""
        prompt, position, latent, activation, base, ablated = (
            torch.cat([getattr(one, name) for one in several]) for name in ("prompt", "position", "latent", "activation", "base", "ablated")
        )
        return cls(prompt, position, latent, activation, base, ablated, tuple(label for one in several for label in one.labels))

    def order(self, read: int = 0) -> Int[Tensor, " ablations"]:
        """Their numbers, the largest change of what is read first, whichever its sign."""
        return self.change[:, read].abs().argsort(descending=True, stable=True)

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each ablation and each thing that is read. Of pairs, columns end in _1 and _2."""
        import pandas as pd

        count, read = len(self), self.ablated.shape[1]
        columns = {"prompt": self.prompt.repeat_interleave(read).tolist()}
        for name in ("position", "latent", "activation"):
            values = getattr(self, name)
            ends = [""] if values.shape[1] == 1 else [f"_{n + 1}" for n in range(values.shape[1])]
            columns |= {f"{name}{end}": values[:, n].repeat_interleave(read).tolist() for n, end in enumerate(ends)}
        columns["target"] = [label for prompt in self.prompt.tolist() for label in self.labels[prompt]]
        base = self.base.index_select(0, self.prompt.to(self.base.device))
        for name, table in (("base", base), ("ablated", self.ablated), ("change", self.change)):
            columns[name] = table.reshape(count * read).tolist()
        return pd.DataFrame(columns)

    def top(self, k: int = 10) -> "pd.DataFrame":
        """The k largest changes."""
        frame = self.to_pandas()
        return frame.iloc[frame["change"].abs().argsort(kind="stable")[::-1][:k]].reset_index(drop=True)
