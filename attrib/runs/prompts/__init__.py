"""Prompts from files and data sets, one after another, each as it is or with the reason why it cannot be one.

Text, JSONL, Parquet, Hugging Face data sets and standard input are read as streams: nothing is held but the
prompt at hand, and a few rows of Parquet. What is wrong with a prompt is said of that prompt, and the next is read.
Files may come from anywhere: what they claim is held against their bytes before memory is taken for it.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from attrib.core.types import InputError
from attrib.runs.prompts.given import FIELDS, LONGEST_LINE, Given, Messages
from attrib.runs.prompts.hub import hub, read_rows
from attrib.runs.prompts.lines import read_lines
from attrib.runs.prompts.parquet import read_parquet
from attrib.runs.prompts.saved import SPLITS, files_of, read_saved

__all__ = ["FIELDS", "LONGEST_LINE", "Form", "Given", "Messages", "check_effect", "read", "read_pairs", "uses"]

USUAL_SPLIT = "train"

Form = Literal["text", "jsonl", "parquet", "dataset"]
_SUFFIXES: dict[str, Form] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_TABLES = (".json", ".csv", ".tsv", ".yaml", ".yml", ".xml")
_PACKED = (".arrow", ".bz2", ".feather", ".h5", ".lz4", ".npy", ".npz", ".pt", ".safetensors", ".tar", ".tgz", ".xz", ".zip", ".zst")
"""Suffixes of what has lines, or bytes that look like them, and no prompt in each."""


def read(
    source: str | Path, *, form: Form | None = None, field: str | None = None, split: str | None = None, allowed: Sequence[Path] = ()
) -> Iterator[Given]:
    """The prompts of one source, in its order.

    A row or an object of JSON holds a prompt as text ("text", "prompt"), as the messages of a chat ("messages", which go
    through the tokenizer's chat template) or as token ids ("tokens", "input_ids"). An "attention_mask" beside ids is
    heeded. What else would change the prompt (other positions, token types, tools) has it refused; all else is left alone.

    Args:
        source: a file, by its suffix JSONL (.jsonl, .ndjson), Parquet (.parquet) or else text, a prompt a line, each
            also as .gz but for Parquet; a folder that `datasets` saved; "hf:NAME" or "hf:NAME:CONFIG", a Hugging Face
            data set, streamed; "-", standard input.
        form: what the source is, where its name does not say.
        field: the key or column that holds the prompt, text, messages or token ids. None: the first of `FIELDS` that is there.
        split: of a Hugging Face data set; None is "train".
        allowed: folders that the links of a saved data set may lead to, beside its own.

    Raises:
        InputError: where there is no such source, its name says that it is none of these, it has no such column, or it names
            files outside of it; for a field or a split that would have no effect.
        FormatError: where a file is damaged, or claims more than its bytes account for.
    """
    check_effect([source], form, field=field, split=split)
    name = str(source)
    if name.startswith("hf:"):
        return read_rows(hub(name, split or USUAL_SPLIT), name, field)
    path = Path(name)
    if name == "-" and form in ("parquet", "dataset"):
        raise InputError(f"prompts: standard input is read line by line; expected the form text or jsonl, got {form}.")
    if name != "-" and not path.exists():
        raise InputError(f"prompts: {name} does not exist.")
    form = form_of(name, form)
    if form == "dataset":
        return read_saved(files_of(path, split or USUAL_SPLIT, allowed), name, field)
    if path.is_dir():
        raise InputError(f"prompts: {name} is a folder; expected a file, or a folder that datasets' save_to_disk wrote.")
    if form == "parquet":
        return read_parquet(path, field)
    return read_lines(name, form == "jsonl", field)


def read_pairs(
    source: str | Path,
    corrupt: str,
    *,
    form: Form | None = None,
    field: str | None = None,
    split: str | None = None,
    allowed: Sequence[Path] = (),
) -> Iterator[tuple[Given, Given]]:
    """The prompts of one source, each with the one that its row or object holds under another key. The source is read twice, side by side.

    Args:
        corrupt: the key or column of the other prompt.

    Raises:
        InputError: for a source without keys or columns, or one that can be read once alone; else as `read`.
    """
    name = str(source)
    if "field" not in uses(source, form):
        raise InputError(f"prompts.corrupt: {corrupt!r} has no effect on {name}, {_WITHOUT['field']}; give pairs as JSONL or Parquet.")
    if not (name.startswith("hf:") or Path(name).is_file() or Path(name).is_dir()):
        raise InputError(f"prompts.corrupt: {name} can be read once, and pairs are read side by side; expected a file.")
    given, others = (read(source, form=form, field=key, split=split, allowed=allowed) for key in (field, corrupt))
    for one, other in zip_longest(given, others):
        if one is None or other is None:
            raise InputError(f"prompts: {name} changed while it was read. Read it again.")
        yield one, other


def form_of(name: str, form: Form | None) -> Form:
    """What a source is, as it is said or by its name: text, unless that says something else.

    Raises:
        InputError: for a name that says what attrib does not read.
    """
    if name.startswith("hf:"):
        return "dataset"
    if form is not None:
        return form
    if Path(name).is_dir():
        return "dataset"
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    if suffix in _TABLES:
        raise InputError(
            f"prompts: {name}: a file of {suffix} has no prompt on each line, as text has. Write JSONL, an object a line, under a name "
            "that ends in .jsonl; a job may say form = 'jsonl' or 'text' of a file that is this already."
        )
    if suffix in _PACKED:
        raise InputError(f"prompts: {name}: attrib reads no {suffix}; expected text, JSONL, either with gzip, Parquet or a saved data set.")
    return _SUFFIXES.get(suffix, "text")


def uses(source: str | Path, form: Form | None) -> frozenset[str]:
    """Which of `field` and `split` a source has a use for."""
    name = str(source)
    found = form_of(name, form)
    has_splits = found == "dataset" and (name.startswith("hf:") or (Path(name) / SPLITS).is_file())
    return frozenset({*(() if found == "text" else ("field",)), *(("split",) if has_splits else ())})


_WITHOUT = {"field": "a file of text, whose lines are the prompts", "split": "a source without splits"}


def check_effect(sources: Sequence[str | Path], form: Form | None, **options: str | None) -> None:
    """Raises InputError for a field or a split that none of the sources has a use for: it was meant to change something."""
    for name, value in options.items():
        if value is not None and not any(name in uses(source, form) for source in sources):
            raise InputError(f"prompts.{name}: {value!r} has no effect on {sources[0]}, {_WITHOUT[name]}; leave it out.")
