"""`ablate_each` beside one forward pass for each ablation: `python -m bench.causal.ablations [--rounds 3] [--json FILE]`.

SmolLM2 with the dictionaries that come with it, every active latent of a prompt of 12 tokens, ten logits at its last token. Compared are

- `attrib`: `attrib.causal.ablate_each`;
- `forward`: a whole forward pass of the model for each, the latent's decoder row taken away at its position (a sample, and scaled);
- `by hand`: all ablations of one position as a batch of streams at the site, `attrib.walk` from there, `attrib.unembed` of the last row.

Values are compared before anything is timed; times are CPU seconds of one thread, in turns, medians. Rows named `held` have patterns,
norms and MLPs held, where one sweep is exact; beside it the same passes without that shortcut.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import attrib
from attrib.causal import Ablations, ablate_each
from bench.measure import timed
from bench.output import end, number, wide_console, write

app = typer.Typer(add_completion=False)

TEXT = "The Eiffel tower is in the city of Paris, and the"
HELD = attrib.Policy("frozen", "frozen", "frozen")
CASES = ("6.hook_resid_pre", "9.hook_resid_pre", "18.hook_resid_pre", "8.mlp.hook_in")
TOLERANCE = 1e-4
"""Of the largest logit."""


def without(model: attrib.Model, sae: attrib.Dictionary, found: Ablations, n: int, ids: Tensor) -> Tensor:
    """The last row's logits of a whole pass in which a latent's share is taken away."""
    position, latent, size = int(found.position[n, 0]), int(found.latent[n, 0]), found.activation[n, 0]

    def taken(x: Tensor) -> Tensor:
        x[position] -= size * sae.params.W_dec[latent]
        return x

    return attrib.forward(model, ids, put={sae.writes[0]: taken})[-1]


def by_hand(model: attrib.Model, sae: attrib.Dictionary, ids: Tensor, chosen: Tensor) -> Tensor:
    """What one writes with the parts of docs/compose.md: [ablations, chosen]."""
    stream = attrib.Site(sae.site.layer, "resid_mid" if sae.site.kind == "mlp_in" else sae.site.kind)
    values = attrib.capture(model, ids, [sae.site, stream, sae.writes[0]])
    latents = attrib.encode_sparse(sae, values[sae.site])
    given, found = values[sae.writes[0]], []
    for position in range(len(ids)):
        at = latents.position == position
        x = given.repeat(int(at.sum()), 1, 1)
        x[:, position] -= latents.value[at, None] * sae.params.W_dec[latents.latent[at]]
        base = None if stream == sae.site else values[stream].expand(len(x), -1, -1)
        *_, (_, last) = attrib.walk(model, sae.writes[0], x, base)
        found.append(attrib.unembed(model, last[:, -1:])[:, 0, chosen])
    return torch.cat(found)


def ids_of(model: attrib.Model) -> Tensor:
    """The first 12 tokens of the text."""
    assert model.tokenizer is not None
    return torch.tensor(model.tokenizer.encode(TEXT)[:12])


@torch.no_grad()
def case(model: attrib.Model, name: str, rounds: int, sample: int) -> dict[str, Any]:
    """The figures of one dictionary."""
    sae, ids, cpu = attrib.load_dictionary(f"{model.name}/blocks.{name}"), ids_of(model), torch.device("cpu")
    found = ablate_each(model, sae, ids, logits=attrib.TopLogits(10))
    chosen = attrib.forward(model, ids)[-1].topk(10).indices
    some = range(0, len(found), max(1, len(found) // sample))
    ways: dict[str, tuple[Callable[[], Any], float]] = {
        "attrib": (partial(ablate_each, model, sae, ids), 1.0),
        "forward": (lambda: torch.stack([without(model, sae, found, n, ids)[chosen] for n in some]), len(found) / len(some)),
        "by hand": (partial(by_hand, model, sae, ids, chosen), 1.0),
    }
    largest = float(found.base.abs().max())
    errors = {
        "forward": float((ways["forward"][0]() - found.ablated[list(some)]).abs().max()) / largest,
        "by hand": float((ways["by hand"][0]() - found.ablated).abs().max()) / largest,
    }
    return _timed(ways, errors, len(found), rounds, cpu)


@torch.no_grad()
def held(model: attrib.Model, name: str, rounds: int) -> dict[str, Any]:
    """The same with everything behind held: one sweep, and the passes."""
    sae, ids, cpu = attrib.load_dictionary(f"{model.name}/blocks.{name}"), ids_of(model), torch.device("cpu")
    each = partial(ablate_each, model, sae, ids, policy=HELD)
    ways: dict[str, tuple[Callable[[], Any], float]] = {"attrib": (each, 1.0), "passes": (partial(each, method="passes"), 1.0)}
    sweep, passes = (run() for run, _ in ways.values())
    error = float((sweep.ablated - passes.ablated).abs().max() / sweep.base.abs().max())
    return _timed(ways, {"passes": error}, len(sweep), rounds, cpu)


def _timed(
    ways: dict[str, tuple[Callable[[], Any], float]], errors: dict[str, float], count: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    result: dict[str, Any] = {"ablations": count, "errors": errors, "checked": max(errors.values()) < TOLERANCE}
    if not result["checked"]:
        return result
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (run, scale) in ways.items():
            times[way].append(timed(run, device)[1].cpu * scale)
    result["cpu_s"] = {way: median(spent) for way, spent in times.items()}
    result["times_less"] = {way: result["cpu_s"][way] / result["cpu_s"]["attrib"] for way in ways if way != "attrib"}
    return result


def rows(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each case."""
    for name, result in results.items():
        if "cpu_s" in result:
            each = ", ".join(f"{way} {number(1e3 * spent / result['ablations'])} ms" for way, spent in result["cpu_s"].items())
            less = ", ".join(f"{number(ratio, '.1f')} times less than {way}" for way, ratio in result["times_less"].items())
            yield f"{name:<22} {result['ablations']:>4} ablations, each: {each}; {less}"


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="how often each is computed")] = 3,
    sample: Annotated[int, typer.Option(help="forward passes that are timed")] = 12,
    only: Annotated[str | None, typer.Option("--case", help="one of the dictionaries")] = None,
    json: Annotated[Path | None, typer.Option(help="file for the figures")] = None,
) -> None:
    """Print CPU time of each ablation, and by how much less than the others attrib takes."""
    torch.set_num_threads(1)
    model, console = attrib.load_model("smollm2-135m"), wide_console()
    chosen = CASES if only is None else [name for name in CASES if name == only]
    if not chosen:
        raise SystemExit(f"--case: {only!r}; expected one of {', '.join(CASES)}.")
    results: dict[str, dict[str, Any]] = {}
    for name in chosen:
        results[name] = case(model, name, rounds, sample)
        results[f"{name} held"] = held(model, name, rounds)
        for line in rows({key: results[key] for key in (name, f"{name} held")}):
            console.print(line)
    if json is not None:
        write(json, results)
    end(console, results)


if __name__ == "__main__":
    app()
