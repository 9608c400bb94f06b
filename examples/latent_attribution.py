"""Gradients and attributions from latents and tokens to later latents and logits, as a notebook computes them with GPT-2 and plain jacrev.

The same in the same order, of SmolLM2 with the dictionaries that come with attrib. Each heading names the row of
docs/from-the-notebooks.md; where the notebook draws a heat map, the table has its largest entries.

    python examples/latent_attribution.py [--tiny]
"""

import sys
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
import printing
import torch
from printing import Step, pairs, show
from tiny_model import tiny_dictionary, tiny_model

import attrib
from attrib import latents

PROMPT = "The Eiffel tower is in Paris"
CITY = "The Eiffel tower is in the city of"
SPORT = "Fact: Serena Williams plays the sport of"
RIGHT, WRONG = " tennis", " golf"


class Setting(NamedTuple):
    """A model with dictionaries of three layers, and which pairs between tokens are strong."""

    model: attrib.Model
    early: attrib.Dictionary
    late: attrib.Dictionary
    last: attrib.Dictionary
    threshold: float


def smollm2() -> Setting:
    """SmolLM2-135M and three SAEs of its residual stream."""
    early, late, last = (attrib.load_dictionary(f"smollm2-135m/blocks.{layer}.hook_resid_pre") for layer in (6, 9, 27))
    return Setting(attrib.load_model("smollm2-135m"), early, late, last, 2.0)


def tiny() -> Setting:
    """A random model of a few thousand parameters."""
    early, late, last = (tiny_dictionary("relu", f"blocks.{layer}.hook_resid_pre", seed=layer) for layer in (1, 2, 3))
    return Setting(tiny_model([PROMPT, CITY, SPORT, RIGHT, WRONG]), early, late, last, 0.05)


def steps(of: Setting) -> Iterator[Step]:
    """All that the notebook computes, in its order."""
    yield from loaded(of)
    edges = attrib.latent_to_latent(of.model, of.early, of.late, PROMPT, keep=attrib.Dense())
    yield from between_latents(of, edges)
    yield from from_tokens(of)
    yield from to_logits(of)
    yield from to_a_difference(of)


def loaded(of: Setting) -> Iterator[Step]:
    """The model, its dictionaries, what their files say, and where their latents are shown."""
    names = (of.early, of.late, of.last)
    facts = [{"dictionary": d.name, "reads": str(d.site), "rule": d.config.rule, "k": str(d.config.k), "d_sae": d.d_sae} for d in names]
    yield Step("A1", f"{of.model.name} and its dictionaries", pd.DataFrame(facts))
    config = of.early.config
    own = {"site": str(config.site), "rule": config.rule, "k": config.k, "apply_b_dec_to_input": config.apply_b_dec_to_input}
    yield Step("A2", f"what the files of {of.early.name} say", pairs(own | config.metadata.table()))


def between_latents(of: Setting, edges: attrib.Edges) -> Iterator[Step]:
    """Latents to later latents: gradients, attributions, how few pairs those are, and the strong ones between different tokens."""
    active = attrib.encode_sparse(of.early, attrib.capture(of.model, PROMPT, of.early.site)[of.early.site])
    dense = torch.zeros(len(edges.prompts.ids), of.early.d_sae).index_put((active.position, active.latent), active.value)
    sizes = {"active latents": len(active.value), "shape of all": str(list(dense.shape)), "nonzero there": int((dense != 0).sum())}
    yield Step("A4", "active latents alone, and among all", pairs(sizes))
    yield Step(
        "A5", f"{edges.sources.site} to {edges.targets.site}: gradients {list(edges.shape)}", printing.edges(edges.top(8, "gradient"))
    )
    yield Step("A6", "attributions: gradient times activation", printing.edges(edges.top(8)))
    yield Step("A7", "the heat map: strongest sources of the strongest targets", heat_map(edges, 6, 6))
    share = edges.shape[0] * edges.shape[1] / (of.early.d_sae * of.late.d_sae)
    yield Step("A8", "the share of all pairs of latents that is active", pairs({"pairs": edges.dense().numel(), "share": share}))
    apart = between_tokens(edges, of.threshold)
    yield Step("A9", f"pairs above {of.threshold} at different tokens", apart)
    yield Step("A10", "tokens", " ".join(map(repr, edges.prompts.text(0))))
    found = [(of.early, int(row.source_latent)) for row in apart.itertuples()]
    found += [(of.late, int(row.target_latent)) for row in apart.itertuples()]
    yield Step("A3", "where these latents are shown, and what they write", dashboards(of.model, found))


def from_tokens(of: Setting) -> Iterator[Step]:
    """Tokens to latents."""
    edges = attrib.token_to_latent(of.model, of.late, PROMPT, keep=attrib.Dense())
    yield Step("A11", f"tokens to {edges.targets.site}: gradients {list(edges.shape)}", printing.edges(edges.top(8, "gradient")))
    yield Step("A12", "the heat map: tokens of the strongest targets", heat_map(edges, 9, 6, "gradient"))
    pairs_in_all = len(edges.sources) * of.late.d_sae
    yield Step("A12", "the share of all pairs that is active", pairs({"share": edges.dense().numel() / pairs_in_all}))
    yield Step("A12", f"pairs above {of.threshold} at different tokens", between_tokens(edges, of.threshold))


