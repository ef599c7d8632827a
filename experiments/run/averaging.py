"""Averages of the weights along training, evaluated beside the raw weights.

``averaging=swa`` is stochastic weight averaging (Izmailov et al. 2018), the equal mean of the
weights of later steps; ``averaging=ema`` an exponential moving average. Both are torch's
``AveragedModel``. Training is untouched: the average has the metrics ``val_avg/…``, ``test_avg/…``.

Running statistics of normalisation layers belong to the weights that made them. Where a model has
them, its buffers are averaged with its weights (``use_buffers``): of torch's two ways the one that
needs no further pass over the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from experiments.base.errors import ConfigError


class Averaging:
    """The average of a model's weights over some of the steps.

    Args:
        model: the model, before an optimizer puts hooks on it; None means no averaging.
        decay: of an exponential average, in [0, 1); None means the equal mean.
        start: the step whose weights are the first that may enter.
        every: steps between two that enter.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        decay: float | None = None,
        start: int = 1,
        every: int = 1,
    ) -> None:
        """Copy the model's structure; no weights are in the average yet."""
        self.start = start
        self.every = every
        self._averaged: AveragedModel | None = None
        if model is not None:
            self._averaged = AveragedModel(
                model,
                multi_avg_fn=None if decay is None else get_ema_multi_avg_fn(decay),
                use_buffers=any(isinstance(module, _NormBase) for module in model.modules()),
            )

    @property
    def model(self) -> nn.Module | None:
        """A model with the averaged weights, or None where nothing has been averaged yet."""
        if self._averaged is None or not int(self._averaged.n_averaged):
            return None
        module: nn.Module = self._averaged.module
        return module

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after ``step`` steps, if it is their turn."""
        if self._averaged is not None and step >= self.start and step % self.every == 0:
            self._averaged.update_parameters(model)

    def state_dict(self) -> dict[str, Any] | None:
        """Return averaged weights and their number, or None without averaging."""
        return None if self._averaged is None else self._averaged.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            ValueError: the state has no averages, or has them and none are wanted.
        """
        if (state is None) is not (self._averaged is None):
            raise ValueError("it has no averaged weights" if state is None else "it has averages")
        if self._averaged is not None and state is not None:
            self._averaged.load_state_dict(state)


def build_averaging(
    config: Mapping[str, Any] | None,
    model: nn.Module,
    *,
    steps_per_epoch: int,
    last_step: int | None,
) -> Averaging:
    """Build the averaging of a run.

    Args:
        config: the ``averaging`` group; None means none.
        model: the model, before an optimizer puts hooks on it.
        steps_per_epoch: steps of an epoch.
        last_step: the step that ends the run, or None where only a time limit does.

    Raises:
        ConfigError: a start is a fraction of an unknown number.
    """
    if config is None or config["name"] == "none":
        return Averaging()
    if config["start"] > 0 and last_step is None:
        raise ConfigError(
            f"averaging.start={config['start']} is a fraction of the run's steps, but nothing"
            " limits them: set trainer.epochs or trainer.max_steps, or averaging.start=0"
        )
    start = max(1, math.ceil(config["start"] * (last_step or 0)))
    every = steps_per_epoch if config["every"] == "epoch" else config["every"]
    return Averaging(model, decay=config.get("decay"), start=start, every=every)
