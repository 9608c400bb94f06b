"""Edges and graphs of a file, held against interventions: which prompts, which blocks, and where their parts lie."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attrib.causal.agreement import Agreement
from attrib.causal.verifying import STEPS, verify
from attrib.core.types import InputError, Progress
from attrib.store import open_collection
from attrib.store.graph_collection import open_graph_collection
from attrib.store.listing import holds_graphs
from attrib.store.numbers import told


def verify_stored(
    path: str | Path,
    *,
    prompts: int | Sequence[int] = 4,
    kinds: Sequence[str] = (),
    n: int | None = None,
    n_edges: int | None = None,
    steps: Any = STEPS,
    seed: int = 0,
    target: Any = None,
    dtype: str = "float64",
    places: Mapping[str, str | Path] | None = None,
    progress: Progress | None = None,
) -> Agreement:
    """`verify` of what a file holds, by the model and the dictionaries that it names.

    Args:
        path: a file of edges or graphs, or a folder of them.
        prompts: their numbers in the data set; or how many are drawn, by the seed.
        kinds: blocks of these kinds alone; none means all.

    The other arguments and the errors are those of `verify`; InputError too for a prompt or a kind that is not there.
    """
    options: dict[str, Any] = {"n": n, "n_edges": n_edges, "steps": steps, "seed": seed, "target": target, "dtype": dtype}
    options |= {"places": places, "progress": progress}
    if holds_graphs(Path(path)):
        if kinds:
            raise InputError(f"kind: {kinds[0]!r} has no effect on graphs, which have no blocks; leave it out.")
        with open_graph_collection(path) as graphs:
            numbers = _chosen(prompts, graphs.numbers.tolist(), path, seed)
            found = verify([graphs[number] for number in numbers], **options)
        return replace(found, table=found.table.assign(prompt=[numbers[place] for place in found.table.prompt]))
    with open_collection(path) as collection:
        numbers = _chosen(prompts, collection.numbers.tolist(), path, seed)
        there = list(dict.fromkeys(block.kind for block in collection.blocks))
        if absent := [kind for kind in kinds if kind not in there]:
            raise InputError(f"kind: no block of {absent[0]} in {path}, which has {', '.join(there)}.")
        blocks = [block for block in collection.blocks if block.kind in (kinds or there)]
        return verify([collection.edges(*block, prompts=numbers) for block in blocks], **options)


def _chosen(prompts: int | Sequence[int], there: list[int], path: str | Path, seed: int) -> list[int]:
    if isinstance(prompts, int):
        if isinstance(prompts, bool) or prompts < 1:
            raise InputError(f"prompts: {prompts!r}; expected how many, at least 1, or their numbers.")
        drawn = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))[:prompts]
        return sorted(there[place] for place in drawn.tolist())
    if not prompts:
        raise InputError("prompts: none; expected some, or how many.")
    if absent := sorted({*prompts} - {*there}):
        raise InputError(f"prompt: {absent[0]} is not in {path}, which has {len(there)} prompts ({told(there)}).")
    return sorted({*prompts})
