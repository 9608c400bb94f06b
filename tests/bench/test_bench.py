"""The bench: its ways to a Jacobian agree, values that differ stop it, and its figures are what they are called.

Nothing here asks how long anything takes.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook
from torch import Tensor
from typer.testing import CliRunner

import attrib
from attrib.core.types import EXACT, LINEAR, Effect, InputError, Policy, Site, TopLogits
from tests.support.root import ROOT

with install_import_hook("bench", "tests.support.checked.first_calls"):
    from bench import measure, output, run
    from bench.engine import cases, check, compare, goals, ours, plain, plots, recipes, weights
    from bench.engine.cases import Case, Problem
    from bench.engine.compare import Options
    from bench.engine.recipes import Rows, Way
    from bench.engine.weights import Shape
    from bench.measure import Time

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton's kernels are not interpreted here")
TINY = {
    "gpt2": Shape("tiny-gpt2", 32, 4, 4, 8, 64, "layer", "gelu_tanh", False, "learned", d_vocab=60, n_ctx=64),
    "gemma": Shape("tiny-gemma", 32, 4, 2, 10, 48, "rms", "silu", True, "rotary", d_vocab=60, n_ctx=64),
}
POLICIES = {"exact": EXACT, "linear": LINEAR}
SIZES = {"d_sae": 100, "active": 6}


def between_latents(shape: str, policy: Policy = EXACT) -> Problem:
    return cases.latents(TINY[shape], 1, 3, 8, policy, d_sae=100, active=(5, 6))


PROBLEMS: dict[str, Callable[[str], Problem]] = {
    "latent-latent": between_latents,
    "token-latent": lambda shape: cases.tokens_to_latents(TINY[shape], 3, 8, **SIZES),
    "latent-logit": lambda shape: cases.latents_to_logits(TINY[shape], 1, 3, 8, k=7, **SIZES),
}


def all_ways(problem: Problem) -> dict[str, Way]:
    """Every way, the notebook's in chunks that do not divide its rows."""
    edges = ours.attribute(problem, ours.METHOD, "float32")
    targets = recipes.nodes(edges.targets)
    rows = torch.arange(0, len(targets), 2)
    return {
        "attrib": recipes.through_attrib(problem, ours.METHOD, "float32", targets),
        "as_written": recipes.as_written(problem, len(targets)),
        "chunked": recipes.chunked(problem, rows, len(targets), 3),
        "autograd_batched": recipes.autograd_batched(problem, rows, len(targets), 3),
        "torch_func": recipes.through_attrib(problem, "torch.func", "float32", targets, [len(problem.tokens) - 1]),
    }


def computed(way: Way) -> Rows:
    return way.read(*way.compute())


# ---------------------------------------------------------------------------------------------- values


@pytest.mark.few
@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_way_gives_the_same_jacobian(shape: str, kind: str, policy: str) -> None:
    ways = all_ways(replace(PROBLEMS[kind](shape), policy=POLICIES[policy]))
    found = {name: computed(way) for name, way in ways.items()}
    verdict = check.agree(found)
    assert verdict.passed, verdict.faults
    assert len(verdict.errors) == 10  # every pair of five
    assert all(error < 1e-5 for error in verdict.errors.values()), verdict.errors
    whole = found["attrib"].gradient
    assert (whole.abs().sum(1) > 0).all()
    for name, rows in found.items():
        assert len(rows.gradient) == len(rows.place) == len(ways[name].place), name
        assert ways[name].is_sample == (len(rows.place) < len(whole)), name


def test_the_policies_are_told_apart() -> None:
    exact, linear = (computed(all_ways(between_latents("gpt2", policy))["chunked"]) for policy in POLICIES.values())
    assert check.distance(linear.gradient, exact.gradient) > 0.01


@pytest.mark.parametrize(("rule", "k"), [("topk", 6), ("jumprelu", None), ("relu", None)])
def test_the_plain_dictionary_is_attribs(rule: Any, k: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 32, generator=generator)
    made = weights.random_dictionary(Site(0, "resid_pre"), 80, 12, x, seed=1)
    params = made.params._replace(
        b_dec=0.2 * torch.randn(32, generator=generator), threshold=torch.rand(80, generator=generator) * (rule == "jumprelu")
    )
    made = replace(made, params=params, config=replace(made.config, rule=rule, k=k, apply_b_dec_to_input=True))
    latents = plain.encode(made, x)
    assert len(latents) < (latents > 0).sum() < latents.numel() / 2
    torch.testing.assert_close(latents, attrib.encode(made, x))
    torch.testing.assert_close(plain.decode(made, latents), attrib.decode(made, latents))


@pytest.mark.parametrize("shape", TINY)
def test_the_plain_model_is_attribs(shape: str) -> None:
    problem = PROBLEMS["latent-logit"](shape)
    model, x = problem.model, plain.embed(problem.model, problem.tokens)
    reached = plain.forward(model, x, 0, 3, EXACT)
    torch.testing.assert_close(plain.unembed(model, reached, EXACT), attrib.forward(model, problem.tokens))


