"""`qk_attribution` beside the graph whose heads it explains: `python -m bench.engine.heads [--rounds 3]`.

SmolLM2 with the dictionaries that come with attrib: three transcoders of neighbouring layers, and all seven, which reach over most of its
layers. By default scores are asked for up to the highest layer that moves a latent; `all layers` has those above as well, up to the
logits. `pruned` is of the pruned graph: the scores that its edges use, which are found first, and the scores of all layers. Remainders are
looked at before anything is timed; graph and scores are then computed in turns, CPU times are medians, and products are counted.
"""

from collections.abc import Callable
from statistics import median
from typing import Annotated

import torch
import typer

import attrib
from attrib.graph import Attended, Graph, QKAttribution, build, head_loadings, prune, qk_attribution
from bench.measure import flops, timed

app = typer.Typer(add_completion=False)

TEXT = "The Eiffel tower is in the city of Paris, and the Colosseum is in the"

SETS = {
    "three transcoders": ["7.mlp.hook_in", "8.mlp.hook_in", "9.mlp.hook_in"],
    "all seven": [
        "6.hook_resid_pre", "7.mlp.hook_in", "8.mlp.hook_in", "9.hook_resid_pre", "9.mlp.hook_in", "18.hook_resid_pre", "27.hook_resid_pre",
    ],
}  # fmt: skip


def explanations(
    model: attrib.Model, dictionaries: list[attrib.Dictionary], whole: Graph, layers: bool
) -> dict[str, Callable[[], QKAttribution]]:
    """What is timed: scores of the whole graph, and of what pruning leaves of it."""
    pruned, every = prune(whole).graph, Attended(layers=tuple(range(model.config.n_layers)))

    def used() -> QKAttribution:
        return qk_attribution(model, dictionaries, pruned, head_loadings(model, dictionaries, pruned, len(pruned)).used(0.9))

    found = {"default": lambda: qk_attribution(model, dictionaries, whole), "pruned, used": used}
    if layers:
        found["pruned, all layers"] = lambda: qk_attribution(model, dictionaries, pruned, every)
        found["all layers"] = lambda: qk_attribution(model, dictionaries, whole, every)
    return found


@app.command()
def main(rounds: Annotated[int, typer.Option(help="how often each is computed")] = 3, layers: bool = True) -> None:
    """Print the CPU seconds and products of a graph and of scores of its heads, and their ratios."""
    model, device = attrib.load_model("smollm2-135m"), torch.device("cpu")
    for name, sites in SETS.items():
        dictionaries = [attrib.load_dictionary(f"{model.name}/blocks.{site}") for site in sites]

        def graph(dictionaries: list[attrib.Dictionary] = dictionaries) -> Graph:
            return build(model, dictionaries, TEXT)[0]

        built, of_graph = flops(graph)
        for choice, explained in explanations(model, dictionaries, built, layers).items():
            found, of_scores = flops(explained)
            if not found.worst < 1e-4:
                raise SystemExit(f"{name}, {choice}: a remainder of {found.worst:.1e} of the largest score")
            times = [(timed(graph, device)[1].cpu, timed(explained, device)[1].cpu) for _ in range(rounds)]
            beside, seconds = (median(column) for column in zip(*times, strict=True))
            print(
                f"{name:<18} {choice:<18} {len(found.nodes):>6,} nodes {len(found):>7,} scores   "
                f"graph {beside:6.2f} s {of_graph / 1e9:7.1f} GFLOP   scores {seconds:6.2f} s {of_scores / 1e9:7.1f} GFLOP   "
                f"ratio {seconds / beside:5.2f}, of products {of_scores / of_graph:5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    app()
