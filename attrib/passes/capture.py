"""One forward pass: tokens to the logits, to the values at chosen sites, and through a dictionary to its leaves.

A pass can be told what to `put` at some sites, and goes on from there: that is how one steers, ablates and patches. It is a
function of what is put, and differentiates by it.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_model, takes
from attrib.core.room import memory_named
from attrib.core.shown import in_one_line
from attrib.core.types import EXACT, InputError, Policy, Site, SparseLatents
from attrib.core.warned import renamed
from attrib.dictionaries.dictionary import Dictionary, InputScale, decode_at, encode_sparse, normalise_input, skip
from attrib.models.tokens import TokensLike, to_batch
from attrib.models.transformer import Model, Put, Stream, check_end, check_site, embed, place, unembed, width
from attrib.models.transformer import walk as walk_model

Edits = Any
"""By site or its name: a tensor or number that stands there, or a function from the value that the model has computed there to one."""

# --------------------------------------------------------------------------------------------- the pass


@memory_named("computing logits")
@takes(model=as_model)
def forward(model: Model, tokens: TokensLike, *, put: Edits | None = None) -> Float[Tensor, "*batch positions d_vocab"]:
    """The whole model: logits from tokens.

    Args:
        tokens: as `capture` takes them.
        put: by site, what stands there in place of the model's own value; see `walk`.

    Raises:
        InputError: for what is no prompt of this model, and for edits as `walk`.
    """
    *_, (_, last) = walk(model, Site(0, "resid_pre"), embed(model, to_batch(model, tokens)), put=put)
    return unembed(model, last)


@takes(model=as_model)
def capture(
    model: Model, tokens: TokensLike, sites: Site | str | Iterable[Site | str], *, put: Edits | None = None
) -> dict[Site, Float[Tensor, "*batch positions _"]]:
    """Values at `sites`, computed no further than the last of them.

    Args:
        tokens: a tensor of ids with any batch dimensions; or what the attributions take: one prompt gives [positions, _], a list
            of prompts of one length [batch, positions, _]. They are brought to the model's device.
        put: by site, what stands there in place of the model's own value, and is what is captured there; see `walk`.

    Raises:
        InputError: for a site that the model does not have, or what is no prompt of it; for edits as `walk`, and for one behind the
            last of `sites`, which would change nothing.
    """
    wanted = {check_site(model, site, "sites") for site in ([sites] if isinstance(sites, Site | str) else sites)}
    edits = {} if put is None else _edits_of(model, Site(0, "resid_pre"), put)
    last = max((site.depth for site in wanted), default=(0, 0))
    for site, _ in edits.values():
        if site.depth > last:
            raise InputError(f"put: {site} lies behind every site that is captured, so it would change nothing; leave it out.")
    return captured(model, to_batch(model, tokens), wanted, _put(edits))


@memory_named("capturing")
def captured(
    model: Model, ids: Int[Tensor, "*batch positions"], wanted: Set[Site], put: Put | None = None
) -> dict[Site, Float[Tensor, "*batch positions _"]]:
    """`capture` of ids that have been checked, at sites that the model has."""
    found: dict[Site, Tensor] = {}
    last = max((site.depth for site in wanted), default=(0, 0))
    for site, value in walk_model(model, Site(0, "resid_pre"), embed(model, ids), put=put):
        if site in wanted:
            found[site] = value
        if site.depth >= last and wanted == found.keys():
            break
    return found


@takes(model=as_model)
def walk(
    model: Model,
    start: Site | str,
    x: Float[Tensor, "*batch positions width"],
    base: Stream | None = None,
    *,
    put: Edits | None = None,
    policy: Policy = EXACT,
) -> Iterator[tuple[Site, Float[Tensor, "*batch positions _"]]]:
    """Every site from `start` to the last, in order of computation, with the value there; computed as far as it is asked for.

    Args:
        start: where to begin. `attrib.embed(model, ids)` is the value at "blocks.0.hook_resid_pre".
        x: the value at `start`.
        base: the residual stream that a component's output is added to; needed where `start` is not itself the stream: the value of
            `resid_pre` for z and attn_out, of `resid_mid` for mlp_in and mlp_out.
        put: by site, a tensor or number that stands there, or a function that is given (a copy of) the value and returns one.
            Everything behind it is computed from that. It is broadcast to the value's shape, and brought to its dtype and device.
            `resid_post` of a layer and `resid_pre` of the next are one place.
        policy: which nonlinearities derivatives pass.

    It is a pure function of `x`, `base` and what is put, for every transform of torch.func.

    Raises:
        InputError: where `x` or `base` has another width, dtype or device; where an edit is at a site that the model does not have or
            that lies before `start`, or at a place that another one names too; and, as the walk comes to it, where `base` is
            missing or not wanted, or what is put is no floating-point tensor that broadcasts to the value.
    """
    start = check_end(model, start, "start")
    check_value(model, start, x, "x")
    if base is not None:
        check_value(model, Site(start.layer, "resid_pre"), base, "base")
    return walk_model(model, start, x, base, policy, put_of(model, start, put))


def put_of(model: Model, start: Site, put: Edits | None) -> Put | None:
    """What stands at each place of a walk from `start`, as the argument `put` says it. Raises InputError as `walk`."""
    return _put({} if put is None else _edits_of(model, start, put))


def check_value(model: Model, site: Site, value: Float[Tensor, "..."], argument: str) -> None:
    """Raises InputError for what could not stand at a site of the model: another width, dtype or device."""
    expected = width(model.config, site), model.dtype, model.device
    if value.ndim < 2 or (value.shape[-1], value.dtype, value.device) != expected:
        raise InputError(
            f"{argument}: shape {list(value.shape)}, {value.dtype} on {value.device}; expected [..., positions, {expected[0]}], "
            f"{expected[1]} on {expected[2]}, as {model.name} has them at {site}."
        )


def _edits_of(model: Model, start: Site, put: Edits) -> dict[Site, tuple[Site, Any]]:
    """By place, the site that was named and what is to stand there."""
    if not isinstance(put, Mapping):
        raise InputError(f"put: a {type(put).__name__}; expected a dict from sites to tensors or functions.")
    edits: dict[Site, tuple[Site, Any]] = {}
    for named, edit in put.items():
        site = check_end(model, named, "put")
        if site.depth < start.depth:
            raise InputError(f"put: {site} lies before {start}, where the walk begins, so it would change nothing; leave it out.")
        if (at := place(model, site)) in edits:
            raise InputError(f"put: {edits[at][0]} and {site} are one place; give one of them.")
        edits[at] = site, edit
    return edits


def _put(edits: Mapping[Site, tuple[Site, Any]]) -> Put | None:
    """What stands at each place; None where it is the model's own value everywhere."""
    return (lambda at, value: _edited(*edits[at], value) if at in edits else value) if edits else None


