"""Circuits that are known, found by attrib and by others: `python -m bench.truth`, with tracr (`pip install --no-deps tracr-pypi`).

Each program of tests/support/compiled.py is a transformer of which every edge is told by the program. attrib's graph is held against all
of them, node by node. The others rank edges between components, so that all are compared there: an edge between two components is
true where some of their nodes have one, and attrib's rank of it is the sum of the sizes of these. The others run in TransformerLens:

    EAP        an output of one component dotted with the gradient of the right answers by what another reads of it; the baseline is zero
    ablation   how much all answers move where one component's output is taken out of what another reads

Both look at values alone, as attrib's graph does with patterns held: what a head reads as queries and keys is left as it is. They rank by
what matters to the answer, and have nothing to say of an edge without which the answer would be the same.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from bench.output import end, number, wide_console, write

FALSE = 1e-9


class Part(NamedTuple):
    """A component: what brings tokens or positions, a head, an MLP, or the answers."""

    kind: str
    layer: int
    head: int = 0


class Scored(NamedTuple):
    """One program."""

    nodes: float
    """attrib's AUROC over pairs of nodes."""
    false: float
    """The largest edge where there is none."""
    wrong: float
    """The largest difference from the program's weight, relative to the largest."""
    between: Mapping[str, float | None]
    """AUROC over pairs of components, by who ranks; None where all pairs are edges."""
    edges: tuple[int, int]
    """True ones between nodes, and all pairs."""


def parts_of(known: Any) -> list[Part]:
    """The components that a program has."""
    found = [Part("token", -1), Part("position", -1)]
    for layer in range(known.n_layers):
        found += [Part("head", layer, number) for number in range(len(known.heads.get(layer, ())))]
        found += [Part("mlp", layer)] if layer in known.mlps else []
    return [*found, Part("logit", known.n_layers)]


def part_of(known: Any, graph: Any, node: int) -> Part | None:
    """The component of a node; None of errors and biases, of which a program has none."""
    from tests.support.compiled import kind_of

    kind, layer = kind_of(graph, node)
    if kind == "attended":
        number = int(graph.nodes.latent[node])
        heads = [at for at, head in enumerate(known.heads[layer]) if known.into_head(head)[:, number].any()]
        return Part("head", layer, heads[0]) if heads else None
    return {"unit": Part("mlp", layer), "logit": Part("logit", known.n_layers)}.get(kind) or (
        Part(kind, -1) if kind in ("token", "position") else None
    )


def score(name: str) -> Scored:
    """A program by all of them."""
    from tests.support.compiled import auroc, compiled

    known = compiled(name)
    graph = known.graph
    got, wanted = np.abs(graph.to_scipy().toarray()[graph.targets.numpy()]), np.abs(known.wanted(graph))
    chosen = ((graph.nodes.position[graph.targets] > 0) & (graph.value.abs() > 1e-6)).numpy()
    rows = graph.targets.numpy()[chosen]
    got, wanted = got[chosen], wanted[chosen]
    parts = parts_of(known)
    pairs = [(u, v) for at, v in enumerate(parts) for u in parts[:at] if v.kind not in ("token", "position") and _is_before(u, v)]
    of_node = [part_of(known, graph, node) for node in range(len(graph.nodes))]
    ours, truth = (_summed(of_node, rows, matrix, pairs) for matrix in (got, wanted))
    is_true = np.array([truth[pair] > 0 for pair in pairs])
    ranks = {"attrib": ours, "EAP": by_gradient(known, pairs), "ablation": by_ablation(known, pairs)}
    between = {who: auroc([found[pair] for pair in pairs], is_true) for who, found in ranks.items()}
    none = wanted == 0
    return Scored(
        auroc(got.ravel(), ~none.ravel()), float(got[none].max()), float(np.abs(got - wanted).max() / max(1, wanted.max())),
        {who: None if value != value else value for who, value in between.items()}, (int((~none).sum()), none.size),
    )  # fmt: skip


def _is_before(u: Part, v: Part) -> bool:
    return u.layer < v.layer or (u.layer == v.layer and (u.kind, v.kind) == ("head", "mlp"))


def _summed(
    of_node: list[Part | None], rows: np.ndarray, matrix: np.ndarray, pairs: list[tuple[Part, Part]]
) -> dict[tuple[Part, Part], float]:
    found = dict.fromkeys(pairs, 0.0)
    for row, node in enumerate(rows.tolist()):
        for source in np.flatnonzero(matrix[row]).tolist():
            u, v = of_node[source], of_node[node]
            if u is not None and v is not None and (u, v) in found:
                found[u, v] += float(matrix[row, source])
    return found


# ------------------------------------------------------------------------------------------------ the others


def written(cache: Mapping[str, Tensor], part: Part) -> Tensor:
    """What a component adds to the stream, [positions, d_model], by TransformerLens' names."""
    match part.kind:
        case "token":
            return cache["hook_embed"][0]
        case "position":
            return cache["hook_pos_embed"][0]
        case "head":
            return cache[f"blocks.{part.layer}.attn.hook_result"][0, :, part.head]
    return cache[f"blocks.{part.layer}.hook_mlp_out"][0]


