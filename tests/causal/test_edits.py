"""Edits as values: what is a good one, their text form, and what they make of a value."""

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Ablate, Add, Edit, Head, Latents, Scale, Set, parse_edit, text_of
from attrib.causal.changes import changed, changes_of, edited_by
from attrib.causal.edits import as_edits
from attrib.core.types import InputError, Site
from tests.support.builders import build, dictionary, normal

SITE = "blocks.1.hook_resid_pre"


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        (f"{SITE}[493]@-1=0", Set(Latents(SITE, 493), 0.0, -1)),
        (f"{SITE}[3,5] @2:5*-0.5", Scale(Latents(SITE, [3, 5]), -0.5, "2:5")),
        (f"smollm2-135m/{SITE}[:]=zero", Ablate(Latents(f"smollm2-135m/{SITE}"), "zero")),
        (f"{SITE}@0,3+1e+2", Add(Site.parse(SITE), 100.0, [0, 3])),
        (f"{SITE}@last=-.5", Set(Site.parse(SITE), -0.5, "last")),
        ("L5H1*0.5", Scale(Head(5, 1), 0.5)),
        ("L0H1,2@-2=zero", Ablate(Head(0, [1, 2]), "zero", -2)),
        ("error:blocks.1.hook_mlp_out=zero", Ablate(attrib.ErrorAt(Site.parse("blocks.1.hook_mlp_out")), "zero")),
    ],
)
def test_text_is_read_and_written(text: str, edit: Edit):
    assert parse_edit(text) == edit
    assert parse_edit(text_of(edit)) == edit


@pytest.mark.parametrize(
    "text", ["", "=0", SITE, f"{SITE}[3]", f"{SITE}[3]=", f"{SITE}[3]=nan", f"{SITE}[3]=1 2", f"{SITE}[x]=1", "nowhere=1", f"{SITE}=+*3"]
)
def test_other_text_is_refused_and_repeated(text: str):
    with pytest.raises(InputError) as raised:
        parse_edit(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (Ablate(SITE, "mean"), "without `of`"),
        (Ablate(SITE, "zero", of="text"), "needs no other prompts"),
        (Ablate(SITE, "half"), "'half'"),  # type: ignore[arg-type]
        (Ablate(SITE, "mean", of="text", seed=1), "draws nothing"),
        (Ablate(SITE, "resample", of="text", seed=-1), "at least 0"),
        (SITE, "expected WHAT"),
        (3, "expected Set"),
    ],
)
def test_what_contradicts_itself_is_refused(edit: object, said: str):
    with pytest.raises(InputError, match=said):
        as_edits([edit])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (Set(Latents(0, 80), 1.0), "80 among the latents of"),
        (Set(Latents(0, [3, 3]), 1.0), "each once"),
        (Set(Latents(0, True), 1.0), "True"),
        (Set(Latents(2, 3), 1.0), "none of the dictionaries"),
        (Set(Latents("blocks.3.hook_resid_pre", 3), 1.0), "0 is .* at blocks.1.hook_resid_pre"),
        (Set(Latents(SITE, 3), 1.0), "2 of the dictionaries"),
        (Set(Head(4, 0), 1.0), "layers of tiny-gpt2"),
        (Set(Head(0, 4), 1.0), "heads of tiny-gpt2"),
        (Set("blocks.9.hook_resid_pre", 1.0), "outside"),
        (Set(attrib.ErrorAt("blocks.2.hook_mlp_out"), 1.0), "where no dictionary writes"),
        (Set(SITE, 1.0, 7), "prompt 4, which has 5 tokens"),
        (Set(SITE, float("nan")), "finite"),
        (Set(SITE, torch.tensor([float("inf")])), "finite"),
        (Set(SITE, True), "bool"),
        (Set(SITE, "much"), "str"),
        (Ablate(SITE, "mean", of="text"), "no values yet"),
    ],
)
def test_what_does_not_fit_is_refused(edit: Edit, said: str):
    dictionaries = [dictionary("standard", SITE), dictionary("topk", SITE, seed=4)]
    with pytest.raises(InputError, match=said):
        changes_of(build("gpt2"), dictionaries, [edit], length=5, number=4)


def test_a_dictionary_is_named_in_each_way():
    model, sae = build("gpt2"), dictionary("standard", SITE)
    for of in (sae, sae.to(dtype=torch.float64), 0, sae.name, SITE, sae.site):
        assert edited_by(model, [sae], Latents(of, 3)) == (0, (3,), ())


def test_changes_are_those_written_with_indices():
    model, sae = build("gpt2"), dictionary("standard", SITE)
    v = normal(5, 32, seed=1)

    def made(edit: Edit, value: Tensor = v) -> Tensor:
        (change,) = changes_of(model, [sae], [edit], length=5)
        return changed(change, value)

    def by_hand(rows: object, columns: object, new: object) -> Tensor:
        value = v.clone()
        value[rows, columns] = new  # type: ignore[index]
        return value

    every = slice(None)
    assert made(Set(SITE, 2.0, -1)).equal(by_hand(4, every, 2.0))
    assert made(Add(SITE, v[0], [1, 3])).equal(by_hand([1, 3], every, v[[1, 3]] + v[0]))
    assert made(Scale(Latents(0, 3), 2.0, "2:")).equal(by_hand(slice(2, None), 3, 2 * v[2:, 3]))
    assert made(Set(Latents(0, [7, 3]), torch.tensor([1.0, 2.0]), 0)).equal(by_hand(0, [7, 3], torch.tensor([1.0, 2.0])))
    assert made(Set(Latents(0, 3), torch.arange(5.0))).equal(by_hand(every, 3, torch.arange(5.0)))
    assert made(Ablate(Head(0, 1), positions=2)).equal(by_hand(2, slice(8, 16), 0.0))
    two = [*range(8, 16), *range(24, 32)]  # of which the function gives each the other's
    assert made(Set(Head(0, [1, 3]), lambda z: z.flip(-2), 2)).equal(by_hand(2, two, v[2, two[8:] + two[:8]]))
    assert made(Set(SITE, lambda x: x.mul_(3))).equal(3 * v)


def test_values_that_do_not_broadcast_are_refused():
    (change,) = changes_of(build("gpt2"), [], [Set(SITE, torch.zeros(3), [0, 1])], length=5)
    with pytest.raises(InputError, match=r"shape \[3\].*\[2, 32\]"):
        changed(change, normal(5, 32))
    (change,) = changes_of(build("gpt2"), [], [Set(SITE, lambda x: "no")], length=5)
    with pytest.raises(InputError, match="str; expected numbers"):
        changed(change, normal(5, 32))


def test_changes_are_pure_under_transforms():
    sae, model, v = dictionary("standard", SITE), build("gpt2"), normal(5, 32)

    def made(value: Tensor) -> Tensor:
        (change,) = changes_of(model, [sae], [Set(Latents(0, [3, 4]), value, [1, 2])], length=5)
        return changed(change, v)

    values = normal(6, 2, 2)
    assert torch.func.vmap(made)(values).equal(torch.stack([made(value) for value in values]))
    jacobian = torch.func.jacrev(made)(values[0])
    assert jacobian[[1, 1, 2, 2], [3, 4, 3, 4], [0, 0, 1, 1], [0, 1, 0, 1]].eq(1).all()
    assert jacobian.sum() == 4
    assert torch.func.jvp(made, (values[0],), (values[1],))[1][1, 3] == values[1][0, 0]
