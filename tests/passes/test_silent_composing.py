"""The parts for composing: heads, patterns, the walk with something put in, and a dictionary's own functions, against other libraries."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, jvp, vmap

import attrib
from attrib.core.types import LINEAR, InputError, Policy, Site
from tests.models.test_silent_tokens import with_tokenizer, words
from tests.support.builders import (
    ALL_FAMILIES,
    D_MODEL,
    DTYPES,
    Family,
    all_sites,
    build,
    dictionary,
    normal,
    prompt,
    sae,
    tiny,
    transformers_values,
)
from tests.support.exact_transformers import keep_dtype
from tests.support.hooked import hooked
from tests.support.tolerances import COMPONENT, DICTIONARY, FOREIGN, ROUNDING, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TransformerLens 3.9 announces its own 4.0

LENS = ("gpt2", "gpt-neo", "gpt-j", "llama-3.1", "qwen3", "gemma-2")
"""HookedTransformers with and without windows, groups, rotation, caps, norms of heads, norms behind."""
TOKENS = prompt(9, batch=(2,))


def of_layer(model: Any, layer: int) -> Any:
    """The module that a transformers model projects z with, in some layer."""
    names = ("attn.c_proj", "attn.attention.out_proj", "attn.out_proj", "attention.dense", "self_attn.out_proj", "self_attn.dense")
    for name, module in model.named_modules():
        if f".{layer}." in name and name.endswith((*names, "self_attn.o_proj")):
            return module
    raise AssertionError(layer)


# --------------------------------------------------------------------------------------------- heads


@pytest.mark.few
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_patterns_are_what_transformers_gives_out(family: Family, monkeypatch: pytest.MonkeyPatch):
    keep_dtype(monkeypatch)
    original = tiny(family, attn_implementation="eager")
    with torch.no_grad():
        want = original(TOKENS, output_attentions=True, use_cache=False).attentions
    got = attrib.attention_patterns(original, TOKENS)
    assert list(got) == [0, 1, 2, 3]
    for layer, pattern in got.items():
        assert_close(pattern, want[layer], what=layer)
    assert_close(attrib.attention_patterns(original, TOKENS[1], 2)[2], want[2][1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", LENS)
def test_heads_are_what_transformer_lens_caches(family: str, dtype: torch.dtype):
    lens = hooked(family, dtype)
    lens.set_use_attn_result(True)
    with torch.no_grad():
        _, cache = lens.run_with_cache(TOKENS)
    model = attrib.from_transformer_lens(lens)
    patterns, outputs = attrib.attention_patterns(model, TOKENS), attrib.head_outputs(model, TOKENS)
    for layer in range(2):
        heads = attrib.attention_heads(model, layer, cache[f"blocks.{layer}.hook_resid_pre"])
        names = {"query": "hook_rot_q" if lens.cfg.positional_embedding_type == "rotary" else "hook_q", "value": "hook_v", "z": "hook_z"}
        if family == "gpt-j":  # attrib has pairs of the rotation apart, which TransformerLens has side by side
            del names["query"]
        group = model.config.n_heads // model.config.n_kv_heads
        for part, name in names.items():
            want = cache[f"blocks.{layer}.attn.{name}"].transpose(1, 2)
            want = want.repeat_interleave(group, dim=1) if part == "value" and want.shape[1] != model.config.n_heads else want
            assert_close(getattr(heads, part), want, FOREIGN, part)
        for pattern in (heads.pattern, patterns[layer]):
            assert_close(pattern, cache[f"blocks.{layer}.attn.hook_pattern"], FOREIGN)
        want = cache[f"blocks.{layer}.attn.hook_result"].transpose(1, 2)
        if not model.config.post_norm:
            assert_close(outputs[layer], want, FOREIGN)
        else:  # what the norm behind them makes of each
            bare = attrib.attention_heads(model, layer, cache[f"blocks.{layer}.hook_resid_pre"])
            assert_close(bare.z @ attrib.head_weights(model, layer).W_O, want, FOREIGN)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_what_heads_add_is_what_their_own_projection_gives(family: Family, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """One head at a time through transformers' own projection, times what a norm behind it made of the whole."""
    keep_dtype(monkeypatch)
    original = tiny(family, dtype)
    model = attrib.from_hugging_face(original)
    _, values = transformers_values(original, TOKENS)
    got = attrib.head_outputs(model, TOKENS, range(2))
    biases = {}
    for layer, outputs in got.items():
        project, z = of_layer(original, layer), values[Site(layer, "z")].unflatten(-1, (4, -1))
        with torch.no_grad():
            bias = project(torch.zeros_like(z.flatten(-2)))
            whole, end = project(z.flatten(-2)), values[Site(layer, "attn_out")]
            share = end / whole if model.config.post_norm else torch.ones_like(end)
            for head in range(4):
                alone = torch.zeros_like(z)
                alone[..., head, :] = z[..., head, :]
                assert_close(outputs[:, head], (project(alone.flatten(-2)) - bias) * share, FOREIGN, (layer, head))
        biases[layer] = bias * share
        assert_close(outputs.sum(1) + biases[layer], end, FOREIGN)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_weights_of_heads_are_those_that_compute_them(family: Family):
    model = build(family, torch.float64)
    config, x = model.config, normal(2, 7, D_MODEL, dtype=torch.float64)
    weights, heads = attrib.head_weights(model, 1), attrib.attention_heads(model, 1, x)
    normed = attrib.models.transformer.enter(config, model.params.blocks[1].norm_1, x)[..., None, :, :]
    assert_close(normed @ weights.W_V + weights.b_V[:, None], heads.value)
    if config.positions != "rotary":
        scores = (normed @ weights.W_Q + weights.b_Q[:, None]) @ (normed @ weights.W_K + weights.b_K[:, None]).mT
        seen = torch.ones(7, 7).tril() > 0
        assert_close((scores * config.attention_scale).masked_fill(~seen, -torch.inf).softmax(-1), heads.pattern)
    assert weights.W_Q.shape == weights.W_K.shape == (4, D_MODEL, config.d_head)
    assert_close((heads.z @ weights.W_O).sum(1) + weights.b_O, heads.z.transpose(1, 2).flatten(-2) @ attention(model).W_O + weights.b_O)


