"""Every component's written pull and push equal torch.func's vjp and jvp, and are adjoint to each other."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from attrib.core.types import Policy
from attrib.engine.blocks.attention import (
    AttentionPoint,
    attention_point,
    attention_pull,
    attention_pull_at,
    attention_push,
    attention_push_at,
    attention_weights,
    turn,
)
from attrib.engine.blocks.norm_mlp import (
    NormPoint,
    fold_norm,
    mlp_fold,
    mlp_point,
    mlp_pull,
    mlp_push,
    mlp_weights,
    norm_map,
    norm_point,
    norm_pull,
    norm_push,
)
from attrib.models.transformer import HeadNorms, Model, NormKind, Positions, attend, enter, mlp, normalise, rotate
from tests.support import builders
from tests.support.builders import DTYPES, normal
from tests.support.covering import each_pair
from tests.support.tolerances import COMPONENT, assert_close

POSITIONS, ROWS, LAYER = 9, 5, 1
PARTIAL = [0, 1, 2, 5, 6, 7]
"""Columns of a rotary table that turns six numbers of a head's ten."""

models = pytest.mark.parametrize("name", ["gpt2", "llama", "llama-no-groups", "llama-partly-rotary"])
CAUSAL_MODELS = ["gpt2", "llama", "llama-no-groups", "llama-partly-rotary", "mistral", "qwen3", "gemma2", "gemma3_text", "olmo2"]
"""Beside these: a window, norms of each head, caps and a window, both with norms, norms of all heads together."""
WITHOUT_MASKS = [f"{name} without masks" for name in ("gpt2", "llama", "qwen3", "gemma2", "olmo2")]
ATTENTION_MODELS = [*CAUSAL_MODELS, *WITHOUT_MASKS, "gpt2 without norms", "gpt2 without masks and norms"]


def test_every_word_of_norms_and_positions_is_among_them():
    configs = [model_of(name, torch.float64).config for name in ATTENTION_MODELS]
    for field, words in (("norm", NormKind), ("positions", Positions), ("qk_norm", HeadNorms)):
        assert {getattr(config, field) for config in configs} == set(get_args(words)), field


dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
BLOCKS = [1, 4, 64]
TREATMENTS = ["exact", "frozen"]
norms = pytest.mark.parametrize("norm", TREATMENTS, ids="norm {}".format)


@lru_cache
def model_of(name: str, dtype: torch.dtype) -> Model:
    """Learned positions with every head its own key; rotary ones with grouped queries, without, and on a part of a head."""
    of, _, without = name.partition(" without ")
    family, options = builders.ALL_VARIANTS[{"llama-partly-rotary": "llama"}.get(of, of)]
    model = builders.bare(replace(builders.attrib_model(family, dtype, **options), name=name), without)
    if name == "llama-partly-rotary":
        p = model.params
        model = replace(model, params=p._replace(rotary_cos=p.rotary_cos[..., PARTIAL], rotary_sin=p.rotary_sin[..., PARTIAL]))
    return model


def stream(model: Model, positions: int = POSITIONS, seed: int = 2) -> Tensor:
    return 2 * normal(positions, model.config.d_model, dtype=model.dtype, seed=seed) + 0.5


def rows(width: int, dtype: torch.dtype, positions: int = POSITIONS, seed: int = 5) -> Tensor:
    return normal(positions, ROWS, width, dtype=dtype, seed=seed)


def at(position: int, value: Tensor) -> Tensor:
    """Rows [rows, width] at one position of all."""
    out = value.new_zeros(POSITIONS, *value.shape)
    out[position] = value
    return out


