"""The best setting of an optimizer on a data set, among all trials of all of its studies.

From the description of a comparison to its results: targets, search, fresh seeds, files.

Everything is a run record, so a comparison that was stopped, however it was, goes on where it was.
What the analysis needs of the runs goes into ``runs.csv``; all other files are drawn from it alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.base.errors import ConfigError, RecordError
from experiments.base.files import write_whole
from experiments.run.config import places
from experiments.run.records import DIVERGED
from experiments.studies.comparison.drawing import RUNS
from experiments.studies.comparison.planning import Trial, fresh_trials, search_trials, target_runs
from experiments.studies.comparison.rows import Row, csv_of, row_of
from experiments.studies.comparison.settings import FOLDER, Protocol, Workload, load
from experiments.studies.comparison.targets import Target, load_targets, make_targets
from experiments.studies.execute import PlannedRun, Say, available, interleave, train_all
from experiments.studies.goals import GREATER


def best_trial(rows: Sequence[Row]) -> Row:
    """Return the trial with the best setting.

    The fastest to the target; of equal ones, and so of all where none reached it, the one with the
    best last validation value (a run that diverged has the worst); of these the first.

    Args:
        rows: the search trials of one optimizer on one data set.

    Raises:
        RecordError: there is none.
    """
    if not rows:
        raise RecordError("there are no trials to choose from")
    ordered = sorted(rows, key=lambda row: (row.study, row.trial))
    return min(ordered, key=lambda row: (row.seconds, _badness(row)))


def _badness(row: Row) -> float:
    """Return a number that is lower for a better last validation value."""
    if row.state == DIVERGED:
        return math.inf
    return -row.last if GREATER[row.metric] else row.last


@dataclass(frozen=True)
class Request:
    """What to compare, and where everything lies.

    Attributes:
        budget: name of the description, ``small`` or ``full``.
        datasets: data sets of it; empty means all.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        results_dir: where results go: ``protocol/`` below it, or ``protocol-<budget>/``.
        configs: the folder with the descriptions.
        jobs: runs at a time.
    """

    budget: str = "small"
    datasets: tuple[str, ...] = ()
    data_dir: Path = Path("data")
    output_dir: Path = Path("outputs")
    results_dir: Path = Path("results")
    configs: Path = FOLDER
    jobs: int = 1

    def __post_init__(self) -> None:
        """Refuse a number of jobs that is none.

        Raises:
            ConfigError: it is below 1.
        """
        if self.jobs < 1:
            raise ConfigError(f"--jobs must be at least 1, got {self.jobs}")

    @property
    def folder(self) -> Path:
        """Where the results go."""
        suffix = "" if self.budget == "small" else f"-{self.budget}"
        return self.results_dir / f"protocol{suffix}"

    @property
    def command(self) -> str:
        """The command that makes the comparison, with default places."""
        names = "".join(f" {name}" for name in self.datasets)
        return f"python scripts/protocol.py run{names} --budget {self.budget} --jobs {self.jobs}"

    @property
    def where(self) -> tuple[str, str]:
        """The overrides that say where data and records lie."""
        return places(self.data_dir, self.output_dir)


def set_targets(request: Request, say: Say, train: Sequence[str] | None = None) -> Path:
    """Train Adam and SGD as tuned and write ``targets.yaml``; return its path.

    Raises:
        ConfigError: the description is wrong.
        DataError: none of the data sets is there.
        RecordError: a run failed twice.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    protocol = load(request.budget, request.configs)
    setters = _present(request, protocol, say)
    return make_targets(protocol, setters, jobs=request.jobs, say=say, train=train)


def compare(request: Request, say: Say, train: Sequence[str] | None = None) -> list[Row]:
    """Train what is missing, write ``runs.csv`` and return its rows.

    Raises:
        ConfigError: the description is wrong, or there is no target or one of other settings.
        DataError: none of the data sets is there.
        RecordError: a run failed twice.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    protocol = load(request.budget, request.configs)
    setters = _present(request, protocol, say)
    targets = load_targets(protocol, setters)
    workloads = [protocol.workloads[dataset] for dataset in setters]
    search = {
        w.dataset: search_trials(protocol, w, targets[w.dataset].stop_at, request.where)
        for w in workloads
    }
    trials = [trial for own in search.values() for trial in own]
    say(f"search: {len(trials)} trials")
    train_all([trial.run for trial in trials], request.jobs, say, train)
    rows = _rows(request, workloads, targets, search)
    fresh = {w.dataset: _fresh(request, protocol, w, rows) for w in workloads}
    again = [trial for own in fresh.values() for trial in own]
    say(f"fresh seeds: {len(again)} runs")
    train_all([trial.run for trial in again], request.jobs, say, train)
    rows += _rows(request, workloads, targets, fresh)
    request.folder.mkdir(parents=True, exist_ok=True)
    write_whole(request.folder / RUNS, csv_of(rows))
    return rows


def _present(
    request: Request, protocol: Protocol, say: Say
) -> dict[str, dict[str, list[PlannedRun]]]:
    """Return the runs that set the targets, of data sets that are there; the others are named."""
    setters = {
        workload.dataset: target_runs(protocol, workload, request.where)
        for workload in protocol.of(request.datasets)
    }
    flat = {name: [run for own in runs.values() for run in own] for name, runs in setters.items()}
    kept = available(flat, say)
    return {name: runs for name, runs in setters.items() if name in kept}


def _fresh(
    request: Request, protocol: Protocol, workload: Workload, rows: Sequence[Row]
) -> list[Trial]:
    """Return the repetitions of every optimizer's best setting, in the order of training."""
    groups = []
    for optimizer in protocol.optimizers:
        own = [r for r in rows if (r.dataset, r.optimizer) == (workload.dataset, optimizer)]
        best = best_trial(own)
        place = (best.study, best.trial)
        groups.append(fresh_trials(protocol, workload, optimizer, place, request.where))
    by_folder = {trial.run.folder: trial for trials in groups for trial in trials}
    order = interleave([[trial.run for trial in trials] for trials in groups])
    return [by_folder[run.folder] for run in order]


def _rows(
    request: Request,
    workloads: Sequence[Workload],
    targets: dict[str, Target],
    trials: dict[str, list[Trial]],
) -> list[Row]:
    """Return what finished runs say: by data set, optimizer, study, trial and seed."""
    rows = []
    for workload in workloads:
        own, target = trials[workload.dataset], targets[workload.dataset]
        found = [row_of(trial, workload, target, request.jobs) for trial in own]
        names = list(dict.fromkeys(row.optimizer for row in found))
        rows += sorted(found, key=lambda r: (names.index(r.optimizer), r.study, r.trial, r.seed))
    return rows
