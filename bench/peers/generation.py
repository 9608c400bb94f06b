"""Generation beside transformers' own, each with its cache, on SmolLM2 in one process.

    python -m bench.peers.generation [--json generation.json]        # exits 1 where the two give different tokens

95 tokens, as the tutorials of steering generate, greedy and drawn (temperature 0.7, top_p 0.9), of one prompt and of four of
different lengths. Greedy tokens must be the same; drawn ones cannot be, as each has draws of its own. Ways take turns, and figures are
medians of CPU time. Needs the fetched SmolLM2.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import attrib
from attrib.causal import generate
from attrib.models.transformer import Model
from bench.measure import timed
from bench.output import end, number, wide_console, write

TEXTS = ["Once upon a time, there was a", "The opposite of hot is", "The Eiffel tower is in the city of", "When Mary and John went to"]
DRAWN = {"temperature": 0.7, "top_p": 0.9}
MOST = 1.2
"""Times transformers' CPU time that a case may take."""


def ours(model: Model, texts: list[str], tokens: int, options: dict[str, Any]) -> list[list[int]]:
    """attrib's continuations."""
    return [one.tokens.tolist() for one in generate(model, texts, max_tokens=tokens, stop_at_end=False, **options)]


def theirs(original: Any, prompts: list[torch.Tensor], tokens: int, options: dict[str, Any]) -> list[list[int]]:
    """transformers' continuations: prompts padded on the left, in one batch, to the full length."""
    longest = max(map(len, prompts))
    padded = torch.stack([torch.nn.functional.pad(ids, (longest - len(ids), 0)) for ids in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(ids) for ids in prompts]).long()
    found = original.generate(
        padded, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0, do_sample=bool(options), **options
    )
    return [row[longest:].tolist() for row in found]


def main(
    tokens: Annotated[int, typer.Option(help="Tokens for each prompt", min=1)] = 95,
    repeats: Annotated[int, typer.Option(help="Runs of each way", min=1)] = 3,
    json: Annotated[Path | None, typer.Option(help="Where to write the figures")] = None,
) -> None:
    """Time both, and hold their tokens against each other."""
    import transformers

    from attrib.adapters.models.smollm2 import fetch

    torch.set_num_threads(1)
    model = attrib.load_model("smollm2-135m")
    assert model.tokenizer is not None
    original = transformers.AutoModelForCausalLM.from_pretrained(fetch(), dtype=torch.float32).eval()
    original.generation_config.eos_token_id = None
    results: dict[str, dict[str, Any]] = {}
    for name, texts, options in [
        ("greedy, 1 prompt", TEXTS[:1], {}),
        ("greedy, 4 prompts", TEXTS, {}),
        ("drawn, 1 prompt", TEXTS[:1], DRAWN),
        ("drawn, 4 prompts", TEXTS, DRAWN),
    ]:
        prompts = [torch.tensor(model.tokenizer.prompt(text)) for text in texts]
        ways: dict[str, Callable[[], list[list[int]]]] = {
            "attrib": partial(ours, model, texts, tokens, options),
            "transformers": partial(theirs, original, prompts, tokens, options),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        found = {}
        for _ in range(repeats):
            for way, call in ways.items():
                found[way], spent = timed(call, model.device)
                times[way].append(spent.cpu)
        seconds = {way: median(spent) for way, spent in times.items()}
        results[name] = {
            "checked": bool(options) or found["attrib"] == found["transformers"],
            "tokens": tokens, "prompts": len(texts), "cpu_s": seconds, "ratio": seconds["attrib"] / seconds["transformers"],
        }  # fmt: skip
    if json is not None:
        write(json, results)
    table = Table("case", "attrib, CPU s", "transformers, CPU s", "ratio", f"at most {MOST}")
    for name, result in results.items():
        within = "yes" if result["ratio"] <= MOST else "NO"
        table.add_row(name, *(number(result["cpu_s"][way]) for way in ("attrib", "transformers")), number(result["ratio"]), within)
    wide_console().print(table)
    end(wide_console(), results)


if __name__ == "__main__":
    typer.run(main)
