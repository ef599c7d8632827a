"""In torchdiffeq's place: events, its methods, complex and empty states, its own tests."""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
import unittest
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchdiffeq
from snopt_cases import assert_close, initial_state, make_field, parts_of, scalar_loss, watch
from torch import nn
from torchdiffeq._impl.dopri5 import Dopri5Solver
from torchdiffeq._impl.odeint import SOLVERS

import snopt
from snopt.solve.tableau import TABLEAUX

SOLVES = [snopt.odeint, snopt.odeint_adjoint]
T = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)


# Events.


class Fall(nn.Module):
    """Height and velocity of a body that falls with drag and a time-dependent wind."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([9.8, 0.1], dtype=torch.float64))

    def forward(self, t, y):
        height, velocity = y
        g, drag = self.weight
        rates = velocity, -g - drag * velocity + 0.3 * torch.sin(t) + 0 * height
        return rates if isinstance(y, tuple) else torch.stack(rates)


class Ramp(nn.Module):
    """Zero where the body meets a ramp that rises; a second entry never is."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def forward(self, t, y):
        height, velocity = y
        return torch.stack([height - self.start * (1 + 0.1 * t), velocity - 100])


class Still(nn.Module):
    """F = 0."""

    def forward(self, t, y):
        return torch.zeros_like(y)


def fallen(solve, event, values, kind="tensor", reverse=False, **kwargs):
    """Return a loss of time and state at the event, with what it depends on."""
    field, ramp = Fall(), Ramp()
    y0, t0, weight, start = torch.tensor(values, dtype=torch.float64).split([2, 1, 2, 1])
    with torch.no_grad():
        field.weight.copy_(weight)
        ramp.start.copy_(start[0])
    y0, t0 = y0.requires_grad_(), t0[0].requires_grad_()
    state = y0 if kind == "tensor" else (y0[0], y0[1])
    kwargs = {"rtol": 1e-10, "atol": 1e-12, **kwargs}
    end, y = event(
        field, state, t0, event_fn=ramp, reverse_time=reverse, odeint_interface=solve, **kwargs
    )
    last = torch.stack([part[-1] for part in parts_of(y)]).reshape(-1)
    loss = 1.3 * end + 0.5 * last[0] + 0.7 * last[1]
    return loss, [y0, t0, field.weight, ramp.start]


@functools.cache
def finite_differences(values, reverse):
    found = []
    for i in range(len(values)):
        ends = []
        for h in (1e-4, -1e-4):
            at = [x + h * (i == k) for k, x in enumerate(values)]
            exact = {"reverse": reverse, "options": {"max_step": 0.05}}
            ends.append(fallen(torchdiffeq.odeint, torchdiffeq.odeint_event, at, **exact)[0].item())
        found.append((ends[0] - ends[1]) / 2e-4)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
