"""The small, equal search behind a figure's settings.

Every optimizer gets the same number of trials on every data set: quasi-random points of its space
(``configs/search/<optimizer>.yaml``), one short run each with a seed that the figure does not use.
A trial is scored by a validation value at a fixed number of training seconds, the same for all. The
best few are repeated with further seeds and judged by their worst: one lucky seed of a setting at
the edge of stability must not win.
Trials are ordinary run records, so a search that was stopped goes on where it was; what it found is
written to ``results/search/`` and the winner into the experiment file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import ConfigError
from experiments.execute import PlannedRun, Say, execute_all, interleave, places, planned
from experiments.explain import CONFIGS
from experiments.search_outcome import Trials, judge, scores_of, write_choice
from experiments.search_space import Params, Protocol, load_protocol, load_space, sample


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
        ConfigError: a space or an experiment file is missing or damaged.
    """
    where = (*places(request.data_dir, request.output_dir), "tracking=none")
    trials = []
    for dataset in protocol.max_seconds:
        for optimizer in protocol.optimizers:
            name = protocol.space_of(dataset, optimizer)
            space = load_space(request.configs_dir / "search" / f"{name}.yaml")
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
        record = f"results/search/{trials.dataset}/{trials.optimizer}.json"
        chosen = outcome["chosen"]
        write_choice(_experiment_file(request, trials), chosen["params"], record)
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


def _experiment_file(request: Request, trials: Trials) -> Path:
    name = f"{trials.dataset}-{trials.optimizer}.yaml"
    path = request.configs_dir / "experiment" / request.target / name
    if not path.is_file():
        raise ConfigError(f"the experiment file {path} is missing")
    return path
