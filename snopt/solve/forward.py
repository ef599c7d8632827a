"""The forward solve of a problem, on the engine or on torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from snopt.curvature.recording import inside_solve
from snopt.solve.field import parts_of, rms_norm, thinned
from snopt.solve.runge_kutta import Step, Stepper, takes
from snopt.solve.solver import Problem
from snopt.solve.torchdiffeq import solve


def solve_forward(
    problem: Problem, parts: Sequence[Tensor], t: Tensor, *, differentiable: bool = False
) -> tuple[Tensor, ...]:
    """Return the solution at all output times by part, each (T, …), from the parts at ``t[0]``.

    If it is ``differentiable``, autograd records the steps. Gradients to ``t`` itself need
    torchdiffeq, which then does the solve.

    Raises:
        SolverError: if the solve fails.
    """
    field, solver = problem.field, problem.forward
    on_engine = t.numel() > 1 and takes(solver, field)
    if on_engine and not (differentiable and t.requires_grad):
        times = t.detach().tolist()
        rows = [field.layout.flatten(parts)]
        cubic = solver.options.get("interp") == "cubic"
        with inside_solve():  # once for the whole solve: small ones are spent on such details
            for step, inside in forward_steps(problem, parts, times, differentiable=differentiable):
                rows.extend(step.interpolate(times[i], cubic=cubic) for i in inside)
        ends_on_a_stage = step.stages.tableau.ends_on_a_stage and step.y1.numel() > 0
        if ends_on_a_stage and not differentiable:
            field.end = thinned(step.stages[-1]).clone()
        return tuple(field.layout.split(torch.stack(rows)))
    return parts_of(solve(problem, "forward", field.func, field.pack(parts), t))


def forward_steps(
    problem: Problem,
    parts: Sequence[Tensor],
    times: Sequence[float],
    *,
    differentiable: bool = False,
    keep: Callable[[], Any] | None = None,
) -> Iterator[tuple[Step, list[int]]]:
    """Yield every accepted step of a solve on the engine with the output times that lie in it.

    ``step.stages.kept`` has what ``keep`` returned before the evaluation of each stage.
    To be run to its end inside :class:`snopt.curvature.recording.inside_solve`.
    """
    field, solver, layout = problem.field, problem.forward, problem.field.layout
    y = layout.flatten(parts)

    def evaluate(_stage: int, t: float, y: Tensor) -> tuple[Sequence[Tensor], Any]:
        problem.nfe.forward += 1
        kept = keep() if keep else None
        return field.at(t, layout.split(y)), kept

    norm, user_norm = rms_norm(layout), solver.options.get("norm")
    if user_norm is not None:
        norm = lambda e: user_norm(field.pack(layout.split(e)))  # noqa: E731
    stepper = Stepper(problem, "forward", evaluate, layout, norm, y, differentiable=differentiable)
    # Without a step size the output times are the grid of a method without step-size control.
    grid_is_output_times = not stepper.tableau.adaptive and solver.options.get("step_size") is None
    ends = times[1:] if grid_is_output_times else times[-1:]
    sign = 1.0 if times[-1] > times[0] else -1.0
    due, start = 1, times[0]
    for end in ends:
        for step in stepper.steps(y, start, end):
            inside = []
            while due < len(times) and sign * (times[due] - step.t1) <= 0:
                inside.append(due)
                due += 1
            if inside:
                stepper.steps_taken = 0
            yield step, inside
            y = step.y1
        start = end
    if problem.memory is not None:
        problem.memory.keep("forward", stepper.dt)
    stepper.check_finite(y, times[-1])
