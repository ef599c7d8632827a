"""Solves on stock torchdiffeq: the reference, and the road for all that the engine does not take.

Input is checked, evaluations are counted, and a failure is a :class:`SolverError`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torchdiffeq
from torch import Tensor

from snopt.curvature.recording import inside_solve
from snopt.errors import NO_EVENT, NON_FINITE, SolverError, failure, too_many_steps, why_stuck
from snopt.solve.field import State, adjoint_norm, parts_of, products, rms
from snopt.solve.solver import (
    METHODS,
    Problem,
    Solver,
    is_adaptive,
    is_on_a_grid,
    is_stock,
    smallest,
)

if TYPE_CHECKING:
    from snopt.solve.observers import AtNodes


class _Watched:
    """The vector field as a solver sees it: counts, watches the steps, passes callbacks on."""

    def __init__(
        self, problem: Problem, kind: str, func: Callable[..., Any], times: list[float], event: bool
    ) -> None:
        self.func = func
        self.solver: Solver = getattr(problem, kind)
        # Output times in the order of the solve, upwards, and how many have been passed. An event
        # solve has but a direction.
        self.sign = 1.0 if times[-1] >= times[0] else -1.0
        self.times = [self.sign * t for t in times[: 1 if event else None]]
        self.event = event
        self.passed = 1
        self.field, self.nfe = problem.field, problem.nfe
        self.kind = kind
        self.adaptive = is_adaptive(self.solver.method)
        self.calls = self.steps = 0
        self.t: float | None = None
        self.dt: float | None = None
        self.own_error: BaseException | None = None
        callbacks = problem.field.callbacks(adjoint=kind == "backward")
        self._user_step = callbacks.get("callback_step")
        for name, callback in callbacks.items():
            setattr(self, name, callback)
        if "callback_step" in METHODS[self.solver.method].valid_callbacks():
            self.callback_step = self._step

    def __call__(self, t: Tensor, y: State) -> Any:
        self.calls += 1
        self.nfe.add(self.kind)
        try:
            out = self.func(t, y)
            if self.kind == "forward":
                self.field.answer(out)
            return out
        except BaseException as error:
            self.own_error = error  # the user's, not the solver's: never translated
            raise

    def _step(self, t0: Tensor, y0: State, dt: Tensor) -> None:
        """Stop a solve that stands still or never ends; torchdiffeq's asserts vanish under -O."""
        self.t, self.dt = float(t0.detach()), float(dt.detach())
        if self._user_step is not None:
            self._user_step(t0, y0, dt)
        if not self.adaptive:
            return
        self.steps += 1
        if (passed := bisect_right(self.times, self.sign * self.t)) > self.passed:
            self.passed, self.steps = passed, 1
        # t0 is the caller's time, negated back in a solve that runs downwards; dt is positive.
        if self.event and abs(self.t) > 1e300:
            raise self.failure(*NO_EVENT)
        if not abs(self.t) + self.dt > abs(self.t):
            # torchdiffeq answers an error estimate that is not finite with a step of min_step = 0.
            raise self.failure(*why_stuck(state_finite=_finite(y0), field_finite=self.dt != 0))
        if self.steps > self.solver.max_num_steps:
            limit = self.solver.max_num_steps
            raise self.failure(*too_many_steps(limit, event=self.event))

    def event_function(self, event_fn: Callable[..., Any]) -> Callable[..., Tensor]:
        """Return an event function that stops the solve at NaN, whose sign is that of no value."""

        def watched(t: Tensor, y: State) -> Tensor:
            value = torch.as_tensor(event_fn(t, y))
            if bool(torch.isnan(value).any()):
                self.t = float(t.detach())
                raise self.failure("the event function is NaN")
            return value

        return watched

    def failure(self, reason: str, advice: str = "") -> SolverError:
        """Return the error that says where this solve stands."""
        return failure(self.solver, self.kind, reason, advice, t=self.t, dt=self.dt, nfe=self.calls)


