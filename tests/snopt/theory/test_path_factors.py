"""Kronecker factors from rows: exact cases, what SNOpt collects, and Monte-Carlo rates."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from snopt_cases import PairField, TanhField, assert_close
from torch import Tensor, nn

import snopt
from snopt import second_order_adjoint
from snopt.theory.path_factors import path_factors

TIGHT = {"rtol": 1e-9, "atol": 1e-11}
CLASSES = 3


class ConstantInput(nn.Module):
    """One linear layer that sees the same input at all times: z(t) is a straight line."""

    def __init__(self, dim: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(width, dim, bias=bias)
        self.register_buffer("c", torch.linspace(-1.0, 2.0, width))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.layer(self.c.expand(z.shape[0], -1))


def read_out(dim: int) -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(dim, CLASSES).double()


def ggn_rows(head: nn.Linear, z: Tensor) -> Tensor:
    """Return Jᵀ S by sample, (classes, N, d), with S Sᵀ = diag(p) - p pᵀ of the softmax p."""
    p = torch.softmax(head(z).detach(), dim=1)
    S = torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)
    return (S.mT @ head.weight.detach()).transpose(0, 1)


def mc_rows(head: nn.Linear, z: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return gradients for labels drawn from the prediction, over √k, (k, N, d)."""
    p = torch.softmax(head(z).detach(), dim=1)
    labels = torch.multinomial(p, k, replacement=True, generator=generator).T
    residual = p - nn.functional.one_hot(labels, CLASSES)
    return residual @ head.weight.detach() / math.sqrt(k)


def loss(head: nn.Linear, labels: Tensor):
    return lambda z: nn.functional.cross_entropy(head(z), labels)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("times", [(0.2, 1.7), (1.0, 0.4)])
def test_ggn_factors_are_the_dense_block_where_the_kronecker_form_is_exact(times, bias):
    torch.manual_seed(0)
    dim, width, batch = 3, 2, 4
    field, head = ConstantInput(dim, width, bias=bias).double(), read_out(dim)
    y0 = torch.randn(batch, dim, dtype=torch.float64)
    t = torch.tensor(times, dtype=torch.float64)
    labels = torch.arange(batch) % CLASSES
    dense = second_order_adjoint(field, y0, t, loss(head, labels), **TIGHT).Q_uu
    found = path_factors(field, y0, t, lambda z: ggn_rows(head, z), **TIGHT)["layer"]
    A, B = found.A[0], found.B[0]
    # θ is the weight row by row, then the bias; the factors have the bias last in each row.
    features = width + bias
    order = torch.arange(dim * features).reshape(dim, features)
    order = torch.cat([order[:, :width].reshape(-1), order[:, width:].reshape(-1)])
    assert_close(torch.kron(B, A)[order][:, order], dense, rtol=1e-8)
    assert found.weight == pytest.approx(abs(times[1] - times[0]))
    assert found.batch == batch


def test_one_row_per_sample_gives_what_an_optimizer_collects():
    torch.manual_seed(1)
    field = TanhField().double()
    y0, t = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0.0, 1.3], dtype=torch.float64)
    rule = snopt.gauss_legendre(3)
    preconditioner = snopt.Preconditioner(field, quadrature=rule)
    z1 = snopt.odeint_adjoint(field, y0, t, **TIGHT)[-1]
    (torch.sin(z1).sum() / len(y0)).backward()
    preconditioner.step()
    found = path_factors(
        field, y0, t, lambda z: torch.cos(z).unsqueeze(0), quadrature=rule, **TIGHT
    )
    assert set(found) == {"first", "second"}
    for name, factors in found.items():
        collected = preconditioner.curvature[field.get_submodule(name)]
        assert_close(factors.A[0], collected.A, rtol=1e-7)
        assert_close(factors.B[0], collected.B, rtol=1e-7)
        assert factors.weight == pytest.approx(collected.weight)


