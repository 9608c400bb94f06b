"""Files of transcoder_circuits: written as they write them, read as data, computed as they compute; and what would run is not run."""

import gzip
import io
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attrib
from attrib.adapters import load_dictionaries, save_dictionary
from attrib.adapters.dictionaries.torch_files import tensor_of, torch_file
from attrib.cli import main as cli
from attrib.core.pickled import Call, DamagedError, Made, Name, read_pickle
from attrib.core.types import AttribError, FormatError, InputError, Site, UnsupportedError
from attrib.dictionaries.dictionary import decode, encode, reconstruct
from tests.support.builders import dictionary, normal
from tests.support.tolerances import DICTIONARY, assert_close
from tests.support.zips import repacked

SAE = pytest.importorskip("sae_lens").SAE

D_IN, D_SAE, D_OUT = 12, 40, 10
WAYS = ("zip", "legacy", "pickle", "gzip", "gzip of a zip")
READS, WRITES = "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"


@dataclass
class LanguageModelSAERunnerConfig:
    """The fields that theirs has after training, with the values of their example."""

    model_name: str = "gpt2-small"
    hook_point: str = READS
    hook_point_layer: int = 3
    hook_point_head_index: int | None = None
    dataset_path: str = "Skylion007/openwebtext"
    is_dataset_tokenized: bool = False
    context_size: int = 128
    use_cached_activations: bool = False
    d_in: int = D_IN
    device: Any = "cuda"
    seed: int = 42
    dtype: torch.dtype = torch.float32
    is_transcoder: bool = True
    out_hook_point: str | None = WRITES
    out_hook_point_layer: int | None = 3
    d_out: int | None = D_OUT
    is_sparse_connection: bool = False
    sparse_connection_use_W_enc: bool = True
    l1_coefficient: float = 1.4e-4
    lr_scheduler_name: str = "constantwithwarmup"
    use_ghost_grads: Any = (False,)
    feature_sampling_method: str | None = None
    wandb_entity: str | None = None
    use_tqdm: bool = True
    checkpoint_path: str = "gpt2-small-transcoders/abc"

    def __post_init__(self) -> None:
        self.d_sae = D_SAE
        self.run_name = "a run"
        self.device = torch.device(self.device, 0)


class SparseAutoencoder(nn.Module):
    """Their module: parameters with these names, and submodules without any, of which the state keeps versions."""

    def __init__(self, cfg: LanguageModelSAERunnerConfig, seed: int = 0) -> None:
        super().__init__()
        self.cfg, dtype = cfg, cfg.dtype
        d_out = cfg.d_out if cfg.is_transcoder and cfg.d_out else D_IN
        self.W_enc = nn.Parameter(normal(D_IN, D_SAE, seed=seed).to(dtype))
        self.b_enc = nn.Parameter(normal(D_SAE, seed=seed + 1).to(dtype))
        self.W_dec = nn.Parameter(normal(d_out, D_SAE, seed=seed + 2).to(dtype).T)  # lies transposed
        self.b_dec = nn.Parameter(normal(D_IN, seed=seed + 3).to(dtype))
        self.b_dec_out = nn.Parameter(normal(d_out, seed=seed + 4).to(dtype)) if cfg.is_transcoder else None
        self.hook_sae_in = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What it writes, and its latents."""
        latents = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        bias = self.b_dec if self.b_dec_out is None else self.b_dec_out
        return latents @ self.W_dec + bias, latents


def sae_config(**changes: Any) -> LanguageModelSAERunnerConfig:
    return LanguageModelSAERunnerConfig(
        **{"is_transcoder": False, "hook_point": "blocks.3.hook_resid_pre", "out_hook_point": None, "d_out": None} | changes
    )


@pytest.fixture(autouse=True)
def their_package() -> Iterator[None]:
    """While files are written the class is one of `sae_training.config`, which is nowhere when they are read."""
    module = LanguageModelSAERunnerConfig.__module__
    LanguageModelSAERunnerConfig.__module__ = "sae_training.config"
    LanguageModelSAERunnerConfig.__qualname__ = "LanguageModelSAERunnerConfig"
    yield
    LanguageModelSAERunnerConfig.__module__ = module
    assert not [name for name in sys.modules if name.startswith("sae_training")], "reading a file imports nothing"


def write(path: Path, value: Any, way: str = "zip") -> Path:
    """As their `save_model`, and as older torch; the class can be named only while its module is there."""
    sys.modules["sae_training"] = types.ModuleType("sae_training")
    sys.modules["sae_training.config"] = module = types.ModuleType("sae_training.config")
    module.LanguageModelSAERunnerConfig = LanguageModelSAERunnerConfig  # type: ignore[attr-defined]
    try:
        if way in ("zip", "legacy"):
            torch.save(value, path, _use_new_zipfile_serialization=way == "zip")
        elif way == "gzip of a zip":
            buffer = io.BytesIO()
            torch.save(value, buffer)
            path.write_bytes(gzip.compress(buffer.getvalue()))
        else:
            with (gzip.open if way == "gzip" else open)(path, "wb") as file:
                pickle.dump(value, file)
    finally:
        del sys.modules["sae_training.config"], sys.modules["sae_training"]
    return path


def saved(path: Path, cfg: LanguageModelSAERunnerConfig | None = None, way: str = "zip", seed: int = 0) -> SparseAutoencoder:
    module = SparseAutoencoder(cfg or LanguageModelSAERunnerConfig(), seed)
    write(path, {"cfg": module.cfg, "state_dict": module.state_dict()}, way)
    return module


def ending(way: str) -> str:
    return {"zip": ".pt", "legacy": ".pt", "pickle": ".pkl"}.get(way, ".pkl.gz")


def state(**changes: Any) -> dict[str, Any]:
    """A transcoder's file, with tensors put in the place of others."""
    module = SparseAutoencoder(LanguageModelSAERunnerConfig())
    tensors = {key: value for key, value in {**module.state_dict(), **changes}.items() if value is not None}
    return {"cfg": module.cfg, "state_dict": tensors}


