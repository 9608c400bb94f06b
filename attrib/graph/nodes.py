"""The nodes of an attribution graph: one table for all kinds, and the one layout that knows where each set of them begins.

A set is what has one kind at one place: the active latents of a dictionary, the errors of a written place at all positions.
Sets lie behind each other in order of computation, so that an edge goes from a lower number to a higher one but within the
embeddings, where none goes; within a set nodes are sorted by (position, latent).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.core.types import InputError, Site

NodeKind = Literal["token", "position", "bias", "mlp", "error", "latent", "head", "logit", "target"]
"""What a node is: a token's embedding; a position's embedding; a constant that the model or a dictionary adds; what an MLP without a
dictionary writes (all of it where it is held as it is, else what its derivative at the prompt does not say); what a dictionary leaves of
the place that it writes; an active latent; a head on its way to one target (`attrib.graph.with_heads`); a logit; any other target."""

KINDS: tuple[NodeKind, ...] = get_args(NodeKind)
TARGET_KINDS: tuple[NodeKind, ...] = ("latent", "head", "logit", "target")
"""Those that edges go to."""
NAMED_KINDS: tuple[NodeKind, ...] = ("token", "logit", "target")
"""Those that have labels."""


class NodeSet(NamedTuple):
    """Nodes of one kind at one place."""

    kind: NodeKind
    site: str
    """The hook where latents are read, where errors and constants stand, where targets are read; "embed" or "pos_embed" of embeddings."""
    name: str
    """The dictionary's name, for latents; for heads, what they are on the way to; else empty."""
    size: int


@dataclass(frozen=True, repr=False)
class Nodes:
    """All nodes of one prompt's graph."""

    sets: tuple[NodeSet, ...]
    position: Int[Tensor, " nodes"]
    latent: Int[Tensor, " nodes"]
    """A latent's index, a head's, the vocabulary id of a token or logit, the position of a position's embedding, or -1."""
    activation: Float[Tensor, " nodes"]
    """A latent's activation, a logit's or target's value, what a head brings to its target; 1 for what is there as it is. Attributions of
    edges are gradients times this."""
    labels: tuple[str, ...] = ()
    """The names of tokens, logits and targets, in order; all others have none."""

    def __post_init__(self) -> None:
        wrong = [each for each in self.sets if each.kind not in KINDS or each.size < 0]
        count, named = sum(each.size for each in self.sets), sum(each.size for each in self.sets if each.kind in NAMED_KINDS)
        if wrong:
            raise InputError(f"sets: {wrong[0]}; expected a kind among {', '.join(KINDS)} and a size of at least 0.")
        if not len(self.position) == len(self.latent) == len(self.activation) == count or len(self.labels) != named:
            raise InputError(
                f"nodes: {len(self.position)} positions, {len(self.latent)} latents, {len(self.activation)} activations and "
                f"{len(self.labels)} labels, but the sets have {count} nodes, of which {named} are tokens, logits or targets."
            )

    def __len__(self) -> int:
        return self.position.shape[0]

    def __repr__(self) -> str:
        found = {kind: sum(each.size for each in self.sets if each.kind == kind) for kind in KINDS}
        return f"Nodes({', '.join(f'{count:,} {kind}s' for kind, count in found.items() if count)})"

    @property
    def number_type(self) -> torch.dtype:
        """The narrowest type that the numbers of all nodes fit."""
        return torch.int32 if len(self) <= 1 << 31 else torch.int64

    @cached_property
    def first(self) -> tuple[int, ...]:
        """Where each set begins, and behind the last where it ends."""
        return tuple(accumulate((each.size for each in self.sets), initial=0))

    @cached_property
    def set_of(self) -> Int[Tensor, " nodes"]:
        """The number of each node's set."""
        return torch.arange(len(self.sets)).repeat_interleave(torch.tensor([each.size for each in self.sets], dtype=torch.int64))

    def of_kind(self, *kinds: NodeKind) -> Int[Tensor, " chosen"]:
        """The numbers of all nodes of these kinds, ascending."""
        chosen = torch.tensor([each.kind in kinds for each in self.sets], dtype=torch.bool)
        return chosen[self.set_of].nonzero()[:, 0]

    def rows(self, number: int) -> slice:
        """The nodes of a set."""
        return slice(self.first[number], self.first[number + 1])

    def kind(self, node: int) -> NodeKind:
        """A node's kind."""
        return self.sets[int(self.set_of[node])].kind

    def label(self, node: int) -> str:
        """A node in a few words: 'mlp.hook_in[355] layer 8 @12', a token's string, a logit's."""
        each = self.sets[int(self.set_of[node])]
        at = f"@{int(self.position[node])}"
        if each.kind in NAMED_KINDS:
            return f"{each.kind} {self._named(node)!r} {at}"
        if each.kind == "latent":
            return f"{each.site}[{int(self.latent[node])}] {at}"
        if each.kind == "head":
            return f"{head_name(each.site, int(self.latent[node]))} {at}"
        return f"{each.kind} {each.site} {at}"

    def short(self, node: int) -> str:
        """A node in fewest words: 'mlp8[355]@12', 'attn6[3]@9', "token ' France'@3", 'mlp_out8 error@12'. Dictionaries are not named."""
        each = self.sets[int(self.set_of[node])]
        at = f"@{int(self.position[node])}"
        if each.kind in NAMED_KINDS:
            return f"{each.kind} {self._named(node)!r}{at}"
        if each.kind == "position":
            return f"position{at}"
        if each.kind == "head":
            return f"{head_name(each.site, int(self.latent[node]))}{at}"
        site = Site.parse(each.site)
        place = f"{'mlp' if site.kind == 'mlp_in' else site.kind}{site.layer}"
        return f"{place}[{int(self.latent[node])}]{at}" if each.kind == "latent" else f"{place} {each.kind}{at}"

    def _named(self, node: int) -> str:
        number = int(self.set_of[node])
        before = sum(each.size for each in self.sets[:number] if each.kind in NAMED_KINDS)
        return self.labels[before + node - self.first[number]]

    def take(self, chosen: Int[Tensor, " chosen"]) -> "Nodes":
        """Some nodes, by ascending numbers; all sets stay, which may then be empty."""
        counts = torch.bincount(self.set_of[chosen], minlength=len(self.sets)).tolist()
        is_named = torch.tensor([each.kind in NAMED_KINDS for each in self.sets], dtype=torch.bool)[self.set_of]
        place = is_named.cumsum(0) - 1
        labels = tuple(self.labels[at] for at in place[chosen[is_named[chosen]]].tolist())
        sets = tuple(each._replace(size=size) for each, size in zip(self.sets, counts, strict=True))
        return replace(
            self, sets=sets, position=self.position[chosen], latent=self.latent[chosen], activation=self.activation[chosen], labels=labels
        )


def head_name(site: str, head: int) -> str:
    """What a head of the layer of a hook is called: 'attn6[3]'."""
    return f"attn{Site.parse(site).layer}[{head}]"
