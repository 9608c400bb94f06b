"""A job's config, checked: its keys say which kind of job it is, and the kind which keys there are."""

from typing import Any

from attrib.jobs.kinds import of_keys
from attrib.jobs.kinds.edges import JobFile
from attrib.jobs.told import PromptsOf, ShardsOf, confined
from attrib.runs.spec import STORED, checked

__all__ = ["JobFile", "PromptsOf", "ShardsOf", "confined", "job_file", "stored_file"]


def job_file(table: dict[str, Any]) -> Any:
    """A checked job from its keys. Raises InputError naming every key that is wrong."""
    return checked(of_keys(table).file, table, "job")


def stored_file(table: dict[str, Any], where: str) -> Any:
    """A job's config as it was written down, with every key in it. Raises InputError, naming where it stands."""
    return checked(of_keys(table).file, table, where, context=STORED)
