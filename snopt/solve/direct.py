"""Ordinary backpropagation through the solver, with the same collection of curvature.

Backpropagation has no a(t) between output times. While an optimizer waits for curvature, an
identity function on the solution receives Φ_z in the backward pass and integrates (z, a) back once
for the factors alone. The gradient passes through unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from snopt.curvature.recording import counted_solve, inside_a_solve, node_collectors
from snopt.solve.backward import collect_without_gradient
from snopt.solve.field import Field, State, check_times, parts_of
from snopt.solve.forward import solve_forward
from snopt.solve.solver import NFE, Problem, Solver, StepMemory
from snopt.solve.torchdiffeq import solve_to_event


def odeint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    nfe: NFE | None = None,
    engine: str = "auto",
    memory: StepMemory | None = None,
) -> Any:
    """Integrate ``dy/dt = func(t, y)``; gradients come from backpropagation through the solver.

    Arguments, defaults and results are those of ``torchdiffeq.odeint``; those in addition and
    errors are as in :func:`snopt.odeint_adjoint`. Memory grows with the number of steps; the
    gradient is that of the discretised solve, and it can be differentiated again.

    A gradient to ``t`` always takes torchdiffeq. It is that of torchdiffeq's interpolation, which
    on fixed grids and with bosh3 or dopri8 is far from dΦ/dt; the adjoint's is F(t_i, z(t_i))ᵀ Φ_z.

    Raises:
        SolverError: if the solve fails.
        TypeError: if the state or ``t`` is not of floating point.
        ValueError: if ``t`` is not strictly monotonic or the method is unknown.
    """
    solver = Solver(method, rtol, atol, options, engine)
    counter = NFE() if nfe is None else nfe
    problem = Problem(Field(func, y0), solver, solver.adjoint(), counter, memory, inside_a_solve())
    return solve_through(problem, y0, t, event_fn)


def solve_through(
    problem: Problem, y0: State, t: Tensor, event_fn: Callable[..., Any] | None = None
) -> Any:
    """Return the solution of ``problem``, differentiable through the solver's steps.

    With an event function it is the event's time and the solution at ``t[0]`` and then.
    """
    check_times(t)
    field, times = problem.field, t
    with counted_solve(field.func, field.layout.shapes) as passes_through:
        if event_fn is None:
            parts = solve_forward(problem, parts_of(y0), t, differentiable=torch.is_grad_enabled())
        else:
            times, parts = solve_to_event(problem, parts_of(y0), t, event_fn)
        wants = torch.is_grad_enabled() and any(p.requires_grad for p in parts)
        if wants and node_collectors(field.func, paused=True):
            parts = _CollectInBackward.apply(problem, times, *parts)
        passes_through(parts)
    solution = field.pack(parts)
    return solution if event_fn is None else (times[-1].to(t.dtype), solution)


class _CollectInBackward(torch.autograd.Function):
    """The identity; its backward pass collects curvature and passes the gradient on."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, t: Tensor, *solution: Tensor) -> tuple[Tensor, ...]:
        """Return the solution, copied: what is behind may write into it."""
        ctx.problem = problem
        ctx.save_for_backward(t, *solution)
        return tuple(part.clone() for part in solution)

    @staticmethod
    def backward(ctx: Any, *grad_solution: Tensor) -> tuple[Tensor | None, ...]:
        """Collect."""
        t, *solution = ctx.saved_tensors
        collect_without_gradient(ctx.problem, t, solution, grad_solution)
        return (None, None, *grad_solution)
