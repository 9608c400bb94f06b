"""The four attributions: token → latent, latent → latent, latent → logit, latent → metric.

Each is a loop over prompts: build the path at its primal point, take its Jacobian in tiles, select what
is kept while a tile is at hand, and join the prompts. Attribution is gradient × source activation.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from attrib.between import Effect
from attrib.cone import pieces_of
from attrib.cuts import apart_from, cuts_between
from attrib.dictionary import Dictionary
from attrib.edges import Edges, Growing, Nodes, Prompts, join
from attrib.fit import fitted
from attrib.jacobian import (
    DEFAULT_BUDGET,
    LEAST_FOR_SAMPLES,
    Tile,
    Working,
    adjoint,
    by_function,
    by_jvp,
    by_vjp,
    chunk_size,
    sampled_error,
    sampled_task,
    task_of,
    with_writes,
    working_memory,
)
from attrib.model import Model, fingerprint
from attrib.opening_cost import Counts, counts_known, known_task, opening_of, positions_read
from attrib.ops import Compacted, Impl, check_impl, compact
from attrib.packing import least_memory, packs
from attrib.paths import Path, Sources, check_source, metric_path, path, start_site, stop_site
from attrib.precision import Precision, precision_of
from attrib.reading import Positions, chosen_positions, read_site, token_strings, tokenizer_of
from attrib.result import check_fits, fits, free_memory, memory_named, result_bytes
from attrib.sparse import check_keep, kept, to_csr
from attrib.task import Task
from attrib.types import EXACT, BudgetError, Dense, EdgeKind, InputError, Keep, Logits, NodeKind, Policy, Progress, Site, TopLogits

TokensLike = str | Tensor | Sequence[str | Tensor]
Method = Literal["adjoint", "adjoint-triton", "torch.func"]

SAMPLED_ROWS = 16
"""Rows that are computed again in float64, to tell the error of a reduced precision."""


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
    """
    options = _Options(policy, keep, positions, dtype, budget, method, progress, precision_rows, cuts, effect)
    return _run("latent_to_latent", model, source, target, tokens, options, error)


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
    result_fits: bool = True
    """Whether the result has to fit into memory: a plan only tells its size."""

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
    stop = model.config.last if kind == "latent_to_metric" else stop_site(model, target)
    if source is not None:
        check_source(model, source, stop, target)
    cuts_between(model, source, target, start, stop, options.cuts, options.effect, options.policy)
    for ids in prompts:
        chosen_positions(options.positions, len(ids), ids.device)
    _check_memory(kind, model, source, target, prompts, options, error, precision)
    return _Checked(start, stop, precision, prompts)


def _check_memory(
    kind: EdgeKind,
    model: Model,
    source: Dictionary | None,
    target: Any,
    prompts: list[Tensor],
    options: "_Options",
    error: bool,
    precision: Precision,
) -> None:
    """Raise what the budget, or the memory for the result, would raise at some prompt, as far as it is known beforehand.

    The error names what is enough for the whole call. Where it takes a pass to know how many latents are active, that pass is made
    for all prompts, but only where the budget is too small for what is known without.
    """
    needs = _Needs(kind, model, source, target, options, error, precision)
    known = [needs.known(ids) for ids in prompts]
    if max(known) > options.budget:
        needs.refuse(prompts, known)
    if needs.is_known and options.result_fits:
        tasks = [needs.task(ids) for ids in prompts]
        _check_result(tasks, options.keep, free_memory())


def _check_result(tasks: Sequence[Task], keep: Keep, free: int) -> None:
    """Raises BudgetError where the results of all tasks together take too much of the memory that is free."""
    needed = sum(result_bytes(task, keep) for task in tasks)
    check_fits(needed, keep, sum(task.n_targets for task in tasks), tasks[0].itemsize, free)


