"""Where Neuronpedia shows a latent: addresses alone, nothing is fetched."""

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urlencode

from attrib.adapters.given import as_dictionary
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.metadata import metadata_of
from attrib.latents.surveyed import LatentSurvey
from attrib.store.numbers import checked_number

_HOST = "https://www.neuronpedia.org"
_EMBED = {"embed": "true", "embedexplanation": "true", "embedplots": "true", "embedtest": "true"}


def neuronpedia_link(dictionary: Any, latent: int, *, embed: bool = False) -> str:
    """The address of a latent's page.

    Args:
        dictionary: one whose files say its Neuronpedia id, or a survey of it.
        embed: whether the page is to stand inside another, in an iframe.

    Raises:
        InputError: where the id is not known, or there is no such latent.
    """
    model, of, last = _named(dictionary)
    number = _checked(latent, last)
    return f"{latents_at(f'{model}/{of}')}{number}{f'?{urlencode(_EMBED)}' if embed else ''}"


def latents_at(neuronpedia_id: str) -> str:
    """The address of the latents of a dictionary by its id, MODEL/ID: a latent's number behind it makes that of its page."""
    model, _, of = neuronpedia_id.partition("/")
    return f"{_HOST}/{quote(model, safe='')}/{quote(of, safe='')}/"


def neuronpedia_list(dictionary: Any, latents: Iterable[int], *, name: str = "latents") -> str:
    """The address of a list of latents under a name. Raises as `neuronpedia_link`, and InputError for an empty list."""
    model, of, last = _named(dictionary)
    features = [{"modelId": model, "layer": of, "index": str(_checked(latent, last))} for latent in latents]
    if not features:
        raise InputError("latents: none given; expected at least one for a list.")
    return f"{_HOST}/quick-list/?{urlencode({'name': name, 'features': json.dumps(features)}, quote_via=quote)}"


def _named(given: Any) -> tuple[str, str, int]:
    """The model and the dictionary as Neuronpedia has them, and how many latents there are."""
    if isinstance(given, LatentSurvey):
        name, count, found = given.asked.dictionary, given.asked.d_sae, metadata_of(given.asked.details).neuronpedia_id
    else:
        dictionary: Dictionary = as_dictionary(given)
        name, count, found = dictionary.name, dictionary.d_sae, dictionary.config.metadata.neuronpedia_id
    if found is None:
        raise InputError(f"dictionary: the files of {name} name no neuronpedia_id, so where it is shown is not known.")
    model, _, of = found.partition("/")
    return model, of, count


def _checked(latent: int, count: int) -> int:
    number = checked_number("latent", latent, f"a whole number from 0 to {count - 1}")
    if not 0 <= number < count:
        raise InputError(f"latent: {number}; expected a whole number from 0 to {count - 1}.")
    return number
