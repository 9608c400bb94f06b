"""Runs of tasks: frames against the functions that they are made by, in blocks, after a stop, and in folders of something else."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import attrib
from attrib.causal import tasks
from attrib.causal.tasks import Example, Task, run_task
from attrib.core.types import FormatError, InputError, NotFiniteError
from tests.support.builders import build, prompt
from tests.support.root import ROOT
from tests.support.task_cases import examples, saes

ALL = ("base", "spliced", "gradient", "ablation")


def many(count: int = 10) -> Task:
    """Two answers and labels of both kinds, prompts of several lengths."""
    return Task("many", [Example(prompt(3 + n % 4, seed=n), (3, 11), n % 2) for n in range(count)])


@pytest.fixture(scope="module")
def dictionaries() -> list[attrib.Dictionary]:
    return [attrib.from_sae_lens(one) for one in saes("topk", torch.float32).values()]


@pytest.fixture(scope="module")
def whole(dictionaries: list[attrib.Dictionary]) -> Any:
    return run_task(build("gpt2"), many(), dictionaries, operations=ALL, batch=4)


def test_frames_hold_what_the_functions_give(whole: Any, dictionaries: list[attrib.Dictionary]) -> None:
    model, cases = build("gpt2"), many().examples
    samples, latents = whole.samples, whole.latents
    assert list(samples) == list(tasks.frames.SAMPLES)
    assert list(latents) == list(tasks.frames.LATENTS)
    for name, found in [("base", tasks.logit_differences(model, cases)), ("spliced", tasks.logit_differences(model, cases, dictionaries))]:
        rows = samples[samples.operation == name].sort_values("example")
        assert rows.example.tolist() == list(range(10))
        for column in ("difference", "loss", "probability", "prediction", "correct"):
            np.testing.assert_allclose(rows[column].astype(float), getattr(found, column).double(), rtol=1e-4, atol=1e-5)
        assert rows.said.tolist() == [str(token) for token in found.said.tolist()]
        assert rows.tokens.tolist() == [len(each.prompt) for each in cases]
        assert rows.right.tolist() == ["11" if n % 2 else "3" for n in range(10)]
    for by in ("gradient", "ablation"):
        found = tasks.latent_effects(model, cases, dictionaries, by=by)
        rows = latents[latents.operation == by]
        assert rows.example.tolist() == found.prompt.tolist()
        assert rows.latent.tolist() == found.latent.tolist()
        assert rows.dictionary.tolist() == [dictionaries[number].name for number in found.dictionary.tolist()]
        np.testing.assert_allclose(rows.effect, found.effect.double(), rtol=1e-4, atol=1e-5)
        assert rows.kept.tolist() == found.kept.tolist()
    active = latents[latents.operation == "spliced"]
    assert active.effect.isna().all()
    assert active.latent.tolist() == latents[latents.operation == "gradient"].latent.tolist()


def test_an_ablation_counts_as_correct_where_most_latents_can_go(whole: Any) -> None:
    samples, latents = whole.samples, whole.latents
    rows = samples[samples.operation == "ablation"].set_index("example").correct
    kept = latents[latents.operation == "ablation"].groupby("example").kept.mean()
    assert (rows == (kept > 0.5)).all()
    assert 0 < rows.sum() < len(rows)


def test_a_run_in_a_folder_is_the_run_in_memory_and_is_not_done_twice(
    whole: Any, dictionaries: list[attrib.Dictionary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, told = build("gpt2"), []
    ran = run_task(model, many(), dictionaries, operations=ALL, batch=4, out=tmp_path / "out", progress=told.append)
    assert told == [4, 8, 10]
    pd.testing.assert_frame_equal(ran.samples, whole.samples)
    pd.testing.assert_frame_equal(ran.latents, whole.latents)
    opened = tasks.open_results(tmp_path / "out")
    assert opened.is_done
    assert opened.record == ran.record
    pd.testing.assert_frame_equal(opened.samples, whole.samples)
    before = files(tmp_path / "out")
    monkeypatch.setattr(tasks.effects, "spliced", None)  # it would fail if anything were computed
    monkeypatch.setattr(tasks.operations, "spliced", None)
    run_task(model, many(), dictionaries, operations=ALL, batch=4, out=tmp_path / "out")
    assert files(tmp_path / "out") == before


def files(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


class KilledError(Exception):
    """Stands for the end of a process."""


class Breaking:
    """Examples that end a run behind some of them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Example]:
        yield from islice(many().examples, self.count)
        raise KilledError


