"""What was put on, into or around a model and would not come along: hooks, wrappers, replaced modules and methods.

attrib takes parameters and computes what the model's class computes by its config. Whatever else changes the
model's values is refused by name, with how to take it off, and never ignored. There is one walk over all modules, and
for transformers models a comparison with what their config makes, module by module, which takes no memory for weights.
"""

import sys
from collections.abc import Iterator
from copy import deepcopy
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.nn.utils import parametrize

from attrib.core.types import InputError, UnsupportedError, first_line

HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}
"""Where a module keeps its hooks. Backward hooks change no value, but they change gradients, which attrib's would not follow."""

PACKAGES = ("torch", "transformers", "transformer_lens")
"""Those whose modules are what their class says. A part from anywhere else is one that attrib does not know."""

HOOKS_OF = ("transformers.", "transformer_lens.model_bridge.")
"""Modules that hang hooks on a model to look at values and not to change them: for hidden states, for the stream before an MLP."""

METHODS_OF = ("transformer_lens", "sae_lens")
"""Packages that put methods on objects for the same: a hook point before an MLP."""

_OFF = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm(module)",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm(module)",
    "BasePruningMethod": "torch.nn.utils.prune.remove(module, 'weight')",
}
"""How those of torch's own hooks come off whose handle nobody has, by their class."""


def check_wrapper(model: Any) -> None:
    """Raises UnsupportedError for an object around a model: an adapter's, a compiled one, one that spreads it over devices."""
    kind = type(model).__name__
    if hasattr(model, "peft_config") and hasattr(model, "base_model"):
        raise UnsupportedError(
            f"model: a {kind} with the adapters {', '.join(model.peft_config)} on it, which attrib does not compute. "
            "Merge them into the weights and give what comes back: model.merge_and_unload()."
        )
    if hasattr(model, "_orig_mod"):
        raise UnsupportedError(f"model: a compiled model ({kind}), around the one that attrib reads. Give that: model._orig_mod.")
    if isinstance(getattr(model, "module", None), nn.Module):
        raise UnsupportedError(f"model: a {kind} around the model that attrib reads. Give that: model.module.")


