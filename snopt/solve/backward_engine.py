"""The parameter gradient of a backward solve: a sum over accepted steps, kept in little memory.

    Q_u(t0) = ∫ F_θᵀ a dt  ≈  Σ over accepted steps of dt Σ_i b_i F_θᵀ a at stage i

Products arrive stage by stage, before it is known whether the step will be accepted. They are added
to a pending sum at once: apart from it, only the product of the stage that one step hands on to the
next is kept, where keeping all of them would take seven times the parameters with dopri5.

The backward solve on the engine: (z, a) alone, everything else an integral along its path.

Nothing depends on the parameter gradient Q_u of docs/method.md, eq. 2, while the solve runs, so it
is not part of the state:

    Q_u(t0) = ∫ F_θᵀ a dt  ≈  Σ over accepted steps of dt Σ_i b_i F_θᵀ a at stage i,

the same sum that a Runge-Kutta method makes of it as a state. Stages with b_i = 0 cost no parameter
product. The product of a stage comes out of the one backward pass through F that -F_zᵀ a needs
anyway; taking it after acceptance would repeat that pass for five stages out of six, which costs
more than the products of a few rejected steps that are taken in vain (measured by
``scripts/benchmark.py deferral``). Error control sees z and a: the semantics of
``norm="seminorm"``, exactly.

Output times are jumps of a within one solve: the first stage is taken anew and the step size stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snopt.curvature.collector import Collector, Recording, inside_solve
from snopt.curvature.nodes import Plan, collect_node, leaves_no_trace, plan_nodes
from snopt.curvature.quadrature import Evaluations, StepEnds
from snopt.solve.engine import make_stepper, steps_between
from snopt.solve.field import Layout, evaluate_field
from snopt.solve.norms import adjoint_norm, rms_norm
from snopt.solve.problem import Problem
from snopt.solve.runge_kutta import Step, is_finite
from snopt.solve.stages import Negated, Part
from snopt.solve.tableau import TABLEAUX, Tableau

Products: TypeAlias = Sequence[Tensor | None]

Sums: TypeAlias = list[Tensor | None] | None


class PathSum:
    """Sums the products F_θᵀ a of a Runge-Kutta method's stages.

    Args:
        params: parameters θ.
        tableau: the method.
    """

    def __init__(self, params: Sequence[Tensor], tableau: Tableau) -> None:
        """Start at zero."""
        self._params = params
        self._tableau = tableau
        self._total: Sums = None
        self._pending: Sums = None
        self._first: Products | None = None
        self._handed_on: Products | None = None
        self._latest = 0

    def add(self, stage: int, products: Products) -> None:
        """Take the products at a stage, None for parameters that the field does not use.

        Stages arrive in order; one that does not continue the order begins the step anew, the
        attempt before having been rejected. Stage 0 is taken once for all attempts.
        """
        b = self._tableau.b
        if stage == 0:
            self._first, self._pending, self._latest = products, None, 0
            return
        if stage <= self._latest or self._pending is None:
            self._pending = _added(None, self._first, b[0])
        self._latest = stage
        self._pending = _added(self._pending, products, b[stage])
        if self._tableau.adaptive and stage == self._tableau.stages - 1:
            self._handed_on = products

    def accept(self, dt: float) -> None:
        """Add the step, of length ``dt``, whose stages were taken last."""
        if self._pending is None:
            self._pending = _added(None, self._first, self._tableau.b[0])
        self._total = _added(self._total, self._pending, dt)
        self._pending, self._latest = None, 0
        self._first, self._handed_on = self._handed_on, None

    def result(self) -> list[Tensor]:
        """Return Q_u by parameter, zero where there was no product."""
        total = self._total or [None] * len(self._params)
        return [
            torch.zeros_like(p) if t is None else t
            for p, t in zip(self._params, total, strict=True)
        ]


def _added(sums: Sums, products: Products | None, weight: float) -> Sums:
    """Return ``sums + weight × products``, written into the sums where there are some."""
    if products is None or weight == 0:
        return sums
    given = [p for p in products if p is not None]
    if sums is None:
        if len(given) == len(products):
            return list(torch._foreach_mul(given, weight))
        return [None if p is None else p * weight for p in products]
    held = [s for s in sums if s is not None]
    if len(held) == len(given) == len(products):
        torch._foreach_add_(held, given, alpha=weight)
        return sums
    for i, product in enumerate(products):
        total = sums[i]
        if product is not None:
            sums[i] = product * weight if total is None else total.add_(product, alpha=weight)
    return sums


_UNMARKED: AbstractContextManager[None] = nullcontext()


def integrate_on_engine(
    problem: Problem,
    t: Tensor,
    solution: Sequence[Tensor],
    grad_solution: Sequence[Tensor],
    params: Sequence[Tensor],
    collectors: Sequence[Collector],
    *,
    t_requires_grad: bool = False,
) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
    """Integrate from ``t[-1]`` back to ``t[0]``; arguments and results as ``integrate_backward``.

    Raises:
        SolverError: if the solve fails.
    """
    # Marked once for the whole solve; its nodes and recorded stages open a mark of their own.
    with inside_solve():
        return _BackwardSolve(problem, t, solution, params, collectors).run(
            grad_solution, t_requires_grad=t_requires_grad
        )


class _BackwardSolve:
    """One backward solve; its methods share the field, the layout and the sums."""

    def __init__(
        self,
        problem: Problem,
        t: Tensor,
        solution: Sequence[Tensor],
        params: Sequence[Tensor],
        collectors: Sequence[Collector],
    ) -> None:
        self.problem = problem
        self.times: list[float] = t.detach().tolist()
        self.t = t
        self.solution = solution
        self.params = list(params)
        self.n = len(solution)
        self.state = Layout(tuple(part.shape[1:] for part in solution))
        self.layout = self.state.twice()
        self.tableau = TABLEAUX[problem.backward.method]
        self.Q_u = PathSum(self.params, self.tableau)
        self.at_stages = [c for c in collectors if c.discrete]
        self.at_ends = [c for c in collectors if isinstance(c.quadrature, StepEnds)]
        other_rules = (StepEnds, Evaluations)
        self.at_nodes = [c for c in collectors if not isinstance(c.quadrature, other_rules)]
        self.calls = 0
        self.end = self.times[0]
        stages = range(self.tableau.stages)
        self.products_at = [self.tableau.needs_product(i) for i in stages]
        self.ends_at = [bool(self.at_ends) and self._is_at_an_end(i) for i in stages]
        # A last stage at the step's end; None if the method has none.
        self.end_stage = self.tableau.stages - 1 if self.tableau.ends_on_a_stage else None

    def run(
        self, grad_solution: Sequence[Tensor], *, t_requires_grad: bool
    ) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
        """Return a(t[0]) by part, the gradient to ``t`` or None, and Q_u(t[0])."""
        problem, times = self.problem, self.times
        grad_t = torch.zeros_like(self.t) if t_requires_grad else None
        a = [torch.zeros_like(g[0]) for g in grad_solution]
        stepper = make_stepper(
            self._field,
            problem.backward,
            self.layout,
            self._norm(),
            self.solution[0],
            kind="backward",
            evaluations=lambda: self.calls,
            first_step=None if problem.memory is None else problem.memory.recall("backward"),
        )
        for i in range(len(times) - 1, 0, -1):
            z = [part[i] for part in self.solution]
            if grad_t is not None:
                grad_t[i] = self._time_product(times[i], z, [g[i] for g in grad_solution])
            a = [adj + g[i] for adj, g in zip(a, grad_solution, strict=True)]
            y = self.layout.flatten([*z, *a])
            self.end = times[i - 1]
            plan = plan_nodes(self.at_nodes, times[i], times[i - 1]) if self.at_nodes else []
            owed = 0.0
            for step in steps_between(
                stepper, self.tableau, problem.backward, y, times[i], times[i - 1]
            ):
                # The solve runs from the end of the path to its start.
                self.Q_u.accept(step.t0 - step.t1)
                waiting, is_last = len(plan), step.t1 == times[i - 1]
                plan = self._collect(step, plan, is_last=is_last)
                if self.at_ends:
                    owed = self._collect_ends(step, owed, is_last=is_last)
                if self.at_stages:
                    self._collect_stages(step)
                if waiting > len(plan) and is_last and not self.tableau.adaptive:
                    # The derivative at the interval's end served the interpolation alone.
                    problem.nfe.add("curvature")
                    problem.nfe.add("backward", -1)
                y = step.y1
            if not is_finite(y):
                why = ("non-finite state", "Check the input, the step size and the learning rate.")
                raise stepper.failure(*why, times[i - 1], math.nan)
            a = self.layout.split(y)[self.n :]
        if grad_t is not None:
            # Moving the start moves the whole solution along F: dΦ/dt0 = -a(t0)ᵀ F(t0, z(t0)).
            grad_t[0] = -self._time_product(times[0], [part[0] for part in self.solution], a)
        if problem.memory is not None:
            problem.memory.keep("backward", stepper.dt)
        a = [adj + g[0] for adj, g in zip(a, grad_solution, strict=True)]
        return a, grad_t, self.Q_u.result()

    def _field(self, stage: int, t: float, y: Tensor) -> tuple[Sequence[Part], Recording | None]:
        """Return (F, -F_zᵀ a) by parts and the uses of layers; hand the parameter products on."""
        self.calls += 1
        self.problem.nfe.backward += 1
        # The last stage of all has weight 0, and there is no next step to hand it on to.
        last = stage == self.end_stage and t == self.end
        needed = stage >= 0 and self.products_at[stage] and not last
        wanted = self.params if needed else []
        recording = self._recording(stage, needed=needed)
        parts, n = self.layout.split(y), self.n
        # Inside the marks to the end: the backward pass through a field that solves an ODE itself
        # is the solver's evaluation too.
        with torch.enable_grad(), _UNMARKED if recording is None else inside_solve(recording):
            z = [part.detach().requires_grad_() for part in parts[:n]]
            outputs = evaluate_field(self.problem.func, self.problem.pack, self.state, t, z)
            inputs: list[Any] = [*z, *wanted, *(recording.edges if recording else ())]
            adjoints = parts[n:]
            if all(o.requires_grad for o in outputs):
                reached = outputs
            else:  # a constant part of the field has no graph
                live = [i for i, o in enumerate(outputs) if o.requires_grad]
                reached, adjoints = [outputs[i] for i in live], [adjoints[i] for i in live]
            products: Sequence[Tensor | None] = [None] * len(inputs)
            if reached:
                # retain_graph: a field may hold a graph made before the solve.
                products = torch.autograd.grad(
                    reached, inputs, adjoints, allow_unused=True, retain_graph=True
                )
        if wanted:
            self.Q_u.add(stage, products[n : n + len(wanted)])
        if recording is not None:
            recording.gradients = products[n + len(wanted) :]
        adjoint = [
            torch.zeros_like(part) if p is None else Negated(p)
            for part, p in zip(parts, products[:n], strict=False)
        ]
        return [*outputs, *adjoint], recording

    def _recording(self, stage: int, *, needed: bool) -> Recording | None:
        """Return where to record a stage; None if nobody wants it, as on all but refresh steps."""
        takers = [*(self.at_stages if needed else ())]
        if stage >= 0 and self.ends_at[stage]:
            takers += self.at_ends
        return Recording(takers) if takers else None

    def _collect(self, step: Step, plan: Plan, *, is_last: bool) -> Plan:
        """Give the collectors what lies in this step; return the nodes still to come."""
        ahead = 0
        sign = 1.0 if step.t1 > step.t0 else -1.0
        while ahead < len(plan) and sign * (plan[ahead][0] - step.t1) <= 0:
            node, takers = plan[ahead]
            # On a grid the last step's interpolant needs an evaluation that the solve does not.
            extra = is_last and not self.tableau.adaptive
            with leaves_no_trace(self.problem.func, step.y0.device) if extra else nullcontext():
                state = step.interpolate(node)
            self._collect_at(node, state, takers)
            ahead += 1
        return plan[ahead:]

    def _collect_stages(self, step: Step) -> None:
        """Give every stage that the gradient is made of, weighted as it is in :meth:`run`'s Q_u."""
        dt = step.t0 - step.t1
        for weight, recording in zip(self.tableau.b, step.kept, strict=True):
            if weight != 0:
                recording.give(dict.fromkeys(self.at_stages, 1.0), scale=dt * weight)

    def _is_at_an_end(self, stage: int) -> bool:
        """Whether the stage is F at an end of the step, exactly."""
        if stage == 0:
            return self.tableau.ends_on_a_stage or not self.tableau.adaptive
        return self.tableau.ends_on_a_stage and stage == self.tableau.stages - 1

    def _collect_ends(self, step: Step, pending: float, *, is_last: bool) -> float:
        """Add a step's ends by the trapezoid rule; return the weight that its end still owes."""
        half = abs(step.t1 - step.t0) / 2
        if self._is_at_an_end(0):
            step.kept[0].give(dict.fromkeys(self.at_ends, pending + half))
        else:
            self._collect_at(step.t0, step.y0, [(c, pending + half) for c in self.at_ends])
        if not is_last:
            return half
        if self.tableau.ends_on_a_stage:
            step.kept[-1].give(dict.fromkeys(self.at_ends, half))
        else:
            self._collect_at(step.t1, step.y1, [(c, half) for c in self.at_ends])
        return 0.0

    def _collect_at(self, t: float, y: Tensor, takers: Sequence[tuple[Collector, float]]) -> None:
        self.problem.nfe.add("curvature")
        parts, n = self.layout.split(y), len(self.state.sizes)
        collect_node(
            self.problem.func,
            torch.full((), t, dtype=y.dtype, device=y.device),
            tuple(parts[:n]),
            tuple(parts[n:]),
            takers,
            is_tuple=self.problem.is_tuple,
        )

    def _time_product(self, t: float, z: Sequence[Tensor], a: Sequence[Tensor]) -> Tensor:
        """Return aᵀ F(t, z), a scalar."""
        self.problem.nfe.add("backward")
        outputs = evaluate_field(self.problem.func, self.problem.pack, self.state, t, z)
        return torch.stack([(o * adj).sum() for o, adj in zip(outputs, a, strict=True)]).sum()

    def _norm(self) -> Callable[[Tensor], Tensor]:
        user_norm = self.problem.forward.options.get("norm")
        if user_norm is None:
            return rms_norm(self.layout)
        norm = adjoint_norm(self.problem.pack, self.n, user_norm, seminorm=True)

        def of_flat(e: Tensor) -> Tensor:
            return torch.as_tensor(norm((e.new_zeros(()), *self.layout.split(e))))

        return of_flat
