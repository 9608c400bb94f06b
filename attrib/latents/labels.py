"""What latents are called: labels made here from examples or logits, or brought from a file. Text alone, never more than a hint."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attrib.core.files import check_file, check_free, whole
from attrib.core.types import FormatError, InputError
from attrib.latents.surveyed import LatentSurvey, Survey

LONGEST = 2_000
"""Characters of a label; longer ones are cut."""
LARGEST_FILE = 1 << 30
"""Bytes of a file of labels."""
_LATENT, _TEXT, _OF = ("latent", "index", "feature"), ("label", "description", "explanation"), ("dictionary", "layer", "sae_id")
"""Names that columns and keys have: attrib's own, and those of Neuronpedia's exports."""


class Label(NamedTuple):
    """What a latent is called, and by whom."""

    dictionary: str
    latent: int
    text: str
    source: str
    """"tokens" and "logits" are made here; else the file's name, or what it says."""


@dataclass(frozen=True, repr=False)
class Labels:
    """Labels, in the order in which they were given."""

    rows: tuple[Label, ...]

    def __post_init__(self) -> None:
        by: dict[tuple[str, int], list[Label]] = {}
        for row in self.rows:
            by.setdefault((row.dictionary, row.latent), []).append(row)
        object.__setattr__(self, "_by", by)

    def __repr__(self) -> str:
        return f"Labels({len(self.rows):,})"

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Label]:
        return iter(self.rows)

    def __add__(self, other: "Labels") -> "Labels":
        """Both, each label once."""
        return Labels(tuple(dict.fromkeys(chain(self.rows, other.rows))))

    def of(self, dictionary: str, latent: int) -> list[Label]:
        """The labels of a latent, the first given first."""
        return list(self._by.get((dictionary, latent), ()))  # type: ignore[attr-defined]


def token_labels(survey: Survey | LatentSurvey, *, k: int = 5, least: float = 0.05) -> Labels:
    """For each latent that is ever above zero the tokens at which its largest scores are, by their share of the sum of these.

    Args:
        k: tokens at most.
        least: the least share that a token is named with.
    """
    parts = survey.parts if isinstance(survey, Survey) else (survey,)
    return Labels(tuple(label for part in parts for label in _by_tokens(part, k, least)))


def token_shares(part: LatentSurvey, latent: int) -> dict[int, float]:
    """By token id, its share of the sum of a latent's largest scores; where none were kept, of the sampled ones."""
    weights: dict[int, float] = {}
    for token, value in part.top_tokens(latent) or [(one.ids[one.at], one.value) for one in part.examples(latent)]:
        if value > 0:
            weights[token] = weights.get(token, 0.0) + value
    total = sum(weights.values())
    return dict(sorted(((token, weight / total) for token, weight in weights.items()), key=lambda pair: (-pair[1], pair[0])))


def _by_tokens(part: LatentSurvey, k: int, least: float) -> Iterator[Label]:
    for latent in part.latents[np.flatnonzero(part.count)].tolist():
        if label := token_label(part, latent, k, least):
            yield label


def token_label(part: LatentSurvey, latent: int, k: int = 5, least: float = 0.05) -> Label | None:
    """What `token_labels` calls one latent; None where it calls it nothing."""
    named = [(part.string(token), share) for token, share in token_shares(part, latent).items() if share >= least][:k]
    if not named:
        return None
    return Label(part.asked.dictionary, latent, ", ".join(f"{string!r} {share:.0%}" for string, share in named), "tokens")


def logit_labels(model: Any, dictionary: Any, latents: Any = None, *, k: int = 5) -> Labels:
    """For each latent the tokens whose logits it raises most, by `attrib.graph.logit_weights`. Raises as that does."""
    from attrib.adapters.given import as_dictionary, as_model
    from attrib.graph.vocabulary import logit_weights
    from attrib.models.tokens import token_strings

    model, dictionary = as_model(model), as_dictionary(dictionary)
    found = logit_weights(model, dictionary, latents, k=k)
    rows = zip(found.latent.tolist(), found.highest, strict=True)
    return Labels(
        tuple(Label(dictionary.name, latent, ", ".join(map(repr, token_strings(model, tokens))), "logits") for latent, tokens in rows)
    )


