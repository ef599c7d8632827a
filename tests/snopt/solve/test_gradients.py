"""Gradients of both solvers against torchdiffeq, against each other, and finite differences."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torchdiffeq
from snopt_cases import assert_close, initial_state, make_field, parts_of, scalar_loss, times_for

import snopt

ADAPTIVE = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
GRID = ["euler", "midpoint", "heun2", "heun3", "rk4"]
GRID += ["explicit_adams", "implicit_adams", "fixed_adams"]

on_torchdiffeq = functools.partial(snopt.odeint_adjoint, engine="torchdiffeq")


def gradients(odeint, kind, direction, count, *, every_time=True, **kwargs):
    """Return the solution and the gradients to state, times and parameters."""
    field, y0 = make_field(kind), initial_state(kind)
    t = times_for(direction, count).requires_grad_()
    solution = odeint(field, y0, t, **kwargs)
    inputs = [*parts_of(y0), t, *field.parameters()]
    grads = torch.autograd.grad(
        scalar_loss(solution, every_time=every_time), inputs, allow_unused=True
    )
    assert all(g is not None for g in grads)
    return [p.detach() for p in parts_of(solution)], grads


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
@pytest.mark.parametrize("method", [*ADAPTIVE, *GRID, "scipy_solver"])
def test_adjoint_equals_torchdiffeqs(method, kind, direction):
    options = {"step_size": 0.05} if method in GRID else {}
    tolerance = 1e-4 if method == "adaptive_heun" else 1e-6  # order 2: thousands of steps
    kwargs = {"rtol": tolerance, "atol": tolerance / 100, "method": method, "options": options}
    ours, our_grads = gradients(on_torchdiffeq, kind, direction, 3, **kwargs)
    theirs, their_grads = gradients(torchdiffeq.odeint_adjoint, kind, direction, 3, **kwargs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    # Same steps, other summation order; where a step's acceptance hangs on the last digit the
    # difference is one of tolerance.
    for a, b in zip(our_grads, their_grads, strict=True):
        assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", [None, "seminorm", "callable"])
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_adjoint_norms_are_torchdiffeqs(kind, norm):
    calls = []

    def largest(state):
        calls.append(len(state))
        return torch.stack([s.abs().max() for s in state if s.numel()]).max()

    options = {"norm": largest if norm == "callable" else norm} if norm else None
    kwargs = {"rtol": 1e-4, "atol": 1e-6, "method": "dopri5", "adjoint_options": options}
    _, ours = gradients(on_torchdiffeq, kind, "forward", 2, **kwargs)
    our_calls, calls[:] = list(calls), []
    _, theirs = gradients(torchdiffeq.odeint_adjoint, kind, "forward", 2, **kwargs)
    assert our_calls == calls
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
def test_adjoint_equals_backpropagation_at_tight_tolerance(method, kind, direction):
    tight = {"rtol": 1e-9, "atol": 1e-10, "method": method}
    _, ours = gradients(on_torchdiffeq, kind, direction, 4, **tight)
    _, reference = gradients(torchdiffeq.odeint, kind, direction, 4, **tight)
    n_state = 1 if kind == "tensor" else 2
    for i, (a, b) in enumerate(zip(ours, reference, strict=True)):
        # Output times are interpolated, by bosh3 and dopri8 less well than rtol says, and
        # backpropagation takes the derivative of that interpolant for the gradient to t.
        if method == "dopri5" or i != n_state:
            assert_close(a, b, rtol=1e-6 if method == "dopri5" else 1e-5)


@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_direct_is_torchdiffeqs_odeint_bit_for_bit(kind):
    kwargs = {"rtol": 1e-5, "atol": 1e-7, "method": "dopri5"}
    ours, our_grads = gradients(snopt.odeint, kind, "forward", 3, engine="torchdiffeq", **kwargs)
    theirs, their_grads = gradients(torchdiffeq.odeint, kind, "forward", 3, **kwargs)
    for a, b in zip([*ours, *our_grads], [*theirs, *their_grads], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("odeint", [snopt.odeint_adjoint, snopt.odeint])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_gradients_equal_finite_differences(odeint, direction):
    field, z0 = make_field("tensor"), initial_state("tensor", batch=2)
    t = times_for(direction, 3).requires_grad_()
    params = list(field.parameters())

    def loss(z0, t, *params):
        names = [name for name, _ in field.named_parameters()]

        class Bound(torch.nn.Module):
            def forward(self, time, z):
                named = dict(zip(names, params, strict=True))
                return torch.func.functional_call(field, named, (time, z))

        kwargs = {"adjoint_params": params} if odeint is snopt.odeint_adjoint else {}
        return scalar_loss(odeint(Bound(), z0, t, rtol=1e-10, atol=1e-11, **kwargs))

    assert torch.autograd.gradcheck(loss, (z0, t, *params), eps=1e-5, rtol=1e-5, atol=1e-6)


def test_second_derivatives_through_direct_and_refused_by_the_adjoint():
    field, z0 = make_field("tensor"), initial_state("tensor")
    t = times_for("forward", 2)
    loss = scalar_loss(snopt.odeint(field, z0, t, method="rk4", options={"step_size": 0.1}))
    (first,) = torch.autograd.grad(loss, z0, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z0)
    assert bool(second.abs().sum() > 0)

    loss = scalar_loss(snopt.odeint_adjoint(field, z0, t))
    (first,) = torch.autograd.grad(loss, z0, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        first.sum().backward()


def test_adjoint_params_select_what_is_differentiated():
    field, z0 = make_field("tensor"), initial_state("tensor")
    t = times_for("forward", 2)
    chosen = [field.second.weight]
    solution = snopt.odeint_adjoint(field, z0, t, adjoint_params=iter(chosen))
    scalar_loss(solution).backward()
    assert field.second.weight.grad is not None
    assert field.first.weight.grad is None

    frozen = make_field("tensor")
    frozen.first.weight.requires_grad_(False)
    scalar_loss(snopt.odeint_adjoint(frozen, z0, t)).backward()
    assert frozen.first.weight.grad is None
    assert frozen.first.bias.grad is not None


def test_without_gradients_the_solution_has_no_graph():
    field = make_field("tensor")
    with torch.no_grad():
        solution = snopt.odeint_adjoint(field, initial_state("tensor"), times_for("forward", 2))
    assert not solution.requires_grad


def test_callbacks_reach_the_user_in_both_solves():
    field, seen = make_field("tensor"), {"step": 0, "accept": 0, "adjoint": []}

    def count(name):
        return lambda t0, y0, dt: seen.update({name: seen[name] + 1})

    field.callback_step, field.callback_accept_step = count("step"), count("accept")
    field.callback_accept_step_adjoint = lambda t0, state, dt: seen["adjoint"].append(
        (float(t0), len(state))
    )
    solution = snopt.odeint_adjoint(field, initial_state("tensor"), times_for("forward", 2))
    scalar_loss(solution).backward()
    assert seen["step"] >= seen["accept"] > 0
    n_params = len(list(field.parameters()))
    assert seen["adjoint"][0] == (pytest.approx(1.3), 3 + n_params)


def test_field_that_ignores_part_of_its_inputs():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
            self.unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, t, z):
            return self.rate.expand_as(z)

    field = Constant()
    z0 = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    solution = snopt.odeint_adjoint(field, z0, torch.tensor([0.0, 2.0], dtype=torch.float64))
    solution[-1].sum().backward()
    assert_close(solution[-1].detach(), torch.full((3, 1), 3.0).double(), rtol=1e-12)
    assert float(field.rate.grad) == pytest.approx(6.0)
    assert torch.equal(field.unused.grad, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("odeint", [snopt.odeint_adjoint, snopt.odeint, snopt.odeint_checkpoint])
def test_a_state_without_axes(odeint):
    class Decay(torch.nn.Module):
        def forward(self, t, z):
            return -z

    z0 = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    solution = odeint(Decay(), z0, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert solution.shape == (2,)
    solution[-1].backward()
    assert z0.grad.item() == pytest.approx(math.exp(-1.0), rel=1e-6)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_step_t_lands_in_both_directions(method):
    field = make_field("tensor")
    for direction in ("forward", "backward"):
        t = times_for(direction, 2)
        options = {"step_t": torch.tensor([0.5, 0.9], dtype=torch.float64)}
        kwargs = {"rtol": 1e-5, "atol": 1e-7, "method": method}
        _, plain = gradients(snopt.odeint_adjoint, "tensor", direction, 2, **kwargs)
        solution = snopt.odeint_adjoint(
            field, initial_state("tensor"), t, options=options, **kwargs
        )
        scalar_loss(solution).backward()
        for a, b in zip([p.grad for p in field.parameters()], plain[2:], strict=True):
            assert_close(a, b, rtol=1e-3)
        field.zero_grad()
