"""What the analysis keeps of a run: one line of ``runs.csv``, from which everything is drawn.

A run that missed its target has infinite seconds, steps and evaluations to it; one that diverged
has missed, whatever it reached before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.base.errors import RecordError
from experiments.base.files import write_whole
from experiments.publish.provenance import processor
from experiments.publish.tables import csv_of, read_table
from experiments.run.records import DIVERGED, FINAL_STATES, summarise
from experiments.studies.comparison.planning import FRESH, Trial
from experiments.studies.comparison.settings import Workload
from experiments.studies.goals import MISSED, best, cost_to, total_cost

RUNS = "runs.csv"

TYPES: dict[str, Any] = {
    "dataset": str,
    "optimizer": str,  # under test
    "role": str,  # search or fresh
    "study": int,  # from 0; of a fresh run, that of the setting's trial
    "trial": int,  # in its study, from 0; likewise
    "seed": int,
    "settings": str,  # what the search chose, below optimizer; JSON in the file, here a dict
    "border": str,  # settings on the border of their space, in words; likewise a tuple
    "hash": str,  # of the configuration, when the run was made
    "state": str,  # done or diverged
    "metric": str,  # of validation
    "target": float,  # its value to reach
    "budget": float,  # seconds of the training clock
    "seconds": float,  # of training to the target
    "steps": float,  # of the optimizer to the target
    "nfe": float,  # evaluations of the vector field in training to the target
    "best": float,  # validation value
    "last": float,  # validation value
    "total_seconds": float,  # of training in all
    "total_steps": float,
    "total_nfe": float,
    "test": float,  # value at the end of training; NaN where the run diverged
    "jobs": int,  # runs at a time
    "device": str,
    "threads": "Int64",
    "processor": str,
    "commit": str,  # of the code that trained it
    "dirty": str,  # true or false: whether the code differed from the commit
    "torch": str,  # version
    "started": str,  # when it was first started
    "wall_s": float,  # seconds in all
}
"""Columns of the table of runs and their types."""


def row_of(trial: Trial, workload: Workload, target: float, jobs: int) -> dict[str, Any]:
    """Return what a finished run says, a value for each of :data:`TYPES`.

    Raises:
        RecordError: it is not finished, or was never validated.
    """
    run = summarise(trial.run.folder)
    if run.state not in FINAL_STATES:
        raise RecordError(f"{trial.run.name} is {run.state}")
    metric, greater, status = workload.metric, workload.greater, run.status
    values = [float(row[f"val/{metric}"]) for row in run.metrics if f"val/{metric}" in row]
    lost = run.state == DIVERGED
    if not values and not lost:
        raise RecordError(f"{trial.run.name} was never validated")
    cost = MISSED if lost else cost_to(run.metrics, metric, target, greater=greater)
    total = total_cost(run.metrics)
    tests = [float(row[f"test/{metric}"]) for row in run.metrics if "test/loss" in row]
    dirty = status.get("git_dirty")
    return {
        "dataset": workload.dataset,
        "optimizer": trial.optimizer,
        "role": trial.role,
        "study": trial.study,
        "trial": trial.trial,
        "seed": run.seed,
        "settings": dict(trial.settings),
        "border": trial.border,
        "hash": run.digest,
        "state": run.state,
        "metric": metric,
        "target": target,
        "budget": workload.seconds,
        **asdict(cost),
        "best": best(run.metrics, metric, greater=greater),
        "last": values[-1] if values else (-math.inf if greater else math.inf),
        **{f"total_{name}": value for name, value in asdict(total).items()},
        "test": tests[-1] if tests and not lost else math.nan,
        "jobs": jobs,
        "device": str(status.get("device")),
        "threads": status.get("threads"),
        "processor": processor(),
        "commit": status.get("git_commit") or "",
        "dirty": "" if dirty is None else json.dumps(dirty),
        "torch": (status.get("versions") or {}).get("torch") or "",
        "started": status.get("started_at") or "",
        "wall_s": status.get("wall_s"),
    }


def table_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a table."""
    table = pd.DataFrame(list(rows), columns=list(TYPES))
    return table.astype({name: kind for name, kind in TYPES.items() if kind is not str})


def write_rows(path: Path, table: pd.DataFrame) -> None:
    """Write ``runs.csv``; floats to six digits."""
    packed = {name: table[name].map(json.dumps) for name in ("settings", "border")}
    write_whole(path, csv_of(table.assign(**packed), digits=6))


def read_rows(path: Path) -> pd.DataFrame:
    """Read what :func:`write_rows` wrote.

    Raises:
        RecordError: the file is missing, empty or damaged.
    """
    table = read_table(path, TYPES)
    if table.empty:
        raise RecordError(f"{path} has no runs")
    try:
        settings = table["settings"].map(json.loads)
        border = table["border"].map(lambda text: tuple(json.loads(text)))
    except ValueError as error:
        raise RecordError(f"{path} is damaged: {error}") from None
    return table.assign(settings=settings, border=border)


def names_of(table: pd.DataFrame, column: str) -> list[str]:
    """Return what a column holds, each once, in the order of the rows."""
    return [str(name) for name in table[column].unique()]


def fresh_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return the best setting on fresh seeds, a row for each data set and optimizer.

    Returns:
        Indexed by data set and optimizer: ``seconds``, ``steps`` and ``nfe`` to the target (medians
        over seeds; a miss is infinite and stays), how many ``seeds`` ``reached`` it and how many
        ``diverged``, ``mean`` and sample ``deviation`` of the test values (NaN where there are too
        few), and ``metric``, ``settings`` and ``border``.
    """
    own = table[table["role"] == FRESH]
    groups = own.groupby(["dataset", "optimizer"], sort=False)
    found = groups[["metric", "settings", "border"]].first()
    found[["seconds", "steps", "nfe"]] = groups[["seconds", "steps", "nfe"]].median()
    found["seeds"] = groups.size()
    found["reached"] = groups["seconds"].agg(lambda seconds: seconds.map(math.isfinite).sum())
    found["diverged"] = found["seeds"] - groups["test"].count()
    found["mean"], found["deviation"] = groups["test"].mean(), groups["test"].std()
    return found


def mean_and_deviation(fresh: pd.Series, *, short: bool = False) -> str:
    """Return ``mean ± deviation`` of the test values: per cent, or nats.

    Args:
        fresh: a row of :func:`fresh_of`.
        short: leave out the unit.
    """
    if math.isnan(fresh["mean"]):
        return "diverged"
    scale, digits, unit = (100.0, 1, " %") if fresh["metric"] == "accuracy" else (1.0, 3, " nats")
    text = f"{scale * fresh['mean']:.{digits}f}"
    if not math.isnan(fresh["deviation"]):
        text += f" ± {scale * fresh['deviation']:.{digits}f}"
    lost = fresh["diverged"]
    return text + ("" if short else unit) + (f", {lost} diverged" if lost else "")


def settings_text(fresh: pd.Series) -> str:
    """Return settings in words, such as ``lr 0.01, eps 0.05``; (!) marks one on the border."""
    words = (
        f"{key} {value:g}" if isinstance(value, int | float) else f"{key} {value}"
        for key, value in fresh["settings"].items()
    )
    return ", ".join(words) + (" (!)" if fresh["border"] else "")
