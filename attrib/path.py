"""Paths: leaves → targets as a pure function, with the linear ends that the engine contracts.

A path is  leaves a → x_A = Σ_i a_i D_i + constants → x_B = S(x_A) → targets b_j = r_j(x_B[p_j]).  Its
Jacobian at the primal is

    J[j, i] = G_j · (∂x_B[p_j] / ∂x_A[q_i]) · D_i,      G_j = ∂r_j / ∂x_B[p_j]

so only the segment S needs a transform: `Sources` holds D_i (a decoder row, or a token's embedding),
`Targets` holds G_j (an encoder column times act', or a logit's cotangent). `Path.function` is the whole
as one plain function, for torch.func and for people who compose.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vjp

from attrib.capture import capture, cut
from attrib.dictionary import Dictionary, after_gain, decode_at, encode_at, encode_sparse, skip, wins_at
from attrib.model import Model, Tokenizer, cap, check_end, enter, mlp, normalise, unembed, width
from attrib.primal import Streams, stream_sites
from attrib.segment import Segment, segment
from attrib.sparse import select
from attrib.types import EXACT, Difference, Direction, InputError, Logits, Policy, Site, Tokens, TopLogits, UnsupportedError

Positions = int | Sequence[int] | None


class Sources(NamedTuple):
    """Leaves of one prompt, sorted by position, and the direction that each writes at its position."""

    position: Int[Tensor, " sources"]
    latent: Int[Tensor, " sources"]
    value: Float[Tensor, " sources"]
    direction: Float[Tensor, "sources width_a"]


class Targets(NamedTuple):
    """Targets of one prompt, and the cotangent of each at its position."""

    position: Int[Tensor, " targets"]
    latent: Int[Tensor, " targets"]
    value: Float[Tensor, " targets"]
    cotangent: Float[Tensor, "targets width_b"]


@dataclass(frozen=True)
class Path:
    """One prompt's path at its primal point.

    `x` is the primal at the first site, `base` the stream it is added to where that site is not the
    stream itself. `function` maps `sources.value` to `targets.value`.
    """

    through: Segment
    x: Float[Tensor, "positions width_a"]
    base: Float[Tensor, "positions d_model"] | None
    sources: Sources
    targets: Targets
    function: Callable[[Float[Tensor, " sources"]], Float[Tensor, " targets"]]
    labels: tuple[str, ...] = ()
    probability: Float[Tensor, " targets"] | None = None
    from_tokens: bool = False
    streams: Streams | None = None
    """What the sweeps need of the primal, where it is the prompt's own pass; else they walk it from `x`."""


class Read(NamedTuple):
    """What is read of the stream at a site: one number from the row at each target's position."""

    position: Int[Tensor, " targets"]
    latent: Int[Tensor, " targets"]
    function: Callable[[Float[Tensor, "targets width_b"]], Float[Tensor, " targets"]]
    labels: tuple[str, ...] = ()
    probability: Float[Tensor, " targets"] | None = None


# ---------------------------------------------------------------------------------- where it starts


class Start(NamedTuple):
    """The leaves at a path's beginning and the function that puts them into the stream."""

    sources: Sources
    enter: Callable[[Float[Tensor, " sources"]], Float[Tensor, "positions width_a"]]


def start_at_tokens(embedded: Float[Tensor, "positions d_model"], tokens: Int[Tensor, " positions"]) -> Start:
    """Token scales: one factor for each position's embedding sum, 1 at the primal."""
    ones = torch.ones_like(embedded[:, 0])
    sources = Sources(torch.arange(len(tokens), device=tokens.device), tokens, ones, embedded)
    return Start(sources, lambda scales: embedded * scales[:, None])


def start_at_latents(
    source: Dictionary, x: Float[Tensor, "positions width_read"], written: Float[Tensor, "positions width_a"], error: bool
) -> Start:
    """The source dictionary's active latents; its error, its skip connection and the scale of its input are constants.

    Args:
        x: what it reads.
        written: the true value where it writes.
    """
    leaves = cut(source, x, written)
    position, latent, value = leaves.latents
    direction = source.params.W_dec.index_select(0, latent) * leaves.scale.scale.index_select(0, position)
    beside = skip(source, x) if source.has_skip else None

    def enter(values: Float[Tensor, " sources"]) -> Float[Tensor, "positions width_a"]:
        out = decode_at(source, values, position, latent, leaves.scale)
        out = out if beside is None else out + beside
        return out + leaves.error if error else out

    return Start(Sources(position, latent, value, direction), enter)


