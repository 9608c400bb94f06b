"""Every source of prompts: what is read, in which order, and that what is wrong is said of that prompt alone."""

import gzip
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from attrib.core.types import FetchError, FormatError, InputError
from attrib.runs.prompts import LONGEST_LINE, Given, read
from attrib.runs.prompts import given as given_module
from attrib.runs.prompts.footer import groups_of
from tests.support.examples import examples
from tests.support.root import ROOT

ANY = settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def values(found: Iterator[Given]) -> list[Any]:
    """Prompts with ids as lists; of what is none, the fault in a tuple."""
    return [(one.fault,) if one.prompt is None else one.prompt if isinstance(one.prompt, str) else one.prompt.tolist() for one in found]


BOM = b"\xef\xbb\xbf"


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# ------------------------------------------------------------------------------------------------- lines


def test_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "one\r\n two \nthree\x0bfour\n\n{not json}\nlast")
    found = list(read(path))
    assert values(iter(found)) == ["one", " two ", "three\x0bfour", ("is an empty prompt",), "{not json}", "last"]
    assert [one.where for one in found] == [f"{path}, line {number}" for number in range(1, 7)]
    assert values(read(written(tmp_path / "b.txt", "one\n"))) == ["one"], "an end of line begins no prompt"
    assert values(read(written(tmp_path / "c.txt", ""))) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz"])
def test_json_lines(name: str, tmp_path: Path) -> None:
    lines = [
        '"text"',
        '{"text": "a", "tokens": [1]}',
        '{"tokens": [1, 2]}',
        '{"input_ids": [3], "mask": [1]}',
        '{"prompt": "b"}\r',
        "[4, 5]",
    ]
    data = "\n".join(lines).encode()
    path = written(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    found = list(read(path))
    assert values(iter(found)) == ["text", "a", [1, 2], [3], "b", [4, 5]]
    assert {one.prompt.dtype for one in found if isinstance(one.prompt, torch.Tensor)} == {torch.int64}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("", "is an empty prompt"),
        ('"  "', "is an empty prompt"),
        ("[]", "is an empty prompt"),
        ("{nope", "is not JSON: Expecting property name"),
        ('{"body": "a"}', "has no key 'text' or 'prompt' or 'messages' or 'tokens' or 'input_ids'"),
        ('{"text": null}', 'is None; expected a string, {"text": "..."}, {"tokens": [ids]} or {"messages": '),
        ("[1, true]", "is [1, True]; expected"),
        ("[1, 2.0]", "is [1, 2.0]; expected"),
        ("[1, -2]", "has token ids from -2 to 1; expected 0 or more, below 2^31"),
        ("[2147483648]", "has token ids from 2147483648"),
        (f"[{'9' * 4000}]", "has token ids from 999"),
        ("9" * 5000, "is not JSON: Exceeds the limit"),
        ("1e999", "is inf; expected"),
        ('"\\ud800"', "holds a lone surrogate"),
        ('["\\ud800"]', "is ['\\ud800']; expected"),
        ("[" * 100_000, "is not JSON: maximum recursion depth"),
        ("[" * 900 + "]" * 900, "holds 1 lists, as of a batch"),
    ],
)
def test_what_is_no_prompt_is_said_of_its_line(line: str, fault: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", f'"before"\n{line}\n"after"\n')
    before, wrong, after = read(path)
    assert (before.prompt, after.prompt) == ("before", "after")
    assert wrong.prompt is None
    assert wrong.fault.startswith(fault)
    assert wrong.where == f"{path}, line 2"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"one\nt\xffwo\nthree\n")
    assert values(read(path)) == ["one", ("is not UTF-8: invalid start byte at byte 1",), "three"]


@pytest.mark.parametrize("ending", [b"\n", b""])
def test_a_line_that_is_too_long_is_passed_over(ending: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LONGEST_LINE == 1 << 24
    monkeypatch.setattr(given_module, "LONGEST_LINE", 10)
    fault = ("is longer than 10 bytes",)
    for length in (1, 9, 10, 11, 12, 20, 21, 22, 23, 33, 100):
        path = written(tmp_path / "a.txt", b"first\n" + b"x" * length + b"\nnext\n" + b"y" * length + ending)
        wanted = ["x" * length, "y" * length] if length <= 10 else [fault, fault]
        assert values(read(path)) == ["first", wanted[0], "next", wanted[1]], length


def test_a_field_may_be_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "a", "body": "b"}\n{"text": "a"}\n"bare"\n')
    assert values(read(path, field="body")) == ["b", ("has no key 'body'",), ("is no object, so it has no key 'body'",)]


