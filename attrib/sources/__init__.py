"""Models and dictionaries from elsewhere. Each adapter is imported when it is first used."""

from pathlib import Path
from typing import Any

from attrib.dictionary import Dictionary
from attrib.model import Model
from attrib.types import InputError

SMOLLM2 = "smollm2-135m"
SHIPPED = Path(__file__).parent.parent / "dictionaries"


def load_model(name: str | Path, **options: Any) -> Model:
    """A model by name or from a local folder.

    Args:
        name: "smollm2-135m" (after `attrib fetch smollm2-135m`), a folder that transformers'
            `save_pretrained` wrote, or any name that TransformerLens knows.
        options: for TransformerLens names, passed to `HookedTransformer.from_pretrained`
            (`fold_ln=False`, say); its defaults process the weights.

    Raises:
        InputError: where there is no such model, or it is not fetched yet.
        UnsupportedError: where the architecture has a feature that attrib does not compute.
    """
    if name == SMOLLM2:
        from attrib.sources import smollm2

        return smollm2.load()
    if Path(name).is_dir():
        from attrib.sources import hugging_face

        return hugging_face.load_folder(Path(name))
    if isinstance(name, Path) or name.startswith((".", "/", "~")):
        raise InputError(f"model: the folder {name} does not exist.")
    from transformer_lens import HookedTransformer

    try:
        model = HookedTransformer.from_pretrained(name, **({"device": "cpu"} | options))
    except (ValueError, OSError) as error:
        raise InputError(
            f"model: {name!r} is neither {SMOLLM2!r}, nor a local folder, nor a model that TransformerLens could load: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return from_transformer_lens(model, name=name)


def load_dictionary(name: str | Path) -> Dictionary:
    """A dictionary by name or from a local folder.

    Args:
        name: a shipped one ("smollm2-135m/blocks.6.hook_resid_pre"), a folder in sae-lens's format, or
            "release/sae_id" of a sae-lens release ("gpt2-small-res-jb/blocks.7.hook_resid_pre").
    """
    from attrib.sources import sae_lens

    if str(name) in shipped():
        return sae_lens.load_folder(SHIPPED / name, name=str(name))
    if Path(name).is_dir():
        return sae_lens.load_folder(Path(name))
    release, slash, sae_id = str(name).partition("/")
    if isinstance(name, Path) or name.startswith((".", "/", "~")) or not slash:
        raise InputError(f"dictionary: {name} is no folder and not of the form release/sae_id. Shipped: {', '.join(shipped())}.")
    if (SHIPPED / release).is_dir():
        raise InputError(f"dictionary: {name} is not shipped; there are {', '.join(shipped())}.")
    return sae_lens.load_release(release, sae_id)


def shipped() -> list[str]:
    """Names of the dictionaries that come with attrib."""
    return sorted(f"{cfg.parent.parent.name}/{cfg.parent.name}" for cfg in SHIPPED.glob("*/*/cfg.json"))


def from_transformer_lens(model: Any, *, name: str | None = None) -> Model:
    """See `attrib.sources.transformer_lens.from_transformer_lens`."""
    from attrib.sources import transformer_lens

    return transformer_lens.from_transformer_lens(model, name=name)


def from_hugging_face(model: Any, tokenizer: Any = None, *, name: str | None = None) -> Model:
    """See `attrib.sources.hugging_face.from_hugging_face`."""
    from attrib.sources import hugging_face

    return hugging_face.from_hugging_face(model, tokenizer, name=name)


def from_sae_lens(sae: Any, *, name: str | None = None) -> Dictionary:
    """See `attrib.sources.sae_lens.from_sae_lens`."""
    from attrib.sources import sae_lens

    return sae_lens.from_sae_lens(sae, name=name)
