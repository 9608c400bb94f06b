"""Every active latent of a prompt ablated by itself, or in pairs, as few batched passes.

What an ablation at position p changes lies behind the dictionary's first written place and at positions from p on (at all of them,
where attention sees both ways). So the pass
before that place is made once; those at one position go on from there together, [ablations, T - p, d_model], with the keys and values
of the positions before p; and of the last stream only what is read is unembedded. An ablation puts

    Δ = Σ_i (to_i - a_i) D_i

to what the dictionary writes at p: its own latents are those of the pass without ablation, and others' are computed again, or stay.

Where everything behind is held (patterns, norms, and every MLP, by the policy or by a dictionary whose latents stay), what is read is
affine in the a_i. Then (to_i - a_i) · ∂read/∂a_i is the change exactly, and one sweep has that of all latents and pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_bytes, as_dictionaries, as_dictionary, as_model, takes
from attrib.causal.ablations import Ablations
from attrib.causal.readout import Readout, of_tokens, readout
from attrib.causal.splicing import Clean, Pass, Splice, splice
from attrib.core.finite import of_prompt, require_finite
from attrib.core.positions import PositionsLike, positions_in
from attrib.core.room import memory_named
from attrib.core.types import EXACT, BudgetError, InputError, Policy, Progress, Site, SparseLatents, TopLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.tokens import TokensLike, to_prompts
from attrib.models.transformer import Model, base_site, embed, place, unembed
from attrib.passes.behind import batches
from attrib.passes.beside import Recorded, read_beside, walk_beside
from attrib.passes.packed import widest
from attrib.paths.targets import LogitsLike, as_logits, read_site, top_tokens


@memory_named("ablating")
@takes(model=as_model, dictionary=as_dictionary, dictionaries=as_dictionaries, budget=as_bytes)
def ablate_each(
    model: Model,
    dictionary: Dictionary,
    tokens: TokensLike,
    *,
    logits: LogitsLike = TopLogits(),  # noqa: B008
    metric: Any = None,
    pairs: bool = False,
    latents: Any = None,
    at: PositionsLike = None,
    to: Any = 0.0,
    dictionaries: Sequence[Dictionary] = (),
    effect: Any = "total",
    errors: Any = True,
    policy: Policy = EXACT,
    method: Any = "auto",
    dtype: torch.dtype | str | None = None,
    budget: int = 2**29,
    progress: Progress | None = None,
) -> Ablations:
    """What each active latent of prompts does: the logits, or a metric, where it is ablated and nothing else is.

    Args:
        dictionary: whose latents are ablated, one by one.
        tokens: prompts of any lengths, as the attributions take them.
        logits: what is read at the last position: `TokenLogits`, `Difference` or `Direction`; or `TopLogits`, those that are largest
            without ablation.
        metric: a number from a prompt's logits, in place of `logits`.
        pairs: ablates two latents of a prompt at a time, every pair of them, in place of one.
        latents: the numbers of those that are ablated where they are active; None is all.
        at: the positions at which they are.
        to: what an ablated latent becomes: a number, or one for each latent of the dictionary, such as their means.
        dictionaries: others that are put in as well, behind or before it.
        effect, errors: as `intervene` takes them; one for each is in the order dictionary, *dictionaries.
        policy: what is held at its value without edits, as `intervene` takes it.
        method: "passes" computes every ablation; "auto" takes the derivative where that is exact.
        dtype: in which all is computed; None is the model's.
        budget: bytes that a batch may take.
        progress: called with how many prompts of all are done.

    Raises:
        InputError: as `intervene`; for `latents`, `at` and `to` that do not fit, and where no latent that is asked for is active.
        BudgetError: where one ablation alone takes more.
        NotFiniteError: where a pre-activation or a logit is NaN or infinite.
    """
    if method not in ("auto", "passes"):
        raise InputError(f"method: {method!r}; expected 'auto' or 'passes'.")
    if metric is not None and not callable(metric):
        raise InputError(f"metric: {metric!r:.80}; expected a function of a prompt's logits. Choices of logits are given as `logits`.")
    model = model if dtype is None else model.to(dtype=dtype)
    made = splice(model, [dictionary, *dictionaries], effect, errors, policy)
    chosen = None if latents is None else _numbers(latents, made.dictionaries[0])
    becomes = _becomes(to, made.dictionaries[0])
    what = _what(model, logits) if metric is None else metric
    prompts = to_prompts(model, tokens)
    found = []
    for number, ids in enumerate(prompts):
        with of_prompt(number), torch.no_grad():
            ground = _ground(made, ids, what)
            active = _asked(ground.latents, chosen, None if at is None else _positions(at, len(ids), number))
            one = _Prompt(made, ground, active, becomes[active.latent] - active.value, budget, number)
            sets = _sets(len(active.latent), pairs)
            is_affine = method == "auto" and isinstance(ground.read, Readout) and _is_affine(made)
            ablated = _by_derivative(one, sets) if is_affine else _by_passes(one, sets)
        found.append(
            Ablations(
                torch.full((len(sets),), number), active.position[sets], active.latent[sets], active.value[sets], ground.base[None],
                ablated, (ground.labels,),
            )
        )  # fmt: skip
        if progress is not None:
            progress(number + 1, len(prompts))
    if not sum(len(each) for each in found):
        raise InputError(f"tokens: none of the latents of {dictionary.name} that were asked for is active; ask for others.")
    return Ablations.joined(found)


# ------------------------------------------------------------------------------- the pass without ablation


class Ground(NamedTuple):
    """The pass without ablation, of one prompt."""

    clean: Clean
    """The model's own, at whose values things are held."""
    recorded: Recorded
    """This one, in whose midst ablations begin."""
    under_way: Pass
    latents: SparseLatents
    """The active ones of the dictionary."""
    scale: Float[Tensor, "positions 1"]
    start: Site
    last: Float[Tensor, "positions d_model"]
    read: "Readout | Callable[[Tensor], Tensor]"
    base: Float[Tensor, " read"]
    labels: tuple[str, ...]


