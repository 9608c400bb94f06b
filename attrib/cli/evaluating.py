"""`attrib evaluate`: what dictionaries are worth on a text, in one table."""

import json as as_json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.cli.bars import counted
from attrib.cli.shared import ModelName
from attrib.core.types import InputError, Site
from attrib.view.terminal import own, plain, table
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    from attrib.latents import Evaluation, Quality

FIGURES = {
    "latents": ("latents", "{:,}"),
    "explained_variance": ("explained variance", "{:.3f}"),
    "mse": ("squared error", "{:.4g}"),
    "l2_ratio": ("length, of the true one", "{:.3f}"),
    "cosine": ("cosine", "{:.3f}"),
    "l0": ("L0", "{:.1f}"),
    "l1": ("L1", "{:.4g}"),
    "dead": ("dead latents", "{:.1%}"),
    "log10_density": ("log10 density, median", "{:.2f}"),
    "ce_model": ("CE of the model", "{:.3f}"),
    "ce_spliced": ("CE spliced", "{:.3f}"),
    "ce_zero": ("CE zeroed", "{:.3f}"),
    "ce_mean": ("CE of the mean", "{:.3f}"),
    "recovered": ("recovered, of zeroed", "{:.3f}"),
    "recovered_of_mean": ("recovered, of the mean", "{:.3f}"),
    "kl_spliced": ("KL spliced", "{:.3f}"),
    "kl_zero": ("KL zeroed", "{:.3f}"),
    "kl_mean": ("KL of the mean", "{:.3f}"),
    "pattern_kl_spliced_next": ("pattern KL spliced", "{:.3f}"),
    "pattern_kl_zero_next": ("pattern KL zeroed", "{:.3f}"),
    "pattern_kl_spliced": ("the same, all layers", "{:.3f}"),
    "pattern_kl_zero": ("zeroed, all layers", "{:.3f}"),
    "tokens": ("tokens", "{:,}"),
    "left_out": ("left out", "{:,}"),
}
"""What the table says of each figure, and how."""


def evaluate(
    dictionary: Annotated[
        list[str] | None, typer.Argument(help="Dictionaries: shipped, folder, or release/id; or a folder of several")
    ] = None,
    model: ModelName = "",
    prompts: Annotated[Path | None, typer.Option("--prompts", help="File of text, a prompt a line, or .jsonl")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt itself; may be repeated")] = None,
    context: Annotated[int | None, typer.Option(help="Take all text in a row, in contexts of so many tokens", min=2)] = None,
    limit: Annotated[int | None, typer.Option(help="Prompts, or contexts, at most", min=1)] = None,
    together: Annotated[bool, typer.Option("--together", help="Put all dictionaries in together, as one")] = False,
    special_tokens: Annotated[bool, typer.Option(help="Whether special tokens count")] = True,
    first_position: Annotated[int, typer.Option(help="Tokens before it do not count", min=0)] = 0,
    max_norm: Annotated[float | None, typer.Option(help="Tokens with a norm of so many medians do not count")] = None,
    losses: Annotated[bool, typer.Option(help="Measure cross-entropies and divergences, which takes most of the time")] = True,
    patterns: Annotated[bool, typer.Option(help="Compare attention patterns, too")] = True,
    heads: Annotated[bool, typer.Option("--heads", help="Also a table of the patterns' divergence by layer and head")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="One JSON object for each dictionary, a line each")] = False,
) -> None:
    """Explained variance, sparsity, and what the model loses with dictionaries in it, in one table."""
    import attrib
    from attrib.runs.run import read_prompts

    given = {"DICTIONARY": dictionary, "--model": model, "--prompts": prompts or prompt}
    if missing := [name for name, value in given.items() if not value]:
        raise InputError(
            f"{missing[0]}: missing. For example: attrib evaluate smollm2-135m/blocks.9.hook_resid_pre -m smollm2-135m --prompts text.txt"
        )
    if prompts is not None and prompt:
        raise InputError("--prompt: no effect beside --prompts; give one of them.")
    if heads and not (losses and patterns):
        raise InputError("--heads: no effect with --no-losses or --no-patterns; leave it out.")
    loaded = attrib.load_model(model, device=device)
    loaded = loaded if dtype is None else loaded.to(dtype=dtype)
    groups = [group for name in dictionary or [] for group in _groups(name)]
    if together:
        groups = [[one for group in groups for one in (group if isinstance(group, list) else [group])]]
    texts: list[Any] = list(prompt or [])
    if prompts is not None:
        texts = read_prompts(prompts) if context is None or not _is_text(prompts) else [_whole(prompts)]
    asked = texts if context is None else _contexts(loaded, texts, context)
    with counted("evaluating") as progress:
        found = attrib.latents.evaluate(
            loaded, groups, asked[:limit], special_tokens=special_tokens, first_position=first_position, max_norm=max_norm,
            losses=losses, patterns=patterns, progress=progress,
        )  # fmt: skip
    if json:
        for row in found.rows:
            print(as_json.dumps(_record(row)))
        return
    print_evaluation(found)
    for row in found.rows if heads else ():
        _print_heads(row)


