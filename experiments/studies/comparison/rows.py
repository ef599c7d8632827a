"""What the analysis keeps of a run: one line of ``runs.csv``, from which everything is drawn.

A run that missed its target has infinite seconds, steps and evaluations to it; one that diverged
has missed, whatever it reached before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from experiments.base.errors import RecordError
from experiments.publish.provenance import processor
from experiments.publish.tables import Cells, read_csv, to_csv
from experiments.run.records import DIVERGED, FINAL_STATES, summarise
from experiments.studies.comparison.planning import Trial
from experiments.studies.comparison.settings import Workload
from experiments.studies.comparison.targets import Target
from experiments.studies.goals import MISSED, best, cost_to, total_cost


@dataclass(frozen=True)
class Row:
    """One run, scored.

    Attributes:
        dataset: data set name.
        optimizer: name of the optimizer under test.
        role: ``"search"`` or ``"fresh"``.
        study: number of the study, from 0; of a fresh run, that of the setting's trial.
        trial: number of the trial in the study; likewise.
        seed: seed of the run.
        settings: what the search chose, below ``optimizer``.
        border: settings on the border of their space, in words.
        hash: hash of the configuration.
        state: ``"done"`` or ``"diverged"``.
        metric: validation metric.
        target: its value to reach.
        budget: budget in seconds of the training clock.
        seconds: training seconds to the target.
        steps: optimizer steps to the target.
        nfe: evaluations of the vector field in training to the target.
        best: best validation value.
        last: last validation value.
        total_seconds: training seconds in all.
        total_steps: optimizer steps in all.
        total_nfe: evaluations of the vector field in training in all.
        test: test value at the end of training, or None where the run diverged.
        jobs: runs at a time.
        device: device of the run.
        threads: its CPU threads.
        processor: processor of the machine.
        commit: commit of the code that trained it.
        dirty: whether the code differed from the commit.
        torch: version of torch.
        started: when it was first started.
        wall_s: seconds in all.
    """

    dataset: str
    optimizer: str
    role: str
    study: int
    trial: int
    seed: int
    settings: dict[str, Any]
    border: tuple[str, ...]
    hash: str
    state: str
    metric: str
    target: float
    budget: float
    seconds: float
    steps: float
    nfe: float
    best: float
    last: float
    total_seconds: float
    total_steps: float
    total_nfe: float
    test: float | None
    jobs: int
    device: str
    threads: int | None
    processor: str
    commit: str | None
    dirty: bool | None
    torch: str | None
    started: str | None
    wall_s: float | None

    @property
    def name(self) -> str:
        """What messages call the run."""
        return f"{self.dataset} · {self.optimizer} · {self.role} · seed {self.seed}"


COLUMNS = tuple(field.name for field in fields(Row))


def row_of(trial: Trial, workload: Workload, target: Target, jobs: int) -> Row:
    """Return what a finished run says.

    Raises:
        RecordError: it is not finished, or was never validated.
    """
    run = summarise(trial.run.folder)
    if run.state not in FINAL_STATES:
        raise RecordError(f"{trial.run.name} is {run.state}")
    key, greater = f"val/{workload.metric}", workload.greater
    values = [float(row[key]) for row in run.metrics if key in row]
    if not values and run.state != DIVERGED:
        raise RecordError(f"{trial.run.name} was never validated")
    lost = run.state == DIVERGED
    cost = MISSED if lost else cost_to(run.metrics, workload.metric, target.value, greater=greater)
    total = total_cost(run.metrics)
    tests = [row[f"test/{workload.metric}"] for row in run.metrics if "test/loss" in row]
    status = run.status
    return Row(
        dataset=workload.dataset,
        optimizer=trial.optimizer,
        role=trial.role,
        study=trial.study,
        trial=trial.trial,
        seed=run.seed,
        settings=dict(trial.settings),
        border=trial.border,
        hash=run.digest,
        state=run.state,
        metric=workload.metric,
        target=target.value,
        budget=workload.seconds,
        **asdict(cost),
        best=best(run.metrics, workload.metric, greater=greater),
        last=values[-1] if values else (-math.inf if greater else math.inf),
        total_seconds=total.seconds,
        total_steps=total.steps,
        total_nfe=total.nfe,
        test=float(tests[-1]) if tests and not lost else None,
        jobs=jobs,
        device=str(status.get("device")),
        threads=status.get("threads"),
        processor=processor(),
        commit=status.get("git_commit"),
        dirty=status.get("git_dirty"),
        torch=(status.get("versions") or {}).get("torch"),
        started=status.get("started_at"),
        wall_s=status.get("wall_s"),
    )


def csv_of(rows: Sequence[Row]) -> str:
    """Return rows as the content of ``runs.csv``; floats to six digits, lists as JSON."""
    return to_csv(COLUMNS, ([_cell(getattr(row, name)) for name in COLUMNS] for row in rows))


def read_rows(path: Path) -> list[Row]:
    """Read what :func:`csv_of` returned.

    Raises:
        RecordError: the file is missing, empty or damaged.
    """
    rows = read_csv(path, COLUMNS, _row)
    if not rows:
        raise RecordError(f"{path} has no runs")
    return rows


def _cell(value: object) -> object:
    if isinstance(value, dict | tuple):
        return json.dumps(value)
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else value


_TEXT = {"dataset", "optimizer", "role", "hash", "state", "metric", "device", "processor"}

_WHOLE = {"study", "trial", "seed", "jobs"}

_MAYBE = {"commit", "dirty", "torch", "started", "threads", "wall_s", "test"}


def _row(cells: Cells) -> Row:
    """Parse the cells of a line."""
    values: dict[str, Any] = {}
    for name in COLUMNS:
        text = cells[name]
        if name in _MAYBE and text == "":
            values[name] = None
        elif name in _TEXT or name in ("commit", "torch", "started"):
            values[name] = str(text)
        elif name in _WHOLE or name == "threads":
            values[name] = int(text)
        elif name in ("settings", "dirty"):
            values[name] = json.loads(text)
        elif name == "border":
            values[name] = tuple(json.loads(text))
        else:
            values[name] = float(text)
    return Row(**values)
