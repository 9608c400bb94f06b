"""A folder of shards as one object: the same edges as all shards joined in memory and sliced by plain Python, read lazily and safely."""

import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import attrib
from attrib import stats
from attrib.core.edges import Edges, Nodes, Prompts, join
from attrib.core.types import FormatError, InputError
from attrib.store import Collection, handles, merge, open_collection, open_shard, save, select_latents
from attrib.store import open as open_store
from attrib.store.index import Index
from attrib.store.wellformed import fault
from bench.jobs import reading
from tests.store.test_store import edges_of, prompts_of, ptr, same
from tests.support.attribution_cases import without_shape_checks
from tests.support.examples import examples

# beartype picks the items of a tuple that it looks at by the random module, which hypothesis warns of
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")

LATENTS = 6
CALL = {"kind": "latent_to_latent", "model": {"name": "toy", "sha256": "0"}, "keep": "TopK(2)"}

# ------------------------------------------------------------------------------------------ building


def made(numbers: Sequence[int] | None, count: int = 0, seed: int = 0, kind: str = "latent", dtype: torch.dtype = torch.float32) -> Edges:
    """Edges of prompts with these numbers in the data set, or of `count` prompts without any."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, n: int) -> torch.Tensor:
        return torch.randint(low, high, (n,), generator=generator)

    count = count if numbers is None else len(numbers)
    lengths = integers(1, 5, count)
    tokens = int(lengths.sum())
    strings = tuple(f"t{i}" for i in integers(0, 50, tokens).tolist())
    number = None if numbers is None else torch.tensor(numbers, dtype=torch.int64)
    prompts = Prompts(ptr(lengths.tolist()), integers(0, 9, tokens), strings, number)

    def nodes(kind: str, site: str) -> Nodes:
        active = (torch.rand(tokens, LATENTS, generator=generator) < 0.4).nonzero()
        prompt = torch.repeat_interleave(torch.arange(count), lengths)[active[:, 0]]
        position = active[:, 0] - prompts.ptr[prompt]
        labels = tuple(f"label {latent}" for latent in active[:, 1].tolist()) if kind == "logit" else ()
        values = torch.rand(len(active), generator=generator, dtype=dtype)
        counts = torch.bincount(prompt, minlength=count).tolist()
        return Nodes(kind, site, ptr(counts), position, active[:, 1], values, labels, values / 9 if kind == "logit" else None)

    sources, targets = nodes("latent", "blocks.0.hook_resid_pre"), nodes(kind, "blocks.2.hook_resid_pre" if kind == "latent" else "logits")
    kept = (sources.prompt[None] == targets.prompt[:, None]) & (torch.rand(len(targets), len(sources), generator=generator) < 0.6)
    floats = [torch.randn(n, generator=generator, dtype=dtype) for n in (int(kept.sum()),) * 2 + (len(targets),) * 2]
    call = CALL | {"kind": f"latent_to_{kind}", "prompts": {"count": count, "sha256": str(seed)}, "budget": seed}
    return Edges(f"latent_to_{kind}", sources, targets, ptr(kept.sum(-1).tolist()), kept.nonzero()[:, 1], *floats, prompts, call)


def shards_of(folder: Path, groups: Sequence[Sequence[int]], **options: Any) -> list[Edges]:
    """A shard for each group of numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [made(group, seed=seed, **options) for seed, group in enumerate(groups)]
    for seed, part in enumerate(parts):
        save(folder / f"{seed:05}.h5", part)
    return parts


def large(number: int, n: int = 512) -> Edges:
    """A prompt with n² edges of 12 bytes each, 3 MB."""
    zero, each, values = torch.zeros(n, dtype=torch.int64), torch.arange(n), torch.rand(n)
    nodes = [Nodes("latent", site, ptr([n]), zero, each, values) for site in ("a", "b")]
    prompts = Prompts(ptr([1]), torch.tensor([1]), ("x",), torch.tensor([number]))
    floats = torch.rand(n * n)
    return Edges("latent_to_latent", *nodes, ptr([n] * n), each.repeat(n), floats, floats, values, values, prompts)


def reference(parts: Sequence[Edges], numbers: Sequence[int]) -> Edges:
    """These prompts, from all shards in memory, by plain Python."""
    own = {"prompts", "budget"}
    found = {number: part.prompt(i) for part in parts for i, number in enumerate(part.prompts.numbers.tolist())}
    edges = join([found[number] for number in numbers])
    return replace(edges, call={key: value for key, value in edges.call.items() if key not in own})


GROUPS = [[7, 0, 12], [3], [4, 30, 1, 2], [], [20, 5]]
SORTED = sorted(number for group in GROUPS for number in group)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Edges]]:
    folder = tmp_path_factory.mktemp("original")
    return folder, shards_of(folder, GROUPS)


@pytest.fixture
def parts(tmp_path: Path, original: tuple[Path, list[Edges]]) -> list[Edges]:
    """The shards of GROUPS, in a folder of the test's own, and in memory."""
    shutil.copytree(original[0], tmp_path / "set")
    return original[1]


@pytest.fixture
def collection(tmp_path: Path, parts: list[Edges]) -> Iterator[Collection]:
    with attrib.open(tmp_path / "set") as opened:
        assert isinstance(opened, Collection)
        yield opened


# ------------------------------------------------------------------------------------------- slicing


