"""What dictionaries read, make active, decode and leave out: against SAELens' own cache and hooks."""

from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Latents, dictionary_values, intervene
from attrib.core.types import InputError, Site
from tests.support.builders import all_sites, build, prompt, to_dense
from tests.support.cut_cases import cross
from tests.support.hooked import hooked
from tests.support.lens_splice import folded, hooks_of, put_in
from tests.support.tolerances import assert_close

IDS = prompt(7)
PARTS = {
    "input": "hook_sae_input",
    "pre_activations": "hook_sae_acts_pre",
    "latents": "hook_sae_acts_post",
    "reconstruction": "hook_sae_recons",
    "error": "hook_sae_error",
}
"""What sae-lens calls them."""


@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saes_are_what_sae_lens_caches(errors: bool, dtype: torch.dtype) -> None:
    from sae_lens import HookedSAETransformer

    lens = hooked("gpt2", dtype)
    theirs = HookedSAETransformer(lens.cfg)
    theirs.load_state_dict(lens.state_dict())
    sites = ["blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.1.hook_attn_out", "blocks.1.hook_resid_post"]
    foreign, dictionaries = put_in(sites, dtype, kinds=["standard", "topk", "jumprelu", "gated"])
    with torch.no_grad():
        _, cache = theirs.run_with_cache_with_saes(IDS[None], saes=foreign, use_error_term=errors)
        found = dictionary_values(attrib.from_transformer_lens(lens), dictionaries, IDS, errors=errors)
    for site, own in zip(sites, found, strict=True):
        for part, name in PARTS.items():
            if part == "error" and not errors:  # which sae-lens does not compute
                want = cache[f"{site}.hook_sae_input"][0] - cache[f"{site}.hook_sae_recons"][0]
            else:
                want = cache[f"{site}.{name}"][0]
            assert_close(getattr(own, part), want, what=f"{part} at {site}")


@pytest.mark.parametrize("errors", [False, True])
def test_what_a_transcoder_leaves_out_is_of_the_mlp_on_this_pass(errors: bool) -> None:
    lens, model = folded("llama-3.1")
    foreign, dictionaries = put_in(["blocks.0.mlp.hook_in", "blocks.1.hook_resid_pre", "blocks.1.mlp.hook_in"])
    read: dict[int, Tensor] = {}
    brought: dict[int, Tensor] = {}
    hooks: list[tuple[str, Any]] = []
    for number, (module, dictionary) in enumerate(zip(foreign, dictionaries, strict=True)):
        reads, writes = hooks_of(dictionary)

        def keep(value: Tensor, hook: Any, number: int = number) -> None:
            read[number] = value

        def write(value: Tensor, hook: Any, number: int = number, module: Any = module) -> Tensor:
            brought[number] = value
            return value if errors else module.decode(module.encode(read[number]))

        hooks += [(reads, keep), (writes, write)]
    with torch.no_grad():
        lens.run_with_hooks(IDS[None], fwd_hooks=hooks)
        for number, own in enumerate(dictionary_values(model, dictionaries, IDS, errors=errors)):
            latents = foreign[number].encode(read[number])
            assert_close(own.input, read[number][0])
            assert_close(own.latents, latents[0])
            assert_close(own.reconstruction, foreign[number].decode(latents)[0])
            assert_close(own.error, (brought[number] - foreign[number].decode(latents))[0])


def test_layers_that_write_together_have_one_error() -> None:
    model = build("llama", torch.float64)
    dictionaries = [one.ours for one in cross(model, range(1, 4))]
    found = dictionary_values(model, dictionaries, IDS, errors=True)
    true = attrib.capture(model, IDS, all_sites())
    written = [own.reconstruction for own in found]
    width = model.config.d_model
    for layer in (1, 2, 3):
        parts = [written[n][:, (layer - 1 - n) * width : (layer - n) * width] for n in range(layer)]
        want = true[Site(layer, "mlp_out")] - sum(parts[1:], parts[0])
        for n in range(layer):
            assert_close(found[n].error[:, (layer - 1 - n) * width : (layer - n) * width], want)
    leaves = attrib.replace(model, dictionaries).leaves(IDS)
    assert_close(found[0].error, torch.cat(leaves.errors, dim=-1))
    for own, cut, d in zip(found, leaves.cuts, dictionaries, strict=True):
        assert_close(own.latents, to_dense(cut.latents, len(IDS), d.d_sae))


def test_prompts_of_any_lengths_and_derivatives() -> None:
    model, sites = build("gpt2", torch.float64), ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"]
    _, dictionaries = put_in(sites)
    prompts = [IDS, prompt(3, seed=2)]
    found = dictionary_values(model, dictionaries, prompts)
    for own, ids in zip(found, prompts, strict=True):
        want = intervene(model, dictionaries, ids, errors=False, values=[Latents(0), Latents(1)])
        for number, values in enumerate(own):
            assert_close(values.latents, want[Latents(number)])
    (alone,) = dictionary_values(model, dictionaries[1], IDS)
    assert not torch.equal(alone.input, found[0][1].input), "the second one read what the first one left"
    assert "DictionaryValues(input=float64[7, 32]" in repr(alone)


@pytest.mark.parametrize(
    ("dictionaries", "options", "said"),
    [
        ([], {}, "dictionaries: none given"),
        (None, {"errors": "live"}, "errors: 'live'; expected True or False"),
        (None, {"tokens": []}, "tokens: no prompts given"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(dictionaries: Any, options: dict[str, Any], said: str) -> None:
    given = put_in(["blocks.1.hook_resid_pre"])[1] if dictionaries is None else dictionaries
    with pytest.raises(InputError, match=said):
        dictionary_values(build("gpt2", torch.float64), given, **{"tokens": IDS} | options)
