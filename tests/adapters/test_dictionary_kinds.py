"""Every kind of dictionary: values and derivatives are its own library's, and sparse encoding equals dense encoding for all of them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jacfwd, jacrev

import attrib
from attrib.adapters.dictionaries import kinds
from attrib.adapters.dictionaries.tensors import _FOLDED, _NEEDS, from_tensors
from attrib.core.sparse import canonical, holds
from attrib.core.types import InputError, NotFiniteError, Site, SparseLatents
from attrib.dictionaries.dictionary import (
    COMPETING,
    Dictionary,
    Rule,
    _competes,
    active,
    after_gain,
    decode,
    decode_at,
    encode,
    encode_at,
    encode_sparse,
    normalise_input,
    pre_activations,
    reconstruct,
    skip,
    split,
    wins_at,
)
from attrib.passes.capture import cut
from tests.engine.test_budget import peak
from tests.support.builders import D_MODEL, DTYPES, dictionary, normal, sae
from tests.support.examples import examples
from tests.support.root import ROOT
from tests.support.tolerances import DICTIONARY, FINITE_DIFFERENCE, ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SAE_LENS = kinds.supported("sae-lens")
TRANSCODERS = [kind for kind in SAE_LENS if kind.endswith("transcoder")]
D_OUT = 24


def options_of(kind: str) -> Iterator[dict[str, Any]]:
    for normalisation in ("none", "layer_norm", "constant_norm_rescale"):  # the others are folded: see test_silent_dictionaries.py
        for apply_b_dec in (False,) if kind in TRANSCODERS else (True, False):
            options: dict[str, Any] = {"normalize_activations": normalisation, "apply_b_dec_to_input": apply_b_dec}
            yield options | ({"d_out": D_OUT} if kind in TRANSCODERS else {})
            if kind.endswith("topk"):
                yield options | {"rescale_acts_by_decoder_norm": True}


INSTANCES = [(kind, options) for kind in SAE_LENS for options in options_of(kind)]
IDS = ["-".join(str(part) for part in (kind, *options.values())) for kind, options in INSTANCES]
each_instance = pytest.mark.parametrize(("kind", "options"), INSTANCES, ids=IDS)
each_transcoder = pytest.mark.parametrize("kind", TRANSCODERS)


def x_of(dtype: torch.dtype = torch.float64, *shape: int) -> Tensor:
    return 2.5 * normal(*(shape or (7, D_MODEL)), dtype=dtype) + 0.7


def made(kind: str, **options: Any) -> Dictionary:
    """A dictionary of any of sae-lens's kinds in float64, where a transcoder reads mlp_in and writes something narrower."""
    site = "blocks.1.mlp.hook_in" if kind in TRANSCODERS else "blocks.1.hook_resid_pre"
    return dictionary(kind, site, torch.float64, **(({"d_out": D_OUT} if kind in TRANSCODERS else {}) | options))


def jump() -> Dictionary:
    """Thresholds of either sign and no ReLU: about half of the active latents are negative."""
    W_enc, W_dec = normal(D_MODEL, 80, dtype=torch.float64, seed=5) / 6, normal(80, D_MODEL, dtype=torch.float64, seed=6)
    threshold = normal(80, dtype=torch.float64, seed=7)
    return from_tensors(site=Site(1, "mlp_in"), W_enc=W_enc, W_dec=W_dec, threshold=threshold, rule="jump")


def rule_of(ours: Dictionary, rule: Any) -> Dictionary:
    """k of 80 are more than are positive, so that negative ones win."""
    return replace(ours, config=replace(ours.config, rule=rule, k=50))


EVERY: dict[str, Callable[[], Dictionary]] = {kind: lambda kind=kind: made(kind) for kind in SAE_LENS} | {
    "layer_norm": lambda: made("jumprelu", normalize_activations="layer_norm"),
    "constant_norm": lambda: made("abstopk", normalize_activations="constant_norm_rescale", rescale_acts_by_decoder_norm=True),
    "jump": jump,
    "rawtopk": lambda: rule_of(made("topk"), "rawtopk"),
}


