"""Typer's commands, built once.

At every call of an application typer makes all its commands anew, from the signatures of their functions: 0.1 seconds of attrib's,
which is more than what most commands of tests do. A command that has run is none the worse for it.
"""

from functools import cache
from typing import Any

import typer.main
import typer.testing


def hasten() -> None:
    """Build the commands of an application once from now on."""
    built = cache(typer.main.get_command)

    def fresh(app: typer.Typer) -> Any:
        return forgetful(built(app))

    typer.main.get_command = typer.testing._get_command = fresh


def forgetful(command: Any) -> Any:
    """The command without the --help that it keeps from its last call, whose names are those that this call gave it."""
    command._help_option = None
    for each in getattr(command, "commands", {}).values():
        forgetful(each)
    return command
