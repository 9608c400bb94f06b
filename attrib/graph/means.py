"""Mean attributions over a corpus: what latents are made of at all places that are asked about, prompt by prompt, in constant memory.

At one place a latent's row is what a graph says of it: with every dictionary put in,

    pre-activation  =  own + Σ attributions of tokens, latents, errors, biases and the rest

and sums over places keep that. Sources are told apart by what they are and not by where they stand: a latent by its number, a token by its
id, an error or a bias by its place in the model. So what is held has one number for each of them, and does not grow with the corpus.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_dictionaries, as_dictionary, as_model, takes
from attrib.attribution.loop import of_prompt_number
from attrib.attribution.needs import constant, put_into
from attrib.core.positions import positions_in
from attrib.core.room import memory_named
from attrib.core.shown import SHOWN, frame_in_html
from attrib.core.types import LINEAR, InputError, Policy, SparseLatents
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.bundle import jacobians, joint_of
from attrib.engine.plan.choose_joint import plan_joint
from attrib.engine.precision import precision_of
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.graph.corpus import one_by_one
from attrib.graph.ends import GraphEnds, Opened
from attrib.graph.nodes import NodeKind, NodeSet
from attrib.graph.opening import opened_bytes
from attrib.graph.options import Mlps
from attrib.graph.stream import LatentsLike, chosen_latents, place_of_latent
from attrib.models.tokens import TokensLike, token_ids
from attrib.models.transformer import Model
from attrib.passes.capture import capture

if TYPE_CHECKING:
    import pandas as pd

At = Any
"""Where a latent is asked about: "active", where it is; or positions as everywhere, "all" and "last" among them; or a function of a
prompt's number and its ids that gives positions, or a mask of them."""

BY = ("mean", "sum", "count", "mean_where_present")
"""What sources are ranked by."""


class Sources(NamedTuple):
    """Sums over sources of one kind at one place, each row of one target latent."""

    kind: NodeKind
    site: str
    name: str
    """The dictionary, of latents."""
    sum: Float[Tensor, "targets numbers"]
    """Of attributions, by the number of a latent or the id of a token; of other kinds there is one."""
    count: Int[Tensor, "targets numbers"]  # type: ignore[assignment]  # a tuple has a method of this name
    """How many attributions they are sums of, all of them other than zero: pairs of positions."""


@dataclass(frozen=True, repr=False)
class MeanAttributions:
    """What some latents are made of over a corpus. For each of them

        value  =  own + Σ of all sums + remainder

    each a sum over the places that were asked about, of which there are `places`; divided by that it says the same of means.
    """

    target: str
    latent: Int[Tensor, " targets"]
    prompts: int
    """How many were looked at."""
    places: Int[Tensor, " targets"]
    """At how many positions of them, in all, each latent was asked about."""
    value: Float[Tensor, " targets"]
    """What its encoder read, in all: its activations, where it was active."""
    own: Float[Tensor, " targets"]
    """What it reads with: its encoder's bias, and that of a norm before it."""
    sources: tuple[Sources, ...]

    def __repr__(self) -> str:
        return (
            f"MeanAttributions(of {len(self.latent)} latents of {self.target}, at {int(self.places.sum()):,} places of "
            f"{self.prompts:,} prompts)"
        )

    def _repr_html_(self) -> str:
        """What its first latent is made of most, for notebooks."""
        return frame_in_html(f"{self!r}; the strongest of latent {int(self.latent[0])}:", self.top(int(self.latent[0]), SHOWN))

    @property
    def remainder(self) -> Float[Tensor, " targets"]:
        """What the sums do not account for: rounding, where attention and norms were held."""
        return self.value - self.own - sum((each.sum.sum(1) for each in self.sources), torch.zeros_like(self.value))

    def mean(self, kind: str, site: object = None, name: str | None = None) -> Float[Tensor, "targets numbers"]:
        """The mean attribution of the sources of one kind over all places, zero where a source is not there; NaN of a latent with no place.

        Raises:
            InputError: where no kind of sources, or several, are meant.
        """
        return self._one(kind, site, name).sum / self.places[:, None]

    def mean_where_present(self, kind: str, site: object = None, name: str | None = None) -> Float[Tensor, "targets numbers"]:
        """The mean of the attributions that there are; NaN where there is none. Raises InputError as `mean`."""
        found = self._one(kind, site, name)
        return found.sum / found.count

    def _one(self, kind: str, site: object, name: str | None) -> Sources:
        several = [
            each for each in self.sources
            if each.kind == kind and (site is None or str(site) == each.site) and (name is None or name == each.name)
        ]  # fmt: skip
        if len(several) != 1:
            there = "; ".join(" ".join(filter(None, each[:3])) for each in self.sources)
            raise InputError(f"kind: {kind!r} at {site} of {name}, which {len(several)} are; expected one of these: {there}.")
        return several[0]

    def top(self, latent: int, k: int = 20, by: str = "mean") -> "pd.DataFrame":
        """The sources of one latent whose mean (or other column) is largest in size, all kinds in one ranking.

        Args:
            latent: its number in its dictionary.

        Raises:
            InputError: for a latent that was not asked about, or an argument that makes no sense.
        """
        import pandas as pd

        if by not in BY:
            raise InputError(f"by: {by!r}; expected one of {', '.join(BY)}.")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"k: {k!r}; expected a whole number, at least 1.")
        row = place_of_latent(latent, self.latent)
        columns_of = ([each.sum for each in self.sources], [each.count for each in self.sources])
        every, count = (torch.cat([column[row] for column in columns]) for columns in columns_of)
        place = count.nonzero()[:, 0]
        columns = {"sum": every[place], "count": count[place]}
        columns |= {"mean": columns["sum"] / self.places[row], "mean_where_present": columns["sum"] / columns["count"]}
        best = columns[by].abs().argsort(descending=True, stable=True)[:k]
        widths = torch.tensor([each.sum.shape[1] for each in self.sources])
        first = widths.cumsum(0) - widths
        of = torch.searchsorted(first, place[best], right=True) - 1
        named = [self.sources[number] for number in of.tolist()]
        table: dict[str, Any] = {name: [getattr(each, name) for each in named] for name in ("kind", "site", "name")}
        table["number"] = (place[best] - first[of]).numpy()
        return pd.DataFrame(table | {name: column[best].numpy() for name, column in columns.items()})


