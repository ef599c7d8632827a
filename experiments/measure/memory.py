"""``memory.json``: peak memory, every measurement in its own process.

Two questions: what SNOpt needs beyond SGD and Adam, and how each gradient mode grows with the
number of solver steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from experiments.measure.counting import count, run_once
from experiments.measure.process import call
from experiments.measure.resident import ALLOCATOR, peak_of
from experiments.measure.scoring import Spread, fit_line, spread
from experiments.measure.stepping import MEASURED_FOR_MEMORY, MEMORY_STEPS, stepper
from experiments.measure.workloads import (
    GRADIENT_MODES,
    TRAINING,
    Case,
    Workload,
    engine_name,
    field_case,
)
from experiments.models.fields import MLPField
from experiments.models.solver import SolverSettings

STEPS = "steps"
"""Name of the second question in ``memory.json``."""

BASELINES = ("sgd", "adam")

TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def make_stiffening(
    solver: SolverSettings, device: torch.device, *, batch: int, dim: int, layers: int
) -> Case:
    """Build a field whose solve takes many more steps at a tight tolerance, in float64.

    In float32 the tightest tolerances would lie below the rounding errors.
    """
    field = MLPField(dim, layers)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(3.0)
    return field_case(field.double(), (batch, dim), solver, device)


STIFFENING = Workload(
    STEPS,
    "memory against steps",
    "four linear layers of 64 with tripled weights, tanh, batch 512, float64, [0, 1]",
    make_stiffening,
    {"batch": 512, "dim": 64, "layers": 4},
)


# --- measured in the child -----------------------------------------------------------------------


def optimizer_peak(
    workload: str, optimizer: str, device: str, shape: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return the memory of a few steps of one optimizer; ``shape`` overrides the workload's."""
    chosen = {w.name: w for w in TRAINING}[workload]
    chosen = replace(chosen, shape=shape or chosen.shape)
    on = torch.device(device)
    one = stepper(chosen, on, MEASURED_FOR_MEMORY[optimizer])

    def work() -> None:
        for _ in range(MEMORY_STEPS):
            one.step()

    return peak_of(work, on).as_json()


def gradient_peak(
    variant: str, tolerance: float, device: str, shape: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return memory and number of steps of one pass at one tolerance."""
    mode = {v.name: v for v in GRADIENT_MODES}[variant]
    workload = replace(STIFFENING, shape=shape or STIFFENING.shape)
    on = torch.device(device)
    case = workload.build(on, mode.settings(tolerance, tolerance))
    result = peak_of(partial(run_once, case), on).as_json()
    counts = count(case)  # after the measurement: it runs the pass once more
    return {
        **result,
        "steps_forward": counts.steps_forward,
        "steps_backward": counts.steps_backward,
        "evaluations": counts.as_json(),
        "state_mb": 8 * torch.Size(case.state_shape).numel() / 2**20,
    }


# --- asked for by the parent ---------------------------------------------------------------------


def _ask(function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    target = f"experiments.measure.memory:{function}"
    result: dict[str, Any] = call(target, arguments, environment=ALLOCATOR)
    return result


def measure_memory(
    workload: Workload, device: torch.device, repeats: int, **shape: int
) -> dict[str, Any]:
    """Return a training workload's entry of ``memory.json`` without its origin.

    Args:
        workload: what is trained; one of :data:`TRAINING`.
        device: where.
        repeats: processes for each optimizer, in turn.
        **shape: other sizes than the workload's.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in MEASURED_FOR_MEMORY}
    for _ in range(repeats):
        for optimizer, found in results.items():
            arguments = {"workload": workload.name, "optimizer": optimizer, "device": str(device)}
            found.append(_ask("optimizer_peak", {**arguments, "shape": shape or None}))
    return {
        "title": workload.title,
        "description": workload.description,
        "engine": engine_name(),
        "steps": MEMORY_STEPS,
        "allocator": ALLOCATOR,
        **score_optimizers(results),
    }


def score_optimizers(results: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Return memory by optimizer, and SNOpt's relative to the others (medians over processes).

    ``ratios`` compare what the steps needed beyond the start, ``process_ratios`` the peaks of the
    whole processes, interpreter and libraries included.
    """
    extra = {name: spread([r["extra_mb"] for r in found]) for name, found in results.items()}
    peak = {name: spread([r["peak_mb"] for r in found]) for name, found in results.items()}
    ours = [name for name in results if name.startswith("snopt")]
    pairs = [(name, base) for name in ours for base in BASELINES if base in results]
    return {
        "optimizers": {
            name: {
                "extra_mb": extra[name].as_json(),
                "peak_mb": peak[name].as_json(),
                "processes": [dict(r) for r in found],
            }
            for name, found in results.items()
        },
        "ratios": {f"{name}/{base}": _ratio(extra[name], extra[base]) for name, base in pairs},
        "process_ratios": {
            f"{name}/{base}": _ratio(peak[name], peak[base]) for name, base in pairs
        },
    }


def _ratio(one: Spread, other: Spread) -> float | None:
    """Return the ratio of medians; None where nothing was needed beyond the start."""
    return one.median / other.median if other.median > 0 else None


def measure_steps(
    device: torch.device, repeats: int, tolerances: Sequence[float] = TOLERANCES, **shape: int
) -> dict[str, Any]:
    """Return the entry on memory against the number of steps, without its origin."""
    modes = [mode for mode in GRADIENT_MODES if mode.available]
    points: dict[str, list[dict[str, Any]]] = {mode.name: [] for mode in modes}
    for tolerance in tolerances:
        for _ in range(repeats):
            for name, found in points.items():
                arguments = {"variant": name, "tolerance": tolerance, "device": str(device)}
                result = _ask("gradient_peak", {**arguments, "shape": shape or None})
                found.append({"tolerance": tolerance, **result})
    return {
        "title": STIFFENING.title,
        "description": STIFFENING.description,
        "engine": engine_name(),
        "allocator": ALLOCATOR,
        "unavailable": [mode.name for mode in GRADIENT_MODES if not mode.available],
        **score_steps(points, {mode.name: mode.label for mode in modes}),
    }


def score_steps(
    points: Mapping[str, Sequence[Mapping[str, Any]]], labels: Mapping[str, str]
) -> dict[str, Any]:
    """Return points and the least-squares line of memory (MB) against forward steps, by mode."""
    modes = {}
    for name, found in points.items():
        steps = [float(point["steps_forward"]) for point in found]
        line = fit_line(steps, [point["extra_mb"] for point in found])
        modes[name] = {
            "label": labels[name],
            "mb_per_step": line.as_json(),
            "states_per_step": line.slope / found[0]["state_mb"],
            "within_noise": line.flat,
            "growth_mb": line.slope * (max(steps) - min(steps)),
            "points": [dict(point) for point in found],
        }
    return {"state_mb": next(iter(points.values()))[0]["state_mb"], "modes": modes}