def attention(model: attrib.Model) -> Any:
    return model.params.blocks[1].attention


@pytest.mark.parametrize("policy", [attrib.EXACT, LINEAR, Policy(norm="frozen")], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_heads_are_pure_functions_under_every_transform(family: Family, policy: Policy):
    model = build(family, torch.float64)
    x = normal(5, D_MODEL, dtype=torch.float64)
    to_z = attrib.segment(model, "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", policy=policy)

    def z(x: Tensor) -> Tensor:
        return attrib.attention_heads(model, 1, x, policy=policy).z.transpose(-3, -2).flatten(-2)

    want = jacrev(to_z)(x)
    assert_close(jacrev(z)(x), want, COMPONENT)
    tangents = normal(3, 5, D_MODEL, dtype=torch.float64, seed=7)
    assert_close(vmap(lambda tangent: jvp(z, (x,), (tangent,))[1])(tangents), torch.einsum("tdsm,nsm->ntd", want, tangents), COMPONENT)
    assert_close(vmap(z)(tangents), to_z(tangents), ROUNDING)

    def pattern(x: Tensor) -> Tensor:
        return attrib.attention_heads(model, 1, x, policy=policy).pattern

    assert jacrev(pattern)(x).abs().max() > 1e-3 or policy.attention == "frozen"
    step = 1e-5 * tangents[0]
    if policy == attrib.EXACT:
        difference = (pattern(x + step) - pattern(x - step)) / 2e-5
        assert_close(jvp(pattern, (x,), (tangents[0],))[1], difference, 1e-6)
    if policy.attention == "frozen":
        assert not jacrev(pattern)(x).any()


# ------------------------------------------------------------------------------------------ what is put


HOOKS = ["hook_resid_pre", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("family", ["gpt2", "gemma-2", "pythia"])
def test_what_is_put_is_what_transformer_lens_hooks_do(family: str, hook: str, dtype: torch.dtype):
    lens = hooked(family, dtype)
    if lens.cfg.parallel_attn_mlp and hook == "hook_resid_mid":
        with pytest.raises(InputError, match=r"put: blocks.1.hook_resid_mid is only a sum"):
            attrib.forward(lens, TOKENS, put={f"blocks.1.{hook}": 0})
        return
    name = f"blocks.1.{hook}"

    def edit(value: Tensor, hook: Any = None) -> Tensor:
        value[:, 3:6] = value[:, 3:6].cos()  # in place, as hooks are written
        return value

    with torch.no_grad():
        want = lens.run_with_hooks(TOKENS, fwd_hooks=[(name, edit)])
    model = attrib.from_transformer_lens(lens)
    assert_close(attrib.forward(model, TOKENS, put={name: edit}), want)
    assert (want - attrib.forward(model, TOKENS)).abs().max() > 1e-2
    cache = {}
    with torch.no_grad():
        hooks = [(name, edit), ("blocks.1.attn.hook_pattern", lambda value, hook: cache.setdefault("pattern", value))]
        lens.run_with_hooks(TOKENS, fwd_hooks=hooks)
    assert_close(attrib.attention_patterns(model, TOKENS, 1, put={name: edit} if hook == "hook_resid_pre" else None)[1],
                 cache["pattern"])  # fmt: skip


@pytest.mark.few
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_function_that_changes_its_value_in_place_changes_no_other(family: Family):
    """In OLMo 2 what enters the MLP is the stream itself."""
    model = build(family, torch.float64)

    def in_place(value: Tensor) -> Tensor:
        return value.mul_(2)

    for site in all_sites():
        if model.config.parallel and site.kind == "resid_mid":
            continue
        x = attrib.embed(model, TOKENS)
        before = x.clone()
        given, apart = (
            dict(attrib.walk(model, "blocks.0.hook_resid_pre", x, put={site: put})) for put in (in_place, lambda value: value * 2)
        )
        assert torch.equal(x, before)
        assert all(torch.equal(given[at], apart[at]) for at in apart)


@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "olmo2"])
def test_a_walk_from_any_site_is_the_segment_from_there(family: Family):
    model = build(family, torch.float64)
    true = attrib.capture(model, TOKENS, [site for site in all_sites() if not (model.config.parallel and site.kind == "resid_mid")])
    for start in true:
        before = "resid_pre" if start.kind in ("z", "attn_out") or model.config.parallel else "resid_mid"
        if model.config.parallel and start.kind in ("mlp_in", "mlp_out"):
            continue  # the stream beside is only a sum
        base = None if start.is_residual else true[Site(start.layer, before)]
        walked = dict(attrib.walk(model, start, true[start], base))
        assert list(walked) == [site for site in all_sites() if site.depth >= start.depth and (site in walked)]
        for site, value in walked.items():
            if site in true and (site.kind != "resid_mid" or not model.config.parallel):
                assert_close(value, true[site], ROUNDING, (start, site))
        changed = normal(*true[start].shape, dtype=torch.float64)
        put = dict(attrib.walk(model, start, true[start], base, put={start: changed}))
        want = dict(attrib.walk(model, start, changed, base))
        assert all(torch.equal(put[site], want[site]) for site in want)


