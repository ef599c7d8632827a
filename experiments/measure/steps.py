"""One training step, ready to be repeated: the one thing that all step timers and meters repeat.

After each step the weights are put back. So every step of every optimizer solves the very same ODE,
and what differs between two samples is the optimizer. What an optimizer remembers (momentum,
curvature) goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from experiments.base.seeds import epoch_order
from experiments.measure.workloads import Case
from experiments.models.blocks import nfe_counts
from experiments.optimizers.evaluation import Evaluation, may_repeat, protocol_of, take_step
from experiments.run.build import Parts, build
from experiments.run.config import check_config, load_config, resolve
from snopt import SNOpt

NEVER = 10**9
"""An ``update_freq`` that is never reached: after the first step all are ordinary ones."""

Make = Callable[[nn.Module], Optimizer]


class Step:
    """A step that can be repeated; call it to take one.

    Attributes:
        params: the model's parameters, which are put back.
        taken: steps so far.
        losses: evaluations of the loss in them.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, take: Callable[[], int]) -> None:
        """Remember the weights; ``take`` takes a step and returns the evaluations of the loss."""
        self.model, self.optimizer, self._take = model, optimizer, take
        self.params: list[Tensor] = list(model.parameters())
        self._start = [p.detach().clone() for p in self.params]
        self.taken = self.losses = 0

    def __call__(self) -> None:
        """Take one step, then put the weights back."""
        self.losses += self._take()
        self.taken += 1
        with torch.no_grad():
            torch._foreach_copy_(self.params, self._start)

    def evaluations(self) -> dict[str, float]:
        """Return means a step: evaluations of the loss, and of the field by kind."""
        nfe = {f"nfe_{kind}": n / self.taken for kind, n in nfe_counts(self.model).items()}
        return {"losses": self.losses / self.taken, **nfe}


# --- steps of a workload, on noise ---------------------------------------------------------------


def plain_step(
    case: Case, optimizer: Optimizer, after_backward: Callable[[], object] | None = None
) -> Step:
    """Return forward pass, backward pass, ``after_backward()`` and ``optimizer.step()``."""

    def take() -> int:
        optimizer.zero_grad()
        case.loss().backward()
        if after_backward is not None:
            after_backward()
        optimizer.step()
        return 1

    return Step(case.model, optimizer, take)


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
"""Optimizers whose peak memory is measured; in four steps SNOpt refreshes twice."""


# --- steps of a run, as its configuration describes it -------------------------------------------


def configuration(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the configuration with these overrides, checked.

    Raises:
        ConfigError: it names something unknown or out of range.
    """
    config = resolve(load_config(list(overrides)))
    check_config(config)
    return config


def batch_at(parts: Parts, config: Mapping[str, Any], step: int = 0) -> tuple[Tensor, ...]:
    """Return the batch that training with this configuration takes at a step, counted from 0."""
    tensors, size = parts.data.train, int(config["trainer"]["batch_size"])
    epoch, position = divmod(step, -(-len(tensors[0]) // size))
    order = epoch_order(config["seed"], epoch, len(tensors[0]))
    chosen = order[position * size : (position + 1) * size]
    return tuple(tensor[chosen.to(tensor.device)] for tensor in tensors)


def train(parts: Parts, batch: tuple[Tensor, ...], step: int = 1) -> int:
    """Take one step as the trainer does; return how often the loss was evaluated.

    Raises:
        Diverged: the loss is not finite.
        SolverError: an ODE could not be solved.
    """
    optimizer = parts.optimizer
    evaluation = Evaluation(
        parts.task, parts.model, batch, optimizer, step=step, repeatable=may_repeat(optimizer)
    )
    take_step(protocol_of(optimizer), optimizer, evaluation)
    return evaluation.count


def configured_step(config: Mapping[str, Any], device: torch.device) -> Step:
    """Build a run and return its step, always on the first batch.

    Raises:
        ConfigError: the parts do not fit.
        DataError: the data set is missing or damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what gets a plain update is no news here
        parts = build(dict(config), device)
    batch = batch_at(parts, config)
    return Step(parts.model, parts.optimizer, lambda: train(parts, batch))
