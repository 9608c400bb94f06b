"""Surveys against dense arrays of a small corpus, in any order and in any parts."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

import attrib
from attrib import latents
from attrib.core.types import BudgetError, InputError, NotFiniteError
from attrib.dictionaries.dictionary import pre_activations
from attrib.latents import bins, spans, surveying
from attrib.latents.bins import BANDS, BINS
from attrib.latents.places import hashes
from tests.support.attribution_cases import characters, without_shape_checks
from tests.support.brought import dictionaries
from tests.support.builders import build, dictionary, prompt, sae
from tests.support.examples import examples

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LENGTHS = (5, 9, 1, 12, 7, 3, 12, 8)
CORPUS = [prompt(length, seed=length + 20 * number, d_vocab=20) for number, length in enumerate(LENGTHS)]
FIELDS = ("places", "prompts", "sum", "squares", "histogram", "top", "sample", "together")


@cache
def model() -> attrib.Model:
    return build("llama", torch.float64)


@cache
def of_kind(kind: str) -> attrib.Dictionary:
    if kind == "abstopk":
        topk = of_kind("topk")
        return replace(topk, config=replace(topk.config, rule="abstopk"))
    return dictionary(kind, dtype=torch.float64)


def dense(d: attrib.Dictionary, score: str) -> np.ndarray:
    """[places, latents]: of every prompt in turn."""
    found = []
    for ids in CORPUS:
        x = attrib.capture(model(), ids, d.site)[d.site]
        match score:
            case "activation":
                found.append(attrib.encode(d, x))
            case "pre_activation":
                found.append(pre_activations(d, x))
            case "decoder":
                found.append((x - d.params.b_dec) @ d.decoder().T)
    return torch.cat(found).numpy()


def places() -> list[tuple[int, int, int]]:
    """The prompt, position and token of every row of `dense`."""
    return [(number, at, int(token)) for number, ids in enumerate(CORPUS) for at, token in enumerate(ids)]


def same(one: latents.Survey, two: latents.Survey) -> bool:
    return len(one) == len(two) and all(
        (a.asked, a.prompts, a.tokens, a.places, a.strings) == (b.asked, b.prompts, b.tokens, b.places, b.strings)
        and all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(tree_leaves(a.tally), tree_leaves(b.tally), strict=True))
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.few
@pytest.mark.parametrize(
    ("kind", "score"),
    [("standard", "activation"), ("topk", "activation"), ("abstopk", "activation"), ("gated", "pre_activation"), ("jumprelu", "decoder")],
)
def test_every_number_is_that_of_a_dense_corpus(kind: str, score: Any):
    d, ignored, skip = of_kind(kind), 7, 1
    part = latents.survey(model(), d, iter(CORPUS), score=score, ignore=ignored, skip=skip, together=True, top=3, per_band=2).of()
    where = places()
    counts = np.array([token != ignored and at >= skip for _, at, token in where])
    value, prompts = dense(d, score)[counts], np.array([number for number, _, _ in where])[counts]
    assert 0 < counts.sum() < len(counts)
    assert (part.places, part.tokens, part.prompts) == (counts.sum(), len(counts), ((0, len(CORPUS)),))
    on = value != 0
    np.testing.assert_array_equal(part.count, on.sum(0))
    np.testing.assert_array_equal(part.density, (on if score == "activation" else value > 0).mean(0))
    np.testing.assert_array_equal(part.distinct_prompts, [len({*prompts[column]}) for column in on.T])
    np.testing.assert_allclose(part.sum, value.sum(0), rtol=1e-9, atol=1e-12)
    some = on.any(0)
    np.testing.assert_allclose(part.mean[some], value.sum(0)[some] / on.sum(0)[some], rtol=1e-9)
    np.testing.assert_allclose(part.std[some], [column[column != 0].std() for column in value.T[some]], rtol=1e-6, atol=1e-9)
    positive = (value > 0).astype(np.int64)
    np.testing.assert_array_equal(part.tally.together, positive.T @ positive)
    assert np.isnan(part.mean[~some]).all()
    assert np.isnan(part.maximum[~some]).all()
    for latent in range(d.d_sae):
        check_latent(part, latent, value[:, latent], np.array(where)[counts])
    if kind == "abstopk":
        assert (value < 0).any()


def check_latent(part: latents.LatentSurvey, latent: int, value: np.ndarray, where: np.ndarray) -> None:
    """One latent's histogram, percentiles and examples against its scores at all places that count."""
    on = np.flatnonzero(value)
    edges, counts = part.histogram(latent)
    assert counts.sum() == len(on)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        assert ((value[on] >= low) & (value[on] <= high)).sum() >= count
    order = sorted(on, key=lambda row: (-value[row], *where[row]))
    top = part.top(latent)
    assert [(one.prompt, one.position, one.ids[one.at]) for one in top] == [tuple(where[row]) for row in order[:3]]
    assert [one.value for one in top] == pytest.approx(value[order[:3]], rel=1e-9)
    if not len(on):
        with pytest.raises(InputError, match=f"latent: {latent} is active nowhere"):
            part.percentiles(latent)
        return
    ranked = np.sort(value[on])
    for p, (low, high) in zip((0, 10, 50, 90, 100), part.percentiles(latent, (0, 10, 50, 90, 100)), strict=True):
        wanted = ranked[max(1, int(np.ceil(len(on) * p / 100))) - 1]
        assert low * (1 - 1e-12 * np.sign(low)) <= wanted <= high + 1e-9 * abs(high), (p, low, wanted, high)
    for band in part.bands(latent):
        inside = [row for row in on if band.low <= abs(value[row]) * np.sign(value[row]) <= band.high]
        assert band.places == len(inside)
        assert band.share == pytest.approx(len(inside) / len(on))
        assert len(band.examples) == min(2, band.places) == len({(one.prompt, one.position) for one in band.examples})
        for one in band.examples:
            row = int(np.flatnonzero((where[:, 0] == one.prompt) & (where[:, 1] == one.position))[0])
            assert row in inside
            assert one.value == pytest.approx(value[row], rel=1e-9)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated", "topk"])
