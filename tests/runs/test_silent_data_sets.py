"""Data sets from elsewhere: what lies in their folder is read, whatever they name, and bytes that lie crash nothing."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from attrib.core.types import FormatError, InputError
from attrib.jobs.source import limited
from attrib.jobs.told import PromptsOf
from attrib.runs.prompts import read
from tests.runs.test_prompts import values
from tests.support.job_cases import corpus, make_job

SECRET = "data of another folder"


def saved(folder: Path, text: str = "own", name: str = "data.arrow") -> Path:
    """A data set of one row, as `datasets` would save it."""
    folder.mkdir(parents=True)
    write(folder / name, pyarrow.table({"text": [text]}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def write(path: Path, table: pyarrow.Table, **options: object) -> None:
    with (
        pyarrow.OSFile(str(path), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as stream,
    ):
        stream.write_table(table)


def state(folder: Path, name: str) -> None:
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))


def linked_file(folder: Path, outside: Path) -> None:
    (folder / "data.arrow").unlink()
    (folder / "data.arrow").symlink_to(outside / "data.arrow")


def linked_state(folder: Path, outside: Path) -> None:
    (folder / "state.json").unlink()
    (folder / "state.json").symlink_to(outside / "state.json")


def linked_folder(folder: Path, outside: Path) -> None:
    (folder / "inner").symlink_to(outside)
    state(folder, "inner/data.arrow")


def split_elsewhere(name: str) -> Callable[[Path, Path], None]:
    def made(folder: Path, outside: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        if name == "train":
            (folder / name).symlink_to(outside)
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": [name.format(outside=outside)]}))

    return made


HOLES: dict[str, Callable[[Path, Path], None]] = {
    "absolute": lambda folder, outside: state(folder, str(outside / "data.arrow")),
    "upwards": lambda folder, outside: state(folder, "../outside/data.arrow"),
    "upwards and back": lambda folder, outside: state(folder, "../set/data.arrow"),
    "a link": linked_file,
    "a link to a folder": linked_folder,
    "a link for its state": linked_state,
    "a split that is a link": split_elsewhere("train"),
    "a split upwards": split_elsewhere("../outside"),
    "an absolute split": split_elsewhere("{outside}"),
}


@pytest.mark.parametrize("hole", HOLES)
def test_a_data_set_names_nothing_outside_of_it(hole: str, tmp_path: Path) -> None:
    folder, outside = saved(tmp_path / "set"), saved(tmp_path / "outside", SECRET)
    HOLES[hole](folder, outside)
    split = {"a split upwards": "../outside", "an absolute split": str(outside)}.get(hole)
    with pytest.raises(InputError, match=r"prompts: .*set is a data set whose .* names '.*', outside of it\. It is read from its own"):
        list(read(folder, split=split))


def test_a_link_may_lead_where_it_is_allowed(tmp_path: Path) -> None:
    folder, outside = saved(tmp_path / "set"), saved(tmp_path / "outside", SECRET)
    linked_file(folder, outside)
    assert values(read(folder, allowed=[outside])) == [SECRET]
    state(folder, "../outside/data.arrow")  # a path never does
    with pytest.raises(InputError, match="outside of it"):
        list(read(folder, allowed=[outside]))


def test_a_job_reads_a_linked_table_only_where_allowed(tmp_path: Path) -> None:
    here, outside = corpus(tmp_path / "config"), saved(tmp_path / "outside", "[1]")
    linked_file(saved(here / "set"), outside)
    with pytest.raises(InputError, match=r"outside of it.*--allow"):
        make_job(tmp_path / "job", here, prompts="set")
    given = PromptsOf(source=["set"])
    assert [one.prompt for one, _ in limited(given, [here / "set"], [outside], None)] == ["[1]"]


@pytest.mark.parametrize("name", ["state.json", "data.arrow", "dataset_dict.json"])
def test_a_pipe_in_a_data_set_is_not_waited_for(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "set")
    if name == "dataset_dict.json":
        (folder / "state.json").unlink()
    else:
        (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match=r"not a folder that datasets' save_to_disk wrote: "):
        list(read(folder))


def test_a_choice_of_rows_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set")
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data.arrow"}], "_indices_data_files": [{"filename": "i.arrow"}]})
    )
    with pytest.raises(InputError, match=r"a choice of its rows beside them \(_indices_data_files\)"):
        list(read(folder))


# ------------------------------------------------------------------------------------------------ bytes


def test_offsets_that_point_elsewhere(tmp_path: Path) -> None:
    """Arrow takes them from a file as they are, and reading such a text is a crash."""
    folder = saved(tmp_path / "set")
    write(folder / "data.arrow", pyarrow.table({"text": ["ok", "abc", "def"]}))
    data, offsets = (folder / "data.arrow").read_bytes(), np.array([0, 2, 5, 8], "<i4").tobytes()
    assert data.count(offsets) == 1
    (folder / "data.arrow").write_bytes(data.replace(offsets, np.array([0, 2, 1 << 30, 8], "<i4").tobytes()))
    with pytest.raises(FormatError, match=r"set is damaged, data\.arrow: .*offset"):
        list(read(folder))


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("is_dictionary", [False, True])
def test_compressed_tables_are_refused_before_they_are_unpacked(compression: str, is_dictionary: bool, tmp_path: Path) -> None:
    folder, text = saved(tmp_path / "set"), pyarrow.array(["x" * 10_000])
    write(folder / "data.arrow", pyarrow.table({"text": text.dictionary_encode() if is_dictionary else text}), compression=compression)
    with pytest.raises(FormatError, match=r"is compressed within data\.arrow"):
        list(read(folder))


RUNS = pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array([1 << 30], pyarrow.int32()), pyarrow.array(["a"]))


@pytest.mark.parametrize("column", [pyarrow.nulls(1 << 30), RUNS], ids=["nulls", "runs"])
def test_rows_that_take_no_bytes(column: pyarrow.Array, tmp_path: Path) -> None:
    folder = saved(tmp_path / "set")
    write(folder / "data.arrow", pyarrow.table({"text": column}))
    with pytest.raises(FormatError, match="64 rows and more for each of its"):
        list(read(folder))


def test_types_that_no_prompt_has(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set")
    write(folder / "data.arrow", pyarrow.table({"text": pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int8()))}))
    (found,) = read(folder)
    assert found.fault.startswith("is of type map<string, int8>; expected a string")


def test_a_date_that_is_none_is_one_rows_fault(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set")
    write(folder / "data.arrow", pyarrow.table({"text": pyarrow.array([None, 1 << 62], pyarrow.timestamp("s"))}))
    assert [found.fault[:25] for found in read(folder)] == ["is None; expected a strin", "is of type timestamp[s]; "]