# ------------------------------------------------------------------------------------ where it ends


def read_latents(
    target: Dictionary, true: Float[Tensor, "positions width_b"], reached: Float[Tensor, "positions width_b"], positions: Positions
) -> Read:
    """The target dictionary's latents that are active on the true activations.

    Args:
        reached: x_B along the path; differs from `true` where the source's error is left out, and then
            decides, for TopK, which targets still win their place.
    """
    found = encode_sparse(target, true)
    chosen = select(found, torch.isin(found.position, chosen_positions(positions, len(true), true.device)))
    gate = torch.ones_like(chosen.latent, dtype=torch.bool)
    if reached is not true:
        gate = wins_at(target, reached, chosen.position, chosen.latent)

    def function(rows: Float[Tensor, "targets width_b"]) -> Float[Tensor, " targets"]:
        return encode_at(target, rows, torch.arange(len(chosen.latent), device=rows.device), chosen.latent, gate)

    return Read(chosen.position, chosen.latent, function)


def read_logits(
    model: Model, what: TopLogits | Tokens | Difference, x: Float[Tensor, "positions d_model"], positions: Positions, policy: Policy
) -> Read:
    """Chosen logits, or a difference of them, at the last position or at `positions`; only their columns of W_U are touched.

    Args:
        x: the true last residual stream, from which the largest logits are chosen.
    """
    at = chosen_positions(-1 if positions is None else positions, len(x), x.device)
    if isinstance(what, Difference):
        return _read_difference(model, what, at, policy)
    else:
        log_probability = unembed(model, x.index_select(0, at)).log_softmax(-1)
        ids = [top_tokens(row, what) if isinstance(what, TopLogits) else token_ids(model, what.tokens, "logits") for row in log_probability]
        counts = torch.tensor([len(chosen) for chosen in ids], device=at.device)
        position, latent = at.repeat_interleave(counts), torch.cat(ids)
        columns, offsets = model.params.W_U.index_select(1, latent).T.contiguous(), model.params.b_U.index_select(0, latent)
        labels = token_strings(model, latent)
        probability = torch.cat([row.index_select(0, chosen).exp() for row, chosen in zip(log_probability, ids, strict=True)])

    def function(rows: Float[Tensor, "targets d_model"]) -> Float[Tensor, " targets"]:
        raw = (normalise(model.config, model.params.norm_final, rows, policy) * columns).sum(-1) + offsets
        return cap(raw, model.config.logit_cap, policy)

    return Read(position, latent, function, labels, probability)


def _read_difference(model: Model, what: Difference, at: Int[Tensor, " targets"], policy: Policy) -> Read:
    """Mean logit of `a` minus mean logit of `b` at each position."""
    sides = [token_ids(model, side, "logits") for side in (what.a, what.b)]
    label = " - ".join(" + ".join(token_strings(model, side)) for side in sides)
    both = torch.cat(sides)
    W_U, b_U = model.params.W_U.index_select(1, both), model.params.b_U.index_select(0, both)

    def function(rows: Float[Tensor, "targets d_model"]) -> Float[Tensor, " targets"]:
        raw = normalise(model.config, model.params.norm_final, rows, policy) @ W_U + b_U
        plus, minus = cap(raw, model.config.logit_cap, policy).split([len(side) for side in sides], dim=-1)
        return plus.mean(-1) - minus.mean(-1)

    nan = torch.full((len(at),), torch.nan, dtype=b_U.dtype, device=at.device)
    return Read(at, torch.full_like(at, -1), function, (label,) * len(at), nan)


def read_direction(what: Direction, x: Float[Tensor, "positions d_model"], positions: Positions) -> Read:
    """The stream dotted with a vector, at the last position or at `positions`."""
    at = chosen_positions(-1 if positions is None else positions, len(x), x.device)
    vector = what.vector.to(x)
    return Read(at, torch.full_like(at, -1), lambda rows: rows @ vector, ("direction",) * len(at), torch.full_like(x[at, 0], torch.nan))


