"""The command line. Errors are one clear message, warnings one line; `--debug` adds the traceback, and other libraries' warnings."""

import importlib.metadata
import io
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import rich_utils

import attrib
from attrib.cli import graph, job, latents, stats, task
from attrib.cli.agreement import verify
from attrib.cli.asking import ask
from attrib.cli.converting import convert
from attrib.cli.evaluating import evaluate
from attrib.cli.files import export, show, verify_file
from attrib.cli.generating import generate, steer
from attrib.cli.heads import heads
from attrib.cli.intervening import ablate, intervene
from attrib.cli.run import plan, run
from attrib.cli.training import train
from attrib.cli.viewing import serve, view
from attrib.core.room import is_out_of_memory
from attrib.core.types import AttribError, AttribWarning, InputError, first_line
from attrib.view.terminal import facts, message, plain
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    from attrib.adapters.dictionaries.kinds import DictionaryKind

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]}, epilog="Give --debug for the traceback of an error.",
)  # fmt: skip
app.command("run")(run)
app.command("plan")(plan)
app.command()(show)
app.command()(export)
app.command()(convert)
app.command()(verify_file)
app.command()(ask)
app.command()(generate)
app.command()(steer)
app.command()(evaluate)
app.command()(train)
app.command()(intervene)
app.command()(ablate)
app.command()(verify)
app.command()(heads)
app.command()(view)
app.command()(serve)
app.add_typer(job.app, name="job")
app.add_typer(stats.app, name="stats")
app.add_typer(graph.app, name="graph")
app.add_typer(latents.app, name="latents")
app.add_typer(task.app, name="task")


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"attrib {attrib.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _of_all(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit")] = False,
) -> None:
    """Exact attributions between tokens, sparse latents and logits."""


@app.command()
def rerun(
    file: Annotated[Path, typer.Argument(help="HDF5 file that attrib wrote, or a folder of them")],
    prompt: Annotated[int, typer.Option(help="Its number in the data set; in a file without numbers, its place from 0")],
    at: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER, where a model or dictionary lies; may be repeated")] = None,
) -> None:
    """Make a prompt's edges again, as the file says that they were made, and compare."""
    from attrib.jobs.folder import places_of
    from attrib.runs.rerun import rerun as rerun_prompt

    given = dict(each.partition("=")[::2] for each in at or [])
    if wrong := [name for name, folder in given.items() if not folder]:
        raise InputError(f"at: {wrong[0]!r}; expected NAME=FOLDER.")
    compared = rerun_prompt(file, prompt, places=places_of(file.resolve()) | given)
    for one in compared:
        also = f", {one.only_one_keeps} edges at the limit kept by one alone" if one.only_one_keeps else ""
        verdict = "NOT THE SAME" if not one.is_same else "the same to rounding" if one.apart else "the same"
        named = plain(one.kind if one.kind == "graph" else f"{one.kind} {one.source} -> {one.target}")
        by = f"; multiplied by {one.instead}, since this torch is without the one that the file names" if one.instead else ""
        print(f"{named}: {verdict}: {one.edges:,} edges, apart by {one.apart:.1e} of the largest{also}{by}")
    if not all(one.is_same for one in compared):
        raise InputError(f"prompt: {prompt} of {file} does not come out as it was stored.")


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="smollm2-135m")]) -> None:
    """Download a model into the cache, checked and ready."""
    from attrib.adapters import SMOLLM2
    from attrib.adapters.models import smollm2

    if name != SMOLLM2:
        raise InputError(f"name: {name!r} cannot be fetched; expected {SMOLLM2}. Models of a hub are loaded by name, without fetching.")
    print(smollm2.fetch(lambda step: print(step, file=sys.stderr)))


