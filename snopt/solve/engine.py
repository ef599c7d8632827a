"""Solves on the project's own Runge-Kutta engine: which ones it takes, and the forward solve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snopt.curvature.collector import inside_solve
from snopt.solve.checks import CONTROL_OPTIONS, GRID_OPTIONS
from snopt.solve.field import Layout, evaluate_field
from snopt.solve.norms import rms_norm
from snopt.solve.runge_kutta import Control, Field, Step, Stepper, is_finite
from snopt.solve.tableau import TABLEAUX, Tableau
from snopt.solve.torchdiffeq import Settings, State, solver_error, user_callbacks

ENGINES = ("auto", "torchdiffeq")

_KINDS = ("forward", "backward")


class StepMemory(nn.Module):
    """Last step sizes of an ODE block, to start the next solve with.

    A module, so that a model's ``state_dict`` has them and a resumed run repeats an unbroken one.

    Attributes:
        sizes: buffer, (2,): forward and backward step, NaN where a solve is to choose anew.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        super().__init__()
        self.sizes: Tensor
        self.register_buffer("sizes", torch.full((2,), math.nan, dtype=torch.float64))

    def recall(self, kind: str) -> float | None:
        """Return the last step of a ``"forward"`` or ``"backward"`` solve, or None."""
        size = float(self.sizes[_KINDS.index(kind)])
        return size if math.isfinite(size) else None

    def keep(self, kind: str, size: float | None) -> None:
        """Remember the last step of a solve."""
        self.sizes[_KINDS.index(kind)] = math.nan if size is None else size


def takes(settings: Settings, func: object, parts: Sequence[Tensor]) -> bool:
    """Return whether the engine can do a solve exactly as asked; torchdiffeq does the others.

    It knows the methods of :mod:`snopt.solve.tableau` with the options of step-size control and of
    fixed grids, states of one dtype (float32 or float64), and no callbacks.
    """
    tableau = TABLEAUX.get(settings.method)
    if tableau is None or not all(part.numel() for part in parts):
        return False
    known = CONTROL_OPTIONS if tableau.adaptive else GRID_OPTIONS
    if not known.issuperset(settings.options):
        return False
    dtypes = {part.dtype for part in parts}
    if len(dtypes) > 1 or not dtypes.issubset({torch.float32, torch.float64}):
        return False
    return not user_callbacks(func) and not user_callbacks(func, adjoint=True)


def make_control(
    settings: Settings, layout: Layout, norm: Callable[[Tensor], Tensor], like: Tensor
) -> Control:
    """Return the step-size control that the settings ask for."""
    given = {
        name: float(settings.options[name])
        for name in ("safety", "ifactor", "dfactor", "min_step", "max_step")
        if settings.options.get(name) is not None
    }
    atol = _entrywise(settings.atol, layout, like)
    return Control(
        rtol=_entrywise(settings.rtol, layout, like),
        atol=atol.to(like) if isinstance(atol, Tensor) else like.new_full((), atol),
        norm=norm,
        max_num_steps=settings.max_num_steps,
        **given,
    )


def _entrywise(tol: Any, layout: Layout, like: Tensor) -> float | Tensor:
    if isinstance(tol, (tuple, list)):
        if len(tol) != len(layout.sizes):
            raise ValueError(
                f"{len(tol)} tolerances were given for a state of {len(layout.sizes)} parts"
            )
        pieces = [like.new_full((n,), float(x)) for x, n in zip(tol, layout.sizes, strict=True)]
        return torch.cat(pieces)
    return tol if isinstance(tol, Tensor) and tol.dim() else float(tol)


def grid_between(t0: float, t1: float, settings: Settings) -> list[float]:
    """Return the grid from ``t0`` to ``t1``: steps of ``step_size``, the last one shorter."""
    step = settings.options.get("step_size")
    if step is None:
        return [t0, t1]
    count = max(1, math.ceil(abs(t1 - t0) / float(step) - 1e-9))
    sign = math.copysign(float(step), t1 - t0)
    return [*(t0 + sign * i for i in range(count)), t1]


def steps_between(
    stepper: Stepper, tableau: Tableau, settings: Settings, y: Tensor, t0: float, t1: float
) -> Iterator[Step]:
    """Yield the accepted steps from ``t0`` to ``t1`` by either kind of method."""
    if tableau.adaptive:
        return stepper.adaptive(y, t0, t1)
    return stepper.grid(y, grid_between(t0, t1, settings))


