"""`attrib intervene` and `attrib ablate`: the next token under edits; and what every active latent of a prompt does to it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.cli.bars import counted
from attrib.cli.shared import Device, Dtype, File, Given, ModelName, Of, Prompts
from attrib.core.types import EXACT, InputError, Policy
from attrib.view.terminal import plain, table
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from attrib.causal import Ablations, Edit
    from attrib.models.transformer import Model

Tokens = Annotated[list[str] | None, typer.Option("--logit-token", help="The logit of this token; may be repeated")]
Difference = Annotated[tuple[str, str] | None, typer.Option(help="Logit of the first token minus that of the second")]
Effects = Annotated[
    str, typer.Option(help="total, which computes latents along the pass, or direct, which leaves those that nobody edits as they are")
]
Errors = Annotated[
    str, typer.Option(help="What dictionaries do not decode: held as it is without edits, live (computed along the pass), or none")
]
Freeze = Annotated[
    list[str] | None, typer.Option(help="attention, norm or mlp, held as without edits; linear for the first two; may be repeated")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write all rows to this file too: .csv or .json")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output")]
FORM = "SITE[LATENT]@POSITION=VALUE, *FACTOR or +VALUE; also a SITE, L5H1, error:SITE, =zero, =mean, =resample; may be repeated"


def intervene(
    prompts: Prompts = None,
    model: ModelName = "",
    edit: Annotated[list[str] | None, typer.Option("--edit", "-e", help=FORM)] = None,
    dictionary: Given = None,
    file: File = None,
    of: Of = None,
    seed: Annotated[int | None, typer.Option(help="By which positions are drawn for =resample; without, they are aligned")] = None,
    effect: Effects = "total",
    errors: Errors = "held",
    freeze: Freeze = None,
    top: Annotated[int, typer.Option(help="Most probable tokens without and with edits", min=1)] = 8,
    out: Out = None,
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    device: Device = "cpu",
) -> None:
    """The most probable next tokens without and with edits."""
    import attrib

    given = _prompts(prompts, file)
    check_given(model, {"--edit": edit})
    check_out(out, overwrite)
    policy, of_errors = _policy(freeze), errors_of(errors)
    edits = edits_of(edit or [], of, seed)
    loaded = attrib.load_model(model, device=device)
    dictionaries = [attrib.load_dictionary(name).to(device=device) for name in dictionary or []]
    options: dict[str, Any] = {"effect": effect, "errors": of_errors, "policy": policy, "dtype": dtype}
    # in one call, for the n-th prompt is resampled from the n-th of --of
    found = [attrib.causal.intervene(loaded, dictionaries, given, each, metric=_last, **options) for each in ((), edits)]
    frames = []
    for number, (prompt, before, after) in enumerate(zip(given, *found, strict=True)):
        frame = _tokens(loaded, before, after, top)
        frames.append(frame.assign(prompt=number))
        rows = [
            (plain(repr(row.token)), *(f"{value:.2f}" for value in (row.before, row.after)), f"{row.change:+.2f}",
             *(f"{value:.4f}" for value in (row.probability_before, row.probability_after)))
            for row in frame.itertuples()
        ]  # fmt: skip
        title = plain(f"{number}: {prompt if isinstance(prompt, str) else '...'}")
        numbers = ("logit\nbefore", "logit\nafter", "change", "probability\nbefore", "probability\nafter")
        print_table(table(title, ("next token",), numbers, rows))
    write_rows(out, frames)


def ablate(
    prompts: Prompts = None,
    model: ModelName = "",
    dictionary: Annotated[str, typer.Option("--dictionary", "-d", help="Whose latents are ablated: shipped, folder, or release/id")] = "",
    beside: Annotated[list[str] | None, typer.Option("--with", help="Another dictionary that is put in; may be repeated")] = None,
    file: File = None,
    logit_token: Tokens = None,
    logit_difference: Difference = None,
    top_logits: Annotated[int | None, typer.Option(help="Logits of the most probable tokens; usually of the first", min=1)] = None,
    at: Annotated[str | None, typer.Option("--at", help="Where: a position, negative from the end, or a slice as 1:")] = None,
    latent: Annotated[list[int] | None, typer.Option(help="Only this latent; may be repeated")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Ablate every two of them at a time")] = False,
    to: Annotated[float, typer.Option(help="What an ablated latent becomes")] = 0.0,
    effect: Effects = "total",
    errors: Errors = "held",
    freeze: Freeze = None,
    top: Annotated[int, typer.Option(help="Rows of the table of each prompt", min=1)] = 15,
    out: Out = None,
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    device: Device = "cpu",
    budget: Annotated[str, typer.Option(help="Memory of a batch, as 512MiB or 2GiB")] = "512MiB",
) -> None:
    """Ablate every active latent of a dictionary by itself, and rank them by what that changes."""
    import attrib

    given = _prompts(prompts, file)
    check_given(model, {"--dictionary": dictionary})
    check_out(out, overwrite)
    read = {"--logit-token": logit_token, "--logit-difference": logit_difference, "--top-logits": top_logits}
    if len(several := [name for name, value in read.items() if value]) > 1:
        raise InputError(f"{several[1]}: it has no effect beside {several[0]}; give one of them.")
    logits: Any = attrib.TopLogits(top_logits or 1)
    if logit_token or logit_difference:
        logits = attrib.TokenLogits(logit_token) if logit_token else attrib.Difference(*logit_difference or ("", ""))
    policy, of_errors = _policy(freeze), errors_of(errors)
    loaded = attrib.load_model(model, device=device)
    first, *others = (attrib.load_dictionary(name).to(device=device) for name in (dictionary, *(beside or [])))
    asked: dict[str, Any] = {"logits": logits, "pairs": pairs, "latents": latent, "at": None if at is None else _at(at), "to": to}
    options: dict[str, Any] = {"effect": effect, "errors": of_errors, "policy": policy, "dtype": dtype, "budget": budget}
    with counted("ablating") as progress:
        found = attrib.causal.ablate_each(loaded, first, given, dictionaries=others, progress=progress, **asked, **options)
    for number, prompt in enumerate(given):
        _print_ranked(loaded, found, number, prompt, top)
    write_rows(out, [found.to_pandas()])


# ---------------------------------------------------------------------------------------- what is shown


def _last(logits: "Tensor") -> "Tensor":
    return logits[-1]


def _tokens(model: "Model", before: "Tensor", after: "Tensor", top: int) -> "pd.DataFrame":
    """The most probable tokens of either, the most probable ones before first."""
    import pandas as pd

    from attrib.models.tokens import token_strings

    most = [logits.topk(min(top, len(logits))).indices for logits in (before, after)]
    ids = most[0].new_tensor(list(dict.fromkeys([*most[0].tolist(), *most[1].tolist()])))
    columns: dict[str, Any] = {"id": ids.tolist(), "token": token_strings(model, ids)}
    columns |= {name: logits[ids].tolist() for name, logits in (("before", before), ("after", after))}
    columns["change"] = (after - before)[ids].tolist()
    shares = (("probability_before", before), ("probability_after", after))
    return pd.DataFrame(columns | {name: logits.softmax(-1)[ids].tolist() for name, logits in shares})


def _print_ranked(model: "Model", found: "Ablations", number: int, prompt: Any, top: int) -> None:
    """The ablations of a prompt that change most of what is read first."""
    from attrib.models.tokens import one_prompt, token_strings

    strings, labels = token_strings(model, one_prompt(model, prompt)), found.labels[number]
    order = [n for n in found.order().tolist() if int(found.prompt[n]) == number]
    rows = []
    for n in order[:top]:
        at = [f"{int(i)} at {strings[int(p)]!r} ({int(p)})" for p, i in zip(found.position[n], found.latent[n], strict=True)]
        active = [f"{float(a):.3g}" for a in found.activation[n]]
        rows.append((plain(" and ".join(at)), ", ".join(active), *(f"{float(change):+.4g}" for change in found.change[n])))
    base = ", ".join(f"{label!r} {float(value):.4g}" for label, value in zip(labels, found.base[number], strict=True))
    text = plain(f"{number}: {prompt if isinstance(prompt, str) else ''.join(strings)}")
    title = f"{text}\n" + plain(f"{len(order)} ablations; without: {base}")
    heads = tuple(f"change of\n{plain(repr(label))}" for label in labels)
    print_table(table(title, ("latent",), ("activation", *heads), rows))


def write_rows(out: Path | None, frames: "Sequence[pd.DataFrame]") -> None:
    """All rows as CSV, or as JSON of one object each."""
    if out is None:
        return
    import pandas as pd

    from attrib.core.files import whole

    frame = pd.concat(list(frames))
    frame = frame[["prompt", *(name for name in frame.columns if name != "prompt")]]
    with whole(out) as partial:
        if out.suffix == ".csv":
            frame.to_csv(partial, index=False, lineterminator="\n")
        else:
            partial.write_text(json.dumps(frame.to_dict("records"), indent=1, allow_nan=False))
    print(plain(f"{out}: {len(frame)} rows"))


# ---------------------------------------------------------------------------------------- what is typed


def _prompts(typed: list[str] | None, file: Path | None) -> list[Any]:
    from attrib.runs.run import read_prompts

    if bool(typed) == (file is not None):
        raise InputError(f"PROMPTS: {'beside --prompts; give one of them' if typed else 'missing; give text, or --prompts with a file'}.")
    given: list[Any] = list(typed or []) if file is None else read_prompts(file)
    if empty := [number for number, one in enumerate(given) if isinstance(one, str) and not one.strip()]:
        raise InputError(f"PROMPTS: number {empty[0]} is empty; expected text.")
    return given


def check_given(model: str, others: dict[str, Any]) -> None:
    """Raises InputError where something that has to be given is missing."""
    if missing := [name for name, value in {"--model": model, **others}.items() if not value]:
        raise InputError(f"{missing[0]}: missing. For example: --model smollm2-135m; see --help.")


def check_out(out: Path | None, overwrite: bool) -> None:
    """Raises InputError where rows cannot be written there."""
    from attrib.core.files import check_free

    if out is None:
        return
    if out.suffix not in (".csv", ".json"):
        raise InputError(f"--out: {out}; expected a name that ends in .csv or .json.")
    check_free("--out", out, overwrite=overwrite)


def _policy(freeze: list[str] | None) -> Policy:
    words = {"attention": ["attention"], "norm": ["norm"], "mlp": ["mlp"], "linear": ["attention", "norm"]}
    for word in freeze or []:
        if word not in words:
            raise InputError(f"--freeze: {word!r}; expected {', '.join(words)}.")
    held: dict[str, Any] = {name: "frozen" for word in freeze or [] for name in words[word]}
    return EXACT._replace(**held)


def errors_of(typed: str) -> Any:
    """What becomes of what dictionaries do not decode, as functions take it."""
    words: dict[str, Any] = {"held": True, "live": "live", "none": False}
    if typed not in words:
        raise InputError(f"--errors: {typed!r}; expected {', '.join(words)}.")
    return words[typed]


def _at(typed: str) -> Any:
    try:
        return int(typed)
    except ValueError:
        return typed


def edits_of(typed: list[str], of: Path | None, seed: int | None) -> "list[Edit]":
    """Edits as they were typed, and the prompts that some of them take values from."""
    from attrib.causal import parse_edit
    from attrib.runs.run import read_prompts

    takes = [text.rstrip().endswith(("=mean", "=resample")) for text in typed]
    draws = [text.rstrip().endswith("=resample") for text in typed]
    if of is None and any(takes):
        raise InputError(f"--of: missing beside --edit {typed[takes.index(True)]!r}; give a file of prompts from which to take values.")
    if of is not None and not any(takes):
        raise InputError("--of: no effect without an edit =mean or =resample; leave it out.")
    if seed is not None and not any(draws):
        raise InputError("--seed: no effect without an edit =resample; leave it out.")
    prompts = None if of is None else read_prompts(of)
    return [
        parse_edit(text, of=prompts if from_others else None, seed=seed if is_drawn else None, argument="--edit")
        for text, from_others, is_drawn in zip(typed, takes, draws, strict=True)
    ]
