"""The most memory that large graphs take: `python -m bench.engine.peaks NAME [--minutes 10]`, without a name for the list.

Each is built in a process of its own, which first builds a small graph, so that what the libraries themselves take is there before. What is
printed is how far the resident set grew beyond that at its fullest moment, beside what `attrib.graph.plan` expects and the size of the
result. Of a graph that takes longer than `--minutes` this is the peak until then: its sweeps are all alike, each as large as the budget
lets it be.
"""

import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

import attrib
from attrib.core.types import Keep, Mass, TopK
from attrib.graph.graph import Graph
from bench.engine.weights import GPT2, random_model, random_transcoder

app = typer.Typer(add_completion=False)

DOCS = Path(__file__).parents[2] / "docs"


class Case(NamedTuple):
    """A graph to be built."""

    what: str
    parts: Callable[[int], tuple[Any, list[Any], torch.Tensor]]
    """Model, dictionaries and a prompt of so many tokens."""
    tokens: int
    keep: Keep
    budget: str
    max_nodes: int | None = None


def gpt2(active: int, tokens: int) -> tuple[Any, list[Any], torch.Tensor]:
    """GPT-2's shape with random weights, and a transcoder for each of its layers."""
    model = random_model(GPT2, 12)
    prompt = torch.randint(model.config.d_vocab, (tokens,), generator=torch.Generator().manual_seed(0))
    sites = [attrib.Site(layer, "mlp_in") for layer in range(12)]
    read = attrib.capture(model, prompt, sites)
    return model, [random_transcoder(at, (attrib.Site(at.layer, "mlp_out"),), 3072, active, read[at], at.layer) for at in sites], prompt


def smollm2(tokens: int) -> tuple[Any, list[Any], torch.Tensor]:
    """SmolLM2 with the three transcoders that come with attrib, on pages of these docs."""
    model = attrib.load_model("smollm2-135m")
    text = "\n".join(page.read_text() for page in sorted(DOCS.glob("*.md")))
    assert model.tokenizer is not None
    ids = torch.tensor(model.tokenizer.encode(text[: 8 * tokens])[:tokens])
    return model, [attrib.load_dictionary(f"{model.name}/blocks.{layer}.mlp.hook_in") for layer in (7, 8, 9)], ids


CASES = {
    "gpt2-32": Case("GPT-2's shape, 20 active", lambda tokens: gpt2(20, tokens), 32, TopK(100), "256MiB"),
    "gpt2-128": Case("GPT-2's shape, 50 active", lambda tokens: gpt2(50, tokens), 128, Mass(0.98), "1.5GiB"),
    "smollm2-2048": Case("SmolLM2, three transcoders", smollm2, 2048, TopK(64), "3.5GiB"),
    "smollm2-2048-2000": Case("SmolLM2, three transcoders", smollm2, 2048, TopK(64), "3.8GiB", 2000),
}


def _status(name: str, process: str | int = "self") -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def _build(name: str, told: Any) -> None:
    """Build the graph, and tell when what is not measured is over."""
    torch.set_num_threads(1)
    case = CASES[name]
    _built(case, 4)
    model, dictionaries, prompt = case.parts(case.tokens)
    for hashed in (model, *dictionaries):
        assert hashed.fingerprint
    Path("/proc/self/clear_refs").write_text("5")
    told.send(_status("VmRSS"))
    begun = time.process_time()
    [graph] = attrib.graph.build(model, dictionaries, [prompt], **_options(case))
    told.send((_status("VmHWM"), time.process_time() - begun, len(graph.nodes), len(graph)))


def _options(case: Case) -> dict[str, Any]:
    return {"keep": case.keep, "budget": case.budget, "max_nodes": case.max_nodes}


def _built(case: Case, tokens: int) -> Graph:
    model, dictionaries, prompt = case.parts(tokens)
    return attrib.graph.build(model, dictionaries, [prompt], **_options(case))[0]


@app.command()
def main(
    name: Annotated[str | None, typer.Argument(help="which graph; none for the list")] = None,
    minutes: Annotated[float, typer.Option(help="after which a build is ended")] = 10,
    planned: Annotated[bool, typer.Option(help="whether the plan is printed, which takes minutes for the largest")] = True,
) -> None:
    """Print the peak of one build. A build that fails says why, and ends this with EOFError."""
    if name not in CASES:
        for known, case in CASES.items():
            print(f"{known:<18} {case.what}, {case.tokens:,} tokens, {case.keep}, budget {case.budget}, max_nodes {case.max_nodes}")
        raise typer.Exit(0 if name is None else 2)
    case = CASES[name]
    there, told = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_build, args=(name, told))
    child.start()
    told.close()  # the child's alone, so that its end is seen here
    before = there.recv()
    if there.poll(60 * minutes):
        most, cpu, nodes, edges = there.recv()
        print(f"{name}: grew by {(most - before) / 2**20:,.0f} MiB; {cpu:,.0f} s CPU, {nodes:,} nodes, {edges:,} edges", flush=True)
    else:
        most = _status("VmHWM", child.pid or 0)
        print(f"{name}: grew by {(most - before) / 2**20:,.0f} MiB in its first {minutes:g} minutes, and was ended", flush=True)
        child.kill()
    child.join()
    if planned:
        model, dictionaries, prompt = case.parts(case.tokens)
        print(attrib.graph.plan(model, dictionaries, [prompt], **_options(case)))


if __name__ == "__main__":
    app()
