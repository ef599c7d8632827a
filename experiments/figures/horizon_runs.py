"""The runs behind figure 9 and table 5: t1 fixed, by the baseline and by feedback, two starts.

Both are drawn from the same records. A run's seed decides its weights and batches, whatever its
mode, so that runs of one seed start alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.base.errors import ConfigError, RecordError
from experiments.run.config import places
from experiments.run.records import FINAL_STATES, Summary, finished, summarise
from experiments.studies.execute import PlannedRun, Say, check_data, execute_all, planned

EXPERIMENTS = "figure-9"
"""Folder of the experiment files, ``<dataset>-<mode>.yaml``."""
MODES = ("fixed", "baseline", "feedback")
STARTS = (1.0, 0.05)
DATASETS = {"embedded": "digits", "paper": "cifar10"}
TITLES = {"digits": "Digits", "cifar10": "CIFAR-10"}


@dataclass(frozen=True)
class HorizonRun:
    """One finished run and what was asked of its integration time.

    Attributes:
        mode: one of :data:`MODES`.
        start: t1 before training.
        summary: its record.
        command: the command that makes it.
    """

    mode: str
    start: float
    summary: Summary
    command: str

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.summary.seed

    @property
    def diverged(self) -> bool:
        """Whether the run ended without a finite loss, or its ODE could not be solved."""
        return self.summary.state == "diverged"

    def t1(self, row: Mapping[str, Any]) -> float:
        """Return t1 at a line of the record; a fixed one is not written there."""
        return float(row.get("horizon/t1", self.start))


@dataclass(frozen=True)
class Planned:
    """A run to be made."""

    mode: str
    start: float
    run: PlannedRun


def plan(
    profile: str, seeds: Sequence[int], overrides: Sequence[str], data_dir: Path, output_dir: Path
) -> list[Planned]:
    """Return the runs in the order of training: by seed, the variants rotated from seed to seed.

    A machine that slows down then hits all variants.

    Raises:
        ConfigError: unknown profile or override, or seeds that are not all different.
    """
    if profile not in DATASETS:
        raise ConfigError(f"unknown profile {profile!r}; valid: {', '.join(DATASETS)}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be different whole numbers, got {list(seeds)}")
    dataset, where = DATASETS[profile], places(data_dir, output_dir)
    variants = []
    for start in STARTS:
        for mode in MODES:
            runs = planned(
                f"{EXPERIMENTS}/{dataset}-{mode}",
                *(dataset, f"SNOpt, t1 {mode} from {start:g}", seeds),
                *((f"model.t1={start:g}", *overrides), where),
            )
            variants.append([Planned(mode, start, run) for run in runs])
    ordered: list[Planned] = []
    for turn, same_seed in enumerate(zip(*variants, strict=True)):
        first = turn % len(same_seed)
        ordered += [*same_seed[first:], *same_seed[:first]]
    return ordered


def obtain(
    target: str, wanted: Sequence[Planned], say: Say, train: Sequence[str] | None = None
) -> list[HorizonRun]:
    """Train what is missing and return all runs.

    Args:
        target: name of the figure or table, for messages.
        wanted: from :func:`plan`.
        say: prints one line.
        train: the training command; see :func:`experiments.studies.execute.execute`.

    Raises:
        DataError: the data set is not there, and a run is missing.
        RecordError: runs failed; all of them are named.
        KeyboardInterrupt: stopped; what is done is kept.
    """
    missing = [one.run for one in wanted if not finished(one.run.folder)]
    if missing:
        check_data(missing[0])
    runs = [one.run for one in wanted]
    execute_all(runs, 1, say, train, consequence=f"{target} is not made")
    return [collect(one) for one in wanted]


def collect(one: Planned) -> HorizonRun:
    """Read the record of a run.

    Raises:
        RecordError: it is missing or damaged, did not finish, or has no test results.
    """
    summary = summarise(one.run.folder)
    if summary.state not in FINAL_STATES:
        raise RecordError(f"{one.run.name} is {summary.state}")
    if summary.state == "done" and "test/accuracy" not in summary.metrics[-1]:
        raise RecordError(f"{one.run.name} has no test accuracy in {summary.folder}")
    return HorizonRun(one.mode, one.start, summary, one.run.command)


def settings(runs: Sequence[HorizonRun]) -> str:
    """Return in words how t1 was trained, as the records' configurations have it.

    Raises:
        RecordError: the runs were trained with different settings.
    """
    found = set()
    for run in runs:
        if run.mode != "fixed":
            config: Any = OmegaConf.load(run.summary.folder / "config.yaml")
            horizon = config["horizon"]
            found.add((horizon["lr"], horizon["cost"], horizon["every"], horizon["minimum"]))
    if len(found) != 1:
        raise RecordError(f"the runs have different settings of the integration time: {found}")
    lr, cost, every, minimum = found.pop()
    return f"η = {lr:g}, c = {cost:g}, an update every {every} steps, t1 ≥ {minimum:g}"
