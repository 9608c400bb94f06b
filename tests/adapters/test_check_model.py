"""attrib.check_model: it agrees where attrib does, says where it does not, and leaves the original as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import attrib
from attrib.adapters.models import model_folder, smollm2
from attrib.adapters.models.check import TOLERANCE, default_tokens
from attrib.core.types import InputError, Site
from attrib.models.transformer import Model
from tests.adapters.test_sources import assert_untouched, everything_of
from tests.support.builders import ALL_FAMILIES, Family, all_sites, attrib_model, build, prompt, tiny
from tests.support.exact_transformers import keep_dtype
from tests.support.hooked import hooked, tiny_bridge

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def sites_and_logits(model: Model) -> set[Any]:
    """All that can be compared: between attention and MLP of a parallel block there is no site."""
    sites = all_sites(model.config.n_layers)
    return {"logits", *(site for site in sites if not (model.config.parallel and site.kind == "resid_mid"))}


def spoilt(model: Model, layer: int = 2) -> Model:
    """The same model with one number of one layer's output projection changed."""
    block = model.params.blocks[layer]
    W_O = block.attention.W_O.clone()
    W_O[3, 5] += 0.5
    changed = block._replace(attention=block.attention._replace(W_O=W_O))
    blocks = (*model.params.blocks[:layer], changed, *model.params.blocks[layer + 1 :])
    return replace(model, params=model.params._replace(blocks=blocks))


@pytest.mark.few
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_site_of_every_family_is_compared(family: Family, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    if dtype == torch.float64:
        keep_dtype(monkeypatch)
    foreign = tiny(family, dtype)
    model = attrib.from_hugging_face(foreign)
    check = attrib.check_model(model, foreign, tolerance=1e-9 if dtype == torch.float64 else None)
    assert check.ok
    assert set(check.errors) == sites_and_logits(model)
    in_order = [site for site in check.errors if site != "logits"]
    assert in_order == sorted(in_order, key=lambda site: site.layer)
    assert check.unseen == ()
    assert check.worst == max(check.errors.values()) <= check.tolerance
    assert check.require() is check
    assert f"{model.name} computes the same as {type(foreign).__name__}: {len(check.errors)} places compared on" in str(check)


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "gptj", "opt", "gemma2"])
def test_a_difference_is_named_and_raises_only_when_asked(family: Family):
    foreign = tiny(family)
    model = spoilt(attrib.from_hugging_face(foreign, name="mine"))
    check = attrib.check_model(model, foreign)
    assert not check.ok
    assert check.first_difference == Site(2, "attn_out")
    assert check.errors[Site(2, "z")] <= check.tolerance < check.errors["logits"]
    assert "DIFFERS" in str(check)
    assert "first difference: blocks.2.hook_attn_out" in str(check)
    with pytest.raises(
        InputError, match=rf"mine differs from {type(foreign).__name__}, first at blocks\.2\.hook_attn_out: .*adapters, hooks"
    ):
        check.require()
    assert attrib.check_model(model, foreign, tolerance=100.0).ok


def test_logits_alone_can_differ():
    foreign = tiny("gemma2")
    model = attrib.from_hugging_face(foreign)
    check = attrib.check_model(replace(model, config=replace(model.config, logit_cap=None)), foreign)
    assert check.first_difference == "logits"


def test_values_that_are_no_numbers_differ():
    foreign = tiny("llama")
    model = attrib.from_hugging_face(foreign)
    W_E = model.params.W_E.clone()
    W_E[default_tokens(model)[0], 0] = float("nan")
    check = attrib.check_model(replace(model, params=model.params._replace(W_E=W_E)), foreign)
    assert check.worst == float("inf")
    assert check.first_difference == Site(0, "resid_pre")


def test_a_layer_that_is_missing_is_seen():
    foreign = tiny("llama")
    model = attrib.from_hugging_face(foreign)
    other = attrib.check_model(model, tiny("llama", n_layers=3))
    assert not other.ok
    assert set(other.unseen) == {site for site in all_sites() if site.layer == 3}
    assert "not shown by the original, so not compared: blocks.3.hook_resid_pre" in str(other)
    assert "(7)" in str(other)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("training", [False, True])
