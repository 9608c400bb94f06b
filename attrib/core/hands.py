"""Threads that make things for one that takes them: one for each device of a call, each ahead of the taker by one thing.

A thread makes its next thing when the last has been given back, so that it holds one at a time, as a loop over an iterator does. What is
raised in a thread is raised where its thing would have been taken, and says which device it is of.
"""

from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Generic, TypeVar

import torch

from attrib.core.devices import entering

Thing = TypeVar("Thing")


class Hand(Generic[Thing]):
    """A thread that makes things, one after another."""

    def __init__(self, device: torch.device, make: Callable[[], Iterator[Thing]]) -> None:
        """It has not begun.

        Args:
            device: that the thread computes on.
            make: gives the things; called, and run, in the thread.
        """
        self.device = device
        self._make, self._enter = make, entering(device)
        self._made, self._goes_on = SimpleQueue[tuple[list[Thing], BaseException | None]](), SimpleQueue[bool]()
        self._is_out = False
        # what is set for this thread alone, as who multiplies, is set for that one too
        self._thread = Thread(target=copy_context().run, args=(self._run,), name=f"attrib on {device}")

    def begin(self) -> None:
        """Begin. An interrupt may come in here, when the thread is at work already."""
        self._thread.start()

    def take(self) -> Thing | None:
        """The next thing, once the last was given back; None where there is no more. Raises what was raised as it was made."""
        made, error = self._made.get()
        if error is not None:
            raise _named(error, self.device) from error
        self._is_out = bool(made)
        return made.pop() if made else None

    def give_back(self) -> None:
        """Let the next one be made: nobody holds the last any more."""
        if self._is_out:
            self._is_out = False
            self._goes_on.put(True)

    def stop(self) -> None:
        """Have no more made than is being made."""
        self._goes_on.put(False)

    def join(self) -> None:
        """Wait for the thread's end, where it has begun."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            with self._enter(), torch.no_grad():
                for thing in self._make():
                    self._made.put(([thing], None))
                    del thing  # whoever takes it has it alone
                    if not self._goes_on.get():
                        return
            self._made.put(([], None))
        except BaseException as error:
            self._made.put(([], error))


class Hands:
    """The threads of a call, of which none is left when it is over."""

    def __init__(self) -> None:
        self._all: list[Hand[object]] = []

    def __enter__(self) -> "Hands":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for each in self._all:
            each.stop()
        for each in self._all:
            each.join()

    def begin(self, devices: Sequence[torch.device], makers: Sequence[Callable[[], Iterator[Thing]]]) -> list[Hand[Thing]]:
        """A thread for each maker, on its device."""
        found = list[Hand[Thing]]()
        for device, make in zip(devices, makers, strict=True):
            found.append(Hand(device, make))
            self._all.append(found[-1])  # type: ignore[arg-type] # before it begins, so that an interrupt meanwhile ends it too
            found[-1].begin()
        return found

    def end(self, hands: Sequence[Hand[Thing]]) -> None:
        """Have some of them end."""
        for each in hands:
            each.stop()
        for each in hands:
            each.join()
            self._all.remove(each)  # type: ignore[arg-type]


def _named(error: BaseException, device: torch.device) -> BaseException:
    """The error of a thread, which says on which device it was."""
    try:
        return type(error)(f"on {device}: {error}")
    except TypeError:  # one that is made of more than its words
        error.add_note(f"on {device}")
        return error
