"""What transcoder_circuits (Dunefsky, Chlenski and Nanda 2024) computes and shows, in the order of its code, each by a call of attrib.

A latent of the last transcoder is taken apart on a prompt: heads and positions, other latents, paths and their graph; then over a few
texts, and by the weights alone. docs/from-transcoder-circuits.md goes through the steps, by the numbers of the headings.

    python examples/transcoder_circuits.py            # SmolLM2 with the dictionaries that come with attrib
    python examples/transcoder_circuits.py --tiny     # a random model of three layers, in a few seconds
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import attrib
from attrib.adapters import from_tensors
from attrib.causal import Ablate, loss
from attrib.graph import (
    Custom,
    Graph,
    Latents,
    PathFilter,
    Where,
    build,
    de_embeddings,
    global_weights,
    graph_of,
    greedy,
    logit_histogram,
    logit_weights,
    mean_attributions,
    merge_positions,
    ov_norms,
    select,
    sources,
    strongest,
    virtual_weights,
    where_paths_begin,
    with_heads,
    without_positions,
)
from attrib.latents import evaluate
from attrib.stats import scores

TEXTS = (
    "The Eiffel tower is in the city of Paris, and the Colosseum is in the city of Rome.",
    "She put the keys into her coat, locked the door of the house, and walked down to the river.",
    "Water boils at a hundred degrees, but on top of a high mountain it boils sooner.",
    "The meeting of the two presidents was moved from Monday to the end of the week.",
)
K = 5
"""Rows at either end of a table."""


class Given(NamedTuple):
    """What is analysed: a latent of the last transcoder at the last position of a prompt, and texts to see it on."""

    model: attrib.Model
    transcoders: Sequence[attrib.Dictionary]
    sae: attrib.Dictionary
    prompt: Any
    texts: Sequence[Any]
    latent: int
    graph: Graph
    """What each latent of the prompt is made of, down to the embeddings. MLPs without a transcoder are what they write."""

    @property
    def last(self) -> attrib.Dictionary:
        """The transcoder of the latent."""
        return self.transcoders[-1]

    @property
    def before(self) -> attrib.Dictionary:
        """The transcoder before it."""
        return self.transcoders[-2]

    @property
    def read(self) -> torch.Tensor:
        """The direction of the stream that the latent reads: its encoder's, with the weights of the norm before it."""
        encoder = self.last.params.W_enc[:, self.latent].detach()
        return self.model.params.blocks[self.last.site.layer].norm_2.weight.detach() * encoder

    @property
    def written(self) -> torch.Tensor:
        """The vector that it writes."""
        return self.last.params.W_dec[self.latent].detach()

    @property
    def targets(self) -> Latents:
        """The latent, as graphs take it."""
        return Latents([(str(self.last.site), self.latent, -1)])

    def node(self, graph: Graph) -> int:
        """The latent's number in a graph."""
        at = Where(kind="latent", site=str(self.last.site), latent=self.latent, position=len(graph.tokens) - 1)
        return int(at.find(graph.nodes)[0])


def given(
    model: attrib.Model, transcoders: Sequence[attrib.Dictionary], sae: attrib.Dictionary, prompt: Any, texts: Sequence[Any]
) -> Given:
    """The latent that is most active at the end of the prompt, and the graph of the prompt."""
    latent = attrib.latents.strongest(model, transcoders[-1], prompt, position=-1, k=1)[0].latent
    targets = Latents([(str(transcoders[-1].site), latent, -1)])
    (graph,) = build(model, transcoders, prompt, targets=targets, mlps="leaf", keep=attrib.Dense())
    return Given(model, transcoders, sae, prompt, texts, latent, graph)


def both_ends(table: pd.DataFrame, by: str, k: int = K) -> pd.DataFrame:
    """The rows of the most negative and of the most positive values."""
    ordered = table.sort_values(by, kind="stable")
    return pd.concat([ordered.head(k), ordered.tail(k)]).drop_duplicates()


# ------------------------------------------------------------------------------------ what transcoders are worth


def quality(of: Given) -> pd.DataFrame:
    """Lengths, cross-entropies with and without, and attention patterns behind: of the transcoder before, and of all of them together."""
    table = evaluate(of.model, [of.before, list(of.transcoders)], of.texts).to_pandas()
    return table[
        [
            "dictionary",
            "l0",
            "l2_ratio",
            "ce_model",
            "ce_spliced",
            "ce_zero",
            "recovered",
            "pattern_kl_spliced_next",
            "pattern_kl_zero_next",
        ]
    ]


