"""What a dictionary was hashed with is what it computes with, in numbers that are numbers, and in no more memory than it accounts for."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import attrib
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import FormatError, InputError
from attrib.dictionaries.dictionary import Dictionary, after_gain, decode, decode_at, encode, encode_at, encode_sparse, normalise_input
from attrib.jobs.shard import compute, prepare
from attrib.runs.results import edges_of
from tests.adapters.test_dictionary_folders import PATH, clt, gemma_scope, gemma_scope_2, rewrite, sparsify, transcoder_set
from tests.support.builders import D_MODEL, build, dictionary, normal, prompt, sae
from tests.support.job_cases import SITES, corpus, make_job
from tests.support.root import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# ------------------------------------------------------------------------------------------- numbers that are none


def tensors(**changes: Any) -> dict[str, Any]:
    given = {"W_enc": normal(4, 6), "W_dec": normal(6, 4), "b_enc": normal(6), "b_dec": normal(4), "W_skip": normal(4, 4)}
    return {"site": "blocks.1.hook_resid_pre"} | given | changes


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("key", ["W_enc", "W_dec", "b_enc", "b_dec", "W_skip"])
def test_weights_that_are_no_numbers_are_named(key: str, bad: float):
    given = tensors()
    given[key][(..., 2)] = bad
    at = r"\[2\]" if given[key].ndim == 1 else r"\[0, 2\]"
    with pytest.raises(InputError, match=rf"{key}: -?(nan|inf) at {at} in dictionary blocks\.1\.hook_resid_pre; expected finite numbers"):
        from_tensors(**given)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_in_every_dtype_and_order_of_memory(dtype: torch.dtype):
    given = {key: value if isinstance(value, str) else value.to(dtype) for key, value in tensors().items()}
    from_tensors(**given)
    given["W_enc"][3, 5] = torch.nan
    for W_enc in (given["W_enc"], given["W_enc"].T.contiguous().T):
        with pytest.raises(InputError, match=r"W_enc: nan at \[3, 5\] .* 1 of 24 are not"):
            from_tensors(**given | {"W_enc": W_enc})


def test_thresholds_may_have_no_end():
    """A latent of threshold inf never passes. One of threshold NaN would not either, and nobody meant that."""
    threshold = torch.tensor([0.0, 0.1, torch.inf, -torch.inf, 0.2, 0.0])
    ours = from_tensors(**tensors(threshold=threshold))
    assert not encode(ours, 100 * normal(5, 4))[:, 2].any()
    with pytest.raises(InputError, match=r"threshold: nan at \[4\]"):
        from_tensors(**tensors(threshold=threshold.index_fill(0, torch.tensor(4), torch.nan)))


def test_what_overflows_on_its_way_is_named():
    ours = from_tensors(**tensors(b_enc=torch.full((6,), 1e6)))
    with pytest.raises(InputError, match=r"b_enc: inf at \[0\] in dictionary .* in torch\.float16"):
        ours.to(dtype=torch.float16)
    assert ours.to(dtype=torch.float64).params.b_enc.dtype == torch.float64
    with pytest.raises(InputError, match=r"W_enc: -?inf at .* behind the norm's weights"):
        after_gain(ours, torch.full((4,), 1e-40), torch.zeros(4))
    W_dec = normal(6, 4).index_fill(0, torch.tensor(1), 0.0)
    with pytest.raises(InputError, match=r"W_dec: nan at \[1, 0\] .* after its gates or norms were folded in"):
        from_tensors(**tensors(k=2, rescale_acts_by_decoder_norm=True, W_dec=W_dec, W_skip=None))


def saved(folder: Path) -> Path:
    sae("jumprelu", D_MODEL).save_model(folder)
    return folder


FOLDERS: dict[str, tuple[Callable[[Path], Path], str, str, str, dict[str, Any]]] = {
    "sae-lens": (saved, "sae_weights", "b_enc", "W_dec", {}),
    "set": (lambda folder: transcoder_set(folder / "set"), "layer_1", "b_enc", "W_dec", {"layer": 1}),
    "clt": (lambda folder: clt(folder / "clt"), "W_enc_1", "b_enc_1", "W_enc_1", {"layer": 1}),
    "sparsify": (lambda folder: sparsify(folder / "layers.5.mlp"), "sae", "encoder.bias", "encoder.weight", {}),
    "Gemma Scope 2": (
        lambda folder: gemma_scope_2(folder, affine=False, hf_hook_point_in="model.layers.9.output"), "params", "b_enc", "w_dec", {},
    ),
}  # fmt: skip
each_folder = pytest.mark.parametrize("library", FOLDERS)


@pytest.mark.parametrize("lazy", [False, True], ids=["", "lazy"])
@each_folder
def test_files_of_every_library_are_looked_through(library: str, lazy: bool, tmp_path: Path):
    make, file, bias, weight, options = FOLDERS[library]
    for key in (bias, weight):
        folder = make(tmp_path / key)
        rewrite(folder / f"{file}.safetensors", lambda state, key=key: state[key].view(-1)[5:6].fill_(torch.nan))
        late = lazy and key == weight
        if not late:
            with pytest.raises(FormatError, match=r": nan at \[.*5\] in dictionary|: nan at \[5, 0\] in dictionary"):
                attrib.load_dictionary(folder, lazy=lazy, **options)
            continue
        ours = attrib.load_dictionary(folder, lazy=True, **options)
        with pytest.raises(FormatError, match=r": nan at \[.*\] in dictionary .* among what was read of it just now"):
            use(ours)


def use(ours: Dictionary) -> None:
    """Read all that an attribution would, encoder and decoder."""
    x, latent = normal(7, D_MODEL), torch.arange(ours.d_sae)
    found = encode_sparse(ours, x)
    decode_at(ours, torch.ones(len(latent)), torch.zeros_like(latent), latent, normalise_input(ours, x)[1])
    assert len(found.value)


def test_arrays_are_looked_through(tmp_path: Path):
    folder = gemma_scope(tmp_path / PATH, b_enc=np.full(48, np.inf, np.float32))
    with pytest.raises(FormatError, match=r"b_enc: inf at \[0\] in dictionary"):
        attrib.load_dictionary(folder, site="resid_post")


# -------------------------------------------------------------------------------------- files that are written into


def other(folder: Path, file: str) -> None:
    """`cp other.safetensors DICT/...`: the same names, shapes and size, other numbers, in the same place on the disk."""
    path = folder / f"{file}.safetensors"
    before, state = path.stat(), load_file(path)
    save_file({key: 3 * value.clone() for key, value in state.items()}, folder / "other")
    shutil.copyfile(folder / "other", path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)


@each_folder
def test_what_was_hashed_is_what_is_computed_with(library: str, tmp_path: Path):
    """The fingerprint is taken before the file is written into, and after: the numbers lie in memory of their own."""
    make, file, *_, options = FOLDERS[library]
    folder, x = make(tmp_path), normal(7, D_MODEL)
    ours = attrib.load_dictionary(folder, **options)
    before, want = ours.fingerprint, encode(ours, x)
    other(folder, file)
    assert torch.equal(encode(ours, x), want)
    assert replace(ours).fingerprint == before  # hashed again
    assert not torch.equal(encode(attrib.load_dictionary(folder, **options), x), want)


@each_folder
def test_a_lazy_dictionary_sees_that_its_file_was_written_into(library: str, tmp_path: Path):
    make, file, *_, options = FOLDERS[library]
    folder, x = make(tmp_path), normal(7, D_MODEL)
    ours = attrib.load_dictionary(folder, lazy=True, **options)
    found = encode_sparse(ours, x)
    one = torch.tensor([0])
    other(folder, file)
    for read in (
        lambda: encode_sparse(ours, x),
        lambda: encode(ours, x),
        lambda: encode_at(ours, x, found.position, found.latent),
        lambda: decode(ours, torch.ones(1, ours.d_sae)),
        lambda: decode_at(ours, torch.ones(1), one, one, normalise_input(ours, x)[1]),
        lambda: replace(ours).fingerprint,
    ):
        with pytest.raises(FormatError, match=rf"{file}\.safetensors was written into while it was in use.*Load it again"):
            read()


def test_an_attribution_sees_it_too(tmp_path: Path):
    model = build("gpt2")
    source = attrib.load_dictionary(
        transcoder_set(tmp_path / "set", feature_input_hook="hook_resid_mid", model_name=None), layer=1, lazy=True
    )
    attrib.latent_to_logit(model, source, prompt(6), keep=attrib.TopK(3))
    other(tmp_path / "set", "layer_1")
    with pytest.raises(FormatError, match=r"layer_1\.safetensors was written into"):
        attrib.latent_to_logit(model, source, prompt(6), keep=attrib.TopK(3))


def test_a_dictionary_written_into_while_a_job_runs(tmp_path: Path):
    """What is left of the run is computed with what was hashed when it began, and the next run is refused."""
    beside = corpus(tmp_path)
    job = make_job(tmp_path / "job", beside)
    shard = job.shards[0]
    want, ready = compute(prepare(job.folder, "cpu"), shard), prepare(job.folder, "cpu")
    other(beside / SITES[0], "sae_weights")
    got = compute(ready, shard)
    assert len(want.results) > 0
    for ours, theirs in zip(edges_of(got.results), edges_of(want.results), strict=True):
        assert torch.equal(ours.attribution, theirs.attribution)
        assert ours.call == theirs.call
    with pytest.raises(InputError, match=rf"job: {SITES[0]} is not what it was when .* was made"):
        prepare(job.folder, "cpu")


def test_a_file_that_is_put_in_its_place_leaves_the_old_one_mapped(tmp_path: Path):
    """`mv` does not change what is mapped, and neither does taking it away."""
    folder, x = saved(tmp_path), normal(7, D_MODEL)
    path = folder / "sae_weights.safetensors"
    ours = attrib.load_dictionary(folder, lazy=True)
    want = encode(ours, x)
    save_file({key: 3 * value for key, value in load_file(path).items()}, folder / "other")
    os.replace(folder / "other", path)
    assert torch.equal(encode(ours, x), want)
    path.unlink()
    assert torch.equal(encode(ours, x), want)


@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu_skip_transcoder"])
def test_an_object_that_is_trained_on_does_not_reach_the_dictionary(kind: str):
    """sae-lens writes through `.data`, which torch counts no change of."""
    foreign, x = sae(kind, D_MODEL), normal(7, D_MODEL)
    ours = attrib.from_sae_lens(foreign)
    before, want = ours.fingerprint, encode(ours, x)
    foreign.fold_W_dec_norm() if kind != "topk" else foreign.fold_activation_norm_scaling_factor(3.0)
    assert torch.equal(encode(ours, x), want)
    assert ours.fingerprint == replace(ours).fingerprint == before


def test_tensors_that_are_changed_in_place_are_hashed_again():
    """`from_tensors` shares them, as it says."""
    given = tensors()
    ours = from_tensors(**given)
    before = ours.fingerprint
    given["W_enc"].mul_(2)
    assert ours.fingerprint != before
    assert ours.fingerprint == from_tensors(**given).fingerprint


# ------------------------------------------------------------------------- memory beyond what a file accounts for

MEASURE = """
import sys
from attrib.adapters import load_dictionary
from attrib.adapters.dictionaries import circuit_tracer
from attrib.adapters.dictionaries import gemma_scope
from attrib.adapters.dictionaries import sae_lens
from attrib.adapters.dictionaries import sparsify
from tests.support.memory import peak
for folder in sys.argv[1:]:
    before = peak()
    try:
        load_dictionary(folder, site="blocks.1.hook_resid_pre")
    except Exception as error:
        grown = peak() - before >> 20
        print(grown, type(error).__name__, error)
