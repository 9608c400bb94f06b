"""What latents are expected to be over a corpus, in the two forms that `global_weights` takes (weights.py says what they mean)."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.adapters.given import as_dictionary, as_model, takes
from attrib.attribution.needs import constant
from attrib.core.room import memory_named
from attrib.core.types import SparseLatents
from attrib.dictionaries.dictionary import Dictionary, encode_sparse
from attrib.dictionaries.fit import fitted
from attrib.graph.corpus import counted
from attrib.models.tokens import TokensLike
from attrib.models.transformer import Model
from attrib.passes.capture import capture

if TYPE_CHECKING:
    import scipy.sparse

PAIRS = 1 << 20
"""So many products wait before they are added up."""


@takes(model=as_model, source=as_dictionary)
@memory_named("counting activations", "Give shorter prompts.")
@torch.no_grad()
def expected_activations(
    model: Model,
    source: Dictionary,
    tokens: TokensLike | Iterable[Any],
    *,
    target: Dictionary | None = None,
    ignore: int | str | Sequence[int | str] | None = None,
) -> "Float[Tensor, ' d_sae'] | scipy.sparse.csr_array":
    """The mean activation of each of a dictionary's latents, E[a_i]; or with a target E[a_i a_j] / E[a_j], sparse.

    Both are means over all positions of all prompts, in float64.

    Args:
        tokens: prompts, as everywhere; or an iterator of them, which is gone through once and never held.
        target: another dictionary. Entry (j, i) is then what source i is where target j is active, weighted by how active that is;
            pairs that never are active at one position have none.
        ignore: tokens whose positions do not count, by id or string, such as the one with which every prompt begins.

    Raises:
        InputError: where a dictionary does not fit the model, or no position is left.
    """
    ends = [constant(fitted(model, d, name)) for d, name in ((source, "source"), (target, "target")) if d is not None]
    total, positions, pairs = torch.zeros(source.d_sae, dtype=torch.float64), 0, _Pairs()
    for ids, counts in counted(model, tokens, ignore):
        seen = capture(model, ids, [d.site for d in ends])
        active = [_counted(encode_sparse(d, seen[d.site]), counts) for d in ends]
        positions += int(counts.sum())
        total.index_add_(0, active[0].latent.cpu(), active[0].value.double().cpu())
        if target is not None:
            pairs.add(*(_as_csr(found, len(ids), d.d_sae) for found, d in zip(active, ends, strict=True)))
    return total / positions if target is None else pairs.over_targets()


def _counted(latents: SparseLatents, counts: Bool[Tensor, " positions"]) -> SparseLatents:
    """Those at positions that count."""
    chosen = counts[latents.position]
    return SparseLatents(*(column[chosen] for column in latents))


def _as_csr(latents: SparseLatents, positions: int, d_sae: int) -> "scipy.sparse.csr_array":
    """[positions, d_sae]."""
    import scipy.sparse

    position, latent, value = (column.cpu().numpy() for column in latents)
    return scipy.sparse.csr_array((value.astype("float64"), (position, latent)), shape=(positions, d_sae))


class _Pairs:
    """Σ a_i a_j over positions, and Σ a_j."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.of_target: Any = 0.0

    def add(self, source: "scipy.sparse.csr_array", target: "scipy.sparse.csr_array") -> None:
        """The products of one prompt."""
        self.waiting.append(target.T.tocsr() @ source)
        self.of_target = self.of_target + target.sum(axis=0)
        if sum(part.nnz for part in self.waiting[1:]) > max(PAIRS, self.waiting[0].nnz):
            self.waiting = [self._sum()]

    def _sum(self) -> Any:
        total = self.waiting[0]
        for part in self.waiting[1:]:
            total = total + part
        return total

    def over_targets(self) -> "scipy.sparse.csr_array":
        """The sums over what each target is in all; those of a target that is nothing in all are none."""
        import numpy as np

        total = self._sum().tocsr()
        whole = np.repeat(self.of_target, np.diff(total.indptr))
        total.data = np.divide(total.data, whole, out=np.zeros_like(total.data), where=whole != 0)
        total.eliminate_zeros()
        return total
