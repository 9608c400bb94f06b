"""The one graph that a command is about, of a file or a folder of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attrib.core.types import InputError

if TYPE_CHECKING:
    from attrib.graph import Graph, LazyGraph

File = Annotated[Path, typer.Argument(help="File of graphs that attrib wrote, or a folder of them, such as a job's")]
NUMBER = "A prompt's number in its data set; where a file says none, its place from 0. Negative from the end. Usually the first"
Number = Annotated[int | None, typer.Option("--prompt", "--graph", help=NUMBER)]


@contextmanager
def opened(file: Path, prompt: int | None) -> Iterator[tuple[int, "LazyGraph"]]:
    """The graph of a prompt, by its number, with the number; of the first where none is named. Its rows are read inside the `with`.

    Raises:
        InputError: there is none of this number, or no graph yet.
        FormatError: what is read is damaged.
    """
    import attrib

    with attrib.open_graphs(file) as graphs:
        if not len(graphs):
            raise InputError(f"file: {file} has no graphs yet; `attrib job run` makes them.")
        at = 0 if prompt is None else prompt
        number = int(graphs.numbers[at]) if prompt is None or -len(graphs) <= at < 0 else at
        yield number, graphs.lazy(number)


def read(file: Path, prompt: int | None) -> "Graph":
    """The same with all its edges."""
    with opened(file, prompt) as (_, graph):
        return graph.whole()
