"""The four attributions: token → latent, latent → latent, latent → logit, latent → metric.

Each is a loop over prompts: build the path at its primal point, take its Jacobian in tiles, select what
is kept while a tile is at hand, and join the prompts. Attribution is gradient × source activation.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from attrib.between import Effect
from attrib.cone import pieces_of
from attrib.cuts import apart_from, cuts_between
from attrib.dictionary import Dictionary
from attrib.edges import Edges, Nodes, Prompts, join
from attrib.fingerprints import sha256_of
from attrib.finite import of_prompt, require_finite
from attrib.fit import fitted, known_to
from attrib.jacobian import (
    DEFAULT_BUDGET,
    Tile,
    Working,
    adjoint,
    by_function,
    by_jvp,
    by_vjp,
    chunk_size,
    sampled_error,
    task_of,
    working_memory,
)
from attrib.known import is_known, known_task
from attrib.model import Model
from attrib.ops import Compacted, Impl, check_impl, compact
from attrib.packing import least_budget, packs
from attrib.paths import Path, Sources, check_source, metric_path, path, start_site, stop_site
from attrib.precision import Precision, precision_of
from attrib.reading import Positions, chosen_positions, read_site, token_strings, tokenizer_of
from attrib.room import named_shortage
from attrib.size import while_there_is_room
from attrib.sources.given import as_bytes, as_dictionaries, as_dictionary, as_model, takes
from attrib.sparse import Column, check_keep, kept, to_csr
from attrib.types import EXACT, BudgetError, Dense, EdgeKind, InputError, Keep, Logits, NodeKind, Policy, Progress, Site, TopK, TopLogits

TokensLike = str | Tensor | Sequence[str | Tensor]
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
    positions: Positions = None,
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
    positions: Positions = None,
    error: bool = True,
    dtype: torch.dtype | str | None = None,
    budget: int = DEFAULT_BUDGET,
    method: Method = "adjoint",
    precision_rows: int | None = None,
    progress: bool | Progress = False,
) -> Edges:
    """How the active latents of `target` move with the active latents of `source`.

    Args:
        tokens: a list of 1-D int tensors of any lengths, or one, or strings where the model has a tokenizer.
        cuts: dictionaries that are put in on the way, each in place of what it writes, as `attrib.replace` means it;
            docs/cuts.md. A source that writes at several sites takes their place too.
        effect: "direct", derivatives stop at the cuts; or "total", they pass through the cuts' active latents.
        policy: which nonlinearities are differentiated; EXACT, LINEAR or any Policy.
        keep: which edges are kept; row totals are over all of them whatever is kept.
        positions: of the targets, negative ones from the end; None is all.
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
    logits: Logits = TopLogits(),  # noqa: B008
    cuts: Sequence[Dictionary] = (),
    effect: Effect = "direct",
    policy: Policy = EXACT,
    keep: Keep = Dense(),  # noqa: B008
    positions: Positions = None,
    error: bool = True,
    dtype: torch.dtype | str | None = None,
    budget: int = DEFAULT_BUDGET,
    method: Method = "adjoint",
    precision_rows: int | None = None,
    progress: bool | Progress = False,
) -> Edges:
    """How chosen logits move with the active latents of `source`.

    Args:
        logits: TopLogits(k, mass), Tokens([...]), Difference(a, b) or Direction(vector).
        positions: where the logits are read; None is the last position.

    The other options and errors are those of `latent_to_latent`.
    """
    options = _Options(policy, keep, positions, dtype, budget, method, progress, precision_rows, cuts, effect)
    return _run("latent_to_logit", model, source, logits, tokens, options, error)


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
    positions: Positions
    dtype: torch.dtype | str | None
    budget: int
    method: Method
    progress: bool | Progress
    precision_rows: int | None = None
    cuts: Sequence[Dictionary] = ()
    effect: Effect = "direct"

    def __post_init__(self) -> None:
        check_keep(self.keep)
        if self.precision_rows is not None and not (isinstance(self.precision_rows, int) and self.precision_rows >= 0):
            raise InputError(f"precision_rows: {self.precision_rows!r}; expected a whole number, 0 or more, or None.")
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
    working: list[Working]


