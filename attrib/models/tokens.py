"""Text, chats, encodings and ids become prompts; ids become labels. docs/prompts.md says what is taken."""

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.devices import to_host
from attrib.core.labels import unnamed
from attrib.core.types import InputError, warn
from attrib.models.tokenizer import Tokenizer
from attrib.models.transformer import Model

TokensLike = Any
"""What is taken as prompts: text, 1-D ids, a chat or an encoding, or several of them; a 2-D tensor or an encoding of several rows."""

EXPECTED = (
    "expected text, token ids (a 1-D tensor, array or list of ints), an encoding (a dict with input_ids, and attention_mask where "
    "it is padded), a chat (a list of messages with role and content), or a list of them"
)

_BESIDE = frozenset({"special_tokens_mask", "offset_mapping", "length"})
"""Keys of an encoding that say nothing of what the model computes."""


class PromptIds(list[Tensor]):
    """Prompts as `to_prompts` makes them: it takes these as they are."""

    here: list[Tensor] | None = None
    """The same on the host, where they come from there."""


def to_prompts(model: Model, tokens: TokensLike) -> PromptIds:
    """Prompts as a list of 1-D int64 tensors on the model's device.

    Raises:
        InputError: for what is no prompt, for none, an empty one, one longer than the context, or ids outside the vocabulary.
    """
    if isinstance(tokens, PromptIds):
        return tokens
    items, _ = prompts_in(tokens)
    prompts = to_host([to_ids(model, number, item) for number, item in enumerate(items)])
    for number, ids in enumerate(prompts):
        check_ids(model, number, ids)
    _warn_of_padding(model, [(number, prompts[number]) for number, item in enumerate(items) if _is_bare(item)])
    there = PromptIds(ids.to(device=model.device, non_blocking=True) for ids in prompts)
    there.here = prompts
    return there


def on_host(prompts: Sequence[Int[Tensor, " _"]]) -> list[Tensor]:
    """Prompts on the host, which need not come back from a device that they were brought to."""
    return prompts.here if isinstance(prompts, PromptIds) and prompts.here is not None else to_host(prompts)


def one_prompt(model: Model, tokens: TokensLike) -> Int[Tensor, " positions"]:
    """The one prompt that was given. Raises InputError where there are several; else as `to_prompts`."""
    prompts = to_prompts(model, tokens)
    if len(prompts) != 1:
        raise InputError(f"tokens: {len(prompts)} prompts, where one is computed at a time; give them one by one.")
    return prompts[0]


def to_batch(model: Model, tokens: TokensLike) -> Int[Tensor, "*batch positions"]:
    """Ids as a model reads them: a tensor as it stands, one prompt [positions], prompts of one length [batch, positions].

    Raises:
        InputError: for prompts of several lengths; else as `to_prompts`.
    """
    if isinstance(tokens, Tensor):
        if not tokens.ndim:
            raise InputError(f"tokens: one number; {EXPECTED}.")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise InputError(f"tokens: a tensor of dtype {tokens.dtype}; expected one of ints.")
        if tokens.numel() and not torch._C._functorch.is_functorch_wrapped_tensor(tokens):  # under vmap no value can be looked at
            _check_vocabulary(model, "a prompt", tokens)
            _warn_of_padding(model, enumerate(tokens.reshape(-1, tokens.shape[-1])))
        return tokens.to(device=model.device, dtype=torch.int64)
    _, is_batch = prompts_in(tokens := list(tokens) if _is_iterator(tokens) else tokens)
    prompts = to_prompts(model, tokens)
    if len(lengths := {len(ids) for ids in prompts}) > 1:
        raise InputError(f"tokens: prompts of {min(lengths)} to {max(lengths)} tokens, which are no batch; give them one by one.")
    return torch.stack(prompts) if is_batch else prompts[0]


# ------------------------------------------------------------------------------------ what was given


