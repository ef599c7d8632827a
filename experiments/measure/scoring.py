"""Arithmetic on samples: medians of pairs, quartiles, the floor, averaged steps, slopes.

A *sample* is one timed repetition in seconds. Samples of different variants with the same index
were taken right after one another (see :mod:`experiments.measure.interleave`), so the ratio of
such a pair is free of slow changes of the machine; a ratio here is always the median over pairs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scipy import stats


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some numbers.

    Attributes:
        median: the median.
        q25: lower quartile.
        q75: upper quartile.
        count: how many numbers there were.
    """

    median: float
    q25: float
    q75: float
    count: int

    def as_json(self) -> dict[str, float]:
        """Return the fields as a dictionary."""
        return asdict(self)


def spread(samples: Sequence[float]) -> Spread:
    """Return median and quartiles (linear interpolation between order statistics).

    Raises:
        ValueError: there is no sample, or one of them is not finite.
    """
    if not samples or not all(math.isfinite(sample) for sample in samples):
        raise ValueError(f"expected finite samples, got {list(samples)}")
    ordered = sorted(samples)
    return Spread(
        statistics.median(ordered), _quantile(ordered, 0.25), _quantile(ordered, 0.75), len(ordered)
    )


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    place = fraction * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def pair_ratio(samples: Sequence[float], reference: Sequence[float]) -> Spread:
    """Return the spread over repetitions of ``samples[i] / reference[i]``.

    Raises:
        ValueError: the two were not taken in pairs, or a reference is not positive.
    """
    if len(samples) != len(reference):
        raise ValueError(f"{len(samples)} samples and {len(reference)} references are no pairs")
    if any(not value > 0 for value in reference):
        raise ValueError(f"references must be positive, got {list(reference)}")
    return spread([s / r for s, r in zip(samples, reference, strict=True)])


def averaged(ordinary: Sequence[float], refresh: Sequence[float], update_freq: int) -> list[float]:
    """Return the mean cost of a step when one step in ``update_freq`` is a refresh step.

    Args:
        ordinary: samples of a step that does not refresh.
        refresh: samples of one that does, in pairs with ``ordinary``.
        update_freq: steps from one refresh to the next.

    Raises:
        ValueError: ``update_freq`` is below 1, or the samples are no pairs.
    """
    if update_freq < 1:
        raise ValueError(f"update_freq must be at least 1, got {update_freq}")
    return [
        ((update_freq - 1) * cheap + dear) / update_freq
        for cheap, dear in zip(ordinary, refresh, strict=True)
    ]


@dataclass(frozen=True)
class Line:
    """A least-squares line y = intercept + slope · x.

    Attributes:
        slope: its slope.
        intercept: its value at x = 0.
        slope_stderr: standard error of the slope.
        points: how many points it was fitted to, at least three.
    """

    slope: float
    intercept: float
    slope_stderr: float
    points: int

    @property
    def flat(self) -> bool:
        """Whether 0 lies in the 95 % confidence interval of the slope (Student's t)."""
        quantile = float(stats.t.ppf(0.975, self.points - 2))
        return abs(self.slope) <= quantile * self.slope_stderr

    def as_json(self) -> dict[str, float]:
        """Return the fields as a dictionary."""
        return asdict(self)


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Return the least-squares line through at least three points.

    Raises:
        ValueError: fewer than three points, or all at the same x.
    """
    n = len(x)
    if n < 3 or len(set(x)) < 2:
        raise ValueError(f"a line needs three points at different places, got x = {list(x)}")
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    squares = sum((value - mean_x) ** 2 for value in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / squares
    intercept = mean_y - slope * mean_x
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return Line(slope, intercept, math.sqrt(residual / (n - 2) / squares), n)
