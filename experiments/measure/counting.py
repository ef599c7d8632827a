"""How many evaluations and steps a forward and backward pass makes: observed on the field itself.

Watching the vector field treats every engine alike, and needs no callback of a solver: calls before
``backward()`` are evaluations of F, calls during it are evaluations with a vector-Jacobian product,
and the times of the calls tell the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from experiments.measure.workloads import Case

WEIGHTED_STAGES = 5
"""Stages of dopri5 with non-zero weight in the solution (b₂ = b₇ = 0)."""

FIRST_STAGE = 0.2
"""Place of dopri5's first evaluation within a step (c₂)."""


@dataclass(frozen=True)
class Counts:
    """Evaluations and accepted steps of one forward and backward pass.

    Attributes:
        solves: ODE solves.
        forward: evaluations in the forward pass.
        backward: evaluations in the backward pass.
        steps_forward: accepted steps of all forward solves.
        steps_backward: accepted steps of all backward solves.
    """

    solves: int
    forward: int
    backward: int
    steps_forward: int
    steps_backward: int

    @property
    def with_parameters(self) -> int:
        """Backward evaluations that must give a product with the parameters' Jacobian.

        The parameter gradient is a path integral: only stages of accepted steps with non-zero
        weight enter it.
        """
        return min(self.backward, WEIGHTED_STAGES * self.steps_backward)

    def as_json(self) -> dict[str, int]:
        """Return the fields as a dictionary."""
        return asdict(self)


def run_once(case: Case) -> None:
    """Run one forward and backward pass from empty gradients."""
    clear_gradients(case)
    case.loss().backward()


def clear_gradients(case: Case) -> None:
    """Drop the gradients of all parameters."""
    for parameter in case.model.parameters():
        parameter.grad = None


def gradient(case: Case) -> list[Tensor]:
    """Return the parameter gradients of one pass, copied."""
    run_once(case)
    return [p.grad.clone() for p in case.model.parameters() if p.grad is not None]


def count(case: Case) -> Counts:
    """Run one pass with dopri5 and count."""
    times: dict[str, list[float]] = {"forward": [], "backward": []}
    phase, solves = "forward", 0

    def on_field(_module: Any, arguments: tuple[Any, ...]) -> None:
        times[phase].append(float(arguments[0].detach()))

    def on_block(*_: Any) -> None:
        nonlocal solves
        solves += 1

    handles = [
        case.field.register_forward_pre_hook(on_field),
        case.block.register_forward_pre_hook(on_block),
    ]
    try:
        clear_gradients(case)
        loss = case.loss()
        phase = "backward"
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    return Counts(
        solves=solves,
        forward=len(times["forward"]),
        backward=len(times["backward"]),
        steps_forward=accepted_steps(times["forward"]),
        steps_backward=accepted_steps(times["backward"]),
    )


def accepted_steps(times: Sequence[float]) -> int:
    """Return the number of accepted dopri5 steps behind a sequence of evaluation times.

    Of the six evaluations of an attempted step only the last two have the same time, its end; the
    first one lies at a fifth of it, which gives its start. A rejected attempt is followed by one
    from the same start.

    Args:
        times: times of the evaluations, in order; solves may follow one another.
    """
    attempts = []
    for i, (one, other) in enumerate(pairwise(times)):
        if one == other and i >= 4:
            attempts.append(((times[i - 4] - FIRST_STAGE * one) / (1 - FIRST_STAGE), one))
    rejected = sum(
        abs(following - start) < 0.1 * abs(end - start)
        for (start, end), (following, _) in pairwise(attempts)
    )
    return len(attempts) - rejected
