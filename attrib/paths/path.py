"""Paths: leaves → targets as a pure function, with the linear ends that the engine contracts.

A path is  leaves a → x_A = Σ_i a_i D_i + constants → x_B = S(x_A) → targets b_j = r_j(x_B[p_j]).  Its
Jacobian at the primal is

    J[j, i] = G_j · (∂x_B[p_j] / ∂x_A[q_i]) · D_i,      G_j = ∂r_j / ∂x_B[p_j]

so only the segment S needs a transform: `Sources` of engine/path.py holds D_i (a decoder row, or a token's embedding),
`Targets` holds G_j (an encoder column times act', or a logit's cotangent). `Path.function` is the whole
as one plain function, for torch.func and for people who compose.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vjp

from attrib.adapters.given import as_dictionaries, as_model, as_source, as_target, takes
from attrib.core.finite import ask, asked_together, require_finite, total
from attrib.core.positions import Positions, PositionsLike, plain_positions
from attrib.core.room import memory_named
from attrib.core.sparse import union
from attrib.core.types import EXACT, Effect, InputError, Logits, NotFiniteError, Policy, Site, SparseLatents
from attrib.dictionaries.dictionary import COMPETING, Dictionary, encode_sparse, wins_at
from attrib.dictionaries.fit import check_fit, fitted
from attrib.engine.blocks.passing import NOTHING, Between
from attrib.engine.path import Path, Sources, Targets
from attrib.engine.segment import Segment, segment
from attrib.engine.sweep.primal import Streams, stream_sites
from attrib.models.tokens import TokensLike, one_prompt
from attrib.models.transformer import Model, ModelConfig, base_site, embed, place, unembed, walk
from attrib.passes.behind import Known, known_pass
from attrib.passes.capture import captured
from attrib.paths.cuts import Cuts, apart_from, cuts_between
from attrib.paths.ends import beside, read_at, read_end, stop_site
from attrib.paths.starts import latent_sources, start_at_latents, start_at_tokens, with_errors
from attrib.paths.targets import LogitsLike, as_logits, read_site


def check_source(model: Model, source: Dictionary, stop: Site, target: Any, argument: str = "source") -> None:
    """Raises InputError where the source does not fit the model, or the target is not after it.

    Logits, directions and metrics may be read at the source's own site: nothing then lies between.

    Args:
        stop: where the path ends; see `stop_site`.
    """
    check_fit(model, source, argument)
    start = start_site(source)
    if stop.depth > start.depth or (stop.depth == start.depth and not isinstance(target, Dictionary)):
        return
    read = read_site(model, target)
    why = (
        "attributions run forward" if read.depth <= start.depth else f"the MLP of {model.name} stands beside attention and does not read it"
    )
    raise InputError(f"target: {read} is not after the {argument}'s {start}; {why}. Choose a later target.")


def start_site(source: Dictionary | None) -> Site:
    """Where a path from a dictionary's latents, or from the tokens, enters the model: the first site that is written."""
    return Site(0, "resid_pre") if source is None else min(source.writes, key=lambda site: site.depth)


class _Opening(NamedTuple):
    """The half of a path that does not depend on what is read at its end."""

    sources: Sources
    through: Segment
    x: Float[Tensor, "positions width_a"]
    base: Float[Tensor, "positions d_model"] | None
    true: Float[Tensor, "positions width_b"]
    reached: Float[Tensor, "positions width_b"]
    streams: Streams | None
    read: Float[Tensor, "positions width_read"]
    """The true value at the site that is read, where that is not the path's end."""
    writes: tuple[Site, ...]
    between: Between
    active: tuple[int, ...]
    function: Callable[[Float[Tensor, " sources"]], Float[Tensor, "positions width_b"]]
    """Of the sources, to what is read at the path's end; where there are cuts, at the site that is read."""
    enter: Callable[[Float[Tensor, " sources"]], Float[Tensor, "positions width_a"]] | None = None
    """Of the sources, to what stands at the path's beginning; None where there are cuts."""
    other: Float[Tensor, " sources"] | None = None
    """The sources' values at the other prompt."""
    known: Callable[[], Known] | None = None
    """The primal as a pass that others go beside, from the sources to what is read at the end of `function`."""


