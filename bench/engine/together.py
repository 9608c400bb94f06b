"""`attrib.jacobian` beside the calls of one source and one target: `python -m bench.engine.together [--layers 12] [--tokens 24]`.

A model of GPT-2's kind with random weights and a random SAE at every MLP's output, all of them cut; the edges between all SAEs,
from the tokens, and to ten logits. Values are compared first; then both are run in turns, and CPU times are medians. Errors
are sources of the sweep as well where `--errors` is given: no other call has them.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from bench.engine.weights import Shape, random_model

app = typer.Typer(add_completion=False)

SMALL = Shape("a quarter of gpt2-small", 192, 12, 12, 16, 768, "layer", "gelu_tanh", False, "learned")
"""So that twelve layers of it take seconds."""


def saes(model: attrib.Model, d_sae: int, k: int) -> list[attrib.Dictionary]:
    """A random TopK SAE at each MLP's output."""
    made, d = [], model.config.d_model
    for layer in range(model.config.n_layers):
        W = torch.randn(d, d_sae, generator=torch.Generator().manual_seed(layer)) / d**0.5
        site = attrib.Site(layer, "mlp_out")
        parts = {"W_enc": W, "W_dec": W.T.contiguous(), "b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(d)}
        made.append(from_tensors(site=site, rule="topk", k=k, **parts))
    return made


def one_by_one(model: attrib.Model, logits: Any, ids: torch.Tensor, **options: Any) -> dict[Any, Any]:
    """Every pair by its own call, numbered as `attrib.jacobian` numbers them."""
    cuts = options["cuts"]
    found: dict[Any, Any] = {}
    for j, target in enumerate(cuts):
        found[0, j] = attrib.token_to_latent(model, target, ids, **options)
        found |= {(i + 1, j): attrib.latent_to_latent(model, cuts[i], target, ids, **options) for i in range(j)}
    last = len(cuts)
    found |= {(i + 1, last): attrib.latent_to_logit(model, cut, ids, logits=logits, **options) for i, cut in enumerate(cuts)}
    return found


def seconds(call: Callable[[], Any]) -> float:
    """CPU time of one run."""
    start = time.process_time()
    call()
    return time.process_time() - start


@app.command()
def main(
    layers: Annotated[int, typer.Option()] = 12,
    tokens: Annotated[int, typer.Option()] = 24,
    active: Annotated[int, typer.Option(help="active latents of each SAE at each position")] = 20,
    policy: Annotated[str, typer.Option(help="linear or exact")] = "linear",
    errors: Annotated[bool, typer.Option(help="whether errors are sources too")] = False,
    runs: Annotated[int, typer.Option()] = 3,
) -> None:
    """Compare values, then time both in turns."""
    torch.set_num_threads(1)
    model, logits = random_model(SMALL, layers), attrib.TopLogits(10)
    cuts = saes(model, 400, active)
    ids = torch.randint(model.config.d_vocab, (tokens,), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"cuts": cuts, "policy": attrib.LINEAR if policy == "linear" else attrib.EXACT, "keep": attrib.TopK(10)}
    sources: list[Any] = ["tokens", *cuts, *(attrib.ErrorAt(cut.site) for cut in cuts if errors)]

    def together() -> dict[Any, Any]:
        return attrib.jacobian(model, sources, [*cuts, logits], ids, **options)

    def alone() -> dict[Any, Any]:
        return one_by_one(model, logits, ids, **options)

    found, want = together(), alone()
    apart = max(float((found[pair].total - edges.total).abs().max() / edges.l1.max().clamp_min(1e-9)) for pair, edges in want.items())
    if apart > 1e-4:
        raise SystemExit(f"row totals are {apart:.1e} apart")
    times: dict[str, list[float]] = {"attrib.jacobian": [], f"{len(want)} calls": []}
    for _ in range(runs):
        for name, call in zip(times, (together, alone), strict=True):
            times[name].append(seconds(call))
    mine, theirs = (statistics.median(each) for each in times.values())
    print(f"{layers} layers, {tokens} tokens, {active} active, {policy}: row totals at most {apart:.1e} apart")
    for name, each in times.items():
        print(f"{name:20} {statistics.median(each):8.3f} s of CPU time")
    print(f"ratio {theirs / mine:.2f}")


if __name__ == "__main__":
    app()
