"""Interventions against TransformerLens' own hooks with sae-lens' own modules, and against derivatives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attrib
from attrib.causal import Ablate, Add, Head, Latents, PreActivations, Scale, Set, intervene
from attrib.core.types import EXACT, LINEAR, InputError, Policy, Site
from tests.support.builders import build, dictionary, normal, prompt, sae
from tests.support.lens_splice import folded, hooks_of, lens_run, put_in
from tests.support.tolerances import FOREIGN, ROUNDING, assert_close

FAMILIES = ("gpt2", "llama-3.1", "pythia", "gemma-2")
RESID, MLP, LATER = "blocks.0.hook_resid_mid", "blocks.0.mlp.hook_in", "blocks.1.hook_resid_pre"
IDS = prompt(7)


def at(rows: Any, columns: Any, become: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """The edit of some rows and columns, in place of a copy."""

    def edit(value: Tensor) -> Tensor:
        value = value.clone()
        value[rows, columns] = become(value[rows, columns])
        return value

    return edit


EVERY = slice(None)
DIRECTION = normal(32, dtype=torch.float64, seed=9)
SITE_EDITS: dict[str, tuple[Any, str, Any]] = {
    "set": (Set("blocks.1.hook_mlp_out", 0.5, -1), "blocks.1.hook_mlp_out", at(-1, EVERY, lambda v: 0.5)),
    "steer": (Add(LATER, 3 * DIRECTION), LATER, lambda v: v + 3 * DIRECTION),
    "scale": (Scale("blocks.0.hook_attn_out", -0.5, "2:4"), "blocks.0.hook_attn_out", at(slice(2, 4), EVERY, lambda v: -0.5 * v)),
    "zero": (Ablate("blocks.0.hook_mlp_out"), "blocks.0.hook_mlp_out", torch.zeros_like),
    "head": (Ablate(Head(1, 2)), "blocks.1.attn.hook_z", at(EVERY, 2, torch.zeros_like)),
    "heads": (Scale(Head(0, [3, 1]), 2.0, [0, 5]), "blocks.0.attn.hook_z", at([[0], [5]], [[3, 1]], lambda v: 2 * v)),
    "function": (Set("blocks.0.hook_resid_pre", lambda v: v.flip(0)), "blocks.0.hook_resid_pre", lambda v: v.flip(0)),
    "last": (Add("blocks.1.hook_resid_post", DIRECTION, 3), "blocks.1.hook_resid_post", at(3, EVERY, lambda v: v + DIRECTION)),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", SITE_EDITS)
def test_edits_of_sites_and_heads_are_hooks(family: str, which: str):
    lens, model = folded(family)
    edit, name, by_hand = SITE_EDITS[which]
    want, stood = lens_run(lens, IDS, places={name: by_hand})
    assert_close(intervene(model, [], IDS, edit), want)
    found = intervene(model, [], IDS, edit, values=[name, "blocks.1.hook_resid_post"])
    for site, value in found.items():
        assert_close(value, stood[str(site)].flatten(1), what=site)


LATENT_EDITS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "set": (lambda d: Set(Latents(d, 3), 2.5, -1), at(-1, 3, lambda a: 2.5)),
    "several": (lambda d: Set(Latents(d, [30, 4]), [1.0, 2.0], [2, 5]), at([[2], [5]], [[30, 4]], lambda a: a.new_tensor([1.0, 2.0]))),
    "scale": (lambda d: Scale(Latents(d), 0.5, "1:"), at(slice(1, None), EVERY, lambda a: 0.5 * a)),
    "add": (lambda d: Add(Latents(d, range(10)), 0.7), at(EVERY, slice(10), lambda a: a + 0.7)),
    "all": (lambda d: Ablate(Latents(d)), torch.zeros_like),
}


@pytest.mark.few
@pytest.mark.parametrize("errors", [True, False, "live"])
@pytest.mark.parametrize("effect", ["total", "direct"])
@pytest.mark.parametrize("family", FAMILIES)
def test_edits_of_latents_are_hooks(family: str, effect: str, errors: Any):
    """Of the first of three dictionaries, with a site's edit between; two behind it encode what they read, or stay as they are."""
    lens, model = folded(family)
    sites = [MLP, LATER, "blocks.1.mlp.hook_in"] if model.config.parallel else [RESID, MLP, LATER]
    foreign, dictionaries = put_in(sites)
    between = "blocks.0.hook_mlp_out"
    for name, (edit, by_hand) in LATENT_EDITS.items():
        edits = [edit(dictionaries[0]), Add(between, DIRECTION, 2)]
        places = {between: at(2, EVERY, lambda v: v + DIRECTION)}
        options = {"effect": effect, "errors": errors}
        want, stood = lens_run(lens, IDS, foreign, dictionaries, latents={0: by_hand}, places=places, **options)
        assert_close(intervene(model, dictionaries, IDS, edits, **options), want, what=name)
    read, _ = hooks_of(dictionaries[2])
    found = intervene(model, dictionaries, IDS, edits, values=[Latents(2, [1, 5]), PreActivations(2), LATER], **options)
    *_, x = (value for key, value in found.items())
    assert_close(x, stood[LATER])
    if read != LATER:  # of one that writes where it reads, the last hook sees what it wrote
        assert_close(found[Latents(2, (1, 5))], foreign[2].encode(stood[read])[:, [1, 5]].detach())


