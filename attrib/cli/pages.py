"""`attrib latents page` and `attrib task page`: latents as one page of HTML that opens without a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.cli.shared import labels_beside, latents_of
from attrib.cli.viewing import LabelFiles, Links, labels_from, links_from
from attrib.core.types import InputError
from attrib.view.terminal import plain

if TYPE_CHECKING:
    from attrib.latents.labels import Labels
    from attrib.view.pages import Page

Html = Annotated[Path, typer.Option("--html", help="File to write")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="For logits, tokens read, heads and relatives; as in other commands")]
Survey = Annotated[Path | None, typer.Option(help="Survey file, for densities, examples and bands, also of the others")]
Others = Annotated[list[str] | None, typer.Option("--other", help="Dictionary to look for parents and children in; may be repeated")]
Tokens = Annotated[int, typer.Option("-k", help="Tokens at either end, and relatives of each other dictionary", min=1)]
Examples = Annotated[int, typer.Option(help="Largest scores to show of each latent", min=0)]
Bands = Annotated[int, typer.Option(help="Quantiles into which scores are divided", min=0)]
PerBand = Annotated[int, typer.Option(help="Sampled examples of each at most", min=0)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file")]


def page_command(
    latents: Annotated[str, typer.Argument(help="Which latents: numbers with commas, or FIRST:LAST")],
    html: Html = Path("latents.html"),
    dictionary: Annotated[
        str | None, typer.Option("--dictionary", "-d", help="Shipped, folder, or release/id; left out, the survey's only one, by its name")
    ] = None,
    model: Model = None,
    survey: Survey = None,
    other: Others = None,
    labels: LabelFiles = None,
    neuronpedia: Links = None,
    k: Tokens = 10,
    examples: Examples = 10,
    bands: Bands = 5,
    per_band: PerBand = 4,
    title: Annotated[str, typer.Option(help="Of the page")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Write a page of latents: density, examples by band, logits, tokens read, heads, parents and children; what is given decides which."""
    from attrib.core.files import check_free
    from attrib.view import dashboard
    from attrib.view.latent_pages.gathered import as_survey

    check_free("--html", html, overwrite=overwrite)
    if dictionary is None and survey is None:
        raise InputError("--dictionary: missing, and no survey that names one; give --dictionary or --survey.")
    if other and model is None:
        raise InputError("--other: has no effect without --model; give the model, or leave it out.")
    chosen, links, surveyed = latents_of(latents), links_from(neuronpedia), as_survey(survey)
    of: Any = dictionary
    if dictionary is None and model is not None and surveyed is not None:
        of = surveyed.of().asked.dictionary  # type: ignore[union-attr]  # a file holds a whole survey
    made = dashboard(
        of, chosen, model=model, survey=surveyed, others=other or (), labels=_labels(labels, survey), links=links, title=title, k=k,
        examples=examples, bands=bands, per_band=per_band,
    )  # fmt: skip
    _write(made, html, overwrite)


def task_page_command(
    folder: Annotated[Path, typer.Argument(help="Folder that `attrib task run` wrote, or of a job of a task, or a merged file")],
    html: Html = Path("latents.html"),
    operation: Annotated[str, typer.Option(help="Latents by this operation: gradient or ablation")] = "ablation",
    top: Annotated[int, typer.Option(help="Latents of each sign and dictionary", min=1)] = 5,
    by: Annotated[str, typer.Option(help="Rank latents by total, mean or mean_fired")] = "total",
    correct: Annotated[bool | None, typer.Option("--correct/--wrong", help="Over samples that are right, or wrong, alone")] = None,
    dictionary: Annotated[list[str] | None, typer.Option("--dictionary", "-d", help="Dictionary of the run; may be repeated")] = None,
    model: Model = None,
    survey: Survey = None,
    other: Others = None,
    labels: LabelFiles = None,
    neuronpedia: Links = None,
    k: Tokens = 10,
    examples: Examples = 10,
    bands: Bands = 5,
    per_band: PerBand = 4,
    overwrite: Overwrite = False,
) -> None:
    """Write a page of the latents that raise and lower a task's answers most, with what else is known of them."""
    from attrib.causal import tasks
    from attrib.core.files import check_free
    from attrib.view import task_dashboard

    check_free("--html", html, overwrite=overwrite)
    for name, given in (("--dictionary", dictionary), ("--other", other)):
        if given and model is None:
            raise InputError(f"{name}: has no effect without --model; give the model, or leave it out.")
    if model is not None and not dictionary:
        raise InputError("--model: has no effect without the run's dictionaries; give --dictionary, or leave it out.")
    made = task_dashboard(
        tasks.open_results(folder), dictionary or (), operation=operation, top=top, by=by, correct=correct, model=model, survey=survey,
        others=other or (), labels=_labels(labels, survey), links=links_from(neuronpedia), k=k, examples=examples, bands=bands,
        per_band=per_band,
    )  # fmt: skip
    _write(made, html, overwrite)


def _labels(given: list[Path] | None, survey: Path | None) -> "Labels":
    """The labels that were given, or lie beside the survey."""
    beside = None if survey is None else labels_beside(survey)
    return labels_from(given or ([beside] if beside is not None and beside.is_file() else []))


def _write(made: "Page", html: Path, overwrite: bool) -> None:
    made.save(html, overwrite=overwrite)
    print(plain(f"{html}: {html.stat().st_size / 1e6:.1f} MB"))
