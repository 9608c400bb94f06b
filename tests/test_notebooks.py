"""The examples of notebooks on their tiny models: every row is there, and numbers are those of plain hooks on transformers' own model."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.notebooks import notebook, plain_latents, put_in, shown, transformers_model
from tests.support.root import ROOT

CLOSE = {"rel": 2e-3, "abs": 2e-4}
"""float32 numbers, one way against another."""


@pytest.fixture(scope="module")
def attribution() -> dict[str, list[Any]]:
    return shown("latent_attribution")


@pytest.fixture(scope="module")
def workshop() -> dict[str, list[Any]]:
    return shown("workshop")


@pytest.fixture(scope="module")
def tutorial() -> dict[str, list[Any]]:
    return shown("interpretune_task", 8)


def of_attribution() -> tuple[Any, Any, Any]:
    """The example, transformers' model, and its tokenizer."""
    example = notebook("latent_attribution")
    return example, *transformers_model((example.PROMPT, example.CITY, example.SPORT, example.RIGHT, example.WRONG))


def of_workshop() -> tuple[Any, Any, Any]:
    example = notebook("workshop")
    texts = (*example.corpus(), example.PROMPT, example.ANSWER, example.GENESIS, example.EARTH, example.SKY, example.STORY)
    return example, *transformers_model(texts)


def facts(table: Any) -> dict[str, float]:
    return {name: float(value) for name, value in zip(table.name, table.value, strict=True) if re.fullmatch(r"[-+.e\d]+", value)}


# -------------------------------------------------------------------------------------- latent attribution


@pytest.mark.long
def test_every_row_of_each_notebook_is_shown_and_told(
    attribution: dict[str, list[Any]], workshop: dict[str, list[Any]], tutorial: dict[str, list[Any]]
) -> None:
    rows = {f"A{n}" for n in range(1, 19)}, {f"C{n}" for n in range(1, 31)}, {f"B{n}" for n in range(1, 23)}
    for found, wanted in zip((attribution, workshop, tutorial), rows, strict=True):
        assert {*found} == wanted
        assert all(len(each) for steps in found.values() for each in steps)
    page = (ROOT / "docs" / "from-the-notebooks.md").read_text()
    assert {*re.findall(r"^\| ([ABC]\d+) \|", page, re.MULTILINE)} == rows[0] | rows[1] | rows[2]


def test_edges_of_latents_are_those_of_hooks(attribution: dict[str, list[Any]]) -> None:
    example, theirs, tokenizer = of_attribution()
    of, ids = example.tiny(), torch.tensor(tokenizer(example.PROMPT).input_ids)
    layers = of.early.site.layer, of.late.site.layer
    with torch.enable_grad(), put_in(theirs, dict(zip(layers, (of.early, of.late), strict=True)), errors=True) as read:
        theirs(ids[None], use_cache=False)
    source, target = read[layers[0]].latents, plain_latents(of.late, read[layers[1]].x)
    places = (target > 0).nonzero().tolist()
    rows = [torch.autograd.grad(target[p, j], source, retain_graph=True)[0][0] for p, j in places]
    active = (source[0] > 0).nonzero().tolist()
    dense = torch.stack([torch.stack([row[p, i] * source[0, p, i] for p, i in active]) for row in rows]).detach()

    def name(place: list[int]) -> str:
        return f"{place[1]} at {tokenizer.decode([ids[place[0]]])!r} ({place[0]})"

    table = attribution["A6"][0]
    for row, at in enumerate(dense.abs().flatten().topk(len(table)).indices.tolist()):
        t, s = divmod(at, dense.shape[1])
        assert (table.source[row], table.target[row]) == (name(active[s]), name(places[t]))
        assert table.attribution[row] == pytest.approx(float(dense[t, s]), **CLOSE)
    heat = attribution["A7"][0].set_index("from")
    for source_name in heat.index:
        for target_name in heat.columns:
            t, s = [name(p) for p in places].index(target_name), [name(p) for p in active].index(source_name)
            assert heat.loc[source_name, target_name] == pytest.approx(float(dense[t, s]), **CLOSE)
    assert facts(attribution["A8"][0])["pairs"] == dense.numel()
    assert facts(attribution["A8"][0])["share"] == pytest.approx(dense.numel() / 64**2, rel=1e-3)
    apart = sorted((float(dense[t, s]) for t, p in enumerate(places) for s, q in enumerate(active) if p[0] != q[0]), reverse=True)
    assert attribution["A9"][0].attribution.tolist() == pytest.approx([value for value in apart if value > of.threshold], **CLOSE)


