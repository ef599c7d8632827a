"""Training time to a goal: the score of every comparison that is about speed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.base.errors import RecordError
from experiments.publish.runs import NFE
from experiments.run.records import Summary

Rows = Iterable[Mapping[str, Any]]

GREATER = {"accuracy": True, "nll": False}
"""Whether a larger value of a validation metric is a better one."""


@dataclass(frozen=True)
class Cost:
    """What a run took, all of it infinite where the goal was missed.

    Seconds of the training clock, optimizer steps, and evaluations of the vector field in training:
    forward, backward and curvature.
    """

    seconds: float
    steps: float
    nfe: float


MISSED = Cost(math.inf, math.inf, math.inf)


def best(rows: Rows, metric: str, *, greater: bool) -> float:
    """Return the best validation value of a run; the worst possible one where there is none.

    Args:
        rows: lines of ``metrics.jsonl``.
        metric: name of the metric, without ``val/``.
        greater: whether a larger value is a better one.
    """
    values = [row[f"val/{metric}"] for row in rows if f"val/{metric}" in row]
    return max(values, default=-math.inf) if greater else min(values, default=math.inf)


def cost_to(rows: Rows, metric: str, goal: float, *, greater: bool) -> Cost:
    """Return what it took to the first validation that is as good as the goal; see :func:`best`."""
    seen: list[Mapping[str, Any]] = []
    for row in rows:
        seen.append(row)
        value = row.get(f"val/{metric}")
        if value is not None and (value >= goal if greater else value <= goal):
            return total_cost(seen)
    return MISSED


def total_cost(rows: Sequence[Mapping[str, Any]]) -> Cost:
    """Return what lines of ``metrics.jsonl`` took, from the first step to the last line."""
    evaluations, counted = 0.0, 0
    for row in rows:
        if "train/loss" in row:  # such a line holds means over the steps since the one before
            evaluations += (row["step"] - counted) * sum(float(row.get(key, 0.0)) for key in NFE)
            counted = row["step"]
    last = rows[-1] if rows else {"time/train_s": 0.0, "step": 0}
    return Cost(float(last["time/train_s"]), float(last["step"]), round(evaluations, 6))


def time_to(rows: Rows, metric: str, goal: float, *, greater: bool) -> float:
    """Return the training seconds to a goal; see :func:`cost_to`."""
    return cost_to(rows, metric, goal, greater=greater).seconds


def target_of(runs: Mapping[str, Sequence[Summary]], metric: str) -> tuple[float, float]:
    """Return the target, and the value at which a run may stop.

    The target is the median, over optimizers and seeds, of a run's best validation value. A run
    stops at that value rounded, which may be a hair harder to reach than the target, never easier.

    Args:
        runs: finished runs by optimizer.
        metric: validation metric, a key of :data:`GREATER`.

    Raises:
        RecordError: not one of the runs was validated with a finite value.
    """
    greater = GREATER[metric]
    values = [best(r.metrics, metric, greater=greater) for g in runs.values() for r in g]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        raise RecordError("no run can set the target: all of them diverged at once")
    exact = statistics.median(finite)
    stop = round(exact, 4)
    return (min(exact, stop) if greater else max(exact, stop)), stop
