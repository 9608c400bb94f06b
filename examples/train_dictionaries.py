"""Train residual-stream SAEs for SmolLM2 with sae-lens's own trainer, from any text files.

    python examples/train_dictionaries.py --text text/ --out attrib/dictionaries/smollm2-135m

One pass of the text through the model writes the activations of all sites to `--work`; each site is
then trained from there by sae_lens's SAETrainer. Both stages save as they go: run the same command
again and it goes on where it stopped. At the end every dictionary is measured on text that it never
saw and a card (README.md, card.json) is written beside them.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import attrib
from attrib.capture import capture
from attrib.dictionary import Dictionary, encode, reconstruct
from attrib.model import Model, embed, unembed
from attrib.segment import segment
from attrib.types import Site

console = Console()

HELD_OUT_EVERY = 24  # one run of contexts in so many is kept for measuring
RUN = 16  # contexts that stay together, so that held-out text is not the next sentence of training text


# ------------------------------------------------------------------------------------------- text


def contexts(model: Model, paths: list[Path], length: int, limit: int) -> dict[str, np.ndarray]:
    """Token ids [contexts, length] of each text file, each file in proportion to `limit` tokens in all."""
    files = sorted(f for path in paths for f in ([path] if path.is_file() else path.glob("*.txt")))
    if not files:
        raise typer.BadParameter(f"no .txt file in {', '.join(map(str, paths))}", param_hint="--text")
    share = limit // len(files)
    assert model.tokenizer is not None
    found = {}
    for file in track(files, description="tokenising", console=console):
        text = file.read_text(errors="ignore")[: share * 6]  # no text here has more than 6 characters a token
        ids = np.array(model.tokenizer.encode(text)[:share], dtype=np.int32)
        found[file.stem] = ids[: len(ids) // length * length].reshape(-1, length)
    return found


def split(by_source: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out contexts: every so many runs of consecutive contexts are held out."""
    train, held = [], []
    for ids in by_source.values():
        out = (np.arange(len(ids)) // RUN) % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
        train.append(ids[~out])
        held.append(ids[out])
    return np.concatenate(train), np.concatenate(held)


# ------------------------------------------------------------------------------------ activations


class Store:
    """Activations of all sites on disk, float16, written in order and resumable."""

    def __init__(self, folder: Path, sites: list[Site], tokens: np.ndarray, d_model: int) -> None:
        self.folder, self.sites, self.tokens = folder, sites, tokens
        self.marker = folder / "captured.json"
        shape = (tokens.size, d_model)
        folder.mkdir(parents=True, exist_ok=True)
        mode = "r+" if self.marker.exists() else "w+"
        self.arrays = {
            s: np.lib.format.open_memmap(folder / f"{s}.npy", mode=mode, dtype=np.float16, shape=shape if mode == "w+" else None)
            for s in sites
        }
        if not self.marker.exists():
            self.mark(0)

    @property
    def done(self) -> int:
        """Contexts whose activations are on disk."""
        return json.loads(self.marker.read_text())["contexts"]

    def mark(self, contexts: int) -> None:
        """Record that so many contexts are on disk."""
        for array in self.arrays.values():
            array.flush()
        temporary = self.marker.with_suffix(".tmp")
        temporary.write_text(json.dumps({"contexts": contexts}))
        os.replace(temporary, self.marker)

    def fill(self, model: Model, batch: int = 64) -> None:
        """Run the model over the contexts not yet done."""
        length = self.tokens.shape[1]
        for first in track(range(self.done, len(self.tokens), batch), description="activations", console=console):
            ids = torch.from_numpy(self.tokens[first : first + batch].astype(np.int64))
            with torch.inference_mode():
                values = capture(model, ids, self.sites)
            rows = slice(first * length, (first + len(ids)) * length)
            for site, value in values.items():
                # the few huge norms are filtered anyway; clamping keeps them finite in float16
                self.arrays[site][rows] = value.flatten(0, 1).float().clamp(-6e4, 6e4).half().numpy()
            self.mark(first + len(ids))

    def usual(self, site: Site, ratio: float) -> np.ndarray:
        """Rows whose norm is under `ratio` medians: attention sinks, mostly first tokens, are left out."""
        norms = np.concatenate([np.linalg.norm(part.astype(np.float32), axis=1) for part in np.array_split(self.arrays[site], 64)])
        return np.flatnonzero(norms < ratio * np.median(norms))

    def batches(self, site: Site, rows: np.ndarray, size: int, seed: int, skip: int = 0) -> Iterator[torch.Tensor]:
        """Shuffled batches for ever; `skip` batches are passed over, for resuming."""
        rng, array = np.random.default_rng(seed), np.asarray(self.arrays[site])
        while True:
            order = rng.permutation(rows)
            for first in range(0, len(order) - size + 1, size):
                if skip > 0:
                    skip -= 1
                    continue
                yield torch.from_numpy(array[order[first : first + size]].astype(np.float32))


# --------------------------------------------------------------------------------------- training


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most samples."""
    found = [f for f in folder.glob("*") if f.name.isdigit() and (f / "trainer_state.pt").exists()]
    return max(found, key=lambda f: int(f.name), default=None)


def train(store: Store, site: Site, out: Path, options: "Options") -> None:
    """One TopK SAE with sae_lens's SAETrainer, from its newest checkpoint if there is one."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    checkpoints = store.folder / f"checkpoints-{site}"
    torch.manual_seed(options.seed)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=store.arrays[site].shape[1], d_sae=options.width, k=options.k[site.layer],
            normalize_activations="expected_average_only_in",
            metadata=SAEMetadata(model_name=attrib.SMOLLM2, hook_name=str(site), context_size=store.tokens.shape[1], prepend_bos=False),
        )
    )  # fmt: skip
    config = SAETrainerConfig(
        total_training_samples=options.samples, train_batch_size_samples=options.batch, lr=options.lr, lr_end=options.lr / 10,
        lr_warm_up_steps=100, lr_decay_steps=options.samples // options.batch // 5, dead_feature_window=200,
        n_batches_for_norm_estimate=20, n_checkpoints=4, checkpoint_path=str(checkpoints),
    )  # fmt: skip
    rows = store.usual(site, options.max_norm)
    console.print(f"{site}: {len(rows)} of {store.tokens.size} tokens have a usual norm")
    trainer = SAETrainer(config, sae, iter(()))
    if (last := newest(checkpoints)) is not None:
        console.print(f"{site}: going on from {last.name} samples")
        sae.load_state_dict(load_file(last / "sae_weights.safetensors"))
        trainer.load_trainer_state(last)
        trainer.checkpoint_thresholds = [t for t in trainer.checkpoint_thresholds if t > trainer.n_training_samples]
    trainer.data_provider = store.batches(site, rows, options.batch, options.seed, skip=trainer.n_training_steps)
    trainer.fit()
    save(sae, out / str(site))


