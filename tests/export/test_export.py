"""Exports, read back by the libraries that they are for: pyarrow and pandas, anndata, zarr. Values are those of the shards."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import scipy.sparse
import torch
import typer
import zarr
from typer.testing import CliRunner

import attrib
from attrib.cli.files import export
from attrib.core.edges import Edges, join
from attrib.core.types import FormatError, InputError
from attrib.export import folder as folder_module
from attrib.export import stored, to_anndata, to_parquet, to_zarr
from attrib.export.folder import MANIFEST
from attrib.export.stored import plain
from attrib.store import open as open_store
from attrib.store import open_collection, save
from tests.store.test_collection import CALL, large, made
from tests.support.attribution_cases import without_shape_checks
from tests.support.root import ROOT

GROUPS = [[7, 0, 12], [3], [], [4, 30, 1, 2], [20, 5]]
STORED = [number for group in GROUPS for number in group]
FILE = "latent_to_latent,blocks.0.hook_resid_pre,blocks.2.hook_resid_pre"
LOGITS = "latent_to_logit,blocks.0.hook_resid_pre,logits"
EXPORTS: list[tuple[Callable[..., Path], str]] = [(to_parquet, "parquet"), (to_anndata, "h5ad"), (to_zarr, "zarr")]

# of anndata's own ways with other libraries
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Edges]]]:
    folder = tmp_path_factory.mktemp("original")
    blocks: list[list[Edges]] = [[], []]
    for seed, numbers in enumerate(GROUPS):
        first, second = made(numbers, seed=seed), made(numbers, seed=seed, kind="logit")
        odd = tuple(["a\0b", "\ud800", " naïve 🙂"][i % 3] if i % 4 == 0 else string for i, string in enumerate(first.prompts.strings))
        prompts = replace(first.prompts, strings=odd)
        pair = [replace(edges, prompts=prompts) for edges in (first, second)]
        save(folder / f"{seed}.h5", pair)
        for block, edges in zip(blocks, pair, strict=True):
            block.append(edges)
    return folder, blocks


@pytest.fixture
def shards(tmp_path: Path, original: tuple[Path, list[list[Edges]]]) -> tuple[Path, list[list[Edges]]]:
    """A folder with two blocks, and for each the edges of every shard."""
    shutil.copytree(original[0], tmp_path / "set")
    return tmp_path / "set", original[1]


def expected_table(edges: Edges) -> pd.DataFrame:
    """The rows of the Parquet file, one edge after another by plain Python."""
    rows = []
    prompt_of, row_of = edges.sources.prompt.tolist(), edges.row.tolist()
    for entry, (row, column) in enumerate(zip(row_of, edges.indices.tolist(), strict=True)):
        prompt = prompt_of[column]
        found: dict[str, Any] = {"prompt": int(edges.prompts.numbers[prompt])}
        for end, nodes, at in (("source", edges.sources, column), ("target", edges.targets, row)):
            position = int(nodes.position[at])
            found[f"{end}_position"] = position
            found[f"{end}_token"] = plain(edges.prompts.text(prompt)[position])
            found[f"{end}_latent"] = int(nodes.latent[at])
            found[f"{end}_label"] = nodes.labels[at] if nodes.labels else None
            found[f"{end}_activation"] = float(nodes.activation[at])
        found |= {"target_total": float(edges.total[row]), "target_l1": float(edges.l1[row])}
        rows.append(found | {"gradient": float(edges.gradient[entry]), "attribution": float(edges.attribution[entry])})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("rows", [5, 1 << 18])
def test_parquet_has_a_row_for_each_edge(
    tmp_path: Path, shards: tuple[Path, list[list[Edges]]], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("attrib.export.parquet.ROWS", rows)
    folder, blocks = shards
    out = to_parquet(folder, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, f"{FILE}.parquet", f"{LOGITS}.parquet"]
    for name, parts in ((FILE, blocks[0]), (LOGITS, blocks[1])):
        path, expected = out / f"{name}.parquet", expected_table(join(parts))
        table = pyarrow.parquet.read_table(path)
        assert table.column_names == [*expected.columns]
        read = pd.read_parquet(path)
        for column in expected:
            values = (
                read[column].astype(object).where(read[column].notna(), None) if "label" in column or "token" in column else read[column]
            )
            assert values.tolist() == expected[column].tolist(), column
        assert read["attribution"].dtype == np.float32
        call = json.loads(pyarrow.parquet.read_schema(path).metadata[b"attrib"])
        assert call == CALL | {"kind": parts[0].kind}
        groups = pyarrow.parquet.ParquetFile(path).metadata
        assert all(groups.row_group(i).num_rows <= rows for i in range(groups.num_row_groups))
    assert len(pd.read_parquet(out)) == sum(len(edges) for parts in blocks for edges in parts)  # the folder as one data set


def check_annotated(data: anndata.AnnData, edges: Edges) -> None:
    assert (scipy.sparse.csr_array(data.X) != edges.to_scipy()).nnz == 0
    assert data.X.nnz == len(edges)
    assert (scipy.sparse.csr_array(data.layers["gradient"]) != edges.to_scipy("gradient")).nnz == 0
    assert data.X.dtype == data.layers["gradient"].dtype == np.float32
    for table, nodes in ((data.obs, edges.targets), (data.var, edges.sources)):
        prompt = nodes.prompt
        assert table["prompt"].tolist() == edges.prompts.numbers[prompt].tolist()
        assert table["position"].tolist() == nodes.position.tolist()
        assert table["latent"].tolist() == nodes.latent.tolist()
        assert np.array_equal(table["activation"], nodes.activation.numpy())
        tokens = [edges.prompts.strings[i] for i in (edges.prompts.ptr[prompt] + nodes.position).tolist()]
        assert table["token"].tolist() == [plain(token) for token in tokens]
        if nodes.labels:
            assert table["label"].tolist() == list(nodes.labels)
        if nodes.probability is not None:
            assert np.array_equal(table["probability"], nodes.probability.numpy())
    assert np.array_equal(data.obs["total"], edges.total.numpy())
    assert np.array_equal(data.obs["l1"], edges.l1.numpy())


@pytest.mark.few
@pytest.mark.parametrize(("to", "ending", "least"), [(to_anndata, "h5ad", 1), (to_anndata, "h5ad", 1 << 18), (to_zarr, "zarr", 1)])
def test_anndata_opens_a_matrix_with_its_tables(
    tmp_path: Path,
    shards: tuple[Path, list[list[Edges]]],
    monkeypatch: pytest.MonkeyPatch,
    to: Callable[..., Path],
    ending: str,
    least: int,
) -> None:
    monkeypatch.setattr(stored, "LEAST", least)
    folder, blocks = shards
    out = to(folder, tmp_path / "out")
    read = {"h5ad": anndata.read_h5ad, "zarr": anndata.read_zarr}[ending]
    for name, parts in ((FILE, blocks[0]), (LOGITS, blocks[1])):
        data = read(out / f"{name}.{ending}")
        check_annotated(data, join(parts))
        assert json.loads(data.uns["attrib"]["call"]) == CALL | {"kind": parts[0].kind}
        assert data.uns["attrib"]["source"] == "blocks.0.hook_resid_pre"


def test_h5ad_opens_in_backed_mode(tmp_path: Path, shards: tuple[Path, list[list[Edges]]]) -> None:
    folder, blocks = shards
    out = to_anndata(folder, tmp_path / "out", kind="latent_to_latent")
    edges = join(blocks[0])
    data = anndata.read_h5ad(out / f"{FILE}.h5ad", backed="r")
    rows = (data.obs["prompt"] == 30).to_numpy().nonzero()[0]
    assert (scipy.sparse.csr_array(data.X[rows[0] : rows[-1] + 1]) != edges.to_scipy()[rows]).nnz == 0
    data.file.close()


def test_zarr_opens_the_store_itself(tmp_path: Path, shards: tuple[Path, list[list[Edges]]]) -> None:
    folder, blocks = shards
    edges = join(blocks[0])
    root = zarr.open_group(to_zarr(folder, tmp_path / "out", kind="latent_to_latent") / f"{FILE}.zarr", mode="r")
    assert root.metadata.zarr_format == 3
    parts = [root[f"layers/gradient/{name}"][:] for name in ("data", "indices", "indptr")]
    assert (scipy.sparse.csr_array(tuple(parts), shape=edges.shape) != edges.to_scipy("gradient")).nnz == 0
    assert root["X"].attrs["shape"] == [*edges.shape]
    assert root["obs/latent"][:].tolist() == edges.targets.latent.tolist()


def test_columns_of_double_precision_stay_so(tmp_path: Path) -> None:
    edges = made([0, 1], seed=4, dtype=torch.float64)
    path = save(tmp_path / "one.h5", edges)
    read = pd.read_parquet(to_parquet(path, tmp_path / "parquet"))
    assert read["gradient"].to_numpy().tolist() == edges.gradient.tolist()
    assert read["source_activation"].dtype == np.float64
    data = anndata.read_h5ad(to_anndata(path, tmp_path / "anndata") / f"{FILE}.h5ad")
    assert data.X.data.tolist() == edges.attribution.tolist()


# ------------------------------------------------------------------------------------ what is exported


@pytest.mark.few
@pytest.mark.parametrize("form", [str, Path, open_store, open_collection])
def test_what_is_given_may_be_a_path_or_open(tmp_path: Path, form: Callable[[Path], Any]) -> None:
    edges = made(None, count=3, seed=2)
    path = save(tmp_path / "one.h5", edges)
    read = pd.read_parquet(to_parquet(form(path), tmp_path / "out"))
    assert read["prompt"].tolist() == edges.targets.prompt[edges.row].tolist()


@pytest.mark.few
@pytest.mark.parametrize(("to", "ending"), EXPORTS)
def test_only_some_prompts(tmp_path: Path, shards: tuple[Path, list[list[Edges]]], to: Callable[..., Path], ending: str) -> None:
    folder, blocks = shards
    with open_store(folder) as opened:
        asked = torch.tensor([30, 12, 1]) if ending == "parquet" else [30, 12, 1]
        out = to(opened, tmp_path / "out", kind="latent_to_latent", source="blocks.0.hook_resid_pre", prompts=asked)
        assert len(opened.edges("latent_to_latent")) > 0  # still open
    edges = join(
        [part.prompt(part.prompts.numbers.tolist().index(n)) for n in (12, 30, 1) for part in blocks[0] if n in part.prompts.numbers]
    )
    assert [path.name for path in out.iterdir() if path.name != MANIFEST] == [f"{FILE}.{ending}"]
    if ending == "parquet":
        assert pd.read_parquet(out)["attribution"].tolist() == edges.attribution.tolist()
    else:
        check_annotated({"h5ad": anndata.read_h5ad, "zarr": anndata.read_zarr}[ending](out / f"{FILE}.{ending}"), edges)


@pytest.mark.few
@pytest.mark.parametrize(("to", "ending"), EXPORTS)
def test_no_prompts_are_an_empty_table(
    tmp_path: Path, shards: tuple[Path, list[list[Edges]]], to: Callable[..., Path], ending: str
) -> None:
    out = to(shards[0], tmp_path / "out", kind="latent_to_latent", prompts=[])
    if ending == "parquet":
        read = pd.read_parquet(out)
        assert (len(read), read["gradient"].dtype) == (0, np.float32)
    else:
        data = {"h5ad": anndata.read_h5ad, "zarr": anndata.read_zarr}[ending](out / f"{FILE}.{ending}")
        assert data.shape == (0, 0)


def test_the_manifest_says_what_it_was_made_of(tmp_path: Path, shards: tuple[Path, list[list[Edges]]]) -> None:
    said = json.loads((to_parquet(shards[0], tmp_path / "out", kind="latent_to_logit") / MANIFEST).read_text())
    assert said == {
        "format": "parquet",
        "blocks": {LOGITS: {"kind": "latent_to_logit", "source": "blocks.0.hook_resid_pre", "target": "logits"}},
        "call": {key: value for key, value in CALL.items() if key != "kind"},
    }


def test_names_of_files_tell_blocks_apart(tmp_path: Path) -> None:
    edges = made([0])
    sites = [("a,b", "c"), ("a", "b,c"), ("x/..", ":"), ("..", "%2C")]
    blocks = [replace(edges, sources=replace(edges.sources, site=a), targets=replace(edges.targets, site=b)) for a, b in sites]
    out = to_parquet(save(tmp_path / "one.h5", blocks), tmp_path / "out")
    assert len([*out.glob("*.parquet")]) == 4


# ---------------------------------------------------------------------------------------------- errors


def test_an_export_is_not_written_over_unless_it_is_asked_for(tmp_path: Path, shards: tuple[Path, list[list[Edges]]]) -> None:
    folder, out = shards[0], tmp_path / "out"
    to_parquet(folder, out)
    with pytest.raises(
        InputError,
        match=r"path: .*out exists already; expected a new name. Choose another, or replace an export with --overwrite \(in Python, o",
    ):
        to_parquet(folder, out)
    to_anndata(folder, out, kind="latent_to_logit", overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, f"{LOGITS}.h5ad"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]


@pytest.mark.few
@pytest.mark.parametrize("kind", ["folder", "file", "link", "the shards themselves"])
def test_nothing_but_an_export_is_replaced(tmp_path: Path, shards: tuple[Path, list[list[Edges]]], kind: str) -> None:
    out = {"the shards themselves": shards[0]}.get(kind, tmp_path / "out")
    if kind == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
    elif kind == "file":
        out.write_text("years of work")
    elif kind == "link":
        to_parquet(shards[0], tmp_path / "kept")
        out.symlink_to("kept")
    before = sorted(tmp_path.rglob("*"))
    message = r"is not an earlier export, which has a file _attrib\.json; --overwrite \(in Python, overwrite=True\) replaces nothing else"
    with pytest.raises(InputError, match=message):
        to_parquet(shards[0], out, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.few
@pytest.mark.parametrize(("to", "exists"), [(to_parquet, False), (to_anndata, False), (to_anndata, True), (to_zarr, False)])
def test_an_export_that_fails_leaves_nothing_behind(
    tmp_path: Path,
    shards: tuple[Path, list[list[Edges]]],
    monkeypatch: pytest.MonkeyPatch,
    to: Callable[..., Path],
    exists: bool,
) -> None:
    folder, out = shards[0], tmp_path / "out"
    if exists:
        to(folder, out, kind="latent_to_latent")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "sync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        to(folder, out, kind="latent_to_latent", overwrite=exists)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_damage_is_named_and_leaves_nothing(tmp_path: Path, shards: tuple[Path, list[list[Edges]]]) -> None:
    import h5py

    with h5py.File(shards[0] / "3.h5", "r+") as file:
        del next(iter(file["blocks"].values()))["targets/latent"]
    for to, _ in EXPORTS:
        with pytest.raises(FormatError, match=r"3\.h5: damaged: .*'latent' is missing"):
            to(shards[0], tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_values_of_two_types_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    save(tmp_path / "set" / "0.h5", made([0], seed=0))
    save(tmp_path / "set" / "1.h5", made([1], seed=1, dtype=torch.float64))
    with pytest.raises(FormatError, match=r"values of block .* are \('float64', .* in one shard and \('float32', .* in another"):
        to_parquet(tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize(("to", "package"), [(to_parquet, "pyarrow"), (to_anndata, "anndata"), (to_zarr, "zarr"), (to_zarr, "anndata")])
def test_a_missing_package_is_named(
    tmp_path: Path, shards: tuple[Path, list[list[Edges]]], monkeypatch: pytest.MonkeyPatch, to: Callable[..., Path], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"export: needs the package {package}, which is not installed; pip install 'attrib\[export\]'"):
        to(shards[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arguments_that_cannot_be_used_are_named(tmp_path: Path, shards: tuple[Path, list[list[Edges]]]) -> None:
    with pytest.raises(
        InputError, match=r"export\(kind='token_to_latent', source=None, target=None\): no blocks of .* fit; expected some of"
    ):
        to_parquet(shards[0], tmp_path / "out", kind="token_to_latent")
    with pytest.raises(InputError, match=r"path: the folder .*absent does not exist; make it first"):
        to_parquet(shards[0], tmp_path / "absent" / "out")
    for asked, message in (
        ([8], r"prompts: 8 is not among"),
        ("a", r"prompts: 'a'; expected a prompt's number"),
        ([1.5], r"prompts: 1\.5; "),
    ):
        with without_shape_checks(), pytest.raises(InputError, match=message):
            to_parquet(shards[0], tmp_path / "out", prompts=asked)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# ------------------------------------------------------------------------------------------ command line

app = typer.Typer()
app.command()(export)


@pytest.mark.few
@pytest.mark.parametrize(("to", "ending"), [("parquet", "parquet"), ("anndata", "h5ad"), ("zarr", "zarr")])
def test_the_command(tmp_path: Path, shards: tuple[Path, list[list[Edges]]], to: str, ending: str) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [str(shards[0]), str(out), "--to", to, "--target", "logits", "--prompt", "7", "--prompt", "4"])
    assert done.exit_code == 0, done.output
    assert re.fullmatch(re.escape(f"{out}/{LOGITS}.{ending}: ") + r"[0-2]\.\d MB\n", done.output)
    if to == "zarr":
        return  # which takes its time
    again = CliRunner().invoke(app, [str(shards[0]), str(out), "--to", to, "--overwrite"])
    assert again.exit_code == 0
    assert len(again.output.splitlines()) == 2


def test_the_command_names_what_is_wrong(tmp_path: Path, shards: tuple[Path, list[list[Edges]]]) -> None:
    done = CliRunner().invoke(app, [str(shards[0]), str(tmp_path / "out"), "--to", "csv"])
    assert str(done.exception) == "to: 'csv'; expected parquet, zarr, anndata."


# ---------------------------------------------------------------------------------------------- memory

PEAK = """
import sys
import torch
import attrib
from attrib.export import parquet, stored, to_parquet, to_anndata
from tests.support.memory import peak
stored.LEAST = stored.MOST = parquet.ROWS = 1 << 16
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    with attrib.open(folder) as opened:
        for by in ("shard", "prompt"):
            print(sum(len(edges) for edges in opened.iterate(by=by)))
    for to in (to_parquet, to_anndata):  # to_zarr is to_anndata but for the root group
        to(folder, f"{folder}.{to.__name__}")
    print(peak())
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_shards(tmp_path: Path) -> None:
    counts = (3, 23)
    for count in counts:
        (tmp_path / str(count)).mkdir()
        for number in range(count):
            save(tmp_path / str(count) / f"{number}.h5", large(number, 256))
    command = [sys.executable, "-c", PEAK, *(tmp_path / str(n) for n in counts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = [int(line) for line in done.stdout.split()]
    assert [found[0:2], found[3:5]] == [[count * 256**2] * 2 for count in counts]
    peaks = found[2::3]
    # the tables of 20 shards more would be 116 MB; a process's peak never falls
    assert peaks[1] - peaks[0] < 58_000_000, f"peaks, in bytes: {peaks}"
    with attrib.open(tmp_path / "23") as opened:
        data = anndata.read_h5ad(next((tmp_path / "23.to_anndata").glob("*.h5ad")))
        assert data.X.nnz == sum(len(part) for part in opened.iterate(by="shard"))
