"""The four attributions: token → latent, latent → latent, latent → logit, latent → metric.

Each is a loop over prompts: build the path at its primal point, take its Jacobian in tiles, select what
is kept while a tile is at hand, and join the prompts. Attribution is gradient × source activation.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.between import Effect
from attrib.cone import pieces_of
from attrib.cuts import apart_from, cuts_between
from attrib.dictionary import Dictionary
from attrib.edges import Edges, Growing, Nodes, Prompts, join
from attrib.fingerprints import sha256_of
from attrib.finite import of_prompt, require_finite
from attrib.fit import known_to
from attrib.jacobian import (
    DEFAULT_BUDGET,
    Tile,
    adjoint,
    by_function,
    by_jvp,
    by_vjp,
    chunk_size,
    sampled_error,
    task_of,
    with_writes,
)
from attrib.model import Model
from attrib.needs import Needs
from attrib.ops import Compacted, Impl, check_impl, compact
from attrib.packing import packs
from attrib.paths import Path, Sources, check_source, metric_path, path_of, start_site, stop_site
from attrib.positions import Positions, PositionsLike, plain_positions
from attrib.precision import Precision, precision_of
from attrib.reading import LogitsLike, as_logits, read_site
from attrib.room import memory_named
from attrib.sources.given import as_bytes, as_dictionaries, as_dictionary, as_model, takes
from attrib.sparse import check_keep, kept, to_csr
from attrib.tokens import TokensLike, to_prompts, token_strings
from attrib.types import EXACT, BudgetError, Dense, EdgeKind, InputError, Keep, NodeKind, Policy, Progress, Site, TopLogits

Method = Literal["adjoint", "adjoint-triton", "torch.func"]

Result = TypeVar("Result")

SAMPLED_ROWS = 16
"""Rows that are computed again in float64, to tell the error of a reduced precision."""


@takes(model=as_model, target=as_dictionary, cuts=as_dictionaries, budget=as_bytes)
def token_to_latent(
    model: Model,
    target: Dictionary,
    tokens: TokensLike,
    *,
    cuts: Sequence[Dictionary] = (),
    effect: Effect = "direct",
    policy: Policy = EXACT,
    keep: Keep = Dense(),  # noqa: B008 - an immutable value
    positions: PositionsLike = None,
    dtype: torch.dtype | str | None = None,
    budget: int = DEFAULT_BUDGET,
    method: Method = "adjoint",
    precision_rows: int | None = None,
    progress: bool | Progress = False,
) -> Edges:
    """How the active latents of `target` move with the scale of each token's embedding sum (1 as it is).

    See `latent_to_latent` for the options.
    """
    options = _Options(policy, keep, positions, dtype, budget, method, progress, precision_rows, cuts, effect)
    return _run("token_to_latent", model, None, target, tokens, options, error=True)


@takes(model=as_model, source=as_dictionary, target=as_dictionary, cuts=as_dictionaries, budget=as_bytes)
def latent_to_latent(
    model: Model,
    source: Dictionary,
    target: Dictionary,
    tokens: TokensLike,
    *,
    cuts: Sequence[Dictionary] = (),
    effect: Effect = "direct",
    policy: Policy = EXACT,
    keep: Keep = Dense(),  # noqa: B008
    positions: PositionsLike = None,
    error: bool = True,
    dtype: torch.dtype | str | None = None,
    budget: int = DEFAULT_BUDGET,
    method: Method = "adjoint",
    precision_rows: int | None = None,
    progress: bool | Progress = False,
) -> Edges:
    """How the active latents of `target` move with the active latents of `source`.

    Args:
        tokens: the prompts: text, token ids, chats or a tokenizer's encodings, one or a list of them; docs/prompts.md.
        cuts: dictionaries that are put in on the way, each in place of what it writes, as `attrib.replace` means it;
            docs/cuts.md. A source that writes at several sites takes their place too.
        effect: "direct", derivatives stop at the cuts; or "total", they pass through the cuts' active latents.
        policy: which nonlinearities are differentiated; EXACT, LINEAR or any Policy.
        keep: which edges are kept; row totals are over all of them whatever is kept.
        positions: of the targets: a number, or several, negative ones from the end; "last" or "all"; a slice; or a mask of
            booleans. None is all.
        error: whether the source's error is added to its reconstruction, as a constant.
        dtype: to compute in: "float32" or "float64"; or float32 with the sweep's products in "tf32" (CUDA) or
            "bfloat16". None is the model's own.
        budget: bytes of working memory, beside the parameters and the result.
        method: "adjoint", the written sweeps; "adjoint-triton", the same with Triton kernels; or "torch.func", plain
            transforms over the segment: the slow reference.
        precision_rows: how many rows of the first prompt, chosen at random, are computed again in float64; how far they
            are off is `call["precision_error"]`. None is 16 where the products have fewer digits than the result, else 0. That takes
            up to 1 GiB where `budget` is less.
        progress: True for a bar, or a function called with (prompts done, prompts in all).

    Raises:
        InputError: for a bad argument, before anything is computed.
        BudgetError: where the budget is too small for one row of some prompt.
        NotFiniteError: for a prompt at which a value is NaN or infinite.
    """
    options = _Options(policy, keep, positions, dtype, budget, method, progress, precision_rows, cuts, effect)
    return _run("latent_to_latent", model, source, target, tokens, options, error)


@takes(model=as_model, source=as_dictionary, cuts=as_dictionaries, budget=as_bytes)
def latent_to_logit(
    model: Model,
    source: Dictionary,
    tokens: TokensLike,
    *,
    logits: LogitsLike = TopLogits(),  # noqa: B008
    cuts: Sequence[Dictionary] = (),
    effect: Effect = "direct",
    policy: Policy = EXACT,
    keep: Keep = Dense(),  # noqa: B008
    positions: PositionsLike = None,
    error: bool = True,
    dtype: torch.dtype | str | None = None,
    budget: int = DEFAULT_BUDGET,
    method: Method = "adjoint",
    precision_rows: int | None = None,
    progress: bool | Progress = False,
) -> Edges:
    """How chosen logits move with the active latents of `source`.

    Args:
        logits: TopLogits(k, mass), TokenLogits([...]), Difference(a, b) or Direction(vector). A string, or a list of strings and
            token ids, is these tokens; a whole number alone is the k of the k largest, and no id.
        positions: where the logits are read; None is the last position.

    The other options and errors are those of `latent_to_latent`.
    """
    options = _Options(policy, keep, positions, dtype, budget, method, progress, precision_rows, cuts, effect)
    return _run("latent_to_logit", model, source, as_logits(logits), tokens, options, error)


@takes(model=as_model, source=as_dictionary, cuts=as_dictionaries, budget=as_bytes)
def latent_to_metric(
    model: Model,
    source: Dictionary,
    tokens: TokensLike,
    metric: Callable[[Float[Tensor, "positions d_vocab"]], Float[Tensor, ""]],
    *,
    cuts: Sequence[Dictionary] = (),
    effect: Effect = "direct",
    policy: Policy = EXACT,
    keep: Keep = Dense(),  # noqa: B008
    error: bool = True,
    dtype: torch.dtype | str | None = None,
    budget: int = DEFAULT_BUDGET,
    method: Method = "adjoint",
    progress: bool | Progress = False,
) -> Edges:
    """How a scalar of the logits moves with the active latents of `source`: one target row per prompt.

    Args:
        metric: from the logits of a prompt [positions, d_vocab] to a scalar tensor.

    The other options and errors are those of `latent_to_latent`.
    """
    options = _Options(policy, keep, None, dtype, budget, method, progress, None, cuts, effect)
    return _run("latent_to_metric", model, source, metric, tokens, options, error)


# ------------------------------------------------------------------------------------- the one loop


@dataclass(frozen=True)
class _Options:
    policy: Policy
    keep: Keep
    positions: PositionsLike
    dtype: torch.dtype | str | None
    budget: int
    method: Method
    progress: bool | Progress
    precision_rows: int | None = None
    cuts: Sequence[Dictionary] = ()
    effect: Effect = "direct"
    result_fits: bool = True
    """Whether the result has to fit into memory: a plan only tells its size."""

    def __post_init__(self) -> None:
        check_keep(self.keep)
        rows = self.precision_rows
        if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 0):
            raise InputError(f"precision_rows: {self.precision_rows!r}; expected a whole number, 0 or more, or None.")
        if not (isinstance(self.progress, bool) or callable(self.progress)):
            raise InputError(f"progress: {self.progress!r}; expected True, False or a function called with (prompts done, prompts in all).")
        if not isinstance(self.policy, Policy) or not set(self.policy) <= {"exact", "frozen"}:
            raise InputError(
                f"policy: {self.policy!r}; expected attrib.EXACT, attrib.LINEAR or Policy(attention, norm, mlp) of 'exact' and 'frozen'."
            )
        if self.method not in get_args(Method):
            raise InputError(f"method: {self.method!r}; expected one of {', '.join(get_args(Method))}.")
        check_impl(self.impl)

    @property
    def impl(self) -> Impl:
        """Whose attention maps and selection are used."""
        return "triton" if self.method == "adjoint-triton" else "torch"


class _Checked(NamedTuple):
    """A call whose arguments were found good: where it starts and ends, its prompts and their sweeps."""

    start: Site
    stop: Site
    precision: Precision
    prompts: list[Tensor]
    positions: Positions
    needs: Needs


def _check(
    kind: EdgeKind, model: Model, source: Dictionary | None, target: Any, tokens: TokensLike, options: "_Options", error: bool
) -> _Checked:
    """Raise what is wrong with a call's arguments."""
    precision = precision_of(model, options.dtype)
    if precision.is_reduced and (options.method == "torch.func" or kind == "latent_to_metric"):
        raise InputError(f"dtype: {precision.name} is a precision of the adjoint sweep; expected float32 or float64 here.")
    if options.precision_rows and options.method == "torch.func":
        raise InputError("precision_rows: it measures the adjoint sweep; expected None or 0 with method='torch.func'.")
    prompts = to_prompts(model, tokens)
    start = start_site(source)
    if kind == "latent_to_metric" and not callable(target):
        raise InputError(f"metric: {target!r:.60}; expected a function from logits [positions, d_vocab] to a scalar tensor.")
    stop = model.config.last if kind == "latent_to_metric" else stop_site(model, target, (source, *options.cuts))
    if source is not None:
        check_source(model, source, stop, target)
    cuts_between(model, source, target, start, stop, options.cuts, options.effect, options.policy)
    positions = plain_positions(options.positions, [len(ids) for ids in prompts])
    is_reference, rows = options.method == "torch.func", sampled_rows(options.precision_rows, precision, options.method)
    needs = Needs(
        kind, model, source, target, options.cuts, options.effect, options.policy, positions, error, precision, is_reference, rows,
        options.keep, options.budget,
    )  # fmt: skip
    needs.check(prompts, result=options.result_fits)
    return _Checked(start, stop, precision, prompts, positions, needs)