def test_every_rule_is_among_them():
    assert {make().config.rule for make in EVERY.values()} == set(get_args(Rule)) == set(DERIVATIVES)
    assert {rule for rule in get_args(Rule) if _competes(rule, torch.ones(1)) is not None} == set(COMPETING)
    assert {kind.name for kind in kinds.KINDS if kind.library == "tensors"} == set(_NEEDS)
    assert set(_NEEDS) == {*get_args(Rule), *_FOLDED}


every_rule = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())


# ------------------------------------------------------------------------------------------ against sae-lens


@pytest.mark.parametrize("dtype", DTYPES)
@each_instance
def test_values_are_sae_lens_own(kind: str, options: dict[str, Any], dtype: torch.dtype):
    foreign, x = sae(kind, D_MODEL, dtype, **options), x_of(dtype, 2, 5, D_MODEL)
    ours = attrib.from_sae_lens(foreign)
    with torch.no_grad():
        latents = foreign.encode(x)
        decoded = foreign.decode(latents)
        whole = foreign(x)
    got = encode(ours, x)
    assert 0 < (got != 0).float().mean() < 0.9
    assert torch.equal(got != 0, latents != 0)
    assert ((got < 0).any() and (got > 0).any()) if kind == "abstopk" else (got >= 0).all()
    assert_close(got, latents, DICTIONARY, what="encode")
    assert_close(decode(ours, latents, normalise_input(ours, x)[1]), decoded, DICTIONARY, what="decode")
    assert_close(reconstruct(ours, x), whole, DICTIONARY, what="forward")
    assert_close(skip(ours, x), whole - decoded, DICTIONARY, what="skip")
    assert ours.has_skip == ("skip" in kind)
    assert ours.config.kind == kind


@pytest.mark.parametrize("kind", ["gated", "abstopk"])
def test_heads_outputs_are_read_flat(kind: str):
    foreign = sae(kind, 40, torch.float64, site="blocks.1.attn.hook_z", reshape_activations="hook_z", normalize_activations="layer_norm")
    ours, z = attrib.from_sae_lens(foreign), x_of(torch.float64, 6, 40)
    with torch.no_grad():
        latents, whole = foreign.encode(z.unflatten(-1, (4, 10))), foreign(z.unflatten(-1, (4, 10)))
    assert (ours.site, ours.writes) == (Site(1, "z"), (Site(1, "z"),))
    assert_close(encode(ours, z), latents, DICTIONARY)
    assert_close(reconstruct(ours, z), whole.flatten(-2), DICTIONARY)


@each_transcoder
def test_a_transcoder_writes_elsewhere(kind: str):
    ours = made(kind)
    assert (ours.site, ours.writes) == (Site(1, "mlp_in"), (Site(1, "mlp_out"),))
    assert (ours.d_in, ours.d_out) == (D_MODEL, D_OUT)
    assert ours.config.hook_name == "blocks.1.mlp.hook_in"


# --------------------------------------------------------------------------------------------- derivatives


@each_instance
def test_derivatives_are_torchs_through_sae_lens_and_those_of_differences(kind: str, options: dict[str, Any]):
    """Of `encode_at`: gated through the magnitude, TopK with its selection held, JumpReLU 1 above its threshold, norms differentiated."""
    foreign, x = sae(kind, D_MODEL, torch.float64, **options), x_of(torch.float64, 2, D_MODEL)
    ours = attrib.from_sae_lens(foreign)
    position, latent = torch.meshgrid(torch.arange(2), torch.arange(ours.d_sae), indexing="ij")
    position, latent = position.flatten(), latent.flatten()
    gate = wins_at(ours, x, position, latent)
    assert 0 < gate.sum() < len(gate)

    def at(x: Tensor) -> Tensor:
        return encode_at(ours, x, position, latent, gate)

    want = torch.autograd.functional.jacobian(foreign.encode, x).flatten(0, 1)
    assert_close(at(x), foreign.encode(x).detach().flatten(), DICTIONARY, what="values")
    assert (want[gate] != 0).any(-1).any(-1).all()
    assert_close(jacrev(at)(x), want, DICTIONARY, what="jacrev")
    assert_close(jacfwd(at)(x), want, DICTIONARY, what="jacfwd")
    step = 1e-5
    for seed in range(4):
        direction = normal(*x.shape, dtype=x.dtype, seed=20 + seed)
        ahead, behind = encode(ours, x + step * direction), encode(ours, x - step * direction)
        smooth = ((ahead != 0) == (behind != 0)).flatten()
        assert (~smooth).sum() <= 1  # one latent may have its kink between
        difference = (ahead - behind).flatten() / (2 * step)
        assert_close(torch.einsum("npd,pd->n", want, direction)[smooth], difference[smooth], FINITE_DIFFERENCE, what="differences")