"""


def grown(*folders: Path) -> list[tuple[int, str]]:
    """By how many MiB loading each made the peak of a child's memory grow, and what it said."""
    command = [sys.executable, "-c", MEASURE, *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [(int(size), said) for size, said in (line.split(" ", 1) for line in done.stdout.splitlines())]


def bomb(folder: Path) -> None:
    """A few hundred kB of zeros that would be 200 MB."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for key, shape in {"W_enc": (64, 400_000), "W_dec": (400_000, 64), "b_enc": (400_000,)}.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
                block = bytes(1 << 20)
                left = 4 * int(np.prod(shape))
                for _ in range(left // len(block)):
                    file.write(block)
                file.write(bytes(left % len(block)))


@pytest.mark.long
def test_memory_is_bounded_by_what_files_hold(tmp_path: Path):
    """Peak memory of a child process: what it takes beyond Python and its packages."""
    archive, folder = tmp_path / PATH, saved(tmp_path / "json")
    bomb(archive)
    assert (archive / "params.npz").stat().st_size < 300_000
    (folder / "cfg.json").write_text("[" + "0.1," * 7_500_000 + "0]")
    (first, inflates), (second, is_long) = grown(archive, folder)
    assert "FormatError" in inflates
    assert "would take 206,400,384 in memory: weights do not lie that close" in inflates
    assert "cfg.json has 30,000,003 bytes; expected at most 1,048,576" in is_long
    assert max(first, second) < 30


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("file", ["layer_1.safetensors", "sae.safetensors"])
def test_a_pipe_is_not_waited_for(file: str, tmp_path: Path):
    folder = transcoder_set(tmp_path / "set") if file.startswith("layer") else sparsify(tmp_path / "layers.5.mlp")
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises((FormatError, InputError), match=rf"{file} is no file|holds no sae_weights"):
        attrib.load_dictionary(folder, layer=1 if file.startswith("layer") else None)


def test_archives_of_honest_weights_are_read(tmp_path: Path):
    """Compressed, with a threshold and biases that compress well."""
    folder = gemma_scope(tmp_path / PATH)
    with np.load(folder / "params.npz") as arrays:
        kept = dict(arrays)
    kept["b_enc"][:], kept["threshold"][:] = 0, 0.5
    np.savez_compressed(folder / "params.npz", **kept)
    assert attrib.load_dictionary(folder, site="resid_post").d_sae == 48


# ------------------------------------------------------------------------------------------------------- one line


AT = "from blocks.1.hook_resid_pre, float32)"
MLP = "blocks.1.mlp.hook_in"


@pytest.mark.parametrize(
    ("ours", "text"),
    [
        (lambda: dictionary("standard"), f"Dictionary('blocks.1.hook_resid_pre', standard as relu, 32 -> 80 -> 32 {AT}"),
        (lambda: dictionary("topk"), f"Dictionary('blocks.1.hook_resid_pre', topk k=6, 32 -> 80 -> 32 {AT}"),
        (
            lambda: dictionary("transcoder", MLP, torch.float64, d_out=24),
            f"Dictionary('{MLP}', transcoder as relu, 32 -> 80 -> 24 from {MLP} to blocks.1.hook_mlp_out, float64)",
        ),
    ],
)
def test_a_dictionary_is_one_line(ours: Callable[[], Dictionary], text: str):
    pytest.importorskip("sae_lens")  # whose names of kinds it is about
    assert repr(ours()) == text
    assert len(repr(ours().params)) < 120
    assert "\n" not in repr(ours().params)
    assert repr(ours().params).startswith("DictionaryParams(W_enc [32, 80], W_dec [80, ")


def test_a_lazy_one_says_so(tmp_path: Path):
    ours = attrib.load_dictionary(clt(tmp_path / "clt"), layer=1, lazy=True)
    assert repr(ours) == (
        "Dictionary('clt/layer_1', cross_layer_transcoder as jumprelu, 32 -> 48 -> 64 from blocks.1.hook_resid_mid "
        "to blocks.1.hook_mlp_out "
        "and later, float32, lazy)"
    )


# --------------------------------------------------------------------------------------- names in a fresh interpreter


def test_documented_names_are_there_at_once():
    """In a fresh interpreter, where nothing else has loaded their modules."""
    names = (
        "adapters.from_tensors",
        "adapters.load_dictionaries",
        "dictionaries.dictionary.after_gain",
        "dictionaries.fit.fitted",
        "models.transformer.walk",
        "core.types.Site",
    )
    program = f"import attrib; {'; '.join(f'attrib.{name}' for name in names)}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
