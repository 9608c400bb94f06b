"""The most memory that large graphs take: `python -m bench.engine.peaks NAME [--minutes 10] [--out FILE]`, without a name for the list.

Each is built in a process of its own, which first builds a small graph, so that what the libraries themselves take is there before. What is
printed is how far the resident set grew beyond that at its fullest moment, and to what in all, beside what `attrib.graph.plan` expects and
the size of the result; with `--out` edges are written to that file as they are found, and are no part of it. Of a graph that takes longer
than `--minutes` this is the peak until then.

A graph of hundreds of sweeps takes hours. `--sweeps 8` does so many of them, spread over all its rows, from the first to the last: each
is as large as the budget lets it be, but those of early positions have many rows, and those of late ones long rows.
"""

import multiprocessing
import re
import time
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

import attrib
from attrib.core.types import Keep, Mass, TopK
from attrib.engine.plan.runs import Runs
from bench.engine.weights import GPT2, Shape, random_model, random_transcoder

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


def random_parts(shape: Shape, layers: int, latents: int, active: int, tokens: int) -> tuple[Any, list[Any], torch.Tensor]:
    """A shape with random weights, and a transcoder for each of its layers."""
    model = random_model(shape, layers)
    prompt = torch.randint(model.config.d_vocab, (tokens,), generator=torch.Generator().manual_seed(0))
    sites = [attrib.Site(layer, "mlp_in") for layer in range(layers)]
    read = attrib.capture(model, prompt, sites)
    return model, [random_transcoder(at, (attrib.Site(at.layer, "mlp_out"),), latents, active, read[at], at.layer) for at in sites], prompt


SMALL = Shape("small", 256, 4, 4, 64, 1024, "layer", "gelu_tanh", False, "learned")
gpt2_20, gpt2_50 = partial(random_parts, GPT2, 12, 3072, 20), partial(random_parts, GPT2, 12, 3072, 50)
small = partial(random_parts, SMALL, 4, 2048, 150)


def smollm2(tokens: int) -> tuple[Any, list[Any], torch.Tensor]:
    """SmolLM2 with the three transcoders that come with attrib, on pages of these docs."""
    model = attrib.load_model("smollm2-135m")
    text = "\n".join(page.read_text() for page in sorted(DOCS.glob("*.md")))
    assert model.tokenizer is not None
    ids = torch.tensor(model.tokenizer.encode(text[: 8 * tokens])[:tokens])
    return model, [attrib.load_dictionary(f"{model.name}/blocks.{layer}.mlp.hook_in") for layer in (7, 8, 9)], ids


CASES = {
    "small-24": Case("4 layers, d 256, 150 active", small, 24, Mass(0.98), "256MiB"),
    "small-48": Case("4 layers, d 256, 150 active", small, 48, Mass(0.98), "256MiB"),
    "gpt2-32": Case("GPT-2's shape, 20 active", gpt2_20, 32, TopK(100), "256MiB"),
    "gpt2-32-50": Case("GPT-2's shape, 50 active", gpt2_50, 32, Mass(0.98), "512MiB"),
    "gpt2-64": Case("GPT-2's shape, 50 active", gpt2_50, 64, Mass(0.98), "1.5GiB"),
    "gpt2-128": Case("GPT-2's shape, 50 active", gpt2_50, 128, Mass(0.98), "1.5GiB"),
    "smollm2-2048": Case("SmolLM2, three transcoders", smollm2, 2048, TopK(64), "3.2GiB"),
    "smollm2-2048-2000": Case("SmolLM2, three transcoders", smollm2, 2048, TopK(64), "3.8GiB", 2000),
}


