"""Reproduce a figure: list its runs, train what is missing, draw.

Seeds come first and optimizers alternate within a seed, starting with another one each time, so
that a machine that slows down hits all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

from experiments.base.errors import ConfigError
from experiments.figures import (
    ablation,
    figure_1,
    figure_6,
    figure_7,
    figure_8,
    figure_9,
    figure_density,
    figure_factors,
    figure_refresh,
    figure_spectrum,
    table_1,
    table_2,
    table_3,
    table_4,
    table_5,
)
from experiments.run.config import options, places
from experiments.studies.execute import PlannedRun, Say, available, execute_all, interleave, planned

TARGETS = {figure_1.NAME: figure_1, figure_6.NAME: figure_6}

# Targets that plan their own measurements or runs.
MEASURED = {
    module.NAME: module
    for module in (
        ablation,
        figure_7,
        figure_8,
        figure_9,
        figure_density,
        figure_factors,
        figure_refresh,
        figure_spectrum,
        table_1,
        table_2,
        table_3,
        table_4,
        table_5,
    )
}
"""What can be reproduced, by name."""

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Request:
    """What to reproduce, and where everything lies.

    Attributes:
        target: name in :data:`TARGETS`.
        profile: ``"embedded"`` (no network) or ``"paper"`` (published data and settings).
        seeds: seeds of every curve.
        overrides: changes to every run, as on the command line of ``scripts/train.py``.
        data_dir: where data sets lie.
        output_dir: where run records lie.
        results_dir: where figures go; the profile ``paper`` gets a folder of its own.
        jobs: runs at a time.
        x: what curves are drawn against, where the figure has a choice.
    """

    target: str
    profile: str = "embedded"
    seeds: Sequence[int] = SEEDS
    overrides: Sequence[str] = ()
    data_dir: Path = Path("data")
    output_dir: Path = Path("outputs")
    results_dir: Path = Path("results")
    jobs: int = 1
    x: str = "time"

    @property
    def folder(self) -> Path:
        """Where the figure goes."""
        suffix = "" if self.profile == "embedded" else f"-{self.profile}"
        return self.results_dir / f"{self.target}{suffix}"

    @property
    def command(self) -> str:
        """The command that makes the figure, with default places."""
        seeds = ",".join(str(seed) for seed in self.seeds)
        axis = self.x != "time"
        if not self.overrides:
            line = f"make reproduce-{self.target} PROFILE={self.profile} SEEDS={seeds}"
            return line + f" X={self.x}" * axis
        start = f"python scripts/reproduce.py {self.target}"
        line = " ".join([start, *self.overrides, f"--profile {self.profile} --seeds {seeds}"])
        return line + f" --x {self.x}" * axis


def plan(request: Request) -> dict[str, list[PlannedRun]]:
    """Return the runs of a figure by data set, in the order of training.

    A data set that this version has no loader for gets an empty list.

    Raises:
        ConfigError: unknown target, profile, axis or override, or seeds not all different.
    """
    if request.target not in TARGETS:
        valid = ", ".join((*TARGETS, *MEASURED))
        raise ConfigError(f"unknown target {request.target!r}; valid: {valid}")
    figure = TARGETS[request.target]
    if request.profile not in figure.PROFILES:
        valid = ", ".join(figure.PROFILES)
        raise ConfigError(f"unknown profile {request.profile!r}; valid: {valid}")
    axes = getattr(figure, "AXES", ("time",))
    if request.x not in axes:
        raise ConfigError(f"{request.target} has no axis x={request.x!r}; valid: {', '.join(axes)}")
    if not request.seeds or len(set(request.seeds)) < len(request.seeds):
        raise ConfigError(f"seeds must be different whole numbers, got {list(request.seeds)}")
    where = places(request.data_dir, request.output_dir)
    runs: dict[str, list[PlannedRun]] = {}
    for panel in figure.PROFILES[request.profile]:
        groups = []
        if panel.dataset in options("dataset"):
            groups = [
                planned(
                    f"{panel.experiments or request.target}/{panel.dataset}-{optimizer}",
                    *(panel.dataset, optimizer, request.seeds, request.overrides, where),
                )
                for optimizer in figure.OPTIMIZERS
            ]
        runs[panel.dataset] = interleave(groups)
    return runs


def reproduce(request: Request, say: Say, train: Sequence[str] | None = None) -> Path:
    """Train what is missing, draw, and return the folder of the figure.

    A run that fails does not stop the others; panels of data sets that are not available are left
    out with a message.

    Args:
        request: what to reproduce.
        say: prints one line.
        train: the training command; see :func:`experiments.studies.execute.execute`.

    Raises:
        ConfigError: the request names something unknown.
        DataError: no data set is available.
        RecordError: a run failed, so the figure cannot be drawn; all such runs are named.
        KeyboardInterrupt: stopped; what is done is kept.
    """
    if request.target in MEASURED:
        make = MEASURED[request.target].reproduce
        # Measurements are taken one at a time; training runs need not be.
        several = {"jobs": request.jobs} if "jobs" in signature(make).parameters else {}
        make(
            **several,
            profile=request.profile,
            seeds=request.seeds,
            overrides=request.overrides,
            data_dir=request.data_dir,
            output_dir=request.output_dir,
            folder=request.folder,
            command=request.command,
            say=say,
        )
        return request.folder
    runs = [run for group in available(plan(request), say).values() for run in group]
    execute_all(runs, request.jobs, say, train, consequence=f"{request.target} is not drawn")
    figure = TARGETS[request.target]
    figure.make(
        figure.collect({run.name: run.folder for run in runs}),
        request.folder,
        profile=request.profile,
        command=request.command,
        run_commands=[run.command for run in runs],
        **({} if request.x == "time" else {"x": request.x}),
    )
    return request.folder
