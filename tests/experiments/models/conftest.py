"""Descriptions of tiny data sets and a tight solver for the model tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiments.data.splits import DataInfo
from experiments.models.solver import SolverSettings


@pytest.fixture
def tight() -> SolverSettings:
    """Tolerances at which two ways to the same number agree to about 1e-7 in float64."""
    return SolverSettings(rtol=1e-9, atol=1e-9)


@pytest.fixture
def make_info() -> Callable[..., DataInfo]:
    """Build a DataInfo from a task and an input shape."""

    def make(task: str, shape: tuple[int, ...], num_classes: int | None = 3) -> DataInfo:
        return DataInfo("tiny", task, shape, num_classes, "made up")

    return make
