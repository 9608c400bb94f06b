"""What the attribution tests share: models and dictionaries as attrib and the dense recipe see them, and how results are compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import config as jaxtyping_config
from torch import Tensor, nn

import attrib
from attrib.core.edges import Edges, Nodes
from attrib.core.types import Keep, Mass, Threshold, TopK, TopLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model, Tokenizer
from tests.reference import dense
from tests.support import builders
from tests.support.builders import Family, Kind, build
from tests.support.tolerances import FOREIGN

EARLY, MIDDLE, LATE = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"
OTHER = {"standard": "topk", "topk": "jumprelu", "jumprelu": "standard"}
"""The kind at the other end, so that every kind meets another."""

LENGTHS = (1, 9, 4)
"""Lengths of the prompts of a ragged call; the longest stands in the middle."""


def prompts(*lengths: int) -> list[Tensor]:
    """One random prompt of each length."""
    return [builders.prompt(length, seed=10 + number) for number, length in enumerate(lengths)]


@lru_cache(maxsize=16)
def reference_model(family: Family, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The transformers model with the weights of `builders.build(family)`, fit for torch.func."""
    return dense.prepare(builders.tiny(family, dtype))


@lru_cache(maxsize=256)
def sae_of(lens: "Lens", family: Family, dtype: torch.dtype) -> Any:
    options = lens._options(family)
    if lens.rescale_by_decoder_norm:
        options["rescale_acts_by_decoder_norm"] = True
    made = builders.sae(lens.kind, site=lens.site, normalize_activations=lens.normalise, **options)
    return made.to(dtype).requires_grad_(False)  # float64 ones have the weights of float32 ones


@dataclass(frozen=True)
class Lens:
    """A random SAE: the same weights for sae-lens, attrib and both dtypes."""

    kind: Kind = "standard"
    site: str = "blocks.1.hook_resid_pre"
    seed: int = 3
    apply_b_dec_to_input: bool = True
    normalise: str = "none"
    rescale_by_decoder_norm: bool = False
    d_sae: int = 40

    def sae(self, family: Family) -> Any:
        """As the dense recipe uses it, in float64."""
        return sae_of(self, family, torch.float64)

    def dictionary(self, family: Family, dtype: torch.dtype = torch.float64) -> Dictionary:
        """As attrib uses it. Without sae-lens, one of the same kind and other numbers."""
        name = f"{self.kind} at {self.site}"
        try:
            made = sae_of(self, family, dtype)
        except ModuleNotFoundError:
            if self.normalise != "none" or self.rescale_by_decoder_norm:
                raise
            return replace(builders.dictionary(self.kind, self.site, **self._options(family)).to(dtype=dtype), name=name)
        return attrib.from_sae_lens(made, name=name)

    def _options(self, family: Family) -> dict[str, Any]:
        is_wider = family == "llama" and self.site.endswith("hook_z")
        options = {"d_in": 40 if is_wider else builders.D_MODEL, "d_sae": self.d_sae, "seed": self.seed}
        return options | {"apply_b_dec_to_input": self.apply_b_dec_to_input} | ({"k": 5} if self.kind == "topk" else {})


def characters(model: Model, bos: int | None = None) -> Model:
    """The same model with a tokenizer of one token for each character: 'A' is 0, 'B' is 1 and so on."""

    def decode(ids: list[int]) -> str:
        return "".join(chr(ord("A") + i) for i in ids)

    def encode(text: str) -> list[int]:
        return [ord(c) - ord("A") for c in text]

    template = None if bos is None else lambda text: [bos, *encode(text)]
    return Model(model.params, model.config, model.name, Tokenizer(encode, decode, template))


@contextmanager
def without_shape_checks() -> Iterator[None]:
    """As in production, where nothing checks types on the way in: attrib's own errors must then speak."""
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


# ------------------------------------------------------------------------------------ comparison


def relative_error(got: Tensor, want: Tensor) -> float:
    """The worse of two: the Frobenius norm of the difference over that of `want`, and the largest difference over the largest value."""
    got, want = got.double(), want.double()
    if want.numel() == 0 or not want.any():
        return got.abs().sum().item()
    frobenius = (got - want).norm() / want.norm()
    return torch.maximum(frobenius, (got - want).abs().max() / want.abs().max()).item()