def prompts_in(tokens: TokensLike) -> tuple[list[Any], bool]:
    """One item for each prompt, and whether there may be several. Raises InputError for what is none."""
    encoding = _encoding(tokens)
    if encoding is not None:
        return _rows(encoding)
    if isinstance(tokens, str):
        return [tokens], False
    if isinstance(tokens, Tensor | np.ndarray) and not (isinstance(tokens, np.ndarray) and tokens.dtype.kind in "UOT"):
        if tokens.ndim not in (1, 2):
            raise InputError(f"tokens: has shape {list(tokens.shape)}; expected one prompt [positions] or a batch [prompts, positions].")
        return ([tokens], False) if tokens.ndim == 1 else (list(tokens), True)
    if hasattr(tokens, "columns"):  # whose names are what a table gives when it is iterated over
        names = getattr(tokens, "column_names", tokens.columns)
        raise InputError(f"tokens: a {type(tokens).__name__} with the columns {_listed(names)}; give one of them, as a list.")
    if tokens is None or isinstance(tokens, bytes | bytearray | Set) or not isinstance(tokens, Iterable):
        raise InputError(f"tokens: {_shown(tokens)}; {EXPECTED}.")
    items = list(tokens)
    if not items:
        raise InputError("tokens: no prompts given; expected at least one.")
    if all(map(_is_whole, items)) or _is_chat(items):
        return [items], False
    return items, True


def to_ids(model: Model, number: int, item: Any) -> Int[Tensor, " positions"]:
    """A prompt as token ids, however many: text and chats by the tokenizer's templates, encodings without padding, ids as they are.

    Raises:
        InputError: for what is no prompt; names it by `number`.
    """
    if isinstance(item, str) or _is_chat(item):
        tokenizer = tokenizer_of(model, "tokens")
        try:
            ids = tokenizer.prompt(item) if isinstance(item, str) else tokenizer.chat(item)
        except InputError as error:
            raise InputError(f"tokens: prompt {number} {error}") from error
        return torch.tensor(ids, dtype=torch.int64)
    encoding = _encoding(item)
    return _int_ids(item, number) if encoding is None else _encoded_ids(encoding, number)


def check_ids(model: Model, number: int, ids: Int[Tensor, " positions"]) -> None:
    """Raises InputError where a prompt is empty, longer than the context, or outside the vocabulary; names it by `number`."""
    if not 0 < len(ids) <= model.config.n_ctx:
        raise InputError(f"tokens: prompt {number} has {len(ids)} tokens; expected 1 to {model.config.n_ctx}, the context of {model.name}.")
    _check_vocabulary(model, f"prompt {number}", ids)


def _check_vocabulary(model: Model, whose: str, ids: Int[Tensor, "*batch positions"]) -> None:
    least, most = (int(end) for end in to_host(torch.aminmax(ids)))
    if least < 0 or most >= model.config.d_vocab:
        raise InputError(
            f"tokens: {whose} has ids from {least} to {most}; the vocabulary of {model.name} is 0 to {model.config.d_vocab - 1}."
        )


def _int_ids(item: Any, number: int) -> Int[Tensor, " positions"]:
    if isinstance(item, np.ndarray) and item.dtype.kind in "iu":
        item = torch.from_numpy(item.astype(np.int64))
    if isinstance(item, Tensor):
        if item.ndim != 1 or item.is_floating_point() or item.is_complex() or item.dtype == torch.bool:
            raise InputError(
                f"tokens: prompt {number} has shape {list(item.shape)} and dtype {item.dtype}; expected a 1-D tensor of ints. "
                "Give several prompts as a list, or as one 2-D tensor."
            )
        return item.to(dtype=torch.int64)
    if isinstance(item, Sequence | range) and not isinstance(item, str | bytes | bytearray) and all(map(_is_whole, item)):
        try:
            return torch.tensor([int(one) for one in item], dtype=torch.int64)
        except (OverflowError, ValueError, RuntimeError):
            raise InputError(f"tokens: prompt {number} has ids beyond 64 bits; expected those of a vocabulary.") from None
    raise InputError(f"tokens: prompt {number} is {_shown(item)}; {EXPECTED}.")


def _is_whole(one: Any) -> bool:
    if isinstance(one, Tensor):
        return one.ndim == 0 and not (one.is_floating_point() or one.is_complex() or one.dtype == torch.bool)
    return isinstance(one, Integral) and not isinstance(one, bool)


def _is_chat(item: Any) -> bool:
    return (
        isinstance(item, Sequence)
        and bool(item)
        and not isinstance(item, str | bytes)
        and all(isinstance(message, Mapping) and "role" in message for message in item)
    )


