"""Edges ↔ HDF5: what is saved comes back, other tools read it, and a bad file or a failed write is an error that says what to do."""

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attrib.core.edges import Edges, Nodes, Prompts, join
from attrib.core.types import FormatError, InputError, Site
from attrib.store import open as open_store
from attrib.store import reading, save, write
from attrib.store.layout import Codec
from attrib.store.wellformed import fault
from tests.support.examples import examples
from tests.support.root import ROOT

ARCHIVE = ROOT / "tests" / "data" / "v1.h5"
SITES = ("blocks.0.hook_resid_pre", "blocks.2.attn.hook_z", "blocks.3.hook_mlp_out", "a/b: ∂ %")

# beartype picks the items of a tuple that it looks at by the random module, which hypothesis warns of
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")

# ------------------------------------------------------------------------------------------ building


def same(a: Any, b: Any) -> bool:
    """Equal in every field: tensors in value (NaN equals NaN) and dtype, all else by ==."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point())
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return a == b


def ptr(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


@st.composite
def prompts_of(draw: st.DrawFn, lengths: list[int]) -> Prompts:
    # any character at all: NUL and lone surrogates too
    characters = st.characters(codec=None) | st.sampled_from("\0\ud800\udfff€Ġ▁🙂")
    strings = draw(st.lists(st.text(characters, max_size=4), min_size=sum(lengths), max_size=sum(lengths)))
    ids = draw(st.lists(st.integers(0, 2**33), min_size=sum(lengths), max_size=sum(lengths)))
    return Prompts(ptr(lengths), torch.tensor(ids, dtype=torch.int64), tuple(strings))


@st.composite
def nodes_of(draw: st.DrawFn, kind: str, site: str, lengths: list[int], dtype: torch.dtype) -> Nodes:
    counts = [draw(st.integers(0, 4)) if length else 0 for length in lengths]
    total, numbers = sum(counts), torch.Generator().manual_seed(draw(st.integers(0, 99)))
    position = [draw(st.integers(0, length - 1)) for length, count in zip(lengths, counts, strict=True) for _ in range(count)]
    named = kind != "latent"
    return Nodes(
        kind=kind,
        site=site,
        ptr=ptr(counts),
        position=torch.tensor(position, dtype=torch.int64),
        latent=torch.randint(-1, 2 ** draw(st.sampled_from([4, 40])), (total,), generator=numbers),
        activation=torch.randn(total, generator=numbers, dtype=dtype),
        labels=tuple(draw(st.lists(st.text(max_size=3), min_size=total, max_size=total))) if named else (),
        probability=torch.tensor([math.nan] * total, dtype=dtype) if kind == "logit" else None,
    )


@st.composite
def edges_of(draw: st.DrawFn, prompts: Prompts, source: str, target: str) -> Edges:
    lengths, dtype = prompts.ptr.diff().tolist(), draw(st.sampled_from([torch.float32, torch.float64]))
    sources = draw(nodes_of("latent", source, lengths, dtype))
    kind = draw(st.sampled_from(["latent", "logit"]))
    targets = draw(nodes_of(kind, target, lengths, dtype))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    there = sources.prompt[None, :] == targets.prompt[:, None]
    kept = there & (torch.rand(there.shape, generator=numbers) < draw(st.sampled_from([0.0, 0.5, 1.0])))
    floats = [torch.randn(n, generator=numbers, dtype=dtype) for n in (int(kept.sum()),) * 2 + (len(targets),) * 2]
    call = {"policy": {"norm": "frozen"}, "positions": [1, None], "model": "\0 €", "seed": draw(st.integers(0, 3))}
    return Edges(f"latent_to_{kind}", sources, targets, ptr(kept.sum(-1).tolist()), kept.nonzero()[:, 1], *floats, prompts, call)


@st.composite
def shards(draw: st.DrawFn) -> list[Edges]:
    prompts = draw(prompts_of(draw(st.lists(st.integers(0, 4), max_size=4))))
    sites = draw(st.lists(st.tuples(st.sampled_from(SITES), st.sampled_from(SITES)), min_size=1, max_size=3, unique=True))
    return [draw(edges_of(prompts, *pair)) for pair in sites]


def archive_edges() -> list[Edges]:
    """What tests/data/v1.h5 holds; it was made by `save(ARCHIVE, archive_edges())` at format version 1, and never again since."""
    prompts = Prompts(torch.tensor([0, 2, 2, 5]), torch.tensor([7, 8, 7, 9, 10]), ("The", " cat", "The", "\0", " naïve\ud800"))
    sources = Nodes(
        "latent",
        "blocks.1.hook_resid_pre",
        torch.tensor([0, 2, 2, 5]),
        torch.tensor([0, 1, 0, 0, 2]),
        torch.tensor([3, 1, 0, 4, 2]),
        torch.tensor([0.5, 1.0, 2.0, 0.25, 4.0]),
    )
    latents = replace(
        sources,
        site="blocks.2.hook_resid_post",
        ptr=torch.tensor([0, 1, 1, 3]),
        position=torch.tensor([1, 0, 2]),
        latent=torch.tensor([6, 5, 6]),
        activation=torch.tensor([1.5, 0.5, 3.0]),
    )
    logits = Nodes(
        "logit",
        "logits",
        torch.tensor([0, 2, 2, 3]),
        torch.tensor([1, 1, 2]),
        torch.tensor([9, -1, 8]),
        torch.tensor([3.0, -1.0, 0.5]),
        (" dog", "'a' - 'b'", "ü"),
        torch.tensor([0.75, math.nan, 0.125]),
    )
    gradient = torch.tensor([1.0, -2.0, 4.0, 0.5])
    first = Edges(
        "latent_to_latent",
        sources,
        latents,
        torch.tensor([0, 2, 2, 4]),
        torch.tensor([0, 1, 2, 4]),
        gradient,
        torch.tensor([0.5, -2.0, 8.0, 2.0]),
        torch.tensor([-1.5, 0.0, 10.25]),
        torch.tensor([2.5, 0.0, 10.25]),
        prompts,
        {"model": "toy", "keep": "TopK(2)", "kind": "latent_to_latent"},
    )
    call = {"model": "toy", "keep": "TopK(2)", "kind": "latent_to_logit"}
    second = replace(first, kind="latent_to_logit", targets=logits, indptr=torch.tensor([0, 1, 2, 4]), call=call)
    return [first, second]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return save(tmp_path / "shard.h5", archive_edges())


def edit(path: Path, change: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def rewrite(file: h5py.File, name: str, data: Any, **options: Any) -> None:
    del file[name]
    file.create_dataset(name, data=data, **options)


BLOCK = "blocks/latent_to_latent:blocks.1.hook_resid_pre:blocks.2.hook_resid_post"

# ---------------------------------------------------------------------------------------- round trips


@given(shards(), st.sampled_from([None, "gzip", "lzf"]))
@settings(deadline=None, max_examples=examples(40), suppress_health_check=[HealthCheck.too_slow])
def test_what_is_saved_comes_back(tmp_path_factory: pytest.TempPathFactory, shard: list[Edges], compression: str | None) -> None:
    path = save(tmp_path_factory.mktemp("store") / "shard.h5", shard, compression=compression)
    with open_store(path) as opened:
        assert opened.blocks == [(e.kind, e.sources.site, e.targets.site) for e in shard]
        assert same(opened.prompts, shard[0].prompts)
        assert all(same(read, edges) for read, edges in zip(opened.values(), shard, strict=True))
        for block, edges in zip(opened.blocks, shard, strict=True):
            for number in range(len(edges.prompts)):
                assert same(opened.edges(*block, prompts=number), edges.prompt(number))


def test_the_numbers_of_prompts_come_back_where_they_were_given(tmp_path: Path) -> None:
    edges = archive_edges()[0]
    count = len(edges.prompts)
    numbered = replace(edges, prompts=replace(edges.prompts, number=torch.arange(count).flip(0) * 5_000_000_000))
    with open_store(save(tmp_path / "numbered.h5", numbered)) as shard:
        assert shard.prompts.equals(numbered.prompts)
        assert not shard.prompts.equals(edges.prompts)
        assert shard.edges(prompts=count - 1).prompts.numbers.tolist() == [0]
        assert join([shard.edges(prompts=n) for n in range(count)]).prompts.equals(numbered.prompts)
        assert numbered.prompt(0).prompts.numbers.tolist() == [(count - 1) * 5_000_000_000]
    with open_store(save(tmp_path / "plain.h5", edges)) as shard:
        assert shard.prompts.number is None
        assert shard.prompts.numbers.tolist() == [*range(count)]


@pytest.mark.parametrize("number", [[-1, 0, 1], [0, 1]])
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, number: list[int]) -> None:
    edges = archive_edges()[0]
    wrong = replace(edges, prompts=replace(edges.prompts, number=torch.tensor(number)))
    with pytest.raises(InputError, match="numbers are not one for each, or fall below 0"):
        save(tmp_path / "shard.h5", wrong)


def test_a_single_result_is_a_block(tmp_path: Path) -> None:
    edges = archive_edges()[0]
    path = save(str(tmp_path / "one.h5"), edges)
    assert path == tmp_path / "one.h5"
    with open_store(path) as opened:
        assert same(opened.edges(), edges)
        assert opened.call == edges.call
        assert opened.packages["torch"] == version("torch")  # torch.__version__ may add the build: +cu132
        assert repr(opened) == (f"Store('{path}', 3 prompts, blocks: latent_to_latent blocks.1.hook_resid_pre -> blocks.2.hook_resid_post)")


def test_the_call_of_a_shard_is_what_its_blocks_share(shard: Path) -> None:
    with open_store(shard) as opened:
        assert opened.call == {"model": "toy", "keep": "TopK(2)"}
        assert [edges.call for edges in opened.values()] == [edges.call for edges in archive_edges()]


@pytest.mark.few
@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        (None, [0, 1, 2]),
        (1, [1]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        (slice(0, 0), []),
        ([], []),
        ([2, 0, -1], [2, 0, 2]),
        ((0, 2), [0, 2]),
        (range(3), [0, 1, 2]),
        ([0, 0], [0, 0]),
    ],
)
def test_prompts_come_in_the_order_asked_for(shard: Path, asked: Any, numbers: list[int]) -> None:
    edges = archive_edges()[0]
    with open_store(shard) as opened:
        read = opened.edges("latent_to_latent", prompts=asked)
    if numbers:
        assert same(read, join([edges.prompt(n) for n in numbers]))
    else:
        assert (len(read.prompts), read.shape, len(read)) == (0, (0, 0), 0)


def test_wide_integers_are_kept_and_narrow_ones_are_stored_as_int32(tmp_path: Path) -> None:
    edges = archive_edges()[0]
    wide = replace(edges, sources=replace(edges.sources, latent=torch.tensor([2**31, 1, -1, 0, 2])))
    path = save(tmp_path / "wide.h5", wide)
    with open_store(path) as opened:
        assert same(opened.edges(), wide)
    with h5py.File(path) as file:
        assert file[f"{BLOCK}/sources/latent"].dtype == np.int64
        assert file[f"{BLOCK}/sources/position"].dtype == np.int32
        assert file[f"{BLOCK}/gradient/indices"].dtype == np.int32


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_long_columns_lie_in_even_chunks_of_at_most_a_mebibyte(tmp_path: Path, compression: str | None) -> None:
    n = 300_001  # 1.14 MiB of float32
    one, numbers, floats = torch.zeros(1, dtype=torch.int64), torch.arange(n), torch.randn(n)
    sources = Nodes("latent", "blocks.0.hook_resid_pre", ptr([n]), torch.zeros_like(numbers), numbers, floats)
    targets = Nodes("latent", "blocks.1.hook_resid_pre", ptr([1]), one, one, floats[:1])
    sums, prompts = floats.sum()[None], Prompts(ptr([1]), one, ("x",))
    edges = Edges("latent_to_latent", sources, targets, ptr([n]), numbers, floats, floats**2, sums, sums, prompts)
    with h5py.File(save(tmp_path / "long.h5", edges, compression=compression)) as file:
        assert file["blocks/latent_to_latent:blocks.0.hook_resid_pre:blocks.1.hook_resid_pre/gradient/data"].chunks == (150_001,)
    with open_store(tmp_path / "long.h5") as opened:
        assert same(opened.edges(), edges)


def test_a_long_call_fits(tmp_path: Path) -> None:
    edges = replace(archive_edges()[0], call={"positions": list(range(100_000))})  # past HDF5's 64 KiB for plain attributes
    with open_store(save(tmp_path / "long.h5", edges)) as opened:
        assert opened.edges().call == edges.call


def test_equal_results_are_equal_files(tmp_path: Path) -> None:
    a, b = (save(tmp_path / name, archive_edges(), compression="gzip") for name in "ab")
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("compression", ["blosc-lz4", "zstd"])
def test_compression_by_plugin(tmp_path: Path, compression: str) -> None:
    pytest.importorskip("hdf5plugin")
    with open_store(save(tmp_path / "shard.h5", archive_edges(), compression=compression)) as opened:
        assert all(same(read, edges) for read, edges in zip(opened.values(), archive_edges(), strict=True))


@pytest.mark.parametrize("compression", ["blosc-lz4", "zstd"])
def test_a_missing_plugin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(InputError, match=rf"compression: '{compression}': needs the package hdf5plugin.*pip install 'attrib\[jobs\]'"):
        save(tmp_path / "shard.h5", archive_edges(), compression=compression)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- archived


def test_the_archived_file_of_version_1_still_loads() -> None:
    with open_store(ARCHIVE) as opened:
        assert opened.blocks == [
            ("latent_to_latent", "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"),
            ("latent_to_logit", "blocks.1.hook_resid_pre", "logits"),
        ]
        assert all(same(read, edges) for read, edges in zip(opened.values(), archive_edges(), strict=True))
        last = opened.edges("latent_to_logit", prompts=2)
    assert last.prompts.strings == ("The", "\0", " naïve\ud800")
    assert last.dense().tolist() == [[4.0, 0.0, 0.5]]
    assert last.remainder.tolist() == [0.25]
    assert last.targets.labels == ("ü",)


# ---------------------------------------------------------------------------------------- other tools


@given(shards())
@settings(deadline=None, max_examples=examples(20), suppress_health_check=[HealthCheck.too_slow])
def test_anndata_reads_our_matrices(tmp_path_factory: pytest.TempPathFactory, shard: list[Edges]) -> None:
    anndata_io = pytest.importorskip("anndata.io")
    path = save(tmp_path_factory.mktemp("store") / "shard.h5", shard)
    with h5py.File(path) as file:
        for group, edges in zip(file["blocks"].values(), shard, strict=True):
            for value in ("gradient", "attribution"):
                read, expected = anndata_io.read_elem(group[value]), edges.to_scipy(value)
                assert (read.shape, read.dtype) == (expected.shape, expected.dtype)
                assert np.array_equal(read.toarray(), expected.toarray())


def test_binsparse_header_and_the_hard_links(shard: Path) -> None:
    with h5py.File(shard) as file:
        group = file[BLOCK]
        for value in ("gradient", "attribution"):
            csr = group[value]
            assert json.loads(csr.attrs["binsparse"]) == {
                "binsparse": {
                    "version": "0.1",
                    "format": "CSR",
                    "shape": [3, 5],
                    "number_of_stored_values": 4,
                    "data_types": {"pointers_to_1": "int64", "indices_1": "int32", "values": "float32"},
                }
            }
            assert (csr.attrs["encoding-type"], csr.attrs["encoding-version"]) == ("csr_matrix", "0.1.0")
            for ours, theirs in (("data", "values"), ("indices", "indices_1"), ("indptr", "pointers_to_1")):
                assert csr[ours] == csr[theirs], "one dataset under two names"
        assert group["gradient/indices"] == group["attribution/indices"]
        assert group["gradient/indptr"] == group["attribution/indptr"]
        assert group["gradient/data"] != group["attribution/data"]


def test_plain_h5py_and_scipy_read_it(shard: Path) -> None:
    with h5py.File(shard) as file:
        csr = file[BLOCK]["attribution"]
        matrix = scipy.sparse.csr_array((csr["values"][:], csr["indices_1"][:], csr["pointers_to_1"][:]), shape=csr.attrs["shape"])
        total, remainder = file[BLOCK]["total"][:], file[BLOCK]["remainder"][:]
    np.testing.assert_array_equal(matrix.toarray(), archive_edges()[0].to_scipy().toarray())
    np.testing.assert_array_equal(matrix.sum(1) + remainder, total)


# ----------------------------------------------------------------------------------------------- lazy


def test_a_prompt_reads_only_its_own_rows(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[Any]] = {}
    plain = h5py.Dataset.__getitem__

    def noted(data: h5py.Dataset, key: Any, **options: Any) -> Any:
        asked.setdefault(data.name.rsplit("/", 2)[-2] + "/" + data.name.rsplit("/", 2)[-1], []).append(key)
        return plain(data, key, **options)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", noted)
    with open_store(shard) as opened:
        keys = [key for keys in asked.values() for key in keys]
        assert all(len(range(*key.indices(5))) <= 1 for key in keys), "opening reads attributes, and the ends of pointers"
        asked.clear()
        opened.edges("latent_to_latent", prompts=2)
    for name in ("gradient/data", "attribution/data", "gradient/indices"):
        assert asked[name] == [slice(2, 4)]
    assert asked["sources/activation"] == [slice(2, 5)]
    assert asked["prompts/ids"] == [slice(2, 5)]
    assert asked["gradient/indptr"][0] == slice(1, 4)


def test_damage_in_another_prompt_is_not_met(shard: Path) -> None:
    def spoil(file: h5py.File) -> None:
        file[BLOCK]["gradient/indices"][:2] = -9
        file[BLOCK]["attribution/data"][:2] = np.nan

    edit(shard, spoil)
    with open_store(shard) as opened:
        assert same(opened.edges("latent_to_latent", prompts=2), archive_edges()[0].prompt(2))
        with pytest.raises(FormatError, match=r"in prompts 0 to 1, indices do not ascend within each row, inside the columns"):
            opened.edges("latent_to_latent", prompts=0)


# ------------------------------------------------------------------------------------------ selecting


def test_blocks_are_chosen_by_any_part_of_their_name(shard: Path) -> None:
    first, second = archive_edges()
    with open_store(shard) as opened:
        assert same(opened.edges(target=Site(2, "resid_post")), first)
        assert same(opened.edges("latent_to_logit"), second)
        assert same(opened.edges("latent_to_logit", "blocks.1.hook_resid_pre", "logits"), second)


BLOCKS_LISTED = (
    r"Its blocks: latent_to_latent blocks\.1\.hook_resid_pre -> blocks\.2\.hook_resid_post; "
    r"latent_to_logit blocks\.1\.hook_resid_pre -> logits"
)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"edges\(kind=None, source=None, target=None\): 2 blocks of .*shard\.h5 fit; expected one"),
        ({"source": "blocks.9.hook_z"}, r"edges\(kind=None, source='blocks\.9\.hook_z', target=None\): no blocks of .* fit"),
    ],
)
def test_an_ambiguous_or_missing_block_lists_the_blocks(shard: Path, asked: dict[str, str], message: str) -> None:
    with open_store(shard) as opened, pytest.raises(InputError, match=f"{message}.*{BLOCKS_LISTED}"):
        opened.edges(**asked)


@pytest.mark.few
@pytest.mark.parametrize("asked", [3, -4, [0, 3]])
def test_a_prompt_out_of_range_is_named(shard: Path, asked: Any) -> None:
    with open_store(shard) as opened, pytest.raises(InputError, match=r"prompts: (3|-4) is outside the 3 prompts of this shard"):
        opened.edges("latent_to_logit", prompts=asked)


def test_a_closed_store_says_so(shard: Path) -> None:
    with open_store(shard) as opened:
        pass
    assert "closed" in repr(opened)
    for read in (lambda: opened.prompts, lambda: opened.edges("latent_to_logit")):
        with pytest.raises(InputError, match=r"store: .*shard\.h5 is closed; read inside its `with` statement"):
            read()


# ------------------------------------------------------------------------------------ refused writes


def test_an_existing_file_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"path: .*shard\.h5 exists already.*overwrite=True"):
        save(path, archive_edges())
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_overwrite_replaces_while_a_reader_keeps_what_it_opened(shard: Path) -> None:
    first, second = archive_edges()
    with open_store(shard) as before:
        save(shard, second, overwrite=True)
        assert same(before.edges("latent_to_latent"), first)
    with open_store(shard) as after:
        assert same(after.edges(), second)
    assert list(shard.parent.iterdir()) == [shard]


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        save(tmp_path, archive_edges(), overwrite=True)
    with pytest.raises(InputError, match=r"path: the folder .*absent does not exist; make it first"):
        save(tmp_path / "absent" / "shard.h5", archive_edges())


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "name", "failure"),
    [
        (write, "write_strings", full_disk),
        (write, "_write_nodes", interrupted),
        (h5py.Group, "create_dataset", full_disk),
        (os, "fsync", full_disk),
        (os, "replace", full_disk),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_write_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, failure: Any, exists: bool
) -> None:
    path = tmp_path / "shard.h5"
    if exists:
        path.write_bytes(b"before")
    with monkeypatch.context() as broken:
        broken.setattr(where, name, failure)
        with pytest.raises((OSError, KeyboardInterrupt)):
            save(path, archive_edges(), overwrite=exists)
    assert list(tmp_path.iterdir()) == ([path] if exists else [])
    assert not exists or path.read_bytes() == b"before"


def nodes(edges: Edges, end: str, **changes: Any) -> Edges:
    return replace(edges, **{end: replace(getattr(edges, end), **changes)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: replace(e, indptr=torch.tensor([0, 3, 2, 4])), r"indptr does not rise from 0 to 4 in 3 steps"),
        (lambda e: replace(e, indptr=torch.tensor([0, 2, 2, 3])), r"indptr does not rise from 0 to 4"),
        (lambda e: nodes(e, "sources", ptr=torch.tensor([0, 2, 5])), r"sources\.ptr does not rise from 0 to 5 in 3 steps"),
        (lambda e: nodes(e, "targets", ptr=torch.tensor([1, 1, 1, 3])), r"targets\.ptr does not rise from 0 to 3"),
        (lambda e: nodes(e, "sources", position=torch.tensor([0, 2, 0, 0, 2])), r"a position of the latent nodes is outside its prompt"),
        (lambda e: nodes(e, "sources", labels=("a",)), r"the columns or labels of the latent nodes differ in length"),
        (
            lambda e: nodes(e, "sources", activation=e.sources.activation.half()),
            r"activation or probability .* neither float32 nor float64",
        ),
        (lambda e: replace(e, indices=torch.tensor([1, 0, 2, 4])), r"indices do not ascend within each row"),
        (lambda e: replace(e, indices=torch.tensor([0, 0, 2, 4])), r"indices do not ascend within each row"),
        (lambda e: replace(e, indices=torch.tensor([0, 2, 3, 4])), r"inside the columns of the row's prompt"),
        (lambda e: replace(e, indices=torch.tensor([0, 1, 1, 4])), r"inside the columns of the row's prompt"),
        (lambda e: replace(e, indices=torch.tensor([0, 1, 2, 5])), r"inside the columns of the row's prompt"),
        (lambda e: replace(e, gradient=e.gradient.double()), r"neither all float32 nor all float64"),
        (lambda e: replace(e, prompts=replace(e.prompts, strings=("a",))), r"or the prompts' ids and strings differ in length"),
    ],
)
def test_a_malformed_result_is_refused(tmp_path: Path, spoil: Callable[[Edges], Edges], message: str) -> None:
    with pytest.raises(InputError, match=rf"edges: in 'latent_to_latent .* -> .*', .*{message}.*as attrib's functions return it"):
        save(tmp_path / "shard.h5", spoil(archive_edges()[0]))
    assert not list(tmp_path.iterdir())


def test_two_results_of_one_block_are_refused(tmp_path: Path) -> None:
    first, _ = archive_edges()
    with pytest.raises(InputError, match=r"two of them are the block 'latent_to_latent blocks\.1\..* -> blocks\.2\..*Join them"):
        save(tmp_path / "shard.h5", [first, first])


@pytest.mark.parametrize(
    "other", [{"ids": torch.arange(5)}, {"strings": tuple("abcde")}, {"ptr": torch.tensor([0, 2, 2, 2, 5])}], ids=["ids", "strings", "ptr"]
)
def test_other_prompts_are_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    first, second = archive_edges()
    if "ptr" in other:  # the node tables say where the prompts are as well
        second = nodes(nodes(second, "sources", ptr=torch.tensor([0, 2, 2, 2, 5])), "targets", ptr=torch.tensor([0, 2, 2, 2, 3]))
    second = replace(second, prompts=replace(second.prompts, **other))
    with pytest.raises(InputError, match=r"'latent_to_logit .*' has other prompts than 'latent_to_latent .*'; expected the same"):
        save(tmp_path / "shard.h5", [first, second])


def test_arguments_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"edges: got an empty sequence"):
        save(tmp_path / "shard.h5", [])
    with pytest.raises(InputError, match=r"compression: 'rar'; expected None, 'gzip', 'lzf', 'blosc-lz4' or 'zstd'"):
        save(tmp_path / "shard.h5", archive_edges(), compression="rar")
    with pytest.raises(InputError, match=r"`call` cannot be written as JSON \(.*Tensor.*\)"):
        save(tmp_path / "shard.h5", replace(archive_edges()[0], call={"seed": torch.tensor(1)}))
    with pytest.raises(InputError, match=r"path: there is no file .*absent\.h5"):
        open_store(tmp_path / "absent.h5")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------- hostile files


def read_all(path: Path) -> list[Edges]:
    with open_store(path) as opened:
        assert len(opened.prompts) >= 0
        return list(opened.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not an HDF5 file \(0 bytes, beginning with b''\)"),
        (
            b"PK\x03\x04 a zip of things",
            r"not an HDF5 file \(20 bytes, beginning with b'PK.*'\); expected a file as attrib wrote it",
        ),
        (b"\x89HDF\r\n\x1a\n", r"truncated or damaged"),
    ],
)
def test_what_is_not_hdf5(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "shard.h5"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        open_store(path)


@pytest.mark.parametrize("fraction", [0.0005, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_says_so(shard: Path, fraction: float) -> None:
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(FormatError, match=r"shard\.h5: (truncated or damaged|not an HDF5 file) \(.*\); .*Copy it again, or make it again"):
        open_store(shard)


def test_foreign_hdf5_is_told_apart(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["X"] = [1.0]
    with pytest.raises(FormatError, match=r"an HDF5 file, but not attrib's: it holds \['X'\]; expected the root attribute format='attrib'"):
        open_store(tmp_path / "other.h5")


@pytest.mark.parametrize("version", [0, 3])
def test_another_version_is_named(shard: Path, version: Any) -> None:
    edit(shard, lambda file: file.attrs.__setitem__("format_version", version))
    with pytest.raises(FormatError, match=rf"format version {version}; this attrib reads versions 1 and 2"):
        open_store(shard)


def set_attribute(where: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file[where].attrs.__setitem__(name, np.bytes_(value) if isinstance(value, str) else value)


def set_data(where: str, data: Any, **options: Any) -> Callable[[h5py.File], None]:
    return lambda file: rewrite(file, where, data, **options)


def set_link(where: str, link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[where]
        file[where] = link

    return change


def claim(where: str, dtype: str, length: int, **options: Any) -> Callable[[h5py.File], None]:
    """A column that claims a length, with nothing behind it."""

    def change(file: h5py.File) -> None:
        del file[where]
        file.create_dataset(where, shape=(length,), dtype=dtype, chunks=(min(length, 1000),), **options)

    return change


def outside(file: h5py.File) -> None:
    del file[f"{BLOCK}/sources/activation"]
    other = [("/etc/passwd", 0, 20)]
    file.create_dataset(f"{BLOCK}/sources/activation", shape=(5,), dtype="f4", external=other)


def virtual(file: h5py.File) -> None:
    del file[f"{BLOCK}/sources/activation"]
    layout = h5py.VirtualLayout(shape=(5,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "secret", shape=(5,))
    file.create_virtual_dataset(f"{BLOCK}/sources/activation", layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_data(f"{BLOCK}/gradient/indptr", np.array([0, 3, 2, 4])), r"gradient/indptr: does not rise from 0 to 4"),
        (set_data(f"{BLOCK}/gradient/indptr", np.array([0, 2, 2, 5])), r"gradient/indptr: does not rise from 0 to 4"),
        (set_data(f"{BLOCK}/gradient/indptr", np.array([0, 2, 2, 3])), r"gradient/indptr: does not rise from 0 to 4"),
        (set_data(f"{BLOCK}/gradient/indptr", np.array([0, 2, 4])), r"gradient/indptr: int64 \(3,\), and not <i8 \(4,\)"),
        (set_data(f"{BLOCK}/gradient/indptr", np.array([0, -2, 2, 4])), r"gradient/indptr: does not rise"),
        (set_data(f"{BLOCK}/gradient/indices", np.array([0, 1, 2, 5], np.int32)), r"indices do not ascend .* inside the columns"),
        (set_data(f"{BLOCK}/gradient/indices", np.array([0, 1, 2, 4], np.uint32)), r"gradient/indices: uint32 \(4,\), and not <i4 or <i8"),
        (set_data(f"{BLOCK}/gradient/data", np.zeros(3, np.float32)), r"gradient/data: float32 \(3,\), and not <f4 or <f8 \(4,\)"),
        (set_data(f"{BLOCK}/gradient/data", np.zeros((4, 1), np.float32)), r"gradient/data: float32 \(4, 1\), and not"),
        (set_data(f"{BLOCK}/gradient/data", np.zeros(4)), r"neither all float32 nor all float64"),
        (set_data(f"{BLOCK}/gradient/data", np.zeros(4, ">f4")), r"gradient/data: >f4 \(4,\), and not"),
        (set_data(f"{BLOCK}/gradient/data", ["a"] * 4, dtype=h5py.string_dtype()), r"gradient/data: object \(4,\), and not"),
        (set_data(f"{BLOCK}/total", np.zeros(2, np.float32)), r"total: float32 \(2,\), and not"),
        (set_data(f"{BLOCK}/sources/latent", np.zeros(4, np.int32)), r"sources/latent: int32 \(4,\), and not"),
        (set_data(f"{BLOCK}/sources/position", np.full(5, 9, np.int32)), r"a position of the latent nodes is outside its prompt"),
        (set_data(f"{BLOCK}/sources/ptr", np.array([0, 5, 2, 5])), r"sources/ptr: does not rise from 0 to 5"),
        (set_data("prompts/ptr", np.array([0, 2, 2, 2**40])), r"prompts/ptr: does not rise from 0 to 5"),
        (set_data("prompts/ptr", np.zeros(0, np.int64)), r"damaged"),
        (set_data("prompts/strings/ptr", np.array([0, 1, 2, 3, 4, 2**62])), r"strings/ptr: does not rise from 0 to"),
        (set_data("prompts/strings/bytes", np.full(19, 0xFF, np.uint8)), r"damaged"),
        (claim("prompts/strings/bytes", "u1", 2**50), r"1125899906842624 bytes in chunks of 1000 are more than the file of \d+ bytes"),
        (claim(f"{BLOCK}/gradient/data", "f4", 4, compression="gzip", shuffle=True), r"data: 0 of its 1 chunks were ever written"),
        (
            set_data(f"{BLOCK}/gradient/data", np.zeros(4, np.float32), chunks=(4,), fletcher32=True),
            r"filters fletcher32 are not as attrib writes",
        ),
        (set_link(f"{BLOCK}/sources/activation", h5py.ExternalLink("other.h5", "/x")), r"'activation' is missing or not a dataset"),
        (set_link(f"{BLOCK}/sources/activation", h5py.SoftLink("/prompts/ptr")), r"'activation' is missing or not a dataset"),
        (outside, r"activation: its values lie in another file"),
        (virtual, r"activation: its values lie in another file"),
        (lambda file: file.__delitem__(f"{BLOCK}/targets"), r"'targets' is missing or not a group"),
        (lambda file: file.__delitem__("prompts"), r"/: 'prompts' is missing or not a group"),
        (lambda file: file.move(BLOCK, "blocks/elsewhere"), r"elsewhere: its attributes name it latent_to_latent:blocks\.1"),
        (
            set_attribute(BLOCK, "kind", "latent_to_moon"),
            r"attribute kind is b'latent_to_moon', and not token_to_latent or latent_to_latent",
        ),
        (set_attribute(f"{BLOCK}/sources", "kind", 3), r"attribute kind is None, and not token or latent or error or logit or metric"),
        (set_attribute(BLOCK, "call", "{"), r"truncated or damaged"),
        (set_attribute(BLOCK, "call", "[" * 100_000), r"truncated or damaged"),
        (set_attribute("/", "call", "[1]"), r"attribute call is not a JSON object"),
        (set_attribute("/", "call", h5py.Empty("S1")), r"damaged"),
        (lambda file: file.attrs.__setitem__("call", "{}"), r"the attribute call is None, and not text of fixed length"),
        (set_attribute("/", "format", 7), r"not attrib's"),
        (set_attribute("/", "format_version", "1"), r"format version None"),
    ],
)
def test_parts_that_disagree_are_named(shard: Path, change: Callable[[h5py.File], None], message: str) -> None:
    with pytest.raises(FormatError, match=rf"shard\.h5.*{message}"):
        read_all(edit(shard, change))


def test_a_file_that_needs_the_missing_plugin_says_so(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(shard, set_data(f"{BLOCK}/total", np.zeros(3, np.float32), chunks=(3,), compression="gzip", shuffle=True))
    monkeypatch.setattr(reading, "PLUGINS", {Codec.DEFLATE})
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(InputError, match=r"shard\.h5: compressed, and to be read: needs the package hdf5plugin"):
        read_all(shard)


WHOLE = ARCHIVE.read_bytes() if ARCHIVE.exists() else b""


@given(st.integers(0, max(len(WHOLE) - 1, 0)), st.integers(1, 255))
@settings(deadline=None, max_examples=examples(150))
def test_a_changed_byte_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, at: int, change: int) -> None:
    path = tmp_path_factory.mktemp("store") / "shard.h5"
    path.write_bytes(WHOLE[:at] + bytes([WHOLE[at] ^ change]) + WHOLE[at + 1 :])
    try:
        read = read_all(path)
    except FormatError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert all(fault(edges) is None for edges in read)
