"""Dictionaries put in on the way from a source to a target: the pass that has them in it, and what is to be passed.

What they mean is `attrib.replace`'s: source and cuts are put in together, and the target is read off that pass. Here is
what a sweep needs to know of it, and the same as a plain function of the source.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.sparse import union
from attrib.core.types import Effect, InputError, Logits, Policy, Site, SparseLatents
from attrib.dictionaries.dictionary import Dictionary, encode_sparse
from attrib.engine.blocks.passing import Between, Passing, place_of
from attrib.models.transformer import Model, embed, place
from attrib.passes.behind import Known, known_replaced
from attrib.passes.replacement import CutLeaves, Replacement, put_together


@dataclass(frozen=True)
class Cuts:
    """What is put in between two sites."""

    replaced: Replacement
    """The source is its first dictionary, where there is one."""
    has_source: bool
    effect: Effect
    held: frozenset[Site]
    """The places written between the ends, as `place_of` names them."""
    passed: tuple[int, ...]
    """Numbers of the dictionaries that derivatives pass: for direct effects those with a skip connection, and that alone of them."""

    def __repr__(self) -> str:
        return f"Cuts({self.replaced}, {self.effect}, held at {', '.join(sorted(map(str, self.held))) or 'no place'})"

    @property
    def passed_dictionaries(self) -> list[Dictionary]:
        """Those dictionaries."""
        return [self.replaced.dictionaries[number] for number in self.passed]

    @property
    def leaves_of(self) -> tuple[int, ...]:
        """For total effects, whose latents are leaves all the same: the source's."""
        return (0,) if self.has_source and self.effect == "total" else ()

    def leaves(
        self, tokens: Int[Tensor, " positions"], error: bool, true: Mapping[Site, Float[Tensor, "positions _"]] | None = None
    ) -> CutLeaves:
        """The true leaves; without the source's error, where it is to be left out.

        Args:
            true: the values at `replaced.sites`, where they are at hand; else a pass of the model finds them.
        """
        found = self.replaced.leaves(tokens) if true is None else self.replaced.leaves_of(embed(self.replaced.model, tokens), true)
        if error or not self.has_source:
            return found
        written = {place(self.replaced.model, site) for site in self.replaced.dictionaries[0].writes}
        sites = zip(self.replaced.written, found.errors, strict=True)
        return found._replace(errors=tuple(torch.zeros_like(value) if site in written else value for site, value in sites))

    def function(
        self,
        tokens: Int[Tensor, " positions"],
        site: Site,
        error: bool,
        errors_among: Int[Tensor, " sources"] | None = None,
        beside: Float[Tensor, "positions d_model"] | None = None,
        also: SparseLatents | None = None,
    ) -> Callable[[Float[Tensor, " sources"]], Float[Tensor, "positions _"]]:
        """What stands at a site, by the source's latents or the tokens' scales.

        Args:
            errors_among: the sources' numbers, where those below 0 are the source's errors.
            beside: what stands where a token's scale is 0; None is nothing.
            also: latents that are sources too, active or not.
        """
        true = cache(lambda: self._with(self.leaves(tokens, error), also))  # which takes a pass of its own, so only where it is called
        written = {place(self.replaced.model, at) for at in self.replaced.dictionaries[0].writes} if self.has_source else set()

        def value_at_site(values: Float[Tensor, " sources"]) -> Float[Tensor, "positions _"]:
            leaves = true()
            if errors_among is not None:
                scales = values.index_select(0, (errors_among < 0).nonzero().squeeze(1))[:, None]
                values = values.index_select(0, (errors_among >= 0).nonzero().squeeze(1))
                sites = zip(self.replaced.written, leaves.errors, strict=True)
                leaves = leaves._replace(errors=tuple(value * scales if at in written else value for at, value in sites))
            if self.has_source:
                leaves = leaves.with_activations((values, *leaves.activations[1:]))
            elif beside is None:
                leaves = leaves._replace(embedded=leaves.embedded * values[:, None])
            else:
                leaves = leaves._replace(embedded=beside + (leaves.embedded - beside) * values[:, None])
            return self.replaced.values(leaves, [site], effect=self.effect, sources=self.leaves_of)[site]

        return value_at_site

    def known(self, tokens: Int[Tensor, " positions"], error: bool, writes: Sequence[Site], site: Site) -> Known:
        """The pass to a site that others go beside.

        Args:
            writes: where the source writes, up to the path's end; none where tokens are the source.
        """
        return known_replaced(self.replaced, self.leaves(tokens, error), self.effect, self.leaves_of, writes, site)

    def _with(self, leaves: CutLeaves, also: SparseLatents | None) -> CutLeaves:
        """Leaves whose first dictionary has other latents among its own."""
        if also is None:
            return leaves
        first, *rest = leaves.cuts
        return leaves._replace(cuts=(first._replace(latents=union(first.latents, also)[0]), *rest))

    def between(self, read: Sequence[Float[Tensor, "positions _"]]) -> Between:
        """What a sweep meets, from what each passed dictionary reads at the primal."""
        is_total = self.effect == "total"
        pairs = zip(self.passed_dictionaries, read, strict=True)
        return Between(self.held, tuple(Passing(d, x, encode_sparse(d, x) if is_total else nothing(x), is_total) for d, x in pairs))


