"""What a config says is computed, or the dictionary is refused: no key of any library's format is passed over."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import attrib
from attrib.core.types import FormatError, InputError, UnsupportedError
from attrib.dictionaries.dictionary import encode, encode_at, encode_sparse, reconstruct, wins_at
from tests.adapters.test_dictionary_folders import OLD, change_config, clt, gemma_scope_2, old_folder, rewrite, sparsify, transcoder_set
from tests.support.builders import D_MODEL, normal, sae, to_dense
from tests.support.tolerances import DICTIONARY, ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

K = 4


def x_of(seed: int = 2) -> Tensor:
    return 2.5 * normal(7, D_MODEL, seed=seed) + 0.7


# --------------------------------------------------------------------------------------------- circuit-tracer's topk


def top(pre: Tensor, k: int) -> Tensor:
    """circuit-tracer's TopK: the k largest as they are, without a ReLU."""
    index = pre.topk(k, dim=-1).indices
    return pre * torch.zeros_like(pre).scatter(-1, index, 1.0)


def with_k(folder: Path, layer: int, key: str = "k", value: Any = None) -> None:
    names = (f"layer_{layer}", f"W_enc_{layer}")
    path = next(path for name in names if (path := folder / f"{name}.safetensors").is_file())
    rewrite(path, lambda state: state.update({key: torch.tensor(K if value is None else value)}))


SAVED: dict[str, Callable[[Path], None]] = {
    "in the config": lambda folder: None,
    "as a tensor beside it": lambda folder: with_k(folder, 1),
    "as the activation's tensor": lambda folder: with_k(folder, 1, "activation_function.k", [K]),
}


@pytest.mark.parametrize("shift", [0.0, -30.0], ids=["", "mostly negative"])
@pytest.mark.parametrize("save", SAVED.values(), ids=SAVED.keys())
def test_topk_of_circuit_tracer(save: Any, shift: float, tmp_path: Path):
    """28 active on 7 positions, whatever their sign."""
    folder = transcoder_set(tmp_path / "set", activation="topk", k=K)
    rewrite(folder / "layer_1.safetensors", lambda state: state.update(b_enc=state["b_enc"] + shift))
    save(folder)
    ours, state, x = attrib.load_dictionary(folder, layer=1), load_file(folder / "layer_1.safetensors"), x_of()
    want = top(x @ state["W_enc"].T + state["b_enc"], K)
    assert (want != 0).sum() == 28
    assert (want < 0).any() == (shift < 0)
    assert (ours.config.rule, ours.config.k) == ("rawtopk", K)
    assert_close(encode(ours, x), want, DICTIONARY, what="encode")
    assert_close(reconstruct(ours, x), want @ state["W_dec"] + state["b_dec"], DICTIONARY, what="forward")
    for tile in (5, 2048):
        found = encode_sparse(ours, x, tile=tile)
        assert_close(to_dense(found, 7, ours.d_sae), want, ROUNDING, what=f"tiles of {tile}")
    gate = wins_at(ours, x, found.position, found.latent)
    assert gate.all()
    assert_close(encode_at(ours, x, found.position, found.latent, gate), found.value, ROUNDING)
    assert not encode_at(ours, x, found.position, found.latent, ~gate).any()


def test_topk_of_a_cross_layer_transcoder(tmp_path: Path):
    folder = clt(tmp_path / "clt", thresholds=False, activation="topk", k=K)
    ours, state, x = attrib.load_dictionary(folder, layer=1), load_file(folder / "W_enc_1.safetensors"), x_of()
    assert_close(encode(ours, x), top(x @ state["W_enc_1"].T + state["b_enc_1"], K), DICTIONARY)
    with_k(folder, 1, "k_1")
    assert attrib.load_dictionary(folder, layer=1).fingerprint == ours.fingerprint


