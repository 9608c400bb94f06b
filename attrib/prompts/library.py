"""Libraries that only some forms of prompts need."""

import importlib
from typing import Any

from attrib.types import InputError


def library(name: str) -> Any:
    """A module of a package that may not be installed. Raises InputError saying how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = name.partition(".")[0]
        raise InputError(f"prompts: these need the package {missing}, which is not installed; pip install 'attrib[jobs]'.") from error