@takes(model=as_model, dictionaries=as_dictionaries, target=as_dictionary, budget=as_bytes)
def mean_attributions(
    model: Model,
    dictionaries: Dictionary | Sequence[Dictionary],
    target: Dictionary,
    latents: LatentsLike,
    tokens: TokensLike | Iterable[Any],
    *,
    at: At = "active",
    of_tokens: int | str | Sequence[int | str] | None = None,
    policy: Policy = LINEAR,
    mlps: Mlps = "exact",
    dtype: torch.dtype | str | None = None,
    budget: int = DEFAULT_BUDGET,
) -> MeanAttributions:
    """What latents are made of, summed over the prompts of a corpus: mean direct effects, with all dictionaries put in as `build` does.

    Attributions are those of what the latent's encoder reads, which is its activation where it is active.

    Args:
        dictionaries: those whose latents are sources, and that are put in. The target may be among them; none is needed.
        target, latents: the dictionary, and which of its latents: numbers, a slice, or a mask.
        tokens: prompts, as everywhere; or an iterator of them, which is gone through once and never held.
        at: at which positions each latent is asked about: "active", those at which it is; positions as everywhere, such as "all" or "last";
            or a function of a prompt's number and its ids that gives them, for places that were chosen one by one.
        of_tokens: at those alone whose token is one of these, by id or string.
        policy, mlps: as of `build`.
        dtype: "float32" or "float64"; None is the model's own.
        budget: bytes of working memory, beside the parameters and the result, whose size is targets × (latents of all dictionaries +
            vocabulary).

    Raises:
        InputError: where dictionaries do not fit the model or each other, or an argument makes no sense.
        BudgetError: where a prompt does not fit.
        NotFiniteError: where a value is NaN or infinite.
    """
    several: Any = dictionaries
    places = _Places(at, None if of_tokens is None else token_ids(model, of_tokens, "of_tokens"))
    summing = _Summing(model, several, target, latents, policy, mlps, dtype, budget)
    with memory_named("summing attributions", "Choose fewer latents, or give shorter prompts."), torch.no_grad():
        for number, ids in enumerate(one_by_one(model, tokens)):
            of_prompt_number(number, summing.add, ids, places.of(number, ids))
    return summing.result()


class _Places(NamedTuple):
    """Where latents are asked about."""

    at: At
    tokens: Int[Tensor, " ids"] | None

    def of(self, number: int, ids: Int[Tensor, " positions"]) -> "_Chosen":
        """The positions of one prompt. Raises InputError where that is no choice of them."""
        only_active, mask = isinstance(self.at, str) and self.at == "active", torch.zeros(len(ids), dtype=torch.bool)
        given = None if only_active else self.at(number, ids) if callable(self.at) else self.at
        if not (callable(self.at) and _is_none(given)):
            mask[positions_in(given, len(ids), number)] = True
        return _Chosen(mask if self.tokens is None else mask & torch.isin(ids, self.tokens).cpu(), only_active)


