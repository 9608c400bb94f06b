"""Random attributions from a seed, and what each should give: any family, ends, cuts and options, against torch.func.

The oracle knows nothing of paths and sweeps. It puts the source and the cuts into the model's plain pass (`attrib.replace`, which
tests/passes/test_replace.py holds against transformers), reads the target off it, and differentiates the whole by jacrev.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.positions import chosen_positions, plain_positions
from attrib.core.types import (
    EXACT,
    LINEAR,
    BudgetError,
    Dense,
    Difference,
    Direction,
    InputError,
    Keep,
    Mass,
    Policy,
    Site,
    SiteKind,
    Threshold,
    TokenLogits,
    TopK,
    TopLogits,
    UnsupportedError,
)
from attrib.dictionaries.dictionary import Dictionary, encode
from attrib.models.transformer import MLP_KINDS, Model, width
from attrib.passes.replacement import CutLeaves, Replacement
from tests.support.builders import ALL_VARIANTS, N_LAYERS, bare, normal, prompt, tiny_variant

TOLERANCE = {"float64": 1e-9, "float32": 2e-3, "bfloat16": 0.2}
"""Relative to the largest entry."""

FLOOR = {"float64": 1e-3, "float32": 0.1, "bfloat16": 1.0}
"""Where all entries are less than this, they are differences of larger numbers: then relative to this."""

RULES = ("relu", "jumprelu", "jump", "topk", "abstopk", "gated")
POLICIES = (EXACT, LINEAR, Policy(attention="frozen"), Policy(norm="frozen"), Policy(mlp="frozen"))
WIDE: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
KINDS: tuple[SiteKind, ...] = (*WIDE, "z")
REFUSED = "not after the source's|both replace|only a sum in|which .* computes earlier|two are the same place"
"""What may be said of ends and cuts that are thrown together."""


VARIANTS = (*ALL_VARIANTS, "gpt_neox", "gptj", "phi", "gpt_neox-whole-rotary")
"""Those with the most to go wrong are drawn more often."""

BARE = tuple(
    f"{family} without {' and '.join(chosen)}"
    for family in ("gpt2", "llama", "gpt_neo", "gpt_neox", "gemma2", "qwen3", "olmo2", "gpt2-relu-wide")
    for count in (1, 2, 3)
    for chosen in combinations(("masks", "norms", "MLPs"), count)
)
"""Models without a causal mask, without norms, and without MLPs."""


@lru_cache(maxsize=64)
def variant_model(variant: str, dtype: torch.dtype) -> Model:
    of, _, without = variant.partition(" without ")
    model = attrib.from_hugging_face(tiny_variant(of, dtype), name=f"tiny-{variant}")
    return bare(model, without)


def kinds_of(model: Model, kinds: tuple[SiteKind, ...]) -> tuple[SiteKind, ...]:
    """Those that a model has, and at which a path can begin or end."""
    missing: set[SiteKind] = ({"resid_mid"} if model.config.parallel else set()) | (set() if model.config.has_mlps else set(MLP_KINDS))
    return tuple(kind for kind in kinds if kind not in missing)


@dataclass(frozen=True)
class Spec:
    """A random dictionary in a few words; the same one in every dtype and at every call."""

    reads: Site
    writes: tuple[Site, ...]
    rule: str
    seed: int
    d_sae: int
    normalisation: str = "none"
    has_skip: bool = False
    subtracts: bool = False

    def make(self, model: Model) -> Dictionary:
        d_in, d_out = width(model.config, self.reads), sum(width(model.config, at) for at in self.writes)
        dtype, d_sae = model.dtype, self.d_sae

        def noise(number: int, *shape: int, by: float) -> Tensor:
            return by * normal(*shape, dtype=dtype, seed=10 * self.seed + number)

        facts: dict[str, Any] = {
            "site": self.reads, "writes": self.writes, "rule": self.rule, "W_enc": noise(0, d_in, d_sae, by=d_in**-0.5),
            "W_dec": noise(1, d_sae, d_out, by=0.3), "b_dec": noise(2, d_out, by=0.2), "normalisation": self.normalisation,
            "apply_b_dec_to_input": self.subtracts, "name": f"d{self.seed}",
        }  # fmt: skip
        if self.rule == "gated":
            facts |= {"b_gate": noise(3, d_sae, by=0.3), "r_mag": noise(4, d_sae, by=0.2), "b_mag": noise(5, d_sae, by=0.2)}
        else:
            facts["b_enc"] = noise(3, d_sae, by=0.2)
        if self.rule in ("jumprelu", "jump"):
            facts["threshold"] = noise(6, d_sae, by=0.2)
        if self.rule.endswith("topk"):
            facts["k"] = 4
        if self.has_skip:
            facts["W_skip"] = noise(7, d_in, d_out, by=0.5 * d_in**-0.5)
        return from_tensors(**facts)


def draw(rng: random.Random, model: Model, reads: Site, shape: str | None = None) -> Spec:
    """A dictionary that reads a place: an SAE, a transcoder, or one that writes at several places."""
    kinds = kinds_of(model, WIDE)
    mlp_outs = [Site(layer, "mlp_out") for layer in range(reads.layer + (reads.kind == "resid_post"), N_LAYERS)]
    mlp_outs = mlp_outs if model.config.has_mlps else []
    shape = shape or rng.choice(("sae", "sae", "transcoder", "run", "anywhere"))
    writes: tuple[Site, ...] = (reads,)
    if shape == "anywhere":
        later = [at for at in (Site(layer, kind) for layer in range(N_LAYERS) for kind in kinds) if at.depth >= reads.depth]
        at = {site.depth: site for site in later}
        writes = tuple(rng.sample([*at.values()], min(len(at), rng.randint(1, 3))))
    elif shape != "sae" and mlp_outs:
        writes = tuple(mlp_outs[: {"transcoder": 1, "cross-layer": N_LAYERS}.get(shape, rng.randint(1, N_LAYERS))])
    is_sae = writes == (reads,)
    return Spec(
        reads, writes, rng.choice(RULES), rng.randrange(10_000), rng.choice((12, 24)),
        rng.choice(("none", "none", "layer_norm", "constant_norm_rescale")) if is_sae else "none",
        has_skip=not is_sae and rng.random() < 0.4, subtracts=is_sae and rng.random() < 0.5,
    )  # fmt: skip


def metric(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)[:, 3].sum() + logits[0, 5] ** 2


@dataclass(frozen=True)
class Configuration:
    """One random call."""

    seed: int
    variant: str
    source: Spec | None
    target: Spec | TokenLogits | Difference | TopLogits | tuple[Site, int] | str
    """A tuple is a Direction: its site and the seed of its vector; "metric" is `metric`."""
    cuts: tuple[Spec, ...]
    lengths: tuple[int, ...]
    effect: str
    policy: Policy
    error: bool
    keep: Keep
    positions: int | list[int] | None
    dtype: str
    budget: int
    method: str
    precision_rows: int | None

    @cached_property
    def model(self) -> Model:
        return variant_model(self.variant, torch.float32 if self.dtype == "bfloat16" else getattr(torch, self.dtype))

    @property
    def prompts(self) -> list[Tensor]:
        return [prompt(length, seed=self.seed + number) for number, length in enumerate(self.lengths)]

    def ends(self, model: Model) -> tuple[Dictionary | None, Any]:
        source, target = None if self.source is None else self.source.make(model), self.target
        if isinstance(target, Spec):
            return source, target.make(model)
        if isinstance(target, tuple) and isinstance(target[0], Site):
            return source, Direction(normal(width(model.config, target[0]), dtype=model.dtype, seed=target[1]), target[0])
        return source, metric if target == "metric" else target

    def attribute(self) -> attrib.Edges:
        """What attrib gives."""
        source, target = self.ends(self.model)
        cuts = [cut.make(self.model) for cut in self.cuts]
        options: dict[str, Any] = {
            "cuts": cuts, "effect": self.effect, "policy": self.policy, "keep": self.keep, "dtype": self.dtype,
            "budget": self.budget, "method": self.method,
        }  # fmt: skip
        if target is metric:
            return attrib.latent_to_metric(self.model, source, self.prompts, metric, error=self.error, **options)
        options |= {"positions": self.positions, "precision_rows": self.precision_rows}
        if source is None:
            return attrib.token_to_latent(self.model, target, self.prompts, **options)
        options["error"] = self.error
        if isinstance(target, Dictionary):
            return attrib.latent_to_latent(self.model, source, target, self.prompts, **options)
        return attrib.latent_to_logit(self.model, source, self.prompts, logits=target, **options)


def configuration(seed: int, variants: Sequence[str] = VARIANTS) -> Configuration:
    """The call of a seed."""
    rng = random.Random(seed)
    variant = rng.choice(variants)
    model = variant_model(variant, torch.float64)
    kinds = kinds_of(model, KINDS)
    source = None if rng.random() < 0.15 else draw(rng, model, Site(rng.randint(0, 2), rng.choice(kinds)))
    start = (0, 0) if source is None else min(at.depth for at in source.writes)
    what = rng.choice(("latents", "latents", "latents", "direction", "direction", "logits", "metric"))
    later = [at for at in (Site(layer, kind) for layer in range(N_LAYERS) for kind in kinds) if at.depth >= start]
    target: Any
    if what == "latents" or source is None:
        target = draw(rng, model, rng.choice(later))
    elif what == "direction":
        target = rng.choice(later), rng.randrange(1000)
    elif what == "logits":
        target = rng.choice((TokenLogits((3, 5, 8)), Difference((3, 5), 8), TopLogits(4), TopLogits(20, 0.5)))
    else:
        target = "metric"
    cuts: list[Spec] = []
    for _ in range(rng.choice((0, 0, 1, 2, 3, 4))):
        cut = draw(rng, model, rng.choice(later))
        taken = {at.depth for d in (source, target, *cuts) if isinstance(d, Spec) for at in d.writes}
        if rng.random() < 0.1 or taken.isdisjoint(at.depth for at in cut.writes):
            cuts.append(cut)
    if rng.random() < 0.2 and model.config.has_mlps:
        layers = [draw(rng, model, Site(layer, "mlp_in"), "cross-layer") for layer in range(rng.randint(0, 2), N_LAYERS)]
        if rng.random() < 0.5:
            source, cuts = layers[0], layers[1:]
        else:
            cuts = layers
    lengths = tuple(rng.randint(1, 11) for _ in range(rng.randint(1, 3)))
    dtype = rng.choice(("float64",) * 6 + ("float32", "bfloat16"))
    methods = ["adjoint"] * 8 if dtype == "bfloat16" or target == "metric" else ["adjoint"] * 7 + ["torch.func"]
    return Configuration(
        seed=seed, variant=variant, source=source, target=target, cuts=tuple(cuts), lengths=lengths,
        effect=rng.choice(("direct", "total")), policy=rng.choice(POLICIES), error=source is None or rng.random() < 0.7,
        keep=rng.choice((Dense(), Dense(), Dense(), TopK(3), Threshold(0.02), Mass(0.8))),
        positions=rng.choice((None, None, -1, [0, -1], 0)) if target != "metric" else None,
        dtype="float64" if target == "metric" and dtype == "bfloat16" else dtype,
        budget=rng.choice((1 << 30, 1 << 30, 1 << 22, 400_000, 150_000)), method=(method := rng.choice(methods)),
        precision_rows=rng.choice((None, None, 4)) if method == "adjoint" else None,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- the oracle


class Oracle:
    """The plain pass with source and cuts in it, as a function of the source's latents or the tokens' scales."""

    def __init__(self, case: Configuration) -> None:
        self.case, self.model = case, case.model
        self.source, self.target = case.ends(self.model)
        cuts = [cut.make(self.model) for cut in case.cuts]
        self.put_in = [d for d in (self.source, *cuts) if d is not None]
        self.replaced: Replacement = attrib.replace(self.model, self.put_in, policy=case.policy)

    def leaves(self, tokens: Tensor) -> CutLeaves:
        found = self.replaced.leaves(tokens)
        if self.source is None or self.case.error:
            return found
        written = {at.depth for at in self.source.writes}
        sites = zip(self.replaced.written, found.errors, strict=True)
        return found._replace(errors=tuple(torch.zeros_like(e) if at.depth in written else e for at, e in sites))

    def jacobian(self, tokens: Tensor, position: Tensor, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[targets, sources], the values of the targets, and those of the sources; the targets are those that attrib names."""
        leaves, is_total = self.leaves(tokens), self.case.effect == "total"
        sources = (0,) if is_total and self.source is not None else ()
        options: dict[str, Any] = {"effect": self.case.effect, "sources": sources}

        def entered(values: Tensor) -> CutLeaves:
            if self.source is None:
                return leaves._replace(embedded=leaves.embedded * values[:, None])
            return leaves.with_activations((values, *leaves.activations[1:]))

        def read(values: Tensor) -> Tensor:
            at = entered(values)
            if isinstance(self.target, Dictionary):
                x = self.replaced.values(at, [self.target.site], **options)[self.target.site]
                return encode(self.target, x)[position, latent]
            if isinstance(self.target, Direction):
                site = self.target.site
                return self.replaced.values(at, [site], **options)[site][position] @ self.target.vector
            logits = self.replaced.forward(at, **options)
            if self.target is metric:
                return metric(logits)[None]
            if isinstance(self.target, Difference):
                return logits[position][:, [3, 5]].mean(-1) - logits[position][:, 8]
            return logits[position, latent]

        begin = torch.ones(len(tokens), dtype=self.model.dtype) if self.source is None else leaves.activations[0]
        return jacrev(read)(begin), read(begin).detach(), begin


