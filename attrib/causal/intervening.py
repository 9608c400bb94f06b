"""Interventions: what a model computes where some of it is put to something else."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.adapters.given import as_bytes, as_dictionaries, as_model, takes
from attrib.causal.changes import Change, Edited, Place, changes_of, edited_by, together
from attrib.causal.edits import EditsLike, Latents, What, as_edits, name_of
from attrib.causal.readout import readout
from attrib.causal.references import settled
from attrib.causal.splicing import BUDGET, NOTHING, Pass, Splice, by_place, splice
from attrib.core.room import memory_named
from attrib.core.shown import in_one_line
from attrib.core.types import EXACT, ErrorAt, InputError, Policy, Site
from attrib.dictionaries.dictionary import Dictionary, encode, pre_activations
from attrib.models.tokens import TokensLike, prompts_in, to_prompts
from attrib.models.transformer import Model, place
from attrib.paths.targets import LogitsLike

Metric = Callable[[Float[Tensor, "positions d_vocab"]], Tensor] | LogitsLike
"""A function of a prompt's logits; or a choice of logits at its last position, as `attrib.latent_to_logit` takes it."""


@in_one_line
class PreActivations(NamedTuple):
    """What a dictionary's encoder gives before the activation rule: of one latent, several, or all (None). To be read, not edited."""

    dictionary: "Dictionary | str | Site | int"
    latents: "int | Sequence[int] | None" = None


@memory_named("intervening")
@takes(model=as_model, dictionaries=as_dictionaries, budget=as_bytes)
def intervene(
    model: Model,
    dictionaries: Sequence[Dictionary],
    tokens: TokensLike,
    edits: EditsLike = (),
    *,
    effect: Any = "total",
    errors: Any = True,
    policy: Policy = EXACT,
    metric: Metric | None = None,
    values: Any = None,
    dtype: torch.dtype | str | None = None,
    budget: int = BUDGET,
) -> Any:
    """What the model computes under edits, with dictionaries in it; docs/interventions.md has the mathematics.

    A pure function of the edits' values for every transform of torch.func: at what the pass has without edits, the derivative by the
    value of a `Set` of latents is the gradient of `attrib.latent_to_logit`.

    Args:
        dictionaries: one, several or none (an empty list), put in together as `attrib.replace` does it.
        tokens: prompts of any lengths, as the attributions take them. Many go through one pass together.
        edits: `Set`, `Scale`, `Add`, `Ablate`, or their text, one or a list. Edits of one thing are made in their order.
        effect: "total", latents are computed along the pass; "direct", those that are not edited stay what they are without edits. One
            for all dictionaries, or one for each.
        errors: True, what a dictionary does not decode stays what it is without edits; False, it is left out; "live", it is computed along
            the pass, so that a dictionary that is not edited changes nothing. One for all dictionaries, or one for each.
        policy: what is held at its value without edits: attention patterns, norm denominators, MLP outputs. EXACT holds nothing.
        metric: gives this of each prompt in place of its logits. A function is asked of one prompt at a time, in their order.
        values: gives these in place of logits: what stands at sites and heads, the latents (or pre-activations) that a dictionary
            encodes along the pass, before it is edited, and the errors that are added.
        dtype: in which all is computed; None is the model's.
        budget: bytes that prompts may take that go together; one that takes more goes by itself.

    Returns:
        For one prompt its logits [positions, d_vocab], for several a list of them. With `metric` a tensor, its first dimension the prompts
        where there are several. With `values` a dict from what was asked to its value, or a list of dicts.

    Raises:
        InputError: for edits, positions, dictionaries and options that cannot be, and for edits that lie behind all `values`.
        NotFiniteError: where a pre-activation is NaN or infinite.
    """
    if metric is not None and values is not None:
        raise InputError("metric: it has no effect beside values; give one of them.")
    model = model if dtype is None else model.to(dtype=dtype)
    made = splice(model, dictionaries, effect, errors, policy)
    asked = as_edits(edits)
    of_prompt = settled(made, asked, budget)
    wanted = None if values is None else _wanted(made, values)
    chosen = None if metric is None or callable(metric) else readout(model, metric, "metric")
    items, is_batch = prompts_in(tokens)
    prompts = to_prompts(model, items)
    found: list[Any] = []
    beside = 2 * model.config.d_vocab if wanted is None and chosen is None else 0
    known: dict[Place, list[Change]] = {each.place: [] for each in (wanted or {}).values() if isinstance(each.place, ErrorAt)}
    for some, packed, embedded in made.side_by_side(prompts, budget, beside):
        of_each = [changes_of(model, made.dictionaries, of_prompt(n, len(prompts[n])), len(prompts[n]), n) for n in some]
        changes = together(of_each, packed.starts)
        _check(made, changes, wanted)
        with packed.named(some.start):
            clean = made.clean(embedded, packed=packed) if made.asks_clean else NOTHING
            under_way = Pass(clean, known | by_place(changes), packed=packed)
            if wanted is not None:
                found += _values(made, under_way, embedded, wanted)
                continue
            *_, (_, last) = made.walk(under_way, embedded)
            if chosen is not None:
                read = chosen(clean.recorded, last[packed.ends], packed.ends, policy)
                found += read[:, 0] if chosen.is_number else read
                continue
            logits = packed.each(made.unembed(clean, last))
        for one in logits:
            found.append(one if metric is None else _number(metric(one), found))
    if metric is not None and is_batch:
        return torch.stack(found)
    return found if is_batch else found[0]


