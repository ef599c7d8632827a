"""One run from its configuration to its record: ``run(config)``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from experiments.build import build
from experiments.clock import Clock
from experiments.config import (
    Config,
    TrainerSettings,
    check_config,
    identity,
    part_name,
    resolve,
    run_folder,
)
from experiments.device import (
    choose_device,
    describe,
    peak_memory_mb,
    reset_peak_memory,
    synchroniser,
    torch_threads,
)
from experiments.environment import git_commit, git_dirty, versions
from experiments.errors import RecordError, UserError
from experiments.interrupts import Interrupted, Interrupts, catch_interrupts
from experiments.progress import ProgressBar
from experiments.records import (
    DIVERGED,
    DONE,
    FAILED,
    FINAL_STATES,
    INTERRUPTED,
    RUNNING,
    Record,
)
from experiments.tracking import Tracker, make_tracker
from experiments.trainer import Diverged, Trainer
from snopt import SolverError


@dataclass(frozen=True)
class RunResult:
    """What became of a run.

    Attributes:
        folder: its record.
        state: ``done`` or ``diverged``.
        error: why it diverged, or None.
        skipped: the record was complete already and nothing was trained.
        results: the test results (``test/loss``, …); empty where it diverged.
    """

    folder: Path
    state: str
    error: str | None = None
    skipped: bool = False
    results: Mapping[str, float] = field(default_factory=dict)


def run(config: DictConfig | Mapping[str, Any]) -> RunResult:
    """Train what ``config`` describes, or go on with it, or skip it where its record is complete.

    Args:
        config: composed from ``configs/train.yaml``; see :func:`experiments.config.load_config`.

    Returns:
        The result. A run that diverged is a result too: the record says why.

    Raises:
        UserError: something about the configuration, data, record or tracker is wrong.
        Interrupted: Ctrl-C or SIGTERM; the record can be resumed.
    """
    plain = resolve(config)
    check_config(plain)
    device = choose_device(str(plain["device"]))
    clock = Clock(synchroniser(device))
    settings = TrainerSettings.from_config(plain["trainer"])
    record = Record(run_folder(plain))
    progress = ProgressBar(settings.progress)
    tracker = make_tracker(plain, record.folder)
    state = record.state
    if state in FINAL_STATES and not settings.restart:
        progress.say(f"{_title(plain)}: {state} already, skipped ({record.folder})")
        return _recorded(record)
    with record.locked(), catch_interrupts() as interrupts, torch_threads(settings.threads):
        if settings.restart:
            record.clear()
        session = _Session(plain, settings, record, device, clock, tracker, progress)
        return session.run(interrupts)


@dataclass(frozen=True)
class _Session:
    """One process working on one run: moves the record from state to state."""

    config: Config
    settings: TrainerSettings
    record: Record
    device: torch.device
    clock: Clock
    tracker: Tracker
    progress: ProgressBar

    def run(self, interrupts: Interrupts) -> RunResult:
        """Train and record the outcome, whatever it is."""
        reset_peak_memory(self.device)
        self._start()
        try:
            with self.progress:
                results = self._train(interrupts)
        except (Diverged, SolverError) as error:
            self._end(DIVERGED, error)
            return RunResult(self.record.folder, DIVERGED, error=str(error))
        except KeyboardInterrupt as error:
            self._end(INTERRUPTED, error)
            raise
        except BaseException as error:
            # A full disk must not hide the first error behind a second one.
            with suppress(RecordError):
                self._end(FAILED, error)
            raise
        self._end(DONE, None, results)
        return RunResult(self.record.folder, DONE, results=results)

    def _train(self, interrupts: Interrupts) -> dict[str, float]:
        trainer = Trainer(
            build(self.config, self.device),
            self.settings,
            seed=self.config["seed"],
            run=f"{identity(self.config)}-{self.config['seed']}",
            record=self.record,
            clock=self.clock,
            tracker=self.tracker,
            progress=self.progress,
            interrupts=interrupts,
        )
        return trainer.fit()

    def _start(self) -> None:
        before = self.record.status() or {}
        self.record.write_config(self.config)
        self.record.write_status(
            RUNNING,
            error=None,
            versions=versions(),
            git_commit=git_commit(),
            git_dirty=git_dirty(),
            device=describe(self.device),
            threads=torch.get_num_threads(),
            started_at=before.get("started_at", _now()),
            starts=before.get("starts", 0) + 1,
        )
        again = f" (was {before['state']})" if before else ""
        self.progress.say(f"{_title(self.config)}: training{again} in {self.record.folder}")

    def _end(
        self, state: str, error: BaseException | None, results: Mapping[str, float] | None = None
    ) -> None:
        """Close the mirror and write the final status; the last reading of the clock is here."""
        self.tracker.finish(state)
        reason = None if error is None else _first_line(error)
        seconds = self.clock.seconds()
        self.record.write_status(
            state,
            error=reason,
            peak_memory_mb=round(peak_memory_mb(self.device), 1),
            seconds=seconds,
            wall_s=self.clock.wall(),
            ended_at=_now(),
        )
        if isinstance(error, UserError):
            return  # The command line prints its message; once is enough.
        numbers = "".join(f", {key} {value:.4g}" for key, value in (results or {}).items())
        why = f": {reason}" if reason else ""
        self.progress.say(
            f"{_title(self.config)}: {state}{why}{numbers}, {seconds['train']:.1f} s of training"
        )


def _recorded(record: Record) -> RunResult:
    """Return the result of a run whose record is complete."""
    status = record.status() or {}
    rows = record.rows()
    last = rows[-1] if rows else {}
    results = {key: value for key, value in last.items() if key.startswith("test/")}
    return RunResult(record.folder, status["state"], status.get("error"), True, results)


def _title(config: Config) -> str:
    names = "/".join(part_name(config, part) for part in ("task", "dataset", "optimizer"))
    return f"{names} seed {config['seed']}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, Interrupted | Diverged | SolverError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
