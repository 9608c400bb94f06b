"""One pass with dictionaries in it and edits on the way.

Dictionary d reads x_d and has the latents a_d; edits make a'_d of them. At a written place w, with m_w what the model computes there,

    y_w   = Σ_d decode_d(a'_d)_w + x_d W_skip_d + e_w        and then edits of the place itself
    a_d   = encode_d(x_d) on this pass, "total"; or as they are without edits, "direct"
    e_w   = the error without edits (True), nothing (False), or this pass's own, m_w - Σ_d decode_d(encode_d(x_d))_w - x_d W_skip_d ("live")

With a live error, y_w = m_w + decode(a') - decode(encode(x)): a dictionary that nobody edits is not there at all. Held errors and direct
latents are those of the pass without edits and dictionaries, the model's own.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

from jaxtyping import Float, Int
from torch import Tensor

from attrib.causal.changes import Change, Place, changed
from attrib.core.shown import in_one_line
from attrib.core.types import EXACT, Effect, ErrorAt, InputError, Policy, Site, SparseLatents
from attrib.dictionaries.dictionary import Dictionary, decode, encode, encode_sparse, normalise_input, skip, split
from attrib.models.transformer import Model
from attrib.passes.beside import UNRECORDED, Recorded, places_held, record, unembed_beside, walk_beside
from attrib.passes.packed import ALONE, Packed, Together, side_by_side, widest
from attrib.passes.replacement import Cut, Replacement, put_together, written_by, written_from

BUDGET = 2**29
"""Bytes that a pass of several prompts may take, where nobody says otherwise."""

Errors = bool | Literal["live"]
"""What becomes of what a dictionary does not decode: held as it is without edits, left out, or computed along the pass."""


@in_one_line
class Clean(NamedTuple):
    """What a pass takes from the model's own: each part is empty where nothing asks for it."""

    recorded: Recorded
    cuts: dict[int, Cut]
    errors: dict[Site, Float[Tensor, "positions _"]]


NOTHING = Clean(UNRECORDED, {}, {})


@dataclass
class Pass:
    """One pass under way: what has come up so far. It lives as long as the pass."""

    clean: Clean
    changes: Mapping[Place, Sequence[Change]]
    """By place. An error that has none, but stands here, is to be known."""
    first: int = 0
    """The position of the first row."""
    read: dict[int, Tensor] = field(default_factory=dict)
    """What each dictionary reads."""
    written: dict[int, Mapping[Site, Tensor]] = field(default_factory=dict)
    """What each dictionary writes at each of its places."""
    moved: dict[int, Mapping[Site, Tensor]] = field(default_factory=dict)
    """By how much that differs from what it would write unedited on this pass; left out where it does not."""
    error: dict[Site, Tensor] = field(default_factory=dict)
    """The error that was added at each place."""
    started: Site | None = None
    """A place whose value is given, so that what writes there is not asked."""
    packed: Packed = ALONE
    """How the rows of several prompts lie in it."""


