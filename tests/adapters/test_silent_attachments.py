"""What hangs on a model and moves its values is refused by name, with how to take it off; what does not is taken."""

from collections.abc import Callable
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import attrib
from attrib import InputError, UnsupportedError
from tests.support import builders, hooked

LAYER = "model.layers.1"


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class LoudLinear(nn.Linear):
    """As quantised and adapted layers are: of the right names and shapes, and another computation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class NamedLinear(nn.Linear):
    """A subclass that only adds."""

    def describe(self) -> str:
        return f"{self.in_features} to {self.out_features}"


class LoudTensor(torch.Tensor):
    pass


class Around(nn.Module):
    """As peft's models are, which may not be installed."""

    def __init__(self, base_model: nn.Module) -> None:
        super().__init__()
        self.base_model, self.peft_config = base_model, {"default": SimpleNamespace(r=8)}
        self.config = base_model.config


def put(model: Any, at: str, kind: type) -> None:
    """Another class around the same parameters."""
    old = model.get_submodule(at)
    new = kind(old.in_features, old.out_features, bias=old.bias is not None)
    new.load_state_dict(old.state_dict())
    model.set_submodule(at, new)


def _hook(model: Any) -> None:
    model.get_submodule(LAYER).register_forward_hook(lambda module, args, out: 2 * out)


def _pre_hook(model: Any) -> None:
    model.get_submodule(f"{LAYER}.mlp").register_forward_pre_hook(lambda module, args: (2 * args[0],))


def _backward_hook(model: Any) -> None:
    model.get_submodule(f"{LAYER}.mlp").register_full_backward_hook(lambda module, into, out: (2 * into[0],))


def _forward_on_the_object(model: Any) -> None:
    mlp = model.get_submodule(f"{LAYER}.mlp")
    mlp.forward = lambda x: 2 * type(mlp).forward(mlp, x)


def _accelerate(model: Any) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    add_hook_to_module(model.get_submodule(LAYER), AlignDevicesHook(execution_device="cpu"))


def _weight_norm(model: Any) -> None:
    nn.utils.weight_norm(model.get_submodule(f"{LAYER}.mlp.up_proj"))


def _eps(model: Any) -> None:
    model.get_submodule(f"{LAYER}.input_layernorm").variance_epsilon = 1.0


def _tensor(model: Any) -> None:
    layer = model.get_submodule(f"{LAYER}.mlp.up_proj")
    layer._parameters["weight"] = layer.weight.data.as_subclass(LoudTensor)


ATTACHED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "forward hook": (_hook, r"model\.layers\.1 has a forward hook, _hook\.<lambda>.*handle"),
    "forward pre-hook": (_pre_hook, r"model\.layers\.1\.mlp has a forward pre-hook, _pre_hook\.<lambda>"),
    "backward hook": (_backward_hook, r"model\.layers\.1\.mlp has a backward hook"),
    "accelerate": (_accelerate, r"model\.layers\.1 has accelerate's AlignDevicesHook.*remove_hook_from_submodules"),
    "replaced forward": (_forward_on_the_object, r"mlp had its forward replaced on the object, by _forward_on_the_object\.<lambda>.*del"),
    "replaced layer": (
        lambda m: put(m, f"{LAYER}.mlp.up_proj", LoudLinear),
        r"up_proj is a .*LoudLinear with its own forward, in place",
    ),
    "replaced activation": (lambda m: setattr(m.get_submodule(f"{LAYER}.mlp"), "act_fn", Scaled()), r"act_fn is a .*Scaled, another class"),
    "added module": (lambda m: m.add_module("adapter", Scaled()), r"adapter is a .*Scaled that LlamaForCausalLM does not have"),
    "setting": (_eps, r"input_layernorm\.variance_epsilon is 1\.0, and 1e-06 by the model's config"),
    "parametrization": (
        lambda m: parametrize.register_parametrization(m.get_submodule(f"{LAYER}.mlp.up_proj"), "weight", Scaled()),
        r"up_proj computes its weight anew.*remove_parametrizations\(module, 'weight'\)",
    ),
    "new weight norm": (lambda m: parametrizations.weight_norm(m.get_submodule(f"{LAYER}.mlp.up_proj")), "computes its weight anew"),
    "weight norm": (_weight_norm, r"up_proj has a forward pre-hook, WeightNorm.*remove_weight_norm"),
    "pruning": (lambda m: prune.l1_unstructured(m.get_submodule(f"{LAYER}.mlp.up_proj"), "weight", 0.5), r"prune\.remove"),
    "compiled in place": (lambda m: m.get_submodule(f"{LAYER}.mlp").compile(backend="eager"), r"mlp was compiled in place"),
    "adapters of transformers": (lambda m: setattr(m, "_hf_peft_config_loaded", True), r"has adapters inside .*merge_and_unload"),
    "tensor": (_tensor, r"up_proj\.weight is a LoudTensor, no plain tensor.*dequantise"),
    "no numbers": (lambda m: m.get_submodule(LAYER).to("meta"), r"is on the meta device.*Load the weights"),
}


