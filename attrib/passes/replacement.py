"""Many dictionaries in one forward pass: the model with what each of them writes replaced by what it decodes.

Let dictionary d read x at site r_d and write at sites W_d. At every written site w

    y_w = Σ_d [w in W_d] (decode_d(a_d) + x W_skip_d)_w + err_w,    err_w = what stands there truly - that sum

and what the model itself computes at w is not looked at. The sum has one term, but for cross-layer transcoders, whose
layers write together; the error is the site's, not a dictionary's. At the true leaves y_w is the true value everywhere, so
the logits are the model's. What differs is where a_d comes from, and so what a derivative means:

    direct    a_d, the scale of its input and err_w are leaves.                 ∂y_w / ∂x = Σ_d W_skip^T
    total     a_d = act(E_d^T x + c_d) along this same pass; err_w is a leaf.   ∂y_w / ∂x = Σ_d Σ_i∈active D_i (∂a_i / ∂x) + W_skip^T

A direct effect therefore passes no latent of any cut, and a total effect passes those that are active there. In
both, what is no latent's goes on: the stream beside a transcoder, and its skip connection, which is a part of the pass.
Latents compete (TopK) and pass thresholds anew on the total way; a derivative holds the selection, as everywhere (see `encode_at`).

`Replacement` is a plain function of its leaves under torch.func; docs/cuts.md has an example.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.core.shown import in_one_line
from attrib.core.types import EXACT, Effect, InputError, Policy, Site, SparseLatents
from attrib.dictionaries.dictionary import (
    COMPETING,
    Dictionary,
    InputScale,
    active,
    decode_at,
    encode_at,
    encode_sparse,
    normalise_input,
    pre_activations,
    reconstruct,
    selected,
    skip,
    split,
    wins_at,
)
from attrib.dictionaries.fit import fitted
from attrib.models.tokens import TokensLike, to_batch
from attrib.models.transformer import Model, Put, check_site, embed, place, unembed, walk
from attrib.passes.capture import capture
from attrib.passes.packed import ALONE, Packed

Errors = Sequence[Float[Tensor, "positions _"]]
"""An error for each site of `Replacement.written`, in its order."""

# ---------------------------------------------------------------------------------------- the leaves


@in_one_line
class Cut(NamedTuple):
    """One dictionary's share of the leaves."""

    latents: SparseLatents
    scale: InputScale

    def rows(self, first: int, stop: int | None = None) -> "Cut":
        """Those of the rows from `first` to before `stop`, counted from there."""
        if not first and stop is None:
            return self
        position, latent, value = self.latents
        chosen = (position >= first) if stop is None else (position >= first) & (position < stop)
        latents = SparseLatents(position[chosen] - first, latent[chosen], value[chosen])
        return Cut(latents, InputScale(*(part[first:stop] for part in self.scale)))


@in_one_line
class CutLeaves(NamedTuple):
    """What a replaced forward pass is a function of, for one prompt. A pytree; only `positions` and `latents` inside are integers.

    `cuts` are in the order of the dictionaries, `errors` in that of `Replacement.written`.
    """

    embedded: Float[Tensor, "positions d_model"]
    cuts: tuple[Cut, ...]
    errors: tuple[Float[Tensor, "positions _"], ...]

    @property
    def activations(self) -> tuple[Float[Tensor, " _"], ...]:
        """Each dictionary's latent values: what to differentiate by, together with `with_activations`."""
        return tuple(cut.latents.value for cut in self.cuts)

    def with_activations(self, activations: Sequence[Float[Tensor, " _"]]) -> "CutLeaves":
        """Give these leaves other values of the same latents."""
        cuts = (cut._replace(latents=cut.latents._replace(value=value)) for cut, value in zip(self.cuts, activations, strict=True))
        return self._replace(cuts=tuple(cuts))


def _cut(dictionary: Dictionary, x: Float[Tensor, "positions d_in"]) -> Cut:
    return Cut(encode_sparse(dictionary, x), normalise_input(dictionary, x)[1])


def written_from(dictionary: Dictionary, cut: Cut, x: Float[Tensor, "positions d_in"]) -> Float[Tensor, "positions d_out"]:
    """What a dictionary that reads x writes, its latents and its scale being leaves."""
    decoded = decode_at(dictionary, cut.latents.value, cut.latents.position, cut.latents.latent, cut.scale)
    return decoded + skip(dictionary, x) if dictionary.has_skip else decoded


