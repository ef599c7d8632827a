"""The engine: explicit Runge-Kutta steps over a flat state, adaptive or on a grid.

Step-size control, initial step and error norm are torchdiffeq's, so the sequence of steps is too,
except for the last: where torchdiffeq steps over the end and interpolates back, this lands on it.
There is one device synchronisation for each adaptive step (its error), two more at a start without
a step size, and none on a grid.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from snopt.errors import NON_FINITE, SolverError, failure, too_many_steps, why_stuck
from snopt.solve.field import Field, Layout
from snopt.solve.solver import (
    CONTROL_OPTIONS,
    GRID_OPTIONS,
    Problem,
    Solver,
    is_stock,
    smallest,
)
from snopt.solve.tableau import TABLEAUX, Tableau

# (stage, t, y) -> derivative by parts, and what the caller wants to keep of that stage. The stage
# is the tableau's index, -1 for the probe that chooses the first step.
Derivative: TypeAlias = "Callable[[int, float, Tensor], tuple[Sequence[Part], Any]]"


def knows(solver: Solver) -> bool:
    """Return whether the engine has a method (one of ``TABLEAUX``) with all of its options."""
    tableau = TABLEAUX.get(solver.method)
    if tableau is None or solver.engine != "auto" or not is_stock(solver.method):
        return False
    known = CONTROL_OPTIONS if tableau.adaptive else GRID_OPTIONS
    return known.issuperset(solver.options)


def takes(solver: Solver, field: Field) -> bool:
    """Return whether the engine can do a solve exactly as asked; torchdiffeq does the others.

    It needs a state of one dtype, float32 or float64, and a field without callbacks.
    """
    return (
        knows(solver)
        and field.dtype in (torch.float32, torch.float64)
        and not field.callbacks()
        and not field.callbacks(adjoint=True)
    )


def _entrywise(tol: Any, field: Field, layout: Layout, like: Tensor) -> float | Tensor:
    """Return a tolerance as one number, or as one for each entry of the flat state.

    As in torchdiffeq a sequence, and a tensor with an axis, has one for each part of a tuple.
    """
    sizes = layout.sizes
    several = isinstance(tol, (tuple, list)) or (isinstance(tol, Tensor) and tol.dim() > 0)
    if not several:
        return float(tol)
    if field.is_tuple:
        if layout.shapes != field.layout.shapes:  # a backward state
            return smallest(tol)
        if len(tol) != len(sizes):
            raise ValueError(f"{len(tol)} tolerances were given for a state of {len(sizes)} parts")
        return torch.cat(
            [torch.as_tensor(x).to(like).expand(n) for x, n in zip(tol, sizes, strict=True)]
        )
    if not isinstance(tol, Tensor):
        tol = torch.stack([torch.as_tensor(x) for x in tol])
    given: Tensor = tol.to(like)
    if given.shape == (sum(sizes),):
        return given
    try:
        return torch.cat([given.broadcast_to(shape).reshape(-1) for shape in layout.shapes])
    except RuntimeError:
        shapes = " and ".join(str(tuple(shape)) for shape in layout.shapes)
        raise ValueError(
            f"a tolerance of shape {tuple(tol.shape)} cannot be broadcast to a state of {shapes}"
        ) from None


@dataclass
class Step:
    """An accepted step.

    Attributes:
        t0: its start.
        t1: its end, beyond or before ``t0``.
        y0: state at ``t0``, (n,).
        y1: state at ``t1``, (n,).
        stages: valid until the next step is asked for.
        end_derivative: returns F at the end; on a grid that takes the next step's first stage.
    """

    t0: float
    t1: float
    y0: Tensor
    y1: Tensor
    stages: Stages
    end_derivative: Callable[[], Tensor]

    def interpolate(self, t: float, *, cubic: bool = True) -> Tensor:
        """Return the state at a time within the step, (n,).

        Adaptive methods have torchdiffeq's quartic through both ends and the middle. On a grid it
        is the cubic through both ends, or with ``cubic=False`` the straight line.
        """
        dt = self.t1 - self.t0
        x = (t - self.t0) / dt
        if t == self.t1:
            return self.y1
        tableau = self.stages.tableau
        if tableau.adaptive:
            middle = x * x * (16 + x * (-32 + x * 16))
            first = x * (1 + x * (-4 + x * (5 - x * 2)))
            last = x * x * (1 + x * (-3 + x * 2))
            weights = [middle * m for m in tableau.mid]
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
        problem: the solve.
        kind: ``"forward"`` or ``"backward"``: which of the problem's solvers to use.
        derivative: the vector field (see :data:`Derivative`).
        layout: parts of the state.
        norm: maps an error in units of the tolerance, (n,), to a scalar.
        like: a tensor of the state's dtype and device.
        differentiable: whether autograd is to record the steps (never their size).

    Attributes:
        dt: the next step, positive; None means Hairer's choice.
        further_error: the error, in units of the tolerance, of what is integrated beside the state
            over a step from t0 to t1; None if there is nothing.
        calls: evaluations so far, for errors.

    Raises:
        SolverError: from the steps, if the solve fails.
    """

    def __init__(
        self,
        problem: Problem,
        kind: str,
        derivative: Derivative,
        layout: Layout,
        norm: Callable[[Tensor], Tensor],
        like: Tensor,
        *,
        differentiable: bool = False,
    ) -> None:
        """Keep the settings; nothing is evaluated yet."""
        self.solver: Solver = getattr(problem, kind)
        self.kind = kind
        self.derivative = derivative
        self.tableau = TABLEAUX[self.solver.method]
        self.norm = norm
        self.differentiable = differentiable
        tolerances = self.solver.rtol, self.solver.atol
        self.rtol, atol = (_entrywise(tol, problem.field, layout, like) for tol in tolerances)
        self.atol = atol.to(like) if isinstance(atol, Tensor) else like.new_full((), atol)
        # The defaults are torchdiffeq's. A step grows by ifactor at most, and shrinks to dfactor.
        self.safety = self._option("safety", 0.9)
        self.ifactor: float = self._option("ifactor", 10.0)
        self.dfactor: float = self._option("dfactor", 0.2)
        self.min_step = self._option("min_step", 0.0)  # below it every step is accepted
        self.max_step = self._option("max_step", math.inf)
        remembered = None if problem.memory is None else problem.memory.recall(kind)
        self.dt: float | None = self._option("first_step", remembered)
        self.further_error: Callable[[float, float], Tensor] | None = None
        self.steps_taken = self.calls = 0  # the former since the last output time

    def _option(self, name: str, default: Any) -> Any:
        given = self.solver.options.get(name)
        return default if given is None else float(given)

    def scale(self, y: Tensor) -> Tensor:
        """Return the error that a state, (n,), is allowed in each entry: rtol |y| + atol."""
        size = y.detach().abs()
        if isinstance(self.rtol, Tensor):
            return size.mul_(self.rtol).add_(self.atol)
        return torch.add(self.atol, size, alpha=self.rtol)  # a pass less

    def failure(self, reason: str, advice: str, t: float, dt: float = math.nan) -> SolverError:
        """Return the error of this solve, stopped at ``t`` on a step of ``dt``."""
        return failure(self.solver, self.kind, reason, advice, t=t, dt=dt, nfe=self.calls)

    def steps(self, y: Tensor, t0: float, t1: float) -> Iterator[Step]:
        """Yield the accepted steps from ``y`` at ``t0`` to exactly ``t1``."""
        if self.tableau.adaptive:
            return self._adaptive(y, t0, t1)
        return self._grid(y, grid_between(t0, t1, self.solver.options.get("step_size")))

    def check_finite(self, y: Tensor, t: float) -> None:
        """Raise SolverError unless the state ``y``, reached at ``t``, is finite.

        A grid returns what it finds, as torchdiffeq's do, and makes no GPU wait.
        """
        if self.tableau.adaptive and not _is_finite(y.detach()):
            raise self.failure(*NON_FINITE, t)

    def _adaptive(self, y: Tensor, t0: float, t1: float) -> Iterator[Step]:
        limit, self.steps_taken = self.solver.max_num_steps, 0
        stages = stages_like(y, self.tableau, differentiable=self.differentiable)
        stages[0], stages.kept[0] = self._first_stage(t0, y)
        sign = 1.0 if t1 > t0 else -1.0
        scale = self.scale(y)
        if self.dt is None:
            self.dt = self._initial_step(y, t0, t1, stages[0], scale)
        t, ratio = t0, self.dt  # a first step that is not finite tells of a field that is not
        while t != t1:
            proposed = min(max(self.dt, self.min_step), self.max_step)
            remaining = abs(t1 - t)
            # The end also takes in a remainder too small to be worth a step.
            last = proposed * (1 + 1e-9) >= remaining
            dt = remaining if last else proposed
            end = t1 if last else t + sign * dt
            if end == t or not dt > 1e-16 * abs(t1 - t0):
                finite = _is_finite(y.detach())
                why = why_stuck(state_finite=finite, field_finite=math.isfinite(ratio))
                raise self.failure(*why, t, dt)
            if self.steps_taken >= limit:
                raise self.failure(*too_many_steps(limit), t, dt)
            self.steps_taken += 1
            y1 = stages.advance(self.derivative, y, t, end)
            self.calls += self.tableau.stages - 1
            scale1 = self.scale(y1)
            # The scale of the larger state, entry by entry, is the larger of the two scales.
            error = self.norm(stages.error(y, dt).div_(torch.maximum(scale, scale1)))
            if self.further_error is not None:
                error = torch.maximum(error, self.further_error(t, end))
            ratio = float(error)
            accepted = ratio <= 1 or dt <= self.min_step
            grown = dt * self._factor(ratio)
            # A step cut short by the end says nothing against the length proposed before.
            self.dt = max(grown, proposed) if last and accepted else grown
            if accepted:
                yield Step(t, end, y, y1, stages, lambda: stages[-1])
                t, y, scale = end, y1, scale1
                if not last:
                    stages.hand_on()

    def _grid(self, y: Tensor, grid: Sequence[float]) -> Iterator[Step]:
        stages = stages_like(y, self.tableau, differentiable=self.differentiable)
        ahead: list[Any] = []  # first stage at the current point, where a step before took it
        for t0, t1 in itertools.pairwise(grid):
            stages[0], stages.kept[0] = ahead or self._first_stage(t0, y)
            y1 = stages.advance(self.derivative, y, t0, t1)
            self.calls += self.tableau.stages - 1
            ahead = []

            def end_derivative(t1: float = t1, y1: Tensor = y1, ahead: list[Any] = ahead) -> Tensor:
                if not ahead:
                    ahead.extend(self._first_stage(t1, y1))
                return join(ahead[0])

            yield Step(t0, t1, y, y1, stages, end_derivative)
            y = y1

    def _first_stage(self, t: float, y: Tensor) -> tuple[Sequence[Part], Any]:
        self.calls += 1
        return self.derivative(0, t, y)

    def _factor(self, ratio: float) -> float:
        """Return the factor for the next step after one with this error ratio."""
        if ratio == 0:
            return self.ifactor
        if not math.isfinite(ratio):
            return self.dfactor
        smallest = 1.0 if ratio < 1 else self.dfactor
        wanted = self.safety / ratio ** (1 / self.tableau.order)
        return float(min(self.ifactor, max(wanted, smallest)))

    @torch.no_grad()
    def _initial_step(self, y: Tensor, t0: float, t1: float, f0: Tensor, scale: Tensor) -> float:
        """Return Hairer, Nørsett and Wanner's first step (Solving ODEs I, II.4).

        The field is not evaluated beyond ``t1``, where it may not exist.
        """
        d0, d1 = torch.stack([self.norm(y / scale), self.norm(f0 / scale)]).tolist()
        h0 = min(1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1, abs(t1 - t0))
        sign = 1.0 if t1 > t0 else -1.0
        self.calls += 1
        parts, _ = self.derivative(-1, t0 + sign * h0, torch.add(y, f0, alpha=sign * h0))
        change = join(parts).sub_(f0).div_(scale)
        d2 = float(self.norm(change)) / h0 if h0 > 0 else math.nan
        if d1 <= 1e-15 and d2 <= 1e-15:
            h1 = max(1e-6, h0 * 1e-3)
        else:
            h1 = (0.01 / max(d1, d2)) ** (1 / self.tableau.order)
        return min(100 * h0, h1)


