"""Pages of latents: every number is that of plain products of the parameters, or of a dense corpus, and no string is markup."""

import re
from dataclasses import replace
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import attrib
from attrib import latents
from attrib.causal import tasks
from attrib.causal.tasks.frames import LATENTS, SAMPLES, frame
from attrib.core.plotted import write_figure
from attrib.core.types import InputError
from attrib.latents.labels import Label, Labels
from tests.graph.test_weights import made, norm_map, ov_map, read, written
from tests.latents.test_survey import CORPUS
from tests.support.attribution_cases import characters
from tests.support.builders import build
from tests.support.pages import AXE, Opened, axe_finds
from tests.view.test_explorer_payload import HOSTILE

K = 4


@cache
def model() -> attrib.Model:
    return characters(build("llama", torch.float64))


@cache
def own() -> attrib.Dictionary:
    return replace(made(model(), "1.mlp.hook_in", "1.hook_mlp_out"), name="own")


@cache
def others() -> list[attrib.Dictionary]:
    """A cross-layer transcoder before, and an SAE of the stream behind."""
    before = made(model(), "0.mlp.hook_in", ["0.hook_mlp_out", "1.hook_mlp_out"], seed=3)
    return [replace(before, name="before"), replace(made(model(), "3.hook_resid_pre", seed=5), name="behind")]


@cache
def surveyed() -> latents.Survey:
    return latents.survey(model(), [own(), others()[0]], CORPUS, top=5, per_band=2)


@cache
def chosen() -> list[int]:
    """Three that are active at several places."""
    return sorted(np.argsort(-surveyed()["own"].count, kind="stable")[:3].tolist())


@cache
def whole() -> str:
    return attrib.view.dashboard(own(), chosen(), model=model(), survey=surveyed(), others=others(), k=K).html


def section(html: str, latent: int, group: int = 0) -> str:
    [found] = re.findall(rf'<section id="l{group}-{latent}".*?</section>', html, re.S)
    return str(found)