def test_what_is_put_is_differentiated_and_mapped():
    """Steering: the logits' derivative by a vector that is added, and many strengths at once."""
    model, ids = build("gpt2", torch.float64), TOKENS[0]
    site, vector = Site(1, "resid_post"), normal(D_MODEL, dtype=torch.float64)

    def steered(strength: Tensor) -> Tensor:
        return attrib.forward(model, ids, put={site: lambda x: x + strength * vector})

    x = attrib.capture(model, ids, [site])[site]
    rest = attrib.segment(model, site, model.config.last)

    def by_hand(strength: Tensor) -> Tensor:
        return attrib.unembed(model, rest(x + strength * vector))

    at = torch.tensor(0.7, dtype=torch.float64)
    assert_close(jacrev(steered)(at), jacrev(by_hand)(at), COMPONENT)
    assert_close(jvp(steered, (at,), (torch.ones_like(at),))[1], jacrev(by_hand)(at), COMPONENT)
    strengths = torch.linspace(-1, 2, 4, dtype=torch.float64)
    assert_close(vmap(steered)(strengths), torch.stack([by_hand(one) for one in strengths]), ROUNDING)


def test_constants_and_one_place_of_two_names():
    model, ids = build("llama", torch.float64), TOKENS[0]
    mean = normal(D_MODEL, dtype=torch.float32)  # brought to the model's dtype
    for given, want in ((0, torch.zeros(9, D_MODEL)), (mean, mean.expand(9, -1)), (lambda value: 0.5, torch.full((9, D_MODEL), 0.5))):
        found = attrib.capture(model, ids, ["blocks.2.hook_mlp_out"], put={"blocks.2.hook_mlp_out": given})
        assert torch.equal(found[Site(2, "mlp_out")], want.double())
    ends = "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"
    found = [attrib.capture(model, ids, ends, put={end: 1.0}) for end in ends]
    for values in found:
        assert all(torch.equal(value, torch.ones(9, D_MODEL, dtype=torch.float64)) for value in values.values())
    assert torch.equal(*(attrib.forward(model, ids, put={end: 1.0}) for end in ends))