@pytest.mark.parametrize("errors", [True, "live"])
def test_edits_of_errors_and_of_several_dictionaries_in_their_order(errors: Any):
    lens, model = folded("llama-3.1")
    foreign, dictionaries = put_in([RESID, MLP, LATER], kinds=["jumprelu", "transcoder", "topk"])
    wrote = "blocks.0.hook_mlp_out"
    edits = [
        Scale(Latents(2, 4), 3.0), Add(Latents(0, 7), 1.0, 2), Ablate(attrib.ErrorAt(RESID), positions=[0, 6]), Scale(Latents(0, 7), 2.0),
        Scale(attrib.ErrorAt(wrote), 0.5), Set(Latents(1), lambda a: a.roll(1, -1), -1),
    ]  # fmt: skip
    latents = {
        0: lambda a: 2 * a[:, 7:8] * torch.eye(40).to(a)[7] + at(2, 7, lambda v: v + 1)(a) * (torch.arange(40) != 7) + _double_at(a),
        1: at(-1, EVERY, lambda v: v.roll(1, -1)),
        2: at(EVERY, 4, lambda v: 3 * v),
    }
    of_errors = {RESID: at([0, 6], EVERY, torch.zeros_like), wrote: lambda e: 0.5 * e}
    for effect in (["total"] * 3, ["direct", "total", "direct"]):
        want, _ = lens_run(lens, IDS, foreign, dictionaries, effect=effect, errors=errors, latents=latents, of_errors=of_errors)
        assert_close(intervene(model, dictionaries, IDS, edits, effect=effect, errors=errors), want)


def _double_at(a: Tensor) -> Tensor:
    """What (a + 1) · 2 has beyond 2 a, at latent 7 of position 2."""
    beyond = torch.zeros_like(a)
    beyond[2, 7] = 2.0
    return beyond


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_a_scale_that_is_put_back_goes_with_every_edit(normalisation: str):
    """With one dictionary, which nothing lies before, a live error and a held one are the same; and both are what sae-lens decodes."""
    model = build("llama", torch.float64)
    module = sae("standard", dtype=torch.float64, site=LATER, normalize_activations=normalisation)
    one, x = attrib.from_sae_lens(module), attrib.capture(model, IDS, LATER)[Site.parse(LATER)]
    with torch.no_grad():
        before = module.decode(acts := module.encode(x))
        module.encode(x)  # which keeps the scale that decode takes, once
        after = module.decode(3 * acts)
    want = attrib.forward(model, IDS, put={LATER: x + after - before})
    for errors in (True, "live"):
        assert_close(intervene(model, one, IDS, Scale(Latents(0), 3.0), errors=errors), want, what=errors)


