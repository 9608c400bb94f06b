"""Typer's commands, built once.

At every call of an application typer makes all its commands anew, from the signatures of their functions: 0.1 seconds of attrib's,
which is more than what most commands of tests do. A command that has run is none the worse for it.
"""

from functools import cache

import typer.main
import typer.testing


def hasten() -> None:
    """Build the commands of an application once from now on."""
    typer.main.get_command = typer.testing._get_command = cache(typer.main.get_command)