def tables(html: str) -> dict[str, list[list[str]]]:
    """By their captions, the cells of the rows of tables."""
    found = {}
    for caption, body in re.findall(r"<table><caption>(.*?)</caption>.*?<tbody>(.*?)</tbody>", html, re.S):
        rows = re.findall(r"<tr>(.*?)</tr>", body)
        found[unescape(caption)] = [[unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows]
    return found


def ends(weights: torch.Tensor) -> list[list[str]]:
    """Each row of a table of tokens, from the weight of every token."""
    order = weights.argsort(descending=True)
    names = [repr(chr(ord("A") + token)) for token in range(len(weights))]
    return [
        [names[high], f"{float(weights[high]):.3g}", names[low], f"{float(weights[low]):.3g}"]
        for high, low in zip(order[:K].tolist(), order.flip(0)[:K].tolist(), strict=True)
    ]


def test_tokens_are_those_of_products_with_the_embeddings() -> None:
    params = model().params
    W, D = read(model(), own()), written(model(), own())
    for latent in chosen():
        found = tables(section(whole(), latent))
        logits = D[latent] @ norm_map(model(), params.norm_final) @ params.W_U
        assert found["Logits"] == ends(logits - logits.mean())
        assert found["Tokens read"] == ends(params.W_E @ W[:, latent] * model().config.embedding_scale)


def test_heads_are_those_of_ov_circuits() -> None:
    W, D = read(model(), own()), written(model(), own())
    for latent in chosen():
        found = tables(section(whole(), latent))
        before = {f"{layer}.{head}": float((ov_map(model(), layer, head) @ W[:, latent]).norm()) for layer in (0, 1) for head in range(4)}
        behind = {f"{layer}.{head}": float((D[latent] @ ov_map(model(), layer, head)).norm()) for layer in (2, 3) for head in range(4)}
        for title, norms in (("Heads that it reads", before), ("Heads that read it", behind)):
            best = sorted(norms, key=lambda name: -norms[name])[:6]
            assert found[title] == [[name, f"{norms[name]:.3g}"] for name in best]


def test_parents_and_children_are_products_of_encoders_and_decoders() -> None:
    before, behind = others()
    part = surveyed()["before"]
    V = read(model(), own()).T @ written(model(), before, "0.hook_mlp_out").T  # what it writes at layer 1 is behind what is read
    mean = torch.from_numpy(part.sum / part.places)
    down = read(model(), behind).T @ written(model(), own()).T
    frame = attrib.graph.relatives(model(), own(), chosen(), others(), k=K, expected={"before": mean})
    for latent in chosen():
        found = tables(section(whole(), latent))
        by_mean = V[latent] * mean
        best = by_mean.abs().argsort(descending=True)[:K].tolist()
        assert [row[:3] for row in found["Parents, before"]] == [[str(n), f"{V[latent, n]:.3g}", f"{by_mean[n]:.3g}"] for n in best]
        assert [row[3] for row in found["Parents, before"]] == [
            next((label.text[:60] for label in latents.token_labels(part).of("before", n)), "") for n in best
        ]
        least = down[:, latent].abs().argsort(descending=True)[:K].tolist()
        assert [row[:2] for row in found["Children, behind"]] == [[str(n), f"{down[n, latent]:.3g}"] for n in least]
        told = frame[frame["latent"] == latent]
        assert told[told["side"] == "parent"]["relative"].tolist() == best
        assert told[told["side"] == "child"]["relative"].tolist() == least
    plain = attrib.graph.relatives(model(), own(), [3], [before], k=K, budget="1MiB")
    torch.testing.assert_close(torch.tensor(plain["weight"].to_numpy()), V[3][V[3].abs().argsort(descending=True)[:K]].detach())
    assert plain["attribution"].isna().all()
    with pytest.raises(InputError, match="others: own is the dictionary itself"):
        attrib.graph.relatives(model(), own(), [3], [own()])
    with pytest.raises(InputError, match="neither parents nor children"):
        attrib.graph.relatives(model(), own(), [3], [replace(made(model(), "1.mlp.hook_in", "1.hook_mlp_out", seed=9), name="beside")])


@cache
def scores() -> np.ndarray:
    """[places, latents]"""
    return torch.cat([attrib.encode(own(), attrib.capture(model(), ids, own().site)[own().site]) for ids in CORPUS]).numpy()


def test_the_corpus_part_is_that_of_a_dense_corpus() -> None:
    for latent in chosen():
        column, shown = scores()[:, latent], section(whole(), latent)
        active = column[column != 0]
        assert f"{len(active) / len(column):.4%} of {len(column)} places" in shown
        assert f"{active.max():.4g}, {active.mean():.4g}, {active.std():.4g}" in shown
        top = [float(value) for value in re.findall(r"<li><b>(.*?)</b>", shown.split("<h3>All scores")[0])]
        assert top == [float(f"{value:.3g}") for value in np.sort(active)[::-1][:5]]
        first = surveyed()["own"].top(latent)[0]
        tokens = re.findall(r'<span class="tokens">(.*?)</span></li>', shown)[0]
        assert unescape(re.sub(r"<[^>]*>", "", tokens)) == first.text
        titles = [float(value) for value in re.findall(r'title="(.*?)"', tokens)]
        assert titles == [float(f"{value:.4g}") for value in first.values if value]
        assert f'class="p20" title="{first.value:.4g}"><u>{first.token}</u>' in tokens


def test_quantile_bands_hold_what_lies_between_their_bounds() -> None:
    part = latents.survey(model(), own(), CORPUS, per_band=100).of()
    for latent in chosen():
        column = scores()[:, latent]
        column = column[column != 0]
        bands = latents.quantile_bands(part, latent, 3)
        assert 1 < len(bands) <= 3
        assert [band.low for band in bands] == sorted((band.low for band in bands), reverse=True)
        for band in bands:
            inside = column[(column >= band.low) & (column < band.high)]
            assert (band.places, band.share) == (len(inside), len(inside) / len(column))
            np.testing.assert_allclose(sorted(one.value for one in band.examples), np.sort(inside))
        assert sum(band.places for band in bands) == len(column)
        assert latents.quantile_bands(part, latent, 1)[0].places == len(column)
        assert all(len(band.examples) <= 2 for band in latents.quantile_bands(part, latent, examples=2))
    with pytest.raises(InputError, match="count: 0"):
        latents.quantile_bands(part, 3, 0)


def test_what_is_not_given_is_left_out_and_said() -> None:
    alone = attrib.view.dashboard(own(), chosen()[:1]).html
    for words in ("--survey FILE", "--model NAME", "--other NAME"):
        assert words in alone
    assert not tables(alone)
    of_survey = attrib.view.dashboard(surveyed()["own"], chosen()).html
    assert "Largest scores" in of_survey
    assert "survey=" not in of_survey
    aside = replace(made(model(), "2.hook_mlp_out", seed=2), name="aside")
    weights = attrib.view.dashboard(aside, [0], model=model(), others=[own()]).html
    assert {"Logits", "Heads that read it"} <= tables(weights).keys()
    assert "Tokens read of aside: " in weights
    assert "Parents and children in own of aside: " in weights
    z = replace(made(model(), "1.attn.hook_z", seed=3), name="z")
    assert "Tokens read through attention of layer 1" in tables(attrib.view.dashboard(z, [0], model=model(), k=2).html)


def test_what_cannot_be_shown_is_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"of": own(), "latents": [40]}, "latents: 40 is no latent"),
        ({"of": own(), "latents": []}, "latents: []; expected"),
        ({"of": own()}, "latents: none; expected"),
        ({"of": [own()]}, "of: no list"),
        ({"of": [(own(), [1]), (own(), [2])]}, "two dictionaries of one name"),
        ({"of": others()[1], "latents": [1], "survey": surveyed()}, "survey: of"),
        ({"of": own(), "latents": [1], "k": 0}, "k: 0"),
        ({"of": own(), "latents": [1], "survey": 3}, "survey: a int"),
        ({"of": own(), "latents": [1], "model": model(), "others": [own()]}, "the dictionary itself"),
    ]
    for given, said in wrong:
        with pytest.raises(InputError, match=re.escape(said)):
            attrib.view.dashboard(**given)


