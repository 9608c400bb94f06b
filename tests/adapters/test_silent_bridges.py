"""Bridges of later versions of TransformerLens: other names for the same parts, and hooks of their own."""

from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

import attrib
from tests.support import hooked


def test_norms_behind_alone_under_their_later_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """TransformerLens 4 calls OLMo 2's norms ln1_post and ln2_post, and gives their weights under no name."""
    bridge = hooked.tiny_bridge("olmo2", tmp_path)
    before = attrib.from_transformer_lens(bridge)
    given = {name: value for name, value in bridge.tl_parameters().items() if ".ln1." not in name and ".ln2." not in name}
    assert len(given) < len(bridge.tl_parameters())
    monkeypatch.setattr(type(bridge), "tl_parameters", property(lambda bridge: lambda: given))
    for block in bridge.blocks:
        for name in ("ln1", "ln2"):
            block._modules[f"{name}_post"] = block._modules.pop(name)
    after = attrib.from_transformer_lens(bridge)
    assert before.config == after.config
    for was, now in zip(pytree.tree_leaves(before.params), pytree.tree_leaves(after.params), strict=True):
        assert torch.equal(was, now)


def test_hooks_of_the_bridge_itself_are_no_attachments(tmp_path: Path):
    bridge = hooked.tiny_bridge("gpt2", tmp_path)

    def look(value: torch.Tensor, hook: object) -> torch.Tensor:
        return value

    look.__module__ = "transformer_lens.model_bridge.supported_architectures.opt"
    bridge.blocks[0].mlp.hook_in.add_hook(look, is_permanent=True)
    attrib.from_transformer_lens(bridge)
    look.__module__ = "transformer_lens.patching"  # which users call
    with pytest.raises(attrib.UnsupportedError, match=r"has a forward hook, .*look, which attrib would leave out"):
        attrib.from_transformer_lens(bridge)
