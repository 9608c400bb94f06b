"""What a plan says is what a call does, for every kind of call; a budget that is named does; a result that cannot be held is refused."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

import attrib
import attrib.attribute
import attrib.cli
import attrib.needs
from attrib.edges import Edges, Growing, concatenated, join
from attrib.packing import least_memory
from attrib.result import edges_at_most, result_bytes
from attrib.types import EXACT, LINEAR, AttribError, BudgetError, Difference, Direction, OutOfMemoryError, Site, Threshold
from tests.builders import attrib_model, build, dictionary, normal, prompt
from tests.test_budget import peak
from tests.test_plan import CUTS, LARGE, WIDTH, cross_layer, cut, flops, topk

_HEADS = {"hidden_size": WIDTH, "num_attention_heads": 12, "max_position_embeddings": 128}
FAMILIES: dict[Any, dict[str, Any]] = LARGE | {
    "gptj": {"n_embd": WIDTH, "n_head": 12, "n_positions": 128, "rotary_dim": 8},
    "phi": _HEADS | {"num_key_value_heads": 4, "intermediate_size": 512},
    "opt": _HEADS | {"word_embed_proj_dim": WIDTH, "ffn_dim": 512},
}
SOURCES: dict[str, Callable[[], attrib.Dictionary]] = {
    "topk": lambda: topk(0),
    "standard": lambda: cut("standard", "blocks.0.hook_resid_pre"),
    "mid": lambda: cut("topk", "blocks.0.hook_resid_mid"),
    "skip": lambda: cut("skip_transcoder", "blocks.0.mlp.hook_in"),
    "cross-layer": lambda: cross_layer(range(4))[0],
    "normalised": lambda: cut("topk", "blocks.1.hook_resid_pre", normalize_activations="layer_norm"),
    "attention": lambda: cut("topk", "blocks.0.hook_attn_out"),
}
TARGETS: dict[str, Callable[[], Any]] = {
    "topk": lambda: topk(3),
    "standard": lambda: cut("standard", "blocks.3.hook_resid_pre"),
    "mlp_in": lambda: cut("transcoder", "blocks.3.mlp.hook_in"),
    "mlp_out": lambda: cut("topk", "blocks.2.hook_mlp_out"),
    "top logits": lambda: attrib.TopLogits(10),
    "mass": lambda: attrib.TopLogits(10, mass=0.5),
    "tokens": lambda: attrib.TokenLogits([1, 2]),
    "difference": lambda: Difference(1, [2, 3]),
    "direction": lambda: Direction(normal(WIDTH), Site(2, "resid_post")),
}
CUT = {"none": list, **CUTS}


@lru_cache
def large(family: Any) -> attrib.Model:
    return attrib_model(family, **FAMILIES[family])


class Case:
    """A call of one of the kinds, and its plan."""

    def __init__(
        self, model: attrib.Model, source: attrib.Dictionary | None, target: Any, lengths: tuple[int, ...], **options: Any
    ) -> None:
        self.model, self.source, self.target, self.options = model, source, target, options
        self.tokens = [prompt(length, seed=length) for length in lengths]

    def plan(self, **more: Any) -> attrib.Plan:
        return attrib.plan(self.model, self.source, self.target, self.tokens, **(self.options | more))

    def run(self, **more: Any) -> Edges:
        options = self.options | more
        if self.source is None:
            return attrib.token_to_latent(self.model, self.target, self.tokens, **options)
        if isinstance(self.target, attrib.Dictionary):
            return attrib.latent_to_latent(self.model, self.source, self.target, self.tokens, **options)
        return attrib.latent_to_logit(self.model, self.source, self.tokens, logits=self.target, **options)


def drawn(rng: random.Random, **fixed: Any) -> tuple[dict[str, Any], Case]:
    """A case that is allowed, and what was drawn for it."""
    while True:
        source, target = rng.choice([None, *SOURCES]), rng.choice(list(TARGETS))
        facts = {
            "family": rng.choice(list(FAMILIES)), "source": source, "target": target, "cuts": rng.choice(["none", *CUT]),
            "effect": rng.choice(["direct", "total"]), "error": rng.choice([True, False]), "policy": rng.choice([EXACT, LINEAR]),
            "lengths": rng.choice([(12,), (8, 1, 5), (24,)]), "positions": rng.choice([None, -1, [0, -1]]),
        } | fixed  # fmt: skip
        if source is None and not isinstance(TARGETS[target](), attrib.Dictionary):
            continue
        options = {name: facts[name] for name in ("effect", "policy", "positions")} | {"cuts": CUT[facts["cuts"]]()}
        if source is not None:
            options["error"] = facts["error"]
        case = Case(large(facts["family"]), None if source is None else SOURCES[source](), TARGETS[target](), facts["lengths"], **options)
        try:
            case.plan()
        except AttribError:
            continue  # what does not go together
        return facts, case


@pytest.mark.parametrize("error", [True, False], ids=["with error", "without"])
@pytest.mark.parametrize("cuts", ["none", "drawn"])
def test_operations_and_memory_of_any_call(error: bool, cuts: str):
    rng = random.Random(f"{error} {cuts}")
    for _ in range(2):
        facts, case = drawn(rng, error=error, **({"cuts": cuts} if cuts == "none" else {}))
        plan = case.plan()
        for cached in (case.model, case.source, case.target, *case.options["cuts"]):
            assert getattr(cached, "fingerprint", True)
        assert plan.flops / 1.1 <= flops(case.run) <= 1.1 * plan.flops, facts
        assert peak(lambda case=case: case.run(keep=Threshold(1e30))) <= 1.2 * plan.peak, facts


@pytest.mark.parametrize("which", ["no cut", "cut", "direction"])
def test_passes_without_the_error_are_planned(which: str):
    """What 1.26, 1.67 and 2.03 of the plan were: to a logit, through a cut, and to a direction through cuts with frozen norms."""
    cuts = {"no cut": [], "cut": [cut("skip_transcoder", "blocks.2.mlp.hook_in")], "direction": CUTS["transcoders"]()}[which]
    target = TARGETS["direction" if which == "direction" else "top logits"]()
    policy, effect = (LINEAR, "total") if which == "direction" else (EXACT, "direct")
    case = Case(large("llama"), topk(1), target, (24,), cuts=cuts, error=False, policy=policy, effect=effect)
    plan = case.plan()
    assert plan.flops / 1.02 <= flops(case.run) <= 1.02 * plan.flops


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("which", ["none", "transcoders"])
def test_other_precisions_are_planned(dtype: str, which: str):
    """With the rows that are computed again in float64, and the parameters that are converted."""
    case = Case(large("llama"), topk(0), TARGETS["tokens"](), (20,), dtype=dtype, cuts=CUT[which](), effect="total")
    plan = case.plan()
    assert plan.flops / 1.02 <= flops(case.run) <= 1.02 * plan.flops
    assert peak(case.run) <= 1.2 * (plan.peak + plan.copies)
    assert plan.copies > case.plan(dtype=None).copies == 0


@pytest.mark.parametrize("error", [True, False], ids=["with error", "without"])
def test_no_active_latents_are_planned(error: bool):
    nothing = dictionary("standard", site="blocks.3.hook_resid_pre", d_in=WIDTH)
    nothing = replace(nothing, params=nothing.params._replace(W_enc=torch.zeros(WIDTH, 80), b_enc=torch.full((80,), -1.0)))
    case = Case(large("llama"), topk(0), nothing, (9, 4), error=error)
    assert case.run().shape == (0, 260)
    assert case.plan().flops > 0


def named(error: BudgetError) -> int:
    return int(re.search(r"at least ([\d,]+)\.", str(error))[1].replace(",", ""))


@pytest.mark.parametrize("seed", range(3))
def test_the_budget_that_is_named_does_for_the_whole_call(seed: int):
    rng = random.Random(seed)
    for _ in range(2):
        facts, case = drawn(rng, lengths=rng.choice([(3, 9, 6), (12, 2)]))
        more = {"precision_rows": rng.choice([None, 3])}
        with pytest.raises(BudgetError) as refused:
            case.run(budget=1024, **more)
        budget = named(refused.value)
        assert case.run(budget=budget, **more).shape[0] > 0, facts
        with pytest.raises(BudgetError):
            case.run(budget=budget - 1, **more)


@pytest.mark.parametrize("method", ["torch.func", "metric"])
def test_so_it_is_with_transforms(method: str):
    model, source = build("llama"), dictionary("standard", site="blocks.1.hook_resid_pre")
    tokens, cuts = [prompt(4), prompt(9)], [dictionary("skip_transcoder", site="blocks.2.mlp.hook_in")]

    def call(budget: int) -> Edges:
        if method == "metric":
            return attrib.latent_to_metric(model, source, tokens, lambda logits: logits[-1, 3], budget=budget, cuts=cuts)
        return attrib.latent_to_logit(model, source, tokens, budget=budget, method="torch.func", cuts=cuts, effect="total")

    with pytest.raises(BudgetError, match="prompt 1") as refused:
        call(1024)
    assert call(named(refused.value)).shape[0] > 0


def test_least_memory_is_that_of_a_plan():
    _, case = drawn(random.Random(1), lengths=(12,))
    (pack,) = case.plan().packs
    assert least_memory(pack.task) <= pack.peak


# ------------------------------------------------------------------------------------------ results


def small(rule: str = "topk", k: int = 6, lengths: tuple[int, ...] = (9, 5), **options: Any) -> Case:
    kind = {"k": k} if rule == "topk" else {}
    source, target = (dictionary(rule, site=f"blocks.{layer}.hook_resid_pre", **kind) for layer in (1, 3))
    return Case(build("llama"), source, target, lengths, **options)


def held(edges: Edges) -> int:
    columns = [edges.indices, edges.gradient, edges.attribution, edges.total, edges.l1, edges.indptr]
    columns += [column for nodes in (edges.sources, edges.targets) for column in (nodes.position, nodes.latent, nodes.activation)]
    return sum(column.numel() * column.element_size() for column in columns)


@pytest.mark.parametrize("keep", [attrib.Dense(), attrib.TopK(4), attrib.Mass(0.5), Threshold(0.1)], ids=str)
@pytest.mark.parametrize("rule", ["topk", "standard"])
def test_the_result_is_in_the_plan(rule: str, keep: Any):
    case = small(rule)
    edges, plan = case.run(keep=keep), case.plan(keep=keep)
    assert held(edges) - 8 <= plan.result
    if isinstance(keep, attrib.Dense | attrib.TopK):
        assert held(edges) >= 0.95 * plan.result
    assert len(edges) <= sum(edges_at_most(pack.task, keep) for pack in plan.packs)
    assert plan.result == sum(result_bytes(pack.task, keep) for pack in plan.packs)


@pytest.mark.parametrize("method", ["adjoint", "torch.func"])
@pytest.mark.parametrize("rule", ["topk", "standard"])
def test_a_result_that_memory_cannot_hold_is_refused(rule: str, method: str, monkeypatch: pytest.MonkeyPatch):
    case, computed = small(rule), list[object]()
    free = int(case.plan().result)  # of which it may take half
    monkeypatch.setattr(attrib.needs, "free_memory", lambda: free)
    for name in ("path_of", "adjoint", "by_vjp"):
        plain = getattr(attrib.attribute, name)
        spied = lambda *a, plain=plain, name=name, **b: (computed.append(name), plain(*a, **b))[1]  # noqa: E731
        monkeypatch.setattr(attrib.attribute, name, spied)
    with pytest.raises(
        BudgetError, match=r"keep: Dense\(\) gives a result of up to \d.* memory are free.*keep=TopK\(\d+\) or fewer"
    ) as refused:
        case.run(method=method)
    # where active latents have to be counted, passes are made until the result is too large
    assert rule != "topk" or not computed
    k = int(re.search(r"TopK\(([\d,]+)\)", str(refused.value))[1].replace(",", ""))
    assert len(case.run(keep=attrib.TopK(k), method=method)) > 0
    assert len(case.run(keep=attrib.Mass(0.5), method=method)) > 0
    assert case.plan().result > 0.5 * free  # and is planned all the same


@pytest.mark.parametrize(
    "fault",
    [
        lambda: torch.empty(1 << 60, dtype=torch.int8),
        lambda: np.empty(1 << 60, dtype=np.int8),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")),
        lambda: (_ for _ in ()).throw(MemoryError()),
    ],
    ids=["torch", "numpy", "cuda", "python"],
)
def test_allocators_say_one_line(fault: Callable[[], object], monkeypatch: pytest.MonkeyPatch):
    case = small()
    monkeypatch.setattr(attrib.attribute, "adjoint", lambda *_: fault())
    with pytest.raises(
        OutOfMemoryError, match=r"^out of memory while attributing 2 prompt.s. of up to 9 tokens \(.*keep fewer edges"
    ) as said:
        case.run()
    assert isinstance(said.value, AttribError | MemoryError)
    assert "\n" not in str(said.value)


def test_other_faults_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch):
    case = small()

    def fault(*_: Any) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(attrib.attribute, "adjoint", fault)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        case.run()


def test_the_command_line_says_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(attrib.cli, "app", lambda: torch.empty(1 << 60, dtype=torch.int8))
    monkeypatch.setattr("sys.argv", ["attrib"])
    with pytest.raises(SystemExit):
        attrib.cli.main()
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (")
    assert said.count("\n") == 1


def test_columns_grow_and_are_let_go_of(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Growing, "BLOCK", 8)
    pieces = [torch.arange(size) + size for size in (3, 0, 20, 1, 5, 5, 5, 5, 30, 2)]
    column = Growing()
    for piece in pieces:
        column.add(piece)
    assert torch.equal(column.whole(pieces[1]), torch.cat(pieces))
    assert torch.equal(Growing().whole(pieces[1]), pieces[1])
    want = torch.cat(pieces)
    assert torch.equal(concatenated(pieces), want)
    assert pieces == []
    parts = [small(lengths=(length,)).run() for length in (4, 7, 2)]
    want_whole = small(lengths=(4, 7, 2)).run()
    for whole in (join(parts), join(parts, release=True)):
        for name in ("indptr", "indices", "gradient", "attribution", "total", "l1"):
            torch.testing.assert_close(getattr(whole, name), getattr(want_whole, name))
    assert parts == []


# ------------------------------------------------------------------------------------------- prints


def test_a_plan_prints_on_one_line_and_as_a_table():
    plan = small().plan()
    assert re.fullmatch(r"Plan\(\w+: .* GFLOP, .* of the floor, peak .*B, result up to .*B, \d+ pack\(s\)\)", repr(plan))
    table = plan._repr_html_()
    assert table.count("<tr>") == 1 + len(plan.flops_by_part)
    assert "result up to" in str(plan)
