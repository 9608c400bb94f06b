"""What objects print is one line that says what they are, in ASCII, whatever they hold."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import attrib
from attrib.core.shown import shown
from attrib.dictionaries.dictionary import encode_sparse
from attrib.models.transformer import ABSENT, Tokenizer, heads, project
from attrib.passes.capture import Leaves
from attrib.paths.cuts import cuts_between
from attrib.paths.path import metric_path
from tests.support import builders

TOKENS = builders.prompt(5)


def model() -> attrib.Model:
    return builders.build("llama")


def source() -> attrib.Dictionary:
    return builders.dictionary("standard")


def _path(target: Any) -> Any:
    return attrib.path(model(), source(), target, TOKENS)


def _cuts() -> Any:
    stop = attrib.Site(3, "resid_post")
    cuts = [builders.dictionary("topk", "blocks.2.hook_resid_pre")]
    return cuts_between(model(), source(), attrib.TopLogits(), source().site, stop, cuts, "direct", attrib.EXACT)


def block() -> Any:
    return model().params.blocks[1]


SHOWN: dict[str, tuple[Callable[[], Any], str]] = {
    "Model": (model, r"Model\('tiny-llama', 4 layers, d_model 32, 4 heads of 10, vocabulary 60, [\d,]+ parameters, float32, cpu\)"),
    "Tokenizer": (
        lambda: Tokenizer(lambda text: [], lambda ids: "", special={3: "<s>"}, sha256="0123456789abcdef"),
        r"Tokenizer\(1 special tokens, allow, sha256=0123456789ab\)",
    ),
    "Params": (lambda: model().params, r"Params\(W_E=float32\[60, 32\], .*blocks=4 of Block, norm_final=Norm\(weight=float32\[32\], .*\)"),
    "Block": (block, r"Block\(norm_1=Norm\(.*attention=Attention\(W_Q=float32\[32, 40\], .*mlp=MLP\(W_in=float32\[32, .*\)"),
    "Norm": (lambda: ABSENT, r"Norm\(weight=float32\[0\], bias=float32\[0\]\)"),
    "Heads": (lambda: heads(model(), 0, torch.zeros(5, 32)), r"Heads\(q=float32\[2, 2, 5, 10\], .*"),
    "Projected": (lambda: project(model(), 0, torch.zeros(5, 32)), r"Projected\(q=float32\[5, 40\], .*"),
    "Segment": (
        lambda: attrib.segment(model(), "blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre"),
        r"Segment\(blocks\.0\.hook_resid_pre to blocks\.2\.hook_resid_pre of 'tiny-llama', Policy\(.*\)\)",
    ),
    "Path": (
        lambda: _path(attrib.TopLogits(3)),
        r"Path\(\d+ source latents at blocks\.1\.hook_resid_pre to 3 targets at blocks\.3\.hook_resid_post, 5 positions of 'tiny-llama'\)",
    ),
    "Sources": (lambda: _path(attrib.TopLogits(3)).sources, r"Sources\(position=int64\[\d+\], .*"),
    "Targets": (lambda: _path(attrib.TopLogits(3)).targets, r"Targets\(position=int64\[3\], .*"),
    "MetricPath": (
        lambda: metric_path(model(), source(), TOKENS, lambda logits: logits[-1, 3]),
        r"MetricPath\(\d+ source latents to a metric of \S+\)",
    ),
    "Replacement": (
        lambda: attrib.replace(model(), [source()]),
        r"Replacement\('tiny-llama' with 'blocks\.1\.hook_resid_pre', Policy\(.*\)\)",
    ),
    "CutLeaves": (lambda: attrib.replace(model(), [source()]).leaves(TOKENS), r"CutLeaves\(.*float32\[.*"),
    "Cuts": (_cuts, r"Cuts\(Replacement\(.*\), direct, held at blocks\..*\)"),
    "SparseLatents": (lambda: encode_sparse(source(), torch.ones(2, 32)), r"SparseLatents\(position=int64\[\d+\], .*"),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_one_line_says_what_it_is(kind: str):
    make, expected = SHOWN[kind]
    made = make()
    assert type(made).__name__ == kind
    line = repr(made)
    assert line.isascii()
    assert len(line) < 1200
    assert "\n" not in line
    assert re.fullmatch(expected, line), line


def test_tied_tables_are_counted_once():
    original = builders.tiny("gpt2")
    count = sum(p.numel() for p in original.parameters()) + 60  # and b_U, which is zeros
    assert f" {count:,} parameters" in repr(attrib.from_hugging_face(original))


def test_functions_and_containers_are_short_too():
    assert shown(lambda: None).endswith("<lambda>")
    assert shown({"a": torch.zeros(2)}) == "{a: float32[2]}"
    assert shown([torch.zeros(1)] * 9) == "9 of Tensor"
    assert shown((1, None)) == "(1, None)"
    assert repr(Leaves(*(torch.zeros(2) for _ in Leaves._fields))).startswith("Leaves(")
