"""Rows as examples: templates, JSONL in its forms, RTE and BoolQ by name; and what is refused of them, by line."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import attrib
from attrib.causal.tasks import BOOLQ, RTE, Example, Template, encoded, filled, read_task, task_named, template_named
from attrib.core.types import FetchError, InputError


def lines(path: Path, *rows: Any) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


RTE_ROWS = (
    {"premise": "A cat sat {here}.", "hypothesis": "A cat was there.", "label": 0, "idx": 7},
    {"premise": "A cat sat.", "hypothesis": "A dog sat.", "label": "not_entailment"},
)


def test_rte_and_boolq_are_filled_by_name(tmp_path: Path) -> None:
    task = task_named("rte", lines(tmp_path / "rte.jsonl", *RTE_ROWS))
    for _ in range(2):  # as often as it is gone through
        first, second = task.examples
        assert first.prompt == 'A cat sat {here}.\nQuestion: Does it follow that "A cat was there."? Yes or no?\nAnswer:'
        assert [[*answer] for answer in first.answers] == [[" Yes"], [" No"]]
        assert (first.label, second.label) == (0, 1)
        assert second.where.endswith("rte.jsonl, line 2")
    rows = [{"passage": "P.", "question": "is it", "label": 1}, {"passage": "P.", "question": "is it", "answer": False}]
    found = list(task_named("boolq", lines(tmp_path / "boolq.jsonl.gz", *rows)).examples)
    assert [each.label for each in found] == [1, 0]
    assert [[*answer] for answer in found[0].answers] == [[" No"], [" Yes"]]
    assert found[0].prompt == "P.\nQuestion: is it? Yes or no?\nAnswer:"


def test_a_chat_is_what_the_user_says_and_its_answers_begin_the_reply() -> None:
    found = filled(template_named("rte", chat=True), RTE_ROWS[0])
    assert found.prompt == [{"role": "user", "content": 'A cat sat {here}.\nQuestion: Does it follow that "A cat was there."? Yes or no?'}]
    assert [[*answer] for answer in found.answers] == [["Yes"], ["No"]]
    said = filled(Template("{x}", ("a", "b"), 1, chat=True, system="Be brief."), {"x": "Hi"})
    assert said.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert said.label == 1


def test_answers_may_hold_fields_and_several_tokens() -> None:
    made = filled(Template("{{{a}}} is", ((" {a}", "{a}"), 5), 0), {"a": "x"})
    assert (made.prompt, made.answers) == ("{x} is", ((" x", "x"), (5,)))


def test_rows_may_say_all_themselves(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "right": " b", "wrong": [" c", " d"]}, {"prompt": [1, 2], "answers": [3, 4, 5], "label": 2},
        {"prompt": [{"role": "user", "content": "hi"}], "answers": ["x", "y"], "label": 1},
    ]  # fmt: skip
    found = list(read_task(lines(tmp_path / "all.jsonl", *rows)).examples)
    assert [each.answers for each in found] == [(" b", [" c", " d"]), [3, 4, 5], ["x", "y"]]
    assert [each.label for each in found] == [0, 2, 1]
    renamed = lines(tmp_path / "renamed.jsonl", {"q": "a", "good": " b", "bad": " c"})
    task = read_task(renamed, fields={"prompt": "q", "right": "good", "wrong": "bad"}, name="mine")
    assert (task.name, next(iter(task.examples)).prompt) == ("mine", "a")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("", "line 2 is not JSON"),
        ("[1]", "line 2 is no object"),
        ('{"prompt": "a"', "line 2 is not JSON"),
        ('{"prompt": "a", "prompt": "b", "right": "c", "wrong": "d"}', "line 2 has the key 'prompt' twice"),
        ({"text": "a"}, "line 2 has no key 'prompt'; it has 'text'"),
        ({"prompt": "a", "answers": ["b", "c"]}, "no key 'label'"),
        ({"prompt": "a", "answers": ["b", "c"], "label": 0, "right": "b"}, "has 'answers' and 'right'"),
        ({"prompt": "a", "right": "b"}, "no key 'wrong'"),
        ({"prompt": "a", "right": "b", "wrong": "c", "label": 1}, "the label 1 beside 'right'"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_by_their_line(row: Any, said: str, tmp_path: Path) -> None:
    examples = iter(read_task(lines(tmp_path / "bad.jsonl", {"prompt": "a", "right": "b", "wrong": "c"}, row)).examples)
    assert isinstance(next(examples), Example)
    with pytest.raises(InputError, match=r"examples: .*bad\.jsonl") as caught:
        next(examples)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"premise": "a", "label": 0}, "its field 'hypothesis' is not there; it has 'premise', 'label'"),
        ({"premise": "a", "hypothesis": None, "label": 0}, "its field 'hypothesis' is None, and no text"),
        ({"premise": "a", "hypothesis": ["b"], "label": 0}, "and no text"),
        ({"premise": "a", "hypothesis": "b"}, "has no field 'label', its label"),
        ({"premise": "a", "hypothesis": "b", "label": -1}, "the label -1; expected the number of an answer, 0 to 1, or one of 'ent"),
        ({"premise": "a", "hypothesis": "b", "label": "maybe"}, "the label 'maybe'"),
        ({"premise": "a", "hypothesis": "b", "label": True}, "the label True"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_a_template_are_refused(row: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        filled(RTE, row, "rte.jsonl, line 3")
    assert "rte.jsonl, line 3" in str(caught.value)
    assert said in str(caught.value)
    assert filled(BOOLQ, {"passage": "p", "question": "q", "label": False}).label == 0


@pytest.mark.parametrize("text", ["{a.b}", "{a[0]}", "{}", "{a!r}", "{a:>9}", "{a", "{0}"])
def test_braces_hold_names_alone(text: str) -> None:
    with pytest.raises(InputError, match="template: "):
        Template(text, ("a", "b"))
    with pytest.raises(InputError, match="system: has no effect"):
        Template("a", ("a", "b"), system="b")


def test_names_files_and_fields_that_are_not_there_are_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"prompt": "a", "right": "b", "wrong": "c"})
    with pytest.raises(InputError, match="template: 'mnli'; expected 'rte', 'boolq'"):
        task_named("mnli", file)
    with pytest.raises(InputError, match="there is no file"):
        read_task(tmp_path / "no.jsonl")
    with pytest.raises(InputError, match="fields: 'text'; expected prompt, answers"):
        read_task(file, fields={"text": "prompt"})
    with pytest.raises(InputError, match="fields: have no effect beside a template"):
        read_task(file, fields={"prompt": "q"}, template="rte")


def test_a_data_set_of_the_hub_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    from attrib.causal.tasks import readers

    asked = []

    def rows(name: str, split: str) -> Iterator[Any]:
        asked.append((name, split))
        yield from RTE_ROWS
        raise OSError("the network is gone")

    monkeypatch.setattr(readers, "hub", rows)
    found = iter(task_named("rte").examples)
    assert [next(found).label for _ in range(2)] == [0, 1]
    with pytest.raises(FetchError, match="examples: hf:aps/super_glue:rte could not be read on: the network is gone"):
        next(found)
    assert asked == [("hf:aps/super_glue:rte", "validation")]


def test_a_hub_that_cannot_be_reached_is_one_clear_error() -> None:
    with pytest.raises(InputError, match="task: the data set hf:aps/super_glue:rte could not be opened"):
        task_named("rte")


def test_words_that_are_several_tokens_are_refused_by_name(smollm2_folder: Path) -> None:
    """On the real tokenizer: what an answer is, and where a chat ends."""
    model = attrib.load_model("smollm2-135m")
    yes, no = encoded(model, [filled(RTE, RTE_ROWS[0]), filled(template_named("rte", chat=True), RTE_ROWS[1])])
    assert [model.tokenizer.decode([yes.right[0]]), model.tokenizer.decode([no.right[0]])] == [" Yes", "No"]
    assert model.tokenizer.decode(no.ids.tolist()).endswith("<|im_start|>assistant\n")
    with pytest.raises(InputError, match=r"examples: example 0 \(x\), answers: ' antidisestablishment' is \d tokens"):
        encoded(model, [Example("a", (" Yes", " antidisestablishment"), where="x")])