def test_a_k_tensor_alone_is_topk(tmp_path: Path):
    folder = transcoder_set(tmp_path / "set")
    with_k(folder, 1)
    assert attrib.load_dictionary(folder, layer=1).config.rule == "rawtopk"
    assert attrib.load_dictionary(folder, layer=0).config.rule == "relu"


@pytest.mark.parametrize(
    ("changes", "thresholds", "tensor", "message"),
    [
        ({"activation": "topk"}, "none", None, r"topk with no k; expected one k, an integer from 1 to d_transcoder=48"),
        ({"activation": "topk", "k": 0}, "none", None, "topk with k of its config=0"),
        ({"activation": "topk", "k": 49}, "none", None, "topk with k of its config=49"),
        ({"activation": "topk", "k": 4.5}, "none", None, r"topk with k of its config=4\.5"),
        ({"activation": "topk", "k": [4]}, "none", None, r"topk with k of its config=\[4\]"),
        ({"activation": "topk", "k": 5}, "none", 4, "topk with k of its config=5, k=4; expected one k"),
        ({"activation": "topk", "k": 4}, "positive", None, r"topk with k of its config=4 and activation_function\.threshold"),
        ({"activation": "topk"}, "none", [4, 4], r"k is \[2\], expected \[1\]"),
        ({"activation": "topk"}, "none", 4.0, "holds k as F32; expected one of I64"),
        ({"activation": "relu", "k": 4}, "none", None, "activation='relu' in its config, but it has k of its config"),
        ({"activation": "relu"}, "positive", None, r"activation='relu' in its config, but it has activation_function\.threshold"),
        ({"activation": "jump_relu"}, "none", None, r"activation='jump_relu' in its config, but it has no activation_function\.threshold"),
        ({"k": 4}, "positive", None, r"activation=None in its config, but it has k of its config, activation_function\.threshold"),
        ({"n_layers": 4}, "none", None, r"n_layers=4 in its config, but its folder has layers 0 to 2"),
        ({"d_transcoder": 50}, "none", None, r"d_transcoder=50 in its config, but W_enc is \[48, 32\]"),
    ],
)  # fmt: skip
def test_activations_that_do_not_fit(changes: dict[str, Any], thresholds: str, tensor: Any, message: str, tmp_path: Path):
    folder = transcoder_set(tmp_path / "set", thresholds, **changes)
    if tensor is not None:
        with_k(folder, 1, value=tensor)
    with pytest.raises(FormatError, match=message):
        attrib.load_dictionary(folder, layer=1)


def test_activations_that_say_again_what_the_tensors_say(tmp_path: Path):
    plain, thresholds = transcoder_set(tmp_path / "plain"), transcoder_set(tmp_path / "thresholds", "positive")
    for folder, activation in ((plain, "relu"), (thresholds, "jump_relu"), (thresholds, "jumprelu")):
        want = attrib.load_dictionary(folder, layer=1).fingerprint
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"activation": activation, "d_model": D_MODEL, "n_layers": 3}))
        assert attrib.load_dictionary(folder, layer=1).fingerprint == want


# --------------------------------------------------------------------------------------------- keys of every format


def sae_lens_folder(folder: Path, **changes: Any) -> Path:
    sae("standard", D_MODEL).save_model(folder)
    change_config(folder, **changes)
    return folder


POINT = {"hf_hook_point_in": "model.layers.9.output"}

FORMATS: dict[str, Callable[..., Any]] = {
    "sae-lens": lambda folder, **more: attrib.load_dictionary(sae_lens_folder(folder, **more)),
    "sae-lens, old": lambda folder, **more: attrib.load_dictionary(old_folder(folder, **more)),
    "sparsify": lambda folder, **more: attrib.load_dictionary(sparsify(folder / "layers.5.mlp", **more)),
    "circuit-tracer": lambda folder, **more: attrib.load_dictionary(transcoder_set(folder, **more), layer=1),
    "circuit-tracer, across": lambda folder, **more: attrib.load_dictionary(clt(folder, **more), layer=1),
    "Gemma Scope 2": lambda folder, **more: attrib.load_dictionary(gemma_scope_2(folder, affine=False, **POINT | more)),
}
each_format = pytest.mark.parametrize("load", FORMATS.values(), ids=FORMATS.keys())