def _edited(site: Site, edit: Any, value: Tensor) -> Tensor:
    # a copy, since functions written as hooks change what they are given, which may be the stream itself
    given = edit if isinstance(edit, Tensor) else edit(value.clone()) if callable(edit) else edit
    if isinstance(given, int | float) and not isinstance(given, bool):
        given = value.new_full((), given)
    expected = f"expected a floating-point tensor that broadcasts to {list(value.shape)}"
    if not isinstance(given, Tensor) or not given.is_floating_point():
        came = str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
        raise InputError(f"put: {came} for {site}; {expected}, or a function that returns one.")
    try:
        return given.to(value).expand(value.shape)
    except RuntimeError as error:
        raise InputError(f"put: shape {list(given.shape)} for {site}; {expected}.") from error


# ------------------------------------------------------------------------------------------- the leaves


@in_one_line
class Leaves(NamedTuple):
    """What a cut holds constant: the dictionary's active latents, its error and the scale of its input."""

    latents: SparseLatents
    error: Float[Tensor, "positions d_out"]
    scale: InputScale


def cut(dictionary: Dictionary, x: Float[Tensor, "positions d_in"], written: Float[Tensor, "positions d_out"] | None = None) -> Leaves:
    """The leaves of a dictionary that reads the value `x`: decode(latents) + skip(x) + error = written.

    Args:
        written: the true values at `dictionary.writes`, side by side; None for a dictionary that writes where
            it reads, where they are `x`.

    Raises:
        InputError: where a dictionary writes elsewhere and `written` is missing.
    """
    if written is None and dictionary.writes != (dictionary.site,):
        sites = ", ".join(map(str, dictionary.writes))
        raise InputError(
            f"written: missing, but {dictionary.name} reads {dictionary.site} and writes {sites}; give the values there, side by side."
        )
    latents = encode_sparse(dictionary, x)
    _, scale = normalise_input(dictionary, x)
    decoded = decode_at(dictionary, latents.value, latents.position, latents.latent, scale)
    error = (x if written is None else written) - decoded
    return Leaves(latents, error - skip(dictionary, x) if dictionary.has_skip else error, scale)


if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, logits="forward")
