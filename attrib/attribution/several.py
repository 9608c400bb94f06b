"""One scalar of the logits by the latents of several dictionaries, in one backward pass: an `Edges` for each dictionary.

With the errors kept, every dictionary is alone in the model, whose own pass is the primal: what latent i of dictionary s writes at q moves
the stream there, and everything behind is the model's. The gradient G_s of the metric by what stands where s writes is one
backward pass for all of them,

    ∂m / ∂a_i  =  G_s[q_i] · D_i

and equals what `latent_to_metric` gives for s. Without the errors all of them are put in together, each reading what the ones before it
leave: a pass of its own, in which each latent's value is what its dictionary encodes there, and the gradient passes the later
dictionaries, as it does where all are spliced into a model and run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vjp

from attrib.adapters.given import as_bytes, as_dictionaries, as_model, takes
from attrib.attribution.loop import of_prompt_number, track
from attrib.attribution.needs import constant, put_into
from attrib.attribution.options import ErrorAs, MetricOptions, Options, check_error, with_options
from attrib.attribution.record import call_record
from attrib.attribution.rows import EdgeRows, source_nodes
from attrib.core.edges import Edges, Nodes, join
from attrib.core.finite import require_finite
from attrib.core.room import memory_named
from attrib.core.rules import is_usual
from attrib.core.types import InputError, Policy, Site
from attrib.dictionaries.dictionary import Dictionary, decode_at, encode_at, encode_sparse, normalise_input, selected, skip, split
from attrib.dictionaries.fit import check_fit, known_to
from attrib.engine.path import Sources
from attrib.engine.precision import precision_of
from attrib.engine.transforms import chunk_size, working_memory
from attrib.models.tokens import TokensLike, to_prompts
from attrib.models.transformer import Model, embed, place, unembed, walk
from attrib.passes.capture import capture, cut
from attrib.passes.replacement import put_together
from attrib.paths.starts import latent_sources, with_errors

Metric = Callable[[Float[Tensor, "positions d_vocab"]], Float[Tensor, ""]]


@memory_named("attributing to several dictionaries", "Keep fewer edges (keep=TopK(k), Mass(0.9)), or give fewer or shorter prompts.")
@takes(model=as_model, sources=as_dictionaries, budget=as_bytes)
@with_options
def latents_to_metric(
    model: Model,
    sources: Sequence[Dictionary],
    tokens: TokensLike,
    metric: Metric,
    *,
    error: ErrorAs = True,
    **options: Unpack[MetricOptions],
) -> list[Edges]:
    """How a scalar of the logits moves with the active latents of several dictionaries: an `Edges` for each, in their order.

    Args:
        sources: dictionaries at any places.
        metric: from the logits of a prompt [positions, d_vocab] to a scalar tensor.
        error: True, each dictionary is put in alone, with its error as a constant, which is what `latent_to_metric` gives for each;
            "source", the same, and each error is a source too; or False, all are put in together, without errors, and gradients
            pass the later ones.

    The options are those of `latent_to_metric`; cuts, other rules and methods are refused.

    Raises:
        InputError: for a bad argument, or dictionaries that do not go together.
        BudgetError: where the budget is too small for the pass.
        NotFiniteError: for a prompt at which a value is NaN or infinite.
    """
    asked, precision = Options(**options), precision_of(model, options.get("dtype"))
    if len(asked.devices) > 1:
        raise InputError("device: several, and one backward pass for all dictionaries has one row; expected one device.")
    model = asked.there(model)
    check_error(error)
    if asked.cuts or not is_usual(asked.rule) or asked.method != "adjoint" or precision.is_reduced:
        said = "cuts" if asked.cuts else "dtype" if precision.is_reduced else "method" if is_usual(asked.rule) else "rule"
        raise InputError(f"{said}: one backward pass for all dictionaries knows none; expected `latent_to_metric`, once for each.")
    if not sources:
        raise InputError("sources: none; expected dictionaries.")
    if not callable(metric):
        raise InputError(f"metric: {metric!r:.60}; expected a function from logits [positions, d_vocab] to a scalar tensor.")
    given = [known_to(model, one, f"sources[{number}]") for number, one in enumerate(sources)]
    for number, one in enumerate(given):
        check_fit(model, one, f"sources[{number}]")
    prompts = to_prompts(model, tokens)
    there = constant(model.to(dtype=precision.path))
    own = [put_into(there, one, f"sources[{number}]") for number, one in enumerate(given)]
    if not error:
        put_together(there, {f"sources[{number}]": one for number, one in enumerate(own)}, asked.policy)  # raises where two write one place
    widest = max(there.config.d_vocab, *(d.d_sae for d in own))
    for number, ids in enumerate(prompts):
        needed = working_memory(there.config, Site(0, "resid_pre"), there.config.last, len(ids), widest, precision.path.itemsize)
        chunk_size(needed, asked.budget, number)  # raises where not even the pass fits
    name = getattr(metric, "__name__", "metric")
    opened = partial(_together if not error else partial(_alone, error == "source"), there, own, metric, asked.policy)
    parts: list[list[Edges]] = [[] for _ in own]
    for number, ids in enumerate(track(list(prompts), asked.progress)):
        value, found = of_prompt_number(number, opened, ids)
        for part, dictionary, (sources_of, gradient) in zip(parts, own, found, strict=True):
            nodes, last = source_nodes(there, "latent", dictionary.site, sources_of), torch.tensor([len(ids) - 1])
            table = Nodes("metric", "logits", torch.tensor([0, 1]), last, torch.tensor([-1]), value.reshape(1).cpu(), (name,))
            rows = EdgeRows("latent_to_metric", nodes, table, sources_of, asked)
            rows.add(gradient[None])
            part.append(of_prompt_number(number, rows.edges, there, ids, {}))
    return [_recorded(model, given, number, part, metric, prompts, asked, error) for number, part in enumerate(parts)]


def _recorded(
    model: Model,
    sources: Sequence[Dictionary],
    number: int,
    parts: list[Edges],
    metric: Metric,
    prompts: Any,
    asked: Options,
    error: ErrorAs,
) -> Edges:
    """All prompts of one dictionary, with the record of the call; and, where it depends on them, the dictionaries beside it."""
    call = call_record("latent_to_metric", model, sources[number], metric, list(prompts), asked, precision_of(model, asked.dtype), error)
    if not error:
        others = (one for one in sources if one is not sources[number])
        call |= {"beside": [{"name": one.name, "site": str(one.site), "sha256": one.fingerprint} for one in others]}
    return replace(join(parts, release=True), call=call)


class _Found(NamedTuple):
    """The latents of one dictionary, and the gradient by them."""

    sources: Sources
    gradient: Float[Tensor, " sources"]


def _scalar(model: Model, metric: Metric, stream: Float[Tensor, "positions d_model"], policy: Policy) -> Float[Tensor, ""]:
    value = metric(unembed(model, stream, policy=policy))
    if not isinstance(value, Tensor) or value.shape != ():
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"metric: gave {got}; expected a scalar tensor made from the logits [positions, d_vocab].")
    return value


@torch.no_grad()
def _alone(
    is_error_source: bool, model: Model, sources: Sequence[Dictionary], metric: Metric, policy: Policy, ids: Int[Tensor, " positions"]
) -> tuple[Float[Tensor, ""], list[_Found]]:
    """Each in the model alone: the metric's gradient at every written place, and what latents write there."""
    several = [d for d in sources if len(d.writes) > 1]
    if several:
        raise InputError(f"sources: {several[0].name} writes at {len(several[0].writes)} places; expected `latent_to_metric` for it.")
    places = {place(model, d.writes[0]) for d in sources}
    seen = capture(model, ids, {*places, *(d.site for d in sources)})
    require_finite({str(at): seen[at] for at in sorted(seen, key=lambda at: at.depth)})

    def function(moved: dict[str, Float[Tensor, "positions _"]]) -> Float[Tensor, ""]:
        def put(at: Site, value: Tensor) -> Tensor:
            return moved[str(at)] + value - value.detach() if str(at) in moved else value

        *_, (_, last) = walk(model, Site(0, "resid_pre"), embed(model, ids), policy=policy, put=put)
        return _scalar(model, metric, last, policy)

    value, pull, *_ = vjp(function, {str(at): seen[at] for at in places})
    (cotangents,) = pull(torch.ones_like(value))
    require_finite({"the metric": value[None]})
    found = []
    for d in sources:
        x, at = seen[d.site], place(model, d.writes[0])
        own = latent_sources(d, x, d.writes, encode_sparse(d, x))
        if is_error_source:
            own = with_errors(own, cut(d, x, seen[at]).error)
        found.append(_Found(own, (cotangents[str(at)].index_select(0, own.position) * own.direction).sum(-1)))
    return value, found


