"""Padding is left out: what a mask hides is no token of a prompt, on either side."""

import warnings
from typing import Any

import pytest
import torch

import attrib
from attrib.core.types import AttribWarning, InputError
from attrib.models.tokens import to_prompts, unpadded
from tests.support.builders import dictionary
from tests.support.silent_tokens import model as with_tokenizer
from tests.support.silent_tokens import original, words


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        ([7, 8, 0, 0], [1, 1, 0, 0]),
        ([0, 0, 7, 8], [0, 0, 1, 1]),
        ([0, 7, 8, 0], [False, True, True, False]),
        (torch.tensor([7, 8]), torch.tensor([True, True])),
    ],
)
def test_what_a_mask_hides_at_the_ends_is_left_out(ids: Any, mask: Any):
    found = unpadded(ids, mask, "prompt 3")
    assert found.tolist() == [7, 8]
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([1, 0, 1], "prompt 3 hides position 1 between"),
        ([0, 0, 0], "prompt 3 is 0 everywhere"),
        ([1, 2, 1], "prompt 3 holds other values"),
        ([1, 1], r"prompt 3 has ids of shape \[3\] and a mask of \[2\]"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask: Any, says: str):
    with pytest.raises(InputError, match=says):
        unpadded([5, 6, 7], mask, "prompt 3")


# ------------------------------------------------------------------------------------ in attributions

TEXTS = ["the cat sat on a mat", "a dog ran"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_encoding_gives_what_each_prompt_gives_alone(side: str):
    tokenizer = words()
    model, target = with_tokenizer(tokenizer), dictionary("standard", "blocks.1.hook_resid_pre", torch.float64)
    tokenizer.padding_side = side
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert not bool(batch["attention_mask"].all())
    got = attrib.latent_to_logit(model, target, batch, logits=attrib.TokenLogits([5]))
    alone = attrib.latent_to_logit(
        model, target, [torch.tensor(tokenizer(text).input_ids) for text in TEXTS], logits=attrib.TokenLogits([5])
    )
    assert got.targets.position.tolist() == [5, 2]
    assert torch.equal(got.prompts.ids, alone.prompts.ids)
    assert torch.equal(got.attribution, alone.attribution)
    with torch.no_grad():
        own = original()(**tokenizer(TEXTS[1], return_tensors="pt")).logits[0, -1, 5]
    assert float(got.targets.activation[1]) == pytest.approx(float(own), rel=1e-9)


def test_rows_of_a_data_set_have_their_own_masks():
    rows = [{"input_ids": [5, 6, 2], "attention_mask": [1, 1, 0]}, {"input_ids": [2, 7], "attention_mask": [0, 1]}]
    assert [ids.tolist() for ids in to_prompts(with_tokenizer(words()), rows)] == [[5, 6], [7]]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"attention_mask": [[1, 0, 1]]}, "prompt 0 hides position 1"),
        ({"token_type_ids": [[0, 0, 1]]}, "prompt 0 has token_type_ids that are not 0"),
        ({"position_ids": [[3, 4, 5]]}, "prompt 0 has position_ids that are not 0 to 2"),
        ({"inputs_embeds": [[[0.0]]]}, "prompt 0 has the key 'inputs_embeds'"),
        ({"attention_mask": [[1, 1, 1]] * 2}, "attention_mask has not the 1 rows of input_ids"),
    ],
)
def test_what_an_encoding_says_beside_its_ids_is_heeded_or_refused(more: Any, says: str):
    with pytest.raises(InputError, match=says):
        to_prompts(with_tokenizer(words()), {"input_ids": [[5, 6, 7]], **more})


def test_what_an_encoding_says_in_vain_is_passed_over():
    more = {"token_type_ids": [[0, 0, 0]], "position_ids": [[1, 0, 1]], "attention_mask": [[0, 1, 1]], "special_tokens_mask": [[1, 0, 0]]}
    assert to_prompts(with_tokenizer(words()), {"input_ids": [[2, 6, 7]], **more})[0].tolist() == [6, 7]


@pytest.mark.parametrize(
    ("pad", "ids", "warns"),
    [
        ("<pad>", [5, 6, 2], True),
        ("<pad>", [2, 5, 6], True),
        ("<pad>", [5, 2, 6], False),
        ("</s>", [5, 6, 1], False),  # what ends a text
        ("</s>", [5, 6, 1, 1], True),
        ("<s>", [0, 5, 6], False),
        ("<s>", [0, 0, 5], True),
    ],
)
def test_ids_that_seem_padded_raise_a_warning(pad: str, ids: list[int], warns: bool):
    model = with_tokenizer(words(pad_token=pad))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert to_prompts(model, [[5, 6], ids])[1].tolist() == ids
        to_prompts(model, {"input_ids": ids, "attention_mask": [1] * len(ids)})  # which says that they are none
    assert [(one.category, "prompt 1 begin or end in pad tokens" in str(one.message)) for one in caught] == [(AttribWarning, True)] * warns
    assert all(one.filename == __file__ for one in caught)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_tensor_raises_a_warning_where_it_is_captured(side: str):
    model = with_tokenizer(words())
    ids = torch.tensor([[5, 6, 7], [2, 5, 6] if side == "left" else [5, 6, 2]])
    with pytest.warns(AttribWarning, match="prompt 1 begin or end in pad tokens"):
        attrib.forward(model, ids)
    with pytest.warns(AttribWarning, match="prompt 1 begin or end in pad tokens"):
        attrib.capture(model, ids, ["blocks.1.hook_resid_pre"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.func.vmap(lambda row: attrib.forward(model, row))(ids)  # where nothing can be looked at
        attrib.forward(model, ids[:1])
