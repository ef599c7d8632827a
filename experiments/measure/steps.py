"""Training steps that can be repeated, for everything that times steps or measures their memory.

All steps are taken at the same weights, so that every optimizer solves the very same ODE. A plain
step therefore has the learning rate 0: the optimizer does all of its arithmetic, and its own state
(momentum, curvature) goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from experiments.base.seeds import epoch_order
from experiments.optimizers.evaluation import Evaluation, may_repeat, protocol_of, take_step
from experiments.run.build import Parts, build
from experiments.run.config import check_config, load_config, resolve
from snopt import SNOpt

NEVER = 10**9
"""An ``update_freq`` that is never reached: all steps after the first are ordinary ones."""

STEPS_TAKEN = 4  # in a measurement of memory; with update_freq=2 SNOpt refreshes twice in them

Step = Callable[[], None]
Make = Callable[[nn.Module], Optimizer]


def plain_step(
    optimizer: Optimizer,
    loss: Callable[[], Tensor],
    after_backward: Callable[[], object] = lambda: None,
) -> Step:
    """Return forward pass, backward pass, ``after_backward()`` and ``optimizer.step()``."""

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        after_backward()
        optimizer.step()

    return step


# --- optimizers on the workloads -----------------------------------------------------------------


def _snopt(update_freq: int, scope: str = "all") -> Make:
    return lambda model: SNOpt(model, lr=0.0, momentum=0.9, update_freq=update_freq, scope=scope)


_BASELINES: dict[str, Make] = {
    "sgd": lambda model: SGD(model.parameters(), lr=0.0, momentum=0.9),
    "adam": lambda model: Adam(model.parameters(), lr=0.0),
}

TIMED: dict[str, Make] = {
    **_BASELINES,
    "snopt": _snopt(NEVER),
    "snopt_refresh": _snopt(1),
    "snopt_ode": _snopt(NEVER, "ode"),
    "snopt_ode_refresh": _snopt(1, "ode"),
}
"""Kinds of steps that are timed. The first step of ``snopt`` refreshes: it is warm-up."""

MEASURED_FOR_MEMORY: dict[str, Make] = {
    **_BASELINES,
    "snopt": _snopt(2),
    "snopt_ode": _snopt(2, "ode"),
}
"""Optimizers whose peak memory is measured."""


# --- configured runs -----------------------------------------------------------------------------


def configuration(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the configuration with these overrides, checked."""
    config = resolve(load_config(list(overrides)))
    check_config(config)
    return config


def prepare(config: Mapping[str, Any], device: torch.device) -> tuple[Parts, tuple[Tensor, ...]]:
    """Build a run and return its parts and its first batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what gets a plain update is no news here
        parts = build(dict(config), device)
    return parts, batch_at(parts, config)


def batch_at(parts: Parts, config: Mapping[str, Any], step: int = 0) -> tuple[Tensor, ...]:
    """Return the batch that training with this configuration takes at a step, counted from 0."""
    tensors, size = parts.data.train, int(config["trainer"]["batch_size"])
    epoch, position = divmod(step, -(-len(tensors[0]) // size))
    order = epoch_order(config["seed"], epoch, len(tensors[0]))
    chosen = order[position * size : (position + 1) * size]
    return tuple(tensor[chosen.to(tensor.device)] for tensor in tensors)


def train(parts: Parts, batch: tuple[Tensor, ...], step: int = 1) -> int:
    """Take one step as the trainer does; return how often it evaluated the loss."""
    optimizer = parts.optimizer
    evaluation = Evaluation(
        parts.task, parts.model, batch, optimizer, step=step, repeatable=may_repeat(optimizer)
    )
    take_step(protocol_of(optimizer), optimizer, evaluation)
    return evaluation.count
