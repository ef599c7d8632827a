"""The jobs of one pass, by one of Hydra's launchers.

``python -m experiments.studies.sweeps.launch`` starts it.

A process of its own, without the terminal: Ctrl-C there reaches the process that drives the sweep
alone, which asks the jobs to stop (:mod:`experiments.studies.sweeps.session`). joblib would kill
its workers, and what they started, without a chance to write a checkpoint.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from experiments.base.environment import REPOSITORY
from experiments.base.errors import ConfigError, suggestion
from experiments.run.config import CONFIGS, quoted
from experiments.studies.sweeps.job import environment, work
from experiments.studies.sweeps.plan import load
from experiments.studies.sweeps.session import Session, Ticket

LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")

LOG = "launcher.log"


@dataclass(frozen=True)
class Launcher:
    """How jobs are started.

    Attributes:
        name: one of :data:`LAUNCHERS`.
        jobs: runs at a time.
        settings: further arguments of Hydra's, such as ``hydra.launcher.partition=gpu``.
    """

    name: str
    jobs: int
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ConfigError: the launcher is unknown, or cannot run so many at a time.
        """
        if self.name not in LAUNCHERS:
            close = suggestion(self.name, LAUNCHERS)
            valid = ", ".join(LAUNCHERS)
            raise ConfigError(f"unknown launcher {self.name!r}{close}; valid: {valid}")
        if self.jobs < 1:
            raise ConfigError(f"jobs must be at least 1, got {self.jobs}")
        if self.name == "basic" and self.jobs > 1:
            raise ConfigError(f"launcher=basic runs one at a time, not {self.jobs}: use joblib")

    @property
    def local(self) -> bool:
        """Whether jobs run on this machine."""
        return self.name != "submitit_slurm"

    def arguments(self) -> list[str]:
        """Return the arguments that choose it."""
        found = [f"hydra/launcher={self.name}"]
        if self.name == "joblib":
            # One job at a time to a worker: jobs that wait in a worker's queue would be lost to it.
            found += [f"hydra.launcher.n_jobs={self.jobs}", "hydra.launcher.batch_size=1"]
        elif self.name == "submitit_local":
            # It has no queue: what it gets, it starts at once. And it ends jobs after a time.
            found += [f"hydra.sweeper.max_batch_size={self.jobs}"]
            found += ["hydra.launcher.timeout_min=100000"]
        elif self.name == "submitit_slurm":
            found += [f"hydra.launcher.array_parallelism={self.jobs}"]
        return [*found, *self.settings]


def start(
    session: Session,
    numbers: Sequence[int],
    launcher: Launcher,
    places: Sequence[str],
    train: Sequence[str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the jobs of some runs; the process ends when all of them have ended.

    Args:
        session: by whose leave.
        numbers: places of the runs in the sweep.
        launcher: how.
        places: arguments of every run that say where data and records lie.
        train: the training command; None: ``scripts/train.py``.
    """
    arguments = [
        *(sys.executable, "-m", "experiments.studies.sweeps.launch", "--multirun"),
        *launcher.arguments(),
        f"folder={quoted(session.folder)}",
        f"token={session.token}",
        f"local={str(launcher.local).lower()}",
        f"places={_list(places)}",
        f"run={','.join(str(number) for number in numbers)}",
    ]
    if train is not None:
        arguments.append(f"train={_list(train)}")
    with (session.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            arguments,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(launcher.jobs if launcher.local else 1),
        )


def _list(items: Sequence[str]) -> str:
    """Return a list as Hydra's command line reads it: every item quoted."""
    escaped = (item.replace("\\", "\\\\").replace("'", "\\'") for item in items)
    return "[" + ",".join(f"'{item}'" for item in escaped) + "]"


@hydra.main(config_path=str(CONFIGS), config_name="sweep", version_base="1.3")
def job(config: DictConfig) -> None:
    """Do one job; Hydra's launchers call this, in whatever process they use."""
    sweep = load(Path(config.folder))
    ticket = Ticket(sweep.folder, str(config.token), bool(config.local))
    train = None if config.train is None else list(OmegaConf.to_container(config.train) or [])
    places = list(OmegaConf.to_container(config.places) or [])
    work(sweep, int(config.run), ticket, [str(p) for p in places], train and list(map(str, train)))


if __name__ == "__main__":
    job()