def replacement(of: Given) -> pd.DataFrame:
    """The loss with transcoders in the place of their MLPs, and with these MLPs zeroed or at their means over the texts."""
    sites = [transcoder.writes[0] for transcoder in of.transcoders]
    edits: dict[str, Any] = {
        "zero ablation": [Ablate(site) for site in sites],
        "mean ablation": [Ablate(site, "mean", of=of.texts) for site in sites],
    }
    rows = {"the model": loss(of.model, of.texts), "transcoders": loss(of.model, of.texts, dictionaries=of.transcoders)}
    rows |= {name: loss(of.model, of.texts, edits=those) for name, those in edits.items()}
    return pd.DataFrame({"in the place of MLPs": rows.keys(), "cross-entropy": rows.values()})


# ---------------------------------------------------------------------------------------- one latent on one prompt


def by_head(of: Given) -> pd.DataFrame:
    """What each head brings to the latent from each position."""
    found = attrib.head_attribution(of.model, of.last, of.prompt, latents=of.latent, positions=-1, keep=attrib.TopK(2 * K))
    table = found.to_pandas()[["layer", "head", "source_position", "source_token", "share"]]
    return table.sort_values("share", key=abs, ascending=False, kind="stable")


def input_times_gradient(of: Given) -> pd.DataFrame:
    """Latents of the first transcoder: activation times the derivative of the latent, past those of no other transcoder."""
    first, *between, last = of.transcoders
    edges = attrib.latent_to_latent(
        of.model, first, last, of.prompt, cuts=between, effect="direct", policy=attrib.LINEAR, keep=attrib.Dense()
    )  # fmt: skip
    table = edges.to_pandas()
    table = table[(table.target_latent == of.latent) & (table.target_position == table.target_position.max())]
    return both_ends(table[["source_latent", "source_position", "source_activation", "gradient", "attribution"]], "attribution")


def over_texts(of: Given) -> pd.DataFrame:
    """What the latent is made of on the texts: means over all places where it is active, and over those where a source is there."""
    found = mean_attributions(of.model, of.transcoders, of.last, [of.latent], of.texts, mlps="leaf")
    table = found.top(of.latent, 2 * K)
    table["count_per_place"] = table["count"] / int(found.places[0])
    return table


def at_chosen_places(of: Given) -> pd.DataFrame:
    """The same at places that were chosen one by one: here the last token of each text."""
    found = mean_attributions(
        of.model, of.transcoders, of.last, [of.latent], of.texts, mlps="leaf", at=lambda _, ids: [len(ids) - 1]
    )  # fmt: skip
    return found.top(of.latent, K, by="sum")


def norm_constant(of: Given) -> pd.DataFrame:
    """The constant that stands for the norm before the MLP: what the latent reads behind it, over the same of the stream before it."""
    stream = attrib.Site(of.last.site.layer, "resid_pre" if of.model.config.parallel else "resid_mid")
    found = attrib.capture(of.model, of.prompt, [stream, of.last.site])
    behind, before = found[of.last.site][-1] @ of.last.params.W_enc[:, of.latent], found[stream][-1] @ of.read
    return pd.DataFrame({"place": [str(of.last.site)], "position": [len(found[stream]) - 1], "constant": [float(behind / before)]})


def vectors(of: Given) -> pd.DataFrame:
    """The latent's two vectors: what it reads, and what it writes."""
    read, written = of.read, of.written
    cosine = torch.nn.functional.cosine_similarity(read, written, dim=0)
    rows = {"reads": of.last.site, "writes": of.last.writes[0]}
    return pd.DataFrame({"vector": rows.keys(), "place": map(str, rows.values()), "norm": [float(read.norm()), float(written.norm())],
                         "cosine": float(cosine)})  # fmt: skip


def top_features(of: Given) -> pd.DataFrame:
    """What a transcoder's latents write of a direction at a place, and what the transcoder misses of it: the latent's own, before it."""
    wanted = Custom(f"latent {of.latent}", of.read, site=of.before.writes[0])
    (graph,) = build(of.model, of.before, of.prompt, targets=wanted, mlps="leaf", keep=attrib.Dense())
    row = sources(graph, len(graph.nodes) - 1)
    kept = [number for number, node in enumerate(row.node.tolist()) if graph.nodes.kind(node) in ("latent", "error", "bias")]
    names = [graph.nodes.short(int(row.node[number])) for number in kept]
    table = pd.DataFrame({"source": names, "contribution": row.direct[kept].tolist()})
    table["fraction"] = table.contribution / float(graph.value[-1])
    is_error = table.source.str.contains("error")
    return pd.concat([table[~is_error].nlargest(2 * K, "contribution"), table[is_error]])