def _is_iterator(tokens: Any) -> bool:
    return isinstance(tokens, Iterable) and not isinstance(tokens, str | bytes | Mapping | Set) and not hasattr(tokens, "__len__")


def _listed(names: Iterable[Any]) -> str:
    shown = [repr(name) for name in islice(names, 4)]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")


def _shown(item: Any) -> str:
    text = " ".join(repr(item).split())
    return f"{text if len(text) < 60 else text[:57] + '...'} ({type(item).__name__})"


# ---------------------------------------------------------------------------------------- encodings


def _encoding(item: Any) -> Mapping[str, Any] | None:
    """What a tokenizer gave, by its keys: transformers' BatchEncoding, a row of a data set, or an Encoding of `tokenizers`."""
    if isinstance(item, Mapping):
        return item
    if hasattr(item, "ids") and hasattr(item, "attention_mask"):
        return {"input_ids": item.ids, "attention_mask": item.attention_mask}
    return None


def _rows(encoding: Mapping[str, Any]) -> tuple[list[Any], bool]:
    """An encoding of several prompts, row by row."""
    ids = encoding.get("input_ids")
    is_table = ids.ndim == 2 if isinstance(ids, Tensor | np.ndarray) else isinstance(ids, Sequence) and bool(ids) and not _is_whole(ids[0])
    if not is_table:
        return [encoding], False
    assert ids is not None
    given = {key: value for key, value in encoding.items() if value is not None}
    for key, value in given.items():
        if not hasattr(value, "__len__") or len(value) != len(ids):
            raise InputError(f"tokens: {key} has not the {len(ids)} rows of input_ids; expected one for each prompt.")
    return [{key: value[row] for key, value in given.items()} for row in range(len(ids))], True


def _encoded_ids(encoding: Mapping[str, Any], number: int) -> Int[Tensor, " positions"]:
    """The real tokens of one prompt's encoding. Raises InputError for keys that would change what the model computes."""
    given = {key: value for key, value in encoding.items() if value is not None and key not in _BESIDE}
    if "input_ids" not in given:
        keys = ", ".join(map(repr, encoding)) or "none"
        raise InputError(f"tokens: prompt {number} is a dict without input_ids (its keys: {keys}); {EXPECTED}.")
    ids = _int_ids(given.pop("input_ids"), number)
    mask, kinds, places = (given.pop(key, None) for key in ("attention_mask", "token_type_ids", "position_ids"))
    if given:
        raise InputError(
            f"tokens: prompt {number} has the key {next(iter(given))!r}, which attrib does not compute with; "
            "expected input_ids and attention_mask. Take it out."
        )
    shown = torch.ones_like(ids) if mask is None else torch.as_tensor(mask)
    real = unpadded(ids, shown, f"prompt {number}")
    if kinds is not None and bool(torch.as_tensor(kinds).any()):
        raise InputError(f"tokens: prompt {number} has token_type_ids that are not 0, which no model here has. Take them out.")
    if places is not None:
        at = torch.as_tensor(places)
        if at.shape != ids.shape or at[shown != 0].tolist() != list(range(len(real))):
            raise InputError(
                f"tokens: prompt {number} has position_ids that are not 0 to {len(real) - 1} at its real tokens; attrib counts from the "
                "first of them. Take them out."
            )
    return real


