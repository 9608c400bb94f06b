"""This very process, with a model and dictionaries that it has in memory already."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch

from attrib.jobs.engines.queue import JobError, Queue
from attrib.jobs.folder import Job, Shard
from attrib.jobs.shard import Ready
from attrib.jobs.worker import Outcome, Stop, do


def inline(job: Job, shards: Sequence[Shard], attempts: int, *, ready: Ready) -> Generator[Outcome, None, None]:
    """Do shards one after another, with the job's threads.

    Yields:
        Each record, and each failure that is not tried again.

    Raises:
        JobError: where the job cannot go on.
    """
    queue = Queue(job.folder, shards, attempts)
    with _threads(job.config.threads):
        while queue:
            shard = queue.take()
            outcome = do(ready, shard)
            if isinstance(outcome, Stop):
                raise JobError(outcome.reason)
            yield from queue.heard(shard, outcome)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of torch for as long as is wanted: the last digits follow from how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
