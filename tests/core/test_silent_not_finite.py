"""NaN and infinity on the way: an error that names the tensor, the prompt and the first position, and never an empty result."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import jacrev, vmap

import attrib
from attrib.causal.tasks import Example, encoded
from attrib.causal.tasks.operations import Batch
from attrib.core.finite import require_finite
from attrib.core.types import Direction, InputError, NotFiniteError, Site, TokenLogits, TopLogits
from attrib.dictionaries.dictionary import Dictionary, encode, encode_sparse
from attrib.jobs.kind import Portion
from attrib.jobs.kinds.edges import EdgesKind
from attrib.jobs.shard import _computed
from attrib.models.transformer import Model
from attrib.runs.spec import Loaded, Work
from tests.support.builders import D_MODEL, attrib_model, build, dictionary, normal, prompt

SICK = 17
"""The token whose embedding is NaN."""
WELL, ILL = torch.tensor([3, 5, 8, 13]), torch.tensor([3, 5, SICK, 13, 2])
KINDS = ("token_to_latent", "latent_to_latent", "latent_to_logit", "latent_to_metric")


def with_row(model: Model, row: int, value: float) -> Model:
    W_E = model.params.W_E.clone()
    W_E[row, 3] = value
    return replace(model, params=model.params._replace(W_E=W_E))


def changed(d: Dictionary, name: str, value: float, *at: int) -> Dictionary:
    tensor = getattr(d.params, name).clone()
    tensor[at] = value
    return replace(d, params=d.params._replace(**{name: tensor}))


def last(logits: Tensor) -> Tensor:
    return logits[-1, 4]


def call(kind: str, model: Model, source: Dictionary, target: Dictionary, prompts: list[Tensor], **options: Any) -> attrib.Edges:
    match kind:
        case "token_to_latent":
            return attrib.token_to_latent(model, target, prompts, **options)
        case "latent_to_latent":
            return attrib.latent_to_latent(model, source, target, prompts, **options)
        case "latent_to_logit":
            return attrib.latent_to_logit(model, source, prompts, logits=TokenLogits([1, 4]), **options)
    return attrib.latent_to_metric(model, source, prompts, last, **options)


def ends(kind: str = "standard") -> tuple[Dictionary, Dictionary]:
    return dictionary(kind, "blocks.1.hook_resid_pre"), dictionary(kind, "blocks.3.hook_resid_pre", seed=7)


@pytest.mark.few
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_the_embedding(kind: str, value: float):
    model = with_row(build("gpt2"), SICK, value)
    for method in ("adjoint", "torch.func"):
        with pytest.raises(
            NotFiniteError, match=rf"tokens: prompt 1 gives {value} at blocks.0.hook_resid_pre, first at position 2"
        ) as raised:
            call(kind, model, *ends(), [WELL, ILL], method=method)
    assert (raised.value.prompt, raised.value.position) == (1, 2)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # as it comes from another process
    assert len(call(kind, model, *ends(), [WELL])) > 0


@pytest.mark.few
@pytest.mark.parametrize("which", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize("end", [0, 1])
def test_a_bias_of_a_dictionary(which: str, end: int):
    both = list(ends(which))
    both[end] = changed(both[end], "b_enc", torch.nan, 9)
    for options in ({}, {"method": "torch.func"}, {"error": False}):
        with pytest.raises(
            NotFiniteError, match=rf"prompt 0 gives nan at the pre-activations of .*{(1, 3)[end]}.hook_resid_pre.*position 0"
        ):
            attrib.latent_to_latent(build("gpt2"), *both, [WELL], **options)
    x = normal(5, D_MODEL)
    for function in (encode, encode_sparse):
        with pytest.raises(NotFiniteError, match="the prompt gives nan at the pre-activations"):
            function(both[end], x)
        x_ill = x.index_fill(0, torch.tensor([3]), torch.nan)
        with pytest.raises(NotFiniteError, match=r"nan at blocks.1.hook_resid_pre, which .* reads, first at position 3"):
            function(ends(which)[0], x_ill)


def test_a_dictionary_on_the_way():
    cut = changed(dictionary("standard", "blocks.2.hook_resid_pre", seed=5), "b_enc", torch.nan, 9)
    with pytest.raises(NotFiniteError, match="pre-activations"):
        attrib.latent_to_latent(build("gpt2"), *ends(), [WELL], cuts=[cut], effect="total")


@pytest.mark.few
@pytest.mark.parametrize("method", ["adjoint", "torch.func"])
@pytest.mark.parametrize("keep", [attrib.Dense(), attrib.TopK(2), attrib.Mass(0.5)], ids=str)
def test_a_decoder(method: Any, keep: Any):
    """Activations are good, and what follows from them is not."""
    source, target = ends()
    latent = int(attrib.latent_to_latent(build("gpt2"), source, target, [WELL]).sources.latent[-1])
    ill = changed(source, "W_dec", torch.nan, latent)
    with pytest.raises(NotFiniteError, match=r"prompt 0 gives nan at blocks.3.hook_resid_pre, which .* reads"):
        attrib.latent_to_latent(build("gpt2"), ill, target, [WELL], method=method, keep=keep, error=False)
    with pytest.raises(NotFiniteError, match=r"prompt 0 gives nan at the gradients of blocks.3.hook_resid_pre"):
        attrib.latent_to_latent(build("gpt2"), ill, target, [WELL], method=method, keep=keep)


def test_half_precision_that_overflows():
    model = build("gpt2", torch.float16)
    large = with_row(model, SICK, 6e4)
    block = large.params.blocks[0]
    block = block._replace(mlp=block.mlp._replace(b_out=block.mlp.b_out.clone().index_fill(0, torch.tensor([3]), 6e4)))
    large = replace(large, params=large.params._replace(blocks=(block, *large.params.blocks[1:])))
    source, target = (d.to(dtype=torch.float16) for d in ends())
    with pytest.raises(NotFiniteError, match=r"prompt 0 gives inf at blocks.0.*first at position 2"):
        attrib.latent_to_latent(large, source, target, [ILL])


def test_path_and_replace_called_directly():
    model, (source, target) = with_row(build("gpt2"), SICK, torch.nan), ends()
    with pytest.raises(NotFiniteError, match=r"the prompt gives nan at blocks.0.hook_resid_pre, first at position 2"):
        attrib.path(model, source, target, ILL)
    with pytest.raises(NotFiniteError, match=r"nan at blocks.1.hook_resid_pre, which .* reads"):
        attrib.replace(model, [source]).leaves(ILL)


def test_minus_infinity_may_be_meant():
    """A latent that shall never be active, and rows of a vocabulary that no token has."""
    model, (source, target) = build("gpt2"), ends()
    want = attrib.latent_to_latent(model, source, target, [WELL])
    never = int(want.sources.latent[0])
    got = attrib.latent_to_latent(model, changed(source, "b_enc", -torch.inf, never), target, [WELL])
    assert never not in got.sources.latent
    assert len(got) > 0
    b_U = model.params.b_U.clone()
    b_U[50:] = -torch.inf
    padded = replace(model, params=model.params._replace(b_U=b_U))
    edges = attrib.latent_to_logit(padded, source, [WELL], logits=TopLogits(60))
    assert edges.gradient.isfinite().all()
    assert edges.targets.activation.isneginf().sum() == 10


def test_transforms_ask_nothing_of_values():
    d, x = ends()[0], normal(5, D_MODEL)
    assert jacrev(lambda x: encode(d, x).sum())(x).isfinite().all()
    assert vmap(lambda x: encode(d, x))(torch.stack([x, x * torch.nan])).shape == (2, 5, d.d_sae)


def test_a_large_sum_of_finite_numbers_is_no_fault():
    require_finite({"x": torch.full((4, 4), 3e38)})
    require_finite({"x": torch.full((4, 4), 6e4, dtype=torch.float16)})
    require_finite({})


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda logits: float(logits[0, 0]), "metric: gave float; expected a scalar tensor"),
        (lambda logits: logits[-1], r"metric: gave \[60\]; expected a scalar tensor"),
        (lambda logits: logits[-1, 0].detach(), "metric: gave a number that does not depend on the logits"),
        (lambda logits: torch.tensor(1.0), "metric: gave a number that does not depend on the logits"),
        (lambda logits: logits[-1].argmax().to(logits.dtype), "metric: gave a number that does not depend on the logits"),
        (lambda logits: logits[-1, 0] * torch.nan, "prompt 0 gives nan at the metric"),
        (lambda logits: (logits[-1, 0] - logits[-1, 0]).sqrt(), "prompt 0 gives nan at the gradients of logits"),
    ],
    ids=["float", "vector", "detached", "constant", "argmax", "nan", "gradient"],
)
def test_metrics_that_cannot_be_attributed(metric: Any, message: str):
    with pytest.raises(InputError, match=message):
        attrib.latent_to_metric(build("gpt2"), ends()[0], [WELL], metric)


def test_a_direction_that_is_no_number():
    vector = normal(D_MODEL)
    vector[2] = torch.nan
    with pytest.raises(InputError, match=r"nan at the targets at blocks.2.hook_resid_pre"):
        attrib.latent_to_logit(build("gpt2"), ends()[0], [WELL], logits=Direction(vector, Site(2, "resid_pre")))


def test_jobs_put_the_prompt_down_with_the_reason():
    work = Work(model="m", attribution=[{"kind": "latent_to_latent", "source": "a", "target": "b"}])
    loaded = Loaded(work, with_row(build("gpt2"), SICK, torch.nan), dict(zip("ab", ends(), strict=True)))
    edges, refused = _computed(EdgesKind(), loaded, Portion([WELL, ILL, WELL], np.arange(3), []))
    assert edges is None
    (reason,) = refused.values()
    assert refused.keys() == {1}
    assert reason.startswith("tokens: it gives nan at blocks.0.hook_resid_pre, first at position 2")


def test_a_batch_of_a_task_names_the_prompt_by_its_number():
    """Prompts 7 and 9 of a data set: 9 is the second one here."""
    sick, model = with_row(build("gpt2"), SICK, torch.nan), build("gpt2")
    W_U = model.params.W_U.clone()
    W_U[2, 5] = torch.nan
    blind = replace(model, params=model.params._replace(W_U=W_U))  # its pass is well, and one answer has no logit

    def batch(of: Model, *examples: Example) -> Batch:
        return Batch(of, attrib.replace(of, [ends()[0]]), ["a"], encoded(of, examples), (7, 9))

    with pytest.raises(NotFiniteError, match=r"prompt 9 gives nan at blocks\.1\.hook_resid_pre"):
        _ = batch(sick, Example(WELL, (3, 4), 0), Example(ILL, (3, 4), 0)).passes
    ways: list[tuple[Any, str]] = [("gradient", "the effects of latents"), ("ablation", "what is read")]
    for by, what in ways:
        with pytest.raises(NotFiniteError, match=f"prompt 9 gives nan at {what}"):
            batch(blind, Example(WELL, (3, 4), 0), Example(WELL, (3, 5), 0)).effects(by)


@pytest.mark.parametrize("method", ["adjoint", "torch.func"])
def test_a_threshold_that_was_edited(method: Any):
    """It would only be a latent that is never active."""
    model, ids = build("gpt2"), prompt(5)
    early, late = (dictionary("jumprelu", f"blocks.{layer}.hook_resid_pre") for layer in (1, 3))
    for place in (0, 1):
        both = [changed(one, "threshold", torch.nan, 7) if number == place else one for number, one in enumerate((early, late))]
        with pytest.raises(InputError, match=rf"threshold: nan at latent 7 of dictionary {both[place].name}"):
            attrib.latent_to_latent(model, *both, ids, method=method)
    closed = changed(late, "threshold", torch.inf, 7)  # which may be meant
    assert not (attrib.latent_to_latent(model, early, closed, ids, method=method).targets.latent == 7).any()


@pytest.mark.parametrize("logits", [3, [3, 5]])
def test_a_logit_that_nobody_asked_for(logits: Any):
    """It makes NaN of every probability, and with that of the choice of the largest."""
    model = attrib_model("gpt2", tie_word_embeddings=False)
    edges = attrib.latent_to_logit(model, dictionary("standard"), prompt(4), logits=logits)
    assert edges.targets.probability.isfinite().all()
    model.params.W_U[:, 41] = torch.nan
    with pytest.raises(NotFiniteError, match=r"prompt 0 gives nan at the logits, first at position 3"):
        attrib.latent_to_logit(model, dictionary("standard"), prompt(4), logits=logits)
