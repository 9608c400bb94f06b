"""Jobs of tasks: what a model answers to prompts with right and wrong answers, and which latents it owes that to (docs/tasks.md).

A shard is a file of two tables, of samples and of latents, of some examples in the data set's order. What a prompt is asked with beside
its tokens is its label and the tokens of its answers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from pydantic import BaseModel, BeforeValidator, ByteSize, Field, model_validator
from torch import Tensor

from attrib.causal.tasks.examples import Example, Task, as_numbers, encoded, of_numbers
from attrib.causal.tasks.frames import FRAMES, joined_frames
from attrib.causal.tasks.generated import GENERATED, generated_task
from attrib.causal.tasks.memory import Phases
from attrib.causal.tasks.operations import OPERATIONS, Batch, names_of, operations_of, rows_of
from attrib.causal.tasks.readers import Rows, read_task, task_named
from attrib.causal.tasks.results import read_rows, record_of, write_rows
from attrib.causal.tasks.running import described
from attrib.causal.tasks.spliced import BUDGET
from attrib.causal.tasks.templates import NAMED, Template
from attrib.core.fingerprints import seal
from attrib.core.positions import plain_positions
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.jobs.kind import Of, Portion, Read, Source
from attrib.jobs.kinds.parts import parts_on
from attrib.jobs.told import Count, Number, Reach, Told
from attrib.models.tokens import check_ids
from attrib.models.transformer import Model
from attrib.passes.replacement import Replacement, replace
from attrib.runs.results import Counts
from attrib.runs.spec import Written

if TYPE_CHECKING:
    import pandas as pd

Token = str | Annotated[int, Field(strict=True)]


class TemplateOf(BaseModel, extra="forbid"):
    """How a row becomes an example, as of `attrib.causal.tasks.Template`."""

    text: str
    answers: list[Token | list[Token]]
    label: str | list[str] | Annotated[int, Field(strict=True)] = "label"
    labels: dict[str, Annotated[int, Field(strict=True)]] = {}
    chat: bool = False
    system: str | None = None

    @property
    def template(self) -> Template:
        """The same."""
        answers = tuple(tuple(one) if isinstance(one, list) else one for one in self.answers)
        label = tuple(self.label) if isinstance(self.label, list) else self.label
        return Template(self.text, answers, label, self.labels, self.chat, self.system)


class TaskOf(BaseModel, extra="forbid"):
    """Where the examples come from: a name, a file of JSONL, or both."""

    name: str | None = None
    """agreement and indirect-objects are made, rte and boolq are read."""
    source: str | None = None
    """A file of JSONL; of rte and boolq also "hf:NAME:CONFIG", and left out, the data set of the hub."""
    n: Count = 64
    """How many examples are made, and `seed`, which ones."""
    seed: Number = 0
    split: str = "validation"
    chat: Annotated[bool, Field(strict=True)] = False
    fields: dict[str, str] | None = None
    """What the keys of rows are called."""
    template: TemplateOf | None = None
    limit: Count | None = None
    """Examples to read, at most."""

    @model_validator(mode="after")
    def _uses_what_it_is_given(self, info: Any) -> "TaskOf":
        """An option that changes nothing was meant to change something."""
        if self.name is not None and self.name not in (known := (*GENERATED, *NAMED)):
            raise ValueError(f"task.name: {self.name!r}; expected {', '.join(known)}, or a source.")
        if self.name is None and self.source is None:
            raise ValueError("task: neither a name nor a source; expected one of them.")
        takes = ("n", "seed") if self.name in GENERATED else ("source", "split", "chat") if self.name else ("source", "fields", "template")
        given = set() if (info.context or {}).get("stored") else self.model_fields_set
        if useless := sorted(given - {"name", "limit", *takes}):
            raise ValueError(f"task.{useless[0]}: no effect on {self.name or 'a file'}, which takes {', '.join((*takes, 'limit'))}.")
        if self.fields is not None and self.template is not None:
            raise ValueError("task.fields: no effect beside a template, which names its own; leave one out.")
        return self


def _table(given: Any) -> Any:
    """A task as a config has it: a table, or a name or file alone."""
    if isinstance(given, str):
        return {"name": given} if given in (*GENERATED, *NAMED) else {"source": given}
    return given


class TaskFile(Told):
    """Everything that the tables of a task follow from; the options are those of `attrib.causal.tasks.run_task`."""

    kind: Literal["task"] = "task"
    task: Annotated[TaskOf, BeforeValidator(_table)]
    operations: Annotated[list[str], Field(min_length=1)] | None = None
    """None is all that are possible."""
    errors: Annotated[bool, Field(strict=True)] = False
    positions: Written = "last"
    dtype: Literal["float32", "float64"] = "float32"
    budget: Annotated[ByteSize, Field(lt=1 << 63)] = ByteSize(BUDGET)

    @model_validator(mode="after")
    def _asks_all_that_is_possible(self) -> "TaskFile":
        if self.operations is None:
            self.operations = list(OPERATIONS) if self.dictionaries else ["base"]
        return self


@dataclass(frozen=True)
class TaskParts:
    """A task's model and dictionaries in memory."""

    config: TaskFile
    model: Model
    dictionaries: dict[str, Dictionary]

    @cached_property
    def replaced(self) -> Replacement:
        """The model with the dictionaries in its pass."""
        return replace(self.model, list(self.dictionaries.values()))


