"""The picture in docs/architecture.md, from the imports: `python -m tests.support.rooms` writes it between its two marks."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.root import ROOT

PACKAGE = ROOT / "attrib"
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- picture: made by python -m tests.support.rooms -->\n", "<!-- end of picture -->\n"


def imports_of(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names of everything imported anywhere in a file of `package`, inside functions and by import_module("...") as well."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = [*package[: len(package) - level + 1]] if level else []
                base = ".".join([*above, *([module] if module else [])])
                # `from attrib import models` imports attrib.models: each name may be a module of its own
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__" | "needed"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def package_of(file: Path, root: Path) -> tuple[str, ...]:
    """The package that a file lies in, part by part."""
    return file.relative_to(root.parent).parts[:-1]


def arrows() -> Mapping[str, set[str]]:
    """Which rooms each room imports."""
    found: dict[str, set[str]] = {path.parent.name: set() for path in PACKAGE.glob("*/__init__.py")}
    for room, below in found.items():
        for file in (PACKAGE / room).rglob("*.py"):
            names = imports_of(ast.parse(file.read_text()), package_of(file, PACKAGE))
            below.update({name.split(".")[1] for name in names if name.startswith("attrib.")} & found.keys() - {room})
    return found


def picture() -> str:
    """A diagram of Mermaid's, with an arrow from each room to those under it; arrows that follow from others are left out."""
    rooms = arrows()

    def reached(room: str) -> set[str]:
        return rooms[room].union(*(reached(below) for below in rooms[room]))

    lines = ["```mermaid", "flowchart TD"]
    for room in sorted(rooms, key=lambda room: (-len(reached(room)), room)):
        direct = rooms[room] - set().union(*(reached(below) for below in rooms[room]))
        lines += [f"    {room} --> {below}" for below in sorted(direct)]
    return "\n".join([*lines, "```", ""])


def table() -> str:
    """Each room, and what the first line of its own docstring says of it."""
    rooms = arrows()
    said = {room: (ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or "").splitlines()[0] for room in rooms}
    count = {room: len(list((PACKAGE / room).rglob("*.py"))) - 1 for room in rooms}
    floor: dict[str, int] = {}
    while len(floor) < len(rooms):
        floor |= {room: 1 + max((floor[b] for b in below), default=0) for room, below in rooms.items() if below <= floor.keys()}
    rows = [f"| `{room}/` | {floor[room]} | {count[room]} | {said[room]} |" for room in sorted(rooms, key=lambda room: (floor[room], room))]
    return "\n".join(["| room | floor | files | what it is |", "|---|---|---|---|", *rows, ""])


def written(document: str) -> str:
    """The document with the picture of today."""
    before, _, rest = document.partition(BEGIN)
    return before + BEGIN + "\n" + picture() + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
