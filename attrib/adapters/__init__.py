"""Models and dictionaries from elsewhere. Each adapter is imported when it is first used."""

import re
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import lazy_loader  # type: ignore[import-untyped]
import torch

from attrib.adapters.given import as_dictionary as as_dictionary
from attrib.adapters.given import as_model as as_model
from attrib.adapters.loading import make_private, no_bars
from attrib.adapters.models.check import Check as Check
from attrib.adapters.models.check import check_model as check_model
from attrib.core.devices import check_device, check_dtype
from attrib.core.types import InputError, Site, natural
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.transformer import Model

if TYPE_CHECKING:
    from attrib.adapters.dictionaries.sae_lens import from_sae_lens as from_sae_lens
    from attrib.adapters.dictionaries.tensors import from_tensors as from_tensors
    from attrib.adapters.models.hugging_face import from_hugging_face as from_hugging_face
    from attrib.adapters.models.transformer_lens import from_transformer_lens as from_transformer_lens

__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dictionaries.sae_lens": ["from_sae_lens"],
        "dictionaries.tensors": ["from_tensors"],
        "models.hugging_face": ["from_hugging_face"],
        "models.transformer_lens": ["from_transformer_lens"],
    },
)

SMOLLM2 = "smollm2-135m"
SHIPPED = Path(__file__).parent.parent / "shipped"


LENS_OPTIONS = (
    "fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices", "first_n_layers",
    "n_ctx", "default_prepend_bos", "checkpoint_index", "checkpoint_value", "checkpoint_label", "hf_model", "tokenizer",
    "revision", "cache_dir", "token", "local_files_only", "trust_remote_code",
)  # fmt: skip
"""What `HookedTransformer.from_pretrained` is asked for, and what it hands on to transformers."""


def load_model(name: Any, *, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None, **options: Any) -> Model:
    """A model by name or from a local folder.

    Args:
        name: "smollm2-135m" (after `attrib fetch smollm2-135m`), a folder that transformers'
            `save_pretrained` wrote, or any name that TransformerLens knows.
        device: where its parameters go; left out, the CPU.
        dtype: of its parameters; left out, float32 for names, and for a folder what it is stored in.
        options: for TransformerLens names, those of LENS_OPTIONS, passed to `HookedTransformer.from_pretrained`
            (`fold_ln=False`, say); its defaults process the weights.

    The model that comes back has been compared with the original on a few tokens (see `check_model`); SmolLM2 when
    it was fetched, the others now.

    Raises:
        InputError: where there is no such model, it is not fetched yet, or attrib's values are not the original's; for a
            device that is not there, and for an option that would do nothing.
        UnsupportedError: where the architecture has a feature that attrib does not compute.
    """
    device = check_device("cpu" if device is None else device)
    dtype = None if dtype is None else check_dtype(dtype)
    if not isinstance(name, str | Path):
        raise InputError(
            f"model: expected a name or a folder, got {type(name).__name__}. See attrib.adapters.as_model for models of other libraries."
        )
    if name == SMOLLM2:
        from attrib.adapters.models import smollm2

        _refuse_lens_options(name, options)
        return smollm2.load().to(dtype=dtype, device=device)
    if Path(name).is_dir():
        from attrib.adapters.models import model_folder

        _refuse_lens_options(name, options)
        return model_folder.load_folder(Path(name), dtype=dtype).to(device=device)
    if isinstance(name, Path) or name.startswith((".", "/", "~")):
        raise InputError(f"model: the folder {name} does not exist.")
    if unknown := [key for key in options if key not in LENS_OPTIONS]:
        raise InputError(
            f"{unknown[0]}: no option of load_model; expected device, dtype, or of a TransformerLens name {', '.join(LENS_OPTIONS)}."
        )
    return _load_lens(name, options | {"device": str(device)} | ({} if dtype is None else {"dtype": dtype}))


def _load_lens(name: str, options: dict[str, Any]) -> Model:
    """A model that TransformerLens knows."""
    from transformer_lens import HookedTransformer

    from attrib.adapters.models.transformer_lens import from_transformer_lens

    try:
        with no_bars():
            model = HookedTransformer.from_pretrained(name, **options)
    except (ValueError, OSError) as error:
        raise InputError(
            f"model: {name!r} is neither {SMOLLM2!r}, nor a local folder, nor a model that TransformerLens could load: "
            f"{shorten(str(error).splitlines()[0], 200, placeholder=' ...')}"  # it goes on to name every model that there is
        ) from error
    make_private(model)
    loaded = from_transformer_lens(model, name=name)
    check_model(loaded, model).require()
    return loaded


def _refuse_lens_options(name: str | Path, options: dict[str, Any]) -> None:
    """Raises InputError for an option that would change nothing."""
    if options:
        what = "is an option of TransformerLens names" if next(iter(options)) in LENS_OPTIONS else "is no option of load_model"
        raise InputError(f"{next(iter(options))}: {what}, and {name} takes device and dtype alone; leave it out.")