@dataclass(frozen=True)
class Splice:
    """A model with dictionaries in it, and for each of them where its latents and errors come from."""

    replaced: Replacement
    effects: tuple[Effect, ...]
    errors: tuple[Errors, ...]
    policy: Policy = EXACT

    @property
    def model(self) -> Model:
        """The model."""
        return self.replaced.model

    @property
    def dictionaries(self) -> tuple[Dictionary, ...]:
        """The dictionaries, as they read and write the model."""
        return self.replaced.dictionaries

    def writers(self, at: Site) -> list[int]:
        """The dictionaries that write at a place."""
        return [number for number, places in enumerate(self.replaced.places) if at in places]

    def error_at(self, at: Site) -> Errors:
        """What becomes of the error of a written place."""
        return self.errors[self.writers(at)[0]]

    def leaves_out(self, at: Place) -> bool:
        """Whether it is an error that no place has."""
        return isinstance(at, ErrorAt) and self.error_at(Site.parse(at.site)) is False

    def first_moved(self, at: Place) -> Site:
        """The first place at which a change moves something."""
        match at:
            case int():
                return min(self.replaced.places[at], key=lambda site: site.depth)
            case ErrorAt(site=site):
                return Site.parse(site)
        return at

    @property
    def asks_clean(self) -> bool:
        """Whether something is held as it is in the model's own pass."""
        return "direct" in self.effects or any(errors is True for errors in self.errors) or self.policy != EXACT

    # ----------------------------------------------------------------------------------------- the pass

    def clean(self, embedded: Float[Tensor, "rows d_model"], also: Iterable[Site] = (), packed: Packed = ALONE) -> Clean:
        """The model's own pass, and all that may be held of it.

        Args:
            also: places whose values are to be recorded besides.
            packed: how the rows of several prompts lie in `embedded`.
        """
        places = {*places_held(self.model, self.policy), *self.replaced.sites, *also}
        recorded = record(self.model, embedded, places, patterns=self.policy.attention == "frozen", packed=packed)
        leaves = self.replaced.leaves_of(embedded, recorded.values)
        return Clean(recorded, dict(enumerate(leaves.cuts)), dict(zip(self.replaced.written, leaves.errors, strict=True)))

    def side_by_side(self, prompts: Sequence[Int[Tensor, " _"]], budget: int, beside: int = 0) -> Iterator[Together]:
        """Prompts that go through one pass, which may take so many bytes; `beside` is how many numbers each row takes at its end."""
        config = self.model.config
        encoded = max((2 * dictionary.d_sae for dictionary in self.dictionaries), default=0)

        def of_row(longest: int) -> int:
            patterns = config.n_heads * longest if self.policy.attention == "frozen" else 0
            values = 4 * config.d_model if self.policy.norm == "frozen" else 0
            return max(widest(config, longest, encoded) + config.n_layers * (patterns + values), beside)

        return side_by_side(self.model, prompts, of_row, budget)

    def walk(self, under_way: Pass, x: Float[Tensor, "*batch rows d_model"], layer: int = 0) -> Iterator[tuple[Site, Tensor]]:
        """Every site with its value, from what stands before a layer on."""
        start, put = Site(layer, "resid_pre"), partial(self.stands, under_way)
        return walk_beside(self.model, under_way.clean.recorded, start, x, policy=self.policy, put=put, packed=under_way.packed)

    def unembed(self, clean: Clean, last: Float[Tensor, "*batch rows d_model"], first: int = 0) -> Float[Tensor, "*batch rows d_vocab"]:
        """Logits of the last stream, of the positions from `first` on."""
        return unembed_beside(self.model, clean.recorded, last, first=first, policy=self.policy)

    def stands(self, under_way: Pass, at: Site, value: Float[Tensor, "*batch rows _"]) -> Float[Tensor, "*batch rows _"]:
        """What stands at a place: behind the dictionaries that read and write there and the place's own edits, before other readers."""
        own, others = self.replaced.readers.get(at, ((), ()))
        if at != under_way.started:
            for number in own:
                self._read(under_way, number, value)
            if at in self.replaced.written:
                value = self._written(under_way, at, value)
            for change in under_way.changes.get(at, ()):
                value = changed(change, value)
        for number in others:
            self._read(under_way, number, value)
        return value

    def _written(self, under_way: Pass, at: Site, value: Tensor) -> Tensor:
        writers, mode = self.writers(at), self.error_at(at)
        changes = under_way.changes.get(ErrorAt(at))
        if mode == "live" and changes is None:
            moved = [under_way.moved[number][at] for number in writers if number in under_way.moved]
            return value + sum(moved[1:], moved[0]) if moved else value
        parts = [under_way.written[number][at] for number in writers]
        decoded = sum(parts[1:], parts[0])
        if mode is False:
            return decoded
        error = self._live_error(under_way, at, value) if mode == "live" else under_way.clean.errors[at][under_way.first :]
        for change in changes or ():
            error = changed(change, error)
        under_way.error[at] = error
        return decoded + error

    def _live_error(self, under_way: Pass, at: Site, value: Tensor) -> Tensor:
        for number in self.writers(at):
            value = value - under_way.written[number][at]
            value = value + under_way.moved[number][at] if number in under_way.moved else value
        return value

    def _read(self, under_way: Pass, number: int, x: Float[Tensor, "*batch rows d_in"]) -> None:
        """Give a dictionary what it reads; what it writes waits for its places."""
        under_way.read[number] = x
        dictionary, is_live, is_total = self.dictionaries[number], self.errors[number] == "live", self.effects[number] == "total"
        changes, places = under_way.changes.get(number, ()), self.replaced.places[number]
        # what it decodes is taken away again with a live error, so it is needed only where that error is asked for
        is_needed = not (is_live and is_total) or any(ErrorAt(at) in under_way.changes for at in places)
        under_way.written[number] = {}
        if not changes and not is_needed:
            return
        cut = None if is_total else under_way.clean.cuts[number].rows(under_way.first)
        written: Tensor | None = None
        moved: Tensor | None = None
        if changes:
            scale = normalise_input(dictionary, x)[1] if cut is None else cut.scale
            before = encode(dictionary, x) if cut is None else dense(cut.latents, x.shape[-2], dictionary.d_sae)
            after = before
            for change in changes:
                after = changed(change, after)
            if is_needed:
                written = decode(dictionary, after, scale)
                written = written + skip(dictionary, x) if dictionary.has_skip else written
            if is_live and is_total:
                moved = (after - before) @ dictionary.decoder().to(x.dtype) * scale.scale
        else:
            written = written_by(dictionary, x) if cut is None else written_from(dictionary, cut, x)
        if is_live and cut is not None and written is not None:
            moved = written - written_by(dictionary, x)
        if written is not None:
            under_way.written[number] = self.at_places(number, written)
        if moved is not None:
            under_way.moved[number] = self.at_places(number, moved)

    def latents_of(self, under_way: Pass, number: int) -> Cut:
        """The active latents of a dictionary that nobody edits, and its scale, on a pass that has met it."""
        if self.effects[number] == "direct":
            return under_way.clean.cuts[number]
        dictionary, x = self.dictionaries[number], under_way.read[number]
        return Cut(encode_sparse(dictionary, x), normalise_input(dictionary, x)[1])

    def at_places(self, number: int, written: Float[Tensor, "*batch rows d_out"]) -> dict[Site, Float[Tensor, "*batch rows _"]]:
        """What a dictionary writes, by place."""
        return dict(zip(self.replaced.places[number], split(self.dictionaries[number], written).values(), strict=True))


