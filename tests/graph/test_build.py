"""Attribution graphs: every row adds up, and every edge is the plain function's derivative."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev

import attrib
from attrib.core.types import EXACT, LINEAR, BudgetError, Dense, Difference, Direction, InputError, Mass, Site, TokenLogits, TopK, TopLogits
from attrib.engine.bundle import sweep
from attrib.engine.plan.choose_joint import JointPlan, meetings
from attrib.engine.plan.joint import Joint
from attrib.graph.building import build as build_graphs
from attrib.graph.constants import embeddings
from attrib.graph.graph import Graph
from attrib.graph.neurons import Neurons
from attrib.graph.outputs import Custom, Span
from attrib.models.transformer import Model
from tests.support.builders import ALL_FAMILIES, Family, build, normal, prompt
from tests.support.covering import each_pair
from tests.support.cut_cases import BARE, SETS, TOKENS, fits, ours
from tests.support.tolerances import FOREIGN, ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FEW: list[Family] = ["gpt2", "llama", "gemma2", "gpt_neox"]


def dense(graph: Graph) -> Tensor:
    """[rows, nodes]."""
    return torch.from_numpy(graph.to_scipy().toarray())[graph.targets]


def dictionaries(model: Model, which: str | None) -> list[attrib.Dictionary]:
    return ours(SETS[which](model)) if which else []


def graph_of(model: Model, which: str | None, tokens: Tensor = TOKENS, **options: Any) -> Graph:
    (graph,) = build_graphs(model, dictionaries(model, which), tokens, **({"keep": Dense()} | options))
    return graph


# ---------------------------------------------------------------------------------------------- rows add up


@pytest.mark.few
@each_pair(
    fits, family=[*ALL_FAMILIES, *BARE], which=[None, *SETS], mlps=["exact", "leaf"], demean=[True, False],
    dtype=[torch.float64, torch.float32],
)  # fmt: skip
def test_every_row_adds_up(family: Family, which: str | None, mlps: Any, demean: bool, dtype: torch.dtype):
    model = build(family, dtype)
    targets = [TopLogits(3), Span(4, 7), Difference(1, [2, 3]), Custom("up", normal(32, dtype=dtype), 0.5, Site(2, "resid_pre"))]
    graph = graph_of(model, which, mlps=mlps, demean=demean, targets=targets)
    assert graph.worst < (1e-10 if dtype == torch.float64 else 1e-4), graph.nodes.label(int(graph.targets[graph.remainder.abs().argmax()]))
    assert len(graph.targets) > (50 if which else 0) + 3 + 3 + 1 + 1 - 1
    assert (graph.l1 > 0).all()


@pytest.mark.few
@pytest.mark.parametrize("family", FEW)
def test_where_norms_and_patterns_move_the_remainder_says_what_is_missed(family: Family):
    model = build(family, torch.float64)
    held, moving = (graph_of(model, "transcoders", policy=policy, targets=TopLogits(2)) for policy in (LINEAR, EXACT))
    assert held.worst < 1e-10
    assert moving.worst > 1e-3
    assert_close(moving.value, held.value, ROUNDING)
    assert_close(moving.own, held.own, ROUNDING)


def test_first_positions_without_latents_are_error_alone():
    model = build("gpt2", torch.float64)
    graph = graph_of(model, "all", skip_positions=2)
    assert graph.worst < 1e-10
    latents = graph.nodes.of_kind("latent")
    assert int(graph.nodes.position[latents].min()) == 2
    whole = graph_of(model, "all")
    later = whole.nodes.of_kind("latent")
    assert len(latents) == int((whole.nodes.position[later] >= 2).sum())


# --------------------------------------------------------------------------------- edges are derivatives


@pytest.mark.few
@each_pair(fits, family=[*FEW, *BARE], which=["transcoders", "residual", "attn_out", "z", "cross", "all"], policy=[EXACT, LINEAR])
def test_edges_are_derivatives_of_the_replaced_pass(family: Family, which: str, policy: Any):
    """Latents, errors and embeddings against torch.func on the plain forward with everything put in."""
    model = build(family, torch.float64)
    cuts = dictionaries(model, which)
    tokens = TOKENS[:6]
    chosen = TokenLogits((3, 8))
    graph = graph_of(model, which, tokens, policy=policy, targets=chosen, demean=False)
    replaced = attrib.replace(model, cuts, policy=policy)
    leaves = replaced.leaves(tokens)
    token, position = embeddings(model, tokens)
    sizes = [len(each) for each in leaves.activations]
    ends = torch.tensor(sizes).cumsum(0)

    def function(activations: Tensor, errors: Tensor, embedded: Tensor) -> Tensor:
        """What every latent and both logits are, by all of these as factors."""
        parts = tuple(a * f for a, f in zip(leaves.activations, activations.split(sizes), strict=True))
        scaled = tuple(error * factor[:, None] for error, factor in zip(leaves.errors, errors, strict=True))
        brought = token * embedded[0][:, None] + (0 if position is None else position * embedded[1][:, None])
        there = leaves.with_activations(parts)._replace(errors=scaled, embedded=brought)
        latents = replaced.latents(there, effect="direct")
        return torch.cat([*latents, replaced.forward(there, effect="direct")[-1, [3, 8]]])

    ones = (
        torch.ones(int(ends[-1])).double(), torch.ones(len(leaves.errors), len(tokens)).double(), torch.ones(2, len(tokens)).double(),
    )  # fmt: skip
    want = jacrev(function, (0, 1, 2))(*ones)
    got, nodes, sets = dense(graph), graph.nodes, graph.nodes.sets
    # our latents lie by the place that they read, theirs in the order of the dictionaries
    number = {d.name + str(d.site): n for n, d in enumerate(cuts)}
    assert len(number) == len(cuts)
    begin = [0, *ends.tolist()]
    order = torch.cat([
        torch.arange(begin[n := number[each.name + each.site]], begin[n + 1]) for each in sets if each.kind == "latent"
    ])  # fmt: skip
    rows = torch.cat([order, torch.tensor([begin[-1], begin[-1] + 1])])
    assert_close(got[:, nodes.of_kind("latent")], want[0][rows][:, order], FOREIGN)
    at = [str(site) for site in map(attrib.Site.parse, map(str, replaced.written))]
    errors = {each.site: nodes.rows(n) for n, each in enumerate(sets) if each.kind == "error"}
    for n, site in enumerate(at):
        place = str(attrib.models.transformer.place(model, attrib.Site.parse(site)))
        found = errors.get(place, errors.get(f"blocks.{model.config.n_layers}.hook_resid_pre"))
        assert found is not None, (place, errors)
        assert_close(got[:, found], want[1][rows][:, n], FOREIGN, site)
    assert_close(got[:, nodes.of_kind("token")], want[2][rows][:, 0], FOREIGN)
    if position is not None:
        assert_close(got[:, nodes.of_kind("position")], want[2][rows][:, 1], FOREIGN)
    assert got.abs().max() > 1e-3


def test_an_mlp_that_is_a_leaf_moves_what_a_frozen_one_does():
    model = build("gpt2", torch.float64)
    leaf = graph_of(model, "residual", mlps="leaf")
    frozen = graph_of(model, "residual", policy=LINEAR._replace(mlp="frozen"))
    assert_close(dense(leaf), dense(frozen), ROUNDING)
    assert len(leaf.nodes.of_kind("mlp")) == model.config.n_layers * len(TOKENS)


# ------------------------------------------------------------------------------------ budgets, packs, what is kept


@pytest.mark.long
@pytest.mark.parametrize("family", [FEW[0], *(pytest.param(family, marks=pytest.mark.long) for family in FEW[1:])])
def test_budgets_packs_and_precision_change_nothing(family: Family):
    model = build(family, torch.float64)
    prompts = [prompt(length, seed=length) for length in (9, 1, 6)]
    cuts = dictionaries(model, "all")
    together = build_graphs(model, cuts, prompts, keep=Dense())
    with pytest.raises(BudgetError) as refused:
        build_graphs(model, cuts, prompts, keep=Dense(), budget=10)
    named = int(str(refused.value).split("at least ")[1].split(".")[0].replace(",", ""))
    tight = build_graphs(model, cuts, prompts, keep=Dense(), budget=named)
    for number, ids in enumerate(prompts):
        (alone,) = build_graphs(model, cuts, ids, keep=Dense())
        for other in (together[number], tight[number]):
            assert other.nodes.sets == alone.nodes.sets
            assert torch.equal(other.targets, alone.targets)
            assert_close(dense(other), dense(alone), ROUNDING)
            assert other.worst < 1e-10
            assert other.strings == alone.strings


def test_what_is_kept_is_chosen_over_all_nodes_of_a_row():
    model = build("gpt2", torch.float64)
    whole, few, most = (graph_of(model, "all", keep=keep) for keep in (Dense(), TopK(7), Mass(0.9)))
    size = dense(whole).abs()
    assert_close(dense(few).abs().sort(dim=1).values[:, -7:], size.sort(dim=1).values[:, -7:], ROUNDING)
    assert int(few.indptr.diff().max()) == 7
    kept = dense(most).abs().sum(1)
    assert (kept >= 0.9 * most.l1 - 1e-12).all()
    assert_close(most.l1, whole.l1, ROUNDING)
    assert_close(few.dropped, few.total - dense(few).sum(1), ROUNDING)
    assert (few.indices.diff()[few.row.diff() == 0] > 0).all()


def test_influence_has_what_to_begin_with():
    model = build("gpt2", torch.float64)
    logits = attrib.forward(model, TOKENS)[-1].softmax(-1)
    graph = graph_of(model, "transcoders", targets=[TopLogits(3), Custom("up", normal(32), 0.25), Direction(normal(32))])
    chosen = graph.nodes.of_kind("logit")
    assert_close(graph.importance[graph.row_of[chosen]], logits[graph.nodes.latent[chosen]], ROUNDING)
    assert graph.importance[graph.row_of[graph.nodes.of_kind("target")]].tolist() == [0.25, 1.0]
    assert not graph.importance[graph.row_of[graph.nodes.of_kind("latent")]].any()
    assert graph.nodes.label(len(graph.nodes) - 2) == "target 'up' @9"


def test_a_demeaned_logit_is_less_the_mean_of_all():
    model = build("llama", torch.float64)
    logits = attrib.forward(model, TOKENS)[-1]
    plain, less = (graph_of(model, "transcoders", targets=TokenLogits((3, 8)), demean=demean) for demean in (False, True))
    last = plain.row_of[plain.nodes.of_kind("logit")]
    assert_close(plain.value[last], logits[[3, 8]], ROUNDING)
    assert_close(less.value[last], logits[[3, 8]] - logits.mean(), ROUNDING)


def test_the_tokens_of_an_answer_are_read_each_before_itself():
    model = build("gpt2", torch.float64)
    logits = attrib.forward(model, TOKENS)
    graph = graph_of(model, "transcoders", targets=Span(-3), demean=False)
    rows = graph.row_of[graph.nodes.of_kind("logit")]
    at = torch.arange(len(TOKENS) - 3, len(TOKENS))
    assert_close(graph.value[rows], logits[at - 1, TOKENS[at]], ROUNDING)
    assert torch.equal(graph.nodes.position[graph.nodes.of_kind("logit")], at - 1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "torch.func"}, "method: 'torch.func'"),
        ({"skip_positions": -1}, "skip_positions: -1"),
        ({"targets": []}, "targets: none"),
        ({"targets": Span(0)}, "behind the first"),
        ({"targets": Span(20)}, "expected some of its tokens"),
        ({"targets": Custom("x", torch.ones(3))}, "Direction of shape"),
        ({"targets": Custom("x", torch.ones(32), weight=-1.0)}, "a weight of at least 0"),
        ({"keep": TopK(0)}, "keep"),
        ({"policy": "linear"}, "policy"),
        ({"mlps": "none"}, "mlps: 'none'; expected 'exact' or 'leaf'"),  # behind the calls whose types are checked
        ({"demean": 1}, "demean: 1"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(options: dict[str, Any], match: str):
    model = build("gpt2", torch.float64)
    with pytest.raises(InputError, match=match):
        graph_of(model, "transcoders", **options)


# ------------------------------------------------------------------------------------------------- neurons


@pytest.mark.few
@each_pair(family=ALL_FAMILIES, k=[5, None], which=[None, "residual", "attn_out"], dtype=[torch.float64, torch.float32])
def test_rows_add_up_where_units_of_mlps_are_latents(family: Family, k: int | None, which: str | None, dtype: torch.dtype):
    model = build(family, dtype)
    units = [Neurons(1, k), Neurons(2, k)]
    (graph,) = build_graphs(model, [*dictionaries(model, which), *units], TOKENS, targets=TopLogits(2), keep=Dense())
    assert graph.worst < (1e-10 if dtype == torch.float64 else 1e-4)
    found = [n for n, each in enumerate(graph.nodes.sets) if each.name == "neurons"]
    assert [graph.nodes.sets[n].site for n in found] == ["blocks.1.mlp.hook_in", "blocks.2.mlp.hook_in"]
    assert all(graph.nodes.sets[n].size == 5 * len(TOKENS) for n in found) == (k == 5)


@pytest.mark.few
@pytest.mark.parametrize("family", FEW)
def test_a_unit_is_its_activation_and_writes_its_row(family: Family):
    """Against torch.func through the model's own MLPs, unit by unit."""
    model = build(family, torch.float64)
    (graph,) = build_graphs(model, [Neurons(2, None)], TOKENS, targets=TokenLogits((3, 8)), keep=Dense(), demean=False)
    hidden = attrib.graph.neurons.hidden_units(model, 2, attrib.capture(model, TOKENS, ["blocks.2.mlp.hook_in"])[Site(2, "mlp_in")])
    nodes = graph.nodes.of_kind("latent")
    at, unit = graph.nodes.position[nodes], graph.nodes.latent[nodes]
    assert_close(graph.nodes.activation[nodes], hidden[at, unit], ROUNDING)
    block = model.params.blocks[2]

    def logits(scale: Tensor) -> Tensor:
        raw = (hidden * scale) @ block.mlp.W_out + block.mlp.b_out
        whole = hidden @ block.mlp.W_out + block.mlp.b_out
        written = attrib.graph.constants.behind_norm(model, block.post_2, whole, raw)
        written = written + block.post_2.bias if model.config.post_norm else written
        *_, (_, last) = attrib.walk(
            model, "blocks.2.hook_mlp_out", written, attrib.capture(model, TOKENS, [base])[Site.parse(base)], policy=LINEAR
        )
        return attrib.unembed(model, last, policy=LINEAR)[-1, [3, 8]]

    base = "blocks.2.hook_resid_mid"
    want = jacrev(logits)(torch.ones_like(hidden))[:, at, unit]
    assert_close(dense(graph)[-2:][:, nodes], want, FOREIGN)
    assert want.abs().max() > 1e-4