def _ground(made: Splice, ids: Int[Tensor, " positions"], what: Any) -> Ground:
    model = made.model
    start = min(made.replaced.places[0], key=lambda site: site.depth)
    embedded = embed(model, ids)
    clean = made.clean(embedded)
    kept: list[tuple[Tensor, Tensor]] = []
    values: dict[Site, Tensor] = {}
    under_way = Pass(clean, {})
    wanted = {start, model.config.last, base_site(start) or start}
    begin, put = Site(0, "resid_pre"), partial(made.stands, under_way)
    walked = walk_beside(model, clean.recorded, begin, embedded, policy=made.policy, put=put, kept=kept)
    for site, value in walked:
        if (at := place(model, site)) in wanted:
            values[at] = value
    keys, heads = zip(*kept, strict=True)
    recorded = Recorded(values, dict(enumerate(keys)), dict(enumerate(heads)), {})
    cut = made.latents_of(under_way, 0)
    last = values[model.config.last]
    read, labels, base = _base(made, clean, last, what)
    return Ground(clean, recorded, under_way, cut.latents, cut.scale.scale, start, last, read, base, labels)


def _base(
    made: Splice, clean: Clean, last: Float[Tensor, "positions d_model"], what: Any
) -> tuple[Any, tuple[str, ...], Float[Tensor, " read"]]:
    """What is read, its labels, and its value without ablation."""
    if isinstance(what, TopLogits):
        logits = read_beside(made.model, clean.recorded, _unembedding(made), last[-1:], slice(-1, None), made.policy)[0]
        require_finite({"the logits": logits[None]}, from_below=True)
        what = of_tokens(made.model, top_tokens(logits.log_softmax(-1), what).tolist())
    if isinstance(what, Readout):
        base = what(clean.recorded, last[-1:], slice(-1, None), made.policy)[0]
        require_finite({"what is read": base[None]}, from_below=True)
        return what, what.labels, base
    base = what(made.unembed(clean, last))
    if not isinstance(base, Tensor) or base.ndim > 1:
        came = f"a tensor of shape {list(base.shape)}" if isinstance(base, Tensor) else type(base).__name__
        raise InputError(f"metric: it gives {came}; expected one number, or a row of them, as a tensor.")
    count = base.numel()
    return what, ("metric",) if count == 1 else tuple(f"metric {n}" for n in range(count)), base.reshape(count)


def _unembedding(made: Splice) -> Callable[[Tensor], Tensor]:
    return lambda x: unembed(made.model, x, policy=made.policy)


# ----------------------------------------------------------------------------------------- one prompt


