"""Paths are plain functions: every transform of torch.func runs over them, agrees with the edges, and forms nothing dense."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import attrib
from attrib.core.types import Difference, Direction, InputError, Policy, TokenLogits, TopLogits
from attrib.engine.path import Path
from attrib.engine.plan.choose import plan_pack
from attrib.engine.tiles import adjoint, task_of
from attrib.engine.transforms import Tile, by_jvp, by_vjp
from attrib.paths.path import metric_path
from tests.support import builders
from tests.support.attribution_cases import LATE, MIDDLE, Lens, assert_same, lenses, metric, prompts, relative_error
from tests.support.builders import FAMILIES, Family, build
from tests.support.covering import each_pair
from tests.support.tolerances import FINITE_DIFFERENCE

families = pytest.mark.parametrize("family", FAMILIES)
ERRORS = [True, False]

ENDS: dict[str, tuple[Lens | None, Any]] = {
    "token to latent": (None, Lens("standard", LATE, 7)),
    "token to logit": (None, TopLogits(5)),
    "latent to latent": lenses("standard"),
    "latent to topk": (Lens("standard"), Lens("topk", LATE, 7)),
    "topk to jumprelu": lenses("topk"),
    "normalised to normalised": (Lens("standard", MIDDLE, 3, normalise="layer_norm"), Lens("standard", LATE, 7, normalise="layer_norm")),
    "rescaled to rescaled": (
        Lens("jumprelu", MIDDLE, 3, normalise="constant_norm_rescale"),
        Lens("jumprelu", LATE, 7, normalise="constant_norm_rescale"),
    ),
    "mlp_out to attn_out": (Lens("standard", "blocks.1.hook_mlp_out"), Lens("standard", "blocks.3.hook_attn_out", 7)),
    "z to mlp_in": (Lens("standard", "blocks.1.attn.hook_z"), Lens("standard", "blocks.2.ln2.hook_normalized", 7)),
    "latent to top logits": (Lens("standard"), TopLogits(5)),
    "latent to tokens": (Lens("topk"), TokenLogits([3, 9])),
    "latent to difference": (Lens("jumprelu"), Difference([3, 4], 5)),
    "latent to direction": (Lens("standard"), Direction(builders.normal(32, dtype=torch.float64))),
}
every = pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS.keys())
POLICIES = [attrib.EXACT, attrib.LINEAR]


def built(family: Family, *ends: Any) -> list[Any]:
    """Ends as attrib takes them."""
    return [end.dictionary(family) if isinstance(end, Lens) else end for end in ends]


def path_of(family: Family, ends: tuple[Lens | None, Any], length: int = 5, **options: Any) -> Path:
    return attrib.path(build(family, torch.float64), *built(family, *ends), *prompts(length), **options)


def edges_of(family: Family, ends: tuple[Lens | None, Any], length: int = 5, **options: Any) -> Tensor:
    """The Jacobian by the public attribution of this kind of ends; tokens to logits have none, so the engine gives it."""
    model, (source, target), ids = build(family, torch.float64), built(family, *ends), prompts(length)
    if isinstance(ends[1], Lens):
        if source is None:
            return attrib.token_to_latent(model, target, ids, **options).dense()
        return attrib.latent_to_latent(model, source, target, ids, **options).dense()
    if source is None:
        return matrix(path_of(family, ends, length, **options), by_vjp, 1000)
    return attrib.latent_to_logit(model, source, ids, logits=target, **options).dense()


def matrix(path: Path, engine: Any, chunk: int) -> Tensor:
    """The tiles of an engine, put together."""
    whole = torch.zeros(len(path.targets.position), len(path.sources.position), dtype=path.x.dtype)
    for tile in engine(path, chunk):
        rows, columns = tile.gradient.shape
        whole[tile.first : tile.first + rows, :columns] = tile.gradient
    return whole


def by_adjoint(path: Path, chunk: int) -> Iterator[Tile]:
    """The written sweeps, `chunk` targets at a time where cotangents go down."""
    plan, count = plan_pack(task_of([path]), 1 << 40), len(path.targets.position)
    if plan.way != "forward":
        plan = replace(plan, sweeps=tuple((first, min(first + chunk, count)) for first in range(0, count, chunk)))
    return (tile for _, tile in adjoint([path], plan))


# ------------------------------------------------------------------------------------- transforms


@pytest.mark.few
@families
@every
def test_every_transform_agrees_with_the_edges(family: Family, ends: tuple[Lens | None, Any]):
    path, J = path_of(family, ends), edges_of(family, ends)
    values, tangent, cotangent = path.sources.value, torch.randn_like(path.sources.value), torch.randn_like(path.targets.value)
    assert J.any()
    assert_same(path.function(values), path.targets.value, "value")
    assert_same(jacrev(path.function)(values), J, "jacrev")
    assert_same(jacrev(path.function, chunk_size=3)(values), J, "jacrev in chunks")
    assert_same(jacfwd(path.function)(values), J, "jacfwd")
    value, pushed = jvp(path.function, (values,), (tangent,))
    assert_same(value, path.targets.value, "value of jvp")
    assert_same(pushed, J @ tangent, "jvp")
    value, pull = vjp(path.function, values)
    assert_same(value, path.targets.value, "value of vjp")
    assert_same(pull(cotangent)[0], cotangent @ J, "vjp")
    assert_same(grad(lambda v: path.function(v).sum())(values), J.sum(0), "gradient of the sum")
    batch = values * torch.linspace(0.9, 1.1, 4, dtype=values.dtype)[:, None]
    assert_same(vmap(path.function)(batch), torch.stack([path.function(v) for v in batch]), "vmap")
    nested = vmap(jacrev(path.function))(batch[:2])
    assert_same(nested, torch.stack([jacrev(path.function)(v) for v in batch[:2]]), "vmap of jacrev")


@pytest.mark.few
@each_pair(family=FAMILIES, name=list(ENDS), error=ERRORS)
def test_finite_differences(family: Family, name: str, error: bool):
    ends = ENDS[name]
    path, J = path_of(family, ends, error=error), edges_of(family, ends, **({} if ends[0] is None else {"error": error}))
    assert relative_error(central_differences(path.function, path.sources.value), J) <= FINITE_DIFFERENCE


def central_differences(function: Any, values: Tensor, step: float = 1e-5) -> Tensor:
    """[targets, sources]: every source moved by `step` to both sides."""
    moves = step * torch.eye(len(values), dtype=values.dtype)
    ahead, behind = (vmap(function)(values + sign * moves) for sign in (1, -1))
    return ((ahead - behind) / (2 * step)).movedim(0, -1)


@pytest.mark.few
@each_pair(family=FAMILIES, error=ERRORS, site=[MIDDLE, "blocks.1.hook_mlp_out", "blocks.3.hook_resid_post"])
def test_the_path_to_a_metric(family: Family, error: bool, site: str):
    model, source, (ids,) = build(family, torch.float64), Lens("standard", site).dictionary(family), prompts(5)
    path = metric_path(model, source, ids, metric, error=error)
    row = attrib.latent_to_metric(model, source, ids, metric, error=error).dense()[0]
    values, tangent = path.sources.value, torch.randn_like(path.sources.value)
    assert row.any()
    assert path.value.shape == ()
    assert_same(path.function(values), path.value, "value")
    for name, transform in (("grad", grad), ("jacrev", jacrev), ("jacfwd", jacfwd)):
        assert_same(transform(path.function)(values), row, name)
    assert_same(jvp(path.function, (values,), (tangent,))[1], row @ tangent, "jvp")
    assert_same(vjp(path.function, values)[1](torch.ones_like(path.value))[0], row, "vjp")
    batch = values * torch.linspace(0.9, 1.1, 4, dtype=values.dtype)[:, None]
    assert_same(vmap(path.function)(batch), torch.stack([path.function(v) for v in batch]), "vmap")
    assert relative_error(central_differences(path.function, values)[None], row[None]) <= FINITE_DIFFERENCE
    H = hessian(path.function)(values)
    assert relative_error(central_differences(grad(path.function), values), H) <= FINITE_DIFFERENCE


# ------------------------------------------------------------------------------------- the engine


@pytest.mark.few
@each_pair(family=FAMILIES, name=["token to latent", "topk to jumprelu", "latent to top logits", "mlp_out to attn_out"], policy=POLICIES)
def test_sweeps_of_any_width_and_either_direction_give_one_matrix(family: Family, name: str, policy: Policy):
    path = path_of(family, ENDS[name], 9, policy=policy)
    whole = jacrev(path.function)(path.sources.value)
    for engine in (by_vjp, by_jvp, by_adjoint):
        for chunk in (37, 1000):  # one by one: the smallest budget, in test_attribution
            assert_same(matrix(path, engine, chunk), whole, f"{engine.__name__} by {chunk}")


@families
def test_a_sweep_reaches_no_further_than_its_last_target(family: Family):
    path = path_of(family, lenses("standard"), 9)
    positions = path.sources.position
    assert positions.tolist() == sorted(positions.tolist())
    for tile in by_vjp(path, 10):
        rows = path.targets.position[tile.first : tile.first + len(tile.gradient)]
        assert tile.gradient.shape[1] == (positions <= rows.max()).sum()
        later = positions[: tile.gradient.shape[1]] > rows[:, None]
        assert not tile.gradient[later].any()  # exactly zero: what comes after a target cannot move it


@families
def test_targets_at_chosen_positions_are_rows_of_all(family: Family):
    whole, part = path_of(family, lenses("standard"), 9), path_of(family, lenses("standard"), 9, positions=[-1, 3])
    rows = torch.isin(whole.targets.position, torch.tensor([3, 8]))
    assert torch.equal(part.targets.latent, whole.targets.latent[rows])
    assert_same(jacrev(part.function)(part.sources.value), jacrev(whole.function)(whole.sources.value)[rows], "rows")


# ------------------------------------------------------------------------------- nothing is dense


class LargestResult(TorchDispatchMode):
    """Remembers the size of the largest tensor that was computed; views of something that was there do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(result.alias_info for result in func._schema.returns):
            sizes = [t.numel() for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
            self.numel = max(self.numel, *sizes, 0)
        return out


WIDE = 20_000


@pytest.mark.few
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Lens("topk", MIDDLE, 3, d_sae=WIDE), Lens("topk", LATE, 7, d_sae=WIDE)),
        (Lens("topk", MIDDLE, 3, d_sae=WIDE, normalise="layer_norm"), Lens("topk", LATE, 7, d_sae=WIDE, normalise="layer_norm")),
        (Lens("topk", MIDDLE, 3, d_sae=WIDE), TopLogits(5)),
        (None, Lens("topk", LATE, 7, d_sae=WIDE)),
    ],
    ids=["latent to latent", "normalised", "latent to logit", "token to latent"],
)
@pytest.mark.parametrize("error", ERRORS, ids=["error", "no error"])
def test_nothing_as_wide_as_a_dictionary_is_differentiated(source: Lens | None, target: Any, error: bool):
    length = 6
    model, ends, (ids,) = build("gpt2", torch.float64), built("gpt2", source, target), prompts(length)
    with LargestResult() as opening:
        path = attrib.path(model, *ends, ids, error=error)
    assert opening.numel < length * WIDE  # not even here, where active latents are found
    values = path.sources.value
    for name, sweep in {
        "by_vjp": lambda: list(by_vjp(path, 128)),
        "by_jvp": lambda: list(by_jvp(path, 128)),
        "by_adjoint": lambda: list(by_adjoint(path, 128)),
        "function": lambda: path.function(values),
        "jacrev": lambda: jacrev(path.function)(values),
        "jacfwd": lambda: jacfwd(path.function)(values),
    }.items():
        with LargestResult() as seen:
            sweep()
        rows = max(len(values), len(path.targets.value))
        # for every row of a sweep: the MLP's hidden layer, or the active rows of a decoder
        assert 0 < seen.numel <= rows * max(length * 128, rows * 32), name
        assert seen.numel < length * WIDE, name


