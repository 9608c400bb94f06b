"""transformers' own classes, computing in the dtype that they are given.

Several parts of them go over to float32 whatever comes, for the sake of half precision: RMSNorms, the softmax of eager
attention, all attention scores of GPT-J and GPT-Neo, OLMo 2's rotation of what its norm gives. In float64 that would be
a difference of 1e-7 that hides others. `keep_dtype` puts the same formulas in their place without the conversion, one
part by one; everything else is transformers' code.
"""

import importlib
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

_RMS_NORMS = {
    "llama": "LlamaRMSNorm",
    "mistral": "MistralRMSNorm",
    "qwen2": "Qwen2RMSNorm",
    "qwen3": "Qwen3RMSNorm",
    "phi3": "Phi3RMSNorm",
    "olmo2": "Olmo2RMSNorm",
}
_ONE_PLUS_NORMS = {"gemma": "GemmaRMSNorm", "gemma2": "Gemma2RMSNorm", "gemma3": "Gemma3RMSNorm"}


def _normed(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def _rms_norm(self: Any, x: Tensor) -> Tensor:
    return self.weight * _normed(x, self.variance_epsilon)


def _one_plus_norm(self: Any, x: Tensor) -> Tensor:
    return _normed(x, self.eps) * (1 + self.weight)


def _eager(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, softcap: float | None = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention written out, with Gemma 2's caps; softmax in the dtype of the scores."""
    key, value = (t.repeat_interleave(module.num_key_value_groups, dim=1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    pattern = nn.functional.softmax(scores + attention_mask, dim=-1)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def _gptj_attn(self: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(-1, -2) / self.scale_attn
    pattern = nn.functional.softmax(scores + attention_mask, dim=-1)
    return pattern @ value, pattern


def _gpt_neo_attn(self: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(-1, -2)
    scores = scores.masked_fill(~self.bias[:, :, : scores.shape[-2], : scores.shape[-1]], torch.finfo(scores.dtype).min)
    pattern = nn.functional.softmax(scores if attention_mask is None else scores + attention_mask, dim=-1)
    return pattern @ value, pattern


def _as_of(function: Any, kind: str) -> Any:
    """The function under a method's name: attrib refuses what another package, or a pass that another class, put into a class or module."""
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    made.__module__, made.__qualname__ = "transformers", f"{kind}.forward"
    return made


def keep_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part that transformers computes in float32 keeps its dtype until the test ends."""

    def module(family: str) -> Any:
        return importlib.import_module(f"transformers.models.{family}.modeling_{family}")

    for norms, forward in ((_RMS_NORMS, _rms_norm), (_ONE_PLUS_NORMS, _one_plus_norm)):
        for family, name in norms.items():
            monkeypatch.setattr(getattr(module(family), name), "forward", _as_of(forward, name))
    for family in ("gemma2", "llama"):
        monkeypatch.setattr(module(family), "eager_attention_forward", _as_of(_eager, ""))
    monkeypatch.setattr(module("gptj").GPTJAttention, "_attn", _as_of(_gptj_attn, ""))
    monkeypatch.setattr(module("gpt_neo").GPTNeoSelfAttention, "_attn", _as_of(_gpt_neo_attn, ""))