class _Prompt(NamedTuple):
    """What is ablated in one prompt, and where from."""

    made: Splice
    ground: Ground
    active: SparseLatents
    moved: Float[Tensor, " active"]
    """By how much each latent's value changes when it is ablated."""
    budget: int
    number: int

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return len(self.ground.last)

    def first_moved(self, position: int) -> int:
        """The first position at which something moves with what is written at one."""
        return self.made.model.config.seeing(position, self.length).start

    def beside(self, delta: Float[Tensor, "*batch rows d_out"], first: int) -> Float[Tensor, "*batch rows d_model"]:
        """The last stream of the positions from `first` on, where this is added to what the dictionary writes there."""
        made, ground, rows = self.made, self.ground, slice(first, None)
        start, model = ground.start, self.made.model
        by_place = made.at_places(0, delta)
        under_way = Pass(ground.clean, {}, first, started=start)
        for number, dictionary in enumerate(made.dictionaries):
            reads = place(model, dictionary.site)
            if reads.depth < start.depth or (reads == start and number in made.replaced.readers[start][0]):
                before = ground.under_way
                under_way.written[number] = {at: part[rows] for at, part in before.written[number].items()}
                if number in before.moved:
                    under_way.moved[number] = {at: part[rows] for at, part in before.moved[number].items()}
        under_way.written[0] = {at: part + by_place[at] for at, part in under_way.written[0].items()}
        if made.errors[0] == "live":
            moved = under_way.moved.get(0, {})
            under_way.moved[0] = {at: moved[at] + part if at in moved else part for at, part in by_place.items()}
        x = ground.recorded.values[start][rows] + by_place[start]
        beneath = base_site(start)
        base = None if beneath is None else ground.recorded.values[beneath][rows].expand(*x.shape[:-1], -1)
        walked = walk_beside(
            model, ground.recorded, start, x, base, first=first, policy=made.policy, held=ground.clean.recorded,
            put=partial(made.stands, under_way),
        )  # fmt: skip
        *_, (_, last) = walked
        return last

    def deltas(self, sets: Int[Tensor, "batch size"], first: int) -> Float[Tensor, "batch rows d_out"]:
        """What ablations add to what the dictionary writes."""
        dictionary, members = self.made.dictionaries[0], sets.flatten()
        position = self.active.position[members]
        size = self.moved[members, None] * self.ground.scale[position]
        rows = size * dictionary.decoder_rows(self.active.latent[members]).to(size.dtype)
        delta = rows.new_zeros(len(sets), self.length - first, dictionary.d_out)
        of_set = torch.arange(len(sets), device=sets.device).repeat_interleave(sets.shape[1])
        return delta.index_put((of_set, position - first), rows, accumulate=True)

    def read(self, last: Float[Tensor, "batch rows d_model"], first: int) -> Float[Tensor, "batch read"]:
        """What is read of the last streams of ablations that begin at a position."""
        ground, made = self.ground, self.made
        if isinstance(ground.read, Readout):
            return ground.read(ground.clean.recorded, last[:, -1:], slice(-1, None), made.policy)[:, 0]
        before = made.unembed(ground.clean, ground.last)[:first]
        each = (torch.cat([before, made.unembed(ground.clean, rows, first)]) for rows in last)
        return torch.stack([ground.read(logits).reshape(-1) for logits in each])


def _by_passes(prompt: _Prompt, sets: Int[Tensor, "sets size"]) -> Float[Tensor, "sets read"]:
    found = prompt.ground.base.new_empty(len(sets), len(prompt.ground.base))
    for first, which in _batches(prompt, sets):
        last = prompt.beside(prompt.deltas(sets[which], first), first)
        found[which] = prompt.read(last, first)
    require_finite({"what is read under an ablation": found}, from_below=True, position=prompt.active.position[sets[:, 0]])
    return found


def _batches(prompt: _Prompt, sets: Int[Tensor, "sets size"]) -> Iterator[tuple[int, Int[Tensor, " batch"]]]:
    """Ablations that go on together, by the position at which the first of them begins."""

    def fit(rows: int) -> int:
        least = bytes_of(prompt.made, rows, prompt.length)
        if least > prompt.budget:
            raise BudgetError.of(prompt.budget, prompt.number, least)
        return prompt.budget // least

    begins = [prompt.first_moved(position) for position in prompt.active.position[sets].amin(-1).tolist()]
    return batches(torch.tensor(begins, dtype=torch.int64, device=sets.device), prompt.length, fit)


def bytes_of(made: Splice, rows: int, keys: int) -> int:
    """About as much as one ablation takes at its fullest: an MLP's rows, scores beside them, or a dictionary's."""
    encoded = max((d.d_sae for d in made.dictionaries[1:]), default=0)
    of_row = widest(made.model.config, keys, encoded) + made.dictionaries[0].d_out
    return rows * of_row * made.model.params.W_E.element_size()


