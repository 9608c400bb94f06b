"""What is wrong with a description of work, in attrib's words: keys as TOML has them, what came, what was expected."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

LONGEST = 60
"""Characters of a wrong value that are shown."""

_EXPECTED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "literal_error": lambda of: str(of["expected"]),
    "int_type": lambda of: "a whole number",
    "int_parsing": lambda of: "a whole number",
    "int_from_float": lambda of: "a whole number",
    "int_parsing_size": lambda of: "a smaller number",
    "float_type": lambda of: "a number",
    "float_parsing": lambda of: "a number",
    "finite_number": lambda of: "a finite number",
    "bool_type": lambda of: "true or false",
    "bool_parsing": lambda of: "true or false",
    "string_type": lambda of: "text in quotes",
    "string_too_short": lambda of: f"at least {of['min_length']} character",
    "path_type": lambda of: "a path in quotes",
    "list_type": lambda of: "a list",
    "tuple_type": lambda of: "a list",
    "too_short": lambda of: f"at least {of['min_length']}",
    "too_long": lambda of: f"at most {of['max_length']}",
    "dict_type": lambda of: "a table",
    "model_type": lambda of: "a table",
    "byte_size": lambda of: "a size, as 512MiB or 2GiB",
    "byte_size_unit": lambda of: "a size, as 512MiB or 2GiB",
    "greater_than": lambda of: f"more than {of['gt']}",
    "greater_than_equal": lambda of: f"{of['ge']} or more",
    "less_than": lambda of: f"less than {of['lt']:,}",
    "less_than_equal": lambda of: f"{of['le']} or less",
}
"""By pydantic's kinds of faults; what each tells of itself is its context."""


def faults_of(error: ValidationError, what: str) -> list[str]:
    """A line for each key that is wrong, without a full stop; `what` stands for the whole."""
    expected: dict[str, dict[str, None]] = {}  # a value that may be of several types has a fault for each: they become one line
    lines: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        key = _key(fault["loc"], fault["type"] == "extra_forbidden") or what
        if fault["type"] in _EXPECTED:
            expected.setdefault(key, {})[_EXPECTED[fault["type"]](fault.get("ctx", {}))] = None
            lines[key] = f"{key}: {_shown(fault['input'])}; expected {' or '.join(expected[key])}"
        else:
            of_all = not fault["loc"] and fault["type"] == "value_error"  # which names its keys itself
            lines.setdefault(key, _other(fault) if of_all else f"{key}: {_other(fault)}")
    return list(lines.values())


def _other(fault: Any) -> str:
    match fault["type"]:
        case "missing":
            return "missing, and it is required"
        case "extra_forbidden":
            return "there is no such key; it is misspelt or does not belong here"
    return str(fault["msg"]).removeprefix("Value error, ").removesuffix(".")


def _key(place: tuple[int | str, ...], is_unknown: bool) -> str:
    """('attribution', 0, 'kind') as attribution[0].kind. What pydantic adds for the members of a union is left out.

    Args:
        is_unknown: whether the last part is no key of attrib's, and may be any text.
    """
    key = ""
    for number, part in enumerate(place, 1):
        if isinstance(part, int):
            key += f"[{part}]"
        elif (is_unknown and number == len(place)) or (part.isidentifier() and part not in ("int", "str", "float", "bool")):
            key += f".{part}" if key else part
    return key


def _shown(value: object) -> str:
    try:
        text = str(value).lower() if isinstance(value, bool) else repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
