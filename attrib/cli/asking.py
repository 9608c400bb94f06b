"""`attrib ask`: where an answer stands among all that could follow a prompt, with the model alone and with dictionaries and edits."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.cli.intervening import FORM, Out, Overwrite, check_given, check_out, edits_of, errors_of, write_rows
from attrib.cli.shared import Device, Dtype, Given, ModelName, Of
from attrib.core.types import InputError
from attrib.view.terminal import plain, table
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    from attrib.causal import AnswerRanks


def ask(
    prompt: Annotated[str, typer.Argument(help="Prompt")],
    model: ModelName = "",
    answer: Annotated[str, typer.Option("--answer", "-a", help="What should follow; a leading space often matters, as in ' Paris'")] = "",
    dictionary: Given = None,
    edit: Annotated[list[str] | None, typer.Option("--edit", "-e", help=FORM)] = None,
    errors: Annotated[
        str | None, typer.Option(help="What dictionaries do not decode: none, or under edits held or live, as attrib intervene has it")
    ] = None,
    of: Of = None,
    seed: Annotated[int | None, typer.Option(help="By which positions are drawn for =resample; without, they are aligned")] = None,
    top: Annotated[int, typer.Option(help="Most probable tokens", min=1)] = 10,
    out: Out = None,
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    device: Device = "cpu",
) -> None:
    """The rank and probability of each token of an answer, and the most probable tokens in its place."""
    import attrib

    check_given(model, {"--answer": answer})
    check_out(out, overwrite)
    edits = edits_of(edit or [], of, seed)
    kept = errors_of(errors or "none")
    if errors is not None and not dictionary:
        raise InputError("--errors: no effect without --dictionary; leave it out.")
    if kept is not False and not edits:
        raise InputError(f"--errors: {errors} without --edit gives the model's own answer; leave it out, or give an edit.")
    loaded = attrib.load_model(model, device=device)
    dictionaries = [attrib.load_dictionary(name).to(device=device) for name in dictionary or []]
    options: dict[str, Any] = {"k": top, "dtype": dtype}
    found = {"model": attrib.causal.answer_ranks(loaded, prompt, answer, **options)}
    if dictionaries and kept is False:
        found["dictionaries"] = attrib.causal.answer_ranks(loaded, prompt, answer, dictionaries, **options)
    if edits:
        found["edits"] = attrib.causal.answer_ranks(loaded, prompt, answer, dictionaries, edits, errors=kept, **options)
    _print(prompt, found)
    if out is not None:
        frames = [each.to_pandas().assign(of="answer", **{"pass": name}) for name, each in found.items()]
        frames += [each.top_to_pandas().assign(of="top", **{"pass": name}) for name, each in found.items()]
        write_rows(out, [frame.assign(prompt=0) for frame in frames])


def _print(prompt: str, found: "dict[str, AnswerRanks]") -> None:
    """The answer's tokens, then the most probable ones in the place of each; one way of reading them beside the other."""
    some = found["model"]
    rows: list[tuple[str, ...]] = []
    for place, text in enumerate(some.texts):
        for name, each in found.items():
            share = f"{float(each.probability[place]):.4f}"
            rows.append((plain(repr(text)), name, str(int(each.rank[place])), f"{float(each.logit[place]):.2f}", share))
    print_table(table(plain(prompt), ("answer", "pass"), ("rank", "logit", "probability"), rows))
    for place, text in enumerate(some.texts):
        rows = []
        for rank in range(some.top.shape[1]):
            cells = [str(rank)]
            for each in found.values():
                cells.append(plain(f"{each.top_texts[place][rank]!r} {float(each.top_probability[place, rank]):.4f}"))
            rows.append(tuple(cells))
        title = f"the most probable in the place of {text!r}, position {int(some.position[place])}"
        print_table(table(plain(title), ("rank", *found), (), rows))
