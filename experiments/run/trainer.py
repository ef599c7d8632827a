"""The training loop, one for all tasks and optimizers.

Only a step itself is booked on the ``train`` account of the clock (:mod:`experiments.base.clock`).
Between two steps the loop logs, validates, writes checkpoints and listens to signals, so that a
resumed run repeats the very same numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from experiments.base.clock import EVALUATION, TRAIN, Clock
from experiments.base.interrupts import LONG_S, Interrupted, Interrupts
from experiments.base.say import duration
from experiments.base.seeds import epoch_order, rng_state, set_rng_state
from experiments.models.blocks import KINDS, nfe_counts
from experiments.optimizers.evaluation import (
    Diverged,
    may_repeat,
    metrics_of,
    protocol_of,
    take_step,
)
from experiments.run.build import Parts
from experiments.run.checkpoint import (
    load_checkpoint,
    load_parts,
    parts_state,
    restoring,
    save_checkpoint,
)
from experiments.run.config import TrainerSettings
from experiments.run.ranks import ALONE, SharedEvaluation, Team
from experiments.run.records import Record
from experiments.run.tracking import Tracker
from snopt import SolverError

_REFRESH_S = 0.2
_LINE_S = 60.0


class Trainer:
    """Trains one model to the end of its settings.

    Args:
        parts: task, data, model, optimizer, schedule.
        settings: the ``trainer`` group.
        seed: seed of the run; decides the order of the batches.
        run: identity of configuration and seed; a checkpoint must carry the same.
        record: where the first rank reads and writes; locked by the caller.
        clock: the run's clock.
        tracker: mirror of the record.
        progress: what a person sees.
        interrupts: signals received so far.
        team: the ranks that train the model together.
    """

    def __init__(
        self,
        parts: Parts,
        settings: TrainerSettings,
        *,
        seed: int,
        run: str,
        record: Record,
        clock: Clock,
        tracker: Tracker,
        progress: ProgressBar,
        interrupts: Interrupts,
        team: Team = ALONE,
    ) -> None:
        """Stand at step 0; :meth:`fit` restores and trains."""
        self.parts = parts
        self.settings = settings
        self.seed = seed
        self.run = run
        self.record = record
        self.clock = clock
        self.tracker = tracker
        self.progress = progress
        self.interrupts = interrupts
        self.team = team
        self.step = 0
        self.meter = Meter()
        self.steps_per_epoch, self.last_step = settings.length(len(parts.data.train[0]))
        self.grid = ValidationGrid(settings.eval_every, settings.eval_every_s)
        self.reached = False
        self._pending = False
        self._step_s = self._validation_s = 0.0
        self._order_epoch = -1
        self._order = torch.empty(0)
        self._protocol = protocol_of(parts.optimizer)

    def fit(self) -> dict[str, float]:
        """Train, from the checkpoint where there is one, and return the test results.

        Raises:
            Diverged: a loss or metric is not finite.
            SolverError: an ODE could not be solved.
            Interrupted: a signal arrived; there is a checkpoint to go on from.
            CheckpointError: the checkpoint is damaged or of another configuration.
            RecordError: the record cannot be written, or lacks what the checkpoint goes on from.
        """
        history = self._restore()
        if self.step:
            self.progress.say(f"going on from step {self.step}")
        self.tracker.start(history)
        if not history:
            self._log(self._evaluate("val"))
        if self._pending:
            self._after_step()
        while not self._finished():
            self._stop_if_interrupted()
            self._train_step()
            self._after_step()
        results = self._evaluate("test")
        self._log(results)
        return results

    def _train_step(self) -> None:
        """One optimizer step; nothing but this is booked on ``train``."""
        parts, before = self.parts, nfe_counts(self.parts.model)
        started = self.clock.seconds()[TRAIN]
        with self.clock.booked_on(TRAIN):
            self.team.reseed(self.seed, self.step)
            evaluation = SharedEvaluation(
                self.team,
                parts.task,
                parts.model,
                self._batch(),
                parts.optimizer,
                step=self.step + 1,
                repeatable=may_repeat(parts.optimizer),
            )
            value = take_step(self._protocol, parts.optimizer, evaluation)
            self.step += 1
            epoch_ends = self.step % self.steps_per_epoch == 0
            if parts.scheduler and (parts.scheduler_interval == "step" or epoch_ends):
                parts.scheduler.step()
            parts.averaging.update(parts.model, self.step)
        self._step_s = self.clock.seconds()[TRAIN] - started
        after = nfe_counts(parts.model)
        self.meter.add(value, {kind: after[kind] - before[kind] for kind in KINDS})

    def _after_step(self) -> None:
        """Log, validate and write a checkpoint where one of them is due."""
        finished = self._finished()
        row = {"step": self.step, **self.meter.means()}
        results: dict[str, float] = {}
        if self._pending or finished or self.grid.due(self.step, self._trained):
            if self._validation_s > LONG_S:  # put the state by before
                self._save(pending=True)
            before = self.clock.seconds()[EVALUATION]
            results = self._evaluate("val")
            self._validation_s = self.clock.seconds()[EVALUATION] - before
            self._pending = False
            self.reached = self._reaches(results)
            finished = finished or self.reached
        if results or self.step % self.settings.log_every == 0:
            self._log(results)
        # A long step may not end before a pre-empted process has to.
        due = self.step % self.settings.checkpoint_every == 0 or self._step_s > LONG_S
        if finished or due:
            self._save()
        self.progress.update(self._fraction(), {**row, **results}, self.parts.task.metric)

    def _batch(self) -> tuple[Tensor, ...]:
        """Return this rank's part of the coming step's batch, on the device of the data."""
        tensors = self.parts.data.train
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if epoch != self._order_epoch:
            order = epoch_order(self.seed, epoch, len(tensors[0]))
            self._order, self._order_epoch = order.to(tensors[0].device), epoch
        start = position * self.settings.batch_size
        chosen = self.team.share(self._order[start : start + self.settings.batch_size])
        return tuple(tensor[chosen] for tensor in tensors)

    def _evaluate(self, split: str) -> dict[str, float]:
        """Return loss and metric on a split, ``<split>/…``; of an average, ``<split>_avg/…``."""
        return self.team.from_first(lambda: self._evaluate_here(split))

    def _evaluate_here(self, split: str) -> dict[str, float]:
        found = {f"{split}/{k}": v for k, v in self._results(self.parts.model, split).items()}
        for key, value in found.items():
            if not math.isfinite(value):
                raise Diverged(f"{key} is {value} at step {self.step}")
        if (average := self.parts.averaging.model) is not None:
            # It may have a field that is too stiff, far from the weights it averages: no result.
            with suppress(SolverError):
                results = self._results(average, split)
                found |= {f"{split}_avg/{k}": v for k, v in results.items() if math.isfinite(v)}
        return found

    def _results(self, model: nn.Module, split: str) -> dict[str, float]:
        tensors: tuple[Tensor, ...] = getattr(self.parts.data, split)
        with self.clock.booked_on(EVALUATION):
            return self.parts.task.evaluate(model, tensors, self.settings.eval_batch_size)

    def _log(self, results: Mapping[str, float]) -> None:
        """Write one line to the record and to its mirror."""
        cpu = self.clock.train_cpu()
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "time/train_s": self.clock.seconds()[TRAIN],
            **({} if cpu is None else {"time/train_cpu_s": cpu}),
            **self.meter.means(),
            **(metrics_of(self.parts.optimizer) if self.meter.steps else {}),
            **(self.parts.horizon.metrics if self.parts.horizon is not None else {}),
            **results,
        }
        self.meter = Meter()
        if self.team.first:
            self.record.append(row)
            self.tracker.log(row)

    def _reaches(self, results: Mapping[str, float]) -> bool:
        """Whether the validation metric is as good as ``stop_at`` asks for."""
        goal, task = self.settings.stop_at, self.parts.task
        if goal is None:
            return False
        value = results[f"val/{task.metric}"]
        return value >= goal if task.greater_is_better else value <= goal

    def _finished(self) -> bool:
        if self.reached or (self.last_step is not None and self.step >= self.last_step):
            return True
        limit = self.settings.max_seconds
        return limit is not None and self._trained() >= limit

    def _trained(self) -> float:
        """Return the training seconds so far, the same on every rank."""
        return self.team.from_first(lambda: self.clock.seconds()[TRAIN])

    def _fraction(self) -> float:
        """How much of the run is done, by the limit that is closest."""
        fractions = [0.0]
        if self.last_step is not None:
            fractions.append(self.step / self.last_step)
        if self.settings.max_seconds is not None:
            fractions.append(self.clock.seconds()[TRAIN] / self.settings.max_seconds)
        return min(1.0, max(fractions))

    def _stop_if_interrupted(self) -> None:
        received = self.team.agreed(self.interrupts.received)
        if received is not None:
            self.interrupts.settle()
            self._save()
            self.team.wait()  # torchrun ends all ranks when the first one goes
            raise Interrupted(received)

    def _save(self, *, pending: bool = False) -> None:
        """Write a checkpoint; ``pending`` says that its last step is not validated or logged."""
        if not self.team.first:
            return
        self.record.sync()
        state = {
            "run": self.run,
            **parts_state(self.parts),
            "rng": rng_state(),
            "step": self.step,
            "clock": self.clock.state_dict(),
            "meter": vars(self.meter),
            "pending": pending,
            "lines": self.record.lines,
        }
        if self.settings.stop_at is not None:
            state["reached"] = self.reached
        save_checkpoint(self.record.checkpoint_path, state)

    def _restore(self) -> list[dict[str, Any]]:
        """Continue from the checkpoint, if any; return the rows logged up to it."""
        path, team = self.record.checkpoint_path, self.team
        state = team.from_first(lambda: load_checkpoint(path, self.run))
        if state is None:
            if team.first and (lines := self.record.count()):
                self.progress.say(
                    f"there is no {path.name}: from the beginning;"
                    f" the {lines} lines of metrics.jsonl are written again"
                )
            return team.from_first(lambda: self.record.truncate(None))
        load_parts(self.parts, state, path)
        with restoring(path, "meter"):
            self.meter.load_state_dict(state["meter"])
        with restoring(path, "clock"):
            self.clock.load_state_dict(state["clock"])
        with restoring(path, "rng"):
            set_rng_state(state["rng"])
        self.step = state["step"]
        self.reached = state.get("reached", False)
        self._pending = state.get("pending", False)
        self.grid.resume(self._trained())
        logged = self.step - self.meter.steps  # a pending step is logged once more
        return team.from_first(lambda: self.record.truncate(logged, logged, state.get("lines")))


@dataclass
class Meter:
    """Sums over the steps since the last logged line: steps, losses, evaluations by kind."""

    steps: int = 0
    loss: float = 0.0
    nfe: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, loss: float, nfe: Mapping[str, int]) -> None:
        """Add one step."""
        self.steps += 1
        self.loss += loss
        for kind in KINDS:
            self.nfe[kind] += nfe[kind]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``vars()`` of a meter."""
        self.steps, self.loss = int(state["steps"]), float(state["loss"])
        self.nfe = {kind: int(state["nfe"][kind]) for kind in KINDS}

    def means(self) -> dict[str, float]:
        """Return the means per step, named as in ``metrics.jsonl``; nothing without a step."""
        if not self.steps:
            return {}
        counts = {f"nfe/{kind}": self.nfe[kind] / self.steps for kind in KINDS}
        return {"train/loss": self.loss / self.steps, **counts}


