"""`attrib train`: dictionaries from text, with sae-lens' trainer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from attrib.cli.evaluating import print_evaluation
from attrib.core.types import InputError
from attrib.view.terminal import plain

if TYPE_CHECKING:
    from attrib.training.curves import Row

Each = "once for all sites, or once for each"


def train(
    text: Annotated[list[str] | None, typer.Argument(help="Files and folders of text, HTML, JSONL or Parquet; hf:NAME")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the dictionaries, their card and their curves")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with everything but folders and device, in place of the options")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of activations and checkpoints; left out, OUT.work")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="smollm2-135m, a local folder or a TransformerLens name")] = None,
    site: Annotated[list[str] | None, typer.Option(help="Where a dictionary reads, as blocks.7.hook_resid_pre; may be repeated")] = None,
    writes: Annotated[list[str] | None, typer.Option(help="Where a transcoder writes; once for each site")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="standard, gated, jumprelu, topk, abstopk, batchtopk or matryoshka_batchtopk")
    ] = None,
    width: Annotated[list[int] | None, typer.Option(help=f"Latents: {Each}")] = None,
    k: Annotated[list[float] | None, typer.Option(help=f"Active latents of a token: {Each}")] = None,
    l1_coefficient: Annotated[list[float] | None, typer.Option(help=f"Of standard and gated: {Each}")] = None,
    l1_warm_up_steps: Annotated[int | None, typer.Option(help="Steps in which it rises")] = None,
    l0_coefficient: Annotated[list[float] | None, typer.Option(help=f"Of jumprelu: {Each}")] = None,
    l0_warm_up_steps: Annotated[int | None, typer.Option(help="Steps in which it rises")] = None,
    jumprelu_bandwidth: Annotated[float | None, typer.Option(help="Of jumprelu's derivatives")] = None,
    skip: Annotated[bool | None, typer.Option("--skip", help="Transcoders with a linear map beside their latents")] = None,
    samples: Annotated[int | None, typer.Option(help="Training samples of each dictionary; left out, 2 000 000")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples of a step; left out, 2048")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; left out, 0.001")] = None,
    lr_warm_up_steps: Annotated[int | None, typer.Option(help="Steps in which it rises; left out, a quarter, 100 at most")] = None,
    lr_decay_steps: Annotated[int | None, typer.Option(help="Steps at the end in which it falls to 0; left out, a fifth")] = None,
    lr_scheduler: Annotated[str | None, typer.Option(help="constant or cosine")] = None,
    bias: Annotated[str | None, typer.Option(help="Where b_dec begins: zeros, mean or geometric-median")] = None,
    max_norm: Annotated[float | None, typer.Option(help="Leave out tokens with a norm of so many medians")] = None,
    dead_feature_window: Annotated[int | None, typer.Option(help="Steps without activity until a latent is dead; left out, 200")] = None,
    resample_every: Annotated[int | None, typer.Option(help="Of standard and gated: steps between resamplings of dead latents")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens in all, shared evenly among the texts; left out, all")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of a context; left out, 128")] = None,
    prepend_bos: Annotated[bool | None, typer.Option("--prepend-bos", help="Begin each context with the token that begins a text")] = None,
    measured: Annotated[int | None, typer.Option(help="Held-out tokens to measure on; left out, 12 000")] = None,
    model_dtype: Annotated[str | None, typer.Option(help="What activations are computed in: float32 or bfloat16")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the dictionary in training: float32, float64 or bfloat16")] = None,
    autocast: Annotated[bool | None, typer.Option("--autocast", help="Products in bfloat16")] = None,
    saved_as: Annotated[str | None, typer.Option(help="Dtype of the weights on disk; left out, that of the training")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and of the order of samples")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N")] = None,
) -> None:
    """Train dictionaries on text, measure them on text that was held out, and write a card and curves. What was ended goes on."""
    of_sites = {"reads": site, "writes": writes, "width": width, "k": k, "l1_coefficient": l1_coefficient, "l0_coefficient": l0_coefficient}
    of_all: dict[str, Any] = {
        "texts": text, "model": model, "architecture": architecture, "l1_warm_up_steps": l1_warm_up_steps,
        "l0_warm_up_steps": l0_warm_up_steps, "jumprelu_bandwidth": jumprelu_bandwidth, "skip": skip, "samples": samples, "batch": batch,
        "lr": lr, "lr_warm_up_steps": lr_warm_up_steps, "lr_decay_steps": lr_decay_steps, "lr_scheduler": lr_scheduler, "bias": bias,
        "max_norm": max_norm, "dead_feature_window": dead_feature_window, "resample_every": resample_every, "tokens": tokens,
        "context": context, "prepend_bos": prepend_bos, "measured": measured, "model_dtype": model_dtype, "dtype": dtype,
        "autocast": autocast, "saved_as": saved_as, "seed": seed,
    }  # fmt: skip
    given = {key: value for key, value in of_all.items() if value not in (None, [])}
    by_site = {key: values for key, values in of_sites.items() if values}
    if out is None:
        raise InputError("--out: missing; expected the folder for the dictionaries.")
    table = _table(given, by_site) if config is None else _of_file(config, given | by_site)
    if device is not None:
        table["device"] = device

    from attrib.training.several import train_several, training_file

    described = training_file(table)
    with Bars() as bars:
        found, _ = train_several(described, out, work=work, watch=bars.watch())
    print_evaluation(found)
    page = out / "curves.html"
    without = "" if page.exists() else f"; no {page.name} without plotly: pip install 'attrib[view]'"
    print(plain(f"{out}: card in README.md, curves in {page.name if page.exists() else 'curves.jsonl of each'}{without}"))


def _of_file(config: Path, given: dict[str, Any]) -> dict[str, Any]:
    from attrib.training.several import read_training_file

    if beside := [_option(key) for key in given]:
        raise InputError(f"{beside[0]}: given beside --config, which says all of that; write it there, or leave --config out.")
    return read_training_file(config)


def _table(given: dict[str, Any], by_site: dict[str, list[Any]]) -> dict[str, Any]:
    """The keys of a file that says what the options say."""
    needed = {"texts": given, "model": given, "reads": by_site, "architecture": given, "width": by_site}
    if missing := [_option(key) for key, of in needed.items() if key not in of]:
        raise InputError(
            f"{missing[0]}: missing. For example: attrib train text.txt -m smollm2-135m --site blocks.7.hook_resid_pre "
            "--architecture topk --width 2304 --k 32 --out dictionaries"
        )
    sites = by_site["reads"]
    for key, values in by_site.items():
        if len(values) not in ((len(sites),) if key == "writes" else (1, len(sites))):
            expected = "one for each" if key == "writes" else "one, or one for each"
            raise InputError(f"{_option(key)}: {len(values)} for {len(sites)} sites; expected {expected}.")
    tables = [
        {key: (values * len(sites))[number] if len(values) == 1 else values[number] for key, values in by_site.items()}
        for number in range(len(sites))
    ]
    return given | {"dictionary": tables}


def _option(key: str) -> str:
    """How a key is typed."""
    return {"texts": "TEXT", "reads": "--site"}.get(key, f"--{key.replace('_', '-')}")


class Bars:
    """A bar for the activations, one for each dictionary with the figures of its last step, one for the measurement."""

    def __enter__(self) -> "Bars":
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, doing: str, done: int, total: int, figures: str = "") -> None:
        """What was done of one thing."""
        if doing not in self._tasks:
            self._tasks[doing] = self._bar.add_task(plain(doing), total=total, figures="")
        self._bar.update(self._tasks[doing], completed=done, total=total, figures=figures)

    def watch(self) -> Any:
        """What is told of the training, and shows it."""
        from attrib.training.several import Watch

        bars = self

        class Shown(Watch):
            def storing(self, done: int, total: int) -> None:
                bars.show("activations", done, total)

            def training(self, name: str, row: "Row", steps: int) -> None:
                bars.show(f"training {name}", int(row["step"]), steps, figures_of(row))

            def measuring(self, done: int, total: int) -> None:
                bars.show("measuring", done, total)

        return Shown()


def figures_of(row: "Row") -> str:
    """The figures of a step in one line."""
    return f"loss {row['loss']:.4g}  L0 {row['l0']:.1f}  explained {row['explained_variance']:.3f}  dead {row['dead']:,}"
