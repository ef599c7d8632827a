"""The backward solve: (z, a, Q_u) from the last output time to the first, curvature on the way.

With a(t1) = Φ_z and Q_u(t1) = 0 it integrates

    dz/dt = F(t, z, θ),    -da/dt = F_zᵀ a,    -dQ_u/dt = F_θᵀ a

(docs/method.md, eq. 2), adding the loss's gradient at every output time on the way: O(1) memory in
the number of solver steps.

On the engine the state is (z, a) alone: nothing depends on Q_u while the solve runs, so it is an
integral along the path,

    Q_u(t0) = ∫ F_θᵀ a dt  ≈  Σ over accepted steps of dt Σ_i b_i F_θᵀ a at stage i,

the sum that a Runge-Kutta method makes of it as a state. Stages with b_i = 0 cost no parameter
product. The others take it in the one backward pass through F that -F_zᵀ a needs; to wait for
acceptance would repeat that pass, which costs more than the products of a few rejected steps
(``results/benchmarks/deferral.json``). Output times are jumps of a within one solve: the first
stage is taken anew, the step size stays.

Steps that z and a allow may be too long for Q_u: a field can depend on the time where neither shows
it. Its error counts too, by the same weights as that of the state, from products that are there
anyway (:class:`ControlledPathSum`), unless ``norm="seminorm"`` leaves it out.

What the engine does not take runs on torchdiffeq with Q_u in the state
(:func:`snopt.solve.torchdiffeq.backward_on_torchdiffeq`).
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from snopt.curvature.recording import Recording, all_or_nothing, inside_solve, node_collectors
from snopt.errors import NON_FINITE, failure
from snopt.linalg import at_least_float32
from snopt.solve.field import adjoint_norm, leaves_no_trace, products, rms_norm, thinned
from snopt.solve.inputs import check_same
from snopt.solve.observers import observer_on_torchdiffeq, observers_on_engine
from snopt.solve.runge_kutta import Negated, Part, Stepper, takes
from snopt.solve.solver import NFE, Problem, Solver, smallest
from snopt.solve.tableau import TABLEAUX, Tableau
from snopt.solve.torchdiffeq import backward_on_torchdiffeq

if TYPE_CHECKING:
    from snopt.curvature.collector import Collector


def integrate_backward(
    problem: Problem,
    t: Tensor,
    solution: Sequence[Tensor],
    grad_solution: Sequence[Tensor],
    params: Sequence[Tensor],
    collectors: Sequence[Collector],
    *,
    t_requires_grad: bool = False,
) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
    """Integrate (z, a, Q_u) from ``t[-1]`` back to ``t[0]`` and collect curvature on the way.

    Args:
        problem: the solve.
        t: output times, (T,).
        solution: components of the forward solution, each (T, …).
        grad_solution: gradient of the loss with respect to them.
        params: parameters whose gradient is accumulated (Q_u).
        collectors: who wants curvature.
        t_requires_grad: whether to compute gradients with respect to ``t``.

    Returns:
        a(t[0]) by component; the gradient with respect to ``t``, or None; Q_u(t[0]) by parameter.

    Raises:
        SolverError: if the solve fails.
        ValueError: if a collector wants what the engine alone has and it does not take the solve.
    """
    # A norm of the user's own may read the parameter adjoints: they must be in the state.
    own_norm = callable(problem.backward.options.get("norm"))
    if own_norm or not takes(problem.backward, problem.field):
        observer = observer_on_torchdiffeq(problem, collectors)
        return backward_on_torchdiffeq(
            problem, t, solution, grad_solution, params, observer, t_requires_grad=t_requires_grad
        )
    # Marked once for the whole solve; its nodes and recorded stages open a mark of their own.
    with inside_solve():
        return _BackwardSolve(problem, t, solution, params, collectors).run(
            grad_solution, t_requires_grad=t_requires_grad
        )


_UNMARKED: AbstractContextManager[None] = nullcontext()


class _BackwardSolve:
    """One backward solve on the engine."""

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
        self.n, first = len(solution), solution[0]
        self.layout = problem.field.layout.twice()
        tableau = TABLEAUX[problem.backward.method]
        self.observers = observers_on_engine(problem, collectors, tableau)
        controls = tableau.adaptive and problem.backward.options.get("norm") is None
        # Under autocast products have the rounding of half precision, which no step makes smaller.
        exact = not torch.is_autocast_enabled(first.device.type)
        self.controls = bool(controls and exact and self.params)
        self.Q_u = (
            ControlledPathSum(
                [t.new_zeros((), dtype=first.dtype, device=first.device), *self.params],
                tableau,
                problem.backward,
            )
            if self.controls
            else PathSum(self.params, tableau)
        )
        self.products_at = [tableau.needs_product(i) for i in range(tableau.stages)]
        # A last stage at the step's end; None if the method has none.
        self.end_stage = tableau.stages - 1 if tableau.ends_on_a_stage else None
        self.end = self.times[0]
        # The first evaluation is where the forward solve ended.
        self.expected = problem.field.end

    def run(
        self, grad_solution: Sequence[Tensor], *, t_requires_grad: bool
    ) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
        """Return a(t[0]) by part, the gradient to ``t`` or None, and Q_u(t[0])."""
        times, first = self.times, self.solution[0]
        # Not kept in self, which it refers to: a cycle would keep the tensors of the solve alive.
        stepper = Stepper(
            self.problem, "backward", self._derivative, self.layout, self._norm(), first
        )
        stepper.further_error = self.Q_u.error
        grad_t = torch.zeros_like(self.t) if t_requires_grad else None
        a = [torch.zeros_like(g[0]) for g in grad_solution]
        for i in range(len(times) - 1, 0, -1):
            z = [part[i] for part in self.solution]
            if grad_t is not None:
                grad_t[i] = self._time_product(times[i], z, [g[i] for g in grad_solution])
            a = [adj + g[i] for adj, g in zip(a, grad_solution, strict=True)]
            y = self.layout.flatten([*z, *a])
            self.end = times[i - 1]
            for observer in self.observers:
                observer.begin(times[i], self.end)
            for step in stepper.steps(y, times[i], self.end):
                if self.expected is not None:
                    self._check_same(self.expected, step.stages[0])
                # The solve runs from the end of the path to its start.
                self.Q_u.accept(step.t0 - step.t1)
                for observer in self.observers:
                    observer.on_step(step, is_last=step.t1 == self.end)
                y = step.y1
            stepper.check_finite(y, self.end)
            a = self.layout.split(y)[self.n :]
        if grad_t is not None:
            # Moving the start moves the whole solution along F: dΦ/dt0 = -a(t0)ᵀ F(t0, z(t0)).
            grad_t[0] = -self._time_product(times[0], [part[0] for part in self.solution], a)
        if self.problem.memory is not None:
            self.problem.memory.keep("backward", stepper.dt)
        a = [adj + g[0] for adj, g in zip(a, grad_solution, strict=True)]
        return a, grad_t, self.Q_u.result()[int(self.controls) :]

    def _derivative(
        self, stage: int, t: float, y: Tensor
    ) -> tuple[Sequence[Part], Recording | None]:
        """Return (F, -F_zᵀ a) by parts and the uses of layers; hand the parameter products on."""
        self.problem.nfe.backward += 1
        # The last stage of all has weight 0, and there is no next step to hand it on to.
        last = stage == self.end_stage and t == self.end
        counts = stage >= 0 and self.products_at[stage] and not last
        wanted = self.params if counts or (last and self.Q_u.needs_last) else []
        recording = self._recording(stage, counts=counts) if self.observers else None
        parts, n = self.layout.split(y), self.n
        # Inside the marks to the end: the backward pass through a field that solves an ODE itself
        # is the solver's evaluation too.
        with torch.enable_grad(), _UNMARKED if recording is None else inside_solve(recording):
            z = [part.detach().requires_grad_() for part in parts[:n]]
            time = self.problem.field.time(t)
            if wanted and self.controls:
                wanted = [time.requires_grad_(), *wanted]
            outputs = self.problem.field.at(time, z)
            inputs: list[Any] = [*z, *wanted, *(recording.edges if recording else ())]
            found = products(outputs, inputs, parts[n:])
        if wanted:
            self.Q_u.add(stage, found[n : n + len(wanted)])
        if recording is not None:
            recording.gradients = found[n + len(wanted) :]
        adjoint = [
            torch.zeros_like(part) if p is None else Negated(p)
            for part, p in zip(parts, found[:n], strict=False)
        ]
        return [*outputs, *adjoint], recording

    def _check_same(self, expected: Tensor, derivative: Tensor) -> None:
        """Raise RuntimeError if the first stage of all, F(t1, z1), is not the forward solve's."""
        field, self.expected = self.problem.field, None
        z, t = [part[-1] for part in self.solution], self.times[-1]
        n = sum(field.layout.sizes)
        check_same(
            field,
            thinned(derivative[:n]),
            expected,
            lambda: expected.abs().max() + field.layout.flatten(z).abs().max(),
            lambda: thinned(field.layout.flatten(field.at(t, z))),
        )

    def _recording(self, stage: int, *, counts: bool) -> Recording | None:
        """Return where to record a stage; None if no observer wants it."""
        watching = [c for o in self.observers for c in o.records(stage, counts=counts)]
        return Recording(watching) if watching else None

    def _time_product(self, t: float, z: Sequence[Tensor], a: Sequence[Tensor]) -> Tensor:
        """Return aᵀ F(t, z), a scalar."""
        self.problem.nfe.backward += 1
        outputs = self.problem.field.at(t, z)
        return torch.stack([(o * adj).sum() for o, adj in zip(outputs, a, strict=True)]).sum()

    def _norm(self) -> Callable[[Tensor], Tensor]:
        user_norm = self.problem.forward.options.get("norm")
        if user_norm is None:
            return rms_norm(self.layout)
        norm = adjoint_norm(self.problem.field, user_norm, seminorm=True)

        def of_flat(e: Tensor) -> Tensor:
            return torch.as_tensor(norm((e.new_zeros(()), *self.layout.split(e))))

        return of_flat