@pytest.mark.parametrize("solve", SOLVES)
def test_gradients_of_an_event_are_finite_differences(solve, kind, reverse):
    flat = [2.0, -5.0 if reverse else 1.0, 0.3, 9.8, 0.1, 0.2]
    loss, inputs = fallen(solve, snopt.odeint_event, flat, kind, reverse)
    found = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, inputs)])
    assert_close(found, finite_differences(tuple(flat), reverse), rtol=1e-6)
    # torchdiffeq's own odeint_event over the same solve, which has none for the event function.
    loss, inputs = fallen(solve, torchdiffeq.odeint_event, flat, kind, reverse)
    theirs = torch.autograd.grad(loss, inputs[:3])
    assert_close(torch.cat([g.reshape(-1) for g in theirs]), found[:5], rtol=1e-8)


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4", "heun2", "implicit_adams"])
def test_an_event_is_torchdiffeqs(method):
    options = {} if method in ("dopri5", "bosh3") else {"step_size": 0.05, "interp": "cubic"}
    kwargs = {"method": method, "options": options, "rtol": 1e-6, "atol": 1e-8}
    y0, t = torch.tensor([2.0, 1.0]), torch.tensor([0.3, 1.0])
    found = [
        solve(Fall().float(), y0, t, event_fn=Ramp().float(), **kwargs)
        for solve in (*SOLVES, torchdiffeq.odeint)
    ]
    for end, y in found[:2]:
        assert end.dtype == t.dtype
        assert end.item() == pytest.approx(float(found[2][0]), abs=1e-6)
        torch.testing.assert_close(y, found[2][1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solve", SOLVES)
def test_curvature_is_collected_up_to_the_event(solve):
    """As over the same interval without an event."""
    field, z0 = make_field("tensor"), initial_state("tensor").detach()
    kwargs = {"rtol": 1e-9, "atol": 1e-11}
    times = torch.tensor([0.2, 1.0], dtype=torch.float64)
    factors = []
    for event in (lambda _, z: z[0, 0] - z0[0, 0] - 0.1, None):
        collector = watch(field, snopt.gauss_legendre(4))
        found = solve(field, z0.clone().requires_grad_(), times, event_fn=event, **kwargs)
        if event:
            times, found = torch.stack([times[0], found[0].detach()]), found[1]
        scalar_loss(found).backward()
        collector.disarm()
        factors.append(collector.sums)
    assert len(factors[0]) == 2
    for key in factors[0]:
        a, b = factors[0][key], factors[1][key]
        assert_close(a.A, b.A, rtol=1e-6)
        assert_close(a.B, b.B, rtol=1e-6)


@pytest.mark.parametrize(
    ("event", "kwargs", "error", "message"),
    [
        (lambda t, y: y[0] + 1e9, {"options": {"max_num_steps": 30}}, AssertionError, "no event"),
        (lambda t, y: torch.log(y[0] - 1.9), {}, snopt.SolverError, "event function is NaN"),
        (lambda t, y: y[0], {"method": "rk4"}, AssertionError, "step_size"),
        (lambda t, y: y[0], {"method": "scipy_solver"}, ValueError, "'scipy_solver' cannot solve"),
    ],
)
@pytest.mark.parametrize("solve", SOLVES)
def test_events_that_cannot_be_found_say_so(solve, event, kwargs, error, message):
    y0 = torch.tensor([2.0, 1.0], dtype=torch.float64)
    with pytest.raises(error, match=message):
        solve(Fall(), y0, T[:2], event_fn=event, **kwargs)


@pytest.mark.parametrize("solve", SOLVES)
def test_a_search_that_leaves_the_finite_times_ends(solve):
    with pytest.raises(snopt.SolverError, match=r"no event was found.*direction of the solve"):
        solve(Still(), T, T[:2], event_fn=lambda t, y: y[0] + 1)


@pytest.mark.parametrize("solve", SOLVES)
def test_the_gradient_of_an_event_is_not_differentiated_again(solve):
    loss, (y0, *_) = fallen(solve, snopt.odeint_event, [2.0, 1.0, 0.3, 9.8, 0.1, 0.2])
    (g,) = torch.autograd.grad(loss, y0, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        g.sum().backward()


# Methods and options.


class Mine(Dopri5Solver):
    """A user's entry in torchdiffeq's table, with an option of its own."""

    def __init__(self, *args, taste="sweet", **kwargs):
        super().__init__(*args, **kwargs)
        made.append(taste)


made: list[str] = []


@pytest.mark.parametrize("name", ["mine", "dopri5"])
@pytest.mark.parametrize("solve", SOLVES)
def test_an_entry_in_torchdiffeqs_table_is_a_method(solve, name, monkeypatch):
    monkeypatch.setitem(SOLVERS, name, Mine)
    made.clear()
    field, z0 = make_field("tensor"), initial_state("tensor")
    y = solve(field, z0, T, method=name, options={"taste": "sour"})
    assert set(made) == {"sour"}
    monkeypatch.undo()
    expected = torchdiffeq.odeint(field, z0, T)
    assert torch.equal(y, expected)
    block = snopt.ODEBlock(field, method="midpoint")
    assert block.solver.method == "midpoint"


@pytest.mark.parametrize("method", [m for m in SOLVERS if m != "scipy_solver"])
@pytest.mark.parametrize("solve", SOLVES)
def test_an_option_that_a_method_does_not_have_is_a_warning(solve, method):
    other = {"max_iters": 3} if "step_size" in method else {"first_guess": 0.5}
    field, z0 = make_field("tensor"), initial_state("tensor")
    own = {} if method.startswith(("dopri", "bosh", "fehl", "adaptive")) else {"step_size": 0.1}
    kwargs = {"method": method, "rtol": 1e-6, "atol": 1e-6}
    with pytest.warns(UserWarning, match="unknown solver option .* valid ones") as caught:
        y = solve(field, z0, T, options={**own, **other}, **kwargs)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(y, solve(field, z0, T, options=own, **kwargs))


# States.


class Complex(nn.Module):
    """A field of complex and real parameters."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        w = torch.randn(3, 3, dtype=torch.complex128, generator=generator)
        self.w, self.scale = nn.Parameter(w / 2), nn.Parameter(w[0].real.clone())

    def forward(self, t, y):
        if isinstance(y, tuple):
            return self.forward(t, y[0]), -self.scale * y[1] * t
        return torch.tanh(y @ self.w) * torch.exp(1j * t) + self.scale * y


@pytest.mark.parametrize("kind", ["tensor", "tuple"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
def test_gradients_of_a_complex_state_are_those_through_the_solver(kind, method):
    """Against torchdiffeq's odeint: its adjoint fails on them."""
    gradients = []
    for solve in (snopt.odeint_adjoint, torchdiffeq.odeint):
        field, t = Complex(), T.clone().requires_grad_()
        z = torch.tensor([[1, 1j, 0.5 - 1j]], dtype=torch.complex128, requires_grad=True)
        real = torch.ones(3, dtype=torch.float64, requires_grad=True)
        y0, inputs = (z, [z]) if kind == "tensor" else ((z, real), [z, real])
        own = {"options": {"step_size": 0.01}} if method == "rk4" else {}
        own = {"method": method, **own} if solve is snopt.odeint_adjoint else {}
        y = solve(field, y0, t, rtol=1e-9, atol=1e-10, **own)
        loss = sum((p.real**2 + p.real * p.imag).sum() for p in parts_of(y))
        gradients.append(torch.autograd.grad(loss, [*inputs, t, *field.parameters()]))
    for found, expected in zip(*gradients, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_complex_states_through_a_block_and_their_refusal_by_checkpoints():
    z = torch.tensor([[1, 1j, 0.5 - 1j]], dtype=torch.complex128)
    expected = torchdiffeq.odeint(Complex(), z, T[[0, 2]])[-1]
    for gradient in ("adjoint", "direct"):
        block = snopt.ODEBlock(Complex(), gradient=gradient, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(block(z), expected, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="float32 or float64"):
        snopt.odeint_checkpoint(Complex(), z, T)
    layers = nn.ModuleList([nn.Linear(3, 3, dtype=torch.complex128), nn.Linear(3, 3)])
    with pytest.warns(UserWarning, match=r"does not treat 0\.weight, 0\.bias"):
        snopt.SNOpt(layers, lr=0.1)


@pytest.mark.parametrize("engine", ["auto", "torchdiffeq"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "rk4", "heun3", "implicit_adams"])
@pytest.mark.parametrize("rows", [(0,), (0, 2), (2, 0), (0, 0), (0, 2, 1)])
def test_what_is_empty_is_returned(rows, method, engine):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.eye(3, dtype=torch.float64))

        def forward(self, t, y):
            return (
                tuple(torch.tanh(p @ self.w) for p in parts_of(y)) if len(rows) > 1 else y @ self.w
            )

    y0 = tuple(torch.ones(n, 3, dtype=torch.float64) for n in rows)
    y0 = y0 if len(rows) > 1 else y0[0]
    solves = [(solve, {"engine": engine}) for solve in SOLVES]
    if engine == "auto" and method in TABLEAUX:
        solves.append((snopt.odeint_checkpoint, {}))
    gradients = []
    for solve, own in solves:
        field = Layer()
        y = parts_of(solve(field, y0, T, method=method, rtol=1e-6, atol=1e-6, **own))
        assert [part.shape for part in y] == [(3, n, 3) for n in rows]
        sum(part.sum() for part in y).backward()
        gradients.append(field.w.grad)
    for g in gradients:
        # What is empty does not take part: gradients are those of the other parts alone.
        torch.testing.assert_close(g, gradients[0], rtol=0.1, atol=1e-2)
        assert bool((g == 0).all()) == (sum(rows) == 0)


# Tolerances and limits.


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("engine", ["auto", "torchdiffeq"])
def test_tolerances_by_part_in_every_door(engine, as_tensor):
    """The backward solve takes the smallest, and a tensor means one for each part as well."""
    field, state = make_field("tuple"), initial_state("tuple")
    rtol, atol = (1e-5, 1e-8), (1e-7, 1e-10)
    by_part = [torch.tensor(tol, dtype=torch.float64) if as_tensor else tol for tol in (rtol, atol)]
    expected = torchdiffeq.odeint(field, state, T, rtol=by_part[0], atol=by_part[1])
    exact = torchdiffeq.odeint(field, state, T, rtol=1e-11, atol=1e-12)
    wanted = torch.autograd.grad(scalar_loss(exact), [*state, *field.parameters()])
    doors = [(solve, {"engine": engine}) for solve in SOLVES]
    doors += [(snopt.odeint_checkpoint, {})] if engine == "auto" else []
    for solve, own in doors:
        y = solve(field, state, T, rtol=by_part[0], atol=by_part[1], **own)
        for found, e in zip(y, expected, strict=True):
            torch.testing.assert_close(found, e, rtol=1e-6, atol=1e-7)
        for found, e in zip(
            torch.autograd.grad(scalar_loss(y), [*state, *field.parameters()]), wanted, strict=True
        ):
            assert_close(found, e, rtol=1e-4)
    for gradient in ("adjoint", "direct", *(["checkpoint"] if engine == "auto" else [])):
        block = snopt.ODEBlock(
            field, T, gradient=gradient, rtol=by_part[0], atol=by_part[1], engine=engine
        )
        torch.testing.assert_close(block(state)[0], exact[0][-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("y0", [torch.ones(3, dtype=torch.float64), torch.ones(2, 3).double()])
def test_a_list_of_tolerances_of_a_tensor_is_one_for_each_entry(y0):
    field, atol = nn.Tanh(), [1e-4, 1e-6, 1e-8]
    found = [
        solve(lambda t, y: field(y) * torch.exp(t), y0, T, rtol=1e-4, atol=atol)
        for solve in (snopt.odeint, torchdiffeq.odeint)
    ]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("engine", ["auto", "torchdiffeq"])
@pytest.mark.parametrize("solve", SOLVES)
def test_steps_are_counted_from_one_output_time_to_the_next(solve, engine):
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    options = {"max_step": 1 / 200, "max_num_steps": 20}
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    own = {"adjoint_params": (w,)} if solve is snopt.odeint_adjoint else {}
    y0 = torch.ones(1, dtype=torch.float64)
    y = solve(lambda t, y: w * y, y0, t, options=options, engine=engine, **own)
    (g,) = torch.autograd.grad(y[-1].sum(), w)
    assert float(g) == pytest.approx(math.exp(0.5), rel=1e-6)
    with pytest.raises(snopt.SolverError, match="max_num_steps exceeded"):
        solve(lambda t, y: w * y, y0, t[[0, -1]], options=options, engine=engine, **own)


@pytest.mark.slow
def test_more_output_times_than_ten_thousand():
    t = torch.linspace(0, 1, 10_101, dtype=torch.float64)
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = snopt.odeint_adjoint(lambda t, y: w * y, torch.ones_like(t[:1]), t, adjoint_params=(w,))
    torch.testing.assert_close(y[:, 0], torch.exp(0.5 * t), rtol=1e-6, atol=0)
    y.mean().backward()
    assert w.grad.item() == pytest.approx(float((t * torch.exp(0.5 * t)).mean()), rel=1e-6)


# torchdiffeq's own tests.

_READS_PRIVATE_ATTRIBUTES = 12  # subtests of test_adjoint_norm: grad_fn.adjoint_options


@pytest.mark.slow
def test_torchdiffeqs_own_tests(monkeypatch):
    """With the folder ``tests`` of torchdiffeq's repository in TORCHDIFFEQ_TESTS; takes minutes.

    It has to be that of the version installed. What fails with torchdiffeq too does not count.
    """
    if not (folder := os.environ.get("TORCHDIFFEQ_TESTS")):
        pytest.skip("TORCHDIFFEQ_TESTS names no folder with torchdiffeq's own tests")
    monkeypatch.syspath_prepend(folder)
    ours = SimpleNamespace(odeint=snopt.odeint, odeint_adjoint=snopt.odeint_adjoint)
    failed = []
    for library in (torchdiffeq, ours):
        result = unittest.TestResult()
        for path in sorted(Path(folder).glob("*_tests.py")):
            module = importlib.import_module(path.stem)
            module.torchdiffeq = library
            unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
        failed.append({str(test) for test, _ in result.failures + result.errors})
    for name in ("problems", *(path.stem for path in Path(folder).glob("*_tests.py"))):
        sys.modules.pop(name, None)
    alone = failed[1] - failed[0]
    assert len([name for name in alone if "test_adjoint_norm" in name]) <= _READS_PRIVATE_ATTRIBUTES
    assert not [name for name in alone if "test_adjoint_norm" not in name]