def test_units_that_cannot_be_are_refused():
    model = build("gpt2", torch.float64)
    for given, match in (
        (Neurons(9), r"dictionaries\[0\]: .* from 0 to 3"), (Neurons(1, 0), "k of at least 1"),
        ([Neurons(1), Neurons(1)], "two of them write"),
        ([*dictionaries(model, "transcoders"), Neurons(2)], "two of them write blocks.2.hook_mlp_out"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            build_graphs(model, given, TOKENS)


# --------------------------------------------------------------------------------------- the rows that matter


def by_hand(whole: Graph, max_nodes: int, block: int) -> list[int]:
    """Which latents matter most, ranked anew after each block, from the dense matrix of all rows."""
    dense = torch.from_numpy(whole.to_scipy().toarray()).abs()
    latents = whole.nodes.of_kind("latent").tolist()
    size = torch.zeros(len(whole.nodes)).double().index_copy(0, whole.targets, whole.l1)
    share = dense / size.clamp_min(1e-300)[:, None]
    begin = torch.zeros(len(whole.nodes)).double().index_copy(0, whole.targets, whole.importance)
    rows, found = whole.nodes.of_kind("logit", "target").tolist(), []
    while len(found) < max_nodes:
        there = torch.zeros(len(whole.nodes), dtype=torch.bool)
        there[rows + found] = True
        reached = torch.linalg.solve(torch.eye(len(share)).double() - (share * there[:, None]).T, begin) - begin
        left = [node for node in latents if node not in found and reached[node] > 0]
        best = sorted(left, key=lambda node: (-float(reached[node]), node))[: min(block, max_nodes - len(found))]
        if not best:
            break
        found += best
    return sorted(found)


@pytest.mark.few
@each_pair(
    family=["gpt2", "llama"],
    which=["transcoders", "all", "cross"],
    block=[7, 512],
    meets=[None, "blocks.1.hook_resid_mid", "blocks.3.hook_resid_pre"],
)
def test_the_rows_that_matter_are_those_of_the_whole(family: Family, which: str, block: int, meets: str | None, monkeypatch: Any):
    """Whether rows below a meeting are read as tangents pass, or all are swept."""
    model = build(family, torch.float64)
    monkeypatch.setattr("attrib.graph.building.plan_joint", planned_to_meet_at(meets))
    whole = graph_of(model, which, targets=TopLogits(3))
    few = graph_of(model, which, targets=TopLogits(3), max_nodes=40, block=block)
    others = set(range(len(whole.nodes))) - set(whole.nodes.of_kind("latent").tolist())
    want = whole.take(torch.tensor(sorted({*others, *by_hand(whole, 40, block)})))
    assert few.nodes.sets == want.nodes.sets
    assert torch.equal(few.nodes.latent, want.nodes.latent)
    assert torch.equal(few.nodes.position, want.nodes.position)
    assert_close(dense(few), dense(want), ROUNDING)
    assert_close(few.total, want.total, ROUNDING)
    assert few.worst < 1e-10


def planned_to_meet_at(place: str | None) -> Any:
    """In place of `plan_joint`: plans whose sides meet there; None is nowhere."""

    def plan(joint: Joint, budget: int, prompt: int = 0, every: Joint | None = None) -> JointPlan:
        there = joint if place is None else next(one for one in meetings(joint, every) if one.meets == Site.parse(place))
        return JointPlan(there, ((0, there.above.n_targets),), 0)

    return plan


def test_no_row_is_computed_that_nothing_asks_for(monkeypatch: pytest.MonkeyPatch):
    model, swept = build("gpt2", torch.float64), []

    def counted(shared: Any, bundles: Any, orders: Any, *rest: Any) -> Any:
        swept.append(len(orders[0].place))
        return sweep(shared, bundles, orders, *rest)

    monkeypatch.setattr("attrib.engine.on_demand.sweep", counted)
    monkeypatch.setattr("attrib.graph.building.plan_joint", planned_to_meet_at(None))
    graph = graph_of(model, "all", targets=TopLogits(3), max_nodes=30, block=10)
    assert swept == [3, 10, 10, 10]
    assert len(graph.nodes.of_kind("latent")) == 30
    none = graph_of(model, "all", targets=TopLogits(3), max_nodes=0)
    assert len(none.targets) == 3
    assert none.worst < 1e-10


def test_what_is_kept_of_rows_does_not_change_which_matter():
    model = build("gpt2", torch.float64)
    whole, few = (graph_of(model, "transcoders", targets=TopLogits(2), keep=keep, max_nodes=25, block=5) for keep in (Dense(), TopK(1)))
    assert torch.equal(few.nodes.latent, whole.nodes.latent)
    assert torch.equal(few.nodes.position, whole.nodes.position)
    assert len(few.nodes.of_kind("latent")) == 25
    assert_close(few.total, whole.total, ROUNDING)


def test_a_prompt_that_does_not_fit_is_named_where_rows_are_chosen_too():
    model = build("gpt2", torch.float64)
    prompts, cuts = [prompt(3), prompt(12, seed=1)], dictionaries(model, "transcoders")
    chosen: dict[str, int]
    for chosen in ({}, {"max_nodes": 20}):
        with pytest.raises(BudgetError, match="prompt 1, which needs at least") as refused:
            build_graphs(model, cuts, prompts, budget=10, **chosen)
        enough = int(re.findall(r"at least ([\d,]+)", str(refused.value))[0].replace(",", ""))
        assert len(build_graphs(model, cuts, prompts, budget=enough, **chosen)) == 2


def test_a_graph_says_how_its_rows_were_chosen():
    call = graph_of(build("gpt2", torch.float64), "transcoders", max_nodes=20, block=7).call
    assert (call["max_nodes"], call["block"]) == (20, 7)
