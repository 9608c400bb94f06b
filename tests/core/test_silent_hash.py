"""A result says which numbers it was computed with, whatever was done to them before: edited in place, laid out otherwise, moved."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib.core import fingerprints
from attrib.core.fingerprints import Fingerprinted, contents, fingerprint, seal, sha256_of, sums
from attrib.jobs.run import run
from attrib.jobs.verify import verify
from attrib.runs.rerun import rerun
from tests.support import builders
from tests.support.job_cases import SITES, corpus, here, make_job

EDITS: dict[str, Callable[[torch.Tensor], Any]] = {
    "under no_grad": lambda t: t.detach().add_(1),
    "through .data": lambda t: t.data[0].add_(1),
    "through numpy": lambda t: t.detach().numpy().__setitem__((0, 0), 5.0),
    "two rows exchanged": lambda t: t.data.__setitem__(slice(0, 2), t.data[:2].flip(0).clone()),
    "two columns negated": lambda t: t.data.__setitem__((slice(None), [1, 3]), -t.data[:, [1, 3]]),
}


@pytest.mark.few
@pytest.mark.parametrize("how", EDITS)
def test_weights_that_were_edited_in_place(how: str):
    original = builders.tiny("llama")
    model, source = attrib.from_hugging_face(original), builders.dictionary("standard")
    tokens = builders.prompt(5)

    def hashes() -> tuple[str, str]:
        call = attrib.latent_to_logit(model, source, tokens, keep=attrib.TopK(2)).call
        return call["model"]["sha256"], call["source"]["sha256"]

    before = hashes()
    assert hashes() == before
    weight = original.model.layers[2].mlp.up_proj.weight
    was = weight.detach().clone()
    EDITS[how](weight)
    edited = hashes()
    assert (edited[0] != before[0], edited[1]) == (True, before[1])
    EDITS[how](source.params.W_enc)
    assert hashes()[1] != before[1]
    weight.data.copy_(was)
    assert hashes()[0] == before[0]


LAID: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda t: t.T.contiguous().T,
    "every other column": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    "a slice": lambda t: torch.cat([t[:1], t, t[:1]])[1:-1],
    "permuted": lambda t: t.unflatten(1, (3, -1)).permute(2, 0, 1).contiguous().permute(1, 2, 0).flatten(1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("how", LAID)
def test_the_layout_makes_no_difference(how: str, dtype: torch.dtype):
    tensor = builders.normal(5, 9).to(dtype)
    laid = LAID[how](tensor)
    assert torch.equal(laid, tensor)
    assert contents([laid, tensor])[0] == contents([tensor])[0]
    assert fingerprint([laid]) == fingerprint([tensor])


SAME_BYTES = [((2, 3), torch.float32), ((3, 2), torch.float32), ((6,), torch.float32), ((3,), torch.float64), ((6,), torch.int32)]


def test_shapes_and_dtypes_make_a_difference():
    same_bytes = [torch.zeros(shape, dtype=dtype) for shape, dtype in SAME_BYTES]
    none = [torch.zeros(shape) for shape in ((0,), (0, 3), (3, 0), ())] + [torch.zeros(()).expand(2, 2)]
    assert len({fingerprint([tensor]) for tensor in (*same_bytes, *none)}) == len(same_bytes) + len(none)
    assert fingerprint([torch.zeros(3, 0).T]) == fingerprint([torch.zeros(0, 3)])
    assert fingerprint([], 1) != fingerprint([], 2)


# ------------------------------------------------------------------------------------------ accelerators


@pytest.mark.parametrize(("piece", "row"), [(1 << 23, 1 << 10), (16, 8), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8])
def test_quick_sums_tell_contents_apart(piece: int, row: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fingerprints, "PIECE", piece)
    monkeypatch.setattr(fingerprints, "ROW", row)
    one_hot = torch.eye(11)[:, :9]
    marked = [one_hot.index_fill(0, torch.tensor(rows), -1) for rows in ([1, 3], [1, 5])]
    turned = [one_hot.flip(0), one_hot.flip(1), one_hot.roll(1, 0), -one_hot, one_hot * 2, one_hot.T.contiguous()]
    seen = [one_hot, torch.zeros(11, 9), torch.ones(11, 9), *marked, *turned]
    found = sums([matrix.to(dtype).flatten() for matrix in seen])
    assert found[1:3] == [*sums([seen[1].to(dtype).flatten()]), *sums([seen[2].to(dtype).flatten()])], "alone and among others"
    assert len(set(found)) == len(seen)
    again = turned[0].to(dtype).flatten()
    assert sums([again]) == [found[5]]
    assert sums([torch.cat([again[:1], again])[1:]]) == [found[5]], "wherever in memory it begins"
    assert sums([again[:0], again]) == [b"", found[5]]


class Elsewhere:
    """As a tensor on an accelerator: what is of it on the host is counted."""

    copies = 0


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> type[Elsewhere]:
    """Every tensor is as if it were on an accelerator."""
    Elsewhere.copies = 0
    bytes_of = fingerprints._bytes

    def counted(tensor: torch.Tensor) -> Any:
        Elsewhere.copies += 1
        return bytes_of(tensor)

    monkeypatch.setattr(fingerprints, "on_host", lambda tensor: False)
    monkeypatch.setattr(fingerprints, "_known", {})
    monkeypatch.setattr(fingerprints, "_bytes", counted)
    return Elsewhere


def test_what_is_on_an_accelerator_comes_back_once(elsewhere: type[Elsewhere]):
    model = builders.attrib_model("llama")
    first, copies = model.fingerprint, elsewhere.copies
    assert copies > 0
    assert builders.attrib_model("llama").fingerprint == first, "the same numbers in other tensors"
    assert elsewhere.copies == copies
    model.params.W_E[3, 4] += 1
    assert model.fingerprint != first
    assert elsewhere.copies == copies + 1, "of the one tensor that was edited"


def test_what_was_moved_is_not_copied_back(elsewhere: type[Elsewhere], monkeypatch: pytest.MonkeyPatch):
    model = builders.attrib_model("llama")
    with monkeypatch.context() as inside:
        inside.setattr(fingerprints, "on_host", lambda tensor: tensor.device.type == "cpu")
        want = model.fingerprint
        before = model.params
    fingerprints._known.clear()
    after = torch.utils._pytree.tree_map(torch.clone, before)
    origin = {id(leaf) for leaf in torch.utils._pytree.tree_leaves(before)}
    monkeypatch.setattr(fingerprints, "on_host", lambda tensor: id(tensor) in origin)
    fingerprints.moved(before, after)
    copies = elsewhere.copies
    assert replace(model, params=after).fingerprint == want
    assert elsewhere.copies == copies


def test_as_many_contents_as_fit_are_remembered(elsewhere: type[Elsewhere], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fingerprints, "MOST_KNOWN", 2)
    found = contents([torch.full((3,), number) for number in (0.0, 1.0, 2.0, 0.0)])
    assert len(fingerprints._known) == 2
    assert (found[0], len(set(found))) == (found[3], 3)


# ------------------------------------------------------------------------------------------ what holds its own


def test_a_sealed_model_is_hashed_once_and_what_is_made_of_it_again():
    model = builders.attrib_model("gpt2")
    sealed = seal(model)
    assert sealed.fingerprint == model.fingerprint
    model.params.W_E[0] += 1
    assert sealed.fingerprint != model.fingerprint, "whoever seals says that nobody edits"
    assert replace(sealed).fingerprint == model.fingerprint


def test_hashes_of_the_version_before_still_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A job that was made under them goes on under them, and a file that names them can be made again."""
    beside = corpus(tmp_path)
    with monkeypatch.context() as before:
        before.setattr(Fingerprinted, "fingerprint", property(lambda self: self._hashed(sha256_of)))
        job = make_job(tmp_path / "job", beside)
    model = attrib.load_model(beside / "model")
    assert job.fixed.model == model._hashed(sha256_of) != model.fingerprint
    assert model.matches(job.fixed.model)
    run(job.folder, here)
    assert verify(job.folder) == []
    places = {name: beside / name for name in ("model", *SITES)}
    assert all(found.is_same for found in rerun(job.file(job.shards[0]), 1, places=places))
    (builders.tiny("llama", seed=5)).save_pretrained(beside / "model")
    assert (
        run(job.folder, here).changed
        == f"job: model is not what it was when {job.folder} was made. Put the old one back, or make a new job."
    )