def grid_between(t0: float, t1: float, step: Any) -> list[float]:
    """Return the grid from ``t0`` to ``t1``: steps of this length, the last one shorter."""
    if step is None:
        return [t0, t1]
    count = max(1, math.ceil(abs(t1 - t0) / float(step) - 1e-9))
    sign = math.copysign(float(step), t1 - t0)
    return [*(t0 + sign * i for i in range(count)), t1]


def _is_finite(y: Tensor) -> bool:
    if y.numel() == 0:
        return True
    low, high = torch.aminmax(y)  # one pass: extremes carry NaN and infinity
    return math.isfinite(float(low)) and math.isfinite(float(high))


class Negated(NamedTuple):
    """A part that is to be stored with the other sign: one pass instead of two."""

    value: Tensor


Part: TypeAlias = Tensor | Negated


def join(parts: Sequence[Part]) -> Tensor:
    """Return parts as one new vector."""
    plain = [-part.value if isinstance(part, Negated) else part for part in parts]
    return torch.cat([part.reshape(-1) for part in plain])


class Stages:
    """Derivatives at the stages of one method, each a flat vector; assigned by parts.

    They lie one below the other in a (stages, n) buffer, so that a combination of them is a single
    matrix-vector product over contiguous memory.

    Attributes:
        tableau: the method.
        kept: what the field returned beside each derivative.
    """

    def __init__(self, y: Tensor, tableau: Tableau) -> None:
        """Make room for the stages of a method at a state like ``y``, (n,)."""
        self.tableau = tableau
        self.kept: list[Any] = [None] * tableau.stages
        self._K = y.new_empty(tableau.stages, y.numel())
        # Views and weights are made once: small solves are otherwise spent on making them.
        self._first = [self._K[:count].T for count in range(tableau.stages + 1)]
        self._a, self._b, self._error = _weights(tableau.name, y.dtype, y.device)
        self._places: list[tuple[Tensor, ...]] = []

    def __setitem__(self, i: int, parts: Sequence[Part]) -> None:
        """Store stage ``i``, given by parts that fill the vector one after the other."""
        if not self._places:
            plain = [part.value if isinstance(part, Negated) else part for part in parts]
            columns = self._K.split_with_sizes([part.numel() for part in plain], dim=1)
            shaped = [
                c.view(self.tableau.stages, *part.shape)
                for c, part in zip(columns, plain, strict=True)
            ]
            self._places = list(zip(*[s.unbind() for s in shaped], strict=True))
        for place, part in zip(self._places[i], parts, strict=True):
            if isinstance(part, Negated):
                torch.neg(part.value, out=place)
            else:
                place.copy_(part)

    def __getitem__(self, i: int) -> Tensor:
        """Return stage ``i``, (n,)."""
        return self._K[i]

    def advance(self, derivative: Derivative, y: Tensor, t0: float, t1: float) -> Tensor:
        """Take all stages but the first, which must be there; return the state at ``t1``."""
        dt, at = t1 - t0, y
        for i, c in enumerate(self.tableau.c):
            if i > 0:
                at = self.place(i, y, dt)
                self[i], self.kept[i] = derivative(i, t1 if c == 1 else t0 + c * dt, at)
        return at if self.tableau.ends_on_a_stage else self.result(y, dt)

    def place(self, i: int, y: Tensor, dt: float) -> Tensor:
        """Return the state at which stage ``i`` is taken, ``y + dt Σ_j a[i][j] k_j``."""
        return torch.addmv(y, self._first[i], self._a[i], alpha=dt)

    def result(self, y: Tensor, dt: float) -> Tensor:
        """Return the step's result, ``y + dt Σ_j b[j] k_j``."""
        return torch.addmv(y, self._first[-1], self._b, alpha=dt)

    def error(self, y: Tensor, dt: float) -> Tensor:
        """Return the error estimate ``dt Σ_j error[j] k_j``, a new tensor without a graph."""
        # beta=0: y lends its size alone; dt within the product saves a pass.
        return torch.addmv(y, self._first[-1], self._error, beta=0, alpha=dt)

    def combine(self, y: Tensor, weights: Sequence[float], dt: float) -> Tensor:
        """Return ``y + dt Σ_j weights[j] k_j`` for weights of the caller's."""
        vector = torch.tensor(weights, dtype=y.dtype, device=y.device)
        return torch.addmv(y, self._first[len(weights)], vector, alpha=dt)

    def hand_on(self) -> None:
        """Make the last stage the first one of the next step."""
        self._K[0].copy_(self._K[-1])
        self.kept[0] = self.kept[-1]


