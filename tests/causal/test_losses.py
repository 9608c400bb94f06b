"""The loss under replacements and ablations is that of a plain pass with the same put in."""

import pytest
import torch
from torch.nn import functional as F

import attrib
from attrib.causal import Ablate, loss
from attrib.core.types import InputError, Site
from tests.support.builders import build, dictionary, prompt

DOUBLE = torch.float64
PROMPTS = [prompt(n, seed=n) for n in (7, 1, 4)]


def plainly(logits) -> float:
    parts = [F.cross_entropy(given[:-1], ids[1:], reduction="none") for given, ids in zip(logits, PROMPTS, strict=True)]
    return float(torch.cat(parts).mean())


def test_replaced_zeroed_and_mean():
    model = build("llama", DOUBLE)
    assert loss(model, PROMPTS) == pytest.approx(plainly(attrib.forward(model, ids) for ids in PROMPTS), rel=1e-12)
    transcoders = [dictionary("transcoder", Site(layer, "mlp_in"), DOUBLE, seed=layer) for layer in (0, 2)]
    want = plainly(attrib.replace(model, transcoders).run(ids) for ids in PROMPTS)
    assert loss(model, PROMPTS, dictionaries=transcoders) == pytest.approx(want, rel=1e-9)
    assert loss(model, PROMPTS, dictionaries=transcoders, errors="live") == pytest.approx(loss(model, PROMPTS), rel=1e-9)
    sites = [f"blocks.{layer}.hook_mlp_out" for layer in (1, 3)]
    zeroed = plainly(attrib.forward(model, ids, put=dict.fromkeys(sites, 0.0)) for ids in PROMPTS)
    assert loss(model, PROMPTS, edits=[Ablate(site) for site in sites]) == pytest.approx(zeroed, rel=1e-9)
    means = {site: torch.cat([attrib.capture(model, ids, site)[Site.parse(site)] for ids in PROMPTS]).mean(0) for site in sites}
    mean = plainly(attrib.forward(model, ids, put=means) for ids in PROMPTS)
    assert loss(model, PROMPTS, edits=[Ablate(site, "mean", of=PROMPTS) for site in sites]) == pytest.approx(mean, rel=1e-9)


def test_nothing_to_predict_is_said():
    with pytest.raises(InputError, match="no prompt has two tokens"):
        loss(build("llama", DOUBLE), [prompt(1)])