def sampled_rows(asked: int | None, precision: Precision, method: Method = "adjoint") -> int:
    """How many rows are computed again, of what was asked for."""
    return (SAMPLED_ROWS if precision.is_measured and method != "torch.func" else 0) if asked is None else asked


def check(kind: EdgeKind, model: Model, source: Dictionary | None, target: Any, tokens: TokensLike, **options: Any) -> Needs:
    """Raise what the attribution of this kind would raise for these arguments, and say what it needs of memory; computes nothing.

    Args:
        target: a dictionary, a choice of logits, or a metric.
    """
    usual: dict[str, Any] = {
        "policy": EXACT,
        "keep": Dense(),
        "positions": None,
        "dtype": None,
        "budget": DEFAULT_BUDGET,
        "method": "adjoint",
        "progress": False,
    }
    error = options.pop("error", True) or source is None
    if kind == "latent_to_logit":
        target = as_logits(target)
    options["cuts"] = apart_from(options.get("cuts", ()), source, target)
    return _check(kind, model, source, target, tokens, _Options(**(usual | options)), error).needs


def _run(
    kind: EdgeKind, model: Model, source: Dictionary | None, target: Any, tokens: TokensLike, options: "_Options", error: bool
) -> Edges:
    """Check everything, then attribute pack by pack and join."""
    if not isinstance(error, bool):
        raise InputError(f"error: {error!r}; expected True or False.")
    cuts = [known_to(model, cut, f"cuts[{number}]") for number, cut in enumerate(apart_from(options.cuts, source, target))]
    options = replace(options, cuts=cuts)
    source = None if source is None else known_to(model, source, "source")
    target = known_to(model, target, "target") if isinstance(target, Dictionary) else target
    start, _, precision, prompts, positions, needs = _check(kind, model, source, target, tokens, options, error)
    options = replace(options, positions=positions)
    call = _call(kind, model, source, target, prompts, options, precision, error)
    doing = f"attributing {len(prompts)} prompt(s) of up to {max(map(len, prompts))} tokens"
    with memory_named(doing, "Give a smaller budget, keep fewer edges (keep=TopK(k), Mass(0.9)), or give fewer or shorter prompts."):
        model, source, target, put_in = needs.in_precision()
        done = _track(prompts, options.progress)
        if kind == "latent_to_metric":
            assert source is not None
            metric_edges = partial(_metric_edges, kind, model, source, target, options=options, error=error, put_in=put_in, call=call)
            return join([_of_prompt(number, metric_edges, ids) for number, ids in enumerate(done)], release=True)
        others: dict[str, Any] = {"policy": options.policy, "positions": options.positions, "error": error}
        opened = partial(path_of, model, source, target, **put_in, **others)
        paths = ((ids, _of_prompt(number, opened, ids)) for number, ids in enumerate(done))
        jacobians = (_by_transforms if needs.is_reference else _by_adjoint)(paths, needs, prompts, options.impl)
        named = start if source is None else source.site, read_site(model, target)
        parts: list[Edges] = []
        for ids, found, tiles in jacobians:  # and not `enumerate`, which would hold a path while the next is opened
            if needs.rows and not parts:
                sampled = sampled_error(found, needs.rows, precision, options.impl, options.budget)
                call |= {"precision_error": sampled._asdict(), "seed": 0}
            parts.append(_of_prompt(len(parts), partial(_path_edges, kind, model, *named, found, tiles), ids, options, call))
            del found, tiles
        return join(parts, release=True)


