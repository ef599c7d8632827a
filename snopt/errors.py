"""Errors of the library that a caller may want to catch."""

from __future__ import annotations


class SolverError(RuntimeError):
    """An ODE solve failed; the message says where, how and what to try.

    Attributes:
        reason: what went wrong, in a few words.
        t: time at which the solve stopped, or None if unknown.
        dt: last step that was tried (same unit as ``t``), or None if unknown.
        rtol: relative tolerance of the solve.
        atol: absolute tolerance of the solve.
        nfe: evaluations of the vector field up to the failure.
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
        """Store the facts and compose one message from them.

        Args:
            reason: what went wrong, in a few words.
            t: time at which the solve stopped.
            dt: last step that was tried.
            rtol: relative tolerance.
            atol: absolute tolerance.
            nfe: evaluations of the vector field so far.
            direction: ``"forward"``, ``"backward"`` or ``"curvature"``: which solve it was.
            advice: what the user can do about it.
        """
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
        facts = {k: v for k, v in self.__dict__.items() if k != "reason"}
        return (_rebuild, (self.reason, facts))


def _rebuild(reason: str, facts: dict[str, object]) -> SolverError:
    return SolverError(reason, **facts)  # type: ignore[arg-type]
