"""A dictionary that was made for another model of the same width is used with a warning that names both."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.names import are_other_models, plain
from attrib.core.types import AttribWarning
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.fit import fitted
from attrib.jobs.config import job_file
from attrib.jobs.make import make
from tests.adapters.test_dictionary_folders import change_config
from tests.support.builders import attrib_model, build, dictionary, prompt
from tests.support.job_cases import SITES, corpus, here, table

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SAME = [
    ("gpt2", "gpt2-small"),
    ("gpt2", "openai-community/gpt2"),
    ("gpt2-small", "/data/models/gpt2/"),
    ("gpt2", "C:\\models\\GPT2"),
    ("google/gemma-2-2b", "gemma-2-2b"),
    ("gemma-v3-1b-pt", "google/gemma-3-1b-pt"),
    ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M"),
    ("SmolLM2_135M", "smollm2-135m"),
    ("meta-llama/Meta-Llama-3.1-8B", "Llama-3.1-8B"),
    ("Llama-2-7b", "meta-llama/Llama-2-7b-hf"),
    ("EleutherAI/pythia-160m-deduped", "pythia-125m-deduped"),
    ("gpt-j", "EleutherAI/gpt-j-6B"),
    ("gelu-1l", "NeelNanda/GELU_1L512W_C4_Code"),
    ("tiny-stories-1L-21M", "roneneldan/TinyStories-1Layer-21M"),
    ("gpt2", "/data/model"),
    ("gpt2", "runs/checkpoint-500"),
    ("gpt2", "/cache/hub/models--openai-community--gpt2/snapshots/607a30d783dfa663caf39e06633721c8d4cfcd7e"),
]
OTHER = [
    ("gpt2", "gpt2-medium"),
    ("smollm2-135m", "HuggingFaceTB/SmolLM2-360M"),
    ("smollm2-135m", "HuggingFaceTB/SmolLM-135M"),
    ("gemma-2-2b", "gemma-2-2b-it"),
    ("gemma-2b", "gemma-2-2b"),
    ("pythia-70m", "pythia-70m-deduped"),
    ("opt-1.3b", "opt-13b"),
    ("pythia-1.4b", "pythia-14m"),
    ("Qwen/Qwen3-4B", "Qwen/Qwen3-1.7B"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_model_by_two_names(one: str, other: str):
    assert not are_other_models(one, other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_two_models(one: str, other: str):
    assert are_other_models(one, other)


def test_names_of_transformer_lens():
    """No two models of its list become one, and whatever else it calls a model is that model still."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    assert len({plain(name) for name in OFFICIAL_MODEL_NAMES}) == len(OFFICIAL_MODEL_NAMES)
    known = {official: [aliases] if isinstance(aliases, str) else aliases for official, aliases in MODEL_ALIASES.items()}
    assert [(official, alias) for official in known for alias in known[official] if are_other_models(official, alias)] == []


# ----------------------------------------------------------------------------------------------- once for a call

TOKENS = list(prompt(5, batch=(3,)))
EARLY, LATE = "blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"


def made_for(name: str | None, site: str = EARLY, **options: Any) -> Dictionary:
    ours = dictionary("topk", site, **options)
    return replace(ours, config=replace(ours.config, model_name=name), name=f"of {site}")


def heard(call: Any) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [one for one in found if issubclass(one.category, AttribWarning)]


def scalar(logits: Tensor) -> Tensor:
    return logits[-1].sum()


CALLS: dict[str, Any] = {
    "latent_to_logit": lambda m, d: attrib.latent_to_logit(m, d, TOKENS),
    "token_to_latent": lambda m, d: attrib.token_to_latent(m, d, TOKENS),
    "latent_to_metric": lambda m, d: attrib.latent_to_metric(m, d, TOKENS, metric=scalar),
    "path": lambda m, d: attrib.path(m, d, attrib.TopLogits(2), TOKENS[0]),
    "replace": attrib.replace,
    "cuts": lambda m, d: attrib.latent_to_logit(m, made_for(None, "blocks.0.hook_resid_pre"), TOKENS, cuts=[d]),
}


@pytest.mark.few
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_it_is_said_once_with_both_names_and_at_the_users_line(call: Any):
    model = build("gpt2")
    found = heard(lambda: call(model, made_for("smollm2-135m")))
    assert [str(one.message).split(": ", 1)[1] for one in found] == [
        "of blocks.1.hook_resid_pre was made for smollm2-135m, and the model is tiny-gpt2: its latents mean nothing in another model. "
        "Where the two are one, give the model that name when it is loaded."
    ]
    assert found[0].filename == __file__
    for name in (None, "tiny-gpt2", "me/Tiny_GPT2"):
        assert not heard(lambda name=name: call(model, made_for(name)))


def test_it_is_said_of_each():
    model = build("gpt2")
    found = heard(lambda: attrib.latent_to_latent(model, made_for("a"), made_for("b", LATE), TOKENS))
    assert [str(one.message).partition(", and")[0] for one in found] == [
        f"source: of {EARLY} was made for a",
        f"target: of {LATE} was made for b",
    ]


def test_values_are_what_they_would_be():
    model = build("gpt2")
    with pytest.warns(AttribWarning, match="made for another-one, and the model is tiny-gpt2"):
        got = attrib.latent_to_logit(model, made_for("another-one"), TOKENS)
    want = attrib.latent_to_logit(model, made_for(None), TOKENS)
    assert torch.equal(got.attribution, want.attribution)
    assert got.call["source"] == want.call["source"]


def test_a_shipped_dictionary_on_another_model_of_its_width():
    model = attrib_model("llama", hidden_size=576, n_layers=9, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    ours = attrib.load_dictionary("smollm2-135m/blocks.6.hook_resid_pre")
    with pytest.warns(AttribWarning, match=r"smollm2-135m/blocks\.6.* was made for smollm2-135m, and the model is tiny-llama"):
        attrib.latent_to_logit(model, ours, TOKENS[0], keep=attrib.TopK(1))
    assert not heard(lambda: fitted(replace(model, name="HuggingFaceTB/SmolLM2-135M-Instruct"), ours, "source"))


def test_a_job_says_it_once_when_it_is_made(tmp_path: Path):
    """And no worker says it again, for any prompt of any shard."""
    beside = corpus(tmp_path)
    (beside / "model").rename(beside / "tiny-llama")
    change_config(beside / SITES[0], metadata={"model_name": "smollm2-135m"})
    config = job_file(table(model="tiny-llama"))
    with pytest.warns(AttribWarning) as found:
        job = make(tmp_path / "job", config, beside)
    (said,) = [str(one.message) for one in found if issubclass(one.category, AttribWarning)]
    assert said.startswith(f"{SITES[0]}: {SITES[0]} was made for smollm2-135m, and the model is tiny-llama")
    assert not heard(lambda: list(here(job, job.shards, 1)))
