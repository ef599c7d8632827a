"""How much an optimizer's result depends on its settings: which runs that needs, what they say.

Every optimizer is run at evenly spaced learning rates (on a logarithmic scale) around the setting
it has, the rest of its settings held; those with a damping also on a grid of learning rate and
damping. All runs have the same number of steps. ``configs/sensitivity.yaml`` says what is run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.base.errors import ConfigError, RecordError
from experiments.run.config import CONFIGS, load_config, places, resolve
from experiments.run.records import DIVERGED, DONE, Summary
from experiments.studies.execute import PlannedRun, interleave, planned

CUT = "cut"
"""State of a run that was stopped by its time limit before its last step."""

MARGIN = 0.01
"""What counts as as good as the best: one percentage point of accuracy."""


@dataclass(frozen=True)
class Point:
    """Settings of one optimizer.

    Attributes:
        optimizer: optimizer name.
        lr: learning rate.
        damping: damping, NaN where the optimizer has none.
        line: whether it is a point of the line over the learning rate.
        map: whether it is a point of the map over learning rate and damping.
    """

    optimizer: str
    lr: float
    damping: float
    line: bool
    map: bool

    @property
    def label(self) -> str:
        """What messages call it."""
        damping = "" if math.isnan(self.damping) else f", damping {self.damping:g}"
        return f"{self.optimizer}, lr {self.lr:g}{damping}"


@dataclass(frozen=True)
class Entry:
    """One finished run.

    Attributes:
        optimizer: optimizer name.
        lr: learning rate.
        damping: damping, NaN where the optimizer has none.
        line: whether it is a point of the line over the learning rate.
        map: whether it is a point of the map over learning rate and damping.
        seed: seed.
        accuracy: final validation accuracy; that of guessing where the run diverged.
        state: ``done``, ``diverged`` (loss or weights not finite, or the ODE could not be solved)
            or ``cut`` (stopped by the time limit).
        steps: steps taken.
        seconds: training seconds.
    """

    optimizer: str
    lr: float
    damping: float
    line: bool
    map: bool
    seed: int
    accuracy: float
    state: str
    steps: int
    seconds: float


def scale(middle: float, points: int, decades: float) -> list[float]:
    """Return values evenly spaced on a logarithmic scale, three digits each.

    Args:
        middle: the middle one.
        points: how many, an odd number.
        decades: powers of ten from the first to the last.
    """
    half = points // 2
    powers = [decades * place / (2 * half) if half else 0.0 for place in range(-half, half + 1)]
    return [float(f"{middle * 10.0**power:.3g}") for power in powers]


@dataclass(frozen=True)
class Sensitivity:
    """What is run; see ``configs/sensitivity.yaml``.

    Attributes:
        experiment: experiment file that all runs have in common.
        dataset: data set name.
        chance: accuracy of guessing.
        lr: ``points`` and ``decades`` of the line.
        map: ``every`` how many learning rates, ``points`` and ``decades`` of the damping.
        optimizers: name → its settings and the name of its damping, if it has one.
    """

    experiment: str
    dataset: str
    chance: float
    lr: Mapping[str, Any]
    map: Mapping[str, Any]
    optimizers: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, path: Path = CONFIGS / "sensitivity.yaml") -> Sensitivity:
        """Read the description.

        Raises:
            ConfigError: the file is missing or lacks a part, or a number of points is not odd.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            keys = ("experiment", "dataset", "chance", "lr", "map", "optimizers")
            found = cls(**{key: content[key] for key in keys})
            counts = [found.lr["points"], found.map["points"]]
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no description of a sensitivity: {error!r}") from error
        if any(count < 3 or count % 2 == 0 for count in counts):
            raise ConfigError(f"{path}: points must be odd and at least 3, got {counts}")
        return found

    def points(self, optimizer: str) -> list[Point]:
        """Return the points of an optimizer: the line, then what the map has more."""
        spec = self.optimizers[optimizer]
        settings, name = spec["settings"], spec.get("damping")
        rates = scale(settings["lr"], self.lr["points"], self.lr["decades"])
        if name is None:
            return [Point(optimizer, lr, math.nan, True, False) for lr in rates]
        of_map = rates[:: self.map["every"]]
        middle = settings[name]
        dampings = scale(middle, self.map["points"], self.map["decades"])
        line = [Point(optimizer, lr, middle, True, lr in of_map) for lr in rates]
        return line + [
            Point(optimizer, lr, damping, False, True)
            for damping in dampings
            if damping != middle
            for lr in of_map
        ]

    def overrides(self, point: Point) -> list[str]:
        """Return what a point changes in the experiment."""
        spec = self.optimizers[point.optimizer]
        settings = {**spec["settings"], "lr": point.lr}
        if "damping" in spec:
            settings[spec["damping"]] = point.damping
        return [
            f"optimizer={point.optimizer}",
            *(f"optimizer.{key}={value}" for key, value in settings.items()),
        ]