def top_tokens(log_probability: Float[Tensor, " d_vocab"], what: TopLogits) -> Int[Tensor, " chosen"]:
    """Ids of the largest logits, largest first: `k` of them, or the fewest that reach `mass`."""
    top = log_probability.topk(min(what.k, len(log_probability)))
    if what.mass is None:
        return top.indices
    before = top.values.exp().cumsum(0) - top.values.exp()
    return top.indices[before < what.mass]


def token_ids(model: Model, tokens: int | str | Sequence[int | str], argument: str) -> Int[Tensor, " tokens"]:
    """Vocabulary ids from ids and strings. Raises InputError for a string that is not one token."""
    given = [tokens] if isinstance(tokens, int | str) else list(tokens)
    ids = [_single_token(model, token, argument) if isinstance(token, str) else int(token) for token in given]
    if outside := [number for number in ids if not 0 <= number < model.config.d_vocab]:
        raise InputError(f"{argument}: token id {outside[0]} is outside the vocabulary of {model.config.d_vocab}.")
    if not ids:
        raise InputError(f"{argument}: no tokens given; expected at least one id or string.")
    return torch.tensor(ids, device=model.device)


def _single_token(model: Model, text: str, argument: str) -> int:
    tokenizer = tokenizer_of(model, argument)
    found = tokenizer.encode(text)
    if len(found) != 1:
        pieces = [tokenizer.decode([i]) for i in found]
        raise InputError(
            f"{argument}: {text!r} is {len(found)} tokens ({pieces}); expected one. A leading space often matters, as in ' Paris'."
        )
    return found[0]


def token_strings(model: Model, ids: Int[Tensor, " tokens"]) -> tuple[str, ...]:
    """Each token as text, or its id where the model has no tokenizer."""
    return tuple(model.tokenizer.decode([i]) if model.tokenizer else str(i) for i in ids.tolist())


def tokenizer_of(model: Model, argument: str) -> Tokenizer:
    """The model's tokenizer, or an error that says what to give in place of text."""
    if model.tokenizer is None:
        raise InputError(f"{argument}: got text, but {model.name} has no tokenizer; give token ids.")
    return model.tokenizer


def chosen_positions(positions: Positions, length: int, device: torch.device) -> Int[Tensor, " chosen"]:
    """Chosen positions, ascending; negative ones count from the end, None is all."""
    if positions is None:
        return torch.arange(length, device=device)
    wanted = [positions] if isinstance(positions, int) else list(positions)
    if not wanted or any(not -length <= p < length for p in wanted):
        raise InputError(f"positions: {wanted} for a prompt of {length} tokens; expected numbers from {-length} to {length - 1}.")
    return torch.tensor(sorted({p % length for p in wanted}), device=device)


# --------------------------------------------------------------------------------- the path itself


def check_fit(model: Model, dictionary: Dictionary, argument: str) -> None:
    """Raises InputError where a dictionary's sites or widths are not the model's."""
    site = check_end(model, dictionary.site, f"{argument} ({dictionary.name})")
    writes = [check_end(model, written, f"{argument} ({dictionary.name})") for written in dictionary.writes]
    reading, writing = width(model.config, site), sum(width(model.config, written) for written in writes)
    for verb, got, has, at in (("reads", dictionary.d_in, reading, (site,)), ("writes", dictionary.d_out, writing, writes)):
        if got != has:
            raise InputError(
                f"{argument}: {dictionary.name} {verb} vectors of {got}, but {model.name} has "
                f"{has} at {', '.join(map(str, at))}. It was trained for another model."
            )


def fitted(model: Model, dictionary: Dictionary, argument: str) -> Dictionary:
    """The dictionary as it reads and writes this model; itself but where its hook stands before a norm's weights.

    TransformerLens fires `ln2.hook_normalized` before the norm's weight and bias, which mlp_in has behind it. In a model
    whose norms are folded there is no difference.

    Raises:
        InputError: where it does not fit the model, or the norm's weights cannot be brought into it.
    """
    check_fit(model, dictionary, argument)
    if not (dictionary.config.hook_name or "").endswith("ln2.hook_normalized"):
        return dictionary
    norm = model.params.blocks[dictionary.site.layer].norm_2
    if not model.config.pre_norm:
        raise InputError(
            f"{argument}: {dictionary.name} reads {dictionary.config.hook_name}, which in {model.name} stands behind the MLP, "
            "and not before it. Train one on what the MLP reads."
        )
    if torch.equal(norm.weight, torch.ones_like(norm.weight)) and not norm.bias.any():
        return dictionary
    return after_gain(dictionary, norm.weight, norm.bias)