def ranking(of: Given) -> pd.DataFrame:
    """All that the latent is made of in one ranking: heads, latents, MLPs without a transcoder, embeddings, errors and biases."""
    node = of.node(of.graph)
    row = of.graph.of_rows(of.graph.row_of[[node]])
    headed = with_heads(of.model, of.transcoders, row, targets=of.targets, least=0, longest=1)
    found = sources(headed, of.node(headed))
    direct = pd.DataFrame({"source": map(headed.nodes.short, found.node.tolist()), "contribution": found.direct.tolist()})
    return direct.sort_values("contribution", key=abs, ascending=False, kind="stable").head(3 * K)


# -------------------------------------------------------------------------------------------------- paths and their graph


class Circuit(NamedTuple):
    """The graph in which heads are nodes, the greedy search on it, and the graph of all paths that were found."""

    graph: Graph
    levels: list[list[attrib.graph.Path]]
    part: Graph

    @property
    def paths(self) -> list[attrib.graph.Path]:
        """Of all levels."""
        return [path for level in self.levels for path in level]


def circuit(of: Given) -> Circuit:
    """The paths that a greedy search finds: capped, and the positive ones, as transcoder_circuits has them by default."""
    through = ~Where(kind=("error", "bias", "mlp"))
    some = graph_of(of.graph, strongest(of.graph, of.node(of.graph), 40, which=PathFilter(through=through)))
    headed = with_heads(of.model, of.transcoders, some, targets=of.targets)
    levels = greedy(headed, of.node(headed), (K, K, K), through=through, sign="positive", contribution="capped")
    return Circuit(headed, levels, graph_of(headed, [path for level in levels for path in level]))


def listed(paths: Sequence[attrib.graph.Path], graph: Graph) -> pd.DataFrame:
    """Paths as a table."""
    ways = [" ← ".join(map(graph.nodes.short, path.nodes)) for path in paths]
    return pd.DataFrame({"value": [path.value for path in paths], "path": ways})


def greedy_paths(found: Circuit) -> pd.DataFrame:
    """The paths, level by level."""
    tables = [listed(level, found.graph).assign(edges=number) for number, level in enumerate(found.levels, 1)]
    return pd.concat(tables, ignore_index=True)[["edges", "value", "path"]]


def top_among_paths(found: Circuit) -> pd.DataFrame:
    """Where paths begin, each with the sum of its paths."""
    begin = where_paths_begin(found.paths, found.graph.nodes)
    return pd.DataFrame({"source": [each.steps[0] for each in begin], "sum": [each.value for each in begin],
                         "paths": [each.paths for each in begin]}).head(2 * K)  # fmt: skip


def filtered_paths(found: Circuit) -> pd.DataFrame:
    """Paths by rules on their nodes: with a head, without one, and by where they begin, by kind, layer and position."""
    anywhere, head = Where(), Where(kind="head")
    rules = {
        "through a head": PathFilter(containing=[head], ends=anywhere),
        "through no head": PathFilter(without=[head], ends=anywhere),
        "from a latent, behind the first token": PathFilter(ending=[Where(kind="latent") & ~Where(position=0)], ends=anywhere),
        "a head, then a latent": PathFilter(containing=[head, Where(kind="latent")], ends=anywhere),
    }
    tables = [listed(select(found.graph, found.paths, rule), found.graph).head(3).assign(rule=name) for name, rule in rules.items()]
    return pd.concat(tables, ignore_index=True)[["rule", "value", "path"]]


def circuit_graph(found: Circuit) -> pd.DataFrame:
    """The graph of the paths: each edge once, however many paths lead through it."""
    part = found.part
    names = [part.nodes.short(node) for node in range(len(part.nodes))]
    table = pd.DataFrame({"to": [names[node] for node in part.target.tolist()], "from": [names[node] for node in part.indices.tolist()],
                          "attribution": part.weight.tolist()})  # fmt: skip
    return table.sort_values("attribution", key=abs, ascending=False, kind="stable").head(3 * K)


