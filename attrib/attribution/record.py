"""What a result says of how it was made: enough to make it again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attrib.attribution.options import ErrorAs, Options
from attrib.core.fingerprints import fingerprints, sha256_of
from attrib.core.rules import is_usual, rule_record
from attrib.core.types import EdgeKind, ErrorAt
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.blocks.multiplier import multiplier
from attrib.engine.precision import Precision
from attrib.models.tokens import on_host
from attrib.models.transformer import Model


def products_record(model: Model, precision: Precision) -> dict[str, Any]:
    """Whom large products went to, where that is a choice: last digits follow from it."""
    return {"products": multiplier()} if model.device.type == "cpu" and precision.path == torch.float32 else {}


def call_record(
    kind: EdgeKind,
    model: Model,
    source: Dictionary | ErrorAt | str | None,
    target: Any,
    prompts: list[Tensor],
    options: Options,
    precision: Precision,
    error: ErrorAs,
    bias: bool = False,
    others: Sequence[Tensor] | None = None,
) -> dict[str, Any]:
    """What was asked for, and hashes of what it was asked of, as JSON can hold it.

    What is usual and has come later is left out, so that a result says what it said before.

    Args:
        others: the prompts that the rule compares with.
    """

    dictionaries = [one for one in (source, target, *options.cuts) if isinstance(one, Dictionary)]
    of_model, *of_others = fingerprints([model, *dictionaries])
    found = dict(zip(map(id, dictionaries), of_others, strict=True))

    def named(dictionary: Any) -> dict[str, Any] | None:
        if isinstance(dictionary, ErrorAt):
            return {"name": "error", "site": str(dictionary.site)}
        if not isinstance(dictionary, Dictionary):
            return None  # token scales, which are the model's own
        return {"name": dictionary.name, "site": str(dictionary.site), "d_sae": dictionary.d_sae, "sha256": found[id(dictionary)]}

    what = named(target) if isinstance(target, Dictionary) else getattr(target, "__name__", None) or repr(target)
    later: dict[str, Any] = {} if is_usual(options.rule) else {"rule": rule_record(options.rule)}
    later |= {} if others is None else {"corrupt": {"count": len(others), "sha256": sha256_of(on_host(others))}}
    later |= {"bias": True} if bias else {}
    later |= products_record(model, precision)
    return later | {
        "kind": kind, "model": {"name": model.name, "sha256": of_model} | ({} if model.config.causal else {"causal": False}),
        "tokenizer": {"sha256": model.tokenizer.sha256 if model.tokenizer else None},
        "prompts": {"count": len(prompts), "sha256": sha256_of(on_host(prompts))}, "source": named(source), "target": what,
        "cuts": [named(cut) for cut in options.cuts], "effect": options.effect,
        "policy": options.policy._asdict(), "keep": repr(options.keep), "error": error,
        "positions": list(options.positions) if isinstance(options.positions, tuple) else options.positions,
        "dtype": precision.name, "method": options.method, "budget": options.budget,
        "seed": None, "precision_error": None,
    }  # fmt: skip
