"""Generation under edits gives what a loop of whole edited passes gives, at the positions that are meant and at no other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Ablate, Add, Head, Latents, Scale, Set, generate
from attrib.core.types import ErrorAt, InputError, Site
from attrib.models.transformer import Model
from tests.support.builders import D_MODEL, build, dictionary, normal, prompt

DOUBLE = torch.float64
SITE = Site(2, "resid_pre")
VECTOR = 2 * normal(D_MODEL, dtype=DOUBLE)
PROMPTS = [prompt(n, seed=n) for n in (5, 9, 2)]
Where = Callable[[int], slice]
"""Which positions of a text are edited, by the length of its prompt."""


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Model:
    return build(request.param, DOUBLE)


def everywhere(length: int) -> slice:
    return slice(None)


def by_whole_passes(
    model: Model, ids: Tensor, change: Callable[[Tensor], Tensor], where: Where = everywhere, site: Site = SITE
) -> list[int]:
    """Greedy continuation by ten tokens without a cache, a value edited at some positions."""
    rows = where(len(ids))

    def edited(x: Tensor) -> Tensor:
        x[rows] = change(x[rows])
        return x

    for _ in range(10):
        ids = torch.cat([ids, attrib.forward(model, ids, put={site: edited})[-1:].argmax(-1)])
    return ids[-10:].tolist()


def tokens_of(model: Model, *given: object, **options: object) -> list[list[int]]:
    return [one.tokens.tolist() for one in generate(model, PROMPTS, *given, max_tokens=10, **options)]


WHERES: dict[str, tuple[Where, dict[str, object], dict[str, object]]] = {
    "everywhere": (everywhere, {}, {}),
    "prompt": (slice, {}, {"edited": "prompt"}),
    "generated": (lambda n: slice(n, None), {}, {"edited": "generated"}),
    "one position": (lambda n: slice(1, 2), {"positions": 1}, {}),
    "from the last on": (lambda n: slice(n - 1, None), {"positions": "-1:"}, {}),
    "from the second on": (lambda n: slice(1, None), {"positions": slice(1, None)}, {}),
    "all but the last": (lambda n: slice(n - 1), {"positions": ":-1"}, {}),
    "from the second on, of the prompt": (lambda n: slice(1, n), {"positions": "1:"}, {"edited": "prompt"}),
}


@pytest.mark.few
@pytest.mark.parametrize("name", WHERES)
def test_steering_is_a_loop_of_whole_passes(model: Model, name: str):
    where, positions, options = WHERES[name]
    found = tokens_of(model, edits=Add(SITE, VECTOR, **positions), **options)
    assert found == [by_whole_passes(model, ids, lambda x: x + VECTOR, where) for ids in PROMPTS]
    assert found != tokens_of(model)


@pytest.mark.few
@pytest.mark.parametrize("kind", ["topk", "standard", "jumprelu"])
@pytest.mark.parametrize("errors", ["live", False])
def test_a_latent_set_is_a_loop_of_whole_passes(model: Model, kind: str, errors: object):
    sae = dictionary(kind, SITE, DOUBLE)

    def change(x: Tensor) -> Tensor:
        after = attrib.encode(sae, x).clone()
        after[..., 7] = 9.0
        error = x - attrib.reconstruct(sae, x) if errors else 0
        return attrib.decode(sae, after) + error

    found = tokens_of(model, dictionaries=sae, edits=Set(Latents(sae, 7), 9.0), errors=errors)
    assert found == [by_whole_passes(model, ids, change) for ids in PROMPTS]
    assert found == tokens_of(model, dictionaries=[sae], edits=f"{SITE}[7]=9", errors=errors)


def test_dictionaries_without_their_errors_stand_alone_and_with_them_change_nothing(model: Model):
    sae = dictionary("standard", SITE, DOUBLE)
    assert tokens_of(model, dictionaries=sae) == tokens_of(model)
    alone = [by_whole_passes(model, ids, lambda x: attrib.reconstruct(sae, x)) for ids in PROMPTS]
    assert tokens_of(model, dictionaries=sae, errors=False) == alone != tokens_of(model)


def test_a_transcoder_s_latents_and_errors_are_edited(model: Model):
    transcoder = dictionary("transcoder", Site(1, "mlp_in"), DOUBLE)
    written = Site(1, "mlp_out")

    def whole(ids: Tensor) -> list[int]:
        for _ in range(10):
            found = attrib.capture(model, ids, [transcoder.site, written])
            error = found[written] - attrib.reconstruct(transcoder, found[transcoder.site])
            doubled = attrib.decode(transcoder, 2 * attrib.encode(transcoder, found[transcoder.site]))
            ids = torch.cat([ids, attrib.forward(model, ids, put={written: doubled + 3 * error})[-1:].argmax(-1)])
        return ids[-10:].tolist()

    edits = [Scale(Latents(transcoder), 2.0), Scale(ErrorAt(written), 3)]
    assert tokens_of(model, dictionaries=transcoder, edits=edits) == [whole(ids) for ids in PROMPTS]


def test_heads_and_means_and_functions(model: Model):
    z = Site(1, "z")
    width = model.config.d_head
    of_head = torch.arange(width, 2 * width)
    without = [by_whole_passes(model, ids, lambda x: x.index_fill(-1, of_head, 0), site=z) for ids in PROMPTS]
    assert tokens_of(model, edits=Ablate(Head(1, 1))) == without
    of = [prompt(6, seed=20), prompt(6, seed=21)]
    mean = torch.cat([attrib.capture(model, ids, SITE)[SITE] for ids in of]).mean(0)
    for edit in (Ablate(SITE, "mean", of=of), Ablate(SITE, "mean", of=mean), Set(SITE, mean)):
        found = tokens_of(model, edits=edit, edited="prompt")
        assert found == [by_whole_passes(model, ids, mean.expand_as, slice) for ids in PROMPTS]

    def function(v: Tensor) -> Tensor:  # of one position it is v tanh; of rows of several prompts it would be something else
        return v.mean(0, keepdim=True) * v.tanh()

    found = tokens_of(model, edits=Set(SITE, function), edited="generated")
    assert found == [by_whole_passes(model, ids, lambda x: x * x.tanh(), lambda n: slice(n, None)) for ids in PROMPTS]


def test_a_resampled_prompt_goes_on_by_itself(model: Model):
    ids, other = PROMPTS[0], prompt(5, seed=30)
    (found,) = generate(model, ids, edits=Ablate(SITE, "resample", of=other), edited="prompt", max_tokens=10)
    there = attrib.capture(model, other, SITE)[SITE]
    assert found.tokens.tolist() == by_whole_passes(model, ids, lambda x: there, slice)


def test_draws_are_the_same_under_edits_that_change_nothing(model: Model):
    options = {"max_tokens": 8, "temperature": 1.0, "seed": 4}
    plain = generate(model, PROMPTS, **options)
    steered = generate(model, PROMPTS, edits=Add(SITE, 0.0), **options)
    assert [one.tokens.tolist() for one in plain] == [one.tokens.tolist() for one in steered]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edited": "everywhere", "edits": Add(SITE, 1.0)}, "edited: 'everywhere'; expected 'all', 'prompt', 'generated'"),
        ({"edited": "prompt"}, "edited: 'prompt' without edits"),
        ({"errors": True}, "errors: True holds what stands there without edits"),
        ({"edits": Ablate(SITE, "resample", of=[prompt(5)])}, "has no values for positions that are generated"),
        ({"edits": Add(SITE, 1.0, 1), "edited": "generated"}, "at positions of the prompt, where edited='generated' makes none"),
        ({"edits": Add(SITE, 1.0, "::2")}, "positions in steps do not go on behind the prompt"),
        ({"edits": Add(SITE, 1.0, 3)}, r"positions: \[3\] for prompt 2, which has 2 tokens"),
        ({"edits": Add("blocks.9.hook_resid_pre", 1.0)}, "blocks.9.hook_resid_pre is outside"),
        ({"edits": Add(SITE, torch.zeros(7, D_MODEL))}, r"float32\[7, 32\]: .*expected numbers that broadcast to \[5, 32\]"),
        ({"edits": "nonsense"}, "'nonsense'; expected WHAT@POSITIONS=VALUE"),
        ({"edits": Set(Latents(0, 80), 1.0)}, "80 among the latents of"),
        ({"edits": Set(Latents(1, 0), 1.0)}, "latents of 1, which is none of the dictionaries"),
        ({"edits": Add(SITE, float("nan"))}, "expected a finite number"),
    ],
)
def test_edits_that_cannot_be_are_refused(options: dict, message: str):
    model = build("gpt2", DOUBLE)
    with pytest.raises(InputError, match=message):
        tokens_of(model, **{"dictionaries": dictionary("topk", SITE, DOUBLE)} | options)