def assert_same(got: Tensor, want: Tensor, what: str, *, dtype: torch.dtype | None = None) -> None:
    """Equal shapes, and values to the tolerance of the dtype in which `got` was computed."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    found, bound = relative_error(got, want), FOREIGN[dtype or got.dtype]
    assert found <= bound, f"{what}: {found:.1e} apart, tolerance {bound:.0e}"


def assert_nodes(got: Nodes, want: dense.Nodes, what: str) -> None:
    """The same table, row by row."""
    assert got.position.tolist() == want.position.tolist(), f"{what}: positions"
    assert got.latent.tolist() == want.latent.tolist(), f"{what}: latents"
    assert_same(got.activation, want.activation, f"{what}: activations")


def assert_edges(edges: Edges, number: int, want: dense.Jacobian) -> None:
    """One prompt's tables, values and sums are those of a dense Jacobian."""
    part = edges.prompt(number)
    assert_nodes(part.sources, want.sources, f"sources of prompt {number}")
    if want.targets is not None:
        assert part.targets.position.tolist() == want.targets.position.tolist()
        assert part.targets.latent.tolist() == want.targets.latent.tolist()
    assert_same(part.targets.activation, want.values, f"targets of prompt {number}")
    assert_same(edges.dense(number), want.gradient, f"gradient of prompt {number}")
    assert_same(edges.dense(number, "attribution"), want.attribution, f"attribution of prompt {number}")
    assert_sums(part, want)


def assert_sums(part: Edges, want: dense.Jacobian) -> None:
    """The sums of every row over all sources, and what `keep` dropped of it."""
    dropped = want.attribution - part.dense(0, "attribution").double()
    size = want.attribution.abs().sum(-1).max().clamp(min=1e-30) if want.attribution.numel() else torch.tensor(1.0)
    for name, got, expected in (
        ("total", part.total, want.attribution.sum(-1)),
        ("l1", part.l1, want.attribution.abs().sum(-1)),
        ("remainder", part.remainder, dropped.sum(-1)),
    ):
        # sums cancel: their error is measured against the largest sum of absolute values
        assert got.shape == expected.shape
        assert ((got.double() - expected) / size).abs().max() <= FOREIGN[got.dtype], name


# ------------------------------------------------------------------------------------------ calls


def metric(logits: Tensor) -> Tensor:
    """A scalar that reads every position."""
    return logits.log_softmax(-1)[:, 7].sum() + logits[0, 3] ** 2


def lenses(kind: Kind, source: str = MIDDLE, target: str = LATE) -> tuple[Lens, Lens]:
    """A source and a target of different kinds and weights."""
    return Lens(kind, source, seed=3), Lens(OTHER[kind], target, seed=7)


@lru_cache(maxsize=512)
def wanted(recipe: str, family: Family, *what: Any, **options: Any) -> tuple[dense.Jacobian, ...]:
    """What the dense recipe of this name gives for prompts of `lengths` (LENGTHS), for lenses and what is read."""
    lengths = options.pop("lengths", LENGTHS)
    ends = [end.sae(family) if isinstance(end, Lens) else end for end in what]
    find = partial(getattr(dense, recipe), reference_model(family))
    if recipe in ("latent_to_logit", "latent_to_metric"):
        source, last = ends
        return tuple(find(source, ids, torch.tensor(last) if isinstance(last, tuple) else last, **options) for ids in prompts(*lengths))
    return tuple(find(*ends, ids, **options) for ids in prompts(*lengths))


def assert_all(edges: Edges, wanted: tuple[dense.Jacobian, ...]) -> None:
    """Every prompt's edges are the dense recipe's."""
    assert len(edges.prompts) == len(wanted)
    assert sum(want.gradient.abs().sum() for want in wanted) > 0  # an empty comparison would prove nothing
    for number, want in enumerate(wanted):
        assert_edges(edges, number, want)


def all_four(family: Family, dtype: torch.dtype = torch.float64, *lengths: int) -> dict[str, Any]:
    """Each attribution as a call that still takes options."""
    model, (source, target) = build(family, dtype), lenses("standard")
    source, target, ids = source.dictionary(family, dtype), target.dictionary(family, dtype), prompts(*(lengths or LENGTHS))
    return {
        "token_to_latent": partial(attrib.token_to_latent, model, target, ids),
        "latent_to_latent": partial(attrib.latent_to_latent, model, source, target, ids),
        "latent_to_logit": partial(attrib.latent_to_logit, model, source, ids, logits=TopLogits(4)),
        "latent_to_metric": partial(attrib.latent_to_metric, model, source, ids, metric),
    }


def brute_force(keep: Keep, attribution: Tensor) -> list[set[int]]:
    """The columns that each row keeps: from the whole dense row, one entry at a time."""
    chosen = []
    for row in attribution.abs().tolist():
        ranked = sorted((column for column in range(len(row)) if row[column]), key=lambda column: -row[column])
        match keep:
            case TopK(k):
                ranked = ranked[:k]
            case Threshold(t):
                ranked = [column for column in ranked if row[column] >= t]
            case Mass(fraction):
                count = next(n for n in range(len(ranked) + 1) if sum(row[c] for c in ranked[:n]) >= fraction * sum(row) * (1 - 1e-12))
                ranked = ranked[:count]
        chosen.append(set(ranked))
    return chosen
