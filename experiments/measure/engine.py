"""``engine.json``: one forward and backward pass, by every way to get the gradient.

All ways are compared with a *floor*: a pass that makes the evaluations that a solve needs, and
nothing else. They are counted on the vector field itself, which treats every engine alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from experiments.measure.harness import Effort, pair_ratio, spread
from experiments.measure.workloads import ADJOINT, ENGINE_VARIANTS, STOCK_SEMINORM, Case, Workload
from snopt import ODEBlock

FLOOR = "floor"


def measure_engine(workload: Workload, effort: Effort) -> dict[str, Any]:
    """Return one workload's entry of ``engine.json``, without its origin."""
    cases = {v.name: workload.build(effort.device, v) for v in ENGINE_VARIANTS}
    counts = {name: count(case) for name, case in cases.items()}
    reference = gradient(cases[STOCK_SEMINORM.name])
    differences = {
        name: float((gradient(case) - reference).norm() / reference.norm())
        for name, case in cases.items()
    }
    cases[FLOOR] = floor_case(workload, effort.device, counts[ADJOINT.name])
    work = {name: partial(run_once, case) for name, case in cases.items()}
    samples = effort.rounds(work, workload.repeat_factor)
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
    """Turn samples (seconds) and what was counted, by variant, into the numbers that are quoted.

    ``differences`` are those of the gradients, relative to torchdiffeq's seminorm adjoint.
    """
    ours, floor, plan = samples[ADJOINT.name], samples[FLOOR], counts[ADJOINT.name]
    return {
        "rounds": len(ours),
        FLOOR: {
            "label": "the evaluations alone",
            "seconds": asdict(spread(floor)),
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
                "seconds": asdict(spread(samples[v.name])),
                "over_floor": asdict(pair_ratio(samples[v.name], floor)),
                "evaluations": asdict(counts[v.name]),
                "gradient_difference": differences[v.name],
                "samples_s": samples[v.name],
            }
            for v in ENGINE_VARIANTS
        },
        "ratios": {
            f"{v.name}/{ADJOINT.name}": asdict(pair_ratio(samples[v.name], ours))
            for v in ENGINE_VARIANTS
            if v is not ADJOINT
        },
    }


def headline(entry: Mapping[str, Any]) -> str:
    """Return the line that is printed about an entry."""
    parts = [f"{name} {v['over_floor']['median']:.2f}" for name, v in entry["variants"].items()]
    floor = entry[FLOOR]["seconds"]["median"]
    return f"floor {floor * 1e3:.1f} ms; times the floor: {', '.join(parts)}"


# --- one pass, and its evaluations ---------------------------------------------------------------


def run_once(case: Case) -> None:
    """Run one forward and backward pass from empty gradients."""
    case.model.zero_grad()
    case.loss().backward()


def gradient(case: Case) -> Tensor:
    """Return the gradient of one pass over all parameters, flat, in float64."""
    run_once(case)
    grads = [p.grad for p in case.model.parameters() if p.grad is not None]
    return torch.cat([grad.reshape(-1).double() for grad in grads])


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
        """Backward evaluations that need a product with the parameters' Jacobian.

        The parameter gradient is a path integral: only the five stages of an accepted step whose
        weight is not zero enter it (of dopri5, b₂ = b₇ = 0).
        """
        return min(self.backward, 5 * self.steps_backward)


def count(case: Case) -> Counts:
    """Run one pass with dopri5 and count.

    Calls of the field before ``backward()`` are evaluations of F, calls during it are evaluations
    with a vector-Jacobian product. The times of the calls tell the steps.
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
    """Return the number of accepted dopri5 steps behind the evaluation times of some solves.

    Of the six evaluations of an attempted step only the last two have the same time, its end. The
    first one lies at a fifth of the step (c₂ = 1/5), which gives its start. The attempt after a
    rejected one has the same start.
    """
    attempts = []
    for i, (one, other) in enumerate(pairwise(times)):
        if one == other and i >= 4:
            attempts.append(((times[i - 4] - 0.2 * one) / 0.8, one))
    rejected = sum(
        abs(following - start) < 0.1 * abs(end - start)
        for (start, end), (following, _) in pairwise(attempts)
    )
    return len(attempts) - rejected


# --- the floor -----------------------------------------------------------------------------------

Share = tuple[int, int, int]
"""Evaluations in a solve: of F alone, with a product by ∂F/∂z, and with one by ∂F/∂θ as well."""


def floor_case(workload: Workload, device: torch.device, counts: Counts) -> Case:
    """Build the workload with the evaluations alone in place of its solves.

    They are spread evenly over the solves, which all have the same shapes.
    """
    case = workload.build(device, replace(ADJOINT, block_class=FloorBlock))
    assert isinstance(case.block, FloorBlock)  # noqa: S101 (for the type checker)
    with_parameters, n = counts.with_parameters, counts.solves
    totals = (counts.forward, counts.backward - with_parameters, with_parameters)
    parts = [[t * (i + 1) // n - t * i // n for i in range(n)] for t in totals]
    case.block.plan = list(zip(*parts, strict=True))
    return case


class FloorBlock(ODEBlock):
    """Makes the planned evaluations in place of a solve and returns its input.

    It adds no stages, estimates no error and sums no gradients. Layers outside the ODE, the loss
    and their gradients are as in the real pass. ``plan`` holds the share of each solve of a pass.
    """

    plan: Sequence[Share] = ()
    _next: int = 0

    def forward(self, y0: Any, t: Sequence[float] | Tensor | None = None) -> Any:
        """Make the evaluations of the next solve in the plan; return ``y0`` as the final state."""
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
            for _ in range(share[0]):
                func(t, z)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Evaluate F and the products."""
        (a,) = grads
        t, z = ctx.saved_tensors
        parameters = [p for p in ctx.func.parameters() if p.requires_grad]
        _, by_state, by_both = ctx.share
        for extra, times in (([], by_state), (parameters, by_both)):
            for _ in range(times):
                with torch.enable_grad():
                    leaf = z.detach().requires_grad_()
                    out = ctx.func(t, leaf)
                torch.autograd.grad(out, [leaf, *extra], a)
        return None, None, None, a
