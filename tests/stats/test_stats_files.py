"""Statistics files: what is written, what is mapped and not read, and files that lie."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from attrib import save, stats
from attrib.core.types import FormatError, InputError
from attrib.runs.rerun import rerun
from attrib.stats import files
from attrib.stats.rows import Aggregates
from attrib.stats.sketch import DEPTH, bits_of
from attrib.stats.statistics import BlockStatistics, Statistics
from attrib.stats.table import Table
from attrib.store import merge
from attrib.store import open as open_store
from attrib.store.layout import STATISTICS
from tests.stats.test_stats import random_edges, saved, table_of, wide_edges

MEMORY = 1 << 18
BLOCK = "blocks/latent_to_latent:blocks.1.hook_resid_pre:blocks.2.hook_resid_pre"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return stats.save(tmp_path / "table.h5", stats.of(random_edges(1), memory=MEMORY))


@pytest.fixture
def sketch(tmp_path: Path) -> Path:
    return stats.save(tmp_path / "sketch.h5", stats.of(wide_edges(1, 2000), memory=MEMORY))


def read_all(path: Path) -> None:
    """Every way to read a file."""
    opened = stats.open(path)
    for part in opened.parts:
        for latent in range(-1, 8):
            part.top(part.parents(latent), 5, "l1")
            part.top(part.children(latent), 5, "l1")
    stats.merge(opened)


# -------------------------------------------------------------------------------------------- layout


def test_a_table_is_two_csr_matrices(table: Path) -> None:
    """The specification's own reading, by h5py and numpy alone."""
    rows = table_of(stats.open(table))
    with h5py.File(table) as file:
        assert file.attrs["format"] == b"attrib-statistics"
        assert (file.attrs["format_version"], file.attrs["memory"]) == (1, MEMORY)
        for side, own, other in (("by_target", 0, 1), ("by_source", 1, 0)):
            group = file[BLOCK][side]
            latent = np.repeat(group["latent"][:], np.diff(group["ptr"][:]))
            pairs = np.stack([latent, group["other"][:]])
            assert (np.lexsort([pairs[1], pairs[0]]) == np.arange(len(latent))).all()
            l1 = group["l1_high"][:] * 2.0**-4 + group["l1_low"][:] * 2.0**-66
            found = {(pair[own], pair[other]): value for *pair, value in zip(*pairs.tolist(), l1.tolist(), strict=True)}
            assert len(found) == len(rows.key)
            assert all(
                found[(key >> 32) - 1, (key & 2**32 - 1) - 1] == value for key, value in zip(rows.key.tolist(), l1_of(rows), strict=True)
            )


def l1_of(rows: Aggregates) -> list[float]:
    return (rows.l1_high * 2.0**-4 + rows.l1_low * 2.0**-66).tolist()


def test_a_sketch_has_the_size_that_the_bound_says(sketch: Path) -> None:
    with h5py.File(sketch) as file:
        group, size = file[BLOCK], DEPTH << bits_of(MEMORY)
        assert group.attrs["bits"] == bits_of(MEMORY)
        assert {len(column) for name in group for column in group[name].values()} == {size}
        assert sum(column.nbytes for name in group for column in group[name].values()) <= MEMORY / 2
        assert group["target32_source8/high"].dtype == np.int64


def test_an_empty_result_is_a_table_of_no_pairs(tmp_path: Path) -> None:
    path = stats.save(tmp_path / "empty.h5", stats.of(random_edges(0, prompts=0)))
    assert len(stats.open(path).top_parents(0)) == 0
    assert len(stats.merge(path, path).part().held) == 0  # type: ignore[arg-type]
    assert stats.open(stats.save(tmp_path / "none.h5", stats.of([]))).blocks == []


def test_latents_of_all_sizes_are_found(tmp_path: Path) -> None:
    edges = wide_edges(0, 900)
    latents = edges.sources.latent.clone()
    latents[:3], latents[-3:] = 2**32 - 2, -1
    wide = replace(edges, sources=replace(edges.sources, latent=latents), targets=replace(edges.targets, latent=latents))
    statistics = stats.of(wide)
    opened = stats.open(stats.save(tmp_path / "wide.h5", statistics))
    for latent in (-1, 5, 2**31, 2**32 - 2):
        assert opened.top_parents(latent).equals(statistics.top_parents(latent))
        assert opened.top_children(latent).equals(statistics.top_children(latent))
        assert (len(opened.top_children(latent)) > 0) == (latent != 2**31)
    narrow = stats.open(stats.save(tmp_path / "narrow.h5", stats.of(random_edges(0))))
    assert len(narrow.top_parents(2**31)) == 0, "a latent that the file's 32 bits do not hold"
    for latent in (-2, 2**32 - 1):
        with pytest.raises(InputError, match=rf"latent: {latent}; expected a latent's number"):
            opened.top_parents(latent)


