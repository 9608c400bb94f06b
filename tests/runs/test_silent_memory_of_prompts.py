"""Files of prompts that are small and stand for gigabytes, read in a process of its own, whose resident set is what counts."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tests.support.root import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")

MORE = 260
"""MB beyond what the process has before it reads."""

READ = """
import json, sys
from attrib.runs.prompts import read
from attrib.core.types import AttribError
from tests.support.memory import peak
import pyarrow.parquet
before = peak()
for path in sys.argv[1:]:
    count, said = 0, ""
    try:
        for found in read(path):
            count, said = count + 1, said or found.fault
    except AttribError as error:
        said = str(error)
    print(json.dumps([peak() - before >> 20, count, said]))
"""


def table(path: Path, columns: dict[str, pyarrow.Array], **options: object) -> None:
    parquet.write_table(pyarrow.table(columns), path, **({"compression": "zstd"} | options))


def one_text(path: Path) -> None:
    """A text of 15 MB, which every row names."""
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 10_000, pyarrow.int32()), pyarrow.array(["x" * (15 << 20)]))
    table(path, {"text": rows}, store_schema=False)  # else it is read as such, with one text


def one_number(path: Path) -> None:
    """A prompt of 20 million token ids, all of which are 0."""
    ids = pyarrow.array(np.zeros(20_000_000, np.int8))
    table(path, {"tokens": pyarrow.ListArray.from_arrays(pyarrow.array([0, len(ids)], pyarrow.int32()), ids)})


def one_page(path: Path) -> None:
    """A page that unpacks to 60 MB."""
    table(path, {"text": pyarrow.array(["x" * (60 << 20)])}, use_dictionary=False)


def nulls(path: Path) -> None:
    table(path, {"text": pyarrow.nulls(4_000_000, pyarrow.string())})


def objects(path: Path) -> None:
    path.write_text('{"x": [' + "{}," * 2_000_000 + "1]}")


def keys(path: Path) -> None:
    path.write_text("{" + ", ".join(f'"{number:x}": 1' for number in range(1_200_000)) + "}")


def messages(path: Path) -> None:
    """A chat of 20,000 messages, all of which name one text of 15 MB."""
    names = pyarrow.array([0] * 20_000, pyarrow.int32())
    texts = [pyarrow.DictionaryArray.from_arrays(names, pyarrow.array([text])) for text in ("user", "x" * (15 << 20))]
    rows = pyarrow.StructArray.from_arrays(texts, ["role", "content"])
    chats = pyarrow.ListArray.from_arrays(pyarrow.array([0, len(rows)], pyarrow.int32()), rows)
    table(path, {"messages": chats}, store_schema=False)


def denied(path: Path) -> None:
    """The same in a list, in a file whose footer says that there is no dictionary."""
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20_000, pyarrow.int32()), pyarrow.array(["x" * (15 << 20)]))
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, len(texts)], pyarrow.int32()), texts)
    table(path, {"text": lists}, store_schema=False)
    listed = bytes([0x19, 0x35, 0, 6, 16])  # three encodings in Thrift: PLAIN, RLE, RLE_DICTIONARY
    before, found, behind = path.read_bytes().rpartition(listed)
    assert found
    path.write_bytes(before + listed[:-1] + b"\0" + behind)
    assert "RLE_DICTIONARY" not in parquet.read_metadata(path).row_group(0).column(0).encodings


def beginnings(path: Path) -> None:
    """A list of texts of 15 MB, of which each is written as what it has beyond the one before."""
    texts = pyarrow.array(["x" * (15 << 20)] * 20)
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, len(texts)], pyarrow.int32()), texts)
    table(path, {"text": lists}, use_dictionary=False, column_encoding={"text.list.element": "DELTA_BYTE_ARRAY"})


def fields(path: Path) -> None:
    """A list of 3 million messages with eight fields, none of which says anything."""
    empty = pyarrow.nulls(3_000_000, pyarrow.int64())
    rows = pyarrow.StructArray.from_arrays([empty] * 8, list("abcdefgh"))
    table(path, {"messages": pyarrow.ListArray.from_arrays(pyarrow.array([0, len(rows)], pyarrow.int32()), rows)})


def wide(path: Path) -> None:
    """A list of 4 million values of 64 bytes, none of which is there."""
    empty = pyarrow.nulls(4_000_000, pyarrow.binary(64))
    table(path, {"tokens": pyarrow.ListArray.from_arrays(pyarrow.array([0, len(empty)], pyarrow.int32()), empty)})


def zipped(path: Path) -> None:
    path.write_bytes(gzip.compress(b"a" * 60_000_000 + b"\nb\n", 1))


BOMBS: dict[str, tuple[str, Callable[[Path], None], int, str]] = {
    "a text that every row names": ("a.parquet", one_text, 100_000, "comes to 1024 bytes and more"),
    "a run of one number": ("b.parquet", one_number, 4_000, "has 20,000,000 values of tokens.list.element, more than"),
    "a page that unpacks": ("c.parquet", one_page, 20_000, "that unpacks to 62,9"),
    "a run of nothing": ("d.parquet", nulls, 20_000, "64 rows and more for each"),
    "objects without end": ("e.jsonl", objects, 7 << 20, "is JSON of more than 131,072 lists, objects and keys"),
    "keys without end": ("g.jsonl", keys, 16 << 20, "is JSON of more than 131,072 lists, objects and keys"),
    "a text that every message names": ("h.parquet", messages, 4_000, "is longer than 16,777,216 bytes"),
    "a dictionary that the footer denies": ("i.parquet", denied, 4_000, "in encoding 8 of Parquet, whose size shows only when"),
    "texts by what is new in them": ("j.parquet", beginnings, 4_000, "in encoding 7 of Parquet, whose size shows only when"),
    "fields that say nothing": ("k.parquet", fields, 8_000, "has 24,000,000 values in the 8 columns of 'messages' and beside it"),
    "wide values": ("l.parquet", wide, 4_000, "has values of 64 bytes each in 'tokens'"),
    "a line of gzip": ("f.txt.gz", zipped, 300_000, "is longer than 16,777,216 bytes"),
}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int, str]]:
    """What came of each: MB of the process's peak by then, prompts or faults, and what was said."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = []
    for name, make, size, _ in BOMBS.values():
        make(folder / name)
        paths.append(str(folder / name))
        assert (folder / name).stat().st_size < size
    ran = subprocess.run([sys.executable, "-c", READ, *paths], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return dict(zip(BOMBS, map(json.loads, ran.stdout.splitlines()), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_no_more_than_it_accounts_for(bomb: str, read: dict[str, tuple[int, int, str]]) -> None:
    more, count, said = read[bomb]
    assert BOMBS[bomb][3] in said
    assert more < MORE, f"{more} MB"
    assert count < 30
