"""What a step writes down."""

from collections.abc import Sequence
from typing import Any

import torch

from bench.gpu.place import Place


def record_of(place: Place, figures: dict[str, Any], faults: Sequence[str]) -> dict[str, Any]:
    """Figures with where they are from."""
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda or "none"}
    return {"device": place.name, "versions": versions, "faults": list(faults), "figures": figures}