class _Needs:
    """How much memory the prompts of a call need, at the least."""

    def __init__(
        self, kind: EdgeKind, model: Model, source: Dictionary | None, target: Any, options: "_Options", error: bool, precision: Precision
    ) -> None:
        self.model, self.source, self.target, self.options, self.error, self.precision = model, source, target, options, error, precision
        self.is_metric, self.itemsize = kind == "latent_to_metric", precision.path.itemsize
        self.by_transforms = self.is_metric or options.method == "torch.func"
        self.opening = None
        if not self.is_metric:
            put_in = options.cuts, options.effect, options.policy
            self.opening = opening_of(model, source, target, *put_in, error, self.itemsize)
        self._by_length: dict[int, Task] = {}

    @property
    def is_known(self) -> bool:
        """Whether a prompt's task is known before its path is opened."""
        return self.opening is not None and self.opening.cuts is None and counts_known(self.source, self.target)

    def task(self, ids: Tensor) -> Task:
        """The task of a prompt where it is known: prompts of one length have one."""
        assert self.opening is not None
        if (found := self._by_length.get(len(ids))) is None:
            options = self.options
            task = known_task(self.model, self.source, self.target, ids, options.policy, options.positions, self.itemsize, None)
            found = self._by_length[len(ids)] = self.opening.opened(task, positions_read(self.target, options.positions, ids))
        return found

    def working(self, ids: Tensor) -> Working:
        """What torch.func takes for a prompt; the widest table over positions is of a dictionary's latents, or of logits."""
        config = self.model.config
        widest = max(d.d_sae if isinstance(d, Dictionary) else 0 for d in (self.source, self.target, *self.options.cuts))
        widest = max(widest, config.d_vocab) if self.is_metric else widest
        stop = config.last if self.is_metric else stop_site(self.model, self.target)
        working = working_memory(config, start_site(self.source), stop, len(ids), widest, self.itemsize)
        return working if self.opening is None else working._replace(fixed=max(working.fixed, self._opened(ids)))

    def _opened(self, ids: Tensor) -> int:
        """Bytes for opening a prompt's path, as far as it is known."""
        assert self.opening is not None
        return self.opening.memory(Counts(len(ids), 0, 0, positions_read(self.target, self.options.positions, ids))).peak

    def known(self, ids: Tensor) -> int:
        """Bytes that a prompt is known to need."""
        if self.by_transforms:
            return sum(self.working(ids))
        return least_memory(self.task(ids)) if self.is_known else self._opened(ids)

    def opened(self, ids: Tensor, found: Path) -> Task:
        """The task of a prompt whose path is open."""
        assert self.opening is not None
        task = replace(task_of([found]), itemsize=self.itemsize)
        return self.opening.opened(task, positions_read(self.target, self.options.positions, ids), found.active)

    def opened_paths(self, prompts: list[Tensor]) -> Iterator[tuple[Tensor, Path]]:
        """Every prompt's path, once more, for an error that is to hold for all of them."""
        model, source, target, put_in = _in_precision(self.model, self.source, self.target, self.options, self.precision)
        others: dict[str, Any] = {"policy": self.options.policy, "positions": self.options.positions}
        if source is not None:
            others["error"] = self.error
        for ids in prompts:
            yield ids, path(model, source, target, ids, **put_in, **others)

    def counted(self, ids: Tensor, found: Path, sampled: int = 0) -> int:
        """Bytes that a prompt needs, its path being open; with rows that are computed again in float64."""
        if self.by_transforms:
            return sum(with_writes(self.working(ids), found))
        task = self.opened(ids, found)
        again = least_memory(sampled_task(task, sampled, 8)) if sampled else 0
        return max(least_memory(task), again if again > LEAST_FOR_SAMPLES else 0)

    def refuse(self, prompts: list[Tensor], known: Sequence[int] = ()) -> NoReturn:
        """Raise BudgetError with what is enough for all prompts."""
        found = list(known)
        if not (self.is_known or self.is_metric) or not known:
            rows = sampled_rows(self.options.precision_rows, self.precision)
            found = [self.counted(ids, each, 0 if number else rows) for number, (ids, each) in enumerate(self.opened_paths(prompts))]
        number = max(range(len(prompts)), key=found.__getitem__)
        raise BudgetError.of(self.options.budget, number, found[number])


def check(kind: EdgeKind, model: Model, source: Dictionary | None, target: Dictionary | Logits, tokens: TokensLike, **options: Any) -> None:
    """Raise what the attribution of this kind would raise for these arguments, without computing anything."""
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
    options["cuts"] = apart_from(options.get("cuts", ()), source, target)
    _check(kind, model, source, target, tokens, _Options(**(usual | options)), error)


