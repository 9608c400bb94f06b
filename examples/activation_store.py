"""Text files to token contexts, and contexts to activations on disk: what dictionaries are trained from."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from attrib.core.types import Site
from attrib.models.transformer import Model
from attrib.passes.capture import capture

console = Console()

HELD_OUT_EVERY = 24  # one run of contexts in so many is kept for measuring
RUN = 16  # contexts that stay together, so that held-out text is not the next sentence of training text


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


def made_with(folder: Path, facts: dict[str, Any]) -> None:
    """Notes in a folder what its contents are made with, and refuses one that was made with something else: it would mix the two."""
    note = folder / "made-with.json"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(".tmp")
        temporary.write_text(json.dumps(facts, indent=2) + "\n")
        os.replace(temporary, note)
    elif (found := json.loads(note.read_text())) != facts:
        changed = ", ".join(f"{name} {found.get(name)}, now {facts[name]}" for name in facts if found.get(name) != facts[name])
        raise typer.BadParameter(f"{folder} was made with {changed}; delete it, or give another folder", param_hint="--work")


class Store:
    """Activations of all sites on disk, float16, written in order and resumable."""

    def __init__(self, folder: Path, sites: Sequence[Site], tokens: np.ndarray, d_model: int) -> None:
        self.folder, self.sites, self.tokens = folder, list(dict.fromkeys(sites)), tokens
        self.marker = folder / "captured.json"
        shape = (tokens.size, d_model)
        digest = hashlib.sha256(tokens.tobytes()).hexdigest()
        made_with(folder, {"sites": list(map(str, self.sites)), "context": tokens.shape[1], "tokens": digest})
        mode = "r+" if self.marker.exists() else "w+"
        self.arrays = {
            s: np.lib.format.open_memmap(folder / f"{s}.npy", mode=mode, dtype=np.float16, shape=shape if mode == "w+" else None)
            for s in self.sites
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

    def norms(self, site: Site) -> np.ndarray:
        """The norm of every row."""
        return np.concatenate([np.linalg.norm(part.astype(np.float32), axis=1) for part in np.array_split(self.arrays[site], 64)])

    def usual(self, sites: Sequence[Site], ratio: float) -> np.ndarray:
        """Rows whose norm is under `ratio` medians at every site: attention sinks, mostly first tokens, are left out."""
        norms = [self.norms(site) for site in dict.fromkeys(sites)]
        return np.flatnonzero(np.logical_and.reduce([n < ratio * np.median(n) for n in norms]))

    def rows(self, site: Site, rows: np.ndarray) -> torch.Tensor:
        """Chosen rows in float32."""
        return torch.from_numpy(np.asarray(self.arrays[site])[rows].astype(np.float32))

    def batches(self, scales: dict[Site, float], rows: np.ndarray, size: int, seed: int, skip: int = 0) -> Iterator[torch.Tensor]:
        """Shuffled batches for ever, the sites of `scales` side by side, each scaled; `skip` batches are passed over, for resuming."""
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(rows)
            for first in range(0, len(order) - size + 1, size):
                if skip > 0:
                    skip -= 1
                    continue
                chosen = order[first : first + size]
                yield torch.cat([self.rows(site, chosen) * scale for site, scale in scales.items()], dim=1)