def fault_of(case: Configuration) -> str | None:
    """What is wrong with attrib's answer; None where it is right. `RefusedError` is raised where attrib will not answer."""
    try:
        edges = case.attribute()
    except BudgetError:
        return fault_of(replace(case, budget=1 << 30))
    except (InputError, UnsupportedError) as refused:
        if re.search(REFUSED, str(refused)):
            raise RefusedError(str(refused)) from None
        raise
    oracle, bound, floor = Oracle(case), TOLERANCE[case.dtype], FLOOR[case.dtype]
    for number, tokens in enumerate(case.prompts):
        part = edges.prompt(number)
        if isinstance(oracle.target, Dictionary) and (said := _table_fault(case, oracle.target, tokens, part)):
            return f"prompt {number}: {said}"
        want, values, begin = oracle.jacobian(tokens, part.targets.position, part.targets.latent)
        attribution, got, share = want * begin, part.dense(0), part.dense(0, "attribution")
        chosen = torch.zeros_like(want, dtype=torch.bool).index_put((part.row, part.indices), torch.tensor(True))
        slack = bound * max(attribution.abs().max().item() if attribution.numel() else 0.0, floor)
        sums = attribution.sum(-1), attribution.abs().sum(-1)
        most = bound * max(floor, sums[1].max().item() if sums[1].numel() else 0.0)
        for what, found, expected, slip in (
            ("sources", part.sources.activation, begin, bound),
            ("targets", part.targets.activation, values, bound * max(1.0, values.abs().max().item() if values.numel() else 0.0)),
            ("gradient", got, want.where(chosen, 0), bound * max(floor, want.abs().max().item() if want.numel() else 0.0)),
            ("attribution", share, attribution.where(chosen, 0), slack),
            ("total", part.total, sums[0], most),
            ("l1", part.l1, sums[1], most),
        ):
            if found.shape != expected.shape:
                return f"prompt {number}: {what} of shape {list(found.shape)}, expected {list(expected.shape)}"
            apart = (found - expected).abs().max().item() if found.numel() else 0.0
            if not apart <= slip:
                return f"prompt {number}: {what} {apart:.1e} apart, where {slip:.1e} is allowed"
        if any(_is_unmet(case.keep, row, kept, slack) for row, kept in zip(attribution, chosen, strict=True)):
            return f"prompt {number}: others are kept than {case.keep} says"
    return None


