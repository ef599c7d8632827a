"""Scoring on numbers made by hand."""

from __future__ import annotations

import math

import pytest

from experiments.measure.scoring import averaged, fit_line, pair_ratio, spread


def test_spread_is_median_and_quartiles() -> None:
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.median, found.q25, found.q75, found.count) == (3.0, 2.0, 4.0, 5)
    # Between order statistics it interpolates.
    assert spread([1.0, 2.0]).q25 == pytest.approx(1.25)
    assert spread([7.0]).as_json() == {"median": 7.0, "q25": 7.0, "q75": 7.0, "count": 1}


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf]])
def test_spread_refuses_what_has_no_median(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="finite samples"):
        spread(samples)


def test_ratio_is_the_median_over_pairs_not_the_ratio_of_medians() -> None:
    # A machine that slows down threefold in the last round hits both samples of the pair.
    ours, other = [2.0, 4.0, 3.0], [1.0, 1.0, 3.0]
    assert pair_ratio(ours, other).median == 2.0
    assert spread(ours).median / spread(other).median == 3.0


def test_ratio_refuses_what_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="2 samples and 1 references are no pairs"):
        pair_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="must be positive"):
        pair_ratio([1.0], [0.0])


def test_average_step_has_one_refresh_in_update_freq() -> None:
    ordinary, refresh = [1.0, 2.0], [5.0, 12.0]
    assert averaged(ordinary, refresh, 1) == refresh
    assert averaged(ordinary, refresh, 10) == pytest.approx([1.4, 3.0])
    assert averaged(ordinary, refresh, 100) == pytest.approx([1.04, 2.1])
    with pytest.raises(ValueError, match="at least 1"):
        averaged(ordinary, refresh, 0)
    with pytest.raises(ValueError, match="shorter"):
        averaged(ordinary, [1.0], 10)


def test_line_through_points_on_a_line_is_exact() -> None:
    line = fit_line([1.0, 2.0, 4.0], [5.0, 7.0, 11.0])
    assert (line.slope, line.intercept) == pytest.approx((2.0, 3.0))
    assert line.slope_stderr == pytest.approx(0.0, abs=1e-12)
    assert not line.flat


def test_standard_error_of_a_slope() -> None:
    # Residuals of y = x at x = 0..3 are (.1, -.1, -.1, .1): s² = .04 / 2, Sxx = 5.
    line = fit_line([0.0, 1.0, 2.0, 3.0], [0.1, 0.9, 1.9, 3.1])
    assert line.slope == pytest.approx(1.0)
    assert line.slope_stderr == pytest.approx(math.sqrt(0.02 / 5))
    assert not line.flat


def test_noise_without_a_trend_is_flat_and_a_drift_above_it_is_not() -> None:
    x, noise = [3.0, 6.0, 9.0, 20.0, 40.0], [0.2, -0.2, 0.1, -0.15, 0.1]
    assert fit_line(x, [50.0 + e for e in noise]).flat
    assert not fit_line(x, [50.0 + 0.1 * a + e for a, e in zip(x, noise, strict=True)]).flat


def test_line_needs_three_points_at_different_places() -> None:
    for x in ([1.0, 2.0], [1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="three points"):
            fit_line(x, x)