def _check(kind: EdgeKind, model: Model, source: Dictionary | None, target: Any, tokens: TokensLike, options: "_Options") -> _Checked:
    precision = precision_of(model, options.dtype)
    if precision.is_reduced and (options.method == "torch.func" or kind == "latent_to_metric"):
        raise InputError(f"dtype: {precision.name} is a precision of the adjoint sweep; expected float32 or float64 here.")
    if options.precision_rows and options.method == "torch.func":
        raise InputError("precision_rows: it measures the adjoint sweep; expected None or 0 with method='torch.func'.")
    dtype = precision.path
    prompts = to_prompts(model, tokens)
    start = start_site(source)
    stop = model.config.last if kind == "latent_to_metric" else stop_site(model, target, (source, *options.cuts))
    if source is not None:
        check_source(model, source, stop, target)
    cuts_between(model, source, target, start, stop, options.cuts, options.effect, options.policy)
    for ids in prompts:
        chosen_positions(options.positions, len(ids), ids.device)
    # the widest table over positions: a dictionary's latents, or the logits that a metric reads
    widest = max(d.d_sae if isinstance(d, Dictionary) else 0 for d in (source, target, *options.cuts))
    widest = max(widest, model.config.d_vocab) if kind == "latent_to_metric" else widest
    working = [working_memory(model.config, start, stop, len(ids), widest, dtype.itemsize) for ids in prompts]
    by_rows = options.method == "torch.func" or kind == "latent_to_metric"
    # of the adjoint, what the encoders need; what a sweep needs is known, and asked, when the active latents are
    needs = [sum(needed) if by_rows else 3 * dtype.itemsize * len(ids) * widest for needed, ids in zip(working, prompts, strict=True)]
    if options.budget < max(needs):
        if kind != "latent_to_metric":
            needs = [max(need, _least(model, source, target, ids, options, dtype, need)) for need, ids in zip(needs, prompts, strict=True)]
        raise BudgetError.of(options.budget, needs.index(max(needs)), max(needs))
    return _Checked(start, stop, precision, prompts, working)


def _least(model: Model, source: Dictionary | None, target: Any, ids: Tensor, options: "_Options", dtype: torch.dtype, rows: int) -> int:
    """The smallest budget that does for a prompt: counted, at the price of a forward pass where it must be, for an error alone.

    Args:
        rows: what the first row of `torch.func` needs.
    """
    asked: dict[str, Any] = {"policy": options.policy, "positions": options.positions}
    if options.method != "torch.func" and is_known(source, target, _is_cut(source, options.cuts)):
        return least_budget(known_task(model, source, target, ids, **asked, itemsize=dtype.itemsize))
    source, target = (d.to(dtype=dtype, device=model.device) if isinstance(d, Dictionary) else d for d in (source, target))
    found = path(_constant(model.to(dtype=dtype)), source, target, ids, cuts=options.cuts, effect=options.effect, **asked)
    return least_budget(task_of([found])) if options.method != "torch.func" else rows + _of_sources(found)


def _is_cut(source: Dictionary | None, cuts: Sequence[Dictionary]) -> bool:
    """Whether dictionaries are put in between: cuts, or a source that writes at several places."""
    return bool(cuts) or (source is not None and len(source.writes) > 1)


def _of_sources(found: Path) -> int:
    """Bytes that a row of `torch.func` needs through cuts: what every source writes, once more."""
    return found.x.dtype.itemsize * found.sources.direction.numel() if found.is_cut else 0


