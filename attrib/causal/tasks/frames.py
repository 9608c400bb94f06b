"""Long data frames: one row for each answer, and one for each latent's effect.

`SAMPLES` has a row for each (example, operation), `LATENTS` one for each (example, operation, dictionary, latent) that is active at a
chosen position. Blocks of a run are such frames, one behind the other; tables.py sums them up.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attrib.causal.tasks.answering import Answers
from attrib.causal.tasks.effects import Effects
from attrib.causal.tasks.examples import Item
from attrib.core.types import InputError
from attrib.models.tokens import token_strings
from attrib.models.transformer import Model

if TYPE_CHECKING:
    import pandas as pd

SAMPLES: dict[str, str] = {
    "example": "int64", "operation": "str", "tokens": "int64", "label": "int64", "right": "str", "wrong": "str", "difference": "float64",
    "loss": "float64", "probability": "float64", "prediction": "int64", "said": "str", "correct": "bool",
}  # fmt: skip
"""`tokens` is the prompt's length; `right`, `wrong` and `said` are tokens as they read; see `Answers` for the others."""
LATENTS: dict[str, str] = {
    "example": "int64", "operation": "str", "dictionary": "str", "latent": "int64", "activation": "float64", "positions": "int64",
    "effect": "float64", "kept": "bool",
}  # fmt: skip
"""See `Effects`. `dictionary` is a name; the effect of an operation that only looks at activations is NaN."""


FRAMES: dict[str, Mapping[str, str]] = {"samples": SAMPLES, "latents": LATENTS}
"""By what they are called."""


def frame(kind: Mapping[str, str], columns: Mapping[str, Any] | None = None) -> "pd.DataFrame":
    """A frame with the columns of `SAMPLES` or `LATENTS`; without any, it has no rows."""
    import pandas as pd

    given = {name: columns[name] if columns else [] for name in kind}
    return pd.DataFrame({name: pd.Series(given[name], dtype=object if dtype == "str" else dtype) for name, dtype in kind.items()})


def samples_frame(model: Model, items: Sequence[Item], numbers: Sequence[int], operation: str, answers: Answers) -> "pd.DataFrame":
    """One row for each example of a batch."""
    both = [[" / ".join(token_strings(model, _ids(model, side))) for side in (item.right, item.wrong)] for item in items]
    columns: dict[str, Any] = {name: getattr(answers, name).cpu().double().numpy() for name in ("difference", "loss", "probability")}
    columns |= {name: getattr(answers, name).cpu().numpy() for name in ("prediction", "correct")}
    columns |= {"example": [*numbers], "operation": [operation] * len(items), "tokens": [len(item.ids) for item in items]}
    columns |= {"label": [item.label for item in items], "right": [right for right, _ in both], "wrong": [wrong for _, wrong in both]}
    return frame(SAMPLES, columns | {"said": list(token_strings(model, answers.said))})


def latents_frame(numbers: Sequence[int], names: Sequence[str], operation: str, effects: Effects) -> "pd.DataFrame":
    """One row for each row of effects; their prompts are numbers of the batch."""
    columns: dict[str, Any] = {name: getattr(effects, name).cpu().numpy() for name in ("latent", "positions", "kept")}
    columns |= {name: getattr(effects, name).cpu().double().numpy() for name in ("activation", "effect")}
    columns["example"] = np.asarray([*numbers], dtype=np.int64)[effects.prompt.cpu().numpy()]
    columns["dictionary"] = [names[number] for number in effects.dictionary.tolist()]
    return frame(LATENTS, columns | {"operation": [operation] * len(effects.latent)})


def joined_frames(kind: Mapping[str, str], parts: Sequence["pd.DataFrame"]) -> "pd.DataFrame":
    """Frames of one kind, one behind the other."""
    import pandas as pd

    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else frame(kind)


def check_frame(given: Any, kind: Mapping[str, str], argument: str) -> None:
    """Raises InputError for what has not the columns of `SAMPLES` or `LATENTS`."""
    columns = list(getattr(given, "columns", []))
    if missing := [name for name in kind if name not in columns]:
        raise InputError(f"{argument}: has no column {missing[0]!r}; expected a frame of a run, with {', '.join(kind)}.")


def _ids(model: Model, tokens: Sequence[int]) -> Any:
    import torch

    return torch.tensor(tokens, device=model.device)
