"""Result and statistics files that claim more than they hold, or whose parts contradict each other, and honest files of every kind."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import attrib
from attrib import stats
from attrib.cli import main as cli
from attrib.core.edges import join
from attrib.core.types import Dense, FormatError, InputError, Keep, Mass, Threshold, TopK
from attrib.store import faults, merge, save, select_latents, write, writing
from attrib.store.contradictions import faults_of
from attrib.store.shard import open_shard
from tests.stats.test_stats import random_edges, wide_edges
from tests.store.test_store import ARCHIVE, archive_edges
from tests.support.attribution_cases import all_four
from tests.support.root import ROOT

Change = Callable[[h5py.File], None]
COMPRESSIONS = (None, "gzip", "lzf", "blosc-lz4", "zstd")


def needs_plugin(compression: str | None) -> None:
    if compression in ("blosc-lz4", "zstd"):
        pytest.importorskip("hdf5plugin")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of three blocks, as the functions make them."""
    calls = all_four("gpt2", torch.float32)
    kinds = ("token_to_latent", "latent_to_latent", "latent_to_logit")
    return save(tmp_path_factory.mktemp("honest") / "honest.h5", [calls[kind](keep=Mass(0.8)) for kind in kinds])


@pytest.fixture
def copy(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(honest, tmp_path / "shard.h5"))