def pulled(function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    """Rows [positions, rows, width] by torch.func.vjp, one by one."""
    _, back = vjp(function, x)
    return vmap(lambda row: back(row)[0], in_dims=1, out_dims=1)(g)


def pushed(function: Callable[[Tensor], Tensor], x: Tensor, tangents: Tensor) -> Tensor:
    """The same by torch.func.jvp."""
    return vmap(lambda row: jvp(function, (x,), (row,))[1], in_dims=1, out_dims=1)(tangents)


def assert_adjoint(g: Tensor, pushed: Tensor, pulled: Tensor, x: Tensor) -> None:
    """⟨g, push x⟩ = ⟨pull g, x⟩, for every pair of rows."""
    assert_close(torch.einsum("tnw,tmw->nm", g, pushed), torch.einsum("tnw,tmw->nm", pulled, x), COMPONENT, "adjoint")


# ------------------------------------------------------------------------------------------ norms


@models
@dtypes
@norms
def test_norms(name: str, dtype: torch.dtype, norm: str):
    model, policy = model_of(name, dtype), Policy(norm=norm)
    config, parameters = model.config, model.params.blocks[LAYER].norm_2
    x, g = stream(model), rows(model.config.d_model, dtype)
    point = norm_point(config, x)
    function = partial(normalise, config, parameters, policy=policy)
    before = g.clone()
    assert_close(norm_pull(config, parameters, point, g, policy), pulled(function, x, g), COMPONENT, "norm_pull")
    assert_close(norm_push(config, parameters, point, g, policy), pushed(function, x, g), COMPONENT, "norm_push")
    assert torch.equal(g, before)
    W = normal(config.d_model, 7, dtype=dtype, seed=8)
    folded = fold_norm(config, parameters, W)
    cotangents = rows(7, dtype)
    up, down = norm_map(point, g.clone(), policy) @ folded, norm_map(point, cotangents @ folded.T, policy)
    assert_close(down, pulled(lambda x: function(x) @ W, x, cotangents), COMPONENT, "pull through the folded matrix")
    assert_close(up, pushed(lambda x: function(x) @ W, x, g), COMPONENT, "push through the folded matrix")
    assert_adjoint(cotangents, up, down, g)


@models
@dtypes
def test_a_folded_matrix_reads_unit(name: str, dtype: torch.dtype):
    model = model_of(name, dtype)
    config, parameters, x = model.config, model.params.blocks[LAYER].norm_1, stream(model)
    W = normal(config.d_model, 7, dtype=dtype, seed=8)
    constant = parameters.bias @ W
    got = norm_point(config, x).unit @ fold_norm(config, parameters, W) + constant
    assert_close(got, normalise(config, parameters, x) @ W, COMPONENT)


# -------------------------------------------------------------------------------------- attention


@dtypes
@pytest.mark.parametrize("width", [10, 6], ids=["whole", "part"])
def test_rotating_back_is_the_adjoint_of_rotating(dtype: torch.dtype, width: int):
    p = model_of("llama" if width == 10 else "llama-partly-rotary", dtype).params
    cos, sin = p.rotary_cos[0, :POSITIONS, None], p.rotary_sin[0, :POSITIONS, None]
    assert cos.shape[-1] == width
    x, y = rows(10, dtype), rows(10, dtype, seed=6)
    assert_close(turn(x, cos, sin, back=False), rotate(x, cos, sin), COMPONENT)
    assert_close((y * rotate(x, cos, sin)).sum((0, 2)), (turn(y, cos, sin, back=True) * x).sum((0, 2)), COMPONENT)
    out = torch.full_like(y, torch.nan)
    assert turn(y, cos, sin, True, out=out) is out
    assert_close(out, turn(y, cos, sin, True), COMPONENT)
    one = y[0, 0]  # one row against many tables
    assert_close(turn(one, cos[:, 0], sin[:, 0], True), turn(one.expand(POSITIONS, -1), cos[:, 0], sin[:, 0], True), COMPONENT)


class Case:
    """A layer's attention at a primal: the function x → z by attrib.models.transformer, and the written maps between the same ends."""

    def __init__(self, name: str, dtype: torch.dtype, policy: Policy) -> None:
        self.model, self.policy = model_of(name, dtype), policy
        config, block = self.model.config, self.model.params.blocks[LAYER]
        self.x, self.scale, self.causal = stream(self.model), config.attention_scale, config.causal
        self.point: AttentionPoint = attention_point(self.model, LAYER, self.x)
        none = NormPoint(torch.zeros_like(self.x), torch.ones_like(self.x[:, :1]))
        self.norm = norm_point(config, self.x) if config.pre_norm else none
        self.weights = attention_weights(self.model, LAYER, policy)
        self.d_model, self.d_q, self.d_heads = config.d_model, config.n_heads * config.d_head, self.weights.W_in.shape[1]
        self.function = lambda x: attend(self.model, LAYER, enter(config, block.norm_1, x, policy), policy)
        self.to_stream = lambda x: self.function(x) @ block.attention.W_O

    def pull(self, o: Tensor) -> Tensor:
        heads = attention_pull(self.point, o, self.scale, self.policy, causal=self.causal)
        return norm_map(self.norm.at(slice(0, len(o))), heads @ self.weights.W_in.T, self.policy)

    def push(self, x: Tensor) -> Tensor:
        unit = norm_map(self.norm.at(slice(POSITIONS - len(x), None)), x.clone(), self.policy)
        return attention_push(self.point, unit @ self.weights.W_in, self.scale, self.policy, causal=self.causal)


@pytest.fixture
def case(name: str, dtype: torch.dtype, attention: str, norm: str) -> Case:
    return Case(name, dtype, Policy(attention, norm))


@pytest.mark.few
@each_pair(name=ATTENTION_MODELS, dtype=DTYPES, attention=TREATMENTS, norm=TREATMENTS, block=BLOCKS)
def test_attention(case: Case, block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("attrib.engine.blocks.attention.QUERY_BLOCK", block)
    dtype = case.x.dtype
    o, x = rows(case.d_q, dtype), rows(case.d_model, dtype, seed=6)
    down, up = case.pull(o), case.push(x)
    assert_close(down, pulled(case.function, case.x, o), COMPONENT, "pull")
    assert_close(up, pushed(case.function, case.x, x), COMPONENT, "push")
    assert_adjoint(o, up, down, x)
    heads = rows(case.d_heads, dtype, seed=7)
    in_heads = attention_pull(case.point, o, case.scale, case.policy, causal=case.causal)
    assert_adjoint(o, attention_push(case.point, heads, case.scale, case.policy, causal=case.causal), in_heads, heads)


@each_pair(name=CAUSAL_MODELS, dtype=DTYPES, attention=TREATMENTS, norm=["exact"], block=BLOCKS, count=[1, 6])
def test_attention_on_a_prefix_and_a_suffix(case: Case, block: int, count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("attrib.engine.blocks.attention.QUERY_BLOCK", block)
    o, x = rows(case.d_q, case.x.dtype), rows(case.d_model, case.x.dtype, seed=6)
    o[count:], x[:-count] = 0, 0
    whole = pulled(case.function, case.x, o)
    assert not whole[count:].any()  # what is not computed is zero
    assert_close(case.pull(o[:count]), whole[:count], COMPONENT, "pull")
    whole = pushed(case.function, case.x, x)
    assert not whole[:-count].any()
    assert_close(case.push(x[-count:]), whole[-count:], COMPONENT, "push")


@each_pair(name=ATTENTION_MODELS, dtype=DTYPES, attention=TREATMENTS, norm=TREATMENTS, position=[0, 5, POSITIONS - 1])
def test_attention_of_rows_at_one_position(case: Case, position: int):
    g, x = normal(ROWS, case.d_model, dtype=case.x.dtype, seed=5), normal(ROWS, case.d_model, dtype=case.x.dtype, seed=6)
    o = g @ case.weights.W_out.T
    seen, seeing = case.model.config.seen(position, POSITIONS), case.model.config.seeing(position, POSITIONS)
    down = attention_pull_at(case.point, case.weights, o, position, case.scale, case.policy, causal=case.causal)
    assert len(down) == len(seen) == (position + 1 if case.causal else POSITIONS)
    down = norm_map(case.norm.at(slice(0, seen.stop)), down, case.policy)
    assert_close(down, pulled(case.to_stream, case.x, at(position, g))[: seen.stop], COMPONENT, "pull")
    unit = norm_map(case.norm.at(slice(position, position + 1)), x[None].clone(), case.policy)[0]
    up = attention_push_at(case.point, case.weights, unit @ case.weights.W_in, position, case.scale, case.policy, causal=case.causal)
    assert len(up) == len(seeing) == (POSITIONS - position if case.causal else POSITIONS)
    assert_close(up, pushed(case.to_stream, case.x, at(position, x))[seeing.start :], COMPONENT, "push")


@each_pair(name=CAUSAL_MODELS, dtype=[torch.float64], attention=TREATMENTS, norm=["exact"])
def test_what_is_written_into_a_given_tensor_is_what_is_returned(case: Case):
    def nan(positions: int, width: int) -> Tensor:
        return torch.full((positions, ROWS, width), float("nan"), dtype=case.x.dtype)

    o, heads = rows(case.d_q, case.x.dtype), rows(case.d_heads, case.x.dtype, seed=6)
    for call, out in (
        (lambda **given: attention_pull(case.point, o, case.scale, case.policy, **given), nan(POSITIONS, case.d_heads)),
        (lambda **given: attention_push(case.point, heads, case.scale, case.policy, **given), nan(POSITIONS, case.d_q)),
        (lambda **given: attention_pull_at(case.point, case.weights, o[3], 3, case.scale, case.policy, **given), nan(4, case.d_model)),
        (lambda **given: attention_push_at(case.point, case.weights, heads[3], 3, case.scale, case.policy, **given), nan(6, case.d_model)),
    ):
        want = call()
        assert call(out=out) is out
        assert torch.equal(out, want)


# -------------------------------------------------------------------------------------------- MLP


@lru_cache
def mlp_model(family: str, activation: str, dtype: torch.dtype) -> Model:
    model = model_of(family, dtype)
    return replace(model, config=replace(model.config, activation=activation))


mlps = pytest.mark.parametrize("family", ["gpt2", "llama"], ids=["plain", "gated"])
activations = pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])


@mlps
@activations
@dtypes
def test_mlp(family: str, activation: str, dtype: torch.dtype):
    model = mlp_model(family, activation, dtype)
    function, mlp_in = partial(mlp, model, LAYER), stream(model)
    g, x = rows(model.config.d_model, dtype), rows(model.config.d_model, dtype, seed=6)
    weights, point = mlp_weights(model, LAYER, fold=False), mlp_point(model, LAYER, mlp_in)
    before = g.clone(), x.clone(), *(slope.clone() for slope in point.slopes)
    down, up = mlp_pull(weights, point, g), mlp_push(weights, point, x)
    assert all(torch.equal(a, b) for a, b in zip(before, (g, x, *point.slopes), strict=True))
    assert_close(down, pulled(function, mlp_in, g), COMPONENT, "pull")
    assert_close(up, pushed(function, mlp_in, x), COMPONENT, "push")
    assert_adjoint(g, up, down, x)


@mlps
@activations
@dtypes
@norms
def test_an_mlp_as_one_matrix(family: str, activation: str, dtype: torch.dtype, norm: str):
    model, policy = mlp_model(family, activation, dtype), Policy(norm=norm)
    parameters, x = model.params.blocks[LAYER].norm_2, stream(model)

    def function(x: Tensor) -> Tensor:
        return x + mlp(model, LAYER, normalise(model.config, parameters, x, policy), policy)

    g, tangents = rows(model.config.d_model, dtype), rows(model.config.d_model, dtype, seed=6)
    weights, point, at_norm = (
        mlp_weights(model, LAYER),
        mlp_point(model, LAYER, normalise(model.config, parameters, x)),
        norm_point(model.config, x),
    )
    want_down, want_up = pulled(function, x, g), pushed(function, x, tangents)
    M = mlp_fold(weights, point, at_norm, policy)
    assert_close(g @ M, want_down, COMPONENT, "folded pull")
    assert_close(tangents @ M.mT, want_up, COMPONENT, "folded push")
    assert_close(g + norm_map(at_norm, mlp_pull(weights, point, g), policy), want_down, COMPONENT, "pull by factors")
    assert_close(tangents + mlp_push(weights, point, norm_map(at_norm, tangents.clone(), policy)), want_up, COMPONENT, "push by factors")
    some = slice(3, 5)
    assert_close(mlp_fold(weights, point.at(some), at_norm.at(some), policy), M[some], COMPONENT, "of some positions")
