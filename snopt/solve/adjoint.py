"""The adjoint method as an autograd function: forward one solve without graph, backward another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from snopt.curvature.recording import armed_collectors, counted_solve, inside_a_solve
from snopt.solve.backward import integrate_backward
from snopt.solve.field import (
    Field,
    State,
    autocast_state,
    check_times,
    differentiable_once,
    parts_of,
)
from snopt.solve.forward import solve_forward
from snopt.solve.inputs import inputs_of, with_weights
from snopt.solve.runge_kutta import takes
from snopt.solve.solver import NFE, Problem, Solver, StepMemory
from snopt.solve.torchdiffeq import solve_to_event


def odeint_adjoint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    nfe: NFE | None = None,
    engine: str = "auto",
    memory: StepMemory | None = None,
) -> Any:
    """Integrate ``dy/dt = func(t, y)``; gradients come from the adjoint ODE.

    Arguments, defaults and results are those of ``torchdiffeq.odeint_adjoint``, so it can take its
    place. In addition, while a :class:`snopt.SNOpt` waits for curvature, the backward solve hands
    it the factors of every layer inside ``func``.

    With ``engine="auto"`` the project's own Runge-Kutta engine does what it can do exactly as
    asked: the methods dopri5, bosh3, fehlberg2, adaptive_heun, euler, midpoint and rk4, with
    options of step-size control or a ``step_size``, without callbacks. It takes torchdiffeq's
    steps, lands on the last output time instead of interpolating back to it, and has the parameter
    adjoints in the error control of the backward solve, but not in its state. Everything else, and
    all with ``engine="torchdiffeq"``, runs on torchdiffeq.

    Do not use it to differentiate twice (use :func:`snopt.odeint`), nor where memory is plentiful
    and the gradient must be that of the discretised solve.

    Args:
        func: vector field F(t, y) -> dy/dt; an ``nn.Module``, or any callable together with
            ``adjoint_params``. Its ``callback_*`` and ``callback_*_adjoint`` methods are honoured.
        y0: state at ``t[0]``, a tensor of any shape or a tuple of tensors.
        t: output times, (T,), strictly increasing or strictly decreasing; may require a gradient.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: any torchdiffeq method; None means ``"dopri5"``.
        options: solver options. ``max_num_steps``, counted from one output time to the next, is a
            million where not given.
        event_fn: function of (t, y) at whose zero the solve ends; ``t`` has then two times, of
            which the second gives the direction alone. On torchdiffeq. The event's time has no
            gradient, and the solution's is that at a fixed end: :func:`snopt.odeint_event` has
            those of an end that moves.
        adjoint_rtol: ``rtol`` of the backward solve, a scalar; None means that of the forward one.
        adjoint_atol: likewise.
        adjoint_method: likewise.
        adjoint_options: likewise, without its norm. ``norm`` may be a function of the tuple
            (vjp_t, *y, *a, *parameter adjoints), or ``"seminorm"``, which leaves the parameter
            adjoints out of the step-size control.
        adjoint_params: tensors to differentiate with respect to; None means
            ``func.parameters()``, and on the engine what else F(t0, y0) is computed from.
        nfe: counter to which evaluations are added.
        engine: ``"auto"`` or ``"torchdiffeq"``.
        memory: step sizes that one solve leaves for the next, for many short solves in a row; on
            the engine only. None: every solve chooses its first step.

    Returns:
        The solution at all times: like ``y0`` with a leading axis of length T. With ``event_fn``
        the event's time and the solution at ``t[0]`` and at the event.

    Raises:
        RuntimeError: in ``backward()``, if the field answers otherwise at the end of the solve than
            it did in the forward solve (dopri5 and bosh3).
        SolverError: if the forward or, in ``backward()``, the backward solve fails. A fixed grid
            returns what it finds, NaN included.
        TypeError: if the state is neither real nor complex, or ``t`` not of floating point.
        ValueError: if ``t`` is not strictly monotonic, the method is unknown, ``func`` is no module
            and ``adjoint_params`` is missing, or ``adjoint_options`` cannot be inferred.
    """
    solver = Solver(method, rtol, atol, options, engine)
    backward = solver.adjoint(adjoint_method, adjoint_rtol, adjoint_atol, adjoint_options)
    counter, nested = NFE() if nfe is None else nfe, inside_a_solve()
    problem = Problem(Field(func, y0), solver, backward, counter, memory, nested)
    return solve_with_adjoint(problem, y0, t, adjoint_params, event_fn)


def solve_with_adjoint(
    problem: Problem,
    y0: State,
    t: Tensor,
    adjoint_params: Iterable[Tensor] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    """Return the solution of ``problem``, differentiable by the adjoint ODE.

    With an event function it is the event's time and the solution at ``t[0]`` and then.
    """
    check_times(t)
    parts = parts_of(y0)
    if any(part.is_complex() for part in parts):  # torchdiffeq carries all parts as complex
        parts = tuple(part + 0j for part in parts)
    with counted_solve(problem.field.func, problem.field.layout.shapes) as passes_through:
        # Up to an event the solve is torchdiffeq's, which has no use for an evaluation ahead.
        on_engine = event_fn is None and takes(problem.forward, problem.field)
        params = inputs_of(problem, t, parts, adjoint_params, on_engine=on_engine)
        found = _Adjoint.apply(problem, event_fn, len(parts), t, *parts, *params)
        solution, end = (found, None) if event_fn is None else (found[:-1], found[-1])
        passes_through(solution)
    packed = problem.field.pack(solution)
    return packed if event_fn is None else (end, packed)


class _Adjoint(torch.autograd.Function):
    """Forward: one solve without graph. Backward: one augmented solve for each output interval."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: Problem,
        event_fn: Callable[..., Any] | None,
        n_state: int,
        t: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Solve forward; save times, solution and parameters."""
        parts, params = tensors[:n_state], tensors[n_state:]
        times = t
        with torch.no_grad():
            if event_fn is None:
                solution = solve_forward(problem, parts, t)
            else:
                times, solution = solve_to_event(problem, parts, t, event_fn)
        ctx.problem, ctx.n_state = problem, n_state
        ctx.autocast = autocast_state(parts[0].device.type)
        ctx.save_for_backward(times, *solution, *params)
        return solution if event_fn is None else (*solution, times[-1].to(t.dtype))

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grad_solution: Tensor) -> tuple[Tensor | None, ...]:
        """Solve backward; return gradients to times, initial state and parameters."""
        t, *saved = ctx.saved_tensors
        solution, params = saved[: ctx.n_state], saved[ctx.n_state :]
        func = ctx.problem.field.func
        with torch.no_grad(), ctx.autocast():
            a, grad_t, grad_params = with_weights(
                ctx.problem.field,
                lambda: integrate_backward(
                    ctx.problem,
                    t,
                    solution,
                    grad_solution[: ctx.n_state],
                    params,
                    armed_collectors(func, nested=ctx.problem.nested),
                    t_requires_grad=ctx.needs_input_grad[3],
                ),
            )
        if grad_t is not None and len(grad_solution) > ctx.n_state:
            grad_t[1:] = 0  # the end is the event's
        return (None, None, None, grad_t, *a, *grad_params)
