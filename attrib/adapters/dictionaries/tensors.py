"""A dictionary from named tensors, and named tensors from files: shapes are checked before anything is read.

    gate s + b_gate > 0, value relu(e^r s + b_mag), s = x W_enc   →   W_enc e^r, b_mag, threshold b_mag - e^r b_gate
    rescale_acts_by_decoder_norm, n = |rows of W_dec|             →   W_enc n, b_enc n, W_dec / n

The first line is a gated dictionary as a JumpReLU one; the second ranks latents by what they write.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from attrib.core.types import BEFORE_NORM, AttribError, FormatError, InputError, Site
from attrib.core.weights import OpenedFile, check_finite
from attrib.dictionaries.dictionary import COMPETING, Dictionary, DictionaryConfig, DictionaryParams, Normalisation, Rule
from attrib.dictionaries.metadata import NOTHING, Metadata

Shapes = Mapping[str, Sequence[int]]

_NEEDS: dict[str, tuple[str, ...]] = {
    "relu": (),
    "jumprelu": ("threshold",),
    "jump": ("threshold",),
    "topk": ("k",),
    "rawtopk": ("k",),
    "abstopk": ("k",),
    "gated": ("b_gate", "r_mag", "b_mag"),
}

_FOLDED: dict[str, tuple[Rule, str]] = {"gated": ("jumprelu", "its gates")}
"""The rules that become another by what is folded into the weights: which, and what that is."""


def from_tensors(
    *,
    site: Site | str,
    W_enc: Tensor,
    W_dec: Tensor,
    b_enc: Tensor | None = None,
    b_dec: Tensor | None = None,
    writes: Site | str | Sequence[Site | str] = (),
    rule: str | None = None,
    threshold: Tensor | None = None,
    k: int | None = None,
    b_gate: Tensor | None = None,
    r_mag: Tensor | None = None,
    b_mag: Tensor | None = None,
    W_skip: Tensor | None = None,
    apply_b_dec_to_input: bool = False,
    normalisation: Normalisation = "none",
    puts_scale_back: bool | None = None,
    rescale_acts_by_decoder_norm: bool = False,
    name: str | None = None,
    kind: str | None = None,
    hook_name: str | None = None,
    hook_name_out: str | None = None,
    model_name: str | None = None,
    lazy: bool = False,
    files: Sequence[OpenedFile] = (),
    metadata: Metadata | None = None,
) -> Dictionary:
    """A dictionary from its tensors, which are shared where nothing has to be folded into them.

    Args:
        site: where it reads, a Site or a hook name such as "blocks.7.hook_resid_pre".
        W_enc: [d_in, d_sae], with b_enc [d_sae]; biases that are left out are zero.
        W_dec: [d_sae, d_out], with b_dec [d_out]; what is written to several sites stands side by side.
        writes: where it writes; left out, where it reads.
        rule: left out, "topk" where k is given, "jumprelu" where threshold is, "gated" where b_gate is, else "relu".
        threshold: [d_sae], for jumprelu and jump.
        b_gate, r_mag, b_mag: [d_sae], for gated, which has no b_enc.
        W_skip: [d_in, d_out]: x @ W_skip is added to what it writes.
        apply_b_dec_to_input: whether b_dec is subtracted from the input, as in many SAEs.
        puts_scale_back: whether decoding undoes the normalisation; left out, where it writes where it reads.
        name: left out, the site's.
        lazy: whether W_enc and W_dec keep a dtype of their own, beside biases in float32: for maps of a file.
        files: those that the tensors come from; a lazy dictionary sees, whenever it reads, that nobody wrote into them.
        metadata: what is said of its training.

    Raises:
        InputError: where a tensor is missing, not wanted by the rule, or does not fit the others; where a number is not finite.
        FormatError: where a number is not finite in tensors of files. Of lazy ones, W_enc and W_dec are looked at as they are read.
    """
    reads, name = Site.parse(site), name or str(site)
    sites = tuple(Site.parse(one) for one in ((writes,) if isinstance(writes, str | Site) else writes))
    sites = () if sites == (reads,) else sites
    beside = {"threshold": threshold, "k": k, "b_gate": b_gate, "r_mag": r_mag, "b_mag": b_mag}
    rule = _rule(rule, beside)
    if rule == "gated" and b_enc is not None:
        raise InputError("b_enc: given, but rule 'gated' has b_gate and b_mag in its place.")
    given = {"b_enc": b_enc, "b_dec": b_dec, "W_skip": W_skip} | {key: v for key, v in beside.items() if isinstance(v, Tensor)}
    tensors = {"W_enc": W_enc, "W_dec": W_dec} | {key: v for key, v in given.items() if v is not None}
    _check(tensors, max(1, len(sites)), name, lazy)
    fault = FormatError if files else InputError
    check_finite({key: value for key, value in tensors.items() if not (lazy and key in ("W_enc", "W_dec"))}, name, fault)
    is_folded = rule in _FOLDED or rescale_acts_by_decoder_norm
    if lazy and is_folded:
        what = _FOLDED[rule][1] if rule in _FOLDED else "its decoder's norms"
        raise InputError(f"lazy: {what} have to be folded into all weights of {name}, so they cannot stay in their file; leave lazy= out.")
    (d_in, d_sae), d_out = W_enc.shape, W_dec.shape[1]
    if rule in COMPETING and not is_count(k, d_sae):
        raise InputError(f"k: {k!r}; expected an integer from 1 to d_sae={d_sae}.")
    if d_in != d_out and not sites:
        raise InputError(f"writes: missing, but W_dec writes vectors of {d_out} and W_enc reads vectors of {d_in}; name the site written.")
    if apply_b_dec_to_input and d_in != d_out:
        raise InputError(f"apply_b_dec_to_input: b_dec has {d_out} numbers and the input {d_in}; expected False.")
    params = _params({key: tensor.detach() for key, tensor in tensors.items()}, rule, rescale_acts_by_decoder_norm, lazy)
    if is_folded:
        check_finite(params._asdict(), f"{name}, after its gates or norms were folded in", fault)
    config = DictionaryConfig(
        site=reads, rule=_FOLDED[rule][0] if rule in _FOLDED else cast(Rule, rule), k=k, apply_b_dec_to_input=apply_b_dec_to_input,
        normalisation=normalisation, model_name=model_name, writes=sites,
        puts_scale_back=not sites if puts_scale_back is None else puts_scale_back, kind=kind or rule,
        hook_name=hook_name or (site if isinstance(site, str) else None), hook_name_out=hook_name_out, lazy=lazy,
        metadata=metadata or NOTHING,
    )  # fmt: skip
    return Dictionary(params, config, name, tuple(files) if lazy else ())


def _rule(rule: str | None, beside: Mapping[str, Any]) -> str:
    """The rule, by what is given beside the weights where nobody names it. Raises InputError where that is too little or too much."""
    first = (of for of, key in (("topk", "k"), ("jumprelu", "threshold"), ("gated", "b_gate")) if beside[key] is not None)
    rule = rule or next(first, "relu")
    if rule not in _NEEDS:
        raise InputError(f"rule: {rule!r}; expected one of {', '.join(_NEEDS)}.")
    for key, value in beside.items():
        if (value is not None) != (key in _NEEDS[rule]):
            wanted = ", ".join(_NEEDS[rule]) or "none of them"
            raise InputError(f"{key}: {'missing' if value is None else 'given'}, but rule {rule!r} takes {wanted} of {', '.join(beside)}.")
    return rule


def _params(tensors: Mapping[str, Tensor], rule: str, rescales: bool, lazy: bool) -> DictionaryParams:
    """The parameters, with what the module's docstring says folded in: gates, and norms of the decoder."""
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    zeros = W_enc.new_zeros(W_enc.shape[1], dtype=torch.float32 if lazy else W_enc.dtype)
    b_enc, threshold = tensors.get("b_enc", zeros), tensors.get("threshold", zeros)
    if rule == "gated":
        size = tensors["r_mag"].exp()
        W_enc, b_enc, threshold = W_enc * size, tensors["b_mag"], tensors["b_mag"] - size * tensors["b_gate"]
    if rescales:
        norm = W_dec.norm(dim=-1)
        W_enc, b_enc, W_dec, threshold = W_enc * norm, b_enc * norm, W_dec / norm[:, None], threshold * norm
    b_dec, W_skip = tensors.get("b_dec", zeros.new_zeros(W_dec.shape[1])), tensors.get("W_skip", zeros.new_zeros(0, 0))
    return DictionaryParams(W_enc, b_enc, W_dec, b_dec, threshold, W_skip)


