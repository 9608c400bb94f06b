"""What is meant where a model or a dictionary is expected: names and other libraries' objects are taken, the rest is one clear error."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attrib
from attrib.adapters import as_dictionary, as_model
from tests.support import builders, hooked
from tests.support.job_cases import tiny_smollm2
from tests.support.root import ROOT


def test_a_model_is_itself():
    model = builders.build("gpt2")
    assert as_model(model) is model


def test_names_are_loaded(tmp_path):
    original = builders.tiny("gpt2")
    original.save_pretrained(tmp_path / "tiny")
    for name in (tmp_path / "tiny", str(tmp_path / "tiny")):
        assert torch.equal(as_model(name).params.W_E, original.transformer.wte.weight)
    shipped = "smollm2-135m/blocks.6.hook_resid_pre"
    assert as_dictionary(shipped).name == shipped


def test_other_libraries_objects_are_converted():
    tokens = builders.prompt()
    original = builders.tiny("llama")
    torch.testing.assert_close(attrib.forward(as_model(original), tokens), original(tokens[None]).logits[0].detach(), rtol=1e-4, atol=1e-4)
    lens = hooked.hooked("gpt2")
    torch.testing.assert_close(attrib.forward(as_model(lens), tokens), lens(tokens[None])[0].detach(), rtol=1e-4, atol=1e-4)
    sae = builders.sae("standard")
    assert torch.equal(as_dictionary(sae).params.W_enc, sae.W_enc)


def test_what_is_around_a_model_is_named():
    for wrapped in (torch.compile(builders.tiny("llama"), backend="eager"), torch.nn.DataParallel(builders.tiny("llama"))):
        with pytest.raises(attrib.UnsupportedError, match=r"Give that: model\.(_orig_mod|module)\."):
            as_model(wrapped)


@pytest.mark.parametrize("given", [None, 3, torch.nn.Linear(2, 2), attrib.Model, [1]], ids=lambda given: type(given).__name__)
@pytest.mark.parametrize("take", [as_model, as_dictionary])
def test_anything_else_is_one_error_that_names_the_argument(take: Any, given: Any):
    with pytest.raises(attrib.InputError, match=r"^there: got .*; expected an attrib\.") as raised:
        take(given, "there")
    assert len(str(raised.value)) < 300


def test_public_functions_take_names_and_other_libraries_objects():
    """Each public function, with the objects of other libraries and with attrib's own: the same numbers."""
    original, sae, ids = builders.tiny("llama"), builders.sae("topk", site="blocks.1.hook_resid_pre"), builders.prompt()
    model, source = as_model(original), as_dictionary(sae)
    for of in (
        lambda model, source: attrib.latent_to_logit(model, source, ids).total,
        lambda model, source: attrib.latent_to_metric(model, source, ids, lambda logits: logits[-1, 3]).total,
        lambda model, source: attrib.token_to_latent(model, source, ids, budget="1GiB").total,
        lambda model, source: attrib.path(model, source, attrib.TopLogits(2), ids).targets.value,
        lambda model, source: attrib.path(model, None, source, ids).targets.value,
        lambda model, source: attrib.replace(model, source).run(ids),
        lambda model, source: torch.tensor(attrib.plan(model, None, source, ids, budget="1GiB").flops),
        lambda model, source: next(iter(attrib.capture(model, ids, ["blocks.1.hook_resid_pre"]).values())),
        lambda model, source: attrib.segment(model, "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre")(torch.ones(3, 32)),
    ):
        assert torch.equal(of(original, sae), of(model, source))


@pytest.mark.parametrize("budget", ["a lot", -1, True, 1.5, "1 parsec", None])
def test_a_budget_that_is_no_size_is_one_error(budget: Any):
    with pytest.raises(attrib.InputError, match=r"^budget: .*; expected a number of bytes, or a size as text, such as '512MiB'"):
        attrib.token_to_latent(builders.build("llama"), builders.dictionary("topk"), builders.prompt(), budget=budget)


def test_a_name_that_is_none_is_one_error():
    with pytest.raises(attrib.InputError, match=r"^source: nonsense is no folder"):
        attrib.latent_to_logit(builders.build("llama"), "nonsense", builders.prompt())
    with pytest.raises(attrib.InputError, match=r"^source\[0\]: got a int"):
        attrib.latent_to_logit(builders.build("llama"), [1], builders.prompt())


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"keep": attrib.TopK(True)}, r"keep: TopK\(True\); expected a whole number"),
        ({"keep": attrib.TopK(2.5)}, r"keep: TopK\(2\.5\); expected a whole number"),
        ({"keep": attrib.Mass("0.5")}, r"keep: Mass\(fraction='0\.5'\); expected a number"),
        ({"precision_rows": True}, "precision_rows: True; expected a whole number"),
    ],
    ids=repr,
)
def test_an_option_of_another_type_is_one_error(option: dict[str, Any], says: str):
    source, target = (builders.dictionary("topk", f"blocks.{layer}.hook_resid_pre") for layer in (1, 2))
    with pytest.raises(attrib.InputError, match=says):
        attrib.latent_to_latent(builders.build("gpt2"), source, target, builders.prompt(), **option)