class Asked(NamedTuple):
    """What is asked of a path beside its sources and targets."""

    other: Int[Tensor, " positions"] | None = None
    """The tokens of a prompt whose latents are sources too, active here or not; of token scales, what stands at 0."""
    is_error_source: bool = False
    """Whether the source's error at each position is a source."""
    is_movable: bool = False
    """Whether the path is to be known where its sources have other values."""


PLAIN = Asked()
"""Nothing beside."""


def _open(
    model: Model,
    source: Dictionary | None,
    site: Site,
    stop: Site,
    tokens: Int[Tensor, " positions"],
    policy: Policy,
    error: bool,
    cuts: Cuts | None,
    asked: Asked = PLAIN,
) -> _Opening:
    start = start_site(source)
    base, sites = base_site(start), stream_sites(model.config, start, stop)
    seen = captured(model, tokens, sites_seen(model.config, source, site, stop, error and not asked.is_error_source, cuts))
    require_finite_ends(model, tokens, seen, {start, stop, site, *(() if source is None else (source.site,))})
    true_a, true_b, stream = seen[start], seen[stop], None if base is None else seen[base]
    run = segment(model, start, stop, policy=policy)
    beside, also = _other(model, source, asked.other)
    if cuts is not None:
        return _open_cut(source, site, tokens, error, cuts, run, stream, seen, beside, also, asked.is_error_source)
    if source is None:
        head = start_at_tokens(true_a, tokens, beside)
    else:
        head = start_at_latents(source, seen[source.site], true_a, error, also, asked.is_error_source)
    x, reached = true_a, seen
    if source is not None and not error:  # with the error in, the primal is the true one, not its reconstruction up to rounding
        x = head.enter(head.sources.value)
        reached = _walked_to(model, start, stop, x, stream)
    streams = {at: reached[at] for at in sites}

    def function(values: Float[Tensor, " sources"]) -> Float[Tensor, "positions width_b"]:
        return run(head.enter(values), stream)

    other = _other_values(head.sources, also) if asked.other is not None else None
    return _Opening(
        head.sources, run, x, stream, true_b, reached[stop], streams, seen[site], (start,), NOTHING, (), function, head.enter, other,
        partial(known_pass, model, start, stop, x, stream),
    )  # fmt: skip


def _other(
    model: Model, source: Dictionary | None, tokens: Int[Tensor, " positions"] | None
) -> tuple[Float[Tensor, "positions d_model"] | None, SparseLatents | None]:
    """Of another prompt, its embedding sums where tokens are the sources, or the active latents of the source."""
    if tokens is None:
        return None, None
    start = start_site(source) if source is None else source.site
    value = captured(model, tokens, {start})[start]
    require_finite({f"{start} of the corrupt prompt": value})
    return (value, None) if source is None else (None, encode_sparse(source, value))


def _other_values(sources: Sources, also: SparseLatents | None) -> Float[Tensor, " sources"]:
    """What the sources are at the other prompt, whose active latents are among them; scales of tokens are 0 there."""
    if also is None:
        return torch.zeros_like(sources.value)
    own = SparseLatents(sources.position, sources.latent, sources.value)
    return union(own, also)[1]


def sites_seen(config: ModelConfig, source: Dictionary | None, site: Site, stop: Site, error: bool, cuts: Cuts | None) -> set[Site]:
    """Where the model's own pass is looked at, to open a path that is read at `site`.

    Args:
        error: whether the source's error is a constant of the model's own pass, which need not be known.
    """
    start = start_site(source)
    base = base_site(start)
    read = {d.site for d in (source, *(cuts.passed_dictionaries if cuts else ())) if d is not None}
    put_in = set() if cuts is None or error else cuts.replaced.sites
    return {start, stop, site, *stream_sites(config, start, stop), *read, *put_in, *([base] if base else [])}


def _walked_to(
    model: Model, start: Site, stop: Site, x: Float[Tensor, "positions _"], base: Float[Tensor, "positions d_model"] | None
) -> dict[Site, Float[Tensor, "positions _"]]:
    """The values from `start` to `stop`, and nothing beyond, where x stands at `start`."""
    wanted, found = {start, *stream_sites(model.config, start, stop)}, {}
    for site, value in walk(model, start, x, base):
        if site in wanted:
            found[site] = value
        if site.depth == stop.depth:
            found[stop] = value
            return found
    raise AssertionError(f"{stop} is not after {start}")


