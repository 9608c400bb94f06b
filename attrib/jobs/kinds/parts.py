"""The model and dictionaries of a config that is no attribution, on the device that computes with them."""

from collections.abc import Mapping
from pathlib import Path

import torch

from attrib.core.fingerprints import seal
from attrib.dictionaries.dictionary import Dictionary
from attrib.jobs.told import Told
from attrib.models.transformer import Model
from attrib.runs.spec import load_parts


def parts_on(config: Told, device: torch.device, places: Mapping[str, str | Path]) -> tuple[Model, dict[str, Dictionary]]:
    """Both on `device`. Raises as `attrib.load_model` and `attrib.load_dictionary`."""
    model, found = load_parts(config.model, config.dictionaries, config.special_tokens, device, places)
    return model, {name: seal(one.to(device=device), one.fingerprint) for name, one in found.items()}
