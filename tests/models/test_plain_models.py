"""Where transformers is missing, the tests' models are the same."""

from typing import Any

import pytest
import torch

from tests.support import builders
from tests.support.plain_models import can_be_made, plain_model


@pytest.mark.parametrize("dtype", builders.DTYPES, ids=str)
@pytest.mark.parametrize("variant", [*builders.VARIANTS, "gpt2-inverse"])
def test_models_without_transformers_are_those_with_it(variant: str, dtype: torch.dtype):
    pytest.importorskip("transformers")
    family, options = builders.ALL_VARIANTS[variant]
    facts = builders.facts_of(family, builders.N_LAYERS, options)
    if "rope_parameters" in options:
        assert not can_be_made(family, facts)
        return
    want = builders.attrib_model(family, dtype, seed=3, **options)
    got = plain_model(family, facts, dtype, 3)
    assert (got.config, got.name) == (want.config, want.name)
    assert [name for name, _ in leaves(got.params)] == [name for name, _ in leaves(want.params)]
    for (name, one), (_, other) in zip(leaves(got.params), leaves(want.params), strict=True):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name


def leaves(params: Any) -> list[tuple[str, torch.Tensor]]:
    found, _ = torch.utils._pytree.tree_flatten_with_path(params)
    return [(torch.utils._pytree.keystr(path), leaf) for path, leaf in found]
