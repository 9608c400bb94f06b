"""What became, since a job was made, of the files that it computes with.

Loading them compares their hashes with the job's, as every worker does; but whoever runs a job that is done should not wait for a
large model. So only those are loaded that lie at a path of this machine and of which some file changed after the job was made,
by the time that the file system itself keeps, and that no copying sets back.
"""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from attrib.fingerprints import Fingerprinted
from attrib.jobs.folder import JOB, Job
from attrib.sources import load_dictionary, load_model
from attrib.types import AttribError


def changed_since(job: Job) -> list[str]:
    """The model and dictionaries of a job, by name, that are other ones now, or are gone."""
    made = (job.folder / JOB).stat().st_mtime
    return [name for name, place in job.fixed.places.items() if _changed(Path(place)) > made and not _is_same(job, name, place)]


def _changed(place: Path) -> float:
    """When a file, or any in a folder, was last changed; without end where it is gone."""
    try:
        return max(path.stat().st_ctime for path in _files(place))
    except (OSError, ValueError):
        return float("inf")


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    for folder, _, names in os.walk(place):
        yield from (Path(folder, name) for name in names)


def _is_same(job: Job, name: str, place: str) -> bool:
    wanted = {job.config.model: job.fixed.model} | job.fixed.dictionaries
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever made the job was told
        try:
            now: Fingerprinted = load_model(place) if name == job.config.model else load_dictionary(place)
        except (AttribError, OSError):
            return False
    return now.matches(wanted[name])
