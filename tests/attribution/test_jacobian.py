"""`attrib.jacobian`: many sources and targets in one sweep, against the calls of one and one, and errors against transformers' own pass."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.attribution.jacobian import _Call
from attrib.attribution.options import Options
from attrib.core.types import (
    EXACT,
    LINEAR,
    BudgetError,
    Difference,
    Direction,
    InputError,
    Policy,
    Site,
    TokenLogits,
    TopK,
    TopLogits,
    UnsupportedError,
)
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.bundle import jacobians, joint_of
from attrib.engine.plan.choose_joint import JointPlan, joint_cost, joint_memory, least_joint_memory, plan_joint
from attrib.models.tokens import to_prompts
from attrib.models.transformer import Model, place
from attrib.paths.bundle import Ends
from attrib.runs.rerun import rerun
from tests.attribution.test_plan import BARE, LARGE, WIDTH, assert_about, large
from tests.paths.test_cuts import ALL_SETS, FEW, PROMPTS, SOURCES, TARGETS, attribute, is_taken, put_in
from tests.support.builders import Family, attrib_model, build, dictionary, normal, prompt, tiny
from tests.support.covering import each_pair
from tests.support.cut_cases import SOME, TOKENS, cross, foreign_logits, ours
from tests.support.exact_transformers import keep_dtype
from tests.support.measured import flops, measured, peak
from tests.support.tolerances import FOREIGN, ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MIXED = Policy("exact", "frozen", "frozen")
LOGITS = TopLogits(3)
Pair = tuple[int, int]


def dense(edges: attrib.Edges) -> Tensor:
    """Its gradients, with zeros where none is stored."""
    found = edges.gradient.new_zeros(edges.shape)
    found[edges.row, edges.indices] = edges.gradient
    return found


def ends(model: Model, which: str | None, cuts: Sequence[Dictionary]) -> tuple[list[Any], list[Any]]:
    """The cuts themselves, and whatever else goes with them."""
    sources = [make(model) for name, make in SOURCES.items() if name != "tokens" and not (which and is_taken(which, name, ""))]
    targets = [
        make(model) for name, make in TARGETS.items() if name not in ("logits", "mlp_out") and not (which and is_taken(which, "", name))
    ]
    return ["tokens", *cuts, *sources], [LOGITS, *cuts, *targets]


def assert_same(got: attrib.Edges, want: attrib.Edges, tolerance: Any, what: object) -> None:
    """Of the same nodes, and with the same numbers."""
    for mine, theirs in ((got.sources, want.sources), (got.targets, want.targets)):
        assert (mine.kind, mine.site, mine.labels) == (theirs.kind, theirs.site, theirs.labels), what
        assert torch.equal(mine.position, theirs.position), what
        assert torch.equal(mine.latent, theirs.latent), what
    assert got.kind == want.kind
    assert_close(got.targets.activation, want.targets.activation, tolerance, what)
    for mine, theirs in ((dense(got), dense(want)), (got.total, want.total), (got.l1, want.l1)):
        assert_close(mine, theirs, tolerance, what)


# ------------------------------------------------------------------------- against calls of one and one


@pytest.mark.few
@each_pair(
    family=FEW, which=[None, *ALL_SETS], effect=["direct", "total"], policy=[EXACT, LINEAR, MIXED],
    dtype=[torch.float64, torch.float32],
)  # fmt: skip
def test_each_pair_is_what_its_own_call_gives(family: Family, which: str | None, effect: str, policy: Policy, dtype: torch.dtype):
    model = build(family, dtype)
    cuts = put_in(family, which, dtype) if which else []
    sources, targets = ends(model, which, cuts)
    options: dict[str, Any] = {"cuts": cuts, "effect": effect, "policy": policy}
    prompts, number = PROMPTS[:2], [*ALL_SETS, None].index(which)
    found = attrib.jacobian(model, sources, targets, prompts, **options)
    moving, third, half = 0, number % 3, (number // 3 + FEW.index(family) // 2) % 2
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            # each set has a third of them looked at, one half of it in two of the families
            if (source == "tokens" and target is LOGITS) or (i + 2 * j) % 3 != third or (i + j) % 2 != half:
                continue
            ends_of = None if source == "tokens" else source, None if target is LOGITS else target
            if (i, j) not in found:
                with pytest.raises(InputError, match="is not after"):
                    attribute(model, *ends_of, prompts, **options)
                continue
            want = attribute(model, *ends_of, prompts, **options)
            assert_same(found[i, j], want, ROUNDING if dtype == torch.float64 else FOREIGN, (i, j))
            moving += bool(want.l1.any())
    assert moving > 1


@pytest.mark.few
@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("effect", ["direct", "total"])
def test_tokens_to_logits_are_the_plain_functions(family: Family, effect: Any):
    model, cuts = build(family, torch.float64), put_in(family, "transcoders")
    chosen = TokenLogits((3, 5, 8))
    for policy in (EXACT, LINEAR):
        edges = attrib.jacobian(model, "tokens", [chosen], TOKENS, cuts=cuts, effect=effect, policy=policy)[0, 0]
        plain = attrib.path(model, None, chosen, TOKENS, cuts=cuts, effect=effect, policy=policy)
        assert edges.kind == "token_to_logit"
        assert_close(dense(edges), jacrev(plain.function)(plain.sources.value), FOREIGN)


def across_layers_with_skip(width: int = 32) -> Dictionary:
    """It reads before the MLP of layer 0 and writes behind those of layers 0 to 2, also by its skip connection."""
    writes = tuple(Site(layer, "mlp_out") for layer in range(3))
    W_enc, W_dec = normal(width, 40, seed=1) * width**-0.5, normal(40, 3 * width, seed=2) / 4
    W_skip, zeros = normal(width, 3 * width, seed=3) / 8, torch.zeros(40)
    made = from_tensors(
        site=Site(0, "mlp_in"), writes=writes, W_enc=W_enc, b_enc=zeros, W_dec=W_dec, b_dec=normal(3 * width), W_skip=W_skip
    )
    return made.to(dtype=torch.float64)


@pytest.mark.parametrize("effect", ["direct", "total"])
@pytest.mark.parametrize("policy", [EXACT, LINEAR], ids=["exact", "linear"])
def test_rows_that_come_together_while_some_wait_in_a_skip_connection(effect: Any, policy: Policy):
    """Targets join in every layer above the place that it reads, so what waits is put together again and again."""
    model, cut = build("gpt2", torch.float64), across_layers_with_skip()
    read = [dictionary("topk", site=f"blocks.{layer}.hook_resid_pre", k=3, dtype=torch.float64) for layer in (2, 3)]
    source = dictionary("topk", site="blocks.0.hook_resid_pre", k=3, dtype=torch.float64)
    options: dict[str, Any] = {"cuts": [cut], "effect": effect, "policy": policy}
    found = attrib.jacobian(model, [source], [*read, LOGITS], PROMPTS[:2], **options)
    for number, target in enumerate((*read, None)):
        want = attribute(model, source, target, PROMPTS[:2], **options)
        assert want.l1.any()
        assert_same(found[0, number], want, ROUNDING, number)


# ----------------------------------------------------------------------------------------------- errors


@pytest.mark.few
@pytest.mark.parametrize(
    ("family", "which"), [("gpt2", "transcoders"), ("gpt2", "z"), ("gpt2", "cross"), ("llama", "attn_out"), ("llama", "residual")]
)
def test_errors_move_what_they_move_in_transformers(family: Family, which: str, monkeypatch: pytest.MonkeyPatch):
    """Total effects: transformers' model with the dictionaries hooked in, the error at one place scaled at one position at a time."""
    keep_dtype(monkeypatch)
    model = build(family, torch.float64)
    foreign, theirs = ALL_SETS[which](model), tiny(family, torch.float64)
    cuts = ours(foreign)
    leaves = attrib.replace(model, cuts).leaves(TOKENS)
    written = attrib.replace(model, cuts).written
    sites = sorted({site for one in foreign for site in one.writes}, key=lambda site: site.depth)
    found = attrib.jacobian(
        model, [attrib.ErrorAt(site) for site in sites], TokenLogits(tuple(range(SOME))), TOKENS, cuts=cuts, effect="total"
    )
    errors = dict(zip(written, leaves.errors, strict=True))
    for number, site in enumerate(sites):

        def logits(scale: Tensor, site: Site = site) -> Tensor:
            scaled = {at: errors[place(model, at)] * (scale[:, None] if at == site else 1) for at in sites}
            return foreign_logits(theirs, foreign, TOKENS, errors=scaled)[-1, :SOME]

        want = torch.autograd.functional.jacobian(logits, torch.ones(len(TOKENS), dtype=torch.float64))
        edges = found[number, 0]
        assert (edges.kind, edges.sources.kind, edges.sources.site) == ("error_to_logit", "error", str(place(model, site)))
        assert_close(dense(edges), want, FOREIGN, site)
        assert want.abs().max() > 1e-6


