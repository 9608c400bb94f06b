"""The kinds of jobs. Each module is one: its config, how its shards are made and written, and how they are held against what was asked.

A config without `kind` is of attributions, whose blocks say whether edges or graphs come out; all others name themselves.
"""

from typing import Any

from attrib.core.types import InputError
from attrib.jobs.kind import Config, Kind
from attrib.jobs.kinds.edges import EdgesKind, JobFile
from attrib.jobs.kinds.graphs import GraphsKind
from attrib.jobs.kinds.latents import LatentsKind
from attrib.jobs.kinds.task import TaskKind

__all__ = ["KINDS", "Config", "Kind", "kind_of", "of_keys"]

KINDS: dict[str, Kind] = {kind.name: kind for kind in (EdgesKind(), GraphsKind(), LatentsKind(), TaskKind())}
"""By name."""
NAMED = [name for name, kind in KINDS.items() if kind.file is not JobFile]
"""What `kind` of a config may say."""


def of_keys(table: dict[str, Any]) -> Kind:
    """The kind that a config's keys are of. Raises InputError for one that there is not."""
    if "kind" not in table:
        return KINDS["edges"]  # or graphs, which have the same keys
    if (name := table["kind"]) not in NAMED:
        raise InputError(
            f"kind: {name!r:.60}; expected {' or '.join(map(repr, NAMED))}. Edges and graphs are asked for by [[attribution]], each with "
            "a kind of its own."
        )
    return KINDS[name]


def kind_of(config: Any) -> Kind:
    """The kind of a checked config."""
    if isinstance(config, JobFile):
        return KINDS["graph" if config.is_of_graphs else "edges"]
    return KINDS[config.kind]
