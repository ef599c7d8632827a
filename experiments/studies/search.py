"""The small, equal search behind a figure's settings.

Every optimizer gets the same number of trials on every data set: quasi-random points of its space,
one short run each with a seed that the figure does not use. A trial is scored by a validation value
at a fixed number of training seconds, the same for all. The best few are repeated with further
seeds and judged by their worst: one lucky seed of a setting at the edge of stability must not win.

Trials are those of a study (:mod:`experiments.studies.study`); what it found is written to
``results/search/`` and the winner into ``configs/tuned/``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.base.environment import git_state, versions
from experiments.base.errors import ConfigError, RecordError
from experiments.run.config import (
    CONFIGS,
    Space,
    search_space_of,
    tuned_line,
    write_tuned,
)
from experiments.run.records import DIVERGED, DONE, Summary, summarise
from experiments.studies.comparison.settings import read_description
from experiments.studies.execute import PlannedRun, Say, interleave, planned
from experiments.studies.study import Params, Point, Workplace, point_of, sample, train_points


@dataclass(frozen=True)
class Protocol:
    """What is equal for all optimizers; ``configs/search/<target>.yaml``."""

    trials: int  # of each optimizer on each data set
    seed: int  # of every trial
    sampler_seed: int  # of the quasi-random points
    criterion: str  # what is minimised, for example val/loss
    optimizers: tuple[str, ...]
    max_seconds: dict[str, float]  # of the training clock of a trial, by data set
    # by data set and optimizer, the optimizer whose search space it has, where it is another one
    spaces: dict[str, dict[str, str]] = field(default_factory=dict)
    finalists: int = 1  # how many of the best trials are repeated with final_seeds
    final_seeds: tuple[int, ...] = ()  # a finalist is judged by its worst seed


def load_protocol(path: Path) -> Protocol:
    """Read a protocol; raise a ConfigError where its file is missing or has wrong keys."""
    content = {"optimizers": (), "final_seeds": (), **read_description(path)}
    try:
        tuples = {key: tuple(content[key]) for key in ("optimizers", "final_seeds")}
        protocol = Protocol(**{**content, **tuples})
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if protocol.trials < 1:
        raise ConfigError(f"{path}: trials is {protocol.trials}, expected at least 1")
    return protocol


@dataclass(frozen=True)
class Request(Workplace):
    """What to search, and where everything lies."""

    target: str  # the figure; configs/search/<target>.yaml is its protocol
    results_dir: Path = Path("results")  # the search is recorded in search/ below it
    configs_dir: Path = CONFIGS  # the configuration groups, where winners are written
    overrides: Sequence[str] = ()  # changes to every trial


@dataclass(frozen=True)
class Trials:
    """The trials of one optimizer on one data set."""

    dataset: str
    optimizer: str
    space: Space  # what was sampled
    points: Sequence[Params]  # settings of each trial
    runs: list[PlannedRun]  # one a trial

    def point(self, place: int, run: PlannedRun) -> Point:
        """Return a run of the trial at a place as a point of a study."""
        prefix = f"{self.dataset}.{self.optimizer}."
        return point_of(run, self.points[place], self.space, prefix)


def search(request: Request, say: Say) -> list[Path]:
    """Run the trials that are missing, record the search, write the winners; return the records.

    Raises:
        ConfigError: protocol, space or experiment is missing or damaged.
        RecordError: a trial failed twice, or all trials of an optimizer diverged.
        KeyboardInterrupt: stopped; finished trials are kept.
    """
    protocol = load_protocol(request.configs_dir / "search" / f"{request.target}.yaml")
    plans = plan(request, protocol)
    for trials in plans:  # what is missing is named before hours of training
        tuned_line(request.target, trials.dataset, trials.optimizer, request.configs_dir)

    def train(part: str, points: list[Point]) -> None:
        train_points(
            f"{request.target}-{part}",
            points,
            lambda found: scores_of(found, protocol)[0],
            request,
            say,
            consequence="nothing is chosen",
        )

    ordered: list[Point] = []
    for dataset in protocol.max_seconds:
        own = [trials for trials in plans if trials.dataset == dataset]
        ordered += interleave(
            [[t.point(place, run) for place, run in enumerate(t.runs)] for t in own]
        )
    train("search", ordered)
    finals = [plan_finals(request, protocol, trials) for trials in plans]
    pairs = list(zip(plans, finals, strict=True))
    again = [
        t.point(place, run) for t, final in pairs for place, runs in final.items() for run in runs
    ]
    train("finals", again)
    written = []
    for trials, final in pairs:
        who = (trials.dataset, trials.optimizer)
        outcome = judge(trials, protocol, final)
        path = request.results_dir / "search" / trials.dataset / f"{trials.optimizer}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(outcome, indent=2, ensure_ascii=False) + "\n", "utf-8")
        chosen = outcome["chosen"]
        write_tuned(request.target, *who, chosen["params"], request.configs_dir)
        say(f"{' · '.join(who)}: {chosen['params']}, {chosen['score']:.4g}")
        written.append(path)
    return written


def plan(request: Request, protocol: Protocol) -> list[Trials]:
    """Return all trials, data set by data set and optimizer by optimizer.

    Raises:
        ConfigError: a space or an experiment is missing or damaged.
    """
    plans = []
    for dataset in protocol.max_seconds:
        for optimizer in protocol.optimizers:
            name = protocol.spaces.get(dataset, {}).get(optimizer, optimizer)
            space = search_space_of(name, request.configs_dir)
            points = sample(space, protocol.trials, protocol.sampler_seed)
            trials = Trials(dataset, optimizer, space, points, [])
            for place in range(len(points)):
                trials.runs.extend(_planned(request, protocol, trials, place, [protocol.seed]))
            plans.append(trials)
    return plans


def plan_finals(
    request: Request, protocol: Protocol, trials: Trials
) -> dict[int, list[PlannedRun]]:
    """Return the repetitions of the best trials with the final seeds, by place of the trial."""
    scores = scores_of([summarise(run.folder) for run in trials.runs], protocol)
    ranked = sorted(range(len(scores)), key=lambda place: scores[place])
    return {
        place: _planned(request, protocol, trials, place, protocol.final_seeds)
        for place in ranked[: protocol.finalists]
        if math.isfinite(scores[place])
    }


def _planned(
    request: Request, protocol: Protocol, trials: Trials, place: int, seeds: Sequence[int]
) -> list[PlannedRun]:
    """Return the runs of the trial at a place, one a seed."""
    changes = [
        f"trainer.max_seconds={protocol.max_seconds[trials.dataset]}",
        "trainer.epochs=null",
        "trainer.max_steps=null",
        *(f"optimizer.{key}={value}" for key, value in trials.points[place].items()),
        *request.overrides,
    ]
    where = (*request.where, "tracking=none")
    experiment = f"{request.target}/{trials.dataset}-{trials.optimizer}"
    return planned(experiment, trials.dataset, trials.optimizer, seeds, changes, where)


def score(run: Summary, criterion: str, seconds: float) -> float:
    """Return a criterion when the training clock reaches ``seconds``, infinity if it diverged.

    Linear interpolation between the evaluations before and after; the last evaluation where
    training ended earlier.

    Raises:
        RecordError: the run did not finish, or never measured the criterion.
    """
    if run.state == DIVERGED:
        return math.inf
    if run.state != DONE:
        raise RecordError(f"{run.name} is {run.state}")
    points = [(row["time/train_s"], row[criterion]) for row in run.metrics if criterion in row]
    if not points:
        raise RecordError(f"{run.name} never measured {criterion}")
    times, values = zip(*points, strict=True)
    return float(np.interp(seconds, times, values))


def scores_of(runs: Sequence[Summary], protocol: Protocol) -> list[float]:
    """Return the scores of finished runs; see :func:`score`."""
    return [score(run, protocol.criterion, protocol.max_seconds[run.dataset]) for run in runs]


def judge(
    trials: Trials, protocol: Protocol, finals: Mapping[int, Sequence[PlannedRun]] | None = None
) -> dict[str, Any]:
    """Score finished trials and return the record of the search, ready for JSON.

    ``finals`` are repetitions of the finalists with further seeds, by place: the finalist whose
    worst seed is best is chosen, the first of equal ones. None: the best trial.

    Raises:
        RecordError: a trial did not finish, or all diverged.
    """
    read = [summarise(run.folder) for run in trials.runs]
    scores = scores_of(read, protocol)
    finals = finals or {place: [] for place in range(len(scores))}
    entries, standing = [], []
    for place, (params, value, run) in enumerate(zip(trials.points, scores, read, strict=True)):
        again = scores_of([summarise(own.folder) for own in finals.get(place, ())], protocol)
        worst = max(value, *again) if again else value
        standing.append(worst if place in finals else math.inf)
        entry: dict[str, Any] = {"params": params, "score": _or_none(value)}
        if again:
            entry |= {"final_scores": [_or_none(v) for v in again], "worst": _or_none(worst)}
        entry |= {
            "state": run.state,
            "steps": max((int(row["step"]) for row in run.metrics), default=0),
            "hash": run.digest,
            "seconds": run.status.get("seconds"),
            "threads": run.status.get("threads"),
        }
        entries.append(entry)
    best = min(range(len(standing)), key=lambda place: standing[place])
    if not math.isfinite(standing[best]):
        raise RecordError(f"all {len(standing)} trials diverged; widen the search space")
    return {
        "dataset": trials.dataset,
        "optimizer": trials.optimizer,
        "protocol": {**asdict(protocol), "max_seconds": protocol.max_seconds[trials.dataset]},
        "sampler": "scrambled Halton sequence",
        "space": trials.space,
        "chosen": {"trial": best, **entries[best]},
        "trials": entries,
        "git": git_state(),
        "versions": versions(),
    }


def _or_none(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
