"""Prompts that would be taken for others without a word: masks, chats, ids in the wrong place, keys that are there twice."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet

from attrib.adapters import from_hugging_face
from attrib.core.types import InputError
from attrib.jobs.config import PromptsOf
from attrib.jobs.ids import parts_of
from attrib.jobs.source import limited
from attrib.models.transformer import Tokenizer
from attrib.runs.prompts import Given, check_effect, read
from attrib.runs.run import read_prompts
from tests.runs.test_prompts import values, written
from tests.support.builders import tiny

PADDED = [
    ({"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1]}, [5, 6]),
    ({"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]}, [5, 6]),
    ({"tokens": [5, 6, 0], "attention_mask": [1, 1, 0]}, [5, 6]),
    ({"input_ids": [5, 6], "attention_mask": [True, True]}, [5, 6]),
    ({"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1], "position_ids": [1, 0, 1], "token_type_ids": [0, 0, 0]}, [5, 6]),
    ({"input_ids": [5, 6], "labels": [-100, 6], "loss_mask": [0, 1], "special_tokens_mask": [1, 0]}, [5, 6]),
    ({"text": "a", "input_ids": [5], "attention_mask": [0]}, "a"),
]
REFUSED = [
    ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "attention_mask, which hides position 1 between tokens"),
    ({"input_ids": [5, 6], "attention_mask": [0, 0]}, "attention_mask, which is 0 everywhere"),
    ({"input_ids": [5, 6], "attention_mask": [1, 2]}, "holds other values than 0 and 1"),
    ({"input_ids": [5, 6], "attention_mask": [1]}, "has 2 token ids, and 1 numbers in 'attention_mask'"),
    ({"input_ids": [5, 6], "attention_mask": "11"}, "has '11' as 'attention_mask'; expected a list of whole numbers"),
    ({"input_ids": [5, 6], "token_type_ids": [0, 1]}, "has token_type_ids that are not 0"),
    ({"input_ids": [5, 6], "position_ids": [3, 4]}, "has position_ids other than 0, 1, 2"),
    ({"tokens": "abc"}, "has text under 'tokens', 'abc'; expected token ids there. Text goes under 'text'"),
    ({"input_ids": "abc"}, "has text under 'input_ids'"),
    ({"tokens": ["a", "b"]}, "is ['a', 'b']; expected a string"),
    ({"tokens": [5.0, 6.0]}, "is [5.0, 6.0]; expected a string"),
    ({"tokens": [True, False]}, "is [True, False]; expected a string"),
    ({"tokens": ["5"]}, "is ['5']; expected"),
    ({"input_ids": [[5, 6], [7, 8]], "attention_mask": [[1, 1], [1, 1]]}, "holds 2 lists, as of a batch; expected one prompt"),
    ({"messages": []}, "is an empty prompt"),
    ({"messages": [{"role": "user"}]}, "has no text as the content of message 0"),
    ({"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}, "has no text as the role of message 1"),
    ({"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}]}, "has 'tools' beside its messages"),
]


WRITTEN: list[dict[str, Any]] = [
    {"use_dictionary": False}, {"dictionary_pagesize_limit": 1}, {"data_page_version": "2.0"},
    {"use_dictionary": False, "column_encoding": {"messages.list.element.content": "DELTA_LENGTH_BYTE_ARRAY"}},
]  # fmt: skip


@pytest.mark.few
@pytest.mark.parametrize("options", WRITTEN)
@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary()])
def test_chats_are_read_however_parquet_writes_texts(kind: pyarrow.DataType, options: dict[str, Any], tmp_path: Path) -> None:
    """By a dictionary, beyond one that is full, plain, or by their lengths, over several row groups and batches."""
    texts = [f"{number % 7} {'ab' * (number % 5)}" for number in range(700)]
    chats = [[{"role": "user", "content": text}] * (1 + number % 3) for number, text in enumerate(texts)]
    columns = pyarrow.array(chats, pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": kind})))
    parquet.write_table(pyarrow.table({"messages": columns}), tmp_path / "a.parquet", row_group_size=400, write_batch_size=20, **options)
    assert [found.prompt for found in read(tmp_path / "a.parquet")] == chats


@pytest.mark.parametrize(("row", "prompt"), PADDED)
def test_masks_are_heeded(row: dict[str, Any], prompt: Any, tmp_path: Path) -> None:
    assert values(read(written(tmp_path / "a.jsonl", json.dumps(row)))) == [prompt]
    parquet.write_table(pyarrow.table({name: [value] for name, value in row.items()}), tmp_path / "a.parquet")
    assert values(read(tmp_path / "a.parquet")) == [prompt]


@pytest.mark.parametrize(("row", "fault"), REFUSED)
def test_what_would_be_another_prompt_is_refused(row: dict[str, Any], fault: str, tmp_path: Path) -> None:
    (found,) = read(written(tmp_path / "a.jsonl", json.dumps(row)))
    assert (found.prompt, fault in found.fault) == (None, True), found.fault
    with pytest.raises(InputError, match=r"a\.jsonl, line 1 .*Remove it, or write a prompt there"):
        read_prompts(tmp_path / "a.jsonl")


@pytest.mark.parametrize("number", [0, 3, 5, 6, 7, 13, 16, 17])
def test_rows_of_columns_are_refused_for_the_same_reasons(number: int, tmp_path: Path) -> None:
    row, fault = REFUSED[number]
    parquet.write_table(pyarrow.table({name: [value] for name, value in row.items()}), tmp_path / "a.parquet")
    (found,) = read(tmp_path / "a.parquet")
    assert (found.prompt, fault in found.fault) == (None, True), found.fault


def test_a_named_column_goes_with_its_own_mask(tmp_path: Path) -> None:
    row = {"chosen_input_ids": [5, 6, 0], "chosen_attention_mask": [1, 1, 0], "attention_mask": [1, 0, 1]}
    path = written(tmp_path / "a.jsonl", json.dumps(row))
    assert values(read(path, field="chosen_input_ids")) == [[5, 6]]


def test_a_saved_data_set_has_its_mask_heeded(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"input_ids": [[0, 5, 6], [5, 6, 7]], "attention_mask": [[0, 1, 1], [1, 0, 1]]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    first, other = read(tmp_path / "saved")
    assert first.prompt is not None
    assert isinstance(first.prompt, torch.Tensor)
    assert first.prompt.tolist() == [5, 6]
    assert "hides position 1" in other.fault


# ------------------------------------------------------------------------------------------------- chats

CHAT = [{"role": "user", "content": "Hi\n"}, {"role": "assistant", "content": "Yo"}]


@pytest.mark.parametrize("row", [{"messages": CHAT}, {"prompt": CHAT}, CHAT, {"messages": CHAT, "tools": None, "id": 3}])
def test_messages_are_a_chat(row: Any, tmp_path: Path) -> None:
    (found,) = read(written(tmp_path / "a.jsonl", json.dumps(row)))
    assert (found.prompt, found.fault) == (CHAT, "")
    assert read_prompts(tmp_path / "a.jsonl") == [CHAT]


def test_messages_of_columns(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    other = [{"role": "user", "content": "a", "name": "b"}]  # the first chat's messages have no name, and columns give them one
    table = {"messages": [CHAT, other]}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    datasets.Dataset.from_list([{"messages": one} for one in (CHAT, other)]).save_to_disk(tmp_path / "saved")
    assert [one.prompt for path in ("a.parquet", "saved") for one in read(tmp_path / path)] == [CHAT, other] * 2


class Chatty(Tokenizer):
    def chat(self, messages: list[dict[str, Any]]) -> list[int]:
        return [len(message["content"]) for message in messages]


def test_a_job_gives_chats_to_the_template() -> None:
    model = from_hugging_face(tiny("llama"), name="m")
    given, of = Given("", CHAT), PromptsOf(source=["-"])
    (ids,), fault = parts_of(replace(model, tokenizer=Chatty(encode=list, decode=str)), 0, given, of)  # type: ignore[arg-type]
    assert (ids.tolist(), fault) == ([3, 2], "")
    assert parts_of(model, 0, given, of) == ([], "tokens: got text, but m has no tokenizer; give token ids.")


# -------------------------------------------------------------------------------------------------- JSON


def test_a_key_that_is_there_twice_means_nothing(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "text": "b"}',
        '{"text": "a", "id": 1, "id": 2}',
        '{"tokens": [1], "attention_mask": [1], "attention_mask": [0]}',
    ]
    first, second, third = read(written(tmp_path / "a.jsonl", "\n".join(lines)))
    assert (first.prompt, first.fault) == (None, "has the key 'text' twice")
    assert second.prompt == "a", "what nobody reads may be there twice"
    assert third.fault == "has the key 'attention_mask' twice"


def test_numbers_that_are_none(tmp_path: Path) -> None:
    lines = ["NaN", '{"tokens": [1, NaN]}', '{"tokens": [-Infinity]}', '{"text": "a", "score": NaN}', '{"tokens": null}']
    faults = [one.fault for one in read(written(tmp_path / "a.jsonl", "\n".join(lines)))]
    for fault, words in zip(faults, ["is nan;", "is [1, nan];", "is [-inf];", "", "is None;"], strict=True):
        assert fault.startswith(words)
    assert not faults[3]


def test_newlines_and_escapes_within_a_prompt(tmp_path: Path) -> None:
    text = 'one\ntwo\t"three"\u2028\U0001f600\r\n'
    path = written(tmp_path / "a.jsonl", "\ufeff" + json.dumps({"text": text}) + "\r\n" + json.dumps(text, ensure_ascii=False) + "\r\n")
    assert read_prompts(path) == [text, text]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-16-be"])
def test_text_in_another_encoding_is_no_prompt(encoding: str, tmp_path: Path) -> None:
    """Its lines but for the first are UTF-8 as well, with a NUL beside every letter."""
    (tmp_path / "a.txt").write_bytes("The cat\nA dog\nThe end\n".encode(encoding))
    faults = [found.fault for found in read(tmp_path / "a.txt")]
    assert len(faults) >= 3
    assert all(fault.startswith(("is not UTF-8: ", "holds NUL characters, ")) for fault in faults)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.json", "a file of .json has no prompt on each line"),
        ("a.CSV.gz", "a file of .csv has no prompt on each line"),
        ("a.txt.zst", "attrib reads no .zst; expected text"),
    ],
)
def test_a_file_that_is_no_text_is_not_taken_for_it(name: str, words: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, '["a",\n"b"]\n')
    with pytest.raises(InputError, match=re.escape(words)):
        read(path)


def test_a_file_is_what_the_user_says(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '"a"\n{"text": "b"}\n')
    assert values(read(path, form="jsonl")) == ["a", "b"]
    assert values(read(path, form="text")) == ['"a"', '{"text": "b"}']


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("p.txt", {"field": "text"}, r"prompts\.field: 'text' has no effect on .*p\.txt, a file of text"),
        ("-", {"field": "text"}, r"prompts\.field: 'text' has no effect on -, a file of text"),
        ("p.txt.gz", {"split": "test"}, r"prompts\.split: 'test' has no effect on .*p\.txt\.gz, a source without splits"),
        ("p.jsonl", {"split": "train"}, r"prompts\.split: 'train' has no effect"),
        ("p.parquet", {"split": "train"}, r"prompts\.split: 'train' has no effect"),
        ("saved", {"split": "train"}, r"prompts\.split: 'train' has no effect"),
    ],
)
def test_an_option_of_another_form_is_refused(source: str, options: dict[str, str], says: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a")
    (tmp_path / "saved").mkdir()
    with pytest.raises(InputError, match=says):
        read(source if source == "-" else tmp_path / source, **options)
    read(tmp_path / "p.txt", form="jsonl", field="text")  # whose lines are objects


def test_a_named_key_is_not_in_a_bare_string(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"the cat"\n{"mine": "sat"}\n[1, 2]\n')
    found = list(read(tmp_path / "p.jsonl", field="mine"))
    assert [one.prompt for one in found] == [None, "sat", None]
    assert found[0].fault == found[2].fault == "is no object, so it has no key 'mine'"
    assert found[0].where.endswith("line 1")


def test_a_job_s_options_serve_those_of_its_sources_that_have_a_use_for_them(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a b\n")
    (tmp_path / "p.jsonl").write_text('{"mine": "c"}\n')
    sources = [tmp_path / "p.txt", tmp_path / "p.jsonl"]
    check_effect(sources, None, field="mine", split=None)
    of = PromptsOf(source=[*map(str, sources)], field="mine")
    assert [found.prompt for found, _ in limited(of, sources, (), None)] == ["a b", "c"]
    with pytest.raises(InputError, match=r"prompts\.split: 'test' has no effect"):
        check_effect(sources, None, field="mine", split="test")
