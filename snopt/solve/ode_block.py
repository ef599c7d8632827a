"""A Neural ODE as a layer: a vector field and an integration time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from snopt.curvature.recording import inside_a_solve, inside_solve
from snopt.linalg import at_least_float32
from snopt.solve.adjoint import solve_with_adjoint
from snopt.solve.checkpoint import needs_engine, solve_with_checkpoints
from snopt.solve.direct import solve_through
from snopt.solve.field import Field, State, check_monotonic, leaves_no_trace, parts_of
from snopt.solve.runge_kutta import knows
from snopt.solve.solver import NFE, Problem, Solver, StepMemory

_SOLVES: dict[str, Callable[..., Any]] = {
    "adjoint": solve_with_adjoint,
    "direct": solve_through,
    "checkpoint": solve_with_checkpoints,
}

GRADIENTS = tuple(_SOLVES)


class ODEBlock(nn.Module):
    """Maps y(t[0]) to y(t[-1]) along ``dy/dt = func(t, y)``.

    Args:
        func: vector field, any ``nn.Module`` with ``forward(t, y)``.
        t: output times, strictly increasing or decreasing; two for an ordinary block.
        gradient: ``"adjoint"`` (O(1) memory), ``"direct"`` (backpropagation through the solver:
            exact for the discretised solve, memory grows by the graph of every step) or
            ``"checkpoint"`` (the same gradient, memory grows by two states a step).
        method: any torchdiffeq method.
        rtol: relative tolerance.
        atol: absolute tolerance.
        options: solver options.
        adjoint_rtol: only with ``gradient="adjoint"``, see :func:`snopt.odeint_adjoint`.
        adjoint_atol: likewise.
        adjoint_method: likewise.
        adjoint_options: likewise.
        return_all: return the state at all times instead of the last.
        engine: ``"auto"`` or ``"torchdiffeq"``, see :func:`snopt.odeint_adjoint`.
        reuse_step: start each solve with the last one's step size (many short solves in a row); the
            result then depends on the solves before, within the tolerance.

    Attributes:
        t: buffer, (T,).
        solver: how the forward solve is done; another value takes effect at the next call.
        nfe: evaluations so far, ``nfe.forward``, ``nfe.backward``, ``nfe.curvature``.

    Raises:
        TypeError: if ``func`` is no module.
        ValueError: if ``gradient`` is unknown, fewer than two times are given, they are not
            monotonic, or the settings of the solver are wrong or do not go with ``gradient``.
    """

    def __init__(
        self,
        func: nn.Module,
        t: Sequence[float] | Tensor = (0.0, 1.0),
        *,
        gradient: str = "adjoint",
        method: str = "dopri5",
        rtol: float = 1e-3,
        atol: float = 1e-3,
        options: Mapping[str, Any] | None = None,
        adjoint_rtol: float | None = None,
        adjoint_atol: float | None = None,
        adjoint_method: str | None = None,
        adjoint_options: Mapping[str, Any] | None = None,
        return_all: bool = False,
        engine: str = "auto",
        reuse_step: bool = False,
    ) -> None:
        """Store the field and the settings."""
        super().__init__()
        if not isinstance(func, nn.Module):
            raise TypeError(f"func must be an nn.Module, got {type(func).__name__}")
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
        self.func = func
        self.gradient = gradient
        self.solver = Solver(method, rtol, atol, options, engine)
        self._adjoint = (adjoint_method, adjoint_rtol, adjoint_atol, adjoint_options)
        _ = self.backward_solver  # raises what is wrong with it now
        if gradient == "checkpoint" and not knows(self.solver):
            raise ValueError(needs_engine(self.solver))
        self.memory = StepMemory() if reuse_step else None
        self.return_all = return_all
        self.nfe = NFE()
        self.t: Tensor
        self.register_buffer("t", _times(t))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move or convert everything, but keep the times out of half precision."""
        times = self.t
        super()._apply(fn, recurse)
        if self.t.dtype in (torch.float16, torch.bfloat16):
            self.t = times.to(self.t.device)
        return self

    @property
    def backward_solver(self) -> Solver:
        """How the backward solve is done: the adjoint's, or one for the curvature alone."""
        if self.gradient == "adjoint":
            return self.solver.adjoint(*self._adjoint)
        return self.solver.adjoint()

    def forward(self, y0: State, t: Sequence[float] | Tensor | None = None) -> Any:
        """Integrate from ``y0``.

        Args:
            y0: state at the first time, a tensor or a tuple of tensors. Half precision is
                integrated in float32, and the result of a half-precision field cast back to it.
            t: times to use instead of the block's own; a tensor may require a gradient.

        Returns:
            The state at the last time, like ``y0``; with ``return_all`` at all times, with a
            leading axis.

        Raises:
            SolverError: if the solve fails.
        """
        return self.integrate(self.func, y0, t)

    def integrate(
        self, func: nn.Module, y0: State, t: Sequence[float] | Tensor | None = None
    ) -> Any:
        """Integrate another field with the block's settings, times and counter.

        For a field that is made anew for each solve, such as one with frozen noise; the backward
        pass keeps it. Other arguments, result and errors are those of a call of the block.
        """
        # Steps and tolerances mean nothing in half precision, which is what a layer before the
        # block gives under autocast.
        y0 = tuple(map(at_least_float32, y0)) if isinstance(y0, tuple) else at_least_float32(y0)
        first = parts_of(y0)[0]
        times = self.t if t is None else _times(t)
        # Times in half precision could not tell the solver's steps apart.
        dtype = torch.float64 if first.real.dtype == torch.float64 else torch.float32
        times = times.to(first.device, dtype)
        func, half = _on_full_precision(func, first.device.type)
        backward, nested = self.backward_solver, inside_a_solve()
        field = Field(func, y0)
        problem = Problem(field, self.solver, backward, self.nfe, self.memory, nested)
        solution = _SOLVES[self.gradient](problem, y0, times)
        if self.return_all:
            return solution
        # A copy: an in-place activation behind the block must not write into the solution that the
        # backward solve starts from.
        last = [p[-1].to(half or p.dtype, copy=True) for p in parts_of(solution)]
        return problem.field.pack(last)

    def velocity(self, t: float, y: State) -> State:
        """Return F(t, y), like ``y`` and at least in float32, without a graph and without a trace.

        It is counted as one of ``nfe.curvature``. Random generators and running statistics of the
        field are afterwards what they were; layers that an optimizer watches do not see it.
        """
        parts = tuple(map(at_least_float32, parts_of(y)))
        first = parts[0]
        func, _ = _on_full_precision(self.func, first.device.type)
        with torch.no_grad(), leaves_no_trace(self.func, first.device), inside_solve():
            self.nfe.add("curvature")
            time = torch.full((), t, dtype=first.dtype, device=first.device)
            out = func(time, parts if isinstance(y, tuple) else first)
        rates = [o.to(part.dtype) for o, part in zip(parts_of(out), parts, strict=True)]
        return tuple(rates) if isinstance(y, tuple) else rates[0]

    def extra_repr(self) -> str:
        """Return times, gradient mode and solver for ``print(block)``."""
        times = ", ".join(f"{x:g}" for x in self.t.tolist())
        solver = ", ".join(f"{k}={v}" for k, v in vars(self.solver).items() if v != {})
        return f"t=({times}), gradient={self.gradient}, {solver}"