# ------------------------------------------------------------------------------------- where it is affine


def _is_affine(made: Splice) -> bool:
    """Whether what is read is an affine function of what the dictionary writes: nothing behind it bends."""
    model, start = made.model, min(made.replaced.places[0], key=lambda site: site.depth)
    if made.policy[:2] != ("frozen", "frozen") or "live" in made.errors:
        return False
    behind = [n for n, d in enumerate(made.dictionaries) if n and place(model, d.site).depth >= start.depth]
    if any(made.effects[n] == "total" for n in behind):
        return False
    held = {at for places in made.replaced.places for at in places}
    mlps = [Site(layer, "mlp_out") for layer in range(model.config.n_layers)]
    return made.policy.mlp == "frozen" or all(at in held for at in mlps if at.depth > start.depth)


def _by_derivative(prompt: _Prompt, sets: Int[Tensor, "sets size"]) -> Float[Tensor, "sets read"]:
    active, dictionary = prompt.active, prompt.made.dictionaries[0]
    if not len(active.latent):
        return prompt.ground.base.new_empty(0, len(prompt.ground.base))
    first = prompt.first_moved(int(active.position.min()))
    rows = prompt.ground.scale[active.position] * dictionary.decoder_rows(active.latent)

    def read(values: Float[Tensor, " active"]) -> Float[Tensor, " read"]:
        delta = rows.new_zeros(prompt.length - first, dictionary.d_out).index_put(
            (active.position - first,), values[:, None] * rows, accumulate=True
        )
        return prompt.read(prompt.beside(delta, first)[None], first)[0]

    gradient = torch.func.jacrev(read, chunk_size=16)(torch.zeros_like(active.value))
    return prompt.ground.base + (gradient * prompt.moved).T[sets].sum(1)


# ------------------------------------------------------------------------------------------ what is asked


def _what(model: Model, logits: LogitsLike) -> "Readout | TopLogits":
    what = as_logits(logits)
    if isinstance(what, TopLogits):
        read_site(model, what)
        return what
    return readout(model, what, "logits")


def _sets(count: int, pairs: bool) -> Int[Tensor, "sets size"]:
    if not pairs:
        return torch.arange(count)[:, None]
    return torch.tensor([*combinations(range(count), 2)], dtype=torch.int64).reshape(-1, 2)


def _asked(latents: SparseLatents, chosen: Tensor | None, positions: Sequence[int] | None) -> SparseLatents:
    keep = torch.ones_like(latents.latent, dtype=torch.bool)
    if chosen is not None:
        keep &= torch.isin(latents.latent, chosen)
    if positions is not None:
        keep &= torch.isin(latents.position, torch.tensor(sorted(positions), device=keep.device))
    return SparseLatents(*(column[keep] for column in latents))


def _positions(at: PositionsLike, length: int, number: int) -> list[int]:
    try:
        return positions_in(at, length, number)
    except InputError as error:
        raise InputError(f"at: {str(error).removeprefix('positions: ')}") from error


def _numbers(latents: Any, dictionary: Dictionary) -> Int[Tensor, " latents"]:
    try:
        chosen = torch.as_tensor(latents).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        chosen = torch.empty(0)
    is_whole = len(chosen) and not chosen.is_floating_point() and chosen.dtype != torch.bool
    if not is_whole or not bool(((chosen >= 0) & (chosen < dictionary.d_sae)).all()):
        raise InputError(f"latents: {latents!r:.80}; expected whole numbers from 0 to {dictionary.d_sae - 1}, which {dictionary.name} has.")
    return chosen.to(dictionary.params.b_enc.device)


def _becomes(to: Any, dictionary: Dictionary) -> Float[Tensor, " d_sae"]:
    given = torch.as_tensor(to) if isinstance(to, int | float | Sequence | np.ndarray | Tensor) and not isinstance(to, str) else None
    if given is None or given.dtype == torch.bool:
        raise InputError(f"to: {to!r:.80}; expected a number, or one for each of {dictionary.d_sae} latents.")
    value = given.to(dictionary.params.b_enc)
    if value.ndim > 1 or (value.ndim == 1 and len(value) != dictionary.d_sae) or not bool(value.isfinite().all()):
        raise InputError(f"to: shape {list(value.shape)}; expected one finite number, or one for each of {dictionary.d_sae} latents.")
    return value.expand(dictionary.d_sae)
