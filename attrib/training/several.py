"""Several dictionaries from one description: texts, one pass of the model for all sites, trainings, measurements and their card."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from attrib.adapters import load_dictionary, load_model
from attrib.core.optional import needed
from attrib.core.types import InputError
from attrib.latents.evaluating import Evaluation, Quality, evaluate
from attrib.models.transformer import Model, check_site
from attrib.runs.spec import checked, toml_table
from attrib.training.activations import ActivationStore, StoredAs, store_activations
from attrib.training.card import card_figures, check_trained, read_card, write_card
from attrib.training.config import Count, Training
from attrib.training.contexts import hold_out, packed
from attrib.training.curves import Row, curves_page, read_curves
from attrib.training.densities import density
from attrib.training.fitting import CURVES, train, trained_as
from attrib.training.texts import sources_of

COUNTED = 1 << 17
"""Rows at most on which densities are counted."""


class Entry(Training, frozen=True):
    """A dictionary of a file, which may have a name of its own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=-]{0,119}$")] | None = None
    """Its folder within the output; None is the hook where it reads."""

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return self.name or self.reads

    @property
    def as_training(self) -> Training:
        """Without the name, which nothing of it follows from."""
        return Training(**self.model_dump(exclude={"name"}, exclude_unset=True))


class TrainingFile(BaseModel, extra="forbid"):
    """Everything that `attrib train` needs. Keys of a dictionary that stand beside these are those of all dictionaries."""

    model: str
    texts: Annotated[list[str], Field(min_length=1)]
    """Files and folders, as `sources_of` takes them."""
    context: Count = 128
    """Tokens of a context."""
    tokens: Count | None = None
    """Tokens in all, shared evenly among the sources; None takes all."""
    prepend_bos: bool = False
    dataset: str | None = None
    """What the dictionaries' metadata call the texts; None is the sources' names."""
    measured: Count = 12_000
    """Held-out tokens to measure on, about."""
    stored_as: StoredAs = "float16"
    """Dtype of the activations on disk."""
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    """What activations are computed in; measured is in float32."""
    dictionary: Annotated[list[Entry], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_each(self) -> "TrainingFile":
        names = [one.folder for one in self.dictionary]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"dictionary: {twice} is there more than once; give each a name of its own.")
        return self


class Watch:
    """Told what is being done; does nothing, so that a caller overrides what it shows."""

    def storing(self, done: int, total: int) -> None:
        """Contexts of which the activations are on disk."""

    def training(self, name: str, row: Row, steps: int) -> None:
        """A row of a dictionary's curves."""

    def measuring(self, done: int, total: int) -> None:
        """Tokens that dictionaries were measured on, of the times that the text is gone through."""


def read_training_file(path: Path) -> dict[str, Any]:
    """The keys of a TOML file; relative paths of texts are taken from its folder."""
    table = toml_table(path)
    if isinstance(texts := table.get("texts"), list):
        table["texts"] = [str(path.parent / one) if isinstance(one, str) and not one.startswith("hf:") else one for one in texts]
    return table


def training_file(table: dict[str, Any]) -> TrainingFile:
    """A checked description from its keys. Raises InputError that names every key that is wrong."""
    shared = {key: value for key, value in table.items() if key in Training.model_fields}
    own = {key: value for key, value in table.items() if key not in shared}
    tables = own.get("dictionary", [{}])
    if isinstance(tables, list) and all(isinstance(one, dict) for one in tables):
        own["dictionary"] = [shared | one for one in tables]
    return checked(TrainingFile, own, "training")


