"""What is measured: each case builds a model, a source, a target, a prompt and the options of one attribution.

    GPT-2 small's shape, random weights   0→3 and 6→8 at 32 positions; 0→3 at 128 positions, budget 1 GiB
    SmolLM2-135M, shipped dictionaries    6→9 on 64 tokens of text
    token → latent                        GPT-2's shape, latents before layer 3
    latent → logit                        GPT-2's shape, latents before layer 8 of 12, the 25 largest logits
    Gemma-2-2B's shape                    0→1
    cuts                                  SmolLM2 with shipped transcoders or SAEs put in on the way, 32 tokens of text;
                                          GPT-2's shape with a cross-layer transcoder in place of all MLPs
    scalings                              GPT-2's shape, 0→3, one size at a time

Random models have the layers up to the target's and no more: those below the source are captured through,
as in a real model. The vocabulary is small, since nothing but the logits reads it; latent → logit has GPT-2's
own 50,257, because the notebook unembeds all of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import mean
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

import attrib
from attrib.core.types import EXACT, LINEAR, Effect, Policy, Site, TopLogits
from attrib.dictionaries.dictionary import Dictionary, encode
from attrib.models.transformer import Model
from bench.engine.weights import (
    GEMMA2_2B,
    GPT2,
    GPT2_VOCABULARY,
    Shape,
    random_dictionary,
    random_model,
    random_transcoder,
    with_vocabulary,
)

GIB = 1 << 30

TIGHT = 72_000_000
"""Bytes with which attrib takes less than a tenth of the notebook's memory at GPT-2's shape, its result included."""
Axis = Literal["targets", "positions", "layers", "d_sae"]


@dataclass(frozen=True)
class Problem:
    """One attribution, ready to be computed in any way. `source` None stands for the scales of the tokens."""

    model: Model
    source: Dictionary | None
    target: Dictionary | TopLogits
    tokens: Int[Tensor, " positions"]
    policy: Policy = EXACT
    budget: int = GIB
    """Bytes of working memory for attrib. The notebook recipe in chunks always has GIB for its dense tensors."""
    cuts: tuple[Dictionary, ...] = ()
    effect: Effect = "direct"

    @property
    def is_cut(self) -> bool:
        """Whether anything but the source's one site is written on the way."""
        return bool(self.cuts) or (self.source is not None and len(self.source.writes) > 1)

    @property
    def layers(self) -> int:
        """How many layers lie between the ends."""
        last = self.target.site.layer if isinstance(self.target, Dictionary) else self.model.config.n_layers
        return last - (0 if self.source is None else self.source.site.layer)

    @property
    def dictionaries(self) -> list[Dictionary]:
        """Both ends, where they are dictionaries, and the cuts."""
        return [d for d in (self.source, self.target, *self.cuts) if isinstance(d, Dictionary)]

    def to(self, device: torch.device) -> "Problem":
        """The same problem on another device."""
        source = self.source and self.source.to(device=device)
        target = self.target.to(device=device) if isinstance(self.target, Dictionary) else self.target
        cuts, model = tuple(cut.to(device=device) for cut in self.cuts), self.model.to(device=device)
        return replace(self, model=model, source=source, target=target, tokens=self.tokens.to(device), cuts=cuts)

    @torch.no_grad()
    def active(self) -> dict[str, float]:
        """Mean active latents per position at either end, and of one cut."""
        named = {"source": (self.source,), "target": (self.target,), "cuts": self.cuts}
        x = attrib.capture(self.model, self.tokens, {d.site for d in self.dictionaries})

        def per_position(d: Dictionary) -> float:
            return (encode(d, x[d.site]) > 0).sum().item() / len(self.tokens)

        found = {name: [per_position(d) for d in group if isinstance(d, Dictionary)] for name, group in named.items()}
        return {name: mean(counts) for name, counts in found.items() if counts}


