"""One file that stands for many shards: links for other programs, names for attrib, and no way out of its folder."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import attrib
from attrib.core.types import FormatError, InputError
from attrib.store import Collection, merge
from tests.store.test_collection import shards_of


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    shards_of(tmp_path / "shards", [[4, 1], [7], [0, 9, 2]])
    return tmp_path


def files(job: Path) -> list[Path]:
    return sorted((job / "shards").iterdir())


def test_a_merged_file_reads_as_its_shards(job: Path) -> None:
    path = merge(job / "merged.h5", files(job)[:2])
    with attrib.open(path) as merged, attrib.open(job / "shards") as every:
        assert isinstance(merged, Collection)
        assert merged.numbers.tolist() == [1, 4, 7]
        ours, theirs = merged.edges(prompts=[7, 1]), every.edges(prompts=[7, 1])
        assert torch.equal(ours.attribution, theirs.attribution)
        assert ours.prompts.equals(theirs.prompts)
        merge(path, files(job), overwrite=True)
        assert merged.refreshed().numbers.tolist() == [0, 1, 2, 4, 7, 9]


def test_h5py_follows_the_links(job: Path) -> None:
    path = merge(job / "merged.h5", files(job))
    with h5py.File(path) as file:
        assert sorted(file["shards"]) == [shard.stem for shard in files(job)]
        for shard in files(job):
            with h5py.File(shard) as alone:
                assert np.array_equal(file["shards"][shard.stem]["prompts/ids"][:], alone["prompts/ids"][:])


def test_a_folder_moves_with_its_merged_file(job: Path) -> None:
    merge(job / "merged.h5", files(job))
    moved = job.rename(job.with_name("elsewhere"))
    with attrib.open(moved / "merged.h5") as merged, h5py.File(moved / "merged.h5") as file:
        assert len(merged.edges()) > 0
        assert len(file["shards"][files(moved)[0].stem]["prompts/ids"]) > 0


def names(change: Callable[[list[str]], list[str]], file: h5py.File) -> None:
    """Replace the names that a merged file holds."""
    table = file["files"]
    raw, ptr = table["bytes"][:].tobytes(), table["ptr"][:]
    encoded = [name.encode() for name in change([raw[a:b].decode() for a, b in pairwise(ptr)])]
    del table["bytes"], table["ptr"]
    table["bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
    table["ptr"] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)


@pytest.mark.few
@pytest.mark.parametrize("name", ["../outside.h5", "/etc/passwd", "shards/../../outside.h5", "", "shards/a\0b.h5"])
def test_a_name_that_leads_out_of_the_folder_is_refused(job: Path, name: str) -> None:
    path = merge(job / "merged.h5", files(job))
    with h5py.File(path, "r+") as file:
        names(lambda old: [*old, name], file)
    with pytest.raises(FormatError, match="which is not beneath its folder"):
        attrib.open(path)


def test_a_link_that_leads_out_of_the_folder_is_refused(job: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = merge(job / "merged.h5", files(job))
    victim = files(job)[0]
    elsewhere = victim.rename(tmp_path_factory.mktemp("elsewhere") / victim.name)
    victim.symlink_to(elsewhere)
    with pytest.raises(InputError, match="is not beneath"):
        attrib.open(path)
    with pytest.raises(InputError, match="is not beneath"):
        merge(job / "again.h5", files(job))
    assert not (job / "again.h5").exists()


def test_external_links_are_not_followed(job: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the links say is for other programs alone."""
    path = merge(job / "merged.h5", files(job))
    with h5py.File(path, "r+") as file:
        for stem in list(file["shards"]):
            del file["shards"][stem]
            file["shards"][stem] = h5py.ExternalLink("/etc/passwd", "/")
    with attrib.open(path) as merged:
        assert len(merged) == 6
        assert len(merged.edges()) > 0


def test_a_shard_that_is_gone_is_named(job: Path) -> None:
    path = merge(job / "merged.h5", files(job))
    files(job)[1].unlink()
    with pytest.raises(InputError, match="is gone since the merged file was made"):
        attrib.open(path)


def test_what_cannot_be_merged(job: Path) -> None:
    path = merge(job / "merged.h5", files(job))
    with pytest.raises(InputError, match="exists already"):
        merge(path, files(job))
    with pytest.raises(InputError, match="0 files, 0 names; expected at least one"):
        merge(job / "none.h5", [])
    with pytest.raises(InputError, match="2 files, 1 names"):
        merge(job / "twice.h5", files(job)[:1] * 2)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 9
    with pytest.raises(FormatError, match="format version 9 of merged files"):
        attrib.open(path)
