"""Pickles as torch.save writes them, of classes that are not here: written by their names, and read without running anything.

A pickle is a program: it names functions of any module, and whoever reads it calls them. Here a file is looked at first: its zip holds
what it says and is not compressed, so that nothing in it becomes larger, and its pickle names nothing beyond a list. Then torch reads it
with `weights_only=True`, with classes of our own for those of circuit-tracer, and maps its numbers without copying them.
"""

import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attrib.core.files import check_file
from attrib.core.pickled import translated, zipped
from attrib.core.types import FormatError

EXPECTED = "a file that circuit-tracer's Graph.to_pt wrote"
REMEDY = f"expected {EXPECTED}. Write it again."
KEY = "circuit_tracer"
"""Where a graph's call keeps what a file says beside the graph."""
CONFIG = (
    "n_layers", "d_model", "d_head", "n_heads", "d_mlp", "d_vocab", "tokenizer_name", "model_name", "original_architecture",
    "n_key_value_heads", "dtype",
)  # fmt: skip
"""The facts of a model that circuit-tracer keeps."""


class LogitTarget(NamedTuple):
    """What stands in for circuit-tracer's class of this name: a logit's text, and its vocabulary id."""

    token_str: str
    vocab_idx: int


class UnifiedConfig:
    """What stands in for circuit-tracer's class of this name: facts of the model, as attributes."""


class HookedTransformerConfig:
    """What stands in for TransformerLens' class of this name, which older files hold."""


STAND_INS: dict[str, type] = {
    "circuit_tracer.attribution.targets.LogitTarget": LogitTarget,
    "circuit_tracer.utils.tl_nnsight_mapping.UnifiedConfig": UnifiedConfig,
    "transformer_lens.HookedTransformerConfig.HookedTransformerConfig": HookedTransformerConfig,
    "transformer_lens.config.HookedTransformerConfig.HookedTransformerConfig": HookedTransformerConfig,
    "transformer_lens.config.hooked_transformer_config.HookedTransformerConfig": HookedTransformerConfig,
}
"""Our classes, by the names of those that they stand for; the first name of each is the one that is written."""
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = frozenset(
    {"torch._utils._rebuild_tensor_v2", "collections.OrderedDict", "torch.device", *STAND_INS}
    | {f"torch.{name}" for name in _DTYPES}
    | {f"torch.{name}Storage" for name in _STORAGES}
)
"""All that a file may name."""


def write_pickle(path: Path, state: dict[str, Any]) -> None:
    """Write what `torch.load` reads where the classes that ours stand for are installed."""
    torch.save(state, path, pickle_module=SimpleNamespace(__name__=__name__, Pickler=_Pickler), pickle_protocol=2)


class _Pickler(pickle._Pickler):
    """Writes our stand-ins by the names of those that they stand for, which need not be there."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        full = next((full for full, own in STAND_INS.items() if own is obj), None)
        if full is None:
            super().save_global(obj, name)  # type: ignore[misc]
            return
        module, _, own = full.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{own}\n".encode())  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary that a file holds. Its tensors are views of the file, no larger than it, and of the CPU.

    Raises:
        InputError: there is no such file.
        FormatError: it is no zip of torch's, or damaged; it names what is not allowed; or it holds something else.
    """
    check_file(path, EXPECTED)
    with translated(path, REMEDY):
        _check_names(path)
        with torch.serialization.safe_globals([(own, full) for full, own in STAND_INS.items()]):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise FormatError(f"{path}: it holds {type(found).__name__}, and not a dictionary of names; {REMEDY}")
    size = path.stat().st_size
    for name, value in found.items():
        # one number of the file can stand for a whole tensor, by strides of 0
        if isinstance(value, Tensor) and value.numel() * value.element_size() > size:
            raise FormatError(f"{path}: {name}: {list(value.shape)} is more than the file of {size} bytes holds; {REMEDY}")
    return found


def _check_names(path: Path) -> None:
    """That the pickle names what is allowed."""
    with zipfile.ZipFile(path) as archive:
        raw = zipped(archive, path.stat().st_size).pickle
    for name in _globals(raw):
        if name not in ALLOWED:
            raise FormatError(
                f"{path}: its pickle names {name[:80]}, which runs code that attrib does not know; expected only tensors, "
                "LogitTarget and a config. Where you trust the file, load it with circuit-tracer and write it again."
            )


def _globals(raw: bytes) -> Iterator[str]:
    """Each function or class that a pickle names. Names that it puts together while it runs are none that torch reads."""
    for operation, argument, _ in pickletools.genops(raw):
        if operation.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif operation.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            yield operation.name
