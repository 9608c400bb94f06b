"""Edges: every view of a result (a prompt, a matrix, a scipy array, a table) shows the same numbers."""

from dataclasses import fields, replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attrib.core.edges import Edges, Nodes, Prompts, join
from attrib.core.sparse import to_csr
from attrib.core.types import InputError
from tests.support.attribution_cases import without_shape_checks
from tests.support.examples import examples

VALUES = st.sampled_from([0.5, -0.5, 1.0, -1.0, 2.0, -3.25])


Rows = list[tuple[int, int]]
"""(position, latent) of every row of a table."""


@st.composite
def rows_of(draw: st.DrawFn, kind: str, ids: list[int]) -> tuple[Rows, list[float]]:
    """Rows of a table in canonical order, and their activations: active latents, all tokens, or a few logits."""
    length = len(ids)
    if kind == "latent":
        pairs = draw(st.sets(st.tuples(st.integers(0, length - 1), st.integers(0, 7)), max_size=6))
        rows = sorted(pairs)
    elif kind == "token":
        rows = list(enumerate(ids))
    else:
        chosen = draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))
        rows = [(length - 1, latent) for latent in chosen]
    return rows, draw(st.lists(VALUES, min_size=len(rows), max_size=len(rows)))


def table(kind: str, rows: Rows, activations: list[float]) -> Nodes:
    activation = torch.tensor(activations, dtype=torch.float64)
    return Nodes(
        kind,
        {"latent": "blocks.1.hook_resid_pre", "token": "embed", "logit": "logits"}[kind],
        torch.tensor([0, len(rows)]),
        torch.tensor([p for p, _ in rows], dtype=torch.int64),
        torch.tensor([latent for _, latent in rows], dtype=torch.int64),
        activation,
        tuple(f"{kind} {latent}" for _, latent in rows) if kind != "latent" else (),
        activation.sigmoid() if kind == "logit" else None,
    )


class Drawn(NamedTuple):
    """What one prompt's result is made of."""

    ends: tuple[str, str]
    ids: list[int]
    sources: tuple[Rows, list[float]]
    targets: tuple[Rows, list[float]]
    gradient: list[float]
    kept: list[bool]


@st.composite
def one_prompt(draw: st.DrawFn, ends: tuple[str, str]) -> Drawn:
    ids = draw(st.lists(st.integers(0, 7), min_size=1, max_size=4))
    sources, targets = (draw(rows_of(end, ids)) for end in ends)
    size = len(sources[0]) * len(targets[0])
    numbers, kept = (draw(st.lists(values, min_size=size, max_size=size)) for values in (VALUES, st.booleans()))
    return Drawn(ends, ids, sources, targets, numbers, kept)


def made(drawn: Drawn) -> Edges:
    """A result of one prompt, with some edges dropped."""
    sources, targets = table(drawn.ends[0], *drawn.sources), table(drawn.ends[1], *drawn.targets)
    shape = len(targets), len(sources)
    gradient = torch.tensor(drawn.gradient, dtype=torch.float64).reshape(shape)
    attribution = gradient * sources.activation
    mask = torch.tensor(drawn.kept, dtype=torch.bool).reshape(shape)
    indptr, indices, place = to_csr(mask)
    return Edges(
        kind="_to_".join(drawn.ends),
        sources=sources,
        targets=targets,
        indptr=indptr,
        indices=indices,
        gradient=gradient.flatten()[place],
        attribution=attribution.flatten()[place],
        total=attribution.sum(-1),
        l1=attribution.abs().sum(-1),
        prompts=Prompts(torch.tensor([0, len(drawn.ids)]), torch.tensor(drawn.ids), tuple(f"t{i}" for i in drawn.ids)),
    )


def result(*drawn: Drawn) -> Edges:
    """The prompts joined into one result."""
    return join([made(part) for part in drawn])


ENDS = [("latent", "latent"), ("token", "latent"), ("latent", "logit")]
PARTS = st.sampled_from(ENDS).flatmap(lambda ends: st.lists(one_prompt(ends), min_size=1, max_size=4))
few = settings(max_examples=examples(40), deadline=None)


def columns(edges: Edges) -> dict[str, object]:
    """Every field of a result, tensors as lists, so that two results can be compared."""

    def plain(value: object) -> object:
        if isinstance(value, Tensor):
            return value.tolist()
        if isinstance(value, Nodes | Prompts):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        return value

    return {f.name: plain(getattr(edges, f.name)) for f in fields(edges)}


@few
@given(PARTS)
def test_prompts_come_back_from_a_joined_result(drawn: list[Drawn]):
    parts = [made(part) for part in drawn]
    whole = join(parts)
    assert len(whole.prompts) == len(parts)
    assert len(whole) == sum(map(len, parts))
    assert whole.shape == (sum(len(p.targets) for p in parts), sum(len(p.sources) for p in parts))
    for number, part in enumerate(parts):
        assert columns(whole.prompt(number)) == columns(part)
        assert columns(whole.prompt(number - len(parts))) == columns(part)
        assert whole.prompts.text(number) == part.prompts.strings


@few
@given(PARTS, st.data())
def test_prompts_are_taken_alike_as_a_run_and_one_by_one(drawn: list[Drawn], data: st.DataObject):
    whole = join([made(part) for part in drawn])
    start = data.draw(st.integers(0, len(drawn)))
    stop = data.draw(st.integers(start, len(drawn)))
    assert columns(whole.take(slice(start, stop))) == columns(whole.take(torch.arange(start, stop)))
    assert whole.take(slice(start, start)).shape == (0, 0)


@few
@given(PARTS)
def test_joining_is_associative(drawn: list[Drawn]):
    parts = [made(part) for part in drawn]
    assert columns(join([join(parts[:2]), *(join([p]) for p in parts[2:])])) == columns(join(parts))