@pytest.mark.parametrize(
    ("put", "words"),
    [
        ({"blocks.9.hook_z": 0}, "put: blocks.9.attn.hook_z is outside"),
        ({"blocks.1.nonsense": 0}, "expected a TransformerLens hook name"),
        ({"blocks.1.hook_z": None}, "put: NoneType for blocks.1.attn.hook_z; expected a floating-point tensor that broadcasts to"),
        ({"blocks.1.hook_z": lambda value: None}, "put: NoneType for blocks.1.attn.hook_z"),
        ({"blocks.1.hook_z": True}, "put: bool for"),
        ({"blocks.1.hook_z": torch.tensor([1])}, "put: torch.int64 for"),
        ({"blocks.1.hook_mlp_out": torch.ones(3, 9, 32)}, r"put: shape \[3, 9, 32\] for blocks.1.hook_mlp_out; expected .* \[9, 32\]"),
        ({"blocks.1.hook_resid_post": 0, "blocks.2.hook_resid_pre": 0}, "are one place; give one of them"),
        ([("blocks.1.hook_z", 0)], "put: a list; expected a dict from sites to tensors or functions"),
    ],
)
def test_what_cannot_be_put_is_one_error(put: Any, words: str):
    with pytest.raises(InputError, match=words):
        attrib.forward(build("gpt2"), TOKENS[0], put=put)


def test_an_edit_that_would_change_nothing_is_one_error():
    model, ids = build("gpt2"), TOKENS[0]
    with pytest.raises(InputError, match=r"put: blocks.2.hook_mlp_out lies behind every site that is captured"):
        attrib.capture(model, ids, ["blocks.2.mlp.hook_in"], put={"blocks.2.hook_mlp_out": 0})
    with pytest.raises(InputError, match=r"put: blocks.3.attn.hook_z lies behind every site"):
        attrib.attention_patterns(model, ids, [2, 3], put={"blocks.3.attn.hook_z": 0})
    x = attrib.embed(model, ids)
    with pytest.raises(InputError, match=r"put: blocks.0.hook_attn_out lies before blocks.0.mlp.hook_in, where the walk begins"):
        attrib.walk(model, "blocks.0.mlp.hook_in", x, x, put={"blocks.0.hook_attn_out": 0})
    for wrong, message in (
        (x[:, :5], r"x: shape \[9, 5\]"),
        (x.double(), "torch.float64 on cpu; expected .* torch.float32"),
    ):
        with pytest.raises(InputError, match=message):
            attrib.walk(model, "blocks.0.hook_resid_pre", wrong)
        with pytest.raises(InputError, match=message):
            attrib.attention_heads(model, 0, wrong)
    for call in (attrib.attention_patterns, attrib.head_outputs):
        with pytest.raises(InputError, match="layer: 4; expected a whole number from 0 to 3"):
            call(model, ids, 4)
    with pytest.raises(InputError, match="layer: -1; expected"):
        attrib.head_weights(model, -1)


