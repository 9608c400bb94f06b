"""Whether what `make wheels` built holds what it should, and nothing else: `python -m tests.support.wheels dist`."""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import attrib
from attrib.adapters import shipped
from tests.support.root import ROOT

LARGEST = 1_350_000
"""Bytes of attrib's wheel, at most, so that no data comes in unseen. It is code: of 1,298,000 bytes 1,131,000 are 3.3 million of Python,
deflated file by file, which the tightest deflating makes less by 0.1%; names and the table of files take 86,000, and the explorer's page,
minified, 57,000. Under a million it would have to go without its docstrings, or in two."""


def main(folder: Path) -> None:
    """Raises AssertionError, which says what is wrong."""
    (ours,) = folder.glob("attrib-*.whl")
    (of_tree,) = folder.glob("of-tree/attrib-*.whl")
    (weights,) = folder.glob("attrib_smollm2-*.whl")
    (source,) = folder.glob("attrib-*.tar.gz")
    assert ours.name == f"attrib-{attrib.__version__}-py3-none-any.whl", ours.name
    assert ours.stat().st_size <= LARGEST, f"{ours.name} has {ours.stat().st_size:,} bytes, over {LARGEST:,}; what came into it?"
    code = content(ours)
    assert code == content(of_tree), f"the source distribution makes another wheel than the tree: {code.keys() ^ content(of_tree).keys()}"
    beside = {name.removeprefix("kernels/") for name in tracked("kernels")}
    check("the wheel", of_package(code), tracked("attrib", "attrib/shipped", "attrib/view/explorer/web") | beside)
    there = {name.removeprefix("attrib_smollm2/") for name in of_package(content(weights))}
    beside = {name.removeprefix("attrib/shipped/") for name in tracked("attrib/shipped/smollm2-135m")}
    check("the wheel of dictionaries", there, {"__init__.py"} | beside)
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    check("the source distribution", names - {"PKG-INFO"}, tracked(".", "attrib/shipped"))
    try_out(ours, weights)
    for path in (ours, weights, source):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


def content(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def of_package(files: Iterable[str]) -> set[str]:
    """Of a wheel's files, those that are no facts about it."""
    return {name for name in files if ".dist-info/" not in name}


def tracked(folder: str, *without: str) -> set[str]:
    """The files of a folder that git has, or would take."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", folder, *(f":!{name}" for name in without)]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in listed if (ROOT / name).exists()}


def check(what: str, found: set[str], wanted: set[str]) -> None:
    """Raises AssertionError where there are other files."""
    assert found == wanted, f"{what} lacks {sorted(wanted - found)[:5]} and has {sorted(found - wanted)[:5]} too much"


def try_out(ours: Path, weights: Path) -> None:
    """Both wheels find each other, beside this environment's packages but away from the checkout; attrib's alone says what it lacks."""
    program = "import attrib; from attrib.adapters import shipped; print(attrib.__file__, attrib.__version__, *shipped())"
    with tempfile.TemporaryDirectory() as site:
        environment = os.environ | {"PYTHONPATH": site}
        for wheel, wanted in ((ours, []), (weights, shipped())):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            asked = [sys.executable, "-c", program]
            said = subprocess.run(asked, cwd=site, env=environment, capture_output=True, text=True, check=True).stdout.split()
            assert said == [str(Path(site) / "attrib" / "__init__.py"), attrib.__version__, *wanted], said


if __name__ == "__main__":
    main(Path(sys.argv[1]))
