"""Making a stored prompt's edges again, from what its file says of how they were made, and comparing."""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, assert_never, get_args

from attrib.adapters import load_dictionary, load_model
from attrib.attribution import questions
from attrib.core.edges import Edges
from attrib.core.keep import RULES
from attrib.core.types import (
    Dense,
    Difference,
    FormatError,
    InputError,
    Keep,
    Mass,
    Policy,
    Question,
    Threshold,
    TokenLogits,
    TopK,
    TopLogits,
    UnsupportedError,
)
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model
from attrib.store import open_collection, open_shard
from attrib.store.collection import SHARDS, folder_of

TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
"""How far an edge may be off, as a share of the prompt's largest attribution: a prompt alone and a prompt in its shard are products of
different numbers of rows, which end in other digits.
"""
REDUCED = 5e-2
"""How far it may be off where products are in tf32 or bfloat16."""

Part = TypeVar("Part", Model, Dictionary)
Places = Mapping[str, str | Path]
_RULES: dict[str, Callable[..., Any]] = RULES | {kind.__name__: kind for kind in (TopLogits, TokenLogits, Difference)}


class Compared(NamedTuple):
    """One block of a prompt, as stored and as it comes out now."""

    kind: str
    source: str
    target: str
    edges: int
    """Stored ones."""
    apart: float
    """The largest difference of an attribution or of a row's sums, as a fraction of the largest attribution or sum."""
    only_one_keeps: int
    """Edges that only the stored or only the new result keeps: those at the very edge of what is kept."""
    is_same: bool
    """Whether all that is rounding."""


def rerun(path: str | Path, prompt: int, *, places: Places | None = None) -> list[Compared]:
    """Make one prompt's edges again, block by block, and compare them with those of a file.

    Args:
        path: a shard, or a folder of shards.
        prompt: its number in the data set; in a file that has none, its place.
        places: where the model and the dictionaries lie that the file only names, by name or by sha256.

    Raises:
        InputError: where there is no such prompt, a model or dictionary is not found, or is not the one that the file was made with.
        UnsupportedError: where the file does not say enough: a direction's vector, or a metric, is not stored.
        FormatError: where what the file says of its making cannot be read.
    """
    with open_collection(path) as collection:
        try:
            shard, place = collection.place_of(prompt)
        except InputError as missing:
            if (folder := folder_of(Path(path))).name != SHARDS:
                raise
            listing = f"`attrib job status {folder.parent} --refused` lists the prompts that the job left out, and why."
            raise InputError(f"{missing} {listing}") from missing
    with open_shard(shard) as store:
        stored = [store.edges(*block, prompts=place) for block in store.blocks]
    loaded = _Loaded(dict(places or {}))
    return [_compare(edges, _again(edges, loaded)) for edges in stored]


class _Loaded:
    """Models and dictionaries that were loaded already, and where others lie."""

    def __init__(self, places: dict[str, str | Path]) -> None:
        self._places, self._models, self._dictionaries = places, dict[str, Model](), dict[str, Dictionary]()

    def model(self, named: Mapping[str, Any]) -> Model:
        return self._found(self._models, load_model, str(named["name"]), str(named["sha256"]))

    def dictionary(self, named: Mapping[str, Any]) -> Dictionary:
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


def _again(stored: Edges, loaded: _Loaded) -> Edges:
    """Attribute a stored prompt anew, as its call says."""
    if stored.kind not in get_args(Question):
        raise UnsupportedError(
            f"rerun: edges from errors, and from tokens to logits, are not made again ({stored.kind}); attrib.jacobian does."
        )
    call = stored.call
    try:
        source = None if call["source"] is None else loaded.dictionary(call["source"])
        target = loaded.dictionary(call["target"]) if isinstance(call["target"], dict) else _rule(call["target"])
        options: dict[str, Any] = {
            "policy": Policy(**call["policy"]), "keep": _rule(call["keep"]), "positions": call["positions"], "dtype": call["dtype"],
            "budget": int(call["budget"]), "method": call["method"], "precision_rows": 0 if call["method"] != "torch.func" else None,
            "cuts": [loaded.dictionary(cut) for cut in call["cuts"]], "effect": call["effect"],
        }  # fmt: skip
        model, error = loaded.model(call["model"]), bool(call["error"])
    except (KeyError, TypeError, ValueError) as fault:
        if isinstance(fault, InputError):
            raise
        raise FormatError(f"call: it does not say how these edges were made ({type(fault).__name__}: {fault}).") from fault
    tokens = [stored.prompts.ids]
    if source is None:
        return questions.token_to_latent(model, target, tokens, **options)
    if isinstance(target, Dictionary):
        return questions.latent_to_latent(model, source, target, tokens, error=error, **options)
    return questions.latent_to_logit(model, source, tokens, logits=target, error=error, **options)


def _rule(text: Any) -> Any:
    """A rule of what is kept, or a choice of logits, from what Python writes for it. Nothing is evaluated but literals."""
    try:
        tree = ast.parse(str(text), mode="eval").body
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in _RULES and not tree.args:
            return _RULES[tree.func.id](**{str(word.arg): ast.literal_eval(word.value) for word in tree.keywords})
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    raise UnsupportedError(f"rerun: {str(text)[:60]!r} does not say enough: vectors of directions, and metrics, are not stored.")


def _compare(stored: Edges, now: Edges) -> Compared:
    named = stored.kind, stored.sources.site, stored.targets.site, len(stored)
    nodes = [(one.position.tolist(), one.latent.tolist()) for edges in (stored, now) for one in (edges.sources, edges.targets)]
    if nodes[:2] != nodes[2:]:
        return Compared(*named, float("inf"), len(stored) + len(now), False)
    columns = len(stored.sources)
    was, new = (dict(zip((each.row * columns + each.indices).tolist(), each.attribution.tolist(), strict=True)) for each in (stored, now))
    both = was.keys() & new.keys()
    largest = max((abs(value) for value in was.values()), default=0.0) or 1.0
    sums = max(float(stored.l1.max()) if len(stored.l1) else 0.0, largest)
    apart = max((abs(was[at] - new[at]) for at in both), default=0.0) / largest
    for old, again in ((stored.total, now.total), (stored.l1, now.l1)):
        apart = max(apart, float((old - again).abs().max()) / sums if len(old) else 0.0)
    tolerance = TOLERANCES.get(str(stored.call["dtype"]), REDUCED)
    slack = tolerance * largest
    limits = [_least(kept, columns, _rule(stored.call["keep"])) for kept in (was, new)]
    sides = (was, new.keys(), limits[1]), (new, was.keys(), limits[0])
    is_marginal = all(abs(kept[at]) <= limit(at) + slack for kept, other, limit in sides for at in kept.keys() - other)
    return Compared(*named, apart, len(was.keys() ^ new.keys()), apart <= tolerance and is_marginal)


def _least(kept: Mapping[int, float], columns: int, rule: Keep) -> Callable[[int], float]:
    """The least that a result keeps in the row of an edge: what only the other one keeps should not be larger.

    Where it keeps nothing in a row there is nothing to compare with, so nothing but rounding may be missing there. A threshold is told
    by the rule itself, whatever else its row keeps.
    """
    match rule:
        case Threshold(t):
            return lambda at: t
        case Dense() | TopK() | Mass():
            least: dict[int, float] = {}
            for at, value in kept.items():
                least[at // columns] = min(abs(value), least.get(at // columns, float("inf")))
            return lambda at: least.get(at // columns, 0.0)
    assert_never(rule)
