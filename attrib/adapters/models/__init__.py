"""Models of other libraries, into the pytree of attrib.models.transformer."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from attrib.adapters.loading import make_private, no_bars
from attrib.adapters.models.check import check_model
from attrib.core.devices import check_device, check_dtype
from attrib.core.optional import needed
from attrib.core.types import InputError
from attrib.models.transformer import Model

SMOLLM2 = "smollm2-135m"

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
    from attrib.adapters.models.transformer_lens import from_transformer_lens

    transformer_lens = needed("transformer_lens", f"model: {name!r} is no folder, and as a name of TransformerLens", "lens")
    try:
        with no_bars():
            model = transformer_lens.HookedTransformer.from_pretrained(name, **options)
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
