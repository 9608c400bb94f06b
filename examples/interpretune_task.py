"""Which latents decide a task: a model alone and with dictionaries in it, by gradient and by ablation, in plain PyTorch and in Lightning.

What a tutorial of Interpretune computes with SAELens, of RTE and GPT-2, is asked here of subject-verb agreement and SmolLM2 with two of the
dictionaries that come with attrib. The same function runs in a plain loop and in Lightning's `predict_step`. Each heading names the row of
docs/from-the-notebooks.md.

    python examples/interpretune_task.py [EXAMPLES] [--tiny]
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pandas as pd
import torch
from printing import Step, pairs, show
from tiny_model import tiny_dictionary, tiny_model

import attrib
from attrib.causal import tasks
from attrib.causal.generators import NOUNS, PREPOSITIONS

OPERATIONS = ("base", "spliced", "gradient", "ablation")

RTE_ROW = {
    "premise": "The museum opened in 1893 and has not been closed since.",
    "hypothesis": "The museum is open.",
    "label": "entailment",
}

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


class Setting(NamedTuple):
    """A model, dictionaries of two layers, one of the heads' outputs, and labelled prompts."""

    model: attrib.Model
    dictionaries: tuple[attrib.Dictionary, ...]
    heads: attrib.Dictionary
    """Of random numbers: none of this kind comes with attrib."""
    task: tasks.Task


def smollm2(count: int) -> Setting:
    """SmolLM2-135M with SAEs before layers 6 and 9, and as many prompts of subject-verb agreement."""
    model = attrib.load_model("smollm2-135m")
    dictionaries = tuple(attrib.load_dictionary(f"smollm2-135m/blocks.{layer}.hook_resid_pre") for layer in (6, 9))
    heads = tiny_dictionary("topk", "blocks.9.attn.hook_z", d_model=model.config.d_model)
    return Setting(model, dictionaries, heads, tasks.generated_task("agreement", model, count))


def tiny(count: int) -> Setting:
    """A random model of a few thousand parameters, with random dictionaries."""
    words = [f"The {noun} {where} the is are" for pair in NOUNS for noun in pair.split() for where in PREPOSITIONS]
    model = tiny_model([*words, tasks.RTE.text, " Yes No", *RTE_ROW.values()])
    dictionaries = tuple(tiny_dictionary("topk", f"blocks.{layer}.hook_resid_pre", seed=layer) for layer in (1, 3))
    return Setting(model, dictionaries, tiny_dictionary("relu", "blocks.2.attn.hook_z"), tasks.generated_task("agreement", model, count))


def steps(of: Setting) -> Iterator[Step]:
    """All that the tutorial prints, in its order."""
    model, dictionaries, examples = of.model, of.dictionaries, list(of.task.examples)
    yield Step("B1", "what parameters take; a model that no name holds any more is let go of", tasks.parameter_memory(model, dictionaries))
    yield from questions(of, examples)
    with TemporaryDirectory() as folder:
        where = Path(folder) / "answers"
        tasks.run_task(model, of.task, dictionaries, operations=OPERATIONS, batch=4, out=where)
        results = tasks.open_results(where)  # from its files, done or not
        samples, latents, is_done = results.samples, results.latents, results.is_done
    columns = ["example", "tokens", "right", "wrong", "difference", "loss", "prediction", "said", "correct"]
    yield Step(
        "B4",
        "one token of an answer, at the end of each prompt",
        samples[samples.operation == "base"][["example", "right", "said"]].head(4),
    )
    yield Step("B5", "the metrics of a classification", tasks.classification(samples))
    for row, operation in (("B6", "base"), ("B7", "spliced")):
        yield Step(row, f"logit differences: {operation}", samples[samples.operation == operation][columns].head(4))
    for row, operation in (("B8", "gradient"), ("B9", "ablation")):
        yield Step(row, f"latents by {operation}", latents[latents.operation == operation].drop(columns="operation").head(4))
    yield Step("B17", "what a folder of results holds", pairs({"samples": len(samples), "latents": len(latents), "done": is_done}))
    yield Step("B10", "the model's differences against those with dictionaries", tasks.base_against_spliced(samples, top=5))
    yield Step("B11", "how many are correct", tasks.correctness(samples))
    yield from effects(of, samples, latents)
    yield from composed(of, examples)
    yield from around(of, examples, latents)


def questions(of: Setting, examples: list[tasks.Example]) -> Iterator[Step]:
    """Prompts from rows of a data set, and answers as tokens whose sign is the label's."""
    asked = {name: tasks.filled(tasks.template_named("rte", chat=is_chat), RTE_ROW) for name, is_chat in (("plain", False), ("chat", True))}
    shown = [{"form": name, "prompt": str(one.prompt), "answers": str(one.answers), "label": one.label} for name, one in asked.items()]
    yield Step("B2", "a row of RTE as a prompt; files and the hub are read by tasks.read_task and tasks.task_named", pd.DataFrame(shown))
    items = tasks.encoded(of.model, [asked["plain"], *examples[:3]])
    tokens = [{"prompt": len(item.ids), "right": str(item.right), "wrong": str(item.wrong), "label": item.label} for item in items]
    yield Step("B3", "answers as tokens: a difference is the right one's less the others'", pd.DataFrame(tokens))


