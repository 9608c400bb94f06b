"""The adjoint against plain torch.func on models, dictionaries, prompts, policies and budgets drawn at random."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import attrib
from attrib.core.types import BudgetError, InputError, Policy, Site
from tests.support.builders import dictionary, prompt, tiny
from tests.support.tolerances import FOREIGN, assert_close

KINDS = {
    "resid_pre": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_in": "ln2.hook_normalized",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
sites = st.tuples(st.integers(0, 3), st.sampled_from(list(KINDS)))


@st.composite
def models(draw: st.DrawFn) -> attrib.Model:
    """Both families; any number of heads, key heads and layers, and MLPs narrower than the stream."""
    heads, d_head = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([4, 6, 10]))
    if draw(st.booleans()):
        options = {"n_embd": heads * d_head, "n_head": heads, "n_layer": 4, "n_inner": draw(st.sampled_from([7, 40]))}
        return attrib.from_hugging_face(tiny("gpt2", **options)).to(dtype=torch.float64)
    options = {
        "hidden_size": heads * draw(st.sampled_from([6, 12])),
        "head_dim": d_head,
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])),
        "intermediate_size": draw(st.sampled_from([9, 48])),
        "num_hidden_layers": 4,
    }
    return attrib.from_hugging_face(tiny("llama", **options)).to(dtype=torch.float64)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """An attribution: its name, its arguments, and its options without the method."""
    model, (a, kind_a), (b, kind_b) = draw(models()), draw(sites), draw(sites)
    assume(Site(a, kind_a).depth < Site(b, kind_b).depth)
    assume((kind_a, kind_b, b) != ("resid_post", "resid_pre", a + 1))  # one and the same place
    rule: Any = draw(st.sampled_from(["topk", "standard", "jumprelu"]))
    k = {"k": draw(st.sampled_from([1, 4]))} if rule == "topk" else {}
    source, target = (
        dictionary(rule, site=f"blocks.{layer}.{KINDS[kind]}", d_in=model.config.d_model, d_sae=30, dtype=torch.float64, **k)
        for layer, kind in ((a, kind_a), (b, kind_b))
    )
    tokens = [prompt(length, seed=length) for length in draw(st.lists(st.sampled_from([1, 2, 5, 9, 21]), min_size=1, max_size=3))]
    options = {"policy": Policy(*(draw(st.sampled_from(["exact", "frozen"])) for _ in range(3)))}
    match draw(st.sampled_from(["token_to_latent", "latent_to_latent", "latent_to_logit"])):
        case "token_to_latent":
            return "token_to_latent", (model, target, tokens), options
        case "latent_to_latent":
            return "latent_to_latent", (model, source, target, tokens), options | {"error": draw(st.booleans())}
        case name:
            return name, (model, source, tokens), options | {"logits": attrib.TopLogits(3), "error": draw(st.booleans())}


@st.composite
def cut_calls(draw: st.DrawFn) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The same with up to three dictionaries on the way."""
    name, arguments, options = draw(calls())
    width, cuts = arguments[0].config.d_model, []
    for seed, (layer, kind) in enumerate(draw(st.lists(sites, min_size=1, max_size=3))):
        rules = ["topk", "standard"] + (["jumprelu_skip_transcoder", "transcoder"] if kind == "mlp_in" else [])
        rule, scale = draw(st.sampled_from(rules)), draw(st.sampled_from(["none", "layer_norm", "constant_norm_rescale"]))
        more: dict[str, Any] = ({"k": 4} if rule == "topk" else {}) | ({} if "transcoder" in rule else {"normalize_activations": scale})
        site = f"blocks.{layer}.{KINDS[kind].replace('ln2.hook_normalized', 'mlp.hook_in')}"
        cuts.append(dictionary(rule, site=site, d_in=width, d_sae=30, dtype=torch.float64, seed=seed, **more))
    options |= {"cuts": cuts, "effect": draw(st.sampled_from(["direct", "total"]))}
    try:
        attrib.attribution.questions.check(
            name, arguments[0], *_ends(name, arguments, options), arguments[-1], cuts=cuts, effect=options["effect"]
        )
    except InputError as refused:
        assume("both replace" not in str(refused))
        raise
    return name, arguments, options


def _ends(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    match name:
        case "token_to_latent":
            return None, arguments[1]
        case "latent_to_latent":
            return arguments[1], arguments[2]
    return arguments[1], options["logits"]


@pytest.mark.parametrize(("drawn", "examples"), [(calls(), 40), (cut_calls(), 40)], ids=["alone", "through cuts"])
def test_the_adjoint_is_the_reference(drawn: st.SearchStrategy[Any], examples: int) -> None:
    largest: dict[str, list[float]] = {}

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(call=drawn, budget=st.sampled_from([None, 1_500_000]))
    def compare(call: tuple[str, tuple[Any, ...], dict[str, Any]], budget: int | None) -> None:
        name, arguments, options = call
        attribute, size = getattr(attrib, name), {} if budget is None else {"budget": budget}
        want = attribute(*arguments, **options, method="torch.func")
        try:
            got = attribute(*arguments, **options, **size)
        except BudgetError:
            assert budget, "there is room for all of these with the usual budget"
            return
        for number in range(len(arguments[-1])):
            assert_close(got.dense(number), want.dense(number), FOREIGN, f"{name} into {arguments[1].site}, {options}, {size}")
            largest.setdefault(f"{name}, {budget}", []).append(float(want.dense(number).abs().amax()) if want.dense(number).numel() else 0)

    compare()
    assert {name.split(",")[0] for name in largest} == {"token_to_latent", "latent_to_latent", "latent_to_logit"}
    assert sum(not name.endswith("None") for name in largest) >= 3, "small budgets are compared too"
    assert all(max(values) > 0.1 for values in largest.values()), "an empty comparison would prove nothing"
