"""Scores over a corpus against dense encodings, and examples against sorted lists."""

from typing import Any

import pytest
import torch

import attrib
from attrib import stats
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import pre_activations
from attrib.stats.scoring import LatentScores
from tests.support.brought import dictionaries
from tests.support.builders import build
from tests.support.cut_cases import TOKENS
from tests.support.tolerances import ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CORPUS = [TOKENS[:5], TOKENS[2:6], TOKENS[4:5]]
LATENTS = [3, 7, 19, 30]


@pytest.mark.parametrize("which", ["residual", "transcoders", "attn_out"])
@pytest.mark.parametrize("ignore", [None, int(TOKENS[4])])
def test_scores_are_those_of_dense_encodings(which: str, ignore: int | None):
    model = build("llama", torch.float64)
    d = dictionaries(model, which)[-1]
    x = torch.cat([attrib.capture(model, ids, [d.site])[d.site] for ids in CORPUS])
    counts = torch.cat(CORPUS) != (-1 if ignore is None else ignore)
    assert (ignore is None) == bool(counts.all())
    got = stats.scores(model, d, LATENTS, iter(CORPUS), ignore=ignore)
    assert_close(got.value, attrib.encode(d, x)[counts][:, LATENTS], ROUNDING)
    assert_close(got.frequency, (attrib.encode(d, x)[counts][:, LATENTS] > 0).double().mean(0), ROUNDING)
    raw = stats.scores(model, d, LATENTS, CORPUS, score="pre_activation", ignore=ignore)
    assert_close(raw.value, pre_activations(d, x)[counts][:, LATENTS], ROUNDING)
    places = [(number, at, int(token)) for number, ids in enumerate(CORPUS) for at, token in enumerate(ids) if int(token) != ignore]
    assert list(zip(got.prompt.tolist(), got.position.tolist(), got.token.tolist(), strict=True)) == places


def test_decoders_read_what_encoders_read():
    model = build("llama", torch.float64)
    d = dictionaries(model, "residual")[0]
    x = torch.cat([attrib.capture(model, ids, [d.site])[d.site] for ids in CORPUS])
    got = stats.scores(model, d, LATENTS, CORPUS, score="decoder")
    assert_close(got.value, (x - d.params.b_dec) @ d.decoder()[LATENTS].T, ROUNDING)
    with pytest.raises(InputError, match=r"score: 'decoder', but .* reads blocks\.2\.mlp\.hook_in"):
        stats.scores(model, dictionaries(model, "transcoders")[-1], LATENTS, CORPUS, score="decoder")


def of(values: list[float]) -> LatentScores:
    every = torch.arange(len(values))
    return LatentScores(torch.tensor([5]), torch.tensor(values, dtype=torch.float64)[:, None], every // 3, every % 3, every)


def test_examples_are_of_all_strengths():
    found = of([0.0, 4.0, 0.0, 1.0, 0.0, 2.0, 0.0, 10.0, 1.0])
    assert [each.value for each in found.percentiles(5, 5)] == [0.0, 0.0, 1.0, 2.0, 10.0]
    assert found.percentiles(5, 5)[2] == (1.0, 1, 0)
    assert found.percentiles(5, 2)[-1] == (10.0, 2, 1)
    assert [each.value for each in found.evenly(5, 6)] == [0.0, 2.0, 4.0, 10.0]  # 6 and 8 are nearest to 4 and 10
    assert found.evenly(5, 2) == [(0.0, 0, 0), (10.0, 2, 1)]
    bands = found.bands(5, 2)
    assert [(band.low, band.high) for band in bands] == [(0.0, 5.0), (5.0, 10.0)]
    assert [band.share for band in bands] == pytest.approx([4 / 9, 1 / 9])
    assert [each.value for each in bands[0].examples] == [1.0, 1.0, 2.0, 4.0]
    assert [each.value for each in found.bands(5, 2, examples=2)[0].examples] == [1.0, 4.0]
    assert float(found.frequency) == pytest.approx(5 / 9)
    alone = of([3.0])
    assert alone.evenly(5, 4) == alone.percentiles(5, 2)[:1] == [(3.0, 0, 0)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"score": "logit"}, "score"),
        ({"ignore": TOKENS.tolist()}, "leaves no position"),
        ({"latents": [9999]}, "latents: 9999 is no latent"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], match: str):
    model = build("llama", torch.float64)
    with pytest.raises(Exception, match=match) as refused:
        stats.scores(model, dictionaries(model, "transcoders")[-1], **({"latents": LATENTS, "tokens": CORPUS} | options))
    assert refused.type.__name__ in ("InputError", "TypeCheckError")


def test_examples_that_make_no_sense_are_refused():
    for call in (lambda: of([1.0]).percentiles(5, 1), lambda: of([1.0]).bands(5, 0), lambda: of([1.0]).evenly(5, True)):
        with pytest.raises(InputError, match="count: "):
            call()
    with pytest.raises(InputError, match="latent: 4; expected one that was asked about: 5"):
        of([1.0]).percentiles(4, 3)