# ----------------------------------------------------------------------------------------- dictionaries


SAES = [("standard", {}), ("topk", {}), ("jumprelu", {}), ("gated", {}), ("standard", {"normalize_activations": "layer_norm"})]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), SAES, ids=str)
def test_a_dictionary_s_functions_are_sae_lens_own(kind: str, options: dict[str, Any], dtype: torch.dtype):
    """Given the SAE itself, whatever dtype it is in: it is computed in that of what it meets."""
    given, theirs = sae(kind, **options), sae(kind, **options).to(dtype)
    theirs.dtype = dtype
    if kind == "gated":
        given = theirs  # whose gates are folded in the dtype that it has
    x = 2 * normal(9, D_MODEL, dtype=dtype)
    with torch.no_grad():
        want, recons = theirs.encode(x), theirs(x)
    assert_close(attrib.encode(given, x), want, DICTIONARY)
    sparse = attrib.encode_sparse(given, x)
    assert torch.equal(torch.stack([sparse.position, sparse.latent], 1), want.nonzero())
    assert_close(sparse.value, want[want != 0], DICTIONARY)
    assert_close(attrib.reconstruct(given, x), recons, DICTIONARY)
    leaves = attrib.cut(given, x)
    assert_close(leaves.error, x - recons, DICTIONARY)
    assert torch.equal(leaves.latents.value, sparse.value)
    assert_close(attrib.decode(given, attrib.encode(given, x), leaves.scale) + leaves.error, x, DICTIONARY)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder", "jumprelu_transcoder"])
def test_a_transcoder_s_cut_holds_what_it_leaves_of_the_mlp(kind: str, dtype: torch.dtype):
    given, model = sae(kind, dtype=dtype, site="blocks.1.mlp.hook_in"), build("llama", dtype)
    found = attrib.capture(model, TOKENS[0], ["blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"])
    x, written = found[Site(1, "mlp_in")], found[Site(1, "mlp_out")]
    with torch.no_grad():
        recons = given(x)
    assert_close(attrib.reconstruct(given, x), recons, DICTIONARY)
    assert_close(attrib.cut(given, x, written).error, written - recons, DICTIONARY)
    [replaced] = attrib.replace(model, given).leaves(TOKENS[0]).errors
    assert_close(attrib.cut(given, x, written).error, replaced, ROUNDING)
    with pytest.raises(InputError, match="written: missing"):
        attrib.cut(given, x)
    with pytest.raises(InputError, match=r"written: shape \[3, 32\]; expected \[9, 32\]"):
        attrib.cut(given, x, written[:3])


def test_a_dictionary_s_functions_are_pure_under_every_transform():
    given = dictionary("jumprelu", dtype=torch.float64)
    x, tangent = (2 * normal(4, D_MODEL, dtype=torch.float64, seed=seed) for seed in (4, 5))
    on = (attrib.encode(given, x) != 0).double()
    # reconstruct = Σ over active latents of decoder row ⊗ encoder column
    want = torch.einsum("tl,il,lo->toi", on, given.params.W_enc, given.params.W_dec)
    whole = jacrev(lambda x: attrib.reconstruct(given, x))(x)
    assert_close(torch.stack([whole[t, :, t] for t in range(4)]), want, COMPONENT)
    moved = jvp(lambda x: attrib.reconstruct(given, x), (x,), (tangent,))[1]
    assert_close(moved, torch.einsum("toi,ti->to", want, tangent), COMPONENT)
    many = torch.stack([x, tangent])
    assert_close(vmap(lambda x: attrib.encode(given, x))(many), attrib.encode(given, many), ROUNDING)


