"""Activations on disk: one pass of a model over contexts writes the values of all sites, and training reads them in any order."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_model, takes
from attrib.core.fingerprints import sha256_of
from attrib.core.room import memory_named
from attrib.core.types import InputError, Site
from attrib.models.tokens import to_batch
from attrib.models.transformer import Model, check_site, width
from attrib.passes.capture import capture
from attrib.training.folders import check_made_with, read_json_file, write_json

Rows = Any
"""Numbers of rows: a 1-D array of ints."""
StoredAs = Literal["float16", "float32"]
LARGEST = 60_000.0
"""Float16 ends at 65 504: a larger value is stored as this, and a row with such a norm is not trained on."""
AT_ONCE = 4096
"""Tokens that go through the model together."""
MARKER = "captured.json"


@dataclass(frozen=True)
class ActivationStore:
    """Values of some sites at every token of some contexts, in files of a folder. Row r is token r of all contexts in a row."""

    folder: Path
    model_name: str
    contexts: Int[Tensor, "contexts context"]
    arrays: Mapping[Site, Any]
    """[rows, d] each, mapped from its file."""
    norms: Mapping[Site, Any]
    """The norm of each row in float32."""
    stored_as: StoredAs
    prepend_bos: bool
    dataset: str | None
    """What the metadata of dictionaries call the texts."""
    digest: str
    """Of what the values follow from: the model's weights and the contexts."""

    @property
    def done(self) -> int:
        """Contexts whose values are on disk."""
        return int(read_json_file(self.folder / MARKER)["contexts"])

    @property
    def is_whole(self) -> bool:
        """Whether all are."""
        return self.done == len(self.contexts)

    def usual(self, sites: Iterable[Site], max_norm: float | None = None) -> Rows:
        """Rows whose norm is under `max_norm` medians at every one of `sites`: attention sinks, mostly first tokens, are left out.

        Of a float16 store rows are left out in any case whose norm is 60 000 or more.
        """
        limits = {site: np.inf if max_norm is None else max_norm * float(np.median(self.norms[site])) for site in dict.fromkeys(sites)}
        top = LARGEST if self.stored_as == "float16" else np.inf
        return np.flatnonzero(reduce(np.logical_and, (self.norms[site] < min(limit, top) for site, limit in limits.items())))

    def rows(self, site: Site, rows: Rows) -> Float[Tensor, "rows d"]:
        """Values of chosen rows in float32."""
        return torch.from_numpy(self.arrays[site][rows].astype(np.float32))

    def batch(self, scales: Mapping[Site, float], rows: Rows) -> Float[Tensor, "rows width"]:
        """Values of chosen rows at the sites of `scales` side by side, each scaled."""
        return torch.cat([self.rows(site, rows) * scale for site, scale in scales.items()], dim=1)

    def batches(self, scales: Mapping[Site, float], rows: Rows, size: int, seed: int, *, skip: int = 0) -> Iterator[Tensor]:
        """Batches [size, width] for ever, each time in another order of all rows; what is left over at the end of an order is left out.

        Args:
            skip: batches that are passed over without being read, to go on where training was stopped.
        """
        rng = np.random.default_rng(seed)
        of_order = len(rows) // size
        while True:
            order = rng.permutation(rows)
            for number in range(of_order):
                if skip:
                    skip -= 1
                    continue
                yield self.batch(scales, order[number * size : (number + 1) * size])