def effects(of: Setting, samples: pd.DataFrame, latents: pd.DataFrame) -> Iterator[Step]:
    """What latents do for the answers, by ablation and by gradient."""
    yield Step("B12", "when latents are active", tasks.activation_summary(latents, samples).groupby("dictionary").head(3))
    for operation in ("ablation", "gradient"):
        table = tasks.effects_of_latents(latents, samples, operation)
        yield Step("B13", f"effects by {operation}", tasks.top_latents(table, 3))
    right = tasks.effects_of_latents(latents, samples, "ablation", correct=True)
    yield Step("B13", "by ablation, of samples that are right", tasks.top_latents(right, 1))
    figure = tasks.effects_figure(latents, "ablation", batch=4)
    points = [
        {
            "dictionary": of.dictionaries[int(trace.yaxis[1:] or 1) - 1].name, "batch": trace.name, "latents": len(trace.x),
            "largest": float(max(trace.y)), "smallest": float(min(trace.y)),
        }
        for trace in figure.data
    ]  # fmt: skip
    yield Step("B14", "the figure of effects, batch by batch and dictionary by dictionary", pd.DataFrame(points))
    most = tasks.top_latents(tasks.effects_of_latents(latents, samples), 1)
    rows = []
    for dictionary in of.dictionaries:
        which = most[most.dictionary == dictionary.name].latent.tolist()
        for label in attrib.latents.logit_labels(of.model, dictionary, which):
            is_shown = dictionary.config.metadata.neuronpedia_id is not None
            link = attrib.latents.neuronpedia_link(dictionary, label.latent) if is_shown else "its files name no Neuronpedia id"
            rows.append({"dictionary": dictionary.name, "latent": label.latent, "raises": label.text, "shown at": link})
    yield Step("B15", "where these latents are shown, and what they write", pd.DataFrame(rows))
    r = tasks.one_against_another(latents).attrs["r"]
    yield Step("B16", "gradient against ablation, r by dictionary; tasks.parity_figure draws it", pairs(r))


def composed(of: Setting, examples: list[tasks.Example]) -> Iterator[Step]:
    """An operation of one's own; the same function in a plain loop and in Lightning; what phases take."""

    def doubled(batch: tasks.Batch) -> Frames:
        samples, latents = tasks.OPERATIONS["base"](batch)
        return samples.assign(operation="doubled", difference=2 * samples.difference), latents

    own = tasks.run_task(of.model, of.task, operations={"base": tasks.OPERATIONS["base"], "doubled": doubled}, limit=4)
    yield Step("B18", "operations of one's own beside attrib's, at most 4 examples", tasks.correctness(own.samples))
    loader = torch.utils.data.DataLoader(examples, batch_size=4, collate_fn=list)
    rows = []
    for frames in (in_pytorch, in_lightning):
        found = [each for each, _ in frames(of.model, of.dictionaries, loader)]
        correct = sum(int(part[part.operation == "spliced"].correct.sum()) for part in found)
        rows.append({"in": frames.__name__, "batches": len(found), "correct with dictionaries": correct})
    yield Step("B19", "one function in PyTorch and in Lightning", pd.DataFrame(rows))
    measured = tasks.run_task(of.model, of.task, of.dictionaries, operations=OPERATIONS, limit=4, memory=True)
    yield Step("B20", "the most memory of each phase, in bytes", measured.memory)


def around(of: Setting, examples: list[tasks.Example], latents: pd.DataFrame) -> Iterator[Step]:
    """Which heads bring a latent about, over all prompts; and the same task with a dictionary of heads' outputs."""
    early, late = of.dictionaries
    of_late = latents[(latents.dictionary == late.name) & (latents.operation == "ablation")]
    latent = int(of_late.groupby("latent").effect.agg(lambda effect: effect.abs().sum()).idxmax())
    found = attrib.head_attribution(of.model, late, [one.prompt for one in examples], source=early, latents=latent, positions="last")
    means = found.mean_by_head(latent)
    best = means.abs().flatten().topk(3).indices.tolist()
    heads = [(found.layers[place // means.shape[1]], place % means.shape[1], float(means.flatten()[place])) for place in best]
    title = f"heads that bring latent {latent} of {late.name} about, on the mean over {len(found)} places"
    yield Step("B21", title, pd.DataFrame(heads, columns=["layer", "head", "share"]))
    run = tasks.run_task(of.model, of.task, of.heads, operations=("base", "spliced", "gradient"), limit=4)
    yield Step("B22", f"with {of.heads.name}, of heads' outputs and of random numbers", tasks.correctness(run.samples))


if __name__ == "__main__":
    counts = [int(word) for word in sys.argv[1:] if word != "--tiny"]
    show(steps((tiny if "--tiny" in sys.argv[1:] else smollm2)(counts[0] if counts else 8)))