def test_a_form_may_be_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a", '"a"\n')
    assert values(read(path)) == ['"a"']
    assert values(read(path, form="jsonl")) == ["a"]


def test_several_sources_are_read_alone(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{name}.txt", f"{name}\n") for name in "ab"]
    assert [one.where for path in paths for one in read(path)] == [f"{path}, line 1" for path in paths]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo")))
    found = list(read("-"))
    assert (values(iter(found)), found[1].where) == (["one", "two"], "-, line 2")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"tokens": [1]}\n')))
    assert values(read("-", form="jsonl")) == [[1]]
    with pytest.raises(InputError, match=r"prompts: standard input is read line by line; expected the form text or jsonl, got parquet"):
        read("-", form="parquet")


def test_lines_are_streamed(tmp_path: Path) -> None:
    """A prompt is had before the next is read."""
    path = written(tmp_path / "a.txt.gz", gzip.compress(b"x\n" * 1000)[:-8] + b"damaged!")
    found = read(path)
    assert next(found).prompt == "x"
    with pytest.raises(FormatError, match=r"prompts: .*a\.txt\.gz is not gzip, or damaged: CRC check failed"):
        list(found)


@pytest.mark.parametrize("damage", ["no gzip", "cut short", "no deflate"])
def test_damaged_gzip(damage: str, tmp_path: Path) -> None:
    whole = gzip.compress(bytes(range(256)) * 200)
    data = {"no gzip": b"plain text", "cut short": whole[: len(whole) // 2], "no deflate": whole[:10] + b"\xff" * 40}[damage]
    with pytest.raises(FormatError, match=r"is not gzip, or damaged"):
        list(read(written(tmp_path / "a.txt.gz", data)))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prompts: .*nowhere\.txt does not exist"):
        read(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match=r"prompts: .* is a folder; expected a file, or a folder that datasets' save_to_disk wrote"):
        read(tmp_path, form="text")


def lines_of(data: bytes) -> list[bytes]:
    """As Python counts them: what stands after the last end of line is a line where it is not empty."""
    parts = data.split(b"\n")
    return parts if parts[-1] else parts[:-1]


PIECES = st.sampled_from(
    [b"\n", b"\r\n", b"\r", b'"', b'"a"', b"[1]", b"{", b"}", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\x00", b"\xe2\x80\xa8"]
)


@given(
    data=st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=20).map(b"".join)), suffix=st.sampled_from(["txt", "jsonl", "txt.gz"])
)
@example(data=b"\n", suffix="txt")
@example(data=b"a", suffix="txt")
@example(data=BOM, suffix="txt")
@example(data=BOM + b"a\n" + BOM + b"b", suffix="txt")
@ANY
def test_any_bytes_are_one_prompt_or_fault_a_line(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"a.{suffix}", gzip.compress(data) if suffix.endswith("gz") else data)
    found, lines = list(read(path)), lines_of(data)
    assert [one.where for one in found] == [f"{path}, line {number}" for number in range(1, len(lines) + 1)]
    for number, (one, line) in enumerate(zip(found, lines, strict=True)):
        assert (one.prompt is None) == bool(one.fault)
        if suffix != "jsonl" and one.prompt is not None:
            assert str(one.prompt).encode() == (line if number else line.removeprefix(BOM)).removesuffix(b"\r")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "A.TXT.GZ"])
def test_a_byte_order_mark_is_no_text(name: str, tmp_path: Path) -> None:
    data = BOM + '"one"\n"\ufefftwo"\n'.encode()
    found = values(read(written(tmp_path / name, gzip.compress(data) if name.endswith("GZ") else data)))
    assert found == (["one", "\ufefftwo"] if name.endswith("jsonl") else ['"one"', '"\ufefftwo"'])
    assert values(read(written(tmp_path / name, gzip.compress(BOM) if name.endswith("GZ") else BOM))) == [("is an empty prompt",)]


@pytest.mark.parametrize("name", ["a.JSONL", "a.NdJson", "a.Jsonl.Gz"])
def test_suffixes_in_capitals(name: str, tmp_path: Path) -> None:
    data = b"[1, 2]\n"
    assert values(read(written(tmp_path / name, gzip.compress(data) if name.endswith("Gz") else data))) == [[1, 2]]


# --------------------------------------------------------------------------------------------------- rows

BAD = pyarrow.Array.from_buffers(
    pyarrow.string(), 3, [None, pyarrow.py_buffer(np.array([0, 2, 4, 6], "<i4").tobytes()), pyarrow.py_buffer(b"ok\xff\xfeyo")]
)
"""A column of strings whose second is not UTF-8, which Arrow neither writes nor reads by itself, but holds."""

COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    "string": (pyarrow.array(["a", "", None, "b"]), ["a", "empty", "None", "b"]),
    "large_string": (pyarrow.array(["a", None], pyarrow.large_string()), ["a", "None"]),
    "string_view": (pyarrow.array(["a", None], pyarrow.string_view()), ["a", "None"]),
    "dictionary": (pyarrow.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    "binary": (pyarrow.array([b"a", b"\xff", None, "ü".encode()]), ["a", "UTF-8", "None", "ü"]),
    "bad strings": (BAD, ["ok", "UTF-8", "yo"]),
    "list of int32": (pyarrow.array([[1, 2], [], None, [3]], pyarrow.list_(pyarrow.int32())), [[1, 2], "empty", "None", [3]]),
    "list of int64": (
        pyarrow.array([[1], [2, None], [-1], [1 << 40]], pyarrow.list_(pyarrow.int64())),
        [[1], "[2, None]", "-1", "1099511627776"],
    ),
    "fixed list": (pyarrow.array([[1, 2]], pyarrow.list_(pyarrow.uint16(), 2)), [[1, 2]]),
    "floats": (pyarrow.array([1.5]), ["1.5"]),
}


def assert_rows(found: list[Given], wanted: list[Any], name: Path) -> None:
    """Each is the prompt wanted, or has a fault with the word wanted."""
    assert [one.where for one in found] == [f"{name}, row {number}" for number in range(1, len(wanted) + 1)]
    for got, one, want in zip(values(iter(found)), found, wanted, strict=True):
        assert got == want or (one.prompt is None and want in one.fault), (got, want)


@pytest.mark.parametrize("kind", COLUMNS)
def test_parquet(kind: str, tmp_path: Path) -> None:
    column, wanted = COLUMNS[kind]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"other": range(len(column)), "text": column}), path)
    assert_rows(list(read(path)), wanted, path)


@pytest.mark.parametrize("kind", ["string", "binary", "bad strings", "list of int32"])
def test_a_saved_data_set(kind: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    column, wanted = COLUMNS[kind]
    folder = tmp_path / "saved"
    datasets.Dataset(pyarrow.table({"other": range(len(column)), "text": column})).save_to_disk(folder)
    assert_rows(list(read(folder)), wanted, folder)


def test_a_saved_data_set_of_several_files_and_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_dict({"text": [f"p{i}" for i in range(700)]})
    datasets.DatasetDict({"train": train, "test": train.select([5, 3])}).save_to_disk(
        tmp_path / "saved", num_shards={"train": 3, "test": 1}
    )
    assert values(read(tmp_path / "saved")) == train["text"][:]
    assert values(read(tmp_path / "saved", split="test")) == ["p5", "p3"]
    with pytest.raises(InputError, match=r"prompts: .*saved has no split 'dev'; it has 'train', 'test'"):
        read(tmp_path / "saved", split="dev")


def test_columns_of_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = {"body": ["a"], "tokens": [[1]], "text": ["b"]}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        assert values(read(path)) == ["b"]
        assert values(read(path, field="body")) == ["a"]
        with pytest.raises(InputError, match=r"has the columns 'body', 'tokens', 'text', and not 'title'\. Name one with `field`"):
            list(read(path, field="title"))
    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"the columns 'body', and not 'text' or 'prompt' or 'messages' or 'tokens' or 'input_ids'"):
        list(read(tmp_path / "b.parquet"))


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["some text"] * 1000}), path)
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[:-20], whole[:4] + b"\xff" * 60 + whole[64:], b"\x00" * 100):
        with pytest.raises(FormatError, match=r"prompts: .*a\.parquet is not Parquet, or damaged: \w"):
            list(read(written(path, data)))


EACH_VALUE = """
import sys
from pathlib import Path
from attrib.core.types import AttribError
from attrib.runs.prompts import read
path, at = Path(sys.argv[1]), int(sys.argv[2])
whole, refused = path.read_bytes(), 0
for byte in range(256):
    path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    try:
        list(read(path))
    except AttribError:
        refused += 1
print(refused)
"""


