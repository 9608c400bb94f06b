"""What a call needs of memory at the least, prompt by prompt: what a budget that is too small, or a result that is too large, is told by.

Where all active latents are counted beforehand (dictionaries of k places, and no cuts) nothing is computed for it. Else every
prompt's path is opened once for the error alone, so that what it names is enough for the whole call.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

from jaxtyping import Int
from torch import Tensor
from torch.utils import _pytree as pytree

from attrib.attribution.opening import Counts, Opening, counts_known, known_task, opening_of, positions_read
from attrib.core.positions import Positions
from attrib.core.room import free_memory
from attrib.core.rules import USUAL, Ablation, Gradient, GradientTimesActivation, IntegratedGradients, Rule
from attrib.core.types import BudgetError, EdgeKind, Effect, Keep, Policy
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.fit import fitted
from attrib.engine.path import Path
from attrib.engine.plan.choose import least_memory
from attrib.engine.plan.result import check_fits, fits, result_bytes
from attrib.engine.plan.task import Task
from attrib.engine.precision import FLOAT64, Precision
from attrib.engine.tiles import LEAST_FOR_SAMPLES, sampled_task, task_of
from attrib.engine.transforms import WorkingMemory, with_writes, working_memory
from attrib.models.transformer import Model, width
from attrib.paths.ends import stop_site
from attrib.paths.path import Asked, path_of, start_site

Ids = Int[Tensor, " positions"]


@dataclass(frozen=True)
class Needs:
    """A call, as far as its memory depends on it."""

    kind: EdgeKind
    model: Model
    source: Dictionary | None
    target: Any
    cuts: Sequence[Dictionary]
    effect: Effect
    policy: Policy
    positions: Positions
    error: bool
    precision: Precision
    is_reference: bool
    """Whether torch.func computes it, row by row."""
    rows: int
    """How many rows of the first prompt are computed again in float64."""
    keep: Keep
    budget: int
    rule: Rule = USUAL
    others: Sequence[Tensor] | None = None
    """The prompts that the rule compares with, each as long as the call's."""
    is_error_source: bool = False

    def check(self, prompts: Sequence[Tensor], *, result: bool = True) -> None:
        """Raise what the budget, or the memory for the result, would raise at some prompt, as far as it is known beforehand.

        Args:
            result: whether the result has to fit into memory. A plan only tells its size.
        """
        counts = Counter(map(len, prompts))  # prompts of one length need the same
        known = {length: self._known(length) for length in counts}
        if max(known.values()) > self.budget:
            self.refuse(prompts, [known[len(ids)] for ids in prompts])
        if self.is_known and result:
            self._check_result({self._task(length): count for length, count in counts.items()}, free_memory())

    def refuse(self, prompts: Sequence[Tensor], known: Sequence[int] = ()) -> NoReturn:
        """Raise BudgetError with what is enough for all prompts.

        Args:
            known: what each of them is known to need; left out where that was enough, and an open path has asked for more.
        """
        found = list(known)
        if not (self.is_known or self.is_metric) or not known:
            found = [self._counted(ids, each, 0 if number else self.rows) for number, (ids, each) in enumerate(self.opened_paths(prompts))]
        number = max(range(len(prompts)), key=found.__getitem__)
        raise BudgetError.of(self.budget, number, found[number])

    def in_precision(self) -> tuple[Model, Dictionary | None, Any, dict[str, Any]]:
        """Model, ends and what is put in, in the precision of the path, on the model's device, and without autograd."""
        dtype = self.precision.path
        model = constant(self.model.to(dtype=dtype))

        source = None if self.source is None else put_into(model, self.source, "source")
        target = put_into(model, self.target, "target") if isinstance(self.target, Dictionary) else self.target
        cuts = [put_into(model, cut, f"cuts[{number}]") for number, cut in enumerate(self.cuts)]
        return model, source, target, {"cuts": cuts, "effect": self.effect}

    # ------------------------------------------------------------------------- what is known beforehand

    @property
    def is_metric(self) -> bool:
        """Whether the call is for a metric, whose path is never swept."""
        return self.kind == "latent_to_metric"

    @cached_property
    def opening(self) -> Opening:
        """What paths are opened with; not for a metric."""
        return opening_of(
            self.model, self.source, self.target, self.cuts, self.effect, self.policy, self.error, self.precision.path.itemsize,
            self.is_error_source,
        )  # fmt: skip

    @cached_property
    def is_known(self) -> bool:
        """Whether a prompt's task is known before its path is opened."""
        is_plain = self.others is None and not self.is_error_source
        return is_plain and not self.is_metric and self.opening.cuts is None and counts_known(self.source, self.target)

    def asked(self, number: int) -> Asked:
        """What is asked of a prompt's path beside its ends."""
        other = None if self.others is None else self.others[number]
        return Asked(other, self.is_error_source, not isinstance(self.rule, GradientTimesActivation | Gradient))

    def working(self, length: int) -> WorkingMemory:
        """What torch.func takes for a prompt; the widest table over positions is of a dictionary's latents, or of logits."""
        config = self.model.config
        widest = max(d.d_sae if isinstance(d, Dictionary) else 0 for d in (self.source, self.target, *self.cuts))
        widest = max(widest, config.d_vocab) if self.is_metric else widest
        stop = config.last if self.is_metric else stop_site(self.model, self.target, (self.source, *self.cuts))
        working = working_memory(config, start_site(self.source), stop, length, widest, self.precision.path.itemsize)
        return working if self.is_metric else working._replace(fixed=max(working.fixed, self._least_opening(length)))

    def passes(self, effects: int, length: int) -> WorkingMemory:
        """What ablations of a prompt take, whose unmoved point goes with them, beside so many effects."""
        fixed, row = self.working(length)
        itemsize, writes = self.precision.path.itemsize, () if self.source is None else self.source.writes
        row += itemsize * length * sum(width(self.model.config, site) for site in writes[1:])
        row += itemsize * length * max((3 * d.d_sae + d.d_in + 2 * d.d_out for d in self.cuts), default=0)  # which encode anew
        return WorkingMemory(fixed + row + effects * itemsize, row)

    def _known(self, length: int) -> int:
        """Bytes that a prompt is known to need."""
        if isinstance(self.rule, Ablation):
            task = self._task(length) if self.is_known else None
            return sum(self.passes(task.n_targets * task.n_sources if task else 0, length))
        if self.is_reference or self.is_metric:
            return sum(self.working(length))
        return least_memory(self._task(length)) if self.is_known else self._least_opening(length)

    def _least_opening(self, length: int) -> int:
        """Bytes for opening a prompt's path, as far as it is known."""
        return self.opening.memory(Counts(length, 0, 0, positions_read(self.target, self.positions, length))).peak

    def _task(self, length: int) -> Task:
        """The task of a prompt where it is known."""
        task = known_task(self.model, self.source, self.target, length, self.policy, self.positions, self.precision, None)
        return self.opening.opened(task, positions_read(self.target, self.positions, length))

    # ---------------------------------------------------------------------- what is known of an open path

    def opened(self, ids: Ids, found: Path) -> Task:
        """The task of a prompt whose path is open."""
        task = replace(task_of([found], self.precision), itemsize=self.precision.path.itemsize)
        return self.opening.opened(task, positions_read(self.target, self.positions, len(ids)), found.active)

    def opened_paths(self, prompts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Path]]:
        """Every prompt's path, once more, for an error that is to hold for all of them."""
        model, source, target, put_in = self.in_precision()
        options: dict[str, Any] = {**put_in, "policy": self.policy, "positions": self.positions, "error": self.error}
        for number, ids in enumerate(prompts):
            yield ids, path_of(model, source, target, ids, **options, asked=self.asked(number))

    def _counted(self, ids: Ids, found: Path, sampled: int) -> int:
        """Bytes that a prompt needs, its path being open.

        Args:
            sampled: how many of its rows are computed again in float64.
        """
        if isinstance(self.rule, Ablation):
            return sum(self.passes(len(found.targets.value) * len(found.sources.value), len(ids)))
        if self.is_reference or (found.is_cut and isinstance(self.rule, IntegratedGradients)):
            return sum(with_writes(self.working(len(ids)), found))
        task = self.opened(ids, found)
        again = least_memory(sampled_task(task, sampled, FLOAT64, self.model.device)) if sampled else 0
        return max(least_memory(task), again if again > LEAST_FOR_SAMPLES else 0)

    def _check_result(self, tasks: Mapping[Task, int], free: int) -> None:
        """Raises BudgetError where the results of tasks, each so many times, together take too much of the memory that is free."""
        needed = sum(count * result_bytes(task, self.keep) for task, count in tasks.items())
        targets = sum(count * task.n_targets for task, count in tasks.items())
        check_fits(needed, self.keep, targets, self.precision.path.itemsize, free)

    def growing(self, prompts: Sequence[Tensor]) -> Callable[[Task], None]:
        """To be told of each task before it is swept: whether the result still fits, for where that is not known beforehand."""
        free, needed = free_memory(), 0

        def add(task: Task) -> None:
            """Raises BudgetError where the result so far is too large; it tells the size of the whole."""
            nonlocal needed
            needed += result_bytes(task, self.keep)
            if not fits(needed, self.keep, free):
                self._check_result(Counter(task_of([found]) for _, found in self.opened_paths(prompts)), free)

        return add


def constant(part: Any) -> Any:
    """A model or dictionary without autograd: torch.func would else record a graph of parameters that require grad."""
    return replace(part, params=pytree.tree_map(Tensor.detach, part.params))


def put_into(model: Model, dictionary: Dictionary, argument: str) -> Dictionary:
    """The dictionary as it reads and writes a model, in its dtype, on its device and without autograd. Raises as `fitted`."""
    return constant(fitted(model, dictionary.to(dtype=model.dtype, device=model.device), argument))
