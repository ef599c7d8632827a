"""The stepping loop: explicit Runge-Kutta steps over a flat state, adaptive or on a grid.

Step-size control, initial step and error norm are torchdiffeq's, so the sequence of steps is too,
except for the last: where torchdiffeq steps over the end and interpolates back, this lands on it.
There is one device synchronisation for each adaptive step (its error), two more at a start without
a step size, and none on a grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snopt.solve.stages import Part, Stages, join
from snopt.solve.tableau import Tableau
from snopt.solve.torchdiffeq import too_many_steps, why_stuck

# (stage, t, y) -> derivative by parts, and what the caller wants to keep of that stage. The stage
# is the tableau's index, -1 for the probe that chooses the first step.
Field = Callable[[int, float, Tensor], tuple[Sequence[Part], Any]]

# Raises the error of a solve that fails: (reason, advice, t, dt).
Failure = Callable[[str, str, float, float], Exception]


@dataclass(frozen=True)
class Control:
    """Step-size control of an adaptive method; the defaults are torchdiffeq's.

    Attributes:
        rtol: relative tolerance, a number or one for each entry of the state.
        atol: absolute tolerance, a scalar tensor or one for each entry.
        norm: maps the error in units of the tolerance, (n,), to a scalar.
        safety: factor on the step that the error estimate would just allow.
        ifactor: largest growth of a step.
        dfactor: largest reduction after a rejected step.
        min_step: below it every step is accepted.
        max_step: longest step.
        max_num_steps: steps, accepted and rejected, after which the solve is given up.
    """

    rtol: float | Tensor
    atol: Tensor
    norm: Callable[[Tensor], Tensor]
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    min_step: float = 0.0
    max_step: float = math.inf
    max_num_steps: int = 10_000

    def scale(self, y: Tensor) -> Tensor:
        """Return the error that a state, (n,), is allowed in each entry: rtol |y| + atol."""
        size = y.detach().abs()
        if isinstance(self.rtol, Tensor):
            return size.mul_(self.rtol).add_(self.atol)
        return torch.add(self.atol, size, alpha=self.rtol)  # a pass less


@dataclass
class Step:
    """An accepted step.

    Attributes:
        t0: its start.
        t1: its end, beyond or before ``t0``.
        y0: state at ``t0``, (n,).
        y1: state at ``t1``, (n,).
        stages: derivatives at the stages; valid until the next step is asked for.
        kept: what the field returned for each stage.
        end_derivative: returns F at the end; on a grid that takes the next step's first stage.
    """

    t0: float
    t1: float
    y0: Tensor
    y1: Tensor
    stages: Stages
    kept: list[Any]
    tableau: Tableau
    end_derivative: Callable[[], Tensor] = field(repr=False)

    def interpolate(self, t: float, *, cubic: bool = True) -> Tensor:
        """Return the state at a time within the step, (n,).

        Adaptive methods have torchdiffeq's quartic through both ends and the middle. On a grid it
        is the cubic through both ends, or with ``cubic=False`` the straight line.
        """
        dt = self.t1 - self.t0
        x = (t - self.t0) / dt
        if t == self.t1:
            return self.y1
        if self.tableau.adaptive:
            middle = x * x * (16 + x * (-32 + x * 16))
            first = x * (1 + x * (-4 + x * (5 - x * 2)))
            last = x * x * (1 + x * (-3 + x * 2))
            weights = [middle * m for m in self.tableau.mid]
            weights[0] += first
            weights[-1] += last
            end = x * x * (-5 + x * (14 - x * 8))
            # The weight of y0 is that of the quartic plus that of the middle, which starts from y0.
            base = torch.lerp(self.y0, self.y1, end)
            return self.stages.combine(base, weights, dt)
        if not cubic:
            return torch.lerp(self.y0, self.y1, x)
        rise = x * x * (3 - 2 * x)
        base = torch.lerp(self.y0, self.y1, rise)
        base = base.add(self.stages[0], alpha=dt * x * (1 - x) ** 2)
        return base.add(self.end_derivative(), alpha=dt * x * x * (x - 1))


class Stepper:
    """Steps of one solve; consecutive intervals continue with the step size of the last.

    Args:
        field: the vector field (see :data:`Field`).
        tableau: the method.
        control: step-size control; unused on a grid.
        failure: makes the error of a solve that fails.
        first_step: step size to start with, positive; None means Hairer's choice.
        differentiable: whether autograd is to record the steps (never their size).
    """

    def __init__(
        self,
        field: Field,
        tableau: Tableau,
        control: Control,
        failure: Failure,
        *,
        first_step: float | None = None,
        differentiable: bool = False,
    ) -> None:
        """Keep the settings; nothing is evaluated yet."""
        self.field = field
        self.tableau = tableau
        self.control = control
        self.failure = failure
        self.dt = first_step
        self.steps = 0
        self.differentiable = differentiable

    def adaptive(self, y: Tensor, t0: float, t1: float) -> Iterator[Step]:
        """Yield the accepted steps from ``y`` at ``t0`` to exactly ``t1``."""
        control, tableau = self.control, self.tableau
        stages = Stages.like(y, tableau, differentiable=self.differentiable)
        kept: list[Any] = [None] * tableau.stages
        stages[0], kept[0] = self.field(0, t0, y)
        sign = 1.0 if t1 > t0 else -1.0
        scale = control.scale(y)
        if self.dt is None:
            self.dt = self._initial_step(y, t0, stages[0], scale, sign)
        t, ratio = t0, self.dt  # a first step that is not finite tells of a field that is not
        while t != t1:
            proposed = min(max(self.dt, control.min_step), control.max_step)
            remaining = abs(t1 - t)
            # The end also takes in a remainder too small to be worth a step.
            last = proposed * (1 + 1e-9) >= remaining
            dt = remaining if last else proposed
            end = t1 if last else t + sign * dt
            if end == t or not dt > 1e-16 * abs(t1 - t0):
                why = why_stuck(
                    state_finite=is_finite(y.detach()), field_finite=math.isfinite(ratio)
                )
                raise self.failure(*why, t, dt)
            if self.steps >= control.max_num_steps:
                raise self.failure(*too_many_steps(control.max_num_steps), t, dt)
            self.steps += 1
            y1 = take_step(self.field, tableau, y, t, end, stages, kept)
            scale1 = control.scale(y1)
            # The scale of the larger state, entry by entry, is the larger of the two scales.
            ratio = float(control.norm(stages.error(y, dt).div_(torch.maximum(scale, scale1))))
            accepted = ratio <= 1 or dt <= control.min_step
            grown = dt * self._factor(ratio)
            # A step cut short by the end says nothing against the length proposed before.
            self.dt = max(grown, proposed) if last and accepted else grown
            if accepted:
                yield Step(t, end, y, y1, stages, kept, tableau, lambda: stages[-1])
                t, y, scale = end, y1, scale1
                if not last:
                    stages.hand_on()
                    kept[0] = kept[-1]

    def grid(self, y: Tensor, grid: Sequence[float]) -> Iterator[Step]:
        """Yield the steps from ``y`` at ``grid[0]`` from each grid point to the next."""
        stages = Stages.like(y, self.tableau, differentiable=self.differentiable)
        kept: list[Any] = [None] * self.tableau.stages
        ahead: list[Any] = []  # first stage at the current point, where a step before took it
        for t0, t1 in itertools.pairwise(grid):
            stages[0], kept[0] = ahead or self.field(0, t0, y)
            y1 = take_step(self.field, self.tableau, y, t0, t1, stages, kept)
            ahead = []

            def end_derivative(t1: float = t1, y1: Tensor = y1, ahead: list[Any] = ahead) -> Tensor:
                if not ahead:
                    ahead.extend(self.field(0, t1, y1))
                return join(ahead[0])

            yield Step(t0, t1, y, y1, stages, kept, self.tableau, end_derivative)
            y = y1

    def _factor(self, ratio: float) -> float:
        """Return the factor for the next step after one with this error ratio."""
        control = self.control
        if ratio == 0:
            return control.ifactor
        if not math.isfinite(ratio):
            return control.dfactor
        smallest = 1.0 if ratio < 1 else control.dfactor
        wanted = control.safety / ratio ** (1 / self.tableau.order)
        return float(min(control.ifactor, max(wanted, smallest)))

    @torch.no_grad()
    def _initial_step(self, y: Tensor, t0: float, f0: Tensor, scale: Tensor, sign: float) -> float:
        """Return Hairer, Nørsett and Wanner's first step (Solving ODEs I, II.4)."""
        control = self.control
        d0, d1 = torch.stack([control.norm(y / scale), control.norm(f0 / scale)]).tolist()
        h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
        parts, _ = self.field(-1, t0 + sign * h0, torch.add(y, f0, alpha=sign * h0))
        change = join(parts).sub_(f0).div_(scale)
        d2 = float(control.norm(change)) / h0 if h0 > 0 else math.nan
        if d1 <= 1e-15 and d2 <= 1e-15:
            h1 = max(1e-6, h0 * 1e-3)
        else:
            h1 = (0.01 / max(d1, d2)) ** (1 / self.tableau.order)
        return min(100 * h0, h1)


def is_finite(y: Tensor) -> bool:
    """Return whether all entries are finite: one pass, since extremes carry NaN and infinity."""
    low, high = torch.aminmax(y)
    return math.isfinite(float(low)) and math.isfinite(float(high))


def take_step(
    field: Field,
    tableau: Tableau,
    y: Tensor,
    t0: float,
    t1: float,
    stages: Stages,
    kept: list[Any],
) -> Tensor:
    """Evaluate all stages but the first, which must be there, and return the state at ``t1``."""
    dt, at = t1 - t0, y
    for i, c in enumerate(tableau.c):
        if i > 0:
            at = stages.place(i, y, dt)
            stages[i], kept[i] = field(i, t1 if c == 1 else t0 + c * dt, at)
    return at if tableau.ends_on_a_stage else stages.result(y, dt)
