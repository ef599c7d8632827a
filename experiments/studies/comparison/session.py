"""From the description of a comparison to ``runs.csv``: targets, search, fresh seeds.

Everything is a run record, and the trials are those of a study
(:mod:`experiments.studies.study`): a comparison that was stopped, however it was, goes on where it
was. All other files are drawn from ``runs.csv`` alone.

The targets are set once, by Adam and SGD and not by the methods under test, and frozen in
``targets.yaml``. The file says which records they came from: after a change of network, solver,
budget or tuned settings they are refused as those of other settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from experiments.base.checks import is_number
from experiments.base.environment import git_state
from experiments.base.errors import ConfigError
from experiments.base.files import write_whole
from experiments.publish.names import place_of
from experiments.publish.provenance import devices, processor
from experiments.run.records import Summary, summarise
from experiments.studies.comparison.planning import (
    Trial,
    fresh_trials,
    search_trials,
    target_runs,
)
from experiments.studies.comparison.rows import RUNS, row_of, table_of, write_rows
from experiments.studies.comparison.scoring import best_trial
from experiments.studies.comparison.settings import FOLDER, Protocol, Workload, load
from experiments.studies.execute import PlannedRun, Say, available, execute, interleave
from experiments.studies.goals import best, target_of, time_to
from experiments.studies.study import Point, Workplace, train_points

TARGETS = "targets.yaml"

COMMAND = "python scripts/compare.py targets"

HEADER = f"""\
# Written by `{COMMAND}`; not to be edited. A target is the median, over
# optimizers and seeds, of a run's best validation value; trials end at `stop_at`, the same rounded.
"""

Setters = Mapping[str, Mapping[str, Sequence[PlannedRun]]]
"""The runs that set the targets, by data set and optimizer."""


@dataclass(frozen=True)
class Request(Workplace):
    """What to compare, and where everything lies."""

    budget: str = "small"  # name of the description, small or full
    datasets: tuple[str, ...] = ()  # of the description; empty means all
    results_dir: Path = Path("results")
    configs: Path = FOLDER  # of the descriptions

    def __post_init__(self) -> None:
        """Refuse a number of jobs below 1."""
        if self.jobs < 1:
            raise ConfigError(f"--jobs must be at least 1, got {self.jobs}")

    @property
    def folder(self) -> Path:
        """Where the results go; those of some data sets do not replace those of all."""
        suffix = "" if self.budget == "small" else f"-{self.budget}"
        return place_of(self.results_dir, f"protocol{suffix}", self._part)

    @property
    def _part(self) -> list[str]:
        """The data sets, where they are not all of the description."""
        whole = load(self.budget, self.configs).workloads if self.datasets else {}
        return [] if set(self.datasets) == set(whole) else sorted(self.datasets)

    @property
    def command(self) -> str:
        """The command that makes the comparison, with default places."""
        names = "".join(f" {name}" for name in self._part)
        return f"python scripts/compare.py run{names} --budget {self.budget} --jobs {self.jobs}"


def compare(request: Request, say: Say) -> Request:
    """Train what is missing, write ``runs.csv`` and return the request for what is there.

    Raises:
        ConfigError: the description is wrong, or there is no target or one of other settings.
        DataError: none of the data sets is there.
        RecordError: a run failed twice.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    protocol = load(request.budget, request.configs)
    setters = _present(request, protocol, say)
    request = replace(
        request, datasets=tuple(setters) if len(setters) < len(protocol.workloads) else ()
    )
    targets = load_targets(protocol, setters)
    workloads = [protocol.workloads[dataset] for dataset in setters]
    search = [
        (w, search_trials(protocol, w, targets[w.dataset].stop_at, request.where))
        for w in workloads
    ]
    rows = _train(request, "search", search, targets, say)
    fresh = []
    for workload in workloads:
        groups = []
        for optimizer in protocol.optimizers:
            own = (rows["dataset"] == workload.dataset) & (rows["optimizer"] == optimizer)
            chosen = best_trial(rows[own])
            place = (int(chosen["study"]), int(chosen["trial"]))
            groups.append(fresh_trials(protocol, workload, optimizer, place, request.where))
        fresh.append((workload, interleave(groups)))
    rows = pd.concat([rows, _train(request, "fresh seeds", fresh, targets, say)], ignore_index=True)
    request.folder.mkdir(parents=True, exist_ok=True)
    write_rows(request.folder / RUNS, rows)
    return request