def errors_and_biases(of: Given) -> pd.DataFrame:
    """What the latents of the strongest paths are made of that no path shows: errors, biases, and what was pruned. Rows add up."""
    nodes = of.graph.nodes
    found = strongest(of.graph, of.node(of.graph), 2 * K, which=PathFilter(through=~Where(kind=("error", "bias", "mlp"))))
    on_paths, beside = {node for path in found for node in path.nodes}, nodes.of_kind("error", "bias")
    part = of.graph.take(torch.tensor(sorted(on_paths | {*beside.tolist()})))
    kinds = [part.nodes.kind(node) for node in part.indices.tolist()]
    rows = []
    for row, node in enumerate(part.targets.tolist()):
        sums = dict.fromkeys(("error", "bias"), 0.0) | {"paths": 0.0}
        for edge in range(int(part.indptr[row]), int(part.indptr[row + 1])):
            sums[kinds[edge] if kinds[edge] in sums else "paths"] += float(part.weight[edge])
        rows.append(
            {
                "node": part.nodes.short(node),
                "value": float(part.value[row]),
                "on paths": sums["paths"],
                "transcoder error": sums["error"],
                "bias": sums["bias"] + float(part.own[row]),
                "pruned": float(part.dropped[row]),
            }
        )
    return pd.DataFrame(rows)


def summed_over_tokens(found: Circuit) -> pd.DataFrame:
    """Paths that are one but for their positions, and nodes at all positions as one."""
    patterns = without_positions(found.paths, found.graph.nodes)[: 2 * K]
    rows = {" ← ".join(each.steps): (each.value, each.paths) for each in patterns}
    return pd.DataFrame(
        {"sum": [value for value, _ in rows.values()], "paths": [count for _, count in rows.values()], "pattern": rows.keys()}
    )


def merged(of: Given) -> pd.DataFrame:
    """What the latent is made of, with every source of all positions as one node."""
    row = merge_positions(of.graph.of_rows(of.graph.row_of[[of.node(of.graph)]]))
    table = pd.DataFrame({"source": [row.names[node] for node in row.indices.tolist()], "attribution": row.weight.tolist()})
    return table.sort_values("attribution", key=abs, ascending=False, kind="stable").head(2 * K)


# ------------------------------------------------------------------------------------------------ over texts


def score_kinds(of: Given) -> pd.DataFrame:
    """Scores over the texts: activations, what the encoder reads, what a decoder reads (of an SAE), and without the places of one token."""
    of_sae = attrib.latents.strongest(of.model, of.sae, of.prompt, position=-1, k=1)[0].latent
    asked: tuple[tuple[attrib.Dictionary, int, dict[str, Any]], ...] = (
        (of.last, of.latent, {"score": "activation"}),
        (of.last, of.latent, {"score": "activation", "ignore": int(of.graph.tokens[-1])}),
        (of.last, of.latent, {"score": "pre_activation"}),
        (of.sae, of_sae, {"score": "decoder"}),
    )
    rows = []
    for dictionary, latent, options in asked:
        found = scores(of.model, dictionary, [latent], of.texts, **options)
        value, kind = found.value[:, 0], options["score"]
        name = f"{kind}, not at {of.graph.strings[-1]!r}" if "ignore" in options else kind
        rows.append({"dictionary": dictionary.name, "latent": latent, "score": name, "places": len(value), "least": float(value.min()),
                     "largest": float(value.max()), "above zero": float(found.frequency[0])})  # fmt: skip
    return pd.DataFrame(rows)


def bands(of: Given) -> pd.DataFrame:
    """Bands of equal width of the latent's scores, each with an example; and how many examples lie evenly over the whole range."""
    found = scores(of.model, of.last, [of.latent], of.texts)
    rows = [{"from": band.low, "to": band.high, "share of places": band.share,
             "an example": "" if not band.examples else f"text {band.examples[-1].prompt}, token {band.examples[-1].position}"}
            for band in reversed(found.bands(of.latent, 5))]  # fmt: skip
    return pd.DataFrame(rows)


def samples(of: Given) -> pd.DataFrame:
    """Examples at percentiles of the scores, and evenly over their range."""
    found = scores(of.model, of.last, [of.latent], of.texts)
    chosen = {"percentiles": found.percentiles(of.latent, K), "evenly": found.evenly(of.latent, K)}
    return pd.DataFrame([{"sampled": name, "score": each.value, "text": each.prompt, "token": each.position}
                         for name, several in chosen.items() for each in several])  # fmt: skip


def scored_token(token: str, score: float) -> str:
    """A token, and its score where that is not zero."""
    return f"{token.strip()}({score:.1f})" if score else token.strip()


