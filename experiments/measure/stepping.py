"""Optimizer steps, ordinary ones and ones that refresh the curvature, ready to be repeated.

The learning rate is 0: an optimizer does all of its arithmetic, the weights stay where they are.
So every step of every optimizer solves the very same ODE, and what differs between two samples is
the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from experiments.measure.workloads import Case, Workload
from snopt import SNOpt

NEVER = 10**9
"""An ``update_freq`` that is never reached: after the first step all are ordinary ones."""

MEMORY_STEPS = 4
"""Steps of a measurement of memory; with ``update_freq=2`` SNOpt refreshes twice in them."""


@dataclass(frozen=True)
class Stepper:
    """A model in training.

    Attributes:
        case: model and loss.
        optimizer: over the model.
    """

    case: Case
    optimizer: Optimizer

    def step(self) -> None:
        """Take one optimizer step."""
        take_step(self.optimizer, self.case.loss)


def take_step(optimizer: Optimizer, loss: Callable[[], torch.Tensor]) -> None:
    """Zero the gradients, run forward and backward, step."""
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def sgd(model: nn.Module) -> Optimizer:
    """SGD with momentum, the baseline."""
    return SGD(model.parameters(), lr=0.0, momentum=0.9)


def adam(model: nn.Module) -> Optimizer:
    """Adam."""
    return Adam(model.parameters(), lr=0.0)


def snopt(model: nn.Module, *, update_freq: int, scope: str = "all") -> Optimizer:
    """SNOpt on SGD with momentum, 4 Gauss-Legendre nodes."""
    return SNOpt(model, lr=0.0, momentum=0.9, update_freq=update_freq, scope=scope)


TIMED: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "snopt": lambda model: snopt(model, update_freq=NEVER),
    "snopt_refresh": lambda model: snopt(model, update_freq=1),
    "snopt_ode": lambda model: snopt(model, update_freq=NEVER, scope="ode"),
    "snopt_ode_refresh": lambda model: snopt(model, update_freq=1, scope="ode"),
}
"""Kinds of steps that are timed. The first step of ``snopt`` refreshes: it is warm-up."""

MEASURED_FOR_MEMORY: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "snopt": lambda model: snopt(model, update_freq=2),
    "snopt_ode": lambda model: snopt(model, update_freq=2, scope="ode"),
}
"""Optimizers whose peak memory is measured."""


def stepper(
    workload: Workload, device: torch.device, make: Callable[[nn.Module], Optimizer]
) -> Stepper:
    """Build a workload and an optimizer over it."""
    case = workload.build(device)
    return Stepper(case, make(case.model))