@memory_named("storing activations")
@takes(model=as_model)
def store_activations(
    model: Model,
    contexts: Int[Tensor, "contexts context"],
    sites: Site | str | Iterable[Site | str],
    folder: str | Path,
    *,
    stored_as: StoredAs = "float16",
    prepend_bos: bool = False,
    dataset: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ActivationStore:
    """Write what the model has at `sites` over all contexts into `folder`, in one pass for all sites.

    A process that is killed leaves whole batches behind: the same call goes on after them.

    Args:
        contexts: token ids, as `pack` gives them. Shuffle them first where only a part may be read.
        stored_as: float16 or float32.
        prepend_bos: whether each context begins with the token that begins a text; metadata of dictionaries say so.
        dataset: what metadata of dictionaries call the texts.
        progress: called with (contexts done, contexts in all).

    Raises:
        InputError: for what are no contexts or no sites of the model; where the folder was made with something else, or the disk has
            no room; and where a value is not finite.
    """
    if stored_as not in ("float16", "float32"):
        raise InputError(f"stored_as: {stored_as!r}; expected float16 or float32.")
    named = [sites] if isinstance(sites, Site | str) else sites
    wanted = sorted({check_site(model, site, "sites") for site in named}, key=lambda site: (site.depth, str(site)))
    if not wanted:
        raise InputError("sites: none; expected at least one.")
    contexts = to_batch(model, contexts).cpu()
    if contexts.ndim != 2 or not contexts.numel():
        raise InputError(f"contexts: shape {list(contexts.shape)}; expected token ids [contexts, tokens of a context].")
    if contexts.shape[1] > model.config.n_ctx:
        raise InputError(f"contexts: {contexts.shape[1]} tokens, more than the {model.config.n_ctx} of {model.name}.")
    store = _opened(model, contexts, wanted, Path(folder), stored_as, prepend_bos, dataset)
    _fill(store, model, progress)
    return store


def _opened(
    model: Model, contexts: Tensor, sites: Sequence[Site], folder: Path, stored_as: StoredAs, prepend_bos: bool, dataset: str | None
) -> ActivationStore:
    digest = sha256_of(contexts, model.fingerprint, str(model.dtype))
    facts = {
        "model": model.name, "sites": list(map(str, sites)), "contexts": list(contexts.shape), "digest": digest,
        "stored_as": stored_as, "prepend_bos": prepend_bos, "dataset": dataset,
    }  # fmt: skip
    shapes = {site: (contexts.numel(), width(model.config, site)) for site in sites}
    marker, names = folder / MARKER, {site: folder / f"{site}.npy" for site in sites}
    if not marker.exists():
        _check_room(folder, sum(rows * (d * np.dtype(stored_as).itemsize + 4) for rows, d in shapes.values()))
    check_made_with(folder, facts, "work")
    mode: Literal["r+", "w+"] = "r+" if marker.exists() else "w+"

    def mapped(file: Path, shape: tuple[int, ...], dtype: str) -> Any:
        found = np.lib.format.open_memmap(file, mode=mode, dtype=np.dtype(dtype), shape=shape if mode == "w+" else None)
        if found.shape != shape or found.dtype != np.dtype(dtype):
            raise InputError(f"work: {file} holds {found.dtype}{list(found.shape)}; expected {dtype}{list(shape)}. Delete the folder.")
        return found

    try:
        arrays = {site: mapped(file, shapes[site], stored_as) for site, file in names.items()}
        norms = {site: mapped(file.with_suffix(".norms.npy"), shapes[site][:1], "float32") for site, file in names.items()}
    except (OSError, ValueError) as error:
        raise InputError(f"work: {folder} cannot be used: {error}. Delete it, or give another folder.") from None
    if mode == "w+":
        write_json(marker, {"contexts": 0})
    return ActivationStore(folder, model.name, contexts, arrays, norms, stored_as, prepend_bos, dataset, digest)


def _check_room(folder: Path, needed: int) -> None:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if (free := shutil.disk_usage(there).free) < needed:
        raise InputError(
            f"work: the activations take {needed / 1e9:.1f} GB, and the disk of {folder} has {free / 1e9:.1f} GB left; take fewer tokens "
            "or sites, or another folder."
        )


def _fill(store: ActivationStore, model: Model, progress: Callable[[int, int], None] | None) -> None:
    """Run the model over the contexts that are not done yet."""
    count, length = store.contexts.shape
    at_once = max(1, AT_ONCE // length)
    for first in range(store.done, count, at_once):
        ids = store.contexts[first : first + at_once]
        with torch.inference_mode():
            values = capture(model, ids, list(store.arrays))
        rows = slice(first * length, (first + len(ids)) * length)
        for site, value in values.items():
            flat = value.flatten(0, 1).float().cpu()
            if not flat.isfinite().all():
                raise InputError(f"texts: {store.model_name} has values that are not finite at {site}; compute in another dtype.")
            store.norms[site][rows] = flat.norm(dim=1).numpy()
            store.arrays[site][rows] = (flat.clamp(-LARGEST, LARGEST) if store.stored_as == "float16" else flat).numpy()
        for array in (*store.arrays.values(), *store.norms.values()):
            array.flush()
        write_json(store.folder / MARKER, {"contexts": first + len(ids)})
        if progress is not None:
            progress(first + len(ids), count)
