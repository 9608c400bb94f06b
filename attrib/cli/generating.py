"""`attrib generate` and `attrib steer`: continuations of prompts, streamed; and the same beside one under edits."""

import json as as_json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.cli.bars import counted
from attrib.cli.shared import Device, Dtype, File, Given, ModelName, Of, Prompts
from attrib.core.types import InputError
from attrib.view.flowing import Flow, ended, flowed
from attrib.view.terminal import console, message, plain, table
from attrib.view.terminal import show as print_table

if TYPE_CHECKING:
    from attrib.causal import Continuation, Edit, Piece

Chat = Annotated[bool, typer.Option("--chat", help="Take each prompt as what a user says in a chat")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="New tokens of each prompt at most", min=1)]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 takes the most probable token")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Draw among so many most probable tokens")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Draw among the fewest most probable tokens that reach this probability")]
Seed = Annotated[int | None, typer.Option(help="Of the draws; usually 0")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends a continuation; may be repeated")]
AtEnd = Annotated[bool, typer.Option("--stop-at-end/--go-on", help="Whether the token that ends a text ends it")]
Live = Annotated[bool, typer.Option("--error/--no-error", help="Whether what dictionaries do not decode is added")]
Edited = Annotated[str, typer.Option(help="Where edits are made: all, prompt or generated")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object for each continuation, a line each")]
FORM = "SITE[LATENT]=VALUE, +VALUE or *FACTOR; also a SITE, L5H1, error:SITE, @POSITIONS, =zero; may be repeated"


def generate(
    prompts: Prompts = None,
    model: ModelName = "",
    file: File = None,
    chat: Chat = False,
    max_tokens: MaxTokens = 50,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    stop_at_end: AtEnd = True,
    dictionary: Given = None,
    edit: Annotated[list[str] | None, typer.Option("--edit", "-e", help=FORM)] = None,
    of: Of = None,
    edited: Edited = "all",
    error: Live = True,
    dtype: Dtype = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Continue prompts; a single one is printed as it comes."""
    if not error and not dictionary:
        raise InputError("--no-error: no effect without --dictionary; leave it out.")
    sampling = _sampling(temperature, top_k, top_p, seed)
    loaded, given = _ready(model, dtype, device), _prompts(prompts, file, chat)
    edits = _edits(edit or [], of)
    asked = sampling | {"max_tokens": max_tokens, "stop": stop or [], "stop_at_end": stop_at_end}
    under = {"dictionaries": dictionary or [], "edits": edits, "errors": "live" if error else False, "edited": edited}
    shown = _shown(loaded, given)
    if len(given) == 1 and not json:
        _streamed(loaded, given, asked | under, shown[0])
        return
    for number, one in enumerate(_counted(loaded, given, asked | under)):
        if json:
            _print_record(number, one)
        else:
            print(("\n" if number else "") + _lines(shown[number] + one.text))


def steer(
    prompts: Prompts = None,
    model: ModelName = "",
    edit: Annotated[list[str] | None, typer.Option("--edit", "-e", help=FORM)] = None,
    dictionary: Given = None,
    file: File = None,
    chat: Chat = False,
    max_tokens: MaxTokens = 50,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    stop_at_end: AtEnd = True,
    of: Of = None,
    edited: Edited = "all",
    error: Live = True,
    beside: Annotated[bool, typer.Option("--beside", help="Print both side by side, when they are done")] = False,
    dtype: Dtype = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Continue prompts without and with edits, by the same draws."""
    from attrib.causal import text_of

    if not edit:
        raise InputError(
            "--edit: missing. For example: attrib steer 'I think' -m smollm2-135m -d NAME --edit 'blocks.9.hook_resid_pre[3]+30'"
        )
    if not error and not dictionary:
        raise InputError("--no-error: no effect without --dictionary; leave it out.")
    if beside and json:
        raise InputError("--beside: no effect with --json; leave one of them out.")
    sampling = _sampling(temperature, top_k, top_p, seed)
    loaded, given = _ready(model, dtype, device), _prompts(prompts, file, chat)
    edits = _edits(edit, of)
    asked: dict[str, Any] = sampling | {"max_tokens": max_tokens, "stop": stop or [], "stop_at_end": stop_at_end}
    under = {"dictionaries": dictionary or [], "edits": edits, "errors": "live" if error else False, "edited": edited}
    names, shown = ["without edits", "with " + ", ".join(map(text_of, edits))], _shown(loaded, given)
    if len(given) == 1 and not json and not beside:
        both = []
        for name, options in zip(names, (asked, asked | under), strict=True):
            print(f"-- {plain(name)}")
            both.append(_streamed(loaded, given, options, shown[0]))
        print(_apart(*both))
        return
    for number, (one, other) in enumerate(zip(*(_counted(loaded, given, options) for options in (asked, asked | under)), strict=True)):
        if json:
            _print_record(number, one, edits=[])
            _print_record(number, other, edits=list(map(text_of, edits)))
            continue
        if beside:
            print_table(table("", list(map(plain, names)), (), [[message(shown[number] + part.text) for part in (one, other)]]))
        else:
            for name, part in zip(names, (one, other), strict=True):
                print(f"-- {plain(name)}\n{_lines(shown[number] + part.text)}")
        print(_apart(one, other))


def _apart(one: "Continuation", other: "Continuation") -> str:
    """Where two continuations part."""
    pairs = zip(one.tokens.tolist(), other.tokens.tolist(), strict=False)
    same = next((number for number, (a, b) in enumerate(pairs) if a != b), None)
    if same is None and len(one.tokens) == len(other.tokens):
        return "-- the same tokens"
    return f"-- apart from new token {min(len(one.tokens), len(other.tokens)) if same is None else same} on"


def _print_record(number: int, one: "Continuation", **more: Any) -> None:
    record = {"prompt": number, "text": one.text, "ended": one.ended, "tokens": one.tokens.tolist()}
    print(as_json.dumps(record | {"log_probs": [round(p, 6) for p in one.log_probs.tolist()]} | more))


def _streamed(model: Any, given: list[Any], options: dict[str, Any], shown: str) -> "Continuation":
    """One prompt's continuation, printed as it comes: on a terminal in lines of its width, and elsewhere as it is."""
    from attrib.causal import generate as continued

    flow, before = _flow(), shown

    def write(piece: "Piece") -> None:
        nonlocal flow, before
        flow, printed = flowed(flow, before + piece.text)
        before = ""  # the prompt is printed with the first token, when nothing can be wrong with it any more
        sys.stdout.write(printed)
        sys.stdout.flush()

    (one,) = continued(model, given, stream=write, **options)
    print(ended(flow))
    return one


def _counted(model: Any, given: list[Any], options: dict[str, Any]) -> "list[Continuation]":
    """All continuations, under a bar over the tokens that there may be."""
    from attrib.causal import generate as continued

    with _counting(len(given) * options["max_tokens"]) as stream:
        return list(continued(model, given, stream=stream, **options))


def _flow() -> Flow:
    on = console()
    return Flow(on.width if on.is_terminal else None)


def _lines(text: str) -> str:
    flow, printed = flowed(_flow(), text)
    return printed + ended(flow)


@contextmanager
def _counting(tokens: int) -> "Iterator[Callable[[Piece], None]]":
    """A bar over the tokens that there may be; one that ended early is done."""
    done = 0
    with counted("generating") as progress:

        def count(piece: "Piece") -> None:
            nonlocal done
            done += 1
            progress(done, tokens)

        yield count


def _sampling(temperature: float, top_k: int | None, top_p: float | None, seed: int | None) -> dict[str, Any]:
    if seed is not None and temperature == 0:
        raise InputError("--seed: no effect at temperature 0, where nothing is drawn; give --temperature, or leave it out.")
    return {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed or 0}


def _ready(model: str, dtype: str | None, device: str) -> Any:
    import attrib

    if not model:
        raise InputError("--model: missing. For example: attrib generate 'Once upon a time' -m smollm2-135m")
    loaded = attrib.load_model(model, device=device)
    return loaded if dtype is None else loaded.to(dtype=dtype)


def _prompts(typed: list[str] | None, file: Path | None, chat: bool) -> list[Any]:
    """Prompts as `attrib.causal.generate` takes them."""
    from attrib.runs.run import read_prompts

    if bool(typed) == (file is not None):
        raise InputError(f"PROMPT: {'beside --prompts; give one of them' if typed else 'missing; give prompts, or --prompts with a file'}.")
    given: list[Any] = list(typed or []) if file is None else read_prompts(file)
    if empty := [number for number, one in enumerate(given) if isinstance(one, str) and not one.strip()]:
        raise InputError(f"PROMPT: number {empty[0]} is empty; expected text.")
    if not chat:
        return given
    if wrong := [number for number, one in enumerate(given) if not isinstance(one, str)]:
        raise InputError(f"--chat: prompt {wrong[0]} is no text; leave --chat out, as a chat in a file is one already.")
    return [[{"role": "user", "content": text}] for text in given]


def _shown(model: Any, given: list[Any]) -> list[str]:
    """Prompts as they are printed before what continues them; of chats nothing, as an answer stands by itself."""
    tokenizer = model.tokenizer
    return [
        one if isinstance(one, str) else "" if isinstance(one, list) or tokenizer is None else tokenizer.decode(one.tolist())
        for one in given
    ]


def _edits(typed: list[str], of: Path | None) -> "list[Edit]":
    from attrib.causal import Ablate, parse_edit
    from attrib.runs.run import read_prompts

    if of is None and (from_others := [text for text in typed if text.rstrip().endswith(("=mean", "=resample"))]):
        raise InputError(f"--of: missing beside --edit {from_others[0]!r}; give a file of the prompts from which its values are taken.")
    prompts = None if of is None else read_prompts(of)
    edits = [parse_edit(text, of=prompts if text.rstrip().endswith(("=mean", "=resample")) else None, argument="--edit") for text in typed]
    if of is not None and not any(isinstance(edit, Ablate) and edit.of is not None for edit in edits):
        raise InputError("--of: no effect without an edit =mean or =resample; leave it out.")
    return edits
