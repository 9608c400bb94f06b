"""The transformer as a pure function: against transformers' own models, against itself, and under torch.func.

The oracle is transformers. Where a test needs derivatives under a policy, the oracle is a second forward
pass, written head by head below, that takes attention patterns, norm denominators and MLP outputs as constants.
"""

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils import _pytree as pytree

import attrib
from attrib.core.fingerprints import fingerprint
from attrib.core.types import EXACT, LINEAR, SITE_KINDS, InputError, Policy, Site, UnsupportedError
from attrib.engine.segment import block, segment
from attrib.models.transformer import ModelConfig, Norm, Params, embed, forward, mlp, unembed, walk, width
from attrib.passes.capture import capture
from tests.support.builders import (
    D_MODEL,
    D_VOCAB,
    DTYPES,
    FAMILIES,
    N_CTX,
    N_LAYERS,
    VARIANTS,
    Family,
    all_sites,
    build,
    normal,
    prompt,
    tiny,
    tiny_variant,
    transformers_values,
)
from tests.support.tolerances import FINITE_DIFFERENCE, assert_close

pytestmark = pytest.mark.usefixtures("exact_rms_norm")

POLICIES = [Policy(*parts) for parts in itertools.product(("exact", "frozen"), repeat=3)]

# ------------------------------------------------------------------------------------- against transformers


@pytest.mark.few
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_every_site_are_transformers_own(variant: str, dtype: torch.dtype):
    foreign = tiny_variant(variant, dtype)
    model = attrib.from_hugging_face(foreign)
    tokens = prompt(20, batch=(2,))
    want_logits, want = transformers_values(foreign, tokens)
    got = capture(model, tokens, all_sites())
    assert got.keys() == set(all_sites())
    assert len(want) == len(all_sites())
    for site in all_sites():
        assert_close(got[site], want[site], what=site)
    assert_close(forward(model, tokens), want_logits, what="logits")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tiny_models_are_far_from_linear(family: Family):
    """Random weights that made attention uniform or norms constant would let mistakes pass everywhere."""
    model, tokens = build(family, torch.float64), prompt(12)
    x = capture(model, tokens, ["blocks.1.hook_resid_pre"])[Site(1, "resid_pre")]
    f = segment(model, "blocks.1.hook_resid_pre", model.config.last)
    exact = jvp(f, (x,), (x,))[1]
    linear = jvp(segment(model, "blocks.1.hook_resid_pre", model.config.last, policy=LINEAR), (x,), (x,))[1]
    assert (exact - linear).norm() > 0.3 * linear.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_parameters_are_transformers_own(family: Family):
    """torch.func.grad over the parameters as a pytree, against a backward pass through the transformers model."""
    dtype, tokens = torch.float64, prompt(9)
    foreign = tiny(family, dtype, tie_word_embeddings=False)
    model = attrib.from_hugging_face(foreign)

    def loss(params: Params) -> Tensor:
        return forward(replace(model, params=params), tokens).square().mean()

    got = grad(loss)(model.params)
    foreign(tokens[None]).logits.square().mean().backward()
    if family == "gpt2":
        layer = foreign.transformer.h[2]
        pairs = [
            (got.W_E, foreign.transformer.wte.weight),
            (got.W_pos, foreign.transformer.wpe.weight),
            (got.blocks[2].norm_1.bias, layer.ln_1.bias),
            (got.blocks[2].mlp.W_in, layer.mlp.c_fc.weight),
            (got.blocks[2].attention.W_O, layer.attn.c_proj.weight),
            (torch.cat([getattr(got.blocks[2].attention, f"W_{part}") for part in "QKV"], 1), layer.attn.c_attn.weight),
        ]
    else:
        layer = foreign.model.layers[2]
        pairs = [
            (got.W_E, foreign.model.embed_tokens.weight),
            (got.blocks[2].norm_2.weight, layer.post_attention_layernorm.weight),
            (got.blocks[2].attention.W_Q.T, layer.self_attn.q_proj.weight),
            (got.blocks[2].attention.W_K.T, layer.self_attn.k_proj.weight),
            (got.blocks[2].attention.W_V.T, layer.self_attn.v_proj.weight),
            (got.blocks[2].mlp.W_gate.T, layer.mlp.gate_proj.weight),
            (got.blocks[2].mlp.W_in.T, layer.mlp.up_proj.weight),
        ]
    pairs.append((got.W_U.T, foreign.lm_head.weight))
    for ours, theirs in pairs:
        assert theirs.grad.abs().max() > 1e-4
        assert_close(ours / theirs.grad.abs().max(), theirs.grad / theirs.grad.abs().max())


