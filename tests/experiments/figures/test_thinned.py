"""Thinning against cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.figures.curves import Curve, running_mean
from experiments.figures.thinned import thin


def curve(steps: int = 101, *, diverged: bool = False) -> Curve:
    """Loss = step from step 1 on, evaluated every 7 steps."""
    step = np.arange(steps, dtype=float)
    loss = step.copy()
    loss[0] = np.nan
    if diverged:
        loss[-1] = np.inf
    value = np.where(step % 7 == 0, 0.5, np.nan)
    return Curve("digits", "adam", 0, step, 0.1 * step, loss, value, value, 10 * step)


def test_keeps_the_ends_all_evaluations_and_the_running_mean() -> None:
    full, found = curve(), thin(curve(), points=5, window=10)
    loss_steps, loss = found.series("train_loss", over="step")
    # 100 losses, five of them evenly: places 0, 24.75, 49.5, 74.25, 99 rounded.
    np.testing.assert_array_equal(loss_steps, [1, 26, 51, 75, 100])
    np.testing.assert_allclose(loss, running_mean(full.train_loss[1:], 10)[[0, 25, 50, 74, 99]])
    np.testing.assert_array_equal(found.series("val_loss", over="step")[0], np.arange(0, 101, 7))
    np.testing.assert_allclose(found.time_s, 0.1 * found.step)
    np.testing.assert_allclose(found.nfe, 10 * found.step)


def test_a_short_run_keeps_every_row() -> None:
    found = thin(curve(20), points=50, window=1)
    np.testing.assert_array_equal(found.step, np.arange(20))
    np.testing.assert_array_equal(found.train_loss[1:], np.arange(1, 20))


def test_a_diverged_run_stays_one() -> None:
    found = thin(curve(diverged=True), points=4)
    assert found.diverged
    assert found.step[-1] == 100


def test_one_point_is_no_curve() -> None:
    with pytest.raises(ValueError, match="points is 1"):
        thin(curve(), points=1)