def test_names_folders_and_texts_are_taken(tmp_path):
    sae("topk").save_model(tmp_path / "sae")
    tokenizer = words()
    model = with_tokenizer(tokenizer)
    ids = torch.tensor(tokenizer("the cat").input_ids)
    given = attrib.load_dictionary(tmp_path / "sae").to(dtype=torch.float64)
    site = given.site
    x = attrib.capture(model, "the cat", [site])[site]
    for of in (attrib.encode, attrib.reconstruct):
        assert torch.equal(of(str(tmp_path / "sae"), x), of(given, x))
    assert torch.equal(attrib.encode_sparse(tmp_path / "sae", x).value, attrib.encode_sparse(given, x).value)
    assert torch.equal(attrib.cut(tmp_path / "sae", x).error, attrib.cut(given, x).error)
    assert torch.equal(attrib.attention_patterns(model, "the cat", 1)[1], attrib.attention_patterns(model, ids, 1)[1])
    assert attrib.head_outputs(model, ["the cat", "the cat"], [0])[0].shape == (2, 4, len(ids), D_MODEL)
    replaced = attrib.replace(model, tmp_path / "sae")
    leaves = replaced.leaves("the cat")
    assert torch.equal(replaced.run("the cat", leaves.errors), replaced.run(ids, leaves.errors))
    assert torch.equal(leaves.embedded, attrib.embed(model, ids))
    with pytest.raises(InputError, match=r"tokens: shape \[2, \d\]; expected one prompt"):
        replaced.leaves(["the cat", "the cat"])


@pytest.mark.parametrize("of", [attrib.encode, attrib.encode_sparse, attrib.reconstruct, attrib.cut])
def test_a_value_that_does_not_fit_a_dictionary_is_one_error(of: Any):
    given = dictionary("standard")
    with pytest.raises(InputError, match=r"x: shape \[4, 31\], and .* reads vectors of 32; expected \[\.\.\., positions, _\]"):
        of(given, torch.ones(4, 31))
    with pytest.raises(InputError, match=r"^dictionary: got "):
        of(3, torch.ones(4, 32))
    if of in (attrib.encode_sparse, attrib.cut):
        with pytest.raises(InputError, match=r"x: shape \[2, 4, 32\]; expected one prompt, \[positions, d_in\]"):
            of(given, torch.ones(2, 4, 32))


def test_the_wrong_number_of_latents_is_one_error():
    with pytest.raises(InputError, match=r"latents: 79, and .* has 80"):
        attrib.decode(dictionary("standard"), torch.ones(4, 79))


def test_a_dictionary_that_reads_before_the_norm_s_weights_says_so():
    """TransformerLens fires ln2.hook_normalized before them, and attrib's mlp_in is behind them."""
    given = sae("transcoder", site="blocks.1.mlp.hook_in")
    given.cfg.metadata.hook_name = "blocks.1.ln2.hook_normalized"
    raw, model = attrib.from_sae_lens(given), build("gpt2")
    x = attrib.capture(model, TOKENS[0], [raw.site])[raw.site]
    with pytest.warns(attrib.AttribWarning, match=r"reads blocks.1.ln2.hook_normalized, before the norm's weights"):
        off = attrib.reconstruct(raw, x)
    fitted = attrib.dictionaries.fit.fitted(model, raw, "dictionary")
    right = attrib.reconstruct(fitted, x)
    norm = model.params.blocks[1].norm_2
    with torch.no_grad():
        assert_close(right, given((x - norm.bias) / norm.weight))
    assert (off - right).abs().max() > 1e-2