def reading(known: Any, part: Part) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The hook at which a component reads the stream, and its part of what is there."""
    match part.kind:
        case "head":
            return f"blocks.{part.layer}.hook_v_input", lambda x: x[0, :, part.head]
        case "mlp":
            return f"blocks.{part.layer}.hook_mlp_in", lambda x: x[0]
    return f"blocks.{known.n_layers - 1}.hook_resid_post", lambda x: x[0]


def prepared(known: Any) -> Any:
    """The HookedTransformer with hooks on what each head reads and writes."""
    model = known.foreign
    model.set_use_split_qkv_input(True)
    model.set_use_attn_result(True)
    if known.mlps:
        model.set_use_hook_mlp_in(True)
    return model


def by_gradient(known: Any, pairs: list[tuple[Part, Part]]) -> dict[tuple[Part, Part], float]:
    """Edge attribution patching, from nothing."""
    model, read = prepared(known), dict[str, Tensor]()

    def keep(x: Tensor, hook: Any) -> Tensor:
        x = x if x.requires_grad else x.requires_grad_()
        x.retain_grad()
        read[hook.name] = x
        return x

    _, cache = model.run_with_cache(known.tokens[None], return_cache_object=False)
    names = {reading(known, v)[0] for _, v in pairs}
    with torch.enable_grad():
        hooks = [("hook_embed", lambda x, hook: x.requires_grad_()), *((name, keep) for name in sorted(names))]
        logits = model.run_with_hooks(known.tokens[None], fwd_hooks=hooks)[0, 1:, : len(known.outputs)]
        (logits.max(-1).values if logits.shape[1] > 1 else logits[:, 0]).sum().backward()
    found = {}
    for u, v in pairs:
        name, chosen = reading(known, v)
        gradient = read[name].grad
        found[u, v] = 0.0 if gradient is None else float((written(cache, u) * chosen(gradient)).sum().abs())
    return found


@torch.no_grad()
def by_ablation(known: Any, pairs: list[tuple[Part, Part]]) -> dict[tuple[Part, Part], float]:
    """One edge at a time."""
    model = prepared(known)
    clean, cache = model.run_with_cache(known.tokens[None], return_cache_object=False)

    def without(x: Tensor, hook: Any, u: Part, chosen: Callable[[Tensor], Tensor]) -> Tensor:
        x = x.clone()
        chosen(x).sub_(written(cache, u))
        return x

    found = {}
    for u, v in pairs:
        name, chosen = reading(known, v)
        moved = model.run_with_hooks(known.tokens[None], fwd_hooks=[(name, partial(without, u=u, chosen=chosen))])
        found[u, v] = float((moved - clean)[0, 1:].abs().sum())
    return found


# ------------------------------------------------------------------------------------------------- the table


def shown(found: Mapping[str, Scored]) -> Table:
    """One line for each program, and their means."""
    table = Table(title="Edges of compiled programs: AUROC", title_justify="left")
    columns = ("edges", "pairs", "largest false", "off by", "nodes: attrib", "components: attrib", "EAP", "ablation")
    for column in ("program", *columns):
        table.add_column(column, justify="left" if column == "program" else "right")
    for name, each in found.items():
        between = (number(each.between[who], ".3f") for who in ("attrib", "EAP", "ablation"))
        table.add_row(
            name, f"{each.edges[0]:,}", f"{each.edges[1]:,}", f"{each.false:.0e}", f"{each.wrong:.0e}", number(each.nodes, ".3f"), *between
        )
    table.add_section()
    for what, of in (("mean", np.mean), ("least", np.min)):
        ranked = {
            who: [value for each in found.values() if (value := each.between[who]) is not None] for who in ("attrib", "EAP", "ablation")
        }
        means = (number(float(of(values)) if values else None, ".3f") for values in ranked.values())
        table.add_row(what, "", "", "", "", number(float(of([each.nodes for each in found.values()])), ".3f"), *means)
    return table


def chosen(case: str | None) -> Iterator[str]:
    """Names of programs, or those that begin so."""
    from tests.support.compiled import programs

    names = [name for name in programs() if case is None or name.startswith(case)]
    if not names:
        raise typer.BadParameter(f"{case!r} begins no program's name; there are {', '.join(programs())}.", param_hint="--case")
    yield from names


def main(
    case: Annotated[str | None, typer.Option(help="only programs whose name begins so")] = None,
    json: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
) -> None:
    """Known circuits, by attrib, edge attribution patching and ablation."""
    torch.set_num_threads(1)
    console: Console = wide_console()
    found = {name: score(name) for name in track(list(chosen(case)), console=console, transient=True)}
    console.print(shown(found))
    results = {
        name: {**each._asdict(), "checked": each.nodes >= 0.99 and each.false < FALSE and each.wrong < FALSE}
        for name, each in found.items()
    }
    if json is not None:
        write(json, results)
    end(console, results)


if __name__ == "__main__":
    typer.run(main)