def save(sae: object, folder: Path) -> None:
    """Inference weights in sae-lens's folder format, float16; the folder appears complete or not at all."""
    temporary = folder.with_name(f".{folder.name}")
    sae.save_inference_model(temporary)
    weights = {name: value.half() for name, value in load_file(temporary / "sae_weights.safetensors").items()}
    save_file(weights, temporary / "sae_weights.safetensors")
    config = json.loads((temporary / "cfg.json").read_text())
    config["dtype"] = "float16"
    (temporary / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, folder)


# ------------------------------------------------------------------------------------ measurement


def measure(model: Model, dictionary: Dictionary, tokens: np.ndarray, ratio: float, batch: int = 32) -> dict[str, float]:
    """Quality on held-out contexts.

    Explained variance, L0 and dead fraction are over tokens of usual norm, as in training; explained
    variance over all tokens is given too. Cross-entropies splice the reconstruction into every usual
    token of the model's stream and leave the others as they are; zero ablation zeroes the same tokens.
    """
    site, first, last = dictionary.site, Site(0, "resid_pre"), model.config.last
    lower, upper = segment(model, first, site), segment(model, site, last)
    values, fired = [], torch.zeros(dictionary.d_sae, dtype=torch.bool)
    losses = {"original": 0.0, "spliced": 0.0, "zero": 0.0}
    active, predicted = 0, 0
    with torch.inference_mode():
        sample = lower(embed(model, torch.from_numpy(tokens[:: max(1, len(tokens) // 64)].astype(np.int64))))
        bound = ratio * sample.norm(dim=-1).median()
        for start in track(range(0, len(tokens), batch), description=f"measuring {site}", console=console):
            ids = torch.from_numpy(tokens[start : start + batch].astype(np.int64))
            x = lower(embed(model, ids))
            usual = x.norm(dim=-1) < bound
            latents, recon = encode(dictionary, x), reconstruct(dictionary, x)
            fired |= (latents[usual] > 0).any(0)
            active += int((latents[usual] > 0).sum())
            values.append((x.flatten(0, 1), recon.flatten(0, 1), usual.flatten()))
            for name, stream in {"original": x, "spliced": recon, "zero": torch.zeros_like(x)}.items():
                logits = unembed(model, upper(torch.where(usual[..., None], stream, x)))[:, :-1]
                losses[name] += float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
            predicted += ids[:, 1:].numel()
    x, recon, usual = (torch.cat(parts) for parts in zip(*values, strict=True))

    def explained(rows: torch.Tensor) -> float:
        return float(1 - (x[rows] - recon[rows]).pow(2).sum() / (x[rows] - x[rows].mean(0)).pow(2).sum())

    nats = {f"cross_entropy_{name}": total / predicted for name, total in losses.items()}
    recovered = (nats["cross_entropy_zero"] - nats["cross_entropy_spliced"]) / (nats["cross_entropy_zero"] - nats["cross_entropy_original"])
    return {
        "explained_variance": explained(usual), "explained_variance_all_tokens": explained(torch.ones_like(usual)),
        "l0": active / int(usual.sum()), "dead_fraction": float((~fired).float().mean()), **nats,
        "loss_recovered": recovered, "held_out_tokens": tokens.size, "usual_fraction": float(usual.float().mean()),
    }  # fmt: skip


def card(out: Path, results: dict[str, dict[str, float]], sources: dict[str, int], trained_on: int, options: "Options") -> None:
    """README.md for people and card.json for programs."""
    (out / "card.json").write_text(
        json.dumps({"options": vars(options), "tokens_by_source": sources, "training_tokens": trained_on, "results": results}, indent=2)
        + "\n"
    )
    rows = "\n".join(
        f"| `{name}` | {r['explained_variance']:.3f} | {r['l0']:.1f} | {r['dead_fraction']:.3f} "
        + "".join(f"| {r[key]:.3f} " for key in ("cross_entropy_original", "cross_entropy_spliced", "cross_entropy_zero", "loss_recovered"))
        + "|"
        for name, r in results.items()
    )
    any_result = next(iter(results.values()))
    texts = ", ".join(f"{name} ({count:,} tokens)" for name, count in sources.items())
    (out / "README.md").write_text(
        f"""# Residual-stream SAEs for SmolLM2-135M

TopK with {options.width} latents (k is the L0 below), trained with sae-lens, stored in float16 in sae-lens's folder format.
Measured on {any_result["held_out_tokens"]:,} held-out tokens; cross-entropy in nats per token.

| site | explained variance | L0 | dead fraction | CE original | CE spliced | CE zero-ablated | loss recovered |
|---|---|---|---|---|---|---|---|
{rows}

Text: {texts}.
Contexts of {options.context} tokens without a beginning-of-sequence token; {trained_on:,} tokens for training, {options.samples:,}
samples a site. One run of {RUN} contexts in every {HELD_OUT_EVERY} is held out. Tokens whose norm is over {options.max_norm:g} medians
(attention sinks, mostly the first token) are left out of training, of explained variance, L0 and dead fraction,
and keep their true value where reconstructions are spliced in or zeroed.

To repeat:

    python examples/training_text.py debian --out text
    python examples/training_text.py generate --out text --root text/debian --tokens 200000
    python examples/train_dictionaries.py --text text --out dictionaries --work work
"""
    )


# ----------------------------------------------------------------------------------------- command


class Options:
    """The numbers of a run, as the card repeats them. `k` is by layer."""

    def __init__(self, **numbers: Any) -> None:
        self.__dict__.update(numbers)


def main(
    text: Annotated[list[Path], typer.Option(help="Text files, or folders of .txt files")],
    out: Annotated[Path, typer.Option(help="Folder for the trained dictionaries")],
    work: Annotated[Path, typer.Option(help="Folder for activations and checkpoints (about 1.2 kB a token and site)")] = Path("work"),
    layer: Annotated[list[int], typer.Option(help="Train at blocks.LAYER.hook_resid_pre; may be repeated")] = [6, 9, 18, 27],  # noqa: B006
    tokens: Annotated[int, typer.Option(help="Tokens in all, shared evenly among the files")] = 630_000,
    context: Annotated[int, typer.Option(help="Tokens in a context")] = 64,
    width: Annotated[int, typer.Option(help="Latents of a dictionary")] = 2304,
    k: Annotated[list[int], typer.Option(help="Active latents of a token: once for all layers, or once for each")] = [32, 32, 64, 64],  # noqa: B006
    samples: Annotated[int, typer.Option(help="Training samples of each site")] = 2_000_000,
    batch: int = 2048,
    lr: float = 1e-3,
    max_norm: Annotated[float, typer.Option(help="Leave out tokens whose norm is over so many medians")] = 10.0,
    measured: Annotated[int, typer.Option(help="Held-out tokens to measure on, spread over all sources")] = 12_000,
    seed: int = 0,
) -> None:
    """Train, save and measure one SAE for each site."""
    if len(k) not in (1, len(layer)):
        raise typer.BadParameter(f"{len(k)} numbers for {len(layer)} layers; give one, or one for each", param_hint="--k")
    options = Options(
        layers=layer,
        tokens=tokens,
        context=context,
        width=width,
        k=dict(zip(layer, k * len(layer), strict=False)),
        samples=samples,
        batch=batch,
        lr=lr,
        max_norm=max_norm,
        seed=seed,
    )
    model = attrib.load_model(attrib.SMOLLM2)
    sites = [Site(number, "resid_pre") for number in layer]
    by_source = contexts(model, text, context, tokens)
    training, held_out = split(by_source)
    training = np.random.default_rng(seed).permutation(training)
    held_out = held_out[:: max(1, held_out.size // measured)]
    store = Store(work, sites, training, model.config.d_model)
    store.fill(model.to(dtype=torch.bfloat16))
    out.mkdir(parents=True, exist_ok=True)
    for site in sites:
        if not (out / str(site)).exists():
            train(store, site, out, options)
    results = {str(site): measure(model, attrib.load_dictionary(out / str(site)), held_out, max_norm) for site in sites}
    card(out, results, {name: ids.size for name, ids in by_source.items()}, training.size, options)
    console.print_json(data=results)


if __name__ == "__main__":
    typer.run(main)
