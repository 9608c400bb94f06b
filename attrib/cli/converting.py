"""`attrib convert`: a dictionary of any format that attrib reads, as a folder of sae-lens."""

from pathlib import Path
from typing import Annotated

import typer

from attrib.view.terminal import plain


def convert(
    dictionary: Annotated[str, typer.Argument(help="A .pt, .pkl or .pkl.gz of transcoder_circuits, or what load_dictionary takes else")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, with cfg.json and sae_weights.safetensors")],
    site: Annotated[str | None, typer.Option(help="Where it reads, of files that do not say")] = None,
    writes: Annotated[str | None, typer.Option(help="Where it writes, the same")] = None,
    layer: Annotated[int | None, typer.Option(help="Layer of a circuit-tracer folder", min=0)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dictionary that stands there")] = False,
) -> None:
    """Write a dictionary as a folder of sae-lens. Nothing in its file is run, pickles included."""
    import attrib
    from attrib.adapters import save_dictionary

    read = attrib.load_dictionary(dictionary, site=site, writes=writes, layer=layer)
    folder = save_dictionary(read, out, overwrite=overwrite)
    where = " and ".join(map(str, read.writes))
    d_in, d_sae = read.params.W_enc.shape
    print(plain(f"{folder}: {d_sae:,} latents, {read.site} [{d_in}] to {where}, {read.config.kind} as {read.config.rule}"))
