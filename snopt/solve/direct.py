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

from snopt.curvature.collector import node_collectors
from snopt.solve.backward import collect_without_gradient
from snopt.solve.field import NO_EVENTS, Field, State, check_times, parts_of
from snopt.solve.forward import solve_forward
from snopt.solve.solver import NFE, Problem, Solver, StepMemory


def odeint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: object = None,
    nfe: NFE | None = None,
    engine: str = "auto",
    memory: StepMemory | None = None,
) -> Any:
    """Integrate ``dy/dt = func(t, y)``; gradients come from backpropagation through the solver.

    Arguments, defaults and results are those of ``torchdiffeq.odeint`` (without events). Memory
    grows with the number of steps; the gradient is that of the discretised solve, and it can be
    differentiated again.

    Args:
        func: vector field F(t, y) -> dy/dt.
        y0: state at ``t[0]``, a tensor of any shape or a tuple of tensors.
        t: output times, (T,), strictly increasing or strictly decreasing. A gradient to ``t`` is
            that of torchdiffeq's interpolation, which on fixed grids and with bosh3 or dopri8 is
            far from dΦ/dt; the adjoint's is F(t_i, z(t_i))ᵀ Φ_z.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: any torchdiffeq method; None means ``"dopri5"``.
        options: solver options. ``max_num_steps`` is 10 000 where not given.
        event_fn: must be None.
        nfe: counter to which evaluations are added.
        engine: ``"auto"`` or ``"torchdiffeq"``, see :func:`snopt.odeint_adjoint`. Gradients to
            ``t`` always take torchdiffeq.
        memory: step sizes that one solve leaves for the next, or None.

    Returns:
        The solution at all times: like ``y0`` with a leading axis of length T.

    Raises:
        SolverError: if the solve fails.
        TypeError: if the state or ``t`` is not of floating point.
        ValueError: if ``t`` is not strictly monotonic or the method is unknown.
    """
    if event_fn is not None:
        raise ValueError(NO_EVENTS)
    solver = Solver(method, rtol, atol, options, engine)
    counter = NFE() if nfe is None else nfe
    return solve_through(
        Problem(Field(func, y0), solver, solver.curvature(), counter, memory), y0, t
    )


def solve_through(problem: Problem, y0: State, t: Tensor) -> State:
    """Return the solution of ``problem``, differentiable through the solver's steps."""
    check_times(t)
    field = problem.field
    parts = solve_forward(problem, parts_of(y0), t, differentiable=torch.is_grad_enabled())
    wants = torch.is_grad_enabled() and any(p.requires_grad for p in parts)
    if wants and node_collectors(field.func, paused=True):
        parts = _CollectInBackward.apply(problem, t, *parts)
    return field.pack(parts)


class _CollectInBackward(torch.autograd.Function):
    """The identity; its backward pass collects curvature and passes the gradient on."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, t: Tensor, *solution: Tensor) -> tuple[Tensor, ...]:
        """Return the solution as it is."""
        ctx.problem = problem
        ctx.save_for_backward(t, *solution)
        return tuple(part.view_as(part) for part in solution)

    @staticmethod
    def backward(ctx: Any, *grad_solution: Tensor) -> tuple[Tensor | None, ...]:
        """Collect, unless this pass belongs to a quantity differentiated further."""
        if not torch.is_grad_enabled():
            t, *solution = ctx.saved_tensors
            collect_without_gradient(ctx.problem, t, solution, grad_solution)
        return (None, None, *grad_solution)
