"""Zip files with something in them changed, as nobody's writer leaves them."""

import zipfile
from collections.abc import Callable
from pathlib import Path


def repacked(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Put into the place of each file in a zip what `change` makes of its name and its bytes."""
    with zipfile.ZipFile(path) as archive:
        entries = [(each.filename, archive.read(each)) for each in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in entries:
            archive.writestr(name, change(name, raw))
