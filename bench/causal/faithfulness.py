"""The curves of docs/faithfulness.md, on SmolLM2 and the dictionaries that come with attrib: `python -m bench.causal.faithfulness`.

Ten minutes of one thread for all of it. `--prompts 4`, or some `--rule` alone, is sooner done and says less.
"""

import argparse
import time

import torch

import attrib
from attrib.causal import Faithfulness, edge_faithfulness, faithfulness, rank, rank_edges
from attrib.causal.components import EdgeRule
from attrib.causal.generators import TASKS
from attrib.causal.rankings import Rule

SITES = ("blocks.6.hook_resid_pre", "blocks.9.hook_resid_pre", "blocks.18.hook_resid_pre", "blocks.27.hook_resid_pre")
RULES: tuple[Rule, ...] = ("attribution", "integrated gradients", "ablation", "random")
EDGE_RULES: tuple[EdgeRule, ...] = ("EAP-IG", "EAP", "random")
CURVES = ("completeness", "sufficiency", "necessity")


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16, help="of each part of a task")
    parser.add_argument("--ablated", type=int, default=4, help="prompts that the ranking by ablation is made from")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--rule", choices=(*RULES, *EDGE_RULES[:-1]), action="append", help="some rules alone")
    parser.add_argument("--ablate", choices=("mean", "zero"), default="mean")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = attrib.load_model("smollm2-135m")
    dictionaries = [attrib.load_dictionary(f"smollm2-135m/{site}") for site in SITES]
    for name in asked.task or TASKS:
        task = TASKS[name](model, asked.prompts, asked.prompts)
        print(f"\n## {name}, {asked.ablate} ablation\n")
        for rule in RULES if not asked.rule else [rule for rule in RULES if rule in asked.rule]:
            began = time.process_time()
            examples = task.train[: asked.ablated] if rule == "ablation" else task.train
            ranking = rank(model, dictionaries, examples, rule, ablate=asked.ablate)
            ranked = time.process_time() - began
            told(faithfulness(model, dictionaries, task.train, ranking, held_out=task.held_out, ablate=asked.ablate), ranked)
        for of_edges in EDGE_RULES if not asked.rule else [rule for rule in EDGE_RULES[:-1] if rule in asked.rule]:
            began = time.process_time()
            edges = rank_edges(model, task.train, of_edges, ablate=asked.ablate)
            ranked = time.process_time() - began
            told(edge_faithfulness(model, task.train, edges, held_out=task.held_out, ablate=asked.ablate), ranked)


def told(found: Faithfulness, seconds: float) -> None:
    """Print the curves of a ranking."""
    print(f"{found.ranking}: {found.units:,} units, whole {dict(found.whole)}, none {dict(found.empty)}, ranked in {seconds:.0f} s of CPU")
    print("areas", {curve: round(found.area(curve), 3) for curve in CURVES})
    wide = found.table.pivot(index="n", columns="curve", values="share")[list(CURVES)]
    print(wide.round(3).to_string(), flush=True)


if __name__ == "__main__":
    main()