def test_the_original_is_left_as_it_was(family: Family, training: bool):
    foreign = tiny(family).train(training)
    foreign.get_input_embeddings().eval()
    before = everything_of(foreign)
    assert attrib.check_model(attrib.from_hugging_face(foreign), foreign).ok  # dropout is off while it looks
    assert_untouched(foreign, before)


def test_the_original_is_left_as_it_was_where_it_fails(monkeypatch: pytest.MonkeyPatch):
    foreign = tiny("llama").train()
    model, before = attrib.from_hugging_face(foreign), everything_of(foreign)

    def fail(x: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr(foreign.model.layers[2].mlp, "forward", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        attrib.check_model(model, foreign)
    monkeypatch.undo()
    after = everything_of(foreign)
    assert {key: value[:3] for key, value in after.items() if key.startswith("module")} == {
        key: value[:3] for key, value in before.items() if key.startswith("module")
    }


def test_an_original_that_was_changed_is_found_out():
    foreign = tiny("llama")
    model = attrib.from_hugging_face(foreign)
    foreign.model.layers[1].mlp.register_forward_hook(lambda module, args, out: out * 1.01)
    check = attrib.check_model(model, foreign)
    assert check.first_difference == Site(1, "mlp_out")


# ---------------------------------------------------------------------------------------------------- tokens


def test_default_tokens_are_64_different_ones_where_there_are_as_many():
    assert len(default_tokens(build("llama"))) == 64
    assert int(default_tokens(build("llama")).max()) < 60
    assert len(default_tokens(build("llama")).unique()) > 30
    assert len(default_tokens(attrib_model("llama", max_position_embeddings=8))) == 8


def pair(family: Family, **options: Any) -> tuple[Model, nn.Module]:
    foreign = tiny(family, **options)
    return attrib.from_hugging_face(foreign), foreign


def test_a_window_that_is_wrong_is_found_by_default_tokens():
    """Also one that attrib does not know of: how long the prompt is must not depend on what attrib believes."""
    foreign = tiny("mistral", sliding_window=40)
    model = attrib.from_hugging_face(foreign)
    for windows in ((), (41,) * 4, (39,) * 4):
        assert not attrib.check_model(replace(model, config=replace(model.config, windows=windows)), foreign).ok
    assert attrib.check_model(model, foreign).ok


def test_tokens_can_be_given():
    model, foreign = pair("llama")
    assert attrib.check_model(model, foreign, prompt(5)).positions == 5
    for tokens in (torch.tensor([1, 60]), torch.tensor([-1]), torch.tensor([], dtype=torch.long)):
        with pytest.raises(InputError, match="tokens: expected at least one id, each from 0 to 59"):
            attrib.check_model(model, foreign, tokens)


def test_what_is_no_original():
    with pytest.raises(InputError, match=r"original: expected a transformers causal language model.*got str"):
        attrib.check_model(build("llama"), "llama")


# ---------------------------------------------------------------------------------------------- half precision


@pytest.mark.few
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_half_precision_is_checked_in_its_own_dtype(family: Family, dtype: torch.dtype):
    foreign = tiny(family, dtype)
    model = attrib.from_hugging_face(foreign)
    check = attrib.check_model(model, foreign)
    assert check.ok, str(check)
    assert (check.dtype, check.tolerance) == (dtype, TOLERANCE[dtype])
    assert check.worst > 1e-4  # it was computed in half precision
    # the coarser dtype of the two decides
    assert attrib.check_model(attrib.from_hugging_face(tiny(family)), foreign).dtype == dtype


@pytest.mark.few
@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("mistral", {"windows": ()}),
        ("gemma2", {"logit_cap": None}),
        ("gemma2", {"post_norm": False}),
        ("qwen3", {"qk_norm": "none"}),
        ("gpt_neox", {"parallel": False}),
        ("gemma", {"embedding_scale": 1.0}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_missing_feature_is_found_in_half_precision_too(family: Family, change: dict[str, Any], dtype: torch.dtype):
    foreign = tiny(family, dtype)
    model = attrib.from_hugging_face(foreign)
    assert not attrib.check_model(replace(model, config=replace(model.config, **change)), foreign).ok


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_difference_in_half_precision_stays_in_its_layer(dtype: torch.dtype):
    """Each layer starts from the original's stream, so rounding does not add up, and a mistake shows where it is."""
    foreign = tiny("gemma", dtype)
    check = attrib.check_model(spoilt(attrib.from_hugging_face(foreign)), foreign)
    whole = attrib.check_model(attrib.from_hugging_face(foreign), foreign)
    apart = {where for where in check.errors if check.errors[where] != whole.errors[where]}
    assert apart == {*(Site(2, kind) for kind in ("attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")), Site(3, "resid_pre")}


# ---------------------------------------------------------------------------------------- TransformerLens


@pytest.mark.parametrize("options", ["raw", "all"])
@pytest.mark.parametrize("family", ["gpt2", "pythia", "gemma-2", "olmo-2"])
def test_hooked_transformers(family: str, options: str):
    foreign = hooked(family, options=options)
    model = attrib.from_transformer_lens(foreign, name="tiny")
    before = everything_of(foreign)
    check = attrib.check_model(model, foreign)
    assert_untouched(foreign, before)
    assert check.ok, str(check)
    assert check.unseen == ()
    assert set(check.errors) == sites_and_logits(model)
    assert attrib.check_model(spoilt(model, 1), foreign).first_difference == Site(1, "attn_out")


@pytest.mark.few
@pytest.mark.parametrize("options", ["raw", "all"])
@pytest.mark.parametrize("family", ["llama", "gptj", "opt", "gemma2"])
def test_bridges(family: Family, options: str, tmp_path: Path):
    foreign = tiny_bridge(family, tmp_path, options=options)
    model = attrib.from_transformer_lens(foreign, name="tiny")
    foreign.run_with_cache(prompt(3))  # a bridge puts hooks of its own in place when it first runs
    before = everything_of(foreign)
    check = attrib.check_model(model, foreign)
    assert_untouched(foreign, before)
    assert check.ok, str(check)
    assert check.unseen == ()
    assert set(check.errors) == sites_and_logits(model)
    assert attrib.check_model(spoilt(model, 1), foreign).first_difference == Site(1, "attn_out")


# ------------------------------------------------------------------------------------------------- loading


def test_a_folder_is_checked_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny("qwen3").save_pretrained(tmp_path)
    honest = model_folder.from_hugging_face
    monkeypatch.setattr(model_folder, "from_hugging_face", lambda *args, **named: spoilt(honest(*args, **named)))
    with pytest.raises(InputError, match=r"differs from Qwen3ForCausalLM, first at blocks\.2\.hook_attn_out"):
        attrib.load_model(tmp_path)


def test_a_transformer_lens_model_is_checked_when_it_is_loaded(monkeypatch: pytest.MonkeyPatch):
    from transformer_lens import HookedTransformer

    from attrib.adapters.models import transformer_lens

    model, honest = hooked("llama-2"), transformer_lens.from_transformer_lens
    monkeypatch.setattr(HookedTransformer, "from_pretrained", lambda name, **options: model)
    monkeypatch.setattr(transformer_lens, "from_transformer_lens", lambda *args, **named: spoilt(honest(*args, **named), 1))
    with pytest.raises(InputError, match=r"pythia-70m differs from HookedTransformer, first at blocks\.1\.hook_attn_out"):
        attrib.load_model("pythia-70m")


def test_the_real_model_is_its_original(smollm2_folder: Path):
    """What `attrib fetch` asks before it keeps the model."""
    from transformers import AutoModelForCausalLM

    foreign = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32, local_files_only=True).eval()
    check = attrib.check_model(attrib.load_model("smollm2-135m"), foreign)
    assert check.ok, str(check)
    assert len(check.errors) == 30 * 7 + 1


def test_a_fetched_model_is_checked_before_it_is_kept(smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder, local_files_only=True)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **named: tiny("llama"))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **named: tokenizer)
    kept = smollm2.dequantise(tmp_path / "tiny.gguf", tmp_path / "kept")
    assert smollm2.read(kept).fingerprint == attrib.from_hugging_face(tiny("llama")).fingerprint
    tables = smollm2.rotary_tables
    monkeypatch.setattr(smollm2, "rotary_tables", lambda base, d_head, n_ctx: tables(2 * base, d_head, n_ctx))
    with pytest.raises(InputError, match=r"smollm2-135m differs from LlamaForCausalLM, first at blocks\.0\.attn\.hook_z"):
        smollm2.dequantise(tmp_path / "tiny.gguf", tmp_path / "other")
