"""The sweeps against the dense Jacobian of the plain segment, and each exact saving against the sweep without it.

The savings are numbered as in the design: 1 causal cone, 2 seed position, 3 fold, 4 frozen is linear, 5 direction,
6 one sweep for all sources, 7 packing, 9 rank of heads, 10 push at the bottom. 8, that tiles are selected where they
lie, is held by the tests of `keep` in test_attribution, over one sweep and over many.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import jacrev

import attrib.engine.sweep.meet
import attrib.engine.sweep.seeded
import attrib.engine.sweep.steps
from attrib.core.types import EXACT, LINEAR, Policy, Site, SiteKind
from attrib.engine.blocks.passing import place_of
from attrib.engine.segment import segment
from attrib.engine.sweep.ascent import meeting
from attrib.engine.sweep.cells import ON_CPU, Band, Cone, Direction, Pieces, cells_of, cone, cone_of, even, rectangles
from attrib.engine.sweep.compute import Down
from attrib.engine.sweep.meet import lift, meet, reverse
from attrib.engine.sweep.merge import Group, Merge, joined
from attrib.engine.sweep.primal import Primal, Seeds, attentions_between, primal, seeds, walked
from attrib.engine.sweep.seeded import layer_mlp
from attrib.engine.sweep.steps import head_width, pull_attention, push_attention, spread_down, spread_up
from attrib.models.transformer import width
from attrib.passes.capture import capture
from attrib.paths.path import base_site
from tests.support.builders import ALL_FAMILIES, FAMILIES, Family, all_sites, build, normal, prompt
from tests.support.covering import each_pair
from tests.support.tolerances import COMPONENT, FOREIGN, ROUNDING, assert_close

LENGTHS = (7, 1, 5, 2)
TARGETS = ((2, 0, 3, 1, 0, 2, 1), (2,), (0, 0, 1, 4, 0), (0, 0))
"""How many at each position of each prompt: none at some, none in the last prompt."""
SOURCES = ((1, 2, 0, 2, 3, 0, 1), (3,), (0, 2, 0, 0, 1), (1, 1))

POLICIES = (EXACT, LINEAR, Policy("exact", "frozen", "exact"), Policy("frozen", "exact", "exact"), Policy("exact", "exact", "frozen"))
TWO = (EXACT, LINEAR)
families = pytest.mark.parametrize("family", FAMILIES)
policies = pytest.mark.parametrize("policy", TWO, ids=["exact", "linear"])


class Pack(NamedTuple):
    """Prompts with rows seeded at both ends, ready for any sweep, and what it must give."""

    on: Primal
    start: Site
    stop: Site
    targets: Seeds
    sources: Seeds
    down: Cone
    up: Cone
    want: list[Tensor]


def positions(counts: tuple[int, ...]) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


@cache
def dense(family: Family, start: Site, stop: Site, policy: Policy, length: int) -> Tensor:
    """∂ value at `stop` / ∂ value at `start` [positions, width_b, positions, width_a], by torch.func over the plain segment."""
    model = build(family, torch.float64)
    x, base = primal_point(family, start, length, torch.float64)
    return jacrev(lambda x: segment(model, start, stop, policy=policy).plain(x, base))(x)


@cache
def primal_point(family: Family, start: Site, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    base = base_site(start)
    seen = capture(build(family, dtype), prompt(length, seed=length), {start} | ({base} if base else set()))
    return seen[start], seen[base] if base else None


def on_prompts(
    family: Family,
    start: Site,
    stop: Site,
    policy: Policy,
    lengths: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    pieces: Pieces | None = None,
) -> Primal:
    model = build(family, dtype)
    streams = [walked(model, start, stop, *primal_point(family, start, length, dtype)) for length in lengths]
    return primal(model, policy, start, stop, streams, lengths, pieces=pieces)


def seeded(on: Primal, counts: tuple[tuple[int, ...], ...], wide: int, seed: int) -> Seeds:
    dtype = on.model.dtype
    rows = [normal(sum(count), wide, dtype=dtype, seed=seed + len(count)) for count in counts]
    return seeds(on, [positions(count) for count in counts], rows)


def make(
    family: Family,
    start: Site,
    stop: Site,
    policy: Policy,
    prompts: tuple[int, ...] = (0, 1, 2, 3),
    dtype: torch.dtype = torch.float64,
    pieces: Pieces | None = None,
) -> Pack:
    """A pack of some of the prompts of LENGTHS."""
    lengths, at, of = (tuple(column[number] for number in prompts) for column in (LENGTHS, TARGETS, SOURCES))
    on = on_prompts(family, start, stop, policy, lengths, dtype, pieces)
    config = on.model.config
    targets, sources = seeded(on, at, width(config, stop), 100), seeded(on, of, width(config, start), 200)
    down, up = (
        cone([positions(count).tolist() for count in counts], lengths, direction, on.pieces.band)
        for counts, direction in ((at, "down"), (of, "up"))
    )
    want = []
    for number, (rows, columns) in enumerate(zip(split(targets), split(sources), strict=True)):
        J = dense(family, start, stop, policy, lengths[number])[positions(at[number])][:, :, positions(of[number])]
        want.append(torch.einsum("nd,ndme,me->nm", rows.double(), J, columns.double()))
    return Pack(on, start, stop, targets, sources, down, up, want)


def split(rows: Seeds) -> tuple[Tensor, ...]:
    return rows.value.split(rows.counts)


def ways(pack: Pack) -> Iterator[tuple[str, list[Tensor]]]:
    """The Jacobian of a pack in every way that there is."""
    on, start, stop, targets, sources, down, up, _ = pack
    yield "reverse", reverse(on, stop, targets, down, {start: sources})[start]
    layers = attentions_between(start, stop)
    if not layers:
        return
    given, first = {place_of(start): sources}, Site(layers[0], "resid_pre")
    pushed = lift(on, start, given, up, first).rows
    if pushed is not None:
        yield "reverse to pushed sources", reverse(on, stop, targets, down, {first: sources._replace(value=pushed)})[first]
    for layer in (None, *layers[:-1]):
        at = meeting(on.model.config, stop, layers[-1], layer)
        lifted = lift(on, start, given, up, at.up)
        for time in ("once", "again"):  # tangents that were lifted serve many sweeps
            name = "forward" if layer is None else f"both at layer {layer}"
            yield f"{name}, {time}", meet(on, stop, targets, down, given, lifted, at.down)


def assert_jacobians(got: list[Tensor], want: list[Tensor], what: str, tolerance: Any = COMPONENT) -> None:
    assert len(got) == len(want)
    for number, (one, other) in enumerate(zip(got, want, strict=True)):
        assert_close(one, other.to(one.dtype), tolerance, f"{what}, prompt {number}")


def assert_all_ways(pack: Pack, tolerance: Any = COMPONENT) -> list[str]:
    assert any(want.abs().max() > 0.1 for want in pack.want if want.numel())  # an empty comparison would prove nothing
    names = []
    for name, got in ways(pack):
        assert_jacobians(got, pack.want, f"{name}: {pack.start} to {pack.stop}, {pack.on.policy}", tolerance)
        names.append(name)
    return names


# --------------------------------------------------------------------------------- the whole, every site


def unique(sites: Iterable[Site]) -> list[Site]:
    return [*dict.fromkeys(sites)]


def pairs() -> list[tuple[Site, Site]]:
    """From every kind of site to every kind in the same layer, the next, and a few that are further."""
    starts = [Site(1, kind) for kind in ("resid_pre", "z", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")]
    stops = [site for site in all_sites() if site.layer in (1, 2) or site in (Site(3, "resid_pre"), Site(3, "resid_mid"))]
    return [(a, b) for a in starts for b in stops if b.depth > a.depth]


PAIRS = pairs()


def is_left(row: dict[str, Any]) -> bool:
    """Whether these are a pair, and something is left that moves."""
    start, stop = row["start"], row["stop"]
    is_frozen = row["policy"].mlp == "frozen" and start.kind in ("mlp_in", "mlp_out") and not attentions_between(start, stop)
    return (start, stop) in PAIRS and not is_frozen


@each_pair(is_left, start=unique(a for a, _ in PAIRS), stop=unique(b for _, b in PAIRS), policy=POLICIES, family=FAMILIES)
def test_every_pair_of_sites_in_every_way(family: Family, policy: Policy, start: Site, stop: Site):
    pack = make(family, start, stop, policy)
    if any(want.any() for want in pack.want):
        assert_all_ways(pack)


@pytest.mark.few
@each_pair(policy=POLICIES, ends=[("resid_pre", "resid_pre"), ("resid_mid", "resid_post"), ("z", "resid_mid")], family=FAMILIES)
def test_every_policy(family: Family, policy: Policy, ends: tuple[SiteKind, SiteKind]):
    names = assert_all_ways(make(family, Site(0, ends[0]), Site(3, ends[1]), policy))
    assert "both at layer 1, once" in names


BESIDE = ("gpt_neox", "gptj", "phi")
"""Families whose MLP stands beside attention, so that what it reads is written nowhere."""


@pytest.mark.few
@each_pair(
    lambda row: row["ends"] != ("mlp_in", "mlp_out") or (row["family"] not in BESIDE and row["policy"].mlp == "exact"),
    family=[family for family in ALL_FAMILIES if family not in FAMILIES],
    policy=[EXACT, LINEAR, Policy("exact", "frozen", "exact"), Policy("exact", "exact", "frozen")],
    ends=[("resid_pre", "resid_pre"), ("mlp_out", "resid_post"), ("z", "attn_out"), ("mlp_in", "mlp_out")],
)
def test_every_family_in_every_way(family: Family, policy: Policy, ends: tuple[SiteKind, SiteKind]):
    assert build(family, torch.float64).config.parallel == (family in BESIDE)
    names = assert_all_ways(make(family, Site(0, ends[0]), Site(3, ends[1]), policy, (0, 2)))
    assert {"forward, once", "both at layer 1, once"} <= {*names}


@families
@policies
def test_in_float32(family: Family, policy: Policy):
    assert_all_ways(make(family, Site(0, "resid_pre"), Site(3, "resid_pre"), policy, dtype=torch.float32), FOREIGN)


@pytest.mark.few
@each_pair(cells=[1, 5, 17], family=FAMILIES, policy=TWO)
def test_pieces_of_any_size_give_the_same(family: Family, policy: Policy, cells: int):
    pack = make(family, Site(0, "mlp_in"), Site(3, "resid_pre"), policy, pieces=ON_CPU._replace(band=cells, chunk=cells, mlp=cells))
    if cells == 1:
        assert len(pack.down.bands) == sum(pack.targets.counts)  # a row is the least of a band
    assert_all_ways(pack)


# ----------------------------------------------------------------------------- 1: the causal cone


def test_no_cell_behind_the_cone_is_held():
    seeded_at = ([0, 2, 2, 4], [1])
    down, up = cone(seeded_at, (5, 3), "down"), cone(seeded_at, (5, 3), "up")
    assert down.cells == sum(p + 1 for prompt in seeded_at for p in prompt)
    assert up.cells == sum(length - p for prompt, length in zip(seeded_at, (5, 3), strict=True) for p in prompt)
    assert (down.rows_at(0, 5), up.rows_at(0, 5)) == ([4, 3, 3, 1, 1], [1, 1, 3, 3, 4])
    assert (down.rows_at(1, 3), up.rows_at(1, 3)) == ([1, 1, 0], [0, 1, 1])


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("most", [0, 12, 40, 1 << 30])
def test_blocks_are_bands_side_by_side(direction: Direction, most: int):
    on_cone = cone_of(SOURCES, direction, 8)
    flat = torch.arange(1, on_cone.cells + 1.0)[:, None]
    found, back = list(rectangles(on_cone.bands, most)), torch.zeros_like(flat)
    assert [band for block in found for band in block.bands] == list(on_cone.bands)
    for block in found:
        rectangle = block.gather(flat, flat.new_zeros(block.end - block.begin, block.rows, 1))
        assert rectangle.shape[:2] == (block.end - block.begin, block.rows)
        assert len(block.bands) == 1 or rectangle.shape[0] * rectangle.shape[1] <= most
        assert {band.prompt for band in block.bands} == {block.prompt}
        living = sum(band.cells for band in block.bands)
        assert (rectangle != 0).sum() == living == block.part.stop - block.part.start
        assert torch.equal(rectangle.unique()[-living:], flat[block.part, 0])
        block.scatter(rectangle, back)
    assert torch.equal(back, flat)
    assert (len(found) == len(on_cone.bands)) == (most == 0)
    assert most < 1 << 30 or len(found) == len(SOURCES)  # one block for each prompt


@pytest.mark.parametrize("direction", ["down", "up"])
def test_cells_of_a_position_are_those_of_its_bands(direction: Direction):
    on_cone = cone_of(TARGETS, direction, 5)
    flat = torch.arange(float(on_cone.cells))[:, None]
    for number, length in enumerate(LENGTHS):
        cells, counts = cells_of(on_cone, number, length, torch.device("cpu")), on_cone.rows_at(number, length)
        for t in range(length):
            here = [band for band in on_cone.bands if band.prompt == number and band.begin <= t < band.end]
            assert cells.at(t).tolist() == [cell for band in here for cell in band.of(flat)[t - band.begin, :, 0].tolist()]
            first, end = cells.alive[t]
            assert end - first == counts[t]
            assert not here or (first, end) == (here[0].row, here[-1].row + here[-1].rows)


@pytest.mark.parametrize(("total", "size", "want"), [(0, 5, 1), (3, 5, 3), (5, 5, 5), (7, 5, 7), (8, 5, 4), (1612, 512, 538)])
def test_parts_are_even(total: int, size: int, want: int):
    assert even(total, size) == want <= max(1, size * 3 // 2)


@families
@policies
def test_rows_on_their_cone_are_rows_on_the_whole_prompt(family: Family, policy: Policy):
    start, top, length = Site(0, "resid_pre"), Site(3, "resid_pre"), LENGTHS[0]
    on = on_prompts(family, start, top, policy, (length,))
    rows = seeded(on, TARGETS[:1], 32, 100)
    at = rows.token.tolist()
    on_cone, whole = cone([at], (length,), "down"), Cone((Band(0, 0, length, 0, len(at), 0, length - 1),))
    flat, full = rows.value.new_zeros(on_cone.cells, 32), rows.value.new_zeros(length, len(at), 32)
    for band in on_cone.bands:
        band.of(flat)[-1] = rows.rows(band)
    full[at, range(len(at))] = rows.value
    found: list[Tensor] = []
    for lying, given in ((on_cone, flat), (whole, full.flatten(0, 1))):
        Down(on, top, lying, [start], lambda site, rows, is_spread: found.append(rows)).everywhere(given)
    narrow, everywhere = found[0], found[1].unflatten(0, (length, len(at)))
    for band in on_cone.bands:
        mine = everywhere[:, band.row : band.row + band.rows]
        assert_close(band.of(narrow), mine[: band.end], COMPONENT, "within the cone")
        assert not mine[band.end :].any()  # exactly zero: masked work was never worth doing


@families
@policies
def test_what_comes_after_a_target_changes_nothing(family: Family, policy: Policy):
    start, stop, seen = Site(0, "resid_pre"), Site(3, "resid_pre"), 4
    model, ids = build(family, torch.float64), prompt(7)
    changed, found = ids.clone(), []
    changed[seen:] = (changed[seen:] + 5) % 60
    for tokens in (ids, changed, ids[:seen]):
        x = capture(model, tokens, {start})[start]
        on = primal(model, policy, start, stop, [walked(model, start, stop, x, None)], [len(tokens)])
        counts = ((*TARGETS[0][:seen], *(0,) * (len(tokens) - seen)),)
        targets = seeds(on, [positions(counts[0])], [normal(sum(counts[0]), 32, dtype=torch.float64)])
        sources = seeds(on, [torch.arange(seen)], [normal(seen, 32, dtype=torch.float64, seed=9)])
        down, up = (cone([rows.token.tolist()], on.lengths, way) for rows, way in ((targets, "down"), (sources, "up")))
        found.append([got for _, (got,) in ways(Pack(on, start, stop, targets, sources, down, up, []))])
    assert found[0][0].abs().max() > 0.1
    for whole, other, prefix in zip(*found, strict=True):
        assert_close(other, whole, ROUNDING, "other tokens after it")
        assert_close(prefix, whole, ROUNDING, "no tokens after it")


# ------------------------------------------------------------------------------- 2: seed position


@families
@policies
@pytest.mark.parametrize("kind", ["attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"])
def test_seeded_rows_are_rows_of_the_cone_at_their_own_position(family: Family, policy: Policy, kind: str):
    stop, length = Site(2, kind), LENGTHS[0]
    z = Site(2, "z")
    on = on_prompts(family, Site(2, "resid_pre"), stop, policy, (length,))
    targets = seeded(on, TARGETS[:1], 32, 100)
    down = cone([targets.token.tolist()], (length,), "down")
    flat = targets.value.new_zeros(down.cells, 32)
    for band in down.bands:
        band.of(flat)[-1] = targets.rows(band)
    read: list[tuple[Site, Tensor, bool]] = []
    way = [Down(on, stop, down, [z], lambda *found: read.append(found)) for _ in range(2)]
    way[0].seeded(targets)
    way[1].everywhere(flat)
    (alone_site, alone, is_alone_spread), (site, spread, is_spread) = read
    assert (alone_site, site, is_alone_spread, is_spread) == (z, z, False, True)
    for band in down.bands:
        cells = band.of(spread)
        assert_close(alone[band.row : band.row + band.rows], cells[-1], COMPONENT)
        assert not cells[:-1].any()


@families
@policies
@pytest.mark.parametrize("kind", ["z", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"])
def test_sources_are_pushed_at_their_own_position(family: Family, policy: Policy, kind: str):
    start, stop = Site(1, kind), Site(2, "resid_pre")
    on = on_prompts(family, start, stop, policy, LENGTHS)
    sources = seeded(on, SOURCES, width(on.model.config, start), 200)
    up = cone([positions(count).tolist() for count in SOURCES], LENGTHS, "up")
    moved = lift(on, start, {place_of(start): sources}, up, stop)
    assert not moved.way.is_spread
    found = torch.zeros_like(sources.value[:, :32]) if moved.rows is None else moved.rows
    assert (moved.rows is None) == (policy.mlp == "frozen" and kind == "mlp_in")
    for number, (rows, got) in enumerate(zip(split(sources), split(sources._replace(value=found)), strict=True)):
        at = positions(SOURCES[number])
        J = dense(family, start, stop, policy, LENGTHS[number])[at, :, at]
        assert_close(got, torch.einsum("nde,ne->nd", J, rows), COMPONENT)


# ---------------------------------------------------------------------------------------- 3: fold


@pytest.mark.few
@each_pair(least=[0, 3.5, float("inf")], family=FAMILIES, policy=TWO)  # folded, folded where many meet, and by factors
def test_a_folded_mlp_is_the_mlp(family: Family, policy: Policy, least: float, monkeypatch: pytest.MonkeyPatch):
    counts = {"attrib.engine.sweep.seeded": 0, "attrib.engine.sweep.meet": 0}
    where, plain_fold, plain_meeting = (
        ["attrib.engine.sweep.seeded"],
        attrib.engine.sweep.seeded.mlp_fold,
        attrib.engine.sweep.meet.meet_at_mlp,
    )

    def fold(*args: Any) -> Tensor:
        counts[where[-1]] += 1
        return plain_fold(*args)

    def meeting(*args: Any) -> None:
        where.append("attrib.engine.sweep.meet")
        plain_meeting(*args)
        where.pop()

    monkeypatch.setattr(attrib.engine.sweep.seeded, "mlp_fold", fold)
    monkeypatch.setattr(attrib.engine.sweep.meet, "meet_at_mlp", meeting)
    for module in (attrib.engine.sweep.steps, attrib.engine.sweep.meet):
        monkeypatch.setattr(module, "fold_rows", lambda config: least)
    names = assert_all_ways(make(family, Site(0, "resid_pre"), Site(3, "resid_pre"), policy))
    assert len(names) == 8
    if least == 0:
        assert min(counts.values()) > 10
    elif least < 10:
        assert counts["attrib.engine.sweep.seeded"] > 0
    else:
        assert counts == {"attrib.engine.sweep.seeded": 0, "attrib.engine.sweep.meet": 0}


@families
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_the_norm_before_an_mlp_is_one_map_folded_or_not(family: Family, policy: Policy, up: bool):
    on = on_prompts(family, Site(1, "resid_pre"), Site(2, "resid_pre"), policy, (6,))
    rows, at = normal(4, 3, 32, dtype=torch.float64), slice(1, 5)
    before = rows.clone()
    folded, apart = (layer_mlp(on, 1, fold=fold).change(rows, at, up) for fold in (True, False))
    assert torch.equal(rows, before)
    assert apart.abs().max() > 0.1
    assert_close(apart, folded, COMPONENT)
    token = torch.tensor([4, 1, 1])
    alone = layer_mlp(on, 1, fold=False).change_alone(rows[0], token, up)
    for row, position in enumerate(token.tolist()):
        mine = layer_mlp(on, 1).change(rows[:1, row : row + 1], slice(position, position + 1), up)
        assert_close(alone[row], mine[0, 0], COMPONENT)


# ---------------------------------------------------------------------------- 4: frozen is linear


@families
def test_frozen_attention_moves_values_alone(family: Family):
    config = build(family).config
    d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
    wide = {policy: head_width(on_prompts(family, Site(1, "resid_pre"), Site(2, "resid_pre"), policy, (2,))) for policy in POLICIES}
    assert set(wide.values()) == {d_kv, d_q + 2 * d_kv}
    assert {policy for policy in POLICIES if wide[policy] == d_kv} == {policy for policy in POLICIES if policy.attention == "frozen"}


@families
def test_a_wholly_frozen_sweep_reads_patterns_scales_and_matrices_alone(family: Family):
    policy, start, stop = Policy("frozen", "frozen", "frozen"), Site(1, "resid_pre"), Site(2, "resid_pre")
    pack = make(family, start, stop, policy)
    model = pack.on.model
    blocks = list(model.params.blocks)
    attention = blocks[1].attention
    # biases that move neither a pattern nor a scale of this primal
    blocks[1] = blocks[1]._replace(attention=attention._replace(b_V=attention.b_V + 3, b_O=attention.b_O - 2))
    moved = pack._replace(on=replace(pack.on, model=replace(model, params=model.params._replace(blocks=tuple(blocks)))))
    for (name, got), (_, want) in zip(ways(moved), ways(pack), strict=True):
        assert_jacobians(got, want, name)
    exact = make(family, start, stop, EXACT)
    assert max((a - b).abs().max() for a, b in zip(exact.want[:3], pack.want[:3], strict=True)) > 0.1


# ----------------------------------------------------------------- 5 direction, 6 one sweep, 7 packing


@families
@policies
def test_directions_give_one_matrix(family: Family, policy: Policy):
    # few sources, many targets, and the other way round
    start, stop, lengths = Site(0, "resid_pre"), Site(3, "resid_pre"), (5,)
    on = on_prompts(family, start, stop, policy, lengths)
    for many, few in ((((9, 9, 9, 9, 9),), ((1, 1, 1, 1, 1),)), (((0, 0, 0, 0, 2),), ((7, 7, 7, 7, 7),))):
        targets, sources = seeded(on, many, 32, 100), seeded(on, few, 32, 200)
        down, up = (cone([rows.token.tolist()], lengths, way) for rows, way in ((targets, "down"), (sources, "up")))
        found = dict(ways(Pack(on, start, stop, targets, sources, down, up, [])))
        assert len(found) == 8
        for name, got in found.items():
            assert_jacobians(got, found["reverse"], name)


@pytest.mark.few
@each_pair(stop=[Site(2, "resid_post"), Site(2, "mlp_out"), Site(3, "resid_pre"), Site(2, "z")], family=FAMILIES, policy=TWO)
def test_one_sweep_reads_out_at_every_source_site(family: Family, policy: Policy, stop: Site):
    start = Site(0, "resid_pre")
    on = on_prompts(family, start, stop, policy, LENGTHS)
    targets = seeded(on, TARGETS, width(on.model.config, stop), 100)
    down = cone([positions(count).tolist() for count in TARGETS], LENGTHS, "down")
    sites = [site for site in all_sites() if site.depth < stop.depth and site.layer in (0, 1, 2)]
    sources = {site: seeded(on, SOURCES, width(on.model.config, site), 200 + n) for n, site in enumerate(sites)}
    assert {site.kind for site in sources} >= {"resid_pre", "z", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"}
    together = reverse(on, stop, targets, down, sources)
    assert set(together) == set(sources)
    for site, rows in sources.items():
        alone = reverse(on, stop, targets, down, {site: rows})[site]
        assert_jacobians(together[site], alone, f"{site} with the others")
    for site in [*sites[-1:], Site(1, "z"), Site(1, "mlp_in"), Site(0, "resid_post")]:  # the rest: every pair, above
        for number, (rows, columns) in enumerate(zip(split(targets), split(sources[site]), strict=True)):
            J = dense(family, site, stop, policy, LENGTHS[number])[positions(TARGETS[number])][:, :, positions(SOURCES[number])]
            assert_close(together[site][number], torch.einsum("nd,ndme,me->nm", rows, J, columns), COMPONENT, str(site))


@pytest.mark.few
@each_pair(ends=[(Site(0, "resid_pre"), Site(2, "mlp_out")), (Site(1, "z"), Site(3, "resid_pre"))], family=FAMILIES, policy=TWO)
def test_a_pack_gives_what_its_prompts_give_alone(family: Family, policy: Policy, ends: tuple[Site, Site]):
    together = dict(ways(make(family, *ends, policy)))
    for number in range(len(LENGTHS)):
        for name, (alone,) in ways(make(family, *ends, policy, (number,))):
            assert_close(together[name][number], alone, ROUNDING, name)


# --------------------------------------------------------- 9 rank of heads, 10 push at the bottom


@families
@policies
@pytest.mark.parametrize("has_stream", [True, False], ids=["with the stream", "z alone"])
def test_heads_spread_as_attention_on_the_whole_cone(family: Family, policy: Policy, has_stream: bool):
    layer, lengths = 2, LENGTHS
    on = on_prompts(family, Site(layer, "resid_pre"), Site(layer, "resid_mid"), policy, lengths)
    d_q = on.model.config.n_heads * on.model.config.d_head
    down = cone([positions(count).tolist() for count in TARGETS], lengths, "down")
    z, stream = seeded(on, TARGETS, d_q, 100), seeded(on, TARGETS, 32, 300)
    got = spread_down(on, layer, z, stream.value if has_stream else None, down)
    want, flat = got.new_zeros(down.cells, 32), got.new_zeros(down.cells, d_q)
    for band in down.bands:
        band.of(flat)[-1] = z.rows(band)
        if has_stream:
            band.of(want)[-1] = stream.rows(band)
    pull_attention(on, layer, down, want, flat)
    assert_close(got, want, COMPONENT)


@families
@policies
def test_sources_spread_as_attention_on_the_whole_cone(family: Family, policy: Policy):
    layer, lengths = 2, LENGTHS
    on = on_prompts(family, Site(layer, "resid_pre"), Site(layer, "resid_mid"), policy, lengths)
    up, sources = cone([positions(count).tolist() for count in SOURCES], lengths, "up"), seeded(on, SOURCES, 32, 200)
    want = sources.value.new_zeros(up.cells, 32)
    for band in up.bands:
        band.of(want)[0] = sources.rows(band)
    push_attention(on, layer, up, want)
    assert_close(spread_up(on, layer, sources, up, sources), want, COMPONENT)
    stream = seeded(on, SOURCES, 32, 300)
    for band in up.bands:
        band.of(want)[0] += stream.rows(band) - sources.rows(band)
    assert_close(spread_up(on, layer, sources, up, stream), want, COMPONENT)


@each_pair(pays=[True, False], start=[Site(0, "resid_pre"), Site(0, "resid_post")], family=FAMILIES, policy=TWO)
def test_sources_meet_in_head_space(family: Family, policy: Policy, pays: bool, start: Site, monkeypatch: pytest.MonkeyPatch):
    calls, plain = [], attrib.engine.sweep.meet.read_in_head_space
    monkeypatch.setattr(attrib.engine.sweep.meet, "heads_pay", lambda *args: pays)
    monkeypatch.setattr(attrib.engine.sweep.meet, "read_in_head_space", lambda *args: (calls.append(args[1]), plain(*args)))
    pack = make(family, start, Site(3, "resid_pre"), policy)
    got = reverse(pack.on, pack.stop, pack.targets, pack.down, {start: pack.sources})[start]
    assert_jacobians(got, pack.want, "reverse")
    assert calls == ([0 if start.kind == "resid_pre" else 1] if pays else [])


@pytest.mark.few
@each_pair(pays=[True, False], within=["z", "attn_out", "mlp_in", "mlp_out"], family=["gpt2", "llama", "gpt_neox"], policy=TWO)
def test_what_is_read_within_the_lowest_layer_beside_head_space(
    family: Family, policy: Policy, pays: bool, within: SiteKind, monkeypatch: pytest.MonkeyPatch
):
    """Rows that come to a place of the layer whose attention is read out in head space go on as if they had not."""
    monkeypatch.setattr(attrib.engine.sweep.meet, "heads_pay", lambda *args: pays)
    start, site, stop = Site(0, "resid_pre"), Site(0, within), Site(3, "resid_pre")
    low, high = (make(family, at, stop, policy) for at in (start, site))
    together = reverse(low.on, stop, low.targets, low.down, {start: low.sources, site: high.sources})
    assert_jacobians(together[start], low.want, "at the stream")
    assert_jacobians(together[site], high.want, f"at {site}")


@pytest.mark.parametrize("missing", [None, 0, 1])
@pytest.mark.parametrize("direction", ["down", "up"])
def test_rows_that_come_together_are_zero_where_one_of_them_is_nothing(direction: Direction, missing: int | None, monkeypatch: Any):
    """Memory that nobody has written is NaN here."""
    lengths, at = (4, 3), (((0, 2), (1,)), ((1, 2, 3), (0, 2)))  # positions of two groups' rows, by prompt
    on = on_prompts("gpt2", Site(0, "resid_pre"), Site(1, "resid_pre"), LINEAR, lengths)
    places = [torch.tensor([p for group in at for p in group[each]]).argsort(stable=True).argsort() for each in range(2)]
    rows = [place.split([len(group[each]) for group in at]) for each, place in enumerate(places)]
    cones = [cone(group, lengths, direction) for group in at]
    groups = [Group((rows[0][number], rows[1][number]), each, []) for number, each in enumerate(cones)]
    whole = cone([sorted(p for group in at for p in group[each]) for each in range(2)], lengths, direction)
    flats = [None if number == missing else normal(each.cells, 5, seed=number) for number, each in enumerate(cones)]
    merge = Merge(on, groups, joined(groups), whole, is_up=direction == "up")
    monkeypatch.setattr(Tensor, "new_empty", lambda like, *size: like.new_full(size, torch.nan))
    got = merge.rows(flats)
    assert got is not None
    for which, length in enumerate(lengths):
        cells = cells_of(whole, which, length, got.device)
        for number, (group, flat) in enumerate(zip(groups, flats, strict=True)):
            own = cells_of(cones[number], which, length, got.device)
            for row, (position, merged) in enumerate(zip(at[number][which], group.rows[which].tolist(), strict=True)):
                for t in range(position + 1) if direction == "down" else range(position, length):
                    want = torch.zeros(5, dtype=got.dtype) if flat is None else flat[own.start[row] + own.step[row] * t]
                    assert torch.equal(got[cells.start[merged] + cells.step[merged] * t], want)
    assert merge.rows([None, None]) is None
