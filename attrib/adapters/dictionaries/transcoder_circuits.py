"""transcoder_circuits' own files: `.pt` of torch.save, `.pkl` and `.pkl.gz` of pickle, each {"cfg": its config, "state_dict": tensors}.

    f = relu((x - b_dec) W_enc + b_enc)
    y = f W_dec + b_dec            an SAE, which writes where it reads
    y = f W_dec + b_dec_out        a transcoder, from `hook_point` to `out_hook_point`

A transcoder's b_dec belongs to its input alone, and has no place in attrib's dictionaries or sae-lens': b_enc - b_dec W_enc is the bias of
the same function. The config is an object of a class of theirs, of which only the attributes are read (`attrib.core.pickled`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from attrib.adapters.dictionaries.tensors import check_no_others, check_shapes, from_tensors, matrix
from attrib.adapters.dictionaries.torch_files import StoredTensor, tensor_of, torch_file
from attrib.adapters.keys import TRANSCODER_CIRCUITS, check_keys, check_sizes, flag
from attrib.core.pickled import Call, Made, Name
from attrib.core.types import FormatError, InputError, Site, UnsupportedError
from attrib.core.weights import OpenedFile
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.metadata import metadata_of

ENDINGS = (".pt", ".pkl", ".pkl.gz")
EXPECTED = "a file that transcoder_circuits' save_model wrote"
_CONFIGS = ("LanguageModelSAERunnerConfig", "RunnerConfig", "CacheActivationsRunnerConfig")
_UNDERSTOOD = (
    "hook_point", "hook_point_layer", "hook_point_head_index", "out_hook_point", "out_hook_point_layer", "is_transcoder", "d_in", "d_out",
    "d_sae", "dtype", "model_name",
)  # fmt: skip
_METADATA = ("context_size", "dataset_path", "l1_coefficient", "total_training_tokens")
_LONGEST, _MOST = 1000, 64
_DTYPES = {Name(f"torch.{name}"): name for name in ("float64", "float32", "float16", "bfloat16")}


def is_one(path: Path) -> bool:
    """Whether a path ends as one of their files does."""
    return path.name.endswith(ENDINGS)


def files_of(folder: Path) -> list[Path]:
    """Their dictionaries in a folder; training lays a file of frequencies beside each."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_one(path) and not path.name.endswith("_log_feature_sparsity.pt"))


def load_file(path: Path) -> Dictionary:
    """A transcoder or an SAE of transcoder_circuits, in float32. Nothing in the file is run.

    Raises:
        InputError: there is no such file.
        UnsupportedError: for a dictionary of a single head, a hook that is no site of attrib, or a key that attrib does not know, by name.
        FormatError: where the file is damaged, or its config and its tensors do not fit each other.
    """
    name = path.name.removesuffix(next(ending for ending in (*ENDINGS, "") if path.name.endswith(ending)))
    with torch_file(path, EXPECTED) as found:
        opened = OpenedFile.of(path)
        if not isinstance(found, dict) or found.keys() != {"cfg", "state_dict"} or not isinstance(found["state_dict"], dict):
            said = ", ".join(map(repr, [*found][:4])) if isinstance(found, dict) else f"a {type(found).__name__}"
            raise FormatError(f"dictionary: {path} holds {said[:200]}; expected {EXPECTED}, a dictionary of cfg and state_dict.")
        config = _config(found["cfg"], name)
        stored = {key: tensor_of(value, str(key)[:80]) for key, value in found["state_dict"].items()}
        made = _dictionary(config, stored, name, opened)
        opened.check()  # nobody wrote into it while it was read
    return made


def _config(value: Any, name: str) -> dict[str, Any]:
    """The attributes of the config, each looked at before anything is done with it."""
    state = value
    if isinstance(value, Made):
        if not isinstance(value.cls, Name) or value.cls.full.rpartition(".")[2] not in _CONFIGS or value.arguments != ():
            raise UnsupportedError(
                f"dictionary {name}: its cfg is of the class {_named(value.cls)}, whose meaning attrib does not know; expected one of "
                f"{', '.join(_CONFIGS)}."
            )
        state = value.state
    elif not isinstance(value, dict):
        raise FormatError(f"dictionary {name}: its cfg is {_told(value)}; expected the attributes of a config.")
    if not isinstance(state, dict) or not all(isinstance(key, str) and len(key) <= _LONGEST for key in state):
        raise FormatError(f"dictionary {name}: its cfg has no attributes; expected those of a config.")
    return {key: _plain(each, key, name) for key, each in state.items()}


def _plain(value: Any, key: str, name: str) -> Any:
    """A value of a config: a number, text, dtype or device, or a few of them in a row."""
    match value:
        case None | bool() | float():
            return value
        case int() if -(1 << 63) <= value < 1 << 63:
            return value
        case str() if len(value) <= _LONGEST:
            return value
        case Name() if value in _DTYPES:
            return _DTYPES[value]
        case Call(function=Name(full="torch.device"), arguments=(str(kind), *index)) if len(kind) <= _LONGEST and len(index) <= 1:
            return ":".join([kind, *(str(_plain(each, key, name)) for each in index)])
        case list() | tuple() if len(value) <= _MOST and not any(isinstance(each, list | tuple) for each in value):
            return [_plain(each, key, name) for each in value]
    raise FormatError(f"dictionary {name}: {key:.80} of its cfg is {_told(value)}; expected numbers, text, a dtype or a device.")