def test_the_watch_over_sizes_sees_a_dense_encoding():
    source = Lens("topk", MIDDLE, 3, d_sae=WIDE).dictionary("gpt2")
    x = builders.normal(6, 32, dtype=torch.float64)
    with LargestResult() as seen:
        jacrev(lambda x: attrib.encode(source, x)[0, :2])(x)
    assert seen.numel >= 6 * WIDE


# ------------------------------------------------------------------------------- frozen, by hand


def test_a_frozen_segment_is_a_product_of_matrices_written_out_by_hand():
    # GPT-2 with attention, norms and MLPs held: each block is  dx[p] + Σ_h Σ_q P[h,p,q] dx[q] C w / s[q] W_V[h] W_O[h]
    ends, (ids,) = lenses("standard"), prompts(5)
    model = builders.tiny_gpt2(torch.float64, attn_implementation="eager")
    with torch.no_grad():
        seen = model.transformer(ids[None], output_attentions=True, output_hidden_states=True)
    T, d = len(ids), 32
    centre = torch.eye(d, dtype=torch.float64) - 1 / d
    whole = torch.eye(T * d, dtype=torch.float64)  # rows: x_A[q], columns: x_B[p]
    for layer in (1, 2):
        block, x, pattern = model.transformer.h[layer], seen.hidden_states[layer][0], seen.attentions[layer][0]
        s = (x.var(-1, unbiased=False) + block.ln_1.eps).sqrt()
        W_V, W_O = block.attn.c_attn.weight[:, 2 * d :], block.attn.c_proj.weight
        step = torch.eye(T * d, dtype=torch.float64).reshape(T, d, T, d)
        for head in range(4):
            columns = slice(8 * head, 8 * head + 8)
            OV = centre @ torch.diag(block.ln_1.weight) @ W_V[:, columns] @ W_O[columns]
            step = step + torch.einsum("pq,q,ij->qipj", pattern[head], 1 / s, OV)
        whole = whole @ step.reshape(T * d, T * d)
    path = path_of("gpt2", ends, policy=Policy("frozen", "frozen", "frozen"))
    sources, targets = path.sources, path.targets
    segment = whole.detach().reshape(T, d, T, d)[sources.position][:, :, targets.position]  # [sources, d, targets, d]
    D = ends[0].sae("gpt2").W_dec[sources.latent]
    E = ends[1].sae("gpt2").W_enc[:, targets.latent]
    want = torch.einsum("sd,sdte,et->ts", D, segment, E)
    for engine in (by_vjp, by_adjoint):
        assert_same(matrix(path, engine, 50), want, engine.__name__)
    assert_same(jacrev(path.function)(sources.value), want, "jacrev")
    assert_same(jacfwd(path.function)(sources.value), want, "jacfwd")


