"""Backpropagation one step at a time: the exact discrete gradient without the solver's graph.

The forward solve stores time, step, state and first stage of each accepted step; the backward pass
recomputes one step after the other with a graph and pulls the gradient through it. Memory grows
with the number of steps by twice the state, not by the graph of a step (Chen et al. 2016; for ODEs,
ACA of Zhuang et al. 2020). The result is that of backpropagation through all steps, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snopt.curvature.recording import (
    Recording,
    armed_collectors,
    counted_solve,
    inside_a_solve,
    inside_solve,
)
from snopt.linalg import at_least_float32
from snopt.solve.backward import collect_without_gradient
from snopt.solve.field import (
    Field,
    State,
    autocast_state,
    check_times,
    differentiable_once,
    parts_of,
    products,
    thinned,
)
from snopt.solve.forward import forward_steps
from snopt.solve.inputs import (
    RandomStates,
    check_same,
    inputs_of,
    with_weights,
)
from snopt.solve.runge_kutta import Step, stages_like, takes
from snopt.solve.solver import NFE, Problem, Solver
from snopt.solve.tableau import TABLEAUX

if TYPE_CHECKING:
    from snopt.curvature.collector import Collector


def odeint_checkpoint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    nfe: NFE | None = None,
) -> Any:
    """Integrate ``dy/dt = func(t, y)``; gradients by recomputing one accepted step at a time.

    Use it where the gradient must be that of the discretised solve and the graph of all steps does
    not fit into memory. One backward pass costs a forward pass over the accepted steps more than
    :func:`snopt.odeint`.

    Arguments and result are those of :func:`snopt.odeint_adjoint`, but ``t`` may not require a
    gradient, and ``method`` must be one of the engine: dopri5 (None), bosh3, fehlberg2,
    adaptive_heun, euler, midpoint or rk4.

    Raises:
        SolverError: if the solve fails.
        ValueError: if the engine does not take the solve, ``t`` requires a gradient, or the
            arguments are wrong (see :func:`snopt.odeint_adjoint`).
    """
    solver = Solver(method, rtol, atol, options)
    counter = NFE() if nfe is None else nfe
    problem = Problem(Field(func, y0), solver, solver.adjoint(), counter, None, inside_a_solve())
    return solve_with_checkpoints(problem, y0, t, adjoint_params)


def solve_with_checkpoints(
    problem: Problem, y0: State, t: Tensor, adjoint_params: Iterable[Tensor] | None = None
) -> State:
    """Return the solution of ``problem``, differentiable step by step."""
    check_times(t)
    if t.numel() < 2:
        raise ValueError("checkpoints need at least two times")
    if not takes(problem.forward, problem.field):
        raise ValueError(needs_engine(problem.forward))
    if t.requires_grad:
        raise ValueError(
            "checkpoints give no gradient to t: use the adjoint or the direct gradient"
        )
    parts = parts_of(y0)
    random = RandomStates(parts[0].device)
    with counted_solve(problem.field.func, problem.field.layout.shapes) as passes_through:
        params = inputs_of(problem, t, parts, adjoint_params, on_engine=True)
        solution = _Checkpoint.apply(problem, random, len(parts), t, *parts, *params)
        passes_through(solution)
    return problem.field.pack(solution)


def needs_engine(solver: Solver) -> str:
    """Return the error of a solve by checkpoints that the engine does not take."""
    return (
        "gradient by checkpoints needs the project's own engine: one of the methods"
        f" {', '.join(TABLEAUX)} with options of step-size control only, float32 or float64"
        f' states, no callbacks, engine="auto"; got method={solver.method!r}, options='
        f"{dict(solver.options)}"
    )


@dataclass(frozen=True)
class _Record:
    """What is kept of an accepted step; ``k0`` is None on a grid, where it is taken anew.

    ``random`` has the states of the random generators before the evaluation of each stage.
    """

    t0: float
    t1: float
    y0: Tensor
    k0: Tensor | None
    outputs: list[int]
    random: list[Any]


class _Checkpoint(torch.autograd.Function):
    """Forward: one solve without graph. Backward: one step's graph at a time."""

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, random: RandomStates, n_state: int, t: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Solve and keep a record of each accepted step."""
        parts, params = tensors[:n_state], tensors[n_state:]
        layout, times = problem.field.layout, t.detach().tolist()
        records, rows = [], [layout.flatten(parts)]
        with torch.no_grad(), inside_solve():
            for step, inside in forward_steps(problem, parts, times, keep=random):
                stages = step.stages
                k0 = stages[0].clone() if stages.tableau.adaptive else None
                records.append(_Record(step.t0, step.t1, step.y0, k0, inside, list(stages.kept)))
                rows.extend(step.interpolate(times[i], cubic=_cubic(problem)) for i in inside)
        solution = tuple(layout.split(torch.stack(rows)))
        ctx.autocast = autocast_state(parts[0].device.type)
        ctx.problem, ctx.records, ctx.times = problem, records, times
        ctx.random = random if random.drew() else None
        ctx.save_for_backward(t, *solution, *params)
        return solution

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grad_solution: Tensor) -> tuple[Tensor | None, ...]:
        """Pull the gradient through the steps, last one first; collect curvature if wanted."""
        n = len(grad_solution)
        t, *saved = ctx.saved_tensors
        solution, params = saved[:n], saved[n:]
        func = ctx.problem.field.func
        rows = torch.cat([g.reshape(len(g), g[0].numel()) for g in grad_solution], dim=1)

        def run() -> tuple[Tensor, _Replay]:
            collect_without_gradient(ctx.problem, t, solution, grad_solution)
            found = armed_collectors(func, nested=ctx.problem.nested)
            discrete = [c for c in found if c.discrete]
            replay = _Replay(ctx.problem, ctx.times, params, discrete, ctx.random)
            end: Tensor | None = torch.cat([part[-1].reshape(-1) for part in solution])
            y_bar, k_bar = torch.zeros_like(rows[0]), None
            with ctx.autocast(), ctx.random.kept() if ctx.random else nullcontext():
                for record in reversed(ctx.records):
                    y_bar, k_bar = replay.pull(record, y_bar, k_bar, rows, end)
                    end = None
                if k_bar is not None:
                    y_bar = replay.pull_first_stage(ctx.records[0], y_bar, k_bar)
            return y_bar + rows[0], replay

        y_bar, replay = with_weights(ctx.problem.field, run)
        grads = [total.to(p.dtype) for total, p in zip(replay.sums, params, strict=True)]
        return (None, None, None, None, *replay.layout.split(y_bar), *grads)


class _Replay:
    """Recomputes steps with a graph and accumulates the parameters' gradients."""

    def __init__(
        self,
        problem: Problem,
        times: list[float],
        params: Sequence[Tensor],
        collectors: Sequence[Collector],
        random: RandomStates | None,
    ) -> None:
        self.problem, self.layout, self.times = problem, problem.field.layout, times
        self.params = list(params)
        self.sums = [torch.zeros_like(at_least_float32(p)) for p in params]
        self.collectors = collectors  # who takes every evaluation for a use
        self.uses = Recording(collectors)
        self.random = random  # None if the field draws nothing
        self.states: list[Any] = []  # of its generators, by stage of the present step
        self.next_state: Any = None  # before the first stage of the step that follows it

    def pull(
        self,
        record: _Record,
        y_bar: Tensor,
        k_bar: Tensor | None,
        rows: Tensor,
        end: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradients to a step's state and first stage from those to its results.

        The last step's result is ``end`` if the field is that of the forward solve.
        """
        self.states = record.random
        with torch.enable_grad():
            y0 = record.y0.detach().requires_grad_(True)
            tableau = TABLEAUX[self.problem.forward.method]
            stages = stages_like(y0, tableau, differentiable=True)
            inputs = [y0]
            if record.k0 is None:
                stages[0], _ = self._derivative(0, record.t0, y0)
            else:
                k0 = record.k0.detach().requires_grad_(True)
                stages[0] = [k0]
                inputs.append(k0)
            y1 = stages.advance(self._derivative, y0, record.t0, record.t1)
            if end is not None and end.numel() > 0:
                self._check_same(record, y1, end)

            def end_derivative() -> Tensor:
                if tableau.adaptive:
                    return stages[-1]
                self.states = [self.next_state]
                return self._flat(record.t1, y1)

            step = Step(record.t0, record.t1, y0, y1, stages, end_derivative)
            results = [(y1, y_bar)]
            if k_bar is not None:
                results.append((stages[-1], k_bar))
            for i in record.outputs:
                value = step.interpolate(self.times[i], cubic=_cubic(self.problem))
                results.append((value, rows[i]))
        self.next_state = record.random[0]
        grads = self._grad(results, inputs)
        return grads[0], grads[1] if record.k0 is not None else None

    def pull_first_stage(self, record: _Record, y_bar: Tensor, k_bar: Tensor) -> Tensor:
        """Return the gradient to the initial state, its first stage F(t0, y0) included."""
        self.states = record.random
        with torch.enable_grad():
            y0 = record.y0.detach().requires_grad_(True)
            k0 = self._flat(record.t0, y0)
        return y_bar + self._grad([(k0, k_bar)], [y0])[0]

    def _check_same(self, record: _Record, y1: Tensor, end: Tensor) -> None:
        """Raise RuntimeError if the step's mean slope is not the forward solve's."""
        y0, dt = record.y0, record.t1 - record.t0

        def slope(y1: Tensor) -> Tensor:
            return thinned((y1 - y0) / dt)

        def again() -> Tensor:
            stages = stages_like(y0, TABLEAUX[self.problem.forward.method], differentiable=False)
            k0 = record.k0
            stages[0] = self._derivative(0, record.t0, y0)[0] if k0 is None else [k0]
            return slope(stages.advance(self._derivative, y0, record.t0, record.t1))

        found, expected = slope(y1), slope(end)
        rounding = max(1.0, 1e-3 / abs(dt))
        check_same(
            self.problem.field,
            found,
            expected,
            lambda: expected.abs().max() + rounding * y0.abs().max(),
            again,
        )

    def _grad(self, results: list[tuple[Tensor, Tensor]], inputs: list[Tensor]) -> list[Tensor]:
        uses, self.uses = self.uses, Recording(self.collectors)
        wanted: list[Any] = [*inputs, *self.params]
        values, bars = zip(*results, strict=True)
        found = products(values, [*wanted, *uses.edges], bars)
        for total, g in zip(self.sums, found[len(inputs) : len(wanted)], strict=True):
            if g is not None:
                total.add_(g)
        uses.gradients = found[len(wanted) :]
        uses.give(dict.fromkeys(self.collectors, 1.0))
        return [
            torch.zeros_like(x) if g is None else g
            for x, g in zip(inputs, found[: len(inputs)], strict=True)
        ]

    def _derivative(self, stage: int, t: float, y: Tensor) -> tuple[Sequence[Tensor], None]:
        self.problem.nfe.backward += 1
        if self.random is not None:
            self.random.set(self.states[stage])
        with inside_solve(self.uses if self.collectors else None):
            return self.problem.field.at(t, self.layout.split(y)), None

    def _flat(self, t: float, y: Tensor) -> Tensor:
        parts, _ = self._derivative(0, t, y)
        return self.layout.flatten(parts)


def _cubic(problem: Problem) -> bool:
    return problem.forward.options.get("interp") == "cubic"