# ------------------------------------------------------------------------------------------ against itself


def base_of(site: Site, values: dict[Site, Tensor]) -> Tensor | None:
    """The stream that a component at `site` adds to."""
    if site.is_residual:
        return None
    return values[Site(site.layer, "resid_mid" if site.kind.startswith("mlp") else "resid_pre")]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_segment_ends_at_the_captured_value(family: Family):
    model, tokens = build(family, torch.float64), prompt(5)
    values = capture(model, tokens, all_sites())
    # two layers hold every pair of kinds, within a layer and from one to the next
    ends = [site for site in all_sites() if site.layer in (1, 2)]
    pairs = [(a, b) for a in ends for b in ends if a.depth <= b.depth]
    assert len(pairs) == 15 * 14 // 2 + 1  # blocks.1.resid_post and blocks.2.resid_pre come before each other
    for a, b in pairs:
        assert_close(segment(model, a, b)(values[a], base_of(a, values)), values[b], what=f"{a} to {b}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_component_is_moved_alone_and_its_base_stays(family: Family):
    """From a component's output the stream is base + output, so a change of one is worth a change of the other."""
    model, tokens = build(family, torch.float64), prompt(5)
    values = capture(model, tokens, all_sites())
    delta = normal(5, D_MODEL, dtype=torch.float64)
    for kind in ("attn_out", "mlp_out"):
        a = Site(1, kind)
        f = segment(model, a, model.config.last)
        assert_close(f(values[a] + delta, base_of(a, values)), f(values[a], base_of(a, values) + delta), what=a)


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_compose(family: Family):
    model, tokens = build(family, torch.float64), prompt(8)
    x = embed(model, tokens)
    for layer in range(N_LAYERS):
        x = block(model, layer, x)
    whole = forward(model, tokens)
    assert whole.shape == (8, D_VOCAB)
    assert_close(unembed(model, x), whole)
    half = segment(model, "blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid")(embed(model, tokens))
    assert_close(segment(model, "blocks.1.hook_resid_mid", "blocks.3.hook_resid_post")(half), x)


@pytest.mark.parametrize("family", FAMILIES)
def test_walk_goes_in_order_and_gives_the_right_widths(family: Family):
    model = build(family)
    steps = list(walk(model, Site(0, "resid_pre"), embed(model, prompt(3))))
    assert [site for site, _ in steps] == all_sites()
    assert [site.depth for site, _ in steps] == sorted(site.depth for site, _ in steps)
    assert all(value.shape == (3, width(model.config, site)) for site, value in steps)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,)])
def test_batch_dimensions_are_independent(family: Family, batch: tuple[int, ...]):
    model, tokens = build(family, torch.float64), prompt(6, batch=batch)
    got = capture(model, tokens, all_sites())
    alone = [capture(model, row, all_sites()) for row in tokens.reshape(-1, 6)]
    for site in all_sites():
        want = (
            torch.stack([values[site] for values in alone]) if alone else torch.zeros(0, 6, width(model.config, site), dtype=torch.float64)
        )
        assert_close(got[site], want.reshape(*batch, 6, -1) if alone else want, what=site)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_of_a_prompt_is_a_prompt(family: Family):
    model, tokens = build(family, torch.float64), prompt(15)
    whole = capture(model, tokens, all_sites())
    for end in (1, 7):
        for site, value in capture(model, tokens[:end], all_sites()).items():
            assert_close(value, whole[site][:end], what=site)


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_goes_no_further_than_asked(family: Family):
    model, tokens = build(family), prompt(4)
    stump = replace(model, params=model.params._replace(blocks=model.params.blocks[:2]))  # deeper blocks would be an IndexError
    assert capture(stump, tokens, [Site(1, "mlp_out"), Site(0, "z")]).keys() == {Site(1, "mlp_out"), Site(0, "z")}
    assert capture(stump, tokens, [Site(1, "resid_post"), Site(2, "resid_pre")]).keys() == {Site(1, "resid_post"), Site(2, "resid_pre")}
    assert capture(stump, tokens, []) == {}


# ------------------------------------------------------------------------------------------- derivatives

SEGMENTS = [
    ("blocks.1.hook_resid_pre", "blocks.3.hook_resid_mid"),
    ("blocks.1.attn.hook_z", "blocks.2.mlp.hook_in"),
    ("blocks.2.mlp.hook_in", "blocks.3.attn.hook_z"),
]