def require_finite_ends(
    model: Model, tokens: Int[Tensor, " positions"], seen: Mapping[Site, Float[Tensor, "positions _"]], ends: Iterable[Site]
) -> None:
    """Raises NotFiniteError where the ends of a path do not hold finite numbers, for the first place of the model that does not."""
    values = {str(at): seen[at] for at in ends}

    def look() -> None:
        try:
            require_finite(values)
        except NotFiniteError:
            # attention takes NaN to positions before it as well, as 0 · NaN: so the prompt is followed from its embeddings
            for at, value in walk(model, Site(0, "resid_pre"), embed(model, tokens)):
                require_finite({str(at): value})
            raise

    ask([total(value) for value in values.values()], look)


def _open_cut(
    source: Dictionary | None,
    site: Site,
    tokens: Int[Tensor, " positions"],
    error: bool,
    cuts: Cuts,
    run: Segment,
    base: Float[Tensor, "positions d_model"] | None,
    seen: Mapping[Site, Float[Tensor, "positions _"]],
    beside: Float[Tensor, "positions d_model"] | None,
    also: SparseLatents | None,
    is_error_source: bool,
) -> _Opening:
    """Open a path with cuts on it: the primal is the model's own pass, or, without the source's error, that of all dictionaries."""
    start, stop, sites = run.start, run.stop, stream_sites(run.model.config, run.start, run.stop)
    writes: tuple[Site, ...] = (start,)
    if source is None:
        sources = start_at_tokens(seen[start], tokens, beside).sources
    else:
        x = seen[source.site]
        writes = tuple(sorted((at for at in source.writes if at.depth <= stop.depth), key=lambda at: at.depth))
        latents = encode_sparse(source, x)
        sources = latent_sources(source, x, writes, latents if also is None else union(latents, also)[0])
        if is_error_source:
            errors = dict(zip(cuts.replaced.written, cuts.leaves(tokens, error=True, true=seen).errors, strict=True))
            sources = with_errors(sources, torch.cat([errors[place(run.model, at)] for at in writes], dim=1))
    reached, read = seen, [seen[d.site] for d in cuts.passed_dictionaries]
    active: tuple[int, ...] = ()
    if not error:
        leaves = cuts.leaves(tokens, error=False, true=seen)
        sites += [at for at in cuts.held if at.kind == "z"]  # which is not what its attention makes
        wanted = {start, stop, *sites}
        reached, every = cuts.replaced.values_and_reads(leaves, wanted, effect=cuts.effect, sources=cuts.leaves_of)
        active = tuple(len(each) for each in leaves.activations)
        read = [every[number] for number in cuts.passed]  # none reads beyond `stop`, before which it writes
    function = cuts.function(tokens, site, error, sources.latent if is_error_source else None, beside, also)
    other = None if beside is None and also is None else _other_values(sources, also)
    known = partial(cuts.known, tokens, error, writes if source is not None else (), site)
    return _Opening(
        sources, run, reached[start], base, seen[stop], reached[stop], {at: reached[at] for at in sites}, seen[site], writes,
        cuts.between(read), active, function, None, other, known,
    )  # fmt: skip


@memory_named("opening a path")
@takes(model=as_model, source=as_source, target=as_target, cuts=as_dictionaries)
def path(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | LogitsLike,
    tokens: TokensLike,
    *,
    cuts: Sequence[Dictionary] = (),
    effect: Effect = "direct",
    policy: Policy = EXACT,
    positions: PositionsLike = None,
    error: bool = True,
) -> Path:
    """The path of one prompt from its leaves to its targets, at the primal point.

    Args:
        source: a dictionary, whose active latents are the leaves, or None for the token scales.
        target: a dictionary, whose active latents are the targets, or a choice of logits, as `attrib.latent_to_logit` takes it.
        tokens: of one prompt, as the attributions take it; docs/prompts.md. It and the dictionaries are brought to the model's device.
        cuts: dictionaries that are put in on the way, as `attrib.replace` means it.
        effect: whether derivatives stop at the cuts ("direct") or pass their active latents ("total").
        positions: of the targets; None is all for latents and the last for logits.
        error: whether the source's error is added to its reconstruction, as a constant. Without it the
            Jacobian is taken where the reconstruction alone leads, and targets that are not active there
            have no gradient.

    Raises:
        InputError: where the dictionaries do not fit the model or each other.
    """
    ids = one_prompt(model, tokens)

    def there(dictionary: Dictionary) -> Dictionary:
        return dictionary.to(dtype=model.dtype, device=model.device)

    return path_of(
        model, None if source is None else there(source), there(target) if isinstance(target, Dictionary) else as_logits(target), ids,
        cuts=[there(cut) for cut in apart_from(cuts, source, target)], effect=effect, policy=policy,
        positions=plain_positions(positions, [len(ids)]), error=error,
    )  # fmt: skip