def _status(name: str, process: str | int = "self") -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def _from_all_over(runs: Runs, count: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """So many of the runs of rows, and the most bytes that one of them is planned to take: in place of `Runs.all`."""
    found, most, first = list[tuple[int, int]](), 0, 0
    for number in range(count):
        if number == count - 1:  # it ends with the last row
            place = runs.count - (found[-1][1] - found[-1][0])
            while runs.peak(place, runs.count - place) > runs.budget:
                place += 1 + (runs.count - place) // 50
        else:
            place = number * runs.count // (count - 1)
        first = max(first, place)
        if first == runs.count:
            break  # they are not so many
        rows, used = runs.longest(first)
        found.append((first, first + rows))
        first, most = first + rows, max(most, used)
    print(f"planned for {most / 2**20:,.0f} MiB; of {runs.count:,} rows those of", *(f"{a:,}:{b:,}" for a, b in found), flush=True)
    return tuple(found), most


def _build(case: Case, out: Path | None, sweeps: int | None, told: Any) -> None:
    """Build the graph, and tell when what is not measured is over."""
    torch.set_num_threads(1)
    _built(case, 4, None if out is None else out.with_suffix(".small.h5"))
    model, dictionaries, prompt = case.parts(case.tokens)
    for hashed in (model, *dictionaries):
        assert hashed.fingerprint
    Path("/proc/self/clear_refs").write_text("5")
    told.send(_status("VmRSS"))
    begun = time.process_time()
    if sweeps is not None:
        Runs.all = partialmethod(_from_all_over, sweeps)  # type: ignore[method-assign, assignment]
    nodes, edges = _made(case, model, dictionaries, prompt, out)
    told.send((_status("VmHWM"), time.process_time() - begun, nodes, edges))


def _made(case: Case, model: Any, dictionaries: list[Any], prompt: torch.Tensor, out: Path | None) -> tuple[int, int]:
    """Build a graph, in memory or into a file. Returns how many nodes and edges it has."""
    if out is None:
        [graph] = attrib.graph.build(model, dictionaries, [prompt], **_options(case))
        return len(graph.nodes), len(graph)
    with attrib.open_graphs(attrib.build_graphs(out, model, dictionaries, [prompt], **_options(case))) as graphs:
        lazy = graphs.lazy(0)
        return len(lazy.nodes), len(lazy)


def _options(case: Case) -> dict[str, Any]:
    return {"keep": case.keep, "budget": case.budget, "max_nodes": case.max_nodes}


def _built(case: Case, tokens: int, out: Path | None) -> None:
    """A small graph of the same kind."""
    _made(case, *case.parts(tokens), out)
    if out is not None:
        out.unlink()


def _size(out: Path | None) -> str:
    return "" if out is None else f", a file of {out.stat().st_size / 2**20:,.0f} MiB"


@app.command()
def main(
    name: Annotated[str | None, typer.Argument(help="which graph; none for the list")] = None,
    minutes: Annotated[float, typer.Option(help="after which a build is ended")] = 10,
    out: Annotated[Path | None, typer.Option(help="write edges to this file as they are found, in place of holding them")] = None,
    budget: Annotated[str | None, typer.Option(help="working memory, in place of the case's own")] = None,
    sweeps: Annotated[int | None, typer.Option(min=2, help="how many of its sweeps are done; all, without it")] = None,
    planned: Annotated[bool, typer.Option(help="whether the plan is printed, which takes minutes for the largest")] = True,
) -> None:
    """Print the peak of one build. A build that fails says why, and ends this with EOFError."""
    if name not in CASES:
        for known, case in CASES.items():
            print(f"{known:<18} {case.what}, {case.tokens:,} tokens, {case.keep}, budget {case.budget}, max_nodes {case.max_nodes}")
        raise typer.Exit(0 if name is None else 2)
    case = CASES[name] if budget is None else CASES[name]._replace(budget=budget)
    there, told = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_build, args=(case, out, sweeps, told))
    child.start()
    told.close()  # the child's alone, so that its end is seen here
    before = there.recv()
    if there.poll(60 * minutes):
        most, cpu, nodes, edges = there.recv()
        grown = f"{name}: grew by {(most - before) / 2**20:,.0f} MiB to {most / 2**20:,.0f}"
        print(f"{grown}; {cpu:,.0f} s CPU, {nodes:,} nodes, {edges:,} edges{_size(out)}", flush=True)
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
