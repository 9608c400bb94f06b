"""Edges as Parquet: one table for each block, a row for each edge."""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.edges import Edges, Nodes
from attrib.core.slices import part_of
from attrib.core.types import Site
from attrib.export.folder import whole_folder
from attrib.export.stored import Stored, collected, file_name, fitting, import_needed, manifest, pieces, plain, types_of
from attrib.store.select import Selection

ROWS = 1 << 18
"""Rows of a group: what a reader holds at least, and the writer at most."""


def to_parquet(
    stored: Stored,
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    source: str | Site | None = None,
    target: str | Site | None = None,
    prompts: Selection = None,
    overwrite: bool = False,
) -> Path:
    """Write blocks with this kind and these sites (None: any) to a folder of Parquet files, and return it.

    Rows stand shard by shard, and in a shard as its edges do; `prompt` is the number in the data set. Memory: a few row
    groups, or the largest prompt, whatever the size of what is exported.

    Raises:
        InputError: pyarrow is missing, no block fits, a prompt is not there, or the path cannot be used.
        FormatError: what is read is damaged.
    """
    arrow, parquet = import_needed("pyarrow"), import_needed("pyarrow.parquet")
    with collected(stored) as collection:
        blocks = fitting(collection, kind, source, target)
        with whole_folder(path, manifest(collection, blocks, "parquet"), overwrite) as folder:
            for block in blocks:
                parts = pieces(collection, block, prompts)
                first = next(parts)
                schema = _schema(arrow, first)
                with parquet.ParquetWriter(folder / f"{file_name(block)}.parquet", schema, compression="zstd") as writer:
                    for part in chain([first], parts):
                        for table in _tables(arrow, schema, part):
                            writer.write_table(table)
    return Path(path)


def _schema(arrow: Any, edges: Edges) -> Any:
    """The columns, of every block the same but for the types of their values."""
    values, *activations = (getattr(arrow, dtype)() for dtype in types_of(edges))
    text = arrow.dictionary(arrow.int32(), arrow.string())
    fields = [("prompt", arrow.int64())]
    for end, activation in zip(("source", "target"), activations, strict=True):
        fields += [(f"{end}_position", arrow.int64()), (f"{end}_token", text), (f"{end}_latent", arrow.int64())]
        fields += [(f"{end}_label", text), (f"{end}_activation", activation)]
    fields += [(name, values) for name in ("target_total", "target_l1", "gradient", "attribution")]
    fields += [] if edges.sources.change is None else [("source_change", activations[0])]
    fields += [] if edges.gap is None else [("target_gap", values)]
    return arrow.schema(fields, metadata={"attrib": json.dumps(edges.call)})


def _tables(arrow: Any, schema: Any, edges: Edges) -> Iterator[Any]:
    """The edges in tables of at most `ROWS` rows."""
    tokens = _Texts(arrow, edges.prompts.strings)
    ends = {"source": edges.sources, "target": edges.targets}
    labels = {end: _Texts(arrow, nodes.labels) for end, nodes in ends.items()}
    prompt_of = {end: nodes.prompt for end, nodes in ends.items()}
    for start in range(0, len(edges), ROWS):
        entries = slice(start, min(start + ROWS, len(edges)))
        row = part_of(edges.indptr, torch.arange(entries.start, entries.stop))
        columns: dict[str, Any] = {"prompt": edges.prompts.numbers[prompt_of["target"][row]].numpy()}
        for end, at in (("source", edges.indices[entries]), ("target", row)):
            nodes: Nodes = ends[end]
            position = nodes.position[at]
            columns[f"{end}_position"] = position.numpy()
            columns[f"{end}_token"] = tokens.take(edges.prompts.ptr[prompt_of[end][at]] + position)
            columns[f"{end}_latent"] = nodes.latent[at].numpy()
            columns[f"{end}_label"] = labels[end].take(at)
            columns[f"{end}_activation"] = nodes.activation[at].numpy()
        columns |= {"target_total": edges.total[row].numpy(), "target_l1": edges.l1[row].numpy()}
        columns |= {name: getattr(edges, name)[entries].numpy() for name in ("gradient", "attribution")}
        columns |= {} if edges.sources.change is None else {"source_change": edges.sources.change[edges.indices[entries]].numpy()}
        columns |= {} if edges.gap is None else {"target_gap": edges.gap[row].numpy()}
        yield arrow.table([columns[name] for name in schema.names], schema=schema)


class _Texts:
    """Strings of which each is written once, however many edges have it."""

    def __init__(self, arrow: Any, strings: Sequence[str]) -> None:
        different = {string: code for code, string in enumerate(dict.fromkeys(strings))}
        self.arrow, self.codes = arrow, np.array([different[string] for string in strings], np.int32)
        self.dictionary = arrow.array([plain(string) for string in different], arrow.string())

    def take(self, at: Int[Tensor, " n"]) -> Any:
        """The strings at these places, as an Arrow column; nulls where there are no strings at all."""
        codes = self.arrow.array(self.codes[at.numpy()]) if len(self.codes) else self.arrow.nulls(len(at), self.arrow.int32())
        return self.arrow.DictionaryArray.from_arrays(codes, self.dictionary)
