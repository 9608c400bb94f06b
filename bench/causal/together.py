"""`intervene` on many prompts at once beside one call for each: `python -m bench.causal.together [--rounds 3] [--json FILE]`.

SmolLM2 with a dictionary in it, 64 prompts of 12 to 30 tokens, a latent's direction scaled at the last position. Logits of two tokens
(`metric`), and all logits (`logits`); with nothing held, and with patterns and norms held. Values are compared before anything is timed; times
are those of one process with as many threads as torch takes, in turns, medians.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import attrib
from attrib.causal import Latents, Scale, intervene
from bench.measure import timed
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
    spent: dict[str, list[Any]] = {"together": [], "alone": []}
    for _ in range(rounds):
        for name, run in (("together", partial(call, prompts)), ("alone", alone)):
            spent[name].append(timed(run, torch.device("cpu"))[1])
    for name, each in spent.items():
        result[name] = {"cpu_s": median(one.cpu for one in each), "wall_s": median(one.wall for one in each)}
    return result


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="how often each is computed")] = 3,
    json: Annotated[Path | None, typer.Option(help="file for the figures")] = None,
) -> None:
    """Print CPU and wall seconds of all prompts together and one by one."""
    model, console = attrib.load_model("smollm2-135m"), wide_console()
    sae, prompts = attrib.load_dictionary(f"{model.name}/{SITE}"), prompts_of(model)
    edit, results = Scale(Latents(0, LATENT), 2.0, -1), dict[str, dict[str, Any]]()
    asked: dict[str, dict[str, Any]] = {
        "metric": {"metric": attrib.Difference(11, 12)}, "metric, linear": {"metric": attrib.Difference(11, 12), "policy": attrib.LINEAR},
        "logits": {},
    }  # fmt: skip
    for name, options in asked.items():
        results[name] = found = case(lambda ids, o=options: intervene(model, sae, ids, edit, **o), prompts, rounds)  # type: ignore[misc]
        if found["checked"]:
            each = ", ".join(f"{way} {number(found[way]['cpu_s'])} s CPU, {number(found[way]['wall_s'])} s" for way in ("together", "alone"))
            ratio = found["alone"]["cpu_s"] / found["together"]["cpu_s"]
            console.print(f"{name:<16} {found['prompts']} prompts, {found['tokens']} tokens: {each}; {number(ratio, '.1f')} times less CPU")
    if json is not None:
        write(json, results)
    end(console, results)


if __name__ == "__main__":
    app()
