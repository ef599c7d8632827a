"""``deferral.json``: parameter products with every stage, or after a step has been accepted.

The backward solve takes the product F_θᵀ a of a weighted stage in the same backward pass through F
that gives F_zᵀ a, before it is known whether the step will be accepted
(:mod:`snopt.solve.backward_engine`). The other way keeps the graph of each stage and takes the
products of a step once it has been accepted: a rejected step then costs none, but every accepted
one goes through F a second time. Which one is cheaper depends on how many attempts are rejected;
workloads whose field is switched on and off in time show where that turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from snopt.solve.backward_engine import PathSum, Products
from snopt.solve.stages import Negated, Part
from torch import Tensor, nn

from experiments.base.device import synchroniser
from experiments.measure.counting import count, gradient, run_once
from experiments.measure.interleave import interleaved
from experiments.measure.scoring import pair_ratio, spread
from experiments.measure.workloads import ADJOINT, ENGINE, Case, SoftplusField, Workload, field_case
from experiments.models.fields import MLPField
from experiments.models.solver import SolverSettings
from snopt.solve import backward_engine
from snopt.solve.field import evaluate_field
from snopt.solve.tableau import Tableau

JOINT, DEFERRED = "with every stage", "after acceptance"

EVALUATIONS_FIRST, EVALUATIONS_A_STEP = 2, 6
"""Of a dopri5 solve: to choose the first step, and of each attempt."""


class Pulsed(nn.Module):
    """A field that is 21 times as fast in short pulses: step sizes keep being wrong."""

    def __init__(self, net: nn.Module) -> None:
        """Wrap a field."""
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return dz/dt, the shape of ``z``."""
        out: Tensor = self.net(t, z) * (1 + 20 * torch.relu(torch.sin(40 * t)))
        return out


def make_pulsed_mlp(
    solver: SolverSettings, device: torch.device, *, batch: int, dim: int, layers: int
) -> Case:
    """The workload ``linear`` in pulses."""
    return field_case(Pulsed(MLPField(dim, layers)), (batch, dim), solver, device)


def make_pulsed_softplus(
    solver: SolverSettings, device: torch.device, *, batch: int, dim: int, width: int
) -> Case:
    """The workload ``softplus`` in pulses."""
    return field_case(Pulsed(SoftplusField(dim, width)), (batch, dim), solver, device)


def _workloads() -> tuple[Workload, ...]:
    conv, linear, softplus = ENGINE[:3]
    name, title = "linear_pulsed", "four linear layers, pulsed"
    pulsed = replace(linear, name=name, title=title, make=make_pulsed_mlp)
    finer = replace(pulsed, name=f"{name}_1e-5", title=f"{title}, 1e-5", rtol=1e-5, atol=1e-5)
    name, title = "softplus_pulsed", "43-860-860-43, pulsed, 1e-4"
    wide = replace(
        softplus, name=name, title=title, rtol=1e-4, atol=1e-4, make=make_pulsed_softplus
    )
    return conv, linear, softplus, pulsed, finer, wide


WORKLOADS = _workloads()


class DeferredSum(PathSum):
    """Keeps the graphs of weighted stages, and takes their products when a step is accepted."""

    def __init__(self, params: Sequence[Tensor], tableau: Tableau) -> None:
        """Start at zero."""
        super().__init__(params, tableau)
        self._graphs: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, stage: int, output: Tensor, adjoint: Tensor) -> None:
        """Take F and a at a stage of the present attempt."""
        self._graphs[stage] = (output, adjoint)

    def accept(self, dt: float) -> None:
        """Take the products of the present attempt, in one pass through all of its stages."""
        b = self._tableau.b
        weighted = [(o, a * (dt * b[i])) for i, (o, a) in self._graphs.items() if b[i] != 0]
        outputs, adjoints = zip(*weighted, strict=True)
        products: Products = torch.autograd.grad(
            outputs, list(self._params), adjoints, retain_graph=True
        )
        total = self._total or [torch.zeros_like(p) for p in self._params]
        self._total = [
            t if p is None or t is None else t.add_(p) for t, p in zip(total, products, strict=True)
        ]
        last = self._tableau.stages - 1
        self._graphs = {0: self._graphs[last]} if last in self._graphs else {}


class DeferredSolve(backward_engine._BackwardSolve):
    """The backward solve with deferred products; fields of one tensor, no curvature."""

    def __init__(self, *arguments: Any) -> None:
        """Set up as the original, with another sum."""
        super().__init__(*arguments)
        self.Q_u: DeferredSum = DeferredSum(self.params, self.tableau)

    def _field(self, stage: int, t: float, y: Tensor) -> tuple[Sequence[Part], None]:
        self.calls += 1
        self.problem.nfe.backward += 1
        state, a = self.layout.split(y)
        with torch.enable_grad():
            z = state.detach().requires_grad_()
            (out,) = evaluate_field(self.problem.func, self.problem.pack, self.state, t, [z])
            (product,) = torch.autograd.grad(out, z, a, retain_graph=True)
        last = stage == self.end_stage and t == self.end
        if stage >= 0 and self.products_at[stage] and not last:
            self.Q_u.keep(stage, out, a)
        return [out, Negated(product)], None


@contextmanager
def deferred() -> Iterator[None]:
    """Let backward solves take their products after acceptance."""
    original = backward_engine._BackwardSolve
    backward_engine._BackwardSolve = DeferredSolve  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        backward_engine._BackwardSolve = original  # type: ignore[misc]


def measure_deferral(
    workload: Workload, device: torch.device, repeats: int, max_seconds: float | None = None
) -> dict[str, Any]:
    """Measure one workload; arguments as of :func:`experiments.measure.engine.measure_engine`.

    Returns:
        The workload's entry of ``deferral.json``, without its origin.
    """
    case = workload.build(device, ADJOINT.settings(workload.rtol, workload.atol))
    counts = count(case)
    attempts = (counts.backward - EVALUATIONS_FIRST) // EVALUATIONS_A_STEP
    joint = gradient(case)
    with deferred():
        other = gradient(case)
    squares = [float((a - b).norm() ** 2) for a, b in zip(other, joint, strict=True)]
    whole = [float(b.norm() ** 2) for b in joint]
    samples = interleaved(
        {JOINT: lambda: run_once(case), DEFERRED: _deferred_pass(case)},
        repeats * workload.repeat_factor,
        max_seconds=max_seconds,
        synchronise=synchroniser(device),
    )
    return {
        "title": workload.title,
        "description": workload.description,
        "rtol": workload.rtol,
        "atol": workload.atol,
        "attempts": attempts,
        "accepted": counts.steps_backward,
        "rejected_share": 1 - counts.steps_backward / attempts,
        "gradient_difference": (sum(squares) / sum(whole)) ** 0.5,
        "rounds": len(samples[JOINT]),
        "seconds": {name: spread(times).as_json() for name, times in samples.items()},
        "deferred_over_joint": pair_ratio(samples[DEFERRED], samples[JOINT]).as_json(),
        "samples_s": samples,
    }


def _deferred_pass(case: Case) -> Callable[[], None]:
    def run() -> None:
        with deferred():
            run_once(case)

    return run


def headline(entry: dict[str, Any]) -> str:
    """Return the one line that a person wants to see of a finished workload."""
    ratio = entry["deferred_over_joint"]["median"]
    return (
        f"{entry['attempts'] - entry['accepted']} of {entry['attempts']} attempts rejected;"
        f" products after acceptance: {ratio:.3f} times the joint pass"
    )
