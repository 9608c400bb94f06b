"""`attrib stats`: build statistics of a corpus, merge them, and ask for the strongest parents and children of a latent."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.core.types import InputError, natural
from attrib.view.sparks import in_cells
from attrib.view.terminal import own, plain, so_many, table
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    from attrib.stats import BlockStatistics, Statistics

app = typer.Typer(no_args_is_help=True, help="Aggregates per pair of latents over a corpus, within a memory bound.")

File = Annotated[Path, typer.Argument(help="Statistics file")]
Latent = Annotated[int, typer.Argument(help="Number of the latent; vocabulary id of a token or logit; -1 for a difference or metric")]
BlockName = Annotated[str | None, typer.Option(help="A part of the block's name that no other block has")]
Top = Annotated[int, typer.Option(help="Pairs in the table", min=1)]
By = Annotated[str, typer.Option(help="l1, sum, mean, max or count")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output")]
DRAWN = 60
"""Pairs that have a bar above the table, at most: the first, which are the largest."""
# so that the latent -1 is no option
_LATENTS = {"ignore_unknown_options": True}


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Statistics file to write")],
    shards: Annotated[list[Path], typer.Argument(help="Shards, or folders of them")],
    memory: Annotated[str, typer.Option(help="Bound for each block, as 512MiB or 4GiB; about 2.7 million pairs a GiB are exact")] = "1GiB",
    overwrite: Overwrite = False,
) -> None:
    """Go through shards and write the statistics of all their blocks."""
    from attrib import stats

    _check_out(out, shards, overwrite)
    _write(out, stats.of_files(shards, memory=_bytes(memory)), overwrite)


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="Statistics file to write")],
    files: Annotated[list[Path], typer.Argument(help="Statistics files")],
    overwrite: Overwrite = False,
) -> None:
    """Merge statistics files; the order makes no difference."""
    from attrib import stats

    _check_out(out, files, overwrite)
    _write(out, stats.merge(*files), overwrite)


@app.command("top-parents", context_settings=_LATENTS)
def top_parents(file: File, latent: Latent, block: BlockName = None, top: Top = 20, by: By = "l1") -> None:
    """The source latents that move a target latent most."""
    from attrib import stats

    part = _chosen(stats.open(file), block)
    _print_pairs(part, part.top(part.parents(latent), top, by), f"sources of target {latent}", "source", by)


@app.command("top-children", context_settings=_LATENTS)
def top_children(file: File, latent: Latent, block: BlockName = None, top: Top = 20, by: By = "l1") -> None:
    """The target latents that a source latent moves most."""
    from attrib import stats

    part = _chosen(stats.open(file), block)
    _print_pairs(part, part.top(part.children(latent), top, by), f"targets of source {latent}", "target", by)


@app.command()
def show(file: File) -> None:
    """The blocks of a statistics file: their pairs and how these are spread by l1, or the bounds of their sketches."""
    from attrib import stats
    from attrib.stats.decades import decades_of
    from attrib.stats.sketch import Sketch

    opened = stats.open(file)
    parts = sorted(opened.parts, key=lambda part: natural(part.block))
    tables = {part.block: part.held for part in parts if not isinstance(part.held, Sketch) and len(part.held)}
    spread = decades_of(list(tables.values()))
    bars = dict(zip(tables, map(in_cells, spread.pairs.tolist()), strict=True))
    rows = [(plain(part.block), *_bounds(part, opened.max_pairs), bars.get(part.block) or "-") for part in parts]
    title = plain(f"{file}: {so_many(len(parts), 'block')}, made within {opened.memory:,} bytes each")
    if spread.pairs.any():
        title += own(f"\nby l1: how many pairs have it, a bar a decade, from 1e{spread.first} to 1e{spread.last}")
    print_table(table(title, ("block", "form"), ("pairs", "are found", "error of\nl1 and sum", "by l1"), rows))


def _bounds(part: "BlockStatistics", max_pairs: int) -> list[str]:
    """What `show` says of a block."""
    if part.pairs is not None:
        return ["table", f"{part.pairs:,}", "all", "exact"]
    return ["sketch", f"over {max_pairs:,}", own(f"l1 ≥ {part.found_from:.3g}"), f"< {part.error:.3g} (p = {part.confidence:.3f})"]


def _print_pairs(part: "BlockStatistics", columns: dict[str, Any], what: str, end: str, by: str) -> None:
    count = len(columns["l1"])
    if not count and part.is_exact:
        print_table(plain(f"{part.block}: no edges stored for the {what}"))
        return
    names = (end, "count", "prompts", "l1", "sum", "mean", "std", "one\nsign", "maximum", "at\nprompt", "target\nat", "source\nat")
    rows = [list(map(own, _cells({name: column[row] for name, column in columns.items()}, end))) for row in range(count)]
    title = plain(part.block) + f"\n{count} {what}" + ("" if part.is_exact else ", of a sketch")
    sizes = columns["maximum" if by == "max" else by][:DRAWN]
    title += f"\n{by} {in_cells(map(float, sizes))}"
    print_table(table(title, (), names, rows))
    if not part.is_exact:
        print_table(
            own(
                f"Of a sketch. Every pair with l1 ≥ {part.found_from:.3g} is here. l1 is too large, and sum off, by less than "
                f"{part.error:.3g} (p = {part.confidence:.3f}); ± is this or less. ≤ marks an upper bound; a sketch has no mean, std or "
                "sign agreement."
            )
        )


def _cells(pair: dict[str, Any], end: str) -> list[str]:
    most = "" if pair["exact"] else "≤ "
    place = ["-"] * 3 if pair["maximum_is_bound"] else [str(pair[f"maximum_{n}"]) for n in ("prompt", "target_position", "source_position")]
    plus_minus = "" if pair["exact"] else f" ± {pair['error']:.2g}"
    ratios = [f"{pair['mean']:+.4g}", f"{pair['std']:.3g}", f"{pair['sign_agreement']:.1%}"] if pair["exact"] else ["-"] * 3
    maximum = f"≤ {pair['maximum']:.4g}" if pair["maximum_is_bound"] else f"{pair['maximum']:+.4g}"
    counts = [f"{most}{pair[name]:,}" for name in ("count", "prompts")]
    return [str(pair[end]), *counts, f"{most}{pair['l1']:.4g}", f"{pair['sum']:+.4g}{plus_minus}", *ratios, maximum, *place]


def _chosen(statistics: "Statistics", name: str | None) -> "BlockStatistics":
    found = [part for part in statistics.parts if name is None or name in str(part.block)]
    if len(found) != 1:
        count = len(found) or "no"
        fault = f"the file has {count} blocks" if name is None else f"{name!r} is in the names of {count} blocks"
        raise InputError(
            f"block: {fault}; give --block with a part of one name. There are: {'; '.join(map(str, statistics.blocks)) or 'none'}."
        )
    return found[0]


def _bytes(size: str) -> int:
    """'512MiB' or a number of bytes."""
    units = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]iB|)", size.strip())
    if match is None:
        raise InputError(f"memory: {size!r}; expected a number and KiB, MiB or GiB, as 512MiB.")
    return int(float(match[1]) * units[match[2]])


def _check_out(out: Path, given: list[Path], overwrite: bool) -> None:
    """Before hours of work, not after."""
    from attrib.store.layout import STATISTICS
    from attrib.store.writing import check_output

    check_output("out", out, STATISTICS, overwrite=overwrite)
    if out.exists() and any(path.exists() and path.samefile(out) for path in given):
        raise InputError(f"out: {out} is one of the files to read too; expected another. Choose a new name.")
    if folders := [path for path in given if path.is_dir()]:
        from attrib.store.listing import folder_of  # which waits for torch

        if out.suffix == ".h5" and any(folder_of(folder).resolve() == out.parent.resolve() for folder in folders):
            raise InputError(f"out: {out} would lie among the shards and be taken for one; expected a place elsewhere. Choose another.")


def _write(out: Path, statistics: "Statistics", overwrite: bool) -> None:
    from attrib import stats

    stats.save(out, statistics, overwrite=overwrite)
    print(plain(f"{out}: {so_many(len(statistics.parts), 'block')}, {out.stat().st_size / 1e6:.1f} MB"))
    for part in sorted(statistics.parts, key=lambda part: natural(part.block)):
        form, pairs, *_ = _bounds(part, statistics.max_pairs)
        print(plain(f"{part.block}: a {form} of {pairs} pairs"))