# ---------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["transcoder", "SAE"])
def test_values_are_those_of_their_formula(way: str, kind: str, tmp_path: Path):
    path = tmp_path / f"final{ending(way)}"
    module = saved(path, sae_config() if kind == "SAE" else None, way)
    ours, x = attrib.load_dictionary(path), 2 * normal(2, 7, D_IN, seed=9) + 0.5
    with torch.no_grad():
        whole, latents = module(x)
    assert 0.1 < (latents > 0).float().mean() < 0.9
    assert_close(encode(ours, x), latents, DICTIONARY)
    assert_close(decode(ours, encode(ours, x)), whole, DICTIONARY)
    assert_close(reconstruct(ours, x), whole, DICTIONARY)
    assert ours.params.W_enc.dtype == torch.float32
    transcodes = kind == "transcoder"
    assert (ours.site, ours.writes) == (
        (Site(3, "mlp_in"), (Site(3, "mlp_out"),)) if transcodes else (Site(3, "resid_pre"), (Site(3, "resid_pre"),))
    )
    assert (ours.name, ours.config.kind, ours.config.model_name) == ("final", kind, "gpt2-small")
    assert ours.config.hook_name == (READS if transcodes else "blocks.3.hook_resid_pre")
    assert (ours.config.metadata.context_size, ours.config.metadata.dataset_path) == (128, "Skylion007/openwebtext")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_read_in_single(dtype: torch.dtype, tmp_path: Path):
    module = saved(tmp_path / "a.pt", LanguageModelSAERunnerConfig(dtype=dtype))
    ours = attrib.load_dictionary(str(tmp_path / "a.pt"))
    assert torch.equal(ours.params.W_dec, module.W_dec.detach().float())
    folded = module.b_enc.double() - module.b_dec.double() @ module.W_enc.double()
    assert torch.equal(ours.params.b_enc, folded.detach().float())


def test_tensors_that_share_a_storage_and_parameters(tmp_path: Path):
    both = torch.cat([normal(D_IN, seed=3), normal(D_OUT, seed=4)])
    value = state(b_dec=both[:D_IN], b_dec_out=both[D_IN:], b_enc=nn.Parameter(normal(D_SAE, seed=1)))
    for way in WAYS:
        ours = attrib.load_dictionary(write(tmp_path / f"a{ending(way)}", value, way))
        assert torch.equal(ours.params.b_dec, both[D_IN:])


