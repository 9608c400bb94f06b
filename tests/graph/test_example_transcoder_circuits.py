"""examples/transcoder_circuits.py on its random model: its tables hold what plain formulas on transformers' own model give."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.support.exact_transformers import keep_dtype
from tests.support.root import ROOT

TOLERANCE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}


def example() -> Any:
    spec = importlib.util.spec_from_file_location("example_transcoder_circuits", ROOT / "examples" / "transcoder_circuits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Seen(NamedTuple):
    """What a pass of transformers' model shows, by layer: [positions, width], and patterns [heads, queries, keys]."""

    resid_pre: list[Tensor]
    value: list[Tensor]
    pattern: list[Tensor]
    resid_mid: list[Tensor]
    mlp_in: list[Tensor]
    mlp_out: list[Tensor]
    logits: Tensor


class Plain:
    """transformers' model, and dictionaries as formulas."""

    def __init__(self, made: Any, of: Any) -> None:
        self.model, self.of = made.random_llama(made.normals(torch.float64)), of
        self.model.set_attn_implementation("eager")
        self.layers = self.model.model.layers

    @torch.no_grad()
    def see(self, ids: Any) -> Seen:
        seen: dict[str, list[Tensor]] = {name: [] for name in Seen._fields[:-1]}
        places: dict[str, Callable[[Any], Any]] = {
            "resid_pre": lambda layer: layer.input_layernorm,
            "value": lambda layer: layer.self_attn.v_proj,
            "resid_mid": lambda layer: layer.post_attention_layernorm,
            "mlp_in": lambda layer: layer.mlp,
            "mlp_out": lambda layer: layer.mlp,
        }
        handles = []
        for layer in self.layers:
            for name, place in places.items():
                is_input = name in ("resid_pre", "resid_mid", "mlp_in")
                handles.append(
                    place(layer).register_forward_hook(
                        lambda _, given, out, name=name, is_input=is_input: seen[name].append((given[0] if is_input else out)[0])
                    )
                )
        try:
            out = self.model(torch.tensor([ids]), output_attentions=True)
        finally:
            for handle in handles:
                handle.remove()
        return Seen(**seen | {"pattern": [each[0] for each in out.attentions], "logits": out.logits[0]})

    @contextmanager
    def in_place_of_mlps(self, layers: Any, replaced: Callable[[int, Tensor, Tensor], Tensor]) -> Iterator[None]:
        """`replaced(layer, what enters, what it gives)` in the place of what MLPs give."""
        handles = [self.layers[n].mlp.register_forward_hook(lambda _, given, out, n=n: replaced(n, given[0], out)) for n in layers]
        yield
        for handle in handles:
            handle.remove()

    @torch.no_grad()
    def loss(self) -> float:
        parts = [
            cross_entropy(self.model(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="none") for ids in self.of.texts
        ]
        return float(torch.cat(parts).mean())

    def latents(self, dictionary: Any, x: Tensor) -> Tensor:
        return torch.relu(x @ dictionary.params.W_enc + dictionary.params.b_enc)

    def written(self, dictionary: Any, x: Tensor) -> Tensor:
        return self.latents(dictionary, x) @ dictionary.params.W_dec + dictionary.params.b_dec

    @property
    def read(self) -> Tensor:
        """The latent's encoder, as a direction of the stream."""
        return self.layers[2].post_attention_layernorm.weight.detach() * self.of.last.params.W_enc[:, self.of.latent]

    def heads(self, layer: int) -> tuple[Tensor, Tensor]:
        """W_V and W_O by head of the queries: [heads, d_model, d_head] and [heads, d_head, d_model], norm's weight in the first."""
        attention, gain = self.layers[layer].self_attn, self.layers[layer].input_layernorm.weight.detach()
        W_V = (attention.v_proj.weight.detach() * gain).unflatten(0, (2, 8)).repeat_interleave(2, 0).transpose(1, 2)
        return W_V, attention.o_proj.weight.detach().T.unflatten(0, (4, 8))

    def onto_latent(self, seen: Seen, first: int, stream: Tensor) -> Tensor:
        """What a part of the stream before layer `first` brings to the latent at each position, past no MLP: patterns and norms as seen."""
        for layer in range(first, 3):
            scaled = stream / rms(seen.resid_pre[layer])[:, None]
            stream = stream + sum(A @ (scaled @ V @ O) for A, V, O in zip(seen.pattern[layer], *self.heads(layer), strict=True))
        return stream @ self.read / rms(seen.resid_mid[2])

    def part(self, seen: Seen, ids: Any, kind: str, layer: int, number: int) -> tuple[int, Tensor]:
        """A source at all its positions: before which layer it is in the stream, and what of the stream it is."""
        if kind == "token":
            return 0, torch.where((torch.tensor(ids) == number)[:, None], seen.resid_pre[0], 0.0)
        transcoder, x = self.of.transcoders[layer], seen.mlp_in[layer]
        if kind == "latent":
            return layer + 1, self.latents(transcoder, x)[:, number, None] * transcoder.params.W_dec[number]
        if kind == "error":
            return layer + 1, seen.mlp_out[layer] - self.written(transcoder, x)
        return layer + 1, transcoder.params.b_dec.expand(len(ids), -1)


def rms(x: Tensor) -> Tensor:
    return (x.pow(2).mean(-1) + 1e-6).sqrt()


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Any, Plain, dict[str, pd.DataFrame]]]:
    module = example()
    with pytest.MonkeyPatch.context() as patched:
        keep_dtype(patched)
        of = module.tiny(torch.float64)
        yield of, Plain(module, of), {row: table for row, (_, table) in module.report(of).items()}


