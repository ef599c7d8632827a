"""``engine.json``: one forward and backward pass, by every way to get the gradient.

All ways are compared with a *floor*: a pass that makes the evaluations that a solve needs, and
nothing else. How many there are is observed on the vector field itself, which treats every engine
alike and needs no callback of a solver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from experiments.base.device import synchroniser
from experiments.measure.harness import interleaved, pair_ratio, spread
from experiments.measure.workloads import ADJOINT, ENGINE_VARIANTS, STOCK_SEMINORM, Case, Workload
from snopt import ODEBlock

FLOOR = "floor"


def measure_engine(
    workload: Workload, device: torch.device, repeats: int, max_seconds: float | None = None
) -> dict[str, Any]:
    """Return one workload's entry of ``engine.json``, without its origin.

    There are ``repeats`` rounds times the workload's own factor, see
    :func:`~experiments.measure.harness.interleaved`.
    """
    cases = {
        v.name: workload.build(device, v.settings(workload.rtol, workload.atol))
        for v in ENGINE_VARIANTS
    }
    counts = {name: count(case) for name, case in cases.items()}
    reference = gradient(cases[STOCK_SEMINORM.name])
    differences = {
        name: float((gradient(case) - reference).norm() / reference.norm())
        for name, case in cases.items()
    }
    cases[FLOOR] = floor_case(workload, device, counts[ADJOINT.name])
    samples = interleaved(
        {name: partial(run_once, case) for name, case in cases.items()},
        repeats * workload.repeat_factor,
        max_seconds=max_seconds,
        synchronise=synchroniser(device),
    )
    case = cases[ADJOINT.name]
    return {
        **workload.facts,
        "method": "dopri5",
        "rtol": workload.rtol,
        "atol": workload.atol,
        "state_shape": list(case.state_shape),
        "state_numbers": torch.Size(case.state_shape).numel(),
        "field_parameters": sum(p.numel() for p in case.field.parameters()),
        "unavailable": [],
        **score(samples, counts, differences),
    }


def score(
    samples: Mapping[str, Sequence[float]],
    counts: Mapping[str, Counts],
    differences: Mapping[str, float],
) -> dict[str, Any]:
    """Turn samples into the numbers that are quoted.

    Args:
        samples: seconds by variant, and of the floor.
        counts: evaluations by variant.
        differences: relative difference of each gradient from torchdiffeq's seminorm adjoint.
    """
    ours, floor, plan = samples[ADJOINT.name], samples[FLOOR], counts[ADJOINT.name]
    return {
        "rounds": len(ours),
        FLOOR: {
            "label": "the evaluations alone",
            "seconds": spread(floor).as_json(),
            "evaluations": {
                "forward": plan.forward,
                "backward_state_only": plan.backward - plan.with_parameters,
                "backward_with_parameters": plan.with_parameters,
            },
            "samples_s": floor,
        },
        "variants": {
            v.name: {
                "label": v.label,
                "seconds": spread(samples[v.name]).as_json(),
                "over_floor": pair_ratio(samples[v.name], floor).as_json(),
                "evaluations": asdict(counts[v.name]),
                "gradient_difference": differences[v.name],
                "samples_s": samples[v.name],
            }
            for v in ENGINE_VARIANTS
        },
        "ratios": {
            f"{v.name}/{ADJOINT.name}": pair_ratio(samples[v.name], ours).as_json()
            for v in ENGINE_VARIANTS
            if v is not ADJOINT
        },
    }


def headline(entry: Mapping[str, Any]) -> str:
    """Return the one line that a person wants to see."""
    parts = [f"{name} {v['over_floor']['median']:.2f}" for name, v in entry["variants"].items()]
    floor = entry[FLOOR]["seconds"]["median"]
    return f"floor {floor * 1e3:.1f} ms; times the floor: {', '.join(parts)}"


# --- one pass ------------------------------------------------------------------------------------


def run_once(case: Case) -> None:
    """Run one forward and backward pass from empty gradients."""
    case.model.zero_grad()
    case.loss().backward()


def gradient(case: Case) -> Tensor:
    """Return the gradient of one pass over all parameters, flat, in float64."""
    run_once(case)
    grads = [p.grad for p in case.model.parameters() if p.grad is not None]
    return torch.cat([grad.reshape(-1).double() for grad in grads])


# --- its evaluations, counted --------------------------------------------------------------------

WEIGHTED_STAGES = 5  # of dopri5, with non-zero weight in the solution (b₂ = b₇ = 0)
FIRST_STAGE = 0.2  # place of dopri5's first evaluation within a step (c₂)


@dataclass(frozen=True)
class Counts:
    """ODE solves of one forward and backward pass, their evaluations and accepted steps."""

    solves: int
    forward: int
    backward: int
    steps_forward: int
    steps_backward: int

    @property
    def with_parameters(self) -> int:
        """Backward evaluations that must give a product with the parameters' Jacobian.

        The parameter gradient is a path integral: only stages of accepted steps with non-zero
        weight enter it.
        """
        return min(self.backward, WEIGHTED_STAGES * self.steps_backward)


def count(case: Case) -> Counts:
    """Run one pass with dopri5 and count.

    Calls of the field before ``backward()`` are evaluations of F, calls during it are evaluations
    with a vector-Jacobian product, and the times of the calls tell the steps.
    """
    times: dict[str, list[float]] = {"forward": [], "backward": []}
    phase, solves = "forward", 0

    def on_field(_module: Any, arguments: tuple[Any, ...]) -> None:
        times[phase].append(float(arguments[0].detach()))

    def on_block(*_: Any) -> None:
        nonlocal solves
        solves += 1

    handles = [
        case.field.register_forward_pre_hook(on_field),
        case.block.register_forward_pre_hook(on_block),
    ]
    try:
        case.model.zero_grad()
        loss = case.loss()
        phase = "backward"
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    return Counts(
        solves=solves,
        forward=len(times["forward"]),
        backward=len(times["backward"]),
        steps_forward=accepted_steps(times["forward"]),
        steps_backward=accepted_steps(times["backward"]),
    )


def accepted_steps(times: Sequence[float]) -> int:
    """Return the number of accepted dopri5 steps behind a sequence of evaluation times.

    Of the six evaluations of an attempted step only the last two have the same time, its end; the
    first one lies at a fifth of it, which gives its start. A rejected attempt is followed by one
    from the same start. Solves may follow one another.
    """
    attempts = []
    for i, (one, other) in enumerate(pairwise(times)):
        if one == other and i >= 4:
            attempts.append(((times[i - 4] - FIRST_STAGE * one) / (1 - FIRST_STAGE), one))
    rejected = sum(
        abs(following - start) < 0.1 * abs(end - start)
        for (start, end), (following, _) in pairwise(attempts)
    )
    return len(attempts) - rejected


# --- its evaluations, and nothing else -----------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """Evaluations of one solve.

    Attributes:
        forward: of F, without a graph.
        state: of F with a product by ∂F/∂z.
        parameters: of F with a product by ∂F/∂z and ∂F/∂θ.
    """

    forward: int
    state: int
    parameters: int


def shares(counts: Counts) -> list[Share]:
    """Spread the evaluations of a pass evenly over its solves (which all have the same shapes)."""
    with_parameters = counts.with_parameters
    totals = (counts.forward, counts.backward - with_parameters, with_parameters)
    n = counts.solves
    return [Share(*(t * (i + 1) // n - t * i // n for t in totals)) for i in range(n)]


def floor_case(workload: Workload, device: torch.device, counts: Counts) -> Case:
    """Build the workload with the evaluations alone in the place of its solves."""
    settings = replace(ADJOINT.settings(workload.rtol, workload.atol), block_class=FloorBlock)
    case = workload.build(device, settings)
    assert isinstance(case.block, FloorBlock)  # noqa: S101 (for the type checker)
    case.block.plan = shares(counts)
    return case


class FloorBlock(ODEBlock):
    """Makes the planned evaluations in place of a solve and returns its input.

    The forward pass evaluates F as often as the solve does, without a graph; the backward pass does
    F with a vector-Jacobian product, by the state alone or, where a stage enters the parameter
    gradient, by state and parameters together. It adds no stages, estimates no error and sums no
    gradients; layers outside the ODE, the loss and their gradients are as in the real pass.

    Attributes:
        plan: evaluations of each solve of a pass, in order; set before the first pass.
    """

    plan: Sequence[Share] = ()
    _next: int = 0

    def forward(self, y0: Any, t: Sequence[float] | Tensor | None = None) -> Any:
        """Make the evaluations of the next solve in the plan; return ``y0`` as the final state.

        Raises:
            RuntimeError: there is no plan.
        """
        if not self.plan:
            raise RuntimeError("a FloorBlock needs its plan before it runs")
        share = self.plan[self._next % len(self.plan)]
        self._next += 1
        time = torch.zeros((), dtype=y0.dtype, device=y0.device)
        return _Evaluations.apply(self.func, share, time, y0)


class _Evaluations(torch.autograd.Function):
    """The identity, with the evaluations of a solve as its cost."""

    @staticmethod
    def forward(ctx: Any, func: nn.Module, share: Share, t: Tensor, z: Tensor) -> Tensor:
        """Evaluate F without a graph."""
        ctx.func, ctx.share = func, share
        ctx.save_for_backward(t, z)
        with torch.no_grad():
            for _ in range(share.forward):
                func(t, z)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Evaluate F and the products."""
        (a,) = grads
        t, z = ctx.saved_tensors
        parameters = [p for p in ctx.func.parameters() if p.requires_grad]
        for extra, times in (([], ctx.share.state), (parameters, ctx.share.parameters)):
            for _ in range(times):
                with torch.enable_grad():
                    leaf = z.detach().requires_grad_()
                    out = ctx.func(t, leaf)
                torch.autograd.grad(out, [leaf, *extra], a)
        return None, None, None, a