@pytest.mark.long
@families
def test_under_linear_both_modes_agree(family: Family):
    for ends in ENDS.values():
        path, J = path_of(family, ends, policy=attrib.LINEAR), edges_of(family, ends, policy=attrib.LINEAR)
        assert_same(jacrev(path.function)(path.sources.value), J, "jacrev")
        assert_same(jacfwd(path.function)(path.sources.value), J, "jacfwd")
        assert relative_error(edges_of(family, ends), J) > 0.01  # and it is another matrix than the exact one


@pytest.mark.few
@families
@pytest.mark.parametrize("policy", [Policy(attention="frozen"), Policy(norm="frozen"), Policy(mlp="frozen")], ids=str)
def test_each_part_is_frozen_by_itself(family: Family, policy: Policy):
    ends = lenses("standard")
    path, J = path_of(family, ends, policy=policy), edges_of(family, ends, policy=policy)
    assert_same(jacrev(path.function)(path.sources.value), J, "jacrev")
    others = [edges_of(family, ends, policy=other) for other in (attrib.EXACT, attrib.LINEAR)]
    assert min(relative_error(other, J) for other in others) > 0.001


# --------------------------------------------------------------------------------- bad arguments


def test_ends_that_do_not_fit_are_refused():
    model, (source, target), (ids,) = build("gpt2", torch.float64), built("gpt2", *lenses("standard")), prompts(3)
    for call, words in {
        partial(attrib.path, model, target, source, ids): "target: blocks.1.hook_resid_pre is not after .* blocks.3.hook_resid_pre",
        partial(attrib.path, model, source, source, ids): "target: blocks.1.hook_resid_pre is not after",
        partial(
            attrib.path, model, source, target, ids, positions=3
        ): r"positions: \[3\] for prompt 0, which has 3 tokens; expected .* -3 to 2",
        partial(attrib.path, model, source, TokenLogits([60]), ids): "logits: token id 60 is outside the vocabulary of 60",
        partial(metric_path, model, source, ids, lambda logits: logits[0]): r"metric: gave \[60\]; expected a scalar",
    }.items():
        with pytest.raises(InputError, match=words):
            call()