class _RecordedStages(Stages):
    """Stages as separate tensors with their graph, combined by a chain of additions."""

    def __init__(self, tableau: Tableau) -> None:
        self.tableau = tableau
        self.kept = [None] * tableau.stages
        self._k: dict[int, Tensor] = {}

    def __setitem__(self, i: int, parts: Sequence[Part]) -> None:
        self._k[i] = join(parts)

    def __getitem__(self, i: int) -> Tensor:
        return self._k[i % self.tableau.stages]

    def place(self, i: int, y: Tensor, dt: float) -> Tensor:
        return self.combine(y, self.tableau.a[i], dt)

    def result(self, y: Tensor, dt: float) -> Tensor:
        return self.combine(y, self.tableau.b, dt)

    def error(self, y: Tensor, dt: float) -> Tensor:
        with torch.no_grad():
            return self.combine(torch.zeros_like(y), self.tableau.error, dt)

    def combine(self, y: Tensor, weights: Sequence[float], dt: float) -> Tensor:
        for j, weight in enumerate(weights):
            if weight != 0:
                y = torch.add(y, self[j], alpha=weight * dt)
        return y

    def hand_on(self) -> None:
        self._k[0] = self[-1]


def stages_like(y: Tensor, tableau: Tableau, *, differentiable: bool) -> Stages:
    """Return storage for the stages of a method at a state like ``y``, (n,)."""
    return _RecordedStages(tableau) if differentiable else Stages(y, tableau)


@functools.lru_cache(maxsize=64)
def _weights(
    method: str, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return a method's ``a``, ``b`` and ``error`` as tensors."""
    tableau = TABLEAUX[method]
    *a, b, error = (
        torch.tensor(row, dtype=dtype, device=device)
        for row in (*tableau.a, tableau.b, tableau.error)
    )
    return a, b, error
