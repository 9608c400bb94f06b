"""Direct feature attribution: which heads, reading which positions, bring a latent about, over any number of prompts.

A latent j that reads the stream, or heads' outputs, at position p is linear in what each head h of a layer l takes there from a position s
(Kissane et al. 2024), where pattern a and norms are held at their values:

    c[l, h, s]  =  a[l, h, p, s] · (o[l, h] · v[l, h, s]),        o[l, h] = (∂pre_j / ∂z[l, p])_h

with v the head's values. Their sum, and what reaches the latent past all heads (embeddings, MLPs, biases), is its pre-activation. What a
source latent i at s brings by the stream alone, past no other attention or MLP, is the same with its own share of the values,

    c[l, h, i]  =  a[l, h, p, s] · (o[l, h] · ∂v[l, h, s]/∂x_l[s] · a_i D_i)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import jvp, vjp

from attrib.adapters.given import as_bytes, as_dictionary, as_model, as_source, takes
from attrib.attribution.loop import of_prompt_number, track
from attrib.core.edges import Prompts, join_prompts
from attrib.core.finite import require_finite
from attrib.core.keep import check_keep, kept
from attrib.core.positions import Positions, PositionsLike, plain_positions
from attrib.core.room import memory_named
from attrib.core.sparse import to_csr
from attrib.core.types import LINEAR, BudgetError, InputError, Keep, Progress, Site, TopK
from attrib.dictionaries.dictionary import Dictionary, encode_sparse
from attrib.dictionaries.fit import fitted
from attrib.engine.path import Sources, Targets
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.models.tokens import TokensLike, to_prompts, token_strings
from attrib.models.transformer import Model, attention_written, enter, project
from attrib.passes.capture import capture
from attrib.passes.heads import attention_heads
from attrib.paths.ends import read_end
from attrib.paths.starts import latent_sources

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class HeadAttribution:
    """What each head brings to latents, from each position or each source latent. Target t has the shares `indptr[t]:indptr[t + 1]`.

    pre-activation  =  total + rest,        total = sum of all shares, kept or not = by_head.sum()
    """

    prompts: Prompts
    prompt: Int[Tensor, " targets"]
    position: Int[Tensor, " targets"]
    latent: Int[Tensor, " targets"]
    activation: Float[Tensor, " targets"]
    total: Float[Tensor, " targets"]
    rest: Float[Tensor, " targets"]
    """What reaches the target past all these heads, and of a source dictionary, past its latents."""
    by_head: Float[Tensor, "targets layers heads"]
    """The sum over all that a head reads."""
    layers: tuple[int, ...]
    indptr: Int[Tensor, " targets_plus_1"]
    layer: Int[Tensor, " shares"]
    head: Int[Tensor, " shares"]
    source_position: Int[Tensor, " shares"]
    source_latent: Int[Tensor, " shares"]
    """-1 where the share is a position's whole."""
    share: Float[Tensor, " shares"]
    """In the order of layers, heads and sources."""

    def __len__(self) -> int:
        return len(self.position)

    def __repr__(self) -> str:
        return (
            f"HeadAttribution({len(self):,} targets in {len(self.prompts):,} prompts by {self.by_head.shape[2]} heads of layers "
            f"{', '.join(map(str, self.layers))}; {len(self.share):,} shares kept)"
        )

    @property
    def row(self) -> Int[Tensor, " shares"]:
        """The target of each share."""
        return torch.arange(len(self)).repeat_interleave(self.indptr.diff())

    def mean_by_head(self, latent: int) -> Float[Tensor, "layers heads"]:
        """What each head brings to a latent, on the mean over all places where it is active. Raises InputError for one that never is."""
        rows = self.latent == latent
        if not bool(rows.any()):
            raise InputError(f"latent: {latent} is not among the targets; it is active nowhere in these prompts, or was not asked for.")
        return self.by_head[rows].mean(0)

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each share that was kept, with its target and its source spelled out."""
        import pandas as pd

        row, strings, ptr = self.row, self.prompts.strings, self.prompts.ptr
        first = ptr[self.prompt[row]]
        return pd.DataFrame(
            {
                "prompt": self.prompt[row].numpy(), "target_position": self.position[row].numpy(),
                "target_token": [strings[at] for at in (first + self.position[row]).tolist()], "target_latent": self.latent[row].numpy(),
                "target_activation": self.activation[row].numpy(), "layer": self.layer.numpy(), "head": self.head.numpy(),
                "source_position": self.source_position.numpy(),
                "source_token": [strings[at] for at in (first + self.source_position).tolist()],
                "source_latent": self.source_latent.numpy(), "share": self.share.numpy(),
            }
        )  # fmt: skip


@memory_named("attributing to heads", "Ask for fewer latents, keep fewer shares, or give fewer or shorter prompts.")
@takes(model=as_model, target=as_dictionary, source=as_source, budget=as_bytes)
def head_attribution(
    model: Model,
    target: Dictionary,
    tokens: TokensLike,
    *,
    source: Dictionary | None = None,
    latents: int | Iterable[int] | None = None,
    layers: int | Iterable[int] | None = None,
    positions: PositionsLike = None,
    keep: Keep = TopK(32),  # noqa: B008
    budget: int = DEFAULT_BUDGET,
    progress: bool | Progress = False,
) -> HeadAttribution:
    """What each head brings to the active latents of a dictionary, from each position that it reads, over all prompts.

    Args:
        target: a dictionary that reads heads' outputs (z, attn_out), the stream, or what enters an MLP.
        source: a dictionary that writes into the stream. Shares are then its latents', each by the stream alone. None is whole positions.
        latents: of the target, a number or several. None is all that are active.
        layers: whose heads; None is all before the target that the source is before.
        positions: of the targets.
        keep: which shares of each target are kept; `by_head` and `total` are over all of them.
        budget: bytes of working memory; targets are taken in as many pieces as it asks for.

    Raises:
        InputError: for a bad argument, a target that no head writes to directly, or a source behind the heads.
        BudgetError: where the budget is too small for one target.
        NotFiniteError: for a prompt at which a value is NaN or infinite.
    """
    check_keep(keep)
    target = fitted(model, target.to(dtype=model.dtype, device=model.device), "target")
    if target.site.kind == "mlp_out":
        raise InputError(f"target: it reads {target.site}, which no head writes to but through an MLP; expected z, attn_out or the stream.")
    if source is not None:
        source = fitted(model, source.to(dtype=model.dtype, device=model.device), "source")
        if len(source.writes) > 1 or source.writes[0].kind in ("z", "mlp_in"):
            raise InputError(
                f"source: it writes {', '.join(map(str, source.writes))}; expected one place that is the stream or is added to it."
            )
    chosen = _layers(model, target, source, layers)
    wanted = _latents(target, latents)
    prompts = to_prompts(model, tokens)
    asked = plain_positions(positions, [len(ids) for ids in prompts])
    one = partial(_of_prompt, model, target, source, chosen, wanted, asked, keep, budget)
    parts: list[_Part] = []
    for number, ids in enumerate(track(list(prompts), progress)):
        parts.append(of_prompt_number(number, partial(one, number), ids))
    return _joined(model, chosen, prompts, parts)


def _reached(model: Model, target: Dictionary) -> Site:
    """The place of the stream that a target reads, or the heads' own."""
    site = target.site
    if site.kind != "mlp_in":
        return site
    return Site(site.layer, "resid_pre" if model.config.parallel else "resid_mid")


