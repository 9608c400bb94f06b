"""All of attrib on a device that is not there (tests/support/pretend.py): nothing is mixed, and values are those of the CPU."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Ablate, Add, Latents, Scale, generate, intervene
from attrib.core.types import EXACT, LINEAR, RELP, Dense, Difference, Direction, Mass, Policy, Threshold, TokenLogits, TopK, TopLogits
from attrib.graph.building import build as build_graphs
from attrib.graph.heads import head_loadings
from attrib.graph.qk import qk_attribution
from attrib.models.transformer import Model, embed
from tests.support.attribution_cases import Lens
from tests.support.builders import ALL_FAMILIES, build, normal, prompt
from tests.support.cut_cases import SETS, ours
from tests.support.pretend import NAME, Device, MixedDevicesError, There, pretending
from tests.support.tolerances import ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")

DOUBLE = torch.float64
Put = Callable[[Any], Any]
"""Puts a model, a dictionary or tokens on the device; or leaves them where they are."""


def there(given: Any) -> Any:
    return [there(each) for each in given] if isinstance(given, list) else given.to(device=NAME)


def numbers(found: Any, name: str = "found") -> Iterator[tuple[str, Any]]:
    """All numbers and tensors of a result, with what each is of; on the host."""
    if isinstance(found, Tensor):
        yield name, found.cpu()
    elif isinstance(found, Mapping):
        for key, each in found.items():
            yield from numbers(each, f"{name}[{key}]")
    elif is_dataclass(found) and not isinstance(found, type | Model | attrib.Dictionary):
        for field in fields(found):
            yield from numbers(getattr(found, field.name), f"{name}.{field.name}")
    elif isinstance(found, list | tuple):
        for number, each in enumerate(found):
            yield from numbers(each, f"{name}[{number}]")
    elif isinstance(found, bool | int | float | str):
        yield name, found


NOT_COMPARED = "call"
"""What a call's record holds: sampled errors are differences of the last digits."""


def assert_same(call: Callable[[Put], Any]) -> Device:
    """The same numbers on the device as on the CPU."""
    want = dict(numbers(call(lambda given: given)))
    with pretending() as device:
        got = dict(numbers(call(there)))
        assert len(device.counts.lines) > 3, "nothing was computed there"
    want, got = ({name: each for name, each in found.items() if f".{NOT_COMPARED}[" not in name} for found in (want, got))
    assert got.keys() == want.keys()
    assert any(isinstance(each, Tensor) and each.is_floating_point() and each.any() for each in want.values()), "nothing to compare"
    for name, each in want.items():
        if isinstance(each, Tensor) and each.is_floating_point():
            assert_close(got[name].nan_to_num(7.0), each.nan_to_num(7.0), ROUNDING, name)
        elif isinstance(each, Tensor):
            assert torch.equal(got[name], each), name
        else:
            assert got[name] == (pytest.approx(each) if isinstance(each, float) else each), name
    return device


def lens(
    at: int, kind: Any = "topk", dtype: torch.dtype = DOUBLE, where: str = "hook_resid_pre", family: str = "gpt2"
) -> attrib.Dictionary:
    return Lens(kind, f"blocks.{at}.{where}", seed=3 + at).dictionary(family, dtype)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ the four attributions

IDS = prompt(9)
PACK = [prompt(length, seed=length) for length in (7, 1, 4)]


