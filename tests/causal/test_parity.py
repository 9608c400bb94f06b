"""Rules against each other: known numbers, edges over the same nodes, and a question asked by several rules."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

import attrib
from attrib.causal import Ranking, compare, compare_rules
from attrib.core.types import InputError
from tests.support.builders import build, dictionary, prompt

F64 = torch.float64


def the_metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[-1].logsumexp(-1)


def test_the_table_is_what_scipy_and_numpy_say() -> None:
    rng = np.random.default_rng(0)
    a, noise = rng.normal(size=300), rng.normal(size=300)
    found = compare({"a": a, "twice": torch.from_numpy(2 * a), "noisy": (a + noise).reshape(3, 100)}, tops=[5, 400])
    line = found.table.set_index(["a", "b"])
    assert line.loc[("a", "twice")].tolist() == pytest.approx([1, 1, 2, 1, 1])
    noisy = line.loc[("a", "noisy")]
    assert noisy.correlation == pytest.approx(scipy.stats.pearsonr(a, a + noise).statistic)
    assert noisy.rank_correlation == pytest.approx(scipy.stats.spearmanr(abs(a), abs(a + noise)).statistic)
    assert noisy.slope == pytest.approx(np.linalg.lstsq(a[:, None], a + noise, rcond=None)[0][0])
    assert noisy.same_sign == pytest.approx((np.sign(a) == np.sign(a + noise)).mean())
    largest = [set(np.argsort(-abs(each))[:5]) for each in (a, a + noise)]
    assert noisy.top_5 == len(largest[0] & largest[1]) / 5
    assert "top_400" not in found.table
    assert found.points("a", "noisy").noisy.to_numpy() == pytest.approx(a + noise)
    assert "Parity of 3 rules over 300 scores" in repr(found)


def test_the_figure_has_a_panel_for_each_two() -> None:
    pytest.importorskip("plotly")
    made = compare({"x": range(5000), "y": range(5000), "z": range(0, 10000, 2)}).figure()
    assert [len(trace.x) for trace in made.data] == [2000, 2] * 3
    assert made.layout.annotations[1].text == "r = 1.000, slope 2.000"


def test_a_question_is_asked_by_several_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = build("gpt2", F64), [prompt(5), prompt(3)]
    source, target = dictionary("topk", "blocks.1.hook_resid_pre", F64), dictionary("standard", "blocks.3.hook_resid_pre", F64)
    frozen = attrib.Policy("frozen", "frozen", "frozen")
    linear = compare_rules(attrib.latent_to_logit, model, source, tokens, policy=frozen, logits=attrib.TopLogits(3))
    assert linear.table.iloc[0][["correlation", "slope", "top_10"]].tolist() == pytest.approx([1, 1, 1])
    for call in (
        lambda: compare_rules(attrib.latent_to_metric, model, source, tokens, the_metric),
        lambda: compare_rules(attrib.latent_to_latent, model, source, target, tokens),
    ):
        line = call().table.iloc[0]
        assert (line.a, line.b) == ("attribution", "ablation")
        assert 0.3 < line.correlation < 1 - 1e-6

    def turned(model: Any, source: Any, tokens: Any, *, rule: Any = None, **options: Any) -> attrib.Edges:
        edges = attrib.latent_to_logit(model, source, tokens, **options)
        return edges if rule is None else replace(edges, attribution=-edges.attribution)

    assert compare_rules(turned, model, source, tokens, rules=["attribution", "gradient"]).table.correlation.tolist() == pytest.approx([-1])
    by_passes = compare_rules(
        attrib.latent_to_logit, model, source, tokens, policy=frozen, rules=["ablation", "gradient_times_activation", attrib.Gradient()]
    )
    assert by_passes.table.iloc[0][["a", "b", "correlation"]].tolist() == ["ablation", "gradient_times_activation", pytest.approx(1)]
    assert len(by_passes.table) == 3
    with pytest.raises(InputError, match="rules: 'turned' is not a rule; expected"):
        compare_rules(attrib.latent_to_logit, model, source, tokens, rules=["turned", "ablation"])

    def without(model: Any, source: Any, tokens: Any) -> attrib.Edges:
        return attrib.latent_to_logit(model, source, tokens)

    with pytest.raises(InputError, match="rules: 'ig:8'; without takes no rule"):
        compare_rules(without, model, source, tokens, rules=["ig:8", "ablation"])


def test_what_are_not_the_same_things_is_refused() -> None:
    model, source = build("gpt2", F64), dictionary("topk", "blocks.1.hook_resid_pre", F64)
    one, other = (attrib.latent_to_logit(model, source, prompt(5, seed=seed)) for seed in (1, 2))
    steps = attrib.causal.verify(one, model, dictionaries=[source], n=3)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"a": [1.0]}, "rules: 1; expected two"),
        ({"a": one, "b": other}, "rules: 'b' is of other nodes than 'a'"),
        ({"a": [1.0, 2], "b": [1.0]}, "rules: 'b' has 1 scores"),
        ({"a": [1.0, float("nan")], "b": [1.0, 2]}, "rules: 'a' has scores that are NaN"),
        ({"a": [], "b": []}, "rules: 'a' has no scores"),
        ({"a": one, "b": "text"}, "rules: 'b' is a str"),
        ({"a": steps, "b": [1.0]}, "is measured at 2 steps"),
    ]
    for rules, said in cases:
        with pytest.raises(InputError, match=said):
            compare(rules)
    with pytest.raises(InputError, match="tops: 0"):
        compare({"a": [1.0], "b": [2.0]}, tops=[0])
    with pytest.raises(InputError, match="rule: 'c'"):
        compare({"a": [1.0], "b": [2.0]}).points("a", "c")
    assert compare({"a": Ranking("a", (torch.ones(2, 3),)), "b": range(6)}).table.slope[0] == 2.5
