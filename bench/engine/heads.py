"""`qk_attribution` beside the graph whose heads it explains: `python -m bench.engine.heads [--rounds 3]`.

SmolLM2 with the dictionaries that come with attrib: three transcoders of neighbouring layers, and all seven, which reach over most of its
layers. By default scores are asked for up to the highest layer that moves a latent; `all layers` has those above as well, up to the
logits. Remainders are looked at before anything is timed; graph and scores are then computed in turns, and CPU times are medians.
"""

from statistics import median
from typing import Annotated

import torch
import typer

import attrib
from attrib.graph import Attended, Graph, QKAttribution, build, qk_attribution
from bench.measure import timed

app = typer.Typer(add_completion=False)

TEXT = "The Eiffel tower is in the city of Paris, and the Colosseum is in the"

SETS = {
    "three transcoders": ["7.mlp.hook_in", "8.mlp.hook_in", "9.mlp.hook_in"],
    "all seven": [
        "6.hook_resid_pre", "7.mlp.hook_in", "8.mlp.hook_in", "9.hook_resid_pre", "9.mlp.hook_in", "18.hook_resid_pre", "27.hook_resid_pre",
    ],
}  # fmt: skip


@app.command()
def main(rounds: Annotated[int, typer.Option(help="how often each is computed")] = 3, layers: bool = True) -> None:
    """Print the CPU seconds of a graph and of scores of its heads, and their ratio."""
    model, device = attrib.load_model("smollm2-135m"), torch.device("cpu")
    choices = {"default": Attended()} | ({"all layers": Attended(layers=tuple(range(model.config.n_layers)))} if layers else {})
    for name, sites in SETS.items():
        dictionaries = [attrib.load_dictionary(f"{model.name}/blocks.{site}") for site in sites]

        def graph(dictionaries: list[attrib.Dictionary] = dictionaries) -> Graph:
            return build(model, dictionaries, TEXT)[0]

        built = graph()
        for choice, scores in choices.items():

            def explained(
                dictionaries: list[attrib.Dictionary] = dictionaries, built: Graph = built, scores: Attended = scores
            ) -> QKAttribution:
                return qk_attribution(model, dictionaries, built, scores)

            found = explained()
            if not found.worst < 1e-4:
                raise SystemExit(f"{name}, {choice}: a remainder of {found.worst:.1e} of the largest score")
            times = [(timed(graph, device)[1].cpu, timed(explained, device)[1].cpu) for _ in range(rounds)]
            of_graph, of_scores = (median(column) for column in zip(*times, strict=True))
            print(
                f"{name:<18} {choice:<11} {len(built.nodes):>6,} nodes {len(found):>7,} scores   "
                f"graph {of_graph:6.2f} s   scores {of_scores:6.2f} s   ratio {of_scores / of_graph:5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    app()
