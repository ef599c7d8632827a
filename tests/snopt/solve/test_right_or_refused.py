"""Situations in which a wrong number used to come out without a word."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import nn

from snopt import NFE, ODEBlock, odeint, odeint_adjoint, odeint_checkpoint

DOORS = (odeint, odeint_adjoint, odeint_checkpoint)
ONCE = (odeint_adjoint, odeint_checkpoint)
T = torch.tensor([0.0, 1.0], dtype=torch.float64)


class Scaled(nn.Module):
    """F = w y with w = 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t, y):
        return self.w * y


class Constant(nn.Module):
    """F = w: the gradient of y(1) with respect to w is 1."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, t, y):
        return self.w.to(y.dtype) * torch.ones_like(y)


# A gradient that is differentiated again.


def penalised(solve, field):
    """Return s and q = ds/dy0 of s = y(1) = e^w, q being recorded."""
    y0 = torch.ones((), dtype=torch.float64, requires_grad=True)
    s = solve(field, y0, T)[-1]
    (q,) = torch.autograd.grad(s, y0, create_graph=True)
    return s, q


def test_a_penalty_on_the_gradient_is_right_through_the_solver():
    field = Scaled()
    s, q = penalised(odeint, field)
    (s + 10 * q**2).backward()
    assert float(field.w.grad) == pytest.approx(math.exp(0.5) + 20 * math.e, rel=1e-6)


@pytest.mark.parametrize("solve", ONCE)
def test_a_penalty_on_the_gradient_is_refused_where_there_is_no_graph(solve):
    s, q = penalised(solve, Scaled())
    with pytest.raises(RuntimeError, match=r"cannot be differentiated again: use snopt\.odeint"):
        (s + 10 * q**2).backward()


@pytest.mark.parametrize("solve", ONCE)
def test_a_hessian_is_refused_where_there_is_no_graph(solve):
    field = Scaled()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.functional.hessian(
            lambda y: solve(field, y, T)[-1].sum(), torch.ones_like(T)
        )


@pytest.mark.parametrize("solve", ONCE)
def test_create_graph_alone_changes_no_gradient(solve):
    found = []
    for record in (False, True):
        field = Scaled()
        s = solve(field, torch.ones_like(T), T)[-1].sum()
        found += torch.autograd.grad(s, field.w, create_graph=record)
    assert torch.equal(found[0], found[1].detach())


# Sums in half precision.


@pytest.mark.parametrize("solve", ONCE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [1000, 4000])
def test_many_small_terms_add_up_whatever_the_parameter_s_precision(solve, dtype, steps):
    field = Constant(dtype)
    options = {"step_size": 1 / steps}
    end = solve(field, torch.zeros(1), T.float(), method="euler", options=options)[-1]
    end.sum().backward()
    assert field.w.grad.dtype == dtype
    assert float(field.w.grad) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("convert", ["bfloat16", "half"])
def test_a_block_in_half_precision_keeps_its_times(convert):
    block = getattr(ODEBlock(Constant(torch.float32), t=(100.0, 100.2)), convert)()
    start, end = block.t.tolist()
    assert end - start == pytest.approx(0.2, abs=1e-4)
    assert block.func.w.dtype in (torch.bfloat16, torch.float16)


# Tolerances.


@pytest.mark.parametrize("solve", DOORS)
def test_a_tolerance_is_broadcast_over_the_state(solve):
    y0 = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(4, 3)
    expected = y0 * math.exp(0.5)
    for shape in ((3,), (4, 1), (4, 3)):
        atol = torch.full(shape, 1e-9, dtype=torch.float64)
        field = Scaled()
        end = solve(field, y0, T, rtol=1e-7, atol=atol)[-1]
        torch.testing.assert_close(end.detach(), expected, rtol=1e-6, atol=0)
        end.sum().backward()
        assert float(field.w.grad) == pytest.approx(float(expected.sum()), rel=1e-5)


def test_a_tolerance_that_does_not_fit_is_named():
    with pytest.raises(
        ValueError, match=r"shape \(5,\) cannot be broadcast to a state of \(4, 3\)"
    ):
        odeint(Scaled(), torch.ones(4, 3, dtype=torch.float64), T, atol=torch.full((5,), 1e-9))


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_numpy_s_numbers_are_tolerances(number):
    end = odeint(Scaled(), torch.ones_like(T), T, rtol=number(1e-5), atol=number(1e-7))[-1]
    torch.testing.assert_close(end, torch.full_like(T, math.exp(0.5)), rtol=1e-4, atol=0)


# The probe for the first step.


@pytest.mark.parametrize("times", [(0.0, 0.01), (0.01, 0.0)])
def test_the_first_step_is_probed_within_the_interval(times):
    seen = []

    def field(t, y):
        seen.append(float(t))
        return 1e-3 * torch.exp(-100 * t) * y

    t = torch.tensor(times, dtype=torch.float64)
    end = odeint(field, torch.ones(2, dtype=torch.float64), t, rtol=1e-3, atol=1e-3)[-1]
    exact = math.exp((1 if times[1] > 0 else -1) * 1e-5 * (1 - math.exp(-1)))
    torch.testing.assert_close(end, torch.full_like(end, exact), rtol=1e-6, atol=0)
    assert 0 <= min(seen) <= max(seen) <= 0.01


# What the field answers.


@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4", "heun3"])
@pytest.mark.parametrize(
    "answer", [lambda t, y: (y[1], y[0]), lambda t, y: (y[0],), lambda t, y: torch.cat(y)]
)
def test_an_answer_of_another_shape_is_refused_on_both_engines(solve, method, answer):
    y0 = torch.ones(2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    options = {} if method.startswith("dopri") else {"step_size": 0.1}
    own = {} if solve is odeint else {"adjoint_params": ()}
    with pytest.raises(ValueError, match=r"shape of the state: expected \(2,\), \(3,\), got"):
        solve(answer, y0, T, method=method, options=options, **own)


# A parameter gradient on steps that the state chose.


class Fast(nn.Module):
    """F = Σ W · (0, …, sin(2π 4.25 t)), W = 0: neither z nor a shows how fast the products are."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        self.late = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, t, y):
        x = torch.zeros(self.W.shape[-1], dtype=torch.float64)
        x[-1] = torch.sin(2 * math.pi * 4.25 * t)
        slope = (self.W * x).sum() + (self.late if t > 0.3 else 0)
        return slope * torch.ones_like(y)


