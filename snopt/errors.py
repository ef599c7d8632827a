"""Errors of the library that a caller may want to catch."""

from __future__ import annotations

from functools import partial


class SolverError(RuntimeError):
    """An ODE solve failed; the message says where, how and what to try.

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


# Reasons with advice, the same whichever engine notices.

NON_FINITE = ("non-finite state", "Check the input, the step size and the learning rate.")


def too_many_steps(limit: int) -> tuple[str, str]:
    """Return reason and advice for a solve of more than ``limit`` steps."""
    return (
        f"more than max_num_steps = {limit} steps",
        "The ODE may have become stiff: lower the learning rate, loosen the tolerance, or raise"
        ' options={"max_num_steps": …}.',
    )


def why_stuck(*, state_finite: bool, field_finite: bool) -> tuple[str, str]:
    """Return reason and advice for a solve whose step has shrunk to nothing."""
    if not state_finite:
        return "non-finite state", "Check the input and the learning rate."
    if not field_finite:
        return "the vector field is not finite", "Check its parameters and its input."
    return (
        "step size underflow",
        "The ODE is too stiff for this tolerance: loosen rtol and atol, or regularise F.",
    )