def _layers(model: Model, target: Dictionary, source: Dictionary | None, given: int | Iterable[int] | None) -> tuple[int, ...]:
    """The layers whose heads write to the target directly, of those asked for."""
    at = _reached(model, target)
    before = (
        [at.layer] if at.kind in ("z", "attn_out") else [n for n in range(model.config.n_layers) if Site(n, "attn_out").depth < at.depth]
    )
    if source is not None:
        before = [n for n in before if source.writes[0].depth <= Site(n, "resid_pre").depth]
    asked = before if given is None else [given] if isinstance(given, int) else list(given)
    if not before or (wrong := [layer for layer in asked if layer not in before]) or not asked:
        behind = "" if source is None else f" and behind the source's {source.writes[0]}"
        which = f"layers: {wrong[0]!r} has no" if before and asked else "layers: none of them have"
        raise InputError(f"{which} heads that write to the target's {target.site}{behind}; expected some of {before}.")
    return tuple(sorted(set(asked)))


def _latents(target: Dictionary, given: int | Iterable[int] | None) -> Int[Tensor, " latents"] | None:
    if given is None:
        return None
    found = [given] if isinstance(given, int) else [int(one) for one in given]
    if not found or (wrong := [one for one in found if not 0 <= one < target.d_sae]):
        said = wrong[0] if found else "none"
        raise InputError(f"latents: {said}; expected numbers from 0 to {target.d_sae - 1}.")
    return torch.tensor(found)


class _Part(NamedTuple):
    """One prompt's targets and shares."""

    targets: Targets
    by_head: Float[Tensor, "targets layers heads"]
    total: Float[Tensor, " targets"]
    counts: Int[Tensor, " targets"]
    column: Int[Tensor, " shares"]
    share: Float[Tensor, " shares"]
    position: Int[Tensor, " sources"]
    latent: Int[Tensor, " sources"]


