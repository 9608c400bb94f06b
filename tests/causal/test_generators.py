"""Prompts of tasks: aligned, answered, without shared words between parts, and the same for the same seed."""

import re
from dataclasses import replace
from typing import Any

import pytest

import attrib
from attrib.causal.generators import NAMES, NOUNS, PLACES, TASKS, THINGS, Contrasts
from attrib.core.types import InputError
from attrib.models.tokenizer import Tokenizer
from tests.support.builders import build

IDS: dict[str, int] = {}
SPLIT = {" dogs", " Mary", " lion"}
"""Words that are two tokens."""


def encode(text: str) -> list[int]:
    words = [part for word in re.findall(r" ?\w+|\S", text) for part in ((word[:2], word[2:]) if word in SPLIT else (word,))]
    return [IDS.setdefault(word, len(IDS)) for word in words]


def decode(ids: list[int]) -> str:
    return "".join(list(IDS)[at] for at in ids)


def reading(**options: Any) -> attrib.Model:
    return replace(build("llama"), tokenizer=Tokenizer(encode, decode, **options))


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_aligned_answered_and_apart(name: str) -> None:
    task: Contrasts = TASKS[name](reading(), 24, 16, seed=3)
    assert (task.name, len(task.train), len(task.held_out)) == (name, 24, 16)
    assert {len(one.tokens) for one in (*task.train, *task.held_out)} == {len(task.roles)}
    assert len({one.text for one in (*task.train, *task.held_out)}) == 40
    varying = {word for entry in NOUNS for word in entry.split()} if "verb" in name else {*NAMES, *PLACES, *THINGS}
    used = [{word for one in part for word in re.findall(r"\w+", one.text)} & varying for part in (task.train, task.held_out)]
    assert not used[0] & used[1]
    assert not {word.strip() for word in SPLIT} & (used[0] | used[1])
    for one in (*task.train, *task.held_out):
        assert list(one.tokens) == encode(one.text)
        words = re.findall(r"\w+", one.text)
        answer, distractor = (decode([token]).strip() for token in (one.answer, one.distractor))
        if "verb" in name:
            is_plural = any(words[1] == entry.split()[1] for entry in NOUNS)
            assert (answer, distractor) == (("are", "is") if is_plural else ("is", "are"))
            assert one.label.startswith("plural" if is_plural else "singular")
        else:
            assert {answer, distractor} == {words[1], words[3]}
            assert distractor == words[8]
    assert len({one.label for one in task.train}) > 1
    assert task == TASKS[name](reading(), 24, 16, seed=3)
    assert task.train != TASKS[name](reading(), 24, 16, seed=4).train


def test_a_token_that_begins_prompts_has_a_role() -> None:
    begun = reading(template=lambda text: [999, *encode(text)])
    task = TASKS["indirect objects"](begun, 2, 2)
    assert task.roles[:2] == ("begin", "when")
    assert all(one.tokens[0] == 999 for one in task.train)


def test_what_cannot_be_made_is_refused() -> None:
    make = TASKS["subject-verb agreement"]
    for options, said in (
        ({"n": 0}, "n: 0; expected a whole number"), ({"held_out": True}, "held_out: True"), ({"seed": True}, "seed: True"),
        ({"n": 10**4}, "n: 10000, but there are not so many different prompts"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            make(reading(), **options)
    with pytest.raises(InputError, match="has no tokenizer"):
        make(build("llama"))
    letters = replace(
        build("llama"), tokenizer=Tokenizer(lambda text: [ord(letter) for letter in text], lambda ids: "".join(map(chr, ids)))
    )
    with pytest.raises(InputError, match="its tokenizer has no token ' is'"):
        make(letters)
    with pytest.raises(InputError, match="of the task's names only 0 are one token"):
        TASKS["indirect objects"](letters)
