"""The dictionary's own functions for composing, as the public face has them.

The arithmetic is dictionary.py's, which the engine calls thousands of times. Here a dictionary may be a name, a folder or another
library's object, it is computed in the dtype and on the device of what it meets, and shapes that do not fit are one clear error.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.adapters.given import as_dictionary, takes
from attrib.core.types import InputError, SparseLatents, warn
from attrib.dictionaries import dictionary as on
from attrib.dictionaries.dictionary import Dictionary, InputScale
from attrib.passes import capture as capturing
from attrib.passes.capture import Leaves


@takes(dictionary=as_dictionary)
def encode(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Float[Tensor, "*batch positions d_sae"]:
    """All latents, dense, of what a dictionary reads. `encode_sparse` gives the active ones alone, without a tensor of this size.

    A pure function of `x`, for every transform of torch.func; a derivative is 1 where a latent is active, as for attributions.

    Args:
        x: the value at `dictionary.site`, as `attrib.capture` gives it.

    Raises:
        InputError: for vectors of another width.
        NotFiniteError: where a pre-activation is NaN or infinite.
    """
    return on.encode(_meeting(dictionary, x), x)


@takes(dictionary=as_dictionary)
def encode_sparse(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"], *, tile: int | None = None) -> SparseLatents:
    """The active latents of one prompt: position, latent and value of each, sorted by (position, latent).

    A dense [positions, d_sae] is never formed. How many are active depends on the data, so this is no function for vmap: `encode` is,
    and so is a `Replacement`, which holds them as leaves.

    Args:
        x: the value at `dictionary.site` of one prompt, [positions, d_in].
        tile: how many encoder columns are multiplied together; None is 2048, and more on an accelerator.
            Memory is a few times [positions, tile].

    Raises:
        InputError: for another shape, or a tile without columns.
        NotFiniteError: where a pre-activation is NaN or infinite.
    """
    return on.encode_sparse(_meeting(dictionary, _one_prompt(x)), x, tile=tile)


@takes(dictionary=as_dictionary)
def decode(
    dictionary: Dictionary, latents: Float[Tensor, "*batch positions d_sae"], scale: InputScale | None = None
) -> Float[Tensor, "*batch positions d_out"]:
    """What dense latents write, at all sites side by side, without the skip connection.

    Args:
        scale: what `attrib.cut` returns as `scale`; needed by dictionaries that normalise their input and put the scale back.

    Raises:
        InputError: for another number of latents.
    """
    if latents.shape[-1] != dictionary.d_sae:
        raise InputError(f"latents: {latents.shape[-1]}, and {dictionary.name} has {dictionary.d_sae}; expected [..., positions, d_sae].")
    return on.decode(_beside(dictionary, latents), latents, scale)


@takes(dictionary=as_dictionary)
def reconstruct(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Float[Tensor, "*batch positions d_out"]:
    """The dictionary's whole forward, as its own library computes it: decode(encode(x)) with the input's own scale, plus skip(x).

    For an SAE it is what would stand at its site without the error; for a transcoder, what it writes in the MLP's place. A pure function
    of `x`, for every transform of torch.func.

    Args:
        x: the value at `dictionary.site`.

    Returns:
        What it writes at `dictionary.writes`, side by side.

    Raises:
        InputError: for vectors of another width.
        NotFiniteError: where a pre-activation is NaN or infinite.
    """
    return on.reconstruct(_meeting(dictionary, x), x)


@takes(dictionary=as_dictionary)
def cut(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"], written: Float[Tensor, "*any"] | None = None) -> Leaves:
    """What a cut of one prompt holds constant: the active latents, the error, and the scale of the input.

    decode(latents) + skip(x) + error is `written`, up to rounding: sae-lens' `hook_sae_acts_post`, `hook_sae_recons` and
    `hook_sae_error` are the three terms of its SAEs. `attrib.replace(model, dictionaries)`
    does this for many dictionaries in a whole model.

    Args:
        x: the value at `dictionary.site`, [positions, d_in].
        written: the true values at `dictionary.writes`, side by side; left out for a dictionary that writes where it reads.

    Raises:
        InputError: for another shape, or where a dictionary writes elsewhere and `written` is missing.
        NotFiniteError: where a pre-activation is NaN or infinite.
    """
    if written is not None and written.shape != (len(_one_prompt(x)), dictionary.d_out):
        raise InputError(f"written: shape {list(written.shape)}; expected {[len(x), dictionary.d_out]}, the values at all that it writes.")
    return capturing.cut(_meeting(dictionary, _one_prompt(x)), x, written)


@takes(dictionary=as_dictionary)
def writing_at(dictionary: Dictionary, layers: Iterable[int]) -> Dictionary:
    """The dictionary with that alone of what it writes which lies in some layers: a layer of a cross-layer transcoder, constrained to them.

    It reads what it read and has the same latents. Put into a model beside the others (`attrib.causal.intervene`, docs/interventions.md),
    what it would write elsewhere is the model's own.

    Args:
        layers: numbers of layers, such as a range; those at which it does not write may be among them.

    Raises:
        InputError: where it writes in none of these layers, and for a lazy dictionary where they do not lie together.
    """
    wanted = {*layers}
    kept = [number for number, site in enumerate(dictionary.writes) if site.layer in wanted]
    if wrong := [one for one in wanted if isinstance(one, bool) or not isinstance(one, int)]:
        raise InputError(f"layers: {wrong[0]!r}; expected numbers of layers.")
    if not kept:
        there = ", ".join(map(str, dictionary.writes))
        raise InputError(f"layers: {sorted(wanted)}, and {dictionary.name} writes {there}; expected at least one of their layers.")
    if len(kept) == len(dictionary.writes):
        return dictionary
    first, last = kept[0], kept[-1] + 1
    if dictionary.config.lazy and last - first != len(kept):
        raise InputError(
            f"layers: {sorted(wanted)}, and {dictionary.name} is read from its file as it is used, of which layers side by side can be "
            "taken; expected those, or load it without lazy=True."
        )
    width = dictionary.d_out // len(dictionary.writes)

    def part(given: Float[Tensor, "*rows d_out"]) -> Float[Tensor, "*rows _"]:
        if last - first == len(kept):
            return given[..., first * width : last * width]
        return torch.cat([given[..., number * width : (number + 1) * width] for number in kept], -1)

    p = dictionary.params
    params = p._replace(W_dec=part(p.W_dec), b_dec=part(p.b_dec), W_skip=part(p.W_skip) if dictionary.has_skip else p.W_skip)
    writes = tuple(dictionary.writes[number] for number in kept)
    config = replace(dictionary.config, writes=writes, part_of=dictionary.config.part_of or dictionary.writes, hook_name_out=None)
    name = f"{dictionary.name} in layers {', '.join(str(site.layer) for site in writes)}"
    return replace(dictionary, params=params, config=config, name=name)


def _one_prompt(x: Float[Tensor, "*any"]) -> Float[Tensor, "positions d_in"]:
    if x.ndim != 2:
        raise InputError(f"x: shape {list(x.shape)}; expected one prompt, [positions, d_in]. Call once for each.")
    return x


def _meeting(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Dictionary:
    """The dictionary where x is, which it can read."""
    if x.ndim < 2 or x.shape[-1] != dictionary.d_in:
        raise InputError(
            f"x: shape {list(x.shape)}, and {dictionary.name} reads vectors of {dictionary.d_in}; expected [..., positions, _]."
        )
    if (dictionary.config.hook_name or "").endswith("ln2.hook_normalized"):
        warn(
            f"dictionary: {dictionary.name} reads {dictionary.config.hook_name}, before the norm's weights, while attrib's "
            f"{dictionary.site} is behind them. Give attrib.dictionaries.fit.fitted(model, dictionary, 'dictionary') "
            "for values of attrib.capture."
        )
    return _beside(dictionary, x)


def _beside(dictionary: Dictionary, x: Float[Tensor, "*any"]) -> Dictionary:
    own = dictionary.params.b_enc
    return dictionary if (own.dtype, own.device) == (x.dtype, x.device) else dictionary.to(dtype=x.dtype, device=x.device)
