"""The curves of docs/faithfulness.md, on SmolLM2 and the dictionaries that come with attrib: `python -m bench.causal.faithfulness`.

Every ranking is told with bootstrap intervals of 95% over prompts. Some minutes of one thread for each ranking of 40 prompts;
`--prompts 4`, or some `--rule` alone, is sooner done and says less.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch

import attrib
from attrib.causal import Contrast, Faithfulness, edge_faithfulness, faithfulness, graph_faithfulness, rank, rank_edges
from attrib.causal.components import EdgeRule
from attrib.causal.faithfulness_curves import CURVES
from attrib.causal.generators import TASKS
from attrib.causal.rankings import Rule
from attrib.graph.scoring import CONSTANTS

SITES = ("blocks.6.hook_resid_pre", "blocks.9.hook_resid_pre", "blocks.18.hook_resid_pre", "blocks.27.hook_resid_pre")
TRANSCODERS = tuple(f"blocks.{layer}.mlp.hook_in" for layer in (7, 8, 9))
RULES: tuple[Rule, ...] = ("attribution", "integrated gradients", "ablation", "random")
EDGE_RULES: tuple[EdgeRule, ...] = ("EAP-IG", "EAP", "random")
NUMBERS = (4, 16, 64, 256, 1024, 4096, 16384)
"""How many units are kept."""


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=40, help="of each part of a task")
    parser.add_argument("--ablated", type=int, default=4, help="prompts that the ranking by ablation is made from")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--rule", choices=(*RULES, *EDGE_RULES[:-1]), action="append", help="some rules alone")
    parser.add_argument("--ablate", choices=("mean", "zero"), default="mean")
    parser.add_argument("--keep", type=int, nargs="+", default=NUMBERS, help="numbers of units that are kept, beside none and all")
    parser.add_argument("--graphs", action="store_true", help="attribution graphs of the held-out prompts in the place of all else")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = attrib.load_model("smollm2-135m")
    sites = TRANSCODERS if asked.graphs else SITES
    dictionaries = [attrib.load_dictionary(f"smollm2-135m/{site}") for site in sites]
    for name in asked.task or TASKS:
        task = TASKS[name](model, asked.prompts, asked.prompts)
        print(f"\n## {name}, {asked.ablate} ablation, {asked.prompts} prompts of each part\n", flush=True)
        if asked.graphs:
            of_graphs(model, dictionaries, task.held_out)
            continue
        found: list[Faithfulness] = []
        options: Any = {"held_out": task.held_out, "ablate": asked.ablate, "keep": asked.keep}
        for rule in RULES if not asked.rule else [rule for rule in RULES if rule in asked.rule]:
            began = time.process_time()
            examples = task.train[: asked.ablated] if rule == "ablation" else task.train
            ranking = rank(model, dictionaries, examples, rule, ablate=asked.ablate)
            ranked = time.process_time() - began
            found.append(told(faithfulness(model, dictionaries, task.train, ranking, **options), ranked))
        for of_edges in EDGE_RULES if not asked.rule else [rule for rule in EDGE_RULES[:-1] if rule in asked.rule]:
            began = time.process_time()
            edges = rank_edges(model, task.train, of_edges, ablate=asked.ablate)
            ranked = time.process_time() - began
            found.append(told(edge_faithfulness(model, task.train, edges, **options), ranked))
        print(tables(found, asked.keep), flush=True)


def of_graphs(model: Any, dictionaries: Any, examples: Sequence[Contrast]) -> None:
    """Print the curves over edges and over nodes of the examples' graphs, with errors taken out as well, and always there."""
    graphs, began = [], time.process_time()
    for one in examples:
        asked: Any = {"targets": attrib.Difference(one.answer, one.distractor), "keep": attrib.Dense()}
        graphs += attrib.graph.build(model, dictionaries, torch.tensor(one.tokens), **asked)
    print(f"{len(graphs)} graphs in {time.process_time() - began:.0f} s of CPU; {graphs[0]}", flush=True)
    for units, numbers in (("edges", NUMBERS), ("nodes", NUMBERS[:4])):
        for always in (CONSTANTS, (*CONSTANTS, "error", "mlp")):
            options: Any = {"units": units, "always": always, "keep": numbers}
            found = [graph_faithfulness(graphs, rule, **options) for rule in ("influence", "weight", "random")]
            (whole,), (empty,) = found[0].whole.values(), found[0].empty.values()
            print(f"\n{units}, always there: {', '.join(always)}: {whole:.2f} with all of {found[0].units:,} and {empty:.2f} with none")
            print(tables(found, numbers, ("completeness", "necessity")), flush=True)


def told(found: Faithfulness, seconds: float) -> Faithfulness:
    """A ranking's curves, once a line is printed of what they lie between."""
    print(f"{found.ranking}: {found.units:,} units, ranked in {seconds:.0f} s of CPU")
    for curve, (part, is_kept) in CURVES.items():
        if is_kept:
            right = found.table[(found.table.curve == curve) & (found.table.n == found.units)].right.item()
            print(f"  {part}: {found.whole[part]:.2f} with all, right in {right:.0%}, and {found.empty[part]:.2f} with none", flush=True)
    return found


def tables(several: Sequence[Faithfulness], numbers: Sequence[int], curves: Sequence[str] = tuple(CURVES)) -> str:
    """Areas, what they are apart from the first ranking's of the same units, and shares, as tables of Markdown."""
    lines = ["", f"| ranking | {' | '.join(curves)} |", "|---" * (len(curves) + 1) + "|"]
    for one in several:
        lines.append(f"| {one.ranking} | {' | '.join(str(one.area(curve)) for curve in curves)} |")
        first = next(other for other in several if other.units == one.units)
        if first is not one:
            apart = (str(one.area(curve, less=first)) for curve in curves)
            lines.append(f"| less {first.ranking} | {' | '.join(apart)} |")
    lines += ["", f"| kept | {' | '.join(f'{n:,}' for n in numbers)} |", "|---" * (len(numbers) + 1) + "|"]
    for one in several:
        for curve in curves:
            part = one.table[(one.table.curve == curve) & one.table.n.isin(numbers)]
            cells = (f"{line.share:.2f} [{line.low:.2f}, {line.high:.2f}]" for line in part.itertuples())
            lines.append(f"| {one.ranking}, {curve} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
