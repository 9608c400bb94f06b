"""Neuronpedia's graph JSON: attrib's own files, bit for bit, and those of circuit-tracer and others."""

import json
import os
from pathlib import Path
from typing import Any, get_args

from attrib.core.files import check_file
from attrib.core.room import free_memory
from attrib.core.types import FormatError, InputError
from attrib.graph.files.foreign import HOOKS, check_hooks
from attrib.graph.files.neuronpedia_document import REMEDY, Document
from attrib.graph.files.neuronpedia_foreign import Ambiguous, read_foreign
from attrib.graph.files.neuronpedia_own import OWN, read_own
from attrib.graph.graph import Graph

_TIMES = 32
"""Bytes that a byte of JSON may take in Python: a list of two characters takes 56 and its place in another list."""


def from_neuronpedia(path: str | os.PathLike[str], *, hooks: tuple[str, str] = HOOKS, ambiguous: Ambiguous = "refuse") -> Graph:
    """Read a graph of Neuronpedia's JSON: one that `to_neuronpedia` wrote as it was, or one of another program.

    Such a file tells less than attrib does: `value` and `own` of rows are NaN, and so is an activation that is not there; `total` and
    `l1` are sums of its links; a token of which no node is left has id -1. Metadata, cumulative influence, what is shown of latents, and
    the saved view are `graph.call["neuronpedia"]`, and written again by `to_neuronpedia`, under the ids that it gives.

    Args:
        path: the file.
        hooks: the hooks within a layer that dictionaries read and write, which another program's file does not say.
        ambiguous: what a link's source is that is called as an error and a latent are, where nothing tells which: "refuse" raises,
            "latent" and "error" take it for that.

    Raises:
        InputError: there is no such file, it is too large for the free memory, or an argument cannot be used.
        FormatError: it is damaged, or none of Neuronpedia's; names what is wrong.
    """
    path = Path(path)
    check_hooks(hooks)
    if ambiguous not in get_args(Ambiguous):
        raise InputError(f"ambiguous: {ambiguous!r}; expected one of {', '.join(map(repr, get_args(Ambiguous)))}.")
    document = Document(path, _read_json(path))
    if OWN in document.root:
        ids = [document.node(node)["node_id"] for node in document.nodes]
        links = [document.link(number) for number in range(len(document.links))]
        try:
            return read_own(document.root[OWN], ids, links)
        except (InputError, TypeError, ValueError, LookupError, OverflowError, RuntimeError) as error:
            raise FormatError(
                f"{path}: {OWN}: {error}. It says something else than the nodes and links; where another program has changed those, take "
                f"the key {OWN!r} out of the file, and it is read as that program's."
            ) from error
    try:
        return read_foreign(document, hooks, ambiguous)
    except RecursionError as error:
        raise document.error("qParams: lists within lists without end") from error


def _read_json(path: Path) -> dict[str, Any]:
    check_file(path, "a graph's JSON")
    size = path.stat().st_size
    if size * _TIMES > free_memory():
        raise InputError(
            f"path: {path} has {size:,} bytes, which may take {_TIMES} times as much; expected a smaller file, or more memory."
        )
    try:
        root = json.loads(path.read_bytes().decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON, or damaged ({str(error)[:200]}); {REMEDY}") from error
    if not isinstance(root, dict):
        raise FormatError(f"{path}: a {type(root).__name__}, and not an object; {REMEDY}")
    return root


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
