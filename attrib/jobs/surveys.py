"""A survey of a file of prompts as a job in this process, with a model and dictionaries in memory: what was ended goes on where it was.

The folder is a job's (docs/jobs.md), whose shards are the blocks; `attrib job status`, `verify` and `run` take it as any other.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.core.files import PARTIAL, kind_of_file
from attrib.core.types import InputError, Progress
from attrib.dictionaries.dictionary import Dictionary
from attrib.jobs.engines.inline import inline
from attrib.jobs.engines.queue import JobError
from attrib.jobs.folder import JOB, Job, Shard, open_job
from attrib.jobs.kinds.latents import LatentsFile, LatentsKind, SurveyParts
from attrib.jobs.make import make_of
from attrib.jobs.records import Record, records, refused
from attrib.jobs.run import Watch, run
from attrib.jobs.shard import ready_of
from attrib.jobs.source import prompts_of
from attrib.jobs.told import Reach
from attrib.jobs.witness import Witness
from attrib.jobs.worker import Outcome
from attrib.latents.files import open as open_survey
from attrib.latents.surveyed import Survey
from attrib.latents.surveying import DEFAULT_BUDGET, merge
from attrib.models.transformer import Model
from attrib.runs.spec import checked

OPTIONS = ("score", "latents", "together", "ignore", "special", "skip", "top", "per_band", "context", "seed")
"""Those of `attrib.latents.survey`."""
_SAYS: dict[tuple[str, ...], str] = {("prompts", "max_tokens"): "length", ("shards", "prompts"): "block"}
"""What keys of the config are called here."""
_MAY_DIFFER = {("budget",), ("threads",), ("products",), ("compression",), ("prompts", "source"), ("prompts", "long"), ("model",)}
"""Keys that say nothing about the numbers, or whose files are compared."""


@dataclass(frozen=True)
class Progressed:
    """How far the blocks of a folder are."""

    blocks: int
    """Of the whole data set."""
    done: int
    """Of these, those that are there."""
    refused: int
    """Prompts that could not be used."""
    reason: str
    """What was wrong with the first of them."""
    survey: Survey | None
    """All blocks merged; None while some are missing."""


@takes(model=as_model, dictionaries=as_dictionaries)
def survey_blocks(
    folder: str | Path,
    model: Model,
    dictionaries: Dictionary | Sequence[Dictionary],
    source: str | Path,
    *,
    block: int = 256,
    share: tuple[int, int] = (0, 1),
    length: int | None = None,
    form: Any = None,
    field: str | None = None,
    split: str | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: Progress | None = None,
    **options: Any,
) -> Progressed:
    """Survey a file of prompts block by block; blocks that a folder has already, and that are what was written, are not made again.

    Args:
        folder: of a job, which is made where it does not exist.
        source: a file of prompts, as `attrib.runs.prompts.read` takes it; with `form`, `field` and `split`.
        block: prompts of a block.
        share: (i, n): make every n-th block from the i-th on, so that n processes may share the work.
        length: tokens after which a prompt is cut off; None leaves out one that is longer than the model's context.
        progress: called with (prompts read, -1) while the prompts are read, and then with (prompts done, prompts in all).
        options: those of `attrib.latents.survey`.

    Raises:
        InputError: where the folder is of another survey, or another process runs it; and as `survey`. A prompt that is none is left out
            and counted.
        JobError: where the work cannot go on.
    """
    if unknown := options.keys() - {*OPTIONS}:
        raise InputError(f"{sorted(unknown)[0]}: no option of a survey; expected one of {', '.join(OPTIONS)}.")
    for name, value, most in (("block", block, None), ("length", 1 if length is None else length, model.config.n_ctx)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most and value > most):
            raise InputError(f"{name}: {value!r}; expected a whole number from 1 on{f', up to the context of {most:,}' if most else ''}.")
    mine, of = share
    if not 0 <= mine < of:
        raise InputError(f"share: {mine}/{of}; expected a number from 0 to below the number of shares.")
    folder, source = Path(folder), Path(source).absolute()
    several = (dictionaries,) if isinstance(dictionaries, Dictionary) else tuple(dictionaries)
    keys = {name: _plain(value) if name in ("latents", "together") else value for name, value in options.items()}
    table = keys | {
        "model": model.name, "dictionaries": [one.name for one in several], "threads": torch.get_num_threads(), "budget": budget,
        "prompts": {"source": str(source), "form": form, "field": field, "split": split, "max_tokens": length,
                    "long": "refuse" if length is None else "truncate"},
        "shards": {"prompts": block, "tokens": (1 << 63) - 1}, "compression": "gzip",
    }  # fmt: skip
    config = checked(LatentsFile, table, "options")
    parts = SurveyParts(config, model, {one.name: one for one in several})
    LatentsKind().check(parts)  # what makes no sense is said before anything is written
    job = _begun(folder, parts, source, progress)
    ready = ready_of(job, parts, str(model.device), Witness({}))
    ran = run(
        folder,
        partial(inline, ready=ready),
        attempts=1,
        launch=(f"share of {of}", mine, of) if of > 1 else None,
        watch=_Told(job, progress),
    )
    if ran.failed:
        raise JobError(f"{folder}: block {ran.failed[0].shard} could not be surveyed: {ran.failed[0].reason}")
    done, left_out = records(job), list(refused(job))
    reason = f"{left_out[0][1]} {left_out[0][0].reason}" if left_out else ""
    files = [job.file(job.shards[number]) for number, record in sorted(done.items()) if record.sha256]
    whole = reduce(merge, map(open_survey, files)) if files and len(done) == len(job.shards) else None  # two at a time are in memory
    return Progressed(len(job.shards), len(done), len(left_out), reason, whole)


class _Told(Watch):
    """What a run tells, in prompts."""

    def __init__(self, job: Job, progress: Progress | None) -> None:
        self._job, self._progress, self._done = job, progress, 0

    def began(self, job: Job, done: dict[int, Record], pending: list[Shard], killed: bool) -> None:
        """What earlier runs did counts."""
        self._done = sum(job.shards[number].stop - job.shards[number].first for number in done)

    def became(self, outcome: Outcome) -> None:
        """One block further."""
        shard = self._job.shards[outcome.shard]
        self._done += shard.stop - shard.first
        if self._progress is not None:
            self._progress(self._done, self._job.fixed.prompts)


def _begun(folder: Path, parts: SurveyParts, source: Path, progress: Progress | None) -> Job:
    """The folder's job, made where there is none, once it is seen that it is of the same survey."""
    if (kind := kind_of_file(source)) != "a file":
        what = f"there is no file {source}" if kind is None else f"{source} is {kind}"
        raise InputError(f"prompts: {what}; expected a file of prompts, which can be read anew when the work goes on.")
    with source.open("rb") as file:
        now = hashlib.file_digest(file, "sha256").hexdigest()
    if not (folder / JOB).is_file():
        if folder.exists() and any(not inside.name.endswith(PARTIAL) for inside in folder.iterdir()):
            raise InputError(f"folder: {folder} holds other things and no {JOB}; expected one that is empty or of this survey.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        places = {name: str(Path(name).resolve()) for name in (parts.config.model, *parts.config.dictionaries) if Path(name).exists()}
        prompts = prompts_of(parts.config.prompts, Reach(source.parent, (source,)))
        try:
            return make_of(folder, parts.config, parts, prompts, places=places, sources={str(source): now}, progress=progress)
        except (InputError, OSError):
            if not (folder / JOB).is_file():  # else another share made it at the same time
                raise
    job = open_job(folder)
    if other := _other(job, parts, now):
        raise InputError(f"folder: {folder} is of a survey with another {other}; expected the same, or a folder of its own.")
    return job


def _other(job: Job, parts: SurveyParts, sha256: str) -> str | None:
    """What a job was asked for otherwise."""
    was, now = (dict(_flat(table)) for table in (job.fixed.config, parts.config.model_dump(mode="json")))
    for key in now.keys() - _MAY_DIFFER if was.get(("kind",)) == "latents" else [("kind",)]:
        if was.get(key) != now[key]:
            return _SAYS.get(key, key[-1])
    if not parts.model.matches(job.fixed.model):
        return "model"
    if not all(one.matches(job.fixed.dictionaries[name]) for name, one in parts.dictionaries.items()):
        return "dictionaries"
    return None if [*job.fixed.sources.values()] == [sha256] else "text in its prompts"


def _flat(table: dict[str, Any], *above: str) -> list[tuple[tuple[str, ...], Any]]:
    """Every key of tables within tables, with its value."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, value in table.items():
        found += _flat(value, *above, name) if isinstance(value, dict) else [((*above, name), value)]
    return found


def _plain(given: Any) -> Any:
    """Latents as a config has them."""
    if given is None or isinstance(given, str | bool):
        return given
    if isinstance(given, slice):
        return ":".join("" if end is None else str(end) for end in (given.start, given.stop, given.step))
    several = given.tolist() if hasattr(given, "tolist") else list(given)
    return [at for at, is_meant in enumerate(several) if is_meant] if several and all(isinstance(one, bool) for one in several) else several