def train_several(
    described: TrainingFile, out: str | Path, *, work: str | Path | None = None, watch: Watch | None = None
) -> tuple[Evaluation, dict[str, list[Row]]]:
    """Train, save and measure all dictionaries of a description; what is there already is not trained again.

    `out` gets a folder for each dictionary, the card (README.md, card.json), and the page of curves where plotly is installed. Both
    the activations and the trainings go on after a process that was killed, with the same call.

    Args:
        work: folder of activations and checkpoints, which may be deleted at the end; None is one beside `out`, `OUT.work`.
        watch: told what is being done.

    Returns:
        What the dictionaries are worth on held-out text, a row each in their order, and their curves by name.

    Raises:
        InputError: as `train`; and where a dictionary or a card is there that says something else.
    """
    out, watch = Path(out), watch or Watch()
    work = out.with_name(f"{out.name}.work") if work is None else Path(work)
    read_card(out)  # before hours of training, and not after them
    for one in described.dictionary:
        if (out / one.folder).exists():
            check_trained(out, one.folder, one.as_training, trained_as(out / one.folder))
        else:
            needed("sae_lens", "train", "lens")
    model = load_model(described.model, device=described.dictionary[0].device)
    for number, one in enumerate(described.dictionary):
        for key, site in (("reads", one.site), ("writes", one.site_out)):
            check_site(model, site, f"dictionary[{number}].{key}")
    by_source, contexts = _contexts(described, model)
    training, held_out = hold_out(contexts)
    store = store_activations(
        model.to(dtype=described.model_dtype), training, {site for one in described.dictionary for site in (one.site, one.site_out)},
        work / "activations", stored_as=described.stored_as, prepend_bos=described.prepend_bos,
        dataset=described.dataset or ", ".join(by_source)[:200], progress=watch.storing,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    for one in described.dictionary:
        if not (out / one.folder).exists():
            train(model, store, one.as_training, out / one.folder, work=work, progress=_named(watch.training, one.folder))
    found = _measured(described, out, model, held_out[:: max(1, held_out.numel() // described.measured)], watch)
    results = {
        one.folder: card_figures(row) | {"density": _density(store, one, row.dictionaries[0])}
        for one, row in zip(described.dictionary, found.rows, strict=True)
    }
    record = described.model_dump(exclude_defaults=True) | {"context": described.context, "prepend_bos": described.prepend_bos}
    write_card(out, {"described": record, "tokens_by_source": by_source, "training_tokens": training.numel()}, results)
    curves = {name: read_curves(out / name / CURVES) for name in results}
    if find_spec("plotly") is not None:
        curves_page(out / "curves.html", curves)
    return found, curves


def _contexts(described: TrainingFile, model: Model) -> tuple[dict[str, int], Tensor]:
    """How many tokens of each source are in contexts, and the contexts."""
    sources = sources_of(described.texts)
    share = None if described.tokens is None else described.tokens // len(sources)
    if share == 0:
        raise InputError(f"tokens: {described.tokens}, shared among {len(sources)} sources; give more.")
    found = {
        source.name: packed(model, source.texts(), described.context, limit=share, prepend_bos=described.prepend_bos)[0]
        for source in sources
    }
    contexts = torch.cat([*found.values()])
    return {name: rows.numel() for name, rows in found.items() if len(rows)}, contexts


def _named(told: Callable[[str, Row, int], None], name: str) -> Callable[[Row, int], None]:
    return lambda row, steps: told(name, row, steps)


def _measured(described: TrainingFile, out: Path, model: Model, held_out: Tensor, watch: Watch) -> Evaluation:
    """All dictionaries on held-out text, in their order; those that leave out the same tokens share the model's own passes."""
    rows: dict[str, Quality] = {}
    for max_norm in dict.fromkeys(one.max_norm for one in described.dictionary):
        names = [one.folder for one in described.dictionary if one.max_norm == max_norm]
        dictionaries = [load_dictionary(out / name).to(device=model.device) for name in names]
        found = evaluate(model, dictionaries, held_out, max_norm=max_norm, patterns=False, progress=watch.measuring)
        rows |= dict(zip(names, found.rows, strict=True))
    return Evaluation(tuple(rows[one.folder] for one in described.dictionary), len(held_out))


def _density(store: ActivationStore, one: Training, dictionary: Any) -> dict[str, Any]:
    """On rows that are spread over all."""
    rows = store.usual((one.site, one.site_out), one.max_norm)
    return density(store, dictionary.to(device="cpu"), rows[:: -(-len(rows) // COUNTED)])