def test_a_config_may_be_a_dictionary_or_older(tmp_path: Path):
    module = SparseAutoencoder(sae_config())
    older = {key: value for key, value in vars(module.cfg).items() if key in ("hook_point", "hook_point_layer", "d_in", "d_sae", "dtype")}
    ours = attrib.load_dictionary(write(tmp_path / "a.pt", {"cfg": older, "state_dict": module.state_dict()}))
    assert (ours.site, ours.config.apply_b_dec_to_input) == (Site(3, "resid_pre"), True)


def test_a_folder_of_them(tmp_path: Path):
    for layer in (10, 2):
        hooks = {"hook_point": f"blocks.{layer}.ln2.hook_normalized", "out_hook_point": f"blocks.{layer}.hook_mlp_out"}
        cfg = LanguageModelSAERunnerConfig(**hooks, hook_point_layer=layer, out_hook_point_layer=layer)
        saved(tmp_path / f"final_blocks.{layer}.pt", cfg)
        torch.save(torch.zeros(D_SAE), tmp_path / f"final_blocks.{layer}_log_feature_sparsity.pt")
    assert [one.site.layer for one in load_dictionaries(tmp_path)] == [2, 10]


# ------------------------------------------------------------------------------------------- converted


@pytest.mark.parametrize("kind", ["transcoder", "SAE"])
def test_what_is_converted_is_the_same_for_attrib_and_for_sae_lens(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    module = saved(tmp_path / "a.pkl.gz", sae_config() if kind == "SAE" else None, "gzip")
    command(["convert", tmp_path / "a.pkl.gz", "--out", tmp_path / "out"])
    assert f"40 latents, blocks.3.{'hook_resid_pre' if kind == 'SAE' else 'mlp.hook_in'} [12] to" in capsys.readouterr().out
    x = 2 * normal(5, D_IN, seed=9)
    with torch.no_grad():
        whole, latents = module(x)
        theirs = SAE.load_from_disk(str(tmp_path / "out"))
        assert_close(theirs.encode(x), latents, DICTIONARY)
        assert_close(theirs.decode(latents), whole, DICTIONARY)
    again, first = attrib.load_dictionary(tmp_path / "out"), attrib.load_dictionary(tmp_path / "a.pkl.gz")
    assert again.params._asdict().keys() == first.params._asdict().keys()
    assert all(torch.equal(one, other) for one, other in zip(again.params, first.params, strict=True))
    assert (again.site, again.writes, again.config.hook_name) == (first.site, first.writes, first.config.hook_name)
    assert again.config.metadata.context_size == 128


@pytest.mark.parametrize("kind", ["standard", "topk", "abstopk", "jumprelu", "gated", "transcoder", "skip_transcoder",
                                  "jumprelu_transcoder", "jumprelu_skip_transcoder"])  # fmt: skip
def test_every_kind_of_sae_lens_comes_back(kind: str, tmp_path: Path):
    is_transcoder = kind.endswith("transcoder")
    site = "blocks.1.mlp.hook_in" if is_transcoder else "blocks.1.hook_resid_pre"
    ours = dictionary(kind, site, torch.float64, **({"d_out": 24} if is_transcoder else {"normalize_activations": "layer_norm"}))
    again = attrib.load_dictionary(save_dictionary(ours, tmp_path / "out"))
    x = normal(5, ours.params.W_enc.shape[0], seed=9)
    assert_close(reconstruct(again, x), reconstruct(ours, x.double()).float(), DICTIONARY)
    with torch.no_grad():
        assert_close(SAE.load_from_disk(str(tmp_path / "out"))(x.double()), reconstruct(ours, x.double()), DICTIONARY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"writes": ["blocks.2.hook_mlp_out", "blocks.3.hook_mlp_out"]}, "it writes 2 places"),
        ({"rule": "jump", "threshold": torch.zeros(6)}, "it has the rule jump, which"),
        ({"k": 2, "writes": "blocks.2.hook_mlp_out"}, "the rule topk as a transcoder"),
        ({"writes": "blocks.2.hook_mlp_out", "puts_scale_back": True}, "puts back what normalisation took"),
        ({"normalisation": "layer_norm", "puts_scale_back": False}, "leaves out what normalisation took"),
        ({"writes": "blocks.2.hook_mlp_out", "apply_b_dec_to_input": True}, "subtracts what it adds elsewhere"),
        ({"W_skip": torch.eye(4)}, "has a skip connection"),
        ({"site": "blocks.2.attn.hook_z"}, "lays out by head"),
    ],
)
def test_what_sae_lens_does_not_compute_is_refused(options: dict[str, Any], message: str, tmp_path: Path):
    made = attrib.adapters.from_tensors(**{"site": "blocks.2.mlp.hook_in", "W_enc": torch.ones(4, 6), "W_dec": torch.ones(6, 4)} | options)
    with pytest.raises(UnsupportedError, match=message):
        save_dictionary(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_replaced_only_where_that_is_said(tmp_path: Path):
    saved(tmp_path / "a.pt")
    ours = attrib.load_dictionary(tmp_path / "a.pt")
    save_dictionary(ours, tmp_path / "out")
    with pytest.raises(InputError, match=r"holds a dictionary already; .*--overwrite"):
        save_dictionary(ours, tmp_path / "out")
    save_dictionary(dictionary("topk", "blocks.1.hook_resid_pre"), tmp_path / "out", overwrite=True)
    assert attrib.load_dictionary(tmp_path / "out").config.rule == "topk"
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds mine\.txt"):
        save_dictionary(ours, tmp_path / "out", overwrite=True)
    with pytest.raises(InputError, match="holds a file"):
        save_dictionary(ours, tmp_path / "a.pt", overwrite=True)
    with pytest.raises(InputError, match="does not exist; make it first"):
        save_dictionary(ours, tmp_path / "none" / "out")


# --------------------------------------------------------------------------------- what is not understood


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"hook_point_head_index": 3}, UnsupportedError, "hook_point_head_index=3; attrib does not read single heads"),
        ({"hook_point": "blocks.3.attn.hook_q"}, UnsupportedError, r"hook_point='blocks\.3\.attn\.hook_q' is no site"),
        ({"hook_point": "blocks.3.attn.hook_z"}, UnsupportedError, "one dictionary for every head"),
        ({"hook_point": None}, FormatError, "hook_point=None in its config"),
        ({"out_hook_point": None}, FormatError, "out_hook_point=None in its config"),
        ({"hook_point_layer": 4}, FormatError, "hook_point_layer=4 in its config, but hook_point='blocks.3"),
        ({"out_hook_point_layer": True}, FormatError, "out_hook_point_layer=True"),
        ({"d_in": 13}, FormatError, r"d_in=13 in its config, but W_enc is \[12, 40\]"),
        ({"d_out": 12}, FormatError, r"d_out=12 in its config, but .* W_dec \[40, 10\]"),
        ({"d_sae": 41}, FormatError, "d_sae=41 in its config"),
        ({"dtype": torch.float16}, FormatError, "dtype='float16' in its config, but W_enc is of torch.float32"),
        ({"is_transcoder": False}, FormatError, "is_transcoder=False in its config, and b_dec_out among its tensors"),
        ({"is_transcoder": "yes"}, FormatError, "is_transcoder='yes'; expected true or false"),
        ({"activation": "gelu"}, UnsupportedError, "activation='gelu' in its config, which attrib does not know"),
        ({"seed": 1 << 70}, FormatError, "seed of its cfg is a int that is too long"),
        ({"run_name": "x" * 5000}, FormatError, "run_name of its cfg is a str that is too long"),
        ({"device": [[1]]}, FormatError, "device of its cfg is a list"),
        ({"seed": torch.zeros(2)}, FormatError, "seed of its cfg is what calling torch._utils._rebuild_tensor_v2 would give"),
        ({"seed": Path("a")}, FormatError, r"seed of its cfg is what calling pathlib\.\w+ would give"),
        ({"seed": nn.Linear}, FormatError, r"seed of its cfg is torch\.nn\.modules\.linear\.Linear; expected"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit_or_are_not_known(changes: dict[str, Any], kind: type[AttribError], message: str, tmp_path: Path):
    value = state()
    vars(value["cfg"]).update(changes)
    with pytest.raises(kind, match=message):
        attrib.load_dictionary(write(tmp_path / "a.pt", value))


def nan() -> Tensor:
    made = normal(D_IN, D_SAE)
    made[2, 3] = torch.nan
    return made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": None}, r"W_enc is missing, expected \[d_in, d_sae\]"),
        ({"b_enc": torch.zeros(D_SAE + 1)}, r"b_enc is \[41\], expected \[40\]"),
        ({"b_dec": torch.zeros(D_OUT)}, r"b_dec is \[10\], expected \[12\]"),
        ({"b_dec_out": None}, "is_transcoder=True in its config, and no b_dec_out"),
        ({"W_enc": torch.zeros(D_IN * D_SAE)}, r"W_enc is \[480\]"),
        ({"threshold": torch.zeros(D_SAE)}, "it holds threshold, which attrib would leave out"),
        ({"W_enc": nan()}, r"W_enc: nan at \[2, 3\] in dictionary a"),
        ({"b_dec_out": torch.full((D_OUT,), torch.inf)}, r"b_dec: inf at \[0\] in dictionary a"),
        ({"b_dec": torch.full((D_IN,), torch.inf)}, r"b_enc: (nan|-?inf) at \[0\] in dictionary a"),
        ({"b_enc": torch.zeros(D_SAE, dtype=torch.int64)}, r"names torch\.LongStorage; expected a storage of floating numbers"),
        ({"b_enc": torch.zeros(1).expand(D_SAE)}, r"b_enc: \[40\] is more than its storage of 1 numbers holds"),
        ({"b_enc": torch.zeros(D_SAE).to_sparse()}, r"torch\.LongStorage; expected a storage of floating numbers"),
        ({"b_enc": torch.zeros(D_SAE, device="meta")}, r"b_enc: its pickle calls torch\._utils\._rebuild_meta_tensor_no_storage"),
        ({"b_enc": 3}, "b_enc: a int; expected a dense tensor"),
        ({"b_enc": torch.zeros(D_SAE).double()}, r"dtype='float32' in its config, but b_enc is of torch\.float64"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(FormatError, match=message):
        attrib.load_dictionary(write(tmp_path / "a.pt", state(**changes)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "holds a list; expected a file that transcoder_circuits"),
        ({"state_dict": {}}, "holds 'state_dict'; expected"),
        (torch.zeros(3), "holds a Call"),
        ({"cfg": 3, "state_dict": {}}, "its cfg is a int"),
        ({"cfg": types.SimpleNamespace(a=1), "state_dict": {}}, r"gives attributes to what calling types\.SimpleNamespace would"),
        ({"cfg": None, "state_dict": []}, "expected a file that transcoder_circuits"),
    ],
)
def test_other_files_of_torch(value: Any, message: str, tmp_path: Path):
    for way in ("zip", "gzip"):
        with pytest.raises((FormatError, UnsupportedError), match=message):
            attrib.load_dictionary(write(tmp_path / f"a{ending(way)}", value, way))


def test_other_paths_and_options(tmp_path: Path):
    saved(tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"lazy: .* is a pickle"):
        attrib.load_dictionary(tmp_path / "a.pt", lazy=True)
    with pytest.raises(InputError, match="site: given, but"):
        attrib.load_dictionary(tmp_path / "a.pt", site="blocks.1.hook_resid_pre")
    with pytest.raises(InputError, match="there is no file"):
        attrib.load_dictionary(tmp_path / "b.pt")
    with pytest.raises(InputError, match="no file of transcoder_circuits"):
        attrib.load_dictionary(str(tmp_path / "b.pt"))
    os.mkfifo(tmp_path / "c.pt")
    with pytest.raises(InputError, match="is a pipe"):
        attrib.load_dictionary(tmp_path / "c.pt")


# ------------------------------------------------------------------------------------------------ hostile


class Runs:
    """Runs a command where it is unpickled."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.at}",)


class Deeper:
    """The same from within what a function of torch is given."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (pickle.dumps(Runs(self.at)),)


def test_the_payloads_would_run(tmp_path: Path):
    pickle.loads(pickle.dumps(Runs(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("way", ["zip", "legacy", "gzip"])
def test_nothing_that_a_file_names_is_run(way: str, tmp_path: Path):
    ran = tmp_path / "ran"

    def hidden(place: str, payload: Any) -> Any:
        value = state()
        if place == "whole":
            return payload
        if place == "beside":
            return value | {"more": payload}
        if place == "cfg":
            return value | {"cfg": payload}
        if place == "config":
            value["cfg"].seed = payload
        elif place == "list":
            value["cfg"].seed = [payload]
        else:
            value["state_dict"][place] = payload
        return value

    for place in ("whole", "beside", "cfg", "config", "list", "W_enc", "extra"):
        for payload in (Runs(ran), Deeper(ran)):
            with pytest.raises((FormatError, UnsupportedError)):
                attrib.load_dictionary(write(tmp_path / f"a{ending(way)}", hidden(place, payload), way))
            assert not ran.exists(), place


def test_a_storage_whose_bytes_are_a_program(tmp_path: Path):
    """What plain pickles hold for numbers is a file of torch, in which the same rules hold."""
    payload = Call(Name("torch.storage._load_from_bytes"), (pickle.dumps(Runs(tmp_path / "ran")),))
    tensor = Call(Name("torch._utils._rebuild_tensor_v2"), (payload, 0, (1,), (1,), False, {}))
    with pytest.raises((DamagedError, ValueError)):
        tensor_of(tensor, "W_enc")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "compression", "message"),
    [
        (lambda name, raw: raw + bytes(1 << 20), zipfile.ZIP_DEFLATED, "what is in its zip is compressed, or overlaps"),
        (lambda name, raw: raw[:-4] if "/data/" in name else raw, zipfile.ZIP_STORED, r"its storage 0 has 1916 bytes, not those of 480"),
        (lambda name, raw: b"big" if "byteorder" in name else raw, zipfile.ZIP_STORED, "not little-endian"),
        (lambda name, raw: raw[:-1] if "data.pkl" in name else raw, zipfile.ZIP_STORED, "not torch's, or damaged"),
        (lambda _, raw: raw.replace(b"K\x0cK(\x86", b"J\0\0\0\x7fK(\x86"), zipfile.ZIP_STORED, "is more than its storage"),
    ],
)  # fmt: skip
def test_zips_that_are_no_longer_what_they_were(change: Any, compression: int, message: str, tmp_path: Path):
    saved(tmp_path / "a.pt")
    repacked(tmp_path / "a.pt", change, compression)
    with pytest.raises(FormatError, match=message) as raised:
        attrib.load_dictionary(tmp_path / "a.pt")
    assert str(raised.value).startswith(str(tmp_path))


def test_a_legacy_storage_that_is_too_short_or_too_long(tmp_path: Path):
    saved(tmp_path / "a.pt", way="legacy")
    raw = (tmp_path / "a.pt").read_bytes()
    for changed, message in (
        (raw[:-4], "has not the .* numbers"),
        (raw + b"x", "behind its storages are 1 more bytes"),
        (raw.replace(struct.pack("<q", D_IN * D_SAE), struct.pack("<q", 1 << 40)), "its storage .* has not the 480 numbers"),
    ):
        (tmp_path / "a.pt").write_bytes(changed)
        with pytest.raises(FormatError, match=message):
            attrib.load_dictionary(tmp_path / "a.pt")


def test_a_bomb_of_gzip_takes_no_memory(tmp_path: Path):
    with gzip.open(tmp_path / "a.pkl.gz", "wb") as file:
        for _ in range(20):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"would take more than 16,777,216 in memory"):
            attrib.load_dictionary(tmp_path / "a.pkl.gz")
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()


def test_what_a_file_claims_is_not_taken_in_memory(tmp_path: Path):
    for raw in (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40), b"\x80\x04\x8d" + struct.pack("<Q", 1 << 50), b"c" + b"x" * 5000):
        (tmp_path / "a.pkl").write_bytes(raw)
        with pytest.raises(FormatError, match="not torch's, or damaged"):
            attrib.load_dictionary(tmp_path / "a.pkl")