@pytest.mark.few
@each_pair(family=FEW, which=["transcoders", "attn_out", "all"], effect=["direct", "total"], policy=[EXACT, LINEAR])
def test_errors_are_leaves_of_the_replaced_pass(family: Family, which: str, effect: Any, policy: Policy):
    model, cuts = build(family, torch.float64), put_in(family, which)
    replaced = attrib.replace(model, cuts, policy=policy)
    leaves = replaced.leaves(TOKENS)
    target, vector = cuts[-1], torch.linspace(-1, 1, 32, dtype=torch.float64)
    direction = attrib.Direction(vector, model.config.last)
    for at, error in zip(replaced.written, leaves.errors, strict=True):
        number = replaced.written.index(at)

        def value(scale: Tensor, number: int = number, error: Tensor = error) -> Tensor:
            errors = tuple(error * scale[:, None] if n == number else other for n, other in enumerate(leaves.errors))
            return replaced.values(leaves._replace(errors=errors), [model.config.last], effect=effect)[model.config.last]

        found = attrib.jacobian(
            model, [attrib.ErrorAt(at), target], [direction, *cuts], TOKENS, cuts=cuts, effect=effect, policy=policy, positions=None
        )
        want = jacrev(lambda scale, value=value: (value(scale) @ vector)[-1])(torch.ones(len(TOKENS), dtype=torch.float64))
        assert_close(dense(found[0, 0])[0], want, FOREIGN, at)


