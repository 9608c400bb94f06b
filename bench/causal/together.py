"""`intervene` on many prompts at once beside one call for each: `python -m bench.causal.together [--rounds 3] [--json FILE]`.

SmolLM2 with a dictionary in it, 64 prompts of 12 to 30 tokens, one latent scaled at the last position of each. Asked for are a
difference of two logits, with nothing held and with patterns and norms held, and all logits. Values are compared before anything is
timed; times are CPU and wall seconds of one thread, in turns, medians.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import attrib
from attrib.causal import Latents, Scale, intervene
from bench.measure import Time, medians, timed
from bench.output import end, number, wide_console, write

app = typer.Typer(add_completion=False)

SITE, LATENT, COUNT, LENGTHS = "blocks.9.hook_resid_pre", 1599, 64, (12, 30)
TOLERANCE = 1e-5
"""Of the largest logit."""


def prompts_of(model: attrib.Model) -> list[Tensor]:
    """Random tokens of random lengths, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(LENGTHS[0], LENGTHS[1] + 1, (COUNT,), generator=generator).tolist()
    return [torch.randint(0, model.config.d_vocab, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def case(call: Callable[[Any], Any], prompts: list[Tensor], rounds: int) -> dict[str, Any]:
    """The figures of one way to ask."""

    def alone() -> list[Tensor]:
        return [call(ids) for ids in prompts]

    pairs = list(zip(call(prompts), alone(), strict=True))
    error = max(float((got - want).abs().max() / want.abs().max()) for got, want in pairs)
    result: dict[str, Any] = {"prompts": len(prompts), "tokens": sum(map(len, prompts)), "error": error, "checked": error < TOLERANCE}
    if not result["checked"]:
        return result
    del pairs
    spent: dict[str, list[Time]] = {"together": [], "alone": []}
    for _ in range(rounds):
        for name, run in (("together", partial(call, prompts)), ("alone", alone)):
            spent[name].append(timed(run, torch.device("cpu"))[1])
    for name, each in spent.items():
        each_s = medians(each)
        result[name] = {"cpu_s": each_s.cpu, "wall_s": each_s.wall}
    return result


CASES: dict[str, dict[str, Any]] = {
    "metric": {"metric": attrib.Difference(" Paris", " Rome")},
    "metric, linear": {"metric": attrib.Difference(" Paris", " Rome"), "policy": attrib.LINEAR},
    "logits": {},
}


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="how often each is computed")] = 3,
    only: Annotated[str | None, typer.Option("--case", help="one of the cases")] = None,
    json: Annotated[Path | None, typer.Option(help="file for the figures")] = None,
) -> None:
    """Print CPU and wall seconds of all prompts together and one by one."""
    torch.set_num_threads(1)
    model, console = attrib.load_model("smollm2-135m"), wide_console()
    sae, prompts = attrib.load_dictionary(f"{model.name}/{SITE}"), prompts_of(model)
    if only is not None and only not in CASES:
        raise SystemExit(f"--case: {only!r}; expected one of {', '.join(map(repr, CASES))}.")
    results: dict[str, dict[str, Any]] = {}
    for name in CASES if only is None else [only]:
        call = partial(intervene, model, [sae], edits=Scale(Latents(0, LATENT), 2.0, -1), errors="live", **CASES[name])
        results[name] = found = case(call, prompts, rounds)
        if found["checked"]:
            each = "; ".join(
                f"{way} {number(found[way]['cpu_s'])} s of CPU, {number(found[way]['wall_s'])} s" for way in ("together", "alone")
            )
            less = number(found["alone"]["cpu_s"] / found["together"]["cpu_s"], ".1f")
            console.print(f"{name:<16} {found['prompts']} prompts, {found['tokens']} tokens: {each}; {less} times less CPU")
    if json is not None:
        write(json, results)
    end(console, results)


if __name__ == "__main__":
    app()
