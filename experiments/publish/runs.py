"""The table of runs that figures, goals, scoring and search read: one row a step of a run.

Times are seconds of the training clock (``time/train_s``), ``cpu_s`` CPU seconds of the same; runs
before those were kept have none. NaN means "not measured at this step". Function evaluations
(``nfe``) are added up from the first step. A run that diverged ends with a row whose ``train_loss``
is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.base.errors import RecordError
from experiments.publish.tables import csv_of, read_table
from experiments.run.records import DIVERGED, DONE, FINAL_STATES, Summary
from experiments.tasks import METRICS

RUN = ("hash", "dataset", "optimizer", "seed", "state")
"""Columns that say which run a row belongs to."""

VALUES = ("train_loss", "val_loss", "val_metric", "nfe", "cpu_s")

COLUMNS = (*RUN, "step", "time_s", *VALUES)

TYPES = {
    **{"dataset": str, "optimizer": str, "seed": int, "step": int, "time_s": float},
    **dict.fromkeys(VALUES, float),
}
"""Columns of ``data.csv`` and their types; older files lack the last ones."""

NFE = ("nfe/forward", "nfe/backward", "nfe/curvature")
"""Evaluations of the vector field in a line of ``metrics.jsonl``."""

Array = NDArray[np.float64]
Series = tuple[Array, Array]
"""Places on an axis, and values there."""


def runs_table(summaries: Iterable[Summary], metric: str | None = None) -> pd.DataFrame:
    """Return the rows of finished runs, in the order of the records; see :data:`COLUMNS`.

    Args:
        summaries: run records.
        metric: validation metric, without ``val/``; None: that of each run's task.

    Raises:
        RecordError: a run did not finish, or measured nothing.
    """
    tables = [_table_of(run, metric or METRICS[run.task]) for run in summaries]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))


def _table_of(run: Summary, metric: str) -> pd.DataFrame:
    if run.state not in FINAL_STATES:
        reason = run.status.get("error")
        raise RecordError(f"{run.name} is {run.state}" + (f": {reason}" if reason else ""))
    names = {"train/loss": "train_loss", "val/loss": "val_loss", f"val/{metric}": "val_metric"}
    times = {"time/train_s": "time_s", "time/train_cpu_s": "cpu_s"}
    rows = pd.DataFrame(list(run.metrics)).reindex(columns=["step", *times, *names, *NFE])
    rows = rows.dropna(how="all", subset=list(names))
    if rows.empty:
        raise RecordError(f"{run.name} has no measurements in {run.folder}/metrics.jsonl")
    # A line with a training loss holds means over the steps since the line before.
    training = rows[rows["train/loss"].notna()]
    evaluations = training["step"].diff().fillna(training["step"]) * training[list(NFE)].sum(axis=1)
    rows["nfe"] = evaluations.cumsum().reindex(rows.index).ffill().fillna(0.0)
    rows = rows.rename(columns={**names, **times})
    merged = rows.groupby("step").agg({"time_s": "first", **dict.fromkeys(VALUES, "last")})
    table = merged.reset_index().astype(dict.fromkeys(("time_s", *VALUES), float))
    if run.state == DIVERGED:
        table = _close_diverged(table)
    own = {"hash": run.digest, "dataset": run.dataset, "optimizer": run.optimizer}
    return table.assign(**own, seed=run.seed, state=run.state)[list(COLUMNS)]


def _close_diverged(table: pd.DataFrame) -> pd.DataFrame:
    """End a diverged run with an infinite training loss, whatever its last line said."""
    last = table.iloc[-1]
    if math.isfinite(last["train_loss"]):
        closing = {"step": int(last["step"]) + 1, **last[["time_s", "nfe", "cpu_s"]].to_dict()}
        table = pd.concat([table, pd.DataFrame([closing])], ignore_index=True)
    table.loc[table.index[-1], "train_loss"] = math.inf
    return table


def csv_of_runs(table: pd.DataFrame) -> str:
    """Return a table of runs as ``data.csv``; an empty cell means "not measured".

    Without any CPU seconds there is no column of them.
    """
    times = table["time_s"].map("{:.4f}".format)
    columns = list(TYPES)[: -1 if table["cpu_s"].isna().all() else None]
    return csv_of(table.assign(time_s=times)[columns], digits=6)


def read_runs(path: Path) -> pd.DataFrame:
    """Read what :func:`csv_of_runs` returned; ``hash`` is empty, ``state`` is done or diverged."""
    table = read_table(path, TYPES, optional=("nfe", "cpu_s")).assign(hash="", state=DONE)
    for _, run in each_run(table):
        if diverged(run):
            table.loc[run.index, "state"] = DIVERGED
    return table[list(COLUMNS)]


def each_run(table: pd.DataFrame) -> Iterator[tuple[tuple[str, int], pd.DataFrame]]:
    """Yield optimizer, seed and rows of every run, in the order of the table."""
    for key, run in table.groupby(list(RUN), sort=False):
        yield (key[2], key[3]), run


def diverged(run: pd.DataFrame) -> bool:
    """Return whether a run ended without a finite loss."""
    return len(run) > 0 and math.isinf(run["train_loss"].iloc[-1])


def series(run: pd.DataFrame, column: str, over: str = "time_s") -> Series:
    """Return a run's places on the axis ``over`` and values of a column, where both are finite."""
    places, values = (run[name].to_numpy(dtype=np.float64) for name in (over, column))
    kept = np.isfinite(values) & np.isfinite(places)
    return places[kept], values[kept]