def test_a_folder_opens_as_one(collection: Collection, parts: list[Edges]) -> None:
    assert len(collection) == 10
    assert collection.numbers.tolist() == SORTED
    assert collection.blocks == [("latent_to_latent", "blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre")]
    assert collection.call == CALL
    assert collection.prompts.equals(reference(parts, SORTED).prompts)
    assert same(collection.edges(), reference(parts, SORTED))
    assert [same(edges, reference(parts, SORTED)) for edges in collection.values()] == [True]
    assert repr(collection).endswith("10 prompts in 5 shards, blocks: latent_to_latent blocks.0.hook_resid_pre -> blocks.2.hook_resid_pre)")


@pytest.mark.few
@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        (None, SORTED),
        (12, [12]),
        ([30, 0, 7, 30], [30, 0, 7, 30]),
        ((3, 20), [3, 20]),
        (range(0, 6), [0, 1, 2, 3, 4, 5]),
        (slice(None), SORTED),
        (slice(3, 21), [3, 4, 5, 7, 12, 20]),
        (slice(None, None, -1), SORTED[::-1]),
        (slice(20, 2, -2), [20, 12, 4]),
        (slice(1, None, 3), [1, 4, 7]),
        (slice(10**30), SORTED),
        (slice(31, None), []),
        ([], []),
    ],
)
def test_prompts_go_by_their_numbers_in_the_order_asked_for(
    collection: Collection, parts: list[Edges], asked: Any, numbers: list[int]
) -> None:
    read = collection.edges("latent_to_latent", prompts=asked)
    apart = list(collection.iterate(prompts=asked))
    if not numbers:
        assert (len(read.prompts), read.shape, len(read), apart) == (0, (0, 0), 0, [])
        return
    assert same(read, reference(parts, numbers))
    assert [edges.prompts.numbers.tolist() for edges in apart] == [[number] for number in numbers]
    assert same(join(apart), read)


@given(st.data())
@settings(deadline=None, max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
def test_any_slice_is_that_of_all_shards_joined(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("set")
    numbers = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(numbers)), max_size=3)))
    parts = shards_of(folder, [numbers[a:b] for a, b in zip([0, *cuts], [*cuts, len(numbers)], strict=True)])
    asked = data.draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=8))
    latents = [data.draw(st.none() | st.lists(st.integers(-1, LATENTS), max_size=4)) for _ in range(2)]
    with open_store(folder) as opened:
        read = opened.edges(prompts=asked, source_latents=latents[0], target_latents=latents[1])
    assert fault(read) is None
    assert same(read, select_latents(reference(parts, asked), *latents))


def test_shards_without_numbers_count_on_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, seed in (("b.h5", 0), ("a.h5", 1)):
        save(tmp_path / name, made(None, count=3, seed=seed))
    parts = [replace(made(None, count=3, seed=1)), made(None, count=3, seed=0)]
    parts = [
        replace(part, prompts=replace(part.prompts, number=torch.arange(3) + start)) for part, start in zip(parts, (0, 3), strict=True)
    ]
    with open_store(tmp_path) as opened:
        assert opened.numbers.tolist() == [0, 1, 2, 3, 4, 5]
        assert same(opened.edges(prompts=[4, 1]), reference(parts, [4, 1]))


def test_several_blocks(tmp_path: Path) -> None:
    for seed, numbers in enumerate([[1], [0, 2]]):
        first = made(numbers, seed=seed)
        other = made(numbers, seed=seed, kind="logit")
        save(tmp_path / f"{seed}.h5", [first, replace(other, prompts=first.prompts)])
    with open_store(tmp_path) as opened:
        assert [block.kind for block in opened.blocks] == ["latent_to_latent", "latent_to_logit"]
        assert opened.call == {key: value for key, value in CALL.items() if key != "kind"}
        logits = opened.edges("latent_to_logit", target="logits")
        assert logits.call == CALL | {"kind": "latent_to_logit"}
        assert logits.targets.labels
        assert logits.targets.probability is not None
        with pytest.raises(InputError, match=r"edges\(kind=None, source=None, target=None\): 2 blocks of .* fit; expected one. Its blocks"):
            opened.edges()


# ---------------------------------------------------------------------------------- slicing by latent


def sliced(edges: Edges, sources: set[int] | None, targets: set[int] | None) -> Edges:
    """The slice by latent, node by node and entry by entry."""

    def kept(nodes: Nodes, latents: set[int] | None) -> tuple[Nodes, dict[int, int]]:
        rows = [i for i, latent in enumerate(nodes.latent.tolist()) if latents is None or latent in latents]
        at = torch.tensor(rows, dtype=torch.int64)
        counts = [sum(nodes.rows(p).start <= row < nodes.rows(p).stop for row in rows) for p in range(len(nodes.ptr) - 1)]
        labels = tuple(nodes.labels[row] for row in rows) if nodes.labels else ()
        probability = None if nodes.probability is None else nodes.probability[at]
        table = Nodes(nodes.kind, nodes.site, ptr(counts), nodes.position[at], nodes.latent[at], nodes.activation[at], labels, probability)
        return table, {row: i for i, row in enumerate(rows)}

    (source_table, columns), (target_table, rows) = kept(edges.sources, sources), kept(edges.targets, targets)
    entries = [
        (rows[row], columns[column], entry)
        for entry, (row, column) in enumerate(zip(edges.row.tolist(), edges.indices.tolist(), strict=True))
        if row in rows and column in columns
    ]
    at, chosen = torch.tensor([e for _, _, e in entries], dtype=torch.int64), torch.tensor([*rows], dtype=torch.int64)
    return replace(
        edges,
        sources=source_table,
        targets=target_table,
        indptr=ptr([sum(row == i for row, _, _ in entries) for i in range(len(rows))]),
        indices=torch.tensor([column for _, column, _ in entries], dtype=torch.int64),
        gradient=edges.gradient[at],
        attribution=edges.attribution[at],
        total=edges.total[chosen],
        l1=edges.l1[chosen],
    )


