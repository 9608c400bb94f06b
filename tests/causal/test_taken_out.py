"""Shares of latents taken out, layers of a cross-layer transcoder among them, against the pass written out with hooks."""

import torch
from torch import Tensor

import attrib
from attrib.causal.generators import Contrast
from attrib.causal.keeping import ablation
from tests.support.builders import build, normal, prompt
from tests.support.cut_cases import cross, ours
from tests.support.tolerances import assert_close


def test_layers_that_write_together_are_taken_out_together():
    model = build("gpt2", torch.float64)
    layers = ours(cross(model, range(1, 4)))
    examples = [Contrast("", tuple(prompt(5, seed=n).tolist()), 3, 9, "") for n in (1, 2)]
    ids = torch.tensor([one.tokens for one in examples])
    for reference in ("zero", "mean"):
        there = ablation(model, layers, examples, reference)
        out = [normal(5, one.d_sae, dtype=torch.float64, seed=n) for n, one in enumerate(layers)]
        moved: dict[attrib.Site, Tensor] = {}

        def read(
            x: Tensor, number: int, moved: dict[attrib.Site, Tensor] = moved, out: list[Tensor] = out, there: object = there
        ) -> Tensor:
            one = layers[number]
            taken = (there.reference[number] - attrib.encode(one, x)) * out[number]  # type: ignore[attr-defined]
            for site, part in zip(one.writes, (taken @ one.params.W_dec).chunk(len(one.writes), -1), strict=True):
                moved[site] = moved.get(site, 0) + part
            return x

        put = {one.site: lambda x, n=number: read(x, n) for number, one in enumerate(layers)}
        put |= {site: lambda y, at=site, moved=moved: y + moved[at] for one in layers for site in one.writes}
        assert_close(there.logits(there.streams(ids), out), attrib.forward(model, ids, put=put), what=reference)
        assert (there.logits(there.streams(ids), out) - attrib.forward(model, ids)).abs().max() > 0.1
        latents = there.latents(ids)
        for one, each in zip(layers, latents, strict=True):
            assert_close(each, attrib.encode(one, attrib.capture(model, ids, [one.site])[one.site]))
