"""What has latents in a call, and the ends of its graphs: dictionaries and MLPs' own units, put into the precision of the call."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from attrib.adapters.given import as_dictionaries
from attrib.attribution.needs import constant, put_into
from attrib.core.fingerprints import seal
from attrib.core.positions import Positions
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.fit import known_to
from attrib.engine.precision import Precision
from attrib.graph.ends import GraphEnds
from attrib.graph.latents import Given, latents_of
from attrib.graph.neurons import NAME, Neurons, check_neurons
from attrib.graph.options import GraphAsked
from attrib.models.transformer import Model


def as_given(given: Any, argument: str) -> tuple[Given, ...]:
    """Dictionaries, as they are taken everywhere, and MLPs' own units."""
    several = [given] if isinstance(given, Neurons) or not isinstance(given, list | tuple) else given
    found: list[Given] = []
    for number, one in enumerate(several):
        found += [one] if isinstance(one, Neurons) else as_dictionaries(one, f"{argument}[{number}]" if several is given else argument)
    return tuple(found)


def as_known(model: Model, given: Sequence[Given]) -> list[Given]:
    """The same, found good for the model. Raises InputError where one does not fit it."""
    named = ((one, f"dictionaries[{number}]") for number, one in enumerate(given))
    return [check_neurons(model, one, at) if isinstance(one, Neurons) else known_to(model, one, at) for one, at in named]


def as_sealed(model: Model, given: Sequence[Given]) -> list[Given]:
    """The same, each hashed once."""
    return [one if isinstance(one, Neurons) else seal(one) for one in as_known(model, given)]


def record_of(one: Given) -> dict[str, Any]:
    """What a graph's record says of it, as JSON can hold it."""
    if isinstance(one, Neurons):
        return {"name": NAME, "site": str(one.reads), "k": one.k}
    return {"name": one.name, "site": str(one.site), "d_sae": one.d_sae, "sha256": one.fingerprint}


def ends_of(model: Model, given: Sequence[Given], asked: GraphAsked, precision: Precision, prompts: Sequence[Tensor]) -> GraphEnds:
    """What the graphs of some prompts are made of.

    Raises:
        InputError: where dictionaries do not fit the model or each other, or a latent is asked for that is not there.
    """
    there = constant(model.to(dtype=precision.path))
    put_in = tuple(put_into(there, one, f"dictionaries[{number}]") for number, one in enumerate(given) if isinstance(one, Dictionary))
    outputs = latents_of(model, asked.outputs, given, [len(ids) for ids in prompts])
    positions: Positions = asked.positions
    neurons = tuple(one for one in given if isinstance(one, Neurons))
    return GraphEnds(there, put_in, outputs, asked.policy, positions, asked.mlps, asked.demean, asked.skip_positions, neurons)