@given(st.data())
@settings(deadline=None, max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
def test_slicing_by_latent_is_that_of_every_entry(data: st.DataObject) -> None:
    prompts = data.draw(prompts_of(data.draw(st.lists(st.integers(0, 4), max_size=4))))
    edges = data.draw(edges_of(prompts, "a", "b"))
    there = [{*nodes.latent.tolist()} for nodes in (edges.sources, edges.targets)]
    latents = [data.draw(st.none() | st.sets(st.sampled_from([*found, 77]))) for found in there]
    result = select_latents(edges, *(None if chosen is None else sorted(chosen) for chosen in latents))
    assert fault(result) is None
    assert same(result, sliced(edges, *latents))


@given(st.data())
@settings(deadline=None, max_examples=examples(40), suppress_health_check=[HealthCheck.too_slow])
def test_prompts_are_taken_in_any_order(data: st.DataObject) -> None:
    prompts = data.draw(prompts_of(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))))
    edges = data.draw(edges_of(prompts, "a", "b"))
    edges = replace(edges, prompts=replace(prompts, number=torch.arange(len(prompts)) * 3))
    order = data.draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=6))
    assert same(edges.take(torch.tensor(order)), join([edges.prompt(i) for i in order]))


def test_a_latent_can_be_one_number_and_remainder_holds_what_was_sliced_away(collection: Collection) -> None:
    whole, some = collection.edges(), collection.edges(target_latents=2, source_latents=[1, 3])
    rows = whole.targets.latent == 2
    assert torch.equal(some.total, whole.total[rows])
    assert {*some.sources.latent.tolist()} == {1, 3}
    kept = torch.isin(whole.sources.latent[whole.indices], torch.tensor([1, 3]))
    away = torch.zeros(len(whole.targets)).index_add(0, whole.row[~kept], whole.attribution[~kept])
    torch.testing.assert_close(some.remainder, (whole.remainder + away)[rows])


@pytest.mark.few
@pytest.mark.parametrize("near", [0, 3, 10_000])
def test_a_single_shard_is_sliced_by_latent_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near: int) -> None:
    monkeypatch.setattr("attrib.store.shard.NEAR", near)
    edges = made(range(9), seed=5)
    with open_store(save(tmp_path / "shard.h5", edges)) as shard:
        for targets in ([], [0], [1, 4], [*range(LATENTS)]):
            assert same(shard.edges(target_latents=targets, source_latents=[0, 2, 5]), select_latents(edges, [0, 2, 5], targets))
            assert same(
                shard.edges(prompts=slice(2, 8), target_latents=targets),
                select_latents(join([edges.prompt(i) for i in range(2, 8)]), None, targets),
            )


