"""Surveying latents over a corpus beside the model's own forward passes: python -m bench.engine.latents TEXT

TEXT is a file of prompts, one a line (`examples/training_text.py` makes some). The survey's counts and largest scores are compared with
dense encodings before anything is timed. Everything is computed prompt by prompt, in float32.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import attrib
from attrib import latents
from bench.measure import timed


def main() -> None:
    """Print CPU seconds and tokens for each of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--dictionary", default="smollm2-135m/blocks.6.hook_resid_pre")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--length", type=int, default=64)
    given = parser.parse_args()
    device, model, d = torch.device("cpu"), attrib.load_model("smollm2-135m"), attrib.load_dictionary(given.dictionary)
    assert model.tokenizer is not None
    lines = [line for line in given.text.read_text().splitlines() if line.strip()][: given.prompts]
    prompts = [torch.tensor(model.tokenizer.prompt(line)[: given.length]) for line in lines]
    tokens = sum(map(len, prompts))
    values = [attrib.capture(model, ids, d.site)[d.site] for ids in prompts]
    part = latents.survey(model, d, prompts).of()
    dense = torch.cat([attrib.encode(d, x) for x in values])
    counts, largest = (dense != 0).sum(0), dense.max(0).values
    found = torch.from_numpy(part.maximum).nan_to_num(0).float()
    # encoding is computed in other products, so that a latent at the limit of k places may be another
    if (counts - torch.from_numpy(part.count)).abs().sum() > 1e-4 * counts.sum() or (found - largest).abs().max() > 1e-3 * largest.max():
        raise SystemExit("the survey's counts or largest scores are not those of dense encodings")
    print(f"{d.name}: {len(prompts)} prompts, {tokens:,} tokens, {float((dense != 0).sum(1).float().mean()):.0f} active latents at each")
    with torch.no_grad():
        ways: dict[str, Callable[[], Any]] = {
            f"forward to {d.site}": lambda: [attrib.capture(model, ids, d.site) for ids in prompts],
            "whole forward": lambda: [attrib.forward(model, ids) for ids in prompts],
            "encode_sparse": lambda: [attrib.encode_sparse(d, x) for x in values],
            "survey": lambda: latents.survey(model, d, prompts),
            "survey, with together": lambda: latents.survey(model, d, prompts, together=True),
        }
        for name, run in ways.items():
            run()
            _, time = timed(run, device)
            print(f"{name:40} {time.cpu:8.2f} s {tokens / time.cpu:10,.0f} tokens a second")


if __name__ == "__main__":
    main()