@dataclass(frozen=True)
class Case:
    """A named problem, built when its turn comes. `axis` and `size` place it in a scaling."""

    name: str
    what: str
    build: Callable[[], Problem]
    quick: bool = False
    axis: Axis | None = None
    size: int | None = None
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Alternatives that would do here what they do in another case, and the case that times them."""


# ------------------------------------------------------------------------------- random weights


def prompt(d_vocab: int, positions: int) -> Int[Tensor, " positions"]:
    """Random token ids, the same ones every time."""
    return torch.randint(d_vocab, (positions,), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def latents(
    shape: Shape,
    first: int,
    stop: int,
    positions: int = 32,
    policy: Policy = EXACT,
    *,
    d_sae: int = 24576,
    active: tuple[int, int] = (50, 50),
    budget: int = GIB,
) -> Problem:
    """From the latents before layer `first` to those before layer `stop`; `active` per position at source and target."""
    model, tokens = random_model(shape, stop + 1), prompt(shape.d_vocab, positions)
    sites = Site(first, "resid_pre"), Site(stop, "resid_pre")
    x = attrib.capture(model, tokens, sites)
    source, target = (random_dictionary(site, d_sae, n, x[site], seed) for site, n, seed in zip(sites, active, (2, 3), strict=True))
    return Problem(model, source, target, tokens, policy, budget)


@torch.no_grad()
def tokens_to_latents(shape: Shape, stop: int, positions: int = 32, *, d_sae: int = 24576, active: int = 50) -> Problem:
    """From the tokens to the latents before layer `stop`."""
    model, tokens, site = random_model(shape, stop + 1), prompt(shape.d_vocab, positions), Site(stop, "resid_pre")
    target = random_dictionary(site, d_sae, active, attrib.capture(model, tokens, [site])[site], seed=3)
    return Problem(model, None, target, tokens)


@torch.no_grad()
def latents_to_logits(
    shape: Shape, first: int, n_layers: int, positions: int = 32, *, k: int = 25, d_sae: int = 24576, active: int = 50
) -> Problem:
    """From the latents before layer `first` to the `k` largest logits of the last position, behind `n_layers` layers."""
    model, tokens, site = random_model(shape, n_layers), prompt(shape.d_vocab, positions), Site(first, "resid_pre")
    source = random_dictionary(site, d_sae, active, attrib.capture(model, tokens, [site])[site], seed=2)
    return Problem(model, source, TopLogits(k), tokens)


@torch.no_grad()
def across_layers(
    shape: Shape, n_layers: int, positions: int = 32, *, from_tokens: bool = False, d_sae: int = 4096, active: int = 32
) -> Problem:
    """A cross-layer transcoder in place of all MLPs: direct effects on its last layer's latents, of its first's or of the tokens.

    Each layer reads its own mlp_in and writes mlp_out of itself and all later ones.
    """
    model, tokens = random_model(shape, n_layers), prompt(shape.d_vocab, positions)
    sites = [Site(layer, "mlp_in") for layer in range(n_layers)]
    x = attrib.capture(model, tokens, sites)
    outs = tuple(Site(layer, "mlp_out") for layer in range(n_layers))
    first, *between, last = (random_transcoder(site, outs[site.layer :], d_sae, active, x[site], seed=2 + site.layer) for site in sites)
    source, cuts = (None, (first, *between)) if from_tokens else (first, tuple(between))
    return Problem(model, source, last, tokens, cuts=cuts)


# ------------------------------------------------------------------------------------ real weights

TEXT = (
    "The old lighthouse keeper had not spoken to anyone for three weeks when the storm came in from the west. "
    "He lit the lamp as he had done every evening, wound the clock, and sat down to write in the book that nobody "
    "read. By midnight the waves reached the lower windows, and for the first time in forty years he was afraid of the sea."
)


def shipped(name: str) -> Dictionary:
    """A dictionary that comes with attrib: an SAE by its layer, or a transcoder by its layer's number and "mlp"."""
    layer, is_mlp = name.removesuffix("mlp"), name.endswith("mlp")
    return attrib.load_dictionary(f"{attrib.SMOLLM2}/blocks.{layer}.{'mlp.hook_in' if is_mlp else 'hook_resid_pre'}")


def smollm2(
    first: str, stop: str | None, positions: int = 64, policy: Policy = EXACT, *, cuts: Sequence[str] = (), effect: Effect = "direct"
) -> Problem:
    """SmolLM2-135M between dictionaries that come with attrib, or to the 10 largest logits, on the first tokens of TEXT.

    Args:
        first, stop, cuts: as `shipped` names them; `stop` None stands for the logits.
    """
    model = attrib.load_model(attrib.SMOLLM2)
    assert model.tokenizer is not None  # it comes with the model
    target = TopLogits(10) if stop is None else shipped(stop)
    tokens = torch.tensor(model.tokenizer.encode(TEXT)[:positions])
    assert len(tokens) == positions, f"TEXT has {len(tokens)} tokens, and {positions} are asked for"
    return Problem(model, shipped(first), target, tokens, policy, cuts=tuple(map(shipped, cuts)), effect=effect)


# ---------------------------------------------------------------------------------------- the list


