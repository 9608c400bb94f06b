"""Where the dictionaries lie that come with attrib: beside its code in a checkout, else in distributions of their own.

Their weights are thirty times the size of the code, so attrib's wheel leaves them out. A distribution of dictionaries has an entry
point in the group `attrib.dictionaries`: its name is the model's, its value a package with a folder of that name, which holds a
folder for each dictionary. `attrib/shipped/pyproject.toml` makes one, and others may have their own.
"""

from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

from attrib.core.types import InputError, natural

GROUP = "attrib.dictionaries"
CHECKOUT = Path(__file__).parents[2] / "shipped"
EXTRAS = {"smollm2-135m": "smollm2"}
"""By model, which extra of attrib brings its dictionaries."""


def shipped() -> list[str]:
    """Names of the dictionaries that come with attrib, of those that are installed, layer by layer."""
    return sorted((name for model in _models() for name in _names(model)), key=natural)


def is_shipped(name: str) -> bool:
    """Whether a dictionary of this name comes with attrib, and is installed."""
    model = name.partition("/")[0]
    return model in _models() and name in _names(model)


def shipped_folder(name: str) -> Path:
    """The folder of a dictionary that comes with attrib; by a model's name alone, that of all its dictionaries and their card.

    Raises:
        InputError: where there is none, with what to install where that would bring it.
    """
    if is_shipped(name) or name in _models():
        return _folder(name.partition("/")[0]).parent / name
    raise InputError(why_not_shipped(name) or f"dictionary: {name} is not shipped; there are {told()}.")


def why_not_shipped(name: str) -> str:
    """What is wrong with a name that no shipped dictionary has, where its model's are shipped; "" for names of other models."""
    model = name.partition("/")[0]
    if model in _models():
        return f"dictionary: {name} is not shipped; there are {told()}."
    if model in EXTRAS:
        return f"dictionary: {name} comes with a package that is not installed; pip install 'attrib[{EXTRAS[model]}]'."
    return ""


def told() -> str:
    """The names of those that are there, for an error that may be about something else."""
    try:
        return ", ".join(shipped()) or "none, before pip install " + " ".join(f"'attrib[{extra}]'" for extra in EXTRAS.values())
    except InputError as broken:
        return f"none that can be read ({broken})"


def _models() -> set[str]:
    return {*_installed()} | {cfg.parents[1].name for cfg in CHECKOUT.glob("*/*/cfg.json")}


def _names(model: str) -> list[str]:
    return [f"{model}/{cfg.parent.name}" for cfg in _folder(model).glob("*/cfg.json")]


def _folder(model: str) -> Path:
    """Where a model's dictionaries lie. Raises InputError where an installed package does not hold what its entry point says."""
    if (CHECKOUT / model).is_dir():
        return CHECKOUT / model
    package, *others = _installed()[model]
    if others:
        raise InputError(f"dictionary: those of {model} come with the packages {package} and {', '.join(others)}; uninstall all but one.")
    try:
        folder = Path(str(files(package))) / model
    except ImportError as error:
        raise InputError(f"dictionary: the package {package}, for those of {model}, does not import ({error}); install it anew.") from error
    if not folder.is_dir():
        raise InputError(f"dictionary: the package {package} should bring those of {model}, but holds no folder {model}. Install it anew.")
    return folder


@cache  # all installed packages are gone through, once
def _installed() -> dict[str, list[str]]:
    """By model, the packages that bring its dictionaries: one, unless two of them contradict each other."""
    found: dict[str, list[str]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry.value)
    return found