def collect_without_gradient(
    problem: Problem, t: Tensor, solution: Sequence[Tensor], grad_solution: Sequence[Tensor]
) -> None:
    """Integrate (z, a) backward for the curvature alone, where the gradient comes by another way.

    A failure here must not end a training step whose gradient is sound: it warns, and the
    optimizer keeps the factors that it has.
    """
    collectors = node_collectors(problem.field.func, nested=problem.nested)
    if not collectors:
        return
    nfe = NFE()
    try:
        with (
            torch.no_grad(),
            all_or_nothing(collectors),
            leaves_no_trace(problem.field.func, t.device),
        ):
            apart = replace(problem, nfe=nfe, memory=None)
            a, _, _ = integrate_backward(apart, t, solution, grad_solution, (), collectors)
            if not all(bool(torch.isfinite(part).all()) for part in a):  # found on a grid
                raise failure(problem.backward, "curvature", *NON_FINITE)
    except RuntimeError as error:
        warnings.warn(f"no curvature from this step: {error}", RuntimeWarning, stacklevel=2)
    problem.nfe.add("curvature", nfe.backward + nfe.curvature)


Products: TypeAlias = Sequence[Tensor | None]

Sums: TypeAlias = list[Tensor | None] | None


class PathSum:
    """Sums the products F_θᵀ a of a Runge-Kutta method's stages, in little memory.

    Products arrive stage by stage, before it is known whether the step will be accepted. They are
    added to a pending sum at once. Apart from it, only the product of the stage that one step hands
    on to the next is kept: all of them would take seven times the parameters with dopri5.
    """

    needs_last = False  # whether the solve's last stage needs a product, whose weight is 0
    error: Callable[[float, float], Tensor] | None = None

    def __init__(self, params: Sequence[Tensor], tableau: Tableau) -> None:
        """Start at zero for the parameters θ."""
        self._params = params
        # Many small terms vanish beside a sum in half precision.
        self._low = any(p.dtype in (torch.float16, torch.bfloat16) for p in params)
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
        if self._low:
            products = [None if p is None else at_least_float32(p) for p in products]
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
            torch.zeros_like(p) if t is None else t.to(p.dtype)
            for p, t in zip(self._params, total, strict=True)
        ]


