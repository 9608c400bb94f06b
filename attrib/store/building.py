"""Attribution graphs straight into a file: of graphs that memory cannot hold, or need not."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

from attrib.adapters.given import as_bytes, as_model, takes
from attrib.attribution.options import with_options
from attrib.graph.building import stream
from attrib.graph.given import as_given
from attrib.graph.latents import Given
from attrib.graph.options import GraphAsked, GraphOptions
from attrib.models.tokens import TokensLike
from attrib.models.transformer import Model
from attrib.store.columns import filters_of
from attrib.store.graphs import save_graphs
from attrib.store.writing import check_output


@takes(model=as_model, dictionaries=as_given, budget=as_bytes)
@partial(with_options, asked=GraphAsked)
def build_graphs(
    path: str | os.PathLike[str],
    model: Model,
    dictionaries: Given | Sequence[Given],
    tokens: TokensLike,
    *,
    compression: str | None = None,
    overwrite: bool = False,
    **options: Unpack[GraphOptions],
) -> Path:
    """Build the attribution graph of each prompt into a file, with edges that are never in memory (public as `attrib.build_graphs`).

    The file is, byte by byte, the one that `attrib.save(path, attrib.graph.build(...))` writes, and `attrib.open_graphs(path).lazy(0)`
    reads a graph of it row by row. Edges are written down as they are found, beside the file, in one without a name, and copied from there
    in order: while it is built, a graph takes twice its bytes of the disk. Memory holds the working memory that `budget` bounds, the
    nodes, and what rows say without their edges. With `max_nodes` it holds whole graphs, one at a time: rows are chosen by whole rows.

    Args:
        path: the file to write. It appears whole, or not at all: nothing is left by what fails or is interrupted.
        model, dictionaries, tokens, options: as of `attrib.graph.build`.
        compression, overwrite: as of `attrib.save`.

    Raises:
        InputError: as `attrib.graph.build` and `attrib.save`.
        BudgetError: where a prompt does not fit into the budget, or the edges on the disk: before they are computed where the rule says how
            many there are, else as soon as the disk would not hold them.
        NotFiniteError: where a value is NaN or infinite.
    """
    path = Path(path)
    filters_of(compression)
    check_output("path", path, None, overwrite=overwrite)
    graphs = stream(model, dictionaries, tokens, path.parent, 2 if compression is None else 1, options)
    return save_graphs(path, graphs, compression=compression, overwrite=overwrite)