@pytest.mark.few
@pytest.mark.parametrize("count", [0, 3, 5, 9])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(count: int, dictionaries: list[attrib.Dictionary], tmp_path: Path) -> None:
    model, asked = build("gpt2"), {"operations": ("base", "gradient"), "batch": 4}
    run_task(model, many(), dictionaries, out=tmp_path / "whole", **asked)
    with pytest.raises(KilledError):
        run_task(model, Task("many", Breaking(count)), dictionaries, out=tmp_path / "stopped", **asked)
    assert not tasks.open_results(tmp_path / "stopped").is_done
    (tmp_path / "stopped" / "blocks" / ".000001.h5.0.partial").write_text("half")
    run_task(model, many(), dictionaries, out=tmp_path / "stopped", **asked)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_a_limit_may_grow(dictionaries: list[attrib.Dictionary], tmp_path: Path) -> None:
    model = build("gpt2")
    for limit in (6, 7, None):
        run_task(model, many(), dictionaries, operations=("gradient",), batch=4, limit=limit, out=tmp_path / "grown")
    run_task(model, many(), dictionaries, operations=("gradient",), batch=4, out=tmp_path / "whole")
    assert files(tmp_path / "grown") == files(tmp_path / "whole")
    for other in ([*many().examples[:8], *many(12).examples[10:]], many().examples[:9]):  # the last block of others, or of fewer
        with pytest.raises(InputError, match=r"block 2 of .* has results of"):
            run_task(model, Task("many", other), dictionaries, operations=("gradient",), batch=4, out=tmp_path / "grown")
    with pytest.raises(InputError, match="results of more than the 4 examples"):
        run_task(model, many(), dictionaries, operations=("gradient",), batch=4, limit=4, out=tmp_path / "grown")


PROGRAM = """
import os, signal, sys
import torch
from attrib.causal.tasks import Task, run_task
from tests.causal.test_task_runs import many
from tests.support.builders import build
torch.set_num_threads(1)
kill = lambda done: os.kill(os.getpid(), signal.SIGKILL) if done == 8 else None
run_task(build("gpt2"), many(), operations=["base"], batch=4, out=sys.argv[1], progress=kill)
"""