def test_a_question_reads_its_own_rows_only(table: Path) -> None:
    """Damage elsewhere is not met: nothing is read there."""
    before = stats.open(table).top_parents(0)
    with h5py.File(table, "r+") as file:
        start, stop = file[BLOCK]["by_target/ptr"][:2]
        file[BLOCK]["by_target/count"][stop:] = -7
        file[BLOCK]["by_source/count"][:] = -7
    opened = stats.open(table)
    assert start < stop
    assert opened.top_parents(0).equals(before)
    with pytest.raises(FormatError, match=r"table\.h5: damaged: latent_to_latent .*by_target: a count is below 0"):
        opened.top_parents(1)
    with pytest.raises(FormatError, match=r"by_source: a count is below 0"):
        opened.top_children(0)


def test_a_reader_keeps_what_it_opened(table: Path, tmp_path: Path) -> None:
    opened = stats.open(table)
    before = opened.top_parents(0)
    stats.save(table, stats.of(random_edges(2)), overwrite=True)
    assert opened.top_parents(0).equals(before)
    assert not stats.open(table).top_parents(0).equals(before)
    assert list(tmp_path.iterdir()) == [table]


def test_names_that_are_taken_are_refused(table: Path, tmp_path: Path) -> None:
    statistics, before = stats.open(table), table.read_bytes()
    with pytest.raises(InputError, match=r"path: .*table\.h5 exists already.*overwrite=True"):
        stats.save(table, statistics)
    with pytest.raises(InputError, match=r"path: the folder .*absent does not exist"):
        stats.save(tmp_path / "absent" / "s.h5", statistics)
    assert table.read_bytes() == before


def test_nothing_but_statistics_is_replaced(table: Path, tmp_path: Path) -> None:
    statistics = stats.open(table)
    (tmp_path / "shards").mkdir()
    shard = save(tmp_path / "shards" / "0.h5", random_edges(0))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["X"] = [1.0]
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / "cut.h5").write_bytes(table.read_bytes()[:1000])
    for path in (shard, merge(tmp_path / "merged.h5", [shard]), *(tmp_path / name for name in ("other.h5", "job.json", "cut.h5"))):
        before = path.read_bytes()
        with pytest.raises(InputError, match=rf"path: {path} is not a statistics file, and --overwrite \(in Python, overwrite=True\) repl"):
            stats.save(path, statistics, overwrite=True)
        assert path.read_bytes() == before


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full_disk)
    with pytest.raises(OSError, match="No space left"):
        stats.save(tmp_path / "s.h5", stats.of(random_edges(0)))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- from shards


def test_shards_and_folders_of_them(tmp_path: Path) -> None:
    edges = [random_edges(i, prompts=3, first=3 * i) for i in range(4)]
    folder = tmp_path / "shards"
    folder.mkdir()
    paths = [save(folder / f"{i}.h5", part) for i, part in enumerate(edges)]
    wanted = saved(stats.of(edges), tmp_path)
    for given in ([folder], paths, [*reversed(paths)], [tmp_path]):
        assert saved(stats.of_files(given), tmp_path) == wanted


def test_a_folder_without_shards_is_no_corpus(tmp_path: Path) -> None:
    save(tmp_path / "0.h5", random_edges(0))
    (tmp_path / "job" / "shards").mkdir(parents=True)
    for empty in (tmp_path / "job", tmp_path / "job" / "shards"):
        with pytest.raises(
            InputError, match=rf"paths: the folder {empty} has no shards; expected some\. Run its job first, or leave it out"
        ):
            stats.of_files([tmp_path / "0.h5", empty])


