"""Entries of result files made by hand, in the format that the benchmarks write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.measure import engine, harness, memory, step_cost
from experiments.measure.engine import Counts
from experiments.measure.workloads import GRADIENT_MODES

ORIGIN = {
    "device": "cpu",
    "processor": "A Processor",
    "threads": 2,
    "cores": 2,
    "load_at_start": 0.1,
    "platform": "Linux",
    "versions": {"torch": "2.13.0", "torchdiffeq": "0.2.5"},
    "git": {"commit": "0" * 40, "dirty": False},
    "date": "2026-01-02T03:04:05+00:00",
    "repeats": 3,
}

FACTORS = {
    "snopt_adjoint": 1.25,
    "snopt_checkpoint": 1.0,
    "torchdiffeq_seminorm": 4.0,
    "torchdiffeq_adjoint": 5.0,
    "torchdiffeq_direct": 2.0,
}
COUNTS = Counts(solves=1, forward=14, backward=14, steps_forward=2, steps_backward=2)


def engine_entry(title: str = "four linear layers") -> dict[str, Any]:
    # Each round is slower than the last one; the ratios do not care.
    samples = {"floor": [0.1, 0.2, 0.4]}
    samples |= {name: [f * s for s in samples["floor"]] for name, f in FACTORS.items()}
    counts = dict.fromkeys(FACTORS, COUNTS)
    differences = dict.fromkeys(FACTORS, 1e-6)
    scores = engine.score(samples, counts, differences)
    return {"origin": ORIGIN, "title": title, **scores}


def optimizer_entry(title: str = "digits net") -> dict[str, Any]:
    sgd = [0.1, 0.2, 0.3]
    factors = {
        "sgd": 1.0,
        "adam": 1.01,
        "snopt": 1.02,
        "snopt_refresh": 3.02,
        "snopt_ode": 1.01,
        "snopt_ode_refresh": 1.51,
    }
    samples = {name: [factor * s for s in sgd] for name, factor in factors.items()}
    evaluations = {key: {"forward": 14, "backward": 14, "curvature": 0} for key in factors}
    return {"origin": ORIGIN, "title": title, **step_cost.score_optimizer(samples, evaluations)}


def memory_entry(title: str = "digits net") -> dict[str, Any]:
    extra = {"sgd": 9.0, "adam": 10.0, "snopt_ode": 10.5, "snopt": 11.0}
    results = {
        name: [
            {"start_mb": 190.0, "peak_mb": 190.0 + mb + e, "extra_mb": mb + e}
            for e in (-0.1, 0.0, 0.1)
        ]
        for name, mb in extra.items()
    }
    return {"origin": ORIGIN, "title": title, **memory.score_optimizers(results)}


def steps_entry() -> dict[str, Any]:
    slopes = {"snopt_adjoint": 0.0, "snopt_checkpoint": 0.5, "snopt_direct": 6.0}
    noise = (0.1, -0.1, 0.05, -0.1, 0.05)
    points = {
        name: [
            {
                "tolerance": tolerance,
                "steps_forward": steps,
                "extra_mb": 30.0 + slope * steps + e,
                "state_mb": 0.25,
            }
            for tolerance, steps, e in zip(
                (1e-3, 1e-4, 1e-5, 1e-6, 1e-7), (3, 5, 9, 15, 30), noise, strict=True
            )
        ]
        for name, slope in slopes.items()
    }
    scores = memory.score_steps(points, {mode.name: mode.label for mode in GRADIENT_MODES})
    return {"origin": ORIGIN, "title": "memory against steps", **scores}


def write_all(folder: Path) -> None:
    for name in ("conv", "linear", "mnist"):
        harness.save(folder, "engine", name, engine_entry(name))
    for name in ("digits", "mnist", "japanese_vowels"):
        harness.save(folder, "optimizer", name, optimizer_entry(name))
        harness.save(folder, "memory", name, memory_entry(name))
    harness.save(folder, "memory", "steps", steps_entry())
