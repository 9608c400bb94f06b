"""What a page tells beside a graph: logits, examples, heads, attention scores and interventions, each by value, as the browser shows it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import attrib
from attrib.causal import Agreement
from attrib.core.types import InputError
from attrib.graph import HeadLoadings, QKAttribution, head_loadings, influence, logit_weights, qk_attribution
from attrib.graph.graph import Graph
from attrib.graph.layer_scores import OWN
from attrib.latents.surveyed import Survey
from attrib.view.explorer.details import Details
from attrib.view.explorer.fitting import Most, fitted
from attrib.view.explorer.graph_payload import packed
from attrib.view.explorer.latent_details import latent_columns
from attrib.view.explorer.limits import EXAMPLES, TOKENS
from tests.support.attribution_cases import characters
from tests.support.builders import build, prompt
from tests.support.cut_cases import SETS, ours
from tests.support.graphs import random_graph
from tests.support.pages import Opened, axe_finds
from tests.view.test_explorer_payload import HOSTILE, unpacked

SHOWN = 5e-3
"""How far a number of three digits, which the page gives the smallest, is from the one that it stands for."""
TEXTS = [prompt(9, seed=seed, d_vocab=40) for seed in range(4)]


@cache
def made() -> tuple[Graph, Details]:
    """A graph with all that can be known beside it."""
    model = characters(build("llama"))
    given = ours(SETS["transcoders"](build("llama")))
    [graph] = attrib.graph.build(model, given, prompt(5, d_vocab=40), keep=attrib.TopK(12))
    heads = head_loadings(model, given, graph, 16)
    scores = qk_attribution(model, given, graph, heads.scores(6))
    verified = attrib.causal.verify(graph, model, dictionaries=given, n_edges=8)
    survey = attrib.latents.survey(model, given, TEXTS, top=7, context=(3, 2))
    return graph, Details(survey, model, given, heads, scores, verified)


def known() -> tuple[Graph, Survey, HeadLoadings, QKAttribution, Agreement]:
    graph, details = made()
    assert details.survey
    assert details.heads
    assert details.scores
    assert details.verified
    return graph, details.survey, details.heads, details.scores, details.verified


@pytest.fixture(scope="module")
def opened(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    graph, details = made()
    found = Opened(chromium, tmp_path_factory.mktemp("page"), packed(graph, Most(), details=details), hash="#n=1&e=1")
    yield found
    found.close()


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("+", ""))


def test_a_latent_has_its_logits_and_examples(opened: Opened) -> None:
    graph, survey, *_ = known()
    model, dictionaries = made()[1].model, made()[1].dictionaries
    assert model
    for node in graph.nodes.of_kind("latent")[[0, -1]].tolist():
        name, latent = graph.nodes.sets[int(graph.nodes.set_of[node])].name, int(graph.nodes.latent[node])
        opened.ask("node => explorer.change({selected: node, edge: null})", node)
        [of] = [one for one in dictionaries if isinstance(one, attrib.Dictionary) and one.name == name]
        wanted = logit_weights(model, of, [latent], k=TOKENS)
        for listed, ids, weights in (
            ("#promoted", wanted.highest, wanted.highest_weight), ("#suppressed", wanted.lowest, wanted.lowest_weight)
        ):  # fmt: skip
            tokens = opened.page.locator(f"{listed} .token").all_text_contents()
            assert tokens == list(attrib.models.tokens.token_strings(model, ids[0]))
            shown = [number(each) for each in opened.page.locator(f"{listed} small").all_text_contents()]
            assert shown == pytest.approx(weights[0].tolist(), rel=1e-3, abs=1e-4)
        part = survey.of(name)
        row = int((torch.from_numpy(part.latents) == latent).nonzero()[0, 0])
        said = opened.page.text_content("#activity")
        if part.active[row]:
            assert number(said.split("active at ")[1].split("%")[0]) / 100 == pytest.approx(float(part.density[row]), rel=5e-3)
        assert f"of {part.places} places" in said
        best = part.top(latent, EXAMPLES)
        shown_examples = opened.page.locator(".examples li").all()
        assert len(shown_examples) == len(best)
        for item, example in zip(shown_examples, best, strict=True):
            assert item.locator("p").text_content() == opened.ask(SEEN, list(example.tokens))
            assert item.locator("mark").text_content() == opened.ask(SEEN, [example.token])
            assert number(item.locator("mark").get_attribute("title")) == pytest.approx(example.value, rel=1e-3)
            assert f"in prompt {example.prompt} at {example.position}" in item.locator("small").text_content()


SEEN = "tokens => tokens.map((each) => explorer.visible(each)).join('')"


def test_an_edge_has_its_heads(opened: Opened) -> None:
    graph, _, heads, _, _ = known()
    for at in (0, len(heads) - 1):
        opened.ask("edge => explorer.change({edge})", int(heads.edge[at]))
        rows = opened.page.locator("#heads tbody tr").all()
        shown = {row.locator("th").text_content(): number(row.locator("td >> nth=0").text_content()) for row in rows}
        wanted = {way.replace("direct", "no attention"): weight for weight, way in heads.top(at, 100)}
        rest = float(heads.dropped[at])
        assert shown.keys() == {*wanted, "others"}
        scale = max(map(abs, wanted.values()))
        assert shown == pytest.approx(wanted | {"others": rest}, rel=1e-3, abs=1e-5 * scale)
        assert sum(shown.values()) == pytest.approx(float(graph.weight[heads.edge[at]]), rel=1e-2, abs=1e-3 * scale)


def test_attention_scores_stand_with_the_edges_that_hang_on_them(opened: Opened) -> None:
    graph, _, heads, scores, _ = known()
    seen = 0
    for at in range(len(heads)):
        ways = {(int(heads.layer[n]), int(heads.head[n]), int(heads.position[n])) for n in range(*heads.indptr[at : at + 2].tolist())}
        query = int(graph.nodes.position[heads.target[at]])
        wanted = [
            score for score in range(len(scores))
            if int(scores.query[score]) == query and (int(scores.layer[score]), int(scores.head[score]), int(scores.key[score])) in ways
        ]  # fmt: skip
        opened.ask("edge => explorer.change({edge})", int(heads.edge[at]))
        shown = opened.page.locator("#edge details.score").all()
        assert [each.locator("summary").text_content().partition(":")[0].strip() for each in shown] == [scores.name(s) for s in wanted]
        for item, score in zip(shown, wanted, strict=True) if not seen else ():
            rows = [row.locator("th, td").all_text_contents() for row in item.locator("tbody tr").all()]
            begin, end = scores.indptr[score : score + 2].tolist()
            order = sorted(range(begin, end), key=lambda pair: -abs(float(scores.weight[pair])))[:20]
            assert [(row[0], row[1]) for row in rows] == [
                tuple("its bias" if (node := int(ends[pair])) == OWN else short(graph, scores, node)
                      for ends in (scores.query_node, scores.key_node)) for pair in order
            ]  # fmt: skip
            assert [number(row[2]) for row in rows] == pytest.approx([float(scores.weight[pair]) for pair in order], rel=SHOWN)
            said = item.locator("summary").text_content()
            assert number(said.rpartition("score ")[2]) == pytest.approx(float(scores.value[score]), rel=SHOWN)
            assert number(said.partition("attention ")[2].partition("%")[0]) == pytest.approx(100 * float(scores.pattern[score]), rel=1e-2)
            assert f"{len(rows)} of {end - begin} pairs" in item.locator(".note").text_content()
            seen += 1
    assert seen


def short(graph: Graph, scores: QKAttribution, node: int) -> str:
    """A node of a score as the page names it: with its number in the graph, which has all of them."""
    assert len(graph.nodes) == len(scores.nodes)
    return graph.nodes.short(node)


def test_predicted_stands_beside_intervened(opened: Opened) -> None:
    graph, *_, verified = known()
    assert verified.table.edge.nunique() == 8
    for edge, lines in verified.table.groupby("edge"):
        assert {graph.nodes.label(int(graph.indices[edge]))} == set(lines.source)
        opened.ask("edge => explorer.change({edge})", int(edge))
        rows = [row.locator("th, td").all_text_contents() for row in opened.page.locator("#verified tbody tr").all()]
        assert [row[0] for row in rows] == ["± 0.100%", "all of it"]
        for row, line in zip(rows, lines.sort_values("step").itertuples(), strict=True):
            scale = abs(line.predicted)
            assert number(row[1]) == pytest.approx(float(graph.weight[edge]), rel=SHOWN)
            assert number(row[2]) == pytest.approx(line.measured, rel=SHOWN, abs=1e-7)
            assert number(row[3]) == pytest.approx(line.error, rel=2e-2, abs=1e-5 * scale)


def test_nobody_is_left_out_of_the_panels(opened: Opened) -> None:
    """axe finds no fault with all of it open, on light and on dark."""
    graph, _, heads, *_ = known()
    opened.ask("chosen => explorer.change(chosen)", {"selected": int(graph.nodes.of_kind("latent")[0]), "edge": int(heads.edge[-1])})
    for summary in opened.page.locator("details.score summary").all():
        summary.focus()
        opened.page.keyboard.press("Enter")
    for _ in range(2):
        assert axe_finds(opened) == []
        opened.page.click("button:text-matches('^(Dark|Light)$')")


def test_a_smaller_page_numbers_what_it_holds_anew() -> None:
    graph, details = made()
    _, _, heads, scores, verified = known()
    stay = len(graph.nodes.of_kind("token", "logit", "target"))
    told = list[int]()
    for most in (Most(len(graph.nodes) // 2, len(graph) // 2), Most(stay + 3)):
        part = fitted(graph, most)
        assert torch.equal(part.graph.weight, graph.weight[part.edges])
        assert torch.equal(part.graph.nodes.latent, graph.nodes.latent[part.nodes])
        header, columns = unpacked(packed(graph, most, details=details))
        there = set(part.edges.tolist())
        for name, weights in (
            ("heads", dict(zip(heads.edge.tolist(), heads.weight.tolist(), strict=True))),
            ("verified", dict(zip(verified.table.edge, verified.table.predicted, strict=True))),
        ):
            kept = {edge: weight for edge, weight in weights.items() if edge in there}
            shown = {int(part.edges[edge]): float(columns["weight"][edge]) for edge in columns[f"{name} edge"].tolist()}
            assert shown == pytest.approx(kept, rel=1e-6)
        told.append(len(columns["heads edge"]))
        wanted = set[str]()
        for score in range(len(scores)):
            begin, end = scores.indptr[score : score + 2].tolist()
            for pair in sorted(range(begin, end), key=lambda pair: -abs(float(scores.weight[pair])))[:20]:
                ends = {int(scores.query_node[pair]), int(scores.key_node[pair])} - {OWN, *part.nodes.tolist()}
                wanted |= {scores.label(node) for node in ends}
        assert set(header["others"]) == wanted
    assert told[0] > told[1]
    assert wanted


def test_of_too_many_latents_those_of_largest_influence_are_told_of() -> None:
    graph, details = made()
    header, columns, _ = latent_columns(graph, details, 3)
    found, score = influence(graph), dict[tuple[int, int], float]()
    for node in graph.nodes.of_kind("latent").tolist():
        key = int(graph.nodes.set_of[node]), int(graph.nodes.latent[node])
        score[key] = score.get(key, 0.0) + float(found[node])
    best = sorted(score, key=lambda key: -score[key])[:3]
    for name in ("logits", "examples"):
        assert sorted(zip(columns[f"{name} set"].tolist(), columns[f"{name} latent"].tolist(), strict=True)) == sorted(best)
    assert header["latents_left_out"] == len(score) - 3


def test_what_is_of_another_graph_is_refused() -> None:
    graph, details = made()
    _, survey, heads, scores, verified = known()
    other = random_graph()
    weaker = replace(graph, weight=graph.weight / 2)
    part = survey.parts[0]
    renamed, changed = (
        Survey((replace(part, asked=replace(part.asked, **facts)),)) for facts in ({"dictionary": "x"}, {"dictionary_sha256": "0" * 64})
    )
    for of, options, said in (
        (other, {"heads": heads}, "heads: "),
        (weaker, {"heads": heads}, "heads: their edges are not those of the graph"),
        (other, {"scores": scores}, "scores: are of another prompt"),
        (other, {"verified": verified}, "verified: "),
        (weaker, {"verified": verified}, "verified: is not of the graph's edges"),
        (graph, {"survey": renamed}, "survey: is of x; expected one of a dictionary of the graph"),
        (graph, {"survey": changed}, "is not that of the graph .sha256 000000000000"),
        (graph, {"model": build("gpt2")}, "model: tiny-gpt2 is not that of the graph"),
    ):
        with pytest.raises(InputError, match=said):
            attrib.view.graph(of, **options)
    with pytest.raises(attrib.FormatError, match="does not say how"):
        attrib.view.graph(other, model=details.model)


def examples_of(graph: Graph, survey: Survey, node: int) -> list[Any]:
    return survey.of(graph.nodes.sets[int(graph.nodes.set_of[node])].name).top(int(graph.nodes.latent[node]))


def test_hostile_examples_are_text(chromium: Any, tmp_path: Path) -> None:
    graph, survey, *_ = known()
    strings = {token: f"{HOSTILE}{token}\u202e" for token in range(60)}
    hostile = Survey(tuple(replace(part, strings=strings) for part in survey.parts))
    node = next(node for node in graph.nodes.of_kind("latent").tolist() if examples_of(graph, hostile, node))
    opened = Opened(chromium, tmp_path, packed(graph, Most(), details=Details(hostile)), hash=f"#s={node}")
    opened.page.on("dialog", lambda _: opened.complaints.append("a dialog"))
    text = opened.page.text_content(".examples")
    assert "</script><script>alert(1)" in text
    assert "\u202e" not in text
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 2
    opened.close()