class _InHalfPrecision(nn.Module):
    """A field of half-precision parameters for a state in float32."""

    def __init__(self, func: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.func, self.dtype = func, dtype

    def forward(self, t: Tensor, y: State) -> Any:
        """Return F in the field's own precision; the solver brings it back to the state's."""
        parts = tuple(part.to(self.dtype) for part in parts_of(y))
        return self.func(t.to(self.dtype), parts if isinstance(y, tuple) else parts[0])


def _on_full_precision(func: nn.Module, device: str) -> tuple[nn.Module, torch.dtype | None]:
    """Return the field as the solver gets it, and its dtype where that is half precision."""
    first = next(func.parameters(), None)
    if first is None or first.dtype not in (torch.float16, torch.bfloat16):
        return func, None
    if torch.is_autocast_enabled(device):
        return func, first.dtype
    return _InHalfPrecision(func, first.dtype), first.dtype


def _times(t: Sequence[float] | Tensor) -> Tensor:
    times = t if isinstance(t, Tensor) else torch.tensor(list(t), dtype=torch.float64)
    if times.dim() != 1 or times.numel() < 2:
        raise ValueError(f"an ODE block needs at least two times, got {t!r}")
    if not isinstance(t, Tensor):
        check_monotonic(times.tolist())
    return times
