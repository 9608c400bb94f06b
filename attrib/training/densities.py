"""How often the latents of a dictionary are active on what it was trained on."""

from typing import Any

import numpy as np
import torch

from attrib.core.shown import BARS
from attrib.dictionaries.dictionary import Dictionary, encode
from attrib.training.activations import ActivationStore, Rows

BINS = np.arange(-6, 0.01, 0.25)
"""Of log10 density."""


def density(store: ActivationStore, dictionary: Dictionary, rows: Rows, batch: int = 4096) -> dict[str, Any]:
    """How often each latent is active on `rows` of a store: dead ones, quantiles and a histogram of log10 density.

    A dead latent (active on none of them) is in no bin.
    """
    counts = torch.zeros(dictionary.d_sae, dtype=torch.int64)
    with torch.inference_mode():
        for first in range(0, len(rows), batch):
            counts += (encode(dictionary, store.rows(dictionary.site, rows[first : first + batch])) != 0).sum(0)
    return density_report(counts.numpy(), len(rows))


def density_report(counts: Any, tokens: int) -> dict[str, Any]:
    """The report of `density` from how many of `tokens` tokens each latent is active on."""
    alive = np.log10(counts[counts > 0] / tokens)
    histogram = np.histogram(alive.clip(BINS[0], BINS[-1]), BINS)[0]
    quantiles = np.quantile(alive, [0.05, 0.5, 0.95]).tolist() if len(alive) else []
    return {
        "tokens": tokens, "dead": int((counts == 0).sum()), "dead_fraction": float((counts == 0).mean()),
        "log10_quantiles": dict(zip(("5%", "50%", "95%"), quantiles, strict=False)),
        "log10_edges": BINS.tolist(), "latents": histogram.tolist(),
    }  # fmt: skip


def sparkline(report: dict[str, Any]) -> str:
    """The histogram in a line of text; a bar that is not empty is seen."""
    counts = np.array(report["latents"])
    heights = np.ceil(counts / max(1, counts.max()) * 8).astype(int)
    return "".join(("·" + BARS)[height] for height in heights)
