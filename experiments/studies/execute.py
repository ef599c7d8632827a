"""Planned runs, and the one place that starts training processes.

Every run is its own process (``scripts/train.py``); a crash takes nothing else with it. Runs go one
at a time by default: several on the same cores disturb the clock that figures show.

Processes are in their own sessions: a worker that is killed leaves its runs alive. The next start
counts such a run among its jobs and waits for its end: the record's lock forbids to train it twice,
and training beside it would disturb the clock. A process gets the lock from who starts it, so that
it is held from the first moment on.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from experiments.base.checks import check_whole
from experiments.base.environment import REPOSITORY
from experiments.base.errors import ConfigError, DataError, RecordError
from experiments.base.files import is_held
from experiments.base.say import duration
from experiments.run.build import check_parts, check_same_data, load_data
from experiments.run.config import check_config, identity, load_config, resolve, run_folder
from experiments.run.records import DONE, FAILED, INTERRUPTED, LOCK, Record, finished

Say = Callable[[str], None]

T = TypeVar("T")

ATTEMPTS = 2
"""How often a run that fails is tried."""

POLL_S = 0.05

GRACE_S = 120.0
"""Seconds that an interrupted run has for its checkpoint."""


@dataclass(frozen=True)
class PlannedRun:
    """One training run that a figure or a search needs."""

    dataset: str
    optimizer: str  # its name, or what else tells the run from others of its data set
    seed: int
    folder: Path  # where its record is, or will be
    overrides: tuple[str, ...]  # what the result depends on, as arguments of scripts/train.py
    places: tuple[str, ...]  # where data and records lie, as further arguments
    identity: str = ""  # hash of the configuration, whatever the folder of an older record has
    data: Mapping[str, Any] = field(default_factory=dict, compare=False)  # the group ``dataset``
    limit: float | None = None  # seconds of training at most

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
    """Return the runs of one experiment (empty: none), one a seed; it is composed only once.

    Messages name ``dataset`` and ``optimizer``; ``overrides`` change every run; ``where`` is what
    :func:`experiments.run.config.places` returns.

    Raises:
        ConfigError: an override is unknown or out of range, or parts do not fit.
    """
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in ("seed", "data_dir", "output_dir"):
            raise ConfigError(
                f"{override} cannot change every run, leave it out: --seeds of reproduce.py,"
                " --data-dir and --output-dir say it"
            )
        if key == "trainer.restart" and value.lower() == "true":
            raise ConfigError(f"{override} would undo what a rerun goes on from: leave it out")
    chosen = [f"experiment={experiment}"] if experiment else []
    config = resolve(load_config([*chosen, *overrides, *where]))
    check_config(config)
    check_parts(config)
    return [
        PlannedRun(
            dataset,
            optimizer,
            seed,
            run_folder({**config, "seed": seed}).absolute(),
            (*chosen, f"seed={seed}", *overrides),
            tuple(where),
            identity(config),
            config["dataset"],
            config["trainer"]["max_seconds"],
        )
        for seed in seeds
    ]


def interleave(groups: Sequence[Sequence[T]]) -> list[T]:
    """Order the runs of several optimizers so that drift of the machine hits all of them alike.

    The first run of each group, then the second of each, and so on, another group first each time.
    """
    ordered: list[T] = []
    for turn, same_seed in enumerate(zip(*groups, strict=True)):
        start = turn % len(same_seed)
        ordered += [*same_seed[start:], *same_seed[:start]]
    return ordered


@dataclass(eq=False)
class Job:
    """A run that was given to :class:`Training`."""

    run: PlannedRun
    process: subprocess.Popen[bytes] | None = None  # None while another process trains the run
    error: str | None = None  # why it failed; None where it is finished, was interrupted or goes on


def shared_cores(jobs: int) -> dict[str, str]:
    """Return the environment of processes of which as many run at a time, with as many threads.

    Raises:
        ConfigError: ``jobs`` is no whole number of at least 1.
    """
    check_whole("jobs", jobs)
    if jobs == 1:
        return dict(os.environ)
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}


class Training:
    """Training processes. Leaving the context interrupts those that are alive.

    Args:
        jobs: processes at a time; they share the cores.
        say: prints one line.
        train: the training command, to which a run's arguments are appended; None:
            ``scripts/train.py``.
        log: where the output of a run is appended; None: it goes where ours goes.
    """

    def __init__(
        self,
        jobs: int,
        say: Say,
        train: Sequence[str] | None = None,
        log: Callable[[PlannedRun], Path] | None = None,
    ) -> None:
        """Start nothing."""
        self.jobs = jobs
        self.live: list[Job] = []
        self._say = say
        self._command = list(train or [sys.executable, str(REPOSITORY / "scripts" / "train.py")])
        self._log = log
        self._environment = shared_cores(jobs)

    def __enter__(self) -> Training:
        """Start nothing."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Interrupt runs and wait for their checkpoints; Ctrl-C again, or two minutes, end them.

        What has to be quick for us, as after SIGTERM, has to be so for them.
        """
        processes = [job.process for job in self.live if job.process is not None]
        if processes:
            self._say("stopping after the current step; Ctrl-C again ends it at once")
        hurried = getattr(error, "signal", signal.SIGINT) != signal.SIGINT
        for process in processes:
            process.send_signal(signal.SIGTERM if hurried else signal.SIGINT)
        try:
            for process in processes:
                process.wait(timeout=GRACE_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            for process in processes:
                process.kill()

    @property
    def free(self) -> bool:
        """Whether there is room for another run."""
        return len(self.live) < self.jobs

    def start(self, run: PlannedRun) -> Job:
        """Train a run, or wait for the process that trains it already."""
        job = Job(run)
        self.live.append(job)
        job.process = self.launch(run)
        if job.process is None:
            self._say(f"waiting for another process that trains {run.name}")
        return job

    def launch(self, run: PlannedRun) -> subprocess.Popen[bytes] | None:
        """Start the process of a run; None: another process trains it."""
        lock, output = None, None
        try:
            lock = Record(run.folder).acquire()
        except BlockingIOError:
            return None
        except OSError:
            pass  # training says what is wrong with the folder
        if self._log is not None:
            path = self._log(run)
            path.parent.mkdir(parents=True, exist_ok=True)
            output = path.open("ab")
        # A session of its own: the terminal's Ctrl-C reaches it through us, exactly once. A cluster
        # announces the end of a job by SIGUSR1 or SIGUSR2 to all of its processes: they are the
        # launcher's affair, and a run would die of them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
        try:
            return subprocess.Popen(
                [*self._command, *run.overrides, *run.places],
                cwd=REPOSITORY,
                env=self._environment if lock is None else {**self._environment, LOCK: str(lock)},
                pass_fds=() if lock is None else (lock,),
                stdin=None if output is None else subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if output is not None:
                output.close()
            if lock is not None:
                os.close(lock)

    def ended(self) -> list[Job]:
        """Wait a moment, then return the jobs that have ended since the last call."""
        time.sleep(POLL_S)
        over = []
        for job in self.live:
            if job.process is None:
                if held(job.run.folder):
                    continue
                if not _finished(job.run):  # the other process was stopped: it is ours now
                    job.process = self.launch(job.run)
                    continue
            elif job.process.poll() is None:
                continue
            else:
                job.error = self._reason(job.run, job.process.returncode)
            over.append(job)
        self.live = [job for job in self.live if job not in over]
        return over

    def _reason(self, run: PlannedRun, code: int) -> str | None:
        """Return why a run failed; None where it is finished or was interrupted."""
        try:
            status = Record(run.folder).status() or {}
            if finished(run.folder) or status.get("state") == INTERRUPTED:
                return None
        except RecordError as error:
            return str(error)
        if status.get("state") == FAILED and status.get("error"):
            return str(status["error"])
        if code < 0:
            memory = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"ended by {signal.Signals(-code).name}{memory}"
        if self._log is None:
            return (
                f"it ended with exit status {code}; its own message is above."
                f" Command: {run.command}"
            )
        last = last_line(self._log(run))
        return last.removeprefix("error: ") if code == 2 else f"exit status {code}: {last}"


def estimate(runs: Sequence[PlannedRun], jobs: int) -> str:
    """Return in words how long runs will take: as their other seeds did, or their limit."""
    known: list[float] = []
    for run in runs:
        walls = []
        for folder in run.folder.parent.glob("seed-*"):
            with suppress(RecordError):  # training says what is wrong with it
                status = Record(folder).status() or {}
                walls += [status["wall_s"]] if status.get("state") == DONE else []
        known += [statistics.fmean(walls)] if walls else filter(None, [run.limit])
    if not known:
        return "how long they take is known after the first"
    # Fewer runs than jobs take as long as one.
    return f"about {duration(statistics.fmean(known) * max(1, len(runs) / jobs))}"


def last_line(log: Path) -> str:
    """Return the last words of a process."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def held(folder: Path) -> bool:
    """Return whether a living process trains the run in a folder."""
    return is_held(Record(folder).lock_path)


