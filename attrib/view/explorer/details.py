"""What is known of a graph's nodes and edges beside the graph, and how a page is given it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from attrib.causal.agreement import Agreement
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.graph.graph import Graph
from attrib.graph.heads import HeadLoadings
from attrib.graph.latents import Given
from attrib.graph.qk import QKAttribution
from attrib.latents.surveyed import Survey
from attrib.models.transformer import Model
from attrib.runs.again import Parts, neurons_of, readable
from attrib.view.explorer.limits import LONGEST


@dataclass(frozen=True)
class Details:
    """What is known of one graph; each may be left out."""

    survey: Survey | None = None
    """Where its latents are active in a corpus."""
    model: Model | None = None
    """That it was built with: what its latents write to logits is computed of the weights."""
    dictionaries: Sequence[Given] = ()
    """Those that it was built with, in its order; needed beside the model."""
    heads: HeadLoadings | None = None
    """Some of its edges by heads."""
    scores: QKAttribution | None = None
    """Why heads look where they look."""
    verified: Agreement | None = None
    """Some of its edges as an intervention has them."""


class Columns(NamedTuple):
    """Columns of numbers for a page, by name, and what its header says of them."""

    header: dict[str, Any]
    integers: dict[str, Tensor]
    floats: dict[str, Tensor]

    def __or__(self, other: "Columns") -> "Columns":
        return Columns(*(mine | theirs for mine, theirs in zip(self, other, strict=True)))

    def named(self, prefix: str) -> "Columns":
        """The columns alone, with their names behind a prefix."""
        integers, floats = ({f"{prefix}{name}": column for name, column in columns.items()} for columns in self[1:])
        return Columns({}, integers, floats)


class Strings:
    """Strings for a page, each once, by number. Long ones are cut."""

    def __init__(self) -> None:
        self._numbers = dict[str, int]()

    def number(self, string: str) -> int:
        """The number of a string."""
        return self._numbers.setdefault(string if len(string) <= LONGEST else f"{string[:LONGEST]}…", len(self._numbers))

    @property
    def all(self) -> list[str]:
        """All of them, in order."""
        return list(self._numbers)


def made_with(
    graph: Graph, model: Model, dictionaries: Sequence[Dictionary], places: Mapping[str, str | Path], argument: str = "model"
) -> list[Given]:
    """The dictionaries that a graph was built with, in its order: of those given by their hash, others loaded by the name it tells.

    Args:
        model: which has to be the one that the graph was built with.
        places: where dictionaries lie that are loaded, by name or sha256.

    Raises:
        InputError: for another model, and for a dictionary that cannot be loaded or is another.
        FormatError: where the graph does not say what it was built with.
    """
    with readable():
        named: Any = graph.call["model"]
        records: Any = graph.call["dictionaries"]
        if not model.matches(str(named["sha256"])):
            raise InputError(f"{argument}: {model.name} is not that of the graph, which is {named['name']}; give that one.")
        parts = Parts(dict(places))
        return [neurons_of(one) or _given(dictionaries, one) or parts.dictionary(one) for one in records]


def _given(dictionaries: Sequence[Dictionary], named: Mapping[str, Any]) -> Dictionary | None:
    return next((one for one in dictionaries if one.matches(str(named["sha256"]))), None)