def test_a_footer_whose_parts_do_not_agree_does_not_end_the_process(tmp_path: Path) -> None:
    """Arrow counts how often each level of nesting occurs, and aborts where a column has other levels than were counted."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b", None]}), path)
    at = path.read_bytes().index(b"\x25\x02\x18\x04text") + 1  # of the schema: whether there are nulls
    command = [sys.executable, "-c", EACH_VALUE, str(path), str(at)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100


@pytest.mark.parametrize("columns", [1, 3])
def test_a_row_group_with_other_columns_than_the_schema(columns: int, tmp_path: Path) -> None:
    """Places of columns in the schema are places in a row group only where both have as many."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"], "other": ["b"]}), path)
    with path.open("rb") as raw:
        assert len(groups_of(raw, path.stat().st_size, 2, [0])) == 1
        with pytest.raises(ValueError, match=f"does not have the {columns} columns of the schema"):
            groups_of(raw, path.stat().st_size, columns, [0])


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
@settings(ANY, max_examples=examples(60))
def test_any_damage_of_parquet_is_named_or_harmless(at: int, byte: int, cut: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    if not path.exists():
        parquet.write_table(pyarrow.table({"text": ["a", "b", None]}), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    at %= len(whole)
    written(path, whole[:at] if cut else whole[:at] + bytes([byte]) + whole[at + 1 :])
    try:
        found = list(read(path))
    except (FormatError, InputError):
        return
    assert all((one.prompt is None) == bool(one.fault) for one in found)


def test_a_damaged_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(InputError, match=r"is not a folder that datasets' save_to_disk wrote"):
        read(tmp_path)
    datasets.Dataset.from_dict({"text": ["some text"] * 1000}).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:300])
    with pytest.raises((InputError, FormatError), match=r"^prompts: .*saved"):
        list(read(tmp_path / "saved"))
    written(tmp_path / "saved" / "state.json", "[")
    with pytest.raises(InputError, match=r"prompts: .*saved is not a folder that datasets' save_to_disk wrote: \w"):
        read(tmp_path / "saved")


# ---------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of load_dataset, which gives three rows."""
    datasets, called = pytest.importorskip("datasets"), list[Any]()

    def load_dataset(*names: Any, **options: Any) -> Iterator[dict[str, Any]]:
        called.append((names, options))
        return iter([{"id": 7, "text": "a"}, {"id": 8, "text": None}, {"id": 9, "text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return called


def test_a_data_set_of_the_hub(hub: list[Any]) -> None:
    found = list(read("hf:owner/some.name-1", split="test"))
    assert values(iter(found))[::2] == ["a", "b"]
    assert found[1].fault.startswith("is None")
    assert found[2].where == "hf:owner/some.name-1, row 3"
    assert values(read("hf:name:config", field="text"))[0] == "a"
    assert hub == [
        (("owner/some.name-1", None), {"split": "test", "streaming": True}),
        (("name", "config"), {"split": "train", "streaming": True}),
    ]
    with pytest.raises(InputError, match="hf:name has the columns 'id', 'text', and not 'body'"):
        list(read("hf:name", field="body"))


@pytest.mark.parametrize("name", ["/etc", "..", "../x", "~/x", "a/b/c", "here", "./here", "text", "json", "a/..", "", "a\x00b"])
def test_the_hub_is_no_way_to_files(name: str, hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """load_dataset reads a folder of that name, and for "text" the folder that one is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match=r"prompts: hf:.* names no data set of the hub but files; expected hf:NAME or hf:OWNER/NAME"):
        read(f"hf:{name}")
    assert hub == []


@pytest.mark.parametrize("error", [ConnectionError("Couldn't reach it\nmore"), ValueError(), RuntimeError("scripts"), KeyError("x")])
def test_an_error_of_the_hub(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"prompts: the data set hf:name could not be opened: [^\n]+\.$"):
        read("hf:name")

    def rows(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        yield {"text": "a"}
        raise error

    monkeypatch.setattr(datasets, "load_dataset", rows)
    found = read("hf:name")
    assert next(found).prompt == "a"
    with pytest.raises(FetchError, match=r"prompts: hf:name could not be read on: [^\n]+\.$"):
        next(found)


@pytest.mark.parametrize(("source", "library"), [("a.parquet", "pyarrow"), ("saved", "pyarrow"), ("hf:name", "datasets")])
def test_a_library_that_is_missing(source: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    written(tmp_path / "saved" / "state.json", '{"_data_files": [{"filename": "a.arrow"}]}')
    written(tmp_path / "saved" / "a.arrow", b"")
    written(tmp_path / "a.parquet", b"")
    with pytest.raises(InputError, match=rf"the package {library}, which is not installed; pip install 'attrib\[jobs\]'"):
        list(read(source))


def test_ids_are_what_json_says(tmp_path: Path) -> None:
    ids = [0, 1, (1 << 31) - 1]
    assert values(read(written(tmp_path / "a.jsonl", json.dumps(ids)))) == [ids]