def test_a_value_that_would_take_for_ever_to_write_out(tmp_path: Path):
    bomb: Any = "x"
    for _ in range(60):
        bomb = [bomb, bomb]
    value = state()
    value["cfg"].seed = bomb
    with pytest.raises(FormatError, match="seed of its cfg is a list"):
        attrib.load_dictionary(write(tmp_path / "a.pt", value))


@pytest.mark.few
@pytest.mark.parametrize("way", WAYS)
def test_cut_and_changed_files_are_errors_or_right(way: str, tmp_path: Path):
    path = tmp_path / f"a{ending(way)}"
    saved(path, way=way)
    raw, numbers = path.read_bytes(), torch.Generator().manual_seed(0)
    for part in range(8):
        path.write_bytes(raw[: len(raw) * part // 8])
        with pytest.raises(FormatError):
            attrib.load_dictionary(path)
    first = min(len(raw), 3000)
    for place, byte in zip(torch.randint(first, (70,), generator=numbers), torch.randint(256, (70,), generator=numbers), strict=True):
        path.write_bytes(raw[:place] + bytes([int(byte)]) + raw[place + 1 :])
        try:
            ours = attrib.load_dictionary(path)
        except AttribError:
            continue
        assert ours.params.W_enc.shape == (D_IN, D_SAE)


# ----------------------------------------------------------------------------------------- pickles as data


def test_a_pickle_is_data():
    value = {"a": [1, -3, 2.5, None, True, b"xy", (1, 2, 3, 4), "é" * 300], 7: {"b": (), "c": (1 << 40, 1 << 70)}}
    for protocol in (2, 3, 4, 5):
        if protocol == 2:
            value = value | {"a": [each for each in value["a"] if not isinstance(each, bytes)]}  # those are a call there
        stream = io.BytesIO(pickle.dumps(value, protocol) + b"rest")
        assert read_pickle(stream) == value
        assert stream.read() == b"rest"
    assert read_pickle(io.BytesIO(pickle.dumps(print, 4))) == Name("builtins.print")
    assert read_pickle(io.BytesIO(pickle.dumps(Path("a"), 2))) == Call(Name("pathlib.PosixPath"), ("a",))
    assert isinstance(read_pickle(io.BytesIO(b"\x80\x02cos\nsystem\n)\x81}b.")), Made)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x80\x02a.", "that it never put down"),
        (b"\x80\x02K\x01Q.", "names what lies beside it"),
        (b"\x80\x02cos\nsystem\n}(U\x01au.", "step SHORT_BINSTRING"),
        (b"\x80\x02cos\nsystem\n(X\x01\0\0\0aK\x01u.", "fills Name as if it were dict"),
        (b"\x80\x02cos\nsystem\n}b.", "fills Name as if it were Made"),
        (b"\x80\x02}(]K\x01u.", "keys that are neither text"),
        (b"\x80\x02}(K\x01u.", "keys that are neither text|odd|argument"),
        (b"\x80\x02(R.", "values that it never put down"),
        (b"\x80\x02t.", "values that it never put down"),
        (b"I1\n.", "has a step INT"),
        (b"\x80\x02" + b"N0" * (1 << 16) + b"N.", "has a step POP"),
        (b"\x80\x02" + b"]" * (1 << 17) + b".", "more than 65,536 steps"),
    ],
)  # fmt: skip
def test_steps_that_no_such_file_takes(raw: bytes, message: str):
    with pytest.raises((DamagedError, IndexError), match=message):
        read_pickle(io.BytesIO(raw))


def test_a_file_says_its_path_once(tmp_path: Path):
    (tmp_path / "a.pt").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"^[^ ]*a\.pt: [^/]*; expected something\.$"), torch_file(tmp_path / "a.pt", "something"):
        pass


def command(words: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["attrib", *map(str, words)])
        with pytest.raises(SystemExit, match="0"):
            cli.main()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a.pt", {"cfg": Runs(tmp_path / "ran"), "state_dict": {}})
    monkeypatch.setattr(sys, "argv", ["attrib", "convert", str(tmp_path / "a.pt"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    said = capsys.readouterr().err
    assert said.startswith("error: dictionary a: its cfg is what calling posix.system would give, which attrib does not; expected")
    assert said.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"]