def test_an_error_where_no_cut_writes_is_refused():
    model, cuts = build("gpt2"), put_in("gpt2", "attn_out", torch.float32)
    with pytest.raises(InputError, match=r"sources: the error at blocks.2.hook_mlp_out, but no cut writes there.*blocks.1.hook_attn_out"):
        attrib.jacobian(model, attrib.ErrorAt("blocks.2.hook_mlp_out"), 3, PROMPTS, cuts=cuts)
    with pytest.raises(InputError, match="none is given"):
        attrib.jacobian(model, [attrib.ErrorAt("blocks.2.hook_mlp_out")], 3, PROMPTS)


# ------------------------------------------------------------------------------------- budgets, packs, order


CUT_SET = "transcoders"


def graph_ends(family: Family, dtype: torch.dtype = torch.float64) -> tuple[Model, list[Any], list[Any], list[Dictionary]]:
    model, cuts = build(family, dtype), put_in(family, CUT_SET, dtype)
    written = attrib.replace(model, cuts).written
    return model, ["tokens", *cuts, *map(attrib.ErrorAt, written)], [*cuts, LOGITS], cuts


@pytest.mark.parametrize("effect", ["direct", "total"])
@pytest.mark.parametrize("family", ["gpt2", "gptj"])
def test_budgets_and_packs_change_nothing(family: Family, effect: Any):
    model, sources, targets, cuts = graph_ends(family)
    options: dict[str, Any] = {"cuts": cuts, "effect": effect}
    ample = attrib.jacobian(model, sources, targets, PROMPTS, **options)
    least = 1 << 14
    while True:
        try:
            tight = attrib.jacobian(model, sources, targets, PROMPTS, budget=least, **options)
            break
        except BudgetError as error:
            least = int(str(error).split("at least ")[1].split(".")[0].replace(",", ""))
    with pytest.raises(BudgetError, match=f"at least {least:,}"):
        attrib.jacobian(model, sources, targets, PROMPTS, budget=least - 1, **options)
    alone = [attrib.jacobian(model, sources, targets, ids, **options) for ids in PROMPTS]
    for pair, edges in ample.items():
        assert_same(tight[pair], edges, ROUNDING, pair)
        for number, one in enumerate(alone):
            assert_same(one[pair], edges.prompt(number), ROUNDING, (pair, number))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_refusal_names_the_prompt_that_needs_most(family: Family):
    """It comes at the first prompt, and a budget that is enough for that one alone would be refused again."""
    model = build(family, torch.float64)
    source, target = (dictionary("standard", site=f"blocks.{layer}.hook_resid_pre", dtype=torch.float64) for layer in (0, 3))
    with pytest.raises(BudgetError, match="budget: 1 bytes are too few for prompt 1, which needs at least"):
        attrib.jacobian(model, [source], [target], [prompt(2), prompt(7)], budget=1)


