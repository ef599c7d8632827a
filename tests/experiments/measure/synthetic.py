"""Entries of result files made by hand, in the format that the benchmarks write."""

from __future__ import annotations

from typing import Any

from experiments.measure import engine, memory, step_cost
from experiments.measure.engine import Counts
from experiments.measure.steps import TIMED
from experiments.measure.workloads import ENGINE_VARIANTS

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

FACTORS = dict(zip((v.name for v in ENGINE_VARIANTS), (1.25, 1.0, 4.0, 5.0, 2.0), strict=True))
COUNTS = Counts(solves=1, forward=14, backward=14, steps_forward=2, steps_backward=2)


def engine_entry(title: str = "four linear layers", **more: Any) -> dict[str, Any]:
    # Each round is slower than the last one; the ratios do not care.
    samples = {"floor": [0.1, 0.2, 0.4]}
    samples |= {name: [f * s for s in samples["floor"]] for name, f in FACTORS.items()}
    counts, differences = dict.fromkeys(FACTORS, COUNTS), dict.fromkeys(FACTORS, 1e-6)
    scores = engine.score(samples, counts, differences)
    return {"origin": ORIGIN, "title": title, **scores, **more}


def optimizer_entry() -> dict[str, Any]:
    sgd = [0.1, 0.2, 0.3]
    factors = dict(zip(TIMED, (1.0, 1.01, 1.02, 3.02, 1.01, 1.51), strict=True))
    samples = {name: [factor * s for s in sgd] for name, factor in factors.items()}
    evaluations = {key: {"forward": 14, "backward": 14, "curvature": 0} for key in factors}
    return {
        "origin": ORIGIN,
        "title": "digits net",
        **step_cost.score_optimizer(samples, evaluations),
    }


def memory_entry() -> dict[str, Any]:
    extra = {"sgd": 9.0, "adam": 10.0, "snopt_ode": 10.5, "snopt": 11.0}
    results = {
        name: [
            {"start_mb": 190.0, "peak_mb": 190.0 + mb + e, "extra_mb": mb + e}
            for e in (-0.1, 0.0, 0.1)
        ]
        for name, mb in extra.items()
    }
    return {"origin": ORIGIN, "title": "digits net", **memory.score_optimizers(results)}


def steps_entry() -> dict[str, Any]:
    slopes = {"snopt_adjoint": 0.0, "snopt_checkpoint": 0.5, "snopt_direct": 6.0}
    noise = (0.1, -0.1, 0.05, -0.1, 0.05)
    points = {
        name: [
            {"steps_forward": steps, "extra_mb": 30.0 + slope * steps + e, "state_mb": 0.25}
            for steps, e in zip((3, 5, 9, 15, 30), noise, strict=True)
        ]
        for name, slope in slopes.items()
    }
    return {"origin": ORIGIN, "title": "memory against steps", **memory.score_steps(points)}
