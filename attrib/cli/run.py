"""`attrib run` and `attrib plan`: the same options, computed or only planned."""

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attrib.cli.bars import counted
from attrib.core.types import InputError
from attrib.view.terminal import plain, so_many

if TYPE_CHECKING:
    from attrib.runs.run import RunFile


def _options(
    config: Annotated[Path | None, typer.Argument(help="TOML file with the same options; those given here win")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="smollm2-135m, a local folder or a TransformerLens name")] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Dictionary whose latents are the sources: shipped, folder, or release/id; may be repeated")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Dictionary whose latents are the targets; may be repeated")] = None,
    cut: Annotated[list[str] | None, typer.Option(help="Dictionary that is put in on the way; may be repeated")] = None,
    effect: Annotated[str | None, typer.Option(help="direct, which stops at the cuts, or total, through their active latents")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="token_to_latent, latent_to_latent, latent_to_logit or latent_to_metric; may be repeated"),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of prompts, one a line, or .jsonl, where a prompt may have lines")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt itself, in place of a file; may be repeated")] = None,
    out: Annotated[Path | None, typer.Option(help="HDF5 file to write")] = None,
    keep: Annotated[str | None, typer.Option(help="mass:FRACTION of each target, usually 0.99; topk:K, threshold:T or dense")] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="gradient_times_activation, usually; gradient, ig:STEPS, ig:STEPS:corrupt, patching or ablation"),
    ] = None,
    corrupt: Annotated[Path | None, typer.Option(help="Of rules that compare: file of other prompts, one for each, as long")] = None,
    corrupt_prompt: Annotated[list[str] | None, typer.Option(help="Such a prompt itself, in place of a file; may be repeated")] = None,
    corrupt_field: Annotated[
        str | None, typer.Option(help="Key of the file of prompts that holds the other prompt of each, in place of another file")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="exact, linear or relp")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float64, or float32 with products in tf32 (CUDA) or bfloat16")] = None,
    precision_rows: Annotated[int | None, typer.Option(help="Rows whose error against float64 is measured and written")] = None,
    method: Annotated[str | None, typer.Option(help="adjoint, adjoint-triton or torch.func (the slow reference)")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N; several that share the work as cuda:0,cuda:1, or all")] = None,
    budget: Annotated[str | None, typer.Option(help="Working memory, as 512MiB or 2GiB")] = None,
    position: Annotated[
        list[str] | None, typer.Option(help="Target position, negative from the end, may be repeated; or last, all, or a slice as 1:")
    ] = None,
    top_logits: Annotated[int | None, typer.Option(help="Logits of the most probable tokens")] = None,
    mass: Annotated[float | None, typer.Option(help="Of those, the fewest that reach this probability")] = None,
    logit_token: Annotated[list[str] | None, typer.Option(help="Logit of this token; may be repeated")] = None,
    logit_difference: Annotated[tuple[str, str] | None, typer.Option(help="Logit of the first token minus that of the second")] = None,
    metric: Annotated[str | None, typer.Option(help="Of latent_to_metric: module:function, logits to a scalar. Runs its code")] = None,
    special_tokens: Annotated[
        str | None, typer.Option(help="Special tokens spelled out in text: allow, which makes them tokens, text or refuse")
    ] = None,
    error: Annotated[bool | None, typer.Option("--error/--no-error", help="Keep the source's error as a constant")] = None,
    error_source: Annotated[bool, typer.Option("--error-source", help="The source's error at each position is a source too")] = False,
    bias: Annotated[bool, typer.Option("--bias", help="All that is constant is a source too, beside --error-source")] = False,
    compression: Annotated[str | None, typer.Option(help="gzip, lzf, blosc-lz4 or zstd")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace the output")] = None,
) -> dict[str, Any]:
    """The options as the keys of a run file."""
    if error_source and error is False:
        raise InputError("--error-source, --no-error: the error is a source, or left out; give one of them.")
    as_error = "source" if error_source else error
    of_run = {
        "model": model, "prompts": prompts, "prompt": prompt or None, "out": out, "keep": keep, "policy": policy, "dtype": dtype,
        "device": device, "method": method, "precision_rows": precision_rows, "budget": budget, "positions": _positions(position or []),
        "special_tokens": special_tokens, "error": as_error, "bias": bias or None, "rule": rule, "corrupt": corrupt,
        "corrupt_prompt": corrupt_prompt or None, "corrupt_field": corrupt_field, "compression": compression,
        "overwrite": overwrite or None,
    }  # fmt: skip
    of_kinds = {
        "source": source or None, "target": target or None, "cuts": cut or None, "effect": effect, "top_logits": top_logits, "mass": mass,
        "logit_tokens": logit_token or None, "logit_difference": logit_difference, "metric": metric,
    }  # fmt: skip
    given, shared = ({name: value for name, value in table.items() if value is not None} for table in (of_run, of_kinds))
    return {"config": config, "given": given, "kinds": kind or [], "shared": shared}


def _positions(typed: list[str]) -> list[int] | str | None:
    """Numbers, or the one text that stands for several."""
    texts = [text for text in typed if not re.fullmatch(r"\s*-?\d{1,18}\s*", text)]
    if texts and len(typed) > 1:
        raise InputError(f"--position: {texts[0]!r} beside others; give numbers, or one of last, all and a slice.")
    return texts[0] if texts else [int(text) for text in typed] or None


_TYPED = {"cuts": "cut", "logit_tokens": "logit_token", "positions": "position", "attribution": "kind"}
"""Keys of a run file whose option has another name."""


def _named(key: str) -> str:
    return "--" + _TYPED.get(key, key).replace("_", "-")


def _with_options(act: Callable[["RunFile"], None]) -> Callable[..., None]:
    """A command that takes the options above, checks them, and acts on the run that they describe."""

    @wraps(_options)
    def command(**options: Any) -> None:
        act(_run_file(**_options(**options), needs=("model", "out") if act is run_work else ("model",)))

    command.__name__, command.__doc__ = act.__name__, act.__doc__
    return command


def _run_file(config: Path | None, given: dict[str, Any], kinds: list[str], shared: dict[str, Any], needs: tuple[str, ...]) -> "RunFile":
    from attrib.runs.run import CORRUPT, read_toml, run_file

    table = {} if config is None else read_toml(config)
    if {"prompts", "prompt"} & given.keys():  # either takes the place of the file's
        table = {name: value for name, value in table.items() if name not in ("prompts", "prompt")}
    if {*CORRUPT} & given.keys():
        table = {name: value for name, value in table.items() if name not in CORRUPT}
    table |= given
    if kinds:
        table["attribution"] = _attributions(kinds, shared)
    elif shared:
        raise InputError(f"--kind: missing beside {', '.join(map(_named, shared))}; give --kind, once for each kind.")
    missing = [_named(name) for name in (*needs, "attribution") if name not in table]
    missing += [] if {"prompts", "prompt"} & table.keys() else ["--prompts or --prompt"]
    if missing:
        raise InputError(f"missing: {', '.join(missing)}; give them as options or in a TOML file.")
    try:
        return run_file(table)
    except InputError as error:
        if not kinds:
            raise
        # the blocks of several kinds share their options, and a fault of one is the same in each
        raise InputError("\n".join(dict.fromkeys(map(_as_typed, str(error).split("\n"))))) from None


def _as_typed(line: str) -> str:
    """A fault of an attribution with the options that were typed in place of its keys."""
    found = re.fullmatch(r"attribution\[\d+\](?:\.(\w+)\S*)?: (.*)", line, re.DOTALL)
    if found is None:
        return line
    if found[1]:
        return f"{_named(found[1])}: {found[2]}"
    keys, colon, fault = found[2].partition(": ")
    return re.sub(r"\w+_\w+|effect|mass", lambda key: _named(key[0]), keys) + colon + fault if colon else found[2]


def _attributions(kinds: list[str], shared: dict[str, Any]) -> list[dict[str, Any]]:
    """A block for each kind, with those of the options that it takes. Raises InputError for one that none of them takes."""
    from attrib.runs.spec import KINDS, TAKES

    if unknown := [kind for kind in kinds if kind not in KINDS]:
        graphs = ", or `attrib graph`, whose options graphs have, or a TOML file of kind graph" if unknown[0] == "graph" else ""
        raise InputError(f"--kind: {unknown[0]!r}; expected {', '.join(KINDS[:-1])} or {KINDS[-1]}{graphs}.")
    takes: dict[str, frozenset[str]] = {kind: TAKES[kind] for kind in KINDS if kind in kinds}
    if unused := [name for name in shared if not any(name in of for of in takes.values())]:
        takers = [kind for kind in KINDS if unused[0] in TAKES[kind]]
        raise InputError(
            f"{', '.join(map(_named, unused))}: no effect on {' or '.join(takes)}; leave it out, or add --kind {' or '.join(takers)}."
        )
    return [{"kind": kind, **{name: value for name, value in shared.items() if name in takes[kind]}} for kind in kinds]


def run_work(run: "RunFile") -> None:
    """Attribute every prompt of a file, or of --prompt, and write sparse HDF5."""
    from attrib.core.keep import keep_text
    from attrib.runs.results import counts
    from attrib.runs.run import execute
    from attrib.runs.spec import USUAL_KEEP

    with counted("attributing") as progress:
        results = execute(run, progress)
    assert run.out is not None
    held = counts(results)
    blocks = "" if run.is_of_graphs else f"{so_many(len(results), 'block')}, "
    what = f"{blocks}{so_many(held.prompts, 'prompt')}, {so_many(held.edges, 'edge')}"
    print(plain(f"{run.out}: {what}, {run.out.stat().st_size / 1e6:.1f} MB"))
    if "keep" not in run.model_fields_set:
        most = f"of each target the fewest edges that make up {USUAL_KEEP.fraction:.0%} of it"
        print(f"kept: {keep_text(USUAL_KEEP)}, {most}; --keep dense keeps all")


def plan_work(run: "RunFile") -> None:
    """Say what `attrib run` with these options would do and cost, without computing it."""
    from attrib.runs.run import forecast

    for group, planned in zip(run.groups, forecast(run), strict=True):
        item, sources, targets = group[0], (each.source or "tokens" for each in group), (each.target for each in group)
        ends = dict.fromkeys(sources), [item.metric or "logits"] if item.target is None else dict.fromkeys(map(str, targets))
        print(plain(f"{item.kind}: {', '.join(ends[0])} -> {', '.join(ends[1])}"))
        print("  by plain torch.func, one row a prompt: not planned" if planned is None else planned)


run, plan = _with_options(run_work), _with_options(plan_work)
