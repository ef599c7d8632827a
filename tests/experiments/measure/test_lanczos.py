"""Stochastic Lanczos quadrature against dense matrices and against curvlinops."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.base.errors import ConfigError
from experiments.measure.lanczos import Nodes, density, lanczos, random_starts


def symmetric(eigenvalues, seed=0):
    """A matrix with these eigenvalues in random directions, float64."""
    generator = torch.Generator().manual_seed(seed)
    d = len(eigenvalues)
    Q, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return Q @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ Q.T


def starts(d, count, seed=1):
    return random_starts(d, count, torch.Generator().manual_seed(seed), torch.float64)


def test_starts_have_length_one_and_differ():
    found = starts(20, 3)
    torch.testing.assert_close(found.norm(dim=0), torch.ones(3, dtype=torch.float64))
    assert (found.T @ found - torch.eye(3)).abs().max() < 0.9


def test_all_steps_give_all_eigenvalues():
    values = torch.linspace(-1.0, 3.0, 25, dtype=torch.float64)
    H = symmetric(values)
    nodes = lanczos(lambda V: H @ V, starts(25, 2), 25)
    for found in nodes.values:
        torch.testing.assert_close(found, values, rtol=0, atol=1e-9)
    torch.testing.assert_close(nodes.weights.sum(dim=1), torch.ones(2, dtype=torch.float64))


def test_k_steps_are_exact_for_polynomials_up_to_degree_2k_minus_1():
    H = symmetric(torch.linspace(-1.0, 2.0, 40))
    start = starts(40, 1)
    nodes = lanczos(lambda V: H @ V, start, 4)
    for order in range(10):
        exact = float((start.T @ torch.linalg.matrix_power(H, order) @ start).squeeze())
        if order < 8:
            assert nodes.moment(order) == pytest.approx(exact, rel=1e-10)
        else:
            assert nodes.moment(order) != pytest.approx(exact, rel=1e-10)


def test_moments_over_a_basis_are_the_traces():
    H = symmetric(torch.logspace(-3, 1, 12))
    nodes = lanczos(lambda V: H @ V, torch.eye(12, dtype=torch.float64), 3)
    for order in (1, 2, 3, 4, 5):
        exact = float(torch.linalg.matrix_power(H, order).trace()) / 12
        assert nodes.moment(order) == pytest.approx(exact, rel=1e-10)


def test_extreme_eigenvalues_converge_first_and_are_named():
    values = [-4.0, 10.0, 7.0, *torch.linspace(-0.5, 0.5, 57).tolist()]
    H = symmetric(values)
    nodes = lanczos(lambda V: H @ V, starts(60, 1), 14)
    assert float(nodes.values[0, -1]) == pytest.approx(10.0, rel=1e-6)
    assert float(nodes.values[0, 0]) == pytest.approx(-4.0, rel=1e-6)
    found = nodes.converged(1e-4)
    assert found[:2].tolist() == pytest.approx([10.0, 7.0], rel=1e-5)
    assert len(found) < 14


def test_residuals_are_those_of_the_approximate_eigenvectors():
    # With one step the vector is the start itself.
    H = symmetric(torch.linspace(0.0, 1.0, 15))
    start = starts(15, 1)
    nodes = lanczos(lambda V: H @ V, start, 1)
    value = float(start.T @ H @ start)
    assert float(nodes.values) == pytest.approx(value)
    assert float(nodes.residuals) == pytest.approx(float((H @ start - value * start).norm()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_ends_in_an_invariant_subspace(dtype):
    H = symmetric([5.0, 2.0, *([0.0] * 28)]).to(dtype)
    nodes = lanczos(lambda V: H @ V, starts(30, 2).to(dtype), 10)
    assert bool(torch.isfinite(nodes.values).all())
    torch.testing.assert_close(nodes.weights.sum(dim=1), torch.ones(2, dtype=torch.float64))
    assert nodes.converged()[:2].tolist() == pytest.approx([5.0, 2.0], rel=1e-4)


def test_more_steps_than_the_matrix_has_rows_are_cut():
    assert lanczos(lambda V: 2 * V, starts(3, 1), 9).values.shape == (1, 3)


def test_density_integrates_to_one_and_is_the_exact_one_for_all_steps():
    values = torch.cat([torch.full((17,), 0.2), torch.tensor([1.0, 1.4, 2.0])]).double()
    H = symmetric(values)
    nodes = lanczos(lambda V: H @ V, torch.eye(20, dtype=torch.float64), 20)
    grid = torch.linspace(-1.0, 3.5, 4000, dtype=torch.float64)
    found = density(grid, nodes.values, nodes.weights / 20, 0.05)
    exact = density(grid, values, torch.full((20,), 1 / 20, dtype=torch.float64), 0.05)
    assert float(torch.trapezoid(found, grid)) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)


def test_density_of_one_node_is_the_gaussian():
    grid = torch.tensor([1.0, 1.5], dtype=torch.float64)
    found = density(grid, torch.tensor([1.0]), torch.tensor([1.0]), 0.5)
    peak = 1 / (0.5 * math.sqrt(2 * math.pi))
    assert found.tolist() == pytest.approx([peak, peak * math.exp(-0.5)])


def test_a_product_that_is_not_finite_is_refused():
    with pytest.raises(ConfigError, match="product 1 with the matrix is not finite"):
        lanczos(lambda V: V * float("nan"), starts(4, 1), 2)


def test_no_steps_are_refused():
    with pytest.raises(ConfigError, match="at least one step, got 0"):
        lanczos(lambda V: V, starts(4, 1), 0)


def test_the_density_is_that_of_curvlinops_own_lanczos():
    spectrum = pytest.importorskip("curvlinops.papyan2020traces.spectrum")
    H = symmetric(torch.linspace(-1.0, 2.0, 30))
    start = starts(30, 1)
    nodes = lanczos(lambda V: H @ V, start, 8)
    values, vectors = torch.linalg.eigh(_tridiagonal(H, start[:, 0], 8))
    # Their estimate from the same tridiagonal matrix, their width of the Gaussian, their grid.
    grid, theirs = spectrum.lanczos_approximate_spectrum_from_iter(
        (values, vectors), (-1.0, 2.0), 200, 3.0, 0.05
    )
    half = (grid[-1] - grid[0]) / 2
    sigma = float(half * 2 / (8 - 1) / math.sqrt(8 * math.log(3.0)))
    ours = density(grid, nodes.values, nodes.weights, sigma)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def _tridiagonal(H, start, k):
    """Vᵀ H V in the orthonormal basis of the Krylov space."""
    V = torch.stack([torch.linalg.matrix_power(H, i) @ start for i in range(k)], dim=1)
    Q, R = torch.linalg.qr(V)
    Q = Q * R.diagonal().sign()
    return Q.T @ H @ Q


def test_nodes_of_several_runs_share_the_moments():
    nodes = Nodes(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1), torch.zeros(2, 1))
    assert nodes.moment(1) == 2.0
    assert nodes.moment(2) == 5.0