def test_edges_of_tokens_are_finite_differences(attribution: dict[str, list[Any]]) -> None:
    example, theirs, tokenizer = of_attribution()
    of, ids = example.tiny(), torch.tensor(tokenizer(example.PROMPT).input_ids)

    def latents(scales: Tensor) -> Tensor:
        with torch.no_grad():
            streams = theirs(inputs_embeds=(theirs.model.embed_tokens(ids) * scales[:, None])[None], output_hidden_states=True)
            return plain_latents(of.late, streams.hidden_states[of.late.site.layer][0])

    for row in attribution["A11"][0].head(4).itertuples():
        (token,), (latent, at) = (re.findall(r"\d+", re.sub("'.*'", "", name)) for name in (row.source, row.target))
        step = torch.zeros(len(ids)).index_fill(0, torch.tensor(int(token)), 1e-2)
        slope = (latents(1 + step) - latents(1 - step))[int(at), int(latent)] / 2e-2
        assert row.gradient == pytest.approx(float(slope), rel=2e-2, abs=1e-3)
    active = int((latents(torch.ones(len(ids))) > 0).sum())
    assert facts(attribution["A12"][1])["share"] == pytest.approx(active / 64, rel=1e-3)


def test_edges_to_logits_are_those_of_hooks(attribution: dict[str, list[Any]]) -> None:
    example, theirs, tokenizer = of_attribution()
    of = example.tiny()
    ids, sport = (torch.tensor(tokenizer(text).input_ids) for text in (example.CITY, example.SPORT))
    with torch.enable_grad(), put_in(theirs, {of.last.site.layer: of.last}, errors=True) as read:
        logits = theirs(ids[None], use_cache=False).logits[0, -1]
    latents, (value, token) = read[of.last.site.layer].latents, logits.topk(25)
    assert attribution["A14"][0].id.tolist() == token[:8].tolist()
    assert attribution["A14"][0].logit.tolist() == pytest.approx(value[:8].tolist(), **CLOSE)
    rows = torch.cat([torch.autograd.grad(logits[one], latents, retain_graph=True)[0] for one in token])
    products = (rows * latents).detach()
    sums = facts(attribution["A16"][0])
    assert sums["sum of |attribution|"] == pytest.approx(float(products.abs().sum()), rel=2e-3)
    assert sums["sum of |activation|"] == pytest.approx(float(latents.detach().sum()), rel=2e-3)
    assert sums["share of all pairs"] == pytest.approx(int((latents > 0).sum()) / 64, rel=1e-3)
    for place, of_each in enumerate((rows.detach(), products)):
        first = attribution["A15"][place]
        active = of_each[0][latents[0] > 0]
        assert first.iloc[0, 1] == pytest.approx(float(active.max()), **CLOSE)
        assert first.iloc[-1, 1] == pytest.approx(float(active.min()), **CLOSE)
    with torch.enable_grad(), put_in(theirs, {of.last.site.layer: of.last}, errors=True) as read:
        logits = theirs(sport[None], use_cache=False).logits[0, -1]
        right, wrong = (tokenizer(text).input_ids[0] for text in (example.RIGHT, example.WRONG))
        (logits[right] - logits[wrong]).backward()
    latents = read[of.last.site.layer].latents
    products = (latents.grad * latents).detach()
    assert facts(attribution["A17"][0])["sum of attributions"] == pytest.approx(float(products.sum()), **CLOSE)
    largest = products.flatten()[products.abs().flatten().topk(15).indices]
    assert attribution["A18"][0].attribution.tolist() == pytest.approx(largest.tolist(), **CLOSE)


# ------------------------------------------------------------------------------------------------ workshop


