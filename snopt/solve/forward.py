"""The forward solve of a problem, on the engine or on torchdiffeq."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from snopt.solve.engine import solve_on_engine
from snopt.solve.problem import Problem
from snopt.solve.torchdiffeq import solve, user_callbacks


def solve_forward(
    problem: Problem, parts: Sequence[Tensor], t: Tensor, *, differentiable: bool = False
) -> tuple[Tensor, ...]:
    """Return the solution at all output times by part, each (T, …).

    Args:
        problem: field and settings.
        parts: state at ``t[0]`` by part.
        t: output times, (T,).
        differentiable: whether autograd is to record the steps. Gradients to ``t`` itself need
            torchdiffeq, which then does the solve.

    Raises:
        SolverError: if the solve fails.
    """
    if problem.engine[0] and not (differentiable and t.requires_grad):
        return solve_on_engine(
            problem.func,
            problem.pack,
            parts,
            t.detach().tolist(),
            problem.forward,
            lambda: problem.nfe.add("forward"),
            problem.memory,
            differentiable=differentiable,
        )
    solution = solve(
        problem.func,
        problem.pack(parts),
        t,
        problem.forward,
        nfe=problem.nfe,
        kind="forward",
        callbacks=user_callbacks(problem.func),
    )
    return solution if isinstance(solution, tuple) else (solution,)
