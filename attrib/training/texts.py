"""What dictionaries are trained on, from files: text as it stands, the visible text of HTML pages, and rows that hold a text each."""

import gzip
import html
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from attrib.core.files import kind_of_file
from attrib.core.types import InputError
from attrib.runs.prompts import form_of, read

TEXTS, PAGES = (".txt", ".md"), (".html", ".htm")
"""Files of a folder that are taken, each also as .gz."""
PIECE = 1 << 16
"""Characters that are tokenized together."""
SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
"""What a folder that `datasets` saved has in it."""


class Source(NamedTuple):
    """A text, or several that belong together."""

    name: str
    texts: Callable[[], Iterator[Any]]
    """Pieces of text, token ids or chats, one after another."""


def sources_of(paths: Sequence[str | Path]) -> list[Source]:
    """The sources behind names, in their order.

    A folder stands for each of its .txt and .md files, and for all of its HTML pages together. Files that are JSONL or Parquet by their
    names, saved data sets and "hf:NAME" hold a text in each row, as `attrib.runs.prompts.read` finds it. Any other file is one text.

    Raises:
        InputError: where there is nothing under a name, or a folder has no text.
    """
    if not paths:
        raise InputError("TEXT: missing; expected at least one file or folder of text.")
    found = [source for path in paths for source in _sources(path)]
    names = [source.name for source in found]
    return [source if names.count(source.name) == 1 else source._replace(name=f"{source.name}-{n}") for n, source in enumerate(found)]


def _sources(given: str | Path) -> Iterator[Source]:
    name, path = str(given), Path(given)
    if name.startswith("hf:") or (path.is_dir() and any((path / file).is_file() for file in SAVED)):
        yield Source(_stem(path), partial(_of_rows, name))
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        texts = [file for file in files if _suffix(file) in TEXTS]
        pages = [file for file in files if _suffix(file) in PAGES]
        if not texts and not pages:
            raise InputError(f"TEXT: {path} has no files of text; expected some that end in {', '.join((*TEXTS, *PAGES))}.")
        yield from (Source(_stem(file), partial(_of_text, file)) for file in texts)
        if pages:
            yield Source(path.name or "pages", partial(_of_pages, pages))
    elif (kind := kind_of_file(path)) != "a file":
        raise InputError(f"TEXT: {f'there is no file {path}' if kind is None else f'{path} is {kind}'}; expected text.")
    elif _suffix(path) in PAGES:
        yield Source(_stem(path), partial(_of_pages, [path]))
    elif form_of(name, None) != "text":
        yield Source(_stem(path), partial(_of_rows, name))
    else:
        yield Source(_stem(path), partial(_of_text, path))


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or path.name


def _opened(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def _of_text(path: Path) -> Iterator[str]:
    """A text in pieces that end with a line, or at least with a word, so that none is held whole."""
    left = ""
    try:
        with _opened(path) as file:
            while piece := file.read(PIECE):
                piece = left + piece
                end = max(piece.rfind("\n"), piece.rfind(" ")) + 1 or len(piece)
                yield piece[:end]
                left = piece[end:]
    except UnicodeDecodeError as error:
        raise InputError(f"TEXT: {path} is no text in UTF-8 ({error.reason} at byte {error.start}).") from None
    except (OSError, EOFError) as error:
        raise InputError(f"TEXT: {path} cannot be read: {error}.") from None
    yield f"{left}\n"


def _of_pages(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        yield f"{visible_text(''.join(_of_text(path)))}\n\n"


def _of_rows(name: str) -> Iterator[Any]:
    for given in read(name):
        if given.prompt is None:
            raise InputError(f"TEXT: {given.where} {given.fault}. Remove it, or write a text there.")
        yield f"{given.prompt}\n" if isinstance(given.prompt, str) else given.prompt


def visible_text(page: str) -> str:
    """The text of an HTML page that is read by people, a paragraph a line; lines of up to 40 characters, such as menus, are left out."""
    page = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", " ", page)
    page = re.sub(r"\s+", " ", page)  # in a page a line's end is a space like any other
    page = re.sub(r"(?i)</?(p|br|li|h\d|div|td|tr|blockquote)\b[^>]*>", "\n", page)
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if len(line) > 40)
