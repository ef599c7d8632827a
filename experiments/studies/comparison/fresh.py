"""The best setting on fresh seeds: cost to the target and test value, by data set and optimizer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.studies.comparison.planning import FRESH
from experiments.studies.comparison.rows import Row


@dataclass(frozen=True)
class Fresh:
    """The runs of one optimizer's best setting on one data set.

    Attributes:
        rows: the runs, one a seed; not empty.
    """

    rows: tuple[Row, ...]

    @property
    def hits(self) -> int:
        """How many reached the target."""
        return sum(math.isfinite(row.seconds) for row in self.rows)

    def median(self, measure: str) -> float:
        """Return the median cost to the target; a miss is infinite and stays."""
        return float(statistics.median(getattr(row, measure) for row in self.rows))

    @property
    def tests(self) -> list[float]:
        """Test values of the runs that did not diverge."""
        return [row.test for row in self.rows if row.test is not None]

    @property
    def mean(self) -> float | None:
        """Mean test value, None where all diverged."""
        return statistics.fmean(self.tests) if self.tests else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the test values, None for fewer than two."""
        return statistics.stdev(self.tests) if len(self.tests) > 1 else None


def fresh_of(rows: Sequence[Row]) -> dict[str, dict[str, Fresh]]:
    """Return the fresh runs by data set and optimizer, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.role == FRESH:
            groups.setdefault((row.dataset, row.optimizer), []).append(row)
    found: dict[str, dict[str, Fresh]] = {}
    for (dataset, optimizer), own in groups.items():
        found.setdefault(dataset, {})[optimizer] = Fresh(tuple(own))
    return found


def mean_and_deviation(fresh: Fresh, *, short: bool = False) -> str:
    """Return ``mean ± deviation`` of the test values: per cent, or nats.

    Args:
        fresh: the runs.
        short: leave out the unit.
    """
    if fresh.mean is None:
        return "diverged"
    scale, digits, unit = (
        (100.0, 1, " %") if fresh.rows[0].metric == "accuracy" else (1.0, 3, " nats")
    )
    text = f"{scale * fresh.mean:.{digits}f}"
    if fresh.deviation is not None:
        text += f" ± {scale * fresh.deviation:.{digits}f}"
    lost = len(fresh.rows) - len(fresh.tests)
    return text + ("" if short else unit) + (f", {lost} diverged" if lost else "")


def settings_text(row: Row) -> str:
    """Return the settings of a run in words, such as ``lr 0.01, eps 0.05``."""
    return ", ".join(f"{key} {_number(value)}" for key, value in row.settings.items())


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