def plan(
    sensitivity: Sensitivity,
    seeds: Sequence[int],
    changes: Sequence[str],
    data_dir: Path,
    output_dir: Path,
    optimizers: Sequence[str] = (),
) -> list[tuple[Point, PlannedRun]]:
    """Return every run with its point, by seed, points rotated from seed to seed.

    Args:
        sensitivity: what is run.
        seeds: seeds of every point.
        changes: overrides of every run.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        optimizers: names, to leave the others out; empty means all.

    Raises:
        ConfigError: an override is unknown, or seeds are not all different.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be different whole numbers, got {list(seeds)}")
    where = (*places(data_dir, output_dir), "tracking=none")
    groups, points = [], {}
    for optimizer in optimizers or sensitivity.optimizers:
        for point in sensitivity.points(optimizer):
            overrides = [*sensitivity.overrides(point), *changes]
            group = planned(
                sensitivity.experiment,
                *(sensitivity.dataset, point.label, seeds, overrides, where),
            )
            points.update({run.folder: point for run in group})
            groups.append(group)
    return [(points[run.folder], run) for run in interleave(groups)]


def budget(sensitivity: Sensitivity, changes: Sequence[str]) -> tuple[int | None, float | None]:
    """Return the steps and the training seconds that every run has at most."""
    config = resolve(load_config([f"experiment={sensitivity.experiment}", *changes]))
    return config["trainer"]["max_steps"], config["trainer"]["max_seconds"]


def score(run: Summary, point: Point, steps: int | None, chance: float) -> Entry:
    """Return what a finished run says.

    Raises:
        RecordError: it is not finished, or was never validated.
    """
    if run.state not in (DONE, DIVERGED):
        raise RecordError(f"{run.name} ({point.label}) is {run.state}")
    last = max(run.metrics, key=lambda row: row["step"], default={"step": 0, "time/train_s": 0.0})
    values = [row["val/accuracy"] for row in run.metrics if "val/accuracy" in row]
    state, accuracy = run.state, chance
    if state == DONE:
        if not values:
            raise RecordError(f"{run.name} ({point.label}) was never validated: {run.folder}")
        accuracy = float(values[-1])
        state = CUT if steps is not None and last["step"] < steps else DONE
    return Entry(
        **vars(point),
        seed=run.seed,
        accuracy=accuracy,
        state=state,
        steps=int(last["step"]),
        seconds=float(last["time/train_s"]),
    )


def medians(entries: Sequence[Entry]) -> dict[tuple[float, float], float]:
    """Return the median accuracy over seeds by learning rate and damping (0 for none)."""
    groups: dict[tuple[float, float], list[float]] = {}
    for entry in entries:
        damping = 0.0 if math.isnan(entry.damping) else entry.damping
        groups.setdefault((entry.lr, damping), []).append(entry.accuracy)
    return {key: statistics.median(values) for key, values in sorted(groups.items())}


def within(values: Sequence[float], best: float, margin: float = MARGIN) -> int:
    """Return how many values are at most ``margin`` below the best one."""
    return sum(value >= best - margin - 1e-9 for value in values)
