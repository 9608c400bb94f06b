"""Train SAEs and transcoders for SmolLM2 with sae-lens's own trainer, from any text files.

    python examples/train_dictionaries.py --text text/ --out attrib/shipped/smollm2-135m
    python examples/train_dictionaries.py --text text/ --out attrib/shipped/smollm2-135m --kind transcoder \\
        --layer 7 --layer 8 --layer 9 --width 1152 --k 32 --bias geometric-median

One pass of the text through the model writes the activations of all sites to `--work`; each dictionary is
then trained from there by sae_lens's SAETrainer. Both stages save as they go: run the same command
again and it goes on where it stopped. At the end every dictionary is measured on text that it never
saw, the densities of its latents are counted, and a card (README.md and JSON) is written beside them.

A dictionary that is in `--out` is not trained again. To replace one, delete its folder, ask for its layer alone, and give a
`--work` of its own: the card keeps what it says of the others.
"""

import json
import os
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from activation_store import Store, console, contexts, made_with, split
from bias_initialisation import SAMPLE, Bias, initial_bias
from dictionary_card import density, measure, plot, read_card, write_card
from safetensors.torch import load_file, save_file

import attrib
from attrib.core.types import Site


class Kind(StrEnum):
    """What is trained: an SAE writes where it reads, a transcoder reads mlp_in and writes mlp_out."""

    SAE = "sae"
    TRANSCODER = "transcoder"


class Task(NamedTuple):
    """One dictionary to train."""

    reads: Site
    writes: Site
    width: int
    k: int

    @property
    def name(self) -> str:
        """Its folder, the hook where it reads."""
        return str(self.reads)


# --------------------------------------------------------------------------------------- training


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most samples."""
    found = [f for f in folder.glob("*") if f.name.isdigit() and (f / "trainer_state.pt").exists()]
    return max(found, key=lambda f: int(f.name), default=None)


def untrained(task: Task, store: Store, options: "Options") -> Any:
    """sae-lens's training module: TopK for an SAE, BatchTopK for a transcoder."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from training_transcoder import TrainingTranscoder, TrainingTranscoderConfig

    metadata = SAEMetadata(
        model_name=attrib.SMOLLM2, hook_name=str(task.reads), context_size=store.tokens.shape[1], prepend_bos=False
    )  # fmt: skip
    usual = {"d_in": store.arrays[task.reads].shape[1], "d_sae": task.width, "k": task.k, "metadata": metadata}
    torch.manual_seed(options.seed)
    if task.reads == task.writes:
        return TopKTrainingSAE(TopKTrainingSAEConfig(**usual))
    metadata.hook_name_out = str(task.writes)
    return TrainingTranscoder(TrainingTranscoderConfig(**usual))


def train(store: Store, task: Task, out: Path, options: "Options") -> None:
    """One dictionary with sae_lens's SAETrainer, from its newest checkpoint if there is one."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    checkpoints = store.folder / f"checkpoints-{task.name}"
    numbers = ("bias", "samples", "batch", "lr", "autocast", "max_norm", "seed")
    made_with(checkpoints, {"width": task.width, "k": task.k} | {name: getattr(options, name) for name in numbers})
    rows = store.usual([task.reads, task.writes], options.max_norm)
    console.print(f"{task.name}: {len(rows)} of {store.tokens.size} tokens have a usual norm")
    if len(rows) < options.batch:
        raise typer.BadParameter(f"{options.batch}, but {task.name} has {len(rows)} tokens; give fewer, or more text", param_hint="--batch")
    sample = np.random.default_rng(options.seed).permutation(rows)[:SAMPLE]
    # each site comes with a mean norm of √d, so that one learning rate does for all; folded into the weights at the end
    scales = {site: _scale(store.rows(site, sample)) for site in (task.reads, task.writes)}
    sae = untrained(task, store, options)
    sae.b_dec.data = initial_bias(options.bias, store.rows(task.writes, sample) * scales[task.writes])
    config = SAETrainerConfig(
        total_training_samples=options.samples, train_batch_size_samples=options.batch, lr=options.lr, lr_end=options.lr / 10,
        lr_warm_up_steps=min(100, options.samples // options.batch // 4), lr_decay_steps=options.samples // options.batch // 5,
        dead_feature_window=200, n_checkpoints=4, checkpoint_path=str(checkpoints), autocast=options.autocast,
    )  # fmt: skip
    trainer = SAETrainer(config, sae, iter(()))
    if (last := newest(checkpoints)) is not None:
        console.print(f"{task.name}: going on from {last.name} samples")
        sae.load_state_dict(load_file(last / "sae_weights.safetensors"))
        trainer.load_trainer_state(last)
        trainer.n_training_steps = trainer.n_training_samples // options.batch  # it is saved before the last step is counted
        trainer.checkpoint_thresholds = [t for t in trainer.checkpoint_thresholds if t > trainer.n_training_samples]
    trainer.data_provider = store.batches(scales, rows, options.batch, options.seed, skip=trainer.n_training_steps)
    trainer.fit()
    if task.reads == task.writes:
        sae.fold_activation_norm_scaling_factor(scales[task.reads])
    else:
        sae.fold_scales(scales[task.reads], scales[task.writes])
    save(sae, out / task.name)


def _scale(rows: torch.Tensor) -> float:
    return float(rows.shape[1] ** 0.5 / rows.norm(dim=1).mean())


def save(sae: Any, folder: Path) -> None:
    """Inference weights in sae-lens's folder format, float16; the folder appears complete or not at all."""
    temporary = folder.with_name(f".{folder.name}")
    sae.save_inference_model(temporary)
    weights = {name: value.half() for name, value in load_file(temporary / "sae_weights.safetensors").items()}
    save_file(weights, temporary / "sae_weights.safetensors")
    config = json.loads((temporary / "cfg.json").read_text())
    config["dtype"] = "float16"
    (temporary / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, folder)