class TaskRows(NamedTuple):
    """What a shard holds."""

    record: dict[str, Any]
    """What was asked."""
    rows: "dict[str, pd.DataFrame]"


class TaskKind:
    """Tables of a task; a shard is what `attrib.causal.tasks.open_results` reads."""

    name = "task"
    makes = "rows"
    by_length = False
    file: type[BaseModel] = TaskFile

    def has_beside(self, config: TaskFile) -> bool:
        """The answers and the label."""
        return True

    def load(self, config: TaskFile, device: torch.device, places: Mapping[str, str | Path]) -> TaskParts:
        """The model, in the dtype asked for, and the dictionaries."""
        model, dictionaries = parts_on(config, device, places)
        return TaskParts(config, seal(model.to(dtype=config.dtype)), dictionaries)

    def check(self, parts: TaskParts) -> None:
        """Raise what does not hang on prompts: operations that there are not, dictionaries that do not fit the model or each other."""
        operations_of(parts.config.operations or [], bool(parts.dictionaries))
        plain_positions(parts.config.positions, [])
        _ = parts.replaced

    def open(self, config: TaskFile, reach: Reach) -> Source:
        """The examples of the config's task."""
        of = config.task
        source = None if of.source is None else reach.source("task.source", of.source, "--allow")
        if of.name in NAMED:
            found: Task | None = task_named(of.name, source, split=of.split, chat=of.chat)
        elif of.name is None:
            if not isinstance(source, Path):
                raise InputError(f"task.source: {source!r} has no fields of its own; expected a file of JSONL, or a name beside it.")
            template = of.template.template if of.template else None
            found = read_task(source, template=template, fields=of.fields)
        else:
            found = None

        def read(parts: TaskParts) -> Iterator[Read]:
            task = found or generated_task(str(of.name), parts.model, of.n, seed=of.seed)
            for number, (where, made) in enumerate(_each(task)):
                if number == of.limit:
                    return
                try:
                    [item] = encoded(parts.model, [made()], number)
                    yield Read([item.ids.cpu()], "", where, as_numbers(item))
                except InputError as error:
                    yield Read([], str(error).removeprefix("examples: "), where)

        return read

    def compute(self, parts: TaskParts, portion: Portion) -> TaskRows:
        """All operations' rows, by the examples' numbers in the data set."""
        config, model = parts.config, parts.model
        dictionaries, plain = list(parts.dictionaries.values()), plain_positions(config.positions, [])
        chosen, budget = operations_of(config.operations or [], bool(dictionaries)), int(config.budget)
        items = []
        for number, ids, beside in zip(portion.numbers.tolist(), portion.ids, portion.beside, strict=True):
            check_ids(model, number, ids)  # a job's folder may come from elsewhere
            items.append(of_numbers(ids.to(model.device), beside, model.config.d_vocab))
        batch = Batch(
            model, parts.replaced, names_of(parts.replaced), items, portion.numbers.tolist(), config.errors, plain, budget
        )  # fmt: skip
        record = described(
            model, task_name(config), dictionaries, [*chosen], config.errors, plain, config.shards.prompts, budget
        )  # fmt: skip
        return TaskRows(record, rows_of(batch, chosen, Phases(model.device, False)))

    def faulty(self, results: TaskRows) -> dict[int, str]:
        """None: what is not finite is raised where it is met."""
        return {}

    def counts(self, results: TaskRows) -> Counts:
        """Examples, their tokens, and rows of both tables."""
        samples = results.rows["samples"]
        once = samples.drop_duplicates("example")
        return Counts(len(once), int(once["tokens"].sum()), len(samples) + len(results.rows["latents"]))

    def write(self, path: Path, results: TaskRows, numbers: Int[Tensor, " prompts"], compression: str | None) -> Path:
        """One file of both tables."""
        return write_rows(path, results.record, results.rows, compression=compression)

    def faults(self, path: Path, of: Of, kept: Portion) -> tuple[list[str], Counts]:
        """Other examples or operations than the job's, and another model or other dictionaries."""
        record, rows, found = record_of(path), read_rows(path), list[str]()
        try:
            hashes, errors, operations = _asked(record)
        except (KeyError, TypeError):
            return ["it does not say what it was asked for"], Counts(0, 0, 0)
        if hashes != of.hashes or operations != of.config.operations or errors != of.config.errors:
            found.append("it was asked for with another model, other dictionaries or other options than the job's")
        samples, latents = rows["samples"], rows["latents"]
        for operation in operations:
            some = samples[samples["operation"] == operation]
            if some["example"].tolist() != kept.numbers.tolist():
                found.append(f"its samples of {operation} have other numbers than the job's")
            elif some["tokens"].tolist() != list(map(len, kept.ids)) or some["label"].tolist() != [one[0] for one in kept.beside]:
                found.append(f"its samples of {operation} have other lengths or labels than the job's")
        if not set(samples["operation"]) | set(latents["operation"]) <= set(operations):
            found.append("it has rows of an operation that was not asked for")
        if not set(latents["example"]) <= set(samples["example"]):
            found.append("its latents are of examples that it has not")
        return found, self.counts(TaskRows(record, rows))

    def difference(self, path: Path, again: TaskRows) -> str:
        """The first table, and its column, in which other rows come out."""
        for kind, was in read_rows(path).items():
            now = again.rows[kind]
            if len(was) != len(now):
                return f"computed again, it has {len(now):,} rows of {kind}, and {len(was):,} are stored"
            for name, dtype in FRAMES[kind].items():
                one, two = was[name].to_numpy(), now[name].to_numpy()
                if dtype != "float64" and not np.array_equal(one, two):
                    return f"computed again, its {kind} have another {name}"
                if dtype == "float64" and not np.array_equal(one, two, equal_nan=True):
                    return f"computed again, the {name} of its {kind} differs by up to {np.nanmax(np.abs(one - two)):.1e}"
        return "computed again, its values are the same, but not its bytes"

    def merge(self, out: Path, shards: Sequence[Path], compression: str | None, overwrite: bool) -> Path:
        """One file of all rows."""
        if not shards:
            raise InputError("shards: none is done; expected at least one.")
        parts = list(map(read_rows, shards))
        rows = {kind: joined_frames(columns, [each[kind] for each in parts]) for kind, columns in FRAMES.items()}
        return write_rows(out, record_of(shards[0]), rows, compression=compression, overwrite=overwrite)


def _asked(record: Mapping[str, Any]) -> tuple[set[str], bool, list[str]]:
    """The hashes of the model and the dictionaries, whether errors are added, and the operations. Raises KeyError and TypeError."""
    hashes = {record["model"]["sha256"], *(one["sha256"] for one in record["dictionaries"])}
    return hashes, record["errors"], list(record["operations"])


def task_name(config: TaskFile) -> str:
    """What the task is called: its name, or that of its file."""
    of = config.task
    return of.name or Path(str(of.source)).name.removesuffix(".gz").removesuffix(".jsonl")


def _each(task: Task) -> Iterator[tuple[str, Callable[[], Example]]]:
    """Where each example stands, and what makes it, which raises for one that is none: the next may be well."""
    examples: Any = task.examples
    if isinstance(examples, Rows):
        for where, row in examples.read():
            yield where, partial(examples.made, row, where)
    else:
        for number, example in enumerate(examples):
            yield example.where or f"example {number}", lambda example=example: example  # type: ignore[misc]