def test_each_dictionary_with_its_own_effect_and_error():
    lens, model = folded("gpt2")
    foreign, dictionaries = put_in([RESID, MLP, LATER], kinds=["standard", "transcoder", "jumprelu"])
    options: dict[str, Any] = {"effect": ["total", "direct", "total"], "errors": [False, "live", True]}
    want, stood = lens_run(lens, IDS, foreign, dictionaries, latents={0: at(1, 2, lambda a: 3.0)}, **options)
    edit = Set(Latents(0, 2), 3.0, 1)
    assert_close(intervene(model, dictionaries, IDS, edit, **options), want)
    error = attrib.ErrorAt("blocks.0.hook_mlp_out")
    found = intervene(model, dictionaries, IDS, edit, values=[error, "blocks.0.hook_mlp_out"], **options)
    assert_close(found[error], (stood["blocks.0.hook_mlp_out"] - foreign[1].decode(_clean_latents(lens, foreign[1]))).detach())


def _clean_latents(lens: Any, module: Any) -> Tensor:
    _, cache = lens.run_with_cache(IDS[None])
    return module.encode(cache["blocks.0.ln2.hook_normalized"])[0]


@pytest.mark.few
@pytest.mark.parametrize(
    ("policy", "frozen"),
    [(Policy(attention="frozen"), ("hook_pattern",)), (LINEAR, ("hook_pattern", "hook_scale")), (Policy(norm="frozen"), ("hook_scale",))],
    ids=str,
)
@pytest.mark.parametrize("family", ["gpt2", "llama-3.1", "pythia"])
def test_what_is_frozen_is_what_hooks_put_back(family: str, policy: Policy, frozen: tuple[str, ...]):
    """With every MLP cut and LINEAR these are circuit-tracer's constrained layers; with patterns frozen and live errors its usual ones."""
    lens, model = folded(family)
    foreign, dictionaries = put_in(["blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"])
    for effect, errors in (("direct", True), ("total", "live")):
        options: dict[str, Any] = {"effect": effect, "errors": errors}
        want, _ = lens_run(lens, IDS, foreign, dictionaries, latents={0: at(2, 5, lambda a: 4.0)}, frozen=frozen, **options)
        got = intervene(model, dictionaries, IDS, Set(Latents(0, 5), 4.0, 2), policy=policy, **options)
        assert_close(got, want, what=effect)
        unembedded = intervene(model, dictionaries, IDS, Set(Latents(0, 5), 4.0, 2), policy=policy, metric=[3, 9], **options)
        assert_close(unembedded, want[-1, [3, 9]])


def test_means_and_resamplings_are_those_of_the_other_prompts():
    lens, model = folded("llama-3.1")
    foreign, dictionaries = put_in([LATER])
    others = [prompt(4, seed=5), prompt(7, seed=6)]
    cached = [lens.run_with_cache(ids[None])[1] for ids in others]
    for what, name, clean in (
        (Head(0, 1), "blocks.0.attn.hook_z", [cache["blocks.0.attn.hook_z"][0, :, 1] for cache in cached]),
        (Latents(0), None, [foreign[0].encode(cache[LATER])[0].detach() for cache in cached]),
        (attrib.ErrorAt(LATER), LATER, [(cache[LATER] - foreign[0](cache[LATER]))[0].detach() for cache in cached]),
    ):
        mean = torch.cat(clean).mean(0)
        drawn = torch.cat(clean)[torch.randint(11, (7,), generator=torch.Generator().manual_seed(4))]
        given = [
            (Ablate(what, "mean", of=others), mean.expand(7, -1)),
            (Ablate(what, "mean", of=mean), mean.expand(7, -1)),
            (Ablate(what, "resample", of=others[1]), clean[1]),
            (Ablate(what, "resample", of=others, seed=4), drawn),
        ]
        for edit, value in given:
            want = intervene(model, dictionaries, IDS, Set(what, value))
            assert_close(intervene(model, dictionaries, IDS, edit), want, what=edit)
            last = intervene(model, dictionaries, IDS, edit._replace(positions=[-1, 2]))
            assert_close(last, intervene(model, dictionaries, IDS, Set(what, value[[2, 6]], [2, 6])), what=edit)
        assert name is None or (want - attrib.forward(model, IDS)).abs().max() > 1e-3
    first, second = intervene(model, dictionaries, [others[0], IDS], Ablate(LATER, "resample", of=others))
    assert_close(first, attrib.forward(model, others[0]))
    assert_close(second, intervene(model, dictionaries, IDS, Ablate(LATER, "resample", of=others[1])))
    with pytest.raises(InputError, match=r"prompt 0, of 4 tokens, from one of 7"):
        intervene(model, dictionaries, others[0], Ablate(LATER, "resample", of=IDS))
    with pytest.raises(InputError, match="prompt 2 has none"):
        intervene(model, dictionaries, [*others, IDS], Ablate(LATER, "resample", of=others))


