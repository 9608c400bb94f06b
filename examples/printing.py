"""What the notebooks' examples print: a heading that names the row of docs/from-the-notebooks.md, and a table."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Step(NamedTuple):
    """One thing that a notebook computes."""

    row: str
    title: str
    shown: pd.DataFrame | str


def show(steps: Iterable[Step]) -> None:
    """Print each step as it is done."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    for step in steps:
        console.print(Text(f"\n{step.row}  {step.title}", style="bold"))
        console.print(step.shown if isinstance(step.shown, str) else _table(step.shown))


def _table(frame: pd.DataFrame) -> Table:
    """Text on the left, numbers on the right; characters that move a cursor as escapes."""
    table = Table()
    for name, column in frame.items():
        is_text = column.map(lambda value: isinstance(value, str)).any()
        table.add_column(Text(str(name)), justify="left" if is_text else "right", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(_cell(value)) for value in row))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value if value.isprintable() else repr(value)[1:-1]
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return "-" if pd.isna(value) else f"{value:.4g}"


def pairs(facts: dict[str, Any]) -> pd.DataFrame:
    """Names and what they are, as a table."""
    return pd.DataFrame({"name": list(facts), "value": [value if isinstance(value, str) else _cell(value) for value in facts.values()]})


def edges(frame: pd.DataFrame) -> pd.DataFrame:
    """Edges as `Edges.top` and `Edges.to_pandas` give them, each end in one column."""
    ends = {end: [_end(row, end) for row in frame.to_dict("records")] for end in ("source", "target")}
    return pd.DataFrame(ends | {name: frame[name].tolist() for name in ("source_activation", "gradient", "attribution")})


def _end(row: dict[str, Any], end: str) -> str:
    """A label, or a latent and where it stands."""
    if isinstance(label := row.get(f"{end}_label"), str):
        return f"{label!r}" if end == "target" else f"{label!r} ({row['source_position']})"
    kind = row.get(f"{end}_kind", "latent")
    name = row[f"{end}_latent"] if kind == "latent" else kind
    return f"{name} at {row[f'{end}_token']!r} ({row[f'{end}_position']})"
