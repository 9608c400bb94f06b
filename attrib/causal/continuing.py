"""One prompt's continuation as it grows: its text, what of the text is certain, and when it ends. Plain values, no model.

Of the text so far a part may still change: bytes of a character whose others are to come read as U+FFFD, and what could be the
beginning of a stop string may turn out to be one, which is not shown. That part is held back until it is decided.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from attrib.core.types import InputError
from attrib.models.tokenizer import Tokenizer

Ending = Literal["length", "end", "stop"]
"""Why it ended: `max_tokens` are there; the tokenizer's token that ends a text came; a token or text of `stop` came."""

CONTEXT = 8
"""So many of a prompt's last tokens are decoded with its continuation, since some tokenizers drop a space before the first."""


class Stops(NamedTuple):
    """What ends a continuation before its full length."""

    end: int | None
    ids: frozenset[int]
    texts: tuple[str, ...]


class Piece(NamedTuple):
    """What a stream gives with each new token of a prompt."""

    prompt: int
    token: int
    text: str
    """What has become certain with it: "" where nothing has."""
    ended: Ending | None = None
    """Why the prompt's continuation ended; None where it goes on."""


class Growing(NamedTuple):
    """A continuation so far."""

    prompt: int
    repeat: int
    """How many equal prompts came before it."""
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    text: str = ""
    """All of it, without the token or text that ended it."""
    shown: int = 0
    """How many characters of it a stream has had."""
    ended: Ending | None = None


def grown(
    one: Growing, token: int, log_prob: float, decode: Callable[[Sequence[int]], str], stops: Stops, max_tokens: int
) -> tuple[Growing, Piece]:
    """The continuation with one more token, and what has become certain with it.

    Args:
        log_prob: natural logarithm of the probability that the model itself gave to the token.
        decode: the text of a continuation's tokens.
    """
    tokens = (*one.tokens, token)
    is_end, is_stop = token == stops.end, token in stops.ids
    text = one.text if is_end or is_stop else decode(tokens)
    found = [place for stop in stops.texts if (place := text.find(stop)) >= 0]
    ended: Ending | None = "end" if is_end else "stop" if is_stop or found else "length" if len(tokens) == max_tokens else None
    text = text[: min(found)] if found else text
    certain = len(text) if ended else _certain(text, stops.texts)
    shown = max(one.shown, certain)
    now = one._replace(tokens=tokens, log_probs=(*one.log_probs, log_prob), text=text, shown=shown, ended=ended)
    return now, Piece(one.prompt, token, text[one.shown : shown], ended)


def _certain(text: str, stops: Sequence[str]) -> int:
    """How many characters can no longer change."""
    whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
    held = max((size for stop in stops for size in range(1, len(stop)) if whole.endswith(stop[:size])), default=0)
    return len(whole) - held


def decoder_of(tokenizer: Tokenizer | None, prompt: Sequence[int]) -> Callable[[Sequence[int]], str]:
    """The text of tokens behind a prompt; "" where there is no tokenizer."""
    if tokenizer is None:
        return lambda tokens: ""
    decode, before = tokenizer.decode, list(prompt[-CONTEXT:])
    begin = decode(before)

    def text(tokens: Sequence[int]) -> str:
        whole = decode([*before, *tokens])
        # where the prompt ends within a character, or tokens are joined otherwise, they are decoded by themselves
        return whole[len(begin) :] if whole.startswith(begin) else decode(list(tokens))

    return text


def stops_of(stop: int | str | Sequence[int | str], tokenizer: Tokenizer | None, d_vocab: int, *, at_end: bool) -> Stops:
    """What ends a continuation, from what was given as `stop`.

    Raises:
        InputError: for an id outside the vocabulary, an empty text, what is neither, and text where there is no tokenizer.
    """
    given = [stop] if isinstance(stop, int | str) else list(stop)
    for one in given:
        if isinstance(one, str):
            if not one:
                raise InputError("stop: an empty text, which comes before any token; expected some text, or token ids.")
            if tokenizer is None:
                raise InputError(f"stop: {one!r}, and the model has no tokenizer that could tell text; give token ids.")
        elif isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < d_vocab:
            raise InputError(f"stop: {one!r}; expected texts, or token ids from 0 to {d_vocab - 1}.")
    special = {text: number for number, text in tokenizer.special.items()} if tokenizer else {}
    ids = {one if isinstance(one, int) else special[one] for one in given if isinstance(one, int) or one in special}
    texts = tuple(one for one in given if isinstance(one, str) and one not in special)
    end = tokenizer.end if at_end and tokenizer is not None else None
    return Stops(end, frozenset(ids), texts)
