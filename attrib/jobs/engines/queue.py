"""What an engine is, and what every engine of processes needs: which shard is done next, how often each is tried, and when it is not the
shards.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from attrib.core.types import AttribError
from attrib.jobs.folder import Job, Shard
from attrib.jobs.records import Failure
from attrib.jobs.worker import Outcome

Engine = Callable[[Job, Sequence[Shard], int], Generator[Outcome, None, None]]
"""A function of a job, of the shards to do and of how often each is tried. It yields what becomes of each, and raises `JobError`
where the job cannot go on."""


class JobError(AttribError):
    """A job that cannot go on: its disk is full, say. What is done stays done."""


TOO_MANY = 4
"""Shards at either end that fail, none done between them, before a job is given up."""


class Queue:
    """The shards that are left, in the order given; what failed is tried again behind the others.

    Where several fail and nothing is done between them, they may be too large, being the first; so the last are tried. Where those
    fail as well, nothing can be done here, and the job is given up long before each shard was tried.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], attempts: int) -> None:
        self._folder, self._attempts = folder, attempts
        self._fresh, self._again = deque(shards), deque[Shard]()
        self._tried = Counter[int]()
        self._failed = dict[int, Failure]()  # since a shard was done
        self._probes = set[int]()  # taken from the end since then
        self.left = len(shards)
        """Shards of which nobody knows yet what becomes of them."""

    def __len__(self) -> int:
        """Shards that wait."""
        return len(self._fresh) + len(self._again)

    def take(self) -> Shard:
        """The next one."""
        if not self._fresh:
            return self._again.popleft()
        if len(self._failed) < TOO_MANY:
            return self._fresh.popleft()
        probe = self._fresh.pop()
        self._probes.add(probe.number)
        return probe

    def put_back(self, shard: Shard) -> None:
        """A shard that was taken and, for no fault of its own, not done: it waits behind the others."""
        self._again.append(shard)

    def heard(self, shard: Shard, outcome: Outcome) -> Iterator[Outcome]:
        """Take what became of a shard, and give what is final of it. Raises JobError where the job is given up."""
        if not isinstance(outcome, Failure):
            self._failed.clear()
            self._probes.clear()
            self.left -= 1
            yield outcome
            return
        self._tried[shard.number] += 1
        outcome.attempts = self._tried[shard.number]
        self._failed[shard.number] = outcome
        if outcome.attempts < self._attempts:
            self._again.append(shard)  # memory may be free by then
        else:
            self.left -= 1
            yield outcome
        if len(self._probes & self._failed.keys()) == TOO_MANY:
            yield from (failure for failure in self._failed.values() if failure.attempts < self._attempts)
            raise JobError(
                f"{self._folder}: {len(self._failed)} shards, of the longest prompts and of the shortest, failed one after another, so it "
                f"is not the shards. The last: {outcome.reason}. Mend that, and `attrib job run {self._folder}` goes on."
            )