def make_stepper(
    func: Field,
    settings: Settings,
    layout: Layout,
    norm: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    kind: str,
    evaluations: Callable[[], int],
    first_step: float | None = None,
    differentiable: bool = False,
) -> Stepper:
    """Return a stepper whose failure is a :class:`SolverError` about this solve."""

    def failure(reason: str, advice: str, t: float, dt: float) -> Exception:
        return solver_error(settings, reason, advice, t, dt, evaluations(), kind)

    if settings.options.get("first_step") is not None:
        first_step = float(settings.options["first_step"])
    return Stepper(
        func,
        TABLEAUX[settings.method],
        make_control(settings, layout, norm, like),
        failure,
        first_step=first_step,
        differentiable=differentiable,
    )


def forward_steps(
    func: Callable[..., Any],
    pack: Callable[[Sequence[Tensor]], State],
    parts: Sequence[Tensor],
    times: Sequence[float],
    settings: Settings,
    count: Callable[[], None],
    memory: StepMemory | None = None,
    *,
    differentiable: bool = False,
) -> Iterator[tuple[Step, list[int]]]:
    """Yield every accepted step of a forward solve with the output times that lie in it.

    To be run to its end inside :class:`snopt.curvature.collector.inside_solve`.

    Args:
        func: vector field F(t, y).
        pack: makes the state that ``func`` wants from its parts.
        parts: initial state.
        times: output times, the first one being the start.
        settings: tolerances, method, options.
        count: called for each evaluation.
        memory: step size to start with and to leave behind, or None.
        differentiable: whether autograd is to record the steps.

    Raises:
        SolverError: if the solve fails.
    """
    layout = Layout(tuple(part.shape for part in parts))
    y = layout.flatten(parts)
    calls = 0

    def evaluate(_stage: int, t: float, y: Tensor) -> tuple[Sequence[Tensor], None]:
        nonlocal calls
        calls += 1
        count()
        return evaluate_field(func, pack, layout, t, layout.split(y)), None

    user_norm = settings.options.get("norm")
    norm = (
        (lambda e: user_norm(pack(layout.split(e)))) if user_norm is not None else rms_norm(layout)
    )
    stepper = make_stepper(
        evaluate,
        settings,
        layout,
        norm,
        y,
        kind="forward",
        evaluations=lambda: calls,
        first_step=None if memory is None else memory.recall("forward"),
        differentiable=differentiable,
    )
    tableau = TABLEAUX[settings.method]
    ends = times[1:] if _grid_is_output_times(tableau, settings) else times[-1:]
    sign = 1.0 if times[-1] > times[0] else -1.0
    due, start = 1, times[0]
    for end in ends:
        for step in steps_between(stepper, tableau, settings, y, start, end):
            inside = []
            while due < len(times) and sign * (times[due] - step.t1) <= 0:
                inside.append(due)
                due += 1
            yield step, inside
            y = step.y1
        start = end
    if memory is not None:
        memory.keep("forward", stepper.dt)
    if not is_finite(y.detach()):
        raise stepper.failure(
            "non-finite state",
            "Check the input, the step size and the learning rate.",
            times[-1],
            math.nan,
        )


def solve_on_engine(
    func: Callable[..., Any],
    pack: Callable[[Sequence[Tensor]], State],
    parts: Sequence[Tensor],
    times: Sequence[float],
    settings: Settings,
    count: Callable[[], None],
    memory: StepMemory | None = None,
    *,
    differentiable: bool = False,
) -> tuple[Tensor, ...]:
    """Return the solution at all output times, each part (T, …); see :func:`forward_steps`."""
    layout = Layout(tuple(part.shape for part in parts))
    rows = [layout.flatten(parts)]
    cubic = settings.options.get("interp") == "cubic"
    with inside_solve():  # once for the whole solve: small ones are spent on such details
        for step, inside in forward_steps(
            func, pack, parts, times, settings, count, memory, differentiable=differentiable
        ):
            rows.extend(step.interpolate(times[i], cubic=cubic) for i in inside)
    return tuple(layout.split(torch.stack(rows)))


def _grid_is_output_times(tableau: Tableau, settings: Settings) -> bool:
    return not tableau.adaptive and settings.options.get("step_size") is None
