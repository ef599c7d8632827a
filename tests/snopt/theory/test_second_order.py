"""Theorem 1 against autograd's Hessian through the solve and against JᵀΦ_zz J."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from second_order_cases import TIGHT, as_state, interval, solver, system, terminal
from snopt_cases import TanhField, assert_close
from torch import nn

import snopt
from snopt import second_order_adjoint
from snopt.curvature.collector import Collector
from snopt.curvature.factors import Accumulator
from snopt.theory.second_order import dense_size_mb

DIRECTIONS = ["forward", "backward"]


def derivatives(value, point):
    """Return gradient and Hessian of a function by double backpropagation."""
    gradient = torch.autograd.functional.jacobian(value, point)
    return gradient, torch.autograd.functional.hessian(value, point, vectorize=True)


def assert_first_order(found, gradient, n, rtol=1e-6):
    assert_close(found.Q_z, gradient[:n], rtol=rtol)
    assert_close(found.Q_u, gradient[n:], rtol=rtol)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "seed"), [("tensor", 0), ("tensor", 1), ("tuple", 2)])
def test_full_hessian_is_autograds_hessian_of_the_solve(kind, seed, direction):
    field, y0 = system(seed, kind)
    t = interval(direction)
    point, end = solver(field, y0, t, rtol=1e-8, atol=1e-10)
    gradient, hessian = derivatives(lambda at: terminal(as_state(end(at)[0], y0)), point)
    found = second_order_adjoint(field, y0, t, terminal, full_hessian=True, **TIGHT)
    assert_first_order(found, gradient, len(found.Q_z))
    assert_close(found.matrix, hessian, rtol=1e-6)
    # What Gauss-Newton leaves out is no small matter here, so the test can tell them apart.
    without = second_order_adjoint(field, y0, t, terminal, **TIGHT)
    assert (without.matrix - hessian).abs().max() > 1e-2 * hessian.abs().max()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "seed"), [("tensor", 3), ("tensor", 4), ("tuple", 5)])
def test_gauss_newton_is_the_terminal_hessian_pulled_back_through_the_solve(kind, seed, direction):
    field, y0 = system(seed, kind)
    t = interval(direction)
    point, end = solver(field, y0, t, rtol=1e-8, atol=1e-10)
    J = torch.autograd.functional.jacobian(lambda at: end(at)[0], point, vectorize=True)
    z1 = end(point)[0]
    Phi_zz = torch.autograd.functional.hessian(lambda z: terminal(as_state(z, y0)), z1)
    found = second_order_adjoint(field, y0, t, terminal, **TIGHT)
    assert_close(found.matrix, J.T @ Phi_zz @ J, rtol=1e-6)
    assert_close(found.z1, z1, rtol=1e-7)
    assert torch.equal(found.matrix, found.matrix.T)
    assert not found.Q_uu.requires_grad


def running_cost(field):
    """Return a running cost of time, state and parameters, and the same of given parameters."""

    def cost(t, z, theta):
        decay = sum((p**2).sum() for p in theta) / 2
        return (1 + t) * torch.sin(z).sum() + 0.3 * decay + (z.sum() * theta[0].sum()) ** 2

    return (lambda t, z: cost(t, z, list(field.parameters()))), cost


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_running_cost_in_the_full_hessian(direction):
    field, y0 = system(1)
    t = interval(direction)
    ours, oracle = running_cost(field)
    point, end = solver(field, y0, t, oracle, rtol=1e-8, atol=1e-10)

    def loss(at):
        z1, cost = end(at)
        return terminal(as_state(z1, y0)) + cost

    gradient, hessian = derivatives(loss, point)
    found = second_order_adjoint(field, y0, t, terminal, full_hessian=True, running=ours, **TIGHT)
    assert_first_order(found, gradient, len(found.Q_z))
    assert_close(found.matrix, hessian, rtol=1e-6)


def test_weight_decay_as_a_running_cost_adds_its_own_matrix():
    field, y0 = system(0)
    t = interval("forward")

    def decay(_t, _z):
        return 0.3 / 2 * sum((p**2).sum() for p in field.parameters())

    plain = second_order_adjoint(field, y0, t, terminal, **TIGHT)
    found = second_order_adjoint(field, y0, t, terminal, running=decay, **TIGHT)
    theta = torch.cat([p.detach().reshape(-1) for p in field.parameters()])
    length = float(t[1] - t[0])
    assert_close(found.Q_u - plain.Q_u, 0.3 * length * theta, rtol=1e-8)
    unit = torch.eye(len(theta), dtype=theta.dtype)
    assert_close(found.Q_uu - plain.Q_uu, 0.3 * length * unit, rtol=1e-8)
    assert_close(found.Q_zz, plain.Q_zz, rtol=1e-8)


SOLVERS = [
    ("dopri5", {}, "auto"),
    ("dopri5", {}, "torchdiffeq"),
    ("dopri8", {}, "auto"),
    ("bosh3", {}, "auto"),
    ("rk4", {"step_size": 0.1}, "auto"),
    ("rk4", {"step_size": 0.1}, "torchdiffeq"),
    ("implicit_adams", {"step_size": 0.05}, "auto"),
    ("heun3", {"step_size": 0.05}, "auto"),
]


@functools.cache
def exact(direction):
    field, y0 = system(0, batch=1)
    t = interval(direction)
    return second_order_adjoint(field, y0, t, terminal, full_hessian=True, **TIGHT)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("method", "options", "engine"), SOLVERS)
def test_every_solver_gives_the_same(method, options, engine, direction):
    field, y0 = system(0, batch=1)
    t = interval(direction)
    rtol, atol = (1e-6, 1e-8) if method == "dopri8" else (1e-5, 1e-6)
    settings = {"method": method, "options": options, "engine": engine, "rtol": rtol, "atol": atol}
    found = second_order_adjoint(field, y0, t, terminal, full_hessian=True, **settings)
    assert_close(found.matrix, exact(direction).matrix, rtol=1e-4)
    assert_close(found.Q_u, exact(direction).Q_u, rtol=1e-4)


def test_times_between_are_steps_of_a_fixed_grid():
    field, y0 = system(0)
    fine = torch.linspace(0.2, 1.1, 31, dtype=torch.float64)
    found = second_order_adjoint(field, y0, fine, terminal, method="rk4")
    coarse = second_order_adjoint(field, y0, fine[[0, -1]], terminal, method="rk4")
    exact = second_order_adjoint(field, y0, fine[[0, -1]], terminal, **TIGHT)
    assert_close(found.matrix, exact.matrix, rtol=1e-6)
    assert (coarse.matrix - exact.matrix).abs().max() > 1e-5 * exact.matrix.abs().max()


def test_a_linear_field_has_the_closed_form():
    """F = λ z: z(t1) = e^{λT} z0, so with Φ = z²/2 all derivatives are elementary."""

    class Decay(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, t, z):
            return self.rate * z

    z0 = torch.tensor([1.3], dtype=torch.float64)
    t = torch.tensor([0.0, 0.8], dtype=torch.float64)
    run = functools.partial(second_order_adjoint, Decay(), z0, t, lambda z: (z**2).sum() / 2)
    growth, T, z = torch.exp(torch.tensor(2 * 0.7 * 0.8, dtype=torch.float64)), 0.8, 1.3
    full = run(full_hessian=True, **TIGHT)
    assert_close(full.Q_zz, growth.reshape(1, 1), rtol=1e-8)
    assert_close(full.Q_uz, (2 * T * z * growth).reshape(1, 1), rtol=1e-8)
    assert_close(full.Q_uu, (2 * T**2 * z**2 * growth).reshape(1, 1), rtol=1e-8)
    half = run(**TIGHT)
    assert_close(half.Q_uz, (T * z * growth).reshape(1, 1), rtol=1e-8)
    assert_close(half.Q_uu, (T**2 * z**2 * growth).reshape(1, 1), rtol=1e-8)


def test_frozen_and_missing_parameters_are_left_out():
    field, y0 = system(0)
    t = interval("forward")
    whole = second_order_adjoint(field, y0, t, terminal)
    field.first.requires_grad_(False)
    count = sum(p.numel() for p in field.second.parameters())
    part = second_order_adjoint(field, y0, t, terminal)
    assert_close(part.Q_uu, whole.Q_uu[-count:, -count:], rtol=1e-5)
    field.second.requires_grad_(False)
    none = second_order_adjoint(field, y0, t, terminal)
    assert none.Q_u.shape == (0,)
    assert none.Q_uz.shape == (0, len(none.Q_z))
    assert_close(none.matrix, whole.Q_zz, rtol=1e-5)


class Unbatchable(torch.autograd.Function):
    """The tanh as a function that vmap has no rule for."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y * y) if y.is_contiguous() and float(y.sum()) == float(y.sum()) else g