def in_context(of: Given) -> pd.DataFrame:
    """The places of largest score, with the scores of the tokens around."""
    part = attrib.latents.survey(of.model, of.last, of.texts, latents=[of.latent], top=3, context=(8, 4)).of()
    shown = [" ".join(map(scored_token, each.tokens, each.values)) for each in part.top(of.latent)]
    return pd.DataFrame({"score": [each.value for each in part.top(of.latent)], "tokens": shown})


# ---------------------------------------------------------------------------------------------- by the weights alone


def logits_of_latent(of: Given) -> pd.DataFrame:
    """The tokens whose logits the latent raises and lowers most."""
    table = logit_weights(of.model, of.last, [of.latent], k=K, demean=False).to_pandas(of.model)
    return table[["lowest_token", "lowest_weight", "highest_token", "highest_weight"]]


def spread_of_logits(of: Given) -> pd.DataFrame:
    """How many of all logits it moves by how much."""
    return logit_histogram(of.model, of.last, [of.latent], bins=4, demean=False).to_pandas()[["low", "high", "count"]]


def input_independent(of: Given) -> pd.DataFrame:
    """The latents of the transcoder before whose decoders the latent reads most, for and against it."""
    found = virtual_weights(of.model, of.before, of.last, targets=[of.latent], keep=attrib.Dense())
    table = found.to_pandas()
    return both_ends(table[[name for name in table.columns if name in ("source_latent", "weight")]], "weight")


def on_the_prompt(of: Given) -> pd.DataFrame:
    """The same times the activations at the end of the prompt."""
    x = attrib.capture(of.model, of.prompt, [of.before.site])[of.before.site]
    active = attrib.encode(of.before, x)[-1]
    found = global_weights(of.model, of.before, of.last, active, targets=[of.latent], keep=attrib.Dense()).to_pandas()
    found = found[found.attribution != 0]
    return both_ends(found[[name for name in found.columns if name in ("source_latent", "weight", "attribution")]], "attribution")


def norms_by_head(of: Given) -> pd.DataFrame:
    """How much of what the latent reads each head could bring: a map of layers and heads, of which the largest are listed."""
    found = ov_norms(of.model, of.last, [of.latent])
    heads = found.norm.shape[2]
    table = pd.DataFrame({"layer": found.layer.repeat_interleave(heads).tolist(), "head": list(range(heads)) * len(found.layer),
                          "norm": found.norm[0].flatten().tolist()})  # fmt: skip
    return table.sort_values("norm", ascending=False, kind="stable").head(2 * K)


def embeddings_read(of: Given) -> pd.DataFrame:
    """The tokens that the latent reads most: directly, through the head of largest norm, and those of any vector."""
    strongest_head = norms_by_head(of).iloc[0]
    layer, head = int(strongest_head.layer), int(strongest_head["head"])
    ways: dict[str, Any] = {
        "direct": (of.last, [of.latent], {}),
        f"head {head} of layer {layer}": (of.last, [of.latent], {"attention": layer, "heads": head}),
        "what the latent writes": (of.written[None], None, {}),
    }
    tables = [
        de_embeddings(of.model, what, which, k=3, **how).to_pandas(of.model).assign(way=name) for name, (what, which, how) in ways.items()
    ]
    return pd.concat(tables, ignore_index=True)[["way", "lowest_token", "lowest_weight", "highest_token", "highest_weight"]]


# -------------------------------------------------------------------------------------------------------- all of it

OF_GIVEN: dict[str, tuple[str, Callable[[Given], pd.DataFrame]]] = {
    "D5, D6": ("Evaluation, of one transcoder and of all together (nats)", quality),
    "D8, D9": ("Transcoders in the place of MLPs, and MLPs ablated", replacement),
    "D10": ("By head and source position", by_head),
    "D11": ("Input times gradient, from the first transcoder", input_times_gradient),
    "D12": ("The same over texts: mean, sum and count", over_texts),
    "D12, chosen": ("At places chosen one by one", at_chosen_places),
    "D13": ("The norm as a constant", norm_constant),
    "D14": ("The latent's vectors", vectors),
    "D15": ("Top features of a direction at one MLP, with the error's fraction", top_features),
    "D16": ("One ranking of all that the latent is made of", ranking),
    "D21": ("Errors, biases and what was pruned", errors_and_biases),
    "D22, nodes": ("Sources summed over tokens", merged),
    "D24": ("Scores over texts", score_kinds),
    "D25": ("Bands of its scores", bands),
    "D25, samples": ("Examples at percentiles, and evenly", samples),
    "D26": ("Where it is most active", in_context),
    "D28": ("Logits", logits_of_latent),
    "D28, histogram": ("All logits", spread_of_logits),
    "D29": ("Virtual weights, for any input", input_independent),
    "D30": ("Virtual weights on this prompt", on_the_prompt),
    "D31": ("OV norms by head", norms_by_head),
    "D32": ("De-embeddings", embeddings_read),
}
OF_CIRCUIT: dict[str, tuple[str, Callable[[Circuit], pd.DataFrame]]] = {
    "D17, D18": ("Greedy paths", greedy_paths),
    "D18": ("Top features among paths", top_among_paths),
    "D19": ("Paths by rules", filtered_paths),
    "D20": ("The graph of the paths", circuit_graph),
    "D22": ("Paths summed over tokens", summed_over_tokens),
}