def test_positions_in_any_order():
    model, sources, targets, cuts = graph_ends("llama")
    got = attrib.jacobian(model, sources[:3], targets, PROMPTS[0], cuts=cuts, positions=[4, 1, -2])
    for (i, j), edges in got.items():
        if i:
            target = None if targets[j] is LOGITS else targets[j]
            want = attribute(model, sources[i], target, PROMPTS[0], cuts=cuts, positions=[4, 1, -2])
            assert_same(edges, want, ROUNDING, (i, j))


def test_keep_and_what_is_kept():
    model, sources, targets, cuts = graph_ends("gpt2")
    found = attrib.jacobian(model, sources, targets, PROMPTS, cuts=cuts, keep=TopK(2))
    for i, j in ((1, 2), (2, 2)):
        want = attrib.latent_to_logit(model, sources[i], PROMPTS, logits=LOGITS, cuts=cuts, keep=TopK(2))
        assert torch.equal(found[i, j].indices, want.indices)
        assert_close(found[i, j].total, want.total, ROUNDING)


def test_on_triton_kernels():
    model, sources, targets, cuts = graph_ends("llama", torch.float32)
    ends_of_it = sources[1:3], targets[1:]  # in an interpreter each pair takes its time
    ids = prompt(3, seed=4)
    plain = attrib.jacobian(model, *ends_of_it, ids, cuts=cuts)
    for pair, edges in attrib.jacobian(model, *ends_of_it, ids, cuts=cuts, method="adjoint-triton").items():
        assert_same(edges, plain[pair], FOREIGN, pair)


def test_a_precision_of_fewer_digits_is_measured():
    model, sources, targets, cuts = graph_ends("gpt2", torch.float32)
    plain = attrib.jacobian(model, sources, targets, PROMPTS, cuts=cuts)
    for pair, edges in attrib.jacobian(model, sources, targets, PROMPTS, cuts=cuts, dtype="bfloat16").items():
        error = edges.call["precision_error"]
        assert error["rows"] == 16
        assert 1e-4 < error["relative_frobenius"] < 0.05
        assert_close(dense(edges), dense(plain[pair]), 0.1, pair)
    exact = attrib.jacobian(model, sources, targets, PROMPTS, cuts=cuts, precision_rows=5)
    assert exact[0, 0].call["precision_error"]["relative_frobenius"] < 1e-5


