"""Compaction of one tile of a Jacobian into CSR, on the device where the tile lies.

    attribution[r, c] = gradient[r, c] · activation[c]
    total[r] = Σ_c attribution[r, c],    l1[r] = Σ_c |attribution[r, c]|        over all c, kept or not

Kept is what one of four rules says (see `rules`); an entry whose gradient is exactly zero is never kept.
Nothing here is differentiable: which entries are kept is a choice, so the results carry no graph.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attrib_kernels.compact.reference import compact_reference
from attrib_kernels.compact.rules import Compacted, Rule, check_rule, check_tile
from attrib_kernels.impl import Impl, check_impl

__all__ = ["Compacted", "Impl", "Rule", "compact"]


@torch.no_grad()
def compact(
    gradient: Float[Tensor, "rows columns"],
    activation: Float[Tensor, " columns"],
    rule: Rule,
    amount: float | int = 0,
    *,
    impl: Impl,
) -> Compacted:
    """The kept entries of a tile as CSR with ascending columns, and the sums of every row.

    Args:
        gradient: the tile, with any strides.
        rule: "dense" (gradient != 0), "topk" (the `amount` largest |attribution| of each row), "threshold"
            (|attribution| >= amount) or "mass" (per row the fewest that hold the fraction `amount` of l1).
            Ties go to the earlier column.
        amount: k, the bound or the fraction; unused by "dense".
        impl: "reference" is plain torch; "triton" makes no mask and no dense attribution.

    Raises:
        ValueError: for an amount that makes no sense, or tensors that do not fit together.
    """
    check_impl(impl)
    check_rule(rule, amount)
    check_tile(gradient, activation)
    if impl == "reference":
        return compact_reference(gradient, activation, rule, amount)
    from attrib_kernels.compact.triton import compact_triton

    return compact_triton(gradient, activation, rule, amount)
