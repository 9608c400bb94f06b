"""Surveys of files, block by block: ended anywhere, shared, and the same bytes as in one go."""

import json
from pathlib import Path
from typing import Any

import pytest

from attrib import latents
from attrib.core.types import FormatError, InputError
from attrib.latents import blocks
from tests.latents.test_survey import CORPUS, model, of_kind, same
from tests.support.attribution_cases import characters

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OPTIONS: dict[str, Any] = {"top": 2, "per_band": 1, "context": (2, 1), "block": 2}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The corpus as JSON lines, the fourth of which is none, and the last longer than the context."""
    lines = [json.dumps({"tokens": ids.tolist()}) for ids in CORPUS]
    lines.insert(3, "{not json")
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join([*lines, json.dumps({"tokens": [1] * 100})]) + "\n")
    return path


def whole() -> latents.Survey:
    numbers = [0, 1, 2, 4, 5, 6, 7, 8]
    return latents.survey(model(), of_kind("topk"), CORPUS, numbers=numbers, **{k: v for k, v in OPTIONS.items() if k != "block"})


def test_blocks_are_a_survey_of_the_whole(tmp_path: Path, source: Path):
    seen = []
    found = latents.survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, progress=lambda done, _: seen.append(done), **OPTIONS)
    assert (found.blocks, found.done, found.refused, seen) == (5, 5, 2, [2, 4, 6, 8, 10])
    assert "prompts.jsonl, line 4" in found.reason
    assert found.survey is not None
    assert same(found.survey, whole())
    again = latents.survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, **OPTIONS)
    assert again.refused == 0
    assert again.survey is not None
    assert same(again.survey, whole())


def test_what_was_ended_goes_on(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def ended(*given: Any) -> latents.Survey:
        calls.append(given)
        if len(calls) == 4:  # the first is of nothing
            raise KeyboardInterrupt
        return plain(*given)

    plain = blocks.gathered
    monkeypatch.setattr(blocks, "gathered", ended)
    with pytest.raises(KeyboardInterrupt):
        latents.survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, **OPTIONS)
    assert len(list((tmp_path / "b").glob("block-*.h5"))) == 2
    found = latents.survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, **OPTIONS)
    assert len(calls) == 8, "the two that are there are not made again"
    assert found.survey is not None
    one = latents.save(tmp_path / "one.h5", found.survey)
    assert one.read_bytes() == latents.save(tmp_path / "two.h5", whole()).read_bytes()


def test_shares_make_a_whole(tmp_path: Path, source: Path):
    done = []
    for mine in (1, 0, 2):
        found = latents.survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, share=(mine, 3), **OPTIONS)
        done.append((found.done, found.survey is None))
    assert done == [(2, True), (4, True), (5, False)]
    assert found.survey is not None
    assert same(found.survey, whole())


def test_prompts_are_cut_and_blocks_may_hold_none(tmp_path: Path):
    path = tmp_path / "p.txt"
    path.write_text("abcdefgh\n\n\nabc\n")
    spelled = characters(model())
    found = latents.survey_blocks(tmp_path / "b", spelled, of_kind("topk"), path, length=2, **OPTIONS | {"block": 1})
    assert found.survey is not None
    part = found.survey.of()
    assert (part.tokens, part.prompts, found.refused) == (4, ((0, 1), (3, 4)), 2)


def test_a_folder_is_of_one_survey(tmp_path: Path, source: Path):
    folder = tmp_path / "b"
    latents.survey_blocks(folder, model(), of_kind("topk"), source, **OPTIONS)
    for changed, name in (
        ({"top": 3}, "top"),
        ({"block": 3}, "block"),
        ({"skip": 1}, "skip"),
        ({"latents": [1, 2]}, "latents"),
        ({"length": 4}, "length"),
    ):
        with pytest.raises(InputError, match=rf"is of a survey with another {name}; expected the same"):
            latents.survey_blocks(folder, model(), of_kind("topk"), source, **OPTIONS | changed)
    with pytest.raises(InputError, match="another dictionaries"):
        latents.survey_blocks(folder, model(), of_kind("standard"), source, **OPTIONS)
    with source.open("a") as file:
        file.write('{"tokens": [1]}\n')
    with pytest.raises(InputError, match="another source_sha256"):
        latents.survey_blocks(folder, model(), of_kind("topk"), source, **OPTIONS)


def test_what_makes_no_sense_is_refused(tmp_path: Path, source: Path):
    def call(folder: Path = tmp_path / "b", source: Path = source, **options: Any) -> Any:
        return latents.survey_blocks(folder, model(), of_kind("topk"), source, **OPTIONS | options)

    for options, message in (
        ({"share": (3, 3)}, "share: 3/3"),
        ({"block": 0}, "block: 0"),
        ({"length": 0}, "length: 0"),
        ({"tops": 1}, "tops: no option of a survey"),
        ({"source": tmp_path / "none.txt"}, "there is no file"),
        ({"source": tmp_path}, "is a folder"),
        ({"top": -1}, "top: -1"),
        ({"latents": [80]}, "latents: "),
        ({"budget": 10}, "budget: 10 bytes"),
    ):
        with pytest.raises(InputError, match=message):
            call(**options)
        assert not (tmp_path / "b").exists(), "nothing is written before all is checked"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="holds other things"):
        call(tmp_path / "other")
    call()
    (tmp_path / "b" / "survey.json").write_text("{")
    with pytest.raises(FormatError, match="damaged"):
        call()


def test_a_damaged_block_is_named(tmp_path: Path, source: Path):
    latents.survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, **OPTIONS)
    block = tmp_path / "b" / "block-000001.h5"
    block.write_bytes(block.read_bytes()[:3000])
    with pytest.raises(FormatError, match=r"block-000001\.h5"):
        latents.survey_blocks(tmp_path / "b", model(), of_kind("topk"), source, **OPTIONS)
