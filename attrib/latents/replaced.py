"""The model's pass over a batch of prompts, and passes in which something else stands where dictionaries write.

`spliced`: what the dictionaries decode, without their errors; a dictionary that reads behind another reads what the other has written.
`zero` and `mean`: zero, and the mean over the corpus. In each, tokens that do not count keep what the model has there.

Replaced passes begin at the first place that is written: nothing before it differs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from attrib.core.shown import in_one_line
from attrib.core.types import Site, SparseLatents
from attrib.dictionaries.dictionary import decode_at, encode_sparse, normalise_input, skip, split
from attrib.models.transformer import Model, embed, place, unembed, walk
from attrib.passes.behind import base_site
from attrib.passes.heads import attention_heads
from attrib.passes.replacement import Replacement, written_by

Way = Literal["spliced", "zero", "mean"]
WAYS: tuple[Way, ...] = get_args(Way)
LOGITS = 1 << 24
"""So many logits are held at once: of a large vocabulary those of a few positions, and never those of a whole prompt."""


@dataclass(frozen=True)
class Clean:
    """The model's own pass over prompts of one length: values by place, and the last stream where it was computed."""

    ids: Int[Tensor, "batch positions"]
    values: Mapping[Site, Float[Tensor, "batch positions _"]]
    last: Float[Tensor, "batch positions d_model"] | None


def clean_pass(model: Model, ids: Int[Tensor, "batch positions"], places: set[Site], *, whole: bool = True) -> Clean:
    """The values at some places, and the last stream; or no further than the last of the places."""
    values, last = {}, max(at.depth for at in places)
    for site, value in walk(model, Site(0, "resid_pre"), embed(model, ids)):
        if (at := place(model, site)) in places:
            values[at] = value
        if not whole and at.depth >= last:
            break
    return Clean(ids, values, value if whole else None)


def places_of(replaced: Replacement, *, patterns: bool = False) -> set[Site]:
    """The places whose values passes with these dictionaries begin from."""
    model, first = replaced.model, replaced.written[0]
    base = base_site(first)
    streams = {Site(layer, "resid_pre") for layer in layers_behind(replaced)} if patterns else set()
    return {*replaced.sites, *streams, *([] if base is None else [place(model, base)])}


def layers_behind(replaced: Replacement) -> range:
    """The layers whose attention reads what the first of the written places moves."""
    first = replaced.written[0]
    return range(first.layer if first.kind == "resid_pre" else first.layer + 1, replaced.model.config.n_layers)


def decoded_of(
    replaced: Replacement, values: Mapping[Site, Float[Tensor, "batch positions _"]]
) -> tuple[list[SparseLatents], dict[Site, Float[Tensor, "tokens _"]]]:
    """Each dictionary's active latents of what it truly reads, and what they write at each place; tokens of all prompts in a row."""
    latents, decoded = [], dict[Site, Tensor]()
    for dictionary, places in zip(replaced.dictionaries, replaced.places, strict=True):
        x = values[place(replaced.model, dictionary.site)].flatten(0, 1)
        latents.append(found := encode_sparse(dictionary, x))
        written = decode_at(dictionary, found.value, found.position, found.latent, normalise_input(dictionary, x)[1])
        written = written + skip(dictionary, x) if dictionary.has_skip else written
        for at, part in zip(places, split(dictionary, written).values(), strict=True):
            decoded[at] = decoded[at] + part if at in decoded else part
    return latents, decoded


@in_one_line
class Effects(NamedTuple):
    """Sums over a batch, of one replaced pass."""

    cross_entropy: float
    """Over all tokens but each prompt's first, in nats."""
    kl: float
    """Over all positions, of the model's next tokens from the replaced ones, in nats."""
    pattern_kl: Float[Tensor, "layers heads"] | None
    """Over all query positions, by layer and head, in nats."""

    def plus(self, other: "Effects") -> "Effects":
        """Of both together."""
        patterns = None if self.pattern_kl is None or other.pattern_kl is None else self.pattern_kl + other.pattern_kl
        return Effects(self.cross_entropy + other.cross_entropy, self.kl + other.kl, patterns)


