"""Planned runs, and training them one after the other.

Every run is a process of its own (``scripts/train.py``), so that it has its own threads, memory and
random state, and a crash takes nothing else with it. Runs go one at a time by default: several on
the same cores would disturb the clock that figures show.

Training the runs of a comparison: resumed where they stopped, and tried twice where they fail.

A comparison that is killed leaves its runs alive: they are in sessions of their own. The next start
waits for them; training beside them would disturb the clock, and they cannot be trained twice.

Which of the data sets that runs need are there: asked before any training starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import get_method

from experiments.base.environment import REPOSITORY
from experiments.base.errors import DataError, RecordError
from experiments.base.files import is_held
from experiments.run.config import check_config, identity, load_config, resolve, run_folder
from experiments.run.records import Record, finished

Say = Callable[[str], None]


@dataclass(frozen=True)
class PlannedRun:
    """One training run that a figure or a search needs.

    Attributes:
        dataset: data set name.
        optimizer: optimizer name.
        seed: seed.
        folder: where its record is, or will be.
        overrides: what the result depends on, as arguments of ``scripts/train.py``.
        places: where data and records lie: arguments that a result does not depend on.
        identity: hash of the configuration, whatever hash the folder of an older record has.
    """

    dataset: str
    optimizer: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    places: tuple[str, ...]
    identity: str = ""

    @property
    def name(self) -> str:
        """What messages call the run."""
        return f"{self.dataset} · {self.optimizer} · seed {self.seed}"

    @property
    def command(self) -> str:
        """The command that makes this run, with default places."""
        return " ".join(["python scripts/train.py", *self.overrides])


def planned(
    experiment: str,
    dataset: str,
    optimizer: str,
    seeds: Sequence[int],
    overrides: Sequence[str],
    where: Sequence[str],
) -> list[PlannedRun]:
    """Return the runs of one experiment for several seeds; it is composed only once.

    Args:
        experiment: its name; empty: none.
        dataset: data set name, for messages.
        optimizer: optimizer name, for messages.
        seeds: seeds of the runs.
        overrides: what to change in every run.
        where: see :func:`places`.

    Raises:
        ConfigError: the experiment or an override is unknown, or parts do not fit.
    """
    chosen = [f"experiment={experiment}"] if experiment else []
    config = resolve(load_config([*chosen, *overrides, *where]))
    check_config(config)
    return [
        PlannedRun(
            dataset,
            optimizer,
            seed,
            run_folder({**config, "seed": seed}).absolute(),
            (*chosen, f"seed={seed}", *overrides),
            tuple(where),
            identity(config),
        )
        for seed in seeds
    ]


def interleave(groups: Sequence[Sequence[PlannedRun]]) -> list[PlannedRun]:
    """Order the runs of one data set: by seed, optimizers rotated from seed to seed.

    Args:
        groups: for each optimizer its runs, the same seeds in the same order.
    """
    ordered = []
    for turn, same_seed in enumerate(zip(*groups, strict=True)):
        start = turn % len(same_seed)
        ordered += [*same_seed[start:], *same_seed[:start]]
    return ordered


def execute(
    runs: Sequence[PlannedRun], jobs: int, say: Say, train: Sequence[str] | None = None
) -> dict[str, str]:
    """Train the runs that are not finished; return why, for each that could not be.

    Ctrl-C and SIGTERM are passed on to the runs, which write a checkpoint and stop; the same call
    resumes them.

    Args:
        runs: what to run, in this order.
        jobs: processes at a time.
        say: prints one line.
        train: the training command, to which overrides are appended.

    Raises:
        KeyboardInterrupt: a signal came; every run has stopped.
    """
    command = list(train or [sys.executable, str(REPOSITORY / "scripts" / "train.py")])
    environment = dict(os.environ)
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    waiting = [run for run in runs if not finished(run.folder)]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs are done already")
    failures: dict[str, str] = {}
    live: dict[subprocess.Popen[bytes], PlannedRun] = {}
    total, began, started = len(waiting), time.monotonic(), 0
    try:
        while waiting or live:
            while waiting and len(live) < jobs:
                run = waiting.pop(0)
                started += 1
                elapsed = time.monotonic() - began
                say(f"[{started}/{total}] {run.name} ({elapsed:.0f} s so far)")
                # A session of its own: the terminal's Ctrl-C reaches it through us, exactly once.
                arguments = [*command, *run.overrides, *run.places]
                process = subprocess.Popen(
                    arguments, cwd=REPOSITORY, env=environment, start_new_session=True
                )
                live[process] = run
            time.sleep(0.05)
            for process in [process for process in live if process.poll() is not None]:
                run = live.pop(process)
                if reason := _failure(run, process.returncode):
                    failures[run.name] = reason
                    say(f"    failed: {reason}")
    finally:
        if live:
            say("stopping after the current step; Ctrl-C again ends it at once")
        _stop(list(live))
    return failures


def execute_all(
    runs: Sequence[PlannedRun],
    jobs: int,
    say: Say,
    train: Sequence[str] | None = None,
    *,
    consequence: str,
) -> None:
    """Train the runs that are not finished, all of them; see :func:`execute`.

    Args:
        runs: what to run, in this order.
        jobs: processes at a time.
        say: prints one line.
        train: the training command.
        consequence: what does not happen if runs fail, such as "figure-1 is not drawn".

    Raises:
        RecordError: runs failed; every one of them is named, with its reason.
        KeyboardInterrupt: a signal came; every run has stopped.
    """
    failures = execute(runs, jobs, say, train)
    if failures:
        raise RecordError(
            f"{consequence}, {len(failures)} of {len(runs)} runs failed:{listed(failures)}"
        )


def listed(failures: Mapping[str, str]) -> str:
    """Return what :func:`execute` returned as indented lines, a line break before each."""
    return "".join(f"\n  {name}: {reason}" for name, reason in failures.items())


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt runs and wait for their checkpoints; a second Ctrl-C, or two minutes, end them."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    try:
        for process in processes:
            process.wait(timeout=120)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            process.kill()


def _failure(run: PlannedRun, code: int) -> str | None:
    """Return why a run did not finish, or None where it did."""
    try:
        if finished(run.folder):
            return None
        status = Record(run.folder).status() or {}
    except RecordError as error:
        return str(error)
    if status.get("state") == "failed" and status.get("error"):
        return str(status["error"])
    return f"it ended with exit status {code}; its own message is above. Command: {run.command}"


def train_all(
    runs: Sequence[PlannedRun], jobs: int, say: Say, train: Sequence[str] | None = None
) -> None:
    """Train the runs that are not finished; a run that fails is tried once more.

    A run that diverged is finished.

    Args:
        runs: what to train, in this order.
        jobs: processes at a time.
        say: prints one line.
        train: the training command; see :func:`experiments.studies.execute.execute`.

    Raises:
        RecordError: runs failed twice; all of them are named.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    wait_for_others(runs, say)
    failures = execute(list(runs), jobs, say, train)
    if failures:
        say(f"{len(failures)} runs failed; once more:")
        again = [run for run in runs if not finished(run.folder)]
        wait_for_others(again, say)
        failures = execute(again, jobs, say, train)
    if failures:
        raise RecordError(f"{len(failures)} of {len(runs)} runs failed twice:{listed(failures)}")


