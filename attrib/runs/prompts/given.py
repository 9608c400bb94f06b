"""What stands where a prompt should: text, token ids or the messages of a chat, in a line or in a row of columns.

Beside a prompt may stand what would change it, such as the mask of its padding: that is heeded, or the prompt is
refused. All else beside it is left alone.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attrib.core.optional import needed
from attrib.core.types import InputError
from attrib.models.tokenizer import brief, fault_of_chat, fault_of_text
from attrib.models.tokens import unpadded

FIELDS = ("text", "prompt", "messages", "tokens", "input_ids")
"""The keys or columns that hold a prompt, where none is named: the first that is there."""

LONGEST_LINE = 1 << 24
"""Bytes of a line, or of a row's prompt, at most. A longer one is passed over without being held."""

TWICE = object()
"""Stands for the values of a key that an object has twice."""

Messages = list[dict[str, Any]]
"""A chat: of each message its role and content, and what else its model's template asks for."""

_OF_IDS = ("attention_mask", "token_type_ids", "position_ids")
_OF_CHATS = ("tools", "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
_EXPECTED = 'a string, {"text": "..."}, {"tokens": [ids]} or {"messages": [{"role": "...", "content": "..."}]}'


class Given(NamedTuple):
    """What stands where a prompt should: the prompt, or what is wrong with it."""

    where: str
    prompt: str | Tensor | Messages | None
    fault: str = ""


def chosen(names: Sequence[str], field: str | None) -> str | None:
    """The key or column, of those that are there, that holds the prompt."""
    return next((key for key in ([field] if field else FIELDS) if key in names), None)


def beside(key: str) -> tuple[str, ...]:
    """The keys or columns that change what a prompt under `key` says. Those of "x_input_ids" begin with x_."""
    if key == "text":
        return ()
    start = key.removesuffix("input_ids") if key.endswith("input_ids") else ""
    of_ids = tuple(start + name for name in _OF_IDS)
    return _OF_CHATS if key in ("prompt", "messages") else of_ids if _holds_ids(key) else of_ids + _OF_CHATS


def of_row(row: Mapping[str, Any], where: str, field: str | None) -> Given:
    """A prompt from an object or a row, and what stands beside it."""
    key = chosen(list(row), field)
    if key is None:
        return Given(where, None, f"has no key {' or '.join(map(repr, [field] if field else FIELDS))}")
    others = {name: row[name] for name in beside(key) if row.get(name) is not None}
    if twice := next((name for name in (key, *others) if row[name] is TWICE), None):
        return Given(where, None, f"has the key {twice!r} twice")
    value = row[key]
    if isinstance(value, str) and _holds_ids(key):
        return Given(where, None, f"has text under {key!r}, {brief.repr(value)}; expected token ids there. Text goes under 'text'")
    found = of_value(value, where)
    if isinstance(found.prompt, Tensor):
        return _masked(found, key, others)
    if isinstance(found.prompt, list) and (name := next((name for name in _OF_CHATS if name in others and _says(others[name])), None)):
        return Given(where, None, f"has {name!r} beside its messages, which attrib does not give to the chat template")
    return found


def of_value(value: Any, where: str) -> Given:
    """A prompt from what stood in its place: text, token ids, or messages."""
    if isinstance(value, str):
        if fault := fault_of_text(value):
            return Given(where, None, fault)
        return Given(where, value) if value.strip() else Given(where, None, "is an empty prompt")
    if isinstance(value, list | np.ndarray) and not len(value):
        return Given(where, None, "is an empty prompt")
    if _is_whole(value):
        least, most = (int(end(value)) for end in ((np.min, np.max) if isinstance(value, np.ndarray) else (min, max)))  # of any size
        if least < 0 or most >= 1 << 31:
            return Given(where, None, f"has token ids from {brief.repr(least)} to {brief.repr(most)}; expected 0 or more, below 2^31")
        return Given(where, torch.tensor(value, dtype=torch.int64))
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        fault = fault_of_chat(value)
        return Given(where, None, fault) if fault else Given(where, value)
    if isinstance(value, list) and all(isinstance(part, list | np.ndarray) for part in value):
        return Given(where, None, f"holds {len(value)} lists, as of a batch; expected one prompt. Give each list a line or row of its own")
    return Given(where, None, f"is {brief.repr(value)}; expected {_EXPECTED}")


def _is_whole(value: Any) -> bool:
    """Whether all of it are whole numbers, and none of them true or false."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu"
    return isinstance(value, list) and all(isinstance(token, int) and not isinstance(token, bool) for token in value)


def _holds_ids(key: str) -> bool:
    return key == "tokens" or key.endswith("input_ids")


def _says(value: Any) -> bool:
    """Whether it says anything: nothing, false and an empty list are as if they were not there."""
    return bool(len(value) if isinstance(value, list | np.ndarray | str | dict) else value)


# ------------------------------------------------------------------------------------------- beside ids


def _masked(found: Given, key: str, others: Mapping[str, Any]) -> Given:
    """Token ids without their padding; refused where what stands beside them says more than that."""
    ids, start = found.prompt, key.removesuffix("input_ids") if key.endswith("input_ids") else ""
    assert isinstance(ids, Tensor)
    columns = {name: others[start + name] for name in _OF_IDS if start + name in others}
    if not columns:
        return found
    try:
        made = {name: _column(value, start + name, len(ids)) for name, value in columns.items()}
        mask = made.get("attention_mask", torch.ones_like(ids))
        kept = unpadded(ids, mask, "it")
    except InputError as error:
        return Given(found.where, None, str(error).replace("attention_mask: that of it", f"has a mask, {start}attention_mask, which"))
    if made.get("token_type_ids", mask * 0)[mask != 0].any():
        return Given(found.where, None, f"has {start}token_type_ids that are not 0, which attrib's models do not read")
    positions = made.get("position_ids")
    if positions is not None and not positions[mask != 0].equal(torch.arange(len(kept))):
        return Given(found.where, None, f"has {start}position_ids other than 0, 1, 2, ..., which is how attrib counts")
    return Given(found.where, kept)


def _column(value: Any, name: str, length: int) -> Tensor:
    """A column of whole numbers. Raises InputError where it is none, or has not one for each of `length` tokens."""
    is_array = isinstance(value, np.ndarray) and value.dtype.kind in "iub"
    if not is_array and not (isinstance(value, list) and all(isinstance(each, int) and abs(each) < 1 << 31 for each in value)):
        raise InputError(f"has {brief.repr(value)} as {name!r}; expected a list of whole numbers, one for each token")
    if len(value) != length:
        raise InputError(f"has {length} token ids, and {len(value)} numbers in {name!r}; expected as many")
    return torch.tensor(value, dtype=torch.int64)


# ------------------------------------------------------------------------------------------- libraries

library = partial(needed, argument="prompts", extra="jobs")
"""A module of a package that may not be installed, by its name."""
