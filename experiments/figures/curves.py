"""Curves over the training clock: from run records to a long table, and from it to median and band.

Conventions: times are seconds of the training clock (``time/train_s``); NaN in a column means "not
measured at this step"; function evaluations (``nfe``) are added up from the first step. A run that
diverged ends with one row whose ``train_loss`` is infinite, so that the table alone still tells it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.base.errors import RecordError
from experiments.publish.tables import Cells, read_csv, to_csv
from experiments.run.records import FINAL_STATES, Summary
from experiments.studies.goals import NFE

COLUMNS = (
    "dataset",
    "optimizer",
    "seed",
    "step",
    "time_s",
    "train_loss",
    "val_loss",
    "val_metric",
    "nfe",
)
"""Header of ``data.csv``; older files lack the last column."""

VALUES = ("train_loss", "val_loss", "val_metric", "nfe")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One run over its steps; all arrays have the same length.

    Attributes:
        dataset: data set name.
        optimizer: optimizer name.
        seed: seed of the run.
        step: step numbers, increasing.
        time_s: seconds of the training clock, not decreasing.
        train_loss: loss of the step's batch.
        val_loss: validation loss, NaN between evaluations.
        val_metric: validation accuracy (fraction) or NLL, NaN between evaluations.
        nfe: evaluations of the vector field so far in training: forward, backward and curvature.
    """

    dataset: str
    optimizer: str
    seed: int
    step: Array
    time_s: Array
    train_loss: Array
    val_loss: Array
    val_metric: Array
    nfe: Array

    @property
    def diverged(self) -> bool:
        """Whether the run ended without a finite loss."""
        return bool(self.train_loss.size) and math.isinf(self.train_loss[-1])

    def series(self, column: str, over: str = "time_s") -> tuple[Array, Array]:
        """Return places on an axis and values, where both were measured and are finite.

        Args:
            column: one of the values.
            over: the axis: ``"time_s"``, ``"step"`` or ``"nfe"``.
        """
        values: Array = getattr(self, column)
        axis: Array = getattr(self, over)
        kept = np.isfinite(values) & np.isfinite(axis)
        return axis[kept], values[kept]


def curve_from_run(run: Summary, metric: str) -> Curve:
    """Turn a finished record into a curve; lines of the same step are merged.

    Args:
        run: its record.
        metric: validation metric, for example ``"accuracy"`` (read from ``val/accuracy``).

    Raises:
        RecordError: the run did not finish, or measured nothing.
    """
    if run.state not in FINAL_STATES:
        reason = run.status.get("error")
        raise RecordError(f"{run.name} is {run.state}" + (f": {reason}" if reason else ""))
    keys = ("train/loss", "val/loss", f"val/{metric}")
    merged: dict[int, list[float]] = {}
    evaluations, counted = 0.0, 0
    for row in run.metrics:
        if not any(key in row for key in keys):
            continue
        step = int(row["step"])
        if "train/loss" in row:  # such a line holds means over the steps since the one before
            evaluations += (step - counted) * sum(float(row.get(key, 0.0)) for key in NFE)
            counted = step
        cells = merged.setdefault(step, [float(row["time/train_s"]), *[math.nan] * 3, 0.0])
        cells[-1] = evaluations
        for place, key in enumerate(keys, start=1):
            if row.get(key) is not None:
                cells[place] = float(row[key])
    if not merged:
        raise RecordError(f"{run.name} has no measurements in {run.folder}/metrics.jsonl")
    steps = sorted(merged)
    table = np.array([merged[step] for step in steps])
    numbers = np.array(steps, dtype=np.float64)
    if run.state == "diverged":
        numbers, table = _close_diverged(numbers, table)
    return Curve(run.dataset, run.optimizer, run.seed, numbers, *table.T)


def _close_diverged(step: Array, table: Array) -> tuple[Array, Array]:
    """End a diverged run with an infinite training loss, whatever its last line said."""
    if math.isfinite(table[-1, 1]):
        step = np.append(step, step[-1] + 1)
        table = np.vstack([table, [table[-1, 0], math.inf, math.nan, math.nan, table[-1, 4]]])
    else:
        table[-1, 1] = math.inf
    return step, table


def csv_of(curves: Iterable[Curve]) -> str:
    """Return curves as a long table, one row a step; an empty cell means "not measured"."""
    return to_csv(COLUMNS, (line for curve in curves for line in _lines(curve)))


def _lines(c: Curve) -> Iterator[Sequence[object]]:
    for i in range(c.step.size):
        values = (_cell(getattr(c, column)[i]) for column in VALUES)
        yield (c.dataset, c.optimizer, c.seed, int(c.step[i]), f"{c.time_s[i]:.4f}", *values)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def read_curves(path: Path) -> list[Curve]:
    """Read what :func:`csv_of` wrote.

    Raises:
        RecordError: the file is missing, has another header, or holds something that is no number.
    """
    groups: dict[tuple[str, str, int], list[list[float]]] = {}
    for key, numbers in read_csv(path, COLUMNS[:-1], _point, optional=COLUMNS[-1:]):
        groups.setdefault(key, []).append(numbers)
    return [Curve(*key, *np.array(rows).T) for key, rows in groups.items()]


def _point(cells: Cells) -> tuple[tuple[str, str, int], list[float]]:
    row = list(cells.values())
    numbers = [float(cell) if cell else math.nan for cell in row[3:]]
    return (row[0], row[1], int(row[2])), numbers


def running_mean(values: Sequence[float] | Array, window: int) -> Array:
    """Return the mean of each value and the ``window - 1`` before it (fewer at the start)."""
    if window < 1:
        raise ValueError(f"window is {window}, expected at least 1")
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    end = np.arange(1, total.size)
    start = np.maximum(end - window, 0)
    return np.asarray((total[end] - total[start]) / (end - start), dtype=np.float64)


@dataclass(frozen=True)
class Band:
    """Median and range over seeds on one time grid; arrays of equal length."""

    time_s: Array
    median: Array
    low: Array
    high: Array


def band(series: Sequence[tuple[Array, Array]], points: int = 200) -> Band:
    """Interpolate one series a seed on a common time grid and return median, minimum and maximum.

    The grid spans the times that every seed has reached, from the latest first measurement to the
    earliest last one, so that each point is over all seeds. Interpolation is linear in time.

    Args:
        series: times and values of each seed.
        points: points of the grid.

    Raises:
        ValueError: there is no series, or the seeds have no time in common.
    """
    if not series or any(times.size == 0 for times, _ in series):
        raise ValueError("a band needs at least one measurement a seed")
    start = max(float(times[0]) for times, _ in series)
    end = min(float(times[-1]) for times, _ in series)
    if end < start:
        raise ValueError(f"the seeds have no time in common: {start:g} s to {end:g} s")
    grid = np.linspace(start, end, points)
    values = np.stack([np.interp(grid, times, values) for times, values in series])
    return Band(grid, np.median(values, axis=0), values.min(axis=0), values.max(axis=0))


def by_optimizer(curves: Iterable[Curve], dataset: str) -> dict[str, list[Curve]]:
    """Return the curves of one data set, grouped by optimizer."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve.dataset == dataset:
            groups.setdefault(curve.optimizer, []).append(curve)
    return groups


def counts(curves: Iterable[Curve]) -> dict[str, tuple[int, int]]:
    """Return how many runs of each optimizer diverged, as ``{optimizer: (diverged, all)}``."""
    found: dict[str, tuple[int, int]] = {}
    for curve in curves:
        lost, total = found.get(curve.optimizer, (0, 0))
        found[curve.optimizer] = (lost + curve.diverged, total + 1)
    return found