def test_the_derivative_of_a_jump():
    ours, x = jump(), x_of()
    latents = encode(ours, x)
    pre = pre_activations(ours, x)
    assert torch.equal(latents, pre * (pre > ours.params.threshold))
    position, latent = latents.nonzero(as_tuple=True)
    assert (latents[position, latent] < 0).any()
    jacobian = jacrev(lambda x: encode_at(ours, x, position, latent))(x)
    assert_close(jacobian[torch.arange(len(latent)), position], ours.params.W_enc.T[latent], DICTIONARY)


def test_gradients_of_a_skip_with_respect_to_parameters():
    foreign, x = sae("jumprelu_skip_transcoder", D_MODEL, torch.float64, d_out=D_OUT), x_of()
    ours, y = attrib.from_sae_lens(foreign), x_of(torch.float64, 7, D_OUT)
    (foreign(x) - y).square().mean().backward()
    got = grad(lambda params: (reconstruct(replace(ours, params=params), x) - y).square().mean())(ours.params)
    for name, want in {"W_skip": foreign.W_skip.grad.T, "W_enc": foreign.W_enc.grad, "b_dec": foreign.b_dec.grad}.items():
        assert_close(getattr(got, name), want, DICTIONARY, what=name)


# ------------------------------------------------------------------------------------ sparse from the start


def assert_same_latents(got: SparseLatents, ours: Dictionary, x: Tensor) -> None:
    """The active latents of the dense encoder, in canonical order and each once."""
    dense = encode(ours, x)
    assert torch.equal(torch.stack([got.position, got.latent]), dense.nonzero().T)
    assert_close(got.value, dense[got.position, got.latent], ROUNDING)


@pytest.mark.parametrize("tile", [1, 7, 79, 80, 1000])
@every_rule
def test_sparse_encoding_is_dense_encoding(make: Callable[[], Dictionary], tile: int):
    ours, x = make(), x_of()
    assert len(encode_sparse(ours, x).latent) > 7
    assert_same_latents(encode_sparse(ours, x, tile=tile), ours, x)