def _told(value: Any) -> str:
    """What a value of the file is, in few words."""
    if isinstance(value, Call):
        return f"what calling {_named(value.function)} would give, which attrib does not"
    if isinstance(value, Made):
        return f"an object of the class {_named(value.cls)}"
    return _named(value) if isinstance(value, Name) else f"a {type(value).__name__} that is too long or of no use there"


def _named(value: Any) -> str:
    """A name of the file; of anything else its type, since to write it out could take for ever."""
    return f"{value!r:.80}" if isinstance(value, Name) else f"(a {type(value).__name__})"


def _dictionary(config: Mapping[str, Any], stored: Mapping[str, StoredTensor], name: str, opened: OpenedFile) -> Dictionary:
    check_keys(config, _UNDERSTOOD, TRANSCODER_CIRCUITS, name)
    is_transcoder = flag(config, "is_transcoder", name)
    if (head := config.get("hook_point_head_index")) is not None:
        raise UnsupportedError(f"dictionary {name}: hook_point_head_index={head!r}; attrib does not read single heads.")
    shapes = {key: one.shape for key, one in stored.items()}
    if is_transcoder != ("b_dec_out" in shapes):
        raise FormatError(
            f"dictionary {name}: is_transcoder={is_transcoder} in its config, and {'no ' * is_transcoder}b_dec_out among its tensors; "
            "expected it of transcoders alone."
        )
    d_in, d_sae = matrix(shapes, "W_enc", name, "[d_in, d_sae]")
    d_out = matrix(shapes, "W_dec", name, "[d_sae, d_out]")[1] if is_transcoder else d_in
    expected = {"W_dec": [d_sae, d_out], "b_enc": [d_sae], "b_dec": [d_in]} | ({"b_dec_out": [d_out]} if is_transcoder else {})
    check_shapes(shapes, expected, name, f" beside W_enc {[d_in, d_sae]}")
    check_no_others(shapes, ["W_enc", *expected], name)
    sizes = {"d_in": d_in, "d_sae": d_sae} | ({"d_out": d_out} if is_transcoder else {})
    check_sizes(config, sizes, f"W_enc is {[d_in, d_sae]} and W_dec {[d_sae, d_out]}", name)
    for key, one in stored.items():
        if (said := config.get("dtype")) is not None and f"torch.{said}" != str(one.storage.dtype):
            raise FormatError(f"dictionary {name}: dtype={said!r} in its config, but {key} is of {one.storage.dtype}.")
    site, hook_name = _hook(config, "", name)
    writes, hook_name_out = _hook(config, "out_", name) if is_transcoder else (site, hook_name)
    tensors: dict[str, Any] = {key: one.read().to(torch.float32) for key, one in stored.items()}
    if is_transcoder:
        wide = {key: tensors[key].double() for key in ("b_enc", "b_dec", "W_enc")}
        tensors["b_enc"] = (wide["b_enc"] - wide["b_dec"] @ wide["W_enc"]).to(torch.float32)
        tensors["b_dec"] = tensors.pop("b_dec_out")
    model_name = config.get("model_name")
    return from_tensors(
        site=site, writes=writes, **tensors, rule="relu", apply_b_dec_to_input=not is_transcoder, puts_scale_back=not is_transcoder,
        name=name, kind="transcoder" if is_transcoder else "SAE", hook_name=hook_name,
        hook_name_out=hook_name_out if is_transcoder else None, model_name=model_name if isinstance(model_name, str) else None,
        metadata=metadata_of({key: config[key] for key in _METADATA if key in config}), files=[opened],
    )  # fmt: skip


def _hook(config: Mapping[str, Any], which: str, name: str) -> tuple[Site, str]:
    """The site of `hook_point` or `out_hook_point`, and its name, after its layer was held against what is said beside it."""
    key, layer_key = f"{which}hook_point", f"{which}hook_point_layer"
    if not isinstance(hook := config.get(key), str):
        raise FormatError(
            f"dictionary {name}: {key}={hook!r} in its config; expected a hook's name such as 'blocks.8.ln2.hook_normalized'."
        )
    try:
        site = Site.parse(hook)
    except InputError as error:
        raise UnsupportedError(f"dictionary {name}: {key}={hook!r} is no site of attrib: {error}") from error
    if site.kind == "z":
        raise UnsupportedError(f"dictionary {name}: {key}={hook!r}: one dictionary for every head by itself, which attrib has not.")
    if (layer := config.get(layer_key)) is not None and (isinstance(layer, bool) or layer != site.layer):
        raise FormatError(f"dictionary {name}: {layer_key}={layer!r} in its config, but {key}={hook!r}.")
    return site, hook