def test_a_field_that_vmap_cannot_pass_goes_row_by_row():
    field, y0 = system(0)
    t = interval("forward")
    expected = second_order_adjoint(field, y0, t, terminal)

    class Other(TanhField):
        def forward(self, t, z):
            time = t.expand(*z.shape[:-1], 1)
            return self.second(Unbatchable.apply(self.first(torch.cat([z, time], dim=-1))))

    other = Other(1, 2).double()
    other.load_state_dict(field.state_dict())
    assert_close(second_order_adjoint(other, y0, t, terminal).matrix, expected.matrix, rtol=1e-9)


def test_nothing_of_the_callers_is_touched():
    field, y0 = system(0)
    head = nn.Linear(1, 1).double()
    collector = Collector(
        {field.first: "first", head: "head"}, snopt.gauss_legendre(2), Accumulator
    )
    y0 = y0.requires_grad_()
    collector.arm()
    second_order_adjoint(field, y0, interval("forward"), lambda z: head(z).pow(2).sum())
    # Neither the solves nor the loss are a use of a layer by a training step.
    assert collector.sums == {}
    collector.disarm()
    assert y0.grad is None
    assert all(p.grad is None for p in (*field.parameters(), *head.parameters()))
    with torch.no_grad():
        second_order_adjoint(field, y0, interval("forward"), terminal)


