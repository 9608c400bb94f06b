"""Dictionaries of other libraries, into the pytree of attrib.dictionaries.dictionary."""

import re
from pathlib import Path

from attrib.adapters.dictionaries.shipping import is_shipped, shipped_folder, told, why_not_shipped
from attrib.core.types import InputError, Site
from attrib.dictionaries.dictionary import Dictionary


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
            Scope; a layer of a circuit-tracer folder ("folder/layer_3", or the folder with `layer=3`); a .pt, .pkl or .pkl.gz
            of transcoder_circuits, of which nothing is run; or
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
    from attrib.adapters.dictionaries import circuit_tracer, gemma_scope, sae_lens, sparsify, transcoder_circuits

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
    if transcoder_circuits.is_one(path) and not path.is_dir() and (path.exists() or isinstance(name, Path)):
        _refuse_lazy(name, lazy, "is a pickle")
        _refuse_options(name, site=site, writes=writes)
        return transcoder_circuits.load_file(path)
    if is_shipped(str(name)):
        _refuse_options(name, writes=writes)
        return sae_lens.load_folder(shipped_folder(str(name)), name=str(name), site=site, lazy=lazy)
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
        raise InputError(
            f"dictionary: {name} is no folder, no file of transcoder_circuits, and not of the form release/sae_id. Shipped: {told()}."
        )
    if why := why_not_shipped(name):
        raise InputError(why)
    _refuse_options(name, site=site, writes=writes)
    _refuse_lazy(name, lazy, "is a release, which sae-lens loads whole")
    return sae_lens.load_release(release, sae_id)


def load_dictionaries(folder: str | Path, *, lazy: bool = False) -> list[Dictionary]:
    """All dictionaries of a folder, by where they read.

    These are the layers of a circuit-tracer folder, the dictionaries that lie in its folders, or files of transcoder_circuits, whose
    frequencies beside them (`_log_feature_sparsity.pt`) are passed over.

    Args:
        lazy: see `load_dictionary`.

    Raises:
        InputError: where there is none; else as `load_dictionary`.
    """
    from attrib.adapters.dictionaries import circuit_tracer, transcoder_circuits

    path = Path(folder)
    if (path / circuit_tracer.CONFIG).is_file():
        return circuit_tracer.load_folder(path, lazy=lazy)
    inner = sorted(cfg.parent for cfg in path.glob("*/cfg.json")) or transcoder_circuits.files_of(path)
    if not inner:
        raise InputError(
            f"folder: {folder} holds neither circuit-tracer's config.yaml nor folders with a cfg.json, nor files of transcoder_circuits. "
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