UNKNOWN = [
    ({"activation": "gelu_of_the_future"}, "activation='gelu_of_the_future'"),
    ({"normalize": "layer_norm"}, "normalize='layer_norm'"),
    ({"decoder_gain": 2.0, "input_clip": [1, 2]}, r"decoder_gain=2\.0, input_clip=\[1, 2\]"),
]


@pytest.mark.parametrize(("changes", "message"), UNKNOWN)
@each_format
def test_an_unknown_key_is_refused_by_name(load: Any, changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(UnsupportedError, match=message):
        load(tmp_path, **changes)


KNOWN = {
    "sae-lens": {"l1_coefficient": 1.0, "lp_norm": 1.0, "l1_warm_up_steps": 100, "decoder_init_norm": 0.1, "device": "cuda:3"},
    "sae-lens, old": {"l1_coefficient": 5, "lr": 4e-4, "dataset_path": "a/b", "neuronpedia_id": None, "sae_lens_training_version": "3.9",
                      "model_from_pretrained_kwargs": {}, "seqpos_slice": [None], "activation_fn_kwargs": {}, "use_ghost_grads": False,
                      "dataset_trust_remote_code": True, "wandb_id": "x", "expansion_factor": 8, "dead_feature_window": 1000},
    "sparsify": {"expansion_factor": 32, "normalize_decoder": True, "multi_topk": False, "signed": False},
    "circuit-tracer": {"scan": "tiny", "repo_id": "a/b", "revision": None, "subfolder": None},
    "circuit-tracer, across": {"scan": ["a", "b"]},
    "Gemma Scope 2": {"width": 48, "l0": 60, "type": "sae", "affine_connection": False},
}  # fmt: skip


@pytest.mark.parametrize("library", FORMATS)
def test_what_does_not_matter_changes_nothing(library: str, tmp_path: Path):
    load = FORMATS[library]
    assert load(tmp_path / "a", **KNOWN[library]).fingerprint == load(tmp_path / "b").fingerprint


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_every_field_of_sae_lens_own_configs_is_known(training: bool):
    """So that whatever sae-lens of this version saves is read or refused for what it is, and not for how it was trained."""
    from dataclasses import fields

    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    from attrib.adapters.dictionaries import kinds
    from attrib.adapters.dictionaries.sae_lens import _UNDERSTOOD
    from attrib.adapters.keys import SAE_LENS

    known = {*SAE_LENS, *_UNDERSTOOD, "d_out", "k", "rescale_acts_by_decoder_norm"}
    for name, (_, config) in (SAE_TRAINING_CLASS_REGISTRY if training else SAE_CLASS_REGISTRY).items():
        if name in kinds.supported("sae-lens"):
            assert {field.name for field in fields(config)} <= known, name


def test_every_field_of_sae_lens_runner_is_known():
    """Version 2 saved all of it beside the weights."""
    from dataclasses import fields

    from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig

    from attrib.adapters.keys import SAE_LENS

    named = {field.name for config in (LanguageModelSAERunnerConfig, LoggingConfig) for field in fields(config)}
    assert named - SAE_LENS <= {*OLD, "sae"}


@pytest.mark.parametrize(
    ("load", "changes", "message"),
    [
        ("sae-lens", {"k": 3}, "k=3 in its config"),
        ("sae-lens", {"d_out": 3}, "d_out=3 in its config"),
        ("sae-lens", {"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm=True in its config"),
        ("sae-lens, old", {"activation_fn_kwargs": {"alpha": 2}}, r"activation_fn_kwargs=\{'alpha': 2\} of activation_fn='relu'"),
        ("sae-lens, old", {"kind": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6, "postact_fn": 1}},
         "activation_fn_kwargs=.*postact_fn"),
    ],
)  # fmt: skip
def test_keys_of_other_kinds_are_refused(load: str, changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(UnsupportedError, match=message):
        FORMATS[load](tmp_path, **changes)


@pytest.mark.parametrize(
    ("load", "changes", "message"),
    [
        ("sae-lens", {"d_in": 33}, r"d_in=33 in its config, but W_enc is \[32, 80\]"),
        ("sae-lens, old", {"d_sae": 81}, r"d_sae=81 in its config, but W_enc is \[32, 80\]"),
        ("sparsify", {"transcode": "yes"}, "transcode='yes'; expected true or false"),
        ("sparsify", {"k": True}, "k=True, expected an integer"),
        ("Gemma Scope 2", {"affine_connection": True}, "affine_skip_connection is missing"),
    ],
)
def test_values_that_contradict_the_tensors(load: str, changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(FormatError, match=message):
        FORMATS[load](tmp_path, **changes)


def test_a_skip_that_the_config_denies(tmp_path: Path):
    with pytest.raises(FormatError, match="affine_connection=False in its config, but it holds an affine_skip_connection"):
        attrib.load_dictionary(gemma_scope_2(tmp_path, affine=True, affine_connection=False, **POINT))


# ------------------------------------------------------------------------- the scaling that lies beside a checkpoint

SAES = ["standard", "gated", "topk", "abstopk", "jumprelu"]


def options_of(kind: str, rescale: bool) -> dict[str, Any]:
    return {"rescale_acts_by_decoder_norm": rescale} if kind.endswith("topk") else {}


def checkpoint(folder: Path, kind: str, normalisation: str, rescale: bool, apply_b_dec: bool) -> Any:
    """What sae-lens's trainer saves before its last step, and the SAE with all folded in as the trainer does at the end."""
    from sae_lens.training.activation_scaler import ActivationScaler

    foreign = sae(kind, D_MODEL, normalize_activations=normalisation, apply_b_dec_to_input=apply_b_dec, **options_of(kind, rescale))
    foreign.save_model(folder)
    scaler, batches = ActivationScaler(), iter([3 * normal(400, D_MODEL, seed=seed) + 0.5 for seed in range(2)])
    if normalisation == "expected_average_only_in":
        scaler.estimate_scaling_factor(D_MODEL, batches, 2)
        scaler.save(str(folder / "activation_scaler.json"))
        foreign.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    else:
        scaler.estimate_whitening(D_MODEL, batches, 2)
        scaler.save(str(folder / "activation_scaler.json"))
        assert scaler.whitening is not None
        foreign.fold_activation_whitening(scaler.whitening.mean, scaler.whitening.matrix, scaler.whitening.inverse_matrix)
    return foreign


CHECKPOINTS = [(kind, rescale) for kind in SAES for rescale in ((False, True) if kind.endswith("topk") else (False,))]


@pytest.mark.parametrize("apply_b_dec", [True, False], ids=["b_dec", ""])
@pytest.mark.parametrize("normalisation", ["expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize(("kind", "rescale"), CHECKPOINTS)
def test_what_lies_beside_a_checkpoint_is_folded_in(kind: str, rescale: bool, normalisation: str, apply_b_dec: bool, tmp_path: Path):
    foreign, x = checkpoint(tmp_path, kind, normalisation, rescale, apply_b_dec), x_of()
    ours = attrib.load_dictionary(tmp_path)
    with torch.no_grad():
        want, whole = foreign.encode(x), foreign(x)
    assert 0 < (want != 0).float().mean() < 0.9
    assert_close(encode(ours, x), want, {torch.float32: 1e-5}, what="encode")
    assert_close(reconstruct(ours, x), whole, {torch.float32: 1e-5}, what="forward")
    with pytest.raises(InputError, match=f"lazy: {normalisation} has to be folded into all weights"):
        attrib.load_dictionary(tmp_path, lazy=True)
    # what sae-lens saves after that is the same dictionary, whatever still lies beside it
    foreign.save_model(tmp_path)
    assert_close(encode(attrib.load_dictionary(tmp_path), x), encode(ours, x), {torch.float32: 1e-5})


@pytest.mark.parametrize(
    ("normalisation", "file"),
    [("expected_average_only_in", "activation_scaler.json"), ("covariance_whitening", "activation_whitening.safetensors")],
)
def test_a_checkpoint_without_its_scaling_is_refused(normalisation: str, file: str, tmp_path: Path):
    checkpoint(tmp_path / "whole", "standard", normalisation, False, True)
    (tmp_path / "whole" / file).unlink()
    with pytest.raises(
        UnsupportedError, match=rf"normalize_activations='{normalisation}'.* holds no {file}\. In sae-lens run sae\.fold_act"
    ):
        attrib.load_dictionary(tmp_path / "whole")
    with pytest.raises(UnsupportedError, match=r"an object does not say by how much\. In sae-lens run sae\.fold_activation"):
        attrib.from_sae_lens(sae("standard", D_MODEL, normalize_activations=normalisation))
    for kind in ("transcoder", "jumprelu_skip_transcoder"):
        with pytest.raises(UnsupportedError, match=rf"normalize_activations='{normalisation}' of a {kind}"):
            attrib.from_sae_lens(sae(kind, D_MODEL, site="blocks.1.mlp.hook_in", normalize_activations=normalisation))


def test_older_layouts_with_a_bool_for_it(tmp_path: Path):
    """Up to version 2 `true` was what 3 calls expected_average_only_in."""
    folder = old_folder(tmp_path, normalize_activations=True)
    with pytest.raises(UnsupportedError, match=r"expected_average_only_in.* holds no activation_scaler\.json"):
        attrib.load_dictionary(folder)
    plain = attrib.load_dictionary(old_folder(tmp_path / "plain"))
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    assert_close(encode(attrib.load_dictionary(folder), x_of()), encode(plain, 0.5 * x_of()), {torch.float32: 1e-5})


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"scaling_factor": null}', UnsupportedError, r"the scaling_factor of its activation_scaler\.json is null"),
        ('{"scaling_factor": 0}', FormatError, "expected a scaling_factor above 0"),
        ('{"scaling_factor": NaN}', FormatError, "expected a scaling_factor above 0"),
        ('{"scaling_factor": "2"}', FormatError, "expected a scaling_factor above 0"),
        ("[2.0]", FormatError, "expected a scaling_factor above 0"),
        ("{", FormatError, r"activation_scaler\.json is damaged"),
    ],
)
def test_a_factor_that_is_none(text: str, error: type[Exception], message: str, tmp_path: Path):
    checkpoint(tmp_path, "standard", "expected_average_only_in", False, True)
    (tmp_path / "activation_scaler.json").write_text(text)
    with pytest.raises(error, match=message):
        attrib.load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("mean"), "mean is missing"),
        (lambda s: s.update(matrix=s["matrix"][:3].contiguous()), r"matrix is \[3, 32\], expected \[32, 32\] in activation_whitening"),
        (lambda s: s.update(more=s["mean"].clone()), "it holds more, which attrib would leave out"),
        (lambda s: s["mean"].fill_(torch.nan), r"mean: nan at \[0\]"),
    ],
)
def test_matrices_that_do_not_fit(change: Any, message: str, tmp_path: Path):
    checkpoint(tmp_path, "standard", "covariance_whitening", False, True)
    path = tmp_path / "activation_whitening.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(FormatError, match=message):
        attrib.load_dictionary(tmp_path)


def test_configs_are_json_of_a_sensible_size(tmp_path: Path):
    folder = sae_lens_folder(tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"dataset_path": "x" * (1 << 20)}))
    with pytest.raises(FormatError, match=r"cfg\.json has 1,0\d\d,\d\d\d bytes; expected at most 1,048,576"):
        attrib.load_dictionary(folder)