def to_logits(of: Setting) -> Iterator[Step]:
    """Latents to the 25 largest logits."""
    edges = attrib.latent_to_logit(of.model, of.last, CITY, logits=attrib.TopLogits(25), keep=attrib.Dense())
    yield Step("A13", f"{edges.sources.site} to the 25 largest logits: attributions {list(edges.shape)}", printing.edges(edges.top(8)))
    logits = {
        "id": edges.targets.latent.tolist(),
        "token": list(map(repr, edges.targets.labels)),
        "logit": edges.targets.activation.tolist(),
    }
    assert edges.targets.probability is not None
    table = pd.DataFrame(logits | {"probability": edges.targets.probability.tolist()})
    yield Step("A14", "the model's own logits", table.head(8))
    for value in ("gradient", "attribution"):
        yield Step("A15", f"{value}s, sorted by the first logit", by_first(edges, value, 8, 5))
    all_pairs = len(edges.targets) * of.last.d_sae
    sums = {"share of all pairs": edges.dense().numel() / all_pairs, "sum of |attribution|": float(edges.l1.sum())}
    yield Step("A16", "how few pairs, and how much", pairs(sums | {"sum of |activation|": float(edges.sources.activation.abs().sum())}))


def to_a_difference(of: Setting) -> Iterator[Step]:
    """Latents to the difference of two logits."""
    edges = attrib.latent_to_logit(of.model, of.last, SPORT, logits=attrib.Difference(RIGHT, WRONG), keep=attrib.Dense())
    size = float(edges.targets.activation[0])
    yield Step(
        "A17", f"to the logit of {RIGHT!r} less that of {WRONG!r}, {size:.3f}", pairs({"sum of attributions": float(edges.total[0])})
    )
    yield Step("A18", "its one row, by size", printing.edges(edges.top(15)).drop(columns="target"))


# ------------------------------------------------------------------------------------------ small tables


def names_of(edges: attrib.Edges, nodes: attrib.core.edges.Nodes) -> list[str]:
    """What each node is called: a latent or label, and where it stands."""
    tokens = [edges.prompts.text(0)[at] for at in nodes.position.tolist()]
    names = nodes.labels or tuple(map(str, nodes.latent.tolist()))
    if nodes.kind != "latent":
        return [f"{name!r} ({at})" for name, at in zip(names, nodes.position.tolist(), strict=True)]
    return [f"{name} at {token!r} ({at})" for name, token, at in zip(names, tokens, nodes.position.tolist(), strict=True)]


def heat_map(edges: attrib.Edges, sources: int, targets: int, value: str = "attribution") -> pd.DataFrame:
    """The part of a heat map with the largest entries: a row for each source."""
    dense = edges.dense(0, value)
    rows, columns = (
        dense.abs().amax(over).topk(min(count, dense.shape[1 - over])).indices.sort().values for over, count in ((1, targets), (0, sources))
    )
    of, to = names_of(edges, edges.sources), names_of(edges, edges.targets)
    table = pd.DataFrame(dense[rows][:, columns].T.numpy(), columns=[to[row] for row in rows.tolist()])
    table.insert(0, "from", [of[column] for column in columns.tolist()])
    return table


def between_tokens(edges: attrib.Edges, threshold: float) -> pd.DataFrame:
    """Pairs with an attribution above a threshold whose ends stand at different tokens, strongest first."""
    table = edges.to_pandas()
    table = table[(table.attribution > threshold) & (table.source_position != table.target_position)]
    names = ["source_position", "source_token", "source_latent", "target_position", "target_token", "target_latent", "attribution"]
    return table[names].sort_values("attribution", ascending=False, kind="stable")


def by_first(edges: attrib.Edges, value: str, sources: int, targets: int) -> pd.DataFrame:
    """Sources in the order of their value for the first logit, the first and last of them."""
    dense, names = edges.dense(0, value), names_of(edges, edges.sources)
    order = dense[0].argsort(descending=True, stable=True)
    order = torch.cat([order[: sources // 2], order[-(sources // 2) :]]) if len(order) > sources else order
    table = pd.DataFrame(dense[:targets, order].T.numpy(), columns=list(map(repr, edges.targets.labels[:targets])))
    table.insert(0, "from", [names[at] for at in order.tolist()])
    return table


def dashboards(model: attrib.Model, found: list[tuple[attrib.Dictionary, int]]) -> pd.DataFrame:
    """Of each latent, Neuronpedia's address where the dictionary's files name its id, and the tokens whose logits it raises most."""
    rows = []
    for dictionary in dict.fromkeys(d for d, _ in found):
        which = sorted({latent for d, latent in found if d is dictionary})
        labels = {label.latent: label.text for label in latents.logit_labels(model, dictionary, which)}
        is_shown = dictionary.config.metadata.neuronpedia_id is not None
        for latent in which:
            link = latents.neuronpedia_link(dictionary, latent) if is_shown else "its files name no Neuronpedia id"
            rows.append({"dictionary": dictionary.name, "latent": latent, "shown at": link, "raises": labels[latent]})
    return pd.DataFrame(rows, columns=["dictionary", "latent", "shown at", "raises"])


if __name__ == "__main__":
    show(steps(tiny() if "--tiny" in sys.argv[1:] else smollm2()))
