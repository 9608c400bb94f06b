"""Folders of every library: what is read equals its documented forward, and what is damaged or unknown is refused by name."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import attrib
from attrib.adapters import load_dictionaries
from attrib.adapters.dictionaries import kinds
from attrib.core.types import AttribError, FormatError, InputError, Site, UnsupportedError
from attrib.dictionaries.dictionary import (
    Dictionary,
    after_gain,
    decode_at,
    encode,
    encode_at,
    encode_sparse,
    normalise_input,
    reconstruct,
    skip,
    split,
)
from tests.engine.test_budget import peak
from tests.support.builders import D_MODEL, normal, sae, to_dense
from tests.support.examples import examples
from tests.support.tolerances import DICTIONARY, ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

D_SAE, N_LAYERS = 48, 3


def x_of(seed: int = 2) -> Tensor:
    return 2.5 * normal(7, D_MODEL, seed=seed) + 0.7


def numbers(seed: int, *shape: int, size: float = 0.2) -> Tensor:
    return size * normal(*shape, seed=seed)


# -------------------------------------------------------------------------------------------- circuit-tracer


def config_of(**changes: Any) -> dict[str, Any]:
    return {
        "model_kind": "transcoder_set", "model_name": "tiny", "scan": "tiny-scan",
        "feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out",
    } | changes  # fmt: skip


def transcoder_set(folder: Path, thresholds: str = "none", skips: bool = False, **changes: Any) -> Path:
    """What circuit-tracer's TranscoderSet.to_safetensors writes, and the config.yaml of a release."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(**changes)))
    for i in range(N_LAYERS):
        state = {
            "W_enc": numbers(10 * i + 1, D_SAE, D_MODEL), "W_dec": numbers(10 * i + 2, D_SAE, D_MODEL),
            "b_enc": numbers(10 * i + 3, D_SAE), "b_dec": numbers(10 * i + 4, D_MODEL),
        }  # fmt: skip
        match thresholds:
            case "positive":
                state["activation_function.threshold"] = numbers(10 * i + 5, D_SAE).abs()
            case "any":
                state["activation_function.threshold"] = numbers(10 * i + 5, D_SAE)
            case "one":
                state["activation_function.threshold"] = torch.tensor(0.3)
        if skips:
            state["W_skip"] = numbers(10 * i + 6, D_MODEL, D_MODEL)
        save_file(state, folder / f"layer_{i}.safetensors")
    return folder


@pytest.mark.parametrize("skips", [False, True], ids=["", "skip"])
@pytest.mark.parametrize("thresholds", ["none", "positive", "any", "one"])
def test_a_transcoder_set(thresholds: str, skips: bool, tmp_path: Path):
    """act(x W_enc^T + b_enc) W_dec + b_dec + x W_skip^T, where act is a ReLU or x [x > threshold]."""
    folder, x = transcoder_set(tmp_path / "set", thresholds, skips), x_of()
    found = load_dictionaries(folder)
    assert len(found) == N_LAYERS
    for i, ours in enumerate(found):
        state = load_file(folder / f"layer_{i}.safetensors")
        pre = x @ state["W_enc"].T + state["b_enc"]
        threshold = state.get("activation_function.threshold")
        latents = pre.relu() if threshold is None else pre * (pre > threshold)
        out = latents @ state["W_dec"] + state["b_dec"]
        assert 0 < (latents != 0).float().mean() < 0.9
        assert (latents < 0).any() == (thresholds == "any")
        assert_close(encode(ours, x), latents, DICTIONARY, what="encode")
        assert_close(reconstruct(ours, x), out + x @ state["W_skip"].T if skips else out, DICTIONARY, what="forward")
        assert (ours.site, ours.writes, ours.name) == (Site(i, "mlp_in"), (Site(i, "mlp_out"),), f"set/layer_{i}")
        facts = ours.config
        assert (facts.model_name, facts.hook_name, facts.kind) == ("tiny", f"blocks.{i}.ln2.hook_normalized", "transcoder_set")
        assert facts.rule == {"none": "relu", "any": "jump"}.get(thresholds, "jumprelu")