def check_source(model: Model, source: Dictionary, stop: Site, target: object) -> None:
    """Raises InputError where the source does not fit the model, or the target is not after it.

    Logits, directions and metrics may be read at the source's own site: nothing then lies between.
    """
    check_fit(model, source, "source")
    start = start_site(source)
    if stop.depth < start.depth or (stop.depth == start.depth and isinstance(target, Dictionary)):
        raise InputError(f"target: {stop} is not after the source's {start}; attributions run forward. Choose a later target.")


def start_site(source: Dictionary | None) -> Site:
    """Where a path from a dictionary's latents, or from the tokens, enters the model.

    Raises:
        UnsupportedError: for a dictionary that writes at several sites.
    """
    if source is None:
        return Site(0, "resid_pre")
    if len(source.writes) > 1:
        raise UnsupportedError(
            f"source: {source.name} writes at {len(source.writes)} sites, and a path starts at one. It can be a target; edges from it are "
            "not computed yet."
        )
    return source.writes[0]


def base_site(start: Site) -> Site | None:
    """The stream to which a component's output is added; None where `start` is the stream."""
    match start.kind:
        case "z" | "attn_out":
            return Site(start.layer, "resid_pre")
        case "mlp_in" | "mlp_out":
            return Site(start.layer, "resid_mid")
    return None


class _Opening(NamedTuple):
    """The half of a path that does not depend on what is read at its end."""

    head: Start
    through: Segment
    x: Float[Tensor, "positions width_a"]
    base: Float[Tensor, "positions d_model"] | None
    true: Float[Tensor, "positions width_b"]
    reached: Float[Tensor, "positions width_b"]
    streams: Streams | None
    read: Float[Tensor, "positions width_read"]
    """The true value at the site that is read, where that is not the path's end."""


def _open(
    model: Model, source: Dictionary | None, site: Site, stop: Site, tokens: Int[Tensor, " positions"], policy: Policy, error: bool
) -> _Opening:
    start = start_site(source)
    base = base_site(start)
    sites = stream_sites(start, stop)
    ends = {start, stop, site} | ({base} if base else set()) | ({source.site} if source else set())
    seen = capture(model, tokens, {*ends, *sites})
    true_a, true_b, stream = seen[start], seen[stop], None if base is None else seen[base]
    through = segment(model, start, stop, policy=policy)
    head = start_at_tokens(true_a, tokens) if source is None else start_at_latents(source, seen[source.site], true_a, error)
    # with the error in, the primal is the true one, not its reconstruction up to rounding
    x = true_a if source is None or error else head.enter(head.sources.value)
    reached = true_b if x is true_a else through(x, stream)
    streams = {at: seen[at] for at in sites} if x is true_a else None
    return _Opening(head, through, x, stream, true_b, reached, streams, seen[site])


@torch.no_grad()
def path(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | Logits,
    tokens: Int[Tensor, " positions"],
    *,
    policy: Policy = EXACT,
    positions: Positions = None,
    error: bool = True,
) -> Path:
    """The path of one prompt from its leaves to its targets, at the primal point.

    Args:
        source: a dictionary, whose active latents are the leaves, or None for the token scales.
        target: a dictionary, whose active latents are the targets, or a choice of logits.
        positions: of the targets; None is all for latents and the last for logits.
        error: whether the source's error is added to its reconstruction, as a constant. Without it the
            Jacobian is taken where the reconstruction alone leads, and targets that are not active there
            have no gradient.

    Raises:
        InputError: where the dictionaries do not fit the model or each other.
    """
    site, stop = read_site(model, target), stop_site(model, target)
    if source is not None:
        check_source(model, source, stop, target)
        source = fitted(model, source, "source")
    if isinstance(target, Dictionary):
        target = fitted(model, target, "target")
    head, through, x, base, true, reached, streams, at_site = _open(model, source, site, stop, tokens, policy, error)
    if isinstance(target, Dictionary):
        reached_site = at_site if reached is true else _beside(model, site, stop, reached, policy)
        read = read_latents(target, at_site, reached_site, positions)
    elif isinstance(target, Direction):
        read = read_direction(target, at_site, positions)
    else:
        read = read_logits(model, target, true, positions, policy)

    def end(rows: Float[Tensor, "targets width_b"]) -> Float[Tensor, " targets"]:
        return read.function(_beside(model, site, stop, rows, policy))

    value, pull, *_ = vjp(end, reached.index_select(0, read.position))
    (cotangent,) = pull(torch.ones_like(value))  # each target reads its own row, so one pull gives every row

    def function(values: Float[Tensor, " sources"]) -> Float[Tensor, " targets"]:
        return end(through(head.enter(values), base).index_select(0, read.position))

    targets = Targets(read.position, read.latent, value, cotangent)
    return Path(through, x, base, head.sources, targets, function, read.labels, read.probability, source is None, streams)


