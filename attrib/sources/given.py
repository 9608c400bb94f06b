"""What stands where a model or a dictionary is expected: attrib's own, a name, or the object of another library."""

from pathlib import Path
from typing import Any

from attrib.dictionary import Dictionary
from attrib.model import Model
from attrib.sources.attachments import check_wrapper
from attrib.types import InputError


def as_model(given: Any, argument: str = "model") -> Model:
    """attrib's model of what was given: itself, one that is loaded by its name, or the conversion of another library's.

    A conversion is made anew at every call, for the original may have changed since; whoever calls often converts once
    (`from_hugging_face`, `from_transformer_lens`). Of a transformers model it has no tokenizer, so prompts are token ids.

    Raises:
        InputError: for what is no model, naming the argument.
        UnsupportedError: for what is around a model or hangs on it (see attachments.py); else what `load_model` and the conversions raise.
    """
    from attrib import sources

    if isinstance(given, Model):
        return given
    if isinstance(given, str | Path):
        return sources.load_model(given)
    if not isinstance(given, type):
        if hasattr(given, "run_with_cache"):
            return sources.from_transformer_lens(given)
        if hasattr(given, "config") and hasattr(given, "state_dict"):
            return sources.from_hugging_face(given)
        check_wrapper(given)
    raise InputError(
        f"{argument}: got {_named(given)}; expected an attrib.Model, the name or folder of one (see attrib.load_model), a "
        "HookedTransformer or TransformerBridge, or a transformers causal language model."
    )


def as_dictionary(given: Any, argument: str = "dictionary") -> Dictionary:
    """attrib's dictionary of what was given: itself, one that is loaded by its name, or the conversion of a sae-lens SAE.

    Raises:
        InputError: for what is no dictionary, naming the argument; else what `load_dictionary` and `from_sae_lens` raise.
    """
    from attrib import sources

    if isinstance(given, Dictionary):
        return given
    if isinstance(given, str | Path):
        return sources.load_dictionary(given)
    if not isinstance(given, type) and all(hasattr(given, part) for part in ("cfg", "state_dict", "encode")):
        return sources.from_sae_lens(given)
    raise InputError(
        f"{argument}: got {_named(given)}; expected an attrib.Dictionary, the name or folder of one (see attrib.load_dictionary), or a "
        "sae-lens SAE."
    )


def _named(given: Any) -> str:
    """What came, short enough for a message."""
    return f"the class {given.__name__}" if isinstance(given, type) else "None" if given is None else f"a {type(given).__name__}"
