"""Whether a dictionary belongs to a model, and the dictionary as it reads and writes that model."""

import re
from dataclasses import replace

import torch

from attrib.core.names import are_other_models
from attrib.core.types import BEFORE_NORM, InputError, Site, warn
from attrib.dictionaries.dictionary import Dictionary, after_gain
from attrib.models.transformer import Model, check_end, width


def check_fit(model: Model, dictionary: Dictionary, argument: str) -> None:
    """Raises InputError where a dictionary's sites or widths are not the model's, or it writes before it reads."""
    if model.config.parallel and dictionary.site.kind == "resid_mid" and (dictionary.config.hook_name or "").endswith(f".{BEFORE_NORM}"):
        pre = Site(dictionary.site.layer, "resid_pre")
        raise InputError(
            f"{argument}: {dictionary.name} was trained on {dictionary.config.hook_name}, which in the parallel blocks of {model.name} is "
            f"{pre}. Load it with site={str(pre)!r}, or give it that hook_name."
        )
    site = check_end(model, dictionary.site, f"{argument} ({dictionary.name})")
    writes = [check_end(model, written, f"{argument} ({dictionary.name})") for written in dictionary.writes]
    if early := [written for written in writes if written.depth < site.depth]:
        raise InputError(
            f"{argument} ({dictionary.name}): it reads {site} and writes {early[0]}, which {model.name} computes earlier; expected writes "
            "at or after what is read. Check its sites."
        )
    _check_before_post_norm(model, dictionary, argument)
    share = dictionary.d_out // len(writes)
    for verb, got, at in (("reads", dictionary.d_in, site), *(("writes", share, written) for written in writes)):
        if got != (has := width(model.config, at)):
            raise InputError(
                f"{argument}: {dictionary.name} {verb} vectors of {got}, but {model.name} has {has} at {at}. "
                "It was trained for another model."
            )


_GIVES = re.compile(r"(?:.*\.)?(?:mlp\.hook_out|attn\.hook_out|(?:layers|h|blocks)\.\d+\.(?:mlp|attn|self_attn|attention))")
"""Names of what a module gives, as sparsify and circuit-tracer have them. attrib's attn_out and mlp_out are what is added to the stream."""


def _check_before_post_norm(model: Model, dictionary: Dictionary, argument: str) -> None:
    """Raises InputError where a dictionary writes what a module gives, and the model norms that before it is added."""
    config = dictionary.config
    if model.config.post_norm and config.hook_name_out and _GIVES.fullmatch(config.hook_name_out):
        raise InputError(
            f"{argument}: {dictionary.name} was trained on what {config.hook_name_out} gives, which {model.name} norms before it is added "
            f"to the stream; attrib's {dictionary.writes[0]} is behind that norm. Train one on what is added."
        )


def known_to(model: Model, dictionary: Dictionary, argument: str) -> Dictionary:
    """The dictionary, whose user has been warned where it was made for another model: its latents mean nothing there.

    Which model that is, names alone say. What comes back has no name to be asked about again.
    """
    made_for = dictionary.config.model_name
    if made_for is None or not are_other_models(made_for, model.name):
        return dictionary
    warn(
        f"{argument}: {dictionary.name} was made for {made_for}, and the model is {model.name}: its latents mean nothing in another model. "
        "Where the two are one, give the model that name when it is loaded."
    )
    return replace(dictionary, config=replace(dictionary.config, model_name=None))


def fitted(model: Model, dictionary: Dictionary, argument: str) -> Dictionary:
    """The dictionary as it reads and writes this model; itself but where its hook stands before a norm's weights.

    TransformerLens fires `ln2.hook_normalized` before the norm's weight and bias, which mlp_in has behind it. In a model
    whose norms are folded there is no difference.

    Raises:
        InputError: where it does not fit the model, or the norm's weights cannot be brought into it.
    """
    check_fit(model, dictionary, argument)
    dictionary = known_to(model, dictionary, argument)
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