def named_budget(error: BudgetError) -> int:
    """The bytes that are said to be enough."""
    found = re.search(r"at least ([\d,]+)\.", str(error))
    assert found is not None, error
    return int(found[1].replace(",", ""))


def budget_fault_of(case: Configuration) -> str | None:
    """Whether the budget that a refusal names is enough for the whole call, and no byte less is; None where it is so."""
    try:
        replace(case, budget=1).attribute()
        return "a budget of one byte is taken"
    except BudgetError as error:
        named = named_budget(error)
    except (InputError, UnsupportedError) as refused:
        if re.search(REFUSED, str(refused)):
            raise RefusedError(str(refused)) from None
        raise
    try:
        replace(case, budget=named).attribute()
    except BudgetError as error:
        return f"{named:,} bytes are named, and refused: {error}"
    try:
        replace(case, budget=named - 1).attribute()
    except BudgetError:
        return None
    return f"{named:,} bytes are named, and fewer do"


class RefusedError(Exception):
    """attrib says that this cannot be asked."""


def _table_fault(case: Configuration, target: Dictionary, tokens: Tensor, part: attrib.Edges) -> str | None:
    """Whether the targets are those that are active at the chosen positions of the model's own pass."""
    true = attrib.capture(case.model, tokens, [target.site])[target.site]
    at = chosen_positions(plain_positions(case.positions, [len(tokens)]), len(tokens), tokens.device)
    wanted = [(p, i) for p, i in encode(target, true).nonzero().tolist() if p in at.tolist()]
    found = torch.stack([part.targets.position, part.targets.latent], 1).tolist()
    return None if [tuple(row) for row in found] == wanted else "other targets than are active"


def _is_unmet(keep: Keep, attribution: Tensor, chosen: Tensor, slack: float) -> bool:
    """Whether a row's chosen entries are others than `keep` asks for, roundings aside."""
    size = attribution.abs()
    dropped = size[~chosen].max().item() if (~chosen).any() else 0.0
    least = size[chosen].min().item() if chosen.any() else float("inf")
    match keep:
        case TopK(k):
            return int(chosen.sum()) > k or least < dropped - slack or (int(chosen.sum()) < k and dropped > slack)
        case Threshold(t):
            return dropped >= t + slack or least < t - slack
        case Mass(fraction):
            return size[chosen].sum().item() < fraction * size.sum().item() - len(size) * slack or least < dropped - slack
    return dropped > slack
