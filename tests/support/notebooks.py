"""The examples that compute what notebooks compute, and plain versions of their tiny models and dictionaries to hold them against."""

import importlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import attrib
from tests.support.root import ROOT


def notebook(name: str) -> Any:
    """An example as a module, which imports what lies beside it."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def shown(name: str, *arguments: Any) -> dict[str, list[Any]]:
    """What an example shows of its tiny model, by row: in order, what stands under each heading of the row."""
    example, found = notebook(name), defaultdict(list)
    for step in example.steps(example.tiny(*arguments)):
        found[step.row].append(step.shown)
    return dict(found)


class Read(NamedTuple):
    """What a dictionary met on a pass."""

    x: Tensor
    latents: Tensor
    decoded: Tensor


@cache
def transformers_model(texts: tuple[str, ...]) -> tuple[Any, Any]:
    """transformers' own tiny model of an example, and its tokenizer."""
    model, tokenizer = notebook("tiny_model").tiny_transformers(texts)
    return model.requires_grad_(False), tokenizer


def plain_latents(dictionary: attrib.Dictionary, x: Tensor) -> Tensor:
    """Its latents by its formula, of a kind that the tiny ones are."""
    tensors, config = dictionary.params, dictionary.config
    pre = x @ tensors.W_enc + tensors.b_enc
    match config.rule:
        case "relu":
            return pre.relu()
        case "jumprelu":
            return pre * (pre > tensors.threshold) * (pre > 0)
        case "topk":
            least = pre.topk(config.k or 0).values[..., -1:]
            return pre.relu() * (pre >= least)
    raise AssertionError(config.rule)


@contextmanager
def put_in(model: Any, dictionaries: Mapping[int, attrib.Dictionary], *, errors: bool, without: int = -1) -> Iterator[dict[int, Read]]:
    """transformers' model with SAEs in place of what enters its layers; what each has met, with gradients kept.

    Args:
        errors: whether what they do not decode is added, as a constant.
        without: a latent of each that is taken out.
    """
    read: dict[int, Read] = {}

    def splice(layer: int, dictionary: attrib.Dictionary) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> Any:
            x = args[0]
            latents = plain_latents(dictionary, x)
            error = (x - latents @ dictionary.params.W_dec - dictionary.params.b_dec).detach()
            if torch.is_grad_enabled():
                latents = latents if latents.requires_grad else latents.requires_grad_()
                latents.retain_grad()
            kept = latents.clone()
            if without >= 0:
                kept[..., without] = 0
            decoded = kept @ dictionary.params.W_dec + dictionary.params.b_dec
            read[layer] = Read(x[0], latents, decoded[0])
            return (decoded + error if errors else decoded, *args[1:]), kwargs

        return model.model.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)

    handles = [splice(layer, dictionary) for layer, dictionary in dictionaries.items()]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()
