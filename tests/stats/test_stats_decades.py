"""How the pairs of a block are spread by their l1, as `attrib stats show` draws it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attrib import stats
from attrib.cli.stats import show
from attrib.core.types import FormatError
from attrib.stats.decades import MOST, decades_of
from attrib.stats.files import StoredTable
from attrib.stats.sketch import Sketch
from attrib.view.sparks import in_cells
from tests.stats.test_stats import random_edges


def of_sizes(*sizes: float) -> stats.Statistics:
    """Statistics of pairs of these masses, one edge each."""
    edges = random_edges(0)
    value = edges.attribution.clone()
    value[:] = 0.0
    value[: len(sizes)] = value.new_tensor(sizes)
    return stats.of(replace(edges, attribution=value))


def masses(made: stats.Statistics) -> np.ndarray:
    """Of each pair, from the frames that answer questions."""
    part = made.parts[0]
    assert not isinstance(part.held, Sketch)
    targets = {int(key >> np.uint64(32)) - 1 for rows in part.held.parts() for key in rows.key}
    return np.concatenate([made.top_parents(target, 10**6).l1.to_numpy() for target in sorted(targets)])


@pytest.mark.parametrize("is_stored", [False, True])
def test_every_pair_is_counted_where_its_mass_is(tmp_path: Path, is_stored: bool) -> None:
    made = stats.of([random_edges(seed, first=4 * seed) for seed in range(2)])
    wanted = masses(made)
    opened = stats.open(stats.save(tmp_path / "s.h5", made)) if is_stored else made
    held = opened.parts[0].held
    assert isinstance(held, StoredTable) is is_stored
    assert not isinstance(held, Sketch)
    found = decades_of([held])
    for decade, count in enumerate(found.pairs[0].tolist()):
        low = np.nextafter(0.0, 1.0) if decade == 0 else 10.0 ** (found.first + decade)
        assert count == ((wanted >= low) & (wanted < 10.0 ** (found.first + decade + 1))).sum()
    assert found.pairs.sum() == (wanted > 0).sum() < len(wanted)
    assert found.pairs[0, [0, -1]].all()


def test_far_ones_count_to_the_lowest_decade_and_zeros_to_none() -> None:
    made = of_sizes(3e5, 2e5, *[4e-17] * 30)
    wanted = masses(made)
    found = decades_of([held for part in made.parts if not isinstance(held := part.held, Sketch)])
    assert found.pairs.shape == (1, MOST)
    assert found.last == 6
    assert found.pairs[0, -1] == (wanted > 1e5).sum() > 0
    assert found.pairs[0, 0] == ((wanted > 0) & (wanted < 1e-5)).sum() > 2
    zeros = decades_of([held for part in of_sizes().parts if not isinstance(held := part.held, Sketch)])
    assert zeros.pairs.sum() == 0
    assert found.pairs[0, 1:-1].sum() == 0
    assert decades_of([]).pairs.shape[0] == 0


def test_show_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    edges = random_edges(0)
    large = replace(edges, sources=replace(edges.sources, site="embed"), attribution=edges.attribution * 1e3)
    made = stats.of([edges, large])
    show(stats.save(tmp_path / "s.h5", made))
    out = capsys.readouterr().out
    found = decades_of([held for part in made.parts if not isinstance(held := part.held, Sketch)])
    assert f"from 1e{found.first} to 1e{found.last}" in " ".join(out.split())
    drawn = [line.replace("│", " ").split()[-1] for line in out.splitlines() if "exact" in line]
    assert sorted(drawn) == sorted(in_cells(row.tolist()) for row in found.pairs)
    assert drawn[0] != drawn[1]
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out


def test_a_sketch_has_no_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.stats.test_stats import wide_edges

    show(stats.save(tmp_path / "s.h5", stats.of(wide_edges(0, 2000), memory=256 << 10)))
    out = capsys.readouterr().out
    assert "sketch" in out
    assert "a bar a decade" not in out


def test_a_damaged_mass_is_told(tmp_path: Path) -> None:
    import h5py

    path = stats.save(tmp_path / "s.h5", stats.of(random_edges(0)))
    with h5py.File(path, "r+") as file:
        [block] = file["blocks"].values()
        block["by_target/l1_high"][0] = -1
    with pytest.raises(FormatError, match="an l1 is no fixed-point number from 0"):
        show(path)
