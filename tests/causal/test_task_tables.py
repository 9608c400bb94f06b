"""Tables of tasks against sums by hand, on frames that are small enough to be written out."""

import math

import pandas as pd
import pytest

from attrib.causal.tasks import (
    activation_summary,
    base_against_spliced,
    classification,
    correctness,
    effects_figure,
    effects_of_latents,
    one_against_another,
    parity_figure,
    top_latents,
)
from attrib.core.types import InputError


def samples() -> pd.DataFrame:
    """Three examples, by the model and by ablation; the ablation has the last one wrong, the model the second."""
    rows = []
    for operation, differences, correct in [
        ("base", (1.0, -2.0, 3.0), (True, False, True)), ("spliced", (0.5, -1.0, 4.0), (True, False, True)),
        ("ablation", (0.5, -1.0, 4.0), (True, False, False)), ("gradient", (0.5, -1.0, 4.0), (True, False, True)),
    ]:  # fmt: skip
        for example, (difference, is_right) in enumerate(zip(differences, correct, strict=True)):
            point = 0 if example != 1 else 1
            row = {"example": example, "operation": operation, "tokens": 4 + example, "label": 0, "right": "a", "wrong": "b"}
            row |= {"difference": difference, "loss": 0.5 * example, "probability": 0.25, "prediction": point, "said": "c"}
            rows.append(row | {"correct": is_right})
    return pd.DataFrame(rows)


def latents() -> pd.DataFrame:
    """Latent 7 of A in all examples, 8 of A in one, 7 of B in two; by ablation, half of that by gradient, and spliced without effects."""
    effects = [(0, "A", 7, 2.0), (1, "A", 7, -1.0), (2, "A", 7, 0.5), (2, "A", 8, -3.0), (0, "B", 7, 0.25), (1, "B", 7, 0.5)]
    rows = []
    for operation, factor in (("ablation", 1.0), ("gradient", 0.5), ("spliced", math.nan)):
        for example, dictionary, latent, effect in effects:
            row = {"example": example, "operation": operation, "dictionary": dictionary, "latent": latent, "activation": 1.0 + example}
            rows.append(row | {"positions": 1, "effect": factor * effect, "kept": effect < 2})
    return pd.DataFrame(rows)


def test_correctness_counts_each_operation() -> None:
    table = correctness(samples()).set_index("operation")
    assert list(table.index) == ["base", "spliced", "ablation", "gradient"]
    assert table.n.tolist() == [3] * 4
    assert table.correct.tolist() == [2, 2, 1, 2]
    assert table.share["ablation"] == pytest.approx(1 / 3)
    assert table.difference["base"] == pytest.approx(2 / 3)
    assert table.loss["base"] == 0.5


def test_each_label_counts_alike_in_macro_means() -> None:
    """Labels 0 0 0 1 2 predicted 0 0 1 1 3: recalls 2/3, 1, 0; F1 of 0, 1, 2, 3: 4/5, 2/3, 0, 0."""
    part = pd.concat([samples().iloc[:1]] * 5, ignore_index=True)
    part = part.assign(example=range(5), label=[0, 0, 0, 1, 2], prediction=[0, 0, 1, 1, 3])
    right = part.assign(operation="spliced", prediction=part.label)
    table = classification(pd.concat([part, right])).set_index("operation")
    assert table.columns.tolist() == ["n", "labels", "accuracy", "macro_accuracy", "macro_f1"]
    assert table.loc["base"].tolist() == pytest.approx([5, 3, 3 / 5, (2 / 3 + 1 + 0) / 3, (4 / 5 + 2 / 3 + 0 + 0) / 4])
    assert table.loc["spliced"].tolist() == [5, 3, 1, 1, 1]
    assert not len(classification(samples()[:0]))


def test_base_stands_against_spliced_the_largest_first() -> None:
    table = base_against_spliced(samples())
    assert table.example.tolist() == [2, 0, 1]
    assert table.base.tolist() == [3.0, 1.0, -2.0]
    assert table.spliced.tolist() == [4.0, 0.5, -1.0]
    assert table.change.tolist() == [1.0, -0.5, 1.0]
    assert base_against_spliced(samples(), other="ablation", top=1).ablation_correct.tolist() == [False]
    with pytest.raises(InputError, match="operation: no samples of 'patching'; there are 'base', 'spliced'"):
        base_against_spliced(samples(), other="patching")


def test_effects_of_latents_are_sums_over_samples() -> None:
    table = effects_of_latents(latents(), samples()).set_index(["dictionary", "latent"])
    assert list(table.index) == [("A", 7), ("A", 8), ("B", 7)]
    assert table.total.tolist() == [1.5, -3.0, 0.75]
    assert table.n.tolist() == [3, 1, 2]
    assert (table.samples == 3).all()
    assert table["mean"].tolist() == [0.5, -1.0, 0.25]
    assert table.mean_fired.tolist() == [0.5, -3.0, 0.375]
    assert table.activation.tolist() == [2.0, 3.0, 1.5]
    assert table.flipped.tolist() == [1, 0, 0], "latent 7 of A in example 0, which is right with it and wrong without"


