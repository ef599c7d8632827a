"""The targets: set once by Adam and SGD, frozen in ``targets.yaml``, and checked before every use.

They are set without the methods under test: see :func:`experiments.studies.goals.target_of`. The
file says which records they came from; a change of network, solver, budget or tuned settings
changes the hashes of these runs, and the targets are then refused as those of other settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.base.checks import is_number
from experiments.base.environment import git_commit, git_dirty
from experiments.base.errors import ConfigError
from experiments.base.files import write_whole
from experiments.publish.provenance import devices, processor
from experiments.run.records import Summary, summarise
from experiments.studies.comparison.settings import Protocol, Workload
from experiments.studies.execute import PlannedRun, Say, interleave, train_all
from experiments.studies.goals import best, target_of

FILE = "targets.yaml"

COMMAND = "python scripts/protocol.py targets"

HEADER = f"""\
# Written by `{COMMAND}`; not to be edited. A target is the median, over
# optimizers and seeds, of a run's best validation value; trials end at `stop_at`, the same rounded.
"""


@dataclass(frozen=True)
class Target:
    """The target of one data set.

    Attributes:
        value: validation value to reach.
        stop_at: value at which a trial ends.
    """

    value: float
    stop_at: float


def make_targets(
    protocol: Protocol,
    setters: Mapping[str, Mapping[str, Sequence[PlannedRun]]],
    *,
    jobs: int,
    say: Say,
    train: Sequence[str] | None = None,
) -> Path:
    """Train what sets the targets of some data sets and write them; those of others stay.

    Args:
        protocol: what is compared.
        setters: by data set, the runs that set its target; see
            :func:`experiments.studies.comparison.planning.target_runs`.
        jobs: runs at a time.
        say: prints one line.
        train: the training command; see :func:`experiments.studies.execute.execute`.

    Raises:
        RecordError: a run failed twice, or all of a data set diverged at once.
    """
    path = protocol.folder / FILE
    entries = _read(path) if path.exists() else {}
    for dataset, runs in setters.items():
        workload = protocol.workloads[dataset]
        train_all(interleave(list(runs.values())), jobs, say, train)
        entries[dataset] = entry = _entry(protocol, workload, runs, jobs)
        order = [name for name in protocol.workloads if name in entries]
        order += [name for name in entries if name not in order]
        content = {name: entries[name] for name in order}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        write_whole(path, HEADER + text)
        say(f"{dataset}: target {workload.metric} {entry['target']:g}")
    return path


def load_targets(
    protocol: Protocol, runs: Mapping[str, Mapping[str, Sequence[PlannedRun]]]
) -> dict[str, Target]:
    """Return the targets of some data sets.

    Args:
        protocol: what is compared.
        runs: by data set, the runs that would set its target; see
            :func:`experiments.studies.comparison.planning.target_runs`.

    Raises:
        ConfigError: the file or a data set is missing, or a target is one of other settings.
    """
    path = protocol.folder / FILE
    command = f"{COMMAND} --budget {protocol.budget}"
    if not path.exists():
        raise ConfigError(f"{path} is missing; first set the targets: {command}")
    entries = _read(path)
    found = {}
    for dataset, planned in runs.items():
        entry = entries.get(dataset)
        if entry is None:
            raise ConfigError(f"{path} has no target for {dataset}; set it: {command} {dataset}")
        before, now = entry.get("records"), _hashes(planned)
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
    protocol: Protocol,
    workload: Workload,
    runs: Mapping[str, Sequence[PlannedRun]],
    jobs: int,
) -> dict[str, Any]:
    """Return what the file keeps of a data set."""
    read = {name: [summarise(run.folder) for run in own] for name, own in runs.items()}
    target, stop_at = target_of(read, workload.metric)
    statuses = [run.status for own in read.values() for run in own]
    return {
        "metric": workload.metric,
        "target": target,
        "stop_at": stop_at,
        "seconds": round(workload.seconds * protocol.targets.more_seconds, 6),
        "eval_every_s": workload.eval_every_s,
        "seeds": list(protocol.targets.seeds),
        "experiments": {name: f"{workload.tuned}/{workload.dataset}-{name}" for name in runs},
        "records": _hashes(runs),
        "best": {name: [_best(run, workload) for run in own] for name, own in read.items()},
        "states": {name: [run.state for run in own] for name, own in read.items()},
        "device": devices(statuses),
        "processor": processor(),
        "jobs": jobs,
        "commit": git_commit(),
        "dirty": git_dirty(),
        "finished": max((str(status.get("ended_at")) for status in statuses), default=None),
    }


def _best(run: Summary, workload: Workload) -> float:
    return round(best(run.metrics, workload.metric, greater=workload.greater), 6)


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
