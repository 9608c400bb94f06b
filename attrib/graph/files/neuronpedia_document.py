"""The parts of Neuronpedia's graph JSON, each of the type that the published schema asks for."""

from pathlib import Path
from typing import Any

import torch

from attrib.core.types import FormatError

REMEDY = "expected Neuronpedia's graph JSON. Write it again with the program that made it."


class Document:
    """The parts of a file, each of the type that it should be."""

    def __init__(self, path: Path, root: dict[str, Any]) -> None:
        self.path, self.root = path, root
        self.metadata: dict[str, Any] = self._part(root, "metadata", dict, "")
        self.query: dict[str, Any] = self._part(root, "qParams", dict, "") if "qParams" in root else {}
        self.nodes: list[Any] = self._part(root, "nodes", list, "")
        self.links: list[Any] = self._part(root, "links", list, "")
        self.others: dict[str, Any] = self._part(root, "qk_only_nodes", dict, "") if "qk_only_nodes" in root else {}

    def error(self, wrong: str) -> FormatError:
        """The error for what is wrong with the file."""
        return FormatError(f"{self.path}: {wrong}; {REMEDY}")

    def _part(self, of: dict[str, Any], name: str, kind: type, where: str) -> Any:
        found = of.get(name)
        if type(found) is not kind:
            raise self.error(f"{where}{name}: {shown(found)}, and not {'an object' if kind is dict else f'a {kind.__name__}'}")
        return found

    def node(self, found: Any) -> dict[str, Any]:
        """A node with all that one must have."""
        if not isinstance(found, dict):
            raise self.error(f"nodes: {shown(found)}, and not an object")
        where = f"nodes: {shown(found.get('node_id'))}: "
        for name in ("node_id", "feature_type", "clerp"):
            self._part(found, name, str, where)
        self._part(found, "ctx_idx", int, where)
        if type(found.get("layer")) not in (str, int):
            raise self.error(f"{where}layer: {shown(found.get('layer'))}, and not text or a number")
        return found

    def link(self, number: int) -> tuple[str, str, float]:
        """The source, target and weight of a link."""
        found = self.links[number]
        if not isinstance(found, dict):
            raise self.error(f"links: {shown(found)}, and not an object")
        source, target = (self._part(found, name, str, f"links: number {number}: ") for name in ("source", "target"))
        return source, target, self.number(found, "weight", f"links: number {number}: ")

    def number(self, of: dict[str, Any], name: str, where: str) -> float:
        """A finite number."""
        found = of.get(name)
        if not isinstance(found, int | float) or isinstance(found, bool) or abs(found) > torch.finfo(torch.float64).max:
            raise self.error(f"{where}{name}: {shown(found)}, and not a finite number")
        return float(found)

    def strings(self, name: str) -> list[str]:
        """A list of texts in the metadata; empty where it is not there."""
        found = self.metadata.get(name, [])
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise self.error(f"metadata: {name}: not a list of texts")
        return found


def shown(value: Any) -> str:
    """A value in a few words."""
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else f"{value!r:.60}"