def piece(family: Family, ends: tuple[str, str], policy: Policy = EXACT, positions: int = 4) -> tuple[Any, Tensor]:
    """A segment of one argument, and its primal."""
    model, tokens = build(family, torch.float64), prompt(positions)
    values = capture(model, tokens, all_sites())
    a = Site.parse(ends[0])
    run, base = segment(model, *ends, policy=policy), base_of(a, values)
    return (lambda x: run(x, base)), values[a]


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ends", SEGMENTS)
def test_transforms_agree(family: Family, ends: tuple[str, str]):
    f, x = piece(family, ends)
    jacobian = jacrev(f)(x)  # [positions, width of b, positions, width of a]
    assert jacobian.shape == (*f(x).shape, *x.shape)
    assert_close(jacfwd(f)(x), jacobian, what="jacfwd")
    assert_close(jacrev(f, chunk_size=7)(x), jacobian, what="jacrev in chunks")
    tangent, cotangent = normal(*x.shape, dtype=x.dtype), normal(*f(x).shape, dtype=x.dtype, seed=5)
    value, moved = jvp(f, (x,), (tangent,))
    assert_close(value, f(x), what="primal")
    assert_close(moved, torch.einsum("pjqi,qi->pj", jacobian, tangent), what="jvp")
    assert_close(vjp(f, x)[1](cotangent)[0], torch.einsum("pjqi,pj->qi", jacobian, cotangent), what="vjp")
    assert_close(grad(lambda x: (f(x) * cotangent).sum())(x), torch.einsum("pjqi,pj->qi", jacobian, cotangent), what="grad")
    step = 1e-5
    slope = (f(x + step * tangent) - f(x - step * tangent)) / (2 * step)
    assert_close(moved, slope, FINITE_DIFFERENCE, what="finite differences")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [EXACT, LINEAR])
def test_vmap_is_a_loop(family: Family, policy: Policy):
    f, x = piece(family, SEGMENTS[0], policy)
    many = x + 0.1 * normal(3, *x.shape, dtype=x.dtype)
    assert_close(vmap(f)(many), torch.stack([f(one) for one in many]))
    assert_close(vmap(jacrev(f))(many[:2]), torch.stack([jacrev(f)(one) for one in many[:2]]), what="vmap of jacrev")
    tangents = normal(3, *x.shape, dtype=x.dtype, seed=6)
    assert_close(
        vmap(lambda t: jvp(f, (x,), (t,))[1])(tangents), torch.stack([jvp(f, (x,), (t,))[1] for t in tangents]), what="vmap of jvp"
    )
    cotangents = normal(3, *f(x).shape, dtype=x.dtype, seed=7)
    assert_close(vmap(lambda c: vjp(f, x)[1](c)[0])(cotangents), torch.stack([vjp(f, x)[1](c)[0] for c in cotangents]), what="vmap of vjp")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [EXACT, LINEAR])
def test_jacobians_are_causal(family: Family, policy: Policy):
    f, x = piece(family, SEGMENTS[0], policy)
    size = jacrev(f)(x).abs().amax((1, 3))  # [target position, source position]
    assert (size.triu(1) == 0).all()
    assert (size[torch.ones_like(size).tril() == 1] > 0).all()


# ---------------------------------------------------------------------------------------------- policies


class Constants(NamedTuple):
    """What the policies freeze, by layer, at the primal point."""

    pattern: list[Tensor]  # [heads, positions, positions]
    denominator: list[Tensor]  # two of each layer, [positions, 1]
    mlp_out: list[Tensor]


