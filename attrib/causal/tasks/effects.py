"""What each latent does for the right answer: by gradient and by ablation, in one call for many prompts.

Let y(a) be the signed difference of a prompt (answering.py) as a function of one dictionary's active latents a, all other dictionaries
standing in the pass and encoding anew what they read. For a latent i and the chosen positions P,

    by gradient   Σ_p∈P a_pi · ∂y/∂a_pi
    by ablation   y(a) - y(a with a_pi = 0 for all p in P)

Both are positive where the latent speaks for the right answer. They are equal where y is linear between the two points.
(Attribution patching: Nanda 2023; latents of dictionaries: Marks et al. 2024, eq. 2.)
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import vjp, vmap

from attrib.adapters.given import as_bytes, as_dictionaries, as_model, takes
from attrib.causal.ablating import ablate_each
from attrib.causal.tasks.answering import against, answer_logits, items_of
from attrib.causal.tasks.examples import Example, Item
from attrib.causal.tasks.spliced import BUDGET, Spliced, moved, spliced, together
from attrib.core.finite import of_prompt, require_finite
from attrib.core.positions import Positions, PositionsLike, chosen_positions, plain_positions
from attrib.core.room import memory_named
from attrib.core.shown import in_one_line
from attrib.core.types import InputError, TokenLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model
from attrib.passes.packed import packs, widest
from attrib.passes.replacement import Replacement, replace

By = Literal["gradient", "ablation"]


@in_one_line
class Effects(NamedTuple):
    """One row for each (prompt, dictionary, latent) that is active at a chosen position; sorted so."""

    prompt: Int[Tensor, " rows"]
    dictionary: Int[Tensor, " rows"]
    """By its number among those of the call."""
    latent: Int[Tensor, " rows"]
    activation: Float[Tensor, " rows"]
    """The sum over the chosen positions."""
    positions: Int[Tensor, " rows"]
    """At how many of them it is active."""
    effect: Float[Tensor, " rows"]
    """In logits; NaN where only activations were asked for."""
    kept: Bool[Tensor, " rows"]
    """Whether the answer is right without this latent; of a gradient, whether it is right with it."""


@torch.inference_mode(False)  # in which nothing can be differentiated; Lightning predicts in it
@memory_named("computing effects of latents")
@takes(model=as_model, dictionaries=as_dictionaries, budget=as_bytes)
def latent_effects(
    model: Model,
    batch: Sequence[Example] | Sequence[Item],
    dictionaries: Sequence[Dictionary],
    *,
    by: str = "gradient",
    errors: bool = False,
    positions: PositionsLike = "last",
    budget: int = BUDGET,
) -> Effects:
    """What each active latent of each dictionary does for the signed difference of each prompt.

    Args:
        batch: examples, or what `encoded` makes of them; each prompt has its own answers, and the sign of its label.
        dictionaries: at least one; put in together, as for `logit_differences`, and errors as there.
        by: "gradient" is a pass forward and one back for each dictionary; "ablation" one forward for each latent, many at a time.
        positions: at which of them latents are looked at; an ablation takes a latent out at all of them at once.
        budget: bytes of working memory for ablations; how many go side by side follows from it.

    Raises:
        InputError: as `logit_differences`; for no dictionaries, and positions that a prompt has not.
        BudgetError: where one ablation alone takes more.
        NotFiniteError: where a value is NaN or infinite.
    """
    if by not in get_args(By):
        raise InputError(f"by: {by!r}; expected 'gradient' or 'ablation'.")
    if not dictionaries:
        raise InputError("dictionaries: none given; expected at least one, whose latents are looked at.")
    items, replaced = items_of(model, batch), replace(model, dictionaries)
    plain = plain_positions(positions, [len(item.ids) for item in items])
    passes = spliced(replaced, [item.ids for item in items], errors=errors)
    return effects_of(replaced, passes, items, cast(By, by), plain, budget)


def effects_of(
    replaced: Replacement,
    passes: Sequence[Spliced],
    items: Sequence[Item],
    by: By | None,
    positions: Positions,
    budget: int = BUDGET,
) -> Effects:
    """The effects of prompts at their passes; None is the activations alone."""
    numbers = range(len(replaced.dictionaries))
    slopes = _slopes(replaced, passes, items) if by == "gradient" else [[None] * len(numbers)] * len(items)
    found = []
    for prompt, (at, item) in enumerate(zip(passes, items, strict=True)):
        with of_prompt(prompt):
            rows = _joined([_of_one(replaced, at, item, number, by, slopes[prompt][number], positions, budget) for number in numbers])
            require_finite({"the effects of latents": rows.effect} if by else {}, position=torch.full_like(rows.latent, len(item.ids) - 1))
        found.append(rows._replace(prompt=torch.full_like(rows.latent, prompt)))
    return _joined(found)


def _joined(parts: Sequence[Effects]) -> Effects:
    """The rows of several, one behind the other."""
    return Effects(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


Slope = tuple[Float[Tensor, " active"], bool]
"""The derivative of a prompt's difference by the active latents of a dictionary, and whether its answer is right."""


