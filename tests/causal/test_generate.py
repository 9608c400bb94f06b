"""Generation gives what a loop of whole passes gives, and what transformers gives, alone and in a batch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Piece, Sampling, generate, probabilities
from attrib.causal.sampling import drawn, uniform
from attrib.core.types import AttribWarning, InputError, NotFiniteError
from attrib.models.tokenizer import Tokenizer
from attrib.models.transformer import Model
from tests.support.builders import ALL_FAMILIES, D_VOCAB, N_CTX, attrib_model, build, prompt, tiny

DOUBLE = torch.float64
LETTERS = "".join(map(chr, range(60, 60 + D_VOCAB)))
TOKENIZER = Tokenizer(encode=lambda text: list(map(LETTERS.index, text)), decode=lambda ids: "".join(LETTERS[n] for n in ids))
PROMPTS = [prompt(n, seed=n) for n in (5, 11, 1, 8)]


@pytest.fixture(scope="module")
def llama() -> Model:
    return replace(build("llama", DOUBLE), tokenizer=TOKENIZER)


def by_whole_passes(model: Model, ids: Tensor, count: int) -> Tensor:
    """Greedy continuation without a cache."""
    for _ in range(count):
        ids = torch.cat([ids, attrib.forward(model, ids)[-1:].argmax(-1)])
    return ids[-count:]


@pytest.mark.few
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_greedy_is_a_loop_of_whole_passes(family):
    model = build(family, DOUBLE)
    found = generate(model, PROMPTS, max_tokens=12)
    for one, ids in zip(found, PROMPTS, strict=True):
        assert torch.equal(one.prompt, ids)
        assert one.tokens.tolist() == by_whole_passes(model, ids, 12).tolist()
        logits = attrib.forward(model, torch.cat([ids, one.tokens]))[len(ids) - 1 : -1]
        torch.testing.assert_close(
            one.log_probs.double(), logits.log_softmax(-1).gather(1, one.tokens[:, None])[:, 0], rtol=1e-5, atol=1e-6
        )
        assert (one.ended, one.text) == ("length", "")


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mistral", "gemma2", "qwen3"])
def test_greedy_is_transformers_own(family):
    original = tiny(family, DOUBLE)
    original.generation_config.eos_token_id = None
    ids = PROMPTS[1][None]
    theirs = original.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0)[0, 11:]
    (ours,) = generate(attrib_model(family, DOUBLE), PROMPTS[1], max_tokens=20)
    assert ours.tokens.tolist() == theirs.tolist()


def test_smollm2_goes_on_as_transformers_has_it(smollm2_folder):
    import transformers

    model = attrib.load_model("smollm2-135m")
    original = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    (said,) = generate(model, [{"role": "user", "content": "What is the capital of France?"}], max_tokens=12)
    ids = said.prompt[None]
    theirs = original.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert said.tokens.tolist() == theirs[0, ids.shape[1] :].tolist()
    assert (said.text, said.ended) == ("The capital of France is Paris.", "end")  # the tokenizer's own token ends what the assistant says


def test_draws_are_by_the_distribution_and_the_hash(llama):
    sampling = Sampling(0.8, 20, 0.9, seed=5)
    (found,) = generate(llama, PROMPTS[0], max_tokens=6, temperature=0.8, top_k=20, top_p=0.9, seed=5)
    ids = PROMPTS[0]
    for number, token in enumerate(found.tokens):
        p = probabilities(attrib.forward(llama, ids)[-1:], sampling)
        u = uniform(5, PROMPTS[0].numpy().tobytes(), 0, number)
        assert drawn(p, torch.tensor([u], dtype=DOUBLE)).tolist() == [int(token)]
        ids = torch.cat([ids, token[None]])


@pytest.mark.few
@pytest.mark.parametrize("batch", [1, 2, 32])
def test_a_prompt_goes_on_alike_alone_and_among_others(llama, batch):
    prompts = [*PROMPTS, PROMPTS[0]]
    options = {"max_tokens": 15, "temperature": 1.0, "seed": 2, "stop": ["K", 7]}
    together = generate(llama, prompts, batch=batch, **options)
    alone = [generate(llama, ids, **options)[0] for ids in PROMPTS]
    for one, other in zip(together, alone, strict=False):
        assert (one.tokens.tolist(), one.text, one.ended) == (other.tokens.tolist(), other.text, other.ended)
    assert {one.ended for one in together} == {"length", "stop"}  # rows leave the batch at different times
    assert len({len(one.tokens) for one in together}) > 2
    assert together[4].tokens.tolist() != together[0].tokens.tolist()  # equal prompts are drawn differently
    assert generate(llama, PROMPTS[0], **options | {"seed": 3})[0].tokens.tolist() != together[0].tokens.tolist()


def test_a_stream_says_everything_once(llama):
    pieces: list[Piece] = []
    found = generate(llama, PROMPTS, max_tokens=10, temperature=1.0, stream=pieces.append, stop="LM")
    for number, one in enumerate(found):
        own = [piece for piece in pieces if piece.prompt == number]
        assert "".join(piece.text for piece in own) == one.text
        assert [piece.token for piece in own] == one.tokens.tolist()
        assert own[-1].ended == one.ended
    assert [piece.prompt for piece in pieces[:4]] == [0, 1, 2, 3]  # as they come


def test_the_token_that_ends_a_text_ends_it(llama):
    usual = generate(llama, PROMPTS[0], max_tokens=10)[0].tokens.tolist()
    ending = replace(llama, tokenizer=replace(TOKENIZER, end=usual[3]))
    (one,) = generate(ending, PROMPTS[0], max_tokens=10)
    first = usual.index(usual[3])
    assert (one.tokens.tolist(), one.ended) == (usual[: first + 1], "end")
    assert one.text == TOKENIZER.decode(usual[:first])
    (on,) = generate(ending, PROMPTS[0], max_tokens=10, stop_at_end=False)
    assert (on.tokens.tolist(), on.ended) == (usual, "length")
    with pytest.warns(AttribWarning, match="prompt 0 ends in the token that ends a text"):
        generate(ending, torch.cat([PROMPTS[0], torch.tensor(usual[3:4])]), max_tokens=1)


def test_the_context_can_be_filled(llama):
    ids = prompt(N_CTX - 4)
    (found,) = generate(llama, ids, max_tokens=4)
    assert found.tokens.tolist() == by_whole_passes(llama, ids, 4).tolist()
    with pytest.raises(InputError, match=r"max_tokens: 5 behind prompt 1, which has 60, .* expected 4 at most"):
        generate(llama, [PROMPTS[0], ids], max_tokens=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: 0; expected a whole number of at least 1"),
        ({"batch": 0}, "batch: 0"),
        ({"temperature": -0.5}, "temperature: -0.5"),
        ({"stop": ""}, "stop: an empty text"),
        ({"tokens": []}, "no prompts given"),
        ({"tokens": [[]]}, "prompt 0 has 0 tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(llama, options, message):
    with pytest.raises(InputError, match=message):
        generate(llama, **{"tokens": PROMPTS[0]} | options)


def test_logits_that_are_no_numbers_are_named(llama):
    broken = replace(llama, params=llama.params._replace(b_U=llama.params.b_U.index_fill(0, torch.tensor([4]), torch.nan)))
    with pytest.raises(NotFiniteError, match="prompt 0 gives nan at the logits, first at position 4"):
        generate(broken, PROMPTS[0], max_tokens=3)


def test_nothing_is_left_that_needs_a_gradient(llama):
    assert torch.is_grad_enabled()
    (found,) = generate(llama, PROMPTS[0], max_tokens=2)
    assert torch.is_grad_enabled()
    assert not found.log_probs.requires_grad


def test_half_precision_generates_and_says_probabilities_in_single():
    model = build("llama").to(dtype=torch.bfloat16)
    (found,) = generate(model, PROMPTS[0], max_tokens=3, temperature=1.0)
    logits = attrib.forward(model, torch.cat([PROMPTS[0], found.tokens]))[4:-1].float()
    assert found.log_probs.dtype == torch.float32
    torch.testing.assert_close(found.log_probs, logits.log_softmax(-1).gather(1, found.tokens[:, None])[:, 0], rtol=0.1, atol=0.1)