def test_the_notebook_says_what_it_does_not_know() -> None:
    problem = between_latents("gpt2")
    source = replace(problem.source, config=replace(problem.source.config, site=Site(1, "mlp_out")))
    with pytest.raises(InputError, match=r"mlp_out; the notebook recipe knows the stream between layers"):
        recipes.notebook(replace(problem, source=source))
    source = replace(problem.source, config=replace(problem.source.config, normalisation="layer_norm"))
    with pytest.raises(attrib.UnsupportedError, match="normalises its input"):
        recipes.notebook(replace(problem, source=source))


# ------------------------------------------------------------------------------------------- the check


def rows_of(gradient: Tensor, place: list[int], latents: list[int] | None = None) -> Rows:
    at = torch.tensor(place)
    return Rows(
        at, gradient, torch.stack([at, at if latents is None else torch.tensor(latents)], 1), torch.zeros(gradient.shape[1], 2).long()
    )


def test_rows_are_compared_by_their_place() -> None:
    J = torch.randn(4, 3)
    assert check.agree({"a": rows_of(J, [0, 1, 2, 3]), "b": rows_of(J[[3, 1]], [3, 1])}).passed
    assert not check.agree({"a": rows_of(J, [0, 1, 2, 3]), "b": rows_of(J[[3, 1]], [1, 3])}).passed


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (rows_of(torch.ones(2, 3) * 1.001, [0, 1]), r"a / b: 1\.0e-03 apart over 2 rows, tolerance 1e-04"),
        (rows_of(torch.full((2, 3), torch.nan), [0, 1]), r"inf apart"),
        (rows_of(torch.ones(2, 3), [0, 1], [0, 5]), r"not the same nodes"),
        (rows_of(torch.ones(2, 2), [0, 1]), r"not the same nodes \(3 and 2 sources\)"),
        (rows_of(torch.ones(2, 3), [2, 3]), r"no row in common"),
    ],
)
def test_what_differs_is_said(other: Rows, says: str) -> None:
    verdict = check.agree({"a": rows_of(torch.ones(2, 3), [0, 1]), "b": other})
    assert not verdict.passed
    assert len(verdict.faults) == 1
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(verdict.faults[0])


@pytest.mark.parametrize(("dtype", "passes"), [("float32", 5e-5), ("tf32", 2e-3), ("bfloat16", 2e-2)])
def test_only_attrib_may_be_as_far_off_as_its_dtype(dtype: Any, passes: float) -> None:
    J = torch.ones(2, 3)
    for size, passed in ((passes, True), (5 * passes, False)):
        near = rows_of(J * (1 + size), [0, 1])
        assert check.agree({"attrib": rows_of(J, [0, 1]), "other": near}, dtype).passed == passed
        assert check.agree({"other": rows_of(J, [0, 1]), "attrib": near}, dtype).passed == passed
        assert check.agree({"attribution": rows_of(J, [0, 1]), "other": near}, dtype).passed == (size < 1e-4)


def test_a_jacobian_of_zeros_proves_nothing() -> None:
    zeros = rows_of(torch.zeros(2, 3), [0, 1])
    assert not check.agree({"a": zeros, "b": zeros}).passed


# ---------------------------------------------------------------------------------------------- a run


