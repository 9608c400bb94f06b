"""Tokenizers of Hugging Face's libraries as attrib's own."""

import hashlib
import json
from collections.abc import Callable, Container, Mapping
from functools import cache
from typing import Any, cast

from attrib.core.labels import labels_of, unnamed
from attrib.core.types import InputError, first_line
from attrib.models.tokenizer import Messages, Tokenizer, guarded


def from_tokenizers(
    backend: Any,
    *,
    chat: Callable[[], Any] | None = None,
    pad: str | None = None,
    end: str | None = None,
    shared: Container[str | None] = (),
) -> Tokenizer:
    """attrib's view of a `tokenizers.Tokenizer`.

    Args:
        chat: makes the transformers tokenizer whose chat template is used, when one is; None where there is none.
        pad: the pad token.
        end: the token that ends a text.
        shared: tokens that may begin or end a text; the pad token may be one of them.
    """
    number = None if pad is None else backend.token_to_id(pad)
    return Tokenizer(
        encode=guarded(lambda text: backend.encode(text, add_special_tokens=False).ids),
        decode=guarded(lambda ids: backend.decode(ids, skip_special_tokens=False)),
        template=guarded(lambda text: backend.encode(text).ids),
        chat_template=None if chat is None else _chat(chat),
        plain=_plain(backend),
        label=_label(lambda: backend_labels(backend)),
        special={number: token.content for number, token in backend.get_added_tokens_decoder().items() if token.special},
        unknown=_unknown(backend),
        pad=number,
        pad_run=2 if pad in shared else 1,
        end=None if end is None else backend.token_to_id(end),
        sha256=hashlib.sha256(backend.to_str().encode()).hexdigest(),
    )


def from_transformers(tokenizer: Any) -> Tokenizer:
    """attrib's view of a transformers tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    has_chat = getattr(tokenizer, "chat_template", None) is not None
    pad = getattr(tokenizer, "pad_token_id", None)
    ends = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk")]
    added = tokenizer.added_tokens_decoder
    return Tokenizer(
        encode=guarded(lambda text: tokenizer(text, add_special_tokens=False, verbose=False).input_ids),
        decode=guarded(tokenizer.decode),
        template=guarded(lambda text: tokenizer(text, verbose=False).input_ids),
        chat_template=_chat(lambda: tokenizer) if has_chat else None,
        plain=None if backend is None else _plain(backend),
        label=_label(lambda: backend_labels(backend) if backend is not None else slow_labels(tokenizer)),
        special={number: str(token.content) for number, token in added.items() if token.special},
        unknown=getattr(tokenizer, "unk_token_id", None) if backend is None else _unknown(backend),
        pad=pad,
        pad_run=2 if pad in ends else 1,
        end=getattr(tokenizer, "eos_token_id", None),
        sha256=hashlib.sha256(definition.encode()).hexdigest(),
    )


def _unknown(backend: Any) -> int | None:
    """The id that the model of a `tokenizers.Tokenizer` gives to what it does not know."""
    if type(backend.model).__name__ == "Unigram":  # which alone says it by number, and in its definition alone
        return cast(int | None, json.loads(backend.model.__getstate__())["unk_id"])
    name = getattr(backend.model, "unk_token", None)
    return None if name is None else cast(int | None, backend.token_to_id(name))


def backend_labels(backend: Any) -> dict[int, str]:
    """Labels by the decoder of a `tokenizers.Tokenizer`; without one, pieces are words."""
    join = " ".join if backend.decoder is None else backend.decoder.decode
    return labels_of(_by_id(backend.get_vocab(with_added_tokens=True)), join, backend.get_added_tokens_decoder())


def slow_labels(tokenizer: Any) -> dict[int, str]:
    """Labels of the tokens of a tokenizer that transformers has in Python."""
    return labels_of(_by_id(tokenizer.get_vocab()), tokenizer.convert_tokens_to_string, tokenizer.added_tokens_decoder)


def _by_id(vocabulary: Mapping[str, int]) -> dict[int, str]:
    return {number: piece for piece, number in vocabulary.items()}


def _label(table: Callable[[], Mapping[int, str]]) -> Callable[[int], str]:
    """Labels from a table of the whole vocabulary, made when one is first asked for: it alone knows which tokens read alike."""
    made = cache(guarded(table))
    return lambda number: made().get(number) or unnamed(number)


def _plain(backend: Any) -> Callable[[str], list[int]]:
    @guarded
    def plain(text: str) -> list[int]:
        before = backend.encode_special_tokens
        backend.encode_special_tokens = True
        try:
            return backend.encode(text, add_special_tokens=False).ids
        finally:
            backend.encode_special_tokens = before

    return plain


def _chat(tokenizer: Callable[[], Any]) -> Callable[[Messages], list[int]]:
    """The chat template; what the assistant would say next is asked for where the last message is not the assistant's own."""

    @guarded
    def chat(messages: Messages) -> list[int]:
        asks = messages[-1].get("role") != "assistant"
        try:
            found = tokenizer().apply_chat_template(
                [dict(one) for one in messages], tokenize=True, add_generation_prompt=asks, return_dict=True
            )
        except Exception as error:  # templates raise what they like
            raise InputError(f"is a chat that the chat template does not take: {first_line(error)}") from error
        return list(found["input_ids"])

    return chat
