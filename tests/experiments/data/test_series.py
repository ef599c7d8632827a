"""Trimming, scaling and packing of series, against loops and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.base.errors import DataError
from experiments.data.series import fit_scale, pack, trim

NAN = np.nan


def test_trim_cuts_after_the_last_observation_only() -> None:
    values = np.array([[NAN, 1.0, NAN, NAN], [NAN, NAN, 2.0, NAN]])
    (trimmed,) = trim([values], "tiny")
    np.testing.assert_array_equal(trimmed, values[:, :3])


def test_a_series_with_nothing_in_it_is_refused() -> None:
    with pytest.raises(DataError, match="tiny: every value of example 1"):
        trim([np.ones((1, 2)), np.full((1, 2), NAN)], "tiny")


def test_scale_is_over_observed_entries() -> None:
    series = [np.array([[1.0, NAN], [5.0, 5.0]]), np.array([[3.0], [5.0]])]
    mean, deviation = fit_scale(series, "tiny")
    np.testing.assert_array_equal(mean, [[2.0], [5.0]])
    np.testing.assert_array_equal(deviation, [[1.0], [1.0]])  # the second channel is constant


def test_a_constant_channel_with_rounding_is_not_blown_up() -> None:
    np.testing.assert_array_equal(fit_scale([np.full((1, 1000), 0.1)], "tiny")[1], [[1.0]])


def test_a_channel_that_is_never_observed_is_refused() -> None:
    series = [np.array([[1.0], [NAN]]), np.array([[2.0], [NAN]])]
    with pytest.raises(DataError, match=r"every value of channel 1 is missing \(1 of 2 channels\)"):
        fit_scale(series, "tiny")


def test_pack_writes_time_values_mask_and_padding() -> None:
    series = [np.array([[0.0, NAN], [0.0, 2.0]]), np.array([[1.0, -1.0, 0.0], [0.0, 0.0, NAN]])]
    x, lengths, y = pack(series, np.array([1, 0]), length=4)
    assert lengths.tolist() == [2, 3]
    assert y.tolist() == [1, 0]
    expected = [
        [[0, 0, 0, 1, 1], [1, 0, 2, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        [[0, 1, 0, 1, 1], [1, -1, 0, 1, 1], [2, 0, 0, 1, 0], [0, 0, 0, 0, 0]],
    ]
    assert x.tolist() == expected
