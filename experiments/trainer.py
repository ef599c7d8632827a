"""The training loop, one for all tasks and optimizers.

A step is drawn, computed and applied inside the ``train`` account of the clock and nothing else is;
see :mod:`experiments.clock`. After every step the loop stands at a whole state: there it logs,
validates, writes checkpoints and listens to signals, so that a resumed run repeats the very same
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.build import Parts
from experiments.checkpoint import load_checkpoint, restoring, same_keys, save_checkpoint
from experiments.clock import EVALUATION, TRAIN, Clock
from experiments.config import TrainerSettings
from experiments.distributed import ALONE, SharedEvaluation, Team
from experiments.interrupts import Interrupted, Interrupts
from experiments.meter import Meter
from experiments.models.nfe import KINDS, nfe_counts
from experiments.optimizers.evaluation import Diverged
from experiments.optimizers.protocol import may_repeat, metrics_of, protocol_of, take_step
from experiments.progress import ProgressBar
from experiments.records import Record
from experiments.seeding import epoch_order, rng_state, set_rng_state
from experiments.tracking import Tracker
from experiments.validation_grid import ValidationGrid
from snopt import SolverError


class Trainer:
    """Trains one model to the end of its settings.

    Args:
        parts: task, data, model, optimizer, schedule.
        settings: the ``trainer`` group.
        seed: seed of the run; decides the order of the batches.
        run: identity of configuration and seed; a checkpoint must carry the same.
        record: where to write; locked by the caller.
        clock: the run's clock.
        tracker: mirror of the record.
        progress: what a person sees.
        interrupts: signals received so far.
        team: the ranks that train the model together; only the first of them reads and writes.
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
        self._order_epoch = -1
        self._order = torch.empty(0)
        self._protocol = protocol_of(parts.optimizer)

    def fit(self) -> dict[str, float]:
        """Train, from the checkpoint where there is one, and return the test results.

        Raises:
            Diverged: a loss or metric is not finite.
            SolverError: an ODE could not be solved.
            Interrupted: a signal arrived; a checkpoint has been written.
            CheckpointError: the checkpoint is damaged or of another configuration.
            RecordError: the record cannot be written, or lacks what the checkpoint goes on from.
        """
        history = self._restore()
        self.tracker.start(history)
        if not history:
            self._log(self._evaluate("val"))
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
        with self.clock.booked_on(TRAIN):
            self.team.reseed(self.seed, self.step)
            evaluation = SharedEvaluation(
                *(self.team, parts.task, parts.model, self._batch(), parts.optimizer),
                step=self.step + 1,
                repeatable=may_repeat(parts.optimizer),
            )
            value = take_step(self._protocol, parts.optimizer, evaluation)
            self.step += 1
            self._advance_schedule()
            parts.averaging.update(parts.model, self.step)
        after = nfe_counts(parts.model)
        self.meter.add(value, {kind: after[kind] - before[kind] for kind in KINDS})

    def _after_step(self) -> None:
        """Log, validate and write a checkpoint where one of them is due."""
        finished = self._finished()
        row = {"step": self.step, **self.meter.means()}
        results: dict[str, float] = {}
        if finished or self.grid.due(self.step, self._trained):
            results = self._evaluate("val")
            self.reached = self._reaches(results)
            finished = finished or self.reached
        if results or self.step % self.settings.log_every == 0:
            self._log(results)
        if finished or self.step % self.settings.checkpoint_every == 0:
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

    def _advance_schedule(self) -> None:
        scheduler, interval = self.parts.scheduler, self.parts.scheduler_interval
        if scheduler and (interval == "step" or self.step % self.steps_per_epoch == 0):
            scheduler.step()

    def _evaluate(self, split: str) -> dict[str, float]:
        """Return loss and metric on a split, ``<split>/…``; of an average, ``<split>_avg/…``."""
        return self.team.from_first(partial(self._evaluate_here, split))

    def _evaluate_here(self, split: str) -> dict[str, float]:
        parts = self.parts
        tensors: tuple[Tensor, ...] = getattr(parts.data, split)
        with self.clock.booked_on(EVALUATION):
            results = parts.task.evaluate(parts.model, tensors, self.settings.eval_batch_size)
        named = {f"{split}/{key}": value for key, value in results.items()}
        for key, value in named.items():
            if not math.isfinite(value):
                raise Diverged(f"{key} is {value} at step {self.step}")
        return {**named, **self._evaluate_averaged(split, tensors)}

    def _evaluate_averaged(self, split: str, tensors: tuple[Tensor, ...]) -> dict[str, float]:
        """Return the results of the averaged weights, if there are any that can be evaluated.

        An average far from its weights may have a field that is too stiff; the run goes on.
        """
        parts, size = self.parts, self.settings.eval_batch_size
        if parts.averaging.model is None:
            return {}
        with self.clock.booked_on(EVALUATION):
            try:
                results = parts.task.evaluate(parts.averaging.model, tensors, size)
            except SolverError:
                return {}
        return {f"{split}_avg/{k}": v for k, v in results.items() if math.isfinite(v)}

    def _log(self, results: Mapping[str, float]) -> None:
        """Write one line to the record and to its mirror."""
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "time/train_s": self.clock.seconds()[TRAIN],
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
        if self.reached:
            return True
        if self.last_step is not None and self.step >= self.last_step:
            return True
        limit = self.settings.max_seconds
        if limit is None:
            return False
        return self._trained() >= limit

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
            self._save()
            self.team.wait()  # torchrun ends all ranks when the first one goes
            raise Interrupted(received)

    def _save(self) -> None:
        """Write a checkpoint of the state after :attr:`step` steps."""
        if not self.team.first:
            return
        parts = self.parts
        self.record.sync()
        state = {
            "run": self.run,
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "scheduler": parts.scheduler.state_dict() if parts.scheduler else None,
            "rng": rng_state(),
            "step": self.step,
            "clock": self.clock.state_dict(),
            "meter": vars(self.meter),
        }
        if self.settings.stop_at is not None:
            state["reached"] = self.reached
        if (averages := parts.averaging.state_dict()) is not None:
            state["averaging"] = averages
        if parts.horizon is not None:
            state["horizon"] = parts.horizon.state_dict()
        save_checkpoint(self.record.checkpoint_path, state)

    def _restore(self) -> list[dict[str, Any]]:
        """Continue from the checkpoint, if any; return the rows logged up to it."""
        path, team = self.record.checkpoint_path, self.team
        state = team.from_first(lambda: load_checkpoint(path, self.run))
        if state is None:
            return team.from_first(lambda: self.record.truncate(None))
        parts = self.parts
        with restoring(path, "model"):
            parts.model.load_state_dict(state["model"])
        with restoring(path, "optimizer"):
            same_keys(state["optimizer"], parts.optimizer.state_dict())
            parts.optimizer.load_state_dict(state["optimizer"])
        with restoring(path, "scheduler"):
            expected = parts.scheduler.state_dict() if parts.scheduler else {}
            same_keys(state["scheduler"] or {}, expected)
            if parts.scheduler:
                parts.scheduler.load_state_dict(state["scheduler"])
        with restoring(path, "averaging"):
            parts.averaging.load_state_dict(state.get("averaging"))
        with restoring(path, "horizon"):
            if parts.horizon is not None:
                parts.horizon.load_state_dict(state["horizon"])
        with restoring(path, "meter"):
            self.meter.load_state_dict(state["meter"])
        with restoring(path, "clock"):
            self.clock.load_state_dict(state["clock"])
        with restoring(path, "rng"):
            set_rng_state(state["rng"])
        self.step = state["step"]
        self.reached = bool(state.get("reached", False))
        self.grid.resume(self._trained())
        logged = self.step - self.meter.steps
        return team.from_first(lambda: self.record.truncate(self.step, logged))
