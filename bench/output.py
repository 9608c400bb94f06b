"""What the benches have in common in what they say: figures as JSON, numbers in tables, and how a run ends."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

Results = Mapping[str, Mapping[str, Any]]
"""What is known of each case, by its name; `checked` says whether its values are right."""


def write(path: Path, results: Results) -> None:
    """Write JSON, figures to six digits, so that a reader sees the whole of it or what was there before.

    Raises:
        TypeError, ValueError: for what JSON does not know, NaN and infinity among it, before the file is touched.
    """
    text = json.dumps(_to_six_digits(results), indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)  # temporary files are private
    os.replace(file.name, path)


def _to_six_digits(given: Any) -> Any:
    """No clock has more, and whoever compares two files sees what differs."""
    if isinstance(given, Mapping):
        return {name: _to_six_digits(each) for name, each in given.items()}
    if isinstance(given, list | tuple):
        return [_to_six_digits(each) for each in given]
    return float(f"{given:.6g}") if isinstance(given, float) else given


def number(value: float | None, form: str = ".2f", nothing: str = "-") -> str:
    """A figure, or what stands for none."""
    return nothing if value is None else format(value, form)


def wide_console() -> Console:
    """A console on which tables have room where the output goes to a file."""
    return Console(width=None if Console().is_terminal else 200)


def end(console: Console, results: Results) -> None:
    """Name the cases whose values differ. Raises typer.Exit(1) where there are any."""
    if wrong := [name for name, result in results.items() if not result["checked"]]:
        console.print(f"[bold red]Values differ: {', '.join(wrong)}.[/] These cases have no figures.")
        raise typer.Exit(1)