# Entries of θ up to which all their products are kept, and how many are looked at beyond.
_WHOLE, _SAMPLE = 20_000, 4096


class ControlledPathSum(PathSum):
    """A path sum that knows its error, as torchdiffeq's norm of parameter adjoints has it.

    The products of a step's stages lie one below the other, in (stages, entries). The method's
    weights of result and error make of them the step's part of Q_u and its error. A large θ is
    looked at in a sample of its entries, and summed as by :class:`PathSum`.
    """

    def __init__(self, params: Sequence[Tensor], tableau: Tableau, solver: Solver) -> None:
        """Start at zero for the parameters θ; the ``solver`` has the tolerances."""
        super().__init__(params, tableau)
        # Dopri5 takes two stages at the step's end. They differ by the error of z and a alone:
        # where the solve ends, the last but one stands for the last.
        self.needs_last = tableau.c[-2] != 1
        sizes = [p.numel() for p in params]
        self._whole = sum(sizes) <= _WHOLE
        share = max(1, _SAMPLE // len(params))
        self._every = [1 if self._whole else _stride(p, share) for p in params]
        self._counts = [-(-n // k) for n, k in zip(sizes, self._every, strict=True)]
        dtypes = [at_least_float32(p).dtype for p in params]
        like = params[0].new_empty((), dtype=functools.reduce(torch.promote_types, dtypes))
        self._K = like.new_zeros(tableau.stages, sum(self._counts))
        columns = [
            c.view(tableau.stages, *p.shape) if k == 1 else c
            for c, p, k in zip(
                self._K.split_with_sizes(self._counts, dim=1), params, self._every, strict=True
            )
        ]
        self._places = list(zip(*[c.unbind() for c in columns], strict=True))
        self._weights, self._lengths, self._shares = _constants(
            tableau.name, tuple(self._counts), like.dtype, like.device
        )
        self._Q = self._next = self._K.new_zeros(sum(self._counts))
        self._size = self._next_size = self._Q.abs()
        self._rtol, atol = smallest(solver.rtol), smallest(solver.atol)
        # Above 0: an entry without gradient has no error.
        self._atol = max(atol, torch.finfo(like.dtype).tiny)

    def add(self, stage: int, products: Products) -> None:
        """Take the products at a stage, None for parameters that the field does not use."""
        places, given = [], []
        for place, p, every in zip(self._places[stage], products, self._every, strict=True):
            if p is None:
                place.zero_()
            else:
                places.append(place)
                given.append(_every(p, every))
        if given:
            torch._foreach_copy_(places, given)
        if not self._whole:
            super().add(stage, products)
        if not self.needs_last and stage == len(self._places) - 2:
            self._K[-1].copy_(self._K[-2])

    def error(self, t0: float, t1: float) -> Tensor:
        """Return the error of the step from ``t0`` to ``t1``: the largest root mean square of θ's.

        It is in units of the tolerance, of the larger of Q_u before and after the step.
        """
        dt = t0 - t1
        part, error = torch.mm(self._weights, self._K).unbind()
        self._next = torch.add(self._Q, part, alpha=dt)
        self._next_size = self._next.abs()
        allowed = torch.maximum(self._size, self._next_size).mul_(self._rtol).add_(self._atol)
        squares = error.div_(allowed).abs().square_()
        sums = torch.segment_reduce(squares, "sum", lengths=self._lengths, unsafe=True)
        return sums.mul_(self._shares).max().sqrt_().mul_(abs(dt))

    def accept(self, dt: float) -> None:
        """Add the step, of length ``dt``, whose error was asked for last."""
        self._Q, self._size = self._next, self._next_size
        self._K[0].copy_(self._K[-1])
        if not self._whole:
            super().accept(dt)

    def result(self) -> list[Tensor]:
        """Return Q_u by parameter, zero where there was no product."""
        if not self._whole:
            return super().result()
        parts = self._Q.split_with_sizes(self._counts)
        return [
            (q if p.is_complex() else q.real).view(p.shape).to(p.dtype)
            for p, q in zip(self._params, parts, strict=True)
        ]


@functools.lru_cache(maxsize=64)
def _constants(
    method: str, counts: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a method's weights of result and error; the counts, and one over each of them."""
    weights = torch.tensor((TABLEAUX[method].b, TABLEAUX[method].error), dtype=dtype, device=device)
    lengths = torch.tensor(counts, device=device)
    return weights, lengths, lengths.clamp(min=1).to(dtype.to_real()).reciprocal()


def _stride(p: Tensor, share: int) -> int:
    """Return the distance of some ``share`` entries of a tensor that meet its rows and columns."""
    every = max(1, math.ceil(p.numel() / share))
    while any(math.gcd(every, n) > 1 for n in p.shape):
        every += 1
    return every


def _every(p: Tensor, k: int) -> Tensor:
    """Return every ``k``-th entry in the order of memory, as a vector; all as they are for 1."""
    if p.is_sparse:
        p = p.to_dense()
    if k == 1:
        return p
    if not p.is_contiguous():
        p = p.permute(sorted(range(p.dim()), key=p.stride, reverse=True))
    return p.reshape(-1)[::k]


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
