"""Which latents decide a task: a model alone and with dictionaries in it, by gradient and by ablation, in plain PyTorch and in Lightning.

What a tutorial of Interpretune computes with SAELens, of RTE and GPT-2, is asked here of subject-verb agreement and SmolLM2 with two of the
dictionaries that come with attrib. The same function runs in a plain loop and in Lightning's `predict_step`.

    python examples/interpretune_task.py [EXAMPLES]
"""

import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

import attrib
from attrib.causal import tasks

OPERATIONS = ("base", "spliced", "gradient", "ablation")

Frames = tuple[pd.DataFrame, pd.DataFrame]
"""Samples and latents."""


def analysed(model: attrib.Model, dictionaries: Sequence[attrib.Dictionary], examples: Sequence[tasks.Example]) -> Frames:
    """The one function: every operation of a batch, as long data frames."""
    found = tasks.run_task(model, tasks.Task("a batch", examples), dictionaries, operations=OPERATIONS, batch=len(examples))
    return found.samples, found.latents


def in_pytorch(model: attrib.Model, dictionaries: Sequence[attrib.Dictionary], loader: Any) -> list[Frames]:
    """A plain loop, over a plain module."""
    module = attrib.as_module(model)
    return [analysed(module.model, dictionaries, batch) for batch in loader]


def in_lightning(model: attrib.Model, dictionaries: Sequence[attrib.Dictionary], loader: Any) -> list[Frames]:
    """Lightning's trainer, which moves the module to its device and calls the same function."""
    import pytorch_lightning as lightning

    class Analysis(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = attrib.as_module(model)

        def predict_step(self, batch: list[tasks.Example], batch_idx: int) -> Frames:
            return analysed(self.network.model, dictionaries, batch)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(logger=False, devices=1, accelerator="auto", **quiet)
    return list(trainer.predict(Analysis(), loader) or [])


def main(count: int) -> None:
    """Print what a run comes to, and do the same in both ways."""
    model = attrib.load_model("smollm2-135m")
    dictionaries = [attrib.load_dictionary(f"smollm2-135m/blocks.{layer}.hook_resid_pre") for layer in (6, 9)]
    print(tasks.parameter_memory(model, dictionaries).to_string(index=False), "\n")

    task = tasks.generated_task("agreement", model, count)
    results = tasks.run_task(model, task, dictionaries, operations=OPERATIONS, batch=4)
    samples, latents = results.samples, results.latents
    print(tasks.base_against_spliced(samples, top=5).to_string(index=False), "\n")
    print(tasks.correctness(samples).to_string(index=False), "\n")
    print(tasks.activation_summary(latents, samples).groupby("dictionary").head(3).to_string(index=False), "\n")
    for operation in ("ablation", "gradient"):
        table = tasks.effects_of_latents(latents, samples, operation)
        print(f"effects by {operation}\n{tasks.top_latents(table, 3).to_string(index=False)}\n")
    print("gradient against ablation, r:", tasks.one_against_another(latents).attrs["r"], "\n")

    loader = torch.utils.data.DataLoader(list(task.examples), batch_size=4, collate_fn=list)
    for frames in (in_pytorch, in_lightning):
        found = [each for each, _ in frames(model, dictionaries, loader)]
        correct = sum(int(part[part.operation == "spliced"].correct.sum()) for part in found)
        print(f"{frames.__name__}: {len(found)} batches, {correct} correct with the dictionaries in the pass")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
