"""Results made again, from what a file says of how they were made. Nothing that a file says is run: its texts are read as literals."""

import ast
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

from attrib.adapters import load_dictionary, load_model
from attrib.attribution import questions
from attrib.core import rules
from attrib.core.edges import Edges
from attrib.core.keep import RULES
from attrib.core.rules import USUAL, Rule, takes_other, with_other
from attrib.core.types import Difference, FormatError, InputError, Policy, Question, Site, TokenLogits, TopLogits, UnsupportedError
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.blocks.multiplier import is_there, multiplied_by, multiplier, recorded
from attrib.graph.building import build
from attrib.graph.graph import Graph
from attrib.graph.latents import Latents
from attrib.graph.neurons import NAME, Neurons
from attrib.graph.outputs import Span
from attrib.models.transformer import Model

Part = TypeVar("Part", Model, Dictionary)
_CHOICES = (TopLogits, TokenLogits, Difference, Span, Latents)
_RULES: dict[str, Callable[..., Any]] = RULES | rules.RULES | {kind.__name__: kind for kind in _CHOICES}


class Parts:
    """Models and dictionaries that were loaded already, and where others lie."""

    def __init__(self, places: dict[str, str | Path]) -> None:
        self._places, self._models, self._dictionaries = places, dict[str, Model](), dict[str, Dictionary]()

    def model(self, named: Mapping[str, Any]) -> Model:
        """The model of this name and sha256. Raises InputError where what is found is another."""
        return self._found(self._models, load_model, str(named["name"]), str(named["sha256"]))

    def dictionary(self, named: Mapping[str, Any]) -> Dictionary:
        """The dictionary of this name and sha256. Raises InputError where what is found is another."""
        return self._found(self._dictionaries, load_dictionary, str(named["name"]), str(named["sha256"]))

    def _found(self, seen: dict[str, Part], load: Callable[[str | Path], Part], name: str, sha256: str) -> Part:
        if sha256 not in seen:
            seen[sha256] = load(self._places.get(name) or self._places.get(sha256) or name)
        found = seen[sha256]
        if not found.matches(sha256):
            raise InputError(
                f"{name}: what is here under this name is not what the file was made with (sha256 {found.fingerprint[:12]}, and "
                f"not {sha256[:12]}). Say where the other lies with --at {name}=FOLDER."
            )
        return found


def edges_again(stored: Edges, parts: Parts) -> Edges:
    """Attribute a stored prompt anew, as its call says.

    Raises:
        UnsupportedError: where it does not say enough: a direction's vector, or a metric, is not stored.
        FormatError: where it cannot be read.
    """
    if stored.kind not in get_args(Question):
        raise UnsupportedError(
            f"rerun: edges from errors, and from tokens to logits, are not made again ({stored.kind}); attrib.jacobian does."
        )
    call = stored.call
    with readable():
        source = None if call["source"] is None else parts.dictionary(call["source"])
        target = parts.dictionary(call["target"]) if isinstance(call["target"], dict) else rule_of(call["target"])
        options: dict[str, Any] = {
            "policy": Policy(**call["policy"]), "keep": rule_of(call["keep"]), "positions": call["positions"], "dtype": call["dtype"],
            "budget": int(call["budget"]), "method": call["method"], "precision_rows": 0 if call["method"] != "torch.func" else None,
            "cuts": [parts.dictionary(cut) for cut in call["cuts"]], "effect": call["effect"], "rule": _rule_of(stored),
        }  # fmt: skip
        model = parts.model(call["model"])
        of_latents: dict[str, Any] = {
            "error": "source" if call["error"] == "source" else bool(call["error"]),
            "bias": bool(call.get("bias")),
        }
    tokens = [stored.prompts.ids]
    if source is None:
        return questions.token_to_latent(model, target, tokens, **options)
    if isinstance(target, Dictionary):
        return questions.latent_to_latent(model, source, target, tokens, **of_latents, **options)
    return questions.latent_to_logit(model, source, tokens, logits=target, **of_latents, **options)


def _rule_of(stored: Edges) -> Rule:
    """The rule of attribution of a stored prompt, with the one that it was compared with."""
    if "rule" not in stored.call:
        return USUAL
    found = rule_of(stored.call["rule"])
    if takes_other(found) and stored.prompts.corrupt is None:
        raise KeyError("corrupt")
    return with_other(found, [stored.prompts.corrupt])


def rule_of(text: Any) -> Any:
    """A rule of what is kept, or a choice of logits, from what Python writes for it. Nothing is evaluated but literals."""
    try:
        tree = ast.parse(str(text), mode="eval").body
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in _RULES and not tree.args:
            return _RULES[tree.func.id](**{str(word.arg): ast.literal_eval(word.value) for word in tree.keywords})
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    raise UnsupportedError(f"rerun: {str(text)[:60]!r} does not say enough: vectors of directions, and metrics, are not stored.")


def graph_again(stored: Graph, parts: Parts) -> Graph:
    """Build a stored prompt's graph anew, as its call says. Raises as `edges_again`."""
    call: Any = stored.call
    with readable():
        options: dict[str, Any] = {name: call[name] for name in ("mlps", "demean", "skip_positions", "max_nodes", "block", "method")}
        options |= {
            "policy": Policy(**call["policy"]), "keep": rule_of(call["keep"]), "targets": [rule_of(what) for what in call["targets"]],
            "positions": call["positions"], "dtype": call["dtype"], "budget": int(call["budget"]),
        }  # fmt: skip
        nodes = [neurons_of(one) or parts.dictionary(one) for one in call["dictionaries"]]
        model = parts.model(call["model"])
    [graph] = build(model, nodes, [stored.tokens], **options)
    return graph


def neurons_of(named: Mapping[str, Any]) -> Neurons | None:
    """An MLP's own units, where a graph's record names them; None where it names a dictionary."""
    if named["name"] != NAME or "sha256" in named:
        return None
    return Neurons(Site.parse(named["site"]).layer, named["k"])


@contextmanager
def as_recorded(call: Mapping[str, Any]) -> Iterator[str]:
    """Have large products go to whom a result says that they went; where this torch has not that one, to whom they go anyway, who is named.

    Raises:
        FormatError: where it names whom nobody knows.
    """
    with readable():
        who = recorded(call)
    lacks = who is not None and not is_there(who)
    with multiplied_by(None if lacks else who):
        yield multiplier() if lacks else ""


@contextmanager
def readable() -> Iterator[None]:
    """What a call that is none leads to, as a FormatError."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as fault:
        raise FormatError(f"call: it does not say how these edges were made ({type(fault).__name__}: {fault}).") from fault
