"""Examples from JSONL, and from Hugging Face's data sets: as streams that can be gone through again, a row at a time.

A row is filled into a template, or it says all itself: "prompt" (text, messages or token ids), "answers" and "label", or "prompt", "right"
and "wrong". What is wrong is said of the line, and nothing behind it is read.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from attrib.causal.tasks.examples import Example, Task
from attrib.causal.tasks.templates import NAMED, Row, Template, filled, template_named
from attrib.core.files import check_file
from attrib.core.types import AttribError, FetchError, InputError, first_line
from attrib.models.tokenizer import brief
from attrib.runs.prompts.given import TWICE
from attrib.runs.prompts.hub import hub
from attrib.runs.prompts.lines import read_objects


class Fields(NamedTuple):
    """What the keys of a row that says all itself are called."""

    prompt: str = "prompt"
    answers: str = "answers"
    label: str = "label"
    right: str = "right"
    wrong: str = "wrong"


@dataclass(frozen=True)
class Rows:
    """Rows that are read anew whenever they are gone through, each made into an example."""

    read: Callable[[], Iterator[tuple[str, Row]]]
    """Each row with where it stands."""
    made: Callable[[Row, str], Example]

    def __iter__(self) -> Iterator[Example]:
        for where, row in self.read():
            yield self.made(row, where)


def read_task(
    path: str | os.PathLike[str],
    *,
    template: Template | str | None = None,
    fields: Fields | Mapping[str, str] | None = None,
    name: str | None = None,
) -> Task:
    """A task from a file of JSONL, one object a line; also as .gz.

    Args:
        template: how a row becomes a prompt, or the name of one, "rte" or "boolq"; None for rows that say all themselves.
        fields: what the keys of such rows are called, where they are not called as `Fields` has them.
        name: the task's; None is the file's.

    Raises:
        InputError: for no file, or fields beside a template. What is wrong with a row is said when it is come to.
    """
    file = Path(path)
    check_file(file, "JSONL, an object a line")
    if template is not None and fields is not None:
        raise InputError("fields: have no effect beside a template, which names its own; leave one out.")
    if isinstance(template, str):
        template = template_named(template)
    keys = Fields(**_known(fields)) if isinstance(fields, Mapping) else fields or Fields()

    def made(row: Row, where: str) -> Example:
        for key, value in row.items():
            if value is TWICE:
                raise InputError(f"examples: {where} has the key {key!r} twice.")
        return _itself(row, keys, where) if template is None else filled(template, row, where)

    return Task(name or file.name.removesuffix(".gz").removesuffix(".jsonl"), Rows(lambda: read_objects(str(file)), made))


def task_named(name: str, source: str | os.PathLike[str] | None = None, *, split: str = "validation", chat: bool = False) -> Task:
    """RTE or BoolQ.

    Args:
        name: "rte" or "boolq".
        source: a file of JSONL with the fields of that data set, or "hf:NAME:CONFIG"; None is the data set of the hub.
        split: of a data set of the hub.
        chat: whether the question is put as a user's, in the model's chat template.

    Raises:
        InputError: for another name; where `datasets` is not installed, or the hub cannot be reached.
    """
    template = template_named(name, chat=chat)
    if source is not None and not str(source).startswith("hf:"):
        return read_task(source, template=template, name=name)
    where = str(source or NAMED[name][1])
    try:
        hub(where, split)  # what is wrong with it is said now
    except InputError as error:
        raise InputError(f"task: {str(error).removeprefix('prompts: ')}") from error

    def read() -> Iterator[tuple[str, Row]]:
        try:
            for number, row in enumerate(hub(where, split), 1):
                yield f"{where}, row {number}", row
        except AttribError:
            raise
        except Exception as error:  # of the network, of whatever reads the data set's files
            raise FetchError(f"examples: {where} could not be read on: {first_line(error)}.") from error

    return Task(name, Rows(read, lambda row, at: filled(template, row, at)))


def _itself(row: Row, keys: Fields, where: str) -> Example:
    if keys.prompt not in row:
        raise InputError(f"examples: {where} has no key {keys.prompt!r}; it has {', '.join(map(repr, list(row)[:12])) or 'none'}.")
    prompt = row[keys.prompt]
    if keys.answers in row:
        if both := [key for key in (keys.right, keys.wrong) if key in row]:
            raise InputError(f"examples: {where} has {keys.answers!r} and {both[0]!r}; expected one of the two.")
        if keys.label not in row:
            raise InputError(f"examples: {where} has answers, and no key {keys.label!r} that says which is right.")
        return Example(prompt, row[keys.answers], row[keys.label], where)
    if missing := [key for key in (keys.right, keys.wrong) if key not in row]:
        either = f"{keys.answers!r} and {keys.label!r}, or {keys.right!r} and {keys.wrong!r}"
        raise InputError(f"examples: {where} has no key {missing[0]!r}; expected {either}.")
    if keys.label in row and row[keys.label] not in (0, None):
        shown = brief.repr(row[keys.label])
        raise InputError(f"examples: {where} has the label {shown} beside {keys.right!r}, which says what is right; leave one out.")
    return Example(prompt, (row[keys.right], row[keys.wrong]), 0, where)


def _known(fields: Mapping[str, str]) -> dict[str, str]:
    if unknown := [key for key in fields if key not in Fields._fields]:
        raise InputError(f"fields: {unknown[0]!r}; expected {', '.join(Fields._fields)}.")
    return dict(fields)