@pytest.mark.few
@pytest.mark.parametrize("policy", [EXACT, LINEAR], ids=["exact", "linear"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family(family: Any, policy: Policy):
    model = build(family, DOUBLE)

    def both(put: Put) -> Any:
        on, source = put(model), put(lens(0))
        target = put(lens(3, "jumprelu"))
        return attrib.latent_to_latent(on, source, target, put(IDS), policy=policy), attrib.latent_to_logit(
            on, source, put(IDS), policy=policy
        )

    assert_same(both)


KINDS: dict[str, Callable[[Put, Policy], Any]] = {
    "tokens to latents": lambda put, policy: attrib.token_to_latent(put(MODEL), put(lens(2)), put(IDS), policy=policy),
    "standard to jumprelu": lambda put, policy: attrib.latent_to_latent(
        put(MODEL), put(lens(0, "standard")), put(lens(2, "jumprelu")), put(IDS), policy=policy
    ),
    "within a layer": lambda put, policy: attrib.latent_to_latent(
        put(MODEL), put(lens(1)), put(lens(1, "standard", where="hook_resid_mid")), put(IDS), policy=policy
    ),
    "heads to an MLP": lambda put, policy: attrib.latent_to_latent(
        put(MODEL), put(lens(0, where="attn.hook_z", family="llama")), put(lens(2, where="hook_mlp_out")), put(IDS), policy=policy
    ),
    "a pack": lambda put, policy: attrib.latent_to_latent(put(MODEL), put(lens(0)), put(lens(3)), put(PACK), policy=policy, keep=Mass(0.9)),
    "token ids of the host": lambda put, policy: attrib.token_to_latent(
        put(MODEL), put(lens(3)), [ids.tolist() for ids in PACK], policy=policy, keep=TopK(3)
    ),
    "several sources": lambda put, policy: attrib.latent_to_latent(
        put(MODEL), [put(lens(0)), put(lens(1))], put(lens(3)), put(IDS), policy=policy
    ),
    "without the error": lambda put, policy: attrib.latent_to_latent(
        put(MODEL), put(lens(0)), put(lens(2)), put(IDS), policy=policy, error=False
    ),
    "the error as a source": lambda put, policy: attrib.latent_to_latent(
        put(MODEL), put(lens(0)), put(lens(2)), put(IDS), policy=RELP if policy == LINEAR else policy, error="source", bias=policy == LINEAR
    ),
    "top logits": lambda put, policy: attrib.latent_to_logit(
        put(MODEL), put(lens(1)), put(PACK), logits=TopLogits(5), policy=policy, positions=[-1, 0], keep=Threshold(1e-9)
    ),
    "chosen logits": lambda put, policy: attrib.latent_to_logit(
        put(MODEL), put(lens(1)), put(IDS), logits=TokenLogits([1, 2]), policy=policy
    ),
    "a difference": lambda put, policy: attrib.latent_to_logit(put(MODEL), put(lens(1)), put(IDS), logits=Difference(1, 2), policy=policy),
    "a direction": lambda put, policy: attrib.latent_to_logit(
        put(MODEL), put(lens(1)), put(IDS), logits=Direction(normal(32, dtype=DOUBLE)), policy=policy
    ),
    "a metric": lambda put, policy: attrib.latent_to_metric(
        put(MODEL), put(lens(1)), put(IDS), lambda logits: logits[-1].logsumexp(-1), policy=policy
    ),
    "a small budget": lambda put, policy: attrib.latent_to_latent(
        put(MODEL), put(lens(0)), put(lens(3)), put(PACK), policy=policy, budget=600_000, keep=Mass(0.5)
    ),
}
pytest.importorskip("transformers", exc_type=ImportError)  # of which the cases below are made
MODEL = build("llama", DOUBLE)


@pytest.mark.few
@pytest.mark.parametrize("policy", [EXACT, LINEAR], ids=["exact", "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, policy: Policy):
    assert_same(lambda put: KINDS[kind](put, policy))


CORRUPT = PACK[0].flip(0)
RULES = [
    attrib.Gradient(), attrib.IntegratedGradients(3), attrib.IntegratedGradients(2, CORRUPT),
    attrib.Patching(CORRUPT), attrib.Ablation(),
]  # fmt: skip


@pytest.mark.few
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_every_rule(rule: Any):
    assert_same(lambda put: attrib.latent_to_logit(put(MODEL), put(lens(1)), put(PACK[0]), rule=rule, logits=TopLogits(2)))


def test_relp():
    assert_same(lambda put: attrib.latent_to_latent(put(MODEL), put(lens(0)), put(lens(3)), put(IDS), policy=RELP))


@pytest.mark.few
@pytest.mark.parametrize("method", ["by vjp", "by jvp", "by function"])
def test_plain_transforms(method: str):
    options: dict[str, Any] = {"method": "torch.func"}
    if method == "by jvp":
        assert_same(lambda put: attrib.token_to_latent(put(MODEL), put(lens(3)), put(IDS), **options))
    else:
        cuts = [lens(1, where="hook_mlp_out")] if method == "by function" else []
        assert_same(lambda put: attrib.latent_to_latent(put(MODEL), put(lens(0)), put(lens(3)), put(IDS), cuts=put(cuts), **options))


@pytest.mark.few
@pytest.mark.parametrize("dtype", ["float32", "float64", "tf32", "bfloat16"])
def test_every_precision(dtype: Any):
    model, source, target = build("gpt2"), lens(0, dtype=torch.float32), lens(3, dtype=torch.float32)

    def call(put: Put, dtype: Any = dtype) -> attrib.Edges:
        return attrib.latent_to_latent(put(model), put(source), put(target), put(IDS), dtype=dtype, precision_rows=4)

    if dtype != "bfloat16":
        assert_same(call)
        return
    exact, here = (call(lambda given: given, of).dense(0) for of in ("float64", dtype))  # a device has other products, rounded elsewhere
    with pretending():
        found = call(there).dense(0)
    assert 0 < (found - exact).norm() < 1.5 * (here - exact).norm()


def test_what_is_kept_in_bfloat16_is_the_largest_of_what_the_device_has():
    """Of which near ties may fall otherwise than on a CPU, since products are rounded elsewhere."""
    model, source, target = build("llama"), lens(0, "standard", dtype=torch.float32), lens(3, dtype=torch.float32)
    with pretending():
        found = [
            attrib.latent_to_latent(there(model), there(source), there(target), there(IDS), dtype="bfloat16", keep=keep)
            for keep in (Dense(), TopK(3))
        ]
    every, kept = (each.dense(0, "attribution") for each in found)
    is_kept = kept != 0
    assert torch.equal(kept[is_kept], every[is_kept])
    assert (is_kept.sum(1) == (every != 0).sum(1).clamp(max=3)).all()
    left_out, least = every.abs().masked_fill(is_kept, 0).amax(1), every.abs().masked_fill(~is_kept, torch.inf).amin(1)
    assert (left_out <= least).all()


@pytest.mark.few
@pytest.mark.parametrize("effect", ["direct", "total"])
@pytest.mark.parametrize("which", SETS)
def test_cuts(which: str, effect: Any):
    model = build("gpt2", DOUBLE)
    options: dict[str, Any] = {"effect": effect}
    end = "hook_resid_mid" if which == "all" else "hook_resid_post"  # where no cut is

    def call(put: Put) -> Any:
        on, cuts = put(model), put(ours(SETS[which](model)))
        return (
            attrib.token_to_latent(on, put(lens(3, "standard", where=end)), put(PACK), cuts=cuts, **options),
            attrib.latent_to_logit(on, cuts[0], put(IDS), cuts=cuts[1:], logits=TopLogits(3), error=False, **options),
        )

    assert_same(call)


# ------------------------------------------------------------------------------------ what is beside them

SITES = ["blocks.0.hook_resid_mid", "blocks.2.attn.hook_z"]


def graph(put: Put, model: Model, which: str, **options: Any) -> Any:
    return build_graphs(put(model), put(ours(SETS[which](model))), put(prompt(6)), targets=TopLogits(2), keep=TopK(30), **options)[0]


def heads(put: Put) -> Any:
    model, cuts = build("gpt2", DOUBLE), put(ours(SETS["transcoders"](build("gpt2", DOUBLE))))
    return head_loadings(put(model), cuts, graph(lambda given: given, model, "transcoders"), 12, targets=TopLogits(2))


EDITS = [Scale(Latents(0), 2.0), Ablate("blocks.0.hook_mlp_out"), Add("blocks.2.hook_resid_pre", 0.5, -1)]

OTHERS: dict[str, Callable[[Put], Any]] = {
    "a graph of transcoders": lambda put: graph(put, build("gpt2", DOUBLE), "transcoders"),
    "a graph of SAEs, exact": lambda put: graph(put, MODEL, "residual", policy=EXACT),
    "a graph, row by row": lambda put: graph(put, MODEL, "transcoders", max_nodes=12),
    "loadings of heads": heads,
    "scores of attention": lambda put: qk_attribution(
        put(MODEL), put(ours(SETS["transcoders"](MODEL))), put(prompt(6)), [(1, 0, 5, 3), (2, 3, 5, 1)], keep=TopK(20)
    ),
    "attribution through heads": lambda put: attrib.head_attribution(put(MODEL), put(lens(2)), put(IDS), source=put(lens(0))),
    "gradients at sites": lambda put: attrib.site_gradients(put(MODEL), SITES, put(IDS), TopLogits(2)),
    "a Jacobian of several ends": lambda put: list(
        attrib.jacobian(put(MODEL), ["tokens", put(lens(0))], [put(lens(3)), TopLogits(2)], put(IDS), cuts=put([lens(1)])).values()
    ),
    "activations": lambda put: {str(site): value for site, value in attrib.capture(put(MODEL), put(IDS), SITES).items()},
    "heads": lambda put: attrib.attention_heads(put(MODEL), 2, put(normal(9, 32, dtype=DOUBLE)))._asdict(),
    "dictionaries put in": lambda put: attrib.replace(put(MODEL), put(ours(SETS["all"](MODEL)))).run(put(IDS)),
    "interventions": lambda put: intervene(put(MODEL), put([lens(1)]), put(IDS), EDITS),
    "continuations": lambda put: generate(put(MODEL), put(PACK), max_tokens=3),
}


@pytest.mark.few
@pytest.mark.parametrize("what", OTHERS)
def test_others(what: str):
    assert_same(OTHERS[what])


# ------------------------------------------------------------------------------------ the device itself


def test_what_is_mixed_is_refused():
    line = r"elsewhere: aten.add.Tensor: Expected all tensors to be on the same device.*pretend:0 and cpu; on cpu: \[3\]"
    with pretending():
        x, host = torch.ones(3, device=NAME), torch.ones(3)
        with pytest.raises(MixedDevicesError, match=line):
            x + host
        for mixed in (
            lambda: host.add_(x), lambda: torch.cat([x, host]), lambda: x[torch.tensor([0])], lambda: host[x.long()],
            lambda: x.index_add_(0, torch.tensor([0]), x[:1]), lambda: x.where(host > 0, x), lambda: torch.stack([x, host]),
            lambda: x @ host, lambda: x[:1] * host, lambda: torch.searchsorted(x, host),
        ):  # fmt: skip
            with pytest.raises(MixedDevicesError):
                mixed()
        with pytest.raises(TypeError, match="convert"):
            x.numpy()
        assert torch.equal((x * 2.0 + torch.tensor(1.0)).cpu(), torch.full((3,), 3.0))
    with pytest.raises(RuntimeError, match="outside"):
        x + 1


def test_a_line_of_attrib_is_named():
    model = build("gpt2")
    with pretending():
        ids = IDS.to(device=NAME)
        with pytest.raises(MixedDevicesError, match=r"^attrib/models/transformer\.py:\d+ embed: aten\.\w+"):
            embed(model, ids)


WAITS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "item": (lambda x: x[0].item(), 1), "float": (lambda x: float(x[0]), 1), "bool": (lambda x: bool((x > 0).all()), 1),
    "tolist": (lambda x: x.tolist(), 1), "cpu": (lambda x: x.cpu(), 1), "nonzero": (lambda x: x.nonzero(), 1),
    "mask": (lambda x: x[x > 0], 1), "written mask": (lambda x: x.clone().index_put_((x > 0,), x), 1),
    "a number by mask": (lambda x: x.clone().masked_fill_(x > 0, 1.0), 0), "unique": (lambda x: x.unique(), 1),
    "repeats": (lambda x: x.repeat_interleave((x > 0).long()), 1),
    "repeats of known size": (lambda x: x.repeat_interleave((x > 0).long(), output_size=3), 0),
    "to the device": (lambda x: torch.tensor([1, 2], device=NAME), 1),
    "behind its back": (lambda x: torch.tensor([1, 2]).to(NAME, non_blocking=True), 0),
    "made there": (lambda x: torch.arange(3, device=x.device) + x.new_zeros(3).long(), 0), "products": (lambda x: x @ x, 0),
    "views": (lambda x: x[1:].T.view(-1).unsqueeze(0), 0), "sorted": (lambda x: x.sort().values, 0),
}  # fmt: skip


@pytest.mark.parametrize("what", WAITS)
def test_waits(what: str):
    call, waits = WAITS[what]
    with pretending() as device:
        x = torch.ones(3, device=NAME)
        device.begin()
        call(x)
        total = device.counts.total
    assert total.waits == waits
    assert (total.launches == 0) == (what in ("tolist", "cpu", "item", "float", "to the device", "behind its back", "views"))


def test_flops_and_bytes():
    with pretending() as device:
        x, w = torch.ones(5, 3, device=NAME), torch.ones(3, 7, device=NAME)
        device.begin()
        out = x @ w
        assert (device.counts.total.flops, device.counts.total.bytes) == (2 * 5 * 3 * 7, 4 * (15 + 21 + 35))
        out.addmm_(x, w)
        assert device.counts.total.flops == 2 * 2 * 5 * 3 * 7
        x.expand(4, 5, 3).clone()
        before = 4 * (15 + 21 + 35) + 4 * (2 * 35 + 15 + 21) + 4 * (15 + 60)
        assert device.counts.total.bytes == before
        torch.mm(x, w, out=out).mul_(2)  # written; then read and written
        assert device.counts.total.bytes == (before := before + 4 * (15 + 21 + 35) + 4 * 2 * 35)
        out.new_zeros(8).copy_(torch.ones_like(out[0, :1]).expand(8))  # `out` only tells the kind
        assert device.counts.total.bytes == (before := before + 4 * 8 + 4 * 1 + 4 * (8 + 1))
        rows = x.index_select(0, where := torch.tensor([4, 1]).to(NAME))  # two of five rows are read, two written
        assert device.counts.total.bytes == (before := before + 2 * 8 + 2 * 4 * 6)
        x.index_copy_(0, where, rows)
        assert device.counts.total.bytes == before + 2 * 8 + 2 * 4 * 6
        head, *_, of_all = device.counts.table(seconds=lambda count: 1e-3 * count.launches).splitlines()
        assert (head.split()[-2], of_all.split()[7]) == ("ms", "10.000")


def test_memory_is_held_by_storage():
    with pretending() as device:
        x = torch.ones(1000, device=NAME)
        assert device.held == 4000
        view = x.view(10, 100)[3:]
        assert device.held == 4000
        del x
        assert device.held == 4000
        del view
        assert device.held == 0
        assert device.counts.peak == 4000
        device.limit = 4500
        kept = torch.ones(1000, device=NAME)
        with pytest.raises(torch.OutOfMemoryError, match="4000 of 4500"):
            torch.ones(200, device=NAME)
        kept += 1
        assert isinstance(kept, There)


def test_torch_has_no_accelerator_else():
    with pretending():
        assert torch.get_device_module(NAME).is_available()
    assert not torch.get_device_module(NAME).is_available()
    with pytest.raises(attrib.InputError, match="cpu, cuda"):
        MODEL.to(device=NAME)
