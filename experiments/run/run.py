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

from experiments.base.clock import Clock
from experiments.base.device import (
    describe,
    peak_memory_mb,
    reset_peak_memory,
    synchroniser,
    torch_threads,
)
from experiments.base.environment import code, differences, git_state, versions
from experiments.base.errors import RecordError, TrackingError, UserError
from experiments.base.interrupts import Interrupted, Interrupts, catch_interrupts
from experiments.optimizers.evaluation import Diverged
from experiments.run.build import Parts, build, check_same_data
from experiments.run.config import (
    Config,
    TrainerSettings,
    check_config,
    part_name,
    resolve,
    run_folder,
    run_name,
)
from experiments.run.ranks import Team, joined
from experiments.run.records import (
    DIVERGED,
    DONE,
    FAILED,
    FINAL_STATES,
    INTERRUPTED,
    RUNNING,
    Record,
)
from experiments.run.tracking import Tracker, make_tracker
from experiments.run.trainer import ProgressBar, Trainer
from snopt import SolverError


@dataclass(frozen=True)
class RunResult:
    """What became of a run.

    Attributes:
        folder: its record.
        state: ``done`` or ``diverged``.
        error: why it diverged, or None.
        results: the test results (``test/loss``, …); none where it diverged.
        trained: whether it was trained by this call, and not found complete.
    """

    folder: Path
    state: str
    error: str | None = None
    results: Mapping[str, float] = field(default_factory=dict)
    trained: bool = True


def run(config: DictConfig | Mapping[str, Any]) -> RunResult:
    """Train what ``config`` describes, or go on with it, or skip it where its record is complete.

    Args:
        config: composed from ``configs/train.yaml`` (:func:`experiments.run.config.load_config`).

    Returns:
        The result. A run that diverged is a result too: the record says why.

    Raises:
        UserError: something about the configuration, data, record or tracker is wrong.
        Interrupted: Ctrl-C or SIGTERM; the record can be resumed.
    """
    plain = resolve(config)
    check_config(plain)
    with joined(str(plain["device"])) as (team, device), team.noticing_loss():
        return _run(plain, team, device)


def _run(plain: Config, team: Team, device: torch.device) -> RunResult:
    """Train as one rank of a team; all ranks return the same."""
    clock = Clock(synchroniser(device))
    settings = TrainerSettings.from_config(plain["trainer"])
    record = Record(run_folder(plain))
    progress = ProgressBar(settings.progress if team.first else False, title=_title(plain))
    with team.failing_together():
        tracker = make_tracker(plain, record.folder) if team.first else Tracker()
    complete = team.from_first(lambda: None if settings.restart else _complete(record))
    if complete:
        team.from_first(lambda: check_same_data(plain["dataset"], record))
        if team.first:
            progress.say(f"{_title(plain)}: {complete.state} already, skipped ({record.folder})")
        return complete
    with torch_threads(settings.threads):
        reset_peak_memory(device)
        # Before the record is touched: what is refused here leaves nothing behind.
        with team.failing_together():
            parts = build(plain, device)
            team.admit(parts, settings)
        team.same_weights(parts.model)
        session = _Session(plain, parts, settings, record, device, clock, tracker, progress, team)
        if not team.first:
            return session.follow()
        # When a rank dies torchrun sends SIGTERM to the others, also to one that ends already.
        several = team.size > 1
        with record.locked(), catch_interrupts(patient=several, for_good=several) as interrupts:
            return session.lead(interrupts)


@dataclass(frozen=True)
class _Session:
    """One process working on one run: moves the record from state to state."""

    config: Config
    parts: Parts
    settings: TrainerSettings
    record: Record
    device: torch.device
    clock: Clock
    tracker: Tracker
    progress: ProgressBar
    team: Team

    def lead(self, interrupts: Interrupts) -> RunResult:
        """Train and record the outcome, whatever it is; or find that another process did."""
        if complete := self.team.from_first(self._begin):
            self.progress.say(f"{_title(self.config)}: {complete.state} by now ({complete.folder})")
            return complete
        self._start()
        try:
            with self.progress:
                results = self._train(interrupts)
        except (Diverged, SolverError) as error:
            self._end(DIVERGED, error)
            return RunResult(self.record.folder, DIVERGED, str(error))
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

    def follow(self) -> RunResult:
        """Train along with rank 0, which keeps the record."""
        with catch_interrupts(patient=True) as interrupts:
            if complete := self.team.from_first(self._begin):
                return complete
            try:
                results = self._train(interrupts)
            except (Diverged, SolverError) as error:
                return RunResult(self.record.folder, DIVERGED, str(error))
        return RunResult(self.record.folder, DONE, results=results)

    def _begin(self) -> RunResult | None:
        """Clear the record for a restart, or return what it has by now if it is complete."""
        if self.settings.restart:
            self.record.clear()
            return None
        complete = _complete(self.record)
        if complete or self.record.checkpoint_path.exists():  # else nothing came of the old data
            self.record.check_data(self.parts.files)
        return complete

    def _train(self, interrupts: Interrupts) -> dict[str, float]:
        trainer = Trainer(
            self.parts,
            self.settings,
            seed=self.config["seed"],
            run=run_name(self.record.folder),
            record=self.record,
            clock=self.clock,
            tracker=self.tracker,
            progress=self.progress,
            interrupts=interrupts,
            team=self.team,
        )
        with self.team.noticing_loss():
            return trainer.fit()

    def _start(self) -> None:
        before, now = self.record.status() or {}, _now()
        git = git_state()
        start: dict[str, Any] = {
            "versions": versions(),
            "git_commit": git["commit"],
            "git_dirty": git["dirty"],
            "code": code(),
            "device": describe(self.device),
            "threads": torch.get_num_threads(),
            "ranks": self.team.size,
        }
        self.record.write_config(self.config)
        self.record.write_status(
            RUNNING,
            error=None,
            **start,
            started_at=before.get("started_at", now),
            starts=before.get("starts", 0) + 1,
            data=dict(self.parts.files),
            # The fields above are of the last start; a result may come from several.
            history=[*before.get("history", []), {"started_at": now, **start}],
        )
        title = _title(self.config)
        again = f" (was {before['state']})" if before else ""
        self.progress.say(f"{title}: training{again} in {self.record.folder}")
        if changes := differences(before, start):
            self.progress.say(f"{title}: warning: since the last start {', '.join(changes)}")

    def _end(
        self, state: str, error: BaseException | None, results: Mapping[str, float] | None = None
    ) -> None:
        """Close the mirror and write the final status; the last reading of the clock is here."""
        reason = None if error is None else _first_line(error)
        if state == INTERRUPTED:
            # At once: the mirror may take longer than a pre-empted process has.
            with suppress(RecordError):
                self.record.write_status(state, error=reason)
        try:
            self.tracker.finish(state)
        except TrackingError as lost:
            self.progress.say(f"{_title(self.config)}: warning: {lost}")
        seconds = self.clock.seconds()
        self.record.write_status(
            state,
            error=reason,
            lines=self.record.lines,
            peak_memory_mb=round(peak_memory_mb(self.device), 1),
            seconds=seconds,
            train_cpu_s=self.clock.train_cpu(),
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


def _complete(record: Record) -> RunResult | None:
    """Return the result of a run whose record is complete, or None where it is not."""
    status = record.status() or {}
    if status.get("state") not in FINAL_STATES:
        return None
    state, error = status["state"], status.get("error")
    return RunResult(record.folder, state, error, record.results(), trained=False)


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
