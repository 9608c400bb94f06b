"""`attrib export`: shards as Parquet, Zarr or AnnData."""

from pathlib import Path
from typing import Annotated

import typer

from attrib.core.types import InputError, natural
from attrib.view.terminal import plain

FORMATS = ("parquet", "zarr", "anndata")


def export(
    stored: Annotated[Path, typer.Argument(help="HDF5 file that attrib wrote, or a folder of them, such as a job's")],
    out: Annotated[Path, typer.Argument(help="Folder to make, with one file or store for each block")],
    to: Annotated[str, typer.Option(help="parquet, zarr or anndata")],
    kind: Annotated[str | None, typer.Option(help="Only blocks of this kind")] = None,
    source: Annotated[str | None, typer.Option(help="Only blocks from this site, as blocks.6.hook_resid_pre")] = None,
    target: Annotated[str | None, typer.Option(help="Only blocks to this site")] = None,
    prompt: Annotated[list[int] | None, typer.Option(help="Only the prompt of this number in the data set; may be repeated")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export")] = False,
) -> None:
    """Write shards as files of other programs: Parquet, Zarr or AnnData."""
    from attrib.export import to_anndata, to_parquet, to_zarr

    if to not in FORMATS:
        raise InputError(f"to: {to!r}; expected {', '.join(FORMATS)}.")
    write = {"parquet": to_parquet, "zarr": to_zarr, "anndata": to_anndata}[to]
    folder = write(stored, out, kind=kind, source=source, target=target, prompts=prompt or None, overwrite=overwrite)
    for file in sorted(folder.glob("[!_]*"), key=natural):
        size = sum(part.stat().st_size for part in [file, *file.rglob("*")] if part.is_file())
        print(plain(f"{file}: {size / 1e6:.1f} MB"))
