"""What a search found: scores, the record, and the winner in ``configs/tuned/``.

The small, equal search behind a figure's settings.

Every optimizer gets the same number of trials on every data set: quasi-random points of its space
(``search`` in ``configs/optimizer/``), one short run each with a seed that the figure does not use.
A trial is scored by a validation value at a fixed number of training seconds, the same for all. The
best few are repeated with further seeds and judged by their worst: one lucky seed of a setting at
the edge of stability must not win.
Trials are ordinary run records, so a search that was stopped goes on where it was; what it found is
written to ``results/search/`` and the winner into ``configs/tuned/``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.base.environment import git_commit, git_dirty, versions
from experiments.base.errors import RecordError
from experiments.run.config import (
    CONFIGS,
    Space,
    places,
    search_space_of,
    tuned_line,
    write_tuned,
)
from experiments.run.records import Summary, summarise
from experiments.studies.execute import PlannedRun, Say, execute_all, interleave, planned
from experiments.studies.search_space import (
    Params,
    Protocol,
    load_protocol,
    sample,
)


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
    """

    target: str
    data_dir: Path = Path("data")
    output_dir: Path = Path("outputs")
    results_dir: Path = Path("results")
    configs_dir: Path = CONFIGS
    overrides: Sequence[str] = ()
    jobs: int = 1


def plan(request: Request, protocol: Protocol) -> list[Trials]:
    """Return all trials, data set by data set and optimizer by optimizer.

    Raises:
        ConfigError: a space or an experiment is missing or damaged.
    """
    where = (*places(request.data_dir, request.output_dir), "tracking=none")
    trials = []
    for dataset in protocol.max_seconds:
        for optimizer in protocol.optimizers:
            name = protocol.space_of(dataset, optimizer)
            space = search_space_of(name, request.configs_dir)
            points = sample(space, protocol.trials, protocol.sampler_seed)
            runs = []
            for point in points:
                runs += planned(
                    f"{request.target}/{dataset}-{optimizer}",
                    *(dataset, optimizer, [protocol.seed]),
                    trial_overrides(request, protocol, dataset, point),
                    where,
                )
            trials.append(Trials(dataset, optimizer, space, points, runs))
    return trials


def search(request: Request, say: Say, train: Sequence[str] | None = None) -> list[Path]:
    """Run the trials that are missing, record the search, write the winners; return the records.

    Args:
        request: what to search.
        say: prints one line.
        train: the training command; see :func:`experiments.studies.execute.execute`.

    Raises:
        ConfigError: protocol, space or experiment is missing or damaged.
        RecordError: a trial failed, or all trials of an optimizer diverged.
        KeyboardInterrupt: stopped; finished trials are kept.
    """
    protocol = load_protocol(request.configs_dir / "search" / f"{request.target}.yaml")
    all_trials = plan(request, protocol)
    for trials in all_trials:
        # What is missing is named before hours of training.
        tuned_line(request.target, trials.dataset, trials.optimizer, request.configs_dir)
    ordered = []
    for dataset in protocol.max_seconds:
        ordered += interleave([t.runs for t in all_trials if t.dataset == dataset])
    _execute(ordered, request, say, train)
    finals = [plan_finals(request, protocol, trials) for trials in all_trials]
    groups = [[run for runs in final.values() for run in runs] for final in finals]
    _execute([run for group in groups for run in group], request, say, train)
    written = []
    for trials, final in zip(all_trials, finals, strict=True):
        outcome = judge(trials, protocol, final)
        path = request.results_dir / "search" / trials.dataset / f"{trials.optimizer}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(outcome, indent=2, ensure_ascii=False) + "\n", "utf-8")
        chosen = outcome["chosen"]
        which = (request.target, trials.dataset, trials.optimizer)
        write_tuned(*which, chosen["params"], request.configs_dir)
        say(f"{trials.dataset} · {trials.optimizer}: {chosen['params']}, {chosen['score']:.4g}")
        written.append(path)
    return written


def _execute(
    runs: Sequence[PlannedRun], request: Request, say: Say, train: Sequence[str] | None
) -> None:
    execute_all(runs, request.jobs, say, train, consequence="nothing is chosen")


def plan_finals(
    request: Request, protocol: Protocol, trials: Trials
) -> dict[int, list[PlannedRun]]:
    """Return the repetitions of the best trials with the final seeds, by place of the trial."""
    scores = scores_of(trials.runs, protocol, trials.dataset)
    ranked = sorted(range(len(scores)), key=lambda place: scores[place])
    best = [place for place in ranked[: protocol.finalists] if math.isfinite(scores[place])]
    if not protocol.final_seeds:
        return {place: [] for place in best}
    where = (*places(request.data_dir, request.output_dir), "tracking=none")
    return {
        place: planned(
            f"{request.target}/{trials.dataset}-{trials.optimizer}",
            *(trials.dataset, trials.optimizer, protocol.final_seeds),
            trial_overrides(request, protocol, trials.dataset, trials.points[place]),
            where,
        )
        for place in best
    }


def trial_overrides(request: Request, protocol: Protocol, dataset: str, point: Params) -> list[str]:
    """Return what a trial changes in the experiment: its limits and its settings."""
    limits = [f"trainer.max_seconds={protocol.max_seconds[dataset]}"]
    limits += ["trainer.epochs=null", "trainer.max_steps=null"]
    return [*limits, *(f"optimizer.{k}={v}" for k, v in point.items()), *request.overrides]