def test_strings_are_text_whatever_is_in_them() -> None:
    part = surveyed()["own"]
    hostile = replace(part, strings=dict.fromkeys(part.strings, HOSTILE + "\u202e" + "x" * 10_000))
    links = {"own": 'https://www.neuronpedia.org/"><script>/'}
    latent = chosen()[0]
    labels = Labels((Label("own", latent, HOSTILE, "me<script>"),))
    more = {("own", latent): [attrib.view.Table(HOSTILE, (HOSTILE,), [(HOSTILE,)])]}
    page = attrib.view.dashboard(hostile, [latent], labels=labels, links=links, title=HOSTILE, tables=more)
    assert page.html.count("<script") == page.html.count("</script>") == 1
    assert "<img" not in page.html
    assert "\u202e" not in page.html
    assert len(page.html) < 300_000
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page.html)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_page_of_a_tasks_strongest_latents() -> None:
    rows = [(0, "own", 3, 1.5), (1, "own", 3, 0.5), (1, "own", 17, -2.0), (0, "lost", 1, 0.25)]
    columns: dict[str, Any] = {
        "example": [row[0] for row in rows], "operation": ["ablation"] * 4, "dictionary": [row[1] for row in rows],
        "latent": [row[2] for row in rows], "activation": [1.0] * 4, "positions": [1] * 4, "effect": [row[3] for row in rows],
        "kept": [True] * 4,
    }  # fmt: skip
    filled: dict[str, list[Any]] = {name: [0, 0] for name in SAMPLES}
    filled |= {"example": [0, 1], "operation": ["ablation"] * 2, "right": [" a", "<b>"], "wrong": ["x", "y"], "said": ["x", "y"]}
    samples = frame(SAMPLES, filled | {"correct": [True, True]})
    known = [{"name": "own", "site": str(own().site), "sha256": own().fingerprint}, {"name": "lost", "site": "here", "sha256": "0"}]
    held = {"samples": samples, "latents": frame(LATENTS, columns)}
    results = tasks.TaskResults({"task": "a task", "dictionaries": known, "operations": ["ablation"]}, held=held)
    html = attrib.view.task_dashboard(results, own(), model=model()).html
    found = tables(section(html, 3))
    assert dict(found["Effect by ablation, in logits"])["total"] == "2"
    assert found["Examples that it moves most"] == [["0", "1.5", "1", "' a'", "'x'"], ["1", "0.5", "1", "'<b>'", "'y'"]]
    assert "Logits" in found
    assert "Logits" not in tables(section(html, 1, 1))
    assert re.findall(r'<a href="#(.*?)">', html) == ["l0-3", "l0-17", "l1-1"]
    with pytest.raises(InputError, match="dictionaries: before is none of the run's"):
        attrib.view.task_dashboard(results, others()[0], model=model())
    with pytest.raises(InputError, match="survey: of "):
        attrib.view.task_dashboard(results, survey=latents.survey(model(), others()[0], CORPUS[:1]))


# -------------------------------------------------------------------------------------------- in a browser


def test_search_and_bands_do_what_they_say_and_axe_finds_nothing(chromium: Any, tmp_path: Path) -> None:
    opened = Opened(chromium, tmp_path, whole(), wait_for="#tools")
    assert opened.page.text_content("#found") == "3 of 3 latents"
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("17")
    matching = [latent for latent in chosen() if "17" in re.findall(rf'data-of="l0-{latent}" data-words="(.*?)"', whole())[0]]
    assert opened.page.text_content("#found") == f"{len(matching)} of 3 latents"
    assert opened.page.locator("section:visible").count() == len(matching)
    opened.page.keyboard.press("Escape")
    assert opened.page.locator("section:visible").count() == 3
    opened.page.click("#bands")
    bands = opened.page.locator("main details")
    assert bands.count() == opened.page.locator("main details[open]").count() > 3
    for scheme in ("light", "dark") if AXE.exists() else ():
        opened.page.emulate_media(color_scheme=scheme)
        assert axe_finds(opened) == []
    opened.close()


@pytest.mark.long
def test_a_figures_page_draws_itself_and_asks_no_network(chromium: Any, tmp_path: Path) -> None:
    table = pd.DataFrame({"operation": ["ablation", "gradient"] * 2, "latent": [1, 1, 2, 2], "effect": [1.0, 2.0, 3.0, 5.0]})
    table["dictionary"], table["kept"] = "one", True
    drawn = tasks.parity_figure(frame(LATENTS, {name: table.get(name, pd.Series([0] * 4)).tolist() for name in LATENTS}))
    file = write_figure(tmp_path / "f.html", drawn, title=HOSTILE)
    opened = Opened(chromium, tmp_path, file.read_text(encoding="utf-8"), wait_for=".main-svg")
    opened.until('() => document.querySelectorAll(".point").length === 2')  # plotly draws behind the load
    opened.close()