@torch.no_grad()
def _together(
    model: Model, sources: Sequence[Dictionary], metric: Metric, policy: Policy, ids: Int[Tensor, " positions"]
) -> tuple[Float[Tensor, ""], list[_Found]]:
    """All put in at once, without errors: the gradient by what is added to each one's latents."""
    reads: dict[Site, list[int]] = {}
    for number, d in enumerate(sources):
        reads.setdefault(place(model, d.site), []).append(number)
    active: dict[int, Sources] = {}

    def function(added: Mapping[str, Float[Tensor, " sources"]]) -> Float[Tensor, ""]:
        decoded: dict[Site, Tensor] = {}

        def read(number: int, x: Tensor) -> None:
            d = sources[number]
            if number not in active:
                active[number] = latent_sources(d, x, d.writes, encode_sparse(d, x))
            position, latent, *_ = active[number]
            value = encode_at(selected(d), x, position, latent)
            value = value + added[str(number)] if added else value
            written = decode_at(d, value, position, latent, normalise_input(d, x)[1])
            for where, part in split(d, written + skip(d, x) if d.has_skip else written).items():
                at = place(model, where)
                decoded[at] = decoded[at] + part if at in decoded else part

        def put(at: Site, value: Tensor) -> Tensor:
            own = [number for number in reads.get(at, []) if any(place(model, where) == at for where in sources[number].writes)]
            for number in own:
                read(number, value)
            value = decoded.get(at, value)
            for number in reads.get(at, []):
                if number not in own:
                    read(number, value)
            return value

        *_, (_, last) = walk(model, Site(0, "resid_pre"), embed(model, ids), policy=policy, put=put)
        return _scalar(model, metric, last, policy)

    function({})
    value, pull, *_ = vjp(function, {str(number): torch.zeros_like(each.value) for number, each in active.items()})
    (gradients,) = pull(torch.ones_like(value))
    require_finite({"the metric": value[None]})
    return value, [_Found(active[number], gradients[str(number)]) for number in range(len(sources))]
