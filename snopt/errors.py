"""Errors of the library that a caller may want to catch."""

from __future__ import annotations

from functools import partial
from typing import Any


class SolverError(RuntimeError, AssertionError):
    """An ODE solve failed; the message says where, how and what to try.

    It is an AssertionError with torchdiffeq's words in it too: code written for torchdiffeq catches
    those.

    Attributes:
        reason: what went wrong, in a few words.
        t: time at which the solve stopped, or None if unknown.
        dt: last step that was tried (same unit as ``t``), or None if unknown.
        rtol: relative tolerance of the solve.
        atol: absolute tolerance of the solve.
        nfe: evaluations of the vector field up to the failure.
        direction: ``"forward"``, ``"backward"`` or ``"curvature"``: which solve it was.
        advice: what the user can do about it.
    """

    def __init__(
        self,
        reason: str,
        *,
        t: float | None = None,
        dt: float | None = None,
        rtol: object = None,
        atol: object = None,
        nfe: int = 0,
        direction: str = "forward",
        advice: str = "",
    ) -> None:
        """Store the facts and compose one message from them."""
        self.reason = reason
        self.t = t
        self.dt = dt
        self.rtol = rtol
        self.atol = atol
        self.nfe = nfe
        self.direction = direction
        self.advice = advice
        where = "" if t is None else f" at t = {t:.6g}"
        step = "" if dt is None else f", dt = {dt:.3g}"
        hint = f" {advice}" if advice else ""
        super().__init__(
            f"the {direction} ODE solve failed{where}: {reason}"
            f" (rtol = {rtol}, atol = {atol}{step}, {nfe} evaluations).{hint}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by facts: worker processes send errors to their parent."""
        return partial(SolverError, **vars(self)), ()


def failure(solver: Any, kind: str, reason: str, advice: str = "", **where: Any) -> SolverError:
    """Return the error of a ``kind`` of solve that stopped at t on a step of dt after nfe."""
    return SolverError(
        reason, direction=kind, advice=advice, rtol=solver.rtol, atol=solver.atol, **where
    )


# Reasons with advice, the same whichever engine notices.

_NON_FINITE = "non-finite values in state `y`"

NON_FINITE = (_NON_FINITE, "Check the input, the step size and the learning rate.")

NO_EVENT = (
    "no event was found",
    "Check the sign of event_fn and the direction of the solve, that of t[1] - t[0].",
)


def too_many_steps(limit: int, *, event: bool = False) -> tuple[str, str]:
    """Return reason and advice for more than ``limit`` steps to an output time or an event."""
    reason = f"max_num_steps exceeded: more than max_num_steps = {limit} steps"
    if event:
        return f"{reason}, {NO_EVENT[0]}", NO_EVENT[1]
    return (
        f"{reason} to the next output time",
        "The ODE may have become stiff: lower the learning rate, loosen the tolerance, or raise"
        ' options={"max_num_steps": …}.',
    )


def why_stuck(*, state_finite: bool, field_finite: bool) -> tuple[str, str]:
    """Return reason and advice for a solve whose step has shrunk to nothing."""
    if not state_finite:
        return _NON_FINITE, "Check the input and the learning rate."
    if not field_finite:
        reason = "the vector field is not finite (underflow in dt)"
        return reason, "Check its parameters and its input."
    return (
        "step size underflow (underflow in dt)",
        "The ODE is too stiff for this tolerance: loosen rtol and atol, or regularise F.",
    )
