"""Several dictionaries in one call: each result is its own call's, whatever shares the sweep. Run files have them too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib.attribution import each
from attrib.core.edges import Nodes
from attrib.core.types import InputError
from attrib.runs.spec import Loaded, Work, checked
from tests.paths.test_cuts import put_in
from tests.support.attribution_cases import LATE, LENGTHS, Lens, assert_same, prompts, without_shape_checks
from tests.support.builders import build, dictionary
from tests.support.cut_cases import cross, ours

LENSES = (Lens("standard"), Lens("jumprelu", "blocks.2.hook_resid_pre", seed=5), Lens("topk", "blocks.2.attn.hook_z", seed=6))
TARGET = Lens("jumprelu", LATE, seed=7)
SHORT = (1, 4)
CORRUPT = [ids.flip(0) for ids in prompts(*SHORT)]


def sources_of(family: str) -> list[Any]:
    """SAEs of the stream and of heads, and a transcoder, which writes elsewhere than it reads."""
    return [*(lens.dictionary(family) for lens in LENSES), dictionary("transcoder", "blocks.1.mlp.hook_in", torch.float64)]


def nodes(table: Nodes) -> tuple[Any, ...]:
    """What says which they are."""
    return table.site, table.labels, table.latent.tolist(), table.position.tolist()


def assert_each(found: list[attrib.Edges], alone: list[attrib.Edges]) -> None:
    """The same nodes, kept edges, values, sums and records."""
    assert len(found) == len(alone) > 1
    for mine, theirs in zip(found, alone, strict=True):
        assert (mine.kind, dict(mine.call)) == (theirs.kind, dict(theirs.call))
        assert (nodes(mine.sources), nodes(mine.targets)) == (nodes(theirs.sources), nodes(theirs.targets))
        assert mine.indices.tolist() == theirs.indices.tolist()
        assert mine.l1.any()
        for name in ("gradient", "attribution", "total", "l1", *(() if theirs.gap is None else ("gap",))):
            assert_same(getattr(mine, name), getattr(theirs, name), name)
        assert_same(mine.sources.step, theirs.sources.step, "step")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sources each shared sweep has had."""
    counts, plain = list[int](), each.swept

    def swept(model: Any, sources: Any, *rest: Any) -> Any:
        counts.append(len(sources))
        return plain(model, sources, *rest)

    monkeypatch.setattr(each, "swept", swept)
    return counts


BIASED: dict[str, Any] = {"error": "source", "bias": True, "policy": attrib.Policy("frozen", "frozen", "frozen")}
SHARED: list[dict[str, Any]] = [
    {}, {"policy": attrib.LINEAR, "positions": "last"}, {"rule": attrib.Gradient(), "keep": attrib.TopK(3)}, {"error": "source"}, BIASED,
]  # fmt: skip
APART: list[dict[str, Any]] = [
    {"error": False}, {"rule": attrib.IntegratedGradients(3)}, {"rule": attrib.Patching(CORRUPT)}, {"rule": attrib.Ablation()},
    {"method": "torch.func"},
]  # fmt: skip


@pytest.mark.few
@pytest.mark.parametrize("options", [*SHARED, *APART], ids=lambda options: "-".join(options) or "plain")
def test_each_source_has_what_its_own_call_gives(options: dict[str, Any], counted: list[int]):
    model, target, is_shared = build("gpt2", torch.float64), TARGET.dictionary("gpt2"), options in SHARED
    sources, given = (sources_of("gpt2"), prompts(*LENGTHS)) if is_shared else (sources_of("gpt2")[1:3], prompts(*SHORT))
    found = attrib.latent_to_latent(model, sources, target, given, **options)
    assert_each(found, [attrib.latent_to_latent(model, source, target, given, **options) for source in sources])
    logits = attrib.latent_to_logit(model, sources[:2], given, logits=attrib.TopLogits(2), **options)
    assert_each(logits, [attrib.latent_to_logit(model, source, given, logits=attrib.TopLogits(2), **options) for source in sources[:2]])
    assert counted == ([4, 2] if is_shared else [])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tokens_to_each_target(family: Any, counted: list[int]):
    model, targets = build(family, torch.float32), [lens.dictionary(family, torch.float32) for lens in (LENSES[1], TARGET)]
    found = attrib.token_to_latent(model, targets, prompts(*LENGTHS))
    assert_each(found, [attrib.token_to_latent(model, target, prompts(*LENGTHS)) for target in targets])
    assert counted == [1]


@pytest.mark.parametrize("effect", ["direct", "total"])
@pytest.mark.parametrize("error", [True, "source"])
def test_past_cuts_and_from_layers_of_a_cross_layer_transcoder(effect: Any, error: Any, counted: list[int]):
    model, cuts = build("gpt2", torch.float64), put_in("gpt2", "transcoders")
    sources, target = [LENSES[0].dictionary("gpt2"), *cuts[:2]], TARGET.dictionary("gpt2")
    options: dict[str, Any] = {"cuts": cuts, "effect": effect, "error": error}
    found = attrib.latent_to_latent(model, sources, target, prompts(*LENGTHS), **options)
    assert_each(found, [attrib.latent_to_latent(model, source, target, prompts(*LENGTHS), **options) for source in sources])
    assert counted == ([3] if error is True else [])
    layers = ours(cross(model, range(1, 3)))
    several = attrib.latent_to_latent(model, layers, target, prompts(*LENGTHS), error=error)
    assert_each(several, [attrib.latent_to_latent(model, layer, target, prompts(*LENGTHS), error=error) for layer in layers])


