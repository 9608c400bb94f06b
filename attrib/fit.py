"""Whether a dictionary belongs to a model, and the dictionary as it reads and writes that model."""

from dataclasses import replace

import torch

from attrib.dictionary import Dictionary, after_gain
from attrib.model import Model, check_end, width
from attrib.types import InputError


def check_fit(model: Model, dictionary: Dictionary, argument: str) -> None:
    """Raises InputError where a dictionary's sites or widths are not the model's, or it writes before it reads."""
    site = check_end(model, dictionary.site, f"{argument} ({dictionary.name})")
    writes = [check_end(model, written, f"{argument} ({dictionary.name})") for written in dictionary.writes]
    if early := [written for written in writes if written.depth < site.depth]:
        raise InputError(
            f"{argument} ({dictionary.name}): it reads {site} and writes {early[0]}, which {model.name} computes earlier; expected writes "
            "at or after what is read. Check its sites."
        )
    share = dictionary.d_out // len(writes)
    for verb, got, at in (("reads", dictionary.d_in, site), *(("writes", share, written) for written in writes)):
        if got != (has := width(model.config, at)):
            raise InputError(
                f"{argument}: {dictionary.name} {verb} vectors of {got}, but {model.name} has {has} at {at}. "
                "It was trained for another model."
            )


def fitted(model: Model, dictionary: Dictionary, argument: str) -> Dictionary:
    """The dictionary as it reads and writes this model; itself but where its hook stands before a norm's weights.

    TransformerLens fires `ln2.hook_normalized` before the norm's weight and bias, which mlp_in has behind it. In a model
    whose norms are folded there is no difference.

    Raises:
        InputError: where it does not fit the model, or the norm's weights cannot be brought into it.
    """
    check_fit(model, dictionary, argument)
    if not (dictionary.config.hook_name or "").endswith("ln2.hook_normalized"):
        return dictionary
    norm = model.params.blocks[dictionary.site.layer].norm_2
    if not model.config.pre_norm:
        raise InputError(
            f"{argument}: {dictionary.name} reads {dictionary.config.hook_name}, which in {model.name} stands behind the MLP, "
            "and not before it. Train one on what the MLP reads."
        )
    if torch.equal(norm.weight, torch.ones_like(norm.weight)) and not norm.bias.any():
        return replace(dictionary, config=replace(dictionary.config, hook_name=None))  # and need not be asked again
    return after_gain(dictionary, norm.weight, norm.bias)