def test_activations_are_those_of_sae_lens(kind: str):
    foreign = sae(kind, dtype=torch.float64)
    part = latents.survey(model(), foreign, CORPUS, top=2).of()
    site = attrib.Site.parse(part.asked.site)
    with torch.no_grad():
        value = torch.cat([foreign.encode(attrib.capture(model(), ids, site)[site]) for ids in CORPUS]).numpy()
    np.testing.assert_array_equal(part.count, (value != 0).sum(0))
    np.testing.assert_allclose(part.sum, value.sum(0), rtol=1e-9)
    some = part.count > 0
    np.testing.assert_allclose(part.maximum[some], value.max(0)[some], rtol=1e-9)


def test_examples_stand_in_their_context():
    d = of_kind("standard")
    part = latents.survey(model(), d, CORPUS, context=(3, 2), ignore=4).of()
    value = [attrib.encode(d, attrib.capture(model(), ids, d.site)[d.site]) for ids in CORPUS]
    seen = 0
    for latent in range(d.d_sae):
        for one in part.top(latent):
            first, last = max(0, one.position - 3), min(LENGTHS[one.prompt], one.position + 3)
            assert one.ids == tuple(CORPUS[one.prompt][first:last].tolist())
            assert one.at == one.position - first
            np.testing.assert_allclose(one.values, value[one.prompt][first:last, latent], rtol=1e-9, atol=1e-12)
            assert one.ids[one.at] != 4
            seen += 4 in one.ids
    assert seen, "what does not count stands in the context of what does"


