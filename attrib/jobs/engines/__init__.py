"""Engines: where shards are done. What a shard is, `attrib.jobs.shard` alone knows; an engine only places it.

An engine is a function of a job, of the shards to do and of how often each is tried. It yields what becomes of
each, and raises `JobError` where the job cannot go on.
"""

from collections import Counter
from collections.abc import Callable, Generator, Sequence

from attrib.jobs.folder import Job, Shard
from attrib.jobs.records import Failure
from attrib.jobs.worker import Outcome
from attrib.types import AttribError

Engine = Callable[[Job, Sequence[Shard], int], Generator[Outcome, None, None]]


class JobError(AttribError):
    """A job that cannot go on: its disk is full, say. What is done stays done."""


class Tries:
    """How often each shard was tried in this run."""

    def __init__(self, most: int) -> None:
        self._most, self._tried = most, Counter[int]()

    def again(self, failure: Failure) -> bool:
        """Whether a shard that failed is tried again. Its failure is told how often it was."""
        self._tried[failure.shard] += 1
        failure.attempts = self._tried[failure.shard]
        return failure.attempts < self._most