def _run(
    kind: EdgeKind, model: Model, source: Dictionary | None, target: Any, tokens: TokensLike, options: "_Options", error: bool
) -> Edges:
    """Check everything, then attribute pack by pack and join."""
    options = replace(options, cuts=apart_from(options.cuts, source, target))
    start, _, precision, prompts = _check(kind, model, source, target, tokens, options, error)
    needs = _Needs(kind, model, source, target, options, error, precision)
    call = _call(kind, model, source, target, prompts, options, precision, error)
    doing = f"attributing {len(prompts)} prompt(s) of up to {max(map(len, prompts))} tokens"
    with memory_named(doing, "Give a smaller budget, keep fewer edges (keep=TopK(k), Mass(0.9)), or give fewer prompts or shorter ones."):
        model, source, target, put_in = _in_precision(model, source, target, options, precision)
        done = _track(prompts, options.progress)
        if kind == "latent_to_metric":
            assert source is not None
            return join([_metric_edges(kind, model, source, target, ids, options, error, put_in, call) for ids in done])
        others: dict[str, Any] = {"policy": options.policy, "positions": options.positions, "error": error}
        paths = ((ids, path(model, source, target, ids, **put_in, **others)) for ids in done)
        jacobians = (_by_transforms if options.method == "torch.func" else _by_adjoint)(paths, needs, prompts)
        parts: list[Edges] = []
        rows = sampled_rows(options.precision_rows, precision)
        for ids, found, tiles in jacobians:
            if rows and not parts:
                sampled = sampled_error(found, rows, precision, options.impl, options.budget)
                call |= {"precision_error": sampled._asdict(), "seed": 0}
            named = start if source is None else source.site, read_site(model, target)
            parts.append(_path_edges(kind, model, *named, found, tiles, ids, options, call))
            del found, tiles  # before the next prompt's path is opened
        return join(parts, release=True)


def sampled_rows(asked: int | None, precision: Precision) -> int:
    """How many rows are computed again, of what was asked for."""
    return (SAMPLED_ROWS if precision.is_reduced else 0) if asked is None else asked


def _in_precision(
    model: Model, source: Dictionary | None, target: Any, options: "_Options", precision: Precision
) -> tuple[Model, Any, Any, dict[str, Any]]:
    """Model, ends and cuts in the precision of the path, on the model's device, and without autograd."""
    dtype = precision.path
    cast = _constant(model.to(dtype=dtype))

    def there(dictionary: Dictionary, argument: str) -> Any:
        return _constant(fitted(cast, dictionary.to(dtype=dtype, device=cast.device), argument))

    cuts = [there(cut, f"cuts[{number}]") for number, cut in enumerate(options.cuts)]
    source = None if source is None else there(source, "source")
    target = there(target, "target") if isinstance(target, Dictionary) else target
    return cast, source, target, {"cuts": cuts, "effect": options.effect}


Prompted = tuple[Tensor, Path]
"""A prompt's tokens and its path."""


def _by_transforms(paths: Iterable[Prompted], needs: _Needs, prompts: list[Tensor]) -> Iterator[tuple[Tensor, Path, Iterator[Tile]]]:
    """Plain torch.func, prompt by prompt: tangents from tokens, cotangents to latents."""
    growing = _Fits(needs, prompts)
    for number, (ids, found) in enumerate(paths):
        try:
            rows = chunk_size(with_writes(needs.working(ids), found), needs.options.budget, number)
        except BudgetError:
            needs.refuse(prompts)
        growing.add(task_of([found]))
        transform = by_function if found.is_cut else by_jvp if found.from_tokens else by_vjp
        yield ids, found, transform(found, rows)


def _by_adjoint(paths: Iterable[Prompted], needs: _Needs, prompts: list[Tensor]) -> Iterator[tuple[Tensor, Path, Iterator[Tile]]]:
    """The written sweeps, pack by pack."""
    options, growing = needs.options, _Fits(needs, prompts)
    planned = packs(paths, lambda prompted: needs.opened(*prompted), options.budget)
    while True:
        try:
            pack, plan = next(planned)
        except StopIteration:
            return
        except BudgetError:
            needs.refuse(prompts)
        growing.add(plan.task)
        tiles = adjoint([found for _, found in pack], plan, needs.precision, options.impl)
        if len(pack) == 1:
            yield *pack[0], map(itemgetter(1), tiles)  # which, unlike a loop, lets go of a tile before it asks for the next
        else:
            for number, of_prompt in groupby(tiles, key=lambda tile: tile[0]):
                yield *pack[number], (tile for _, tile in of_prompt)
        del pack, plan, tiles


