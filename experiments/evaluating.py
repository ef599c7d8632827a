"""Loss and metric on a split, of the weights in training and of their average."""

from __future__ import annotations

import math

from torch import Tensor

from experiments.build import Parts
from experiments.clock import EVALUATION, Clock
from experiments.optimizers.evaluation import Diverged
from snopt import SolverError


def evaluate(
    parts: Parts, clock: Clock, split: str, batch_size: int, step: int
) -> dict[str, float]:
    """Return the results on a split, ``<split>/…``, and those of an average, ``<split>_avg/…``.

    Args:
        parts: model, data and task.
        clock: books the time on ``evaluation``.
        split: ``train``, ``val`` or ``test``.
        batch_size: rows at a time.
        step: number of the step, for messages.

    Raises:
        Diverged: a result of the weights in training is not finite.
        SolverError: their ODE could not be solved.
    """
    tensors: tuple[Tensor, ...] = getattr(parts.data, split)
    with clock.booked_on(EVALUATION):
        results = parts.task.evaluate(parts.model, tensors, batch_size)
    named = {f"{split}/{key}": value for key, value in results.items()}
    for key, value in named.items():
        if not math.isfinite(value):
            raise Diverged(f"{key} is {value} at step {step}")
    return {**named, **_averaged(parts, clock, split, batch_size)}


def _averaged(parts: Parts, clock: Clock, split: str, batch_size: int) -> dict[str, float]:
    """Return the results of the averaged weights, if there are any that can be evaluated.

    An average far from its weights may have a field that is too stiff; the run goes on.
    """
    if parts.averaging.model is None:
        return {}
    with clock.booked_on(EVALUATION):
        try:
            results = parts.task.evaluate(
                parts.averaging.model, getattr(parts.data, split), batch_size
            )
        except SolverError:
            return {}
    return {f"{split}_avg/{k}": v for k, v in results.items() if math.isfinite(v)}
