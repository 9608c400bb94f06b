"""Differences, predictions and effects of latents on labelled prompts, against loops over transformers' model with sae-lens hooked in."""

from typing import Any

import pytest
import torch

import attrib
from attrib.causal import tasks
from attrib.causal.tasks import Effects, Example, Item, encoded, latent_effects, logit_differences
from attrib.core.types import BudgetError, InputError, NotFiniteError
from tests.support.builders import FAMILIES, build, prompt, tiny
from tests.support.task_cases import ANSWERS, LABELS, difference, each_latent, examples, hooked, last_logits, saes

CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}


@pytest.fixture(autouse=True)
def _exact(exact_rms_norm: None) -> None:
    """float64 models compute in float64."""


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_says_what_transformers_says_of_each_prompt(family: Any, dtype: torch.dtype) -> None:
    theirs, cases = tiny(family, dtype), examples()
    with torch.no_grad():
        logits = [last_logits(theirs, each.prompt) for each in cases]
    found = logit_differences(build(family, dtype), cases)
    for row, (own, each) in enumerate(zip(logits, cases, strict=True)):
        torch.testing.assert_close(found.difference[row], difference(own, each), **CLOSE[dtype])
        answer = each.answers[each.label]
        right = own.softmax(-1)[[answer] if isinstance(answer, int) else list(answer)].sum()
        torch.testing.assert_close(found.probability[row], right, **CLOSE[dtype])
        torch.testing.assert_close(found.loss[row], -right.log(), **CLOSE[dtype])
        assert found.said[row] == own.argmax()
        best = [float(own[[answer] if isinstance(answer, int) else list(answer)].max()) for answer in each.answers]
        assert found.prediction[row] == best.index(max(best))
        assert found.correct[row] == (best.index(max(best)) == each.label)


def test_the_label_gives_the_sign_and_says_what_is_correct() -> None:
    ids = prompt(6)
    one, other = logit_differences(build("gpt2"), [Example(ids, (3, 11), 0), Example(ids, (3, 11), 1)]).difference.tolist()
    assert one == -other != 0
    assert logit_differences(build("gpt2"), [Example(ids, (3, 11), 0), Example(ids, (3, 11), 1)]).correct.sum() == 1