def wait_for_others(
    runs: Sequence[PlannedRun], say: Say, pause: Callable[[float], None] = time.sleep
) -> None:
    """Wait while another process trains one of the runs."""
    told = False
    while busy := [run for run in runs if held(run.folder)]:
        if not told:
            say(f"waiting for another process that trains {busy[0].name}")
            told = True
        pause(0.5)


def held(folder: Path) -> bool:
    """Return whether a living process trains the run in a folder."""
    return is_held(Record(folder).lock_path)


def check_data(run: PlannedRun) -> None:
    """Load the data set of a run once, to learn whether it is there before any training starts.

    Raises:
        DataError: it is missing or damaged.
    """
    dataset = resolve(load_config([*run.overrides, *run.places]))["dataset"]
    load = get_method(dataset["_target_"])
    load(**{key: value for key, value in dataset.items() if key not in ("_target_", "task")})


def available(
    runs: Mapping[str, list[PlannedRun]],
    say: Say,
    check: Callable[[PlannedRun], None] = check_data,
) -> dict[str, list[PlannedRun]]:
    """Leave out the data sets that are not there, and say so.

    Raises:
        DataError: none is there.
    """
    kept: dict[str, list[PlannedRun]] = {}
    reasons = []
    for dataset, of_dataset in runs.items():
        if not of_dataset:
            reasons.append(f"{dataset}: this version has no configs/dataset/{dataset}.yaml")
        elif all(finished(run.folder) for run in of_dataset):
            kept[dataset] = of_dataset
        else:
            try:
                check(of_dataset[0])
            except DataError as error:
                reasons.append(f"{dataset}: {error}")
            else:
                kept[dataset] = of_dataset
    if not kept:
        raise DataError("none of the data sets is available:\n  " + "\n  ".join(reasons))
    for reason in reasons:
        say(f"left out: {reason}")
    return kept