def trained_at(hook: str) -> Site:
    """Where TransformerLens fires a trainer's hook: `hook_mlp_in` on resid_mid (on resid_pre in parallel blocks: see `check_fit`)."""
    layer, _, name = hook.rpartition(".")
    return Site.parse(f"{layer}.hook_resid_mid" if name == BEFORE_NORM else hook)


def is_count(k: object, d_sae: int) -> bool:
    """Whether k is a number of latents that can win."""
    return isinstance(k, int) and not isinstance(k, bool) and 1 <= k <= d_sae


def _check(tensors: Mapping[str, Tensor], parts: int, name: str, lazy: bool) -> None:
    """Raises InputError where tensors do not fit each other."""
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    for key, form in (("W_enc", "[d_in, d_sae]"), ("W_dec", "[d_sae, d_out]")):
        if tensors[key].ndim != 2 or 0 in tensors[key].shape:
            raise InputError(f"{key}: {list(tensors[key].shape)} for dictionary {name}; expected {form}, neither empty.")
    (d_in, d_sae), d_out = W_enc.shape, W_dec.shape[1]
    expected = {key: [d_sae] for key in ("b_enc", "threshold", "b_gate", "r_mag", "b_mag")}
    expected |= {"W_enc": [d_in, d_sae], "W_dec": [d_sae, d_out], "b_dec": [d_out], "W_skip": [d_in, d_out]}
    for key, tensor in tensors.items():
        if list(tensor.shape) != expected[key]:
            raise InputError(
                f"{key}: {list(tensor.shape)} for dictionary {name}; expected {expected[key]} beside W_enc {[d_in, d_sae]} "
                f"and W_dec {list(W_dec.shape)}."
            )
        dtype = tensor.dtype if lazy and key in ("W_enc", "W_dec") else torch.float32 if lazy else W_enc.dtype
        if tensor.dtype != dtype or not tensor.is_floating_point() or tensor.device != W_enc.device:
            raise InputError(
                f"{key}: {tensor.dtype} on {tensor.device} for dictionary {name}; expected floating numbers of {dtype} on "
                f"{W_enc.device}, as W_enc has them."
            )
    if d_out % parts:
        raise InputError(f"writes: {parts} sites, but W_dec writes {d_out} numbers, which are no {parts} vectors of one width.")