@few
@given(PARTS)
def test_rows_are_csr_rows(drawn: list[Drawn]):
    whole = result(*drawn)
    assert whole.indptr.tolist()[0] == 0
    assert whole.indptr.tolist()[-1] == len(whole)
    assert whole.row.tolist() == [t for t in range(len(whole.targets)) for _ in range(int(whole.indptr[t + 1] - whole.indptr[t]))]
    pairs = list(zip(whole.row.tolist(), whole.indices.tolist(), strict=True))
    assert pairs == sorted(set(pairs))  # ascending columns, no duplicates
    assert torch.equal(whole.targets.prompt[whole.row], whole.sources.prompt[whole.indices])


@few
@given(PARTS, st.sampled_from(["gradient", "attribution"]))
def test_dense_and_scipy_show_the_same(drawn: list[Drawn], value: str):
    parts = [made(part) for part in drawn]
    whole = join(parts)
    matrix = torch.from_numpy(whole.to_scipy(value).toarray())
    outside = matrix.clone()
    for number, part in enumerate(parts):
        rows, across = whole.targets.rows(number), whole.sources.rows(number)
        assert torch.equal(whole.dense(number, value), matrix[rows, across])
        assert torch.equal(part.dense(value=value), matrix[rows, across])
        assert whole.dense(number, value).shape == part.shape
        outside[rows, across] = 0
    assert not outside.any()  # no edge joins two prompts
    assert torch.equal(matrix[whole.row, whole.indices], whole.values(value))


@few
@given(PARTS)
def test_the_remainder_is_what_was_dropped(drawn: list[Drawn]):
    whole = result(*drawn)
    kept = torch.from_numpy(whole.to_scipy("attribution").toarray()).sum(-1)
    assert torch.allclose(whole.total - kept, whole.remainder, rtol=0, atol=1e-12)
    everything = replace(whole, total=kept)
    assert everything.remainder.abs().sum() < 1e-12


@few
@given(PARTS)
def test_the_table_has_a_row_for_each_edge(drawn: list[Drawn]):
    whole = result(*drawn)
    frame = whole.to_pandas()
    assert len(frame) == len(whole)
    for row, (number, s, t) in zip(
        frame.to_dict("records"),
        zip(whole.targets.prompt[whole.row].tolist(), whole.indices.tolist(), whole.row.tolist(), strict=True),
        strict=True,
    ):
        assert row["prompt"] == number
        for end, nodes, at in (("source", whole.sources, s), ("target", whole.targets, t)):
            assert row[f"{end}_position"] == nodes.position[at]
            assert row[f"{end}_token"] == whole.prompts.text(number)[row[f"{end}_position"]]
            assert row[f"{end}_latent"] == nodes.latent[at]
            assert row[f"{end}_activation"] == nodes.activation[at]
            assert (f"{end}_label" in row) == (nodes.kind != "latent")
            if f"{end}_label" in row:
                assert row[f"{end}_label"] == nodes.labels[at]
        assert row["attribution"] == row["gradient"] * row["source_activation"]
    assert frame["gradient"].tolist() == whole.gradient.tolist()


@few
@given(PARTS, st.integers(1, 30), st.sampled_from(["gradient", "attribution"]))
def test_top_edges_are_the_largest(drawn: list[Drawn], k: int, value: str):
    whole = result(*drawn)
    top = whole.top(k, value)
    sizes = whole.values(value).abs().tolist()
    assert top[value].abs().tolist() == sorted(sizes, reverse=True)[:k]
    assert list(top.index) == list(range(min(k, len(whole))))
    ranked = sorted(range(len(sizes)), key=lambda entry: -sizes[entry])[:k]  # stable: ties in canonical order
    assert top.to_dict("records") == whole.to_pandas().iloc[ranked].to_dict("records")


ONE = Drawn(("latent", "latent"), [3, 4], ([(0, 1), (1, 5)], [1.0, 2.0]), ([(1, 2)], [0.5]), [2.0, -1.0], [True, False])


@pytest.mark.parametrize("number", [2, -3, 100])
def test_a_prompt_that_is_not_there(number: int):
    whole = result(ONE, ONE)
    for look in (whole.prompt, whole.dense):
        with pytest.raises(InputError, match=rf"prompt: {number} is outside the 2 prompts"):
            look(number)


def test_a_value_that_is_not_there():
    edges = made(ONE)
    for look in (edges.to_scipy, edges.values, lambda value: edges.top(1, value)):
        with without_shape_checks(), pytest.raises(InputError, match="value: 'weight'; expected 'gradient' or 'attribution'"):
            look("weight")


@pytest.mark.parametrize("k", [0, -1])
def test_fewer_than_one_edge_are_none(k: int):
    with pytest.raises(InputError, match=rf"k: {k}; expected at least 1"):
        made(ONE).top(k)


def test_one_result_by_hand():
    edges = result(ONE, ONE._replace(kept=[True, True]))
    assert edges.dense(0).tolist() == [[2.0, 0.0]]
    assert edges.dense(-1, "attribution").tolist() == [[2.0, -2.0]]
    assert edges.indptr.tolist() == [0, 1, 3]
    assert edges.indices.tolist() == [0, 2, 3]
    assert edges.total.tolist() == [0.0, 0.0]
    assert edges.l1.tolist() == [4.0, 4.0]
    assert edges.remainder.tolist() == [-2.0, 0.0]
    assert edges.top(2, "gradient")[["prompt", "source_latent", "target_latent", "source_token"]].values.tolist() == [
        [0, 1, 2, "t3"],
        [1, 1, 2, "t3"],
    ]