def load_dictionary(
    name: str | Path,
    *,
    site: Site | str | None = None,
    writes: Site | str | None = None,
    layer: int | None = None,
    lazy: bool = False,
) -> Dictionary:
    """A dictionary by name or from local files, in float32. docs/dictionaries.md lists what there is.

    Args:
        name: a shipped one ("smollm2-135m/blocks.6.hook_resid_pre"); a folder of sae-lens, sparsify or Gemma
            Scope; a layer of a circuit-tracer folder ("folder/layer_3", or the folder with `layer=3`); or
            "release/sae_id" of a sae-lens release ("gpt2-small-res-jb/blocks.7.hook_resid_pre").
        site: where it reads, for files that do not say.
        writes: where it writes, the same; left out, where it reads.
        layer: which layer of a circuit-tracer folder.
        lazy: for one too large for memory: encoder and decoder stay in their safetensors file, in its dtype, and
            what is used of them is read as it is used.

    Raises:
        InputError: where there is no such dictionary, or its site is not known.
        UnsupportedError: for a kind that attrib does not compute, by name.
        FormatError: where files are damaged or do not fit each other.
    """
    from attrib.adapters.dictionaries import circuit_tracer, gemma_scope, sae_lens, sparsify

    path = Path(name)
    folder, which = (path, layer) if layer is not None else _layer_of(path)
    if which is not None and (folder / circuit_tracer.CONFIG).is_file():
        _refuse_options(name, site=site, writes=writes)
        return circuit_tracer.load_layer(folder, which, lazy=lazy)
    if layer is not None:
        raise InputError(f"layer: {layer}, but {name} is no folder with a config.yaml, as circuit-tracer's are; leave layer= out.")
    npz = path if path.suffix == ".npz" else path / gemma_scope.WEIGHTS
    if npz.is_file():
        _refuse_lazy(name, lazy, "is a numpy archive")
        return gemma_scope.load_file(npz, site=site, writes=writes)
    if str(name) in shipped():
        _refuse_options(name, writes=writes)
        return sae_lens.load_folder(SHIPPED / name, name=str(name), site=site, lazy=lazy)
    if path.is_dir():
        if (path / circuit_tracer.CONFIG).is_file():
            raise InputError(f"layer: missing; {name} has a dictionary for every layer. Give layer=, or use load_dictionaries.")
        if (path / sparsify.WEIGHTS).is_file():
            return sparsify.load_folder(path, site=site, writes=writes, lazy=lazy)
        if (path / gemma_scope.WEIGHTS_2).is_file():
            return gemma_scope.load_folder_2(path, site=site, writes=writes, lazy=lazy)
        _refuse_options(name, writes=writes)
        return sae_lens.load_folder(path, site=site, lazy=lazy)
    release, slash, sae_id = str(name).partition("/")
    if isinstance(name, Path) or name.startswith((".", "/", "~")) or not slash:
        raise InputError(f"dictionary: {name} is no folder and not of the form release/sae_id. Shipped: {', '.join(shipped())}.")
    if (SHIPPED / release).is_dir():
        raise InputError(f"dictionary: {name} is not shipped; there are {', '.join(shipped())}.")
    _refuse_options(name, site=site, writes=writes)
    _refuse_lazy(name, lazy, "is a release, which sae-lens loads whole")
    return sae_lens.load_release(release, sae_id)


def load_dictionaries(folder: str | Path, *, lazy: bool = False) -> list[Dictionary]:
    """All dictionaries of a folder: the layers of a circuit-tracer folder, or one for each folder in it, by where they read.

    Args:
        lazy: see `load_dictionary`.

    Raises:
        InputError: where there is none; else as `load_dictionary`.
    """
    from attrib.adapters.dictionaries import circuit_tracer

    path = Path(folder)
    if (path / circuit_tracer.CONFIG).is_file():
        return circuit_tracer.load_folder(path, lazy=lazy)
    inner = sorted(cfg.parent for cfg in path.glob("*/cfg.json"))
    if not inner:
        raise InputError(
            f"folder: {folder} holds neither circuit-tracer's config.yaml nor folders with a cfg.json. "
            "For one dictionary use load_dictionary."
        )
    return sorted((load_dictionary(one, lazy=lazy) for one in inner), key=lambda dictionary: dictionary.site.depth)


def _layer_of(path: Path) -> tuple[Path, int | None]:
    """A circuit-tracer folder and a layer of it, where a path ends in one."""
    match = re.fullmatch(r"layer_(\d{1,9})(\.safetensors)?", path.name)
    return (path.parent, int(match[1])) if match and not path.is_dir() else (path, None)


def _refuse_lazy(name: str | Path, lazy: bool, why: str) -> None:
    """Raises InputError where a dictionary cannot stay in its file."""
    if lazy:
        raise InputError(f"lazy: {name} {why}, so its rows cannot be read one by one; leave lazy= out.")


def _refuse_options(name: str | Path, **options: object) -> None:
    """Raises InputError for an option that would change nothing."""
    if given := [key for key, value in options.items() if value is not None]:
        raise InputError(f"{given[0]}: given, but {name} says itself where it reads and writes; leave {given[0]}= out.")


def shipped() -> list[str]:
    """Names of the dictionaries that come with attrib, layer by layer."""
    return sorted((f"{cfg.parent.parent.name}/{cfg.parent.name}" for cfg in SHIPPED.glob("*/*/cfg.json")), key=natural)