@pytest.mark.few
@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dictionaries_in_the_pass_say_what_hooked_ones_say(family: Any, kind: str) -> None:
    theirs, put_in = tiny(family, torch.float64), saes(kind, torch.float64)
    found = logit_differences(build(family, torch.float64), examples(), [*put_in.values()])
    base = logit_differences(build(family, torch.float64), examples())
    for row, each in enumerate(examples()):
        with torch.no_grad(), hooked(theirs, put_in):
            expected = difference(last_logits(theirs, each.prompt), each)
        torch.testing.assert_close(found.difference[row], expected, rtol=1e-9, atol=1e-9)
    assert (found.difference - base.difference).abs().min() > 1e-3
    whole = logit_differences(build(family, torch.float64), examples(), [*put_in.values()], errors=True)
    torch.testing.assert_close(whole.difference, base.difference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("by", ["gradient", "ablation"])
@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_those_of_one_pass_for_each_latent(family: Any, positions: str, by: Any) -> None:
    theirs, put_in, cases = tiny(family, torch.float64), saes("topk", torch.float64), examples()[1:]
    found = latent_effects(build(family, torch.float64), cases, [*put_in.values()], by=by, positions=positions)
    expected = []
    for number, each in enumerate(cases):
        at = [len(each.prompt) - 1] if positions == "last" else range(len(each.prompt))
        expected += [(number, *row) for row in each_latent(theirs, put_in, each, list(at), by)]
    got = list(zip(found.prompt.tolist(), found.dictionary.tolist(), found.latent.tolist(), strict=True))
    assert got == [row[:3] for row in expected]
    torch.testing.assert_close(found.activation, torch.tensor([row[3] for row in expected], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.effect, torch.tensor([row[4] for row in expected], dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("by", ["gradient", "ablation"])
def test_dictionaries_of_heads_are_no_other(by: Any) -> None:
    """As hook_z SAEs of two layers of GPT-2 are."""
    theirs, put_in = tiny("gpt2", torch.float64), saes("standard", torch.float64, "hook_z")
    found = latent_effects(build("gpt2", torch.float64), examples(), [*put_in.values()], by=by)
    expected = [row for each in examples() for row in each_latent(theirs, put_in, each, [len(each.prompt) - 1], by)]
    assert list(zip(found.dictionary.tolist(), found.latent.tolist(), strict=True)) == [row[:2] for row in expected]
    torch.testing.assert_close(found.effect, torch.tensor([row[3] for row in expected], dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_with_errors_effects_are_those_of_latent_to_logit() -> None:
    model, put_in = build("llama", torch.float64), saes("standard", torch.float64)
    first, second = (attrib.from_sae_lens(each) for each in put_in.values())
    for each, item in zip(examples(), encoded(model, examples()), strict=True):
        found = latent_effects(model, [each], [first, second], errors=True)
        what = attrib.Difference(item.right, item.wrong)
        edges = attrib.latent_to_logit(model, first, [item.ids], logits=what, cuts=[second], effect="total")
        at = edges.sources.position == len(item.ids) - 1
        row = edges.dense(0, value="attribution")[0]
        mine = found.dictionary == 0
        assert found.latent[mine].tolist() == edges.sources.latent[at].tolist()
        torch.testing.assert_close(found.effect[mine], row[at], rtol=1e-9, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("errors", [False, True])
def test_ablations_are_the_same_in_every_way_and_say_whether_the_answer_stays(errors: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, put_in = build("gpt2", torch.float64), [*saes("standard", torch.float64).values()]

    def found(budget: Any) -> Effects:
        return latent_effects(model, examples(), put_in, by="ablation", errors=errors, budget=budget)

    ways = [found("1GiB"), found(30_000)]
    with pytest.raises(BudgetError):
        found(1000)
    monkeypatch.setattr(tasks.effects, "_alone", lambda *_: None)
    ways += [found("1GiB"), found(0)]
    for other in ways[1:]:
        torch.testing.assert_close(other.effect, ways[0].effect, rtol=1e-9, atol=1e-12)
        assert other.kept.tolist() == ways[0].kept.tolist()
    points = logit_differences(model, examples(), put_in, errors=errors)
    for number in range(2):  # of one token each, so the difference is the margin
        rows = ways[0].prompt == number
        assert ways[0].kept[rows].tolist() == (points.difference[number] - ways[0].effect[rows] > 0).tolist()


def test_gradients_are_there_in_inference_mode() -> None:
    """Which Lightning predicts in."""
    model, put_in = build("llama"), [*saes("topk", torch.float32).values()]
    expected = latent_effects(model, examples(), put_in)
    with torch.inference_mode():
        found = latent_effects(model, examples(), put_in)
    torch.testing.assert_close(found.effect, expected.effect)


def test_nothing_active_is_no_rows() -> None:
    quiet = saes("jumprelu", torch.float32)[1]
    with torch.no_grad():
        quiet.threshold.fill_(1e6)
    for by in ("gradient", "ablation"):
        assert len(latent_effects(build("gpt2"), examples(), [quiet], by=by).latent) == 0


def test_items_know_right_from_wrong() -> None:
    items = encoded(build("gpt2"), examples())
    assert [(item.right, item.wrong) for item in items] == [((3,), (11,)), ((3,), (11,)), ((7, 8), (40,)), ((30,), (2, 59))]
    assert (len(ANSWERS), LABELS) == (len(items), tuple(item.label for item in items))
    assert isinstance(items[0], Item)


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (Example(prompt(4), (3,)), "expected a list of at least two"),
        (Example(prompt(4), "no"), "expected a list of at least two"),
        (Example(prompt(4), (3, 4), 2), "label 2; expected the number of an answer, 0 to 1"),
        (Example(prompt(4), (3, 4), True), "label True"),
        (Example(prompt(4), (3, (4, 3))), "the token 3 in two answers"),
        (Example(prompt(4), (3, 60)), "token id 60 is outside the vocabulary"),
        (Example(prompt(4), (3, 4.0)), "answer 4.0; expected a token"),
        (Example(prompt(4), (3, ())), "no tokens given"),
        (Example(torch.zeros(0, dtype=torch.int64), (3, 4)), "0 tokens"),
        (Example(prompt(65), (3, 4)), "65 tokens"),
        (Example("text", (3, 4), where="a.jsonl, line 7"), "a.jsonl, line 7"),
        ("text", "expected an attrib.causal.tasks.Example"),
    ],
)  # fmt: skip
def test_what_is_no_example_is_refused_by_its_number(example: Any, said: str) -> None:
    with pytest.raises(InputError, match="examples: example 1") as caught:
        encoded(build("gpt2"), [Example(prompt(4), (3, 4)), example])
    assert said in str(caught.value)


def test_what_cannot_be_computed_is_refused() -> None:
    model, own = build("gpt2"), saes("topk", torch.float32)[1]
    with pytest.raises(InputError, match="batch: no examples"):
        logit_differences(model, [])
    with pytest.raises(InputError, match="dictionaries: none given"):
        latent_effects(model, examples(), [])
    with pytest.raises(InputError, match="by: 'patching'"):
        latent_effects(model, examples(), [own], by="patching")
    with pytest.raises(InputError, match="positions"):
        latent_effects(model, examples(), [own], positions=4)
    with pytest.raises(InputError, match="both replace"):
        logit_differences(model, examples(), [own, own])
    broken = model.params._replace(W_U=model.params.W_U.clone().index_fill_(1, torch.tensor([5]), torch.nan))
    with pytest.raises(NotFiniteError, match="prompt 0"):
        logit_differences(attrib.Model(broken, model.config, "broken"), examples())