@pytest.mark.long
def test_every_table_says_something_in_the_order_of_the_list(made: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    _, _, tables = made
    numbers = [int(re.findall(r"\d+", row)[0]) for row in tables]
    assert numbers == sorted(numbers)
    assert {*range(5, 33)} - {7, 23, 27} <= {int(n) for row in tables for n in re.findall(r"\d+", row)}
    assert not [row for row, table in tables.items() if not len(table)]
    page = (ROOT / "docs" / "from-transcoder-circuits.md").read_text()
    assert [number for number in numbers if f"| D{number} |" not in page and f"D{number}, " not in page] == []
    module = example()
    monkeypatch.setattr(module, "report", lambda _: {row: ("A [title]", table) for row, table in tables.items()})
    module.main(["--tiny"])
    printed = capsys.readouterr().out
    assert [row for row in tables if f"{row}: A [title]" not in printed] == []
    with pytest.raises(SystemExit, match="usage"):
        module.main(["--large"])


def test_losses_and_lengths(made: Any) -> None:
    of, plain, tables = made
    whole = [plain.see(ids) for ids in of.texts]
    means = [torch.cat([seen.mlp_out[n] for seen in whole]).mean(0) for n in range(3)]
    found = [plain.loss()]
    ways: list[Callable[[int, Tensor, Tensor], Tensor]] = [
        lambda n, x, _: plain.written(of.transcoders[n], x), lambda _, __, y: 0 * y, lambda n, _, y: means[n].expand_as(y),
    ]  # fmt: skip
    for way in ways:
        with plain.in_place_of_mlps(range(3), way):
            found.append(plain.loss())
    assert np.allclose(tables["D8, D9"]["cross-entropy"], found, **TOLERANCE)
    one, every = (tables["D5, D6"].iloc[row] for row in (0, 1))
    assert np.allclose([every.ce_model, every.ce_spliced, every.ce_zero], found[:3], **TOLERANCE)
    assert np.isclose(every.recovered, (found[2] - found[1]) / (found[2] - found[0]), **TOLERANCE)
    x, y = (torch.cat([getattr(seen, name)[1] for seen in whole]) for name in ("mlp_in", "mlp_out"))
    assert np.isclose(one.l2_ratio, float((plain.written(of.before, x).norm(dim=-1) / y.norm(dim=-1)).mean()), **TOLERANCE)
    assert np.isclose(one.l0, float((plain.latents(of.before, x) > 0).sum(-1).double().mean()), **TOLERANCE)
    divergences = {"spliced": [], "zero": []}  # type: dict[str, list[Tensor]]
    for (name, parts), way in zip(divergences.items(), ways, strict=False):
        for ids, clean in zip(of.texts, whole, strict=True):
            with plain.in_place_of_mlps([1], way):
                p, q = clean.pattern[2], plain.see(ids).pattern[2]
            parts.append((p * (p.clamp_min(1e-300) / q.clamp_min(1e-300)).log()).sum(-1).flatten())
        assert np.isclose(one[f"pattern_kl_{name}_next"], float(torch.cat(parts).mean()), **TOLERANCE)


def shares(of: Any, plain: Plain) -> dict[tuple[int, int, int], float]:
    """What each head brings to the latent from each position, and the norm's constant."""
    seen, found = plain.see(of.prompt), {}
    for layer in range(3):
        W_O = plain.heads(layer)[1]
        value = seen.value[layer].unflatten(1, (2, 8)).repeat_interleave(2, 1)
        brought = torch.einsum("hs,shd,hdm,m->hs", seen.pattern[layer][:, -1], value, W_O, plain.read) / rms(seen.resid_mid[2][-1])
        found |= {(layer, head, at): float(brought[head, at]) for head in range(4) for at in range(len(of.prompt))}
    return found


def test_heads_positions_and_the_norm(made: Any) -> None:
    of, plain, tables = made
    found, table = shares(of, plain), tables["D10"]
    largest = sorted(found.values(), key=abs)[::-1][:10]
    assert np.allclose(table.share, largest, **TOLERANCE)
    assert np.allclose([found[row.layer, row.head, row.source_position] for row in table.itertuples()], table.share, **TOLERANCE)
    assert np.isclose(tables["D13"].constant[0], 1 / float(rms(plain.see(of.prompt).resid_mid[2][-1])), **TOLERANCE)
    assert np.allclose(tables["D14"].norm, [float(plain.read.norm()), float(of.last.params.W_dec[of.latent].norm())], **TOLERANCE)


def test_input_times_gradient(made: Any) -> None:
    of, plain, tables = made
    seen, first = plain.see(of.prompt), of.transcoders[0]
    for row in tables["D11"].itertuples():
        stream = torch.zeros_like(seen.resid_pre[1])
        stream[row.source_position] = first.params.W_dec[row.source_latent]
        gradient = float(plain.onto_latent(seen, 1, stream)[-1])
        activation = float(plain.latents(first, seen.mlp_in[0][row.source_position])[row.source_latent])
        assert np.allclose([row.gradient, row.attribution], [gradient, gradient * activation], **TOLERANCE)


@pytest.mark.parametrize("row", ["D12", "D12, chosen"])
def test_means_over_texts(row: str, made: Any) -> None:
    of, plain, tables = made
    texts = [(ids, plain.see(ids)) for ids in of.texts]
    active = [plain.latents(of.last, seen.mlp_in[2])[:, of.latent] > 0 for _, seen in texts]
    places = active if row == "D12" else [torch.arange(len(ids)) == len(ids) - 1 for ids in of.texts]
    for each in tables[row].itertuples():
        layer = int(re.findall(r"\d+", each.site)[0]) if each.kind != "token" else 0
        parts = [(seen, at, *plain.part(seen, ids, each.kind, layer, each.number)) for (ids, seen), at in zip(texts, places, strict=True)]
        total = sum(float(plain.onto_latent(seen, first, stream)[at].sum()) for seen, at, first, stream in parts)
        assert np.isclose(each.sum, total, **TOLERANCE), each
        assert np.isclose(each.mean, total / sum(int(at.sum()) for at in places), **TOLERANCE)
        assert np.isclose(each.mean_where_present, total / each.count, **TOLERANCE)


def test_sources_summed_over_tokens(made: Any) -> None:
    of, plain, tables = made
    seen, kinds = plain.see(of.prompt), set()
    for name, value in zip(tables["D22, nodes"].source, tables["D22, nodes"].attribution, strict=True):
        kind = name.split()[0] if " " in name else "latent"
        numbers = [*map(int, re.findall(r"\d+", name)), 0]
        layer, number = (0, numbers[0]) if kind == "token" else numbers[:2]
        first, stream = plain.part(seen, of.prompt, kind, layer, number)
        assert np.isclose(value, float(plain.onto_latent(seen, first, stream)[-1]), **TOLERANCE), name
        kinds.add(kind)
    assert {"token", "latent", "error"} <= kinds


def test_top_features_and_the_fraction_of_the_error(made: Any) -> None:
    of, plain, tables = made
    seen = plain.see(of.prompt)
    x, y = seen.mlp_in[1][-1], seen.mlp_out[1][-1]
    each = plain.latents(of.before, x) * (of.before.params.W_dec @ plain.read)
    table = tables["D15"].set_index("source")
    error = float((y - plain.written(of.before, x)) @ plain.read / (y @ plain.read))
    assert np.isclose(table.fraction["mlp_out1 error@7"], error, **TOLERANCE)
    assert np.isclose(table.contribution["mlp_out1 bias@7"], float(of.before.params.b_dec @ plain.read), **TOLERANCE)
    latents = {int(re.findall(r"\[(\d+)\]", name)[0]): value for name, value in table.contribution.items() if "[" in name}
    assert len(latents) > 5
    assert np.allclose([float(each[latent]) for latent in latents], [*latents.values()], **TOLERANCE)
    assert max(latents.values()) == pytest.approx(float(each.max()))


def test_one_ranking_of_heads_latents_errors_and_embeddings(made: Any) -> None:
    of, plain, tables = made
    seen, brought = plain.see(of.prompt), shares(of, plain)
    scale, kinds = rms(seen.resid_mid[2][-1]), set()
    for name, value in zip(tables["D16"].source, tables["D16"].contribution, strict=True):
        match re.match(r"(attn|mlp_out|mlp|token)", name)[0], [int(n) for n in re.findall(r"\d+", name)]:
            case "attn", [layer, head, at]:
                wanted = brought[layer, head, at]
            case "mlp", [layer, latent, 7]:
                transcoder = of.transcoders[layer]
                wanted = float(
                    plain.latents(transcoder, seen.mlp_in[layer][-1])[latent] * transcoder.params.W_dec[latent] @ plain.read / scale
                )
            case "mlp_out", [layer, 7] if "error" in name:
                wanted = float((seen.mlp_out[layer] - plain.written(of.transcoders[layer], seen.mlp_in[layer]))[-1] @ plain.read / scale)
            case "mlp_out", [layer, 7]:
                wanted = float(of.transcoders[layer].params.b_dec @ plain.read / scale)
            case _:
                wanted = float(seen.resid_pre[0][-1] @ plain.read / scale)
        assert np.isclose(value, wanted, **TOLERANCE), name
        kinds.add(name[:6])
    assert len(kinds) > 3
    assert tables["D17, D18"].value[0] == pytest.approx(max(brought.values()))


def walked(of: Any, plain: Plain, seen: Seen, path: str) -> float:
    """What a path's source does to the latent, step by step from where it begins; no latent loses more than its activation."""
    nodes = [(each, [*map(int, re.findall(r"\d+", each))]) for each in path.split(" ← ")][::-1]
    if nodes[0][0].startswith("attn"):  # all that stands where the head reads
        layer, _, at = nodes[0][1]
        stream = seen.resid_pre[layer][at]
    else:
        at = nodes[0][1][-1]
        stream = seen.resid_pre[0][at] if nodes[0][0].startswith("token") else torch.zeros(0)
    brought = 0.0
    for place, (name, numbers) in enumerate(nodes):
        if name.startswith("attn"):
            layer, head, at = numbers
            to = nodes[place + 1][1][-1]
            V, O = (each[head] for each in plain.heads(layer))
            stream = seen.pattern[layer][head, to, at] * (stream / rms(seen.resid_pre[layer][at]) @ V @ O)
        elif name.startswith("mlp"):
            layer, latent, at = numbers
            transcoder = of.transcoders[layer]
            activation = plain.latents(transcoder, seen.mlp_in[layer][at])[latent]
            read = plain.layers[layer].post_attention_layernorm.weight.detach() * transcoder.params.W_enc[:, latent]
            loses = (stream @ read / rms(seen.resid_mid[layer][at])).clamp(max=activation) if len(stream) else activation
            stream, brought = loses * transcoder.params.W_dec[latent], float(loses)
    return brought


def test_values_of_paths(made: Any) -> None:
    of, plain, tables = made
    seen, paths = plain.see(of.prompt), tables["D17, D18"]
    for row in paths.itertuples():
        assert np.isclose(row.value, walked(of, plain, seen, row.path), **TOLERANCE), row.path
    assert paths.path.str.contains("attn").any()
    assert paths.path.str.contains("← mlp").any()
    begins = tables["D18"]
    assert np.isclose(begins["sum"].sum(), paths.value.sum())
    assert np.isclose(tables["D22"]["sum"].max(), max(paths.groupby(paths.path.str.replace(r"@\d+", "", regex=True)).value.sum()))


def test_paths_and_what_they_leave_out(made: Any) -> None:
    of, plain, tables = made
    table, paths = tables["D21"], tables["D17, D18"]
    assert np.allclose(table["value"], table["on paths"] + table["transcoder error"] + table["bias"] + table["pruned"], **TOLERANCE)
    assert {1, 2, 3} == {*paths.edges}
    assert all(row.path.count("←") == row.edges for row in paths.itertuples())
    assert (paths.value > 0).all()
    rules = tables["D19"]
    assert not rules[rules.rule == "through no head"].path.str.contains("attn").any()
    assert rules[rules.rule == "through a head"].path.str.contains("attn").all()
    assert rules[rules.rule == "a head, then a latent"].path.str.contains(r"attn\S+ ← mlp").all()
    activation = float(plain.latents(of.last, plain.see(of.prompt).mlp_in[2][-1])[of.latent])
    assert np.isclose(table["value"].iloc[-1], activation, **TOLERANCE)
    first = paths[paths.edges == 1].head(3)
    edges = tables["D20"]
    of_latent = edges[edges["to"] == f"mlp2[{of.latent}]@7"].set_index("from").attribution
    assert np.allclose([of_latent[path.partition(" ← ")[2]] for path in first.path], first.value, **TOLERANCE)


def test_scores_over_texts(made: Any) -> None:
    of, plain, tables = made
    texts = [plain.see(ids) for ids in of.texts]
    pre = torch.cat([seen.mlp_in[2] for seen in texts]) @ of.last.params.W_enc[:, of.latent] + of.last.params.b_enc[of.latent]
    ids = torch.tensor([one for text in of.texts for one in text])
    stream, sae = torch.cat([seen.resid_pre[1] for seen in texts]), of.sae.params
    best = int(plain.latents(of.sae, plain.see(of.prompt).resid_pre[1][-1]).argmax())
    decoder = (stream - sae.b_dec) @ sae.W_dec[best]
    for row, score in enumerate((pre.relu(), pre.relu()[ids != of.prompt[-1]], pre, decoder)):
        found = tables["D24"].iloc[row]
        wanted = [len(score), float(score.min()), float(score.max()), float((score > 0).double().mean())]
        assert np.allclose(found[["places", "least", "largest", "above zero"]].astype(float), wanted, **TOLERANCE), found.score
    values = pre.relu().numpy()
    rounding = 1e-5 * values.max()  # the uppermost band ends at the largest value, whose last digits hang on who multiplies
    for band in tables["D25"].itertuples(index=False):
        assert np.isclose(band[2], ((values > band[0] + rounding) & (values <= band[1] + rounding)).mean())
    assert np.allclose(tables["D26"].score, np.sort(values)[::-1][:3], **TOLERANCE)
    evenly = tables["D25, samples"].query("sampled == 'evenly'").score
    assert (evenly.iloc[0], evenly.iloc[-1]) == (pytest.approx(values.min()), pytest.approx(values.max()))


def test_weights_alone(made: Any) -> None:
    of, plain, tables = made
    W_E, W_U = plain.model.model.embed_tokens.weight.detach(), plain.model.lm_head.weight.detach().T
    logits = of.last.params.W_dec[of.latent] * plain.model.model.norm.weight.detach() @ W_U
    table, histogram = tables["D28"], tables["D28, histogram"]
    assert np.allclose(table.highest_weight, logits.topk(5).values, **TOLERANCE)
    assert np.allclose(table.lowest_weight, logits.topk(5, largest=False).values, **TOLERANCE)
    assert [*map(int, table.highest_token)] == logits.topk(5).indices.tolist()
    assert histogram["count"].sum() == 60
    assert histogram["count"][:4].sum() == int((logits < 0).sum())
    virtual = of.before.params.W_dec @ plain.read
    assert np.allclose(tables["D29"].weight, torch.cat([virtual.sort().values[:5], virtual.sort().values[-5:]]), **TOLERANCE)
    on_prompt = virtual * plain.latents(of.before, plain.see(of.prompt).mlp_in[1][-1])
    assert np.allclose(tables["D30"].attribution, on_prompt[tables["D30"].source_latent.to_numpy()], **TOLERANCE)
    assert tables["D30"].attribution.max() == pytest.approx(float(on_prompt.max()))
    norms = {}
    for layer in range(3):
        W_V, W_O = plain.heads(layer)
        norms |= {(layer, head): float((W_V[head] @ (W_O[head] @ plain.read)).norm()) for head in range(4)}
    found = tables["D31"]
    assert np.allclose(found.norm, sorted(norms.values())[::-1][:10], **TOLERANCE)
    assert np.allclose([norms[row.layer, row.head] for row in found.itertuples()], found.norm, **TOLERANCE)
    W_V, W_O = (each[int(found["head"].iloc[0])] for each in plain.heads(int(found.layer.iloc[0])))
    ways = [W_E @ plain.read, W_E @ W_V @ (W_O @ plain.read), W_E @ of.last.params.W_dec[of.latent]]
    for way, (_, rows) in zip(ways, tables["D32"].groupby("way", sort=False), strict=True):
        assert np.allclose(rows.highest_weight, way.topk(3).values, **TOLERANCE)
        assert np.allclose(rows.lowest_weight, way.topk(3, largest=False).values, **TOLERANCE)
