"""The integration time as a parameter: its derivatives and its steps."""

from __future__ import annotations

import math

import pytest
import torch
from horizon_cases import OPTIMIZERS, TIGHT, batch, loss_of, make
from snopt_cases import initial_state, make_field, parts_of
from torch import nn

from snopt import IntegrationTime, ODEBlock, SNOpt
from snopt.integration_time import HorizonModel

COST = 0.03


def second_difference(f, h):
    """Return f_aa, f_ab of f(a, b) at 0 by central differences."""
    aa = (f(h, 0.0) - 2 * f(0.0, 0.0) + f(-h, 0.0)) / h**2
    ab = (f(h, h) - f(h, -h) - f(-h, h) + f(-h, -h)) / (4 * h**2)
    return aa, ab


# The derivatives.


@pytest.mark.parametrize("gradient", ["adjoint", "direct", "checkpoint"])
@pytest.mark.parametrize("times", [(0.0, 1.3), (1.3, 0.2)], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_first_order_is_the_derivative_of_the_loss_along_the_horizon(gradient, times, kind):
    block = ODEBlock(make_field(kind), times, gradient=gradient, **TIGHT)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    horizon = IntegrationTime(block, optimizer, mode="baseline", every=1, cost=COST)

    def loss(state):
        return sum(((part - 0.3) ** 2).sum() for part in parts_of(state)) / 4

    def objective(T):
        t0, t1 = times
        with torch.no_grad():
            end = block(initial_state(kind), t=(t0, t0 + math.copysign(T, t1 - t0)))
        return float(loss(end)) + COST / 2 * T**2

    T = abs(times[1] - times[0])
    expected = (objective(T + 1e-4) - objective(T - 1e-4)) / 2e-4
    loss(block(initial_state(kind))).backward()
    optimizer.step()
    assert horizon.metrics["horizon/Q_T"] == pytest.approx(expected, rel=1e-6)
    # Descent: T shrinks where J grows with it, whichever way time runs.
    assert abs(horizon.t1 - times[0]) == pytest.approx(T - 0.1 * expected, rel=1e-6)
    assert math.copysign(1, horizon.t1 - times[0]) == math.copysign(1, times[1] - times[0])


class AffineInTime(nn.Module):
    """F = k + θ (1 - t): at t = 1 and θ = 0, z_TT and z_Tθ vanish."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.k = torch.tensor([0.4, -0.2, 0.7], dtype=torch.float64)

    def forward(self, t, z):
        return (self.k + self.theta * (1 - t)).expand_as(z)


def log_likelihood(z):
    """Φ = -log of a function linear in z, for which Φ_zz = Φ_z Φ_zᵀ."""
    return -torch.log(5 + (z * torch.tensor([1.0, -0.5, 2.0], dtype=z.dtype)).sum(-1).mean())


def test_second_order_is_exact_where_nothing_is_dropped():
    z0 = initial_state("tensor").detach()
    block = ODEBlock(AffineInTime(), **TIGHT)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.5)
    horizon = IntegrationTime(block, optimizer, cost=COST, every=1)
    log_likelihood(block(z0)).backward()
    step = -0.5 * block.func.theta.grad.clone()

    def objective(a, b):
        with torch.no_grad():
            block.func.theta.copy_(b * step)
            T = 1.0 + a
            return float(log_likelihood(block(z0, t=(0.0, T)))) + COST / 2 * T**2

    Q_TT, feedback = second_difference(objective, 1e-3)
    with torch.no_grad():
        block.func.theta.zero_()
    optimizer.step()
    assert horizon.metrics["horizon/Q_TT"] == pytest.approx(Q_TT, rel=1e-5)
    assert horizon.metrics["horizon/feedback"] == pytest.approx(feedback, rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("gradient", ["adjoint", "direct", "checkpoint"])
def test_feedback_is_the_gauss_newton_term_of_the_optimizers_own_step(name, gradient):
    """On a nonlinear field: the mixed second difference of Φ(z + F δT + z_θ δθ)."""
    z0 = initial_state("tensor").detach()
    model = nn.Sequential(ODEBlock(make_field("tensor"), (0.0, 1.3), gradient=gradient, **TIGHT))
    block = model[0]
    optimizer = OPTIMIZERS[name](model)
    horizon = IntegrationTime(block, optimizer, cost=COST, every=1)
    old = {k: v.clone() for k, v in block.func.state_dict().items()}
    end = block(z0)
    log_likelihood(end).backward()
    optimizer.step()

    new = block.func.state_dict()
    difference = {k: new[k].clone() - old[k] for k in old}
    with torch.no_grad():

        def at(scale):
            block.func.load_state_dict({k: old[k] + scale * difference[k] for k in old})
            return block(z0, t=(0.0, 1.3))

        along = (at(1e-3) - at(-1e-3)) / 2e-3
        at(0.0)
        F = block.func(torch.tensor(1.3, dtype=torch.float64), end)
        Q_TT, feedback = second_difference(
            lambda a, b: float(log_likelihood(end + a * F + b * along)), 1e-3
        )
    assert horizon.metrics["horizon/Q_TT"] == pytest.approx(COST + Q_TT, rel=1e-4)
    assert horizon.metrics["horizon/feedback"] == pytest.approx(feedback, rel=1e-4)


def test_the_scale_does_not_depend_on_the_size_of_the_batch():
    found = []
    for copies in (1, 5):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        horizon = IntegrationTime(model.ode, optimizer, every=1)
        x, y = batch()
        loss_of(model, (x.repeat(copies, 1), y.repeat(copies))).backward()
        optimizer.step()
        found.append(horizon.metrics)
    assert found[0] == pytest.approx(found[1], rel=1e-9)


# The steps.


@pytest.mark.parametrize("mode", ["baseline", "feedback"])
def test_steps_and_averages_by_hand(mode):
    model = make()
    optimizer = SNOpt(model, lr=0.05, update_freq=1)
    horizon = IntegrationTime(
        model.ode, optimizer, mode=mode, lr=0.2, cost=COST, every=2, decay=0.6
    )
    T, average = 1.0, None
    for k in range(6):
        optimizer.zero_grad()
        seen = []
        handle = model.ode.register_forward_hook(
            lambda block, args, out, seen=seen: (seen.append(out), out.retain_grad())[0]
        )
        loss_of(model, batch(1 + k)).backward()
        handle.remove()
        field = list(model.ode.func.parameters())
        before = [(p.detach().clone(), p.grad.clone()) for p in field]
        z = seen[0]
        with torch.no_grad():
            s = float((model.ode.func(torch.tensor(T, dtype=torch.float64), z) * z.grad).sum())
        optimizer.step()
        if k % 2 == 0:
            assert horizon.t1 == pytest.approx(T, rel=1e-10)
            continue
        moved = [p.detach() - was for p, (was, _) in zip(field, before, strict=True)]
        change = sum(float((g * d).sum()) for d, (_, g) in zip(moved, before, strict=True))
        now = torch.tensor([s, COST * T + s, COST + s**2], dtype=torch.float64)
        average = now if average is None else 0.6 * average + 0.4 * now
        mean_s, Q_T, Q_TT = average.tolist()
        T -= 0.2 * (Q_T if mode == "baseline" else (Q_T + mean_s * change) / Q_TT)
        assert horizon.t1 == pytest.approx(T, rel=1e-10)
        assert horizon.metrics["horizon/Q_T"] == pytest.approx(Q_T, rel=1e-10)
    assert horizon.updates == 3


class Growth(nn.Module):
    """dz/dt = θ z."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, t, z):
        return self.theta * z


def updates_to_optimum(mode, start):
    """Minimise log(1 + 1/z(T)) + c/2 (T² + θ²), whose minimum has T = θ, c = 1 / (1 + e^(T²))."""
    c = 0.05
    optimum = math.sqrt(math.log(1 / c - 1))
    block = ODEBlock(Growth(), (0.0, start), method="rk4", options={"step_size": 0.5})
    optimizer = torch.optim.SGD(block.parameters(), lr=0.5, weight_decay=c)
    horizon = IntegrationTime(block, optimizer, mode=mode, lr=0.12, cost=c, every=1)
    for k in range(1000):
        theta = float(block.func.theta.detach())
        if abs(horizon.t1 - optimum) < 0.01 and abs(theta - optimum) < 0.05:
            return k
        optimizer.zero_grad()
        torch.log1p(1 / block(torch.ones(1, dtype=torch.float64))).sum().backward()
        optimizer.step()
    raise AssertionError(f"{mode} ends at {horizon.t1}, not {optimum}")


@pytest.mark.parametrize("start", [0.5, 4.0])
def test_feedback_reaches_a_known_optimum_in_fewer_updates_than_the_baseline(start):
    feedback = updates_to_optimum("feedback", start)
    baseline = updates_to_optimum("baseline", start)
    assert 5 < feedback < baseline / 2, (feedback, baseline)


def test_the_model_is_what_the_equations_say():
    model = HorizonModel.at(2.0, -0.3, 0.1)
    assert (model.s, model.Q_T, model.Q_TT) == pytest.approx((-0.3, -0.1, 0.19))
    past = HorizonModel(1.0, 1.0, 1.0)
    averaged = model.averaged(past, 0.75)
    assert (averaged.s, averaged.Q_TT) == pytest.approx((0.75 - 0.075, 0.75 + 0.25 * 0.19))
    assert model.averaged(None, 0.75) == model
    assert model.step("baseline", 0.5, -9.0) == pytest.approx(0.05)
    assert model.step("feedback", 0.5, -0.2) == pytest.approx(-0.5 * (-0.1 + 0.06) / 0.19)
