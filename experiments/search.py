"""The small, equal search behind a figure's settings.

Every optimizer gets the same number of trials on every data set: quasi-random points of its space
(``configs/search/<optimizer>.yaml``), one short run each with a seed that the figure does not use.
A trial is scored by a validation value at a fixed number of training seconds, the same for all.
Trials are ordinary run records, so a search that was stopped goes on where it was; what it found is
written to ``results/search/`` and the winner into the experiment file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.environment import git_commit, git_dirty, versions
from experiments.errors import ConfigError, RecordError
from experiments.execute import PlannedRun, Say, execute, places, planned
from experiments.explain import CONFIGS
from experiments.reproduce import interleave
from experiments.search_space import Params, Protocol, Space, load_protocol, load_space, sample
from experiments.summary import Summary, summarise

MARK = "# Optimizer settings"
"""The line of an experiment file from which on a search rewrites it."""


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


def plan(request: Request, protocol: Protocol) -> list[Trials]:
    """Return all trials, data set by data set and optimizer by optimizer.

    Raises:
        ConfigError: a space or an experiment file is missing or damaged.
    """
    where = (*places(request.data_dir, request.output_dir), "tracking=none")
    trials = []
    for dataset, seconds in protocol.max_seconds.items():
        limits = (f"trainer.max_seconds={seconds}", "trainer.epochs=null", "trainer.max_steps=null")
        for optimizer in protocol.optimizers:
            name = protocol.space_of(dataset, optimizer)
            space = load_space(request.configs_dir / "search" / f"{name}.yaml")
            points = sample(space, protocol.trials, protocol.sampler_seed)
            runs = []
            for point in points:
                chosen = [f"optimizer.{key}={value}" for key, value in point.items()]
                runs += planned(
                    f"{request.target}/{dataset}-{optimizer}",
                    *(dataset, optimizer, [protocol.seed]),
                    [*limits, *chosen, *request.overrides],
                    where,
                )
            trials.append(Trials(dataset, optimizer, space, points, runs))
    return trials


def search(request: Request, say: Say, train: Sequence[str] | None = None) -> list[Path]:
    """Run the trials that are missing, record the search, write the winners; return the records.

    Args:
        request: what to search.
        say: prints one line.
        train: the training command; see :func:`experiments.execute.execute`.

    Raises:
        ConfigError: protocol, space or experiment file is missing or damaged.
        RecordError: a trial failed, or all trials of an optimizer diverged.
        KeyboardInterrupt: stopped; finished trials are kept.
    """
    protocol = load_protocol(request.configs_dir / "search" / f"{request.target}.yaml")
    all_trials = plan(request, protocol)
    for trials in all_trials:
        _experiment_file(request, trials)  # missing files are named before hours of training
    ordered = []
    for dataset in protocol.max_seconds:
        ordered += interleave([t.runs for t in all_trials if t.dataset == dataset])
    failures = execute(ordered, request.jobs, say, train)
    if failures:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in failures.items())
        raise RecordError(f"nothing is chosen, {len(failures)} trials failed:{lines}")
    written = []
    for trials in all_trials:
        outcome = judge(trials, protocol)
        path = request.results_dir / "search" / trials.dataset / f"{trials.optimizer}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(outcome, indent=2, ensure_ascii=False) + "\n", "utf-8")
        record = f"results/search/{trials.dataset}/{trials.optimizer}.json"
        chosen = outcome["chosen"]
        write_choice(_experiment_file(request, trials), chosen["params"], record)
        say(f"{trials.dataset} · {trials.optimizer}: {chosen['params']}, {chosen['score']:.4g}")
        written.append(path)
    return written


def _experiment_file(request: Request, trials: Trials) -> Path:
    name = f"{trials.dataset}-{trials.optimizer}.yaml"
    path = request.configs_dir / "experiment" / request.target / name
    if not path.is_file():
        raise ConfigError(f"the experiment file {path} is missing")
    return path


def judge(trials: Trials, protocol: Protocol) -> dict[str, Any]:
    """Score finished trials and return the record of the search, ready for JSON.

    Raises:
        RecordError: a trial did not finish, or all diverged.
    """
    seconds = protocol.max_seconds[trials.dataset]
    read = [summarise(run.folder) for run in trials.runs]
    scores = [score(run, protocol.criterion, seconds) for run in read]
    best = choose(scores)
    entries = [
        {
            "params": point,
            # JSON has no infinity
            "score": value if math.isfinite(value) else None,
            "state": run.state,
            "steps": max((int(row["step"]) for row in run.metrics), default=0),
            "hash": run.digest,
            "seconds": run.status.get("seconds"),
            "threads": run.status.get("threads"),
        }
        for point, value, run in zip(trials.points, scores, read, strict=True)
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
