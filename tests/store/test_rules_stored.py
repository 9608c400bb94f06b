"""Results of rules, and of errors and biases as sources, in files: nothing is lost, and what is usual is written as before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import attrib
from attrib.core.edges import Edges, join
from attrib.core.rules import rule_record, rule_text
from attrib.core.types import FormatError, InputError
from attrib.store.collection import faults
from attrib.store.select import select_latents
from tests.support import builders
from tests.support.attribution_cases import LENGTHS, Lens, assert_same, prompts
from tests.support.builders import build

OTHERS = [(ids * 7 + 3) % builders.D_VOCAB for ids in prompts(*LENGTHS)]
RULES: list[Any] = [
    attrib.Gradient(), attrib.IntegratedGradients(2), attrib.IntegratedGradients(2, OTHERS), attrib.Patching(OTHERS), attrib.Ablation(),
]  # fmt: skip
ALL_FROZEN = attrib.Policy("frozen", "frozen", "frozen")


def computed(**options: Any) -> Edges:
    model, source = build("gpt2", torch.float32), Lens("standard").dictionary("gpt2", torch.float32)
    return attrib.latent_to_logit(model, source, prompts(*LENGTHS), logits=attrib.TopLogits(2), **options)


@pytest.mark.few
@pytest.mark.parametrize("rule", RULES, ids=rule_text)
def test_a_file_holds_all_of_a_rule(tmp_path: Path, rule: Any):
    edges = computed(rule=rule, keep=attrib.Mass(0.9))
    path = attrib.save(tmp_path / "ruled.h5", edges)
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 2
    assert list(faults(path)) == []
    with attrib.open(path) as store:
        found, one = store.edges(), store.edges(prompts=1)
    assert found.call == edges.call
    assert found.call["rule"] == rule_record(rule)
    for got, want in ((found, edges), (one, edges.prompt(1))):
        for name in ("gradient", "attribution", "total", "l1"):
            assert torch.equal(getattr(got, name), getattr(want, name))
        assert torch.equal(got.sources.step, want.sources.step)
        assert (got.gap is None) == (want.gap is None)
        assert got.gap is None or torch.equal(got.gap, want.gap)
        assert got.prompts.equals(want.prompts)
        assert (got.prompts.corrupt is not None) == (attrib.core.rules.other_prompts(rule) is not None)
    again = join([edges.prompt(number) for number in range(3)])
    assert again.prompts.equals(edges.prompts)
    assert_same(again.sources.step, edges.sources.step, "change")
    assert again.gap is None or torch.equal(again.gap, edges.gap)


def test_the_usual_rule_is_stored_as_it_was(tmp_path: Path):
    path = attrib.save(tmp_path / "usual.h5", computed())
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 1
    with attrib.open(path) as store:
        assert not {"rule", "bias", "corrupt"} & store.edges().call.keys()


def test_prompts_that_were_compared_with_others_are_not_the_same(tmp_path: Path):
    model, source = build("gpt2", torch.float32), Lens("standard").dictionary("gpt2", torch.float32)
    both = [computed(rule=attrib.Patching(OTHERS)), attrib.token_to_latent(model, source, prompts(*LENGTHS))]
    with pytest.raises(InputError, match="has other prompts than"):
        attrib.save(tmp_path / "both.h5", both)


@pytest.mark.few
@pytest.mark.parametrize(
    ("where", "what"),
    [("sources/change", "gradient times activation"), ("gap", "not a finite number"), ("attribution/data", "gradient times activation")],
)
def test_damage_is_found(tmp_path: Path, where: str, what: str):
    path = attrib.save(tmp_path / "ruled.h5", computed(rule=attrib.Patching(OTHERS)))
    with h5py.File(path, "r+") as file:
        column = next(iter(file["blocks"].values()))[where]
        column[...] = np.full(len(column), np.nan) if where == "gap" else column[...] * 1.5
    assert any(what in fault.what for fault in faults(path))


def test_a_corrupt_prompt_of_another_length_is_damage(tmp_path: Path):
    path = attrib.save(tmp_path / "ruled.h5", computed(rule=attrib.Patching(OTHERS)))
    with h5py.File(path, "r+") as file:
        del file["prompts/corrupt"]
        file["prompts/corrupt"] = np.arange(3, dtype=np.int32)
    with pytest.raises(FormatError, match="/prompts/corrupt"):
        attrib.open(path)
    edges = computed(rule=attrib.Patching(OTHERS))
    with pytest.raises(InputError, match="the corrupt prompts are not one token for each"):
        attrib.save(tmp_path / "other.h5", replace(edges, prompts=replace(edges.prompts, corrupt=torch.zeros(3, dtype=torch.int64))))


def test_errors_and_biases_lie_among_the_latents(tmp_path: Path):
    edges = computed(error="source", bias=True, policy=ALL_FROZEN)
    path = attrib.save(tmp_path / "beside.h5", edges)
    assert list(faults(path)) == []
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 2
    with attrib.open(path) as store:
        found = store.edges()
    assert torch.equal(found.sources.latent, edges.sources.latent)
    table = found.to_pandas()
    assert {*table["source_kind"]} == {"latent", "error", "bias"}
    assert (table[table.source_kind == "error"].source_latent == -1).all()
    errors = select_latents(found, source_latents=-1)
    assert len(errors.sources) == sum(LENGTHS)
    assert abs(errors.attribution.sum() - table[table.source_kind == "error"].attribution.sum()) < 1e-4


@pytest.mark.few
@pytest.mark.parametrize("rule", RULES[2:], ids=rule_text)
def test_other_programs_get_what_a_rule_adds(tmp_path: Path, rule: Any):
    anndata, parquet = pytest.importorskip("anndata"), pytest.importorskip("pyarrow.parquet")

    edges = computed(rule=rule)
    path = attrib.save(tmp_path / "ruled.h5", edges)
    attrib.export.to_parquet(path, tmp_path / "parquet")
    attrib.export.to_anndata(path, tmp_path / "anndata")
    table = parquet.read_table(next((tmp_path / "parquet").glob("*.parquet"))).to_pandas()
    product = table.gradient * table.get("source_change", table.source_activation)
    assert np.allclose(product, table.attribution, rtol=1e-5)
    assert np.array_equal(table.target_gap.to_numpy(), edges.gap[edges.row].numpy())
    read = anndata.read_h5ad(next((tmp_path / "anndata").glob("*.h5ad")))
    assert np.array_equal(read.obs["gap"].to_numpy(), edges.gap.numpy())
    assert ("change" in read.var) == (edges.sources.change is not None)