def test_answers_and_what_the_sae_holds_are_those_of_hooks(workshop: dict[str, list[Any]]) -> None:
    example, theirs, tokenizer = of_workshop()
    of, ids = example.tiny(), torch.tensor(tokenizer(example.PROMPT).input_ids)
    (answer,) = tokenizer(example.ANSWER).input_ids
    with torch.no_grad():
        own = theirs(ids[None], use_cache=False).logits[0, -1]
        with put_in(theirs, {of.sae.site.layer: of.sae}, errors=False) as read:
            spliced = theirs(ids[None], use_cache=False).logits[0, -1]
    for row, logits in (("C3", own), ("C4", spliced)):
        said = workshop[row][0]
        assert said["rank"].item() == int((logits > logits[answer]).sum())
        assert said.probability.item() == pytest.approx(float(logits.softmax(-1)[answer]), rel=1e-3)
    assert workshop["C3"][1].id.tolist() == own.topk(5).indices.tolist()
    met = read[of.sae.site.layer]
    norms = dict(zip(workshop["C5"][0].what, workshop["C5"][0]["norm at the last token"], strict=True))
    assert norms["input"] == pytest.approx(float(met.x[-1].norm()), rel=1e-3)
    assert norms["latents"] == pytest.approx(float(met.latents[0, -1].norm()), rel=1e-3)
    assert norms["error"] == pytest.approx(float((met.x - met.decoded)[-1].norm()), rel=1e-3)
    best = met.latents[0, -1].topk(3)
    assert workshop["C6"][0].latent.tolist() == best.indices.tolist()
    assert workshop["C6"][0].activation.tolist() == pytest.approx(best.values.tolist(), rel=1e-3)


def test_latents_over_the_corpus_are_counted(workshop: dict[str, list[Any]]) -> None:
    example, theirs, tokenizer = of_workshop()
    of = example.tiny()
    found = []
    with torch.no_grad(), put_in(theirs, {of.sae.site.layer: of.sae}, errors=True) as read:
        for text in of.corpus:
            theirs(torch.tensor(tokenizer(text).input_ids)[None], use_cache=False)
            found.append(read[of.sae.site.layer].latents[0])
    every = torch.cat(found)
    page = workshop["C13"][0]
    assert page.density.tolist() == pytest.approx((every > 0).double().mean(0)[:16].tolist())
    assert page.maximum.tolist() == pytest.approx(every.max(0).values[:16].tolist(), rel=1e-3)
    often = workshop["C11"][1]
    times = {n: float((every[:, n] > 0).sum()) / max(1, sum(bool((one[:, n] > 0).any()) for one in found)) for n in range(64)}
    assert often["times a prompt"].tolist() == pytest.approx(sorted(times.values(), reverse=True)[:5])
    maximum = facts(workshop["C16"][0])["maximum"]
    assert min(abs(maximum - float(one)) for one in every.max(0).values) < 1e-3
    sparsity = workshop["C10"][0].set_index("dictionary").l0
    assert sparsity[of.sae.name] == pytest.approx(float((torch.cat(found[::4]) > 0).double().sum(1).mean()))


def test_ablations_are_those_of_hooks(workshop: dict[str, list[Any]]) -> None:
    example, theirs, tokenizer = of_workshop()
    of, ids = example.tiny(), torch.tensor(tokenizer(example.GENESIS).input_ids)
    (earth,) = tokenizer(example.EARTH).input_ids
    layer = of.sae.site.layer
    with torch.no_grad():
        with put_in(theirs, {layer: of.sae}, errors=True) as read:
            own = theirs(ids[None], use_cache=False).logits[0]
        strongest = int(read[layer].latents[0, -1].argmax())
        ways = [own]
        for errors in (False, True):
            with put_in(theirs, {layer: of.sae}, errors=errors, without=strongest):
                ways.append(theirs(ids[None], use_cache=False).logits[0])
        with put_in(theirs, {layer: of.sae}, errors=False):
            alone = theirs(ids[None], use_cache=False).logits[0]
    assert workshop["C19"][0].logit.tolist() == pytest.approx([float(logits[-1, earth]) for logits in ways], **CLOSE)
    losses = [float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:])) for logits in (own, alone)]
    assert workshop["C20"][0].loss.tolist() == pytest.approx(losses, **CLOSE)