def _train(
    request: Request,
    part: str,
    trials: Sequence[tuple[Workload, Sequence[Trial]]],
    targets: Mapping[str, Target],
    say: Say,
) -> pd.DataFrame:
    """Work off trials as a study and return their rows, by data set, optimizer, study and trial."""
    points: list[Point] = []
    workloads: dict[Path, Workload] = {}
    for workload, own in trials:
        points += [trial.point(workload.dataset) for trial in own]
        workloads |= {trial.run.folder: workload for trial in own}
    say(f"{part}: {len(points)} runs")

    def seconds(runs: Sequence[Summary]) -> float:
        workload = workloads[runs[0].folder]
        goal = targets[workload.dataset].value
        return time_to(runs[0].metrics, workload.metric, goal, greater=workload.greater)

    name = f"protocol-{request.budget}-{part.partition(' ')[0]}"
    train_points(name, points, seconds, request, say, consequence="nothing is compared")
    tables = []
    for workload, own in trials:
        target = targets[workload.dataset].value
        table = table_of([row_of(trial, workload, target, request.jobs) for trial in own])
        order = {name: place for place, name in enumerate(table["optimizer"].unique())}
        table = table.assign(place=table["optimizer"].map(order))
        tables.append(table.sort_values(["place", "study", "trial", "seed"]).drop(columns="place"))
    return pd.concat(tables, ignore_index=True)


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


@dataclass(frozen=True)
class Target:
    """The validation value to reach on a data set, and the one at which a trial ends."""

    value: float
    stop_at: float


def set_targets(request: Request, say: Say) -> Path:
    """Train Adam and SGD as tuned, write their targets and return the file; other targets stay.

    Raises:
        ConfigError: the description is wrong.
        DataError: none of the data sets is there.
        RecordError: a run failed twice, or all of a data set diverged at once.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    protocol = load(request.budget, request.configs)
    path = protocol.folder / TARGETS
    entries = _read(path) if path.exists() else {}
    for dataset, runs in _present(request, protocol, say).items():
        workload = protocol.workloads[dataset]
        ordered = interleave(list(runs.values()))
        execute(ordered, request.jobs, say, request.train, consequence="no target is set")
        entries[dataset] = entry = _entry(protocol, workload, runs, request.jobs)
        order = [name for name in protocol.workloads if name in entries]
        order += [name for name in entries if name not in order]
        content = {name: entries[name] for name in order}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        write_whole(path, HEADER + text)
        say(f"{dataset}: target {workload.metric} {entry['target']:g}")
    return path


def load_targets(protocol: Protocol, setters: Setters) -> dict[str, Target]:
    """Return the targets of the data sets in ``setters``.

    Raises:
        ConfigError: the file or a data set is missing, or a target is one of other settings.
    """
    path = protocol.folder / TARGETS
    command = f"{COMMAND} --budget {protocol.budget}"
    if not path.exists():
        raise ConfigError(f"{path} is missing; first set the targets: {command}")
    entries = _read(path)
    found = {}
    for dataset, runs in setters.items():
        entry = entries.get(dataset)
        if entry is None:
            raise ConfigError(f"{path} has no target for {dataset}; set it: {command} {dataset}")
        before, now = entry.get("records"), _hashes(runs)
        if before != now:
            raise ConfigError(
                f"{path}: the target of {dataset} came from other settings (records {before}, now"
                f" {now}); set it again: {command} {dataset}"
            )
        numbers = (entry.get("target"), entry.get("stop_at"))
        if not all(is_number(value) for value in numbers):
            raise ConfigError(f"{path}: {dataset} has no numbers target and stop_at; set it again")
        found[dataset] = Target(*(float(value) for value in numbers))
    return found


def _entry(
    protocol: Protocol, workload: Workload, runs: Mapping[str, Sequence[PlannedRun]], jobs: int
) -> dict[str, Any]:
    """Return what the file keeps of a data set."""
    read = {name: [summarise(run.folder) for run in own] for name, own in runs.items()}
    target, stop_at = target_of(read, workload.metric)
    statuses = [run.status for own in read.values() for run in own]

    def reached(run: Summary) -> float:
        return round(best(run.metrics, workload.metric, greater=workload.greater), 6)

    return {
        "metric": workload.metric,
        "target": target,
        "stop_at": stop_at,
        "seconds": round(workload.seconds * protocol.targets.more_seconds, 6),
        "eval_every_s": workload.eval_every_s,
        "seeds": list(protocol.targets.seeds),
        "experiments": {name: f"{workload.tuned}/{workload.dataset}-{name}" for name in runs},
        "records": _hashes(runs),
        "best": {name: [reached(run) for run in own] for name, own in read.items()},
        "states": {name: [run.state for run in own] for name, own in read.items()},
        "device": devices(statuses),
        "processor": processor(),
        "jobs": jobs,
        **git_state(),
        "finished": max((str(status.get("ended_at")) for status in statuses), default=None),
    }


def _hashes(runs: Mapping[str, Sequence[PlannedRun]]) -> dict[str, str]:
    """Return the hash of the configuration by optimizer; all seeds share it."""
    return {optimizer: own[0].identity for optimizer, own in runs.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(e, dict) for e in content.values()):
        raise ConfigError(f"{path} is empty or holds no targets; set them again: {COMMAND}")
    return content
