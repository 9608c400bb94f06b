"""Labels, search, links, neighbours and components of latents, and what dictionaries say of themselves."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attrib
from attrib import latents
from attrib.adapters.dictionaries.tensors import from_tensors
from attrib.core.types import FormatError, InputError
from attrib.dictionaries.metadata import LONGEST, MOST, NOTHING, Metadata, metadata_of
from tests.latents.test_survey import CORPUS, dense, model, of_kind
from tests.support.attribution_cases import characters, without_shape_checks
from tests.support.brought import dictionaries
from tests.support.builders import normal, sae

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@cache
def spelled() -> attrib.Model:
    return characters(model())


@cache
def surveyed() -> latents.LatentSurvey:
    return latents.survey(spelled(), of_kind("standard"), CORPUS, together=True, top=5).of()


# ------------------------------------------------------------------------------------------------- labels


def test_labels_name_the_tokens_of_the_largest_scores():
    part = surveyed()
    labels = latents.token_labels(part, k=2, least=0.2)
    for latent in (2, 4, 31):
        weights: dict[str, float] = {}
        for one in part.top(latent):
            weights[one.token] = weights.get(one.token, 0) + one.value
        shares = sorted(((weight / sum(weights.values()), token) for token, weight in weights.items()), reverse=True)
        (label,) = labels.of(part.asked.dictionary, latent)
        assert label.source == "tokens"
        assert label.text == ", ".join(f"{token!r} {share:.0%}" for share, token in shares[:2] if share >= 0.2)
    assert {label.latent for label in labels} <= {*part.latents[part.count > 0].tolist()}


def test_scores_below_zero_name_nothing():
    part = latents.survey(spelled(), of_kind("standard"), CORPUS[5:6], score="pre_activation", top=3).of()
    largest = {latent: [one for one in part.top(latent) if one.value > 0] for latent in part.latents.tolist()}
    assert {*map(len, largest.values())} >= {0, 1, 3}
    labels = latents.token_labels(part, k=3, least=0.0)
    for latent, found in largest.items():
        named = labels.of(part.asked.dictionary, latent)
        assert len(named) == (1 if found else 0)
        assert all(f"{one.token!r}" in named[0].text for one in found)
        assert not found or named[0].text.count("%") == len({one.token for one in found})


def test_labels_name_the_logits_that_are_raised():
    labels = latents.logit_labels(spelled(), of_kind("standard"), [3, 9], k=3)
    raised = of_kind("standard").decoder()[[3, 9]] @ (model().params.W_U * model().params.norm_final.weight[:, None])
    for label, row in zip(labels, raised, strict=True):
        assert label.text == ", ".join(repr(spelled().tokenizer.decode([t])) for t in row.topk(3).indices.tolist())
    assert [label.latent for label in labels] == [3, 9]


FILES: dict[str, tuple[str, str]] = {
    "own lines": (".jsonl", '{"dictionary": "d", "latent": 3, "text": "x", "label": "days", "source": "me"}\n\n'),
    "neuronpedia": (".json", '[{"modelId": "gpt2-small", "layer": "d", "index": "3", "description": " days\\n", "scores": []}]'),
    "an export": (".json", '{"explanations": [{"layer": "d", "index": 3, "description": "days"}], "more": 1}'),
    "csv": (".csv", "dictionary,latent,label\nd,3,days\n"),
    "csv with a mark": (".csv", "\ufeffsae_id,feature,explanation\nd,3,days\n"),
}


@pytest.mark.parametrize("name", FILES)
def test_labels_are_read_from_files(tmp_path: Path, name: str):
    suffix, text = FILES[name]
    path = tmp_path / f"labels{suffix}"
    path.write_text(text, encoding="utf-8")
    (label,) = latents.read_labels(path)
    assert (label.dictionary, label.latent, label.text) == ("d", 3, "days")
    assert label.source == ("me" if name == "own lines" else path.name)
    assert latents.read_labels(path, dictionary="e", source="they").rows[0][::3] == ("e", "they")


def test_labels_come_back(tmp_path: Path):
    labels = latents.Labels((latents.Label("d", 3, "day \u2028s \x1b[31m", "tokens"), latents.Label("d", 4, "x" * 3000, "logits")))
    path = latents.save_labels(tmp_path / "l.jsonl", labels + labels)
    read = latents.read_labels(path)
    assert len(read) == 2
    assert read.rows[0] == labels.rows[0]
    assert len(read.rows[1].text) == 2000
    assert read.of("d", 4)[0].text.endswith("...")
    assert read.of("d", 5) == []
    with pytest.raises(InputError, match="exists already"):
        latents.save_labels(path, labels)


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".jsonl", '{"latent": 3', "no labels as its name says"),
        (".jsonl", "3\n", "line 1: no object"),
        (".jsonl", '{"dictionary": "d", "latent": true, "label": "x"}', "True as the latent"),
        (".jsonl", '{"dictionary": "d", "latent": -3, "label": "x"}', "-3 as the latent"),
        (".jsonl", '{"dictionary": "d", "latent": 3, "label": 5}', "5 as the label"),
        (".json", "3", "it is no list"),
        (".json", "[" * 100_000, "no labels as its name says"),
        (".csv", "a,b\n1,2\n", "None as the latent"),
        (".csv", "latent,label\n1,two\n", "does not say of which dictionary"),
        (".txt", "x", "ends in none of"),
    ],
)
def test_files_of_other_things_are_refused(tmp_path: Path, suffix: str, text: str, message: str):
    path = tmp_path / f"labels{suffix}"
    path.write_text(text)
    with pytest.raises((InputError, FormatError), match=message):
        latents.read_labels(path)
    with pytest.raises(InputError, match="there is no file"):
        latents.read_labels(tmp_path / "none.csv")


def test_latents_are_found_by_token_context_and_label():
    part = surveyed()
    token = part.top(4)[0].token
    found = latents.search(part, token.upper(), k=100)
    shares = {}
    for latent in part.latents.tolist():
        top = part.top(latent)
        if matching := sum(one.value for one in top if token.casefold() in one.token.casefold()):
            shares[latent] = matching / sum(one.value for one in top)
    assert {one.latent: pytest.approx(one.score) for one in found} == shares
    assert [one.score for one in found] == pytest.approx(sorted(shares.values(), reverse=True))
    text = part.top(4)[0].text[:3]
    by_context = {one.latent: one.score for one in latents.search(latents.Survey((part,)), text, where="context", k=100)}
    assert by_context[4] == sum(text.casefold() in one.text.casefold() for one in part.top(4)) / len(part.top(4))
    labels = latents.Labels((latents.Label(part.asked.dictionary, 7, "Days of the week", "me"), latents.Label("another", 7, "days", "me")))
    assert [one[:2] for one in latents.search(part, "days", where="label", labels=labels)] == [(part.asked.dictionary, 7)]
    with pytest.raises(InputError, match="labels: missing"):
        latents.search(part, "days", where="label")
    with pytest.raises(InputError, match="text: ' '"):
        latents.search(part, " ")


def test_the_strongest_latents_of_a_prompt():
    d, ids = of_kind("standard"), CORPUS[3]
    value = attrib.encode(d, attrib.capture(model(), ids, d.site)[d.site]).numpy()
    for options, rows in (
        ({}, slice(None)),
        ({"skip": 3}, slice(3, None)),
        ({"position": -2}, slice(-2, -1)),
        ({"position": 4}, slice(4, 5)),
    ):
        found = latents.strongest(spelled(), d, ids, k=6, **options)
        part = np.where(np.isin(np.arange(len(ids)), np.arange(len(ids))[rows])[:, None], value, 0)
        order = np.argsort(-part.max(0), kind="stable")[:6]
        assert [one.latent for one in found] == order.tolist()
        for one in found:
            assert one.position == part[:, one.latent].argmax()
            assert one.value == pytest.approx(part[:, one.latent].max(), rel=1e-9)
            assert one.token == spelled().tokenizer.decode([int(ids[one.position])])
            assert one.places == (part[:, one.latent] > 0).sum()
    assert len(latents.strongest(spelled(), d, ids, position=4, k=1000)) == (value[4] > 0).sum()
    assert latents.strongest(spelled(), d, ids, skip=100) == []
    for options, message in (({"position": 12}, "position: 12"), ({"k": 0}, "k: 0"), ({"skip": -1}, "skip: -1")):
        with pytest.raises(InputError, match=message):
            latents.strongest(spelled(), d, ids, **options)
    with pytest.raises(InputError, match="prompts, where one is computed"):
        latents.strongest(spelled(), d, CORPUS)


# ------------------------------------------------------------------------------------------------- metadata


def test_what_files_say_of_training_is_kept(tmp_path: Path):
    made = sae("standard")
    said = {"context_size": 128, "dataset_path": "a/b", "prepend_bos": True, "neuronpedia_id": "gpt2-small/7-res-jb", "l0": 3.5}
    for name, value in said.items():
        setattr(made.cfg.metadata, name, value)
    made.save_model(tmp_path / "sae")
    for d in (attrib.from_sae_lens(made), attrib.load_dictionary(tmp_path / "sae")):
        metadata = d.config.metadata
        assert (metadata.context_size, metadata.dataset_path, metadata.prepend_bos) == (128, "a/b", True)
        assert metadata.neuronpedia_id == "gpt2-small/7-res-jb"
        assert dict(metadata.others)["l0"] == "3.5"
        assert "hook_name" not in dict(metadata.others)
        assert d.to(dtype="float64").config.metadata == metadata
        assert metadata.table()["prepend_bos"] is True
    assert attrib.load_dictionary(tmp_path / "sae").fingerprint == attrib.from_sae_lens(sae("standard")).fingerprint
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    older = {key: value for key, value in config.items() if key not in ("metadata", "architecture")}
    older |= {"hook_name": config["metadata"]["hook_name"], "context_size": 64, "prepend_bos": False, "activation_fn_str": "relu"}
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(older))
    metadata = attrib.load_dictionary(tmp_path / "sae").config.metadata
    assert (metadata.context_size, metadata.prepend_bos, metadata.dataset_path) == (64, False, None)


def test_shipped_dictionaries_say_their_context():
    metadata = attrib.load_dictionary("smollm2-135m/blocks.6.hook_resid_pre").config.metadata
    assert (metadata.context_size, metadata.prepend_bos) == (64, False)


def test_nothing_that_is_said_is_trusted():
    hostile: dict[Any, Any] = {
        "context_size": "64", "prepend_bos": 1, "neuronpedia_id": "../../x?y", "dataset_path": "a\x1b[31m", "others": (("a", "b"),),
        "long": "x" * 10_000, 3: "number", "a\nb": 1, "nested": {"a": [1, 2]}, "nothing": None,
        **{f"more {n}": n for n in range(100)},
    }  # fmt: skip
    metadata = metadata_of(hostile)
    assert (metadata.context_size, metadata.prepend_bos, metadata.neuronpedia_id, metadata.dataset_path) == (None,) * 4
    others = dict(metadata.others)
    assert others["context_size"] == "64"
    assert others["dataset_path"] == "a\\x1b[31m"
    assert others["nested"] == "{'a': [1, 2]}"
    assert len(others["long"]) == LONGEST
    assert len(others) == MOST
    assert all(text.isprintable() for text in others.values())
    assert not {3, "a\nb", "nothing", "others"} & others.keys()
    assert hash(metadata) == hash(metadata_of(hostile))
    assert metadata_of({"context_size": True}).context_size is None
    assert metadata_of({}) == NOTHING == Metadata()
    assert not NOTHING


def named(neuronpedia_id: str | None) -> attrib.Dictionary:
    metadata = metadata_of({"neuronpedia_id": neuronpedia_id})
    return from_tensors(site="blocks.1.hook_resid_pre", W_enc=normal(32, 9), W_dec=normal(9, 32), name="d", metadata=metadata)


def test_links_to_neuronpedia():
    d = named("gpt2-small/7-res-jb")
    assert latents.neuronpedia_link(d, 3) == "https://www.neuronpedia.org/gpt2-small/7-res-jb/3"
    assert latents.neuronpedia_link(d, 3, embed=True).startswith("https://www.neuronpedia.org/gpt2-small/7-res-jb/3?embed=true&")
    assert latents.neuronpedia_link(named("a+b/c=d"), 0) == "https://www.neuronpedia.org/a%2Bb/c%3Dd/0"
    from urllib.parse import parse_qs, urlparse

    query = parse_qs(urlparse(latents.neuronpedia_list(d, [3, 5], name="my & list")).query)
    assert query["name"] == ["my & list"]
    assert json.loads(query["features"][0])[1] == {"modelId": "gpt2-small", "layer": "7-res-jb", "index": "5"}
    part = latents.survey(attrib_single(), d, [CORPUS[0]]).of()
    assert latents.neuronpedia_link(part, 3) == latents.neuronpedia_link(d, 3)
    for latent in (9, -1, True, "3"):
        with without_shape_checks(), pytest.raises(InputError, match=r"latent: .*; expected a whole number from 0 to 8"):
            latents.neuronpedia_link(d, latent)  # type: ignore[arg-type]
    for unknown in (None, "x", "a/b/c", "a/../b", "a/b?c"):
        with pytest.raises(InputError, match="name no neuronpedia_id"):
            latents.neuronpedia_link(named(unknown), 3)
    with pytest.raises(InputError, match="latents: none given"):
        latents.neuronpedia_list(d, [])


@cache
def attrib_single() -> attrib.Model:
    from tests.support.builders import build

    return build("llama")


# ------------------------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("by", ["decoder", "encoder"])
def test_neighbours_are_those_of_largest_cosine(by: Any):
    d, other = of_kind("standard"), dictionaries(model(), "residual")[0]
    directions = [(one.decoder() if by == "decoder" else one.encoder().T).numpy() for one in (d, other)]
    own, others = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in directions)
    cosines = own @ own[11]
    cosines[11] = -2
    found = latents.nearest(d, 11, by=by, k=4)
    np.testing.assert_array_equal(found.latent, np.argsort(-cosines)[:4])
    np.testing.assert_allclose(found.similarity, np.sort(-cosines)[:4] * -1, rtol=1e-9)
    across = latents.nearest(d, 11, by=by, k=1, among=other)
    np.testing.assert_allclose(across.similarity, (others @ own[11]).max(), rtol=1e-9)
    assert len(latents.nearest(d, 11, by=by, k=1000).latent) == d.d_sae - 1


def test_neighbours_by_coactivation():
    part = surveyed()
    on = dense(of_kind("standard"), "activation") > 0
    norm = np.sqrt(on.sum(0)).clip(min=1)
    cosines = (on.T.astype(float) @ on.astype(float)) / norm / norm[:, None]
    found = latents.nearest(part, 4, by="coactivation", k=5)
    wanted = np.delete(cosines[4], 4)
    np.testing.assert_allclose(found.similarity, np.sort(-wanted)[:5] * -1, rtol=1e-9)
    np.testing.assert_allclose(cosines[4][found.latent], found.similarity, rtol=1e-9)


def test_what_has_no_neighbours_is_refused():
    d, part = of_kind("standard"), surveyed()
    other = latents.survey(model(), d, CORPUS, together=[3, 5]).of()
    for call, message in (
        (lambda: latents.nearest(d, 80), "latent: 80; expected a whole number from 0 to 79"),
        (lambda: latents.nearest(d, 3, k=0), "k: 0"),
        (lambda: latents.nearest(d, 3, by="angle"), "by: 'angle'"),  # type: ignore[arg-type]
        (lambda: latents.nearest(d, 3, by="coactivation"), "of: a Dictionary, and coactivation"),
        (lambda: latents.nearest(part, 3), "of: a survey, which holds no decoders"),
        (lambda: latents.nearest(latents.survey(model(), d, CORPUS).of(), 3, by="coactivation"), "did not count which latents"),
        (lambda: latents.nearest(other, 4, by="coactivation"), "expected one of the 2 that were counted together: 3, 5"),
        (lambda: latents.nearest(d, 3, among=narrow()), "among: .* 7 numbers, and .* of 32"),
    ):
        with without_shape_checks(), pytest.raises(InputError, match=message):
            call()


def narrow() -> attrib.Dictionary:
    return from_tensors(site="blocks.1.hook_resid_pre", W_enc=normal(7, 9), W_dec=normal(9, 7), name="narrow")


# ------------------------------------------------------------------------------------------------- components


def test_components_are_those_of_a_dense_decomposition():
    d, chosen = of_kind("standard"), [4, 2, 31, 50]
    found = latents.pca(spelled(), d, chosen, iter(CORPUS), components=3, ignore=7, context=2)
    F = torch.cat([attrib.encode(d, attrib.capture(model(), ids, d.site)[d.site])[:, sorted(chosen)] for ids in CORPUS])
    places = [(number, at, int(token)) for number, ids in enumerate(CORPUS) for at, token in enumerate(ids)]
    kept = (F != 0).any(1) & torch.tensor([token != 7 for _, _, token in places])
    X = (F[kept] @ d.decoder()[sorted(chosen)]).numpy()
    centred = X - X.mean(0)
    _, S, V = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.share, (S**2 / (S**2).sum())[:3], rtol=1e-9)
    np.testing.assert_allclose(np.abs(found.directions.numpy() @ V[:3].T), np.eye(3), atol=1e-9)
    np.testing.assert_allclose(found.coordinates, centred @ found.directions.numpy().T, atol=1e-9)
    np.testing.assert_allclose(found.mean, X.mean(0), rtol=1e-9)
    assert (found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True)) > 0).all()
    where = [place for place, keeps in zip(places, kept.tolist(), strict=True) if keeps]
    assert list(zip(found.prompt.tolist(), found.position.tolist(), found.token.tolist(), strict=True)) == where
    number, at, token = where[3]
    assert found.strings[3] == spelled().tokenizer.decode([token])
    assert found.contexts[3] == "".join(spelled().tokenizer.decode([t]) for t in CORPUS[number][max(0, at - 2) : at + 1].tolist())
    later = latents.pca(spelled(), d, chosen, iter(CORPUS), ignore=7, skip=2)
    assert list(zip(later.prompt.tolist(), later.position.tolist(), strict=True)) == [place[:2] for place in where if place[1] > 1]
    table = found.to_pandas()
    assert list(table.columns) == ["prompt", "position", "token", "context", "pc1", "pc2", "pc3"]
    assert len(table) == len(where)


def test_components_need_places():
    with pytest.raises(InputError, match=r"latents: they are active at \d places of these prompts; expected two"):
        latents.pca(model(), of_kind("standard"), [0], [CORPUS[2]])
    with pytest.raises(InputError, match="components: 0"):
        latents.pca(model(), of_kind("standard"), [0], CORPUS, components=0)
    assert latents.pca(model(), of_kind("standard"), [4], CORPUS).coordinates.shape[1] == 1