def test_rows_of_other_latents_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage in them is not met."""
    monkeypatch.setattr("attrib.store.shard.NEAR", 0)
    edges = made(range(4), seed=3)
    path = save(tmp_path / "shard.h5", edges)
    bad = int((edges.targets.latent[edges.row] == 1).nonzero()[0])
    with h5py.File(path, "r+") as file:
        next(iter(file["blocks"].values()))["gradient/indices"][bad] = 10**6
    with open_store(tmp_path) as opened:
        assert same(opened.edges(target_latents=[0, 2]).gradient, select_latents(edges, None, [0, 2]).gradient)
        with pytest.raises(FormatError, match=r"shard\.h5: damaged.*indices do not ascend"):
            opened.edges(target_latents=1)


# ----------------------------------------------------------------------------------- other shapes of it


def test_by_shard_each_file_comes_once(collection: Collection, parts: list[Edges]) -> None:
    read = list(collection.iterate(by="shard"))
    assert [edges.prompts.numbers.tolist() for edges in read] == [group for group in GROUPS if group]
    assert same(join(read), reference(parts, [number for group in GROUPS for number in group]))
    some = list(collection.iterate(by="shard", prompts=[20, 2, 4]))
    assert [edges.prompts.numbers.tolist() for edges in some] == [[4, 2], [20]]


@pytest.mark.few
@pytest.mark.parametrize("most", [1, 10, 10**6])
def test_parts_are_as_large_as_asked_for(collection: Collection, parts: list[Edges], most: int) -> None:
    read = list(collection.iterate(by="shard", most=most))
    assert all(len(edges) <= most or len(edges.prompts) == 1 for edges in read)
    assert same(join(read), join(list(collection.iterate(by="shard"))))
    if most == 10**6:
        assert len(read) == len([group for group in GROUPS if group])


def test_iteration_holds_one_part_at_a_time(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attrib.store.collection.PIECE", 1)
    read = collection.iterate(prompts=[7, 0, 12])
    assert next(read).prompts.numbers.tolist() == [7]
    collection.close()
    with pytest.raises(InputError, match=r"collection: .* is closed"):
        next(read)


def test_scipy_blocks(collection: Collection, parts: list[Edges]) -> None:
    for value in ("attribution", "gradient"):
        read = list(collection.to_scipy(value=value))
        for (numbers, matrix), part in zip(read, [part for part in parts if len(part.prompts)], strict=True):
            assert isinstance(matrix, scipy.sparse.csr_array)
            assert torch.equal(numbers, part.prompts.numbers)
            assert (matrix != part.to_scipy(value)).nnz == 0


def test_pandas_has_the_numbers_of_the_data_set(collection: Collection, parts: list[Edges]) -> None:
    asked = [12, 3, 12]
    expected = join([reference(parts, [number]) for number in asked]).to_pandas()
    expected["prompt"] = [asked[i] for i in expected["prompt"]]
    pd.testing.assert_frame_equal(collection.to_pandas(prompts=asked), expected)


# ---------------------------------------------------------------------------------------------- torch


def items_equal(item: dict[str, torch.Tensor], edges: Edges) -> None:
    assert item["number"].item() == edges.prompts.numbers.item()
    assert torch.equal(item["ids"], edges.prompts.ids)
    for end, nodes in (("source", edges.sources), ("target", edges.targets)):
        for name in ("position", "latent", "activation"):
            assert torch.equal(item[f"{end}_{name}"], getattr(nodes, name))
    for name in ("indptr", "indices", "total", "l1", *({"gradient", "attribution"} & item.keys())):
        assert torch.equal(item[name], getattr(edges, name))


def test_items_of_the_dataset(collection: Collection, parts: list[Edges]) -> None:
    dataset = collection.dataset(value="attribution", source_latents=[0, 1])
    assert len(dataset) == len(SORTED)
    assert "gradient" not in dataset[0]
    for i, number in enumerate(SORTED):
        items_equal(dataset[i], select_latents(reference(parts, [number]), [0, 1]))
    assert dataset[-1]["number"] == SORTED[-1]
    with pytest.raises(IndexError, match="item: 10 is outside the 10 prompts"):
        dataset[10]


@pytest.mark.long
@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_a_loader_with_workers(collection: Collection, parts: list[Edges], method: str, workers: int) -> None:
    collection.edges()  # handles are open where the workers are forked
    context = multiprocessing.get_context(method)
    loader = DataLoader(collection.dataset(), batch_size=None, shuffle=True, num_workers=workers, multiprocessing_context=context)
    read = list(loader)
    assert sorted(int(item["number"]) for item in read) == SORTED
    for item in read:
        items_equal(item, reference(parts, [int(item["number"])]))
    assert same(collection.edges(), reference(parts, SORTED))


def test_a_loader_in_lists(collection: Collection) -> None:
    batches = list(DataLoader(collection.dataset(), batch_size=4, collate_fn=list))
    assert [[int(item["number"]) for item in batch] for batch in batches] == [SORTED[:4], SORTED[4:8], SORTED[8:]]


def test_a_pickled_collection_is_the_same_snapshot(tmp_path: Path, collection: Collection, parts: list[Edges]) -> None:
    collection.edges(prompts=0)
    assert len(collection.prompts) == 10  # kept here, and not sent along
    assert b"t1" not in pickle.dumps(collection)
    save(tmp_path / "set" / "later.h5", made([99], seed=9))
    copy = pickle.loads(pickle.dumps(collection))
    collection.close()
    assert copy.numbers.tolist() == SORTED
    assert same(copy.edges(), reference(parts, SORTED))


def test_threads_share_a_collection(tmp_path: Path) -> None:
    parts = shards_of(tmp_path, [[i] for i in range(2 * handles.MOST)])
    wrong: list[object] = []
    with open_collection(tmp_path) as opened:

        def read(seed: int) -> None:
            try:
                for number in random.Random(seed).choices(range(len(parts)), k=12):
                    if not same(opened.edges(prompts=number), reference(parts, [number])):
                        wrong.append(number)
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# ----------------------------------------------------------------------------------------------- files


def open_files(folder: Path) -> int:
    """How many files of a folder this process has open."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return sum(str(folder) in os.readlink(link) for link in links if link.is_symlink())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_few_files_are_open(tmp_path: Path) -> None:
    shards_of(tmp_path, [[i] for i in range(handles.MOST + 2)])
    with open_collection(tmp_path) as opened:
        assert open_files(tmp_path) == 0
        opened.edges()
        assert open_files(tmp_path) == handles.MOST
    assert open_files(tmp_path) == 0
    with pytest.raises(InputError, match=r"collection: .* is closed; read inside its `with` statement, or open it again"):
        opened.edges()
    assert "closed" in repr(opened)


def test_a_jobs_folder_and_what_lies_beside(tmp_path: Path) -> None:
    assert len(open_collection_of_job(tmp_path)) == 0
    parts = shards_of(tmp_path / "shards", [[1], [0]])
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / "foreign.h5").write_text("not a shard")
    (tmp_path / "shards" / ".00009.h5.1234.partial").write_text("half of a shard")
    (tmp_path / "shards" / ".00009.h5").write_text("half of a shard")
    (tmp_path / "shards" / "notes.txt").write_text("not a shard")
    with open_store(tmp_path) as opened:
        assert same(opened.edges(), reference(parts, [0, 1]))
    with open_store(tmp_path / "shards") as opened:
        assert len(opened) == 2


