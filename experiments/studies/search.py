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
import yaml

from experiments.base.environment import git_commit, git_dirty, versions
from experiments.base.errors import ConfigError, RecordError
from experiments.run.config import (
    CONFIGS,
    Space,
    places,
    search_space_of,
    tuned_line,
    write_tuned,
)
from experiments.run.records import DIVERGED, DONE, Summary, summarise
from experiments.studies.execute import PlannedRun, Say, interleave, planned
from experiments.studies.study import Params, point_of, sample, train_points


@dataclass(frozen=True)
class Protocol:
    """What is equal for all optimizers; ``configs/search/<target>.yaml``.

    Attributes:
        trials: trials of each optimizer on each data set.
        seed: seed of every trial.
        sampler_seed: seed of the quasi-random points.
        criterion: what is minimised, for example ``val/loss``.
        optimizers: optimizer names.
        max_seconds: seconds of the training clock of a trial, by data set.
        spaces: by data set and optimizer, the optimizer configuration whose search space it is,
            where it is another one.
        finalists: how many of the best trials are repeated with ``final_seeds``.
        final_seeds: further seeds; a finalist is judged by its worst seed.
    """

    trials: int
    seed: int
    sampler_seed: int
    criterion: str
    optimizers: tuple[str, ...]
    max_seconds: dict[str, float]
    spaces: dict[str, dict[str, str]] = field(default_factory=dict)
    finalists: int = 1
    final_seeds: tuple[int, ...] = ()


