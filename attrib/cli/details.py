"""What `attrib view` tells of a graph's nodes and edges when asked: examples, logit weights, heads, scores, interventions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.core.types import InputError

if TYPE_CHECKING:
    import torch

    from attrib.causal import Agreement
    from attrib.graph import Graph
    from attrib.latents.surveyed import Survey
    from attrib.models.transformer import Model
    from attrib.view.explorer.details import Details
    from attrib.view.explorer.fitting import Fitted, Most

Surveys = Annotated[
    list[Path] | None, typer.Option("--survey", help="File of `attrib latents survey`, whose examples latents are shown with; repeat it")
]
ModelName = Annotated[
    str | None, typer.Option("--model", "-m", help="The model of the graph: what each latent writes to logits is told, by the weights")
]
Places = Annotated[list[str] | None, typer.Option("--at", help="NAME=FOLDER, where a dictionary of the graph lies; repeat it")]
Heads = Annotated[
    int | None, typer.Option("--heads", help="Split so many edges, those of largest influence, by heads; needs --model", min=1)
]
Scores = Annotated[
    int | None,
    typer.Option("--qk", help="Say what so many attention scores are made of, those that matter most to --heads", min=1),
]
Verify = Annotated[
    int | None, typer.Option("--verify", help="Intervene on the sources of so many edges, those of largest influence; needs --model", min=1)
]


@dataclass(frozen=True)
class Asked:
    """What is told of graphs beside what they hold."""

    file: Path
    """Where the graphs are: a job's folder says where its dictionaries lie."""
    surveys: Sequence[Path] = ()
    model: str | None = None
    places: Sequence[str] = ()
    heads: int | None = None
    scores: int | None = None
    verify: int | None = None

    def check(self) -> None:
        """Raises InputError for an option without that which it needs."""
        needs = {"--heads": self.heads, "--verify": self.verify, "--at": self.places or None}
        if self.model is None and (alone := [name for name, value in needs.items() if value is not None]):
            raise InputError(f"{alone[0]}: it has no effect without --model; give the model that the graph was built with.")
        if self.scores is not None and self.heads is None:
            raise InputError("--qk: it has no effect without --heads, to whose edges the scores matter.")

    def of(self, graph: "Graph", most: "Most") -> "Details":
        """All of it, of a graph and the part of it that a page holds."""
        from attrib.view.explorer.details import Details, made_with
        from attrib.view.explorer.fitting import fitted

        model = self._model
        if model is None:
            return Details(self._survey)
        given = made_with(graph, model, (), self._places, "--model")
        details = Details(self._survey, model, given)
        if self.heads is None and self.verify is None:
            return details
        return replace(details, **self._computed(graph, fitted(graph, most), model, given))

    def _computed(self, graph: "Graph", part: "Fitted", model: "Model", given: Sequence[Any]) -> dict[str, Any]:
        from attrib.cli.bars import counted
        from attrib.graph import head_loadings, qk_attribution
        from attrib.runs.again import readable, rule_of

        found: dict[str, Any] = {}
        with readable():
            outputs: Any = graph.call["targets"]
            targets = [rule_of(what) for what in outputs]
        if self.heads is not None:
            with counted("splitting edges by heads") as progress:
                heads = head_loadings(model, given, graph, _foremost(part, self.heads), targets=targets, progress=progress)
            found["heads"] = heads
            if self.scores is not None:
                found["scores"] = qk_attribution(model, given, graph, heads.scores(self.scores), targets=targets)
        if self.verify is not None:
            found["verified"] = _verified(graph, _foremost(part, self.verify), model, given)
        return found

    @cached_property
    def _survey(self) -> "Survey | None":
        from attrib.latents import open as open_survey
        from attrib.latents.surveyed import Survey

        parts = [part for file in self.surveys for part in open_survey(file).parts]
        names = [(part.asked.site, part.asked.dictionary) for part in parts]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(
                f"--survey: {twice[0][1]} is in two of them; expected each dictionary once. `attrib latents merge` joins them."
            )
        return Survey(tuple(parts)) if parts else None

    @cached_property
    def _model(self) -> "Model | None":
        import attrib

        return None if self.model is None else attrib.load_model(self.model)

    @property
    def _places(self) -> Mapping[str, str]:
        from attrib.jobs.folder import places_of

        given = dict(each.partition("=")[::2] for each in self.places)
        if wrong := [name for name, folder in given.items() if not folder]:
            raise InputError(f"--at: {wrong[0]!r}; expected NAME=FOLDER.")
        return places_of(self.file.resolve()) | given


def _foremost(part: "Fitted", count: int) -> "torch.Tensor":
    """The numbers, in the whole graph, of the edges of a page along which most of the outputs is reached; of equal ones the largest."""
    from attrib.graph.scoring import edge_influence, shares

    by_size = part.graph.weight.abs().argsort(descending=True, stable=True)
    order = edge_influence(part.graph, shares(part.graph))[by_size].argsort(descending=True, stable=True)
    return part.edges[by_size[order[:count]]].sort().values


def _verified(graph: "Graph", edges: "torch.Tensor", model: "Model", given: Sequence[Any]) -> "Agreement":
    """Exactly these edges against interventions."""
    import torch

    from attrib.causal import verify
    from attrib.cli.bars import counted
    from attrib.dictionaries.dictionary import Dictionary

    kept = torch.zeros(len(graph), dtype=torch.bool).index_fill(0, edges, True)
    dictionaries = [one for one in given if isinstance(one, Dictionary)]
    with counted("intervening") as progress:
        found = verify(graph.only(kept), model, n_edges=len(edges), dictionaries=dictionaries, progress=progress)
    return replace(found, table=found.table.assign(edge=edges[torch.from_numpy(found.table.edge.to_numpy(int))].numpy()))