def edit(path: Path, change: Change) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def block(file: h5py.File, kind: str = "latent_to_latent") -> h5py.Group:
    return next(group for name, group in file["blocks"].items() if name.startswith(kind))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of `attrib ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["attrib", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


# ------------------------------------------------------------------------------------------- honest files


@pytest.mark.few
@pytest.mark.parametrize(
    ("keep", "dtype"), [(Dense(), torch.float32), (Mass(0.7), torch.float32), (TopK(3), torch.float32), (Threshold(0.05), torch.float64)]
)
def test_an_honest_file_has_no_fault(keep: Keep, dtype: torch.dtype, tmp_path: Path) -> None:
    edges = [call(keep=keep) for call in all_four("gpt2", dtype, 1, 6).values()]
    assert all(len(one) for one in edges)
    path = save(tmp_path / "shard.h5", edges)
    assert list(faults(path)) == []
    with open_shard(path) as store:
        assert list(faults_of(store, keep.fraction if isinstance(keep, Mass) else float(isinstance(keep, Dense)))) == []


@pytest.mark.few
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_honest_file_has_no_fault_however_it_is_compressed(compression: str | None, honest: Path, tmp_path: Path) -> None:
    needs_plugin(compression)
    with attrib.open(honest) as store:
        edges = list(store.values())
    path = save(tmp_path / "shard.h5", edges, compression=compression)
    with attrib.open(path, verify=True) as store:
        for was, now in zip(edges, store.values(), strict=True):
            assert torch.equal(was.attribution, now.attribution)
            assert torch.equal(was.indices, now.indices)


def test_honest_parts_of_results_have_no_fault(honest: Path, tmp_path: Path) -> None:
    """Sliced results keep the sums of what they came from, and of numbered prompts the numbers."""
    with attrib.open(honest) as store:
        edges = store.edges("latent_to_latent")
    some = edges.sources.latent[edges.indices[:: max(1, len(edges) // 7)]]
    sliced = select_latents(edges, some, edges.targets.latent[::3])
    assert 0 < len(sliced) < len(edges)
    assert list(faults(save(tmp_path / "sliced.h5", sliced))) == []
    numbered = replace(edges, prompts=replace(edges.prompts, number=torch.tensor([7, 3, 10**10])))
    assert list(faults(save(tmp_path / "numbered.h5", numbered))) == []


@pytest.mark.parametrize("made", [random_edges(1), wide_edges(1, 2000)], ids=["table", "sketch"])
def test_honest_statistics_have_no_fault(made: Any, tmp_path: Path) -> None:
    part = stats.of(replace(made, attribution=made.attribution * made.attribution.sign()), memory=1 << 18)  # of one sign
    both = stats.merge(stats.of(made, memory=1 << 18), part)
    for number, one in enumerate((part, both)):
        path = stats.save(tmp_path / f"{number}.h5", one)
        assert list(stats.faults(path)) == []
        assert stats.open(path, verify=True).blocks == one.blocks


def test_the_archived_file_contradicts_itself_in_one_row() -> None:
    """It was made by hand, and its second block has its first one's sums: row 1 holds an edge there, and had none."""
    wrong = archive_edges()[1]
    assert (wrong.attribution[1], wrong.total[1], wrong.l1[1]) == (-2, 0, 0)
    with attrib.open(ARCHIVE) as store:
        assert len(list(store.values())) == 2
    assert [str(fault).removeprefix(f"{ARCHIVE}: ") for fault in faults(ARCHIVE)] == [
        "/blocks/latent_to_logit:blocks.1.hook_resid_pre:logits/l1: prompt 0, row 1: it is 0, and the row's |attribution| that is stored "
        "sums to 2"
    ]


# --------------------------------------------------------------------------------------- contradictions


def put(name: str, row: int, value: float, kind: str = "latent_to_latent") -> Change:
    def change(file: h5py.File) -> None:
        block(file, kind)[name][row] = value

    return change


def scaled(name: str, factor: float) -> Change:
    def change(file: h5py.File) -> None:
        data = block(file)[name]
        data[:] = data[:] * factor

    return change


def again(name: str, data: Callable[[np.ndarray], np.ndarray]) -> Change:
    """A dataset written anew, under this one of its names."""

    def change(file: h5py.File) -> None:
        group = block(file)
        was = group[name][:]
        del group[name]
        group[name] = data(was)

    return change


def swapped(file: h5py.File) -> None:
    """The latents of the first position of the second prompt, backwards."""
    group = block(file)["sources"]
    first = int(group["ptr"][1])
    rows = slice(first, first + int((group["position"][first : int(group["ptr"][2])] == 0).sum()))
    group["latent"][rows] = group["latent"][rows][::-1]


def unwritten(file: h5py.File) -> None:
    group = block(file)
    length = len(group["total"])
    del group["total"]
    group.create_dataset("total", (length,), "<f4")


def half_written(file: h5py.File) -> None:
    group = block(file)
    was = group["attribution/data"][:]
    for name in ("data", "values"):
        del group["attribution"][name]
    data = group.create_dataset("attribution/data", was.shape, "<f4", chunks=(16,), compression="gzip", shuffle=True)
    data[:16] = was[:16]


def put_token(file: h5py.File) -> None:
    file["prompts/ids"][3] = -3


def numbered(file: h5py.File) -> None:
    file["prompts/number"] = np.array([5, 9, 5])


def other_call(file: h5py.File) -> None:
    call = json.loads(file.attrs["call"])
    file.attrs["call"] = np.bytes_(json.dumps(call | {"effect": "total"}))


def shape(file: h5py.File) -> None:
    block(file)["gradient"].attrs["shape"] = [1, 2]


CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    "product": (put("attribution/data", 3, 5.0), r"attribution/data: prompt 0, row 3: it is 5, and gradient times activation \S+"),
    "all products": (scaled("gradient/data", 1.001), r"attribution/data: prompt 0, row 0: it is .*; and .* more rows like it"),
    "total": (put("total", 2, 1e3), r"total: prompt \d, row 2: it is 1000, and what is stored sums to \S+: more apart than .*"),
    "l1": (put("l1", 2, 0.0), r"l1: prompt \d, row 2: it is 0, and the row's \|attribution\| that is stored sums to .*"),
    "l1 below 0": (put("l1", 2, -1.0), r"l1: prompt \d, row 2: it is -1, and the row's .*"),
    "remainder": (put("remainder", 2, 9.0), r"remainder: prompt \d, row 2: it is 9, and total less what is stored .*"),
    "NaN": (put("attribution/data", 3, np.nan), r"attribution/data: prompt 0, row 3: it is nan, and not a finite number"),
    "inf gradient": (put("gradient/data", 0, -np.inf), r"gradient/data: prompt 0, row 0: it is -inf, and not a finite number"),
    "inf total": (put("total", 1, np.inf), r"total: prompt \d, row 1: it is inf, and not a finite number"),
    "inf l1": (put("l1", 1, np.inf), r"l1: prompt \d, row 1: it is inf, and not a finite number"),
    "NaN remainder": (put("remainder", 1, np.nan), r"remainder: prompt \d, row 1: it is nan, and not a finite number"),
    "NaN source": (put("sources/activation", 0, np.nan), r"sources/activation: prompt 0, row 0: it is nan, and not a finite number"),
    "NaN activation": (put("targets/activation", 1, np.nan), r"targets/activation: prompt \d, row 1: it is nan, and not .*"),
    "negative latent": (put("sources/latent", 0, -7), r"sources/latent: prompt 0, row 0: the latent is -7, and expected from 0 to 39.*"),
    "latent too large": (put("targets/latent", -1, 40), r"targets/latent: prompt 2, row \d+: the latent is 40, and expected from 0 .*"),
    "order": (swapped, r"sources/position: prompt 1, row \d+: latent \d+ at 0 stands behind its place; and .*"),
    "position": (put("sources/position", 0, 40), r"prompt 0: \S+: in prompts 0 to 1, a position of the latent nodes is outside .*"),
    "token": (put("sources/latent", 0, 59, "token"), r"sources/latent: prompt 0, row 0: the token is 59, and the prompt's at 0 is \d+"),
    "probability": (put("targets/probability", 0, 1.5, "latent_to_logit"), r"targets/probability: prompt 0, row 0: 1\.5 is no probability"),
    "index": (put("gradient/indices", 0, 10**6), r"prompt 0: \S+: in prompts 0 to 1, indices do not ascend within each row, .*"),
    "last index": (put("gradient/indices", -1, -1), r"prompt 2: \S+: in prompts 2 to 3, indices do not ascend within each row, .*"),
    "pointer": (put("gradient/indptr", 1, 10**6), r"\S+/gradient/indptr: does not rise from 0 to \d+; .*"),
    "other indices": (
        again("attribution/indices", lambda was: was + 1), r"attribution/indices: row 0: it differs from \S+/gradient/indices, .*"
    ),
    "other values": (again("gradient/values", lambda was: was * 2), r"gradient/values: row 0: it differs from \S+/gradient/data, .*"),
    "shape": (shape, r"gradient: its attribute shape is \[1 2\], and its block has \d+ targets and \d+ sources"),
    "unwritten": (unwritten, r"\S+/total: its values were never written; .*"),
    "half written": (half_written, r"\S+/attribution/data: 1 of its \d+ chunks were ever written; .*"),
    "numbers": (numbered, r"/prompts/number: prompt 5, row 2: a prompt before it has this number too"),
    "negative token": (put_token, r"prompt 1: \S+: in prompts 1 to 2, prompts\.ids has -3, and token ids are numbers from 0; .*"),
    "call": (other_call, r".*: its call says something else of effect than the call of all blocks"),
}  # fmt: skip


@pytest.mark.few
@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_one_clear_line(name: str, copy: Path) -> None:
    change, line = CONTRADICTIONS[name]
    edit(copy, change)
    found = [str(fault).removeprefix(f"{copy}: ") for fault in faults(copy)]
    # what is wrong with the prompts or the file's call is met in every block
    assert len(found) == (3 if name in ("negative token", "call") else 1), found
    assert all(re.fullmatch(rf"(/blocks/[^/ ]*/)?{line}", one) for one in found), found


def test_the_first_fault_is_raised_where_it_is_asked_for(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(copy, put("total", 2, 1e3))
    edit(copy, put("l1", 4, -1.0))
    first, second = faults(copy)
    with pytest.raises(FormatError, match=re.escape(f"{first}. `attrib verify-file` lists all faults")):
        attrib.open(copy, verify=True)
    attrib.open(copy).close()  # what is cheap to see is right
    assert command(monkeypatch, "verify-file", copy) == 1
    shown = capsys.readouterr()
    assert (shown.out.splitlines(), shown.err) == ([str(first), str(second)], "error: 2 faults in 1 file.\n")
    assert command(monkeypatch, "verify-file", copy, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == 1
    assert told["faults"][0] == {"file": str(copy), "where": first.where, "what": first.what, "prompt": first.prompt, "row": 4, "more": 0}


def test_files_folders_and_merged_files_are_verified(
    honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    numbers: Iterator[int] = iter(range(6))
    with attrib.open(honest) as store:
        edges = store.edges("latent_to_logit")
    for name in ("a.h5", "b.h5"):
        save(folder / name, replace(edges, prompts=replace(edges.prompts, number=torch.tensor([next(numbers) for _ in range(3)]))))
    both, statistics = merge(tmp_path / "both.h5", [folder / "a.h5", folder / "b.h5"]), stats.save(tmp_path / "s.h5", stats.of(edges))
    whole = [honest, folder, both, statistics]
    assert command(monkeypatch, "verify-file", *whole) == 0
    assert capsys.readouterr().out.splitlines() == [f"{path}: no fault in it" for path in whole]
    attrib.open(both, verify=True).close()
    edit(folder / "b.h5", lambda file: block(file, "latent_to_logit")["total"].write_direct(np.full(len(edges.targets), 1e3, np.float32)))
    for path in (folder, both):
        [fault] = faults(path)
        assert (fault.file, fault.prompt, fault.row, fault.more) == (folder / "b.h5", 3, 0, len(edges.targets) - 1)
        with pytest.raises(FormatError, match=r"b\.h5: /blocks/.*/total: prompt 3, row 0"):
            attrib.open(path, verify=True)
    edit(folder / "b.h5", lambda file: file["prompts/number"].write_direct(np.arange(3, dtype=np.int32)))
    assert command(monkeypatch, "verify-file", *whole) == 1
    assert re.fullmatch(r"(\S*b\.h5: .*/total: prompt 0, row 0: .*\n){2}", capsys.readouterr().out)
    save(folder / "b.h5", replace(edges, prompts=replace(edges.prompts, number=torch.arange(3))), overwrite=True)
    [fault] = faults(folder)
    assert "its prompt of number 0 is in" in fault.what


TABLE = "blocks/latent_to_latent:blocks.1.hook_resid_pre:blocks.2.hook_resid_pre"


def cell(name: str, row: int, value: float) -> Change:
    def change(file: h5py.File) -> None:
        file[f"{TABLE}/{name}"][row] = value

    return change


@pytest.mark.few
@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            cell("by_source/prompt", 4, 77),
            r"by_source/prompt: row 4: it has not what by_target has in row \d+, the pair \(target \d+, source 0\)",
        ),
        (cell("by_target/prompt", 4, 77), r"by_source/prompt: row \d+: it has not what by_target has in row 4, the pair .*"),
        (cell("by_source/other", -1, 200), r"by_source/other: row \d+: it has not what by_target has in row \d+, the pair .*"),
        (cell("by_source/latent", -1, 200), r"by_source/other: row \d+: it has not what by_target has .*"),
        (cell("by_target/latent", 0, 1), r".*the pairs of by_target do not ascend.*"),
        (cell("by_source/sum_high", 3, 2**30), r".*by_source: a sum is larger than that of the absolute values, .*"),
        (cell("by_source/maximum", 3, 1e4), r".*by_source: a maximum is larger than the sum of the absolute values, .*"),
        (cell("by_target/negative", 0, 0), r".*by_target: a pair has edges of one sign, and a sum that says otherwise.*"),
    ],
)
def test_statistics_that_contradict_themselves(change: Change, line: str, tmp_path: Path) -> None:
    made = random_edges(1)
    twice = stats.of([made, replace(made, attribution=-made.attribution)])  # so that pairs have both signs
    path = edit(stats.save(tmp_path / "table.h5", twice), change)
    [fault] = stats.faults(path)
    assert re.fullmatch(rf"{re.escape(str(path))}: (/{TABLE}/)?{line}", str(fault))
    with pytest.raises(FormatError, match=re.escape(str(fault))):
        stats.open(path, verify=True)


def test_a_sketch_that_contradicts_itself(tmp_path: Path) -> None:
    path = stats.save(tmp_path / "sketch.h5", stats.of(wide_edges(1, 2000), memory=1 << 18))
    edit(path, cell("leaves/count", 70, 10**6))
    [fault] = stats.faults(path)
    assert fault.where == f"/{TABLE}"
    assert "row 1 of a sketch is not the sum of the same pairs as the others" in fault.what


# ------------------------------------------------------------------------------------------------ bombs

MORE = 150
"""MB beyond what the process has before it reads."""
HUGE = 1 << 29
"""Bytes that a bomb would become."""

READ = """
import json, sys
import torch
import attrib
from attrib import stats, store
from attrib.core.types import AttribError
from tests.support.memory import peak
def whole(path):
    with attrib.open(path) as opened:
        opened.prompts
        list(opened.values())
def collected(path):
    with store.open_collection(path) as opened:
        list(opened.values())
attrib.open(sys.argv[1], verify=True).close()
whole(sys.argv[1])
before = peak()
for path in sys.argv[2:]:
    said = []
    for read in (whole, collected, stats.open, lambda path: [said.append(str(fault)) for fault in store.faults(path)]):
        try:
            read(path)
        except AttribError as error:
            said.append(str(error))
    print(json.dumps([peak() - before >> 20, said]))
"""


def deflated(size: int) -> bytes:
    """A stream of deflate that inflates to so many zeros: a mebibyte's blocks, over and over."""
    stream = zlib.compressobj(9)
    head = stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)
    again = stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)
    return head + again * ((size >> 20) - 1) + stream.flush()


def lzf(size: int) -> bytes:
    """Runs of lzf that repeat a byte so many times."""
    return b"\x00\x00" + b"\xe0\xff\x00" * (size // 264)


def zstandard(size: int) -> bytes:
    """A frame of zstd whose blocks, of four bytes each, are runs of 128 KiB of one byte."""
    run = (1 << 17 << 3 | 1 << 1).to_bytes(3, "little") + b"\x00"
    last = (1 << 17 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\x00"
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + run * ((size >> 17) - 1) + last


def bloscked(size: int) -> bytes:
    """The head of a chunk of blosc that says that it becomes so many bytes, and nothing."""
    return b"\x02\x01\x21\x01" + size.to_bytes(4, "little") + (1 << 20).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(48)


def edges_of(raw: bytes, compression: str, rows: int = 1 << 18, chunk: int = 1 << 18) -> Change:
    """So many edges, each chunk of whose columns is this."""

    def change(file: h5py.File) -> None:
        group = block(file)
        for name in ("gradient/data", "gradient/indices", "attribution/data"):
            dtype = group[name].dtype
            del group[name]
            data = group.create_dataset(name, (rows,), dtype, chunks=(chunk,), **write.filters_of(compression))
            for start in range(0, rows, chunk):
                data.id.write_direct_chunk((start,), raw)
        group["gradient/indptr"][-1] = rows

    return change


def prompts_of(compression: str, length: int) -> Change:
    """Pointers of so many prompts without tokens: each chunk is the same few bytes."""

    def change(file: h5py.File) -> None:
        options = {"chunks": (1 << 17,), **write.filters_of(compression)}
        _, raw = file.create_dataset("one", data=np.zeros(1 << 17, np.int64), **options).id.read_direct_chunk((0,))
        del file["prompts/ptr"]
        ptr = file.create_dataset("prompts/ptr", (length,), "<i8", **options)
        for start in range(0, length, 1 << 17):
            ptr.id.write_direct_chunk((start,), raw)
        del file["one"]

    return change


def twice_deflated(file: h5py.File) -> None:
    group, plist = block(file), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    length = len(group["total"])
    plist.set_chunk((length,))
    plist.set_deflate(9)
    plist.set_deflate(9)
    del group["total"]
    data = h5py.Dataset(h5py.h5d.create(group.id, b"total", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((length,)), plist))
    data.id.write_direct_chunk((0,), zlib.compress(deflated(HUGE), 9))


def attribute(where: str, name: str, value: bytes) -> Change:
    """A text attribute, dense as HDF5 stores what is long."""
    return lambda file: file[where].attrs.__setitem__(name, np.bytes_(value))


def claim(name: str, **options: Any) -> Change:
    """A column that claims a length, with nothing behind it."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **({"shape": (1 << 40,), "dtype": "<i8"} | options))

    return change


BEYOND = r"bytes in chunks of \d+ are more than the file of \d+ bytes holds"
BOMBS: dict[str, tuple[Change, int, str]] = {
    "a chunk of deflate": (edges_of(deflated(HUGE), "gzip"), 2_000_000, r"gradient/indices: its chunk 0 unpacks to more than 1048576"),
    "a chunk of zstd": (edges_of(zstandard(HUGE), "zstd"), 200_000, r"gradient/indices: its chunk 0 unpacks to 536870912 bytes, where 10"),
    "a chunk of blosc": (edges_of(bloscked(HUGE), "blosc-lz4"), 100_000, r"indices: its chunk 0 unpacks to 536870912 bytes, where 10"),
    "a chunk of lzf": (edges_of(lzf(80 << 20), "lzf"), 3_000_000, r"indices: its chunk 0 unpacks to 83886001 bytes, where 1048576 are"),
    "short lzf": (edges_of(lzf(1 << 19), "lzf"), 100_000, r"indices: its chunk 0 unpacks to 524041 bytes, where 1048576 are"),
    "larger than its chunk": (edges_of(deflated(HUGE), "gzip", 1 << 10, 1 << 10), 2_000_000, r"chunks take more than the 4096 bytes"),
    "many chunks": (edges_of(deflated(1 << 20), "gzip", HUGE >> 2), 2_000_000, rf"gradient/indices: 536870912 {BEYOND}"),
    "pointers of zstd": (prompts_of("zstd", 1 << 28), 800_000, rf"/prompts/ptr: 2147483648 {BEYOND}"),
    "pointers of lzf": (prompts_of("lzf", 1 << 25), 5_000_000, rf"/prompts/ptr: 268435456 {BEYOND}"),
    "deflate twice": (twice_deflated, 80_000, r"/total: the filters deflate and deflate are not as attrib writes them: none, or"),
    "a long call": (attribute("/", "call", b'{"": "' + b" " * (17 << 20) + b'"}'), 18_000_000, r"text of fixed length, of 16,777,216"),
    "a deep call": (attribute("/", "call", b'{"": [' + b"[]," * (5 << 20) + b"0]}"), 16_000_000, r"JSON of more than 131,072 lists"),
    "pointers without end": (claim("prompts/ptr"), 80_000, rf"/prompts/ptr: 8796093022208 {BEYOND}"),
    "one chunk without end": (
        claim("prompts/ptr", chunks=(1 << 28,), shape=(1 << 28,), **write.filters_of("gzip")), 80_000, rf"ptr: 2147483648 {BEYOND}",
    ),
    "text of any length": (claim("prompts/ids", shape=(14,), dtype=h5py.string_dtype()), 80_000, r"/prompts/ids: object \(14,\), and not"),
    "text that is compressed": (
        claim("prompts/strings/bytes", shape=(99,), dtype="u1", **write.filters_of("gzip")), 80_000, r"bytes: the filters .*: none;",
    ),
    "values of another file": (
        claim("prompts/ids", shape=(14,), dtype="<i4", external=[("/etc/passwd", 0, 56)]), 80_000, r"its values lie in another file",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def read(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str]]]:
    """What came of each: MB of the process's peak by then, and what was said by each way of reading it."""
    pytest.importorskip("hdf5plugin")
    folder = tmp_path_factory.mktemp("bombs")
    paths = []
    for number, (change, size, _) in enumerate(BOMBS.values()):
        paths.append(edit(Path(shutil.copy(honest, folder / f"{number}.h5")), change))
        assert paths[-1].stat().st_size < size, paths[-1].stat()
    command = [sys.executable, "-c", READ, honest, *paths]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return dict(zip(BOMBS, map(json.loads, ran.stdout.splitlines()), strict=True))


@pytest.mark.few
@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_no_more_than_it_accounts_for(bomb: str, read: dict[str, tuple[int, list[str]]]) -> None:
    more, said = read[bomb]
    assert more < MORE, f"{more} MB"
    told = [one for one in said if re.search(BOMBS[bomb][2], one)]
    assert len(told) >= 2, said  # of the file by itself, where it is opened or read, and of what verify finds
    assert any("not of statistics" in one or one in told for one in said)


# ----------------------------------------------------------------------------------------- no files at all


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket", "nothing"])
def test_what_is_no_file_is_refused_at_once(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    path = tmp_path / "x.h5"
    with socket.socket(socket.AF_UNIX) as waiting:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path = Path(os.devnull)
            assert stat.S_ISCHR(path.stat().st_mode)
        elif kind == "folder":
            path.mkdir()
        elif kind == "socket":
            monkeypatch.chdir(tmp_path)
            waiting.bind("x.h5")
        said = {"folder": "x.h5 has no shards", "nothing": f"there is no file {path}"}.get(kind, f"{path} is a {kind}")
        for opens in (attrib.open, stats.open):
            with pytest.raises(InputError, match=re.escape("is a folder" if kind == "folder" and opens is stats.open else said)):
                opens(path)
        for arguments in (
            ["show", path],
            ["verify-file", path],
            ["export", path, tmp_path / "out", "--to", "parquet"],
            ["rerun", path, "--prompt", 0],
        ):
            assert command(monkeypatch, *arguments) == 1
            shown = capsys.readouterr()
            assert said in shown.out + shown.err
            assert "Traceback" not in shown.err


def test_a_pipe_among_shards_is_refused(honest: Path, tmp_path: Path) -> None:
    shutil.copy(honest, tmp_path / "a.h5")
    os.mkfifo(tmp_path / "b.h5")
    for opens in (attrib.open, lambda path: list(faults(path))):
        with pytest.raises(InputError, match=r"b\.h5: neither a file nor a link to one in the folder"):
            opens(tmp_path)


def test_what_no_reader_would_take_is_not_written(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges that are all alike leave less than a byte of each."""
    with attrib.open(honest) as store:
        edges = store.edges("latent_to_latent")
    monkeypatch.setattr(writing, "FEW", 100)
    same = replace(edges, **{name: torch.zeros_like(getattr(edges, name)) for name in ("gradient", "attribution", "total", "l1")})
    many = join([same] * 40)
    with pytest.raises(InputError, match=r"compression: 'gzip' makes [\d,]+ bytes of columns of [\d,]+ rows, .*without compression"):
        save(tmp_path / "small.h5", many, compression="gzip")
    assert not list(tmp_path.iterdir())
    assert list(faults(save(tmp_path / "large.h5", many))) == []
