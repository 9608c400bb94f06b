"""The scaling of sae-lens's training checkpoints, which lies beside their weights until the last one folds it in.

    expected_average_only_in   activation_scaler.json             z = s x              W_enc s, W_dec / s, b_dec / s
    covariance_whitening       activation_whitening.safetensors   z = (x - mean) M     M W_enc, W_dec M^-1, b_dec M^-1 + mean

The dictionary was trained on z. sae-lens's own forward knows nothing of it: given x, an unfolded dictionary computes
something else without a word. So what lies beside is folded in as sae-lens does at the end of training, and where nothing
does, the dictionary is refused. Decoder norms by which latents are rescaled change with s, and stay what they were with M.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.adapters.dictionaries.tensors import check_no_others, check_shapes, read_json, safetensors_file
from attrib.core.types import FormatError, UnsupportedError
from attrib.core.weights import check_finite
from attrib.dictionaries.dictionary import Dictionary

SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"

SCALED: dict[str, tuple[str, str]] = {
    "expected_average_only_in": (SCALER, "sae.fold_activation_norm_scaling_factor(factor)"),
    "covariance_whitening": (WHITENING, "sae.fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)"),
}
"""By the name in a config: where the scaling lies, and what folds it in in sae-lens."""


class Whitening(NamedTuple):
    """z = (x - mean) @ matrix, and back, in float64."""

    mean: Float[Tensor, " d_in"]
    matrix: Float[Tensor, "d_in d_in"]
    inverse_matrix: Float[Tensor, "d_in d_in"]


def not_folded(normalisation: str, name: str, where: str) -> UnsupportedError:
    """The error for a dictionary whose scaling is not known."""
    file, fold = SCALED[normalisation]
    return UnsupportedError(
        f"dictionary {name}: normalize_activations={normalisation!r} was left to a scaling of its input, and {where}. In sae-lens run "
        f"{fold}, with what training saved in {file}, and save it again; where its weights have that in them already, set "
        "normalize_activations to 'none' in its config."
    )


def factor_beside(folder: Path, name: str) -> float:
    """The factor of a checkpoint. Raises UnsupportedError where there is none, FormatError where it is no factor."""
    if not (path := folder / SCALER).is_file():
        raise not_folded("expected_average_only_in", name, f"{folder} holds no {SCALER}")
    found = read_json(path)
    factor = found.get("scaling_factor") if isinstance(found, dict) else found
    if isinstance(found, dict) and factor is None:
        raise not_folded("expected_average_only_in", name, f"the scaling_factor of its {SCALER} is null")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not (isfinite(factor) and factor > 0):
        raise FormatError(f"dictionary {name}: {path} holds {str(factor)[:60]}; expected a scaling_factor above 0.")
    return float(factor)


def whitening_beside(folder: Path, d_in: int, name: str) -> Whitening:
    """The matrices of a checkpoint. Raises UnsupportedError where there are none, FormatError where they do not fit."""
    if not (path := folder / WHITENING).is_file():
        raise not_folded("covariance_whitening", name, f"{folder} holds no {WHITENING}")
    expected = {"mean": [d_in], "matrix": [d_in, d_in], "inverse_matrix": [d_in, d_in]}
    with safetensors_file(path) as file:
        check_shapes(file.shapes, expected, name, f" in {WHITENING}")
        check_no_others(file.shapes, [*expected], name)
        found = Whitening(*(file.stored(key).to(torch.float64, copy=True) for key in expected))
    check_finite(found._asdict(), f"{name}, in {WHITENING}", FormatError)
    return found


def scaled(state: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The weights of a dictionary of z = factor · x, as those of one of x."""
    by = {"W_enc": factor, "W_dec": 1 / factor, "b_dec": 1 / factor}
    return {key: (value.double() * by[key]).to(value.dtype) if key in by else value for key, value in state.items()}


def whitened(dictionary: Dictionary, by: Whitening) -> Dictionary:
    """A dictionary of z = (x - mean) M that reads and writes z, as one of x. Its rule ranks the same pre-activations."""
    p, mean = dictionary.params, by.mean
    W_enc = by.matrix @ p.W_enc.double()
    # where b_dec is subtracted from the input, the new one takes the mean with it
    b_enc = p.b_enc.double() if dictionary.config.apply_b_dec_to_input else p.b_enc.double() - mean @ W_enc
    W_dec, b_dec = p.W_dec.double() @ by.inverse_matrix, p.b_dec.double() @ by.inverse_matrix + mean
    made = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    params = p._replace(**{key: value.to(p.W_enc.dtype) for key, value in made.items()})
    check_finite(params._asdict(), f"{dictionary.name}, after its whitening was folded in", FormatError)
    return replace(dictionary, params=params)