def dense(latents: SparseLatents, rows: int, d_sae: int) -> Float[Tensor, "rows d_sae"]:
    """Sparse latents as an array of all."""
    return latents.value.new_zeros(rows, d_sae).index_put((latents.position, latents.latent), latents.value)


# ------------------------------------------------------------------------------------------ what is asked


def splice(model: Model, dictionaries: Sequence[Dictionary], effect: Any = "total", errors: Any = True, policy: Policy = EXACT) -> Splice:
    """The model with dictionaries in it.

    Args:
        effect, errors: one for all dictionaries, or one for each.

    Raises:
        InputError: where dictionaries do not fit the model or each other, as `attrib.replace` has it; for another effect or choice of
            errors, or another number of them; and where dictionaries that write one place say different things of its error.
    """
    if not isinstance(policy, Policy) or not {*policy} <= {"exact", "frozen"}:
        raise InputError(f"policy: {policy!r}; expected EXACT, LINEAR or Policy(attention, norm, mlp), each 'exact' or 'frozen'.")
    names = {f"dictionaries[{number}]": d for number, d in enumerate(dictionaries)}
    replaced = put_together(model, names, policy)
    effects = _for_each(effect, get_args(Effect), len(names), "effect")
    of_errors = _for_each(errors, (True, False, "live"), len(names), "errors")
    made = Splice(replaced, effects, of_errors, policy)
    for at in replaced.written:
        if len(said := {str(of_errors[number]) for number in made.writers(at)}) > 1:
            raise InputError(
                f"errors: {', '.join(sorted(said))} for the dictionaries that write {at} together, whose error is one; expected one choice."
            )
    return made


def _for_each(given: Any, known: tuple[Any, ...], count: int, argument: str) -> tuple[Any, ...]:
    """One choice for each dictionary."""
    is_one = isinstance(given, str | bool) or not isinstance(given, Sequence)
    chosen = (given,) * count if is_one else tuple(given)
    for one in [given] if is_one else chosen:
        if not any(type(one) is type(word) and one == word for word in known):
            raise InputError(f"{argument}: {one!r}; expected {', '.join(map(repr, known))}, for all dictionaries or for each.")
    if len(chosen) != count:
        raise InputError(f"{argument}: {len(chosen)} of them for {count} dictionaries; expected one for all, or one for each.")
    return chosen


def by_place(changes: Iterable[Change]) -> dict[Place, list[Change]]:
    """Changes by where they work, in their order."""
    found = defaultdict(list)
    for change in changes:
        found[change.place].append(change)
    return dict(found)
