"""Solves up to an event, with the gradient of an end that moves.

The event's time t_e is where g(t, z(t)) = 0, so that dt_e = -dg / (dg/dt along the solution), dg
being the change of g(t_e, z(t_e)) at a fixed end, and the state at the event moves by F dt_e.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snopt.curvature.recording import inside_solve
from snopt.solve.direct import odeint
from snopt.solve.field import State, differentiable_once, leaves_no_trace, parts_of


def odeint_event(
    func: Callable[..., Any],
    y0: State,
    t0: Tensor,
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Integrate ``dy/dt = func(t, y)`` up to an event; return its time and the solution.

    Arguments and results are those of ``torchdiffeq.odeint_event``. The parameters of ``event_fn``
    have a gradient too, by whatever graph its value has.

    Args:
        func: vector field F(t, y).
        y0: state at ``t0``, a tensor or a tuple of tensors.
        t0: initial time, one number; may require a gradient.
        event_fn: g(t, y), a tensor of any shape; the first entry that changes its sign ends the
            solve.
        reverse_time: whether to solve downwards.
        odeint_interface: :func:`snopt.odeint` or :func:`snopt.odeint_adjoint`.
        kwargs: their other arguments.

    Returns:
        The event's time, and the solution at ``t0`` and then, like ``y0`` with a leading axis of
        length 2. Their gradients are those of an event that moves; they cannot be differentiated
        again.

    Raises:
        SolverError: if the solve fails or finds no event.
    """
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    end, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    end, parts = end.detach(), parts_of(solution)
    last = [part[-1] for part in parts]
    is_tuple = not isinstance(solution, Tensor)

    def value(time: Tensor, state: list[Tensor]) -> Tensor:
        g = torch.as_tensor(event_fn(time, tuple(state) if is_tuple else state[0]))
        return (g * signs).min()  # as torchdiffeq has it: all entries start above 0

    with torch.no_grad(), leaves_no_trace(func, end.device), inside_solve():
        signs = torch.sign(torch.as_tensor(event_fn(t[0], y0)))
        rates = parts_of(func(end.to(last[0].real.dtype), tuple(last) if is_tuple else last[0]))
    with torch.enable_grad(), inside_solve():
        at = [x.detach().clone().requires_grad_() for x in (end, *last)]
        g = value(at[0], at[1:])
        slopes = torch.autograd.grad(g, at, allow_unused=True) if g.requires_grad else []
    # dg/dt along the solution, with torchdiffeq's guard.
    slope = torch.full_like(signs.sum(), 1e-12)
    for s, rate in zip(slopes, [torch.ones_like(end), *rates], strict=False):
        if s is not None:
            slope = slope + (s.conj() * rate).sum().real
    shift = _Shift.apply(value(end, last), slope)
    moved = [
        torch.cat([p[:-1], (p[-1] + shift * r)[None]]) for p, r in zip(parts, rates, strict=True)
    ]
    return end + shift.to(end.dtype), tuple(moved) if is_tuple else moved[0]


class _Shift(torch.autograd.Function):
    """Zero, with the gradient of the event's time: dt_e = -dg / (dg/dt)."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, slope: Tensor) -> Tensor:
        """Return 0 for the event function's value ``g`` and its slope along the solution."""
        ctx.save_for_backward(g, slope)
        return torch.zeros_like(g)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient to ``g``."""
        _, slope = ctx.saved_tensors
        return -grad[0] / slope, None