# -------------------------------------------------------------------------------------- as a function


def test_prompts_of_any_lengths_give_what_each_gives_alone():
    model, sae = build("llama", torch.float64), dictionary("topk", LATER, torch.float64)
    prompts = [prompt(n, seed=n) for n in (5, 1, 9)]
    edits = [Ablate(Latents(sae, range(40)), positions=-1), Add("blocks.2.hook_attn_out", 0.3)]
    together = intervene(model, sae, prompts, edits, errors="live")
    metric = intervene(model, sae, prompts, edits, errors="live", metric=attrib.Difference(3, [5, 7]))
    by_function = intervene(model, sae, prompts, edits, errors="live", metric=lambda logits: logits[-1, 3] - logits[-1, [5, 7]].mean())
    for n, ids in enumerate(prompts):
        assert_close(intervene(model, sae, ids, edits, errors="live"), together[n], ROUNDING)
        assert_close(metric[n], together[n][-1, 3] - together[n][-1, [5, 7]].mean())
    assert_close(metric, by_function)
    vector = normal(32, dtype=torch.float64)
    last = "blocks.3.hook_resid_post"
    found = intervene(model, sae, prompts[0], edits, metric=attrib.Direction(vector))
    assert_close(found, intervene(model, sae, prompts[0], edits, values=last)[last][-1] @ vector)


@pytest.mark.parametrize("policy", [EXACT, LINEAR], ids=["exact", "linear"])
@pytest.mark.parametrize("effect", ["direct", "total"])
def test_the_derivative_of_a_set_is_the_gradient_of_an_edge(policy: Policy, effect: str):
    """By jacrev, jvp and vmap, with dictionaries between the source and the logits, and without."""
    model = build("llama", torch.float64)
    source = dictionary("jumprelu", "blocks.1.hook_resid_pre", torch.float64)
    between = [dictionary("transcoder", f"blocks.{layer}.mlp.hook_in", torch.float64, seed=layer) for layer in (1, 2)]
    ids = prompt(6)
    for cuts in ((), between):
        options = {"cuts": cuts, "effect": effect} if cuts else {}
        edges = attrib.latent_to_logit(model, source, ids, logits=[3, 9], policy=policy, keep=attrib.Dense(), **options)
        sources = edges.sources
        first = [n for n, p in enumerate(sources.position.tolist()) if p == 3]
        chosen, value = [int(sources.latent[n]) for n in first], torch.tensor([float(sources.activation[n]) for n in first]).double()
        value = intervene(model, source, ids, values=Latents(0, chosen))[Latents(0, tuple(chosen))][3]

        def read(value: Tensor, cuts: Any = cuts, chosen: Any = chosen) -> Tensor:
            edit = Set(Latents(source, chosen), value[None], 3)
            return intervene(model, [source, *cuts], ids, edit, effect=effect, policy=policy, metric=[3, 9])

        want = edges.dense(0, value="gradient")[:, first]
        assert_close(torch.func.jacrev(read)(value), want)
        tangents = normal(3, len(first), dtype=torch.float64)
        moved = torch.func.vmap(lambda t: torch.func.jvp(read, (value,), (t,))[1])(tangents)  # noqa: B023
        assert_close(moved, tangents @ want.T)
        values = value + tangents
        assert_close(torch.func.vmap(read)(values), torch.stack([read(one) for one in values]))