GROWTH = """
import sys, tracemalloc
from attrib import stats
stats.of_files([sys.argv[1]], memory=1 << 20)  # what is imported, and made once, does not count
tracemalloc.start()
for count in (4, 12):
    tracemalloc.reset_peak()
    stats.of_files(sys.argv[1 : 1 + count], memory=1 << 20)
    print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.long
def test_building_takes_no_more_memory_for_more_shards(tmp_path: Path) -> None:
    """numpy's arrays are traced; torch's are of one run of prompts of one shard.

    In the first four shards the pairs pass the bound, 2,621, and the rows that wait their least, 65,536.
    """
    paths = [str(save(tmp_path / f"{i}.h5", wide_edges(i, 20_000))) for i in range(12)]
    done = subprocess.run([sys.executable, "-c", GROWTH, *paths], capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split())
    assert many < 1.1 * few


# ------------------------------------------------------------------------------------- hostile files


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.05, 0.3, 0.6, 0.95, 0.9999])
@pytest.mark.parametrize("form", ["table", "sketch"])
def test_a_truncated_file_says_so(form: str, fraction: float, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(form)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(FormatError, match=rf"{form}\.h5: (truncated or damaged|not an HDF5 file)"):
        stats.open(path)


@pytest.mark.parametrize("form", ["table", "sketch"])
def test_changed_bytes_are_an_error_or_other_numbers_and_never_more(form: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(form)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, len(whole), 20).tolist():
        spoilt = bytearray(whole)
        spoilt[at : at + 8] = rng.bytes(8)
        path.write_bytes(bytes(spoilt))
        try:
            read_all(path)
        except (FormatError, InputError):  # an InputError where sums pass the range
            refused += 1
    assert refused


def test_foreign_files_are_told_apart(tmp_path: Path, table: Path) -> None:
    (sub := tmp_path / "shards").mkdir()
    shard = save(tmp_path / "shard.h5", random_edges(0))
    with pytest.raises(
        FormatError,
        match=r"shard\.h5: an HDF5 file, but not of statistics: a shard of edges, .* Give a file that `attrib stats build` wrote",
    ):
        stats.open(shard)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["X"] = [1.0]
    with pytest.raises(FormatError, match=r"other\.h5: an HDF5 file, but not of statistics: it holds \['X'\]"):
        stats.open(tmp_path / "other.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(FormatError, match=r"text\.h5: not an HDF5 file"):
        stats.open(tmp_path / "text.h5")
    merged = merge(tmp_path / "merged.h5", [save(sub / "shard.h5", random_edges(0))])
    with pytest.raises(FormatError, match=r"merged\.h5: an HDF5 file, but not of statistics: a merged file, which stands for shards"):
        stats.open(merged)
    for read in (open_store, lambda path: stats.of_files([path]), lambda path: rerun(path, 0)):
        with pytest.raises(FormatError, match=r"table\.h5: statistics, which attrib\.stats\.open and `attrib stats show` read; expected a"):
            read(table)
    assert STATISTICS == "attrib-statistics"


def data(where: str, values: Any, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[f"{BLOCK}/{where}"]
        file.create_dataset(f"{BLOCK}/{where}", data=values, **options)

    return change


def value(where: str, at: int, number: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[f"{BLOCK}/{where}"][at] = number

    return change


def claim(where: str, length: int) -> Callable[[h5py.File], None]:
    """A column that claims a length, with nothing behind it."""

    def change(file: h5py.File) -> None:
        del file[f"{BLOCK}/{where}"]
        file.create_dataset(f"{BLOCK}/{where}", shape=(length,), dtype="i8")

    return change


def link(where: str, to: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[f"{BLOCK}/{where}"]
        file[f"{BLOCK}/{where}"] = to

    return change


def attribute(where: str, name: str, to: Any) -> Callable[[h5py.File], None]:
    return lambda file: file[where].attrs.__setitem__(name, np.bytes_(to) if isinstance(to, str) else to)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attribute("/", "format_version", 2), r"statistics of format version 2; this attrib reads version 1"),
        (attribute("/", "memory", -1), r"the attribute memory is -1, and not a positive integer"),
        (attribute("/", "memory", np.array([1, 2])), r"the attribute memory is \[1 2\]"),
        (attribute("/", "memory", 5), r"a memory bound of 5 bytes, less than the least"),
        (attribute(BLOCK, "call", "[1]"), r"attribute call is not a JSON object"),
        (attribute(BLOCK, "source", "elsewhere"), r"its attributes name it latent_to_latent:elsewhere:"),
        (attribute(BLOCK, "bits", 3), r"'target8' is missing or not a group"),
        (attribute(BLOCK, "bits", "3"), r"the attribute bits is not an integer"),
        (lambda file: file.__delitem__(f"{BLOCK}/by_source"), r"'by_source' is missing or not a group"),
        (lambda file: file.__delitem__(f"{BLOCK}/by_source/ptr"), r"'ptr' is missing or not a dataset"),
        (data("by_target/count", np.zeros(3, np.int32)), r"the length of by_target/count disagrees with the others"),
        (data("by_target/count", np.zeros(3, np.float32)), r"by_target/count: float32 \(3,\), and not <i4 or <i8"),
        (data("by_target/maximum", ["a"], dtype=h5py.string_dtype()), r"by_target/maximum: object"),
        (claim("by_target/count", 2**50), r"\d+ bytes in chunks of 0 are more than the file|do not lie in one stretch"),
        (claim("by_target/l1_low", 7), r"by_target/l1_low: its values were never written"),
        (data("by_target/l1_low", np.zeros(400, np.int64), chunks=(400,)), r"its values do not lie in one stretch of the file"),
        (data("by_target/count", np.ones(400, np.int64), chunks=(400,), compression="gzip", shuffle=True), r"do not lie in one stretch"),
        (link("by_target/count", h5py.SoftLink("/x")), r"'count' is missing or not a dataset"),
        (link("by_target/count", h5py.ExternalLink("other.h5", "/x")), r"'count' is missing or not a dataset"),
        (value("by_target/ptr", 1, 10**9), r"by_target/ptr of latent 0 is 0:1000000000"),
        (value("by_source/ptr", 1, -4), r"by_source/ptr of latent 0 is 0:-4"),
        (value("by_target/other", 0, 10**6), r"the pairs of by_target do not ascend"),
        (value("by_target/other", 0, -9), r"by_target has latents outside -1"),
        (value("by_target/count", 0, 0), r"a pair has no edges"),
        (value("by_target/positive", 0, 10**6), r"the counts disagree"),
        (value("by_target/l1_low", 0, -1), r"a sum is no fixed-point number"),
        (value("by_source/maximum", 0, np.nan), r"or a maximum not finite"),
    ],
)
def test_parts_that_disagree_are_named(table: Path, change: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(table, "r+") as file:
        change(file)
    with pytest.raises(FormatError, match=rf"table\.h5.*({message})"):
        read_all(table)


@pytest.mark.few
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attribute(BLOCK, "bits", 9), r"a sketch of 9 bits in columns of \[\d+\]; expected 6 for its memory bound"),
        (data("target8/high", np.zeros(4, np.int64)), r"a sketch of 6 bits in columns of \[4, 256\]; expected 6 .*, and 256"),
        (data("leaves/count", np.zeros(256, np.int32)), r"leaves/count: int32 \(256,\), and not <i8"),
        (value("target16/low", 0, 5), r"row 0 of a sketch is not the sum of the same pairs as the others"),
        (value("leaves/count", 70, 10**6), r"row 1 of a sketch is not the sum"),
        (value("leaves/positive", 0, -1), r"row 0 of a sketch has a count below 0"),
        (value("leaves/maximum", 0, np.inf), r"row 0 of a sketch has a count below 0 or an infinite maximum"),
    ],
)
def test_sketches_that_disagree_are_named(sketch: Path, change: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(sketch, "r+") as file:
        change(file)
    with pytest.raises(FormatError, match=message):
        read_all(sketch)


def test_rows_out_of_order_are_not_merged(table: Path) -> None:
    opened = stats.open(table)
    rows = table_of(opened)
    swapped = Table(rows.take(np.arange(len(rows.key))[::-1]))
    part = opened.parts[0]
    path = table.with_name("swapped.h5")
    stats.save(path, Statistics(MEMORY, (BlockStatistics(part.block, swapped, part.call),)))
    with pytest.raises(FormatError, match=r"the pairs of by_target do not ascend|by_target/ptr does not rise"):
        stats.merge(path)


def test_order_is_checked_from_part_to_part(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART", 1)
    whole = stats.merge(table).part().held
    assert isinstance(whole, Table)
    assert np.array_equal(whole.rows.key, table_of(stats.of(random_edges(1))).key)
    with h5py.File(table, "r+") as file:
        latent = file[BLOCK]["by_target/latent"]
        latent[:2] = latent[:2][::-1]
    with pytest.raises(FormatError, match=r"damaged: .*: the pairs do not ascend"):
        stats.merge(table)
