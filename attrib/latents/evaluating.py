"""What dictionaries are worth on a corpus: how near they come, how sparse they are, and what the model loses with them in it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.adapters.given import as_dictionary, as_model, takes
from attrib.core.room import memory_named
from attrib.core.shown import in_one_line
from attrib.core.types import EXACT, InputError, Site, warn
from attrib.dictionaries.dictionary import Dictionary
from attrib.latents.fidelity import Activity, Fidelity, activity_of, fidelity_of
from attrib.latents.replaced import (
    WAYS,
    Effects,
    batches_of,
    clean_pass,
    cross_entropy_of,
    decoded_of,
    layers_behind,
    places_of,
    replaced_pass,
)
from attrib.models.tokens import TokensLike, to_prompts
from attrib.models.transformer import Model
from attrib.passes.replacement import Replacement, put_together

Progress = Callable[[int, int], None]
AT_ONCE = 2048
"""Tokens that are computed together."""
SAMPLED = 64
"""Of so many prompts the usual norm is taken."""


@in_one_line
class ByWay(NamedTuple):
    """One figure for each way of replacing what dictionaries write."""

    spliced: float
    zero: float
    mean: float


@dataclass(frozen=True)
class Quality:
    """What one dictionary is worth, or several that were put in together. docs/evaluation.md says what each figure is."""

    dictionaries: tuple[Dictionary, ...]
    tokens: int
    """Tokens that count."""
    left_out: int
    fidelity: Fidelity
    fidelity_of_all: Fidelity
    """With the tokens that are left out."""
    activity: tuple[Activity, ...]
    """Of each dictionary."""
    cross_entropy_model: float | None
    cross_entropy: ByWay | None
    kl: ByWay | None
    pattern_layers: range
    """The layers whose attention reads what is replaced."""
    pattern_kl: dict[str, Float[Tensor, "layers heads"]]
    """By way of replacing; empty where it was not asked for."""

    @property
    def name(self) -> str:
        """The names of the dictionaries."""
        return " + ".join(d.name for d in self.dictionaries)

    @property
    def d_sae(self) -> int:
        """Latents of all dictionaries together."""
        return sum(d.d_sae for d in self.dictionaries)

    @property
    def explained_variance(self) -> float:
        """1 - squared error over squared distance from the mean."""
        return self.fidelity.explained_variance

    @property
    def mse(self) -> float:
        """Mean squared error of a token at a site, summed over the vector."""
        return self.fidelity.mean_of(self.fidelity.residual)

    @property
    def l2_ratio(self) -> float:
        """Mean length of reconstructions over the true length."""
        return self.fidelity.mean_of(self.fidelity.ratio)

    @property
    def cosine(self) -> float:
        """Mean cosine of reconstructions and true values."""
        return self.fidelity.mean_of(self.fidelity.cosine)

    @property
    def l0(self) -> float:
        """Active latents of a token, of all dictionaries together."""
        return sum(int(one.fired.sum()) for one in self.activity) / self.tokens

    @property
    def l1(self) -> float:
        """Sum of their absolute values."""
        return sum(one.sizes for one in self.activity) / self.tokens

    @property
    def density(self) -> tuple[Float[Tensor, " _"], ...]:
        """For each dictionary, the share of the tokens at which each latent is active."""
        return tuple(one.fired.double() / self.tokens for one in self.activity)

    @property
    def dead(self) -> float:
        """Share of the latents that are active at no token."""
        return sum(int((one.fired == 0).sum()) for one in self.activity) / self.d_sae

    def log10_density(self, quantiles: Sequence[float] = (0.05, 0.5, 0.95)) -> tuple[float, ...]:
        """Quantiles of log10 of the density, over the latents that are active at all; NaN where none is."""
        alive = torch.cat(self.density)
        logs = alive[alive > 0].log10()
        return tuple(float(logs.quantile(q)) if len(logs) else float("nan") for q in quantiles)

    @property
    def recovered(self) -> float | None:
        """(zero - spliced) / (zero - model), of cross-entropies; None without them, NaN where zero loses nothing."""
        return self._recovered("zero")

    @property
    def recovered_of_mean(self) -> float | None:
        """The same against mean ablation."""
        return self._recovered("mean")

    def _recovered(self, against: str) -> float | None:
        if self.cross_entropy is None or self.cross_entropy_model is None:
            return None
        ablated = float(getattr(self.cross_entropy, against))
        lost = ablated - self.cross_entropy_model
        return (ablated - self.cross_entropy.spliced) / lost if lost else float("nan")

    def figures(self) -> dict[str, int | float | None]:
        """All figures that are one number, by name."""
        found: dict[str, int | float | None] = {
            "latents": self.d_sae, "explained_variance": self.explained_variance, "mse": self.mse, "l2_ratio": self.l2_ratio,
            "cosine": self.cosine, "l0": self.l0, "l1": self.l1, "dead": self.dead, "log10_density": self.log10_density()[1],
        }  # fmt: skip
        if self.cross_entropy is not None and self.kl is not None:
            found |= {"ce_model": self.cross_entropy_model, **{f"ce_{way}": value for way, value in self.cross_entropy._asdict().items()}}
            found |= {"recovered": self.recovered, "recovered_of_mean": self.recovered_of_mean}
            found |= {f"kl_{way}": value for way, value in self.kl._asdict().items()}
        if len(self.pattern_layers):
            for way, of_heads in self.pattern_kl.items():
                found |= {f"pattern_kl_{way}": float(of_heads.mean()), f"pattern_kl_{way}_next": float(of_heads[0].mean())}
        return found | {"tokens": self.tokens, "left_out": self.left_out}


@dataclass(frozen=True)
class Evaluation:
    """Every dictionary's quality on the same prompts."""

    rows: tuple[Quality, ...]
    prompts: int

    def to_pandas(self) -> pd.DataFrame:
        """A row for each dictionary, or each group of them."""
        return pd.DataFrame([{"dictionary": row.name, **row.figures()} for row in self.rows])