def check(kind: EdgeKind, model: Model, source: Dictionary | None, target: Any, tokens: TokensLike, **options: Any) -> None:
    """Raise what the attribution of this kind would raise for these arguments, without computing anything.

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
    options.pop("error", None)
    options["cuts"] = apart_from(options.get("cuts", ()), source, target)
    _check(kind, model, source, target, tokens, _Options(**(usual | options)))


@named_shortage("Take fewer or shorter prompts, fewer positions, a keep rule that drops more, or a smaller budget.")
def _run(
    kind: EdgeKind, model: Model, source: Dictionary | None, target: Any, tokens: TokensLike, options: "_Options", error: bool
) -> Edges:
    """Check everything, then attribute pack by pack and join."""
    cuts = [known_to(model, cut, f"cuts[{number}]") for number, cut in enumerate(apart_from(options.cuts, source, target))]
    options = replace(options, cuts=cuts)
    source = None if source is None else known_to(model, source, "source")
    target = known_to(model, target, "target") if isinstance(target, Dictionary) else target
    start, _, precision, prompts, working = _check(kind, model, source, target, tokens, options)
    call = _call(kind, model, source, target, prompts, options, precision, error)
    dtype = precision.path
    model = _constant(model.to(dtype=dtype))

    def there(dictionary: Dictionary, argument: str) -> Any:
        return _constant(fitted(model, dictionary.to(dtype=dtype, device=model.device), argument))

    source = None if source is None else there(source, "source")
    target = there(target, "target") if isinstance(target, Dictionary) else target
    put_in: dict[str, Any] = {
        "cuts": [there(cut, f"cuts[{number}]") for number, cut in enumerate(options.cuts)],
        "effect": options.effect,
    }
    done = _track(prompts, options.progress)
    if kind == "latent_to_metric":
        assert source is not None
        metric_edges = partial(_metric_edges, kind, model, source, target, options=options, error=error, put_in=put_in, call=call)
        return join(_of_prompt(number, metric_edges, ids) for number, ids in enumerate(done))
    others: dict[str, Any] = {"policy": options.policy, "positions": options.positions, "error": error}
    path_of = partial(path, model, source, target, **put_in, **others)
    if is_known(source, target, _is_cut(source, cuts)):
        known = partial(known_task, model, source, target, policy=options.policy, positions=options.positions, itemsize=dtype.itemsize)
        deque(while_there_is_room(prompts, known, options.keep, len(prompts)), maxlen=0)  # all are asked about, before the first
    found = ((ids, _of_prompt(number, path_of, ids)) for number, ids in enumerate(done))
    paths = while_there_is_room(found, lambda prompted: task_of([prompted[1]]), options.keep, len(prompts))
    by_transforms = options.method == "torch.func"
    jacobians = _by_transforms(paths, working, options.budget) if by_transforms else _by_adjoint(paths, options, precision)
    is_measured = precision.is_measured and not by_transforms
    rows = (SAMPLED_ROWS if is_measured else 0) if options.precision_rows is None else options.precision_rows
    named = start if source is None else source.site, read_site(model, target)

    def parts() -> Iterator[Edges]:
        for number, (ids, found, tiles) in enumerate(jacobians):
            if rows and number == 0:
                sampled = sampled_error(found, rows, precision, options.impl, options.budget)
                call.update({"precision_error": sampled._asdict(), "seed": 0})
            yield _of_prompt(number, partial(_path_edges, kind, model, *named, found, tiles), ids, options, call)

    return join(parts())


def _of_prompt(number: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function makes of a prompt; what it raises names the prompt."""
    with of_prompt(number):
        return function(*arguments)


Prompted = tuple[Tensor, Path]
"""A prompt's tokens and its path."""


def _by_transforms(paths: Iterable[Prompted], working: list[Working], budget: int) -> Iterator[tuple[Tensor, Path, Iterator[Tile]]]:
    """Plain torch.func, prompt by prompt: tangents from tokens, cotangents to latents."""
    numbered = zip(range(len(working)), paths, strict=True)
    for number, (ids, found) in numbered:
        needed = working[number]._replace(row=working[number].row + _of_sources(found))
        if budget < sum(needed):
            rest = ((sum(working[at]) + _of_sources(later), at) for at, (_, later) in numbered)
            least, where = max([(sum(needed), number), *rest])
            raise BudgetError.of(budget, where, least)
        rows = chunk_size(needed, budget, number)
        transform = by_function if found.is_cut else by_jvp if found.from_tokens else by_vjp
        yield ids, found, transform(found, rows)


def _by_adjoint(paths: Iterable[Prompted], options: "_Options", precision: Precision) -> Iterator[tuple[Tensor, Path, Iterator[Tile]]]:
    """The written sweeps, pack by pack."""
    for pack, plan in packs(paths, lambda prompted: task_of([prompted[1]]), options.budget):
        tiles = adjoint([found for _, found in pack], plan, precision, options.impl)
        if len(pack) == 1:
            yield *pack[0], map(itemgetter(1), tiles)  # which, unlike a loop, lets go of a tile before it asks for the next
            continue
        for number, its_tiles in groupby(tiles, key=lambda tile: tile[0]):
            yield *pack[number], (tile for _, tile in its_tiles)


