"""One run on several processes: ``torchrun --nproc-per-node=N scripts/train.py …``.

The ranks share a batch of ``trainer.batch_size`` rows in equal parts and average gradients and
curvature (:mod:`snopt.precondition.ranks`). Configuration and record are therefore those of one
process, and a run may go on with another number of ranks.

Rank 0 validates, tests, reads and writes records and checkpoints, and decides when to stop; the
others wait. Random numbers (dropout, the noise of a trace, drawn labels) follow from seed, rank and
step. The solver of each rank chooses its steps: the ranks agree with one process to the solver's
tolerance, and ``nfe/…`` counts what rank 0 evaluated.

The others notice at once when a rank dies. One that hangs ends the run after :data:`TIMEOUT`, which
has to cover the longest evaluation.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.base.device import choose_device
from experiments.base.errors import ConfigError, UserError, one_line
from experiments.base.seeds import seed_everything
from experiments.optimizers.evaluation import Diverged, Evaluation, is_plain
from experiments.optimizers.split import SplitOptimizer, takes_model
from experiments.run.build import Parts
from experiments.run.config import TrainerSettings
from snopt import SolverError, average_gradients
from snopt.precondition.optimizer import PreconditionedOptimizer

TIMEOUT: Final = timedelta(minutes=10)

_NUMBERS: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_FAULTS: Final = (UserError, Diverged, SolverError)

T = TypeVar("T")


class RankLostError(UserError):
    """Another process of the run has ended or does not answer."""


class Team:
    """The ranks of a run; a team of one does everything itself and sends nothing.

    Methods are collective: every rank has to call them, in the same order. A team of several needs
    ``torch.distributed`` initialised.

    Args:
        rank: number of this process.
        size: number of processes.
        device: where numbers lie when they are sent.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        """Store the arguments."""
        self.rank, self.size = rank, size
        self._device = device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which reads and writes."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """Return this rank's part of the rows of a batch, in order; parts differ by one row."""
        start, end = (len(rows) * k // self.size for k in (self.rank, self.rank + 1))
        return rows[start:end]

    def reseed(self, seed: int, step: int) -> None:
        """Give a rank other than 0 different random numbers for the coming step."""
        if not self.first:
            words = np.random.SeedSequence([seed, self.rank, step]).generate_state(1)
            seed_everything(int(words[0]))

    def from_first(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns on rank 0; nobody else calls it.

        Raises:
            UserError: raised by ``work``, here on every rank, as are Diverged and SolverError.
        """
        if self.size == 1:
            return work()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = work()
            except _FAULTS as error:
                told[1] = error
        dist.broadcast_object_list(told, 0)
        if told[1] is not None:
            raise told[1]
        result: T = told[0]
        return result

    def agreed(self, signal: int | None) -> int | None:
        """Return a signal that any rank has received, or None."""
        if self.size == 1:
            return signal
        largest = torch.tensor([signal or 0], device=self._device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest) or None

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Raise on every rank what one of them raises inside: UserError, Diverged, SolverError."""
        fault: Exception | None = None
        try:
            yield
        except _FAULTS as error:
            if self.size == 1:
                raise
            fault = error
        if self.size > 1 and self.agreed(int(fault is not None)):
            told: list[Exception | None] = [None] * self.size
            dist.all_gather_object(told, fault)
            raise next(error for error in told if error is not None)

    @contextmanager
    def noticing_loss(self) -> Iterator[None]:
        """Turn the errors of a broken connection into one that says what happened.

        Raises:
            RankLostError: another rank has ended or does not answer.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise RankLostError(
                "another rank has ended or does not answer, so the run stops; what it said is"
                f" above, torchrun names it below ({one_line(error, 120)}). The same command goes"
                " on from the last checkpoint"
            ) from error

    @torch.no_grad()
    def same_weights(self, model: nn.Module) -> None:
        """Give all ranks the parameters and buffers of rank 0."""
        if self.size > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, 0)

    def admit(self, parts: Parts, settings: TrainerSettings) -> None:
        """Check that the run can be shared, and let its optimizer know; sends nothing.

        Raises:
            ConfigError: it cannot; the message says why and what to do.
        """
        if self.size == 1:
            return
        if parts.horizon is not None:
            raise ConfigError(
                "the integration time is trained by numbers of the whole batch, which several"
                " ranks do not have: take horizon=none, or one process"
            )
        last = len(parts.data.train[0]) % settings.batch_size or settings.batch_size
        if last < self.size:
            raise ConfigError(
                f"the last batch of an epoch has {last} rows, less than one for each of"
                f" {self.size} ranks: change trainer.batch_size={settings.batch_size}, or take"
                " fewer ranks"
            )
        distribute(parts.optimizer)


ALONE: Final = Team()


class SharedEvaluation(Evaluation):
    """The loss of a batch whose rows are shared by the ranks; gradients are averages.

    Args:
        team: the ranks.
        *arguments: see :class:`Evaluation`; the batch is this rank's part.
        **settings: likewise.
    """

    def __init__(self, team: Team, *arguments: Any, **settings: Any) -> None:
        """Evaluate nothing yet."""
        super().__init__(*arguments, **settings)
        self.team = team

    def __call__(self) -> Tensor:
        """Compute loss and gradients of all rows; return the loss.

        Raises:
            Diverged: a rank's loss is not finite.
            SolverError: a rank's ODE could not be solved.
        """
        if self.team.size == 1:
            return super().__call__()
        rows = len(self.batch[0])
        with self.team.failing_together():
            loss = super().__call__()
        sums = torch.tensor([loss.item() * rows, rows], dtype=torch.float64, device=loss.device)
        dist.all_reduce(sums)
        self.first = float(sums[0] / sums[1])
        average_gradients(self.model.parameters(), weight=rows)
        return loss.new_tensor(self.first)


def distribute(optimizer: Optimizer) -> None:
    """Let an optimizer average over the ranks what it gathers beside the gradients.

    Raises:
        ConfigError: it needs more than gradients and factors.
    """
    if isinstance(optimizer, SplitOptimizer):
        distribute(optimizer.ode)
        distribute(optimizer.rest)
        return
    name = type(optimizer).__name__
    advice = "take another optimizer, or one process"
    if not is_plain(optimizer) or getattr(optimizer, "trust_region", None) is not None:
        raise ConfigError(
            f"{name} looks at the loss more than once in a step, which several ranks cannot do"
            f" together: {advice}"
        )
    if isinstance(optimizer, PreconditionedOptimizer):
        try:
            optimizer.distribute()
        except ValueError as error:
            raise ConfigError(f"{error}: {advice}") from error
    elif takes_model(type(optimizer)) and not getattr(optimizer, "gradient_only", False):
        raise ConfigError(
            f"{name} gathers from the model what is not averaged over ranks: {advice}"
        )


def started_as() -> tuple[int, int, int, int]:
    """Return rank, size, and both within this machine, as torchrun set them; 0, 1, 0, 1 without."""
    if not os.environ.keys() >= {*_NUMBERS, "MASTER_ADDR"}:
        return 0, 1, 0, 1
    rank, size, local, neighbours = (int(os.environ[key]) for key in _NUMBERS)
    return rank, size, local, neighbours


@contextmanager
def joined(device_name: str) -> Iterator[tuple[Team, torch.device]]:
    """Join the ranks that torchrun started; without it, or with one, a team of one.

    Args:
        device_name: ``auto``, ``cpu`` or ``cuda``; on CUDA each rank takes the device of its local
            number.

    Raises:
        ConfigError: a device is missing or named for all ranks alike.
    """
    rank, size, local, neighbours = started_as()
    if size == 1:
        yield ALONE, choose_device(device_name)
        return
    device = choose_device(device_name)
    if device.type == "cuda":
        if ":" in device_name:
            raise ConfigError(f"device={device_name} is one device for all ranks: use device=cuda")
        if neighbours > torch.cuda.device_count():
            raise ConfigError(
                f"there are {neighbours} ranks and {torch.cuda.device_count()} CUDA devices on this"
                " machine: start fewer ranks, or add device=cpu"
            )
        torch.cuda.set_device(local)
        device = torch.device("cuda", local)
    if rank:
        warnings.simplefilter("ignore")  # rank 0 gives the same ones
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Team(rank, size, device), device
    except RankLostError:
        raise  # there is nobody left to take leave of
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
