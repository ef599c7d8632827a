"""Failing solves and bad arguments: one typed error with the facts."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
import torchdiffeq
from snopt_cases import make_field
from torch import nn

import snopt

SOLVERS = [snopt.odeint, snopt.odeint_adjoint]


class Explosive(nn.Module):
    """dz/dt = z²: the solution from z(0) = 1 blows up at t = 1."""

    def forward(self, t, z):
        return z**2


class NotANumber(nn.Module):
    """Fine until a time, NaN from there."""

    def __init__(self, start):
        super().__init__()
        self.start = start

    def forward(self, t, z):
        return torch.where(t < self.start, z, z * float("nan"))


T = torch.tensor([0.0, 2.0], dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)
RK4 = {"method": "rk4"}


@pytest.mark.parametrize("engine", ["auto", "torchdiffeq"])
@pytest.mark.parametrize("odeint", SOLVERS)
def test_blow_up_is_a_step_underflow(odeint, engine):
    with pytest.raises(snopt.SolverError) as caught:
        odeint(Explosive(), ONE, T, rtol=1e-6, atol=1e-8, engine=engine)
    error = caught.value
    assert error.t == pytest.approx(1.0, abs=1e-3)
    assert error.dt < 1e-6
    assert (error.rtol, error.atol) == (1e-6, 1e-8)
    assert error.nfe > 10
    assert "underflow in dt" in error.reason  # torchdiffeq's words, which users look for
    assert isinstance(error, AssertionError)
    assert isinstance(error, RuntimeError)
    for fact in ("forward", "t = 1", "rtol = 1e-06", f"{error.nfe} evaluations"):
        assert fact in str(error)


@pytest.mark.parametrize("engine", ["auto", "torchdiffeq"])
@pytest.mark.parametrize("odeint", SOLVERS)
@pytest.mark.parametrize("start", [0.5, -1.0])
def test_nan_field_is_named_soon(odeint, engine, start):
    with pytest.raises(snopt.SolverError, match="vector field is not finite") as caught:
        odeint(NotANumber(start), ONE, T, engine=engine)
    assert min(0.2, start + 1) <= caught.value.t <= max(0.5, start)
    assert caught.value.nfe < 1000


@pytest.mark.parametrize("engine", ["auto", "torchdiffeq"])
def test_non_finite_initial_state(engine):
    with pytest.raises(AssertionError, match="non-finite values in state `y`"):
        snopt.odeint(make_field("tensor"), torch.full((2, 3), torch.inf).double(), T, engine=engine)


@pytest.mark.parametrize("solve", [*SOLVERS, snopt.odeint_checkpoint])
@pytest.mark.parametrize("method", ["euler", "rk4", "heun3"])
def test_a_grid_returns_what_it_finds(solve, method):
    if solve is snopt.odeint_checkpoint and method == "heun3":
        return  # not the engine's
    found = []
    for run in (solve, torchdiffeq.odeint_adjoint):
        y0 = torch.full((1,), 3.0, dtype=torch.float64, requires_grad=True)
        y = run(Explosive(), y0, T, method=method, options={"step_size": 0.1})
        found += [y.detach(), torch.autograd.grad(y[-1].sum(), y0)[0]]
    assert not torch.isfinite(found[0][-1]).all()
    assert torch.equal(found[0][0], found[2][0])
    assert torch.equal(torch.isfinite(found[0]), torch.isfinite(found[2]))
    assert not torch.isfinite(found[1]).any()
    assert not torch.isfinite(found[3]).any()


@pytest.mark.parametrize("engine", ["auto", "torchdiffeq"])
def test_too_many_steps_by_option_and_by_default(engine, monkeypatch):
    class Stiff(nn.Module):
        def forward(self, t, z):
            return -1e6 * (z - torch.cos(t))

    with pytest.raises(snopt.SolverError, match="max_num_steps = 50") as caught:
        snopt.odeint(Stiff(), ONE, T, options={"max_num_steps": 50}, engine=engine)
    assert 0 < caught.value.t < 2
    assert "stiff" in str(caught.value)
    monkeypatch.setattr("snopt.solve.solver.DEFAULT_MAX_NUM_STEPS", 300)
    with pytest.raises(AssertionError, match=r"max_num_steps exceeded.*= 300 steps"):
        snopt.odeint(Stiff(), ONE, T, rtol=1e-3, atol=1e-5, engine=engine)


def test_failure_of_the_backward_solve_says_so():
    class Contracting(nn.Module):
        """Stable forward; backward in time z grows like exp(800 (1 - t))."""

        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(-800.0, dtype=torch.float64))

        def forward(self, t, z):
            return self.rate * z

    solution = snopt.odeint_adjoint(
        Contracting(), ONE, T, rtol=1e-3, atol=1e-6, adjoint_options={"max_num_steps": 20}
    )
    with pytest.raises(snopt.SolverError, match="backward ODE solve failed"):
        solution[-1].sum().backward()


def test_the_checks_do_not_depend_on_asserts():
    script = textwrap.dedent("""
        import torch, snopt
        class Explosive(torch.nn.Module):
            def forward(self, t, z): return z ** 2
        class Nan(torch.nn.Module):
            def forward(self, t, z): return z * float("nan")
        assert False, "asserts must be off here"
        for field in (Explosive(), Nan()):
            try:
                snopt.odeint(field, torch.ones(1), torch.tensor([0.0, 2.0]), rtol=1e-4, atol=1e-6)
            except snopt.SolverError:
                print("typed")
    """)
    run = subprocess.run(
        [sys.executable, "-O", "-c", script], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.split() == ["typed", "typed"], run.stderr


def test_an_error_of_the_field_is_not_translated():
    class Broken(nn.Module):
        def forward(self, t, z):
            raise AssertionError("mine")

    with pytest.raises(AssertionError, match=r"^mine$"):
        snopt.odeint(Broken(), ONE, T)


def test_solver_error_survives_pickling():
    error = snopt.SolverError("why", t=1.0, dt=0.5, rtol=1e-3, atol=1e-4, nfe=7, advice="Do this.")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.reason, again.t, again.nfe) == ("why", 1.0, 7)


@pytest.mark.parametrize("odeint", SOLVERS)
@pytest.mark.parametrize(
    ("y0", "t", "kwargs", "error", "message"),
    [
        (torch.ones(2, dtype=torch.int64), T, {}, TypeError, "y0 has dtype torch.int64"),
        ((ONE, torch.ones(2, dtype=torch.bool)), T, {}, TypeError, r"y0\[1\] has dtype"),
        ([ONE], T, {}, TypeError, "tensor or a tuple"),
        ((), T, {}, ValueError, "empty tuple"),
        (ONE, torch.tensor([0, 1]), {}, TypeError, "1-d floating point"),
        (ONE, [0.0, 1.0], {}, TypeError, "1-d floating point"),
        (ONE, torch.tensor([0.0, 1.0, 0.5]), {}, ValueError, r"t\[1\] = 1 is followed by"),
        (ONE, torch.tensor([0.0, 0.0]), {}, ValueError, "strictly increasing"),
        (ONE, torch.tensor([0.0, torch.nan]), {}, ValueError, r"t\[1\] = nan"),
        (ONE, T, {"rtol": 0.0, "atol": 0.0}, ValueError, "tolerances must be above 0"),
        (ONE, T, {"rtol": "fine"}, ValueError, "tolerances must be above 0, got rtol='fine'"),
        (ONE, T, {**RK4, "options": {"step_size": -0.1}}, ValueError, "above 0, got -0.1"),
        (ONE, T, {**RK4, "options": {"step_size": "small"}}, ValueError, "step_size in options"),
        (ONE, T, {**RK4, "options": {"interp": "spline"}}, ValueError, "'linear' or 'cubic'"),
        (ONE, T, {"method": "rk5"}, ValueError, "unknown method 'rk5'.*dopri5"),
    ],
)
def test_bad_arguments(odeint, y0, t, kwargs, error, message):
    with pytest.raises(error, match=message):
        odeint(Explosive(), y0, t, **kwargs)


@pytest.mark.parametrize("odeint", [*SOLVERS, snopt.odeint_checkpoint])
def test_a_field_of_the_wrong_shape_is_named(odeint):
    class Transposed(nn.Module):
        def forward(self, t, z):
            return z.T

    with pytest.raises(ValueError, match=r"expected \(4, 3\), got \(3, 4\)"):
        odeint(Transposed(), torch.ones(4, 3), T.float())

    class Swapped(nn.Module):
        def forward(self, t, state):
            return state[1], state[0]

    with pytest.raises(ValueError, match=r"expected \(4, 3\), \(4, 1\), got \(4, 1\), \(4, 3\)"):
        odeint(Swapped(), (torch.ones(4, 3), torch.ones(4, 1)), T.float())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({**RK4, "options": {"step_size": 0.1}, "adjoint_method": "dopri5"}, "adjoint_options"),
        ({"adjoint_rtol": (1e-3,)}, "must be a scalar"),
        ({"adjoint_options": {"norm": "semi"}}, 'function or "seminorm"'),
        ({"engine": "fast"}, "engine must be one of auto, torchdiffeq"),
    ],
)
def test_adjoint_specific_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        snopt.odeint_adjoint(Explosive(), ONE, T, **kwargs)
    with pytest.raises(ValueError, match="adjoint_params"):
        snopt.odeint_adjoint(lambda t, z: z, ONE, T)
