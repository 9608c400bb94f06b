"""What opening a prompt's graph takes, counted before it is swept: the prompt's own pass, the encoders, constants, and what is read.

The twin of attribution/opening.py for the nodes of whole graphs: of memory the fullest moment is bounded, and what stays as long as
the nodes do is counted apart.
"""

from attrib.core.positions import numbers_of
from attrib.core.types import Difference, Direction, Site
from attrib.dictionaries.dictionary import tile_columns
from attrib.engine.plan.cost import Cost, model_pass
from attrib.engine.plan.task import Opened as OpenedBytes
from attrib.graph.ends import READ_AT_ONCE, GraphEnds, Opened
from attrib.graph.latents import LatentsOf
from attrib.graph.outputs import Custom, ReadOutput, Span
from attrib.models.transformer import width


def opened_bytes(ends: GraphEnds, opened: Opened, itemsize: int) -> OpenedBytes:
    """Bytes for opening a prompt; a bound of the fullest moment, and what stays as long as its nodes do."""
    opened = opened.whole or opened
    bundle, config = opened.bundle, ends.model.config
    tokens, d, number = bundle.length, config.d_model, max(1, 8 // itemsize)
    entry = 2 * number + 1  # a position, a latent and a value
    rows = sum(end.sources.direction.numel() + entry * len(end.sources.position) for end in bundle.sources)
    read = sum(end.targets.cotangent.numel() + (entry + 2 * number + 1) * len(end.targets.position) for end in bundle.targets)
    columns = number * sum(map(len, opened.columns)) + (4 + 2 * number) * len(opened.nodes)
    seen = tokens * sum({site.depth: width(config, site) for site in ends.seen}.values())
    streams = tokens * sum({site.depth: width(config, site) for site in bundle.streams}.values())
    passing = sum(tokens * (2 * d_in + 2) for d_in in (ends.dictionaries[number].d_in for number in ends.skips))
    patterns = 3 * config.n_heads * tokens**2 + 6 * tokens * max(d, config.n_heads * config.d_head)
    tiles = [(d, min(tile_columns(tokens, d.params.b_enc.device), d.d_sae)) for d in ends.dictionaries]
    encoding = max((columns * (d.d_in * d.config.lazy + 8 * tokens) for d, columns in tiles), default=0)
    most_read = max((_reading(ends, opened, number) for number in range(len(bundle.targets))), default=0)
    largest = max((end.sources.direction.numel() for end in bundle.sources), default=0)  # a set, and the parts that it is made of
    through = tokens * config.d_mlp * (8 if config.gated else 5)
    passed = any(map(ends.is_passed, ends.layers)) * tokens * (config.d_mlp * (12 if config.gated else 8) + 4 * d)  # constants of MLPs
    held = read + columns
    # the pass, then nodes, sets of sources one by one, and targets: what each is made in is gone when the next begins
    peak = seen + max(patterns + through, rows + passing + max(encoding, passed, largest, held + most_read))
    return OpenedBytes(*(itemsize * size for size in (peak, held, held + rows + streams + passing)))


def _reading(ends: GraphEnds, opened: Opened, number: int) -> int:
    """What one set of targets is read in, and their cotangents."""
    config, targets = ends.model.config, min(READ_AT_ONCE, len(opened.bundle.targets[number].targets.position))
    return max(10 * targets * config.d_model, _logits(ends, number, opened.bundle.length) * (3 * config.d_vocab + 4 * config.d_model))


def _logits(ends: GraphEnds, number: int, tokens: int) -> int:
    """At how many positions all logits are asked of for a set of targets."""
    if number < ends.n_latent_sets:
        return 0
    what = ends.outputs[number - ends.n_latent_sets]
    if isinstance(what, LatentsOf | Custom | Direction | Difference):
        return 0
    return len(range(tokens)[what.first : what.end]) if isinstance(what, Span) else _positions(ends, tokens)


def _positions(ends: GraphEnds, tokens: int) -> int:
    """At how many positions outputs are read that do not say it themselves."""
    return len({*numbers_of(-1 if ends.positions is None else ends.positions, tokens)})


def opening_cost(ends: GraphEnds, opened: Opened, itemsize: int) -> Cost:
    """The products in which a prompt's nodes are found, and its targets read."""
    cost, config, tokens = Cost(itemsize), ends.model.config, opened.bundle.length
    model_pass(cost, "capture", config, [tokens], (0, 0), max(site.depth for site in ends.seen))
    for d in ends.dictionaries:
        cost.mm("capture", tokens, d.d_in, d.d_sae)
        if d.has_skip:
            cost.mm("capture", tokens, d.d_in, d.d_out)
    _constants_cost(cost, ends, tokens)
    for each in ends.neurons:
        cost.mm("capture", tokens, config.d_model, config.d_mlp * (2 if config.gated else 1))
        if ends.is_below(each.writes):
            cost.mm("capture", tokens, config.d_mlp, config.d_model, batch=3)
    for number in range(len(opened.bundle.targets)):
        _reading_cost(cost, ends, opened, number)
    return cost


def _constants_cost(cost: Cost, ends: GraphEnds, tokens: int) -> None:
    """What components add of their own: vectors through attention's matrices, and along derivatives of MLPs that are passed."""
    config, d_q = ends.model.config, ends.model.config.n_heads * ends.model.config.d_head
    for layer in ends.layers:
        if config.pre_norm:
            cost.mm("capture", 1, config.d_model, config.n_kv_heads * config.d_head)
        if ends.is_below(Site(layer, "attn_out")):
            cost.mm("capture", 1 + tokens * config.post_norm, d_q, config.d_model)
        if ends.is_passed(layer):
            cost.mm("capture", 2 * tokens, config.d_model, config.d_mlp * (2 if config.gated else 1))
            cost.mm("capture", tokens, config.d_mlp, config.d_model, batch=1 + config.post_norm)


def _reading_cost(cost: Cost, ends: GraphEnds, opened: Opened, number: int) -> None:
    if number >= ends.n_latent_sets:
        _output_cost(cost, ends, ends.outputs[number - ends.n_latent_sets], len(opened.bundle.targets[number].targets.position))
        cost.mm("capture", _logits(ends, number, opened.bundle.length) * _times(ends), ends.model.config.d_model, ends.model.config.d_vocab)


def _times(ends: GraphEnds) -> int:
    """How often an output is read: once more with norms held, where they are not."""
    return 2 if ends.policy.norm == "exact" else 1


def _output_cost(cost: Cost, ends: GraphEnds, what: ReadOutput, targets: int) -> None:
    """There and back, what is no logit: a difference of logits, or a direction."""
    if isinstance(what, Difference):
        named = sum(1 if isinstance(side, int | str) else len(side) for side in what)
        cost.mm("capture", 2 * targets * _times(ends), ends.model.config.d_model, named)
