"""Lanczos, products and eigenvalues against dense matrices and against curvlinops."""

from __future__ import annotations

import math
from unittest.mock import Mock

import pytest
import torch
from curvlinops.papyan2020traces import spectrum as curvlinops_spectrum
from torch import nn

from experiments.base.errors import ConfigError
from experiments.measure.path_factors import smooth
from experiments.measure.spectrum import (
    adjoint_gradient,
    density,
    finite_difference_product,
    gauss_newton_rows,
    gram_eigenvalues,
    grouped,
    hessian_product,
    kronecker_eigenvalues,
    lanczos,
    random_starts,
)
from snopt.curvature.layers import input_factor, output_factor
from tests.experiments.measure.tiny import tiny_net as tiny


def symmetric(eigenvalues):
    """A matrix with these eigenvalues in random directions, float64."""
    generator = torch.Generator().manual_seed(0)
    d = len(eigenvalues)
    Q, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return Q @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ Q.T


def starts(d, count):
    return random_starts(d, count, 1, torch.float64)


def moment(nodes, order):
    return float((nodes.weights * nodes.values**order).sum(dim=1).mean())


def test_all_steps_give_all_eigenvalues_from_every_start():
    values = torch.linspace(-1.0, 3.0, 25, dtype=torch.float64)
    H, start = symmetric(values), starts(25, 2)
    torch.testing.assert_close(start.norm(dim=0), torch.ones(2, dtype=torch.float64))
    assert not torch.equal(start[:, 0], start[:, 1])
    nodes = lanczos(lambda V: H @ V, start, 99)  # more than there are rows are cut
    torch.testing.assert_close(nodes.values, values.expand(2, -1), rtol=0, atol=1e-9)
    torch.testing.assert_close(nodes.weights.sum(dim=1), torch.ones(2, dtype=torch.float64))


def test_k_steps_are_exact_for_polynomials_up_to_degree_2k_minus_1():
    H = symmetric(torch.linspace(-1.0, 2.0, 40))
    start = starts(40, 1)
    nodes = lanczos(lambda V: H @ V, start, 4)
    for order in range(10):
        exact = float((start.T @ torch.linalg.matrix_power(H, order) @ start).squeeze())
        assert (moment(nodes, order) == pytest.approx(exact, rel=1e-10)) == (order < 8)


def test_extreme_eigenvalues_settle_first_and_say_so():
    H = symmetric([-4.0, 10.0, 7.0, *torch.linspace(-0.5, 0.5, 57).tolist()])
    nodes = lanczos(lambda V: H @ V, starts(60, 1), 14)
    values, settled = nodes.values[0], nodes.residuals[0] <= 1e-4 * nodes.values[0].abs()
    assert values[[-1, -2, 0]].tolist() == pytest.approx([10.0, 7.0, -4.0], rel=1e-5)
    assert settled[[-1, -2, 0]].tolist() == [True] * 3
    assert not settled.all()
    # Residuals are those of the approximate eigenvectors: with one step, of the start itself.
    start = starts(60, 1)
    one = lanczos(lambda V: H @ V, start, 1)
    value = float(start.T @ H @ start)
    assert float(one.values) == pytest.approx(value)
    assert float(one.residuals) == pytest.approx(float((H @ start - value * start).norm()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_ends_in_an_invariant_subspace(dtype):
    H = symmetric([5.0, 2.0, *([0.0] * 28)]).to(dtype)
    nodes = lanczos(lambda V: H @ V, starts(30, 2).to(dtype), 10)
    assert bool(torch.isfinite(nodes.values).all())
    torch.testing.assert_close(nodes.weights.sum(dim=1), torch.ones(2, dtype=torch.float64))
    found = nodes.values[nodes.weights > 1e-12].reshape(2, -1)
    for values in found:
        assert values.flip(0)[:2].tolist() == pytest.approx([5.0, 2.0], rel=1e-4)


def test_what_lanczos_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="product 1 with the matrix is not finite"):
        lanczos(lambda V: V * float("nan"), starts(4, 1), 2)
    with pytest.raises(ConfigError, match="at least one step, got 0"):
        lanczos(lambda V: V, starts(4, 1), 0)


def test_density_integrates_to_one_and_is_the_exact_one_for_all_steps():
    values = torch.cat([torch.full((17,), 0.2), torch.tensor([1.0, 1.4, 2.0])]).double()
    H = symmetric(values)
    nodes = lanczos(lambda V: H @ V, torch.eye(20, dtype=torch.float64), 20)
    grid = torch.linspace(-1.0, 3.5, 4000, dtype=torch.float64)
    found = density(grid, nodes.values, nodes.weights / 20, 0.05)
    exact = density(grid, values, torch.full((20,), 1 / 20, dtype=torch.float64), 0.05)
    assert float(torch.trapezoid(found, grid)) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)


