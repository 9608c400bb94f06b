"""`logits=` as people write it: tokens, or a number of the largest; or one clear error."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

import attrib
from attrib.adapters.models.text import from_tokenizers
from attrib.core.types import Difference, Direction, InputError, TokenLogits, TopLogits
from attrib.models.tokens import token_ids
from attrib.paths.targets import as_logits
from tests.support.attribution_cases import characters
from tests.support.builders import build, dictionary, prompt
from tests.support.silent_tokens import wordpiece, words


@pytest.mark.few
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("A", TokenLogits(("A",))),
        (["A", 5], TokenLogits(("A", 5))),
        ((np.int64(3), torch.tensor(4)), TokenLogits((3, 4))),
        (torch.tensor([3, 4]), TokenLogits((3, 4))),
        (np.array([3, 4]), TokenLogits((3, 4))),
        (10, TopLogits(10)),
        (np.int32(10), TopLogits(10)),
        (TopLogits(np.int64(3), 0.5), TopLogits(3, 0.5)),
        (TokenLogits("A"), TokenLogits(("A",))),
        (TokenLogits([np.int64(3)]), TokenLogits((3,))),
        (Difference("A", [np.int64(3), "B"]), Difference("A", (3, "B"))),
    ],
    ids=repr,
)
def test_what_is_meant_is_taken(given: Any, meant: Any):
    model, source, ids = characters(build("gpt2")), dictionary("standard"), prompt(5)
    assert as_logits(given) == meant
    assert repr(as_logits(given)) == repr(meant)  # as results store it
    got, want = (attrib.latent_to_logit(model, source, ids, logits=logits) for logits in (given, meant))
    assert got.targets.labels == want.targets.labels
    assert torch.equal(got.attribution, want.attribution)
    assert attrib.path(model, source, given, ids).labels == want.targets.labels
    assert attrib.plan(model, source, given, ids).flops == attrib.plan(model, source, meant, ids).flops


@pytest.mark.parametrize(
    "given", [None, 1.5, True, ["A", 0.5], {"A": 1}, {"A"}, b"A", [["A"]], [True], TokenLogits([None]), TopLogits(2.5)], ids=repr
)
def test_what_is_no_choice_of_logits(given: Any):
    model, source, ids = build("gpt2"), dictionary("standard"), prompt(5)
    for call in (attrib.path, attrib.plan):
        with pytest.raises(InputError, match=r"logits: .*; expected TopLogits\(k, mass\), TokenLogits"):
            call(model, source, given, ids)
    with pytest.raises(InputError, match="the k largest"):
        attrib.latent_to_logit(model, source, ids, logits=given)


def test_a_direction_is_left_as_it_is():
    given = Direction(torch.ones(32))
    assert as_logits(given) is given


pytest.importorskip("transformers", exc_type=ImportError)  # of which the cases below are made
UNIGRAM = Tokenizer(models.Unigram([("<u>", 0.0), ("cat", -1.0)], unk_id=0))


@pytest.mark.parametrize(
    ("backend", "name"), [(words().backend_tokenizer, "a"), (wordpiece(), "[UNK]"), (UNIGRAM, "<u>")], ids=["words", "wordpiece", "unigram"]
)
def test_a_word_that_the_vocabulary_does_not_have_is_not_its_unknown_token(backend: Any, name: str):
    model = replace(build("gpt2"), tokenizer=from_tokenizers(backend))
    with pytest.raises(InputError, match=rf"logits: '❄' is no token of the vocabulary, which has ' ?{re.escape(name)}' for what it does"):
        attrib.latent_to_logit(model, dictionary("standard"), [[3, 4]], logits=["❄"])
    if name != "<u>":  # which is not a token that text can name here
        assert token_ids(model, name, "logits").tolist() == [backend.token_to_id(name)]