# ------------------------------------------------------------------------------------------------- files


def save_labels(path: str | Path, labels: Labels, *, overwrite: bool = False) -> Path:
    """Write labels as JSON lines, whole or not at all. Raises InputError where the path cannot be used."""
    path = Path(path)
    check_free("path", path, overwrite=overwrite)
    with whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        for label in labels:
            row = {"dictionary": label.dictionary, "latent": label.latent, "label": label.text, "source": label.source}
            file.write(json.dumps(row) + "\n")
    return path


def read_labels(path: str | Path, *, dictionary: str | None = None, source: str | None = None) -> Labels:
    """Labels from a file: JSON lines (.jsonl), a list or Neuronpedia's export in JSON (.json), or CSV with a header (.csv).

    A row has a latent under "latent", "index" or "feature", and its text under "label", "description" or "explanation"; a dictionary
    under "dictionary", "layer" or "sae_id". What else it has is passed over.

    Args:
        dictionary: what all labels are of, whatever the file says.
        source: who made them; None is what the file says under "source", or its name.

    Raises:
        InputError: where there is no such file, or nothing says which dictionary the labels are of.
        FormatError: where it is damaged, or a row has no latent or no text.
    """
    path = Path(path)
    check_file(path, "a file of labels")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise FormatError(f"{path}: {size:,} bytes; expected labels of {LARGEST_FILE:,} at most.")
    try:
        rows = list(_rows(path))
    except (ValueError, RecursionError, csv.Error) as error:
        raise FormatError(f"{path}: no labels as its name says ({error}); expected JSON, JSON lines or CSV with a header.") from error
    return Labels(tuple(_label(path, where, row, dictionary, source) for where, row in rows))


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        with path.open(encoding="utf-8-sig") as file:
            yield from ((f"line {number}", json.loads(line)) for number, line in enumerate(file, 1) if line.strip())
    elif suffix == ".json":
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(found, dict):  # Neuronpedia's export has the list under a key
            found = next((found[key] for key in ("explanations", "labels") if isinstance(found.get(key), list)), [found])
        if not isinstance(found, list):
            raise ValueError("it is no list")
        yield from ((f"row {number}", row) for number, row in enumerate(found))
    elif suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from ((f"row {number}", row) for number, row in enumerate(csv.DictReader(file)))
    else:
        raise InputError(f"path: {path} ends in none of .jsonl, .json and .csv; expected a file of labels whose name says what it is.")


def _label(path: Path, where: str, row: Any, dictionary: str | None, source: str | None) -> Label:
    if not isinstance(row, dict):
        raise FormatError(f"{path}, {where}: no object; expected a latent and its label.")
    latent, text = _first(row, _LATENT), _first(row, _TEXT)
    number = int(latent) if isinstance(latent, str) and latent.isascii() and latent.isdigit() and len(latent) < 10 else latent
    if type(number) is not int or not 0 <= number < 1 << 31:
        raise FormatError(f"{path}, {where}: {latent!r:.60} as the latent; expected a whole number under {', '.join(_LATENT)}.")
    if not isinstance(text, str) or not text.strip():
        raise FormatError(f"{path}, {where}: {text!r:.60} as the label; expected text under {', '.join(_TEXT)}.")
    of = dictionary or _first(row, _OF)
    if not isinstance(of, str) or not of:
        raise InputError(f"dictionary: {path}, {where} does not say of which dictionary; name it with dictionary=.")
    text, said = text.encode("utf-8", "replace").decode().strip(), row.get("source")
    text = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    return Label(of, number, text, source or (said if isinstance(said, str) else path.name))


def _first(row: dict[Any, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
