"""A dictionary reads where its trainer read, and the name that is printed is the name of the place that is read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import attrib
from attrib.core.types import SITE_KINDS, InputError, Site
from attrib.dictionaries.dictionary import Dictionary, encode
from attrib.dictionaries.fit import check_fit, fitted
from attrib.models.transformer import Model
from tests.adapters.test_transformer_lens import tiny_bridge
from tests.support.builders import D_MODEL, build, normal, prompt, sae
from tests.support.hooked import FAMILIES, hooked
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TransformerLens 3.9 announces its own 4.0

TOKENS = prompt(8)
HOOK = "blocks.1.hook_mlp_in"


def named(hook: str, kind: str = "standard", **metadata: Any) -> Any:
    """A sae-lens SAE or transcoder of a hook that attrib may have no name for."""
    made = sae(kind, D_MODEL, torch.float64, site="blocks.1.hook_resid_pre")
    made.cfg.metadata.hook_name = hook
    made.cfg.metadata.model_name = None
    for key, value in metadata.items():
        made.cfg.metadata[key] = value
    return made


def at_hook(foreign: Any) -> Tensor:
    """What TransformerLens hands to its optional hook."""
    foreign.set_use_hook_mlp_in(True)
    with torch.no_grad():
        _, cache = foreign.run_with_cache(TOKENS[None])
    foreign.set_use_hook_mlp_in(False)
    return cache[HOOK][0].double()


def read_by(model: Model, ours: Dictionary) -> Tensor:
    """The latents that attrib gives, where the dictionary reads."""
    ours = fitted(model, ours, "source")
    return encode(ours, attrib.capture(model, TOKENS, [ours.site])[ours.site])


SEQUENTIAL = [family for family, facts in FAMILIES.items() if not facts.get("parallel_attn_mlp")]
PARALLEL = [family for family in FAMILIES if family not in SEQUENTIAL]


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_hook_mlp_in_is_read_before_the_norm(family: str):
    """With random norm weights: a reading behind the norm is another vector altogether."""
    foreign = hooked(family, torch.float64)
    trained = named(HOOK)
    ours, model = attrib.from_sae_lens(trained), attrib.from_transformer_lens(foreign, name="tiny")
    assert ours.site == Site(1, "resid_mid")
    with torch.no_grad():
        assert_close(read_by(model, ours), trained.encode(at_hook(foreign)), what=family)
    behind = attrib.from_sae_lens(named("blocks.1.mlp.hook_in"))
    if model.config.pre_norm:
        assert not torch.allclose(read_by(model, behind), read_by(model, ours), rtol=0.1)


@pytest.mark.parametrize("family", PARALLEL)
def test_hook_mlp_in_of_parallel_blocks_is_resid_pre(family: str, tmp_path: Path):
    foreign = hooked(family, torch.float64)
    trained = named(HOOK)
    model = attrib.from_transformer_lens(foreign, name="tiny")
    with pytest.raises(InputError, match=r"source: blocks\.1\.hook_mlp_in was trained on blocks\.1\.hook_mlp_in, which in the parallel .*"
                       r"is blocks\.1\.hook_resid_pre\. Load it with site='blocks\.1\.hook_resid_pre'"):  # fmt: skip
        attrib.latent_to_logit(model, attrib.from_sae_lens(trained), TOKENS)
    trained.save_model(tmp_path)
    ours = attrib.load_dictionary(tmp_path, site="blocks.1.hook_resid_pre").to(dtype=torch.float64)
    with torch.no_grad():
        assert_close(read_by(model, ours), trained.encode(at_hook(foreign)), {torch.float64: 1e-5}, what=family)
    with pytest.raises(InputError, match=r"site: blocks\.1\.hook_resid_post, but dictionary .* was made for blocks\.1\.hook_mlp_in"):
        attrib.load_dictionary(tmp_path, site="blocks.1.hook_resid_post")


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "olmo2"])
def test_a_bridge_fires_it_at_the_same_place(family: Any, tmp_path: Path):
    foreign = tiny_bridge(family, tmp_path, options="raw")
    trained = named(HOOK)
    with torch.no_grad():
        want = trained.encode(at_hook(foreign))
    model = attrib.from_transformer_lens(foreign, name="tiny").to(dtype=torch.float64)
    assert_close(read_by(model, attrib.from_sae_lens(trained)), want, {torch.float64: 1e-4})


def test_a_name_that_means_two_places_is_taken_for_neither():
    model = build("gpt2")
    message = r"fires this hook before the norm\. Take 'blocks\.1\.hook_resid_mid'.*'blocks\.1\.mlp\.hook_in' for what enters"
    for call in (
        lambda: Site.parse(HOOK),
        lambda: attrib.capture(model, TOKENS, [HOOK]),
        lambda: attrib.adapters.from_tensors(site=HOOK, W_enc=torch.ones(4, 6), W_dec=torch.ones(6, 4)),
        lambda: attrib.segment(model, HOOK, "blocks.2.hook_resid_pre"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.few
@pytest.mark.parametrize("kind", SITE_KINDS)
def test_the_name_that_is_printed_is_the_place_that_is_read(kind: Any, tmp_path: Path):
    """By its own name every site is what a bridge has in its cache under it, with norms that have weights."""
    foreign = tiny_bridge("gpt2", tmp_path, options="raw")
    model, site = attrib.from_transformer_lens(foreign, name="tiny"), Site(1, kind)
    with torch.no_grad():
        _, cache = foreign.run_with_cache(TOKENS[None])
    there = cache[str(site)][0]
    assert Site.parse(str(site)) == site
    assert_close(attrib.capture(model, TOKENS, [str(site)])[site], there.flatten(-2) if there.ndim == 3 else there)


def test_stored_names_are_names_of_the_place():
    model = build("gpt2")
    ours = attrib.from_sae_lens(sae("transcoder", D_MODEL, site="blocks.1.mlp.hook_in"))
    edges = attrib.token_to_latent(model, ours, TOKENS, keep=attrib.TopK(2))
    assert (edges.targets.site, edges.call["target"]["site"]) == ("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_in")


def test_gemma_scope_2_by_sae_lens_is_read_where_its_authors_say():
    """sae-lens calls it hook_mlp_in and writes the module of transformers beside: behind the norm."""
    module = "model.layers.1.pre_feedforward_layernorm.output"
    made = named(HOOK, "transcoder", hf_hook_name=module, hook_name_out="blocks.1.hook_mlp_out")
    ours = attrib.from_sae_lens(made)
    assert (ours.site, ours.config.hook_name) == (Site(1, "mlp_in"), module)


# ------------------------------------------------------------------------- what a module gives is not what is added


def circuit_tracer(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"model_kind": "transcoder_set", "feature_input_hook": "hook_resid_mid", "feature_output_hook": "mlp.hook_out"} | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    state = {"W_enc": normal(48, D_MODEL), "W_dec": normal(48, D_MODEL), "b_enc": normal(48), "b_dec": normal(D_MODEL)}
    for layer in range(2):
        save_file(state, folder / f"layer_{layer}.safetensors")
    return folder


def sparsify(folder: Path) -> Path:
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "k": 5, "d_in": D_MODEL, "num_latents": 48}))
    state = {"encoder.weight": normal(48, D_MODEL), "encoder.bias": normal(48), "W_dec": normal(48, D_MODEL), "b_dec": normal(D_MODEL)}
    save_file(state, folder / "sae.safetensors")
    return folder


def test_what_a_module_gives_is_refused_where_a_norm_follows(tmp_path: Path):
    made = [
        attrib.load_dictionary(circuit_tracer(tmp_path / "set"), layer=1),
        attrib.load_dictionary(sparsify(tmp_path / "layers.1.mlp")),
        attrib.load_dictionary(sparsify(tmp_path / "layers.1.self_attn")),
    ]
    for ours in made:
        check_fit(build("gpt2"), ours, "source")
        for family in ("gemma2", "olmo2"):
            with pytest.raises(InputError, match=r"source: .* was trained on what .* gives, which tiny-\w+ norms before it is added"):
                check_fit(build(family), ours, "source")
    behind = attrib.load_dictionary(circuit_tracer(tmp_path / "set", feature_output_hook="hook_mlp_out"), layer=1)
    check_fit(build("gemma2"), behind, "source")


# --------------------------------------------------------------------------------------------------- files of before


def test_what_attrib_once_called_hook_mlp_in_is_mlp_in(tmp_path: Path):
    """The very name that old files have; their groups are named by it too."""
    ours = attrib.from_sae_lens(sae("transcoder", D_MODEL, site="blocks.1.mlp.hook_in"))
    edges = attrib.token_to_latent(build("gpt2"), ours, TOKENS, keep=attrib.TopK(2))
    old = replace(edges, targets=replace(edges.targets, site=HOOK))
    attrib.save(tmp_path / "old.h5", [old])
    with attrib.open(tmp_path / "old.h5") as store:
        assert [block.target for block in store.blocks] == [HOOK]
        for asked in (None, HOOK, "blocks.1.mlp.hook_in", Site(1, "mlp_in")):
            read = store.edges(target=asked)
            assert read.targets.site == "blocks.1.mlp.hook_in"
            assert torch.equal(read.attribution, edges.attribution)