# ----------------------------------------------------------------------------------------- command


class Options(SimpleNamespace):
    """The numbers of a run, as the card repeats them. `width` and `k` are by layer."""


def by_layer(numbers: list[int], layers: list[int], option: str) -> dict[int, int]:
    """The number of each layer, where one was given for all of them or one for each."""
    if len(numbers) not in (1, len(layers)):
        raise typer.BadParameter(f"{len(numbers)} numbers for {len(layers)} layers; give one, or one for each", param_hint=option)
    return dict(zip(layers, numbers * len(layers), strict=False))


def check_trained(out: Path, tasks: list[Task]) -> None:
    """Refuses a dictionary that is there with another width or k than is asked for: the card would say what it is not."""
    for task in tasks:
        if not (out / task.name).exists():
            continue
        config = json.loads((out / task.name / "cfg.json").read_text())
        found = config["d_sae"], config.get("k", task.k)  # a JumpReLU no longer has the k that it was trained with
        if found != (task.width, task.k):
            raise typer.BadParameter(
                f"{out / task.name} has {found[0]} latents and k {found[1]}, and {task.width} and {task.k} are asked for; "
                "delete the folder to train it again, or give another --out",
                param_hint="--width, --k",
            )


def main(
    text: Annotated[list[Path], typer.Option(help="Text files, or folders of .txt files")],
    out: Annotated[Path, typer.Option(help="Folder for the trained dictionaries")],
    work: Annotated[Path, typer.Option(help="Folder for activations and checkpoints (about 1.2 kB a token and site)")] = Path("work"),
    kind: Annotated[Kind, typer.Option(help="SAEs, or transcoders from mlp_in to mlp_out")] = Kind.SAE,
    layer: Annotated[list[int], typer.Option(help="Train at this layer; may be repeated")] = [6, 9, 18, 27],  # noqa: B006
    place: Annotated[str, typer.Option(help="Where in the layer an SAE reads: resid_pre, mlp_out, attn_out, ...")] = "resid_pre",
    tokens: Annotated[int, typer.Option(help="Tokens in all, shared evenly among the files")] = 630_000,
    context: Annotated[int, typer.Option(help="Tokens in a context")] = 64,
    width: Annotated[list[int], typer.Option(help="Latents of a dictionary (d_sae): once for all layers, or once for each")] = [2304],  # noqa: B006
    k: Annotated[list[int], typer.Option(help="Active latents of a token: once for all layers, or once for each")] = [32, 32, 64, 64],  # noqa: B006
    bias: Annotated[Bias, typer.Option(help="Where b_dec begins, on what the dictionary is to write")] = Bias.ZEROS,
    samples: Annotated[int, typer.Option(help="Training samples of each dictionary")] = 2_000_000,
    batch: int = 2048,
    lr: float = 1e-3,
    autocast: Annotated[bool, typer.Option(help="Products in bfloat16: half the time where the processor has them")] = False,
    max_norm: Annotated[float, typer.Option(help="Leave out tokens whose norm is over so many medians")] = 10.0,
    measured: Annotated[int, typer.Option(help="Held-out tokens to measure on, spread over all sources")] = 12_000,
    seed: int = 0,
) -> None:
    """Train, save and measure one dictionary for each layer."""
    widths, ks = by_layer(width, layer, "--width"), by_layer(k, layer, "--k")
    if kind is Kind.TRANSCODER and place != "resid_pre":
        raise typer.BadParameter(f"{place} for a transcoder, which reads mlp_in; leave it out", param_hint="--place")
    options = Options(
        kind=kind, layers=layer, place=place if kind is Kind.SAE else "mlp_in", tokens=tokens, context=context, width=widths, k=ks,
        bias=bias, samples=samples, batch=batch, lr=lr, autocast=autocast, max_norm=max_norm, measured=measured, seed=seed,
    )  # fmt: skip
    reads, writes = ("mlp_in", "mlp_out") if kind is Kind.TRANSCODER else (place, place)
    tasks = [Task(Site(number, reads), Site(number, writes), widths[number], ks[number]) for number in layer]  # type: ignore[arg-type]
    check_trained(out, tasks)
    read_card(out, kind)  # before hours of training, and not after them
    model = attrib.load_model(attrib.SMOLLM2)
    by_source = contexts(model, text, context, tokens)
    training, held_out = split(by_source)
    if not held_out.size:
        raise typer.BadParameter(f"{tokens}: too few for any to be held out; give more, or shorter contexts", param_hint="--tokens")
    training = np.random.default_rng(seed).permutation(training)
    held_out = held_out[:: max(1, held_out.size // measured)]
    store = Store(work, [site for task in tasks for site in (task.reads, task.writes)], training, model.config.d_model)
    store.fill(model.to(dtype=torch.bfloat16))
    out.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        if not (out / task.name).exists():
            train(store, task, out, options)
    results = {}
    for task in tasks:
        dictionary = attrib.load_dictionary(out / task.name)
        usual = store.usual([task.reads, task.writes], max_norm)
        results[task.name] = measure(model, dictionary, held_out, max_norm) | {"density": density(store, dictionary, usual)}
    sources = {name: ids.size for name, ids in by_source.items()}
    write_card(out, kind, {"options": vars(options), "tokens_by_source": sources, "training_tokens": training.size}, results)
    plot(work / "density.html", results)
    console.print_json(data=results)


if __name__ == "__main__":
    typer.run(main)
