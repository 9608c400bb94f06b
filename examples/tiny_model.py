"""A random model of a few thousand parameters, with a tokenizer and dictionaries: an example runs in seconds, without a fetched model.

Its numbers mean nothing. It is there to see that an example runs, and for tests.
"""

from collections.abc import Iterable
from typing import Any

import torch

import attrib
from attrib.adapters import from_tensors
from attrib.dictionaries.metadata import Metadata

LAYERS, D_MODEL, D_SAE = 4, 32, 64


def tiny_model(texts: Iterable[str]) -> attrib.Model:
    """A Llama whose vocabulary has each word of some texts as one token, with the space before it."""
    return attrib.from_hugging_face(*tiny_transformers(texts), name="tiny")


def tiny_transformers(texts: Iterable[str]) -> tuple[Any, Any]:
    """The same as transformers has it: the model and its tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False))
    config = LlamaConfig(
        vocab_size=made.get_vocab_size(), hidden_size=D_MODEL, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=256,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model, PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def tiny_dictionary(kind: str, site: str, seed: int = 0, d_model: int = D_MODEL) -> attrib.Dictionary:
    """A random dictionary of a kind ("relu", "topk", "jumprelu" or "transcoder") at a site, with some ten of 64 latents active."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    layer = int(site.split(".")[1])
    tensors = {
        "W_enc": normal(d_model, D_SAE) / d_model**0.5,
        "b_enc": normal(D_SAE) / 4 - 0.6,
        "W_dec": normal(D_SAE, d_model) / d_model**0.5,
        "b_dec": normal(d_model) / 9,
    }
    options = {
        "relu": {},
        "topk": {"k": 8},
        "jumprelu": {"threshold": torch.full((D_SAE,), 0.1)},
        "transcoder": {"writes": f"blocks.{layer}.hook_mlp_out"},
    }[kind]
    said = Metadata(context_size=128, dataset_path="none", prepend_bos=False, neuronpedia_id=f"tiny/{layer}-{kind}")
    return from_tensors(site=site, name=f"random/{site}", metadata=said, **tensors, **options)
