"""Figures of dictionaries equal the plain dense computation, over all prompts at once, and sae-lens' own where it has them."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import attrib
from attrib.adapters import from_tensors
from attrib.core.types import AttribWarning, InputError, Site
from attrib.latents import Quality, evaluate
from attrib.models.tokenizer import Tokenizer
from attrib.models.transformer import Model
from tests.support.builders import D_MODEL, build, dictionary, normal, prompt, randomise, sae
from tests.support.hooked import LAYER, TINY

DOUBLE = torch.float64
PROMPTS = [prompt(n, seed=seed) for seed, n in enumerate((7, 12, 7, 1, 5))]
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sae": ("standard", "blocks.1.hook_resid_pre", {}),
    "topk at the end": ("topk", "blocks.3.hook_resid_post", {}),
    "normalised": ("standard", "blocks.2.hook_resid_mid", {"normalize_activations": "layer_norm"}),
    "on mlp_out": ("jumprelu", "blocks.1.hook_mlp_out", {}),
    "on z": ("topk", "blocks.1.attn.hook_z", {}),
    "transcoder": ("transcoder", "blocks.2.mlp.hook_in", {}),
    "skip transcoder": ("skip_transcoder", "blocks.0.mlp.hook_in", {}),
}


def of_case(model: Model, name: str) -> attrib.Dictionary:
    kind, site, options = CASES[name]
    width = model.config.n_heads * model.config.d_head if site.endswith("hook_z") else D_MODEL
    return dictionary(kind, site, DOUBLE, d_in=width, **({"d_out": D_MODEL} if "transcoder" in kind else {}), **options)


def plainly(model: Model, one: attrib.Dictionary, prompts: list[Tensor], counted: list[Tensor]) -> dict[str, float]:
    """The same figures, by capture, forward and dense latents, all tokens held."""
    [written] = one.writes
    y, r, latents, every = [], [], [], []
    for ids, keep in zip(prompts, counted, strict=True):
        values = attrib.capture(model, ids, [one.site, written])
        y.append(values[written][keep])
        r.append(attrib.reconstruct(one, values[one.site])[keep])
        latents.append(attrib.encode(one, values[one.site])[keep])
        every.append(values[written])
    true, made, active = torch.cat(y), torch.cat(r), torch.cat(latents)
    mean = true.mean(0)
    found = {
        "explained_variance": 1 - (true - made).square().sum() / (true - mean).square().sum(),
        "mse": (true - made).square().sum(-1).mean(),
        "l2_ratio": (made.norm(dim=-1) / true.norm(dim=-1)).mean(),
        "cosine": F.cosine_similarity(true, made, dim=-1).mean(),
        "l0": (active != 0).double().sum(-1).mean(),
        "l1": active.abs().sum(-1).mean(),
        "dead": (active == 0).all(0).double().mean(),
        "log10_density": (active != 0).double().mean(0).log10().masked_select((active != 0).any(0)).quantile(0.5),
    }
    ways = {"model": None, "spliced": lambda x: attrib.reconstruct(one, x), "zero": torch.zeros_like, "mean": mean.expand_as}
    layers = range(written.layer if written.kind == "resid_pre" else written.layer + 1, model.config.n_layers)
    nll: dict[str, list[Tensor]] = {way: [] for way in ways}
    kl: dict[str, list[Tensor]] = {way: [] for way in ways}
    pattern: dict[str, list[Tensor]] = {way: [] for way in ways}
    for ids, keep, own in zip(prompts, counted, every, strict=True):
        clean, patterns = attrib.forward(model, ids), attrib.attention_patterns(model, ids)
        for way, made_of in ways.items():
            read = attrib.capture(model, ids, one.site)[one.site] if way == "spliced" else own
            put = {} if made_of is None else {written: torch.where(keep[:, None], made_of(read), own)}
            logits = attrib.forward(model, ids, put=put)
            nll[way].append(F.cross_entropy(logits[:-1], ids[1:], reduction="none"))
            p, q = clean.softmax(-1), logits.softmax(-1)
            kl[way].append((p * (p.log() - q.log())).sum(-1))
            if len(layers):
                others = attrib.attention_patterns(model, ids, layers, put=put)
                parts = [torch.special.xlogy(patterns[n], patterns[n] / others[n]).nan_to_num().sum(-1) for n in layers]
                pattern[way].append(torch.stack(parts).mean(1))  # layer, position
    for way in ways:
        found[f"ce_{way}"] = torch.cat(nll[way]).mean()
        if way != "model":
            found[f"kl_{way}"] = torch.cat(kl[way]).mean()
            if len(layers):
                found[f"pattern_kl_{way}"] = torch.cat(pattern[way], 1).mean()
                found[f"pattern_kl_{way}_next"] = torch.cat(pattern[way], 1)[0].mean()
    found["recovered"] = (found["ce_zero"] - found["ce_spliced"]) / (found["ce_zero"] - found["ce_model"])
    found["recovered_of_mean"] = (found["ce_mean"] - found["ce_spliced"]) / (found["ce_mean"] - found["ce_model"])
    return {name: float(value) for name, value in found.items()}


def same(row: Quality, want: dict[str, float]) -> None:
    figures = row.figures()
    assert {name: figures[name] for name in want} == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert figures.keys() - want.keys() == {"latents", "tokens", "left_out"}


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", CASES)
def test_every_figure_is_the_plain_one(family: str, name: str) -> None:
    model = build(family, DOUBLE)  # type: ignore[arg-type]
    one = of_case(model, name)
    (row,) = evaluate(model, one, PROMPTS).rows
    same(row, plainly(model, one, PROMPTS, [torch.ones(len(ids), dtype=torch.bool) for ids in PROMPTS]))
    assert (row.tokens, row.left_out, row.d_sae) == (32, 0, 80)


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
@pytest.mark.parametrize(("kind", "hook"), [("topk", "blocks.1.hook_resid_pre"), ("standard", "blocks.0.attn.hook_z")])
def test_sae_lens_own_evaluation_has_the_same_figures(kind: str, hook: str) -> None:
    from sae_lens import evals
    from sae_lens.training.activation_scaler import ActivationScaler
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    hooked = HookedTransformer(HookedTransformerConfig(**TINY | LAYER | {"device": "cpu"}))
    randomise(hooked, seed=0)
    theirs = sae(kind, site=hook)
    ids = prompt(9, batch=(4,))
    store: Any = SimpleNamespace(get_batch_tokens=lambda size: ids)
    common: dict[str, Any] = {"n_batches": 1, "eval_batch_size_prompts": 4}
    lost = evals.get_downstream_reconstruction_metrics(theirs, hooked, store, ActivationScaler(), True, True, **common)
    near, of_latents = evals.get_sparsity_and_variance_metrics(
        theirs, hooked, store, ActivationScaler(), compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
        compute_featurewise_density_statistics=True, model_kwargs={}, **common,
    )  # fmt: skip
    (row,) = evaluate(hooked, theirs, ids).rows
    assert row.cross_entropy is not None
    assert row.kl is not None
    ours = {
        "ce_loss_without_sae": row.cross_entropy_model, "ce_loss_with_sae": row.cross_entropy.spliced,
        "ce_loss_with_ablation": row.cross_entropy.zero, "ce_loss_score": row.recovered, "kl_div_with_sae": row.kl.spliced,
        "kl_div_with_ablation": row.kl.zero, "kl_div_score": 1 - row.kl.spliced / row.kl.zero,
        "l2_ratio": row.l2_ratio, "l0": row.l0, "l1": row.l1, "explained_variance": row.explained_variance, "mse": row.mse,
        "cossim": row.cosine,
    }  # fmt: skip
    both = {name: value for name, value in (lost | near).items() if name in ours}
    assert len(both) == 13
    assert {name: ours[name] for name in both} == pytest.approx(both, rel=2e-4)
    assert row.density[0].tolist() == pytest.approx(of_latents["feature_density"])


def test_parallel_blocks_too() -> None:
    model = build("gpt_neox", DOUBLE)
    one = of_case(model, "on mlp_out")
    same(evaluate(model, one, PROMPTS).rows[0], plainly(model, one, PROMPTS, [torch.ones(len(ids), dtype=torch.bool) for ids in PROMPTS]))


def test_tokens_that_do_not_count_keep_their_values() -> None:
    special = {3: "<a>", 17: "<b>"}
    tokenizer = Tokenizer(encode=lambda text: [], decode=lambda ids: "", special=special)
    model = replace(build("llama", DOUBLE), tokenizer=tokenizer)
    prompts = [torch.cat([torch.tensor([3]), ids, torch.tensor([17])]) for ids in PROMPTS]
    one = of_case(model, "sae")
    counted = [(torch.arange(len(ids)) >= 2) & (ids != 3) & (ids != 17) for ids in prompts]
    (row,) = evaluate(model, one, prompts, special_tokens=False, first_position=2).rows
    same(row, plainly(model, one, prompts, counted))
    assert row.left_out == sum(int((~keep).sum()) for keep in counted) > 10
    norms = torch.cat([attrib.capture(model, ids, one.site)[one.site].norm(dim=-1) for ids in prompts])
    bound = 1.2 * norms.median()
    counted = [attrib.capture(model, ids, one.site)[one.site].norm(dim=-1) < bound for ids in prompts]
    (row,) = evaluate(model, one, prompts, max_norm=1.2).rows
    same(row, plainly(model, one, prompts, counted))
    assert 0 < row.left_out < row.tokens
    everything = evaluate(model, one, prompts, losses=False).rows[0]
    assert row.fidelity_of_all.explained_variance == pytest.approx(everything.explained_variance, rel=1e-9)


def test_several_together_are_a_model_with_all_of_them() -> None:
    model = build("llama", DOUBLE)
    both = [dictionary("transcoder", Site(layer, "mlp_in"), DOUBLE, seed=layer) for layer in (1, 2)]
    together, first, second = evaluate(model, [both, *both], PROMPTS).rows
    nll, count = 0.0, 0
    for ids in PROMPTS:
        logits = attrib.replace(model, both).run(ids)
        nll += float(F.cross_entropy(logits[:-1], ids[1:], reduction="sum"))
        count += len(ids) - 1
    assert together.cross_entropy is not None
    assert together.cross_entropy.spliced == pytest.approx(nll / count, rel=1e-9)
    assert together.l0 == pytest.approx(first.l0 + second.l0)
    assert together.mse == pytest.approx((first.mse + second.mse) / 2)
    assert len(together.density) == 2
    assert together.name == f"{both[0].name} + {both[1].name}"


def test_layers_of_a_cross_layer_transcoder_are_measured_together() -> None:
    model, noise = build("llama", DOUBLE), [normal(80, width * D_MODEL, dtype=DOUBLE, seed=width) for width in (3, 2)]
    ends = {n: [str(Site(layer, "mlp_out")) for layer in range(n, 4)] for n in (1, 2)}
    layers = [
        from_tensors(
            W_enc=normal(D_MODEL, 80, dtype=DOUBLE, seed=n), W_dec=noise[n - 1] / 8, b_enc=-torch.ones(80, dtype=DOUBLE),
            b_dec=torch.zeros((4 - n) * D_MODEL, dtype=DOUBLE), site=Site(n, "mlp_in"), writes=ends[n], rule="relu",
        )
        for n in (1, 2)
    ]  # fmt: skip
    (row,) = evaluate(model, [layers], PROMPTS).rows
    nll = sum(float(F.cross_entropy(attrib.replace(model, layers).run(ids)[:-1], ids[1:], reduction="sum")) for ids in PROMPTS)
    assert row.cross_entropy is not None
    assert row.cross_entropy.spliced == pytest.approx(nll / sum(len(ids) - 1 for ids in PROMPTS), rel=1e-9)
    with pytest.warns(AttribWarning, match="is measured alone, as if they were its own"):
        evaluate(model, layers[0], PROMPTS[:1], losses=False)


def test_batches_and_progress_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, told = build("gpt2", DOUBLE), list[tuple[int, int]]()
    saes = [of_case(model, "sae"), of_case(model, "transcoder")]
    whole = evaluate(model, saes, PROMPTS, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (64, 64)
    monkeypatch.setattr("attrib.latents.evaluating.AT_ONCE", 3)
    monkeypatch.setattr("attrib.latents.replaced.LOGITS", 130)  # two positions
    again = evaluate(model, saes, PROMPTS[::-1])
    for row, other in zip(whole.rows, again.rows, strict=True):
        assert other.figures() == pytest.approx(row.figures(), rel=1e-9, abs=1e-12)
        assert torch.equal(other.density[0], row.density[0])
    table = whole.to_pandas()
    assert list(table.dictionary) == [sae.name for sae in saes]
    assert table.l0[0] == pytest.approx(whole.rows[0].l0)


def test_parts_that_are_not_asked_for_are_not_there() -> None:
    model = build("gpt2", DOUBLE)
    (row,) = evaluate(model, of_case(model, "sae"), PROMPTS, losses=False).rows
    assert (row.cross_entropy, row.recovered, row.pattern_kl) == (None, None, {})
    assert "ce_model" not in row.figures()
    (row,) = evaluate(model, of_case(model, "sae"), PROMPTS, patterns=False).rows
    assert row.pattern_kl == {}
    assert row.cross_entropy is not None
    assert evaluate(model, of_case(model, "sae"), [prompt(1)], losses=False).rows[0].tokens == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dictionaries": []}, "dictionaries: none"),
        ({"dictionaries": [[]]}, r"dictionaries\[0\]: an empty list"),
        ({"dictionaries": [3]}, r"dictionaries\[0\]: got a int; expected an attrib.Dictionary"),
        ({"tokens": [prompt(1), prompt(1)]}, "no prompt has two tokens"),
        ({"first_position": 20}, "tokens: none counts for dictionaries"),
        ({"first_position": -1}, "first_position: -1"),
        ({"max_norm": 0}, "max_norm: 0"),
        ({"special_tokens": False}, "has no tokenizer that names any"),
        ({"tokens": []}, "no prompts given"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    model = build("gpt2", DOUBLE)
    with pytest.raises(InputError, match=message):
        evaluate(model, **{"dictionaries": of_case(model, "sae"), "tokens": PROMPTS} | options)