def test_metric_attribution_of_several_dictionaries_without_errors():
    """Gradients by the latents of all SAEs at once, as sae-lens' tutorials take them with hooks, where the errors are left out."""
    lens, model = folded("llama-3.1")
    foreign, dictionaries = put_in([RESID, LATER, "blocks.1.hook_resid_mid"], kinds=["standard", "jumprelu", "standard"])
    for errors in (False, True):
        _, clean = lens.run_with_cache(IDS[None])
        held: dict[str, Tensor] = {}

        def spliced(x: Tensor, hook: Any, module: Any, errors: bool = errors, held: Any = held, clean: Any = clean) -> Tensor:
            acts = held[hook.name] = module.encode(x)
            acts.retain_grad()
            error = (clean[hook.name] - module(clean[hook.name])).detach() if errors else 0
            return module.decode(acts) + error

        with torch.enable_grad():
            hooks = [(hooks_of(d)[1], lambda x, hook, m=m: spliced(x, hook, m)) for m, d in zip(foreign, dictionaries, strict=True)]
            logits = lens.run_with_hooks(IDS[None], fwd_hooks=hooks)[0]
            (logits[-1, 3] - logits[-1, 9]).backward()

        def metric(*added: Tensor, errors: bool = errors) -> Tensor:
            edits = [Add(Latents(n), delta) for n, delta in enumerate(added)]
            return intervene(model, dictionaries, IDS, edits, errors=errors, metric=attrib.Difference(3, 9))

        zeros = tuple(torch.zeros(7, 40, dtype=torch.float64) for _ in dictionaries)
        gradients = torch.func.grad(metric, argnums=(0, 1, 2))(*zeros)
        for d, gradient in zip(dictionaries, gradients, strict=True):
            assert_close(gradient, held[hooks_of(d)[1]].grad[0], what=d.site)


def test_by_an_autograd_tape():
    model, sae = build("gpt2", torch.float64), dictionary("standard", LATER, torch.float64)
    value = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def read(value: Tensor) -> Tensor:
        return intervene(model, sae, IDS, Set(Latents(0, 3), value), policy=LINEAR, metric=attrib.Difference(3, 9))

    (got,) = torch.autograd.grad(read(value), value)
    assert_close(got, (read(value + 1e-4) - read(value - 1e-4)).detach() / 2e-4, 1e-6)


# ------------------------------------------------------------------------------------ SmolLM2, float32


def test_smollm2_steered_and_ablated_is_what_hooks_on_transformers_give(smollm2_folder: Path):
    from transformers import AutoModelForCausalLM

    foreign = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32, local_files_only=True).eval()
    model, site = attrib.load_model("smollm2-135m"), "blocks.6.hook_resid_pre"
    sae = attrib.load_dictionary(f"smollm2-135m/{site}")
    text = "The Eiffel tower is in the city of"
    ids = torch.tensor(model.tokenizer.encode(text))
    direction = sae.params.W_dec[493]

    def ablated(x: Tensor) -> Tensor:
        p = sae.params
        pre = (x - p.b_dec if sae.config.apply_b_dec_to_input else x) @ p.W_enc + p.b_enc
        top = pre.topk(sae.config.k, dim=-1)
        latents = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
        change = torch.zeros_like(x)
        change[0, -1] = -(latents[0, -1, :1000] @ sae.params.W_dec[:1000])
        return x + change

    for edit, by_hand in (
        (Add(site, 40 * direction, "1:"), lambda x: torch.cat([x[:, :1], x[:, 1:] + 40 * direction], 1)),
        (Ablate(Latents(sae, range(1000)), positions=-1), ablated),
    ):
        handle = foreign.model.layers[6].register_forward_pre_hook(lambda _, args, by_hand=by_hand: (by_hand(args[0]), *args[1:]))
        try:
            with torch.no_grad():
                want = foreign(ids[None]).logits[0]
        finally:
            handle.remove()
        assert_close(intervene(model, sae, text, edit), want, FOREIGN)
        assert (want - attrib.forward(model, text)).abs().max() > 1


