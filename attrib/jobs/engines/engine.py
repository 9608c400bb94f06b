"""What an engine is: a function of a job, of the shards to do and of how often each is tried.

It yields what becomes of each, and raises `JobError` where the job cannot go on.
"""

from collections.abc import Callable, Generator, Sequence

from attrib.core.types import AttribError
from attrib.jobs.folder import Job, Shard
from attrib.jobs.worker import Outcome

Engine = Callable[[Job, Sequence[Shard], int], Generator[Outcome, None, None]]


class JobError(AttribError):
    """A job that cannot go on: its disk is full, say. What is done stays done."""
