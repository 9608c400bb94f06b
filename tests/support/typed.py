"""What is typed at a terminal, in this process, which need not import anything again."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from attrib.cli import main as cli


class Ran(NamedTuple):
    """What became of it."""

    status: int
    out: str
    err: str


Command = Callable[..., Ran]


def command_in(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `attrib ARGUMENTS`."""

    def command(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["attrib", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Ran(status, *capsys.readouterr())

    return command