class _Fits:
    """Whether the result fits, counted while it grows, for where it is not known beforehand."""

    def __init__(self, needs: _Needs, prompts: list[Tensor]) -> None:
        self.needs, self.prompts, self.free, self.needed = needs, prompts, free_memory(), 0

    def add(self, task: Task) -> None:
        """Raises BudgetError where the result so far is too large; it tells the size of the whole."""
        keep = self.needs.options.keep
        self.needed += result_bytes(task, keep)
        if not fits(self.needed, keep, self.free):
            _check_result([task_of([found]) for _, found in self.needs.opened_paths(self.prompts)], keep, self.free)


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
        node_kind, site, _ptr(len(targets.position)), targets.position.cpu(), targets.latent.cpu(), targets.value.cpu(),
        found.labels, None if found.probability is None else found.probability.cpu(),
    )  # fmt: skip
    return _edges(kind, _source_nodes(model, kind, source_site, found.sources), table, tiles, found.sources, ids, model, options, call)


def _metric_edges(
    kind: EdgeKind,
    model: Model,
    source: Dictionary,
    metric: Callable[..., Tensor],
    ids: Tensor,
    options: _Options,
    error: bool,
    put_in: dict[str, Any],
    call: dict[str, Any],
) -> Edges:
    found = metric_path(model, source, ids, metric, policy=options.policy, error=error, **put_in)
    name = getattr(metric, "__name__", "metric")
    last = torch.tensor([len(ids) - 1])
    table = Nodes("metric", "logits", _ptr(1), last, torch.tensor([-1]), found.value.reshape(1).cpu(), (name,))
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
    number, none = torch.zeros(0, dtype=torch.int64), source_table.activation.new_zeros(0)
    growing = [Growing() for _ in Compacted._fields]  # the first of how many each row keeps
    for tile in tiles:
        width = tile.gradient.shape[1]
        at_once = max(1, pieces_of(tile.gradient.device).select // max(1, width))
        for rows in tile.gradient.split(at_once):
            found = select(rows, sources.value[:width], options.keep)
            for column, piece in zip(growing, found._replace(indptr=found.indptr.diff()), strict=True):
                column.add(piece.cpu())
        del tile, rows  # before the next is computed
    counts, indices = (column.whole(number) for column in growing[:2])
    gradient, attribution, total, l1 = (column.whole(none) for column in growing[2:])
    ends = counts.cumsum(0)
    indptr = torch.cat([ends.new_zeros(1), ends])
    return Edges(
        kind, source_table, target_table, indptr, indices, gradient, attribution, total, l1, _prompts(model, ids), call
    )  # fmt: skip


def _select(gradient: Float[Tensor, "rows columns"], activation: Float[Tensor, " columns"], keep: Keep) -> Compacted:
    """What is kept of a tile."""
    attribution = gradient * activation
    indptr, indices, place = to_csr(kept(keep, gradient, attribution))
    chosen, share = (part.flatten().index_select(0, place) for part in (gradient, attribution))
    return Compacted(indptr, indices, chosen, share, attribution.sum(-1), attribution.abs().sum(-1))


def _source_nodes(model: Model, kind: EdgeKind, start: Site, sources: Sources) -> Nodes:
    position, latent, value = (column.cpu() for column in sources[:3])
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
        "prompts": {"count": len(prompts), "sha256": fingerprint(prompts)}, "source": named(source), "target": what,
        "cuts": [named(cut) for cut in options.cuts], "effect": options.effect,
        "policy": options.policy._asdict(), "keep": repr(options.keep), "error": error,
        "positions": options.positions if isinstance(options.positions, int | None) else list(options.positions),
        "dtype": precision.name, "method": options.method, "budget": options.budget,
        "seed": None, "precision_error": None,
    }  # fmt: skip
