"""Which shard is done next, and when a job is given up: without any process, on shards that are numbers."""

from collections import Counter
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib.jobs.engines import JobError, Queue
from attrib.jobs.engines.queue import TOO_MANY
from attrib.jobs.folder import Shard
from attrib.jobs.records import Failure, Record
from attrib.jobs.worker import Outcome

FOLDER = Path("job")


def shards(count: int) -> list[Shard]:
    """The longest first, as `run` gives them."""
    return [Shard(number, f"{number:x}", number, number + 1, count - number) for number in range(count)]


def done(shard: Shard) -> Record:
    counts: Any = dict.fromkeys(("bytes", "prompts", "tokens", "edges", "seconds", "seconds_writing", "finished"), 1)
    return Record(shard=shard.number, id=shard.id, sha256="", device="cpu", **counts)


def failed(shard: Shard) -> Failure:
    return Failure(shard=shard.number, id=shard.id, kind="error", reason=f"of {shard.number}", attempts=1, finished=0)


class Played:
    """What came out of a queue whose shards fail as told, with so many in hand at a time."""

    def __init__(self, count: int, attempts: int, fails: Callable[[int, int], bool], at_once: int = 1) -> None:
        self.final: list[Outcome] = []
        self.tried = Counter[int]()
        self.stopped: JobError | None = None
        queue, hands = Queue(FOLDER, shards(count), attempts), list[Shard]()
        while queue.left:
            while queue and len(hands) < at_once:
                hands.append(queue.take())
            shard = hands.pop(0)
            self.tried[shard.number] += 1
            try:
                self.final += queue.heard(shard, failed(shard) if fails(shard.number, self.tried[shard.number]) else done(shard))
            except JobError as error:
                self.stopped = error
                return
        assert not queue
        assert not hands

    @property
    def done(self) -> Set[int]:
        return {one.shard for one in self.final if isinstance(one, Record)}


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("at_once", [1, 3])
def test_where_nothing_can_be_done_few_are_tried(attempts: int, at_once: int) -> None:
    played = Played(10_000, attempts, lambda *_: True, at_once)
    assert "failed one after another, so it is not the shards. The last: of 999" in str(played.stopped)
    longest, shortest = range(TOO_MANY + at_once - 1), range(10_000 - TOO_MANY - at_once + 1, 10_000)
    assert {*range(TOO_MANY), *range(10_000 - TOO_MANY, 10_000)} <= played.tried.keys() <= {*longest, *shortest}


def test_all_that_failed_is_told_when_a_job_is_given_up() -> None:
    queue, told = Queue(FOLDER, shards(100), 3), list[Outcome]()

    def go_on() -> None:
        while True:
            shard = queue.take()
            for outcome in queue.heard(shard, failed(shard)):
                told.append(outcome)

    with pytest.raises(JobError):
        go_on()
    assert sorted(one.shard for one in told) == [0, 1, 2, 3, 96, 97, 98, 99]
    assert all(isinstance(one, Failure) and one.attempts == 1 for one in told)


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_long_ones_that_always_fail_do_not_end_a_job(at_once: int) -> None:
    """As where a device's memory does not suffice for them."""
    played = Played(200, 3, lambda number, _: number < 40, at_once)
    assert played.stopped is None
    assert played.done == {*range(40, 200)}
    assert [one.attempts for one in played.final if isinstance(one, Failure)] == [3] * 40
    assert all(played.tried[number] == (3 if number < 40 else 1) for number in range(200))


def test_shards_that_failed_as_probes_do_not_end_a_job_in_which_much_was_done() -> None:
    """Both times that the longest failed, a probe succeeded: that the others fail again at the end is their own fault."""
    bad = {0, 1, 2, 3, 19, 18, 17, 7, 8, 9, 10, 15}
    played = Played(20, 2, lambda number, _: number in bad)
    assert played.stopped is None
    assert played.done == {*range(20)} - bad


def test_a_shard_that_failed_waits_behind_the_others() -> None:
    played = Played(6, 3, lambda number, tries: number == 0 and tries == 1)
    assert [one.shard for one in played.final] == [1, 2, 3, 4, 5, 0]


def test_what_is_put_back_has_not_failed() -> None:
    queue = Queue(FOLDER, shards(2), 1)
    for _ in range(20):
        queue.put_back(queue.take())
    ends = [one.shard for shard in (queue.take(), queue.take()) for one in queue.heard(shard, done(shard))]
    assert sorted(ends) == [0, 1]
    assert queue.left == len(queue) == 0


@given(st.integers(0, 40), st.integers(1, 3), st.integers(1, 5), st.sets(st.tuples(st.integers(0, 40), st.integers(1, 3))))
def test_each_shard_has_one_end(count: int, attempts: int, at_once: int, failing: set[tuple[int, int]]) -> None:
    played = Played(count, attempts, lambda number, tries: (number, tries) in failing, at_once)
    assert max(played.tried.values(), default=0) <= attempts
    ends = [one.shard for one in played.final]
    if played.stopped is None:
        assert sorted(ends) == [*range(count)]
        never = {number for number in range(count) if all((number, tries) in failing for tries in range(1, attempts + 1))}
        assert played.done == {*range(count)} - never