def _of_prompt(number: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function makes of a prompt; what it raises names the prompt."""
    with of_prompt(number):
        return function(*arguments)


Prompted = tuple[Tensor, Path]
"""A prompt's tokens and its path."""


Jacobian = tuple[Tensor, Path, Iterator[Tile]]
"""The same, and the tiles of its Jacobian."""


def _by_transforms(paths: Iterable[Prompted], needs: Needs, prompts: list[Tensor], _: Impl) -> Iterator[Jacobian]:
    """Plain torch.func, prompt by prompt: tangents from tokens, cotangents to latents."""
    grow = needs.growing(prompts)
    for number, (ids, found) in enumerate(paths):
        try:
            rows = chunk_size(with_writes(needs.working(len(ids)), found), needs.budget, number)
        except BudgetError:
            needs.refuse(prompts)
        grow(task_of([found]))
        transform = by_function if found.is_cut else by_jvp if found.from_tokens else by_vjp
        yield ids, found, transform(found, rows)


def _by_adjoint(paths: Iterable[Prompted], needs: Needs, prompts: list[Tensor], impl: Impl) -> Iterator[Jacobian]:
    """The written sweeps, pack by pack."""
    grow = needs.growing(prompts)
    planned = packs(paths, lambda prompted: needs.opened(*prompted), needs.budget)
    while True:
        try:
            pack, plan = next(planned)
        except StopIteration:
            return
        except BudgetError:
            needs.refuse(prompts)
        grow(plan.task)
        tiles = adjoint([found for _, found in pack], plan, needs.precision, impl)
        if len(pack) == 1:
            yield *pack[0], map(itemgetter(1), tiles)  # which, unlike a loop, lets go of a tile before it asks for the next
        else:
            for number, its_tiles in groupby(tiles, key=lambda tile: tile[0]):
                yield *pack[number], (tile for _, tile in its_tiles)
        del pack, plan, tiles


def _track(items: list[Any], progress: bool | Progress) -> Iterable[Any]:
    if progress is True:
        from rich.progress import track

        yield from track(items, description="attributing")
        return
    for number, item in enumerate(items):
        yield item
        if progress:
            progress(number + 1, len(items))


# ------------------------------------------------------------------------------------- tiles to edges


def _path_edges(
    kind: EdgeKind,
    model: Model,
    source_site: Site,
    target_site: Site,
    found: Path,
    tiles: Iterator[Tile],
    ids: Tensor,
    options: _Options,
    call: dict[str, Any],
) -> Edges:
    targets = found.targets
    node_kind: NodeKind = "logit" if kind == "latent_to_logit" else "latent"
    site = "logits" if node_kind == "logit" and found.labels[:1] != ("direction",) else str(target_site)
    table = Nodes(
        node_kind, site, _ptr(len(targets.position)), targets.position.cpu(), targets.latent.cpu(), _wide(targets.value).cpu(),
        found.labels, None if found.probability is None else _wide(found.probability).cpu(),
    )  # fmt: skip
    return _edges(kind, _source_nodes(model, kind, source_site, found.sources), table, tiles, found.sources, ids, model, options, call)


def _metric_edges(
    kind: EdgeKind,
    model: Model,
    source: Dictionary,
    metric: Callable[..., Tensor],
    ids: Tensor,
    *,
    options: _Options,
    error: bool,
    put_in: dict[str, Any],
    call: dict[str, Any],
) -> Edges:
    found = metric_path(model, source, ids, metric, policy=options.policy, error=error, **put_in)
    name = getattr(metric, "__name__", "metric")
    last = torch.tensor([len(ids) - 1])
    table = Nodes("metric", "logits", _ptr(1), last, torch.tensor([-1]), _wide(found.value).reshape(1).cpu(), (name,))
    tile = Tile(0, found.gradient[None])
    return _edges(
        kind, _source_nodes(model, kind, source.site, found.sources), table, iter([tile]), found.sources, ids, model, options, call
    )


def _edges(
    kind: EdgeKind,
    source_table: Nodes,
    target_table: Nodes,
    tiles: Iterator[Tile],
    sources: Sources,
    ids: Tensor,
    model: Model,
    options: "_Options",
    call: dict[str, Any],
) -> Edges:
    """Select from each tile where it lies, and move only what is kept."""
    select = partial(compact, impl="triton") if options.impl == "triton" else _select
    value = _wide(sources.value)
    number, none = torch.zeros(0, dtype=torch.int64), source_table.activation.new_zeros(0)
    growing = [Growing() for _ in Compacted._fields]  # the first of how many each row keeps
    for tile in tiles:
        width = tile.gradient.shape[1]
        at_once = max(1, pieces_of(tile.gradient.device).select // max(1, width))
        for rows in tile.gradient.split(at_once):
            found = select(_wide(rows), value[:width], options.keep)
            for column, piece in zip(growing, found._replace(indptr=found.indptr.diff()), strict=True):
                column.add(piece.cpu())
        del tile, rows  # before the next is computed
    counts, indices = (column.whole(number) for column in growing[:2])
    gradient, attribution, total, l1 = (column.whole(none) for column in growing[2:])
    ends = counts.cumsum(0)
    indptr = torch.cat([ends.new_zeros(1), ends])
    # every gradient is a term of these, whatever is kept
    require_finite({f"the gradients of {target_table.site}": l1}, position=target_table.position)
    return Edges(
        kind, source_table, target_table, indptr, indices, gradient, attribution, total, l1, _prompts(model, ids), call
    )  # fmt: skip


def _select(gradient: Float[Tensor, "rows columns"], activation: Float[Tensor, " columns"], keep: Keep) -> Compacted:
    """What is kept of a tile."""
    attribution = gradient * activation
    indptr, indices, place = to_csr(kept(keep, gradient, attribution))
    chosen, share = (part.flatten().index_select(0, place) for part in (gradient, attribution))
    return Compacted(indptr, indices, chosen, share, attribution.sum(-1), attribution.abs().sum(-1))


def _wide(column: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Halves as float32, which holds them exactly: results are float32 or float64, since numpy, scipy and HDF5 know no bfloat16."""
    return column.float() if column.dtype in (torch.bfloat16, torch.float16) else column


def _source_nodes(model: Model, kind: EdgeKind, start: Site, sources: Sources) -> Nodes:
    position, latent, value = (column.cpu() for column in sources[:3])
    value = _wide(value)
    if kind == "token_to_latent":
        return Nodes("token", "embed", _ptr(len(position)), position, latent, value, token_strings(model, latent))
    return Nodes("latent", str(start), _ptr(len(position)), position, latent, value)


def _ptr(count: int) -> Int[Tensor, " two"]:
    return torch.tensor([0, count])


def _prompts(model: Model, ids: Tensor) -> Prompts:
    return Prompts(_ptr(len(ids)), ids.cpu(), token_strings(model, ids))


def _call(
    kind: EdgeKind,
    model: Model,
    source: Dictionary | None,
    target: Any,
    prompts: list[Tensor],
    options: _Options,
    precision: Precision,
    error: bool,
) -> dict[str, Any]:
    """What was asked for, and hashes of what it was asked of, as JSON can hold it."""

    def named(dictionary: Dictionary | None) -> dict[str, Any] | None:
        if dictionary is None:
            return None
        return {"name": dictionary.name, "site": str(dictionary.site), "d_sae": dictionary.d_sae, "sha256": dictionary.fingerprint}

    what = named(target) if isinstance(target, Dictionary) else getattr(target, "__name__", None) or repr(target)
    return {
        "kind": kind, "model": {"name": model.name, "sha256": model.fingerprint},
        "tokenizer": {"sha256": model.tokenizer.sha256 if model.tokenizer else None},
        "prompts": {"count": len(prompts), "sha256": sha256_of([*prompts])}, "source": named(source), "target": what,
        "cuts": [named(cut) for cut in options.cuts], "effect": options.effect,
        "policy": options.policy._asdict(), "keep": repr(options.keep), "error": error,
        "positions": list(options.positions) if isinstance(options.positions, tuple) else options.positions,
        "dtype": precision.name, "method": options.method, "budget": options.budget,
        "seed": None, "precision_error": None,
    }  # fmt: skip