def nothing(x: Float[Tensor, "positions d_in"]) -> SparseLatents:
    """No latents, of a dictionary that reads x."""
    none = torch.zeros(0, dtype=torch.int64, device=x.device)
    return SparseLatents(none, none, x.new_zeros(0))


def cuts_between(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | Logits | object,
    start: Site,
    stop: Site,
    cuts: Sequence[Dictionary],
    effect: Effect,
    policy: Policy,
) -> Cuts | None:
    """What is put in between, or None where nothing is and the source writes at one place.

    Args:
        start, stop: the ends of the path.
        cuts: the dictionaries that are put in, neither end among them; see `apart_from`.

    Raises:
        InputError: for what is not a dictionary, an unknown effect, or dictionaries that do not go together.
    """
    if effect not in get_args(Effect):
        raise InputError(f"effect: {effect!r}; expected 'direct' or 'total'.")
    if not cuts and (source is None or len(source.writes) == 1):
        return None
    named = ({} if source is None else {"source": source}) | {f"cuts[{number}]": cut for number, cut in enumerate(cuts)}
    # a target that writes where it reads takes what is brought to its place, so no cut may stand there too
    own_place = place_of(target.site) if isinstance(target, Dictionary) and target.site in target.writes else None
    together = put_together(model, named | ({"target": target} if isinstance(target, Dictionary) and own_place else {}), policy)
    replaced = replace(together, dictionaries=together.dictionaries[: len(named)])

    def is_between(site: Site) -> bool:
        is_after = source is None or site.depth > place_of(start).depth
        return is_after and (site.depth < stop.depth or (site.depth == stop.depth and own_place != place_of(stop)))

    def is_passed(cut: Dictionary) -> bool:
        is_after = source is None or cut.site.depth >= place_of(start).depth
        return (effect == "total" or cut.has_skip) and is_after and not held.isdisjoint(map(place_of, cut.writes))

    held = frozenset(at for d in replaced.dictionaries for site in d.writes if is_between(at := place_of(site)))
    first = len(named) - len(cuts)
    passed = tuple(number for number, d in enumerate(replaced.dictionaries) if number >= first and is_passed(d))
    return Cuts(replaced, source is not None, effect, held, passed)


def apart_from(cuts: Sequence[Dictionary], *ends: object) -> tuple[Dictionary, ...]:
    """The cuts without those that are an end of the path, which is a leaf, or read before it writes.

    Raises:
        InputError: for what is not a dictionary.
    """
    given = (cuts,) if isinstance(cuts, Dictionary) else tuple(cuts)
    for number, cut in enumerate(given):
        if not isinstance(cut, Dictionary):
            raise InputError(f"cuts[{number}]: {type(cut).__name__}; expected dictionaries. Load them with load_dictionary.")
    dictionaries = [end for end in ends if isinstance(end, Dictionary)]
    return tuple(cut for cut in given if not any(is_same(cut, end) for end in dictionaries))


def is_same(a: Dictionary, b: Dictionary) -> bool:
    """Whether two dictionaries are one."""
    return a is b or (a.site == b.site and a.writes == b.writes and a.fingerprint == b.fingerprint)