def test_ggn_rows_give_the_factors_of_the_optimizers_ggn_curvature():
    torch.manual_seed(8)
    field, head = TanhField().double(), read_out(3)
    y0, t = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    model = nn.Sequential(snopt.ODEBlock(field, t, **TIGHT), head)
    optimizer = snopt.SNOpt(model, lr=0.0, curvature="ggn")
    found = path_factors(field, y0, t, lambda z: ggn_rows(head, z), **TIGHT)
    output = model(y0)
    optimizer.backward(nn.functional.cross_entropy(output, torch.arange(5) % CLASSES), output)
    optimizer.step()
    for name, factors in found.items():
        collected = optimizer.curvature[field.get_submodule(name)]
        assert_close(factors.A[0], collected.A, rtol=1e-6)
        assert_close(factors.B[0], collected.B, rtol=1e-6)


def test_monte_carlo_converges_to_ggn_at_the_rate_one_over_root_k():
    torch.manual_seed(2)
    field, head = TanhField().double(), read_out(3)
    y0, t = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    cheap = {"method": "rk4", "options": {"step_size": 0.5}, "quadrature": snopt.gauss_legendre(2)}
    exact = path_factors(field, y0, t, lambda z: ggn_rows(head, z), **cheap)
    generator = torch.Generator().manual_seed(3)
    counts, repeats = (4, 16, 64), 12
    errors = []
    for k in counts:
        squares = []
        for _ in range(repeats):
            found = path_factors(field, y0, t, lambda z: mc_rows(head, z, k, generator), **cheap)  # noqa: B023
            squares.append(
                sum(
                    float((found[name].B - exact[name].B).norm() / exact[name].B.norm()) ** 2
                    for name in exact
                )
            )
            assert all(torch.equal(found[name].A, exact[name].A) for name in exact)
        errors.append(math.sqrt(sum(squares) / repeats))
    slope = math.log(errors[-1] / errors[0]) / math.log(counts[-1] / counts[0])
    assert slope == pytest.approx(-0.5, abs=0.12), (errors, slope)
    assert all(a > b for a, b in itertools.pairwise(errors))


class ConvField(nn.Module):
    """Two convolutions with a ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(z)))


def test_factors_of_two_rows_are_the_sum_of_those_of_each():
    torch.manual_seed(4)
    field = ConvField().double()
    y0, t = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.tensor([0.0, 1.0])
    rows = torch.randn(2, *y0.shape, dtype=torch.float64)
    settings = {"method": "rk4", "options": {"step_size": 0.25}}
    both = path_factors(field, y0, t, rows, **settings)
    each = [path_factors(field, y0, t, row.unsqueeze(0), **settings) for row in rows]
    for name, factors in both.items():
        assert_close(factors.B, each[0][name].B + each[1][name].B, rtol=1e-12)
        assert torch.equal(factors.A, each[0][name].A)


def test_nodes_leave_a_fixed_grid_alone():
    """Without step_size the output times would be the grid; with many nodes it would be fine."""
    torch.manual_seed(6)
    field = TanhField().double()
    y0, t = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    nfe = snopt.NFE()
    rows = torch.randn(1, 2, 3, dtype=torch.float64)
    path_factors(field, y0, t, rows, method="rk4", quadrature=snopt.uniform(0.1), nfe=nfe)
    assert nfe.backward <= 5  # one step, and F at its end for the interpolation
    assert nfe.curvature == 20


def test_tuple_states_and_unused_layers():
    torch.manual_seed(7)
    field = PairField().double()
    field.spare = nn.Linear(2, 2).double()
    y0 = (torch.randn(2, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64))
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    rows = (torch.randn(1, 2, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64))
    found = path_factors(field, y0, t, rows, rtol=1e-4, atol=1e-6)
    assert set(found) == {"inner.first", "inner.second"}


def test_bad_input():
    field, y0 = TanhField(), torch.zeros(2, 3)
    t, rows = torch.tensor([0.0, 0.5, 1.0]), torch.ones(1, 2, 3)
    with pytest.raises(ValueError, match="a start and an end, got 3 times"):
        path_factors(field, y0, t, rows)
    with pytest.raises(ValueError, match="needs nodes"):
        path_factors(field, y0, t[:2], rows, quadrature=snopt.steps())
    with pytest.raises(ValueError, match="no vectors"):
        path_factors(field, y0, t[:2], rows[:0])