def test_evaluations_are_counted():
    field, y0 = system(0)
    nfe = snopt.NFE()
    rk4 = {"method": "rk4", "options": {"step_size": 0.9}}
    second_order_adjoint(field, y0, interval("forward"), terminal, nfe=nfe, **rk4)
    assert (nfe.forward, nfe.backward) == (4, 4)


# --- bad input -----------------------------------------------------------------------------------


def test_a_large_system_is_told_its_size_and_what_to_use():
    field, y0 = TanhField(40, 200), torch.zeros(8, 40)
    m = sum(p.numel() for p in field.parameters())
    matrices, solve = dense_size_mb(320, m, torch.float32, "dopri5")
    assert matrices == pytest.approx((320**2 + 320 * m + m * m) * 4 / 2**20)
    assert solve > matrices
    with pytest.raises(ValueError, match="low_rank_adjoint") as caught:
        second_order_adjoint(field, y0, torch.tensor([0.0, 1.0]), lambda z: z.sum())
    message = str(caught.value)
    assert f"|z| = 320 and |θ| = {m}" in message
    assert f"{matrices:.4g} MB" in message
    assert "SNOpt" in message


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda z: z**2, ValueError, r"terminal\(z\) must be a scalar, got shape \(2, 1\)"),
        (lambda z: 3.0, TypeError, "must return a tensor, got float"),
        (lambda z: (z / 0 * 0).sum(), ValueError, r"terminal\(z\) is nan"),
        (lambda z: z.detach().sum(), ValueError, "has no graph"),
    ],
    ids=["vector", "number", "nan", "detached"],
)
def test_terminal_losses_that_cannot_be(loss, error, message):
    field, y0 = system(0)
    with pytest.raises(error, match=message):
        second_order_adjoint(field, y0, interval("forward"), loss)


def test_other_bad_input():
    field, y0 = system(0)
    t = interval("forward")
    with pytest.raises(TypeError, match=r"func must be an nn\.Module"):
        second_order_adjoint(lambda t, z: z, y0, t, terminal)
    with pytest.raises(ValueError, match="a start and an end"):
        second_order_adjoint(field, y0, t[:1], terminal)
    with pytest.raises(ValueError, match=re.escape("running(t, z) must be a scalar")):
        second_order_adjoint(field, y0, t, terminal, running=lambda t, z: z)
    with pytest.raises(ValueError, match="unknown method"):
        second_order_adjoint(field, y0, t, terminal, method="euclid")


def test_a_failing_backward_solve_says_that_it_is_the_backward_one():
    class Decay(nn.Linear):  # harmless forward, e^150 backward: too much for float32
        def forward(self, t, z):
            return -150 * (super().forward(z) - t)

    field = Decay(1, 1, bias=False)
    nn.init.ones_(field.weight)
    z0, t = torch.ones(1), torch.tensor([0.0, 1.0])
    with pytest.raises(snopt.SolverError, match="the backward ODE solve failed") as caught:
        second_order_adjoint(field, z0, t, terminal, method="rk4", options={"step_size": 0.01})
    assert caught.value.direction == "backward"