def _constant(part: Any) -> Any:
    """A model or dictionary without autograd: torch.func would else record a graph of parameters that require grad."""
    return replace(part, params=pytree.tree_map(Tensor.detach, part.params))


def to_prompts(model: Model, tokens: TokensLike) -> list[Int[Tensor, " _"]]:
    """Prompts as a list of 1-D int64 tensors on the model's device.

    Raises:
        InputError: for an empty list, an empty prompt, one longer than the context, or ids outside the vocabulary.
    """
    given: list[str | Tensor] = [tokens] if isinstance(tokens, str | Tensor) else list(tokens)
    if not given:
        raise InputError("tokens: no prompts given; expected at least one.")
    prompts = [to_ids(model, number, item) for number, item in enumerate(given)]
    for number, ids in enumerate(prompts):
        check_ids(model, number, ids)
    return [ids.to(device=model.device) for ids in prompts]


def to_ids(model: Model, number: int, item: str | Tensor) -> Int[Tensor, " positions"]:
    """A prompt as token ids, however many: text behind the tokenizer's first token, ids as they are.

    Raises:
        InputError: for what is not 1-D and whole numbers; names the prompt by `number`.
    """
    if isinstance(item, str):
        tokenizer = tokenizer_of(model, "tokens")
        return torch.tensor(([] if tokenizer.bos is None or not item else [tokenizer.bos]) + tokenizer.encode(item), dtype=torch.int64)
    ids = torch.as_tensor(item)
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(
            f"tokens: prompt {number} has shape {list(ids.shape)} and dtype {ids.dtype}; expected a 1-D tensor of ints. "
            "Give a batch as a list."
        )
    return ids.to(dtype=torch.int64)


def check_ids(model: Model, number: int, ids: Int[Tensor, " positions"]) -> None:
    """Raises InputError where a prompt is empty, longer than the context, or outside the vocabulary; names it by `number`."""
    if not 0 < len(ids) <= model.config.n_ctx:
        raise InputError(f"tokens: prompt {number} has {len(ids)} tokens; expected 1 to {model.config.n_ctx}, the context of {model.name}.")
    if int(ids.min()) < 0 or int(ids.max()) >= model.config.d_vocab:
        raise InputError(
            f"tokens: prompt {number} has ids from {int(ids.min())} to {int(ids.max())}; "
            f"the vocabulary of {model.name} is 0 to {model.config.d_vocab - 1}."
        )


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
    number, real = torch.zeros(0, dtype=torch.int64), source_table.activation[:0]
    most = torch.searchsorted(source_table.position, target_table.position, right=True)  # what each target sees
    most = most.clamp(max=options.keep.k) if isinstance(options.keep, TopK) else most
    known = int(most.sum()) if isinstance(options.keep, Dense | TopK) else 0
    del most
    counts = Column(number, 0)
    columns = [Column(number, known), Column(real, known), Column(real, known), Column(real, 0), Column(real, 0)]
    for tile in tiles:
        width = tile.gradient.shape[1]
        at_once = max(1, pieces_of(tile.gradient.device).select // max(1, width))
        for rows in tile.gradient.split(at_once):
            indptr, *part = select(_wide(rows), value[:width], options.keep)
            counts.append(indptr.diff())
            for column, values in zip(columns, part, strict=True):
                column.append(values)
        del tile, rows, part, values  # before the next is computed
    indices, gradient, attribution, total, l1 = (columns.pop(0).take() for _ in range(len(columns)))
    indptr = torch.cat([number.new_zeros(1), counts.take().cumsum(0)])
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
        "prompts": {"count": len(prompts), "sha256": sha256_of(prompts)}, "source": named(source), "target": what,
        "cuts": [named(cut) for cut in options.cuts], "effect": options.effect,
        "policy": options.policy._asdict(), "keep": repr(options.keep), "error": error,
        "positions": options.positions if isinstance(options.positions, int | None) else list(options.positions),
        "dtype": precision.name, "method": options.method, "budget": options.budget,
        "seed": None, "precision_error": None,
    }  # fmt: skip