def head_by_head(model: attrib.Model, layers: range, x: Tensor, policy: Policy, held: Constants | None) -> tuple[Tensor, Constants]:
    """`resid_post` of the last of `layers` from `resid_pre` of the first, with constants in place of what is frozen."""
    config, made = model.config, Constants([], [], [])

    def norm(weights: Norm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True) if config.norm == "layer" else x
        made.denominator.append(torch.sqrt((centred**2).sum(-1, keepdim=True) / config.d_model + config.eps))
        if held is not None and policy.norm == "frozen":
            made.denominator[-1] = held.denominator[len(made.denominator) - 1]
        return centred / made.denominator[-1] * weights.weight + weights.bias

    def turn(x: Tensor) -> Tensor:
        if config.positions == "learned":
            return x
        half = config.d_head // 2
        cos, sin = model.params.rotary_cos[0, : len(x), :half], model.params.rotary_sin[0, : len(x), :half]
        return torch.cat([x[:, :half] * cos - x[:, half:] * sin, x[:, half:] * cos + x[:, :half] * sin], 1)

    for layer in layers:
        p = model.params.blocks[layer]
        normed, patterns, z = norm(p.norm_1, x), [], []
        for head in range(config.n_heads):
            mine = slice(head * config.d_head, (head + 1) * config.d_head)
            kv_head = head * config.n_kv_heads // config.n_heads
            shared = slice(kv_head * config.d_head, (kv_head + 1) * config.d_head)
            q = turn(normed @ p.attention.W_Q[:, mine] + p.attention.b_Q[mine])
            k = turn(normed @ p.attention.W_K[:, shared] + p.attention.b_K[shared])
            scores = q @ k.T * config.attention_scale
            patterns.append(torch.exp(scores - scores.amax(-1, keepdim=True)).tril())
            patterns[-1] = patterns[-1] / patterns[-1].sum(-1, keepdim=True)
            if held is not None and policy.attention == "frozen":
                patterns[-1] = held.pattern[layer - layers[0]][head]
            z.append(patterns[-1] @ (normed @ p.attention.W_V[:, shared] + p.attention.b_V[shared]))
        made.pattern.append(torch.stack(patterns))
        x = x + torch.cat(z, 1) @ p.attention.W_O + p.attention.b_O
        normed = norm(p.norm_2, x)
        act = {
            "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
            "silu": lambda x: x * torch.sigmoid(x),
        }[config.activation]
        hidden = normed @ p.mlp.W_in + p.mlp.b_in
        hidden = act(normed @ p.mlp.W_gate + p.mlp.b_gate) * hidden if config.gated else act(hidden)
        made.mlp_out.append(hidden @ p.mlp.W_out + p.mlp.b_out)
        if held is not None and policy.mlp == "frozen":
            made.mlp_out[-1] = held.mlp_out[layer - layers[0]]
        x = x + made.mlp_out[-1]
    return x, made


@pytest.mark.few
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES, ids="-".join)
def test_a_policy_differentiates_what_it_says(family: Family, policy: Policy):
    f, x = piece(family, ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"), policy)
    model = build(family, torch.float64)
    value, constants = head_by_head(model, range(1, 3), x, EXACT, None)
    assert_close(f(x), value, what="a policy does not change values")
    want = jacrev(lambda x: head_by_head(model, range(1, 3), x, policy, constants)[0])(x)
    assert_close(jacrev(f)(x), want)
    assert_close(jacfwd(f)(x), want)


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_attention_norm_and_mlp_are_affine(family: Family):
    """With all three frozen the derivative is a constant: what a circuit tracer multiplies."""
    policy = Policy("frozen", "frozen", "frozen")
    model, x = build(family, torch.float64), normal(4, D_MODEL, dtype=torch.float64)
    f = segment(model, "blocks.2.hook_resid_mid", "blocks.2.hook_resid_post", policy=policy)
    identity = torch.eye(4 * D_MODEL, dtype=torch.float64).reshape(4, D_MODEL, 4, D_MODEL)
    assert_close(jacrev(f)(x), identity, what="past a frozen MLP")
    through = segment(model, "blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out", policy=policy)
    assert (jacrev(lambda x: through(x, x))(x) == 0).all()
    assert not (mlp(model, 2, x, policy) == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_unembed_under_a_frozen_norm(family: Family):
    model, x = build(family, torch.float64), normal(3, D_MODEL, dtype=torch.float64)
    got = jacrev(lambda x: unembed(model, x, policy=LINEAR))(x)
    centred = x - x.mean(-1, keepdim=True) if model.config.norm == "layer" else x
    denominator = (centred.square().mean(-1) + model.config.eps).sqrt()
    weights = model.params.norm_final.weight[:, None] * model.params.W_U
    centre = torch.eye(D_MODEL, dtype=x.dtype) - (1 / D_MODEL if model.config.norm == "layer" else 0)
    for position in range(3):
        assert_close(got[position, :, position], (centre @ weights).T / denominator[position])
    assert not torch.allclose(got, jacrev(lambda x: unembed(model, x))(x))


# ----------------------------------------------------------------------------------- purity, errors, values


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_written(family: Family):
    model, tokens = build(family, torch.float64), prompt(6)
    leaves = pytree.tree_leaves(model.params)
    versions, copies, flags = [leaf._version for leaf in leaves], [leaf.clone() for leaf in leaves], [leaf.requires_grad for leaf in leaves]
    x = capture(model, tokens, ["blocks.1.hook_resid_pre"])[Site(1, "resid_pre")]
    kept = x.clone()
    for policy in (EXACT, LINEAR):
        jacrev(segment(model, "blocks.1.hook_resid_pre", "blocks.2.attn.hook_z", policy=policy))(x)
    forward(model, tokens)
    grad(lambda params: forward(replace(model, params=params), tokens).sum())(model.params)
    assert [leaf._version for leaf in leaves] == versions
    assert [leaf.requires_grad for leaf in leaves] == flags
    assert all(torch.equal(leaf, copy) for leaf, copy in zip(leaves, copies, strict=True))
    assert x._version == 0
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            "blocks.9.hook_resid_pre",
            "blocks.9.hook_resid_post",
            r"a: blocks\.9\.hook_resid_pre is outside tiny-gpt2, which has layers 0 to 3",
        ),
        ("blocks.0.hook_resid_pre", "blocks.4.hook_resid_pre", r"b: blocks\.4\.hook_resid_pre is outside tiny-gpt2"),
        (
            "blocks.2.hook_resid_pre",
            "blocks.1.hook_resid_mid",
            r"b: blocks\.1\.hook_resid_mid comes before a: blocks\.2\.hook_resid_pre.*Swap",
        ),
        ("blocks.1.hook_mlp_out", "blocks.1.mlp.hook_in", "comes before"),
        ("blocks.1.hook_q", "blocks.1.mlp.hook_in", r"blocks\.1\.hook_q.*expected a TransformerLens hook name"),
    ],
)
def test_segments_that_cannot_be(a: str, b: str, message: str):
    with pytest.raises(InputError, match=message):
        segment(build("gpt2"), a, b)


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_a_base_is_wanted_where_a_component_adds_to_it(kind: str):
    model, site = build("llama"), Site(1, kind)
    x, stream = normal(3, width(model.config, site)), normal(3, D_MODEL)
    run = segment(model, site, model.config.last)
    base, message = (stream, "base: not wanted") if site.is_residual else (None, "base: missing")
    with pytest.raises(InputError, match=rf"{message} for a path that starts at blocks\.1"):
        run(x, base)