def check_attachments(model: nn.Module) -> None:
    """Raises UnsupportedError for what hangs on a model's modules and attrib would leave out, naming it, its module and the remedy."""
    if saes := getattr(model, "acts_to_saes", None):  # sae-lens
        raise UnsupportedError(
            f"{type(model).__name__} with SAEs at {', '.join(saes)}: attrib takes the model without them. Call reset_saes() first."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UnsupportedError(
            f"model: {type(model).__name__} has adapters inside (load_adapter or add_adapter), which attrib does not compute. "
            "Load the model without them, or merge them with peft: merge_and_unload()."
        )
    for name, what in _global_hooks():
        raise UnsupportedError(f"model: a {what} on all modules of the process ({name}), which attrib would leave out. Remove it first.")
    kinds: dict[type, str] = {}
    for name, module in model.named_modules():
        kinds.setdefault(type(module), name or type(model).__name__)
        for found in _attached(name or type(model).__name__, module):
            raise UnsupportedError(f"model: {found}")
    for kind, at in kinds.items():
        for method in _foreign_methods(kind):
            raise UnsupportedError(
                f"model: {at} is a {kind.__name__} whose {method.__name__} was replaced by one of {method.__module__}, and attrib computes "
                "what the class itself does. Make the model without that change."
            )
    for module in sorted(
        {*(kind.__module__ for kind in kinds if kind.__module__.startswith("transformers.models.")), "torch.nn.functional"}
    ):
        for name, part in _foreign_parts(module):
            raise UnsupportedError(
                f"model: {module}.{name} was replaced by one of {part.__module__}, and attrib computes what transformers' own does. "
                "Make the model in a process without that change."
            )


def _global_hooks() -> Iterator[tuple[str, str]]:
    for at, what in HOOKS.items():
        for hook in (getattr(torch_modules, f"_global{at}", None) or {}).values():
            yield _name(hook), what


def _attached(at: str, module: nn.Module) -> Iterator[str]:
    """What hangs on one module, worst first: each a sentence with its remedy."""
    kind = type(module)
    if hasattr(module, "_hf_hook"):  # accelerate
        yield (
            f"{at} has accelerate's {type(module._hf_hook).__name__}: its weights lie elsewhere until they are used. "
            "Load the model whole on one device (device_map='cpu', say), or accelerate.hooks.remove_hook_from_submodules(model)."
        )
    if parametrize.is_parametrized(module):
        which = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        yield (
            f"{at} computes its {which} anew at every call (torch.nn.utils.parametrize). "
            f"Fix it first: parametrize.remove_parametrizations(module, '{which.split(', ')[0]}')."
        )
    for where, what in HOOKS.items():
        for number, hook in (getattr(module, where, None) or {}).items():
            if not (given := _given(module, number, hook)).__module__.startswith(HOOKS_OF):
                yield f"{at} has a {what}, {_name(given)}, which attrib would leave out. Take it off first: {_remedy(module, hook)}."
    if module._compiled_call_impl is not None:
        yield f"{at} was compiled in place. Convert the model before module.compile(), or set module._compiled_call_impl = None."
    for name, value in vars(module).items():
        if callable(value) and callable(getattr(kind, name, None)) and _package(value) not in METHODS_OF:
            yield (
                f"{at} had its {name} replaced on the object, by {_name(value)}, and attrib computes what {kind.__name__} does. "
                f"Take it off: del module.{name}."
            )
    for name, parameter in module.named_parameters(recurse=False):
        if type(parameter) not in (nn.Parameter, torch.Tensor):
            yield f"{at}.{name} is a {type(parameter).__name__}, no plain tensor. Bring it into one first (dequantise, or gather it)."
        elif parameter.is_meta:
            yield f"{at}.{name} is on the meta device: it has no numbers. Load the weights first."


_FILES = ("from_pretrained", "save_pretrained")
"""Methods that other packages wrap, and that compute nothing."""


def _foreign_methods(kind: type) -> Iterator[FunctionType]:
    """Methods that were put into a class of torch, transformers or TransformerLens: of another package, or a pass of another class."""
    for base in kind.__mro__:
        if _package(base) in PACKAGES:
            for name, value in vars(base).items():
                is_other_pass = name == "forward" and base is not nn.Module and _name(value) != f"{base.__qualname__}.forward"
                if isinstance(value, FunctionType) and name not in _FILES and (is_other_pass or _package(value) not in PACKAGES):
                    yield value


def _foreign_parts(module: str) -> Iterator[tuple[str, Any]]:
    """What was put in place of functions and classes that a module of torch or transformers computes with, by their names there."""
    for name, value in vars(sys.modules[module]).items():
        computes = isinstance(value, FunctionType) or (isinstance(value, type) and issubclass(value, nn.Module))
        if computes and _package(value) not in PACKAGES and _package(value) not in sys.stdlib_module_names:
            yield name, value


def _remedy(module: nn.Module, hook: Any) -> str:
    for kind in type(getattr(hook, "__self__", hook)).__mro__:
        if kind.__name__ in _OFF:
            return _OFF[kind.__name__]
    if _is_hook_point(module):
        return "model.reset_hooks(including_permanent=True)"
    return "the handle that registering it gave has remove()"


def _is_hook_point(module: nn.Module) -> bool:
    """Whether a module is one of TransformerLens' hook points."""
    return hasattr(module, "fwd_hooks")


def _given(module: nn.Module, number: int, hook: Any) -> Any:
    """The hook that a user gave: a hook point has torch call one of its own around it."""
    handles = [*module.fwd_hooks, *module.bwd_hooks] if _is_hook_point(module) else []  # type: ignore[misc, operator]
    return next((handle.user_hook for handle in handles if handle.hook.id == number and handle.user_hook is not None), hook)


def _package(what: Any) -> str:
    return str(what.__module__).partition(".")[0]


def _name(what: Any) -> str:
    """A function by its name, an object by its class's."""
    return getattr(what, "__qualname__", type(what).__name__).replace(".<locals>", "")


# ------------------------------------------------------------------------------ what the config makes


def check_made_of(model: nn.Module) -> None:
    """Raises UnsupportedError where a transformers model is not made of the modules that its config makes, with their settings."""
    made = as_configured(model)
    _check_attention(model.config)
    theirs = dict(made.named_modules())
    for at, module in model.named_modules():
        expected = theirs.pop(at, None)
        name = at or type(model).__name__
        if expected is None:
            raise UnsupportedError(
                f"model: {name} is a {_named_class(module)} that {type(made).__name__} does not have: a part that attrib does not know. "
                "Take it out, or merge it into the weights (peft: merge_and_unload)."
            )
        if changed := _overrides(type(module), type(expected)):
            raise UnsupportedError(
                f"model: {name} is a {_named_class(module)}{changed}, in place of {_named_class(expected)}, which attrib computes. "
                "Put that back: merge adapters (peft: merge_and_unload), dequantise, or load the model without it."
            )
        for setting, value in _settings(expected).items() if at else ():  # the whole has settings of its loss and its files
            if (found := getattr(module, setting, value)) != value:
                raise UnsupportedError(
                    f"model: {name}.{setting} is {found!r}, and {value!r} by the model's config, which attrib reads. "
                    "Change the config as well."
                )
    for at, expected in theirs.items():
        raise UnsupportedError(f"model: {at}, a {type(expected).__name__} by the model's config, is not there. Change the config as well.")


def _check_attention(config: Any) -> None:
    """Raises UnsupportedError for a function that was registered with transformers in place of its own attention."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = config._attn_implementation
    function = ALL_ATTENTION_FUNCTIONS.get(name)
    if function is not None and _package(function) not in PACKAGES:
        raise UnsupportedError(
            f"model: attn_implementation={name!r} is {_name(function)} of {function.__module__}, and attrib computes softmax attention. "
            "Load the model with attn_implementation='eager'."
        )


def as_configured(model: Any) -> Any:
    """The transformers causal language model of a model's config, on the meta device: modules and settings, and no numbers."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(deepcopy(model.config), trust_remote_code=False)
    except Exception as error:  # of settings that are none
        raise InputError(
            f"model: transformers cannot make what the config of this {type(model).__name__} says: {first_line(error)}"
        ) from error


def check_parts_of_bridge(model: Any) -> None:
    """Look through a bridge, whose modules stand in other places: each is a bridge's own, or of a class that the config makes."""
    known = {type(module) for module in as_configured(model.original_model).modules()}
    for at, module in model.named_modules():
        kind = type(module)
        if at and kind not in known and not kind.__module__.startswith(("transformer_lens.", "torch.nn.modules.container")):
            raise UnsupportedError(
                f"model: {at} is a {_named_class(module)}, which {type(model.original_model).__name__} does not have: a part that attrib "
                "does not know. Boot the bridge from a model without it."
            )


def check_parts_of_hooked(model: Any) -> None:
    """Look through a HookedTransformer: every part is of TransformerLens or torch."""
    for at, module in model.named_modules():
        if at and _package(type(module)) not in ("transformer_lens", "torch"):
            raise UnsupportedError(
                f"model: {at} is a {_named_class(module)}, no part of TransformerLens: attrib does not know it. Take it out."
            )


def _named_class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}".replace(".<locals>", "").removeprefix("torch.nn.modules.")


_HARMLESS = (
    "__init__", "__new__", "__repr__", "__str__", "extra_repr", "_init_weights", "generate", "prepare_inputs_for_generation", *_FILES
)  # fmt: skip
"""What a subclass may do in its own way: none of it is a part of the pass that attrib computes."""


def _overrides(kind: type, expected: type) -> str:
    """What a class does in another way than the expected one, or nothing: a subclass that only adds to it computes the same."""
    if not issubclass(kind, expected):
        return ", another class"
    for between in kind.__mro__[: kind.__mro__.index(expected)]:
        for name, value in vars(between).items():
            is_method = callable(value) and not isinstance(value, type)
            if is_method and callable(getattr(expected, name, None)) and name not in _HARMLESS:
                return f" with its own {name}"
    return ""


_NOT_COMPUTED = ("training", "gradient_checkpointing", "vocab_size")
"""Attributes that no value follows from: they say how a model is trained, or what the shape of its embedding says."""


def _settings(module: nn.Module) -> dict[str, Any]:
    """The numbers and words that a module computes by, as its own attributes. What only training looks at is left out."""
    if isinstance(module, nn.Dropout):
        return {}
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_") and name not in _NOT_COMPUTED and "drop" not in name
    }
