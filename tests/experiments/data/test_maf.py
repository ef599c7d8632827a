"""The published preprocessing, against restatements with other tools."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pandas
import pytest
from maf_files import gas_values, hepmass_values, miniboone, power

from experiments.base.errors import DataError
from experiments.data import maf
from experiments.data.frame_pickle import Table


def sizes(count: int) -> tuple[int, int, int]:
    test = count // 10
    val = (count - test) // 10
    return count - test - val, val, test


def check_sizes(parts: maf.Parts, count: int, columns: int) -> None:
    assert tuple(len(part) for part in parts) == sizes(count)
    assert {part.shape[1] for part in parts} == {columns}


def check_normalised(parts: maf.Parts) -> None:
    """Training and validation rows together have mean 0 and deviation 1."""
    known = np.vstack(parts[:2])
    np.testing.assert_allclose(known.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(known.std(axis=0), 1, rtol=1e-12)


def test_the_published_sizes_follow_from_the_published_numbers_of_rows() -> None:
    assert sizes(36_488) == (29_556, 3_284, 3_648)  # MINIBOONE
    assert sizes(1_052_065) == (852_174, 94_685, 105_206)  # GAS
    assert sizes(2_049_280) == (1_659_917, 184_435, 204_928)  # POWER


def test_miniboone_is_split_in_order_and_normalised() -> None:
    raw = np.load(io.BytesIO(miniboone()))
    parts = maf.miniboone(raw)
    check_sizes(parts, 400, 43)
    check_normalised(parts)
    pooled = np.vstack(parts)
    known = raw[:360]
    np.testing.assert_allclose(pooled, (raw - known.mean(0)) / known.std(0), rtol=1e-9, atol=1e-12)


def test_outliers_and_discrete_features_of_raw_events_go() -> None:
    raw = np.load(io.BytesIO(miniboone()))
    dirty = np.insert(raw, [3, 200], -999.0, axis=0)
    coarse = np.maximum(raw[:, :1], np.sort(raw[:, 0])[6])  # its smallest value occurs 7 times
    fine = np.maximum(raw[:, 1:2], np.sort(raw[:, 1])[4])  # ... 5 times
    dirty = np.insert(dirty, [1], 0.0, axis=1)
    dirty[:, 1] = np.insert(coarse[:, 0], [3, 200], -999.0)
    dirty[:, 3] = np.insert(fine[:, 0], [3, 200], -999.0)
    expected = np.hstack([raw[:, :1], raw[:, 1:]])
    expected[:, 2] = fine[:, 0]
    ours = maf.miniboone(dirty)
    for part, right in zip(ours, maf.miniboone(expected), strict=True):
        np.testing.assert_array_equal(part, right)


def test_power_is_shuffled_trimmed_and_blurred() -> None:
    raw = np.load(io.BytesIO(power()))
    parts = maf.power(raw)
    check_sizes(parts, 400, 6)
    check_normalised(parts)
    # The same stream of random numbers, from a shuffled list of row numbers.
    stream = np.random.RandomState(42)
    order = np.arange(400)
    stream.shuffle(order)
    kept = raw[order][:, [0, 2, 4, 5, 6, 7]]
    noise = {1: stream.rand(400) / 100, 0: stream.rand(400) / 1000}
    meters = stream.rand(400 * 3).reshape(400, 3)
    for column, values in noise.items():
        kept[:, column] += values
    kept[:, 2:5] += meters
    known = kept[:360]
    expected = (kept - known.mean(0)) / known.std(0)
    np.testing.assert_allclose(np.vstack(parts), expected, rtol=1e-9, atol=1e-12)
    assert np.load(io.BytesIO(power())).tolist() == raw.tolist()  # the argument is not shuffled


def test_gas_loses_sensors_that_repeat_others() -> None:
    columns, values = gas_values()
    parts = maf.gas(Table(columns, values))
    table = pandas.DataFrame(values, columns=list(columns)).drop(columns=["Time", "Meth", "Eth"])
    dropped = []
    while ((counts := (table.corr() > 0.98).sum(axis=1)) > 1).any():
        dropped.append(counts.index[counts > 1][0])
        table = table.drop(columns=dropped[-1])
    assert dropped == ["s0", "s1", "s2"]
    check_sizes(parts, 400, 3)
    expected = (table - table.mean()) / table.std()
    np.testing.assert_allclose(np.vstack(parts), expected.to_numpy(), rtol=1e-9, atol=1e-12)


def test_hepmass_keeps_class_1_and_continuous_features() -> None:
    train, test = hepmass_values(600, 6, 0), hepmass_values(300, 7, 1)
    parts = maf.hepmass(train, test)
    frames = [pandas.DataFrame(values) for values in (train, test.copy()[:, :5])]
    first, second = (table[table[0] == 1].drop(columns=0) for table in frames)
    scaled = (first - first.mean()) / first.std(), (second - first.mean()) / first.std()
    counts = {c: Counter(scaled[0][c])[scaled[0][c].min()] for c in scaled[0].columns}
    kept = [c for c, count in counts.items() if count <= 5]
    assert kept == [1, 2, 4]
    val = len(first) // 10
    ours = np.vstack(parts[:2]), parts.test
    assert len(parts.val) == val
    for part, table in zip(ours, scaled, strict=True):
        np.testing.assert_allclose(part, table[kept].to_numpy(), rtol=1e-9, atol=1e-12)
    for part, right in zip(parts, maf.hepmass(train, test[:, :5]), strict=True):
        np.testing.assert_array_equal(part, right)  # a test file without the surplus column


COLUMNS, SENSORS = gas_values()
BAD = {
    "power columns": (lambda: maf.power(np.ones((50, 7))), "power: 7 columns, expected 8"),
    "power constant": (lambda: maf.power(np.ones((50, 8))), "feature 5 has one value only"),
    "few rows": (lambda: maf.miniboone(SENSORS[:9]), "miniboone: 9 rows are too few"),
    "all outliers": (lambda: maf.miniboone(np.full((50, 3), -999.0)), "no rows are left"),
    "all discrete": (lambda: maf.miniboone(np.ones((50, 3))), "every feature has re-occurring"),
    "gas columns": (lambda: maf.gas(Table(("Time", "x"), SENSORS[:, :2])), "no column Meth, Eth"),
    "gas constant": (lambda: maf.gas(Table(COLUMNS, np.ones((50, 9)))), "has one value only"),
    "gas gone": (lambda: maf.gas(Table(COLUMNS[:3], SENSORS[:, :3])), "none are left"),
    "hepmass columns": (lambda: maf.hepmass(np.ones((9, 5)), np.ones((9, 7))), "5 .* 7 .*not fit"),
    "hepmass class": (lambda: maf.hepmass(np.zeros((9, 5)), np.ones((9, 5))), "0 training and 9"),
}


@pytest.mark.parametrize("case", BAD)
def test_tables_of_another_kind(case: str) -> None:
    run, message = BAD[case]
    with pytest.raises(DataError, match=message):
        run()
