"""A process that is killed leaves what goes on to the same bytes; what was made with something else is refused."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attrib
from attrib.training import ActivationStore, fitting, store_activations, train
from attrib.training import activations as storing
from tests.support.builders import build

RESID, MLP_IN, MLP_OUT = "blocks.1.hook_resid_pre", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
USUAL: dict[str, Any] = {
    "reads": RESID, "architecture": "standard", "width": 40, "l1_coefficient": 100.0, "samples": 64 * 30, "batch": 64, "lr": 3e-2,
    "l1_warm_up_steps": 2, "dead_feature_window": 3, "resample_every": 6, "checkpoint_every": 5, "log_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> attrib.Model:
    return build("llama")


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 60, (24, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def store(model: attrib.Model, ids: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return store_activations(model, ids, [RESID, MLP_IN, MLP_OUT], tmp_path_factory.mktemp("activations"))


def killed(act: Callable[[], Any]) -> None:
    """Do something in a process that ends itself by SIGKILL on its way."""
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reads": MLP_IN, "writes": MLP_OUT, "architecture": "batchtopk", "k": 3, "skip": True, "topk_threshold_lr": 0.1},
    ],
    ids=["standard", "skip-transcoder"],
)
def test_a_killed_training_ends_with_the_same_bytes(
    options: dict[str, Any], model: attrib.Model, store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = ("l1_coefficient", "l1_warm_up_steps", "resample_every") if options else ()
    config = {key: value for key, value in USUAL.items() if key not in dropped} | options
    train(model, store, config, tmp_path / "whole" / "out", work=tmp_path / "whole" / "work")

    save, row_of, seen = fitting.save_checkpoint, fitting.row_of, []

    def saved_and_killed(trainer: Any, folder: Path) -> None:
        """While the third checkpoint is written."""
        if trainer.n_training_steps == 15:
            (folder / ".15.0000.partial").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
        save(trainer, folder)

    def killed_between(trainer: Any, *rest: Any) -> Any:
        if trainer.n_training_steps == 24:
            os.kill(os.getpid(), signal.SIGKILL)
        return row_of(trainer, *rest)

    def again() -> Any:
        return train(model, store, config, tmp_path / "killed" / "out", work=tmp_path / "killed" / "work")

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "save_checkpoint", saved_and_killed)
        killed(again)
    checkpoints = tmp_path / "killed" / "work" / "checkpoints-out"
    assert {path.name for path in checkpoints.iterdir()} == {"10", ".15.0000.partial", "curves.jsonl", "made-with.json"}
    with (checkpoints / "curves.jsonl").open("a") as file:
        file.write('{"step": 1')  # a line that was not ended
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "row_of", killed_between)
        killed(again)
    assert {path.name for path in checkpoints.iterdir()} == {"20", "curves.jsonl", "made-with.json"}
    assert not (tmp_path / "killed" / "out").exists()

    def counted(row: Any, steps: int) -> None:
        seen.append(row["step"])

    found = train(model, store, config, tmp_path / "killed" / "out", work=tmp_path / "killed" / "work", progress=counted)
    assert seen[0] > 20, "from the newest checkpoint, not from the start"
    assert bytes_of(tmp_path / "killed" / "out") == bytes_of(tmp_path / "whole" / "out")
    steps = [row["step"] for row in found.curves]
    assert steps == sorted({*steps})
    if not options:
        resampled = [row["step"] for row in found.curves if row["resampled"]]
        assert min(resampled) < 20 < max(resampled), "dead latents were resampled before the checkpoint and after it"


def test_activations_go_on_where_they_stopped(
    model: attrib.Model, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "AT_ONCE", 64)
    whole = store_activations(model, ids, [RESID, MLP_OUT], tmp_path / "whole")
    passes: list[int] = []
    once = storing.capture

    def capture(*given: Any) -> Any:
        passes.append(len(given[1]))
        if len(passes) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return once(*given)

    monkeypatch.setattr(storing, "capture", capture)
    killed(lambda: store_activations(model, ids, [RESID, MLP_OUT], tmp_path / "killed"))
    monkeypatch.setattr(storing, "capture", lambda *given: passes.append(len(given[1])) or once(*given))
    told: list[tuple[int, int]] = []
    # in another order of sites, which changes nothing
    again = store_activations(model, ids, [MLP_OUT, RESID], tmp_path / "killed", progress=lambda *now: told.append(now))
    assert passes == [4] * 4, "two batches of six were there; one pass for both sites"
    assert told[0] == (12, 24)
    assert told[-1] == (24, 24)
    assert again.is_whole
    for site, values in whole.arrays.items():
        np.testing.assert_array_equal(again.arrays[site], values)
        np.testing.assert_array_equal(again.norms[site], whole.norms[site])
        want = attrib.capture(model, ids, [site])[site].flatten(0, 1)
        torch.testing.assert_close(again.rows(site, np.arange(384)), want, rtol=1e-3, atol=1e-3)
    passes.clear()
    store_activations(model, ids, [RESID, MLP_OUT], tmp_path / "killed")
    assert not passes, "what is whole is not computed again"


def test_a_store_keeps_float32_and_batches_go_on(model: attrib.Model, ids: torch.Tensor, tmp_path: Path) -> None:
    store = store_activations(model, ids, RESID, tmp_path / "s", stored_as="float32")
    site = attrib.Site.parse(RESID)
    torch.testing.assert_close(store.rows(site, np.arange(384)), attrib.capture(model, ids, [site])[site].flatten(0, 1))
    rows = store.usual([site], 1.2)
    norms = store.rows(site, np.arange(384)).norm(dim=1).numpy()
    np.testing.assert_array_equal(rows, np.flatnonzero(norms < 1.2 * np.median(norms)))
    assert 0 < len(rows) < 384
    batches = store.batches({site: 2.0}, rows, 50, seed=1)
    first = [next(batches) for _ in range(len(rows) // 50 * 2 + 2)]
    later = store.batches({site: 2.0}, rows, 50, seed=1, skip=len(first) - 2)
    assert torch.equal(next(later), first[-2])
    assert torch.equal(next(later), first[-1])
    of_order = torch.cat(first[: len(rows) // 50])
    assert len({tuple(row) for row in of_order.tolist()}) == len(
        {tuple(row) for row in (store.rows(site, rows) * 2).tolist()} & {tuple(row) for row in of_order.tolist()}
    ), "each usual row once in an order"
    assert not torch.equal(of_order[:50], first[len(rows) // 50]), "the next order is another"


def test_values_that_float16_cannot_hold_are_not_trained_on(model: attrib.Model, ids: torch.Tensor, tmp_path: Path) -> None:
    loud = attrib.Site.parse(MLP_OUT)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            storing,
            "capture",
            lambda *given: {
                site: torch.where(torch.arange(16)[None, :, None] == 0, 1e6, 1.0) * torch.ones(len(given[1]), 16, 32) for site in given[2]
            },
        )
        store = store_activations(model, ids, loud, tmp_path / "loud")
        assert len(store.usual([loud])) == 384 - 24
        assert float(store.rows(loud, np.arange(1)).max()) == 60_000
        patched.setattr(storing, "capture", lambda *given: {site: torch.full((len(given[1]), 16, 32), float("nan")) for site in given[2]})
        with pytest.raises(attrib.InputError, match=f"texts: tiny-llama has values that are not finite at {MLP_OUT}"):
            store_activations(model, ids, loud, tmp_path / "nan")


def test_what_was_made_with_something_else_is_refused(
    model: attrib.Model, ids: torch.Tensor, store: ActivationStore, tmp_path: Path
) -> None:
    store_activations(model, ids, RESID, tmp_path / "s")
    for changed, named in (
        ({"contexts": ids.flip(0)}, "digest"),
        ({"sites": MLP_OUT}, "sites"),
        ({"stored_as": "float32"}, "stored_as float16"),
    ):
        given = {"contexts": ids, "sites": RESID} | changed
        with pytest.raises(attrib.InputError, match=f"work: .* was made with .*{named}.*Delete it, or give another folder"):
            store_activations(model, given.pop("contexts"), given.pop("sites"), tmp_path / "s", **given)
    with pytest.raises(attrib.InputError, match=f"data: .* has no activations of {MLP_IN}"):
        train(model, store_activations(model, ids, RESID, tmp_path / "s"), USUAL | {"reads": MLP_IN}, tmp_path / "no")
    short = USUAL | {"samples": 64 * 10, "lr_decay_steps": 0, "resample_every": 100}
    train(model, store, short, tmp_path / "out", work=tmp_path / "work")
    with pytest.raises(attrib.InputError, match=r"out: .* exists already; expected a new folder"):
        train(model, store, short, tmp_path / "out", work=tmp_path / "work")
    (tmp_path / "out").rename(tmp_path / "moved")
    with pytest.raises(attrib.InputError, match=r"work: .*checkpoints-out was made with lr 0.03, now 0.02. Delete it"):
        train(model, store, short | {"lr": 0.02}, tmp_path / "out", work=tmp_path / "work")
    made_with = tmp_path / "work" / "checkpoints-out" / "made-with.json"
    made_with.write_text(made_with.read_text()[:30])
    with pytest.raises(attrib.FormatError, match=r"made-with.json is damaged"):
        train(model, store, short, tmp_path / "out", work=tmp_path / "work")
    assert json.loads((tmp_path / "moved" / "training.json").read_text())["l1_coefficient"] == 100


def test_texts_are_packed_and_stored_on_the_way(model: attrib.Model, tmp_path: Path) -> None:
    texts = [torch.randint(0, 60, (40,), generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    short = USUAL | {"samples": 64 * 10, "batch": 32, "lr_decay_steps": 0, "resample_every": 100}
    found = train(model, texts, short, tmp_path / "out", context=16)
    assert found.dictionary.config.metadata.context_size == 16
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside it"
    with pytest.raises(
        attrib.InputError, match=r"batch: 256, but blocks.1.hook_resid_pre has 192 rows; give smaller batches, or more text"
    ):
        train(model, texts, short | {"batch": 256, "samples": 2560}, tmp_path / "no", context=16)
    with pytest.raises(attrib.InputError, match=r"lr: the loss is (nan|inf) after step"):
        train(model, texts, short | {"lr": 1e30, "lr_warm_up_steps": 0}, tmp_path / "no2", context=16)
