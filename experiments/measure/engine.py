"""``engine.json``: one forward and backward pass, by every way to get the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.base.device import synchroniser
from experiments.measure.counting import Counts, count, gradient, run_once
from experiments.measure.floor import FloorBlock, floor_settings, shares
from experiments.measure.interleave import interleaved
from experiments.measure.scoring import pair_ratio, spread
from experiments.measure.workloads import (
    ADJOINT,
    ENGINE_VARIANTS,
    STOCK_SEMINORM,
    Case,
    Variant,
    Workload,
    engine_name,
)

FLOOR = "floor"

FLOOR_LABEL = "the evaluations alone"


def measure_engine(
    workload: Workload, device: torch.device, repeats: int, max_seconds: float | None = None
) -> dict[str, Any]:
    """Measure one workload.

    Args:
        workload: what to solve.
        device: where.
        repeats: rounds, times the workload's own factor.
        max_seconds: see :func:`~experiments.measure.interleave.interleaved`.

    Returns:
        The workload's entry of ``engine.json``, without its origin.
    """
    variants = [variant for variant in ENGINE_VARIANTS if variant.available]
    cases = {
        v.name: workload.build(device, v.settings(workload.rtol, workload.atol)) for v in variants
    }
    counts = {name: count(case) for name, case in cases.items()}
    reference = gradient(cases[STOCK_SEMINORM.name])
    differences = {name: _difference(gradient(case), reference) for name, case in cases.items()}
    cases[FLOOR] = floor_case(workload, device, counts[ADJOINT.name])
    samples = interleaved(
        {name: _pass(case) for name, case in cases.items()},
        repeats * workload.repeat_factor,
        max_seconds=max_seconds,
        synchronise=synchroniser(device),
    )
    case = cases[ADJOINT.name]
    return {
        "title": workload.title,
        "description": workload.description,
        "method": "dopri5",
        "rtol": workload.rtol,
        "atol": workload.atol,
        "engine": engine_name(),
        "state_shape": list(case.state_shape),
        "state_numbers": _product(case.state_shape),
        "field_parameters": sum(p.numel() for p in case.field.parameters()),
        "unavailable": [v.name for v in ENGINE_VARIANTS if not v.available],
        **score(samples, variants, counts, differences),
    }


def floor_case(workload: Workload, device: torch.device, counts: Counts) -> Case:
    """Build the workload with the evaluations alone in the place of its solves."""
    case = workload.build(device, floor_settings(workload.rtol, workload.atol))
    assert isinstance(case.block, FloorBlock)  # noqa: S101 (for the type checker)
    case.block.plan = shares(counts)
    return case


def score(
    samples: Mapping[str, Sequence[float]],
    variants: Sequence[Variant],
    counts: Mapping[str, Counts],
    differences: Mapping[str, float],
) -> dict[str, Any]:
    """Turn samples into the numbers that are quoted.

    Args:
        samples: seconds by variant, and of the floor.
        variants: the variants that ran.
        counts: evaluations by variant.
        differences: relative difference of each gradient from torchdiffeq's seminorm adjoint.

    Returns:
        ``rounds``, ``floor``, ``variants`` and ``ratios``.
    """
    ours = samples[ADJOINT.name]
    plan = counts[ADJOINT.name]
    entries = {
        v.name: {
            "label": v.label,
            "seconds": spread(samples[v.name]).as_json(),
            "over_floor": pair_ratio(samples[v.name], samples[FLOOR]).as_json(),
            "evaluations": counts[v.name].as_json(),
            "gradient_difference": differences[v.name],
            "samples_s": list(samples[v.name]),
        }
        for v in variants
    }
    return {
        "rounds": len(ours),
        FLOOR: {
            "label": FLOOR_LABEL,
            "seconds": spread(samples[FLOOR]).as_json(),
            "evaluations": {
                "forward": plan.forward,
                "backward_state_only": plan.backward - plan.with_parameters,
                "backward_with_parameters": plan.with_parameters,
            },
            "samples_s": list(samples[FLOOR]),
        },
        "variants": entries,
        "ratios": {
            f"{v.name}/{ADJOINT.name}": pair_ratio(samples[v.name], ours).as_json()
            for v in variants
            if v is not ADJOINT
        },
    }


def _pass(case: Case) -> Callable[[], None]:
    return lambda: run_once(case)


def _difference(gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return |g - r| / |r| over all parameters together."""
    squares = [
        ((g - r).double().square().sum(), r.double().square().sum())
        for g, r in zip(gradients, reference, strict=True)
    ]
    return float((sum(d for d, _ in squares) / sum(r for _, r in squares)) ** 0.5)


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
