"""What callers give as prompts is taken as they mean it, by the tokenizer's own templates, or refused in one line."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import attrib
from attrib.adapters.models.text import from_tokenizers
from attrib.core.types import InputError
from attrib.models.tokens import PromptIds, to_prompts
from tests.support.attribution_cases import characters
from tests.support.builders import build, dictionary, sae
from tests.support.hooked import hooked
from tests.support.silent_tokens import byte_level, original, panicking, words
from tests.support.silent_tokens import model as with_tokenizer
from tests.support.typed import Command

CHAT = [{"role": "the", "content": "cat sat"}]


def ids_of(tokens: Any, tokenizer: Any = None) -> list[list[int]]:
    return [ids.tolist() for ids in to_prompts(with_tokenizer(tokenizer), tokens)]


@pytest.mark.parametrize(
    ("tokens", "prompts"),
    [
        ([5, 6, 7], [[5, 6, 7]]),
        ((5, np.int32(6)), [[5, 6]]),
        (range(3), [[0, 1, 2]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (torch.tensor([[5, 6], [7, 8]], dtype=torch.int32), [[5, 6], [7, 8]]),
        (np.array([5, 6], dtype=np.uint16), [[5, 6]]),
        (np.array([[5], [6]]), [[5], [6]]),
        ([*torch.tensor([5, 6])], [[5, 6]]),
        ([torch.tensor([5]), np.array([6, 7]), [8]], [[5], [6, 7], [8]]),
        ({"input_ids": [5, 6]}, [[5, 6]]),
        ({"input_ids": torch.tensor([[5, 6]]), "attention_mask": None}, [[5, 6]]),
        ((ids for ids in ([5], [6])), [[5], [6]]),
        (np.array(["the cat", "a"]), [[5, 6], [9]]),
    ],
)
def test_what_is_meant_is_taken(tokens: Any, prompts: list[list[int]]):
    assert ids_of(tokens, words()) == prompts


@pytest.mark.parametrize("batched", [False, True])
def test_encodings_are_read_for_their_ids(batched: bool):
    tokenizer = words("<s> $A")
    given = tokenizer(["the cat", "a dog"] if batched else "the cat")
    assert ids_of(given, tokenizer) == ([[0, 5, 6], [0, 9, 11]] if batched else [[0, 5, 6]])
    assert ids_of(tokenizer.backend_tokenizer.encode("the cat"), tokenizer) == [[0, 5, 6]]


@pytest.mark.parametrize("ends", ["user", "assistant"])
def test_a_chat_goes_through_its_template(ends: str):
    tokenizer = words(chat=True)
    chat = [*CHAT, {"role": ends, "content": "a dog"}]
    want = list(tokenizer.apply_chat_template(chat, add_generation_prompt=ends == "user")["input_ids"])
    assert want.count(3) == (ends == "user")  # what asks for the assistant's words
    assert ids_of(chat, tokenizer) == [want]
    assert ids_of([chat, "the", CHAT], tokenizer)[:2] == [want, [5]]
    assert ids_of(tokenizer.apply_chat_template(chat), tokenizer) == [list(tokenizer.apply_chat_template(chat)["input_ids"])]


def test_a_chat_is_attributed_as_the_model_computes_it():
    tokenizer = words(chat=True)
    edges = attrib.latent_to_logit(with_tokenizer(tokenizer), dictionary("standard", dtype=torch.float64), CHAT, logits=4)
    with torch.no_grad():
        own = original()(**tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")).logits[0, -1]
    assert edges.targets.activation.tolist() == pytest.approx(own.topk(4).values.tolist(), rel=1e-9)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (None, r"tokens: None \(NoneType\); expected text, token ids"),
        (5, r"tokens: 5 \(int\)"),
        (b"text", "bytes"),
        ({5, 6}, "set"),
        ([], "no prompts given"),
        ([5, "the"], r"prompt 0 is 5 \(int\)"),
        ([[5, 0.5]], r"prompt 0 is \[5, 0.5\]"),
        ([True, False], r"prompt 0 is True"),
        ([None], "prompt 0 is None"),
        ([[[5]]], r"prompt 0 is \[\[5\]\]"),
        (torch.tensor([0.5]), "dtype torch.float32; expected a 1-D tensor of ints"),
        (np.array([0.5]), "prompt 0 is array"),
        (torch.zeros(1, 1, 1, dtype=torch.int64), r"shape \[1, 1, 1\]"),
        ([[1 << 70]], "beyond 64 bits"),
        ({"text": "the"}, "dict without input_ids.*'text'"),
        ([[]], "prompt 0 has 0 tokens"),
        (CHAT, "prompt 0 is a chat, and the tokenizer has no chat template"),
        ("\ud800", "prompt 0 cannot be tokenised"),
        (pd.DataFrame({"text": ["the cat"], "label": [0]}), "a DataFrame with the columns 'text', 'label'; give one of them"),
    ],
    ids=lambda given: " ".join(re.sub(" object at 0x[0-9a-f]+", "", repr(given)).split()),  # the same in every process
)
def test_what_is_no_prompt_is_refused_in_one_line(tokens: Any, says: str):
    with pytest.raises(InputError, match=says) as caught:
        to_prompts(with_tokenizer(words()), tokens)
    assert "\n" not in str(caught.value)


def test_what_arrow_has_is_no_prompt():
    pa = pytest.importorskip("pyarrow")
    test_what_is_no_prompt_is_refused_in_one_line(pa.table({"text": ["the cat"]}), "a Table with the columns 'text'; give one")
    test_what_is_no_prompt_is_refused_in_one_line(pa.array(["the cat", "a"]), "prompt 0 is .*StringScalar")


def test_a_chat_that_its_template_does_not_take():
    tokenizer = words(chat=True)
    tokenizer.chat_template = "{{ raise_exception('roles must take turns') }}"
    with pytest.raises(InputError, match="prompt 0 is a chat that the chat template does not take: roles must take turns"):
        ids_of(CHAT, tokenizer)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "the", "content": [{"type": "text", "text": "cat"}]},  # of which this template would write Python's brackets
        {"role": "the", "content": None},
        {"role": "the", "text": "cat"},
        {"role": 1, "content": "cat"},
    ],
    ids=repr,
)
def test_a_chat_whose_content_is_no_text(message: dict[str, Any]):
    with pytest.raises(InputError, match=r"prompt 0 has no text as the (content|role) of message 1; expected .*, got ") as caught:
        ids_of([*CHAT, message], words(chat=True))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------- templates


@pytest.mark.few
@pytest.mark.parametrize("template", [None, "<s> $A", "<s> $A </s>", "$A </s>", "first $A", "first second $A", "first $A second"])
def test_the_tokenizer_s_own_template_decides(template: str | None):
    tokenizer = words(template, specials=["<s>", "</s>"])  # "first" and "second" are no special tokens
    for text in ("the cat", "a", "first the"):
        assert ids_of(text, tokenizer) == [tokenizer(text).input_ids]
    assert with_tokenizer(tokenizer).tokenizer.encode("the cat") == [5, 6]


def test_text_that_begins_with_the_first_token_is_not_given_another():
    tokenizer = words("<s> $A </s>")
    assert tokenizer("<s> the").input_ids == [0, 0, 5, 1]
    assert ids_of("<s> the", tokenizer) == [[0, 5, 1]] == ids_of("the", tokenizer)


@pytest.mark.parametrize("prepends", [True, False])
@pytest.mark.parametrize("template", ["$A", "<s> $A", "<s> $A </s>"])
def test_a_transformer_lens_model_reads_what_its_own_to_tokens_gives(template: str, prepends: bool, tmp_path: Path):
    from transformers import AutoTokenizer

    words(template).save_pretrained(tmp_path)
    foreign = hooked("gpt2")
    foreign.set_tokenizer(AutoTokenizer.from_pretrained(tmp_path, local_files_only=True))  # it reads it again from where it lies
    foreign.cfg.default_prepend_bos = prepends
    model = attrib.from_transformer_lens(foreign)
    for text in ("the cat sat", "a"):
        assert to_prompts(model, text)[0].tolist() == foreign.to_tokens(text)[0].tolist()


# ---------------------------------------------------------------------------------- special tokens


def test_special_tokens_in_text():
    from transformers import PreTrainedTokenizerFast

    backend = byte_level()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    model, text, end = with_tokenizer(tokenizer), "a<|end|>", backend.token_to_id("<|end|>")
    letters = [backend.token_to_id(letter) for letter in text]
    assert ids_of(text, tokenizer) == [[letters[0], end]]
    assert to_prompts(model.with_special_tokens("text"), text)[0].tolist() == letters
    refusing = model.with_special_tokens("refuse")
    assert to_prompts(refusing, "a")[0].tolist() == letters[:1]
    with pytest.raises(InputError, match=r"prompt 1 holds the special token '<\|end\|>', and special_tokens is 'refuse'"):
        to_prompts(refusing, ["a", text])
    for how in ("text", "refuse"):
        assert to_prompts(model.with_special_tokens(how), [{"role": "user", "content": "a"}])[0].tolist() == [
            letters[0],
            end,
        ]  # the template's
        with pytest.raises(InputError, match="prompt 0 holds the special token"):
            to_prompts(model.with_special_tokens(how), [{"role": "user", "content": text}])
    assert tokenizer(text).input_ids == [letters[0], end]  # the user's tokenizer is what it was
    edges = attrib.latent_to_logit(refusing, dictionary("standard", dtype=torch.float64), "a", logits="<|end|>")
    assert edges.targets.latent.tolist() == [end]


def test_a_tokenizer_that_takes_a_special_token_for_a_word_says_so():
    with pytest.raises(InputError, match="prompt 0 holds '</s>', which this tokenizer does not take as text"):
        to_prompts(with_tokenizer(words()).with_special_tokens("text"), "the </s> cat")


def test_special_tokens_that_cannot_be_had():
    model = with_tokenizer(words())
    with pytest.raises(InputError, match=r"special_tokens: 'ignore'; expected one of 'allow', 'text', 'refuse'"):
        model.with_special_tokens("ignore")
    with pytest.raises(InputError, match="has no tokenizer"):
        build("gpt2").with_special_tokens("text")
    with pytest.raises(InputError, match="'text', which this tokenizer cannot do"):
        characters(build("gpt2")).with_special_tokens("text")


def test_a_run_file_says_what_becomes_of_special_tokens(tmp_path: Path):
    from attrib.runs.spec import Work, load

    original().save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    facts: dict[str, Any] = {"model": str(tmp_path), "attribution": [{"kind": "latent_to_logit", "source": "none"}]}
    work = Work(**facts, special_tokens="text").model_copy(update={"attribution": []})
    assert load(work, torch.device("cpu")).model.tokenizer.special_tokens == "text"
    assert Work(**facts).special_tokens == "allow"
    with pytest.raises(ValueError, match="special_tokens"):
        Work(**facts, special_tokens="drop")


@pytest.mark.parametrize(
    ("how", "words_of_the_error"),
    [("refuse", "prompt 0 holds the special token '<s>'"), ("drop", "special_tokens: 'drop'; expected 'allow', 'text' or 'refuse'")],
)
def test_the_command_line_says_what_becomes_of_special_tokens(how: str, words_of_the_error: str, tmp_path: Path, command: Command):
    original().save_pretrained(tmp_path)
    words("<s> $A").save_pretrained(tmp_path)
    sae("standard", site="blocks.1.hook_resid_pre").save_model(tmp_path / "sae")
    typed = ["--model", tmp_path, "--kind", "token_to_latent", "--target", tmp_path / "sae", "--prompt", "the <s> cat", "--device", "cpu"]
    refused = command("plan", *typed, "--special-tokens", how)
    assert refused.status == 1
    assert re.search(words_of_the_error, refused.err), refused.err
    assert command("plan", *typed).status == 0


# ------------------------------------------------------------------------------------------- panics


def test_a_panic_of_the_tokenizer_names_the_prompt():
    """It is no Exception, and one such prompt would end a whole job."""
    from attrib.models.transformer import Model

    base = with_tokenizer()
    model = Model(base.params, base.config, base.name, from_tokenizers(panicking()))
    assert to_prompts(model, ["a", "b"])[1].tolist() == [1]
    with pytest.raises(InputError, match=r"tokens: prompt 1 cannot be tokenised: .*retry-limit"):
        to_prompts(model, ["b", "a" * 40 + "!"])


def test_an_interrupt_is_no_failure_of_the_tokenizer():
    from attrib.models.tokenizer import guarded

    def stop(text: str) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(stop)("a")


def test_parts_of_a_document_have_around_them_what_the_template_puts_there():
    from attrib.jobs.ids import split

    tokenizer = with_tokenizer(words("<s> first $A </s>", specials=["<s>", "</s>"])).tokenizer
    assert tokenizer.around == ([0, 3], [1])
    ids = torch.tensor(tokenizer.prompt("the cat sat"))
    assert [part.tolist() for part in split(ids, 5, tokenizer.around)] == [[0, 3, 5, 6, 1], [0, 3, 7, 1]]
    assert [part.tolist() for part in split(ids[2:-1], 2, tokenizer.around)] == [[5, 6], [7]]
    with pytest.raises(InputError, match="puts 3 tokens around each part, and max_tokens is 3"):
        split(ids, 3, tokenizer.around)


# ----------------------------------------------------------------------------- wherever text is taken


def test_text_is_taken_by_capture_logits_and_path():
    tokenizer = words("<s> $A")
    model, ids = with_tokenizer(tokenizer), torch.tensor([0, 5, 6])
    source = dictionary("standard", dtype=torch.float64)
    with torch.no_grad():
        own = original()(ids[None]).logits[0]
    torch.testing.assert_close(attrib.forward(model, "the cat"), own, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(attrib.forward(model, ["the cat", [0, 9, 9]])[0], own, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(attrib.forward(model, ids[None, None])[0, 0], own, rtol=1e-9, atol=1e-9)
    (site,) = attrib.capture(model, tokenizer("the cat", return_tensors="pt"), ["blocks.1.hook_resid_pre"]).values()
    (same,) = attrib.capture(model, [ids], ["blocks.1.hook_resid_pre"]).values()
    assert torch.equal(site, same)
    assert site.shape[:2] == (1, 3)
    text, plain = (attrib.path(model, source, attrib.TokenLogits([5]), tokens) for tokens in ("the cat", ids))
    assert torch.equal(text.sources.value, plain.sources.value)
    assert torch.equal(text.targets.cotangent, plain.targets.cotangent)
    planned = (attrib.plan(model, source, attrib.TokenLogits([5]), tokens).flops for tokens in (iter(["the cat"]), [ids]))
    assert len(set(planned)) == 1


def test_a_path_brings_dictionaries_to_the_model():
    model, ids = with_tokenizer(), torch.tensor([5, 6])
    moved = attrib.path(model, dictionary("standard", dtype=torch.float32), attrib.TokenLogits([5]), ids)
    assert moved.sources.value.dtype == torch.float64


def test_what_is_no_batch_or_no_single_prompt_is_refused():
    model = with_tokenizer(words())
    with pytest.raises(InputError, match="prompts of 1 to 2 tokens, which are no batch"):
        attrib.forward(model, ["the", "the cat"])
    with pytest.raises(InputError, match="ids from 5 to 999; the vocabulary"):
        attrib.forward(model, torch.tensor([5, 999]))
    with pytest.raises(InputError, match=r"dtype torch\.float32"):
        attrib.capture(model, torch.tensor([0.5]), [])
    with pytest.raises(InputError, match="2 prompts, where one is computed at a time"):
        attrib.path(model, None, attrib.TokenLogits([5]), ["the", "a"])


def test_checked_prompts_are_not_checked_again():
    model = with_tokenizer(words())
    prompts = to_prompts(model, ["the"])
    assert isinstance(prompts, PromptIds)
    assert to_prompts(model, prompts) is prompts
