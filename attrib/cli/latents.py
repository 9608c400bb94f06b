"""`attrib latents`: survey the latents of dictionaries over a corpus, and look at what was seen."""

from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.cli.bars import counted
from attrib.cli.components import pca_command
from attrib.cli.pages import page_command
from attrib.cli.shared import ModelName, labels_beside, latents_of
from attrib.core.types import InputError
from attrib.view.sparks import spark
from attrib.view.terminal import facts, own, plain, so_many, table
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    from attrib.latents import Example, Labels, LatentSurvey, Survey

app = typer.Typer(no_args_is_help=True, help="Latents over a corpus: density, examples in context, labels.")

File = Annotated[Path, typer.Argument(help="Survey file")]
Which = Annotated[str | None, typer.Option("--dictionary", help="Name of the dictionary, or a part that no other has")]
LabelFile = Annotated[Path | None, typer.Option("--labels", help="File of labels; left out, SURVEY.labels.jsonl beside the survey")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output")]
Count = Annotated[int, typer.Option("--top", help="Rows of the table", min=1)]

ORDERS = ("density", "maximum", "mean", "prompts")
WHERE = ("token", "context", "label")

app.command("pca")(pca_command)
app.command("page")(page_command)


@app.command("survey")
def survey_command(
    out: Annotated[Path, typer.Argument(help="Survey file to write")],
    model: ModelName,
    dictionary: Annotated[list[str], typer.Option("--dictionary", "-d", help="Shipped, folder, or release/id; may be repeated")],
    prompts: Annotated[Path, typer.Option(help="File of prompts: text, one a line, .jsonl or .parquet")],
    blocks: Annotated[Path | None, typer.Option(help="Folder of the job whose shards are the blocks; left out, OUT.blocks")] = None,
    block: Annotated[int, typer.Option(help="Prompts of a block", min=1)] = 256,
    share: Annotated[str, typer.Option(help="I/N: only every N-th block, from the I-th on; several processes share one folder")] = "0/1",
    length: Annotated[int | None, typer.Option(help="Tokens after which a prompt is cut off", min=1)] = None,
    score: Annotated[str, typer.Option(help="activation, pre_activation, or decoder")] = "activation",
    latents: Annotated[str | None, typer.Option(help="Which latents: numbers with commas, or FIRST:LAST; left out, all")] = None,
    together: Annotated[bool, typer.Option("--together", help="Count which latents are active together")] = False,
    ignore: Annotated[list[str] | None, typer.Option(help="Token whose places do not count; may be repeated")] = None,
    special: Annotated[bool, typer.Option("--special/--no-special", help="Whether places of special tokens count")] = True,
    skip: Annotated[int, typer.Option(help="First positions of each prompt that do not count", min=0)] = 0,
    top: Annotated[int, typer.Option(help="Places of largest score to keep of each latent", min=0)] = 20,
    per_band: Annotated[int, typer.Option(help="Sampled places to keep of each octave of scores", min=0)] = 4,
    before: Annotated[int, typer.Option(help="Tokens of context before each place", min=0)] = 16,
    after: Annotated[int, typer.Option(help="Tokens of context behind each place", min=0)] = 8,
    seed: Annotated[int, typer.Option(help="Of the sample", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N")] = "cpu",
    budget: Annotated[str, typer.Option(help="What the survey may take at its fullest, as 4GiB")] = "4GiB",
    compression: Annotated[str | None, typer.Option(help="gzip, lzf, blosc-lz4 or zstd")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Go through prompts, and write what was seen of every latent. What was ended goes on with the same command."""
    from attrib.adapters.given import as_bytes, as_dictionaries, as_model
    from attrib.core.devices import check_device
    from attrib.jobs.surveys import survey_blocks
    from attrib.latents import save
    from attrib.store.surveys import check_survey_output

    check_survey_output(out, overwrite=overwrite)
    mine = _share(share)
    options: dict[str, Any] = {
        "score": score, "latents": None if latents is None else latents_of(latents), "together": together, "ignore": ignore or None,
        "special": special, "skip": skip, "top": top, "per_band": per_band, "context": (before, after), "seed": seed,
    }  # fmt: skip
    where = check_device(device)
    loaded = as_model(model).to(device=where)
    of = tuple(one.to(device=where) for one in as_dictionaries(dictionary, "dictionary"))
    folder = out.with_name(f"{out.name}.blocks") if blocks is None else blocks
    with counted("surveying") as progress:
        found = survey_blocks(
            folder, loaded, of, prompts, block=block, share=mine, length=length, budget=as_bytes(budget, "budget"),
            progress=progress, **options,
        )  # fmt: skip
    if found.refused:
        print(plain(f"{found.refused} prompts were passed over; the first: {found.reason}"))
    if found.survey is None:
        print(plain(f"{folder}: {found.done} of {found.blocks} blocks are done; the last share to end writes {out}."))
        return
    if not found.survey.parts[0].places:
        raise InputError(f"prompts: no place of {prompts} counts; expected some. Leave out less with --ignore, --no-special and --skip.")
    save(out, found.survey, compression=compression, overwrite=overwrite)
    _print_written(out, found.survey)


@app.command("merge")
def merge_command(
    out: Annotated[Path, typer.Argument(help="Survey file to write")],
    files: Annotated[list[Path], typer.Argument(help="Survey files of different prompts")],
    compression: Annotated[str | None, typer.Option(help="gzip, lzf, blosc-lz4 or zstd")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Merge surveys of different prompts; the order makes no difference."""
    from attrib import latents
    from attrib.store.surveys import check_survey_output

    check_survey_output(out, overwrite=overwrite)
    if out.exists() and any(path.exists() and path.samefile(out) for path in files):
        raise InputError(f"out: {out} is one of the files to read too; expected another. Choose a new name.")
    merged = reduce(latents.merge, map(latents.open, files))  # two at a time are in memory
    latents.save(out, merged, compression=compression, overwrite=overwrite)
    _print_written(out, merged)


@app.command("show")
def show_command(file: File) -> None:
    """What a survey is of, and how dense its latents are."""
    from attrib import latents

    for part in latents.open(file):
        asked, limits = part.asked, part.asked.limits
        left_out = [f"tokens {', '.join(map(str, asked.ignore[:8]))}{', ...' if len(asked.ignore) > 8 else ''}"] if asked.ignore else []
        left_out += [f"the first {asked.skip} positions"] if asked.skip else []
        rows = {
            "dictionary": asked.dictionary, "read at": asked.site, "model": asked.model, "score": asked.score,
            "latents": f"{len(part.latents):,} of {asked.d_sae:,}, {int((part.active == 0).sum()):,} never active",
            "prompts": f"{sum(last - first for first, last in part.prompts):,}",
            "tokens": f"{part.tokens:,}, of which {part.places:,} count",
            "left out": "; ".join(left_out) or "nothing",
            "kept": f"{limits.top} largest, {limits.per_band} of each octave, with {limits.before} + {limits.after} tokens around",
            "together": f"{len(part.chosen):,} latents",
            **{f"its files say {name}": value for name, value in asked.details.items()},
        }  # fmt: skip
        print_table(facts(rows))
        print_table(_densities(part))


@app.command("top")
def top_command(
    file: File,
    dictionary: Which = None,
    by: Annotated[str, typer.Option(help="density, maximum, mean or prompts")] = "density",
    least: Annotated[bool, typer.Option("--least", help="The least first, of those that are active at all")] = False,
    top: Count = 20,
    labels: LabelFile = None,
) -> None:
    """The latents of a survey in order."""
    import numpy as np

    from attrib import latents
    from attrib.view.octaves import octaves_of

    if by not in ORDERS:
        raise InputError(f"by: {by!r}; expected {', '.join(ORDERS[:-1])} or {ORDERS[-1]}.")
    part = latents.open(file).of(dictionary)
    known = _known(file, labels, part)
    values = {"density": part.density, "maximum": part.maximum, "mean": part.mean, "prompts": part.distinct_prompts}
    alive = np.flatnonzero(part.count)
    order = alive[np.argsort(values[by][alive] * (1 if least else -1), kind="stable")][:top]
    scores = octaves_of([part.counts(int(part.latents[at])) for at in order])
    rows = [
        (
            _label(known, part, int(part.latents[at])), str(part.latents[at]), f"{part.density[at]:.3%}", f"{part.distinct_prompts[at]:,}",
            f"{part.mean[at]:.3g}", f"{part.maximum[at]:.3g}", drawn,
        )
        for at, drawn in zip(order, scores.lines(), strict=True)
    ]  # fmt: skip
    title = plain(f"{part.asked.dictionary}: {len(order)} latents by {'least ' if least else ''}{by}")
    title += f"\nscores: a bar an octave, from {scores.low:.3g} to {scores.high:.3g}" if len(order) else ""
    print_table(table(title, ("label",), ("latent", "density", "prompts", "mean", "maximum", "scores"), rows))


@app.command("examples")
def examples_command(
    file: File,
    latent: Annotated[int, typer.Argument(help="Number of the latent")],
    dictionary: Which = None,
    top: Annotated[int, typer.Option(help="Largest examples to show", min=0)] = 10,
    band: Annotated[int, typer.Option(help="Examples to show of each octave", min=0)] = 2,
    width: Annotated[int, typer.Option(help="Tokens to show on either side", min=0)] = 10,
    labels: LabelFile = None,
) -> None:
    """A latent: its numbers, its largest scores in context, and a sample of each octave of scores."""
    from attrib import latents
    from attrib.latents import neuronpedia_link

    part = latents.open(file).of(dictionary)
    known, numbers = _known(file, labels, part), part.to_pandas().set_index("latent")
    shown = part.top(latent, top)
    row = numbers.loc[latent]
    rows: dict[str, Any] = {
        "latent": f"{latent} of {part.asked.dictionary}",
        "density": f"{row['density']:.4%}: {int(row['count']):,} of {part.places:,} places, in {int(row['prompts']):,} prompts",
    }
    if row["count"]:
        bounds = part.percentiles(latent, (5, 50, 95))
        edges, counts = part.histogram(latent)
        rows["scores"] = f"from {edges[0]:.3g} {spark(counts.tolist())} to {edges[-1]:.3g}, four bars an octave"
        rows["mean, deviation, maximum"] = f"{row['mean']:.4g}, {part.std[part.latents == latent][0]:.4g}, {row['maximum']:.4g}"
        rows["percentiles"] = ", ".join(f"{p}%: {low:.3g} to {high:.3g}" for p, (low, high) in zip((5, 50, 95), bounds, strict=True))
    for label in known.of(part.asked.dictionary, latent):
        rows[f"label ({label.source})"] = label.text
    if "neuronpedia_id" in part.asked.details:
        rows["Neuronpedia"] = neuronpedia_link(part, latent)
    print_table(facts(rows))
    if shown:
        print_table(_examples("the largest", shown, width))
    for each in part.bands(latent) if band else ():
        title = f"{each.low:.3g} to {each.high:.3g}: {each.places:,} places, {each.share:.1%}"
        print_table(_examples(title, list(each.examples[:band]), width))


@app.command("search")
def search_command(
    file: File,
    text: Annotated[str, typer.Argument(help="What to look for")],
    where: Annotated[
        str, typer.Option(help="token, at which latents are active; context, around their largest scores; or label")
    ] = "token",
    dictionary: Which = None,
    top: Count = 20,
    labels: LabelFile = None,
) -> None:
    """Latents by the tokens at which they are active, by what stands around these, or by their labels."""
    from attrib import latents

    if where not in WHERE:
        raise InputError(f"where: {where!r}; expected {', '.join(WHERE[:-1])} or {WHERE[-1]}.")
    survey = latents.open(file)
    parts = survey if dictionary is None else survey.of(dictionary)
    known = _known(file, labels, *survey)
    found = latents.search(parts, text, where=where, labels=known, k=top)  # type: ignore[arg-type]
    if not found:
        print_table(plain(f"{file}: no latent whose {where}s hold {text!r}"))
        return
    rows = [
        (plain(one.dictionary), plain(repr(one.text) if where == "token" else one.text.strip()), str(one.latent), f"{one.score:.0%}")
        for one in found
    ]
    print_table(table(plain(f"{len(found)} latents whose {where}s hold {text!r}"), ("dictionary", where), ("latent", "share"), rows))


@app.command("active")
def active_command(
    prompt: Annotated[str, typer.Argument(help="The text")],
    model: ModelName,
    dictionary: Annotated[str, typer.Option("--dictionary", "-d", help="Shipped, folder, or release/id")],
    position: Annotated[int | None, typer.Option(help="Where to look, negative from the end; left out, everywhere")] = None,
    skip: Annotated[int, typer.Option(help="First positions that are left out", min=0)] = 0,
    survey: Annotated[Path | None, typer.Option(help="A survey of the dictionary, for densities, maxima and labels")] = None,
    top: Count = 20,
    labels: LabelFile = None,
) -> None:
    """The latents that a text makes active most, by computing it; beside them what a survey says of each."""
    import numpy as np

    from attrib import latents
    from attrib.adapters.given import as_dictionary

    d = as_dictionary(dictionary)
    part = None if survey is None else _survey_of(survey, d.fingerprint)
    found = latents.strongest(model, d, prompt, position=position, skip=skip, k=top)  # type: ignore[arg-type]
    if not found:
        print_table(plain(f"{d.name}: no latent is active there"))
        return
    known = latents.Labels(()) if survey is None or part is None else _known(survey, labels, part)
    rows = []
    for one in found:
        row = [plain(repr(one.token)), str(one.latent), f"{one.value:.4g}", str(one.position), str(one.places)]
        if part is not None:
            at = np.flatnonzero(part.latents == one.latent)
            told = (f"{part.density[at[0]]:.3%}", f"{part.maximum[at[0]]:.4g}") if len(at) else ("-", "-")
            row = [row[0], _label(known, part, one.latent), *row[1:], *told]
        rows.append(row)
    of_survey = ("density", "maximum") if part else ()
    names = ("token", "label") if part else ("token",)
    print_table(table(plain(f"{d.name}: {len(found)} latents"), names, ("latent", "activation", "at", "places", *of_survey), rows))


@app.command("label")
def label_command(
    file: File,
    out: Annotated[Path | None, typer.Option(help="Where to write; left out, SURVEY.labels.jsonl beside the survey")] = None,
    imported: Annotated[list[Path] | None, typer.Option("--import", help="File of labels (.jsonl, .json, .csv); may be repeated")] = None,
    dictionary: Which = None,
    model: Annotated[str | None, typer.Option(help="Also label by the logits that each latent raises; needs the model")] = None,
    source: Annotated[str | None, typer.Option(help="The dictionary itself, by name or folder, for --model; left out, its name")] = None,
    tokens: Annotated[bool, typer.Option("--tokens/--no-tokens", help="Label by the tokens at which each latent is active")] = True,
    overwrite: Overwrite = False,
) -> None:
    """Give the latents of a survey labels, which `top`, `examples` and `search` show. Nothing is asked of a network."""
    from attrib import latents
    from attrib.core.files import check_free

    path = labels_beside(file) if out is None else out
    check_free("out", path, overwrite=overwrite)
    survey = latents.open(file)
    parts = list(survey) if dictionary is None else [survey.of(dictionary)]
    made = latents.Labels(())
    for each in imported or []:
        made += latents.read_labels(each, dictionary=parts[0].asked.dictionary if len(parts) == 1 else None)
    for part in parts if tokens else ():
        made += latents.token_labels(part)
    if model is not None:
        from attrib.adapters.given import as_dictionary, as_model

        loaded = as_model(model)
        for part in parts:
            named = as_dictionary(source or part.asked.dictionary)
            if named.fingerprint != part.asked.dictionary_sha256:
                raise InputError(f"source: {named.name} is not the dictionary that was surveyed; name it with --source, or its folder.")
            found = latents.logit_labels(loaded, named, part.latents)
            made += latents.Labels(tuple(label._replace(dictionary=part.asked.dictionary) for label in found))
    latents.save_labels(path, made, overwrite=overwrite)
    print(plain(f"{path}: {len(made):,} labels"))


# ------------------------------------------------------------------------------------------------- shown


def _print_written(out: Path, survey: "Survey") -> None:
    print(plain(f"{out}: {so_many(len(survey), 'dictionary', 'dictionaries')}, {out.stat().st_size / 1e6:.1f} MB"))
    for part in survey:
        alive = int((part.active > 0).sum())
        print(plain(f"{part.asked.dictionary}: {alive:,} of {len(part.latents):,} latents active over {part.places:,} places"))


def _densities(part: "LatentSurvey") -> Any:
    """How many latents have which density, by powers of ten, with bars."""
    import numpy as np

    density = part.density
    power = np.floor(np.log10(density[density > 0])).astype(int) if (density > 0).any() else np.empty(0, int)
    counts = {int(p): int((power == p).sum()) for p in range(int(power.min()), int(power.max()) + 1)} if len(power) else {}
    most = max(counts.values(), default=1)
    rows = [(f"1e{p} to 1e{p + 1}", f"{n:,}", "#" * round(24 * n / most)) for p, n in sorted(counts.items(), reverse=True)]
    rows += [("never", f"{int((density == 0).sum()):,}", "")]
    return table("density: share of places at which a latent is active", ("density", "latents", ""), (), rows)


def _examples(title: str, examples: "list[Example]", width: int) -> Any:
    rows = [(plain(_marked(one, width)), f"{one.value:.4g}", f"{one.prompt}:{one.position}") for one in examples]
    return table(own(plain(title)), ("context",), ("score", "at"), rows)


def _marked(one: "Example", width: int) -> str:
    """The token between marks, in its context."""
    before, behind = one.tokens[max(0, one.at - width) : one.at], one.tokens[one.at + 1 : one.at + 1 + width]
    return f"{''.join(before)}<<{one.token}>>{''.join(behind)}"


def _known(file: Path, given: Path | None, *parts: "LatentSurvey") -> "Labels":
    """The labels that were given or lie beside the survey; else those that its own tokens make."""
    from attrib import latents

    path = given or labels_beside(file)
    if given is not None or path.is_file():
        return latents.read_labels(path, dictionary=parts[0].asked.dictionary if len(parts) == 1 and given else None)
    made = latents.Labels(())
    for part in parts:
        made += latents.token_labels(part)
    return made


def _survey_of(file: Path, fingerprint: str) -> "LatentSurvey":
    """The part of a survey that is of this dictionary."""
    from attrib import latents

    found = [part for part in latents.open(file) if part.asked.dictionary_sha256 == fingerprint]
    if not found:
        raise InputError(f"survey: {file} is of other dictionaries; expected one of this.")
    return found[0]


def _label(known: "Labels", part: "LatentSurvey", latent: int) -> str:
    return plain(next((label.text for label in known.of(part.asked.dictionary, latent)), ""))


# ------------------------------------------------------------------------------------------------- given


def _share(given: str) -> tuple[int, int]:
    mine, slash, of = given.partition("/")
    if not slash or not mine.isascii() or not mine.isdigit() or not of.isascii() or not of.isdigit():
        raise InputError(f"share: {given!r}; expected I/N, as 0/4.")
    return int(mine), int(of)
