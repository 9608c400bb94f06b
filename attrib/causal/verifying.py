"""`verify`: edges and graphs held against interventions, by what is at hand and what their records say of how they were made."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.attribution.needs import constant, put_into
from attrib.causal.agreement import GROUPS, Agreement, checked_steps, relative
from attrib.causal.graph_measuring import GraphQuestion, check_graph
from attrib.causal.measuring import Question, measure
from attrib.causal.readings import LogitNodes, Reading
from attrib.core.edges import Edges, Nodes
from attrib.core.room import memory_named
from attrib.core.types import (
    AttribWarning,
    Difference,
    Direction,
    ErrorAt,
    InputError,
    Policy,
    Progress,
    TokenLogits,
    TopLogits,
    UnsupportedError,
)
from attrib.dictionaries.dictionary import Dictionary
from attrib.graph.graph import Graph
from attrib.models.transformer import Model
from attrib.paths.targets import as_logits
from attrib.runs.again import Parts, neurons_of, readable, rule_of

if TYPE_CHECKING:
    import pandas as pd

DTYPES = ("float64", "float32")
SOURCES = 32
STEPS = (1e-3, 1.0)


class Count(NamedTuple):
    """How much is measured of each set of edges; one of the two is None."""

    n: int | None
    """Sources."""
    n_edges: int | None
    """Edges."""


Measurable = Edges | Graph
"""What says how its targets move with its sources."""


def _as_model(given: Any, argument: str) -> Any:
    return None if given is None else as_model(given, argument)


@memory_named("measuring edges")
@takes(model=_as_model, dictionaries=as_dictionaries)
@torch.no_grad()
def verify(
    edges: Measurable | Iterable[Measurable] | Mapping[Any, Edges],
    model: Model | None = None,
    *,
    n: int | None = None,
    n_edges: int | None = None,
    steps: Any = STEPS,
    seed: int = 0,
    dictionaries: Sequence[Dictionary] = (),
    target: Any = None,
    dtype: str = "float64",
    places: Mapping[str, str | Path] | None = None,
    progress: Progress | None = None,
) -> Agreement:
    """Intervene on sampled sources of edges, or nodes of a graph, and compare what their targets do with what the edges predict.

    Each intervention changes one source alone in the model's own forward pass, with everything held that the edges held: other
    latents of a cut, errors, and what the policy freezes. See docs/agreement.md for what is measured at which step.

    Args:
        edges: what an attribution gave, of any kind, or an attribution graph; several of them, or what `attrib.jacobian` gave.
        model: that they were made with; None loads it by the name that the edges tell.
        n: how many *sources* are intervened on, of each of `edges`, drawn among those that have edges. All edges of theirs are measured,
            at the cost of a few passes for each source. None is 32, where `n_edges` is not given.
        n_edges: in the place of `n`, how many *edges* are measured, of each of `edges`, drawn among all; each asks passes of its source.
        steps: one or several, by how much of its activation a source is changed: below 1 up and down, at 1 it is left out.
        seed: of the draw.
        dictionaries: that they were made with, in any order; those that are missing are loaded by name.
        target: the metric, or the direction, of edges to one; the targets of a graph with vectors among them: no record has these.
        dtype: of the passes. Whatever the edges are in, "float64" measures without rounding; with "float32" the difference of two
            passes at a step of 1e-3 has three digits less than the passes.
        places: where models and dictionaries lie that are loaded, by name or sha256.
        progress: called with how many edges are measured, and how many in all; -1 where there are several of `edges`.

    Raises:
        InputError: for options that cannot be, edges without numbers, and a model or dictionary that is not the one they were made with.
        UnsupportedError: where a record does not say enough and `target` is not given.
    """
    several = _listed(edges)
    checked, generator = checked_steps(steps), torch.Generator().manual_seed(_whole(seed, "seed", 0))
    count = _counted(n, n_edges)
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r}; expected one of {', '.join(DTYPES)}.")
    known = Known(model, dictionaries, Parts(dict(places or {})), dtype)
    lines, passes = list[dict[str, Any]](), list[dict[str, Any]]()
    measured = 0

    def told(more: int) -> None:
        nonlocal measured
        measured += more
        if progress is not None:
            progress(measured, len(drawn) if len(several) == 1 else -1)

    for number, one in enumerate(several):
        if isinstance(one, Graph):
            of_graph = graph_question_of(one, known, target)
            drawn = _drawn(one.indices, of_graph.measurable, count, generator)
            _measure_graph(number, one, of_graph, checked, drawn, lines, passes, told)
        else:
            drawn = _drawn(one.indices, torch.ones_like(one.indices, dtype=torch.bool), count, generator)
            _measure(one, question_of(one, known, target), checked, drawn, lines, passes, told)
    return made(lines, passes, {"steps": list(checked), "seed": seed, **count._asdict(), "dtype": dtype})


def made(lines: list[dict[str, Any]], passes: list[dict[str, Any]], call: dict[str, Any]) -> Agreement:
    """The result, of what was measured."""
    import pandas as pd

    columns = ["pair", "step", "prompt", "edge", "source", "target", "predicted", "measured", "silent", "lost"]
    table = pd.concat([pd.DataFrame(line) for line in lines], ignore_index=True) if lines else pd.DataFrame(columns=columns)
    table["measured"] = table.measured.where(np.isfinite(table.measured.to_numpy(float)))
    _tell_of_no_number(table, str(call["dtype"]))
    table["error"] = table.measured - table.predicted
    table["relative"] = relative(table.predicted.to_numpy(float), table.measured.to_numpy(float))
    found = pd.DataFrame(passes, columns=[*GROUPS, "sources", "activated"])
    return Agreement(table, found.groupby(list(GROUPS), sort=False, as_index=False).sum(), call)


def _tell_of_no_number(table: "pd.DataFrame", dtype: str) -> None:
    without = table[table.measured.isna()]
    if len(without):
        first = without.iloc[0]
        warnings.warn(
            f"steps: {len(without):,} of {len(table):,} measurements have no number, first {first.source} -> {first.target} at step "
            f"{first.step:g}: with that source changed, the model's values leave what {dtype} holds, at {first.lost or 'what is read'}. "
            "Where norms are held, nothing keeps small what MLPs read, and each that is gated about squares it. These are NaN, and left "
            "out of the summary's figures; a smaller step measures them.",
            AttribWarning,
            stacklevel=2,
        )


class Known:
    """The model and the dictionaries of a measurement, in its precision."""

    def __init__(self, model: Model | None, dictionaries: Sequence[Dictionary], parts: Parts, dtype: str) -> None:
        self._model, self._dictionaries, self._parts, self._dtype = model, tuple(dictionaries), parts, dtype
        self._made = dict[str, Any]()

    def model(self, named: Mapping[str, Any]) -> Model:
        """The model of a record."""
        if self._model is not None and not self._model.matches(str(named["sha256"])):
            raise InputError(
                f"model: {self._model.name} is not the one that the edges were made with, which is {named['name']} "
                f"(sha256 {str(named['sha256'])[:12]}). Give that one, or none."
            )
        found: Model = self._once(named, lambda: (self._model or self._parts.model(named)).to(dtype=self._dtype, device="cpu"))
        return found

    def dictionary(self, named: Mapping[str, Any], model: Model, argument: str) -> Dictionary:
        """A dictionary of a record, as it reads and writes the model."""
        sha256 = str(named["sha256"])

        def make() -> Dictionary:
            given = next((one for one in self._dictionaries if one.matches(sha256)), None)
            return put_into(model, given or self._parts.dictionary(named), argument)

        found: Dictionary = self._once(named, make)
        return found

    def _once(self, named: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        sha256 = str(named["sha256"])
        if sha256 not in self._made:
            self._made[sha256] = constant(make())
        return self._made[sha256]


def question_of(edges: Edges, known: Known, target: Any) -> Question:
    """What some edges are edges of, by their record.

    Raises:
        InputError: where the record is not that of an attribution, or something was made with other weights.
        UnsupportedError: where it does not say what the target is, and `target` does not either.
        FormatError: where it cannot be read.
    """
    call = edges.call
    if missing := [name for name in ("model", "source", "target", "cuts", "effect", "policy", "error") if name not in call]:
        raise InputError(
            f"edges: their call has no {missing[0]!r}, so it does not say how they were made; expected what attrib's attributions give, "
            "or what is read of a file."
        )
    with readable():
        return _question(edges, known, target)


def _question(edges: Edges, known: Known, target: Any) -> Question:
    call = edges.call
    model = known.model(call["model"])
    named = call["source"]
    source: Dictionary | ErrorAt | None = None
    if isinstance(named, Mapping):
        is_error = named["name"] == "error" and "sha256" not in named
        source = ErrorAt(named["site"]) if is_error else known.dictionary(named, model, "source")
    reading = Reading(model, _target_of(edges, known, model, target))
    cuts = tuple(known.dictionary(cut, model, f"cuts[{number}]") for number, cut in enumerate(call["cuts"]))
    return Question(model, source, reading, cuts, call["effect"], Policy(**call["policy"]), bool(call["error"]))


def _target_of(edges: Edges, known: Known, model: Model, given: Any) -> Any:
    named = edges.call["target"]
    if isinstance(named, Mapping):
        return known.dictionary(named, model, "target")
    if edges.kind == "latent_to_metric":
        if not callable(given):
            raise UnsupportedError(
                f"target: the edges go to the metric {named!r}, which no record has; give the function as target=, or leave them out."
            )
        return given
    if str(named).startswith("Direction("):
        if not isinstance(given, Direction):
            raise UnsupportedError(
                "target: the edges go to a direction, whose vector no record has; give it as target=Direction(...), or leave them out."
            )
        return as_logits(given)
    what = rule_of(named)
    if isinstance(what, TopLogits | TokenLogits):
        return LogitNodes
    assert isinstance(what, Difference)
    return what


def graph_question_of(graph: Graph, known: Known, target: Any) -> GraphQuestion:
    """A graph's nodes and rows, by its record. Raises as `question_of`."""
    call = check_graph(graph)
    with readable():
        model = known.model(call["model"])
        given = [neurons_of(one) or known.dictionary(one, model, f"dictionaries[{n}]") for n, one in enumerate(call["dictionaries"])]
        targets = [rule_of(what) for what in call["targets"]] if target is None else target
    return GraphQuestion.of(graph, model, given, targets)


