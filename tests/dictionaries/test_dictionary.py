"""Dictionaries: encode, decode and the whole forward are sae-lens's own; the sparse recipe equals the dense one, derivatives included."""

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils import _pytree as pytree

import attrib
from attrib.core.types import FormatError, InputError, Site, UnsupportedError
from attrib.dictionaries.dictionary import (
    Dictionary,
    active,
    decode,
    decode_at,
    encode,
    encode_at,
    normalise_input,
    pre_activations,
    reconstruct,
)
from attrib.dictionaries.metadata import Metadata
from attrib.passes.capture import cut
from tests.support.builders import D_MODEL, DTYPES, KINDS, Kind, dictionary, normal, sae, to_dense
from tests.support.tolerances import DICTIONARY, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NORMALISATIONS = ("none", "constant_norm_rescale", "layer_norm")
"""Those that are computed; the others are folded in from what lies beside a checkpoint (test_silent_configs.py)."""


def instances() -> Iterator[tuple[Kind, dict[str, Any]]]:
    """Every kind with every option of sae-lens that changes what it computes."""
    for kind in KINDS:
        for normalisation in NORMALISATIONS:
            for apply_b_dec in (True, False):
                options = {"normalize_activations": normalisation, "apply_b_dec_to_input": apply_b_dec}
                yield kind, options
                if kind == "topk":
                    yield kind, options | {"rescale_acts_by_decoder_norm": True}


INSTANCES = list(instances())
IDS = ["-".join(str(part) for part in (kind, *options.values())) for kind, options in INSTANCES]
each_instance = pytest.mark.parametrize(("kind", "options"), INSTANCES, ids=IDS)


def x_of(dtype: torch.dtype, *shape: int) -> Tensor:
    """Inputs with a mean and a size of their own: normalisation that did nothing would show."""
    return 2.5 * normal(*(shape or (7, D_MODEL)), dtype=dtype) + 0.7


# ------------------------------------------------------------------------------------------ against sae-lens


@pytest.mark.parametrize("dtype", DTYPES)
@each_instance
def test_values_are_sae_lens_own(kind: Kind, options: dict[str, Any], dtype: torch.dtype):
    foreign, x = sae(kind, D_MODEL, dtype, **options), x_of(dtype, 2, 5, D_MODEL)
    ours = attrib.from_sae_lens(foreign)
    with torch.no_grad():
        latents = foreign.encode(x)
        out = foreign.decode(latents)
        whole = foreign(x)
    got = encode(ours, x)
    assert 0 < (got != 0).float().mean() < 0.9
    assert torch.equal(got != 0, latents != 0)
    # acts of rescaled TopK are measured in units of the decoder's norm by both
    assert_close(got, latents, DICTIONARY, what="encode")
    assert_close(decode(ours, latents, normalise_input(ours, x)[1]), out, DICTIONARY, what="decode")
    assert_close(reconstruct(ours, x), whole, DICTIONARY, what="forward")
    assert_close(encode(ours, x[0, 2:3]), got[0, 2:3], DICTIONARY, what="one position alone")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_heads_outputs_are_read_flat(kind: Kind, dtype: torch.dtype):
    """sae-lens takes z as [..., heads, d_head]; attrib's z is already [..., heads · d_head]."""
    foreign = sae(kind, 40, dtype, site="blocks.1.attn.hook_z", reshape_activations="hook_z", normalize_activations="layer_norm")
    ours, z = attrib.from_sae_lens(foreign), x_of(dtype, 6, 40)
    with torch.no_grad():
        latents, whole = foreign.encode(z.unflatten(-1, (4, 10))), foreign(z.unflatten(-1, (4, 10)))
    assert ours.site == Site(1, "z")
    assert_close(encode(ours, z), latents, DICTIONARY)
    assert_close(reconstruct(ours, z), whole.flatten(-2), DICTIONARY)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_keeps_the_value(kind: Kind):
    """decode(latents) + error = x, whatever the dictionary misses."""
    ours, x = dictionary(kind, dtype=torch.float64, normalize_activations="layer_norm"), x_of(torch.float64)
    leaves = cut(ours, x)
    assert leaves.error.abs().max() > 0.1
    assert torch.equal(to_dense(leaves.latents, len(x), ours.d_sae), encode(ours, x))
    order = leaves.latents.position * ours.d_sae + leaves.latents.latent
    assert (order.diff() > 0).all()
    back = decode_at(ours, leaves.latents.value, leaves.latents.position, leaves.latents.latent, leaves.scale) + leaves.error
    assert_close(back, x, DICTIONARY)


