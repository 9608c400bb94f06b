"""The adjoint against plain torch.func on models, dictionaries, prompts, policies and budgets drawn at random."""

import random
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

import attrib
from attrib.core.types import BudgetError, InputError, Policy, Site, SiteKind
from tests.support.builders import Family, dictionary, prompt, tiny
from tests.support.tolerances import FOREIGN, assert_close

KINDS: dict[SiteKind, str] = {
    "resid_pre": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_in": "ln2.hook_normalized",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
SITES = [*product(range(4), KINDS)]
ENDS = [
    ((a, kind_a), (b, kind_b))
    for (a, kind_a), (b, kind_b) in product(SITES, SITES)
    if Site(a, kind_a).depth < Site(b, kind_b).depth and (kind_a, kind_b, b) != ("resid_post", "resid_pre", a + 1)
]
"""A site, and one after it that is another place."""
NAMES = ("token_to_latent", "latent_to_latent", "latent_to_logit")
Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""An attribution: its name, its arguments, and its options without the method."""


@cache
def made(family: Family, **options: int) -> attrib.Model:
    return attrib.from_hugging_face(tiny(family, **options)).to(dtype=torch.float64)


def model_of(rng: random.Random) -> attrib.Model:
    """Both families; any number of heads, key heads and layers, and MLPs narrower than the stream."""
    heads, d_head = rng.choice([1, 2, 3, 4]), rng.choice([4, 6, 10])
    if rng.random() < 0.5:
        return made("gpt2", n_embd=heads * d_head, n_head=heads, n_layer=4, n_inner=rng.choice([7, 40]))
    return made(
        "llama",
        hidden_size=heads * rng.choice([6, 12]),
        head_dim=d_head,
        num_attention_heads=heads,
        num_key_value_heads=rng.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        intermediate_size=rng.choice([9, 48]),
        num_hidden_layers=4,
    )


def call(rng: random.Random, name: str) -> Call:
    model, ((a, kind_a), (b, kind_b)) = model_of(rng), rng.choice(ENDS)
    rule = rng.choice(["topk", "standard", "jumprelu"])
    k = {"k": rng.choice([1, 4])} if rule == "topk" else {}
    source, target = (
        dictionary(rule, site=f"blocks.{layer}.{KINDS[kind]}", d_in=model.config.d_model, d_sae=30, dtype=torch.float64, **k)
        for layer, kind in ((a, kind_a), (b, kind_b))
    )
    lengths = [rng.choice([1, 2, 5, 9, 21]) for _ in range(rng.choice([1, 2, 3]))]
    tokens = [prompt(length, seed=length) for length in lengths]
    options: dict[str, Any] = {"policy": Policy(*(rng.choice(["exact", "frozen"]) for _ in range(3)))}
    match name:
        case "token_to_latent":
            return name, (model, target, tokens), options
        case "latent_to_latent":
            return name, (model, source, target, tokens), options | {"error": rng.random() < 0.5}
    return name, (model, source, tokens), options | {"logits": attrib.TopLogits(3), "error": rng.random() < 0.5}


def through_cuts(rng: random.Random, name: str) -> Call:
    """The same with up to three dictionaries on the way."""
    while True:
        _, arguments, options = call(rng, name)
        width, cuts = arguments[0].config.d_model, []
        for seed, (layer, kind) in enumerate(rng.choices(SITES, k=rng.choice([1, 2, 3]))):
            rules = ["topk", "standard"] + (["jumprelu_skip_transcoder", "transcoder"] if kind == "mlp_in" else [])
            rule, scale = rng.choice(rules), rng.choice(["none", "layer_norm", "constant_norm_rescale"])
            more: dict[str, Any] = ({"k": 4} if rule == "topk" else {}) | ({} if "transcoder" in rule else {"normalize_activations": scale})
            site = f"blocks.{layer}.{KINDS[kind].replace('ln2.hook_normalized', 'mlp.hook_in')}"
            cuts.append(dictionary(rule, site=site, d_in=width, d_sae=30, dtype=torch.float64, seed=seed, **more))
        options |= {"cuts": cuts, "effect": rng.choice(["direct", "total"])}
        try:
            attrib.attribution.options.check(
                name, arguments[0], *_ends(name, arguments, options), arguments[-1], cuts=cuts, effect=options["effect"]
            )
        except InputError as refused:
            if "both replace" in str(refused):
                continue
            raise
        return name, arguments, options


def _ends(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    match name:
        case "token_to_latent":
            return None, arguments[1]
        case "latent_to_latent":
            return arguments[1], arguments[2]
    return arguments[1], options["logits"]


@pytest.mark.long
@pytest.mark.parametrize("drawn", [call, through_cuts], ids=["alone", "through cuts"])
def test_the_adjoint_is_the_reference(drawn: Any) -> None:
    """Each call with the usual budget and with a small one."""
    largest: dict[str, list[float]] = {}
    for seed in range(24):
        name, arguments, options = drawn(random.Random(f"{drawn.__name__} {seed}"), NAMES[seed % 3])
        attribute = getattr(attrib, name)
        want = attribute(*arguments, **options, method="torch.func")
        for size in ({}, {"budget": 1_500_000}):
            try:
                got = attribute(*arguments, **options, **size)
            except BudgetError:
                assert size, "there is room for all of these with the usual budget"
                continue
            for number in range(len(arguments[-1])):
                assert_close(got.dense(number), want.dense(number), FOREIGN, f"seed {seed}: {name}, {options}, {size}")
                reached = float(want.dense(number).abs().amax()) if want.dense(number).numel() else 0
                largest.setdefault(f"{name}, {size}", []).append(reached)
    assert {name.split(",")[0] for name in largest} == set(NAMES)
    assert sum("budget" in name for name in largest) >= 3, "small budgets are compared too"
    assert all(max(values) > 0.1 for values in largest.values()), "an empty comparison would prove nothing"