# ---------------------------------------------------------------------------------------------- files


LONGEST_JSON = 1 << 20
"""Bytes of a config, at most. In memory JSON takes up to thirty times as much."""


def read_json(path: Path, argument: str = "dictionary", *, most: int = LONGEST_JSON) -> Any:
    """A JSON file of what an argument names. Raises FormatError where it is none, or has more bytes than such a file needs."""
    check_file(path, argument)
    try:
        with path.open("rb") as file:
            read = file.read(most + 1)
    except OSError as error:
        raise FormatError(f"{argument}: {path} cannot be read: {error.strerror}.") from error
    if len(read) > most:
        raise FormatError(f"{argument}: {path} has {path.stat().st_size:,} bytes; expected at most {most:,}.")
    try:
        return json.loads(read.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{argument}: {path} is damaged: {error}") from error


def check_file(path: Path, argument: str = "dictionary") -> None:
    """Raises FormatError for what is no file, such as a pipe, which would be waited for."""
    if not path.is_file():
        raise FormatError(f"{argument}: {path} is {'no file' if path.exists() else 'missing'}.")


_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = ("I64", "I32", "I16", "U8")


class TensorFile(NamedTuple):
    """Named tensors of an open file: their shapes at once, their numbers on request, as they are stored.

    Those of safetensors are maps of the file: a page of it is read when a number of it is first used.
    """

    shapes: dict[str, list[int]]
    stored: Callable[[str], Tensor]
    file: OpenedFile

    def read(self, key: str) -> Tensor:
        """In float32, in memory of its own: what is written into the file later does not reach it."""
        return self.stored(key).to(torch.float32, copy=True)

    def take(self, key: str, lazy: bool) -> Tensor:
        """The tensor as `read` gives it, or as it is stored."""
        return self.stored(key) if lazy else self.read(key)


@contextmanager
def safetensors_file(path: Path, *, integers: Sequence[str] = ()) -> Iterator[TensorFile]:
    """A safetensors file, whose header is checked against its size when it is opened.

    Args:
        integers: tensors that hold whole numbers.

    Raises:
        FormatError: where it is damaged, or holds anything but floating numbers.
    """
    check_file(path)
    try:
        opened = OpenedFile.of(path)
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            dtypes = {key: part.get_dtype() for key, part in slices.items()}
            if wrong := [key for key, dtype in dtypes.items() if dtype not in (_INTEGERS if key in integers else _FLOATS)]:
                raise FormatError(
                    f"dictionary: {path} holds {wrong[0]} as {dtypes[wrong[0]]}; expected one of "
                    f"{', '.join(_INTEGERS if wrong[0] in integers else _FLOATS)}."
                )
            yield TensorFile({key: list(part.get_shape()) for key, part in slices.items()}, file.get_tensor, opened)
            opened.check()  # nobody wrote into it while it was read
    except SafetensorError as error:
        raise FormatError(f"dictionary: {path} is damaged: {error}") from error
    except OSError as error:
        raise FormatError(f"dictionary: {path} cannot be read: {error.strerror or error}.") from error


MOST_INFLATED, SMALL = 8, 1 << 24
"""How many times its own size an archive may take in memory, and the bytes that any may. Trained weights do not compress to a half."""


@contextmanager
def npz_file(path: Path) -> Iterator[TensorFile]:
    """A numpy archive without pickles: every array's header is read, and held against its size, before any array is.

    Raises:
        FormatError: where it is damaged, or holds anything but floating numbers.
    """
    try:
        opened = OpenedFile.of(path)
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
            shapes = {}
            inflated = sum(entry.file_size for entry in archive.infolist())
            if inflated > max(SMALL, MOST_INFLATED * opened.size):
                raise FormatError(
                    f"dictionary: {path} has {opened.size:,} bytes, which would take {inflated:,} in memory: weights do not lie that "
                    "close. If these are meant, save them without compression."
                )
            for entry in archive.infolist():
                key = entry.filename.removesuffix(".npy")
                if not _is_possible(entry):
                    raise FormatError(f"dictionary: {path} is damaged: {key} cannot have {entry.file_size} bytes in {entry.compress_size}.")
                with archive.open(entry) as stream:
                    shape, dtype = _header(stream)
                    if dtype.kind != "f":
                        raise FormatError(f"dictionary: {path} holds {key} as {dtype}; expected floating numbers.")
                    if entry.file_size - stream.tell() != int(np.prod(shape, dtype=object)) * dtype.itemsize:
                        raise FormatError(f"dictionary: {path} is damaged: {key} has {entry.file_size} bytes, not those of {list(shape)}.")
                shapes[key] = list(shape)
            yield TensorFile(shapes, lambda key: torch.from_numpy(arrays[key].astype(np.float32, copy=False)), opened)  # of any byte order
            opened.check()
    except AttribError:
        raise
    except Exception as error:  # zipfile hands on whatever its parts raise
        raise FormatError(f"dictionary: {path} is damaged: {error}") from error


def _is_possible(entry: zipfile.ZipInfo) -> bool:
    """Whether so many bytes can lie in so few: memory is taken for what an entry says."""
    deflated = 1032 * entry.compress_size  # by deflate's longest match of 258 bytes in 2 bits
    most = {zipfile.ZIP_STORED: entry.compress_size, zipfile.ZIP_DEFLATED: deflated}.get(entry.compress_type, 0)
    return 0 < entry.file_size <= most


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array, read up to its first number."""
    try:
        if (version := np.lib.format.read_magic(stream)) != (1, 0):
            raise ValueError(f"version {version}, which only arrays with fields need")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy hands on whatever Python's tokenizer and parser raise
        raise ValueError(f"no header of an array: {error}") from error
    return shape, dtype


def check_shapes(shapes: Shapes, expected: Shapes, what: str, beside: str = "") -> None:
    """Raises FormatError where a tensor of a file is missing or has another shape."""
    for key, shape in expected.items():
        found = list(shapes[key]) if key in shapes else "missing"
        if found != list(shape):
            raise FormatError(f"dictionary {what}: {key} is {found}, expected {list(shape)}{beside}.")


def check_no_others(shapes: Shapes, known: Sequence[str], what: str) -> None:
    """Raises FormatError for a tensor that would be left out of the computation."""
    if others := sorted(shapes.keys() - set(known)):
        raise FormatError(f"dictionary {what}: it holds {', '.join(others)}, which attrib would leave out; expected {', '.join(known)}.")


def matrix(shapes: Shapes, key: str, what: str, form: str) -> tuple[int, int]:
    """The two sizes of a matrix that fixes all others. Raises FormatError where it is none."""
    shape = shapes.get(key)
    if shape is None or len(shape) != 2 or 0 in shape:
        raise FormatError(f"dictionary {what}: {key} is {'missing' if shape is None else list(shape)}, expected {form}.")
    return shape[0], shape[1]
