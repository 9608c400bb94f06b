"""The geometric median has the least sum of distances."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from attrib.training import geometric_median


def by_search(points: torch.Tensor) -> torch.Tensor:
    """The least sum of distances, by a minimiser that knows nothing of the problem but values and slopes."""
    x = points.double().numpy()

    def total(m: np.ndarray) -> tuple[float, np.ndarray]:
        difference = m - x
        distance = np.linalg.norm(difference, axis=1)
        return distance.mean(), (difference / np.maximum(distance, 1e-300)[:, None]).mean(0)

    return torch.from_numpy(minimize(total, x[0] + 0.5, jac=True, method="BFGS", options={"gtol": 1e-9}).x).to(points.dtype)


@pytest.mark.parametrize(("count", "d", "outliers"), [(50, 2, 0), (200, 5, 20), (999, 16, 300)])
def test_the_geometric_median_has_the_least_sum_of_distances(count: int, d: int, outliers: int) -> None:
    g = torch.Generator().manual_seed(count)
    points = torch.randn(count, d, generator=g, dtype=torch.float64)
    points[:outliers] += 100
    found = geometric_median(points)
    assert torch.allclose(found, by_search(points), atol=1e-5)
    if outliers:
        kept = points[outliers:].mean(0)
        assert (found - kept).norm() < 0.1 * (points.mean(0) - kept).norm(), "outliers hardly count"


def test_the_geometric_median_on_a_point_or_of_equal_points() -> None:
    cross = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    assert torch.allclose(geometric_median(cross), torch.zeros(2), atol=1e-6)
    assert torch.equal(geometric_median(torch.full((4, 3), 2.0)), torch.full((3,), 2.0))