def report(of: Given) -> dict[str, tuple[str, pd.DataFrame]]:
    """Every table by its rows in the list, with its title, in the order of the list."""
    found = circuit(of)
    tables = {row: (title, make(of)) for row, (title, make) in OF_GIVEN.items()}
    tables |= {row: (title, make(found)) for row, (title, make) in OF_CIRCUIT.items()}
    return {row: tables[row] for row in sorted(tables, key=lambda row: (int(row.partition(",")[0].removeprefix("D")), row))}


def show(console: Console, title: str, table: pd.DataFrame) -> None:
    """A data frame as a table; what stands in it is text and no markup."""
    made = Table(title=Text(title), title_justify="left")
    is_number = [pd.api.types.is_numeric_dtype(table[name]) for name in table.columns]
    for name, number in zip(table.columns, is_number, strict=True):
        made.add_column(Text(str(name)), justify="right" if number else "left", overflow="fold")
    for row in table.itertuples(index=False):
        made.add_row(*(Text("–" if pd.isna(each) else f"{each:.4g}" if isinstance(each, float) else str(each)) for each in row))
    console.print(made)


def smollm2() -> Given:
    """SmolLM2 with the transcoders of layers 7 to 9 and an SAE."""
    model = attrib.load_model("smollm2-135m")
    transcoders = [attrib.load_dictionary(f"smollm2-135m/blocks.{layer}.mlp.hook_in") for layer in (7, 8, 9)]
    sae = attrib.load_dictionary("smollm2-135m/blocks.9.hook_resid_pre")
    return given(model, transcoders, sae, "The Eiffel tower is in the city of", TEXTS)


Normal = Callable[..., torch.Tensor]
"""Random numbers of a shape."""


def normals(dtype: torch.dtype) -> Normal:
    """The same numbers each time, one call after the other."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def random_llama(normal: Normal) -> Any:
    """A random model of transformers: three layers, four heads on two key heads, 60 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 60}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, pad_token_id=None)).to(normal(1).dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1 + 0.3 * normal(*parameter.shape) if parameter.ndim == 1 else 0.3 * normal(*parameter.shape))
        for block in model.model.layers:
            block.mlp.down_proj.weight /= 10  # of the size of what the transcoders write
    return model


def tiny(dtype: torch.dtype = torch.float32) -> Given:
    """The random model with transcoders of all its layers, an SAE, and texts of random tokens."""
    normal = normals(dtype)
    model = attrib.from_hugging_face(random_llama(normal))

    def dictionary(site: str, writes: str) -> attrib.Dictionary:
        biases = {"b_enc": 0.2 * normal(48) - 0.5, "b_dec": 0.1 * normal(32)}
        return from_tensors(site=site, writes=writes, W_enc=normal(32, 48) / 4, W_dec=normal(48, 32) / 4, **biases)

    transcoders = [dictionary(f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out") for layer in range(3)]
    sae = dictionary("blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre")
    texts = [(normal(length).abs() * 1000 % model.config.d_vocab).long().tolist() for length in (9, 12, 7)]
    return given(model, transcoders, sae, texts[0][:8], texts)


def main(arguments: Sequence[str]) -> None:
    """Print all tables."""
    if set(arguments) - {"--tiny"}:
        raise SystemExit("usage: python examples/transcoder_circuits.py [--tiny]")
    of, console = tiny() if arguments else smollm2(), Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(f"{of.model.name}: latent {of.latent} of {of.last.name} at the end of {of.graph.strings}")
    for row, (title, table) in report(of).items():
        show(console, f"{row}: {title}", table)


if __name__ == "__main__":
    main(sys.argv[1:])
