"""A flow chart that a page has as text for GitHub, drawn as SVG, so that the site needs no program from the network."""

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

CHART = re.compile(r"^```mermaid\nflowchart TD\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ARROW = re.compile(r"^\s*(\w+) --> (\w+)$")
WIDE, HIGH, ACROSS, DOWN = 104, 30, 128, 62
"""Boxes, and from one to the next."""


def drawn(page: str) -> str:
    """A page with its charts of plain arrows as pictures."""
    return CHART.sub(lambda found: _svg(_arrows(found[1])), page)


def _arrows(text: str) -> list[tuple[str, str]]:
    found = [ARROW.match(line) for line in text.splitlines() if line.strip()]
    if None in found:
        raise ValueError(f"a flow chart has more than plain arrows, which nothing here draws:\n{text}")
    return [(arrow[1], arrow[2]) for arrow in found if arrow]


def _floors(arrows: Iterable[tuple[str, str]]) -> list[list[str]]:
    """What nothing leads on from at the bottom, and each box above all that it leads to; neighbours near what they lead to."""
    height: dict[str, int] = {}
    arrows = list(arrows)

    def of(name: str) -> int:
        if name not in height:
            height[name] = 1 + max((of(to) for start, to in arrows if start == name), default=-1)
        return height[name]

    for start, to in arrows:
        of(start), of(to)
    floors: list[list[str]] = [[] for _ in range(max(height.values()) + 1)]
    at: dict[str, float] = {}
    for name in sorted(height, key=lambda name: height[name]):
        floors[height[name]].append(name)
    for floor in floors:
        below = {name: [at[to] for start, to in arrows if start == name] for name in floor}
        floor.sort(key=lambda name: sum(below[name]) / max(1, len(below[name])))
        at |= {name: place - (len(floor) - 1) / 2 for place, name in enumerate(floor)}
    return floors


def _svg(arrows: list[tuple[str, str]]) -> str:
    floors = _floors(arrows)
    wide, high = max(map(len, floors)) * ACROSS, len(floors) * DOWN
    at = {
        name: (wide / 2 + (place - (len(floor) - 1) / 2) * ACROSS, high - (level + 0.5) * DOWN)
        for level, floor in enumerate(floors)
        for place, name in enumerate(floor)
    }
    parts = [f'<svg class="chart" viewBox="0 0 {wide} {high}" style="max-width: {wide}px" role="img" aria-label="A flow chart">']
    for start, to in arrows:
        (x, y), (x2, y2) = at[start], at[to]
        y, y2 = y + HIGH / 2, y2 - HIGH / 2
        bend = (y2 - y) / 2
        parts.append(f'<path d="M{x:g} {y:g}C{x:g} {y + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2 - 5:g}"/>')
        parts.append(f'<path class="head" d="M{x2 - 4:g} {y2 - 7:g}L{x2:g} {y2:g}L{x2 + 4:g} {y2 - 7:g}Z"/>')
    for name, (x, y) in at.items():
        parts.append(f'<rect x="{x - WIDE / 2:g}" y="{y - HIGH / 2:g}" width="{WIDE}" height="{HIGH}" rx="4"/>')
        parts.append(f'<text x="{x:g}" y="{y + 5:g}">{escape(name)}</text>')
    return "".join((*parts, "</svg>"))


# ------------------------------------------------------------------------------------- pictures that are kept

CELL, POSITIONS, LAYERS = 18, 8, 5
"""Of the picture of the engine's three ways: a cell's size, positions across, sites from A at the bottom to B at the top."""
STYLE = (
    "text{font:13px sans-serif;fill:#222}rect{fill:none;stroke:#bbb}.down{fill:#0072b2}.up{fill:#c74e00}.seed{stroke:#222;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}rect{stroke:#555}.down{fill:#56b4e9}.up{fill:#e69f00}.seed{stroke:#fff}}"
)


def ways() -> str:
    """Which cells a row has on its way down, on its way up, and where both meet, as SVG."""
    p, q, middle, top = 5, 2, 2, LAYERS - 1
    panels = {
        "down from a target at p": [("down", p, top, range(top + 1))],
        "up from a source at q": [("up", q, 0, range(top + 1))],
        "both, to a site between": [("down", p, top, range(middle, top + 1)), ("up", q, 0, range(middle + 1))],
    }
    wide = POSITIONS * CELL + 60
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide * 3} {LAYERS * CELL + 62}" role="img"><style>{STYLE}</style>']
    for number, (title, rows) in enumerate(panels.items()):
        left = number * wide + 30
        parts.append(f'<text x="{left}" y="18">{title}</text>')
        for level in range(LAYERS):
            for at in range(POSITIONS):
                kind = next((kind for kind, seed, begin, levels in rows if level in levels and _lives(kind, seed, begin, at, level)), "")
                is_seed = any((at, level) == (seed, begin) for _, seed, begin, _ in rows)
                x, y = left + at * CELL, 28 + (top - level) * CELL
                name = " ".join(filter(None, (kind, "seed" if is_seed else "")))
                parts.append(f'<rect{f" class={name!r}" if name else ""} x="{x}" y="{y}" width="{CELL - 3}" height="{CELL - 3}"/>')
        parts.append(f'<text x="{left - 20}" y="{28 + CELL - 5}">B</text><text x="{left - 20}" y="{28 + LAYERS * CELL - 5}">A</text>')
        parts.append(f'<text x="{left}" y="{LAYERS * CELL + 50}">positions 0 … {POSITIONS - 1}</text>')
    return "\n".join((*parts, "</svg>\n"))


def _lives(kind: str, seed: int, begin: int, at: int, level: int) -> bool:
    """Whether a row has a value at a cell: attention takes a cotangent to earlier positions, and a tangent to later ones."""
    if level == begin:
        return at == seed
    return at <= seed if kind == "down" else at >= seed


if __name__ == "__main__":
    picture = Path(__file__).resolve().parents[1] / "pictures" / "ways.svg"
    picture.write_text(ways())
    print(picture)