@torch.no_grad()
def _of_prompt(
    model: Model,
    target: Dictionary,
    source: Dictionary | None,
    layers: tuple[int, ...],
    wanted: Int[Tensor, " latents"] | None,
    positions: Positions,
    keep: Keep,
    budget: int,
    number: int,
    ids: Int[Tensor, " positions"],
) -> _Part:
    at = _reached(model, target)
    streams = {layer: Site(layer, "resid_pre") for layer in layers}
    seen = capture(model, ids, {at, target.site, *streams.values(), *([] if source is None else [source.site])})
    require_finite({str(site): seen[site] for site in sorted(seen, key=lambda site: site.depth)})
    x = seen[target.site]
    _, _, targets = read_end(model, target, target.site, target.site, x, x, x, positions, LINEAR)
    if wanted is not None:
        rows = torch.isin(targets.latent, wanted.to(targets.latent.device)).nonzero().squeeze(1)
        targets = Targets(*(column[rows] for column in targets))
    if source is None:
        every = torch.arange(len(ids), device=x.device)
        sources = Sources(every, torch.full_like(every, -1), torch.ones_like(x[:, 0]), x.new_zeros(len(ids), 0))
    else:
        sources = latent_sources(source, seen[source.site], source.writes, encode_sparse(source, seen[source.site]))
    heads, found = model.config.n_heads, []
    row = x.dtype.itemsize * 4 * len(layers) * heads * (len(sources.position) + model.config.d_head) + 1
    if budget < row:
        raise BudgetError.of(budget, number, row)
    for first in range(0, len(targets.position), budget // row):
        some = Targets(*(column[first : first + budget // row] for column in targets))
        shares = torch.stack(
            [_shares(model, layer, seen[streams[layer]], at, seen[at], some, target, source, sources) for layer in layers], 1
        )
        flat = shares.flatten(1)
        require_finite({"the shares of heads": flat}, position=some.position)
        indptr, column, place = to_csr(kept(keep, flat, flat))
        found.append((shares.sum(-1), flat.sum(-1), indptr.diff(), column, flat.flatten().index_select(0, place)))
    none = x.new_zeros(0)
    whole = torch.zeros(0, dtype=torch.int64)
    empty = (x.new_zeros(0, len(layers), heads), none, whole, whole, none)
    by_head, total, counts, column, share = (torch.cat(part).cpu() for part in zip(*(found or [empty]), strict=True))
    position, latent = sources.position.cpu(), sources.latent.cpu()
    return _Part(Targets(*(each.cpu() for each in targets)), by_head, total, counts, column, share, position, latent)


def _shares(
    model: Model,
    layer: int,
    stream: Float[Tensor, "positions d_model"],
    at: Site,
    there: Float[Tensor, "positions _"],
    targets: Targets,
    target: Dictionary,
    source: Dictionary | None,
    sources: Sources,
) -> Float[Tensor, "targets heads sources"]:
    """c of one layer."""
    config = model.config
    _, _, v, pattern, z = attention_heads(model, layer, stream, policy=LINEAR)
    cotangent = targets.cotangent
    if target.site.kind == "mlp_in":  # what enters an MLP is behind a norm, held at its primal
        rows = there.index_select(0, targets.position)
        (cotangent,) = vjp(lambda rows: enter(config, model.params.blocks[at.layer].norm_2, rows, LINEAR), rows)[1](cotangent)
    if at.kind != "z":
        rows = z.transpose(0, 1).flatten(1).index_select(0, targets.position)
        (cotangent,) = vjp(lambda rows: attention_written(model, layer, rows, LINEAR), rows)[1](cotangent)
    o = cotangent.unflatten(-1, (config.n_heads, -1))
    seen = pattern[:, targets.position].transpose(0, 1)  # [targets, heads, positions]
    if source is None:
        return seen * torch.einsum("thd,hsd->ths", o, v)
    rows, tangents = stream.index_select(0, sources.position), sources.value[:, None] * sources.direction
    norm = model.params.blocks[layer].norm_1
    moved = jvp(lambda rows: project(model, layer, enter(config, norm, rows, LINEAR)).v, (rows,), (tangents,))[1]
    brought = moved.unflatten(-1, (config.n_kv_heads, -1)).repeat_interleave(config.n_heads // config.n_kv_heads, dim=1)
    return seen.index_select(-1, sources.position) * torch.einsum("thd,ihd->thi", o, brought)


def _joined(model: Model, layers: tuple[int, ...], prompts: Iterable[Tensor], parts: list[_Part]) -> HeadAttribution:
    """All prompts together."""
    heads, dtype = model.config.n_heads, model.dtype
    tables = [Prompts(torch.tensor([0, len(ids)]), ids.cpu(), token_strings(model, ids)) for ids in prompts]

    def every(pieces: Iterator[Tensor]) -> Tensor:
        return torch.cat(list(pieces))

    def of_source(part: _Part) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        width = max(1, len(part.position))
        behind, which = part.column // width, part.column % width
        return torch.tensor(layers)[behind // heads], behind % heads, part.position[which], part.latent[which]

    spelled = [of_source(part) for part in parts]
    total = every(part.total for part in parts)
    value = every(part.targets.value for part in parts)
    counts = every(part.counts for part in parts)
    layer, head, position, latent = (every(iter(column)) for column in zip(*spelled, strict=True))
    return HeadAttribution(
        join_prompts(tables), torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part.total) for part in parts])),
        every(part.targets.position for part in parts), every(part.targets.latent for part in parts), value, total, value - total,
        every(part.by_head for part in parts).to(dtype), layers, torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        layer, head, position, latent, every(part.share for part in parts),
    )  # fmt: skip