@pytest.fixture
def tiny_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Run the bench's command over tiny cases, with chunks of 16 rows."""
    listed = [Case(kind, f"tiny {kind}", partial(PROBLEMS[kind], "gpt2"), quick=kind != "token-latent") for kind in PROBLEMS]
    monkeypatch.setattr(run, "all_cases", lambda: {case.name: case for case in listed})
    monkeypatch.setattr(recipes, "chunk_of", lambda problem, limit: 16)
    monkeypatch.setattr(compare, "MOST_ROUNDS", 2)
    monkeypatch.setattr(measure, "PRODUCTS", ((8, 8, 8),))

    def call(*arguments: str) -> tuple[Any, dict[str, Any]]:
        path = tmp_path / "figures.json"
        result = CliRunner().invoke(run.app, [*arguments, "--json", str(path)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result, json.loads(path.read_text()) if path.exists() else {}

    return call


def test_a_run_writes_its_figures(tiny_run: Callable[..., tuple[Any, dict[str, Any]]]) -> None:
    result, found = tiny_run()
    assert result.exit_code == 0, result.output
    assert list(found) == list(PROBLEMS)
    for name, figures in found.items():
        assert figures["checked"] is True, name
        for key in ("ratio_vs_notebook", "cpu_s", "wall_s", "peak_mb", "result_mb", "rate_gflops", "wall_over_ideal", "peak_ratio"):
            assert isinstance(figures[key], float), key
            assert figures[key] > 0, key
        assert figures["flops"] > 0
        assert {"flops_over_floor", "notebook_cpu_s", "notebook_peak_mb", "torch_func_cpu_s", "autograd_batched_cpu_s"} <= set(figures)
        ways = figures["alternatives"]
        assert set(ways) == {"attrib", "notebook_chunked", "autograd_batched", "torch_func", "notebook_as_written"}
        assert len(figures["errors"]) == 10
        of_six_digits = {"rel": 1.5e-5}  # a figure, and the two that it is made of, are each within 5e-6
        assert figures["ratio_vs_notebook"] == pytest.approx(ways["notebook_chunked"]["cpu_s"] / ways["attrib"]["cpu_s"], **of_six_digits)
        assert figures["peak_ratio"] == pytest.approx(ways["notebook_chunked"]["peak_mb"] / ways["attrib"]["peak_mb"], **of_six_digits)
        assert figures["device"].endswith("-core CPU")
        assert ways["attrib"]["rows"] == ways["attrib"]["of"] == figures["targets"]
        for way in ways.values():
            assert way["extrapolated"] == (way["rows"] < way["of"])
    assert found["latent-latent"]["rows"] == 16 < found["latent-latent"]["of"]
    assert found["latent-latent"]["extrapolated"] is True
    assert found["latent-logit"]["extrapolated"] is False
    assert found["latent-latent"]["active"] == pytest.approx({"source": 5, "target": 6}, rel=0.05)


def cut_in_two(effect: Effect) -> Problem:
    """Between two SAEs, with a transcoder on the way and, for total effects, a third SAE."""
    problem = between_latents("gpt2")
    x = attrib.capture(problem.model, problem.tokens, [Site(1, "mlp_in"), Site(2, "resid_pre")])
    transcoder = weights.random_transcoder(Site(1, "mlp_in"), (Site(1, "mlp_out"),), 80, 5, x[Site(1, "mlp_in")], seed=4)
    # direct effects go on beside an MLP, and end at an SAE of the stream
    sae = weights.random_dictionary(Site(2, "resid_pre"), 80, 5, x[Site(2, "resid_pre")], seed=5)
    return replace(problem, cuts=(transcoder, sae) if effect == "total" else (transcoder,), effect=effect)


CUT: dict[str, Callable[[], Problem]] = {
    "cuts-direct": lambda: cut_in_two("direct"),
    "cuts-total": lambda: cut_in_two("total"),
    "cuts-logit": lambda: replace(cut_in_two("total"), target=TopLogits(7)),
    "cuts-across": lambda: cases.across_layers(TINY["gpt2"], 3, 8, d_sae=60, active=5),
    "cuts-tokens": lambda: cases.across_layers(TINY["gpt2"], 3, 8, from_tokens=True, d_sae=60, active=5),
}


@pytest.mark.long
@pytest.mark.parametrize("whole", [50, 1 << 20])
def test_a_run_through_cuts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: int) -> None:
    """All rows by plain transforms, or those of four positions."""
    monkeypatch.setattr(run, "all_cases", lambda: {name: Case(name, f"tiny {name}", CUT[name]) for name in CUT})
    monkeypatch.setattr(compare, "WHOLE", whole)
    monkeypatch.setattr(compare, "MOST_ROUNDS", 2)
    monkeypatch.setattr(measure, "PRODUCTS", ((8, 8, 8),))
    result = CliRunner().invoke(run.app, ["--case", "cuts-*", "--json", str(tmp_path / "figures.json")])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "figures.json").read_text())
    assert list(found) == list(CUT)
    for name, figures in found.items():
        assert figures["checked"] is True, name
        assert set(figures["skipped"]) == set(compare.NOTEBOOKS)
        assert list(figures["errors"]) == ["attrib / torch_func"]
        assert set(figures["alternatives"]) == {"attrib", "torch_func"}
        assert figures["ratio_vs_notebook"] is figures["peak_ratio"] is None
        assert isinstance(figures["ratio_vs_torch_func"], float)
        assert figures["plan_flops"] > 0
        assert figures["active"]["cuts"] == pytest.approx(5, rel=0.1)
        assert figures["extrapolated"] == (whole == 50 and name != "cuts-logit")


def test_the_time_of_rows_through_cuts_is_scaled_by_those_that_come_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "WHOLE", 0)
    problem = cut_in_two("total")
    targets = recipes.nodes(ours.attribute(problem, ours.METHOD, "float32").targets)
    way = compare.other_ways(problem, targets, Options(CPU))[0]["torch_func"]
    first = int((targets[:, 0] == targets[way.place[0], 0]).sum())
    assert len(way.open().targets.position) == first == way.opened < len(way.place) < way.of
    seconds = {"open": Time(1.0 + first, 1.0 + first), "run": Time(1.0 + len(way.place), 1.0 + len(way.place))}
    monkeypatch.setattr(compare, "timed", lambda call, device: (None, seconds["open" if call is way.open else "run"]))
    assert compare.time_of(way, CPU).wall == pytest.approx(1 + way.of)


