"""How text becomes token ids and ids text: a few functions, whichever library they come from."""

import functools
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, ParamSpec, TypeVar, cast, get_args

from attrib.core.types import InputError, first_line

SpecialTokens = Literal["allow", "text", "refuse"]
"""What becomes of a special token that is spelled out in a prompt's text: it is that token, it is text like any other, or an error."""

Messages = Sequence[Mapping[str, Any]]
"""A chat: messages with a role and a content, which is text, and what else its model's template asks for."""

brief = reprlib.Repr()
brief.maxstring = brief.maxother = brief.maxlong = 60
brief.maxlevel = 3
"""What came, short enough for a message."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Tokenizer:
    """How text becomes token ids: functions, and facts about the vocabulary."""

    encode: Callable[[str], list[int]]
    """The tokens of a piece of text, with nothing put around it."""
    decode: Callable[[list[int]], str]
    template: Callable[[str], list[int]] | None = None
    """The tokens of a prompt, with what the tokenizer puts around it; None where that is nothing."""
    chat_template: Callable[[Messages], list[int]] | None = None
    plain: Callable[[str], list[int]] | None = None
    """Encode a text in which a special token that is spelled out is text like any other."""
    label: Callable[[int], str] | None = None
    """A token as it reads in context, no two alike; see labels.py. None is `decode`."""
    special: Mapping[int, str] = field(default_factory=dict)
    """The special tokens, by id."""
    unknown: int | None = None
    """The token that stands for text which the vocabulary does not have."""
    pad: int | None = None
    pad_run: int = 1
    """So many pad tokens at an end of a prompt are taken for padding: 2 where one alone may be what begins or ends a text."""
    end: int | None = None
    """The token that ends a text, or what an assistant says."""
    sha256: str | None = None
    """Hash of the tokenizer's definition, to tell which one a result came from."""
    special_tokens: SpecialTokens = "allow"

    def __repr__(self) -> str:
        known = "unknown" if self.sha256 is None else self.sha256[:12]
        return f"Tokenizer({len(self.special)} special tokens, {self.special_tokens}, sha256={known})"

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """What the template puts before and behind the tokens of a text."""
        if self.template is None:
            return [], []
        inside, whole = self.encode("a"), self.template("a")
        for start in range(len(whole) - len(inside), -1, -1):
            if whole[start : (end := start + len(inside))] == inside:
                return whole[:start], whole[end:]
        return [], []

    def prompt(self, text: str) -> list[int]:
        """A prompt's tokens, by the tokenizer's own template; a text that begins with the template's special tokens gets no more.

        Raises:
            InputError: where the tokenizer fails, or `special_tokens` is "refuse" and the text holds one.
        """
        if not text:
            return []
        before, behind = self.around
        if self.special_tokens == "text" and self.plain is not None:
            inside = self.plain(text)
            if found := [token for number, token in self.special.items() if token in text and number in inside]:
                raise InputError(f"holds {found[0]!r}, which this tokenizer does not take as text; take it out, or allow special tokens.")
            return [*before, *inside, *behind]
        self._refuse(text)
        if before and all(number in self.special for number in before) and text.startswith("".join(map(self.special.__getitem__, before))):
            return [*self.encode(text), *behind]
        return (self.template or self.encode)(text)

    def chat(self, messages: Messages) -> list[int]:
        """A chat's tokens, by the tokenizer's chat template.

        Raises:
            InputError: where there is no such template, it does not take these messages, or `special_tokens` is not "allow"
                and a message holds one: the template has its own, from which they cannot be told.
        """
        if self.chat_template is None:
            raise InputError("is a chat, and the tokenizer has no chat template; give its text, written as the model knows it.")
        if fault := fault_of_chat(messages):
            raise InputError(fault)
        if self.special_tokens != "allow":
            for message in messages:
                self._refuse(message["content"])
        return self.chat_template(messages)

    def _refuse(self, text: str) -> None:
        if self.special_tokens == "allow":
            return
        if found := [token for token in self.special.values() if token and token in text]:
            raise InputError(
                f"holds the special token {found[0]!r}, and special_tokens is {self.special_tokens!r}; take it out of the text."
            )

    def with_special_tokens(self, special_tokens: str) -> "Tokenizer":
        """Give a tokenizer that takes special tokens in text as this says."""
        if special_tokens not in get_args(SpecialTokens):
            raise InputError(f"special_tokens: {special_tokens!r}; expected one of {', '.join(map(repr, get_args(SpecialTokens)))}.")
        if special_tokens == "text" and self.plain is None:
            raise InputError("special_tokens: 'text', which this tokenizer cannot do; expected 'allow' or 'refuse'.")
        return replace(self, special_tokens=cast(SpecialTokens, special_tokens))


def fault_of_chat(messages: Messages) -> str:
    """What is wrong with a chat, or nothing. A template writes whatever content is given to it, a list as Python shows it."""
    for number, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(text := message.get(key), str):
                expected = "{'role': '...', 'content': '...'}"
                return f"has no text as the {key} of message {number}; expected {expected}, got {brief.repr(message)}"
            if fault := fault_of_text(text):
                return fault
    return ""


def fault_of_text(text: str) -> str:
    """What is wrong with a text, or nothing."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate, which no UTF-8 has"
    return ""


def guarded(function: Callable[P, T]) -> Callable[P, T]:
    """A tokenizer's function whose failures are InputErrors, a panic of its Rust code among them, which is no Exception."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except InputError:
            raise
        except BaseException as error:
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise InputError(f"cannot be tokenised: {first_line(error)}") from error
            raise

    return call
