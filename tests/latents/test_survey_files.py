"""Survey files: what is written comes back, equal surveys are equal bytes, and what cannot be is refused."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attrib
from attrib import latents
from attrib.core.types import AttribError, FormatError, InputError
from attrib.store.layout import SURVEY
from attrib.store.writing import format_at
from tests.latents.test_survey import CORPUS, model, of_kind, same
from tests.support.attribution_cases import characters
from tests.support.brought import dictionaries
from tests.support.examples import examples

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@cache
def surveyed() -> latents.Survey:
    several = [of_kind("standard"), dictionaries(model(), "attn_out")[0]]
    options: dict[str, Any] = {"together": [2, 4, 9], "top": 3, "per_band": 2, "context": (3, 2), "ignore": 7}
    return latents.survey(characters(model()), several, CORPUS, numbers=[*range(4), *range(7, 11)], **options)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_what_is_saved_comes_back(tmp_path: Path, compression: str | None):
    path = latents.save(tmp_path / "s.h5", surveyed(), compression=compression)
    assert same(latents.open(path), surveyed())
    assert format_at(path) == SURVEY
    assert not list(latents.faults(path))
    assert latents.open(path).of("resid").top(2) == surveyed().of("resid").top(2)


def test_equal_surveys_are_equal_bytes(tmp_path: Path):
    options: dict[str, Any] = {"together": True, "top": 2, "per_band": 1}
    parts = [latents.survey(model(), of_kind("topk"), CORPUS[a:b], numbers=range(a, b), **options) for a, b in ((0, 3), (3, 4), (4, 8))]
    stored = [latents.open(latents.save(tmp_path / f"{number}.h5", part)) for number, part in enumerate(parts)]
    whole = latents.save(tmp_path / "whole.h5", latents.survey(model(), of_kind("topk"), CORPUS, **options))
    merged = latents.save(tmp_path / "merged.h5", latents.merge(stored[2], stored[0], stored[1]))
    assert whole.read_bytes() == merged.read_bytes()


def test_float32_is_kept(tmp_path: Path):
    single = attrib.core.fingerprints.replace(model(), params=_single(model().params))
    survey = latents.survey(single, of_kind("standard").to(dtype="float32"), CORPUS)
    assert survey.of().tally.top.value.dtype == np.float32
    assert same(latents.open(latents.save(tmp_path / "s.h5", survey)), survey)


def _single(params: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda p: p.to(torch.float32), params)


def test_outputs_are_refused_by_name(tmp_path: Path):
    path = latents.save(tmp_path / "s.h5", surveyed())
    with pytest.raises(InputError, match="exists already"):
        latents.save(path, surveyed())
    latents.save(path, surveyed(), overwrite=True)
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(InputError, match="is not a survey of latents"):
        latents.save(other, surveyed(), overwrite=True)
    with pytest.raises(FormatError, match="not an HDF5 file"):
        latents.open(other)
    with pytest.raises(FormatError, match=r"a survey of latents, which attrib\.latents\.open"):
        attrib.open(path)
    with pytest.raises(InputError, match="there is no file"):
        latents.open(tmp_path / "none.h5")
    for suffix in range(3):
        cut = tmp_path / f"cut{suffix}.h5"
        cut.write_bytes(path.read_bytes()[: (100, 5000, -40)[suffix]])
        with pytest.raises(FormatError):
            latents.open(cut)


def set_value(name: str, at: Any, value: Any) -> Callable[[h5py.Group], None]:
    def edit(part: h5py.Group) -> None:
        part[name][at] = value

    return edit


def set_fact(name: str, value: Any) -> Callable[[h5py.Group], None]:
    import json

    def edit(part: h5py.Group) -> None:
        facts = json.loads(part.attrs["facts"])
        facts[name] = value
        text = json.dumps(facts).encode()
        part.attrs["facts"] = np.array(text, h5py.string_dtype("utf-8", len(text)))

    return edit


def longer(name: str) -> Callable[[h5py.Group], None]:
    def edit(part: h5py.Group) -> None:
        values = np.append(part[name][:], part[name][-1:])
        del part[name]
        part[name] = values

    return edit


EDITS: dict[str, tuple[Callable[[h5py.Group], None], str]] = {
    "a count": (set_value("latents/count", 0, 1), "counts of places and of prompts disagree|does not add up|more places"),
    "a sum": (set_value("latents/sum_low", 0, -5), "no fixed-point number"),
    "a bin": (set_value("histogram/count", 0, 40), "a histogram does not add up"),
    "bins in another order": (set_value("histogram/bin", 0, 255), "do not ascend"),
    "a negative bin": (set_value("histogram/bin", 0, -1), "outside of what there is"),
    "a pointer": (set_value("top/ptr", 1, 10_000), "top/ptr does not rise"),
    "a latent": (set_value("latents/latent", 0, 5), "the latents do not ascend"),
    "a largest score": (set_value("top/value", 0, 1e4), "top: a score differs from that in its context"),
    "a score that is none": (set_value("sample/value", 0, np.nan), "sample: a score is zero or not finite"),
    "a prompt": (set_value("top/prompt", 0, 5), "top: a prompt is not among those that were read"),
    "a position": (set_value("sample/position", 0, 63), "sample: a place has not the tokens before it"),
    "a token": (set_value("top/tokens", 3, -1), "top: a token is no id"),
    "a token with no string": (set_value("top/tokens", 3, 59), "a token of an example has no string"),
    "what is active together": (set_value("together/count", 0, 40), "more often than alone"),
    "a span": (set_value("corpus/last", 0, 8), "the intervals of prompts do not ascend"),
    "places": (set_fact("places", 100), "100 places count of 57 tokens"),
    "a score's name": (set_fact("score", "raw"), "the score 'raw'"),
    "a dtype": (set_fact("dtype", "float32"), "are not in float32"),
    "a limit": (set_fact("limits", {"top": 3}), "the fact limits"),
    "a huge limit": (set_fact("limits", {"top": 3, "per_band": 2, "before": 1 << 40, "after": 2, "seed": 0}), "differ in length"),
    "a name": (set_fact("model", 3), "the fact model is 3"),
    "tokens that count": (set_fact("ignore", "all"), "the fact ignore"),
    "skip": (set_fact("skip", 3), "a position is below those that count"),
    "a width": (set_fact("d_sae", 3), "do not ascend from 0 to below 3"),
    "a column's length": (longer("top/prompt"), "top/ptr does not rise|differ in length"),
    "an id's string": (longer("strings/id"), "ptr|do not ascend"),
}


@pytest.mark.few
@pytest.mark.parametrize("name", EDITS)
def test_what_cannot_be_is_refused(tmp_path: Path, name: str):
    edit, message = EDITS[name]
    path = latents.save(tmp_path / "s.h5", surveyed())
    with h5py.File(path, "r+") as file:
        edit(file["parts/0"])
    with pytest.raises(FormatError, match=message):
        latents.open(path)
    (fault,) = latents.faults(path)
    assert str(path) in str(fault)


def test_zeros_that_take_no_room_are_not_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = latents.save(tmp_path / "s.h5", surveyed())
    monkeypatch.setattr("attrib.latents.files.free_memory", lambda: 1000)
    with pytest.raises(FormatError, match=r"48 latents, 3 of them together, take [\d,]+ bytes, more than there are"):
        latents.open(path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A survey file."""
    return latents.save(tmp_path_factory.mktemp("whole") / "s.h5", surveyed())


@given(st.integers(0, 1 << 30), st.integers(0, 255))
@settings(max_examples=examples(60), deadline=None)
def test_bytes_that_were_changed_raise_nothing_else(written: Path, place: int, value: int):
    whole, path = written.read_bytes(), written.with_name("changed.h5")
    damaged = bytearray(whole)
    damaged[place % len(whole)] = value
    path.write_bytes(damaged)
    try:
        for part in latents.open(path):
            part.to_pandas()
            part.top(2)
    except AttribError:
        pass
