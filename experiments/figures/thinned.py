"""Curves with fewer rows: what a figure or a summary keeps of a long run.

The training loss is smoothed before rows are dropped: what is kept at a step is the trailing
running mean over the steps before it, not the loss of one batch in many.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from experiments.figures.curves import Curve, running_mean

WINDOW = 10
"""Steps of the running mean over the training loss."""

POINTS = 250
"""Rows with a training loss that a long run keeps; evaluations are all kept."""


def thin(curve: Curve, points: int = POINTS, window: int = WINDOW) -> Curve:
    """Smooth the training loss and keep about ``points`` rows of it, evenly over the steps.

    Args:
        curve: a run, one row a step.
        points: rows with a training loss to keep; the first and the last are always kept.
        window: steps of the trailing running mean.

    Returns:
        The curve with NaN as training loss where the row is only kept for its evaluation; the row
        that closes a diverged run stays.

    Raises:
        ValueError: ``points`` is below 2.
    """
    if points < 2:
        raise ValueError(f"points is {points}, expected at least 2")
    loss = np.full_like(curve.train_loss, np.nan)
    measured = np.flatnonzero(np.isfinite(curve.train_loss))
    if measured.size:
        chosen = np.unique(np.linspace(0, measured.size - 1, points).round().astype(np.int64))
        smooth = running_mean(curve.train_loss[measured], window)
        loss[measured[chosen]] = smooth[chosen]
    if curve.diverged:
        loss[-1] = np.inf
    kept = ~np.isnan(loss) | np.isfinite(curve.val_loss) | np.isfinite(curve.val_metric)
    return replace(
        curve,
        step=curve.step[kept],
        time_s=curve.time_s[kept],
        train_loss=loss[kept],
        val_loss=curve.val_loss[kept],
        val_metric=curve.val_metric[kept],
        nfe=curve.nfe[kept],
    )