def cross_entropy_of(model: Model, last: Float[Tensor, "batch positions d_model"], ids: Int[Tensor, "batch positions"]) -> float:
    """Of all tokens but the first of each prompt, from the last stream, summed, in nats."""
    rows = max(1, LOGITS // model.config.d_vocab)
    pairs = zip(last[:, :-1].flatten(0, 1).split(rows), ids[:, 1:].flatten().split(rows), strict=True)
    return sum(float(F.cross_entropy(unembed(model, x), of_x, reduction="none").double().sum()) for x, of_x in pairs)


def _divergence(model: Model, true: Float[Tensor, "batch positions d_model"], other: Float[Tensor, "batch positions d_model"]) -> float:
    """Σ over positions of Σ p (log p - log q), of next tokens from two last streams."""
    rows = max(1, LOGITS // model.config.d_vocab)
    found = 0.0
    for pair in zip(true.flatten(0, 1).split(rows), other.flatten(0, 1).split(rows), strict=True):
        log_p, log_q = (unembed(model, x).log_softmax(-1) for x in pair)
        found += float(F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).double().sum())
    return found


def replaced_pass(
    replaced: Replacement, clean: Clean, counted: Bool[Tensor, "batch positions"], way: Way, means: Mapping[Site, Tensor], *, patterns: bool
) -> Effects:
    """What one way of replacing does, against the clean pass."""
    model, first, layers = replaced.model, replaced.written[0], layers_behind(replaced)
    base = base_site(first)
    given = None if base is None else clean.values[place(model, base)]
    stands = _stands(replaced, clean, counted, way, means)
    found = torch.zeros(len(layers), model.config.n_heads, dtype=torch.float64)
    for site, value in walk(model, first, clean.values[first], given, put=stands):
        at = place(model, site)
        if patterns and at.kind == "resid_pre" and at.layer in layers:
            found[layers.index(at.layer)] = _pattern_kl(model, at.layer, clean.values[at], value)
    assert clean.last is not None
    return Effects(cross_entropy_of(model, value, clean.ids), _divergence(model, clean.last, value), found if patterns else None)


def _stands(
    replaced: Replacement, clean: Clean, counted: Bool[Tensor, "batch positions"], way: Way, means: Mapping[Site, Tensor]
) -> Callable[[Site, Tensor], Tensor]:
    """What stands at each place of one replaced pass."""
    first, decoded = replaced.written[0], dict[Site, Tensor]()

    def read(numbers: Sequence[int], x: Tensor) -> None:
        for number in numbers if way == "spliced" else ():
            dictionary = replaced.dictionaries[number]
            written = written_by(dictionary, x.flatten(0, 1)).unflatten(0, x.shape[:2])
            for at, part in zip(replaced.places[number], split(dictionary, written).values(), strict=True):
                decoded[at] = decoded[at] + part if at in decoded else part

    for at, (own, others) in replaced.readers.items():
        if at.depth < first.depth:
            read([*own, *others], clean.values[at])

    def stands(at: Site, value: Tensor) -> Tensor:
        own, others = replaced.readers.get(at, ((), ()))
        read(own, value)
        if at in replaced.written:
            new = decoded[at] if way == "spliced" else means[at].to(value) if way == "mean" else torch.zeros_like(value)
            value = torch.where(counted[..., None], new, value)
        read(others, value)
        return value

    return stands


def _pattern_kl(model: Model, layer: int, true: Float[Tensor, "batch positions d"], other: Float[Tensor, "batch positions d"]) -> Tensor:
    """Σ over prompts and query positions of Σ_k p_k (log p_k - log q_k), by head. A q that underflows is the least normal number."""
    p, q = (attention_heads(model, layer, x).pattern for x in (true, other))
    tiny = torch.finfo(q.dtype).tiny
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q.clamp_min(tiny))).double().sum((0, 2, 3)).cpu()


def batches_of(prompts: Sequence[Tensor], tokens: int) -> Iterator[Int[Tensor, "_ _"]]:
    """Prompts of one length together, of at most so many tokens; at least one prompt."""
    by_length: dict[int, list[Tensor]] = {}
    for ids in prompts:
        by_length.setdefault(len(ids), []).append(ids)
    for length, same in sorted(by_length.items()):
        rows = max(1, tokens // length)
        for first in range(0, len(same), rows):
            yield torch.stack(same[first : first + rows])
