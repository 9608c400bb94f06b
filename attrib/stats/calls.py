"""Whether edges may be counted together, and what their calls have in common."""

import json
from typing import Any

from attrib.core.types import InputError
from attrib.store import Block

_ONE = ("model", "source", "target", "cuts", "effect", "policy", "error")
"""What must be the same: statistics over other models, dictionaries or derivatives would be of nothing."""


def plain(call: dict[str, Any]) -> dict[str, Any]:
    """A call as it comes back from a file. Raises InputError where JSON cannot hold it."""
    try:
        return json.loads(json.dumps(call))
    except (TypeError, ValueError) as error:
        raise InputError(f"edges: `call` cannot be written as JSON ({error}); expected dicts, lists, strings and numbers alone.") from error


def check_same(block: Block, a: dict[str, Any], b: dict[str, Any]) -> None:
    """Raises InputError where two calls of a block are not of one model, source, target and way to differentiate."""
    for name in _ONE:
        first, second = _identity(a.get(name)), _identity(b.get(name))
        if first != second:
            raise InputError(
                f"edges: the calls of '{block}' differ in {name}: {first!r} and {second!r}; expected the same. Keep their statistics apart."
            )


def common(a: Any, b: Any) -> Any:
    """What two calls share, key by key. The same for any order and grouping of several."""
    if isinstance(a, dict) and isinstance(b, dict):
        both = {key: common(a[key], b[key]) for key in sorted(a.keys() & b.keys())}
        return {key: value for key, value in both.items() if value is not _DIFFERENT}
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        items = [common(*pair) for pair in zip(a, b, strict=True)]
        return _DIFFERENT if any(item is _DIFFERENT for item in items) else items
    return a if type(a) is type(b) and a == b else _DIFFERENT


_DIFFERENT = object()


def _identity(value: Any) -> Any:
    """Parameters are known by their hash, whatever they are called."""
    if isinstance(value, dict):
        return value.get("sha256", value)
    return [_identity(item) for item in value] if isinstance(value, list) else value
