"""What stands where a model or a dictionary is expected: attrib's own, a name, or the object of another library.

Public functions take what is meant, where that is clear, by `takes`: each of the arguments that it names is converted
before the function sees it, so that everything behind the public face knows one type for one thing.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from attrib.adapters.attachments import check_wrapper
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model

P = ParamSpec("P")
R = TypeVar("R")
Take = Callable[[Any, str], Any]
"""From what was given, and the argument's name, to what is meant. Raises InputError."""


def takes(**converted: Take) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The function, with some of its arguments converted first; those that are left out keep their defaults."""

    def around(function: Callable[P, R]) -> Callable[P, R]:
        known = signature(function)
        assert converted.keys() <= known.parameters.keys()

        @wraps(function)
        def taken(*args: P.args, **options: P.kwargs) -> R:
            given = known.bind(*args, **options)
            for name in converted.keys() & given.arguments.keys():
                given.arguments[name] = converted[name](given.arguments[name], name)
            return function(*given.args, **given.kwargs)

        return taken

    return around


def as_model(given: Any, argument: str = "model") -> Model:
    """attrib's model of what was given: itself, one that is loaded by its name, or the conversion of another library's.

    A conversion is made anew at every call, for the original may have changed since; whoever calls often converts once
    (`from_hugging_face`, `from_transformer_lens`). Of a transformers model it has no tokenizer, so prompts are token ids.

    Raises:
        InputError: for what is no model, naming the argument.
        UnsupportedError: for what is around a model or hangs on it (see attachments.py); else what `load_model` and the conversions raise.
    """
    from attrib import adapters

    if isinstance(given, Model):
        return given
    if isinstance(given, str | Path):
        return _loaded(adapters.load_model, given, "model", argument)
    if not isinstance(given, type):
        if hasattr(given, "run_with_cache"):
            return adapters.from_transformer_lens(given)
        if hasattr(given, "config") and hasattr(given, "state_dict"):
            return adapters.from_hugging_face(given)
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
    from attrib import adapters

    if isinstance(given, Dictionary):
        return given
    if isinstance(given, str | Path):
        return _loaded(adapters.load_dictionary, given, "dictionary", argument)
    if not isinstance(given, type) and all(hasattr(given, part) for part in ("cfg", "state_dict", "encode")):
        return adapters.from_sae_lens(given)
    raise InputError(
        f"{argument}: got {_named(given)}; expected an attrib.Dictionary, the name or folder of one (see attrib.load_dictionary), or a "
        "sae-lens SAE."
    )


def as_source(given: Any, argument: str) -> Dictionary | None:
    """A dictionary as `as_dictionary` takes it, or None, which stands for the tokens."""
    return None if given is None else as_dictionary(given, argument)


def as_target(given: Any, argument: str) -> Any:
    """What is a dictionary to `as_dictionary` and could not be a choice of logits: objects, folders, and names with a slash."""
    is_name = isinstance(given, Path) or (isinstance(given, str) and "/" in given and given == given.strip())
    return as_dictionary(given, argument) if is_name or hasattr(given, "cfg") else given


def as_dictionaries(given: Any, argument: str) -> tuple[Dictionary, ...]:
    """Dictionaries as `as_dictionary` takes each, from one or from several."""
    return tuple(as_dictionary(one, f"{argument}[{number}]") for number, one in enumerate([given] if _is_one(given) else given))


def as_one_or_several(given: Any, argument: str) -> Dictionary | tuple[Dictionary, ...]:
    """One dictionary as `as_dictionary` takes it, or several. Raises InputError for none."""
    if _is_one(given):
        return as_dictionary(given, argument)
    if found := as_dictionaries(given, argument):
        return found
    raise InputError(f"{argument}: none; expected a dictionary, or a list of at least one.")


def as_sources(given: Any, argument: str) -> Dictionary | tuple[Dictionary, ...] | None:
    """One dictionary or several, or None, which stands for the tokens."""
    return None if given is None else as_one_or_several(given, argument)


def _is_one(given: Any) -> bool:
    """Whether what stands for dictionaries is no list of them."""
    is_object = any(hasattr(given, name) for name in ("cfg", "_fields"))  # a sae-lens SAE, a choice of logits
    return isinstance(given, Dictionary | str | Path) or is_object or not isinstance(given, Iterable)


def only(kind: type, expected: str, *, or_none: bool = False) -> Take:
    """Takes what is of one type, and nothing in its place.

    Args:
        expected: what the error says of it: what it is, and what gives it.
        or_none: whether None is taken too.
    """

    def checked(given: Any, argument: str) -> Any:
        if isinstance(given, kind) or (or_none and given is None):
            return given
        raise InputError(f"{argument}: got {_named(given)}; expected {expected}.")

    return checked


def as_bytes(given: Any, argument: str) -> int:
    """A number of bytes, given as such or as text: "512MiB", "2GB". Raises InputError."""
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        if isinstance(given, str):
            return int(TypeAdapter(ByteSize).validate_python(given))
    except ValidationError:
        pass  # said below, in our own words
    raise InputError(f"{argument}: {given!r:.60}; expected a number of bytes, or a size as text, such as '512MiB' or '2GiB'.")


def _loaded(load: Callable[[Any], R], name: str | Path, what: str, argument: str) -> R:
    """What a name stands for; an error names the argument that it came as."""
    try:
        return load(name)
    except InputError as error:
        raise InputError(f"{argument}: {str(error).removeprefix(f'{what}: ')}") from error


def _named(given: Any) -> str:
    """What came, short enough for a message."""
    return f"the class {given.__name__}" if isinstance(given, type) else "None" if given is None else f"a {type(given).__name__}"