@torch.no_grad()
def path_of(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | Logits,
    tokens: Int[Tensor, " positions"],
    *,
    cuts: Sequence[Dictionary] = (),
    effect: Effect = "direct",
    policy: Policy = EXACT,
    positions: Positions = None,
    error: bool = True,
    asked: Asked = PLAIN,
) -> Path:
    """`path` of ids, positions and dictionaries that are what they should be.

    Raises:
        InputError: as `path`.
        NotFiniteError: where an end of the path, a pre-activation or a target is NaN or infinite; minus infinity may be a logit.
    """
    cuts = apart_from(cuts, source, target)
    site, stop = read_site(model, target), stop_site(model, target, (source, *cuts))
    if source is not None:
        check_source(model, source, stop, target)
        source = fitted(model, source, "source")
    if isinstance(target, Dictionary):
        target = fitted(model, target, "target")
    put_in = cuts_between(model, source, target, start_site(source), stop, cuts, effect, policy)
    with asked_together() as answers:
        at = _open(model, source, site, stop, tokens, policy, error, put_in, asked)
        found = _path(model, source, target, site, stop, at, positions, policy)
        answers.also = [*found.targets[:3], *found.sources[:3]]
    found = replace(found, copies=answers.copies)
    return replace(found, **_movable(model, source, target, site, stop, at, positions, policy)) if asked.is_movable else found


def _path(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | Logits,
    site: Site,
    stop: Site,
    at: _Opening,
    positions: Positions,
    policy: Policy,
) -> Path:
    """A path whose beginning is open."""
    read, end, targets = read_end(model, target, site, stop, at.read, at.true, at.reached, positions, policy)
    begin, last = at.function, read.function if at.enter is None else end  # and not all of `at`, which would live on in the path

    def function(values: Float[Tensor, " sources"]) -> Float[Tensor, " targets"]:
        return last(begin(values).index_select(0, read.position))

    return Path(
        at.through, at.x, at.base, at.sources, targets, function, read.labels, read.probability, source is None, at.streams,
        at.writes, at.between, at.active, at.other,
    )  # fmt: skip


def _movable(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | Logits,
    site: Site,
    stop: Site,
    at: _Opening,
    positions: Positions,
    policy: Policy,
) -> dict[str, Any]:
    """What a path is elsewhere: `moved`, `known` and `reading` of Path."""
    assert at.known is not None
    read, known = read_at(model, target, at.read, at.true, at.read, positions, policy), cache(at.known)
    end = site if at.enter is None else stop

    def reading(behind: Float[Tensor, "rows width_b"], first: int) -> Float[Tensor, " targets"]:
        reached = torch.cat([known().reached[:first], behind])
        rows = beside(model, site, end, reached.index_select(0, read.position), policy)
        if not isinstance(target, Dictionary) or target.config.rule not in COMPETING:
            return read.function(rows)
        gate = wins_at(target, beside(model, site, end, reached, policy), read.position, read.latent)
        return read.function(rows).where(gate, 0)

    @torch.no_grad()
    def moved(values: Float[Tensor, " sources"]) -> Path:
        sources = at.sources._replace(value=values)
        if at.enter is not None:
            x = at.enter(values)
            reached = _walked_to(model, at.through.start, stop, x, at.base)
            streams = {where: reached[where] for where in stream_sites(at.through.model.config, at.through.start, stop)}
            there = at._replace(sources=sources, x=x, reached=reached[stop], streams=streams)
            return _path(model, source, target, site, stop, there, positions, policy)
        # where dictionaries are met, the whole function is differentiated, and nothing of the sweeps' is at hand
        value = at.function(values)
        read = read_at(model, target, at.read, at.true, value, positions, policy)
        require_finite({f"the targets at {site}": value})
        found = read.function(value.index_select(0, read.position))
        targets = Targets(read.position, read.latent, found, found.new_zeros(len(found), 0))

        def function(values: Float[Tensor, " sources"]) -> Float[Tensor, " targets"]:
            return read.function(at.function(values).index_select(0, read.position))

        return Path(
            at.through, at.x, at.base, sources, targets, function, read.labels, read.probability, source is None, None, at.writes,
            at.between, at.active, at.other,
        )  # fmt: skip

    return {"moved": moved, "known": known, "reading": reading}