@app.command()
def info() -> None:
    """Models, dictionaries, devices and versions."""
    import torch

    from attrib.adapters import SMOLLM2, shipped
    from attrib.adapters.dictionaries.kinds import KINDS
    from attrib.adapters.dictionaries.shipping import told
    from attrib.adapters.models.families import FAMILIES
    from attrib.adapters.models.smollm2 import cache_folder
    from attrib.engine.blocks.multiplier import VARIABLE, multiplier

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    cached = (cache_folder() / SMOLLM2).is_dir()
    rows: dict[str, Any] = {
        "models": f"{SMOLLM2} ({'fetched' if cached else f'run `attrib fetch {SMOLLM2}`'}), local folders, TransformerLens names",
        "architectures": ", ".join(sorted(FAMILIES)),
        "dictionaries": "\n".join(shipped()) or told(),
        **{f"of {library}": "\n".join(kinds) for library, kinds in _kinds(KINDS).items()},
        "cache": cache_folder(),
        "devices": ", ".join(["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count()))]),
        "products": f"{multiplier()} (float32 on a CPU; {VARIABLE} in the environment says otherwise)",
        "python": platform.python_version(),
        "attrib": attrib.__version__,
        **{name: version(name) for name in ("torch", "transformers", "transformer-lens", "sae-lens", "h5py", "triton")},
    }
    print_table(facts(rows))


def _kinds(known: "Sequence[DictionaryKind]") -> dict[str, list[str]]:
    """The kinds of each library, and which are refused."""
    found: dict[str, list[str]] = {}
    for kind in known:
        found.setdefault(kind.library, []).append(kind.name if kind.rule else f"{kind.name} (refused: {kind.remark})")
    return found


QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""What other libraries are told: what they would write into the output of our commands is theirs, and of no use there."""


LESS_MEMORY = "Take fewer or shorter prompts, --keep topk:K, or a smaller --budget, or close what else runs."


def _keep_out_of_files() -> None:
    """Put nothing in the place of standard output or errors that are closed: else the next file that is opened is in their place,
    and what libraries print there is written into it."""
    for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) == descriptor and name == "stderr":  # where there is none, Python prints to the other
                sys.stderr = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def main() -> None:
    """Entry point: every error becomes one message, which says whose it is, and exit status 1."""
    _keep_out_of_files()
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    for name, value in QUIET.items() if not debug else ():
        os.environ.setdefault(name, value)
    rich_utils.COLOR_SYSTEM = None if os.environ.get("NO_COLOR") else "auto"  # typer's help and usage errors are as plain as our own text
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the terminal's encoding, no text ends a command
    try:
        with warnings.catch_warnings():
            _one_line_each(debug)
            app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        print(f"error: {message(_said(error))}", file=sys.stderr)
        sys.exit(1)


def _said(error: Exception) -> str:
    """What a user is told of an error."""
    if isinstance(error, AttribError):
        return str(error) or type(error).__name__
    if isinstance(error, OSError):
        return _of_system(error) or type(error).__name__
    if is_out_of_memory(error):
        return f"out of memory ({first_line(error)}). {LESS_MEMORY}"
    name, raised_in = f"{type(error).__name__}: {str(error).strip()}".rstrip(": "), _raised_in(error)
    if raised_in in OURS:
        return f"{name}\nThis is a fault of attrib. Give --debug for its traceback, and report it."
    return f"{name}\nSo says {raised_in}, a library that attrib calls; --debug gives the traceback."


OURS = ("attrib", "attrib_kernels", "__main__")


def _raised_in(error: Exception) -> str:
    """The package whose code raised an error: the innermost one that is no part of Python."""
    packages = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((package for package in reversed(packages) if package not in sys.stdlib_module_names), OURS[0])


def _of_system(error: OSError) -> str:
    """What the system says of a file, without its number: "out.h5: No space left on device"."""
    return str(error) if error.strerror is None else ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)


def _one_line_each(debug: bool) -> None:
    """Our own warnings as one line; those of other libraries, which say nothing to who types a command, with --debug or -W alone."""
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", AttribWarning)

    def show_warning(text: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        is_ours = issubclass(category, AttribWarning)
        print(
            f"warning: {message(text)}" if is_ours else message(warnings.formatwarning(text, category, filename, lineno)), file=sys.stderr
        )

    warnings.showwarning = show_warning  # type: ignore[assignment]


if __name__ == "__main__":
    main()
