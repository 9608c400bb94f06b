"""A pass with a cache gives what a pass without gives: for every family, however tokens are split, alone and in a batch."""

import pytest
import torch
from torch import Tensor

import attrib
from attrib.core.types import InputError, UnsupportedError
from attrib.models.transformer import Model
from attrib.passes.cached import Cache, empty_cache, extended, stacked
from attrib.passes.cached import cached_forward as cached
from tests.support.builders import ALL_FAMILIES, ALL_VARIANTS, N_CTX, attrib_model, build, normal, prompt

DOUBLE = torch.float64
WINDOWED = ("mistral-tied", "gpt_neo-local", "qwen2-window", "gemma3_text-uneven", "llama-rope3", "gemma2-no-caps")


def in_pieces(model: Model, ids: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Logits of a pass that is told tokens bit by bit."""
    cache, found = None, []
    for piece in ids.split(sizes, -1):
        logits, cache = cached(model, piece, cache)
        found.append(logits)
    return torch.cat(found, -2)


BARE = ("gpt2 without MLPs", "llama without norms", "gemma2 without norms and MLPs")


@pytest.mark.few
@pytest.mark.parametrize("family", [*ALL_FAMILIES, *BARE])
def test_a_pass_in_pieces_is_the_whole_pass(family):
    model, ids = build(family, DOUBLE), prompt(12)
    whole = attrib.forward(model, ids)
    for sizes in ((12,), (7, 5), (1,) * 12):
        torch.testing.assert_close(in_pieces(model, ids, sizes), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.few
@pytest.mark.parametrize("variant", WINDOWED)
def test_windows_tables_and_caps_are_those_of_the_whole_pass(variant):
    family, options = ALL_VARIANTS[variant]
    model, ids = attrib_model(family, DOUBLE, **options), prompt(20)
    torch.testing.assert_close(in_pieces(model, ids, (9, 1, 1, 6, 3)), attrib.forward(model, ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "opt"])
def test_rows_of_different_lengths_do_not_see_each_other_s_empty_slots(family):
    model = build(family, DOUBLE)
    prompts = [prompt(n, seed=n) for n in (3, 11, 1)]
    batch = stacked([extended(model, ids, empty_cache(model))[1] for ids in prompts])
    new = prompt(4, batch=(3,), seed=9)
    logits, _ = cached(model, new, batch)
    for row, ids in enumerate(prompts):
        torch.testing.assert_close(logits[row], attrib.forward(model, torch.cat([ids, new[row]]))[-4:], rtol=1e-9, atol=1e-9)
    some = batch.rows([2, 0])  # the longest is gone, and its slots with it
    assert some.positions.shape == (2, 3)
    torch.testing.assert_close(cached(model, new[[2, 0]], some)[0], logits[[2, 0]], rtol=1e-9, atol=1e-9)


def test_a_cache_is_left_as_it_was_and_serves_two_continuations():
    model, ids = build("llama", DOUBLE), prompt(8)
    _, cache = cached(model, ids)
    before = [key.clone() for key in cache.keys]
    one, two = (cached(model, prompt(3, seed=seed), cache)[0] for seed in (5, 6))
    assert all(torch.equal(a, b) for a, b in zip(before, cache.keys, strict=True))
    for seed, found in ((5, one), (6, two)):
        torch.testing.assert_close(found, attrib.forward(model, torch.cat([ids, prompt(3, seed=seed)]))[-3:], rtol=1e-9, atol=1e-9)


def test_a_batch_of_one_length_is_a_batch():
    model, ids = build("gpt2", DOUBLE), prompt(9, batch=(2,))
    torch.testing.assert_close(in_pieces(model, ids, (4, 5)), attrib.forward(model, ids), rtol=1e-9, atol=1e-9)


def test_what_is_put_stands_at_the_new_positions():
    model, ids = build("llama", DOUBLE), prompt(8)
    site, direction = "blocks.2.hook_resid_pre", normal(32, dtype=DOUBLE)
    _, cache = cached(model, ids[:5])
    edited, _ = cached(model, ids[5:], cache, put={site: lambda x: x + direction})
    behind = torch.arange(8)[:, None] >= 5
    whole = attrib.forward(model, ids, put={site: lambda x: torch.where(behind, x + direction, x)})
    torch.testing.assert_close(edited, whole[5:], rtol=1e-9, atol=1e-9)


def test_it_is_differentiable_and_maps():
    model, ids = build("gpt2", DOUBLE), prompt(6)
    _, cache = cached(model, ids[:4])
    direction = normal(32, dtype=DOUBLE)

    def metric(strength: Tensor) -> Tensor:
        return cached(model, ids[4:], cache, put={"blocks.1.hook_resid_pre": lambda x: x + strength * direction})[0][-1, 3]

    def plain(strength: Tensor) -> Tensor:
        behind = torch.arange(6)[:, None] >= 4
        return attrib.forward(model, ids, put={"blocks.1.hook_resid_pre": lambda x: x + behind * strength * direction})[-1, 3]

    at = torch.tensor(0.3, dtype=DOUBLE)
    torch.testing.assert_close(torch.func.grad(metric)(at), torch.func.grad(plain)(at), rtol=1e-9, atol=1e-9)
    steps = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    torch.testing.assert_close(torch.func.vmap(metric)(steps), torch.func.vmap(plain)(steps), rtol=1e-9, atol=1e-9)


def test_what_does_not_go_together_is_refused():
    model, ids = build("gpt2"), prompt(8)
    _, cache = cached(model, ids)
    with pytest.raises(InputError, match=r"cache: it holds 4 layers of 2 key heads of 10, and tiny-gpt2 has 4 of 4 of 8"):
        cached(model, ids, cached(build("llama"), ids)[1])
    with pytest.raises(InputError, match=r"tokens: shape \[2, 3\] behind a cache of the batch \[\]"):
        cached(model, prompt(3, batch=(2,)), cache)
    with pytest.raises(InputError, match=f"with the cache {N_CTX + 1} positions, and tiny-gpt2 has {N_CTX}"):
        cached(model, prompt(N_CTX - 7), cache)
    with pytest.raises(InputError, match="tokens: none"):
        cached(model, ids[:0], cache)
    with pytest.raises(InputError, match=r"cache: it holds no layer"):
        cached(model, ids, Cache((), (), torch.zeros(0, dtype=torch.int64)))


def test_a_model_that_sees_both_ways_has_no_cache():
    with pytest.raises(UnsupportedError, match="attention that is not causal, so that old positions would see new ones"):
        cached(build("llama without masks"), prompt(3))
