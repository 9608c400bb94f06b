"""`attrib task`: ask operations of every example of a task, and show what they come to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.cli.pages import task_page_command
from attrib.cli.shared import ModelName
from attrib.core.types import InputError
from attrib.view.terminal import message, own, plain, table
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    import pandas as pd

    from attrib.causal.tasks import Task, TaskResults
    from attrib.models.transformer import Model

app = typer.Typer(no_args_is_help=True, help="Data sets of prompts with right and wrong answers, and the latents that decide.")

GENERATED = ("agreement", "indirect-objects")
NAMED = ("rte", "boolq")

Top = Annotated[int, typer.Option(help="Rows of a table: latents of each sign and dictionary, and samples", min=1)]


app.command("page")(task_page_command)


@app.command()
def run(
    task: Annotated[str, typer.Argument(help="agreement, indirect-objects, rte, boolq, or a file of JSONL")],
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder of the results; one that was begun is gone on with")],
    dictionary: Annotated[
        list[str] | None, typer.Option("--dictionary", "-d", help="Put into the pass: shipped, folder, or release/id; may be repeated")
    ] = None,
    operation: Annotated[
        list[str] | None, typer.Option(help="base, spliced, gradient or ablation; may be repeated. Usually all that are possible")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Of rte and boolq: a file of JSONL, or hf:NAME:CONFIG")] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set of the hub, usually validation")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the questions of rte and boolq as a user's, in the model's chat template")
    ] = False,
    n: Annotated[int | None, typer.Option(help="Of agreement and indirect-objects: how many examples are made, usually 64", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Of these: which ones, usually 0")] = None,
    limit: Annotated[int | None, typer.Option(help="Examples at most", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Examples of a block", min=1)] = 8,
    position: Annotated[str, typer.Option(help="Where latents are looked at: last, all, a number, or a slice as 1:")] = "last",
    errors: Annotated[bool, typer.Option("--errors/--no-errors", help="Add what dictionaries do not decode")] = False,
    budget: Annotated[str, typer.Option(help="Working memory of ablations, as 512MiB or 2GiB")] = "256MiB",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Measure and print what memory goes to")] = False,
    top: Top = 5,
) -> None:
    """Run a task, or go on with one that was stopped, and show what it comes to."""
    import attrib
    from attrib.adapters.given import as_bytes
    from attrib.causal import tasks
    from attrib.cli.bars import counted

    dictionaries = [attrib.load_dictionary(name) for name in dictionary or []]
    operations = operation or (["base", "spliced", "gradient", "ablation"] if dictionaries else ["base"])
    loaded = attrib.load_model(model)
    if dtype is not None or device is not None:
        loaded = loaded.to(dtype=dtype, device=device)
    asked = _task(task, loaded, source=source, split=split, chat=chat, n=n, seed=seed)
    at = int(position) if position.lstrip("-").isdecimal() else position
    print(plain(f"{asked.name} with {loaded.name}: {', '.join(operations)}"))
    with counted("examples") as told:
        results = tasks.run_task(
            loaded, asked, dictionaries, operations=operations, errors=errors, positions=at, batch=batch, limit=limit, out=out,
            budget=as_bytes(budget, "budget"), memory=memory, progress=lambda done: told(done, limit or -1),
        )  # fmt: skip
    if memory:
        _print(tasks.parameter_memory(loaded, dictionaries), "parameters", {"bytes": "{:,.0f}", "parameters": "{:,.0f}"})
    _show(results, top, None, None, "total")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="Folder that `attrib task run` wrote, or of a job of a task, or a merged file")],
    top: Top = 5,
    operation: Annotated[str | None, typer.Option(help="Latents by this operation alone: gradient or ablation")] = None,
    correct: Annotated[bool | None, typer.Option("--correct/--wrong", help="Latents over samples that are right, or wrong, alone")] = None,
    by: Annotated[str, typer.Option(help="Rank latents by total, mean or mean_fired")] = "total",
    csv: Annotated[str | None, typer.Option(help="Print all rows of samples or latents as CSV instead")] = None,
    parity: Annotated[Path | None, typer.Option(help="Write a figure of gradient against ablation to this HTML file instead")] = None,
    effects: Annotated[Path | None, typer.Option(help="Write a figure of each latent's effect to this HTML file instead")] = None,
    per_batch: Annotated[bool, typer.Option("--per-batch", help="In that figure, each block of examples has points of its own")] = False,
) -> None:
    """Show what a run has come to, done or not."""
    from attrib.causal import tasks

    results = tasks.open_results(folder)
    is_done = _is_done(results)
    if csv is not None:
        for number, rows in enumerate(results.blocks(csv)):
            print(rows.to_csv(index=False, header=not number), end="")
        return
    if per_batch and effects is None:
        raise InputError("--per-batch: has no effect without --effects FILE; leave it out.")
    if parity is not None:
        _write_figure(tasks.parity_figure(results.latents), parity)
    if effects is not None:
        batch = results.record["batch"] if per_batch else None
        _write_figure(tasks.effects_figure(results.latents, operation or "ablation", batch=batch), effects)
    if parity is None and effects is None:
        _show(results, top, operation, correct, by, is_done)


def _write_figure(figure: Any, file: Path) -> None:
    from attrib.core.plotted import write_figure

    write_figure(file, figure, overwrite=True, argument="figure")
    print(plain(f"{file}: written"))


def _task(name: str, model: "Model", *, source: str | None, split: str | None, chat: bool, n: int | None, seed: int | None) -> "Task":
    from attrib.causal import tasks

    made, read = {"n": n, "seed": seed}, {"source": source, "split": split, "chat": chat or None}
    useless = made if name in NAMED else read if name in GENERATED else made | read
    if given := [option for option, value in useless.items() if value is not None]:
        raise InputError(f"--{given[0]}: has no effect on {name}; leave it out.")
    if name in GENERATED:
        return tasks.generated_task(name, model, 64 if n is None else n, seed=seed or 0)
    if name in NAMED:
        return tasks.task_named(name, source, split=split or "validation", chat=chat)
    if not Path(name).is_file():
        raise InputError(f"task: {name!r} is no file; expected {', '.join((*GENERATED, *NAMED))}, or a file of JSONL.")
    return tasks.read_task(name)


# ---------------------------------------------------------------------------------------- tables

_NUMBERS = {"share": "{:.1%}", "probability": "{:.3g}", "peak": "{:,.0f}", "growth": "{:,.0f}", "bytes": "{:,.0f}"}


def _is_done(results: "TaskResults") -> bool:
    """Whether every example is there; of a job its folder says so, and a file alone is all that there is."""
    from attrib.jobs.folder import JOB
    from attrib.jobs.status import status

    if results.is_done is not None or results.folder is None or not (results.folder / JOB).is_file():
        return results.is_done is not False
    return status(results.folder).is_done


def _show(results: "TaskResults", top: int, operation: str | None, correct: bool | None, by: str, is_done: bool = True) -> None:
    from attrib.causal import tasks

    samples, latents = results.samples, results.latents
    if not len(samples):
        raise InputError(f"folder: {results.folder} has no results yet; go on with attrib task run.")
    names = [name for name in dict.fromkeys(latents["operation"]) if latents[latents["operation"] == name]["effect"].notna().any()]
    if operation is not None and operation not in names:
        raise InputError(f"--operation: {operation!r}; expected {' or '.join(names) or 'none, as no effects are there'}.")
    record = results.record
    where = f"{record['task']} with {record['model']['name']}: {samples['example'].nunique():,} examples"
    _print(tasks.correctness(samples), where + ("" if is_done else ", not done yet"))
    there = set(samples["operation"])
    if {"base", "spliced"} <= there:
        both = tasks.base_against_spliced(samples, top=top).drop(columns=["label"])
        _print(both, f"samples, the model's largest difference first, {min(top, len(both))} of them")
    if "spliced" in there and len(latents[latents["operation"] == "spliced"]):
        summary = tasks.activation_summary(latents, samples).groupby("dictionary").head(top)
        _print(summary, "latents by how often they fire")
    for name in [operation] if operation else names:
        table = tasks.effects_of_latents(latents, samples, name, correct=correct)
        of = "" if correct is None else ", over samples that are right" if correct else ", over samples that are wrong"
        _print(tasks.top_latents(table, top, by=by), f"effects of latents by {name}, by {by}{of}")
    if not operation and {"ablation", "gradient"} <= {*names}:
        r = tasks.one_against_another(latents).attrs["r"]
        print(own("gradient against ablation, r: ") + plain(", ".join(f"{value:.3f} of {name}" for name, value in r.items())))
    if results.memory is not None:
        _print(results.memory, "the most memory by phase, in bytes")


def _print(frame: "pd.DataFrame", title: str, formats: dict[str, str] | None = None) -> None:
    """A frame as a table: text on the left, numbers on the right. Of one dictionary alone the title tells the name, which is long."""
    if "dictionary" in frame.columns and frame["dictionary"].nunique() == 1:
        title += f"\nof {frame['dictionary'].iloc[0]}"
        frame = frame.drop(columns=["dictionary"])
    formats = _NUMBERS | (formats or {})
    texts = [name for name in frame.columns if frame[name].dtype == object or str(frame[name].dtype) in ("bool", "string")]
    numbers = [name for name in frame.columns if name not in texts]
    cells = {name: [_cell(value, formats.get(name)) for value in frame[name]] for name in (*texts, *numbers)}
    rows = [[cells[name][row] for name in (*texts, *numbers)] for row in range(len(frame))]
    print_table(table(message(title), texts, [name.replace("_", "\n") for name in numbers], rows))


def _cell(value: Any, form: str | None) -> str:
    import pandas as pd

    if isinstance(value, str):
        return plain(value)
    if pd.isna(value):
        return "-"
    if form is not None:
        return form.format(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
