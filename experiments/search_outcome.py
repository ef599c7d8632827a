"""What a search found: scores, the record, and the winner in its experiment file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.environment import git_commit, git_dirty, versions
from experiments.errors import ConfigError, RecordError
from experiments.execute import PlannedRun
from experiments.search_space import Params, Protocol, Space
from experiments.summary import Summary, summarise

MARK = "# Optimizer settings"
"""The line of an experiment file from which on a search rewrites it."""


@dataclass(frozen=True)
class Trials:
    """The trials of one optimizer on one data set.

    Attributes:
        dataset: data set name.
        optimizer: optimizer name.
        space: what was sampled.
        points: settings of each trial.
        runs: the run of each trial.
    """

    dataset: str
    optimizer: str
    space: Space
    points: Sequence[Params]
    runs: Sequence[PlannedRun]


def score(run: Summary, criterion: str, seconds: float) -> float:
    """Return a criterion when the training clock reaches ``seconds``, infinity if it diverged.

    Linear interpolation between the evaluations before and after; the last evaluation where
    training ended earlier.

    Raises:
        RecordError: the run did not finish, or never measured the criterion.
    """
    if run.state == "diverged":
        return math.inf
    if run.state != "done":
        raise RecordError(f"{run.name} is {run.state}")
    points = [(row["time/train_s"], row[criterion]) for row in run.metrics if criterion in row]
    if not points:
        raise RecordError(f"{run.name} never measured {criterion}")
    before = points[0]
    for point in points:
        if point[0] >= seconds:
            if point[0] == before[0]:
                return float(point[1])
            weight = (seconds - before[0]) / (point[0] - before[0])
            return float(before[1] + weight * (point[1] - before[1]))
        before = point
    return float(before[1])


def choose(scores: Sequence[float]) -> int:
    """Return the place of the lowest score, the first of equal ones.

    Raises:
        RecordError: no trial has a finite score.
    """
    best = min(range(len(scores)), key=lambda place: scores[place])
    if not math.isfinite(scores[best]):
        raise RecordError(f"all {len(scores)} trials diverged; widen the search space")
    return best


def scores_of(runs: Sequence[PlannedRun], protocol: Protocol, dataset: str) -> list[float]:
    """Return the scores of finished runs; see :func:`score`."""
    seconds = protocol.max_seconds[dataset]
    return [score(summarise(run.folder), protocol.criterion, seconds) for run in runs]


def judge(
    trials: Trials, protocol: Protocol, finals: Mapping[int, Sequence[PlannedRun]] | None = None
) -> dict[str, Any]:
    """Score finished trials and return the record of the search, ready for JSON.

    Args:
        trials: the trials of one optimizer on one data set.
        protocol: what is equal for all.
        finals: repetitions of the finalists with further seeds, by place; the finalist whose worst
            seed is best is chosen. None: the best trial.

    Raises:
        RecordError: a trial did not finish, or all diverged.
    """
    seconds = protocol.max_seconds[trials.dataset]
    read = [summarise(run.folder) for run in trials.runs]
    scores = [score(run, protocol.criterion, seconds) for run in read]
    final_scores = {
        place: scores_of(runs, protocol, trials.dataset) for place, runs in (finals or {}).items()
    }
    worst = [
        max(value, *final_scores[place]) if final_scores.get(place) else value
        for place, value in enumerate(scores)
    ]
    standing = [worst[p] if not finals or p in finals else math.inf for p in range(len(worst))]
    best = choose(standing)
    entries = [
        {
            "params": point,
            # JSON has no infinity
            "score": value if math.isfinite(value) else None,
            **_final_entry(final_scores.get(place), value),
            "state": run.state,
            "steps": max((int(row["step"]) for row in run.metrics), default=0),
            "hash": run.digest,
            "seconds": run.status.get("seconds"),
            "threads": run.status.get("threads"),
        }
        for place, (point, value, run) in enumerate(zip(trials.points, scores, read, strict=True))
    ]
    return {
        "dataset": trials.dataset,
        "optimizer": trials.optimizer,
        "protocol": {**asdict(protocol), "max_seconds": seconds},
        "sampler": "scrambled Halton sequence",
        "space": trials.space,
        "chosen": {"trial": best, **entries[best]},
        "trials": entries,
        "git": {"commit": git_commit(), "dirty": git_dirty()},
        "versions": versions(),
    }


def _final_entry(values: Sequence[float] | None, first: float) -> dict[str, Any]:
    """Return the scores of a finalist's further seeds and its worst, ready for JSON."""
    if not values:
        return {}
    worst = max(first, *values)
    return {
        "final_scores": [v if math.isfinite(v) else None for v in values],
        "worst": worst if math.isfinite(worst) else None,
    }


def write_choice(path: Path, params: Mapping[str, Any], record: str) -> None:
    """Write chosen settings into an experiment file, below :data:`MARK`; what is above stays.

    A key with dots is a setting of a nested group.

    Raises:
        ConfigError: the file has no such line.
    """
    text = path.read_text(encoding="utf-8")
    above, mark, _ = text.partition(MARK)
    if not mark:
        raise ConfigError(f"{path} has no line that starts with {MARK!r}")
    settings: dict[str, Any] = {}
    for key, value in params.items():
        *parents, last = key.split(".")
        group = settings
        for parent in parents:
            group = group.setdefault(parent, {})
        group[last] = value
    block = yaml.safe_dump({"optimizer": settings}, sort_keys=False)
    path.write_text(f"{above}{MARK}: chosen by `make search`, see {record}\n{block}", "utf-8")