def thin(table: pd.DataFrame, points: int, window: int) -> pd.DataFrame:
    """Keep about ``points`` rows with a training loss of each run, evenly, and every evaluation.

    The training loss becomes a trailing running mean over ``window`` steps before rows are dropped.
    It is NaN in rows that are kept for their evaluation alone. The first and the last loss and the
    row that closes a diverged run stay.
    """
    if points < 2:
        raise ValueError(f"points is {points}, expected at least 2")
    kept = []
    for _, run in each_run(table):
        losses = run["train_loss"].to_numpy()
        loss = np.full_like(losses, np.nan)
        measured = np.flatnonzero(np.isfinite(losses))
        if measured.size:
            chosen = np.unique(np.linspace(0, measured.size - 1, points).round().astype(np.int64))
            loss[measured[chosen]] = running_mean(losses[measured], window)[chosen]
        if diverged(run):
            loss[-1] = np.inf
        thinned = run.assign(train_loss=loss)
        some = thinned["train_loss"].notna()
        for column in ("val_loss", "val_metric"):
            some |= np.isfinite(thinned[column])
        kept.append(thinned[some])
    return pd.concat(kept, ignore_index=True) if kept else table


def running_mean(values: Sequence[float] | Array, window: int) -> Array:
    """Return the mean of each value and the ``window - 1`` before it (fewer at the start)."""
    if window < 1:
        raise ValueError(f"window is {window}, expected at least 1")
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    end = np.arange(1, total.size)
    start = np.maximum(end - window, 0)
    return np.asarray((total[end] - total[start]) / (end - start), dtype=np.float64)


def band(found: Sequence[Series], points: int = 200) -> tuple[Array, Array, Array, Array]:
    """Interpolate the series of all seeds on a common grid, linearly.

    Returns:
        The grid, which spans what every seed has reached; median, minimum and maximum there.
    """
    if not found or any(places.size == 0 for places, _ in found):
        raise ValueError("a band needs at least one measurement a seed")
    start = max(float(places[0]) for places, _ in found)
    end = min(float(places[-1]) for places, _ in found)
    if end < start:
        raise ValueError(f"the seeds have no time in common: {start:g} s to {end:g} s")
    grid = np.linspace(start, end, points)
    values = np.stack([np.interp(grid, places, own) for places, own in found])
    return grid, np.median(values, axis=0), values.min(axis=0), values.max(axis=0)