@given(st.permutations(range(len(CORPUS))), st.lists(st.integers(1, len(CORPUS) - 1), max_size=3))
@settings(max_examples=examples(12), deadline=None)
def test_parts_add_up_in_any_order(order: list[int], cuts: list[int]):
    options: dict[str, Any] = {"top": 2, "per_band": 1, "together": [3, 5, 8], "context": (2, 1)}
    cuts = sorted({0, *cuts, len(order)})
    parts = [order[a:b] for a, b in pairwise(cuts)]
    surveys = [latents.survey(model(), of_kind("topk"), [CORPUS[n] for n in part], numbers=part, **options) for part in parts]
    whole = latents.survey(model(), of_kind("topk"), CORPUS, **options)
    assert same(latents.merge(*surveys), whole)
    nested = surveys[0]
    for other in reversed(surveys[1:]):
        nested = latents.merge(other, nested)
    assert same(nested, whole)


def test_nothing_depends_on_how_much_is_gathered_at_once(monkeypatch: pytest.MonkeyPatch):
    whole = latents.survey(model(), of_kind("standard"), CORPUS, together=True, top=2, per_band=1)
    monkeypatch.setattr(surveying, "ROWS", 1)
    assert same(whole, latents.survey(model(), of_kind("standard"), CORPUS, together=True, top=2, per_band=1))


def test_places_of_special_tokens_are_left_out_on_request():
    spelled = characters(model())
    assert spelled.tokenizer is not None
    marked = replace(spelled, tokenizer=replace(spelled.tokenizer, special={4: "<a>", 9: "<b>"}))
    found = latents.survey(marked, of_kind("standard"), CORPUS, special=False, ignore=7)
    assert found.of().asked.ignore == (4, 7, 9)
    wanted = latents.survey(spelled, of_kind("standard"), CORPUS, ignore=[9, 4, 7])
    assert same(found, wanted)
    assert found.of().places < latents.survey(marked, of_kind("standard"), CORPUS).of().places


def test_what_writes_elsewhere_has_no_decoder_scores():
    with pytest.raises(InputError, match=r"score: 'decoder', but .* reads blocks\.2\.mlp\.hook_in and writes"):
        latents.survey(model(), dictionaries(model(), "transcoders")[-1], CORPUS, score="decoder")


def test_of_equal_scores_the_first_place_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(surveying, "ROWS", 1)  # so that what comes later meets what is held
    same_prompts = [CORPUS[1]] * 6
    up, down = (latents.survey(model(), of_kind("standard"), same_prompts, numbers=order, top=3) for order in (range(6), range(5, -1, -1)))
    assert same(up, down)
    top = up.of().top(4)
    assert len({one.value for one in top}) == 1
    assert [one.prompt for one in top] == [0, 1, 2]


