"""Which attrib this is."""

from importlib import metadata

HERE = "0.1.0"
"""The version in pyproject.toml, for a copy of the source that nobody installed."""


def _installed() -> str:
    try:
        return metadata.version("attrib")
    except metadata.PackageNotFoundError:
        return HERE


__version__ = _installed()