def _slopes(replaced: Replacement, passes: Sequence[Spliced], items: Sequence[Item]) -> list[tuple[Slope | None, ...]]:
    """For each prompt those of each dictionary."""
    config = replaced.model.config
    encoded = max(dictionary.d_sae for dictionary in replaced.dictionaries)

    def of_row(keys: int) -> int:  # all layers are held until the pass back has gone through them
        return config.n_layers * widest(config, keys) + widest(config, keys, encoded)

    found: list[tuple[Slope | None, ...]] = []
    for some in packs([len(item.ids) for item in items], of_row, BUDGET // replaced.model.dtype.itemsize):
        here, mine = passes[some.start : some.stop], items[some.start : some.stop]
        found += zip(*(_slopes_by(replaced, here, mine, number) for number in range(len(replaced.dictionaries))), strict=True)
    return found


@torch.enable_grad()
def _slopes_by(replaced: Replacement, passes: Sequence[Spliced], items: Sequence[Item], number: int) -> list[Slope]:
    """For each prompt that of one dictionary: a pass forward and one back for all prompts."""
    many, leaves = together(replaced, passes)

    def differences(values: Float[Tensor, " active"]) -> tuple[Tensor, ...]:
        last = moved(many, leaves, number, values, errors=passes[0].errors)[many.packed.ends]
        each = [against(answer_logits(many.model, row, item), len(item.right)) for row, item in zip(last, items, strict=True)]
        return tuple(map(torch.stack, zip(*each, strict=True)))

    # prompts see nothing of each other, so the derivative of all differences' sum has each prompt's own
    (difference, margin), pull, *_ = vjp(differences, leaves.cuts[number].latents.value)
    (gradient,) = pull((torch.ones_like(difference), torch.zeros_like(margin)))
    parts = gradient.detach().split([len(each.leaves.cuts[number].latents.value) for each in passes])
    return [*zip(parts, (margin.detach() > 0).tolist(), strict=True)]


def _of_one(
    replaced: Replacement, at: Spliced, item: Item, number: int, by: By | None, slope: Slope | None, positions: Positions, budget: int
) -> Effects:
    position, latent, value = at.leaves.cuts[number].latents
    chosen = torch.isin(position, chosen_positions(positions, len(item.ids), position.device))
    latents, of_node = latent[chosen].unique(return_inverse=True)  # sorted

    def summed(nodes: Float[Tensor, " chosen"]) -> Float[Tensor, " latents"]:
        return nodes.new_zeros(len(latents)).index_add(0, of_node, nodes)

    def answer(values: Float[Tensor, " active"]) -> Float[Tensor, " tokens"]:
        return answer_logits(replaced.model, moved(replaced, at.leaves, number, values, errors=at.errors)[-1], item)

    count, n_right = torch.zeros_like(latents).index_add(0, of_node, torch.ones_like(of_node)), len(item.right)
    effect, kept = value.new_full((len(latents),), torch.nan), torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
    if slope is not None:
        effect, kept = summed((value * slope[0])[chosen]), kept.fill_(slope[1])
    elif by == "ablation" and len(latents):
        alone = _alone(replaced, at, item, number, latents, position[chosen], budget) if int(count.max()) == 1 else None
        if alone is None:
            node = chosen.nonzero().flatten()
            alone = _together(answer, value, node, of_node, len(latents), _at_once(replaced, len(item.ids), budget))
        without, whole = (against(each, n_right) for each in alone)
        effect, kept = whole[0] - without[0], without[1] > 0
    zeros = torch.zeros_like(latents)
    return Effects(zeros, zeros + number, latents, summed(value[chosen]), count, effect, kept)


Ablated = tuple[Float[Tensor, "latents tokens"], Float[Tensor, "latents tokens"]]
"""The answers' logits without each latent, and those of the pass as it is, as the same products give them."""


def _alone(
    replaced: Replacement,
    at: Spliced,
    item: Item,
    number: int,
    latents: Int[Tensor, " latents"],
    position: Int[Tensor, " latents"],
    budget: int,
) -> Ablated | None:
    """Ablations of latents that are active at one position each: only what lies behind it is computed.

    None where rounding has another latent active on that pass, which makes its beginning by other products.
    """
    others = [dictionary for place, dictionary in enumerate(replaced.dictionaries) if place != number]
    read = TokenLogits((*item.right, *item.wrong))
    places = sorted(set(position.tolist()))
    found = ablate_each(
        replaced.model, replaced.dictionaries[number], [item.ids], logits=read, at=places, dictionaries=others, errors=at.errors,
        method="passes", budget=budget,
    )  # fmt: skip
    order = found.latent[:, 0].argsort()
    if not torch.equal(found.latent[order, 0], latents):
        return None
    return found.ablated[order], found.base.expand(len(latents), -1)


@torch.no_grad()
def _together(
    answer: Callable[[Tensor], Tensor],
    value: Float[Tensor, " active"],
    node: Int[Tensor, " chosen"],
    of_node: Int[Tensor, " chosen"],
    count: int,
    at_once: int,
) -> Ablated:
    """Ablations of latents at several positions at once, the whole pass for each.

    The pass as it is goes along with each chunk, so that what a latent does not move comes out as exactly nothing.
    """
    without, whole = [], []
    for first in range(0, count, at_once):
        some = range(first, min(first + at_once, count))
        left = torch.ones(len(some) + 1, len(value), dtype=value.dtype, device=value.device)
        mine = (of_node >= some.start) & (of_node < some.stop)
        left[of_node[mine] - first + 1, node[mine]] = 0
        logits = vmap(answer)(value * left)
        without.append(logits[1:])
        whole.append(logits[:1].expand(len(some), -1))
    return torch.cat(without), torch.cat(whole)


def _at_once(replaced: Replacement, positions: int, budget: int) -> int:
    """How many ablations fit side by side: the widest layer of each, and what later dictionaries encode."""
    wide = widest(replaced.model.config, positions, 2 * max(dictionary.d_sae for dictionary in replaced.dictionaries))
    return max(1, budget // (positions * wide * replaced.model.dtype.itemsize))