def unpadded(
    ids: Int[Tensor, " padded"] | Sequence[int], mask: Tensor | Sequence[int] | Sequence[bool], where: str
) -> Int[Tensor, " positions"]:
    """The ids that a mask shows, int64: what a prompt is without its padding, on whichever side that lies.

    Args:
        ids: token ids with padding before or behind them.
        mask: of the same length, 1 or True where a token is real.
        where: names the prompt in errors, such as "prompt 3".

    Raises:
        InputError: where the mask has another length, other values, shows nothing, or hides a token between those that it shows:
            attrib counts positions from the first token and leaves none out.
    """
    ids, shown = torch.as_tensor(ids), torch.as_tensor(mask)
    if ids.ndim != 1 or shown.shape != ids.shape:
        raise InputError(
            f"attention_mask: {where} has ids of shape {list(ids.shape)} and a mask of {list(shown.shape)}; expected one length."
        )
    if bool(((shown != 0) & (shown != 1)).any()):
        raise InputError(f"attention_mask: that of {where} holds other values than 0 and 1; expected 1 where a token is real.")
    real = shown.nonzero().flatten()
    if not len(real):
        raise InputError(f"attention_mask: that of {where} is 0 everywhere; expected 1 at one token at least.")
    first, last = int(real[0]), int(real[-1])
    if len(real) <= last - first:
        hole = first + int((shown[first : last + 1] == 0).nonzero()[0, 0])
        raise InputError(
            f"attention_mask: that of {where} hides position {hole} between tokens that it shows; only padding at the ends is left out. "
            "Take that token out of the ids."
        )
    return ids[first : last + 1].to(torch.int64)


def _is_bare(item: Any) -> bool:
    """Whether these are ids that come without a mask."""
    if isinstance(item, str) or _is_chat(item):
        return False
    encoding = _encoding(item)
    return encoding is None or encoding.get("attention_mask") is None


def _warn_of_padding(model: Model, bare: Iterable[tuple[int, Tensor]]) -> None:
    """Warn of ids that begin or end in pad tokens, where nothing says that they are padding."""
    pad, run = (model.tokenizer.pad, model.tokenizer.pad_run) if model.tokenizer else (None, 1)
    if pad is None:
        return
    found = [number for number, ids in bare if len(ids) > run and any(bool((end == pad).all()) for end in (ids[:run], ids[-run:]))]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        warn(
            f"tokens: prompt {found[0]}{more} begin or end in pad tokens (id {pad}), which are computed as tokens like any other. Give the "
            "tokenizer's whole encoding, with its attention_mask, or cut them off."
        )


# ------------------------------------------------------------------------------------------- labels


def token_ids(model: Model, tokens: int | str | Sequence[int | str], argument: str) -> Int[Tensor, " tokens"]:
    """Vocabulary ids from ids and strings. Raises InputError for a string that is not one token."""
    given = [tokens] if isinstance(tokens, int | str) else list(tokens)
    ids = [_single_token(model, token, argument) if isinstance(token, str) else int(token) for token in given]
    if outside := [number for number in ids if not 0 <= number < model.config.d_vocab]:
        raise InputError(f"{argument}: token id {outside[0]} is outside the vocabulary of {model.config.d_vocab}.")
    if not ids:
        raise InputError(f"{argument}: no tokens given; expected at least one id or string.")
    return torch.tensor(ids, device=model.device)


def _single_token(model: Model, text: str, argument: str) -> int:
    tokenizer = tokenizer_of(model, argument)
    try:
        found = tokenizer.encode(text)
    except InputError as error:
        raise InputError(f"{argument}: {text!r} {error}") from error
    if len(found) != 1:
        pieces = [_label(tokenizer, number) for number in found]
        raise InputError(
            f"{argument}: {text!r} is {len(found)} tokens ({pieces}); expected one. A leading space often matters, as in ' Paris'."
        )
    if found[0] == tokenizer.unknown and text.strip() not in (tokenizer.decode(found).strip(), tokenizer.special.get(found[0])):
        known = _label(tokenizer, found[0])
        raise InputError(f"{argument}: {text!r} is no token of the vocabulary, which has {known!r} for what it does not know.")
    return found[0]


def token_strings(model: Model, ids: Int[Tensor, " tokens"]) -> tuple[str, ...]:
    """Each token as it reads in context, or its id where the model has no tokenizer."""
    tokenizer = model.tokenizer
    return tuple(map(str, ids.tolist())) if tokenizer is None else tuple(_label(tokenizer, number) for number in ids.tolist())


def _label(tokenizer: Tokenizer, number: int) -> str:
    return tokenizer.label(number) if tokenizer.label else tokenizer.decode([number]) or unnamed(number)


def tokenizer_of(model: Model, argument: str) -> Tokenizer:
    """The model's tokenizer, or an error that says what to give in place of text."""
    if model.tokenizer is None:
        raise InputError(f"{argument}: got text, but {model.name} has no tokenizer; give token ids.")
    return model.tokenizer
