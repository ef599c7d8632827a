"""The ablation of SNOpt's options: which runs it needs, and what they say.

First tuned Adam and SGD run with a larger budget and set a target; then every variant runs until it
reaches the target or its steps are used up. Everything is a run record, so a stopped ablation goes
on where it was. ``configs/ablation.yaml`` says what is compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.base.errors import ConfigError
from experiments.run.config import CONFIGS, places
from experiments.run.records import Summary, summarise
from experiments.studies.execute import PlannedRun, Say, execute_all, interleave, planned
from experiments.studies.goals import GREATER, best, target_of, time_to

STOPS = "the ablation stops"


@dataclass(frozen=True)
class Entry:
    """One run of the ablation, scored.

    Attributes:
        dataset: data set name.
        variant: what is compared, or the optimizer that set the target.
        seed: seed.
        target: value of the validation metric to reach.
        seconds: training time to the target, infinite where it was not reached.
        best: best validation value.
        state: state of the run.
        trained: training seconds in all.
        steps: steps taken.
    """

    dataset: str
    variant: str
    seed: int
    target: float
    seconds: float
    best: float
    state: str
    trained: float
    steps: int


@dataclass(frozen=True)
class Ablation:
    """What is compared; see ``configs/ablation.yaml``.

    Attributes:
        datasets: data set → where its tuned settings are, steps, metric.
        targets: optimizers that set the target, and how many more steps they get.
        variants: name → from which optimizer, with what change.
    """

    datasets: Mapping[str, Mapping[str, Any]]
    targets: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, path: Path = CONFIGS / "ablation.yaml") -> Ablation:
        """Read the description.

        Raises:
            ConfigError: the file is missing or lacks a part.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls(content["datasets"], content["targets"], content["variants"])
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no description of an ablation: {error!r}") from error

    def runs(
        self,
        dataset: str,
        optimizer: str,
        *,
        change: Mapping[str, Any],
        steps: int,
        stop_at: float | None,
        seeds: Sequence[int],
        where: Sequence[str],
    ) -> list[PlannedRun]:
        """Return the runs of tuned settings with a change, one for each seed."""
        spec = self.datasets[dataset]
        overrides = [
            "trainer.epochs=null",
            f"trainer.max_steps={steps}",
            f"trainer.eval_every={spec['eval_every']}",
            f"trainer.stop_at={'null' if stop_at is None else repr(stop_at)}",
            "tracking=none",
        ]
        prefix = "optimizer." + (f"{spec['inside']}." if "inside" in spec else "")
        overrides += [f"++{prefix}{key}={_hydra(value)}" for key, value in change.items()]
        experiment = f"{spec['tuned'][optimizer]}/{dataset}-{optimizer}"
        return planned(experiment, dataset, optimizer, seeds, overrides, where)

    def target_runs(
        self, dataset: str, seeds: Sequence[int], where: Sequence[str]
    ) -> dict[str, list[PlannedRun]]:
        """Return the runs that set the target, by optimizer."""
        steps = round(self.datasets[dataset]["steps"] * self.targets["more_steps"])
        return {
            optimizer: self.runs(
                *(dataset, optimizer),
                change={},
                steps=steps,
                stop_at=None,
                seeds=seeds,
                where=where,
            )
            for optimizer in self.targets["optimizers"]
        }

    def variant_runs(
        self, dataset: str, stop_at: float, seeds: Sequence[int], where: Sequence[str]
    ) -> dict[str, list[PlannedRun]]:
        """Return the runs of all variants of a data set, by variant."""
        return {
            name: self.runs(
                *(dataset, variant["from"]),
                change=variant.get("change", {}),
                steps=self.datasets[dataset]["steps"],
                stop_at=stop_at,
                seeds=seeds,
                where=where,
            )
            for name, variant in self.variants.items()
            if dataset not in variant.get("except", ())
        }


def _hydra(value: Any) -> str:
    """Return a value as Hydra's command line reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value)


def score(run: Summary, variant: str, target: float, metric: str) -> Entry:
    """Return what a run says."""
    greater = GREATER[metric]
    last = max(run.metrics, key=lambda row: row["step"])
    return Entry(
        dataset=run.dataset,
        variant=variant,
        seed=run.seed,
        target=target,
        seconds=time_to(run.metrics, metric, target, greater=greater),
        best=best(run.metrics, metric, greater=greater),
        state=run.state,
        trained=float(last["time/train_s"]),
        steps=int(last["step"]),
    )


def run_ablation(
    ablation: Ablation,
    seeds: Sequence[int],
    *,
    data_dir: Path,
    output_dir: Path,
    jobs: int,
    say: Say,
    datasets: Sequence[str] = (),
    train: Sequence[str] | None = None,
) -> tuple[list[Entry], list[tuple[Summary, str]]]:
    """Train what is missing; return the entries, and each run with its command.

    Args:
        ablation: what is compared.
        seeds: seeds of every run.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        jobs: runs at a time.
        say: prints one line.
        datasets: names of those to compare on; empty means all.
        train: the training command; see :func:`experiments.studies.execute.execute`.

    Raises:
        ConfigError: a setting is unknown.
        RecordError: a run failed; one that diverged counts as never reaching the target.
    """
    where = places(data_dir, output_dir)
    entries: list[Entry] = []
    used: list[tuple[Summary, str]] = []
    for dataset in datasets or ablation.datasets:
        metric = ablation.datasets[dataset]["metric"]
        setters = ablation.target_runs(dataset, seeds, where)
        execute_all(interleave(list(setters.values())), jobs, say, train, consequence=STOPS)
        found = {name: [summarise(r.folder) for r in runs] for name, runs in setters.items()}
        target, stop_at = target_of(found, metric)
        say(f"{dataset}: target {metric} {target:g}")
        variants = ablation.variant_runs(dataset, stop_at, seeds, where)
        execute_all(interleave(list(variants.values())), jobs, say, train, consequence=STOPS)
        for name, runs in [*setters.items(), *variants.items()]:
            for run in runs:
                summary = summarise(run.folder)
                entries.append(score(summary, name, target, metric))
                used.append((summary, run.command))
    return entries, used
