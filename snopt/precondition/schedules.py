"""Settings that depend on the number of steps taken: damping, and when factors are refreshed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from snopt.validate import check_count

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Exponential:
    """Goes from ``start`` to ``end`` geometrically within ``steps`` steps, then stays.

    Raises:
        ValueError: if an argument is not positive.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not (self.start > 0 and self.end > 0):
            raise ValueError(
                f"a geometric schedule needs start and end > 0, got {self.start!r}, {self.end!r}"
            )
        check_count("steps", self.steps)

    def __call__(self, step: int) -> float:
        """Return the value at a step, the first of which is 0."""
        part = min(step / self.steps, 1.0)
        return float(self.start * (self.end / self.start) ** part)


@dataclass(frozen=True)
class DenseThenSparse:
    """Refreshes every ``early`` steps for the first ``steps`` steps, every ``late`` afterwards.

    The curvature changes fastest at the start of training.

    Raises:
        ValueError: if an argument is no integer of at least 1.
    """

    early: int
    steps: int
    late: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name in ("early", "steps", "late"):
            check_count(name, getattr(self, name))

    def due(self, step: int, since: int, drift: float) -> bool:
        """Return whether the step is one with a refresh.

        Args:
            step: steps taken so far.
            since: steps since the last refresh.
            drift: see :class:`WhenStale`.
        """
        return step == 0 or since >= (self.early if step < self.steps else self.late)


@dataclass(frozen=True)
class WhenStale:
    """Refreshes when the second moment of the gradient has left the factors behind.

    The drift is |log(m / m₀)|: m is the sum over all layers of the running second moment S, m₀ the
    same ``settle`` steps after the last refresh, when S has forgotten its start.

    Args:
        factor: refresh as soon as m has changed by this factor, greater than 1.
        at_least: steps between two refreshes at the least.
        at_most: ... and at the most.
        settle: steps after a refresh at which m₀ is taken.

    Raises:
        ValueError: if an argument is out of range.
    """

    factor: float = 2.0
    at_least: int = 10
    at_most: int = 100
    settle: int = 5

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not self.factor > 1:
            raise ValueError(f"factor must be greater than 1, got {self.factor!r}")
        for name in ("at_least", "at_most", "settle"):
            check_count(name, getattr(self, name))
        if not self.settle <= self.at_least <= self.at_most:
            raise ValueError(
                "settle <= at_least <= at_most must hold, got"
                f" {self.settle}, {self.at_least}, {self.at_most}"
            )

    def due(self, step: int, since: int, drift: float) -> bool:
        """Return whether the step is one with a refresh.

        Args:
            step: steps taken so far.
            since: steps since the last refresh.
            drift: |log(m / m₀)|, 0 while there is no m₀.
        """
        if step == 0 or since >= self.at_most:
            return True
        return since >= self.at_least and drift > math.log(self.factor)


Refresh = DenseThenSparse | WhenStale
