"""A latent's relatives: whose writing it reads most, and who reads most of what it writes, by virtual weights (weights.py)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from attrib.adapters.given import as_bytes, as_dictionaries, as_dictionary, as_model, takes
from attrib.core.types import Dense, InputError, TopK
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph.stream import LatentsLike, chosen_latents
from attrib.graph.weights import VirtualWeights, global_weights, virtual_weights
from attrib.models.transformer import Model

if TYPE_CHECKING:
    import pandas as pd

ENTRY = 64
"""Bytes of a weight while all of some latents are held: itself, its place, and what ranks it."""
COLUMNS = {"latent": np.int64, "side": object, "dictionary": object, "relative": np.int64, "weight": np.float32, "attribution": np.float32}
"""Of a frame of relatives; weights are wider where the model's numbers are."""


@takes(model=as_model, dictionary=as_dictionary, others=as_dictionaries, budget=as_bytes)
def relatives(
    model: Model,
    dictionary: Dictionary,
    latents: LatentsLike,
    others: Sequence[Dictionary],
    *,
    k: int = 10,
    expected: Any = None,
    budget: int = DEFAULT_BUDGET,
) -> "pd.DataFrame":
    """The parents and children of latents among those of other dictionaries: the k of largest virtual weights from each, and to each.

    What reads attention's output or its heads' values is reached through all heads of its own layer, all else straight through the stream.

    Args:
        latents: which of the dictionary's: numbers, a slice, or a mask; None is all.
        others: earlier ones have parents, later ones children. One of the same layer may be either, by what is read and written where.
        k: how many of each other dictionary.
        expected: by another dictionary's name, [its d_sae], what its latents are over a corpus: parents are ranked by weight times that,
            which leaves out those that are never active (`global_weights`).
        budget: bytes of working memory.

    Returns:
        A frame with latent, side ("parent" or "child"), dictionary, relative, weight, and attribution, which is weight × expected,
        NaN where nothing is expected; each latent's strongest of a dictionary first.

    Raises:
        InputError: for dictionaries of another model, the dictionary itself among the others, and one that neither writes what it reads nor
            reads what it writes; names both places.
        BudgetError: where the budget is too small for one latent.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k: {k!r}; expected a whole number, at least 1.")
    chosen = chosen_latents(latents, dictionary.d_sae, "latents")
    means = expected or {}
    return joined([_of(model, dictionary, chosen, other, k, means.get(other.name), budget) for other in others])


def joined(frames: Sequence["pd.DataFrame"]) -> "pd.DataFrame":
    """Frames of relatives, one behind the other."""
    import pandas as pd

    return pd.DataFrame({name: np.concatenate([np.empty(0, kind), *(frame[name] for frame in frames)]) for name, kind in COLUMNS.items()})


class Pair(NamedTuple):
    """How two dictionaries follow each other."""

    source: Dictionary
    target: Dictionary

    @property
    def attention(self) -> int | None:
        """The layer whose heads are passed; None is straight through the stream."""
        return self.target.site.layer if self.target.site.kind in ("z", "attn_out") else None

    def fault(self, model: Model) -> InputError | None:
        """Why the target does not read what the source writes."""
        try:
            virtual_weights(model, self.source, self.target, attention=self.attention, sources=[0], targets=[0])
        except InputError as error:
            return error
        return None


def _of(model: Model, own: Dictionary, chosen: torch.Tensor, other: Dictionary, k: int, expected: Any, budget: int) -> "pd.DataFrame":
    if other is own or other.fingerprint == own.fingerprint:
        raise InputError(f"others: {other.name} is the dictionary itself; expected earlier or later ones.")
    before, behind = Pair(other, own), Pair(own, other)
    faults = before.fault(model), behind.fault(model)
    if faults[0] is not None and faults[1] is not None:
        raise InputError(f"others: {other.name} has neither parents nor children. {faults[0]} {faults[1]}") from faults[1]
    parts = []
    if faults[0] is None:
        found = _parents(model, before, chosen, k, expected, budget).to_pandas().rename(
            columns={"target_latent": "latent", "source_latent": "relative"}
        )  # fmt: skip
        if expected is None:
            found["attribution"] = np.nan
        by = found["weight" if expected is None else "attribution"].abs()
        place = found["latent"].map({latent: at for at, latent in enumerate(chosen.tolist())})
        found = found.assign(size=by, place=place).sort_values(["place", "size", "relative"], ascending=[True, False, True])
        parts.append(found.drop(columns=["size", "place"]).assign(side="parent"))
    if faults[1] is None:
        parts.append(_children(model, behind, chosen, k, budget).assign(side="child", attribution=np.nan))
    return joined([part.assign(dictionary=other.name) for part in parts])


def _parents(model: Model, pair: Pair, chosen: torch.Tensor, k: int, expected: Any, budget: int) -> VirtualWeights:
    options: Any = {"attention": pair.attention, "targets": chosen, "keep": TopK(k), "budget": budget}
    if expected is None:
        return virtual_weights(model, pair.source, pair.target, **options)
    return global_weights(model, pair.source, pair.target, expected, **options)


def _children(model: Model, pair: Pair, chosen: torch.Tensor, k: int, budget: int) -> "pd.DataFrame":
    """What is kept of weights is kept by target, and these are ranked by source: so all of some sources are made at a time."""
    import pandas as pd

    k, parts = min(k, pair.target.d_sae), []
    for some in chosen.split(max(1, budget // (ENTRY * pair.target.d_sae))):
        weight = virtual_weights(
            model, pair.source, pair.target, attention=pair.attention, sources=some, keep=Dense(), budget=budget
        ).dense().T  # fmt: skip
        order = weight.abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
        columns = {"latent": some.repeat_interleave(k), "relative": order.flatten(), "weight": weight.gather(1, order).flatten()}
        parts.append(pd.DataFrame({name: column.numpy() for name, column in columns.items()}))
    return pd.concat(parts, ignore_index=True)