@pytest.mark.parametrize("name", ["token_to_latent", "latent_to_latent", "latent_to_logit", "latent_to_metric", "plan"])
def test_every_option_is_shown_with_its_default_and_no_other_is_taken(name: str):
    function = getattr(attrib, name)
    parameters = inspect.signature(function).parameters.values()
    shown = {option.name: option.default for option in parameters if option.kind is option.KEYWORD_ONLY}
    usual = {"cuts": (), "effect": "direct", "policy": attrib.EXACT, "keep": attrib.Dense(), "dtype": None, "budget": 1 << 30}
    usual["rule"] = attrib.GradientTimesActivation()
    read = {} if name == "latent_to_metric" else {"positions": None, "precision_rows": None}
    own = {"logits": attrib.TopLogits()} if name == "latent_to_logit" else {"active": None} if name == "plan" else {}
    running = {} if name == "plan" else {"method": "adjoint", "progress": False, "device": None}
    beside = {} if name == "token_to_latent" else {"error": True}
    beside |= {"bias": False} if name in ("latent_to_latent", "latent_to_logit", "plan") else {}
    beside |= {"replay": False} if name not in ("plan", "latent_to_metric") else {}
    assert shown == usual | read | running | own | beside
    with pytest.raises(TypeError, match="unexpected keyword argument 'result_fits'"):
        function(*[None] * (len(parameters) - len(shown)), result_fits=False)


@pytest.mark.few
@pytest.mark.parametrize("make", [list, np.array, lambda numbers: torch.tensor(numbers, dtype=torch.int64)])
def test_a_direction_in_any_form(make: Any):
    numbers = [number % 5 for number in range(builders.D_MODEL)]
    model, source, prompt = builders.build("gpt2"), builders.dictionary("topk"), builders.prompt()
    want = attrib.latent_to_logit(model, source, prompt, logits=attrib.Direction(torch.tensor(numbers, dtype=torch.float32)))
    got = attrib.latent_to_logit(model, source, prompt, logits=attrib.Direction(make(numbers)))
    assert torch.equal(got.gradient, want.gradient)
    assert want.gradient.any()
    with pytest.raises(attrib.InputError, match="logits: Direction of a str; expected a vector of numbers"):
        attrib.latent_to_logit(model, source, prompt, logits=attrib.Direction("north"))


@pytest.mark.parametrize("site", ["blocks.1.hook_resid_pre", attrib.Site(1, "resid_pre")])
def test_one_site_is_captured_as_a_list_of_one(site: Any):
    model, prompt = builders.build("gpt2"), builders.prompt()
    got, want = attrib.capture(model, prompt, site), attrib.capture(model, prompt, [site])
    assert got.keys() == want.keys() == {attrib.Site(1, "resid_pre")}


WITHOUT_TYPES = """
import sys
import numpy as np
import torch
import attrib
from attrib import InputError, Site

prompt = torch.arange(12)
model, source, target = attrib.load_model(attrib.SMOLLM2), *map(attrib.load_dictionary, sys.argv[1:])

def says(words, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except InputError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)

for error in ("no", None, 0):  # of which the first is true to Python
    says(f"error: {error!r}; expected True or False", attrib.latent_to_latent, model, source, target, prompt, error=error)
says("progress: 'bar'; expected True, False or a function", attrib.latent_to_latent, model, source, target, prompt, progress="bar")
says("metric: 'entropy'; expected a function from logits", attrib.latent_to_metric, model, source, prompt, "entropy")
for layer in (True, 1.0, "1", None):
    says("expected layer >= 0", Site, layer, "resid_pre")
assert repr(Site(np.int64(1), "mlp_in")) == "Site(layer=1, kind='mlp_in')"  # and not np.int64(1)
for name in (None, 3, b"blocks.1.hook_resid_pre"):
    says("expected a TransformerLens hook name", Site.parse, name)
print("done")
"""


def test_arguments_of_another_type_where_nothing_checks_types(tmp_path: Path):
    """As users have it; in tests, beartype is first."""
    folders = [tmp_path / f"blocks.{layer}.hook_resid_pre" for layer in (1, 2)]
    for folder in folders:
        builders.sae("topk", site=folder.name).save_model(folder)
    with tiny_smollm2(tmp_path / "cache"):
        environment = {name: value for name, value in os.environ.items() if name != "ATTRIB_TYPECHECK"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-c", WITHOUT_TYPES, *folders]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["done"], done.stderr[-2000:]