@dataclass(frozen=True)
class MetricPath:
    """One prompt's path to a scalar of all its logits: no single row is read, so the whole stream moves it.

    `gradient` is that of the metric by the sources; `function` maps `sources.value` to `value`.
    """

    sources: Sources
    value: Float[Tensor, ""]
    gradient: Float[Tensor, " sources"]
    function: Callable[[Float[Tensor, " sources"]], Float[Tensor, ""]]
    other: Float[Tensor, " sources"] | None = None
    """The sources' values at another prompt, as of `Path`."""
    known: Callable[[], Known] | None = None
    """The primal as a pass to the last stream that others go beside. Where asked for."""
    reading: Callable[[Float[Tensor, "rows d_model"], int], Float[Tensor, ""]] | None = None
    """The metric where this is the last stream at the positions from a first one on, and nothing has moved before them."""

    def __repr__(self) -> str:
        return f"MetricPath({len(self.sources.value):,} source latents to a metric of {float(self.value):.6g})"


@torch.no_grad()
def metric_path(
    model: Model,
    source: Dictionary,
    tokens: Int[Tensor, " positions"],
    metric: Callable[[Float[Tensor, "positions d_vocab"]], Float[Tensor, ""]],
    *,
    cuts: Sequence[Dictionary] = (),
    effect: Effect = "direct",
    policy: Policy = EXACT,
    error: bool = True,
    asked: Asked = PLAIN,
) -> MetricPath:
    """The path of one prompt from the source's latents to `metric` of its logits [positions, d_vocab].

    Raises:
        InputError: where the metric does not give one number that depends on the logits, or the dictionary does not fit the model.
        NotFiniteError: where an end of the path, or the metric, is NaN or infinite.
    """
    last, cuts = model.config.last, apart_from(cuts, source)
    check_source(model, source, last, metric)
    source = fitted(model, source, "source")
    put_in = cuts_between(model, source, metric, start_site(source), last, cuts, effect, policy)
    at = _open(model, source, last, last, tokens, policy, error, put_in, asked)

    begin = at.function

    def function(values: Float[Tensor, " sources"]) -> Float[Tensor, ""]:
        return of_logits(unembed(model, begin(values), policy=policy))

    def of_logits(logits: Float[Tensor, "positions d_vocab"]) -> Float[Tensor, ""]:
        value = metric(logits)
        if not isinstance(value, Tensor) or value.shape != ():
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"metric: gave {got}; expected a scalar tensor made from the logits [positions, d_vocab].")
        if logits.requires_grad and not value.requires_grad:
            raise InputError(
                "metric: gave a number that does not depend on the logits, so nothing moves it; expected a scalar tensor made from "
                "the logits [positions, d_vocab] by torch alone, without item(), detach() or argmax()."
            )
        return value

    value, pull, *_ = vjp(function, at.sources.value)
    require_finite({"the metric": value[None]}, position=torch.tensor([len(tokens) - 1]))
    (gradient,) = pull(torch.ones_like(value))
    found = MetricPath(at.sources, value, gradient, function, at.other)
    if not asked.is_movable:
        return found
    assert at.known is not None
    known = cache(at.known)
    unmoved = cache(lambda: unembed(model, known().reached, policy=policy))

    def reading(behind: Float[Tensor, "rows d_model"], first: int) -> Float[Tensor, ""]:
        logits = unembed(model, behind, policy=policy)
        return of_logits(torch.cat([unmoved()[:first], logits]) if first else logits)

    return replace(found, known=known, reading=reading)