def test_several_fall_apart_into_sweeps_only_where_places_are_taken_from_one():
    model = build("gpt2", torch.float64)
    layers = ours(cross(model, range(4)))
    before = []
    attrib.jacobian(model, ["tokens", layers[0], layers[1]], LOGITS, PROMPTS, progress=lambda done, count: before.append((done, count)))
    assert before == [(n, 9) for n in range(1, 10)]  # each of the two takes places on its own ways alone
    before.clear()
    attrib.jacobian(model, ["tokens", *layers], LOGITS, PROMPTS, cuts=layers, progress=lambda done, count: before.append((done, count)))
    assert before == [(n, 3) for n in range(1, 4)]


# ----------------------------------------------------------------------------------------- operations, memory


def options_of(policy: Policy, cuts: list[Dictionary], effect: Any) -> Options:
    return Options(policy=policy, cuts=cuts, effect=effect)


def opened(family: Family, policy: Policy, lengths: tuple[int, ...], effect: Any = "direct") -> tuple[Ends, _Call]:
    model = large(family)
    sites = [f"blocks.{layer}.hook_mlp_out" for layer in (1, 2, 3)]
    cuts = [dictionary("topk", site=site, d_in=WIDTH, d_sae=300, k=12) for site in sites]
    between = dictionary("topk", site="blocks.2.hook_resid_mid", d_in=WIDTH, d_sae=300, k=9) if not model.config.parallel else cuts[0]
    options = options_of(policy, cuts, effect)
    tokens = to_prompts(model, [prompt(length, seed=length) for length in lengths])
    call = _Call(model, ("tokens", *cuts, attrib.ErrorAt(sites[0])), (*cuts, between, TopLogits(10)), tokens, options)
    ((of_group, _, _),) = call.groups
    return of_group, call


@pytest.mark.few
@each_pair(
    family=["gpt2", "llama", "gpt_neox", "gemma2", BARE[0]], policy=[EXACT, LINEAR], lengths=[(12,), (8, 1, 5)],
    effect=["direct", "total"],
)  # fmt: skip
def test_operations_are_those_planned(family: Family, policy: Policy, lengths: tuple[int, ...], effect: str):
    of_group, call = opened(family, policy, lengths, effect)
    bundles = [of_group.open(ids, None) for ids in call.prompts]
    joint = joint_of(bundles)
    chosen, whole = plan_joint(joint, 1 << 40), JointPlan(joint, ((0, joint.n_targets),), joint_memory(joint))
    for plan in (chosen, whole):
        got = flops(lambda plan=plan: [piece for _, piece in jacobians(bundles, plan, call.precision)])
        assert_about(got, plan.cost.total, 1.01, (family, policy, lengths))


@pytest.mark.few
@each_pair(family=["gpt2", "gemma2", "gpt_neox", BARE[0]], policy=[EXACT, LINEAR], effect=["direct", "total"])
def test_memory_is_within_what_is_planned(family: Family, policy: Policy, effect: str):
    of_group, call = opened(family, policy, (20,), effect)
    found = call._joint(of_group, (call.prompts[0], bundle := of_group.open(call.prompts[0], None)))
    held = found.opened.held
    rows = sum(end[0][3].numel() * bundle.model.dtype.itemsize for end in (*bundle.sources, *bundle.targets))
    for budget in (1 << 40, 2 * least_joint_memory(found)):
        plan = plan_joint(found, budget)
        used = peak(lambda plan=plan: sum(piece.gradient.numel() for _, piece in jacobians([bundle], plan, call.precision)))
        share = (used + rows) / (plan.peak - held)
        assert 0.85 <= share <= 1.05, f"{share:.3f} of what was planned, in {len(plan.sweeps)} sweeps"
    used = peak(lambda: of_group.open(call.prompts[0], None))
    assert used <= found.opened.peak <= 3 * used


