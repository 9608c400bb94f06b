"""Prompts of many lengths in one pass: each gives what it gives alone, whatever is edited, held or asked for."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Ablate, Add, Head, Latents, PreActivations, Scale, Set, intervene
from attrib.core.types import EXACT, LINEAR, InputError, NotFiniteError, Policy
from attrib.models import transformer
from tests.support.builders import build, dictionary, normal, prompt
from tests.support.tolerances import ROUNDING, assert_close

RESID, MLP, LATER = "blocks.0.hook_resid_mid", "blocks.1.mlp.hook_in", "blocks.2.hook_resid_pre"
LENGTHS = (5, 2, 9, 4)
PROMPTS = [prompt(length, seed=20 + n) for n, length in enumerate(LENGTHS)]
OTHERS = [prompt(length, seed=40 + n) for n, length in enumerate(LENGTHS)]
FROZEN = Policy("frozen", "frozen", "frozen")


def put_in(family: str) -> tuple[Any, list[Any]]:
    """A model, and dictionaries with and without competition, of which one writes elsewhere."""
    model = build(family, torch.float64)
    sites = [LATER, MLP] if model.config.parallel else [RESID, LATER, MLP]
    kinds = {RESID: "jumprelu", LATER: "topk", MLP: "transcoder"}
    return model, [dictionary(kinds[site], site, torch.float64) for site in sites]


def edits_of(dictionaries: list[Any]) -> list[Any]:
    """Edits of each kind, at positions that are others in each prompt, of which some take what earlier ones made."""
    return [
        Add("blocks.0.hook_attn_out", normal(32, dtype=torch.float64)),
        Set(Latents(0, [3, 7]), torch.tensor([1.0, 2.0]), -2),
        Scale(Latents(0, 7), 3.0),
        Set(Latents(1), lambda a: a.flip(0), "1:"),
        Ablate(Head(1, [2, 0]), positions=[-1, 0]),
        Ablate(Head(2, 1), "resample", of=OTHERS),
        Ablate("blocks.2.hook_attn_out", "resample", of=OTHERS, seed=3, positions="-2:"),
        Ablate(Latents(len(dictionaries) - 1), "mean", of=OTHERS),
        Set("blocks.3.hook_attn_out", lambda v: v - v.mean(0)),
    ]


TOTAL: dict[str, Any] = {}
DIRECT: dict[str, Any] = {"effect": "direct", "errors": "live"}
CASES: list[tuple[Any, Policy, dict[str, Any]]] = [
    ("gpt2", EXACT, TOTAL), ("gpt_neox", FROZEN, TOTAL), ("qwen3", LINEAR, TOTAL), ("gemma2", LINEAR, DIRECT),
    ("gpt2 without masks", EXACT, DIRECT), ("llama without masks", FROZEN, TOTAL),
]  # fmt: skip
"""Windows, soft caps, norms of queries and keys, parallel blocks, and attention that sees both ways among them."""


@pytest.mark.few
@pytest.mark.parametrize(("family", "policy", "options"), CASES, ids=[case[0] for case in CASES])
def test_many_prompts_give_what_each_gives_alone(family: Any, policy: Policy, options: dict[str, Any]):
    model, dictionaries = put_in(family)
    edits, given = edits_of(dictionaries), {"policy": policy, **options}
    read = [
        LATER,
        "blocks.3.hook_resid_post",
        Head(1, 2),
        Latents(1, [0, 4]),
        PreActivations(0),
        attrib.ErrorAt(dictionaries[-1].writes[0]),
    ]
    found = intervene(model, dictionaries, PROMPTS, edits, **given)
    chosen = intervene(model, dictionaries, PROMPTS, edits, metric=[3, 9], **given)
    values = intervene(model, dictionaries, PROMPTS, edits, values=read, **given)
    for number in (0, 3):  # of which the one is filled up beside the other
        logits = found[number]
        mine = [edit._replace(of=OTHERS[number]) if is_resampled(edit) else edit for edit in edits]
        want = intervene(model, dictionaries, PROMPTS[number], mine, **given)
        assert_close(logits, want, ROUNDING, number)
        assert_close(chosen[number], want[-1, [3, 9]], ROUNDING, number)
        assert logits.untyped_storage().nbytes() == logits.nbytes  # it holds no other prompt's
    each = intervene(model, dictionaries, PROMPTS[number], mine, values=read, **given)
    assert values[number].keys() == each.keys()
    for what, value in each.items():
        assert_close(values[number][what], value, ROUNDING, what)


def is_resampled(edit: Any) -> bool:
    """Whether it takes the values of the prompt of the same number."""
    return isinstance(edit, Ablate) and edit.how == "resample" and edit.seed is None


def test_the_derivative_and_each_member_of_a_vmap():
    model, dictionaries = put_in("llama")
    direction = normal(32, dtype=torch.float64)

    def read(size: Tensor, prompts: Any = PROMPTS) -> Tensor:
        edits = [Add(RESID, size * direction, -1), Scale(Latents(1), size, 0)]
        return intervene(model, dictionaries, prompts, edits, errors="live", policy=LINEAR, metric=attrib.Difference(3, 9))

    sizes = torch.tensor([0.5, 2.0], dtype=torch.float64)
    every, slopes = torch.func.vmap(read)(sizes), torch.func.vmap(torch.func.jacrev(read))(sizes)
    (by_tape,) = torch.autograd.grad(read(size := sizes[0].clone().requires_grad_())[3], size)
    assert_close(by_tape, slopes[0, 3], ROUNDING)
    for number in (0, 3):
        alone = partial(read, prompts=PROMPTS[number])
        assert_close(every[:, number], torch.func.vmap(alone)(sizes), ROUNDING)
        assert_close(slopes[:, number], torch.func.vmap(torch.func.grad(alone))(sizes), ROUNDING)


def test_prompts_go_together_as_far_as_the_budget_goes(monkeypatch: pytest.MonkeyPatch):
    model, sae = build("gpt2", torch.float64), dictionary("topk", LATER, torch.float64)
    rows, mlp = list[int](), transformer.mlp

    def counted(model: Any, layer: int, x: Tensor, *rest: Any) -> Tensor:
        if layer == 0:
            rows.append(x.shape[-2])
        return mlp(model, layer, x, *rest)

    monkeypatch.setattr(transformer, "mlp", counted)
    edit = Scale(Latents(0), 2.0, -1)
    asked = list[int]()

    def metric(logits: Tensor) -> Tensor:
        asked.append(len(logits))
        return logits[-1, 3]

    found = intervene(model, sae, PROMPTS, edit, errors="live", metric=metric)
    assert rows == [sum(LENGTHS)]
    assert asked == [*LENGTHS]
    rows.clear()
    assert_close(intervene(model, sae, PROMPTS, edit, errors="live", metric=metric, budget="64KiB"), found, ROUNDING)
    assert 1 < len(rows) < len(LENGTHS)
    assert sum(rows) == sum(LENGTHS)
    rows.clear()
    assert_close(intervene(model, sae, PROMPTS, edit, errors="live", metric=metric, budget=0), found, ROUNDING)
    assert rows == [*LENGTHS]
    rows.clear()
    intervene(model, [], PROMPTS[:1], Ablate(LATER, "mean", of=OTHERS), values=LATER)
    assert rows == [sum(LENGTHS), LENGTHS[0]]
    with pytest.raises(InputError, match="budget: 'much'"):
        intervene(model, sae, PROMPTS, edit, budget="much")


def test_an_error_names_the_prompt_and_its_position():
    model, sae = build("gpt2", torch.float64), dictionary("standard", LATER, torch.float64)

    def overflowing(v: Tensor) -> Tensor:
        return v.index_add(0, torch.tensor([6]), torch.full_like(v[:1], 1.7e308)) if len(v) == 9 else v

    with pytest.raises(NotFiniteError, match=r"prompt 2 gives .* first at position 6"):
        intervene(model, sae, PROMPTS, Set("blocks.1.hook_mlp_out", overflowing), values=Latents(0))
    with pytest.raises(InputError, match=r"shape \[5\].*\[2\]"):  # as the prompt alone has it, not as all of them have
        intervene(model, sae, PROMPTS, Set(Latents(0, 3), torch.zeros(5)))
    with pytest.raises(InputError, match="prompt 1, which has 2 tokens"):
        intervene(model, sae, PROMPTS, Set(Latents(0, 3), 1.0, 3))


def test_smollm2_in_float32():
    model, site = attrib.load_model("smollm2-135m"), "blocks.9.hook_resid_pre"
    sae = attrib.load_dictionary(f"smollm2-135m/{site}")
    texts = ["The Eiffel tower is in the city of", "Paris is", "The Colosseum is in the city of"]
    edits = [Scale(Latents(sae, range(1200)), 0.5, "1:"), Ablate(Head(12, 0), positions=-1)]
    found = intervene(model, sae, texts, edits, errors="live", metric=lambda logits: logits[-1])
    for text, logits in zip(texts, found, strict=True):
        assert_close(logits, intervene(model, sae, text, edits, errors="live")[-1], ROUNDING, text)
