"""Weights between latents, tokens and heads: against dense formulas of the parameters, and against gradients of frozen prompts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.keep import kept
from attrib.core.types import LINEAR, BudgetError, Dense, InputError, Mass, Site, Threshold, TopK
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model, Norm, width
from tests.support import memory
from tests.support.attribution_cases import without_shape_checks
from tests.support.builders import D_MODEL, D_VOCAB, DTYPES, Family, build, normal, prompt
from tests.support.tolerances import ROUNDING, assert_close

FAMILIES: tuple[Family, ...] = ("gpt2", "llama", "gemma2")
D_SAE = 40


def made(model: Model, site: str, writes: str | list[str] = (), seed: int = 0, **options: Any) -> Dictionary:
    """A random dictionary of the model; what one reads and writes at layer 1's places may be given without "blocks."."""
    reads, d_sae = Site.parse(f"blocks.{site}"), options.pop("d_sae", D_SAE)
    written = [Site.parse(f"blocks.{one}") for one in ([writes] if isinstance(writes, str) else writes)]
    d_out = sum(width(model.config, one) for one in written or [reads])
    return from_tensors(
        site=reads, writes=written, k=6, W_enc=normal(width(model.config, reads), d_sae, dtype=model.dtype, seed=90 + seed),
        W_dec=normal(d_sae, d_out, dtype=model.dtype, seed=91 + seed), b_enc=normal(d_sae, dtype=model.dtype, seed=92 + seed),
        b_dec=normal(d_out, dtype=model.dtype, seed=93 + seed), **options,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- the plain formulas


def norm_map(model: Model, norm: Norm) -> Tensor:
    """A norm with its 1/s left out, as a matrix behind row vectors."""
    d = torch.eye(D_MODEL, dtype=model.dtype)
    if not norm.weight.numel():
        return d
    return (d - 1 / D_MODEL if model.config.norm == "layer" else d) @ norm.weight.diag()


def ov_map(model: Model, layer: int, head: int, *, out: bool = True) -> Tensor:
    """One head from the stream to the stream, or to its place in z."""
    c, block = model.config, model.params.blocks[layer]
    kv = head // (c.n_heads // c.n_kv_heads)
    W_V = block.attention.W_V.reshape(D_MODEL, c.n_kv_heads, c.d_head)[:, kv]
    if not out:
        place = torch.zeros(c.d_head, c.n_heads, c.d_head, dtype=model.dtype)
        place[:, head] = torch.eye(c.d_head)
        return norm_map(model, block.norm_1) @ W_V @ place.flatten(1)
    W_O = block.attention.W_O.reshape(c.n_heads, c.d_head, D_MODEL)[head]
    return norm_map(model, block.norm_1) @ W_V @ W_O @ norm_map(model, block.post_1)


def written(model: Model, dictionary: Dictionary, site: str | None = None) -> Tensor:
    """Decoder rows as they are in the stream, of one of the sites that are written."""
    at = dictionary.writes[0] if site is None else Site.parse(f"blocks.{site}")
    D = dictionary.params.W_dec.chunk(len(dictionary.writes), dim=1)[dictionary.writes.index(at)]
    block = model.params.blocks[at.layer]
    return D @ block.attention.W_O @ norm_map(model, block.post_1) if at.kind == "z" else D


def read(model: Model, dictionary: Dictionary) -> Tensor:
    """Encoder columns as they read the stream (or z)."""
    E, block = dictionary.params.W_enc, model.params.blocks[dictionary.site.layer]
    return norm_map(model, block.norm_2) @ E if dictionary.site.kind == "mlp_in" else E


DIRECT = [
    ("1.mlp.hook_in", "1.hook_mlp_out", "2.hook_resid_pre"),
    ("1.mlp.hook_in", "1.hook_mlp_out", "1.hook_resid_post"),
    ("1.mlp.hook_in", "1.hook_mlp_out", "3.mlp.hook_in"),
    ("1.hook_resid_pre", (), "1.mlp.hook_in"),
    ("1.hook_attn_out", (), "1.hook_resid_mid"),
    ("1.attn.hook_z", (), "1.mlp.hook_in"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("site", "writes", "target"), DIRECT)
def test_virtual_weights_are_encoder_times_decoder(family: Family, dtype: torch.dtype, site: str, writes: str, target: str) -> None:
    model = build(family, dtype)
    source, reads = made(model, site, writes), made(model, target, seed=5, d_sae=33)
    found = attrib.graph.virtual_weights(model, source, reads, keep=Dense())
    expected = (written(model, source) @ read(model, reads)).T
    assert_close(found.dense(), expected, ROUNDING)
    assert_close(found.total, expected.sum(1), ROUNDING)
    assert_close(found.l1, expected.abs().sum(1), ROUNDING)
    assert_close(found.remainder + 1, torch.ones_like(found.total), 1e-3)


THROUGH = [("1.mlp.hook_in", "1.hook_mlp_out", "3.mlp.hook_in"), ("2.hook_resid_pre", (), "2.mlp.hook_in")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("heads", [2, [3, 0], None])
@pytest.mark.parametrize(("site", "writes", "target"), THROUGH)
def test_virtual_weights_through_heads(family: Family, dtype: torch.dtype, heads: Any, site: str, writes: str, target: str) -> None:
    """One head, two, or all: of llama's all, the heads' values are wider than the stream, and both sides meet in the stream."""
    model = build(family, dtype)
    source, reads = made(model, site, writes), made(model, target, seed=5)
    found = attrib.graph.virtual_weights(model, source, reads, attention=2, heads=heads, keep=Dense())
    OV = sum(ov_map(model, 2, head) for head in ([heads] if heads == 2 else heads or range(4)))
    assert_close(found.dense(), (written(model, source) @ OV @ read(model, reads)).T, ROUNDING)
    assert found.attention == 2
    assert found.heads == ((2,) if heads == 2 else (0, 3) if heads else (0, 1, 2, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_may_read_what_attention_gives(family: Family) -> None:
    model = build(family, torch.float64)
    source, z, out = made(model, "1.hook_resid_pre"), made(model, "1.attn.hook_z", seed=3), made(model, "1.hook_attn_out", seed=4)
    for heads in ([1], [0, 2], range(4)):
        for target in (z, out):
            found = attrib.graph.virtual_weights(model, source, target, attention=1, heads=heads, keep=Dense()).dense()
            OV = sum(ov_map(model, 1, head, out=target is out) for head in heads)
            assert_close(found, (written(model, source) @ OV @ read(model, target)).T, ROUNDING)


def test_a_cross_layer_transcoder_is_summed_over_what_the_target_reads() -> None:
    model = build("gpt2", torch.float64)
    source = made(model, "0.mlp.hook_in", [f"{layer}.hook_mlp_out" for layer in range(4)])
    target = made(model, "2.hook_resid_pre", seed=4)
    summed = written(model, source, "0.hook_mlp_out") + written(model, source, "1.hook_mlp_out")
    found = attrib.graph.virtual_weights(model, source, target, keep=Dense())
    assert_close(found.dense(), (summed @ read(model, target)).T, ROUNDING)
    # attention of layer 1 reads what layer 0 writes alone
    found = attrib.graph.virtual_weights(model, source, target, attention=1, keep=Dense())
    OV = sum(ov_map(model, 1, head) for head in range(4))
    assert_close(found.dense(), (written(model, source, "0.hook_mlp_out") @ OV @ read(model, target)).T, ROUNDING)
    # what an MLP gives is read where the source writes it, and nowhere else
    at_mlp_out = made(model, "2.hook_mlp_out", seed=5)
    found = attrib.graph.virtual_weights(model, source, at_mlp_out, keep=Dense())
    assert_close(found.dense(), (written(model, source, "2.hook_mlp_out") @ read(model, at_mlp_out)).T, ROUNDING)


def test_a_dictionary_that_centres_its_input_does_not_read_a_mean() -> None:
    model = build("llama", torch.float64)
    source, target = made(model, "1.hook_resid_pre"), made(model, "2.hook_resid_pre", seed=4, normalisation="layer_norm")
    E = target.params.W_enc
    found = attrib.graph.virtual_weights(model, source, target, keep=Dense()).dense()
    assert_close(found, (source.params.W_dec @ (E - E.mean(0))).T, ROUNDING)


# -------------------------------------------------------------------------------- what a frozen prompt makes of them


def gradients(model: Model, source: Dictionary, target: Dictionary, tokens: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """True gradients under LINEAR; and, of a matrix of weights by latents, its entries for the same nodes."""
    edges = attrib.latent_to_latent(model, source, target, tokens, policy=LINEAR)
    assert len(edges.targets) > 10
    assert len(edges.sources) > 10
    at = edges.targets.latent, edges.sources.latent
    return edges.dense(), lambda weights: weights[at[0]][:, at[1]]


def scale(model: Model, x: Tensor) -> Tensor:
    """1 / s of a norm at each position."""
    x = x - x.mean(-1, keepdim=True) if model.config.norm == "layer" else x
    return (x.pow(2).mean(-1) + model.config.eps).rsqrt()


@pytest.mark.parametrize("family", [*FAMILIES, "olmo2", "gptj"])
def test_with_nothing_between_the_gradient_is_the_virtual_weight(family: Family) -> None:
    model, tokens = build(family, torch.float64), prompt(8)
    source, target = made(model, "1.mlp.hook_in", "1.hook_mlp_out"), made(model, "2.hook_resid_pre", seed=5)
    true, entries = gradients(model, source, target, tokens)
    weights = attrib.graph.virtual_weights(model, source, target, keep=Dense()).dense()
    edges = attrib.latent_to_latent(model, source, target, tokens, policy=LINEAR)
    same = edges.targets.position[:, None] == edges.sources.position[None]
    assert_close(true, entries(weights) * same, ROUNDING)
    assert_close(edges.dense(0, "attribution"), entries(weights) * same * edges.sources.activation, ROUNDING)


@pytest.mark.few
@pytest.mark.parametrize("target", ["2.mlp.hook_in", "2.hook_attn_out", "2.attn.hook_z"])
@pytest.mark.parametrize("family", [*FAMILIES, "olmo2", "gptj"])
def test_through_one_layer_the_gradient_is_virtual_weights_by_pattern_and_scales(family: Family, target: str) -> None:
    model, tokens, graph = build(family, torch.float64), prompt(8), attrib.graph
    source, reads = made(model, "1.mlp.hook_in", "1.hook_mlp_out"), made(model, target, seed=5)
    true, entries = gradients(model, source, reads, tokens)
    edges = attrib.latent_to_latent(model, source, reads, tokens, policy=LINEAR)
    p, q = edges.targets.position[:, None], edges.sources.position[None]
    found = attrib.capture(model, tokens, ["blocks.2.hook_resid_pre", "blocks.2.attn.hook_z", "blocks.2.hook_resid_mid"])
    pre, z, mid = found.values()
    block, one = model.params.blocks[2], torch.ones(len(tokens), dtype=torch.float64)
    s_1 = scale(model, pre) if model.config.pre_norm else one
    is_normed_behind = model.config.post_norm and not target.endswith("z")
    s_post = scale(model, z @ block.attention.W_O + block.attention.b_O) if is_normed_behind else one
    is_normed_before = model.config.pre_norm and target.endswith("in")
    s_2 = scale(model, pre if model.config.parallel else mid) if is_normed_before else one
    pattern = attrib.attention_patterns(model, tokens, 2)[2]
    expected = torch.zeros_like(true)
    if target.endswith("in"):
        expected += entries(graph.virtual_weights(model, source, reads, keep=Dense()).dense()) * (p == q)
    if not (model.config.parallel and target.endswith("in")):  # an MLP beside attention does not see it
        for head in range(4):
            weights = graph.virtual_weights(model, source, reads, attention=2, heads=head, keep=Dense()).dense()
            expected += entries(weights) * pattern[head][p, q] * s_1[q] * s_post[p]
    assert_close(true, expected * s_2[p], ROUNDING)


# ------------------------------------------------------------------------------------------- tiles and what is kept


@pytest.mark.parametrize("keep", [TopK(3), Threshold(4.0), Mass(0.5), Dense()])
@pytest.mark.parametrize("attention", [None, 2])
def test_a_small_budget_gives_the_same(keep: Any, attention: int | None) -> None:
    model = build("llama", torch.float64)
    source = made(model, "0.mlp.hook_in", ["0.hook_mlp_out", "1.hook_mlp_out"])
    target = made(model, "3.mlp.hook_in", seed=5, d_sae=33)
    whole = attrib.graph.virtual_weights(model, source, target, attention=attention, keep=keep)
    with pytest.raises(BudgetError, match=r"needs ([\d,]+)\. Raise the budget") as refused:
        attrib.graph.virtual_weights(model, source, target, attention=attention, keep=keep, budget=1000)
    least = int(str(refused.value).split("needs ")[1].split(".")[0].replace(",", ""))
    tiled = attrib.graph.virtual_weights(model, source, target, attention=attention, keep=keep, budget=least)
    weights = attrib.graph.virtual_weights(model, source, target, attention=attention, keep=Dense()).dense()
    mask = kept(keep, weights, weights)
    assert 0 < len(whole) == int(mask.sum())
    for found in (whole, tiled):
        assert torch.equal(found.dense() != 0, mask)
        assert_close(found.dense(), weights * mask, ROUNDING)
        assert_close(found.remainder, (weights * ~mask).sum(1), ROUNDING)
        assert_close(found.total, weights.sum(1), ROUNDING)


def test_tiles_are_as_small_as_the_budget_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoder rows are asked for in tiles of sources, encoder columns in tiles of targets."""
    from attrib.graph import stream, weights

    model = build("gpt2", torch.float32)
    source, target = made(model, "1.hook_resid_pre", d_sae=3000), made(model, "2.hook_resid_pre", seed=5, d_sae=50)
    asked: dict[str, set[int]] = {"rows": set(), "columns": set()}
    for kind, name in ((stream.Writer, "rows"), (stream.Reader, "columns")):
        plain = getattr(kind, name)

        def counted(self: Any, first: int, last: int, *rest: Any, name: str = name, plain: Any = plain) -> Tensor:
            asked[name].add(last - first)
            return plain(self, first, last, *rest)

        monkeypatch.setattr(kind, name, counted)
    attrib.graph.virtual_weights(model, source, target, budget=820_000)
    assert max(asked["columns"]) < 50
    assert max(asked["rows"]) < 3000
    asked["rows"].clear()
    weights.virtual_weights(model, source, target)
    assert asked["rows"] == {3000}


@pytest.mark.few
@pytest.mark.parametrize("keep", [TopK(8), Mass(0.2), Threshold(20.0)])
def test_no_more_is_held_than_the_budget(keep: Any) -> None:
    """Of 400 x 20,000 weights, 32 MB."""
    model, budget = build("gpt2", torch.float32), 8 << 20
    source, target = made(model, "1.hook_resid_pre", d_sae=20_000), made(model, "2.hook_resid_pre", seed=5, d_sae=400)
    attrib.graph.virtual_weights(model, source, target, targets=[0], keep=keep, budget=budget)
    memory.forget()
    before = memory.peak()
    found = attrib.graph.virtual_weights(model, source, target, keep=keep, budget=budget)
    assert len(found) > 400
    assert memory.peak() - before < budget + 3 * len(found) * 16 + (4 << 20)


def test_chosen_latents() -> None:
    model = build("gpt2", torch.float64)
    source, target = made(model, "1.hook_resid_pre"), made(model, "2.hook_resid_pre", seed=5)
    everything = attrib.graph.virtual_weights(model, source, target, keep=Dense()).dense()
    mask = torch.zeros(D_SAE, dtype=torch.bool).index_fill(0, torch.tensor([4, 9]), True)
    for sources, rows in (([7, 3], [7, 3]), (slice(30, None), [*range(30, 40)]), (mask, [4, 9]), (np.array([1]), [1]), (5, [5])):
        found = attrib.graph.virtual_weights(model, source, target, sources=sources, targets=rows, keep=Dense())
        assert found.sources.tolist() == found.targets.tolist() == rows
        assert_close(found.dense(), everything[rows][:, rows], ROUNDING)


def test_tables_name_latents() -> None:
    model = build("gpt2", torch.float64)
    source, target = made(model, "1.hook_resid_pre"), made(model, "2.hook_resid_pre", seed=5)
    found = attrib.graph.virtual_weights(model, source, target, sources=[30, 3, 20], targets=[8, 1], keep=TopK(2))
    everything = attrib.graph.virtual_weights(model, source, target, keep=Dense()).dense()
    table = found.to_pandas()
    assert len(table) == 4 == len(found)
    for row in table.itertuples():
        assert row.weight == row.attribution == pytest.approx(float(everything[row.target_latent, row.source_latent]), rel=1e-9)
    assert found.top(3).weight.abs().tolist() == sorted(table.weight.abs(), reverse=True)[:3]
    assert torch.equal(torch.from_numpy(found.to_scipy().toarray()), found.dense())
    assert repr(found) == f"VirtualWeights({source.name} -> {target.name}: 2 targets x 3 sources, 4 kept)"


def test_lazy_dictionaries_are_read_by_tiles(tmp_path: Path) -> None:
    """Encoders and decoders that stay in a file of fewer digits give what they give when they are loaded."""
    model = build("llama", torch.float64)
    loaded = []
    for seed, (site, writes) in enumerate([("1.mlp.hook_in", "1.hook_mlp_out"), ("2.mlp.hook_in", "2.hook_mlp_out")]):
        source = made(model, site, writes, seed=seed).to(dtype=torch.float32)
        save_file({"W_enc": source.params.W_enc.bfloat16().T.contiguous(), "W_dec": source.params.W_dec.bfloat16()}, tmp_path / f"{seed}")
        maps = load_file(tmp_path / f"{seed}")
        given = {"site": source.site, "writes": source.writes, "W_enc": maps["W_enc"].T, "W_dec": maps["W_dec"]}
        loaded.append(
            [from_tensors(**given, rule="relu", lazy=True), from_tensors(**{k: _double(v) for k, v in given.items()}, rule="relu")]
        )
    (lazy_source, source), (lazy_target, target) = loaded
    assert lazy_source.config.lazy
    assert lazy_source.params.W_dec.dtype == torch.bfloat16
    found = attrib.graph.virtual_weights(model, lazy_source, lazy_target, budget=40_000)
    expected = attrib.graph.virtual_weights(model, source, target)
    assert found.weight.dtype == torch.float64
    assert torch.equal(found.indices, expected.indices)
    assert_close(found.weight, expected.weight, ROUNDING)
    assert torch.equal(
        attrib.graph.logit_weights(model, lazy_source, [3, 1]).highest, attrib.graph.logit_weights(model, source, [3, 1]).highest
    )


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


# --------------------------------------------------------------------------------------------------- global weights


def test_global_weights_are_virtual_weights_by_expectation() -> None:
    model = build("gpt2", torch.float64)
    source, target = made(model, "1.hook_resid_pre"), made(model, "2.hook_resid_pre", seed=5, d_sae=33)
    weights = attrib.graph.virtual_weights(model, source, target, keep=Dense()).dense()
    expected = normal(D_SAE, dtype=torch.float64, seed=8).relu()
    together = normal(33, D_SAE, dtype=torch.float64, seed=9).relu()
    for given, by in (
        (expected, expected),
        (expected.numpy(), expected),
        (together, together),
        (scipy.sparse.csr_array(together.numpy()), together),
        (scipy.sparse.coo_matrix(together.numpy()), together),
    ):
        found = attrib.graph.global_weights(model, source, target, given, keep=TopK(4), budget=20_000)
        product = weights * by
        mask = kept(TopK(4), product, product)
        assert_close(found.dense("attribution"), product * mask, ROUNDING)
        assert_close(found.dense("weight"), weights * mask, ROUNDING)
        assert_close(found.l1, product.abs().sum(1), ROUNDING)
        some = attrib.graph.global_weights(model, source, target, given, sources=[9, 2, 5], targets=[8, 30], keep=Dense(), budget=20_000)
        assert_close(some.dense("attribution"), product[[8, 30]][:, [9, 2, 5]], ROUNDING)


def test_pairs_that_never_meet_are_not_kept() -> None:
    model = build("gpt2", torch.float64)
    source, target = made(model, "1.hook_resid_pre"), made(model, "2.hook_resid_pre", seed=5)
    together = torch.zeros(D_SAE, D_SAE, dtype=torch.float64)
    together[3, 7] = 0.25
    found = attrib.graph.global_weights(model, source, target, together, keep=Dense())
    assert found.to_pandas()[["target_latent", "source_latent"]].values.tolist() == [[3, 7]]


# ------------------------------------------------------------------------------------------------------- the vocabulary


def strongest(weights: Tensor, k: int) -> list[Tensor]:
    order = weights.argsort(-1, descending=True)
    return [order[:, :k], weights.gather(1, order[:, :k]), order.flip(1)[:, :k], weights.gather(1, order.flip(1)[:, :k])]


def assert_tokens(found: Any, weights: Tensor, k: int) -> None:
    highest, highest_weight, lowest, lowest_weight = strongest(weights, k)
    assert torch.equal(found.highest, highest)
    assert torch.equal(found.lowest, lowest)
    assert_close(found.highest_weight, highest_weight, ROUNDING)
    assert_close(found.lowest_weight, lowest_weight, ROUNDING)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_de_embeddings(family: Family, dtype: torch.dtype) -> None:
    model = build(family, dtype)
    target, scale = made(model, "1.mlp.hook_in", "1.hook_mlp_out"), model.config.embedding_scale
    W_E = model.params.W_E * scale
    assert (scale != 1) == (family == "gemma2")
    assert_tokens(attrib.graph.de_embeddings(model, target, k=5), (W_E @ read(model, target)).T, 5)
    found = attrib.graph.de_embeddings(model, target, [7, 2], attention=0, heads=[1, 3], k=4, budget=40_000)
    OV = ov_map(model, 0, 1) + ov_map(model, 0, 3)
    assert found.latent.tolist() == [7, 2]
    assert_tokens(found, (W_E @ OV @ read(model, target)[:, [7, 2]]).T, 4)
    directions = normal(3, D_MODEL, dtype=dtype)
    assert_tokens(attrib.graph.de_embeddings(model, directions, k=2), directions @ W_E.T, 2)
    z = made(model, "1.attn.hook_z", seed=7)
    OV = sum(ov_map(model, 1, head, out=False) for head in range(4))
    assert_tokens(attrib.graph.de_embeddings(model, z, attention=1, k=2), (W_E @ OV @ z.params.W_enc).T, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logit_weights(family: Family, dtype: torch.dtype) -> None:
    model = build(family, dtype)
    source = made(model, "1.mlp.hook_in", ["1.hook_mlp_out", "2.hook_mlp_out"])
    out = norm_map(model, model.params.norm_final) @ model.params.W_U
    first, second = (written(model, source, f"{layer}.hook_mlp_out") for layer in (1, 2))
    weights = (first + second) @ out
    assert_tokens(attrib.graph.logit_weights(model, source, k=5, demean=False), weights, 5)
    found = attrib.graph.logit_weights(model, source, slice(4, 9), k=5, budget=8_000)
    assert_tokens(found, (weights - weights.mean(1, keepdim=True))[4:9], 5)
    # attention of layer 2 reads what layer 1 writes alone
    OV = sum(ov_map(model, 2, head) for head in range(4))
    assert_tokens(attrib.graph.logit_weights(model, source, attention=2, demean=False), first @ OV @ out, 10)
    directions = normal(3, D_MODEL, dtype=dtype)
    assert_tokens(attrib.graph.logit_weights(model, directions, k=2, demean=False), directions @ out, 2)


@pytest.mark.parametrize("demean", [True, False])
def test_histograms_of_logit_weights(demean: bool) -> None:
    model = build("llama", dtype=torch.float64)
    source = made(model, "1.mlp.hook_in", "1.hook_mlp_out")
    found = attrib.graph.logit_histogram(model, source, slice(3, 9), bins=6, demean=demean, budget=8_000)
    weights = (written(model, source) @ norm_map(model, model.params.norm_final) @ model.params.W_U)[3:9]
    weights = weights - weights.mean(1, keepdim=True) if demean else weights
    for row, (edges, counts, of_latent) in enumerate(zip(found.edges, found.count, weights, strict=True)):
        below, above = of_latent[of_latent < 0].numpy(), of_latent[of_latent >= 0].numpy()
        plain = [np.histogram(below, bins=6, range=(below.min(), 0)), np.histogram(above, bins=6, range=(0, above.max()))]
        assert counts.tolist() == [*plain[0][0].tolist(), *plain[1][0].tolist()], row
        assert_close(edges, torch.from_numpy(np.concatenate([plain[0][1], plain[1][1][1:]])), ROUNDING)
    assert found.count.sum(1).tolist() == [D_VOCAB] * 6
    table = found.to_pandas()
    assert table[table.latent == 4]["count"].sum() == D_VOCAB
    assert found.latent.tolist() == [3, 4, 5, 6, 7, 8]
    assert repr(found) == "LogitHistogram(6 latents, 12 bins each)"


def test_a_histogram_of_weights_of_one_sign_has_an_empty_half() -> None:
    model = build("gpt2", dtype=torch.float64)
    model = replace(model, params=model.params._replace(W_U=model.params.W_U[:, :20]), config=replace(model.config, d_vocab=20))
    out = norm_map(model, model.params.norm_final) @ model.params.W_U
    direction = torch.linalg.lstsq(out.T, torch.linspace(1.2, 2, 20, dtype=torch.float64)[:, None]).solution.T  # none on an edge
    found = attrib.graph.logit_histogram(model, direction, bins=2, demean=False)
    assert found.count.tolist() == [[0, 0, 0, 20]]
    assert_close(found.edges, torch.tensor([[0, 0, 0, 1, 2]], dtype=torch.float64), 1e-9)
    for bins in (0, True):
        with pytest.raises(InputError, match=r"bins: .*; expected a whole number"):
            attrib.graph.logit_histogram(model, direction, bins=bins)


def test_logit_weights_are_what_logits_gain_but_for_the_scale() -> None:
    """Against the gradient of logits under LINEAR, whose last norm's scale is the same for all of a position."""
    model, tokens = build("gpt2", torch.float64), prompt(6)
    source = made(model, "3.mlp.hook_in", "3.hook_mlp_out")
    edges = attrib.latent_to_logit(model, source, tokens, logits=attrib.TokenLogits(range(D_VOCAB)), policy=LINEAR)
    last = edges.sources.position == len(tokens) - 1
    true, latents = edges.dense()[:, last].T, edges.sources.latent[last]
    found = attrib.graph.logit_weights(model, source, latents, k=D_VOCAB, demean=False)
    assert len(latents) > 2
    [stream] = attrib.capture(model, tokens, ["blocks.3.hook_resid_post"]).values()
    weights = torch.zeros_like(true).scatter(1, found.highest, found.highest_weight)
    assert_close(weights * scale(model, stream)[-1], true, ROUNDING)


def test_models_in_fewer_digits_are_computed_in_float32() -> None:
    half = build("llama", torch.float32).to(dtype="bfloat16")
    again = half.to(dtype="float32")
    source = made(again, "1.mlp.hook_in", "1.hook_mlp_out")
    weights, expected = (attrib.graph.logit_weights(model, source, attention=2, k=4) for model in (half, again))
    assert weights.highest_weight.dtype == torch.float32
    assert_close(weights.highest_weight, expected.highest_weight, ROUNDING)
    norms, expected_norms = (attrib.graph.ov_norms(model, source).norm for model in (half, again))
    assert_close(norms, expected_norms, ROUNDING)


def test_token_tables_have_strings() -> None:
    model = build("gpt2", torch.float64)
    table = attrib.graph.logit_weights(model, made(model, "1.hook_resid_pre"), [5, 3], k=2).to_pandas(model)
    assert table[["latent", "rank"]].values.tolist() == [[5, 0], [5, 1], [3, 0], [3, 1]]
    assert list(table) == ["latent", "rank", "highest_token", "highest_weight", "lowest_token", "lowest_weight"]
    assert all(isinstance(token, str) for token in table.highest_token)


# ---------------------------------------------------------------------------------------------------------------- OV norms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_ov_norms(family: Family, dtype: torch.dtype) -> None:
    model = build(family, dtype)
    target = made(model, "2.mlp.hook_in", "2.hook_mlp_out")
    found = attrib.graph.ov_norms(model, target, budget=80_000)
    E = read(model, target)
    assert found.layer.tolist() == [0, 1, 2]
    expected = torch.stack([torch.stack([(ov_map(model, at, h) @ E).norm(dim=0) for h in range(4)]) for at in (0, 1, 2)])
    assert_close(found.norm, expected.permute(2, 0, 1), ROUNDING)
    source = made(model, "0.mlp.hook_in", ["0.hook_mlp_out", "2.hook_mlp_out"])
    found = attrib.graph.ov_norms(model, source, [8, 3], of="decoder")
    assert found.layer.tolist() == [1, 2, 3]
    first, second = (written(model, source, f"{layer}.hook_mlp_out")[[8, 3]] for layer in (0, 2))
    by_layer = {1: first, 2: first, 3: first + second}
    expected = torch.stack([torch.stack([(D @ ov_map(model, at, h)).norm(dim=1) for h in range(4)]) for at, D in by_layer.items()])
    assert_close(found.norm, expected.permute(2, 0, 1), ROUNDING)
    directions = normal(3, D_MODEL, dtype=dtype)
    found = attrib.graph.ov_norms(model, directions, layers=1)
    assert_close(found.norm[:, 0], torch.stack([(ov_map(model, 1, h) @ directions.T).norm(dim=0) for h in range(4)], 1), ROUNDING)
    z = made(model, "1.attn.hook_z", seed=7)
    found = attrib.graph.ov_norms(model, z)
    assert found.layer.tolist() == [1]
    expected = torch.stack([(ov_map(model, 1, h, out=False) @ z.params.W_enc).norm(dim=0) for h in range(4)], 1)
    assert_close(found.norm[:, 0], expected, ROUNDING)


# ------------------------------------------------------------------------------------------------------------- refusals


def weights_of(source: str | tuple[str, str], target: str | tuple[str, str], family: Family = "gpt2", **options: Any) -> Any:
    model = build(family, torch.float64)
    ends = [made(model, *((end,) if isinstance(end, str) else end), seed=seed) for seed, end in ((0, source), (5, target))]
    return attrib.graph.virtual_weights(model, *ends, **options)


TRANSCODER = ("1.mlp.hook_in", "1.hook_mlp_out")


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        (TRANSCODER, "1.hook_resid_pre", {}, r"target: blocks.1.hook_resid_pre is not after the source's blocks.1.hook_mlp_out"),
        ("2.hook_resid_pre", "1.hook_resid_post", {}, r"not after"),
        (TRANSCODER, "1.hook_mlp_out", {}, r"not after"),
        ("1.mlp.hook_in", "2.hook_resid_pre", {}, r"source: .* writes blocks.1.mlp.hook_in, which the MLP alone reads"),
        (TRANSCODER, "2.hook_mlp_out", {}, r"target: it reads blocks.2.hook_mlp_out, what the MLP gives"),
        (TRANSCODER, "2.hook_mlp_out", {"attention": 2}, r"target: it reads blocks.2.hook_mlp_out, what the MLP gives"),
        (TRANSCODER, "2.attn.hook_z", {}, r"what attention gives. Pass it: attention=2"),
        (TRANSCODER, "3.hook_attn_out", {"attention": 2}, r"attention: 2, but blocks.3.hook_attn_out holds what layer 3 gives"),
        (TRANSCODER, "3.hook_resid_pre", {"attention": 1}, r"attention: 1, which reads the stream before the source writes"),
        (TRANSCODER, "3.hook_resid_pre", {"attention": 3}, r"attention: 3, which writes behind blocks.3.hook_resid_pre"),
        (TRANSCODER, "3.hook_resid_pre", {"attention": 4}, r"attention: 4; expected a whole number from 0 to 3"),
        (TRANSCODER, "3.hook_resid_pre", {"attention": 2, "heads": 4}, r"heads: 4; expected numbers from 0 to 3"),
        (TRANSCODER, "3.hook_resid_pre", {"attention": 2, "heads": []}, r"heads: \[\]; expected"),
        (TRANSCODER, "3.hook_resid_pre", {"heads": 1}, r"heads: 1 without their layer"),
        (TRANSCODER, "3.hook_resid_pre", {"sources": [1, 40]}, r"sources: 40 is no latent; expected numbers from 0 to 39"),
        (TRANSCODER, "3.hook_resid_pre", {"targets": []}, r"targets: "),
        (TRANSCODER, "3.hook_resid_pre", {"targets": slice(5, 5)}, r"targets: none chosen"),
        (TRANSCODER, "3.hook_resid_pre", {"targets": [-1]}, r"targets: -1 is no latent"),
        (TRANSCODER, "3.hook_resid_pre", {"targets": [0.5]}, r"targets: \[0.5\]; expected"),
        (TRANSCODER, "3.hook_resid_pre", {"targets": "all"}, r"targets: 'all'; expected"),
        (TRANSCODER, "3.hook_resid_pre", {"targets": torch.ones(7, dtype=torch.bool)}, r"a mask of 40 booleans"),
        (TRANSCODER, "3.hook_resid_pre", {"keep": TopK(0)}, r"keep: TopK\(0\)"),
        (TRANSCODER, "3.hook_resid_pre", {"budget": "much"}, r"budget: 'much'"),
    ],
)
def test_what_no_weight_leads_to_is_refused_by_name(source: Any, target: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        weights_of(source, target, **options)


def test_an_mlp_beside_attention_does_not_see_it() -> None:
    with pytest.raises(InputError, match=r"does not see the source's blocks.2.hook_attn_out: the MLP of tiny-gptj stands beside"):
        weights_of("2.hook_attn_out", "2.mlp.hook_in", family="gptj")
    with pytest.raises(InputError, match=r"attention: 2, which writes behind blocks.2.mlp.hook_in"):
        weights_of("2.hook_resid_pre", "2.mlp.hook_in", family="gptj", attention=2)
    assert len(weights_of("2.hook_attn_out", "3.mlp.hook_in", family="gptj"))


def test_other_refusals() -> None:
    model = build("gpt2", torch.float64)
    graph, sae, mlp_out = attrib.graph, made(model, "0.hook_resid_pre"), made(model, "1.hook_mlp_out")
    later = made(model, "1.hook_resid_pre", seed=4)
    for call, message in (
        (lambda: graph.de_embeddings(model, mlp_out), r"target: it reads blocks.1.hook_mlp_out, what one component gives"),
        (lambda: graph.de_embeddings(model, made(model, "1.attn.hook_z")), r"Pass it: attention=1"),
        (lambda: graph.de_embeddings(model, later, attention=1), r"attention: 1, which writes behind"),
        (lambda: graph.de_embeddings(model, sae, k=0), r"k: 0; expected a whole number from 1 to the 60 tokens"),
        (lambda: graph.de_embeddings(model, sae, budget=100), r"budget: 100 bytes"),
        (lambda: graph.ov_norms(model, later, budget=40_000), r"budget: 40,000 bytes"),
        (lambda: graph.virtual_weights(model, torch.ones(3, D_MODEL), made(model, "1.attn.hook_z")), r"Pass it: attention=1"),
        (lambda: graph.virtual_weights(model, torch.ones(3, D_MODEL), mlp_out), r"what the MLP gives"),
        (lambda: graph.de_embeddings(model, torch.ones(3, 31)), r"target: a tensor \[3, 31\]"),
        (lambda: graph.de_embeddings(model, torch.ones(3, D_MODEL), [1]), r"latents: given beside a tensor"),
        (lambda: graph.logit_weights(model, made(model, "1.mlp.hook_in")), r"which the MLP alone reads"),
        (lambda: graph.logit_weights(model, later, attention=0), r"attention: 0, which reads the stream before"),
        (lambda: graph.ov_norms(model, sae), r"layers: none; tiny-gpt2 has no attention before what its encoder reads"),
        (lambda: graph.ov_norms(model, later, layers=1), r"attention: 1, which writes behind"),
        (lambda: graph.ov_norms(model, later, layers=9), r"layers: 9; expected"),
        (lambda: graph.ov_norms(model, later, of="both"), r"of: 'both'"),
        (lambda: graph.global_weights(model, sae, later, torch.ones(7)), r"expected: got shape \(7,\); expected \[40\]"),
        (lambda: graph.global_weights(model, sae, later, "mean"), r"expected: got a str"),
        (lambda: graph.global_weights(model, sae, later, torch.full((40,), torch.nan)), r"expected: some are no finite numbers"),
        (lambda: graph.virtual_weights(model, sae, later).top(0), r"k: 0; expected"),
        (lambda: graph.virtual_weights(model, sae, later).values("gradient"), r"value: 'gradient'"),
        (lambda: graph.virtual_weights(model, torch.full((2, D_MODEL), torch.inf), later), r"a weight is NaN or too large"),
    ):
        with without_shape_checks(), pytest.raises(InputError, match=message):
            call()


def test_a_result_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from attrib.graph import weights

    monkeypatch.setattr(weights, "free_memory", lambda: 2 * 40 * 40 * 24 - 1)
    with pytest.raises(BudgetError, match=r"keep: Dense\(\) gives a result of 38.4 kB for 40 targets of 40 sources"):
        weights_of("1.hook_resid_pre", "2.hook_resid_pre", keep=Dense())
    assert len(weights_of("1.hook_resid_pre", "2.hook_resid_pre", keep=TopK(2))) == 80