def _is_none(given: Any) -> bool:
    """Whether a function chose no position: no numbers, or a mask without any."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = torch.as_tensor(given)
    return isinstance(given, Tensor) and (not given.numel() or (given.dtype == torch.bool and not bool(given.any())))


class _Chosen(NamedTuple):
    """The positions of one prompt, and whether those alone count at which a latent is active."""

    mask: Bool[Tensor, " positions"]
    only_active: bool


class _Summing:
    """Sums that grow prompt by prompt."""

    def __init__(
        self,
        model: Model,
        dictionaries: Sequence[Dictionary],
        target: Dictionary,
        latents: LatentsLike,
        policy: Policy,
        mlps: Mlps,
        dtype: torch.dtype | str | None,
        budget: int,
    ) -> None:
        self.budget, self.precision = budget, precision_of(model, dtype)
        there = constant(model.to(dtype=self.precision.path))
        given = [(d, f"dictionaries[{number}]") for number, d in enumerate(dictionaries)]
        self.number = next(
            (number for number, (d, _) in enumerate(given) if d is target or d.fingerprint == target.fingerprint), len(given)
        )
        if self.number == len(given):
            given.append((target, "target"))
        put_in = tuple(put_into(there, d, name) for d, name in given)
        self.ends = GraphEnds(there, put_in, (), policy, None, mlps, True, 0)
        self.target, self.latent = target, chosen_latents(latents, target.d_sae, "latents").unique()
        self.row_of = torch.full((target.d_sae,), -1).index_copy(0, self.latent, torch.arange(len(self.latent)))
        self.prompts, count = 0, len(self.latent)
        self.places = torch.zeros(count, dtype=torch.int64)
        self.value, self.own = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
        self.sets = list[NodeSet]()
        self.sums, self.counts = list[Tensor](), list[Tensor]()

    def add(self, ids: Int[Tensor, " positions"], chosen: _Chosen) -> None:
        """One prompt's."""
        self.prompts += 1
        opened = self.ends.open(ids)
        self._know(opened)
        position, latent = self._asked(opened, chosen)
        if not len(position):
            return
        device = self.ends.model.device
        stop = self.ends.stops[self.number]
        latents = SparseLatents(position.to(device), latent.to(device), torch.zeros(len(latent), device=device))
        end, own = self.ends.latents_read(self.number, latents, capture(self.ends.model, ids, [stop])[stop])
        row = self.row_of[latent]
        self.places += torch.bincount(row, minlength=len(self.latent))
        self.value.index_add_(0, row, end.targets.value.double().cpu())
        self.own.index_add_(0, row, own.double().cpu())
        opened = replace(opened, bundle=replace(opened.bundle, targets=(end,)))
        joint = replace(joint_of([opened.bundle], self.precision), itemsize=self.precision.path.itemsize)
        plan = plan_joint(replace(joint, opened=opened_bytes(self.ends, opened, joint.itemsize)), self.budget, self.prompts - 1)
        for _, piece in jacobians([opened.bundle], plan, self.precision):
            value = opened.bundle.sources[piece.source].sources.value
            self._sum(
                row[piece.place.cpu()], opened.columns[piece.source], (piece.gradient * value.to(piece.gradient)).double().cpu(), opened
            )

    def _asked(self, opened: Opened, chosen: _Chosen) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """The position and the latent of each row, by position."""
        if chosen.only_active:
            nodes = opened.rows[self.number]
            position, latent = opened.nodes.position[nodes], opened.nodes.latent[nodes]
            meant = chosen.mask[position] & (self.row_of[latent] >= 0)
            return position[meant], latent[meant]
        at = chosen.mask.nonzero()[:, 0]
        return at.repeat_interleave(len(self.latent)), self.latent.repeat(len(at))

    def _know(self, opened: Opened) -> None:
        """Make room for the kinds of sources that there are, which are those of every prompt."""
        if self.sets:
            return
        for each in opened.nodes.sets:
            sizes = [d.d_sae for d in self.ends.dictionaries if (str(d.site), d.name) == (each.site, each.name)]
            size = max(sizes) if each.kind == "latent" else self.ends.model.config.d_vocab if each.kind == "token" else 1
            self.sets.append(each._replace(size=size))
            self.sums.append(torch.zeros(len(self.latent), self.sets[-1].size, dtype=torch.float64))
            self.counts.append(torch.zeros(len(self.latent), self.sets[-1].size, dtype=torch.int64))

    def _sum(self, row: Int[Tensor, " rows"], node: Int[Tensor, " columns"], share: Float[Tensor, "rows columns"], opened: Opened) -> None:
        """Rows of attributions, by the nodes of their columns."""
        of = opened.nodes.set_of[node]
        for number in of.unique().tolist():
            mine = of == number
            told = opened.nodes.latent[node[mine]].where(torch.tensor(self.sets[number].kind in ("latent", "token")), 0)
            place = (row[:, None] * self.sets[number].size + told).flatten()
            part = share[:, mine].flatten()
            self.sums[number].view(-1).index_add_(0, place, part)
            self.counts[number].view(-1).index_add_(0, place, (part != 0).long())

    def result(self) -> MeanAttributions:
        """All of them, those that some prompt had."""
        found = [
            Sources(each.kind, each.site, each.name, total, count)
            for each, total, count in zip(self.sets, self.sums, self.counts, strict=True)
        ]
        return MeanAttributions(
            self.target.name, self.latent, self.prompts, self.places, self.value, self.own,
            tuple(each for each in found if each.count.any()),
        )  # fmt: skip