def clt(folder: Path, thresholds: bool = True, **changes: Any) -> Path:
    """What circuit-tracer's CrossLayerTranscoder.to_safetensors writes."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"model_kind": "cross_layer_transcoder", "feature_input_hook": "hook_resid_mid"} | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(**facts)))
    for i in range(N_LAYERS):
        state = {
            f"W_enc_{i}": numbers(10 * i + 1, D_SAE, D_MODEL), f"b_enc_{i}": numbers(10 * i + 3, D_SAE),
            f"b_dec_{i}": numbers(10 * i + 4, D_MODEL),
        }  # fmt: skip
        if thresholds:
            state[f"threshold_{i}"] = numbers(10 * i + 5, D_SAE).abs()
        save_file(state, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": numbers(10 * i + 2, D_SAE, N_LAYERS - i, D_MODEL)}, folder / f"W_dec_{i}.safetensors")
    return folder


@pytest.mark.parametrize("thresholds", [True, False], ids=["jumprelu", "relu"])
def test_a_cross_layer_transcoder(thresholds: bool, tmp_path: Path):
    """y_j = Σ_{i <= j} f_i W_dec_i[:, j - i] + b_dec_j: what the layers write, added up by site, is the whole."""
    folder = clt(tmp_path / "clt", thresholds)
    xs = [x_of(seed=30 + i) for i in range(N_LAYERS)]
    found = load_dictionaries(folder)
    got: dict[Site, Tensor] = {}
    want = [torch.zeros(7, D_MODEL) for _ in range(N_LAYERS)]
    for i, (ours, x) in enumerate(zip(found, xs, strict=True)):
        state, W_dec = load_file(folder / f"W_enc_{i}.safetensors"), load_file(folder / f"W_dec_{i}.safetensors")[f"W_dec_{i}"]
        pre = x @ state[f"W_enc_{i}"].T + state[f"b_enc_{i}"]
        latents = pre * (pre > state[f"threshold_{i}"]) if thresholds else pre.relu()
        assert_close(encode(ours, x), latents, DICTIONARY, what="encode")
        assert ours.site == Site(i, "resid_mid")
        assert ours.writes == tuple(Site(j, "mlp_out") for j in range(i, N_LAYERS))
        assert ours.d_out == (N_LAYERS - i) * D_MODEL
        want[i] += state[f"b_dec_{i}"]
        for j in range(i, N_LAYERS):
            want[j] += latents @ W_dec[:, j - i]
        for site, part in split(ours, reconstruct(ours, x)).items():
            got[site] = got.get(site, torch.zeros_like(part)) + part
        assert not skip(ours, x).any()
    for j, out in enumerate(want):
        assert_close(got[Site(j, "mlp_out")], out, DICTIONARY, what=f"layer {j}")


@pytest.mark.parametrize("make", [transcoder_set, clt])
def test_one_layer_of_a_folder(make: Callable[[Path], Path], tmp_path: Path):
    folder = make(tmp_path / "set")
    want = load_dictionaries(folder)[1]
    ways = [
        attrib.load_dictionary(folder, layer=1),
        attrib.load_dictionary(f"{folder}/layer_1"),
        attrib.load_dictionary(folder / "layer_1.safetensors"),
    ]
    assert {ours.fingerprint for ours in ways} == {want.fingerprint}
    assert {(ours.config, ours.name) for ours in ways} == {(want.config, "set/layer_1")}
    # a layer is read alone: another's damage does not matter
    (folder / ("layer_2" if make is transcoder_set else "W_enc_2")).with_suffix(".safetensors").write_bytes(b"no")
    assert attrib.load_dictionary(folder, layer=1).fingerprint == want.fingerprint
    with pytest.raises(FormatError, match="is damaged"):
        load_dictionaries(folder)


@pytest.mark.parametrize(
    ("hook", "site"),
    [("hook_resid_mid", "resid_mid"), ("ln2.hook_normalized", "mlp_in"), ("mlp.hook_in", "mlp_in"), ("hook_mlp_in", "resid_mid")],
)
def test_hooks_of_circuit_tracer(hook: str, site: Any, tmp_path: Path):
    ours = attrib.load_dictionary(transcoder_set(tmp_path, feature_input_hook=hook, feature_output_hook="mlp.hook_out"), layer=2)
    assert (ours.site, ours.writes, ours.config.hook_name) == (Site(2, site), (Site(2, "mlp_out"),), f"blocks.2.{hook}")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model_kind": "crosscoder"}, UnsupportedError, "model_kind='crosscoder'; attrib reads circuit-tracer's transcoder_set and cross"),
        ({"feature_input_hook": "hook_q"}, UnsupportedError, r"feature_input_hook='hook_q' is no site of attrib.*ending in one of"),
        ({"feature_output_hook": "ln1.hook"}, UnsupportedError, r"feature_output_hook='ln1\.hook' is no site"),
        ({"feature_output_hook": None}, FormatError, r"feature_output_hook=None in its config\.yaml; expected a hook's name"),
        ({"transcoders": ["hf://a/b/c.npz"]}, UnsupportedError, "lists files of other repositories under `transcoders`"),
    ],
)  # fmt: skip
def test_configs_that_attrib_does_not_read(changes: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path):
    for make in (transcoder_set, clt):
        folder = make(tmp_path / make.__name__, **changes)
        with pytest.raises(kind, match=message):
            load_dictionaries(folder)
        with pytest.raises(kind, match=message):
            attrib.load_dictionary(folder, layer=0)


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = load_file(path)
    change(state)
    save_file({key: value.contiguous() for key, value in state.items()}, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("W_enc"), r"set/layer_1: W_enc is missing, expected \[d_transcoder, d_model\]"),
        (lambda s: s.update(W_dec=s["W_dec"].T), r"W_dec is \[32, 48\], expected \[48, 32\] beside W_enc \[48, 32\]"),
        (lambda s: s.update(b_enc=torch.ones(32)), r"b_enc is \[32\], expected \[48\]"),
        (lambda s: s.update(W_skip=torch.ones(32)), r"W_skip is \[32\], expected \[32, 32\]"),
        (lambda s: s.update({"activation_function.threshold": torch.ones(7)}), r"threshold is \[7\], expected \[48\] or a single number"),
        (lambda s: s.update(log_thresholds=torch.ones(48)), "it holds log_thresholds, which attrib would leave out"),
        (lambda s: s.update(W_enc=torch.ones(48, 32, dtype=torch.int8)), "holds W_enc as I8; expected one of F64, F32, F16, BF16"),
    ],
)  # fmt: skip
def test_layers_whose_tensors_do_not_fit(change: Any, message: str, tmp_path: Path):
    folder = transcoder_set(tmp_path / "set")
    rewrite(folder / "layer_1.safetensors", change)
    with pytest.raises(FormatError, match=message):
        attrib.load_dictionary(folder, layer=1)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("W_enc_1", lambda s: s.pop("W_enc_1"), r"clt/layer_1: W_enc_1 is missing"),
        ("W_enc_1", lambda s: s.update(b_dec_1=torch.ones(3)), r"b_dec_1 is \[3\], expected \[32\]"),
        ("W_enc_1", lambda s: s.update(threshold_1=torch.ones(3)), r"threshold_1 is \[3\], expected \[48\]"),
        ("W_enc_1", lambda s: s.update(W_skip_1=torch.ones(32, 32)), "it holds W_skip_1, which attrib would leave out"),
        ("W_dec_1", lambda s: s.update(W_dec_1=s["W_dec_1"][:, :1]), r"W_dec_1 is \[48, 1, 32\], expected \[48, 2, 32\]"),
        ("W_dec_1", lambda s: s.update(more=torch.ones(3)), "it holds more, which attrib would leave out"),
    ],
)  # fmt: skip
def test_cross_layer_tensors_that_do_not_fit(file: str, change: Any, message: str, tmp_path: Path):
    folder = clt(tmp_path / "clt")
    rewrite(folder / f"{file}.safetensors", change)
    with pytest.raises(FormatError, match=message):
        attrib.load_dictionary(folder, layer=1)


def test_folders_with_layers_missing(tmp_path: Path):
    folder = transcoder_set(tmp_path / "set")
    (folder / "layer_1.safetensors").unlink()
    with pytest.raises(FormatError, match=r"layer_\{i\}\.safetensors for the layers \[0, 2\]; expected 0 to the last without a gap"):
        load_dictionaries(folder)
    folder = clt(tmp_path / "clt")
    (folder / "W_dec_1.safetensors").unlink()
    with pytest.raises(FormatError, match=r"holds no W_dec_1\.safetensors beside W_enc_1\.safetensors"):
        load_dictionaries(folder)
    for path in folder.glob("W_enc*"):
        path.unlink()
    with pytest.raises(FormatError, match=r"for the layers \[\]"):
        load_dictionaries(folder)


@pytest.mark.parametrize("text", ["model_kind: [", "\x00", "- a", "", "!!python/object/apply:os.system ['false']"])
def test_a_damaged_config(text: str, tmp_path: Path):
    folder = transcoder_set(tmp_path)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(FormatError, match=r"config\.yaml is (damaged|no mapping)"):
        load_dictionaries(folder)


def test_options_of_layers(tmp_path: Path):
    folder = transcoder_set(tmp_path / "set")
    with pytest.raises(InputError, match=r"layer: missing; .*set has a dictionary for every layer\. Give layer=, or use load_dictionaries"):
        attrib.load_dictionary(folder)
    with pytest.raises(InputError, match=r"layer: 3, but .*set has layers 0 to 2"):
        attrib.load_dictionary(folder, layer=3)
    with pytest.raises(InputError, match=r"site: given, but .* says itself where it reads and writes; leave site= out"):
        attrib.load_dictionary(folder, layer=1, site="blocks.1.mlp.hook_in")
    with pytest.raises(InputError, match=r"layer: 1, but .* is no folder with a config\.yaml"):
        attrib.load_dictionary(tmp_path, layer=1)
    with pytest.raises(InputError, match=r"folder: .* holds neither circuit-tracer's config\.yaml nor folders with a cfg\.json"):
        load_dictionaries(tmp_path / "nowhere")


# -------------------------------------------------------------------------------------------------- sparsify


def sparsify(folder: Path, **changes: Any) -> Path:
    """What sparsify's SparseCoder.save_to_disk writes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": D_SAE, "k": 5, "multi_topk": False,
        "skip_connection": False, "transcode": False, "d_in": D_MODEL,
    } | changes  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    state = {
        "encoder.weight": numbers(1, D_SAE, D_MODEL), "encoder.bias": numbers(2, D_SAE), "W_dec": numbers(3, D_SAE, D_MODEL),
        "b_dec": numbers(4, D_MODEL),
    }  # fmt: skip
    if config["skip_connection"]:
        state["W_skip"] = numbers(5, D_MODEL, D_MODEL)
    save_file(state, folder / "sae.safetensors")
    return folder


