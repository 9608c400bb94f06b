"""Graphs with dictionaries that stay in their files: the same nodes and edges as of those in memory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib.core.types import Dense, FormatError, TopLogits
from tests.adapters.test_dictionary_folders import clt, transcoder_set
from tests.support.builders import Family, build, prompt
from tests.support.covering import each_pair
from tests.support.tolerances import ROUNDING, assert_close

FOLDERS: dict[str, Callable[[Path, str], Path]] = {
    "transcoders": lambda folder, name: transcoder_set(folder, "any", skips=True, feature_input_hook="mlp.hook_in", model_name=name),
    "cross-layer": lambda folder, name: clt(folder, model_name=name),
}
CHOSEN: dict[str, dict[str, Any]] = {"all": {}, "later": {"skip_positions": 2}, "few": {"max_nodes": 25, "block": 10}}
FAMILIES: list[Family] = ["gpt2", "llama", "gpt_neox"]


def both(folder: Path) -> tuple[list[attrib.Dictionary], list[attrib.Dictionary]]:
    """Each layer in memory, and in its file."""
    whole, maps = ([attrib.load_dictionary(folder, layer=layer, lazy=lazy) for layer in range(3)] for lazy in (False, True))
    assert all(d.config.lazy for d in maps)
    return whole, maps


@pytest.mark.few
@each_pair(
    lambda row: row["family"] != "gpt_neox" or row["which"] == "transcoders",  # a parallel block has no resid_mid to read
    family=FAMILIES, which=list(FOLDERS), chosen=list(CHOSEN), dtype=[torch.float32, torch.float64],
)  # fmt: skip
def test_a_graph_of_lazy_dictionaries_is_that_of_eager_ones(family: Family, which: str, chosen: str, dtype: torch.dtype, tmp_path: Path):
    whole, maps = both(FOLDERS[which](tmp_path / which, f"tiny-{family}"))
    options: Any = {"targets": TopLogits(3), "keep": Dense()} | CHOSEN[chosen]
    prompts = [prompt(9), prompt(5, seed=2)]
    graphs = [attrib.graph.build(build(family, dtype), given, prompts, **options) for given in (whole, maps)]
    for want, got in zip(*graphs, strict=True):
        assert got.nodes.sets == want.nodes.sets
        assert torch.equal(got.nodes.position, want.nodes.position)
        assert torch.equal(got.nodes.latent, want.nodes.latent)
        assert torch.equal(got.indices, want.indices)
        for column in ("weight", "value", "own", "total", "l1"):
            assert_close(getattr(got, column), getattr(want, column), ROUNDING, column)
        assert_close(got.nodes.activation, want.nodes.activation, ROUNDING)
        assert len(want.nodes.of_kind("latent")) >= 25
        assert want.weight.abs().max() > 0.01
        assert got.worst < (1e-10 if dtype == torch.float64 else 1e-4)


def test_a_file_that_was_written_into_gives_no_graph(tmp_path: Path):
    folder = clt(tmp_path / "clt", model_name="tiny-gpt2")
    _, maps = both(folder)
    file = folder / "W_dec_1.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    with file.open("r+b") as at:
        at.write(data)
    os.utime(file, ns=(1, 1))  # where clocks are coarse
    with pytest.raises(FormatError, match="W_dec_1"):
        attrib.graph.build(build("gpt2"), maps, prompt(5))