@given(
    rule=st.sampled_from(["relu", "jumprelu", "jump", "topk", "rawtopk", "abstopk"]),
    positions=st.integers(0, 4),
    d_sae=st.integers(1, 12),
    tile=st.integers(1, 13),
    data=st.data(),
)
@settings(max_examples=examples(150), deadline=None)
def test_ties_are_broken_alike_by_every_tile(rule: str, positions: int, d_sae: int, tile: int, data: st.DataObject):
    """Small whole numbers are exact in any order of summation, and tie all the time. Of equals the first win."""
    numbers = st.integers(-2, 2).map(float)

    def draw(*shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        return torch.tensor(data.draw(st.lists(numbers, min_size=size, max_size=size)), dtype=torch.float64).view(shape)

    k = data.draw(st.integers(1, d_sae)) if rule.endswith("topk") else None
    threshold = draw(d_sae) if rule.startswith("jump") else None
    ours = from_tensors(
        site=Site(0, "resid_pre"), W_enc=draw(2, d_sae), b_enc=draw(d_sae), W_dec=draw(d_sae, 2), rule=rule, k=k, threshold=threshold
    )
    x = draw(positions, 2)
    got = encode_sparse(ours, x, tile=tile)
    assert_same_latents(got, ours, x)
    for row, value in enumerate(pre_activations(ours, x).tolist()):  # the rule once more, in plain Python
        size = [abs(v) for v in value] if rule == "abstopk" else value
        first = sorted(range(d_sae), key=lambda j: (-size[j], j))[:k]
        bound = [0.0] * d_sae if threshold is None else threshold.tolist()
        on = {
            j
            for j, v in enumerate(value)
            if v != 0 and (rule.endswith(("stopk", "wtopk")) or v > bound[j]) and (rule in ("jump", "rawtopk", "abstopk") or v > 0)
        } & {*(first if k else range(d_sae))}
        assert set(got.latent[got.position == row].tolist()) == on


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@every_rule
def test_sparse_encoding_on_a_gpu(make: Callable[[], Dictionary]):
    ours, x = make(), x_of()
    got = encode_sparse(ours.to(device="cuda"), x.cuda(), tile=7)
    assert {column.device.type for column in got} == {"cuda"}
    assert_same_latents(SparseLatents(*(column.cpu() for column in got)), ours, x)


@every_rule
def test_which_latents_win_elsewhere(make: Callable[[], Dictionary]):
    ours, x, there = make(), x_of(), x_of(torch.float64, 7, D_MODEL).flip(0)
    position, latent, _ = encode_sparse(ours, x)
    on = active(ours, pre_activations(ours, there))
    assert 0 < on[position, latent].sum() < len(latent)
    for tile in (3, 80):
        assert torch.equal(wins_at(ours, there, position, latent, tile=tile), on[position, latent])
    order = torch.randperm(len(latent), generator=torch.Generator().manual_seed(0))
    assert torch.equal(wins_at(ours, there, position[order], latent[order]), on[position[order], latent[order]])


@pytest.mark.few
@pytest.mark.parametrize("kind", ["standard", "topk", "abstopk"])
def test_sparse_encoding_holds_no_more_than_a_tile(kind: str):
    """A dense tensor would be 64 times the tile; three tiles and their masks are what there is at the fullest moment."""
    positions, d_sae, tile = 64, 64 * 256, 256
    ours = dictionary(kind, d_sae=d_sae, k=20)
    if kind == "standard":  # few active latents, as in trained ones
        ours = replace(ours, params=ours.params._replace(b_enc=ours.params.b_enc - 8))
    x = x_of(torch.float32, positions, D_MODEL)
    dense, one = 4 * positions * d_sae, 4 * positions * tile
    found = encode_sparse(ours, x, tile=tile)
    assert 200 < len(found.latent) < 3000
    used = peak(lambda: encode_sparse(ours, x, tile=tile))
    assert used < 8 * one + 10 * 8 * len(found.latent), f"{used / one:.1f} tiles"
    assert used < dense / 4
    whole = peak(lambda: encode(ours, x))
    assert whole > dense  # the helper sees what it should
    assert peak(lambda: cut(ours, x)) < whole / 2


def test_a_tile_without_columns():
    with pytest.raises(InputError, match=r"tile: 0 encoder columns; expected at least 1\. Leave it out for 2048"):
        encode_sparse(dictionary("standard"), x_of(torch.float32), tile=0)


def test_what_is_not_a_number_is_refused():
    x = x_of(torch.float32)
    x[2, 3] = torch.nan
    for kind in ("standard", "topk", "abstopk"):
        with pytest.raises(NotFiniteError, match=r"nan at blocks.1.hook_resid_pre, which .* reads, first at position 2"):
            encode_sparse(dictionary(kind), x, tile=9)


# ---------------------------------------------------------------------------------------- sparse containers

pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), unique=True, max_size=30)


def latents_of(cells: list[tuple[int, int]]) -> SparseLatents:
    position, latent = torch.tensor(cells, dtype=torch.long).view(-1, 2).T
    return SparseLatents(position, latent, (position * 10 + latent + 1).double())


