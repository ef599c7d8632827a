"""Products and eigenvalues of a tiny net's matrices against dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.measure.along_path import smooth
from experiments.measure.lanczos import lanczos, random_starts
from experiments.measure.matrices import (
    adjoint_gradient,
    finite_difference_product,
    gauss_newton_rows,
    gram_eigenvalues,
    hessian_product,
    kronecker_eigenvalues,
)
from experiments.measure.spectrum import grouped
from snopt.curvature.layers import input_factor, output_factor
from tests.experiments.measure.tiny_nets import tiny


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
    pytest.importorskip("curvlinops")
    options = {"step_size": 0.25} if method == "rk4" else None
    snapshot = tiny(method=method, options=options)
    H = dense_hessian(snapshot)
    eye = torch.eye(len(H), dtype=torch.float64)[:, ::7]
    torch.testing.assert_close(hessian_product(snapshot)(eye), H[:, ::7], rtol=1e-8, atol=1e-12)


def test_lanczos_finds_the_extreme_eigenvalues_and_moments_of_the_hessian():
    pytest.importorskip("curvlinops")
    snapshot = tiny()
    values = torch.linalg.eigvalsh(dense_hessian(snapshot))
    m = len(values)
    starts = random_starts(m, 8, torch.Generator().manual_seed(0), torch.float64)
    nodes = lanczos(hessian_product(snapshot), starts, 20)
    assert float(nodes.values[0, -1]) == pytest.approx(float(values[-1]), rel=1e-6)
    assert float(nodes.values[0, 0]) == pytest.approx(float(values[0]), rel=1e-6)
    # Random starts estimate the second moment; its spread is about √(2 Σλ⁴) / (m √8).
    exact = float((values**2).mean())
    spread = float((2 * (values**4).sum()).sqrt()) / m / 8**0.5
    assert abs(nodes.moment(2) - exact) < 4 * spread


def test_differences_of_the_adjoint_are_the_hessian_where_the_field_is_smooth():
    snapshot = smooth(tiny(method="dopri5", options=None, rtol=1e-8, atol=1e-8))
    H = dense_hessian(snapshot)
    gradient, params = adjoint_gradient(snapshot, 1e-8)
    before = [p.detach().clone() for p in params]
    V = random_starts(len(H), 2, torch.Generator().manual_seed(3), torch.float64) * 2
    found = finite_difference_product(gradient, params, 1e-3)(V)
    assert float((found - H @ V).norm() / (H @ V).norm()) < 1e-5
    for p, value in zip(params, before, strict=True):
        assert torch.equal(p, value)


def test_differences_along_no_direction_are_zero():
    weight = nn.Parameter(torch.ones(3))
    product = finite_difference_product(lambda: weight.detach() ** 3, [weight], 1e-2)
    found = product(torch.stack([torch.zeros(3), torch.tensor([0.0, 2.0, 0.0])], dim=1))
    assert found[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert found[:, 1].tolist() == pytest.approx([0.0, 6.0, 0.0], abs=1e-3)


def test_rows_make_the_gauss_newton_matrix_of_the_whole_solve():
    snapshot = smooth(tiny(method="dopri5", options=None, rtol=1e-8, atol=1e-8))
    rows = gauss_newton_rows(snapshot, 1e-8)
    net = snapshot.solved(gradient="direct")
    params = list(net.ode.func.parameters())
    assert rows.shape == (2 * 10, sum(p.numel() for p in params))
    out = net(snapshot.x)
    dense = 0
    for logits in out:
        J = torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(o, params, retain_graph=True)])
                for o in logits
            ]
        )
        p = torch.softmax(logits.detach(), dim=0)
        dense = dense + J.T @ (torch.diag(p) - torch.outer(p, p)) @ J / len(out)
    torch.testing.assert_close(rows.T @ rows, dense, rtol=1e-4, atol=1e-9)
    values = torch.linalg.eigvalsh(dense).flip(0)[:3]
    torch.testing.assert_close(gram_eigenvalues(rows)[:3], values, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3)])
def test_gram_eigenvalues_come_from_the_small_side(shape):
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
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