def test_the_density_is_that_of_curvlinops_where_theirs_is_stable():
    H = symmetric(torch.linspace(-1.0, 2.0, 30))
    torch.manual_seed(0)
    theirs = curvlinops_spectrum.fast_lanczos(H, 8)
    torch.manual_seed(0)
    start = torch.randn(30, dtype=torch.float64)
    nodes = lanczos(lambda V: H @ V, (start / start.norm())[:, None], 8)
    torch.testing.assert_close(nodes.values[0], theirs[0])
    # Their estimate, their width of the Gaussian, their grid.
    grid, curve = curvlinops_spectrum.lanczos_approximate_spectrum_from_iter(
        theirs, (-1.0, 2.0), 200, 3.0, 0.05
    )
    sigma = float((grid[-1] - grid[0]) / 7 / math.sqrt(8 * math.log(3.0)))
    ours = density(grid, nodes.values, nodes.weights, sigma)
    torch.testing.assert_close(ours, curve, rtol=1e-8, atol=1e-10)


def test_no_eigenvalue_comes_twice_as_without_reorthogonalisation():
    H = symmetric([*torch.linspace(0.0, 1.0, 197).tolist(), 10.0, 20.0, 30.0]).float()
    torch.manual_seed(0)
    theirs, _ = curvlinops_spectrum.fast_lanczos(H, 50)
    assert theirs.flip(0)[:2].tolist() == pytest.approx([30.0, 30.0], rel=1e-4)
    ours = lanczos(lambda V: H @ V, starts(200, 1).float(), 50).values[0].flip(0)
    assert ours[:4].tolist() == pytest.approx([30.0, 20.0, 10.0, 1.0], rel=1e-3)


def dense_hessian(snapshot):
    """By double backpropagation through the solve, row by row."""
    net = snapshot.solved(gradient="direct")
    params = list(net.ode.func.parameters())
    loss = nn.functional.cross_entropy(net(snapshot.x), snapshot.y)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, create_graph=True)])
    rows = [torch.autograd.grad(g, params, retain_graph=True) for g in slope]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_curvlinops_multiplies_with_the_hessian_of_the_solve(method):
    options = {"step_size": 0.25} if method == "rk4" else None
    snapshot = tiny(method=method, options=options)
    H = dense_hessian(snapshot)
    eye = torch.eye(len(H), dtype=torch.float64)[:, ::7]
    torch.testing.assert_close(hessian_product(snapshot)(eye), H[:, ::7], rtol=1e-8, atol=1e-12)


def test_lanczos_finds_the_extreme_eigenvalues_and_moments_of_the_hessian():
    snapshot = tiny()
    values = torch.linalg.eigvalsh(dense_hessian(snapshot))
    m = len(values)
    nodes = lanczos(hessian_product(snapshot), starts(m, 8), 20)
    assert float(nodes.values[0, -1]) == pytest.approx(float(values[-1]), rel=1e-6)
    assert float(nodes.values[0, 0]) == pytest.approx(float(values[0]), rel=1e-6)
    # Random starts estimate the second moment; its spread is about √(2 Σλ⁴) / (m √8).
    exact = float((values**2).mean())
    spread = float((2 * (values**4).sum()).sqrt()) / m / 8**0.5
    assert abs(moment(nodes, 2) - exact) < 4 * spread


def test_differences_of_the_adjoint_are_the_hessian_where_the_field_is_smooth():
    snapshot = smooth(tiny(method="dopri5", options=None, rtol=1e-8, atol=1e-8))
    H = dense_hessian(snapshot)
    gradient, params = adjoint_gradient(snapshot, 1e-8)
    before = [p.detach().clone() for p in params]
    V = starts(len(H), 2) * 2
    found = finite_difference_product(gradient, params, 1e-3)(V)
    assert float((found - H @ V).norm() / (H @ V).norm()) < 1e-5
    for p, value in zip(params, before, strict=True):
        assert torch.equal(p, value)


