"""What a model says of an answer: ranks, probabilities and the most probable tokens, against transformers' own model with hooks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Ablate, AnswerRanks, Latents, Set, answer_ranks
from attrib.core.types import InputError, NotFiniteError
from tests.support.builders import FAMILIES, build, prompt, tiny
from tests.support.task_cases import LAYERS, hooked, saes
from tests.support.tolerances import assert_close

IDS, ANSWER = prompt(6, seed=4), [11, 3, 40]


@pytest.fixture(autouse=True)
def _exact(exact_rms_norm: None) -> None:
    """float64 models compute in float64."""


def one_by_one(theirs: Any, answer: list[int]) -> list[Tensor]:
    """The logits before each token of an answer, with a pass for each."""
    with torch.no_grad():
        read = [torch.cat([IDS, torch.tensor(answer[:done], dtype=torch.int64)]) for done in range(len(answer))]
        return [theirs(ids[None], use_cache=False).logits[0, -1] for ids in read]


def check(found: AnswerRanks, want: list[Tensor], answer: list[int], k: int) -> None:
    assert found.position.tolist() == [len(IDS) - 1 + n for n in range(len(answer))]
    assert found.token.tolist() == answer
    for row, (logits, token) in enumerate(zip(want, answer, strict=True)):
        order = sorted(range(len(logits)), key=lambda n: -float(logits[n]))
        assert int(found.rank[row]) == order.index(token)
        assert found.top[row].tolist() == order[:k]
        shares = logits.exp() / logits.exp().sum()
        assert_close(found.logit[row], logits[token])
        assert_close(found.probability[row], shares[token])
        assert_close(found.top_logit[row], logits[order[:k]])
        assert_close(found.top_probability[row], shares[order[:k]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_answers_as_transformers_does(family: Any, dtype: torch.dtype) -> None:
    for answer in (ANSWER, ANSWER[:1]):
        found = answer_ranks(build(family, dtype), IDS, answer, k=7)
        check(found, one_by_one(tiny(family, dtype), answer), answer, 7)
    for alike in (11, np.int64(11), torch.tensor(11), np.array([11]), torch.tensor([11]), (np.int32(11),)):
        assert torch.equal(answer_ranks(build(family, dtype), IDS, alike).logit, found.logit), "one token, whatever says it"
    assert answer_ranks(build(family, dtype), IDS, 11, k=1000).top.shape == (1, 60), "no more tokens than there are"


@pytest.mark.few
@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu"])
def test_dictionaries_stand_alone_or_with_what_they_leave_out(kind: str) -> None:
    theirs, put_in, model = tiny("llama", torch.float64), saes(kind, torch.float64), build("llama", torch.float64)
    with hooked(theirs, put_in):
        want = one_by_one(theirs, ANSWER)
    check(answer_ranks(model, IDS, ANSWER, [*put_in.values()], k=5), want, ANSWER, 5)
    for errors in (True, "live"):
        check(answer_ranks(model, IDS, ANSWER, [*put_in.values()], errors=errors), one_by_one(theirs, ANSWER), ANSWER, 10)


@pytest.mark.few
@pytest.mark.parametrize(
    ("positions", "at"),
    [(None, range(8)), ("-1:", range(5, 8)), (slice(2, None), range(2, 8)), (-1, [5]), ([0, -2], [0, 4]), ("1:3", [1, 2])],
)
def test_positions_are_the_prompt_s_and_open_ones_go_on(positions: Any, at: Any) -> None:
    theirs, put_in, model = tiny("gpt2", torch.float64), saes("standard", torch.float64), build("gpt2", torch.float64)

    def become(layer: int, latents: Tensor) -> Tensor:
        if layer == LAYERS[1]:
            latents = latents.clone()
            latents[:, [p for p in at if p < latents.shape[1]]] = 0
        return latents

    with hooked(theirs, put_in, become):
        want = one_by_one(theirs, ANSWER)
    found = answer_ranks(model, IDS, ANSWER, [*put_in.values()], Ablate(Latents(1), positions=positions))
    check(found, want, ANSWER, 10)


def test_every_option_is_intervene_s() -> None:
    model, put_in = build("llama", torch.float64), [*saes("topk", torch.float64).values()]
    edit = Set(Latents(0, 3), 2.0, -1)
    options = {"errors": [True, "live"], "effect": ["direct", "total"], "policy": attrib.LINEAR, "dtype": "float32"}
    found = answer_ranks(model, IDS, ANSWER[0], put_in, edit, **options)
    want = attrib.causal.intervene(model, put_in, IDS, edit, **options)[-1]
    assert_close(found.top_logit[0], want[found.top[0]])
    assert found.logit.dtype == torch.float32


def test_tokens_that_are_equally_probable_stand_in_their_order() -> None:
    model = build("gpt2")
    flat = model.params._replace(W_U=torch.zeros_like(model.params.W_U), b_U=torch.zeros_like(model.params.b_U))
    found = answer_ranks(replace(model, params=flat), IDS, [7], k=4)
    assert (found.rank.tolist(), found.top.tolist()) == ([0], [[0, 1, 2, 3]])


def test_text_is_read_without_what_stands_before_a_prompt(smollm2_folder: Any) -> None:
    model = attrib.load_model("smollm2-135m")
    found = answer_ranks(model, "The Eiffel tower is in the city of", " Paris, France", k=3)
    assert found.texts == (" Paris", ",", " France")
    assert found.rank.tolist() == [0, 0, 0]
    assert float(found.probability[0]) == pytest.approx(0.577, abs=1e-3)
    assert found.top_texts[0][0] == " Paris"
    table, top = found.to_pandas(), found.top_to_pandas()
    assert table.token.tolist() == [" Paris", ",", " France"]
    assert table.position.tolist() == [8, 9, 10]
    assert top.groupby("position").probability.max().tolist() == pytest.approx(table.probability.tolist())
    assert top["rank"].tolist() == [0, 1, 2] * 3
    assert top.token.tolist()[:3] == [*found.top_texts[0]]


@pytest.mark.parametrize(
    ("answer", "options", "said"),
    [
        ([], {}, r"answer: \[\] has no tokens; expected at least one"),
        (" x", {}, "^answer: got text, but .* has no tokenizer"),
        (1.5, {}, "answer: a float; expected text"),
        ([3, 60], {}, "answer: 60; expected token ids from 0 to 59"),
        ([True], {}, "answer: True; expected token ids"),
        (True, {}, "answer: a bool; expected text"),
        (torch.tensor([0.5]), {}, "answer: 0.5; expected token ids"),
        ([1] * 60, {}, "answer: 60 tokens behind a prompt of 6, and the context of .* is 64"),
        (1, {"k": 0}, "k: 0; expected a whole number of at least 1"),
        (1, {"edits": Ablate("blocks.1.hook_mlp_out", positions=6)}, r"positions: \[6\] for prompt 0, which has 6 tokens"),
        ([1, 2], {"edits": Ablate("blocks.1.hook_mlp_out", positions=6)}, r"positions: \[6\] for prompt 0, which has 6 tokens"),
        ([1, 2], {"edits": Ablate("blocks.1.hook_mlp_out", positions="::2")}, "positions in steps do not go on behind the prompt"),
    ],
)
def test_what_is_no_answer_is_refused(answer: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        answer_ranks(build("gpt2"), IDS, answer, **options)


def test_several_prompts_and_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="tokens: 2 prompts"):
        answer_ranks(build("gpt2"), [IDS, IDS], 1)
    model = build("gpt2")
    wrong = model.params._replace(b_U=torch.full_like(model.params.b_U, torch.nan))
    with pytest.raises(NotFiniteError, match="the logits"):
        answer_ranks(replace(model, params=wrong), IDS, 1)
