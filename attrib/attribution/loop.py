"""The one loop of all attributions: paths are opened, packed, taken to tiles, and each prompt's rows joined."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial, reduce
from itertools import groupby
from operator import add, attrgetter, itemgetter
from typing import Any, TypeVar

from torch import Tensor

from attrib.attribution.needs import Needs
from attrib.attribution.options import ErrorAs, Options, check_call, check_error, check_replay
from attrib.attribution.record import call_record
from attrib.attribution.rows import metric_edges, path_edges
from attrib.attribution.ruled import tiles_of
from attrib.core.edges import Edges, join
from attrib.core.finite import of_prompt
from attrib.core.room import KEEP_LESS, memory_named
from attrib.core.rules import Ablation, IntegratedGradients
from attrib.core.types import BudgetError, EdgeKind, Progress
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.fit import known_to
from attrib.engine.blocks.kernels import Impl
from attrib.engine.filled import Filled
from attrib.engine.outgoing import Outgoing
from attrib.engine.path import Path
from attrib.engine.plan.choose import packs, plan_pack, refusing
from attrib.engine.replay import Replays
from attrib.engine.spread import Team
from attrib.engine.tiles import sampled_error, task_of
from attrib.engine.transforms import Tile, by_function, by_jvp, by_vjp, chunk_size, with_writes
from attrib.models.tokens import TokensLike, on_host
from attrib.models.transformer import Model
from attrib.paths.cuts import apart_from
from attrib.paths.path import path_of
from attrib.paths.targets import read_site

Result = TypeVar("Result")


def run(
    kind: EdgeKind,
    model: Model,
    source: Dictionary | None,
    target: Any,
    tokens: TokensLike,
    options: Options,
    error: ErrorAs,
    bias: bool = False,
) -> Edges:
    """Check everything, then attribute pack by pack and join."""
    check_error(error, bias)
    model = options.there(model)
    check_replay(options, model)
    cuts = [known_to(model, cut, f"cuts[{number}]") for number, cut in enumerate(apart_from(options.cuts, source, target))]
    options = replace(options, cuts=cuts)
    source = None if source is None else known_to(model, source, "source")
    target = known_to(model, target, "target") if isinstance(target, Dictionary) else target
    start, _, precision, prompts, positions, needs = check_call(kind, model, source, target, tokens, options, error, bias)
    options = replace(options, positions=positions)
    doing = f"attributing {len(prompts)} prompt(s) of up to {max(map(len, prompts))} tokens"
    with memory_named(doing, KEEP_LESS), options.team(model) as team:
        call = call_record(kind, model, source, target, prompts, options, precision, error, bias, needs.others)
        model, source, target, put_in = needs.in_precision()
        done = track(prompts, options.progress)
        if kind == "latent_to_metric":
            assert source is not None
            of_prompt_alone = partial(metric_edges, kind, model, source, target, options=options, needs=needs, put_in=put_in, call=call)
            alone = (partial(of_prompt_alone, ids, number=number) for number, ids in enumerate(done))
            return join([of_prompt_number(number, each) for number, each in enumerate(alone)], release=True)
        others: dict[str, Any] = {"policy": options.policy, "positions": options.positions, "error": bool(error)}
        opened = partial(path_of, model, source, target, **put_in, **others)
        paths = ((ids, of_prompt_number(n, partial(opened, asked=needs.asked(n)), ids)) for n, ids in enumerate(done))
        by_rule = isinstance(options.rule, IntegratedGradients | Ablation)
        replays = Replays(team.adjoint, model.device, options.budget, is_on=options.replay)
        swept = _by_rule if by_rule else _by_transforms if needs.is_reference else partial(_by_adjoint, team, replays)
        jacobians = swept(paths, needs, prompts, options.impl)
        named = start if source is None else source.site, read_site(model, target)
        parts, here = list[Edges](), on_host(prompts)
        for _, found, tiles, outgoing in jacobians:  # and not `enumerate`, which would hold a path while the next is opened
            if needs.rows and not parts:
                sampled = sampled_error(found, needs.rows, precision, options.impl, options.budget)
                call |= {"precision_error": sampled._asdict(), "seed": 0}
            other = needs.asked(len(parts)).other
            made = partial(path_edges, kind, model, *named, found, tiles, other=other, is_with_bias=bias, outgoing=outgoing)
            parts.append(of_prompt_number(len(parts), made, here[len(parts)], options, call))
            del found, tiles, made
        return join(parts, release=True)


def of_prompt_number(number: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function makes of a prompt; what it raises names the prompt."""
    with of_prompt(number):
        return function(*arguments)


Prompted = tuple[Tensor, Path]
"""A prompt's tokens and its path."""


Jacobian = tuple[Tensor, Path, Iterator[Tile], Outgoing]
"""A prompt's tokens, its path, the tiles of its Jacobian, and on what way edges come to the host."""


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
        yield ids, found, transform(found, rows), Outgoing()


def _by_rule(paths: Iterable[Prompted], needs: Needs, prompts: list[Tensor], impl: Impl) -> Iterator[Jacobian]:
    """Rules that look at more points than one, prompt by prompt."""
    grow = needs.growing(prompts)
    for number, (ids, found) in enumerate(paths):
        grow(task_of([found]))
        yield ids, found, tiles_of(found, needs, len(ids), number, impl), Outgoing()


def _by_adjoint(
    team: Team, replays: Replays, paths: Iterable[Prompted], needs: Needs, prompts: list[Tensor], impl: Impl
) -> Iterator[Jacobian]:
    """The written sweeps, pack by pack."""
    grow = needs.growing(prompts)
    planned = packs(map(partial(_shaped, replays, needs), paths), attrgetter("task"), needs.budget, plan_pack)
    for pack, plan in refusing(planned, lambda: needs.refuse(prompts)):
        grow(reduce(add, (each.own_task for each in pack)))
        tiles = replays.adjoint(pack, plan, needs.precision, impl)
        outgoing = Outgoing(team.left(len(pack), plan.peak))
        if len(pack) == 1:
            yield pack[0].ids, pack[0].own, map(itemgetter(1), tiles), outgoing  # a map, unlike a loop, lets go of a tile before the next
        else:
            for number, its_tiles in groupby(tiles, key=lambda tile: tile[0]):
                yield pack[number].ids, pack[number].own, (tile for _, tile in its_tiles), outgoing
        del pack, plan, tiles


def _shaped(replays: Replays, needs: Needs, prompted: Prompted) -> Filled:
    """A prompt as it is swept. For a map, which lets go of it before the next is opened."""
    ids, found = prompted
    return replays.opened(ids, found, partial(needs.opened, ids))


def shifted(progress: bool | Progress, before: int, total: int) -> bool | Progress:
    """What is told of one of several loops over prompts: how many were done before, of how many in all. A bar each is a bar."""
    return progress if isinstance(progress, bool) else lambda done, _: progress(before + done, total)


def track(items: list[Any], progress: bool | Progress) -> Iterable[Any]:
    """The items, with a bar, or a function told of each that is done."""
    if progress is True:
        from rich.progress import track

        yield from track(items, description="attributing")
        return
    for number, item in enumerate(items):
        yield item
        if progress:
            progress(number + 1, len(items))