@dataclass(frozen=True)
class MetricPath:
    """One prompt's path to a scalar of all its logits: no single row is read, so the cotangent fills the stream.

    `cotangent` is the gradient of the metric with respect to `x`, the primal at the first site.
    """

    sources: Sources
    value: Float[Tensor, ""]
    cotangent: Float[Tensor, "positions width_a"]
    function: Callable[[Float[Tensor, " sources"]], Float[Tensor, ""]]


@torch.no_grad()
def metric_path(
    model: Model,
    source: Dictionary,
    tokens: Int[Tensor, " positions"],
    metric: Callable[[Float[Tensor, "positions d_vocab"]], Float[Tensor, ""]],
    *,
    policy: Policy = EXACT,
    error: bool = True,
) -> MetricPath:
    """The path of one prompt from the source's latents to `metric` of its logits [positions, d_vocab].

    Raises:
        InputError: where the metric does not give one number, or the dictionary does not fit the model.
    """
    check_source(model, source, model.config.last, metric)
    source = fitted(model, source, "source")
    head, through, x, base, *_ = _open(model, source, model.config.last, model.config.last, tokens, policy, error)

    def of_stream(x: Float[Tensor, "positions width_a"]) -> Float[Tensor, ""]:
        value = metric(unembed(model, through(x, base), policy=policy))
        if not isinstance(value, Tensor) or value.shape != ():
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"metric: gave {got}; expected a scalar tensor made from the logits [positions, d_vocab].")
        return value

    value, pull, *_ = vjp(of_stream, x)
    (cotangent,) = pull(torch.ones_like(value))
    return MetricPath(head.sources, value, cotangent, lambda values: of_stream(head.enter(values)))


def stop_site(model: Model, target: Dictionary | Logits) -> Site:
    """Where the path to a target ends.

    In a parallel block what the MLP reads and writes does not depend on the attention beside it: it is read off resid_pre.
    """
    site = read_site(model, target)
    return Site(site.layer, "resid_pre") if model.config.parallel and site.kind in ("mlp_in", "mlp_out") else site


def _beside(model: Model, site: Site, stop: Site, rows: Float[Tensor, "rows _"], policy: Policy) -> Float[Tensor, "rows _"]:
    """The value at `site` of a parallel block's MLP, from resid_pre."""
    if site == stop:
        return rows
    entered = enter(model.config, model.params.blocks[site.layer].norm_2, rows, policy)
    return entered if site.kind == "mlp_in" else mlp(model, site.layer, entered, policy)


def read_site(model: Model, target: Dictionary | Logits) -> Site:
    """Where a target is read. Raises InputError where it does not fit the model."""
    if isinstance(target, Dictionary):
        check_fit(model, target, "target")
        return target.site
    if isinstance(target, Direction):
        site = check_end(model, target.site or model.config.last, "logits")
        if target.vector.shape != (width(model.config, site),):
            raise InputError(
                f"logits: Direction of shape {list(target.vector.shape)}, but {site} of {model.name} has vectors of "
                f"{width(model.config, site)}."
            )
        return site
    if isinstance(target, TopLogits) and (target.k < 1 or (target.mass is not None and not 0 < target.mass <= 1)):
        raise InputError(f"logits: {target}; expected k >= 1 and, where given, 0 < mass <= 1.")
    if isinstance(target, Tokens):
        token_ids(model, target.tokens, "logits")
    if isinstance(target, Difference):
        token_ids(model, target.a, "logits")
        token_ids(model, target.b, "logits")
    return model.config.last