def load_protocol(path: Path) -> Protocol:
    """Read a protocol.

    Raises:
        ConfigError: the file is missing, or lacks a key or has one too many.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        valid = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ConfigError(f"{path} is missing; there are: {valid or 'none'}") from None
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path} is empty or no mapping")
    content = {"optimizers": (), "final_seeds": (), **content}
    try:
        tuples = {key: tuple(content[key]) for key in ("optimizers", "final_seeds")}
        protocol = Protocol(**{**content, **tuples})
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if protocol.trials < 1:
        raise ConfigError(f"{path}: trials is {protocol.trials}, expected at least 1")
    return protocol


@dataclass(frozen=True)
class Request:
    """What to search, and where everything lies.

    Attributes:
        target: the figure; ``configs/search/<target>.yaml`` is its protocol.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        results_dir: the search is recorded in ``search/`` below it.
        configs_dir: the folder of the configuration groups, where winners are written.
        overrides: changes to every trial.
        jobs: runs at a time.
        storage: URL of the database of the trials; None: a journal file below ``output_dir``.
    """

    target: str
    data_dir: Path = Path("data")
    output_dir: Path = Path("outputs")
    results_dir: Path = Path("results")
    configs_dir: Path = CONFIGS
    overrides: Sequence[str] = ()
    jobs: int = 1
    storage: str | None = None

    def protocol(self) -> Protocol:
        """Return what is equal for all; see :func:`load_protocol`."""
        return load_protocol(self.configs_dir / "search" / f"{self.target}.yaml")


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


def search(request: Request, say: Say, train: Sequence[str] | None = None) -> list[Path]:
    """Run the trials that are missing, record the search, write the winners; return the records.

    Args:
        request: what to search.
        say: prints one line.
        train: the training command; see :func:`experiments.studies.execute.execute`.

    Raises:
        ConfigError: protocol, space or experiment is missing or damaged.
        RecordError: a trial failed twice, or all trials of an optimizer diverged.
        KeyboardInterrupt: stopped; finished trials are kept.
    """
    protocol = request.protocol()
    all_trials = plan(request, protocol)
    for trials in all_trials:
        # What is missing is named before hours of training.
        tuned_line(request.target, trials.dataset, trials.optimizer, request.configs_dir)
    ordered = []
    for dataset in protocol.max_seconds:
        own = [trials for trials in all_trials if trials.dataset == dataset]
        ordered += interleave(
            [[(t, *one) for one in zip(t.runs, t.points, strict=True)] for t in own]
        )
    _train(request, protocol, "search", ordered, say, train)
    finals = [plan_finals(request, protocol, trials) for trials in all_trials]
    again = [
        (trials, run, trials.points[place])
        for trials, final in zip(all_trials, finals, strict=True)
        for place, runs in final.items()
        for run in runs
    ]
    _train(request, protocol, "finals", again, say, train)
    written = []
    for trials, final in zip(all_trials, finals, strict=True):
        outcome = judge(trials, protocol, final)
        path = request.results_dir / "search" / trials.dataset / f"{trials.optimizer}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(outcome, indent=2, ensure_ascii=False) + "\n", "utf-8")
        chosen = outcome["chosen"]
        write_tuned(
            request.target,
            trials.dataset,
            trials.optimizer,
            chosen["params"],
            request.configs_dir,
        )
        say(f"{trials.dataset} · {trials.optimizer}: {chosen['params']}, {chosen['score']:.4g}")
        written.append(path)
    return written


def _train(
    request: Request,
    protocol: Protocol,
    part: str,
    runs: Sequence[tuple[Trials, PlannedRun, Params]],
    say: Say,
    train: Sequence[str] | None,
) -> None:
    """Work off trials as a study; nothing is chosen unless all of them have ended."""
    points = [
        point_of(run, params, trials.space, f"{trials.dataset}.{trials.optimizer}.")
        for trials, run, params in runs
    ]
    train_points(
        f"{request.target}-{part}",
        points,
        lambda found: scores_of(found, protocol)[0],
        output_dir=request.output_dir,
        storage=request.storage,
        jobs=request.jobs,
        say=say,
        train=train,
        consequence="nothing is chosen",
    )


def plan(request: Request, protocol: Protocol) -> list[Trials]:
    """Return all trials, data set by data set and optimizer by optimizer.

    Raises:
        ConfigError: a space or an experiment is missing or damaged.
    """
    trials = []
    for dataset in protocol.max_seconds:
        for optimizer in protocol.optimizers:
            name = protocol.spaces.get(dataset, {}).get(optimizer, optimizer)
            space = search_space_of(name, request.configs_dir)
            points = sample(space, protocol.trials, protocol.sampler_seed)
            runs = []
            for point in points:
                runs += _planned(request, protocol, dataset, optimizer, point, [protocol.seed])
            trials.append(Trials(dataset, optimizer, space, points, runs))
    return trials


def plan_finals(
    request: Request, protocol: Protocol, trials: Trials
) -> dict[int, list[PlannedRun]]:
    """Return the repetitions of the best trials with the final seeds, by place of the trial."""
    scores = scores_of([summarise(run.folder) for run in trials.runs], protocol)
    ranked = sorted(range(len(scores)), key=lambda place: scores[place])
    best = [place for place in ranked[: protocol.finalists] if math.isfinite(scores[place])]
    if not protocol.final_seeds:
        return {place: [] for place in best}
    return {
        place: _planned(
            request,
            protocol,
            trials.dataset,
            trials.optimizer,
            trials.points[place],
            protocol.final_seeds,
        )
        for place in best
    }


def _planned(
    request: Request,
    protocol: Protocol,
    dataset: str,
    optimizer: str,
    point: Params,
    seeds: Sequence[int],
) -> list[PlannedRun]:
    changes = [
        f"trainer.max_seconds={protocol.max_seconds[dataset]}",
        "trainer.epochs=null",
        "trainer.max_steps=null",
        *(f"optimizer.{key}={value}" for key, value in point.items()),
        *request.overrides,
    ]
    where = (*places(request.data_dir, request.output_dir), "tracking=none")
    experiment = f"{request.target}/{dataset}-{optimizer}"
    return planned(experiment, dataset, optimizer, seeds, changes, where)


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


def choose(scores: Sequence[float]) -> int:
    """Return the place of the lowest score, the first of equal ones.

    Raises:
        RecordError: no trial has a finite score.
    """
    best = min(range(len(scores)), key=lambda place: scores[place])
    if not math.isfinite(scores[best]):
        raise RecordError(f"all {len(scores)} trials diverged; widen the search space")
    return best


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
    best = choose(standing)
    return {
        "dataset": trials.dataset,
        "optimizer": trials.optimizer,
        "protocol": {**asdict(protocol), "max_seconds": protocol.max_seconds[trials.dataset]},
        "sampler": "scrambled Halton sequence",
        "space": trials.space,
        "chosen": {"trial": best, **entries[best]},
        "trials": entries,
        "git": {"commit": git_commit(), "dirty": git_dirty()},
        "versions": versions(),
    }


def _or_none(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
