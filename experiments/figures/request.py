"""What all figures and tables share: the request, what it may ask for, and its runs.

A module of this folder lists its figures in a tuple ``FIGURES``. Each has two functions:
``reproduce`` measures or trains what is missing and writes ``data.csv`` and ``provenance.json``;
``redraw`` draws everything else from these two files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from experiments.base.errors import ConfigError
from experiments.publish.names import place_of
from experiments.publish.provenance import of_runs, publish, run_entry
from experiments.run.config import places
from experiments.run.records import Summary, summarise
from experiments.studies.execute import PlannedRun, Say, execute, interleave, planned

SEEDS = (0, 1, 2)

K = TypeVar("K")


@dataclass(frozen=True)
class Request:
    """What to reproduce, and where everything lies.

    Attributes:
        target: name of a figure or table, such as ``figure-1``.
        profile: ``"embedded"`` (no network) or ``"paper"`` (published data and settings).
        seeds: seeds of every curve.
        overrides: changes to every run, as on the command line of ``scripts/train.py``.
        data_dir: folder of the data sets.
        output_dir: folder of the run records.
        results_dir: folder of the figures.
        jobs: runs at a time, where a figure allows several.
        x: axis of the curves, where a figure has several.
        train: training command; None: ``scripts/train.py``.
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
    train: Sequence[str] | None = None

    @property
    def folder(self) -> Path:
        """Where the figure goes; with fewer seeds or changed runs it is not the published one."""
        suffix = "" if self.profile == "embedded" else f"-{self.profile}"
        seeds = [f"seeds-{listed(self.seeds, '-')}"] if set(self.seeds) < set(SEEDS) else []
        return place_of(self.results_dir, f"{self.target}{suffix}", [*self.overrides, *seeds])

    @property
    def where(self) -> tuple[str, ...]:
        """The overrides that say where data and records lie."""
        return tuple(places(self.data_dir, self.output_dir))

    def runs(
        self, experiment: str, dataset: str, label: str, changes: Sequence[str] = ()
    ) -> list[PlannedRun]:
        """Return the runs of an experiment, one for each seed.

        Args:
            experiment: its name.
            dataset: data set name, for messages.
            label: optimizer or variant, for messages.
            changes: overrides of these runs; those of the request come after them.
        """
        overrides = (*changes, *self.overrides)
        return planned(experiment, dataset, label, self.seeds, overrides, self.where)

    @property
    def command(self) -> str:
        """The command that makes the figure, with default places."""
        seeds = listed(self.seeds, ",")
        axis = self.x != "time"
        if not self.overrides:
            line = f"make reproduce-{self.target} PROFILE={self.profile} SEEDS={seeds}"
            return line + f" X={self.x}" * axis
        start = f"python scripts/reproduce.py {self.target}"
        line = " ".join([start, *self.overrides, f"--profile {self.profile} --seeds {seeds}"])
        return line + f" --x {self.x}" * axis

    def publish(self, data: str, **facts: Any) -> None:
        """Write ``data.csv`` and ``provenance.json``; see :func:`publish`."""
        own = {"target": self.target, "command": self.command}
        publish(self.folder, data, **{**own, **facts})


@dataclass(frozen=True)
class Figure:
    """A figure or table.

    Attributes:
        name: name of the figure and of its folder.
        reproduce: measures or trains what is missing and writes all files.
        redraw: draws a folder again from ``data.csv`` and ``provenance.json``.
        profiles: valid profiles.
        axes: valid axes of its curves.
        takes_overrides: whether there is a configuration to change.
        note: why it has one profile or takes no overrides, for messages.
    """

    name: str
    reproduce: Callable[[Request, Say], None]
    redraw: Callable[[Path], None]
    profiles: Sequence[str] = ("embedded",)
    axes: Sequence[str] = ("time",)
    takes_overrides: bool = True
    note: str = ""

    def check(self, request: Request) -> None:
        """Raise ConfigError for a profile, axis, override or seeds that cannot be asked for."""
        note = f" ({self.note})" if self.note else ""
        if request.profile not in self.profiles:
            valid = ", ".join(self.profiles)
            raise ConfigError(
                f"{self.name} has no profile {request.profile!r}; valid: {valid}{note}"
            )
        if request.x not in self.axes:
            valid = ", ".join(self.axes)
            raise ConfigError(f"{self.name} has no axis x={request.x!r}; valid: {valid}")
        if not request.seeds or len(set(request.seeds)) < len(request.seeds):
            raise ConfigError(f"seeds must be different whole numbers, got {list(request.seeds)}")
        if request.overrides and not self.takes_overrides:
            raise ConfigError(f"{self.name} takes no overrides{note}: {list(request.overrides)}")


@dataclass(frozen=True)
class Made(Generic[K]):
    """A finished run: the line or point it belongs to, its record, the command that makes it."""

    variant: K
    run: Summary
    command: str


def in_turn(variants: Mapping[K, Sequence[PlannedRun]]) -> list[tuple[K, PlannedRun]]:
    """Order runs for training: by seed, variants rotated from seed to seed.

    A machine that slows down then slows all variants alike. All variants have the same seeds.
    """
    return interleave([[(key, run) for run in runs] for key, runs in variants.items()])


def obtain(
    request: Request,
    wanted: Sequence[tuple[K, PlannedRun]],
    say: Say,
    *,
    jobs: int = 1,
    consequence: str = "",
) -> list[Made[K]]:
    """Train what is missing and return all runs, in the order given.

    Args:
        request: what is asked for.
        wanted: each run with its variant, in the order of training.
        say: prints one line.
        jobs: runs at a time; more than one disturbs their clocks.
        consequence: what failed runs prevent, for the message; default: the drawing.

    Raises:
        RecordError: runs failed; the message names all of them.
    """
    consequence = consequence or f"{request.target} is not drawn"
    execute([run for _, run in wanted], jobs, say, request.train, consequence=consequence)
    return [Made(key, summarise(run.folder), run.command) for key, run in wanted]


def facts_of(made: Sequence[Made[Any]]) -> dict[str, Any]:
    """Return what the provenance says of the runs: ``device``, ``seeds`` and ``runs``."""
    return of_runs([run_entry(one.run, one.command) for one in made])


def listed(values: Sequence[object], between: str = ", ") -> str:
    """Return values as a list in words."""
    return between.join(str(value) for value in values)