@pytest.mark.parametrize("transcode", [False, True], ids=["sae", "transcoder"])
@pytest.mark.parametrize("skip_connection", [False, True], ids=["", "skip"])
def test_a_sparsify_folder(transcode: bool, skip_connection: bool, tmp_path: Path):
    folder = sparsify(tmp_path / "layers.5.mlp", transcode=transcode, skip_connection=skip_connection)
    ours, x, state = attrib.load_dictionary(folder), x_of(), load_file(folder / "sae.safetensors")
    pre = ((x if transcode else x - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"]).relu()
    value, latent = pre.topk(5)
    out = (value[..., None] * state["W_dec"][latent]).sum(1) + state["b_dec"]
    assert_close(encode(ours, x), torch.zeros_like(pre).scatter(-1, latent, value), DICTIONARY, what="encode")
    assert_close(reconstruct(ours, x), out + x @ state["W_skip"].T if skip_connection else out, DICTIONARY, what="forward")
    assert (ours.site, ours.writes) == (Site(5, "mlp_in" if transcode else "mlp_out"), (Site(5, "mlp_out"),))
    assert (ours.config.hook_name, ours.name) == ("layers.5.mlp", "layers.5.mlp")


@pytest.mark.parametrize(
    ("folder", "transcode", "reads", "writes"),
    [
        ("layers.5", False, "resid_post", "resid_post"),
        ("layers.5", True, "resid_pre", "resid_post"),
        ("h.5.mlp", False, "mlp_out", "mlp_out"),
        ("h.5.mlp", True, "mlp_in", "mlp_out"),
        ("h.5.attn", False, "attn_out", "attn_out"),
        ("layers.5.self_attn", False, "attn_out", "attn_out"),
        ("model.layers.5.mlp", True, "mlp_in", "mlp_out"),
        ("gpt_neox.layers.5.attention", False, "attn_out", "attn_out"),
    ],
)
def test_modules_of_sparsify(folder: str, transcode: bool, reads: Any, writes: Any, tmp_path: Path):
    ours = attrib.load_dictionary(sparsify(tmp_path / folder, transcode=transcode))
    assert (ours.site, ours.writes) == (Site(5, reads), (Site(5, writes),))


def test_a_sparsify_site_may_be_given(tmp_path: Path):
    folder = sparsify(tmp_path / "best")
    with pytest.raises(InputError, match=r"site: missing, and the folder's name 'best' is no module .* such as 'layers\.5'"):
        attrib.load_dictionary(folder)
    assert attrib.load_dictionary(folder, site="blocks.3.hook_mlp_out").writes == (Site(3, "mlp_out"),)
    folder = sparsify(tmp_path / "transcoder", transcode=True)
    with pytest.raises(InputError, match=r"writes: missing; the dictionary is a transcoder that reads blocks\.3"):
        attrib.load_dictionary(folder, site="blocks.3.mlp.hook_in")
    ours = attrib.load_dictionary(folder, site="blocks.3.mlp.hook_in", writes=Site(3, "mlp_out"))
    assert (ours.site, ours.writes) == (Site(3, "mlp_in"), (Site(3, "mlp_out"),))


def test_all_folders_of_a_folder(tmp_path: Path):
    for folder in ("layers.10.mlp", "layers.2.mlp", "layers.2"):
        sparsify(tmp_path / folder)
    assert [ours.name for ours in load_dictionaries(tmp_path)] == ["layers.2.mlp", "layers.2", "layers.10.mlp"]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"activation": "groupmax"}, UnsupportedError, "activation='groupmax' .one latent wins in each group"),
        ({"activation": "batchtopk"}, UnsupportedError, "activation='batchtopk'; attrib computes sparsify's topk"),
        ({"signed": True}, UnsupportedError, "signed=True"),
        ({"k": 0}, FormatError, "k=0, expected an integer from 1 to num_latents=48"),
        ({"k": 49}, FormatError, "k=49, expected an integer"),
        ({"k": None}, FormatError, "k=None, expected an integer"),
        ({"d_in": 31}, FormatError, r"d_in=31 in its config, but encoder\.weight is \[48, 32\]"),
        ({"num_latents": 50}, FormatError, "num_latents=50 in its config"),
    ],
)  # fmt: skip
def test_sparsify_configs_that_attrib_does_not_compute(changes: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path):
    with pytest.raises(kind, match=message):
        attrib.load_dictionary(sparsify(tmp_path / "layers.5.mlp", **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.weight"), r"layers\.5: encoder\.weight is missing, expected \[num_latents, d_in\]"),
        (lambda s: s.pop("W_dec"), r"W_dec is missing, expected \[48, 32\] beside encoder\.weight \[48, 32\]"),
        (lambda s: s.update(W_skip=torch.ones(32, 32)), "it holds W_skip, which attrib would leave out"),
    ],
)  # fmt: skip
def test_sparsify_tensors_that_do_not_fit(change: Any, message: str, tmp_path: Path):
    folder = sparsify(tmp_path / "layers.5")
    rewrite(folder / "sae.safetensors", change)
    with pytest.raises(FormatError, match=message):
        attrib.load_dictionary(folder)