@pytest.mark.parametrize("what", ATTACHED)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_what_hangs_on_a_transformers_model(what: str):
    attach, message = ATTACHED[what]
    model = builders.tiny("llama")
    attach(model)
    with pytest.raises(UnsupportedError, match=message):
        attrib.from_hugging_face(model)


def test_what_is_around_a_transformers_model():
    model = builders.tiny("llama")
    with pytest.raises(UnsupportedError, match=r"a compiled model \(OptimizedModule\).*model\._orig_mod"):
        attrib.from_hugging_face(torch.compile(model, backend="eager"))
    with pytest.raises(UnsupportedError, match=r"adapters default on it.*merge_and_unload"):
        attrib.from_hugging_face(Around(model))
    with pytest.raises(UnsupportedError, match=r"a DataParallel around the model.*model\.module"):
        attrib.from_hugging_face(nn.DataParallel(model))


def test_a_class_of_the_user_with_its_own_forward():
    from transformers import LlamaForCausalLM

    class Loud(LlamaForCausalLM):
        def forward(self, *args: Any, **named: Any) -> Any:
            out = super().forward(*args, **named)
            out.logits = 2 * out.logits
            return out

    class Quiet(LlamaForCausalLM):
        def greet(self) -> str:
            return "bonjour"

    model = builders.tiny("llama")
    with pytest.raises(UnsupportedError, match=r"Loud with its own forward, in place of transformers.*LlamaForCausalLM"):
        attrib.from_hugging_face(Loud(model.config))
    quiet = Quiet(model.config)
    quiet.load_state_dict(model.state_dict())
    put(quiet, f"{LAYER}.mlp.up_proj", NamedLinear)
    assert attrib.check_model(attrib.from_hugging_face(quiet), quiet).ok


def test_a_method_that_was_put_into_a_class(monkeypatch: pytest.MonkeyPatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: 2 * x)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.mlp is a LlamaMLP whose <lambda> was replaced by one of .*attachments"):
        attrib.from_hugging_face(builders.tiny("llama"))


def test_a_pass_of_another_class():
    """A forward of torch or transformers is no less another one."""
    model = builders.tiny("llama")
    mlp = model.get_submodule(f"{LAYER}.mlp")
    mlp.forward = MethodType(nn.Identity.forward, mlp)
    with pytest.raises(UnsupportedError, match=r"layers\.1\.mlp had its forward replaced on the object, by Identity\.forward"):
        attrib.from_hugging_face(model)
    del mlp.forward
    mlp.act_fn.forward = torch.relu
    with pytest.raises(UnsupportedError, match=r"mlp\.act_fn had its forward replaced on the object"):
        attrib.from_hugging_face(model)


