"""t1 and validation accuracy along a run: from records to the table of figure 9, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.base.errors import RecordError
from experiments.figures.curves import Array
from experiments.figures.horizon_runs import HorizonRun
from experiments.publish.tables import Cells, read_csv, to_csv

COLUMNS = (
    "dataset",
    "mode",
    "start",
    "seed",
    "state",
    "step",
    "time_s",
    "t1",
    "val_accuracy",
)
"""Header of ``data.csv``; an empty accuracy was not measured at that step."""


@dataclass(frozen=True)
class Trace:
    """One run; the arrays have the same length.

    Attributes:
        dataset: data set name.
        mode: how t1 was trained: fixed, baseline or feedback.
        start: t1 before training.
        seed: seed of the run.
        state: done or diverged.
        step: steps, increasing: those at which t1 changed or accuracy was measured, and the last.
        time_s: seconds of the training clock.
        t1: integration time after the step.
        val_accuracy: validation accuracy (fraction), NaN where not measured.
    """

    dataset: str
    mode: str
    start: float
    seed: int
    state: str
    step: Array
    time_s: Array
    t1: Array
    val_accuracy: Array

    @property
    def diverged(self) -> bool:
        """Whether the run ended without a finite loss, or its ODE could not be solved."""
        return self.state == "diverged"

    def t1_at(self, steps: Array) -> Array:
        """Return t1 after each of ``steps``: a step function that changes at updates."""
        return self.t1[np.searchsorted(self.step, steps, side="right") - 1]

    def accuracy(self) -> tuple[Array, Array]:
        """Return times and accuracies where it was measured."""
        kept = np.isfinite(self.val_accuracy)
        return self.time_s[kept], self.val_accuracy[kept]


def trace_of(run: HorizonRun) -> Trace:
    """Turn a record into a trace; lines of the same step are merged.

    Raises:
        RecordError: the run measured nothing.
    """
    rows: dict[int, list[float]] = {}
    for row in run.summary.metrics:
        accuracy = float(row.get("val/accuracy", math.nan))
        line = [float(row["time/train_s"]), run.t1(row), accuracy]
        if (earlier := rows.get(int(row["step"]))) is not None and math.isnan(accuracy):
            line[2] = earlier[2]
        rows[int(row["step"])] = line
    if not rows:
        raise RecordError(f"{run.summary.name} has no measurements in {run.summary.folder}")
    steps = sorted(rows)
    table = np.array([[step, *rows[step]] for step in steps], dtype=np.float64)
    changed = np.diff(table[:, 2], prepend=math.nan) != 0  # true for the first, NaN differs
    kept = changed | np.isfinite(table[:, 3])
    kept[-1] = True
    summary = run.summary
    own = (summary.dataset, run.mode, run.start, run.seed, summary.state)
    return Trace(*own, *table[kept].T)


def csv_of(traces: Iterable[Trace]) -> str:
    """Return traces as one long table; an empty cell means "not measured"."""
    return to_csv(COLUMNS, (line for trace in traces for line in _lines(trace)))


def _lines(trace: Trace) -> Iterator[Sequence[object]]:
    own = (trace.dataset, trace.mode, f"{trace.start:g}", trace.seed, trace.state)
    columns = (trace.step, trace.time_s, trace.t1, trace.val_accuracy)
    for step, time_s, t1, accuracy in zip(*columns, strict=True):
        measured = "" if math.isnan(accuracy) else f"{accuracy:.6g}"
        yield (*own, int(step), f"{time_s:.4f}", f"{t1:.6g}", measured)


def read_traces(path: Path) -> list[Trace]:
    """Read what :func:`csv_of` wrote.

    Raises:
        RecordError: the file is missing, has another header, or holds something that is no number.
    """
    groups: dict[tuple[str, str, float, int, str], list[list[float]]] = {}
    for key, numbers in read_csv(path, COLUMNS, _point):
        groups.setdefault(key, []).append(numbers)
    return [Trace(*key, *np.array(rows).T) for key, rows in groups.items()]


def _point(cells: Cells) -> tuple[tuple[str, str, float, int, str], list[float]]:
    row = list(cells.values())
    key = (row[0], row[1], float(row[2]), int(row[3]), row[4])
    return key, [float(cell) if cell else math.nan for cell in row[5:]]
