"""What a page tells of latents: the logits that each raises and lowers, and where it is active in a corpus.

Of more latents than a page tells of, those of largest influence are told of, each once, however many positions it is active at.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.core.slices import ptr_of
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.graph.graph import Graph
from attrib.graph.scoring import influence
from attrib.graph.vocabulary import logit_weights
from attrib.latents.surveyed import LatentSurvey, Survey
from attrib.models.tokens import token_strings
from attrib.view.explorer.details import Columns, Details, Strings
from attrib.view.explorer.limits import EXAMPLES, LATENTS, TOKENS


class _Latents(NamedTuple):
    """Latents of one of a graph's sets, each once."""

    set: int
    latents: Int[Tensor, " latents"]


def latent_columns(graph: Graph, details: Details, most: int = LATENTS) -> Columns:
    """What is told of the latents of a page's graph, most influential first where there are more than `most`.

    Raises:
        InputError: for a survey of other dictionaries than the graph's, and as `attrib.graph.logit_weights`.
    """
    if details.survey is None and details.model is None:
        return Columns({}, {}, {})
    chosen, left_out = _chosen(graph, most)
    found = Columns({"latents_left_out": left_out}, {}, {})
    if details.model is not None:
        found |= _logits(graph, details, chosen)
    if details.survey is not None:
        found |= _examples(graph, details.survey, chosen)
    return found


def _chosen(graph: Graph, most: int) -> tuple[list[_Latents], int]:
    """The latents that are told of, and how many are not."""
    nodes = graph.nodes
    of_latents = nodes.of_kind("latent")
    pairs = torch.stack([nodes.set_of[of_latents], nodes.latent[of_latents]], 1)
    each, place = pairs.unique(dim=0, return_inverse=True)
    score = torch.zeros(len(each), dtype=torch.float64).index_add(0, place, influence(graph)[of_latents])
    kept = each[score.sort(descending=True, stable=True).indices[:most]]
    found = [_Latents(number, kept[kept[:, 0] == number, 1].sort().values) for number in kept[:, 0].unique().tolist()]
    return found, max(0, len(each) - most)


def _logits(graph: Graph, details: Details, chosen: Sequence[_Latents]) -> Columns:
    """The tokens of largest and of lowest logit weight of each latent."""
    assert details.model is not None
    by_place = {(str(one.site), one.name): one for one in details.dictionaries if isinstance(one, Dictionary)}
    sets, latents, tokens, weights = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for number, some in chosen:
        each = graph.nodes.sets[number]
        d = by_place.get((each.site, each.name))
        if d is None or all(site.kind == "mlp_in" for site in d.writes):  # an MLP's own units, or what the MLP alone reads
            continue
        found = logit_weights(details.model, d, some, k=min(TOKENS, details.model.config.d_vocab))
        sets.append(torch.full_like(some, number))
        latents.append(some)
        tokens.append(torch.cat([found.highest, found.lowest], 1))
        weights.append(torch.cat([found.highest_weight, found.lowest_weight], 1))
    if not sets:
        return Columns({"logits_each": 0, "logit_strings": []}, {}, {})
    ids, place = torch.cat(tokens).unique(return_inverse=True)
    names, strings = Strings(), token_strings(details.model, ids)
    number_of = torch.tensor([names.number(string) for string in strings])
    header = {"logits_each": tokens[0].shape[1] // 2, "logit_strings": names.all}
    integers = {"logits set": torch.cat(sets), "logits latent": torch.cat(latents), "logits token": number_of[place].flatten()}
    return Columns(header, integers, {"logits weight": torch.cat(weights).flatten()})


def _examples(graph: Graph, survey: Survey, chosen: Sequence[_Latents]) -> Columns:
    """How often each latent is active, and the places of its largest scores in their context."""
    names = Strings()
    integers: dict[str, list[int]] = {name: [] for name in ("set", "latent", "prompt", "position", "at", "token")}
    floats: dict[str, list[float]] = {"density": [], "maximum": [], "value": []}
    examples, tokens, corpora = list[int](), list[int](), dict[int, dict[str, Any]]()
    for number, some, part in _surveyed(graph, survey, chosen):
        corpora[number] = {"places": part.places, "score": part.asked.score}
        for latent, row in zip(some, torch.searchsorted(torch.from_numpy(part.latents), torch.tensor(some)).tolist(), strict=True):
            best = part.top(latent, EXAMPLES) or part.examples(latent, count=EXAMPLES)
            maximum = float(part.maximum[row])
            integers["set"].append(number)
            integers["latent"].append(latent)
            floats["density"].append(float(part.density[row]))
            floats["maximum"].append(maximum if maximum == maximum else max((one.value for one in best), default=0.0))
            examples.append(len(best))
            for one in best:
                for name in ("prompt", "position", "at"):
                    integers[name].append(getattr(one, name))
                tokens.append(len(one.tokens))
                integers["token"] += map(names.number, one.tokens)
                floats["value"] += one.values
    ptrs = {"ptr": ptr_of(torch.tensor(examples, dtype=torch.int64)), "tokens": ptr_of(torch.tensor(tokens, dtype=torch.int64))}
    found = {f"examples {name}": torch.tensor(column, dtype=torch.int64) for name, column in integers.items()} | {
        f"examples {name}": column for name, column in ptrs.items()
    }
    of_floats = {f"examples {name}": torch.tensor(column, dtype=torch.float64) for name, column in floats.items()}
    return Columns({"example_strings": names.all, "corpora": corpora}, found, of_floats)


def _surveyed(graph: Graph, survey: Survey, chosen: Sequence[_Latents]) -> Iterator[tuple[int, list[int], LatentSurvey]]:
    """The latents that were surveyed, set by set. Raises InputError for a survey of other dictionaries."""
    records: Any = graph.call.get("dictionaries", ())
    known = {(str(one.get("site")), str(one.get("name"))): one.get("sha256") for one in records if isinstance(one, Mapping)}
    parts = {(part.asked.site, part.asked.dictionary): part for part in survey.parts}
    found = [(number, some, part) for number, some in chosen if (part := parts.get(_place(graph, number))) is not None]
    if chosen and not found:
        mine = ", ".join(dict.fromkeys(graph.nodes.sets[number].name for number, _ in chosen))
        raise InputError(f"survey: is of {', '.join(name for _, name in parts)}; expected one of a dictionary of the graph: {mine}.")
    for number, some, part in found:
        sha256 = known.get(_place(graph, number))
        if sha256 is not None and sha256 != part.asked.dictionary_sha256:
            raise InputError(
                f"survey: its dictionary {part.asked.dictionary} is not that of the graph (sha256 {part.asked.dictionary_sha256[:12]}, "
                f"and not {str(sha256)[:12]}); expected a survey of the same weights."
            )
        yield number, some[torch.isin(some, torch.from_numpy(part.latents))].tolist(), part


def _place(graph: Graph, number: int) -> tuple[str, str]:
    return graph.nodes.sets[number].site, graph.nodes.sets[number].name