def test_sites_and_prompts_that_the_model_has_not():
    model = build("gpt2")
    with pytest.raises(InputError, match=r"sites: blocks\.7\.hook_mlp_out is outside tiny-gpt2, which has layers 0 to 3"):
        capture(model, prompt(3), ["blocks.0.hook_resid_pre", "blocks.7.hook_mlp_out"])
    for family in FAMILIES:
        forward(build(family), prompt(N_CTX))
        with pytest.raises(InputError, match=rf"tokens: {N_CTX + 1} positions, and tiny-{family} has {N_CTX}"):
            forward(build(family), prompt(N_CTX + 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_dtype_device_and_fingerprint(family: Family):
    single, double = build(family), build(family, torch.float64)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert single.to(dtype=torch.float32) is single
    assert single.to(device="cpu") is single
    wide = single.to(dtype=torch.float64)
    assert {leaf.dtype for leaf in pytree.tree_leaves(wide.params)} == {torch.float64}
    assert_close(forward(wide, prompt(7)).float(), forward(single, prompt(7)))
    assert fingerprint(single.params, single.config) == single.fingerprint
    assert replace(single, config=replace(single.config, eps=0.1)).fingerprint != single.fingerprint, "the same weights in another model"
    assert len({single.fingerprint, double.fingerprint, build(family, seed=9).fingerprint}) == 3
    assert fingerprint([torch.zeros(2, 3)]) != fingerprint([torch.zeros(3, 2)])
    W_U = single.params.W_U.clone()
    W_U[3, 5] = torch.nextafter(W_U[3, 5], torch.tensor(9.0))
    assert fingerprint(single.params._replace(W_U=W_U), single.config) != single.fingerprint


def test_the_config_says_what_the_model_is():
    gpt2, llama = build("gpt2").config, build("llama").config
    assert gpt2 == ModelConfig(4, 32, 4, 4, 8, 128, 60, 64, "layer", 1e-5, "gelu_tanh", False, "learned", 8**-0.5)
    assert llama == ModelConfig(4, 32, 4, 2, 10, 48, 60, 64, "rms", 1e-6, "silu", True, "rotary", 10**-0.5)
    assert gpt2.last == Site(3, "resid_post")


WORDS = {"norm": "'layer', 'rms'", "activation": "'relu', 'gelu'", "positions": "'learned', 'rotary'", "qk_norm": "'none', 'head'"}


@pytest.mark.parametrize(("field", "words"), WORDS.items(), ids=WORDS)
def test_a_word_that_no_code_knows_is_refused_by_name(field: str, words: str):
    """Most code asks for one word of a field and takes any other for the rest: a norm of an unknown kind would be an RMSNorm."""
    config = replace(build("gpt2").config)
    object.__setattr__(config, field, "another")  # past the hook of the tests, which would see the word before attrib does
    with pytest.raises(UnsupportedError, match=rf"^{field}: 'another'; attrib computes {words}"):
        config.__post_init__()