def scalings() -> list[Case]:
    """GPT-2's shape, 0→3, 32 positions, 50 active, d_sae 24,576, EXACT: one of these at a time takes other sizes."""
    points: dict[Axis, list[tuple[int, Callable[[], Problem]]]] = {
        "targets": [(n, partial(latents, GPT2, 0, 3, active=(50, n))) for n in (6, 12, 25, 50, 100)],
        "positions": [(n, partial(latents, GPT2, 0, 3, n)) for n in (8, 16, 32, 64, 128)],
        "layers": [(n, partial(latents, GPT2, 0, n)) for n in (1, 2, 3, 4, 6)],
        "d_sae": [(n, partial(latents, GPT2, 0, 3, d_sae=n)) for n in (6144, 12288, 24576, 49152)],
    }
    says = {"targets": "targets per position", "positions": "positions", "layers": "layers", "d_sae": "latents in each dictionary"}
    return [
        Case(f"scaling-{axis}-{size}", f"GPT-2 shape 0→3, T=32, EXACT, but {size} {says[axis]}", build, axis=axis, size=size)
        for axis, sizes in points.items()
        for size, build in sizes
    ]


def cut_cases() -> list[Case]:
    """With dictionaries put in on the way, 32 positions, EXACT."""
    transcoders = ("7mlp", "8mlp", "9mlp")
    effects: tuple[Effect, ...] = ("direct", "total")
    through = partial(smollm2, positions=32)
    return [
        *(
            Case(
                f"cuts-smollm2-6-18-{e}",
                f"SmolLM2 6→18 with transcoders at 7, 8, 9, {e}",
                partial(through, "6", "18", cuts=transcoders, effect=e),
            )
            for e in effects
        ),
        Case(
            "cuts-smollm2-6-27-total",
            "SmolLM2 6→27 through SAEs 9, 18, total",
            partial(through, "6", "27", cuts=("9", "18"), effect="total"),
        ),
        *(
            Case(
                f"cuts-transcoders-7-9-{e}",
                f"SmolLM2's transcoders 7→9 with 8 put in, {e}",
                partial(through, "7mlp", "9mlp", cuts=("8mlp",), effect=e),
            )
            for e in effects
        ),
        Case(
            "cuts-latent-logit-total",
            "latent→logit, SmolLM2 from 6 with transcoders at 7, 8, 9, 10 logits, total",
            partial(through, "6", None, cuts=transcoders, effect="total"),
        ),
        Case("cuts-across-0-11", "GPT-2 shape, cross-layer transcoder 0→11, direct", partial(across_layers, GPT2, 12)),
        Case("cuts-across-tokens-11", "the same from the tokens", partial(across_layers, GPT2, 12, from_tokens=True)),
    ]


def all_cases() -> dict[str, Case]:
    """Every case by its name, in the order in which they run."""
    whole = with_vocabulary(GPT2, GPT2_VOCABULARY)
    listed = [
        Case("gpt2-0-3-exact", "GPT-2 shape 0→3, T=32, EXACT", partial(latents, GPT2, 0, 3), quick=True),
        Case(
            "gpt2-0-3-exact-tight",
            f"the same in {TIGHT / 1e6:.0f} MB of working memory",
            partial(latents, GPT2, 0, 3, budget=TIGHT),
            quick=True,
            elsewhere=dict.fromkeys(("autograd_batched", "torch_func"), "gpt2-0-3-exact"),
        ),
        Case("gpt2-0-3-linear", "GPT-2 shape 0→3, T=32, LINEAR", partial(latents, GPT2, 0, 3, policy=LINEAR), quick=True),
        Case("gpt2-6-8-exact", "GPT-2 shape 6→8, T=32, EXACT", partial(latents, GPT2, 6, 8), quick=True),
        Case("gpt2-6-8-linear", "GPT-2 shape 6→8, T=32, LINEAR", partial(latents, GPT2, 6, 8, policy=LINEAR)),
        Case("smollm2-6-9-exact", "SmolLM2 6→9, 64 tokens, EXACT", partial(smollm2, "6", "9"), quick=True),
        Case("token-latent", "token→latent, GPT-2 shape, layer 3, T=32", partial(tokens_to_latents, GPT2, 3), quick=True),
        Case("latent-logit", "latent→logit, GPT-2 shape 8→12, 25 logits, T=32", partial(latents_to_logits, whole, 8, 12), quick=True),
        Case("latent-logit-small", "latent→logit with a vocabulary of 1,000", partial(latents_to_logits, GPT2, 8, 12)),
        Case("smollm2-6-9-linear", "SmolLM2 6→9, 64 tokens, LINEAR", partial(smollm2, "6", "9", policy=LINEAR)),
        Case("gpt2-0-3-exact-128", "GPT-2 shape 0→3, T=128, EXACT, 1 GiB", partial(latents, GPT2, 0, 3, 128)),
        Case("gpt2-0-3-linear-128", "GPT-2 shape 0→3, T=128, LINEAR, 1 GiB", partial(latents, GPT2, 0, 3, 128, LINEAR)),
        Case("gemma2-0-1-exact", "Gemma-2-2B shape 0→1, T=32, EXACT", partial(latents, GEMMA2_2B, 0, 1, d_sae=16384, active=(16, 16))),
        *cut_cases(),
        *scalings(),
    ]
    return {case.name: case for case in listed}
