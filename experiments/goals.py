"""Training time to a goal: the score of every comparison that is about speed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Rows = Iterable[Mapping[str, Any]]


def best(rows: Rows, metric: str, *, greater: bool) -> float:
    """Return the best validation value of a run.

    Args:
        rows: lines of ``metrics.jsonl``.
        metric: name of the metric, without ``val/``.
        greater: whether a larger value is a better one.

    Returns:
        The value, or the worst possible one where the run was never validated.
    """
    values = [row[f"val/{metric}"] for row in rows if f"val/{metric}" in row]
    worst = -math.inf if greater else math.inf
    return max(values, default=worst) if greater else min(values, default=worst)


def reaches(value: float, goal: float, *, greater: bool) -> bool:
    """Return whether a value is as good as the goal."""
    return value >= goal if greater else value <= goal


def time_to(rows: Rows, metric: str, goal: float, *, greater: bool) -> float:
    """Return the training seconds at the first validation that is as good as the goal.

    Args:
        rows: lines of ``metrics.jsonl`` in the order of writing.
        metric: name of the metric, without ``val/``.
        goal: the value to reach.
        greater: whether a larger value is a better one.

    Returns:
        Seconds on the training clock, infinite where the goal is never reached.
    """
    for row in rows:
        if f"val/{metric}" in row and reaches(row[f"val/{metric}"], goal, greater=greater):
            return float(row["time/train_s"])
    return math.inf