def _listed(edges: Any) -> list[Measurable]:
    several = [edges] if isinstance(edges, Measurable) else list(edges.values() if isinstance(edges, Mapping) else edges)
    if not several or any(not isinstance(one, Measurable) for one in several):
        wrong = next((type(one).__name__ for one in several if not isinstance(one, Measurable)), "none")
        raise InputError(f"edges: {wrong}; expected attrib.Edges or graphs of attrib.graph.build, or several of them.")
    for one in several:
        if isinstance(one, Edges) and not bool(one.attribution.isfinite().all()):
            raise InputError(f"edges: an attribution of {one!r} is NaN or infinite; `attrib verify-file` says what is wrong with a file.")
    return several


def _whole(value: Any, argument: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{argument}: {value!r}; expected a whole number, {least} or more.")
    return value


def _counted(n: Any, n_edges: Any) -> Count:
    """How much is measured. Raises InputError where both are told, or one is no whole number."""
    if n is not None and n_edges is not None:
        raise InputError(f"n_edges: {n_edges!r} edges beside n, {n!r} sources with all of their edges; give one of the two.")
    if n_edges is not None:
        return Count(None, _whole(n_edges, "n_edges", 1))
    return Count(SOURCES if n is None else _whole(n, "n", 1), None)


def _drawn(
    source: Int[Tensor, " edges"], is_there: Bool[Tensor, " edges"], count: Count, generator: torch.Generator
) -> Int[Tensor, " drawn"]:
    """The numbers of the edges that are measured, ascending: some of those that are there, or all of some sources."""
    there = source[is_there].unique() if count.n_edges is None else is_there.nonzero()[:, 0]
    some = there[torch.randperm(len(there), generator=generator)[: count.n or count.n_edges]]
    return some.sort().values if count.n_edges is not None else (is_there & torch.isin(source, some)).nonzero()[:, 0]


def _measure(
    edges: Edges,
    question: Question,
    steps: Sequence[float],
    drawn: Int[Tensor, " drawn"],
    lines: list[dict[str, Any]],
    passes: list[dict[str, Any]],
    told: Callable[[int], None],
) -> None:
    """Add what is measured of some edges, prompt by prompt."""
    pair = f"{edges.sources.site} -> {edges.targets.site}"
    for number, prompt in enumerate(edges.prompts.numbers.tolist()):
        first, end = edges.indptr[edges.targets.ptr[number : number + 2]].tolist()  # a prompt's rows lie together, and so do its edges
        own = drawn[(drawn >= first) & (drawn < end)] - first
        if not len(own):
            continue
        part = edges.prompt(number)
        for found in measure(question, part, own, steps):
            entries = found.entry.tolist()
            sources, targets = part.indices[found.entry].tolist(), part.row[found.entry].tolist()
            lines.append({
                "pair": pair, "step": found.step, "prompt": prompt, "edge": (found.entry + first).numpy(),
                "source": [node_label(part.sources, i, part.prompts.strings) for i in sources],
                "target": [node_label(part.targets, j, part.prompts.strings) for j in targets],
                "predicted": part.attribution[entries].double().numpy(), "measured": found.measured.double().numpy(),
                "silent": found.silent.numpy(), "lost": found.lost,
            })  # fmt: skip
            passes.append({"pair": pair, "step": found.step, "sources": len(set(sources)), "activated": found.activated})
        told(len(own))


def _measure_graph(
    number: int,
    graph: Graph,
    question: GraphQuestion,
    steps: Sequence[float],
    drawn: Int[Tensor, " drawn"],
    lines: list[dict[str, Any]],
    passes: list[dict[str, Any]],
    told: Callable[[int], None],
) -> None:
    """Add what is measured of a graph. A pair is of the kinds of the two nodes: sites would be too many."""
    if not len(drawn):
        return
    kinds = graph.nodes.sets
    kind_of = [kinds[at].kind for at in graph.nodes.set_of.tolist()]
    for found in question.measure(drawn, steps, told):
        sources, targets = graph.indices[found.entry].tolist(), graph.target[found.entry].tolist()
        pairs = [f"{kind_of[i]} -> {kind_of[j]}" for i, j in zip(sources, targets, strict=True)]
        lines.append({
            "pair": pairs, "step": found.step, "prompt": number, "edge": found.entry.numpy(),
            "source": [graph.nodes.label(i) for i in sources], "target": [graph.nodes.label(j) for j in targets],
            "predicted": graph.weight[found.entry].double().numpy(), "measured": found.measured.double().numpy(),
            "silent": False, "lost": found.lost,
        })  # fmt: skip
        for pair in dict.fromkeys(pairs):
            among = {i for i, each in zip(sources, pairs, strict=True) if each == pair}
            passes.append({"pair": pair, "step": found.step, "sources": len(among), "activated": 0})


def node_label(nodes: Nodes, row: int, strings: Sequence[str]) -> str:
    """A node in a few words: 'blocks.6.hook_resid_pre[355] @3 ' of'', 'token ' of' @3', 'logit ' Paris' @8'."""
    position = int(nodes.position[row])
    if nodes.kind == "latent":
        return f"{nodes.site}[{int(nodes.latent[row])}] @{position} {strings[position]!r}"
    return f"{nodes.kind} {nodes.labels[row]!r} @{position}"