def complete(run: PlannedRun) -> bool:
    """Return whether a run needs no training.

    Raises:
        RecordError: its record is damaged, or was made of other data than there is now.
    """
    if not finished(run.folder):
        return False
    check_same_data(run.data, Record(run.folder))
    return True


def _finished(run: PlannedRun) -> bool:
    try:
        return finished(run.folder)
    except RecordError:
        return False  # training says what is wrong with it


def execute(
    runs: Sequence[PlannedRun],
    jobs: int,
    say: Say,
    train: Sequence[str] | None = None,
    *,
    consequence: str,
) -> None:
    """Train the runs that are not finished, in this order.

    A run that fails is tried once more, after all others; one that diverged is finished. Ctrl-C and
    SIGTERM are passed on to the runs, which write a checkpoint and stop; the same call resumes
    them. ``consequence`` is what does not happen if runs fail, such as "figure-1 is not drawn".

    Raises:
        RecordError: runs failed; every one of them is named, with its reason.
        KeyboardInterrupt: a signal came; every run has stopped.
    """
    # A run that a killed command left alive comes first: nothing is trained beside it.
    missing = [run for run in runs if not complete(run)]
    waiting = deque(sorted(missing, key=lambda run: not held(run.folder)))
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs are done already")
    if waiting:
        say(f"{len(waiting)} runs to train: {estimate(waiting, jobs)}")
    total, began, started = len(waiting), time.monotonic(), 0
    failures: dict[str, str] = {}
    with Training(jobs, say, train) as training:
        while waiting or training.live:
            while waiting and training.free:
                run = waiting.popleft()
                started += 1
                elapsed, ended = time.monotonic() - began, started - 1 - len(training.live)
                left = f", {duration(elapsed / ended * (total - ended))} left" if ended else ""
                say(f"[{started}/{total}] {run.name} ({duration(elapsed)} so far{left})")
                training.start(run)
            for job in training.ended():
                if job.error is None and _finished(job.run):
                    failures.pop(job.run.name, None)
                    continue
                reason = job.error or "it was interrupted"
                first = job.run.name not in failures
                failures[job.run.name] = reason
                say(f"    failed: {reason}{' (it is tried once more)' if first else ''}")
                if first:
                    waiting.append(job.run)
                    total += 1
    if failures:
        lines = listed(failures)
        raise RecordError(f"{consequence}, {len(failures)} of {len(runs)} runs failed:{lines}")


def listed(failures: Mapping[str, str]) -> str:
    """Return the reasons of failures as indented lines, a line break before each."""
    return "".join(f"\n  {name}: {reason}" for name, reason in failures.items())


def available(
    runs: Mapping[str, list[PlannedRun]],
    say: Say,
    check: Callable[[Mapping[str, Any]], object] = load_data,
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
                check(of_dataset[0].data)
            except DataError as error:
                reasons.append(f"{dataset}: {error}")
            else:
                kept[dataset] = of_dataset
    if not kept:
        raise DataError("none of the data sets is available:\n  " + "\n  ".join(reasons))
    for reason in reasons:
        say(f"left out: {reason}")
    return kept