def test_a_pass_of_another_class_in_a_class(monkeypatch: pytest.MonkeyPatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", nn.Identity.forward)
    with pytest.raises(UnsupportedError, match=r"LlamaMLP whose forward was replaced by one of torch"):
        attrib.from_hugging_face(builders.tiny("llama"))


@pytest.mark.parametrize("part", ["LlamaRMSNorm", "apply_rotary_pos_emb"])
def test_what_was_put_into_the_module_of_a_family(part: str, monkeypatch: pytest.MonkeyPatch):
    """As libraries of fused kernels do: the config then makes what attrib does not compute, too."""
    from transformers.models.llama import modeling_llama

    class Loud(modeling_llama.LlamaRMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    monkeypatch.setattr(modeling_llama, part, Loud if part == "LlamaRMSNorm" else lambda q, k, *_, **__: (q, k))
    with pytest.raises(UnsupportedError, match=rf"modeling_llama\.{part} was replaced by one of .*attachments"):
        attrib.from_hugging_face(builders.tiny("llama"))


def test_what_changes_no_value_is_taken():
    model = builders.tiny("llama")
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.resize_token_embeddings(64, mean_resizing=False)
    assert attrib.check_model(attrib.from_hugging_face(model), model).ok


def test_an_attention_of_the_user():
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def double(module: nn.Module, query: Any, key: Any, value: Any, *_: Any, **named: Any) -> Any:
        return 2 * value, None

    AttentionInterface.register("double", double)
    try:
        model = builders.tiny("llama")
        model.config._attn_implementation = "double"
        with pytest.raises(UnsupportedError, match=r"attn_implementation='double' is .*double of .*attachments"):
            attrib.from_hugging_face(model)
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("double")


def test_hooks_on_every_module_of_the_process():
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    try:
        with pytest.raises(UnsupportedError, match=r"a forward hook on all modules of the process \(test_hooks_on_every_module"):
            attrib.from_hugging_face(builders.tiny("llama"))
    finally:
        handle.remove()
    attrib.from_hugging_face(builders.tiny("llama"))


def test_what_was_taken_off_is_no_reason_any_more():
    model = builders.tiny("llama")
    up = model.get_submodule(f"{LAYER}.mlp.up_proj")
    handle = model.register_forward_hook(lambda module, args, out: out)
    handle.remove()
    parametrize.register_parametrization(up, "weight", Scaled())
    parametrize.remove_parametrizations(up, "weight")
    prune.l1_unstructured(up, "weight", 0.5)
    prune.remove(up, "weight")
    model.train()  # dropout is the original's in training; attrib is the model in evaluation
    assert attrib.check_model(attrib.from_hugging_face(model), model).ok


# ------------------------------------------------------------------------------------------ TransformerLens


def _twice(value: torch.Tensor, hook: Any) -> torch.Tensor:
    return 2 * value


def _perma(model: Any) -> None:
    model.add_perma_hook("blocks.1.hook_resid_pre", _twice)


def _temporary(model: Any) -> None:
    model.add_hook("blocks.1.hook_resid_pre", _twice)


def _plain_hook(model: Any) -> None:
    model.blocks[1].mlp.register_forward_hook(lambda module, args, out: 2 * out)


def _foreign_part(model: Any) -> None:
    model.blocks[1].mlp = Scaled()


LENS_ATTACHED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "permanent hook": (_perma, r"blocks\.1\S* has a forward hook, _twice,.*reset_hooks\(including_permanent=True\)"),
    "hook left behind": (_temporary, r"blocks\.1\S* has a forward hook.*reset_hooks\(including_permanent=True\)"),
    "torch's hook": (_plain_hook, r"blocks\.1\.\S*mlp has a forward hook.*handle"),
    "foreign part": (_foreign_part, r"blocks\.1\.\S*mlp is a .*Scaled"),
}


@pytest.mark.parametrize("what", LENS_ATTACHED)
@pytest.mark.parametrize("kind", ["HookedTransformer", "TransformerBridge"])
def test_what_hangs_on_a_transformer_lens_model(kind: str, what: str, tmp_path: Path):
    attach, message = LENS_ATTACHED[what]
    model = hooked.hooked("gpt2") if kind == "HookedTransformer" else hooked.tiny_bridge("gpt2", tmp_path)
    attach(model)
    with pytest.raises(UnsupportedError, match=message):
        attrib.from_transformer_lens(model)
    if what == "permanent hook":
        model.reset_hooks(including_permanent=True)
        attrib.from_transformer_lens(model)


@pytest.mark.parametrize("kind", ["HookedTransformer", "TransformerBridge"])
@pytest.mark.parametrize("dictionary", ["standard", "transcoder"])
def test_saes_on_a_model(kind: str, dictionary: str, tmp_path: Path):
    if kind == "HookedTransformer":
        from sae_lens import HookedSAETransformer

        model: Any = hooked.hooked("gpt2")
        model = HookedSAETransformer(model.cfg)
        builders.randomise(model, 0)
    else:
        from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

        model = hooked.tiny_bridge("gpt2", tmp_path)
        model.__class__ = SAETransformerBridge
        model.__dict__ |= {"_acts_to_saes": {}, "_transcoder_output_hooks": {}}
    assert attrib.check_model(attrib.from_transformer_lens(model), model).ok
    site = "blocks.1.hook_mlp_out" if dictionary == "standard" else "blocks.1.mlp.hook_in"
    sae = builders.sae(dictionary, site="blocks.1.hook_resid_pre")
    sae.cfg.metadata.hook_name = sae.cfg.metadata.hook_name_out = site if dictionary == "standard" else "blocks.1.hook_mlp_out"
    if dictionary == "transcoder":
        sae.cfg.metadata.hook_name = "blocks.1.hook_resid_mid" if kind == "HookedTransformer" else site
    model.add_sae(sae)
    with pytest.raises(UnsupportedError, match=r"with SAEs at blocks\.1\..*reset_saes\(\)"):
        attrib.from_transformer_lens(model)
    model.reset_saes()
    assert attrib.check_model(attrib.from_transformer_lens(model), model).ok


def test_what_is_no_model_says_so():
    with pytest.raises(InputError, match="expected a transformers causal language model"):
        attrib.from_hugging_face(nn.Linear(2, 2))
