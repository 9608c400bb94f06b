"""How a job stands, read from its folder while it is run or not."""

import shutil
import time
from pathlib import Path

from pydantic import BaseModel

from attrib.core.lock import Holder, holder
from attrib.jobs.folder import LOCK, open_job
from attrib.jobs.records import Failure, failures, records


class Status(BaseModel):
    """How a job stands. Rates are those of the run that is going on."""

    folder: Path
    prompts: int
    """All that are to be computed."""
    prompts_done: int
    refused: int
    """Prompts that are left out, each with a reason on record."""
    shards: int
    shards_done: int
    tokens: int
    tokens_done: int
    edges: int
    """Or, of a job that makes something else, how many of these there are."""
    makes: str
    """What they are called: edges, scores, rows."""
    bytes: int
    bytes_to_come: int | None
    """As many for each token as so far; None before the first shard."""
    bytes_free: int
    """On the disk of the folder."""
    failures: list[Failure]
    run_by: Holder | None
    elapsed: float | None
    """Seconds of the run that is going on."""
    prompts_per_second: float | None
    edges_per_second: float | None
    seconds_left: float | None

    @property
    def is_done(self) -> bool:
        """Whether every shard is there."""
        return self.shards_done == self.shards


def status(folder: Path) -> Status:
    """How the job of a folder stands. Raises what `open_job` raises."""
    job = open_job(folder)
    done, by, now = records(job), holder(folder / LOCK), time.time()
    lately = [record for record in done.values() if by is not None and record.finished >= by.began]
    elapsed = None if by is None else max(now - by.began, 1e-9)
    tokens = sum(record.tokens for record in done.values())
    attempted = sum(job.shards[number].tokens for number in done)
    rate = None if elapsed is None else sum(job.shards[record.shard].tokens for record in lately) / elapsed
    size = sum(record.bytes for record in done.values())
    left = job.fixed.tokens - attempted
    return Status(
        folder=folder, prompts=job.fixed.prompts, prompts_done=sum(record.prompts for record in done.values()),
        refused=job.fixed.refused + sum(len(record.refused) for record in done.values()),
        shards=len(job.shards), shards_done=len(done), tokens=job.fixed.tokens, tokens_done=tokens,
        edges=sum(record.edges for record in done.values()), makes=job.kind.makes, bytes=size,
        bytes_to_come=round(size / attempted * left) if attempted else None, bytes_free=shutil.disk_usage(folder).free,
        failures=[failure for failure in failures(job) if failure.shard not in done], run_by=by, elapsed=elapsed,
        prompts_per_second=None if elapsed is None else sum(record.prompts for record in lately) / elapsed,
        edges_per_second=None if elapsed is None else sum(record.edges for record in lately) / elapsed,
        seconds_left=left / rate if rate else None,
    )  # fmt: skip
