"""Options that several groups of commands have, each said once, and what their words mean."""

from pathlib import Path
from typing import Annotated

import typer

from attrib.core.types import InputError

Prompts = Annotated[list[str] | None, typer.Argument(help="Prompts")]
ModelName = Annotated[str, typer.Option("--model", "-m", help="smollm2-135m, a local folder or a TransformerLens name")]
Given = Annotated[list[str] | None, typer.Option("--dictionary", "-d", help="Dictionary: shipped, folder, or release/id; may be repeated")]
File = Annotated[Path | None, typer.Option("--prompts", help="File of prompts, one a line, or .jsonl, in place of those typed")]
Of = Annotated[Path | None, typer.Option("--of", help="File of prompts from which edits =mean and =resample take their values")]
Dtype = Annotated[str | None, typer.Option(help="float32 or float64")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N")]


def labels_beside(survey: Path) -> Path:
    """Where the labels of a survey are looked for."""
    return survey.with_suffix(".labels.jsonl")


def latents_of(given: str) -> list[int] | slice:
    """Latents as they are typed: numbers with commas, or FIRST:LAST. Raises InputError."""
    try:
        if ":" in given:
            first, last = (int(end) if end.strip() else None for end in given.split(":"))
            return slice(first, last)
        return [int(number) for number in given.split(",")]
    except ValueError:
        raise InputError(f"latents: {given!r}; expected numbers with commas, or FIRST:LAST.") from None