@pytest.mark.parametrize("kind", KINDS)
def test_inactive_latents_are_exactly_zero(kind: Kind):
    ours, x = dictionary(kind, k=6), x_of(torch.float32)
    pre, latents = pre_activations(ours, x), encode(ours, x)
    assert torch.equal(active(ours, pre), latents != 0)
    assert torch.equal(latents[latents != 0], pre[latents != 0])
    if kind == "topk":
        assert (latents != 0).sum(-1).max() <= 6
    if kind == "jumprelu":
        assert ((pre > 0) & (latents == 0)).any()  # between zero and the threshold


# --------------------------------------------------------------------------------- sparse against dense


def pairs(ours: Dictionary, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every latent at every position, in no order and some of them twice; and TopK's gate for them."""
    is_active = active(ours, pre_activations(ours, x))
    order = torch.randperm(is_active.numel(), generator=torch.Generator().manual_seed(0))
    order = torch.cat([order, order[:20]])
    return order // ours.d_sae, order % ours.d_sae, is_active.flatten()[order]


@each_instance
def test_chosen_latents_are_the_dense_ones(kind: Kind, options: dict[str, Any]):
    ours, x = dictionary(kind, dtype=torch.float64, **options), x_of(torch.float64, 3, D_MODEL)
    position, latent, gate = pairs(ours, x)
    assert gate.any()
    assert not gate.all()

    def dense(x: Tensor) -> Tensor:
        return encode(ours, x)[position, latent]

    def sparse(x: Tensor) -> Tensor:
        return encode_at(ours, x, position, latent, gate)

    assert_close(sparse(x), dense(x), DICTIONARY, what="values")
    jacobian = jacrev(dense)(x)
    assert (jacobian[gate] != 0).any(-1).any(-1).all()
    assert (jacobian[~gate] == 0).all()
    assert_close(jacrev(sparse)(x), jacobian, DICTIONARY, what="jacrev")
    assert_close(jacfwd(sparse)(x), jacobian, DICTIONARY, what="jacfwd")
    tangents = normal(4, *x.shape, dtype=x.dtype, seed=8)
    assert_close(jvp(sparse, (x,), (tangents[0],))[1], jvp(dense, (x,), (tangents[0],))[1], DICTIONARY, what="jvp")
    assert_close(
        vmap(lambda t: jvp(sparse, (x,), (t,))[1])(tangents),
        torch.einsum("tpd,npd->nt", jacobian, tangents),
        DICTIONARY,
        what="vmap of jvp",
    )
    cotangents = normal(4, len(latent), dtype=x.dtype, seed=9)
    assert_close(
        vmap(lambda c: vjp(sparse, x)[1](c)[0])(cotangents),
        torch.einsum("tpd,nt->npd", jacobian, cotangents),
        DICTIONARY,
        what="vmap of vjp",
    )
    assert_close(vmap(sparse)(x + tangents), torch.stack([sparse(x + t) for t in tangents]), DICTIONARY, what="vmap")


@each_instance
def test_chosen_rows_decode_as_all_do(kind: Kind, options: dict[str, Any]):
    """As a function of the latents' values, with the scale a leaf."""
    ours, x = dictionary(kind, dtype=torch.float64, **options), x_of(torch.float64)
    latents, _, scale = cut(ours, x)

    def dense(value: Tensor) -> Tensor:
        return decode(ours, torch.zeros(len(x), ours.d_sae, dtype=x.dtype).index_put((latents.position, latents.latent), value), scale)

    def sparse(value: Tensor) -> Tensor:
        return decode_at(ours, value, latents.position, latents.latent, scale)

    value = latents.value
    assert_close(sparse(value), dense(value), DICTIONARY, what="values")
    assert_close(sparse(value), reconstruct(ours, x), DICTIONARY, what="reconstruction")
    jacobian = jacrev(dense)(value)
    assert_close(jacrev(sparse)(value), jacobian, DICTIONARY, what="jacrev")
    assert_close(jacfwd(sparse)(value), jacobian, DICTIONARY, what="jacfwd")
    tangents = normal(3, len(value), dtype=x.dtype, seed=8)
    assert_close(
        vmap(lambda t: jvp(sparse, (value,), (t,))[1])(tangents),
        torch.einsum("pdt,nt->npd", jacobian, tangents),
        DICTIONARY,
        what="vmap of jvp",
    )
    assert_close(vmap(sparse)(value + tangents), torch.stack([sparse(value + t) for t in tangents]), DICTIONARY, what="vmap")


def test_below_a_negative_threshold_the_relu_decides():
    foreign = sae("jumprelu", D_MODEL, torch.float64)
    with torch.no_grad():
        foreign.threshold.fill_(-5)
        ours, x = attrib.from_sae_lens(foreign), x_of(torch.float64, 3, D_MODEL)
        latents = foreign.encode(x)
    position, latent, _ = pairs(ours, x)
    assert latents.min() == 0
    assert_close(encode(ours, x), latents, DICTIONARY)
    assert_close(encode_at(ours, x, position, latent), latents[position, latent], DICTIONARY)


def test_no_active_latents_decode_to_the_bias():
    ours, empty = dictionary("standard"), torch.zeros(0, dtype=torch.long)
    _, scale = normalise_input(ours, x_of(torch.float32))
    got = decode_at(ours, torch.zeros(0), empty, empty, scale)
    assert_close(got, ours.params.b_dec.expand(7, -1))


def test_a_gate_matters_to_topk_alone():
    """Without it a target that lost the competition would count; the other rules see their own threshold."""
    x = x_of(torch.float64)
    for kind in KINDS:
        ours = dictionary(kind, dtype=torch.float64)
        position, latent, gate = pairs(ours, x)
        free, gated = encode_at(ours, x, position, latent), encode_at(ours, x, position, latent, gate)
        assert torch.equal(free, gated) == (kind != "topk")
        assert (gated[~gate] == 0).all()


def test_gradients_with_respect_to_parameters():
    """The parameters are a pytree that torch.func.grad takes, by the dense way and by the sparse one."""
    ours, x = dictionary("standard", dtype=torch.float64), x_of(torch.float64)
    position, latent = encode(ours, x).nonzero(as_tuple=True)

    def sparse(ours: Dictionary) -> Tensor:
        return decode_at(ours, encode_at(ours, x, position, latent), position, latent, normalise_input(ours, x)[1])

    foreign = sae("standard", D_MODEL, torch.float64)
    (foreign(x) - x).square().mean().backward()
    for way in (sparse, lambda ours: reconstruct(ours, x)):
        got = grad(lambda params, way=way: (way(replace(ours, params=params)) - x).square().mean())(ours.params)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert_close(getattr(got, name), getattr(foreign, name).grad, DICTIONARY, what=name)


# ------------------------------------------------------------------------------------ extraction and folders


def everything_of(foreign: Any) -> dict[str, Any]:
    return {
        "tensors": {key: (value._version, value.data_ptr(), value.requires_grad) for key, value in foreign.named_parameters()},
        "attributes": sorted(vars(foreign)),
        "config": json.dumps(foreign.cfg.to_dict(), sort_keys=True),
        "hooks": {name: (len(point.fwd_hooks), len(point.bwd_hooks)) for name, point in foreign.hook_dict.items()},
        "training": foreign.training,
    }


@each_instance
def test_extraction_leaves_the_sae_as_it_is(kind: Kind, options: dict[str, Any]):
    foreign = sae(kind, D_MODEL, **options)
    before, state = everything_of(foreign), {key: value.clone() for key, value in foreign.state_dict().items()}
    ours = attrib.from_sae_lens(foreign)
    reconstruct(ours, x_of(torch.float32))
    assert everything_of(foreign) == before
    assert not {"ln_mu", "ln_std", "x_norm_coeff"} & vars(foreign).keys()
    assert all(torch.equal(state[key], value) for key, value in foreign.state_dict().items())
    assert not any(leaf.requires_grad for leaf in pytree.tree_leaves(ours.params))


def test_facts_of_a_dictionary():
    ours = dictionary("topk", "blocks.2.hook_mlp_out", k=5, apply_b_dec_to_input=False, normalize_activations="layer_norm")
    assert (ours.d_in, ours.d_sae, ours.site, ours.name) == (D_MODEL, 80, Site(2, "mlp_out"), "blocks.2.hook_mlp_out")
    facts = ours.config
    assert (facts.rule, facts.k, facts.apply_b_dec_to_input, facts.normalisation) == ("topk", 5, False, "layer_norm")
    assert dictionary("standard").config.k is None
    assert attrib.from_sae_lens(sae("standard"), name="mine").name == "mine"
    wide = ours.to(dtype=torch.float64)
    assert {leaf.dtype for leaf in pytree.tree_leaves(wide.params)} == {torch.float64}
    same, plain = (replace(ours, config=config) for config in (replace(facts, model_name="other"), dictionary("topk").config))
    assert wide.fingerprint != ours.fingerprint == same.fingerprint
    assert plain.fingerprint != ours.fingerprint, "the same weights, used otherwise"


@pytest.mark.parametrize(("field", "words"), [("rule", "'relu', 'jumprelu'"), ("normalisation", "'none', 'layer_norm'")])
def test_a_word_that_no_code_knows_is_refused_by_name(field: str, words: str):
    config = replace(dictionary("standard").config)
    object.__setattr__(config, field, "another")  # past the hook of the tests, which would see the word before attrib does
    with pytest.raises(UnsupportedError, match=rf"^{field}: 'another'; attrib computes {words}"):
        config.__post_init__()


NOT_COMPUTED_WITH = {"model_name", "kind", "hook_name", "hook_name_out", "lazy", "metadata", "part_of"}
"""Facts that say where a dictionary comes from, or where its weights lie: results do not depend on them."""


def test_every_other_fact_and_every_tensor_is_in_the_fingerprint():
    """Results name dictionaries by it: a fact that is left out would make two of them one."""
    ours = dictionary("topk")
    config, p = ours.config, ours.params
    others = {
        "site": Site(2, "resid_pre"), "rule": "abstopk", "k": 5, "apply_b_dec_to_input": not config.apply_b_dec_to_input,
        "normalisation": "layer_norm", "writes": (Site(2, "mlp_out"),), "puts_scale_back": not config.puts_scale_back,
        "part_of": (Site(3, "mlp_out"),),
        "model_name": "other", "kind": "other", "hook_name": "other", "hook_name_out": "other", "lazy": True,
        "metadata": Metadata(context_size=3),
    }  # fmt: skip
    assert set(others) == {field.name for field in fields(config)}
    found = {name: replace(ours, config=replace(config, **{name: other})).fingerprint for name, other in others.items()}
    assert {name for name, one in found.items() if one == ours.fingerprint} == NOT_COMPUTED_WITH
    for name, tensor in p._asdict().items():
        other = tensor + 1 if tensor.numel() else torch.ones(ours.d_in, ours.d_out)
        assert replace(ours, params=p._replace(**{name: other})).fingerprint != ours.fingerprint, name


@each_instance
def test_a_folder_is_the_object_it_came_from(kind: Kind, options: dict[str, Any], tmp_path: Path):
    foreign = sae(kind, D_MODEL, **options)
    foreign.save_model(tmp_path)
    ours = attrib.load_dictionary(tmp_path)
    assert ours.fingerprint == attrib.from_sae_lens(foreign).fingerprint
    assert ours.config == attrib.from_sae_lens(foreign).config
    assert ours.name == tmp_path.name


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_precision_folder_is_read_in_single(kind: Kind, tmp_path: Path):
    from sae_lens import SAE

    sae(kind, D_MODEL, torch.float16).save_model(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "sae_weights.safetensors").values()} == {torch.float16}
    ours, x = attrib.load_dictionary(str(tmp_path)), x_of(torch.float32)
    assert {leaf.dtype for leaf in pytree.tree_leaves(ours.params)} == {torch.float32}
    with torch.no_grad():
        assert_close(reconstruct(ours, x), SAE.load_from_disk(tmp_path, dtype="float32")(x), DICTIONARY)