def test_a_survey_does_not_grow_with_its_corpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(surveying, "PLACES", 16)
    options: dict[str, Any] = {"top": 2, "per_band": 1, "context": (2, 1)}
    few = latents.survey(model(), of_kind("standard"), CORPUS, **options).of()
    many = latents.survey(model(), of_kind("standard"), (ids for _ in range(6) for ids in CORPUS), **options).of()
    rows = [len(part.tally.top.at) + len(part.tally.sample.at) for part in (few, many)]
    assert rows[1] <= 80 * (2 + BANDS // 2)
    assert rows[1] < 1.2 * rows[0]
    np.testing.assert_array_equal(many.count, 6 * few.count)
    held = sum(array.nbytes for array in tree_leaves(many.tally))
    assert 3 * held <= surveying.most_bytes(many.asked, of_kind("standard"), 80, 0)
    with pytest.raises(BudgetError, match=r"budget: 1,000 bytes, and the survey could take [\d,]+; expected room"):
        latents.survey(model(), of_kind("standard"), CORPUS, budget=1000)


def test_samples_are_uniform():
    """Of many seeds, each place of a band is drawn as often as every other, and so is each of all bands."""
    d = of_kind("standard")
    latent, drawn, ranged, rounds = 4, {}, {}, 60
    encoded = dense(d, "activation")[:, latent]
    for seed in range(rounds):
        part = latents.survey(model(), d, CORPUS, latents=[latent], per_band=3, top=1, seed=seed).of()
        for band in part.bands(latent):
            for one in band.examples:
                drawn[band.low, one.prompt, one.position] = drawn.get((band.low, one.prompt, one.position), 0) + 1
        for one in part.examples(latent):
            ranged[one.prompt, one.position] = ranged.get((one.prompt, one.position), 0) + 1
    for band in part.bands(latent):
        found = [
            drawn.get((band.low, *place[:2]), 0) for place, value in zip(places(), encoded, strict=True) if band.low <= value < band.high
        ]
        expected = rounds * min(3, band.places) / band.places
        assert len(found) == band.places
        assert max(abs(count - expected) for count in found) <= 5 * np.sqrt(expected) + 1e-9
    assert len(ranged) == (encoded != 0).sum()


def test_examples_of_a_range():
    part = latents.survey(model(), of_kind("standard"), CORPUS, per_band=100).of()
    value = dense(of_kind("standard"), "activation")
    for latent in (2, 4):
        low, high = np.quantile(value[value[:, latent] > 0, latent], [0.3, 0.8])
        found = part.examples(latent, low, high)
        wanted = {place[:2] for place, one in zip(places(), value[:, latent], strict=True) if low <= one <= high}
        assert {(one.prompt, one.position) for one in found} == wanted
        assert len(found) == len(wanted) > 3
        assert len(part.examples(latent, count=2)) == 2
    few = latents.survey(model(), of_kind("standard"), CORPUS, per_band=2).of()
    assert len(few.examples(4)) < 2 * len(few.bands(4))


def test_several_dictionaries_share_a_pass():
    several = [of_kind("standard"), dictionaries(model(), "transcoders")[-1], dictionaries(model(), "attn_out")[0]]
    together = latents.survey(model(), several, CORPUS)
    assert len(together) == 3
    for d in several:
        alone = latents.survey(model(), d, CORPUS)
        assert same(alone, latents.Survey((together[d.name],)))
    with pytest.raises(InputError, match=r"dictionary: none was named; expected one of .*Name it"):
        together.of()
    with pytest.raises(InputError, match=r"dictionary: 'blocks' is in the names of 3"):
        together.of("blocks")
    with pytest.raises(InputError, match=r"dictionaries: .* is there twice"):
        latents.survey(model(), [several[0], several[0]], CORPUS)


def test_some_latents_are_those_of_all():
    d = of_kind("topk")
    whole, some = (latents.survey(model(), d, CORPUS, latents=which).of() for which in (None, [70, 3, 12]))
    assert some.latents.tolist() == [3, 12, 70]
    np.testing.assert_array_equal(some.density, whole.density[[3, 12, 70]])
    for latent in (3, 12, 70):
        assert some.top(latent) == whole.top(latent)
        assert some.bands(latent) == whole.bands(latent)
    with pytest.raises(InputError, match=r"latent: 4; expected one of the 3 that were surveyed: 3, 12, 70"):
        some.top(4)
    with pytest.raises(InputError, match=r"together: latent 5 is not among those surveyed"):
        latents.survey(model(), d, CORPUS, latents=[3, 4], together=[5])


def test_hashes_are_those_that_are_written_down():
    """docs/latents.md, in Python's integers: files are merged that were made elsewhere, long ago."""
    golden = 0x9E3779B97F4A7C15

    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    rows = np.array([[0, 0, 0], [3, 17, 5], [2**20, 2**40, 1023], [5, 3, 17]], np.int64)
    for seed in (0, 12):
        wanted = []
        for row in rows.tolist():
            found = mixed((seed + golden) % 2**64)
            for number in row:
                found = mixed(found ^ ((number * golden + golden) % 2**64))
            wanted.append(found)
        assert hashes(seed, *rows.T).tolist() == wanted


def test_bins_are_quarters_of_octaves():
    edges = bins.edges()
    assert len(edges) == BINS + 1
    assert (np.diff(edges) > 0).all()
    assert edges[BINS // 2] == 0
    assert edges[BINS // 2 + 1 + 47] == 1.0
    assert edges[BINS // 2 - 48] == -1.0
    rng = np.random.default_rng(0)
    value = np.concatenate(
        [rng.normal(size=4000) * np.exp2(rng.uniform(-20, 26, 4000)), 2.0 ** np.arange(-15, 22), -(2.0 ** np.arange(-15, 22))]
    )
    found = bins.bins_of(value)
    assert (edges[found] <= value).all()
    assert (value <= edges[found + 1]).all()
    np.testing.assert_array_equal(bins.bins_of(value.astype(np.float32)), bins.bins_of(value.astype(np.float32).astype(np.float64)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "raw"}, "score: 'raw'; expected one of activation, pre_activation, decoder"),
        ({"skip": 100}, "leaves no place of these prompts"),
        ({"skip": -1}, "skip: -1; expected a whole number from 0"),
        ({"top": True}, "top: True; expected a whole number"),
        ({"context": 4}, "context: 4; expected two numbers"),
        ({"special": False}, "special: False, but tiny-llama has no tokenizer"),
        ({"latents": [80]}, "latents: "),
        ({"numbers": [1, 2]}, "numbers: 2 for more prompts; expected one for each"),
        ({"numbers": range(9)}, "numbers: more than the 8 prompts"),
        ({"numbers": [0] * 8}, "prompts: number 0 is there twice"),
        ({"tokens": []}, "tokens: no prompts"),
        ({"tokens": iter([])}, "tokens: no prompts given; expected at least one"),
        ({"tokens": [[1, 2], []]}, "tokens: prompt 1 has 0 tokens"),
        ({"dictionaries": []}, "dictionaries: none given"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str):
    given: dict[str, Any] = {"dictionaries": of_kind("standard"), "tokens": CORPUS} | options
    with without_shape_checks(), pytest.raises(InputError) as error:
        latents.survey(model(), given.pop("dictionaries"), given.pop("tokens"), **given)
    assert message in str(error.value)


def test_a_prompt_that_gives_no_number_is_named():
    p = model().params
    W_E = p.W_E.clone()
    W_E[5] = torch.nan
    broken = replace(model(), params=p._replace(W_E=W_E))
    for score in ("activation", "pre_activation"):
        with pytest.raises(NotFiniteError, match="prompt 1 "):
            latents.survey(broken, of_kind("standard"), [torch.tensor([1, 2]), torch.tensor([3, 5])], score=score)


def test_only_surveys_alike_are_merged():
    one = latents.survey(model(), of_kind("standard"), CORPUS[:2])
    for options, message in (
        ({"numbers": [1, 2]}, "prompts: number 1 is there twice"),
        ({"numbers": [2, 3], "skip": 1}, "surveys: skip is 0 in one and 1 in another"),
        ({"numbers": [2, 3], "latents": [1]}, "surveys: they are of different latents"),
        ({"numbers": [2, 3], "together": [1]}, "surveys: they are of different chosen"),
    ):
        with pytest.raises(InputError, match=message):
            latents.merge(one, latents.survey(model(), of_kind("standard"), CORPUS[2:4], **options))
    with pytest.raises(InputError, match="expected the same dictionaries"):
        latents.merge(one, latents.survey(model(), dictionaries(model(), "attn_out")[0], CORPUS[2:4], numbers=[2, 3]))
    with pytest.raises(InputError, match="surveys: none given"):
        latents.merge()


@given(st.lists(st.integers(0, 30), max_size=20))
def test_spans_hold_each_number_once(numbers: list[int]):
    if len({*numbers}) < len(numbers):
        with pytest.raises(InputError, match=r"prompts: number \d+ is there twice"):
            spans.spans_of(numbers)
        return
    found = spans.spans_of(numbers)
    assert [n for first, last in found for n in range(first, last)] == sorted(numbers)
    assert spans.fault(np.array(found, np.int64).reshape(-1, 2)) is None
