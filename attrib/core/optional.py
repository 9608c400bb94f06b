"""Packages that attrib does not depend on, which only some forms of files need."""

import importlib
from typing import Any

from attrib.core.types import InputError


def needed(name: str, argument: str, extra: str) -> Any:
    """A module of a package that may not be installed. Raises InputError that begins with `argument` and says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"{argument}: needs the package {package}, which is not installed; pip install 'attrib[{extra}]'.") from error
