"""`attrib heads`: which heads, reading which positions, bring latents about, over the prompts of a file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attrib.cli.shared import ModelName
from attrib.core.types import InputError
from attrib.view.terminal import plain, table
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    from attrib.attribution.dfa import HeadAttribution

TOP = 10


def heads(
    model: ModelName,
    target: Annotated[str, typer.Option(help="Dictionary whose latents are brought about: at z, attention's output, the stream or mlp_in")],
    source: Annotated[str | None, typer.Option(help="Dictionary whose latents bring them about; else whole positions do")] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts, one a line, or .jsonl")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt itself, in place of a file; may be repeated")] = None,
    latent: Annotated[list[int] | None, typer.Option(help="Only this latent of the target; may be repeated", min=0)] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Only heads of this layer; may be repeated", min=0)] = None,
    top: Annotated[int, typer.Option(help="Rows of a table", min=1)] = TOP,
    as_json: Annotated[bool, typer.Option("--json", help="All shares that were kept as JSON, one a line")] = False,
) -> None:
    """Print what each attention head brings to latents, and from where: direct feature attribution."""
    from attrib.adapters import load_dictionary, load_model
    from attrib.attribution.dfa import head_attribution
    from attrib.runs.run import read_prompts

    if (prompts is None) == (prompt is None):
        raise InputError("--prompts, --prompt: expected one of them, a file or the text itself.")
    if empty := [number for number, text in enumerate(prompt or []) if not text.strip()]:
        raise InputError(f"--prompt: number {empty[0]} is empty; expected text.")
    given = read_prompts(prompts) if prompts is not None else list(prompt or [])
    loaded = load_model(model)
    ends = load_dictionary(target), None if source is None else load_dictionary(source)
    found = head_attribution(loaded, ends[0], given, source=ends[1], latents=latent or None, layers=layer or None)
    if as_json:
        for record in found.to_pandas().to_dict("records"):
            print(json.dumps(record))
        return
    _tables(found, top)


def _tables(found: "HeadAttribution", top: int) -> None:
    """Heads by what they bring on the mean, and the strongest shares."""
    if not len(found):
        print("no target is active in these prompts")
        return
    mean = found.by_head.mean(0)
    order = mean.flatten().abs().argsort(descending=True)[:top].tolist()
    of_heads = [[f"{found.layers[at // mean.shape[1]]}.{at % mean.shape[1]}", f"{float(mean.flatten()[at]):+.4g}"] for at in order]
    targets = f"{len(found):,} active targets in {len(found.prompts):,} prompts; by all heads {float(found.total.mean()):.4g} of"
    title = f"heads (layer.head), on the mean over {targets} {float(found.activation.mean()):.4g}"
    print_table(table(title, ("head",), ("share",), of_heads))
    shares = found.to_pandas().sort_values("share", key=abs, ascending=False).head(top)
    rows = []
    for share in shares.itertuples():
        source = "" if share.source_latent < 0 else f"{share.source_latent} at "
        rows.append([
            str(share.prompt), plain(f"{source}{share.source_token!r} ({share.source_position})"), f"{share.layer}.{share.head}",
            plain(f"{share.target_latent} at {share.target_token!r} ({share.target_position})"), f"{share.target_activation:.3g}",
            f"{share.share:+.4g}",
        ])  # fmt: skip
    print_table(table("the strongest shares", ("prompt", "source", "head", "target"), ("activation", "share"), rows))