# ----------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"effect": "none"}, "effect: 'none'"),
        ({"effect": ["total"] * 3}, "3 of them for 1 dictionaries"),
        ({"errors": 1}, "errors: 1"),
        ({"errors": "held"}, "'live'"),
        ({"policy": Policy("frozen", "thawed", "exact")}, "policy"),  # type: ignore[arg-type]
        ({"metric": 3}, "which are largest depends"),
        ({"metric": attrib.Direction(torch.ones(32), Site(1, "z"))}, "expected one at the last site"),
        ({"metric": [3], "values": LATER}, "no effect beside values"),
        ({"values": []}, "values: none"),
        ({"values": [3]}, "values: int"),
        ({"values": "blocks.0.hook_mlp_out"}, "behind all of `values`"),
        ({"errors": False, "edits": Ablate(attrib.ErrorAt(LATER))}, "leaves that error out"),
        ({"errors": False, "values": attrib.ErrorAt(LATER)}, "leaves it out"),
        ({"edits": Ablate(Latents(0, 99))}, "99 among the latents"),
        ({"edits": {}}, "edits: a dict"),
        ({"edits": Set(LATER, 1e39)}, "in float32"),
        ({"edits": Set(LATER, lambda v: v / 0)}, "makes NaN or infinity"),
        ({"edits": Scale(LATER, 1e38)}, "makes NaN or infinity"),
        ({"edits": Set(LATER, lambda v: None)}, "NoneType"),
        ({"metric": lambda logits: 3.0}, "it gives float"),
        ({"metric": lambda logits: logits, "tokens": [prompt(3), prompt(4)]}, r"shape \[4, 60\] of prompt 1"),
        ({"tokens": []}, "no prompts"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: dict[str, Any], said: str):
    given = {"tokens": IDS, "edits": Ablate(Latents(0, 3))} | options
    with pytest.raises(InputError, match=said):
        intervene(build("gpt2"), dictionary("standard", LATER), given.pop("tokens"), given.pop("edits"), **given)


def test_one_place_is_written_by_one_dictionary():
    with pytest.raises(InputError, match="both replace"):
        intervene(build("gpt2"), [dictionary("standard", LATER), dictionary("topk", LATER)], IDS)


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2 without MLPs", "llama without norms", "gemma2 without norms and MLPs"])
@pytest.mark.parametrize("policy", [EXACT, LINEAR], ids=str)
def test_models_without_norms_or_mlps(family: Any, policy: Policy):
    """An edit of a head is what stands in its place in the plain pass; the derivative of a steering is the Jacobian's."""
    model = build(family, torch.float64)
    width = model.config.d_head
    z = attrib.capture(model, IDS, ["blocks.1.attn.hook_z"])[Site(1, "z")].clone()
    z[:, 2 * width : 3 * width] = 0
    if policy == EXACT:
        assert_close(intervene(model, [], IDS, Ablate(Head(1, 2))), attrib.forward(model, IDS, put={"blocks.1.attn.hook_z": z}))
    through = attrib.segment(model, "blocks.1.hook_resid_pre", "blocks.3.hook_resid_post", policy=policy)
    x = attrib.capture(model, IDS, ["blocks.1.hook_resid_pre"])[Site(1, "resid_pre")]

    def steered(size: Tensor) -> Tensor:
        edit = Add("blocks.1.hook_resid_pre", size * DIRECTION)
        return intervene(model, [], IDS, edit, policy=policy, values=["blocks.3.hook_resid_post"])["blocks.3.hook_resid_post"]

    got = torch.func.jvp(steered, (torch.zeros((), dtype=torch.float64),), (torch.ones((), dtype=torch.float64),))[1]
    assert_close(got, torch.func.jvp(through, (x,), (DIRECTION.expand_as(x).contiguous(),))[1])