@given(cells=pairs)
def test_canonical_order(cells: list[tuple[int, int]]):
    got = canonical(latents_of(cells))
    assert list(zip(got.position.tolist(), got.latent.tolist(), strict=True)) == sorted(cells)
    assert all(torch.equal(column, own) for column, own in zip(got, latents_of(sorted(cells)), strict=True))


@given(cells=pairs, asked=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=20))
def test_membership(cells: list[tuple[int, int]], asked: list[tuple[int, int]]):
    position, latent, _ = latents_of(asked)
    assert holds(latents_of(cells), position, latent).tolist() == [pair in set(cells) for pair in asked]


# --------------------------------------------------------------------------------------- what it writes


@each_transcoder
def test_a_cut_of_a_transcoder_keeps_what_is_written(kind: str):
    """decode(latents) + skip(x) + error = written."""
    ours, x, y = made(kind, normalize_activations="layer_norm"), x_of(), x_of(torch.float64, 7, D_OUT)
    leaves = cut(ours, x, y)
    assert leaves.error.abs().max() > 0.1
    back = (
        decode_at(ours, leaves.latents.value, leaves.latents.position, leaves.latents.latent, leaves.scale) + skip(ours, x) + leaves.error
    )
    assert_close(back, y, DICTIONARY)
    assert_close(
        y - leaves.error, sae(kind, D_MODEL, torch.float64, d_out=D_OUT, normalize_activations="layer_norm")(x).detach(), DICTIONARY
    )
    with pytest.raises(
        InputError, match=r"written: missing, but blocks.1.* reads blocks\.1\.mlp\.hook_in and writes blocks\.1\.hook_mlp_out"
    ):
        cut(ours, x)


def test_what_is_written_splits_by_site():
    sites = [Site(layer, "mlp_out") for layer in (1, 2, 3)]
    W_dec = normal(80, 3 * D_OUT, dtype=torch.float64)
    ours = from_tensors(site=Site(1, "resid_mid"), writes=sites, W_enc=normal(D_MODEL, 80, dtype=torch.float64, seed=4), W_dec=W_dec)
    x = x_of()
    out = split(ours, reconstruct(ours, x))
    assert list(out) == sites
    for i, site in enumerate(sites):
        assert_close(out[site], encode(ours, x) @ W_dec[:, i * D_OUT : (i + 1) * D_OUT], DICTIONARY)


@pytest.mark.parametrize("kind", ["transcoder", "jumprelu_skip_transcoder"])
def test_reading_behind_a_norms_weights(kind: str):
    ours, n = made(kind), x_of()
    w, b = normal(D_MODEL, dtype=torch.float64, seed=11) + 3, normal(D_MODEL, dtype=torch.float64, seed=12)
    behind = after_gain(ours, w, b)
    assert (reconstruct(behind, n) - reconstruct(ours, n)).abs().max() > 0.1
    assert_close(encode(behind, n * w + b), encode(ours, n), DICTIONARY)
    assert_close(reconstruct(behind, n * w + b), reconstruct(ours, n), DICTIONARY)
    where_it_reads = made("topk", apply_b_dec_to_input=True)
    behind = after_gain(where_it_reads, w, b)
    assert_close(encode(behind, n * w + b), encode(where_it_reads, n), DICTIONARY)
    assert_close(reconstruct(behind, n * w + b), reconstruct(where_it_reads, n) * w + b, DICTIONARY)
    with pytest.raises(InputError, match="w: 1 of 32 weights are zero"):
        after_gain(ours, w.index_fill(0, torch.tensor([3]), 0.0), b)
    with pytest.raises(InputError, match=r"normalises its input \(layer_norm\), so"):
        after_gain(made(kind, normalize_activations="layer_norm"), w, b)


# ------------------------------------------------------------------------------------------- raw tensors

W_ENC, W_DEC, ROW = torch.ones(4, 6), torch.ones(6, 4), torch.ones(6)
GATES = {"b_gate": ROW, "r_mag": ROW, "b_mag": ROW}