def test_one_after_another_where_the_budget_is_too_small_for_all():
    model, sources, target = build("gpt2", torch.float64), sources_of("gpt2"), TARGET.dictionary("gpt2")
    given, told = prompts(9), list[tuple[int, int]]()
    budget = 0
    for source in sources:  # the least that each alone needs
        with pytest.raises(attrib.BudgetError) as refused:
            attrib.latent_to_latent(model, source, target, given, budget=1)
        budget = max(budget, int(str(refused.value).split("at least ")[1].split(".")[0].replace(",", "")))
    with pytest.raises(attrib.BudgetError):
        attrib.jacobian(model, sources, target, given, budget=budget)
    found = attrib.latent_to_latent(model, sources, target, given, budget=budget, progress=lambda *done: told.append(done))
    alone = [attrib.latent_to_latent(model, source, target, given, budget=budget) for source in sources]
    assert_each(found, alone)
    assert told[-4:] == [(number, 4) for number in range(1, 5)]
    plan = attrib.plan(model, sources, target, given, budget=budget)
    assert plan.flops == sum(attrib.plan(model, source, target, given, budget=budget).flops for source in sources)


def test_a_plan_of_several_is_less_than_plans_of_each():
    model, sources, target = build("gpt2", torch.float32), sources_of("gpt2")[:3], TARGET.dictionary("gpt2")
    together = attrib.plan(model, sources, target, prompts(9))
    alone = [attrib.plan(model, source, target, prompts(9)) for source in sources]
    assert together.flops < sum(one.flops for one in alone)
    assert together.result == sum(one.result for one in alone)
    by_steps = [attrib.plan(model, source, target, prompts(9), rule=attrib.IntegratedGradients(4)) for source in sources]
    of_steps = attrib.plan(model, sources, target, prompts(9), rule=attrib.IntegratedGradients(4))
    assert (of_steps.flops, of_steps.points) == (sum(one.flops for one in by_steps), 4)
    tokens = attrib.plan(model, None, [sources[1], target], prompts(9))
    assert tokens.flops < sum(attrib.plan(model, None, one, prompts(9)).flops for one in (sources[1], target))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, early, late: attrib.latent_to_latent(model, [], late, [0]), r"source: none; expected a dictionary, or a list"),
        (lambda model, early, late: attrib.latent_to_latent(model, [early, late], late, [0]), r"not after the source\[1\]'s blocks.3"),
        (
            lambda model, early, late: attrib.latent_to_logit(model, [early, 3], [0]),
            r"source\[1\]: got a int; expected an attrib.Dictionary",
        ),
        (lambda model, early, late: attrib.token_to_latent(model, [], [0]), r"target: none"),
        (lambda model, early, late: attrib.plan(model, None, attrib.TopLogits(3), [0]), r"target\[0\]: got a TopLogits"),
        (lambda model, early, late: attrib.latent_to_latent(model, [early], late, [0], error="no"), r"error: 'no'"),
    ],
)
def test_what_is_wrong_is_said_by_its_number(call: Callable[..., Any], message: str):
    model = build("gpt2", torch.float64)
    with without_shape_checks(), pytest.raises(InputError, match=message):
        call(model, LENSES[0].dictionary("gpt2"), TARGET.dictionary("gpt2"))


def test_a_list_of_one_gives_a_list_of_one():
    model, source = build("gpt2", torch.float64), LENSES[0].dictionary("gpt2")
    assert [type(one) for one in attrib.latent_to_logit(model, [source], prompts(4))] == [attrib.Edges]


def test_a_block_with_a_list_is_one_for_each_and_goes_in_one_call(tmp_path: Path, counted: list[int]):
    table = {
        "model": "tiny", "dtype": "float64",
        "attribution": [
            {"kind": "latent_to_latent", "source": ["a", "b"], "target": "c"}, {"kind": "token_to_latent", "target": ["b", "c"]},
            {"kind": "latent_to_logit", "source": "a"},
        ],
    }  # fmt: skip
    work = checked(Work, table, "run")
    assert [len(group) for group in work.groups] == [2, 2, 1]
    again = checked(Work, work.model_dump(mode="json"), "run", context={"stored": True})
    assert again == work
    named = dict(zip("abc", [LENSES[0].dictionary("gpt2"), LENSES[1].dictionary("gpt2"), TARGET.dictionary("gpt2")], strict=True))
    loaded, told = Loaded(work, build("gpt2", torch.float64), named), list[tuple[int, int]]()
    loaded.check(prompts(*LENGTHS))
    results = loaded.attribute(prompts(*LENGTHS), lambda *done: told.append(done))
    assert counted == [2, 1]
    assert told[-1] == (9, 9)
    assert len(loaded.plan(prompts(*LENGTHS))) == 3
    attrib.save(tmp_path / "all.h5", results)
    with attrib.open(tmp_path / "all.h5") as store:
        stored = [(edges.kind, edges.sources.site, edges.targets.site) for edges in store.values()]
    a, b, c = (str(one.site) for one in named.values())
    assert stored == [
        ("latent_to_latent", a, c), ("latent_to_latent", b, c), ("token_to_latent", "embed", b), ("token_to_latent", "embed", c),
        ("latent_to_logit", a, "logits"),
    ]  # fmt: skip
    for edges, (source, target) in zip(results[:2], (("a", "c"), ("b", "c")), strict=True):
        alone = attrib.latent_to_latent(loaded.model, named[source], named[target], prompts(*LENGTHS), keep=attrib.Mass(0.99))
        assert_same(edges.total, alone.total, "total")
