"""`attrib latents pca`: in which directions what some latents write together varies most, and where each place lies in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.cli.bars import counted
from attrib.cli.shared import Device, ModelName, latents_of
from attrib.core.types import InputError
from attrib.view.terminal import facts, plain, table
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    from attrib.latents import Components
    from attrib.models.transformer import Model

FORMS = (".csv", ".parquet")


def pca_command(
    latents: Annotated[str, typer.Argument(help="Which latents: numbers with commas, or FIRST:LAST")],
    model: ModelName,
    dictionary: Annotated[str, typer.Option("--dictionary", "-d", help="Shipped, folder, or release/id")],
    prompts: Annotated[Path, typer.Option(help="File of prompts: text, one a line, .jsonl or .parquet")],
    components: Annotated[int, typer.Option(help="How many components, at most one for each latent", min=1)] = 3,
    length: Annotated[int | None, typer.Option(help="Tokens after which a prompt is cut off", min=1)] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Token whose places do not count; may be repeated")] = None,
    skip: Annotated[int, typer.Option(help="First positions of each prompt that do not count", min=0)] = 0,
    context: Annotated[int, typer.Option(help="Tokens of text to keep before each place", min=0)] = 10,
    top: Annotated[int, typer.Option("--top", help="Places to show at either end of each component", min=1)] = 4,
    out: Annotated[Path | None, typer.Option(help="Write all places to this file, .csv or .parquet")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace it")] = False,
    device: Device = "cpu",
) -> None:
    """The principal components of what some latents write together, over the places at which any of them is active."""
    from attrib.adapters.given import as_dictionary, as_model
    from attrib.core.devices import check_device
    from attrib.core.files import check_free
    from attrib.latents import pca

    if out is not None:
        if out.suffix not in FORMS:
            raise InputError(f"out: {out} ends in {out.suffix!r}; expected {' or '.join(FORMS)}.")
        check_free("out", out, overwrite=overwrite)
    chosen, where = latents_of(latents), check_device(device)
    loaded, d = as_model(model).to(device=where), as_dictionary(dictionary).to(device=where)
    with counted("reading prompts") as told:
        given = _ids(loaded, prompts, length, told)
        found = pca(loaded, d, chosen, given, components=components, ignore=ignore or None, skip=skip, context=context)
    _print(d.name, found, top)
    if out is not None:
        _write(out, found)
        print(plain(f"{out}: {len(found.coordinates):,} places"))


def _ids(model: "Model", path: Path, length: int | None, told: Any) -> Iterator[Any]:
    """The prompts of a file as token ids, one after another. Raises InputError for what is none, naming its line."""
    from attrib.models.tokens import to_ids
    from attrib.runs.prompts import read

    for number, found in enumerate(read(path)):
        if found.prompt is None:
            raise InputError(f"prompts: {found.where} {found.fault}. Remove it, or write a prompt there.")
        yield to_ids(model, number, found.prompt)[:length]
        told(number + 1, -1)


def _print(name: str, found: "Components", top: int) -> None:
    shares, coordinates = found.share.tolist(), found.coordinates
    latents = ", ".join(map(str, found.latents[:16].tolist())) + (", ..." if len(found.latents) > 16 else "")
    print_table(facts({"dictionary": plain(name), "latents": latents, "places": f"{len(coordinates):,}"}))
    so_far = [sum(shares[: number + 1]) for number in range(len(shares))]
    rows = [(f"pc{number}", f"{share:.1%}", f"{total:.1%}") for number, (share, total) in enumerate(zip(shares, so_far, strict=True), 1)]
    print_table(table("explained variance", ("component",), ("share", "together"), rows))
    for number in range(len(shares)):
        order = coordinates[:, number].argsort(descending=True, stable=True).tolist()
        ends = order if len(order) <= 2 * top else [*order[:top], *order[-top:]]
        shown = [_place(found, at) for at in ends]
        title = f"the places at either end of pc{number + 1}"
        print_table(table(title, ("context",), ("at", *(f"pc{one + 1}" for one in range(len(shares)))), shown))


def _place(found: "Components", at: int) -> list[str]:
    """A place: its token between marks behind what stands before it, its prompt and position, and its coordinates."""
    context = f"{found.contexts[at].removesuffix(found.strings[at])}<<{found.strings[at]}>>"
    coordinates = [f"{value:.3g}" for value in found.coordinates[at].tolist()]
    return [plain(context), f"{int(found.prompt[at])}:{int(found.position[at])}", *coordinates]


def _write(out: Path, found: "Components") -> None:
    """All places, a row for each, whole or not at all."""
    from attrib.core.files import whole
    from attrib.core.optional import needed

    frame = found.to_pandas()
    if out.suffix == ".parquet":
        needed("pyarrow", "out", "export")
    with whole(out) as partial:
        frame.to_parquet(partial, index=False) if out.suffix == ".parquet" else frame.to_csv(partial, index=False)