def raw(**changes: Any) -> Dictionary:
    given = {"site": "blocks.2.hook_resid_pre", "W_enc": W_ENC, "W_dec": W_DEC} | changes
    return attrib.adapters.from_tensors(**{key: value for key, value in given.items() if value is not None})


def test_the_rule_follows_from_what_is_given():
    assert raw().config.rule == "relu"
    assert raw(threshold=ROW).config.rule == "jumprelu"
    assert (raw(k=2).config.rule, raw(k=2).config.k) == ("topk", 2)
    assert (raw(**GATES).config.rule, raw(**GATES).config.kind) == ("jumprelu", "gated")
    ours = raw()
    assert (ours.site, ours.writes, ours.name) == (Site(2, "resid_pre"), (Site(2, "resid_pre"),), "blocks.2.hook_resid_pre")
    assert ours.params.W_enc.data_ptr() == W_ENC.data_ptr()
    assert not ours.params.b_enc.any()
    assert not ours.params.b_dec.any()
    assert raw(writes="blocks.2.hook_resid_pre").config == ours.config
    assert raw(writes="blocks.2.hook_mlp_out").writes == (Site(2, "mlp_out"),)


@pytest.mark.parametrize("kind", ["standard", "gated", "topk", "abstopk", "jumprelu", "jumprelu_skip_transcoder"])
def test_raw_tensors_are_the_object_that_they_came_from(kind: str):
    options = {"rescale_acts_by_decoder_norm": True} if kind.endswith("topk") else {}
    foreign = sae(kind, D_MODEL, **options)
    state = {key: value.detach() for key, value in foreign.state_dict().items()}
    if "W_skip" in state:
        state["W_skip"] = state["W_skip"].T
    ours = attrib.adapters.from_tensors(
        site="blocks.1.hook_resid_pre", rule="abstopk" if kind == "abstopk" else None, k=6 if "topk" in kind else None,
        writes="blocks.1.hook_mlp_out" if "transcoder" in kind else (), apply_b_dec_to_input="transcoder" not in kind, **state, **options,
    )  # fmt: skip
    assert ours.fingerprint == attrib.from_sae_lens(foreign).fingerprint
    assert ours.config == replace(attrib.from_sae_lens(foreign).config, model_name=None, kind=ours.config.kind)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": torch.ones(4)}, r"W_enc: \[4\] for dictionary blocks\.2.*; expected \[d_in, d_sae\], neither empty"),
        ({"W_dec": torch.ones(0, 4)}, r"W_dec: \[0, 4\].*expected \[d_sae, d_out\], neither empty"),
        ({"W_dec": torch.ones(4, 6)}, r"W_dec: \[4, 6\].*expected \[6, 6\] beside W_enc \[4, 6\]"),
        ({"b_enc": torch.ones(4)}, r"b_enc: \[4\].*expected \[6\]"),
        ({"b_dec": torch.ones(6)}, r"b_dec: \[6\].*expected \[4\]"),
        ({"threshold": torch.ones(1, 6)}, r"threshold: \[1, 6\].*expected \[6\]"),
        ({"W_skip": torch.ones(4, 6)}, r"W_skip: \[4, 6\].*expected \[4, 4\]"),
        ({"b_enc": ROW.double()}, r"b_enc: torch\.float64 on cpu.*expected floating numbers of torch\.float32 on cpu, as W_enc has them"),
        ({"W_enc": W_ENC.long(), "W_dec": W_DEC.long()}, r"W_enc: torch\.int64 on cpu.*expected floating numbers"),
        ({"k": 0}, r"k: 0; expected an integer from 1 to d_sae=6"),
        ({"k": 7}, r"k: 7; expected an integer from 1 to d_sae=6"),
        ({"k": 2, "threshold": ROW}, r"threshold: given, but rule 'topk' takes k of threshold, k, b_gate, r_mag, b_mag"),
        ({"rule": "jumprelu"}, r"threshold: missing, but rule 'jumprelu' takes threshold"),
        ({"rule": "abstopk"}, r"k: missing, but rule 'abstopk' takes k"),
        ({"rule": "relu", "k": 3}, r"k: given, but rule 'relu' takes none of them"),
        ({"rule": "groupmax"}, r"rule: 'groupmax'; expected one of relu, jumprelu, jump, topk, rawtopk, abstopk, gated"),
        (GATES | {"r_mag": None}, r"r_mag: missing, but rule 'gated' takes b_gate, r_mag, b_mag"),
        (GATES | {"b_enc": ROW}, r"b_enc: given, but rule 'gated' has b_gate and b_mag in its place"),
        ({"W_dec": torch.ones(6, 5)}, r"writes: missing, but W_dec writes vectors of 5 and W_enc reads vectors of 4"),
        (
            {"W_dec": torch.ones(6, 5), "writes": "blocks.2.hook_mlp_out", "apply_b_dec_to_input": True},
            r"apply_b_dec_to_input: b_dec has 5 numbers and the input 4; expected False",
        ),
        ({"W_dec": torch.ones(6, 5), "writes": ["blocks.2.hook_mlp_out", "blocks.3.hook_mlp_out"]}, r"writes: 2 sites, but W_dec writes 5"),
        ({"site": "blocks.2.hook_q"}, r"'blocks\.2\.hook_q'"),
        ({"writes": "mlp"}, r"Site\.parse\('mlp'\)"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        raw(**changes)


# ------------------------------------------------------------------------------------------------ the docs

DOCS = ROOT / "docs" / "dictionaries.md"
BEGIN, END = "<!-- tables: made by tests/adapters/test_dictionary_kinds.py -->\n", "<!-- end of tables -->\n"

DERIVATIVES = {
    "relu": "1 where pre > 0, else 0",
    "jumprelu": "1 where pre > 0 and pre > threshold, else 0; a gated latent: through its magnitude, its gate held",
    "jump": "1 where pre > threshold, else 0",
    "topk": "1 where pre > 0 and among the k largest, else 0; the selection is held",
    "rawtopk": "1 where pre is among the k largest, else 0; the selection is held",
    "abstopk": "1 where the size of pre is among the k largest, else 0; the selection is held",
}
"""The derivative of a latent with respect to its pre-activation, as torch gives it for `encode_at` and sae-lens for its own encode."""


def tables() -> str:
    """The tables of docs/dictionaries.md."""
    lines = ["| library | kind | computed as | writes | remarks |", "|---|---|---|---|---|"]
    lines += [
        f"| {kind.library} | {kind.name} | {kind.rule or '**refused**'} | {kind.writes if kind.rule else '–'} | {kind.remark} |"
        for kind in kinds.KINDS
    ]
    lines += ["", "| computed as | derivative of a latent with respect to its pre-activation |", "|---|---|"]
    lines += [f"| {rule} | {text} |" for rule, text in DERIVATIVES.items()]
    lines += ["", "| `normalize_activations` | what the encoder is given |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in kinds.NORMALISATIONS.items()]
    return "\n".join(lines) + "\n"


def test_the_docs_list_what_the_code_computes():
    """With ATTRIB_WRITE_DOCS=1 the tables are written, and the test then passes."""
    text = DOCS.read_text()
    before, _, rest = text.partition(BEGIN)
    written = before + BEGIN + "\n" + tables() + "\n" + END + rest.partition(END)[2]
    if os.environ.get("ATTRIB_WRITE_DOCS"):
        DOCS.write_text(written)
    assert DOCS.read_text() == written, (
        "docs/dictionaries.md differs from attrib/adapters/dictionaries/kinds.py; run this test with ATTRIB_WRITE_DOCS=1"
    )


def test_every_architecture_of_sae_lens_has_an_entry():
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    theirs = {*SAE_CLASS_REGISTRY, *SAE_TRAINING_CLASS_REGISTRY}
    assert theirs == {kind.name for kind in kinds.KINDS if kind.library == "sae-lens"}