def test_sparsify_folders_that_are_damaged(tmp_path: Path):
    with pytest.raises(UnsupportedError, match=r"layers\.5\.self_attn: a transcoder of attention"):
        attrib.load_dictionary(sparsify(tmp_path / "layers.5.self_attn", transcode=True))
    folder = sparsify(tmp_path / "layers.5")
    for text, message in (("{", "is damaged"), ("[]", "is no object, as sparsify writes it")):
        (folder / "cfg.json").write_text(text)
        with pytest.raises(FormatError, match=message):
            attrib.load_dictionary(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(InputError, match=r"holds sae\.safetensors but no cfg\.json"):
        attrib.load_dictionary(folder)


# ----------------------------------------------------------------------------------------------- Gemma Scope


def gemma_scope(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "W_enc": numbers(1, D_MODEL, D_SAE), "W_dec": numbers(2, D_SAE, D_MODEL), "b_enc": numbers(3, D_SAE), "b_dec": numbers(4, D_MODEL),
        "threshold": numbers(5, D_SAE).abs(),
    }  # fmt: skip
    np.savez(folder / "params.npz", **{key: value.numpy() for key, value in arrays.items()} | changes)
    return folder


PATH = "layer_20/width_16k/average_l0_71"


@pytest.mark.parametrize(
    ("release", "reads", "writes", "model"),
    [
        ("gemma-scope-2b-pt-res", "resid_post", "resid_post", "gemma-2-2b"),
        ("gemma-scope-9b-it-res", "resid_post", "resid_post", "gemma-2-9b-it"),
        ("gemma-scope-2b-pt-mlp", "mlp_out", "mlp_out", "gemma-2-2b"),
        ("gemma-scope-27b-pt-att-canonical", "z", "z", "gemma-2-27b"),
        ("gemma-scope-2b-pt-transcoders", "mlp_in", "mlp_out", "gemma-2-2b"),
    ],
)
def test_a_gemma_scope_file(release: str, reads: Any, writes: Any, model: str, tmp_path: Path):
    folder = gemma_scope(tmp_path / release / PATH)
    ours, x = attrib.load_dictionary(folder), x_of()
    with np.load(folder / "params.npz") as arrays:
        state = {key: torch.from_numpy(arrays[key]) for key in arrays}
    pre = x @ state["W_enc"] + state["b_enc"]
    latents = pre.relu() * (pre > state["threshold"])
    assert_close(encode(ours, x), latents, DICTIONARY, what="encode")
    assert_close(reconstruct(ours, x), latents @ state["W_dec"] + state["b_dec"], DICTIONARY, what="forward")
    assert (ours.site, ours.writes) == (Site(20, reads), (Site(20, writes),))
    assert (ours.config.model_name, ours.name) == (model, PATH)
    assert ours.config.hook_name.endswith("ln2.hook_normalized") == (reads == "mlp_in")
    assert attrib.load_dictionary(folder / "params.npz").fingerprint == ours.fingerprint


def test_a_gemma_scope_site_may_be_given(tmp_path: Path):
    folder = gemma_scope(tmp_path / PATH)
    with pytest.raises(InputError, match=r"site: missing, and no part of .* names a release that ends in res, mlp, att, transcoders"):
        attrib.load_dictionary(folder)
    assert attrib.load_dictionary(folder, site="resid_post").site == Site(20, "resid_post")
    assert attrib.load_dictionary(folder, site=Site(3, "mlp_out")).site == Site(3, "mlp_out")
    ours = attrib.load_dictionary(folder, site="ln2.hook_normalized", writes="mlp_out")
    assert (ours.site, ours.writes) == (Site(20, "mlp_in"), (Site(20, "mlp_out"),))
    bare = gemma_scope(tmp_path / "bare")
    with pytest.raises(InputError, match=r"site: 'resid_post' without a layer"):
        attrib.load_dictionary(bare, site="resid_post")
    assert attrib.load_dictionary(bare, site="blocks.4.hook_resid_post").site == Site(4, "resid_post")
    with pytest.raises(UnsupportedError, match=r"of the embedding, which is no site of attrib"):
        attrib.load_dictionary(gemma_scope(tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k"))


def test_half_precision_arrays_are_read_in_single(tmp_path: Path):
    ours = attrib.load_dictionary(gemma_scope(tmp_path / PATH, b_dec=np.ones(D_MODEL, np.float16)), site="resid_post")
    assert ours.params.b_dec.dtype == torch.float32


def test_a_header_that_python_cannot_read(tmp_path: Path):
    folder = gemma_scope(tmp_path / PATH)
    whole = (folder / "params.npz").read_bytes()
    (folder / "params.npz").write_bytes(whole.replace(b"(32, 48), }", b"(32, 48),(\\", 1))
    with pytest.raises(FormatError, match=r"params\.npz is damaged: no header of an array"):
        attrib.load_dictionary(folder, site="resid_post")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": np.ones(3, np.float32)}, r"W_enc is \[3\], expected \[d_in, d_sae\]"),
        ({"W_dec": np.ones((3, 4), np.float32)}, r"W_dec is \[3, 4\], expected \[48, 4\] beside W_enc \[32, 48\]"),
        ({"threshold": np.ones(3, np.float32)}, r"threshold is \[3\], expected \[48\]"),
        ({"b_enc": np.ones(48, np.int32)}, "holds b_enc as int32; expected floating numbers"),
        ({"b_enc": np.array([{"a": 1}], object)}, "holds b_enc as object; expected floating numbers"),
        ({"gate": np.ones(3, np.float32)}, "it holds gate, which attrib would leave out"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(FormatError, match=message):
        attrib.load_dictionary(gemma_scope(tmp_path / PATH, **changes), site="resid_post")


def test_an_array_that_claims_to_be_larger_than_it_is(tmp_path: Path):
    """Its header alone is read: nothing of the size that it names is allocated."""
    folder = gemma_scope(tmp_path / PATH)
    whole = tmp_path / "whole.npz"
    shutil.move(folder / "params.npz", whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(folder / "params.npz", "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename == "b_enc.npy":
                data = data.replace(b"(48,), }          ", b"(480000000000,), }")
                assert b"480000000000" in data
            new.writestr(entry.filename, data)
    with pytest.raises(FormatError, match=r"is damaged: b_enc has \d+ bytes, not those of \[480000000000\]"):
        attrib.load_dictionary(folder, site="resid_post")


def gemma_scope_2(folder: Path, affine: bool = True, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "w_enc": numbers(1, D_MODEL, D_SAE), "w_dec": numbers(2, D_SAE, D_MODEL), "b_enc": numbers(3, D_SAE), "b_dec": numbers(4, D_MODEL),
        "threshold": numbers(5, D_SAE).abs(),
    }  # fmt: skip
    if affine:
        state["affine_skip_connection"] = numbers(6, D_MODEL, D_MODEL)
    save_file(state, folder / "params.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt"} | config))
    return folder


POINTS = {
    "hf_hook_point_in": "model.layers.9.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.9.post_feedforward_layernorm.output",
}


@pytest.mark.parametrize("affine", [True, False], ids=["affine", ""])
def test_a_transcoder_of_gemma_scope_2(affine: bool, tmp_path: Path):
    """The skip is not transposed, other than sae-lens's."""
    folder, x = gemma_scope_2(tmp_path / "layer_9_width_16k_l0_medium", affine, **POINTS), x_of()
    ours, state = attrib.load_dictionary(folder), load_file(folder / "params.safetensors")
    pre = x @ state["w_enc"] + state["b_enc"]
    latents = pre.relu() * (pre > state["threshold"])
    out = latents @ state["w_dec"] + state["b_dec"]
    assert_close(encode(ours, x), latents, DICTIONARY, what="encode")
    assert_close(reconstruct(ours, x), out + x @ state["affine_skip_connection"] if affine else out, DICTIONARY, what="forward")
    assert (ours.site, ours.writes) == (Site(9, "mlp_in"), (Site(9, "mlp_out"),))
    assert (ours.config.model_name, ours.config.hook_name) == ("gemma-v3-1b-pt", POINTS["hf_hook_point_in"])
    assert_close(reconstruct(attrib.load_dictionary(folder, lazy=True), x), reconstruct(ours, x), ROUNDING)


@pytest.mark.parametrize(
    ("module", "kind"),
    [("output", "resid_post"), ("self_attn.o_proj.input", "z"), ("post_feedforward_layernorm.output", "mlp_out")],
)
def test_modules_of_gemma_scope_2(module: str, kind: Any, tmp_path: Path):
    ours = attrib.load_dictionary(gemma_scope_2(tmp_path, affine=False, hf_hook_point_in=f"model.language_model.layers.9.{module}"))
    assert (ours.site, ours.writes) == (Site(9, kind), (Site(9, kind),))


def test_folders_of_gemma_scope_2_that_do_not_fit(tmp_path: Path):
    bare = gemma_scope_2(tmp_path / "bare")
    with pytest.raises(InputError, match=r"site: missing, and .*bare has no config\.json with hf_hook_point_in"):
        attrib.load_dictionary(bare)
    ours = attrib.load_dictionary(bare, site="blocks.3.mlp.hook_in", writes="blocks.3.hook_mlp_out")
    assert (ours.site, ours.writes) == (Site(3, "mlp_in"), (Site(3, "mlp_out"),))
    with pytest.raises(UnsupportedError, match=r"hf_hook_point_in='model\.norm' is no site of attrib; known are output, self_attn"):
        attrib.load_dictionary(gemma_scope_2(tmp_path / "norm", hf_hook_point_in="model.norm"))
    with pytest.raises(UnsupportedError, match=r"architecture 'topk' in config\.json; attrib computes Gemma Scope's jump_relu"):
        attrib.load_dictionary(gemma_scope_2(tmp_path / "topk", architecture="topk"))
    rewrite(bare / "params.safetensors", lambda state: state.update(w_dec=torch.ones(48, 3, 32)))  # of a cross-layer transcoder
    with pytest.raises(FormatError, match=r"w_dec is \[48, 3, 32\], expected \[d_sae, d_out\]"):
        attrib.load_dictionary(bare, site="blocks.3.mlp.hook_in", writes="blocks.3.hook_mlp_out")


# --------------------------------------------------------------------------------------------------- sae-lens


@pytest.mark.parametrize("kind", kinds.supported("sae-lens"))
def test_a_sae_lens_folder_is_the_object_it_came_from(kind: str, tmp_path: Path):
    options = {"rescale_acts_by_decoder_norm": True} if kind.endswith("topk") else {"d_out": 24} if "transcoder" in kind else {}
    foreign = sae(kind, D_MODEL, normalize_activations="layer_norm", **options)
    foreign.save_model(tmp_path)
    ours, want = attrib.load_dictionary(tmp_path), attrib.from_sae_lens(foreign)
    assert (ours.fingerprint, ours.config) == (want.fingerprint, want.config)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_what_training_saves_for_inference(architecture: str, tmp_path: Path):
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class

    made_of, config_of = get_sae_training_class(architecture)
    options = {"matryoshka_widths": [20, D_SAE]} if architecture.startswith("matryoshka") else {}
    foreign = made_of(config_of(d_in=D_MODEL, d_sae=D_SAE, k=5, **options))
    foreign.cfg.metadata.hook_name = "blocks.1.hook_resid_pre"
    foreign.topk_threshold.fill_(0.8)
    with torch.no_grad():
        foreign.b_enc.copy_(numbers(3, D_SAE))
        foreign.W_enc.copy_(numbers(1, D_MODEL, D_SAE))
    with pytest.raises(UnsupportedError, match=f"architecture '{architecture}' .a training checkpoint.*save_inference_model"):
        attrib.from_sae_lens(foreign)
    foreign.save_inference_model(tmp_path)
    ours, x = attrib.load_dictionary(tmp_path), x_of()
    with torch.no_grad():
        assert_close(reconstruct(ours, x), SAE.load_from_disk(tmp_path)(x), DICTIONARY)
    assert ours.config.rule == "jumprelu"
    assert (encode(ours, x) != 0).any()


OLD = {
    "d_in": D_MODEL, "d_sae": 80, "dtype": "float32", "device": "cpu", "model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_post",
    "hook_layer": 3, "hook_head_index": None, "activation_fn_str": "relu", "context_size": 128, "prepend_bos": True,
    "apply_b_dec_to_input": True, "normalize_activations": "none", "finetuning_scaling_factor": False,
}  # fmt: skip


def old_folder(folder: Path, kind: str = "standard", **changes: Any) -> Path:
    """A folder in the flat layout of sae-lens 2 to 5."""
    sae(kind, D_MODEL).save_model(folder)
    config = {key: value for key, value in (OLD | {"architecture": kind} | changes).items() if value is not ...}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


TOPK = {"architecture": ..., "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6}}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("standard", {}),
        ("standard", {"architecture": ..., "normalize_activations": ..., "apply_b_dec_to_input": ...}),
        ("standard", {"normalize_activations": False, "apply_b_dec_to_input": False}),
        ("standard", {"normalize_activations": None}),
        ("standard", {"normalize_activations": "layer_norm"}),
        ("standard", {"hook_name": ..., "hook_point": "blocks.3.hook_resid_post", "hook_point_head_index": None}),
        ("standard", {"activation_fn_str": ..., "activation_fn": "relu"}),
        ("topk", TOPK),
        ("jumprelu", {}),
        ("gated", {}),
    ],
)
def test_older_layouts_are_read_as_sae_lens_reads_them(kind: str, changes: dict[str, Any], tmp_path: Path):
    from sae_lens import SAE

    folder, x = old_folder(tmp_path, kind, **changes), x_of()
    ours, foreign = attrib.load_dictionary(folder), SAE.load_from_disk(folder)
    want = attrib.from_sae_lens(foreign, name=folder.name)
    assert (ours.fingerprint, ours.config) == (want.fingerprint, want.config)
    with torch.no_grad():
        assert_close(reconstruct(ours, x), foreign(x), DICTIONARY)
    assert (ours.site, ours.config.model_name) == (Site(3, "resid_post"), "gpt2-small")


def test_finetuning_factors(tmp_path: Path):
    """Up to version 5 sae-lens multiplied the latents by them on their way into the decoder; version 6 refuses such files."""
    factor, x = 1 + numbers(8, 80).abs(), x_of()
    for finetuned in (True, False):
        folder = old_folder(tmp_path / str(finetuned), "gated", finetuning_scaling_factor=finetuned)
        plain = attrib.load_dictionary(folder)
        rewrite(folder / "sae_weights.safetensors", lambda state: state.update(scaling_factor=torch.ones(80)))
        assert attrib.load_dictionary(folder).fingerprint == plain.fingerprint
        rewrite(folder / "sae_weights.safetensors", lambda state: state.update(scaling_factor=factor))
        if not finetuned:
            with pytest.raises(FormatError, match="it has a scaling_factor, but finetuning_scaling_factor of its config is False"):
                attrib.load_dictionary(folder)
            continue
        ours = attrib.load_dictionary(folder)
        assert torch.equal(encode(ours, x), encode(plain, x))
        want = (encode(plain, x) * factor) @ plain.params.W_dec + plain.params.b_dec
        assert_close(reconstruct(ours, x), want, DICTIONARY)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"activation_fn_str": "tanh-relu"}, UnsupportedError, "activation_fn='tanh-relu' of an older layout; attrib computes relu"),
        (TOPK | {"activation_fn_kwargs": {}}, FormatError, "k=None, expected an integer"),
        (TOPK | {"activation_fn_kwargs": None}, FormatError, "k=None, expected an integer"),
        ({"hook_head_index": 2}, UnsupportedError, "hook_head_index=2; attrib does not read single heads yet"),
        ({"hook_name": ...}, InputError, r"no hook_name, so its site is unknown; .* or give site="),
    ],
)  # fmt: skip
def test_older_layouts_that_attrib_does_not_compute(changes: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path):
    with pytest.raises(kind, match=message):
        attrib.load_dictionary(old_folder(tmp_path, **changes))


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    metadata = config["metadata"] | changes.pop("metadata", {})
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": metadata} | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"metadata": {"hook_name_out": None}}, InputError, "no hook_name_out, so where it writes is unknown"),
        ({"metadata": {"hook_head_index_out": 1}}, UnsupportedError, "hook_head_index_out=1"),
        ({"apply_b_dec_to_input": True}, FormatError, "apply_b_dec_to_input=True of a skip_transcoder"),
        ({"reshape_activations": "hook_z"}, UnsupportedError, "reshape_activations='hook_z' of a skip_transcoder"),
        ({"architecture": "transcoder"}, FormatError, "it holds W_skip, which attrib would leave out"),
        ({"architecture": "jumprelu_skip_transcoder"}, FormatError, r"threshold is missing, expected \[80\]"),
        ({"architecture": "crosscoder"}, UnsupportedError, "architecture 'crosscoder'; attrib computes standard, gated"),
    ],
)  # fmt: skip
def test_transcoder_folders_that_do_not_fit(changes: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path):
    sae("skip_transcoder", D_MODEL, d_out=24).save_model(tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(kind, match=message):
        attrib.load_dictionary(tmp_path)


def test_a_sae_lens_site_may_be_given(tmp_path: Path):
    sae("standard").save_model(tmp_path)
    with pytest.raises(InputError, match=r"site: blocks\.2\.hook_resid_pre, but dictionary .* was made for blocks\.1\.hook_resid_pre"):
        attrib.load_dictionary(tmp_path, site="blocks.2.hook_resid_pre")
    assert attrib.load_dictionary(tmp_path, site="blocks.1.hook_resid_pre").site == Site(1, "resid_pre")
    with pytest.raises(InputError, match=r"writes: given, but .* says itself where it reads and writes"):
        attrib.load_dictionary(tmp_path, writes="blocks.2.hook_resid_pre")
    change_config(tmp_path, metadata={"hook_name": None})
    assert attrib.load_dictionary(tmp_path, site="blocks.2.hook_resid_pre").site == Site(2, "resid_pre")


# ------------------------------------------------------------------------------------- too large for memory


def in_half(path: Path) -> None:
    rewrite(path, lambda state: state.update({key: value.bfloat16() for key, value in state.items()}))


LAZY: dict[str, Callable[[Path], tuple[Path, dict[str, Any], list[str]]]] = {
    "set": lambda folder: (transcoder_set(folder, "any", skips=True), {"layer": 1}, ["layer_1"]),
    "clt": lambda folder: (clt(folder), {"layer": 1}, ["W_enc_1", "W_dec_1"]),
    "sparsify": lambda folder: (sparsify(folder / "layers.5.mlp", skip_connection=True), {}, ["sae"]),
    "sae-lens": lambda folder: (saved(folder), {}, ["sae_weights"]),
}


def saved(folder: Path) -> Path:
    sae("jumprelu_skip_transcoder", D_MODEL).save_model(folder)
    return folder


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("make", LAZY.values(), ids=LAZY.keys())
def test_what_stays_in_its_file_computes_the_same(make: Any, half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, options, files = make(tmp_path / "lazy")
    for file in files if half else ():
        in_half(folder / f"{file}.safetensors")
    whole, ours, x = attrib.load_dictionary(folder, **options), attrib.load_dictionary(folder, lazy=True, **options), x_of()
    assert {ours.params.W_enc.dtype, ours.params.W_dec.dtype} == {torch.bfloat16 if half else torch.float32}
    assert {p.dtype for key, p in ours.params._asdict().items() if key not in ("W_enc", "W_dec")} == {torch.float32}
    assert (ours.config.lazy, whole.config.lazy) == (True, False)
    for a, b, at in ((ours, whole, x), (ours.to(dtype=torch.float64), whole.to(dtype=torch.float64), x.double())):
        assert a.params.W_enc.data_ptr() == ours.params.W_enc.data_ptr()
        found, want = encode_sparse(a, at, tile=7), encode_sparse(b, at)
        assert_close(to_dense(found, 7, b.d_sae), to_dense(want, 7, b.d_sae), ROUNDING)
        assert_close(encode(a, at), encode(b, at), ROUNDING)
        assert_close(encode_at(a, at, want.position, want.latent), want.value, ROUNDING)
        assert_close(reconstruct(a, at), reconstruct(b, at), ROUNDING)
        scale = normalise_input(b, at)[1]
        decoded = [decode_at(one, want.value, want.position, want.latent, scale) for one in (a, b)]
        assert_close(decoded[0], decoded[1], ROUNDING)
    monkeypatch.setattr("attrib.dictionaries.dictionary.check_device", torch.device)  # as if this machine had it
    with pytest.raises(InputError, match=r"device: meta, but .* is read from its file as it is used; load it without lazy=True"):
        ours.to(device="meta")
    with pytest.raises(InputError, match="its encoder stays in its file"):
        after_gain(ours, torch.ones(D_MODEL), torch.ones(D_MODEL))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of maps")
def test_rows_are_read_as_they_are_used(tmp_path: Path):
    """Loading, finding the active latents and decoding them holds a small part of the weights, which are larger than all else."""
    wide, x = 60_000, x_of()
    folder = clt(tmp_path)
    for i in range(N_LAYERS):
        state = {f"W_enc_{i}": numbers(1, wide, D_MODEL), f"b_enc_{i}": torch.full((wide,), -9.0), f"b_dec_{i}": numbers(2, D_MODEL)}
        save_file({key: value.bfloat16() for key, value in state.items()}, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": numbers(3, wide, N_LAYERS - i, D_MODEL).bfloat16()}, folder / f"W_dec_{i}.safetensors")
    weights = 2 * wide * D_MODEL * (1 + N_LAYERS)

    def run(ours: Dictionary) -> Tensor:
        position, latent, value = encode_sparse(ours, x, tile=256)
        assert 100 < len(value) < 5_000
        return decode_at(ours, value, position, latent, normalise_input(ours, x)[1])

    ours = attrib.load_dictionary(folder, layer=0, lazy=True)
    assert_close(run(ours), run(attrib.load_dictionary(folder, layer=0)), ROUNDING)
    assert peak(lambda: run(ours)) < weights / 10
    # loading takes addresses and no memory: what the profiler counts then is the map, once, and not a copy
    assert peak(lambda: attrib.load_dictionary(folder, layer=0, lazy=True)) < 1.1 * weights
    assert peak(lambda: attrib.load_dictionary(folder, layer=0)) > 2 * weights  # in float32
    for tensor, file in ((ours.params.W_enc, "W_enc_0"), (ours.params.W_dec, "W_dec_0")):
        assert mapped(tensor.data_ptr()).endswith(f"{file}.safetensors")


def mapped(address: int) -> str:
    """The file that is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return line
    return ""


def test_what_cannot_stay_in_its_file(tmp_path: Path):
    for kind, options, what in (("gated", {}, "its gates"), ("topk", {"rescale_acts_by_decoder_norm": True}, "its decoder's norms")):
        sae(kind, D_MODEL, **options).save_model(tmp_path / kind)
        with pytest.raises(InputError, match=f"lazy: {what} have to be folded into all weights of {kind}"):
            attrib.load_dictionary(tmp_path / kind, lazy=True)
    with pytest.raises(InputError, match=r"lazy: .* is a numpy archive, so its rows cannot be read one by one"):
        attrib.load_dictionary(gemma_scope(tmp_path / PATH), site="resid_post", lazy=True)
    with pytest.raises(InputError, match="lazy: a/b is a release, which sae-lens loads whole"):
        attrib.load_dictionary("a/b", lazy=True)
    folder = old_folder(tmp_path / "factor", finetuning_scaling_factor=True)
    rewrite(folder / "sae_weights.safetensors", lambda state: state.update(scaling_factor=torch.full((80,), 2.0)))
    with pytest.raises(InputError, match="lazy: the scaling_factor has to be folded into all of W_dec"):
        attrib.load_dictionary(folder, lazy=True)


# ------------------------------------------------------------------------------------------- any file at all

MAKERS: dict[str, Callable[[Path], Path]] = {
    "layer_1.safetensors": lambda folder: transcoder_set(folder / "set"),
    "W_dec_1.safetensors": lambda folder: clt(folder / "clt"),
    "sae.safetensors": lambda folder: sparsify(folder / "layers.5"),
    "params.npz": lambda folder: gemma_scope(folder / "gemma-scope-2b-pt-res" / PATH),
}


@pytest.fixture(scope="module", params=MAKERS.keys())
def damageable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of a folder, and a copy of it that stays whole."""
    root = tmp_path_factory.mktemp("whole")
    path = MAKERS[request.param](root) / request.param
    return path, Path(shutil.copy(path, root / "copy"))


@pytest.mark.few
@given(data=st.data())
@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_named_or_harmless(damageable: tuple[Path, Path], data: st.DataObject):
    """Whatever stands in a file, it is read or refused with one of attrib's errors; a file that is cut short is refused."""
    path, whole = damageable[0], damageable[1].read_bytes()
    layer = None if path.name in ("sae.safetensors", "params.npz") else 1
    if data.draw(st.booleans()):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(FormatError, match="is damaged"):
            attrib.load_dictionary(path.parent, layer=layer)
        return
    at = data.draw(st.integers(0, min(len(whole) - 1, 900)))
    path.write_bytes(whole[:at] + data.draw(st.binary(min_size=1, max_size=4)) + whole[at + 1 :])
    try:
        ours = attrib.load_dictionary(path.parent, layer=layer)
    except AttribError:
        return
    assert ours.d_sae == D_SAE