def test_effects_are_of_samples_that_are_right_or_wrong() -> None:
    right = effects_of_latents(latents(), samples(), correct=True).set_index(["dictionary", "latent"])
    assert right.total.to_dict() == {("A", 7): 2.0, ("B", 7): 0.25}
    assert (right.samples == 1).all()
    wrong = effects_of_latents(latents(), samples(), correct=False).set_index(["dictionary", "latent"])
    assert wrong.total.to_dict() == {("A", 7): -0.5, ("A", 8): -3.0, ("B", 7): 0.5}
    assert wrong["mean"]["A", 7] == -0.25
    by_gradient = effects_of_latents(latents(), samples(), "gradient", correct=True).set_index(["dictionary", "latent"])
    assert by_gradient.total.to_dict() == {("A", 7): 1.25, ("A", 8): -1.5, ("B", 7): 0.125}


def test_the_top_is_of_each_sign_and_dictionary() -> None:
    table = effects_of_latents(latents(), samples())
    top = top_latents(table, 1)
    assert list(zip(top.dictionary, top.latent, top.sign, strict=True)) == [
        ("A", 7, "positive"),
        ("A", 8, "negative"),
        ("B", 7, "positive"),
    ]
    assert top_latents(table, 5, sign="negative").latent.tolist() == [8]
    together = top_latents(table, 1, per_dictionary=False, by="mean_fired")
    assert together.mean_fired.tolist() == [0.5, -3.0]
    assert not len(top_latents(table[:0]))
    for options, said in [({"by": "n"}, "by: 'n'"), ({"sign": "large"}, "sign: 'large'"), ({"k": 0}, "k: 0")]:
        with pytest.raises(InputError, match=said):
            top_latents(table, **options)


def test_dictionaries_come_in_the_order_of_the_rows() -> None:
    turned = latents().replace({"A": "Z"})
    assert effects_of_latents(turned, samples()).dictionary.tolist() == ["Z", "Z", "B"]
    assert list(one_against_another(turned).attrs["r"]) == ["Z", "B"]


def test_activations_are_summed_up() -> None:
    table = activation_summary(latents(), samples()).set_index(["dictionary", "latent"])
    assert list(table.index) == [("A", 7), ("A", 8), ("B", 7)]
    assert table.n.tolist() == [3, 1, 2]
    assert table.share.tolist() == [1.0, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert table["mean"].tolist() == [2.0, 1.0, 1.0]
    assert table.mean_fired.tolist() == [2.0, 3.0, 1.5]
    assert table.largest.tolist() == [3.0, 3.0, 2.0]
    assert table.example.tolist() == [2, 2, 1]


def test_two_operations_are_held_against_each_other() -> None:
    table = one_against_another(latents())
    assert (table.gradient == 0.5 * table.ablation).all()
    assert table.attrs["r"]["A"] == pytest.approx(1.0)
    assert math.isnan(table.attrs["r"]["B"]), "one latent alone"
    turned = latents()
    turned.loc[turned.operation == "gradient", "effect"] *= -1
    assert one_against_another(turned).attrs["r"]["A"] == pytest.approx(-1.0)
    with pytest.raises(InputError, match="no rows of 'patching'"):
        one_against_another(latents(), "patching")


def test_frames_of_something_else_are_refused() -> None:
    for function in (correctness, classification, base_against_spliced):
        with pytest.raises(InputError, match="samples: has no column 'operation'"):
            function(samples().drop(columns="operation"))
    with pytest.raises(InputError, match="latents: has no column 'dictionary'"):
        effects_of_latents(samples(), samples())
    with pytest.raises(InputError, match="latents: has no column"):
        one_against_another(samples())


def test_a_figure_has_each_latent_s_totals() -> None:
    figure = parity_figure(latents())
    points, line, other, _ = figure.data
    assert (list(points.x), list(points.y), list(points.text)) == ([0.75, -1.5], [1.5, -3.0], ["latent 7", "latent 8"])
    assert list(line.x) == list(line.y) == [-3.0, 1.5]
    assert list(other.y) == [0.75]
    assert [each.text for each in figure.layout.annotations] == ["A, r = 1.000", "B, r = nan"]
    with pytest.raises(InputError, match="no rows of 'patching'"):
        parity_figure(latents(), "patching")


def test_a_figure_has_the_effects_of_all_or_of_each_batch() -> None:
    whole = effects_figure(latents())
    assert [(list(each.x), list(each.y)) for each in whole.data] == [([7, 8], [1.5, -3.0]), ([7], [0.75])]
    batches = effects_figure(latents(), "gradient", batch=2)
    found = {(each.name, each.yaxis): dict(zip(each.x, each.y, strict=True)) for each in batches.data}
    assert found[("examples 0 to 1", "y")] == {7: 0.5}
    assert found[("examples 2 to 3", "y")] == {7: 0.25, 8: -1.5}
    assert found[("examples 0 to 1", "y2")] == {7: 0.375}
    for options, said in [({"batch": 0}, "batch: 0"), ({"operation": "patching"}, "no rows of 'patching'")]:
        with pytest.raises(InputError, match=said):
            effects_figure(latents(), **options)
