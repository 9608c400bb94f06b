"""`attrib stats` as it is typed: files made, tables printed, one clear message for every mistake."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from attrib import save, stats
from attrib.cli.stats import app
from attrib.core.types import FormatError, InputError
from tests.stats.test_stats import ENDS, random_edges, wide_edges


def run(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def printed(*words: object) -> str:
    ran = run(*words)
    assert ran.exit_code == 0, ran.exception
    return ran.output


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(3):
        edges = random_edges(i, first=4 * i)
        other = replace(edges, sources=replace(edges.sources, site="embed"))
        save(folder / f"{i}.h5", [edges, other])
    return folder


def test_build_merge_and_show(shards: Path, tmp_path: Path) -> None:
    out = printed("build", tmp_path / "all.h5", shards)
    pairs = stats.open(tmp_path / "all.h5").parts[0].pairs
    assert out.startswith(f"{tmp_path}/all.h5: 2 blocks, ")
    assert f"latent_to_latent {ENDS[0]} -> {ENDS[1]}: a table of {pairs} pairs" in out
    for i in range(3):
        printed("build", tmp_path / f"{i}.h5", shards / f"{i}.h5")
    assert "2 blocks" in printed("merge", tmp_path / "merged.h5", *(tmp_path / f"{i}.h5" for i in (2, 0, 1)))
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "all.h5").read_bytes()
    shown = " ".join(printed("show", tmp_path / "all.h5").replace("│", " ").split())
    assert "all.h5: 2 blocks, made within 1,073,741,824 bytes each" in shown
    assert f"latent_to_latent embed -> {ENDS[1]} table {pairs} all exact" in shown


def test_questions_do_not_wait_for_torch(shards: Path, tmp_path: Path) -> None:
    """Which takes three times as long to import as an answer may take. What it takes is for the bench."""
    path = str(tmp_path / "all.h5")
    printed("build", path, shards)
    program = "import atexit, sys; from attrib.cli.main import main; atexit.register(lambda: print('torch' in sys.modules)); main()"
    for words in (
        ["top-parents", path, "1", "--block", ENDS[0]],
        ["top-children", path, "1", "--block", ENDS[0]],
        ["show", path],
        ["--help"],
    ):
        ran = subprocess.run([sys.executable, "-c", program, "stats", *words], capture_output=True, text=True, check=True)
        assert len(ran.stdout.splitlines()) > 3
        assert ran.stdout.endswith("False\n")


def test_tables_say_what_the_frames_do(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.h5"
    printed("build", path, shards)
    for command, ask, end in (("top-parents", "top_parents", "source"), ("top-children", "top_children", "target")):
        out = printed(command, path, 1, "--block", ENDS[0], "--top", 3, "--by", "count")
        frame = getattr(stats.open(path), ask)(1, 3, "count", source=ENDS[0])
        rows = [line.replace("│", " ").split() for line in out.splitlines() if line.startswith("│")]
        for cells, (_, row) in zip(rows, frame.iterrows(), strict=True):
            assert cells[:4] == [str(row[end]), str(row["count"]), str(row.prompts), f"{row.l1:.4g}"]
            assert cells[4:8] == [f"{row['sum']:+.4g}", f"{row['mean']:+.4g}", f"{row['std']:.3g}", f"{row.sign_agreement:.1%}"]
            places = [row.maximum_prompt, row.maximum_target_position, row.maximum_source_position]
            assert cells[8:] == [f"{row.maximum:+.4g}", *map(str, places)]
        assert out.startswith(f"latent_to_latent {ENDS[0]} -> {ENDS[1]}")


def test_a_sketch_prints_its_bounds(tmp_path: Path) -> None:
    edges = wide_edges(0, 2000)
    heavy = edges.attribution.clone()
    heavy[100] = 1e4
    target, source = int(edges.row[100]), int(edges.indices[100])
    shard = save(tmp_path / "shard.h5", replace(edges, attribution=heavy))
    assert "a sketch of over 655 pairs" in printed("build", tmp_path / "s.h5", shard, "--memory", "256KiB")
    shown = printed("show", tmp_path / "s.h5")
    assert "l1 ≥ 1.45e+03" in shown
    assert "(p = 0.982)" in shown
    out = printed("top-parents", tmp_path / "s.h5", target)
    assert f"1 sources of target {target}, of a sketch" in out
    row = next(line for line in out.splitlines() if line.startswith("│")).replace("│", " ").split()
    assert row[0] == str(source)
    assert "±" in row
    assert row[-4:] == ["+1e+04", "0", "0", "0"]
    assert "Every pair with l1 ≥ 1.45e+03 is here" in " ".join(out.split())
    assert "0 targets of source" in printed("top-children", tmp_path / "s.h5", (source + 1) % 400)


def test_the_latent_of_a_metric_can_be_typed(tmp_path: Path) -> None:
    edges = random_edges(0)
    edges = replace(edges, kind="latent_to_metric", targets=replace(edges.targets, kind="metric", latent=edges.targets.latent * 0 - 1))
    stats.save(tmp_path / "s.h5", stats.of(edges))
    assert "sources of target -1" in printed("top-parents", tmp_path / "s.h5", -1)
    assert "no edges stored for the sources of target 3" in printed("top-parents", tmp_path / "s.h5", 3)


@pytest.mark.few
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "FOLDER/new.h5", "FOLDER/absent.h5"], r"absent\.h5"),
        (["build", "FOLDER/s.h5", "FOLDER/s.h5"], r"out: .*s\.h5 exists already; .*or replace a statistics file with --overwrite \(in"),
        (["build", "FOLDER/a/b.h5", "FOLDER/s.h5"], r"out: the folder .*a does not exist"),
        (["build", "FOLDER/new.h5", "FOLDER/s.h5", "--memory", "many"], r"memory: 'many'; expected a number and KiB, MiB or GiB"),
        (["build", "FOLDER/new.h5", "FOLDER/s.h5", "--memory", "1KiB"], r"memory: 1,024 bytes; expected at least 65,536"),
        (["build", "FOLDER/new.h5", "FOLDER/s.h5"], r"s\.h5: statistics, which attrib\.stats\.open and `attrib stats show` read"),
        (["build", "FOLDER/new.h5", "FOLDER/job"], r"paths: the folder .*job has no shards; expected some\. Run its job first"),
        (
            ["build", "FOLDER/d/0.h5", "FOLDER/d", "--overwrite"],
            r"out: .*0\.h5 is not a statistics file, and --overwrite .*replaces nothing el",
        ),
        (["build", "FOLDER/d/0.h5", "FOLDER/d/0.h5", "--overwrite"], r"out: .*0\.h5 is not a statistics file"),
        (["build", "FOLDER/job/job.json", "FOLDER/d", "--overwrite"], r"out: .*job\.json is not a statistics file"),
        (["build", "FOLDER/d/new.h5", "FOLDER/d"], r"out: .*new\.h5 would lie among the shards and be taken for one"),
        (["merge", "FOLDER/s.h5", "FOLDER/d/../s.h5", "--overwrite"], r"out: .*s\.h5 is one of the files to read too; expected another"),
        (["merge", "FOLDER/d/0.h5", "FOLDER/s.h5", "--overwrite"], r"out: .*0\.h5 is not a statistics file"),
        (["merge", "FOLDER/new.h5", "FOLDER/absent.h5"], r"path: there is no file .*absent\.h5"),
        (
            ["top-parents", "FOLDER/s.h5", "0"],
            r"block: the file has 2 blocks; give --block with a part of one name\. There are: latent_to_latent bl",
        ),
        (["top-parents", "FOLDER/s.h5", "0", "--block", "moon"], r"block: 'moon' is in the names of no blocks"),
        (["top-parents", "FOLDER/s.h5", "0", "--block", "embed", "--by", "size"], r"by: 'size'; expected 'l1', 'sum', 'mean', 'max', 'c"),
        (["top-parents", "FOLDER/s.h5", "-7", "--block", "embed"], r"latent: -7; expected a latent's number"),
    ],
)
def test_mistakes_are_one_clear_message(tmp_path: Path, words: list[str], message: str) -> None:
    edges = random_edges(0)
    stats.save(tmp_path / "s.h5", stats.of([edges, replace(edges, sources=replace(edges.sources, site="embed"))]))
    (tmp_path / "job" / "shards").mkdir(parents=True)
    (tmp_path / "job" / "job.json").write_text("{}")
    (tmp_path / "d").mkdir()
    save(tmp_path / "d" / "0.h5", edges)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ran = run(*(word.replace("FOLDER", str(tmp_path)) for word in words))
    assert isinstance(ran.exception, InputError | FormatError), ran.output
    with pytest.raises(type(ran.exception), match=message):
        raise ran.exception
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_statistics_replace_statistics(shards: Path, tmp_path: Path) -> None:
    printed("build", tmp_path / "s.h5", shards / "0.h5")
    printed("build", tmp_path / "s.h5", shards, "--overwrite")
    printed("build", tmp_path / "all.h5", shards)
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "all.h5").read_bytes()
    printed("merge", tmp_path / "s.h5", tmp_path / "all.h5", "--overwrite")
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "all.h5").read_bytes()