@memory_named("evaluating")
@takes(model=as_model)
def evaluate(
    model: Model,
    dictionaries: Any,
    tokens: TokensLike,
    *,
    special_tokens: bool = True,
    first_position: int = 0,
    max_norm: int | float | None = None,
    losses: bool = True,
    patterns: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure dictionaries on prompts, a row for each; prompts are gone through twice, a few thousand tokens at a time.

    Args:
        dictionaries: one or several. Where one of several is itself a list, its dictionaries are put in together and make one row: the
            layers of a cross-layer transcoder, or transcoders of all layers.
        tokens: prompts, as the attributions take them.
        special_tokens: whether the tokenizer's special tokens count. Tokens that do not count are in no figure of reconstructions and
            latents, and keep the model's own value where others are replaced.
        first_position: tokens before it do not count.
        max_norm: tokens whose norm, where a dictionary reads or writes, is at least so many times the median do not count.
        losses: whether cross-entropy and divergence of the logits are measured, which takes four more passes.
        patterns: whether attention patterns behind what is replaced are compared, too. Without `losses` they are not.
        progress: called with (tokens done, tokens in all) of the two times that prompts are gone through.

    Raises:
        InputError: for what is no prompt or no dictionary of this model, where no token counts, where there is no next token to predict,
            and for options that make no sense.
        NotFiniteError: where a pre-activation is NaN or infinite.
    """
    if max_norm is not None and not (isinstance(max_norm, int | float) and max_norm > 0):
        raise InputError(f"max_norm: {max_norm!r}; expected a number above 0, so many times the median.")
    if isinstance(first_position, bool) or first_position < 0:
        raise InputError(f"first_position: {first_position!r}; expected a whole number of at least 0.")
    if not special_tokens and (model.tokenizer is None or not model.tokenizer.special):
        raise InputError(f"special_tokens: False, and {model.name} has no tokenizer that names any; leave it out.")
    groups = [_together(model, group, name) for name, group in _groups(dictionaries).items()]
    prompts = to_prompts(model, tokens)
    if losses and all(len(ids) < 2 for ids in prompts):
        raise InputError("tokens: no prompt has two tokens, so there is no next token to predict; give longer ones, or losses=False.")
    special = torch.tensor(sorted(model.tokenizer.special), device=model.device) if model.tokenizer and not special_tokens else None
    in_all = sum(map(len, prompts)) * (1 + losses)
    done = 0

    def counts(ids: Int[Tensor, "batch positions"]) -> Bool[Tensor, "batch positions"]:
        counted = (torch.arange(ids.shape[1], device=ids.device) >= first_position).expand(ids.shape)
        return counted if special is None else counted & ~torch.isin(ids, special)

    def gone_through() -> Iterator[Int[Tensor, "_ _"]]:
        nonlocal done
        for ids in batches_of(prompts, AT_ONCE):
            yield ids
            done += ids.numel()
            if progress is not None:
                progress(done, in_all)

    with torch.no_grad():
        bounds = [None if max_norm is None else _bounds(model, group, prompts, max_norm) for group in groups]
        reconstructed = _reconstructed(model, groups, bounds, gone_through(), counts)
        for name, (fidelity, _, _) in zip(_groups(dictionaries), reconstructed, strict=True):
            if not fidelity.tokens:
                raise InputError(f"tokens: none counts for {name}; leave fewer out, or give other prompts.")
        means = [fidelity.means for fidelity, _, _ in reconstructed]
        lost = _lost(model, groups, bounds, means, gone_through(), counts, patterns) if losses else [None] * len(groups)
    whole = sum(map(len, prompts))
    predicted = whole - len(prompts)
    return Evaluation(tuple(_quality(*each, whole, predicted) for each in zip(groups, reconstructed, lost, strict=True)), len(prompts))


# -------------------------------------------------------------------------------------------- what was given


def _groups(dictionaries: Any) -> dict[str, Any]:
    """What was given, by the argument that errors name."""
    is_one = isinstance(dictionaries, Dictionary | str | Path) or hasattr(dictionaries, "cfg") or not isinstance(dictionaries, Iterable)
    given = [dictionaries] if is_one else list(dictionaries)
    if not given:
        raise InputError("dictionaries: none; expected at least one.")
    return {"dictionaries" if is_one else f"dictionaries[{number}]": one for number, one in enumerate(given)}


def _together(model: Model, given: Any, argument: str) -> Replacement:
    if not isinstance(given, list | tuple) or isinstance(given, Dictionary):
        dictionary = as_dictionary(given, argument)
        if len(dictionary.writes) > 1:
            warn(
                f"{argument}: {dictionary.name} writes {len(dictionary.writes)} sites and is measured alone, as if they were its own; "
                "give the layers of a cross-layer transcoder together, as one list."
            )
        return put_together(model, {argument: dictionary}, EXACT)
    if not given:
        raise InputError(f"{argument}: an empty list; expected dictionaries that are put in together.")
    return put_together(model, {f"{argument}[{nth}]": as_dictionary(one, f"{argument}[{nth}]") for nth, one in enumerate(given)}, EXACT)


# -------------------------------------------------------------------------------------------------- the passes

Counts = Callable[[Tensor], Tensor]
Bounds = dict[Site, Tensor] | None
Reconstructed = tuple[Fidelity, Fidelity, tuple[Activity, ...]]


def _bounds(model: Model, group: Replacement, prompts: Sequence[Tensor], max_norm: float) -> dict[Site, Tensor]:
    """So many times the median norm at every place that is read or written, over a sample of the prompts."""
    norms: dict[Site, list[Tensor]] = {at: [] for at in group.sites}
    for ids in batches_of(prompts[:: max(1, len(prompts) // SAMPLED)], AT_ONCE):
        values = clean_pass(model, ids, group.sites, whole=False).values
        for at, found in norms.items():
            found.append(values[at].norm(dim=-1).flatten())
    return {at: max_norm * torch.cat(found).median() for at, found in norms.items()}


def _counted(group: Replacement, values: Any, bounds: Bounds, counted: Bool[Tensor, "batch positions"]) -> Bool[Tensor, "batch positions"]:
    if bounds is None:
        return counted
    return reduce(torch.logical_and, (values[at].norm(dim=-1) < bounds[at] for at in group.sites), counted)


def _reconstructed(
    model: Model, groups: Sequence[Replacement], bounds: Sequence[Bounds], batches: Iterator[Tensor], counts: Counts
) -> list[Reconstructed]:
    """What comes of the reconstructions of all groups on the model's own pass."""
    found: list[Reconstructed | None] = [None] * len(groups)
    places = set[Site]().union(*(group.sites for group in groups))
    for ids in batches:
        values = clean_pass(model, ids, places, whole=False).values
        for nth, (group, of_group) in enumerate(zip(groups, bounds, strict=True)):
            counted = _counted(group, values, of_group, counts(ids)).flatten()
            latents, decoded = decoded_of(group, values)
            true = {at: values[at].flatten(0, 1) for at in group.written}
            sparse = zip(latents, group.dictionaries, strict=True)
            now = (
                fidelity_of(true, decoded, counted),
                fidelity_of(true, decoded, torch.ones_like(counted)),
                tuple(activity_of(active, d.d_sae, counted) for active, d in sparse),
            )
            found[nth] = now if (before := found[nth]) is None else _plus(before, now)
    return [one for one in found if one is not None]


def _plus(one: Reconstructed, other: Reconstructed) -> Reconstructed:
    return one[0].plus(other[0]), one[1].plus(other[1]), tuple(a.plus(b) for a, b in zip(one[2], other[2], strict=True))


class Lost(NamedTuple):
    """Sums over all prompts."""

    model: float
    by_way: dict[str, Effects]


def _lost(
    model: Model,
    groups: Sequence[Replacement],
    bounds: Sequence[Bounds],
    means: Sequence[dict[Site, Tensor]],
    batches: Iterator[Tensor],
    counts: Counts,
    patterns: bool,
) -> list[Lost | None]:
    """What the model loses with each group in it."""
    own, found = 0.0, [dict[str, Effects]() for _ in groups]
    places = set[Site]().union(*(places_of(group, patterns=patterns) for group in groups))
    for ids in batches:
        clean = clean_pass(model, ids, places)
        assert clean.last is not None
        own += cross_entropy_of(model, clean.last, ids)
        for group, of_group, mean, effects in zip(groups, bounds, means, found, strict=True):
            counted = _counted(group, clean.values, of_group, counts(ids))
            for way in WAYS:
                now = replaced_pass(group, clean, counted, way, mean, patterns=patterns)
                effects[way] = effects[way].plus(now) if way in effects else now
    return [Lost(own, effects) for effects in found]


def _quality(group: Replacement, of_values: Reconstructed, lost: Lost | None, tokens: int, predicted: int) -> Quality:
    fidelity, of_all, activity = of_values
    layers = layers_behind(group)
    facts = group.dictionaries, fidelity.tokens, tokens - fidelity.tokens, fidelity, of_all, activity
    if lost is None:
        return Quality(*facts, None, None, None, layers, {})
    entropies = ByWay(*(lost.by_way[way].cross_entropy / predicted for way in WAYS))
    divergences = ByWay(*(lost.by_way[way].kl / tokens for way in WAYS))
    patterns = {way: of_way / tokens for way, effects in lost.by_way.items() if (of_way := effects.pattern_kl) is not None}
    return Quality(*facts, lost.model / predicted, entropies, divergences, layers, patterns)
