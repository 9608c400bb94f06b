"""The guides do what they say: each command and each block of Python is run, from top to bottom, and prints what stands beneath it."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import attrib
from attrib.runs import again, spec
from tests.support.root import ROOT
from tests.support.typed import Command

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = sorted((ROOT / "docs" / "guides").glob("*.md"))
LOADED = {name: cache(getattr(attrib, name)) for name in ("load_model", "load_dictionary")}
"""What several guides load by name is loaded once."""


def is_printed(shown: str, printed: str) -> bool:
    """Whether each line that a page shows has its words, in their order, on one line of what was printed, whatever frames a table has."""

    def words(line: str) -> list[str]:
        return re.sub("[│┃─━┌┐└┘├┤┏┓┗┛┡┩╇┳┻╋┴┬┼]", " ", line).split()

    lines = [words(line) for line in printed.splitlines()]
    wanted = [words(line) for line in shown.splitlines() if words(line)]
    return bool(wanted) and all(any(" ".join(want) in " ".join(line) for line in lines) for want in wanted)


def test_words_on_a_line_are_looked_for_and_not_frames() -> None:
    printed = "┏━━━┓\n┃ a ┃\n┡━━━┩\n│ 404 at ' of' (8) │ +0.41 │\n"
    assert is_printed("404 at ' of' (8)    +0.41\n", printed)
    assert not is_printed("404 at ' of' (8)    -0.41\n", printed)
    assert not is_printed("a 404\n", printed)
    assert not is_printed("───\n", printed)


@pytest.mark.few
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_guide_runs(
    page: Path,
    smollm2_folder: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for module in (attrib, spec, again):
        for name, load in LOADED.items():
            monkeypatch.setattr(module, name, load)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for kind, body in FENCED.findall(page.read_text()):
        if kind == "text":
            assert is_printed(body, printed)
        elif kind == "python":
            exec(compile(body, page.name, "exec"), names)
            printed = capsys.readouterr().out
        else:
            lines = [shlex.split(line, comments=True) for line in body.replace("\\\n", " ").splitlines() if line.startswith("attrib ")]
            ran = [command(*words) for _, *words in lines if words[0] != "fetch"]
            assert [each.status for each in ran] == [0] * len(ran), ran
            printed = "".join(each.out for each in ran)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_a_guide_names_is_there(page: Path) -> None:
    text = FENCED.sub("", page.read_text())
    for link in re.findall(r"\]\((?!https?://)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"(?<![\w./-])attrib((?:\.[A-Za-z_]\w*)+)", text):
        found: Any = attrib
        for part in name.split(".")[1:]:
            found = getattr(found, part)