@pytest.mark.parametrize(
    ("method", "tol", "shape", "error"),
    [
        ("dopri5", 1e-7, (1,), 1e-7),
        ("dopri5", 1e-3, (1,), 6e-3),
        ("dopri5", 1e-7, (1000, 21), 1e-6),  # too many to keep the products of all
        ("bosh3", 1e-5, (1000, 21), 2e-5),
        ("adaptive_heun", 1e-3, (1,), 1e-3),
    ],
)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.6, 0.0)], ids=str)
def test_steps_are_short_enough_for_the_parameters(method, tol, shape, error, times):
    field, nfe = Fast(shape), NFE()
    t, y0 = torch.tensor(times, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    kwargs = {"method": method, "rtol": tol, "atol": tol}
    odeint_adjoint(field, y0, t, **kwargs)[-1].sum().backward()
    exact = math.copysign(1 / (2 * math.pi * 4.25), times[-1] - times[0])
    found = field.W.grad[..., -1]
    torch.testing.assert_close(found, torch.full_like(found, exact), rtol=0, atol=error)
    options = {"adjoint_options": {"norm": "seminorm"}}
    odeint_adjoint(field, y0, t, nfe=nfe, **kwargs, **options)[-1].sum().backward()
    assert nfe.backward <= nfe.forward + 8  # the steps of z and a, a start for each output time


class Octave(nn.Module):
    """Two layers behind eight-hertz features of the time, the last one zero or torch's own."""

    def __init__(self, *, zero: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        if zero:
            nn.init.zeros_(self.net[2].weight)
            nn.init.zeros_(self.net[2].bias)

    def forward(self, t, y):
        angle = 2 * math.pi * 8 * t
        features = torch.stack([angle.sin(), angle.cos()]).expand(len(y), 2)
        return self.net(torch.cat([y, features], dim=1))


@pytest.mark.parametrize(("zero", "tol"), [(True, 1e-7), (False, 1e-3)])
def test_fast_features_of_the_time_are_as_right_as_with_torchdiffeq(zero, tol):
    y0 = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradient(solve, **kwargs):
        field = Octave(zero=zero)
        loss = nn.functional.cross_entropy(solve(field, y0, T, **kwargs)[-1], torch.arange(64) % 3)
        found = torch.autograd.grad(loss, list(field.parameters()))
        return torch.cat([g.reshape(-1) for g in found])

    exact = gradient(torchdiffeq.odeint, method="rk4", options={"step_size": 2e-3})
    ours, theirs = (
        (gradient(solve, rtol=tol, atol=tol) - exact).norm() / exact.norm()
        for solve in (odeint_adjoint, torchdiffeq.odeint_adjoint)
    )
    assert ours <= 1.5 * theirs
