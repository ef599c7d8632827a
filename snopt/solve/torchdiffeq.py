"""One ODE solve on stock torchdiffeq: checked input, counted evaluations, typed failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torchdiffeq
from torch import Tensor

from snopt.curvature.collector import inside_solve
from snopt.errors import SolverError

State: TypeAlias = Tensor | tuple[Tensor, ...]

ADAPTIVE = frozenset({"dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"})

FIXED_GRID = frozenset(
    {
        "euler",
        "midpoint",
        "heun2",
        "heun3",
        "rk4",
        "explicit_adams",
        "implicit_adams",
        "fixed_adams",
    }
)

METHODS = ADAPTIVE | FIXED_GRID | {"scipy_solver"}

DEFAULT_METHOD = "dopri5"

# torchdiffeq's own limit is 2³¹ - 1: a field that turned stiff would run for days.
DEFAULT_MAX_NUM_STEPS = 10_000

_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


@dataclass
class NFE:
    """Evaluations of a vector field: forward solves, backward solves, and curvature nodes."""

    forward: int = 0
    backward: int = 0
    curvature: int = 0

    def reset(self) -> None:
        """Set all counts to 0."""
        self.forward = self.backward = self.curvature = 0

    def add(self, kind: str, count: int = 1) -> None:
        """Add ``count`` evaluations of ``kind``, the name of one of the counts."""
        setattr(self, kind, getattr(self, kind) + count)


@dataclass(frozen=True)
class Settings:
    """How a solve is done: torchdiffeq's arguments of the same names."""

    rtol: Any
    atol: Any
    method: str
    options: Mapping[str, Any]

    @property
    def max_num_steps(self) -> int:
        """Steps, accepted and rejected, after which a solve is given up."""
        return int(self.options.get("max_num_steps", DEFAULT_MAX_NUM_STEPS))


class _Field:
    """The vector field as a solver sees it: counts, watches the steps, passes callbacks on."""

    def __init__(
        self,
        func: Callable[..., Any],
        settings: Settings,
        nfe: NFE,
        kind: str,
        callbacks: Mapping[str, Callable[..., Any]],
    ) -> None:
        self.func = func
        self.settings = settings
        self.nfe = nfe
        self.kind = kind
        self.calls = 0
        self.steps = 0
        self.t: float | None = None
        self.dt: float | None = None
        self.own_error: BaseException | None = None
        self._user_step = callbacks.get("callback_step")
        for name, callback in callbacks.items():
            setattr(self, name, callback)
        if settings.method != "scipy_solver":  # it knows no callbacks and says so at every solve
            self.callback_step = self._step

    def __call__(self, t: Tensor, y: State) -> Any:
        self.calls += 1
        self.nfe.add(self.kind)
        try:
            return self.func(t, y)
        except BaseException as error:
            self.own_error = error  # the user's, not the solver's: never translated
            raise

    def _step(self, t0: Tensor, y0: State, dt: Tensor) -> None:
        """Stop a solve that stands still or never ends; torchdiffeq's asserts vanish under -O."""
        self.steps += 1
        self.t, self.dt = float(t0.detach()), float(dt.detach())
        if self._user_step is not None:
            self._user_step(t0, y0, dt)
        if self.settings.method not in ADAPTIVE:
            return
        # t0 is the caller's time, negated back in a solve that runs downwards; dt is positive.
        if not abs(self.t) + self.dt > abs(self.t):
            # torchdiffeq answers an error estimate that is not finite with a step of min_step = 0.
            raise self.failure(*why_stuck(state_finite=_finite(y0), field_finite=self.dt != 0))
        if self.steps > self.settings.max_num_steps:
            raise self.failure(*too_many_steps(self.settings.max_num_steps))

    def failure(self, reason: str, advice: str = "") -> SolverError:
        """Return the error that says where this solve stands."""
        return solver_error(self.settings, reason, advice, self.t, self.dt, self.calls, self.kind)


def solver_error(
    settings: Settings,
    reason: str,
    advice: str,
    t: float | None,
    dt: float | None,
    evaluations: int,
    kind: str,
) -> SolverError:
    """Return the error of a solve with these settings that stopped at ``t``."""
    return SolverError(
        reason,
        t=t,
        dt=dt,
        rtol=settings.rtol,
        atol=settings.atol,
        nfe=evaluations,
        direction=kind,
        advice=advice,
    )


def solve(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    settings: Settings,
    *,
    nfe: NFE,
    kind: str,
    callbacks: Mapping[str, Callable[..., Any]] | None = None,
) -> State:
    """Integrate ``dy/dt = func(t, y)`` with ``torchdiffeq.odeint``.

    Args:
        func: vector field.
        y0: state at ``t[0]``.
        t: times, (T,), strictly monotonic.
        settings: tolerances, method, options.
        nfe: counter to add the evaluations to.
        kind: which of its counts: ``"forward"``, ``"backward"`` or ``"curvature"``.
        callbacks: torchdiffeq's step callbacks, by name.

    Returns:
        The state at all times: like ``y0`` with a leading axis of length T.

    Raises:
        SolverError: if the step underflows, the state is not finite, or the solve takes more than
            ``max_num_steps`` steps.
    """
    field = _Field(func, settings, nfe, kind, callbacks or {})
    # The field counts the steps of the whole solve; torchdiffeq would count for each output time.
    options = {k: v for k, v in settings.options.items() if k != "max_num_steps"}
    try:
        with inside_solve():
            solution: State = torchdiffeq.odeint(
                field,
                y0,
                t,
                rtol=settings.rtol,
                atol=settings.atol,
                method=settings.method,
                options=options,
            )
    except AssertionError as error:
        if error is field.own_error:
            raise
        raise field.failure(str(error)[:200] or "assertion in torchdiffeq") from error
    if not _finite(solution):
        raise field.failure(
            "non-finite state", "Check the input, the step size and the learning rate."
        )
    return solution


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


def user_callbacks(func: object, *, adjoint: bool = False) -> dict[str, Callable[..., Any]]:
    """Return the step callbacks that ``func`` defines, under the names that a solver looks up."""
    suffix = "_adjoint" if adjoint else ""
    found = {name: getattr(func, name + suffix, None) for name in _CALLBACKS}
    return {name: callback for name, callback in found.items() if callback is not None}


def _finite(y: State) -> bool:
    parts = (y,) if isinstance(y, Tensor) else y
    return all(bool(torch.isfinite(p).all()) for p in parts)