def test_a_folder_from_before_sae_lens_6(tmp_path: Path):
    """Flat cfg.json without `metadata`: read by sae-lens's own loader."""
    foreign = sae("standard", D_MODEL, site="blocks.3.hook_resid_post")
    foreign.save_model(tmp_path)
    old = {"architecture": "standard", "d_in": D_MODEL, "d_sae": 80, "dtype": "float32", "device": "cpu", "model_name": "gpt2-small"}
    old |= {
        "hook_name": "blocks.3.hook_resid_post",
        "hook_layer": 3,
        "hook_head_index": None,
        "activation_fn_str": "relu",
        "context_size": 128,
    }
    old |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "finetuning_scaling_factor": False, "prepend_bos": True}
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    ours = attrib.load_dictionary(tmp_path)
    assert (ours.site, ours.config.model_name) == (Site(3, "resid_post"), "gpt2-small")
    assert ours.fingerprint == attrib.from_sae_lens(foreign).fingerprint


# ------------------------------------------------------------------------------------------------- refusals


def test_architectures_that_attrib_does_not_compute(tmp_path: Path):
    from sae_lens import MatchingPursuitSAE, MatchingPursuitSAEConfig, TemporalSAE, TemporalSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(hook_name="blocks.0.hook_resid_pre")
    pursuit = MatchingPursuitSAE(MatchingPursuitSAEConfig(d_in=8, d_sae=16, metadata=metadata))
    message = (
        r"dictionary blocks\.0\.hook_resid_pre: architecture 'matching_pursuit' \(.*not one encoder pass\); "
        r"attrib computes standard, gated, topk, abstopk, jumprelu, transcoder"
    )
    with pytest.raises(UnsupportedError, match=message):
        attrib.from_sae_lens(pursuit)
    pursuit.save_model(tmp_path)
    with pytest.raises(UnsupportedError, match="architecture 'matching_pursuit'"):
        attrib.load_dictionary(tmp_path)
    temporal = TemporalSAE(TemporalSAEConfig(d_in=64, d_sae=16, n_heads=1, bottleneck_factor=8, metadata=metadata))
    with pytest.raises(UnsupportedError, match=r"architecture 'temporal' \(.*not a function of one position's activation\)"):
        attrib.from_sae_lens(temporal)