@pytest.mark.long
def test_one_sweep_takes_fewer_operations_than_one_for_each_pair():
    model, ids = attrib_model("gpt2", n_layers=8, **LARGE["gpt2"]), prompt(16)
    cuts = [dictionary("topk", site=f"blocks.{layer}.hook_mlp_out", d_in=WIDTH, d_sae=300, k=12) for layer in range(8)]
    call = _Call(model, ("tokens", *cuts), (*cuts, TopLogits(10)), to_prompts(model, ids), options_of(LINEAR, cuts, "direct"))
    ((ends_of_call, _, _),) = call.groups
    joint = joint_of([ends_of_call.open(call.prompts[0], None)])
    plan = plan_joint(joint, 1 << 40)
    assert plan.cost.total < joint_cost(joint).total  # sources of low layers go up, and meet the rows of higher targets
    alone = 0
    for i, j in ends_of_call.pairs:
        source, target = ends_of_call.sources[i], ends_of_call.targets[j]
        if isinstance(source, Dictionary) or isinstance(target, Dictionary):
            from_one = source if isinstance(source, Dictionary) else None
            parts = attrib.plan(model, from_one, target, ids, cuts=cuts, policy=LINEAR).flops_by_part
            alone += sum(count for part, count in parts.items() if part != "capture")
    assert plan.cost.total < alone / 2.5


def test_out_of_memory_goes_on_in_halves_and_prompt_by_prompt(monkeypatch: pytest.MonkeyPatch):
    model, sources, targets, cuts = graph_ends("gpt2")
    want = attrib.jacobian(model, sources, targets, PROMPTS, cuts=cuts)
    sweep, most = attrib.engine.bundle.join, 20

    def join(on: Any, given: Sequence[Any], *others: Any) -> Any:
        if sum(len(one.seeds.token) for one in given) > most:
            raise torch.OutOfMemoryError("too many rows")
        return sweep(on, given, *others)

    monkeypatch.setattr(attrib.engine.bundle, "join", join)
    with pytest.warns(UserWarning, match="going on"):
        got = attrib.jacobian(model, sources, targets, PROMPTS, cuts=cuts)
    for pair, edges in want.items():
        assert_same(got[pair], edges, ROUNDING, pair)


# -------------------------------------------------------------------------------------------- what is asked


def test_what_cannot_be_asked_is_refused_by_name():
    model, sources, targets, cuts = graph_ends("gpt2", torch.float32)
    for changed, said in (
        ({"sources": []}, "sources: none"),
        ({"targets": []}, "targets: none"),
        ({"sources": ["token"]}, r"sources\[0\]"),
        ({"sources": [cuts[1]], "targets": [cuts[0]]}, "targets: none is behind any of the sources"),
        ({"method": "torch.func"}, "method: 'torch.func' takes one source"),
        ({"positions": 99}, "positions"),
        ({"cuts": [cuts[0], cuts[0]]}, "both replace"),
    ):
        given: dict[str, Any] = {"sources": sources, "targets": targets, "cuts": cuts} | changed
        with pytest.raises(InputError, match=said):
            attrib.jacobian(model, given.pop("sources"), given.pop("targets"), PROMPTS, **given)
    with pytest.raises(TypeError, match="budgets"):
        attrib.jacobian(model, sources, targets, PROMPTS, budgets=3)  # type: ignore[call-arg]


def test_what_is_saved_comes_back_and_says_what_it_is(tmp_path: Any, command: Any):
    model, sources, targets, cuts = graph_ends("gpt2", torch.float32)
    found = attrib.jacobian(model, sources, targets, PROMPTS, cuts=cuts)
    path = tmp_path / "all.h5"
    attrib.save(path, list(found.values()))
    with attrib.open(path) as stored:
        assert len(stored.blocks) == len(found)
    shown = command("show", path, "--top", "3")
    assert shown.status == 0
    assert "error at" in shown.out
    assert "error_to_logit" in shown.out
    assert found[1, 1].call["cuts"] == []  # both cuts are ends of it
    assert command("verify-file", path).status == 0
    attrib.save(tmp_path / "errors.h5", found[3, 1])
    with pytest.raises(UnsupportedError, match=r"rerun: edges from errors, .*error_to_latent.*attrib.jacobian does"):
        rerun(tmp_path / "errors.h5", 0)