def test_differences_along_no_direction_are_zero_and_parameters_are_put_back():
    weight = nn.Parameter(torch.ones(3))
    product = finite_difference_product(lambda: weight.detach() ** 3, [weight], 1e-2)
    found = product(torch.stack([torch.zeros(3), torch.tensor([0.0, 2.0, 0.0])], dim=1))
    assert found[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert found[:, 1].tolist() == pytest.approx([0.0, 6.0, 0.0], abs=1e-3)
    gradient = Mock(side_effect=RuntimeError("no gradient"))
    with pytest.raises(RuntimeError, match="no gradient"):
        finite_difference_product(gradient, [weight], 0.5)(torch.eye(3))
    assert weight.tolist() == [1.0, 1.0, 1.0]


def test_rows_make_the_gauss_newton_matrix_of_the_whole_solve():
    snapshot = smooth(tiny(method="dopri5", options=None, rtol=1e-8, atol=1e-8))
    rows = gauss_newton_rows(snapshot, 1e-8)
    net = snapshot.solved(gradient="direct")
    params = list(net.ode.func.parameters())
    assert rows.shape == (2 * 10, sum(p.numel() for p in params))
    out = net(snapshot.x)
    dense = 0
    for logits in out:
        grads = [torch.autograd.grad(o, params, retain_graph=True) for o in logits]
        J = torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])
        p = torch.softmax(logits.detach(), dim=0)
        dense = dense + J.T @ (torch.diag(p) - torch.outer(p, p)) @ J / len(out)
    torch.testing.assert_close(rows.T @ rows, dense, rtol=1e-4, atol=1e-9)
    values = torch.linalg.eigvalsh(dense).flip(0)[:3]
    torch.testing.assert_close(gram_eigenvalues(rows)[:3], values, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3)])
def test_gram_eigenvalues_come_from_the_small_side(shape):
    rows = starts(*shape)
    found = gram_eigenvalues(rows)
    dense = torch.linalg.eigvalsh(rows.T @ rows).flip(0)[:3]
    assert len(found) == 3
    torch.testing.assert_close(found, dense)


def test_kronecker_eigenvalues_are_products_of_those_of_the_factors():
    # A field that does not move: the factors at any time are those of z0 and of Φ_z.
    snapshot = tiny(samples=3, method="dopri5", options=None)
    field = snapshot.net.ode.func
    with torch.no_grad():
        field.conv2.weight.zero_()
        field.conv2.bias.zero_()
    z0 = snapshot.start()
    g = snapshot.rows(z0, "empirical")[0] / 3
    # t appears in A of conv2 as a channel of its own: ∫ t dt and ∫ t² dt by two nodes.
    A = 0
    for t in (0.5 - 12**-0.5, 0.5 + 12**-0.5):
        h = torch.relu(field.conv1(torch.cat([torch.full_like(z0[:, :1], t), z0], dim=1)))
        A = A + input_factor(field.conv2, torch.cat([torch.full_like(h[:, :1], t), h], 1))[0] / 2
    B = output_factor(field.conv2, g)[0]
    largest = float(torch.linalg.eigvalsh(A)[-1] * torch.linalg.eigvalsh(B)[-1])
    found = kronecker_eigenvalues(snapshot, "empirical", 1e-8)
    assert len(found) == sum(p.numel() for p in snapshot.params)
    # conv1 has no gradient behind zero weights, so conv2's largest is the largest of all.
    assert float(found[0]) == pytest.approx(largest, rel=2e-2)
    total = float(A.trace() * B.trace())
    assert float(found.sum()) == pytest.approx(total, rel=2e-2)


def test_groups_keep_the_sum_and_stand_alone_at_the_top():
    values = torch.logspace(0, -4, 300, dtype=torch.float64)
    found = grouped(values, 1000, exact=10)
    assert sum(count for *_, count in found) == 1000
    assert [rank for rank, *_ in found[:11]] == list(range(1, 12))
    assert [value for _, value, _ in found[:10]] == values[:10].tolist()
    total = sum(value * count for _, value, count in found)
    assert total == pytest.approx(float(values.sum()))
    assert found[-1][1] == 0.0
    assert len(found) < 80
