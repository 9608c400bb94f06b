"""Random calls from a seed against torch.func; `make torture` runs thousands. And the grid of ends that a walk too far was found in."""

import random
from itertools import product

import pytest
import torch

import attrib
from attrib.core.types import Direction, InputError, Site
from tests.support.builders import build, dictionary, normal, prompt
from tests.support.tolerances import ROUNDING, assert_close
from tests.support.torture_cases import BARE, RefusedError, budget_fault_of, configuration, fault_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CALLS = 40
STARTS = [None, *(Site(layer, kind) for layer in range(3) for kind in ("resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post"))]
STOPS = [Site(layer, kind) for layer in range(4) for kind in ("resid_pre", "resid_mid", "attn_out", "mlp_in", "mlp_out", "resid_post")]


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, CALLS, 20))
def test_silent_random_configurations(first: int):
    answered = 0
    for seed in range(first, first + 20):
        case = configuration(seed)
        try:
            assert (fault := fault_of(case)) is None, f"python -m tests.support.torture --seed {seed} --count 1: {fault}\n{case}"
        except RefusedError:
            continue
        answered += 1
    assert answered >= 12


@pytest.mark.parametrize("first", range(0, CALLS, 20))
def test_silent_random_configurations_of_bare_models(first: int):
    """Without causal masks, norms, or MLPs, or several of these."""
    answered = 0
    for seed in range(first, first + 20):
        case = configuration(seed, BARE)
        try:
            assert (fault := fault_of(case)) is None, f"python -m tests.support.torture --bare --seed {seed} --count 1: {fault}\n{case}"
            assert seed % 8 or (fault := budget_fault_of(case)) is None, f"{fault}\n{case}"
        except RefusedError:
            continue
        answered += 1
    assert answered >= 12


def attribute(start: Site | None, stop: Site, is_direction: bool, **options: object) -> attrib.Edges:
    model, ids = build("llama"), [prompt(4)]
    target = dictionary("topk", stop, seed=7)
    if start is None:
        return attrib.token_to_latent(model, target, ids, **options)
    source = dictionary("topk", start)
    if is_direction:
        vector = normal(target.d_in)
        return attrib.latent_to_logit(model, source, ids, logits=Direction(vector, stop), **options)
    return attrib.latent_to_latent(model, source, target, ids, **options)


@pytest.mark.few
@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "tf32"}, {"precision_rows": 4}], ids=str)
def test_the_stream_behind_a_block_is_the_one_before_the_next(options: dict[str, object]):
    """Named either way, from places before it and from the tokens."""
    cases = [(start, layer, way) for start, layer, way in product(STARTS[1:], range(3), (False, True)) if start.depth < (layer + 1, 0)]
    for start, layer, is_direction in [(None, 0, False), *random.Random(1).sample(cases, 10)]:
        post, pre = Site(layer, "resid_post"), Site(layer + 1, "resid_pre")
        behind, before = (attribute(start, stop, is_direction, **options) for stop in (post, pre))
        assert_close(behind.dense(0), before.dense(0), ROUNDING, what=(start, layer))
        assert behind.call["precision_error"]["relative_frobenius"] < 0.05


def test_pairs_of_places_with_rows_in_float64():
    """Sampled from all pairs, with and without the source's error and cuts: float64 rows at the same point agree."""
    rng = random.Random(0)
    model = build("gpt2")
    cuts = [dictionary("topk", "blocks.1.hook_attn_out", seed=11), dictionary("standard", "blocks.2.hook_mlp_out", seed=12)]
    pairs = [(start, stop) for start, stop in product(STARTS[1:], STOPS) if start.depth < stop.depth]
    for start, stop in rng.sample(pairs, 12):
        source, target = dictionary("topk", start), dictionary("topk", stop, seed=7)
        options = {
            "error": rng.random() < 0.5,
            "cuts": rng.choice(([], cuts[:1], cuts[1:], cuts)),
            "effect": rng.choice(("direct", "total")),
        }
        try:
            exact = attrib.latent_to_latent(model, source, target, [prompt(6)], precision_rows=8, **options)
        except InputError as refused:
            assert "both replace" in str(refused)  # noqa: PT017
            continue
        reduced = attrib.latent_to_latent(model, source, target, [prompt(6)], dtype="bfloat16", **options)
        assert exact.call["precision_error"]["relative_frobenius"] < 1e-4, (start, stop, options)
        assert reduced.call["precision_error"]["relative_frobenius"] < 0.1, (start, stop, options)
        assert torch.equal(reduced.targets.latent, exact.targets.latent)
