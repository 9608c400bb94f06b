"""A run of a job on a progress bar."""

from rich.progress import Progress

from attrib.jobs.folder import Job, Shard
from attrib.jobs.records import Failure, Record
from attrib.jobs.run import Watch
from attrib.jobs.worker import Outcome
from attrib.view.terminal import plain


class RunBar(Watch):
    """In tokens: shards of long prompts take longer than others."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._checking = bar.add_task("checking shards", total=None, visible=False)
        self._running = bar.add_task("computing", total=None, visible=False)

    def checked(self, done: int, total: int) -> None:
        """On a line of its own, until all are."""
        self._bar.update(self._checking, completed=done, total=total, visible=done < total)

    def began(self, job: Job, done: dict[int, Record], pending: list[Shard], killed: bool) -> None:
        """The bar is as long as what is missing."""
        self._tokens = {shard.number: shard.tokens for shard in pending}
        self._bar.update(self._running, total=sum(self._tokens.values()), visible=True)
        if killed:
            self._bar.console.print("the last run was killed; what it had not finished is done now")

    def became(self, outcome: Outcome) -> None:
        """One shard further, above the bar if it failed."""
        self._bar.update(self._running, advance=self._tokens[outcome.shard])
        if isinstance(outcome, Failure):
            reason = plain(f"shard {outcome.shard} failed {outcome.attempts} times: {outcome.reason}")
            self._bar.console.out(reason, highlight=False)
