"""`attrib view` and `attrib serve` with all that they can tell beside a graph: what is in their page, by value."""

import base64
import http.client
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import attrib
from attrib.graph import head_loadings, logit_weights, qk_attribution
from attrib.graph.graph import Graph
from attrib.view.explorer.server import Explorer
from tests.support.builders import prompt, sae, tiny
from tests.support.typed import Command
from tests.view.test_explorer_payload import unpacked

SITES = ("blocks.1.mlp.hook_in", "blocks.2.mlp.hook_in")
HEADS, SCORES, VERIFIED = 7, 2, 5
LOGITS = attrib.TopLogits(2)


class Made(NamedTuple):
    folder: Path
    graph: Graph
    model: Any
    given: list[Any]

    @property
    def options(self) -> list[str]:
        return [
            *("--model", str(self.folder / "model"), "--survey", str(self.folder / "survey.h5")),
            *(word for site in SITES for word in ("--at", f"{site}={self.folder / site}")),
            *("--heads", str(HEADS), "--qk", str(SCORES), "--verify", str(VERIFIED)),
        ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tiny model and two transcoders on the disk, a file of two graphs of theirs, and a survey."""
    folder = tmp_path_factory.mktemp("explained")
    tiny("llama", n_layers=3).save_pretrained(folder / "model")
    for site in SITES:
        sae("transcoder", site=site).save_model(folder / site)
    model, given = attrib.load_model(folder / "model"), [attrib.load_dictionary(folder / site) for site in SITES]
    [graph] = attrib.graph.build(model, given, torch.tensor([5, 9, 2]), targets=LOGITS, keep=attrib.TopK(12))
    attrib.save(folder / "graphs.h5", graph)
    survey = attrib.latents.survey(model, given, [prompt(7, seed=seed) for seed in range(2)], top=3, context=(2, 1))
    attrib.latents.save(folder / "survey.h5", survey)
    return Made(folder, graph, model, given)


def looked_at(made: Made, text: str) -> None:
    """Each part of a page of the first graph against what attrib's functions give of it."""
    header, columns = unpacked(base64.b64decode(re.findall(r'id="data">([^<]*)<', text)[0]))
    graph = made.graph
    assert columns["indices"].tolist() == graph.indices.tolist()

    edges = torch.from_numpy(columns["heads edge"].astype(np.int64))
    assert len(edges) == HEADS
    heads = head_loadings(made.model, made.given, graph, edges, targets=LOGITS)
    np.testing.assert_allclose(columns["heads total"], heads.total, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(columns["heads direct"], heads.direct, rtol=1e-4, atol=1e-6)
    for number in range(HEADS):
        own = slice(int(columns["heads ptr"][number]), int(columns["heads ptr"][number + 1]))
        whole = heads.loading[heads.row == number]
        assert len(whole)
        assert abs(columns["heads loading"][own][0]) == pytest.approx(float(whole.abs().max()), rel=1e-4)

    assert len(columns["scores pattern"]) == SCORES
    scores = qk_attribution(made.model, made.given, graph, heads.scores(SCORES), targets=LOGITS)
    for name in ("layer", "head", "query", "key"):
        assert columns[f"scores {name}"].tolist() == getattr(scores, name).tolist()
    for name in ("pattern", "value", "total"):
        np.testing.assert_allclose(columns[f"scores {name}"], getattr(scores, name), rtol=1e-4, atol=1e-6)

    chosen = torch.from_numpy(np.unique(columns["verified edge"]).astype(np.int64))
    kept = graph.only(torch.isin(torch.arange(len(graph)), chosen))
    table = attrib.causal.verify(kept, made.model, n_edges=VERIFIED, dictionaries=made.given).table
    assert len(chosen) == VERIFIED
    np.testing.assert_array_equal(columns["verified edge"], chosen[torch.from_numpy(table.edge.to_numpy(int))])
    np.testing.assert_allclose(columns["verified step"], table.step, rtol=1e-6)
    np.testing.assert_allclose(columns["verified measured"], table.measured, rtol=1e-4, atol=1e-6)
    assert np.abs(columns["verified measured"]).max() > 0

    each = header["logits_each"]
    sets = columns["logits set"]
    for at in (0, len(sets) - 1):
        d = next(d for d in made.given if d.name == header["sets"][int(sets[at])]["name"])
        wanted = logit_weights(made.model, d, torch.tensor([int(columns["logits latent"][at])]), k=each)
        weights = columns["logits weight"][2 * each * at : 2 * each * (at + 1)]
        np.testing.assert_allclose(weights, torch.cat([wanted.highest_weight, wanted.lowest_weight], 1)[0], rtol=1e-4, atol=1e-6)

    survey = attrib.latents.open(made.folder / "survey.h5")
    largest = {float(np.float32(one.values[one.at])) for part in survey for latent in part.latents.tolist() for one in part.top(latent)}
    begins = columns["examples tokens"]
    marked = [float(columns["examples value"][int(begins[at]) + int(place)]) for at, place in enumerate(columns["examples at"])]
    assert marked
    assert {round(value, 4) for value in marked} <= {round(value, 4) for value in largest}


def test_view_puts_all_that_is_asked_for_into_its_page(made: Made, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    ran = command("view", made.folder / "graphs.h5", "--html", out, *made.options)
    assert ran.status == 0, ran.err
    assert ran.out.startswith(f"{out}: ")
    looked_at(made, out.read_text())


def test_splitting_and_intervening_each_have_a_bar(made: Made, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def counted(doing: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: told.setdefault(doing, []).append((done, total))

    monkeypatch.setattr("attrib.cli.bars.counted", counted)
    ran = command("view", made.folder / "graphs.h5", "--html", tmp_path / "page.html", *made.options)
    assert ran.status == 0, ran.err
    assert {doing: counts[-1] for doing, counts in told.items()} == {
        "splitting edges by heads": (HEADS, HEADS),
        "intervening": (VERIFIED, VERIFIED),
    }


def test_serve_gives_the_same_page(made: Made, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, plain = [], Explorer.serve_forever

    def serve_one(self: Explorer, poll_interval: float = 0.5) -> None:
        """Ask for a page as a browser would, and stop."""
        thread = threading.Thread(target=plain, args=(self, 0.01))
        thread.start()
        try:
            address = urllib.parse.urlsplit(self.address)
            connection = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=120)
            connection.request("GET", f"{address.path.rstrip('/')}/prompt/0")
            answer = connection.getresponse()
            pages.append((answer.status, answer.read().decode()))
        finally:
            self.shutdown()
            thread.join()

    monkeypatch.setattr(Explorer, "serve_forever", serve_one)
    ran = command("serve", made.folder / "graphs.h5", *made.options)
    assert ran.status == 0, ran.err
    [(status, text)] = pages
    assert status == 200
    looked_at(made, text)