def test_a_plan_without_rows():
    of_group, call = opened("gpt2", LINEAR, (1,))
    plan = plan_joint(joint_of([of_group.open(call.prompts[0], None)]), 1 << 30)
    assert isinstance(plan, JointPlan)
    assert joint_memory(plan.joint) == plan.peak


@pytest.mark.few
@each_pair(
    family=["gpt2", "llama", "gpt_neox", "gemma2"], policy=[EXACT, LINEAR], effect=["direct", "total"], rows=[None, 4],
    lengths=[(12,), (8, 1, 5)],
)  # fmt: skip
def test_the_plan_of_a_call_is_what_it_does(family: Family, policy: Policy, effect: Any, rows: int | None, lengths: tuple[int, ...]):
    """From the first pass to the last piece; with rows that are computed again, and skip connections and logits of every kind."""
    model, tokens = large(family), [prompt(length, seed=length) for length in lengths]
    sites = [f"blocks.{layer}.hook_mlp_out" for layer in (1, 2, 3)]
    cuts = [dictionary("topk", site=site, d_in=WIDTH, d_sae=300, k=12) for site in sites]
    sources = ["tokens", *cuts, attrib.ErrorAt(sites[0])]
    targets = [*cuts, TopLogits(10), Difference(1, [2, 3]), Direction(normal(WIDTH), Site(2, "resid_post"))]
    options: dict[str, Any] = {"cuts": cuts, "effect": effect, "policy": policy, "precision_rows": rows}
    plan = attrib.plan_jacobian(model, sources, targets, tokens, **options)
    assert plan.floor is None
    assert plan.direction == "joined"
    assert {len(pack.joint.whole.targets) for pack in plan.packs if isinstance(pack, JointPlan)} == {len(lengths)}
    for hashed in (model, *cuts):
        assert hashed.fingerprint
    found, counted, used = measured(lambda: attrib.jacobian(model, sources, targets, tokens, keep=attrib.Threshold(1e30), **options))
    assert len(found) > 9
    assert_about(counted, plan.flops, 1.01, (family, policy, lengths))
    assert 0.25 * plan.peak <= used <= 1.2 * plan.peak + plan.copies, f"{used / plan.peak:.3f} of the memory"
    at_most = attrib.plan_jacobian(model, sources, targets, tokens, keep=TopK(5), **options)
    kept = attrib.jacobian(model, sources, targets, tokens, keep=TopK(5), **options)
    edges = sum(len(edges) for edges in kept.values())
    assert edges * 16 <= at_most.result <= plan.result
    assert "joined" in str(plan)
    assert "floor" not in repr(plan)


def test_a_plan_refuses_what_the_call_refuses_and_falls_apart_with_it():
    model, sources, targets, cuts = graph_ends("gpt2")
    with pytest.raises(BudgetError) as refused:
        attrib.plan_jacobian(model, sources, targets, PROMPTS, cuts=cuts, budget=1000)
    with pytest.raises(BudgetError) as called:
        attrib.jacobian(model, sources, targets, PROMPTS, cuts=cuts, budget=1000)
    assert str(refused.value) == str(called.value)
    wide = ours(cross(build("gpt2", torch.float64), range(4)))
    parts = attrib.plan_jacobian(build("gpt2", torch.float64), ["tokens", wide[0], wide[1]], LOGITS, PROMPTS[:1])
    assert len(parts.packs) == 3  # each of the two takes places on its own ways alone
