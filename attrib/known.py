"""The work of a prompt whose active latents are counted before anything is computed: of dictionaries that keep k of them."""

from collections import Counter

from jaxtyping import Int
from torch import Tensor

from attrib.cone import pieces_of
from attrib.dictionary import Dictionary
from attrib.model import Model
from attrib.paths import start_site, stop_site
from attrib.reading import Positions, chosen_positions
from attrib.task import Task
from attrib.types import Difference, Direction, Logits, Policy, Tokens, TopLogits


def is_known(source: Dictionary | None, target: Dictionary | Logits, is_cut: bool) -> bool:
    """Whether `known_task` knows. Where dictionaries are put in, it is not known what stands between."""
    return not is_cut and all(d.config.k is not None for d in (source, target) if isinstance(d, Dictionary))


def known_task(
    model: Model,
    source: Dictionary | None,
    target: Dictionary | Logits,
    ids: Int[Tensor, " positions"],
    policy: Policy,
    positions: Positions,
    itemsize: int,
    active: int | None = None,
) -> Task:
    """The work of a prompt.

    Args:
        active: latents at each position; None is k.
    """
    length = len(ids)

    def count(dictionary: Dictionary) -> int:
        return min(active or dictionary.config.k or 0, dictionary.d_sae)

    if isinstance(target, Dictionary):
        rows, at = count(target), positions
    else:
        rows, at = logits_at_most(target), -1 if positions is None else positions
    times = Counter(chosen_positions(at, length, ids.device).tolist())
    targets = tuple(rows * times[position] for position in range(length))
    sources = (1 if source is None else count(source),) * length
    ends = start_site(source), stop_site(model, target, (source,))
    return Task(model.config, policy, *ends, (targets,), (sources,), itemsize, pieces=pieces_of(model.device))


def logits_at_most(what: Logits) -> int:
    """Rows at each position."""
    match what:
        case TopLogits(k=k):
            return k
        case Tokens(tokens=tokens):
            return len(tokens)
        case Difference() | Direction():
            return 1
