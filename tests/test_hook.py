"""The checks of shapes are live: without them every other test would pass over a wrong shape in silence."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from attrib.core.edges import Prompts as PromptsOfEdges
from attrib.dictionaries.dictionary import encode_at, encode_sparse
from attrib.models.transformer import normalise
from attrib.paths.starts import start_at_latents
from tests.support.builders import build, dictionary, normal
from tests.support.checked import CALLS, MADE, begin
from tests.support.root import ROOT


def test_a_wrong_shape_is_refused_by_the_model():
    model = build("gpt2")
    norm = model.params.norm_final
    assert normalise(model.config, norm, normal(5, 32)).shape == (5, 32)
    with pytest.raises(TypeCheckError, match=r"parameter 'x'"):
        normalise(model.config, norm, normal(32))  # no positions


def test_a_wrong_dtype_is_refused_by_the_model():
    model = build("gpt2")
    with pytest.raises(TypeCheckError, match=r"parameter 'x'"):
        normalise(model.config, model.params.norm_final, torch.ones(5, 32, dtype=torch.long))


def test_a_wrong_shape_is_refused_by_dictionaries():
    source, x = dictionary("standard"), normal(5, 32)
    position, latent = torch.tensor([0, 1]), torch.tensor([3, 4])
    assert encode_at(source, x, position, latent).shape == (2,)
    with pytest.raises(TypeCheckError, match=r"parameter '(position|latent)'"):
        encode_at(source, x, position, torch.tensor([3, 4, 5]))  # as many as positions


def test_the_first_calls_in_each_test_are_checked():
    model = build("gpt2")
    for _ in range(CALLS):
        with pytest.raises(TypeCheckError, match=r"parameter 'x'"):
            normalise(model.config, model.params.norm_final, normal(32))
    for _ in range(2 * CALLS):
        normalise(model.config, model.params.norm_final, normal(5, 32))
    assert normalise(model.config, model.params.norm_final, normal(32)).shape == (32,)  # enough has been seen
    begin("the next test")
    with pytest.raises(TypeCheckError, match=r"parameter 'x'"):
        normalise(model.config, model.params.norm_final, normal(32))


def test_the_first_of_a_function_that_is_made_within_another_are_checked_in_each_test():
    source, x = dictionary("standard"), normal(5, 32)

    def entering() -> Callable[[Tensor], Tensor]:
        return start_at_latents(source, x, x, error=True).enter

    count = len(encode_sparse(source, x).value)
    begin("a test")
    for _ in range(MADE):
        with pytest.raises(TypeCheckError, match=r"parameter 'values'"):
            entering()(normal(count, 1))
    with pytest.raises(TypeCheckError, match=r"parameter 'value'"):  # of a function that it calls: of itself enough has been seen
        entering()(normal(count, 1))
    begin("the next test")
    with pytest.raises(TypeCheckError, match=r"parameter 'values'"):
        entering()(normal(count, 1))


def test_the_fields_of_the_first_of_a_data_class_are_checked():
    ids = torch.arange(3)
    for _ in range(CALLS):
        with pytest.raises(TypeCheckError, match="ids"):
            PromptsOfEdges(torch.tensor([0, 3]), ids.float(), ("a", "b", "c"))
    assert len(PromptsOfEdges(torch.tensor([0, 3]), ids.float(), ("a", "b", "c"))) == 1  # enough has been seen


def test_the_hook_loads_every_module_of_attrib():
    names = [name for name in sys.modules if name.split(".")[0] == "attrib"]
    assert "attrib.models.transformer" in names
    assert {type(sys.modules[name].__spec__.loader).__module__.split(".")[0] for name in names} == {"jaxtyping"}


def test_the_hook_loads_the_kernels():
    package = import_module("attrib_kernels")
    assert Path(package.__file__).parent == ROOT / "kernels" / "attrib_kernels"
    assert type(package.__spec__.loader).__module__.split(".")[0] == "jaxtyping"