def open_collection_of_job(folder: Path) -> Collection:
    (folder / "shards").mkdir()
    opened = open_collection(folder)
    assert opened.blocks == []
    with pytest.raises(InputError, match=r"no blocks of .* fit"):
        opened.edges()
    return opened


def test_a_single_shard_as_a_collection(tmp_path: Path) -> None:
    edges = made([5, 2], seed=1)
    with open_collection(save(tmp_path / "one.shard", edges)) as opened:
        assert same(opened.edges(), reference([edges], [2, 5]))


def test_an_index_takes_16_bytes_a_prompt(collection: Collection) -> None:
    index: Index = collection._index
    assert index.number.nbytes + index.order.nbytes == 16 * len(collection)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (8, r"prompts: 8 is not among the 10 prompts of .*set \(numbers 0, [\d, ]*, 30\); expected numbers of the data set"),
        ([0, 31], r"prompts: 31 is not among .*What was written since it was opened is seen when it is opened again"),
        (-1, r"prompts: -1 is not among .*expected numbers of the data set that are there, from 0"),
        ([2**63], r"prompts: 9223372036854775808 is not among"),
        (slice(-3, None), r"prompts: slice\(-3, None, None\); expected bounds that are numbers of the data set, from 0"),
        (slice(None, None, 0), r"prompts: 0; expected a step other than 0"),
    ],
)
def test_prompts_that_are_not_there(collection: Collection, asked: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        collection.edges(prompts=asked)


@pytest.mark.parametrize("number", [8, -1, 10**23])
def test_a_place_that_is_not_there(collection: Collection, number: int) -> None:
    with pytest.raises(InputError, match=rf"prompt: {number} is not among the 10 prompts of .*set \(numbers 0, [\d, ]*, 30\)"):
        collection.place_of(number)


def test_a_single_shard_is_named_as_such(tmp_path: Path) -> None:
    message = r"prompt: 3 is not among the 2 prompts of .*one\.h5 \(numbers 2, 5\)"
    with open_collection(save(tmp_path / "one.h5", made([5, 2]))) as opened, pytest.raises(InputError, match=message):
        opened.place_of(3)


Slicer = Callable[..., Any]
SLICERS: dict[str, Slicer] = {
    "Collection.edges": lambda folder, **asked: open_store(folder).edges(**asked),
    "Collection.iterate": lambda folder, **asked: open_store(folder).iterate(**asked),
    "Collection.dataset": lambda folder, **asked: open_store(folder).dataset(**asked),
    "Collection.to_pandas": lambda folder, **asked: open_store(folder).to_pandas(**asked),
    "Store.edges": lambda folder, **asked: open_shard(folder / "00000.h5").edges(**asked),
    "select_latents": lambda folder, **asked: select_latents(made([0, 1]), **asked),
}
TAKES_LATENTS = [*SLICERS]
TAKES_PROMPTS = [name for name in SLICERS if name not in ("Collection.dataset", "select_latents")]
NO_NUMBERS: list[tuple[Any, str]] = [
    ("a", r"'a'"),
    ("1599", r"'1599'"),
    (["a"], r"'a'"),
    (1599.7, r"1599\.7"),
    ([1, 2.0], r"2\.0"),
    (True, r"True"),
    (torch.tensor([0.0, 1.0]), r"0\.0"),
    (torch.tensor([True, False]), r"True"),
    (torch.tensor([[1], [2]]), r"\[1\]"),
    (np.array([1.5]), r"1\.5"),
    (b"a", r"b'a'"),
]


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("end", ["source_latents", "target_latents"])
@pytest.mark.parametrize(
    ("asked", "came"), [*NO_NUMBERS, ([10**30], "1" + 30 * "0"), ([3, -2], "-2"), (slice(0, 10), r"slice\(0, 10, None\)")]
)
@pytest.mark.parametrize("slicer", TAKES_LATENTS)
def test_latents_that_are_no_numbers_are_named(tmp_path: Path, slicer: str, end: str, asked: Any, came: str) -> None:
    """And no damage of the file, of which nothing is read."""
    with without_shape_checks(), pytest.raises(InputError, match=rf"^{end}: {came}; expected a latent's number, a vocabulary id, or -1"):
        SLICERS[slicer](tmp_path / "set", **{end: asked})


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(("asked", "came"), [*NO_NUMBERS, (slice("a", None), "'a'"), (slice(0, 1.5), r"1\.5"), (slice(0, 9, 0), "0")])
@pytest.mark.parametrize("slicer", TAKES_PROMPTS)
def test_prompts_that_are_no_numbers_are_named(tmp_path: Path, slicer: str, asked: Any, came: str) -> None:
    with without_shape_checks(), pytest.raises(InputError, match=rf"^prompts: {came}; expected "):
        SLICERS[slicer](tmp_path / "set", prompts=asked)


FORMS: list[Callable[[list[int]], Any]] = [
    torch.tensor,
    lambda numbers: torch.tensor(numbers, dtype=torch.uint8),
    np.array,
    lambda numbers: np.array(numbers, np.uint16),
    lambda numbers: [np.int64(number) for number in numbers],
    lambda numbers: list(torch.tensor(numbers)),
    pd.Series,
]


@pytest.mark.few
@pytest.mark.parametrize("form", FORMS)
def test_tensors_and_arrays_are_numbers_too(collection: Collection, form: Callable[[list[int]], Any]) -> None:
    latents = {"source_latents": [0, 3, 5], "target_latents": [4, 1]}
    expected = collection.edges(prompts=[12, 0, 7], **latents)
    with without_shape_checks():  # a pandas column is none of the annotation's
        asked = {name: form(numbers) for name, numbers in latents.items()}
        assert same(collection.edges(prompts=form([12, 0, 7]), **asked), expected)
        assert same(join(list(collection.iterate(prompts=form([12, 0, 7]), **asked))), expected)
        assert same(select_latents(collection.edges(prompts=[12, 0, 7]), **asked), expected)
        assert torch.equal(collection.dataset(**asked)[5]["indices"], collection.dataset(**latents)[5]["indices"])
        with open_shard(collection.place_of(form([7])[0])[0]) as shard:
            assert same(shard.edges(prompts=form([2, 0]), **asked), shard.edges(prompts=[2, 0], **latents))


def test_the_numbers_of_a_collection_are_prompts_to_ask_for(collection: Collection) -> None:
    for numbers in (collection.numbers[:3], collection.numbers[3], collection.numbers[:0], collection.numbers[:3].numpy()):
        assert collection.edges(prompts=numbers).prompts.numbers.tolist() == np.atleast_1d(numbers).tolist()


def test_parts_that_there_are_not(collection: Collection) -> None:
    for options in ({"by": "prompt", "most": 3}, {"by": "shard", "most": 0}):
        with pytest.raises(InputError, match=r"iterate\(by='(prompt|shard)', most=\d\): expected by='prompt' alone, or by='shard'"):
            collection.iterate(**options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- folders that are wrong


def add_text(folder: Path) -> None:
    (folder / "foreign.h5").write_text("hello")


def add_foreign(folder: Path) -> None:
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["X"] = [1.0]


def add_statistics(folder: Path) -> None:
    stats.save(folder / "foreign.h5", stats.of(made([90])))


def add_merged(folder: Path) -> None:
    (merge(folder.parent / "foreign.h5", [folder / "00000.h5"])).rename(folder / "foreign.h5")


def add_edited(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        save(folder / "foreign.h5", made([90], seed=7))
        with h5py.File(folder / "foreign.h5", "r+") as file:
            change(file)

    return add


def truncate(folder: Path) -> None:
    path = save(folder / "foreign.h5", made([90], seed=7))
    path.write_bytes(path.read_bytes()[:-100])


def claim_prompts(file: h5py.File) -> None:
    for name, length in (("ptr", 2**50 + 1), ("number", 2**50)):
        del file[f"prompts/{name}"]
        file.create_dataset(f"prompts/{name}", shape=(length,), dtype="i8", chunks=(1000,))


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (folder / "foreign.h5").symlink_to(save(outside / "x.h5", made([90])))


def rename_block(file: h5py.File) -> None:
    file.move(f"blocks/{next(iter(file['blocks']))}", "blocks/latent_to_moon:a:b")


@pytest.mark.parametrize(
    ("add", "error", "message"),
    [
        (add_text, FormatError, r"foreign\.h5: not an HDF5 file"),
        (add_foreign, FormatError, r"foreign\.h5: an HDF5 file, but not attrib's"),
        (add_statistics, FormatError, r"foreign\.h5: statistics, which attrib\.stats\.open and `attrib stats show` read; expected a shard"),
        (
            add_merged,
            FormatError,
            r"foreign\.h5: a merged file, .* attrib\.open and `attrib show` read it by itself, .*move it out of the f",
        ),
        (truncate, FormatError, r"foreign\.h5: truncated or damaged"),
        (lambda f: save(f / "foreign.h5", made([90, 12, 91])), FormatError, r"foreign\.h5: its prompt of number 12 is in .*00000\.h5 too"),
        (lambda f: save(f / "foreign.h5", made([90, 90])), FormatError, r"foreign\.h5: its prompt of number 90 is in it twice"),
        (lambda f: save(f / "foreign.h5", made(None, 2)), FormatError, r"foreign\.h5: it does not carry numbers .*, and 00000\.h5 does"),
        (
            lambda f: save(f / "foreign.h5", made([90], kind="logit")),
            FormatError,
            r"foreign\.h5: its blocks are latent_to_logit .*logits, and those of 00000\.h5 are latent_to_latent",
        ),
        (
            lambda f: save(f / "foreign.h5", replace(made([90]), call=CALL | {"keep": "Dense()"})),
            FormatError,
            r"foreign\.h5: its call differs from that of 00000\.h5: keep is Dense\(\), and not TopK\(2\); .*Move the file elsewhere",
        ),
        (add_edited(claim_prompts), FormatError, r"foreign\.h5: .*bytes in chunks of 8000 are more than the file"),
        (add_edited(lambda file: file["prompts/number"].__setitem__(0, -4)), FormatError, r"foreign\.h5: .*number falls below 0"),
        (add_edited(rename_block), FormatError, r"foreign\.h5: .*'latent_to_moon:a:b' does not name a block"),
        (link_out, InputError, r"foreign\.h5: a link to .*x\.h5, outside the folder"),
        (lambda f: (f / "foreign.h5").symlink_to("/dev/null"), InputError, r"foreign\.h5: a link to /dev/null, outside the folder"),
        (lambda f: (f / "foreign.h5").symlink_to("absent"), InputError, r"foreign\.h5: neither a file nor a link to one"),
        (lambda f: (f / "foreign.h5").mkdir(), InputError, r"foreign\.h5: neither a file nor a link to one"),
        (lambda f: os.mkfifo(f / "foreign.h5"), InputError, r"foreign\.h5: neither a file nor a link to one"),
    ],
)
@pytest.mark.usefixtures("parts")
def test_a_file_that_does_not_belong_is_named(tmp_path: Path, add: Callable[[Path], Any], error: type[Exception], message: str) -> None:
    known = open_collection(tmp_path / "set")
    add(tmp_path / "set")
    with pytest.raises(error, match=message):
        open_store(tmp_path / "set")
    with pytest.raises(error, match=message):
        known.refreshed()


def test_a_merged_file_replaces_nothing_but_one(tmp_path: Path, parts: list[Edges]) -> None:
    shards = sorted((tmp_path / "set").iterdir())
    statistics = stats.save(tmp_path / "statistics.h5", stats.of(parts[0]))
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / "empty.h5").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for path in (shards[0], statistics, tmp_path / "job.json", tmp_path / "empty.h5"):
        with pytest.raises(
            InputError, match=rf"path: {path} is not a merged file, and --overwrite \(in Python, overwrite=True\) replaces noth"
        ):
            merge(path, shards, overwrite=True)
    for path in (tmp_path / "set" / "merged.h5", tmp_path / "set" / "other"):
        with pytest.raises(InputError, match=rf"path: {path} lies in the folder of its shards, .*Choose a folder above it"):
            merge(path, shards)
    with pytest.raises(InputError, match=r"path: the folder .*absent does not exist; make it first"):
        merge(tmp_path / "absent" / "merged.h5", shards)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    merge(tmp_path / "merged.h5", shards[:2])
    with pytest.raises(
        InputError, match=r"merged\.h5 exists already; .*or replace a merged file with --overwrite \(in Python, overwrite=True"
    ):
        merge(tmp_path / "merged.h5", shards)
    with open_store(merge(tmp_path / "merged.h5", shards, overwrite=True)) as opened:
        assert len(opened) == 10


def test_a_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"path: the folder .* has no shards, files that end in \.h5; expected some, or a job's folder"):
        open_store(tmp_path)


def test_a_link_inside_the_folder_is_a_shard(tmp_path: Path) -> None:
    edges = made([1, 0])
    save(tmp_path / ".kept", edges)
    (tmp_path / "shard.h5").symlink_to(".kept")
    with open_store(tmp_path) as opened:
        assert same(opened.edges(), reference([edges], [0, 1]))


def test_a_block_made_in_another_way_is_named_when_it_is_read(tmp_path: Path) -> None:
    """Calls of single blocks are not read before the blocks are."""
    for seed, keep in enumerate(["TopK(2)", "Dense()"]):
        first = made([seed], seed=seed)
        other = replace(made([seed], seed=seed, kind="logit"), prompts=first.prompts)
        save(
            tmp_path / f"{seed}.h5",
            [replace(first, call=CALL), replace(other, call={"kind": "latent_to_logit", "model": CALL["model"], "keep": keep})],
        )
    # what all blocks share differs too here, so it is made the same
    with h5py.File(tmp_path / "0.h5", "r+") as one, h5py.File(tmp_path / "1.h5") as two:
        one.attrs["call"] = two.attrs["call"]
    with open_store(tmp_path) as opened:
        assert len(opened.edges("latent_to_latent").prompts) == 2
        message = r"1\.h5: the call of its block 'latent_to_logit .*' differs from that of .*0\.h5: keep is Dense\(\), and not TopK\(2\)"
        with pytest.raises(FormatError, match=message):
            opened.edges("latent_to_logit")


def test_damage_is_met_only_where_it_is_read(tmp_path: Path, parts: list[Edges]) -> None:
    with h5py.File(tmp_path / "set" / "00002.h5", "r+") as file:
        group = next(iter(file["blocks"].values()))
        del group["sources/activation"]
    with open_store(tmp_path / "set") as opened:
        others = [number for i, group in enumerate(GROUPS) if i != 2 for number in group]
        assert same(opened.edges(prompts=others), reference(parts, others))
        assert opened.prompts.equals(reference(parts, SORTED).prompts)
        with pytest.raises(FormatError, match=r"00002\.h5: damaged: .*'activation' is missing"):
            opened.edges(prompts=30)


# ------------------------------------------------------------------------------------ while a job writes


def test_a_collection_is_a_snapshot_and_a_refreshed_one_has_what_came_since(
    tmp_path: Path, collection: Collection, parts: list[Edges], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = made([6, 99], seed=9)
    save(tmp_path / "set" / "00001b.h5", later)
    assert len(collection) == 10
    with pytest.raises(InputError, match=r"prompts: 99 is not among .* What was written since it was opened"):
        collection.edges(prompts=99)
    read: list[Path] = []
    original = attrib.store.index.read_header
    monkeypatch.setattr("attrib.store.index.read_header", lambda path, identity: read.append(path) or original(path, identity))
    fresh = collection.refreshed()
    assert [path.name for path in read] == ["00001b.h5"]  # the others are known
    assert same(fresh.edges(), reference([*parts, later], sorted([*SORTED, 6, 99])))
    assert same(collection.edges(), reference(parts, SORTED))
    assert len(fresh.refreshed()) == 12
    assert len(read) == 1


def test_a_shard_that_is_gone_or_replaced_is_named(tmp_path: Path, parts: list[Edges]) -> None:
    folder = tmp_path / "set"
    opened = open_collection(folder)
    (folder / "00001.h5").unlink()
    save(folder / "00004.h5", made([20, 5], seed=77), overwrite=True)
    with pytest.raises(
        InputError, match=r"00001\.h5: it is gone since the folder was opened; open the folder again \(in Python, `refreshed"
    ):
        opened.edges(prompts=3)
    with pytest.raises(InputError, match=r"00004\.h5: it was replaced since the folder was opened; open the folder again \(in"):
        opened.edges(prompts=5)
    assert same(opened.edges(prompts=[12, 30]), reference(parts, [12, 30]))
    fresh = opened.refreshed()
    assert fresh.numbers.tolist() == [number for number in SORTED if number != 3]
    assert same(fresh.edges(prompts=5), reference([made([20, 5], seed=77)], [5]))


def test_a_shard_that_is_open_can_be_replaced_and_is_read_to_its_end(tmp_path: Path) -> None:
    """No lock of a reader stops a writer, and a handle stays with the file that it opened."""
    parts = shards_of(tmp_path, [[0, 1]])
    with open_collection(tmp_path) as opened, open_store(tmp_path / "00000.h5") as shard:
        opened.edges(prompts=0)
        save(tmp_path / "00000.h5", made([0, 1], seed=8), overwrite=True)
        assert same(opened.edges(), reference(parts, [0, 1]))
        assert same(shard.edges(prompts=1).gradient, parts[0].prompt(1).gradient)


def test_a_file_that_is_open_for_writing_elsewhere_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "shard.h5", made([0]))
    program = f"import h5py; file = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline()
        with pytest.raises(InputError, match=r"shard\.h5: another process has it open for writing; .* Close it there"):
            open_store(path)
        writer.communicate(b"\n")
    with open_store(path) as shard:
        assert len(shard.prompts) == 1


def test_a_file_system_without_locks_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked, original = save(tmp_path / "shard.h5", made([0])), [], h5py.File

    def file(name: Path, mode: str, locking: Any) -> h5py.File:
        asked.append(locking)
        if locking is not False:
            raise OSError(37, "unable to lock file, errno = 37, error message = 'No locks available'")
        return original(name, mode, locking=locking)

    monkeypatch.setattr(h5py, "File", file)
    with open_shard(path) as shard:
        assert len(shard.prompts) == 1
    assert asked == ["best-effort", False]
    with open_store(path) as shard:
        assert len(shard.prompts) == 1


@pytest.mark.few
@pytest.mark.parametrize("options", [{"locking": True}, {"locking": False}, {}])
def test_a_file_that_the_process_has_open_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    path = save(tmp_path / "shard.h5", made([0]))
    with h5py.File(path, **options), open_store(path) as shard:
        assert len(shard.prompts) == 1
    with open_store(path), h5py.File(path) as file:
        assert "prompts" in file


def test_a_folder_that_cannot_be_written_to_is_read(tmp_path: Path) -> None:
    parts = shards_of(tmp_path / "set", [[0], [1]])
    for path in [*(tmp_path / "set").iterdir(), tmp_path / "set"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with open_store(tmp_path / "set") as opened:
            assert same(opened.edges(), reference(parts, [0, 1]))
    finally:
        (tmp_path / "set").chmod(0o755)


WRITER = """
import shutil, sys
from pathlib import Path
source, folder = map(Path, sys.argv[1:])
for path in sorted(source.iterdir()):
    if (folder / path.name).exists():
        continue  # a job writes each shard once
    partial = folder / f".{path.name}.partial"
    shutil.copyfile(path, partial)
    partial.rename(folder / path.name)
print("done", flush=True)
"""


def test_readers_go_on_while_a_job_writes(tmp_path: Path) -> None:
    parts = shards_of(tmp_path / "made", [[2 * i, 1000 - i] for i in range(30)])
    folder = tmp_path / "job" / "shards"
    folder.mkdir(parents=True)
    shutil.copyfile(tmp_path / "made" / "00000.h5", folder / "00000.h5")
    seen, opened = [], open_collection(tmp_path / "job")
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "made", folder], stdout=subprocess.PIPE) as writer:
        while not seen or seen[-1] < 60:
            done = writer.poll() is not None
            opened = opened.refreshed() if seen else opened
            seen.append(len(opened))
            for edges in opened.iterate(by="shard", prompts=opened.numbers.tolist()[-20:]):
                numbers = edges.prompts.numbers.tolist()
                assert same(edges, reference(parts, numbers))
            assert not done or len(opened.refreshed()) == 60
    assert seen == sorted(seen)
    assert same(opened.edges(), reference(parts, sorted(opened.numbers.tolist())))


def test_the_columns_of_a_row_are_numbers(collection: Collection) -> None:
    """What `dense` makes of a prompt is what its shard says."""
    edges = collection.edges(prompts=30)
    dense = edges.dense(0, "attribution").numpy()
    assert np.array_equal(dense, edges.to_scipy().toarray())


def test_the_bench_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """It compares values before it times."""
    reading.main(shards=10, megabytes=0, tokens=4)
    assert "iterate(by='shard')" in capsys.readouterr().out
