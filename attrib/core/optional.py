"""Packages that attrib does not depend on: each comes with an extra, and is imported where it is used."""

import importlib
from typing import Any

from attrib.core.types import InputError


def needed(name: str, argument: str, extra: str) -> Any:
    """A module of a package that may not be installed. Raises InputError that begins with `argument` and says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        is_missing = isinstance(error, ModuleNotFoundError) and (error.name or package).partition(".")[0] == package
        why = "is not installed" if is_missing else f"does not import ({error})"
        raise InputError(f"{argument}: needs the package {package}, which {why}; pip install 'attrib[{extra}]'.") from error