def test_attributions_of_a_metric_are_those_of_hooks(workshop: dict[str, list[Any]]) -> None:
    example, theirs, tokenizer = of_workshop()
    of, ids = example.tiny(), torch.tensor(tokenizer(example.GENESIS).input_ids)
    earth, sky = (tokenizer(text).input_ids[0] for text in (example.EARTH, example.SKY))

    def products(*dictionaries: Any, errors: bool, loss: bool = False) -> list[Tensor]:
        with torch.enable_grad(), put_in(theirs, {d.site.layer: d for d in dictionaries}, errors=errors) as read:
            logits = theirs(ids[None], use_cache=False).logits[0]
            metric = torch.nn.functional.cross_entropy(logits[:-1], ids[1:]) if loss else logits[-1, earth] - logits[-1, sky]
            metric.backward()
        return [(read[d.site.layer].latents.grad * read[d.site.layer].latents)[0].detach() for d in dictionaries]

    each = [products(d, errors=True)[0] for d in (of.sae, of.later)]
    cases = {
        "C21": each,
        "C22": products(of.sae, errors=False),
        "C23": products(of.sae, of.later, errors=False),
        "C24": products(of.sae, errors=True, loss=True),
    }
    for row, wanted in cases.items():
        for number, want in enumerate(wanted):
            part = workshop[row][0].iloc[4 * number : 4 * number + 4]
            largest = want.flatten()[want.abs().flatten().topk(4).indices]
            assert part.attribution.tolist() == pytest.approx(largest.tolist(), **CLOSE), row
            assert part.total.tolist() == pytest.approx([float(want.sum())] * 4, **CLOSE), row
    assert workshop["C27"][0].attribution.tolist() == pytest.approx(each[0].sum(1).tolist(), **CLOSE)
    assert workshop["C29"][0].attribution.tolist() == pytest.approx(each[0][example.POSITION].topk(5).values.tolist(), **CLOSE)
    assert workshop["C29"][1].attribution.tolist() == pytest.approx(each[0].sum(0).topk(5).values.tolist(), **CLOSE)
    shares = workshop["C26"][0].set_index("source_kind")
    assert shares["size"]["latent"] == pytest.approx(float(each[0].abs().sum()), rel=2e-3)


# ------------------------------------------------------------------------------------------------ tutorial


def test_the_tutorial_s_differences_are_transformers_own(tutorial: dict[str, list[Any]]) -> None:
    example = notebook("interpretune_task")
    of = example.tiny(8)
    words = [f"The {noun} {where} the is are" for pair in example.NOUNS for noun in pair.split() for where in example.PREPOSITIONS]
    theirs, tokenizer = transformers_model((*words, example.tasks.RTE.text, " Yes No", *example.RTE_ROW.values()))
    for place, one in enumerate(list(of.task.examples)[:4]):
        ids = torch.tensor(tokenizer(one.prompt).input_ids)
        right, wrong = one.answers[one.label], one.answers[1 - one.label]
        with torch.no_grad():
            own = theirs(ids[None], use_cache=False).logits[0, -1]
            with put_in(theirs, {d.site.layer: d for d in of.dictionaries}, errors=False):
                spliced = theirs(ids[None], use_cache=False).logits[0, -1]
        for row, logits in (("B6", own), ("B7", spliced)):
            assert tutorial[row][0].difference.tolist()[place] == pytest.approx(float(logits[right] - logits[wrong]), **CLOSE)
        assert tutorial["B4"][0].said.tolist()[place] == of.model.tokenizer.label(int(own.argmax()))
    counted = tutorial["B11"][0].set_index("operation")
    metrics = tutorial["B5"][0].set_index("operation")
    assert metrics.accuracy["base"] == counted.share["base"]
    assert tutorial["B19"][0]["correct with dictionaries"].tolist() == [counted.correct["spliced"]] * 2
    assert tutorial["B14"][0].latents.sum() > 0