class ValidationGrid:
    """Tells after every step whether a validation is due.

    Optimizers that are compared by time need validations at equal times: on a grid of steps, one
    with cheaper steps would have more chances to meet a goal.

    Args:
        steps: steps between validations.
        seconds: training seconds between validations, in place of ``steps``. A validation follows
            the first step that ends at or beyond a multiple of it.
    """

    def __init__(self, steps: int, seconds: float | None) -> None:
        """Stand at the beginning."""
        self.steps = steps
        self.seconds = seconds
        self._passed = 0

    def resume(self, trained: float) -> None:
        """Go on after ``trained`` seconds of training, whose validations are done."""
        self._passed = self._points(trained)

    def due(self, step: int, trained: Callable[[], float]) -> bool:
        """Return whether a validation follows a step; ask once after every step.

        Args:
            step: number of the step.
            trained: returns the training seconds so far.
        """
        if self.seconds is None:
            return step % self.steps == 0
        before, self._passed = self._passed, self._points(trained())
        return self._passed > before

    def _points(self, trained: float) -> int:
        """Return how many points of the grid lie behind."""
        return 0 if self.seconds is None else int(trained / self.seconds)


class ProgressBar:
    """Shows how far a run is: loss, metric, NFE of the last step and the time left.

    A bar on a terminal, elsewhere a line a minute. :meth:`update` redraws the bar; rich's thread
    would take time from training unbooked.

    Args:
        show: False: nothing.
        console: where to write, standard output by default.
        title: of the run, before its lines.
    """

    def __init__(
        self, show: bool | None = None, console: Console | None = None, title: str = ""
    ) -> None:
        """Lay out the bar."""
        self.console = console or Console(highlight=False, soft_wrap=True)
        shown = self.console.is_terminal and show is not False
        self._lines = not shown and show is not False
        self._title = title
        self._first: tuple[float, float] | None = None  # when, and how much was done by then
        self._drawn = time.monotonic() if self._lines else 0.0
        self._metric = ""
        self._bar = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            auto_refresh=False,
            transient=True,
            disable=not shown,
        )
        self._task = self._bar.add_task("", total=1.0, step=0, numbers="")

    def __enter__(self) -> ProgressBar:
        """Start to draw."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._bar.stop()

    def say(self, line: str) -> None:
        """Write one line above the bar."""
        self.console.print(line, markup=False)

    def update(self, fraction: float, row: Mapping[str, float], metric: str) -> None:
        """Show a row of the record.

        Args:
            fraction: how much of the run is done, 0 to 1.
            row: keys as in ``metrics.jsonl``; the last validation stays on display.
            metric: name of the task's metric.
        """
        if self._bar.disable and not self._lines:
            return
        if f"val/{metric}" in row:
            self._metric = f"  {metric} {row[f'val/{metric}']:.4g}"
        now = time.monotonic()
        self._first = began, done = self._first or (now, fraction)
        if now - self._drawn < (_LINE_S if self._lines else _REFRESH_S) and (
            self._lines or fraction < 1
        ):
            return
        self._drawn = now
        numbers = self._metric
        if "train/loss" in row:
            evaluations = row["nfe/forward"] + row["nfe/backward"] + row["nfe/curvature"]
            numbers = f"loss {row['train/loss']:.4g}{self._metric}  nfe {evaluations:.0f}"
        if self._lines:
            left = (now - began) * (1 - fraction) / (fraction - done) if fraction > done else None
            left_words = "" if left is None else f"  {duration(left)} left"
            self.say(f"{self._title}: step {row['step']}  {numbers}{left_words}")
            return
        self._bar.update(self._task, completed=fraction, step=row["step"], numbers=numbers)
        self._bar.refresh()