@pytest.mark.long
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    said = {"env": environment, "cwd": ROOT, "capture_output": True, "text": True}
    ran = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "killed")], check=False, **said)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert not tasks.open_results(tmp_path / "killed").is_done
    for folder in ("killed", "whole"):
        run_task(build("gpt2"), many(), operations=["base"], batch=4, out=tmp_path / folder)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    model, out = build("gpt2"), tmp_path / "out"
    run_task(model, many(), batch=4, out=out)
    before = files(out)
    for changed, said in [
        ({"batch": 5}, "another batch: 4, and not 5"), ({"positions": "all"}, "another positions"), ({"errors": True}, "another errors"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=said):
            run_task(model, many(), out=out, **({"batch": 4} | changed))
    with pytest.raises(InputError, match="another model"):
        run_task(build("gpt2", seed=1), many(), batch=4, out=out)
    with pytest.raises(InputError, match=r"block 0 of .* has results of"):
        run_task(model, Task("many", many().examples[1:]), batch=4, out=out)
    assert files(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not the folder of a run"):
        run_task(model, many(), out=tmp_path / "mine")
    with pytest.raises(InputError, match="make it first"):
        run_task(model, many(), out=tmp_path / "no" / "out")
    with pytest.raises(InputError, match=r"has no task\.json"):
        tasks.open_results(tmp_path / "mine")


def test_damage_is_said_and_a_second_run_at_once_is_refused(tmp_path: Path) -> None:
    model, out = build("gpt2"), tmp_path / "out"
    run_task(model, many(), batch=4, out=out)
    block = out / "blocks" / "000001.h5"
    block.write_bytes(block.read_bytes()[:-7])
    with pytest.raises(FormatError, match=r"000001.h5: truncated or damaged"):
        tasks.open_results(out).samples  # noqa: B018
    with pytest.raises(FormatError, match="truncated or damaged"):
        run_task(model, many(), batch=4, out=out)
    (out / "task.json").write_text("{")
    with pytest.raises(FormatError, match="is damaged"):
        tasks.open_results(out)

    def again(_: int) -> None:
        with pytest.raises(InputError, match="is being run by"):
            run_task(model, many(), batch=4, out=tmp_path / "two")

    run_task(model, many(), batch=4, out=tmp_path / "two", limit=1, progress=again)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"operations": ()}, "operations: "),
        ({"operations": "base"}, "operations: 'base'; expected a list"),
        ({"operations": ["patching"]}, "operations: 'patching'; expected base, spliced, gradient, ablation"),
        ({"operations": ["base", "gradient"], "dictionaries": []}, "'gradient' is about dictionaries"),
        ({"batch": 0}, "batch: 0"),
        ({"limit": True}, "limit: True"),
        ({"positions": "middle"}, "positions"),
        ({"task": Task("none", [])}, "task: none has no examples"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(changed: dict[str, Any], said: str, dictionaries: list[attrib.Dictionary], tmp_path: Path) -> None:
    options = dict(changed)
    task, given = options.pop("task", many()), options.pop("dictionaries", dictionaries)
    for out in (None, tmp_path / "out"):
        with pytest.raises(InputError, match=said):
            run_task(build("gpt2"), task, given, out=out, **options)


def test_a_bad_example_is_refused_by_its_number_and_what_came_before_is_kept(tmp_path: Path) -> None:
    cases = [*many(5).examples, Example(prompt(4), (3, 60), where="a.jsonl, line 6")]
    with pytest.raises(InputError, match=r"example 5 \(a.jsonl, line 6\)"):
        run_task(build("gpt2"), Task("bad", cases), batch=2, out=tmp_path / "out")
    assert tasks.open_results(tmp_path / "out").samples.example.tolist() == [0, 1, 2, 3]
    model = build("gpt2")
    params = model.params._replace(W_U=model.params.W_U.clone().index_fill_(1, torch.tensor([5]), torch.nan))
    broken = attrib.Model(params, model.config, "broken")
    with pytest.raises(NotFiniteError, match="prompt 0"):
        run_task(broken, many())


def test_operations_of_one_s_own_go_beside_the_others() -> None:
    def twice(batch: tasks.Batch) -> Any:
        samples, latents = tasks.OPERATIONS["base"](batch)
        return samples.assign(operation="twice", difference=2 * samples.difference), latents

    ran = run_task(build("gpt2"), many(), operations={"base": tasks.OPERATIONS["base"], "twice": twice}).samples
    base, own = (ran[ran.operation == name].difference.to_numpy() for name in ("base", "twice"))
    np.testing.assert_array_equal(own, 2 * base)
    with pytest.raises(InputError, match="operations: has no column 'operation'"):
        run_task(build("gpt2"), many(), operations={"mine": lambda batch: (pd.DataFrame({"example": [1]}), pd.DataFrame())})


def test_memory_is_told_by_object_and_by_phase(dictionaries: list[attrib.Dictionary], tmp_path: Path) -> None:
    model = build("gpt2")
    table = tasks.parameter_memory(model, dictionaries)
    assert table.object.tolist() == ["model", "dictionary", "dictionary"]
    p = dictionaries[0].params
    assert table["bytes"][1] == sum(4 * each.numel() for each in p)
    tied = 4 * (60 * 32 if model.params.W_U.data_ptr() == model.params.W_E.data_ptr() else 0)
    assert table["bytes"][0] == sum(4 * each.numel() for each in torch.utils._pytree.tree_leaves(model.params)) - tied
    ran = run_task(model, many(3), dictionaries, operations=ALL, memory=True, out=tmp_path / "out")
    assert ran.memory.phase.tolist() == ["pass", *ALL]
    assert sys.platform != "linux" or (ran.memory.peak > 1 << 20).all()
    pd.testing.assert_frame_equal(tasks.open_results(tmp_path / "out").memory, ran.memory)
    assert json.loads((tmp_path / "out" / "done.json").read_text()) == {"examples": 3}
    assert len(examples()) == 4
