"""One prompt's forward pass with something added where leaves stand: the function that edges are derivatives of, for changes of any size.

At a place w that the source or a cut writes stands what stood there truly, plus what its writers have changed:

    y_w = true_w + Σ_d (c_d(x_d) - c_d(x_d⁰))_w + δ_w,      c_d = skip_d (direct) or decode_d(encode_d(·)) + skip_d (total)

with x⁰ the true values and δ what an intervention adds. That is `attrib.replace`'s pass (docs/cuts.md) said by its changes: latents of
a direct cut stand still, those of a total one are encoded anew, errors never move. Everything else is the model's own pass, from
the first changed place on, and many interventions run side by side. Nothing here is shared with the sweeps that edges come from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from jaxtyping import Float, Int
from torch import Tensor

from attrib.causal.readout import narrowed
from attrib.core.types import EXACT, Effect, Policy, Site, UnsupportedError
from attrib.dictionaries.dictionary import Dictionary, decode_at, encode_sparse, normalise_input, reconstruct, skip, split
from attrib.models.transformer import Model, Put, base_site, place, unembed
from attrib.passes.beside import UNRECORDED, Recorded, places_held, read_beside, record, walk_beside
from attrib.passes.capture import capture

Change = Mapping[Site, Float[Tensor, "*batch positions _"]]
"""What is added at places, by the name that `place` gives them."""


@dataclass(frozen=True)
class Nudged:
    """A prompt's pass from a place on.

    Args:
        start: where it begins, by the name that `place` gives it; before it nothing changes.
        source: a dictionary whose latents are changed; its places do not follow what the model computes there.
        cuts: what is put in besides.
        error: whether the source's error is there at the primal.
    """

    model: Model
    tokens: Int[Tensor, " positions"]
    start: Site
    source: Dictionary | None
    cuts: tuple[Dictionary, ...]
    effect: Effect
    policy: Policy
    error: bool = True
    stands: frozenset[Site] = frozenset()
    """Other places at which nothing moves but what is added: MLPs that are nodes of a graph."""
    also: frozenset[Site] = frozenset()
    """Where other passes of the prompt begin, which take the true values of this one."""
    whole: "Nudged | None" = None
    """The same from an earlier place, whose true values and whatever it holds are this one's too; `start` is among its `also`."""

    def __post_init__(self) -> None:
        if self.policy.mlp == "relp":
            raise UnsupportedError(
                "policy: relp holds ratios of activations, which no intervention on the model does; measure edges of EXACT or LINEAR."
            )

    @cached_property
    def true(self) -> dict[Site, Tensor]:
        """The values of the model's own pass, by place, where something is read, written or begun."""
        if self.whole is not None:
            return self.whole.true
        model, begins = self.model, {self.start, *self.also}
        sites = begins | {base for each in begins if (base := base_site(each)) is not None}
        sites |= self.stands | {place(model, site) for one in self._put_in for site in (one.site, *one.writes)}
        return capture(model, self.tokens, sites)

    @cached_property
    def offset(self) -> dict[Site, Tensor]:
        """What is added at places at the primal already: less the source's error, where that is left out."""
        return {} if self.error or self.source is None else {at: -self.error_at(at) for at in self.written_by(self.source)}

    @property
    def _put_in(self) -> tuple[Dictionary, ...]:
        return self.cuts if self.source is None else (self.source, *self.cuts)

    def written_by(self, one: Dictionary) -> frozenset[Site]:
        """The places that a dictionary writes."""
        return frozenset(place(self.model, site) for site in one.writes)

    def error_at(self, at: Site) -> Float[Tensor, "positions _"]:
        """What stands at a place beyond what the dictionaries that are put in write there."""
        error = self.true[at]
        for one in self._put_in:
            if at not in self.written_by(one):
                continue
            x = self.true[place(self.model, one.site)]
            latents = encode_sparse(one, x)
            written = decode_at(one, latents.value, latents.position, latents.latent, normalise_input(one, x)[1]) + skip(one, x)
            error = error - sum(part for site, part in split(one, written).items() if place(self.model, site) == at)
        return error

    def written_by_latents(
        self, one: Dictionary, position: Int[Tensor, " rows"], latent: Int[Tensor, " rows"]
    ) -> dict[Site, Float[Tensor, "rows _"]]:
        """What a unit of each of some latents writes at each place, as decoding has it for what the dictionary reads."""
        x = self.true[place(self.model, one.site)]
        scale = normalise_input(one, x)[1].scale.index_select(0, position)
        rows = one.decoder_rows(latent).to(x.dtype) * scale
        return {place(self.model, site): part for site, part in split(one, rows).items()}

    @cached_property
    def _writers(self) -> frozenset[Site]:
        """Places at which what the model brings is not looked at."""
        return self.stands.union(*map(self.written_by, self._put_in))

    @cached_property
    def _held(self) -> Recorded:
        """What the policy freezes, as it is where nothing is changed."""
        if self.policy == EXACT:
            return UNRECORDED
        if self.whole is not None:
            return self.whole._held
        places, patterns = places_held(self.model, self.policy), self.policy.attention == "frozen"
        x, base = self._begins({}, None)
        return record(self.model, x, places, start=self.start, base=base, patterns=patterns, put=self._put({}, {}))

    def values(
        self,
        change: Change,
        sites: Iterable[Site],
        scaled: Float[Tensor, "*batch positions width"] | None = None,
        *,
        brought: bool = False,
    ) -> dict[Site, Float[Tensor, "*batch positions _"]]:
        """What stands at sites where `change` is added.

        Args:
            scaled: what stands at `start` before any dictionary reads it, in place of the true value: changed embeddings.
            brought: give what the model brings to the sites, which is what a dictionary reads that writes there.
        """
        wanted = {place(self.model, site): site for site in sites}
        batch = max((each.shape[:-2] for each in (*change.values(), scaled) if each is not None), key=len, default=())
        found: dict[Site, Tensor] = {}
        for at, value, before in self._walk(change, scaled):
            if at in wanted:
                stands = before if brought else value
                found[wanted[at]] = stands.expand(*batch, *stands.shape[-2:])  # where nothing moves, all passes are one
            if len(found) == len(wanted):
                break
        return found

    def lost(self, change: Change, scaled: Float[Tensor, "passes positions width"] | None, passes: int) -> list[str]:
        """Of each of some passes side by side, the first place at which a value is no longer finite, by name; "" where all are."""
        found = [""] * passes
        for at, value, before in self._walk(change, scaled):
            is_known = (value.isfinite().flatten(-2).all(-1) & before.isfinite().flatten(-2).all(-1)).expand(passes)
            for number in (~is_known).nonzero()[:, 0].tolist():
                found[number] = found[number] or str(at)
            if all(found):
                break
        return found

    def primal(self, site: Site) -> Float[Tensor, "positions _"]:
        """What stands at a site with no change, computed once."""
        if site not in self._primal:
            self._primal.update(self.values({}, [site]))
        return self._primal[site]

    @cached_property
    def _primal(self) -> dict[Site, Tensor]:
        return {}

    def logits(
        self, last: Float[Tensor, "*batch positions d_model"], positions: Int[Tensor, " read"], tokens: Int[Tensor, " tokens"]
    ) -> Float[Tensor, "*batch read tokens"]:
        """Some logits at some positions of what stands at the end of the stream; what the policy freezes is held here too."""
        narrow = narrowed(self.model, tokens)
        function = partial(unembed, narrow, policy=self.policy)
        return read_beside(narrow, self._held, function, last.index_select(-2, positions), positions, self.policy)

    def _walk(self, change: Change, scaled: Tensor | None) -> Iterable[tuple[Site, Tensor, Tensor]]:
        """Each place, with what stands there and what the model brings there."""
        before: dict[Site, Tensor] = {}
        x, base = self._begins(change, scaled)
        put = self._put(change, before)
        for at, value in walk_beside(self.model, self._held, self.start, x, base, policy=self.policy, put=put):
            named = place(self.model, at)
            yield named, value, before.get(named, value)

    def _begins(self, change: Change, scaled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What stands at `start`, and the stream to which that is added."""
        base, x = base_site(self.start), self.true[self.start] if scaled is None else scaled
        if base is None:
            return x, None
        batch = max((tuple(each.shape[:-2]) for each in (*change.values(), x)), key=len)
        return x.expand(*batch, -1, -1), self.true[base].expand(*batch, -1, -1)

    def _put(self, change: Change, before: dict[Site, Tensor]) -> Put:
        """What stands at each place of one pass; what the model brings there is added to `before`."""
        true, moved = self.true, dict[Site, Tensor]()

        def put(at: Site, value: Tensor) -> Tensor:
            before[at] = value
            own = [cut for cut in self._read_at(at) if at in self.written_by(cut)]
            for cut in own:
                self._reads(cut, value, moved)
            if at in self._writers:
                value = true[at]
                for part in (moved.get(at), self.offset.get(at)):
                    value = value if part is None else value + part
            if at in change:
                value = value + change[at]
            for cut in self._read_at(at):
                if cut not in own:
                    self._reads(cut, value, moved)
            return value

        return put

    def _read_at(self, at: Site) -> list[Dictionary]:
        return [cut for cut in self.cuts if place(self.model, cut.site) == at and (self.effect == "total" or cut.has_skip)]

    def _reads(self, cut: Dictionary, x: Float[Tensor, "*batch positions d_in"], moved: dict[Site, Tensor]) -> None:
        """Add what a cut writes more than it truly does, at its places."""
        writes = reconstruct if self.effect == "total" else skip
        truly = self.true[place(self.model, cut.site)]
        for site, part in split(cut, writes(cut, x) - writes(cut, truly)).items():
            at = place(self.model, site)
            moved[at] = moved[at] + part if at in moved else part