def _number(given: Any, others: Sequence[Tensor]) -> Tensor:
    """What a metric gave of a prompt, of the shape that it gave of the others."""
    if not isinstance(given, Tensor):
        raise InputError(f"metric: it gives {type(given).__name__}; expected a tensor.")
    if others and given.shape != others[0].shape:
        shapes = f"{list(given.shape)} of prompt {len(others)} and {list(others[0].shape)} of the first"
        raise InputError(f"metric: it gives shape {shapes}; expected one shape.")
    return given


# ---------------------------------------------------------------------------------------- what is read

Wanted = dict[What | PreActivations, Edited]


def _wanted(made: Splice, values: Any) -> Wanted:
    """What is asked for, by the words in which it was."""
    found: Wanted = {}
    is_one = isinstance(values, What | PreActivations) or not isinstance(values, Sequence)
    for what in [values] if is_one else values:
        of = Latents(*what) if isinstance(what, PreActivations) else what
        found[_as_key(what)] = edited = edited_by(made.model, made.dictionaries, of, "values")
        if made.leaves_out(edited.place):
            raise InputError(f"values: {name_of(of)}, and errors=False leaves it out; leave one of them out.")
    if not found:
        raise InputError("values: none; expected sites, Latents, PreActivations, Head or ErrorAt. Leave it out for logits.")
    return found


def _as_key(what: Any) -> Any:
    """A key of a dict: lists of latents and heads as tuples."""
    if not hasattr(what, "_fields"):
        return what
    return type(what)(*(tuple(part) if isinstance(part, list) else part for part in what))


def _values(
    made: Splice, under_way: Pass, embedded: Float[Tensor, "rows d_model"], wanted: Wanted
) -> list[dict[What | PreActivations, Tensor]]:
    """What was asked for of each prompt, computed no further than the last of it."""
    last = max(_depth(made, edited) for edited in wanted.values())
    stood = {}
    for stands_at, value in made.walk(under_way, embedded):
        stood[at := place(made.model, stands_at)] = value
        if at.depth >= last:
            break
    found: list[dict[What | PreActivations, Tensor]] = [{} for _ in under_way.packed.lengths]
    for what, (where, columns, shape) in wanted.items():
        match where:
            case int():
                value = (pre_activations if isinstance(what, PreActivations) else encode)(made.dictionaries[where], under_way.read[where])
            case ErrorAt(site=site):
                value = under_way.error[Site.parse(site)]
            case _:
                value = stood[where]
        value = value if columns is None else value.index_select(-1, torch.tensor(columns, device=value.device))
        for of_prompt, rows in zip(found, under_way.packed.each(value.reshape(*value.shape[:-1], *shape)), strict=True):
            of_prompt[what] = rows
    return found


def _depth(made: Splice, edited: Edited) -> tuple[int, int]:
    """When in the pass it is known."""
    match edited.place:
        case int() as number:
            return place(made.model, made.dictionaries[number].site).depth
        case ErrorAt(site=site):
            return Site.parse(site).depth
    return edited.place.depth


# ----------------------------------------------------------------------------------- what cannot be


def _check(made: Splice, changes: Sequence[Change], wanted: Wanted | None) -> None:
    """Raises InputError for edits that could change nothing."""
    for change in changes:
        if made.leaves_out(change.place):
            raise InputError(f"{change.text}: errors=False leaves that error out; leave the edit out, or keep the errors.")
        if wanted is not None and made.first_moved(change.place).depth > max(_depth(made, edited) for edited in wanted.values()):
            raise InputError(f"{change.text}: it lies behind all of `values`, so it would change nothing; leave it out.")