@pytest.mark.long
def test_attrib_computes_in_bfloat16_and_the_others_do_not(tiny_run: Callable[..., tuple[Any, dict[str, Any]]]) -> None:
    result, found = tiny_run("--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert "attrib (method adjoint, dtype bfloat16) and its alternatives" in result.output
    assert "in chunks; method adjoint, dtype bfloat16" in " ".join(result.output.split())
    for name, figures in found.items():
        assert (figures["checked"], figures["method"], figures["dtype"]) == (True, "adjoint", "bfloat16"), name
        for pair, error in figures["errors"].items():
            assert (1e-3 < error < 3e-2) if pair.startswith("attrib / ") else error < 1e-5, pair


@pytest.mark.long
@interpreted
def test_attrib_computes_with_triton_kernels(tiny_run: Callable[..., tuple[Any, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    methods = []
    right = attrib.latent_to_logit
    monkeypatch.setattr(attrib, "latent_to_logit", lambda *args, **options: methods.append(options["method"]) or right(*args, **options))
    result, found = tiny_run("--case", "latent-logit", "--method", "adjoint-triton")
    assert result.exit_code == 0, result.output
    assert "attrib (method adjoint-triton, dtype float32)" in result.output
    figures = found["latent-logit"]
    assert (figures["checked"], figures["method"], figures["dtype"]) == (True, "adjoint-triton", "float32")
    assert methods.count("adjoint-triton") == 3  # for its values, and two rounds
    # torch counts nothing inside a kernel: the figure is that of the same sweeps without any
    problem = PROBLEMS["latent-logit"]("gpt2")
    with_kernels, without = (measure.flops(lambda m=m: ours.attribute(problem, m, "float32"))[1] for m in ("adjoint-triton", "adjoint"))
    assert with_kernels < without == figures["flops"]


def test_the_public_functions_get_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    for name in ("latent_to_latent", "token_to_latent", "latent_to_logit"):
        monkeypatch.setattr(attrib, name, lambda *args, **options: given.append(options))
    for make in PROBLEMS.values():
        problem = replace(make("gpt2"), policy=LINEAR, budget=12345)
        with pytest.raises(TypeCheckError):  # what stands for a function here gives no edges
            ours.attribute(problem, "adjoint-triton", "tf32", [2])
    expected = {"policy": LINEAR, "positions": [2], "budget": 12345, "method": "adjoint-triton", "dtype": "tf32", "precision_rows": 0}
    assert [{key: options[key] for key in expected} for options in given] == [expected] * 3
    assert [set(options) - set(expected) for options in given] == [set(), set(), {"logits"}]


def test_plain_transforms_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = between_latents("gpt2")
    targets = recipes.nodes(ours.attribute(problem, ours.METHOD, "float32").targets)
    given = []
    right = recipes.attribute
    monkeypatch.setattr(recipes, "attribute", lambda problem, *options: given.append(options[:2]) or right(problem, *options))
    way = compare.other_ways(problem, targets, Options(CPU, "adjoint-triton", "bfloat16"))[0]["torch_func"]
    assert way.repeats
    way.compute()
    assert given == [("torch.func", "float32")] * 2


@pytest.mark.parametrize(
    ("arguments", "cuda", "env", "says"),
    [
        (("tpu", "adjoint", "float32"), True, "1", r"'tpu'; expected cpu or cuda\."),
        (("cuda", "adjoint", "float32"), False, "1", r"there is no CUDA device here"),
        (("cpu", "torch.func", "float32"), False, "1", r"'torch\.func'; expected adjoint or adjoint-triton\."),
        (("cpu", "adjoint", "float64"), False, "1", r"'float64'; expected float32, tf32 or bfloat16\."),
        (("cpu", "adjoint", "tf32"), True, "1", r"tf32 is how CUDA multiplies.* expected float32 or bfloat16"),
        (("cpu", "adjoint-triton", "float32"), False, "0", r"needs CUDA, and there is none here"),
        (("cpu", "adjoint-triton", "float32"), True, "0", r"'adjoint-triton' on cpu; set TRITON_INTERPRET=1"),
        (("cuda", "adjoint-triton", "float32"), True, "1", r"'adjoint-triton' on cuda; unset TRITON_INTERPRET"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str, str], cuda: bool, env: str, says: str
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", env)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    with pytest.raises(run.typer.BadParameter, match=says):
        run.prepared(*arguments)


def test_what_can_be_measured_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for env, device in (("1", "cpu"), ("0", "cuda")):
        monkeypatch.setenv("TRITON_INTERPRET", env)
        assert run.prepared(device, "adjoint-triton", "bfloat16") == Options(torch.device(device), "adjoint-triton", "bfloat16")
    assert run.prepared("cuda", "adjoint", "tf32").dtype == "tf32"


@pytest.mark.parametrize(("option", "value"), [("--method", "torch.func"), ("--dtype", "half"), ("--device", "tpu")])
def test_a_bad_value_is_an_error_of_usage(tiny_run: Callable[..., tuple[Any, dict[str, Any]]], option: str, value: str) -> None:
    result, found = tiny_run(option, value)
    assert (result.exit_code, found) == (2, {})
    assert f"'{value}'; expected" in result.output
    assert option in result.output


def test_what_another_case_times_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PRODUCTS", ((8, 8, 8),))
    names = ("autograd_batched", "torch_func")
    case = Case("tiny", "the same elsewhere", lambda: between_latents("gpt2"), elsewhere=dict.fromkeys(names, "other"))
    found = compare.run_case(case, Options(CPU, rounds=1, slow_rounds=1, enough_s=0.0))
    assert found["checked"] is True
    assert found["skipped"] == dict.fromkeys(names, "timed in other")
    assert set(found["alternatives"]) == {"attrib", "notebook_chunked", "notebook_as_written"}
    assert found["ratio_vs_notebook"] > 0
    assert (found["torch_func_cpu_s"], found["autograd_batched_cpu_s"]) == (None, None)
    assert run.cells(found).count("skipped") == 2


@pytest.mark.long
def test_quick_and_named_cases(tiny_run: Callable[..., tuple[Any, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which cases are run: what comes of one is the same each time, and is computed once."""
    known = cache(lambda name: compare.run_case(run.all_cases()[name], Options(CPU, rounds=1, slow_rounds=1, enough_s=0.0)))
    monkeypatch.setattr(run, "run_case", lambda case, options: known(case.name))
    assert list(tiny_run("--quick")[1]) == ["latent-latent", "latent-logit"]
    assert list(tiny_run("--case", "token-latent")[1]) == ["token-latent"]
    assert list(tiny_run("--case", "*-logit", "--case", "latent-*")[1]) == ["latent-logit", "latent-latent"]
    result, _ = tiny_run("--case", "nothing")
    assert result.exit_code == 2
    assert "the cases are" in result.output


def wrong_values(wrong: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return wrong(*arguments) * 1.01


@pytest.mark.few
@pytest.mark.parametrize(
    ("broken", "way"),
    [("mlp", wrong_values), ("attention", wrong_values), ("encode", lambda right, d, x: right(d, x).relu() + 1e-3)],
)
def test_a_broken_value_stops_the_figures(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Callable[..., tuple[Any, dict[str, Any]]], broken: str, way: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(plain, broken, partial(way, getattr(plain, broken)))
    result, found = tiny_run("--case", "latent-latent")
    assert result.exit_code == 1
    assert "Values differ: latent-latent" in result.output
    figures = found["latent-latent"]
    assert figures["checked"] is False
    assert any("notebook_chunked" in fault for fault in figures["faults"])
    assert all(figures[key] is None for key in ("ratio_vs_notebook", "flops_over_floor", "cpu_s", "peak_mb"))
    assert "alternatives" not in figures


def test_a_distance_that_is_no_number_is_written_as_null(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Callable[..., tuple[Any, dict[str, Any]]]
) -> None:
    right = recipes.one_hot
    monkeypatch.setattr(recipes, "one_hot", lambda rows, value: right(rows, value) * torch.nan)
    result, found = tiny_run("--case", "latent-latent")
    assert result.exit_code == 1
    figures = found["latent-latent"]
    assert figures["errors"]["attrib / notebook_chunked"] is None
    assert figures["errors"]["attrib / torch_func"] < 1e-5
    assert any("attrib / notebook_chunked: inf apart" in fault for fault in figures["faults"])


def test_a_broken_alternative_stops_the_figures(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Callable[..., tuple[Any, dict[str, Any]]]
) -> None:
    right = recipes.one_hot
    monkeypatch.setattr(recipes, "one_hot", lambda rows, value: right(rows.flip(0), value))
    result, found = tiny_run()
    assert result.exit_code == 1
    assert [figures["checked"] for figures in found.values()] == [False] * 3  # and all cases were still run


def test_a_call_that_attrib_refuses_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = replace(between_latents("gpt2"), budget=10)
    found = compare.run_case(Case("refused", "a budget too small", lambda: problem), Options(CPU))
    assert found["checked"] is False
    assert "budget: 10 bytes" in found["faults"][0]


def test_the_recipe_as_written_is_left_out_where_it_does_not_fit() -> None:
    problem = between_latents("gpt2")
    targets = recipes.nodes(ours.attribute(problem, ours.METHOD, "float32").targets)
    needs = len(targets) * recipes.row_bytes(problem)
    fits = compare.other_ways(problem, targets, Options(CPU, as_written_limit=needs))
    assert "notebook_as_written" in fits[0]
    assert fits[1] == {}
    ways, skipped = compare.other_ways(problem, targets, Options(CPU, as_written_limit=needs - 1))
    assert "notebook_as_written" not in ways
    assert f"for {len(targets)} targets at once; the limit is" in skipped["notebook_as_written"]


# -------------------------------------------------------------------------------------------- output


def test_figures_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    output.write(path, {"a": {"cpu_s": 1.0}})
    for bad in (torch.ones(1), float("nan"), float("inf")):
        with pytest.raises((TypeError, ValueError)):
            output.write(path, {"a": {"cpu_s": bad}})
    assert json.loads(path.read_text()) == {"a": {"cpu_s": 1.0}}
    output.write(path, {"b": {"cpu_s": 2.0}})
    assert json.loads(path.read_text()) == {"b": {"cpu_s": 2.0}}
    assert [file.name for file in path.parent.iterdir()] == ["figures.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_numbers_of_a_table() -> None:
    assert (output.number(1.234), output.number(1.234, ".0f"), output.number(0.0)) == ("1.23", "1", "0.00")
    assert (output.number(None), output.number(None, ".1f", "not measured")) == ("-", "not measured")


def test_what_the_benches_share_needs_neither_torch_nor_attrib() -> None:
    """measure.py serves the kernels' bench, which runs without attrib."""
    program = "import sys, bench.output; print(sorted({'torch', 'attrib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    read = ast.walk(ast.parse((ROOT / "bench" / "measure.py").read_text()))
    imported = {name for node in read for name in imports_of(node)}
    assert "torch" in imported
    assert not {"attrib", "bench"} & imported


def imports_of(node: ast.AST) -> list[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    return [name.partition(".")[0] for name in names + [node.module or "" for node in [node] if isinstance(node, ast.ImportFrom)]]


# ------------------------------------------------------------------------------------ samples and scaling


def test_the_time_of_a_sample_is_scaled_and_what_is_done_once_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"open": Time(1.0, 2.0), "run": Time(3.0, 5.0)}
    monkeypatch.setattr(compare, "timed", lambda call, device: (None, seconds["open" if call is way.open else "run"]))
    way = Way(torch.arange(2), 10, lambda: None, lambda opened: None, lambda opened, found: found)
    assert compare.time_of(way, CPU)[:2] == (1 + 5 * 3, 2 + 5 * 5)
    way = replace(way, repeats=True)
    assert compare.time_of(way, CPU)[:2] == (1 + 5 * (3 - 1), 2 + 5 * (5 - 2))


def test_samples_of_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.arange(90, 100)
    rows = compare.sample_rows(100, 20, shared, generator)
    assert len(rows.unique()) == 20
    assert torch.equal(rows, rows.sort().values)
    assert torch.isin(rows, shared).sum() >= compare.SHARED_ROWS
    assert torch.equal(compare.sample_rows(5, 20, torch.arange(5), generator), torch.arange(5))


@pytest.mark.parametrize("positions", [1, 2, 3, 5, 32, 33])
def test_samples_of_positions_have_prefixes_of_mean_length(positions: int) -> None:
    found = compare.middle_positions(positions, 4)
    assert found == sorted(set(found))
    assert 1 <= len(found) <= 5
    assert sum(found) / len(found) == (positions - 1) / 2


def test_the_ways_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    names = ("attrib", "notebook_chunked", "torch_func")
    ways = {name: Way(torch.arange(1), 1, lambda: None, lambda _, name=name: order.append(name), lambda a, b: b) for name in names}
    product = Product(order)
    options = Options(CPU, rounds=3, slow_rounds=2, other_rounds=1, enough_s=0.0, other_enough_s=0.0)
    assert set(compare.take_turns(ways, product, options)) == set(names)
    turns = ["attrib", "notebook_chunked", "torch_func", "attrib", "notebook_chunked", "attrib"]
    assert order == [name for turn in turns for name in ("product", turn)]


def test_short_runs_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """attrib and the notebook, which the ratio is made of, for longer than the others."""
    order: list[str] = []
    names = ("attrib", "notebook_chunked", "torch_func")
    ways = {name: Way(torch.arange(1), 1, lambda: None, lambda _: None, lambda a, b: b) for name in names}

    def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, Time]:
        return call(), Time(0.5, 0.5)

    def time_of(way: Way, device: torch.device) -> Time:
        order.append(next(name for name in names if ways[name] is way))
        return Time(1.0, 1.0)

    monkeypatch.setattr(compare, "timed", timed)
    monkeypatch.setattr(compare, "time_of", time_of)
    compare.take_turns(ways, Product([]), Options(CPU, rounds=1, slow_rounds=1, other_rounds=1, enough_s=1.9, other_enough_s=0.9))
    assert [order.count(name) for name in names] == [4, 4, 2]


class Product(measure.ProductRate):
    """Takes note of its turns."""

    def __init__(self, order: list[str]) -> None:
        self.order = order

    def sample(self) -> None:
        self.order.append("product")


# ---------------------------------------------------------------------------------------------- measuring


def test_peak_and_flops_of_known_work() -> None:
    a = torch.ones(50, 40)

    def work() -> Tensor:
        big = torch.ones(1000, 250)  # 1 MB, gone before the product
        del big
        return a @ a.T

    result, used = measure.peak(work, CPU)
    assert torch.equal(result, torch.full((50, 50), 40.0))
    assert used == 1_000_000
    counted, flops = measure.flops(work)
    assert torch.equal(counted, result)
    assert flops == 2 * 50 * 40 * 50
    # as compare does it: counting does not show in the peak
    (_, flops), used = measure.peak(lambda: measure.flops(work), CPU)
    assert (flops, used) == (2 * 50 * 40 * 50, 1_000_000)


@pytest.mark.few
@pytest.mark.parametrize(
    ("dtype", "operands", "tf32"), [("float32", torch.float32, False), ("tf32", torch.float32, True), ("bfloat16", torch.bfloat16, False)]
)
def test_the_rate_is_of_products_as_the_sweep_makes_them(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, operands: torch.dtype, tf32: bool
) -> None:
    made: list[measure.ProductRate] = []
    seen: list[tuple[torch.dtype, bool]] = []
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision

    class Spied(Tensor):
        def __matmul__(self, other: Tensor) -> Tensor:
            seen.append((other.dtype, matmul.fp32_precision == "tf32"))
            return torch.zeros(1)

    def rate(*arguments: Any) -> measure.ProductRate:
        made.append(measure.ProductRate(*arguments))
        made[0].pairs = [(a.as_subclass(Spied), b) for a, b in made[0].pairs]
        return made[0]

    monkeypatch.setattr(measure, "PRODUCTS", ((8, 8, 8), (4, 8, 4)))
    monkeypatch.setattr(compare, "ProductRate", rate)
    options = Options(CPU, dtype=dtype, rounds=1, slow_rounds=1, enough_s=0.0, other_enough_s=0.0)
    found = compare.run_case(Case("tiny", "", lambda: between_latents("gpt2")), options)
    assert (found["checked"], found["dtype"]) == (True, dtype)
    assert len(seen) == 2 * len(found["alternatives"])
    assert set(seen) == {(operands, tf32)}
    assert matmul.fp32_precision == before
    assert found["rate_gflops"] == made[0].rate / 1e9


def test_a_rate_is_the_best_of_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PRODUCTS", ((2, 3, 4), (5, 5, 5)))
    product, entered = measure.ProductRate(CPU), []

    @contextmanager
    def within() -> Iterator[None]:
        entered.append(True)
        yield

    seconds = iter([1.0, 1.0, 4.0, 5.0, 2.0, 2.0])
    monkeypatch.setattr(measure, "timed", lambda run, device: (run(), Time(0.0, next(seconds))))
    product.calls, product.within = 3, within  # as on a GPU, where a single product's time would hold its launch
    for _ in range(3):
        product.sample()
    assert product.rate == max(3 * 48 / 2, 3 * 250 / 2)
    assert len(entered) == 6


def test_medians_and_sums_of_times() -> None:
    assert measure.medians([Time(1.0, 5.0), Time(3.0, 4.0), Time(2.0, 9.0)]) == Time(2.0, 5.0)
    assert measure.medians([Time(1.0, 5.0, 7.0), Time(1.0, 5.0, 9.0)]) == Time(1.0, 5.0, 8.0)
    assert Time(1.0, 2.0).plus(Time(3.0, 4.0).scaled(2.0)) == Time(7.0, 10.0)
    assert Time(1.0, 2.0, 3.0).plus(Time(3.0, 4.0, 5.0)).seconds == 8
    assert Time(1.0, 2.0).seconds == 1


def test_the_chunk_holds_what_the_notebook_needs() -> None:
    problem = cases.latents(TINY["gpt2"], 1, 2, 8, d_sae=4000, active=(4, 4))
    of = len(recipes.notebook(problem).targets)
    way = recipes.chunked(problem, torch.arange(of), of, of)
    opened = way.open()
    _, used = measure.peak(lambda: way.run(opened), CPU)
    assert 1 <= used / (of * recipes.row_bytes(problem)) < 1.15
    assert recipes.chunk_of(problem, 40 * recipes.row_bytes(problem)) == 40
    assert recipes.chunk_of(problem, 1) == recipes.MIN_CHUNK
    assert recipes.chunk_of(problem, cases.GIB) == recipes.MAX_CHUNK


def test_the_plan_is_set_beside_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = between_latents("gpt2")
    options = Options(CPU, rounds=1, slow_rounds=1, enough_s=0.0)
    monkeypatch.setattr(measure, "PRODUCTS", ((8, 8, 8),))
    flops = compare.run_case(Case("tiny", "with attrib's own plan", lambda: problem), options)["flops"]
    planned = SimpleNamespace(flops=2 * flops, floor=flops / 4, peak=1000, direction="reverse", bands=3)
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(attrib, "plan", lambda *arguments, **options: given.append(options) or planned)
    found = compare.run_case(Case("tiny", "with a plan", lambda: problem), options)
    assert found["flops_over_floor"] == 4
    assert found["flops_over_plan"] == 0.5
    assert found["direction"] == "reverse"
    assert found["peak_over_plan"] == pytest.approx(found["peak_mb"] * 1e3)
    ours.read_plan(replace(problem, policy=LINEAR, budget=999), "bfloat16")
    exact = {"policy": EXACT, "budget": problem.budget, "dtype": "float32"}
    assert given == [exact, {"policy": LINEAR, "budget": 999, "dtype": "bfloat16"}]


# ------------------------------------------------------------------------------------------- the cases


@pytest.mark.parametrize("active", [1, 6, 50])
def test_dictionaries_have_the_active_latents_asked_for(active: int) -> None:
    x = torch.randn(32, 24, generator=torch.Generator().manual_seed(0))
    made = weights.random_dictionary(Site(0, "resid_pre"), 400, active, x, seed=1)
    found = (attrib.encode(made, x) > 0).sum().item() / 32
    assert found == pytest.approx(active, rel=0.021)
    # no latent so near its threshold that rounding decides
    assert (x @ made.params.W_enc + made.params.b_enc).abs().min() > 1e-5


def test_goals_are_judged_by_the_worst() -> None:
    results = {"a": {"r": 10.0}, "b": {"r": 20.0}, "c": {"r": None}}
    assert goals.judge(goals.Goal("", "r", 15, True, ("a", "b")), results) == (10.0, "a", False)
    assert goals.judge(goals.Goal("", "r", 15, False, ("a", "b")), results) == (20.0, "b", False)
    assert goals.judge(goals.Goal("", "r", 20, False), results) == (20.0, "b", True)
    assert goals.judge(goals.Goal("", "r", 10, True, ("a",)), results) == (10.0, "a", True)
    assert goals.judge(goals.Goal("", "r", 0, True, ("a", "c")), results) == (None, None, False)  # one is not measured
    assert goals.judge(goals.Goal("", "r", 0, True, ("missing",)), results) == (None, None, False)


def test_quick_holds_every_case_of_the_goals() -> None:
    quick = {name for name, case in cases.all_cases().items() if case.quick}
    assert {name for goal in goals.GOALS for name in goal.cases} == quick


def test_what_is_left_out_is_timed_in_the_same_run() -> None:
    known = cases.all_cases()
    assert set(known["gpt2-0-3-exact-tight"].elsewhere) == {"autograd_batched", "torch_func"}
    for case in known.values():
        for name, other in case.elsewhere.items():
            assert name not in known[other].elsewhere
            assert known[other].quick >= case.quick
            assert case.axis is None  # the figures of a scaling draw every way


def test_scalings_have_an_axis_and_their_size_in_it() -> None:
    scalings = [case for case in cases.all_cases().values() if case.axis]
    assert {case.axis for case in scalings} == {"targets", "positions", "layers", "d_sae"}
    assert all(str(case.size) in case.name and not case.quick for case in scalings)


def test_the_text_is_long_enough(smollm2_folder: Path) -> None:
    problem = cases.smollm2("6", "9")
    assert problem.tokens.shape == (64,)
    assert problem.active() == pytest.approx({"source": 32, "target": 32}, rel=0.2)


def test_shapes_are_checked_in_the_bench() -> None:
    with pytest.raises(TypeCheckError):
        check.distance(torch.ones(2, 3), torch.ones(3, 2))


# -------------------------------------------------------------------------------------------- figures


def way_of(seconds: float) -> dict[str, Any]:
    return {"cpu_s": seconds, "gpu_s": None, "extrapolated": seconds > 5}


def measured(size: int) -> dict[str, Any]:
    ways = {"attrib": way_of(1.0), "torch_func": way_of(2.0), "notebook_chunked": way_of(10.0)}
    facts = {"axis": "positions", "size": size, "checked": True, "device": "2-core CPU", "flops": 1e9, "rate_gflops": 100.0}
    facts |= {"method": "adjoint", "dtype": "tf32"}
    return facts | {"alternatives": ways}


@pytest.mark.parametrize("works", [True, False])
def test_a_scaling_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, works: bool) -> None:
    def write_image(self: Any, path: Path, **options: Any) -> None:
        if not works:
            raise ValueError("\n\nkaleido [or its browser] is not here,\nmore")
        path.write_bytes(b"png")

    monkeypatch.setattr(plots.go.Figure, "write_image", write_image)
    results = {"b": measured(16), "a": measured(8), "bad": measured(32) | {"checked": False}, "other": {"axis": None}}
    (tmp_path / "figures.json").write_text(json.dumps(results))
    done = CliRunner().invoke(plots.app, [str(tmp_path / "figures.json"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    html = (tmp_path / "out" / "scaling-positions.html").read_text()
    assert len(html) < 50_000  # plotly.js is not inside
    assert "scaled from a sample of rows" in html
    assert "[8,16]" in html.replace(" ", "")
    assert (tmp_path / "out" / "scaling-positions.png").exists() == works
    assert "attrib (adjoint, tf32)" in html
    said = done.output.splitlines()[1:]
    assert len(said) == (0 if works else 1)
    assert works or said[0].startswith("No PNG: kaleido [or its browser] is not here. It needs kaleido and a browser")
    assert list((tmp_path / "out").glob("*.html")) == [tmp_path / "out" / "scaling-positions.html"]