def test_what_is_no_sae():
    with pytest.raises(InputError, match="sae: expected a sae-lens SAE, got str"):
        attrib.from_sae_lens("gpt2-small-res-jb")


def test_metadata_that_attrib_cannot_use():
    foreign = sae("standard")
    foreign.cfg.metadata.hook_name = None
    with pytest.raises(InputError, match=r"no hook_name, so its site is unknown; set sae\.cfg\.metadata\.hook_name"):
        attrib.from_sae_lens(foreign)
    foreign.cfg.metadata.hook_name = "blocks.2.attn.hook_q"
    with pytest.raises(InputError, match=r"'blocks\.2\.attn\.hook_q'"):
        attrib.from_sae_lens(foreign)
    foreign = sae("standard")
    foreign.cfg.metadata.hook_head_index = 3
    with pytest.raises(UnsupportedError, match="hook_head_index=3"):
        attrib.from_sae_lens(foreign)


def rewrite(folder: Path, change: Any) -> None:
    """Save a TopK SAE whose tensors and config `change` has altered in place."""
    sae("topk", D_MODEL).save_model(folder)
    state, config = load_file(folder / "sae_weights.safetensors"), json.loads((folder / "cfg.json").read_text())
    change(state, config)
    save_file(state, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))


def become(config: dict[str, Any], architecture: str) -> None:
    """Another architecture, without the keys that topk alone has."""
    config["architecture"] = architecture
    del config["k"], config["rescale_acts_by_decoder_norm"]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda s, c: s.pop("W_enc"), FormatError, r"W_enc is missing, expected \[d_in, d_sae\]"),
        (lambda s, c: s.update(W_enc=torch.ones(3)), FormatError, r"W_enc is \[3\], expected \[d_in, d_sae\]"),
        (lambda s, c: s.pop("W_dec"), FormatError, r"W_dec is missing, expected \[80, 32\] beside W_enc \[32, 80\]"),
        (lambda s, c: s.update(W_dec=torch.ones(32, 80)), FormatError, r"W_dec is \[32, 80\], expected \[80, 32\]"),
        (lambda s, c: s.update(b_enc=torch.ones(79)), FormatError, r"b_enc is \[79\], expected \[80\]"),
        (lambda s, c: s.pop("b_dec"), FormatError, r"b_dec is missing, expected \[32\]"),
        (lambda s, c: c.pop("k"), FormatError, r"k=None, expected an integer from 1 to d_sae=80"),
        (lambda s, c: c.update(k=81), FormatError, "k=81, expected an integer"),
        (lambda s, c: c.update(k=2.5), FormatError, r"k=2\.5, expected an integer"),
        (lambda s, c: become(c, "jumprelu"), FormatError, r"threshold is missing, expected \[80\]"),
        (lambda s, c: become(c, "gated"), FormatError, r"b_gate is missing, expected \[80\]"),
        (lambda s, c: c.update(architecture="batchtopk"), UnsupportedError, "'batchtopk' .a training checkpoint.*save_inference"),
        (lambda s, c: c.update(architecture="matryoshka_batchtopk"), UnsupportedError, "'matryoshka_batchtopk' .a training checkpoint"),
        (lambda s, c: s.update(W_skip=torch.ones(32, 32)), FormatError, "it holds W_skip, which attrib would leave out"),
        (lambda s, c: s.update(b_dec=torch.ones(32, dtype=torch.long)), FormatError, "holds b_dec as I64; expected one of F64"),
        (lambda s, c: c.update(reshape_activations="hook_q"), UnsupportedError, "reshape_activations='hook_q'"),
        (lambda s, c: c.pop("architecture"), UnsupportedError, "architecture None"),
        (lambda s, c: c.update(normalize_activations="spherical"), UnsupportedError, "normalize_activations='spherical'"),
        (lambda s, c: c.update(metadata={}), InputError, "no hook_name"),
        (lambda s, c: c.update(metadata=[1]), FormatError, r"cfg\.json is no object with an object `metadata`"),
        (lambda s, c: c.pop("metadata"), InputError, "no hook_name"),
    ],
)  # fmt: skip
def test_folders_whose_parts_do_not_fit(change: Any, kind: type[Exception], message: str, tmp_path: Path):
    rewrite(tmp_path, change)
    with pytest.raises(kind, match=message):
        attrib.load_dictionary(tmp_path)


def test_damaged_folders(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no cfg\.json; expected a folder that sae-lens's save_model wrote"):
        attrib.load_dictionary(tmp_path)
    sae("standard", D_MODEL).save_model(tmp_path)
    weights, config = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    whole, facts = weights.read_bytes(), config.read_text()
    for part in (whole[:-10], whole[:20], b"", b"\x00" * 64, b"PK\x03\x04" + whole):
        weights.write_bytes(part)
        with pytest.raises(FormatError, match=r"is damaged"):
            attrib.load_dictionary(tmp_path)
    weights.write_bytes(whole)
    for text in (facts[:-5], "", "\x00"):
        config.write_text(text)
        with pytest.raises(FormatError, match="is damaged"):
            attrib.load_dictionary(tmp_path)
    for text in ("[]", "3", "null"):
        config.write_text(text)
        with pytest.raises(FormatError, match="is no object"):
            attrib.load_dictionary(tmp_path)
    config.write_text(facts)
    assert attrib.load_dictionary(tmp_path).d_sae == 80
    weights.unlink()
    with pytest.raises(InputError, match=r"holds no sae_weights\.safetensors"):
        attrib.load_dictionary(tmp_path)