def written_by(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Float[Tensor, "*batch positions d_out"]:
    """What a dictionary writes where it reads x: `reconstruct`, holding only active latents where x is one prompt or a batch.

    Which latents are active is a matter of data, and their number differs between members of a vmap: there, all are held.
    """
    if _is_batched(x):
        return reconstruct(dictionary, x)
    if x.ndim > 2:
        return written_by(dictionary, x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    position, latent, _ = encode_sparse(dictionary, x.detach())
    value = encode_at(selected(dictionary), x, position, latent)
    decoded = decode_at(dictionary, value, position, latent, normalise_input(dictionary, x)[1])
    return decoded + skip(dictionary, x) if dictionary.has_skip else decoded


def _latents_at(dictionary: Dictionary, x: Float[Tensor, "positions d_in"], nodes: SparseLatents) -> Float[Tensor, " active"]:
    """The values that x gives to latents that were active at the true point; 0 where one is not any more."""
    gate = None
    if dictionary.config.rule in COMPETING:
        if _is_batched(x):
            gate = active(dictionary, pre_activations(dictionary, x))[nodes.position, nodes.latent]
        else:
            gate = wins_at(dictionary, x.detach(), nodes.position, nodes.latent)
    return encode_at(dictionary, x, nodes.position, nodes.latent, gate)


def _is_batched(x: Tensor) -> bool:
    """Whether some vmap around this call runs over x. A vmap over tangents or cotangents alone does not."""
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            return True
        x = get_unwrapped(x)
    return False


# ------------------------------------------------------------------------------------------ the pass


class _Pass(NamedTuple):
    """One pass under way: its constants, and what has come up so far. It lives as long as the pass."""

    held: Mapping[int, Cut]
    constant: Mapping[Site, Tensor]
    read: dict[int, Tensor]
    written: dict[int, dict[Site, Tensor]]
    """What each dictionary writes, by place."""
    given: Site | None = None
    """A place whose value is given, so that what writes there is not asked."""


@dataclass(frozen=True)
class Replacement:
    """The model with dictionaries in it, as pure functions of leaves; made by `replace`.

    A dictionary that writes where it reads reads what the model brings there; any other that reads there reads what stands
    there afterwards. Every method takes and gives one prompt; vmap over leaves or embedded tokens makes many of one length. Prompts of any
    lengths go through one pass as rows, where `packed` says which are whose.
    """

    model: Model
    dictionaries: tuple[Dictionary, ...]
    policy: Policy = EXACT
    packed: Packed = ALONE
    """How the rows of several prompts lie, where passes of embedded tokens or leaves are passes of several."""

    def __repr__(self) -> str:
        put_in = ", ".join(f"{dictionary.name!r}" for dictionary in self.dictionaries)
        return f"Replacement({self.model.name!r} with {put_in or 'no dictionaries'}, {self.policy})"

    @cached_property
    def written(self) -> tuple[Site, ...]:
        """Every place that some dictionary writes, in order of computation: each has an error."""
        return tuple(sorted({at for places in self.places for at in places}, key=lambda at: at.depth))

    @cached_property
    def places(self) -> tuple[tuple[Site, ...], ...]:
        """Where each dictionary writes."""
        return tuple(tuple(place(self.model, site) for site in d.writes) for d in self.dictionaries)

    @cached_property
    def readers(self) -> dict[Site, tuple[tuple[int, ...], tuple[int, ...]]]:
        """At each place that is read, the dictionaries that write there too, and the others."""
        reads = [place(self.model, d.site) for d in self.dictionaries]
        by_own = [[n for n, at in enumerate(reads) if (at in self.places[n]) is own] for own in (True, False)]
        return {at: (tuple(n for n in by_own[0] if reads[n] == at), tuple(n for n in by_own[1] if reads[n] == at)) for at in reads}

    @torch.no_grad()
    def leaves(self, tokens: TokensLike) -> CutLeaves:
        """The true leaves: what the model's own pass over these tokens gives.

        Args:
            tokens: one prompt, as the attributions take it.

        Raises:
            InputError: for anything but one prompt of at least one token, or one longer than the model's context.
        """
        ids = self._ids(tokens)
        return self.leaves_of(embed(self.model, ids), capture(self.model, ids, self.sites))

    @property
    def sites(self) -> set[Site]:
        """Every place that some dictionary reads or writes: what the leaves are made from."""
        return {place(self.model, d.site) for d in self.dictionaries} | {*self.written}

    def leaves_of(self, embedded: Float[Tensor, "positions d_model"], true: Mapping[Site, Float[Tensor, "positions _"]]) -> CutLeaves:
        """The leaves where the values at `sites` are at hand."""
        cuts = tuple(_cut(d, true[place(self.model, d.site)]) for d in self.dictionaries)
        error = {site: true[site] for site in self.written}
        for dictionary, cut, places in zip(self.dictionaries, cuts, self.places, strict=True):
            given = written_from(dictionary, cut, true[place(self.model, dictionary.site)])
            for at, part in zip(places, split(dictionary, given).values(), strict=True):
                error[at] = error[at] - part
        return CutLeaves(embedded, cuts, tuple(error[site] for site in self.written))

    def forward(
        self, leaves: CutLeaves, *, effect: Effect = "direct", sources: Iterable[int] = (), errors: bool = True
    ) -> Float[Tensor, "positions d_vocab"]:
        """Logits. At the true leaves and with errors they are the model's own, whatever the effect.

        Args:
            effect: "direct": every dictionary's latents and scale are taken from the leaves, and derivatives stop at
                all of them. "total": they are computed again along this pass, and derivatives go through; the
                leaves are then the embedded tokens, the errors, and what `sources` are.
            sources: with "total", numbers of the dictionaries whose latents are leaves all the same: those whose total effect is
                asked for.
            errors: whether the error of each written place is added; without them the dictionaries stand alone.

        Raises:
            InputError: for leaves of another replacement, an unknown effect, or sources that are not there.
        """
        return self._logits(self._walk(leaves.embedded, self.held(leaves, effect, sources), leaves.errors if errors else None, {}))

    def run(self, x: TokensLike | Float[Tensor, "positions d_model"], errors: Errors | None = None) -> Float[Tensor, "positions d_vocab"]:
        """Logits on the total way from tokens, or embedded tokens, alone: no latent is a leaf.

        Args:
            x: one prompt, as the attributions take it; or what stands before the first layer, [positions, d_model].
            errors: `CutLeaves.errors` of these tokens, as constants; None leaves them out.

        Raises:
            InputError: for tokens that are no prompt, or errors of another number of places.
        """
        embedded = x if isinstance(x, Tensor) and x.is_floating_point() else embed(self.model, self._ids(x))
        return self._logits(self._walk(embedded, {}, None if errors is None else self._checked(errors), {}))

    def values(
        self,
        leaves: CutLeaves,
        sites: Iterable[Site | str],
        *,
        effect: Effect = "direct",
        sources: Iterable[int] = (),
        errors: bool = True,
    ) -> dict[Site, Float[Tensor, "positions _"]]:
        """What stands at sites along the pass, computed no further than the last; where a dictionary writes, what is put there.

        The options are those of `forward`.

        Raises:
            InputError: for a site that the model does not have, and as `forward`.
        """
        return self.values_and_reads(leaves, sites, effect=effect, sources=sources, errors=errors)[0]

    def values_and_reads(
        self,
        leaves: CutLeaves,
        sites: Iterable[Site | str],
        *,
        effect: Effect = "direct",
        sources: Iterable[int] = (),
        errors: bool = True,
    ) -> tuple[dict[Site, Float[Tensor, "positions _"]], dict[int, Float[Tensor, "positions _"]]]:
        """`values`, and what each dictionary that is met on the way to the last of the sites reads, by its number: one pass for both."""
        wanted = [check_site(self.model, site, "sites") for site in sites]
        places = {place(self.model, site) for site in wanted}
        found: dict[Site, Tensor] = {}
        read: dict[int, Tensor] = {}
        for at, value in self._walk(leaves.embedded, self.held(leaves, effect, sources), leaves.errors if errors else None, read):
            if at in places:
                found[at] = value
            if found.keys() == places:
                break
        return {site: found[place(self.model, site)] for site in wanted}, read

    def reads(
        self, leaves: CutLeaves, *, effect: Effect = "direct", sources: Iterable[int] = (), errors: bool = True
    ) -> tuple[Float[Tensor, "positions _"], ...]:
        """What each dictionary reads along the pass. The options are those of `forward`.

        Raises:
            InputError: as `forward`.
        """
        read: dict[int, Tensor] = {}
        for _ in self._walk(leaves.embedded, self.held(leaves, effect, sources), leaves.errors if errors else None, read):
            if len(read) == len(self.dictionaries):
                break
        return tuple(read[number] for number in range(len(self.dictionaries)))

    def latents(
        self, leaves: CutLeaves, *, effect: Effect = "direct", sources: Iterable[int] = (), errors: bool = True
    ) -> tuple[Float[Tensor, " _"], ...]:
        """What every dictionary encodes of what it reads along the pass, at the latents of its leaves.

        These are targets: with "direct" their derivatives by the leaves' activations are the edges between cuts. At the true
        leaves they equal `leaves.activations`. The options are those of `forward`.

        Raises:
            InputError: as `forward`.
        """
        read = self.reads(leaves, effect=effect, sources=sources, errors=errors)
        pairs = zip(self.dictionaries, read, leaves.cuts, strict=True)
        return tuple(_latents_at(dictionary, x, cut.latents) for dictionary, x, cut in pairs)

    def _walk(
        self, embedded: Float[Tensor, "positions d_model"], held: Mapping[int, Cut], errors: Errors | None, read: dict[int, Tensor]
    ) -> Iterator[tuple[Site, Tensor]]:
        """Every place with its value. Dictionaries that are not in `held` are computed; what each reads is added to `read`."""
        constant = {} if errors is None else dict(zip(self.written, errors, strict=True))
        put = partial(self._put, _Pass(held, constant, read, {}))
        return walk(self.model, Site(0, "resid_pre"), embedded, policy=self.policy, put=put, attention=self.packed.attend)

    def putting(
        self, held: Mapping[int, Cut], errors: Mapping[Site, Tensor], written: dict[int, dict[Site, Tensor]], given: Site | None = None
    ) -> Put:
        """What stands at each place of one pass, for `walk`, whose values may have batch dimensions.

        Args:
            held: the dictionaries whose latents are given; the others are computed.
            errors: by place.
            written: what dictionaries write that have read already; what others write is added to it as they read.
            given: a place that already has its dictionaries' values.
        """
        return partial(self._put, _Pass(held, errors, {}, written, given))

    def _put(self, so_far: "_Pass", at: Site, value: Tensor) -> Tensor:
        """What stands at a place, after the dictionaries that read and write there and before others that read there."""
        own, others = self.readers.get(at, ((), ()))
        if at != so_far.given:
            for number in own:
                self._read(so_far, number, value)
            if parts := [written[at] for written in so_far.written.values() if at in written]:
                decoded = sum(parts[1:], parts[0])
                value = decoded + so_far.constant[at] if at in so_far.constant else decoded
        for number in others:
            self._read(so_far, number, value)
        return value

    def _read(self, so_far: "_Pass", number: int, x: Tensor) -> None:
        """Give a dictionary what it reads; what it writes waits for its places."""
        dictionary, cut = self.dictionaries[number], so_far.held.get(number)
        so_far.read[number] = x
        written = written_by(dictionary, x) if cut is None else written_from(dictionary, cut, x)
        so_far.written[number] = dict(zip(self.places[number], split(dictionary, written).values(), strict=True))

    def _logits(self, walked: Iterator[tuple[Site, Tensor]]) -> Float[Tensor, "positions d_vocab"]:
        for _, value in walked:
            last = value
        return unembed(self.model, last, policy=self.policy)

    def _ids(self, tokens: TokensLike) -> Int[Tensor, " positions"]:
        ids = to_batch(self.model, tokens)
        if ids.ndim != 1 or len(ids) == 0:
            raise InputError(f"tokens: shape {list(ids.shape)}; expected one prompt, [positions] with at least one. Call once for each.")
        return ids

    def held(self, leaves: CutLeaves, effect: Effect, sources: Iterable[int]) -> dict[int, Cut]:
        """The dictionaries that are taken from the leaves, by their numbers. Raises InputError as `forward`."""
        self._checked(leaves.errors)
        count, chosen = len(self.dictionaries), tuple(sources)
        if len(leaves.cuts) != count:
            raise InputError(f"leaves: cuts of {len(leaves.cuts)} dictionaries, but {count} are put in. Take them from this replacement.")
        if effect not in get_args(Effect):
            raise InputError(f"effect: {effect!r}; expected 'direct' or 'total'.")
        if effect == "direct" and chosen:
            raise InputError(
                f"sources: {list(chosen)} with effect='direct', where the latents of all dictionaries are leaves. Leave it out, or say "
                "effect='total'."
            )
        if outside := [number for number in chosen if not 0 <= number < count]:
            raise InputError(f"sources: {outside[0]}; expected numbers of dictionaries, from 0 to {count - 1}.")
        return {number: leaves.cuts[number] for number in (range(count) if effect == "direct" else chosen)}

    def _checked(self, errors: Errors) -> Errors:
        if len(errors) != len(self.written):
            raise InputError(
                f"errors: {len(errors)} of them, but {len(self.written)} places are written: {_list(self.written)}. Take them "
                "from this replacement's leaves."
            )
        return errors


# ------------------------------------------------------------------------------------ which ones go together


@takes(model=as_model, dictionaries=as_dictionaries)
def replace(model: Model, dictionaries: Sequence[Dictionary], *, policy: Policy = EXACT) -> Replacement:
    """The pure forward of a model in which dictionaries replace what they write.

    Args:
        dictionaries: one, or any number of any kinds, put in together. Several may read a place; one alone may write it, but for the layers
            of a cross-layer transcoder: dictionaries that read the same kind of site in different layers and write
            the same kind of site elsewhere, each from its own first site on where the earlier ones write too. Their sum is meant.
        policy: which of the model's nonlinearities are differentiated. Dictionaries' own are, always.

    Raises:
        InputError: where a dictionary does not fit the model, writes before it reads, or writes where another one does.
    """
    return put_together(model, {f"dictionaries[{number}]": dictionary for number, dictionary in enumerate(dictionaries)}, policy)


def put_together(model: Model, named: Mapping[str, Dictionary], policy: Policy) -> Replacement:
    """`replace` of dictionaries that errors are to name as the arguments that they came as."""
    # as everywhere, dictionaries are computed in the model's precision, where the model is
    put_in = {name: fitted(model, d.to(dtype=model.dtype, device=model.device), name) for name, d in named.items()}
    for name, dictionary in put_in.items():
        _check_places(model, dictionary, f"{name} ({dictionary.name})")
    _check_apart(model, put_in)
    return Replacement(model, tuple(put_in.values()), policy)


def _check_places(model: Model, dictionary: Dictionary, argument: str) -> None:
    places = [place(model, site) for site in dictionary.writes]
    if len({*places}) < len(places):
        raise InputError(f"{argument}: it writes {_list(dictionary.writes)}, of which two are the same place; expected each once.")


def _check_apart(model: Model, dictionaries: Mapping[str, Dictionary]) -> None:
    """Raises InputError where two dictionaries write one place and no sum of them is meant."""
    places = {name: [place(model, site) for site in dictionary.writes] for name, dictionary in dictionaries.items()}
    for (first, a), (second, b) in combinations(dictionaries.items(), 2):
        shared = [at for at in places[second] if at in places[first]]
        if shared and not _are_layers(*sorted((a, b), key=lambda d: d.site.depth)):
            raise InputError(
                f"{first} ({a.name}, at {_list(a.writes)}) and {second} ({b.name}, at {_list(b.writes)}) both replace {shared[0]}; "
                "expected one dictionary for each place, or layers of one cross-layer transcoder, whose sum is meant. "
                "(resid_post of a layer is resid_pre of the next.) Leave one out."
            )


def _are_layers(early: Dictionary, late: Dictionary) -> bool:
    """Whether two dictionaries are layers of one cross-layer transcoder, by their sites.

    Each writes a run of one kind of site, begun where the earlier one's run is already under way, and the runs agree as far as both
    go: (0, 1, 2) and (1, 2), or, where runs have a fixed length, (0, 1) and (1, 2). A transcoder of one layer that begins in
    the midst of a longer run, (0, 1, 2) and (1), claims the whole of what is there, so it is none. Of a part that was constrained
    to some layers the run of the whole is looked at.
    """
    if early.site.kind != late.site.kind or early.site.layer == late.site.layer:
        return False
    before, after = (d.config.part_of or d.writes for d in (early, late))
    is_own = any(site.depth == d.site.depth for d, run in ((early, before), (late, after)) for site in run)
    if is_own or len({site.kind for site in (*before, *after)}) > 1:
        return False
    begin = before.index(after[0]) if after[0] in before else 0
    rest = before[begin:]
    return begin > 0 and after[: len(rest)] == rest


def _list(sites: Iterable[Site]) -> str:
    return ", ".join(map(str, sites))