def solve(
    problem: Problem,
    kind: str,
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    """Integrate ``dy/dt = func(t, y)`` with ``torchdiffeq.odeint``; return the state at all times.

    The ``kind`` of solve, ``"forward"`` or ``"backward"``, says which of the problem's solvers,
    counts and callbacks it is. With an event function, return the time at which it is zero and the
    state at ``t[0]`` and then; ``t[1]`` gives the direction alone.

    Raises:
        SolverError: if the solve fails. A fixed grid returns what it finds, NaN included.
        ValueError: if the method has no events.
    """
    watched = _Watched(problem, kind, func, t.detach().tolist(), event_fn is not None)
    solver = watched.solver
    options = dict(solver.options)
    if is_stock(solver.method):  # the watcher counts; a grid would warn of the option
        options.pop("max_num_steps", None)
    if any(part.numel() == 0 for part in parts_of(y0)):  # torchdiffeq's mean of nothing is NaN
        options.setdefault("norm", lambda y: max(rms(part) for part in parts_of(y)))
    if event_fn is not None:
        if not hasattr(METHODS[solver.method], "integrate_until_event"):
            raise ValueError(f"the method {solver.method!r} cannot solve up to an event")
        t = t.to(torch.float64)  # the event time is rounded to the type of t
        event_fn = watched.event_function(event_fn)
    try:
        with inside_solve():
            solution = torchdiffeq.odeint(
                watched,
                y0,
                t,
                rtol=solver.rtol,
                atol=solver.atol,
                method=solver.method,
                options=options,
                event_fn=event_fn,
            )
    except AssertionError as error:
        if error is watched.own_error or isinstance(error, SolverError):
            raise
        raise watched.failure(str(error)[:200] or "assertion in torchdiffeq") from error
    states = solution if event_fn is None else solution[1]
    if watched.adaptive and not _finite(states):
        raise watched.failure(*NON_FINITE)
    if len(parts_of(states)[0]) != t.numel():
        raise watched.failure(f"{solver.method} stopped before the last time")
    return solution


def solve_to_event(
    problem: Problem, parts: Sequence[Tensor], t: Tensor, event_fn: Callable[..., Any]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return ``t[0]`` and the event's time, (2,) in float64, and the parts of the state then.

    Raises:
        SolverError: if there is no event, or the event function is NaN.
    """
    field = problem.field
    end, states = solve(problem, "forward", field.func, field.pack(parts), t, event_fn)
    return torch.stack([t[0].to(end), end]), parts_of(states)


def backward_on_torchdiffeq(
    problem: Problem,
    t: Tensor,
    solution: Sequence[Tensor],
    grad_solution: Sequence[Tensor],
    params: Sequence[Tensor],
    observer: AtNodes | None,
    *,
    t_requires_grad: bool,
) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
    """Integrate (z, a, Q_u) as one state; see :func:`snopt.solve.backward.integrate_backward`.

    The observer's nodes are extra output times. They are dense output and change neither steps nor
    result: the gradient with collection is the gradient without, bit for bit.
    """
    n = len(solution)
    dynamics = _augmented_dynamics(problem, n, params, t_requires_grad)
    times = t.detach().tolist()
    a = [g[-1].clone() for g in grad_solution]
    vjp_t = solution[0].new_zeros(())
    Q_u = [torch.zeros_like(p) for p in params]
    grad_t = torch.zeros_like(t) if t_requires_grad else None
    for i in range(len(times) - 1, 0, -1):
        if grad_t is not None:
            grad_t[i] = _grad_of_output_time(problem, t, i, solution, grad_solution)
            vjp_t = vjp_t - grad_t[i]
        plan = [] if observer is None else observer.plan(times[i], times[i - 1])
        grid = _output_times(t, i, [node for node, _ in plan])
        z = [s[i] for s in solution]
        stable = replace(problem, backward=_backward_solver(problem, extra_outputs=bool(plan)))
        aug = solve(stable, "backward", dynamics, (vjp_t, *z, *a, *Q_u), grid)
        if observer is not None:
            for k, (_, takers) in enumerate(plan, start=1):
                observer.on_node(grid[k], [part[k] for part in aug[1 : 1 + 2 * n]], takers)
        extra = _interpolation_cost(problem, len(plan))
        problem.nfe.add("curvature", extra)
        problem.nfe.add("backward", -extra)
        vjp_t, Q_u = aug[0][-1], [part[-1] for part in aug[1 + 2 * n :]]
        a = [
            part[-1] + g[i - 1]
            for part, g in zip(aug[1 + n : 1 + 2 * n], grad_solution, strict=True)
        ]
    if grad_t is not None:
        grad_t[0] = vjp_t.real
    # Beside a complex state the integrals of real parameters were carried as complex.
    Q_u = [Q if p.is_complex() else Q.real for Q, p in zip(Q_u, params, strict=True)]
    return a, grad_t, Q_u


def _augmented_dynamics(
    problem: Problem, n: int, params: Sequence[Tensor], t_requires_grad: bool
) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return the right-hand side for the state (vjp_t, *z, *a, *Q_u)."""
    field = problem.field

    def dynamics(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z, a = state[1 : 1 + n], state[1 + n : 1 + 2 * n]
        with torch.enable_grad():
            t = t.detach().requires_grad_(t_requires_grad)
            z = tuple(part.detach().requires_grad_(True) for part in z)
            outputs = field.answer(field.func(t, field.pack(z)))
            inputs = [*([t] if t_requires_grad else []), *z, *params]
            found = products(outputs, inputs, [-adj for adj in a])
        filled = [
            torch.zeros_like(x) if p is None else p for x, p in zip(inputs, found, strict=True)
        ]
        if not t_requires_grad:
            filled = [torch.zeros_like(state[0]), *filled]
        outputs = tuple(o.detach() for o in outputs)
        return (filled[0].to(state[0].dtype), *outputs, *filled[1:])

    return dynamics


def _grad_of_output_time(
    problem: Problem,
    t: Tensor,
    i: int,
    solution: Sequence[Tensor],
    grad_solution: Sequence[Tensor],
) -> Tensor:
    """Return dΦ/dt_i = F(t_i, z(t_i))ᵀ Φ_z(t_i), the effect of moving output time i alone."""
    problem.nfe.backward += 1
    field = problem.field
    time = t[i].to(solution[0].real.dtype)
    outputs = parts_of(field.func(time, field.pack([s[i] for s in solution])))
    terms = [(o.conj() * g[i]).sum().real for o, g in zip(outputs, grad_solution, strict=True)]
    return torch.stack([term.to(t.dtype) for term in terms]).sum()


def _output_times(t: Tensor, i: int, nodes: list[float]) -> Tensor:
    """Return t[i], the nodes, t[i-1]; a node that rounds onto a neighbour names the interval."""
    inner = torch.tensor(nodes, dtype=t.dtype, device=t.device)
    grid = torch.cat([t[i : i + 1], inner, t[i - 1 : i]]).detach()
    if nodes and not bool((torch.diff(grid) * torch.sign(t[i - 1] - t[i]) > 0).all()):
        raise ValueError(
            f"{len(nodes)} quadrature nodes cannot be told apart in {t.dtype} between t ="
            f" {float(t[i])} and {float(t[i - 1])}: use fewer nodes or times in float64"
        )
    return grid


def _interpolation_cost(problem: Problem, nodes: int) -> int:
    """Return the evaluations that the backward solve spends on interpolating at the nodes.

    Adaptive methods have dense output for nothing; a fixed grid's cubic costs one for each.
    """
    if not is_on_a_grid(problem.backward.method) or nodes == 0:
        return 0
    users_choice = problem.backward.options.get("interp")
    return {None: nodes + 1, "cubic": nodes}.get(users_choice, 0)


def _backward_solver(problem: Problem, *, extra_outputs: bool) -> Solver:
    """Return the backward solver, such that extra output times leave the result alone."""
    backward = problem.backward
    options = dict(backward.options)
    if is_on_a_grid(backward.method):
        options.pop("norm", None)
        if "step_size" not in options and "grid_constructor" not in options:
            # Without either, torchdiffeq takes the output times as the grid.
            options["grid_constructor"] = lambda _func, _y0, t: t[[0, -1]]
        if extra_outputs:
            # Linear interpolation would put first-order errors into the factors. The cubic costs an
            # evaluation for each output time and returns the grid's own values at the grid's times.
            options.setdefault("interp", "cubic")
    elif not callable(norm := options.get("norm")):
        user_norm = problem.forward.options.get("norm")
        options["norm"] = adjoint_norm(problem.field, user_norm, seminorm=norm is not None)
    rtol, atol = (
        smallest(tol) if isinstance(tol, Tensor) and tol.dim() else tol
        for tol in (backward.rtol, backward.atol)
    )
    return Solver(backward.method, rtol, atol, options, prefix="adjoint_")


def _finite(y: State) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in parts_of(y))
