"""What a kind of job is: all that a job's folder, its engines and its checks do not know about what is computed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Int64
from pydantic import BaseModel
from torch import Tensor

from attrib.dictionaries.dictionary import Dictionary
from attrib.jobs.told import Reach, ShardsOf
from attrib.models.transformer import Model
from attrib.runs.results import Counts


class Read(NamedTuple):
    """A prompt of a source as the model reads it, or why it can be none."""

    parts: list[Int[Tensor, " _"]]
    """Its token ids; several where a long one is split, none where it can be none."""
    fault: str
    """Why it can be none."""
    where: str
    """Where it stands."""
    beside: tuple[int, ...] = ()
    """What else it is asked with, as whole numbers that its kind understands."""


class Portion(NamedTuple):
    """The prompts that a shard is computed of."""

    ids: list[Int[Tensor, " _"]]
    numbers: Int64[np.ndarray, " prompts"]
    """Among all that were read."""
    beside: list[tuple[int, ...]]
    """As of `Read`, of each prompt; no entries where the kind has none."""

    def take(self, places: Sequence[int]) -> "Portion":
        """Some of the prompts."""
        return Portion([self.ids[at] for at in places], self.numbers[list(places)], [self.beside[at] for at in places if self.beside])


@runtime_checkable
class Parts(Protocol):
    """A config with its model and dictionaries in memory: a frozen dataclass, so that `dataclasses.replace` takes it."""

    @property
    def model(self) -> Model:
        """The model."""

    @property
    def dictionaries(self) -> dict[str, Dictionary]:
        """All dictionaries, by the names that the config has for them."""


@runtime_checkable
class Config(Protocol):
    """A job file of some kind, checked: a pydantic model."""

    model: str
    shards: ShardsOf
    threads: int
    products: Any
    compression: Any

    @property
    def dictionaries(self) -> list[str]:
        """The names of all dictionaries."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """All keys, as JSON has them."""


class Of(NamedTuple):
    """What a job's shards are held against: its config, and the hashes of what it was made with."""

    config: Any
    model: str
    dictionaries: Mapping[str, str]

    @property
    def hashes(self) -> set[str]:
        """Of the model and all dictionaries."""
        return {self.model, *self.dictionaries.values()}


Source = Callable[[Any], Iterator[Read]]
"""From a kind's parts to its prompts, one after another."""


@runtime_checkable
class Kind(Protocol):
    """One kind of job. What comes out of `compute` is a kind's own, and handed back to it alone."""

    name: str
    makes: str
    """What its records count beside prompts and tokens, for people: "edges"."""
    by_length: bool
    """Whether a shard is of prompts of about one length, which are computed side by side; else shards are in the data set's order."""
    file: type[BaseModel]
    """Its config."""

    def has_beside(self, config: Any) -> bool:
        """Whether prompts are asked with more than their tokens."""

    def load(self, config: Any, device: torch.device, places: Mapping[str, str | Path]) -> Any:
        """What a config names, in memory. Raises InputError where it is not there, or makes no sense.

        Args:
            places: where the model and the dictionaries lie whose names are not enough to find them.
        """

    def check(self, parts: Any) -> None:
        """Raise what computing any prompt would raise, as far as that is known."""

    def open(self, config: Any, reach: Reach) -> Source:
        """Where the prompts come from. Raises InputError where that is not there, or may not be read; no model is needed yet."""

    def compute(self, parts: Any, portion: Portion) -> Any:
        """What a shard will hold. Raises InputError and UnsupportedError for what one of its prompts cannot be computed of."""

    def faulty(self, results: Any) -> dict[int, str]:
        """Which prompts, by their places, must be left out for what came of them, and why."""

    def counts(self, results: Any) -> Counts:
        """How much there is."""

    def write(self, path: Path, results: Any, numbers: Int[Tensor, " prompts"], compression: str | None) -> Path:
        """Write a shard, whole, over what was there. `numbers` are those of the prompts that it holds, among all that were read."""

    def faults(self, path: Path, of: Of, kept: Portion) -> tuple[list[str], Counts]:
        """What is wrong with a shard whose checksum is right, and how much it holds. Raises FormatError where it cannot be read.

        Args:
            kept: the prompts that it should hold.
        """

    def difference(self, path: Path, again: Any) -> str:
        """How far a shard is from what comes out now, in words."""

    def merge(self, out: Path, shards: Sequence[Path], compression: str | None, overwrite: bool) -> Path:
        """Write one file that stands for the shards that are done, in their order."""