def _groups(name: str) -> list[Any]:
    """What a name stands for: a dictionary; or of a folder all that are in it, the layers of a cross-layer transcoder together."""
    import attrib
    from attrib.adapters import load_dictionaries

    path = Path(name)
    if path.is_dir() and not (path / "cfg.json").is_file():
        try:
            inside = load_dictionaries(path)
        except InputError:
            return [attrib.load_dictionary(name)]
        return [inside] if any(len(one.writes) > 1 for one in inside) else inside
    return [attrib.load_dictionary(name)]


def _is_text(file: Path) -> bool:
    """Whether a file is text as it stands, and no rows of prompts."""
    from attrib.runs.prompts import form_of

    return file.is_file() and file.suffix != ".gz" and form_of(str(file), None) == "text"


def _whole(file: Path) -> str:
    """All of a file's text, empty lines too. Raises InputError where it is none."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"--prompts: {file} is no text in UTF-8 ({error.reason} at byte {error.start}).") from error
    if not text.strip():
        raise InputError(f"--prompts: {file} is empty; expected text.")
    return text


def _contexts(model: Any, texts: list[Any], context: int) -> list[Any]:
    """All tokens in a row, in pieces of one length; what is left at the end is left out, unless it is all."""
    import torch

    ids: list[int] = []
    for number, text in enumerate(texts):
        if isinstance(text, list):
            raise InputError(f"--context: prompt {number} is a chat, which cannot be cut; leave --context out.")
        if isinstance(text, str) and model.tokenizer is None:
            raise InputError(f"--context: prompt {number} is text, and {model.name} has no tokenizer; give token ids.")
        ids += model.tokenizer.encode(text + "\n") if isinstance(text, str) else text.tolist()
    rows = torch.tensor(ids).split(context)
    return [row for row in rows if len(row) == context] or list(rows)


def _record(row: "Quality") -> dict[str, Any]:
    densities = dict(zip(("5%", "50%", "95%"), row.log10_density(), strict=True))
    patterns = {way: values.tolist() for way, values in row.pattern_kl.items()}
    sites = {"reads": [str(d.site) for d in row.dictionaries], "writes": [[str(site) for site in d.writes] for d in row.dictionaries]}
    figures = {name: None if value != value else value for name, value in row.figures().items()}  # JSON has no NaN
    more = {"log10_densities": densities, "pattern_kl_layers": list(row.pattern_layers), "pattern_kl": patterns}
    return {"dictionary": row.name, **sites, **figures, **more}


def print_evaluation(found: "Evaluation") -> None:
    """The figures of all rows, a column each."""
    columns = [row.figures() for row in found.rows]
    names = [_short(row) for row in found.rows]
    heads = [name if names.count(name) == 1 else f"{name}\n{number}" for number, name in enumerate(names)]
    rows = [
        [label, *(_cell(column.get(figure), form) for column in columns)]
        for figure, (label, form) in FIGURES.items()
        if any(column.get(figure) is not None for column in columns)
    ]
    title = "\n".join(plain(f"{' '.join(head.split())}: {row.name}") for head, row in zip(heads, found.rows, strict=True))
    print_table(table(f"{title}\n{found.prompts:,} prompts; CE and KL in nats", ("",), list(map(_lines, heads)), rows))


def _lines(text: str) -> str:
    """Text of several lines, each as the output can show it."""
    return "\n".join(map(plain, text.split("\n")))


def _short(row: "Quality") -> str:
    """A column's head: layers and kind of site."""
    layers = sorted({d.site.layer for d in row.dictionaries})
    kinds = dict.fromkeys(_kind(d.site, d.writes) for d in row.dictionaries)
    return "\n".join([str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}", *kinds])


def _kind(reads: Site, writes: tuple[Site, ...]) -> str:
    return reads.kind if writes == (reads,) else "mlp" if (reads.kind, writes[0].kind) == ("mlp_in", "mlp_out") else writes[0].kind


def _cell(value: int | float | None, form: str) -> str:
    return "-" if value is None or value != value else own(form.format(value))


def _print_heads(row: "Quality") -> None:
    """Divergence of attention patterns with what is spliced in, by layer and head."""
    spliced = row.pattern_kl["spliced"]
    rows = [
        [str(layer), *(f"{value:.3f}" for value in of_heads.tolist())] for layer, of_heads in zip(row.pattern_layers, spliced, strict=True)
    ]
    names = [str(head) for head in range(spliced.shape[1])]
    print_table(table(plain(f"{row.name}: KL of attention patterns, spliced"), ("layer",), names, rows))
