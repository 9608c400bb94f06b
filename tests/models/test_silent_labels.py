"""Labels of tokens are distinct, show spaces, and read as the text does."""

from typing import Any

import pytest
import torch

import attrib
from attrib.adapters.models.text import backend_labels
from attrib.core.labels import labels_of
from attrib.models.tokens import to_prompts, token_strings
from attrib.models.transformer import Model
from tests.support.silent_tokens import byte_level, metaspace, wordpiece
from tests.support.silent_tokens import model as with_tokenizer


@pytest.fixture(scope="module")
def smollm2(smollm2_folder: Any) -> Model:
    return attrib.load_model("smollm2-135m")


def test_every_token_of_a_real_vocabulary_has_a_label_of_its_own(smollm2: Model):
    labels = token_strings(smollm2, torch.arange(smollm2.config.d_vocab))
    assert len({*labels}) == smollm2.config.d_vocab
    assert "" not in labels
    for number in (*range(0, smollm2.config.d_vocab, 97),):
        text = smollm2.tokenizer.decode([number])
        assert "\ufffd" in text or labels[number] == text, number  # what is whole reads as it decodes


def test_labels_of_a_prompt_join_to_its_text(smollm2: Model):
    text = "The Eiffel tower is in Paris,\n  where else? naïve <|im_end|>"
    assert "".join(token_strings(smollm2, to_prompts(smollm2, text)[0])) == text


@pytest.mark.parametrize("make", [metaspace, wordpiece, byte_level])
def test_labels_are_distinct_in_every_kind_of_vocabulary(make: Any):
    tokenizer = make()
    labels = backend_labels(tokenizer)
    assert {*labels} == {*range(tokenizer.get_vocab_size())}
    assert len({*labels.values()}) == len(labels)
    assert all(labels.values())


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (metaspace, {"▁Paris": " Paris", "Paris": "Paris", "ish": "ish", "▁": " ", "<0x20>": "<0x20>", "<0xE2>": "<0xE2>", "<0x0A>": "\n"}),
        (wordpiece, {"play": " play", "##ing": "ing", "ing": " ing", ".": ".", "##.": "##.", "[UNK]": "[UNK]"}),
        (byte_level, {"Ġt": " t", "Ġ": " ", "Ċ": "\n", "A": "A", "â": "<0xE2>", "<|end|>": "<|end|>"}),
    ],
)
def test_labels_read_as_the_token_does_in_context(make: Any, wanted: dict[str, str]):
    tokenizer = make()
    labels = backend_labels(tokenizer)
    assert {piece: labels[tokenizer.token_to_id(piece)] for piece in wanted} == wanted


def test_a_prompt_shows_its_spaces():
    from transformers import PreTrainedTokenizerFast

    model = with_tokenizer(PreTrainedTokenizerFast(tokenizer_object=wordpiece(), unk_token="[UNK]"))
    assert token_strings(model, to_prompts(model, "play playing")[0]) == (" play", " play", "ing")


def test_rows_of_the_vocabulary_without_text_are_named_by_their_id():
    from transformers import PreTrainedTokenizerFast

    model = with_tokenizer(PreTrainedTokenizerFast(tokenizer_object=wordpiece(), unk_token="[UNK]"))
    assert token_strings(model, torch.tensor([5, 6, 299])) == ("##.", "<id 6>", "<id 299>")


def test_tokens_that_read_alike_carry_their_id():
    assert labels_of({0: "x", 1: "X", 2: "x", 3: ""}, lambda pieces: "".join(pieces).lower(), ()) == {
        0: "x",
        1: "X",
        2: "x<id 2>",
        3: "<id 3>",
    }
