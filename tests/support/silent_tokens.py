"""Small tokenizers of every kind, and tiny models that take their text, for the tests of what is taken as prompts."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel

import attrib
from attrib.models.transformer import Model
from tests.support.builders import tiny

WORDS = ["<s>", "</s>", "<pad>", "first", "second", "the", "cat", "sat", "on", "a", "mat", "dog", "ran"]
CHAT = "{% for m in messages %}<s> {{ m.role }} {{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}<s> first {% endif %}"


def words(template: str | None = None, *, specials: Iterable[str] = ("<s>", "</s>", "<pad>"), chat: bool = False, **names: str) -> Any:
    """A transformers tokenizer of whole words, with a template such as "<s> $A </s>"."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([*specials])
    if template is not None:
        around = {word: WORDS.index(word) for word in template.split() if word != "$A"}
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[*around.items()])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | names))
    if chat:
        made.chat_template = CHAT
    return made


@lru_cache
def _hugging_face() -> Any:
    return tiny("gpt2", torch.float64, n_layers=2, vocab_size=300)


def original() -> Any:
    """The transformers model behind `model`."""
    return _hugging_face()


def model(tokenizer: Any = None) -> Model:
    """A tiny GPT-2 in float64, with this tokenizer."""
    return attrib.from_hugging_face(_hugging_face(), tokenizer)


def metaspace() -> Tokenizer:
    """As sentencepiece has it: ▁ for a space, and a piece for each byte that has no other."""
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), ("▁Paris", -1.0), ("Paris", -2.0), ("ish", -1.5)]
    pieces += [("▁", -3.0), ("▁is", -1.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]  # as Llama's
    )
    return made


def wordpiece() -> Tokenizer:
    """As BERT has it: ## where a word goes on."""
    pieces = ["[UNK]", "play", "##ing", "ing", ".", "##."]
    made = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(["[UNK]"])
    return made


def byte_level() -> Tokenizer:
    """As GPT-2 has it: every byte a character."""
    alphabet = sorted(ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate([*alphabet, "Ġt", "<|end|>"])}
    made = Tokenizer(models.BPE(vocab, [("Ġ", "t")]))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    return made


def panicking() -> Tokenizer:
    """One whose pattern gives up, in a panic, at a long run of a's."""
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    from tokenizers import Regex

    made.normalizer = normalizers.Replace(Regex(r"(a+)+$"), "a")
    return made
